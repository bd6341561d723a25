# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON that others wrote, parsed and checked before anything believes it: the one door of references and candidates.

The same checks hold for a file, for standard input and for a document that a program hands over.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from oracle import strict_json
from oracle.errors import BadUse, did_you_mean
from oracle.references.document import Candidate, Case, Reference
from oracle.references.rows import CANDIDATE, OURS, REFERENCE, DataError, Document, Fields, document_schema, file_name, objects, parse, schema
from oracle.weights.formats import REPO_KEYS

READ_LIMIT = 256 * 1024 * 1024
_CANDIDATE_CASES = objects(Case, "id")


class InputError(BadUse, OSError):
    """A JSON file that was named cannot be read."""


def read_reference(path: str) -> Reference:
    """The reference in a file; `-` is standard input. Raises DataError and InputError."""
    return parse_reference(read_json(path), path)


def read_candidate(path: str, top_k: int) -> Candidate:
    """The candidate in a file; `-` is standard input. Raises DataError and InputError."""
    return parse_candidate(read_json(path), top_k, path)


def are_vectors(document: Any) -> bool:
    """Whether a JSON is that of exact vectors, not a reference."""
    return isinstance(document, dict) and "notes" in document and "format" in document


def are_answers(document: Any) -> bool:
    """Whether a JSON is what a port printed: nothing but cases says what it is of."""
    return isinstance(document, dict) and "test_cases" in document and not document.keys() & {"d_model", "n_features_per_layer", "format_version"}


def parse_reference(document: Any, name: str = "the reference") -> Reference:
    """A reference: ours, or one that torch wrote. One that has any key of ours is ours. `name` names it in messages. Raises DataError."""
    if are_vectors(document):
        raise DataError(f"{file_name(name)} holds exact vectors, not a reference: `compare` alone reads them")
    _refuse_list(document, name)
    item = Fields(document, name, REFERENCE)
    if are_answers(document):
        raise DataError(f"{file_name(name)} holds a port's answers, not a reference: a reference comes first, python -m oracle compare REFERENCE {name}")
    cases = [case for case in item.items("test_cases") if isinstance(case, dict)]
    if item.value.keys() & _keys(Reference) or any(case.keys() & _keys(Case) for case in cases):
        item.kind = OURS
    reference = parse(Reference, item)
    _refuse_empty(item, reference.cases)
    if reference.residuals.is_of_file and None in (reference.residuals.name, reference.residuals.sha256):
        raise item.error("a file without its name, or its sha256", "residuals")
    for key in reference.residuals.own_keys if reference.is_ours else ("residual",):
        place = next((place for place, case in enumerate(reference.cases) if getattr(case, key) is None), None)
        if place is not None:
            raise item.error("missing", f"test_cases[{place}].{key}")
    known = {rule.metadata["key"] or rule.name for rule in fields(Reference) if rule.metadata} | set(REPO_KEYS)
    other = {key: value for key, value in item.value.items() if key not in known and not isinstance(value, (dict, list))}
    return replace(reference, other=other)


def parse_candidate(document: Any, top_k: int, name: str = "the candidate") -> Candidate:
    """A candidate: `test_cases` with layer, seed or row, n_active and the list of the `top_k` features. Raises DataError."""
    _refuse_list(document, name)
    item = Fields(document, name, CANDIDATE)
    if are_vectors(document):
        raise DataError(f"{file_name(name)} holds exact vectors, not a port's answers to a reference")
    for place, case in enumerate(item.items("test_cases")):
        keys = [key for key in case if re.fullmatch(r"top_\d+", key)] if isinstance(case, dict) else []
        if keys and f"top_{top_k}" not in keys:
            raise item.problem(f"test_cases[{place}] has {keys[0]}, and this reference's lists have {top_k} features: print them as top_{top_k}")
    item.known["top_k"] = top_k
    cases = _CANDIDATE_CASES(item, "test_cases")
    _refuse_empty(item, cases)
    return Candidate({case.id: case for case in cases})


def as_read(document: Any, name: str) -> Any:
    """A document that a program hands over, as it is read from a file: whatever no JSON has is refused. Raises DataError.

    NumPy's numbers and arrays, and whatever else has `tolist`, are the numbers and lists that they hold.
    """
    text = ""
    try:
        text = json.dumps(document, default=_listed)
        return strict_json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unreadable(name, error, _recognised(text.encode()) if text else "") from error


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def reference_schema() -> Document:
    """The JSON Schema of the references that oracle writes, made from the rows by which they are read."""
    return document_schema("reference", "A reference: what features fire for known residuals, and how strongly", schema(Reference, OURS))


def candidate_schema() -> Document:
    """The JSON Schema of what a port prints."""
    whole = {"type": "object", "properties": {"test_cases": _CANDIDATE_CASES.schema(CANDIDATE)}, "required": ["test_cases"]}
    return document_schema("candidate", "A candidate: a port's answers to the cases of a reference", whole)


def is_reference(document: Any) -> bool:
    """Whether a JSON is a reference that oracle wrote, wherever it stands."""
    return isinstance(document, dict) and "format_version" in document and "residual_generator" in document


def _refuse_list(document: Any, name: str) -> None:
    if isinstance(document, list):
        raise DataError(f'{file_name(name)} holds a list, not an object: put it under a key, {{"test_cases": [...]}}')


def _keys(kind: type) -> set[str]:
    """The keys that references of ours have, and torch's have not."""
    rows = [rule for rule in fields(kind) if rule.metadata]
    return {
        rule.metadata["key"] or rule.name
        for rule in rows
        if rule.metadata["since"] == OURS or (rule.metadata["since"], rule.metadata["required"]) == (CANDIDATE, OURS)
    }


def _refuse_empty(item: Fields, cases: tuple[Case, ...]) -> None:
    if not cases:
        raise item.error("empty", "test_cases")


def read_json(path: str) -> Any:
    """The JSON in a file; `-` is standard input. Raises DataError and InputError."""
    if re.match("[a-z]+://", path):
        raise InputError(f"{path} is an address, and a file is read: fetch it first (curl -LO {path}), or give - and its text on standard input")
    if path == "-" and sys.stdin is None:
        raise InputError("standard input is closed: name a file")
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            return strict_json.load(file, READ_LIMIT)
    except IsADirectoryError as error:
        raise InputError(f"{file_name(path)} cannot be read: it is a folder, name the JSON in it{_of_folder(path)}") from error
    except FileNotFoundError as error:
        folder, name = os.path.split(path)
        meant = did_you_mean(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else ""
        raise InputError(f"{file_name(path)} cannot be read: {error.strerror}{meant}") from error
    except OSError as error:
        raise InputError(f"{file_name(path)} cannot be read: {error.strerror}") from error
    except strict_json.TooLargeError as error:
        raise DataError(f"{file_name(path)} is larger than {READ_LIMIT >> 20} MiB, the most that is read: --omit-residuals makes a reference small") from error
    except strict_json.UnreadableError as error:
        raise _unreadable(path, error, _recognised(error.text)) from error


def _of_folder(path: str) -> str:
    """The JSON files of a folder, as the end of an error's line."""
    with contextlib.suppress(OSError):
        names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
        return f": {', '.join(names[:3])}" if names else ""
    return ""


def _recognised(raw: bytes | None) -> str:
    """What a text is that is no JSON as its standard has it; "" where it is not known either, or is too long to look at."""
    if raw is None:
        return ""
    if not raw.strip():
        return "it is empty; whatever was to write it wrote nothing"
    with contextlib.suppress(ValueError, RecursionError):
        first, second = raw.lstrip().split(b"\n", 2)[:2]
        if all(isinstance(json.loads(line), dict) for line in (first, second)):
            return 'it holds JSON Lines, and one object is read: put the lines into a list, {"test_cases": [...]}'
    with contextlib.suppress(ValueError, RecursionError):
        for place, case, value in _numbers(json.loads(raw), "", ""):
            if not math.isfinite(value):
                text = "NaN" if math.isnan(value) else "Infinity"
                return f"{text} is no number in JSON, and {place.lstrip('.')}{case} is {text}"
    return ""


def _numbers(value: Any, place: str, case: str) -> Iterator[tuple[str, str, float]]:
    """Every number that is no whole one: its place, and which case it is of in words, if of one."""
    if isinstance(value, float):
        yield place, case, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{place}[{number}]", case)
    elif isinstance(value, dict):
        words = [f"{key} {value[key]}" for key in ("layer", "seed", "row", "case") if isinstance(value.get(key), int)]
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}", f" ({' '.join(words)})" if len(words) > 1 else case)


def _unreadable(name: str, error: Exception, recognised: str = "") -> DataError:
    problem = recognised or " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{file_name(name)} is not readable JSON: {problem}")
