# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mistakes in some of the cases, several at once, and what is said where there is too little to name any."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.arithmetic.residual import residual
from oracle.diagnosis.explanation import Explanation
from oracle.job import Job, Origin
from tests.support.hub import Hub
from tests.support.planting import World, candidate, make_cache, make_weights, mixed
from tests.support.planting_steps import BF16
from tests.support.process import run
from tests.support.small_scope import CURATION_REPO, fill

Case = dict[str, Any]
SHAPES = ((24, 96), (64, 512), (130, 70))
IN_VALUES = ("b_enc left out", "b_dec subtracted", "weights in bfloat16", "residual layer-normalised", "seed + 1", "threshold subtracted", "top k by index")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"), 3, (64, 512))


def explained(world: World, names_of: Callable[[int, int], Sequence[str]]) -> Explanation:
    explanation = world.explain_answers(mixed(world.weights, names_of, world.layers))
    assert explanation is not None
    return explanation


def edited(world: World, edit: Callable[[Case, int], None]) -> Explanation:
    """A right port's answers, edited: the explanation of these."""
    answers = candidate(world.weights, ())
    for number, case in enumerate(answers["test_cases"]):
        edit(case, number)
    explanation = world.explain_answers(answers)
    assert explanation is not None
    return explanation


# --- the failing cases count --------------------------------------------------------------------------------------------


def test_of_one_layer(world: World) -> None:
    explanation = explained(world, lambda layer, i: ("b_enc left out",) if layer == 1 else ())
    assert [fit.name for fit in explanation.named] == ["b_enc left out"] and explanation.examined == 3
    assert explanation.lines == [
        "the 3 cases that differ, all of layer 1, are those of:",
        "  b_enc left out: b_enc is not added",
        f"  3 of 3 cases matched, largest difference left {explanation.named[0].max_difference:.3g}",
        "the other 6 cases are right",
    ]


def test_of_one_residual(world: World) -> None:
    explanation = explained(world, lambda layer, i: ("b_dec added",) if i == 2 else ())
    assert [fit.name for fit in explanation.named] == ["b_dec added"]
    assert explanation.lines[0] == "the 3 cases that differ, residual 2 of each of 3 layers, are those of:"


def test_of_one_case(world: World) -> None:
    explanation = explained(world, lambda layer, i: ("b_enc twice",) if (layer, i) == (2, 1) else ())
    assert [fit.name for fit in explanation.named] == ["b_enc twice"] and "  weak: it rests on one case" in explanation.lines
    assert explanation.lines[0] == "the 1 case that differs, layer 2 seed 102, is those of:" and explanation.lines[-1] == "the other 8 cases are right"


def test_several_causes_are_told_one_by_one(world: World) -> None:
    causes = {0: ("b_enc left out",), 1: ("seed + 1",), 2: ("residual in bfloat16", "b_enc twice")}
    explanation = explained(world, lambda layer, i: causes[layer])
    assert {fit.mistakes for fit in explanation.named} == {("b_enc left out",), ("seed + 1",), ("b_enc twice", "residual in bfloat16")}
    assert all(len({case.layer for case in cause.cases}) == 1 and len(cause.cases) == 3 for cause in explanation.causes)


def test_causes_as_json(world: World) -> None:
    explanation = explained(world, lambda layer, i: ("b_enc left out",) if layer == 1 else ("top k by index",) if (layer, i) == (2, 0) else ())
    document = json.loads(json.dumps(explanation.to_dict()))
    assert [document[name] for name in ("cases_examined", "cases_wrong", "cases_right", "unsearched")] == [4, 4, 5, None]
    first, second = document["causes"]
    assert first == {"cases": [{"layer": 1, "seed": 100 * i + 1} for i in range(3)], "named": ["b_enc left out"], "within_tolerance": [], "weak": None}
    assert second["cases"] == [{"layer": 2, "seed": 2}] and second["named"][0] == "top k by index" and second["weak"] == "it rests on one case"
    assert [(fit["name"], fit["mistakes"], fit["cases_matched"]) for fit in document["named"]][:1] == [("b_enc left out", ["b_enc left out"], 3)]


def test_eight_of_nine(world: World) -> None:
    answers = candidate(world.weights, ("b_enc left out",))
    answers["test_cases"][4]["top_10"][3]["activation"] += 0.5
    explanation = world.explain_answers(answers)
    assert explanation is not None and [(fit.name, fit.matched) for fit in explanation.named] == [("b_enc left out", 8)]
    assert explanation.lines[0].startswith("8 of the 9 cases that differ, ") and "1 case more that differs has no known cause" in explanation.lines


def test_of_many_seeds_a_sample(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oracle.diagnosis.explain.MOST_CASES", 6)
    explanation = explained(world, lambda layer, i: ("b_enc left out",))
    assert explanation.examined == 6 and explanation.n_wrong == 9 and "looked at 6 of the 9 cases that differ" in explanation.lines


# --- evidence before names ------------------------------------------------------------------------------------------------


def test_a_list_with_nothing_on_it_names_nothing(world: World) -> None:
    explanation = edited(world, lambda case, _: case.update(n_active=0, top_10=[]))
    assert not explanation.named and explanation.known == ("nothing fires: are the weights loaded?",)


@pytest.mark.parametrize("by", [-2, -1, 1, 2, 7])
@pytest.mark.parametrize("where", [[4], [0, 1, 2], [0, 3, 6]])
def test_counts_that_are_off_by_a_few_are_not_named(world: World, by: int, where: list[int]) -> None:
    explanation = edited(world, lambda case, number: case.update(n_active=case["n_active"] + by * (number in where)))
    assert not explanation.named
    assert explanation.known[0].startswith(f"{9 - len(where)} of 9 cases are right")
    assert explanation.known[1:] == ("values are right; the count is not: look at the gate",)


def test_the_likelier_of_two_is_named_first(world: World) -> None:
    for planted, names in {
        "weights in TF32": ["weights in float16", "weights in TF32"],
        "residual in TF32": ["residual in float16", "residual in TF32"],
        "TF32 products": ["weights and residual in float16", "TF32 products"],
    }.items():
        explanation = world.explain((planted,))[1]
        assert explanation is not None and [fit.name for fit in explanation.named][:2] == names


def test_float16_and_tf32_are_told_apart_where_they_can_be(tmp_path: Path) -> None:
    weights = make_weights(0, 64, 512)
    for name in ("W_enc", "b_enc", "threshold"):  # float16's numbers below 6e-5 are coarser than TF32's
        for arrays in weights.values():
            arrays[name] *= np.float32(1e-3)
    own = World(weights, Job(Origin(CURATION_REPO, cache_dir=make_cache(tmp_path, weights), offline=True), layers=(0, 1, 2), tolerance=1e-6))
    for planted in ("weights in float16", "weights in TF32"):
        explanation = own.explain((planted,))[1]
        assert explanation is not None and {fit.name for fit in explanation.named} == {planted}


# --- what is said where nothing is named ------------------------------------------------------------------------------------


def permute(case: Case) -> None:
    indices = [entry["index"] for entry in case["top_10"]]
    for place, entry in enumerate(case["top_10"]):
        entry["index"] = (indices[place] * 5 + 3) % 512


def rounded_to(case: Case, how: Callable[[float], float]) -> None:
    for entry in case["top_10"]:
        entry["activation"] = how(entry["activation"])


def shaken(case: Case, number: int) -> None:
    for place, entry in enumerate(case["top_10"]):
        entry["activation"] += 0.01 * (1 + (number + place) % 3)


CONCLUSIONS: dict[str, Callable[[Case, int], None]] = {
    "values are right; the count is not: look at the gate": lambda case, _: case.update(n_active=case["n_active"] + 3 + case["seed"] % 5),
    "right values at other indices: look at how features are numbered": lambda case, _: permute(case),
    "all values are bfloat16 numbers": lambda case, number: (shaken(case, number), rounded_to(case, lambda v: float(BF16(np.float32(v)))))[-1],  # type: ignore[func-returns-value]
    "all values are float16 numbers": lambda case, number: (shaken(case, number), rounded_to(case, lambda v: float(np.float16(v))))[-1],  # type: ignore[func-returns-value]
    "printed with 3 decimals": lambda case, _: rounded_to(case, lambda v: round(v, 3)),
    "printed with 1 decimal": lambda case, _: rounded_to(case, lambda v: round(v, 1)),
    "6 of 9 cases are right; the 3 that differ: all of layer 1": lambda case, number: shaken(case, number) if case["layer"] == 1 else None,
}


@pytest.mark.parametrize("line", CONCLUSIONS)
def test_a_conclusion_is_drawn_from_its_rule_alone(world: World, line: str) -> None:
    explanation = edited(world, CONCLUSIONS[line])
    assert not explanation.named and line in explanation.known, explanation.lines
    assert not set(CONCLUSIONS) - {line} & set(explanation.known) or {known for known in explanation.known if known in CONCLUSIONS} == {line}


def test_conclusions_are_silent_where_they_should_be(world: World) -> None:
    explanation = edited(world, shaken)  # wrong values, all cases, float32: nothing but how they are related
    assert not explanation.named and [line.split(" ")[0] for line in explanation.known] == ["of", "printed"]


FACTOR = "the counts fit a threshold 1.1 times as large"


def test_the_factor_of_a_threshold_is_found(tmp_path: Path) -> None:
    """Named where counts that are off by many leave little to chance, a line where they leave more, nothing where each is off by one."""
    for seed, shape, names, known in ((0, (64, 512), ["threshold times 1.1"], False), (1, (64, 512), [], True), (0, (24, 96), [], False)):
        explanation = World.make(tmp_path / f"{seed}-{shape[0]}", seed, shape).explain(("threshold times 1.1",))[1]
        assert explanation is not None and [fit.name for fit in explanation.named] == names, explanation.lines
        assert (FACTOR in explanation.known) == known, explanation.lines


# --- without weights --------------------------------------------------------------------------------------------------------


def test_without_weights_the_comparison_stands(hub: Hub, tmp_path: Path) -> None:
    fill(hub)
    path, answers, page = tmp_path / "reference.json", tmp_path / "candidate.json", tmp_path / "page.html"
    assert run("--layers", "1", "-o", str(path), "--mirror", hub.url, "--cache-dir", str(tmp_path / "cache")).returncode == 0
    cases = json.loads(path.read_text())["test_cases"]
    cases[0]["n_active"] += 5
    answers.write_text(json.dumps({"test_cases": cases}))
    nowhere = (str(path), str(answers), "--explain", "--offline", "--cache-dir", str(tmp_path / "none"))
    ran = run("compare", *nowhere)
    told = ran.stdout + ran.stderr
    assert ran.returncode == 1 and "n_active" in told and "DISAGREES" in told and "2 same, 1 differs" in told
    assert re.search("the cause was not looked for: .*layer_1", told)
    document = json.loads(run("compare", *nowhere, "--format", "json").stdout)
    assert [case["status"] for case in document["test_cases"]] == ["differs", "same", "same"]
    explanation = document["explanation"]
    assert "layer_1" in explanation["unsearched"] and explanation["causes"] == explanation["named"] == [] and explanation["cases_examined"] == 0
    junit = run("compare", *nowhere, "--format", "junit")
    assert junit.returncode == 1 and 'failures="1"' in junit.stdout and "the cause was not looked for: " in junit.stdout
    ran = run("report", *nowhere, "-o", str(page))
    assert ran.returncode == 0 and "he cause was not looked for: " in page.read_text() and "n_active" in page.read_text()
    assert ran.stderr.startswith("the cause was not looked for: ")


# --- in bulk ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_case_one_layer_half_of_the_layers_over_twenty_worlds(tmp_path: Path) -> None:
    where: dict[str, Callable[[int, int], bool]] = {
        "one case": lambda layer, i: (layer, i) == (1, 2), "one layer": lambda layer, i: layer == 2, "half of the layers": lambda layer, i: layer < 2
    }  # fmt: skip
    figures: dict[tuple[str, str], int] = {}
    for seed in range(20):
        own = World.make(tmp_path / str(seed), seed, SHAPES[seed % 3], range(4))
        for place, is_there in where.items():
            for name in IN_VALUES:
                explanation = explained(own, lambda layer, i, name=name, is_there=is_there: (name,) if is_there(layer, i) else ())  # type: ignore[misc]
                assert explanation.causes, (seed, place, name, explanation.lines)
                assert explanation.causes[0].named[0].name == name and len(explanation.causes) == 1, (seed, place, name, explanation.lines)
                figures[place, name] = figures.get((place, name), 0) + 1
    for (place, name), count in figures.items():
        print(f"{place:20} {name:28} named in {count} of 20")
    assert set(figures.values()) == {20}


@pytest.mark.slow
def test_right_ports_raise_no_alarm(tmp_path: Path) -> None:
    """Orders of summation, fused products, float64, and six ways to print them."""
    sums: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "forwards": lambda r, w: np.add.accumulate(r[:, np.newaxis] * w, axis=0)[-1],
        "backwards": lambda r, w: np.add.accumulate((r[:, np.newaxis] * w)[::-1], axis=0)[-1],
        "pairwise": lambda r, w: np.ascontiguousarray((r[:, np.newaxis] * w).T).sum(axis=1),
        "fused": lambda r, w: fused(r, w),
        "float64": lambda r, w: (r.astype(np.float64) @ w.astype(np.float64)).astype(np.float32),
        "lanes": lambda r, w: sum(np.add.accumulate(r[lane::4, np.newaxis] * w[lane::4], axis=0)[-1] for lane in range(4)),
    }
    prints: dict[str, Callable[[np.float32], float]] = {
        "shortest": lambda v: float(str(v)), "of float64": float, "9 digits": lambda v: float(f"{v:.9g}"), "8 decimals": lambda v: float(f"{v:.8f}"),
        "exponent": lambda v: float(f"{v:.10e}"), "5 decimals": lambda v: float(f"{v:.5f}"),
    }  # fmt: skip
    n = 0
    for seed, shape in enumerate(SHAPES):
        own = World.make(tmp_path / str(seed), seed, shape)
        for name, how in sums.items():
            for number, text in enumerate(prints.values()):
                if (n_of := number + len(name)) % 2 and seed:  # every way in one world, half of them in the others
                    continue
                answers = {"test_cases": [right_case(own, layer, i, how, text) for layer in range(3) for i in range(3)]}
                assert own.explain_answers(answers) is None, (shape, name, n_of)
                n += 1
    print(f"{n} right ports, no alarm")
    assert n >= 60


def fused(r: np.ndarray, w: np.ndarray) -> np.ndarray:
    total = np.zeros(w.shape[1], np.float32)
    for value, row in zip(r.astype(np.float64), w.astype(np.float64)):
        total = (value * row + total).astype(np.float32)
    return total


def right_case(own: World, layer: int, i: int, how: Callable[..., np.ndarray], text: Callable[[np.float32], float]) -> Case:
    arrays = own.weights[layer]
    pre = (how(residual(100 * i + layer, layer, len(arrays["W_enc"])), arrays["W_enc"]) + arrays["b_enc"]).astype(np.float32)
    on = np.flatnonzero(pre > np.maximum(arrays["threshold"], 0))
    top = on[np.lexsort((on, -pre[on]))][:10]
    return {"layer": layer, "seed": 100 * i + layer, "n_active": len(on), "top_10": [{"index": int(j), "activation": text(pre[j])} for j in top]}
