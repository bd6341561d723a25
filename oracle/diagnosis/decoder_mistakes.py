# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mistakes that ports make behind the encoder, each as a row, as in mistakes.py.

A decoder adds up three things: what the features that fire give a target layer, what goes past them by W_skip, and
b_dec. The last two count where the source is the target itself. A mistake's `kind` is the step that it changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oracle.diagnosis.mistakes import (
    LAYER_ABOVE,
    LAYER_BELOW,
    ONE_TARGET,
    RESHAPED,
    SEVERAL_TARGETS,
    THRESHOLD,
    W_SKIP,
    Mistake,
    bfloat16,
    bfloat16_cut,
    float16,
)

# The steps, and what `compute` takes and gives.
ACTIVATIONS = "activations"  # Firings -> what W_dec is multiplied with, [n_cases, n_features]
DECODER = "decoder"  # a constant of mistakes.py: which array is taken for W_dec
DECODER_ROUNDING = "decoder rounding"  # float32 weights -> weights
TARGET = "target layer"  # a number: how many places further the target's part of W_dec is taken
SKIP = "skip"  # a Skip
B_DEC = "b_dec"  # two numbers: how many times it is added where source is target, and elsewhere


@dataclass(frozen=True)
class Firings:
    """What the encoder gives for some features: `pre` float64 [n_cases, n], `gate` float64 [n].

    `listed` [n_cases, n] is whether a feature is one of the top k.
    """

    pre: np.ndarray
    gate: np.ndarray
    listed: np.ndarray


@dataclass(frozen=True)
class Skip:
    """How many times the residual through W_skip, through its transpose and as it is are added where source is target.

    `to_all` is whether they are added elsewhere too.
    """

    w_skip: int = 1
    transposed: int = 0
    residual: int = 0
    to_all: bool = False


def right_activations(of: Firings) -> np.ndarray:
    return np.where(of.pre > of.gate, of.pre, 0).astype(np.float32)


RIGHT_SKIP = Skip()
RIGHT_B_DEC = 1, 0

_JUMP, _SKIPS, _ONE, _SEVERAL = (frozenset({need}) for need in (THRESHOLD, W_SKIP, ONE_TARGET, SEVERAL_TARGETS))

DECODER_MISTAKES: tuple[Mistake, ...] = (
    Mistake("b_dec left out", B_DEC, "b_dec is not added to the reconstruction", (0, 0)),
    Mistake("b_dec twice", B_DEC, "b_dec is added to the reconstruction twice", (2, 0)),
    Mistake("b_dec taken off", B_DEC, "b_dec is subtracted from the reconstruction", (-1, 0)),
    Mistake("b_dec to every target", B_DEC, "the source's b_dec is added to every target layer", (1, 1), _SEVERAL),
    Mistake("W_skip left out", SKIP, "W_skip is not applied", Skip(w_skip=0), _SKIPS),
    Mistake("W_skip transposed", SKIP, "W_skip is applied transposed", Skip(w_skip=0, transposed=1), _SKIPS),
    Mistake("W_skip twice", SKIP, "what W_skip gives is added twice", Skip(w_skip=2), _SKIPS),
    Mistake(
        "W_skip to every target", SKIP, "what W_skip gives is added to every target layer", Skip(to_all=True), _SKIPS | _SEVERAL
    ),
    Mistake("residual added", SKIP, "the residual is added to the reconstruction", Skip(residual=1)),
    Mistake(
        "residual for W_skip",
        SKIP,
        "the residual is added as it is, without W_skip",
        Skip(w_skip=0, residual=1),
        _SKIPS,
    ),
    Mistake("target below", TARGET, "the decoder is that of the target layer below", -1, _SEVERAL),
    Mistake("target above", TARGET, "the decoder is that of the target layer above", 1, _SEVERAL),
    Mistake(
        "W_dec reshaped",
        DECODER,
        "W_dec's buffer is read with its axes swapped: reshaped instead of transposed",
        RESHAPED,
        _ONE,
    ),
    Mistake("W_dec of the layer below", DECODER, "W_dec is that of layer L - 1", LAYER_BELOW),
    Mistake("W_dec of the layer above", DECODER, "W_dec is that of layer L + 1", LAYER_ABOVE),
    Mistake("W_dec in bfloat16", DECODER_ROUNDING, "W_dec is rounded to bfloat16", bfloat16),
    Mistake("W_dec cut to bfloat16", DECODER_ROUNDING, "W_dec is cut off to bfloat16, not rounded", bfloat16_cut),
    Mistake("W_dec in float16", DECODER_ROUNDING, "W_dec is rounded to float16", float16),
    Mistake(
        "activations in bfloat16",
        ACTIVATIONS,
        "the activations are rounded to bfloat16 before W_dec",
        lambda of: bfloat16(right_activations(of)),
    ),
    Mistake(
        "activations cut to bfloat16",
        ACTIVATIONS,
        "the activations are cut off to bfloat16 before W_dec",
        lambda of: bfloat16_cut(right_activations(of)),
    ),
    Mistake(
        "activations in float16",
        ACTIVATIONS,
        "the activations are rounded to float16 before W_dec",
        lambda of: float16(right_activations(of)),
    ),
    Mistake(
        "top k decoded",
        ACTIVATIONS,
        "only the top k features are decoded, not all that fire",
        lambda of: np.where(of.listed, right_activations(of), 0),
    ),
    Mistake(
        "threshold subtracted in decoding",
        ACTIVATIONS,
        "pre - threshold is decoded where JumpReLU gives pre",
        lambda of: np.where(of.pre > of.gate, of.pre - of.gate, 0),
        _JUMP,
    ),
    Mistake(
        "relu in decoding",
        ACTIVATIONS,
        "all positive pre-activations are decoded: the threshold is ignored",
        lambda of: np.maximum(of.pre, 0),
        _JUMP,
    ),
    Mistake("no gate in decoding", ACTIVATIONS, "all pre-activations are decoded, before the gate", lambda of: of.pre),
)

FEATURE_KINDS = (ACTIVATIONS, DECODER, DECODER_ROUNDING)
