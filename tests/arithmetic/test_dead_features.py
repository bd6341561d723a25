# SPDX-License-Identifier: MIT OR Apache-2.0
"""Features that are zero, or equal bit for bit: right, and settled once for all of them."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from oracle.arithmetic import encoder, numbers
from oracle.arithmetic.chain import Gate, Largest, Threshold
from oracle.arithmetic.encoder import Encoder, Encoding
from oracle.arithmetic.products import Matrix
from tests.bench.rounds import in_turn
from tests.support import worlds
from tests.support.process import variables

GATES: dict[str, Gate] = {
    "relu": Threshold(), "topk": Largest(50), "topk of all": Largest(50, relu=False), "abstopk": Largest(50, magnitude=True), "groupmax": Largest(8, grouped=True),
}  # fmt: skip


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each exact sum of products."""
    counted: list[int] = []
    exact = numbers.exact_product

    def counting(column: np.ndarray, values: np.ndarray) -> object:
        counted.append(len(values))
        return exact(column, values)

    monkeypatch.setattr(numbers, "exact_product", counting)
    return counted


def encode(w_enc: np.ndarray, b_enc: np.ndarray, gate: Gate, residuals: np.ndarray, features_first: bool, k: int = 10) -> list[Encoding]:
    lying = np.ascontiguousarray(w_enc.T) if features_first else w_enc
    rows = max(8, (1 << 18) // lying.shape[1])
    matrix = Matrix(lambda: (lying[start : start + rows] for start in range(0, len(lying), rows)), features_first)
    return encoder.encode(Encoder(matrix, b_enc.astype(np.float64), gate), residuals, k=k, tolerance=1e-4, with_active=True).encodings


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_half_of_16384_are_zero(name: str, features_first: bool, sums: list[int]) -> None:
    """The others fire as they do alone, with the dead ones at their places; about as much is settled."""
    n, n_dead = 16384, 8247
    w_enc, b_enc, residuals = normal(0, 64, n), normal(1, n), normal(2, 3, 64)
    dead = np.random.default_rng(3).permutation(n)[:n_dead]
    w_enc[:, dead], b_enc[dead] = 0, 0
    encodings = encode(w_enc, b_enc, GATES[name], residuals, features_first)
    n_sums = len(sums)
    if name == "groupmax":  # groups change where features go
        assert n_sums < 60
        return
    living = np.setdiff1d(np.arange(n), dead)
    alone = encode(w_enc[:, living], b_enc[living], GATES[name], residuals, features_first)
    assert n_sums - (len(sums) - n_sums) < 60
    for encoding, right in zip(encodings, alone):
        assert encoding.n_active == right.n_active and encoding.top == [(int(living[j]), value) for j, value in right.top]
        ties = set(living[right.gate_ties].tolist()) | (set(dead.tolist()) if name == "relu" else set())
        assert set(encoding.gate_ties) == ties and encoding.rank_margin == right.rank_margin


@pytest.mark.parametrize("features_first", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", GATES)
def test_many_equal_features(name: str, features_first: bool, sums: list[int]) -> None:
    """The first of them are the largest; one exact sum a residual is enough for all."""
    n = 40_000
    w_enc, b_enc, residuals = np.repeat(normal(0, 16, 1), n, axis=1), np.full(n, 9.0, np.float32), normal(2, 3, 16)
    places = np.arange(10) * (n // 8 if name == "groupmax" else 1)
    for encoding in encode(w_enc, b_enc, GATES[name], residuals, features_first):
        values = {value for _, value in encoding.top}
        assert [j for j, _ in encoding.top] == places[places < n].tolist() and len(values) == 1 and encoding.rank_margin == 0.0
        assert encoding.n_active == {"relu": n, "groupmax": 8}.get(name, 50)
        assert len(encoding.gate_ties) == (0 if name == "relu" else n) and "rank-tie" in encoding.flags
    assert len(sums) <= 12


@pytest.mark.parametrize("name", GATES)
def test_nothing_but_zeros(name: str, sums: list[int]) -> None:
    n = 100_000
    for encoding in encode(np.zeros((2, n), np.float32), np.zeros(n, np.float32), GATES[name], normal(2, 2, 2), False):
        assert (encoding.n_active, encoding.top, encoding.gate_margin) == (0, [], 0.0) and encoding.flags == ["gate-tie", "no-active-features"]
        assert encoding.n_active_bounds == (0, {"relu": n, "groupmax": 8}.get(name, 50)) and len(encoding.gate_ties) == n
    assert not sums


def test_equal_columns_that_are_not_equal() -> None:
    """One bit in one of them: it is the largest, or the smallest, by 2^-60, and nobody takes it for the others."""
    n = 1000
    w_enc = np.repeat(np.array([[1.0], [2.0**-40], [0.0]], np.float32), n, axis=1)
    for sign in (1, -1):
        w_enc[2, 700] = sign * 2.0**-60
        for features_first in (False, True):
            for gate in (Threshold(), Largest(3)):
                [encoding] = encode(w_enc, np.zeros(n, np.float32), gate, np.ones((1, 3), np.float32), features_first, k=3)
                assert [j for j, _ in encoding.top] == ([700, 0, 1] if sign > 0 else [0, 1, 2])


@pytest.mark.slow
def test_four_million_zeros() -> None:
    n = 4_000_000
    for name in ("relu", "topk"):
        [encoding] = encode(np.zeros((4, n), np.float32), np.zeros(n, np.float32), GATES[name], normal(2, 1, 4), False)
        assert encoding.n_active == 0 and encoding.gate_ties is None and "gate-tie" in encoding.flags  # more than are named


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_half_of_16384_cost_no_more_than_a_fifth(tmp_path: Path, kind: str) -> None:
    """Whole processes in turn, 3 seeds: the median of the ratios of neighbours."""
    n, d_model = 16384, 1024
    config = "model_kind: transcoder_set\n" + ("activation: topk\nk: 64\n" if kind == "topk" else "")
    jobs = {}
    for name in ("dead", "living"):
        arrays = {"W_enc": normal(0, n, d_model), "b_enc": normal(1, n), "W_dec": normal(2, n, d_model), "b_dec": normal(3, d_model)}
        if name == "dead":
            dead = np.random.default_rng(3).permutation(n)[:8247]
            arrays["W_enc"][dead], arrays["b_enc"][dead] = 0, 0
        place = tmp_path / name / "org/x/resolve/main"
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(config)
        (place / "layer_0.safetensors").write_bytes(worlds.to_safetensors(arrays))
        options = ["--mirror", str(tmp_path / name), "--repo", "org/x", "--layers", "0", "--seeds", "3", "-o", str(tmp_path / f"{name}.json"), "--quiet"]
        jobs[name] = [sys.executable, "-m", "oracle", *options]
    figures = in_turn(jobs, variables({"OPENBLAS_NUM_THREADS": "1"}), str(tmp_path), 9)
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(figures["dead"], figures["living"]))
    print(f"{kind}: {ratio:.3f} times")
    assert ratio <= 1.2 and json.loads((tmp_path / "dead.json").read_text())["n_features_per_layer"] == n
