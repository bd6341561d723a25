# SPDX-License-Identifier: MIT OR Apache-2.0
"""Executors of concurrent.futures that layers are encoded by: threads, or a Dask cluster. They know nothing of layers."""

from __future__ import annotations

import builtins
import contextlib
import functools
import logging
import pickle
import re
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any

from oracle.errors import BadUse
from oracle.version import VERSION

CONNECT = 10  # seconds
IDLE = 3  # seconds without a worker after which that is said
LOST = ("KilledWorker", "CommClosedError", "WorkerClosedError")  # Dask's errors of workers that are gone

logger = logging.getLogger("vendored_hf")


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


def problem(error: BaseException) -> str:
    """Why an executor gave no result: whoever hands out the work is gone, the worker is, or what the worker failed of."""
    name = type(error).__name__
    if isinstance(error, CancelledError) or name == "FutureCancelledError":  # Dask's
        return f"whoever hands out the work is gone, or let go of it ({name}): start it again"
    if isinstance(error, BrokenExecutor) or name in LOST:
        return f"its worker is lost ({name}), for want of memory perhaps: try fewer, or again"
    return f"its worker failed with {name}: {' '.join(str(error).split())[:300]}"


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
        raise BadUse("Dask is not installed: pip install distributed, here and where the workers run") from error
    import dask.config

    if address.startswith("tls:") and not dask.config.get("distributed.comm.tls.ca-file", None):
        raise BadUse(f"{address}: tls takes certificates, and Dask's configuration names none: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE")
    for name in ("distributed", "distributed.client"):  # what they say goes with the errors below, or is of no use here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet = type("Client", (Client,), {"__del__": lambda _: None})  # Dask's own waits for 20 s at the process's end where it could not connect
    connect: Callable[[], Any] = functools.partial(quiet, address, set_as_default=False, timeout=CONNECT)
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
        return self._executor.submit(_by_value(_call), pickle.dumps((function, arguments, named)), VERSION)


def _by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as of the main program, which cloudpickle sends whole; it must import what it needs."""
    whole = types.FunctionType(function.__code__, {"__name__": "__main__", "__builtins__": builtins}, function.__name__)
    whole.__module__ = "__main__"
    return whole


def _call(task: bytes, version: str) -> Any:
    """On a worker, which may have come after the others were looked at."""
    import pickle

    from oracle.version import VERSION

    if VERSION != version:
        raise RuntimeError(f"it has oracle {VERSION}, and here it is {version}: install the same on both")
    function, arguments, named = pickle.loads(task)
    return function(*arguments, **named)


def _versions() -> tuple[str, str]:
    import numpy

    from oracle.version import VERSION  # it goes to workers by value, without this file's names

    return VERSION, numpy.__version__


def _check_workers(versions: dict[str, Any]) -> None:
    """Raises BadUse where a worker cannot run what is sent to it."""
    own = _versions()
    for worker, version in versions.items():
        if isinstance(version, Exception):
            raise BadUse(f"the Dask worker at {worker} cannot import what it needs: {version}: install oracle there too")
        if version[0] != own[0]:
            raise BadUse(f"the Dask worker at {worker} has oracle {version[0]}, and here it is {own[0]}: install the same on both")
        if version[1].split(".")[0] != own[1].split(".")[0]:
            raise BadUse(f"the Dask worker at {worker} has NumPy {version[1]}, and here it is {own[1]}: install the same on both")


def _say_while_idle(client: Any, address: str, ended: threading.Event) -> None:
    """A line while there are no workers, at first after a moment, then each minute. Runs on a thread of its own."""
    wait = IDLE
    while not ended.wait(wait):
        wait = IDLE
        with contextlib.suppress(Exception):  # it may be closing
            if not client.scheduler_info()["workers"]:
                logger.warning("nobody works for %s yet: start workers, or wait until the cluster does", address)
                wait = 60
