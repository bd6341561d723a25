# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which files a job reads, and which schema they are of: found out from what the repo shows, or as the job says."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import vendored_hf
from oracle.errors import BadUse
from oracle.job import ALL, SAMPLE, Job
from oracle.sources import curation
from oracle.sources.curation import CurationError, HubFile
from oracle.sources.mirror import Listing
from oracle.sources.source import ListingError, Source
from oracle.weights import formats as schemas
from oracle.weights.formats import LIST, NAMES, PATH, SCHEMAS, Schema
from oracle.weights.layer import open_file

CONFIG_FILE = "config.yaml"
MOST_SHOWN = 8
KINDS_OF_WEIGHTS = frozenset("transcoder transcoders clt clts plt plts sae saes scope lowl0".split())


class LayerError(BadUse, ValueError):
    """A layer was asked for that there is not."""


@dataclass(frozen=True)
class Plan:
    """`files` are those of the job's layers in order, `known` those of all layers that the repo tells of.

    `config` is the config.yaml that was read, None where there was none, and `commit` that of the repo where the
    source told it. `curated` is whether the config.yaml names the files: they may be in other repos then. `listing` is
    what told which they are where their names do. `is_whole` is whether `known` has every layer that there is.
    `model_name` is the model that was transcoded, as the config.yaml has it.
    """

    schema: Schema
    files: dict[int, HubFile]
    known: dict[int, HubFile]
    config: HubFile | None
    commit: str | None
    curated: bool
    model_name: str | None = None
    listing: Listing | None = None

    @property
    def is_whole(self) -> bool:
        return self.curated or (self.listing is not None and self.listing.complete)

    @property
    def output(self) -> str:
        """The default name of the reference's file, by the kind of the weights and the family of their model."""
        repo = next(iter(self.files.values())).repo
        family = _family(self.model_name or "") or _family(repo) or "model"
        return f"{self.schema.output}_{family}_reference.json"


def _family(name: str) -> str:
    """The first word of a model's or a repo's name that is not one of the weights: "org/transcoder-Llama-3.2-1B", llama."""
    words = re.findall("[a-z0-9]+", posixpath.basename(name).lower())
    return next((word for word in words if word not in KINDS_OF_WEIGHTS), "")


def decoder_file(schema: Schema, layer: int, file: HubFile) -> HubFile | None:
    """The file with W_dec that goes with an encoder's file; None where it is the same."""
    if schema.decoder_file is None:
        return None
    return replace(file, path=posixpath.join(posixpath.dirname(file.path), schema.decoder_file.format(layer=layer)))


def like(schema: Schema, file: HubFile, listing: Listing) -> dict[int, HubFile]:
    """The files of a repo that differ from this one in their layer alone, and in their L0, of which the nearest counts."""
    own, own_l0 = _without_numbers(schema, file.path)
    found: dict[int, tuple[int, str]] = {}
    for path in listing.paths:
        text, l0 = _without_numbers(schema, path)
        if text == own:
            layer = schema.layer_of(path)
            layer = curation.layer_in(path) if layer is None else layer
            if layer is not None:
                candidate = abs(l0 - own_l0), path
                found[layer] = min(found.get(layer, candidate), candidate)
    return {layer: replace(file, path=path) for layer, (_, path) in found.items()}


def _without_numbers(schema: Schema, path: str) -> tuple[str, int]:
    """A path without its layer and its L0, and the L0."""
    before = re.escape(schema.file.partition("{layer}")[0] if "{layer}" in schema.file else "layer_")
    l0 = re.search(r"l0_(\d+)", path)
    return re.sub(rf"((?:^|/)(?:layer_|{before})|l0_)\d+", r"\1#", path), int(l0[1]) if l0 else 0


def make(job: Job, source: Source) -> Plan:
    """Find out what a job reads. Raises LayerError, CurationError, WeightsError, or what the source raises."""
    if job.schema is not None and job.schema not in {schema.name for schema in SCHEMAS}:
        raise CurationError(f"there is no schema {ascii(job.schema)}; there are {', '.join(s.name for s in SCHEMAS)}")
    are_files = {path.endswith(schemas.SUFFIXES) for path in job.paths}
    if are_files == {True, False}:
        raise LayerError(f"--path {' --path '.join(job.paths)}: name weight files or a folder of them, not both")
    if True in are_files:
        return _of_paths(job, source)
    try:
        config_file = HubFile(job.repo, job.revision, CONFIG_FILE)
        with source.open(config_file) as opened:
            config = curation.parse_config(opened.reader.read(curation.SIZE_LIMIT + 1))
    except vendored_hf.EntryNotFoundError as missing:
        if isinstance(missing, vendored_hf.LocalEntryNotFoundError) and not source.is_local:
            raise  # the server is out of reach: nobody knows whether there is one
        return _of_names(job, source, None, None, None, missing)
    if config.files is None or job.paths:
        made = _of_names(job, source, config.model_kind, config_file, opened.commit, None)
        return replace(made, model_name=config.model_name)
    known = {
        layer: replace(file, revision=file.revision or job.weights_revision) for layer, file in config.files.items()
    }
    files = _wanted(job, known, len(known))
    rows = [schema for schema in SCHEMAS if LIST in schema.found_by and _is_of_kind(schema, config.model_kind)]
    schema = _schema(job, source, rows, files, f"the transcoders: list of {job.repo}")
    return Plan(schema, files, known, config_file, opened.commit, True, config.model_name)


def _of_paths(job: Job, source: Source) -> Plan:
    """Files that the job names itself. A layer's number is in its path; a single file without one may be any layer's."""
    files: dict[int, HubFile] = {}
    for path in job.paths:
        try:
            file = curation.parse_uri(f"hf://{job.repo}/{path}")
        except CurationError as error:
            raise CurationError(f"--path {path}: {error}") from error
        layer = next((n for n in (schema.layer_of(path) for schema in SCHEMAS) if n is not None), curation.layer_in(path))
        if layer is None and len(job.paths) == 1:
            layer = job.layers[0] if isinstance(job.layers, tuple) and len(job.layers) == 1 else 0
        if layer is None:
            raise LayerError(f"{path} does not say which layer it is of: name such a file alone, its layer with --layers")
        if layer in files:
            raise LayerError(f"{files[layer].path} and {path} are both of layer {layer}")
        files[layer] = replace(file, revision=job.weights_revision or job.revision)
    if isinstance(job.layers, tuple) and set(job.layers) != set(files):
        raise LayerError(f"the paths are of the layers {sorted(files)}, and --layers says {sorted(set(job.layers))}")
    files = dict(sorted(files.items()))
    rows = [schema for schema in SCHEMAS if PATH in schema.found_by]
    return Plan(_schema(job, source, rows, files, "the path"), files, files, None, None, False)


def _of_names(
    job: Job,
    source: Source,
    kind: str | None,
    config: HubFile | None,
    commit: str | None,
    missing: vendored_hf.EntryNotFoundError | None,
) -> Plan:
    """The files of a repo that has them itself, by their names. `missing` is why there is no config.yaml."""
    rows = [schema for schema in SCHEMAS if NAMES in schema.found_by and _is_of_kind(schema, kind)]
    rows = [schema for schema in rows if job.schema in (None, schema.name)]
    revision = job.weights_revision or commit or job.revision
    try:
        listing = source.listing(job.repo, revision)
    except ListingError as error:
        if missing is not None and job.schema is None:
            raise missing
        if not isinstance(job.layers, tuple) or len(rows) != 1:
            raise ListingError(f"{error}: say --layers 0,1,... and --schema {'|'.join(s.name for s in rows)}") from error
        folder = job.paths[0] if job.paths else ""
        named = {
            layer: HubFile(job.repo, revision, posixpath.join(folder, rows[0].file.format(layer=layer)))
            for layer in job.layers
        }
        return Plan(rows[0], named, named, config, commit, False)
    if missing is not None and CONFIG_FILE in listing.paths:
        raise missing
    folders: dict[tuple[str, str], dict[int, HubFile]] = {}
    for path in listing.paths:
        for schema in rows:
            layer = schema.layer_of(path)
            if layer is not None:
                of_folder = folders.setdefault((schema.name, posixpath.dirname(path)), {})
                of_folder[layer] = HubFile(job.repo, listing.commit or revision, path)
    chosen = {posixpath.normpath(path) for path in job.paths}
    if chosen and folders:
        there = ", ".join(sorted({f"{folder or '.'}/" for _, folder in folders}))
        folders = {key: of for key, of in folders.items() if (key[1] or ".") in chosen}
        if not folders:
            raise CurationError(f"--path {' --path '.join(job.paths)}: {job.repo} has no such weight files there, but in {there}")
    said = f"{job.repo} ({f'model_kind {kind}' if kind else 'no config.yaml'})"
    if not folders:
        if missing is not None and not listing.paths:
            raise missing
        raise CurationError(
            f"{said} has no files that are named like {' or '.join(s.file for s in rows) or 'those of a known schema'}; "
            f"it has {_shown(listing.paths)}"
        )
    if len(folders) > 1:
        seen = "; ".join(f"{name} in {folder or 'the root'}/: {len(of)} layers" for (name, folder), of in folders.items())
        raise CurationError(f"{said} can be read in more than one way, {seen}: choose by --schema NAME or --path FOLDER")
    ((name, _), known), = folders.items()
    known = dict(sorted(known.items()))
    if not listing.complete and job.layers in (ALL, SAMPLE):
        there = f"the layer{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}"
        raise ListingError(
            f"nobody tells how many layers {job.repo} has; {there} can be had without the Hub: name them with --layers"
        )
    return Plan(schemas.by_name(name), _wanted(job, known, max(known) + 1), known, config, commit, False, listing=listing)


def _wanted(job: Job, known: dict[int, HubFile], n_layers: int) -> dict[int, HubFile]:
    """Of the files known those of the job's layers."""
    if job.layers == SAMPLE:
        layers = {0, (n_layers - 1) // 2, n_layers - 1}
    else:
        layers = set(known) if job.layers == ALL else set(map(int, job.layers))
    missing = sorted(layers - known.keys())
    if missing:
        whole = sorted(known) == list(range(n_layers))
        told = f"the layers 0 to {n_layers - 1}" if whole else f"the layers {', '.join(map(str, sorted(known)))}"
        raise LayerError(f"{job.repo} lists {told}; it has no layer {missing[0]}")
    return {layer: known[layer] for layer in sorted(layers)}


def _schema(job: Job, source: Source, rows: list[Schema], files: dict[int, HubFile], where: str) -> Schema:
    """The one row that fits what is seen: how the files end, and where that leaves several, the first one's tensors."""
    if job.schema is not None:
        rows = [schema for schema in SCHEMAS if schema.name == job.schema]
    layer, first = next(iter(files.items()))
    left = [schema for schema in rows if all(file.path.endswith(schema.suffix) for file in files.values())]
    if not left:
        known = {suffix: file.path for file in files.values() for suffix in {s.suffix for s in rows} if file.path.endswith(suffix)}
        if len(known) > 1:
            raise CurationError(f"{' and '.join(known.values())}: {where} names files of several formats, and a schema has one")
        odd = next((f.path for f in files.values() if not f.path.endswith(tuple(known))), first.path)
        raise CurationError(
            f"{odd}: no schema that {where} can name has such files; "
            f"{', '.join(f'{s.name} has *{s.suffix}' for s in rows) or 'there is none of that kind'}"
        )
    if len(left) > 1:
        with source.open(first) as opened:
            file = open_file(opened.reader, first.path, opened.where)
            tensors = list(file.in_order())
        left = _only(left, lambda schema: schema.holds(tensors, layer), f"{first.path} has the tensors {_shown(tensors)}")
    return left[0]


def _only(rows: list[Schema], fits: Callable[[Schema], bool], seen: str) -> list[Schema]:
    left = [schema for schema in rows if fits(schema)]
    if not left:
        raise CurationError(f"{seen}: that is none of {', '.join(schema.name for schema in rows)}")
    if len(left) > 1:
        raise CurationError(f"{seen}: that may be {' or '.join(schema.name for schema in left)}; choose by --schema")
    return left


def _is_of_kind(schema: Schema, kind: str | None) -> bool:
    return kind is None or schema.model_kind == kind


def _shown(names: Collection[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_SHOWN} more" if len(listed) > MOST_SHOWN else ""
    return (", ".join(ascii(name)[1:-1] for name in listed[:MOST_SHOWN]) or "none") + more
