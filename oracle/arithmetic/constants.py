# SPDX-License-Identifier: MIT OR Apache-2.0
"""Constants and words of the arithmetic, for whoever needs them without NumPy: the residual generator's, and kinds of inputs and gates."""

NAME = "pcg32-polar-f32"
VERSION = 1

MULTIPLIER = 6364136223846793005
SQRT_HALF = 0.7071067811865476
LN_2 = 0.6931471805599453
LN_LAST_TERM = 21

FNV_OFFSET_BASIS = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MAX_U64 = 2**64 - 1

SEED_STRIDE = 100

# What an encoder makes of a residual, and which features fire: chain.py.
IDENTITY, SCALED, UNIT_RMS, LAYER_NORM, MINUS_B_DEC = "identity", "scaled", "unit_rms", "layer_norm", "minus_b_dec"
RELU, JUMPRELU, TOPK, ABSTOPK, GROUPMAX, GATED = "relu", "jumprelu", "topk", "abstopk", "groupmax", "gated"
SELECTIONS = (TOPK, ABSTOPK, GROUPMAX)  # where one feature fires, another does not


def seeds(layer: int, numbers: range) -> list[int]:
    """The seeds of a layer's residuals by their numbers: 100 i + layer, as the field's first references have it."""
    return [SEED_STRIDE * number + layer for number in numbers]
