# SPDX-License-Identifier: MIT OR Apache-2.0
"""One job from end to end: curation, files, encodings, and the document that holds them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

import vendored_hf
from oracle import __version__, curation, document, encoder, mirror, residual, schemas, stream, weights
from oracle.document import Document

CURATION_REPO = "mntss/gemma-scope-transcoders"
CURATION_FILE = "config.yaml"
SEEDS_AT_ONCE = 64  # a pass over W_enc for each group keeps the pre-activations small
METHODOLOGY = "from-first-principles encoder oracle in NumPy (float32 products, float64 and exact referee; no torch)"


class LayerError(ValueError):
    """A layer was asked for that the curation does not list."""


@dataclass(frozen=True)
class Job:
    """What to encode and where from. `layers` None is all; `endpoint` and `cache_dir` None are the environment's.

    `weights_revision` holds for entries of the curation that name no revision themselves. `stream` puts nothing on
    disk, and fetches of each weight file only what the encoder reads.
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
    stream: bool = False
    connections: int = vendored_hf.CONNECTIONS


@dataclass(frozen=True)
class Events:
    """What a caller may want to show while a job runs."""

    fetching: Callable[[str], vendored_hf.Progress | None] = lambda path: None
    fetched: Callable[[str], None] = lambda path: None
    encoded: Callable[[Document, int], None] = lambda case, n_features: None


def generate(job: Job, events: Events = Events()) -> Document:
    """Run a job and return the reference, as the JSON holds it (see README.md), residuals included.

    Raises LayerError, CurationError, WeightsError, MirrorError or an exception of vendored_hf.
    """
    source = Source(job, events)
    files, curation_revision = _curated(job, source)
    layers = list(files)
    schema_of = {layer: _schema(files[layer]) for layer in layers}

    layer_records = []
    cases: list[Document] = []
    error32, n_settled = 0.0, 0
    extents: tuple[int, int] | None = None
    for layer, opened in zip(layers, source.open_in_turn(list(files.values()))):
        with opened:
            layer_weights = schemas.open_layer(schema_of[layer], opened.reader, opened.where)
            if extents is None:
                extents = layer_weights.d_model, layer_weights.n_features
            elif extents != (layer_weights.d_model, layer_weights.n_features):
                raise weights.WeightsError(
                    f"{opened.where}: W_enc is [d_model, n_features] = "
                    f"{[layer_weights.d_model, layer_weights.n_features]}, but that of layer {layers[0]} is {list(extents)}"
                )
            encoding, layer_cases = _encode_layer(layer, layer_weights, job, opened.where)
        for case in layer_cases:
            events.encoded(case, layer_weights.n_features)
        cases += layer_cases
        error32 = max(error32, encoding.float32_max_abs_error)
        n_settled += encoding.n_settled
        layer_records.append(
            {"layer": layer, "path": opened.path, "sha256": opened.sha256, "repo": opened.repo, "revision": opened.commit}
        )

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
        "curation_revision": curation_revision,
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


def files_of(job: Job, source: Source) -> list[curation.HubFile]:
    """Every file that a job reads. Errors as in generate()."""
    return [_curation_file(job), *_curated(job, source)[0].values()]


def _curation_file(job: Job) -> curation.HubFile:
    return curation.HubFile(job.curation_repo, job.revision, CURATION_FILE)


def _curated(job: Job, source: Source) -> tuple[dict[int, curation.HubFile], str | None]:
    """The job's layers in order, each with its file, and the commit of the config.yaml that says so."""
    with source.open(_curation_file(job)) as opened:
        files = curation.parse_config(opened.reader.read(curation.SIZE_LIMIT + 1))
    layers = sorted(files) if job.layers is None else sorted(set(job.layers))
    missing = [layer for layer in layers if layer not in files]
    if missing:
        raise LayerError(f"{job.curation_repo} lists the layers 0 to {max(files)}; it has no layer {missing[0]}")
    wanted = {layer: replace(files[layer], revision=files[layer].revision or job.weights_revision) for layer in layers}
    return wanted, opened.commit


@dataclass(frozen=True)
class Opened:
    """A file that is open, and what is known of it. `where` names it in messages; sha256 is None for a stream."""

    reader: BinaryIO
    repo: str
    path: str
    where: str
    commit: str | None
    sha256: str | None

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()


class Source:
    """Where a job's files come from: the Hub by way of the cache, the Hub as a stream, or a mirror."""

    def __init__(self, job: Job, events: Events):
        self._job, self._events = job, events
        # huggingface.co itself has no manifest to ask for.
        named = job.endpoint or os.environ.get("HF_ENDPOINT")
        self._mirror = mirror.Mirror(None if job.offline or vendored_hf.is_offline_mode() else named)

    def open(self, file: curation.HubFile) -> Opened:
        """Open a file, once it is there. Raises MirrorError, or an exception of vendored_hf."""
        if self._job.stream and not self._mirror.folder:
            remote = stream.open_remote(
                file.repo, file.path, revision=file.revision, endpoint=self._job.endpoint, known=self._mirror.known(file)
            )
            reader = cast(BinaryIO, remote)
            return Opened(reader, file.repo, file.path, file.path, remote.metadata.commit_hash, None)
        local = self.fetch(file)
        sha256 = local.sha256 or mirror.sha256_of(local.path)
        reader = open(local.path, "rb", buffering=0)
        return Opened(reader, file.repo, file.path, local.path, local.commit_hash, sha256)

    def open_in_turn(self, files: list[curation.HubFile]) -> Iterator[Opened]:
        """Open one file after the other; the next one is fetched while the caller works on this one.

        A branch is resolved once: all files come from one commit, even where somebody pushes in the meantime.
        """
        commits: dict[tuple[str, str | None], str] = {}
        following: Future[Opened] | None = None
        for file, after in zip(files, [*files[1:], None]):
            opened = following.result() if following else self.open(file)
            if opened.commit:
                commits.setdefault((file.repo, file.revision), opened.commit)
            if after:
                revision = commits.get((after.repo, after.revision), after.revision)
                following = self._open_meanwhile(replace(after, revision=revision))
            yield opened

    def _open_meanwhile(self, file: curation.HubFile) -> Future[Opened]:
        """Open a file on a thread that nobody waits for where the run ends before it: an error, Ctrl-C."""
        future: Future[Opened] = Future()

        def run() -> None:
            try:
                future.set_result(self.open(file))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def fetch(self, file: curation.HubFile) -> vendored_hf.LocalFile:
        """A file on disk. What arrives over the network is announced, what is there is not."""
        if self._mirror.folder:
            return self._mirror.local_file(file)
        began: list[vendored_hf.Progress | None] = []

        def on_progress(done: int, size: int) -> None:
            if not began:
                began.append(self._events.fetching(file.path))
            if began[0]:
                began[0](done, size)

        local = vendored_hf.hf_hub_file(
            file.repo,
            file.path,
            revision=file.revision,
            cache_dir=self._job.cache_dir,
            endpoint=self._job.endpoint,
            local_files_only=self._job.offline,
            connections=self._job.connections,
            known=self._mirror.known(file),
            on_progress=on_progress,
        )
        if began:
            self._events.fetched(local.path)
        return local


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
        groups = [
            encoder.encode(
                layer_weights.w_enc_blocks,
                lambda: (layer_weights.b_enc, layer_weights.gate),
                residuals[start : start + SEEDS_AT_ONCE],
                k=job.top_k,
                tolerance=job.tolerance,
            )
            for start in range(0, len(residuals), SEEDS_AT_ONCE)
        ]
    except encoder.NotFiniteError as error:
        raise weights.WeightsError(f"{label}: {error}") from error
    layer_encoding = encoder.LayerEncoding(
        [encoding for group in groups for encoding in group.encodings],
        max(group.float32_max_abs_error for group in groups),
        sum(group.n_settled for group in groups),
    )
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
    """A layer of a reference that stands in a file: its weights' local path, their sha256, and the one on record."""

    layer: int
    file: curation.HubFile
    path: str
    sha256: str
    recorded_sha256: str | None
    cases: list[Document]


def recorded_layers(recorded: Document, job: Job, events: Events, *, by_curation: bool) -> Iterator[RecordedLayer]:
    """The layers of a reference, fetched as they are asked for: the files that it names, at its commits.

    What torch wrote names no files: there, and with `by_curation`, the job's curation says which they are. Of the job
    only the source counts. Raises as generate does, and DataError for a schema that is not known.
    """
    if recorded.get("schema") != schemas.GEMMA_SCOPE_NPZ.name:
        raise document.DataError(f"the reference's schema is {recorded.get('schema')}; {schemas.GEMMA_SCOPE_NPZ.name} is read")
    source = Source(job, events)
    wanted = tuple(sorted({case["layer"] for case in recorded["test_cases"]}))
    records = {record["layer"]: record for record in recorded.get("layers", [])}
    if by_curation or not records:
        files, _ = _curated(replace(job, layers=wanted), source)
    else:
        files = {layer: _recorded_file(recorded, records[layer]) for layer in wanted}
    for layer, file in files.items():
        _schema(file)
        local = source.fetch(file)
        cases = [case for case in recorded["test_cases"] if case["layer"] == layer]
        sha256 = mirror.sha256_of(local.path)  # of the bytes themselves, whatever name the cache has for them
        yield RecordedLayer(layer, file, str(local.path), sha256, records.get(layer, {}).get("sha256"), cases)


def curated_files(job: Job, events: Events = Events()) -> dict[int, curation.HubFile]:
    """The files that the job's curation names, by layer. Errors as in generate()."""
    return _curated(replace(job, layers=None), Source(job, events))[0]


def fetch_weights(job: Job, events: Events, file: curation.HubFile) -> str:
    """The local path of a weight file that no reference names. Raises as Source.fetch does."""
    return str(Source(job, events).fetch(file).path)


def _recorded_file(recorded: Document, record: Document) -> curation.HubFile:
    repo = record.get("repo", recorded["weights_repo"])
    try:
        file = curation.parse_uri(f"hf://{repo}/{record['path']}")
    except curation.CurationError as error:
        raise document.DataError(f"the reference names a weight file that cannot be: {error}") from error
    return replace(file, revision=record.get("revision", recorded.get("weights_revision")))


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
