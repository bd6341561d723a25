# SPDX-License-Identifier: MIT OR Apache-2.0
"""More wrong steps of the tests' own ports: other sequences of the generator, narrow numbers, odd gates and sums."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

MASK = 2**64 - 1
Arrays = dict[str, np.ndarray]


def outputs(seed: int, stream: int, left: bool = False, late: bool = False) -> Iterator[int]:
    """PCG32, a number at a time."""
    inc = (stream << 1 | 1) & MASK
    state = inc
    state = (state + seed) * 6364136223846793005 + inc & MASK
    while True:
        old = state
        state = old * 6364136223846793005 + inc & MASK
        if late:
            old = state
        word, by = ((old >> 18 ^ old) >> 27) & 0xFFFFFFFF, old >> 59
        by = (32 - by) % 32 if left else by
        yield (word >> by | word << (32 - by)) & 0xFFFFFFFF


@lru_cache(maxsize=4096)
def normals(kind: str, seed: int, stream: int, n: int) -> np.ndarray:
    """The polar method with one slip."""
    numbers = outputs(seed, stream, left=kind == "left", late=kind == "late")
    values: list[float] = []
    while len(values) < n:
        a, b = next(numbers), next(numbers)
        if kind == "box":
            radius, angle = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * (b + 0.5) / 2**32
            values += [radius * math.cos(angle), radius * math.sin(angle)]
            continue
        u, v = ((x + 0.5) / 2**32 if kind == "positive" else (2 * x + 1) / 2**32 - 1 for x in (a, b))
        s = u * u + v * v
        if s >= 1 and kind == "zeros":
            values += [0.0, 0.0]
            continue
        if s >= 1 and kind != "all":
            continue
        f = math.sqrt(abs(-2 * math.log(s) / s))
        values += [u * f] if kind == "one" else [v * f, u * f] if kind == "swapped" else [u * f, v * f]
    return np.array(values[:n], np.float32)


def sequence(kind: str) -> Callable[[int, int, int], np.ndarray]:
    return lambda i, layer, n: normals(kind, 100 * i + layer, layer, n)


def fp8(name: str, scaled: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    kind = getattr(ml_dtypes, name)

    def rounded(w: np.ndarray) -> np.ndarray:
        scale = np.float32(np.abs(w).max() / np.float32(448)) if scaled else np.float32(1)
        values: np.ndarray = (w / scale).astype(kind).astype(np.float32) * scale
        return values

    return rounded


def int8(w: np.ndarray, axis: int | None = None) -> np.ndarray:
    """[d_model, n_features]; with axis 0 a scale for each feature."""
    scale = np.abs(w).max(axis=axis, keepdims=True).astype(np.float32) / np.float32(127)
    values: np.ndarray = np.clip(np.round(w / scale), -127, 127).astype(np.int8).astype(np.float32) * scale
    return values


def narrow(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values.astype(dtype).astype(np.float32)


BF16, F16 = narrow(ml_dtypes.bfloat16), narrow(np.float16)


def narrow_sums(to: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """r . W, rounded after each input."""

    def sums(r: np.ndarray, w: np.ndarray) -> np.ndarray:
        total = np.zeros(w.shape[1], np.float32)
        for value, row in zip(r, w):
            total = to(total + value * row)
        return total

    return sums


def gelu(pre: np.ndarray) -> np.ndarray:
    return np.array([float(x) * 0.5 * math.erfc(-float(x) / math.sqrt(2)) for x in pre])


def gelu_tanh(pre: np.ndarray) -> np.ndarray:
    x = pre.astype(np.float64)
    return np.asarray(x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) / 2)


def silu(pre: np.ndarray) -> np.ndarray:
    x = pre.astype(np.float64)
    return np.asarray(x * (1 + np.tanh(x / 2)) / 2)


def zeroed(*which: slice) -> Callable[[np.ndarray], np.ndarray]:
    def step(r: np.ndarray) -> np.ndarray:
        kept = r.copy()
        for span in which:
            kept[span] = 0
        return kept

    return step


def whole_blocks(r: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(r)) < len(r) // 8 * 8, r, 0).astype(np.float32)


def without_features(n: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return lambda pre, t: (pre, (pre > t) & (np.arange(len(pre)) < len(pre) - n))


# name -> (the step that it changes, how); the names are those of the rows of the table, or of rows that an estimate makes.
MORE: dict[str, tuple[str, Any]] = {
    "soft threshold": ("activation", lambda pre, t: (np.sign(pre) * (abs(pre) - t), abs(pre) > t)),
    "gelu": ("activation", lambda pre, t: (gelu(pre), pre > 0)),
    "gelu, tanh": ("activation", lambda pre, t: (gelu_tanh(pre), pre > 0)),
    "silu": ("activation", lambda pre, t: (silu(pre), pre > 0)),
    "relu6": ("activation", lambda pre, t: (np.minimum(pre, 6), pre > 0)),
    "activations up to 6": ("activation", lambda pre, t: (np.minimum(pre, 6), pre > t)),
    "|pre|": ("activation", lambda pre, t: (abs(pre), abs(pre) > t)),
    "first feature skipped": ("activation", lambda pre, t: (pre, (pre > t) & (np.arange(len(pre)) > 0))),
    "last feature skipped": ("activation", without_features(1)),
    "last 8 features skipped": ("activation", without_features(8)),
    "threshold of the layer below": ("threshold layer", -1),
    "threshold of the layer above": ("threshold layer", 1),
    "b_enc of the layer below": ("bias layer", -1),
    "b_enc of the layer above": ("bias layer", 1),
    "b_enc in bfloat16": ("bias", BF16),
    "b_enc in float16": ("bias", F16),
    "weights in TF32": ("weight rounding", None),  # planting.py's
    "weights in int8": ("weight rounding", int8),
    "weights in int8 by feature": ("weight rounding", lambda w: int8(w, 0)),
    "weights in fp8 e4m3": ("weight rounding", fp8("float8_e4m3fn")),
    "weights in fp8 e4m3, scaled": ("weight rounding", fp8("float8_e4m3fn", scaled=True)),
    "weights in fp8 e5m2": ("weight rounding", fp8("float8_e5m2")),
    "weights and residual in bfloat16": ("products", BF16),
    "weights and residual in float16": ("products", F16),
    "residual in TF32": ("residual rounding", None),
    "model in bfloat16": ("model", BF16),
    "model in float16": ("model", F16),
    "output in bfloat16": ("printed", BF16),
    "output in float16": ("printed", F16),
    "accumulation in bfloat16": ("sums", narrow_sums(BF16)),
    "accumulation in float16": ("sums", narrow_sums(F16)),
    "residual centred": ("normalisation", lambda r: r - r.mean()),
    "residual times sqrt(d_model)": ("normalisation", lambda r: r * np.sqrt(np.float32(len(r)))),
    "residual over sqrt(d_model)": ("normalisation", lambda r: r / np.sqrt(np.float32(len(r)))),
    **{f"residual clipped at {most}": ("normalisation", lambda r, most=most: np.maximum(np.minimum(r, most), -most)) for most in (1, 2, 3)},
    "first input skipped": ("normalisation", zeroed(slice(0, 1))),
    "last input skipped": ("normalisation", zeroed(slice(-1, None))),
    "remainder skipped": ("normalisation", whole_blocks),
    "v before u": ("sequence", sequence("swapped")),
    "no rejection": ("sequence", sequence("all")),
    "zeros for rejected pairs": ("sequence", sequence("zeros")),
    "one value of a pair": ("sequence", sequence("one")),
    "rotation left": ("sequence", sequence("left")),
    "state after its step": ("sequence", sequence("late")),
    "uniforms in (0, 1)": ("sequence", sequence("positive")),
    "Box-Muller": ("sequence", sequence("box")),
    "n_active of the list": ("count", lambda pre, on, chosen: len(chosen)),
    "n_active of positive": ("count", lambda pre, on, chosen: np.count_nonzero(pre > 0)),
    "n_active of all": ("count", lambda pre, on, chosen: len(pre)),
}

# Of what has constants that are estimated.
OF_CONSTANTS: dict[str, Callable[..., tuple[str, Any]]] = {
    r"threshold times (\S+)": lambda by: ("gate", lambda t: (t * np.float32(by), 0 * t)),
    r"activations below (\S+) dropped": lambda cut: ("activation", lambda pre, t: (pre, (pre > t) & (pre > cut))),
    r"activations below (\S+) halved": lambda cut: ("activation", lambda pre, t: (np.where(pre < cut, pre / 2, pre), pre > t)),
    r"residual times ([-+.e0-9]+)": lambda by: ("normalisation", lambda r: r * np.float32(by)),
    r"residual RMS-normalised times (\S+)": lambda by: ("normalisation", lambda r: r / np.sqrt(np.mean(r * r)) * np.float32(by)),
    r"inputs (\d+) to (\d+) skipped": lambda first, last: ("normalisation", zeroed(slice(int(first), int(last) + 1))),
}


def of_constants(name: str) -> tuple[str, Any] | None:
    """The step and how, where a name is of one with constants."""
    for pattern, how in OF_CONSTANTS.items():
        if match := re.fullmatch(pattern, name):
            return how(*map(float, match.groups()))
    return None


ESTIMATED = (
    "threshold times 1.1", "activations below 2.5 dropped", "activations below 5 halved", "residual times 1.25", "residual RMS-normalised times 1.7",
    "inputs 8 to 15 skipped",
)  # fmt: skip
MORE |= {name: step for name in ESTIMATED if (step := of_constants(name))}
