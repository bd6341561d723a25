# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON that others wrote, parsed and checked before anything believes it: the one door of references and candidates.

The same checks hold for a file, for standard input and for a document that a program hands over.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

from oracle import strict_json
from oracle.arithmetic.generator import MAX_U64, NAME, VERSION
from oracle.errors import BadUse
from oracle.job import MAX_TOLERANCE
from oracle.references.document import (
    DEFAULT_TOLERANCE,
    FORMAT_VERSION,
    Candidate,
    Case,
    CaseId,
    DataError,
    Document,
    LayerRecord,
    Reconstruction,
    Reference,
    SkippedSeed,
    TopFeature,
    generator_record,
    seed_case,
)
from oracle.weights.formats import EXTENT_LIMIT, REPO_KEYS

READ_LIMIT = 256 * 1024 * 1024

OURS_ALONE = {"residual_generator", "layers", "top_k", "skipped_seeds"}  # keys that torch's references do not have
KNOWN = {
    *REPO_KEYS, *OURS_ALONE, "format_version", "weights_revision", "curation_repo", "curation_revision", "methodology", "schema",
    "encoder_formula", "d_model", "n_features_per_layer", "tolerance", "test_cases", "environment",
}  # fmt: skip


class InputError(BadUse, OSError):
    """A JSON file that was named cannot be read."""


def read_reference(path: str) -> Reference:
    """The reference in a file; `-` is standard input. Raises DataError and InputError."""
    return parse_reference(_read_json(path), path)


def read_candidate(path: str, top_key: str) -> Candidate:
    """The candidate in a file; `-` is standard input. Raises DataError and InputError."""
    return parse_candidate(_read_json(path), top_key, path)


def parse_reference(document: Any, name: str = "the reference") -> Reference:
    """A reference: ours, or one that torch wrote, which has no generator, margins or layers.

    `name` names it in messages. Raises DataError.
    """
    fields = _Fields(document, name)
    ours = "format_version" in fields
    if ours and fields.value["format_version"] != FORMAT_VERSION:
        raise DataError(f"{name}: format_version is {_shown(fields.value['format_version'])}; {FORMAT_VERSION} is read")
    if not ours and fields.value.keys() & OURS_ALONE:
        raise DataError(f"{name}: format_version is missing from a reference of ours: it was edited")
    repos = [(key, fields.text(key)) for key in REPO_KEYS if key in fields]
    if not repos:
        raise DataError(f"{name}: the reference names no repo of its weights: none of {', '.join(REPO_KEYS)}")
    if ours:
        _check_generator(fields)
    n_features = fields.integer("n_features_per_layer", 1, EXTENT_LIMIT)
    # Residuals are made, and lists held against it, before any weight file says how large it is.
    d_model = fields.integer("d_model", 1, EXTENT_LIMIT)
    top_k = fields.integer("top_k", 1) if ours else 10
    layers = tuple(_layer_records(fields, repos[0][1])) if ours else ()
    return Reference(
        format_version=FORMAT_VERSION if ours else None,
        repo_key=repos[0][0],
        weights_repo=repos[0][1],
        weights_revision=fields.text_or_none("weights_revision"),
        curation_repo=fields.text("curation_repo") if "curation_repo" in fields else None,
        curation_revision=fields.text_or_none("curation_revision"),
        methodology=fields.text_or_none("methodology"),
        schema=fields.text("schema") if ours else fields.text_or_none("schema"),
        encoder_formula=fields.text("encoder_formula") if ours else fields.text_or_none("encoder_formula"),
        d_model=d_model,
        n_features=n_features,
        top_k=top_k,
        tolerance=float(fields.number("tolerance", 0, MAX_TOLERANCE)) if ours or "tolerance" in fields else DEFAULT_TOLERANCE,
        layers=layers,
        skipped_seeds=tuple(_skipped_seeds(fields, layers)) if "skipped_seeds" in fields else None,
        cases=tuple(_reference_cases(fields, ours, layers, d_model, n_features, top_k)),
        environment=fields.value["environment"] if isinstance(fields.value.get("environment"), dict) else None,
        other={key: value for key, value in fields.value.items() if key not in KNOWN and _is_scalar(value)},
    )


def parse_candidate(document: Any, top_key: str, name: str = "the candidate") -> Candidate:
    """A candidate: `test_cases` with layer, seed, n_active and the list `top_key`. Raises DataError."""
    return Candidate({case.id: case for case, _ in _cases(_Fields(document, name), top_key)})


def _cases(fields: _Fields, top_key: str) -> Iterator[tuple[Case, _Fields]]:
    """What references and candidates share, a case at a time with its fields."""
    ids: set[CaseId] = set()
    for case in fields.objects("test_cases"):
        case_id = seed_case(case.integer("layer"), case.integer("seed"))
        if case_id in ids:
            raise case.error(f"layer {case_id.layer}, seed {case_id.number}, which is there already")
        ids.add(case_id)
        top = tuple(
            TopFeature(entry.integer("index", -MAX_U64), float(entry.number("activation")))
            for entry in case.objects(top_key, "index and activation")
        )
        yield Case(case_id, case.integer("n_active"), top, tuple(_reconstructions(case))), case
    if not ids:
        raise fields.error("empty", "test_cases")


def _reference_cases(
    fields: _Fields, ours: bool, layers: tuple[LayerRecord, ...], d_model: int, n_features: int, top_k: int
) -> Iterator[Case]:
    listed = {record.layer for record in layers}
    for case, item in _cases(fields, f"top_{top_k}"):
        if ours and case.id.layer not in listed:
            raise item.error(f"{case.id.layer}, which `layers` does not list", "layer")
        if any(top.feature >= n_features for top in case.top):
            raise item.error(f"a list with an index past the {n_features} features", f"top_{top_k}")
        residual = None
        if "residual" in item or not ours:
            residual = item.numbers("residual")
            if len(residual) != d_model:
                raise item.error(f"{len(residual)} values long, but d_model is {d_model}", "residual")
        for number, output in enumerate(case.reconstructions):
            if output.tolerance is None:
                raise item.error("missing", f"reconstructions[{number}].tolerance")

        def says(key: str) -> bool:
            return ours or key in item  # what torch's references need not have must be right where it is there

        bounds = _bounds(item) if says("n_active_bounds") or "gate_ties" in item else None
        yield Case(
            case.id,
            case.n_active,
            case.top,
            case.reconstructions,
            stream=item.integer("stream") if says("stream") else None,
            residual_fingerprint=item.text("residual_fingerprint") if says("residual_fingerprint") else None,
            n_active_bounds=bounds,
            rank_margin=item.number_or_none("rank_margin", required=ours),
            gate_margin=item.number("gate_margin", 0) if says("gate_margin") else None,
            gate_ties=_gate_ties(item, bounds, n_features) if bounds and says("gate_ties") else None,
            flags=item.texts("flags") if says("flags") else None,
            residual=residual,
        )


def _bounds(case: _Fields) -> tuple[int, int]:
    bounds = case.items("n_active_bounds")
    if len(bounds) != 2 or not all(_is_integer(bound) and bound >= 0 for bound in bounds) or bounds[0] > bounds[1]:
        raise case.error("not two numbers of features, the fewest and the most", "n_active_bounds")
    return bounds[0], bounds[1]


def _gate_ties(case: _Fields, bounds: tuple[int, int], n_features: int) -> tuple[int, ...]:
    ties = case.items("gate_ties")
    if not all(_is_integer(tie) and 0 <= tie < n_features for tie in ties) or ties != sorted(set(ties)):
        raise case.error(f"not ascending indices of the {n_features} features", "gate_ties")
    if len(ties) != bounds[1] - bounds[0]:
        raise case.error(f"{len(ties)} long, but n_active_bounds are {bounds[1] - bounds[0]} apart", "gate_ties")
    return tuple(ties)


def _reconstructions(case: _Fields) -> Iterator[Reconstruction]:
    targets: set[int] = set()
    for output in case.objects("reconstructions") if "reconstructions" in case else ():
        target = output.integer("target_layer")
        if target in targets:
            raise output.error(f"for target layer {target}, which is there already")
        targets.add(target)
        yield Reconstruction(
            target,
            float(output.number("norm")),
            float(output.number("sum")),
            float(output.number("sum_of_squares")),
            tuple(map(float, output.numbers("first_10"))),
            float(output.number("tolerance", 0)) if "tolerance" in output else None,
        )


def _layer_records(fields: _Fields, repo: str) -> Iterator[LayerRecord]:
    known: set[int] = set()
    own_revision = fields.text_or_none("weights_revision")
    for record in fields.objects("layers"):
        layer = record.integer("layer")
        if layer in known:
            raise record.error(f"layer {layer}, which is there already")
        known.add(layer)
        yield LayerRecord(
            layer,
            record.text("path"),
            record.text_or_none("sha256"),
            record.text_or_none("repo") or repo,
            record.text_or_none("revision") if "revision" in record else own_revision,
            record.text_or_none("decoder_path"),
            record.text_or_none("decoder_sha256"),
        )


def _skipped_seeds(fields: _Fields, layers: tuple[LayerRecord, ...]) -> Iterator[SkippedSeed]:
    listed = {record.layer for record in layers}
    for record in fields.objects("skipped_seeds"):
        layer = record.integer("layer")
        if layer not in listed:
            raise record.error(f"{layer}, which `layers` does not list", "layer")
        yield SkippedSeed(
            seed_case(layer, record.integer("seed")),
            _bounds(record),
            record.number_or_none("rank_margin", required=True),
            record.number("gate_margin", 0),
            record.texts("flags"),
        )


def _check_generator(fields: _Fields) -> None:
    recorded = fields.value.get("residual_generator")
    if not isinstance(recorded, dict):
        raise fields.error(f"{_shown(recorded)}, not an object", "residual_generator")
    named = recorded.get("name"), recorded.get("version")
    if named == (NAME, VERSION) and recorded != generator_record():
        raise fields.error("not the record of its name and version: it was edited", "residual_generator")
    if named != (NAME, VERSION):
        problem = f"{_shown(named[0])} version {_shown(named[1])}; {NAME} version {VERSION} is known"
        raise fields.error(problem, "residual_generator")


def _read_json(path: str) -> Any:
    try:
        # One byte past the limit tells a file that is too large, whatever kind of file it is.
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            raw = file.read(READ_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > READ_LIMIT:
        raise DataError(f"{path} is larger than {READ_LIMIT >> 20} MiB, the most that is read")
    try:
        return strict_json.loads(raw)
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not readable JSON: {problem}") from error


def _is_integer(value: Any) -> bool:
    return type(value) is int  # bool is an int to isinstance


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) <= MAX_U64


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else ascii(value)[:40]


class _Fields:
    """A JSON object and its place in a file. Takes fields out, and raises DataError, which names both, where they are wrong."""

    def __init__(self, value: Any, file: str, place: str = "", wanted: str = ""):
        self._file, self._place = file, place
        if not isinstance(value, dict):
            kind = f"not an object{f' with {wanted}' if wanted else ''}"
            raise self.error(f"{_shown(value)}, {kind}") if place else DataError(f"{file} holds {_shown(value)}, {kind}")
        self.value: Document = value

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def error(self, problem: str, key: str = "") -> DataError:
        return DataError(f"{self._file}: {'.'.join(filter(None, (self._place, key)))} is {problem}")

    def integer(self, key: str, low: int = 0, high: int = MAX_U64) -> int:
        value: int = self._get(key)
        if not _is_integer(value) or not low <= value <= high:
            span = (f" from {low}" if low >= 0 else "") + (f" to {high}" if high < MAX_U64 else "")
            raise self.error(f"{_shown(value)}, not a whole number{span}", key)
        return value

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        value: float = self._get(key)
        if not _is_number(value) or not low <= value <= high:
            span = (" from 0" if low == 0 else "") + (f" to {high:g}" if high < math.inf else "")
            raise self.error(f"{_shown(value)}, not a finite number{span}", key)
        return value

    def number_or_none(self, key: str, *, required: bool) -> float | None:
        """A number from 0, or null, which says that there is none; so does a key that is not `required` and is missing."""
        if self.value.get(key) is None and (key in self.value or not required):
            return None
        return self.number(key, 0)

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self.error(f"{_shown(value)}, not a text", key)
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def items(self, key: str) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list):
            raise self.error(f"{_shown(value)}, not a list", key)
        return value

    def numbers(self, key: str) -> list[float]:
        values = self.items(key)
        if not all(map(_is_number, values)):
            raise self.error("not a list of finite numbers", key)
        return values

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise self.error("not a list of texts", key)
        return tuple(values)

    def objects(self, key: str, wanted: str = "") -> Iterator[_Fields]:
        """Each object of a list, with its place."""
        place = ".".join(filter(None, (self._place, key)))
        for number, value in enumerate(self.items(key)):
            yield _Fields(value, self._file, f"{place}[{number}]", wanted)

    def _get(self, key: str) -> Any:
        if key not in self.value:
            raise self.error("missing", key)
        return self.value[key]
