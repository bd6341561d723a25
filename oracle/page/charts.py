# SPDX-License-Identifier: MIT OR Apache-2.0
"""The pictures of a page, as SVG: marks on an axis, a row per layer, and the bars of one case. Numbers in, markup out.

An axis is laid out in per cent of the width and in pixels of the height, without a viewBox: the picture is as wide as
its place, and its text stays as large as the page's. All words stand outside the plot, each in a place that is kept for
it: rows' names on the left, notes on the right, ticks below, the limit's name above. What has room in the narrowest
picture has room in a wider one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from oracle.page.markup import count, escape
from oracle.references.document import CaseId

CHARACTER = 2.7  # per cent of a picture's width that a character may take: 8 of 300 pixels in a narrow window
GAP = 3.0  # per cent between a word and the plot
HEAD, FOOT = 22, 24  # pixels above the rows, for what they and their notes are, and below them, for the axis
LIMIT_HEAD = 16  # pixels above these for the limit's name
MOST_TICKS = 7
LONGEST_NOTE = 11  # characters
DECADES_BELOW = 3  # of the limit, that an axis shows: what is smaller stands at its end
MOST_DECADES, MOST_POWER = 12, 308  # binary64 ends at 1.8e308
BAR_UNITS = 1000  # of the width of a bar's place

Ticks = list[tuple[float, str]]
Scale = tuple[Callable[[float], float], Ticks]  # an axis: a value's place, from 0 to 1, and the ticks


@dataclass(frozen=True)
class Mark:
    """A value on a row. `stands_out` draws a diamond, not a dot."""

    value: float
    label: str
    stands_out: bool = False


@dataclass(frozen=True)
class Row:
    """A row of marks with its name, and a note at the right end, which may stand out too."""

    name: str
    marks: list[Mark]
    note: str = ""
    stands_out: bool = False


@dataclass(frozen=True)
class Limit:
    """A line across an axis. What lies on the side that matters, `below` or above, is shaded."""

    value: float
    name: str
    below: bool


def layer_rows(cases: Iterable[tuple[CaseId, float | None, str, bool]]) -> tuple[list[Row], list[float]]:
    """A row for each layer, and the values. A case has a value, its text, and whether it stands out: then the note has its number.

    Without a value it has no mark.
    """
    marks: dict[int, list[Mark]] = {}
    numbers: dict[int, list[int]] = {}
    values = []
    for case_id, value, text, stands_out in cases:
        row = marks.setdefault(case_id.layer, [])
        if stands_out:
            numbers.setdefault(case_id.layer, []).append(case_id.number)
        if value is not None:
            row.append(Mark(value, f"{case_id}: {text}", stands_out))
            values.append(value)
    return [Row(str(layer), row, _note(numbers.get(layer, [])), layer in numbers) for layer, row in sorted(marks.items())], values


def _note(numbers: list[int]) -> str:
    """The numbers of the cases that stand out, or how many they are."""
    names = ", ".join(map(str, sorted(numbers)))
    return names if len(names) <= LONGEST_NOTE else count(len(numbers), "case")


def logarithmic(values: Iterable[float], limit: float, most_ticks: int) -> Scale:
    """Whole decades around the values and the limit. What is smaller than the first, 0 too, stands on it."""
    known = list(values)
    positive = [min(value, sys.float_info.max) for value in (*known, limit) if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    if limit > 0:  # which has room on both sides, whatever the values are
        near = math.log10(min(limit, sys.float_info.max))
        low = min(max(low, math.floor(near) - DECADES_BELOW), math.floor(near - 0.3))
        high = max(high, math.ceil(near + 0.3))
    low = min(low, MOST_POWER - 1)
    high = min(max(high, low + 1), low + MOST_DECADES, MOST_POWER)
    step = math.ceil((high - low) / (most_ticks - 1))
    ticks = []
    for power in range(low, high + 1, step):
        at_most = "\u2264" if power == low and min(known, default=1.0) < 10.0**low else ""
        ticks.append((10.0**power, f"{at_most}10{_raised(power)}"))

    def place(value: float) -> float:
        if value <= 0:
            return 0.0
        return min(max((math.log10(value) - low) / (high - low), 0.0), 1.0)

    return place, ticks


def percentages(most: float, most_ticks: int) -> Scale:
    """From 0 to a round share of 100 that holds `most`."""
    unit = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    step = next(unit * factor for factor in (0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if most <= (most_ticks - 1) * unit * factor)
    end = step * max(math.ceil(most / step), 1)
    ticks = [(step * n, f"{step * n:.4g} %") for n in range(round(end / step) + 1)]
    return lambda value: min(max(value / end, 0.0), 1.0), ticks


def strip(
    key: str, title: str, description: str, rows: Sequence[Row], *, caption: str = "", limit: Limit | None = None,
    of_rows: str = "layer", of_notes: str = "", style: str = "",
) -> str:  # fmt: skip
    """A figure: marks along an axis, a row for each layer. `key` makes the ids: unlike any other on the page.

    With a limit the axis is logarithmic, without one it has per cent. `of_rows` and `of_notes` say what names and notes are.
    `caption` is markup.
    """
    values = [mark.value for row in rows for mark in row.marks]
    pitch = 24 if len(rows) <= 6 else 17
    top = HEAD + (LIMIT_HEAD if limit else 0)
    bottom = top + pitch * len(rows)
    noted = max(len(text) for text in (of_notes, *(row.note for row in rows)))
    left, right = CHARACTER * max(len(text) for text in (of_rows, *(row.name for row in rows))) + GAP, 100 - CHARACTER * noted - GAP
    share, ticks = _axis(values, limit, right - left)
    # The words of the first and the last tick stand half outside the plot.
    left, right = max(left, CHARACTER * len(ticks[0][1]) / 2), min(right, 100 - CHARACTER * len(ticks[-1][1]) / 2)

    def place(value: float) -> float:
        return left + (right - left) * share(value)

    drawn = []
    if limit:
        start, end = (left, place(limit.value)) if limit.below else (place(limit.value), right)
        drawn.append(f'<rect class="zone" x="{_number(start)}%" y="{top}" width="{_number(end - start)}%" height="{bottom - top}"/>')
    for value, name in ticks:
        x = f"{_number(place(value))}%"
        drawn.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom + 4}"/><text class="t" x="{x}" y="{bottom + 18}">{escape(name)}</text>')
    drawn.append(f'<text y="{top - 8}">{escape(of_rows)}</text>')
    if of_notes:
        drawn.append(f'<text class="e" x="100%" y="{top - 8}">{escape(of_notes)}</text>')
    if limit:
        x, side = f"{_number(place(limit.value))}%", "" if place(limit.value) < 50 else ' class="e"'
        drawn.append(f'<line class="limit" x1="{x}" y1="2" x2="{x}" y2="{bottom}"/>')
        drawn.append(f'<text{side} x="{x}" dx="{-6 if side else 6}" y="{LIMIT_HEAD - 4}">{escape(limit.name)}</text>')
    for number, row in enumerate(rows):
        drawn += _row(row, top + pitch * number + pitch // 2, left, right, place)
    picture = _picture(key, title, description, f'class="strip{style and f" {style}"}" height="{bottom + FOOT}"', "".join(drawn))
    return f"<figure>{caption}{picture}</figure>"


def _axis(values: list[float], limit: Limit | None, width: float) -> Scale:
    """The scale with as many ticks as have room in `width` per cent of the picture."""
    for most_ticks in range(MOST_TICKS, 2, -1):
        share, ticks = logarithmic(values, limit.value, most_ticks) if limit else percentages(max(values), most_ticks)
        apart = width * min(share(after) - share(before) for (before, _), (after, _) in zip(ticks, ticks[1:]))
        if apart >= CHARACTER * (max(len(name) for _, name in ticks) + 1):
            break
    return share, ticks


def _row(row: Row, y: int, left: float, right: float, place: Callable[[float], float]) -> list[str]:
    drawn = [
        f'<text y="{y + 4}">{escape(row.name)}</text>',
        f'<line x1="{_number(left)}%" y1="{y}" x2="{_number(right)}%" y2="{y}"/>',
    ]
    if row.note:
        drawn.append(f'<text class="e{" c" * row.stands_out}" x="100%" y="{y + 4}">{escape(row.note)}</text>')
    for mark in sorted(row.marks, key=lambda mark: mark.stands_out):  # what stands out is drawn over the others
        x, label = f"{_number(place(mark.value))}%", f"<title>{escape(mark.label)}</title>"
        if mark.stands_out:
            drawn.append(f'<rect x="{x}" y="{y}" width="8" height="8">{label}</rect>')
        else:
            drawn.append(f'<circle cx="{x}" cy="{y}" r="4">{label}</circle>')
    return drawn


def bars(key: str, title: str, description: str, values: Sequence[float]) -> str:
    """A bar for each value, one under the other; what it has over the next one is drawn lighter.

    It stands beside a table's rows and is stretched to their height: 15 units of it are one row.
    """
    most = max([*values, 0.0])
    widths = [round(BAR_UNITS * (max(value, 0.0) / most)) if most > 0 else 0 for value in values]
    common, over = [], []
    for number, (width, after) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
        y = 15 * number + 3
        shared = min(width, after)
        if shared:
            common.append(f"M0 {y}H{shared}v9H0z")
        if width > shared:
            over.append(f"M{shared} {y}H{width}v9H{shared}z")
    drawn = f'<path d="{"".join(common)}"/><path class="over" d="{"".join(over)}"/>'
    box, height = f"0 0 {BAR_UNITS} {15 * len(values)}", f"{1.5 * len(values):g}em"
    shape = f'class="bars" viewBox="{box}" height="{height}" preserveAspectRatio="none"'
    return _picture(key, title, description, shape, drawn)


def _picture(key: str, title: str, description: str, shape: str, drawn: str) -> str:
    return (
        f'<svg role="img" aria-labelledby="{key}-t {key}-d" {shape}>'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>{drawn}</svg>'
    )


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
