# SPDX-License-Identifier: MIT OR Apache-2.0
"""The chain once more, on weights whose every sum is a float32 in any order: the right answers of exact vectors, and the proof.

Nothing of the encoder's arithmetic is used here, and no BLAS: float64 products of float32 are exact, and so is a sum that is proven so.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from oracle.arithmetic.chain import exp_float32
from oracle.arithmetic.constants import ABSTOPK, GATED, GROUPMAX, JUMPRELU, LAYER_NORM, RELU, SCALED, TOPK, UNIT_RMS
from oracle.weights.sidefiles import B_DEC, B_ENC, B_GATE, B_MAG, LOG_THRESHOLD, R_MAG, THRESHOLD, W_DEC, W_ENC, W_SKIP, Settings

Tensors = dict[str, np.ndarray]  # float32, by what they are for: W_enc [n_inputs, n_features], W_dec [n_features, ..., d_out]

SIGNIFICANT_BITS, LEAST_EXPONENT, MOST_EXPONENT = 24, -149, 127  # float32's
LEAST_DEVIATION = 2.0**16  # of a residual that is layer-normalised: beside it float32 loses 1e-5


class InexactError(ValueError):
    """A sum that float32 would round in some order."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a residual gives: float32 values [n_features], the features that fire in order, and what its decoder makes of it.

    `at_gate` are features whose number is their gate's own, `ties` whether two equal values stand in the order or across its end.
    `outputs` is float32 [n_targets, d_out]; None where float32 would round it in some order.
    """

    values: np.ndarray
    active: list[int]
    at_gate: np.ndarray
    ties: bool
    outputs: np.ndarray | None


def exact_sum(terms: np.ndarray) -> np.ndarray:
    """float64 sums along the last axis. Raises InexactError where one of them, or a part of one in any order, is not a float32.

    All terms of a sum are whole multiples of one power of two, and neither those above 0 nor those below add up to more than 2^24
    of it: so no part does.
    """
    total: np.ndarray = terms.sum(axis=-1)
    unit = _units(terms).min(axis=-1)
    size = np.maximum(np.maximum(terms, 0).sum(axis=-1), -np.minimum(terms, 0).sum(axis=-1))
    fits = (size <= np.ldexp(1.0, np.minimum(unit + SIGNIFICANT_BITS, 1000))) & (unit >= LEAST_EXPONENT) & (size < 2.0**MOST_EXPONENT)
    if not np.all(fits | (size == 0)):
        raise InexactError(f"{int(np.count_nonzero(~fits & (size != 0)))} sums depend on their order")
    return total


def _units(values: np.ndarray) -> np.ndarray:
    """int: the exponent of the last bit that is set in each float64; 1000 for 0."""
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    _, last = np.frexp((whole & -whole).astype(np.float64))
    return np.where(values == 0, 1000, exponent - 53 + last - 1)


def input_of(settings: Settings, tensors: Tensors, residual: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """float32 input [n_inputs] of a float32 residual, and the factor and offset of what a decoder gives.

    None where the normaliser's factor is no power of two, so that it would be rounded.
    """
    exact = [Fraction(float(value)) for value in residual]
    factor, offset = settings.back, 0.0
    if settings.root_scaled:
        exact = [value / math.isqrt(len(exact)) for value in exact]
    elif settings.normalised == SCALED:
        exact = [value * Fraction(settings.factor) for value in exact]
    elif settings.normalised == UNIT_RMS:
        norm = _root(sum((value * value for value in exact), Fraction(0)))
        if norm is None:
            return None
        exact = [value * math.isqrt(len(exact)) / norm for value in exact]
        factor = float(norm) / math.isqrt(len(exact))
    elif settings.normalised == LAYER_NORM:
        mean = sum(exact, Fraction(0)) / len(exact)
        centred = [value - mean for value in exact]
        deviation = _root(sum((value * value for value in centred), Fraction(0)) / (len(exact) - 1))
        if deviation is None or deviation < LEAST_DEVIATION:
            return None
        exact, factor, offset = [value / deviation for value in centred], float(deviation), float(mean)
    values = np.array([float(value) for value in exact])
    if settings.minus_b_dec:
        values = values - tensors[B_DEC].astype(np.float64)
    with np.errstate(under="ignore"):
        return values.astype(np.float32), factor if settings.restores else 1.0, offset if settings.restores else 0.0


def _root(square: Fraction) -> Fraction | None:
    """The root of a power of four; None where it is none."""
    roots = math.isqrt(square.numerator), math.isqrt(square.denominator)
    is_power = square > 0 and not (square.numerator & (square.numerator - 1)) and not (square.denominator & (square.denominator - 1))
    return Fraction(*roots) if is_power and Fraction(*roots) ** 2 == square else None


def level_of(settings: Settings, tensors: Tensors) -> np.ndarray | None:
    """float32 [n_features]: what JumpReLU holds a value against, before it is held above 0; None for another gate."""
    if settings.gate != JUMPRELU:
        return None
    n = tensors[W_ENC].shape[1]
    if LOG_THRESHOLD in tensors:
        return exp_float32(tensors[LOG_THRESHOLD])
    level = np.float32(settings.level * settings.level_factor) if settings.level is not None else tensors[THRESHOLD]
    return np.broadcast_to(np.asarray(level, np.float32), (n,))


def norms_of(w_dec: np.ndarray) -> np.ndarray:
    """float64 [n_features]: the norms of W_dec's rows, which are powers of two."""
    squares = exact_sum(w_dec.astype(np.float64) ** 2)
    norms: np.ndarray = np.sqrt(squares)
    if np.any(norms * norms != squares):
        raise InexactError("a norm of W_dec's rows is no float32")
    return norms


def answer(settings: Settings, tensors: Tensors, residual: np.ndarray, own_target: int = 0) -> Answer | None:
    """The answer to a float32 residual; None where its input would be rounded. Raises InexactError where a value would be."""
    parts = input_of(settings, tensors, residual)
    if parts is None:
        return None
    inputs, factor, offset = parts
    terms = tensors[W_ENC].T.astype(np.float64) * inputs.astype(np.float64)  # [n_features, n_inputs]
    bias = tensors[B_MAG if settings.gate == GATED else B_ENC].astype(np.float64)
    scale = np.ones(len(bias))
    if settings.gate == GATED:
        scale = exp_float32(tensors[R_MAG]).astype(np.float64)
        values = exact_sum(np.column_stack([terms * scale[:, np.newaxis], bias]))
    else:
        if settings.by_decoder_norm:
            scale = norms_of(tensors[W_DEC])
        values = exact_sum(np.column_stack([terms, bias]) * scale[:, np.newaxis])
    active, at_gate, ties = _gated(settings, tensors, values, terms)
    ordered = sorted(np.flatnonzero(active).tolist(), key=lambda feature: (-values[feature], feature))
    firing = [values[feature] for feature in ordered]
    try:
        outputs = _outputs(settings, tensors, np.where(active, values, 0.0) / (scale if settings.by_decoder_norm else 1.0), residual, own_target, factor, offset)
    except InexactError:
        outputs = None
    return Answer(values.astype(np.float32), ordered, at_gate, ties or len(set(firing)) < len(firing), outputs)


def _gated(settings: Settings, tensors: Tensors, values: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """bool [n_features] twice, the features that fire and those at their gate, and whether equal values lie across the k-th place."""
    gate, n = settings.gate, len(values)
    if gate == RELU:
        return values > 0, values == 0, False
    if gate == JUMPRELU:
        level = level_of(settings, tensors)
        least = np.maximum(np.zeros(n) if level is None else level.astype(np.float64), 0)
        return values > least, values == least, False
    if gate == GATED:
        gates = exact_sum(np.column_stack([terms, tensors[B_GATE].astype(np.float64)]))
        return (gates > 0) & (values > 0), ((gates == 0) & (values > 0)) | ((gates > 0) & (values == 0)), False
    measure = np.abs(values) if gate == ABSTOPK else values
    inside, tie, at_zero = np.zeros(n, bool), False, np.zeros(n, bool)
    count = settings.k or 0
    groups, kept = (np.split(np.arange(n), count), 1) if gate == GROUPMAX else ([np.arange(n)], count)
    for group in groups:
        ordered = sorted(group.tolist(), key=lambda feature: (-measure[feature], feature))
        inside[ordered[:kept]] = True
        at_end = len(ordered) > kept and measure[ordered[kept - 1]] == measure[ordered[kept]]
        tie |= at_end and (measure[ordered[kept]] > 0 or gate == TOPK and not settings.relu)
        at_zero[[feature for feature in ordered if measure[feature] == 0]] = measure[ordered[kept - 1]] <= 0
    if gate == TOPK and not settings.relu:
        return inside & (values != 0), np.zeros(n, bool), bool(tie)
    return inside & (measure > 0), at_zero, bool(tie)


def _outputs(
    settings: Settings, tensors: Tensors, activations: np.ndarray, residual: np.ndarray, own_target: int, factor: float, offset: float
) -> np.ndarray:
    """float32 [n_targets, d_out]. Raises InexactError."""
    w_dec, b_dec = tensors[W_DEC].astype(np.float64), tensors[B_DEC].astype(np.float64)
    if w_dec.ndim == 2:
        w_dec = w_dec[:, np.newaxis]
    rows = math.isqrt(tensors[W_ENC].shape[0]) if settings.root_scaled else 1
    outputs = []
    for target in range(w_dec.shape[1]):
        terms = [w_dec[:, target].T * (activations * rows)]  # [d_out, n_features]
        if b_dec.ndim > 1:
            terms.append(b_dec[target][:, np.newaxis])
        elif target == own_target:
            terms.append(b_dec[:, np.newaxis])
        if W_SKIP in tensors and target == own_target:
            terms.append(tensors[W_SKIP].T.astype(np.float64) * residual.astype(np.float64))
        whole = np.concatenate(terms, axis=1)
        exact_sum(whole)
        outputs.append(exact_sum(np.column_stack([whole * factor, np.full(len(whole), offset)])))
    return np.array(outputs).astype(np.float32)


# --- flags ------------------------------------------------------------------------------------------------------------

# Of each flag what a port does that fails its cases, and how ports come to do it.
NOTES: dict[str, tuple[str, str]] = {
    "gate-equality": ("a feature whose pre-activation equals its threshold fired", "`>=` where the gate is `>`"),
    "zero-pre": ("a feature whose pre-activation is 0 or -0 fired", "`>=` 0; a sign bit that is looked at; the number of values that ReLU left, zeros too"),
    "negative-threshold": ("a feature fired below 0, or did not where its threshold is below 0", "`pre > threshold` alone; max(threshold, 0) is the gate"),
    "negative-pre": ("a feature whose pre-activation is below 0 fired", "|pre|, a leaky ReLU, GELU; no gate at all"),
    "threshold": (
        "the threshold was left out, subtracted, halved, doubled, exponentiated, or not taken from where it stands",
        "plain ReLU; a soft threshold, pre - threshold; exp() of a threshold that is none of a logarithm, or none of one that is; a scale forgotten",
    ),
    "tie-order": ("of equal activations not the lowest index came first", "a sort that is not stable, or is and was reversed; a heap; indices sorted descending"),
    "k-boundary": ("not k features fired, where more are above 0", "k of another place, k - 1 or k + 1; no top k at all; `>=` the k-th value, which lets ties in"),
    "fewer-than-k": ("k features were counted where fewer are above 0", "n_active = k; a list filled up with zeros"),
    "none-active": ("something fired where nothing does", "an argmax; a list of at least one; NaN from an empty list"),
    "all-active": ("not all features fired where all do", "a buffer of fixed size; a list cut at some length; a bound below n_features"),
    "first-feature": ("the first feature was left out or went to another index", "indices counted from 1; a loop from 1; 0 taken for none"),
    "last-feature": ("the last feature was left out", "a loop to n - 1; what blocks leave over is not computed"),
    "first-input": ("the first input was left out", "a loop from 1; a token of its own expected in front"),
    "last-input": ("the last input was left out", "a loop to n - 1; what blocks leave over is not summed"),
    "each-block": (
        "features at the edges of blocks were left out or mixed up",
        "blocks of 8, 16, 64 or 256 that overlap, or whose last one is missing; a thread's share off by one",
    ),
    "b_enc-matters": ("b_enc was left out, subtracted or added twice", "a linear layer without its bias; b_dec in its place"),
    "b_dec-matters": ("a reconstruction without b_dec", "the decoder's bias forgotten, or subtracted"),
    "b_dec-not-subtracted": ("b_dec was taken from, or added to, a residual that goes in as it is", "what other SAEs do"),
    "b_dec-subtracted": ("b_dec was not subtracted from the input, or twice, or added", "a transcoder's encoder; apply_b_dec_to_input passed over"),
    "orientation": (
        "W_enc was read the other way round",
        "its buffer reshaped, not transposed; [n_features, d_model] for [d_model, n_features]; a square one does not show it by its shape",
    ),
    "w_dec-not-w_enc": ("W_dec was used for W_enc", "tied weights assumed; two tensors confused"),
    "small-activations": ("weak features were dropped, halved or changed beside strong ones", "a cut such as 1e-3 or 1 % of the largest; GELU or another smooth gate"),
    "int8": ("weights were quantised", "8 bits for a tensor or a row, whose largest weight is 500 times the others"),
    "bfloat16": ("a digit was lost that bfloat16 has not", "weights, biases, residuals or results in bfloat16"),
    "float16": ("a digit was lost that float16 has not, or a value left its range", "weights, residuals, sums or results in float16"),
    "tf32": ("a digit was lost that TF32 has not", "a GPU's matrix product with TF32 allowed"),
    "float64-input": ("the last bit of the input was not float32's", "a residual read with six digits; r - b_dec not rounded to float32 before W_enc"),
    "wide-weights": ("W_enc was rounded", "stored or multiplied in fewer digits"),
    "wide-residual": ("the residual was rounded", "stored or multiplied in fewer digits; printed with too few"),
    "wide-bias": ("b_enc was rounded", "a bias in bfloat16 or float16"),
    "wide-output": ("activations or sums were rounded or clamped", "an output in bfloat16 or float16, sums in float16, ReLU6"),
    "wide-decoder": ("W_dec, or what it is multiplied by, was rounded", "a decoder in bfloat16 or float16"),
    "decoder": (
        "a reconstruction was made of other activations, or of another W_dec",
        "the top k of a list alone; pre-activations; W_dec transposed, reshaped, or that of another layer",
    ),
    "large-magnitude": ("a large activation overflowed, or was clamped", "float16; squares on the way; ReLU6"),
    "subnormal": ("an activation below 2^-126 became 0", "flush to zero, which -ffast-math at linking and some GPUs turn on"),
    "cancellation": ("what is left of large terms was lost", "sums in float16, bfloat16 or TF32"),
    "input": ("the input was computed in another way", "normalised where it is not, or not where it is; unit norm, RMS or layer norm of the wrong kind"),
    "input-scale": ("the residual was not scaled, or twice, or the output not scaled back", "the side file not read; folded into the weights already"),
    "input-norm": ("the residual was not normalised as it has to be", "no mean taken off; n for n - 1; b_dec subtracted before, not after"),
    "decoder-norms": ("pre-activations were not multiplied by the norms of W_dec's rows", "rescale_acts_by_decoder_norm passed over"),
    "magnitude-bias": ("the gate's bias was added to the magnitude", "one bias for two"),
    "magnitude-scale": ("r_mag was left out or used as it stands", "it is a logarithm: exp(r_mag) multiplies the product"),
    "shut-gate": ("a feature fired though its gate is shut, or its magnitude below 0", "ReLU of the magnitude alone; the gate's sign alone"),
    "negative-values": ("values below 0 did not fire though they are among the k largest", "ReLU before a top k that has none"),
    "positive-values": ("values below 0 fired because they are among the k largest", "a top k of pre-activations where it is one of ReLU"),
    "magnitudes": ("the k largest were not chosen by magnitude", "a plain top k where `signed` or abstopk is said; the sign lost"),
    "groups": ("not the largest of each group fired", "a top k over all features; groups that interleave"),
    "targets": ("a target layer's reconstruction is another's", "W_dec's axes confused; targets counted from 0, not from the own layer; b_dec to all of them"),
    "skip": ("W_skip was left out, transposed, or of another input", "a transcoder without its affine part"),
    "input-layers": ("the residuals of several layers were put together in another order", "the layers reversed or interleaved; one layer alone"),
    "layers": ("the weights or thresholds of another layer were used", "layers counted from 1; the first file kept for all"),
}  # fmt: skip


def true_flags(flags: Collection[str], settings: Settings, result: Answer) -> list[str]:
    """The flags that an answer shows, in the order of the notes: of those that were meant, and those that it turned out to have."""
    n, fires, selects = len(result.values), len(result.active), settings.k is not None
    shown = set(flags)
    ends = {"all-active": fires == n, "none-active": fires == 0, "tie-order": result.ties, "k-boundary": selects and fires == settings.k,
            "fewer-than-k": selects and fires < (settings.k or 0), "first-feature": 0 in result.active, "last-feature": n - 1 in result.active,
            "negative-threshold": settings.gate == JUMPRELU, "threshold": settings.gate == JUMPRELU}  # fmt: skip
    shown -= {flag for flag, holds in ends.items() if not holds}
    if result.ties:
        shown.add("tie-order")
    if result.at_gate.any():
        shown |= {"gate-equality"} | ({"zero-pre"} if np.any(result.at_gate & (result.values == 0)) else set())
    else:
        shown -= {"gate-equality", "zero-pre"}
    return [flag for flag in NOTES if flag in shown]
