# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15: every open, read, write, rename, fsync, truncate, unlink and symlink fails once, or is where the process is killed.

After each the next run has to be right, and a reader finds the old file or the new one. The outcomes are counted and printed.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.places import ROOT
from tests.support.process import run
from tests.support.small_scope import fill

MOST_SECONDS = 900  # of all calls of a command: the longest takes about a minute
COMMANDS = {
    "generate": (["--mirror", "{hub}", "--layers", "0", "-o", "{place}/out.json"], "out.json"),
    "workers": (["--mirror", "{hub}", "--layers", "0,1", "--workers", "2", "-o", "{place}/out.json"], "out.json"),
    "stream": (["--mirror", "{hub}", "--layers", "0", "--stream", "-o", "{place}/out.json"], "out.json"),
    "mirror": (["mirror", "{place}/tree", "--mirror", "{hub}", "--layers", "0,1"], "tree"),
    "verify": (["verify", "{place}/reference.json", "--mirror", "{hub}"], "reference.json"),
    "report": (["report", "{place}/reference.json", "-o", "{place}/report.html"], "report.html"),
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(ROOT / "tests/support/fault_shim.c"), "-ldl"], check=True)
    return library


@pytest.mark.slow
@pytest.mark.parametrize("how", ["EIO", "ENOSPC", "KILL"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_call_fails_once(name: str, how: str, hub: Hub, shim: Path, tmp_path: Path) -> None:
    fill(hub, 2)
    command, output = COMMANDS[name]
    fixed, root = tmp_path / "fixed", tmp_path / "root"
    root.mkdir()
    fixed.mkdir()
    if name in ("verify", "report"):
        assert run("--mirror", hub.url, "--layers", "0", "-o", str(fixed / "reference.json"), "--cache-dir", str(tmp_path / "other")).returncode == 0
    elif output == "out.json":
        (fixed / output).write_text("old")
    task = {"command": [word.replace("{hub}", hub.url) for word in command], "output": output, "fixed": str(fixed), "how": how}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(shim), "FAULT_ROOT": str(root), "OPENBLAS_NUM_THREADS": "1"}
    driver = [sys.executable, "-m", "tests.support.fault_driver", json.dumps(task)]
    ran = subprocess.run(driver, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=MOST_SECONDS)
    assert ran.returncode == 0, ran.stderr[-3000:]
    runs = [json.loads(line) for line in ran.stdout.splitlines()]
    print(f"\n{name}: {len(runs)} runs,", dict(sorted(collections.Counter(item["ended"] for item in runs).items())))
    print("  failed:", dict(collections.Counter(item["kind"] or how for item in runs)))  # one that is killed tells no kind
    wrong = [item for item in runs if item["wrong"]]
    assert not wrong, json.dumps(wrong[:6], indent=1)
    assert runs and [item["n"] for item in runs] == list(range(1, runs[0]["of"] + 1))
