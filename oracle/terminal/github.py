# SPDX-License-Identifier: MIT OR Apache-2.0
"""What GitHub Actions shows of a run: errors as annotations, tables on the summary page of a step.

docs.github.com/actions/reference/workflows-and-actions/workflow-commands says how both are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from oracle.errors import counted
from oracle.terminal.text import case_texts, say

if TYPE_CHECKING:
    from oracle.checking.verdict import CaseVerdict
    from oracle.references.document import Reference

MOST_ROWS = 1000  # GitHub refuses a summary of more than 1 MiB


def annotate(title: str, message: str) -> None:
    """Print an error once more, where a workflow runs, so that it stands on the run's page."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On standard error: the runner reads both, and standard output may be a JSON.
        say(f"::error title={_escaped(title, ':,')}::{_escaped(message)}")


def summarize_reference(reference: Reference, output: str) -> None:
    """Add a reference to the step's summary: a row per case."""
    rows = [(case.id.layer, case.id.number, case.n_active, *case_texts(case)) for case in reference.cases]
    heading = ("layer", reference.cases[0].id.kind, "active", "top feature", "rank margin", "gate margin", "flags")
    closing = [f"... and {counted(len(rows) - MOST_ROWS, 'case')} more"] if len(rows) > MOST_ROWS else []
    closing.append(f"{counted(len(rows), 'case')} of {reference.repo.name}, {reference.n_features} features a layer, in {output}")
    _summarize("oracle generate", heading, rows[:MOST_ROWS], closing)


def summarize_verdicts(title: str, cases: Sequence[CaseVerdict], closing: Iterable[str]) -> None:
    """Add verdicts to the step's summary: a row per case, those that fail first where they are many."""
    shown = cases if len(cases) <= MOST_ROWS else sorted(cases, key=lambda case: case.agrees)[:MOST_ROWS]
    rows = [(str(case.id), case.status, case.summary) for case in shown]
    failed = sum(not case.agrees for case in cases) - sum(not case.agrees for case in shown)
    rest = [f"... and {counted(len(cases) - len(shown), 'case')} more, of which {failed} do not agree"] if len(shown) < len(cases) else []
    _summarize(title, ("case", "status", "what"), rows, [*rest, *closing])


def _summarize(title: str, heading: Sequence[str], rows: Iterable[Sequence[object]], closing: Iterable[str]) -> None:
    """Append a table to the file that GitHub names, and lines below it."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if os.environ.get("GITHUB_ACTIONS") != "true" or not path:
        return
    lines = [f"### {_literal(title)}", "", _row(heading), "|" + " --- |" * len(heading), *map(_row, rows)]
    for line in closing:
        lines += ["", _literal(line)]
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n".join([*lines, "", ""]))
    except OSError as error:
        say(f"the summary cannot be written to {path}: {error.strerror}")


def _row(values: Sequence[object]) -> str:
    return "".join(f"| {_literal(value)} " for value in values) + "|"


def _literal(value: object) -> str:
    """A value that neither Markdown nor HTML reads anything into, on one line."""
    text = " ".join(str(value).split())
    return "".join(c if c.isalnum() or c in " .,;()%=+/'\"" else f"&#{ord(c)};" for c in text)


def _escaped(text: str, more: str = "") -> str:
    """A text as workflow commands have it: %, line ends and `more` percent-encoded."""
    return "".join(f"%{ord(c):02X}" if c in "%\r\n" + more else c for c in text)
