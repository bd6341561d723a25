# SPDX-License-Identifier: MIT OR Apache-2.0
"""Small repos of every schema, written by the packages that write the real ones, and encoders that share no code."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

Arrays = dict[str, np.ndarray]
OWN_REPO = "org/Some-Model-3B-transcoders"
LIST_REPO = "org/curation-of-some-model"


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """What float32 values are once they have been written as `dtype`."""
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float32)


def to_safetensors(arrays: Arrays, dtype: str = "float32") -> bytes:
    """By the safetensors package."""
    written = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    content: bytes = save({name: np.ascontiguousarray(values.astype(written)) for name, values in arrays.items()})
    return content


def from_safetensors(content: bytes) -> Arrays:
    """By the safetensors package, widened to float32."""
    arrays = {}
    for name, told in safetensors.deserialize(content):
        if told["dtype"] == "BF16":
            values = np.array([bits << 16 for bits in np.frombuffer(told["data"], "<u2").tolist()], np.uint32).view(np.float32)
        else:
            values = np.frombuffer(told["data"], {"F32": "<f4", "F16": "<f2", "I64": "<i8"}[told["dtype"]]).astype(np.float32)
        arrays[name] = values.reshape(told["shape"])
    return arrays


def to_npz(arrays: Arrays, dtype: str = "float32") -> bytes:
    archive = io.BytesIO()
    np.savez(archive, **{name: values.astype(dtype) for name, values in arrays.items()})
    return archive.getvalue()


@dataclass
class World:
    """A repo of a schema: `files` by repo and path, `weights` by layer as W_enc [n_features, d_model] and so on.

    `w_dec` is [n_features, n_targets, d_model], of which all but cross-layer transcoders have one; `w_skip` maps
    residual to output as residual @ w_skip.
    """

    schema: str
    repo: str
    arguments: list[str]
    n_layers: int
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    weights: dict[int, Arrays] = field(default_factory=dict)

    def add_to(self, hub: Any) -> None:
        for repo, files in self.files.items():
            for path, content in files.items():
                hub.add(repo, path, content)

    def lay_out(self, folder: Path) -> str:
        """As a mirror in a folder, without a manifest. Returns what --mirror takes."""
        for repo, files in self.files.items():
            for path, content in files.items():
                place = folder / repo / "resolve/main" / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        return str(folder)


SCHEMAS = ("GemmaScopeNpz", "PltBundle", "CltSplit", "GemmaScope2", "Sae")


def make(
    schema: str,
    *,
    seed: int = 0,
    n_layers: int = 3,
    d_model: int = 24,
    n_features: int = 96,
    dtype: str = "float32",
    threshold: bool = True,
    skip: bool = False,
) -> World:
    """A world of random weights. GemmaScopeNpz and GemmaScope2 always have a threshold, and PltBundle and GemmaScope2 alone a W_skip."""
    rng = np.random.default_rng(seed)
    threshold = threshold or schema in ("GemmaScopeNpz", "GemmaScope2")
    skip = skip and schema in ("PltBundle", "GemmaScope2")
    world = World(schema, OWN_REPO, ["--repo", OWN_REPO], n_layers)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return rounded(rng.standard_normal(shape).astype(np.float32) * np.float32(scale), dtype)

    own: dict[str, bytes] = {}
    for layer in range(n_layers):
        n_targets = n_layers - layer if schema == "CltSplit" else 1
        weights = {
            "w_enc": normal(n_features, d_model, scale=d_model**-0.5),
            "b_enc": normal(n_features, scale=0.1),
            "w_dec": normal(n_features, n_targets, d_model, scale=n_features**-0.5),
            "b_dec": normal(d_model),
            "w_skip": normal(d_model, d_model, scale=d_model**-0.5),
            "threshold": rounded(rng.uniform(0.5, 1.2, n_features).astype(np.float32), dtype),
        }
        if not threshold:
            del weights["threshold"]
        if not skip:
            del weights["w_skip"]
        world.weights[layer] = weights
        _write(world, own, layer, weights, dtype)
    if schema in ("PltBundle", "CltSplit"):
        kind = "transcoder_set" if schema == "PltBundle" else "cross_layer_transcoder"
        own["config.yaml"] = f"model_name: org/Some-Model-3B\nmodel_kind: {kind}\n".encode()
        world.files[OWN_REPO] = own
    elif schema == "Sae":
        world.files[OWN_REPO] = own
        for path in own:
            world.arguments += ["--path", path]
    else:
        entries = "".join(f"  - hf://{OWN_REPO}/{path}\n" for path in own)
        world.files = {LIST_REPO: {"config.yaml": f"model_kind: transcoder_set\ntranscoders:\n{entries}".encode()}, OWN_REPO: own}
        world.repo, world.arguments = LIST_REPO, ["--repo", LIST_REPO]
    return world


def _write(world: World, files: dict[str, bytes], layer: int, weights: Arrays, dtype: str) -> None:
    """One layer's files, its tensors named and laid out as the schema has it."""
    by_input, w_dec = weights["w_enc"].T.copy(), weights["w_dec"][:, 0].copy()
    biases = {"b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    if world.schema in ("GemmaScopeNpz", "Sae"):
        arrays = {"W_enc": by_input, "W_dec": w_dec, **biases}
        arrays |= {"threshold": weights["threshold"]} if "threshold" in weights else {}
        files[f"layer_{layer}/width_16k/average_l0_{layer + 5}/params.npz"] = to_npz(
            arrays, "float16" if dtype == "float16" else "float32"
        )
    elif world.schema == "PltBundle":
        arrays = {"W_enc": weights["w_enc"], "W_dec": w_dec, **biases}
        arrays |= {"W_skip": weights["w_skip"].T.copy()} if "w_skip" in weights else {}
        arrays |= {"activation_function.threshold": weights["threshold"]} if "threshold" in weights else {}
        files[f"layer_{layer}.safetensors"] = to_safetensors(arrays, dtype)
    elif world.schema == "CltSplit":
        arrays = {f"W_enc_{layer}": weights["w_enc"], **{f"{name}_{layer}": values for name, values in biases.items()}}
        arrays |= {f"threshold_{layer}": weights["threshold"]} if "threshold" in weights else {}
        files[f"W_enc_{layer}.safetensors"] = to_safetensors(arrays, dtype)
        files[f"W_dec_{layer}.safetensors"] = to_safetensors({f"W_dec_{layer}": weights["w_dec"]}, dtype)
    else:
        arrays = {"w_enc": by_input, "w_dec": w_dec, **biases, "threshold": weights["threshold"]}
        arrays |= {"affine_skip_connection": weights["w_skip"]} if "w_skip" in weights else {}
        files[f"transcoder_all/layer_{layer}_width_16k_l0_small/params.safetensors"] = to_safetensors(arrays, dtype)


def encode(weights: Arrays, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pre-activations and whether a feature fires, in plain float64."""
    pre = weights["w_enc"].astype(np.float64) @ residual.astype(np.float64) + weights["b_enc"]
    gate = np.maximum(weights["threshold"], 0) if "threshold" in weights else 0
    return pre, pre > gate


def read_weights(world: World, layer: int) -> Arrays:
    """The layer's tensors out of its file, by the package that belongs to the format, as World.weights has them."""
    content = next(
        content
        for path, content in world.files[OWN_REPO].items()
        if path.startswith(("layer_", "transcoder_all/layer_", "W_enc_")) and _layer_of(path) == layer
    )
    arrays = from_safetensors(content) if world.schema not in ("GemmaScopeNpz", "Sae") else dict(np.load(io.BytesIO(content)))
    by_role = {name.removesuffix(f"_{layer}").lower().rpartition(".")[2]: values for name, values in arrays.items()}
    by_role = {name: values.astype(np.float32) for name, values in by_role.items()}
    if world.schema in ("GemmaScopeNpz", "Sae", "GemmaScope2"):
        by_role["w_enc"] = by_role["w_enc"].T
    return by_role


def _layer_of(path: str) -> int:
    digits = path.replace("transcoder_all/", "").replace("W_enc_", "layer_").removeprefix("layer_")
    return int("".join(c if c.isdigit() else " " for c in digits).split()[0])
