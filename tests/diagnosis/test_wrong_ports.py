# SPDX-License-Identifier: MIT OR Apache-2.0
"""The table of wrong ports, over three shapes and at full shape: which are caught, which named, and none of them wrongly.

A port is caught where it fails; named where a mistake is named that gives its numbers; silent where none is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.job import Job, Origin
from tests.bench import full_shape as bench
from tests.support import planting_decoder, worlds
from tests.support.planting import COMMIT, CURATION_REPO, PLANTS, WEIGHTS_REPO, Arrays, World, write_cache
from tests.support.planting_decoder import Decoders
from tests.support.planting_steps import of_constants
from tests.support.planting_unlisted import UNLISTED

SHAPES = ((24, 96), (64, 512), (130, 70))
CAUGHT, NAMED, SILENT, WRONG, PASSES = "caught", "named", "silent", "wrongly named", "passes"
Outcomes = dict[str, str]
DECODER_KINDS: tuple[dict[str, Any], ...] = ({"schema": "GemmaScopeNpz"}, {"schema": "PltBundle", "skip": True}, {"schema": "CltSplit"})


def outcome_of(judged: str) -> str:
    """Of judge's word."""
    if judged in ("first", "equal"):
        return NAMED
    return PASSES if judged == "agrees" else SILENT if judged.startswith("not found") else f"{WRONG}: {judged}"


def unlisted(world: World, name: str) -> str:
    answers, explanation = world.explain((name,))
    if explanation is None:
        return PASSES
    fits = [(fit.mistakes, cause.cases) for cause in explanation.causes for fit in cause.named]
    wrong = [names for names, cases in fits if not all(name in PLANTS or of_constants(name) for name in names) or not world.gives(names, answers, cases)]
    return f"{WRONG}: {wrong}" if wrong else NAMED if fits else SILENT


def of_encoders(world: World, step: int = 1) -> Iterator[tuple[str, str]]:
    for name in [*PLANTS][::step]:
        yield name, outcome_of(world.judge((name,)))
    for name in [*UNLISTED][::step]:
        yield name, unlisted(world, name)


def of_decoders(repos: Collection[Decoders], step: int = 1) -> Iterator[tuple[str, str]]:
    """Each mistake in the first of the repos that have what it takes."""
    for name in [*planting_decoder.PLANTS][::step]:
        for repo in repos:
            if name in repo.possible():
                yield f"decoder: {name}", outcome_of(repo.judge((name,)))
                break


def summed_up(shape: str, outcomes: Outcomes) -> str:
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    caught = len(outcomes) - counts[PASSES]
    return (
        f"{shape}: {len(outcomes)} wrong ports, {caught} caught, {counts[NAMED]} named, {counts[SILENT]} silent, {counts[WRONG]} wrongly named; "
        f"{counts[PASSES]} give right numbers"
    )


def show(table: dict[str, Outcomes]) -> None:
    names = list(dict.fromkeys(name for outcomes in table.values() for name in outcomes))
    print(f"\n{'':45}" + "".join(f"{shape:16}" for shape in table))
    for name in names:
        print(f"{name:45}" + "".join(f"{outcomes.get(name, ''):16}" for outcomes in table.values()))
    for shape, outcomes in table.items():
        print(summed_up(shape, outcomes))


def check(table: dict[str, Outcomes]) -> None:
    show(table)
    assert not {(shape, name): outcome for shape, outcomes in table.items() for name, outcome in outcomes.items() if outcome.startswith(WRONG)}


def decoders_of(folder: Path, shape: tuple[int, int]) -> list[Decoders]:
    return [Decoders.make(folder / f"decoders-{place}", 3, d_model=shape[0], n_features=shape[1], **kind) for place, kind in enumerate(DECODER_KINDS)]


def test_a_sample_of_wrong_ports(tmp_path: Path) -> None:
    """The ports that no row describes; those that a row does are test_explain.py's."""
    world = World.make(tmp_path, 3, SHAPES[0])
    check({"24 x 96": {name: unlisted(world, name) for name in [*UNLISTED][::12]}})


@pytest.mark.slow
def test_wrong_ports_over_three_shapes(tmp_path: Path) -> None:
    table: dict[str, Outcomes] = {}
    for shape in SHAPES:
        folder = tmp_path / str(shape[0])
        table[" x ".join(map(str, shape))] = dict([*of_encoders(World.make(folder, 3, shape)), *of_decoders(decoders_of(folder, shape))])
    check(table)
    assert all(len(outcomes) >= 170 for outcomes in table.values())


# --- at full shape ----------------------------------------------------------------------------------------------------------


def linked(folder: Path, weights: Path) -> str:
    """A cache with three layers and another L0 of the bench's files, linked to."""
    entries = "".join(f'  - "hf://{WEIGHTS_REPO}/layer_{layer}/width_16k/average_l0_{layer + 5}/params.npz"\n' for layer in range(3))
    origin = write_cache(folder, [(CURATION_REPO, "config.yaml", f"model_kind: transcoder_set\ntranscoders:\n{entries}".encode())])
    place = folder / f"models--{WEIGHTS_REPO.replace('/', '--')}"
    for layer, l0, file in ((0, 5, 0), (1, 6, 12), (2, 7, 25), (1, 106, 0)):
        pointer = place / "snapshots" / COMMIT / f"layer_{layer}/width_16k/average_l0_{l0}/params.npz"
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.symlink_to((weights / bench.path_of(file)).resolve())
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return origin


def full_shape(folder: Path, weights: Path) -> tuple[World, Decoders]:
    """Two residuals of a layer, and it decoded, with other layers below and above."""
    arrays: dict[Any, Arrays] = {}
    for layer, file in enumerate((0, 12, 25)):
        with np.load(weights / bench.path_of(file)) as content:
            arrays[layer] = {name: content[name] for name in content.files}
    arrays["l0", 1] = arrays[0]
    repo = worlds.World("GemmaScopeNpz", WEIGHTS_REPO, [], 3)
    for layer in range(3):
        own = arrays[layer]
        repo.weights[layer] = {"w_enc": own["W_enc"].T, "w_dec": own["W_dec"][:, np.newaxis]} | {name: own[name] for name in ("b_enc", "b_dec", "threshold")}
    job = Job(Origin(CURATION_REPO, cache_dir=linked(folder, weights), offline=True), layers=(1,), seeds=2)
    return World(arrays, job), Decoders(repo, replace(job, decode=True), **DECODER_KINDS[0])


@pytest.mark.slow
def test_wrong_ports_at_full_shape(tmp_path: Path) -> None:
    world, decoders = full_shape(tmp_path, bench.weights_in(bench.FOLDER))
    check({"2304 x 16384": dict([*of_encoders(world), *of_decoders([decoders])])})
