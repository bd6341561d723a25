# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where a reference's weights and residuals come from: rows of its JSON, see rows.py. No NumPy here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from oracle.arithmetic.constants import NAME, VERSION, generator_record
from oracle.job import LEAST_FACTOR, MOST_FACTOR, is_factor
from oracle.references.rows import CANDIDATE, NOBODY, OURS, Document, Fields, check, integer, mapping, one_of, or_none, row, shown, text
from oracle.weights.formats import REPO_KEYS

GENERATOR, FILE = "generator", "file"


@check({"type": "string"}, optional=True)
def _repo(fields: Fields, key: str) -> str:
    return text(fields, key) if key in fields else str(fields.above("repo").name)


@check({"type": ["string", "null"]}, optional=True)
def _revision(fields: Fields, key: str) -> str | None:
    revision: str | None = or_none(text)(fields, key) if key in fields else fields.above("weights_revision")
    return revision


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """The weight files of a layer; sha256 is None where one was streamed in part. The JSON leaves out the reference's own repo."""

    layer: int = row(integer())
    path: str = row(text)
    sha256: str | None = row(or_none(text))
    repo: str = row(
        _repo,
        write=lambda record, known: {} if record.repo == known["repo"].name else {"repo": record.repo},
    )
    revision: str | None = row(
        _revision,
        write=lambda record, known: {} if record.revision == known["weights_revision"] else {"revision": record.revision},
    )
    decoder_path: str | None = row(text, required=NOBODY)
    decoder_sha256: str | None = row(
        or_none(text), required=NOBODY,
        write=lambda record, _: {"decoder_sha256": record.decoder_sha256} if record.decoder_path else {},
    )  # fmt: skip
    side_path: str | None = row(text, required=NOBODY)
    side_sha256: str | None = row(
        or_none(text), required=NOBODY,
        write=lambda record, _: {"side_sha256": record.side_sha256} if record.side_path else {},
    )  # fmt: skip


class WeightsRepo(NamedTuple):
    """The repo of the weights, and what the JSON calls it."""

    key: str
    name: str


@check({"properties": dict.fromkeys(REPO_KEYS, text.schema(OURS)), "allOf": [{"oneOf": [{"required": [key]} for key in REPO_KEYS]}]}, is_of_object=True)
def weights_repo(fields: Fields, _: str) -> WeightsRepo:
    repos = [WeightsRepo(key, text(fields, key)) for key in REPO_KEYS if key in fields]
    if len(repos) != 1:
        problem = f"names {len(repos)} repos" if repos else "names no repo"
        raise fields.problem(f"the reference {problem} of its weights: it has one of {', '.join(REPO_KEYS)}")
    return repos[0]


@check({"type": "number", "minimum": LEAST_FACTOR, "maximum": MOST_FACTOR})
def _scale(fields: Fields, key: str) -> float:
    if not is_factor(fields.get(key)):
        raise fields.error(f"{shown(fields.get(key))}, not a float32 that residuals may be multiplied by", key)
    return float(fields.get(key))


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Where residuals come from: the generator, whose numbers are multiplied by `scale`, each product rounded once to float32; or
    the rows of a file: its base `name` and its bytes' `sha256`. Where nothing says it, from the generator as they are."""

    kind: str = row(one_of(GENERATOR, FILE), required=CANDIDATE, default=GENERATOR)
    scale: float | None = row(_scale, required=NOBODY)
    name: str | None = row(text, required=NOBODY)
    sha256: str | None = row(text, required=NOBODY)

    @property
    def is_of_file(self) -> bool:
        return self.kind == FILE

    @property
    def own_keys(self) -> tuple[str, ...]:
        """What each case has for the sake of where its residual comes from."""
        if self.is_of_file:
            return "tolerance", "residual"
        return ("stream",) if self.scale is None else ("stream", "tolerance")


@check(
    {
        "properties": {"residual_generator": {"const": generator_record()}},
        "allOf": [
            {
                "if": {"properties": {"residuals": {"properties": {"kind": {"const": FILE}}, "required": ["kind"]}}, "required": ["residuals"]},
                "else": {"required": ["residual_generator"]},
            }
        ],
    },
    is_of_object=True,
)
def generator(fields: Fields, key: str) -> Document | None:
    """The record of the residual generator; None where residuals are rows of a file."""
    if fields.known["residuals"].is_of_file and key not in fields:
        return None
    record = mapping(fields, key)
    named = record.get("name"), record.get("version")
    if named != (NAME, VERSION):
        raise fields.error(f"{shown(named[0])} version {shown(named[1])}; {NAME} version {VERSION} is known", key)
    if json.dumps(record, sort_keys=True, default=list) != json.dumps(generator_record(), sort_keys=True):  # 1 is True in Python, and not in JSON
        raise fields.error("not the record of its name and version: it was edited", key)
    return record
