# SPDX-License-Identifier: MIT OR Apache-2.0
"""The parts of a page: escaped text, numbers as people read them, and tables. The page is ASCII and well-formed XML.

Whatever comes from a file goes through `escape`: there is no other way for it into the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from importlib.resources import files
from typing import Any

from oracle.references.document import CaseId

NONE = '<span class="m">not recorded</span>'
OPEN_AT_MOST = 12  # of the things of one kind that stand open when the page is
DIGIT_SPACE, POINT_SPACE = "\u2007", "\u2008"  # as wide as a digit, and as a decimal point


def document(title: str, description: str, body: str) -> str:
    """The whole file; `description` is what previews of a link show. What is not ASCII is written as references, so that no
    server's charset can spoil it."""
    style = files("oracle.page").joinpath("report.css").read_text(encoding="utf-8")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        '<meta name="referrer" content="no-referrer"/>\n'
        # The page needs nothing from anywhere; should a mistake of ours let something through, it would not load.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
        f'<meta name="description" content="{escape(description)}"/>\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def escape(value: Any) -> str:
    """A value as text of the page or of an attribute. Control characters and lone surrogates show as escapes."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return html.escape(text).replace("##[", "##&#91;")  # which a GitHub runner would take for a command


def code(value: Any) -> str:
    """A name or a path, in a face of its own; `not recorded` for None."""
    return NONE if value is None else f"<code>{escape(value)}</code>"


def sentence(line: str) -> str:
    """A line of a verdict, a fact or an explanation, as a sentence of the page: what it has in backquotes is code."""
    text = escape(line[:1].upper() + line[1:] + ("" if line.endswith(":") else "."))
    return re.sub("`([^`]+)`", r"<code>\1</code>", text)


def flag(text: str) -> str:
    """What needs a look."""
    return f'<span class="f">{escape(text)}</span>' if text else ""


def anchor(case_id: CaseId) -> str:
    """The id of a case on the page."""
    return str(case_id).replace(" ", "-")


def count(n: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def exact(value: float) -> str:
    """A number with the 9 digits that give its float32 back."""
    return f"{value:#.9g}"


def rough(value: float | None) -> str:
    """Three digits, for a sentence."""
    return "\u2013" if value is None else f"{value:.3g}"


def plain(value: float | None, sign: str = "") -> str:
    """Three digits, for a column: without an exponent unless it would be long. `sign` is "+" where both signs are written."""
    text = "\u2013" if value is None else f"{value:{sign}.3g}"
    return f"{Decimal(text):{sign}f}" if value and "e" in text and 1e-9 <= abs(value) < 1e9 else text


def margin(value: float | None) -> str:
    """A margin with the 6 decimals that are recorded."""
    if value is None:
        return "none"
    return f"{value:.6f}" if abs(value) < 1e6 and round(value, 6) == value else f"{value:.9g}"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent, to two digits or so."""
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "under 0.01 %"
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"


def aligned(texts: Iterable[str]) -> list[str]:
    """The numbers of a column, filled up on the right so that their decimal points stand below each other; other texts as they are."""
    texts = list(texts)
    longest = max((len(text.partition(".")[2]) for text in texts if _is_number(text)), default=0)
    return [f"{text}{_filling(text, longest)}" if _is_number(text) else text for text in texts]


def _is_number(text: str) -> bool:
    return text[-1:].isdigit() and text[0] in "+-0123456789"


def _filling(text: str, longest: int) -> str:
    _, point, digits = text.partition(".")
    return ("" if point or not longest else POINT_SPACE) + DIGIT_SPACE * (longest - len(digits))


def row(head: object, *cells: object) -> str:
    """A row of a table. All that it is given is markup."""
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def table(caption: str, head: Sequence[str], rows: Iterable[str], *, style: str = "") -> str:
    """A table that scrolls by itself where a window is too narrow for it. `caption`, which may be "", `head` and `rows` are markup."""
    columns = "".join(f'<th scope="col">{column}</th>' for column in head)
    chosen = f' class="{style}"' if style else ""
    named = f"<caption>{caption}</caption>\n" if caption else ""
    return (
        f'<div class="scroll"><table{chosen}>{named}<thead><tr>{columns}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def facts(caption: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and values. The values are markup, the names are not."""
    rows = "\n".join(row(escape(key), value) for key, value in pairs)
    return f'<table class="facts"><caption>{caption}</caption>\n<tbody>\n{rows}\n</tbody></table>'


def bullets(items: Iterable[str]) -> str:
    """A list of markup."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def details(summary: str, content: str, *, is_open: bool = False, style: str = "") -> str:
    opened = ' open="open"' if is_open else ""
    chosen = f' class="{style}"' if style else ""
    return f"<details{chosen}{opened}><summary>{summary}</summary>\n{content}\n</details>"
