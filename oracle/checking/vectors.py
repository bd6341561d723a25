# SPDX-License-Identifier: MIT OR Apache-2.0
"""A candidate's answers to exact vectors: equal bit for bit, or wrong; and which mistakes they show. Without weights and without NumPy."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from oracle.checking.verdict import DIFFERS, MISSING, SAME, CaseVerdict, Comparison, FlagVerdict
from oracle.references.document import CaseId
from oracle.references.rows import (
    CANDIDATE,
    NOBODY,
    REFERENCE,
    Document,
    Fields,
    check,
    document_schema,
    each,
    integer,
    mapping,
    number,
    numbers,
    objects,
    parse,
    row,
    schema,
    text,
    texts,
    whole,
)  # fmt: skip
from oracle.weights.formats import EXTENT_LIMIT

Feature = tuple[int, float]


@check(
    {
        "type": "array",
        "items": {
            "type": "object", "properties": {"index": whole().schema(CANDIDATE), "activation": number().schema(CANDIDATE)},
            "required": ["index", "activation"],
        },
    }
)  # fmt: skip
def _active(fields: Fields, key: str) -> tuple[Feature, ...]:
    return tuple((whole()(entry, "index"), number()(entry, "activation")) for entry in each(fields, key, "index and activation"))


@dataclass(frozen=True, kw_only=True)
class ExactOutput:
    """What a decoder makes of a case for one target layer."""

    target_layer: int = row(whole())
    values: tuple[float, ...] = row(numbers)


@dataclass(frozen=True, kw_only=True)
class ExactCase:
    """A case of exact vectors, or the answer to one: then without layer, flags and residual. `active` are all features that fire."""

    case: int = row(whole())
    layer: int | None = row(integer(), since=REFERENCE)
    flags: tuple[str, ...] = row(texts, since=REFERENCE, default=())
    residual: tuple[float, ...] = row(numbers, since=REFERENCE, default=())
    n_active: int = row(whole())
    active: tuple[Feature, ...] = row(_active)
    reconstructions: tuple[ExactOutput, ...] | None = row(objects(ExactOutput, "target_layer"), required=NOBODY)


@check({"type": "object", "additionalProperties": {"type": "object", "properties": {"catches": text.schema(REFERENCE)}, "required": ["catches"]}})
def _notes(fields: Fields, key: str) -> dict[str, str]:
    """What each flag catches."""
    return {flag: text(Fields(note, fields.file, fields.kind, fields, f"{key}.{flag}"), "catches") for flag, note in mapping(fields, key).items()}


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Exact vectors: what they are of, what their flags catch, and the cases."""

    format: str = row(text)
    weights: str = row(text)
    encoder_formula: str | None = row(text, required=NOBODY)
    gate: Document | None = row(mapping, required=NOBODY)
    encoder_input: Document | None = row(mapping, required=NOBODY)
    tensors: Document | None = row(mapping, required=NOBODY)
    d_model: int = row(integer(1, EXTENT_LIMIT))
    n_features: int = row(integer(1, EXTENT_LIMIT))
    notes: dict[str, str] = row(_notes)
    cases: tuple[ExactCase, ...] = row(objects(ExactCase, "case"), "test_cases")


_ANSWERS = objects(ExactCase, "case")


def vectors_schema() -> Document:
    """The JSON Schema of exact vectors, made of the rows by which they are read."""
    return document_schema("vectors", "Exact vectors: residuals, and what a right port makes of them bit for bit", schema(Vectors, REFERENCE))


def answers_schema() -> Document:
    """The JSON Schema of a port's answers to them."""
    whole_document = {"type": "object", "properties": {"test_cases": _ANSWERS.schema(CANDIDATE)}, "required": ["test_cases"]}
    return document_schema("answers", "A port's answers to exact vectors", whole_document)


def parse_vectors(document: Any, name: str = "the vectors") -> Vectors:
    """Exact vectors. Raises DataError."""
    fields = Fields(document, name, REFERENCE)
    vectors = parse(Vectors, fields)
    if not vectors.cases:
        raise fields.error("empty", "test_cases")
    for case in vectors.cases:
        unknown = [flag for flag in case.flags if flag not in vectors.notes]
        if unknown:
            raise fields.error(f"without the flag {ascii(unknown[0])[:80]} of case {case.case}", "notes")
        if case.n_active != len(case.active) or any(feature >= vectors.n_features for feature, _ in case.active):
            raise fields.problem(f"case {case.case} lists other features than it counts, or than there are: it was edited; write the vectors again")
    return vectors


def parse_answers(document: Any, name: str = "the candidate") -> dict[int, ExactCase]:
    """A candidate's answers by their case. Raises DataError."""
    fields = Fields(document, name, CANDIDATE)
    cases = _ANSWERS(fields, "test_cases")
    if not cases:
        raise fields.error("empty", "test_cases")
    return {case.case: case for case in cases}


def compare_documents(vectors: Document, candidate: Document, names: tuple[str, str] = ("the vectors", "the candidate")) -> Comparison:
    """The verdict on a candidate's JSON. Raises DataError."""
    return compare(parse_vectors(vectors, names[0]), parse_answers(candidate, names[1]))


def compare(vectors: Vectors, answers: dict[int, ExactCase]) -> Comparison:
    """The verdict on answers to exact vectors. Extra cases are told, and change nothing; missing ones fail."""
    verdicts = [_verdict(vectors, case, answers.get(case.case)) for case in vectors.cases]
    failed = {verdict.id.number for verdict in verdicts if not verdict.agrees}
    flags = []
    for name, catches in vectors.notes.items():
        of_flag = [case.case for case in vectors.cases if name in case.flags]
        flags.append(FlagVerdict(name, catches, len(failed.intersection(of_flag)), len(of_flag)))
    known = {case.case for case in vectors.cases}
    extra = tuple(CaseId(0, "case", number) for number in answers if number not in known)
    has_outputs = any(case.reconstructions is not None for case in answers.values())
    not_compared = None if has_outputs or all(case.reconstructions is None for case in vectors.cases) else "reconstructions"
    return Comparison(tuple(verdicts), extra, 0.0, not_compared, flags=tuple(flags))


def _verdict(vectors: Vectors, case: ExactCase, answer: ExactCase | None) -> CaseVerdict:
    case_id = CaseId(case.layer or 0, "case", case.case)
    if answer is None:
        return CaseVerdict(case_id, MISSING, ("the candidate does not have this case",))
    problems = [*_list_problems(vectors, case, answer), *_output_problems(case, answer)]
    right = dict(case.active)
    differences = {feature: abs(value - right[feature]) for feature, value in answer.active if right.get(feature, value) != value}
    feature = max(differences, key=lambda index: differences[index], default=None)
    return CaseVerdict(case_id, DIFFERS if problems else SAME, tuple(problems), (), None if feature is None else differences[feature], feature)


def _list_problems(vectors: Vectors, case: ExactCase, answer: ExactCase) -> list[str]:
    """What is wrong with the features that fire."""
    problems = [] if answer.n_active == case.n_active else [f"n_active is {answer.n_active}, the vectors have {case.n_active}"]
    right, values = dict(case.active), dict(answer.active)
    outside = next((feature for feature in values if feature >= vectors.n_features), None)
    if outside is not None:
        problems.append(f"feature {outside} does not exist: there are {vectors.n_features}")
    if len(values) < len(answer.active):
        problems.append("a feature is on the list twice")
    fired, missing = [feature for feature in values if feature not in right], [feature for feature in right if feature not in values]
    if fired:
        problems.append(f"feature {fired[0]} fired{_more(fired)} and must not")
    if missing:
        problems.append(f"feature {missing[0]} did not fire{_more(missing)}")
    off = [feature for feature, value in values.items() if feature in right and bits(value) != bits(right[feature])]
    if off:
        problems.append(f"feature {off[0]} is {values[off[0]]!r}, the vectors have {right[off[0]]!r}{_more(off)}")
    if not problems and [feature for feature, _ in answer.active] != [feature for feature, _ in case.active]:
        place = next(place for place, pair in enumerate(zip(case.active, answer.active)) if pair[0][0] != pair[1][0])
        problems.append(f"place {place + 1} is feature {answer.active[place][0]}, the vectors have {case.active[place][0]}")
    return problems


def _more(features: list[int]) -> str:
    return f", and {len(features) - 1} more," if len(features) > 1 else ""


def _output_problems(case: ExactCase, answer: ExactCase) -> list[str]:
    """What is wrong with reconstructions, where both have them."""
    if case.reconstructions is None or answer.reconstructions is None:
        return []
    answered = {output.target_layer: output.values for output in answer.reconstructions}
    problems = []
    for output in case.reconstructions:
        values = answered.get(output.target_layer)
        what = f"the reconstruction of layer {output.target_layer}"
        if values is None or len(values) != len(output.values):
            problems.append(f"{what} {'is missing' if values is None else f'has {len(values)} values, not {len(output.values)}'}")
            continue
        # A sum that is 0 may come out as -0, in an order of its own.
        off = [place for place, pair in enumerate(zip(output.values, values)) if bits(pair[0] + 0.0) != bits(pair[1] + 0.0)]
        if off:
            problems.append(f"{what}: value {off[0]} is {values[off[0]]!r}, the vectors have {output.values[off[0]]!r}{_more(off)}")
    return problems


def bits(value: float) -> bytes:
    """Those of the float32 that a number is read as."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))
