# SPDX-License-Identifier: MIT OR Apache-2.0
"""References held against encoders of the tests' own, and against each other."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from oracle.arithmetic.residual import residual
from tests.support import worlds

Document = dict[str, Any]

DESIGN_FINGERPRINTS = {
    (0, 0): "0xe388372113f21ef1", (100, 0): "0x0e6748ea24ecf161",
    (12, 12): "0x7d7124b5a1eb3f6c", (125, 25): "0xb0ee66e58081d676",
}

SHAPES = st.fixed_dictionaries(
    {
        "schema": st.sampled_from(worlds.SCHEMAS), "seed": st.integers(0, 10**6), "n_layers": st.integers(1, 4),
        "d_model": st.integers(1, 70), "n_features": st.integers(1, 300),
        "dtype": st.sampled_from(["float32", "float16", "bfloat16"]), "threshold": st.booleans(), "skip": st.booleans(),
    }
)


def own_encoding(world: worlds.World, layer: int, seed: int, k: int = 10) -> Document:
    """A case by plain float64, from the file as the format's own package reads it."""
    weights = worlds.read_weights(world, layer)
    pre, active = worlds.encode(weights, residual(seed, layer, weights["w_enc"].shape[1]))
    order = sorted(np.flatnonzero(active).tolist(), key=lambda j: (-pre[j], j))
    top = [{"index": j, "activation": float(np.float32(pre[j]))} for j in order[:k]]
    return {"layer": layer, "seed": seed, "n_active": len(order), f"top_{k}": top}


def check(document: Document, world: worlds.World, layers: list[int], n_seeds: int = 3, k: int = 10) -> None:
    """Every case is what the tests' own encoder gives: the same indices, values within 1e-6, the same n_active."""
    found = [(case["layer"], case["seed"]) for case in document["test_cases"]]
    assert found == [(layer, 100 * i + layer) for layer in layers for i in range(n_seeds)]
    for case in document["test_cases"]:
        own = own_encoding(world, case["layer"], case["seed"], k)
        assert case["n_active"] == own["n_active"]
        assert [top["index"] for top in case[f"top_{k}"]] == [top["index"] for top in own[f"top_{k}"]]
        for top, expected in zip(case[f"top_{k}"], own[f"top_{k}"]):
            assert top["activation"] == pytest.approx(expected["activation"], rel=1e-6)


def parsed(ran: subprocess.CompletedProcess[str]) -> Document:
    assert ran.returncode == 0, ran.stderr
    document: Document = json.loads(ran.stdout)
    return document


def stripped(reference: Document) -> Document:
    """The reference's own answers, as the least that a candidate is."""
    top = next(key for key in reference["test_cases"][0] if key.startswith("top_"))
    keys = ("layer", "seed", "n_active", top)
    return {"test_cases": [{key: copy.deepcopy(case[key]) for key in keys} for case in reference["test_cases"]]}


def read(path: Path) -> Document:
    document: Document = json.loads(path.read_text())
    return document


def error(ran: subprocess.CompletedProcess[str], code: int = 4) -> str:
    """The one line that a failed run says."""
    assert ran.returncode == code and len(ran.stderr.splitlines()) == 1 and ran.stderr.startswith("error: "), ran.stderr
    return ran.stderr.strip()


def same_types(old: Any, new: Any, where: str = "$") -> None:
    """What `old` holds, `new` holds in the same places and the same types."""
    assert type(old) is type(new), where
    if isinstance(old, dict):
        for key in old.keys() - {"torch_version", "platform"}:
            same_types(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, list) and old:
        same_types(old[0], new[0], f"{where}[0]")


def comparable(document: Document, *, sha256: bool = True, revisions: bool = True) -> Document:
    """Without what may differ: the environment, and what the source could not tell; without the digest, which is of that too."""
    made: Document = json.loads(json.dumps({key: value for key, value in document.items() if key not in ("environment", "digest")}))
    if not sha256:
        for layer in made["layers"]:
            layer |= {key: None for key in ("sha256", "decoder_sha256", "side_sha256") if key in layer}
    if not revisions:
        made["weights_revision"] = made["curation_revision"] = None
    return made
