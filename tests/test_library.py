# SPDX-License-Identifier: MIT OR Apache-2.0
"""`from oracle import ...`: jobs in, documents out, over any executor; types for whoever checks them."""

from __future__ import annotations

import json
import multiprocessing
import os
import pydoc
import rlcompleter
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import oracle
import vendored_hf
from oracle import (
    BadData,
    BadUse,
    Events,
    Job,
    LayersFailed,
    OracleError,
    Origin,
    SourceFailed,
    compare,
    demo_job,
    exact_vectors,
    explain,
    generate,
    inspect,
    report,
    residual,
    verify,
)  # fmt: skip
from tests.support import worlds
from tests.support.encodings import comparable, parsed
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT
from tests.support.process import python, run

Document = dict[str, Any]


@pytest.fixture(scope="module")
def reference() -> Document:
    """The demo's, for all tests to read and for none to change."""
    return generate(demo_job())


def answers(reference: Document) -> Document:
    """A right port's, to be changed."""
    document: Document = json.loads(json.dumps({"test_cases": reference["test_cases"]}))
    return document


def wrong_answers(reference: Document) -> Document:
    """A port's of which two cases differ: a count of features, and an activation."""
    candidate = answers(reference)
    candidate["test_cases"][3]["n_active"] += 9
    candidate["test_cases"][4]["top_10"][0]["activation"] += 1.0
    return candidate


def test_names() -> None:
    """The help begins with the functions, and the names are there to be completed."""
    functions = [name for name in oracle.__all__ if callable(getattr(oracle, name)) and not isinstance(getattr(oracle, name), type)]
    assert functions == ["generate", "compare", "explain", "inspect", "verify", "report", "exact_vectors", "residual", "demo_job"]
    lines = pydoc.plain(pydoc.render_doc(oracle)).split("DESCRIPTION")[1].splitlines()[1:]
    assert [line.split("(")[0].strip() for line in lines[: len(functions)]] == functions
    completer = rlcompleter.Completer({"oracle": oracle})
    completions = {str(completer.complete("oracle.", number)).split("(")[0] for number in range(len(oracle.__all__))}
    assert {f"oracle.{name}" for name in functions} < completions
    with pytest.raises(AttributeError, match="'oracle' has no attribute 'expain'"):
        oracle.expain  # noqa: B018


def test_its_import_is_cheap() -> None:
    ran = python("-c", "import sys, oracle; dir(oracle); print(sorted({'numpy', 'requests', 'yaml', 'oracle.library'} & set(sys.modules)))")
    assert ran.stdout == "[]\n", ran.stderr


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
    assert "off by 1" in str(verdict.cases[4].problems[0])


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


def test_a_job_or_jobs(jobs: list[Job], reference: Document) -> None:
    assert comparable(generate(jobs[0])) == comparable(generate(job for job in jobs[:1])[0])
    assert generate([]) == []
    none: Any
    for none in (3, [3], "demo", [reference]):
        with pytest.raises(BadUse, match="takes a Job, or several of them"):
            generate(none)


def test_it_says_what_the_commands_say(reference: Document, tmp_path: Path) -> None:
    """Comparison, explanation and inspection: their words, and their JSON."""
    origin, candidate = demo_job().origin, answers(reference)
    for case in candidate["test_cases"]:
        case["layer"] += 1
    files = []
    for name, document in (("reference.json", reference), ("candidate.json", candidate)):
        (tmp_path / name).write_text(json.dumps(document))
        files.append(str(tmp_path / name))
    weights = ("--offline", "--cache-dir", str(origin.cache_dir), "--repo", str(origin.repo))
    printed = json.loads(run("compare", *files, "--format", "json", "--explain", *weights).stdout)
    comparison, explanation = compare(reference, candidate), explain(reference, candidate, origin)
    said = json.loads(json.dumps(comparison.to_dict()))
    assert {key: printed[key] for key in said} == said and not said["agrees"]
    assert printed["explanation"] == json.loads(json.dumps(explanation.to_dict()))
    assert str(explanation) == "\n".join(explanation.lines) and "layers from 1" in str(explanation)

    at = (reference["test_cases"][4]["layer"], reference["test_cases"][4]["seed"], reference["test_cases"][4]["top_10"][2]["index"])
    options = [word for name, value in zip(("--layer", "--seed", "--feature"), at) for word in (name, str(value))]
    inspection = inspect(reference, *map(np.int64, at), origin=origin)
    assert run("inspect", files[0], *options, *weights).stdout == f"{inspection}\n"
    assert json.loads(run("inspect", files[0], *options, *weights, "--format", "json").stdout) == json.loads(json.dumps(inspection.to_dict()))
    assert inspection.rank == 3 and inspect(reference, *at, answers(reference), origin).standing is not None

    page = report(reference, candidate, explanation)
    assert page.startswith("<!DOCTYPE html>") and "layers from 1" in page and "layers from 1" not in report(reference)


def test_a_comparison_in_words_and_in_a_notebook(reference: Document) -> None:
    comparison = compare(reference, wrong_answers(reference))
    lines = str(comparison).splitlines()
    ids = [f"layer {case['layer']} seed {case['seed']}" for case in reference["test_cases"][3:5]]
    assert [line.split(":")[0] for line in lines[:2]] == ids and lines[-1] == comparison.verdict and "7 same, 2 differ" in str(comparison)
    right = reference["test_cases"][3]["n_active"]
    shown = comparison._repr_html_()
    assert shown.startswith(f"<p><b>{comparison.verdict}</b></p><table>") and f"<td>n_active</td><td>{right}</td><td>{right + 9}</td>" in shown
    agreement = compare(reference, answers(reference))
    assert "<table>" not in agreement._repr_html_() and str(agreement).endswith(agreement.verdict)


def test_of_many_problems_a_notebook_shows_some(reference: Document) -> None:
    candidate = answers(reference)
    for case in candidate["test_cases"]:
        for feature in case["top_10"]:
            feature["activation"] += 1.0
    comparison = compare(reference, candidate)
    assert comparison._repr_html_().count("<tr>") == 41 and "<p>... and 50 problems more</p>" in comparison._repr_html_()
    assert sum(len(case["problems"]) for case in comparison.to_dict()["test_cases"]) == 90


def test_what_a_document_says_is_no_html() -> None:
    vectors = json.loads(exact_vectors("QwenScope")["QwenScope"]["vectors.json"])
    vectors["notes"] = {flag: {**note, "catches": "<script>"} for flag, note in vectors["notes"].items()}
    comparison = compare(vectors, {"test_cases": [{**case, "n_active": case["n_active"] + 1} for case in vectors["test_cases"]]})
    assert "<script>" in str(comparison)
    assert "<script>" not in comparison._repr_html_() and "&lt;script&gt;" in comparison._repr_html_()


def test_a_verification_explanation_and_inspection_in_a_notebook(reference: Document) -> None:
    origin, edited = demo_job().origin, {**reference, "test_cases": wrong_answers(reference)["test_cases"]}
    verification = verify(edited, origin)
    right = reference["test_cases"][3]["n_active"]
    assert f"<td>n_active</td><td>{right}</td><td>{right + 9}</td>" in verification._repr_html_()
    assert str(verification).endswith(verification.verdict) and "differs" in str(verification) and not verification.to_dict()["agrees"]
    assert verify(reference, origin).to_dict()["agrees"]
    assert "nothing to explain" in str(explain(reference, answers(reference), origin))
    explanation = explain(reference, wrong_answers(reference), origin)
    assert explanation._repr_html_().startswith("<pre>") and explanation.lines[0] in explanation._repr_html_()
    shown = inspect(reference, 0, 0, 5, origin=origin)._repr_html_()
    assert shown.startswith("<pre>layer 0 seed 0 feature 5") and "pre &gt; threshold" in shown


CHANGES: dict[str, Callable[[Document], None]] = {
    "NaN": lambda document: document["test_cases"][1]["top_10"][0].update(activation=float("nan")),
    "a fraction": lambda document: document["test_cases"][0].update(n_active=1.5),
    "below zero": lambda document: document["test_cases"][0].update(n_active=-1),
    "a text": lambda document: document["test_cases"][0].update(seed="0"),
    "truth": lambda document: document["test_cases"][0].update(layer=True),
    "no list": lambda document: document["test_cases"][0].pop("top_10"),
    "twice": lambda document: document["test_cases"].append(document["test_cases"][0]),
    "another list": lambda document: document["test_cases"][0]["top_10"].clear(),
    "no cases": lambda document: document["test_cases"].clear(),
    "nothing": lambda document: document.clear(),
    "42.0": lambda document: document["test_cases"][0].update(n_active=42.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_document_is_checked_as_one_in_a_file(reference: Document, tmp_path: Path, name: str) -> None:
    """With the same words, but for what the file is called."""
    candidate, path = answers(reference), tmp_path / "candidate.json"
    CHANGES[name](candidate)
    path.write_text(json.dumps(candidate))
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    ran = run("compare", str(tmp_path / "reference.json"), str(path))
    if ran.returncode < 2:
        assert compare(reference, candidate).agrees is (ran.returncode == 0)
    else:
        with pytest.raises(BadData) as error:
            compare(reference, candidate)
        assert ran.stderr == f"error: {str(error.value).replace('the candidate', str(path), 1)}\n"


def test_what_no_json_has(reference: Document) -> None:
    """NumPy's numbers and arrays are those that they hold; all else is refused, and a key that two keys become."""
    candidate = answers(reference)
    for case in candidate["test_cases"]:
        case |= {"n_active": np.int64(case["n_active"]), "residual": np.asarray(case["residual"]), "top_10": tuple(case["top_10"])}
        case["top_10"][0]["activation"] = np.float32(case["top_10"][0]["activation"])
    assert compare(reference, candidate).agrees and compare({**reference, "test_cases": tuple(reference["test_cases"])}, candidate).agrees
    circle: Document = {}
    circle["test_cases"] = [circle]
    for other in ({"test_cases": {1, 2}}, {"test_cases": b"[]"}, {"test_cases": [], 1: 0, "1": 0}, {(): 0}, circle, None, "candidate.json"):
        with pytest.raises(BadData, match="^the candidate "):
            compare(reference, other)  # type: ignore[arg-type]


NOT_JOBS: dict[str, tuple[type[Exception], Callable[[Document], object]]] = {
    "no cache": (OSError, lambda _: generate(Job(Origin("org/name", offline=True)))),
    "an empty revision": (BadUse, lambda _: generate(Job(Origin("org/name", revision="")))),
    "no mirror": (OSError, lambda _: generate(Job(Origin("org/name", mirror="/no/such/folder")))),
    "no server": (OSError, lambda _: generate(Job(Origin("org/name", mirror="http://127.0.0.1:9")))),
    "no revision": (ValueError, lambda _: generate(Job(Origin("org/name", revision="a\nb")))),
    "no repo": (ValueError, lambda _: generate(Job(Origin("org//name")))),
    "no file of residuals": (BadUse, lambda _: generate(Job(residuals="/no/such/file.npy"))),
    "a tolerance in words": (BadUse, lambda _: Job(tolerance="1e-4")),  # type: ignore[arg-type]
    "a scale in words": (BadUse, lambda _: Origin(input_scale="2")),  # type: ignore[arg-type]
    "a seed below zero": (ValueError, lambda _: residual(-1, 0, 1)),
    "a seed of a fraction": (ValueError, lambda _: residual(0.5, 0, 1)),  # type: ignore[arg-type]
    "no such format": (BadUse, lambda _: exact_vectors("none")),
    "no such feature": (BadUse, lambda reference: inspect(reference, 0, 0, -1, origin=demo_job().origin)),
    "a feature of a fraction": (BadUse, lambda reference: inspect(reference, 0, 0, 0.5)),  # type: ignore[arg-type]
    "no such case": (BadUse, lambda reference: inspect(reference, 0, 1, 0, origin=demo_job().origin)),
    "no reference": (ValueError, lambda _: verify({})),
    "a job for an origin": (BadUse, lambda reference: verify(reference, demo_job())),  # type: ignore[arg-type]
    "an explanation of nothing": (BadUse, lambda reference: report(reference, None, explain(reference, wrong_answers(reference), demo_job().origin))),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_JOBS)
def test_what_goes_wrong_is_an_oracle_error(reference: Document, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of the built-in kind that it always was."""
    kind, action = NOT_JOBS[name]
    monkeypatch.setattr(vendored_hf, "FIRST_WAIT", 0.0)
    with pytest.raises(OracleError) as error:
        action(reference)
    assert isinstance(error.value, kind) and str(error.value)


def test_what_a_server_does_wrong(hub: Hub) -> None:
    world = worlds.make("PltBundle")
    world.add_to(hub)
    job = Job(Origin(world.repo, mirror=hub.url))
    hub.inject(Fault(body=bytes(10)))
    with pytest.raises(BadData) as damaged:
        generate(job)
    assert isinstance(damaged.value, OSError) and isinstance(damaged.value.__cause__, vendored_hf.ConsistencyError)
    hub.inject(Fault(host="hub", method="HEAD", status=401, headers={"X-Error-Code": "GatedRepo"}))
    with pytest.raises(SourceFailed) as refused:
        generate(job)
    assert isinstance(refused.value.__cause__, vendored_hf.GatedRepoError)
    assert len(generate(job)["test_cases"]) == 9


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What IPython's kernel leaves behind by which a program knows of it. It has no widgets: tqdm then draws its bars as text."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_progress_in_a_notebook(notebook: None, hub: Hub, jobs: list[Job], reference: Document, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    world = worlds.make("GemmaScopeNpz")
    world.add_to(hub)
    generate(Job(Origin(world.repo, mirror=hub.url)))
    bars = capfd.readouterr().err
    assert "layers: 100%" in bars and "3/3" in bars and "params.npz" in bars
    generate(jobs)
    assert "8/8" in capfd.readouterr().err
    explain(reference, wrong_answers(reference), demo_job().origin)
    assert "layers: 100%" in capfd.readouterr().err
    with pytest.raises(OracleError):  # the bars of what failed are closed
        verify({**reference, "d_model": 1}, demo_job().origin)
    verify(reference, demo_job().origin, events=Events())
    assert "layers" not in capfd.readouterr().err.replace("layers:   0%", "")


@pytest.mark.parametrize("reason", ["no notebook", "no tqdm", "not wanted"])
def test_no_progress(reason: str, request: pytest.FixtureRequest, reference: Document, monkeypatch: pytest.MonkeyPatch,
                     capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    if reason != "no notebook":
        request.getfixturevalue("notebook")
    if reason == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    if reason == "not wanted":
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    assert verify(reference, demo_job().origin).agrees
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_types_for_whoever_uses_it(tmp_path: Path) -> None:
    """py.typed is installed, and --strict finds what is wrong in a program of somebody else's."""
    program = tmp_path / "program.py"
    program.write_text(
        "from oracle import Comparison, Job, compare, explain, generate, residual, verify\n"
        "documents = [*generate([Job(layers=(0, 12))]), generate(Job())]\n"
        "agrees: bool = verify(documents[0]).agrees and compare(documents[0], {}).agrees\n"
        "shape: tuple[int, ...] = residual(0, 0, 4).shape\n"
        "wrong: str = residual(0, 0, 4)\n"
        "Job(layers=1.5)\n"
        "comparison: Comparison = compare(documents[1], {})\n"
        "lines: list[str] = [str(comparison), *explain(documents[1], {}).lines]\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    lines = [line for line in ran.stdout.splitlines() if ": error:" in line]
    assert len(lines) == 2 and "program.py:5" in lines[0] and "program.py:6" in lines[1], ran.stdout + ran.stderr
    assert (ROOT / "oracle/py.typed").exists()
