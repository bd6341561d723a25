# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON that others wrote, parsed and checked before anything believes it: the one door of references and candidates.

The same checks hold for a file, for standard input and for a document that a program hands over.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import fields, replace
from typing import Any

from oracle import strict_json
from oracle.errors import BadUse
from oracle.references.document import Candidate, Case, Reference
from oracle.references.rows import CANDIDATE, OURS, REFERENCE, DataError, Document, Fields, document_schema, objects, parse, schema
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


def parse_reference(document: Any, name: str = "the reference") -> Reference:
    """A reference: ours, or one that torch wrote. One that has any key of ours is ours. `name` names it in messages. Raises DataError."""
    if are_vectors(document):
        raise DataError(f"{name} holds exact vectors, not a reference: `compare` alone reads them")
    item = Fields(document, name, REFERENCE)
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
    item = Fields(document, name, CANDIDATE)
    item.known["top_k"] = top_k
    cases = _CANDIDATE_CASES(item, "test_cases")
    _refuse_empty(item, cases)
    return Candidate({case.id: case for case in cases})


def reference_schema() -> Document:
    """The JSON Schema of the references that oracle writes, made from the rows by which they are read."""
    return document_schema("reference", "A reference: what features fire for known residuals, and how strongly", schema(Reference, OURS))


def candidate_schema() -> Document:
    """The JSON Schema of what a port prints."""
    whole = {"type": "object", "properties": {"test_cases": _CANDIDATE_CASES.schema(CANDIDATE)}, "required": ["test_cases"]}
    return document_schema("candidate", "A candidate: a port's answers to the cases of a reference", whole)


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
    if path == "-" and sys.stdin is None:
        raise InputError("standard input is closed: name a file")
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            return strict_json.load(file, READ_LIMIT)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except strict_json.TooLargeError as error:
        raise DataError(f"{path} is larger than {READ_LIMIT >> 20} MiB, the most that is read: --omit-residuals makes a reference small") from error
    except ValueError as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not readable JSON: {problem}") from error
