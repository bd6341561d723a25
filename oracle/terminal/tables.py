# SPDX-License-Identifier: MIT OR Apache-2.0
"""Verdicts as a person reads them, as JSON, and as JUnit's XML. Verdicts in, text out; their words are verdict.py's."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oracle.checking.verdict import Comparison, Problem
from oracle.terminal.output import json_text
from oracle.terminal.text import GREEN, RED, coloured, columns_of, printable, wrapped
from oracle.version import VERSION

if TYPE_CHECKING:
    from oracle.checking.verdict import CaseVerdict, Verification
    from oracle.diagnosis.explanation import Explanation

MOST_BLOCKS = 12  # cases that fail, where -v does not ask for all; the other formats have them all
MOST_OF_A_CELL = 24  # columns of a table's cell: a fingerprint has room, a list stands on a line of its own
MOST_OF_A_GROUP = 3  # problems of a case that say the same of other features, or of other numbers


def closing(outcome: Comparison | Verification, explanation: Explanation | None = None) -> list[str]:
    """What there is to say beside the cases, with the cause where one was looked for."""
    return [*outcome.headlines, *outcome.facts, outcome.verdict, *(explanation.lines if explanation else ())]


@dataclass(frozen=True)
class Screen:
    """How verdicts are laid out: in how many columns, whether everything is listed, whether what passes is left out, and in colours."""

    width: int = sys.maxsize
    is_verbose: bool = False
    failed_only: bool = False
    is_coloured: bool = False

    def lines(self, outcome: Comparison | Verification, explanation: Explanation | None = None) -> list[str]:
        """First what failed, a block a case; then what passed, the cause, and last the verdict."""
        failed = [case for case in outcome.cases if not case.agrees]
        passed = [case for case in outcome.cases if case.agrees]
        shown = failed if self.is_verbose else failed[:MOST_BLOCKS]
        lines = [line for headline in outcome.headlines for line in self.wrapped(headline)]
        heading = ("reference", "candidate") if isinstance(outcome, Comparison) else ("weights", "reference")
        for case in shown:
            lines += ["", *self.wrapped(f"{case.id}: {case.status}"), *self._problem_lines(case, heading)]
        if n_hidden := len(failed) - len(shown):
            lines += ["", *self.wrapped(f"... and {'1 case more that fails; -v lists it' if n_hidden == 1 else f'{n_hidden} cases more that fail; -v lists them'}")]
        if passed and self.is_verbose and not self.failed_only:
            lines += ["", *(line for case in passed for line in self.wrapped(f"{case.id}: {case.status}  {'; '.join(case.notes)}".rstrip()))]
        elif passed and not self.failed_only:
            lines += ["", *self.wrapped(f"{len(passed)} case{'s agree; -v lists them' if len(passed) > 1 else ' agrees; -v lists it'}")]
        lines += [line for fact in outcome.facts for line in self.wrapped(fact)]
        if explanation is not None:
            lines += ["", *(line for text in explanation.lines for line in self.wrapped(text))]
        verdict = self.wrapped(outcome.verdict)
        if self.is_coloured:
            verdict = [coloured(line, GREEN if outcome.agrees else RED) for line in verdict]
        return [*(lines[1:] if lines[:1] == [""] else lines), "", *verdict]

    def wrapped(self, text: str) -> list[str]:
        """A text in the screen's width; what follows its first line is indented two columns more."""
        text = printable(text, sys.stdout)
        return wrapped(text, self.width, " " * (len(text) - len(text.lstrip(" ")) + 2))

    def command_lines(self, words: Sequence[str]) -> list[str]:
        """A command that can be pasted as it stands: where it is broken a backslash ends the line, and no word is broken."""
        lines, line = [], " "
        for word in (printable(shlex.quote(word), sys.stdout) for word in words):
            if line.strip() and columns_of(f"{line} {word} \\") > self.width:
                lines.append(f"{line} \\")
                line = "   "
            line += f" {word}"
        return [*lines, line]

    def _problem_lines(self, case: CaseVerdict, heading: tuple[str, str]) -> list[str]:
        """A case's problems, a line each: both numbers side by side under `heading`, or, where that has no room, one under the other."""
        problems = list(case.problems if self.is_verbose else _first_of_groups(case.problems))
        cells = [_cells(problem) if isinstance(problem, Problem) and _has_numbers(problem) else () for problem in problems]
        names = ("", *heading, "off by", "rounding allows")
        rows = [row for row in cells if row and max(map(columns_of, row[1:])) <= MOST_OF_A_CELL]
        n_columns = max((number for row in rows for number, cell in enumerate(row, 1) if cell), default=0)
        widths = [max(map(columns_of, column)) for column in zip(names, *rows)][:n_columns]
        if 2 * len(widths) + sum(widths) > self.width:
            rows = []
        lines: list[str] = []
        needs_heading = True
        for problem, row in zip(problems, cells):
            if not row:
                lines += self.wrapped(f"  {problem}")
                continue
            if row in rows:
                lines += [_aligned(names, widths)] * needs_heading + [_aligned(row, widths)]
                needs_heading = False
            else:
                numbers = [f"{name:{max(map(len, heading))}}  {cell}" for name, cell in zip(heading, row[1:])]
                rest = ", ".join(f"{name} {cell}" for name, cell in zip(names[3:], row[3:]) if cell)
                lines += [line for text in (f"  {row[0]}", *(f"    {text}" for text in (*numbers, rest) if text)) for line in self.wrapped(text)]
            if isinstance(problem, Problem) and problem.reason:
                with_reason = f"{lines[-1]}  {printable(problem.reason, sys.stdout)}"
                has_room = row in rows and columns_of(with_reason) <= self.width
                lines[-1:] = [with_reason] if has_room else [lines[-1], *self.wrapped(f"    {problem.reason}")]
        return lines


def _first_of_groups(problems: Sequence[Problem]) -> Iterator[Problem | str]:
    """Of each group of problems the first few, and how many more there are."""
    groups: dict[tuple[object, ...], list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.group, []).append(problem)
    for group in groups.values():
        yield from group[:MOST_OF_A_GROUP]
        if len(group) > MOST_OF_A_GROUP:
            yield f"... and {len(group) - MOST_OF_A_GROUP} more; -v lists them"


def _has_numbers(problem: Problem) -> bool:
    return problem.expected is not None and problem.answer is not None


def _cells(problem: Problem) -> tuple[str, ...]:
    """What a table's columns have of a problem: what it is about, both numbers, their difference, and what rounding allows."""
    off = "" if problem.difference is None else f"{problem.difference:.3g}"
    return tuple(printable(cell, sys.stdout) for cell in (problem.label, *problem.texts, off, problem.allowance))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a table: the first column to the left, numbers to the right."""
    padded = (cell + " " * (width - columns_of(cell)) if not number else " " * (width - columns_of(cell)) + cell
              for number, (cell, width) in enumerate(zip(cells, widths)))  # fmt: skip
    return "".join(f"  {cell}" for cell in padded).rstrip()


def has_flags(outcome: Comparison | Verification) -> bool:
    """Whether it is about exact vectors."""
    return isinstance(outcome, Comparison) and bool(outcome.flags)


def outcome_json(
    outcome: Comparison | Verification, cases: Sequence[CaseVerdict], names: dict[str, str], explanation: Explanation | None = None
) -> str:
    """A comparison or a verification as one JSON object, with `cases` of it; `names` are those of the files."""
    document: dict[str, Any] = {"oracle_version": VERSION, **names, **outcome.to_dict(), "test_cases": [case.to_dict() for case in cases]}
    if explanation is not None:
        document["explanation"] = explanation.to_dict()
    return json_text(document, 2) + "\n"


def outcome_junit(outcome: Comparison | Verification, cases: Sequence[CaseVerdict], explanation: Explanation | None = None) -> str:
    """A comparison or a verification as a JUnit test suite: a test for each of `cases`, and one for what is wrong beside them."""
    from xml.sax.saxutils import escape, quoteattr  # not at the top: it takes 30 ms, and few runs need it

    is_comparison = isinstance(outcome, Comparison)
    not_compared = outcome.not_compared if isinstance(outcome, Comparison) else None
    beside = [] if isinstance(outcome, Comparison) else outcome.headlines
    tests = [(f"oracle.layer_{case.id.layer}", f"{case.id.kind}_{case.id.number}", case.status, [] if case.agrees else list(map(str, case.problems)))
             for case in cases]  # fmt: skip
    if not is_comparison:
        tests.append(("oracle", "files_and_record", "wrong" if beside else "same", beside))
    failures, skipped = sum(bool(problems) for *_, problems in tests), int(not_compared is not None)
    counts = f'tests="{len(tests) + skipped}" failures="{failures}" errors="0" skipped="{skipped}"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuite name="oracle {"compare" if is_comparison else "verify"}" {counts}>']
    if isinstance(outcome, Comparison) and outcome.failing_flags:
        flags = ((f"flag {flag.name}", f"{flag.failed} of {flag.cases}: {flag.catches}") for flag in outcome.failing_flags)
        inner = "".join(f"<property name={quoteattr(_legal(name))} value={quoteattr(_legal(value))}/>" for name, value in flags)
        lines.append(f"  <properties>{inner}</properties>")
    for classname, name, status, problems in tests:
        opening = f'  <testcase classname="{classname}" name="{name}"'
        if not problems:
            lines.append(f"{opening}/>")
            continue
        message = quoteattr(_legal(problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")))
        body = "\n".join(escape(_legal(problem)) for problem in problems)
        lines.append(f"{opening}>\n    <failure type={quoteattr(status)} message={message}>{body}</failure>\n  </testcase>")
    if not_compared:
        lines.append(f'  <testcase classname="oracle" name={quoteattr(not_compared)}>\n    <skipped message="not in the candidate"/>\n  </testcase>')
    said = "\n".join(escape(_legal(line)) for line in closing(outcome, explanation))
    lines.append(f"  <system-out>{said}</system-out>")
    # A GitHub runner would take ##[ for a command.
    return ("\n".join([*lines, "</testsuite>"]) + "\n").replace("##[", "##&#91;").encode("ascii", "xmlcharrefreplace").decode()


def _legal(text: str) -> str:
    """A text without what XML cannot hold."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
