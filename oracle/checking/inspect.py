# SPDX-License-Identifier: MIT OR Apache-2.0
"""One feature of one case from its weights, step by step, as a port computes it and exactly."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from oracle.arithmetic import encoder
from oracle.arithmetic.numbers import round_to_float32
from oracle.arithmetic.products import NotFiniteError
from oracle.arithmetic.residual import fingerprint, first_pairs
from oracle.checking.inspection import FIRST, GateLine, InputLine, Inspection, Partial, Standing, Step
from oracle.checking.lists import listed
from oracle.errors import BadUse, WeightsError
from oracle.references.document import Candidate, Case, Reference
from oracle.references.recorded import RecordedWeights, residual_of
from oracle.weights.layer import LayerWeights


def inspect(
    weights: RecordedWeights, layer: int, number: int, feature: int, candidate: Candidate | None = None, *, with_generator: bool = False
) -> Inspection:
    """The steps of a feature of the case of a layer and a seed, or a row; with a candidate, where its number stands among them.

    Raises BadUse for a case or a feature that there is not, and as verify does.
    """
    reference = weights.reference
    case = _case(reference, layer, number)
    if feature >= reference.n_features:
        raise BadUse(f"--feature {feature}: the reference has the features 0 to {reference.n_features - 1}")
    if with_generator and not reference.has_generator:
        raise BadUse("--residual: this reference's residuals are on record, the generator has no part in them: leave it out")
    residual = residual_of(reference, case)
    with weights.opened(layer) as layer_weights:
        if [layer_weights.d_model, layer_weights.n_features] != [reference.d_model, reference.n_features]:
            raise WeightsError(f"{layer_weights.label}: W_enc has another shape than the reference says")
        return _Steps(reference, case, feature, residual, layer_weights).inspection(candidate, with_generator)


def _case(reference: Reference, layer: int, number: int) -> Case:
    cases = {(case.id.layer, case.id.number): case for case in reference.cases}
    if (layer, number) not in cases:
        shown = ", ".join(str(case.id) for case in reference.cases[:6]) + (", ..." if len(cases) > 6 else "")
        raise BadUse(f"the reference has no case of layer {layer} {reference.cases[0].id.kind} {number}; it has {shown}")
    return cases[layer, number]


class _Steps:
    """What is known of a feature: its column of W_enc, and what the encoder makes of it."""

    def __init__(self, reference: Reference, case: Case, feature: int, residual: np.ndarray, weights: LayerWeights):
        self.reference, self.case, self.feature, self.residual, self.weights = reference, case, feature, residual, weights
        self.encoder, self.tolerance = weights.encoder, reference.tolerance_of(case)
        self.input = weights.encoder_input.apply(residual[np.newaxis]).values[0]  # float32 [d_model]
        try:
            encoded = encoder.encode(self.encoder, self.input[np.newaxis], k=reference.top_k, tolerance=self.tolerance, feature=feature)
        except NotFiniteError as error:
            raise WeightsError(f"{weights.label}: {error}") from error
        self.exact, self.encoding = encoded.steps[0], encoded.encodings[0]
        self.column = np.asarray(encoded.column)  # float32 [d_model]
        products = self.input * self.column
        self.sums32 = np.add.accumulate(products, dtype=np.float32)  # one operation after the other, as a plain loop has them
        self.offset, self.scale = float(self.encoder.offset[feature]), None if self.encoder.scale is None else self.encoder.scale[feature]

    def inspection(self, candidate: Candidate | None, with_generator: bool) -> Inspection:
        reference, weights, is_identity = self.reference, self.weights, self.weights.encoder_input.is_identity
        pairs = first_pairs(self.case.id.number, self.case.stream or 0, min(FIRST, len(self.residual))) if with_generator else []
        inputs = [
            InputLine(place, float(r), None if is_identity else float(x), float(w))
            for place, (r, x, w) in enumerate(zip(self.residual[:FIRST], self.input, self.column))
        ]
        return Inspection(
            id=self.case.id,
            stream=self.case.stream,
            feature=self.feature,
            repo=reference.repo.name,
            schema=weights.schema,
            formula=reference.encoder_formula,
            tolerance=self.tolerance,
            scale=reference.residuals.scale,
            pairs=tuple(pairs),
            residual_fingerprint=fingerprint(self.residual),
            input_words=None if is_identity else weights.encoder_input.formula("residual"),
            input_fingerprint=None if is_identity else fingerprint(self.input),
            inputs=tuple(inputs),
            n_inputs=len(self.input),
            partials=tuple(self._partials()),
            steps=tuple(self._steps()),
            gate=tuple(
                GateLine(step.subject, round_to_float32(step.value), step.against, round_to_float32(step.level), float(step.value - step.level), step.holds)
                for step in self.exact.gate
            ),
            activation=round_to_float32(self.exact.value) if self.exact.fires else 0.0,
            rank=self.exact.rank,
            n_active=self.encoding.n_active,
            list_length=len(self.encoding.top),
            standing=None if candidate is None else self._standing(candidate),
        )

    def _partials(self) -> Iterator[Partial]:
        """The sums after 1, 2, 4, ... inputs, and after all."""
        n = len(self.input)
        terms = [Fraction(float(x)) * Fraction(float(w)) for x, w in zip(self.input, self.column)]
        total, done, count = Fraction(0), 0, 1
        while done < n:
            total += sum(terms[done : min(count, n)], Fraction(0))
            done, count = min(count, n), 2 * count
            yield Partial(done, float(self.sums32[done - 1]), round_to_float32(total), float(total))

    def _steps(self) -> Iterator[Step]:
        """From the product to the pre-activation, exact numbers rounded once, and the port's beside them."""
        port = self.sums32[-1]
        yield Step("product", float(port), round_to_float32(self.exact.product), float(self.exact.product))
        if self.scale is not None:
            yield Step("scale", float(self.scale), float(self.scale), float(self.scale))
        yield Step("b_enc" if self.scale is None else "offset", float(np.float32(self.offset)), float(np.float32(self.offset)), self.offset)
        pre = self._finished(self.sums32[-1:])[0]
        yield Step("pre", float(pre), round_to_float32(self.exact.value), float(self.exact.value))

    def _finished(self, sums: np.ndarray) -> np.ndarray:
        """What a port in float32 makes of sums: its pre-activations, float32."""
        scaled = sums if self.scale is None else sums * self.scale
        finished: np.ndarray = scaled + np.float32(self.offset)
        return finished

    # --- a candidate --------------------------------------------------------------------------------------------------

    def _standing(self, candidate: Candidate) -> Standing:
        answer = candidate.cases.get(self.case.id)
        if answer is None:
            return Standing("it does not have this case")
        right = round_to_float32(self.exact.value) if self.exact.fires else 0.0
        places = [place for place, top in enumerate(listed(answer), 1) if top.feature == self.feature]
        if not places:
            within = self.exact.rank is not None and self.exact.rank <= len(self.encoding.top)
            should = f"it should be, at place {self.exact.rank}" if within else "as is right"
            return Standing(f"the feature is not on its list of {len(listed(answer))}: {should}")
        value = listed(answer)[places[0] - 1].activation
        off = abs(value - right)
        return Standing(
            f"the feature is at place {places[0]} of its list", value, off, off <= self.tolerance, tuple(self._equal_sums(value))
        )

    def _equal_sums(self, value: float) -> Iterator[str]:
        """What the candidate's number equals, bit for bit in float32."""
        number = np.float32(value)
        exact = [("the exact pre-activation, rounded once", self.exact.value), ("the exact product, without b_enc", self.exact.product)]
        exact += [("what it is held against", step.level) for step in self.exact.gate if step.level]
        exact += [("the exact distance from its gate", step.value - step.level) for step in self.exact.gate if step.level]
        for words, right in exact:
            if np.float32(round_to_float32(right)) == number:
                yield words
        n, added = len(self.sums32), ", with b_enc" if self.scale is None else ", with scale and offset"
        sums64 = np.add.accumulate(self.input.astype(np.float64) * self.column)
        for words, sums in (
            ("float32 sum of {}" + added, self._finished(self.sums32)), ("float32 sum of {}", self.sums32),
            ("float64 sum of {}" + added, self._finished64(sums64)), ("float64 sum of {}", sums64.astype(np.float32)),
        ):  # fmt: skip
            counts = np.flatnonzero(sums == number) + 1
            if len(counts):
                yield words.format(f"all {n} inputs" if counts[-1] == n else f"the first {counts[-1]} of {n} inputs")

    def _finished64(self, sums: np.ndarray) -> np.ndarray:
        scaled = sums if self.scale is None else sums * float(self.scale)
        finished: np.ndarray = (scaled + self.offset).astype(np.float32)
        return finished
