# SPDX-License-Identifier: MIT OR Apache-2.0
"""Encoders of the tests' own, which share no code with the one under test."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np


def float64_encode(arrays: dict[str, np.ndarray], residual: np.ndarray, k: int) -> dict[str, Any]:
    """The formula in plain float64, whole matrices, a full sort."""
    w_enc, b_enc, threshold = (arrays[name].astype(np.float32).astype(np.float64) for name in ("W_enc", "b_enc", "threshold"))
    pre = w_enc.T @ residual.astype(np.float64) + b_enc
    gate = np.maximum(threshold, 0)
    active = [int(j) for j in np.flatnonzero(pre > gate)]
    order = sorted(active, key=lambda j: (-pre[j], j))
    gaps = [pre[a] - pre[b] for a, b in zip(order[:k], order[1 : k + 1])]
    return {
        "n_active": len(active),
        "top": [(j, float(np.float32(pre[j]))) for j in order[:k]],
        "rank_margin": min(gaps, default=None),
        "gate_margin": float(np.min(np.abs(pre - gate))),
    }


def exact_encode(
    w_enc: np.ndarray, b_enc: np.ndarray, gate: np.ndarray, residual: np.ndarray, k: int, tolerance: float
) -> dict[str, Any]:
    """The contract in fractions: no rounding but the one of each recorded number."""
    d_model, n_features = w_enc.shape
    r = [Fraction(float(value)) for value in residual]
    pre = [
        sum((Fraction(float(w_enc[i, j])) * r[i] for i in range(d_model)), Fraction(float(b_enc[j])))
        for j in range(n_features)
    ]
    distance = [p - Fraction(float(g)) for p, g in zip(pre, gate)]
    order = sorted((j for j in range(n_features) if distance[j] > 0), key=lambda j: (-pre[j], j))
    gaps = [pre[a] - pre[b] for a, b in zip(order[:k], order[1 : k + 1])]
    margin = Fraction(tolerance)
    flags = [
        *(["rank-tie"] if gaps and min(gaps) <= 2 * margin else []),
        *(["gate-tie"] if min(map(abs, distance)) <= margin else []),
        *([] if order else ["no-active-features"]),
    ]
    return {
        "n_active": len(order),
        "n_active_bounds": (sum(d > margin for d in distance), sum(d > -margin for d in distance)),
        "top": [(j, nearest_float32(pre[j])) for j in order[:k]],
        "rank_margin": float(round(min(gaps), 6)) if gaps else None,
        "gate_margin": float(round(min(map(abs, distance)), 6)),
        "gate_ties": [j for j, d in enumerate(distance) if -margin < d <= margin],
        "flags": flags,
        "sums": exact_sums(pre, distance, tolerance),
    }


def exact_sums(pre: list[Fraction], distance: list[Fraction], tolerance: float) -> dict[str, float]:
    """The sums over what fires, of activations in units of a power of two; and the most that a right port's may differ, in 3 digits."""
    unit = max(unit for unit in (Fraction(2) ** power for power in range(-30, 30)) if 4 * unit <= Fraction(tolerance))
    margin, off = Fraction(tolerance), Fraction(tolerance) + unit / 2
    rounded = [round(p / unit) * unit for p in pre]
    fires = [j for j, d in enumerate(distance) if d > 0]
    ties = [j for j, d in enumerate(distance) if -margin < d <= margin]
    surely = [j for j in fires if j not in ties]
    stored = Fraction(1, 2**24)
    most = sum(off + abs(rounded[j]) * (1 + stored) for j in ties) + sum(off + abs(rounded[j]) * stored for j in surely)
    most_of_squares = sum((abs(rounded[j]) + off) ** 2 + 2 * stored * rounded[j] ** 2 for j in ties)
    most_of_squares += sum(2 * off * abs(rounded[j]) + off**2 + 2 * stored * rounded[j] ** 2 for j in surely)
    return {
        "activation_sum": float(sum(rounded[j] for j in fires)),
        "activation_sum_tolerance": float(f"{float(most) * 1.006:.3g}"),
        "activation_sum_of_squares": float(sum(rounded[j] ** 2 for j in fires)),
        "activation_sum_of_squares_tolerance": float(f"{float(most_of_squares) * 1.006:.3g}"),
    }


def nearest_float32(value: Fraction) -> float:
    """By integers: the 24-bit significand nearest to a value in the normal range, ties to even."""
    if value == 0:
        return 0.0
    sign, magnitude = (-1 if value < 0 else 1), abs(value)
    exponent = 0
    while magnitude >= 2 ** (exponent + 24):
        exponent += 1
    while magnitude < 2 ** (exponent + 23) if exponent >= 0 else magnitude * 2**-exponent < 2**23:
        exponent -= 1
    return sign * float(round(magnitude / Fraction(2) ** exponent) * Fraction(2) ** exponent)
