# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a person is told while a job runs: bars on a terminal, tqdm's bars in a notebook, lines elsewhere.

On a terminal everything that happens only changes numbers and queues lines; one thread draws, ten times a second at most. So bars
and lines cannot tear each other, whichever thread they come from, and nobody waits for a slow terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from oracle.references.document import Case
from oracle.references.generate import Events
from oracle.terminal.output import check_apart, check_output
from oracle.terminal.screen import Bar, bars_are_disabled, screen_of
from oracle.terminal.text import case_texts, fitting, in_bytes, printable, say, shortened, terminal_width

TICK = 0.1  # seconds between two drawings
EVERY = 10.0  # seconds between two lines about one file, where there are no bars
LOGGER = "vendored_hf"


class ProgressReporter(Events):
    """Tells on standard error what a job does, between `with` and its end.

    Bars are for a terminal that can erase, unless HF_HUB_DISABLE_PROGRESS_BARS says no. Elsewhere a file has a line at
    its end, and one every 10 s. `quiet` says nothing, and of the Hub's log only errors. `output` is where the job's
    reference goes: where nobody names it the plan does, and it is none of the `inputs`.
    """

    def __init__(self, *, quiet: bool = False, output: str | None = None, inputs: Sequence[str | None] = ()):
        self.output = output
        self._inputs = [*inputs]
        self._quiet = quiet
        self._screen = None if quiet else screen_of(sys.stderr)
        self._lock = threading.Lock()
        self._files: list[Bar] = []
        self._layers: Bar | None = None
        self._streams: list[Callable[[], int]] = []
        self._queue: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._log = _Log(self._say)

    def __enter__(self) -> ProgressReporter:
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
                self._screen.draw(self._waiting_lines(), [])

    def planned(self, output: str) -> None:
        if self.output is None:
            check_output(output, self._inputs)
            self.output = output

    def reading(self, local_path: str) -> None:
        self._inputs.append(local_path)
        if self.output not in (None, "-"):
            check_apart(self.output, [local_path])

    def layers(self, count: int) -> None:
        with self._lock:
            self._layers = Bar("layers", count, is_file=False)

    def layer_done(self, layer: int) -> None:
        with self._lock:
            if self._layers:
                self._layers.done += 1

    def streaming(self, path: str, received: Callable[[], int]) -> None:
        with self._lock:  # its bytes stand beside the layers
            self._streams.append(received)

    def fetching(self, path: str) -> Callable[[int, int], None]:
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
        with self._lock:
            bar = next((bar for bar in self._files if bar.name == path), Bar(path))
            self._files = [other for other in self._files if other is not bar]
        if local_path is not None:
            rest = f" ({in_bytes(os.path.getsize(local_path))} in {time.monotonic() - bar.began:.1f} s)"
            room = max(terminal_width() - len("fetched ") - len(rest), 1)
            self.say(f"fetched {path}{rest}", f"fetched {shortened(path, room)}{rest}")

    def encoded(self, case: Case, n_features: int) -> None:
        feature, rank, gate, flags = case_texts(case)
        layer, kind, number = case.id
        name = f"layer {layer:2d} {kind} {number:4d}: {case.n_active:6d} active"
        top = f", top {f'L{layer}:' if case.top else ''}{feature}"
        margins = f", rank margin {rank}, gate margin {gate}"
        marked = f"  [{flags}]" if flags else ""
        rests = f" / {n_features} features{top}{margins}", f"{top}{margins}", top
        short = " ".join(name.split())
        self.say(*(f"{name}{rest}{marked}" for rest in rests), f"{short}{marked}", short)

    def warned(self, warning: str) -> None:
        self._say(warning)

    def say(self, *forms: str) -> None:
        """Tell how the job gets on, in the first of `forms` that fits the terminal."""
        self._say(fitting(*forms))

    def _say(self, text: str) -> None:
        if self._quiet or self._over.is_set():
            return
        if self._screen is None:
            say(text)
        else:
            with self._lock:
                self._queue += map(printable, text.split("\n"))

    def _waiting_lines(self) -> list[str]:
        with self._lock:
            lines, self._queue = self._queue, []
        return lines

    def _bars(self) -> list[Bar]:
        with self._lock:
            if self._layers:
                self._layers.streamed = sum(received() for received in self._streams)
            return [*self._files, *([self._layers] if self._layers else [])]

    def _run(self) -> None:
        """Draw, on a thread of its own, until it is over."""
        while not self._over.wait(TICK):
            if self._screen:
                self._screen.draw(self._waiting_lines(), self._bars())
                continue
            for bar in self._bars():
                # Layers have their cases' lines; a stream's bytes are told beside them.
                if (bar.is_file or bar.streamed) and time.monotonic() - bar.last_line >= EVERY:
                    bar.last_line = time.monotonic()
                    left = "" if "?" in bar.left else f", {bar.left} left"
                    self.say(f"{'fetching ' if bar.is_file else ''}{bar.name}: {bar.amount}, {bar.rate}{left}")


class _Log(logging.Handler):
    """Log records among the lines, and whole: what is wrong is never cut."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


def notebook_progress() -> AbstractContextManager[Events]:
    """What the library tells by itself: bars where a notebook runs it and tqdm is installed, elsewhere nothing."""
    tqdm = _tqdm_of_notebook()
    return nullcontext(Events()) if tqdm is None else NotebookProgress(tqdm)


def _tqdm_of_notebook() -> Any:
    """tqdm's bars for a notebook, with ipywidgets or without; None where no notebook runs this, or it wants no bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if "IPKernelApp" not in getattr(shell, "config", {}) or bars_are_disabled():
        return None
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    return tqdm


class NotebookProgress(Events):
    """Bars below a notebook's cell, between `with` and its end: one of the layers, which stays, and one of each file on its way."""

    def __init__(self, tqdm: Any):
        self._tqdm = tqdm
        self._lock = threading.Lock()  # files arrive on threads of their own
        self._layers: Any = None
        self._files: dict[str, Any] = {}

    def __enter__(self) -> NotebookProgress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in [*self._files.values(), *([] if self._layers is None else [self._layers])]:
            bar.close()

    def layers(self, count: int) -> None:
        if self._layers is None:
            self._layers = self._tqdm(total=count, desc="layers", unit="layer")
        else:  # of another job
            done = self._layers.n
            self._layers.reset(self._layers.total + count)
            self._layers.update(done)

    def layer_done(self, layer: int) -> None:
        self._layers.update()

    def fetching(self, path: str) -> Callable[[int, int], None]:
        def arrived(done: int, size: int) -> None:
            with self._lock:
                if path not in self._files:  # tqdm's widget needs the size from the start
                    self._files[path] = self._tqdm(total=size, initial=done, desc=path, unit="B", unit_scale=True, leave=False)
                self._files[path].update(done - self._files[path].n)

        return arrived

    def fetched(self, path: str, local_path: str | None) -> None:
        with self._lock:
            bar = self._files.pop(path, None)
        if bar is not None:
            bar.close()

    def warned(self, warning: str) -> None:
        self._tqdm.write(warning, file=sys.stderr)
