# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's section on what the decoder makes of each case: a row for each output, by the layer that it is added to."""

from __future__ import annotations

from oracle.page import markup
from oracle.page.markup import count, exact, rough
from oracle.references.document import Reference

OPEN_AT_MOST = 12  # outputs whose tables stand open when the page is
HEAD = ("seed", "to layer", "norm", "sum", "each value within")


def section(reference: Reference) -> str:
    """The section on a reference that decodes."""
    is_open = sum(len(case.outputs) for case in reference.cases) <= OPEN_AT_MOST
    parts = [
        "<p>The sum of what the features that fire write, with b_dec and the skip connection where the weights have them, in "
        "float64. Of each output the reference also has the first ten values and the sum of squares. A port is held to "
        "what its own rounding may move: the last column.</p>"
    ]
    for layer, cases in reference.by_layer.items():
        rows = [
            markup.row(case.id.number, output.target_layer, exact(output.norm), exact(output.sum), rough(output.tolerance))
            for case in cases
            for output in case.outputs
        ]
        summary = f'<h3>Layer {layer}</h3> <span class="m">{count(len(rows), "output")}</span>'
        table = markup.table(f"The outputs of layer {layer}", HEAD, rows)
        parts.append(markup.details(summary, table, is_open=is_open, style="layer"))
    return "\n".join(parts)
