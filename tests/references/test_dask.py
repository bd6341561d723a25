# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15, row 9: Dask clusters as they are, each built of real processes on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.hub import Hub
from tests.support.places import ROOT
from tests.support.process import oracle
from tests.support.scripted import head, scripted
from tests.support.small_scope import fill

HASTY = "import sys\nfrom oracle import executors\nexecutors.CONNECT = 2\nfrom oracle.__main__ import run\nrun()"


@pytest.fixture
def served(hub: Hub) -> Hub:
    fill(hub, 3)
    return hub


def cluster_of(folder: Path, n_workers: int, **places: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder, n_workers, **places)
    try:
        yield cluster
    finally:
        cluster.close()


def arguments(hub: Hub, folder: Path, address: str) -> list[str]:
    return ["--mirror", hub.url, "--layers", "0,1", "-o", str(folder / "out"), "--cache-dir", str(folder / "cache"), "--dask", address]


def hasty(hub: Hub, folder: Path, address: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The command line with less time for a connection, and how long it took."""
    began = time.monotonic()
    command = [sys.executable, "-c", HASTY, *arguments(hub, folder, address)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return ran, time.monotonic() - began


def test_9_a_port_that_is_something_else_s(served: Hub, tmp_path: Path) -> None:
    """A dashboard, say: whoever speaks HTTP there answers what nobody asked."""
    with scripted(lambda request: head("200 OK", Content_Length=0)) as dashboard:
        ran, seconds = hasty(served, tmp_path, dashboard.url.replace("http", "tcp"))
    assert ran.returncode == 3 and ran.stderr.splitlines()[-1].startswith("error: no Dask scheduler answers at tcp://") and seconds < 15, ran.stderr
    assert "Traceback" not in ran.stderr


def test_9_tls_without_certificates(served: Hub, tmp_path: Path) -> None:
    ran, seconds = hasty(served, tmp_path, "tls://127.0.0.1:9")
    assert ran.returncode == 2 and "tls takes certificates" in ran.stderr and ran.stderr.count("\n") == 1 and seconds < 10, ran.stderr


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder in which there is no oracle."""
    place = tmp_path / "foreign/oracle"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'oracle'\")\n")
    return place.parent


@pytest.mark.slow
def test_9_workers_without_oracle_are_told_at_once(served: Hub, foreign: Path, tmp_path: Path) -> None:
    for cluster in cluster_of(tmp_path, 1, worker_place=foreign):
        wait_for_worker(cluster)
        ran = oracle(*arguments(served, tmp_path, cluster.address))
        assert ran.returncode == 2 and "cannot import what it needs: No module named 'oracle'" in ran.stderr.splitlines()[-1], ran.stderr


def wait_for_worker(cluster: Cluster) -> None:
    deadline = time.monotonic() + 60
    while "Register worker" not in (cluster.folder / "cluster.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.slow
def test_9_workers_of_another_version(served: Hub, tmp_path: Path) -> None:
    other = tmp_path / "other/oracle"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other / "version.py").write_text('VERSION = "0.0.7"\n')
    for cluster in cluster_of(tmp_path, 1, worker_place=other.parent):
        wait_for_worker(cluster)
        ran = oracle(*arguments(served, tmp_path, cluster.address))
        assert ran.returncode == 2 and "has oracle 0.0.7, and here it is" in ran.stderr.splitlines()[-1], ran.stderr


@pytest.mark.slow
def test_9_a_scheduler_without_oracle_and_workers_that_come_later(served: Hub, foreign: Path, tmp_path: Path) -> None:
    """What is sent goes through the scheduler as bytes. While nobody works there is a line."""
    assert oracle(*arguments(served, tmp_path, "")[:-2]).returncode == 0
    expected = (tmp_path / "out").read_bytes()
    for cluster in cluster_of(tmp_path, 0, scheduler_place=foreign):
        timer = threading.Timer(9, cluster.add_worker)
        timer.start()
        ran = oracle(*arguments(served, tmp_path, cluster.address))
        timer.join()
        assert ran.returncode == 0 and (tmp_path / "out").read_bytes() == expected, ran.stderr
        assert ran.stderr.count(f"nobody works for {cluster.address} yet") == 1


@pytest.mark.slow
def test_9_a_worker_s_own_error_is_passed_on(served: Hub, tmp_path: Path) -> None:
    """A worker that comes after the look at them, and cannot read what it is sent."""
    broken = tmp_path / "broken/oracle"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    (broken / "version.py").write_text((ROOT / "oracle/version.py").read_text())
    (broken / "references.py").write_text("raise ModuleNotFoundError(\"No module named 'oracle.references'\")\n")
    for cluster in cluster_of(tmp_path, 1, worker_place=broken.parent):
        wait_for_worker(cluster)
        ran = oracle(*arguments(served, tmp_path, cluster.address))
        last = ran.stderr.splitlines()[-1]
        assert ran.returncode == 3 and "its worker failed with ModuleNotFoundError: No module named 'oracle." in last, ran.stderr
        assert "want of memory" not in last


@pytest.mark.slow
def test_9_workers_of_another_version_that_come_later(served: Hub, tmp_path: Path) -> None:
    """A cluster that grows with its work has none when they are looked at."""
    shutil.copytree(ROOT / "oracle", tmp_path / "other/oracle")
    (tmp_path / "other/oracle/version.py").write_text('VERSION = "0.0.7"\n')
    shutil.copy(ROOT / "vendored_hf.py", tmp_path / "other")
    for cluster in cluster_of(tmp_path, 0, worker_place=tmp_path / "other"):
        timer = threading.Timer(5, cluster.add_worker)
        timer.start()
        ran = oracle(*arguments(served, tmp_path, cluster.address))
        timer.join()
        assert ran.returncode == 3 and "it has oracle 0.0.7, and here it is" in ran.stderr.splitlines()[-1], ran.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_9_a_scheduler_that_goes_while_nobody_works(served: Hub, tmp_path: Path) -> None:
    for cluster in cluster_of(tmp_path, 0):
        timer = threading.Timer(5, cluster.scheduler.terminate)
        timer.start()
        ran = oracle(*arguments(served, tmp_path, cluster.address))
        timer.join()
        lines = ran.stderr.splitlines()
        assert ran.returncode == 3 and lines[-1].startswith("error: ") and "whoever hands out the work is gone" in lines[-1], ran.stderr
        assert "Traceback" not in ran.stderr and "want of memory" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "inproc://x:1"])
def test_9_addresses_that_no_client_can_open(served: Hub, tmp_path: Path, address: str) -> None:
    """Dask's client would wait for itself for 20 s when the process ends, and print a traceback."""
    ran, seconds = hasty(served, tmp_path, address)
    assert ran.returncode == 3 and ran.stderr.count("\n") == 1 and f"no Dask scheduler answers at {address}" in ran.stderr, ran.stderr
    assert seconds < 10
