# SPDX-License-Identifier: MIT OR Apache-2.0
"""One job from end to end: curation, files, encodings, and the document that holds them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vendored_hf
from oracle import __version__, curation, document, encoder, residual, schemas, weights
from oracle.document import Document

CURATION_REPO = "mntss/gemma-scope-transcoders"
CURATION_FILE = "config.yaml"
METHODOLOGY = "from-first-principles encoder oracle in NumPy (float32 products, float64 and exact referee; no torch)"


class LayerError(ValueError):
    """A layer was asked for that the curation does not list."""


@dataclass(frozen=True)
class Job:
    """What to encode and where from. `layers` None is all; `endpoint` and `cache_dir` None are the environment's.

    `weights_revision` holds for entries of the curation that name no revision themselves.
    """

    curation_repo: str = CURATION_REPO
    revision: str | None = None
    weights_revision: str | None = None
    layers: tuple[int, ...] | None = (0, 12, 25)
    n_seeds: int = 3
    top_k: int = 10
    tolerance: float = 1e-4
    endpoint: str | None = None
    cache_dir: str | None = None
    offline: bool = False


@dataclass(frozen=True)
class Events:
    """What a caller may want to show while a job runs."""

    fetching: Callable[[str], vendored_hf.Progress | None] = lambda path: None
    fetched: Callable[[str], None] = lambda path: None
    encoded: Callable[[Document, int], None] = lambda case, n_features: None


def generate(job: Job, events: Events = Events()) -> Document:
    """Run a job and return the reference, as the JSON holds it (see README.md), residuals included.

    Raises LayerError, CurationError, WeightsError or an exception of vendored_hf.
    """
    curation_path = _fetch(job, events, curation.HubFile(job.curation_repo, job.revision, CURATION_FILE))
    files = curation.parse_config(Path(curation_path).read_bytes())
    layers = sorted(files) if job.layers is None else sorted(set(job.layers))
    missing = [layer for layer in layers if layer not in files]
    if missing:
        raise LayerError(f"{job.curation_repo} lists the layers 0 to {max(files)}; it has no layer {missing[0]}")
    schema_of = {layer: _schema(files[layer]) for layer in layers}

    commits: dict[tuple[str, str | None], str] = {}
    layer_records = []
    cases: list[Document] = []
    error32, n_settled = 0.0, 0
    extents: tuple[int, int] | None = None
    for layer in layers:
        file = files[layer]
        revision = file.revision or job.weights_revision
        # A branch is resolved once: all layers come from one commit, even where somebody pushes in the meantime.
        path = _fetch(job, events, curation.HubFile(file.repo, commits.get((file.repo, revision), revision), file.path))
        commit = vendored_hf.cached_commit(path)
        if commit:
            commits[file.repo, revision] = commit
        with open(path, "rb", buffering=0) as reader:
            layer_weights = schemas.open_layer(schema_of[layer], reader, file.path)
            if extents is None:
                extents = layer_weights.d_model, layer_weights.n_features
            elif extents != (layer_weights.d_model, layer_weights.n_features):
                raise weights.WeightsError(
                    f"{file.path}: W_enc is [d_model, n_features] = "
                    f"{[layer_weights.d_model, layer_weights.n_features]}, but that of layer {layers[0]} is {list(extents)}"
                )
            encoding, layer_cases = _encode_layer(layer, layer_weights, job, file.path)
        for case in layer_cases:
            events.encoded(case, layer_weights.n_features)
        cases += layer_cases
        error32 = max(error32, encoding.float32_max_abs_error)
        n_settled += encoding.n_settled
        layer_records.append({"layer": layer, "path": file.path, "sha256": _sha256(path), "repo": file.repo, "revision": commit})

    first = layer_records[0]
    for record in layer_records:  # named per layer only where it differs from the document's own
        for key in ("repo", "revision"):
            if record is not first and record[key] == first[key]:
                del record[key]
    weights_repo, weights_revision = first.pop("repo"), first.pop("revision")
    d_model, n_features = extents or (0, 0)
    return {
        "format_version": document.FORMAT_VERSION,
        "weights_repo": weights_repo,
        "weights_revision": weights_revision,
        "curation_repo": job.curation_repo,
        "curation_revision": vendored_hf.cached_commit(curation_path),
        "methodology": METHODOLOGY,
        "schema": schemas.GEMMA_SCOPE_NPZ.name,
        "encoder_formula": schemas.GEMMA_SCOPE_NPZ.encoder_formula,
        "d_model": d_model,
        "n_features_per_layer": n_features,
        "top_k": job.top_k,
        "tolerance": job.tolerance,
        "layers": layer_records,
        "residual_generator": document.generator_record(),
        "test_cases": cases,
        "environment": _environment(error32, n_settled),
    }


def _fetch(job: Job, events: Events, file: curation.HubFile) -> str:
    """The local path of a file. What arrives over the network is announced, what the cache holds is not."""
    started: list[vendored_hf.Progress | None] = []

    def on_progress(done: int, size: int | None) -> None:
        if not started:
            started.append(events.fetching(file.path))
        if started[0]:
            started[0](done, size)

    path = vendored_hf.hf_hub_download(
        file.repo,
        file.path,
        revision=file.revision,
        cache_dir=job.cache_dir,
        endpoint=job.endpoint,
        local_files_only=job.offline,
        on_progress=on_progress,
    )
    if started:
        events.fetched(path)
    return path


def _schema(file: curation.HubFile) -> schemas.Schema:
    if not file.path.endswith(schemas.GEMMA_SCOPE_NPZ.suffix):
        raise curation.CurationError(
            f"{file.path} is no {schemas.GEMMA_SCOPE_NPZ.suffix} file; {schemas.GEMMA_SCOPE_NPZ.name} is the schema that is read"
        )
    return schemas.GEMMA_SCOPE_NPZ


def _encode_layer(
    layer: int, layer_weights: schemas.LayerWeights, job: Job, label: str
) -> tuple[encoder.LayerEncoding, list[Document]]:
    seeds = [document.SEED_STRIDE * index + layer for index in range(job.n_seeds)]
    residuals = np.stack([residual.residual(seed, layer, layer_weights.d_model) for seed in seeds])  # [n_seeds, d_model]
    try:
        layer_encoding = encoder.encode(
            layer_weights.w_enc_blocks,
            layer_weights.b_enc,
            layer_weights.gate,
            residuals,
            k=job.top_k,
            tolerance=job.tolerance,
        )
    except encoder.NotFiniteError as error:
        raise weights.WeightsError(f"{label}: {error}") from error
    cases = []
    for seed, values, encoding in zip(seeds, residuals, layer_encoding.encodings):
        cases.append(
            {
                "layer": layer,
                "seed": seed,
                "stream": layer,
                "residual_fingerprint": residual.fingerprint(values),
                "n_active": encoding.n_active,
                "n_active_bounds": list(encoding.n_active_bounds),
                "rank_margin": encoding.rank_margin,
                "gate_margin": encoding.gate_margin,
                "flags": encoding.flags,
                f"top_{job.top_k}": [{"index": index, "activation": value} for index, value in encoding.top],
                "residual": values.tolist(),
            }
        )
    return layer_encoding, cases


@dataclass(frozen=True)
class RecordedLayer:
    """A layer of a reference that stands in a file, and the local path of its weights."""

    layer: int
    file: curation.HubFile
    path: str
    recorded_sha256: str | None
    cases: list[Document]

    @property
    def sha256(self) -> str:
        return _sha256(self.path)


def recorded_layers(recorded: Document, job: Job, events: Events, *, by_curation: bool) -> Iterator[RecordedLayer]:
    """The layers of a reference, fetched as they are asked for: the files that it names, at its commits.

    What torch wrote names no files: there, and with `by_curation`, the job's curation says which they are; of the job
    only the source counts. Raises as generate does, and DataError for a schema that is not known.
    """
    if recorded.get("schema") != schemas.GEMMA_SCOPE_NPZ.name:
        raise document.DataError(f"the reference's schema is {recorded.get('schema')}; {schemas.GEMMA_SCOPE_NPZ.name} is read")
    wanted = sorted({case["layer"] for case in recorded["test_cases"]})
    records = {record["layer"]: record for record in recorded.get("layers", [])}
    files = {} if records and not by_curation else curated_files(job, events)
    for layer in wanted:
        if files and layer not in files:
            raise LayerError(f"{job.curation_repo} lists the layers 0 to {max(files)}; it has no layer {layer}")
        file = files.get(layer) or _recorded_file(recorded, records[layer])
        revision = job.weights_revision if files and not file.revision else file.revision
        file = curation.HubFile(file.repo, revision, file.path)
        _schema(file)
        cases = [case for case in recorded["test_cases"] if case["layer"] == layer]
        yield RecordedLayer(layer, file, _fetch(job, events, file), records.get(layer, {}).get("sha256"), cases)


def curated_files(job: Job, events: Events = Events()) -> dict[int, curation.HubFile]:
    """The files that the job's curation names, by layer."""
    path = _fetch(job, events, curation.HubFile(job.curation_repo, job.revision, CURATION_FILE))
    return curation.parse_config(Path(path).read_bytes())


def fetch_weights(job: Job, events: Events, file: curation.HubFile) -> str:
    """The local path of a weight file that no reference names."""
    return _fetch(job, events, file)


def _recorded_file(recorded: Document, record: Document) -> curation.HubFile:
    repo = record.get("repo", recorded["weights_repo"])
    try:
        file = curation.parse_uri(f"hf://{repo}/{record['path']}")
    except curation.CurationError as error:
        raise document.DataError(f"the reference names a weight file that cannot be: {error}") from error
    return curation.HubFile(file.repo, record.get("revision", recorded.get("weights_revision")), file.path)


def _sha256(path: str) -> str:
    """The sha256 of a cached file: its blob's name, where that was checked when it arrived; else computed."""
    named = vendored_hf.cached_sha256(path)
    if named:
        return named
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _environment(error32: float, n_settled: int) -> Document:
    return {
        "oracle": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas_kernel": _blas_kernel(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "float32_max_abs_error": float(f"{error32:.3g}"),
        "n_settled": n_settled,
    }


def _blas_kernel() -> str | None:
    """The kernel that NumPy's OpenBLAS chose for this processor, or None where it cannot be asked."""
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text()
        for library in sorted(set(re.findall(r"/\S*openblas\S*", maps))):
            openblas = ctypes.CDLL(library)
            for prefix in ("scipy_", ""):
                for suffix in ("64_", ""):
                    with contextlib.suppress(AttributeError):
                        ask = getattr(openblas, f"{prefix}openblas_get_corename{suffix}")
                        ask.restype = ctypes.c_char_p
                        return ask().decode("ascii", "replace")
    return None
