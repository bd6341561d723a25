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

    def __init__(self, folder: Path, n_workers: int = 2):
        self.folder = folder
        self.log = (folder / "cluster.log").open("w")
        code = "from distributed.cli.dask_scheduler import main; main()"
        file = folder / "scheduler.json"
        arguments = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)]
        self.scheduler = self._start(code, *arguments)
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline and self.scheduler.poll() is None, "the scheduler did not start"
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        self.workers = [self._worker(number) for number in range(n_workers)]

    def _worker(self, number: int) -> subprocess.Popen[bytes]:
        code = "from distributed.cli.dask_worker import main; main()"
        folder = self.folder / f"worker-{number}"
        folder.mkdir()
        return self._start(
            code, self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", "127.0.0.1",
            "--local-directory", str(folder),
        )  # fmt: skip

    def _start(self, code: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=self.log, stderr=self.log)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()  # asked to end, a worker looks for its scheduler first
            process.wait()
        self.log.close()
