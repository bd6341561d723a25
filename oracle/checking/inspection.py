# SPDX-License-Identifier: MIT OR Apache-2.0
"""The steps of one feature, as aligned lines and as JSON. Beside each number stand its bits, which a port prints too."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oracle.references.document import CaseId
from oracle.references.rows import Document

if TYPE_CHECKING:
    from oracle.arithmetic.residual import Pair

FIRST = 8  # values of a residual, of a column and of the generator
HEADING = f"{'':12}{'float32, in order':23}    {'exact, to float32':23}    exact, to float64"


def bits32(value: float) -> str:
    """A float32's bits, 8 hex digits."""
    return struct.pack(">f", value).hex()


def bits64(value: float) -> str:
    """A float64's bits, 16 hex digits."""
    return struct.pack(">d", value).hex()


def in_32(value: float) -> str:
    return f"{bits32(value)} {value:14.9f}"


def in_64(value: float) -> str:
    return f"{bits64(value)} {value:21.17f}"


@dataclass(frozen=True)
class InputLine:
    """A place of the inputs: the residual's value, the encoder's input where that is another, and the feature's weight; float32."""

    place: int
    residual: float
    input: float | None
    weight: float


@dataclass(frozen=True)
class Partial:
    """The sum of the first `count` products: in float32 in their order; and exact, rounded once to float32 and to float64."""

    count: int
    in_order: float
    exact32: float
    exact64: float


@dataclass(frozen=True)
class Step:
    """A number on the way to the pre-activation: as a port in float32 has it; and exact, rounded once to float32 and to float64."""

    name: str
    port: float
    exact32: float
    exact64: float


@dataclass(frozen=True)
class GateLine:
    """What a gate holds against what: float32, and how far above it is, float64 of the exact difference."""

    subject: str
    value: float
    against: str
    level: float
    distance: float
    holds: bool


@dataclass(frozen=True)
class Standing:
    """Where a candidate's number stands: `where` in words; its value, how far off it is, and what it is equal to, bit for bit."""

    where: str
    value: float | None = None
    off: float | None = None
    within: bool | None = None
    equal_to: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """One feature of one case. `rank` is its place among those that fire, None where it does not."""

    id: CaseId
    stream: int | None
    feature: int
    repo: str
    schema: str
    formula: str | None
    tolerance: float
    scale: float | None
    pairs: tuple[Pair, ...]
    residual_fingerprint: str
    input_words: str | None
    input_fingerprint: str | None
    inputs: tuple[InputLine, ...]
    n_inputs: int
    partials: tuple[Partial, ...]
    steps: tuple[Step, ...]
    gate: tuple[GateLine, ...]
    activation: float
    rank: int | None
    n_active: int
    list_length: int
    standing: Standing | None

    @property
    def lines(self) -> list[str]:
        """What a person reads, and a port may print: numbers as their bits and in digits."""
        return [
            f"{self.id} feature {self.feature} of {self.repo} ({self.schema})",
            *([self.formula] if self.formula else []),
            *(("", f"generator: the pairs of seed {self.id.number}, stream {self.stream}{self._times}") if self.pairs else ()),
            *(line for number, pair in enumerate(self.pairs, 1) for line in _pair_lines(number, pair)),
            "",
            f"residual: {self.n_inputs} values, fingerprint {self.residual_fingerprint}",
            *([f"encoder input: {self.input_words}, fingerprint {self.input_fingerprint}"] if self.input_words else []),
            *self._input_lines(),
            "",
            "the sum of its first products, after so many inputs",
            HEADING,
            *(f"{p.count:10d}  {in_32(p.in_order)}    {in_32(p.exact32)}    {in_64(p.exact64)}" for p in self.partials),
            "",
            *(f"{s.name:10}  {in_32(s.port)}    {in_32(s.exact32)}    {in_64(s.exact64)}" for s in self.steps),
            "",
            *(line for step in self.gate for line in _gate_lines(step)),
            f"activation  {in_32(self.activation)}    the feature {'does not fire' if self.rank is None else 'fires'}",
            *([] if self.rank is None else [f"rank        {self.rank} of {self.n_active} that fire; the list has {self.list_length}"]),
            *self._standing_lines(),
        ]

    @property
    def _times(self) -> str:
        return "" if self.scale is None else f", whose values times {self.scale:.9g} are the residual's"

    def _input_lines(self) -> Iterator[str]:
        columns = ("residual", "encoder input", "W_enc") if self.input_words else ("residual", "W_enc")
        yield (" " * 12 + "    ".join(f"{column:23}" for column in columns)).rstrip()
        for line in self.inputs:
            yield f"{line.place:10d}  " + "    ".join(in_32(value) for value in (line.residual, line.input, line.weight) if value is not None)

    def _standing_lines(self) -> Iterator[str]:
        standing = self.standing
        if standing is None:
            return
        yield from ("", f"candidate: {standing.where}")
        if standing.value is not None:
            yield f"value       {in_32(standing.value)}"
            yield f"off by      {standing.off:.3g}, {'within' if standing.within else 'beyond'} the tolerance of {self.tolerance:g}"
            yield from (f"equal to    {words}" for words in standing.equal_to or ("no sum of the first products",))

    @property
    def document(self) -> Document:
        """The same as JSON: floats as numbers, and their bits."""
        standing = self.standing
        return {
            "layer": self.id.layer,
            self.id.kind: self.id.number,
            "feature": self.feature,
            "weights_repo": self.repo,
            "schema": self.schema,
            "encoder_formula": self.formula,
            "generator": [_pair_json(pair) for pair in self.pairs] or None,
            "residual_fingerprint": self.residual_fingerprint,
            "encoder_input": self.input_words,
            "encoder_input_fingerprint": self.input_fingerprint,
            "inputs": [
                {name: _json_32(value) for name, value in (("residual", line.residual), ("encoder_input", line.input), ("W_enc", line.weight)) if value is not None}
                for line in self.inputs
            ],
            "partial_sums": [
                {"inputs": p.count, "float32": _json_32(p.in_order), "exact_float32": _json_32(p.exact32), "exact_float64": _json_64(p.exact64)}
                for p in self.partials
            ],
            "steps": {s.name: {"float32": _json_32(s.port), "exact_float32": _json_32(s.exact32), "exact_float64": _json_64(s.exact64)} for s in self.steps},
            "gate": [
                {"what": g.subject, "value": _json_32(g.value), "against": g.against, "level": _json_32(g.level), "distance": g.distance, "holds": g.holds}
                for g in self.gate
            ],
            "fires": self.rank is not None,
            "activation": _json_32(self.activation),
            "rank": self.rank,
            "n_active": self.n_active,
            "candidate": None if standing is None else {
                "where": standing.where, "value": standing.value, "off": standing.off, "within_tolerance": standing.within, "equal_to": list(standing.equal_to),
            },
        }  # fmt: skip


def _gate_lines(step: GateLine) -> Iterator[str]:
    yield f"gate        {in_32(step.value)}    {step.subject}"
    yield f"against     {in_32(step.level)}    {step.against}: {'' if step.holds else 'not '}above it ({step.distance:+.9g})"


def _pair_lines(number: int, pair: Pair) -> Iterator[str]:
    yield f"pair {number:3d}"
    yield f"  x       {pair.x[0]:08x}{'':34}{pair.x[1]:08x}"
    yield f"  w       {in_64(pair.w[0])}    {in_64(pair.w[1])}"
    if pair.ln_s is None or pair.f is None or pair.values is None:
        yield f"  s       {in_64(pair.s)}    dropped: it is 1 or more"
        return
    for name, value in (("s", pair.s), ("ln(s)", pair.ln_s), ("f", pair.f)):
        yield f"  {name:8}{in_64(value)}"
    yield f"  value   {in_32(pair.values[0])}{'':19}{in_32(pair.values[1])}"


def _pair_json(pair: Pair) -> Document:
    document: Document = {"x": [f"{x:08x}" for x in pair.x], "w": [_json_64(w) for w in pair.w], "s": _json_64(pair.s)}
    if pair.ln_s is None or pair.f is None or pair.values is None:
        return document
    return {**document, "ln_s": _json_64(pair.ln_s), "f": _json_64(pair.f), "values": [_json_32(value) for value in pair.values]}


def _json_32(value: float) -> Document:
    return {"bits": bits32(value), "value": value}


def _json_64(value: float) -> Document:
    return {"bits": bits64(value), "value": value}
