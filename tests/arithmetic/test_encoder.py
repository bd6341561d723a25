# SPDX-License-Identifier: MIT OR Apache-2.0
"""encoder.py against encoders of the tests' own, in float64 and in fractions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic import encoder
from oracle.arithmetic.chain import Threshold
from oracle.arithmetic.encoder import Encoder, Encoding, LayerEncoding
from oracle.arithmetic.numbers import round_to_float32
from oracle.arithmetic.products import Matrix, NotFiniteError, multiply
from tests.support.independent import exact_encode, float64_encode, nearest_float32
from tests.support.small_scope import layer_arrays

TOLERANCE = 1e-4


def blocks(w_enc: np.ndarray, rows: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (w_enc[start : start + rows].copy() for start in range(0, len(w_enc), rows))


def encode(
    w_enc: np.ndarray, b_enc: np.ndarray, gate: np.ndarray, residuals: np.ndarray, k: int = 10, rows: int = 5
) -> LayerEncoding:
    """By both orientations of W_enc, which must agree."""
    f32 = [np.asarray(array, np.float32) for array in (w_enc, b_enc, gate, residuals)]
    by_input, by_feature = (
        encoder.encode(Encoder(matrix, f32[1].astype(np.float64), Threshold(f32[2])), f32[3], k=k, tolerance=TOLERANCE)
        for matrix in (Matrix(blocks(f32[0], rows), False), Matrix(blocks(np.ascontiguousarray(f32[0].T), rows), True))
    )
    assert by_input.encodings == by_feature.encodings
    return by_input


def summary(encoding: Encoding) -> dict[str, Any]:
    values = {**encoding._asdict(), "sums": encoding.sums._asdict()}
    del values["active"]
    return values


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 300), st.integers(1, 4), st.integers(1, 40), st.integers(1, 33))
def test_agrees_with_plain_float64(seed: int, d_model: int, n_features: int, n_seeds: int, k: int, rows: int) -> None:
    arrays = layer_arrays(seed, d_model, n_features)
    arrays["threshold"] -= np.float32(1)  # some negative
    residuals = np.random.default_rng(seed).standard_normal((n_seeds, d_model)).astype(np.float32)
    gate = np.maximum(arrays["threshold"], 0)
    result = encode(arrays["W_enc"], arrays["b_enc"], gate, residuals, k, rows)
    for residual, encoding in zip(residuals, result.encodings):
        expected = float64_encode(arrays, residual, k)
        assert encoding.n_active == expected["n_active"]
        assert [index for index, _ in encoding.top] == [index for index, _ in expected["top"]]
        assert [v for _, v in encoding.top] == pytest.approx([v for _, v in expected["top"]], rel=1e-7)
        assert all(float(np.float32(value)) == value for _, value in encoding.top)
        assert encoding.rank_margin == (None if expected["rank_margin"] is None else pytest.approx(expected["rank_margin"], abs=6e-7))
        assert encoding.gate_margin == pytest.approx(expected["gate_margin"], abs=6e-7)
    assert 0 <= result.float32_max_abs_error < 1e-4


# Weights and residuals on coarse grids: sums collide, meet their gates, and cancel, all the time.
GRID = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-4, -1e-4, 2.0**-24, -(2.0**-30), 1 / 3, 1e6, -1e6, 2.0**-60])


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 6), st.integers(1, 12), st.integers(1, 5))
def test_is_exact_where_everything_ties(data: st.DataObject, d_model: int, n_features: int, k: int) -> None:
    def draw(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.array(data.draw(st.lists(GRID, min_size=size, max_size=size)), np.float32).reshape(shape)

    w_enc, b_enc, gate, residuals = draw(d_model, n_features), draw(n_features), abs(draw(n_features)), draw(2, d_model)
    result = encode(w_enc, b_enc, gate, residuals, k, rows=2)
    for residual, encoding in zip(residuals, result.encodings):
        assert summary(encoding) == exact_encode(w_enc, b_enc, gate, residual, k, TOLERANCE)


def test_a_half_way_sum_that_float64_misses() -> None:
    # 1 + 2^-24 lies half-way between two float32; 2^-80 decides, and float64 cannot see it.
    for tail, expected in ((2.0**-80, 1 + 2.0**-23), (-(2.0**-80), 1.0), (0.0, 1.0)):
        w_enc = np.array([[1.0], [2.0**-24], [tail]], np.float32)
        result = encode(w_enc, np.zeros(1), np.zeros(1), np.ones((1, 3)))
        assert result.encodings[0].top == [(0, expected)]
        assert result.n_settled >= 1
        assert summary(result.encodings[0]) == exact_encode(
            w_enc, np.zeros(1), np.zeros(1), np.ones(3, np.float32), 10, TOLERANCE
        )


@pytest.mark.parametrize("features_first", [False, True])
def test_the_rank_of_a_feature_among_equal_ones(features_first: bool) -> None:
    """Below the top k too: by exact values, of which float64 sees only some, and then by index."""
    w_enc = np.zeros((33, 9), np.float32)
    w_enc[0] = [1, 2, 1, 1, -1, 1, 2, 0, 1]
    w_enc[1:, 3] = 2.0**-60  # more than the others by 2^-55
    stored = np.ascontiguousarray(w_enc.T) if features_first else w_enc
    chain = Encoder(Matrix(blocks(stored, 2), features_first), np.zeros(9), Threshold())
    for feature, rank in enumerate([4, 1, 5, 3, None, 6, 2, None, 7]):
        encoded = encoder.encode(chain, np.ones((2, 33), np.float32), k=1, tolerance=TOLERANCE, feature=feature)
        assert encoded.column is not None and encoded.column.tolist() == w_enc[:, feature].tolist()
        for steps in encoded.steps:
            assert steps.rank == rank and steps.fires is (rank is not None)
            assert steps.value == steps.product == sum(map(Fraction, w_enc[:, feature].tolist()))


def test_an_order_that_float64_reverses() -> None:
    # In float64 1 + 2^-60 + ... loses every small term; feature 1 is the larger by 2^-55.
    w_enc = np.full((33, 2), 2.0**-60, np.float32)
    w_enc[0] = 1
    w_enc[1:, 0] = 0
    result = encode(w_enc, np.zeros(2), np.zeros(2), np.ones((1, 33)), rows=1)
    assert [index for index, _ in result.encodings[0].top] == [1, 0]
    assert result.encodings[0].rank_margin == 0.0 and "rank-tie" in result.encodings[0].flags
    nothing, residual = np.zeros(2, np.float32), np.ones(33, np.float32)
    assert summary(result.encodings[0]) == exact_encode(w_enc, nothing, nothing, residual, 10, TOLERANCE)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("k", [1, 4, 10])
def test_a_tie_that_float64_misses_at_any_place(place: int, k: int) -> None:
    """Also lower on the list, at its end and behind it; by rows of inputs and of features."""
    values = [2.0**-i for i in range(6)]
    values.insert(place, values[place])
    w_enc = np.zeros((33, 7), np.float32)
    w_enc[0] = values
    w_enc[1:, place + 1] = 2.0**-60 * values[place]  # the second of the two is the larger, by 2^-55 of it
    nothing, residual = np.zeros(7, np.float32), np.ones(33, np.float32)
    encoding = encode(w_enc, nothing, nothing, residual[None], k, rows=1).encodings[0]
    assert summary(encoding) == exact_encode(w_enc, nothing, nothing, residual, k, TOLERANCE)
    right = [*range(place), place + 1, place, *range(place + 2, 7)]
    assert [index for index, _ in encoding.top] == right[:k]


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("tail", [2.0**-80, -(2.0**-80), 0.0])
def test_a_half_way_sum_at_any_place(place: int, k: int, tail: float) -> None:
    w_enc = np.zeros((3, 6), np.float32)
    w_enc[0] = [2.0**-i for i in range(6)]
    w_enc[1:, place] = np.array([2.0**-24, tail]) * w_enc[0, place]
    nothing, residual = np.zeros(6, np.float32), np.ones(3, np.float32)
    encoding = encode(w_enc, nothing, nothing, residual[None], k, rows=1).encodings[0]
    assert summary(encoding) == exact_encode(w_enc, nothing, nothing, residual, k, TOLERANCE)


def test_as_many_features_at_their_gates_as_there_are() -> None:
    """Each is above its gate by 2^-55, which float64 does not see."""
    w_enc = np.full((33, 600), 2.0**-60, np.float32)
    w_enc[0] = 1
    encoded = encode(w_enc, np.zeros(600), np.ones(600), np.ones((2, 33)), k=3, rows=1)
    assert encoded.n_settled == 1200
    for encoding in encoded.encodings:
        assert (encoding.n_active, encoding.n_active_bounds, encoding.gate_ties) == (600, (0, 600), list(range(600)))
        assert encoding.top == [(0, 1.0), (1, 1.0), (2, 1.0)] and encoding.flags == ["rank-tie", "gate-tie"]


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("n_rows", [1, 50, 510])
def test_float64_is_not_trusted_beyond_its_error_bound(features_first: bool, n_rows: int) -> None:
    """A term may be rounded as often as there are additions: each may be off by half a last bit of the sum of all sizes."""
    d_model, tolerance, unit = 510, 0.5, 2.0**-53
    residual = np.where(np.arange(d_model) % 2, -1, 1).astype(np.float32) / 1024
    residual[-1] = 1 / 1024  # the others add up to 1/1024, and with b_enc to 1, which is the gate
    b_enc, gate = np.full(1, 1 - 1 / 1024, np.float32), np.ones(1, np.float32)
    depth = d_model if features_first else -(-d_model // n_rows) + n_rows
    bound = (depth + 4) * unit * d_model / 1024 + 2 * unit * 1 + 2 * unit * (1 + 1)  # of the product, the value and its distance
    last = int(bound / (2 * unit)) * 2 * unit  # of what float64 has right behind 1
    for distance, n_settled in ((last, 1), (last + 2 * unit, 0), (-last, 1), (-last - 2 * unit, 0)):
        w_enc = np.ones((d_model, 1), np.float32)
        w_enc[-1] = distance * 1024
        matrix = Matrix(blocks(w_enc.T.copy() if features_first else w_enc, n_rows), features_first)
        products = multiply(matrix, residual[None])
        assert (products.depth, products.largest_weights.tolist()) == (depth, [1.0])
        encoded = encoder.encode(Encoder(matrix, b_enc.astype(np.float64), Threshold(gate)), residual[None], k=1, tolerance=tolerance)
        assert encoded.encodings[0].top == ([(0, 1.0)] if distance > 0 else []) and encoded.n_settled == n_settled


def test_sums_that_cancel_to_one_ulp() -> None:
    # Terms of 2^40 and 2^20 cancel; one last bit of theirs, or of 1, is left, and in feature 3 nothing at all.
    ulp = 2.0**-23
    columns = [
        [2.0**40, 2.0**20, -(2.0**40), -(2.0**20), ulp],
        [2.0**40, 1.0, -(2.0**40), -1.0 + ulp / 2, 0.0],
        [2.0**40 * (1 + ulp), -(2.0**40), 2.0**-60, -(2.0**17), 0.0],
        [2.0**40, 2.0**-40, -(2.0**40), -(2.0**-40), 0.0],
        [1 + ulp, 2.0**-70, -1.0, 0.0, 0.0],
    ]
    w_enc = np.array(columns, np.float32).T.copy()
    nothing, residual = np.zeros(5, np.float32), np.ones(5, np.float32)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        for k in (1, 3, 10):
            result = encode(w_enc[order], nothing, nothing, residual[None], k, rows=2)
            expected = exact_encode(w_enc[order], nothing, nothing, residual, k, TOLERANCE)
            assert summary(result.encodings[0]) == expected and result.n_settled >= 1
    assert expected["n_active"] == 4


def test_a_pre_activation_that_equals_its_gate_is_not_active() -> None:
    w_enc = np.array([[0.1, 0.1, 0.1]], np.float32) * np.array([[3], [3], [-6]], np.float32)
    gate = np.array([0.7, 0.7, 0.7], np.float32)
    b_enc = np.array([0.7, np.nextafter(np.float32(0.7), np.float32(1)), 0.2], np.float32)
    encoding = encode(w_enc, b_enc, gate, np.ones((1, 3))).encodings[0]
    assert encoding.n_active == 1 and encoding.n_active_bounds == (0, 2)
    assert [index for index, _ in encoding.top] == [1]
    assert encoding.gate_margin == 0.0 and encoding.flags == ["gate-tie"]
    assert summary(encoding) == exact_encode(w_enc, b_enc, gate, np.ones(3, np.float32), 10, TOLERANCE)


@pytest.mark.parametrize("off", [-1e-7, -(2.0**-75), 0.0, 2.0**-75, 1e-7])
def test_flags_go_by_the_exact_margins(off: float) -> None:
    """Both margins are recorded as the limits themselves: what is past the sixth decimal, or float64, decides."""
    tolerance = Fraction(TOLERANCE)
    pre = [1 + 2 * tolerance + Fraction(off), Fraction(1), tolerance / 2, -tolerance - Fraction(off)]
    w_enc = np.array([[float(part) for part in float32_parts(value)] for value in pre], np.float32).T.copy()
    nothing = np.zeros(4, np.float32)
    residual = np.ones(len(w_enc), np.float32)
    rank = encode(w_enc[:, :2], nothing[:2], nothing[:2], residual[None]).encodings[0]
    assert rank.rank_margin == 2 * TOLERANCE and rank.flags == (["rank-tie"] if off <= 0 else [])
    gate = encode(w_enc[:, [1, 3]], nothing[:2], nothing[:2], residual[None]).encodings[0]
    assert gate.gate_margin == TOLERANCE and gate.flags == (["gate-tie"] if off <= 0 else [])
    whole = encode(w_enc, nothing, nothing, residual[None]).encodings[0]
    assert whole.gate_ties == ([2, 3] if off < 0 else [2])  # by the whole tolerance up to its gate, and not past it
    assert summary(whole) == exact_encode(w_enc, nothing, nothing, residual, 10, TOLERANCE)


def float32_parts(value: Fraction) -> list[Fraction]:
    """Eight float32 numbers whose sum is the value, exactly."""
    parts = []
    for _ in range(8):
        parts.append(Fraction(float(np.float32(float(value)))))
        value -= parts[-1]
    assert value == 0
    return parts


def test_one_extreme_bias_or_threshold_opens_no_other_feature() -> None:
    arrays = layer_arrays(6, 64, 2000)
    residuals = np.random.default_rng(6).standard_normal((3, 64)).astype(np.float32)
    arrays["b_enc"][7], arrays["threshold"][9] = -1e9, 3e38
    result = encode(arrays["W_enc"], arrays["b_enc"], arrays["threshold"], residuals)
    assert result.n_settled < 40
    for residual, encoding in zip(residuals, result.encodings):
        expected = float64_encode(arrays, residual, 10)
        assert (encoding.n_active, encoding.top) == (expected["n_active"], expected["top"])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([2.0**-20, 2.0**-24, 2.0**-30, 0.0]))
def test_columns_that_nearly_tie(seed: int, k: int, step: float) -> None:
    """float32 cannot rank them: the candidates that it picks must leave room for all that may be meant."""
    rng = np.random.default_rng(seed)
    column = rng.standard_normal(40)
    w_enc = (column[:, None] + step * rng.permutation(18)[None, :]).astype(np.float32)
    residual = rng.standard_normal((1, 40)).astype(np.float32)
    residual *= np.float32(np.sign(residual[0] @ w_enc[:, 0]) or 1)
    nothing = np.zeros(18, np.float32)
    encoding = encode(w_enc, nothing, nothing, residual, k, rows=7).encodings[0]
    assert summary(encoding) == exact_encode(w_enc, nothing, nothing, residual[0], k, TOLERANCE)


def test_exact_ties_go_by_index() -> None:
    w_enc = np.tile(np.array([[1.0], [2.0]], np.float32), (1, 40))
    encoding = encode(w_enc, np.zeros(40), np.zeros(40), np.ones((1, 2)), k=7).encodings[0]
    assert encoding.top == [(index, 3.0) for index in range(7)]
    assert encoding.rank_margin == 0.0 and encoding.flags == ["rank-tie"]


def test_nothing_active_and_k_beyond_what_is() -> None:
    arrays = layer_arrays(1)
    residuals = np.random.default_rng(1).standard_normal((1, 24)).astype(np.float32)
    nothing = encode(arrays["W_enc"], arrays["b_enc"], np.full(96, 1e3), residuals).encodings[0]
    assert (nothing.n_active, nothing.top, nothing.rank_margin, nothing.n_active_bounds) == (0, [], None, (0, 0))
    assert nothing.flags == ["no-active-features"]
    everything = encode(arrays["W_enc"], arrays["b_enc"], arrays["threshold"], residuals, k=96).encodings[0]
    assert 0 < len(everything.top) == everything.n_active < 96


def test_blocks_and_seeds_do_not_matter() -> None:
    arrays = layer_arrays(3, 70, 200)
    residuals = np.random.default_rng(3).standard_normal((5, 70)).astype(np.float32)
    encoder_arguments = arrays["W_enc"], arrays["b_enc"], arrays["threshold"]
    whole = encode(*encoder_arguments, residuals, rows=70).encodings
    assert encode(*encoder_arguments, residuals, rows=1).encodings == whole
    assert [encode(*encoder_arguments, row[None], rows=9).encodings[0] for row in residuals] == whole


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    arrays = layer_arrays(4)
    arrays["W_enc"][[2, 9, 9], [5, 0, 1]] = bad
    with pytest.raises(NotFiniteError, match="W_enc has 3 values"):
        encode(arrays["W_enc"], arrays["b_enc"], arrays["threshold"], np.ones((1, 24)))


def test_pre_activations_that_overflow_are_refused() -> None:
    w_enc = np.full((4, 3), 3e38, np.float32)
    with pytest.raises(NotFiniteError, match="6 pre-activations"):
        encode(w_enc, np.zeros(3), np.zeros(3), np.ones((2, 4)))


@settings(deadline=None, max_examples=300)
@given(st.floats(allow_nan=False, min_value=2**-20, max_value=2**40), st.integers(-3, 3))
def test_rounding_to_float32_is_exact(value: float, nudge: int) -> None:
    exact = Fraction(value) + Fraction(nudge, 2**90)
    assert round_to_float32(exact) == nearest_float32(exact)
    half_way = (Fraction(float(np.float32(value))) + Fraction(float(np.nextafter(np.float32(value), np.float32(np.inf))))) / 2
    assert round_to_float32(half_way + Fraction(nudge, 2**90)) == nearest_float32(half_way + Fraction(nudge, 2**90))
