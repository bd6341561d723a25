# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's section on a candidate: the verdict, its cause, and every value beside the right one."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from oracle.checking.verdict import DIFFERS, MISSING, MOST_PROBLEMS, ROUNDING, SAME, Comparison, stored
from oracle.page import charts, markup
from oracle.page.charts import Limit
from oracle.page.markup import OPEN_AT_MOST, anchor, count, escape, exact, flag, rough, sentence
from oracle.references.document import Candidate, Case, Reference

if TYPE_CHECKING:
    from oracle.diagnosis.explanation import Explanation

SIGNS = {SAME: "\u2713 same", ROUNDING: "\u2248 rounding", DIFFERS: "\u2717 differs", MISSING: "\u2013 missing"}


def section(reference: Reference, candidate: Candidate, comparison: Comparison, explanation: Explanation | None) -> str:
    """The section; `comparison` is compare's verdict on the candidate."""
    style, sign = ("", "\u2713") if comparison.agrees else (" bad", "\u2717")
    facts = " ".join(map(sentence, comparison.facts))
    parts = [f'<p class="verdict{style}"><strong>{sign} {sentence(comparison.verdict)}</strong> {facts}</p>']
    if not comparison.agrees:
        parts += ["<h3>The cause</h3>", _cause(explanation)]
    parts += ["<h3>The differences at a glance</h3>", _chart(comparison), "<h3>Case by case</h3>", _cases(comparison)]
    parts += ["<h3>Feature by feature</h3>", _features(reference, candidate, comparison)]
    return "\n".join(parts)


def _cause(explanation: Explanation | None) -> str:
    """The explanation's lines; those that are indented are a list, in which the names of mistakes stand out."""
    if explanation is None:
        return (
            "<p>It was not looked for. <code>python -m oracle report REFERENCE CANDIDATE --explain</code> does, with "
            "the weights at hand.</p>"
        )
    names = {fit.name for fit in explanation.named}

    def item(line: str) -> str:
        name, colon, rest = line.strip().partition(": ")
        return f"<strong>{escape(name)}</strong>{colon}{escape(rest)}" if name in names else escape(line.strip())

    parts = []
    for is_list, lines in groupby(explanation.lines, key=lambda line: line.startswith(" ")):
        parts += [markup.bullets(map(item, lines))] if is_list else [f"<p>{sentence(line)}</p>" for line in lines]
    return f'<div class="cause">{"".join(parts)}</div>'


def _chart(comparison: Comparison) -> str:
    is_own = any(case.tolerance is not None for case in comparison.cases)
    differences = [comparison.share(case) if is_own else case.max_difference for case in comparison.cases]
    marks = ((case.id, value, rough(case.max_difference), not case.agrees) for case, value in zip(comparison.cases, differences))
    rows, values = charts.layer_rows(marks)
    without = len(comparison.cases) - len(values)
    none = f" Not drawn: {count(without, 'case')} missing, or with no feature on both lists." if without else ""
    most = f" The largest is {rough(max(values))}{' tolerances' if is_own else ''}." if values else ""
    what = "the case's own tolerance = 1" if is_own else f"tolerance = {comparison.tolerance:g}"
    where = "in tolerances, stands at the largest difference" if is_own else "stands at the largest difference"
    return charts.strip(
        "chart-differences",
        "The largest difference of each case against the tolerance, on a logarithmic axis",
        f"{count(len(values), 'case')}.{most}{none}",
        rows,
        caption=f"<figcaption>A mark is a case, and {where} of an activation that is on both lists. A "
        "diamond is a case that differs; left of the line it does so by its count, its choice, its order or its output."
        f"{none}</figcaption>",
        limit=Limit(1.0 if is_own else comparison.tolerance, what, below=False),
    )


def _cases(comparison: Comparison) -> str:
    rows = []
    for case in comparison.cases:
        sign = f"<span>{SIGNS[case.status]}</span>" if case.agrees else flag(SIGNS[case.status])
        summary = f"<small>{escape(case.summary)}</small>" if case.summary else ""
        rows.append(markup.row(f'<a href="#values-{anchor(case.id)}">{case.id}</a>', rough(case.max_difference), sign + summary))
    head = ("case", "largest difference", "verdict")
    return markup.table("With what rounding cannot explain, or what it can", head, rows, style="num verdicts")


def _features(reference: Reference, candidate: Candidate, comparison: Comparison) -> str:
    n_differ = sum(not case.agrees for case in comparison.cases)
    shown: dict[bool, list[str]] = {False: [], True: []}
    for case, verdict in zip(reference.cases, comparison.cases):
        style = "m" if verdict.agrees else "f"
        summary = f'<h4>{str(case.id).capitalize()}</h4> <span class="{style}">{SIGNS[verdict.status]}</span>'
        answer = candidate.cases.get(case.id)
        if answer is None:
            content = "".join(f"<p>{sentence(problem)}</p>" for problem in verdict.problems)
        else:
            content = _values(case, answer, reference.n_features, reference.tolerance_of(case))
        if len(verdict.problems) > MOST_PROBLEMS:
            heading = f"All {len(verdict.problems)} things that rounding cannot explain"
            content += markup.details(heading, markup.bullets(map(escape, verdict.problems)))
        # Of more cases that differ than stand open, the first alone does.
        is_open = not verdict.agrees and (n_differ <= OPEN_AT_MOST or not shown[False])
        shown[verdict.agrees].append(f'<div id="values-{anchor(verdict.id)}">{markup.details(summary, content, is_open=is_open)}</div>')
    lists = {agrees: '<div class="cards lists">\n' + "\n".join(values) + "\n</div>" for agrees, values in shown.items() if values}
    if len(lists) == 2:
        lists[True] = markup.details(f"The values of {count(len(shown[True]), 'case')} that agree", lists[True])
    return "\n".join(lists.values())


def _values(case: Case, answer: Case, n_features: int, tolerance: float) -> str:
    """Each feature that either list has: its place and value in both, the reference's in their order first."""
    rest = list(enumerate(answer.top, start=1))
    rows = []
    for place, (feature, value) in enumerate(case.top, start=1):
        entry = next((entry for entry in rest if entry[1].feature == feature), None)
        if entry is None:
            rows.append(markup.row(feature, place, exact(value), "\u2013", flag("not listed")))
            continue
        rest.remove(entry)
        answered_place, (_, answered) = entry
        moved = place if answered_place == place else f"{place} \u2192 {answered_place}"
        difference = answered - value
        text = f"{difference:+.3g}" if difference else "0"
        if not abs(difference) <= tolerance + stored(value, answered):
            text = flag(f"{text} off")
        rows.append(markup.row(feature, moved, exact(value), exact(answered), text))
    for place, (feature, value) in rest:
        what = "new" if 0 <= feature < n_features else "no such feature"
        rows.append(markup.row(feature, f"\u2192 {place}", "\u2013", exact(value), flag(what)))
    active = f"{case.n_active:,} fire in the reference, {answer.n_active:,} in the candidate"
    if not rows:
        return f"<p>{active}. Neither lists a feature.</p>"
    return markup.table(active, ("feature", "place", "reference", "candidate", "difference"), rows, style="num values")
