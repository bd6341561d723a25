# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a page says of a candidate: the verdict first, then the cause, what differs, and the cases that agree on a line."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from oracle.checking.lists import listed
from oracle.checking.verdict import (
    ACTIVATION,
    DIFFERS,
    LIST,
    MISSING,
    PLACE,
    RECONSTRUCTION,
    ROUNDING,
    SAME,
    CaseVerdict,
    Comparison,
    Problem,
)  # fmt: skip
from oracle.page import charts, markup
from oracle.page.charts import Limit
from oracle.page.markup import aligned, anchor, code, count, escape, exact, plain, rough, sentence
from oracle.references.document import Candidate, Case, Reference

if TYPE_CHECKING:
    from oracle.diagnosis.explanation import Explanation

SIGNS = {SAME: "\u2713 same", ROUNDING: "\u2248 rounding", DIFFERS: "\u2717 differs", MISSING: "\u2717 missing"}
MOST_ROWS = 30  # of a case's table: of a cross-layer transcoder's case every target layer may have one
MOST_TABLES = 100  # of the cases that differ
NOT_LISTED = "not listed"

Row = tuple[str, str, str, str, str]  # what it is about, the reference's, the candidate's, the difference, what rounding allows


@dataclass(frozen=True)
class FileNames:
    """What the files that a page is of are called."""

    reference: str = "reference.json"
    candidate: str = "candidate.json"


def headline(comparison: Comparison) -> str:
    """The verdict in a few words, with its sign."""
    n_cases = len(comparison.cases)
    if comparison.agrees:
        return f"\u2713 All {count(n_cases, 'case')} agree" if n_cases > 1 else "\u2713 The case agrees"
    n_missing, n_differ = comparison.count(MISSING), comparison.count(DIFFERS)
    parts = [f"{n_differ} of {count(n_cases, 'case')} differ{'s' if n_differ == 1 else ''}"] if n_differ else []
    if n_missing:
        parts.append(f"{n_missing}{' more' if parts else ''} of {count(n_cases, 'case')} missing")
    return f"\u2717 {', '.join(parts)}"


def header(comparison: Comparison, names: FileNames) -> str:
    """The page's first lines: which files, the verdict, and the facts."""
    style = "good" if comparison.agrees else "bad"
    facts = " ".join(map(sentence, [comparison.verdict, *comparison.facts]))
    return (
        f'<p class="kicker">{code(names.candidate)} against {code(names.reference)}</p>\n'
        f'<h1 class="{style}">{escape(headline(comparison))}</h1>\n<p class="lead">{facts}</p>'
    )


def section(reference: Reference, candidate: Candidate, comparison: Comparison, explanation: Explanation | None, names: FileNames) -> str:
    """The sections; `comparison` is compare's verdict on the candidate."""
    parts = []
    if not comparison.agrees:
        parts.append(_part("cause", "The cause", _cause(explanation, comparison, names)))
    parts.append(_part("failures", "The cases" if comparison.agrees else "What differs", _cases(reference, candidate, comparison)))
    parts.append(_part("glance", "At a glance", _chart(comparison)))
    return '<div class="compared">\n' + "\n".join(parts) + "\n</div>"


def _part(key: str, name: str, content: str) -> str:
    return f'<section class="{key}" aria-labelledby="{key}">\n<h2 id="{key}">{name}</h2>\n{content}\n</section>'


def _cause(explanation: Explanation | None, comparison: Comparison, names: FileNames) -> str:
    """The explanation's lines; those that are indented are a list, in which the names of mistakes stand out."""
    if explanation is None:
        command = _command("report", names.reference, names.candidate, "--explain")
        return f"<p>It was not looked for. With the weights at hand this does:</p>\n{command}{_inspect(comparison, names)}"
    mistakes = {fit.name for fit in explanation.named}

    def item(line: str) -> str:
        name, colon, rest = line.strip().partition(": ")
        return f"<strong>{escape(name)}</strong>{colon}{escape(rest)}" if name in mistakes else escape(line.strip())

    parts = []
    for is_list, lines in groupby(explanation.lines, key=lambda line: line.startswith(" ")):
        parts += [markup.bullets(map(item, lines))] if is_list else [f"<p>{sentence(line)}</p>" for line in lines]
    return f"{''.join(parts)}{_inspect(comparison, names)}"


def _inspect(comparison: Comparison, names: FileNames) -> str:
    """How to see where the first wrong activation goes wrong; nothing where none is."""
    for case in comparison.cases:
        feature = next((problem.feature for problem in case.problems if problem.subject == ACTIVATION), None)
        if feature is not None:
            where = "--layer", str(case.id.layer), f"--{case.id.kind}", str(case.id.number), "--feature", str(feature)
            shown = _command("inspect", names.reference, *where, "--candidate", names.candidate)
            return f"\n<p>How feature {feature} of {case.id} comes about, step by step:</p>\n{shown}"
    return ""


def _command(*words: str) -> str:
    return f'<p class="command">{code(shlex.join(("python", "-m", "oracle", *words)))}</p>'


def _cases(reference: Reference, candidate: Candidate, comparison: Comparison) -> str:
    """What differs, a table for each case; then the cases that agree, folded to a line."""
    pairs = list(zip(reference.cases, comparison.cases))
    failures = [_failure(case, candidate.cases.get(case.id), verdict) for case, verdict in pairs if not verdict.agrees]
    parts = ["\n".join(['<div class="tables">', *failures[:MOST_TABLES], "</div>"])] if failures else []
    if len(failures) > MOST_TABLES:
        rest = [verdict for verdict in comparison.cases if not verdict.agrees][MOST_TABLES:]
        parts.append(markup.details(f"{count(len(rest), 'more case')} that differ", _verdicts(rest)))
    passes = [verdict for verdict in comparison.cases if verdict.agrees]
    if passes:
        statuses = Counter(verdict.status for verdict in passes)
        how = ", ".join(words for n, words in ((statuses[SAME], f"{statuses[SAME]} the same"), (statuses[ROUNDING], f"{statuses[ROUNDING]} within rounding")) if n)
        line = f"\u2713 {count(len(passes), 'case')} {'agrees' if len(passes) == 1 else 'agree'}"
        parts.append(markup.details(f'<span class="good">{line}</span> <span class="m">{how}</span>', _verdicts(passes), style="passes"))
    return "\n".join(parts)


def _verdicts(verdicts: list[CaseVerdict]) -> str:
    """A row for each case."""
    rows = [markup.row(verdict.id, f"<span>{SIGNS[verdict.status]}</span>", escape(verdict.summary)) for verdict in verdicts]
    return markup.table("The verdict on each case, and what rounding explains of it", ("case", "verdict", "what differs"), rows, style="verdicts")


def _failure(case: Case, answer: Case | None, verdict: CaseVerdict) -> str:
    """A case that differs: what differs of it, and no more."""
    rows = [row for problem in _worst_first(verdict.problems) for row in _rows(problem, case, answer)]
    numbers, words = [row for row in rows if any(row[1:3])], [row[0] for row in rows if not any(row[1:3])]
    words += [problem.reason for problem in verdict.problems if problem.reason and problem.expected is not None]
    parts = [f'<article id="values-{anchor(case.id)}"><h3><a href="#{anchor(case.id)}">{str(case.id).capitalize()}</a></h3>']
    parts += [f'<p class="f">{sentence(word)}</p>' for word in words]
    if numbers:
        parts.append(_table(numbers[:MOST_ROWS]))
    if len(numbers) > MOST_ROWS:
        parts.append(f'<p class="m">And {len(numbers) - MOST_ROWS} more.</p>')
    if answer is not None and case.top and (n_right := _n_right(case, answer, verdict)):
        parts.append(f'<p class="m">Of the list {n_right} of {count(len(listed(case)), "feature")} are right.</p>')
    return "\n".join([*parts, "</article>"])


def _table(rows: list[Row]) -> str:
    labels, *columns = zip(*rows)
    cells = [aligned(map(escape, column)) for column in columns]
    table = [
        f'<tr><th scope="row">{label}</th><td>{expected}</td><td class="f">{answer}</td><td>{difference}</td><td>{allowed}</td></tr>'
        for label, expected, answer, difference, allowed in zip(labels, *cells)
    ]
    return markup.table("", ("", "reference", "candidate", "difference", "rounding allows"), table, style="values")


def _worst_first(problems: tuple[Problem, ...]) -> list[Problem]:
    """The problems, but of a reconstruction's numbers the one alone that is off most, for what rounding allows."""
    worst: dict[object, Problem] = {}
    for problem in problems:
        key = problem.target_layer if problem.subject == RECONSTRUCTION else id(problem)
        before = worst.get(key)
        if before is None or _excess(problem) > _excess(before):
            worst[key] = problem
    return list(worst.values())


def _excess(problem: Problem) -> float:
    return (problem.difference or 0.0) / (problem.allowed or 1.0)


def _rows(problem: Problem, case: Case, answer: Case | None) -> list[Row]:
    """The rows of a problem; one that has no numbers is a row of its words alone."""
    if problem.subject in (PLACE, LIST) and answer is not None:
        return _list_rows(case, answer)
    expected, value = problem.expected, problem.answer
    if expected is None or value is None:
        return [(str(problem), "", "", "", "")]
    texts = [exact(number) if isinstance(number, float) else str(number) for number in (expected, value)]
    label = problem.label
    if problem.subject == RECONSTRUCTION:
        label = f"to layer {problem.target_layer}, {problem.quantity}"
    difference = ""
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        difference = plain(value - expected, "+")
    allowed = problem.allowance if problem.bounds else plain(problem.allowed) if problem.allowed else ""
    return [(label, texts[0], texts[1], difference, allowed)]


def _list_rows(case: Case, answer: Case) -> list[Row]:
    """The features that are on one list alone, and those that are on both and stand in another order there."""
    places, answered_places = ({top.feature: place for place, top in enumerate(listed(side), start=1)} for side in (case, answer))
    values, answered = ({top.feature: top.activation for top in listed(side)} for side in (case, answer))
    rows = [(f"feature {feature}", exact(value), NOT_LISTED, f"place {places[feature]}", "") for feature, value in values.items() if feature not in answered]
    rows += [
        (f"feature {feature}", NOT_LISTED, exact(value), f"place {answered_places[feature]}", "")
        for feature, value in answered.items()
        if feature not in values
    ]
    return rows + [(f"feature {feature}", f"place {places[feature]}", f"place {answered_places[feature]}", "", "") for feature in _moved(case, answer)]


def _moved(case: Case, answer: Case) -> list[int]:
    """The features of both lists that stand in another order among these."""
    order, answered = ([top.feature for top in listed(side)] for side in (case, answer))
    common = [feature for feature in order if feature in answered]
    after = list(dict.fromkeys(feature for feature in answered if feature in order))
    return [feature for feature, other in zip(common, after) if feature != other]


def _n_right(case: Case, answer: Case, verdict: CaseVerdict) -> int:
    """How many features of the list are on the candidate's, in their order and with their values."""
    off = {problem.feature for problem in verdict.problems if problem.subject == ACTIVATION}
    answered = {top.feature for top in listed(answer)}
    return len({top.feature for top in listed(case)} & answered - off - set(_moved(case, answer)))


def _chart(comparison: Comparison) -> str:
    is_own = any(case.tolerance is not None for case in comparison.cases)
    differences = [comparison.share(case) if is_own else case.max_difference for case in comparison.cases]
    marks = ((case.id, value, rough(case.max_difference), not case.agrees) for case, value in zip(comparison.cases, differences))
    rows, values = charts.layer_rows(marks)
    without = len(comparison.cases) - len(values)
    none = f" Not drawn: {count(without, 'case')} missing, or with no feature on both lists." if without else ""
    most = f" The largest is {rough(max(values))}{' tolerances' if is_own else ''}." if values else ""
    kind = comparison.cases[0].id.kind
    diamonds = "" if comparison.agrees else f" Diamonds differ, and their {kind} stands on the right; left of the line they do so by count, choice, order or output."
    return charts.strip(
        "chart-differences",
        "The largest difference of each case against the tolerance, on a logarithmic axis",
        f"{count(len(values), 'case')}.{most}{none}",
        rows,
        caption=f"<figcaption>A mark is a case, at the largest difference of an activation on both lists{', in its own tolerances' if is_own else ''}."
        f"{diamonds}{none}</figcaption>",
        limit=Limit(1.0 if is_own else comparison.tolerance, "own tolerance" if is_own else "tolerance", below=False),
        of_notes="" if comparison.agrees else kind,
        style="faults",
    )
