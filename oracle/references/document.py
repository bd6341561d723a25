# SPDX-License-Identifier: MIT OR Apache-2.0
"""References and candidates as they are passed around: reading.py parses them out of a JSON, and `to_json` gives it back.

No NumPy here: who compares two files does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from oracle.arithmetic.generator import FNV_OFFSET_BASIS, FNV_PRIME, LN_2, LN_LAST_TERM, MULTIPLIER, NAME, SEED_STRIDE, SQRT_HALF, VERSION
from oracle.errors import BadData

FORMAT_VERSION = 1
DEFAULT_TOLERANCE = 1e-4  # of references that torch wrote, which record none
RANK_TIE, GATE_TIE, NO_ACTIVE_FEATURES = "rank-tie", "gate-tie", "no-active-features"

Document = dict[str, Any]


class DataError(BadData, ValueError):
    """A JSON is not the reference, or the candidate, that it should be."""


class CaseId(NamedTuple):
    """Which case it is: of which layer, and which residual: by its seed."""

    layer: int
    kind: str
    number: int

    def __str__(self) -> str:
        return f"layer {self.layer} {self.kind} {self.number}"


def seed_case(layer: int, seed: int) -> CaseId:
    """The id of a case whose residual a seed gives."""
    return CaseId(layer, "seed", seed)


class TopFeature(NamedTuple):
    """A place of a case's list."""

    feature: int
    activation: float


@dataclass(frozen=True)
class Reconstruction:
    """What a decoder makes of a case for one target layer; `tolerance` is that of each value, None in a candidate."""

    target_layer: int
    norm: float
    sum: float
    sum_of_squares: float
    first_10: tuple[float, ...]
    tolerance: float | None = None


@dataclass(frozen=True)
class Case:
    """A case of a candidate: `id`, `n_active`, `top` and perhaps `reconstructions`; or of a reference, which says more.

    `residual` is float32 [d_model] where oracle made it, and a list where it was read. What a reference does not say is
    None: references that torch wrote have neither margins nor flags. An empty `reconstructions` says that there are none.
    """

    id: CaseId
    n_active: int
    top: tuple[TopFeature, ...]
    reconstructions: tuple[Reconstruction, ...] = ()
    stream: int | None = None
    residual_fingerprint: str | None = None
    n_active_bounds: tuple[int, int] | None = None
    rank_margin: float | None = None
    gate_margin: float | None = None
    gate_ties: tuple[int, ...] | None = None
    flags: tuple[str, ...] | None = None
    residual: Any = field(default=None, compare=False, repr=False)

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most features that may be active; where nobody says, exactly n_active."""
        return self.n_active_bounds or (self.n_active, self.n_active)


@dataclass(frozen=True)
class SkippedSeed:
    """A seed that --robust passed over, with the margins and flags of its case."""

    id: CaseId
    n_active_bounds: tuple[int, int]
    rank_margin: float | None
    gate_margin: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class LayerRecord:
    """The weight files of a layer; sha256 is None where one was streamed in part. The JSON leaves out the reference's own repo."""

    layer: int
    path: str
    sha256: str | None
    repo: str
    revision: str | None
    decoder_path: str | None = None
    decoder_sha256: str | None = None


@dataclass(frozen=True)
class Reference:
    """A reference. `format_version` is None for those that torch wrote, `curation_repo` where no config.yaml named files.

    `repo_key` is what the JSON calls the weights' repo, `other` the texts and numbers whose keys are not known here.
    """

    format_version: int | None
    repo_key: str
    weights_repo: str
    weights_revision: str | None
    curation_repo: str | None
    curation_revision: str | None
    methodology: str | None
    schema: str | None
    encoder_formula: str | None
    d_model: int
    n_features: int
    top_k: int
    tolerance: float
    layers: tuple[LayerRecord, ...]
    skipped_seeds: tuple[SkippedSeed, ...] | None
    cases: tuple[Case, ...]
    environment: Document | None
    other: Document = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether oracle wrote it: then every number can be made again."""
        return self.format_version is not None

    @property
    def top_key(self) -> str:
        """What the JSON calls the list of the features that fire most."""
        return f"top_{self.top_k}"

    @property
    def decodes(self) -> bool:
        """Whether it says what the decoder makes of its cases."""
        return any(case.reconstructions for case in self.cases)

    @property
    def by_layer(self) -> dict[int, list[Case]]:
        """The cases of each layer, layers ascending."""
        layers: dict[int, list[Case]] = {}
        for case in self.cases:
            layers.setdefault(case.id.layer, []).append(case)
        return dict(sorted(layers.items()))

    def record_of(self, layer: int) -> LayerRecord | None:
        """The files on record of a layer; None where none are."""
        return next((record for record in self.layers if record.layer == layer), None)


@dataclass(frozen=True)
class Candidate:
    """A port's answers, each case once."""

    cases: dict[CaseId, Case]

    @property
    def decodes(self) -> bool:
        return any(case.reconstructions for case in self.cases.values())


def generator_record() -> Document:
    """What a port of residual.py needs. 64-bit integers are strings: JSON numbers lose them."""
    return {
        "name": NAME,
        "version": VERSION,
        "seed": f"{SEED_STRIDE} * i + layer for the i-th residual of a layer, i = 0, 1, ...",
        "stream": "layer",
        "arithmetic": "unsigned 64-bit modulo 2^64, and IEEE-754 binary64 to nearest even, one operation at a time in "
        "the order written, never fused; sqrt is correctly rounded; no other libm function",
        "multiplier": f"0x{MULTIPLIER:016x}",
        "sqrt_half": SQRT_HALF,
        "ln_2": LN_2,
        "ln_last_term": LN_LAST_TERM,
        "fnv_offset_basis": f"0x{FNV_OFFSET_BASIS:016x}",
        "fnv_prime": f"0x{FNV_PRIME:016x}",
        "steps": [
            "PCG32 (XSH-RR 64/32): inc = (stream << 1) | 1; state = 0; step; state += seed; step; "
            "where step is state = state * multiplier + inc",
            "output, from the state before its step: x = rotate_right32(((state >> 18) ^ state) >> 27, state >> 59)",
            "uniform in (-1, 1): w = (2*x + 1) * 2^-32 - 1",
            "pair: u, then v; s = u*u + v*v; if s >= 1 drop both and take the next pair",
            "f = sqrt((-2 * ln(s)) / s); emit u*f, then v*f, each rounded once to float32; stop after d_model values",
            "ln(s): s = m * 2^e with m in [1/2, 1); if m < sqrt_half: m = 2*m, e = e - 1; t = (m - 1) / (m + 1); "
            "q = t*t; p = 1/ln_last_term; for k = ln_last_term - 2, then two less each time, down to 1: p = p*q + 1/k; "
            "ln(s) = e * ln_2 + (2*t) * p",
            "residual_fingerprint: FNV-1a, 64 bits, over the little-endian float32 bytes: h = fnv_offset_basis; "
            "for each byte h = (h xor byte) * fnv_prime",
        ],
    }


def to_json(reference: Reference, *, with_residuals: bool = True) -> Document:
    """The JSON of a reference that oracle wrote, its residuals as they are, or left out: they can be made again."""
    curation = {"curation_repo": reference.curation_repo, "curation_revision": reference.curation_revision}
    return {
        "format_version": reference.format_version,
        reference.repo_key: reference.weights_repo,
        "weights_revision": reference.weights_revision,
        **(curation if reference.curation_repo else {}),
        "methodology": reference.methodology,
        "schema": reference.schema,
        "encoder_formula": reference.encoder_formula,
        "d_model": reference.d_model,
        "n_features_per_layer": reference.n_features,
        "top_k": reference.top_k,
        "tolerance": reference.tolerance,
        "layers": [_record_json(record, reference) for record in reference.layers],
        **({} if reference.skipped_seeds is None else {"skipped_seeds": list(map(_skipped_json, reference.skipped_seeds))}),
        "residual_generator": generator_record(),
        "test_cases": [_case_json(case, reference.top_key, with_residuals) for case in reference.cases],
        "environment": reference.environment,
    }


def _record_json(record: LayerRecord, reference: Reference) -> Document:
    decoder = {"decoder_path": record.decoder_path, "decoder_sha256": record.decoder_sha256}
    return {
        "layer": record.layer,
        "path": record.path,
        "sha256": record.sha256,
        **({"repo": record.repo} if record.repo != reference.weights_repo else {}),
        **({"revision": record.revision} if record.revision != reference.weights_revision else {}),
        **(decoder if record.decoder_path else {}),
    }


def _skipped_json(skipped: SkippedSeed) -> Document:
    return {
        "layer": skipped.id.layer,
        skipped.id.kind: skipped.id.number,
        "n_active_bounds": list(skipped.n_active_bounds),
        "rank_margin": skipped.rank_margin,
        "gate_margin": skipped.gate_margin,
        "flags": list(skipped.flags),
    }


def _case_json(case: Case, top_key: str, with_residuals: bool) -> Document:
    return {
        "layer": case.id.layer,
        case.id.kind: case.id.number,
        "stream": case.stream,
        "residual_fingerprint": case.residual_fingerprint,
        "n_active": case.n_active,
        "n_active_bounds": _list(case.n_active_bounds),
        "rank_margin": case.rank_margin,
        "gate_margin": case.gate_margin,
        "gate_ties": _list(case.gate_ties),
        "flags": _list(case.flags),
        top_key: [{"index": top.feature, "activation": top.activation} for top in case.top],
        **({"reconstructions": list(map(_reconstruction_json, case.reconstructions))} if case.reconstructions else {}),
        **({"residual": case.residual} if with_residuals else {}),
    }


def _reconstruction_json(output: Reconstruction) -> Document:
    return {
        "target_layer": output.target_layer,
        "norm": output.norm,
        "sum": output.sum,
        "sum_of_squares": output.sum_of_squares,
        "tolerance": output.tolerance,
        "first_10": list(output.first_10),
    }


def _list(values: Iterable[Any] | None) -> list[Any]:
    return list(values or ())
