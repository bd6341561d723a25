# SPDX-License-Identifier: MIT OR Apache-2.0
"""What GitHub Actions shows of a run: errors as annotations, tables on the summary page of a step.

docs.github.com/actions/reference/workflows-and-actions/workflow-commands says how both are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from oracle.terminal.progress import say

if TYPE_CHECKING:
    from oracle.checking.compare import CaseVerdict

MOST_ROWS = 1000  # GitHub refuses a summary of more than 1 MiB


def annotate(title: str, message: str) -> None:
    """Print an error once more, where a workflow runs, so that it stands on the run's page."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On standard error: the runner reads both, and standard output may be a JSON.
        say(f"::error title={_escaped(title, ':,')}::{_escaped(message)}")


def summarize_reference(made: dict[str, Any], output: str) -> None:
    """Add a reference to the step's summary: a row per case."""
    rows = []
    for case in made["test_cases"]:
        top = next(value for key, value in case.items() if key.startswith("top_"))
        rank = "none" if case["rank_margin"] is None else f"{case['rank_margin']:.6f}"
        first = f"{top[0]['index']} ({top[0]['activation']:.4f})" if top else "none"
        flags = ", ".join(case["flags"])
        rows.append((case["layer"], case["seed"], case["n_active"], first, rank, f"{case['gate_margin']:.6f}", flags))
    heading = ("layer", "seed", "active", "top feature", "rank margin", "gate margin", "flags")
    from oracle.references import document

    what = f"{len(rows)} cases of {document.weights_repo(made)}, {made['n_features_per_layer']} features a layer, in {output}"
    _summarize("oracle generate", heading, rows, [what])


def summarize_verdicts(title: str, cases: Sequence[CaseVerdict], closing: Iterable[str]) -> None:
    """Add verdicts to the step's summary: a row per case, those that fail first where they are many."""
    chosen = cases if len(cases) <= MOST_ROWS else sorted(cases, key=lambda case: case.agrees)
    rows = [(case.layer, case.seed, case.status, case.said) for case in chosen]
    _summarize(title, ("layer", "seed", "status", "what"), rows, closing)


def _summarize(title: str, heading: Sequence[str], rows: Sequence[Sequence[object]], closing: Iterable[str]) -> None:
    """Append a table to the file that GitHub names, and lines below it."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if os.environ.get("GITHUB_ACTIONS") != "true" or not place:
        return
    lines = [f"### {_literal(title)}", "", _row(heading), "|" + " --- |" * len(heading)]
    lines += [_row(row) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        closing = [f"... and {len(rows) - MOST_ROWS} cases more", *closing]
    for line in closing:
        lines += ["", _literal(line)]
    try:
        with open(place, "a", encoding="utf-8") as file:
            file.write("\n".join([*lines, "", ""]))
    except OSError as error:
        say(f"the summary cannot be written to {place}: {error.strerror}")


def _row(values: Sequence[object]) -> str:
    return "".join(f"| {_literal(value)} " for value in values) + "|"


def _literal(value: object) -> str:
    """A value that neither Markdown nor HTML reads anything into, on one line."""
    text = " ".join(str(value).split())
    return "".join(c if c.isalnum() or c in " .,;()%=+/'\"" else f"&#{ord(c)};" for c in text)


def _escaped(text: str, more: str = "") -> str:
    """A text as workflow commands have it: %, line ends and `more` percent-encoded."""
    return "".join(f"%{ord(c):02X}" if c in "%\r\n" + more else c for c in text)
