# SPDX-License-Identifier: MIT OR Apache-2.0
"""`from oracle import ...`: jobs in, documents out, over any executor; types for whoever checks them."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle import BadData, BadUse, Job, LayersFailed, Origin, compare, demo_job, generate, residual, verify
from tests.support import worlds
from tests.support.encodings import comparable, parsed
from tests.support.places import ROOT
from tests.support.process import run


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Of two schemas, in a mirror each."""
    made = []
    for schema in ("PltBundle", "CltSplit"):
        world = worlds.make(schema, n_layers=4)
        made.append(Job(Origin(world.repo, mirror=world.lay_out(tmp_path / schema)), layers="all", seeds=2))
    return made


def test_any_executor_gives_what_none_gives(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    alone = generate(jobs)
    assert [document["schema"] for document in alone] == ["PltBundle", "CltSplitJumpReLU"]
    executors: list[Executor] = [ThreadPoolExecutor(3), ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))]
    for executor in executors:
        with executor:
            assert list(map(comparable, generate(jobs, executor=executor))) == list(map(comparable, alone))


class Backwards(Executor):
    """Runs what it was given last first, and only once somebody waits: nothing may depend on the order."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        if len(self.waiting) == 8:  # all layers of all jobs
            for waiting, run in reversed(self.waiting):
                waiting.set_result(run())
        return future


def test_in_any_order(jobs: list[Job]) -> None:
    assert list(map(comparable, generate(jobs, executor=Backwards()))) == list(map(comparable, generate(jobs)))


def test_a_layer_that_fails(jobs: list[Job]) -> None:
    damaged = Path(str(jobs[1].origin.mirror)) / str(jobs[1].origin.repo) / "resolve/main/W_enc_2.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(BadData, match="W_enc_2.safetensors"):
        generate(jobs)
    with ThreadPoolExecutor(2) as executor, pytest.raises(LayersFailed, match="layer 2: .*W_enc_2.safetensors") as error:
        generate(jobs, executor=executor)
    assert error.value.code == 4


def test_documents_are_what_the_command_writes(tmp_path: Path) -> None:
    job = demo_job()
    [made] = generate([job])
    written = run("--offline", "--cache-dir", str(job.origin.cache_dir), "--repo", str(job.origin.repo), "-o", "-")
    assert comparable(parsed(written)) == comparable(made)
    assert verify(made, job.origin).agrees and verify(parsed(written), job.origin).agrees
    values = residual(made["test_cases"][4]["seed"], made["test_cases"][4]["stream"], made["d_model"])
    assert values.dtype == np.float32 and values.tolist() == made["test_cases"][4]["residual"]
    candidate = {"test_cases": json.loads(json.dumps(made["test_cases"]))}
    assert compare(made, candidate).agrees
    candidate["test_cases"][4]["top_10"][0]["activation"] += 1.0
    verdict = compare(made, candidate)
    assert not verdict.agrees and [case.agrees for case in verdict.cases].index(False) == 4
    assert "off by 1" in verdict.cases[4].problems[0]


@pytest.mark.parametrize("at", [0, 4, 8])
def test_a_candidate_s_case_stands_once(at: int) -> None:
    """Whether the two say the same or not, and wherever they stand."""
    [reference] = generate([demo_job()])
    for change in (0, 1):
        cases = [dict(case) for case in reference["test_cases"]]
        again = {**cases[at], "n_active": cases[at]["n_active"] + change}
        for doubled in ([again, *cases], [*cases, again], [*cases[:at], again, *cases[at:]]):
            with pytest.raises(BadData, match=f"is layer {again['layer']} seed {again['seed']}, which is there already"):
                compare(reference, {"test_cases": doubled})
    assert compare(reference, {"test_cases": reference["test_cases"][::-1]}).agrees


@pytest.mark.parametrize(
    "options",
    [
        {"seeds": 0}, {"seeds": 10**6}, {"seeds": 2.0}, {"top_k": 0}, {"top_k": True}, {"tolerance": 0.0}, {"tolerance": float("nan")},
        {"tolerance": float("inf")}, {"layers": "0,12"}, {"layers": ()}, {"layers": [0, 12]}, {"layers": (-1,)}, {"layers": (0.5,)},
        {"layers": 3}, {"path": "layer_0/params.npz"}, {"connections": 0},
    ],
    ids=str,
)  # fmt: skip
def test_jobs_that_are_none(options: dict[str, Any]) -> None:
    kind: Any = Origin if options.keys() & {"path", "connections"} else Job
    with pytest.raises(BadUse, match=f"{kind.__name__}: {next(iter(options))} is "):
        kind(**options)


@pytest.mark.slow
def test_types_for_whoever_uses_it(tmp_path: Path) -> None:
    """py.typed is installed, and --strict finds what is wrong in a program of somebody else's."""
    program = tmp_path / "program.py"
    program.write_text(
        "from oracle import Job, compare, generate, residual, verify\n"
        "documents = generate([Job(layers=(0, 12))])\n"
        "agrees: bool = verify(documents[0]).agrees and compare(documents[0], {}).agrees\n"
        "shape: tuple[int, ...] = residual(0, 0, 4).shape\n"
        "wrong: str = residual(0, 0, 4)\n"
        "Job(layers=1.5)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    lines = [line for line in ran.stdout.splitlines() if ": error:" in line]
    assert len(lines) == 2 and "program.py:5" in lines[0] and "program.py:6" in lines[1], ran.stdout + ran.stderr
    assert (ROOT / "oracle/py.typed").exists()
