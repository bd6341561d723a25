# SPDX-License-Identifier: MIT OR Apache-2.0
"""Constants and words of the arithmetic, for whoever needs them without NumPy: the residual generator's, and kinds of inputs and gates."""

from __future__ import annotations

from typing import Any

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


def generator_record() -> dict[str, Any]:
    """What a port of residual.py needs. 64-bit integers are strings: JSON numbers lose them."""
    return {
        "name": NAME,
        "version": VERSION,
        "seed": f"{SEED_STRIDE} * i + layer for the i-th residual of a layer, i = 0, 1, ...",
        "stream": "layer",
        "arithmetic": "unsigned 64-bit modulo 2^64, and IEEE-754 binary64 to nearest even, one operation at a time in "
        "the order written, never fused; sqrt is correctly rounded; no other libm function",
        "multiplier": f"0x{MULTIPLIER:016x}",
        "sqrt_half": SQRT_HALF,
        "ln_2": LN_2,
        "ln_last_term": LN_LAST_TERM,
        "fnv_offset_basis": f"0x{FNV_OFFSET_BASIS:016x}",
        "fnv_prime": f"0x{FNV_PRIME:016x}",
        "steps": [
            "PCG32 (XSH-RR 64/32): inc = (stream << 1) | 1; state = 0; step; state += seed; step; "
            "where step is state = state * multiplier + inc",
            "output, from the state before its step: x = rotate_right32(((state >> 18) ^ state) >> 27, state >> 59)",
            "uniform in (-1, 1): w = (2*x + 1) * 2^-32 - 1",
            "pair: u, then v; s = u*u + v*v; if s >= 1 drop both and take the next pair",
            "f = sqrt((-2 * ln(s)) / s); emit u*f, then v*f, each rounded once to float32; stop after d_model values",
            "ln(s): s = m * 2^e with m in [1/2, 1); if m < sqrt_half: m = 2*m, e = e - 1; t = (m - 1) / (m + 1); "
            "q = t*t; p = 1/ln_last_term; for k = ln_last_term - 2, then two less each time, down to 1: p = p*q + 1/k; "
            "ln(s) = e * ln_2 + (2*t) * p",
            "residual_fingerprint: FNV-1a, 64 bits, over the little-endian float32 bytes: h = fnv_offset_basis; "
            "for each byte h = (h xor byte) * fnv_prime",
        ],
    }
