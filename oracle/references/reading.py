# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON that others wrote, read and checked before anything believes it: references and candidates."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

from oracle import strict_json
from oracle.arithmetic.residual import NAME, VERSION
from oracle.job import MAX_TOLERANCE
from oracle.references.document import FORMAT_VERSION, DataError, Document, InputError, generator_record, weights_repo
from oracle.weights import formats as schemas
from oracle.weights.tensors import EXTENT_LIMIT

READ_LIMIT = 256 * 1024 * 1024
MAX_U64 = 2**64 - 1


def read_reference(path: str) -> Document:
    """A reference, checked: ours, or one that torch wrote, which has no generator, margins or layers.

    Raises DataError and InputError.
    """
    document = _read_object(path)
    if document.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise DataError(f"{path}: format_version is {_shown(document['format_version'])}; {FORMAT_VERSION} is read")
    check = _Checker(path)
    ours = "format_version" in document
    if not ours and document.keys() & {"residual_generator", "layers", "top_k", "skipped_seeds"}:
        raise DataError(f"{path}: format_version is missing from a reference of ours: it was edited")
    for key in ("schema", "encoder_formula"):
        if ours or key in document:
            check.text(document, key, "")
    for key in ("curation_repo", *(schema.repo_key for schema in schemas.SCHEMAS)):
        if key in document:
            check.text(document, key, "")
    try:
        weights_repo(document)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # Residuals are made, and lists held against it, before any weight file says how large it is.
    d_model = check.integer(document, "d_model", "", low=1, high=EXTENT_LIMIT)
    n_features = check.integer(document, "n_features_per_layer", "", low=1, high=EXTENT_LIMIT)
    if ours or "tolerance" in document:
        check.number(document, "tolerance", "", low=0, high=MAX_TOLERANCE)
    if ours:
        _check_layers(check, document)
        _check_generator(check, document)
        _check_skipped(check, document)
    top = f"top_{check.integer(document, 'top_k', '', low=1)}" if ours else "top_10"
    for case, where in _cases(check, document, top):
        if any(place["index"] >= n_features for place in case[top]):
            raise check.error(f"{where}.{top}", f"a list with an index past the {n_features} features")
        if "residual" in case or not ours:
            _check_residual(check, case, where, d_model)
        _check_margins(check, case, where, n_features, required=ours)
        for place, made in enumerate(case.get("reconstructions", [])):
            check.number(made, "tolerance", f"{where}.reconstructions[{place}]", low=0)
    return document


def read_candidate(path: str, top: str) -> Document:
    """A candidate, checked: `test_cases` with layer, seed, n_active and the list `top`. Raises DataError and InputError."""
    document = _read_object(path)
    for _ in _cases(_Checker(path), document, top):
        pass
    return document


def _cases(check: _Checker, document: Document, top: str) -> Iterator[tuple[Document, str]]:
    """What a reference and a candidate share, checked, a case at a time with its place in the file."""
    seen: set[tuple[int, int]] = set()
    for number, case in enumerate(check.items(document, "test_cases", "")):
        where = f"test_cases[{number}]"
        if not isinstance(case, dict):
            raise check.error(where, f"{_shown(case)}, not an object")
        key = check.integer(case, "layer", where), check.integer(case, "seed", where)
        if key in seen:
            raise check.error(where, f"layer {key[0]}, seed {key[1]}, which is there already")
        seen.add(key)
        check.integer(case, "n_active", where)
        for place, entry in enumerate(check.items(case, top, where)):
            there = f"{where}.{top}[{place}]"
            if not isinstance(entry, dict):
                raise check.error(there, f"{_shown(entry)}, not an object with index and activation")
            check.integer(entry, "index", there, low=-MAX_U64)
            check.number(entry, "activation", there)
        _check_reconstructions(check, case, where)
        yield case, where
    if not seen:
        raise check.error("test_cases", "empty")


def _check_layers(check: _Checker, document: Document) -> None:
    known: set[int] = set()
    for number, record in enumerate(check.items(document, "layers", "")):
        where = f"layers[{number}]"
        if not isinstance(record, dict):
            raise check.error(where, f"{_shown(record)}, not an object")
        if check.integer(record, "layer", where) in known:
            raise check.error(where, f"layer {record['layer']}, which is there already")
        known.add(record["layer"])
        check.text(record, "path", where)
        for key in ("sha256", "repo", "revision", "decoder_path", "decoder_sha256"):
            if record.get(key) is not None:
                check.text(record, key, where)
    for key in ("weights_revision", "curation_revision"):
        if document.get(key) is not None:
            check.text(document, key, "")
    cases = check.items(document, "test_cases", "")
    for number, case in enumerate(cases):
        if isinstance(case, dict) and _is_integer(case.get("layer")) and case["layer"] not in known:
            raise check.error(f"test_cases[{number}].layer", f"{case['layer']}, which `layers` does not list")


def _check_reconstructions(check: _Checker, case: Document, where: str) -> None:
    targets = set()
    for place, made in enumerate(check.items(case, "reconstructions", where) if "reconstructions" in case else []):
        there = f"{where}.reconstructions[{place}]"
        if not isinstance(made, dict):
            raise check.error(there, f"{_shown(made)}, not an object")
        if check.integer(made, "target_layer", there) in targets:
            raise check.error(there, f"for target layer {made['target_layer']}, which is there already")
        targets.add(made["target_layer"])
        for key in ("norm", "sum", "sum_of_squares"):
            check.number(made, key, there)
        if not all(_is_number(value) for value in check.items(made, "first_10", there)):
            raise check.error(f"{there}.first_10", "not a list of finite numbers")


def _check_skipped(check: _Checker, document: Document) -> None:
    known = {record["layer"] for record in document["layers"]}
    for number, record in enumerate(check.items(document, "skipped_seeds", "") if "skipped_seeds" in document else []):
        where = f"skipped_seeds[{number}]"
        if not isinstance(record, dict):
            raise check.error(where, f"{_shown(record)}, not an object")
        if check.integer(record, "layer", where) not in known:
            raise check.error(f"{where}.layer", f"{record['layer']}, which `layers` does not list")
        check.integer(record, "seed", where)


def _check_generator(check: _Checker, document: Document) -> None:
    recorded = document.get("residual_generator")
    if not isinstance(recorded, dict):
        raise check.error("residual_generator", f"{_shown(recorded)}, not an object")
    named = recorded.get("name"), recorded.get("version")
    if named == (NAME, VERSION) and recorded != generator_record():
        raise check.error("residual_generator", "not the record of its name and version: it was edited")
    if named != (NAME, VERSION):
        raise check.error(
            "residual_generator", f"{_shown(named[0])} version {_shown(named[1])}; {NAME} version {VERSION} is known"
        )


def _check_residual(check: _Checker, case: Document, where: str, d_model: int) -> None:
    values = check.items(case, "residual", where)
    if len(values) != d_model:
        raise check.error(f"{where}.residual", f"{len(values)} values long, but d_model is {d_model}")
    if not all(_is_number(value) for value in values):
        raise check.error(f"{where}.residual", "not a list of finite numbers")


def _check_margins(check: _Checker, case: Document, where: str, n_features: int, *, required: bool) -> None:
    """What our cases say beside the answer. Where it is not `required`, what is there must be right all the same."""

    def says(key: str) -> bool:
        return required or key in case

    if says("stream"):
        check.integer(case, "stream", where)
    if says("residual_fingerprint"):
        check.text(case, "residual_fingerprint", where)
    if says("gate_margin"):
        check.number(case, "gate_margin", where, low=0)
    if says("rank_margin") and case.get("rank_margin", 0) is not None:
        check.number(case, "rank_margin", where, low=0)
    if says("n_active_bounds") or "gate_ties" in case:
        bounds = check.items(case, "n_active_bounds", where)
        if len(bounds) != 2 or not all(_is_integer(bound) and bound >= 0 for bound in bounds) or bounds[0] > bounds[1]:
            raise check.error(f"{where}.n_active_bounds", "not two numbers of features, the fewest and the most")
        if "gate_ties" in case:  # our first references have none
            ties = check.items(case, "gate_ties", where)
            if not all(_is_integer(tie) and 0 <= tie < n_features for tie in ties) or ties != sorted(set(ties)):
                raise check.error(f"{where}.gate_ties", f"not ascending indices of the {n_features} features")
            n_open = bounds[1] - bounds[0]
            if len(ties) != n_open:
                raise check.error(f"{where}.gate_ties", f"{len(ties)} long, but n_active_bounds are {n_open} apart")
    if says("flags") and not all(isinstance(flag, str) for flag in check.items(case, "flags", where)):
        raise check.error(f"{where}.flags", "not a list of texts")


def _read_object(path: str) -> Document:
    try:
        # One byte past the limit tells a file that is too large, whatever kind of file it is.
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            raw = file.read(READ_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > READ_LIMIT:
        raise DataError(f"{path} is larger than {READ_LIMIT >> 20} MiB, the most that is read")
    try:
        document = strict_json.loads(raw)
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not readable JSON: {problem}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds {_shown(document)}, not an object")
    return document


def _is_integer(value: Any) -> bool:
    return type(value) is int  # bool is an int to isinstance


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) <= MAX_U64


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else ascii(value)[:40]


class _Checker:
    """Takes fields out of one file's objects and raises DataError, naming the file and the place, where they are wrong."""

    def __init__(self, path: str):
        self._path = path

    def error(self, where: str, what: str) -> DataError:
        return DataError(f"{self._path}: {where} is {what}")

    def integer(self, item: Document, key: str, where: str, low: int = 0, high: int = MAX_U64) -> int:
        value: int = self._get(item, key, where)
        if not _is_integer(value) or not low <= value <= high:
            span = (f" from {low}" if low >= 0 else "") + (f" to {high}" if high < MAX_U64 else "")
            raise self.error(_place(where, key), f"{_shown(value)}, not a whole number{span}")
        return value

    def number(self, item: Document, key: str, where: str, low: float = -math.inf, high: float = math.inf) -> float:
        value: float = self._get(item, key, where)
        if not _is_number(value) or not low <= value <= high:
            span = (" from 0" if low == 0 else "") + (f" to {high:g}" if high < math.inf else "")
            raise self.error(_place(where, key), f"{_shown(value)}, not a finite number{span}")
        return value

    def text(self, item: Document, key: str, where: str) -> str:
        value = self._get(item, key, where)
        if not isinstance(value, str):
            raise self.error(_place(where, key), f"{_shown(value)}, not a text")
        return value

    def items(self, item: Document, key: str, where: str) -> list[Any]:
        value = self._get(item, key, where)
        if not isinstance(value, list):
            raise self.error(_place(where, key), f"{_shown(value)}, not a list")
        return value

    def _get(self, item: Document, key: str, where: str) -> Any:
        if key not in item:
            raise self.error(_place(where, key), "missing")
        return item[key]


def _place(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
