# SPDX-License-Identifier: MIT OR Apache-2.0
"""What other programs call: jobs in, JSON documents as they would read them from the files out.

A document that is handed over is checked as one that is read from a file. What can go wrong and be mended is an OracleError.
Functions that read weights tell `events` how they get on; without any a notebook shows bars, if it has tqdm.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, overload

from oracle.checking import compare as checking
from oracle.checking.vectors import compare_documents
from oracle.checking.verdict import Comparison, Verification
from oracle.errors import BadUse, as_oracle_errors
from oracle.job import Job, Origin
from oracle.references.document import Candidate, Reference, to_json
from oracle.references.reading import are_vectors, as_read, parse_candidate, parse_reference
from oracle.references.rows import Document

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from oracle.checking.inspection import Inspection
    from oracle.diagnosis.explanation import Explanation
    from oracle.references.generate import Events
    from oracle.references.recorded import RecordedWeights

REFERENCE, CANDIDATE = "the reference", "the candidate"  # what messages call a document that no file holds


@overload
def generate(jobs: Job, *, executor: Executor | None = None, events: Events | None = None) -> Document: ...
@overload
def generate(jobs: Iterable[Job], *, executor: Executor | None = None, events: Events | None = None) -> list[Document]: ...
def generate(jobs: Job | Iterable[Job], *, executor: Executor | None = None, events: Events | None = None) -> Document | list[Document]:
    """The reference of a job; of several jobs a list of theirs, in their order. A reference is what its JSON holds.

    `executor`, any of concurrent.futures or one that works like it, encodes the layers of all jobs; without one they
    are encoded here. Raises OracleError: BadData, BadUse, SourceFailed or LayersFailed.

    >>> from oracle import demo_job, generate
    >>> reference = generate(demo_job())
    >>> len(reference["test_cases"]), reference["schema"]
    (9, 'GemmaScopeNpz')
    """
    from oracle.references.generate import start

    if isinstance(jobs, Job):
        return generate([jobs], executor=executor, events=events)[0]
    several = list(jobs) if isinstance(jobs, Iterable) else [jobs]
    for job in several:
        if not isinstance(job, Job):
            raise BadUse(f"generate takes a Job, or several of them, and {ascii(job)[:80]} is none")
    with _reading_weights(events) as heard, contextlib.ExitStack() as stack:
        runs = [stack.enter_context(start(job, heard, executor)) for job in several]
        return [_with_lists(to_json(run.reference())) for run in runs]


def verify(reference: Document, origin: Origin = Origin(), *, events: Events | None = None) -> Verification:
    """A reference recomputed from its weights: from where it says that they are, or from another origin.

    Raises OracleError, as generate does.

    >>> from oracle import demo_job, generate, verify
    >>> reference = generate(demo_job())
    >>> verify(reference, demo_job().origin).agrees
    True
    >>> reference["test_cases"][0]["n_active"] += 1
    >>> verify(reference, demo_job().origin).agrees
    False
    """
    from oracle.checking.verify import verify as verify_weights

    with _reading_weights(events) as heard:
        return verify_weights(_weights(_reference(reference), origin, heard))


def compare(reference: Document, candidate: Document) -> Comparison:
    """The verdict on a candidate's JSON; of exact vectors too. It needs no weights.

    Raises BadData where one of the two is not what it should be.

    >>> from oracle import compare, demo_job, generate
    >>> reference = generate(demo_job())
    >>> compare(reference, {"test_cases": reference["test_cases"]}).agrees
    True
    """
    if are_vectors(reference):
        return compare_documents(as_read(reference, "the vectors"), as_read(candidate, CANDIDATE))
    return _compared(reference, candidate)[2]


def explain(reference: Document, candidate: Document, origin: Origin = Origin(), *, events: Events | None = None) -> Explanation:
    """Which mistake, or which two, give a candidate's numbers, from the reference's weights; `origin` as verify has it.

    Of a candidate that agrees it says so. Raises OracleError, as generate does.

    >>> from oracle import demo_job, explain, generate
    >>> reference = generate(demo_job())
    >>> cases = [{**case, "layer": case["layer"] + 1} for case in reference["test_cases"]]
    >>> [fit.name for fit in explain(reference, {"test_cases": cases}, demo_job().origin).named]
    ['layers from 1']
    """
    from oracle.diagnosis.explain import explain as search

    with _reading_weights(events) as heard:
        parsed, answers, comparison = _compared(reference, candidate)
        return search(parsed, answers, comparison, _weights(parsed, origin, heard))


def inspect(
    reference: Document, layer: int, number: int, feature: int, candidate: Document | None = None, origin: Origin = Origin(),
    *, with_generator: bool = False, events: Events | None = None,
) -> Inspection:  # fmt: skip
    """How one number comes about: a feature of the case of a layer and a seed, or a row, step by step from the weights.

    With a candidate it says where its number stands. `with_generator` adds the generator's first steps. `origin` as verify has it.
    Raises OracleError, as generate does.

    >>> from oracle import demo_job, generate, inspect
    >>> reference = generate(demo_job())
    >>> case = reference["test_cases"][0]
    >>> inspect(reference, case["layer"], case["seed"], case["top_10"][0]["index"], origin=demo_job().origin).rank
    1
    """
    from oracle.checking.inspect import inspect as inspect_weights

    layer, number, feature = _whole("layer", layer), _whole("number", number), _whole("feature", feature)
    with _reading_weights(events) as heard:
        parsed = _reference(reference)
        answers = None if candidate is None else _candidate(candidate, parsed)
        return inspect_weights(_weights(parsed, origin, heard), layer, number, feature, answers, with_generator=with_generator)


def report(reference: Document, candidate: Document | None = None, explanation: Explanation | None = None) -> str:
    """One HTML page with the pictures: of a reference, or of a candidate against it, and of what explain made of that.

    Raises BadData as compare does, and BadUse for an explanation without a candidate.

    >>> from oracle import demo_job, generate, report
    >>> report(generate(demo_job()))[:15]
    '<!DOCTYPE html>'
    """
    from oracle.page.page import page

    if candidate is None:
        if explanation is not None:
            raise BadUse("an explanation is of a candidate: hand that over too")
        return page(_reference(reference))
    return page(*_compared(reference, candidate), explanation)


def exact_vectors(name: str = "all") -> dict[str, dict[str, bytes]]:
    """The exact vectors of a format, or of all: for each folder its files by their paths, vectors.json and weights. Raises BadUse.

    >>> import json
    >>> from oracle import compare, exact_vectors
    >>> vectors = json.loads(exact_vectors("QwenScope")["QwenScope"]["vectors.json"])
    >>> compare(vectors, {"test_cases": vectors["test_cases"]}).agrees
    True
    """
    from oracle.vectors import variants

    return {variant.name: variants.files_of(variant) for variant in variants.of(name)}


@functools.cache
@as_oracle_errors()
def demo_job() -> Job:
    """A job on small synthetic weights, made in a temporary folder the first time: it needs no network. Raises SourceFailed."""
    from oracle.vectors import demo

    return demo.make().job


@contextlib.contextmanager
def _reading_weights(events: Events | None) -> Iterator[Events]:
    """What hears how a function gets on, which fails with an OracleError."""
    from oracle.terminal.progress import notebook_progress

    with as_oracle_errors(), contextlib.nullcontext(events) if events else notebook_progress() as heard:
        yield heard


def _weights(reference: Reference, origin: Origin, events: Events) -> RecordedWeights:
    """The weights that a reference is of, from where it says that they are, or from an origin."""
    from oracle.references.recorded import RecordedWeights

    if not isinstance(origin, Origin):
        raise BadUse(f"the origin is {ascii(origin)[:80]}, not an Origin; that of a job is job.origin")
    return RecordedWeights.of(reference, origin, events)


def _whole(name: str, value: int) -> int:
    """A whole number of any type, NumPy's too, as Python's."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise BadUse(f"inspect: {name} is {ascii(value)[:80]}, not a whole number") from error


def _reference(document: Document) -> Reference:
    return parse_reference(as_read(document, REFERENCE), REFERENCE)


def _candidate(document: Document, reference: Reference) -> Candidate:
    return parse_candidate(as_read(document, CANDIDATE), reference.top_k, CANDIDATE)


def _compared(reference: Document, candidate: Document) -> tuple[Reference, Candidate, Comparison]:
    parsed = _reference(reference)
    answers = _candidate(candidate, parsed)
    return parsed, answers, checking.compare(parsed, answers)


def _with_lists(document: Document) -> Document:
    """The same reference with its residuals as lists, as one reads it from the file."""
    cases: list[dict[str, Any]] = [{**case, "residual": case["residual"].tolist()} for case in document["test_cases"]]
    return {**document, "test_cases": cases}
