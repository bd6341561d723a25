# SPDX-License-Identifier: MIT OR Apache-2.0
"""Layers encoded by threads, and by a real Dask cluster on loopback: the same bytes, and what fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oracle.job import Job, Origin
from oracle.references.generate import generate as generate_reference
from tests.support import worlds
from tests.support.cluster import Cluster
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT
from tests.support.process import oracle, run, started, wait_until
from tests.support.small_scope import CURATION_REPO, WEIGHTS_REPO, config, fill, layer_arrays, npz, path_of

N_LAYERS = 6


def generate(hub: Hub, output: Path, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    door = oracle if "--dask" in options else run  # Dask's client leaves threads behind
    return door("--mirror", hub.url, "--layers", "all", "-o", str(output), *options, **more)


def asked(hub: Hub) -> int:
    """How often a weight file has been asked for."""
    return sum("params.npz" in seen.path for seen in hub.seen)


@pytest.fixture
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "60")
    fill(hub, N_LAYERS)
    return hub


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_workers_write_the_same_bytes(served: Hub, tmp_path: Path) -> None:
    for options in ((), ("--stream",)):
        for name, more in (("three", ("--workers", "3")), ("one", ())):
            ran = generate(served, tmp_path / name, *options, *more)
            assert ran.returncode == 0, ran.stderr
            cases = [line for line in ran.stderr.splitlines() if line.startswith("layer")]
            assert len(cases) == 3 * N_LAYERS and cases == sorted(cases)
            if not options and more:
                assert all(f"fetched {path_of(layer)} (" in ran.stderr for layer in range(N_LAYERS))
        assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


def test_workers_of_another_schema(hub: Hub, tmp_path: Path) -> None:
    world = worlds.make("CltSplit", n_layers=3, skip=True)
    world.add_to(hub)
    for name, more in (("one", ()), ("two", ("--workers", "2"))):
        ran = run("--mirror", hub.url, *world.arguments, "--decode", "--robust", "-o", str(tmp_path / name), *more)
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


class PushingExecutor(Executor):
    """Somebody pushes other weights of every layer before each task is run, here."""

    def __init__(self, hub: Hub, branch: str):
        self.hub, self.branch, self.started = hub, branch, 0

    def submit(self, fn: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        self.started += 1
        for layer in range(N_LAYERS):
            self.hub.add(WEIGHTS_REPO, path_of(layer), npz(layer_arrays(100 * self.started + layer)), branch=self.branch)
        future: Future[Any] = Future()
        future.set_result(fn(*arguments, **named))
        return future


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_branch_that_moves_is_one_commit_for_all_workers(served: Hub, stream: bool, revision: str | None) -> None:
    repo = served.repos[WEIGHTS_REPO]
    before = repo.refs["v2"] = repo.refs["main"]
    if revision:
        served.add(WEIGHTS_REPO, path_of(0), npz(layer_arrays(9)))  # main is another one
    origin = Origin(CURATION_REPO, mirror=served.url, stream=stream, weights_revision=revision)
    executor = PushingExecutor(served, revision or "main")
    reference = generate_reference(Job(origin, layers="all", seeds=1), executor=executor)
    assert executor.started == N_LAYERS and repo.refs[revision or "main"] != before
    assert reference.weights_revision == before and {record.revision for record in reference.layers} == {before}
    if not stream:
        assert [record.sha256 for record in reference.layers] == [repo.commits[before][path_of(layer)].etag for layer in range(N_LAYERS)]
    here = generate_reference(Job(replace(origin, weights_revision=before), layers="all", seeds=1))
    assert [case.top for case in here.cases] == [case.top for case in reference.cases]


@pytest.mark.parametrize("environment", [{}, {"HF_TOKEN": "hf_secret"}], ids=["no token", "token"])
@pytest.mark.parametrize("switch", ["--offline", "HF_HUB_OFFLINE"])
def test_workers_without_the_network_send_no_request(served: Hub, tmp_path: Path, environment: dict[str, str], switch: str) -> None:
    assert generate(served, tmp_path / "one").returncode == 0
    served.seen.clear()
    options = ["--offline"] if switch == "--offline" else []
    environment = environment | {"HF_ENDPOINT": served.url} | ({} if options else {switch: "1"})
    for where in ([], ["--mirror", served.url]):
        for workers in ("1", "2"):
            output = tmp_path / "two"
            ran = run(*where, *options, "--layers", "all", "-o", str(output), "--workers", workers, environment=environment)
            assert ran.returncode == 0 and not served.seen, ran.stderr
            assert output.read_bytes() == (tmp_path / "one").read_bytes()
            output.unlink()


def damaged(hub: Hub, *layers: int) -> None:
    for layer in layers:
        content = bytearray(npz(layer_arrays(layer)))
        content[len(content) // 3] ^= 1
        hub.add(WEIGHTS_REPO, path_of(layer), bytes(content))


def check_damaged(ran: subprocess.CompletedProcess[str], output: Path, cache: Path) -> None:
    """Both layers are named, the others were fetched to their end, and the old reference stands."""
    assert ran.returncode == 4 and output.read_text() == "old"
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: layer 1: ") and "; layer 4: " in last and last.count("damaged") == 2
    snapshot = next((cache / f"models--{WEIGHTS_REPO.replace('/', '--')}" / "snapshots").iterdir())
    assert all((snapshot / path_of(layer)).exists() for layer in range(N_LAYERS))


def test_a_layer_that_fails_names_itself(served: Hub, tmp_path: Path) -> None:
    damaged(served, 1, 4)
    output, cache = tmp_path / "out", tmp_path / "cache"
    output.write_text("old")
    ran = generate(served, output, "--workers", "2", "--cache-dir", str(cache))
    check_damaged(ran, output, cache)
    ran = generate(served, output, "--workers", "2", "--cache-dir", str(cache), "--debug")
    assert "Traceback" in ran.stderr and "WeightsError" in ran.stderr


def stuck(hub: Hub, output: Path) -> subprocess.Popen[str]:
    """Two workers, both of which wait for the Hub, for longer than anybody else would."""
    hub.inject(Fault(stall=50), Fault(stall=50))
    process = started("--mirror", hub.url, "--layers", "all", "-o", str(output), "--workers", "2")
    wait_until(lambda: len(hub.faults) == 0, process)
    return process


def test_ctrl_c_waits_for_no_worker(served: Hub, tmp_path: Path) -> None:
    process = stuck(served, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.splitlines()[-1] == "interrupted" and "Traceback" not in said


def test_an_error_waits_for_no_worker(served: Hub, tmp_path: Path) -> None:
    """A repo that does not exist shows while another layer's file is on its way."""
    served.add(CURATION_REPO, "config.yaml", config(1) + f'  - "hf://org/none/{path_of(1)}"\n'.encode())
    served.inject(Fault(stall=50))
    process = started("--mirror", served.url, "--layers", "all", "-o", str(tmp_path / "out"), "--workers", "2")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 3 and "org/none" in said.splitlines()[-1] and "Traceback" not in said


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_process_that_is_ended(served: Hub, tmp_path: Path, how: signal.Signals) -> None:
    """However that was: timeout, a batch system and a container's stop take it without a word."""
    process = stuck(served, tmp_path / "out")
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        assert file.read() == ""
    process.send_signal(how)
    process.communicate(timeout=20)  # to the end of standard error, which nobody else has open
    assert process.returncode == -how and os.listdir(tmp_path) == ["home"]
    assert generate(served, tmp_path / "out", "--workers", "2").returncode == 0


def test_workers_are_as_quiet_as_they_are_told(tmp_path: Path) -> None:
    world = worlds.make("PltBundle", n_layers=2)
    tree = world.lay_out(tmp_path / "tree")  # without a manifest, which is a warning for each file
    for quiet in ((), ("--quiet",)):
        said = []
        for workers in ("1", "2"):
            ran = run("--mirror", tree, *world.arguments, "-o", str(tmp_path / "out"), "--workers", workers, *quiet)
            assert ran.returncode == 0, ran.stderr
            said.append(set(ran.stderr.splitlines()))  # a file is looked at before it is handed out, and where it is read
        assert said[0] == said[1] and sum("could not verify" in line for line in said[0]) == (0 if quiet else 3)


def test_dask_writes_the_same_bytes_and_names_what_fails(served: Hub, cluster: Cluster, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, options in (("one", ()), ("two", ("--dask", cluster.address))):
        ran = generate(served, tmp_path / name, "--cache-dir", str(cache), *options)
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    damaged(served, 1, 4)
    output, other = tmp_path / "out", tmp_path / "other"
    output.write_text("old")
    ran = generate(served, output, "--cache-dir", str(other), "--dask", cluster.address)
    check_damaged(ran, output, other)


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_is_made_up_for(served: Hub, cluster: Cluster, tmp_path: Path) -> None:
    assert generate(served, tmp_path / "one", "--stream").returncode == 0
    served.rate = 15_000.0
    before = asked(served)
    process = started("--mirror", served.url, "--layers", "all", "-o", str(tmp_path / "two"), "--stream", "--dask", cluster.address)
    wait_until(lambda: asked(served) >= before + 4, process)
    cluster.workers[0].kill()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_dask_and_no_address(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ImportError('none')")
    ran = generate(served, tmp_path / "out", "--dask", "tcp://127.0.0.1:1", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert ran.returncode == 2 and "pip install distributed" in ran.stderr.splitlines()[-1]
    ran = generate(served, tmp_path / "out", "--dask", "nowhere")
    assert ran.returncode == 2 and "tcp://host:8786" in ran.stderr.splitlines()[-1]


@pytest.mark.slow
def test_no_scheduler_answers(served: Hub, tmp_path: Path) -> None:
    ran = generate(served, tmp_path / "out", "--dask", "tcp://127.0.0.1:1")
    assert ran.returncode == 3 and "tcp://127.0.0.1:1" in ran.stderr.splitlines()[-1]
