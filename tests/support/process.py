# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command line: in this process, which costs no more than its work does, and as a process of its own."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from oracle.__main__ import main
from tests.support import schemas
from tests.support.places import ROOT

Completed = subprocess.CompletedProcess[str]


def run(*arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None, input: str | bytes = "") -> Completed:
    """`python -m oracle` in this process: its exit code and what it printed. All that it changes is as it was before."""
    stdin = io.TextIOWrapper(io.BytesIO(input.encode() if isinstance(input, str) else input), "utf-8")
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    logger = logging.getLogger("vendored_hf")
    level, handlers = logger.level, logger.handlers[:]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment or {}))
        stack.enter_context(mock.patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr))
        if cwd:
            stack.callback(os.chdir, os.getcwd())
            os.chdir(cwd)
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse's
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            logger.setLevel(level)
            logger.handlers[:] = handlers
        for stream in (stdout, stderr):
            stream.flush()
    printed, said = (stream.buffer.getvalue().decode() for stream in (stdout, stderr))
    return subprocess.CompletedProcess(["oracle", *arguments], code, printed, said)


def variables(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}


def python(*arguments: str, environment: dict[str, str] | None = None, **options: Any) -> Completed:
    """`python ...` as a process of its own, which imports this checkout."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, *arguments], text=True, timeout=120, env=variables(environment), **options)


def oracle(*arguments: str, **options: Any) -> Completed:
    """`python -m oracle` as a process of its own; the reference that it may have printed is held against its schema here."""
    ran = python("-m", "oracle", *arguments, **options)
    schemas.hold_printed(ran.stdout)
    return ran


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`python -m oracle`, while it runs."""
    command = [sys.executable, "-m", "oracle", *arguments]
    return subprocess.Popen(command, env=variables(), stderr=subprocess.PIPE, text=True, **options)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 60) -> None:
    """Until it holds; fails where the process ends before that, or the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


def cores() -> list[str]:
    flags = Path("/proc/cpuinfo").read_text()
    return ["Haswell", "Zen", "Nehalem", *(["SkylakeX"] if "avx512f" in flags else [])]
