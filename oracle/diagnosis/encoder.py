# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ports' encoders print for the cases of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from oracle.arithmetic.chain import Gated
from oracle.arithmetic.constants import SEED_STRIDE
from oracle.arithmetic.products import Matrix
from oracle.checking.verdict import FLOAT32_ROUNDING
from oracle.diagnosis.explanation import Reading
from oracle.diagnosis.layers import ExaminedLayer, Roundings, Survey, multiply, reshaped, rounded
from oracle.diagnosis.mistakes import MISTAKES
from oracle.diagnosis.port import (
    ENCODER_FIELDS,
    OWN,
    RESHAPED,
    W_DEC,
    Hypothesis,
    Match,
    Port,
    Source,
    Vectors,
    between,
    firing,
    match_of,
    measure_of,
    pre_activations,
    right_index,
    same,
    stored,
    through,
)  # fmt: skip
from oracle.references.document import Reference
from oracle.references.rows import DataError
from oracle.weights.layer import LayerWeights

MOST_ANSWERS_PER_CASE = 12  # of a long list, that are screened
MOST_ROWS = 192  # of products that are evaluated of one matrix
PRODUCT_BYTES = 12 * 1024 * 1024  # of products and factors held at once
INDEX_MAPS = (right_index, *(value for row in MISTAKES for field, value in row.steps if field == "index"))

_generated = lru_cache(maxsize=256)(lambda source, *of: source.sequence(*of))


class EncoderTrial:
    """Ports' encoders and the lists of a layer's cases.

    `right` are the right products, float64 [n_cases, n_features].
    """

    FIELDS, MATRIX = ENCODER_FIELDS, "w_enc"

    def __init__(self, reference: Reference, layer: ExaminedLayer):
        self.layer, self._reference, n = layer, reference, reference.n_features
        self._first = [tuple(column[:MOST_ANSWERS_PER_CASE] for column in item.printed) for item in layer.cases]
        wanted = [by(indices, n) for by in INDEX_MAPS for indices, _ in self._first] + [item.expected[0] for item in layer.cases]
        features = np.unique(np.concatenate(wanted))
        self._features = features[features >= 0]
        self._factors: dict[tuple[object, ...], np.ndarray] = {}
        with layer.opened(OWN) as weights:
            rows = np.stack([self._factor(Port(), number, weights) for number in range(len(layer.cases))])
            self.survey = Survey.of(weights.w_enc, n, self._features, rows)
            self.right = self.survey.product
            self._columns = {OWN: self.survey.columns, RESHAPED: self.survey.reshaped}
            self._check(weights)

    def _check(self, weights: LayerWeights) -> None:
        """Raises DataError where these weights do not give the reference's values."""
        for item, product in zip(self.layer.cases, self.right):
            indices, values = item.expected
            right = pre_activations(Port(), product[indices], weights, self._vectors(Port(), weights), indices)
            if not np.all((np.abs(right - values) <= self._reference.tolerance_of(item.case) + stored(right, values)) | (values == 0)):
                raise DataError(
                    f"layer {self.layer.own.layer}: the reference is not what these weights give, so they cannot explain a "
                    "difference from it; `verify` says more"
                )

    def readings(self) -> Iterator[Reading]:
        """What the candidate printed of each case, beside what is right."""
        with self.layer.opened(OWN) as weights:
            vectors = self._vectors(Port(), weights)
            for number, item in enumerate(self.layer.cases):
                fired = firing(Port(), self.right[number], weights, vectors)
                printed, tolerance = item.printed[1], self._reference.tolerance_of(item.case)
                indices = right_index(item.printed[0], len(fired.pre))
                right = np.where(indices >= 0, fired.pre[indices], np.nan)
                wrong = ~(np.abs(right - printed) <= tolerance + stored(right, printed))
                level = np.maximum(vectors.threshold, 0).astype(np.float64) if weights.has_threshold else None
                scale = skipped = None
                if wrong.any() and np.all(indices >= 0) and len(indices) > 2 and not isinstance(weights.gate, Gated) and weights.encoder.scale is None:
                    scale = _scale(self.right[number][indices], printed - vectors.b_enc[indices], tolerance)
                    columns = self.survey.columns[:, np.searchsorted(self._features, indices[: len(self._first[number][0])])]
                    skipped = _skipped(self._factor(Port(), number, weights), columns, (right - printed)[: columns.shape[1]], tolerance)
                yield Reading(item, tolerance, right, wrong, fired.pre, level, scale, skipped)

    # --- the first values -----------------------------------------------------------------------------------------------

    def screened(self, hypotheses: Iterable[Hypothesis]) -> dict[Hypothesis, set[int]]:
        """Of which cases the first values do not refute a hypothesis. What leaves more of them than the right ones do is refuted."""
        passed: dict[Hypothesis, set[int]] = {}
        for name, array, group in self._by_matrix(hypotheses):
            products: dict[Port, int] = {}
            by_value: dict[Port, tuple[list[Hypothesis], list[int]]] = {}
            for hypothesis in group:
                place = products.setdefault(hypothesis.encoder_product, len(products))
                own, places = by_value.setdefault(hypothesis.printed_value, ([], []))
                own.append(hypothesis)
                places.append(place)
            with self.layer.opened(name) as weights:
                columns = self._columns_of(array, weights)
                for number in range(len(self.layer.cases)):
                    for hypothesis in self._screen_case(number, list(products), by_value, columns, weights):
                        passed.setdefault(hypothesis, set()).add(number)
        return passed

    def _screen_case(
        self, number: int, products: list[Port], by_value: dict[Port, tuple[list[Hypothesis], list[int]]], columns: np.ndarray, weights: LayerWeights
    ) -> Iterator[Hypothesis]:
        indices, printed = self._first[number]
        if not len(indices):
            return
        features = np.concatenate([by(indices, weights.n_features) for by in INDEX_MAPS])
        own = np.unique(np.searchsorted(self._features, features[features >= 0]))
        product = self._first_products(number, products, columns[:, own], own, weights)
        tolerances = np.array([[self._tolerance(port, number, weights)] for port in products])
        right, _ = self._left(Port(), number, self.right[number][np.newaxis, self._features[own]], tolerances[:1], own, weights)
        noise = len(indices) * (4 * FLOAT32_ROUNDING * np.max(np.abs(printed))) ** 2
        for port, (hypotheses, places) in by_value.items():
            left, fits = self._left(port, number, product[places], tolerances[places], own, weights)
            fits &= ~(left > right[0] * (1 + 1e-9) + noise)
            yield from (hypotheses[place] for place in np.flatnonzero(fits))

    def _left(
        self, port: Port, number: int, product: np.ndarray, tolerances: np.ndarray, own: np.ndarray, weights: LayerWeights
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of a case's products [n_ports, n_own] that may be off by `tolerances` [n_ports, 1]: the sum of squares that a port leaves of what
        is printed, and whether it may print it."""
        indices, printed = self._first[number]
        features = port.index(indices, weights.n_features)
        if np.any(features < 0):
            return np.full(len(product), np.inf), np.zeros(len(product), bool)
        product = product[:, np.searchsorted(self._features[own], features)]
        vectors = self._vectors(port, weights)
        pre = pre_activations(port, product, weights, vectors, features)
        value = port.gate.value(pre, vectors.threshold[features].astype(np.float64))
        values = measure_of(port.selection.value, pre, value, features)
        off = tolerances + port.slack * np.maximum(np.abs(product), np.abs(values)) + stored(values, printed)
        fits = np.all(between(port, values, off, printed) | (printed == 0), axis=1)
        return np.sum((through(port, values) - printed) ** 2, axis=1), fits

    def _first_products(self, number: int, products: list[Port], columns: np.ndarray, own: np.ndarray, weights: LayerWeights) -> np.ndarray:
        """float64 [n_ports, n_own]."""
        result = np.empty((len(products), columns.shape[1]))
        by_rounding: dict[Roundings, list[int]] = {}
        for place, port in enumerate(products):
            if port.accumulation is not same:
                result[place] = self._accumulated(port, number, columns, weights)
            else:
                by_rounding.setdefault(self._roundings(port), []).append(place)
        for key, places in by_rounding.items():
            wide = rounded(columns, key, self._scales(key, self._features[own]), None).astype(np.float64)
            result[places] = np.stack([self._factor(products[place], number, weights) for place in places]).astype(np.float64) @ wide
        return result

    def _scales(self, key: Roundings, features: np.ndarray) -> np.ndarray:
        """The largest |weight| of the features; for one scale of all weights, of all."""
        by_feature = any(getattr(rounding, "by_feature", False) for rounding in key)
        return self.survey.largest[features] if by_feature else np.full(len(features), self.survey.largest.max(initial=0), np.float32)

    def _accumulated(self, port: Port, number: int, columns: np.ndarray, weights: LayerWeights) -> np.ndarray:
        """A sum that is rounded at each step, input after input: of values that are no such numbers at once NaN."""
        values = self._first[number][1].astype(np.float32)
        if not np.array_equal(port.accumulation(values), values):
            return np.full(columns.shape[1], np.nan)
        total = np.zeros(columns.shape[1], np.float32)
        for value, row in zip(self._factor(port, number, weights), columns):
            total = port.accumulation(total + value * row)
        return total.astype(np.float64)

    # --- the whole --------------------------------------------------------------------------------------------------------

    def evaluated(self, passed: dict[Hypothesis, set[int]]) -> dict[Hypothesis, dict[int, Match]]:
        """How the hypotheses match the whole of the cases that they passed; where they do not, they have none."""
        matches: dict[Hypothesis, dict[int, Match]] = {}
        for name, array, group in self._by_matrix(passed):
            with self.layer.opened(name) as weights:
                for hypothesis, number, product in self._products(array, group, passed, weights):
                    match = self._evaluate(hypothesis.port, number, product, weights)
                    if match is not None:
                        matches.setdefault(hypothesis, {})[number] = match
        return matches

    def _products(
        self, array: str, group: list[Hypothesis], passed: dict[Hypothesis, set[int]], weights: LayerWeights
    ) -> Iterator[tuple[Hypothesis, int, np.ndarray]]:
        """Hypotheses with their whole products of the cases that they passed; of too many only the first."""
        by_product: dict[Port, list[Hypothesis]] = {}
        for hypothesis in group:
            by_product.setdefault(hypothesis.encoder_product, []).append(hypothesis)
        wanted: list[tuple[Port, int]] = []
        for port, own in by_product.items():
            numbers = set().union(*(passed[hypothesis] for hypothesis in own))
            if port == Port() or port.accumulation is not same:
                for number in numbers:
                    yield from ((hypothesis, number, self.right[number]) for hypothesis in own if number in passed[hypothesis])
            else:
                wanted += ((port, number) for number in sorted(numbers))
        at_once = max(1, PRODUCT_BYTES // (8 * (weights.n_features + self._reference.input_length)))
        for start in range(0, min(len(wanted), MOST_ROWS), at_once):
            batch = wanted[start : min(start + at_once, MOST_ROWS)]
            factors = [self._factor(port, number, weights)[np.newaxis] for port, number in batch]
            roundings = [self._roundings(port) for port, _ in batch]
            for (port, number), product in zip(batch, multiply(self._matrix(array, weights), weights.n_features, factors, roundings, self.survey.largest)):
                yield from ((hypothesis, number, product[0]) for hypothesis in by_product[port] if number in passed[hypothesis])

    def _evaluate(self, port: Port, number: int, product: np.ndarray, weights: LayerWeights) -> Match | None:
        item, vectors = self.layer.cases[number], self._vectors(port, weights)
        indices, values = item.printed
        slack = np.full(len(product), port.slack) * np.abs(product) if port.slack else np.zeros(1)
        if port.accumulation is not same:
            sums = self._accumulated(port, number, self._columns[OWN], weights)
            if not np.all(np.isfinite(sums)):
                return None
            slack = slack + 2 * np.max(np.abs(sums - product[self._features]))
            product = product.copy()
            product[self._features] = sums
        fired = firing(port, product, weights, vectors, slack)
        printed = port.index(indices, len(fired.pre))
        return match_of(fired, port, printed, values, item.answer.n_active, self._reference.top_k, self._tolerance(port, number, weights))

    # --- what a port takes ------------------------------------------------------------------------------------------------

    def _by_matrix(self, hypotheses: Iterable[Hypothesis]) -> Iterator[tuple[str, str, list[Hypothesis]]]:
        """Hypotheses by the file and the array that they take for W_enc; those whose files are not there are left out."""
        groups: dict[str, list[Hypothesis]] = {}
        for hypothesis in hypotheses:
            port = hypothesis.port
            if all(self.layer.has(name) for name in (port.w_enc, port.bias_of, port.threshold_of)):
                groups.setdefault(port.w_enc, []).append(hypothesis)
        for array, group in groups.items():
            yield self.layer.file_of(array), array, group

    def _matrix(self, array: str, weights: LayerWeights) -> Matrix:
        """What a port takes for W_enc."""
        if array == W_DEC:
            return Matrix(weights.w_dec.blocks, features_first=weights.w_dec.features_first)
        return reshaped(weights.w_enc, weights.input_length, weights.n_features) if array == RESHAPED else weights.w_enc

    def _columns_of(self, array: str, weights: LayerWeights) -> np.ndarray:
        if array not in self._columns:
            self._columns[array] = self._matrix(array, weights).columns(self._features)
        return self._columns[array]

    def forget(self) -> None:
        """Let go of what other files have, and can be read again."""
        self._columns = {OWN: self.survey.columns, RESHAPED: self.survey.reshaped}
        self._factors.clear()

    def _vectors(self, port: Port, weights: LayerWeights) -> Vectors:
        own = Vectors(weights.b_enc, weights.threshold, weights.b_dec)
        bias, threshold = (own if name == OWN else self.layer.vectors_of(name) or own for name in (port.bias_of, port.threshold_of))
        return Vectors(bias.b_enc, threshold.threshold, own.b_dec)

    def _roundings(self, port: Port) -> Roundings:
        return tuple(rounding for rounding in (port.weight_rounding, port.product_rounding) if rounding is not same)

    def _tolerance(self, port: Port, number: int, weights: LayerWeights) -> float:
        """What a number of a port's may be off by: the case's own tolerance, less where what the port multiplies is smaller than what is right."""
        own, least = self._reference.tolerance_of(self.layer.cases[number].case), self._reference.tolerance
        if own <= least:
            return own
        norm, right = (float(np.linalg.norm(self._factor(factor, number, weights).astype(np.float64))) for factor in (port, Port()))
        return max(least, own * norm / right) if norm < right else own

    def _factor(self, port: Port, number: int, weights: LayerWeights) -> np.ndarray:
        """What a port multiplies by W_enc, float32 [d_model]."""
        key = (number, port.source, port.input, port.norm, port.residual_rounding, port.product_rounding)
        if key in self._factors and port.w_enc == OWN:
            return self._factors[key]
        item = self.layer.cases[number]
        row = item.residual
        if port.source != Source():
            layer, _, seed = item.case.id
            row = _generated(port.source, *port.source.of((seed - layer) // SEED_STRIDE, layer), len(row))
            if port.source.is_scaled and self._reference.residuals.scale is not None:
                row = row * np.float32(self._reference.residuals.scale)
        row = port.input(row, weights.encoder_input, weights.b_dec)
        for step in (port.norm, port.residual_rounding, port.product_rounding):
            row = step(row)
        if port.w_enc == OWN and len(self._factors) < 512:
            self._factors[key] = row
        return row


def _scale(right: np.ndarray, printed: np.ndarray, tolerance: float) -> float | None:
    """By what right products are multiplied where they give all that is printed; None where no one number does it."""
    square = float(right @ right)
    factor = float(right @ printed) / square if square > 0 else 0.0
    off = tolerance + FLOAT32_ROUNDING * 2 * np.abs(printed)
    return factor if factor and np.all(np.abs(factor * right - printed) <= off) else None


def _skipped(factor: np.ndarray, columns: np.ndarray, lacking: np.ndarray, tolerance: float) -> tuple[int, int] | None:
    """The block of 8 inputs whose part in the products, float32 [d_model] and [d_model, n], is what lacks; None where it is none."""
    firsts = np.arange(0, len(factor), 8)
    parts = np.add.reduceat(factor[:, np.newaxis].astype(np.float64) * columns, firsts, axis=0)  # [blocks, n]
    fits = np.flatnonzero(np.all(np.abs(parts - lacking) <= 2 * tolerance, axis=1))
    return (int(firsts[fits[0]]), min(int(firsts[fits[0]]) + 8, len(factor))) if len(fits) == 1 else None
