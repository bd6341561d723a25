# SPDX-License-Identifier: MIT OR Apache-2.0
"""What other programs call: jobs in, documents as they would read them from the files out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from concurrent.futures import Executor

from oracle.checking.verify import Verification
from oracle.checking.verify import verify as verify_document
from oracle.job import Events, Job
from oracle.references import document
from oracle.references import generate as reference
from oracle.references.document import Document
from oracle.vectors import demo


def generate(jobs: Iterable[Job], *, executor: Executor | None = None, events: Events = Events()) -> list[Document]:
    """The references of jobs, in their order, as the JSON holds them (see README.md).

    `executor`, any of concurrent.futures or one that works like it, encodes the layers of all jobs; without one they
    are encoded here. Raises BadData, BadUse, LayersFailed, and what vendored_hf raises.

    >>> from oracle import demo_job, generate
    >>> [reference] = generate([demo_job()])
    >>> len(reference["test_cases"]), reference["schema"]
    (9, 'GemmaScopeNpz')
    """
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(reference.begin(job, events, executor)) for job in jobs]
        return [document.plain(reference.finish(one)) for one in begun]


def verify(recorded: Document, job: Job | None = None, *, events: Events = Events()) -> Verification:
    """A reference recomputed from its weights: from where it says that they are, or from a job's source.

    Raises as generate does.

    >>> from oracle import demo_job, generate, verify
    >>> [reference] = generate([demo_job()])
    >>> verify(reference, demo_job()).agrees
    True
    >>> reference["test_cases"][0]["n_active"] += 1
    >>> verify(reference, demo_job()).agrees
    False
    """
    return verify_document(recorded, job or Job(), events)


@functools.cache
def demo_job() -> Job:
    """A job on small synthetic weights, made in a temporary folder the first time: it needs no network."""
    return demo.make().job
