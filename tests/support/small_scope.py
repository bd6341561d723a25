# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small Gemma Scope: its weights as files, its list, and a Hub that has both."""

from __future__ import annotations

import io

import numpy as np

from tests.support.hub import Hub

WEIGHTS_REPO = "google/gemma-scope-2b-pt-transcoders"
CURATION_REPO = "mntss/gemma-scope-transcoders"


def layer_arrays(seed: int, d_model: int = 24, n_features: int = 96) -> dict[str, np.ndarray]:
    """The five tensors of a small GemmaScope layer, of which a few features fire."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "W_enc": normal(d_model, n_features) * np.float32(d_model**-0.5),
        "W_dec": normal(n_features, d_model),
        "b_enc": normal(n_features) * np.float32(0.1),
        "b_dec": normal(d_model),
        "threshold": rng.uniform(0.8, 1.2, n_features).astype(np.float32),
    }


def npz(arrays: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    archive = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(archive, **arrays)
    return archive.getvalue()


def path_of(layer: int) -> str:
    return f"layer_{layer}/width_16k/average_l0_{layer + 5}/params.npz"


def config(n_layers: int, repo: str = WEIGHTS_REPO) -> bytes:
    lines = [f'  - "hf://{repo}/{path_of(layer)}"' for layer in range(n_layers)]
    return ("model_kind: transcoder_set\ntranscoders:\n" + "\n".join(lines) + "\n").encode()


def fill(hub: Hub, n_layers: int = 3, d_model: int = 24, n_features: int = 96) -> None:
    """Put a small Gemma Scope on a Hub."""
    hub.add(CURATION_REPO, "config.yaml", config(n_layers))
    for layer in range(n_layers):
        hub.add(WEIGHTS_REPO, path_of(layer), npz(layer_arrays(layer, d_model, n_features)))
