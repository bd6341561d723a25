# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's section on how far each answer of a reference is from flipping, and which cases are fragile."""

from __future__ import annotations

from oracle.checking.compare import tolerance_of
from oracle.page import charts, markup
from oracle.page.charts import Limit, Mark, Row
from oracle.page.markup import count, escape, is_number, margin, rough
from oracle.references.document import Document, top_key

OPEN_AT_MOST = 12  # rows of the table of all margins that stand open when the page is


def flags_of(case: Document) -> list[str]:
    """The flags of a case; torch's references have none, or anything."""
    flags = case.get("flags")
    return [flag for flag in flags if isinstance(flag, str)] if isinstance(flags, list) else []


def margin_of(case: Document, name: str) -> float | None:
    value = case.get(name)
    return value if is_number(value) else None


def anchor(case: Document) -> str:
    """The id of a case on the page."""
    return f"layer-{case['layer']}-seed-{case['seed']}"


def section(recorded: Document, layers: dict[int, list[Document]]) -> str:
    """The section; `layers` are the reference's cases by layer."""
    tolerance = tolerance_of(recorded)
    intro = (
        f"<p>A port whose numbers are off by no more than the tolerance, {tolerance:g}, may still give another order, "
        "or another count, where two features stand close to each other or one stands close to its gate.</p>"
    )
    if all(margin_of(case, "gate_margin") is None for case in recorded["test_cases"]):
        return intro + _unrecorded(recorded, tolerance)
    drawn = (
        _margin_chart(
            layers,
            "rank_margin",
            "Rank margin",
            "The smallest gap between neighbours on the list, and from its last to the next feature.",
            Limit(2 * tolerance, f"2 \u00d7 tolerance = {2 * tolerance:g}", below=True),
            "rank-tie",
        ),
        _margin_chart(
            layers,
            "gate_margin",
            "Gate margin",
            "The smallest distance of any feature of the layer from its gate.",
            Limit(tolerance, f"tolerance = {tolerance:g}", below=True),
            "gate-tie",
        ),
    )
    return (
        f'{intro}\n<div class="two">{"".join(drawn)}</div>\n<h3>The fragile cases</h3>\n{_fragile(recorded)}\n{_passed(recorded)}'
        f"<h3>All margins</h3>\n{_margin_table(recorded)}"
    )


def _margin_chart(layers: dict[int, list[Document]], name: str, title: str, what: str, limit: Limit, flag: str) -> str:
    rows, without = [], 0
    for layer, cases in layers.items():
        marks = []
        for case in cases:
            value = margin_of(case, name)
            if value is None:
                without += 1
            else:
                label = f"layer {layer} seed {case['seed']}: {margin(value)}"
                marks.append(Mark(value, case["seed"], label, flag in flags_of(case)))
        rows.append(Row(str(layer), tuple(marks)))
    values = [mark.value for row in rows for mark in row.marks]
    n_fragile = sum(mark.stands_out for row in rows for mark in row.marks)
    lowest = f" The smallest is {margin(min(values))}." if values else ""
    none = f" {count(without, 'case')} without one: fewer than two features fire." if without else ""
    drawn = charts.strip(
        f"chart-{name}",
        f"{title} of every case against {limit.name}, on a logarithmic axis",
        f"{count(len(values), 'case')}, of which {n_fragile} at or below the line.{lowest}{none}",
        rows,
        charts.logarithmic(values, limit.value),
        limit=limit,
    )
    return (
        f"<figure><h3>{title}</h3><figcaption>{what} A diamond, in the shaded part, is a case that may flip: {flag}."
        f"{none}</figcaption>{drawn}</figure>"
    )


def _passed(recorded: Document) -> str:
    """The seeds that --robust passed over, and why."""
    skipped = recorded.get("skipped_seeds") or []
    if not skipped:
        return ""
    rows = []
    for record in skipped:
        margins = (margin_of(record, name) for name in ("rank_margin", "gate_margin"))
        cells = "".join(f"<td>{markup.NONE if value is None else margin(value)}</td>" for value in margins)
        flags = escape(", ".join(flags_of(record)))
        rows.append(f'<tr><th scope="row">{record["layer"]}</th><td>{record["seed"]}</td><td>{flags}</td>{cells}</tr>')
    head = ("layer", "seed", "passed over for", "rank margin", "gate margin")
    table = markup.table("Seeds of which no case was made", head, rows)
    summary = f"{count(len(skipped), 'seed')} passed over"
    return "<h3>Seeds passed over</h3>\n" + markup.details(summary, table, is_open=len(rows) <= OPEN_AT_MOST) + "\n"


def _unrecorded(recorded: Document, tolerance: float) -> str:
    """What can be said of a reference without margins: which neighbours on its lists stand close."""
    close = []
    for case in recorded["test_cases"]:
        entries = case[top_key(recorded)]
        for one, other in zip(entries, entries[1:]):
            gap = one["activation"] - other["activation"]
            if gap <= 2 * tolerance:
                close.append(
                    f"<li>Layer {case['layer']}, seed {case['seed']}: features {one['index']} and {other['index']} "
                    f"stand {rough(gap)} apart</li>"
                )
    told = (
        "<p>On its lists these neighbours stand at most 2 \u00d7 tolerance apart, and a correct port may swap them:</p>"
        f"<ul>{''.join(close)}</ul>"
        if close
        else "<p>No two neighbours on its lists stand within 2 \u00d7 tolerance of each other.</p>"
    )
    return (
        "<p>This reference records no margins; one that <code>python -m oracle generate</code> writes does. "
        f"How near the other features are, and how near their gates, cannot be told from it.</p>{told}"
    )


def _fragile(recorded: Document) -> str:
    items = []
    for case in recorded["test_cases"]:
        for flag in flags_of(case):
            items.append(
                f'<li><a href="#{anchor(case)}">Layer {case["layer"]}, seed {case["seed"]}</a>: '
                f'<span class="f">{escape(flag)}</span>{_why(recorded, case, flag)}</li>'
            )
    return f"<ul>{''.join(items)}</ul>" if items else "<p>None: no case is flagged.</p>"


def _why(recorded: Document, case: Document, flag: str) -> str:
    if flag == "rank-tie":
        entries = case[top_key(recorded)]
        gaps = [one["activation"] - other["activation"] for one, other in zip(entries, entries[1:])]
        place = min(range(len(gaps)), key=gaps.__getitem__, default=None)
        if place is not None and gaps[place] <= 2 * tolerance_of(recorded):
            pair = entries[place]["index"], entries[place + 1]["index"]
            who = f"features {pair[0]} and {pair[1]}, places {place + 1} and {place + 2},"
        else:
            who = "the last feature of the list and the next one"
        return f". {who[0].upper()}{who[1:]} stand {margin(margin_of(case, 'rank_margin') or 0)} apart: a correct port may swap them."
    if flag == "gate-tie":
        fewest, most = case.get("n_active_bounds", [case["n_active"]] * 2)
        ties = case.get("gate_ties")
        named = isinstance(ties, list) and ties and all(type(index) is int for index in ties)
        who = f"; at their gates: {', '.join(map(str, ties))}" if named and ties else ""
        return (
            f". A feature is {margin(margin_of(case, 'gate_margin') or 0)} from its gate{who}: a correct port may count {fewest:,} to "
            f"{most:,}, here it is {case['n_active']:,}."
        )
    return ". Nothing fires, so there is no list to check." if flag == "no-active-features" else "."


def _margin_table(recorded: Document) -> str:
    rows = []
    for case in recorded["test_cases"]:
        rank, gate = (margin_of(case, name) for name in ("rank_margin", "gate_margin"))
        bounds = case.get("n_active_bounds", [case["n_active"]] * 2)
        within = "" if bounds == [case["n_active"]] * 2 else f" ({bounds[0]}\u2013{bounds[1]})"
        flags = f'<span class="f">{escape(", ".join(flags_of(case)))}</span>' if flags_of(case) else ""
        rows.append(
            f'<tr><th scope="row">{case["layer"]}</th><td>{case["seed"]}</td><td>{case["n_active"]}{within}</td>'
            f"<td>{'none' if rank is None else margin(rank)}</td><td>{'none' if gate is None else margin(gate)}</td>"
            f"<td>{flags}</td></tr>"
        )
    made = markup.table(
        "In brackets, how few and how many fire if every pre-activation moves by the tolerance",
        ("layer", "seed", "fire", "rank margin", "gate margin", "flags"),
        rows,
        style="num",
    )
    return (
        made if len(rows) <= OPEN_AT_MOST else markup.details(f"The margins of {len(rows)} cases", made, is_open=False)
    )
