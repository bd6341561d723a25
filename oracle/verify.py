# SPDX-License-Identifier: MIT OR Apache-2.0
"""A reference recomputed from its weights: its residuals, its files and its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oracle import compare, document, encoder, reference, residual, schemas, weights
from oracle.compare import DIFFERS, SAME, CaseVerdict
from oracle.document import Document
from oracle.reference import Events, Job, RecordedLayer


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
    problems: list[str] = []
    verdicts: dict[int, CaseVerdict] = {}
    for layer in reference.recorded_layers(recorded, job, events, by_curation=by_curation):
        if layer.recorded_sha256 is not None and layer.sha256 != layer.recorded_sha256:
            problems.append(
                f"layer {layer.layer}: wrong sha256: {layer.file.path} has {layer.sha256[:16]}..., "
                f"the reference was made from {layer.recorded_sha256[:16]}..."
            )
        with open(layer.path, "rb", buffering=0) as reader:
            layer_weights = schemas.open_layer(schemas.GEMMA_SCOPE_NPZ, reader, layer.file.path)
            shape = [layer_weights.d_model, layer_weights.n_features]
            if shape != [recorded["d_model"], recorded["n_features_per_layer"]]:
                problem = (
                    f"wrong shape: {layer.file.path} has [d_model, n_features] = {shape}, the reference "
                    f"{[recorded['d_model'], recorded['n_features_per_layer']]}"
                )
                problems.append(f"layer {layer.layer}: {problem}")
                verdicts |= {id(case): _verdict(case, problem) for case in layer.cases}
            else:
                verdicts |= _verify_layer(recorded, layer, layer_weights)
    cases = tuple(verdicts[id(case)] for case in recorded["test_cases"])
    return Verification(cases, tuple(problems), "format_version" in recorded)


def _verify_layer(recorded: Document, layer: RecordedLayer, layer_weights: schemas.LayerWeights) -> dict[int, CaseVerdict]:
    residuals = np.stack([residual_of(recorded, case) for case in layer.cases])  # [n_cases, d_model]
    try:
        encodings = encoder.encode(
            layer_weights.w_enc_blocks,
            lambda: (layer_weights.b_enc, layer_weights.gate),
            residuals,
            k=recorded.get("top_k", 10),
            tolerance=compare.tolerance_of(recorded),
        ).encodings
    except encoder.NotFiniteError as error:
        raise weights.WeightsError(f"{layer.file.path}: {error}") from error
    top = document.top_key(recorded)
    verdicts = {}
    for case, values, encoding in zip(layer.cases, residuals, encodings):
        made = {
            "layer": layer.layer,
            "seed": case["seed"],
            "n_active": encoding.n_active,
            "n_active_bounds": list(encoding.n_active_bounds),
            "rank_margin": encoding.rank_margin,
            "gate_margin": encoding.gate_margin,
            "flags": encoding.flags,
            top: [{"index": index, "activation": value} for index, value in encoding.top],
        }
        verdict = compare.compare_case(
            made, case, top, layer_weights.n_features, compare.tolerance_of(recorded), "the weights give"
        )
        if "format_version" in recorded:
            verdict = _exact_verdict(made, case, values, verdict)
        verdicts[id(case)] = verdict
    return verdicts


def _exact_verdict(made: Document, case: Document, values: np.ndarray, verdict: CaseVerdict) -> CaseVerdict:
    """Of our own references every number can be made again: what rounding would excuse in a port was edited here."""
    problems = []
    fingerprint = residual.fingerprint(values)
    if case["residual_fingerprint"] != fingerprint:
        problems.append(f"wrong fingerprint: {case['residual_fingerprint'][:18]}, its generator gives {fingerprint}")
    if "residual" in case and not np.array_equal(np.array(case["residual"], np.float64), values):
        problems.append("wrong residual: its values are not those that its generator gives")
    wrong = [key for key, value in made.items() if case.get(key, ...) != value]
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
        return residual.residual(case["seed"], case["stream"], recorded["d_model"])
    with np.errstate(over="ignore"):
        values = np.array(case["residual"], np.float64).astype(np.float32)
    if not np.all(np.isfinite(values)):
        raise document.DataError(f"layer {case['layer']} seed {case['seed']}: its residual overflows float32")
    return values


def _verdict(case: Document, *problems: str, largest: float | None = None, feature: int | None = None) -> CaseVerdict:
    return CaseVerdict(case["layer"], case["seed"], DIFFERS if problems else SAME, problems, (), largest, feature)
