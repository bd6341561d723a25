# SPDX-License-Identifier: MIT OR Apache-2.0
"""The residual generator's name, version and constants, for residual.py and for whoever records them without NumPy."""

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


def seeds(layer: int, numbers: range) -> list[int]:
    """The seeds of a layer's residuals by their numbers: 100 i + layer, as the field's first references have it."""
    return [SEED_STRIDE * number + layer for number in numbers]
