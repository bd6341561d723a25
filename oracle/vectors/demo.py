# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small synthetic repo of any format, laid out as a Hub cache, so that everything runs without a network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vendored_hf
from oracle.arithmetic.residual import residual
from oracle.errors import BadUse
from oracle.job import Job, Origin
from oracle.sources import listing
from oracle.weights import formats
from oracle.weights.formats import DECODER, FORMATS, LIST, NAMES, Format, TensorSpec

# Not the name of a real repo: a reference from these weights must not pass for one of Gemma Scope's.
OWNER = "oracle-demo"
COMMIT = "0" * 40
N_LAYERS, D_MODEL, N_FEATURES = 26, 64, 512
SAMPLE_LAYERS = (0, 12, 25)


@dataclass(frozen=True)
class Demo:
    """Synthetic weights: their folder, the job that encodes them, and where its reference goes."""

    folder: Path
    job: Job
    output: str
    n_layers: int = N_LAYERS
    d_model: int = D_MODEL
    n_features: int = N_FEATURES


def weights_repo(row: Format) -> str:
    """The repo of a format's synthetic weights."""
    return f"{OWNER}/synthetic-{row.name}"


def job_repo(row: Format) -> str:
    """The repo that a job on them names: where the format has lists, the one with the list."""
    return weights_repo(row) + ("-curation" if NAMES not in row.found_by and LIST in row.found_by else "")


def make(folder: str | None = None, name: str = FORMATS[0].name, *, decode: bool = False) -> Demo:
    """Make the weights of a format in `folder`, or a new temporary one. Raises BadUse."""
    row = formats.by_name(name)
    paths: list[str] = []
    listed: list[str] = []
    try:
        place = Path(folder or tempfile.mkdtemp(prefix="oracle-demo-"))
        cache = place / "hub"
        for layer in range(N_LAYERS):
            files = layer_files(row, layer)
            paths.append(next(iter(files)))
            listed += files
            for path, content in files.items():
                _add(cache, weights_repo(row), path, content)
        if row.model_kind:
            config = f"model_kind: {row.model_kind}\n"
            if NAMES not in row.found_by:
                config += "transcoders:\n" + "".join(f'  - "hf://{weights_repo(row)}/{path}"\n' for path in paths)
            _add(cache, job_repo(row), "config.yaml", config.encode())
            listed.append("config.yaml")
        cached = cache / vendored_hf.repo_folder_name(weights_repo(row))
        listing.remember(cached, listing.Listing(weights_repo(row), "main", COMMIT, tuple(listed)))
    except OSError as error:
        raise BadUse(f"the demo cannot be made in {folder or 'a temporary folder'}: {error.strerror}") from error
    named = () if row.model_kind else tuple(paths[layer] for layer in SAMPLE_LAYERS)
    job = Job(Origin(job_repo(row), named, cache_dir=str(cache), offline=True), decode=decode)
    return Demo(place, job, str(place / f"{row.output}_gemma_reference.json"))


def layer_files(row: Format, layer: int) -> dict[str, bytes]:
    """One layer's files by their paths, the encoder's first.

    Pre-activations have a deviation of about 1; one feature in fourteen fires, or half of them where the format does
    with plain ReLU. Tensors that a format need not have are left out, but for W_skip.
    """
    scale = np.float32(D_MODEL**-0.5)
    extents = {"d_model": D_MODEL, "d_model_out": D_MODEL, "n_features": N_FEATURES, "n_targets": N_LAYERS - layer}

    def draw(stream: int, spec: TensorSpec, factor: np.float32) -> np.ndarray:
        shape = [extents[axis] for axis in spec.axes]
        return residual(layer, 1000 + stream, int(np.prod(shape))).reshape(shape) * factor

    def named(arrays: dict[TensorSpec, np.ndarray]) -> dict[str, np.ndarray]:
        return {spec.name.format(layer=layer): values for spec, values in arrays.items()}

    encoder = {
        row.w_enc: draw(0, row.w_enc, np.float32(1) if row.root_scaled else scale),
        row.b_enc: draw(2, row.b_enc, np.float32(0.1)),
        row.b_dec: draw(3, row.b_dec, np.float32(0.1)),
    }
    decoder = {row.w_dec: draw(1, row.w_dec, scale)}
    if row.threshold and row.threshold.required:
        encoder[row.threshold] = np.float32(1.5) + draw(4, row.threshold, np.float32(0.1))
    if row.w_skip:
        encoder[row.w_skip] = draw(5, row.w_skip, scale)
    write = _npz if row.suffix == ".npz" else _safetensors
    first = row.encoder_file.format(layer=layer)
    if NAMES not in row.found_by:
        first = f"{f'{row.folder}/' if row.folder else ''}layer_{layer}/width_{N_FEATURES}/average_l0_40/{first}"
    if row.w_dec.role != DECODER:
        return {first: write(named(encoder | decoder))}
    return {first: write(named(encoder)), row.files[DECODER].format(layer=layer): write(named(decoder))}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    archive = io.BytesIO()
    members: dict[str, Any] = dict(arrays)  # beside them savez has an argument of another type
    np.savez(archive, **members)
    return archive.getvalue()


def _safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    """In bfloat16, as the real ones are: the upper half of float32, the lower cut off."""
    header, data = {}, b""
    for name, values in arrays.items():
        end = len(data) + 2 * values.size
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [len(data), end]}
        data += (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


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
