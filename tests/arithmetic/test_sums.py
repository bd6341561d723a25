# SPDX-License-Identifier: MIT OR Apache-2.0
"""The sums over all features that fire: exact, and their tolerances those of a right port, whatever the gate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic import encoder
from oracle.arithmetic.chain import Gate, Gated, Largest, Threshold
from oracle.arithmetic.encoder import Encoder
from oracle.arithmetic.numbers import sum_unit
from oracle.arithmetic.products import Matrix

TOLERANCE = 1e-4
GATES = ("relu", "jumprelu", "gated", "topk", "topk without relu", "abstopk", "groupmax")


def gate_of(name: str, level: np.ndarray) -> Gate:
    if name in ("relu", "jumprelu"):
        return Threshold(None if name == "relu" else level)
    if name == "gated":
        return Gated(level - np.float32(1))
    return Largest(4, name in ("topk", "groupmax"), name == "abstopk", name == "groupmax")


def port(name: str, pre: np.ndarray, gate_pre: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Activations of float64 pre-activations, and of those that a gated gate looks at: float32 [n], 0 where none fires."""
    if name in ("relu", "jumprelu"):
        fires = pre > (0 if name == "relu" else level)
    elif name == "gated":
        fires = (gate_pre + (level - np.float32(1)) > 0) & (pre > 0)
    else:
        measure = np.abs(pre) if name == "abstopk" else pre if name == "topk without relu" else np.maximum(pre, 0)
        fires = np.zeros(len(pre), bool)
        if name == "groupmax":
            groups = measure.reshape(4, -1)
            fires[groups.argmax(axis=1) + np.arange(4) * groups.shape[1]] = True
        else:
            fires[np.argsort(-measure, kind="stable")[:4]] = True
        fires &= measure != 0
    return np.where(fires, pre, 0).astype(np.float32)


@pytest.mark.parametrize("name", GATES)
@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 1, 3, 1000]))
def test_a_right_port_s_sums_are_within_their_tolerances(name: str, seed: int, grain: float) -> None:
    """Values and gates on a grid about as fine as the tolerance, so that much ties; nudged within it, in float32, added in float64."""
    rng = np.random.default_rng(seed)
    n = 12
    pre = (rng.integers(-4, 12, n) * grain * TOLERANCE).astype(np.float32)
    level = (rng.integers(0, 8, n) * grain * TOLERANCE).astype(np.float32)
    chain = Encoder(Matrix(lambda: iter([pre[None]]), False), np.zeros(n), gate_of(name, level))
    sums = encoder.encode(chain, np.ones((1, 1), np.float32), k=3, tolerance=TOLERANCE).encodings[0].sums
    exact = port(name, pre.astype(np.float64), pre.astype(np.float64), level).astype(np.float64)
    rounded = np.rint(exact / sum_unit(TOLERANCE)) * sum_unit(TOLERANCE)
    assert sums.activation_sum == rounded.sum() and sums.activation_sum_of_squares == (rounded**2).sum()
    for _ in range(8):
        nudged = [pre + rng.choice([-0.99, 0.0, 0.99], n) * TOLERANCE for _ in range(2)]
        values = port(name, *nudged, level).astype(np.float64)
        assert abs(values.sum() - sums.activation_sum) <= sums.activation_sum_tolerance
        assert abs((values**2).sum() - sums.activation_sum_of_squares) <= sums.activation_sum_of_squares_tolerance


@pytest.mark.parametrize("tolerance, unit", [(1e-6, 2.0**-22), (1e-4, 2.0**-16), (0.25, 2.0**-4), (1.0, 0.25), (1.9, 0.25), (0.0, 2.0**-22)])
def test_what_activations_are_rounded_to(tolerance: float, unit: float) -> None:
    assert sum_unit(tolerance) == unit
    assert 8 * unit > tolerance and (4 * unit <= tolerance or not tolerance)


@pytest.mark.parametrize("tail, right", [(2.0**-80, 3.0), (0.0, 2.0), (-(2.0**-80), 2.0)])
def test_half_a_unit_that_float64_cannot_see(tail: float, right: float) -> None:
    """2.5 units lie in the middle: what is beyond float64 decides, and ties go to the even one."""
    unit = sum_unit(TOLERANCE)
    w_enc = np.array([[2.5 * unit], [tail]], np.float32)
    chain = Encoder(Matrix(lambda: iter([w_enc]), False), np.zeros(1), Threshold())
    encoded = encoder.encode(chain, np.ones((1, 2), np.float32), k=1, tolerance=TOLERANCE)
    assert encoded.encodings[0].sums.activation_sum == right * unit and encoded.n_settled == 1
    assert encoded.encodings[0].sums.activation_sum_of_squares == (right * unit) ** 2


def test_sums_of_what_float64_holds_no_units_of() -> None:
    w_enc = np.array([[1e30, 3e38, -1e30, 1e-30]], np.float32)
    chain = Encoder(Matrix(lambda: iter([w_enc]), False), np.zeros(4), Largest(3, relu=False, magnitude=True))
    sums = encoder.encode(chain, np.ones((1, 1), np.float32), k=1, tolerance=TOLERANCE).encodings[0].sums
    assert sums.activation_sum == float(w_enc[0, 1])
    assert sums.activation_sum_of_squares == pytest.approx(float(w_enc[0, 1]) ** 2 + 2e60)
