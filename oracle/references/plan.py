# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which files a job reads, and which format they are of: found out from what the repo shows, or as the job says."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

import vendored_hf
from oracle.errors import BadUse, did_you_mean
from oracle.job import ALL, CURATION_REPO, SAMPLE, Job, Origin
from oracle.sources import curation
from oracle.sources.curation import Config, CurationError, HubFile
from oracle.sources.listing import Listing, ListingError
from oracle.sources.source import Source
from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, FORMATS, LIST, NAMES, PATH, SIDE, Format

CONFIG_FILE = "config.yaml"
MOST_SHOWN = 8
# Files of what is no map of one vector.
FOREIGN = {"latest_ckpt.safetensors": "a temporal SAE's, whose features depend on the tokens before"}
KINDS_OF_WEIGHTS = frozenset("transcoder transcoders clt clts plt plts sae saes scope lowl0".split())


class LayerError(BadUse, ValueError):
    """A layer was asked for that there is not."""


class LayerFiles(NamedTuple):
    """The weight files of a layer, by their role: see weights/formats.py."""

    layer: int
    files: dict[str, HubFile]

    @classmethod
    def beside(cls, weights_format: Format, layer: int, encoder: HubFile) -> LayerFiles:
        """All files of a layer, which lie beside that of its encoder."""
        folder, stem = posixpath.dirname(encoder.path), weights_format.stem(encoder.path)
        others = {
            role: encoder._replace(path=posixpath.normpath(posixpath.join(folder, name.format(layer=layer, stem=stem))))
            for role, name in weights_format.files.items()
            if role != ENCODER
        }
        return cls(layer, {ENCODER: encoder, **others})

    @property
    def encoder(self) -> HubFile:
        return self.files[ENCODER]

    def read(self, decode: bool) -> LayerFiles:
        """Those that are read: W_dec's own file only where it is decoded."""
        return self if decode else LayerFiles(self.layer, {role: file for role, file in self.files.items() if role != DECODER})


class Plan(NamedTuple):
    """`layers` are the files of the job's layers in order, `known` those of all layers that the repo tells of.

    `config` is the config.yaml that was read, None where there was none, and `commit` that of the repo where the
    source told it. `curated` is whether the config.yaml names the files: they may be in other repos then. `listing` is
    what told which they are where their names do. `is_whole` is whether `known` has every layer that there is.
    `side` is what the config.yaml says beside.
    """

    format: Format
    layers: dict[int, LayerFiles]
    known: dict[int, LayerFiles]
    config: HubFile | None = None
    commit: str | None = None
    curated: bool = False
    side: Config = Config()
    listing: Listing | None = None

    @property
    def is_whole(self) -> bool:
        return self.curated or (self.listing is not None and self.listing.complete)

    @property
    def output(self) -> str:
        """The default name of the reference's file, by the kind of the weights and the family of their model."""
        repo = next(iter(self.layers.values())).encoder.repo
        family = _family(self.side.model_name or "") or _family(repo) or "model"
        return f"{self.format.output}_{family}_reference.json"


def _family(name: str) -> str:
    """The first word of a model's or a repo's name that is not one of the weights: "org/transcoder-Llama-3.2-1B", llama."""
    words = re.findall("[a-z0-9]+", posixpath.basename(name).lower())
    return next((word for word in words if word not in KINDS_OF_WEIGHTS), "")


def sibling_files(weights_format: Format, file: HubFile, listing: Listing) -> dict[int, LayerFiles]:
    """The files of a repo that differ from this one in their layer alone, and in their L0, of which the nearest counts."""
    own, own_l0 = _without_numbers(weights_format, file.path)
    nearest: dict[int, tuple[int, str]] = {}
    for path in listing.paths:
        text, l0 = _without_numbers(weights_format, path)
        layer = _layer_in([weights_format], path) if text == own else None
        if layer is not None:
            sibling = abs(l0 - own_l0), path
            nearest[layer] = min(nearest.get(layer, sibling), sibling)
    return _beside(weights_format, {layer: file._replace(path=path) for layer, (_, path) in nearest.items()})


def _without_numbers(weights_format: Format, path: str) -> tuple[str, int]:
    """A path without its layer and its L0, and the L0."""
    name = weights_format.encoder_file
    before = re.escape(name.partition("{layer}")[0] if "{layer}" in name else "layer_")
    l0 = re.search(r"l0_(\d{1,9})", path)
    return re.sub(rf"((?:^|/)(?:layer_|{before})|l0_)\d+", r"\1#", path), int(l0[1]) if l0 else 0


def _layer_in(rows: Iterable[Format], path: str) -> int | None:
    """The layer that a path says it is of, by the names of some formats or as `layer_N`. Raises CurationError."""
    rows = list(rows)
    layer = next((layer for layer in (row.layer_of(path) for row in rows) if layer is not None), None)
    return curation.layer_in(path) if layer is None and any(row.layer_pattern == formats.LAYER_FOLDER for row in rows) else layer


def plan(job: Job, source: Source) -> Plan:
    """Find out what a job reads. Raises LayerError, CurationError, WeightsError, or what the source raises."""
    origin = job.origin.folder_apart
    job = replace(job, origin=origin)
    repo = origin.repo or CURATION_REPO
    if origin.schema is not None and origin.schema not in formats.schemas():
        meant = did_you_mean(origin.schema, formats.schemas())
        raise BadUse(f"there is no schema {ascii(origin.schema)}; there are {', '.join(formats.schemas())}{meant}")
    are_files = {_is_file(path, repo, source, origin) for path in origin.path}
    if are_files == {True, False}:
        raise LayerError(f"--path {' --path '.join(origin.path)}: name weight files or a folder of them, not both")
    if True in are_files:
        return _of_paths(job, repo, source)
    # A folder's own config.yaml comes before the repo's.
    named = [posixpath.normpath(path) for path in origin.path]
    folders = [curation.parse_uri(f"hf://{repo}/{folder}").path for folder in named if folder != "."]
    for folder in [*folders, ""]:
        config_file = HubFile(repo, origin.revision, posixpath.join(folder, CONFIG_FILE))
        try:
            with source.open(config_file) as file:
                text = file.open.reader.read(curation.SIZE_LIMIT + 1)
            break
        except (vendored_hf.EntryNotFoundError, vendored_hf.HfHubHTTPError) as error:
            if not source.says_that_it_is_missing(error):
                raise
            missing = error
    else:
        paths = _files_in(folders, repo, source, origin)
        if len(paths) > len(folders) and isinstance(job.layers, tuple):  # a folder with a file for each layer
            paths = tuple(path for path in paths if _layer_in(_named_rows((path,), repo), path) in job.layers) or paths
        if paths:
            return _of_paths(replace(job, origin=replace(origin, path=paths)), repo, source)
        return _of_names(job, repo, source, missing=missing)
    side = curation.parse_config(text, config_file.path, origin.ignore_key)
    if side.files is None or (origin.path and config_file.path == CONFIG_FILE):
        return _of_names(job, repo, source, side=side, config=config_file, commit=file.commit)
    known = {layer: entry._replace(revision=entry.revision or origin.weights_revision) for layer, entry in side.files.items()}
    files = _wanted(job, repo, known, len(known))
    rows = [row for row in FORMATS if LIST in row.found_by and _is_of_kind(row, side.model_kind)]
    row = _format(job, source, rows, files, f"the transcoders: list of {repo}")
    return Plan(row, _beside(row, files), _beside(row, known), config_file, file.commit, True, side)


def _named_rows(paths: tuple[str, ...], repo: str) -> list[Format]:
    """The formats whose files are called like all these, those that say most of the names."""
    rows = [row for row in FORMATS if PATH in row.found_by and all(row.names_file(path) for path in paths)]
    most = max((row.how_specific(paths[0]) for row in rows), default=0)
    rows = [row for row in rows if row.how_specific(paths[0]) == most]
    return [row for row in rows if row.owner == repo.split("/")[0]] or rows


def _is_known_by_name(row: Format, path: str) -> bool:
    """Whether a file of a format with a side file is called so, and by more than its suffix."""
    return row.side_file is not None and row.how_specific(path) > len(".pth")


def _has_side_file(row: Format, layer: int, encoder: HubFile, source: Source) -> bool:
    """Whether the repo's listing, where there is one, has the side file of a format."""
    with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
        return LayerFiles.beside(row, layer, encoder).files[SIDE].path in source.listing(encoder.repo, encoder.revision).paths
    return False


def _beside(row: Format, encoders: dict[int, HubFile]) -> dict[int, LayerFiles]:
    return {layer: LayerFiles.beside(row, layer, file) for layer, file in encoders.items()}


def _is_file(path: str, repo: str, source: Source, origin: Origin) -> bool:
    """Whether a path is that of a weight file. SAELens's directory has folders that are called like one."""
    if not path.endswith(formats.SUFFIXES):
        return False
    if path.endswith((".npz", ".safetensors")) or any(row.how_specific(path) > len(".pth") and row.names_file(path) for row in FORMATS):
        return True
    with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
        listing = source.listing(repo, origin.weights_revision or origin.revision)
        return not any(other.startswith(f"{path}/") for other in listing.paths)
    return True


def _files_in(folders: list[str], repo: str, source: Source, origin: Origin) -> tuple[str, ...]:
    """The weight file of each folder, where one is in it that is called like those of a path; none where there is none in any."""
    if not folders:
        return ()
    try:
        listing = source.listing(repo, origin.weights_revision or origin.revision)
    except ListingError:
        return ()
    rows = [row for row in FORMATS if PATH in row.found_by and NAMES not in row.found_by and origin.schema in (None, *row.names)]
    paths = []
    for folder in folders:
        beside = [path[len(folder) + 1 :] for path in listing.paths if path.startswith(f"{folder}/")]
        _refuse_foreign(HubFile(repo, None, f"{folder}/{path}") for path in beside)
        named = {
            path: row.how_specific(path)
            for path in beside for row in rows
            if path.count("/") == row.encoder_file.count("/") and row.names_file(f"{folder}/{path}")
        }  # fmt: skip
        best = [path for path, specific in named.items() if specific == max(named.values())]
        of_layers = {row.layer_of(f"{folder}/{path}") for path in best for row in rows if row.folder and row.names_file(f"{folder}/{path}")}
        if len(best) > max(1, len(of_layers - {None})):
            raise CurationError(f"--path {folder}: it has the weight files {_shown(best)}: name one of them")
        paths += [f"{folder}/{path}" for path in best]
    if paths and len(paths) < len(folders):
        lacking = next(folder for folder in folders if not any(path.startswith(f"{folder}/") for path in paths))
        raise CurationError(f"--path {lacking}: {repo} has no weight file there")
    return tuple(paths)


def _of_paths(job: Job, repo: str, source: Source) -> Plan:
    """Files that the job names itself. A layer's number is in its path; a single file without one may be any layer's."""
    files: dict[int, HubFile] = {}
    for path in job.origin.path:
        try:
            file = curation.parse_uri(f"hf://{repo}/{path}")
        except CurationError as error:
            raise CurationError(f"--path {path}: {error}") from error
        layer = _layer_in(_named_rows((path,), repo) or FORMATS, path)
        if layer is None and len(job.origin.path) == 1:
            layer = job.layers[0] if isinstance(job.layers, tuple) and len(job.layers) == 1 else 0
        if layer is None:
            raise LayerError(f"{path} does not say which layer it is of: name such a file alone, its layer with --layers")
        if layer in files:
            raise LayerError(f"{files[layer].path} and {path} are both of layer {layer}")
        files[layer] = file._replace(revision=job.origin.weights_revision or job.origin.revision)
    if isinstance(job.layers, tuple) and set(job.layers) != set(files):
        raise LayerError(f"the paths are of the layers {sorted(files)}, and --layers says {sorted(set(job.layers))}")
    files = dict(sorted(files.items()))
    rows = _named_rows(job.origin.path, repo)
    rows = [row for row in rows if row.folder] or rows  # a folder's files are of its format alone
    # What a side file says would be passed over if its files were read by another schema.
    if any(row.folder or _is_known_by_name(row, job.origin.path[0]) for row in rows) and job.origin.schema not in (None, *(row.name for row in rows)):
        named = " or ".join(row.name for row in rows)
        raise CurationError(f"{job.origin.path[0]} is of the schema {named}, not {job.origin.schema}: leave --schema out")
    if not rows and job.origin.schema is None:
        _refuse_foreign(files.values())
        names = ", ".join(f"{row.name} has {row.encoder_file}" for row in FORMATS if PATH in row.found_by)
        raise CurationError(f"{job.origin.path[0]}: no schema's files are called so: {names}; choose by --schema")
    row = _format(job, source, rows, files, "the path")
    known, listing = _beside(row, files), None
    if row.decoder_file:  # where a layer writes to is told by how many there are
        first = next(iter(files.values()))
        with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
            listing = source.listing(repo, first.revision)
            known = sibling_files(row, first, listing) | known
    return Plan(row, _beside(row, files), known, listing=listing)


def _of_names(
    job: Job,
    repo: str,
    source: Source,
    *,
    side: Config = Config(),
    config: HubFile | None = None,
    commit: str | None = None,
    missing: Exception | None = None,
) -> Plan:
    """The files of a repo that has them itself, by their names. `missing` is why there is no config.yaml."""
    origin = job.origin
    rows = [row for row in FORMATS if NAMES in row.found_by and _is_of_kind(row, side.model_kind) and origin.schema in (None, *row.names)]
    revision = origin.weights_revision or commit or origin.revision
    try:
        listing = source.listing(repo, revision)
    except ListingError as error:
        if missing is not None and origin.schema is None:
            raise missing
        if not isinstance(job.layers, tuple) or len(rows) != 1:
            raise ListingError(f"{error}: say --layers 0,1,... and --schema {'|'.join(row.name for row in rows)}") from error
        folder = origin.path[0] if origin.path else ""
        named = {
            layer: HubFile(repo, revision, posixpath.join(folder, rows[0].encoder_file.format(layer=layer)))
            for layer in job.layers
        }
        layers = _beside(rows[0], named)
        return Plan(rows[0], layers, layers, config, commit, side=side)
    if missing is not None and CONFIG_FILE in listing.paths:
        raise missing
    folders: dict[tuple[str, str], dict[int, HubFile]] = {}
    for path in listing.paths:
        for row in rows:
            layer = row.layer_of(path)
            if layer is not None and not any(other.folder and other.names_file(path) for other in FORMATS):
                of_folder = folders.setdefault((row.name, posixpath.dirname(path)), {})
                of_folder[layer] = HubFile(repo, listing.commit or revision, path)
    chosen = {posixpath.normpath(path) for path in origin.path}
    if chosen and folders:
        existing = ", ".join(sorted({f"{folder or '.'}/" for _, folder in folders}))
        folders = {key: of for key, of in folders.items() if (key[1] or ".") in chosen}
        if not folders:
            raise CurationError(f"--path {' --path '.join(origin.path)}: {repo} has no such weight files there, but in {existing}")
    seen = f"{repo} ({f'model_kind {side.model_kind}' if side.model_kind else 'no config.yaml'})"
    if not folders:
        if missing is not None and not listing.paths:
            raise missing
        raise CurationError(
            f"{seen} has no files that are named like {' or '.join(row.encoder_file for row in rows) or 'those of a known schema'}; "
            f"it has {_shown(listing.paths)}"
        )
    if len(folders) > 1:
        ways = "; ".join(f"{name} in {folder or 'the root'}/: {len(of)} layers" for (name, folder), of in folders.items())
        raise CurationError(f"{seen} can be read in more than one way, {ways}: choose by --schema NAME or --path FOLDER")
    ((name, _), known), = folders.items()
    known = dict(sorted(known.items()))
    if not listing.complete and job.layers in (ALL, SAMPLE):
        cached = f"the layer{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}"
        raise ListingError(
            f"the number of layers of {repo} is unknown offline; {cached} can be had without the Hub: name them with --layers"
        )
    row = formats.by_name(name)
    return Plan(row, _beside(row, _wanted(job, repo, known, max(known) + 1)), _beside(row, known), config, commit, side=side, listing=listing)


def _wanted(job: Job, repo: str, known: dict[int, HubFile], n_layers: int) -> dict[int, HubFile]:
    """Of the files known those of the job's layers."""
    if job.layers == SAMPLE:
        layers = {0, (n_layers - 1) // 2, n_layers - 1}
    else:
        layers = set(known) if job.layers == ALL else set(map(int, job.layers))
    missing = sorted(layers - known.keys())
    if missing:
        whole = sorted(known) == list(range(n_layers))
        listed = f"the layers 0 to {n_layers - 1}" if whole else f"the layers {', '.join(map(str, sorted(known)))}"
        raise LayerError(f"{repo} lists {listed}; it has no layer {missing[0]}")
    return {layer: known[layer] for layer in sorted(layers)}


def _format(job: Job, source: Source, rows: list[Format], files: dict[int, HubFile], where: str) -> Format:
    """The one row that fits what is seen: how the files end, and where that leaves several, the first one's tensors."""
    _refuse_foreign(files.values())
    if job.origin.schema is not None:
        rows = [formats.by_name(job.origin.schema)]
    layer, first = next(iter(files.items()))
    left = [row for row in rows if all(file.path.endswith(row.suffixes) for file in files.values())]
    if not left:
        suffixes = {suffix for row in rows for suffix in row.suffixes}
        known = {suffix: file.path for file in files.values() for suffix in suffixes if file.path.endswith(suffix)}
        if len(known) > 1:
            raise CurationError(f"{' and '.join(known.values())}: {where} names files of several formats, and a schema has one")
        odd = next((file.path for file in files.values() if not file.path.endswith(tuple(known))), first.path)
        raise CurationError(
            f"{odd}: no schema that {where} can name has such files; "
            f"{', '.join(f'{row.name} has *{row.suffixes[0]}' for row in rows) or 'there is none of that kind'}"
        )
    if len(left) == 1:
        return left[0]
    beside = [row for row in left if row.side_file and _has_side_file(row, layer, first, source)]
    if len(beside) == 1 and all(row.side_file for row in left):
        return beside[0]
    with source.open(first) as file:
        names = file.open.tensors().names
    seen = f"{first.path} has the tensors {_shown(names)}"
    fitting = [row for row in left if row.holds(names, layer)]
    if not fitting:
        raise CurationError(f"{seen}: that is none of {', '.join(row.name for row in left)}")
    if len(fitting) > 1:
        raise CurationError(f"{seen}: that may be {' or '.join(row.name for row in fitting)}; choose by --schema")
    return fitting[0]


def _refuse_foreign(files: Iterable[HubFile]) -> None:
    """Raise CurationError for files of what cannot be read."""
    for file in files:
        owner = FOREIGN.get(posixpath.basename(file.path))
        if owner:
            raise CurationError(f"{file.path} is {owner}: it is no map of one vector, and is not read")


def _is_of_kind(row: Format, kind: str | None) -> bool:
    return kind is None or row.model_kind == kind


def _shown(names: Collection[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - MOST_SHOWN} more" if len(listed) > MOST_SHOWN else ""
    return (", ".join(ascii(name)[1:-1] for name in listed[:MOST_SHOWN]) or "none") + more
