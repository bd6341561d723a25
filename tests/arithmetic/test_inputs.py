# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is made of a residual before W_enc: against exact arithmetic, rounded once, and what brings an output back."""

from __future__ import annotations

import decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic.chain import EncoderInput
from tests.support import chains
from tests.support.chains import Chain

KINDS = ("identity", "scaled", "unit_rms", "layer_norm")
CONTEXT = decimal.Context(prec=60)


def residuals_of(seed: int, n: int, d_model: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d_model)).astype(np.float32)


def root(value: Fraction) -> Fraction:
    quotient = CONTEXT.divide(decimal.Decimal(value.numerator), decimal.Decimal(value.denominator))
    return Fraction(CONTEXT.sqrt(quotient))


def exact(kind: str, factor: float, b_dec: np.ndarray | None, residual: np.ndarray) -> tuple[list[Fraction], Fraction, Fraction]:
    """The input, and what an output is multiplied by and added to, with roots to 60 digits."""
    x = [Fraction(float(value)) for value in residual]
    n = len(x)
    back, offset = Fraction(1), Fraction(0)
    if kind == "scaled":
        x, back = [value * Fraction(factor) for value in x], Fraction(1 / factor)
    elif kind == "unit_rms":
        back = root(sum(value * value for value in x) / n)
        x = [value / back for value in x]
    elif kind == "layer_norm":
        offset = sum(x) / n
        back = root(sum((value - offset) ** 2 for value in x) / (n - 1))
        x = [(value - offset) / (back + Fraction(1e-5)) for value in x]
    return [value - Fraction(float(b)) for value, b in zip(x, b_dec if b_dec is not None else np.zeros(n))], back, offset


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.booleans(), st.integers(2, 60), st.floats(2**-8, 2**8))
def test_rounded_once(seed: int, kind: str, subtracts: bool, d_model: int, factor: float) -> None:
    """Within one float32 rounding, and a few of float64, of the exact value; nearly always it is the nearest float32."""
    residuals = residuals_of(seed, 3, d_model)
    b_dec = residuals_of(seed + 1, 1, d_model)[0] if subtracts else None
    inputs = EncoderInput(kind, factor, 1 / factor, b_dec).apply(residuals)
    assert inputs.values.dtype == np.float32 and inputs.values.shape == residuals.shape and inputs.factor.shape == inputs.offset.shape == (3, 1)
    for residual, values, factors, offsets in zip(residuals, inputs.values, inputs.factor, inputs.offset):
        right, back, offset = exact(kind, factor, b_dec, residual)
        size = max(abs(value) for value in right) + (np.abs(b_dec).max() if b_dec is not None else 0)
        for value, expected in zip(values.tolist(), right):
            off = abs(Fraction(value) - expected)
            assert off <= Fraction(abs(float(np.spacing(np.float32(value))))) / 2 + Fraction(float(size)) * Fraction(2.0**-49)
        assert float(factors[0]) == pytest.approx(float(back), rel=1e-14) and float(offsets[0]) == pytest.approx(float(offset), rel=1e-12, abs=1e-15)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.booleans(), st.integers(2, 200))
def test_agrees_with_plain_float64(seed: int, kind: str, subtracts: bool, d_model: int) -> None:
    residual = residuals_of(seed, 1, d_model)
    b_dec = residuals_of(seed + 1, 1, d_model)[0]
    inputs = EncoderInput(kind, 0.3, 1 / 0.3, b_dec if subtracts else None).apply(residual)
    chain = Chain(normalised="" if kind == "identity" else kind, scale=0.3, back=1 / 0.3, minus_b_dec=subtracts)
    values, factor, offset = chains.encoder_input(chain, {"b_dec": b_dec}, residual[0])
    assert np.allclose(inputs.values[0], values, rtol=2e-7, atol=1e-7)
    assert (inputs.factor[0, 0], inputs.offset[0, 0]) == (pytest.approx(factor, rel=1e-12), pytest.approx(offset, abs=1e-12))


def test_each_row_by_itself() -> None:
    residuals = residuals_of(0, 5, 33)
    for kind in KINDS:
        chain = EncoderInput(kind, 2.0, 0.5, residuals[4])
        together = chain.apply(residuals)
        for place in range(5):
            alone = chain.apply(residuals[place : place + 1])
            assert all(np.array_equal(getattr(together, name)[place : place + 1], getattr(alone, name)) for name in ("values", "factor", "offset"))


def test_the_identity_is_the_residual_itself() -> None:
    residuals = residuals_of(0, 2, 5)
    assert EncoderInput().is_identity and EncoderInput().apply(residuals).values is residuals
    assert not EncoderInput("scaled", 1.0).is_identity and not EncoderInput(b_dec=residuals[0]).is_identity


def test_normalised_then_minus_b_dec() -> None:
    """The order is SAELens's: a b_dec in the units of what is normalised."""
    residual = np.array([[3.0, 4.0, 0.0, 0.0]], np.float32)  # norm 5, root of d_model 2
    b_dec = np.array([1.0, 0.0, 0.5, 0.0], np.float32)
    inputs = EncoderInput("unit_rms", b_dec=b_dec).apply(residual)
    assert inputs.values.tolist() == [[np.float32(3 * 0.4 - 1), np.float32(1.6), -0.5, 0.0]] and inputs.factor.tolist() == [[2.5]]


def test_records_and_formulas() -> None:
    b_dec = np.zeros(3, np.float32)
    assert [EncoderInput(*of).record for of in ((), ("scaled", 0.5), ("unit_rms",), ("layer_norm",))] == [
        {"kind": "identity"}, {"kind": "scaled", "factor": 0.5}, {"kind": "unit_rms"}, {"kind": "layer_norm", "epsilon": 1e-5},
    ]  # fmt: skip
    assert EncoderInput(b_dec=b_dec).record == {"kind": "minus_b_dec"}
    assert EncoderInput("scaled", 0.5, b_dec=b_dec).record == {"kind": "scaled", "factor": 0.5, "then": "minus_b_dec"}


def test_a_residual_of_zeros_has_no_norm() -> None:
    """What comes of it is not finite, which the encoder refuses."""
    with np.errstate(all="raise"):
        assert not np.isfinite(EncoderInput("unit_rms").apply(np.zeros((1, 3), np.float32)).values).any()
        assert EncoderInput("layer_norm").apply(np.zeros((1, 3), np.float32)).values.tolist() == [[0.0, 0.0, 0.0]]
