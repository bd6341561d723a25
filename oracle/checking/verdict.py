# SPDX-License-Identifier: MIT OR Apache-2.0
"""Verdicts, and the one wording of them: tables, the page and GitHub's summary wrap these lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from oracle.errors import counted
from oracle.references.document import CaseId

FLOAT32_ROUNDING = 2.0**-24  # of a value: at most this much of it
MOST_ROWS = 40  # of a notebook's table
MOST_PROBLEMS = 3  # of a case on one line: of a cross-layer transcoder's case every target layer may have one

SAME, ROUNDING, DIFFERS, MISSING = STATUSES = "same", "rounding", "differs", "missing"

# What a problem may be about.
CASE, RESIDUAL, SHAPE, N_ACTIVE, FEATURE, ACTIVATION, PLACE, LIST, SUM, RECONSTRUCTION, RECORD = SUBJECTS = (
    "case", "residual", "shape", "n_active", "feature", "activation", "place", "list", "sum", "reconstruction", "record",
)  # fmt: skip


def stored(*values: float) -> float:
    """How much values that were rounded to float32 may be off by for that alone, together."""
    return FLOAT32_ROUNDING * sum(map(abs, values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something about a case that rounding cannot explain. str() is its line.

    `subject` is one of SUBJECTS. Where it is: `feature`, `place` of the list, from 1, `target_layer` of a reconstruction.
    `quantity` names the number where the subject has several: a key of the JSON, "norm", "value 3". `expected` is the
    reference's number and `answer` the candidate's; of a verification they are the weights' and the reference's. `difference` is
    absolute; `allowed` is what rounding explains of it, and `bounds` the fewest and the most that it explains of n_active.
    `reason` says what two numbers cannot.
    """

    subject: str
    feature: int | None = None
    place: int | None = None
    target_layer: int | None = None
    quantity: str | None = None
    expected: float | str | None = None
    answer: float | str | None = None
    difference: float | None = None
    allowed: float | None = None
    bounds: tuple[int, int] | None = None
    reason: str = ""

    @property
    def label(self) -> str:
        """What it is about, for a table's first column; "" where the reason says it."""
        if self.subject == RECONSTRUCTION:
            return f"layer {self.target_layer}" + (f" {self.quantity}" if self.quantity else "")
        if self.place is not None:
            return f"place {self.place}"
        if self.feature is not None:
            return f"feature {self.feature}"
        return self.quantity or (N_ACTIVE if self.subject == N_ACTIVE else "")

    @property
    def texts(self) -> tuple[str, str]:
        """`expected` and `answer` as they are shown; "" for what is None."""
        prefix = "feature " if self.subject == PLACE else ""
        numbers = (self.expected, self.answer)
        return tuple("" if number is None else prefix + (f"{number:.9g}" if isinstance(number, float) else str(number)) for number in numbers)  # type: ignore[return-value]

    @property
    def allowance(self) -> str:
        """What rounding explains, as it is shown; "" where it explains nothing."""
        if self.bounds and self.bounds[0] < self.bounds[1]:
            return f"{self.bounds[0]} to {self.bounds[1]}"
        return f"{self.allowed:.3g}" if self.allowed else ""

    @property
    def measure(self) -> str:
        """Of which differences its own is one: those of the same measure can be held against each other."""
        if self.subject == RECONSTRUCTION:
            return "reconstruction" if self.quantity and self.quantity.startswith("value") else f"reconstruction {self.quantity}"
        return self.quantity or self.subject

    @property
    def group(self) -> tuple[object, ...]:
        """Problems of a group say the same of other features, or of other numbers of a reconstruction."""
        return self.subject, self.target_layer, self.reason, None if self.subject == RECONSTRUCTION else self.quantity

    def __str__(self) -> str:
        name = self.label
        if self.subject == RECONSTRUCTION:
            name = f"{f'{self.quantity} of ' if self.quantity else ''}the reconstruction of layer {self.target_layer}"
        if self.expected is None or self.answer is None:
            return f"{name} {self.reason}".lstrip()
        expected, answer = self.texts
        off = "" if self.difference is None else f": off by {self.difference:.3g}"
        allowance = f"; rounding allows {self.allowance}" if self.allowance else ""
        return f"{name} is {answer}, not {expected}{off}{allowance}" + (f"; {self.reason}" if self.reason else "")

    def to_dict(self) -> dict[str, Any]:
        """Its line, and what JSON can hold of its fields: no None, no infinity and no NaN."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"line": str(self), **{name: value for name, value in values.items() if _is_json(value) and value != ""}}


def _is_json(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


@dataclass(frozen=True)
class CaseVerdict:
    """One case of the reference. `problems` says what rounding cannot explain, `notes` what it can.

    `max_difference` is the largest of an activation, None where no feature is on both lists; `feature` is where. `tolerance` is
    the case's own, None where it has none.
    """

    id: CaseId
    status: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    max_difference: float | None = None
    feature: int | None = None
    tolerance: float | None = None

    @property
    def agrees(self) -> bool:
        return self.status in (SAME, ROUNDING)

    @property
    def lines(self) -> list[str]:
        """The problems, of a group its first and how many more; or else the notes."""
        sizes = Counter(problem.group for problem in self.problems)
        first = {problem.group: problem for problem in reversed(self.problems)}
        return [f"{first[group]}" + (f" (and {size - 1} more)" if size > 1 else "") for group, size in sizes.items()] or [*self.notes]

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON has it."""
        return {
            **self.id.to_dict(),
            "status": self.status,
            "problems": [problem.to_dict() for problem in self.problems],
            "notes": list(self.notes),
            "largest_difference": self.max_difference if _is_json(self.max_difference) else None,
            "feature": self.feature,
            **({} if self.tolerance is None else {"tolerance": self.tolerance}),
        }

    @property
    def summary(self) -> str:
        """The lines as one; of many the first few."""
        more = f"; and {len(self.lines) - MOST_PROBLEMS} more" if len(self.lines) > MOST_PROBLEMS else ""
        return "; ".join(self.lines[:MOST_PROBLEMS]) + more

    def with_problems(self, problems: list[Problem], *, first: bool = False) -> CaseVerdict:
        """The verdict, with more that rounding cannot explain, before or after what there is."""
        both = (*problems, *self.problems) if first else (*self.problems, *problems)
        return replace(self, status=DIFFERS, problems=both, notes=()) if problems else self


def missing(case_id: CaseId, tolerance: float | None = None) -> CaseVerdict:
    """The verdict on a case that the candidate does not have; `tolerance` is the case's own."""
    return CaseVerdict(case_id, MISSING, (Problem(subject=CASE, reason="the candidate does not have this case"),), tolerance=tolerance)


@dataclass(frozen=True)
class Difference:
    """The largest difference of a measure, and the case and the problem that it is of."""

    id: CaseId
    problem: Problem

    @property
    def line(self) -> str:
        where = f" {self.problem.label}" if self.problem.subject in (ACTIVATION, RECONSTRUCTION) else ""
        return f"{self.problem.measure} {self.problem.difference:.3g} ({self.id}{where})"


def largest(cases: Iterable[CaseVerdict]) -> dict[str, Difference]:
    """Of what differs in some cases the largest difference of each measure, in the order of SUBJECTS."""
    differences: dict[str, Difference] = {}
    for case in cases:
        for problem in case.problems:
            if problem.difference is None:
                continue
            before = differences.get(problem.measure)
            # Written so that NaN is the largest of all.
            if before is None or not problem.difference <= (before.problem.difference or 0.0):
                differences[problem.measure] = Difference(case.id, problem)
    return dict(sorted(differences.items(), key=lambda item: SUBJECTS.index(item[1].problem.subject)))


def _outcome_document(cases: tuple[CaseVerdict, ...], agrees: bool, verdict: str) -> dict[str, Any]:
    """What the JSON of a comparison and that of a verification both hold."""
    return {
        "agrees": agrees,
        "verdict": verdict,
        "counts": {status: sum(case.status == status for case in cases) for status in STATUSES},
        "largest_differences": {
            measure: {**difference.id.to_dict(), **difference.problem.to_dict()} for measure, difference in largest(cases).items()
        },
        "test_cases": [case.to_dict() for case in cases],
    }


@dataclass(frozen=True)
class FlagVerdict:
    """A flag of exact vectors, what it catches, and how many of its cases fail."""

    name: str
    catches: str
    failed: int
    cases: int

    @property
    def line(self) -> str:
        return f"{self.name}: {self.failed} of {self.cases} case{'s fail' if self.cases > 1 else ' fails'}: {self.catches}"


@dataclass(frozen=True)
class Comparison:
    """Every case of the reference in its order, and the candidate's cases that the reference does not have.

    `tolerance` is the least of any case. `not_compared` names what the reference has and no case of the candidate; `edited` is
    whether the reference was edited. `flags` are those of exact vectors.
    """

    cases: tuple[CaseVerdict, ...]
    extra: tuple[CaseId, ...]
    tolerance: float
    not_compared: str | None = None
    edited: bool = False
    flags: tuple[FlagVerdict, ...] = ()

    @property
    def agrees(self) -> bool:
        return all(case.agrees for case in self.cases)

    @property
    def failing_flags(self) -> list[FlagVerdict]:
        """Those with cases that fail: first those of which all do, then by how many."""
        return sorted((flag for flag in self.flags if flag.failed), key=lambda flag: -flag.failed / flag.cases)

    @property
    def flag_lines(self) -> list[str]:
        """The failing flags, a line each; of those of which not all cases fail the names alone, where others fail whole."""
        failing = self.failing_flags
        whole = [flag for flag in failing if flag.failed == flag.cases]
        partly = [flag for flag in failing if flag.failed < flag.cases]
        lines = [flag.line for flag in whole or partly]
        if whole and partly:
            lines.append("some cases fail of " + ", ".join(f"{flag.name} ({flag.failed} of {flag.cases})" for flag in partly))
        return lines

    @property
    def worst(self) -> CaseVerdict | None:
        """The case with the largest difference of an activation."""
        measured = [case for case in self.cases if case.max_difference is not None]
        return max(measured, key=lambda case: case.max_difference or 0.0, default=None)

    @property
    def verdict(self) -> str:
        how = "bit for bit" if self.flags else self.tolerances
        return f"the candidate {'agrees' if self.agrees else 'DISAGREES'} ({how})"

    @property
    def tolerances(self) -> str:
        """What cases are held to, in words."""
        own = [case.tolerance for case in self.cases if case.tolerance is not None]
        if not own:
            return f"tolerance {self.tolerance:g}"
        return f"each case has its own tolerance, {min(own):g} to {max(own):g}"

    def share(self, case: CaseVerdict) -> float | None:
        """A case's largest difference in its own tolerances; None where it has none."""
        return None if case.max_difference is None or case.tolerance is None else case.max_difference / case.tolerance

    @property
    def headlines(self) -> list[str]:
        """What failed beside the cases, a line each: the flags of exact vectors."""
        return self.flag_lines

    @property
    def facts(self) -> list[str]:
        """What there is to say beside the verdict, the cases and the headlines, a line each."""
        lines = ["the reference was edited: its digest is not that of what it says; `verify` tells more"] if self.edited else []
        if self.extra:
            were = "was" if len(self.extra) == 1 else "were"
            lines.append(f"{counted(len(self.extra), 'case')} that the reference does not have {were} not compared, first {self.extra[0]}")
        if self.not_compared:
            lines.append(f"the candidate has no {self.not_compared}: the reference's were not compared")
        worst = self.worst
        if self.agrees and worst is not None:
            return [*lines, f"{_statuses(self.cases)}; the largest difference is {worst.max_difference:.3g}, {worst.id} feature {worst.feature}"]
        return [*lines, *_counts_and_differences(self.cases)]

    def __str__(self) -> str:
        return "\n".join([*self.headlines, *_failures(self.cases), *self.facts, self.verdict])

    def _repr_html_(self) -> str:
        return _html(self.verdict, self.cases, ("reference", "candidate"), [*self.headlines, *self.facts])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON has it."""
        worst = self.worst
        flags = [{"flag": flag.name, "cases": flag.cases, "failed": flag.failed, "catches": flag.catches} for flag in self.flags]
        return {
            **_outcome_document(self.cases, self.agrees, self.verdict),
            "tolerance": self.tolerance,
            **({"flags": flags} if flags else {}),
            "largest_difference": worst.max_difference if worst and _is_json(worst.max_difference) else None,
            "extra_cases": [case_id.to_dict() for case_id in self.extra],
            "not_compared": self.not_compared,
            "reference_edited": self.edited,
        }

    @property
    def largest(self) -> dict[str, Difference]:
        """Of what differs the largest difference of each measure, and where."""
        return largest(self.cases)


def _statuses(cases: tuple[CaseVerdict, ...]) -> str:
    """How many cases there are, and how many of each status."""
    counts = Counter(case.status for case in cases)
    words = {DIFFERS: "differs" if counts[DIFFERS] == 1 else "differ"}
    return f"{counted(len(cases), 'case')}: " + ", ".join(f"{counts[status]} {words.get(status, status)}" for status in STATUSES if counts[status])


def _counts_and_differences(cases: tuple[CaseVerdict, ...]) -> list[str]:
    """How many cases there are of each status; and of what differs the largest differences, a line each."""
    return [_statuses(cases), *(f"largest difference: {difference.line}" for difference in largest(cases).values())]


@dataclass(frozen=True)
class Verification:
    """A verdict for each case, and what is wrong with whole layers' files. `exact` is false for torch's references."""

    cases: tuple[CaseVerdict, ...]
    problems: tuple[str, ...]
    exact: bool

    @property
    def agrees(self) -> bool:
        return not self.problems and all(case.agrees for case in self.cases)

    @property
    def verdict(self) -> str:
        right = sum(case.agrees for case in self.cases)
        how = "number for number" if self.exact else "within the tolerance (torch wrote it)"
        agreement = f"agrees {how}" if self.agrees else "DISAGREES"
        return f"{right} of {len(self.cases)} cases are what the weights give: the reference {agreement}"

    @property
    def headlines(self) -> list[str]:
        """What failed beside the cases, a line each: what is wrong with whole layers' files."""
        return list(self.problems)

    @property
    def largest(self) -> dict[str, Difference]:
        """Of what differs the largest difference of each measure, and where."""
        return largest(self.cases)

    @property
    def facts(self) -> list[str]:
        """What there is to say beside the verdict, the cases and the headlines, a line each."""
        return _counts_and_differences(self.cases)

    def __str__(self) -> str:
        return "\n".join([*self.headlines, *_failures(self.cases), *self.facts, self.verdict])

    def _repr_html_(self) -> str:
        return _html(self.verdict, self.cases, ("weights", "reference"), [*self.headlines, *self.facts])

    def to_dict(self) -> dict[str, Any]:
        """The verification as JSON has it."""
        return {**_outcome_document(self.cases, self.agrees, self.verdict), "exact": self.exact, "problems": list(self.problems)}


def _failures(cases: Sequence[CaseVerdict]) -> list[str]:
    """A line for each case that does not agree."""
    return [f"{case.id}: {case.status}  {case.summary}" for case in cases if not case.agrees]


def _html(verdict: str, cases: Sequence[CaseVerdict], columns: tuple[str, str], lines: Sequence[str]) -> str:
    """For a notebook: the verdict, a table of the first problems with both numbers side by side, headed by `columns`, and the lines."""
    from html import escape  # not at the top: no command needs it

    rows = [("case", "what", *columns, "rounding allows", "")]
    rows += [(str(case.id), item.label, *item.texts, item.allowance, item.reason) for case in cases for item in case.problems]
    more = [f"... and {len(rows) - 1 - MOST_ROWS} problems more"] if len(rows) > MOST_ROWS + 1 else []
    cells = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in zip(["th", *["td"] * MOST_ROWS], rows))
    table = f"<table><tr>{'</tr><tr>'.join(cells)}</tr></table>" if len(rows) > 1 else ""
    return f"<p><b>{escape(verdict)}</b></p>{table}" + "".join(f"<p>{escape(line)}</p>" for line in (*more, *lines))
