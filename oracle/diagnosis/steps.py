# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ports do instead of the right thing, step by step: roundings, sequences of the generator, inputs, gates, indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from oracle.arithmetic.chain import EncoderInput
from oracle.arithmetic.constants import MAX_U64, MULTIPLIER
from oracle.diagnosis.port import DecoderInput, Rounding, right_input

Input = Callable[[np.ndarray, EncoderInput, np.ndarray], np.ndarray]
EPSILON = 1e-6  # of norms

# --- roundings --------------------------------------------------------------------------------------------------------


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


def _float8(bits: int, least_exponent: int, largest: float) -> Rounding:
    """A float of 8 bits, so many of them of its significand with the first one; what is larger than the largest is that."""

    def rounded(values: np.ndarray) -> np.ndarray:
        _, exponent = np.frexp(values)
        unit = np.ldexp(np.float32(1), np.maximum(exponent, least_exponent + 1) - bits)
        return np.asarray(np.clip(np.rint(values / unit) * unit, -largest, largest), np.float32)

    return rounded


e4m3, e5m2 = _float8(4, -6, 448.0), _float8(3, -14, 57344.0)
LARGEST_E4M3, LARGEST_INT8 = 448.0, 127.0


@dataclass(frozen=True)
class Scaled:
    """Weights divided by a scale that makes the largest of them all, or of each feature's, `largest`, and rounded."""

    rounding: Rounding
    largest: float
    by_feature: bool = False

    def scale(self, largest: np.ndarray) -> np.ndarray:
        """float32 [n_features] of the features' largest |W_enc|."""
        whole = largest if self.by_feature else np.full_like(largest, largest.max(initial=0))
        return np.asarray(np.where(whole > 0, whole / np.float32(self.largest), 1), np.float32)


def whole_numbers(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(values))


# --- sequences of the generator ---------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _states(seed: int, stream: int, count: int) -> np.ndarray:
    """uint64 [count]: PCG32's states."""
    increment = (stream << 1 | 1) & MAX_U64
    state = ((increment + seed) * MULTIPLIER + increment) & MAX_U64
    states = []
    for _ in range(count):
        states.append(state)
        state = (state * MULTIPLIER + increment) & MAX_U64
    return np.array(states, np.uint64)


def _outputs(seed: int, stream: int, length: int, *, left: bool = False, first: int = 0) -> np.ndarray:
    """uint32, for enough pairs of the polar method."""
    states = _states(seed, stream, 4 * (length + 32))[first:]
    shifted = ((states >> np.uint64(18) ^ states) >> np.uint64(27)).astype(np.uint32)
    by = (states >> np.uint64(59)).astype(np.uint32)
    back = -by & np.uint32(31)
    return np.asarray(shifted << by | shifted >> back if left else shifted >> by | shifted << back)


def _deviates(w: np.ndarray, length: int, *, swapped: bool = False, rejects: bool = True, both: bool = True) -> np.ndarray:
    """float32 [length] by the polar method of uniforms."""
    w = w[: len(w) // 2 * 2]
    u, v = w[0::2], w[1::2]
    s = u * u + v * v
    if rejects:
        u, v, s = (values[s < 1] for values in (u, v, s))
    f = np.sqrt(np.abs(2 * np.log(s) / s))
    parts = [v * f, u * f] if swapped else [u * f, v * f]
    return np.stack(parts if both else parts[:1], axis=1).reshape(-1)[:length].astype(np.float32)


def _uniforms(outputs: np.ndarray) -> np.ndarray:
    return (2.0 * outputs + 1.0) * 2.0**-32 - 1.0


def v_before_u(seed: int, stream: int, length: int) -> np.ndarray:
    return _deviates(_uniforms(_outputs(seed, stream, length)), length, swapped=True)


def no_rejection(seed: int, stream: int, length: int) -> np.ndarray:
    return _deviates(_uniforms(_outputs(seed, stream, length)), length, rejects=False)


def no_rejection_zeros(seed: int, stream: int, length: int) -> np.ndarray:
    w = _uniforms(_outputs(seed, stream, length))
    outside = np.repeat(w[0::2] ** 2 + w[1::2] ** 2 >= 1, 2)[:length]
    return np.where(outside, np.float32(0), _deviates(w, length, rejects=False))


def one_of_a_pair(seed: int, stream: int, length: int) -> np.ndarray:
    return _deviates(_uniforms(_outputs(seed, stream, length)), length, both=False)


def rotated_left(seed: int, stream: int, length: int) -> np.ndarray:
    return _deviates(_uniforms(_outputs(seed, stream, length, left=True)), length)


def state_after(seed: int, stream: int, length: int) -> np.ndarray:
    return _deviates(_uniforms(_outputs(seed, stream, length, first=1)), length)


def positive_uniforms(seed: int, stream: int, length: int) -> np.ndarray:
    return _deviates((_outputs(seed, stream, length) + 0.5) * 2.0**-32, length)


def box_muller(seed: int, stream: int, length: int) -> np.ndarray:
    u = (_outputs(seed, stream, length) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2 * np.log(u[0::2])), 2 * math.pi * u[1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:length].astype(np.float32)


# --- inputs -----------------------------------------------------------------------------------------------------------


def unit_norm(r: np.ndarray) -> np.ndarray:
    norm = float(np.sqrt(np.sum(r.astype(np.float64) ** 2)))
    return np.asarray(r / max(norm, 1e-30), np.float32)


def rms_norm(r: np.ndarray) -> np.ndarray:
    return np.asarray(r / np.sqrt(np.mean(r.astype(np.float64) ** 2) + EPSILON), np.float32)


def layer_norm(r: np.ndarray) -> np.ndarray:
    centred = r - r.mean(dtype=np.float64)
    return np.asarray(centred / np.sqrt(np.mean(centred**2) + EPSILON), np.float32)


def centred(r: np.ndarray) -> np.ndarray:
    return np.asarray(r - r.mean(dtype=np.float64), np.float32)


def times_root(r: np.ndarray) -> np.ndarray:
    return np.asarray(r * math.sqrt(len(r)), np.float32)


def over_root(r: np.ndarray) -> np.ndarray:
    return np.asarray(r / math.sqrt(len(r)), np.float32)


def clipped(most: float) -> Rounding:
    return lambda r: np.clip(r, -most, most)


def times(factor: float) -> Rounding:
    return lambda r: np.asarray(r * factor, np.float32)


def rms_norm_times(factor: float) -> Rounding:
    return lambda r: np.asarray(rms_norm(r).astype(np.float64) * factor, np.float32)


def without(first: int, last: int) -> Rounding:
    """Without the inputs from `first` up to `last`; where they are negative they are counted from the end."""

    def skipped(r: np.ndarray) -> np.ndarray:
        kept = r.copy()
        kept[first : last or None] = 0
        return kept

    return skipped


def moved(by: float) -> Input:
    """b_dec added so many times to the residual, which else is treated rightly."""
    return lambda r, right, b_dec: right_input(r + np.float32(by) * b_dec, right, b_dec)


def other_input(**changed: Any) -> Input:
    return lambda r, right, b_dec: right_input(r, right._replace(**changed), b_dec)


def scaled_twice(r: np.ndarray, right: EncoderInput, b_dec: np.ndarray) -> np.ndarray:
    return right_input(r, right._replace(factor=right.factor**2), b_dec)


# --- biases, gates, indices, activations, targets -----------------------------------------------------------------------


def multiplied(by: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: by * values


def threshold_times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda threshold: np.maximum(threshold, 0) * factor


def never(first: int, last: int) -> Callable[[np.ndarray], np.ndarray]:
    """The gate's level where the features from `first` up to `last` never fire; where they are negative they are counted from the end."""

    def level(threshold: np.ndarray) -> np.ndarray:
        levels: np.ndarray = np.maximum(threshold, 0)
        levels[first : last or None] = np.inf
        return levels

    return level


def at_least(cut: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda threshold: np.maximum(threshold, cut)


def minus_threshold(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.asarray(pre - np.maximum(threshold, 0))


def magnitude(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(pre))


def soft(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.asarray(np.sign(pre) * np.maximum(np.abs(pre) - np.maximum(threshold, 0), 0))


def gelu(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    flat = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in pre.reshape(-1).tolist()]
    return np.array(flat).reshape(pre.shape)


def gelu_tanh(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * pre * (1 + np.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3))))


def silu(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.asarray(pre / (1 + np.exp(-np.clip(pre, -700, 700))))


def at_most(most: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda pre, threshold: np.minimum(pre, most)


def halved_below(cut: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda pre, threshold: np.where(pre < cut, pre / 2, pre)


def shifted(by: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Feature j is printed as (j + by) modulo n_features."""
    return lambda index, n: np.where((index >= 0) & (index < n), (index - by) % n, -1)


def fires(rounding: Rounding) -> Callable[[DecoderInput], np.ndarray]:
    return lambda encoded: rounding(encoded.activations())


def further(by: int) -> Callable[[np.ndarray], np.ndarray]:
    """To each target what W_dec has for the one so many places further."""

    def targets(outputs: np.ndarray) -> np.ndarray:
        moved_outputs = np.full_like(outputs, np.nan)
        for place in range(len(outputs)):
            if 0 <= place + by < len(outputs):
                moved_outputs[place] = outputs[place + by]
        return moved_outputs

    return targets


def reversed_targets(outputs: np.ndarray) -> np.ndarray:
    return outputs[::-1]


def cumulative_targets(outputs: np.ndarray) -> np.ndarray:
    return np.cumsum(outputs, axis=0)
