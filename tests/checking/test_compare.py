# SPDX-License-Identifier: MIT OR Apache-2.0
"""`compare`: the rules of rounding, bad candidates, the formats, and the port in Rust."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.checking.verdict import DIFFERS, ROUNDING, SAME
from oracle.references.document import Case
from oracle.vectors import demo
from oracle.weights.formats import FORMATS
from tests.support import rust
from tests.support.cases import a_case, blocks, compare_case
from tests.support.encodings import stripped
from tests.support.independent import exact_encode
from tests.support.places import shared
from tests.support.process import oracle, run


@pytest.fixture
def reference(demo_folder: Path) -> dict[str, Any]:
    return json.loads((demo_folder / "plt_gemma_reference.json").read_text())


def run_compare(demo_folder: Path, candidate: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = candidate if isinstance(candidate, (str, bytes)) else json.dumps(candidate)
    ran = run("compare", str(demo_folder / "plt_gemma_reference.json"), "-", *arguments, input=text)
    assert "Traceback" not in ran.stderr
    return ran


# --- the rules ----------------------------------------------------------------------------------------------------


def status(case: Case, answer: Case) -> str:
    return compare_case(case, answer).status


FOUR = [(7, 4.0), (3, 3.0), (9, 2.0), (1, 1.0)]


def test_the_same_and_within_the_tolerance() -> None:
    assert status(a_case(FOUR), a_case(FOUR)) == SAME
    assert status(a_case(FOUR), a_case([(7, 4.00009), *FOUR[1:]])) == ROUNDING
    verdict = compare_case(a_case(FOUR), a_case([FOUR[0], (3, 3.25), *FOUR[2:]]))
    assert verdict.status == DIFFERS and verdict.max_difference == 0.25 and verdict.feature == 3
    line, = verdict.lines
    assert line == "feature 3 is 3.25, not 3: off by 0.25; rounding allows 0.0001"


def test_n_active_within_its_bounds() -> None:
    case = a_case(FOUR, n_active_bounds=[49, 51], flags=["gate-tie"])
    assert [status(case, a_case(FOUR, n)) for n in (48, 49, 50, 51, 52)] == [DIFFERS, ROUNDING, SAME, ROUNDING, DIFFERS]


def test_order_is_asked_for_where_the_margins_decide_it() -> None:
    swapped = [FOUR[1], FOUR[0], *FOUR[2:]]
    assert status(a_case(FOUR), a_case(swapped)) == DIFFERS
    tied = [(7, 4.0), (3, 3.99985), *FOUR[2:]]
    assert status(a_case(tied, flags=["rank-tie"]), a_case([tied[1], tied[0], *tied[2:]])) == ROUNDING
    # a tie elsewhere excuses nothing here
    assert status(a_case(tied, flags=["rank-tie"]), a_case([*tied[:2], tied[3], tied[2]])) == DIFFERS


def test_the_end_of_the_list_is_open_where_it_ties() -> None:
    newcomer = [*FOUR[:3], (55, 0.9999)]
    assert status(a_case(FOUR, flags=["rank-tie"]), a_case(newcomer)) == ROUNDING
    assert status(a_case(FOUR), a_case(newcomer)) == DIFFERS
    assert status(a_case(FOUR, flags=["rank-tie"]), a_case([*FOUR[:3], (55, 0.9)])) == DIFFERS
    assert status(a_case(FOUR, flags=["rank-tie"]), a_case([*FOUR[:3], (55, 1.5)])) == DIFFERS


def test_a_feature_at_its_gate_may_come_and_go_anywhere() -> None:
    case = a_case(FOUR, n_active_bounds=[49, 51], gate_ties=[3, 60], flags=["gate-tie"])
    came, went = [(7, 4.0), (60, 3.5), (3, 3.0), (9, 2.0)], [(7, 4.0), (9, 2.0), (1, 1.0), (55, 0.4)]
    assert status(case, a_case(came, 51)) == status(case, a_case(went, 49)) == ROUNDING
    assert status(case, a_case([(7, 4.0), (60, 3.5), (9, 2.0), (1, 1.0)], 50)) == ROUNDING
    short = a_case(FOUR[:2], 2, n_active_bounds=[2, 3], gate_ties=[60], flags=["gate-tie"])
    assert status(short, a_case([*FOUR[:2], (60, 0.1)], 3)) == ROUNDING
    assert status(short, a_case(FOUR[:1], 1)) == DIFFERS
    # but no other does: not the first on the list, nor one that never fires, nor two where one may
    for wrong, n_active in (
        ([FOUR[1], FOUR[2], FOUR[3], (55, 0.4)], 49),
        ([(61, 4.5), *FOUR[:3]], 51),
        ([(60, 4.5), (61, 4.4), (7, 4.0), (3, 3.0)], 51),
        ([(7, 4.0), (60, 3.5), (9, 2.0), (55, 0.4)], 50),
    ):
        assert status(case, a_case(wrong, n_active)) == DIFFERS, wrong
    assert status(short, a_case([*FOUR[:2], (61, 0.1)], 3)) == DIFFERS
    # and none where the reference does not say which they are
    case = replace(case, gate_ties=None)
    assert status(case, a_case(came, 51)) == status(case, a_case(went, 49)) == DIFFERS
    assert status(case, a_case(FOUR, 49)) == ROUNDING


def test_what_float32_cannot_hold_is_no_difference() -> None:
    first, second = np.float32(47.0), np.nextafter(np.float32(47.0), np.float32(99))  # 3.8e-6 apart
    case = a_case([(7, float(second)), *FOUR[1:]])
    verdicts = [
        compare_case(case, a_case([(7, float(value)), *FOUR[1:]]), tolerance=1e-6).status
        for value in (first, first - np.float32(1e-5))
    ]
    assert verdicts == [ROUNDING, DIFFERS]


def test_short_lists_padding_and_wrong_lengths() -> None:
    short = a_case(FOUR[:2], 2)
    assert status(short, a_case([*FOUR[:2], (0, 0.0), (2, 0.0)], 2)) == SAME
    assert status(short, a_case(FOUR[:1], 2)) == DIFFERS
    assert status(a_case(FOUR), a_case(FOUR[:3])) == DIFFERS
    assert status(a_case([], 0), a_case([], 0)) == SAME


@settings(deadline=None, max_examples=400)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 3, 4, 6]),
    st.sampled_from([1, 3, 10]),
    st.sampled_from([(1, 1e-4), (47, 1e-6)]),
)
def test_what_the_tolerance_allows_passes(seed: int, k: int, grain: int, scale: tuple[int, float]) -> None:
    """Values, gates and gaps on a grid as fine as the tolerance: everything ties. Nudged within it, nothing may fail,
    also where float32, in which the port ranks its values, is coarser than the grid."""
    base, tolerance = scale
    rng = np.random.default_rng(seed)
    n = 8
    steps = (rng.integers(-3, 8, n) * grain * tolerance).astype(np.float32)
    gate = (rng.integers(-3, 8, n) * grain * tolerance + base).astype(np.float32)
    bases = np.full(n, base, np.float32)
    exact = exact_encode(steps[None], bases, gate, np.ones(1, np.float32), k, tolerance)
    margins = {key: exact[key] for key in ("n_active_bounds", "rank_margin", "gate_ties", "flags")} | exact["sums"]
    case = a_case(exact["top"], exact["n_active"], **margins)
    for _ in range(8):
        # a little under the tolerance, so that float64 does not carry it over
        pre = steps.astype(np.float64) + base + rng.choice([-0.99, 0.0, 0.99], n) * tolerance
        nudged = pre.astype(np.float32)
        active = sorted((j for j in range(n) if pre[j] > gate[j]), key=lambda j: (-nudged[j], j))
        values = [float(nudged[j]) for j in active]
        sums = {"activation_sum": sum(values), "activation_sum_of_squares": sum(value * value for value in values)}
        answer = a_case(list(zip(active, values))[:k], len(active), **sums)
        verdict = compare_case(case, answer, n, k, tolerance)
        assert verdict.agrees, (verdict, case, answer)


def test_sums_are_held_to_their_tolerances() -> None:
    case = a_case(FOUR, activation_sum=10.0, activation_sum_tolerance=0.25, activation_sum_of_squares=30.0, activation_sum_of_squares_tolerance=0.5)
    for name, right, off in (("activation_sum", 10.0, 0.25), ("activation_sum_of_squares", 30.0, 0.5)):
        for value, agrees in ((right, True), (right + off, True), (right - off, True), (right + off + 1e-9, False), (right - off - 1e-9, False), (math.nan, False)):
            verdict = compare_case(case, a_case(FOUR, **{name: value}))
            assert verdict.agrees is agrees and (agrees or verdict.lines[0].startswith(f"{name} is ")), (name, value)
        # who has none is held to none, and so is who is held against a reference that has none
        assert status(a_case(FOUR), a_case(FOUR, **{name: 5.0})) == status(case, a_case(FOUR)) == SAME


# --- candidates, good and bad -------------------------------------------------------------------------------------


def test_a_reference_agrees_with_itself(demo_folder: Path, reference: dict[str, Any]) -> None:
    ran = run_compare(demo_folder, stripped(reference))
    assert ran.returncode == 0 and "9 cases: 9 same" in ran.stdout and "the candidate agrees" in ran.stdout
    for name in ("plt_gemma_reference.json", "plt_llama_reference.json"):
        torch = str(shared(f"data/{name}"))
        assert run("compare", torch, torch).returncode == 0


def test_missing_and_extra_cases(demo_folder: Path, reference: dict[str, Any]) -> None:
    candidate = stripped(reference)
    del candidate["test_cases"][4]
    ran = run_compare(demo_folder, candidate)
    assert ran.returncode == 1 and "layer 12 seed 112: missing" in ran.stdout
    candidate = stripped(reference)
    candidate["test_cases"].append({"layer": 3, "seed": 5, "n_active": 0, "top_10": []})
    ran = run_compare(demo_folder, candidate)
    assert ran.returncode == 0 and "1 case that the reference does not have was not compared" in ran.stdout


def test_values_order_and_indices(demo_folder: Path, reference: dict[str, Any]) -> None:
    candidate = stripped(reference)
    top = candidate["test_cases"][0]["top_10"]
    top[3]["activation"] += 0.5
    candidate["test_cases"][1]["top_10"].reverse()
    candidate["test_cases"][2]["top_10"][0]["index"] = 512
    candidate["test_cases"][3]["top_10"][0]["index"] = -1
    candidate["test_cases"][5]["top_10"][1]["index"] = candidate["test_cases"][5]["top_10"][0]["index"]
    candidate["test_cases"][6]["top_10"][0]["index"] = 2**63
    ran = run_compare(demo_folder, candidate)
    said = blocks(ran.stdout)
    wrong = [reference["test_cases"][number] for number in (0, 1, 2, 3, 5, 6)]
    assert ran.returncode == 1 and "9 cases: 3 same, 6 differ" in ran.stdout
    assert list(said) == [f"layer {case['layer']} seed {case['seed']}" for case in wrong]
    first, second, third, fourth, fifth, sixth = said.values()
    assert first.endswith(f"feature {top[3]['index']} {top[3]['activation'] - 0.5:.9g} {top[3]['activation']:.9g} 0.5 0.0001")
    assert "stands before" in second and "feature 512 does not exist: there are 512" in third
    assert "feature -1 does not exist" in fourth and "is on the list twice" in fifth and f"feature {2**63} does not exist" in sixth
    # --explain has an answer for them too
    assert run_compare(demo_folder, candidate, "--explain", "--offline", "--cache-dir", str(demo_folder / "hub")).returncode == 1


CASE = '{"layer": 0, "seed": 0, "n_active": 1, "top_10": []}'
BAD = {
    "nothing": ("", "not readable JSON"),
    "not JSON": ("n_active: 3", "not readable JSON"),
    "cut off": ('{"test_cases": [{"layer": 0, "se', "not readable JSON"),
    "not UTF-8": (b"\xff\xfe\x00{", "not readable JSON"),
    "nested": ("[" * 100_000, "not readable JSON"),
    "a list": ("[]", "holds a list"),
    "a number": ("3", "holds 3"),
    "no cases": ("{}", "test_cases is missing"),
    "empty": ('{"test_cases": []}', "test_cases is empty"),
    "cases an object": ('{"test_cases": {}}', "test_cases is an object"),
    "case a text": ('{"test_cases": ["x"]}', "test_cases[0] is 'x'"),
    "layer a text": (
        '{"test_cases": [{"layer": "0", "seed": 0, "n_active": 1, "top_10": []}]}',
        "test_cases[0].layer is '0'",
    ),
    "seed true": ('{"test_cases": [{"layer": 0, "seed": true, "n_active": 1, "top_10": []}]}', "test_cases[0].seed is True"),
    "seed a fraction": ('{"test_cases": [{"layer": 0, "seed": 0.5, "n_active": 1, "top_10": []}]}', "seed is 0.5"),
    "seed too large": (
        '{"test_cases": [{"layer": 0, "seed": 18446744073709551616, "n_active": 1, "top_10": []}]}',
        "seed is 1844",
    ),
    "n_active negative": ('{"test_cases": [{"layer": 0, "seed": 0, "n_active": -1, "top_10": []}]}', "n_active is -1"),
    "no list": ('{"test_cases": [{"layer": 0, "seed": 0, "n_active": 1, "top_5": []}]}', "print them as top_10"),
    "entry a pair": (
        '{"test_cases": [{"layer": 0, "seed": 0, "n_active": 1, "top_10": [[1, 2.0]]}]}',
        "top_10[0] is a list",
    ),
    "NaN": (CASE.join(['{"test_cases": [', ', {"layer": NaN}]}']), "NaN is no number"),
    "infinite": (
        '{"test_cases": [{"layer": 0, "seed": 0, "n_active": 1, "top_10": [{"index": 1, "activation": 1e999}]}]}',
        "activation is inf",
    ),
    "activation null": (
        '{"test_cases": [{"layer": 0, "seed": 0, "n_active": 1, "top_10": [{"index": 1, "activation": null}]}]}',
        "activation is nothing",
    ),
    "digits": ('{"test_cases": [{"layer": ' + "9" * 10_000 + "}]}", "not readable JSON"),
    "twice the key": ('{"test_cases": [], "test_cases": []}', "stands twice"),
    "twice the case": (f'{{"test_cases": [{CASE}, {CASE}]}}', "layer 0 seed 0, which is there already"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_candidates(demo_folder: Path, name: str) -> None:
    text, message = BAD[name]
    ran = run_compare(demo_folder, text)
    assert ran.returncode == 4 and message in ran.stderr and ran.stderr.startswith("error: ")
    assert len(ran.stderr.splitlines()) == 1 and len(ran.stderr) < 600


@pytest.mark.slow
@pytest.mark.parametrize("count", [10**5, 10**6])
def test_many_cases(count: int, demo_folder: Path, tmp_path: Path) -> None:
    """A hundred thousand are compared; a million would take more memory than a candidate may."""
    path = tmp_path / "many.json"
    with path.open("w") as file:
        file.write('{"test_cases": [')
        file.writelines(f'{{"layer":0,"seed":{seed},"n_active":0,"top_10":[]}},' for seed in range(count))
        file.write('{"layer":1,"seed":0,"n_active":0,"top_10":[]}]}')
    ran = run("compare", str(demo_folder / "plt_gemma_reference.json"), str(path))
    if count == 10**5:
        assert ran.returncode == 1 and "cases that the reference does not have" in ran.stdout and len(ran.stdout) < 10_000
    else:
        assert ran.returncode == 4 and "many.json is not readable JSON: it would take more than 140 MiB of memory" in ran.stderr


def test_files_that_cannot_be_read(demo_folder: Path, tmp_path: Path) -> None:
    reference = str(demo_folder / "plt_gemma_reference.json")
    for path in (str(tmp_path), str(tmp_path / "none.json")):
        ran = run("compare", reference, path)
        assert ran.returncode == 2 and "cannot be read" in ran.stderr and "Traceback" not in ran.stderr
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(257 << 20)
    ran = run("compare", reference, str(large))
    assert ran.returncode == 4 and "larger than 256 MiB" in ran.stderr


def test_standard_input(demo_folder: Path, reference: dict[str, Any]) -> None:
    ran = oracle("compare", str(demo_folder / "plt_gemma_reference.json"), "-", input=json.dumps(stripped(reference)))
    assert ran.returncode == 0 and "9 cases: 9 same" in ran.stdout


# --- formats ------------------------------------------------------------------------------------------------------


def test_json_and_junit(demo_folder: Path, reference: dict[str, Any]) -> None:
    candidate = stripped(reference)
    candidate["test_cases"][2]["n_active"] += 40
    ran = run_compare(demo_folder, candidate, "--format", "json")
    made = json.loads(ran.stdout)
    assert ran.returncode == 1 and ran.stderr == "" and made["agrees"] is False
    assert [case["status"] for case in made["test_cases"]].count("differs") == 1
    right, wrong = (document["test_cases"][2]["n_active"] for document in (reference, candidate))
    problem, = made["test_cases"][2]["problems"]
    assert {key: problem.get(key) for key in ("subject", "expected", "answer", "difference")} == {
        "subject": "n_active", "expected": right, "answer": wrong, "difference": 40,
    }  # fmt: skip
    ran = run_compare(demo_folder, candidate, "--format", "junit")
    suite = ElementTree.fromstring(ran.stdout)
    assert (
        ran.returncode == 1 and suite.tag == "testsuite" and suite.attrib["tests"] == "9" and suite.attrib["failures"] == "1"
    )
    assert [test.attrib["name"] for test in suite.iter("testcase") if test.find("failure") is not None] == ["seed_200"]
    assert run_compare(demo_folder, stripped(reference), "--format", "junit").returncode == 0
    quiet = run_compare(demo_folder, candidate, "--quiet")
    assert quiet.returncode == 1 and quiet.stdout == quiet.stderr == ""


def test_explain_in_every_format(demo_folder: Path, reference: dict[str, Any]) -> None:
    candidate = stripped(reference)
    for case in candidate["test_cases"]:
        for entry in case["top_10"]:
            entry["index"] = 511 - entry["index"]
    source = ("--explain", "--offline", "--cache-dir", str(demo_folder / "hub"))
    assert "features reversed: " in run_compare(demo_folder, candidate, *source).stdout
    explained = json.loads(run_compare(demo_folder, candidate, *source, "--format", "json").stdout)["explanation"]
    assert [row["name"] for row in explained["named"]] == ["features reversed"] and explained["named"][0][
        "cases_matched"
    ] == 9
    suite = ElementTree.fromstring(run_compare(demo_folder, candidate, *source, "--format", "junit").stdout)
    assert "features reversed" in str(suite.findtext("system-out"))
    # a right candidate is not explained, and takes no weights
    agreed = run_compare(demo_folder, stripped(reference), "--explain", "--offline", "--cache-dir", "/nowhere")
    assert agreed.returncode == 0 and "numbers are those" not in agreed.stdout
    # without weights there is no explanation, and the comparison stands
    assert run_compare(demo_folder, candidate, "--explain", "--offline", "--cache-dir", "/nowhere").returncode == 1


def test_other_weights_explain_nothing(demo_folder: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    shutil.copytree(demo_folder / "hub", cache, symlinks=True)
    target = next(cache.glob("models--*/snapshots/*/layer_12/*/*/params.npz"))
    content = next(iter(demo.layer_files(FORMATS[0], 99).values()))
    target.unlink()
    target.write_bytes(content)
    candidate = stripped(reference)
    candidate["test_cases"][3]["n_active"] += 40
    ran = run_compare(demo_folder, candidate, "--explain", "--offline", "--cache-dir", str(cache))
    assert ran.returncode == 4 and "its sha256 differs" in ran.stderr


def with_sums(reference: dict[str, Any], *names: str) -> dict[str, Any]:
    """The reference's answers, with some of what a candidate need not have."""
    candidate = stripped(reference)
    for own, case in zip(candidate["test_cases"], reference["test_cases"]):
        own |= {name: case[name] for name in names}
    return candidate


def test_what_is_wrong_below_the_list_shows_in_the_sums(demo_folder: Path, reference: dict[str, Any]) -> None:
    """Halved weak activations, the weakest feature taken for another of half its strength: neither list nor count can tell."""
    names = ("activation_sum", "activation_sum_of_squares")
    assert run_compare(demo_folder, with_sums(reference, *names)).returncode == 0
    for name in names:
        candidate = with_sums(reference, name)
        case = candidate["test_cases"][4]
        weak = case[name] - sum(entry["activation"] ** (1 + ("squares" in name)) for entry in case["top_10"])
        case[name] -= weak / 2
        ran = run_compare(demo_folder, candidate)
        (said,) = blocks(ran.stdout).values()
        assert ran.returncode == 1 and f" {name} {reference['test_cases'][4][name]:.9g} {case[name]:.9g} " in said, ran.stdout
        assert re.search(r" 0\.0\d+$", said) and "8 same, 1 differs" in ran.stdout
        candidate = with_sums(reference, *names)
        candidate["test_cases"][4][name] -= 1.5  # as much as a feature at its threshold
        assert run_compare(demo_folder, candidate).returncode == 1


def test_a_wrong_fingerprint_is_the_generator_s(demo_folder: Path, reference: dict[str, Any]) -> None:
    candidate = with_sums(reference, "residual_fingerprint")
    for case in candidate["test_cases"]:
        case["residual_fingerprint"] = "0x" + case["residual_fingerprint"][2:].upper()
    assert run_compare(demo_folder, candidate).returncode == 0
    candidate["test_cases"][3] |= {"residual_fingerprint": "0x" + "1" * 16, "n_active": 400}
    ran = run_compare(demo_folder, candidate)
    right = reference["test_cases"][3]["residual_fingerprint"]
    said = blocks(ran.stdout)["layer 12 seed 12"]
    assert ran.returncode == 1 and f"residual_fingerprint {right} 0x{'1' * 16} the generator, not the encoder, " in said, ran.stdout
    assert f"n_active {reference['test_cases'][3]['n_active']} 400" in said


@pytest.mark.parametrize("name", ["activation_sum", "activation_sum_of_squares", "residual_fingerprint"])
def test_right_lists_are_not_explained_by_what_stands_beside_them(demo_folder: Path, reference: dict[str, Any], name: str) -> None:
    candidate = with_sums(reference, name)
    for case in candidate["test_cases"]:
        case[name] = "0x" + "0" * 16 if name == "residual_fingerprint" else case[name] / 2
    ran = run_compare(demo_folder, candidate, "--explain", "--offline", "--cache-dir", str(demo_folder / "hub"))
    assert ran.returncode == 1 and "the lists agree, and no mistake is tried of what stands beside them" in ran.stdout, ran.stderr
    # and what is wrong of the lists is named all the same
    for case in candidate["test_cases"]:
        for entry in case["top_10"]:
            entry["index"] = 511 - entry["index"]
    assert "features reversed: " in run_compare(demo_folder, candidate, "--explain", "--offline", "--cache-dir", str(demo_folder / "hub")).stdout


@pytest.mark.parametrize("name", ["activation_sum", "activation_sum_of_squares", "residual_fingerprint"])
@pytest.mark.parametrize("value", ["1e999", "NaN", "null", "[]", '{}', "true"])
def test_what_is_no_sum_or_no_fingerprint(demo_folder: Path, reference: dict[str, Any], name: str, value: str) -> None:
    candidate = with_sums(reference, name)
    candidate["test_cases"][4][name] = "VALUE"
    ran = run_compare(demo_folder, json.dumps(candidate).replace('"VALUE"', value))
    assert ran.returncode == 4 and (value == "NaN" or f"test_cases[4].{name} is " in ran.stderr), ran.stderr


# --- a port in Rust -----------------------------------------------------------------------------------------------

RUST_MISTAKES = {
    "relu": "relu",
    "no_b_enc": "b_enc left out",
    "b_dec_subtracted": "b_dec subtracted",
    "reshaped": "W_enc reshaped",
    "bf16_weights": "weights in bfloat16",
    "index_from_one": "indices from 1",
}


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rust.consumer(tmp_path_factory.mktemp("consumer"))


def test_a_port_in_rust_agrees(consumer: Path, demo_folder: Path, tmp_path: Path) -> None:
    reference, answers = demo_folder / "plt_gemma_reference.json", tmp_path / "rust.json"
    subprocess.run([consumer, reference, demo_folder / "hub", answers], check=True)
    ran = run("compare", str(reference), str(answers))
    assert ran.returncode == 0 and "the candidate agrees" in ran.stdout
    sums = {"activation_sum", "activation_sum_of_squares", "residual_fingerprint"}
    assert set(json.loads(answers.read_text())["test_cases"][0]) == {"layer", "seed", "n_active", "top_10", *sums}


@pytest.mark.parametrize("mistake", RUST_MISTAKES)
def test_its_mistakes_are_named(consumer: Path, demo_folder: Path, tmp_path: Path, mistake: str) -> None:
    reference, answers = demo_folder / "plt_gemma_reference.json", tmp_path / "rust.json"
    subprocess.run([consumer, reference, demo_folder / "hub", answers], check=True, env={**os.environ, "MISTAKE": mistake})
    source = ("--offline", "--cache-dir", str(demo_folder / "hub"))
    ran = run("compare", str(reference), str(answers), "--explain", "--format", "json", *source)
    assert ran.returncode == 1, ran.stderr
    explained = json.loads(ran.stdout)["explanation"]
    assert RUST_MISTAKES[mistake] in [row["name"] for row in explained["named"]]
    assert all(row["cases_matched"] == 9 and row["largest_difference_left"] < 1e-5 for row in explained["named"])
