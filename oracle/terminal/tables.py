# SPDX-License-Identifier: MIT OR Apache-2.0
"""Verdicts as a person reads them, as JSON, and as JUnit's XML. Pure: verdicts in, text out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from oracle.checking.compare import CaseVerdict, Comparison
    from oracle.checking.verify import Verification
    from oracle.diagnosis.explanation import Explanation

MOST_LINES = 40  # of cases that agree, or differ, in a table for people; the other formats have them all


def verification(made: Verification) -> str:
    """`verify`'s table: a line per case, then what is wrong with whole layers, then the verdict."""
    return "\n".join([*_case_lines(made.cases), *verification_closing(made)])


def verification_closing(made: Verification) -> list[str]:
    """The lines below the cases; the verdict is the last one."""
    right = sum(case.agrees for case in made.cases)
    how = "number for number" if made.exact else "within the tolerance (torch wrote it)"
    verdict = f"agrees {how}" if made.agrees else "DISAGREES"
    return [*made.problems, f"{right} of {len(made.cases)} cases are what the weights give: the reference {verdict}"]


def comparison(made: Comparison, explanation: Explanation | None = None) -> str:
    """`compare`'s table, with the cause where one was looked for."""
    lines = [*_case_lines(made.cases), *comparison_closing(made)]
    if explanation is not None:
        lines += explanation_lines(explanation)
    return "\n".join(lines)


def comparison_closing(made: Comparison) -> list[str]:
    """The lines below the cases; the verdict is the last one."""
    lines = []
    if made.extra:
        lines.append(
            f"{len(made.extra)} cases that the reference does not have were not compared, first layer "
            f"{made.extra[0][0]} seed {made.extra[0][1]}"
        )
    if made.not_compared:
        lines.append(f"the candidate has no {made.not_compared}: the reference's were not compared")
    counts = ", ".join(f"{n} {status}" for status in ("same", "rounding", "differs", "missing") if (n := made.count(status)))
    worst = made.largest
    where = (
        "" if worst is None else f"; the largest difference is {worst.largest:.3g}, {_name(worst)} feature {worst.feature}"
    )
    lines.append(f"{len(made.cases)} cases: {counts}{where}")
    lines.append(f"the candidate {'agrees' if made.agrees else 'DISAGREES'} (tolerance {made.tolerance:g})")
    return lines


def explanation_lines(made: Explanation) -> list[str]:
    """What `--explain` found."""
    lines = []
    if made.named:
        same = len(made.named) > 1
        lines.append(
            "the candidate's numbers are those of" + (" each of these; on these cases they are the same:" if same else ":")
        )
        for fit in made.named:
            lines.append(f"  {fit.name}: {fit.description}")
        best = made.named[0]
        lines.append(f"  {best.matched} of {made.examined} cases matched, largest difference left {best.largest_left:.3g}")
    else:
        lines.append("no known mistake, alone or with another, gives the candidate's numbers")
        lines += [f"  {line}" for line in made.known]
        if made.not_tried:
            lines.append(f"not tried, because their weights are not in the cache: {', '.join(made.not_tried)}")
    if made.also:
        lines.append(f"within the tolerance, but further off: {', '.join(fit.name for fit in made.also)}")
    return lines


def comparison_json(made: Comparison, explanation: Explanation | None = None) -> str:
    """The comparison as one JSON object."""
    worst = made.largest
    document: dict[str, Any] = {
        "agrees": made.agrees,
        "tolerance": made.tolerance,
        "largest_difference": None if worst is None else worst.largest,
        "test_cases": [
            {
                "layer": case.layer,
                "seed": case.seed,
                "status": case.status,
                "problems": list(case.problems),
                "notes": list(case.notes),
                "largest_difference": case.largest,
                "feature": case.feature,
            }
            for case in made.cases
        ],
        "extra_cases": [{"layer": layer, "seed": seed} for layer, seed in made.extra],
        "not_compared": made.not_compared,
    }
    if explanation is not None:
        document["explanation"] = {
            "cases_examined": explanation.examined,
            "named": [
                {
                    "name": fit.name,
                    "mistakes": list(fit.mistakes),
                    "description": fit.description,
                    "cases_matched": fit.matched,
                    "largest_difference_left": fit.largest_left,
                }
                for fit in explanation.named
            ],
            "within_tolerance": [fit.name for fit in explanation.also],
            "known": list(explanation.known),
            "not_tried": list(explanation.not_tried),
        }
    return json.dumps(document, indent=2) + "\n"


def comparison_junit(made: Comparison, explanation: Explanation | None = None) -> str:
    """The comparison as a JUnit test suite, a test per case."""
    n_failed, n_skipped = sum(not case.agrees for case in made.cases), int(made.not_compared is not None)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuite name="oracle compare" tests="{len(made.cases) + n_skipped}" failures="{n_failed}" errors="0" skipped="{n_skipped}">',
    ]
    if explanation is not None:
        said = quoteattr(" ".join(explanation_lines(explanation)))
        lines.append(f'  <properties><property name="explanation" value={said}/></properties>')
    for case in made.cases:
        opening = f'  <testcase classname="oracle.layer_{case.layer}" name="seed_{case.seed}"'
        if case.agrees:
            lines.append(f"{opening}/>")
        else:
            problem = "; ".join(case.problems)
            lines.append(
                f"{opening}>\n    <failure type={quoteattr(case.status)} message={quoteattr(problem)}/>\n  </testcase>"
            )
    if made.not_compared:
        lines.append(
            f'  <testcase classname="oracle" name={quoteattr(made.not_compared)}>\n'
            '    <skipped message="the candidate has none: the reference\'s were not compared"/>\n  </testcase>'
        )
    return "\n".join([*lines, "</testsuite>"]) + "\n"


def _case_lines(cases: tuple[CaseVerdict, ...]) -> list[str]:
    """A line for each case; where they are many, those that fail come first and the rest is counted."""
    chosen = cases if len(cases) <= MOST_LINES else sorted(cases, key=lambda case: case.agrees)[:MOST_LINES]
    lines = []
    for case in chosen:
        lines.append(f"{_name(case)}: {case.status:8}" + (f"  {case.said}" if case.said else ""))
    if len(chosen) < len(cases):
        failed = sum(not case.agrees for case in cases) - sum(not case.agrees for case in chosen)
        lines.append(f"... and {len(cases) - len(chosen)} cases more, of which {failed} do not agree")
    return lines


def _name(case: CaseVerdict) -> str:
    return f"layer {case.layer:2d} seed {case.seed:4d}"
