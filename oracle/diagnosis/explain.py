# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which of the mistakes, alone or two at once, reproduces a candidate: of the encoder, or where that agrees of the decoder.

The search has three steps. What a port prints first, a few features or values of its reconstructions, is predicted
from a few columns of its matrix, so that one pass over the weights screens every hypothesis. The few that survive are
evaluated whole, in further passes, and must reproduce all that the candidate printed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import vendored_hf
from oracle.checking.compare import residual_problems
from oracle.checking.lists import compare_case
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import Comparison
from oracle.diagnosis import mistakes
from oracle.diagnosis.decoder import DecoderTrial, answered
from oracle.diagnosis.encoder import EncoderTrial
from oracle.diagnosis.explanation import Explanation, Fit, Match, ranked, relation
from oracle.diagnosis.layers import BESIDE, OTHER_L0, ExaminedCase, ExaminedLayer, Neighbourhood
from oracle.diagnosis.mistakes import MISTAKES, NEGATIVE, W_SKIP, Hypothesis, Mistake
from oracle.diagnosis.port import OWN, Port
from oracle.diagnosis.products import in_memory, multiply
from oracle.references.document import Candidate, Case, CaseId, Reference
from oracle.references.recorded import RecordedLayer, RecordedWeights, residual_of
from oracle.references.rows import DataError
from oracle.weights.formats import ENCODER
from oracle.weights.layer import LayerWeights
from oracle.weights.sidefiles import W_DEC

MOST_CASES_PER_LAYER = 6  # examined; those that disagree come first
MOST_ROWS = 192  # of products that are evaluated of one matrix
PRODUCT_BYTES = 12 * 1024 * 1024  # of products and factors held at once

Trial = EncoderTrial | DecoderTrial


def explain(reference: Reference, candidate: Candidate, comparison: Comparison, weights: RecordedWeights) -> Explanation:
    """The cause of what `comparison`, which disagrees, is about. Raises as verify does; a correct candidate has no cause."""
    if comparison.agrees:
        return Explanation((), (), 0, ("the candidate agrees: there is nothing to explain",))
    answers = candidate.cases
    label: tuple[Mistake, ...] = ()
    trial: type[Trial] = EncoderTrial
    from_0 = {case_id._replace(layer=case_id.layer - 1): _with_targets_from_0(case) for case_id, case in answers.items()}
    ids = {case.id for case in reference.cases}
    if len(ids & from_0.keys()) > len(ids & answers.keys()):
        answers, label = from_0, tuple(row for row in MISTAKES if row.field == "label")
    pairs = [(case, answers[case.id]) for case in reference.cases if case.id in answers]
    verdicts = [compare_case(reference, case, replace(answer, activation_sum=None, activation_sum_of_squares=None)) for case, answer in pairs]
    wrong = {verdict.id for verdict in verdicts if not verdict.agrees}
    if not wrong:
        wrong, trial = {case.id for case, answer in pairs if _decodes_wrong(case, answer, reference.d_out)}, DecoderTrial
    if wrong:
        layers = [_examined(layer, answers, wrong, reference, trial) for layer in weights.layers()]
        return _Search(trial, [layer for layer in layers if layer.cases], weights, label).run()
    if not label and _differs_beside(reference, answers):
        beside = "the lists agree, and no mistake is tried of what stands beside them: what a sum has is below the lists, a fingerprint is the residual's"
        return Explanation((), (), len(verdicts), (beside,))
    if not label or not verdicts:
        what = "cases" if len(verdicts) < len(reference.cases) else "reconstructions"
        return Explanation((), (), len(verdicts), (f"the {what} that the candidate has agree; the others are missing",))
    difference = max(verdict.max_difference or 0.0 for verdict in verdicts)
    return Explanation((Fit.of(label, Match(difference, frozenset(case.id for case, _ in pairs))),), (), len(verdicts))


def _differs_beside(reference: Reference, answers: dict[CaseId, Case]) -> bool:
    """Whether a case's sums or its fingerprint are wrong, and its list is not."""
    pairs = [(case, answers[case.id]) for case in reference.cases if case.id in answers]
    return any(residual_problems(case, answer) or not compare_case(reference, case, answer).agrees for case, answer in pairs)


def _with_targets_from_0(case: Case) -> Case:
    """A case of a candidate that counts layers from 1, its target layers too where they begin with its own."""
    if min((output.target_layer for output in case.outputs), default=None) != case.id.layer:
        return case
    return replace(case, reconstructions=tuple(replace(output, target_layer=output.target_layer - 1) for output in case.outputs))


def _decodes_wrong(case: Case, answer: Case, d_out: int) -> bool:
    """Whether a reconstruction that the candidate has is wrong; one that is missing has no cause."""
    return any(reconstruction_problems([expected], [output], d_out) for _, expected, output in answered(case, answer))


def _examined(
    layer: RecordedLayer, answers: dict[CaseId, Case], wrong: set[CaseId], reference: Reference, trial: type[Trial]
) -> ExaminedLayer:
    """A layer with some of its cases, perhaps none. Raises DataError where its files are not those on record."""
    layer.hash_files()
    for file in layer.files.values():
        if file.problem:
            raise DataError(f"{file.file.path} is not the file that the reference was made from: its sha256 differs")
    cases = [case for case in layer.cases if case.id in answers]
    if trial is DecoderTrial:
        cases = [case for case in cases if answered(case, answers[case.id])]
    cases = sorted(cases, key=lambda case: case.id not in wrong)[:MOST_CASES_PER_LAYER]
    examined = [ExaminedCase(case, answers[case.id], residual_of(reference, case), case.id in wrong) for case in cases]
    return ExaminedLayer(layer, (reference.d_model, reference.n_features), examined)


class _Search:
    """One search over the cases that are examined. `label` is a mistake of the labels that is known already, or none."""

    def __init__(self, trial: type[Trial], layers: list[ExaminedLayer], weights: RecordedWeights, label: tuple[Mistake, ...]):
        self._trial, self._layers, self._weights, self._label = trial, layers, weights, label
        self._trials = [trial(weights.reference, layer) for layer in layers]
        self._printed: list[tuple[np.ndarray, np.ndarray]] = []  # what is right of what was printed first, and what was printed

    def run(self) -> Explanation:
        """Search with the files that the cache holds; where nothing fits, with those that may be fetched too."""
        explanation = self._search(self._weights.offline())
        may_fetch = not (self._weights.origin.offline or vendored_hf.is_offline_mode())
        if explanation.not_tried and not explanation.named and may_fetch:
            explanation = self._search(self._weights)
        return explanation

    def _search(self, weights: RecordedWeights) -> Explanation:
        neighbourhood = Neighbourhood(weights, ENCODER if self._trial is EncoderTrial else weights.format.of_part(W_DEC)[0].role)
        for layer in self._layers:
            layer.neighbours = neighbourhood.beside(layer.own)
        examined, not_tried = sum(len(layer.cases) for layer in self._layers), tuple(neighbourhood.not_tried)
        rows = self._available()
        # A label is one mistake of two; and what prints nothing has too many causes.
        most = 2 if not self._label and any(trial.prints for trial in self._trials) else 1
        groups = [mistakes.hypotheses(rows, how_many) for how_many in range(1, most + 1)]
        self._printed.clear()
        alive = self._survivors([Hypothesis(), *itertools.chain(*groups)], whole=False)
        right, printed = (np.concatenate(column) for column in zip(*self._printed))
        for group in groups:
            matches = self._survivors([hypothesis for hypothesis in group if hypothesis in alive], whole=True)
            # Who reproduces less of what is wrong says nothing but what is right anyway.
            most_wrong = max((match.n_wrong for match in matches.values()), default=0)
            fits = [
                Fit.of(self._label + hypothesis.mistakes, match)
                for hypothesis, match in matches.items()
                if match.n_wrong == most_wrong > 0
            ]
            if fits:
                named, also = ranked(fits, float(np.max(np.abs(printed), initial=0.0)))
                return Explanation(named, also, examined, (), not_tried)
        return Explanation((), (), examined, relation(right, printed, self._trial.PRINTED), not_tried)

    def _available(self) -> list[Mistake]:
        """The rows that can be computed: where a file is missing for one layer, its row is left out for all."""
        possible: list[set[str]] = []
        k = 0
        for layer in self._layers:
            with layer.opened(OWN) as weights:
                possible.append(mistakes.possible(weights, self._weights.reference))
                k = weights.settings.k or 0
        # One layer with W_skip, or a negative threshold, is enough; all else has to be so in all of them.
        available = set.intersection(*possible) | set.union(*possible) & {NEGATIVE, W_SKIP}
        counts = {item.answer.n_active for layer in self._layers for item in layer.cases if item.is_wrong}
        wrong_k = [mistakes.wrong_k(count, k) for count in counts - {0, k}] if k and len(counts) == 1 else []
        missing = {
            name
            for name in (*BESIDE, *OTHER_L0)
            if not all(name in layer.neighbours for layer in self._layers) or not any(layer.neighbours[name] for layer in self._layers)
        }
        return [
            row
            for row in (*MISTAKES, *wrong_k, *OTHER_L0.values())
            if row.field in self._trial.FIELDS and available.issuperset(row.needs)
            if not (row.field == self._trial.MATRIX and row.value in missing)
        ]

    def _survivors(self, hypotheses: list[Hypothesis], *, whole: bool) -> dict[Hypothesis, Match]:
        """Those that no layer refutes, by its first values or by the `whole` of it, and how they match it."""
        matches = dict.fromkeys(hypotheses, Match())
        for trial in self._trials:
            for name in (OWN, *(name for name, neighbour in trial.layer.neighbours.items() if neighbour)):
                group = [hypothesis for hypothesis in matches if trial.layer.file_of(getattr(hypothesis.port, trial.MATRIX)) == name]
                if not group:
                    continue
                results: dict[Hypothesis, Match | None] = {}
                with trial.layer.opened(name) as weights:
                    for hypothesis, product in _predict(trial, weights, group, whole=whole):
                        arguments = hypothesis.port, product, weights
                        results[hypothesis] = trial.evaluate(*arguments) if whole else self._screen(trial, *arguments)
                for hypothesis in group:
                    match = results.get(hypothesis)
                    if match is None:
                        del matches[hypothesis]
                    else:
                        matches[hypothesis] += match
        return matches

    def _screen(self, trial: Trial, port: Port, product: np.ndarray, weights: LayerWeights) -> Match | None:
        """Whether a port prints the first values. Raises DataError where a right one does not print the reference's."""
        values, printed, off = trial.first_values(port, product, weights)
        if port != Port():
            return Match() if np.all(np.abs(values - printed) <= off) else None
        self._printed.append((values, printed))
        values, expected, off = trial.first_values(port, product, weights, of_reference=True)
        if not np.all(np.abs(values - expected) <= off):
            raise DataError(
                f"layer {trial.layer.own.layer}: the reference is not what these weights give, so they cannot explain a "
                "difference from it; `verify` says more"
            )
        return Match()


def _predict(
    trial: Trial, weights: LayerWeights, hypotheses: list[Hypothesis], *, whole: bool
) -> Iterator[tuple[Hypothesis, np.ndarray]]:
    """The product of each hypothesis for a trial, all of it or what the first values need; of too many only the first."""
    by_array: dict[str, dict[Port, list[Hypothesis]]] = {}
    for hypothesis in hypotheses:
        by_product = by_array.setdefault(getattr(hypothesis.port, trial.MATRIX), {})
        by_product.setdefault(hypothesis.port.only(trial.PRODUCT_FIELDS), []).append(hypothesis)
    n_cases = len(trial.layer.cases)
    for array, by_product in by_array.items():
        matrix, n_outputs = trial.matrix(array, weights), trial.n_outputs(weights)
        ports = list(by_product)
        if whole:
            ports = ports[: max(1, MOST_ROWS // n_cases)]
        else:
            outputs = trial.screened(weights)
            matrix, n_outputs = in_memory(matrix.columns(outputs)), len(outputs)
        at_once = max(1, PRODUCT_BYTES // (8 * n_cases * (n_outputs + trial.n_inputs)))
        for start in range(0, len(ports), at_once):
            batch = ports[start : start + at_once]
            factors = [trial.factors(port, weights) for port in batch]
            for port, product in zip(batch, multiply(matrix, n_outputs, factors, [trial.roundings(port) for port in batch])):
                for hypothesis in by_product[port]:
                    yield hypothesis, product
