# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON objects as dataclasses: each field is a row that says what its value must be; one mechanism reads, writes and describes them.

The order of the fields is that of the keys. A row is `since` the least kind of document that has it: a candidate, a
reference, or a reference of ours.
"""

from __future__ import annotations

import dataclasses
import math
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from oracle.arithmetic.constants import MAX_U64
from oracle.errors import BadData

Document = dict[str, Any]
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CANDIDATE, REFERENCE, OURS, NOBODY = range(4)
FORMAT_VERSION = 1


class DataError(BadData, ValueError):
    """A JSON is not the reference, or the candidate, that it should be."""


def file_name(path: str) -> str:
    """A file's name in words: `-` is standard input."""
    return "standard input" if path == "-" else path


class Fields:
    """A JSON object and its place in a file. Takes fields out, and raises DataError, which names both, where they are wrong.

    `kind` is that of the document; `known` are the object's values so far, `parent` the object that it is in.
    """

    def __init__(self, value: Any, file: str, kind: int, parent: Fields | None = None, place: str = "", wanted: str = ""):
        self.file, self.kind, self.parent, self.place = file_name(file), kind, parent, place
        self.known: Document = {}
        self._sets: dict[tuple[str, str], frozenset[Any]] = {}
        if not isinstance(value, dict):
            problem = f"{shown(value)}, not an object{f' with {wanted}' if wanted else ''}"
            raise self.error(problem) if place else DataError(f"{self.file} holds {problem}")
        self.value: Document = value

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def error(self, problem: str, key: str = "") -> DataError:
        return self.problem(f"{'.'.join(filter(None, (self.place, key)))} is {problem}")

    def problem(self, text: str) -> DataError:
        return DataError(f"{self.file}: {text}")

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise self.error("missing", key)
        return self.value[key]

    def items(self, key: str) -> Sequence[Any]:
        value = self.get(key)
        if not isinstance(value, (list, array)):
            raise self.error(f"{shown(value)}, not a list", key)
        return value

    def above(self, name: str) -> Any:
        """A value of the object that this one is in; None where it has none."""
        return self.parent.known.get(name) if self.parent else None

    def set_above(self, name: str, attribute: str) -> frozenset[Any]:
        """What the objects of a list above have as an attribute. Made once: there may be ten thousand of them, and as many who ask."""
        if self.parent is None:
            return frozenset()
        if (name, attribute) not in self.parent._sets:
            self.parent._sets[name, attribute] = frozenset(getattr(item, attribute) for item in self.above(name))
        return self.parent._sets[name, attribute]


class Check(Generic[T_co]):
    """What a value must be: called with an object's fields and a key it gives the value, or raises DataError.

    `schema` says the same as a JSON Schema, of a kind of document: of the value, or where it `is_of_object` of the object that
    has it. An `optional` one takes an object without the key.
    """

    def __init__(self, check: Callable[[Fields, str], T_co], schema: Document | Callable[[int], Document], is_of_object: bool, optional: bool):
        self._check, self._schema, self.is_of_object, self.optional = check, schema, is_of_object, optional

    def __call__(self, fields: Fields, key: str) -> T_co:
        return self._check(fields, key)

    def schema(self, kind: int) -> Document:
        return self._schema if isinstance(self._schema, dict) else self._schema(kind)


def check(
    schema: Document | Callable[[int], Document], *, is_of_object: bool = False, optional: bool = False
) -> Callable[[Callable[[Fields, str], T]], Check[T]]:
    """A decorator: the function is a Check, and this is its schema."""
    return lambda function: Check(function, schema, is_of_object, optional)


def row(
    check: Check[Any], key: str = "", *, since: int = CANDIDATE, required: int | None = None, default: Any = None,
    write: Callable[[Any, Document], Document] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """A field of a dataclass that stands in the JSON, under `key` if that is not its name, with {names} of what is known above.

    A document of a kind below `required`, by default `since`, may leave it out: it is `default` then, and left out again.
    `write` gives what the object has for it, of the object and what is known above.
    """
    metadata = {"check": check, "key": key, "since": since, "required": since if required is None else required, "write": write}
    defaults = {} if since == CANDIDATE and required is None else {"default": default}
    return dataclasses.field(metadata=metadata, **defaults, **options)


def parse(kind: type[T], fields: Fields) -> T:
    """The dataclass out of a JSON object. Raises DataError."""
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        rule = item.metadata
        if not rule:
            continue
        key = (rule["key"] or item.name).format_map(fields.parent.known if fields.parent else {})
        if rule["since"] <= fields.kind and (key in fields or rule["required"] <= fields.kind):
            fields.known[item.name] = rule["check"](fields, key)
        else:
            fields.known[item.name] = item.default
    return kind(**fields.known)


def as_json(value: Any, known: Document) -> Any:
    """A dataclass, or what it holds, as JSON has it; `known` is what is known above."""
    if isinstance(value, (tuple, list, array)):
        return [as_json(item, known) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    document: Document = {}
    below = known | {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    for item in dataclasses.fields(value):
        rule, content = item.metadata, getattr(value, item.name)
        if rule and rule["write"]:
            document |= rule["write"](value, known)
        elif rule and not (rule["required"] > OURS and content is None):
            document[(rule["key"] or item.name).format_map(known)] = as_json(content, below)
    return document


def schema_id(name: str) -> str:
    """What the JSON Schema of a document is called by."""
    return f"urn:gemmascope-oracle:{name}:{FORMAT_VERSION}"


def document_schema(name: str, title: str, whole: Document) -> Document:
    """A JSON Schema (draft 2020-12) with its name; readers ignore keys that they do not know. No document is without cases."""
    cases = {**whole["properties"]["test_cases"], "minItems": 1}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": schema_id(name), "title": title}
    return {**head, **whole, "properties": {**whole["properties"], "test_cases": cases}}


def schema(kind: type, document_kind: int) -> Document:
    """The JSON Schema of the objects that are read as a dataclass, in a kind of document."""
    properties: Document = {}
    patterns: Document = {}
    required: list[str] = []
    more: list[Document] = []
    for item in dataclasses.fields(kind):
        rule = item.metadata
        if not rule or rule["since"] > document_kind:
            continue
        key, must, value = rule["key"] or item.name, rule["required"] <= document_kind and not rule["check"].optional, rule["check"].schema(document_kind)
        if rule["check"].is_of_object:
            properties |= value.get("properties", {})
            required += value.get("required", [])
            more += value.get("allOf", [])
        elif "{" in key:  # a key with a number in it: which one another key says
            pattern = re.sub(r"\{.*?\}", "[0-9]+", f"^{key}$")
            patterns[pattern] = value
            if must:
                more.append({"not": {"propertyNames": {"not": {"pattern": pattern}}}})
        else:
            properties[key] = value
            required += [key] if must else []
    parts = {"properties": properties, "patternProperties": patterns, "required": required, "allOf": more}
    return {"type": "object", **{name: part for name, part in parts.items() if part}}


# --- what a value must be ---------------------------------------------------------------------------------------------


def integer(low: int = 0, high: int = MAX_U64) -> Check[int]:
    @check({"type": "integer", "minimum": low, "maximum": high})
    def whole_number(fields: Fields, key: str) -> int:
        value = fields.get(key)
        if fields.kind == CANDIDATE and is_number(value) and value == int(value):
            value = int(value)  # some languages write all numbers as 42.0
        if not is_integer(value) or not low <= value <= high:
            span = (f" from {low}" if low >= 0 else "") + (f" to {high}" if high < MAX_U64 else "")
            raise fields.error(f"{shown(value)}, not a whole number{span}", key)
        return int(value)

    return whole_number


def whole(low: int = 0, high: int = MAX_U64) -> Check[int]:
    """An integer that may be written as 42.0, as languages do that have no other numbers."""

    @check(integer(low, high).schema)
    def whole_number(fields: Fields, key: str) -> int:
        value = fields.get(key)
        if type(value) is float and value.is_integer() and low <= value <= high:
            return int(value)
        return integer(low, high)(fields, key)

    return whole_number


def number(low: float = -math.inf, high: float = math.inf) -> Check[float]:
    ends = {name: end for name, end in (("minimum", low), ("maximum", high)) if math.isfinite(end)}

    @check({"type": "number", **ends})
    def finite_number(fields: Fields, key: str) -> float:
        value = fields.get(key)
        if not is_number(value) or not low <= value <= high:
            span = (" from 0" if low == 0 else "") + (f" to {high:g}" if high < math.inf else "")
            raise fields.error(f"{shown(value)}, not a finite number{span}", key)
        return float(value)

    return finite_number


@check({"type": "string"})
def text(fields: Fields, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise fields.error(f"{shown(value)}, not a text", key)
    return value


def one_of(*words: str) -> Check[str]:
    @check({"enum": list(words)})
    def word(fields: Fields, key: str) -> str:
        value = fields.get(key)
        if value not in words:
            raise fields.error(f"{shown(value)}; {' and '.join(words)} are known", key)
        return str(value)

    return word


@check({"type": "object"})
def mapping(fields: Fields, key: str) -> Document:
    value = fields.get(key)
    if not isinstance(value, dict):
        raise fields.error(f"{shown(value)}, not an object", key)
    return value


@check({"type": "array", "items": {"type": "number"}})
def numbers(fields: Fields, key: str) -> Sequence[float]:
    values = fields.items(key)
    if not all(map(is_number, values)):
        raise fields.error("not a list of finite numbers", key)
    return values if isinstance(values, array) else tuple(map(float, values))


@check({"type": "array", "items": {"type": "string"}})
def texts(fields: Fields, key: str) -> tuple[str, ...]:
    values = fields.items(key)
    if not all(isinstance(value, str) for value in values):
        raise fields.error("not a list of texts", key)
    return tuple(values)


def or_none(other: Check[T]) -> Check[T | None]:
    """Null, which says that there is none, or what `other` takes."""

    @check(lambda kind: {"anyOf": [other.schema(kind), {"type": "null"}]})
    def or_null(fields: Fields, key: str) -> T | None:
        return None if fields.get(key) is None else other(fields, key)

    return or_null


def an_object(kind: type[T]) -> Check[T]:
    """One object."""

    @check(lambda document_kind: schema(kind, document_kind))
    def one_object(fields: Fields, key: str) -> T:
        return parse(kind, Fields(fields.get(key), fields.file, fields.kind, fields, key))

    return one_object


def objects(kind: type[T], name: str, wanted: str = "") -> Check[tuple[T, ...]]:
    """A list of objects, each of which has another `name`."""

    @check(lambda document_kind: {"type": "array", "items": schema(kind, document_kind)})
    def different_objects(fields: Fields, key: str) -> tuple[T, ...]:
        values: dict[Any, T] = {}
        for item in each(fields, key, wanted):
            value = parse(kind, item)
            if getattr(value, name) in values:
                shown_name = "" if name == "id" else f"{name} "
                raise item.error(f"{shown_name}{getattr(value, name)}, which is there already")
            values[getattr(value, name)] = value
        return tuple(values.values())

    return different_objects


def each(fields: Fields, key: str, wanted: str = "") -> Iterator[Fields]:
    """The objects of a list, each with its place."""
    for place, value in enumerate(fields.items(key)):
        where = f"{'.'.join(filter(None, (fields.place, key)))}[{place}]"
        yield Fields(value, fields.file, fields.kind, fields, where, wanted)


def is_integer(value: Any) -> bool:
    return type(value) is int  # bool is an int to isinstance


def is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) <= MAX_U64


def shown(value: Any) -> str:
    if isinstance(value, (dict, list, array)):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else ascii(value)[:40]

