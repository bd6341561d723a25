# SPDX-License-Identifier: MIT OR Apache-2.0
"""verify, compare and --explain on full-shape weights: no false alarm, and the bars of time and memory. Slow."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.arithmetic.residual import residual
from oracle.library import compare
from tests.bench import full_shape as bench
from tests.support import rust
from tests.support.planting import bf16
from tests.support.process import oracle, python

pytestmark = [pytest.mark.slow, pytest.mark.alone]

MOST_TIMES_GENERATE = 4
MOST_MEBIBYTES = 100
ROUNDS = 5
COLUMNS = 512
LAYERS = (0, 12, 25)


@pytest.fixture(scope="module")
def cache() -> Path:
    """The weights that the bench makes."""
    return bench.weights_in(bench.FOLDER)


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    return {"HF_HUB_CACHE": str(cache.parent.parent.parent), "HF_HUB_OFFLINE": "1"}


def layer_of(cache: Path, layer: int) -> dict[str, np.ndarray]:
    with np.load(cache / bench.path_of(layer)) as file:
        return {name: file[name] for name in ("W_enc", "b_enc", "b_dec", "threshold")}


def forwards(r: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [n_seeds, columns]: one product after the other."""
    pre = np.zeros((len(r), w.shape[1]), np.float32)
    for row in range(len(w)):
        pre += r[:, row, None] * w[row]
    return pre


def backwards(r: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return forwards(r[:, ::-1], w[::-1], rng)


def pairwise(r: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    made = []
    for one in r:
        terms = one[:, None] * w
        while len(terms) > 1:
            half = len(terms) // 2
            rest = terms[2 * half :]
            terms = terms[:half] + terms[half : 2 * half]
            if len(rest):
                terms[-1] += rest[0]
        made.append(terms[0])
    return np.stack(made)


def block_order(r: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    starts = np.arange(0, len(w), 48)
    rng.shuffle(starts)
    pre = np.zeros((len(r), w.shape[1]), np.float32)
    for start in starts:
        pre += r[:, start : start + 48] @ w[start : start + 48]
    return pre


def answers(layer: int, seeds: list[int], pre: np.ndarray, threshold: np.ndarray) -> list[dict[str, Any]]:
    cases = []
    for seed, values in zip(seeds, pre):
        active = np.flatnonzero(values > np.maximum(threshold, 0))
        top = active[np.argsort(-values[active], kind="stable")[:10]]
        entries = [{"index": int(j), "activation": float(values[j])} for j in top]
        cases.append({"layer": layer, "seed": seed, "n_active": len(active), "top_10": entries})
    return cases


def test_float32_ports_raise_no_alarm_over_100_seeds(cache: Path, environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    assert oracle("--seeds", "100", "--omit-residuals", "-o", str(path), environment=environment).returncode == 0
    reference = json.loads(path.read_text())
    encoders: list[Callable[..., np.ndarray]] = [forwards, backwards, pairwise, block_order]
    candidates: dict[str, list[dict[str, Any]]] = {encoder.__name__: [] for encoder in encoders}
    rng = np.random.default_rng(1)
    for layer in LAYERS:
        weights = layer_of(cache, layer)
        seeds = [100 * i + layer for i in range(100)]
        residuals = np.stack([residual(seed, layer, bench.D_MODEL) for seed in seeds])
        for encoder in encoders:
            pre = np.empty((100, bench.N_FEATURES), np.float32)
            for start in range(0, bench.N_FEATURES, COLUMNS):
                columns = np.ascontiguousarray(weights["W_enc"][:, start : start + COLUMNS])
                pre[:, start : start + COLUMNS] = encoder(residuals, columns, rng)
            pre += weights["b_enc"]
            candidates[encoder.__name__] += answers(layer, seeds, pre, weights["threshold"])
    flagged = [case["seed"] for case in reference["test_cases"] if case["flags"]]
    print(f"{len(reference['test_cases'])} cases, of which {len(flagged)} have a tie")
    assert len(flagged) > 10  # or the rules for ties have not been tried
    for name, cases in candidates.items():
        verdict = compare(reference, {"test_cases": cases})
        assert verdict.worst is not None
        reordered = sum(any("tie stand" in note for note in case.notes) for case in verdict.cases)
        print(f"{name:12} largest difference {verdict.worst.max_difference:.3g}, {reordered} cases in another order")
        assert verdict.agrees, [case for case in verdict.cases if not case.agrees][:3]


Change = Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]


def planted(cache: Path, change: Change, relu: bool = False, where: tuple[int, ...] = LAYERS) -> list[dict[str, Any]]:
    """Three seeds of each layer, encoded with what `change(residuals, weights)` makes of the products; right in the layers elsewhere."""
    cases = []
    for layer in LAYERS:
        weights = layer_of(cache, layer)
        seeds = [100 * i + layer for i in range(3)]
        residuals = np.stack([residual(seed, layer, bench.D_MODEL) for seed in seeds])
        wrong = layer in where
        pre = (change(residuals, weights) if wrong else residuals @ weights["W_enc"]) + weights["b_enc"]
        cases += answers(layer, seeds, pre, weights["threshold"] * (not (relu and wrong)))
    return cases


# name -> (what is made of residuals and weights, whether the gate is ReLU, in which layers, the names)
PLANTS: dict[str, tuple[Change, bool, tuple[int, ...], set[str]]] = {
    "relu": (lambda r, w: r @ w["W_enc"], True, LAYERS, {"relu"}),
    "bfloat16": (lambda r, w: r @ bf16(w["W_enc"]), False, LAYERS, {"weights in bfloat16"}),
    "pair": (lambda r, w: (r - w["b_dec"]) @ bf16(w["W_enc"]), False, LAYERS, {"weights in bfloat16", "b_dec subtracted"}),
    "of one layer": (lambda r, w: (r + w["b_dec"]) @ w["W_enc"], False, LAYERS[1:2], {"b_dec added"}),
    "estimated": (lambda r, w: 1.01 * (r @ w["W_enc"]), False, LAYERS, {"residual times 1.01"}),
    "nothing known": (lambda r, w: 1.01 * (r @ w["W_enc"]) + 0.5, False, LAYERS, set()),
}


# VmHWM is the process's own peak; getrusage's, after a fork, counts what the tests themselves hold.
RUN = """
import re, sys
from oracle.terminal.commands import main
code = main(sys.argv[1:])
print("peak KiB", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""


def measure(environment: dict[str, str], *arguments: str) -> tuple[float, float]:
    """Wall seconds of a whole process, and its peak in MiB."""
    began = time.perf_counter()
    ran = python("-c", RUN, *arguments, environment=environment)
    seconds = time.perf_counter() - began
    assert ran.returncode in (0, 1), ran.stderr
    return seconds, int(ran.stderr.split()[-1]) / 1024


def test_the_bars_of_explain(cache: Path, environment: dict[str, str], tmp_path: Path) -> None:
    reference = str(tmp_path / "reference.json")
    measure(environment, "generate", "-o", reference)
    jobs = {"generate": ["generate", "-o", str(tmp_path / "again.json")], "verify": ["verify", reference]}
    for name, (change, relu, where, expected) in PLANTS.items():
        candidate = tmp_path / f"{name}.json"
        candidate.write_text(json.dumps({"test_cases": planted(cache, change, relu, where)}))
        jobs[name] = ["compare", reference, str(candidate), "--explain", "--format", "json"]
        ran = oracle(*jobs[name], environment=environment)
        assert ran.returncode == 1, ran.stderr
        named = json.loads(ran.stdout)["explanation"]["named"]
        # The first: of ReLU, GELU gives the same ten largest and the same count.
        assert [set(fit["mistakes"]) for fit in named][:1] == ([expected] if expected else []), named
    # In turn, each held against the run of generate that stood beside it.
    rounds = [{name: measure(environment, *arguments) for name, arguments in jobs.items()} for _ in range(ROUNDS)]
    figures = {}
    for name in jobs:
        ratio = statistics.median(figures_of[name][0] / figures_of["generate"][0] for figures_of in rounds)
        figures[name] = ratio, max(figures_of[name][1] for figures_of in rounds)
        seconds = statistics.median(figures_of[name][0] for figures_of in rounds)
        print(f"{name:14} {seconds:.2f} s, {ratio:.1f} times generate, {figures[name][1]:.0f} MiB")
    assert all(figures[name][0] <= MOST_TIMES_GENERATE and figures[name][1] <= MOST_MEBIBYTES for name in PLANTS), figures


def test_a_port_in_rust_at_full_shape(cache: Path, environment: dict[str, str], tmp_path: Path) -> None:
    consumer = rust.consumer(tmp_path)
    reference, candidate = str(tmp_path / "reference.json"), str(tmp_path / "candidate.json")
    assert oracle("-o", reference, environment=environment).returncode == 0
    for mistake, code in (("", 0), ("reshaped", 1)):
        subprocess.run(
            [consumer, reference, environment["HF_HUB_CACHE"], candidate],
            check=True,
            env={**os.environ, "MISTAKE": mistake},
        )
        ran = oracle("compare", reference, candidate, "--explain", environment=environment)
        assert ran.returncode == code and ("W_enc reshaped" in ran.stdout) == bool(mistake), ran.stdout
