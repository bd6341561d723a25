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
from oracle.references.rows import CANDIDATE, OURS, REFERENCE, DataError, Fields, objects, parse
from oracle.weights.formats import REPO_KEYS

READ_LIMIT = 64 * 1024 * 1024


class InputError(BadUse, OSError):
    """A JSON file that was named cannot be read."""


def read_reference(path: str) -> Reference:
    """The reference in a file; `-` is standard input. Raises DataError and InputError."""
    return parse_reference(_read_json(path), path)


def read_candidate(path: str, top_k: int) -> Candidate:
    """The candidate in a file; `-` is standard input. Raises DataError and InputError."""
    return parse_candidate(_read_json(path), top_k, path)


def parse_reference(document: Any, name: str = "the reference") -> Reference:
    """A reference: ours, or one that torch wrote. One that has any key of ours is ours. `name` names it in messages. Raises DataError."""
    item = Fields(document, name, REFERENCE)
    cases = [case for case in item.items("test_cases") if isinstance(case, dict)]
    if item.value.keys() & _keys(Reference) or any(case.keys() & _keys(Case) for case in cases):
        item.kind = OURS
    reference = parse(Reference, item)
    _refuse_empty(item, reference.cases)
    if not reference.is_ours and any(case.residual is None for case in reference.cases):
        raise item.error("missing", "test_cases: a residual")
    known = {rule.metadata["key"] or rule.name for rule in fields(Reference) if rule.metadata} | set(REPO_KEYS)
    other = {key: value for key, value in item.value.items() if key not in known and not isinstance(value, (dict, list))}
    return replace(reference, other=other)


def parse_candidate(document: Any, top_k: int, name: str = "the candidate") -> Candidate:
    """A candidate: `test_cases` with layer, seed, n_active and the list of the `top_k` features. Raises DataError."""
    item = Fields(document, name, CANDIDATE)
    item.known["top_k"] = top_k
    cases = objects(Case, "id")(item, "test_cases")
    _refuse_empty(item, cases)
    return Candidate({case.id: case for case in cases})


def _keys(kind: type) -> set[str]:
    """The keys that references of ours alone have."""
    return {rule.metadata["key"] or rule.name for rule in fields(kind) if rule.metadata.get("since") == OURS}


def _refuse_empty(item: Fields, cases: tuple[Case, ...]) -> None:
    if not cases:
        raise item.error("empty", "test_cases")


def _read_json(path: str) -> Any:
    if path == "-" and sys.stdin is None:
        raise InputError("standard input is closed: name a file")
    try:
        # One byte past the limit tells a file that is too large, whatever kind of file it is.
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            raw = file.read(READ_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > READ_LIMIT:
        raise DataError(f"{path} is larger than {READ_LIMIT >> 20} MiB, the most that is read: --omit-residuals makes a reference small")
    try:
        return strict_json.loads(raw)
    except ValueError as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not readable JSON: {problem}") from error
