# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a page says of a candidate: the verdict first, then the cause, what differs, and the cases that agree on a line."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING

from oracle.checking.lists import listed
from oracle.checking.verdict import (
    ACTIVATION,
    DIFFERS,
    LIST,
    MISSING,
    PLACE,
    RECONSTRUCTION,
    RESIDUAL,
    ROUNDING,
    SAME,
    CaseVerdict,
    Comparison,
    Problem,
)  # fmt: skip
from oracle.page import charts, markup
from oracle.page.charts import Limit
from oracle.page.markup import aligned, anchor, code, count, escape, exact, flag, plain, rough, sentence
from oracle.references.document import Candidate, Case, Reference, TopFeature
from oracle.references.rows import file_name

if TYPE_CHECKING:
    from oracle.diagnosis.explanation import Explanation

SIGNS = {SAME: "\u2713 same", ROUNDING: "\u2248 rounding", DIFFERS: "\u2717 differs", MISSING: "\u2717 missing"}
MOST_ROWS = 30  # of a case's table: of a cross-layer transcoder's case every target layer may have one
MOST_TABLES = 100  # of the cases that differ
NOT_LISTED = "not listed"

Place = tuple[int, TopFeature | None, TopFeature | None]  # of the lists, with what stands there in the reference and the candidate


@dataclass(frozen=True)
class FileNames:
    """What the files that a page is of are called, as a command names them: `-` is standard input."""

    reference: str = "reference.json"
    candidate: str = "candidate.json"

    @property
    def title(self) -> str:
        """Both without their folders."""
        return f"{file_name(PurePath(self.candidate).name)} against {file_name(PurePath(self.reference).name)}"


def headline(comparison: Comparison) -> str:
    """The verdict in a few words, with its sign."""
    cases = count(len(comparison.cases), "case")
    if comparison.agrees:
        return f"\u2713 All {cases} agree" if len(comparison.cases) > 1 else "\u2713 The case agrees"
    statuses = Counter(case.status for case in comparison.cases)
    n_differ, n_missing = statuses[DIFFERS], statuses[MISSING]
    words = {f"differ{'s' if n_differ == 1 else ''}": n_differ, f"{'is' if n_missing == 1 else 'are'} missing": n_missing}
    first, *more = [(n, word) for word, n in words.items() if n]
    return f"\u2717 {first[0]} of {cases} {first[1]}" + "".join(f", {n} {word}" for n, word in more)


def header(comparison: Comparison, names: FileNames) -> str:
    """The page's first lines: which files, the verdict, and the facts."""
    style = "good" if comparison.agrees else "bad"
    facts = " ".join(map(sentence, [comparison.verdict, *comparison.facts]))
    return (
        f'<p class="kicker">{code(file_name(names.candidate))} against {code(file_name(names.reference))}</p>\n'
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
    """A command to copy, which breaks between its words alone."""
    spans = " ".join(f"<span>{escape(shlex.quote(word))}</span>" for word in ("python", "-m", "oracle", *words))
    return f'<p class="command"><code>{spans}</code></p>'


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
    problems = _worst_first(verdict.problems)
    words = replace(verdict, problems=tuple(problem for problem in problems if problem.expected is None)).lines
    words += [problem.reason for problem in problems if problem.reason and problem.expected is not None]
    parts = [f'<article id="values-{anchor(case.id)}"><h3><a href="#{anchor(case.id)}">{str(case.id).capitalize()}</a></h3>']
    parts += [f'<p class="f">{sentence(word)}</p>' for word in words]
    numbers = [problem for problem in problems if problem.expected is not None and problem.subject != PLACE]
    parts.append(_numbers("", [(problem.label, problem) for problem in numbers if problem.subject == RESIDUAL]))
    parts.append(_numbers("", [(problem.label, problem) for problem in numbers if problem.subject not in (RESIDUAL, ACTIVATION)]))
    parts.append(_numbers("feature", [(str(problem.feature), problem) for problem in numbers if problem.subject == ACTIVATION]))
    if answer is not None:
        places = _places(case, answer) if any(problem.subject in (PLACE, LIST) for problem in problems) else []
        parts.append(_list(places))
        if case.top and (n_right := _n_right(case, places, verdict)):
            parts.append(f'<p class="m">Of the list {n_right} of {count(len(listed(case)), "feature")} are right.</p>')
    return "\n".join(part for part in [*parts, "</article>"] if part)


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


def _numbers(head: str, problems: list[tuple[str, Problem]]) -> str:
    """The table of numbers that differ, each with its name; `head` is what the names are of."""
    if not problems:
        return ""
    labels, columns = [label for label, _ in problems], zip(*(_cells(problem) for _, problem in problems))
    expected, answers, differences, allowances = (aligned(column) for column in columns)
    rest = {name: column for name, column in (("difference", differences), ("rounding allows", allowances)) if any(column)}
    names = (escape(label).replace("_", "_<wbr/>") for label in labels)
    rows = [markup.row(name, *cells) for name, *cells in zip(names, map(escape, expected), map(flag, answers), *rest.values())]
    return _table((head, "reference", "candidate", *rest), rows)


def _cells(problem: Problem) -> tuple[str, str, str, str]:
    """The reference's number, the candidate's, their difference, and what rounding allows of it."""
    expected, answer = problem.expected, problem.answer
    texts = [exact(number) if isinstance(number, float) else str(number) for number in (expected, answer)]
    difference = ""
    if isinstance(expected, (int, float)) and isinstance(answer, (int, float)):
        difference = plain(answer - expected, "+")
    allowed = problem.allowance if problem.bounds else plain(problem.allowed) if problem.allowed else ""
    return texts[0], texts[1], difference, allowed


def _table(heads: Sequence[str], rows: list[str]) -> str:
    more = f'\n<p class="m">And {len(rows) - MOST_ROWS} more.</p>' if len(rows) > MOST_ROWS else ""
    return markup.table("", heads, rows[:MOST_ROWS], style="values") + more


def _places(case: Case, answer: Case) -> list[Place]:
    """The places of the lists that have another feature: it is on one list alone, or the order of those that are on both differs."""
    expected, answered = ({top.feature: (place, top) for place, top in enumerate(listed(side), start=1)} for side in (case, answer))
    gone = {place: top for place, top in expected.values() if top.feature not in answered}
    come = {place: top for place, top in answered.values() if top.feature not in expected}
    places = [(place, gone.get(place), come.get(place)) for place in gone.keys() | come.keys()]
    common, after = ([at for feature, at in side.items() if feature in other] for side, other in ((expected, answered), (answered, expected)))
    places += [(place, top, other) for (place, top), (_, other) in zip(common, after) if top.feature != other.feature]
    return sorted(places, key=lambda row: row[0])


def _list(places: list[Place]) -> str:
    """The table of these places."""
    if not places:
        return ""
    columns = [aligned("" if top is None else exact(top.activation) for top in side) for side in list(zip(*places))[1:]]
    rows = [
        markup.row(place, *_entry(expected, value), *_entry(answer, answered, flag))
        for (place, expected, answer), value, answered in zip(places, *columns)
    ]
    return _table(("place", "reference<br/>feature", "activation", "candidate<br/>feature", "activation"), rows)


def _entry(top: TopFeature | None, activation: str, style: Callable[[str], str] = str) -> tuple[str, str]:
    """The cells of a feature on a list; of None those of one that is not there."""
    return (style(NOT_LISTED), "") if top is None else (style(str(top.feature)), activation)


def _n_right(case: Case, places: list[Place], verdict: CaseVerdict) -> int:
    """How many features of the list are on the candidate's, in their order and with their values."""
    off = {problem.feature for problem in verdict.problems if problem.subject == ACTIVATION}
    return len({top.feature for top in listed(case)} - off - {top.feature for _, top, _ in places if top is not None})


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
