# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reference encodings of transcoders and sparse autoencoders, for people who port them.

    generate(job)                                 the reference of a job, or of each of several
    compare(reference, candidate)                 the verdict on a port's answers
    explain(reference, candidate)                 which mistake gives a port's answers
    inspect(reference, layer, seed, feature)      one number, step by step from the weights
    verify(reference)                             a reference, recomputed from its weights
    report(reference, candidate)                  a reference, or a port's answers, as one HTML page
    exact_vectors(format)                         small weights, and answers that are exact
    residual(seed, stream, length)                a residual, from its seed
    demo_job()                                    a job on synthetic weights, without a network

References and candidates are documents, as json.load gives them. A Job says what to encode, and its Origin where the weights
come from. Verdicts have `agrees`; str() has them in words, and to_dict() as JSON. What goes wrong is an OracleError: BadData,
BadUse, SourceFailed or LayersFailed.

>>> from oracle import compare, demo_job, generate, residual, verify
>>> reference = generate(demo_job())
>>> verify(reference, demo_job().origin).agrees
True
>>> compare(reference, {"test_cases": reference["test_cases"]}).agrees
True
>>> case = reference["test_cases"][0]
>>> residual(case["seed"], case["stream"], reference["d_model"]).tolist() == case["residual"]
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from oracle.version import VERSION as __version__

if TYPE_CHECKING:
    from oracle.arithmetic.residual import residual as residual
    from oracle.checking.inspection import Inspection as Inspection
    from oracle.checking.verdict import Comparison as Comparison
    from oracle.checking.verdict import Verification as Verification
    from oracle.diagnosis.explanation import Explanation as Explanation
    from oracle.errors import BadData as BadData
    from oracle.errors import BadUse as BadUse
    from oracle.errors import LayersFailed as LayersFailed
    from oracle.errors import OracleError as OracleError
    from oracle.errors import SourceFailed as SourceFailed
    from oracle.job import Job as Job
    from oracle.job import Origin as Origin
    from oracle.library import compare as compare
    from oracle.library import demo_job as demo_job
    from oracle.library import exact_vectors as exact_vectors
    from oracle.library import explain as explain
    from oracle.library import generate as generate
    from oracle.library import inspect as inspect
    from oracle.library import report as report
    from oracle.library import verify as verify
    from oracle.references.generate import Events as Events

# Where each name is, looked up when it is asked for: `--help` is not to wait for NumPy. No name is that of a wing: an import of
# any of its modules would put the wing in its place, which is why `exact_vectors` is not called `vectors`.
_MODULES = {
    **dict.fromkeys(("generate", "compare", "explain", "inspect", "verify", "report", "exact_vectors"), "library"),
    "residual": "arithmetic.residual",
    "demo_job": "library",
    **dict.fromkeys(("Job", "Origin"), "job"),
    "Events": "references.generate",
    **dict.fromkeys(("Comparison", "Verification"), "checking.verdict"),
    "Explanation": "diagnosis.explanation",
    "Inspection": "checking.inspection",
    **dict.fromkeys(("OracleError", "BadData", "BadUse", "SourceFailed", "LayersFailed"), "errors"),
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
