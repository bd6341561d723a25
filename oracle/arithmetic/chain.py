# SPDX-License-Identifier: MIT OR Apache-2.0
"""The two ends of an encoder's chain: what it makes of a residual before W_enc, and which features fire behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from oracle.arithmetic.constants import ABSTOPK, GATED, GROUPMAX, IDENTITY, JUMPRELU, LAYER_NORM, MINUS_B_DEC, RELU, SCALED, TOPK, UNIT_RMS
from oracle.arithmetic.numbers import Levels, Numbers

if TYPE_CHECKING:
    from fractions import Fraction

LAYER_NORM_EPSILON = 1e-5  # SAELens's
ZERO = ("0", "0")  # what a feature is held against, inside or outside

Record = dict[str, Any]


class Inputs(NamedTuple):
    """float32 inputs [n, d_model]; what a decoder gives is multiplied by `factor` and added to `offset`, float64 [n, 1], after them.

    `removed` are vectors, float32 [d_model], that were subtracted from what had been rounded or summed up before, and how many
    times each was for an input, float64 [n]: a port's rounding is of their size too.
    """

    values: np.ndarray
    factor: np.ndarray
    offset: np.ndarray
    removed: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


class EncoderInput(NamedTuple):
    """A residual as W_enc is multiplied by it: `normalised` first, then with `b_dec` subtracted, where there is one.

    Everything is computed in float64, single operations and correctly rounded sums, and rounded once to float32.
    """

    normalised: str = IDENTITY
    factor: float = 1.0  # of `scaled`
    back: float = 1.0  # what a decoder's output is multiplied by then
    b_dec: np.ndarray | None = None

    @property
    def record(self) -> Record:
        """What the JSON says of it."""
        if self.normalised == IDENTITY:
            return {"kind": IDENTITY if self.b_dec is None else MINUS_B_DEC}
        constants: Record = {"factor": self.factor} if self.normalised == SCALED else {}
        if self.normalised == LAYER_NORM:
            constants = {"epsilon": LAYER_NORM_EPSILON}
        return {"kind": self.normalised, **constants, **({} if self.b_dec is None else {"then": MINUS_B_DEC})}

    @property
    def is_identity(self) -> bool:
        return self.normalised == IDENTITY and self.b_dec is None

    def formula(self, residual: str) -> str:
        """The input in the field's words."""
        words = {
            IDENTITY: residual,
            SCALED: f"({self.factor:.9g} * {residual})",
            UNIT_RMS: f"({residual} * sqrt(d_model) / |{residual}|)",
            LAYER_NORM: f"(({residual} - mean) / (std + {LAYER_NORM_EPSILON:g}))",
        }[self.normalised]
        return words if self.b_dec is None else f"({words} - b_dec)"

    def apply(self, residuals: np.ndarray) -> Inputs:
        """float32 residuals [n, d_model] -> the inputs."""
        n, d_model = residuals.shape
        factor, offset = np.ones((n, 1)), np.zeros((n, 1))
        if self.is_identity:
            return Inputs(residuals, factor, offset)
        values = residuals.astype(np.float64)
        removed = []
        with np.errstate(all="ignore"):  # a residual of zeros has no norm: the encoder refuses what comes of it
            if self.normalised == SCALED:
                values, factor = values * self.factor, factor * self.back
            elif self.normalised == UNIT_RMS:
                norms = np.sqrt(_sums(values * values))  # [n, 1]
                values, factor = values * (math.sqrt(d_model) / norms), norms / math.sqrt(d_model)
            elif self.normalised == LAYER_NORM:
                offset = _sums(values) / d_model
                values = values - offset
                factor = np.sqrt(_sums(values * values) / (d_model - 1))
                values = values / (factor + LAYER_NORM_EPSILON)
                removed.append((np.ones(d_model, np.float32), np.abs(offset[:, 0]) / (factor[:, 0] + LAYER_NORM_EPSILON)))
            if self.b_dec is not None:
                values = values - self.b_dec
                if self.normalised != IDENTITY:
                    removed.append((self.b_dec, np.ones(n)))
            return Inputs(values.astype(np.float32), factor, offset, tuple(removed))


def _sums(values: np.ndarray) -> np.ndarray:
    """float64 [n, 1]: each row's sum, rounded once."""
    return np.array([[math.fsum(row.tolist())] for row in values])


# --- gates -----------------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """A feature can fire iff its `distance` is above 0. How far that moves where each pre-activation does is `reach` times as far.

    The distance is that of `measured`, which is called `subject`, from what it is held against; where it is None, from 0. `against`
    says what that is in words: of a feature inside, and of one outside.
    `rests_on` are the features that a group's distances depend on, bool [n]; `group_of` says which group a feature is in.
    """

    distance: Numbers
    subject: str
    against: tuple[str, str]
    measured: Numbers | None = None
    reach: int = 1
    rests_on: np.ndarray | None = None
    group_of: np.ndarray | None = None

    def needs(self, is_open: np.ndarray) -> np.ndarray:
        """bool [n]: the features that have to be settled, for those that are open to be decided."""
        if self.rests_on is None or self.group_of is None or not is_open.any():
            return is_open
        groups = np.zeros(int(self.group_of[-1]) + 1, bool)
        groups[self.group_of[is_open]] = True
        needed: np.ndarray = is_open | (self.rests_on & groups[self.group_of])
        return needed


class Decision(NamedTuple):
    """What a gate makes of a case. A feature is active iff all conditions hold, and it is `inside`, bool [n], where that is given.

    `undecided` are features that have to be settled before anything else can be said; then there are no conditions.
    `limit` is how many can fire of each group of `group_size` features that follow each other. `of_all` is whether what is
    negative may be inside: then those that are further from 0 fire no more than others.
    """

    conditions: tuple[Condition, ...] = ()
    inside: np.ndarray | None = None
    undecided: np.ndarray | None = None
    limit: int | None = None
    group_size: int = 1
    of_all: bool = False

    def counted(self, may_fire: np.ndarray) -> int:
        """How many fire of features that may, bool [n]."""
        if self.limit is None:
            return int(np.count_nonzero(may_fire))
        per_group = np.count_nonzero(may_fire.reshape(-1, self.group_size), axis=1)
        return int(np.minimum(per_group, self.limit).sum())


class GateStep(NamedTuple):
    """A condition of a gate for one feature, in exact numbers: `subject` is held `against` something, and has to be above it."""

    subject: str
    value: Fraction
    against: str
    level: Fraction
    holds: bool


class FeatureSteps(NamedTuple):
    """What is made of one feature, exact: product = input . W_enc[:, j]; its value; the gate; and its rank among those that fire."""

    product: Fraction
    value: Fraction
    gate: tuple[GateStep, ...]
    fires: bool
    rank: int | None


class Gate:
    """Which features fire. `value` are the numbers of a case that fire, `product` those before a bias or a scale came to them."""

    kind: str

    @property
    def record(self) -> Record:
        """What the JSON says of it."""
        return {"kind": self.kind}

    def decide(self, product: Numbers, value: Numbers) -> Decision:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Threshold(Gate):
    """A feature fires iff its value is above its level, float32 [n_features], or above 0 where there is none."""

    level: np.ndarray | None = None

    @property
    def kind(self) -> str:  # type: ignore[override]
        return RELU if self.level is None else JUMPRELU

    def decide(self, product: Numbers, value: Numbers) -> Decision:
        if self.level is None:
            return Decision((Condition(value, "pre", ZERO),))
        distance = value.affine(None, -self.level.astype(np.float64))
        return Decision((Condition(distance, "pre", ("max(threshold, 0)",) * 2, value),))


@dataclass(frozen=True, eq=False)
class Gated(Gate):
    """A feature fires iff product + bias, float32 [n_features], and its value are above 0."""

    bias: np.ndarray
    kind = GATED

    def decide(self, product: Numbers, value: Numbers) -> Decision:
        gate = Condition(product.affine(None, self.bias.astype(np.float64)), "product + b_gate", ZERO)
        return Decision((gate, Condition(value, "pre", ZERO)))


@dataclass(frozen=True, eq=False)
class Largest(Gate):
    """The k features with the largest values fire, the lower index first where some are equal.

    With `relu` only those that are above 0; by `magnitude` those with the largest |value|; of `grouped` features the largest
    one in each of k groups that follow each other.
    """

    k: int
    relu: bool = True
    magnitude: bool = False
    grouped: bool = False

    @property
    def kind(self) -> str:  # type: ignore[override]
        return GROUPMAX if self.grouped else ABSTOPK if self.magnitude else TOPK

    @property
    def record(self) -> Record:
        return {"kind": self.kind, "k": self.k, **({"relu": self.relu} if self.kind == TOPK else {})}

    @cached_property
    def has_floor(self) -> bool:
        """Whether 0 is a boundary too."""
        return self.relu or self.magnitude

    def decide(self, product: Numbers, value: Numbers) -> Decision:
        n = len(value.near)
        n_groups, limit = (self.k, 1) if self.grouped else (1, self.k)
        measure = value.magnitude() if self.magnitude else value.floored() if self.relu else value
        group_of = np.repeat(np.arange(n_groups), n // n_groups)
        inside, unknown = _inside(measure, n_groups, limit, self.has_floor)
        if unknown.any():
            vague = unknown & measure.is_vague
            if vague.any():
                return Decision(undecided=np.flatnonzero(vague))
            _resolve(measure, inside, unknown, n // n_groups, limit)
        subject = "|pre|" if self.magnitude else "max(pre, 0)" if self.relu else "pre"
        # What is 0 does not fire.
        conditions = [Condition(value, "pre", ZERO) if self.relu else Condition(value.magnitude(), "|pre|", ZERO)]
        if limit < n // n_groups:
            levels, rests_on = self._boundaries(measure, inside, n_groups, limit)
            choice = group_of + np.where(inside, 0, n_groups)
            against = ("the largest of the others in its group",) * 2 if self.grouped else (f"number {limit + 1} by size", f"number {limit} by size")
            conditions.append(Condition(measure.minus(levels, choice), subject, against, measure, 2, rests_on, group_of))
        return Decision(tuple(conditions), inside, None, limit, n // n_groups, not self.has_floor)

    def _boundaries(
        self, measure: Numbers, inside: np.ndarray, n_groups: int, limit: int
    ) -> tuple[Levels, np.ndarray]:
        """What the features inside are held against, the largest outside, group by group, and then what those outside are.

        And the features that may be these, bool [n].
        """
        size = len(inside) // n_groups
        near, low, high, within = (values.reshape(n_groups, size) for values in (measure.near, measure.low, measure.high, inside))
        floor = 0.0 if self.has_floor else -math.inf
        full = np.count_nonzero(within, axis=1) == limit
        outer = [np.where(within, -np.inf, values) for values in (near, low, high)]
        inner = [np.where(within, values, np.inf) for values in (near, low, high)]
        contends = np.zeros((n_groups, size), bool)
        contends |= ~within & (outer[2] >= np.maximum(outer[1].max(axis=1), floor)[:, np.newaxis]) & (outer[2] > floor)
        contends |= within & (inner[1] <= inner[2].min(axis=1)[:, np.newaxis]) & full[:, np.newaxis]
        out, inn = np.maximum(outer[0].max(axis=1), floor), np.where(full, inner[0].min(axis=1), floor)
        levels = np.concatenate([out, inn])
        bounds = np.zeros(2 * n_groups)
        exact: dict[int, Any] = {}
        flat = contends.reshape(-1)
        largest_bounds = np.where(contends, measure.bound.reshape(n_groups, size), 0.0)
        bounds[:n_groups] = np.where(~within, largest_bounds, 0.0).max(axis=1)
        bounds[n_groups:] = np.where(within, largest_bounds, 0.0).max(axis=1)
        if len(measure.settled.features):
            vague = measure.is_vague
            for side, chosen in ((0, flat & ~inside), (n_groups, flat & inside)):
                for group in np.unique(measure.settled.features // size).tolist():
                    contenders = group * size + np.flatnonzero(chosen[group * size : (group + 1) * size])
                    if len(contenders) and not vague[contenders].any():
                        first = measure.order(contenders)[-1 if side else 0]
                        value = measure.exact_value(int(first))
                        exact[group + side] = max(value, value.from_float(0.0)) if self.has_floor else value
                        bounds[group + side] = 2.0**-51 * abs(float(value))
                    elif not len(contenders):
                        exact[group + side] = measure.settled.values[0].from_float(0.0)
        return Levels(levels, bounds, exact), flat


def _inside(measure: Numbers, n_groups: int, limit: int, has_floor: bool) -> tuple[np.ndarray, np.ndarray]:
    """bool [n] twice: the features that are surely among the `limit` largest of their group, and those that may be or not.

    Where there is a floor, what is surely not above it is neither.
    """
    n = len(measure.near)
    size = n // n_groups
    if limit >= size:
        return np.ones(n, bool), np.zeros(n, bool)
    low, high = measure.low.reshape(n_groups, size), measure.high.reshape(n_groups, size)
    next_high = np.partition(high, size - limit - 1, axis=1)[:, size - limit - 1, np.newaxis]
    last_low = np.partition(low, size - limit, axis=1)[:, size - limit, np.newaxis]
    surely = low > next_high
    unknown = ~surely & (high >= last_low)
    if has_floor:
        unknown &= high > 0
    return surely.reshape(-1), unknown.reshape(-1)


def _resolve(measure: Numbers, inside: np.ndarray, unknown: np.ndarray, size: int, limit: int) -> None:
    """Put as many of the unknown features inside as their groups lack: the largest, and of equal ones the first."""
    for group in np.unique(np.flatnonzero(unknown) // size).tolist():
        own = slice(group * size, (group + 1) * size)
        lacking = limit - int(np.count_nonzero(inside[own]))
        inside[measure.order(own.start + np.flatnonzero(unknown[own]))[:lacking]] = True


def exp_float32(values: np.ndarray) -> np.ndarray:
    """exp of float32 values, rounded correctly to float32: `decimal` decides where float64, a few ulps off, leaves it open."""
    import decimal  # not at the top: few gates need it

    with np.errstate(over="ignore"):
        near = np.exp(values.astype(np.float64))
        low, high = ((near * factor).astype(np.float32) for factor in (1 - 2.0**-48, 1 + 2.0**-48))
    rounded = low.copy()
    with decimal.localcontext(decimal.Context(prec=60)):
        for place in np.flatnonzero(low != high).tolist():
            exact = decimal.Decimal(float(values[place])).exp()
            # The two neighbours are a float32 apart: the nearer one, which is never as far as the other.
            off = [abs(decimal.Decimal(float(end[place])) - exact) for end in (low, high)]
            rounded[place] = low[place] if off[0] <= off[1] else high[place]
    return rounded
