# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mistakes that ports make, each as a row: which field of a Port it changes, and to what.

Two mistakes of different fields can be made at once. A gate with >= for > has no row: it differs from the right one
only where a pre-activation equals its gate, which is closer than rounding, so that it passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from oracle.arithmetic.chain import EncoderInput, Largest
from oracle.arithmetic.constants import GATED, IDENTITY, SCALED, SEED_STRIDE
from oracle.diagnosis.port import (
    LAYER_ABOVE,
    LAYER_BELOW,
    RESHAPED,
    W_DEC,
    DecoderInput,
    Gate,
    Level,
    Port,
    Rounding,
    Selection,
    Skip,
    Source,
    right_index,
    right_input,
)  # fmt: skip
from oracle.references.document import Reference
from oracle.weights.layer import LayerWeights
from oracle.weights.sidefiles import LOG_THRESHOLD

# What there must be for a port to make a mistake. Without a threshold a mistake about it gives the right numbers.
GENERATOR, FACTOR = "a residual generator", "generated residuals that are scaled"
THRESHOLD, NEGATIVE, W_SKIP = "a threshold", "a negative threshold", "W_skip"
LOG, LARGEST, RAW, POSITIVE = "a threshold's logarithm", "a gate of the largest", "a top k of pre-activations", "a top k of ReLU"
MAGNITUDE = "a top k of magnitudes"
GATED_GATE, UNGATED, NORMS = "a gated gate", "no gated gate", "a gate by the decoder's norms"
B_DEC_GOES, B_DEC_STAYS, NORMALISED, SCALED_INPUT = "b_dec subtracted", "no b_dec subtracted", "a normalised input", "a scaled input"
ONE_TARGET, SEVERAL_TARGETS = "a W_dec of one target layer", "a W_dec of several target layers"


def possible(weights: LayerWeights, reference: Reference) -> set[str]:
    """What there is in a layer's weights, and behind a reference's residuals, that mistakes need."""
    settings, gate = weights.settings, weights.gate
    has = {
        GENERATOR: reference.has_generator, FACTOR: reference.residuals.scale is not None,
        THRESHOLD: weights.has_threshold, NEGATIVE: weights.n_negative_thresholds > 0, W_SKIP: weights.w_skip is not None,
        SEVERAL_TARGETS: weights.format.has_targets, ONE_TARGET: not weights.format.has_targets,
        LOG: weights.has_threshold and bool(weights.format.of_part(LOG_THRESHOLD)), LARGEST: isinstance(gate, Largest),
        RAW: isinstance(gate, Largest) and not gate.has_floor, POSITIVE: isinstance(gate, Largest) and gate.relu,
        MAGNITUDE: isinstance(gate, Largest) and gate.magnitude,
        GATED_GATE: settings.gate == GATED, UNGATED: settings.gate != GATED, NORMS: settings.by_decoder_norm,
        B_DEC_GOES: settings.minus_b_dec, B_DEC_STAYS: not settings.minus_b_dec and weights.d_out == weights.input_length,
        NORMALISED: settings.normalised != IDENTITY, SCALED_INPUT: settings.normalised == SCALED,
    }  # fmt: skip
    return {name for name, is_there in has.items() if is_there}


@dataclass(frozen=True)
class Mistake:
    """A row: `field` of a Port has `value`. It is for weights that have what it `needs`."""

    name: str
    field: str
    description: str
    value: Any
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """A port with no mistake, one, or two of different fields."""

    mistakes: tuple[Mistake, ...] = ()

    @cached_property
    def port(self) -> Port:
        return Port(**{mistake.field: mistake.value for mistake in self.mistakes})


def hypotheses(rows: list[Mistake], how_many: int) -> list[Hypothesis]:
    """Every single mistake, or every pair of different fields, in the order of the rows."""
    if how_many == 1:
        return [Hypothesis((row,)) for row in rows]
    pairs = ((first, second) for place, first in enumerate(rows) for second in rows[place + 1 :])
    return [Hypothesis(pair) for pair in pairs if pair[0].field != pair[1].field]


def _to_bits(dropped: int, *, cut: bool) -> Rounding:
    """Rounding of float32 to fewer bits of significand: to the nearest, ties to even, or cut off."""

    def rounded(values: np.ndarray) -> np.ndarray:
        bits = values.astype("<f4", copy=False).view("<u4")
        if not cut:
            bits = bits + ((bits >> np.uint32(dropped)) & np.uint32(1)) + np.uint32((1 << (dropped - 1)) - 1)
        kept = (bits & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)).astype("<u4", copy=False)
        return kept.view("<f4").astype(np.float32, copy=False)

    return rounded


bfloat16, bfloat16_cut = _to_bits(16, cut=False), _to_bits(16, cut=True)
tf32, tf32_cut = _to_bits(13, cut=False), _to_bits(13, cut=True)


def float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _unit_norm(r: np.ndarray) -> np.ndarray:
    norm = float(np.sqrt(np.sum(r.astype(np.float64) ** 2)))
    return np.asarray(r / max(norm, 1e-30), np.float32)


def _rms_norm(r: np.ndarray) -> np.ndarray:
    return np.asarray(r / np.sqrt(np.mean(r.astype(np.float64) ** 2) + 1e-6), np.float32)


def _layer_norm(r: np.ndarray) -> np.ndarray:
    centred = r - r.mean(dtype=np.float64)
    return np.asarray(centred / np.sqrt(np.mean(centred**2) + 1e-6), np.float32)


def _gate(least: Callable[[np.ndarray], np.ndarray]) -> Gate:
    return Gate(lambda threshold: Level(least(threshold), np.zeros_like(threshold)))


def _shifted(by: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Feature j is printed as (j + by) modulo n_features."""
    return lambda index, n: np.where((index >= 0) & (index < n), (index - by) % n, -1)


def _source(name: str, text: str, source: Source) -> Mistake:
    return Mistake(name, "source", f"the residual is another: {text}", source, (GENERATOR,))


# Residuals of another seed or stream than the case's: those that a slip of the pen makes.
_SOURCES = (
    *(
        _source(f"seed {'+' if by > 0 else '-'} {abs(by)}", f"the seed is off by {by}", Source(seed=(SEED_STRIDE, 1, by)))
        for by in (1, -1, SEED_STRIDE, -SEED_STRIDE, 2 * SEED_STRIDE, -2 * SEED_STRIDE)
    ),
    _source("seed without layer", f"the seed is {SEED_STRIDE} i, without the layer", Source(seed=(SEED_STRIDE, 0, 0))),
    _source("seed is i", "the seed is i, the residual's number", Source(seed=(1, 0, 0))),
    _source("seed by layer", f"the seed is {SEED_STRIDE} layer + i", Source(seed=(1, SEED_STRIDE, 0))),
    *(_source(f"seed {value}", f"the seed is always {value}", Source(seed=(0, 0, value))) for value in (0, 1, 42)),
    _source("stream is seed", "the stream is the seed", Source(stream=(SEED_STRIDE, 1, 0))),
    _source("stream + 1", "the stream is off by 1", Source(stream=(0, 1, 1))),
    _source("stream - 1", "the stream is off by -1", Source(stream=(0, 1, -1))),
    *(_source(f"stream {value}", f"the stream is always {value}", Source(stream=(0, 0, value))) for value in (0, 1, 54)),
    _source("seed and stream swapped", "seed and stream are swapped", Source(seed=(0, 1, 0), stream=(SEED_STRIDE, 1, 0))),
    Mistake("scale left out", "source", "the residual is the generator's as it is, not times the scale", Source(is_scaled=False), (GENERATOR, FACTOR)),
)

def _moved(times: int) -> Callable[[np.ndarray, EncoderInput, np.ndarray], np.ndarray]:
    """b_dec added so many times to the residual, which else is treated rightly."""
    return lambda r, right, b_dec: right_input(r + times * b_dec, right, b_dec)


def _other_input(**changed: Any) -> Callable[[np.ndarray, EncoderInput, np.ndarray], np.ndarray]:
    return lambda r, right, b_dec: right_input(r, replace(right, **changed), b_dec)


def _scaled_twice(r: np.ndarray, right: EncoderInput, b_dec: np.ndarray) -> np.ndarray:
    return right_input(r, replace(right, factor=right.factor**2), b_dec)


def wrong_k(k: int, right: int) -> Mistake:
    """A gate of the largest that keeps k: which k that is, a candidate's counts say."""
    return Mistake(f"k of {k}", "gate", f"the gate keeps {k} features, and {right} is right", Gate(k=k), (LARGEST,))


def _fires(rounding: Rounding) -> Callable[[DecoderInput], np.ndarray]:
    return lambda encoded: rounding(encoded.activations())


_JUMP, _SKIPS, _ONE, _SEVERAL = (THRESHOLD,), (W_SKIP,), (ONE_TARGET,), (SEVERAL_TARGETS,)
_EXP = "the gate is exp(threshold), as if the file held its logarithm"
_SUBTRACTED = "the threshold is subtracted from the activation: pre - threshold where JumpReLU gives pre"
_NEGATIVE = "the gate is the threshold where that is negative too, as circuit-tracer has it: negative activations pass"
_SWAPPED = "buffer is read with its axes swapped: reshaped instead of transposed"
_LOG = "the gate is the threshold's logarithm, as it stands in the file"
_NO_GATE = Gate(lambda t: Level(np.full_like(t, -np.inf), np.zeros_like(t)), selects=False)
_TF32 = "products are TF32: weights and residual"
_BY_MAGNITUDE = "the top k are chosen by absolute value"

MISTAKES: tuple[Mistake, ...] = (
    Mistake("relu", "gate", "plain ReLU instead of JumpReLU: the threshold is ignored", _gate(np.zeros_like), _JUMP),
    Mistake("no gate", "gate", "no gate at all: every feature counts as active", _NO_GATE, (UNGATED,)),
    Mistake("threshold halved", "gate", "the gate is half the threshold", _gate(lambda t: np.maximum(t, 0) / 2), _JUMP),
    Mistake("threshold doubled", "gate", "the gate is twice the threshold", _gate(lambda t: np.maximum(t, 0) * 2), _JUMP),
    Mistake("exp(threshold)", "gate", _EXP, _gate(lambda t: np.exp(np.minimum(t, 700))), _JUMP),
    Mistake("threshold subtracted", "gate", _SUBTRACTED, Gate(lambda t: Level(np.maximum(t, 0), np.maximum(t, 0))), _JUMP),
    Mistake("negative let through", "gate", _NEGATIVE, _gate(lambda t: t), (NEGATIVE,)),
    Mistake("log of the threshold", "gate", _LOG, _gate(lambda t: np.log(np.maximum(t, 1e-300))), (LOG,)),
    Mistake("top k left out", "gate", "all positive features fire: the gate's top k is left out", Gate(selects=False), (LARGEST,)),
    Mistake("ReLU before the top k", "gate", "the top k is one of ReLU: negative values are dropped", Gate(relu=True), (LARGEST, RAW)),
    Mistake("no ReLU before the top k", "gate", "the top k is one of pre-activations: negative values fire too", Gate(relu=False), (LARGEST, POSITIVE)),
    Mistake("top k by value", "gate", "the top k is one of values, not of magnitudes", Gate(by_magnitude=False), (MAGNITUDE,)),
    Mistake("gate left out", "gate", "the gated encoder's gate is left out: all positive magnitudes fire", Gate(is_gated=False), (GATED_GATE,)),
    Mistake("decoder norms left out", "gate", "pre-activations are not multiplied by the norms of W_dec's rows", Gate(by_decoder_norm=False), (NORMS,)),
    Mistake("b_enc left out", "b_enc", "b_enc is not added", 0),
    Mistake("b_enc twice", "b_enc", "b_enc is added twice", 2),
    Mistake("b_enc subtracted", "b_enc", "b_enc is subtracted", -1),
    Mistake("b_dec subtracted", "input", "b_dec is subtracted from the residual, as SAE loaders do", _moved(-1), (B_DEC_STAYS,)),
    Mistake("b_dec added", "input", "b_dec is added to the residual", _moved(1), (B_DEC_STAYS,)),
    Mistake("b_dec not subtracted", "input", "b_dec is not subtracted from the residual", _other_input(b_dec=None), (B_DEC_GOES,)),
    Mistake("b_dec subtracted twice", "input", "b_dec is subtracted from the residual twice", _moved(-1), (B_DEC_GOES,)),
    Mistake("input not normalised", "input", "the residual is not scaled or normalised before W_enc", _other_input(normalised=IDENTITY), (NORMALISED,)),
    Mistake("input scaled twice", "input", "the residual is scaled twice", _scaled_twice, (SCALED_INPUT,)),
    Mistake("W_enc reshaped", "w_enc", f"W_enc's {_SWAPPED}", RESHAPED),
    Mistake("W_dec for W_enc", "w_enc", "W_dec is used for W_enc", W_DEC, _ONE),
    Mistake("layer below", "w_enc", "the weights are those of layer L - 1, as where layers are counted from 1", LAYER_BELOW),
    Mistake("layer above", "w_enc", "the weights are those of layer L + 1", LAYER_ABOVE),
    Mistake("weights in bfloat16", "weight_rounding", "W_enc is rounded to bfloat16", bfloat16),
    Mistake("weights cut to bfloat16", "weight_rounding", "W_enc is cut off to bfloat16, not rounded", bfloat16_cut),
    Mistake("weights in float16", "weight_rounding", "W_enc is rounded to float16", float16),
    Mistake("TF32 products", "product_rounding", f"{_TF32} rounded to 10 bits of mantissa", tf32),
    Mistake("TF32 products, cut", "product_rounding", f"{_TF32} cut off to 10 bits of mantissa", tf32_cut),
    Mistake("residual in bfloat16", "residual_rounding", "the residual is rounded to bfloat16", bfloat16),
    Mistake("residual cut to bfloat16", "residual_rounding", "the residual is cut off to bfloat16, not rounded", bfloat16_cut),
    Mistake("residual in float16", "residual_rounding", "the residual is rounded to float16", float16),
    Mistake("residual of unit norm", "norm", "the residual is divided by its norm", _unit_norm),
    Mistake("residual RMS-normalised", "norm", "the residual is divided by its root mean square", _rms_norm),
    Mistake("residual layer-normalised", "norm", "the residual is centred and divided by its deviation", _layer_norm),
    *_SOURCES,
    Mistake("top k by |pre|", "selection", _BY_MAGNITUDE, Selection("|pre|", True, "pre")),
    Mistake("top k by |pre|, printed", "selection", f"{_BY_MAGNITUDE}, which is what is printed", Selection("|pre|", True, "|pre|")),
    Mistake("top k ascending", "selection", "the top k stand in ascending order", Selection(order="ascending")),
    Mistake("smallest k", "selection", "the k smallest activations are taken: sorted in ascending order", Selection("-activation")),
    Mistake("top k by index", "selection", "the top k are sorted by index", Selection(order="by index")),
    Mistake("first k by index", "selection", "the first k active features are taken", Selection("-index", order="by index")),
    Mistake("before the gate", "selection", "the top k are taken from the pre-activations, before the gate", Selection("pre", True, "pre")),
    Mistake("features reversed", "index", "feature j is printed as n_features - 1 - j", lambda index, n: right_index(n - 1 - index, n)),
    Mistake("features shifted up", "index", "feature j is printed as j + 1, and the last as 0", _shifted(1)),
    Mistake("features shifted down", "index", "feature j is printed as j - 1, and the first as the last", _shifted(-1)),
    Mistake("indices from 1", "index", "indices are counted from 1", lambda index, n: right_index(index - 1, n)),
    Mistake("layers from 1", "label", "layers are counted from 1: the answers of layer L are labelled L + 1", 1),
    # The decoder's.
    Mistake("b_dec left out", "b_dec", "b_dec is not added to the reconstruction", (0, 0)),
    Mistake("b_dec twice", "b_dec", "b_dec is added to the reconstruction twice", (2, 0)),
    Mistake("b_dec taken off", "b_dec", "b_dec is subtracted from the reconstruction", (-1, 0)),
    Mistake("b_dec to every target", "b_dec", "the source's b_dec is added to every target layer", (1, 1), _SEVERAL),
    Mistake("W_skip left out", "skip", "W_skip is not applied", Skip(w_skip=0), _SKIPS),
    Mistake("W_skip transposed", "skip", "W_skip is applied transposed", Skip(w_skip=0, transposed=1), _SKIPS),
    Mistake("W_skip twice", "skip", "what W_skip gives is added twice", Skip(w_skip=2), _SKIPS),
    Mistake("residual added", "skip", "the residual is added to the reconstruction", Skip(residual=1)),
    Mistake("residual for W_skip", "skip", "the residual is added as it is, without W_skip", Skip(w_skip=0, residual=1), _SKIPS),
    Mistake("output not scaled back", "restores", "the reconstruction stays in the scale of the normalised input", False, (NORMALISED,)),
    Mistake("not divided by the norms", "divides", "activations are not divided by the norms of W_dec's rows before W_dec", False, (NORMS,)),
    Mistake("target below", "target", "the decoder is that of the target layer below", -1, _SEVERAL),
    Mistake("target above", "target", "the decoder is that of the target layer above", 1, _SEVERAL),
    Mistake("W_dec reshaped", "w_dec", f"W_dec's {_SWAPPED}", RESHAPED, _ONE),
    Mistake("W_dec of the layer below", "w_dec", "W_dec is that of layer L - 1", LAYER_BELOW),
    Mistake("W_dec of the layer above", "w_dec", "W_dec is that of layer L + 1", LAYER_ABOVE),
    Mistake("W_dec in bfloat16", "decoder_rounding", "W_dec is rounded to bfloat16", bfloat16),
    Mistake("W_dec cut to bfloat16", "decoder_rounding", "W_dec is cut off to bfloat16, not rounded", bfloat16_cut),
    Mistake("W_dec in float16", "decoder_rounding", "W_dec is rounded to float16", float16),
    Mistake("activations in bfloat16", "activations", "the activations are rounded to bfloat16 before W_dec", _fires(bfloat16)),
    Mistake("activations cut to bfloat16", "activations", "the activations are cut off to bfloat16 before W_dec", _fires(bfloat16_cut)),
    Mistake("activations in float16", "activations", "the activations are rounded to float16 before W_dec", _fires(float16)),
    Mistake(
        "top k decoded",
        "activations",
        "only the top k features are decoded, not all that fire",
        lambda encoded: np.where(encoded.listed, encoded.activations(), 0),
    ),
    Mistake(
        "threshold subtracted in decoding",
        "activations",
        "pre - threshold is decoded where JumpReLU gives pre",
        lambda encoded: np.where(encoded.fires, encoded.pre - encoded.gate, 0),
        _JUMP,
    ),
    Mistake(
        "relu in decoding",
        "activations",
        "all positive pre-activations are decoded: the threshold is ignored",
        lambda encoded: np.maximum(encoded.pre, 0),
        _JUMP,
    ),
    Mistake("no gate in decoding", "activations", "all pre-activations are decoded, before the gate", lambda encoded: encoded.pre),
)
