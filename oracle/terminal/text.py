# SPDX-License-Identifier: MIT OR Apache-2.0
"""Lines on standard error: what is printed of a text, how many columns it takes, and what of it fits the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import unicodedata
from typing import TextIO

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
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


def encoding() -> str:
    """That of standard error."""
    return getattr(sys.stderr, "encoding", None) or "ascii"


def printable(text: str) -> str:
    """What a server or a file named, on one line, without what would reach the terminal as a control character."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.encode(encoding(), "backslashreplace").decode(encoding())


def columns_of(text: str) -> int:
    """Columns that a printable text takes, or fewer; colours take none."""
    for code in (GREEN, PLAIN):
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


def coloured(text: str) -> str:
    return f"{GREEN}{text}{PLAIN}" if text and has_colours() else text


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
