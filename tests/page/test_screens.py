# SPDX-License-Identifier: MIT OR Apache-2.0
"""`report`'s page in a real browser: no width is too small for it, its text can be read, and it asks for nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle.vectors import demo
from oracle.weights import formats
from tests.support import screens
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
    contrast = tab.evaluate(screens.CONTRAST)
    assert contrast["looked"] > 1000 and contrast["low"] == []
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert tab.requests == [page.resolve().as_uri()]


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
    assert counts[0] == counts[1] > 10
    tab.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.ask("Emulation.setEmulatedMedia", media="")
