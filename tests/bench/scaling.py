# SPDX-License-Identifier: MIT OR Apache-2.0
"""What more work costs: more layers, more seeds, more workers, more machines. `python -m tests.bench --scaling` prints it.

The 26 layers are the bench's three weight files under 26 names, so that 906 MB do for 7.9 GB.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.rounds import in_turn, measure

LAYERS = (1, 3, 9, 26)
SEEDS = (3, 30, 300)
DASK_LAYERS = 6


def link_layers(weights: Path, path_of: Callable[[int], str], files: tuple[int, ...]) -> None:
    """Give every layer of 26 one of the weight files that are there."""
    for layer in range(26):
        pointer = weights / path_of(layer)
        if not pointer.exists():
            pointer.parent.mkdir(parents=True, exist_ok=True)
            pointer.symlink_to(os.path.relpath(os.path.realpath(weights / path_of(files[layer % len(files)])), pointer.parent))


def command(layers: int, seeds: int = 3, *options: str) -> list[str]:
    numbers = ",".join(map(str, range(layers)))
    return [sys.executable, "-m", "oracle", "--layers", numbers, "--seeds", str(seeds), "-o", "reference.json", *options]


def measure_layers(environment: dict[str, str], runs: int) -> dict[int, tuple[float, float]]:
    """Wall seconds and peak MiB by the number of layers, medians of runs in turn."""
    return _medians(environment, runs, {n: command(n) for n in LAYERS})


def of_a_line(figures: dict[int, tuple[float, float]]) -> list[float]:
    """The seconds of each over those on a straight line from the first to the last."""
    (first, first_s), *_, (last, last_s) = ((n, seconds) for n, (seconds, _) in figures.items())
    each = (last_s - first_s) / (last - first)
    return [seconds / (first_s + each * (n - first)) for n, (seconds, _) in figures.items()]


def measure_seeds(environment: dict[str, str], runs: int) -> dict[int, tuple[float, float]]:
    """The same by the number of seeds, of one layer."""
    return _medians(environment, runs, {n: command(1, n) for n in SEEDS})


def _medians(environment: dict[str, str], runs: int, commands: dict[int, list[str]]) -> dict[int, tuple[float, float]]:
    with tempfile.TemporaryDirectory() as scratch:
        figures = in_turn(commands, environment, scratch, runs)
    return {n: (statistics.median(s for s, _ in rows), statistics.median(m for _, m in rows)) for n, rows in figures.items()}


def measure_workers(environment: dict[str, str], counts: tuple[int, ...] = (1, 2, 4)) -> dict[int, tuple[float, float]]:
    """Wall seconds, and the peak of its memory in MiB, by the number of workers."""
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            began = time.perf_counter()
            process = subprocess.Popen(
                command(12, 3, "--quiet", "--workers", str(count)), env=environment, cwd=scratch, start_new_session=True
            )
            peak = [0.0]
            watching = threading.Thread(target=_watch, args=(process, peak))
            watching.start()
            process.wait()
            watching.join()
            figures[count] = (time.perf_counter() - began, peak[0])
            if process.returncode:
                raise SystemExit(f"--workers {count} failed")
    return figures


def measure_dask(url: str, environment: dict[str, str], runs: int) -> dict[int, float]:
    """Wall seconds of a streamed run by the number of Dask workers, medians of runs in turn; `url` is that of a Hub."""
    from tests.support.cluster import Cluster

    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        for run in range(runs):
            for n_workers, took in seconds.items():
                folder = Path(scratch) / f"{run}-{n_workers}"
                folder.mkdir()
                cluster = Cluster(folder, n_workers)
                try:
                    arguments = command(DASK_LAYERS, 3, "--quiet", "--stream", "--mirror", url, "--dask", cluster.address)
                    began = time.perf_counter()
                    subprocess.run(arguments, env={**environment, "HF_HUB_OFFLINE": ""}, cwd=scratch, check=True)
                    took.append(time.perf_counter() - began)
                finally:
                    cluster.close()
    return {n_workers: statistics.median(took) for n_workers, took in seconds.items()}


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    """The largest sum of the memory that a session's processes have to themselves, and of what they share once."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_proportional(pid) for pid in _session(process.pid)) / 1024)
        time.sleep(0.01)


def _session(leader: int) -> list[int]:
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                pids.append(int(entry))
    return pids


def _proportional(pid: int) -> int:
    """Kilobytes, pages that several processes have divided among them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def show_layers(environment: dict[str, str], runs: int) -> None:
    figures = measure_layers(environment, runs)
    print(f"{'layers':>8} {'wall s':>8} {'peak MiB':>9} {'of a line':>10}")
    for (n, (seconds, mebibytes)), ratio in zip(figures.items(), of_a_line(figures)):
        print(f"{n:8} {seconds:8.2f} {mebibytes:9.1f} {ratio:10.2f}")


def show_seeds(environment: dict[str, str], runs: int) -> None:
    print(f"{'seeds':>8} {'wall s':>8} {'peak MiB':>9} {'ms a seed':>10} {'JSON MiB':>9}")
    for n, (seconds, mebibytes) in measure_seeds(environment, runs).items():
        with tempfile.TemporaryDirectory() as scratch:
            measure(command(1, n), environment, scratch)
            size = os.path.getsize(os.path.join(scratch, "reference.json")) / 2**20
        print(f"{n:8} {seconds:8.2f} {mebibytes:9.1f} {1000 * seconds / n:10.1f} {size:9.1f}")


def show_workers(environment: dict[str, str]) -> None:
    print(f"{'workers':>8} {'wall s':>8} {'MiB in all':>10}")
    for n, (seconds, mebibytes) in measure_workers(environment).items():
        print(f"{n:8} {seconds:8.2f} {mebibytes:10.0f}")


def show_dask(environment: dict[str, str], runs: int, url: str) -> None:
    figures = measure_dask(url, environment, runs)
    print(f"{DASK_LAYERS} layers streamed from a Hub that gives each connection 25 MB/s")
    print(f"{'Dask':>8} {'wall s':>8} {'throughput':>11}")
    for n, seconds in figures.items():
        print(f"{n:8} {seconds:8.2f} {figures[1] / seconds:10.2f}x")
