# SPDX-License-Identifier: MIT OR Apache-2.0
"""`report`'s page in a real browser: no width is too small for it, its verdict is seen first, its text can be read, its words
touch nothing, its decimals stand below each other, 78 cases take 12 pages of paper, and it asks for nothing."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle.page import charts, markup
from oracle.vectors import demo
from oracle.weights import formats
from tests.support import picture, screens
from tests.support.process import run

pytestmark = pytest.mark.skipif(not screens.chromium(), reason="chromium is missing (apt-get install chromium)")


@pytest.fixture(scope="module")
def tab() -> Iterator[screens.Tab]:
    with screens.tab() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers, with fragile cases, long names, and a candidate that is wrong in one way in each layer."""
    folder = tmp_path_factory.mktemp("page")
    assert run("demo", "--schema", "CltSplit", "--folder", str(folder), "--quiet").returncode == 0
    paths = [folder / "reference.json", folder / "candidate.json"]
    source = "--offline", "--cache-dir", str(folder / "hub"), "--curation-repo", demo.job_repo(formats.by_name("CltSplit"))
    assert run("--layers", "all", "--decode", "-o", str(paths[0]), "--quiet", *source).returncode == 0
    reference = json.loads(paths[0].read_text())
    for number, case in enumerate(reference["test_cases"][::3]):
        entries = case["top_10"]
        if number % 4 == 0:
            entries[1]["activation"] += 10.0 ** -(number % 7)
        elif number % 4 == 1:
            entries.reverse()
        elif number % 4 == 2:
            entries[0]["index"] = 2**64 - 1
        else:
            case["n_active"] += 1
    paths[1].write_text(json.dumps(reference))
    reference = json.loads(paths[0].read_text())
    reference["clt_repo"] = "a-long-name-without-a-break-" * 8
    reference["environment"]["platform"] = "x" * 300
    reference["test_cases"][0]["flags"] = ["a-flag-that-nobody-knows" * 4]
    passed = {"rank_margin": 0.000012, "gate_margin": 0.000034, "n_active_bounds": [7, 9], "flags": ["rank-tie", "gate-tie"]}
    reference["skipped_seeds"] = [{"layer": 3, "seed": 103 + 100 * number, **passed} for number in range(20)]
    paths[0].write_text(json.dumps(reference))
    made = folder / "report.html"
    assert run("report", *map(str, paths), "-o", str(made), "--quiet").returncode == 0
    return made


@pytest.mark.parametrize("scheme", screens.SCHEMES)
@pytest.mark.parametrize("width", [width if width == min(screens.WIDTHS) else pytest.param(width, marks=pytest.mark.slow) for width in screens.WIDTHS])
def test_it_fits_and_can_be_read(tab: screens.Tab, page: Path, width: int, scheme: str) -> None:
    tab.requests.clear()
    tab.show(page, width, scheme)
    tab.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
    fit = tab.evaluate(screens.WIDE)
    assert (fit["inner"], fit["scroll"], fit["out"]) == (width, width, [])
    collisions = tab.evaluate(screens.COLLISIONS)
    assert collisions["looked"] > 190 and collisions["found"] == []
    apart = tab.evaluate(screens.POINTS)
    assert len(apart) > 200 and max(apart) < 1
    contrast = tab.evaluate(screens.CONTRAST)
    assert contrast["looked"] > 1000 and contrast["low"] == []
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert tab.requests == [page.resolve().as_uri()]


def test_what_failed_is_seen_first(tab: screens.Tab, page: Path) -> None:
    """On a small telephone the verdict and the cause stand on the first screen, then what differs; what is right is folded."""
    tab.show(page, 360, "light")
    boxes = "[...document.querySelectorAll('h1, h2')].map(e => [e.id || 'verdict', e.getBoundingClientRect().toJSON()])"
    edges = {name: (box["top"], box["bottom"]) for name, box in tab.evaluate(boxes)}
    assert tab.evaluate("document.title").startswith("\u2717 23 of 78 cases differ: candidate.json against reference.json")
    assert edges["verdict"][1] < 200 < edges["cause"][1] < 640 < edges["failures"][0] < edges["glance"][0] < edges["reference"][0]
    faults = tab.evaluate(
        """[...document.querySelectorAll('.values td .f')].filter(e => e.checkVisibility()).map(e => getComputedStyle(e).color)
             .filter(color => color == getComputedStyle(document.querySelector('h1')).color).length"""
    )
    assert faults > 23
    assert tab.evaluate("[...document.querySelectorAll('details')].filter(e => e.open && !e.closest('.section')).length") == 0


@pytest.mark.slow
def test_at_1400_pixels_the_room_is_used(tab: screens.Tab, page: Path) -> None:
    """The cause stands beside what differs, not below it, and both together take the width."""
    tab.show(page, 1400, "light")
    failures, cause = (tab.evaluate(f"document.querySelector('.{part}').getBoundingClientRect().toJSON()") for part in ("failures", "cause"))
    assert failures["right"] < cause["left"] and abs(failures["top"] - cause["top"]) < 1
    assert cause["right"] - failures["left"] > 1200


@pytest.mark.slow
def test_the_port_of_the_readmes_picture(tab: screens.Tab, tmp_path: Path) -> None:
    """It fails in one layer, its cause is named, and its tables are seen whole at every width."""
    path = picture.page(tmp_path)
    for width in screens.WIDTHS:
        tab.show(path, width, "light")
        assert max(tab.evaluate("[...document.querySelectorAll('.failures .scroll')].map(e => e.scrollWidth - e.clientWidth)")) <= 1
    assert tab.evaluate("document.title") == "\u2717 3 of 9 cases differ: candidate.json against plt_gemma_reference.json"
    assert "b_enc left out" in tab.evaluate("document.querySelector('.cause').textContent")


def test_words_that_touch_are_seen(tab: screens.Tab, page: Path) -> None:
    """The measure itself: a word that is moved onto others and onto lines is found."""
    tab.show(page, 360, "light")
    assert tab.evaluate(screens.COLLISIONS)["found"] == []
    tab.evaluate("document.querySelector('.strip .t').setAttribute('y', 45)")
    assert len(tab.evaluate(screens.COLLISIONS)["found"]) >= 2


@pytest.mark.slow
def test_words_of_charts_touch_nothing_whatever_they_are(tab: screens.Tab, tmp_path: Path) -> None:
    """Values over 600 decades, limits anywhere, names and notes as long as they may be."""
    figures = []
    for number, (power, below, long, n_rows) in enumerate(itertools.product((-300, -12, -4, 0, 3, 300), (True, False), (True, False), (1, 30))):
        limit = charts.Limit(10.0**power, "2 \u00d7 own tolerance" if long else "tolerance", below)
        marks = [charts.Mark(10.0 ** max(min(power + step, 308), -308), "case", step % 3 == 0) for step in range(-9, 12, 4)]
        rows = [charts.Row(str(10 ** (4 * long) + row), marks, "0, 100, 200" if long else "0", bool(row % 2)) for row in range(n_rows)]
        figures.append(charts.strip(f"chart-{number}", "title", "description", rows, limit=limit, of_notes="seed"))
        shares = [charts.Mark(abs(mark.value) % 100, "case") for mark in marks]
        figures.append(charts.strip(f"shares-{number}", "title", "description", [charts.Row("0", shares, "131,072\u2013131,072" if long else "7")]))
    path = tmp_path / "charts.html"
    path.write_text(markup.document("charts", "charts", "<h1>Charts</h1>" + "".join(figures)))
    for width in (320, *screens.WIDTHS):
        tab.show(path, width, "light")
        collisions = tab.evaluate(screens.COLLISIONS)
        assert collisions["looked"] > 1000 and collisions["found"] == []


def test_bars_stand_beside_their_rows(tab: screens.Tab, page: Path) -> None:
    tab.show(page, 800, "light")
    tab.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
    off = tab.evaluate(
        """[...document.querySelectorAll('.card table')].map(table => {
             const picture = table.querySelector('svg').getBoundingClientRect();
             const body = table.tBodies[0].getBoundingClientRect();
             return Math.abs(picture.top - body.top) + Math.abs(picture.bottom - body.bottom);
           })"""
    )
    assert len(off) == 78 and max(off) < 2


@pytest.mark.slow
def test_paper_holds_what_is_folded_on_the_screen(tab: screens.Tab, page: Path, tmp_path: Path) -> None:
    """The folded values take as much paper as unfolded ones, and dark screens don't print dark."""
    counts = []
    for opened in ("false", "true"):
        tab.show(page, 800, "dark")
        tab.evaluate(f"for (const e of document.querySelectorAll('details')) e.open = {opened}")
        tab.paper(tmp_path / "page.pdf")
        counts.append(len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())))
    assert counts[0] == counts[1] and 5 < counts[0] <= 12
    tab.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.ask("Emulation.setEmulatedMedia", media="")
