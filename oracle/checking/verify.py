# SPDX-License-Identifier: MIT OR Apache-2.0
"""A reference recomputed from its weights: its residuals, its files and its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oracle.arithmetic.residual import fingerprint, residual
from oracle.checking.compare import (
    DIFFERS,
    SAME,
    CaseVerdict,
    compare_case,
    reconstruction_problems,
    tolerance_of,
    with_problems,
)
from oracle.job import Events, Job
from oracle.references import document
from oracle.references import generate as reference
from oracle.references import layer as task
from oracle.references.document import Document
from oracle.references.generate import RecordedLayer
from oracle.weights.layer import Decoder, LayerWeights


@dataclass(frozen=True)
class Verification:
    """A verdict for each case, and what is wrong with whole layers' files. `exact` is false for torch's references."""

    cases: tuple[CaseVerdict, ...]
    problems: tuple[str, ...]
    exact: bool

    @property
    def agrees(self) -> bool:
        return not self.problems and all(case.agrees for case in self.cases)


def verify(recorded: Document, job: Job, events: Events = Events(), *, by_curation: bool = False) -> Verification:
    """Recompute a reference that read_reference has read. Of the job only the source counts.

    Our own references must come out number for number; one that torch wrote within its tolerance, as a port must.
    Raises as generate does, and DataError where there is nothing that could be recomputed.
    """
    with_cases = {case["layer"] for case in recorded["test_cases"]}
    problems = [
        f"layer {record['layer']}: `layers` lists it, but no case is of it: nothing says whether its file is right"
        for record in recorded.get("layers", [])
        if record["layer"] not in with_cases
    ]
    verdicts: dict[int, CaseVerdict] = {}
    for layer in reference.recorded_layers(recorded, job, events, by_curation=by_curation):
        for file in (layer.weights, layer.decoder):
            if file and file.problem:
                problems.append(f"layer {layer.layer}: {file.problem}")
        with layer.opened() as (layer_weights, w_dec):
            problems += _formula_problems(recorded, layer, layer_weights)
            shape = [layer_weights.d_model, layer_weights.n_features]
            if shape != [recorded["d_model"], recorded["n_features_per_layer"]]:
                problem = (
                    f"wrong shape: {layer.weights.file.path} has [d_model, n_features] = {shape}, the reference "
                    f"{[recorded['d_model'], recorded['n_features_per_layer']]}"
                )
                problems.append(f"layer {layer.layer}: {problem}")
                verdicts |= {id(case): _verdict(case, problem) for case in layer.cases}
            else:
                verdicts |= _verify_layer(recorded, layer, layer_weights, w_dec)
                problems += _skipped_problems(recorded, layer, layer_weights)
    cases = tuple(verdicts[id(case)] for case in recorded["test_cases"])
    return Verification(cases, tuple(problems), "format_version" in recorded)


def _formula_problems(recorded: Document, layer: RecordedLayer, layer_weights: LayerWeights) -> list[str]:
    """What is wrong with the formula on record. What torch's references call it is their affair."""
    formula = layer.schema.encoder_formula(layer_weights.has_threshold, layer_weights.has_negative)
    # Of several layers it is enough that one has a negative threshold.
    right = {formula, layer.schema.encoder_formula(layer_weights.has_threshold, True)}
    if "format_version" not in recorded or recorded["encoder_formula"] in right:
        return []
    shown = ascii(recorded["encoder_formula"][:80])
    return [f"layer {layer.layer}: wrong encoder_formula: {shown}, its weights are encoded by {formula!r}"]


def _verify_layer(
    recorded: Document, layer: RecordedLayer, layer_weights: LayerWeights, w_dec: Decoder | None
) -> dict[int, CaseVerdict]:
    residuals = np.stack([residual_of(recorded, case) for case in layer.cases])  # [n_cases, d_model]
    tolerance = tolerance_of(recorded)
    answers = task.encode_residuals(layer_weights, residuals, recorded.get("top_k", 10), tolerance, w_dec)
    top = document.top_key(recorded)
    verdicts = {}
    for case, values, answer in zip(layer.cases, residuals, task.answers(answers, top)):
        made = {"layer": layer.layer, "seed": case["seed"], **answer}
        verdict = compare_case(made, case, top, layer_weights.n_features, tolerance, "the weights give")
        if w_dec:
            problems = reconstruction_problems(made, case, layer_weights.d_model, "the weights give")
            verdict = with_problems(verdict, problems)
        if "format_version" in recorded:
            verdict = _exact_verdict(made, case, values, verdict)
        verdicts[id(case)] = verdict
    return verdicts


def _skipped_problems(recorded: Document, layer: RecordedLayer, layer_weights: LayerWeights) -> list[str]:
    """What is wrong with the seeds that the reference says it passed over in this layer."""
    if "skipped_seeds" not in recorded:
        return []
    skipped = [record for record in recorded["skipped_seeds"] if record["layer"] == layer.layer]
    seeds = [record["seed"] for record in skipped]
    made = task.skipped_records(layer_weights, seeds, recorded["top_k"], tolerance_of(recorded)) if seeds else []
    problems = [
        f"skipped seed {ours['seed']}: the weights give flags {ours['flags']}, and its record is another"
        for ours, theirs in zip(made, skipped)
        if ours != theirs or not ours["flags"]
    ]
    # --robust goes through the seeds one by one: none is passed over without a reason on record.
    tried = sorted([*seeds, *(case["seed"] for case in layer.cases)])
    expected = document.seeds(layer.layer, range(len(tried)))
    untold = next((seed for seed, there in zip(expected, tried) if seed != there), None)
    if untold is not None:
        problems.append(f"seed {untold} is neither that of a case nor among skipped_seeds, and {tried[-1]} is")
    return [f"layer {layer.layer}: {problem}" for problem in problems]


def _exact_verdict(made: Document, case: Document, values: np.ndarray, verdict: CaseVerdict) -> CaseVerdict:
    """Of our own references every number can be made again: what rounding would excuse in a port was edited here."""
    problems = []
    right = fingerprint(values)
    if case["residual_fingerprint"] != right:
        problems.append(f"wrong fingerprint: {case['residual_fingerprint'][:18]}, its generator gives {right}")
    if "residual" in case and not np.array_equal(np.array(case["residual"], np.float64), values):
        problems.append("wrong residual: its values are not those that its generator gives")
    # Our first references do not name their gate ties, for which compare holds ports to them all the closer.
    wrong = [key for key, value in made.items() if case.get(key, ...) != value and (key in case or key != "gate_ties")]
    if wrong:
        shown = (
            verdict.problems
            or verdict.notes
            or tuple(f"{key} is {case.get(key)}, recomputed {made[key]}" for key in wrong[:1])
        )
        problems += [f"wrong numbers ({', '.join(wrong)})", *shown]
    return _verdict(case, *problems, largest=verdict.largest, feature=verdict.feature)


def residual_of(recorded: Document, case: Document) -> np.ndarray:
    """The residual of a case, float32 [d_model]: from the generator where the reference names it, else the recorded one."""
    if "residual_generator" in recorded:
        return residual(case["seed"], case["stream"], recorded["d_model"])
    with np.errstate(over="ignore"):
        values = np.array(case["residual"], np.float64).astype(np.float32)
    if not np.all(np.isfinite(values)):
        raise document.DataError(f"layer {case['layer']} seed {case['seed']}: its residual overflows float32")
    return values


def _verdict(case: Document, *problems: str, largest: float | None = None, feature: int | None = None) -> CaseVerdict:
    return CaseVerdict(case["layer"], case["seed"], DIFFERS if problems else SAME, problems, (), largest, feature)
