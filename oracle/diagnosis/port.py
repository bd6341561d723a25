# SPDX-License-Identifier: MIT OR Apache-2.0
"""A port as a value: its steps in their order, each with the right one as default. A mistake is a row: which steps, and to what.

The encoder multiplies residuals by W_enc, the decoder activations by W_dec. A decoder adds up three things: what the
features that fire give a target layer, what goes past them by W_skip, and b_dec. The last two count where the source
is the target itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from oracle.arithmetic.chain import EncoderInput, Gated, Largest
from oracle.arithmetic.constants import MAX_U64, SEED_STRIDE
from oracle.arithmetic.residual import residual
from oracle.checking.verdict import FLOAT32_ROUNDING
from oracle.weights.layer import LayerWeights

Rounding = Callable[[np.ndarray], np.ndarray]  # float32 -> float32 of the same shape
Vector = Callable[[np.ndarray], np.ndarray]  # of all features -> of all features

# Which array is taken for W_enc, or for W_dec.
OWN, RESHAPED, W_DEC, LAYER_BELOW, LAYER_ABOVE, TARGET_MAJOR = "own", "reshaped", "W_dec", "layer below", "layer above", "target-major"
# What is counted for n_active.
FIRING, LISTED, POSITIVE, ALL = "firing", "listed", "positive", "all"


@dataclass(frozen=True)
class Source:
    """The generator's seed and stream: how many times i, the number of a layer's residual, and how many times the layer
    go into each, and what is added; the `sequence` that it makes of seed, stream and length; and whether its numbers are
    scaled, where that is right."""

    seed: tuple[int, int, int] = (SEED_STRIDE, 1, 0)
    stream: tuple[int, int, int] = (0, 1, 0)
    sequence: Callable[[int, int, int], np.ndarray] = residual
    is_scaled: bool = True

    def of(self, i: int, layer: int) -> tuple[int, int]:
        """Seed and stream, modulo 2^64."""
        seed, stream = (a * i + b * layer + c & MAX_U64 for a, b, c in (self.seed, self.stream))
        return seed, stream


def same(values: np.ndarray) -> np.ndarray:
    return values


def right_level(threshold: np.ndarray) -> np.ndarray:
    level: np.ndarray = np.maximum(threshold, 0)
    return level


def right_value(pre: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return pre


@dataclass(frozen=True)
class Gate:
    """How a port decides what fires, where that is another way than the weights'. float64 [n_features] each: the `level` that a
    pre-activation must be above, of the threshold; with `is_two_sided` its magnitude; the `value` that fires, of pre-activation
    and threshold.

    How many a gate of the largest keeps, None for as many as the weights say; whether it takes the largest at all, of ReLU, by magnitude;
    whether a gated gate has its gate; whether pre-activations are multiplied by the decoder's norms.
    """

    level: Vector = right_level
    value: Callable[[np.ndarray, np.ndarray], np.ndarray] = right_value
    is_two_sided: bool = False
    k: int | None = None
    selects: bool = True
    relu: bool | None = None
    by_magnitude: bool = True
    is_gated: bool = True
    by_decoder_norm: bool = True


@dataclass(frozen=True)
class Selection:
    """The k features with the largest `key` of the active ones, or of all; their `value` printed in an `order`.

    `key` and `value` are "activation", "pre" or "|pre|"; a key may be "-activation" or "-index" too. `order` is
    "descending" or "ascending" by key, or "by index".
    """

    key: str = "activation"
    of_all: bool = False
    value: str = "activation"
    order: str = "descending"


@dataclass(frozen=True)
class DecoderInput:
    """What the encoder gives: `pre` float64 [n_cases, n_features], whether they `fire`, and the `gate`, float32 [n_features].

    `listed` [n_cases, n_features] is whether a feature is one of the top k.
    """

    pre: np.ndarray
    fires: np.ndarray
    gate: np.ndarray
    listed: np.ndarray

    def activations(self) -> np.ndarray:
        """float32 [n_cases, n_features]."""
        return np.where(self.fires, self.pre, 0).astype(np.float32)


@dataclass(frozen=True)
class Skip:
    """How many times the residual through W_skip, through its transpose and as it is are added where source is target."""

    w_skip: int = 1
    transposed: int = 0
    residual: int = 0


def right_input(residual: np.ndarray, encoder_input: EncoderInput, b_dec: np.ndarray) -> np.ndarray:
    values: np.ndarray = encoder_input.apply(residual[np.newaxis]).values[0]
    return values


def right_index(index: np.ndarray, n_features: int) -> np.ndarray:
    return np.where((index >= 0) & (index < n_features), index, -1)


def right_targets(outputs: np.ndarray) -> np.ndarray:
    """[n_targets, n_values] of W_dec -> what is given to each target; NaN where nothing is."""
    return outputs


@dataclass(frozen=True)
class Port:
    """The steps of a port. `w_enc` and `w_dec` are constants above, or name a file of other weights, as `bias_of`, `threshold_of`
    and `b_dec_of` do.

    Printed values go through `output`. Where a port rounds on the way, its numbers are off by up to `slack` of a product.
    """

    label: int = 0  # what is added to the layers' numbers
    source: Source = Source()
    # residual, how it is right, b_dec, float32 [d_model] -> [d_model]
    input: Callable[[np.ndarray, EncoderInput, np.ndarray], np.ndarray] = right_input
    norm: Rounding = same
    residual_rounding: Rounding = same
    product_rounding: Rounding = same  # of both factors
    w_enc: str = OWN
    weight_rounding: Any = same  # or Scaled
    accumulation: Rounding = same  # after each input
    bias: Vector = same
    bias_of: str = OWN
    gate: Gate = Gate()
    threshold_of: str = OWN
    selection: Selection = Selection()
    index: Callable[[np.ndarray, int], np.ndarray] = right_index  # printed, n_features -> features meant; -1: none
    count: str = FIRING
    output: Rounding = same
    slack: float = 0.0
    activations: Callable[[DecoderInput], np.ndarray] = DecoderInput.activations  # what W_dec is multiplied with
    w_dec: str = OWN
    decoder_rounding: Rounding = same
    divides: bool = True  # whether activations are divided by the decoder's norms, where they were multiplied by them
    is_unit_norm: bool = False  # whether W_dec's rows are divided by their norms
    restores: bool = True  # whether what the decoder gives is brought back from a normalised input's scale
    targets: Callable[[np.ndarray], np.ndarray] = right_targets
    skip: Skip = Skip()
    b_dec: tuple[float, float] = (1, 0)  # how many times it is added where source is target, and elsewhere
    b_dec_of: str = OWN

    def only(self, names: tuple[str, ...]) -> Port:
        """The port that is right but for the fields of these names."""
        return Port(**{name: getattr(self, name) for name in names})


# A product of residuals or activations and weights depends on these fields; the others come before or behind it.
ENCODER_PRODUCT = ("source", "input", "norm", "residual_rounding", "product_rounding", "w_enc", "weight_rounding", "accumulation")
PRINTED_VALUE = ("bias", "bias_of", "threshold_of", "index", "output", "slack")  # and what gate and selection print
DECODER_PRODUCT = ("activations", "divides", "is_unit_norm", "w_dec", "decoder_rounding")
ENCODER_FIELDS = (*ENCODER_PRODUCT, "bias", "bias_of", "gate", "threshold_of", "selection", "index", "count", "output", "slack")
DECODER_FIELDS = (*DECODER_PRODUCT, "restores", "targets", "skip", "b_dec", "b_dec_of")


@dataclass(frozen=True)
class Mistake:
    """A row: the steps that it changes, and to what. It is for weights that have what it `needs`.

    One that stands `alone` is not tried together with another. Of its constants `estimated` were taken from the candidate's numbers.
    """

    name: str
    description: str
    steps: tuple[tuple[str, Any], ...]
    needs: tuple[str, ...] = ()
    alone: bool = False
    estimated: int = 0

    @cached_property
    def fields(self) -> frozenset[str]:
        return frozenset(field for field, _ in self.steps)


@dataclass(frozen=True)
class Hypothesis:
    """A port with no mistake, one, or two of different steps."""

    mistakes: tuple[Mistake, ...] = ()

    @cached_property
    def port(self) -> Port:
        return Port(**{field: value for mistake in self.mistakes for field, value in mistake.steps})

    @cached_property
    def encoder_product(self) -> Port:
        return self.port.only(ENCODER_PRODUCT)

    @cached_property
    def printed_value(self) -> Port:
        """The port that is right but for what a printed value depends on behind the product."""
        gate = Gate(value=self.port.gate.value, by_decoder_norm=self.port.gate.by_decoder_norm)
        return replace(self.port.only(PRINTED_VALUE), gate=gate, selection=Selection(value=self.port.selection.value))

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(mistake.name for mistake in self.mistakes))

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=8)
def singles(rows: tuple[Mistake, ...]) -> list[Hypothesis]:
    return [Hypothesis((row,)) for row in rows]


@lru_cache(maxsize=8)
def pairs(rows: tuple[Mistake, ...]) -> list[Hypothesis]:
    """Every two rows that can be made together, in the order of the rows."""
    combined = [row for row in rows if not row.alone]
    both = ((first, second) for place, first in enumerate(combined) for second in combined[place + 1 :])
    return [Hypothesis(pair) for pair in both if pair[0].fields.isdisjoint(pair[1].fields)]


# --- what a port prints -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Vectors:
    """A layer's vectors, float32."""

    b_enc: np.ndarray
    threshold: np.ndarray
    b_dec: np.ndarray


@dataclass(frozen=True)
class Match:
    """What a port leaves of what was printed: the largest difference, and the sum of squares of all."""

    max_difference: float = 0.0
    squares: float = 0.0


def stored(*values: np.ndarray) -> np.ndarray:
    return FLOAT32_ROUNDING * sum((np.abs(array) for array in values), start=np.zeros(1))


def measure_of(name: str, pre: np.ndarray, activation: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The key or value of a Selection; `places` are the features."""
    if name == "-index":
        return np.broadcast_to(-places.astype(np.float64), pre.shape)
    measures = {"activation": activation, "-activation": -activation, "pre": pre, "|pre|": np.abs(pre)}
    return np.asarray(measures[name])


def through(port: Port, values: np.ndarray) -> np.ndarray:
    return values if port.output is same else port.output(values.astype(np.float32)).astype(np.float64)


def between(port: Port, values: np.ndarray, off: np.ndarray, printed: np.ndarray) -> np.ndarray:
    """Whether values that are off by no more than that may be printed so."""
    if port.output is same:
        return np.asarray(np.abs(values - printed) <= off)
    as_printed = through(port, printed)
    return np.asarray((through(port, values - off) <= printed) & (printed <= through(port, values + off)) & (as_printed == printed))
@dataclass(frozen=True)
class Firing:
    """Of one case, float64 [n_features] each: pre-activations, what a feature prints where it fires, how far above its gate it is,
    and how far that may be off beside the tolerance.

    It fires for sure where its `distance` is more than `reach` tolerances and its slack, and surely does not below as many less than 0.
    """

    pre: np.ndarray
    value: np.ndarray
    distance: np.ndarray
    slack: np.ndarray
    reach: int = 1


def match_of(fired: Firing, port: Port, printed: np.ndarray, values: np.ndarray, n_active: int, k: int, tolerance: float) -> Match | None:
    """How what a port prints matches the candidate's list, the features `printed` with `values`; None where rounding cannot explain it."""
    pre, distance, selection = fired.pre, fired.distance, port.selection
    off = fired.reach * tolerance + fired.slack
    fewest, most = int(np.count_nonzero(distance > off)), int(np.count_nonzero(distance > -off))
    counts = {
        FIRING: (fewest, most), LISTED: (min(k, fewest), min(k, most)), ALL: (len(pre), len(pre)),
        POSITIVE: (int(np.count_nonzero(pre > tolerance)), int(np.count_nonzero(pre > -tolerance))),
    }[port.count]  # fmt: skip
    if not counts[0] <= n_active <= counts[1]:
        return None
    if selection.of_all or port.count == FIRING:
        fewest = most = len(pre) if selection.of_all else n_active
    if not min(k, fewest) <= len(printed) <= min(k, most) or np.any(printed < 0):
        return None
    if not len(printed):
        return Match()
    features = np.arange(len(pre))
    key, value = (measure_of(name, pre, fired.value, features) for name in (selection.key, selection.value))
    slack = np.broadcast_to(fired.slack, pre.shape)
    listed_value = value[printed]
    if not np.all(between(port, listed_value, tolerance + slack[printed] + stored(listed_value, values), values)):
        return None
    difference = through(port, listed_value) - values
    match = Match(float(np.max(np.abs(difference))), float(np.sum(difference**2)))
    pool = np.ones(len(pre), bool)
    if not selection.of_all:
        # A feature at its gate is active iff the candidate has it on its list.
        pool = distance > off
        pool[printed[distance[printed] > -np.broadcast_to(off, pre.shape)[printed]]] = True
    if not np.all(pool[printed]):
        return None
    keys = key[pool]
    if len(keys) < len(printed):
        return None
    chosen = np.sort(np.partition(keys, len(keys) - len(printed))[len(keys) - len(printed) :])
    apart = 2 * (tolerance + float(np.max(slack[printed])))
    if port.output is not same:  # equal once they are rounded, they stand in any order
        apart += 2 * float(np.max(np.abs(through(port, listed_value) - listed_value))) + tolerance
    if np.any(np.abs(np.sort(key[printed]) - chosen) > apart):
        return None
    in_order = printed.astype(np.float64) if selection.order == "by index" else key[printed]
    gaps = np.diff(in_order) * (-1 if selection.order == "descending" else 1)
    return match if np.all(gaps > (0 if selection.order == "by index" else -apart)) else None


def pre_activations(port: Port, product: np.ndarray, weights: LayerWeights, vectors: Vectors, features: np.ndarray | slice = slice(None)) -> np.ndarray:
    """float64 [..., n]: of the products of some features, or of all."""
    encoder = weights.encoder
    scale = 1.0 if encoder.scale is None else encoder.scale[features]
    if isinstance(weights.gate, Gated):
        return np.asarray(product * scale + encoder.offset[features])
    pre = product + port.bias(vectors.b_enc[features])
    return np.asarray(pre * scale if port.gate.by_decoder_norm else pre)


def firing(port: Port, product: np.ndarray, weights: LayerWeights, vectors: Vectors, slack: np.ndarray = np.zeros(1)) -> Firing:
    """What fires of products float64 [n_features]."""
    pre = pre_activations(port, product, weights, vectors)
    gate, right, threshold = port.gate, weights.gate, vectors.threshold.astype(np.float64)
    value = gate.value(pre, threshold)
    if isinstance(right, Gated):
        condition = product + port.bias(vectors.b_enc)
        return Firing(pre, value, np.minimum(condition, pre) if gate.is_gated else pre, slack)
    if not isinstance(right, Largest) or not gate.selects:
        measure = np.abs(pre) if gate.is_two_sided else pre
        return Firing(pre, value, measure - gate.level(threshold), slack)
    relu = right.relu if gate.relu is None else gate.relu
    by_magnitude = right.magnitude and gate.by_magnitude
    measure = np.abs(pre) if by_magnitude else pre
    distance = _above_boundary(measure, gate.k or right.k, right.grouped)
    return Firing(pre, value, np.minimum(distance, measure) if relu or by_magnitude else distance, slack, 2)


def _above_boundary(measure: np.ndarray, k: int, grouped: bool) -> np.ndarray:
    """How far each is above the largest that does not fire, or below the smallest that does."""
    groups, limit = (measure.reshape(k, -1), 1) if grouped and len(measure) % k == 0 else (measure[np.newaxis], k)
    if limit >= groups.shape[1]:
        return np.full(len(measure), np.inf)
    ordered = np.sort(groups, axis=1)[:, ::-1]
    last, following = ordered[:, limit - 1, np.newaxis], ordered[:, limit, np.newaxis]
    return np.asarray(groups - np.where(groups >= last, following, last)).reshape(-1)
