# SPDX-License-Identifier: MIT OR Apache-2.0
"""Encoders of the tests' own, which share no code with the one under test."""

from __future__ import annotations

from dataclasses import dataclass
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
        "sums": exact_sums(pre, order, [j for j, d in enumerate(distance) if -margin < d <= margin], tolerance),
    }


def exact_sums(pre: list[Fraction], fires: list[int], ties: list[int], tolerance: float) -> dict[str, float]:
    """The sums over what fires, of activations in units of a power of two; and the most that a right port's may differ, in 3 digits."""
    unit = max(unit for unit in (Fraction(2) ** power for power in range(-30, 60)) if 4 * unit <= Fraction(tolerance))
    off = Fraction(tolerance) + unit / 2
    rounded = [round(p / unit) * unit for p in pre]
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


# --- every gate, in fractions -----------------------------------------------------------------------------------------

GATES = ("relu", "jumprelu", "gated", "topk", "topk of all", "abstopk", "groupmax")


@dataclass(frozen=True)
class ExactGate:
    """A gate as its paper or its peer has it: `k` of selections, `level` of jumprelu, `bias` of gated."""

    kind: str
    k: int = 0
    level: np.ndarray | None = None
    bias: np.ndarray | None = None


def exact_products(w_enc: np.ndarray, inputs: np.ndarray) -> list[Fraction]:
    """inputs . W_enc [d_model, n_features]."""
    x = [Fraction(float(value)) for value in inputs]
    return [sum((Fraction(float(w)) * value for w, value in zip(column, x)), Fraction(0)) for column in w_enc.T]


def exact_case(gate: ExactGate, product: list[Fraction], value: list[Fraction], k: int, tolerance: float) -> dict[str, Any]:
    """All that is said of a case by section 4's definitions, and its active features with what each may be off by.

    A boundary of the largest moves towards a feature as that moves towards it: there ties are those within two tolerances.
    """
    off, n = Fraction(tolerance), len(value)
    fires, distances, bounds = _selected(gate, value, off) if gate.kind in GATES[3:] else _above(gate, product, value, off)
    order = sorted((j for j in range(n) if fires[j]), key=lambda j: (-value[j], j))
    gaps = [value[a] - value[b] for a, b in zip(order[:k], order[1 : k + 1])]
    surely = [all(d > reach * off for d, reach in of) for of in distances]
    ties = [j for j in range(n) if not surely[j] and all(d > -reach * off for d, reach in distances[j])]
    near = any(not surely[j] and all(d >= -reach * off for d, reach in distances[j]) for j in range(n))
    margin = min(abs(min(d for d, _ in of)) for of in distances)
    rounded = [nearest_float32(v) for v in value]
    return {
        "n_active": len(order),
        "n_active_bounds": bounds,
        "top": [(j, rounded[j]) for j in order[:k]],
        "rank_margin": float(round(min(gaps), 6)) if gaps else None,
        "gate_margin": float(round(margin, 6)),
        "gate_ties": ties,
        "flags": [
            *(["rank-tie"] if gaps and min(gaps) <= 2 * off else []),
            *(["gate-tie"] if near else []),
            *([] if order else ["no-active-features"]),
        ],
        "sums": exact_sums(value, order, ties, tolerance),
        "active": [
            (j, rounded[j] if fires[j] else 0.0, tolerance + (abs(rounded[j]) if j in ties else 0), j in ties)
            for j in sorted({*order, *ties})
        ],
    }  # fmt: skip


Distances = list[list[tuple[Fraction, int]]]  # of each feature from each of its conditions, and how many tolerances that may move


def _above(gate: ExactGate, product: list[Fraction], value: list[Fraction], off: Fraction) -> tuple[list[bool], Distances, tuple[int, int]]:
    """What fires by itself."""
    distances: Distances = [[(v, 1)] for v in value]
    if gate.kind == "jumprelu" and gate.level is not None:
        distances = [[(v - Fraction(float(level)), 1)] for v, level in zip(value, gate.level)]
    elif gate.kind == "gated" and gate.bias is not None:
        distances = [[(p + Fraction(float(bias)), 1), (v, 1)] for p, v, bias in zip(product, value, gate.bias)]
    least = [min(d for d, _ in of) for of in distances]
    return [d > 0 for d in least], distances, (sum(d > off for d in least), sum(d > -off for d in least))


def _selected(gate: ExactGate, value: list[Fraction], off: Fraction) -> tuple[list[bool], Distances, tuple[int, int]]:
    """What fires as one of the largest: of all, or of each of k groups."""
    n, zero = len(value), Fraction(0)
    groups, limit = (gate.k, 1) if gate.kind == "groupmax" else (1, gate.k)
    size = n // groups
    raw, by_magnitude = gate.kind == "topk of all", gate.kind == "abstopk"
    measure = [v if raw else abs(v) if by_magnitude else max(v, zero) for v in value]
    own = [abs(v) if raw or by_magnitude else v for v in value]  # how far it is from nothing
    fires, distances, fewest, most = [False] * n, [[(d, 1)] for d in own], 0, 0
    for start in range(0, n, size):
        members = range(start, start + size)
        order = sorted(members, key=lambda j: (-measure[j], j))
        chosen = [j for j in order[:limit] if raw or measure[j] > 0]
        others = [measure[j] for j in members if j not in chosen]
        floor = [] if raw else [zero]
        for j in members:
            fires[j] = j in chosen and value[j] != 0
            if limit < size:
                if j in chosen:
                    level = max([*others, *floor])
                else:
                    level = min(measure[i] for i in chosen) if len(chosen) == limit else zero
                distances[j].append((measure[j] - level, 2))
        most += limit if raw else min(limit, sum(own[j] > -off for j in members))
        if raw:  # those that are surely above 0 come first, then what may be 0, and negative ones last
            above, at_0 = sum(value[j] > off for j in members), sum(abs(value[j]) <= off for j in members)
            fewest += limit - min(max(limit - above, 0), at_0)
        else:
            fewest += min(limit, sum(own[j] > off for j in members))
    return fires, distances, (fewest, most)
