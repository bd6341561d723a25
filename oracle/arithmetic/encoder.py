# SPDX-License-Identifier: MIT OR Apache-2.0
"""Blocks of W_enc in; active features, the top k and how near they are to flipping out.

float32 products give every pre-activation the way the ports compute it and pick the candidates. A float64
accumulation over the same blocks settles the gate, the order and the values, and where its error bound leaves
one of these open, exact arithmetic does. So the answer depends on no BLAS, no thread count, no block size.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oracle.arithmetic.chain import Condition, FeatureSteps, Gate, Gated, GateStep
from oracle.arithmetic.numbers import ActivationSums, Numbers, Settled, activation_sums, classes, round_to_float32, settle, sum_unit
from oracle.arithmetic.products import UNIT_ROUNDOFF, Matrix, NotFiniteError, Removed, exact_product, multiply, rounding_tolerances

if TYPE_CHECKING:
    from fractions import Fraction

MARGIN_DECIMALS = 6
MOST_GATE_TIES = 1 << 17  # that are named: of two million dead features a case would take 16 MB, and no port's list is decided by them
MOST_TOLERANCE = 2.0**105  # partial sums are below 2^22 times a case's own tolerance in any order: more may overflow float32


class Encoder(NamedTuple):
    """What is computed of an input: product = input . W_enc[:, j]; value = scale_j * product + offset_j; and whether it fires.

    `offset` is float64 [n_features], each the exact product of two float32 at most; `scale` float32 [n_features], None for 1.
    """

    w_enc: Matrix
    offset: np.ndarray
    gate: Gate
    scale: np.ndarray | None = None

    @property
    def spread(self) -> tuple[np.ndarray | float, float]:
        """How many times a feature's product is in what is held against 0, float64 [n_features] or 1, and the largest |bias|."""
        factor = 1.0 if self.scale is None else np.abs(self.scale.astype(np.float64))
        offset = float(np.max(np.abs(self.offset)))
        if isinstance(self.gate, Gated):  # whose gate has the product as it is
            factor, offset = np.maximum(factor, 1.0), max(offset, float(np.max(np.abs(self.gate.bias))))
        return factor, offset


class ActiveFeatures(NamedTuple):
    """All features that are active, in ascending order: int [n], and their float32 activations [n].

    `slack` [n], float64, is how far a correct port's activation may be from this one: the tolerance, and where a
    feature is `at_gate`, bool [n], so that it may fire or not, all of it. Such a feature is here too if it does not fire,
    with 0.
    """

    features: np.ndarray
    activations: np.ndarray
    slack: np.ndarray
    at_gate: np.ndarray


class Encoding(NamedTuple):
    """What one residual gives.

    `top` holds (feature index, activation): activations are float32 values, descending, then by index.
    `rank_margin` is None where fewer than two features are ranked. Margins are in the units of the activations.
    `gate_ties` are the features, ascending, that may fire or not within the tolerance: as many as the bounds are apart, or
    more where one fires for another; None where there are more than MOST_GATE_TIES. The flags are decided by the exact margins,
    not by the rounded ones. `active` is there if it was asked for.
    """

    n_active: int
    n_active_bounds: tuple[int, int]
    top: list[tuple[int, float]]
    rank_margin: float | None
    gate_margin: float
    gate_ties: list[int] | None
    flags: list[str]
    sums: ActivationSums
    active: ActiveFeatures | None = None


class LayerEncoding(NamedTuple):
    """The encodings of one layer, and of all pre-activations: float32's largest error, and how many were settled.

    `tolerances` are those that each encoding's bounds, ties and flags go by; `largest_weights` are the Matrix's. `steps` are those of
    one feature in each case, where they were asked for, and `column` its encoder vector, float32 [d_model].
    """

    encodings: list[Encoding]
    tolerances: list[float]
    float32_max_abs_error: float
    n_settled: int
    largest_weights: np.ndarray
    steps: list[FeatureSteps]
    column: np.ndarray | None


def encode(
    encoder: Encoder, inputs: np.ndarray, *, k: int, tolerance: float, own_tolerances: bool = False, removed: Removed = (),
    with_active: bool = False, feature: int | None = None,
) -> LayerEncoding:  # fmt: skip
    """Encode float32 inputs [n_cases, d_model]. `with_active` asks for all features that are active, not for the top k alone;
    `feature` for the steps of one.

    With `own_tolerances` a case has its own where that is larger than `tolerance`: see rounding_tolerances; it is that of what
    was `removed` from the input before, as Inputs has it, where that is larger. Raises NotFiniteError.
    """
    kept: list[np.ndarray] = []
    w_enc = encoder.w_enc if feature is None else encoder.w_enc.keeping(feature, kept)
    products = multiply(w_enc, inputs, with_squares=own_tolerances)
    tolerances = [tolerance] * len(inputs)
    if own_tolerances:
        tolerances = [max(tolerance, own) for own in rounding_tolerances(encoder.w_enc, inputs, products, *encoder.spread, removed)]
        if max(tolerances) >= MOST_TOLERANCE:
            raise NotFiniteError("a residual is so large that its pre-activations may overflow float32")
    scale = 1.0 if encoder.scale is None else encoder.scale
    with np.errstate(all="ignore"):  # what overflows is counted here, and refused
        values32 = products.float32
        values32 *= scale
        values32 += encoder.offset.astype(np.float32)
    n_bad = int(np.count_nonzero(~np.isfinite(values32)))
    if n_bad:
        raise NotFiniteError(f"{n_bad} pre-activations overflow float32: the weights are too large to be real")
    error32 = max(float(np.max(np.abs(row32 - (row64 * scale + encoder.offset)))) for row32, row64 in zip(values32, products.float64))

    # |computed - exact| <= depth u sum |terms|, where depth is the most additions that a term goes through (Higham,
    # "Accuracy and Stability of Numerical Algorithms", section 4.2); float64 products of float32 are exact.
    sizes: np.ndarray = np.abs(inputs).sum(axis=1, dtype=np.float64)  # [n_cases]
    unit = (products.depth + 4) * UNIT_ROUNDOFF
    column = np.concatenate(kept) if kept else None
    encodings: dict[int, Encoding] = {}
    steps: dict[int, FeatureSteps] = {}
    drafts: dict[int, _Draft] = {}  # those that are open: what a case takes is let go of as soon as it is decided

    def close_what_is_decided() -> None:
        for number in [number for number, draft in drafts.items() if not len(draft.open_features)]:
            draft = drafts.pop(number)
            encodings[number] = draft.close()
            if feature is not None:
                steps[number] = draft.steps(feature)

    for number, (product, values, size, case_tolerance) in enumerate(zip(products.float64, values32, sizes, tolerances)):
        numbers = Numbers(product, unit * size * products.largest_weights, Settled.nothing())
        drafts[number] = _Draft(encoder, numbers, values, error32, k, case_tolerance, with_active, feature)
        if feature is not None and column is not None:
            drafts[number].learn(Settled(np.array([feature]), np.zeros(1, np.int64), [exact_product(column, inputs[number])]))
        close_what_is_decided()
    n_settled = 0
    while drafts:
        settled = settle(encoder.w_enc, inputs[list(drafts)], [draft.open_features for draft in drafts.values()])
        n_settled += sum(len(exact.features) for exact in settled)
        for draft, exact in zip(drafts.values(), settled):
            draft.learn(exact)
        close_what_is_decided()
    in_order = range(len(inputs))
    steps_in_order = [steps[number] for number in in_order if number in steps]
    return LayerEncoding([encodings[number] for number in in_order], tolerances, error32, n_settled, products.largest_weights, steps_in_order, column)


class _Draft:
    """One case: what its numbers decide, and `open_features`, int [n], which have to be settled first.

    `product` are the products with W_enc's columns, `values32` float32's values, which are at most `error32` off.
    """

    def __init__(
        self, encoder: Encoder, product: Numbers, values32: np.ndarray, error32: float, k: int, tolerance: float, with_active: bool,
        feature: int | None,
    ):  # fmt: skip
        self._encoder, self._product, self._values32, self._error32 = encoder, product, values32, error32
        self._k, self._tolerance, self._with_active, self._feature = k, tolerance, with_active, feature
        self._look()

    def learn(self, settled: Settled) -> None:
        """Take in the exact products of the open features."""
        self._product = self._product.with_settled(settled)
        self._look()

    def _look(self) -> None:
        self._value = self._product.affine(self._encoder.scale, self._encoder.offset)
        self._decision = self._encoder.gate.decide(self._product, self._value)
        if self._decision.undecided is not None:
            self.open_features = self._decision.undecided
            return
        conditions, tolerance = self._decision.conditions, self._tolerance
        is_open = np.zeros(len(self._value.near), bool)
        at_gate = np.zeros(len(is_open), bool)
        for condition in conditions:
            unsure, off = condition.distance.is_open(0.0), condition.reach * tolerance
            if self._decides(condition):
                at_gate |= unsure
            is_open |= condition.needs(unsure | condition.distance.is_open(off) | condition.distance.is_open(-off))
        is_open |= self._margin_is_open()
        # The product of a dead feature is exact, but what it is held against may have been rounded.
        rounded = is_open & ~self._product.is_vague & reduce(np.logical_or, [condition.distance.is_vague for condition in conditions])
        rounded[self._product.settled.features] = False
        if rounded.any():
            self._product = self._product.with_exact(np.flatnonzero(rounded))
            self._look()
            return
        is_open |= self._ranks_are_open(at_gate)
        if self._feature is not None:
            watched = np.arange(len(is_open)) == self._feature
            is_open |= reduce(np.logical_or, [condition.needs(watched) for condition in conditions]) | self._near(self._feature)
        self.open_features = np.flatnonzero(is_open & self._product.is_vague)

    def _decides(self, condition: Condition) -> bool:
        """Whether a condition has to hold: where `inside` is known the boundary of the largest has been passed."""
        return self._decision.inside is None or condition.reach == 1

    def _possible(self) -> np.ndarray:
        """bool [n]: what may be active."""
        inside = self._decision.inside
        possible = np.ones(len(self._value.near), bool) if inside is None else inside.copy()
        for condition in self._decision.conditions:
            if self._decides(condition):
                possible &= condition.distance.high > 0
        return possible

    def _margins(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [n] twice: the least and the most that each feature may be from its gate."""
        conditions = self._decision.conditions
        low = reduce(np.minimum, [condition.distance.low for condition in conditions])
        high = reduce(np.minimum, [condition.distance.high for condition in conditions])
        across = (low <= 0) & (high >= 0)
        np.abs(low, out=low)
        np.abs(high, out=high)
        most = np.maximum(low, high)
        least = np.minimum(low, high, out=low)
        least[across] = 0.0
        return least, most

    def _margin_is_open(self) -> np.ndarray:
        """bool [n]: the features that may be nearest to their gates, where it is open how that margin is rounded."""
        least, most = self._margins()
        if not _rounds_apart(float(least.min()), float(most.min())):
            return np.zeros(len(least), bool)
        near = least <= float(most.min())
        return reduce(np.logical_or, [condition.needs(near) for condition in self._decision.conditions])

    def _ranks_are_open(self, at_gate: np.ndarray) -> np.ndarray:
        """bool [n]: the features whose place among the top k, or whose value there, is open; `candidates` are those that may be there."""
        value, bound, k = self._value.near, self._value.bound, self._k
        is_open = np.zeros(len(value), bool)
        counts = self._possible()
        possible = np.flatnonzero(counts)
        for condition in self._decision.conditions:
            counts = counts | (np.abs(condition.distance.near) <= condition.reach * self._tolerance + condition.distance.bound)
        counted = np.flatnonzero(counts)
        is_open[counted] = self._value.rounds_apart(counted, sum_unit(self._tolerance))
        if self._with_active:
            with np.errstate(over="ignore"):
                ends = [end[counted].astype(np.float32) for end in (self._value.low, self._value.high)]
            is_open[counted] |= ends[0] != ends[1]
        # The k + 1 first of the active features are among the k + 1 + n_open first of those that may be active, and
        # a feature that float32 puts more than twice its error below the last of these is not.
        count = k + 1 + int(np.count_nonzero(at_gate[possible]))
        self._candidates = possible
        if count < len(possible):
            values = self._values32[possible]
            chosen = np.argpartition(values, -count)[-count:]
            off = self._error32 + bound[possible]  # |value32 - exact| at most
            self._candidates = possible[values + off >= float((values - off)[chosen].min())]

        ranked = self._candidates[np.argsort(value[self._candidates])[::-1]]
        low, high = self._value.low[ranked], self._value.high[ranked]
        # Each gap to its next lies between these two. Bounds may overlap beyond neighbours, where one is far wider.
        gap_low, gap_high = low[:-1] - high[1:], high[:-1] - low[1:]
        overlap = np.minimum.accumulate(low)[:-1] <= np.maximum.accumulate(high[::-1])[::-1][1:]
        with np.errstate(over="ignore"):
            values_open = low[: k + 1].astype(np.float32) != high[: k + 1].astype(np.float32)
        if (
            np.any(values_open)
            or np.any(overlap)
            or np.any(at_gate[self._candidates])
            or (len(gap_low) and _leaves_open(float(gap_low[:k].min()), float(gap_high[:k].min()), 2 * self._tolerance))
        ):
            is_open[self._candidates] = True
        return is_open

    def _near(self, feature: int) -> np.ndarray:
        """bool [n]: the features that may fire whose values are not surely apart from this one's."""
        near: np.ndarray = (self._value.low <= self._value.high[feature]) & (self._value.high >= self._value.low[feature]) & self._possible()
        return near

    def _active(self) -> np.ndarray:
        """bool [n]: the features that fire, where nothing is open."""
        inside = self._decision.inside
        active = np.ones(len(self._value.near), bool) if inside is None else inside.copy()
        for condition in self._decision.conditions:
            if self._decides(condition):
                active &= condition.distance.signs(0.0) > 0
        return active

    def steps(self, feature: int) -> FeatureSteps:
        """The steps of one feature, where nothing is open."""
        inside, active = self._decision.inside, self._active()
        value = self._value.exact_value(feature)
        gate = []
        for condition in self._decision.conditions:
            distance = condition.distance.exact_value(feature)
            measured = distance if condition.measured is None else condition.measured.exact_value(feature)
            holds = bool(distance > 0 if inside is None or self._decides(condition) else inside[feature])
            outside = inside is not None and not inside[feature]
            gate.append(GateStep(condition.subject, measured, condition.against[outside], measured - distance, holds))
        near = self._near(feature) & active
        larger = int(np.count_nonzero(active & ~near & (self._value.near > self._value.near[feature])))
        for other in np.flatnonzero(near).tolist():
            exact = self._value.exact_value(other)
            larger += exact > value or exact == value and other < feature
        fires = bool(active[feature])
        return FeatureSteps(self._product.exact_value(feature), value, tuple(gate), fires, larger + 1 if fires else None)

    def close(self) -> Encoding:
        """The encoding, where nothing is open."""
        conditions, tolerance = self._decision.conditions, self._tolerance
        n, active = len(self._value.near), self._active()
        surely, maybe, tie = (np.ones(n, bool) for _ in range(3))
        fewest, most = (np.ones(n, bool) for _ in range(2))
        for condition in conditions:
            off = condition.reach * tolerance
            over, under = (condition.distance.signs(limit) for limit in (off, -off))
            surely &= over > 0
            maybe &= under > 0
            tie &= under >= 0
            if self._decides(condition):
                fewest &= over > 0
                most &= under > 0
        n_active = int(np.count_nonzero(active))
        if self._decision.inside is not None and self._decision.of_all:
            fewest &= self._decision.inside
        bounds = self._decision.counted(fewest), self._decision.counted(most)
        ranked = self._value.order(self._candidates[active[self._candidates]]).tolist()[: self._k + 1]
        values: list[float | Fraction] = [self._value.value(feature) for feature in ranked]
        if not all(isinstance(value, float) for value in values):  # a float and a Fraction would give a float, rounded
            values = [self._value.exact_value(feature) for feature in ranked]
        rank_margin = min((a - b for a, b in zip(values[: self._k], values[1:])), default=None)
        at_gate = maybe & ~surely

        # Whatever float64 may put on the wrong side of these two has been settled.
        flags = []
        if rank_margin is not None and rank_margin <= 2 * tolerance:
            flags.append("rank-tie")
        if np.any(tie & ~surely):
            flags.append("gate-tie")
        if n_active == 0:
            flags.append("no-active-features")
        return Encoding(
            n_active=n_active,
            n_active_bounds=bounds,
            top=[(feature, round_to_float32(value)) for feature, value in zip(ranked[: self._k], values)],
            rank_margin=None if rank_margin is None else _round_margin(rank_margin),
            gate_margin=_round_margin(self._gate_margin()),
            gate_ties=np.flatnonzero(at_gate).tolist() if np.count_nonzero(at_gate) <= MOST_GATE_TIES else None,
            flags=flags,
            sums=activation_sums(self._value, active, at_gate, tolerance),
            active=self._active_features(active, at_gate) if self._with_active else None,
        )

    def _gate_margin(self) -> float | Fraction:
        """The least distance of a feature from its gate, exact where it is settled."""
        distances = [condition.distance for condition in self._decision.conditions]
        least, most = self._margins()
        if most.min() == 0:  # none is nearer, and of dead features there may be millions
            return 0.0
        near = np.flatnonzero(least <= float(most.min()))
        # Of features that are equal one is enough.
        first, _ = classes([key for distance in distances for key in (distance.near[near], distance.identities(near))])
        margins: list[float | Fraction] = []
        for feature in near[first].tolist():
            values: list[Any] = [distance.value(feature) for distance in distances]  # floats and Fractions compare exactly
            margins.append(abs(min(values)))
        return min(margins)

    def _active_features(self, active: np.ndarray, at_gate: np.ndarray) -> ActiveFeatures:
        with np.errstate(over="ignore"):
            values = self._value.near.astype(np.float32)
        settled = self._value.settled
        if len(settled.features):
            values[settled.features] = np.array([round_to_float32(value) for value in settled.values], np.float32)[settled.of]
        features = np.flatnonzero(active | at_gate)
        slack = np.where(at_gate, np.abs(values.astype(np.float64)), 0.0) + self._tolerance
        return ActiveFeatures(features, np.where(active, values, 0)[features], slack[features], at_gate[features])


def _round_margin(value: float | Fraction) -> float:
    return round(value, MARGIN_DECIMALS) if isinstance(value, float) else float(round(value, MARGIN_DECIMALS))


def _rounds_apart(low: float, high: float) -> bool:
    """Whether two bounds of one margin, which is not negative, leave open how it is rounded."""
    return round(max(low, 0.0), MARGIN_DECIMALS) != round(high, MARGIN_DECIMALS)


def _leaves_open(low: float, high: float, limit: float) -> bool:
    """Whether two bounds of one margin leave open how it is rounded, or whether it is at most `limit`."""
    return _rounds_apart(low, high) or low <= limit < high
