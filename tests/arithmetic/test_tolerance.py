# SPDX-License-Identifier: MIT OR Apache-2.0
"""A case's own tolerance: its rule in fractions, what right float32 ports use up of it, and what roundings of others exceed it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic import encoder
from oracle.arithmetic.chain import EncoderInput, Gate, Gated, Largest, Threshold
from oracle.arithmetic.constants import LAYER_NORM, SCALED, UNIT_RMS
from oracle.arithmetic.encoder import Encoder
from oracle.arithmetic.products import Matrix, NotFiniteError
from tests.support.planting import bf16, half, tf32

LEAST = 1e-9


def tolerances(w_enc: np.ndarray, b_enc: np.ndarray, x: np.ndarray, gate: Gate | None = None, scale: np.ndarray | None = None, rows: int = 7) -> list[float]:
    """Of W_enc [d_model, n_features] as it lies by inputs, and by features: the same."""
    by_layout = []
    for matrix in (w_enc, w_enc.T):
        blocks = [np.ascontiguousarray(matrix[start : start + rows]) for start in range(0, len(matrix), rows)]
        layout = Matrix(lambda blocks=blocks: iter(blocks), features_first=matrix is not w_enc)  # type: ignore[misc]
        encoded = encoder.encode(Encoder(layout, b_enc.astype(np.float64), gate or Threshold(), scale), x, k=10, tolerance=LEAST, own_tolerances=True)
        by_layout.append(encoded.tolerances)
    assert by_layout[0] == by_layout[1]
    return by_layout[0]


def by_definition(w_enc: np.ndarray, b_enc: np.ndarray, x: np.ndarray, factor: np.ndarray) -> float:
    """The rule as its docstring has it, in fractions, rounded up to 3 digits by looking at them."""
    largest = max(Fraction(float(b)) ** 2 for b in b_enc)
    for column, f in zip(w_enc.T, factor):
        terms = [Fraction(float(w)) * Fraction(float(value)) for w, value in zip(column, x)]
        largest = max(largest, Fraction(float(f)) ** 2 * max(sum(terms, Fraction(0)) ** 2, sum((term**2 for term in terms), Fraction(0))))
    square = 16 * Fraction(2) ** -48 * len(x) * largest
    if square <= Fraction(LEAST) ** 2:
        return LEAST
    exponent = math.floor(math.log10(math.sqrt(square))) - 3
    digits = next(d for d in range(900, 100_000) if Fraction(d) ** 2 * Fraction(100) ** exponent >= square)
    while digits >= 1000:
        digits, exponent = -(-digits // 10), exponent + 1
    return float(f"{digits}e{exponent}")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 30), st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e25]), st.integers(0, 2))
def test_the_rule_in_fractions(seed: int, d_model: int, n_features: int, size: float, kind: int) -> None:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    w_enc, b_enc, x = normal(d_model, n_features), normal(n_features), normal(2, d_model) * np.float32(size)
    scale = None if kind == 0 else np.abs(normal(n_features))
    gate = Gated(normal(n_features) * 100) if kind == 2 else Largest(max(1, n_features // 2))
    factor = np.ones(n_features) if scale is None else scale
    if isinstance(gate, Gated):
        factor, biases = np.maximum(factor, 1), np.concatenate([b_enc, gate.bias])
    else:
        biases = b_enc
    assert tolerances(w_enc, b_enc, x, gate, scale) == [by_definition(w_enc, biases, row, factor) for row in x]


@pytest.mark.parametrize("off", [0, 1, -1])
def test_a_third_digit_that_float64_leaves_open(off: int) -> None:
    """The tolerance is 123 itself, or more by far less than float64 can tell; where the sum is less, the norm of its terms is more."""
    x = np.array([[2.0**22, off * 2.0**-20, 0, 0]], np.float32)
    w_enc = np.array([[61.5, 3.0], [2.0**-9, 0], [1, 1], [0, 0]], np.float32)  # of 4 terms: sqrt(4) = 2
    assert tolerances(w_enc, np.zeros(2), x) == [124.0 if off else 123.0]
    equal = np.repeat(w_enc[:, :1], 500, axis=1)  # of many that are the largest each is looked at
    assert tolerances(equal, np.zeros(500), x) == [124.0 if off else 123.0]


def test_nothing_but_zeros_has_the_least() -> None:
    assert tolerances(np.zeros((3, 2), np.float32), np.zeros(2), np.ones((1, 3), np.float32)) == [LEAST]
    assert tolerances(np.ones((3, 2), np.float32), np.zeros(2), np.zeros((1, 3), np.float32)) == [LEAST]


def test_what_may_overflow_on_the_way_is_refused_whatever_its_sum_is() -> None:
    """Each machine refuses the same: the sum in float32 is fine in one order, and infinite in another."""
    w_enc, one = np.ones((4, 1), np.float32), np.float32(2.0**126)
    for order in ([1, 1, -1, -1], [1, -1, 1, -1]):
        with pytest.raises(NotFiniteError, match="may overflow float32"):
            tolerances(w_enc, np.zeros(1), np.array([order], np.float32) * one)
    assert tolerances(w_enc, np.zeros(1), np.array([[1, -1, 1, -1]], np.float32) * np.float32(2.0**120)) == [by_definition(
        w_enc, np.zeros(1), np.array([1, -1, 1, -1]) * 2.0**120, np.ones(1)
    )]  # fmt: skip


# --- what ports use up of it ------------------------------------------------------------------------------------------


def right_ports(w_enc: np.ndarray, b_enc: np.ndarray, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Pre-activations in float32 by 13 orders of one sum."""
    terms = w_enc * x[:, np.newaxis]  # float32
    by_size = np.argsort(np.abs(terms), axis=0)

    def in_order(terms: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        total = np.zeros(terms.shape[1:], np.float32) if start is None else start
        for term in terms:
            total = total + term
        return total

    def pairwise(terms: np.ndarray) -> np.ndarray:
        while len(terms) > 1:
            terms = np.concatenate([terms, np.zeros_like(terms[: len(terms) % 2])])
            terms = terms[::2] + terms[1::2]
        return terms[0]

    def fused(order: slice) -> np.ndarray:
        total = np.zeros(w_enc.shape[1], np.float32)
        for row, value in zip(w_enc[order].astype(np.float64), x[order].tolist()):
            total = (total + row * value).astype(np.float32)  # rounded twice, by way of float64: near enough
        return total

    yield "in order", in_order(terms) + b_enc
    yield "reversed", in_order(terms[::-1]) + b_enc
    yield "bias first", in_order(terms, b_enc)
    yield "pairwise", pairwise(terms) + b_enc
    for size in (8, 16, 64, 256):
        yield f"blocks of {size}", in_order(np.stack([in_order(terms[start : start + size]) for start in range(0, len(terms), size)])) + b_enc
    padded = np.concatenate([terms, np.zeros((-len(terms) % 8, terms.shape[1]), np.float32)])
    yield "8 lanes", pairwise(in_order(padded.reshape(-1, 8, terms.shape[1]))) + b_enc
    yield "ascending", in_order(np.take_along_axis(terms, by_size, 0)) + b_enc
    yield "descending", in_order(np.take_along_axis(terms, by_size[::-1], 0)) + b_enc
    yield "fused", fused(slice(None)) + b_enc
    yield "BLAS", x @ w_enc + b_enc


D_MODEL, N_FEATURES = 1024, 600
KINDS = ("standard normal", "times 10", "times 1000", "outliers", "opposite ends", "positive mean", "correlated")


def a_residual(kind: str, rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(D_MODEL)
    if kind.startswith("times"):
        values *= int(kind[6:])
    elif kind == "outliers":
        values[rng.choice(D_MODEL, 4, replace=False)] *= 1000
    elif kind == "opposite ends":  # every partial sum is large, and the sum is not
        values[0], values[-1] = 1000, -1000
    elif kind == "positive mean":
        values = np.abs(values) + 1
    elif kind == "correlated":
        values += 3 * np.repeat(rng.standard_normal(D_MODEL // 32), 32)
    return values.astype(np.float32)


@pytest.mark.parametrize("weights", ["random", "aligned", "positive"])
@pytest.mark.parametrize("kind", KINDS)
def test_right_ports_use_up_less_than_half_and_roundings_more_than_all(kind: str, weights: str) -> None:
    """Printed with -s: the most that an order uses up of the tolerance, and what mistakes in the top 10 are of it."""
    rng = np.random.default_rng([KINDS.index(kind), len(weights)])
    x = a_residual(kind, rng)
    w_enc = (rng.standard_normal((D_MODEL, N_FEATURES)) * D_MODEL**-0.5).astype(np.float32)
    if weights == "aligned":  # a quarter of the features point where the residual points, as far as a feature can
        norm = np.linalg.norm(x.astype(np.float64))
        w_enc[:, : N_FEATURES // 4] += np.outer(x / norm, rng.uniform(0.2, 1, N_FEATURES // 4)).astype(np.float32)
    elif weights == "positive":
        w_enc = np.abs(w_enc)
    b_enc = (rng.standard_normal(N_FEATURES) * 0.1).astype(np.float32)
    [tolerance] = tolerances(w_enc, b_enc, x[np.newaxis], rows=128)
    exact = x.astype(np.float64) @ w_enc.astype(np.float64) + b_enc
    used = {name: float(np.max(np.abs(values - exact))) / tolerance for name, values in right_ports(w_enc, b_enc, x)}
    top = np.argsort(-exact)[:10]
    wrong = {
        "weights in bfloat16": (bf16(w_enc), x), "weights in float16": (half(w_enc), x), "TF32": (tf32(w_enc), tf32(x)),
        "residual in bfloat16": (w_enc, bf16(x)),
    }  # fmt: skip
    off = {
        name: float(np.max(np.abs(residual.astype(np.float64) @ matrix.astype(np.float64) + b_enc - exact)[top])) / tolerance
        for name, (matrix, residual) in wrong.items()
    }
    worst = max(used, key=lambda name: used[name])
    print(f"{kind:15} {weights:8} {tolerance:9.3g}: {worst} {used[worst]:.3f}; " + ", ".join(f"{name} {value:.1f}" for name, value in off.items()))
    assert max(used.values()) < 0.5
    assert off["weights in bfloat16"] > 2
    if weights == "random" and kind != "opposite ends":  # 1000 and -1000 are exact in bfloat16
        assert min(off.values()) > 2


MEANS = ("standard normal", "times 1000", "outliers", "mean 10", "mean 1000")


@pytest.mark.parametrize("normalised", [SCALED, UNIT_RMS, LAYER_NORM])
@pytest.mark.parametrize("kind", MEANS)
def test_right_ports_of_normalised_inputs_use_up_less_than_half(kind: str, normalised: str) -> None:
    """Means and norms in float32, in order: what a mean takes off brings its own rounding with it, and so does b_dec."""
    rng = np.random.default_rng(MEANS.index(kind))
    x = (rng.standard_normal(D_MODEL) + int(kind[5:])).astype(np.float32) if kind.startswith("mean") else a_residual(kind, rng)
    w_enc = (rng.standard_normal((D_MODEL, N_FEATURES)) * D_MODEL**-0.5).astype(np.float32)
    b_dec, n, f32 = (5 + rng.standard_normal(D_MODEL)).astype(np.float32), np.float32(D_MODEL), np.float32

    def in_order(values: np.ndarray) -> np.float32:
        total = f32(0)
        for value in values:
            total = f32(total + value)
        return total

    for matrix in (w_enc, np.abs(w_enc)):
        for b in (None, b_dec):
            ours = EncoderInput(normalised, 0.37, b_dec=b).apply(x[np.newaxis])
            layout = Encoder(Matrix(lambda matrix=matrix: iter([matrix]), False), np.zeros(N_FEATURES), Threshold())  # type: ignore[misc]
            options = {"k": 10, "tolerance": LEAST, "own_tolerances": True, "removed": ours.removed}
            [tolerance] = encoder.encode(layout, ours.values, **options).tolerances  # type: ignore[arg-type]
            port = x * f32(0.37)
            if normalised == UNIT_RMS:
                port = x * (np.sqrt(n) / np.sqrt(in_order(x * x)))
            elif normalised == LAYER_NORM:
                port = x - in_order(x) / n
                port = port / (np.sqrt(in_order(port * port) / (n - 1)) + f32(1e-5))
            port = port if b is None else port - b
            pre = np.zeros(N_FEATURES, np.float32)
            for row, value in zip(matrix, port):
                pre = pre + row * value
            exact = ours.values[0].astype(np.float64) @ matrix.astype(np.float64)
            assert np.max(np.abs(pre - exact)) < 0.5 * tolerance
