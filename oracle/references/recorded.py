# SPDX-License-Identifier: MIT OR Apache-2.0
"""The weights of a reference again: which files they are, and where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np

import vendored_hf
from oracle.arithmetic.constants import TOPK
from oracle.errors import BadUse
from oracle.job import NORMALIZE, Job, Origin
from oracle.references.document import Case, Reference
from oracle.references.generate import Events
from oracle.references.layer import input_of, scaled_residual
from oracle.references.origins import LayerRecord
from oracle.references.plan import LayerFiles, plan, sibling_files
from oracle.references.rows import DataError
from oracle.sources import curation, hashes
from oracle.sources.curation import HubFile
from oracle.sources.source import Source
from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, SIDE, Format
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.sidefiles import Context


@dataclass
class RecordedFile:
    """A weight file of a reference: where it lies, the sha256 on record, if any, and that of the bytes that were read, once they were."""

    file: HubFile
    local: vendored_hf.LocalFile
    recorded_sha256: str | None
    sha256: str | None = None

    @property
    def path(self) -> str:
        return self.local.path

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, if anything."""
        if None in (self.sha256, self.recorded_sha256) or self.sha256 == self.recorded_sha256:
            return None
        return (
            f"wrong sha256: {self.file.path} has {str(self.sha256)[:16]}..., "
            f"the reference was made from {str(self.recorded_sha256)[:16]}..."
        )


@dataclass(frozen=True)
class RecordedLayer:
    """A layer of a reference: its files, on disk, by their role, and its cases; `source` is where the files come from."""

    source: Source
    layer: int
    format: Format
    files: dict[str, RecordedFile]
    cases: list[Case]
    context: Context

    @property
    def problems(self) -> list[str]:
        """What is wrong with its files, once they were hashed."""
        return [file.problem for file in self.files.values() if file.problem]

    def hash_files(self) -> None:
        """Hash the files as `generate` does: a large one once, and again when it was written to. Raises DamagedFileError."""
        for file in self.files.values():
            with open(file.path, "rb", buffering=0) as reader:
                file.sha256 = self.source.sha256_of(file.file, file.local, reader)

    @contextlib.contextmanager
    def opened(self, *, hashed: bool = False) -> Iterator[LayerWeights]:
        """The layer's weights, and what the reference says of them. Where they are to be `hashed`, another core does it meanwhile: the
        bytes of the files that are open here, and of none that somebody puts in their place. Raises WeightsError, DamagedFileError."""
        with contextlib.ExitStack() as stack:
            readers = {role: stack.enter_context(open(file.path, "rb", buffering=0)) for role, file in self.files.items()}
            states = {role: hashes.state_of(reader) for role, reader in readers.items()}
            hashing: dict[str, Future[str]] = {}
            if hashed:
                pool = ThreadPoolExecutor(len(readers))
                stack.callback(pool.shutdown)  # before the files are closed
                hashing = {role: pool.submit(hashes.sha256_beside, reader) for role, reader in readers.items()}
            files = {role: OpenFile(cast(BinaryIO, readers[role]), file.file.path, file.file.path) for role, file in self.files.items()}
            yield LayerWeights(self.format, self.layer, files, self.context)
            for role, future in hashing.items():
                self.files[role].sha256 = future.result()
                if hashes.state_of(readers[role])[:2] != states[role][:2]:
                    raise hashes.DamagedFileError(f"{self.files[role].path} changed while it was read: try again")


@dataclass(frozen=True)
class RecordedWeights:
    """The weights of a reference, from an origin.

    The files are those on record, at their commits, unless `ignore_recorded_files` says that the origin's repo names
    them, as it does for what torch wrote, which names none.
    """

    reference: Reference
    origin: Origin
    events: Events
    format: Format
    ignore_recorded_files: bool

    @classmethod
    def of(cls, reference: Reference, origin: Origin = Origin(), events: Events = Events()) -> RecordedWeights:
        """Where a reference's weights are: as it says itself, unless the origin names files. Raises DataError and BadUse."""
        if reference.schema not in formats.schemas():
            raise DataError(f"the reference's schema is {reference.schema}; known are {', '.join(formats.schemas())}")
        if origin.schema not in (None, *formats.by_name(reference.schema).names):
            raise BadUse(f"the schema {ascii(origin.schema)} is not the reference's own, {reference.schema}: leave --schema out")
        ignore = origin.names_files or not reference.layers
        if not origin.repo:
            curated = reference.curation_repo is not None
            revision = reference.curation_revision if curated else reference.weights_revision
            origin = replace(
                origin, repo=reference.curation_repo or reference.repo.name, revision=origin.revision or revision
            )
        return cls(reference, origin, events, formats.by_name(reference.schema), ignore)

    def offline(self) -> RecordedWeights:
        """The same, without requests."""
        return replace(self, origin=replace(self.origin, offline=True))

    def layers(self) -> Iterator[RecordedLayer]:
        """The reference's layers, fetched as they are asked for. Raises as generate does, and DataError."""
        source = Source(self.origin, self.events)
        cases = self.reference.by_layer
        layers = self._planned(tuple(cases), source) if self.ignore_recorded_files else self._recorded(tuple(cases))
        self.events.layers(len(layers))
        for layer, files in layers.items():
            yield RecordedLayer(source, layer, self.format, self._fetched(source, files), cases[layer], self._context(layer, files))
            self.events.layer_done(layer)

    @contextlib.contextmanager
    def opened(self, layer: int) -> Iterator[LayerWeights]:
        """What encodes one layer. Its bytes are known to be those on record as `generate` knows it: large files are hashed once.

        Raises as generate does, and DataError where they are others.
        """
        source = Source(self.origin, self.events)
        layers = self._planned((layer,), source) if self.ignore_recorded_files else self._recorded((layer,))
        if layer not in layers:
            raise DataError(f"the reference names no file of layer {layer}: name its repo with --repo")
        files, record = layers[layer].read(decode=False), self.reference.records.get(layer)
        recorded = {ENCODER: record.sha256, DECODER: record.decoder_sha256, SIDE: record.side_sha256} if record else {}
        with contextlib.ExitStack() as stack:
            opened = {role: stack.enter_context(source.open(file)) for role, file in files.files.items()}
            for role, file in opened.items():
                if recorded.get(role) not in (None, file.sha256):
                    raise DataError(f"{file.open.path} is not the file that the reference was made from: its sha256 differs")
            yield LayerWeights(self.format, layer, {role: file.open for role, file in opened.items()}, self._context(layer, files))

    def known_files(self) -> tuple[dict[int, LayerFiles], bool]:
        """The files of all layers that the origin's repo, or the reference, tells of; and whether these are sure to be all.

        Whatever cannot be found out is left out.
        """
        source = Source(self.origin, self.events)
        own = {} if self.ignore_recorded_files else self._recorded(tuple(record.layer for record in self.reference.layers))
        known: dict[int, LayerFiles] = {}
        is_whole = False
        with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
            job_plan = plan(self._job(tuple(self.reference.by_layer)[:1]), source)
            known, is_whole = job_plan.known, job_plan.is_whole
        if not is_whole:
            for files in list((own or known).values())[:1]:
                with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
                    listing = source.listing(files.encoder.repo, files.encoder.revision)
                    known = sibling_files(self.format, files.encoder, listing) | known
        return dict(sorted((known | own).items())), is_whole

    def fetch(self, file: HubFile) -> str:
        """The local path of a weight file that no reference names. Raises as Source.fetch does."""
        return str(Source(self.origin, self.events).fetch(file).path)

    def _context(self, layer: int, files: LayerFiles) -> Context:
        """What is said of a layer's arithmetic beside its files: the reference has it on record."""
        gate, origin = self.reference.gate or {}, self.origin
        k, scale = gate.get("k"), input_of(self.reference.encoder_input or {}, layer).get("factor")
        return Context(
            files.encoder.repo,
            TOPK if gate.get("kind") == TOPK else None,
            k if type(k) is int else origin.k,
            scale if type(scale) is float else origin.input_scale,
            (*(self.reference.ignored_keys or ()), *origin.ignore_key),
            kind if (kind := input_of(self.reference.encoder_input or {}, layer).get("kind")) in NORMALIZE else origin.normalize,
        )

    def _job(self, layers: tuple[int, ...]) -> Job:
        return Job(replace(self.origin, schema=self.format.name), layers)

    def _planned(self, layers: tuple[int, ...], source: Source) -> dict[int, LayerFiles]:
        return plan(self._job(layers), source).layers

    def _recorded(self, layers: tuple[int, ...]) -> dict[int, LayerFiles]:
        """The files on record. Raises DataError where they cannot be files of the format."""
        files = {}
        for layer in layers:
            record = self.reference.records.get(layer)
            if record is not None:
                encoder = _hub_file(record, record.path)
                files[layer] = LayerFiles.beside(self.format, layer, encoder)
                for role, path in ((DECODER, record.decoder_path), (SIDE, record.side_path)):
                    if path:
                        files[layer].files[role] = _hub_file(record, path)
        return files

    def _fetched(self, source: Source, layer: LayerFiles) -> dict[str, RecordedFile]:
        """A layer's files on disk, that of the decoder where the reference decodes."""
        if not layer.encoder.path.endswith(self.format.suffixes):
            kind = " or ".join(self.format.suffixes)
            raise DataError(f"the reference's schema is {self.format.name}, but {layer.encoder.path} is no {kind} file")
        record = self.reference.records.get(layer.layer)
        recorded = {ENCODER: record.sha256, DECODER: record.decoder_sha256, SIDE: record.side_sha256} if record else {}
        files = {}
        for role, file in layer.read(self.reference.decodes).files.items():
            files[role] = RecordedFile(file, source.fetch(file), recorded.get(role))
        return files


def residual_of(reference: Reference, case: Case) -> np.ndarray:
    """The residual of a case, float32 [input_length]: from the generator where the reference names it, else the recorded one.

    Raises DataError where the recorded one overflows float32.
    """
    if reference.has_generator:
        return scaled_residual(case.id.number, case.stream or 0, reference.input_length, reference.residuals.scale or 1.0)
    with np.errstate(over="ignore"):
        values = np.array(case.residual, np.float64).astype(np.float32)
    if not np.all(np.isfinite(values)):
        raise DataError(f"{case.id}: its residual overflows float32")
    return values


def _hub_file(record: LayerRecord, path: str) -> HubFile:
    try:
        file = curation.parse_uri(f"hf://{record.repo}/{path}")
    except curation.CurationError as error:
        raise DataError(f"the reference names a weight file that cannot be: {error}") from error
    return file._replace(revision=record.revision)
