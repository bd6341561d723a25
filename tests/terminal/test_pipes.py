# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whoever reads what is printed may go: the work is done all the same, and the exit code is the verdict's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.encodings import read
from tests.support.process import oracle, variables


@pytest.fixture(scope="module")
def folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's reference and cache, a candidate that is wrong, and an edited reference."""
    made = tmp_path_factory.mktemp("pipes")
    shutil.copy(demo_folder / "plt_gemma_reference.json", made)
    (made / "hub").symlink_to(demo_folder / "hub")
    reference = read(made / "plt_gemma_reference.json")
    reference["test_cases"][0]["n_active"] += 1
    reference["test_cases"][0]["n_active_bounds"] = [0, 512]
    reference["test_cases"][0]["gate_ties"] = list(range(512))
    (made / "edited.json").write_text(json.dumps(reference))
    reference["test_cases"][1]["top_10"][0]["activation"] += 1
    (made / "wrong.json").write_text(json.dumps(reference))
    return made


COMMANDS = {
    "generate": ("generate", "--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation", "-o", "out.json"),
    "generate to standard output": ("generate", "--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation", "-o", "-"),
    "workers": ("generate", "--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation", "-o", "out.json", "--workers", "2"),
    "verify": ("verify", "edited.json"),
    "compare": ("compare", "plt_gemma_reference.json", "wrong.json"),
    "compare as JSON": ("compare", "plt_gemma_reference.json", "wrong.json", "--format", "json"),
    "compare as JUnit": ("compare", "plt_gemma_reference.json", "wrong.json", "--format", "junit"),
    "report": ("report", "plt_gemma_reference.json", "-o", "-"),
    "residual": ("residual", "--length", "100000"),
    "an error": ("compare", "plt_gemma_reference.json", "nowhere.json"),
}


IN_DEFAULT = ("generate to standard output", "workers", "compare", "an error")


@pytest.mark.parametrize("name", [name if name in IN_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS])
def test_nobody_reads(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "oracle", *COMMANDS[name]]
    if COMMANDS[name][0] in ("generate", "verify"):
        command += ["--offline", "--cache-dir", "hub"]
    expected = {"verify": 1, "compare": 1}.get(COMMANDS[name][0], 0) if name != "an error" else 2
    for closed in ("stdout", "stderr", "both"):
        (folder / "out.json").unlink(missing_ok=True)
        reader, writer = os.pipe()
        os.close(reader)
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        streams |= {stream: writer for stream in streams if closed in (stream, "both")}
        process = subprocess.Popen(command, cwd=folder, env=variables(), text=True, **streams)
        os.close(writer)
        _, said = process.communicate(timeout=60)
        assert process.returncode == expected and not set((said or "").split()) & {"Traceback", "BrokenPipeError:"}, (closed, said)
        if "out.json" in command:
            assert len(read(folder / "out.json")["test_cases"]) == 9


def test_no_room_for_it_is_an_error(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        for command in (COMMANDS["residual"], COMMANDS["compare"], COMMANDS["compare as JSON"]):
            ran = oracle(*command, cwd=folder, stdout=full)
            assert ran.returncode == 2 and "error: standard output cannot be written: No space left" in ran.stderr, ran.stderr
