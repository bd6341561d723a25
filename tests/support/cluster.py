# SPDX-License-Identifier: MIT OR Apache-2.0
"""A real Dask cluster on loopback, for the tests and the bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.places import ROOT


class Cluster:
    """A Dask scheduler and its workers on loopback, each a process of its own."""

    def __init__(self, folder: Path, n_workers: int = 2, *, scheduler_place: Path = ROOT, worker_place: Path = ROOT):
        """The places are where each finds its packages of ours."""
        self.folder, self.worker_place = folder, worker_place
        self.log = (folder / "cluster.log").open("w")
        code = "from distributed.cli.dask_scheduler import main; main()"
        file = folder / "scheduler.json"
        arguments = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)]
        self.scheduler = self._start(code, scheduler_place, *arguments)
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline and self.scheduler.poll() is None, "the scheduler did not start"
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(n_workers):
            self.add_worker()

    def add_worker(self) -> None:
        code = "from distributed.cli.dask_worker import main; main()"
        folder = self.folder / f"worker-{len(self.workers)}"
        folder.mkdir()
        self.workers.append(self._start(
            code, self.worker_place, self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", "127.0.0.1",
            "--local-directory", str(folder),
        ))  # fmt: skip

    def _start(self, code: str, place: Path, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(place), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=self.log, stderr=self.log)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()  # asked to end, a worker looks for its scheduler first
            process.wait()
        self.log.close()
