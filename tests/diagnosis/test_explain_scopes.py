# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mistakes that need a format of their own: a threshold's logarithm, and a top k of which negative values are part or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oracle.arithmetic.residual import residual
from tests.support import chains, scopes
from tests.support.chains import Arrays, Chain
from tests.support.process import run

# Of each mistake a variant, its number of features, the chain that a port has instead, and what it takes for the threshold.
PLANTED = {
    "log of the threshold": ("llama scope r1", 100, {"gate": "jumprelu of all"}, lambda stored: np.log(stored["threshold"])),
    "ReLU before the top k": ("bundle topk", 10, {"gate": "topk"}, None),
    "no ReLU before the top k": ("qwen", 10, {"gate": "topk of all"}, None),
}


def answers(chain: Chain, weights: dict[int, Arrays], cases: list[tuple[int, int]]) -> dict[str, object]:
    rows = []
    for layer, seed in cases:
        own = weights[layer]
        x, *_ = chains.encoder_input(chain, own, residual(seed, layer, own["w_enc"].shape[1]))
        acts = chains.activations(chain, own, x)
        order = sorted(np.flatnonzero(acts).tolist(), key=lambda j: (-acts[j], j))
        top = [{"index": j, "activation": float(np.float32(acts[j]))} for j in order[:10]]
        rows.append({"layer": layer, "seed": seed, "n_active": len(order), "top_10": top})
    return {"test_cases": rows}


@pytest.mark.parametrize("name", PLANTED)
def test_named_first(name: str, tmp_path: Path) -> None:
    variant, n_features, changes, threshold = PLANTED[name]
    scope = scopes.make(variant, n_features=n_features)
    source = ("--mirror", scope.lay_out(tmp_path / "tree"))
    reference, port = tmp_path / "reference.json", tmp_path / "port.json"
    assert run(*scope.arguments, *source, "--seeds", "6", "-o", str(reference)).returncode == 0
    cases = [(case["layer"], case["seed"]) for case in json.loads(reference.read_text())["test_cases"]]
    port.write_text(json.dumps(answers(scope.chain, scope.weights, cases)))
    assert run("compare", str(reference), str(port)).returncode == 0
    weights = {layer: {**own, **({"threshold": threshold(own)} if threshold else {})} for layer, own in scope.weights.items()}
    port.write_text(json.dumps(answers(replace(scope.chain, **changes), weights, cases)))
    ran = run("compare", str(reference), str(port), "--explain", "--format", "json", *source)
    assert ran.returncode == 1 and [fit["name"] for fit in json.loads(ran.stdout)["explanation"]["named"]] == [name], ran.stdout[-900:]
