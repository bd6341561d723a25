# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mistakes that ports make, each as a row: what it is, and how to compute what it gives.

An encoder is a chain of steps, and a mistake's `kind` is the step that it changes. Two mistakes of different kinds
can be made at once. A gate with >= for > has no row: it differs from the right one only where a pre-activation equals
its gate, which is closer than rounding, so that it passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from oracle.references.document import SEED_STRIDE
from oracle.references.reading import MAX_U64

# The steps in their order, and what `compute` takes and gives. Residuals and weights are float32 arrays.
LAYER = "layer label"  # nothing: it changes which case an answer belongs to
SOURCE = "source"  # (seed, stream, layer) -> (seed, stream)
INPUT = "input"  # residual [d_model], b_dec [d_model] -> [d_model]
NORM = "normalisation"  # residual -> residual
RESIDUAL_ROUNDING = "residual rounding"  # residual -> residual
WEIGHTS = "weights"  # a constant below: which array is taken for W_enc
WEIGHT_ROUNDING = "weight rounding"  # weights -> weights
PRODUCTS = "products"  # what both factors are rounded to: array -> array
BIAS = "bias"  # a number: how many times b_enc is added
GATE = "gate"  # threshold float64 [n_features] -> Gate
SELECTION = "selection"  # a Selection
INDEX = "index"  # printed index int [n], n_features -> the feature that it stands for; -1: none

W_ENC, RESHAPED, W_DEC, LAYER_BELOW, LAYER_ABOVE = "W_enc", "reshaped", "W_dec", "layer below", "layer above"

# What there must be for a port to make a mistake. Without a threshold a mistake about it gives the right numbers.
GENERATOR, THRESHOLD, W_SKIP = "a residual generator", "a threshold", "W_skip"
ONE_TARGET, SEVERAL_TARGETS = "a W_dec of one target layer", "a W_dec of several target layers"


@dataclass(frozen=True)
class Mistake:
    """A row. `kind` is one of the steps above; `compute` is as that step says. It is for those that have `needs`."""

    name: str
    kind: str
    description: str
    compute: Any
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Gate:
    """A feature is active iff pre > `least`; its activation is pre - `subtracted`. float64 [n_features] each."""

    least: np.ndarray
    subtracted: np.ndarray


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


def right_gate(threshold: np.ndarray) -> Gate:
    return Gate(np.maximum(threshold, 0), np.zeros_like(threshold))


RIGHT_SELECTION = Selection()


def right_index(index: np.ndarray, n_features: int) -> np.ndarray:
    return np.where((index >= 0) & (index < n_features), index, -1)


def _to_bits(dropped: int, nearest: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Rounding of float32 to fewer bits of significand: to the nearest, ties to even, or towards zero."""

    def rounded(values: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        if nearest:
            bits = bits + ((bits >> np.uint32(dropped)) & np.uint32(1)) + np.uint32((1 << (dropped - 1)) - 1)
        return (bits & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)).view(np.float32)

    return rounded


bfloat16, bfloat16_cut = _to_bits(16, True), _to_bits(16, False)
tf32, tf32_cut = _to_bits(13, True), _to_bits(13, False)


def float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _unit_norm(r: np.ndarray) -> np.ndarray:
    norm = float(np.sqrt(np.sum(r.astype(np.float64) ** 2)))
    return np.asarray(r / max(norm, 1e-30), np.float32)


def _rms_norm(r: np.ndarray) -> np.ndarray:
    return np.asarray(r / np.sqrt(np.mean(r.astype(np.float64) ** 2) + 1e-6), np.float32)


def _layer_norm(r: np.ndarray) -> np.ndarray:
    centred = r - r.mean(dtype=np.float64)
    return np.asarray(centred / np.sqrt(np.mean(centred**2) + 1e-6), np.float32)


def _shifted(by: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Feature j is printed as (j + by) modulo n_features."""
    return lambda index, n: np.where((index >= 0) & (index < n), (index - by) % n, -1)


def _sources() -> list[Mistake]:
    """Residuals of another seed or stream than the case's: those that a slip of the pen makes."""
    seeds: list[tuple[str, str, Callable[[int, int, int], int]]] = [
        *(
            (
                f"seed {'+' if by > 0 else '-'} {abs(by)}",
                f"the seed is off by {by}",
                lambda seed, stream, layer, by=by: seed + by,
            )
            for by in (1, -1, SEED_STRIDE, -SEED_STRIDE, 2 * SEED_STRIDE, -2 * SEED_STRIDE)
        ),
        ("seed without layer", f"the seed is {SEED_STRIDE} i, without the layer", lambda seed, stream, layer: seed - layer),
        ("seed is i", "the seed is i, the residual's number", lambda seed, stream, layer: (seed - layer) // SEED_STRIDE),
        (
            "seed by layer",
            f"the seed is {SEED_STRIDE} layer + i",
            lambda seed, stream, layer: SEED_STRIDE * layer + (seed - layer) // SEED_STRIDE,
        ),
        *(
            (f"seed {value}", f"the seed is always {value}", lambda seed, stream, layer, value=value: value)
            for value in (0, 1, 42)
        ),
    ]
    streams: list[tuple[str, str, Callable[[int, int, int], int]]] = [
        ("stream is seed", "the stream is the seed", lambda seed, stream, layer: seed),
        *(
            (
                f"stream {'+' if by > 0 else '-'} 1",
                f"the stream is off by {by}",
                lambda seed, stream, layer, by=by: stream + by,
            )
            for by in (1, -1)
        ),
        *(
            (f"stream {value}", f"the stream is always {value}", lambda seed, stream, layer, value=value: value)
            for value in (0, 1, 54)
        ),
    ]
    return [
        *(_source(name, text, lambda *case, seed=seed: (seed(*case), case[1])) for name, text, seed in seeds),
        *(_source(name, text, lambda *case, stream=stream: (case[0], stream(*case))) for name, text, stream in streams),
        _source("seed and stream swapped", "seed and stream are swapped", lambda seed, stream, _: (stream, seed)),
    ]


def _source(name: str, text: str, compute: Callable[..., tuple[int, int]]) -> Mistake:
    return Mistake(name, SOURCE, f"the residual is another: {text}", compute, frozenset({GENERATOR}))


_GATED = frozenset({THRESHOLD})

MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "relu",
        GATE,
        "plain ReLU instead of JumpReLU: the threshold is ignored",
        lambda t: Gate(np.zeros_like(t), np.zeros_like(t)),
        _GATED,
    ),
    Mistake(
        "no gate",
        GATE,
        "no gate at all: every feature counts as active",
        lambda t: Gate(np.full_like(t, -np.inf), np.zeros_like(t)),
    ),
    Mistake(
        "threshold halved",
        GATE,
        "the gate is half the threshold",
        lambda t: Gate(np.maximum(t, 0) / 2, np.zeros_like(t)),
        _GATED,
    ),
    Mistake(
        "threshold doubled",
        GATE,
        "the gate is twice the threshold",
        lambda t: Gate(np.maximum(t, 0) * 2, np.zeros_like(t)),
        _GATED,
    ),
    Mistake(
        "exp(threshold)",
        GATE,
        "the gate is exp(threshold), as if the file held its logarithm",
        lambda t: Gate(np.exp(np.minimum(t, 700)), np.zeros_like(t)),
        _GATED,
    ),
    Mistake(
        "threshold subtracted",
        GATE,
        "the threshold is subtracted from the activation: pre - threshold where JumpReLU gives pre",
        lambda t: Gate(np.maximum(t, 0), np.maximum(t, 0)),
        _GATED,
    ),
    Mistake("b_enc left out", BIAS, "b_enc is not added", 0),
    Mistake("b_enc twice", BIAS, "b_enc is added twice", 2),
    Mistake("b_enc subtracted", BIAS, "b_enc is subtracted", -1),
    Mistake(
        "b_dec subtracted", INPUT, "b_dec is subtracted from the residual, as SAE loaders do", lambda r, b_dec: r - b_dec
    ),
    Mistake("b_dec added", INPUT, "b_dec is added to the residual", lambda r, b_dec: r + b_dec),
    Mistake(
        "W_enc reshaped",
        WEIGHTS,
        "W_enc's buffer is read with its axes swapped: reshaped instead of transposed",
        RESHAPED,
    ),
    Mistake("W_dec for W_enc", WEIGHTS, "W_dec is used for W_enc", W_DEC, frozenset({ONE_TARGET})),
    Mistake("layer below", WEIGHTS, "the weights are those of layer L - 1, as where layers are counted from 1", LAYER_BELOW),
    Mistake("layer above", WEIGHTS, "the weights are those of layer L + 1", LAYER_ABOVE),
    Mistake("weights in bfloat16", WEIGHT_ROUNDING, "W_enc is rounded to bfloat16", bfloat16),
    Mistake("weights cut to bfloat16", WEIGHT_ROUNDING, "W_enc is cut off to bfloat16, not rounded", bfloat16_cut),
    Mistake("weights in float16", WEIGHT_ROUNDING, "W_enc is rounded to float16", float16),
    Mistake("TF32 products", PRODUCTS, "products are TF32: weights and residual rounded to 10 bits of mantissa", tf32),
    Mistake(
        "TF32 products, cut", PRODUCTS, "products are TF32: weights and residual cut off to 10 bits of mantissa", tf32_cut
    ),
    Mistake("residual in bfloat16", RESIDUAL_ROUNDING, "the residual is rounded to bfloat16", bfloat16),
    Mistake("residual cut to bfloat16", RESIDUAL_ROUNDING, "the residual is cut off to bfloat16, not rounded", bfloat16_cut),
    Mistake("residual in float16", RESIDUAL_ROUNDING, "the residual is rounded to float16", float16),
    Mistake("residual of unit norm", NORM, "the residual is divided by its norm", _unit_norm),
    Mistake("residual RMS-normalised", NORM, "the residual is divided by its root mean square", _rms_norm),
    Mistake("residual layer-normalised", NORM, "the residual is centred and divided by its deviation", _layer_norm),
    *_sources(),
    Mistake("top k by |pre|", SELECTION, "the top k are chosen by absolute value", Selection("|pre|", True, "pre")),
    Mistake(
        "top k by |pre|, printed",
        SELECTION,
        "the top k are chosen by absolute value, which is what is printed",
        Selection("|pre|", True, "|pre|"),
    ),
    Mistake("top k ascending", SELECTION, "the top k stand in ascending order", Selection(order="ascending")),
    Mistake(
        "smallest k", SELECTION, "the k smallest activations are taken: sorted in ascending order", Selection("-activation")
    ),
    Mistake("top k by index", SELECTION, "the top k are sorted by index", Selection(order="by index")),
    Mistake("first k by index", SELECTION, "the first k active features are taken", Selection("-index", order="by index")),
    Mistake(
        "before the gate",
        SELECTION,
        "the top k are taken from the pre-activations, before the gate",
        Selection("pre", True, "pre"),
    ),
    Mistake(
        "features reversed",
        INDEX,
        "feature j is printed as n_features - 1 - j",
        lambda index, n: right_index(n - 1 - index, n),
    ),
    Mistake("features shifted up", INDEX, "feature j is printed as j + 1, and the last as 0", _shifted(1)),
    Mistake("features shifted down", INDEX, "feature j is printed as j - 1, and the first as the last", _shifted(-1)),
    Mistake("indices from 1", INDEX, "indices are counted from 1", lambda index, n: right_index(index - 1, n)),
    Mistake("layers from 1", LAYER, "layers are counted from 1: the answers of layer L are labelled L + 1", None),
)

LAYERS_FROM_1 = MISTAKES[-1]


@dataclass(frozen=True)
class Recipe:
    """What a hypothesis computes: no mistake, one, or two of different kinds."""

    mistakes: tuple[Mistake, ...] = ()

    @property
    def name(self) -> str:
        return " and ".join(mistake.name for mistake in self.mistakes)

    @property
    def description(self) -> str:
        return "; and ".join(mistake.description for mistake in self.mistakes)

    def only(self, *kinds: str) -> Recipe:
        return Recipe(tuple(mistake for mistake in self.mistakes if mistake.kind in kinds))

    def compute(self, kind: str, right: Any) -> Any:
        """The step `kind` as this recipe has it, or the right one."""
        return next((mistake.compute for mistake in self.mistakes if mistake.kind == kind), right)


RESIDUAL_KINDS = (SOURCE, INPUT, NORM, RESIDUAL_ROUNDING, PRODUCTS)
WEIGHT_KINDS = (WEIGHTS, WEIGHT_ROUNDING, PRODUCTS)


def wrong_residual(
    recipe: Recipe,
    case: tuple[int, int, int],
    right: np.ndarray,
    b_dec: np.ndarray,
    generate: Callable[[int, int, int], np.ndarray],
) -> np.ndarray:
    """The residual that a recipe multiplies with, float32 [d_model]; `case` is (seed, stream, layer)."""
    source = recipe.compute(SOURCE, None)
    r = right
    if source:
        seed, stream = source(*case)
        r = generate(seed & MAX_U64, stream & MAX_U64, len(right))
    centre = recipe.compute(INPUT, None)
    if centre:
        r = centre(r, b_dec)
    for kind in (NORM, RESIDUAL_ROUNDING, PRODUCTS):
        step = recipe.compute(kind, None)
        r = step(r) if step else r
    return r


def wrong_weights(recipe: Recipe, weights: np.ndarray) -> np.ndarray:
    """What a recipe makes of float32 weights of any shape."""
    for kind in (WEIGHT_ROUNDING, PRODUCTS):
        step = recipe.compute(kind, None)
        weights = step(weights) if step else weights
    return weights


def candidates(available: tuple[Mistake, ...], how_many: int) -> list[Recipe]:
    """Every single mistake, or every pair of different kinds, in the order of the table."""
    rows = [mistake for mistake in available if mistake is not LAYERS_FROM_1]
    if how_many == 1:
        return [Recipe((row,)) for row in rows]
    return [
        Recipe((first, second))
        for place, first in enumerate(rows)
        for second in rows[place + 1 :]
        if first.kind != second.kind
    ]
