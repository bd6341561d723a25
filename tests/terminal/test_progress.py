# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a person sees while a job runs: casts of a real pseudo-terminal, at several widths; lines elsewhere."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.terminal import progress, screen, text
from tests.support.hub import Hub
from tests.support.places import ROOT
from tests.support.process import python, run, variables
from tests.support.small_scope import config, fill, layer_arrays, npz, path_of
from tests.support.terminal import COLOUR, Cast, longest, resize, watch

RATE = 800_000  # bytes a second: a file of 1.1 MB takes more than a second
SHAPE = 56, 2304
WIDE = "重み/第零層/width_16k/average_l0_5/params.npz"
PLAIN_BAR = re.compile(
    r" \d\.\d/1\.1 MB +\d+\.\d kB/s +0:0\d$"
    r"|^layers .* [012]/2( [\d.]+ [kM]B +[\d.]+ kB/s)? +(0:\d\d|\?:\?\?)$"
)
TQDM_BAR = re.compile(r"\d+%\|.*\| [\d.]+[kM]/1\.05M \[00:0\d<00:0\d, \d+kB/s\]$|^layers: +\d+%\|.*\| [012]/2 \[")


def press_control_c(terminal: int) -> None:
    os.write(terminal, b"\x03")


BROKEN = ["--curation-repo", "org/broken"]
HALF_WAY = rb"0\.[5-9]/1\.1 MB"
SLOW = {"tqdm at 40", "tqdm at 200", "NO_COLOR with tqdm", "Ctrl-C at 40", "error with tqdm"}  # each like another one: taken when a slow test asks
CASTS: dict[str, dict[str, Any]] = {
    **{f"plain at {width}": {"width": width} for width in (40, 80, 200)},
    **{f"tqdm at {width}": {"width": width, "tqdm": True} for width in (40, 80, 200)},
    "NO_COLOR": {"NO_COLOR": "1"},
    "NO_COLOR with tqdm": {"NO_COLOR": "1", "tqdm": True},
    "TERM=dumb": {"TERM": "dumb"},
    "HF_HUB_DISABLE_PROGRESS_BARS": {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    "--quiet": {"more": ["--quiet"]},
    "--stream": {"more": ["--stream"]},
    "-o -": {"more": ["-o", "-"]},
    "wide letters": {"more": ["--curation-repo", "org/wide", "--layers", "0"], "width": 40},
    "error": {"more": BROKEN, "width": 300},
    "error with tqdm": {"more": BROKEN, "width": 300, "tqdm": True},
    "Ctrl-C": {"when": HALF_WAY, "act": press_control_c},
    "Ctrl-C at 40": {"when": HALF_WAY, "act": press_control_c, "width": 40},
    "Ctrl-C with tqdm": {"when": rb"[5-9]\d\dk/", "act": press_control_c, "tqdm": True},
    "narrower": {"when": HALF_WAY, "act": lambda terminal: resize(terminal, 40, 50), "width": 120},
}


@pytest.fixture(scope="module")
def casts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cast]]:
    """Casts by name, or taken anew. Where one is wanted all but the slow ones are taken at once, since a slow Hub is what they wait for."""
    top = tmp_path_factory.mktemp("casts")

    def take(name: str) -> Cast:
        options = dict(CASTS[name])
        more, with_tqdm = options.pop("more", []), options.pop("tqdm", False)
        terminal = {key: options.pop(key) for key in ("width", "when", "act") if key in options}
        folder = Path(tempfile.mkdtemp(dir=top))
        command = ["-m", "oracle", "--mirror", hub.url, "--layers", "0-1", "-o", "reference.json", *more]
        return watch(command, terminal_environment(folder, with_tqdm) | options, folder=folder, **terminal)

    with Hub(rate=RATE) as hub:
        fill(hub, 2, *SHAPE)
        hub.add("org/wide", "config.yaml", f'transcoders:\n  - "hf://org/wide/{WIDE}"\n'.encode())
        hub.add("org/wide", WIDE, npz(layer_arrays(0, *SHAPE)))
        broken = layer_arrays(0, *SHAPE)
        broken["b_enc"][0] = np.nan
        hub.add("org/broken", "config.yaml", config(2, "org/broken"))
        hub.add("org/broken", path_of(0), npz(broken))
        hub.add("org/broken", path_of(1), npz(layer_arrays(1, *SHAPE)))
        with ThreadPoolExecutor(len(CASTS)) as pool:
            running: dict[str, Future[Cast]] = {}

            def cast(name: str, anew: bool = False) -> Cast:
                if anew or name in SLOW:
                    return take(name)
                if not running:
                    running.update({name: pool.submit(take, name) for name in CASTS.keys() - SLOW})
                return running[name].result()

            yield cast


def terminal_environment(folder: Path, with_tqdm: bool) -> dict[str, str]:
    """An environment in which bars are drawn; tqdm is there, or cannot be imported."""
    (folder / "without").mkdir()
    (folder / "without" / "tqdm.py").write_text('raise ImportError("it is not installed")\n')
    paths = [str(ROOT)] if with_tqdm else [str(folder / "without"), str(ROOT)]
    home = {"HOME": str(folder), "HF_HOME": str(folder / "huggingface"), "PATH": os.environ["PATH"]}
    return {**home, "PYTHONPATH": os.pathsep.join(paths), "LANG": "C.UTF-8", "TERM": "xterm-256color"}


def some_slow(*names: str) -> list[Any]:
    """Parameters for casts by name."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def bars(frame: list[str], looks: re.Pattern[str]) -> list[str]:
    return [line for line in frame if looks.search(line)]


@pytest.mark.parametrize("name", some_slow(*(f"{kind} at {width}" for kind in ("plain", "tqdm") for width in (40, 80, 200))))
def test_a_cast(casts: Callable[..., Cast], name: str) -> None:
    width = CASTS[name]["width"]
    looks = TQDM_BAR if "tqdm" in CASTS[name] and width >= screen.NARROW else PLAIN_BAR
    for anew in (False, True, True):
        cast = casts(name, anew)
        assert cast.code == 0, cast.text
        assert longest(cast.text) <= width
        seen = [frame for frame in cast.frames[:-1] if bars(frame, looks)]
        if all(sum(f"layer_{layer}/" in "".join(bars(frame, looks)) for frame in seen) > 5 for layer in range(2)):
            break  # where the machine is too busy to draw, the files are there before it did
    # both bars at the bottom, below all that is finished; the file's with bytes, rate and time left
    assert len([frame for frame in seen if len(bars(frame, looks)) == 2]) > 5
    for layer in range(2):
        of_layer = [bar for frame in seen for bar in bars(frame, looks)[:-1] if bar.startswith(f"layer_{layer}/")]
        assert len(set(of_layer)) > 3, cast.frames
    assert [frame[-1].split()[0].rstrip(":") for frame in seen] == ["layers"] * len(seen)
    # without flicker: from the first to the last, the layers' bar is in every frame
    numbers = [number for number, frame in enumerate(cast.frames) if bars(frame, re.compile("^layers"))]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    # at most ten drawings a second, and the one at the end
    assert len(cast.drawings) <= cast.seconds * 10 + 2
    # in the end plain lines are left: three files, six cases, the reference
    assert [line.split()[0] for line in cast.final] == [
        "fetched", "fetched", "layer", "layer", "layer", "fetched", "layer", "layer", "layer", "6"
    ]
    assert cast.final[-1].startswith("6 cases -> reference.json") and cast.cursor_is_seen


def test_the_numbers_of_a_case_that_fit(casts: Callable[[str], Cast]) -> None:
    by_width = [casts(f"plain at {width}").final[2] for width in (40, 80, 200)]
    active = re.search(r"(\d+) active", by_width[0])
    assert active and all(f" {active[1]} active" in line and "seed" in line for line in by_width)
    assert "top L0:" in by_width[1] and "top L0:" in by_width[2] and "gate margin" in by_width[2]


def test_colours(casts: Callable[[str], Cast]) -> None:
    for name in ("plain at 80", "tqdm at 80"):
        assert casts(name).colours == {"default", "green"}


@pytest.mark.parametrize("name", some_slow("NO_COLOR", "NO_COLOR with tqdm"))
def test_no_colours(casts: Callable[[str], Cast], name: str) -> None:
    cast = casts(name)
    assert cast.code == 0 and cast.colours == {"default"} and len(cast.drawings) > 5


def test_no_bars_where_they_are_not_wanted(casts: Callable[[str], Cast]) -> None:
    for name in ("TERM=dumb", "HF_HUB_DISABLE_PROGRESS_BARS"):
        cast = casts(name)
        assert cast.code == 0 and "\x1b" not in cast.text and cast.text.count("fetched ") == 3
        assert len(cast.text.splitlines()) == 10 and longest(cast.text) <= 80
    assert casts("--quiet").code == 0 and casts("--quiet").raw == b""


def test_a_stream_is_told_beside_the_layers(casts: Callable[[str], Cast]) -> None:
    cast = casts("--stream")
    assert cast.code == 0 and longest(cast.text) <= 80
    lines = {bar for frame in cast.frames for bar in bars(frame, PLAIN_BAR)}
    assert len([line for line in lines if re.search(r"^layers .* [01]/2 [\d.]+ [kM]B +[\d.]+ kB/s", line)]) > 3
    assert [line.split()[0] for line in cast.final] == ["layer"] * 6 + ["6"]


def test_the_bars_end_before_a_reference_goes_to_the_same_terminal(casts: Callable[[str], Cast]) -> None:
    *drawings, document = casts("-o -").drawings
    assert len(drawings) > 10 and len(json.loads(document)["test_cases"]) == 6


def test_wide_letters_take_two_columns(casts: Callable[[str], Cast]) -> None:
    cast = casts("wide letters")
    assert cast.code == 0 and longest(cast.text) <= 40
    assert any(bar.startswith("重") for frame in cast.frames for bar in bars(frame, PLAIN_BAR))


@pytest.mark.parametrize("name", some_slow("Ctrl-C", "Ctrl-C at 40", "Ctrl-C with tqdm"))
def test_control_c_leaves_a_clean_screen(casts: Callable[[str], Cast], name: str) -> None:
    cast = casts(name)
    assert cast.code == 130 and b"^C" in cast.raw  # the terminal has shown what was typed
    assert {line.split()[0] for line in cast.final[:-1]} <= {"fetched", "layer"} and cast.final[-1] == "interrupted"
    assert any(frame[-1].startswith("layers") for frame in cast.frames) and longest(cast.text) <= cast.width


@pytest.mark.parametrize("name", some_slow("error", "error with tqdm"))
def test_an_error_leaves_a_clean_screen(casts: Callable[[str], Cast], name: str) -> None:
    cast = casts(name)
    assert cast.code == 4 and [line.split()[0] for line in cast.final] == ["fetched", "fetched", "error:"]
    assert "b_enc has 1 values" in cast.final[-1]
    assert any(frame[-1].startswith("layers") for frame in cast.frames)


def test_a_terminal_that_becomes_narrower(casts: Callable[[str], Cast]) -> None:
    cast = casts("narrower")
    before, after = cast.text.split("fetched layer_0/")[0], re.split(r"layer_1/.* 0\.[5-9]/", cast.text)[-1]
    assert cast.code == 0 and longest(before) > 60 and longest(after) <= 40 and "fetched layer_1/" in after


MANY_THREADS = """
import logging, sys, threading, time
from oracle.terminal.progress import ProgressReporter
def fetch(number):
    path = f"file-{number}"
    arrived = reporter.fetching(path)
    for done in range(50):
        arrived(done * 20000, 1000000)
        if done % 10 == 0:
            reporter.say(f"thread {number} says {done}")
            logging.getLogger("vendored_hf").warning("thread %d\\x1b[2J warns %d", number, done)
        time.sleep(0.012)
    reporter.fetched(path, sys.executable)
with ProgressReporter() as reporter:
    reporter.layers(8)
    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_many_threads_and_few_rows(tmp_path: Path) -> None:
    cast = watch(["-c", MANY_THREADS], terminal_environment(tmp_path, False), folder=tmp_path, width=80, height=6)
    assert cast.code == 0 and longest(cast.text) <= 80
    says = [f"thread {number} says {done}" for number in range(8) for done in range(0, 50, 10)]
    warns = [f"thread {number}\\x1b[2J warns {done}" for number in range(8) for done in range(0, 50, 10)]
    fetched = [f"fetched file-{number}" for number in range(8)]
    assert sorted(line.split(" (")[0] for line in cast.scrolled) == sorted(says + warns + fetched)
    # five rows of bars at most: one more, and the topmost would scroll away and stay
    assert max(sum("/s" in line for line in frame) for frame in cast.frames) == 5


LINES = """
import sys
from oracle.terminal.commands import main
from oracle.terminal import progress
progress.EVERY = {every}
sys.exit(main(sys.argv[1:]))
"""


def lines_of(hub: Hub, folder: Path, every: float, *more: str) -> list[str]:
    source = ("--mirror", hub.url, "--layers", "0")
    ran = python("-c", LINES.format(every=every), *source, *more, environment={"TERM": "xterm-256color"}, cwd=folder)
    assert ran.returncode == 0 and "\x1b" not in ran.stderr, ran.stderr
    return ran.stderr.splitlines()


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    with Hub(rate=RATE) as hub, ThreadPoolExecutor() as pool:
        fill(hub, 1, *SHAPE)
        options: list[list[str]] = [[], ["--stream", "-o", "streamed.json"]]
        running = [pool.submit(lines_of, hub, tmp_path, 0.25, *more) for more in options]
        lines, streamed = (run.result() for run in running)
    meanwhile = [line for line in lines if line.startswith("fetching ")]
    assert 2 <= len(meanwhile) <= 5 and len(lines) == len(meanwhile) + 6
    assert re.fullmatch(rf"fetching {path_of(0)}: \d\.\d/1\.1 MB, \d+\.\d [kM]B/s, 0:0\d left", meanwhile[-1])
    assert lines[0].startswith("fetched config.yaml (") and lines[-5].startswith(f"fetched {path_of(0)} (1.1 MB in ")
    assert re.match(r"layers: 0/1 [\d.]+ [kM]B, [\d.]+ [kM]B/s$", streamed[0])


def test_a_closed_standard_error(hub: Hub, tmp_path: Path) -> None:
    fill(hub, 1)
    command = f"exec {sys.executable} -m oracle --mirror {hub.url} --layers 0 -o - 2>&-"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=variables(), cwd=tmp_path)
    assert ran.returncode == 0 and len(json.loads(ran.stdout)["test_cases"]) == 3


@pytest.mark.slow
def test_a_line_every_ten_seconds(tmp_path: Path) -> None:
    with Hub(rate=40_000) as hub:
        fill(hub, 1, *SHAPE)
        began = time.monotonic()
        lines = lines_of(hub, tmp_path, progress.EVERY)
        seconds = time.monotonic() - began
    assert seconds > 20 and len([line for line in lines if line.startswith("fetching ")]) == 2


@settings(deadline=None)
@given(
    name=st.text(max_size=60), done=st.integers(0, 1 << 60), more=st.integers(0, 1 << 60),
    first=st.integers(0, 1 << 60), streamed=st.integers(0, 1 << 60), in_bytes=st.booleans(),
    width=st.integers(1, 250), age=st.floats(0, 1e6),
)
def test_no_bar_is_wider_than_its_terminal(
    name: str, done: int, more: int, first: int, streamed: int, in_bytes: bool, width: int, age: float
) -> None:
    bar = screen.Bar(name, done + more, done, in_bytes, streamed, first, time.monotonic() - age)
    draw = screen.tqdm_line()
    for line in (screen.plain_line(bar, width), draw(bar, width) if draw else ""):
        bare = COLOUR.sub("", line)
        assert text.columns_of(line) <= width and longest(line) <= width and bare.isprintable()


def markdown_rows(text: str) -> list[list[str]]:
    """The cells of a table: a pipe that is a value is none of the table's."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GitHub Actions step; where its summary goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    return tmp_path / "summary.md"


def test_the_summary_of_a_step(hub: Hub, workflow: Path) -> None:
    fill(hub)
    output = "a|b<img src=x>[c](d)`e`.json"
    ran = run("--mirror", hub.url, "--layers", "0-2", "-o", output)
    assert ran.returncode == 0 and "::" not in ran.stderr, ran.stderr
    text = workflow.read_text()
    heading, _, *rows = markdown_rows(text)
    made = json.loads(Path(output).read_text())
    assert text.startswith("before\n") and "### oracle generate" in text and len(rows) == 9
    for case, row in zip(made["test_cases"], rows):
        assert len(row) == len(heading) == 7
        assert row[:3] == [str(case[key]) for key in ("layer", "seed", "n_active")]
        assert row[3].startswith(str(case["top_10"][0]["index"]))
    closing = text.rstrip().splitlines()[-1]  # what a name says is no Markdown and no HTML
    assert html.unescape(closing).endswith(f"in {output}") and not set(closing) & set("|<>[]`*_")

    made["test_cases"][4]["n_active"] += 40
    Path("candidate.json").write_text(json.dumps({"test_cases": made["test_cases"]}))
    compared = run("compare", output, "candidate.json", "--format", "json")
    assert compared.returncode == 1 and json.loads(compared.stdout)["agrees"] is False
    annotations = [line for line in compared.stderr.splitlines() if line.startswith("::")]
    assert len(annotations) == 1 and annotations[0].startswith("::error title=oracle compare::9 cases: 8 same, 1 diff")
    added = workflow.read_text().removeprefix(text)
    rows = markdown_rows(added)[2:]
    assert [row[1] for row in rows] == ["same"] * 4 + ["differs"] + ["same"] * 4 and "n&#95;active" in rows[4][2]
    assert rows[4][0] == "layer 1 seed 101"
    assert "the candidate DISAGREES" in added

    made = json.loads(Path(output).read_text())
    made["test_cases"][2]["residual_fingerprint"] = "|<b>*x*</b>|\n::"
    Path("edited.json").write_text(json.dumps(made))
    verified = run("verify", "edited.json", "--mirror", hub.url, "--quiet")
    assert verified.returncode == 1 and verified.stderr == ""
    added = workflow.read_text().removeprefix(text)
    rows = markdown_rows(added[added.index("### oracle verify") :])[2:]
    assert "8 of 9 cases" in added and [len(row) for row in rows] == [3] * 9
    assert "residual_fingerprint is |<b>*x*</b>| ::, not 0x" in html.unescape(rows[2][2]) and not set(rows[2][2]) & set("<>*")


def test_errors_are_annotations(workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = run("compare", "50%0A::set-env,:\n.json", "candidate.json")
    error, annotation = missing.stderr.splitlines()
    assert missing.returncode == 2 and error.startswith("error: ") and "50%0A::set-env" in error
    assert annotation == "::error title=oracle::" + error.removeprefix("error: ").replace("%", "%25")
    usage = run("--seeds", "many")
    assert usage.returncode == 2 and len(re.findall("^::error title=oracle::.*--seeds", usage.stderr, re.M)) == 1
    assert workflow.read_text() == "before\n"
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert "::error" not in run("compare", "missing.json", "candidate.json").stderr


def test_elsewhere_nothing_is_summarized(hub: Hub, workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hub, 1)
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert run("--mirror", hub.url, "--layers", "0").returncode == 0 and workflow.read_text() == "before\n"


def test_a_summary_that_cannot_be_written(hub: Hub, workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hub, 1)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(workflow / "no" / "folder"))
    ran = run("--mirror", hub.url, "--layers", "0")
    assert ran.returncode == 0 and "the summary cannot be written" in ran.stderr


SPEAKERS = """
import threading
from oracle.terminal.text import say
threads = [threading.Thread(target=lambda: [say("x" * 30) for _ in range(2000)]) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_lines_of_several_threads_do_not_run_into_each_other() -> None:
    ran = python("-c", SPEAKERS)
    assert ran.stderr.splitlines() == ["x" * 30] * 8000
