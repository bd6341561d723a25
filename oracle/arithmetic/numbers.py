# SPDX-License-Identifier: MIT OR Apache-2.0
"""A number of each feature of a case: float64 near it, a bound on how far off that is, and exact where that was settled.

A. Ziv's strategy, "Fast evaluation of elementary mathematical functions with correctly rounded last bit", 1991. Features
whose numbers are equal for one reason, dead ones above all, share one exact value: what is settled once is settled for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from oracle.arithmetic.products import COLUMN_BYTES, UNIT_ROUNDOFF, Matrix, exact_product
from oracle.job import MIN_TOLERANCE

if TYPE_CHECKING:
    from fractions import Fraction

UNIT_ROUNDOFF_32 = 2.0**-24
_SIGNIFICANT_DIGITS = 3  # of a tolerance
SUMMED_AT_ONCE = 1 << 16  # features: Python's numbers take ten times NumPy's memory
_FEW = 256  # so many columns are not looked through for equal ones


class Settled(NamedTuple):
    """Exact values: `features` ascend, int [m]; `of` says for each which of the `values` is its own."""

    features: np.ndarray
    of: np.ndarray
    values: list[Fraction]

    @classmethod
    def nothing(cls) -> Settled:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), [])

    def with_more(self, other: Settled) -> Settled:
        """Those of both, which have no feature in common."""
        features = np.concatenate([self.features, other.features])
        of = np.concatenate([self.of, other.of + len(self.values)])
        order = np.argsort(features)
        return Settled(features[order], of[order], [*self.values, *other.values])

    def where(self, chosen: np.ndarray) -> Settled:
        """Those whose place is `chosen`, bool [m]."""
        return Settled(self.features[chosen], self.of[chosen], self.values)

    def floats(self) -> np.ndarray:
        """float64 [m], each value rounded once."""
        return np.array([float(value) for value in self.values])[self.of] if len(self.features) else np.empty(0)

    def signs(self, limit: float) -> np.ndarray:
        """The sign of value - limit, exact: int [m]."""
        signs = np.array([(value > limit) - (value < limit) for value in self.values], np.int64)
        return signs[self.of] if len(self.features) else np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Numbers:
    """float64 `near` and `bound` [n]: |near - exact| <= bound, and where the bound is 0 `near` is exact; or see `settled`."""

    near: np.ndarray
    bound: np.ndarray
    settled: Settled

    def with_settled(self, settled: Settled) -> Numbers:
        """The same numbers, more of them exact."""
        near, bound = self.near.copy(), self.bound.copy()
        near[settled.features] = settled.floats()
        bound[settled.features] = 2 * UNIT_ROUNDOFF * np.abs(near[settled.features])
        return Numbers(near, bound, self.settled.with_more(settled))

    def with_exact(self, features: np.ndarray) -> Numbers:
        """The same numbers, of which these, whose bounds are 0, are settled as they are."""
        from fractions import Fraction

        first, of = classes([self.near[features]])
        return self.with_settled(Settled(features, of, [Fraction(value) for value in self.near[features[first]].tolist()]))

    @cached_property
    def is_vague(self) -> np.ndarray:
        """bool [n]: whether the number is known by its bound alone."""
        vague: np.ndarray = self.bound > 0
        vague[self.settled.features] = False
        return vague

    @property
    def low(self) -> np.ndarray:
        low: np.ndarray = self.near - self.bound
        return low

    @property
    def high(self) -> np.ndarray:
        high: np.ndarray = self.near + self.bound
        return high

    def is_open(self, limit: float) -> np.ndarray:
        """bool [n]: whether it is unknown on which side of `limit` the number is."""
        near: np.ndarray = np.abs(self.near - limit) <= self.bound + 2 * UNIT_ROUNDOFF * abs(limit)
        is_open: np.ndarray = near & self.is_vague
        return is_open

    def rounds_apart(self, features: np.ndarray, unit: float) -> np.ndarray:
        """bool [m]: whether it is unknown which multiple of `unit`, a power of two, is nearest to these features' numbers."""
        apart: np.ndarray = np.rint(self.low[features] / unit) != np.rint(self.high[features] / unit)
        return apart

    def multiples(self, features: np.ndarray, unit: float) -> list[int]:
        """Which multiples of `unit` are nearest to these features' numbers, ties to even: exact where that is not open."""
        counts: list[int] = np.rint(self.near[features] / unit).tolist()
        settled = self.identities(features)
        for place in np.flatnonzero(settled >= 0).tolist():
            value = self.settled.values[settled[place]]
            counts[place] = round(value / value.from_float(unit))
        return list(map(int, counts))

    def signs(self, limit: float) -> np.ndarray:
        """int8 [n]: the sign of number - limit, exact where it is not open."""
        signs = (self.near > limit).astype(np.int8) - (self.near < limit)
        signs[self.settled.features] = self.settled.signs(limit)
        return signs

    def affine(self, scale: np.ndarray | None, offset: np.ndarray) -> Numbers:
        """scale * number + offset; a scale is float32 [n], an offset float64 [n] whose numbers are exact."""
        scaled = self.near if scale is None else self.near * scale
        # Where a number is exact and 0, as that of a dead feature, the offset is the result.
        rounding = 2 * UNIT_ROUNDOFF * (np.abs(scaled) + np.abs(offset)) * ((self.near != 0) | (self.bound > 0))
        bound = (self.bound if scale is None else self.bound * np.abs(scale)) + rounding
        at = self.settled.features
        keys = [self.settled.of, offset[at]] if scale is None else [self.settled.of, offset[at], scale[at].astype(np.float64)]
        first, of = classes(keys)

        def exact(place: int) -> Fraction:
            value, factor = self.settled.values[self.settled.of[place]], 1.0 if scale is None else float(scale[at[place]])
            result: Fraction = value * value.from_float(factor) + value.from_float(float(offset[at[place]]))
            return result

        return _numbers(scaled + offset, bound, Settled(at, of, [exact(place) for place in first.tolist()]))

    def minus(self, levels: Levels, choice: np.ndarray) -> Numbers:
        """number - the level that is its `choice`, int [n]. What is settled stays so where its level is exact."""
        near = self.near - levels.near[choice]
        level_bounds = levels.bound[choice]
        bound = self.bound + level_bounds + 2 * UNIT_ROUNDOFF * np.abs(near)
        settled = self.settled.where(levels.is_exact[choice[self.settled.features]])
        first, of = classes([settled.of, choice[settled.features]])
        values = [settled.values[settled.of[place]] - levels.exact[choice[settled.features[place]]] for place in first.tolist()]
        return _numbers(near, bound, Settled(settled.features, of, values))

    def magnitude(self) -> Numbers:
        """|number|."""
        return Numbers(np.abs(self.near), self.bound, self.settled._replace(values=[abs(value) for value in self.settled.values]))

    def floored(self) -> Numbers:
        """max(number, 0)."""
        bound = np.where(self.high > 0, self.bound, 0.0)
        values = [max(value, value * 0) for value in self.settled.values]
        return Numbers(np.maximum(self.near, 0.0), bound, self.settled._replace(values=values))

    def value(self, feature: int) -> float | Fraction:
        """The number as it is known: exact where it is settled."""
        place = int(np.searchsorted(self.settled.features, feature))
        if place < len(self.settled.features) and self.settled.features[place] == feature:
            exact: Fraction = self.settled.values[int(self.settled.of[place])]
            return exact
        return float(self.near[feature])

    def exact_value(self, feature: int) -> Fraction:
        """The number where it is not vague."""
        from fractions import Fraction  # not at the top: most runs settle nothing, and its import takes 5 ms

        return Fraction(self.value(feature))

    def identities(self, features: np.ndarray) -> np.ndarray:
        """int [m]: which settled value a feature has; those that are not settled have -1, and `near` tells them apart."""
        if not len(self.settled.features):
            return np.full(len(features), -1)
        places = np.minimum(np.searchsorted(self.settled.features, features), len(self.settled.features) - 1)
        return np.where(self.settled.features[places] == features, self.settled.of[places], -1)

    def order(self, features: np.ndarray) -> np.ndarray:
        """The features by their numbers, descending, then by index. No two of them may be open against each other."""
        near = self.near[features]
        repeated = np.flatnonzero(np.isin(near, _repeated(near)))
        ties = np.zeros(len(features), np.int64)
        if len(repeated) and len(self.settled.features):
            # Equal in float64: the exact values decide. Rounding is monotone, so that no others need to be looked at.
            first, of = classes([self.identities(features[repeated]), near[repeated]])
            exact = [self.exact_value(int(features[repeated[place]])) for place in first.tolist()]
            ranks = {value: rank for rank, value in enumerate(sorted(set(exact)))}
            ties[repeated] = np.array([ranks[value] for value in exact])[of]
        ordered: np.ndarray = features[np.lexsort((features, -ties, -near))]
        return ordered


@dataclass(frozen=True, eq=False)
class Levels:
    """Some numbers that others are held against: float64 `near` and `bound` [n], and the `exact` ones, where they are known."""

    near: np.ndarray
    bound: np.ndarray
    exact: dict[int, Fraction]

    @cached_property
    def is_exact(self) -> np.ndarray:
        known = np.zeros(len(self.near), bool)
        known[list(self.exact)] = True
        return known


def _numbers(near: np.ndarray, bound: np.ndarray, settled: Settled) -> Numbers:
    """Numbers whose settled ones are near their exact values."""
    if len(settled.features):
        near, bound = near.copy(), bound.copy()
        near[settled.features] = settled.floats()
        bound[settled.features] = 2 * UNIT_ROUNDOFF * np.abs(near[settled.features])
    return Numbers(near, bound, settled)


def _repeated(values: np.ndarray) -> np.ndarray:
    distinct, counts = np.unique(values, return_counts=True)
    repeated: np.ndarray = distinct[counts > 1]
    return repeated


def classes(keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places that agree in all keys, [m] each: the first place of each class, and which class a place is in."""
    m = len(keys[0])
    if m < 2:
        return np.arange(m), np.arange(m)
    # -0.0 and 0.0 are one number.
    columns = [key if key.dtype.kind == "i" else (key + 0.0).astype("<f8", copy=False).view("<i8") for key in keys]
    order = np.lexsort(columns)
    differs = np.zeros(m, bool)
    for column in columns:
        differs[1:] |= np.diff(column[order]) != 0
    of = np.empty(m, np.int64)
    of[order] = np.cumsum(differs)
    first = np.empty(int(of.max()) + 1, np.int64)
    first[of[order[::-1]]] = order[::-1]
    return first, of


# --- sums --------------------------------------------------------------------------------------------------------------


class ActivationSums(NamedTuple):
    """The sum of all activations, and of their squares, each with what a correct port's may be off by.

    Both are exact, of activations that are rounded to a multiple of `sum_unit`: so the same on every machine, and seldom
    is a feature among thousands so near to the middle between two that it has to be settled.
    """

    activation_sum: float
    activation_sum_tolerance: float
    activation_sum_of_squares: float
    activation_sum_of_squares_tolerance: float


def activation_sums(value: Numbers, active: np.ndarray, at_gate: np.ndarray, tolerance: float) -> ActivationSums:
    """The sums of a case's values, of which some are `active`, bool [n], and some `at_gate` may be. Of the features a_j that surely
    fire each is off by e at most, the tolerance and half a unit, so that its square is off by 2 e |a_j| + e^2; one at its
    gate comes or goes whole, as |a_j| + e; and a port may have stored each as float32.
    """
    unit = sum_unit(tolerance)
    off = tolerance + unit / 2
    may_fire = active | at_gate
    n_features = int(np.count_nonzero(may_fire))
    features = np.flatnonzero(may_fire & ((value.low != 0) | (value.high != 0)))  # a zero, as of a dead feature, adds nothing
    sizes = np.empty(len(features))  # |a_j|
    fired = fired_squares = 0
    for start in range(0, len(features), SUMMED_AT_ONCE):
        part = features[start : start + SUMMED_AT_ONCE]
        counts = value.multiples(part, unit)
        sizes[start : start + len(part)] = [abs(float(count)) * unit for count in counts]
        fires = [count for count, fire in zip(counts, active[part].tolist()) if fire]
        fired, fired_squares = fired + sum(fires), fired_squares + sum(count * count for count in fires)
    # sum (2 e a + e^2) over all, and where a feature is at its gate (a + e)^2 in its place.
    tied = sizes[at_gate[features]]
    total, squares = math.fsum(sizes), math.fsum(sizes * sizes)
    most = n_features * off + math.fsum(tied) + UNIT_ROUNDOFF_32 * total
    most_of_squares = 2 * off * total + n_features * off**2 + math.fsum(tied * tied) + 2 * UNIT_ROUNDOFF_32 * squares
    return ActivationSums(
        float(fired) * unit, _rounded_up(most), float(fired_squares) * unit**2, _rounded_up(most_of_squares)
    )


def sum_unit(tolerance: float) -> float:
    """What activations are rounded to before they are added up: the largest power of two that is at most a quarter of the tolerance."""
    return 2.0 ** (math.frexp(max(tolerance, MIN_TOLERANCE))[1] - 3)


def _rounded_up(tolerance: float) -> float:
    """A tolerance in a few digits, and never less than it is."""
    return float(f"{tolerance * (1 + 6 * 10.0**-_SIGNIFICANT_DIGITS):.{_SIGNIFICANT_DIGITS}g}")


# --- exact products --------------------------------------------------------------------------------------------------


def settle(w_enc: Matrix, inputs: np.ndarray, wanted: list[np.ndarray]) -> list[Settled]:
    """For each input, float32 [n_cases, d_model], its exact products with the columns of W_enc that are `wanted`, ascending.

    By more passes over W_enc, where anything is wanted.
    """
    features = np.unique(np.concatenate(wanted))
    if not len(features):
        return [Settled.nothing() for _ in wanted]
    at_once = max(1, COLUMN_BYTES // (4 * inputs.shape[1]))
    alike = _alike(w_enc, features, at_once) if len(features) > _FEW else np.arange(len(features))
    distinct = np.unique(alike)
    exact: list[dict[int, Fraction]] = [{} for _ in wanted]
    places = [alike[np.searchsorted(features, own)] for own in wanted]  # of each case's features, by their first equal one
    for start in range(0, len(distinct), at_once):
        chosen = distinct[start : start + at_once]
        columns = w_enc.columns(features[chosen])  # [d_model, n]
        for case, values in enumerate(inputs):
            for place in np.intersect1d(chosen, places[case]).tolist():
                exact[case][place] = exact_product(columns[:, np.searchsorted(chosen, place)], values)
    settled = []
    for own, own_places, values in zip(wanted, places, exact):
        distinct, of = np.unique(own_places, return_inverse=True)
        settled.append(Settled(own, of.reshape(-1), [values[place] for place in distinct.tolist()]))
    return settled


def _alike(w_enc: Matrix, features: np.ndarray, at_once: int) -> np.ndarray:
    """int [n]: for each of these columns the place of the first that is equal to it, bit for bit, or its own.

    Equal columns have equal sums of their bits; those that have are held against the first of them, `at_once` firsts a pass.
    """
    sums = np.zeros(len(features), np.uint64)
    for places, rows, part in w_enc.column_parts(features):
        odd = np.arange(2 * rows.start + 1, 2 * rows.stop + 1, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        sums[places] += (_bits(part).astype(np.uint64) * odd[:, np.newaxis]).sum(axis=0, dtype=np.uint64)
    _, first, of, counts = np.unique(sums, return_index=True, return_inverse=True, return_counts=True)
    alike = np.arange(len(features))
    firsts = first[counts > 1]
    for start in range(0, len(firsts), at_once):
        chosen = np.sort(firsts[start : start + at_once])
        like = np.isin(first[of.reshape(-1)], chosen)
        alike[like] = first[of.reshape(-1)][like]
        columns = _bits(w_enc.columns(features[chosen]))  # [d_model, n_chosen]
        for places, rows, part in w_enc.column_parts(features):
            own = np.searchsorted(chosen, alike[places]) % len(chosen)
            differs = like[places] & np.any(_bits(part) != columns[rows][:, own], axis=0)
            others = np.arange(len(features))[places][differs]
            alike[others] = others
            like[others] = False
    return alike


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, "<f4").view("<u4")


def round_to_float32(value: float | Fraction) -> float:
    """The float32 nearest to an exact value, ties to even. By way of float64 it would be rounded twice."""
    near = np.float32(float(value))
    if isinstance(value, float):
        return float(near)
    neighbours = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return float(
        min(neighbours, key=lambda f: (abs(value.from_float(float(f)) - value), int(f.astype("<f4").view("<u4")) & 1))
    )
