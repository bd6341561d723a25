# SPDX-License-Identifier: MIT OR Apache-2.0
"""Lines for a person: what is printed of a text or of a case, how many columns it takes, what of it fits, and how it is broken."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from oracle.references.document import Case

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
NARROWEST = 20  # columns: what is wrapped is not wrapped to less
_saying = threading.Lock()


def say(text: str, *, quiet: bool = False) -> None:
    """Print for a person, on standard error, unless it is to be quiet."""
    if not quiet and sys.stderr is not None:  # it may have been closed, and print would take standard output for it
        # Lines of two threads are not to run into each other. Where nobody listens any more the work is done all the same.
        with _saying, contextlib.suppress(OSError):
            print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def fitting(*forms: str) -> str:
    """The first of `forms` that fits the terminal of standard error, or what fits of the last one."""
    return next(filter(fits, forms), shortened(forms[-1], terminal_width()))


def fits(text: str) -> bool:
    return columns_of(printable(text)) <= terminal_width()


def terminal_width() -> int:
    """The columns of the terminal of standard error; without a terminal there is no end to them."""
    size = terminal_size(sys.stderr)
    return size[0] if size else sys.maxsize


def terminal_size(stream: TextIO | None) -> tuple[int, int] | None:
    """Columns and rows of a terminal as it is now; None where a stream is no terminal, or is closed."""
    try:
        if stream is None or not stream.isatty():
            return None
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return size.columns or 80, size.lines or 24


def output_width() -> int:
    """The columns for what goes to standard output: COLUMNS, or those of its terminal; elsewhere there is no end to them."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and 0 < int(columns) < 100_000:
        return max(int(columns), NARROWEST)
    size = terminal_size(sys.stdout)
    return max(size[0], NARROWEST) if size else sys.maxsize


def encoding(stream: TextIO | None = None) -> str:
    """That of a stream, by default of standard error."""
    return getattr(stream or sys.stderr, "encoding", None) or "ascii"


def printable(text: str, stream: TextIO | None = None) -> str:
    """What a server or a file named, on one line, without what would reach the terminal as a control character.

    It is for `stream`, by default standard error. A GitHub runner reads ##[ as the beginning of a command wherever it stands.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text).replace("##[", "# #[")
    return text.encode(encoding(stream), "backslashreplace").decode(encoding(stream))


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A printable text in lines of at most `width` columns, of which all but the first begin with `indent`.

    They are broken at spaces, and in a word where it alone is too long; spaces that stand together stay where a line is not broken.
    """
    if columns_of(text) <= width:
        return [text]
    lead = text[: len(text) - len(text.lstrip(" "))]
    lines, line, is_empty = [], lead, True
    for word in text.split():
        if not is_empty and columns_of(f"{line} {word}") > width:
            lines.append(line)
            line, is_empty = indent, True
        line += word if is_empty else f" {word}"
        is_empty = False
        while columns_of(line) > width:
            head = _head(line, width)
            lines.append(head)
            line = indent + line[len(head) :]
    return [*lines, line]


def columns_of(text: str) -> int:
    """Columns that a printable text takes, or fewer; colours take none."""
    for code in (GREEN, RED, PLAIN):
        text = text.replace(code, "")
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def shortened(text: str, width: int, *, pad: bool = False) -> str:
    """A text in at most `width` columns, without its middle where it is too long; padded to that many if asked."""
    text = printable(text)
    if columns_of(text) > width:
        tail = _head(text[::-1], max(width - 2, 0) // 3 if width >= 24 else 0)[::-1]
        dots = ".."[:width]
        text = _head(text, width - len(dots) - columns_of(tail)) + dots + tail
    return text + " " * (width - columns_of(text)) if pad else text


def has_colours() -> bool:
    return not os.environ.get("NO_COLOR")  # no-color.org


def shows_colours(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that has colours."""
    return has_colours() and os.environ.get("TERM", "dumb") != "dumb" and terminal_size(stream) is not None


def coloured(text: str, colour: str = GREEN) -> str:
    return f"{colour}{text}{PLAIN}" if text and has_colours() else text


def in_bytes(count: float, whole: float | None = None) -> str:
    """A number of bytes in the unit that suits it, or suits the whole."""
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if max(count, whole or 0) >= u[0]), (1e3, "kB"))
    return f"{count / unit:.1f}{'' if whole is None else f'/{whole / unit:.1f}'} {name}"


def _head(text: str, width: int) -> str:
    """As much of a text's beginning as has room in `width` columns."""
    columns = 0
    for position, character in enumerate(text):
        columns += columns_of(character)
        if columns > width:
            return text[:position]
    return text


def case_texts(case: Case) -> tuple[str, str, str, str]:
    """What a person reads of a case of a reference: its first feature, rank margin, gate margin and flags."""
    feature = f"{case.top[0].feature} ({case.top[0].activation:.4f})" if case.top else "none"
    rank, gate = ("none" if value is None else f"{value:.6f}" for value in (case.rank_margin, case.gate_margin))
    return feature, rank, gate, ", ".join(case.flags or ())
