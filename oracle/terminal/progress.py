# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a person sees while a job runs: bars on a terminal, lines elsewhere. No arithmetic of encodings.

Everything that happens only changes numbers and queues lines; one thread draws, ten times a second at most. So bars
and lines cannot tear each other, whichever thread they come from, and nobody waits for a slow terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

TICK = 0.1  # seconds between two drawings
EVERY = 10.0  # seconds between two lines about one file, where there are no bars
WIDEST = 120  # columns of a bar; eyes lose the line where it is longer
NARROW = 60  # columns below which a bar is left out, and its numbers stay
NUMBERS = 34  # columns of a bar's numbers, padded so that they stand still
LOGGER = "vendored_hf"

_saying = threading.Lock()


@dataclass
class Bar:
    """What is on its way: a file, in bytes, or the layers of a job. `streamed` is bytes besides that count no part."""

    name: str
    size: int = 0
    done: int = 0
    in_bytes: bool = True
    streamed: int = 0
    first: int = 0  # what was there when it began: a download that goes on has no rate from that
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)  # when a line was last said about it

    @property
    def amount(self) -> str:
        if self.in_bytes:
            return _bytes(self.done, self.size)
        return f"{self.done}/{self.size}" + (f" {_bytes(self.streamed)}" if self.streamed else "")

    @property
    def rate(self) -> str:
        """Bytes a second, or nothing for what is not counted in bytes."""
        count = self.done - self.first if self.in_bytes else self.streamed
        seconds = time.monotonic() - self.began
        if count <= 0 or seconds <= 0:
            return "? MB/s" if self.in_bytes else ""
        return f"{_bytes(count / seconds)}/s"

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

    def draw(self, said: Sequence[str], bars: Sequence[Bar]) -> None:
        """Write `said` above the bars, and the bars as they stand now; without bars nothing of them is left."""
        size = terminal_size(self._stream)
        width, height = size or (80, 24)
        # Where the terminal has become narrower since, it has broken the lines that were on it.
        above = sum(max(1, -(-columns // width)) for columns in self._shown[:-1])
        lines = [self._line(bar, min(width - 1, WIDEST)) for bar in bars[: max(height - 1, 1)]]
        finished = "".join(f"{text}\n" for text in said)
        # Otherwise it is written over, which does not flicker.
        text = "\r" + "\x1b[A" * above + ("\x1b[J" if finished or width != self._width else "") + finished
        # The cursor waits at the line's start: there the terminal puts the ^C that somebody types, and it is erased.
        text += "\x1b[K\n".join(lines) + "\x1b[J\r"
        if finished or lines or self._shown:
            with contextlib.suppress(OSError, ValueError):  # the terminal has gone: nobody looks
                self._stream.write(text)
                self._stream.flush()
        self._shown, self._width = [columns_of(line) for line in lines], width


def plain_line(bar: Bar, width: int) -> str:
    """A bar in at most `width` columns; without the bar itself where there is no room for it."""
    if width < NARROW:
        numbers = " ".join(filter(None, (bar.amount, bar.rate, bar.left)))
        return shortened(f"{shortened(bar.name, max(width - len(numbers) - 1, 1), pad=True)} {numbers}", width)
    cells = width // 5
    numbers = shortened(f"{bar.amount:>15} {bar.rate:>10} {bar.left:>7}", NUMBERS)
    full = min(cells, cells * bar.done // max(bar.size, 1))
    name = shortened(bar.name, width - cells - len(numbers) - 4, pad=True)
    return f"{name} [{_coloured('#' * full)}{'-' * (cells - full)}] {numbers}"


def tqdm_line() -> Callable[[Bar, int], str] | None:
    """tqdm's way to write a bar, where it is installed."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None

    def line(bar: Bar, width: int) -> str:
        if width < NARROW:
            return plain_line(bar, width)
        return str(
            tqdm.format_meter(
                bar.done,
                bar.size,
                time.monotonic() - bar.began,
                ncols=width,
                prefix=shortened(bar.name, width // 3),
                ascii="utf" not in _encoding().lower(),
                unit="B" if bar.in_bytes else "layer",
                unit_scale=bar.in_bytes,
                postfix=bar.streamed and f"{_bytes(bar.streamed)} {bar.rate}",
                initial=bar.first,
                colour="green" if _colours() else None,
            )
        )

    return line


class Narrator:
    """Tells on standard error what a job does, between `with` and its end; its methods are the job's events.

    Bars are for a terminal that can erase, unless HF_HUB_DISABLE_PROGRESS_BARS says no. Elsewhere a file has a line at
    its end, and one every 10 s. `quiet` says nothing, and of the Hub's log only errors.
    """

    def __init__(self, *, quiet: bool = False):
        self._quiet, self._stream = quiet, sys.stderr
        self._screen = None if quiet or not _has_bars(self._stream) else Screen(self._stream, tqdm_line() or plain_line)
        self._lock = threading.Lock()
        self._files: list[Bar] = []
        self._layers: Bar | None = None
        self._streams: list[Callable[[], int]] = []
        self._said: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._log = _Log(self._say_above)

    def __enter__(self) -> Narrator:
        logger = logging.getLogger(LOGGER)
        if self._quiet:
            logger.setLevel(logging.ERROR)
        else:
            logger.addHandler(self._log)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        logging.getLogger(LOGGER).removeHandler(self._log)
        try:
            if not self._quiet:
                self._thread.join()
        finally:  # a second Ctrl-C is to leave a clean screen too
            if self._screen:
                self._screen.draw(self._taken(), [])

    def layers(self, count: int) -> None:
        """A job of `count` layers begins."""
        with self._lock:
            self._layers = Bar("layers", count, in_bytes=False)

    def layer_done(self, layer: int) -> None:
        with self._lock:
            if self._layers:
                self._layers.done += 1

    def streaming(self, path: str, received: Callable[[], int]) -> None:
        """A file is read off the wire as the encoder asks for it: its bytes are told beside the layers."""
        with self._lock:
            self._streams.append(received)

    def fetching(self, path: str) -> Callable[[int, int], None]:
        """A file begins to arrive. What is returned takes the bytes so far, and in all."""
        bar = Bar(path)
        with self._lock:
            self._files.append(bar)

        def arrived(done: int, size: int) -> None:
            with self._lock:
                if not bar.size:
                    bar.first = done
                bar.done, bar.size = done, size

        return arrived

    def fetched(self, path: str, local_path: str | None) -> None:
        """A file is there; or it is not to come, with a local path of None."""
        with self._lock:
            bar = next((bar for bar in self._files if bar.name == path), Bar(path))
            self._files = [other for other in self._files if other is not bar]
        if local_path is not None:
            rest = f" ({_bytes(os.path.getsize(local_path))} in {time.monotonic() - bar.began:.1f} s)"
            room = max(terminal_width() - len("fetched ") - len(rest), 1)
            self.say(f"fetched {path}{rest}", f"fetched {shortened(path, room)}{rest}")

    def encoded(self, case: dict[str, Any], n_features: int) -> None:
        """A case, as the reference has it."""
        top = next(value for key, value in case.items() if key.startswith("top_"))
        first = f"L{case['layer']}:{top[0]['index']} ({top[0]['activation']:.4f})" if top else "none"
        rank = "none" if case["rank_margin"] is None else f"{case['rank_margin']:.6f}"
        flags = f"  [{', '.join(case['flags'])}]" if case["flags"] else ""
        name = f"layer {case['layer']:2d} seed {case['seed']:4d}: {case['n_active']:6d} active"
        short = " ".join(name.split())
        margins = f"rank margin {rank}, gate margin {case['gate_margin']:.6f}"
        self.say(
            f"{name} / {n_features} features, top {first}, {margins}{flags}",
            f"{name}, top {first}, {margins}{flags}",
            f"{name}, top {first}{flags}",
            f"{short}{flags}",
            short,
        )

    def say(self, *forms: str) -> None:
        """Tell how the job gets on, in the first of `forms` that fits the terminal."""
        self._say_above(fitting(*forms))

    def _say_above(self, text: str) -> None:
        if self._quiet or self._over.is_set():
            return
        if self._screen is None:
            say(text)
        else:
            with self._lock:
                self._said += map(printable, text.split("\n"))

    def _taken(self) -> list[str]:
        """The lines that wait to be written."""
        with self._lock:
            said, self._said = self._said, []
        return said

    def _bars(self) -> list[Bar]:
        with self._lock:
            if self._layers:
                self._layers.streamed = sum(received() for received in self._streams)
            return [*self._files, *([self._layers] if self._layers else [])]

    def _run(self) -> None:
        """Draw, on a thread of its own, until it is over."""
        while not self._over.wait(TICK):
            if self._screen:
                self._screen.draw(self._taken(), self._bars())
            else:
                for bar in self._overdue():
                    left = "" if "?" in bar.left else f", {bar.left} left"
                    self.say(f"{'fetching ' if bar.in_bytes else ''}{bar.name}: {bar.amount}, {bar.rate}{left}")

    def _overdue(self) -> Iterator[Bar]:
        """What has had no line for a while. Layers have their cases' lines; a stream's bytes are told beside them."""
        now = time.monotonic()
        for bar in self._bars():
            if now - bar.told >= EVERY and (bar.in_bytes or bar.streamed):
                bar.told = now
                yield bar


class _Log(logging.Handler):
    """Log records among the lines, and whole: what is wrong is never cut."""

    def __init__(self, say_above: Callable[[str], None]):
        super().__init__()
        self._say_above = say_above

    def emit(self, record: logging.LogRecord) -> None:
        self._say_above(record.getMessage())


def say(text: str) -> None:
    """Print for a person, on standard error."""
    if sys.stderr is not None:  # it may have been closed, and print would take standard output for it
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


def printable(text: str) -> str:
    """What a server or a file named, on one line, without what would reach the terminal as a control character."""
    encoding = _encoding()
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def columns_of(text: str) -> int:
    """Columns that a printable text takes, or fewer; colours take none."""
    for code in (GREEN, PLAIN):
        text = text.replace(code, "")
    return sum(_columns(character) for character in text)


def shortened(text: str, width: int, *, pad: bool = False) -> str:
    """A text in at most `width` columns, without its middle where it is too long; padded to that many if asked."""
    text = printable(text)
    if columns_of(text) > width:
        tail = _head(text[::-1], max(width - 2, 0) // 3 if width >= 24 else 0)[::-1]
        dots = ".."[:width]
        text = _head(text, width - len(dots) - columns_of(tail)) + dots + tail
    return text + " " * (width - columns_of(text)) if pad else text


def terminal_size(stream: TextIO | None) -> tuple[int, int] | None:
    """Columns and rows of a terminal as it is now; None where a stream is no terminal, or is closed."""
    try:
        if stream is None or not stream.isatty():
            return None
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return size.columns or 80, size.lines or 24


def _encoding() -> str:
    return getattr(sys.stderr, "encoding", None) or "ascii"


def _has_bars(stream: TextIO) -> bool:
    disabled = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")
    return not disabled and os.environ.get("TERM", "dumb") != "dumb" and terminal_size(stream) is not None


GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


def _colours() -> bool:
    return not os.environ.get("NO_COLOR")  # no-color.org


def _coloured(text: str) -> str:
    return f"{GREEN}{text}{PLAIN}" if text and _colours() else text


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _head(text: str, width: int) -> str:
    """As much of a text's beginning as has room in `width` columns."""
    taken = 0
    for at, character in enumerate(text):
        taken += _columns(character)
        if taken > width:
            return text[:at]
    return text


def _bytes(count: float, whole: float | None = None) -> str:
    """Bytes in the unit that suits them, or suits the whole."""
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if max(count, whole or 0) >= u[0]), (1e3, "kB"))
    return f"{count / unit:.1f}{'' if whole is None else f'/{whole / unit:.1f}'} {name}"
