# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ports' decoders print for the cases of a layer, where the encoder's answers agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from oracle.arithmetic.decoder import N_FIRST
from oracle.arithmetic.products import Matrix
from oracle.checking.lists import listed
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import FLOAT32_ROUNDING
from oracle.diagnosis.encoder import firing
from oracle.diagnosis.explanation import Match
from oracle.diagnosis.layers import ExaminedLayer
from oracle.diagnosis.port import DECODER_FIELDS, DECODER_PRODUCT, OWN, RESHAPED, DecoderInput, Port, same
from oracle.diagnosis.products import Roundings, multiply, reshaped, transposed
from oracle.references.document import Case, Reconstruction, Reference
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

    FIELDS, PRODUCT_FIELDS, MATRIX = DECODER_FIELDS, DECODER_PRODUCT, "w_dec"
    PRINTED = "values of reconstructions"

    def __init__(self, reference: Reference, layer: ExaminedLayer):
        self.layer = layer
        self.n_inputs, self.prints = reference.n_features, True
        self._printed = [(number, *output) for number, item in enumerate(layer.cases) for output in answered(item.case, item.answer)]
        residuals = np.stack([item.residual for item in layer.cases])  # [n_cases, input_length]
        with layer.opened(OWN) as weights:
            inputs = weights.encoder_input.apply(residuals)
            [products] = multiply(weights.w_enc, weights.n_features, [inputs.values], [()])
            fired = [firing(Port(), product, weights) for product in products]
            pre = np.stack([case.pre for case in fired])  # [n_cases, n_features]
            fires = np.stack([case.distance > 0 for case in fired])
            in_top = np.zeros(pre.shape, bool)
            for row, item in zip(in_top, layer.cases):
                row[[index for index, _ in listed(item.case)]] = True
            self._input = DecoderInput(pre, fires, np.maximum(weights.threshold, 0), in_top)
            self._own = weights.own_target
            self._b_dec = np.atleast_2d(weights.b_dec).astype(np.float64)  # [1 or n_targets, d_out]
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

    def matrix(self, array: str, weights: LayerWeights) -> Matrix:
        """What a port takes for W_dec."""
        before = weights.targets_before
        w_dec = Matrix(
            lambda: ((block[:, before:] if before else block).reshape(len(block), -1) for block in weights.w_dec.blocks()),
            features_first=not weights.w_dec.features_first,
        )
        return reshaped(w_dec, weights.n_features, self._d_out) if array == RESHAPED else w_dec

    def n_outputs(self, weights: LayerWeights) -> int:
        return math.prod(weights.decoder_shape)

    def screened(self, weights: LayerWeights) -> np.ndarray:
        """The outputs that the first values need, ascending."""
        targets = range(0, self.n_outputs(weights), self._d_out)
        return np.concatenate([np.arange(first, first + min(N_FIRST, self._d_out)) for first in targets])

    def roundings(self, port: Port) -> Roundings:
        return () if port.decoder_rounding is same else (port.decoder_rounding,)

    def factors(self, port: Port, weights: LayerWeights) -> np.ndarray:
        """What a port multiplies by W_dec, float32 [n_cases, n_features]."""
        activations = port.activations(self._input).astype(np.float32)
        return activations / weights.decoder_norms if port.divides and weights.settings.by_decoder_norm else activations

    def first_values(
        self, port: Port, product: np.ndarray, weights: LayerWeights, *, of_reference: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First values that a port gives, those that the candidate or the reference has, and how far apart they may be.

        `product` has the outputs that are screened. A value is NaN where the other side has more or fewer of them.
        """
        values, printed, off = [np.empty(0)], [np.empty(0)], [np.empty(0)]
        for _, expected, answer, output in self._outputs(port, product, weights):
            first = (expected if of_reference else answer).first_10
            values.append(output)
            printed.append(np.array(first) if len(first) == len(output) else np.full(len(output), np.nan))
            off.append((expected.tolerance or 0.0) + FLOAT32_ROUNDING * (np.abs(values[-1]) + np.abs(printed[-1])))
        return np.concatenate(values), np.concatenate(printed), np.concatenate(off)

    def evaluate(self, port: Port, product: np.ndarray, weights: LayerWeights) -> Match | None:
        """How a port matches the reconstructions of which it says something; None where one cannot be explained."""
        match = Match()
        for number, expected, answer, output in self._outputs(port, product, weights):
            predicted = _numbers(output, expected)
            if reconstruction_problems([predicted], [answer], self._d_out):
                return None
            pairs = zip((*predicted.first_10, predicted.norm), (*answer.first_10, answer.norm))
            is_wrong = bool(reconstruction_problems([expected], [answer], self._d_out))
            case_id = self.layer.cases[number].case.id
            match += Match(max(abs(value - printed) for value, printed in pairs), frozenset({case_id}), int(is_wrong))
        return match

    def _outputs(
        self, port: Port, product: np.ndarray, weights: LayerWeights
    ) -> Iterator[tuple[int, Reconstruction, Reconstruction, np.ndarray]]:
        """For each printed reconstruction the case's place, the expected one, the answer and what a port gives, float64 [n_values].

        Targets that W_dec does not have are left out.
        """
        n_targets = self.n_outputs(weights) // self._d_out
        by_target = product.reshape(len(product), n_targets, -1)
        n = by_target.shape[2]
        skip = np.array([port.skip.w_skip, port.skip.transposed, port.skip.residual])
        for number, place, expected, answer in self._printed:
            if 0 <= place + port.target < n_targets:
                output = by_target[number, place + port.target] * weights.row_factor
                has_own = len(self._b_dec) > 1 or place == self._own
                output = output + port.b_dec[0 if has_own else 1] * self._b_dec[place if len(self._b_dec) > 1 else 0, :n]
                if self._back and port.restores:
                    output = output * self._back[0][number] + self._back[1][number]
                if place == self._own:
                    output = output + skip @ self._skip_outputs[number, :, :n]
                yield number, expected, answer, output


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
