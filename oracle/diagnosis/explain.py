# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which of the mistakes, alone or two at once, reproduce the cases of a candidate that differ: of the encoder, or where that
agrees of the decoder.

The search has three steps. What a port prints first, a few features or values of its reconstructions, is predicted
from a few columns of its matrix, so that one pass over the weights screens every hypothesis, case by case. The few that
survive are evaluated whole, in further passes, and must reproduce all that the candidate printed of a case. Then the
mistakes that explain most of the cases are named, and those that explain most of the rest, and so on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

import vendored_hf
from oracle.checking.compare import residual_problems
from oracle.checking.lists import compare_case
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import CaseVerdict, Comparison
from oracle.diagnosis import mistakes
from oracle.diagnosis.decoder import DecoderTrial, answered
from oracle.diagnosis.encoder import EncoderTrial
from oracle.diagnosis.explanation import BITS_OF_A_VALUE, BITS_OF_TWO, Cause, Evidence, Explanation, Fit, Matches, Reading, causes_of, conclusions, relation
from oracle.diagnosis.layers import OTHER_L0, ExaminedCase, ExaminedLayer, Neighbourhood
from oracle.diagnosis.mistakes import DECODER_MISTAKES, ENCODER_MISTAKES, LABEL
from oracle.diagnosis.port import OWN, RESHAPED, Hypothesis, Mistake, pairs, singles
from oracle.references.document import Candidate, Case, CaseId, Reference
from oracle.references.recorded import RecordedLayer, RecordedWeights, residual_of
from oracle.references.rows import DataError
from oracle.weights.formats import ENCODER
from oracle.weights.sidefiles import W_DEC

MOST_CASES = 128  # examined
MOST_BESIDE = 6  # cases of a layer, where some of them do not differ
PRODUCT_BYTES = 24 * 1024 * 1024  # of right products that are held
COLUMN_BYTES = 24 * 1024 * 1024  # of columns of matrices that are kept, not read again

Trial = EncoderTrial | DecoderTrial


def explain(reference: Reference, candidate: Candidate, comparison: Comparison, weights: RecordedWeights) -> Explanation:
    """The cause of what `comparison`, which disagrees, is about. Raises as verify does; a correct candidate has no cause."""
    if comparison.agrees:
        return Explanation((), 0, ("the candidate agrees: there is nothing to explain",))
    answers = candidate.cases
    label: tuple[Mistake, ...] = ()
    from_0 = {case_id._replace(layer=case_id.layer - 1): _with_targets_from_0(case) for case_id, case in answers.items()}
    ids = {case.id for case in reference.cases}
    if len(ids & from_0.keys()) > len(ids & answers.keys()):
        answers, label = from_0, (LABEL,)
    shared = [(case, answers[case.id]) for case in reference.cases if case.id in answers]
    verdicts = [compare_case(reference, case, replace(answer, activation_sum=None, activation_sum_of_squares=None)) for case, answer in shared]
    wrong = [verdict.id for verdict in verdicts if not verdict.agrees]
    decodes_wrong = [case.id for case, answer in shared if case.id not in wrong and _decodes_wrong(case, answer, reference.d_out)]
    searches = [
        _Search(trial, own, {*wrong, *decodes_wrong}, answers, len(shared) - len(wrong) - len(decodes_wrong), weights, label).run()
        for trial, own in ((EncoderTrial, wrong), (DecoderTrial, decodes_wrong)) if own
    ]  # fmt: skip
    if searches:
        first, *others = searches
        for other in others:
            first = Explanation(
                first.causes + other.causes, first.examined + other.examined, first.known + other.known,
                tuple(dict.fromkeys(first.not_tried + other.not_tried)), first.n_wrong + other.n_wrong, first.n_right,
            )  # fmt: skip
        return first
    if not label and _differs_beside(reference, answers):
        beside = "the lists agree, and no mistake is tried of what stands beside them: what a sum has is below the lists, a fingerprint is the residual's"
        return Explanation((), len(verdicts), (beside,))
    if not label or not verdicts:
        what = "cases" if len(verdicts) < len(reference.cases) else "reconstructions"
        return Explanation((), len(verdicts), (f"the {what} that the candidate has agree; the others are missing",))
    return _labelled(verdicts, label)


def _labelled(verdicts: list[CaseVerdict], label: tuple[Mistake, ...]) -> Explanation:
    """Of cases that are right but for their labels."""
    difference = max(verdict.max_difference or 0.0 for verdict in verdicts)
    cause = Cause(tuple(verdict.id for verdict in verdicts), (Fit.of(label, len(verdicts), difference),))
    return Explanation((cause,), len(verdicts), n_wrong=len(verdicts))


def _differs_beside(reference: Reference, answers: dict[CaseId, Case]) -> bool:
    """Whether a case's sums or its fingerprint are wrong, and its list is not."""
    shared = [(case, answers[case.id]) for case in reference.cases if case.id in answers]
    return any(residual_problems(case, answer) or not compare_case(reference, case, answer).agrees for case, answer in shared)


def _with_targets_from_0(case: Case) -> Case:
    """A case of a candidate that counts layers from 1, its target layers too where they begin with its own."""
    if min((output.target_layer for output in case.outputs), default=None) != case.id.layer:
        return case
    return replace(case, reconstructions=tuple(replace(output, target_layer=output.target_layer - 1) for output in case.outputs))


def _decodes_wrong(case: Case, answer: Case, d_out: int) -> bool:
    """Whether a reconstruction that the candidate has is wrong; one that is missing has no cause."""
    return any(reconstruction_problems([expected], [output], d_out) for _, expected, output in answered(case, answer))


class _Search:
    """One search over the `wrong` cases of a candidate, or as many as there is room for. `others` differ too. `label` is a mistake of the labels that
    is known already, or none."""

    def __init__(
        self,
        trial: type[Trial],
        wrong: list[CaseId],
        others: set[CaseId],
        answers: dict[CaseId, Case],
        n_right: int,
        weights: RecordedWeights,
        label: tuple[Mistake, ...],
    ):
        self._trial, self._weights, self._label, self._n_wrong, self._n_right = trial, weights, label, len(wrong), n_right
        reference = weights.reference
        by_layer: dict[int, list[CaseId]] = {}
        for case_id in wrong:
            by_layer.setdefault(case_id.layer, []).append(case_id)
        most = max(1, min(MOST_CASES, PRODUCT_BYTES // (8 * reference.n_features)) // len(by_layer))
        sample = {case_id for own in by_layer.values() for case_id in own[:most]}
        # Beside the cases that differ some of the same layers that do not: who changes these is not as likely.
        beside = [case.id for case in reference.cases if case.id in answers and case.id.layer in by_layer and case.id not in others]
        rest: dict[int, list[CaseId]] = {}
        for case_id in beside:
            rest.setdefault(case_id.layer, []).append(case_id)
        looked_at = sample | {case_id for layer, own in rest.items() for case_id in own[: max(0, min(most, MOST_BESIDE) - len(by_layer[layer]))]}
        needed = replace(weights, reference=replace(reference, cases=tuple(case for case in reference.cases if case.id in looked_at)))
        self._trials = [trial(reference, _examined(layer, answers, reference)) for layer in needed.layers()]
        self._matches: Matches = {}
        self._readings = {reading.item.case.id: reading for trial in self._encoders for reading in trial.readings()}
        self._evidence = {item.case.id: self._evidence_of(item) for trial in self._trials for item in trial.layer.cases if item.case.id in sample}
        n_columns = sum(len(item.printed[0]) for trial in self._trials for item in trial.layer.cases) * 6
        self._keeps = 4 * n_columns * reference.input_length * 4 <= COLUMN_BYTES

    @property
    def _encoders(self) -> list[EncoderTrial]:
        return [trial for trial in self._trials if isinstance(trial, EncoderTrial)]

    def _evidence_of(self, item: ExaminedCase) -> Evidence:
        if reading := self._readings.get(item.case.id):
            printed = item.printed[1]
            return Evidence(reading.bits, reading.n_numbers, float(np.max(np.abs(printed), initial=0)), float(np.nansum((reading.right - printed) ** 2)))
        values = [output.first_10 for output in item.answer.outputs]
        n_numbers = sum(map(len, values))
        return Evidence(BITS_OF_A_VALUE * n_numbers, n_numbers, max((abs(value) for first in values for value in first), default=0.0))

    def run(self) -> Explanation:
        """Search with the files that the cache holds; where something is left, with those that may be fetched too."""
        with contextlib.ExitStack() as stack:
            for trial in self._trials:
                stack.enter_context(trial.layer.kept_open())
            explanation = self._search(self._weights.offline())
            may_fetch = not (self._weights.origin.offline or vendored_hf.is_offline_mode())
            if explanation.not_tried and self._open(explanation.causes) and may_fetch:
                explanation = self._search(self._weights)
        return explanation

    def _search(self, weights: RecordedWeights) -> Explanation:
        neighbourhood = Neighbourhood(weights, ENCODER if self._trial is EncoderTrial else weights.format.of_part(W_DEC)[0].role)
        for trial in self._trials:
            trial.layer.neighbours = neighbourhood.beside(trial.layer.own)
            trial.layer.vectors.clear()
        self._matches = {}
        causes = self._stage(lambda own: [hypothesis for hypothesis in singles(own) if not _is_far(hypothesis)], ())
        if self._open(causes):
            causes = self._stage(lambda own: [hypothesis for hypothesis in singles(own) if _is_far(hypothesis)], OTHER_L0.values())
        open_ids = self._open(causes)
        if open_ids and self._encoders:
            rows = mistakes.estimated([self._readings[case] for case in self._evidence if case in open_ids])
            causes = self._stage(lambda own: singles(tuple(row for row in own if row.estimated)), rows)
        # A label is one mistake of two; and what prints nothing has too many causes.
        open_ids = self._open(causes)
        if not self._label and sum(self._evidence[case].bits for case in open_ids) >= BITS_OF_TWO:
            causes = self._stage(pairs, OTHER_L0.values())
        open_ids = self._open(causes)
        known = self._known([case for case in self._evidence if case in open_ids]) if open_ids else []
        return Explanation(tuple(causes), len(self._evidence), tuple(known), tuple(neighbourhood.not_tried), self._n_wrong, self._n_right)

    def _open(self, causes: Iterable[Cause]) -> set[CaseId]:
        """The cases that have no cause."""
        return self._evidence.keys() - {case for cause in causes for case in cause.cases}

    def _stage(self, hypotheses: Callable[[tuple[Mistake, ...]], list[Hypothesis]], more: Iterable[Mistake]) -> list[Cause]:
        """Try hypotheses of the rows that can be computed on every layer, and say what the causes are then."""
        extra = list(more)
        for trial in self._trials:
            group = hypotheses(tuple(self._available(trial, extra)))
            passed = trial.screened(group)
            for hypothesis, own in trial.evaluated(passed).items():
                ids = {trial.layer.cases[number].case.id: match for number, match in own.items()}
                self._matches.setdefault(hypothesis, {}).update(ids)
            if not self._keeps:
                trial.forget()
        return causes_of(self._matches, self._evidence, self._label)

    def _available(self, trial: Trial, more: list[Mistake]) -> list[Mistake]:
        """The rows that a layer's weights have what they need for."""
        with trial.layer.opened(OWN) as weights:
            possible, k = mistakes.possible(weights, self._weights.reference), weights.settings.k or 0
        counts = {item.answer.n_active for item in trial.layer.cases}
        wrong_k = [mistakes.wrong_k(count, k) for count in counts - {0, k}] if k and len(counts) == 1 else []
        table = ENCODER_MISTAKES if isinstance(trial, EncoderTrial) else DECODER_MISTAKES
        rows = [*table, *wrong_k, *more]
        return [row for row in rows if possible.issuperset(row.needs) and row.fields <= set(trial.FIELDS)]

    def _known(self, ids: list[CaseId]) -> list[str]:
        """What is known of cases that have no cause."""
        readings = [self._readings[case] for case in ids if case in self._readings]
        if readings:
            # Beside cases that have a cause it is no whole account of which are right. The counts that are right must fit a factor too.
            n_right = self._n_right if len(readings) == self._n_wrong else 0
            return conclusions(readings, n_right, mistakes.threshold_factor(list(self._readings.values())))
        values = [reading for trial in self._trials for reading in trial.readings() if not isinstance(reading, Reading)]
        right, printed = (np.concatenate(column) for column in zip(*values))
        return relation(right, printed, "values of reconstructions")


def _is_far(hypothesis: Hypothesis) -> bool:
    """Whether a port takes another matrix, which takes a pass to look at."""
    return not {hypothesis.port.w_enc, hypothesis.port.w_dec} <= {OWN, RESHAPED}


def _examined(layer: RecordedLayer, answers: dict[CaseId, Case], reference: Reference) -> ExaminedLayer:
    """A layer with its cases. Raises DataError where its files are not those on record."""
    layer.hash_files()
    for file in layer.files.values():
        if file.problem:
            raise DataError(f"{file.file.path} is not the file that the reference was made from: its sha256 differs")
    examined = [ExaminedCase(case, answers[case.id], residual_of(reference, case)) for case in layer.cases]
    return ExaminedLayer(layer, (reference.d_model, reference.n_features), examined)
