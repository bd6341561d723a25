# SPDX-License-Identifier: MIT OR Apache-2.0
"""Layers encoded elsewhere: by other threads, or wherever a concurrent.futures executor takes them.

What travels is plain data: a LayerTask there, and what it gives or why it failed back. So one layer can't take
another's run with it, and an exception needs not be known on the other side.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import pickle
import re
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle import errors
from oracle.errors import BadUse
from oracle.references.layer import LayerResult, LayerTask, encode_layer
from oracle.sources.source import FileEvents, Source
from oracle.version import VERSION

CONNECT = 10  # seconds
IDLE = 3  # seconds without a worker after which that is said
LOST = ("KilledWorker", "CommClosedError", "FutureCancelledError", "WorkerClosedError")  # Dask's errors of workers that are gone

logger = logging.getLogger("vendored_hf")


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
            return encode_layer(task, files)
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
    """An executor of a Dask cluster, by its scheduler's address. While nobody works for it that is said.

    Raises BadUse where Dask is not installed, that is no address or the workers are not of this version, and ConnectionError where
    nobody answers.
    """
    if not re.fullmatch(r"[a-z]+://[^/]+:[0-9]{1,5}", address):
        raise BadUse(f"{address!r} is no scheduler's address: it is of the form tcp://host:8786")
    try:
        from distributed import Client
    except ImportError as error:
        raise BadUse("Dask is not installed: pip install 'gemmascope-oracle[dask]', here and where the workers run") from error
    import dask.config

    if address.startswith("tls:") and not dask.config.get("distributed.comm.tls.ca-file", None):
        raise BadUse(f"{address}: tls takes certificates, and Dask's configuration names none: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it says goes with the errors below, or is of no use here
    connect: Callable[[], Any] = functools.partial(Client, address, set_as_default=False, timeout=CONNECT)
    client = _within(connect, f"no Dask scheduler answers at {address}")
    ended = threading.Event()
    try:
        _check_workers(_within(lambda: client.run(_by_value(_versions), on_error="return"), f"the Dask workers of {address} do not answer"))
        threading.Thread(target=_say_while_idle, args=(client, address, ended), daemon=True).start()
        # The same layer asked for twice is one task.
        yield _Cluster(client.get_executor(pure=True))
    finally:
        ended.set()
        with contextlib.suppress(ConnectionError):
            _within(client.close, f"{address} does not let go")


def _within(call: Callable[[], Any], otherwise: str) -> Any:
    """What a call gives, within the time that a whole connection may take. Raises ConnectionError."""
    outcome: Future[Any] = Future()

    def attempt() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        return outcome.result(CONNECT + 1)
    except Exception as error:  # each transport has its own
        raise ConnectionError(f"{otherwise}: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


class _Cluster(Executor):
    """Hands a task out as bytes, and a function that needs no package of ours to read them: the scheduler needs none."""

    def __init__(self, executor: Executor):
        self._executor = executor

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        return self._executor.submit(_by_value(_call), pickle.dumps((function, arguments, named)))


def _by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as of the main program, which cloudpickle sends whole; it must import what it needs."""
    whole = types.FunctionType(function.__code__, {"__name__": "__main__", "__builtins__": builtins}, function.__name__)
    whole.__module__ = "__main__"
    return whole


def _call(task: bytes) -> Any:
    import pickle

    function, arguments, named = pickle.loads(task)
    return function(*arguments, **named)


def _versions() -> tuple[str, str]:
    import numpy

    from oracle.version import VERSION

    return VERSION, numpy.__version__


def _check_workers(versions: dict[str, Any]) -> None:
    """Raises BadUse where a worker cannot run what is sent to it."""
    for worker, version in versions.items():
        if isinstance(version, Exception):
            raise BadUse(f"the Dask worker at {worker} cannot import what it needs: {version}: install oracle there too")
        if version[0] != VERSION:
            raise BadUse(f"the Dask worker at {worker} has oracle {version[0]}, and here it is {VERSION}: install the same on both")
        if version[1].split(".")[0] != np.__version__.split(".")[0]:
            raise BadUse(f"the Dask worker at {worker} has NumPy {version[1]}, and here it is {np.__version__}: install the same on both")


def _say_while_idle(client: Any, address: str, ended: threading.Event) -> None:
    """A line while there are no workers, at first after a moment, then each minute. Runs on a thread of its own."""
    wait = IDLE
    while not ended.wait(wait):
        wait = IDLE
        with contextlib.suppress(Exception):  # it may be closing
            if not client.scheduler_info()["workers"]:
                logger.warning("nobody works for %s yet: start workers, or wait until the cluster does", address)
                wait = 60
