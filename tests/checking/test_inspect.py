# SPDX-License-Identifier: MIT OR Apache-2.0
"""`inspect`: one feature of one case, held against fractions, against the reference, and against a port in Rust."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.arithmetic.residual import first_pairs, residual
from oracle.vectors import demo
from oracle.weights.formats import FORMATS
from tests.support import rust, worlds
from tests.support.encodings import error, parsed, read, stripped
from tests.support.independent import nearest_float32
from tests.support.process import oracle, run

REFERENCE = "plt_gemma_reference.json"


def inspect(folder: Path, layer: int, seed: int, feature: int, *more: str, door: Any = run) -> subprocess.CompletedProcess[str]:
    arguments = ("--layer", str(layer), "--seed", str(seed), "--feature", str(feature), *more)
    ran: subprocess.CompletedProcess[str] = door("inspect", str(folder / REFERENCE), "--offline", "--cache-dir", str(folder / "hub"), *arguments)
    assert "Traceback" not in ran.stderr
    return ran


def weights_of(folder: Path, layer: int) -> dict[str, np.ndarray]:
    path, = (folder / "hub").glob(f"models--*/snapshots/*/layer_{layer}/*/*/params.npz")
    return dict(np.load(path))


def floats(number: dict[str, Any]) -> float:
    """A number of the JSON, whose bits are its own."""
    kind = ">f" if len(number["bits"]) == 8 else ">d"
    assert struct.pack(kind, number["value"]).hex() == number["bits"]
    return float(number["value"])


@pytest.mark.parametrize("feature", [0, 7, 300, 511])
@pytest.mark.parametrize("layer, seed", [(0, 200), (12, 112)])
def test_every_step_is_right(demo_folder: Path, layer: int, seed: int, feature: int) -> None:
    weights, values = weights_of(demo_folder, layer), residual(seed, layer, 64)
    steps = parsed(inspect(demo_folder, layer, seed, feature, "--format", "json"))
    column, b_enc, threshold = weights["W_enc"][:, feature], weights["b_enc"][feature], weights["threshold"][feature]
    assert [(floats(line["residual"]), floats(line["W_enc"])) for line in steps["inputs"]] == list(zip(values[:8].tolist(), column[:8].tolist()))
    assert [line["inputs"] for line in steps["partial_sums"]] == [1, 2, 4, 8, 16, 32, 64]
    in_order, exact, count = np.float32(0), Fraction(0), 0
    for line in steps["partial_sums"]:
        for place in range(count, line["inputs"]):
            in_order = np.float32(in_order + np.float32(values[place] * column[place]))
            exact += Fraction(float(values[place])) * Fraction(float(column[place]))
        count = line["inputs"]
        assert floats(line["float32"]) == in_order
        assert floats(line["exact_float32"]) == nearest_float32(exact) and floats(line["exact_float64"]) == float(exact)
    pre = exact + Fraction(float(b_enc))
    assert floats(steps["steps"]["product"]["exact_float64"]) == float(exact) and floats(steps["steps"]["b_enc"]["float32"]) == b_enc
    assert floats(steps["steps"]["pre"]["float32"]) == np.float32(in_order + b_enc)
    assert floats(steps["steps"]["pre"]["exact_float32"]) == nearest_float32(pre)
    gate, = steps["gate"]
    assert floats(gate["level"]) == max(threshold, 0) and gate["distance"] == float(pre - Fraction(max(float(threshold), 0.0)))
    fires = pre > Fraction(max(float(threshold), 0.0))
    assert steps["fires"] is gate["holds"] is fires and floats(steps["activation"]) == (nearest_float32(pre) if fires else 0)
    assert steps["generator"] is None and steps["candidate"] is None and steps["encoder_input"] is None


def test_ranks_and_activations_are_the_reference_s(demo_folder: Path) -> None:
    case = read(demo_folder / REFERENCE)["test_cases"][4]
    for place, top in enumerate(case["top_10"], 1):
        steps = parsed(inspect(demo_folder, 12, 112, top["index"], "--format", "json"))
        assert (steps["rank"], steps["activation"]["value"], steps["n_active"]) == (place, top["activation"], case["n_active"])
        assert steps["residual_fingerprint"] == case["residual_fingerprint"]


def test_ranks_go_on_below_the_list(tmp_path: Path) -> None:
    """By both orientations of W_enc."""
    for schema in ("Sae", "PltBundle"):
        world = worlds.make(schema, n_layers=1, n_features=48)
        tree, place = world.lay_out(tmp_path / schema), tmp_path / f"{schema}.json"
        assert run("--mirror", tree, *world.arguments, "--seeds", "1", "-o", str(place)).returncode == 0
        seen = {}
        for feature in range(48):
            ran = run("inspect", str(place), "--mirror", tree, "--layer", "0", "--seed", "0", "--feature", str(feature), "--format", "json")
            steps = parsed(ran)
            if steps["fires"]:
                seen[steps["rank"]] = feature, steps["activation"]["value"]
        case = read(place)["test_cases"][0]
        assert sorted(seen) == list(range(1, case["n_active"] + 1))
        ranked = [seen[rank] for rank in sorted(seen)]
        assert ranked == sorted(ranked, key=lambda entry: (-entry[1], entry[0]))
        assert [index for index, _ in ranked[:10]] == [top["index"] for top in case["top_10"]]


# One for each input and gate of the demos; the slow tests have all.
IN_DEFAULT = ("GemmaScopeNpz", "GemmaScope2Crosscoder", "SaeLens", "LlamaScope")


@pytest.fixture(scope="module", params=[row.name if row.name in IN_DEFAULT else pytest.param(row.name, marks=pytest.mark.slow) for row in FORMATS])
def demo_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("formats")
    assert run("demo", "--schema", request.param, "--folder", str(folder), "--quiet").returncode == 0
    path, = folder.glob("*_reference.json")
    yield path, read(path)


def test_every_format_and_gate(demo_of: tuple[Path, dict[str, Any]]) -> None:
    """What fires is as the reference has it, and of what does not the gate says why."""
    path, reference = demo_of
    case = reference["test_cases"][1]
    arguments = ("inspect", str(path), "--offline", "--cache-dir", str(path.parent / "hub"), "--layer", str(case["layer"]), "--seed", str(case["seed"]))
    for place, top in enumerate(case["top_10"][:3], 1):
        steps = parsed(run(*arguments, "--feature", str(top["index"]), "--format", "json"))
        assert steps["fires"] and steps["rank"] == place and floats(steps["activation"]) == top["activation"]
        assert all(step["holds"] and step["distance"] > 0 for step in steps["gate"])
        assert steps["encoder_input_fingerprint"] == case.get("encoder_input_fingerprint")
        assert all(("encoder_input" in line) is (steps["encoder_input"] is not None) for line in steps["inputs"])
    firing = {top["index"] for top in case["top_10"]}
    quiet = 0
    for feature in (feature for feature in range(24) if feature not in firing):
        steps = parsed(run(*arguments, "--feature", str(feature), "--format", "json"))
        if not steps["fires"]:
            quiet += 1
            assert steps["rank"] is None and floats(steps["activation"]) == 0 and not all(step["holds"] for step in steps["gate"])
    assert quiet
    assert run(*arguments, "--feature", "0").stdout.splitlines()[-1].startswith(("activation", "rank"))


def test_the_generator_s_steps() -> None:
    """Together they are the residual, for seeds whose first pair is dropped too."""
    for seed in range(40):
        for length in (1, 2, 7, 8):
            pairs = first_pairs(seed, 3, length)
            kept = [value for pair in pairs for value in pair.values or ()]
            assert kept[:length] == residual(seed, 3, length).tolist() and len(kept) in (length, length + 1)
            assert all((pair.values is None) is (pair.s >= 1) is (pair.f is None) is (pair.ln_s is None) for pair in pairs)
    assert [f"{x:08x}" for pair in first_pairs(42, 54, 6) for x in pair.x][:6] == ["a15c02b7", "7b47f409", "ba1d3330", "83d2f293", "bfa4784b", "cbed606e"]


def standing(folder: Path, candidate: Any, feature: int, tmp_path: Path) -> list[str]:
    (tmp_path / "candidate.json").write_text(json.dumps(candidate))
    ran = inspect(folder, 12, 112, feature, "--candidate", str(tmp_path / "candidate.json"))
    lines = ran.stdout.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("candidate: ")) :]


def test_where_a_candidate_s_number_stands(demo_folder: Path, tmp_path: Path) -> None:
    reference = read(demo_folder / REFERENCE)
    top = reference["test_cases"][4]["top_10"]
    feature, right = top[3]["index"], top[3]["activation"]
    weights, values = weights_of(demo_folder, 12), residual(112, 12, 64)
    lines = standing(demo_folder, stripped(reference), feature, tmp_path)
    assert lines[0] == "candidate: the feature is at place 4 of its list" and lines[2] == "off by      0, within the tolerance of 0.0001"
    assert lines[3] == "equal to    the exact pre-activation, rounded once"
    sums = np.add.accumulate(values * weights["W_enc"][:, feature], dtype=np.float32)
    for number, said in (
        (sums[-1], "float32 sum of all 64 inputs"),
        (sums[-2] + weights["b_enc"][feature], "float32 sum of the first 63 of 64 inputs, with b_enc"),
        (sums[31], "float32 sum of the first 32 of 64 inputs"),
        (np.float32(right - float(weights["threshold"][feature])), "the exact distance from its gate"),
    ):
        candidate = stripped(reference)
        candidate["test_cases"][4]["top_10"][3]["activation"] = float(number)
        lines = standing(demo_folder, candidate, feature, tmp_path)
        assert f"off by      {abs(float(number) - right):.3g}, beyond the tolerance of 0.0001" in lines and f"equal to    {said}" in lines, lines
    candidate = stripped(reference)
    candidate["test_cases"][4]["top_10"][3]["activation"] = 77.25
    assert standing(demo_folder, candidate, feature, tmp_path)[-1] == "equal to    no sum of the first products"
    del candidate["test_cases"][4]["top_10"][3]
    assert standing(demo_folder, candidate, feature, tmp_path) == ["candidate: the feature is not on its list of 9: it should be, at place 4"]
    quiet = next(j for j in range(512) if j not in {entry["index"] for entry in top})
    assert standing(demo_folder, candidate, quiet, tmp_path) == ["candidate: the feature is not on its list of 9: as is right"]
    del candidate["test_cases"][4]
    assert standing(demo_folder, candidate, feature, tmp_path) == ["candidate: it does not have this case"]


def test_what_there_is_not(demo_folder: Path, tmp_path: Path) -> None:
    said = error(inspect(demo_folder, 3, 5, 0), 2)
    assert "the reference has no case of layer 3 seed 5; it has layer 0 seed 0, layer 0 seed 100, " in said and said.endswith(", ...")
    assert "--feature 512: the reference has the features 0 to 511" in error(inspect(demo_folder, 0, 0, 512), 2)
    assert "--layer" in run("inspect", str(demo_folder / REFERENCE)).stderr
    reference = read(demo_folder / REFERENCE)
    reference["layers"][1]["sha256"] = "0" * 64
    (tmp_path / REFERENCE).write_text(json.dumps(reference))
    (tmp_path / "hub").symlink_to(demo_folder / "hub")
    assert "is not the file that the reference was made from: its sha256 differs" in error(inspect(tmp_path, 12, 12, 0))
    assert inspect(tmp_path, 0, 0, 0).returncode == 0  # the other layers' files have no part in it
    assert error(inspect(tmp_path, 0, 0, 0, "--cache-dir", "/nowhere"), 3)


def test_a_reference_that_torch_wrote(demo_folder: Path, tmp_path: Path) -> None:
    """From the residual on record; the generator had no part in it."""
    reference = read(demo_folder / REFERENCE)
    keys = ("layer", "seed", "n_active", "top_10", "residual")
    torch = {key: reference[key] for key in ("weights_repo", "curation_repo", "schema", "d_model", "n_features_per_layer")}
    torch["test_cases"] = [{key: case[key] for key in keys} for case in reference["test_cases"]]
    (tmp_path / REFERENCE).write_text(json.dumps(torch))
    (tmp_path / "hub").symlink_to(demo_folder / "hub")
    same = [json.loads(inspect(folder, 12, 112, 9, "--format", "json").stdout) for folder in (tmp_path, demo_folder)]
    assert {**same[0], "encoder_formula": None} == {**same[1], "encoder_formula": None}
    assert "the generator has no part in them" in error(inspect(tmp_path, 12, 112, 9, "--residual"), 2)


def test_the_lines_are_those_of_a_port_in_rust(demo_folder: Path, tmp_path: Path) -> None:
    """Every line that the port prints is one of ours, or the beginning of one, in the same order; of ours it leaves out headings and what is exact."""
    consumer = rust.consumer(tmp_path)
    for layer, seed, feature in ((0, 0, 0), (12, 112, 9), (25, 225, 511)):
        numbers = [str(number) for number in (layer, seed, feature)]
        port = subprocess.run([consumer, demo_folder / REFERENCE, demo_folder / "hub", *numbers], check=True, capture_output=True, text=True)
        lines = inspect(demo_folder, layer, seed, feature, "--residual").stdout.splitlines()
        ours, left_out = iter(lines), []
        for line in port.stdout.splitlines():
            for own in ours:
                if own.startswith(line):
                    break
                left_out.append(own)
            else:
                pytest.fail(f"no line of ours: {line}")
        left_out = [line for line in [*left_out, *ours] if line]
        fires = "does not fire" not in left_out[-1]
        assert [line.split()[0] for line in left_out] == ["layer", "pre", "generator:", "residual", "the", "float32,", "gate", "activation", *(["rank"] if fires else [])]


def test_as_a_process_without_noise(demo_folder: Path) -> None:
    ran = inspect(demo_folder, 25, 25, 3, "--quiet", "--residual", door=oracle)
    assert ran.returncode == 0 and ran.stderr == "" and ran.stdout == inspect(demo_folder, 25, 25, 3, "--residual").stdout
    assert ran.stdout.startswith(f"layer 25 seed 25 feature 3 of {demo.weights_repo(FORMATS[0])} (GemmaScopeNpz)\n")
