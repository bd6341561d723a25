# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small synthetic repo of any schema, laid out as a Hub cache, so that everything runs without a network."""

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
from oracle.job import Job
from oracle.references import document
from oracle.sources.source import LISTINGS
from oracle.weights import formats as schemas
from oracle.weights.formats import LIST, NAMES, SCHEMAS, Place, Schema

# Not the name of a real repo: a reference from these weights must not pass for one of Gemma Scope's.
OWNER = "oracle-demo"
COMMIT = "0" * 40
N_LAYERS, D_MODEL, N_FEATURES = 26, 64, 512
SAMPLE_LAYERS = (0, 12, 25)


@dataclass(frozen=True)
class Demo:
    """What was made: the folder, the job that encodes it, and where its reference goes."""

    folder: Path
    job: Job
    output: str
    n_layers: int = N_LAYERS
    d_model: int = D_MODEL
    n_features: int = N_FEATURES


def weights_repo(schema: Schema) -> str:
    """The repo of a schema's synthetic weights."""
    return f"{OWNER}/synthetic-{schema.name}"


def job_repo(schema: Schema) -> str:
    """The repo that a job on them names: where the schema has lists, the one with the list."""
    return weights_repo(schema) + ("-curation" if NAMES not in schema.found_by and LIST in schema.found_by else "")


def make(folder: str | None = None, name: str = SCHEMAS[0].name, *, decode: bool = False) -> Demo:
    """Make the weights of a schema in `folder`, or a new temporary one. Raises document.OutputError."""
    schema = schemas.by_name(name)
    paths: list[str] = []
    listed: list[str] = []
    try:
        place = Path(folder or tempfile.mkdtemp(prefix="oracle-demo-"))
        cache = place / "hub"
        for layer in range(N_LAYERS):
            files = layer_files(schema, layer)
            paths.append(next(iter(files)))
            listed += files
            for path, content in files.items():
                _add(cache, weights_repo(schema), path, content)
        if schema.model_kind:
            config = f"model_kind: {schema.model_kind}\n"
            if NAMES not in schema.found_by:
                config += "transcoders:\n" + "".join(f'  - "hf://{weights_repo(schema)}/{path}"\n' for path in paths)
            _add(cache, job_repo(schema), "config.yaml", config.encode())
            listed.append("config.yaml")
        listings = cache / vendored_hf.repo_folder_name(weights_repo(schema)) / LISTINGS
        listings.mkdir(exist_ok=True)
        (listings / f"{COMMIT}.json").write_text(json.dumps(listed), encoding="utf-8")
    except OSError as error:
        raise document.OutputError(f"the demo cannot be made in {folder or 'a temporary folder'}: {error.strerror}") from error
    named = () if schema.model_kind else tuple(paths[layer] for layer in SAMPLE_LAYERS)
    job = Job(repo=job_repo(schema), paths=named, cache_dir=str(cache), offline=True, decode=decode)
    return Demo(place, job, str(place / f"{schema.output}_gemma_reference.json"))


def layer_files(schema: Schema, layer: int) -> dict[str, bytes]:
    """One layer's files by their paths, the encoder's first.

    Pre-activations have a deviation of about 1; one feature in fourteen fires, or half of them where the schema does
    with plain ReLU. Tensors that a schema need not have are left out, but for W_skip.
    """
    scale = np.float32(D_MODEL**-0.5)
    extents = {"d_model": D_MODEL, "d_model_out": D_MODEL, "n_features": N_FEATURES, "n_targets": N_LAYERS - layer}

    def draw(stream: int, place: Place, factor: np.float32) -> np.ndarray:
        shape = [extents[axis] for axis in place.axes]
        return residual(layer, 1000 + stream, int(np.prod(shape))).reshape(shape) * factor

    def named(arrays: dict[Place, np.ndarray]) -> dict[str, np.ndarray]:
        return {place.name.format(layer=layer): values for place, values in arrays.items()}

    encoder = {
        schema.w_enc: draw(0, schema.w_enc, scale),
        schema.b_enc: draw(2, schema.b_enc, np.float32(0.1)),
        schema.b_dec: draw(3, schema.b_dec, np.float32(0.1)),
    }
    decoder = {schema.w_dec: draw(1, schema.w_dec, scale)}
    if schema.threshold and schema.threshold.required:
        encoder[schema.threshold] = np.float32(1.5) + draw(4, schema.threshold, np.float32(0.1))
    if schema.w_skip:
        encoder[schema.w_skip] = draw(5, schema.w_skip, scale)
    write = _npz if schema.suffix == ".npz" else _safetensors
    first = schema.file.format(layer=layer)
    if NAMES not in schema.found_by:
        first = f"layer_{layer}/width_{N_FEATURES}/average_l0_40/{first}"
    if schema.decoder_file is None:
        return {first: write(named(encoder | decoder))}
    return {first: write(named(encoder)), schema.decoder_file.format(layer=layer): write(named(decoder))}


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
        data += (values.view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
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
