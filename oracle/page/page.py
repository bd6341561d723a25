# SPDX-License-Identifier: MIT OR Apache-2.0
"""A reference, and what a candidate makes of it, as one HTML page that needs nothing beside it. Documents in, text out.

The documents are those that document.py has read and checked. Keys that are not known here are passed over, but for
texts and numbers of the whole reference: those are shown with their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from oracle.checking.compare import Comparison, tolerance_of
from oracle.page import charts, differences, margins, markup, outputs
from oracle.page.charts import Limit, Mark, Row
from oracle.page.margins import anchor, flags_of, margin_of
from oracle.page.markup import count, escape, is_number, rough, share
from oracle.references.document import Document, repo_keys, top_key

if TYPE_CHECKING:
    from oracle.diagnosis.explanation import Explanation

OPEN_AT_MOST = 12  # cases whose layers stand open when the page is; of more, those that need a look, if so few
# What the page says of a reference in places of their own; the table of facts shows the rest by name.
TOLD = {*repo_keys(), "weights_revision", "curation_repo", "curation_revision"}


def page(
    recorded: Document,
    candidate: Document | None = None,
    compared: Comparison | None = None,
    cause: Explanation | None = None,
) -> str:
    """The page. With a candidate `compared` is compare's verdict on it; `cause` is what explain made of that, if asked.

    The same documents give the same bytes.
    """
    layers = by_layer(recorded)
    sections = [("encoded", "What was encoded", _encoded(recorded))]
    if candidate is not None and compared is not None:
        sections.insert(0, ("candidate", "The candidate", differences.section(recorded, candidate, compared, cause)))
    sections += [
        ("firing", "How many features fire", _firing(recorded, layers)),
        ("margins", "How far each answer is from flipping", margins.section(recorded, layers)),
        ("float32", "What float32 costs", _float32(recorded)),
        ("cases", "The features that fire most", _cases(recorded, layers)),
    ]
    if any("reconstructions" in case for case in recorded["test_cases"]):
        sections.append(("outputs", "What the decoder makes of them", outputs.section(layers)))
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
    kind = "A candidate against a reference" if compared is not None else "Reference encodings"
    body = [
        f'<header>\n<p class="kicker">{kind}</p>\n<h1>{escape(repo_of(recorded))}</h1>',
        _figures(recorded, layers),
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main>',
        *(
            f'<section aria-labelledby="{key}">\n<h2 id="{key}">{name}</h2>\n{text}\n</section>'
            for key, name, text in sections
        ),
        "</main>\n<footer>Made by <code>python -m oracle report</code>: the same files give the same page.</footer>",
    ]
    return markup.document(f"{kind}: {repo_of(recorded)}", "\n".join(body))


def repo_of(record: Document) -> str:
    """The repo that the weights came from, whatever the reference calls its key."""
    return next((str(record[key]) for key in repo_keys() if record.get(key)), "weights of no recorded repo")


def by_layer(recorded: Document) -> dict[int, list[Document]]:
    layers: dict[int, list[Document]] = {}
    for case in recorded["test_cases"]:
        layers.setdefault(case["layer"], []).append(case)
    return dict(sorted(layers.items()))


# --- at a glance ----------------------------------------------------------------------------------------------------


def _figures(recorded: Document, layers: dict[int, list[Document]]) -> str:
    cases, n_features = recorded["test_cases"], recorded["n_features_per_layer"]
    firing = sorted(case["n_active"] for case in cases)
    error, tolerance = _float32_error(recorded), tolerance_of(recorded)
    fragile = [case for case in cases if flags_of(case)]
    shown = [
        ("Cases", f"{len(cases):,}", f"{count(len(layers), 'layer')}: {_numbers(layers)}"),
        ("Features", f"{n_features:,}", f"in a layer; d_model is {recorded['d_model']:,}"),
        (
            "Firing in a case",
            _span(firing),
            f"{share(firing[0], n_features)} to {share(firing[-1], n_features)} of the features",
        ),
    ]
    if any(margin_of(case, "gate_margin") is not None for case in cases):
        sign = "\u25c6 " if fragile else ""
        shown.append(
            ("Fragile cases", f"{sign}{len(fragile):,}", f"of {len(cases):,}, at a tolerance of {tolerance:g}")
        )
    else:
        shown.append(("Fragile cases", "unknown", "this reference records no margins"))
    if error is not None:
        of_tolerance = f"{share(error, tolerance)} of the tolerance" if tolerance > 0 else "and no tolerance"
        shown.append(("float32 is off by", rough(error), of_tolerance))
    items = "\n".join(
        f"<div><dt>{name}</dt><dd{_attention(value)}>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in shown
    )
    return f'<dl class="figures">\n{items}\n</dl>'


def _attention(value: str) -> str:
    return ' class="f"' if value.startswith("\u25c6") else ""


def _numbers(values: Iterable[int]) -> str:
    """`0, 12, 25`, or `0 to 25` for a run."""
    known = sorted(values)
    if len(known) > 2 and known[-1] - known[0] == len(known) - 1:
        return f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known)) if len(known) <= 8 else f"{known[0]} to {known[-1]}, not all"


def _span(firing: list[int]) -> str:
    return f"{firing[0]:,}" if firing[0] == firing[-1] else f"{firing[0]:,}\u2013{firing[-1]:,}"


# --- what was encoded -----------------------------------------------------------------------------------------------


def _encoded(recorded: Document) -> str:
    pairs = [("weights", _at(repo_of(recorded), recorded.get("weights_revision")))]
    if "curation_repo" in recorded:
        pairs.append(("curation", _at(recorded["curation_repo"], recorded.get("curation_revision"))))
    pairs += [
        (key, markup.code(value) if key == "encoder_formula" else _plain(value))
        for key, value in recorded.items()
        if key not in TOLD and markup.scalar(value)
    ]
    tables = [markup.facts("What was computed, and from what", pairs)]
    environment = recorded.get("environment")
    if isinstance(environment, dict):
        pairs = [(key, _plain(value)) for key, value in environment.items() if markup.scalar(value)]
        tables.append(markup.facts("The environment: all that may differ from one machine to the next", pairs))
    said = [f'<div class="two">{"".join(tables)}</div>', "<h3>The weight files</h3>", _files(recorded)]
    generator = recorded.get("residual_generator")
    said.append("<h3>The residuals</h3>")
    if isinstance(generator, dict):
        named = f"{escape(generator.get('name'))}, version {escape(generator.get('version'))}"
        said.append(
            f"<p>Every residual comes out of the generator <code>{named}</code>, from its seed and its stream, bit "
            "for bit in any language. The record in the reference is enough to port it.</p>"
        )
        pairs = [(key, _value(value)) for key, value in generator.items() if key not in ("name", "version")]
        said.append(markup.details("The record", markup.facts("Constants and steps", pairs), is_open=False))
    else:
        said.append("<p>This reference names no generator: its residuals can be read, but not made again.</p>")
    return "\n".join(said)


def _at(repo: Any, revision: Any) -> str:
    commit = (
        f"at commit {markup.code(revision)}" if revision else '<span class="m">at a commit that is not recorded</span>'
    )
    return f"{markup.code(repo)} {commit}"


def _plain(value: Any) -> str:
    return markup.NONE if value is None else escape(value)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "<ol>" + "".join(f"<li>{escape(item)}</li>" for item in value) + "</ol>"
    return markup.code(value)


def _files(recorded: Document) -> str:
    records = recorded.get("layers")
    if not isinstance(records, list):
        return "<p>This reference does not say which files its weights came from.</p>"
    rows = []
    for record in records:
        elsewhere = ""
        if record.get("repo") or record.get("revision"):
            repo = record.get("repo") or repo_of(recorded)
            elsewhere = f"<small>of {_at(repo, record.get('revision') or recorded.get('weights_revision'))}</small>"
        files = _file(record.get("path"), record.get("sha256"))
        if record.get("decoder_path"):
            files += _file(record["decoder_path"], record.get("decoder_sha256"))
        rows.append(f'<tr><th scope="row">{record["layer"]}</th><td>{files}{elsewhere}</td></tr>')
    made = markup.table("The file of each layer in the weights repo", ("layer", "file"), rows, style="files")
    return made if len(records) <= 4 else markup.details(f"The files of {len(records)} layers", made, is_open=False)


def _file(path: Any, sha256: Any) -> str:
    hashed = f"sha256 {markup.code(sha256)}" if sha256 else "no sha256: the file was streamed in part, not read whole"
    return f"{markup.code(path)}<small>{hashed}</small>"


# --- charts over all layers -----------------------------------------------------------------------------------------


def _firing(recorded: Document, layers: dict[int, list[Document]]) -> str:
    n_features = recorded["n_features_per_layer"]
    rows = []
    for layer, cases in layers.items():
        marks = tuple(
            Mark(
                100 * case["n_active"] / n_features,
                case["seed"],
                f"layer {layer} seed {case['seed']}: {case['n_active']} features",
            )
            for case in cases
        )
        rows.append(Row(str(layer), marks, note=_span(sorted(case["n_active"] for case in cases))))
    scale = charts.percentages(max(mark.value for row in rows for mark in row.marks))
    said = "; ".join(f"layer {row.name}: {row.note}" for row in rows)
    drawn = charts.strip(
        "chart-firing",
        f"Share of {n_features:,} features that fire, by layer",
        f"Features that fire, fewest to most. {said}.",
        rows,
        scale,
    )
    return (
        f"<figure><figcaption>A dot is a case: the share of the layer's {n_features:,} features that fire for its "
        f"residual. On the right, the fewest and the most of a layer.</figcaption>{drawn}</figure>"
    )


# --- float32 --------------------------------------------------------------------------------------------------------


def _float32_error(recorded: Document) -> float | None:
    environment = recorded.get("environment")
    value = environment.get("float32_max_abs_error") if isinstance(environment, dict) else None
    return abs(float(value)) if value is not None and is_number(value) else None


def _float32(recorded: Document) -> str:
    error, tolerance = _float32_error(recorded), tolerance_of(recorded)
    if error is None:
        return "<p>This reference does not record how far float32 was from float64 when it was made.</p>"
    settled = recorded["environment"].get("n_settled")
    exactly = (
        f" Exact arithmetic settled {count(settled, 'value')} that float64 left open." if type(settled) is int else ""
    )
    left = f"{share(error, tolerance)} of" if tolerance > 0 else "more than"
    drawn = charts.strip(
        "chart-float32",
        "The largest error of float32 against the tolerance, on a logarithmic axis",
        f"float32 is off by {rough(error)}; the tolerance is {tolerance:g}.",
        [Row("float32", (Mark(error, 0, rough(error)),))],
        charts.logarithmic([error], tolerance),
        of_rows="",
        limit=Limit(tolerance, f"tolerance = {tolerance:g}", below=False),
    )
    return (
        f"<p>Where this reference was made, a float32 pre-activation was off from the float64 one by at most "
        f"{rough(error)}: {left} the tolerance goes to rounding alone, and the rest is a port's.{exactly}</p>\n"
        f"<figure>{drawn}</figure>"
    )


# --- case by case ---------------------------------------------------------------------------------------------------


def _cases(recorded: Document, layers: dict[int, list[Document]]) -> str:
    n_cases = len(recorded["test_cases"])
    n_fragile = sum(bool(flags_of(case)) for case in recorded["test_cases"])
    said = [
        "<p>A bar is an activation; its pale end is what it has over the next one. A gap of at most 2 \u00d7 tolerance "
        "is called a tie.</p>"
    ]
    for layer, cases in layers.items():
        flagged = sum(bool(flags_of(case)) for case in cases)
        is_open = n_cases <= OPEN_AT_MOST or (flagged > 0 and n_fragile <= OPEN_AT_MOST)
        note = f', <span class="f">{flagged} fragile</span>' if flagged else ""
        summary = f'<h3>Layer {layer}</h3> <span class="m">{count(len(cases), "case")}{note}</span>'
        cards = "\n".join(_card(recorded, case) for case in cases)
        said.append(markup.details(summary, f'<div class="cards">\n{cards}\n</div>', is_open=is_open, style="layer"))
    return "\n".join(said)


def _card(recorded: Document, case: Document) -> str:
    fires = f"{case['n_active']:,} fire ({share(case['n_active'], recorded['n_features_per_layer'])})"
    flags = "".join(f' <span class="f">{escape(flag)}</span>' for flag in flags_of(case))
    made = [f'<article class="card" id="{anchor(case)}"><h4>Seed {case["seed"]}</h4>', f"<p>{fires}{flags}</p>"]
    if "residual_fingerprint" in case:
        made.append(
            f'<p class="m">stream {escape(case.get("stream"))}, residual '
            f"{markup.code(case['residual_fingerprint'])}</p>"
        )
    entries = case[top_key(recorded)]
    made.append(_top(recorded, case, entries) if entries else '<p class="m">No feature is on the list.</p>')
    return "\n".join([*made, "</article>"])


def _top(recorded: Document, case: Document, entries: list[Document]) -> str:
    key, limit = anchor(case), 2 * tolerance_of(recorded)
    values = [entry["activation"] for entry in entries]
    gaps = [one - other for one, other in zip(values, values[1:])]
    title = f"The {len(entries)} features that fire most: layer {case['layer']}, seed {case['seed']}"
    least = f" The smallest gap between two of them is {rough(min(gaps))}." if gaps else ""
    first, last = (f"{rough(entry['activation'])}, feature {entry['index']}" for entry in (entries[0], entries[-1]))
    description = f"From {first}, to {last}.{least}"
    drawn = charts.bars(key, title, description, values)
    rows = []
    for number, entry in enumerate(entries):
        picture = f'<td class="b" rowspan="{len(entries)}">{drawn}</td>' if number == 0 else ""
        gap = _last_gap(case, gaps, len(entries)) if number == len(gaps) else _gap(gaps[number], limit)
        rows.append(
            f'<tr><th scope="row">{entry["index"]}</th>{picture}<td>{markup.exact(values[number])}</td>{gap}</tr>'
        )
    head = '<th scope="col">feature</th><th scope="col" colspan="2">activation</th><th scope="col">to the next</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _gap(gap: float, limit: float) -> str:
    return f'<td class="f">tie {rough(gap)}</td>' if gap <= limit else f"<td>{rough(gap)}</td>"


def _last_gap(case: Document, gaps: list[float], n_listed: int) -> str:
    """From the last of the list to the feature that follows it, which is not recorded, but for the rank margin."""
    rank = margin_of(case, "rank_margin")
    if rank is None or case["n_active"] <= n_listed:
        return '<td class="m">last</td>' if case["n_active"] <= n_listed else '<td class="m">unknown</td>'
    if gaps and min(gaps) <= rank + 2e-6:  # the margin is rounded to 6 decimals, and is one of those above
        return f'<td class="m">\u2265 {rough(rank)}</td>'
    return f'<td class="f">tie {rough(rank)}</td>' if "rank-tie" in flags_of(case) else f"<td>{rough(rank)}</td>"
