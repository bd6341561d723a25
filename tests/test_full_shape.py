# SPDX-License-Identifier: MIT OR Apache-2.0
"""The main job on full-shape weights: the bars of speed, memory and sameness. Slow: makes 900 MB once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, oracle
from test_generate import DESIGN_FINGERPRINTS, cores

pytestmark = pytest.mark.slow

# The package's own bars, held with room for a noisy machine; bench.py prints the figures.
MOST_OF_FLOOR = 2.5
MOST_MEBIBYTES = 90


@pytest.fixture(scope="module")
def bench_folder() -> Path:
    return Path(tempfile.gettempdir()) / "oracle-bench"


def test_bars(bench_folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests/bench.py"), "--folder", str(bench_folder)],
        capture_output=True, text=True, env=dict(os.environ), timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)
    ours, floor = (line.split() for line in ran.stdout.splitlines()[1:3])
    assert float(ours[-2]) <= MOST_MEBIBYTES
    assert float(floor[-1].removesuffix("x")) <= MOST_OF_FLOOR


def test_the_same_bytes_at_full_shape(bench_folder: Path) -> None:
    texts = []
    for core in ["", *cores()]:
        for threads in ("1", "2"):
            ran = oracle(
                "--offline", "-o", "-",
                environment={
                    "HF_HUB_CACHE": str(bench_folder / "hub"), "OPENBLAS_NUM_THREADS": threads,
                    **({"OPENBLAS_CORETYPE": core} if core else {}),
                },
            )
            assert ran.returncode == 0, ran.stderr
            texts.append(ran.stdout)
    assert len({json.loads(text)["environment"]["blas_kernel"] for text in texts}) >= 3
    assert len({text[: text.index('"environment"')] for text in texts}) == 1
    prints = {(c["seed"], c["stream"]): c["residual_fingerprint"] for c in json.loads(texts[0])["test_cases"]}
    assert prints.items() >= DESIGN_FINGERPRINTS.items() and len(prints) == 9
