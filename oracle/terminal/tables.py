# SPDX-License-Identifier: MIT OR Apache-2.0
"""Verdicts as a person reads them, as JSON, and as JUnit's XML. Verdicts in, text out; their words are verdict.py's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oracle.checking.verdict import Comparison
from oracle.terminal.output import json_text

if TYPE_CHECKING:
    from oracle.checking.verdict import CaseVerdict, Verification
    from oracle.diagnosis.explanation import Explanation
    from oracle.references.document import Case, CaseId

MOST_ROWS = 40  # of a table for people; the other formats have them all


def case_texts(case: Case) -> tuple[str, str, str, str]:
    """What a person reads of a case of a reference: its first feature, rank margin, gate margin and flags."""
    feature = f"{case.top[0].feature} ({case.top[0].activation:.4f})" if case.top else "none"
    rank, gate = ("none" if value is None else f"{value:.6f}" for value in (case.rank_margin, case.gate_margin))
    return feature, rank, gate, ", ".join(case.flags or ())


def case_rows(cases: Sequence[CaseVerdict], most: int) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Case, status and summary of each case. Of more than `most`, those that fail come first and a line counts the rest."""
    shown = cases if len(cases) <= most else sorted(cases, key=lambda case: case.agrees)[:most]
    rows = [(str(case.id), case.status, case.summary) for case in shown]
    failed = sum(not case.agrees for case in cases) - sum(not case.agrees for case in shown)
    rest = [f"... and {len(cases) - len(shown)} cases more, of which {failed} do not agree"] if len(shown) < len(cases) else []
    return rows, rest


def closing(outcome: Comparison | Verification, explanation: Explanation | None = None) -> list[str]:
    """The lines below the cases, with the cause where one was looked for."""
    return [*outcome.facts, outcome.verdict, *(explanation.lines if explanation else ())]


def flags(outcome: Comparison | Verification) -> list[str]:
    """The failing flags of exact vectors, a line each."""
    return outcome.flag_lines if isinstance(outcome, Comparison) else []


def table(outcome: Comparison | Verification, explanation: Explanation | None = None) -> str:
    """A line per case, and the lines below them; of exact vectors the failing flags first, and the cases that fail alone."""
    has_flags = isinstance(outcome, Comparison) and bool(outcome.flags)
    shown = [case for case in outcome.cases if not (has_flags and case.agrees)]
    rows, rest = case_rows(shown, MOST_ROWS)
    width = max((len(name) for name, _, _ in rows), default=0)
    lines = [*flags(outcome), *(f"{name:>{width}}: {status:8}  {summary}".rstrip() for name, status, summary in rows)]
    return "\n".join([*lines, *rest, *closing(outcome, explanation)])


def comparison_json(comparison: Comparison, explanation: Explanation | None = None) -> str:
    """The comparison as one JSON object."""
    worst = comparison.worst
    flags = [{"flag": flag.name, "cases": flag.cases, "failed": flag.failed, "catches": flag.catches} for flag in comparison.flags]
    document: dict[str, Any] = {
        "agrees": comparison.agrees,
        "tolerance": comparison.tolerance,
        **({"flags": flags} if flags else {}),
        "largest_difference": None if worst is None else worst.max_difference,
        "test_cases": [
            {
                **_id_json(case.id),
                "status": case.status,
                "problems": case.problems,
                "notes": case.notes,
                "largest_difference": case.max_difference,
                "feature": case.feature,
                **({} if case.tolerance is None else {"tolerance": case.tolerance}),
            }
            for case in comparison.cases
        ],
        "extra_cases": list(map(_id_json, comparison.extra)),
        "not_compared": comparison.not_compared,
    }
    if explanation is not None:
        document["explanation"] = explanation.to_dict()
    return json_text(document, 2) + "\n"


def comparison_junit(comparison: Comparison, explanation: Explanation | None = None) -> str:
    """The comparison as a JUnit test suite, a test per case."""
    from xml.sax.saxutils import quoteattr  # not at the top: it takes 30 ms, and few runs need it

    failures, skipped = sum(not case.agrees for case in comparison.cases), int(comparison.not_compared is not None)
    counts = f'tests="{len(comparison.cases) + skipped}" failures="{failures}" errors="0" skipped="{skipped}"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuite name="oracle compare" {counts}>']
    properties = [] if explanation is None else [("explanation", " ".join(explanation.lines))]
    properties += [(f"flag {flag.name}", f"{flag.failed} of {flag.cases}: {flag.catches}") for flag in comparison.failing_flags]
    if properties:
        inner = "".join(f"<property name={quoteattr(name)} value={quoteattr(value)}/>" for name, value in properties)
        lines.append(f"  <properties>{inner}</properties>")
    for case in comparison.cases:
        opening = f'  <testcase classname="oracle.layer_{case.id.layer}" name="{case.id.kind}_{case.id.number}"'
        if case.agrees:
            lines.append(f"{opening}/>")
        else:
            problems = quoteattr("; ".join(case.problems))
            lines.append(f"{opening}>\n    <failure type={quoteattr(case.status)} message={problems}/>\n  </testcase>")
    if comparison.not_compared:
        name = quoteattr(comparison.not_compared)
        lines.append(f'  <testcase classname="oracle" name={name}>\n    <skipped message="not in the candidate"/>\n  </testcase>')
    # A GitHub runner would take ##[ for a command.
    return ("\n".join([*lines, "</testsuite>"]) + "\n").replace("##[", "##&#91;")


def _id_json(case_id: CaseId) -> dict[str, Any]:
    return {"layer": case_id.layer, case_id.kind: case_id.number}
