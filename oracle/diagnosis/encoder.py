# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ports' encoders print for the cases of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from oracle.arithmetic.chain import Gated, Largest
from oracle.arithmetic.constants import SEED_STRIDE
from oracle.arithmetic.products import Matrix
from oracle.checking.lists import listed
from oracle.diagnosis.explanation import Match
from oracle.diagnosis.layers import ExaminedLayer
from oracle.diagnosis.mistakes import MISTAKES
from oracle.diagnosis.port import ENCODER_FIELDS, ENCODER_PRODUCT, RESHAPED, W_DEC, Port, Selection, Source, right_index, same
from oracle.diagnosis.products import Roundings, reshaped
from oracle.references.document import Case, Reference
from oracle.references.layer import scaled_residual
from oracle.weights.layer import LayerWeights

MOST_ANSWERS_PER_CASE = 12  # of a long list, that are screened
INDEX_MAPS = (right_index, *(row.value for row in MISTAKES if row.field == "index"))

_generated = lru_cache(maxsize=256)(scaled_residual)  # twenty of each case


class EncoderTrial:
    """Ports' encoders and the lists of a layer's cases. Where `weights` are asked for, they are those that a port takes.

    A product is a row of residuals times W_enc for each case: float64 [n_cases, n_outputs].
    """

    FIELDS, PRODUCT_FIELDS, MATRIX = ENCODER_FIELDS, ENCODER_PRODUCT, "w_enc"
    PRINTED = "features"

    def __init__(self, reference: Reference, layer: ExaminedLayer):
        self.layer, self._reference = layer, reference
        self._tolerances = np.array([reference.tolerance_of(item.case) for item in layer.cases])
        self.n_inputs = reference.input_length
        self._answers = [_indices_and_values(item.answer) for item in layer.cases]
        self._screened, self._right = _Lists(self._answers), _Lists([_indices_and_values(item.case) for item in layer.cases])
        self.prints = len(self._screened.values) > 0
        n = reference.n_features
        features = np.unique(np.concatenate([by(lists.indices, n) for by in INDEX_MAPS for lists in (self._screened, self._right)]))
        self._features = features[features >= 0]

    def matrix(self, array: str, weights: LayerWeights) -> Matrix:
        """What a port takes for W_enc."""
        if array == W_DEC:
            return Matrix(weights.w_dec.blocks, features_first=weights.w_dec.features_first)
        return reshaped(weights.w_enc, weights.input_length, weights.n_features) if array == RESHAPED else weights.w_enc

    def n_outputs(self, weights: LayerWeights) -> int:
        return weights.n_features

    def screened(self, weights: LayerWeights) -> np.ndarray:
        """The outputs that the first values need, ascending."""
        return self._features

    def roundings(self, port: Port) -> Roundings:
        return tuple(rounding for rounding in (port.weight_rounding, port.product_rounding) if rounding is not same)

    def factors(self, port: Port, weights: LayerWeights) -> np.ndarray:
        """What a port multiplies by W_enc, float32 [n_cases, d_model]."""
        rows = []
        for item in self.layer.cases:
            row = item.residual
            if port.source != Source():
                layer, _, seed = item.case.id
                scale = self._reference.residuals.scale if port.source.is_scaled else None
                row = _generated(*port.source.of((seed - layer) // SEED_STRIDE, layer), len(row), scale or 1.0)
            row = port.input(row, weights.encoder_input, weights.b_dec)
            for step in (port.norm, port.residual_rounding, port.product_rounding):
                row = step(row)
            rows.append(row)
        return np.stack(rows)

    def first_values(
        self, port: Port, product: np.ndarray, weights: LayerWeights, *, of_reference: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values that a port prints, those on the candidate's lists or the reference's, and how far apart they may be.

        `product` has the outputs that are screened. A value is NaN where an index stands for no feature.
        """
        lists = self._right if of_reference else self._screened
        features = port.index(lists.indices, weights.n_features)
        places = np.flatnonzero(features >= 0)
        features = features[places]
        pre = pre_activations(port, product[lists.rows[places], np.searchsorted(self._features, features)], weights, features)
        level = port.gate.level(weights.threshold[features].astype(np.float64))
        values = np.full(len(lists.values), np.nan)
        values[places] = _measure(port.selection.value, pre, pre - level.subtracted)
        return values, lists.values, np.where(lists.values == 0, np.inf, self._tolerances[lists.rows])

    def evaluate(self, port: Port, product: np.ndarray, weights: LayerWeights) -> Match | None:
        """How a port matches the whole of every case; None where rounding cannot explain a difference."""
        match = Match()
        for item, row, (indices, values), tolerance in zip(self.layer.cases, product, self._answers, self._tolerances.tolist()):
            fired = firing(port, row, weights)
            printed = port.index(indices, len(fired.pre))
            difference = max_difference(
                fired, port.selection, printed, values, item.answer.n_active, self._reference.top_k, tolerance
            )
            if difference is None:
                return None
            match += Match(difference, frozenset({item.case.id}), int(item.is_wrong))
        return match


class _Lists:
    """The first places of a layer's lists, one behind the other: `rows` are the numbers of their cases."""

    def __init__(self, lists: list[tuple[np.ndarray, np.ndarray]]):
        lists = [(indices[:MOST_ANSWERS_PER_CASE], values[:MOST_ANSWERS_PER_CASE]) for indices, values in lists]
        self.rows = np.repeat(np.arange(len(lists)), [len(values) for _, values in lists])
        self.indices, self.values = (np.concatenate(column) for column in zip(*lists))


def _indices_and_values(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A case's list: int64 [n] and float64 [n]."""
    top = listed(case)
    indices = np.array([index for index, _ in top], object)
    return np.clip(indices, -1, 1 << 62).astype(np.int64), np.array([activation for _, activation in top], np.float64)


def _measure(name: str, pre: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """The key or value of a Selection."""
    places = np.arange(len(pre), dtype=np.float64)
    measures = {"activation": activation, "-activation": -activation, "pre": pre, "|pre|": np.abs(pre), "-index": -places}
    return np.asarray(measures[name])


def max_difference(
    fired: Firing, selection: Selection, printed: np.ndarray, values: np.ndarray, n_active: int, k: int, tolerance: float
) -> float | None:
    """The largest difference of a printed value from what a port prints; None where rounding cannot explain it.

    `printed` are the features on the candidate's list, with `values`.
    """
    pre, distance, off = fired.pre, fired.distance, fired.reach * tolerance
    if not np.count_nonzero(distance > off) <= n_active <= np.count_nonzero(distance > -off):
        return None
    if len(printed) != min(k, len(pre) if selection.of_all else n_active) or np.any(printed < 0):
        return None
    if not len(printed):
        return 0.0
    key, value = (_measure(name, pre, fired.value) for name in (selection.key, selection.value))
    largest = float(np.max(np.abs(value[printed] - values)))
    pool = np.ones(len(pre), bool)
    if not selection.of_all:
        # A feature at its gate is active iff the candidate has it on its list.
        pool = distance > off
        pool[printed[distance[printed] > -off]] = True
    if largest > tolerance or not np.all(pool[printed]):
        return None
    keys = key[pool]
    if len(keys) < len(printed):
        return None
    chosen = np.sort(np.partition(keys, len(keys) - len(printed))[len(keys) - len(printed) :])
    if np.any(np.abs(np.sort(key[printed]) - chosen) > 2 * tolerance):
        return None
    in_order = printed.astype(np.float64) if selection.order == "by index" else key[printed]
    steps = np.diff(in_order) * (-1 if selection.order == "descending" else 1)
    return largest if np.all(steps > (0 if selection.order == "by index" else -2 * tolerance)) else None


@dataclass(frozen=True)
class Firing:
    """Of one case, float64 [n_features] each: pre-activations, what a feature prints where it fires, and how far above its gate it is.

    It fires for sure where its `distance` is more than `reach` tolerances, and surely does not below as many less than 0.
    """

    pre: np.ndarray
    value: np.ndarray
    distance: np.ndarray
    reach: int = 1


def pre_activations(port: Port, product: np.ndarray, weights: LayerWeights, features: np.ndarray | slice = slice(None)) -> np.ndarray:
    """float64 [n]: of the products of some features, or of all."""
    encoder = weights.encoder
    scale = 1.0 if encoder.scale is None else encoder.scale[features]
    if isinstance(weights.gate, Gated):
        return np.asarray(product * scale + encoder.offset[features])
    pre = product + port.b_enc * weights.b_enc[features]
    return np.asarray(pre * scale if port.gate.by_decoder_norm else pre)


def firing(port: Port, product: np.ndarray, weights: LayerWeights) -> Firing:
    """What fires of products float64 [n_features]."""
    pre = pre_activations(port, product, weights)
    gate, right = port.gate, weights.gate
    level = gate.level(weights.threshold.astype(np.float64))
    value = pre - level.subtracted
    if isinstance(right, Gated):
        condition = product + port.b_enc * weights.b_enc
        return Firing(pre, value, np.minimum(condition, pre) if gate.is_gated else pre)
    if not isinstance(right, Largest) or not gate.selects:
        return Firing(pre, value, pre - level.least)
    relu = right.relu if gate.relu is None else gate.relu
    by_magnitude = right.magnitude and gate.by_magnitude
    measure = np.abs(pre) if by_magnitude else pre
    distance = _above_boundary(measure, gate.k or right.k, right.grouped)
    return Firing(pre, value, np.minimum(distance, measure) if relu or by_magnitude else distance, 2)


def _above_boundary(measure: np.ndarray, k: int, grouped: bool) -> np.ndarray:
    """How far each is above the largest that does not fire, or below the smallest that does."""
    groups, limit = (measure.reshape(k, -1), 1) if grouped and len(measure) % k == 0 else (measure[np.newaxis], k)
    if limit >= groups.shape[1]:
        return np.full(len(measure), np.inf)
    ordered = np.sort(groups, axis=1)[:, ::-1]
    last, following = ordered[:, limit - 1, np.newaxis], ordered[:, limit, np.newaxis]
    return np.asarray(groups - np.where(groups >= last, following, last)).reshape(-1)
