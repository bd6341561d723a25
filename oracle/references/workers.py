# SPDX-License-Identifier: MIT OR Apache-2.0
"""Layers encoded by other processes: on this machine, or wherever a concurrent.futures executor takes them.

What travels is plain data: a LayerTask there, and what it gives or why it failed back. So one layer can't take
another's run with it, and an exception needs not be known on the other side.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from oracle import errors
from oracle.errors import BadUse
from oracle.job import Events, Job
from oracle.references.layer import LayerResult, encode_layer
from oracle.sources.curation import HubFile
from oracle.sources.source import Source
from oracle.weights.formats import Schema

CONNECT = 10  # seconds
LOGGER = "vendored_hf"
EVERY = 0.1  # seconds between two words about one file
_events = Events()  # of this process


@dataclass(frozen=True)
class LayerTask:
    """All that a layer's cases depend on. `decoder` is W_dec's file, where the job decodes and it is another."""

    job: Job
    schema: Schema
    layer: int
    file: HubFile
    decoder: HubFile | None


@dataclass(frozen=True)
class LayerFailure:
    """Why a layer has no cases: a line, the exit code that goes with it, and the chain for --debug."""

    layer: int
    line: str
    code: int
    chain: str


def run(task: LayerTask) -> LayerResult | LayerFailure:
    """Fetch a layer's files and encode it. Pure: it depends on the task alone, and raises nothing."""
    try:
        source = Source(task.job, _events)
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(source.open(task.file))
            decoder = stack.enter_context(source.open(task.decoder)) if task.decoder else None
            return encode_layer(task.job, task.schema, task.layer, opened, decoder)
    except Exception as error:
        return LayerFailure(task.layer, errors.one_line(error), errors.exit_code(error), traceback.format_exc())


@contextlib.contextmanager
def processes(n_workers: int, events: Events) -> Iterator[Executor]:
    """An executor of this machine's processes, whose fetches are told to `events` here."""
    # A fork would copy the threads' locks as they stand.
    context = multiprocessing.get_context("spawn")
    told: Any = context.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(told, events), daemon=True)
    listener.start()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_begin, initargs=(told,))
    try:
        yield pool
    except BaseException:
        # First what nobody waits for any more is dropped: a pool that finds a worker dead stumbles over cancelled futures.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:  # what they are at has become useless
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        told.put(None)
        listener.join(timeout=1)  # a worker that was ended in the middle of a word leaves it waiting


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


def _begin(told: Any) -> None:
    """Set up a worker: Ctrl-C is the parent's affair, and fetches are told to it."""
    global _events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    logger = logging.getLogger(LOGGER)
    logger.propagate = False
    logger.addHandler(_Teller(told))

    def fetching(path: str) -> Any:
        last = 0.0

        def arrived(done: int, size: int) -> None:
            nonlocal last
            if time.monotonic() - last >= EVERY:
                last = time.monotonic()
                told.put(("arrived", path, done, size))

        told.put(("fetching", path))
        return arrived

    _events = Events(
        fetching=fetching,
        fetched=lambda path, local_path: told.put(("fetched", path, local_path)),
    )


def _end_with(parent: Any) -> None:
    """End this process as soon as the one that it works for has, however that was ended."""
    parent.join()
    os._exit(errors.INTERRUPTED)


class _Teller(logging.Handler):
    """Hands what is logged to the process that this one works for."""

    def __init__(self, told: Any):
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.put(("logged", record.levelno, record.getMessage()))


def _listen(told: Any, events: Events) -> None:
    """Pass on what the workers tell."""
    arriving: dict[str, Any] = {}
    while (message := told.get()) is not None:
        kind, path, *rest = message
        if kind == "logged":
            logging.getLogger(LOGGER).log(path, "%s", *rest)
        elif kind == "fetching":
            arriving[path] = events.fetching(path)
        elif kind == "arrived":
            if arriving.get(path):
                arriving[path](*rest)
        else:
            events.fetched(path, *rest)
