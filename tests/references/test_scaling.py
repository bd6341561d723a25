# SPDX-License-Identifier: MIT OR Apache-2.0
"""What more layers, seeds, workers and machines cost, at full shape, and a layer of 131,072 features. Slow."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.bench import scaling

pytestmark = [pytest.mark.slow, pytest.mark.alone]

FOLDER = Path(tempfile.gettempdir()) / "oracle-bench"
ATTEMPTS = 5  # one on a busy machine is no measurement

MOST_OF_FLOOR, MOST_MEBIBYTES = 3.0, 150.0
OFF_THE_LINE, MORE_MEBIBYTES = 0.10, 5.0
MOST_PER_WORKER = 60.0
TWO_WORKERS = 1.7


def figures(*options: str, runs: int = 3) -> list[list[float]]:
    """The rows of numbers that bench.py prints, without their names."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--folder", str(FOLDER), "--runs", str(runs), *options],
        capture_output=True, text=True, timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)
    numbers = r"\d+(?:\.\d+)?"
    rows = [re.findall(numbers, row) for row in re.findall(rf"^.*? +((?:{numbers}x? *)+)$", ran.stdout, re.M)]
    return [[float(number) for number in row] for row in rows if len(row) >= 3]


def test_a_llama_layer() -> None:
    for _ in range(ATTEMPTS):
        (_, mebibytes, of_floor), *_ = figures("--llama")
        assert mebibytes <= MOST_MEBIBYTES
        if of_floor <= MOST_OF_FLOOR:
            return
    raise AssertionError(of_floor)


def test_layers_cost_the_same_each_and_no_memory() -> None:
    for _ in range(ATTEMPTS):
        rows = figures("--scaling", "layers")
        peaks, of_a_line = ([row[column] for row in rows] for column in (2, 3))
        assert [row[0] for row in rows] == list(scaling.LAYERS) and max(peaks) - min(peaks) <= MORE_MEBIBYTES
        if max(abs(ratio - 1) for ratio in of_a_line) <= OFF_THE_LINE:
            return
    raise AssertionError(of_a_line)


def test_seeds_cost_less_each_and_no_more_memory_than_their_results() -> None:
    rows = figures("--scaling", "seeds", runs=1)
    peaks, each, results = ([row[column] for row in rows] for column in (2, 3, 4))
    assert [row[0] for row in rows] == list(scaling.SEEDS) and each == sorted(each, reverse=True)
    assert peaks[-1] - peaks[0] <= results[-1]


def test_what_workers_take() -> None:
    (one, _, own), *more = figures("--scaling", "workers")
    assert one == 1 and [row[0] for row in more] == [2, 4]
    for count, _, mebibytes in more:
        assert mebibytes - own <= MOST_PER_WORKER * count


def test_two_dask_workers() -> None:
    one, two = figures("--scaling", "dask", runs=1)
    assert (one[0], two[0]) == (1, 2) and two[2] >= TWO_WORKERS
