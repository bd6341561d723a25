# SPDX-License-Identifier: MIT OR Apache-2.0
"""A port as a value: its steps in their order, each with the right one as default.

The encoder multiplies residuals by W_enc, the decoder activations by W_dec. A decoder adds up three things: what the
features that fire give a target layer, what goes past them by W_skip, and b_dec. The last two count where the source
is the target itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oracle.arithmetic.chain import EncoderInput
from oracle.arithmetic.constants import MAX_U64, SEED_STRIDE

Rounding = Callable[[np.ndarray], np.ndarray]  # float32 -> float32 of the same shape

# Which array is taken for W_enc, or for W_dec.
OWN, RESHAPED, W_DEC, LAYER_BELOW, LAYER_ABOVE = "own", "reshaped", "W_dec", "layer below", "layer above"


@dataclass(frozen=True)
class Source:
    """The generator's seed and stream: how many times i, the number of a layer's residual, and how many times the layer
    go into each, and what is added; and whether its numbers are scaled, where that is right."""

    seed: tuple[int, int, int] = (SEED_STRIDE, 1, 0)
    stream: tuple[int, int, int] = (0, 1, 0)
    is_scaled: bool = True

    def of(self, i: int, layer: int) -> tuple[int, int]:
        """Seed and stream, modulo 2^64."""
        seed, stream = (a * i + b * layer + c & MAX_U64 for a, b, c in (self.seed, self.stream))
        return seed, stream


@dataclass(frozen=True)
class Level:
    """A feature is active iff pre > `least`; its activation is pre - `subtracted`. float64 [n_features] each."""

    least: np.ndarray
    subtracted: np.ndarray


def right_level(threshold: np.ndarray) -> Level:
    return Level(np.maximum(threshold, 0), np.zeros_like(threshold))


@dataclass(frozen=True)
class Gate:
    """How a port decides what fires, where that is another way than the weights': `level`, of the threshold, float64 [n_features];
    how many a gate of the largest keeps, None for as many as the weights say; whether it takes the largest at all, of ReLU, by magnitude;
    whether a gated gate has its gate; whether pre-activations are multiplied by the decoder's norms.
    """

    level: Callable[[np.ndarray], Level] = right_level
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


def same(values: np.ndarray) -> np.ndarray:
    return values


def right_input(residual: np.ndarray, encoder_input: EncoderInput, b_dec: np.ndarray) -> np.ndarray:
    values: np.ndarray = encoder_input.apply(residual[np.newaxis]).values[0]
    return values


def right_index(index: np.ndarray, n_features: int) -> np.ndarray:
    return np.where((index >= 0) & (index < n_features), index, -1)


@dataclass(frozen=True)
class Port:
    """The steps of a port. `w_enc` and `w_dec` are constants above, or name a file of other weights."""

    label: int = 0  # what is added to the layers' numbers
    source: Source = Source()
    # residual, how it is right, b_dec, float32 [d_model] -> [d_model]
    input: Callable[[np.ndarray, EncoderInput, np.ndarray], np.ndarray] = right_input
    norm: Rounding = same
    residual_rounding: Rounding = same
    product_rounding: Rounding = same  # of both factors
    w_enc: str = OWN
    weight_rounding: Rounding = same
    b_enc: int = 1  # how many times it is added
    gate: Gate = Gate()
    selection: Selection = Selection()
    index: Callable[[np.ndarray, int], np.ndarray] = right_index  # printed, n_features -> features meant; -1: none
    activations: Callable[[DecoderInput], np.ndarray] = DecoderInput.activations  # what W_dec is multiplied with
    w_dec: str = OWN
    decoder_rounding: Rounding = same
    divides: bool = True  # whether activations are divided by the decoder's norms, where they were multiplied by them
    restores: bool = True  # whether what the decoder gives is brought back from a normalised input's scale
    target: int = 0  # how many places further the target's part of W_dec is taken
    skip: Skip = Skip()
    b_dec: tuple[int, int] = (1, 0)  # how many times it is added where source is target, and elsewhere

    def only(self, names: tuple[str, ...]) -> Port:
        """The port that is right but for the fields of these names."""
        return Port(**{name: getattr(self, name) for name in names})


# A product of residuals or activations and weights depends on these fields; the others come before or behind it.
ENCODER_PRODUCT = ("source", "input", "norm", "residual_rounding", "product_rounding", "w_enc", "weight_rounding")
DECODER_PRODUCT = ("activations", "divides", "w_dec", "decoder_rounding")
ENCODER_FIELDS = (*ENCODER_PRODUCT, "b_enc", "gate", "selection", "index")
DECODER_FIELDS = (*DECODER_PRODUCT, "restores", "target", "skip", "b_dec")
