# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whole processes, measured in turn: what disturbs the machine disturbs all of them."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TypeVar

Name = TypeVar("Name", str, int)


def measure(command: list[str], environment: dict[str, str], folder: str) -> tuple[float, float]:
    """Wall seconds and peak MiB of one process, by the kernel's own account."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command} failed:\n{errors.decode()}")
    return seconds, usage.ru_maxrss / 1024


def in_turn(
    commands: dict[Name, list[str]], environment: dict[str, str], folder: str, runs: int
) -> dict[Name, list[tuple[float, float]]]:
    """The figures of each command: `runs` rounds, in each of which every command runs once."""
    figures: dict[Name, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            measured = measure(command, environment, folder)
            if number:  # the first round warms the page cache
                figures[name].append(measured)
    return figures
