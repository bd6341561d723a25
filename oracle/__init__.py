# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reference encodings of transcoders and sparse autoencoders, for people who port them.

>>> from oracle import Job, compare, demo_job, generate, residual, verify
>>> reference, = generate([demo_job()])
>>> verify(reference, demo_job()).agrees
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
    from oracle.checking.compare import Comparison, compare
    from oracle.checking.verify import Verification
    from oracle.errors import BadData, BadUse, LayersFailed
    from oracle.job import Events, Job
    from oracle.library import demo_job, generate, verify

# Looked up when they are asked for: `--help` is not to wait for NumPy.
_MODULES = {
    "BadData": "errors",
    "BadUse": "errors",
    "Comparison": "checking.compare",
    "Events": "job",
    "Job": "job",
    "LayersFailed": "errors",
    "Verification": "checking.verify",
    "compare": "checking.compare",
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
