# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page's section on what the decoder makes of each case: a row for each output, by the layer that it is added to."""

from __future__ import annotations

from oracle.page import markup
from oracle.page.markup import count, exact, rough
from oracle.references.document import Document

OPEN_AT_MOST = 12  # outputs whose tables stand open when the page is
HEAD = ("seed", "to layer", "norm", "sum", "each value within")


def section(layers: dict[int, list[Document]]) -> str:
    """The section; `layers` are the reference's cases by layer, of which at least one has reconstructions."""
    n_outputs = sum(len(case.get("reconstructions", ())) for cases in layers.values() for case in cases)
    said = [
        "<p>The sum of what the features that fire write, with b_dec and the skip connection where the weights have them, in "
        "float64. Of each output the reference also has the first ten values and the sum of squares. A port is held to "
        "what its own rounding may move: the last column.</p>"
    ]
    for layer, cases in layers.items():
        rows = [
            f'<tr><th scope="row">{case["seed"]}</th><td>{made["target_layer"]}</td><td>{exact(made["norm"])}</td>'
            f"<td>{exact(made['sum'])}</td><td>{rough(made['tolerance'])}</td></tr>"
            for case in cases
            for made in case.get("reconstructions", ())
        ]
        table = markup.table(f"The outputs of layer {layer}", HEAD, rows)
        summary = f'<h3>Layer {layer}</h3> <span class="m">{count(len(rows), "output")}</span>'
        said.append(markup.details(summary, table, is_open=n_outputs <= OPEN_AT_MOST, style="layer"))
    return "\n".join(said)
