# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reference encodings of transcoders and sparse autoencoders, for people who port them.

>>> from oracle import Job, compare, demo_job, generate, residual, verify
>>> reference, = generate([demo_job()])
>>> verify(reference, demo_job().origin).agrees
True
>>> compare(reference, {"test_cases": reference["test_cases"]}).agrees
True
>>> case = reference["test_cases"][0]
>>> residual(case["seed"], case["stream"], reference["d_model"]).tolist() == case["residual"]
True

Errors that a user can do something about are BadData, BadUse, LayersFailed and what vendored_hf raises.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from oracle.version import VERSION as __version__

if TYPE_CHECKING:
    from oracle.arithmetic.residual import residual
    from oracle.checking.verdict import Comparison, Verification
    from oracle.errors import BadData, BadUse, LayersFailed
    from oracle.job import Job, Origin
    from oracle.library import compare, demo_job, generate, verify
    from oracle.references.generate import Events

# Looked up when they are asked for: `--help` is not to wait for NumPy.
_MODULES = {
    "BadData": "errors",
    "BadUse": "errors",
    "Comparison": "checking.verdict",
    "Events": "references.generate",
    "Job": "job",
    "Origin": "job",
    "LayersFailed": "errors",
    "Verification": "checking.verdict",
    "compare": "library",
    "demo_job": "library",
    "generate": "library",
    "residual": "arithmetic.residual",
    "verify": "library",
}

__all__ = [
    "BadData",
    "BadUse",
    "Comparison",
    "Events",
    "Job",
    "LayersFailed",
    "Origin",
    "Verification",
    "__version__",
    "compare",
    "demo_job",
    "generate",
    "residual",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
