# SPDX-License-Identifier: MIT OR Apache-2.0
"""A reference, and what a candidate makes of it, as one HTML page that needs nothing beside it. Documents in, text out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from oracle.arithmetic.constants import generator_record
from oracle.checking.verdict import Comparison
from oracle.errors import BadUse
from oracle.page import charts, differences, features, margins, markup
from oracle.page.charts import Limit, Mark, Row
from oracle.page.differences import FileNames
from oracle.page.markup import code, count, escape, rough, share
from oracle.references.document import Candidate, Case, Reference
from oracle.references.origins import LayerRecord
from oracle.references.rows import file_name

if TYPE_CHECKING:
    from oracle.diagnosis.explanation import Explanation

ROW_LIMIT = 60_000  # each takes 2 KB of a page, and as much memory again; no browser is at ease with more


def page(
    reference: Reference,
    candidate: Candidate | None = None,
    comparison: Comparison | None = None,
    explanation: Explanation | None = None,
    names: FileNames = FileNames(),
) -> str:
    """The page. With a candidate `comparison` is compare's verdict on it; `explanation` is what explain made of that, if asked.

    `names` are those of the files. The same documents and names give the same bytes. Raises BadUse where it would be too long.
    """
    for cases in (reference.cases, candidate.cases.values() if candidate else ()):
        _check_length(cases)
    sections = [
        ("encoded", "What was encoded", _encoded(reference)),
        ("firing", "How many features fire", _firing(reference)),
        ("margins", "How far each answer is from flipping", margins.section(reference)),
        ("float32", "What float32 costs", _float32(reference)),
        ("cases", "The features that fire most", features.cases_section(reference)),
    ]
    if reference.decodes:
        sections.append(("outputs", "What the decoder makes of them", features.outputs_section(reference)))
    repo = reference.repo.name or "weights of no recorded repo"
    figures = _figures(reference)
    if candidate is None or comparison is None:
        title, description = f"Reference encodings: {repo}", f"{file_name(names.reference)}: {count(len(reference.cases), 'case')}"
        links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections)
        head = [f'<p class="kicker">Reference encodings, {code(file_name(names.reference))}</p>\n<h1>{escape(repo)}</h1>', figures]
        head.append(f'<nav aria-label="Sections"><ul>{links}</ul></nav>')
        main = [f'<section aria-labelledby="{key}">\n<h2 id="{key}">{name}</h2>\n{text}\n</section>' for key, name, text in sections]
    else:
        title = f"{differences.headline(comparison)}: {names.title}"
        description = " ".join([comparison.verdict, *comparison.facts])
        head = [differences.header(comparison, names)]
        main = [differences.section(reference, candidate, comparison, explanation, names)]
        # What is right is not to stand beside what is wrong: it is at hand, folded.
        folded = "\n".join(markup.details(f'<h2 id="{key}">{name}</h2>', text, style=f"section {key}") for key, name, text in sections)
        main.append(f'<section aria-labelledby="reference">\n<h2 id="reference">The reference</h2>\n<p>{escape(repo)}</p>\n{figures}\n{folded}</section>')
    body = [
        "<header>", *head, "</header>\n<main>", *main,
        "</main>\n<footer>Made by <code>python -m oracle report</code>: the same files give the same page.</footer>",
    ]  # fmt: skip
    return markup.document(title, description, "\n".join(body))


def _check_length(cases: Iterable[Case]) -> None:
    rows = sum(1 + len(case.top) + len(case.outputs) for case in cases)
    if rows > ROW_LIMIT:
        raise BadUse(f"a page of {rows:,} rows is more than a browser shows, {ROW_LIMIT:,} are the most: make it of fewer layers or seeds")


def _figures(reference: Reference) -> str:
    cases, n_features, tolerance = reference.cases, reference.n_features, reference.tolerance
    layers, firing = reference.by_layer, [case.n_active for case in cases]
    fragile = sum(bool(case.flags) for case in cases)
    is_own = any(case.tolerance is not None for case in cases)
    known = (f"{fragile:,}", f"of {len(cases):,}, at {'their own tolerances' if is_own else f'a tolerance of {tolerance:g}'}")
    shown = [
        ("Cases", f"{len(cases):,}", f"{count(len(layers), 'layer')}: {_numbers(layers)}"),
        ("Features", f"{n_features:,}", f"in a layer; d_model is {reference.d_model:,}"),
        ("Firing in a case", _span(cases), f"{share(min(firing), n_features)} to {share(max(firing), n_features)} of the features"),
        ("Fragile cases", *(known if reference.is_ours else ("unknown", "this reference records no margins"))),
    ]
    if (error := _float32_error(reference)) is not None:
        of_tolerance = f"{share(error, tolerance)} of the tolerance" if tolerance > 0 else "and no tolerance"
        of_tolerance = f"and the largest tolerance is {rough(_largest_tolerance(reference))}" if is_own else of_tolerance
        shown.append(("float32 is off by", rough(error), of_tolerance))
    items = []
    for name, value, note in shown:
        style, sign = (' class="f"', "\u25c6 ") if name == "Fragile cases" and fragile else ("", "")
        items.append(f"<div><dt>{name}</dt><dd{style}>{sign}{escape(value)}<small>{escape(note)}</small></dd></div>")
    return '<dl class="figures">\n' + "\n".join(items) + "\n</dl>"


def _numbers(values: Iterable[int]) -> str:
    """`0, 12, 25`, or `0 to 25` for a run."""
    known = sorted(values)
    if len(known) > 2 and known[-1] - known[0] == len(known) - 1:
        return f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known)) if len(known) <= 8 else f"{known[0]} to {known[-1]}, not all"


def _span(cases: Iterable[Case]) -> str:
    firing = sorted(case.n_active for case in cases)
    return f"{firing[0]:,}" if firing[0] == firing[-1] else f"{firing[0]:,}\u2013{firing[-1]:,}"


def _encoded(reference: Reference) -> str:
    pairs = [("weights", _at(reference.repo.name, reference.weights_revision))]
    if reference.curation_repo is not None:
        pairs.append(("curation", _at(reference.curation_repo, reference.curation_revision)))
    record_facts = {"gate": reference.gate, "encoder_input": reference.encoder_input}
    known = {
        "format_version": reference.format_version,
        "methodology": reference.methodology,
        "schema": reference.schema,
        "encoder_formula": reference.encoder_formula,
        "decoder_formula": reference.decoder_formula,
        **{key: value and ", ".join(map(str, value.values())) for key, value in record_facts.items()},
        "tensors": reference.tensors and "; ".join(f"{part}: {_in_words(tensor)}" for part, tensor in reference.tensors.items()),
        "d_model_out": reference.d_model_out,
        "n_input_layers": reference.n_input_layers,
        "d_model": reference.d_model,
        "n_features_per_layer": reference.n_features,
        "top_k": reference.top_k,
        "tolerance": reference.tolerance,
    }
    pairs += [(key, code(value) if key.endswith("_formula") else escape(value)) for key, value in known.items() if value is not None]
    tables = [markup.facts("What was computed, and from what", [*pairs, *_scalars(reference.other)])]
    if reference.environment is not None:
        caption = "The environment: all that may differ from one machine to the next"
        tables.append(markup.facts(caption, _scalars(reference.environment)))
    parts = [f'<div class="two">{"".join(tables)}</div>', "<h3>The weight files</h3>", _files(reference), "<h3>The residuals</h3>"]
    origin = reference.residuals
    if reference.has_generator:
        generator = generator_record()
        scaled = f" Each of its numbers is multiplied by {origin.scale:.9g} and rounded to float32." if origin.scale is not None else ""
        parts.append(
            f"<p>Every residual comes out of the generator <code>{generator['name']}, version {generator['version']}</code>, from its "
            f"seed and its stream, bit for bit in any language. The record in the reference is enough to port it.{scaled}</p>"
        )
        steps = "<ol>" + "".join(f"<li>{escape(step)}</li>" for step in generator["steps"]) + "</ol>"
        pairs = [(key, steps if key == "steps" else code(value)) for key, value in generator.items() if key not in ("name", "version")]
        parts.append(markup.details("The record", markup.facts("Constants and steps", pairs)))
    elif origin.is_of_file:
        parts.append(f"<p>They are rows of the file {code(origin.name)}, sha256 {code(origin.sha256)}, and each is in its case.</p>")
    else:
        parts.append("<p>This reference names no generator: its residuals can be read, but not made again.</p>")
    return "\n".join(parts)


def _in_words(tensor: Any) -> str:
    """A tensor's name and axes, or whatever a reference has in their place."""
    if not isinstance(tensor, dict):
        return str(tensor)
    axes = tensor.get("axes")
    return f"{tensor.get('name')} [{', '.join(map(str, axes)) if isinstance(axes, list) else axes}]"


def _scalars(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What of a JSON object fits a cell."""
    scalars = {key: value for key, value in document.items() if value is None or isinstance(value, (str, int, float))}
    return [(key, markup.NONE if value is None else escape(value)) for key, value in scalars.items()]


def _at(repo: str, revision: str | None) -> str:
    commit = f"at commit {code(revision)}" if revision else '<span class="m">at a commit that is not recorded</span>'
    return f"{code(repo)} {commit}"


def _files(reference: Reference) -> str:
    if not reference.layers:
        return "<p>This reference does not say which files its weights came from.</p>"
    rows = [markup.row(record.layer, _record(reference, record)) for record in reference.layers]
    table = markup.table("The file of each layer in the weights repo", ("layer", "file"), rows, style="files")
    return table if len(rows) <= 4 else markup.details(f"The files of {len(rows)} layers", table)


def _record(reference: Reference, record: LayerRecord) -> str:
    files = _file(record.path, record.sha256)
    if record.decoder_path:
        files += _file(record.decoder_path, record.decoder_sha256)
    if (record.repo, record.revision) != (reference.repo.name, reference.weights_revision):
        files += f"<small>of {_at(record.repo, record.revision)}</small>"
    return files


def _file(path: str, sha256: str | None) -> str:
    digest = f"sha256 {code(sha256)}" if sha256 else "no sha256: the file was streamed in part, not read whole"
    return f"{code(path)}<small>{digest}</small>"


def _firing(reference: Reference) -> str:
    n_features = reference.n_features
    rows = [
        Row(str(layer), [Mark(100 * case.n_active / n_features, f"{case.id}: {case.n_active} features") for case in cases], _span(cases))
        for layer, cases in reference.by_layer.items()
    ]
    return charts.strip(
        "chart-firing",
        f"Share of {n_features:,} features that fire, by layer",
        f"Features that fire, fewest to most. {'; '.join(f'layer {row.name}: {row.note}' for row in rows)}.",
        rows,
        caption=f"<figcaption>A dot is a case: the share of the layer's {n_features:,} features that fire for its residual. "
        "On the right, the fewest and the most of a layer.</figcaption>",
    )


def _float32_error(reference: Reference) -> float | None:
    value: Any = (reference.environment or {}).get("float32_max_abs_error")
    return abs(float(value)) if type(value) in (int, float) and abs(value) <= sys.float_info.max else None


def _float32(reference: Reference) -> str:
    error, tolerance = _float32_error(reference), _largest_tolerance(reference)
    is_own = any(case.tolerance is not None for case in reference.cases)
    if error is None:
        return "<p>This reference does not record how far float32 was from float64 when it was made.</p>"
    settled = (reference.environment or {}).get("n_settled")
    exactly = f" Exact arithmetic settled {count(settled, 'value')} that float64 left open." if type(settled) is int else ""
    left = f"{share(error, tolerance)} of" if tolerance > 0 else "more than"
    chart = charts.strip(
        "chart-float32",
        "The largest error of float32 against the tolerance, on a logarithmic axis",
        f"float32 is off by {rough(error)}; the tolerance is {tolerance:g}.",
        [Row("float32", [Mark(error, rough(error))])],
        limit=Limit(tolerance, "largest tolerance" if is_own else "tolerance", below=False),
        of_rows="",
    )
    return (
        f"<p>Where this reference was made, a float32 pre-activation was off from the float64 one by at most "
        f"{rough(error)}: {left} the {'largest ' if is_own else ''}tolerance goes to rounding alone, and the rest is a port's.{exactly}</p>\n{chart}"
    )


def _largest_tolerance(reference: Reference) -> float:
    return max(map(reference.tolerance_of, reference.cases))
