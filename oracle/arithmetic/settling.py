# SPDX-License-Identifier: MIT OR Apache-2.0
"""What float64 decides of a case, and exact arithmetic for what its error bound leaves open.

A. Ziv's strategy, "Fast evaluation of elementary mathematical functions with correctly rounded last bit", 1991.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oracle.arithmetic.products import Matrix

if TYPE_CHECKING:
    from fractions import Fraction

MARGIN_DECIMALS = 6
_COLUMNS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class ActiveFeatures:
    """All features that are active, in ascending order: int [n], and their float32 activations [n].

    `slack` [n], float64, is how far a correct port's activation may be from this one: the tolerance, and where a
    feature is `at_gate`, bool [n], so that it may fire or not, all of it. Such a feature is here too if it does not fire,
    with 0.
    """

    features: np.ndarray
    activations: np.ndarray
    slack: np.ndarray
    at_gate: np.ndarray


@dataclass(frozen=True)
class Encoding:
    """What one residual gives.

    `top` holds (feature index, activation): activations are float32 values, descending, then by index.
    `rank_margin` is None where fewer than two features are ranked. Margins are in the units of the activations.
    `gate_ties` are the features, ascending, that may fire or not within the tolerance, as many as the bounds are apart.
    The flags are decided by the exact margins, not by the rounded ones.
    `active` is there if it was asked for.
    """

    n_active: int
    n_active_bounds: tuple[int, int]
    top: list[tuple[int, float]]
    rank_margin: float | None
    gate_margin: float
    gate_ties: list[int]
    flags: list[str]
    active: ActiveFeatures | None = None


@dataclass(frozen=True)
class Draft:
    """One case after the float64 pass: what it decides, and `open_features`, which it leaves open."""

    pre: np.ndarray  # float64 [n_features]
    gate: np.ndarray  # float32 [n_features]
    candidates: np.ndarray  # of the top k and the next one behind them, int [n], maybe with some more
    open_features: np.ndarray  # int [n]
    k: int
    tolerance: float
    with_active: bool

    @classmethod
    def of(
        cls,
        pre32: np.ndarray,
        pre: np.ndarray,
        gate: np.ndarray,
        bound: np.ndarray,
        error32: float,
        k: int,
        tolerance: float,
        with_active: bool,
    ) -> Draft:
        """`bound` [n_features] is on |pre - exact|, `error32` on |pre32 - pre|."""
        distance = pre - gate
        magnitude = np.abs(distance)
        gate_open = magnitude <= bound
        is_open = gate_open | (np.abs(magnitude - tolerance) <= bound)

        nearest = float((magnitude + bound).min())  # the smallest is at most this
        if _rounds_apart(float((magnitude - bound).min()), nearest):
            is_open |= magnitude - bound <= nearest

        # The k + 1 first of the active features are among the k + 1 + n_open first of those that may be active, and
        # a feature that float32 puts more than twice its error below the last of these is not.
        possible = np.flatnonzero(distance > -bound)
        if with_active:
            with np.errstate(over="ignore"):
                ends = [(pre + off)[possible].astype(np.float32) for off in (-bound, bound)]
            is_open[possible[ends[0] != ends[1]]] = True
        count = k + 1 + int(np.count_nonzero(gate_open))
        candidates = possible
        if count < len(possible):
            values = pre32[possible]
            chosen = np.argpartition(values, -count)[-count:]
            off = error32 + bound[possible]  # |pre32 - exact| at most
            candidates = possible[values + off >= float((values - off)[chosen].min())]

        ranked = candidates[np.argsort(pre[candidates])[::-1]]
        low, high = pre[ranked] - bound[ranked], pre[ranked] + bound[ranked]
        # Each gap to its next lies between these two. Bounds may overlap beyond neighbours, where one is far wider.
        gap_low, gap_high = low[:-1] - high[1:], high[:-1] - low[1:]
        overlap = np.minimum.accumulate(low)[:-1] <= np.maximum.accumulate(high[::-1])[::-1][1:]
        with np.errstate(over="ignore"):
            values_open = low[: k + 1].astype(np.float32) != high[: k + 1].astype(np.float32)
        if (
            np.any(values_open)
            or np.any(overlap)
            or np.any(gate_open[candidates])
            or (len(gap_low) and _leaves_open(float(gap_low[:k].min()), float(gap_high[:k].min()), 2 * tolerance))
        ):
            is_open[candidates] = True
        return cls(pre, gate, candidates, np.flatnonzero(is_open), k, tolerance, with_active)

    def close(self, exact: dict[int, Fraction]) -> Encoding:
        """The encoding, with the exact pre-activations of the open features."""
        distance = self.pre - self.gate
        active = distance > 0
        surely = distance > self.tolerance
        maybe = distance > -self.tolerance
        magnitude = np.abs(distance)
        gate_margin: float | Fraction = math.inf
        for index, value in exact.items():
            # Fractions are exact, also where a float is compared with one or taken from one that was made of it.
            exact_distance = value - value.from_float(float(self.gate[index]))
            active[index] = exact_distance > 0
            surely[index] = exact_distance > self.tolerance
            maybe[index] = exact_distance > -self.tolerance
            magnitude[index] = math.inf
            gate_margin = min(gate_margin, abs(exact_distance))
        gate_margin = min(gate_margin, float(magnitude.min()))

        values = {int(index): exact.get(int(index), float(self.pre[index])) for index in self.candidates}
        ranked = sorted((index for index in values if active[index]), key=lambda index: (-values[index], index))
        gaps = [values[a] - values[b] for a, b in zip(ranked[: self.k], ranked[1 : self.k + 1])]
        rank_margin = min(gaps, default=None)

        # of() opened whatever float64 may put on the wrong side of these two.
        flags = []
        if rank_margin is not None and rank_margin <= 2 * self.tolerance:
            flags.append("rank-tie")
        if gate_margin <= self.tolerance:
            flags.append("gate-tie")
        n_active = int(np.count_nonzero(active))
        if n_active == 0:
            flags.append("no-active-features")
        return Encoding(
            n_active=n_active,
            n_active_bounds=(int(np.count_nonzero(surely)), int(np.count_nonzero(maybe))),
            top=[(index, round_to_float32(values[index])) for index in ranked[: self.k]],
            rank_margin=None if rank_margin is None else _round_margin(rank_margin),
            gate_margin=_round_margin(gate_margin),
            gate_ties=np.flatnonzero(maybe & ~surely).tolist(),
            flags=flags,
            active=self._active_features(exact, active, maybe & ~surely) if self.with_active else None,
        )

    def _active_features(self, exact: dict[int, Fraction], active: np.ndarray, at_gate: np.ndarray) -> ActiveFeatures:
        activations = np.where(active, self.pre, 0.0).astype(np.float32)
        for index, value in exact.items():
            activations[index] = round_to_float32(value) if active[index] else 0.0
        features = np.flatnonzero(active | at_gate)
        slack = np.where(at_gate, self.gate.astype(np.float64) + 2 * self.tolerance, self.tolerance)
        return ActiveFeatures(features, activations[features], slack[features], at_gate[features])


def settle(
    w_enc: Matrix, b_enc: np.ndarray, residuals: np.ndarray, open_features: list[np.ndarray]
) -> list[dict[int, Fraction]]:
    """For each seed the exact pre-activations of its open features, by more passes over W_enc where there are any."""
    settled: list[dict[int, Fraction]] = [{} for _ in open_features]
    features = np.unique(np.concatenate(open_features))
    for start in range(0, len(features), _COLUMNS_AT_ONCE):
        wanted = features[start : start + _COLUMNS_AT_ONCE]
        columns = w_enc.columns(wanted)  # [d_model, n_wanted]
        for seed, residual in enumerate(residuals):
            for index in np.intersect1d(wanted, open_features[seed], assume_unique=True):
                column = columns[:, np.searchsorted(wanted, index)]
                terms = (column.astype(np.float64) * residual.astype(np.float64)).tolist()
                settled[seed][int(index)] = _exact_sum(terms + [float(b_enc[index])])
    return settled


def _exact_sum(terms: list[float]) -> Fraction:
    """The sum, exact: math.fsum rounds it once, and what that rounding left is summed the same way until nothing is."""
    from fractions import Fraction  # not at the top: most runs settle nothing, and its import takes 5 ms

    total = Fraction(0)
    while part := math.fsum(terms):
        total += Fraction(part)
        terms.append(-part)
    return total


def round_to_float32(value: float | Fraction) -> float:
    """The float32 nearest to an exact value, ties to even. By way of float64 it would be rounded twice."""
    near = np.float32(float(value))
    if isinstance(value, float):
        return float(near)
    neighbours = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return float(
        min(neighbours, key=lambda f: (abs(value.from_float(float(f)) - value), int(f.astype("<f4").view("<u4")) & 1))
    )


def _round_margin(value: float | Fraction) -> float:
    return round(value, MARGIN_DECIMALS) if isinstance(value, float) else float(round(value, MARGIN_DECIMALS))


def _rounds_apart(low: float, high: float) -> bool:
    """Whether two bounds of one margin, which is not negative, leave open how it is rounded."""
    return round(max(low, 0.0), MARGIN_DECIMALS) != round(high, MARGIN_DECIMALS)


def _leaves_open(low: float, high: float, limit: float) -> bool:
    """Whether two bounds of one margin leave open how it is rounded, or whether it is at most `limit`."""
    return _rounds_apart(low, high) or low <= limit < high
