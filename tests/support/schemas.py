# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every document that a test's process writes, or reads without complaint, is held against its JSON Schema.

All of them pass by five doors: `to_json` writes references; `parse_reference`, `parse_candidate`, and for exact vectors and the
answers to them `parse_vectors` and `parse_answers`, read what files, standard input and programs hand over. The doors are watched
before anything imports their names.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from typing import Any

from oracle.checking import vectors
from oracle.references import document, reading

try:
    import jsonschema
except ImportError:  # then nothing is held against anything, and tests/references/test_schemas.py is skipped
    jsonschema = None

MISSING = "jsonschema is not installed"
SCHEMAS = {
    "reference": reading.reference_schema, "candidate": reading.candidate_schema,
    "vectors": vectors.vectors_schema, "answers": vectors.answers_schema,
}  # fmt: skip
counts = dict.fromkeys(SCHEMAS, 0)


@functools.cache
def validator(name: str) -> Any:
    schema = SCHEMAS[name]()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problem(name: str, instance: Any) -> str | None:
    """What is wrong with a document, by its schema."""
    error = next(validator(name).iter_errors(instance), None)
    return None if error is None else f"{error.json_path}: {error.message[:300]}"


def hold(name: str, instance: Any) -> None:
    if jsonschema is not None:
        counts[name] += 1
        if said := problem(name, instance):
            raise AssertionError(f"a {name} that was written or read is not what its schema says: {said}")


def hold_printed(text: str | None) -> None:
    """What a process of its own printed, where that is a reference."""
    with contextlib.suppress(ValueError):
        printed = json.loads(text or "")
        if isinstance(printed, dict) and "format_version" in printed and "test_cases" in printed:
            hold("reference", printed)


def watch() -> None:
    """Have every document that passes be held against its schema."""
    to_json, parse_reference, parse_candidate = document.to_json, reading.parse_reference, reading.parse_candidate

    @functools.wraps(to_json)
    def written(*arguments: Any, **options: Any) -> Any:
        whole = to_json(*arguments, **options)
        hold("reference", json.loads(json.dumps(whole, default=lambda array: array.tolist())))
        return whole

    def read(parse: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(parse)
        def parsed(instance: Any, *arguments: Any, **options: Any) -> Any:
            result = parse(instance, *arguments, **options)
            if name != "reference" or result.is_ours:  # of those that torch wrote there is no schema
                hold(name, json.loads(json.dumps(instance, default=list)))  # a list of numbers may be packed
            return result

        return parsed

    document.to_json, reading.parse_reference = written, read(parse_reference, "reference")
    reading.parse_candidate = read(parse_candidate, "candidate")
    vectors.parse_vectors, vectors.parse_answers = read(vectors.parse_vectors, "vectors"), read(vectors.parse_answers, "answers")
