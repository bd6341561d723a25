# SPDX-License-Identifier: MIT OR Apache-2.0
"""The residual generator `pcg32-polar-f32`, version 1; residual.rs beside this file is its twin in Rust.

PCG32 is M. E. O'Neill's XSH-RR 64/32 ("PCG: A Family of Simple Fast Space-Efficient Statistically Good
Algorithms for Random Number Generation", 2014). Normal deviates come by G. Marsaglia's polar method
(Marsaglia and Bray, 1964). The logarithm is spelt out below, because libm's differs between machines: every
step here is an integer operation modulo 2^64, or one correctly rounded IEEE-754 binary64 operation, or sqrt.
"""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from oracle.arithmetic.constants import FNV_OFFSET_BASIS, FNV_PRIME, LN_2, LN_LAST_TERM, MAX_U64, MULTIPLIER, SQRT_HALF
from oracle.errors import BadUse

_PAIRS_AT_ONCE = 1 << 16


class ResidualError(BadUse, ValueError):
    """A residual that the generator does not have."""


def residual(seed: int, stream: int, length: int) -> np.ndarray:
    """The first `length` values of the generator, float32 [length]: standard normal, the same bits on every machine.

    `seed` and `stream` are integers in [0, 2^64); a stream's top bit is shifted out, as in PCG's own C.
    Raises ResidualError for anything else, or a negative length.
    """
    length = _integer("length", length)
    if length < 0:
        raise ResidualError(f"a residual of {length} values does not exist")
    state, increment = _first_state(seed, stream)
    values = np.empty(length + length % 2, np.float32)
    filled = 0
    while filled < length:
        # The polar method keeps pi/4 of all pairs: draw a little over 4/pi times as many as are missing.
        pairs = min(_PAIRS_AT_ONCE, (length - filled) * 2 // 3 + 24)
        outputs, state = _pcg32(state, increment, 2 * pairs)
        normals = _polar(outputs)[: len(values) - filled]
        values[filled : filled + len(normals)] = normals
        filled += len(normals)
    return values[:length]


class Pair(NamedTuple):
    """A pair of the generator, step by step: two outputs x, two uniforms w, and s. `values` are float32; of a pair that is dropped,
    where s is 1 or more, `ln_s`, `f` and they are None.
    """

    x: tuple[int, int]
    w: tuple[float, float]
    s: float
    ln_s: float | None
    f: float | None
    values: tuple[float, float] | None


def first_pairs(seed: int, stream: int, length: int) -> list[Pair]:
    """The steps that give the first `length` values, as a port may print them. Raises ResidualError as residual() does."""
    state, increment = _first_state(seed, stream)
    pairs: list[Pair] = []
    missing = length
    while missing > 0:
        outputs, state = _pcg32(state, increment, 2)
        u, v = _uniforms(outputs).tolist()
        s = u * u + v * v
        pair = Pair((int(outputs[0]), int(outputs[1])), (u, v), s, None, None, None)
        if s < 1:
            ln_s = float(_ln(np.array([s]))[0])
            f = math.sqrt((-2.0 * ln_s) / s)
            pair = pair._replace(ln_s=ln_s, f=f, values=(float(np.float32(u * f)), float(np.float32(v * f))))
            missing -= 2
        pairs.append(pair)
    return pairs


def fingerprint(values: np.ndarray) -> str:
    """FNV-1a, 64 bits, over the little-endian float32 bytes of `values`, as 0x and 16 hex digits.

    Fowler, Noll and Vo's hash. It tells one residual from another; it is no security hash.
    """
    state = FNV_OFFSET_BASIS
    for byte in values.astype("<f4", copy=False).tobytes():
        state = (state ^ byte) * FNV_PRIME & MAX_U64
    return f"0x{state:016x}"


def _integer(name: str, value: int) -> int:
    """An integer of any type as Python's, which does not overflow. Raises ResidualError."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ResidualError(f"{name} {ascii(value)[:80]} is no integer") from error


def _first_state(seed: int, stream: int) -> tuple[int, int]:
    """PCG32's state before its first output, and its increment. Raises ResidualError for what is no integer of 64 bits."""
    seed, stream = _integer("seed", seed), _integer("stream", stream)
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value <= MAX_U64:
            raise ResidualError(f"{name} {value} is not in [0, 2^64)")
    increment = (stream << 1 | 1) & MAX_U64
    return ((increment + seed) * MULTIPLIER + increment) & MAX_U64, increment


@lru_cache(maxsize=4)
def _jumps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [count] twice: the multiplier's powers a_i, and c_i = a_0 + ... + a_(i-1).

    i steps of the generator in one: state_i = a_i * state_0 + c_i * increment (mod 2^64).
    """
    power = np.ones(1, np.uint64)
    total = np.zeros(1, np.uint64)
    while len(power) < count:
        # Knowing the first n steps, the next n are those n on top of one jump of n steps.
        jump = int(power[-1]) * MULTIPLIER & MAX_U64
        offset = int(total[-1]) + int(power[-1]) & MAX_U64
        total = np.concatenate([total, total + power * np.uint64(offset)])
        power = np.concatenate([power, power * np.uint64(jump)])
    return power[:count], total[:count]


def _pcg32(state: int, increment: int, count: int) -> tuple[np.ndarray, int]:
    """The next `count` outputs of PCG32, uint32 [count], and the state behind them."""
    power, total = _jumps(count)
    states: np.ndarray = power * np.uint64(state) + total * np.uint64(increment)  # [count], before each output's own step
    xorshifted = ((states >> np.uint64(18) ^ states) >> np.uint64(27)).astype(np.uint32)
    rotation = (states >> np.uint64(59)).astype(np.uint32)
    outputs = xorshifted >> rotation | xorshifted << (-rotation & np.uint32(31))
    return outputs, (int(states[-1]) * MULTIPLIER + increment) & MAX_U64


def _polar(outputs: np.ndarray) -> np.ndarray:
    """uint32 [2 * pairs] -> float32 [2 * the pairs that lie in the unit circle], in order."""
    w = _uniforms(outputs)
    u, v = w[0::2], w[1::2]
    s = u * u + v * v
    inside = s < 1.0
    u, v, s = u[inside], v[inside], s[inside]
    f = np.sqrt((-2.0 * _ln(s)) / s)
    normals = np.empty(2 * len(s), np.float32)
    normals[0::2] = u * f
    normals[1::2] = v * f
    return normals


def _uniforms(outputs: np.ndarray) -> np.ndarray:
    """uint32 -> float64 in (-1, 1), exact."""
    w: np.ndarray = (2.0 * outputs + 1.0) * 2.0**-32 - 1.0
    return w


def _ln(s: np.ndarray) -> np.ndarray:
    """Natural logarithm of float64 s > 0, by 2 artanh((m - 1) / (m + 1)) with s = m * 2^e."""
    m, e = np.frexp(s)
    low = m < SQRT_HALF
    m = np.where(low, 2.0 * m, m)
    e = np.where(low, e - 1, e)
    t = (m - 1.0) / (m + 1.0)
    q = t * t
    p = 1.0 / LN_LAST_TERM
    for k in range(LN_LAST_TERM - 2, 0, -2):
        p = p * q + 1.0 / k
    logarithms: np.ndarray = e * LN_2 + (2.0 * t) * p
    return logarithms
