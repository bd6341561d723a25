# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's sections on what a reference says of each case: the features that fire most, and what the decoder makes of them."""

from __future__ import annotations

from oracle.page import charts, markup
from oracle.page.margins import gaps_of
from oracle.page.markup import OPEN_AT_MOST, aligned, anchor, code, count, exact, flag, plain, rough, share
from oracle.references.document import RANK_TIE, Case, Reference


def cases_section(reference: Reference) -> str:
    """The section on the lists."""
    n_fragile = sum(bool(case.flags) for case in reference.cases)
    layers = []
    for layer, cases in reference.by_layer.items():
        flagged = sum(bool(case.flags) for case in cases)
        # Of more cases than stand open, those layers do that need a look, if they are few.
        is_open = len(reference.cases) <= OPEN_AT_MOST or (flagged > 0 and n_fragile <= OPEN_AT_MOST)
        note = f", {flag(f'{flagged} fragile')}" if flagged else ""
        cards = "\n".join(_card(reference, case) for case in cases)
        layers.append(_layer(layer, f"{count(len(cases), 'case')}{note}", f'<div class="cards">\n{cards}\n</div>', is_open))
    return (
        "<p>A bar is an activation; its pale end is what it has over the next one. A gap of at most 2 \u00d7 tolerance "
        f'is called a tie.</p>\n<div class="layers">{"".join(layers)}</div>'
    )


def _layer(layer: int, note: str, content: str, is_open: bool) -> str:
    return markup.details(f'<h3>Layer {layer}</h3> <span class="m">{note}</span>', content, is_open=is_open, style="layer")


def _card(reference: Reference, case: Case) -> str:
    flags = "".join(f" {flag(text)}" for text in case.flags or ())
    parts = [
        f'<article class="card" id="{anchor(case.id)}"><h4>{case.id.kind.capitalize()} {case.id.number}</h4>',
        f"<p>{case.n_active:,} fire ({share(case.n_active, reference.n_features)}){flags}</p>",
    ]
    if case.residual_fingerprint is not None:
        own = f"tolerance {rough(case.tolerance)}, " if case.tolerance is not None else ""
        stream = f"stream {case.stream}, " if case.stream is not None else ""
        parts.append(f'<p class="m">{own}{stream}residual {code(case.residual_fingerprint)}</p>')
    parts.append(_top(case, 2 * reference.tolerance_of(case)) if case.top else '<p class="m">No feature is on the list.</p>')
    return "\n".join([*parts, "</article>"])


def _top(case: Case, limit: float) -> str:
    """The list of a case; a gap of at most `limit` is a tie."""
    gaps = gaps_of(case)
    least = f" The smallest gap between two of them is {rough(min(gaps))}." if gaps else ""
    first, last = (f"{rough(top.activation)}, feature {top.feature}" for top in (case.top[0], case.top[-1]))
    title = f"The {len(case.top)} features that fire most: {case.id}"
    bars = charts.bars(anchor(case.id), title, f"From {first}, to {last}.{least}", [top.activation for top in case.top])
    picture = f'<td class="b" rowspan="{len(case.top)}">{bars}</td>'
    cells = [(plain(gap), *(("f", "tie ") if gap <= limit else ("", ""))) for gap in gaps] + [_last_gap(case, gaps)]
    activations, texts = aligned(exact(top.activation) for top in case.top), aligned(text for text, _, _ in cells)
    rows = []
    for place, (top, activation, text, (_, style, sign)) in enumerate(zip(case.top, activations, texts, cells)):
        chosen = f' class="{style}"' if style else ""
        before = f'<th scope="row">{top.feature}</th>{picture if place == 0 else ""}'
        rows.append(f"<tr>{before}<td>{activation}</td><td{chosen}>{sign}{text}</td></tr>")
    head = '<th scope="col">feature</th><th scope="col" colspan="2">activation</th><th scope="col">to the next</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _last_gap(case: Case, gaps: list[float]) -> tuple[str, str, str]:
    """From the last of the list to the feature that follows it, which is not recorded, but for the rank margin: text, style, sign."""
    rank = case.rank_margin
    if rank is None or case.n_active <= len(case.top):
        return ("last" if case.n_active <= len(case.top) else "unknown"), "m", ""
    if gaps and min(gaps) <= rank + 2e-6:  # the margin is rounded to 6 decimals, and is one of those above
        return plain(rank), "m", "\u2265 "
    return (plain(rank), "f", "tie ") if RANK_TIE in (case.flags or ()) else (plain(rank), "", "")


def outputs_section(reference: Reference) -> str:
    """The section on the reconstructions."""
    is_open = sum(len(case.outputs) for case in reference.cases) <= OPEN_AT_MOST
    layers = []
    for layer, cases in reference.by_layer.items():
        outputs = [(case.id.number, output) for case in cases for output in case.outputs]
        columns = [
            aligned(texts)
            for texts in (
                [exact(output.norm) for _, output in outputs],
                [exact(output.sum) for _, output in outputs],
                [plain(output.tolerance) for _, output in outputs],
            )
        ]
        rows = [markup.row(number, output.target_layer, *cells) for (number, output), *cells in zip(outputs, *columns)]
        table = markup.table("", (cases[0].id.kind, "to layer", "norm", "sum", "within"), rows, style="num")
        layers.append(_layer(layer, count(len(rows), "output"), table, is_open))
    return (
        "<p>The sum of what the features that fire write, with b_dec and the skip connection where the weights have them, in "
        "float64. Of each output the reference also has the first ten values and the sum of squares. Each value of a port is "
        f'held to what its own rounding may move: the last column.</p>\n<div class="layers outputs">{"".join(layers)}</div>'
    )
