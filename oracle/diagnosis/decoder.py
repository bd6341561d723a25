# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ports' decoders print for the cases of a layer, where the encoder's answers agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from oracle.arithmetic.decoder import N_FIRST
from oracle.arithmetic.products import Matrix
from oracle.checking.lists import listed
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import FLOAT32_ROUNDING
from oracle.diagnosis.explanation import Match
from oracle.diagnosis.layers import ExaminedLayer
from oracle.diagnosis.port import DECODER_FIELDS, DECODER_PRODUCT, RESHAPED, DecoderInput, Port, same
from oracle.diagnosis.products import Roundings, product, reshaped, transposed
from oracle.references.document import Case, CaseId, Reconstruction, Reference
from oracle.weights.formats import Format
from oracle.weights.layer import LayerWeights


@dataclass(frozen=True)
class _Printed:
    """A reconstruction that the candidate has: of the case and the target at these places, and whether it is wrong."""

    id: CaseId
    case: int
    target: int
    expected: Reconstruction
    answer: Reconstruction
    is_wrong: bool


class DecoderTrial:
    """Ports' decoders and the reconstructions of a layer's cases. `weights` are those that a port takes W_dec of.

    A product is a row of activations times W_dec for each case: float64 [n_cases, n_targets * n_values].
    """

    FIELDS, PRODUCT_FIELDS, MATRIX = DECODER_FIELDS, DECODER_PRODUCT, "w_dec"
    PRINTED = "values of reconstructions"

    def __init__(self, reference: Reference, layer: ExaminedLayer):
        self.layer, self._d_model = layer, reference.d_model
        self.n_inputs, self.prints = reference.n_features, True
        self._printed = [
            _Printed(item.case.id, number, place, expected, answer, bool(reconstruction_problems([expected], [answer], self._d_model)))
            for number, item in enumerate(layer.cases)
            for place, expected in enumerate(item.case.reconstructions)
            for answer in item.answer.reconstructions
            if answer.target_layer == expected.target_layer
        ]
        residuals = np.stack([item.residual for item in layer.cases])  # [n_cases, d_model]
        with layer.recorded.opened() as weights:
            pre = product(weights.w_enc, weights.n_features, residuals) + weights.b_enc
            in_top = np.zeros(pre.shape, bool)
            for row, item in zip(in_top, layer.cases):
                row[[index for index, _ in listed(item.case)]] = True
            self._input = DecoderInput(pre, weights.gate, in_top)
            self._b_dec = weights.b_dec.astype(np.float64)
            # Past the features: through W_skip, through its transpose, as they are. [n_cases, 3, d_model]
            self._skip_outputs = np.zeros((len(residuals), 3, self._d_model))
            self._skip_outputs[:, 2] = residuals
            if weights.w_skip:
                for number, matrix in enumerate((weights.w_skip, transposed(weights.w_skip))):
                    self._skip_outputs[:, number] = product(matrix, self._d_model, residuals)

    @staticmethod
    def role(weights_format: Format) -> str:
        """Which of a layer's files holds W_dec."""
        return weights_format.w_dec.role

    @staticmethod
    def can_examine(case: Case, answer: Case) -> bool:
        return bool({output.target_layer for output in case.reconstructions} & {output.target_layer for output in answer.reconstructions})

    def matrix(self, array: str, weights: LayerWeights) -> Matrix:
        """What a port takes for W_dec."""
        w_dec = Matrix(lambda: (block.reshape(len(block), -1) for block in weights.w_dec.blocks()), features_first=False)
        return reshaped(w_dec, weights.n_features, self._d_model) if array == RESHAPED else w_dec

    def n_outputs(self, weights: LayerWeights) -> int:
        return math.prod(weights.w_dec.header.shape[1:])

    def screened(self, weights: LayerWeights) -> np.ndarray:
        """The outputs that the first values need, ascending."""
        targets = range(0, self.n_outputs(weights), self._d_model)
        return np.concatenate([np.arange(first, first + min(N_FIRST, self._d_model)) for first in targets])

    def roundings(self, port: Port) -> Roundings:
        return () if port.decoder_rounding is same else (port.decoder_rounding,)

    def factors(self, port: Port, weights: LayerWeights) -> np.ndarray:
        """What a port multiplies by W_dec, float32 [n_cases, n_features]."""
        return port.activations(self._input).astype(np.float32)

    def first_values(
        self, port: Port, product: np.ndarray, weights: LayerWeights, *, of_reference: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First values that a port gives, those that the candidate or the reference has, and how far apart they may be.

        `product` has the outputs that are screened. A value is NaN where the other side has more or fewer of them.
        """
        values, printed, off = [np.empty(0)], [np.empty(0)], [np.empty(0)]
        for item, output in self._outputs(port, product, weights):
            first = (item.expected if of_reference else item.answer).first_10
            values.append(output)
            printed.append(np.array(first) if len(first) == len(output) else np.full(len(output), np.nan))
            off.append((item.expected.tolerance or 0.0) + FLOAT32_ROUNDING * (np.abs(values[-1]) + np.abs(printed[-1])))
        return np.concatenate(values), np.concatenate(printed), np.concatenate(off)

    def evaluate(self, port: Port, product: np.ndarray, weights: LayerWeights) -> Match | None:
        """How a port matches the reconstructions of which it says something; None where one cannot be explained."""
        match = Match()
        for item, output in self._outputs(port, product, weights):
            expected = _numbers(output, item.expected)
            if reconstruction_problems([expected], [item.answer], self._d_model):
                return None
            pairs = zip((*expected.first_10, expected.norm), (*item.answer.first_10, item.answer.norm))
            difference = max(abs(value - printed) for value, printed in pairs)
            match += Match(difference, frozenset({item.id}), int(item.is_wrong))
        return match

    def _outputs(self, port: Port, product: np.ndarray, weights: LayerWeights) -> list[tuple[_Printed, np.ndarray]]:
        """What a port gives for each printed reconstruction, float64 [n_values], but for targets that W_dec does not have."""
        n_targets = self.n_outputs(weights) // self._d_model
        by_target = product.reshape(len(product), n_targets, -1)
        n = by_target.shape[2]
        skip = np.array([port.skip.w_skip, port.skip.transposed, port.skip.residual])
        outputs = []
        for printed in self._printed:
            if not 0 <= printed.target + port.target < n_targets:
                continue
            output = by_target[printed.case, printed.target + port.target]
            if printed.target == 0 or port.skip.to_all:
                output = output + skip @ self._skip_outputs[printed.case, :, :n]
            outputs.append((printed, output + port.b_dec[min(printed.target, 1)] * self._b_dec[:n]))
        return outputs


def _numbers(output: np.ndarray, expected: Reconstruction) -> Reconstruction:
    """A reconstruction as the JSON has it, with the target layer and the tolerance of the right item."""
    sum_of_squares = math.fsum((output * output).tolist())
    return replace(
        expected,
        norm=math.sqrt(sum_of_squares),
        sum=math.fsum(output.tolist()),
        sum_of_squares=sum_of_squares,
        first_10=tuple(output[:N_FIRST].tolist()),
    )
