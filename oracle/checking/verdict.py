# SPDX-License-Identifier: MIT OR Apache-2.0
"""Verdicts, and the one wording of them: tables, the page and GitHub's summary wrap these lines."""

from __future__ import annotations

from dataclasses import dataclass, replace

from oracle.references.document import CaseId

FLOAT32_ROUNDING = 2.0**-24  # of a value: at most this much of it
MOST_PROBLEMS = 3  # of a case on one line: of a cross-layer transcoder's case every target layer may have one

SAME, ROUNDING, DIFFERS, MISSING = STATUSES = "same", "rounding", "differs", "missing"


def stored(*values: float) -> float:
    """How much values that were rounded to float32 may be off by for that alone, together."""
    return FLOAT32_ROUNDING * sum(map(abs, values))


@dataclass(frozen=True)
class CaseVerdict:
    """One case of the reference. `problems` says what rounding cannot explain, `notes` what it can.

    `max_difference` is the largest of an activation, None where no feature is on both lists; `feature` is where. `tolerance` is
    the case's own, None where it has none.
    """

    id: CaseId
    status: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_difference: float | None = None
    feature: int | None = None
    tolerance: float | None = None

    @property
    def agrees(self) -> bool:
        return self.status in (SAME, ROUNDING)

    @property
    def summary(self) -> str:
        """The problems, or else the notes, on a line; of many the first few."""
        lines = self.problems or self.notes
        more = f"; and {len(lines) - MOST_PROBLEMS} more" if len(lines) > MOST_PROBLEMS else ""
        return "; ".join(lines[:MOST_PROBLEMS]) + more

    def with_problems(self, problems: list[str], *, first: bool = False) -> CaseVerdict:
        """The verdict, with more that rounding cannot explain, before or after what there is."""
        both = (*problems, *self.problems) if first else (*self.problems, *problems)
        return replace(self, status=DIFFERS, problems=both, notes=()) if problems else self


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
    def facts(self) -> list[str]:
        """What there is to say beside the verdict and the cases, a line each."""
        lines = ["the reference was edited: its digest is not that of what it says; `verify` tells more"] if self.edited else []
        if self.extra:
            lines.append(f"{len(self.extra)} cases that the reference does not have were not compared, first {self.extra[0]}")
        if self.not_compared:
            lines.append(f"the candidate has no {self.not_compared}: the reference's were not compared")
        counts = ", ".join(f"{n} {status}" for status in STATUSES if (n := self.count(status)))
        worst = self.worst
        where = "" if worst is None else f"; the largest difference is {worst.max_difference:.3g}, {worst.id} feature {worst.feature}"
        return [*lines, f"{len(self.cases)} cases: {counts}{where}"]

    def count(self, status: str) -> int:
        return sum(case.status == status for case in self.cases)


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
    def facts(self) -> list[str]:
        """What there is to say beside the verdict and the cases, a line each."""
        return list(self.problems)
