# SPDX-License-Identifier: MIT OR Apache-2.0
"""What must hold of encodings and references, whatever the weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic import encoder
from oracle.arithmetic.chain import Threshold
from oracle.arithmetic.encoder import Encoder, Encoding, LayerEncoding
from oracle.arithmetic.products import Matrix
from oracle.job import Job, Origin
from oracle.library import compare
from oracle.library import generate as generate_documents
from tests.support.cases import TOLERANCE, a_case, compare_case
from tests.support.planting import make_cache, make_weights
from tests.support.small_scope import CURATION_REPO

SEED = st.integers(0, 2**32)
D_MODEL, N_FEATURES, K = st.integers(1, 40), st.integers(1, 120), st.integers(1, 15)


def arrays(seed: int, d_model: int, n_features: int, n_seeds: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        array.astype(np.float32)
        for array in (
            rng.standard_normal((d_model, n_features)),
            rng.standard_normal(n_features),
            rng.uniform(0, 3, n_features),
            rng.standard_normal((n_seeds, d_model)),
        )
    )


def encode(w_enc: np.ndarray, b_enc: np.ndarray, gate: np.ndarray, residuals: np.ndarray, k: int = 10) -> LayerEncoding:
    matrix = Matrix(lambda: (w_enc[row : row + 7].copy() for row in range(0, len(w_enc), 7)), features_first=False)
    return encoder.encode(Encoder(matrix, b_enc.astype(np.float64), Threshold(gate)), residuals, k=k, tolerance=TOLERANCE)


def apart_from_the_list(encoding: Encoding) -> tuple[Any, ...]:
    return encoding.n_active, encoding.n_active_bounds, encoding.rank_margin, encoding.gate_margin, encoding.flags


@settings(deadline=None, max_examples=60)
@given(SEED, D_MODEL, N_FEATURES, K)
def test_permuting_the_features_permutes_the_answer(seed: int, d_model: int, n_features: int, k: int) -> None:
    w_enc, b_enc, gate, residuals = arrays(seed, d_model, n_features)
    order = np.random.default_rng(seed + 1).permutation(n_features)  # feature j of the new is order[j] of the old
    before = encode(w_enc, b_enc, gate, residuals, k).encodings
    after = encode(w_enc[:, order], b_enc[order], gate[order], residuals, k).encodings
    for old, new in zip(before, after):
        assert apart_from_the_list(old) == apart_from_the_list(new)
        assert old.gate_ties == sorted(int(order[index]) for index in new.gate_ties)
        assert [value for _, value in old.top] == [value for _, value in new.top]
        assert sorted(index for index, _ in old.top) == sorted(int(order[index]) for index, _ in new.top)


@settings(deadline=None, max_examples=60)
@given(SEED, D_MODEL, N_FEATURES, st.integers(-12, 12))
def test_a_power_of_two_scales_exactly(seed: int, d_model: int, n_features: int, power: int) -> None:
    w_enc, b_enc, gate, residuals = arrays(seed, d_model, n_features)
    scale = np.float32(2.0**power)
    nothing = np.zeros_like(b_enc)
    # pre - b_enc: with no bias and no gate the recorded values are it
    before = encode(w_enc, nothing, nothing, residuals, n_features).encodings
    after = encode(w_enc, nothing, nothing, residuals * scale, n_features).encodings
    for old, new in zip(before, after):
        assert [(index, value * float(scale)) for index, value in old.top] == new.top
        assert old.n_active == new.n_active
    # and with the bias and the gate scaled along, the whole answer is
    before = encode(w_enc, b_enc, gate, residuals, n_features).encodings
    after = encode(w_enc, b_enc * scale, gate * scale, residuals * scale, n_features).encodings
    for old, new in zip(before, after):
        assert [(index, value * float(scale)) for index, value in old.top] == new.top and old.n_active == new.n_active


@settings(deadline=None, max_examples=60)
@given(SEED, D_MODEL, N_FEATURES, K, st.data())
def test_a_feature_that_cannot_fire_changes_nothing(
    seed: int, d_model: int, n_features: int, k: int, data: st.DataObject
) -> None:
    w_enc, b_enc, gate, residuals = arrays(seed, d_model, n_features)
    place = data.draw(st.integers(0, n_features))
    before = encode(w_enc, b_enc, gate, residuals, k).encodings
    added = encode(
        np.insert(w_enc, place, 1, axis=1),
        np.insert(b_enc, place, 0),
        np.insert(gate, place, 1e6).astype(np.float32),
        residuals,
        k,
    ).encodings
    for old, new in zip(before, added):
        assert apart_from_the_list(old) == apart_from_the_list(new)
        assert [(index + (index >= place), value) for index, value in old.top] == new.top


def test_layers_and_seeds_are_independent() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder), make_weights(3, 24, 96))

        def generate(layers: tuple[int, ...], seeds: int = 2) -> dict[str, Any]:
            origin = Origin(CURATION_REPO, cache_dir=cache, offline=True)
            return generate_documents([Job(origin, layers=layers, seeds=seeds)])[0]

        def known(document: dict[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
            return {(case["layer"], case["seed"]): case for case in document["test_cases"]}

        alone = {layer: generate((layer,)) for layer in range(4)}
        for first in range(4):
            for second in range(first + 1, 4):
                both = generate((first, second))
                assert known(both) == known(alone[first]) | known(alone[second])
                assert both["layers"] == alone[first]["layers"] + alone[second]["layers"]
        few, many = generate((0, 2), 2), generate((0, 2), 5)
        assert known(many).items() >= known(few).items() and len(known(many)) == 10
        # so a candidate for many seeds agrees with the reference of few, and not the other way round
        assert compare(few, many).agrees and not compare(many, few).agrees


@settings(deadline=None, max_examples=40)
@given(SEED, st.integers(1, 200), st.integers(1, 60))
def test_any_order_of_float32_sums_agrees_with_the_reference(seed: int, d_model: int, n_features: int) -> None:
    w_enc, b_enc, gate, residuals = arrays(seed, d_model, n_features)
    rng = np.random.default_rng(seed + 2)
    encodings = encode(w_enc, b_enc, gate, residuals).encodings
    for r, right in zip(residuals, encodings):
        bounds = {"n_active_bounds": right.n_active_bounds, "gate_ties": tuple(right.gate_ties), "flags": tuple(right.flags), **right.sums._asdict()}
        case = a_case(right.top, right.n_active, **bounds)
        for order in (np.arange(d_model), np.arange(d_model)[::-1], rng.permutation(d_model)):
            pre = np.zeros(n_features, np.float32)
            for row in order:
                pre += r[row] * w_enc[row]
            pre += b_enc
            active = [int(j) for j in np.argsort(-pre, kind="stable") if pre[j] > gate[j]]
            values = pre[active].astype(np.float64)
            sums = {"activation_sum": float(values.sum()), "activation_sum_of_squares": float((values**2).sum())}
            answer = a_case(list(zip(active, values.tolist()))[:10], len(active), **sums)
            assert compare_case(case, answer, n_features, k=10).agrees
