# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small synthetic repo of any format, laid out as a Hub cache, so that everything runs without a network."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vendored_hf
from oracle.arithmetic.residual import residual
from oracle.errors import BadUse
from oracle.job import DEMO_CACHE, DEMO_OWNER, Job, Origin
from oracle.references.document import to_json
from oracle.references.generate import Events, start
from oracle.references.plan import LayerFiles
from oracle.references.rows import Document
from oracle.sources import listing
from oracle.sources.curation import HubFile
from oracle.vectors.files import Arrays, weight_file
from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, FORMATS, LIST, NAMES, SIDE, Format, TensorSpec
from oracle.weights.sidefiles import B_DEC, B_ENC, LOG_THRESHOLD, THRESHOLD, W_DEC, W_ENC, W_SKIP

COMMIT = "0" * 40
N_LAYERS, D_MODEL, N_FEATURES = 26, 64, 512
SAMPLE_LAYERS = (0, 12, 25)
# What the answers beside the reference have wrong: they are those of a port that leaves b_enc out in the middle layer.
LEFT_OUT = B_ENC
CANDIDATE = "candidate.json"

# Of each tensor the stream that it is drawn from, a factor, None for one by its size, and an offset.
TENSORS: dict[str, tuple[int, np.float32 | None, float]] = {
    W_ENC: (0, None, 0.0), W_DEC: (1, None, 0.0), B_ENC: (2, np.float32(0.1), 0.0), B_DEC: (3, np.float32(0.1), 0.0),
    THRESHOLD: (4, np.float32(0.1), 1.5), LOG_THRESHOLD: (4, np.float32(0.1), 0.4), W_SKIP: (5, None, 0.0),
}  # fmt: skip
_LM_SAES = {"act_fn": "jumprelu", "d_model": D_MODEL, "dataset_average_activation_norm": {"in": 4.0, "out": 4.0}, "norm_activation": "dataset-wise"}
SIDE_FILES: dict[str, dict[str, Any]] = {
    "SaeLens": {"architecture": "topk", "k": 32, "apply_b_dec_to_input": True, "metadata": {"sae_lens_version": "6.0.0"}},
    "DictionaryLearning": {"trainer": {"dict_class": "AutoEncoderTopK", "k": 32}},
    "LlamaScope": {**_LM_SAES, "jump_relu_threshold": 1.5},
    "LlamaScopeR1": _LM_SAES,
    "Sparsify": {"activation": "topk", "k": 32, "transcode": True, "skip_connection": True, "d_in": D_MODEL, "num_latents": N_FEATURES},
    "HookZ": {"act_size": D_MODEL, "dict_size": N_FEATURES},
}
FOLDER = "layer_{layer}/width_{n}/average_l0_40"
FOLDERS = {
    "SaeLens": "blocks.{layer}.hook_resid_post", "DictionaryLearning": "resid_post_layer_{layer}/trainer_0", "Sparsify": "layers.{layer}",
    "LlamaScope": "Synthetic-L{layer}R-8x", "LlamaScopeR1": "synthetic/L{layer}R", "HookZ": "synthetic",
    "GemmaScope2Crosscoder": "layer_0_1_2_3_width_{n}_l0_40",
}  # fmt: skip
CROSSCODER, N_INPUT_LAYERS = "crosscoder", 4
NAMED_K = {"QwenScope": "-W1K-L0_32"}  # the repo's name says k


@dataclass(frozen=True)
class Demo:
    """Synthetic weights: their folder, the job that encodes them, and where its reference goes."""

    name: str
    folder: Path
    job: Job
    output: str
    n_layers: int = N_LAYERS
    d_model: int = D_MODEL
    n_features: int = N_FEATURES


def weights_repo(row: Format) -> str:
    """The repo of a format's synthetic weights."""
    return f"{DEMO_OWNER}/synthetic-{row.name}{NAMED_K.get(row.name, '')}"


def job_repo(row: Format) -> str:
    """The repo that a job on them names: where the format has lists, the one with the list."""
    return weights_repo(row) + ("-curation" if NAMES not in row.found_by and LIST in row.found_by else "")


def make(folder: str | None = None, name: str = FORMATS[0].name, *, decode: bool = False, zeros: Mapping[int, str] = {}) -> Demo:
    """Make the weights of a format in `folder`, or a new temporary one; `zeros` has a tensor of layers that is all zeros. Raises BadUse."""
    row = formats.by_name(name)
    paths: list[str] = []
    listed: list[str] = []
    try:
        place = Path(folder or tempfile.mkdtemp(prefix="oracle-demo-"))
        cache = place / DEMO_CACHE
        layers = range(N_INPUT_LAYERS if row.folder == CROSSCODER else N_LAYERS)
        for layer in layers:
            files = layer_files(row, layer, zeros.get(layer))
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
    named = () if row.model_kind else tuple(paths[layer] for layer in sample_layers(len(layers)))
    job = Job(Origin(job_repo(row), named, cache_dir=str(cache), offline=True), decode=decode)
    return Demo(row.name, place, job, str(place / f"{row.output}_gemma_reference.json"), len(layers))


def sample_layers(n_layers: int) -> tuple[int, int, int]:
    """The layers that a job takes by itself: the first, the middle one, the last."""
    return SAMPLE_LAYERS if n_layers == N_LAYERS else (0, (n_layers - 1) // 2, n_layers - 1)


def wrong_candidate(demo: Demo) -> Document:
    """The answers of a port with one mistake, as a candidate: it leaves b_enc out in the middle layer. Raises BadUse."""
    _, middle, _ = sample_layers(demo.n_layers)
    with tempfile.TemporaryDirectory(prefix="oracle-demo-") as folder:
        wrong = make(folder, demo.name, decode=demo.job.decode, zeros={middle: LEFT_OUT})
        with start(wrong.job, Events()) as run:
            cases = to_json(run.reference())["test_cases"]
    keys = ("layer", "seed", "residual_fingerprint", "n_active", "top_10", "reconstructions")
    return {"test_cases": [{key: case[key] for key in keys if key in case} for case in cases]}


def layer_files(row: Format, layer: int, zero: str | None = None) -> dict[str, bytes]:
    """One layer's files by their paths, the encoder's first; the tensor `zero` is all zeros.

    Pre-activations have a deviation of about 1; one feature in fourteen fires, or half of them where the format does
    with plain ReLU. Tensors that a format need not have are left out, but for W_skip and those that its gate needs.
    """
    scale = np.float32(D_MODEL**-0.5)
    n_targets = N_INPUT_LAYERS if row.folder == CROSSCODER else N_LAYERS if row.all_targets else N_LAYERS - layer
    extents = {
        "d_model": D_MODEL, "d_model_out": D_MODEL, "n_features": N_FEATURES, "n_targets": n_targets, "n_input_layers": N_INPUT_LAYERS,
    }  # fmt: skip

    def draw(spec: TensorSpec) -> np.ndarray:
        stream, factor, offset = TENSORS[spec.part]
        shape = [extents[axis] for axis in spec.axes]
        if factor is None:
            factor = np.float32(1) if spec.part == W_ENC and row.folder == "embedding" else scale
        if "n_input_layers" in spec.axes:
            factor = factor * np.float32(N_INPUT_LAYERS**-0.5)
        values = np.float32(offset) + residual(layer, 1000 + stream, int(np.prod(shape))).reshape(shape) * factor
        if spec.part == W_DEC and row.all_targets:
            values[:, :layer] = 0
        if spec.part == zero:
            values = np.zeros_like(values)
        return values

    arrays: dict[str, Arrays] = {ENCODER: {}, DECODER: {}}
    done: set[str] = set()
    for spec in row.tensors:
        if spec.part in done or not (spec.required or spec.part == B_ENC or spec.part == W_SKIP and row.name != "SaeLens"):
            continue
        done.add(spec.part)
        arrays[spec.role][spec.name.format(layer=layer)] = draw(spec)
    first = row.encoder_file.format(layer=layer, stem=f"synthetic_L{layer}_z")
    if row.folder or NAMES not in row.found_by and "{layer}" not in row.encoder_file:
        first = f"{FOLDERS.get(row.name, FOLDER).format(layer=layer, n=N_FEATURES)}/{first}"
        first = f"{row.folder}/{first}" if row.folder else first
    files = {first: weight_file(first, arrays[ENCODER])}
    for role, file in LayerFiles.beside(row, layer, HubFile(weights_repo(row), None, first)).files.items():
        path = file.path
        if role == DECODER:
            files[path] = weight_file(path, arrays[DECODER])
        elif role == SIDE:
            files[path] = json.dumps(SIDE_FILES[row.name]).encode()
    return files


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
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except (OSError, NotImplementedError):  # as on Windows, where few may make links: a cache without them is read too
            pointer.write_bytes(content)
