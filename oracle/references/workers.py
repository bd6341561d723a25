# SPDX-License-Identifier: MIT OR Apache-2.0
"""Layers encoded elsewhere: by other threads, or wherever a concurrent.futures executor takes them.

What travels is plain data: a LayerTask there, and what it gives or why it failed back. So one layer can't take
another's run with it, and an exception needs not be known on the other side.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from oracle import errors
from oracle.errors import BadUse
from oracle.job import Job
from oracle.references.layer import LayerResult, encode_layer
from oracle.references.plan import LayerFiles
from oracle.sources.source import FileEvents, Source
from oracle.weights.formats import Format

CONNECT = 10  # seconds


@dataclass(frozen=True)
class LayerTask:
    """All that a layer's cases depend on: the job, and those of the layer's files that it reads."""

    job: Job
    format: Format
    files: LayerFiles


@dataclass(frozen=True)
class LayerFailure:
    """Why a layer has no cases: a line, the exit code that goes with it, and the chain for --debug."""

    layer: int
    line: str
    code: int
    chain: str


def run(task: LayerTask, events: FileEvents = FileEvents()) -> LayerResult | LayerFailure:
    """Fetch a layer's files and encode it. It depends on the task alone, and raises nothing."""
    try:
        source = Source(task.job.origin, events)
        with contextlib.ExitStack() as stack:
            files = {role: stack.enter_context(source.open(file)) for role, file in task.files.files.items()}
            return encode_layer(task.job, task.format, task.files.layer, files)
    except Exception as error:
        return LayerFailure(task.files.layer, errors.one_line(error), errors.exit_code(error), traceback.format_exc())


@contextlib.contextmanager
def threads(count: int) -> Iterator[Executor]:
    """An executor of threads: products, reads, casts and checksums release the GIL. Where a run ends early none is waited for."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def dask(address: str) -> Iterator[Executor]:
    """An executor of a Dask cluster, by its scheduler's address.

    Raises BadUse where Dask is not installed or that is no address, and ConnectionError where nobody answers.
    """
    if not re.fullmatch(r"[a-z]+://[^/]+:[0-9]{1,5}", address):
        raise BadUse(f"{address!r} is no scheduler's address: it is of the form tcp://host:8786")
    try:
        from distributed import Client
    except ImportError as error:
        raise BadUse("Dask is not installed: pip install 'gemmascope-oracle[dask]', here and where the workers run") from error
    try:
        client = Client(address, set_as_default=False, timeout=CONNECT)  # type: ignore[no-untyped-call]
    except Exception as error:  # each transport has its own
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error or type(error).__name__}") from error
    with client:
        # The same layer asked for twice is one task.
        yield client.get_executor(pure=True)  # type: ignore[no-untyped-call]
