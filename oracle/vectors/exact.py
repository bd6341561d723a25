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
    "zero-pre": ("a feature whose pre-activation is 0 or -0 fired", "`>=` 0; a test of the sign bit; zeros counted as active"),
    "negative-threshold": (
        "a negative threshold was not treated as 0",
        "`pre > threshold`, where `pre > max(threshold, 0)` is right; a feature with a negative threshold left out",
    ),
    "negative-pre": ("a feature whose pre-activation is below 0 fired", "|pre|, a leaky ReLU, GELU; no gate at all"),
    "threshold": (
        "the threshold was left out, subtracted, halved, doubled or exponentiated, or another number was used",
        "plain ReLU; a soft threshold, pre - threshold; exp() of a threshold that is no logarithm; no exp() of one that is; a constant factor forgotten",
    ),
    "tie-order": (
        "equal activations did not stand in ascending order of index",
        "an unstable sort; a stable sort that is reversed; a heap; indices in descending order",
    ),
    "k-boundary": (
        "more or fewer than k features fired where more than k could",
        "k read from the wrong place; k - 1 or k + 1; no top k at all; `>=` the k-th value, which lets ties in",
    ),
    "fewer-than-k": ("k features were counted where fewer are above 0", "n_active = k; a list that is filled with zeros to k entries"),
    "none-active": ("a feature fired where none does", "an argmax; a list of at least one entry; NaN from an empty list"),
    "all-active": ("some features did not fire where all do", "a buffer of fixed size; a list cut at some length; a bound below n_features"),
    "first-feature": ("the first feature was left out or has another index", "indices counted from 1; a loop from 1; index 0 taken for `no feature`"),
    "last-feature": ("the last feature was left out", "a loop to n - 1; the rest after the last whole block not computed"),
    "first-input": ("the first input was left out", "a loop from 1; the first place taken for that of a bias or a special token"),
    "last-input": ("the last input was left out", "a loop to n - 1; the rest after the last whole block not added"),
    "each-block": (
        "features at the edges of blocks were left out or mixed up",
        "blocks of 8, 16, 64 or 256 that overlap; the last block missing; a thread's share off by one",
    ),
    "b_enc-matters": ("b_enc was left out, subtracted or added twice", "a linear layer without its bias; b_dec in its place"),
    "b_dec-matters": ("b_dec was left out of a reconstruction, subtracted or added twice", "the decoder's bias forgotten; b_dec subtracted, as some encoders do"),
    "b_dec-not-subtracted": ("b_dec was subtracted from the residual, or added to it, before W_enc", "code reused from an SAE whose encoder subtracts b_dec"),
    "b_dec-subtracted": (
        "b_dec was not subtracted from the input, or was subtracted twice or added",
        "code reused from a transcoder; apply_b_dec_to_input not read",
    ),
    "orientation": (
        "W_enc was read with its axes swapped",
        "a buffer reshaped instead of transposed; [n_features, d_model] taken for [d_model, n_features], which the shape of a square matrix does not show",
    ),
    "w_dec-not-w_enc": ("W_dec was used for W_enc", "tied weights assumed; two tensors confused"),
    "small-activations": (
        "weak features were dropped, halved or changed beside strong ones",
        "a cut such as 1e-3 or 1 % of the largest; GELU or another smooth gate",
    ),
    "int8": ("weights were quantised to 8 bits", "int8 with a scale per tensor or per row, where the largest weight is 500 times the others"),
    "bfloat16": ("a digit was lost that bfloat16 cannot hold", "weights, biases, residuals or results in bfloat16"),
    "float16": ("a digit was lost that float16 cannot hold, or a value was out of its range", "weights, residuals, sums or results in float16"),
    "tf32": ("a digit was lost that TF32 cannot hold", "a GPU's matrix product with TF32 allowed"),
    "float64-input": ("the input was not the float32 value to its last bit", "a residual read with six digits; r - b_dec not rounded to float32 before W_enc"),
    "wide-weights": ("W_enc was rounded", "stored or multiplied in fewer digits"),
    "wide-residual": ("the residual was rounded", "stored or multiplied in fewer digits; printed with too few"),
    "wide-bias": ("b_enc was rounded", "a bias in bfloat16 or float16"),
    "wide-output": ("activations or sums were rounded or clamped", "an output in bfloat16 or float16, sums in float16, ReLU6"),
    "wide-decoder": ("W_dec or the activations were rounded before they were multiplied", "a decoder in bfloat16 or float16"),
    "decoder": (
        "a reconstruction was computed from wrong activations, or with a wrong W_dec",
        "only the top k of a list decoded; pre-activations decoded; W_dec transposed, reshaped, or of another layer",
    ),
    "large-magnitude": ("a large activation overflowed, or was clamped", "float16; an intermediate result that is squared; ReLU6"),
    "subnormal": ("an activation below 2^-126 became 0", "flush to zero, which some GPUs do, and gcc programs that are linked with -ffast-math"),
    "cancellation": ("the small sum of large terms was lost", "sums in float16, bfloat16 or TF32"),
    "input": (
        "the encoder's input was not computed as encoder_input says",
        "a residual normalised without need, or not normalised; unit norm, RMS norm and layer norm confused",
    ),
    "input-scale": (
        "the residual was not scaled or was scaled twice, or the output was not scaled back",
        "the side file not read; the factor taken for a part of the weights",
    ),
    "input-norm": ("the residual was normalised in a wrong way", "the mean not subtracted; n for n - 1; b_dec subtracted before the norm instead of after it"),
    "decoder-norms": ("pre-activations were not multiplied by the norms of W_dec's rows", "rescale_acts_by_decoder_norm not read"),
    "magnitude-bias": ("the gate's bias was added to the magnitude", "b_gate used in both places"),
    "magnitude-scale": ("r_mag was left out or used as it stands", "the product multiplied by 1 or by r_mag, where exp(r_mag) is right"),
    "shut-gate": (
        "a feature fired though its gate is shut or its magnitude is below 0",
        "ReLU of the magnitude without the gate; the gate without ReLU of the magnitude",
    ),
    "negative-values": ("values below 0 did not fire though they are among the k largest", "ReLU before a top k that has no ReLU"),
    "positive-values": ("values below 0 fired because they are among the k largest", "a top k of pre-activations without ReLU"),
    "magnitudes": ("the k largest were not chosen by magnitude", "a plain top k where the side file says `signed` or abstopk; the sign lost"),
    "groups": ("other features than the largest of each group fired", "a top k over all features; interleaved groups"),
    "targets": (
        "a target layer's reconstruction is that of another target, or holds a b_dec that is not its own",
        "W_dec's axes confused; targets counted from layer 0 instead of the source layer; b_dec added to all targets",
    ),
    "skip": ("W_skip was left out, added twice or transposed, or multiplied the wrong vector", "a loader without the skip connection; the residual added as it is"),
    "input-layers": ("the residuals of several layers were not joined in order", "layers reversed or interleaved; one layer alone"),
    "layers": ("the weights or thresholds of another layer were used", "layers counted from 1; the first layer's file used for all"),
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
