# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ports' decoders print for the cases of a layer, where the encoder's answers agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from oracle.arithmetic.decoder import N_FIRST
from oracle.arithmetic.products import Matrix
from oracle.checking.reconstructions import reconstruction_problems
from oracle.diagnosis.encoder import MOST_ROWS, PRODUCT_BYTES
from oracle.diagnosis.layers import ExaminedLayer, Roundings, in_memory, multiply, reshaped, transposed
from oracle.diagnosis.port import (
    DECODER_FIELDS,
    DECODER_PRODUCT,
    OWN,
    RESHAPED,
    TARGET_MAJOR,
    DecoderInput,
    Hypothesis,
    Match,
    Port,
    Vectors,
    firing,
    same,
    stored,
)  # fmt: skip
from oracle.references.document import Case, Reconstruction, Reference
from oracle.references.rows import DataError
from oracle.weights.layer import LayerWeights


def answered(case: Case, answer: Case) -> list[tuple[int, Reconstruction, Reconstruction]]:
    """The reconstructions of a case that the answer has too: their places, the expected ones, the answers."""
    by_target = {output.target_layer: output for output in answer.outputs}
    expected = enumerate(case.outputs)
    return [(place, output, by_target[output.target_layer]) for place, output in expected if output.target_layer in by_target]


class DecoderTrial:
    """Ports' decoders and the reconstructions of a layer's cases. `weights` are those that a port takes W_dec of.

    A product is a row of activations times W_dec for each case: float64 [n_cases, n_targets * n_values].
    """

    FIELDS, MATRIX = DECODER_FIELDS, "w_dec"

    def __init__(self, reference: Reference, layer: ExaminedLayer):
        self.layer = layer
        self._printed = [answered(item.case, item.answer) for item in layer.cases]
        residuals = np.stack([item.residual for item in layer.cases])  # [n_cases, input_length]
        with layer.opened(OWN) as weights:
            inputs = weights.encoder_input.apply(residuals)
            [products] = multiply(weights.w_enc, weights.n_features, [inputs.values], [()])
            vectors = Vectors(weights.b_enc, weights.threshold, weights.b_dec)
            fired = [firing(Port(), product, weights, vectors) for product in products]
            pre = np.stack([case.pre for case in fired])  # [n_cases, n_features]
            fires = np.stack([case.distance > 0 for case in fired])
            in_top = np.zeros(pre.shape, bool)
            for row, item in zip(in_top, layer.cases):
                row[item.expected[0]] = True
            self._input = DecoderInput(pre, fires, np.maximum(weights.threshold, 0), in_top)
            self._own = weights.own_target
            self._back = (inputs.factor[:, 0], inputs.offset[:, 0]) if weights.settings.restores else None
            self._d_out = weights.d_out
            # Past the features: through W_skip, through its transpose, as they are. [n_cases, 3, d_out]
            self._skip_outputs = np.zeros((len(residuals), 3, self._d_out))
            is_square = self._d_out == residuals.shape[1]
            if is_square:
                self._skip_outputs[:, 2] = residuals
            if weights.w_skip:
                for number, matrix in enumerate((weights.w_skip, transposed(weights.w_skip))[: 1 + is_square]):
                    [self._skip_outputs[:, number]] = multiply(matrix, self._d_out, [residuals], [()])
            self._right = self._left_by_right(weights)

    def _left_by_right(self, weights: LayerWeights) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each case the first values that are right, and what is printed of them. Raises DataError where the weights give others."""
        [(_, product)] = self._products([Hypothesis()], weights, whole=False)
        right = []
        for number in range(len(self.layer.cases)):
            values, expected, off = self._first_values(Port(), number, product, weights, of_reference=True)
            if not np.all(np.abs(values - expected) <= off):
                raise DataError(
                    f"layer {self.layer.own.layer}: the reference is not what these weights give, so they cannot explain a "
                    "difference from it; `verify` says more"
                )
            right.append(self._first_values(Port(), number, product, weights)[:2])
        return right

    def readings(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each case the first values that are right, and what is printed of them, NaN where there are too few or too many."""
        return self._right

    def forget(self) -> None:
        """There is nothing to let go of."""

    def screened(self, hypotheses: Iterable[Hypothesis]) -> dict[Hypothesis, set[int]]:
        """Of which cases the first values do not refute a hypothesis. What leaves more of them than the right ones do is refuted."""
        passed: dict[Hypothesis, set[int]] = {}
        for name, group in self._by_file(hypotheses).items():
            with self.layer.opened(name) as weights:
                for hypothesis, product in self._products(group, weights, whole=False):
                    for number, (right, right_printed) in enumerate(self._right):
                        values, printed, off = self._first_values(hypothesis.port, number, product, weights)
                        near = len(values) > 0 and bool(np.all(np.abs(values - printed) <= off))
                        # A port may give nothing to some targets; of these there is nothing to be compared.
                        leaves_less = np.sum((values - printed) ** 2) <= np.sum((right - right_printed) ** 2)
                        if near and (leaves_less or not np.all(np.isfinite(right_printed))):
                            passed.setdefault(hypothesis, set()).add(number)
        return passed

    def evaluated(self, passed: dict[Hypothesis, set[int]]) -> dict[Hypothesis, dict[int, Match]]:
        """How the hypotheses match the whole of the cases that they passed; where they do not, they have none."""
        matches: dict[Hypothesis, dict[int, Match]] = {}
        for name, group in self._by_file(passed).items():
            with self.layer.opened(name) as weights:
                for hypothesis, product in self._products(group, weights, whole=True):
                    for number in passed[hypothesis]:
                        match = self._evaluate(hypothesis.port, number, product, weights)
                        if match is not None:
                            matches.setdefault(hypothesis, {})[number] = match
        return matches

    def _by_file(self, hypotheses: Iterable[Hypothesis]) -> dict[str, list[Hypothesis]]:
        groups: dict[str, list[Hypothesis]] = {}
        for hypothesis in hypotheses:
            port = hypothesis.port
            if self.layer.has(port.w_dec) and self.layer.has(port.b_dec_of) and self.layer.vectors_of(port.b_dec_of):
                groups.setdefault(self.layer.file_of(port.w_dec), []).append(hypothesis)
        return groups

    def _products(self, hypotheses: list[Hypothesis], weights: LayerWeights, *, whole: bool) -> Iterator[tuple[Hypothesis, np.ndarray]]:
        """The product of each hypothesis, all of it or what the first values need; of too many only the first."""
        by_array: dict[str, dict[Port, list[Hypothesis]]] = {}
        for hypothesis in hypotheses:
            by_product = by_array.setdefault(hypothesis.port.w_dec, {})
            by_product.setdefault(hypothesis.port.only(DECODER_PRODUCT), []).append(hypothesis)
        n_cases, n_targets = len(self.layer.cases), math.prod(weights.decoder_shape) // self._d_out
        n_values = self._d_out if whole else min(N_FIRST, self._d_out)
        outputs = np.concatenate([np.arange(target * self._d_out, target * self._d_out + n_values) for target in range(n_targets)])
        for array, by_product in by_array.items():
            ports = list(by_product)[: max(1, MOST_ROWS // n_cases) if whole else None]
            products: Iterable[np.ndarray]
            if array == TARGET_MAJOR:
                products = [self._target_major(self._factors(port, weights), weights, n_targets, n_values) for port in ports]
            else:
                matrix = self._matrix(array, weights)
                if not whole:
                    matrix = in_memory(matrix.columns(outputs))
                products = self._multiplied(matrix, len(outputs), ports, weights)
            for port, product in zip(ports, products):
                yield from ((hypothesis, product) for hypothesis in by_product[port])

    def _multiplied(self, matrix: Matrix, n_outputs: int, ports: list[Port], weights: LayerWeights) -> Iterator[np.ndarray]:
        at_once = max(1, PRODUCT_BYTES // (8 * len(self.layer.cases) * (n_outputs + weights.n_features)))
        for start in range(0, len(ports), at_once):
            batch = ports[start : start + at_once]
            roundings: list[Roundings] = [() if port.decoder_rounding is same else (port.decoder_rounding,) for port in batch]
            yield from multiply(matrix, n_outputs, [self._factors(port, weights) for port in batch], roundings)

    def _matrix(self, array: str, weights: LayerWeights) -> Matrix:
        """What a port takes for W_dec."""
        before = weights.targets_before
        w_dec = Matrix(
            lambda: ((block[:, before:] if before else block).reshape(len(block), -1) for block in weights.w_dec.blocks()),
            features_first=not weights.w_dec.features_first,
        )
        return reshaped(w_dec, weights.n_features, self._d_out) if array == RESHAPED else w_dec

    def _target_major(self, activations: np.ndarray, weights: LayerWeights, n_targets: int, n_values: int) -> np.ndarray:
        """Of W_dec read as [targets, features, d_out]: float64 [n_cases, n_targets * n_values]."""
        product = np.zeros((len(activations), weights.targets_before + n_targets, n_values))
        start, n = 0, weights.n_features
        for block in weights.w_dec.blocks():
            rows = block.reshape(-1, self._d_out)[:, :n_values].astype(np.float64)
            for target in range(start // n, -(-(start + len(rows)) // n)):
                first, last = max(start, target * n), min(start + len(rows), (target + 1) * n)
                product[:, target] += activations[:, first - target * n : last - target * n].astype(np.float64) @ rows[first - start : last - start]
            start += len(rows)
        return product[:, weights.targets_before :].reshape(len(activations), -1)

    def _factors(self, port: Port, weights: LayerWeights) -> np.ndarray:
        """What a port multiplies by W_dec, float32 [n_cases, n_features]."""
        activations = port.activations(self._input).astype(np.float32)
        if port.divides and weights.settings.by_decoder_norm:
            activations = activations / weights.decoder_norms
        return activations / np.where(weights.decoder_norms > 0, weights.decoder_norms, 1) if port.is_unit_norm else activations

    def _first_values(
        self, port: Port, number: int, product: np.ndarray, weights: LayerWeights, *, of_reference: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First values that a port gives, those that the candidate or the reference has, and how far apart they may be.

        `product` has the first outputs of each target. A value is NaN where the other side has more or fewer of them.
        """
        values, printed, off = [np.empty(0)], [np.empty(0)], [np.empty(0)]
        for expected, answer, output in self._outputs(port, number, product, weights):
            first = (expected if of_reference else answer).first_10
            values.append(output)
            printed.append(np.array(first) if len(first) == len(output) else np.full(len(output), np.nan))
            off.append((expected.tolerance or 0.0) + stored(values[-1], printed[-1]))
        return np.concatenate(values), np.concatenate(printed), np.concatenate(off)

    def _evaluate(self, port: Port, number: int, product: np.ndarray, weights: LayerWeights) -> Match | None:
        """How a port matches the reconstructions of a case of which it says something; None where one cannot be explained."""
        largest, squares, says_something = 0.0, 0.0, False
        for expected, answer, output in self._outputs(port, number, product, weights):
            predicted = _numbers(output, expected)
            if reconstruction_problems([predicted], [answer], self._d_out):
                return None
            off = np.subtract((*predicted.first_10, predicted.norm), (*answer.first_10, answer.norm))
            largest, squares = max(largest, float(np.max(np.abs(off)))), squares + float(np.sum(off**2))
            says_something |= bool(reconstruction_problems([expected], [answer], self._d_out))
        return Match(largest, squares) if says_something else None

    def _outputs(self, port: Port, number: int, product: np.ndarray, weights: LayerWeights) -> Iterator[tuple[Reconstruction, Reconstruction, np.ndarray]]:
        """For each printed reconstruction of a case the expected one, the answer and what a port gives, float64 [n_values].

        Targets to which a port gives nothing are left out.
        """
        n_targets = math.prod(weights.decoder_shape) // self._d_out
        by_target = port.targets(product[number].reshape(n_targets, -1))
        n = by_target.shape[1]
        skip = np.array([port.skip.w_skip, port.skip.transposed, port.skip.residual])
        vectors = self.layer.vectors_of(port.b_dec_of)
        b_dec = np.atleast_2d(vectors.b_dec if vectors else np.zeros(self._d_out)).astype(np.float64)  # [1 or n_targets, d_out]
        for place, expected, answer in self._printed[number]:
            if place < n_targets and not np.isnan(by_target[place]).any():
                output = by_target[place] * weights.row_factor
                has_own = len(b_dec) > 1 or place == self._own
                output = output + port.b_dec[0 if has_own else 1] * b_dec[place if len(b_dec) > 1 else 0, :n]
                if self._back and port.restores:
                    output = output * self._back[0][number] + self._back[1][number]
                if place == self._own:
                    output = output + skip @ self._skip_outputs[number, :, :n]
                yield expected, answer, output


def _numbers(output: np.ndarray, expected: Reconstruction) -> Reconstruction:
    """A reconstruction as the JSON has it, with the target layer and the tolerance of the expected one."""
    sum_of_squares = math.fsum((output * output).tolist())
    return replace(
        expected,
        norm=math.sqrt(sum_of_squares),
        sum=math.fsum(output.tolist()),
        sum_of_squares=sum_of_squares,
        first_10=tuple(output[:N_FIRST].tolist()),
    )
