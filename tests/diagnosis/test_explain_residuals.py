# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mistakes planted in ports of references whose residuals are scaled, or come from a file: found by the cases' own tolerances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.checking.compare import compare
from oracle.references.reading import parse_candidate
from tests.support.planting import MAY_BE_SILENT, MAY_CHANGE_NOTHING, PLANTS, World, candidate

SHAPE = 64, 512
KINDS = ("outliers", "positive mean", "correlated", "hundreds")
OF_THE_GENERATOR = [name for name, (step, _) in PLANTS.items() if step in ("source", "sequence")]
OF_COUNTS = ("gate", "activation", "threshold layer", "count")  # steps that may change nothing but counts


def rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((3, SHAPE[0]))
    if kind == "outliers":
        values[:, [1, 32]] *= 1000
    elif kind == "positive mean":
        values = np.abs(values) + 1
    elif kind == "correlated":
        values += 3 * np.repeat(rng.standard_normal((3, 8)), 8, axis=1)
    else:
        values = 300 * values + 100
    return values.astype(np.float32)


def judged(world: World, names: list[str]) -> dict[str, str]:
    return {name: outcome for name in names if (outcome := world.judge((name,))) not in ("first", "equal")}


def check(world: World, outcomes: dict[str, str]) -> None:
    """Who agrees has printed what a right port prints: on large residuals no feature is between a threshold and its half. Where there are
    a few such, or one feature is left out, a few counts are off, which names nothing."""
    for name, outcome in outcomes.items():
        if outcome.startswith("not found") and "values are right; the count is not" in outcome:
            assert PLANTS[name][0] in OF_COUNTS, (name, outcome)
            continue
        assert outcome == "agrees", (name, outcome)
        assert (name,) in MAY_CHANGE_NOTHING | MAY_BE_SILENT or PLANTS[name][0] in (*OF_COUNTS, "bias"), name
        assert world.gives((), candidate(world.weights, (name,), **world.residuals))


def of_rows(folder: Path, kind: str, step: int) -> None:
    """Every `step`-th of the mistakes, others of each kind."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "residuals.npy", rows(kind))
    world = World.make(folder, 1, SHAPE, residuals=str(folder / "residuals.npy"))
    assert world.explain(())[1] is None
    names = [name for name in PLANTS if name not in OF_THE_GENERATOR]
    check(world, judged(world, names[KINDS.index(kind) % step :: step]))


@pytest.mark.parametrize("kind", KINDS)
def test_mistakes_are_named_of_rows(tmp_path: Path, kind: str) -> None:
    of_rows(tmp_path, kind, 12)


@pytest.mark.slow
def test_every_mistake_is_named_of_rows_and_of_scaled_residuals(tmp_path: Path) -> None:
    for kind in KINDS:
        of_rows(tmp_path / kind, kind, 1)
    for scale in (10.0, 1024.0):
        world = World.make(tmp_path / str(scale), 1, SHAPE, scale=scale)
        check(world, judged(world, list(PLANTS)))


@pytest.mark.parametrize("scale", [10.0, 1024.0])
def test_mistakes_are_named_of_scaled_residuals(tmp_path: Path, scale: float) -> None:
    world = World.make(tmp_path, 1, SHAPE, scale=scale)
    assert world.explain(())[1] is None
    check(world, judged(world, [*PLANTS][int(scale) % 12 :: 12]))
    explanation = world.explain_answers(candidate(world.weights, (), scale=1))
    assert explanation is not None and [fit.name for fit in explanation.named] == ["scale left out"]
    explanation = world.explain_answers(candidate(world.weights, ("stream + 1",), scale=1))
    assert explanation is not None and not explanation.named  # seed and scale are one field: two slips of it are not tried


def test_no_mistake_of_the_generator_is_tried_of_rows(tmp_path: Path) -> None:
    """The rows are what seeds give, and the answers those of other seeds: no seed stands in the reference."""
    from oracle.arithmetic.residual import residual

    np.save(tmp_path / "residuals.npy", np.stack([residual(100 * i, 0, SHAPE[0]) for i in range(3)]))
    world = World.make(tmp_path, 1, SHAPE, residuals=str(tmp_path / "residuals.npy"))
    other: dict[str, Any] = candidate(world.weights, (), rows=np.stack([residual(100 * i + 1, 0, SHAPE[0]) for i in range(3)]))
    explanation = world.explain_answers(other)
    assert explanation is not None and not explanation.named
    verdicts = compare(world.reference, parse_candidate(candidate(world.weights, (), scale=1), 10))
    assert not verdicts.agrees and len(verdicts.extra) == 9 and str(verdicts.cases[0].id) == "layer 0 row 0"  # seeds are no rows
