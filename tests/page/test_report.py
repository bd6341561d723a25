# SPDX-License-Identifier: MIT OR Apache-2.0
"""`report`: the page is well-formed and needs nothing from outside, holds every value, and none of them as markup."""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.arithmetic.constants import generator_record
from oracle.checking.compare import compare
from oracle.library import compare as oracle_compare
from oracle.page import page as report
from oracle.references import reading
from oracle.vectors import demo
from oracle.weights.formats import FORMATS
from tests.support import worlds
from tests.support.encodings import read, stripped
from tests.support.pages import Page, text_of
from tests.support.places import shared
from tests.support.process import oracle, run

HOSTILE = "\"><script>alert(1)</script></title></style><!--' &amp; &lt;b&gt; {0} \u20ac"
UNPRINTABLE = "a\u0000b\u001b[31m\ud800\u202ec\n]]>"
WHOLE_PAGE_LIMIT = 400_000
OFFLINE = "--offline", "--curation-repo", demo.job_repo(FORMATS[0])


@pytest.fixture(scope="module")
def folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References of the demo's weights: of 3 layers, and of all 26."""
    references = tmp_path_factory.mktemp("references")
    shutil.copy(demo_folder / "plt_gemma_reference.json", references)
    for name, options in {"all": "--layers all", "k50": "--top-k 50", "k1": "--top-k 1 --tolerance 0.01"}.items():
        source = (*OFFLINE, "--cache-dir", str(demo_folder / "hub"), "--quiet")
        assert run(*options.split(), "-o", str(references / f"{name}.json"), *source).returncode == 0
    return references


@pytest.fixture
def recorded(folder: Path) -> dict[str, Any]:
    return read(folder / "plt_gemma_reference.json")


def made_from(tmp_path: Path, reference: Any, candidate: Any = None, *options: str) -> Page:
    """The page that the command writes."""
    paths = [tmp_path / "reference.json"]
    paths[0].write_text(json.dumps(reference))
    if candidate is not None:
        paths.append(tmp_path / "candidate.json")
        paths[1].write_text(json.dumps(candidate))
    ran = run("report", *map(str, paths), "-o", str(tmp_path / "report.html"), *options)
    assert ran.returncode == 0, ran.stderr
    return Page((tmp_path / "report.html").read_text(encoding="ascii"))


def float32(value: float) -> bytes:
    return struct.pack("<f", value)


def answers(case: dict[str, Any]) -> list[dict[str, Any]]:
    return next(value for key, value in case.items() if re.fullmatch(r"top_\d+", key))


# --- what is on the page ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plt_gemma_reference", "all", "k50", "k1"])
def test_every_value_is_on_the_page(folder: Path, name: str, tmp_path: Path) -> None:
    reference = read(folder / f"{name}.json")
    page = made_from(tmp_path, reference)
    assert len(page.source) < WHOLE_PAGE_LIMIT
    table = next(rows for table in page.root.iter("table") if len(rows := page.rows(table)) and len(rows[0]) == 7)
    for case, (layer, seed, fire, within, rank, gate, flags) in zip(reference["test_cases"], table, strict=True):
        assert (int(layer), int(seed), int(fire)) == (case["layer"], case["seed"], case["n_active"])
        assert (float(rank), float(gate)) == (case["rank_margin"], case["gate_margin"])
        assert flags == ", ".join(case["flags"])
        fewest, most = case["n_active_bounds"]
        assert within == ("" if fewest == most == case["n_active"] else f"{fewest}\u2013{most}")

        card = page.by_id(f"layer-{case['layer']}-seed-{case['seed']}")
        assert case["residual_fingerprint"] in text_of(card)
        shown = [(int(index), float32(float(value))) for index, value, _ in page.rows(card)]
        assert shown == [(entry["index"], float32(entry["activation"])) for entry in answers(case)]
    for record in reference["layers"]:
        assert record["path"] in page.text and record["sha256"] in page.text
    for key in ("weights_repo", "weights_revision", "curation_repo", "curation_revision", "encoder_formula", "schema"):
        assert reference[key] in page.text
    for value in (*reference["environment"].values(), *reference["residual_generator"]["steps"]):
        assert str(value) in page.text


def test_fragile_cases_are_named(folder: Path, tmp_path: Path) -> None:
    reference = read(folder / "all.json")
    flagged = [(case["layer"], case["seed"], flag) for case in reference["test_cases"] for flag in case["flags"]]
    assert {flag for _, _, flag in flagged} == {"rank-tie", "gate-tie"}
    page = made_from(tmp_path, reference)
    for layer, seed, flag in flagged:
        assert f"Layer {layer} seed {seed}: {flag}." in page.text
        chart = page.by_id(f"chart-{flag[:4]}_margin-t")
        drawn = next(svg for svg in page.root.iter("svg") if chart in list(svg))
        assert str(seed) in [text_of(text) for text in drawn.iter("text")]
        n_diamonds = sum(rect.find("title") is not None for rect in drawn.iter("rect"))
        assert n_diamonds == sum(other == flag for _, _, other in flagged)


def test_the_features_of_a_tie_are_named(recorded: dict[str, Any], tmp_path: Path) -> None:
    case = recorded["test_cases"][1]
    case["top_10"][4]["activation"] = case["top_10"][3]["activation"] - 3e-5
    case.update(rank_margin=3e-5, gate_margin=4e-5, flags=["rank-tie", "gate-tie"], gate_ties=[17, 400])
    case["n_active_bounds"] = [case["n_active"] - 1, case["n_active"] + 1]
    page = made_from(tmp_path, recorded)
    pair = [entry["index"] for entry in case["top_10"][3:5]]
    assert f"Features {pair[0]} and {pair[1]}, places 4 and 5, stand 0.000030 apart" in page.text
    assert "0.000040 from its gate; at their gates: 17, 400" in page.text
    assert f"may count {case['n_active'] - 1} to {case['n_active'] + 1}, here it is {case['n_active']}" in page.text
    assert "tie 0.00003" in text_of(page.by_id(f"layer-{case['layer']}-seed-{case['seed']}"))


def test_the_same_bytes_and_ascii(folder: Path, tmp_path: Path) -> None:
    reference = folder / "plt_gemma_reference.json"
    for name in ("one", "other"):
        assert run("report", str(reference), "-o", str(tmp_path / name), cwd=tmp_path).returncode == 0
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "other").read_bytes() and one.isascii()
    printed = oracle("report", str(reference), "-o", "-", environment={"PYTHONIOENCODING": "ascii"})
    assert printed.stdout.encode() == one


# --- references of other kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plt_gemma_reference.json", "plt_llama_reference.json"])
def test_what_torch_wrote(name: str, tmp_path: Path) -> None:
    reference = read(shared(f"data/{name}"))
    page = made_from(tmp_path, reference, stripped(reference))
    assert (reference.get("weights_repo") or reference["plt_repo"]) in page.text
    assert reference["torch_version"] in page.text and "records no margins" in page.text
    for case in reference["test_cases"]:
        shown = page.rows(page.by_id(f"layer-{case['layer']}-seed-{case['seed']}"))
        assert [int(row[0]) for row in shown] == [entry["index"] for entry in case["top_10"]]


def test_nothing_fires_nothing_is_hashed_and_keys_to_come(recorded: dict[str, Any], tmp_path: Path) -> None:
    nothing, alone, *_, last = recorded["test_cases"]
    nothing.update(n_active=0, n_active_bounds=[0, 0], top_10=[], rank_margin=None, flags=["no-active-features"])
    alone.update(n_active=1, n_active_bounds=[1, 1], top_10=alone["top_10"][:1], rank_margin=None)
    last.update(rank_margin=0, gate_margin=0.0, decoder={"path": "elsewhere"})
    recorded["layers"][0]["sha256"] = None
    recorded["layers"][1].update(repo="another/repo", revision="5ca1ab1e")
    recorded.update(weights_revision=None, number_to_come=12.5)
    page = made_from(tmp_path, recorded)
    assert "No feature is on the list" in text_of(page.by_id("layer-0-seed-0"))
    assert "streamed in part" in page.text and "number_to_come" in page.text
    assert "another/repo at commit 5ca1ab1e" in page.text
    assert "2 cases without one" in page.text and "\u226410" in page.text


NUMBER = st.floats(allow_nan=False, allow_infinity=False, width=64)
POSITIVE = st.floats(0, allow_infinity=False) | st.sampled_from([0.0, 1e-6, 1e-4, 2e-4, 5e-324])


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2**64 - 1)), min_size=1, max_size=6, unique=True),
    st.data(),
    st.text(),
    st.floats(0, 1e6),
)
@settings(deadline=None, max_examples=60)
def test_whatever_a_reference_holds(
    keys: list[tuple[int, int]], data: st.DataObject, name: str, tolerance: float
) -> None:
    entry = st.builds(lambda index, activation: {"index": index, "activation": activation}, st.integers(0, 511), NUMBER)

    def a_case(layer: int, seed: int) -> dict[str, Any]:
        ties = sorted(data.draw(st.sets(st.integers(0, 511), max_size=3)))
        fewest = data.draw(st.integers(0, 2**64 - 4))
        n_active = fewest + data.draw(st.integers(0, len(ties)))
        return {
            "layer": layer,
            "seed": seed,
            "stream": layer,
            "residual_fingerprint": data.draw(st.text()),
            "n_active": n_active,
            "n_active_bounds": [fewest, fewest + len(ties)],
            "gate_ties": ties,
            "rank_margin": data.draw(st.none() | POSITIVE),
            "gate_margin": data.draw(POSITIVE),
            "flags": data.draw(st.lists(st.sampled_from(["rank-tie", "gate-tie", "no-active-features", "<b>"]))),
            "top_10": data.draw(st.lists(entry, max_size=4)),
        }

    made = {
        "format_version": 1, "weights_repo": name, "weights_revision": None, "curation_repo": name, "schema": name, "tolerance": tolerance,
        "methodology": name, "gate": {"kind": name}, "encoder_input": {"kind": name}, "digest": name,
        "encoder_formula": data.draw(st.text()), "d_model": 8, "n_features_per_layer": 512, "top_k": 10, "residual_generator": generator_record(),
        "layers": [{"layer": layer, "path": name, "sha256": None} for layer in sorted({layer for layer, _ in keys})],
        "test_cases": [a_case(layer, seed) for layer, seed in keys],
        "environment": data.draw(st.dictionaries(st.text(), NUMBER | st.text() | st.none() | st.integers()))
        | {"float32_max_abs_error": data.draw(NUMBER | st.integers() | st.text())},
    }  # fmt: skip
    answer = {"test_cases": [a_case(layer, seed) for layer, seed in keys[1:]]}
    with tempfile.TemporaryDirectory() as place:
        for kind, content in (("reference", made), ("candidate", answer)):
            (Path(place) / kind).write_text(json.dumps(content))
        recorded = reading.read_reference(f"{place}/reference")
        if len(keys) == 1:
            page = Page(report.page(recorded))
        else:
            candidate = reading.read_candidate(f"{place}/candidate", 10)
            page = Page(report.page(recorded, candidate, compare(recorded, candidate)))
    for case in made["test_cases"]:
        card = page.by_id(f"layer-{case['layer']}-seed-{case['seed']}")
        assert [int(row[0]) for row in page.rows(card)] == [entry["index"] for entry in case["top_10"]]


# --- hostile values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [HOSTILE, UNPRINTABLE])
def test_no_value_becomes_markup(folder: Path, tmp_path: Path, text: str) -> None:
    reference = read(folder / "plt_gemma_reference.json")
    places = 0

    def filled(value: Any, *, keep: bool = False) -> Any:
        nonlocal places
        if keep:
            return value
        if isinstance(value, dict):
            return {key: filled(item, keep=key in ("$schema", "residual_generator", "residuals", "digest")) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, str):
            places += 1
            return f"{text}{places}."
        return value

    reference["environment"] |= {text: text}
    reference["layers"][1] |= {"repo": "", "revision": ""}
    reference["test_cases"][0]["flags"] = [""]
    reference |= {text: "", "unknown": ""}
    hostile = filled(reference)
    assert places > 30
    page = made_from(tmp_path, hostile, stripped(hostile))
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    found = {int(number) for number in re.findall(re.escape(shown) + r"(\d+)\.", page.text)}
    assert found == set(range(1, places + 1))
    assert shown in [text_of(cell) for cell in page.root.iter("th")]
    page = made_from(tmp_path, hostile)
    assert text_of(page.find("title")).endswith(shown + "1.") and text_of(page.find("h1")) == shown + "1."


# --- a candidate ----------------------------------------------------------------------------------------------------


def head_of(page: Page) -> tuple[str, str, str]:
    """The title, the first heading, and what stands above it."""
    header = page.find("header")
    return text_of(page.find("title")), text_of(page.find("h1")), text_of(header[0])


def folded(page: Page, text: str) -> ElementTree.Element:
    """The part of the page under the line that begins so, which is folded."""
    part = next(part for part in page.root.iter("details") if text_of(part[0]).startswith(text))
    assert "open" not in part.attrib
    return part


def test_a_candidate_that_agrees(recorded: dict[str, Any], tmp_path: Path) -> None:
    candidate = stripped(recorded)
    candidate["test_cases"][3]["top_10"][2]["activation"] += 3e-5
    page = made_from(tmp_path, recorded, candidate)
    names, headline = f"{tmp_path}/candidate.json against {tmp_path}/reference.json", "\u2713 All 9 cases agree"
    assert head_of(page) == (f"{headline}: candidate.json against reference.json", headline, names)
    assert "The candidate agrees" in page.text and "8 same, 1 rounding" in page.text
    assert "The cause" not in page.text and not list(page.root.iter("article"))[0].attrib["id"].startswith("values-")
    rows = page.rows(folded(page, "\u2713 9 cases agree 8 the same, 1 within rounding"))
    assert [row[0] for row in rows] == [f"layer {case['layer']} seed {case['seed']}" for case in recorded["test_cases"]]
    assert "values differ by up to 3e-05" in rows[3][2]


def test_every_difference_is_on_the_page(recorded: dict[str, Any], tmp_path: Path) -> None:
    candidate = stripped(recorded)
    cases = candidate["test_cases"]
    cases[0]["top_10"][4]["activation"] += 0.125
    cases[1]["top_10"][0], cases[1]["top_10"][1] = cases[1]["top_10"][1], cases[1]["top_10"][0]
    cases[2]["top_10"].pop(5)
    cases[3]["top_10"][9]["index"] = 9999
    cases[4]["n_active"] += 3
    del cases[8]
    cases.append({**cases[5], "seed": 777})
    page = made_from(tmp_path, recorded, candidate)
    comparison = oracle_compare(recorded, candidate)
    assert [case.status for case in comparison.cases] == ["differs"] * 5 + ["same"] * 3 + ["missing"]
    assert head_of(page)[:2] == ("\u2717 5 of 9 cases differ, 1 is missing: candidate.json against reference.json", "\u2717 5 of 9 cases differ, 1 is missing")
    assert "3 same, 5 differ, 1 missing" in page.text and "first layer 12 seed 777" in page.text

    def article(number: int) -> ElementTree.Element:
        case = recorded["test_cases"][number]
        return page.by_id(f"values-layer-{case['layer']}-seed-{case['seed']}")

    def feature(number: int, place: int) -> str:
        return str(recorded["test_cases"][number]["top_10"][place]["index"])

    def value(number: int, place: int) -> str:
        return f"{recorded['test_cases'][number]['top_10'][place]['activation']:#.9g}"

    # What differs, the reference's number and the candidate's beside it, and nothing that is right.
    off = recorded["test_cases"][0]["top_10"][4]["activation"] + 0.125
    assert page.rows(article(0)) == [[feature(0, 4), value(0, 4), f"{off:#.9g}", "+0.125", "0.0001"]]
    assert page.rows(article(1)) == [
        ["1", feature(1, 0), value(1, 0), feature(1, 1), value(1, 1)], ["2", feature(1, 1), value(1, 1), feature(1, 0), value(1, 0)],
    ]  # fmt: skip
    assert "stands before feature" in text_of(article(1)) and "Of the list 8 of 10 features are right." in text_of(article(1))
    assert page.rows(article(2)) == [["6", feature(2, 5), value(2, 5), "not listed", ""]]
    assert page.rows(article(3)) == [["10", feature(3, 9), value(3, 9), "9999", value(3, 9)]]
    assert "Feature 9999 does not exist" in text_of(article(3))
    n_active = recorded["test_cases"][4]["n_active"]
    assert page.rows(article(4)) == [["n_active", str(n_active), str(n_active + 3), "+3"]]
    assert not page.rows(article(8)) and "The candidate does not have this case" in text_of(article(8))
    faults = [[text_of(mark) for mark in article(number).iter("span") if mark.attrib.get("class") == "f"] for number in range(5)]
    assert faults == [[f"{off:#.9g}"], [feature(1, 1), feature(1, 0)], ["not listed"], ["9999"], [str(n_active + 3)]]
    cases[5]["residual_fingerprint"] = "<b>"
    page = made_from(tmp_path, recorded, candidate)
    assert page.rows(article(5)) == [["residual_fingerprint", recorded["test_cases"][5]["residual_fingerprint"], "<b>"]]
    assert "The generator, not the encoder, gives another residual." in text_of(article(5))
    del cases[5]["residual_fingerprint"]
    page = made_from(tmp_path, recorded, candidate)
    # Passes are a line, and so is the rest of the reference.
    assert [row[0] for row in page.rows(folded(page, "\u2713 3 cases agree 3 the same"))] == ["layer 12 seed 212", "layer 25 seed 25", "layer 25 seed 125"]
    assert page.by_id("layer-0-seed-0") in list(folded(page, "The features that fire most").iter())


def test_26_layers_all_wrong_stay_small(folder: Path, tmp_path: Path) -> None:
    reference = read(folder / "all.json")
    candidate = stripped(reference)
    for number, case in enumerate(candidate["test_cases"], start=1):
        for entry in case["top_10"]:
            entry["activation"] += 0.0123456 * number
    page = made_from(tmp_path, reference, candidate)
    assert len(page.source) < WHOLE_PAGE_LIMIT and head_of(page)[1] == "\u2717 78 of 78 cases differ"
    shown = [row for part in page.root.iter("article") if part.attrib["id"].startswith("values-") for row in page.rows(part)]
    assert len(shown) == sum(len(case["top_10"]) for case in candidate["test_cases"])


def test_the_cause(demo_folder: Path, recorded: dict[str, Any], tmp_path: Path) -> None:
    candidate = stripped(recorded)
    unexplained = made_from(tmp_path, recorded, {"test_cases": candidate["test_cases"][:8]})
    cause = next(part for part in unexplained.root.iter("section") if part.attrib["aria-labelledby"] == "cause")
    assert "It was not looked for" in text_of(cause)
    assert f"python -m oracle report {tmp_path}/reference.json {tmp_path}/candidate.json --explain" in text_of(cause)
    for case in candidate["test_cases"]:
        for entry in case["top_10"]:
            entry["index"] += -1 if case["layer"] == 25 else 1
    page = made_from(tmp_path, recorded, candidate, "--explain", "--offline", "--cache-dir", str(demo_folder / "hub"))
    cause = next(part for part in page.root.iter("section") if part.attrib["aria-labelledby"] == "cause")
    # Each cause has its cases, and a list of the mistakes that give their numbers.
    lists = [[text_of(name) for name in items.iter("strong")] for items in cause.iter("ul")]
    assert "6 of the 9 cases that differ, all of layers 0, 12, are those of" in text_of(cause) and "indices from 1" in lists[0]
    assert "2 of the 9 cases that differ, all of layer 25, are those of" in text_of(cause) and lists[1] == ["features shifted down"]


# --- the command ----------------------------------------------------------------------------------------------------


def test_exit_codes_and_the_old_page(folder: Path, recorded: dict[str, Any], tmp_path: Path) -> None:
    reference, output = str(folder / "plt_gemma_reference.json"), tmp_path / "report.html"
    ran = run("report", reference, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "") and "9 cases -> report.html" in ran.stderr
    before = output.read_bytes()

    candidate = tmp_path / "candidate.json"
    wrong = stripped(recorded)
    wrong["test_cases"][0]["n_active"] += 1
    candidate.write_text(json.dumps(wrong))
    ran = run("report", reference, str(candidate), "-o", str(tmp_path / "other.html"))
    assert ran.returncode == 0 and "the candidate DISAGREES" in ran.stderr
    ran = run("report", reference, "-", "-o", "-", "--quiet", input=json.dumps(stripped(recorded)))
    assert (ran.returncode, ran.stderr) == (0, "") and head_of(Page(ran.stdout))[2] == f"standard input against {reference}"

    for code, arguments, said in (
        (2, (reference, "--explain"), "name one after the reference"),
        (2, (reference, "-o", str(tmp_path)), "is a folder"),
        (2, (reference, "-o", str(tmp_path / "no" / "page.html")), "make it first"),
        (2, (str(tmp_path / "none.json"),), "cannot be read"),
        (4, (str(candidate),), "holds a port's answers, not a reference"),
        (2, (reference, str(output)), "report.html is read too"),
        (4, (reference, str(output), "-o", "-"), "not readable JSON"),
        (2, (), "REFERENCE"),
    ):
        ran = run("report", *arguments, cwd=tmp_path)
        assert ran.returncode == code and said in ran.stderr and "Traceback" not in ran.stderr
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == [
        "candidate.json", "other.html", "report.html",
    ]  # fmt: skip


def test_a_reference_that_contradicts_itself(recorded: dict[str, Any], tmp_path: Path) -> None:
    recorded["test_cases"][2].update(n_active_bounds=[0, 1], gate_ties=[7])
    (tmp_path / "reference.json").write_text(json.dumps(recorded))
    (tmp_path / "candidate.json").write_text(json.dumps(stripped(recorded)))
    for command in ("compare", "report"):
        ran = run(command, "reference.json", "candidate.json", cwd=tmp_path)
        assert ran.returncode == 4 and "layer 0 seed 200" in ran.stderr and "verify" in ran.stderr
    assert not (tmp_path / "report.html").exists()


def test_outputs_decoders_and_seeds_passed_over(tmp_path: Path) -> None:
    world = worlds.make("CltSplit", n_layers=3, n_features=500, threshold=False, skip=True)
    tree = world.lay_out(tmp_path / "tree")
    written = tmp_path / "reference.json"
    ran = run("--mirror", tree, *world.arguments, "--decode", "--robust", "--tolerance", "0.002", "-o", str(written))
    assert ran.returncode == 0, ran.stderr
    reference = read(written)
    page = made_from(tmp_path, reference)
    assert worlds.OWN_REPO in page.text and "no recorded repo" not in page.text
    outputs = [
        (case["seed"], made["target_layer"], made["norm"], made["sum"])
        for case in reference["test_cases"]
        for made in case["reconstructions"]
    ]
    tables = [page.rows(table) for table in page.root.iter("table")]
    shown = [(int(seed), int(target), float(norm), float(total)) for table in tables for seed, target, norm, total, _ in _of(table, 5, 3)]
    assert [row[:2] for row in shown] == [row[:2] for row in outputs] and len(outputs) == 18
    assert all(pytest.approx(ours[2:], rel=1e-8) == theirs[2:] for ours, theirs in zip(shown, outputs))
    passed = [(int(layer), int(seed), flags) for table in tables for layer, seed, flags, _, _ in _of(table, 5, None)]
    assert passed == [(one["layer"], one["seed"], ", ".join(one["flags"])) for one in reference["skipped_seeds"]] and passed
    for record in reference["layers"]:
        assert record["decoder_path"] in page.text and record["decoder_sha256"] in page.text
    # A wrong decoder is a difference that the page shows.
    candidate = json.loads(json.dumps(reference))
    candidate["test_cases"][4]["reconstructions"][1]["norm"] += 1.0
    page = made_from(tmp_path, reference, candidate)
    case, right = reference["test_cases"][4], reference["test_cases"][4]["reconstructions"][1]
    target = right["target_layer"]
    (row,) = page.rows(page.by_id(f"values-layer-{case['layer']}-seed-{case['seed']}"))
    assert row[:4] == [f"layer {target} norm", f"{right['norm']:#.9g}", f"{right['norm'] + 1.0:#.9g}", "+1"]
    for case in candidate["test_cases"][:3]:
        for made in case["reconstructions"]:
            made["norm"] += 1.0
        case["n_active"] += 100
    page = made_from(tmp_path, reference, candidate)
    for case in reference["test_cases"][:3]:
        rows = page.rows(page.by_id(f"values-layer-{case['layer']}-seed-{case['seed']}"))
        assert [row[0] for row in rows] == ["n_active", *(f"layer {output['target_layer']} norm" for output in case["reconstructions"])]


def _of(table: list[list[str]], columns: int, numbers: int | None) -> list[list[str]]:
    """The rows of a table of that many columns, of which the third is a number or is none."""
    return [row for row in table if len(row) == columns and ("-tie" in row[2]) == (numbers is None)]


def test_what_compare_passes_is_not_off(recorded: dict[str, Any], tmp_path: Path) -> None:
    """Large values may be off by the tolerance and a float32 step."""
    for case in recorded["test_cases"]:
        for entry in case["top_10"]:
            entry["activation"] = float(np.float32(entry["activation"] * 4000))
    candidate = stripped(recorded)
    for case in candidate["test_cases"]:
        for entry in case["top_10"]:
            entry["activation"] = float(np.nextafter(np.float32(entry["activation"]), np.float32(0)))
    page = made_from(tmp_path, recorded, candidate)
    assert "The candidate agrees" in page.text and not any(part.attrib["id"].startswith("values-") for part in page.root.iter("article"))
    candidate["test_cases"][0]["top_10"][0]["activation"] -= 1
    page = made_from(tmp_path, recorded, candidate)
    (shown,) = [page.rows(part) for part in page.root.iter("article") if part.attrib["id"].startswith("values-")]
    assert len(shown) == 1 and shown[0][3] == "-1"
