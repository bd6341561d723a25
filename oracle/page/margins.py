# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's section on how far each answer of a reference is from flipping, and which cases are fragile."""

from __future__ import annotations

from oracle.page import charts, markup
from oracle.page.charts import Limit
from oracle.page.markup import OPEN_AT_MOST, anchor, count, flag, margin, rough
from oracle.references.document import GATE_TIE, NO_ACTIVE_FEATURES, RANK_TIE, Case, Reference


def gaps_of(case: Case) -> list[float]:
    """What each feature of a list has over the next one."""
    return [top.activation - following.activation for top, following in zip(case.top, case.top[1:])]


def section(reference: Reference) -> str:
    """The section."""
    # Where each case has its own tolerance, margins are drawn in these.
    is_own = any(case.tolerance is not None for case in reference.cases)
    tolerance, unit = (1.0, "the case's own tolerance") if is_own else (reference.tolerance, "tolerance")
    intro = (
        f"<p>A port whose numbers are off by no more than {f'the tolerance, {tolerance:g},' if not is_own else unit} may still give another order, "
        "or another count, where two features stand close to each other or one stands close to its gate.</p>"
    )
    if not reference.is_ours:
        return intro + _unrecorded(reference)
    limit = Limit(2 * tolerance, f"2 \u00d7 {unit}" + ("" if is_own else f" = {2 * tolerance:g}"), below=True)
    what = "The smallest gap between neighbours on the list, and from its last to the next feature."
    drawn = _chart("Rank margin", what, limit, [(case, case.rank_margin) for case in reference.cases], RANK_TIE)
    limit = Limit(tolerance, unit + ("" if is_own else f" = {tolerance:g}"), below=True)
    what = "The smallest distance of any feature of the layer from its gate."
    drawn += _chart("Gate margin", what, limit, [(case, case.gate_margin) for case in reference.cases], GATE_TIE)
    return (
        f'{intro}\n<div class="two">{drawn}</div>\n<h3>The fragile cases</h3>\n{_fragile(reference)}\n{_skipped(reference)}'
        f"<h3>All margins</h3>\n{_margin_table(reference)}"
    )


def _chart(title: str, what: str, limit: Limit, margins: list[tuple[Case, float | None]], tie: str) -> str:
    """The margins of all cases; `tie` is the flag of those at or below the limit."""
    rows, values = charts.layer_rows(
        (case.id, value if value is None or case.tolerance is None else value / case.tolerance, margin(value), tie in (case.flags or ()))
        for case, value in margins
    )
    without = len(margins) - len(values)
    n_fragile = sum(mark.stands_out for row in rows for mark in row.marks)
    is_own = any(case.tolerance is not None for case, _ in margins)
    lowest = f" The smallest is {rough(min(values)) + ' tolerances' if is_own else margin(min(values))}." if values else ""
    none = f" {count(without, 'case')} without one: fewer than two features fire." if without else ""
    return charts.strip(
        f"chart-{title.lower().replace(' ', '_')}",
        f"{title} of every case against {limit.name}, on a logarithmic axis",
        f"{count(len(values), 'case')}, of which {n_fragile} at or below the line.{lowest}{none}",
        rows,
        caption=f"<h3>{title}</h3><figcaption>{what} A diamond, in the shaded part, is a case that may flip: {tie}.{none}</figcaption>",
        limit=limit,
    )


def _skipped(reference: Reference) -> str:
    """The seeds that --robust passed over, and why."""
    rows = [
        markup.row(seed.id.layer, seed.id.number, flag(", ".join(seed.flags)), margin(seed.rank_margin), margin(seed.gate_margin))
        for seed in reference.skipped_seeds or ()
    ]
    if not rows:
        return ""
    table = markup.table("Seeds of which no case was made", ("layer", "seed", "passed over for", "rank margin", "gate margin"), rows)
    summary = f"{count(len(rows), 'seed')} passed over"
    return "<h3>Seeds passed over</h3>\n" + markup.details(summary, table, is_open=len(rows) <= OPEN_AT_MOST) + "\n"


def _unrecorded(reference: Reference) -> str:
    """What can be said of a reference without margins: which neighbours on its lists stand close."""
    close = [
        f"{str(case.id).capitalize()}: features {case.top[place].feature} and {case.top[place + 1].feature} stand {rough(gap)} apart"
        for case in reference.cases
        for place, gap in enumerate(gaps_of(case))
        if gap <= 2 * reference.tolerance
    ]
    ties = "<p>No two neighbours on its lists stand within 2 \u00d7 tolerance of each other.</p>"
    if close:
        what = "<p>On its lists these neighbours stand at most 2 \u00d7 tolerance apart, and a correct port may swap them:</p>"
        ties = what + markup.bullets(close)
    return (
        "<p>This reference records no margins; one that <code>python -m oracle generate</code> writes does. "
        f"How near the other features are, and how near their gates, cannot be told from it.</p>{ties}"
    )


def _fragile(reference: Reference) -> str:
    items = [
        f'<a href="#{anchor(case.id)}">{str(case.id).capitalize()}</a>: {flag(text)}{_why(case, text, reference.tolerance_of(case))}'
        for case in reference.cases
        for text in case.flags or ()
    ]
    return markup.bullets(items) if items else "<p>None: no case is flagged.</p>"


def _why(case: Case, text: str, tolerance: float) -> str:
    if text == RANK_TIE:
        gaps = gaps_of(case)
        place = min(range(len(gaps)), key=gaps.__getitem__, default=None)
        if place is not None and gaps[place] <= 2 * tolerance:
            pair = f"{case.top[place].feature} and {case.top[place + 1].feature}"
            who = f"Features {pair}, places {place + 1} and {place + 2},"
        else:
            who = "The last feature of the list and the next one"
        return f". {who} stand {margin(case.rank_margin or 0)} apart: a correct port may swap them."
    if text == GATE_TIE:
        fewest, most = case.bounds
        who = f"; at their gates: {', '.join(map(str, case.gate_ties))}" if case.gate_ties else ""
        return (
            f". A feature is {margin(case.gate_margin or 0)} from its gate{who}: a correct port may count {fewest:,} to "
            f"{most:,}, here it is {case.n_active:,}."
        )
    return ". Nothing fires, so there is no list to check." if text == NO_ACTIVE_FEATURES else "."


def _margin_table(reference: Reference) -> str:
    rows = []
    for case in reference.cases:
        fewest, most = case.bounds
        within = "" if fewest == most == case.n_active else f" ({fewest}\u2013{most})"
        cells = f"{case.n_active}{within}", margin(case.rank_margin), margin(case.gate_margin)
        rows.append(markup.row(case.id.layer, case.id.number, *cells, flag(", ".join(case.flags or ()))))
    table = markup.table(
        "In brackets, how few and how many fire if every pre-activation moves by the tolerance",
        ("layer", reference.cases[0].id.kind, "fire", "rank margin", "gate margin", "flags"),
        rows,
        style="num",
    )
    return table if len(rows) <= OPEN_AT_MOST else markup.details(f"The margins of {len(rows)} cases", table)
