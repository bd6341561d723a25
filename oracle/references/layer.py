# SPDX-License-Identifier: MIT OR Apache-2.0
"""One layer of a job, from its open weight files to its cases. Layers know nothing of each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from oracle.arithmetic import decoder, encoder
from oracle.arithmetic.chain import Inputs
from oracle.arithmetic.constants import ABSTOPK, GATED, GROUPMAX, IDENTITY, JUMPRELU, LAYER_NORM, RELU, SCALED, TOPK, UNIT_RMS, seeds
from oracle.arithmetic.encoder import Encoding
from oracle.arithmetic.products import NotFiniteError
from oracle.arithmetic.residual import fingerprint, residual
from oracle.errors import BadData, WeightsError
from oracle.job import MIN_TOLERANCE, Job
from oracle.references.document import NO_ACTIVE_FEATURES, Case, CaseId, Reconstruction, SkippedSeed, TopFeature, row_case, seed_case
from oracle.references.origins import LayerRecord
from oracle.references.plan import LayerFiles
from oracle.references.rows import Document
from oracle.sources.source import SourceFile
from oracle.weights.formats import DECODER, ENCODER, SIDE, Format, TensorSpec
from oracle.weights.layer import LayerWeights
from oracle.weights.sidefiles import W_DEC, W_ENC, W_SKIP, Context, Settings

VALUES_AT_ONCE = 1 << 21  # pre-activations: each takes 100 bytes until its seed is decided
SEEDS_AT_ONCE = 16  # at most, a pass over W_enc for each group: its products take less than the results of 300 seeds
MOST_SKIPPED = 100  # seeds of a layer that --robust passes over before it gives up


class RobustError(BadData, ValueError):
    """No seed gives a case without a flag."""


class LayerTask(NamedTuple):
    """All that a layer's cases depend on: the job, those of the layer's files that it reads, and what is said of it elsewhere.

    `rows` are its residuals, float32 [n, input_length], where the job names a file of them: the values travel, not the path.
    """

    job: Job
    format: Format
    files: LayerFiles
    context: Context
    rows: np.ndarray | None = None


class Arithmetic(NamedTuple):
    """What a layer's weights are encoded by, as the JSON has it; `negative_formula` is that of layers with negative thresholds.

    `ignored` are keys of its side file that were passed over on demand, `notes` what a user should know.
    """

    schema: str
    formula: str
    negative_formula: str
    decoder_formula: str
    tensors: Document
    gate: Document
    encoder_input: Document
    ignored: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, weights: LayerWeights) -> Arithmetic:
        settings, tensors = weights.settings, weights.tensors
        formula, negative_formula = (_encoder_formula(settings, tensors[W_ENC], has_negative) for has_negative in (False, True))
        records = {part: {"name": spec.name, "axes": list(spec.axes)} for part, spec in tensors.items()}
        return cls(
            weights.schema, formula, negative_formula, _decoder_formula(weights), records, weights.gate_record, weights.encoder_input.record,
            settings.ignored, settings.notes,
        )  # fmt: skip

    @property
    def n_negative_thresholds(self) -> int:
        count: int = self.gate.get("n_negative_thresholds", 0)
        return count


def input_record(of_layers: dict[int, Document]) -> Document:
    """What the JSON says of the encoder's input, of all layers: a factor that differs stands with each layer."""
    records = list(of_layers.values())
    if all(record == records[0] for record in records):
        return records[0]
    factors = {str(layer): record["factor"] for layer, record in of_layers.items()}
    return {key: value for key, value in records[0].items() if key != "factor"} | {"factor_of_layer": factors}


def input_of(record: Document, layer: int) -> Document:
    """What such a record says of one layer."""
    factors = record.get("factor_of_layer")
    if not isinstance(factors, dict):
        return record
    own = {key: value for key, value in record.items() if key != "factor_of_layer"}
    return {"kind": own.pop("kind", None), "factor": factors.get(str(layer)), **own}


class LayerResult(NamedTuple):
    """What a layer gives: `record` is its entry in the JSON's `layers`, with its repo and revision.

    `skipped` are the seeds that --robust passed over.
    """

    record: LayerRecord
    cases: list[Case]
    skipped: list[SkippedSeed]
    d_model: int
    d_out: int
    n_input_layers: int | None
    n_features: int
    arithmetic: Arithmetic
    float32_max_abs_error: float
    n_settled: int


@dataclass(eq=False)
class Encodings:
    """Encodings and reconstructions, in the order of the residuals; float32's largest error, and how many were settled.

    `tolerances` are the cases' own, where they were asked for.
    """

    encodings: list[Encoding] = field(default_factory=list)
    tolerances: list[float] = field(default_factory=list)
    reconstructions: list[tuple[Reconstruction, ...]] = field(default_factory=list)
    float32_max_abs_error: float = 0.0
    n_settled: int = 0
    input_fingerprints: list[str] = field(default_factory=list)

    def count(self, error: float, n_settled: int) -> None:
        """Take more pre-activations into the two figures."""
        self.float32_max_abs_error = max(self.float32_max_abs_error, error)
        self.n_settled += n_settled

    def cases(self, ids: list[CaseId]) -> list[Case]:
        """A case for each encoding, without its residual."""
        return [
            Case(
                id=case_id,
                tolerance=self.tolerances[number] if self.tolerances else None,
                n_active=encoding.n_active,
                top=tuple(TopFeature(*top) for top in encoding.top),
                reconstructions=self.reconstructions[number] if self.reconstructions else None,
                n_active_bounds=encoding.n_active_bounds,
                rank_margin=encoding.rank_margin,
                gate_margin=encoding.gate_margin,
                gate_ties=None if encoding.gate_ties is None else tuple(encoding.gate_ties),
                flags=tuple(encoding.flags),
                **encoding.sums._asdict(),
                encoder_input_fingerprint=self.input_fingerprints[number] if self.input_fingerprints else None,
            )
            for number, (case_id, encoding) in enumerate(zip(ids, self.encodings))
        ]


def encode_layer(task: LayerTask, files: Mapping[str, SourceFile]) -> LayerResult:
    """The cases of one layer; `files` are those of the task, open, by their role.

    Raises WeightsError, RobustError, or what the reader raises.
    """
    job, layer = task.job, task.files.layer
    weights = LayerWeights(task.format, layer, {role: file.open for role, file in files.items()}, task.context)
    origin, settings = job.origin, weights.settings
    for option, value, used in (
        ("--k", origin.k, settings.k), ("--input-scale", origin.input_scale, settings.factor), ("--normalize", origin.normalize, settings.normalised),
    ):  # fmt: skip
        if value is not None and value != used:
            raise WeightsError(f"{weights.label}: {option} {value} has no part in what is computed of this {task.format.name} file: leave it out")
    if job.origin.schema == task.format.jumprelu_name is not None and not weights.has_threshold:
        raise WeightsError(f"{weights.label}: it has no threshold, so that it is no {task.format.jumprelu_name}: leave --schema out")
    own, skipped, searched = job.has_own_tolerances, list[SkippedSeed](), Encodings()
    if task.rows is None:
        chosen = seeds(layer, range(job.n_seeds))
        if job.robust:
            chosen, skipped, searched = _robust_seeds(job, weights)
        residuals, ids = _residuals(chosen, weights, job.scale), [seed_case(layer, seed) for seed in chosen]
    else:
        residuals, ids = task.rows, [row_case(layer, number) for number in range(len(task.rows))]
        if residuals.shape[1] != weights.input_length:
            of_layers = f", {weights.n_input_layers} layers of {weights.d_model}" if weights.n_input_layers else ""
            problem = f"its residuals of layer {layer} have {residuals.shape[1]} values each, and {weights.label} takes {weights.input_length}"
            raise WeightsError(f"{job.residuals}: {problem}{of_layers}")
    encodings = encode_residuals(weights, residuals, job.top_k, job.tolerance, own_tolerances=own, decode=job.decode)
    encodings.count(searched.float32_max_abs_error, searched.n_settled)
    main, apart, side = files[ENCODER], files.get(DECODER), files.get(SIDE)
    record = LayerRecord(layer=layer, path=main.open.path, sha256=main.sha256, repo=main.repo, revision=main.commit)
    if apart:
        record = replace(record, decoder_path=apart.open.path, decoder_sha256=apart.sha256)
    if side:
        record = replace(record, side_path=side.open.path, side_sha256=side.sha256)
    cases = [
        replace(case, stream=layer if task.rows is None else None, residual=values, residual_fingerprint=fingerprint(values))
        for case, values in zip(encodings.cases(ids), residuals)
    ]
    return LayerResult(
        record,
        cases,
        skipped,
        weights.d_model,
        weights.d_out,
        weights.n_input_layers,
        weights.n_features,
        Arithmetic.of(weights),
        encodings.float32_max_abs_error,
        encodings.n_settled,
    )


def encode_residuals(
    weights: LayerWeights, residuals: np.ndarray, k: int, tolerance: float, *, own_tolerances: bool, decode: bool
) -> Encodings:
    """What float32 residuals [n, d_model] give, a group of them in each pass over W_enc. Raises WeightsError."""
    encodings, layer_encoder = Encodings(), weights.encoder
    at_once = max(1, min(SEEDS_AT_ONCE, VALUES_AT_ONCE // weights.n_features))
    for start in range(0, len(residuals), at_once):
        group = residuals[start : start + at_once]
        inputs = weights.encoder_input.apply(group)
        if not weights.encoder_input.is_identity:
            encodings.input_fingerprints += map(fingerprint, inputs.values)
            bad = np.flatnonzero(~np.isfinite(inputs.values).all(axis=1))
            if len(bad):
                problem = f"has no input that is finite: it is of zeros, or too large to be {weights.encoder_input.normalised}"
                raise WeightsError(f"{weights.label}: residual {start + int(bad[0])} of the layer {problem}")
        try:
            encoded = encoder.encode(
                layer_encoder, inputs.values, k=k, tolerance=tolerance,
                own_tolerances=own_tolerances, removed=inputs.removed, with_active=decode,
            )  # fmt: skip
        except NotFiniteError as error:
            raise WeightsError(f"{weights.label}: {error}") from error
        layer_encoder = layer_encoder._replace(w_enc=layer_encoder.w_enc._replace(largest_weights=encoded.largest_weights))
        if decode:
            encodings.reconstructions += _reconstructions(weights, group, inputs, encoded.encodings)
        encodings.tolerances += encoded.tolerances if own_tolerances else []
        encodings.encodings += [encoding._replace(active=None) for encoding in encoded.encodings]
        encodings.count(encoded.float32_max_abs_error, encoded.n_settled)
    return encodings


def _residuals(chosen: list[int], weights: LayerWeights, scale: float) -> np.ndarray:
    """float32 [n_seeds, input_length]."""
    return np.stack([scaled_residual(seed, weights.layer, weights.input_length, scale) for seed in chosen])


def scaled_residual(seed: int, stream: int, length: int, scale: float) -> np.ndarray:
    """The generator's numbers times a float32, each product rounded once: float32 [length]."""
    return residual(seed, stream, length) * np.float32(scale)


def _robust_seeds(job: Job, weights: LayerWeights) -> tuple[list[int], list[SkippedSeed], Encodings]:
    """The first seeds whose cases have no flag at the margin, those passed over before them, and the figures of all that was encoded."""
    margin = job.robust_margin or job.tolerance
    kept: list[int] = []
    skipped: list[SkippedSeed] = []
    searched, number = Encodings(), 0
    while len(kept) < job.n_seeds:
        # Each pass over W_enc tries as many as are lacking, and as were passed over: a second pass is often the last.
        count = min(job.n_seeds - len(kept) + len(skipped), SEEDS_AT_ONCE)
        tried = seeds(weights.layer, range(number, number + count))
        number += count
        encodings = encode_residuals(weights, _residuals(tried, weights, job.scale), job.top_k, margin, own_tolerances=job.has_own_tolerances, decode=False)
        searched.count(encodings.float32_max_abs_error, encodings.n_settled)
        for record in _skipped_seeds(weights, tried, encodings):
            if len(kept) == job.n_seeds:
                break
            if not record.flags:
                kept.append(record.id.number)
                continue
            skipped.append(record)
            if len(skipped) == MOST_SKIPPED:
                raise RobustError(_hopeless(job, weights, len(kept), skipped))
    return kept, skipped, searched


def skipped_seeds(weights: LayerWeights, numbers: list[int], k: int, tolerance: float, scale: float | None) -> list[SkippedSeed]:
    """What a reference says of seeds that it passed over. Raises WeightsError."""
    residuals = _residuals(numbers, weights, scale or 1.0)
    return _skipped_seeds(weights, numbers, encode_residuals(weights, residuals, k, tolerance, own_tolerances=scale is not None, decode=False))


def _skipped_seeds(weights: LayerWeights, numbers: list[int], encodings: Encodings) -> list[SkippedSeed]:
    return [
        SkippedSeed(
            id=seed_case(weights.layer, seed),
            n_active_bounds=encoding.n_active_bounds,
            rank_margin=encoding.rank_margin,
            gate_margin=encoding.gate_margin,
            flags=tuple(encoding.flags),
        )
        for seed, encoding in zip(numbers, encodings.encodings)
    ]


def _hopeless(job: Job, weights: LayerWeights, n_kept: int, skipped: list[SkippedSeed]) -> str:
    """Why --robust gives up, with what helps against the flags that stand in the way."""
    reasons = Counter(flag for record in skipped for flag in record.flags)
    shown = ", ".join(f"{count} have {flag}" for flag, count in reasons.most_common())
    ranks = [math.inf if record.rank_margin is None else record.rank_margin / 2 for record in skipped]
    firing = [(record, rank) for record, rank in zip(skipped, ranks) if NO_ACTIVE_FEATURES not in record.flags]
    margins = sorted((min(record.gate_margin, rank) for record, rank in firing), reverse=True)[job.n_seeds - n_kept - 1 :]
    if margins and margins[0] >= 2 * MIN_TOLERANCE:
        advice = f"--robust {float(f'{margins[0] / 2:.0e}'):g} keeps enough of them, or leave out --robust"
    elif reasons[NO_ACTIVE_FEATURES] > len(skipped) - reasons[NO_ACTIVE_FEATURES]:
        advice = "where nothing fires no margin helps: that takes other layers or weights; or leave out --robust"
    else:
        advice = "no margin that can be recorded helps: leave out --robust"
    return f"layer {weights.layer}: {n_kept} of {job.n_seeds} cases found, and {MOST_SKIPPED} seeds gave one with a flag: {shown}; {advice}"


def _reconstructions(
    weights: LayerWeights, residuals: np.ndarray, inputs: Inputs, encodings: list[Encoding]
) -> list[tuple[Reconstruction, ...]]:
    """For each case its reconstructions: one, or one for each target layer.

    What every source layer's features give a target layer adds up to its output; b_dec and W_skip, which it has once,
    are counted in where the source is the target itself.
    """
    active = [encoding.active for encoding in encodings if encoding.active]
    if weights.settings.by_decoder_norm:
        active = [decoder.divided(features, weights.decoder_norms) for features in active]
    w_dec = weights.w_dec
    row_shape = weights.decoder_shape
    several = len(row_shape) > 1
    if w_dec.features_first:
        features = decoder.decode(weights.decoder_rows(decoder.active_in_any(active)), active, row_shape)
    else:
        features = decoder.decode_columns(w_dec.blocks(), active)
    for sums in features:
        sums.scale(weights.row_factor)
    skips: list[list[decoder.Sums]] = [[] for _ in active]
    if weights.w_skip:
        skips = [[sums] for sums in decoder.skip_connection(weights.w_skip, residuals, weights.d_out)]
    cases = []
    for number, (sums, skip) in enumerate(zip(features, skips)):
        factor, offset = (float(values[number, 0]) if weights.settings.restores else neutral for values, neutral in ((inputs.factor, 1.0), (inputs.offset, 0.0)))
        for part in skip:  # W_skip is from residuals to outputs as they are: what brings the others back is not for it
            part.scale(1 / factor)
        outputs = []
        for target in range(row_shape[0] if several else 1):
            parts = [sums, *skip] if target == weights.own_target else [sums]
            output = decoder.output(parts, weights.b_dec_of(target), target if several else None, factor=factor, offset=offset)
            outputs.append(Reconstruction(target_layer=weights.first_target + target, **output._asdict()))
        cases.append(tuple(outputs))
    return cases


def _encoder_formula(settings: Settings, w_enc: TensorSpec, has_negative_threshold: bool) -> str:
    """What is computed, as the field's references write it; thresholds below zero let nothing negative through."""
    x = "residual"
    if settings.root_scaled:
        x = "(residual / sqrt(d_model))"
    elif settings.normalised == UNIT_RMS:
        x = "(residual * sqrt(d_model) / norm(residual))"
    elif settings.normalised == LAYER_NORM:
        x = "((residual - mean) / (std + 1e-05))"
    elif settings.normalised != IDENTITY:
        x = "(residual * input_scale)"
    if settings.minus_b_dec:
        x = f"({x} - b_dec)"
    product = f"{w_enc.name.partition('_{')[0]}{'.T' if w_enc.axes[0] == 'd_model' else ''} @ {x}"
    if "n_input_layers" in w_enc.axes:
        product = f"sum over the input layers l of {w_enc.name}[l].T @ {x}[l]"
    if settings.gate == RELU:
        return f"ReLU({product} + b_enc)"
    if settings.gate == GATED:
        return f"p = {product}; acts = ReLU(exp(r_mag) * p + b_mag) * (p + b_gate > 0)"
    pre = f"({product} + b_enc) * norm(W_dec rows)" if settings.by_decoder_norm else f"{product} + b_enc"
    if settings.gate == JUMPRELU:
        gate = "max(threshold, 0)" if has_negative_threshold else "threshold"
        return f"pre = {pre}; acts = pre * (pre > {gate})"
    kept = {
        TOPK: "ReLU(pre) where it is among the k largest" if settings.relu else "pre where it is among the k largest",
        ABSTOPK: "pre where |pre| is among the k largest",
        GROUPMAX: "ReLU(pre) where it is the largest of one of k groups",
    }[settings.gate]
    return f"pre = {pre}; acts = {kept}, else 0; k = {settings.k}"


def _decoder_formula(weights: LayerWeights) -> str:
    """What is made of the activations, as the field writes it; x is the residual."""
    settings = weights.settings
    spec = weights.tensors.get(W_DEC, weights.format.of_part(W_DEC)[0])
    acts = "(acts / norm(W_dec rows))" if settings.by_decoder_norm else "acts"
    w_dec = spec.name.partition("_{")[0] + ("" if spec.axes[0] == "n_features" else ".T")
    rows = f"sqrt(d_model) * {acts} @ {w_dec}" if settings.root_scaled else f"{acts} @ {w_dec}"
    own = " at the own layer" if weights.format.has_targets and not weights.n_input_layers else ""
    formula = f"{rows} + b_dec{own}"
    if settings.restores and settings.normalised != IDENTITY:
        back = {SCALED: f"* {settings.back:.9g}", UNIT_RMS: "* norm(residual) / sqrt(d_model)", LAYER_NORM: "* std + mean"}
        formula = f"({formula}) {back[settings.normalised]}"
    if weights.w_skip:
        skip = weights.tensors[W_SKIP]
        formula += f" + {f'{skip.name} @ residual' if weights.w_skip.features_first else f'residual @ {skip.name}'}{own}"
    return formula
