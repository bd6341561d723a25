# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's section on a candidate: the verdict, its cause, and every value beside the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle.checking.compare import DIFFERS, MISSING, MOST_SAID, ROUNDING, SAME, CaseVerdict, Comparison, by_key, stored
from oracle.page import charts, markup
from oracle.page.charts import Limit, Mark, Row
from oracle.page.markup import count, escape, exact, rough
from oracle.references.document import Document, top_key

if TYPE_CHECKING:
    from oracle.diagnosis.explanation import Explanation

OPEN_AT_MOST = 12  # cases that differ whose values stand open when the page is; of more, the first alone
WORDS = {SAME: "the same", ROUNDING: "within rounding", DIFFERS: "different", MISSING: "missing"}
SIGNS = {SAME: "\u2713 same", ROUNDING: "\u2248 rounding", DIFFERS: "\u2717 differs", MISSING: "\u2013 missing"}


def section(recorded: Document, candidate: Document, compared: Comparison, cause: Explanation | None) -> str:
    """The section; `compared` is compare's verdict on the candidate."""
    said = [_verdict(compared)]
    if not compared.agrees:
        said += ["<h3>The cause</h3>", _cause(cause)]
    said += ["<h3>The differences at a glance</h3>", _chart(compared), "<h3>Case by case</h3>", _cases(compared)]
    said += ["<h3>Feature by feature</h3>", _features(recorded, candidate, compared)]
    return "\n".join(said)


def _verdict(compared: Comparison) -> str:
    counted = ", ".join(f"{n:,} {WORDS[status]}" for status in WORDS if (n := compared.count(status)))
    worst = compared.largest
    largest = (
        f" The largest difference of an activation is {rough(worst.largest or 0.0)}: layer {worst.layer}, "
        f"seed {worst.seed}, feature {worst.feature}."
        if worst is not None
        else ""
    )
    extra = ""
    if compared.extra:
        layer, seed = compared.extra[0]
        extra = (
            f" Not compared, because the reference does not have them: {count(len(compared.extra), 'case')} of the "
            f"candidate, first layer {layer}, seed {seed}."
        )
    if compared.not_compared:
        extra += f" The candidate has no {compared.not_compared}: the reference's were not compared."
    verdict = "\u2713 The candidate agrees" if compared.agrees else "\u2717 The candidate disagrees"
    return (
        f'<p class="verdict{"" if compared.agrees else " bad"}"><strong>{verdict}</strong> '
        f"{count(len(compared.cases), 'case')}: {counted}, at a tolerance of "
        f"{compared.tolerance:g}.{largest}{extra}</p>"
    )


def _cause(cause: Explanation | None) -> str:
    if cause is None:
        return (
            "<p>It was not looked for. <code>python -m oracle report REFERENCE CANDIDATE --explain</code> does, with "
            "the weights at hand.</p>"
        )
    said = []
    if cause.named:
        each = " each of these; on these cases they are the same" if len(cause.named) > 1 else ""
        said.append(f"<p>The candidate's numbers are those of{each}:</p>")
        said.append(
            "<ul>"
            + "".join(f"<li><strong>{escape(fit.name)}</strong>: {escape(fit.description)}</li>" for fit in cause.named)
            + "</ul>"
        )
        best = cause.named[0]
        said.append(
            f"<p>{best.matched} of {count(cause.examined, 'case')} matched; the largest difference left is "
            f"{rough(best.largest_left)}.</p>"
        )
    else:
        said.append("<p>No known mistake, alone or with another, gives the candidate's numbers.</p>")
        said.append(
            "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in cause.known) + "</ul>" if cause.known else ""
        )
    if cause.also:
        also = ", ".join(escape(fit.name) for fit in cause.also)
        said.append(f'<p class="m">Within the tolerance, but further off: {also}.</p>')
    if cause.not_tried:
        missed = ", ".join(escape(name) for name in cause.not_tried)
        said.append(f'<p class="m">Not tried, because their weights were not at hand: {missed}.</p>')
    return f'<div class="cause">{"".join(said)}</div>'


def _chart(compared: Comparison) -> str:
    layers: dict[int, list[CaseVerdict]] = {}
    for case in compared.cases:
        layers.setdefault(case.layer, []).append(case)
    rows = []
    for layer, cases in sorted(layers.items()):
        marks = tuple(
            Mark(case.largest, case.seed, f"layer {layer} seed {case.seed}: {rough(case.largest)}", not case.agrees)
            for case in cases
            if case.largest is not None
        )
        rows.append(Row(str(layer), marks))
    values = [mark.value for row in rows for mark in row.marks]
    without = len(compared.cases) - len(values)
    none = f" Not drawn: {count(without, 'case')} missing, or with no feature on both lists." if without else ""
    limit = Limit(compared.tolerance, f"tolerance = {compared.tolerance:g}", below=False)
    most = f" The largest is {rough(max(values))}." if values else ""
    drawn = charts.strip(
        "chart-differences",
        "The largest difference of each case against the tolerance, on a logarithmic axis",
        f"{count(len(values), 'case')}.{most}{none}",
        rows,
        charts.logarithmic(values, compared.tolerance),
        limit=limit,
    )
    return (
        "<figure><figcaption>A mark is a case, and stands at the largest difference of an activation that is on both "
        "lists. A diamond is a case that differs; left of the line it does so by its count, its choice, its order "
        "or its output."
        f"{none}</figcaption>{drawn}</figure>"
    )


def _cases(compared: Comparison) -> str:
    rows = []
    for case in compared.cases:
        said = escape(case.said)
        largest = "\u2013" if case.largest is None else rough(case.largest)
        style = "" if case.agrees else ' class="f"'
        rows.append(
            f'<tr><th scope="row"><a href="#{_anchor(case)}">{case.layer}</a></th><td>{case.seed}</td>'
            f"<td>{largest}</td><td><span{style}>{SIGNS[case.status]}</span>"
            f"{f'<small>{said}</small>' if said else ''}</td></tr>"
        )
    return markup.table(
        "With what rounding cannot explain, or what it can",
        ("layer", "seed", "largest difference", "verdict"),
        rows,
        style="num verdicts",
    )


def _features(recorded: Document, candidate: Document, compared: Comparison) -> str:
    answers, top = by_key(candidate), top_key(recorded)
    n_differ = sum(not case.agrees for case in compared.cases)
    shown: dict[bool, list[str]] = {False: [], True: []}
    for case, verdict in zip(recorded["test_cases"], compared.cases):
        name = f"<h4>Layer {verdict.layer}, seed {verdict.seed}</h4>"
        summary = f'{name} <span class="{"m" if verdict.agrees else "f"}">{SIGNS[verdict.status]}</span>'
        answer = answers.get((verdict.layer, verdict.seed))
        content = (
            "<p>The candidate does not have this case.</p>"
            if answer is None
            else _values(case, answer, top, recorded["n_features_per_layer"], compared.tolerance)
        )
        if len(verdict.problems) > MOST_SAID:
            listed = f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in verdict.problems)}</ul>"
            content += markup.details(f"All {len(verdict.problems)} things that rounding cannot explain", listed, is_open=False)
        is_open = not verdict.agrees and (n_differ <= OPEN_AT_MOST or not shown[False])
        made = markup.details(summary, content, is_open=is_open)
        shown[verdict.agrees].append(f'<div id="{_anchor(verdict)}">{made}</div>')
    differing, agreeing = (
        '<div class="cards lists">\n' + "\n".join(shown[agrees]) + "\n</div>" for agrees in (False, True)
    )
    if not shown[True]:
        return differing
    if not shown[False]:
        return agreeing
    folded = markup.details(f"The values of {count(len(shown[True]), 'case')} that agree", agreeing, is_open=False)
    return f"{differing}\n{folded}"


def _values(case: Document, answer: Document, top: str, n_features: int, tolerance: float) -> str:
    """Each feature that either list has: its place and value in both, the reference's in their order first."""
    left = [(entry["index"], entry["activation"], place) for place, entry in enumerate(answer[top], start=1)]
    rows = []
    for place, entry in enumerate(case[top], start=1):
        index, value = entry["index"], entry["activation"]
        found = next((given for given in left if given[0] == index), None)
        if found is None:
            rows.append(_row(index, str(place), exact(value), "\u2013", "not listed", wrong=True))
            continue
        left.remove(found)
        difference = float(found[1]) - float(value)
        wrong = abs(difference) > tolerance + stored(value, found[1])
        moved = str(place) if found[2] == place else f"{place} \u2192 {found[2]}"
        rows.append(_row(index, moved, exact(value), exact(found[1]), _signed(difference, wrong), wrong=wrong))
    for index, value, place in left:
        what = "no such feature" if not 0 <= index < n_features else "new"
        rows.append(_row(index, f"\u2192 {place}", "\u2013", exact(value), what, wrong=True))
    active = f"{case['n_active']:,} fire in the reference, {answer['n_active']:,} in the candidate"
    if not rows:
        return f"<p>{active}. Neither lists a feature.</p>"
    return markup.table(active, ("feature", "place", "reference", "candidate", "difference"), rows, style="num values")


def _row(index: int, place: str, expected: str, given: str, difference: str, *, wrong: bool) -> str:
    style = ' class="f"' if wrong else ""
    cells = f"<td>{place}</td><td>{expected}</td><td>{given}</td><td{style}>{difference}</td>"
    return f'<tr><th scope="row">{index}</th>{cells}</tr>'


def _signed(difference: float, wrong: bool) -> str:
    if difference == 0:
        return "0"
    return f"{difference:+.3g}{' off' if wrong else ''}"


def _anchor(case: CaseVerdict) -> str:
    return f"values-{case.layer}-{case.seed}"
