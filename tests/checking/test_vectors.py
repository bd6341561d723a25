# SPDX-License-Identifier: MIT OR Apache-2.0
"""compare on exact vectors: equality of float32 bits, the failing flags first, strict parsing, at once and without NumPy."""

from __future__ import annotations

import copy
import json
import resource
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
from oracle.checking.vectors import bits, compare_documents
from oracle.references.rows import DataError
from tests.support.process import python, run

NAME = "GemmaScopeNpz"
VECTORS: dict[str, Any] = json.loads(oracle.exact_vectors(NAME)[NAME]["vectors.json"])
MOST_SECONDS = 0.15  # on a quiet machine
BARE_SECONDS = 0.025  # `python -c pass` there


def right() -> dict[str, Any]:
    """A candidate that agrees."""
    keys = ("case", "n_active", "active", "reconstructions")
    return copy.deepcopy({"test_cases": [{key: case[key] for key in keys if key in case} for case in VECTORS["test_cases"]]})


def of_flag(flag: str) -> list[int]:
    return [case["case"] for case in VECTORS["test_cases"] if flag in case["flags"]]


def test_a_right_candidate_agrees() -> None:
    comparison = oracle.compare(VECTORS, right())
    assert comparison.agrees and comparison.failing_flags == [] and comparison.verdict == "the candidate agrees (bit for bit)"


def fire(candidate: dict[str, Any], case: int, index: int, activation: float) -> None:
    candidate["test_cases"][case]["n_active"] += 1
    candidate["test_cases"][case]["active"].append({"index": index, "activation": activation})


def test_the_failing_flags_come_first(tmp_path: Path) -> None:
    candidate = right()
    for case in of_flag("gate-equality"):
        fire(candidate, case, 100, 0.5)
    (tmp_path / "vectors.json").write_text(json.dumps(VECTORS))
    (tmp_path / "candidate.json").write_text(json.dumps(candidate))
    result = run("compare", str(tmp_path / "vectors.json"), str(tmp_path / "candidate.json"))
    assert result.returncode == 1 and not result.stdout
    lines = result.stderr.splitlines()
    count = len(of_flag("gate-equality"))
    assert lines[0] == f"gate-equality: {count} of {count} cases fail: a feature whose pre-activation equals its threshold fired"
    assert lines[1].startswith("zero-pre: 2 of 2 cases fail: ")
    assert lines[2] == "layer 0 case 0: differs   n_active is 1, the vectors have 0; feature 100 fired and must not"
    assert lines[-1] == "the candidate DISAGREES (bit for bit)"
    as_json = json.loads(run("compare", str(tmp_path / "vectors.json"), str(tmp_path / "candidate.json"), "--format", "json").stdout)
    assert as_json["agrees"] is False
    assert {flag["flag"]: (flag["failed"], flag["cases"]) for flag in as_json["flags"]}["gate-equality"] == (count, count)
    junit = run("compare", str(tmp_path / "vectors.json"), str(tmp_path / "candidate.json"), "--format", "junit")
    suite = ElementTree.fromstring(junit.stdout)
    assert junit.returncode == 1 and suite.get("failures") == str(count)
    names = [item.get("name") for item in suite.iter("property")]
    assert names == ["flag gate-equality", "flag zero-pre"]


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda case: case.update(n_active=case["n_active"] + 1), "n_active is 25, the vectors have 24"),
        (lambda case: case["active"].reverse(), "place 1 is feature 246, the vectors have 131"),
        (lambda case: case["active"].pop(3), "feature 146 did not fire"),
        (lambda case: case["active"][0].update(index=131 + 270), "feature 401 does not exist: there are 270"),
        (lambda case: case["active"].append(case["active"][0]), "a feature is on the list twice"),
        (lambda case: case["active"][0].update(activation=3.7500003), "feature 131 is 3.7500003, the vectors have 3.75"),
        (lambda case: case["active"][0].update(activation=1e39), "feature 131 is 1e+39, the vectors have 3.75"),
        (lambda case: case["reconstructions"][0]["values"].pop(), "the reconstruction of layer 0 has 15 values, not 16"),
        (lambda case: case["reconstructions"][0].update(target_layer=1), "the reconstruction of layer 0 is missing"),
        (lambda case: case["reconstructions"][0]["values"].__setitem__(5, 1e-30), "the reconstruction of layer 0: value 5 is 1e-30, the vectors have 0.0"),
    ],
)
def test_what_differs_is_said(change: Any, problem: str) -> None:
    candidate = right()
    [number] = of_flag("tie-order")[:1]
    change(candidate["test_cases"][number])
    comparison = oracle.compare(VECTORS, candidate)
    assert not comparison.agrees
    assert problem in "; ".join(comparison.cases[number].problems)
    assert sum(not case.agrees for case in comparison.cases) == 1


def test_what_reads_as_the_same_float32_is_the_same() -> None:
    candidate = right()
    for case in candidate["test_cases"]:
        case["case"], case["n_active"] = float(case["case"]), float(case["n_active"])
        for feature in case["active"]:
            feature.update(index=float(feature["index"]), activation=float(f"{feature['activation']:.9g}"))
    assert oracle.compare(VECTORS, candidate).agrees


def test_missing_and_extra_cases() -> None:
    candidate = right()
    del candidate["test_cases"][0]
    candidate["test_cases"].append({"case": 999, "n_active": 0, "active": []})
    comparison = oracle.compare(VECTORS, candidate)
    assert comparison.cases[0].status == "missing" and [case.number for case in comparison.extra] == [999]
    assert comparison.flag_lines[0].startswith("gate-equality: 1 of 4 cases fail: ")


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda candidate: candidate.clear(), "the candidate: test_cases is missing"),
        (lambda candidate: candidate.update(test_cases=[]), "the candidate: test_cases is empty"),
        (lambda candidate: candidate["test_cases"].append(candidate["test_cases"][0]), "case 0, which is there already"),
        (lambda candidate: candidate["test_cases"][1].update(n_active=1.5), "test_cases[1].n_active is 1.5, not a whole number from 0"),
        (lambda candidate: candidate["test_cases"][1].update(case=True), "test_cases[1].case is True, not a whole number from 0"),
        (lambda candidate: candidate["test_cases"][1].pop("active"), "test_cases[1].active is missing"),
        (lambda candidate: candidate["test_cases"][5]["active"][0].update(activation="x"), "test_cases[5].active[0].activation is 'x', not a finite number"),
        (lambda candidate: candidate["test_cases"][5]["active"].append(7), "test_cases[5].active[3] is 7, not an object with index and activation"),
    ],
)
def test_what_is_no_candidate_is_an_error(change: Any, problem: str) -> None:
    candidate = right()
    change(candidate)
    with pytest.raises(DataError) as caught:
        oracle.compare(VECTORS, candidate)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda vectors: vectors.update(test_cases=[]), "test_cases is empty"),
        (lambda vectors: vectors["notes"].pop("gate-equality"), "notes is without the flag 'gate-equality' of case 0"),
        (lambda vectors: vectors["notes"].update({"zero-pre": {}}), "notes.zero-pre.catches is missing"),
        (lambda vectors: vectors.pop("weights"), "weights is missing"),
        (lambda vectors: vectors.update(n_features=100), "lists other features than it counts, or than there are"),
        (lambda vectors: vectors["test_cases"][6].update(n_active=3), "lists other features than it counts, or than there are"),
    ],
)
def test_what_is_no_vectors_is_an_error(change: Any, problem: str) -> None:
    vectors = copy.deepcopy(VECTORS)
    change(vectors)
    with pytest.raises(DataError) as caught:
        compare_documents(vectors, right())
    assert problem in str(caught.value)


@pytest.mark.parametrize("command", [("verify",), ("report",)])
def test_other_commands_say_that_these_are_vectors(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "vectors.json").write_text(json.dumps(VECTORS))
    result = run(*command, str(tmp_path / "vectors.json"), cwd=tmp_path)
    assert result.returncode == 4 and result.stderr.count("\n") == 1
    assert "holds exact vectors, not a reference: `compare` alone reads them" in result.stderr


def test_explain_is_about_references(tmp_path: Path) -> None:
    (tmp_path / "vectors.json").write_text(json.dumps(VECTORS))
    result = run("compare", str(tmp_path / "vectors.json"), str(tmp_path / "vectors.json"), "--explain")
    assert result.returncode == 2 and "leave it out" in result.stderr


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_bits_are_those_of_the_float32(value: float) -> None:
    with np.errstate(over="ignore"):
        assert bits(value) == np.float64(value).astype("<f4").tobytes()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Those of `compare` on vectors and answers that agree."""
    (tmp_path / "vectors.json").write_bytes(oracle.exact_vectors(NAME)[NAME]["vectors.json"])
    (tmp_path / "candidate.json").write_text(json.dumps(right()))
    return ["compare", str(tmp_path / "vectors.json"), str(tmp_path / "candidate.json")]


def test_it_takes_no_numpy(arguments: list[str]) -> None:
    program = (
        f"import sys\nfrom oracle.terminal.commands import main\ncode = main({arguments!r})\n"
        "print([name for name in ('numpy', 'yaml', 'requests') if name in sys.modules])\nsys.exit(code)"
    )
    result = python("-c", program)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


@pytest.mark.slow
@pytest.mark.alone
def test_it_takes_little_time(arguments: list[str]) -> None:
    """The processor's time. Where a machine is slower, or shared, a bare Python is so too, and the bar is as many times as high."""
    compares, bares = [], []
    for _ in range(11):
        compares.append(processor_seconds("-m", "oracle", *arguments))
        bares.append(processor_seconds("-c", "pass"))
    whole, bare = statistics.median(compares), statistics.median(bares)
    assert whole <= MOST_SECONDS * max(1, bare / BARE_SECONDS), (whole, bare)


def processor_seconds(*arguments: str) -> float:
    """What a Python that ends well takes of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
