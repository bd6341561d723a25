# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mistakes that inputs and gates bring: each planted in a float32 port of the tests' own, and named first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.peers.files import Arrays, lay_out
from tests.support.process import run
from tests.support.worlds import to_safetensors

D_MODEL, N_FEATURES, LAYERS, REPO = 48, 256, (0, 1, 2), "someone/saes"
FOLDER = "blocks.{layer}.hook_resid_post"
Encode = Callable[["Port", Arrays, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Port:
    """How a port encodes, its mistakes as fields: float32 all the way."""

    gate: str = "topk"
    k: int = 12
    relu: bool = True
    selects: bool = True
    has_gate: bool = True
    has_sign: bool = True
    by_norm: bool = False
    input: str = "none"
    times: int = 1  # that the input is normalised
    b_dec: int = 1  # times that it is subtracted
    b_enc: int = 1
    decodes_norms: bool = True
    restores: bool = True


def normalised(port: Port, residual: np.ndarray) -> np.ndarray:
    x = residual
    for _ in range(port.times):
        if port.input == "constant_norm_rescale":
            x = x * np.float32(np.sqrt(D_MODEL)) / np.linalg.norm(x)
        elif port.input == "layer_norm":
            x = (x - x.mean()) / (x.std(ddof=1) + np.float32(1e-5))
        elif port.input == "expected_average_only_in":
            x = x * np.float32(1.5)
    return x.astype(np.float32)


def encode(port: Port, arrays: Arrays, residual: np.ndarray) -> np.ndarray:
    """float32 [n_features]."""
    x = normalised(port, residual) - np.float32(port.b_dec) * arrays["b_dec"]
    product = x @ arrays["W_enc"]
    if port.gate == "gated":
        value = np.maximum(np.exp(arrays["r_mag"]) * product + arrays["b_mag"], 0)
        return np.where((product + port.b_enc * arrays["b_gate"] > 0) | (not port.has_gate), value, 0)
    pre = product + np.float32(port.b_enc) * arrays["b_enc"]
    if port.by_norm:
        pre = pre * np.linalg.norm(arrays["W_dec"], axis=1)
    if port.gate == "standard" or not port.selects:
        return np.maximum(pre, 0)
    measure = np.abs(pre) if port.gate == "abstopk" else np.maximum(pre, 0) if port.relu else pre
    kept = np.argsort(-measure, kind="stable")[: port.k]
    activations = np.zeros_like(pre)
    activations[kept] = np.maximum(pre, 0)[kept] if port.gate == "topk" and port.relu else pre[kept] if port.has_sign else measure[kept]
    return activations


def decode(port: Port, arrays: Arrays, activations: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """float64 [d_model]."""
    if port.by_norm and port.decodes_norms:
        activations = activations / np.linalg.norm(arrays["W_dec"], axis=1)
    output = activations.astype(np.float64) @ arrays["W_dec"] + arrays["b_dec"]
    if not port.restores:
        return output
    if port.input == "constant_norm_rescale":
        return output * np.linalg.norm(residual) / np.sqrt(D_MODEL)
    if port.input == "layer_norm":
        return output * residual.std(ddof=1) + residual.mean()
    return output / 1.5 if port.input == "expected_average_only_in" else output


def weights(layer: int, gate: str) -> Arrays:
    rng = np.random.default_rng(layer)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    arrays = {
        "W_enc": normal(D_MODEL, N_FEATURES, scale=D_MODEL**-0.5), "W_dec": normal(N_FEATURES, D_MODEL, scale=0.2), "b_dec": normal(D_MODEL, scale=0.4),
    }  # fmt: skip
    if gate == "gated":
        return arrays | {"b_gate": normal(N_FEATURES, scale=0.4), "r_mag": normal(N_FEATURES, scale=0.3), "b_mag": normal(N_FEATURES, scale=0.3) + 0.5}
    return arrays | {"b_enc": normal(N_FEATURES, scale=0.3)}


@dataclass(frozen=True)
class World:
    """Three layers that a right `port` encodes, in a cache, and their reference."""

    port: Port
    folder: Path
    layers: dict[int, Arrays]

    @property
    def origin(self) -> tuple[str, ...]:
        return ("--offline", "--cache-dir", str(self.folder / "hub"))

    def explained(self, mistaken: Port, *, decodes: bool = False) -> dict[str, Any]:
        """What compare says of a port's answers, as JSON."""
        reference = json.loads((self.folder / "reference.json").read_text())
        cases = []
        for case in reference["test_cases"]:
            residual, arrays = np.array(case["residual"], np.float32), self.layers[case["layer"]]
            activations = encode(mistaken, arrays, residual)
            order = [j for j in np.lexsort((np.arange(N_FEATURES), -activations)) if activations[j] != 0][:10]
            answer = {
                "layer": case["layer"], "seed": case["seed"], "n_active": int(np.count_nonzero(activations)),
                "top_10": [{"index": int(j), "activation": float(activations[j])} for j in order],
            }  # fmt: skip
            if decodes:
                output = decode(mistaken, arrays, activations, residual)
                answer["reconstructions"] = [
                    {
                        "target_layer": case["layer"], "norm": float(np.linalg.norm(output)), "sum": float(output.sum()),
                        "sum_of_squares": float(output @ output), "first_10": output[:10].tolist(),
                    }
                ]  # fmt: skip
            cases.append(answer)
        (self.folder / "candidate.json").write_text(json.dumps({"test_cases": cases}))
        files = (str(self.folder / "reference.json"), str(self.folder / "candidate.json"))
        ran = run("compare", *files, "--explain", "--format", "json", *self.origin)
        assert ran.returncode in (0, 1), ran.stderr
        document: dict[str, Any] = json.loads(ran.stdout)
        return document


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Port], World]:
    @cache
    def world(port: Port) -> World:
        folder = tmp_path_factory.mktemp("world")
        config = {
            "architecture": port.gate, "normalize_activations": port.input, "apply_b_dec_to_input": port.b_dec == 1,
            "rescale_acts_by_decoder_norm": port.by_norm, "metadata": {"sae_lens_version": "6.5.0"}, **({"k": port.k} if "topk" in port.gate else {}),
        }  # fmt: skip
        layers = {layer: weights(layer, port.gate) for layer in LAYERS}
        files = {}
        for layer, arrays in layers.items():
            files[f"{FOLDER.format(layer=layer)}/sae_weights.safetensors"] = to_safetensors(arrays)
            files[f"{FOLDER.format(layer=layer)}/cfg.json"] = json.dumps(config).encode()
        lay_out(folder / "hub", {REPO: files})
        of = World(port, folder, layers)
        paths = [part for layer in LAYERS for part in ("--path", FOLDER.format(layer=layer))]
        scale = ("--input-scale", "1.5") if port.input == "expected_average_only_in" else ()
        ran = run("generate", "--repo", REPO, *paths, *scale, "--decode", "-o", str(folder / "reference.json"), *of.origin)
        assert ran.returncode == 0, ran.stderr
        return of

    return world


TOPK, ABSTOPK, STANDARD, GATED = (Port(gate) for gate in ("topk", "abstopk", "standard", "gated"))
BY_NORM, PLAIN = Port(by_norm=True), Port("standard", b_dec=0)
NORMS = {kind: Port("standard", input=kind) for kind in ("constant_norm_rescale", "layer_norm", "expected_average_only_in")}
SCALED = NORMS["expected_average_only_in"]


def but(port: Port, **changed: Any) -> Port:
    return Port(**{**vars(port), **changed})


PLANTED = [
    (TOPK, but(TOPK, k=20), "k of 20"),
    (TOPK, but(TOPK, k=7), "k of 7"),
    (TOPK, but(TOPK, selects=False), "top k left out"),
    (TOPK, but(TOPK, b_dec=0), "b_dec not subtracted"),
    (TOPK, but(TOPK, b_dec=2), "b_dec subtracted twice"),
    (TOPK, but(TOPK, b_enc=0), "b_enc left out"),
    (TOPK, but(TOPK, b_enc=0, k=20), "b_enc left out and k of 20"),
    (ABSTOPK, but(ABSTOPK, gate="topk", relu=True), "top k by value"),
    (ABSTOPK, but(ABSTOPK, k=30), "k of 30"),
    (ABSTOPK, but(ABSTOPK, has_sign=False), "|pre|"),
    (PLAIN, but(PLAIN, b_dec=1), "b_dec subtracted"),
    (STANDARD, but(STANDARD, b_dec=0), "b_dec not subtracted"),
    (GATED, but(GATED, has_gate=False), "gate left out"),
    (GATED, but(GATED, b_enc=0), "b_enc left out"),
    (BY_NORM, but(BY_NORM, by_norm=False), "decoder norms left out"),
    *((port, but(port, times=0), "input not normalised") for port in NORMS.values()),
    (SCALED, but(SCALED, times=2), "input scaled twice"),
]
PLANTED_IN_DECODERS = [
    (BY_NORM, but(BY_NORM, decodes_norms=False), "not divided by the norms"),
    *((port, but(port, restores=False), "output not scaled back") for port in NORMS.values()),
]


@pytest.mark.parametrize("port", list(dict.fromkeys(right for right, *_ in PLANTED)), ids=str)
def test_right_ports_agree(world_of: Callable[[Port], World], port: Port) -> None:
    for decodes in (False, True):
        assert world_of(port).explained(port, decodes=decodes)["agrees"]


@pytest.mark.parametrize(("right", "mistaken", "name"), PLANTED, ids=[f"{right.gate} {right.input}: {name}" for right, _, name in PLANTED])
def test_a_mistake_is_named_first(world_of: Callable[[Port], World], right: Port, mistaken: Port, name: str) -> None:
    document = world_of(right).explained(mistaken)
    assert not document["agrees"]
    assert document["explanation"]["named"][0]["name"] == name, document["explanation"]


@pytest.mark.parametrize(("right", "mistaken", "name"), PLANTED_IN_DECODERS, ids=[f"{right.input}: {name}" for right, _, name in PLANTED_IN_DECODERS])
def test_a_decoder_s_mistake_is_named_first(world_of: Callable[[Port], World], right: Port, mistaken: Port, name: str) -> None:
    document = world_of(right).explained(mistaken, decodes=True)
    assert document["explanation"]["named"][0]["name"] == name, document["explanation"]
