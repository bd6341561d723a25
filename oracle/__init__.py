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
    from oracle.arithmetic.residual import residual as residual
    from oracle.checking.verdict import Comparison as Comparison
    from oracle.checking.verdict import Verification as Verification
    from oracle.errors import BadData as BadData
    from oracle.errors import BadUse as BadUse
    from oracle.errors import LayersFailed as LayersFailed
    from oracle.job import Job as Job
    from oracle.job import Origin as Origin
    from oracle.library import compare as compare
    from oracle.library import demo_job as demo_job
    from oracle.library import exact_vectors as exact_vectors
    from oracle.library import generate as generate
    from oracle.library import verify as verify
    from oracle.references.generate import Events as Events

# Where each name is, looked up when it is asked for: `--help` is not to wait for NumPy.
_MODULES = {
    **dict.fromkeys(("compare", "demo_job", "exact_vectors", "generate", "verify"), "library"),
    **dict.fromkeys(("BadData", "BadUse", "LayersFailed"), "errors"),
    **dict.fromkeys(("Comparison", "Verification"), "checking.verdict"),
    **dict.fromkeys(("Job", "Origin"), "job"),
    "Events": "references.generate",
    "residual": "arithmetic.residual",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
