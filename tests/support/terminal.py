# SPDX-License-Identifier: MIT OR Apache-2.0
"""A process on a real pseudo-terminal, and what stood on the screen after each of its drawings."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyte
from wcwidth import wcswidth

# Makes the terminal the one whose Ctrl-C reaches the process.
LAUNCH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
DRAWN = b"\x1b[J\r"  # with which a drawing ends
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Cast:
    """All that a process wrote to its terminal, its exit code, and how long it drew."""

    raw: bytes
    code: int
    seconds: float
    width: int
    height: int

    @property
    def text(self) -> str:
        return self.raw.decode()

    @property
    def drawings(self) -> list[bytes]:
        return self.raw.split(DRAWN)

    def screens(self) -> Iterator[pyte.HistoryScreen]:
        """The screen after each drawing, and at the end; it is one and the same, which goes on."""
        screen = pyte.HistoryScreen(self.width, self.height, history=10_000)
        stream = pyte.ByteStream(screen)
        for drawing in self.drawings:
            stream.feed(drawing + DRAWN)
            yield screen

    @property
    def frames(self) -> list[list[str]]:
        """What stood on the screen after each drawing, and at the end."""
        return [[line.rstrip() for line in screen.display if line.strip()] for screen in self.screens()]

    @property
    def final(self) -> list[str]:
        return self.frames[-1]

    @property
    def scrolled(self) -> list[str]:
        """What is left in the end, with what has scrolled away at the top."""
        *_, screen = self.screens()
        above = ["".join(line[column].data for column in range(self.width)) for line in screen.history.top]
        return [line.rstrip() for line in [*above, *screen.display] if line.strip()]

    @property
    def colours(self) -> set[str]:
        """Of all that ever stood on the screen."""
        return {cell.fg for screen in self.screens() for line in screen.buffer.values() for cell in line.values()}

    @property
    def cursor_is_seen(self) -> bool:
        *_, screen = self.screens()
        return not screen.cursor.hidden


def longest(text: str) -> int:
    """Columns of the longest line that was ever drawn, between one return of the cursor and the next."""
    return max(wcswidth(ESCAPE.sub("", line)) for line in re.split(r"[\r\n]", text))


def watch(
    arguments: list[str],
    environment: dict[str, str],
    *,
    folder: Path,
    width: int = 80,
    height: int = 50,
    when: bytes | None = None,
    act: Callable[[int], None] = lambda terminal: None,
) -> Cast:
    """Run Python with `arguments` on a terminal, in `folder`. Once it has written `when`, `act` gets our end of it."""
    ours, theirs = os.openpty()
    resize(ours, width, height)
    command = [sys.executable, "-I", "-S", "-c", LAUNCH, sys.executable, *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder, start_new_session=True
    )
    os.close(theirs)
    raw, began, acted = b"", time.monotonic(), when is None
    try:
        while time.monotonic() < began + 60:
            if select.select([ours], [], [], 1)[0]:
                try:
                    raw += os.read(ours, 1 << 16)
                except OSError:  # EIO: the process has ended
                    break
            if not acted and re.search(when or b"", raw):
                act(ours)
                acted = True
        return Cast(raw, process.wait(10), time.monotonic() - began, width, height)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def resize(terminal: int, width: int, height: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
