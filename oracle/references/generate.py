# SPDX-License-Identifier: MIT OR Apache-2.0
"""One job from end to end: the plan, its layers, and the document that holds them; and such a document's files again."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
import traceback
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

import vendored_hf
from oracle import errors
from oracle.errors import LayersFailed
from oracle.job import Events, Job
from oracle.references import document, plan
from oracle.references import layer as task
from oracle.references.document import Document
from oracle.references.layer import LayerResult
from oracle.references.plan import Plan
from oracle.references.workers import LayerFailure, LayerTask, run
from oracle.sources import curation, mirror
from oracle.sources.curation import HubFile
from oracle.sources.source import Source
from oracle.version import VERSION
from oracle.weights import formats as schemas
from oracle.weights.formats import Schema
from oracle.weights.layer import Decoder, LayerWeights, open_decoder, open_layer
from oracle.weights.tensors import WeightsError

METHODOLOGY = "from-first-principles encoder oracle in NumPy (float32 products, float64 and exact referee; no torch)"


@dataclass(frozen=True)
class Begun:
    """A job whose layers are on their way, in their order."""

    job: Job
    plan: Plan
    events: Events
    results: Iterator[LayerResult]


@contextlib.contextmanager
def begin(job: Job, events: Events = Events(), executor: Executor | None = None) -> Iterator[Begun]:
    """Find out what a job reads, and have `executor` begin with its layers; without one nothing is done yet.

    Raises LayerError, CurationError, WeightsError, MirrorError, or an exception of vendored_hf.
    """
    source = Source(job, events)
    made = plan.make(job, source)
    events.planned(made.output)
    events.layers(len(made.files))
    if executor is None:
        yield Begun(job, made, events, _in_turn(job, made, source))
        return
    futures = _submit(job, made, source, executor)
    try:
        yield Begun(job, made, events, _gather(futures))
    finally:
        for future in futures.values():
            future.cancel()


def finish(begun: Begun) -> Document:
    """The reference, its residuals as arrays. Raises as begin does, and LayersFailed where an executor's did."""
    results = []
    for result in begun.results:
        for case in result.cases:
            begun.events.encoded(case, result.n_features)
        begun.events.layer_done(result.record["layer"])
        results.append(result)
    return _assemble(begun.job, begun.plan, results)


def generate(job: Job, events: Events = Events(), executor: Executor | None = None) -> Document:
    """Run a job and return the reference, as the JSON holds it but for its residuals, which are arrays.

    `executor` encodes the layers; without one they are encoded here, one after the other. The bytes are the same.
    Raises as begin and finish do.
    """
    with begin(job, events, executor) as begun:
        return finish(begun)


def _in_turn(job: Job, made: Plan, source: Source) -> Iterator[LayerResult]:
    """Layers one after the other; the next one's file is fetched meanwhile."""
    opened_in_turn = source.open_in_turn(files_read(job, made))
    for layer in made.files:
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(next(opened_in_turn))
            decoder = stack.enter_context(next(opened_in_turn)) if job.decode and made.schema.decoder_file else None
            yield task.encode_layer(job, made.schema, layer, opened, decoder)


def _submit(
    job: Job, made: Plan, source: Source, executor: Executor
) -> dict[int, Future[LayerResult | LayerFailure]]:
    """A task for each layer. All of a branch is to be of one commit, whoever fetches it."""
    futures = {}
    for layer, file in made.files.items():
        decoder = plan.decoder_file(made.schema, layer, file) if job.decode else None
        settled = source.settled(decoder) if decoder else None
        futures[layer] = executor.submit(run, LayerTask(job, made.schema, layer, source.settled(file), settled))
    return futures


def _gather(futures: dict[int, Future[LayerResult | LayerFailure]]) -> Iterator[LayerResult]:
    """Layers in their order, as they get done. Where some fail the others are still finished."""
    failures: list[LayerFailure] = []
    for layer, future in futures.items():
        result = _result_of(layer, future)
        if isinstance(result, LayerFailure):
            failures.append(result)
        elif not failures:
            yield result
    if failures:
        chains = RuntimeError("\n".join(failure.chain for failure in failures))
        lines = "; ".join(f"layer {failure.layer}: {failure.line}" for failure in failures)
        raise LayersFailed(lines, failures[0].code) from chains


def _result_of(layer: int, future: Future[LayerResult | LayerFailure]) -> LayerResult | LayerFailure:
    try:
        return future.result()
    except Exception as error:  # the executor's own: of the layer's errors none is raised
        line = f"its worker is lost ({type(error).__name__}), for want of memory perhaps: try fewer, or again"
        return LayerFailure(layer, line, errors.SOURCE, "".join(traceback.format_exception(error)))


def _assemble(job: Job, made: Plan, results: list[LayerResult]) -> Document:
    """The document of a job's layers. Raises WeightsError where they are not of one shape."""
    first = results[0]
    for result in results:
        if (result.d_model, result.n_features) != (first.d_model, first.n_features):
            raise WeightsError(
                f"{result.record['path']}: W_enc has [d_model, n_features] = {[result.d_model, result.n_features]}, "
                f"but that of layer {first.record['layer']} has {[first.d_model, first.n_features]}"
            )
        if result.has_threshold != first.has_threshold:
            raise WeightsError(
                f"{result.record['path']}: it has {'a' if result.has_threshold else 'no'} threshold, unlike layer "
                f"{first.record['layer']}: one reference has one formula"
            )
    _check_targets(made, results)
    records = [dict(result.record) for result in results]
    weights_repo, weights_revision = records[0]["repo"], records[0]["revision"]
    for record in records:  # named per layer only where it differs from the document's own
        for key, own in (("repo", weights_repo), ("revision", weights_revision)):
            if record[key] == own:
                del record[key]
    curated = {"curation_repo": job.repo, "curation_revision": made.commit}
    return {
        "format_version": document.FORMAT_VERSION,
        made.schema.repo_key: weights_repo,
        "weights_revision": weights_revision,
        **(curated if made.curated else {}),
        "methodology": METHODOLOGY,
        "schema": made.schema.name,
        "encoder_formula": made.schema.encoder_formula(first.has_threshold, any(result.has_negative for result in results)),
        "d_model": first.d_model,
        "n_features_per_layer": first.n_features,
        "top_k": job.top_k,
        "tolerance": job.tolerance,
        "layers": records,
        **({"skipped_seeds": [seed for result in results for seed in result.skipped]} if job.robust else {}),
        "residual_generator": document.generator_record(),
        "test_cases": [case for result in results for case in result.cases],
        "environment": _environment(
            max(result.float32_max_abs_error for result in results), sum(result.n_settled for result in results)
        ),
    }


def _check_targets(made: Plan, results: list[LayerResult]) -> None:
    """All layers of a cross-layer transcoder write up to its last one. Raises WeightsError."""
    if "n_targets" not in made.schema.w_dec.axes:
        return
    last = {
        result.record["layer"]: case["reconstructions"][-1]["target_layer"]
        for result in results
        for case in result.cases
        if "reconstructions" in case
    }
    if made.is_whole and set(last.values()) - {max(made.known)}:
        layer, target = next((layer, target) for layer, target in last.items() if target != max(made.known))
        raise WeightsError(f"the decoder of layer {layer} ends at layer {target}, and the last layer is {max(made.known)}")
    if len(set(last.values())) > 1:
        said = ", ".join(f"layer {layer} to layer {target}" for layer, target in last.items())
        raise WeightsError(f"the decoders do not end at one layer: {said}")


def files_read(job: Job, made: Plan) -> list[HubFile]:
    """The weight files that a job reads, in that order: W_dec's behind its encoder's, where it has one and is read."""
    files = []
    for layer, file in made.files.items():
        decoder = plan.decoder_file(made.schema, layer, file) if job.decode else None
        files += [file, decoder] if decoder else [file]
    return files


def files_of(job: Job, source: Source) -> tuple[list[HubFile], mirror.Listing | None]:
    """Every file that a job reads, and the listing that told which they are, if one did. Errors as in generate()."""
    made = plan.make(job, source)
    return [*([made.config] if made.config else []), *files_read(job, made)], made.listing


@dataclass(frozen=True)
class RecordedFile:
    """A weight file of a reference: where it lies, the sha256 of its bytes, and the one on record, if any."""

    file: HubFile
    path: str
    sha256: str
    recorded_sha256: str | None

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, if anything."""
        if self.recorded_sha256 in (None, self.sha256):
            return None
        return (
            f"wrong sha256: {self.file.path} has {self.sha256[:16]}..., "
            f"the reference was made from {str(self.recorded_sha256)[:16]}..."
        )


@dataclass(frozen=True)
class RecordedLayer:
    """A layer of a reference. `decodes` is whether the reference has what the decoder makes of its cases.

    `decoder` is the file of W_dec then, where that is another.
    """

    layer: int
    schema: Schema
    weights: RecordedFile
    decoder: RecordedFile | None
    cases: list[Document]
    decodes: bool

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[LayerWeights, Decoder | None]]:
        """The layer's weights, and W_dec where the reference decodes. Raises WeightsError."""
        with contextlib.ExitStack() as stack:
            reader = cast(BinaryIO, stack.enter_context(open(self.weights.path, "rb", buffering=0)))
            path = self.weights.file.path
            layer_weights = open_layer(self.schema, self.layer, reader, path, path)
            w_dec = layer_weights.decoder if self.decodes else None
            if self.decoder:
                reader = cast(BinaryIO, stack.enter_context(open(self.decoder.path, "rb", buffering=0)))
                w_dec = open_decoder(layer_weights, reader, self.decoder.file.path, self.decoder.file.path)
            yield layer_weights, w_dec


def recorded_layers(recorded: Document, job: Job, events: Events, *, by_curation: bool) -> Iterator[RecordedLayer]:
    """The layers of a reference, fetched as they are asked for: the files that it names, at its commits.

    What torch wrote names no files: there, and with `by_curation`, the job's repo says which they are. Of the job
    only the source counts. Raises as generate does, and DataError for a schema that is not known.
    """
    schema = schema_of(recorded)
    source = Source(job, events)
    wanted = tuple(sorted({case["layer"] for case in recorded["test_cases"]}))
    records = {record["layer"]: record for record in recorded.get("layers", [])}
    if by_curation or not records:
        files = plan.make(replace(job, layers=wanted, schema=schema.name), source).files
    else:
        files = {layer: _recorded_file(recorded, records[layer], records[layer]["path"]) for layer in wanted}
    decodes = any("reconstructions" in case for case in recorded["test_cases"])
    events.layers(len(files))
    for layer, file in files.items():
        if not file.path.endswith(schema.suffix):
            raise document.DataError(f"the reference's schema is {schema.name}, but {file.path} is no {schema.suffix} file")
        record = records.get(layer, {})
        cases = [case for case in recorded["test_cases"] if case["layer"] == layer]
        decoder_file = plan.decoder_file(schema, layer, file)
        if "decoder_path" in record and not by_curation:
            decoder_file = _recorded_file(recorded, record, record["decoder_path"])
        decoder = None
        if decoder_file and decodes:
            decoder = _fetched(source, decoder_file, record.get("decoder_sha256"))
        yield RecordedLayer(layer, schema, _fetched(source, file, record.get("sha256")), decoder, cases, decodes)
        events.layer_done(layer)


def _fetched(source: Source, file: HubFile, recorded_sha256: str | None) -> RecordedFile:
    local = source.fetch(file)
    sha256 = mirror.sha256_of(local.path)  # of the bytes themselves, whatever name the cache has for them
    return RecordedFile(file, str(local.path), sha256, recorded_sha256)


def schema_of(recorded: Document) -> Schema:
    """The schema of a reference. Raises DataError where it is not known."""
    try:
        return schemas.by_name(recorded["schema"])
    except KeyError:
        known = ", ".join(schema.name for schema in schemas.SCHEMAS)
        raise document.DataError(f"the reference's schema is {recorded.get('schema')}; known are {known}") from None


def known_files(
    recorded: Document, job: Job, events: Events = Events(), *, by_curation: bool
) -> tuple[dict[int, HubFile], bool]:
    """The files of all layers that the job's repo, or the reference, tells of; and whether these are sure to be all.

    Whatever cannot be found out is left out.
    """
    schema, source = schema_of(recorded), Source(job, events)
    records = [] if by_curation else recorded.get("layers", [])
    own = {record["layer"]: _recorded_file(recorded, record, record["path"]) for record in records}
    known: dict[int, HubFile] = {}
    is_whole = False
    first = tuple(sorted({case["layer"] for case in recorded["test_cases"]}))[:1]
    with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
        made = plan.make(replace(job, layers=first, schema=schema.name), source)
        known, is_whole = made.known, made.is_whole
    if not is_whole:
        for file in list((own or known).values())[:1]:
            with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
                known = plan.like(schema, file, source.listing(file.repo, file.revision)) | known
    return dict(sorted((known | own).items())), is_whole


def fetch_weights(job: Job, events: Events, file: HubFile) -> str:
    """The local path of a weight file that no reference names. Raises as Source.fetch does."""
    return str(Source(job, events).fetch(file).path)


def _recorded_file(recorded: Document, record: Document, path: str) -> HubFile:
    repo = record.get("repo") or document.weights_repo(recorded)
    try:
        file = curation.parse_uri(f"hf://{repo}/{path}")
    except curation.CurationError as error:
        raise document.DataError(f"the reference names a weight file that cannot be: {error}") from error
    return replace(file, revision=record.get("revision", recorded.get("weights_revision")))


def _environment(error32: float, n_settled: int) -> Document:
    return {
        "oracle": VERSION,
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
                        return str(ask().decode("ascii", "replace"))
    return None
