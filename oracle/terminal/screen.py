# SPDX-License-Identifier: MIT OR Apache-2.0
"""Bars at the bottom of a terminal: what a bar says, how its line is written, and the screen that holds the lines."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from oracle.terminal.text import coloured, columns_of, encoding, has_colours, in_bytes, shortened, terminal_size

WIDEST = 120  # columns of a bar; eyes lose the line where it is longer
NARROW = 60  # columns below which a bar is left out, and its numbers stay
NUMBERS = 34  # columns of a bar's numbers, padded so that they stand still


@dataclass(eq=False)
class Bar:
    """What is on its way: a file, in bytes, or the layers of a job. `streamed` is bytes besides that count no part."""

    name: str
    size: int = 0
    done: int = 0
    is_file: bool = True
    streamed: int = 0
    first: int = 0  # bytes on disk when it began: a download that goes on has no rate from them
    began: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)  # when a line last said how far it is

    @property
    def amount(self) -> str:
        if self.is_file:
            return in_bytes(self.done, self.size)
        return f"{self.done}/{self.size}" + (f" {in_bytes(self.streamed)}" if self.streamed else "")

    @property
    def rate(self) -> str:
        """Bytes a second, or nothing for what is not counted in bytes."""
        count = self.done - self.first if self.is_file else self.streamed
        seconds = time.monotonic() - self.began
        if count <= 0 or seconds <= 0:
            return "? MB/s" if self.is_file else ""
        return f"{in_bytes(count / seconds)}/s"

    @property
    def left(self) -> str:
        """Hours, minutes and seconds, if it goes on as it went."""
        if self.done <= self.first:
            return "?:??"
        seconds = (time.monotonic() - self.began) * max(self.size - self.done, 0) / (self.done - self.first)
        hours, rest = divmod(round(min(seconds, 3600 * 999)), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Screen:
    """Bars at the bottom of a terminal, and finished lines above them. Each drawing is one write."""

    def __init__(self, stream: TextIO, line: Callable[[Bar, int], str]):
        self._stream, self._line = stream, line
        self._shown: list[int] = []  # columns of each line of bars that is on the screen
        self._width = 0

    def draw(self, finished: Sequence[str], bars: Sequence[Bar]) -> None:
        """Write the `finished` lines above the bars, and the bars as they stand now; without bars nothing of them is left."""
        width, height = terminal_size(self._stream) or (80, 24)
        # Where the terminal has become narrower since, it has broken the lines that were on it.
        above = sum(max(1, -(-columns // width)) for columns in self._shown[:-1])
        lines = [self._line(bar, min(width - 1, WIDEST)) for bar in bars[: max(height - 1, 1)]]
        # Otherwise it is written over, which does not flicker.
        text = "\r" + "\x1b[A" * above + ("\x1b[J" if finished or width != self._width else "")
        text += "".join(f"{line}\n" for line in finished)
        # The cursor waits at the line's start: there the terminal puts the ^C that somebody types, and it is erased.
        text += "\x1b[K\n".join(lines) + "\x1b[J\r"
        if finished or lines or self._shown:
            with contextlib.suppress(OSError, ValueError):  # the terminal has gone: nobody looks
                self._stream.write(text)
                self._stream.flush()
        self._shown, self._width = [columns_of(line) for line in lines], width


def screen_of(stream: TextIO) -> Screen | None:
    """A screen on a stream that is a terminal and can erase; None elsewhere, and where the environment wants no bars."""
    if bars_are_disabled() or os.environ.get("TERM", "dumb") == "dumb" or terminal_size(stream) is None:
        return None
    return Screen(stream, tqdm_line() or plain_line)


def bars_are_disabled() -> bool:
    """Whether the environment wants no bars, here and in huggingface_hub."""
    return os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")


def plain_line(bar: Bar, width: int) -> str:
    """A bar in at most `width` columns; without the bar itself where there is no room for it."""
    if width < NARROW:
        numbers = " ".join(filter(None, (bar.amount, bar.rate, bar.left)))
        return shortened(f"{shortened(bar.name, max(width - len(numbers) - 1, 1), pad=True)} {numbers}", width)
    cells = width // 5
    numbers = shortened(f"{bar.amount:>15} {bar.rate:>10} {bar.left:>7}", NUMBERS)
    full = min(cells, cells * bar.done // max(bar.size, 1))
    name = shortened(bar.name, width - cells - len(numbers) - 4, pad=True)
    return f"{name} [{coloured('#' * full)}{'-' * (cells - full)}] {numbers}"


def tqdm_line() -> Callable[[Bar, int], str] | None:
    """tqdm's way to write a bar, where it is installed."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None

    def line(bar: Bar, width: int) -> str:
        if width < NARROW:
            return plain_line(bar, width)
        meter = tqdm.format_meter(
            bar.done, bar.size, time.monotonic() - bar.began, ncols=width, prefix=shortened(bar.name, width // 3),
            ascii="utf" not in encoding().lower(), unit="B" if bar.is_file else "layer", unit_scale=bar.is_file, initial=bar.first,
            postfix=bar.streamed and f"{in_bytes(bar.streamed)} {bar.rate}", colour="green" if has_colours() else None,
        )  # fmt: skip
        return str(meter)

    return line
