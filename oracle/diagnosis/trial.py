# SPDX-License-Identifier: MIT OR Apache-2.0
"""A hypothesis tried out: weight files read as it has it, and what a candidate printed held against what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from oracle.arithmetic.encoder import Matrix
from oracle.arithmetic.residual import residual
from oracle.diagnosis import mistakes
from oracle.diagnosis.mistakes import (
    RESHAPED,
    RESIDUAL_KINDS,
    W_DEC,
    W_ENC,
    WEIGHT_KINDS,
    WEIGHTS,
    Gate,
    Mistake,
    Recipe,
    Selection,
)
from oracle.references.document import Document
from oracle.references.generate import RecordedLayer
from oracle.weights.layer import LayerWeights
from oracle.weights.tensors import Tensor, WeightsError

LINEAR_KINDS = tuple(dict.fromkeys(RESIDUAL_KINDS + WEIGHT_KINDS))


@dataclass
class Case:
    """A case under examination: its right residual float32 [d_model], and the candidate's answer."""

    seed: int
    stream: int
    layer: int
    residual: np.ndarray
    n_active: int
    printed: np.ndarray  # int [n]
    values: np.ndarray  # float64 [n]
    expected: list[tuple[int, float]]


@dataclass
class WeightFile:
    """A weight file, and what an encoder reads of it. `mistake` is None for the right one."""

    mistake: Mistake | None
    weights: LayerWeights
    b_enc: np.ndarray  # float64 [n_features]
    threshold: np.ndarray  # float64 [n_features]
    b_dec: np.ndarray  # float32 [d_model]

    @classmethod
    def open(cls, weights: LayerWeights, mistake: Mistake | None, shape: tuple[int, int]) -> WeightFile:
        """Raises WeightsError where the weights are not of the reference's shape, [d_model, n_features]."""
        if (weights.d_model, weights.n_features) != shape:
            raise WeightsError(
                f"{weights.label}: [d_model, n_features] is {[weights.d_model, weights.n_features]}, by the reference it "
                f"must be {list(shape)}"
            )
        return cls(mistake, weights, weights.b_enc.astype(np.float64), weights.threshold.astype(np.float64), weights.b_dec)

    def matrix(self, array: str) -> Matrix:
        """What is taken for W_enc, as it lies in the file."""
        w_enc = self.weights.w_enc
        if array == W_ENC:
            return w_enc
        if array == W_DEC:
            return Matrix(lambda: self.weights.file.blocks(self._w_dec()), by_feature=True)
        columns = len(self.b_enc) if w_enc.by_feature else len(self.b_dec)
        return Matrix(lambda: regrouped(w_enc.blocks(), columns), by_feature=not w_enc.by_feature)

    def _w_dec(self) -> Tensor:
        tensor = self.weights.tensor(self.weights.schema.w_dec)
        if tensor is None:
            raise WeightsError(f"{self.weights.label}: it has no {self.weights.name_of(self.weights.schema.w_dec)}")
        return tensor

    def products(self, recipes: list[Recipe], factors: list[np.ndarray]) -> list[np.ndarray]:
        """Each recipe's residuals [n, d_model] times its matrix, float64 [n, n_features], the bias not added."""
        made = [np.zeros((len(factor), len(self.b_enc))) for factor in factors]
        wide = [factor.astype(np.float64) for factor in factors]
        by_array: dict[str, dict[Recipe, list[int]]] = {}
        for number, recipe in enumerate(recipes):
            of_array = by_array.setdefault(self.array(recipe), {})
            of_array.setdefault(recipe.only(*WEIGHT_KINDS[1:]), []).append(number)
        for array, of_array in by_array.items():
            stacked = {rounding: np.concatenate([wide[n] for n in numbers]) for rounding, numbers in of_array.items()}
            matrix, start = self.matrix(array), 0
            for block in matrix.blocks():
                span = slice(start, start + len(block))
                start = span.stop
                for rounding, numbers in of_array.items():
                    block64 = mistakes.wrong_weights(rounding, block).astype(np.float64)
                    if matrix.by_feature:
                        product, where = stacked[rounding] @ block64.T, span
                    else:
                        product, where = stacked[rounding][:, span] @ block64, slice(None)
                    for number, rows in zip(numbers, np.split(product, np.cumsum([len(wide[n]) for n in numbers])[:-1])):
                        made[number][:, where] += rows
        return made

    def array(self, recipe: Recipe) -> str:
        return W_ENC if self.mistake else recipe.compute(WEIGHTS, W_ENC)

    def makes(self, recipe: Recipe) -> bool:
        """Whether this is the file that a recipe reads."""
        other = next((m for m in recipe.mistakes if m.kind == WEIGHTS and m.compute not in (RESHAPED, W_DEC)), None)
        return other is self.mistake


def regrouped(blocks: Iterator[np.ndarray], n_columns: int) -> Iterator[np.ndarray]:
    """The same numbers in the same order, in rows of another length."""
    rest = np.empty(0, np.float32)
    for block in blocks:
        flat = np.concatenate([rest, block.reshape(-1)])
        whole = len(flat) - len(flat) % n_columns
        if whole:
            yield flat[:whole].reshape(-1, n_columns)
        rest = flat[whole:]


def there_for(recorded: Document, layers: list[RecordedLayer]) -> set[str]:
    """What there is of what mistakes need."""
    there = {mistakes.GENERATOR} if "residual_generator" in recorded else set()
    with_threshold, with_skip = [], []
    for layer in layers:
        there.add(mistakes.ONE_TARGET if "n_targets" not in layer.schema.w_dec.axes else mistakes.SEVERAL_TARGETS)
        with layer.opened() as (weights, _):
            with_threshold.append(weights.has_threshold)
            with_skip.append(weights.tensor(weights.schema.w_skip) is not None)
    return there | ({mistakes.THRESHOLD} if all(with_threshold) else set()) | ({mistakes.W_SKIP} if any(with_skip) else set())


class Factors:
    """What recipes multiply: makes their residuals, and keeps the generator's."""

    def __init__(self) -> None:
        self._generated: dict[tuple[int, int], np.ndarray] = {}

    def times_columns(
        self, file: WeightFile, cases: list[Case], recipes: list[Recipe], features: np.ndarray
    ) -> dict[Recipe, np.ndarray]:
        """By the linear part of each recipe: residual times matrix, float64 [n_cases, n_features asked for]."""
        linear = {recipe.only(*LINEAR_KINDS) for recipe in recipes}
        by_weights: dict[tuple[str, Recipe], list[Recipe]] = {}
        for recipe in linear:
            by_weights.setdefault((file.array(recipe), recipe.only(*WEIGHT_KINDS[1:])), []).append(recipe)
        columns = {array: file.matrix(array).columns(features) for array in {array for array, _ in by_weights}}
        residuals: dict[tuple[Recipe, int], np.ndarray] = {}
        made = {}
        for (array, rounding), of_weights in by_weights.items():
            matrix = mistakes.wrong_weights(rounding, columns[array]).astype(np.float64)  # [d_model, n]
            for recipe in of_weights:
                made[recipe] = self.residuals(file, cases, recipe, residuals) @ matrix
        return made

    def residuals(
        self, file: WeightFile, cases: list[Case], recipe: Recipe, known: dict[tuple[Recipe, int], np.ndarray]
    ) -> np.ndarray:
        """What a recipe multiplies with, float64 [n_cases, d_model]."""
        part = recipe.only(*RESIDUAL_KINDS)
        rows = []
        for number, case in enumerate(cases):
            if (part, number) not in known:
                known[part, number] = mistakes.wrong_residual(
                    part, (case.seed, case.stream, case.layer), case.residual, file.b_dec, self._generate
                )
            rows.append(known[part, number])
        return np.stack(rows).astype(np.float64)

    def _generate(self, seed: int, stream: int, n: int) -> np.ndarray:
        key = seed, stream
        if key not in self._generated:
            self._generated[key] = residual(seed, stream, n)
        return self._generated[key]


def difference_left(
    pre: np.ndarray,
    gate: Gate,
    selection: Selection,
    listed: np.ndarray,
    values: np.ndarray,
    n_active: int,
    k: int,
    tolerance: float,
) -> float | None:
    """The largest difference of a printed value from what the hypothesis gives; None where rounding cannot explain it.

    `pre` is float64 [n_features], `listed` the features that the candidate printed, with `values`.
    """
    distance = pre - gate.least
    if not np.count_nonzero(distance > tolerance) <= n_active <= np.count_nonzero(distance > -tolerance):
        return None
    if len(listed) != min(k, len(pre) if selection.of_all else n_active) or np.any(listed < 0):
        return None
    if not len(listed):
        return 0.0
    of = {
        "activation": pre - gate.subtracted,
        "pre": pre,
        "|pre|": np.abs(pre),
        "-index": -np.arange(len(pre), dtype=np.float64),
    }
    of["-activation"] = -of["activation"]
    key, value = of[selection.key], of[selection.value]
    left = float(np.max(np.abs(value[listed] - values)))
    pool = np.ones(len(pre), bool)
    if not selection.of_all:
        # A feature at its gate is active iff the candidate has it on its list.
        pool = distance > tolerance
        pool[listed[distance[listed] > -tolerance]] = True
    if left > tolerance or not np.all(pool[listed]):
        return None
    keys = key[pool]
    if len(keys) < len(listed):
        return None
    chosen = np.sort(np.partition(keys, len(keys) - len(listed))[len(keys) - len(listed) :])
    if np.any(np.abs(np.sort(key[listed]) - chosen) > 2 * tolerance):
        return None
    in_order = listed.astype(np.float64) if selection.order == "by index" else key[listed]
    steps = np.diff(in_order) * (-1 if selection.order == "descending" else 1)
    return left if np.all(steps > (0 if selection.order == "by index" else -2 * tolerance)) else None


def related(pairs: list[tuple[float, float]], what: str = "features") -> tuple[str, ...]:
    """What relates the right values of `what` the candidate has to those it printed."""
    if len(pairs) < 3:
        return (f"the candidate printed too few {what} to say more",)
    right, printed = (np.array(column) for column in zip(*pairs))
    ranks = [np.argsort(np.argsort(column)).astype(np.float64) for column in (right, printed)]
    lines = [
        f"of {len(pairs)} printed {what} the right values have rank correlation {np.corrcoef(ranks[0], ranks[1])[0, 1]:.3f} with the printed"
    ]
    if np.ptp(right) > 0:
        ratio, offset = np.polyfit(right, printed, 1)
        rest = float(np.max(np.abs(ratio * right + offset - printed)))
        lines.append(f"printed = {ratio:.6g} * right + {offset:.6g} fits best, with differences of up to {rest:.3g} left")
    return tuple(lines)
