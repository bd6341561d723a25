# SPDX-License-Identifier: MIT OR Apache-2.0
"""A reference recomputed from its weights: its residuals, its files and its numbers."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from oracle.arithmetic.constants import seeds
from oracle.arithmetic.residual import fingerprint
from oracle.checking.lists import compare_case
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import DIFFERS, RECORD, RESIDUAL, SAME, SHAPE, CaseVerdict, Problem, Verification
from oracle.references.document import Case, CaseId, Reference
from oracle.references.layer import Arithmetic, encode_residuals, input_of, skipped_seeds
from oracle.references.recorded import RecordedLayer, RecordedWeights, residual_of
from oracle.weights.layer import LayerWeights

# Which the first references do not have.
ADDED = ("activation_sum", "activation_sum_tolerance", "activation_sum_of_squares", "activation_sum_of_squares_tolerance")
LISTS = ("top", "reconstructions")  # whose numbers are compared one by one
RECOMPUTED = [item.name for item in fields(Case) if item.name not in ("id", "stream", "residual", "residual_fingerprint")]


def verify(weights: RecordedWeights) -> Verification:
    """Recompute a reference from its weights.

    Our own references must come out number for number; one that torch wrote within its tolerance, as a port must.
    Raises as generate does, and DataError where there is nothing that could be recomputed.
    """
    reference = weights.reference
    problems = [
        f"layer {record.layer}: `layers` lists it, but no case is of it: nothing says whether its file is right"
        for record in reference.layers
        if record.layer not in reference.by_layer
    ]
    if reference.edited:
        problems.append("the reference was edited: its digest is not that of what it says")
    verdicts: dict[CaseId, CaseVerdict] = {}
    for layer in weights.layers():
        with layer.opened(hashed=True) as layer_weights:
            layer_problems = _formula_problems(reference, layer_weights)
            shape = [layer_weights.d_model, layer_weights.n_features]
            if shape == [reference.d_model, reference.n_features]:
                verdicts |= _verify_layer(reference, layer, layer_weights)
                layer_problems += _seed_problems(reference, layer, layer_weights)
            else:
                problem = (
                    f"wrong shape: {layer_weights.label} has [d_model, n_features] = {shape}, the reference "
                    f"{[reference.d_model, reference.n_features]}"
                )
                layer_problems.append(problem)
                verdicts |= {case.id: CaseVerdict(case.id, DIFFERS, (Problem(subject=SHAPE, reason=problem),)) for case in layer.cases}
        problems += [f"layer {layer.layer}: {problem}" for problem in (*layer.problems, *layer_problems)]
    return Verification(tuple(verdicts[case.id] for case in reference.cases), tuple(problems), reference.is_ours)


def _formula_problems(reference: Reference, weights: LayerWeights) -> list[str]:
    """What is wrong with the schema and the formula on record. What torch's references call them is their affair."""
    if not reference.is_ours:
        return []
    problems = []
    if reference.schema != weights.schema:
        problems.append(f"wrong schema: {ascii(reference.schema)}, its weights are of {weights.schema}")
    if input_of(reference.encoder_input or {}, weights.layer) != weights.encoder_input.record:
        problems.append(f"wrong encoder_input: its weights are encoded with {weights.encoder_input.record}")
    if any((reference.gate or {}).get(key) != value for key, value in weights.gate.record.items()):
        problems.append(f"wrong gate: its weights have {weights.gate.record}")
    arithmetic = Arithmetic.of(weights)
    if reference.tensors is not None and reference.tensors != arithmetic.tensors:
        problems.append("wrong tensors: its weights have others, or in another order of their axes")
    formula = arithmetic.negative_formula if weights.n_negative_thresholds else arithmetic.formula
    # Of several layers it is enough that one has a negative threshold.
    if reference.encoder_formula not in (formula, arithmetic.negative_formula):
        shown = ascii((reference.encoder_formula or "")[:80])
        problems.append(f"wrong encoder_formula: {shown}, its weights are encoded by {formula!r}")
    return problems


def _verify_layer(reference: Reference, layer: RecordedLayer, weights: LayerWeights) -> dict[CaseId, CaseVerdict]:
    residuals = np.stack([residual_of(reference, case) for case in layer.cases])  # [n_cases, d_model]
    own = "tolerance" in reference.residuals.own_keys
    encodings = encode_residuals(weights, residuals, reference.top_k, reference.tolerance, own_tolerances=own, decode=reference.decodes)
    verdicts = {}
    for case, values, right in zip(layer.cases, residuals, encodings.cases([case.id for case in layer.cases])):
        verdict = compare_case(reference, right, case).with_problems(reconstruction_problems(right.outputs, case.outputs, weights.d_out))
        verdicts[case.id] = _exact_verdict(reference, right, case, values, verdict) if reference.is_ours else verdict
    return verdicts


def _seed_problems(reference: Reference, layer: RecordedLayer, weights: LayerWeights) -> list[str]:
    """What is wrong with the seeds of a layer, and with those that the reference says it passed over."""
    if not reference.is_ours:
        return []
    if reference.residuals.is_of_file:
        rows = sorted(case.id.number for case in layer.cases)
        lost = next((number for number, row in enumerate(rows) if number != row), None)
        return [] if lost is None else [f"row {lost} is not that of a case, and row {rows[-1]} is"]
    skipped = [record for record in reference.skipped_seeds or () if record.id.layer == layer.layer]
    numbers = [record.id.number for record in skipped]
    margin = reference.robust_margin or reference.tolerance
    recomputed = skipped_seeds(weights, numbers, reference.top_k, margin, reference.residuals.scale) if numbers else []
    problems = [
        f"skipped seed {right.id.number}: the weights give flags {list(right.flags)}, and its record is another"
        for right, record in zip(recomputed, skipped)
        if right != record or not right.flags
    ]
    # The seeds are gone through one by one: none is passed over without a reason on record.
    tried = sorted([*numbers, *(case.id.number for case in layer.cases)])
    expected = seeds(layer.layer, range(len(tried)))
    missing = next((seed for seed, number in zip(expected, tried) if seed != number), None)
    if missing is not None:
        problems.append(f"seed {missing} is neither that of a case nor among skipped_seeds, and {tried[-1]} is")
    streams = [case.stream for case in layer.cases if case.stream != layer.layer]
    if streams:
        problems.append(f"a case has stream {streams[0]}: a layer's number is the stream of its residuals")
    return problems


def _exact_verdict(reference: Reference, right: Case, case: Case, values: np.ndarray, verdict: CaseVerdict) -> CaseVerdict:
    """Of our own references every number can be made again: what rounding would excuse in a port was edited here."""
    problems = []
    source = "its residual" if reference.residuals.is_of_file else "its generator"
    if case.residual_fingerprint != fingerprint(values):
        problems.append(
            Problem(
                subject=RESIDUAL, quantity="residual_fingerprint", expected=fingerprint(values), answer=str(case.residual_fingerprint)[:18],
                reason=f"wrong fingerprint: {source} gives another",
            )
        )  # fmt: skip
    if case.residual is not None and not np.array_equal(np.array(case.residual, np.float64), values):
        what = "no float32" if reference.residuals.is_of_file else "not those that its generator gives"
        problems.append(Problem(subject=RESIDUAL, reason=f"wrong residual: its values are {what}"))
    lacking = () if any(getattr(case, name) is not None for name in ADDED) else ADDED
    wrong = [name for name in RECOMPUTED if name not in lacking and getattr(case, name) != getattr(right, name)]
    if wrong:
        keys = [reference.top_key if name == "top" else name for name in wrong]
        within = f": {verdict.summary}" if verdict.notes else ""
        problems.append(Problem(subject=RECORD, reason=f"wrong numbers ({', '.join(keys)}){within}"))
        problems += verdict.problems
        known = {problem.measure for problem in verdict.problems}
        problems += [_record_problem(name, getattr(right, name), getattr(case, name)) for name in wrong if name not in (*known, *LISTS)]
    return replace(verdict, status=DIFFERS if problems else SAME, problems=tuple(problems), notes=())


def _record_problem(name: str, right: object, value: object) -> Problem:
    """A number of the record, or a few, that the weights give otherwise."""
    if isinstance(right, (int, float)) and isinstance(value, (int, float)):
        return Problem(subject=RECORD, quantity=name, expected=right, answer=value, difference=abs(right - value))
    texts = (("none" if side is None else ", ".join(map(str, side)) if isinstance(side, tuple) else str(side)) or "none" for side in (right, value))
    expected, answer = (ascii(text)[1:-1][:80] for text in texts)
    return Problem(subject=RECORD, quantity=name, expected=expected, answer=answer)
