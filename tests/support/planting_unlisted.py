# SPDX-License-Identifier: MIT OR Apache-2.0
"""Wrong steps that no row of the diagnosis has: a port with one of them must fail, and no mistake may be named that does not give
its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Step = Callable[..., Any]


def fired(value: Callable[[np.ndarray], np.ndarray]) -> Step:
    """What fires is right, its value is not."""
    return lambda pre, t: (value(pre.astype(np.float64)), pre > t)


def never(which: Callable[[np.ndarray], np.ndarray]) -> Step:
    """Some features never fire."""
    return lambda pre, t: (pre, (pre > t) & ~which(np.arange(len(pre))))


def listed(edit: Callable[[list[tuple[int, float]]], list[tuple[int, float]]]) -> Step:
    """The right list, edited."""

    def step(pre: np.ndarray, act: np.ndarray, on: np.ndarray, k: int) -> list[tuple[int, float]]:
        return edit([(j, act[j]) for j in on[np.lexsort((on, -act[on]))][:k]])

    return step


def normals(i: int, layer: int, n: int) -> np.ndarray:
    return np.random.default_rng(100 * i + layer).standard_normal(n).astype(np.float32)


def uniforms(i: int, layer: int, n: int) -> np.ndarray:
    return np.random.default_rng(100 * i + layer).random(n, np.float32)


def one_off(r: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(r)) == 3, r + np.float32(0.7), r)


def swapped_pairs(r: np.ndarray) -> np.ndarray:
    return r.reshape(-1, 2)[:, ::-1].reshape(-1)


def int4(w: np.ndarray) -> np.ndarray:
    scale = np.abs(w).max() / np.float32(7)
    return np.rint(w / scale) * scale


# name -> (the step that it changes, how), as in planting.py
UNLISTED: dict[str, tuple[str, Any]] = {
    "leaky ReLU": ("activation", lambda pre, t: (np.where(pre > 0, pre, pre / 100), pre != 0)),
    "ELU": ("activation", lambda pre, t: (np.where(pre > 0, pre, np.expm1(pre)), pre != 0)),
    "softplus": ("activation", fired(lambda v: np.log1p(np.exp(v)) + 0.001)),
    "square root": ("activation", fired(lambda v: np.sqrt(np.abs(v)))),
    "square": ("activation", fired(lambda v: v * v)),
    "logarithm": ("activation", fired(lambda v: np.log1p(np.abs(v)))),
    "tanh": ("activation", fired(np.tanh)),
    "sigmoid": ("activation", fired(lambda v: 1 / (1 + np.exp(-v)))),
    "softmax": ("activation", fired(lambda v: np.exp(v - v.max()) / np.exp(v - v.max()).sum())),
    "divided by the largest": ("activation", fired(lambda v: v / v.max())),
    "of unit norm": ("activation", fired(lambda v: v / np.linalg.norm(v))),
    "offset": ("activation", fired(lambda v: v + 0.5)),
    "scaled and offset": ("activation", fired(lambda v: 1.25 * v + 0.5)),
    "two decimals": ("activation", fired(lambda v: np.round(v, 2))),
    "quarters": ("activation", fired(lambda v: np.round(4 * v) / 4)),
    "half of the values doubled": ("activation", fired(lambda v: np.where(np.arange(len(v)) % 2, v, 2 * v))),
    "every other feature left out": ("activation", never(lambda j: j % 2 == 1)),
    "every third feature left out": ("activation", never(lambda j: j % 3 == 0)),
    "features 8 to 15 left out": ("activation", never(lambda j: (j > 7) & (j < 16))),
    "first half of the features left out": ("activation", never(lambda j: j < len(j) // 2)),
    "inputs reversed": ("normalisation", lambda r: r[::-1]),
    "inputs rolled": ("normalisation", lambda r: np.roll(r, 1)),
    "inputs swapped in pairs": ("normalisation", swapped_pairs),
    "halves of the inputs swapped": ("normalisation", lambda r: np.roll(r, len(r) // 2)),
    "residual negated": ("normalisation", lambda r: -r),
    "residual's magnitude": ("normalisation", np.abs),
    "residual squared": ("normalisation", lambda r: r * r),
    "residual plus 1": ("normalisation", lambda r: r + np.float32(1)),
    "residual of one decimal": ("normalisation", lambda r: np.round(r, 1)),
    "residual over its largest": ("normalisation", lambda r: r / np.abs(r).max()),
    "one input off": ("normalisation", one_off),
    "residual accumulated": ("normalisation", lambda r: np.cumsum(r, dtype=np.float32)),
    "W_enc in int4": ("weight rounding", int4),
    "W_enc without its small weights": ("weight rounding", lambda w: np.where(np.abs(w) < 0.5 * np.abs(w).mean(), 0, w).astype(np.float32)),
    "W_enc's magnitude": ("weight rounding", np.abs),
    "W_enc's columns of unit norm": ("weight rounding", lambda w: w / np.linalg.norm(w, axis=0)),
    "W_enc's rows of unit norm": ("weight rounding", lambda w: w / np.linalg.norm(w, axis=1, keepdims=True)),
    "W_enc's columns rolled by 8": ("weight rounding", lambda w: np.roll(w, 8, axis=1)),
    "b_enc reversed": ("bias", lambda b: b[::-1]),
    "b_enc rolled": ("bias", lambda b: np.roll(b, 1)),
    "b_enc's magnitude": ("bias", np.abs),
    "b_enc's mean": ("bias", lambda b: np.full_like(b, b.mean())),
    "threshold reversed": ("gate", lambda t: (t[::-1], 0 * t)),
    "threshold's mean": ("gate", lambda t: (np.full_like(t, t.mean()), 0 * t)),
    "threshold plus 0.3": ("gate", lambda t: (t + np.float32(0.3), 0 * t)),
    "threshold squared": ("gate", lambda t: (t * t, 0 * t)),
    "n_active less 1": ("count", lambda pre, on, chosen: len(on) - 1),
    "n_active doubled": ("count", lambda pre, on, chosen: 2 * len(on)),
    "n_active with the top k": ("count", lambda pre, on, chosen: len(on) + len(chosen)),
    "negative values counted": ("count", lambda pre, on, chosen: np.count_nonzero(pre < 0)),
    "nine listed": ("selection", listed(lambda top: top[:-1])),
    "the first feature listed twice": ("selection", listed(lambda top: [top[0], *top][:10])),
    "the list without its first": ("selection", listed(lambda top: top[1:])),
    "values of the neighbours": ("selection", listed(lambda top: [(j, value) for (j, _), (_, value) in zip(top, top[1:] + top[:1])])),
    "even and odd indices swapped": ("index", lambda j, n: j ^ 1),
    "indices multiplied": ("index", lambda j, n: 3 * j % n),
    "halves of the indices swapped": ("index", lambda j, n: (j + n // 2) % n),
    "another generator's normals": ("sequence", normals),
    "uniform residuals": ("sequence", uniforms),
}  # fmt: skip
