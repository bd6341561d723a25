# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mistakes of ports of every schema: those that can be made there are named first, the others are not tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import worlds
from tests.support.hub import Hub
from tests.support.planting import PLANTS, World, candidate, check, plant_all
from tests.support.process import run

# Of what there is no threshold for, and no copy of W_dec in the file, and no folder of another L0.
OF_THRESHOLD = {
    "relu", "threshold halved", "threshold doubled", "exp(threshold)", "threshold subtracted", "soft threshold", "relu6", "threshold times 1.1",
    "threshold of the layer below", "threshold of the layer above", "n_active of positive",
}  # fmt: skip
WEIGHTS_IN_16_BITS = {
    "weights in bfloat16", "weights cut to bfloat16", "weights in float16", "weights in TF32", "b_enc in bfloat16", "b_enc in float16",
}  # fmt: skip

KINDS: tuple[dict[str, Any], ...] = (
    {"schema": "PltBundle", "threshold": False, "dtype": "bfloat16", "skip": True},
    {"schema": "PltBundle"},
    {"schema": "CltSplit", "threshold": False},
    {"schema": "CltSplit", "dtype": "bfloat16"},
    {"schema": "GemmaScope2", "dtype": "bfloat16"},
    {"schema": "GemmaScope2", "skip": True},
    {"schema": "Sae", "threshold": False},
    {"schema": "Sae"},
)


def world_of(kind: dict[str, Any], folder: Path, **shape: int) -> World:
    return World.of(folder, worlds.make(n_layers=4, **{"d_model": 24, "n_features": 160} | shape, **kind))


def impossible(kind: dict[str, Any]) -> set[str]:
    """The mistakes that cannot be made, or change nothing, in weights of a kind."""
    names = {"other L0 (1)"}
    if not kind.get("threshold", True):
        names |= OF_THRESHOLD | {"before the gate"}  # of plain ReLU the largest ten are the same before and after
    if kind.get("dtype") == "bfloat16":
        names |= WEIGHTS_IN_16_BITS
    return names | ({"W_dec for W_enc"} if kind["schema"] == "CltSplit" else set())


@pytest.fixture(scope="module")
def of_each(tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    return [world_of(kind, tmp_path_factory.mktemp("world")) for kind in KINDS]


def test_what_can_be_planted_is_named_first(of_each: list[World]) -> None:
    for place, (kind, world) in enumerate(zip(KINDS, of_each)):
        assert world.explain(())[1] is None
        names = [name for name in PLANTS if name not in impossible(kind)]
        # a few of the table each; the slow test has all in all
        check(plant_all([world], [(name,) for name in names[place::40]]))


@pytest.mark.slow
def test_every_mistake_in_every_schema(tmp_path: Path) -> None:
    for place, kind in enumerate(KINDS):
        for n_features in (160, 20):  # fewer features than inputs too
            world = world_of(kind, tmp_path / f"{place}-{n_features}", n_features=n_features)
            assert world.explain(())[1] is None
            print(kind, n_features)
            check(plant_all([world], [(name,) for name in PLANTS if name not in impossible(kind)]))


def test_nothing_is_said_of_a_threshold_that_there_is_not(of_each: list[World]) -> None:
    for kind, world in zip(KINDS, of_each):
        if kind.get("threshold", True):
            continue
        answers = candidate(world.weights, ())
        for case in answers["test_cases"]:
            case["n_active"] += 1  # the right numbers, and one that none of the table's rows gives
        explanation = world.explain_answers(answers)
        assert explanation is not None and not explanation.named and not explanation.also


def test_neighbours_of_every_schema_are_fetched(hub: Hub, tmp_path: Path) -> None:
    for schema in worlds.SCHEMAS:
        repo = worlds.make(schema, n_layers=4)
        repo.add_to(hub)
        cache = tmp_path / schema
        source = ("--mirror", hub.url, "--cache-dir", str(cache))
        reference, port = tmp_path / f"{schema}.json", tmp_path / f"{schema}-port.json"
        paths = tuple(part for path in list(repo.files[worlds.OWN_REPO])[1:2] for part in ("--path", path))
        which = ("--repo", repo.repo, *(paths if schema == "Sae" else ("--layers", "1")))
        assert run("generate", *which, "-o", str(reference), *source).returncode == 0
        weights = {
            layer: {**own, "W_enc": own["w_enc"].T, "threshold": own["threshold"]} for layer, own in repo.weights.items()
        }
        port.write_text(json.dumps(candidate(weights, ("layer above",), layers=(1,))))
        command = ("compare", str(reference), str(port), "--explain", *source)
        offline = run(*command, "--offline")
        assert offline.returncode == 1 and "no known mistake" in offline.stderr, offline.stderr
        assert "not in the cache: layer 0, layer 2" in offline.stderr, offline.stderr
        ran = run(*command)
        assert ran.returncode == 1 and "  layer above: " in ran.stderr, (schema, ran.stderr)


def test_another_l0_of_gemma_scope_2(tmp_path: Path) -> None:
    small, big = (worlds.make("GemmaScope2", seed=seed, n_layers=4) for seed in (0, 1))
    for path, content in big.files[worlds.OWN_REPO].items():
        small.files[worlds.OWN_REPO][path.replace("l0_small", "l0_big")] = content
    world = World.of(tmp_path, small)
    for layer in small.weights:
        world.weights["l0", layer] = {
            **big.weights[layer], "W_enc": big.weights[layer]["w_enc"].T, "W_dec": big.weights[layer]["w_dec"][:, 0]
        }
    check(plant_all([world], [("other L0 (1)",)]))
