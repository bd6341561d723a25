# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every gate of chain.py against the definitions in fractions, and against plain float64 over random shapes."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic import encoder
from oracle.arithmetic.chain import Gate, Gated, Largest, Threshold, exp_float32
from oracle.arithmetic.encoder import Encoder, Encoding, LayerEncoding
from oracle.arithmetic.products import Matrix
from tests.support.independent import GATES, ExactGate, exact_case, exact_products

TOLERANCE = 1e-4
Arrays = dict[str, np.ndarray]


def blocks(w_enc: np.ndarray, rows: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (w_enc[start : start + rows].copy() for start in range(0, len(w_enc), rows))


def gate_of(kind: str, k: int, arrays: Arrays) -> tuple[Gate, ExactGate]:
    """The gate under test, and the definition's."""
    if kind in ("relu", "jumprelu"):
        level = None if kind == "relu" else arrays["level"]
        return Threshold(level), ExactGate(kind, level=level)
    if kind == "gated":
        return Gated(arrays["bias"]), ExactGate(kind, bias=arrays["bias"])
    return Largest(k, relu=kind in ("topk", "groupmax"), magnitude=kind == "abstopk", grouped=kind == "groupmax"), ExactGate(kind, k)


def encode(arrays: Arrays, gate: Gate, inputs: np.ndarray, k: int, tolerance: float = TOLERANCE, rows: int = 3) -> LayerEncoding:
    """By both orientations of W_enc, which must agree in everything."""
    w_enc, offset, scale = arrays["W_enc"], arrays["offset"].astype(np.float64), arrays.get("scale")
    by_input, by_feature = (
        encoder.encode(Encoder(matrix, offset, gate, scale), inputs, k=k, tolerance=tolerance, with_active=True)
        for matrix in (Matrix(blocks(w_enc, rows), False), Matrix(blocks(np.ascontiguousarray(w_enc.T), rows), True))
    )
    for one, other in zip(by_input.encodings, by_feature.encodings):
        assert summary(one) == summary(other)
    return by_input


def summary(encoding: Encoding) -> dict[str, Any]:
    """What an encoding says, in plain values."""
    active = encoding.active
    assert active is not None
    rows = zip(active.features.tolist(), active.activations.tolist(), active.slack.tolist(), active.at_gate.tolist())
    return {**encoding._asdict(), "active": list(rows), "sums": encoding.sums._asdict()}


def exact(arrays: Arrays, gate: ExactGate, inputs: np.ndarray, k: int, tolerance: float = TOLERANCE) -> dict[str, Any]:
    from fractions import Fraction

    product = exact_products(arrays["W_enc"], inputs)
    scale = arrays.get("scale", np.ones(len(product), np.float32))
    value = [p * Fraction(float(s)) + Fraction(float(b)) for p, s, b in zip(product, scale, arrays["offset"])]
    return exact_case(gate, product, value, k, tolerance)


# On coarse grids sums collide, meet their boundaries and cancel all the time; 2^-60 is below float64's last bit of 1.
GRID = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.5, 3.0, 1e-4, -1e-4, 5e-5, 2e-4, 2.0**-24, -(2.0**-30), 1 / 3, 1e6, -1e6, 2.0**-60])
SCALES = st.sampled_from([1.0, 0.5, 3.0, 1 / 3, 2.0**-20])


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(GATES), st.booleans(), st.integers(1, 4), st.integers(1, 12), st.integers(1, 6))
def test_exact_where_everything_ties(data: st.DataObject, kind: str, scaled: bool, d_model: int, n_features: int, top: int) -> None:
    def draw(*shape: int, among: Any = GRID) -> np.ndarray:
        size = int(np.prod(shape))
        return np.array(data.draw(st.lists(among, min_size=size, max_size=size)), np.float32).reshape(shape)

    arrays = {"W_enc": draw(d_model, n_features), "offset": draw(n_features), "level": abs(draw(n_features)), "bias": draw(n_features)}
    if scaled or kind == "gated":
        arrays["scale"] = draw(n_features, among=SCALES)
    limits = [k for k in range(1, n_features + 1) if kind != "groupmax" or n_features % k == 0]
    gate, right = gate_of(kind, data.draw(st.sampled_from(limits)), arrays)
    inputs = draw(2, d_model)
    encoded = encode(arrays, gate, inputs, top)
    for row, encoding in zip(inputs, encoded.encodings):
        assert summary(encoding) == exact(arrays, right, row, top)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6), st.sampled_from(GATES), st.integers(1, 40), st.integers(1, 24), st.integers(1, 10), st.integers(1, 12))
def test_agrees_with_plain_float64(seed: int, kind: str, d_model: int, per_group: int, k: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    n_features = per_group * k

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {"W_enc": normal(d_model, n_features), "offset": normal(n_features), "level": abs(normal(n_features)), "bias": normal(n_features)}
    if kind == "gated" or seed % 2:
        arrays["scale"] = np.exp(normal(n_features) / 2).astype(np.float32)
    gate, _ = gate_of(kind, k, arrays)
    inputs = normal(3, d_model)
    for row, encoding in zip(inputs, encode(arrays, gate, inputs, top, rows=7).encodings):
        product = row.astype(np.float64) @ arrays["W_enc"].astype(np.float64)
        value = product * arrays.get("scale", 1) + arrays["offset"]
        activations = plain(kind, k, arrays, product, value)
        order = sorted(np.flatnonzero(activations).tolist(), key=lambda j: (-activations[j], j))
        assert encoding.n_active == len(order) and [j for j, _ in encoding.top] == order[:top]
        assert [v for _, v in encoding.top] == pytest.approx(activations[order[:top]], rel=1e-6)
        active = encoding.active
        assert active is not None and np.allclose(active.activations, activations[active.features], rtol=1e-6, atol=0)
        assert encoding.n_active_bounds[0] <= encoding.n_active <= encoding.n_active_bounds[1]


def plain(kind: str, k: int, arrays: Arrays, product: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Activations, float64 [n_features], as a peer's few lines have them."""
    if kind == "relu":
        return np.maximum(value, 0)
    if kind == "jumprelu":
        return value * (value > arrays["level"])
    if kind == "gated":
        return np.maximum(value, 0) * (product + arrays["bias"] > 0)
    kept = np.zeros_like(value)
    if kind == "groupmax":
        relu = np.maximum(value, 0).reshape(k, -1)
        places = relu.argmax(axis=1) + np.arange(k) * relu.shape[1]
    else:
        places = np.argsort(-(np.abs(value) if kind == "abstopk" else value), kind="stable")[:k]
    kept[places] = value[places] if kind in ("abstopk", "topk of all") else np.maximum(value[places], 0)
    return kept


# --- by hand ----------------------------------------------------------------------------------------------------------


def case(kind: str, k: int, values: list[float], tolerance: float = TOLERANCE, top: int = 10) -> dict[str, Any]:
    """Features with these values, exact."""
    arrays = {"W_enc": np.array([values], np.float32), "offset": np.zeros(len(values), np.float32)}
    gate, right = gate_of(kind, k, arrays)
    inputs = np.ones((1, 1), np.float32)
    encoded = summary(encode(arrays, gate, inputs, top, tolerance).encodings[0])
    assert encoded == exact(arrays, right, inputs[0], top, tolerance)
    return encoded


@pytest.mark.parametrize("kind", ["topk", "topk of all", "abstopk"])
def test_equal_values_at_the_boundary_go_to_the_lower_index(kind: str) -> None:
    encoded = case(kind, 2, [1.0, 3.0, 1.0, 1.0])
    assert [j for j, _ in encoded["top"]] == [1, 0] and encoded["n_active_bounds"] == (2, 2)
    assert encoded["gate_ties"] == [0, 2, 3] and encoded["gate_margin"] == 0.0 and encoded["flags"] == ["gate-tie"]


def test_a_boundary_moves_on_both_sides() -> None:
    """Two features that are two tolerances apart may be chosen one for the other; further apart they may not."""
    tolerance = 2.0**-6
    for gap, flags in ((2.0**-5, ["gate-tie"]), (2.0**-5 + 2.0**-10, [])):
        encoded = case("topk", 1, [1.0 + gap, 1.0, 0.25], tolerance)
        assert (encoded["flags"], encoded["gate_margin"], encoded["n_active_bounds"]) == (flags, round(gap, 6), (1, 1))
    inside = case("topk", 1, [1.0 + 2.0**-6, 1.0, 0.25], tolerance)
    assert inside["gate_ties"] == [0, 1] and inside["gate_margin"] == 2.0**-6
    assert inside["active"] == [(0, 1.0 + 2.0**-6, 1.0 + 2.0**-6 + tolerance, True), (1, 0.0, 1.0 + tolerance, True)]


def test_fewer_than_k_are_positive() -> None:
    encoded = case("topk", 3, [-1.0, 2.0, -3.0, 0.5])
    assert encoded["n_active"] == 2 and encoded["n_active_bounds"] == (2, 2) and encoded["gate_margin"] == 0.5
    of_all = case("topk of all", 3, [-1.0, 2.0, -3.0, 0.5])
    assert of_all["top"] == [(1, 2.0), (3, 0.5), (0, -1.0)] and of_all["gate_margin"] == 0.5  # from 0, where it does not fire
    by_magnitude = case("abstopk", 3, [-1.0, 2.0, -3.0, 0.5])
    assert by_magnitude["top"] == [(1, 2.0), (0, -1.0), (2, -3.0)] and by_magnitude["gate_margin"] == 0.5


def test_a_value_of_zero_among_the_largest_does_not_fire() -> None:
    encoded = case("topk of all", 2, [5.0, 5e-5, -3.0])
    assert (encoded["n_active"], encoded["n_active_bounds"], encoded["gate_ties"]) == (2, (1, 2), [1])
    encoded = case("topk of all", 2, [5.0, 0.0, -3.0])
    assert (encoded["n_active"], encoded["n_active_bounds"], encoded["gate_ties"], encoded["gate_margin"]) == (1, (1, 2), [1], 0.0)


@pytest.mark.parametrize("kind", ["topk", "topk of all", "abstopk", "relu", "groupmax"])
def test_all_dead(kind: str) -> None:
    encoded = case(kind, 2, [0.0, 0.0, 0.0, 0.0])
    assert (encoded["n_active"], encoded["top"], encoded["rank_margin"], encoded["gate_margin"]) == (0, [], None, 0.0)
    assert encoded["n_active_bounds"] == (0, 4 if kind == "relu" else 2) and encoded["gate_ties"] == [0, 1, 2, 3]
    assert encoded["flags"] == ["gate-tie", "no-active-features"]
    below = case(kind, 2, [-1.0, -1.0, -1.0, -1.0])
    assert below["n_active"] == (2 if kind in ("topk of all", "abstopk") else 0)


@pytest.mark.parametrize("kind", ["topk", "abstopk", "topk of all"])
def test_k_of_all_features(kind: str) -> None:
    encoded = case(kind, 3, [1.0, -2.0, 0.5])
    assert encoded["n_active"] == (2 if kind == "topk" else 3) and encoded["gate_ties"] == []


def test_the_largest_of_each_group() -> None:
    encoded = case("groupmax", 2, [1.0, 3.0, -1.0, -0.5])
    assert encoded["top"] == [(1, 3.0)] and encoded["n_active_bounds"] == (1, 1) and encoded["gate_margin"] == 0.5
    tied = case("groupmax", 2, [1.0, 1.0, 2.0, 0.5])
    assert [j for j, _ in tied["top"]] == [2, 0] and tied["gate_ties"] == [0, 1] and tied["n_active_bounds"] == (2, 2)


@pytest.mark.parametrize("tail", [2.0**-80, -(2.0**-80), 0.0])
@pytest.mark.parametrize("kind", ["topk", "topk of all", "abstopk", "groupmax"])
def test_a_boundary_that_float64_misses(kind: str, tail: float) -> None:
    """Features 0 and 1 differ by 2^-80, of about 1: by which, or by their index, one of them is the largest."""
    w_enc = np.array([[1.0, 1.0, 0.5], [2.0**-40, 2.0**-40, 0.0], [0.0, tail, 0.0]], np.float32)
    arrays = {"W_enc": w_enc, "offset": np.zeros(3, np.float32)}
    gate, right = gate_of(kind, 1, arrays)
    inputs = np.ones((1, 3), np.float32)
    encoded = summary(encode(arrays, gate, inputs, 5, rows=1).encodings[0])
    assert encoded == exact(arrays, right, inputs[0], 5) and [j for j, _ in encoded["top"]] == [1 if tail > 0 else 0]


def test_a_gap_between_a_settled_value_and_an_exact_one() -> None:
    """1e6 + 2e-4, whose product has to be settled, and 1e6 as a bias: 2e-4 in float32 is less than two tolerances."""
    arrays = {"W_enc": np.array([[1e6, 0.0]], np.float32), "offset": np.array([2e-4, 1e6], np.float32)}
    gate, right = gate_of("relu", 0, arrays)
    encoded = summary(encode(arrays, gate, np.ones((1, 1), np.float32), 1).encodings[0])
    assert encoded == exact(arrays, right, np.ones(1, np.float32), 1) and encoded["flags"] == ["rank-tie"]


def test_a_boundary_between_a_settled_value_and_an_exact_one() -> None:
    """The same two features, of which a top k takes one; and a bias whose distance from its threshold float64 rounds."""
    arrays = {"W_enc": np.array([[1.0, 0.0]], np.float32), "offset": np.array([2e-4, 1e6], np.float32)}
    inputs = np.array([[1e6]], np.float32)
    for kind in ("topk", "topk of all", "abstopk"):
        gate, right = gate_of(kind, 1, arrays)
        encoded = summary(encode(arrays, gate, inputs, 1).encodings[0])
        assert encoded == exact(arrays, right, inputs[0], 1) and encoded["gate_ties"] == [0, 1]
    arrays = {"W_enc": np.zeros((1, 1), np.float32), "offset": np.full(1, 2.0**40, np.float32)}
    for tail in (2.0**-20, 2.0**-14):  # beside 2^40 the first is less than float64's last bit
        arrays["level"] = np.full(1, -tail, np.float32)
        gate, right = gate_of("jumprelu", 0, arrays)
        encoded = summary(encode(arrays, gate, np.ones((1, 1), np.float32), 1, tolerance=2.0**40).encodings[0])
        assert encoded == exact(arrays, right, np.ones(1, np.float32), 1, 2.0**40) and encoded["flags"] == []


def test_both_conditions_of_a_gated_feature() -> None:
    """Feature by feature: both hold, the gate alone, the magnitude alone, neither, and one on each boundary."""
    product = np.array([[1.0, 1.0, -1.0, -1.0, 0.5, 1.0]], np.float32)
    arrays = {
        "W_enc": product, "scale": np.full(6, 2.0, np.float32), "offset": np.array([0, -3, 3, 0, 0, -2], np.float32),
        "bias": np.array([-0.5, -0.5, 0.5, 0.5, -0.5, -0.5], np.float32),
    }  # fmt: skip
    gate, right = gate_of("gated", 0, arrays)
    encoded = summary(encode(arrays, gate, np.ones((1, 1), np.float32), 5).encodings[0])
    assert encoded == exact(arrays, right, np.ones(1, np.float32), 5)
    assert encoded["top"] == [(0, 2.0)] and encoded["gate_ties"] == [4, 5] and encoded["n_active_bounds"] == (1, 3)


def test_records() -> None:
    level = np.ones(3, np.float32)
    gates = [Threshold(), Threshold(level), Gated(level), Largest(4), Largest(4, relu=False), Largest(4, magnitude=True), Largest(4, grouped=True)]
    assert [gate.record for gate in gates] == [
        {"kind": "relu"}, {"kind": "jumprelu"}, {"kind": "gated"}, {"kind": "topk", "k": 4, "relu": True}, {"kind": "topk", "k": 4, "relu": False},
        {"kind": "abstopk", "k": 4}, {"kind": "groupmax", "k": 4},
    ]  # fmt: skip


# --- exp --------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-110, 95, width=32), min_size=1, max_size=40))
def test_exp_is_rounded_correctly(values: list[float]) -> None:
    context = decimal.Context(prec=80)
    with np.errstate(over="ignore"):
        for value, result in zip(values, exp_float32(np.array(values, np.float32)).tolist()):
            right = context.exp(decimal.Decimal(value))
            if result == np.inf:
                assert right > decimal.Decimal(float(np.finfo(np.float32).max))
                continue
            near = np.float32(result)
            for other in (np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))):
                if np.isfinite(other):
                    assert abs(decimal.Decimal(result) - right) <= abs(decimal.Decimal(float(other)) - right)


def test_exp_where_float64_leaves_it_open() -> None:
    """Of all float32 in [1, 2) those whose exponentials lie nearest to the middle of two float32."""
    values = (np.float32(1) + np.arange(0, 1 << 23, 31, dtype=np.float64) * 2.0**-23).astype(np.float32)
    wide = np.exp(values.astype(np.float64))
    spacing = np.spacing(wide.astype(np.float32)).astype(np.float64)
    from_middle = np.abs(np.abs(wide - wide.astype(np.float32)) / spacing - 0.5)
    hardest = values[np.argsort(from_middle)[:200]]
    context = decimal.Context(prec=80)
    for value, result in zip(hardest.tolist(), exp_float32(hardest).tolist()):
        right = context.exp(decimal.Decimal(value))
        near = np.float32(result)
        others = (np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf)))
        assert all(abs(decimal.Decimal(result) - right) < abs(decimal.Decimal(float(other)) - right) for other in others)
