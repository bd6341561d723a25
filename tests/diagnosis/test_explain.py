# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every mistake of the table, planted in a port of the tests' own, is named first; a right port is never explained."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from oracle.arithmetic.residual import residual
from oracle.checking.compare import compare
from oracle.diagnosis.explain import explain
from oracle.diagnosis.mistakes import MISTAKES
from oracle.diagnosis.port import DECODER_FIELDS
from oracle.references.reading import parse_candidate
from tests.diagnosis import test_explain_chain, test_explain_scopes
from tests.support.hub import Hub
from tests.support.independent import float64_encode
from tests.support.planting import PLANTS, World, candidate, check, plant_all
from tests.support.planting_steps import ESTIMATED
from tests.support.process import run
from tests.support.small_scope import fill, layer_arrays

TOGETHER = sorted(PLANTS.keys() - {row.name for row in MISTAKES if row.alone} - set(ESTIMATED))  # what is tried in pairs
SHAPES = ((24, 96), (64, 512), (130, 70))


def table_names() -> list[str]:
    return [row.name for row in MISTAKES if not row.fields <= set(DECODER_FIELDS)] + ["other L0 (1)"]


def test_every_row_is_planted() -> None:
    # The first is planted in test_trust.py, the second in test_explain_residuals.py.
    elsewhere = {"negative let through", "scale left out", *test_explain_scopes.PLANTED, *(name for *_, name in test_explain_chain.PLANTED)}
    assert set(table_names()) - elsewhere == set(PLANTS) - elsewhere - set(ESTIMATED)
    assert len(table_names()) == len(set(table_names()))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    return [World.make(tmp_path_factory.mktemp("world"), 1, shape) for shape in SHAPES]


def test_every_mistake_is_named_first(worlds: list[World]) -> None:
    for number, name in list(enumerate(PLANTS))[::14]:  # a few of them, each in one shape; the slow test below has them all in every shape
        check(plant_all([worlds[number % len(worlds)]], [(name,)]))


def random_pairs(seed: int, how_many: int, world: World) -> list[tuple[str, ...]]:
    """Pairs of different steps of which both show in what is printed; a port that prints no feature tells nothing."""
    rng = random.Random(seed)
    pairs: list[tuple[str, ...]] = []
    while len(pairs) < how_many:
        pair = tuple(rng.sample(TOGETHER, 2))
        if PLANTS[pair[0]][0] != PLANTS[pair[1]][0] and pair not in pairs:
            answers = candidate(world.weights, pair)
            prints = any(case["top_10"] for case in answers["test_cases"])
            if prints and not any(world.gives(single, answers) for single in (pair[:1], pair[1:], ())):
                pairs.append(pair)
    return pairs


def test_random_pairs_are_named_first(worlds: list[World]) -> None:
    for number, world in enumerate(worlds):
        check(plant_all([world], random_pairs(number, 1, world)))


def test_a_right_port_is_never_explained(worlds: list[World]) -> None:
    for world in worlds:
        answers, explanation = world.explain(())
        assert explanation is None
        port = parse_candidate(answers, world.reference.top_k)
        nothing = explain(world.reference, port, compare(world.reference, port), world.recorded_weights)
        assert not nothing.named and "nothing to explain" in nothing.known[0]


@pytest.mark.slow
def test_over_more_worlds(tmp_path: Path) -> None:
    """Of each shape a world: all mistakes, and twenty pairs."""
    for number, shape in enumerate(SHAPES, 4):
        world = World.make(tmp_path / str(number), number, shape)
        print(f"d_model, n_features = {shape}")
        assert world.explain(())[1] is None
        check(plant_all([world], [*((name,) for name in PLANTS), *random_pairs(100 + number, 20, world)]))


# --- honest limits ------------------------------------------------------------------------------------------------


def test_a_mistake_that_is_not_in_the_table(worlds: list[World]) -> None:
    world = worlds[0]
    answers = candidate(world.weights, ())
    for case in answers["test_cases"]:
        for entry in case["top_10"]:
            entry["activation"] = 1.25 * entry["activation"] + 0.5
    explanation = world.explain_answers(answers)
    assert explanation is not None and not explanation.named and explanation.examined == 9
    assert "rank correlation 1.000" in explanation.known[0]
    assert "1.25 * right + 0.5" in explanation.known[1]


def test_noise_is_not_explained(worlds: list[World]) -> None:
    rng = random.Random(5)
    for world in worlds:
        answers = candidate(world.weights, ())
        for case in answers["test_cases"]:
            for entry in case["top_10"]:
                entry["activation"] += rng.gauss(0, 0.05)
        explanation = world.explain_answers(answers)
        assert explanation is not None and not explanation.named and explanation.known


def test_one_wrong_case_of_a_right_port_is_no_known_mistake(worlds: list[World]) -> None:
    answers = candidate(worlds[0].weights, ())
    answers["test_cases"][4]["n_active"] += 7
    explanation = worlds[0].explain_answers(answers)
    assert explanation is not None and not explanation.named


def test_missing_cases_have_no_cause(worlds: list[World]) -> None:
    answers = candidate(worlds[0].weights, (), layers=(0, 2))
    explanation = worlds[0].explain_answers(answers)
    assert explanation is not None and not explanation.named and "missing" in explanation.known[0]


def test_a_mistake_is_named_from_the_cases_that_are_there(worlds: list[World]) -> None:
    answers = candidate(worlds[0].weights, ("b_enc left out",), layers=(1,), seeds=2)
    explanation = worlds[0].explain_answers(answers)
    assert explanation is not None and [fit.name for fit in explanation.named] == ["b_enc left out"] and explanation.named[0].matched == 2


def test_the_same_numbers_have_all_their_names(worlds: list[World]) -> None:
    # In layer 0 the stream is 0, so that streams 0 + 1 and 1 are one.
    answers = candidate(worlds[0].weights, ("stream + 1",), layers=(0,))
    explanation = worlds[0].explain_answers(answers)
    assert explanation is not None and {fit.name for fit in explanation.named} == {"stream + 1", "stream 1"}


def test_a_port_that_prints_nothing(worlds: list[World]) -> None:
    answers = candidate(worlds[0].weights, ())
    for case in answers["test_cases"]:
        case.update(n_active=0, top_10=[])
    explanation = worlds[0].explain_answers(answers)
    assert explanation is not None and not explanation.named


def test_neighbours_are_fetched_where_nothing_else_fits(hub: Hub, tmp_path: Path) -> None:
    fill(hub)
    source = ("--mirror", hub.url, "--cache-dir", str(tmp_path / "cache"))
    path, answers = tmp_path / "reference.json", tmp_path / "candidate.json"
    assert run("--layers", "1", "-o", str(path), *source).returncode == 0
    cases = []
    for seed in (1, 101, 201):
        encoding = float64_encode(layer_arrays(2), residual(seed, 1, 24), 10)
        top = [{"index": index, "activation": value} for index, value in encoding["top"]]
        cases.append({"layer": 1, "seed": seed, "n_active": encoding["n_active"], "top_10": top})
    answers.write_text(json.dumps({"test_cases": cases}))
    command = ("compare", str(path), str(answers), "--explain", *source)
    offline = run(*command, "--offline")
    assert offline.returncode == 1 and "no known mistake" in offline.stdout
    assert "not tried, because their weights are not in the cache: layer 0, layer 2" in offline.stdout
    ran = run(*command)
    assert ran.returncode == 1 and "layer above: " in ran.stdout and ran.stderr.count("fetched ") == 2, ran.stderr
    assert run(*command, "--offline").stdout.count("layer above: ") == 1  # now they are in the cache
