# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reconstructions by hand: sums, what a feature at its gate may move, and tolerances to their last digit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oracle.arithmetic import decoder, encoder
from oracle.arithmetic.chain import Threshold
from oracle.arithmetic.decoder import Sums
from oracle.arithmetic.encoder import ActiveFeatures, Encoder
from oracle.arithmetic.products import Matrix


def active(features: list[int], activations: list[float], slack: list[float], at_gate: list[bool]) -> ActiveFeatures:
    return ActiveFeatures(np.array(features, int), np.array(activations, np.float32), np.array(slack), np.array(at_gate, bool))


def decoded(w_dec: list[list[float]], case: ActiveFeatures) -> Sums:
    rows = np.array(w_dec, np.float32)
    features = decoder.active_in_any([case])
    sums, = decoder.decode([(features, rows[features])] if len(features) else [], [case], rows.shape[1:])
    return sums


def test_the_tolerance_of_features_that_move_by_chance_and_at_their_gates() -> None:
    """3 sqrt((3/8)^2 + (4/8)^2) = 1.875 by chance, and a feature at its gate moves |-2| * 1 as a whole: 3.875, and a little rounding."""
    case = active([0, 1, 3], [2.0, 5.0, 0.0], [0.125, 0.125, 1.0], [False, False, True])
    output = decoder.output([decoded([[3.0], [4.0], [1e9], [-2.0]], case)], np.array([0.5], np.float32))
    assert (output.sum, output.norm, output.sum_of_squares, output.first_10) == (26.5, 26.5, 702.25, (26.5,))
    assert output.tolerance == 3.88
    without = active([0, 1], [2.0, 5.0], [0.125, 0.125], [False, False])
    assert decoder.output([decoded([[3.0], [4.0]], without)], None).tolerance == 1.88
    alone = active([3], [0.0], [1.0], [True])
    assert decoder.output([decoded([[0.0], [0.0], [0.0], [-2.0]], alone)], None).tolerance == 2.0


def test_the_tolerance_of_rounding() -> None:
    """4 * 2^-24 * sqrt(1 + 3 terms) * (|11| + sqrt(4 + 9 + 36)) = 144 * 2^-24; of several values the worst counts."""
    case = active([0, 1, 2], [2.0, 3.0, 6.0], [0.0] * 3, [False] * 3)
    output = decoder.output([decoded([[1.0, 0.5], [1.0, 0.5], [1.0, 0.5]], case)], None)
    assert output.tolerance == float(f"{144 * 2.0**-24:.3g}") == 8.58e-06
    assert output.first_10 == (11.0, 5.5) and output.sum == 16.5


def test_parts_add_up() -> None:
    """Features, W_skip and b_dec: their values, their terms, and what each may be off by."""
    case = active([0], [4.0], [0.5], [False])
    residuals = np.array([[3.0, 5.0]], np.float32)
    outputs = []
    for features_first in (False, True):
        w_skip = np.array([[1.0, 2.0], [10.0, 20.0]], np.float32)
        lies = w_skip.T.copy() if features_first else w_skip
        skip, = decoder.skip_connection(Matrix(lambda lies=lies: iter([lies[:1], lies[1:]]), features_first), residuals, 2)  # type: ignore[misc]
        assert (skip.values.tolist(), skip.squares.tolist(), skip.count) == ([53.0, 106.0], [9.0 + 2500.0, 36.0 + 10000.0], 2)
        outputs.append(decoder.output([decoded([[1.0, -1.0]], case), skip], np.array([0.25, 0.5], np.float32)))
    assert outputs[0] == outputs[1] and outputs[0].first_10 == (57.25, 102.5)
    # 3 * 0.5 by chance; rounding of 1 + 1 + 2 terms, whose squares are 16 and those of W_skip.
    assert outputs[0].tolerance == float(f"{1.5 + 4 * 2.0**-24 * 2 * (102.5 + math.sqrt(16 + 10036)):.3g}") == 1.5


@pytest.mark.parametrize("features_first", [False, True])
def test_a_skip_connection_to_another_length(features_first: bool) -> None:
    w_skip = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], np.float32)  # [d_model, d_out]
    lies = w_skip.T.copy() if features_first else w_skip
    skip, = decoder.skip_connection(Matrix(lambda: iter([lies]), features_first), np.array([[3.0, 5.0]], np.float32), 3)
    assert (skip.values.tolist(), skip.count) == ([53.0, 106.0, 159.0], 2)


def test_groups_of_features_and_of_blocks_are_the_same_sums() -> None:
    rng = np.random.default_rng(0)
    w_dec = rng.standard_normal((100, 3)).astype(np.float32)
    chosen = np.flatnonzero(rng.uniform(size=100) < 0.8)
    at_gate = rng.uniform(size=len(chosen)) < 0.2
    case = ActiveFeatures(chosen, rng.uniform(1, 2, len(chosen)).astype(np.float32), rng.uniform(0, 1, len(chosen)), at_gate)
    other = ActiveFeatures(chosen[:5], case.activations[:5], case.slack[:5], case.at_gate[:5])
    features = np.arange(100)
    whole, fewer = decoder.decode([(features, w_dec)], [case, other], (3,))
    for size in (1, 7, 32, 33):
        parts = [(features[start : start + size], w_dec[start : start + size]) for start in range(0, 100, size)]
        for sums, again in zip((whole, fewer), decoder.decode(parts, [case, other], (3,))):
            assert all(np.array_equal(getattr(sums, name), getattr(again, name)) for name in ("values", "squares", "spread", "flips"))
            assert sums.count == again.count
    rows, factors = w_dec[chosen].astype(np.float64), case.activations.astype(np.float64)[:, None]
    slack, gates = case.slack[:, None], at_gate[:, None]
    assert whole.count == len(chosen) and fewer.count == 5
    assert whole.values == pytest.approx((rows * factors).sum(axis=0))
    assert whole.squares == pytest.approx(((rows * factors) ** 2).sum(axis=0))
    assert whole.spread == pytest.approx((((rows * slack) ** 2) * ~gates).sum(axis=0))
    assert whole.flips == pytest.approx((np.abs(rows * slack) * gates).sum(axis=0))


def test_a_target_of_several_is_that_one() -> None:
    case = active([0, 1], [2.0, 1.0], [0.0, 0.5], [False, True])
    w_dec = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]], np.float32)  # [n_features, n_targets, d_model]
    sums, = decoder.decode([(np.array([0, 1]), w_dec)], [case], (2, 2))
    first, second = decoder.output([sums], np.ones(2, np.float32), 0), decoder.output([sums], None, 1)
    assert first.first_10 == (8.0, 11.0) and second.first_10 == (13.0, 16.0)
    assert (first.tolerance, second.tolerance) == (3.0, 4.0)  # half of 6, and of 8
    skip, = decoder.skip_connection(Matrix(lambda: iter([np.eye(2, dtype=np.float32)]), False), np.array([[3.0, 5.0]], np.float32), 2)
    assert decoder.output([sums, skip], None, 0).first_10 == (10.0, 15.0)  # of a part without targets all


def test_no_active_feature_gives_b_dec() -> None:
    output = decoder.output([decoded([[1.0]], active([], [], [], []))], np.array([-3.0], np.float32))
    assert (output.first_10, output.norm, output.tolerance) == ((-3.0,), 3.0, float(f"{4 * 3 * 2.0**-24:.3g}"))


def test_the_slack_of_features_is_the_tolerance_and_at_their_gates_all_of_it() -> None:
    """Five features: well above, just above its gate, at it, just below, well below."""
    tolerance, gate = 2.0**-6, np.full(5, 0.5, np.float32)
    pre = np.array([[0.75, 0.5 + 2.0**-7, 0.5, 0.5 - 2.0**-7, 0.25]], np.float32)
    chain = Encoder(Matrix(lambda: iter([pre]), False), np.zeros(5), Threshold(gate))
    encoded = encoder.encode(chain, np.ones((1, 1), np.float32), k=5, tolerance=tolerance, with_active=True)
    features = encoded.encodings[0].active
    assert features is not None and features.features.tolist() == [0, 1, 2, 3]
    assert features.activations.tolist() == [0.75, 0.5 + 2.0**-7, 0.0, 0.0] and features.activations.dtype == np.float32
    assert features.at_gate.tolist() == [False, True, True, True]
    assert features.slack.tolist() == [tolerance] + [pre + tolerance for pre in (0.5 + 2.0**-7, 0.5, 0.5 - 2.0**-7)]


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("tail, expected", [(2.0**-80, 1 + 2.0**-23), (-(2.0**-80), 1.0), (0.0, 1.0)])
def test_activations_behind_the_list_are_rounded_as_exactly(features_first: bool, tail: float, expected: float) -> None:
    """1 + 2^-24 lies half-way between two float32; what decides is below float64's last bit."""
    w_enc = np.array([[8.0, 4.0, 2.0, 1.0], [0, 0, 0, 2.0**-24], [0, 0, 0, tail]], np.float32)
    lies = w_enc.T.copy() if features_first else w_enc
    chain = Encoder(Matrix(lambda: iter([lies]), features_first), np.zeros(4), Threshold())
    encoded = encoder.encode(chain, np.ones((1, 3), np.float32), k=1, tolerance=1e-4, with_active=True)
    features = encoded.encodings[0].active
    assert features is not None and features.activations.tolist() == [8.0, 4.0, 2.0, expected] and encoded.n_settled == 1
