# SPDX-License-Identifier: MIT OR Apache-2.0
"""References and candidates: the rows of their JSON, see rows.py, and what follows from them.

No NumPy here: who compares two files does not wait for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from oracle.arithmetic.constants import MAX_U64, SELECTIONS
from oracle.job import MAX_TOLERANCE
from oracle.references.origins import LayerRecord, Residuals, WeightsRepo, generator, weights_repo
from oracle.references.rows import (
    CANDIDATE,
    FORMAT_VERSION,
    NOBODY,
    OURS,
    REFERENCE,
    Check,
    Document,
    Fields,
    an_object,
    as_json,
    check,
    each,
    integer,
    is_integer,
    mapping,
    number,
    numbers,
    objects,
    or_none,
    row,
    schema_id,
    shown,
    text,
    texts,
)
from oracle.weights.formats import EXTENT_LIMIT

SCHEMA_ID = schema_id("reference")
DEFAULT_TOLERANCE = 1e-4  # of references that torch wrote, which record none
DEFAULT_TOP_K = 10  # of these too
MAX_LAYERS = 1024  # that a residual may be of
RANK_TIE, GATE_TIE, NO_ACTIVE_FEATURES = "rank-tie", "gate-tie", "no-active-features"


class CaseId(NamedTuple):
    """Which case it is: of which layer, and which residual: by its seed, or by its row in a file."""

    layer: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"layer {self.layer} {self.kind} {self.number}"

    def to_dict(self) -> Document:
        return {"layer": self.layer, self.kind: self.number}


def seed_case(layer: int, seed: int) -> CaseId:
    """The id of a case whose residual a seed gives."""
    return CaseId(layer, "seed", seed)


def row_case(layer: int, number: int) -> CaseId:
    """The id of a case whose residual is a row of a file."""
    return CaseId(layer, "row", number)


def _schema_of_id(kind: int) -> Document:
    ways = (["seed", "stream"], ["row", "tolerance", "residual"]) if kind == OURS else (["seed"], ["row"])
    properties = dict.fromkeys(("layer", "seed", "row"), integer().schema(kind))
    return {"properties": properties, "required": ["layer"], "allOf": [{"oneOf": [{"required": way} for way in ways]}]}


@check(_schema_of_id, is_of_object=True)
def _case_id(fields: Fields, _: str) -> CaseId:
    if fields.kind == CANDIDATE:
        by_row = "row" in fields
        if by_row and "seed" in fields:
            raise fields.error("there beside seed: a case has one of them", "row")
    else:
        by_row = fields.above("residuals").is_of_file
    return row_case(_layer(fields), integer()(fields, "row")) if by_row else _seed_id(fields, "")


@check({"properties": dict.fromkeys(("layer", "seed"), integer().schema(OURS)), "required": ["layer", "seed"]}, is_of_object=True)
def _seed_id(fields: Fields, _: str) -> CaseId:
    return seed_case(_layer(fields), integer()(fields, "seed"))


def _layer(fields: Fields) -> int:
    layer = integer()(fields, "layer")
    if fields.kind == OURS and layer not in fields.set_above("layers", "layer"):
        raise fields.error(f"{layer}, which `layers` does not list", "layer")
    return layer


def _id_row(check: Check[CaseId]) -> Any:
    # Two keys hold it, so that none is looked for under its own name.
    return row(check, "layer", write=lambda case, _: {"layer": case.id.layer, case.id.kind: case.id.number})


class TopFeature(NamedTuple):
    """A place of a case's list."""

    feature: int
    activation: float


@check(
    {
        "type": "array",
        "items": {
            "type": "object", "properties": {"index": integer(-MAX_U64).schema(OURS), "activation": {"type": "number"}},
            "required": ["index", "activation"],
        },
    }
)  # fmt: skip
def _top(fields: Fields, key: str) -> tuple[TopFeature, ...]:
    top = tuple(
        TopFeature(integer(-MAX_U64)(entry, "index"), number()(entry, "activation")) for entry in each(fields, key, "index and activation")
    )
    n_features = fields.above("n_features")
    if n_features and any(place.feature >= n_features for place in top):
        raise fields.error(f"a list with an index past the {n_features} features", key)
    return top


@check({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2})
def _bounds(fields: Fields, key: str) -> tuple[int, int]:
    bounds = fields.items(key)
    if len(bounds) != 2 or not all(is_integer(bound) and bound >= 0 for bound in bounds) or bounds[0] > bounds[1]:
        raise fields.error("not two numbers of features, the fewest and the most", key)
    return bounds[0], bounds[1]


@check({"type": "array", "items": {"type": "integer", "minimum": 0}, "uniqueItems": True})
def _gate_ties(fields: Fields, key: str) -> tuple[int, ...]:
    ties, n_features = fields.items(key), fields.above("n_features")
    if not all(is_integer(tie) and 0 <= tie < n_features for tie in ties) or ties != sorted(set(ties)):
        raise fields.error(f"not ascending indices of the {n_features} features", key)
    fewest, most = fields.known["n_active_bounds"]
    selects = (fields.above("gate") or {}).get("kind") in SELECTIONS  # there one may fire for another
    if len(ties) < most - fewest if selects else len(ties) != most - fewest:
        raise fields.error(f"{len(ties)} long, but n_active_bounds are {most - fewest} apart", key)
    return tuple(ties)


@check({"type": "number"})
def _sum(fields: Fields, key: str) -> float:
    if fields.kind == OURS and f"{key}_tolerance" not in fields:
        raise fields.error("missing", f"{key}_tolerance")
    return number()(fields, key)


@check(numbers.schema(OURS))
def _residual(fields: Fields, key: str) -> Sequence[float]:
    values, d_model, n_layers = numbers(fields, key), fields.above("d_model"), fields.above("n_input_layers")
    if len(values) != d_model * (n_layers or 1):
        raise fields.error(f"{len(values)} values long, but d_model is {d_model}{f', of {n_layers} layers' if n_layers else ''}", key)
    return values


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What a decoder makes of a case for one target layer; `tolerance` is that of each value, None in a candidate."""

    target_layer: int = row(integer())
    norm: float = row(number())
    sum: float = row(number())
    sum_of_squares: float = row(number())
    tolerance: float | None = row(number(0), since=REFERENCE)
    first_10: tuple[float, ...] = row(numbers)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of a candidate: `id`, `n_active`, `top` and perhaps a fingerprint, sums, `reconstructions`; or of a reference, which says more.

    `residual` is float32 [d_model] where oracle made it. What a reference does not say is None: those that torch wrote
    have neither margins nor flags. `tolerance` is None where it is that of the reference, see Reference.tolerance_of.
    """

    id: CaseId = _id_row(_case_id)
    stream: int | None = row(integer(), since=OURS, required=NOBODY)
    residual_fingerprint: str | None = row(text, required=OURS)
    encoder_input_fingerprint: str | None = row(text, since=OURS, required=NOBODY)
    tolerance: float | None = row(number(0), since=OURS, required=NOBODY)
    n_active: int = row(integer())
    n_active_bounds: tuple[int, int] | None = row(_bounds, since=OURS)
    rank_margin: float | None = row(or_none(number(0)), since=OURS)
    gate_margin: float | None = row(number(0), since=OURS)
    gate_ties: tuple[int, ...] | None = row(or_none(_gate_ties), since=OURS)
    flags: tuple[str, ...] | None = row(texts, since=OURS)
    top: tuple[TopFeature, ...] = row(
        _top, "top_{top_k}",
        write=lambda case, known: {f"top_{known['top_k']}": [{"index": top.feature, "activation": top.activation} for top in case.top]},
    )  # fmt: skip
    activation_sum: float | None = row(_sum, required=NOBODY)
    activation_sum_tolerance: float | None = row(number(0), since=OURS, required=NOBODY)
    activation_sum_of_squares: float | None = row(_sum, required=NOBODY)
    activation_sum_of_squares_tolerance: float | None = row(number(0), since=OURS, required=NOBODY)
    reconstructions: tuple[Reconstruction, ...] | None = row(objects(Reconstruction, "target_layer"), required=NOBODY)
    residual: Any = row(_residual, since=REFERENCE, required=NOBODY, compare=False, repr=False)

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most features that may be active; where nobody says, exactly n_active."""
        return self.n_active_bounds or (self.n_active, self.n_active)

    @property
    def outputs(self) -> tuple[Reconstruction, ...]:
        """Its reconstructions; none where it says nothing of them."""
        return self.reconstructions or ()


@dataclass(frozen=True, kw_only=True)
class SkippedSeed:
    """A seed that --robust passed over, with the margins of its case, and bounds and flags at `robust_margin`, or at the tolerance."""

    id: CaseId = _id_row(_seed_id)
    n_active_bounds: tuple[int, int] = row(_bounds)
    rank_margin: float | None = row(or_none(number(0)))
    gate_margin: float = row(number(0))
    flags: tuple[str, ...] = row(texts)


@check({"const": SCHEMA_ID})
def _schema_id(fields: Fields, key: str) -> str:
    if fields.get(key) != SCHEMA_ID:
        raise fields.error(f"{shown(fields.get(key))}; {SCHEMA_ID} is known", key)
    return SCHEMA_ID


@check({"const": FORMAT_VERSION})
def _format_version(fields: Fields, key: str) -> int:
    if key not in fields:
        raise fields.problem(f"{key} is missing from a reference of ours: it was edited")
    if not is_integer(fields.get(key)) or fields.get(key) != FORMAT_VERSION:
        raise fields.problem(f"format_version is {shown(fields.get(key))}; {FORMAT_VERSION} is read")
    return FORMAT_VERSION


@check({"type": "string"})
def _edited(fields: Fields, key: str) -> bool:
    recorded = text(fields, key)
    try:
        return recorded != digest(fields.value)
    except TypeError:  # lists that strict_json has packed: residuals, where no reference of ours has any
        return True


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference. `format_version` is None for those that torch wrote, `curation_repo` where no config.yaml named files.

    `d_model_out` is None where outputs are as long as inputs, `n_input_layers` where a residual is of one layer: elsewhere it
    is those of so many layers, one behind the other. `other` are the texts and numbers whose keys are not known here.
    `ignored_keys` are those of side files that were passed over on demand. `edited` is whether it says something else than its
    digest.
    """

    schema_id: str | None = row(_schema_id, "$schema", since=OURS, required=NOBODY)
    format_version: int | None = row(_format_version, since=OURS)
    repo: WeightsRepo = row(weights_repo, write=lambda reference, _: {reference.repo.key: reference.repo.name})
    weights_revision: str | None = row(or_none(text), since=OURS)
    curation_repo: str | None = row(
        text, since=REFERENCE, required=NOBODY,
        write=lambda reference, _: {
            "curation_repo": reference.curation_repo, "curation_revision": reference.curation_revision
        } if reference.curation_repo else {},
    )  # fmt: skip
    curation_revision: str | None = row(or_none(text), since=OURS, required=NOBODY, write=lambda *_: {})
    methodology: str | None = row(text, since=REFERENCE, required=OURS)
    schema: str | None = row(text, since=REFERENCE, required=OURS)
    encoder_formula: str | None = row(text, since=REFERENCE, required=OURS)
    decoder_formula: str | None = row(text, since=OURS, required=NOBODY)
    tensors: Document | None = row(mapping, since=OURS, required=NOBODY)
    gate: Document | None = row(mapping, since=OURS)
    encoder_input: Document | None = row(mapping, since=OURS)
    ignored_keys: tuple[str, ...] | None = row(texts, since=OURS, required=NOBODY)
    # Residuals are made, and lists held against these, before any weight file says how large it is.
    d_model: int = row(integer(1, EXTENT_LIMIT))
    d_model_out: int | None = row(integer(1, EXTENT_LIMIT), since=OURS, required=NOBODY)
    n_input_layers: int | None = row(integer(1, MAX_LAYERS), since=OURS, required=NOBODY)
    n_features: int = row(integer(1, EXTENT_LIMIT), "n_features_per_layer")
    top_k: int = row(integer(1), since=OURS, default=DEFAULT_TOP_K)
    tolerance: float = row(number(0, MAX_TOLERANCE), since=OURS, default=DEFAULT_TOLERANCE)
    layers: tuple[LayerRecord, ...] = row(objects(LayerRecord, "layer"), since=OURS, default=())
    residuals: Residuals = row(an_object(Residuals), since=OURS, required=NOBODY, default=Residuals())
    robust_margin: float | None = row(number(0, MAX_TOLERANCE), since=OURS, required=NOBODY)
    skipped_seeds: tuple[SkippedSeed, ...] | None = row(objects(SkippedSeed, "id"), since=OURS, required=NOBODY)
    residual_generator: Document | None = row(
        generator, since=OURS,
        write=lambda reference, _: {"residual_generator": reference.residual_generator} if reference.residual_generator else {},
    )  # fmt: skip
    cases: tuple[Case, ...] = row(objects(Case, "id"), "test_cases")
    environment: Document | None = row(mapping, since=OURS)
    edited: bool = row(_edited, "digest", since=OURS, default=False, write=lambda *_: {})
    other: Document = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether oracle wrote it: then every number can be made again."""
        return self.format_version is not None

    @property
    def has_generator(self) -> bool:
        """Whether seeds and streams give its residuals."""
        return self.is_ours and not self.residuals.is_of_file

    def tolerance_of(self, case: Case) -> float:
        """What each number of a case of a port's may be off by: the case's own, or that of all."""
        return self.tolerance if case.tolerance is None else case.tolerance

    @property
    def input_length(self) -> int:
        """How long a residual is."""
        return self.d_model * (self.n_input_layers or 1)

    @property
    def d_out(self) -> int:
        """How long a reconstruction is."""
        return self.d_model_out or self.d_model

    @property
    def top_key(self) -> str:
        """What the JSON calls the list of the features that fire most."""
        return f"top_{self.top_k}"

    @property
    def decodes(self) -> bool:
        """Whether it says what the decoder makes of its cases."""
        return any(case.reconstructions is not None for case in self.cases)

    @functools.cached_property
    def by_layer(self) -> dict[int, list[Case]]:
        """The cases of each layer, layers ascending."""
        layers: dict[int, list[Case]] = {}
        for case in self.cases:
            layers.setdefault(case.id.layer, []).append(case)
        return dict(sorted(layers.items()))

    @functools.cached_property
    def records(self) -> dict[int, LayerRecord]:
        """The files on record of each layer."""
        return {record.layer: record for record in self.layers}


@dataclass(frozen=True)
class Candidate:
    """A port's answers, each case once."""
    cases: dict[CaseId, Case]

    @property
    def decodes(self) -> bool:
        return any(case.reconstructions is not None for case in self.cases.values())


def digest(document: Document) -> str:
    """The sha256 of a reference's canonical JSON, sorted keys and no spaces.

    Without what may differ or says itself what it is: `digest`, `environment`, and the residuals, for which their fingerprints
    stand, so that a reference without its vectors has the same.
    """
    cases = [
        {key: value for key, value in case.items() if key != "residual"} if isinstance(case, dict) else case
        for case in document["test_cases"]
    ]
    whole = {key: value for key, value in document.items() if key not in ("digest", "environment")} | {"test_cases": cases}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(reference: Reference, *, with_residuals: bool = True) -> Document:
    """The JSON of a reference, its residuals as they are, or left out: they can be made again."""
    cases = reference.cases if with_residuals else tuple(replace(case, residual=None) for case in reference.cases)
    document: Document = as_json(replace(reference, cases=cases), {})
    return {**document, "digest": digest(document)}
