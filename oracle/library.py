# SPDX-License-Identifier: MIT OR Apache-2.0
"""What other programs call: jobs in, JSON documents as they would read them from the files out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from oracle.checking import compare as checking
from oracle.checking.vectors import compare_documents
from oracle.checking.verdict import Comparison, Verification
from oracle.job import Job, Origin
from oracle.references.document import to_json
from oracle.references.reading import are_vectors, parse_candidate, parse_reference
from oracle.references.rows import Document

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from oracle.references.generate import Events


def generate(jobs: Iterable[Job], *, executor: Executor | None = None, events: Events | None = None) -> list[Document]:
    """The references of jobs, in their order, as the JSON holds them (see README.md).

    `executor`, any of concurrent.futures or one that works like it, encodes the layers of all jobs; without one they
    are encoded here. Raises BadData, BadUse, LayersFailed, and what vendored_hf raises.

    >>> from oracle import demo_job, generate
    >>> [reference] = generate([demo_job()])
    >>> len(reference["test_cases"]), reference["schema"]
    (9, 'GemmaScopeNpz')
    """
    from oracle.references.generate import Events, start

    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(start(job, events or Events(), executor)) for job in jobs]
        return [_with_lists(to_json(run.reference())) for run in runs]


def verify(reference: Document, origin: Origin = Origin(), *, events: Events | None = None) -> Verification:
    """A reference recomputed from its weights: from where it says that they are, or from another origin.

    Raises as generate does.

    >>> from oracle import demo_job, generate, verify
    >>> [reference] = generate([demo_job()])
    >>> verify(reference, demo_job().origin).agrees
    True
    >>> reference["test_cases"][0]["n_active"] += 1
    >>> verify(reference, demo_job().origin).agrees
    False
    """
    from oracle.checking.verify import verify as verify_weights
    from oracle.references.generate import Events
    from oracle.references.recorded import RecordedWeights

    return verify_weights(RecordedWeights.of(parse_reference(reference), origin, events or Events()))


def compare(reference: Document, candidate: Document) -> Comparison:
    """The verdict on a candidate's JSON; of exact vectors too. Raises BadData where one of the two is not what it should be.

    >>> from oracle import compare, demo_job, generate
    >>> [reference] = generate([demo_job()])
    >>> compare(reference, {"test_cases": reference["test_cases"]}).agrees
    True
    """
    if are_vectors(reference):
        return compare_documents(reference, candidate)
    parsed = parse_reference(reference)
    return checking.compare(parsed, parse_candidate(candidate, parsed.top_k))


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
def demo_job() -> Job:
    """A job on small synthetic weights, made in a temporary folder the first time: it needs no network."""
    from oracle.vectors import demo

    return demo.make().job


def _with_lists(document: Document) -> Document:
    """The same reference with its residuals as lists, as one reads it from the file."""
    cases: list[dict[str, Any]] = [{**case, "residual": case["residual"].tolist()} for case in document["test_cases"]]
    return {**document, "test_cases": cases}
