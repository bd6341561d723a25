# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs a command again and again below fault_shim.c, each time with another call failing, and the same once more without.

Arguments: a JSON of `command`, `output`, `fixed` (what stands there before, by relative path) and `how` (one of KINDS), `{place}` for
the run's folder. A line of JSON for each of the command's calls: what failed, how the run ended, and what is wrong.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import requests.adapters  # noqa: F401

import oracle.checking.verify
import oracle.page.page
import oracle.references.generate  # imported once, for all runs
import oracle.sources.mirror
import oracle.terminal.progress  # noqa: F401
import vendored_hf
from oracle.terminal.commands import main

KINDS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "KILL": -1}
shim = ctypes.CDLL(None)
shim.fault_seen.restype, shim.fault_kind.restype = ctypes.c_long, ctypes.c_char_p
root = Path(os.environ["FAULT_ROOT"])


def run(command: list[str], place: Path, n: int, how: int) -> tuple[str, int, str, str]:
    """How a child ended, how many calls it made, which one failed, and its last line."""
    reading, writing = os.pipe()
    said = place.parent / "said"
    child = os.fork()
    if not child:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
        vendored_hf.FIRST_WAIT = 0.001
        os.environ["HF_HUB_CACHE"] = str(place / "cache")
        shim.fault_arm(ctypes.c_long(n), ctypes.c_int(how))
        code = 99
        try:
            code = main([word.replace("{place}", str(place)) for word in command])
        finally:
            seen, kind = shim.fault_seen(), shim.fault_kind().decode()
            shim.fault_arm(ctypes.c_long(0), ctypes.c_int(0))
            os.write(writing, f"{seen} {kind}".encode())
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        seen, _, kind = pipe.read().partition(" ")
    _, status = os.waitpid(child, 0)
    ended = f"exit {os.waitstatus_to_exitcode(status)}" if os.WIFEXITED(status) else "killed"
    lines = said.read_text(errors="replace").splitlines() or [""]
    return ended, int(seen or 0), kind, lines[-1]


def state(place: Path, output: str) -> str | None:
    """What of the output a reader finds: a hash of a file, or of all files of a folder but locks; None where it is not there."""
    path = place / output
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith(".tmp"):
            digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def fresh(fixed: str) -> Path:
    place = root / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(fixed, place, symlinks=True)
    return place


def drive(task: dict[str, str | list[str]]) -> None:
    command, output, fixed, how = list(task["command"]), str(task["output"]), str(task["fixed"]), str(task["how"])
    place = fresh(fixed)
    before = state(place, output)
    ended, count, _, last = run(command, place, 1 << 40, 0)
    assert ended == "exit 0", last
    right = state(place, output)
    for n in range(1, count + 1):
        place = fresh(fixed)
        ended, _, kind, last = run(command, place, n, KINDS[how])
        left, wrong = state(place, output), ""
        if ended == "exit 0" and left != right:
            wrong = "it says that it is done, and is not"
        elif ended not in ("exit 0", "exit 2", "exit 3", "exit 4", "killed"):
            wrong = f"it ended with {ended}: {last}"
        elif not (place / output).is_dir() and left not in (before, right):
            wrong = "something half written is there"
        again, _, _, last_again = run(command, place, 0, 0)
        if again != "exit 0" or state(place, output) != right:
            wrong = wrong or f"the next run is not right: {again}, {last_again}"
        print(json.dumps({"n": n, "of": count, "kind": kind, "ended": ended, "wrong": wrong, "last": last}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    drive(json.loads(sys.argv[1]))
