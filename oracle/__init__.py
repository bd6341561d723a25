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
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oracle.compare import Comparison as Comparison
    from oracle.compare import compare as compare
    from oracle.errors import BadData as BadData
    from oracle.errors import BadUse as BadUse
    from oracle.errors import LayersFailed as LayersFailed
    from oracle.job import Events as Events
    from oracle.job import Job as Job
    from oracle.library import demo_job as demo_job
    from oracle.library import generate as generate
    from oracle.library import verify as verify
    from oracle.residual import residual as residual
    from oracle.verify import Verification as Verification

__version__ = "0.1.0"

# Looked up when they are asked for: `--help` is not to wait for NumPy.
_PUBLIC = {
    "BadData": "errors",
    "BadUse": "errors",
    "Comparison": "compare",
    "Events": "job",
    "Job": "job",
    "LayersFailed": "errors",
    "Verification": "verify",
    "compare": "compare",
    "demo_job": "library",
    "generate": "library",
    "residual": "residual",
    "verify": "library",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


class _Package(ModuleType):
    """Some functions are called like the modules that they are in: here those names stay the functions'."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
