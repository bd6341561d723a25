# SPDX-License-Identifier: MIT OR Apache-2.0
"""What compare and verify print: on screens of every width, as JSON and as JUnit."""

from __future__ import annotations

import copy
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle.terminal.text import columns_of, wrapped
from oracle.version import VERSION
from tests.support.cases import blocks
from tests.support.encodings import stripped
from tests.support.hub import Hub
from tests.support.process import Completed, run, variables

REFERENCE = "plt_gemma_reference.json"


@pytest.fixture
def candidate(demo_folder: Path) -> dict[str, Any]:
    """Wrong in every way that a list can be: 6 values and a count, the order, an index, a residual; and a case that is not there."""
    reference = json.loads((demo_folder / REFERENCE).read_text())
    answers = stripped(reference)
    cases = answers["test_cases"]
    cases[0]["n_active"] += 40
    for entry in cases[0]["top_10"][:6]:
        entry["activation"] += 0.5
    cases[1]["top_10"].reverse()
    cases[2]["top_10"][0]["index"] = 512
    cases[3]["residual_fingerprint"] = "0x" + "1" * 16
    cases[5]["activation_sum"] = reference["test_cases"][5]["activation_sum"] + 1
    cases[6]["top_10"][2]["activation"] += 2e-5
    del cases[4]
    return answers


@pytest.fixture
def edited(demo_folder: Path, tmp_path: Path) -> Path:
    """A reference with two wrong cases, a list of many, and a digest that is not its own."""
    reference = json.loads((demo_folder / REFERENCE).read_text())
    reference["test_cases"][3]["top_10"][2]["activation"] += 1
    reference["test_cases"][4].update(n_active_bounds=[0, 512], gate_ties=list(range(512)))
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(reference))
    return path


def compare(folder: Path, candidate: Any, *options: str, width: int | None = None) -> Completed:
    environment = {} if width is None else {"COLUMNS": str(width)}
    return run("compare", str(folder / REFERENCE), "-", *options, input=json.dumps(candidate), environment=environment)


def without_spaces(text: str) -> str:
    return re.sub(r"[\s\\]+", "", text)


# --- screens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 64, 80, 200])
def test_no_line_is_longer_than_the_screen_and_nothing_is_lost(demo_folder: Path, candidate: dict[str, Any], edited: Path, width: int) -> None:
    verify = "verify", str(edited), "--offline", "--cache-dir", str(demo_folder / "hub")
    for narrow, wide in (
        (compare(demo_folder, candidate, "-v", width=width), compare(demo_folder, candidate, "-v", width=9999)),
        (run(*verify, environment={"COLUMNS": str(width)}), run(*verify, environment={"COLUMNS": "9999"})),
    ):
        assert narrow.returncode == wide.returncode == 1 and narrow.stderr == wide.stderr == ""
        screen, commands = narrow.stdout.split("try next:\n")
        assert max(map(columns_of, screen.splitlines())) <= width
        # A word of a command is not broken: what is pasted has to work.
        assert all(columns_of(line) <= width or len(line.removesuffix(" \\").split()) == 1 for line in commands.splitlines())
        words = set(wide.stdout.replace("try next:", "").split()) - {"\\"}
        assert not [word for word in words if without_spaces(word) not in without_spaces(narrow.stdout)]
        if width >= 80:  # one problem a line, both numbers side by side
            said = blocks(narrow.stdout)
            assert any(re.search(r"feature \d+ [\d.]+ [\d.]+ (0\.5|1) 0\.0001", text) for text in said.values())


def test_what_failed_comes_first_and_the_verdict_last(demo_folder: Path, candidate: dict[str, Any]) -> None:
    screen = compare(demo_folder, candidate).stdout
    assert list(blocks(screen)) == [f"layer {layer} seed {seed}" for layer, seed in ((0, 0), (0, 100), (0, 200), (12, 12), (12, 112), (12, 212))]
    order = ["layer 0 seed 0: differs", "3 cases agree; -v lists them", "9 cases: 2 same, 1 rounding, 5 differ, 1 missing", "the candidate DISAGREES"]
    places = [screen.index(text) for text in order]
    assert places == sorted(places) and places[0] == 0
    assert "largest difference: n_active 40 (layer 0 seed 0)" in screen and "largest difference: activation 0.5 (layer 0 seed 0 feature " in screen
    assert "largest difference: activation_sum 1 (layer 12 seed 212)" in screen
    # of six features that are off alike the first three, and all where they are asked for
    assert blocks(screen)["layer 0 seed 0"].endswith("... and 3 more; -v lists them") and blocks(screen)["layer 0 seed 0"].count("feature") == 3
    listed = compare(demo_folder, candidate, "-v").stdout
    assert blocks(listed)["layer 0 seed 0"].count("feature") == 6 and "-v lists" not in listed
    assert "layer 25 seed 125: same" in listed and "layer 25 seed 25: rounding  values differ by up to 2e-05" in listed


def test_of_many_cases_that_fail_the_first_are_shown(tmp_path: Path) -> None:
    assert run("demo", "--folder", str(tmp_path), "--quiet").returncode == 0
    source = "--offline", "--cache-dir", str(tmp_path / "hub"), "--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation"
    assert run(*source, "--seeds", "5", "-o", str(tmp_path / REFERENCE), "--quiet").returncode == 0
    answers = stripped(json.loads((tmp_path / REFERENCE).read_text()))
    for case in answers["test_cases"]:
        case["n_active"] += 40
    screen = compare(tmp_path, answers).stdout
    assert len(blocks(screen)) == 12 and "... and 3 cases more that fail; -v lists them" in screen
    assert len(blocks(compare(tmp_path, answers, "-v").stdout)) == 15


def test_what_to_try_next_can_be_pasted(demo_folder: Path, candidate: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a candidate's.json"
    path.write_text(json.dumps(candidate))
    source = "--offline", "--cache-dir", str(demo_folder / "hub")
    ran = run("compare", str(demo_folder / REFERENCE), str(path), *source, environment={"COLUMNS": "60"})
    commands = [shlex.split(text) for text in ran.stdout.split("try next:\n")[1].replace("\\\n", "").splitlines()]
    assert [words[:4] for words in commands] == [["python", "-m", "oracle", name] for name in ("compare", "inspect")]
    explained, inspected = (run(*words[3:]) for words in commands)
    assert explained.returncode == 1 and "try next:\n  python -m oracle inspect" in explained.stdout and "  top k ascending: " in explained.stdout
    assert inspected.returncode == 0 and "the feature is at place" in inspected.stdout
    # Where all is right there is nothing to try.
    candidate = stripped(json.loads((demo_folder / REFERENCE).read_text()))
    assert "try next" not in compare(demo_folder, candidate).stdout


def test_of_the_demo_s_answers_what_to_try_next_reads_the_demo_s_cache(demo_folder: Path) -> None:
    ran = run("compare", "plt_gemma_reference.json", "candidate.json", cwd=demo_folder, environment={"COLUMNS": "9999"})
    commands = [shlex.split(text) for text in ran.stdout.split("try next:\n")[1].splitlines()]
    explained, inspected = (run(*words[3:], cwd=demo_folder) for words in commands)
    assert explained.returncode == 1 and "b_enc left out" in explained.stdout and inspected.returncode == 0
    # Where a cache is named it is that, and elsewhere than beside the demo's reference none is.
    named = run("compare", "plt_gemma_reference.json", "candidate.json", "--cache-dir", "mine", cwd=demo_folder, environment={"COLUMNS": "9999"})
    assert named.stdout.count("--cache-dir mine") == 2 and "hub" not in named.stdout


@pytest.mark.parametrize("source", [(), ("--offline",)])
def test_of_the_demo_s_reference_an_error_names_the_demo_s_cache(demo_folder: Path, tmp_path: Path, hub: Hub, source: tuple[str, ...]) -> None:
    """Nobody else has its weights: another Hub says that there is no such repo."""
    reference = str(demo_folder / "plt_gemma_reference.json")
    ran = run("verify", reference, *source, environment={"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")})
    line = ran.stderr.splitlines()[-1]
    assert ran.returncode == 3 and "; the demo's weights are read with --cache-dir " in line, ran.stderr
    words = shlex.split(line.partition("are read with ")[2])
    assert run("verify", reference, *source, *words, environment={"HF_HUB_CACHE": str(tmp_path / "cache")}).returncode == 0


def test_one_is_not_many(demo_folder: Path, candidate: dict[str, Any]) -> None:
    lines = compare(demo_folder, candidate, "--layer", "0", "--seed", "0").stdout.splitlines()
    assert "1 case: 1 differs" in lines
    answers = {"test_cases": candidate["test_cases"][:1]}
    assert run("report", str(demo_folder / REFERENCE), "-", "-o", "-", input=json.dumps(answers)).stdout.count("standard input") > 1


def test_the_verdict_has_a_colour_on_a_terminal(demo_folder: Path, candidate: dict[str, Any], tmp_path: Path) -> None:
    terminal = pytest.importorskip("tests.support.terminal")
    (tmp_path / "candidate.json").write_text(json.dumps(candidate))
    command = ["-m", "oracle", "compare", str(demo_folder / REFERENCE), str(tmp_path / "candidate.json")]
    environment = variables({"TERM": "xterm"})
    environment.pop("COLUMNS", None)
    cast = terminal.watch(command, environment, folder=tmp_path, width=40)
    assert cast.code == 1 and "\x1b[31mthe candidate DISAGREES (tolerance\x1b[0m" in cast.text
    screen = cast.text.split("try next:")[0]
    assert terminal.longest(screen) <= 40
    assert "\x1b" not in compare(demo_folder, candidate).stdout


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]) | st.just(" "), max_size=120), st.integers(20, 60), st.integers(0, 6))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int, indent: int) -> None:
    lines = wrapped(text, width, " " * indent)
    assert all(columns_of(line) <= width for line in lines)
    assert without_spaces("".join(lines)) == without_spaces(text)
    assert all(line.startswith(" " * indent) for line in lines[1:])


# --- which cases --------------------------------------------------------------------------------------------------


def test_one_layer_one_seed_and_what_failed_alone(demo_folder: Path, candidate: dict[str, Any], edited: Path) -> None:
    def cases(ran: Completed) -> list[tuple[int, int]]:
        return [(case["layer"], case["seed"]) for case in json.loads(ran.stdout)["test_cases"]]

    as_json = "--format", "json"
    layer = compare(demo_folder, candidate, "--layer", "25", *as_json)
    assert layer.returncode == 0 and cases(layer) == [(25, 25), (25, 125), (25, 225)] and json.loads(layer.stdout)["extra_cases"] == []
    assert cases(compare(demo_folder, candidate, "--seed", "212", *as_json)) == [(12, 212)]
    failed = compare(demo_folder, candidate, "--layer", "12", "--failed-only", *as_json)
    assert cases(failed) == [(12, 12), (12, 112), (12, 212)] and json.loads(failed.stdout)["counts"] == {"same": 0, "rounding": 0, "differs": 2, "missing": 1}
    assert "agree" not in compare(demo_folder, candidate, "--failed-only", "-v").stdout
    nothing = compare(demo_folder, candidate, "--layer", "7", "--seed", "3")
    assert nothing.returncode == 2 and "has no case of --layer 7 --seed 3; its first is of layer 0 seed 0" in nothing.stderr

    # Of other layers verify needs no files.
    source = "--offline", "--cache-dir", str(demo_folder / "hub"), *as_json
    verified = run("verify", str(edited), "--layer", "0", *source)
    assert cases(verified) == [(0, 0), (0, 100), (0, 200)] and json.loads(verified.stdout)["counts"]["same"] == 3
    assert cases(run("verify", str(edited), "--seed", "112", *source)) == [(12, 112)]
    assert cases(run("verify", str(edited), "--failed-only", *source)) == [(12, 12), (12, 112)]


# --- JSON and JUnit -----------------------------------------------------------------------------------------------


def test_the_json_has_numbers_as_numbers(demo_folder: Path, candidate: dict[str, Any], edited: Path) -> None:
    reference = json.loads((demo_folder / REFERENCE).read_text())["test_cases"]
    document = json.loads(compare(demo_folder, candidate, "--format", "json").stdout)
    assert document["oracle_version"] == VERSION and document["candidate"] == "-" and document["reference"].endswith(REFERENCE)
    assert document["counts"] == {"same": 2, "rounding": 1, "differs": 5, "missing": 1} and document["agrees"] is False
    count, first, *_ = document["test_cases"][0]["problems"]
    assert count == {"line": count["line"], "subject": "n_active", "expected": reference[0]["n_active"], "answer": reference[0]["n_active"] + 40,
                     "difference": 40, "bounds": reference[0]["n_active_bounds"]}  # fmt: skip
    entry = reference[0]["top_10"][0]
    assert (first["feature"], first["expected"], first["answer"], first["difference"]) == (entry["index"], entry["activation"], entry["activation"] + 0.5, 0.5)
    assert first["allowed"] == pytest.approx(1e-4, rel=0.01)
    assert document["largest_differences"]["activation_sum"]["difference"] == pytest.approx(1) and document["largest_differences"]["n_active"]["seed"] == 0
    assert document["largest_difference"] == 0.5

    document = json.loads(run("verify", str(edited), "--offline", "--cache-dir", str(demo_folder / "hub"), "--format", "json").stdout)
    assert document["agrees"] is False and document["exact"] is True and document["problems"] == ["the reference was edited: its digest is not that of what it says"]
    assert document["test_cases"][3]["problems"][1]["difference"] == pytest.approx(1) and "candidate" not in document


def test_what_json_cannot_hold_is_left_out(demo_folder: Path, candidate: dict[str, Any]) -> None:
    changed = copy.deepcopy(candidate)
    changed["test_cases"][0]["top_10"][0]["activation"] = -1.7e308
    changed["test_cases"][1]["top_10"][0]["activation"] = 1.7e308
    ran = compare(demo_folder, changed, "--format", "json")
    assert ran.returncode == 1 and json.loads(ran.stdout)["test_cases"][0]["problems"][1]["answer"] == -1.7e308


def test_junit_says_what_is_wrong_in_the_body(demo_folder: Path, candidate: dict[str, Any], edited: Path) -> None:
    candidate["test_cases"][3]["residual_fingerprint"] = "\ud800\x00<&##[é"
    ran = compare(demo_folder, candidate, "--format", "junit")
    suite = ElementTree.fromstring(ran.stdout)
    failures = {test.attrib["name"]: test.find("failure") for test in suite.iter("testcase")}
    assert suite.attrib["failures"] == "6" and suite.attrib["tests"] == "9" and ran.stdout.isascii() and "##[" not in ran.stdout
    body = failures["seed_0"].text.splitlines()  # type: ignore[union-attr]
    assert len(body) == 7 and body[0].startswith("n_active is ") and all(": off by 0.5" in line for line in body[1:])
    assert "<&##[é" in failures["seed_12"].text  # type: ignore[union-attr, operator]
    assert "the candidate DISAGREES" in str(suite.findtext("system-out"))

    source = "--offline", "--cache-dir", str(demo_folder / "hub"), "--format", "junit"
    suite = ElementTree.fromstring(run("verify", str(edited), *source).stdout)
    assert (suite.attrib["name"], suite.attrib["tests"], suite.attrib["failures"]) == ("oracle verify", "10", "3")
    failed = [test.attrib["name"] for test in suite.iter("testcase") if test.find("failure") is not None]
    assert failed == ["seed_12", "seed_112", "files_and_record"]
    right = ElementTree.fromstring(run("verify", str(demo_folder / REFERENCE), *source).stdout)
    assert (right.attrib["tests"], right.attrib["failures"]) == ("10", "0")
