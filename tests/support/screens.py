# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page as a headless Chromium shows it: pictures of it, its width, its contrast, and what it asks the network for.

    python -m tests.support.screens report.html FOLDER

takes the pictures: at 360, 800 and 1,400 pixels, light and dark, and on paper.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = 360, 800, 1400
SCHEMES = "light", "dark"
MOST_PIXELS = 12_000  # of a picture's height

# For every element with text of its own: the contrast of its colour with the nearest background that is not clear,
# after WCAG 2 (relative luminance). Returned are those below 4.5.
CONTRAST = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const zone = document.querySelector('.zone');
  const low = [];
  let looked = 0;
  for (const e of document.body.querySelectorAll('*')) {
    if (['title', 'desc'].includes(e.tagName)) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    looked += 1;
    const picture = e.namespaceURI.endsWith('svg'), style = getComputedStyle(e);
    const grounds = [behind(e)];
    if (picture && zone) grounds.push(rgb(getComputedStyle(zone).fill));
    for (const ground of grounds) {
      const [a, b] = [light(rgb(picture ? style.fill : style.color)), light(ground)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) low.push([e.tagName, e.textContent.slice(0, 40), ratio]);
    }
  }
  return {looked, low};
})()"""

# Elements that stick out of the window, and are not in a box that scrolls by itself.
WIDE = """(() => {
  const inner = document.documentElement.clientWidth;
  const out = [...document.body.querySelectorAll('*')].filter(e =>
    !e.closest('.scroll') && e.getClientRects().length && e.getBoundingClientRect().right > inner + 1);
  return {scroll: document.documentElement.scrollWidth, inner,
          out: out.map(e => e.tagName + ' ' + e.textContent.slice(0, 40))};
})()"""


# The words of charts that touch a line, a mark or other words, or stick out of their picture. A line has no width of its own.
COLLISIONS = """(() => {
  const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const box = e => {
    const {left, right, top, bottom} = e.getBoundingClientRect();
    return e.tagName == 'line' ? {left: left - .5, right: right + .5, top: top - .5, bottom: bottom + .5} : {left, right, top, bottom};
  };
  const found = [];
  let looked = 0;
  for (const picture of document.querySelectorAll('.strip')) {
    const edge = picture.getBoundingClientRect();
    if (!edge.width) continue;
    const texts = [...picture.querySelectorAll('text')].map(e => [e.textContent, box(e)]);
    const drawn = [...picture.querySelectorAll('line, circle, rect:not(.zone)')].map(e => [e.outerHTML.slice(0, 60), box(e)]);
    texts.forEach(([text, a], i) => {
      looked += 1;
      for (const [other, b] of [...texts.slice(i + 1), ...drawn]) if (touch(a, b)) found.push([text, other]);
      if (a.left < edge.left - 1 || a.right > edge.right + 1) found.push([text, 'the edge']);
    });
  }
  return {looked, found};
})()"""

# How far, in pixels, the decimal points of each column of numbers stand apart.
POINTS = """[...document.querySelectorAll('.values, .num, .card table')].filter(table => table.getClientRects().length).flatMap(table => {
  const columns = new Map();
  for (const row of table.tBodies[0].rows) {
    const cells = [...row.cells].filter(cell => !cell.querySelector('svg'));
    cells.forEach((cell, i) => {
      const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
      const text = walker.nextNode();
      const at = text ? text.data.search(/\\d\\.\\d/) : -1;
      if (at < 0) return;
      const range = document.createRange();
      range.setStart(text, at + 1); range.setEnd(text, at + 2);
      const x = range.getBoundingClientRect().right;
      columns.set(i - cells.length, [...columns.get(i - cells.length) || [], x]);
    });
  }
  return [...columns.values()].filter(xs => xs.length > 1).map(xs => Math.max(...xs) - Math.min(...xs));
})"""


def chromium() -> str | None:
    """The browser's path, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One tab of a browser, driven over a pipe by the DevTools protocol."""

    def __init__(self, write_to: Any, read_from: Any):
        self._write_to, self._read_from = write_to, read_from
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write_to.write(json.dumps(message).encode() + b"\0")
        self._write_to.flush()
        while (answer := self._next()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        raw = bytearray()
        while (byte := self._read_from.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has gone")
            raw += byte
        message = json.loads(raw)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def show(self, path: Path, width: int, scheme: str) -> None:
        """Load a file into a window of that width, in the light or the dark."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self, path: Path, height: int | None = None) -> None:
        """The whole page, or its top, as a PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0,
            "y": 0,
            "width": size["width"],
            "height": height or min(size["height"], MOST_PIXELS),
            "scale": 1,
        }
        made = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(made["data"]))

    def paper(self, path: Path) -> None:
        """The page as a PDF on A4."""
        made = self.ask("Page.printToPDF", preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def tab() -> Iterator[Tab]:
    """A browser of our own with a profile of its own, which goes with it."""
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    keep = [os.dup(to_browser), os.dup(to_us)]  # above 4, should the pipes have taken 3 and 4
    keep += [os.dup(fd) for fd in keep]
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [
                str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--remote-debugging-pipe", f"--user-data-dir={profile}",
            ],
            preexec_fn=lambda: (os.dup2(keep[2], 3), os.dup2(keep[3], 4)),
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (to_browser, to_us, *keep):
            os.close(fd)
        try:
            with os.fdopen(from_us, "wb") as write_to, os.fdopen(from_browser, "rb") as read_from:
                yield Tab(write_to, read_from)
                write_to.write(b'{"id": 0, "method": "Browser.close"}\0')
        finally:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(page: str, folder: str) -> None:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with tab() as shown:
        for scheme in SCHEMES:
            for width in WIDTHS:
                shown.show(Path(page), width, scheme)
                shown.picture(place / f"{Path(page).stem}-{width}-{scheme}.png")
                print(width, scheme, *map(shown.evaluate, (WIDE, CONTRAST, COLLISIONS)))
        shown.paper(place / f"{Path(page).stem}.pdf")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not chromium():
        sys.exit("usage: python -m tests.support.screens report.html FOLDER (it needs chromium)")
    main(*sys.argv[1:])
