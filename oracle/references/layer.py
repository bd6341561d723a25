# SPDX-License-Identifier: MIT OR Apache-2.0
"""One layer of a job, from its open weight files to its cases. Layers know nothing of each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from oracle.arithmetic import decoder, encoder
from oracle.arithmetic.encoder import Encoding
from oracle.arithmetic.residual import fingerprint, residual
from oracle.errors import BadData
from oracle.job import Job
from oracle.references import document
from oracle.references.document import Document
from oracle.sources.source import Opened
from oracle.weights.formats import Schema
from oracle.weights.layer import Decoder, LayerWeights, open_decoder, open_layer
from oracle.weights.tensors import WeightsError

SEEDS_AT_ONCE = 16  # a pass over W_enc for each group: its products take less than the results of 300 seeds
MOST_SKIPPED = 100  # seeds of a layer that --robust passes over before it gives up


class RobustError(BadData, ValueError):
    """No seed gives a case without a flag."""


@dataclass(frozen=True)
class LayerResult:
    """What a layer gives: `record` is its entry in the JSON's `layers`, with its repo and revision.

    `skipped` are the seeds that --robust passed over, each with its flags and margins.
    """

    record: Document
    cases: list[Document]
    skipped: list[Document]
    d_model: int
    n_features: int
    has_threshold: bool
    has_negative: bool
    float32_max_abs_error: float
    n_settled: int


@dataclass
class Answers:
    """What residuals give, in their order; reconstructions are there where a decoder was."""

    encodings: list[Encoding] = field(default_factory=list)
    reconstructions: list[list[Document]] = field(default_factory=list)
    float32_max_abs_error: float = 0.0
    n_settled: int = 0


def encode_layer(job: Job, schema: Schema, layer: int, opened: Opened, decoder_opened: Opened | None) -> LayerResult:
    """The cases of one layer. `decoder_opened` is the file of W_dec, where it is needed and is another.

    Raises WeightsError, RobustError, or what the reader raises.
    """
    layer_weights = open_layer(schema, layer, opened.reader, opened.path, opened.where)
    found = _robust_seeds(job, layer_weights) if job.robust else (document.seeds(layer, range(job.n_seeds)), [], Answers())
    seeds, skipped, searched = found
    residuals = _residuals(seeds, layer_weights)
    made = encode_residuals(
        layer_weights, residuals, job.top_k, job.tolerance, _decoder(layer_weights, decoder_opened) if job.decode else None
    )
    record = {"layer": layer, "path": opened.path, "sha256": opened.sha256, "repo": opened.repo, "revision": opened.commit}
    if decoder_opened:
        record |= {"decoder_path": decoder_opened.path, "decoder_sha256": decoder_opened.sha256}
    return LayerResult(
        record,
        [
            {
                "layer": layer,
                "seed": seed,
                "stream": layer,
                "residual_fingerprint": fingerprint(values),
                **case,
                "residual": values,
            }
            for seed, values, case in zip(seeds, residuals, answers(made, f"top_{job.top_k}"))
        ],
        skipped,
        layer_weights.d_model,
        layer_weights.n_features,
        layer_weights.has_threshold,
        layer_weights.has_negative,
        max(made.float32_max_abs_error, searched.float32_max_abs_error),
        made.n_settled + searched.n_settled,
    )


def encode_residuals(
    layer_weights: LayerWeights, residuals: np.ndarray, k: int, tolerance: float, w_dec: Decoder | None
) -> Answers:
    """What residuals [n, d_model] give, a group of them in each pass over W_enc. Raises WeightsError."""
    made = Answers()
    for start in range(0, len(residuals), SEEDS_AT_ONCE):
        group = residuals[start : start + SEEDS_AT_ONCE]
        try:
            encoded = encoder.encode(
                layer_weights.w_enc,
                lambda: (layer_weights.b_enc, layer_weights.gate),
                group,
                k=k,
                tolerance=tolerance,
                with_firing=w_dec is not None,
            )
        except encoder.NotFiniteError as error:
            raise WeightsError(f"{layer_weights.label}: {error}") from error
        if w_dec is not None:
            made.reconstructions += _reconstructions(layer_weights, w_dec, group, encoded.encodings)
        made.encodings += [replace(encoding, firing=None) for encoding in encoded.encodings]
        made.float32_max_abs_error = max(made.float32_max_abs_error, encoded.float32_max_abs_error)
        made.n_settled += encoded.n_settled
    return made


def answers(made: Answers, top: str) -> list[Document]:
    """What each case says of its residual; `top` is the list's key."""
    cases: list[Document] = [
        {
            "n_active": encoding.n_active,
            "n_active_bounds": list(encoding.n_active_bounds),
            "rank_margin": encoding.rank_margin,
            "gate_margin": encoding.gate_margin,
            "gate_ties": encoding.gate_ties,
            "flags": encoding.flags,
            top: [{"index": index, "activation": value} for index, value in encoding.top],
        }
        for encoding in made.encodings
    ]
    for case, reconstructions in zip(cases, made.reconstructions):
        case["reconstructions"] = reconstructions
    return cases


def _residuals(seeds: list[int], layer_weights: LayerWeights) -> np.ndarray:
    """float32 [n_seeds, d_model]."""
    return np.stack([residual(seed, layer_weights.layer, layer_weights.d_model) for seed in seeds])


def _robust_seeds(job: Job, layer_weights: LayerWeights) -> tuple[list[int], list[Document], Answers]:
    """The first n_seeds seeds whose cases have no flag, those passed over before them, and all that was encoded."""
    kept: list[int] = []
    skipped: list[Document] = []
    reasons: Counter[str] = Counter()
    searched, number = Answers(), 0
    while len(kept) < job.n_seeds:
        # Each pass over W_enc tries as many as are lacking, and as were passed over: a second pass is often the last.
        count = min(job.n_seeds - len(kept) + len(skipped), SEEDS_AT_ONCE)
        seeds = document.seeds(layer_weights.layer, range(number, number + count))
        number += count
        made = encode_residuals(layer_weights, _residuals(seeds, layer_weights), job.top_k, job.tolerance, None)
        searched.float32_max_abs_error = max(searched.float32_max_abs_error, made.float32_max_abs_error)
        searched.n_settled += made.n_settled
        for record in _skipped(layer_weights, seeds, made):
            if len(kept) == job.n_seeds:
                break
            if not record["flags"]:
                kept.append(record["seed"])
                continue
            reasons.update(record["flags"])
            skipped.append(record)
            if len(skipped) == MOST_SKIPPED:
                raise RobustError(_hopeless(job, layer_weights, len(kept), reasons, skipped))
    return kept, skipped, searched


def skipped_records(layer_weights: LayerWeights, seeds: list[int], k: int, tolerance: float) -> list[Document]:
    """What a reference says of seeds that it passed over. Raises WeightsError."""
    return _skipped(layer_weights, seeds, encode_residuals(layer_weights, _residuals(seeds, layer_weights), k, tolerance, None))


def _skipped(layer_weights: LayerWeights, seeds: list[int], made: Answers) -> list[Document]:
    keys = ("n_active_bounds", "rank_margin", "gate_margin", "flags")
    return [
        {"layer": layer_weights.layer, "seed": seed, **{key: case[key] for key in keys}}
        for seed, case in zip(seeds, answers(made, "top"))
    ]


def _hopeless(
    job: Job, layer_weights: LayerWeights, n_kept: int, reasons: Counter[str], skipped: list[Document]
) -> str:
    """Why --robust gives up, with what to do."""
    shown = ", ".join(f"{count} have {flag}" for flag, count in reasons.most_common())
    at_gate = np.median([most - fewest for fewest, most in (record["n_active_bounds"] for record in skipped)])
    why = f"; half of them have {at_gate:g} or more of {layer_weights.n_features} features within {job.tolerance:g} of their gate"
    return (
        f"layer {layer_weights.layer}: {n_kept} of {job.n_seeds} cases found, and {MOST_SKIPPED} seeds gave one with a flag: "
        f"{shown}{why if reasons['gate-tie'] else ''}. A smaller --tolerance or --top-k leaves fewer, or leave out --robust"
    )


def _decoder(layer_weights: LayerWeights, opened: Opened | None) -> Decoder:
    found = open_decoder(layer_weights, opened.reader, opened.path, opened.where) if opened else layer_weights.decoder
    if found is None:
        raise WeightsError(f"{layer_weights.label}: it has no {layer_weights.name_of(layer_weights.schema.w_dec)}")
    return found


def _reconstructions(
    layer_weights: LayerWeights, w_dec: Decoder, residuals: np.ndarray, encodings: list[Encoding]
) -> list[list[Document]]:
    """For each case its reconstructions: one, or one for each target layer.

    What every source layer's features give a target layer adds up to its output; b_dec and W_skip, which it has once,
    are counted in where the source is the target itself.
    """
    firings = [encoding.firing for encoding in encodings if encoding.firing]
    schema, row_shape = layer_weights.schema, w_dec.tensor.row_shape
    several = len(row_shape) > 1
    features = decoder.decode(w_dec.rows(decoder.wanted(firings)), firings, row_shape)
    skips: list[list[decoder.Sums]] = [[] for _ in firings]
    if schema.w_skip and layer_weights.tensor(schema.w_skip):
        by_output = schema.w_skip.axes[0] == "d_model_out"
        skips = [[sums] for sums in decoder.skip(layer_weights.w_skip_blocks(), residuals, by_output=by_output)]
    cases = []
    for sums, past in zip(features, skips):
        made = [decoder.reconstruction([sums, *past], layer_weights.b_dec, 0 if several else None)]
        made += [decoder.reconstruction([sums], None, target) for target in range(1, row_shape[0] if several else 1)]
        cases.append([_record(layer_weights.layer + target, one) for target, one in enumerate(made)])
    return cases


def _record(target: int, made: decoder.Reconstruction) -> Document:
    return {
        "target_layer": target,
        "norm": made.norm,
        "sum": made.sum,
        "sum_of_squares": made.sum_of_squares,
        "tolerance": made.tolerance,
        "first_10": made.first,
    }
