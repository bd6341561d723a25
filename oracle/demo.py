# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small synthetic Gemma Scope, laid out as a Hub cache, so that everything runs without a network."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import vendored_hf
from oracle import document
from oracle.job import Job
from oracle.residual import residual

# Not the names of the real repos: a reference from these weights must not pass for one of Gemma Scope's.
CURATION_REPO = "oracle-demo/synthetic-gemma-scope-curation"
WEIGHTS_REPO = "oracle-demo/synthetic-gemma-scope"
COMMIT = "0" * 40
N_LAYERS, D_MODEL, N_FEATURES = 26, 64, 512


@dataclass(frozen=True)
class Demo:
    """What was made: the folder, the job that encodes it, and where its reference goes."""

    folder: Path
    job: Job
    output: str
    n_layers: int = N_LAYERS
    d_model: int = D_MODEL
    n_features: int = N_FEATURES


def make(folder: str | None = None) -> Demo:
    """Make the weights and the config.yaml in `folder`, or a new temporary one. Raises document.OutputError."""
    try:
        place = Path(folder or tempfile.mkdtemp(prefix="oracle-demo-"))
        cache = place / "hub"
        paths = [f"layer_{layer}/width_512/average_l0_40/params.npz" for layer in range(N_LAYERS)]
        entries = "".join(f'  - "hf://{WEIGHTS_REPO}/{path}"\n' for path in paths)
        _add(cache, CURATION_REPO, "config.yaml", f"model_kind: transcoder_set\ntranscoders:\n{entries}".encode())
        for layer, path in enumerate(paths):
            _add(cache, WEIGHTS_REPO, path, layer_npz(layer))
    except OSError as error:
        raise document.OutputError(f"the demo cannot be made in {folder or 'a temporary folder'}: {error.strerror}") from error
    job = Job(repo=CURATION_REPO, cache_dir=str(cache), offline=True)
    return Demo(place, job, str(place / "plt_gemma_reference.json"))


def layer_npz(layer: int) -> bytes:
    """One layer's params.npz. Pre-activations have a deviation of about 1; one feature in fourteen fires."""

    def draw(stream: int, *shape: int) -> np.ndarray:
        return residual(layer, 1000 + stream, int(np.prod(shape))).reshape(shape)

    scale = np.float32(D_MODEL**-0.5)
    archive = io.BytesIO()
    np.savez(
        archive,
        W_enc=draw(0, D_MODEL, N_FEATURES) * scale,
        W_dec=draw(1, N_FEATURES, D_MODEL) * scale,
        b_enc=draw(2, N_FEATURES) * np.float32(0.1),
        b_dec=draw(3, D_MODEL) * np.float32(0.1),
        threshold=np.float32(1.5) + draw(4, N_FEATURES) * np.float32(0.1),
    )
    return archive.getvalue()


def _add(cache: Path, repo: str, path: str, content: bytes) -> None:
    """Put a file into a Hub cache as if it had been fetched: a blob, a link in the commit's snapshot, a ref."""
    folder = cache / vendored_hf.repo_folder_name(repo)
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    pointer = folder / "snapshots" / COMMIT / path
    ref = folder / "refs" / "main"
    for parent in (blob.parent, pointer.parent, ref.parent):
        parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    ref.write_text(COMMIT)
    if not os.path.lexists(pointer):
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
