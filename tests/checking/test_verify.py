# SPDX-License-Identifier: MIT OR Apache-2.0
"""`verify`: references that are right, edited, torn, from other weights, and those that torch wrote."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.references.document import digest
from oracle.references.reading import parse_reference
from oracle.references.recorded import residual_of
from oracle.references.rows import DataError
from oracle.vectors import demo
from oracle.weights.formats import FORMATS
from tests.support import worlds
from tests.support.cases import blocks
from tests.support.hub import Hub
from tests.support.independent import float64_encode
from tests.support.process import oracle, run
from tests.support.small_scope import CURATION_REPO, WEIGHTS_REPO, config, fill, layer_arrays, npz, path_of


def run_verify(folder: Path, reference: Any, *arguments: str, cache: Path | None = None, door: Any = run) -> subprocess.CompletedProcess[str]:
    text = reference if isinstance(reference, str) else json.dumps(reference)
    ran: subprocess.CompletedProcess[str] = door("verify", "-", "--offline", "--cache-dir", str(cache or folder / "hub"), *arguments, input=text)
    assert "Traceback" not in ran.stderr
    return ran


def reference_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plt_gemma_reference.json").read_text())


def test_what_generate_writes_verifies(demo_folder: Path) -> None:
    ran = run_verify(demo_folder, reference_of(demo_folder), door=oracle)
    assert ran.returncode == 0 and "9 cases: 9 same\n" in ran.stdout
    assert ran.stdout.endswith("9 of 9 cases are what the weights give: the reference agrees number for number\n")
    quiet = run_verify(demo_folder, reference_of(demo_folder), "--quiet")
    assert quiet.returncode == 0 and quiet.stderr == quiet.stdout == ""


@pytest.mark.parametrize(
    "options", [["--omit-residuals"], ["--top-k", "3", "--tolerance", "0.01"], ["--layers", "all", "--seeds", "1"]]
)
def test_so_do_its_options(demo_folder: Path, options: list[str]) -> None:
    source = ["--offline", "--cache-dir", str(demo_folder / "hub")]
    written = run("-o", "-", "--curation-repo", demo.job_repo(FORMATS[0]), *source, *options)
    assert written.returncode == 0
    assert run_verify(demo_folder, written.stdout).returncode == 0


def edit_number(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(reference: dict[str, Any]) -> None:
        reference["test_cases"][4][key] = change(reference["test_cases"][4][key])

    return edit


def edit_activation(reference: dict[str, Any]) -> None:
    entry = reference["test_cases"][4]["top_10"][9]
    entry["activation"] = float(np.nextafter(np.float32(entry["activation"]), np.float32(0)))


def edit_index(reference: dict[str, Any]) -> None:
    reference["test_cases"][4]["top_10"][0]["index"] += 1


def edit_residual(reference: dict[str, Any]) -> None:
    reference["test_cases"][4]["residual"][63] += 1e-7


def edit_ties(reference: dict[str, Any]) -> None:
    case = reference["test_cases"][4]
    case["n_active_bounds"][1] += 1
    case["gate_ties"] = sorted([*case["gate_ties"], *({0, 1} - set(case["gate_ties"]))][: len(case["gate_ties"]) + 1])


EDITS = {
    "n_active": (edit_number("n_active", lambda n: n + 1), "wrong numbers (n_active)"),
    "a margin": (edit_number("gate_margin", lambda m: m + 1e-6), "wrong numbers (gate_margin)"),
    "flags": (edit_number("flags", lambda f: [*f, "rank-tie"]), "wrong numbers (flags)"),
    "bounds": (edit_number("n_active_bounds", lambda b: [b[0] - 1, b[1] - 1]), "wrong numbers (n_active_bounds)"),
    "gate ties": (edit_ties, "wrong numbers (n_active_bounds, gate_ties)"),
    "the last bit of an activation": (edit_activation, "wrong numbers (top_10)"),
    "an index": (edit_index, "wrong numbers (top_10)"),
    "a sum": (edit_number("activation_sum", lambda s: s + 2.0**-16), "wrong numbers (activation_sum)"),
    "a sum of squares": (edit_number("activation_sum_of_squares", lambda s: s - 2.0**-32), "wrong numbers (activation_sum_of_squares)"),
    "a sum's tolerance": (edit_number("activation_sum_tolerance", lambda t: 2 * t), "wrong numbers (activation_sum_tolerance)"),
    "a residual": (edit_residual, "wrong residual"),
    "a fingerprint": (edit_number("residual_fingerprint", lambda f: "0x" + f[:1:-1]), "wrong fingerprint"),
    "a seed": (edit_number("seed", lambda s: s + 1), "wrong fingerprint"),
    "a stream": (edit_number("stream", lambda s: s + 1), "wrong fingerprint"),
}


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_edited_references_are_told_apart(demo_folder: Path, name: str, renewed: bool) -> None:
    """Also where somebody renewed the digest: what can be recomputed is."""
    edit, message = EDITS[name]
    reference = reference_of(demo_folder)
    edit(reference)
    if renewed:
        reference["digest"] = digest(reference)
    ran = run_verify(demo_folder, reference)
    assert ("the reference was edited" in ran.stdout) is (not renewed and name != "a residual")  # which its fingerprint stands for
    assert ran.returncode == 1, ran.stderr
    (case_id, said), = blocks(ran.stdout).items()
    assert case_id == f"layer 12 seed {reference['test_cases'][4]['seed']}" and message in said
    assert "8 of 9 cases" in ran.stdout and "DISAGREES" in ran.stdout


def test_a_reference_of_before_there_were_sums(demo_folder: Path) -> None:
    """All of them may be lacking; one of them, in a case that has others, was taken out."""
    sums = ("activation_sum", "activation_sum_tolerance", "activation_sum_of_squares", "activation_sum_of_squares_tolerance")
    reference = reference_of(demo_folder)
    for case in reference["test_cases"]:
        for name in sums:
            del case[name]
    reference["digest"] = digest(reference)
    ran = run_verify(demo_folder, reference)
    assert ran.returncode == 0 and "9 cases: 9 same\n" in ran.stdout, ran.stderr
    reference = reference_of(demo_folder)
    for name in sums[:2]:
        del reference["test_cases"][4][name]
    reference["digest"] = digest(reference)
    ran = run_verify(demo_folder, reference)
    assert ran.returncode == 1 and "wrong numbers (activation_sum, activation_sum_tolerance)" in ran.stdout


def test_what_is_said_of_wrong_numbers(demo_folder: Path) -> None:
    """What a port would be told, or else the number and the right one."""
    reference = reference_of(demo_folder)
    cases = reference["test_cases"]
    right = cases[0]["n_active"], cases[1]["top_10"][9]["activation"], cases[2]["rank_margin"]
    cases[0]["n_active"] += 1
    cases[1]["top_10"][9]["activation"] = float(np.nextafter(np.float32(right[1]), np.float32(0)))
    cases[2]["rank_margin"] += 1e-6
    margins = {key: cases[3][key] for key in ("rank_margin", "gate_margin")}
    cases[3].update({key: value + 1e-6 for key, value in margins.items()})
    first, second, third, fourth = blocks(run_verify(demo_folder, reference).stdout).values()
    assert f"wrong numbers (n_active) weights reference off by n_active {right[0]} {right[0] + 1} 1" in first
    assert "wrong numbers (top_10): values differ by up to " in second
    assert f"rank_margin {right[2]:.9g} {cases[2]['rank_margin']:.9g} 1e-06" in third
    assert f"(rank_margin, gate_margin) weights reference off by rank_margin {margins['rank_margin']:.9g} {cases[3]['rank_margin']:.9g} 1e-06" in fourth


def test_a_wrong_sha256(demo_folder: Path) -> None:
    reference = reference_of(demo_folder)
    reference["layers"][1]["sha256"] = "0" * 64
    ran = run_verify(demo_folder, reference)
    assert ran.returncode == 1 and "layer 12: wrong sha256" in ran.stdout and "9 of 9 cases" in ran.stdout


def test_an_edited_formula(demo_folder: Path) -> None:
    reference = reference_of(demo_folder)
    reference["encoder_formula"] = "ReLU(W_enc.T @ residual + b_enc)"
    ran = run_verify(demo_folder, reference)
    assert ran.returncode == 1 and "wrong encoder_formula: 'ReLU(W_enc.T" in ran.stdout and "9 of 9 cases" in ran.stdout


@pytest.mark.parametrize("threshold, wrong, right", [(True, "CltSplit", "CltSplitJumpReLU"), (False, "CltSplitJumpReLU", "CltSplit")])
def test_an_edited_schema(tmp_path: Path, threshold: bool, wrong: str, right: str) -> None:
    world = worlds.make("CltSplit", n_layers=2, threshold=threshold)
    tree, place = world.lay_out(tmp_path / "tree"), tmp_path / "reference.json"
    assert run("--mirror", tree, *world.arguments, "-o", str(place)).returncode == 0
    reference = json.loads(place.read_text())
    for edits, said in (({}, ""), ({"schema": wrong}, f"wrong schema: '{wrong}', its weights are of {right}"), ({"encoder_formula": "W" * 200}, f"'{'W' * 80}'")):
        edited = {**reference, **edits}
        place.write_text(json.dumps({**edited, "digest": digest(edited)}))
        ran = run("verify", str(place), "--mirror", tree)
        assert (ran.returncode == 1) is bool(edits) and ran.stdout.count(said or "never") == 2 * bool(edits), ran.stderr
        assert "was edited" not in ran.stdout


def test_a_layer_of_which_no_case_is_left(demo_folder: Path) -> None:
    reference = reference_of(demo_folder)
    reference["test_cases"] = reference["test_cases"][3:]
    reference["layers"][0].update(sha256="0" * 64, path="nowhere/params.npz")
    ran = run_verify(demo_folder, reference)
    assert ran.returncode == 1 and "layer 0: `layers` lists it, but no case is of it" in ran.stdout


@pytest.mark.parametrize("n_negative", [1, 93])
@pytest.mark.parametrize("layers", [(0,), (0, 1)])
def test_negative_thresholds_are_in_the_formula(tmp_path: Path, layers: tuple[int, ...], n_negative: int) -> None:
    """A threshold below zero lets nothing negative through: that must be told, and by each such layer."""
    world = worlds.make("Sae", n_layers=2)
    for layer in layers:
        path = list(world.files[worlds.OWN_REPO])[layer]
        arrays = dict(np.load(io.BytesIO(world.files[worlds.OWN_REPO][path])))
        arrays["threshold"][-n_negative:] = -1
        world.files[worlds.OWN_REPO][path] = worlds.to_npz(arrays)
    tree, recorded = world.lay_out(tmp_path / "tree"), tmp_path / "reference.json"
    assert run("--mirror", tree, *world.arguments, "-o", str(recorded)).returncode == 0
    reference = json.loads(recorded.read_text())
    assert reference["encoder_formula"].endswith("acts = pre * (pre > max(threshold, 0))")
    assert all(entry["activation"] > 0 for case in reference["test_cases"] for entry in case["top_10"])
    verify = "verify", str(recorded), "--mirror", tree
    assert run(*verify).returncode == 0
    reference["encoder_formula"] = reference["encoder_formula"].replace("max(threshold, 0)", "threshold")
    recorded.write_text(json.dumps(reference))
    ran = run(*verify)
    assert ran.returncode == 1 and ran.stdout.count("wrong encoder_formula") == len(layers)


def test_a_key_that_stands_twice_among_many(tmp_path: Path) -> None:
    """In no more time than the file takes to be read."""
    keys = ",".join(f'"{number}": 0' for number in range(300_000))
    (tmp_path / "reference.json").write_text(f'{{{keys}, "299999": 1}}')
    began = time.monotonic()
    ran = run("verify", str(tmp_path / "reference.json"))
    assert ran.returncode == 4 and "the key '299999' stands twice" in ran.stderr and time.monotonic() - began < 10


def other_weights(demo_folder: Path, tmp_path: Path, content: bytes) -> Path:
    cache = tmp_path / "hub"
    shutil.copytree(demo_folder / "hub", cache, symlinks=True)
    target = next(cache.glob("models--*/snapshots/*/layer_12/*/*/params.npz"))
    target.unlink()
    target.write_bytes(content)
    return cache


def test_other_weights(demo_folder: Path, tmp_path: Path) -> None:
    cache = other_weights(demo_folder, tmp_path, next(iter(demo.layer_files(FORMATS[0], 99).values())))
    ran = run_verify(demo_folder, reference_of(demo_folder), cache=cache)
    assert ran.returncode == 1 and "layer 12: wrong sha256" in ran.stdout and "6 of 9 cases" in ran.stdout
    assert ran.stdout.count("wrong numbers") == 3


def test_weights_of_another_shape(demo_folder: Path, tmp_path: Path) -> None:
    cache = other_weights(demo_folder, tmp_path, npz(layer_arrays(1)))
    ran = run_verify(demo_folder, reference_of(demo_folder), cache=cache)
    assert ran.returncode == 1 and "layer 12: wrong shape" in ran.stdout and "6 of 9 cases" in ran.stdout


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def edit(reference: dict[str, Any]) -> None:
        item = reference
        for key in path[:-1]:
            item = item[key]
        del item[path[-1]]

    return edit


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def edit(reference: dict[str, Any]) -> None:
        item = reference
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = value

    return edit


def repeat_layer(reference: dict[str, Any]) -> None:
    reference["layers"].append({**reference["layers"][0], "sha256": "0" * 64})


BROKEN = {
    "no d_model": (drop("d_model"), "d_model is missing"),
    "d_model a text": (put("64", "d_model"), "d_model is '64'"),
    "a huge d_model": (put(10**12, "d_model"), "d_model is 1000000000000, not a whole number from 1 to 16777216"),
    "huge n_features": (put(2**40, "n_features_per_layer"), "n_features_per_layer is 1099511627776, not"),
    "no layers": (drop("layers"), "layers is missing"),
    "a layer twice": (repeat_layer, "layers[3] is layer 0, which is there already"),
    "a layer that is not listed": (drop("layers", 1), "which `layers` does not list"),
    "a path out of the repo": (put("../../../etc/passwd.npz", "layers", 0, "path"), "cannot be"),
    **{
        f"layers[1].{key} is {value!r}": (put(value, "layers", 1, key), f"layers[1].{key} is {shown}, not a text")
        for key in ("path", "sha256", "repo", "revision", "decoder_path", "decoder_sha256")
        for value, shown in ((3, "3"), (True, "True"), ([], "a list"), ({}, "an object"), (0, "0"))
    },
    "a path of null": (put(None, "layers", 1, "path"), "layers[1].path is nothing, not a text"),
    "a repo of null": (put(None, "layers", 1, "repo"), "layers[1].repo is nothing, not a text"),
    "a layer of a text": (put("12", "layers", 1, "layer"), "layers[1].layer is '12'"),
    "format version": (put(2, "format_version"), "format_version is 2"),
    "an edited generator": (put(0.7, "residual_generator", "sqrt_half"), "not the record of its name"),
    "no format version": (drop("format_version"), "format_version is missing from a reference of ours"),
    "no format version, but seeds passed over": (
        lambda reference: [reference.pop(key) for key in ("format_version", "residual_generator", "layers", "top_k")]
        and reference.update(skipped_seeds=[{"layer": 0, "seed": 0}]),
        "format_version is missing from a reference of ours",
    ),
    "no stream": (drop("test_cases", 2, "stream"), "test_cases[2].stream is missing"),
    "another generator": (
        put("mt19937", "residual_generator", "name"),
        "'mt19937' version 1; pcg32-polar-f32 version 1 is known",
    ),
    "no generator": (drop("residual_generator"), "residual_generator is missing"),
    "tolerance": (put(-1.0, "tolerance"), "tolerance is -1.0"),
    "a short residual": (drop("test_cases", 2, "residual", 5), "residual is 63 values long, but d_model is 64"),
    "a residual with a text": (put("x", "test_cases", 2, "residual", 5), "residual is not a list of finite numbers"),
    "an index past the features": (put(512, "test_cases", 2, "top_10", 0, "index"), "past the 512 features"),
    "no fingerprint": (drop("test_cases", 2, "residual_fingerprint"), "residual_fingerprint is missing"),
    "a sum without its tolerance": (drop("test_cases", 2, "activation_sum_tolerance"), "test_cases[2].activation_sum_tolerance is missing"),
    "a sum of text": (put("1", "test_cases", 2, "activation_sum"), "test_cases[2].activation_sum is '1', not a finite number"),
    "bounds": (put([1], "test_cases", 2, "n_active_bounds"), "n_active_bounds is not two numbers"),
    "no gate ties": (drop("test_cases", 2, "gate_ties"), "test_cases[2].gate_ties is missing"),
    "gate ties of another number": (put([3, 7], "test_cases", 2, "gate_ties"), "gate_ties is 2 long"),
    "gate ties past the features": (put([512], "test_cases", 2, "gate_ties"), "indices of the 512 features"),
    "a tolerance beyond all": (put(1e7, "tolerance"), "tolerance is 10000000.0, not a finite number from 0 to 1e+06"),
    "a gate tie twice": (put([7, 7], "test_cases", 2, "gate_ties"), "not ascending indices"),
    "flags": (put([1], "test_cases", 2, "flags"), "flags is not a list of texts"),
    "another schema": (put("PltBundle", "schema"), "schema is PltBundle"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_references(demo_folder: Path, name: str) -> None:
    edit, message = BROKEN[name]
    reference = reference_of(demo_folder)
    edit(reference)
    ran = run_verify(demo_folder, reference)
    assert ran.returncode == 4 and message in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr


@pytest.mark.parametrize("keep", [0, 1, 700, 20_000])
def test_truncated_references(demo_folder: Path, keep: int) -> None:
    text = (demo_folder / "plt_gemma_reference.json").read_text()
    ran = run_verify(demo_folder, text[:keep])
    assert ran.returncode == 4 and "not readable JSON" in ran.stderr


def test_no_weights(demo_folder: Path, tmp_path: Path) -> None:
    assert run_verify(demo_folder, reference_of(demo_folder), cache=tmp_path).returncode == 3


# --- over a Hub ---------------------------------------------------------------------------------------------------


def test_the_files_that_the_reference_names_are_fetched(hub: Hub, tmp_path: Path) -> None:
    fill(hub)
    path = str(tmp_path / "reference.json")
    assert run("--mirror", hub.url, "--layers", "0-2", "-o", path, "--cache-dir", str(tmp_path / "one")).returncode == 0
    # Both repos move on; the reference names its commits.
    hub.add(WEIGHTS_REPO, path_of(1), npz(layer_arrays(50)))
    hub.add(CURATION_REPO, "config.yaml", config(1))
    again = run("verify", path, "--mirror", hub.url, "--cache-dir", str(tmp_path / "two"))
    assert again.returncode == 0 and again.stderr.count("fetched ") == 3, again.stderr
    verify = "verify", path, "--mirror", hub.url, "--cache-dir", str(tmp_path / "two")
    other = run(*verify, "--weights-revision", "main", "--revision", "main")
    assert other.returncode == 2 and "it has no layer 1" in other.stderr
    hub.add(CURATION_REPO, "config.yaml", config(3))
    other = run(*verify, "--curation-repo", CURATION_REPO)
    assert other.returncode == 1 and "layer 1: wrong sha256" in other.stdout


def as_torch_writes(shift: float = 0.0) -> dict[str, Any]:
    """A reference of the old kind: residuals that only its writer can make, no generator, no margins."""
    rng = np.random.default_rng(5)
    cases = []
    for layer in range(3):
        for i in range(2):
            values = rng.standard_normal(24).astype(np.float32)
            made = float64_encode(layer_arrays(layer), values, 10)
            top = [{"index": index, "activation": float(np.float32(value + shift))} for index, value in made["top"]]
            cases.append(
                {
                    "layer": layer,
                    "seed": 100 * i + layer,
                    "residual": values.tolist(),
                    "n_active": made["n_active"],
                    "top_10": top,
                }
            )
    return {
        "weights_repo": WEIGHTS_REPO,
        "curation_repo": CURATION_REPO,
        "schema": "GemmaScopeNpz",
        "torch_version": "2.10.0",
        "d_model": 24,
        "n_features_per_layer": 96,
        "test_cases": cases,
    }


@pytest.mark.parametrize("key, value", [("stream", 0), ("flags", []), ("gate_ties", [7]), ("tolerance", 1e-4), ("environment", {})])
def test_a_reference_with_any_key_of_ours_is_ours(tmp_path: Path, key: str, value: Any) -> None:
    """Whatever else was taken out of it: as torch's it would be held to less."""
    reference = as_torch_writes()
    (reference if key in ("tolerance", "environment") else reference["test_cases"][1])[key] = value
    (tmp_path / "torch.json").write_text(json.dumps(reference))
    ran = run("compare", str(tmp_path / "torch.json"), str(tmp_path / "torch.json"))
    assert ran.returncode == 4 and "format_version is missing from a reference of ours" in ran.stderr, ran.stderr


def test_what_torch_wrote_is_checked(tmp_path: Path) -> None:
    (tmp_path / "torch.json").write_text(json.dumps({**as_torch_writes(), "schema": ["GemmaScopeNpz"]}))
    ran = run("compare", str(tmp_path / "torch.json"), str(tmp_path / "torch.json"))
    assert ran.returncode == 4 and "schema is a list, not a text" in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr


def test_a_residual_of_torch_s_is_rounded_to_float32_once() -> None:
    """JSON holds float64: what lies between two float32 is the nearer, ties to even; one value that overflows is told among good ones."""
    reference = as_torch_writes()
    values = [0.1, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e-46, -3.4028235e38] + [0.5] * 19
    reference["test_cases"][2]["residual"] = values
    torch = parse_reference(reference)
    rounded = residual_of(torch, torch.cases[2])
    assert rounded.dtype == np.float32 and rounded.shape == (24,)
    assert rounded.tolist() == [float(np.float32(0.1)), 1.0, 1 + 2.0**-22, 0.0, -3.4028234663852886e38] + [0.5] * 19
    for place in (0, 11, 23):
        for value in (3.4028236e38, -1e39, 1e308):
            reference["test_cases"][2]["residual"] = [value if at == place else 0.5 for at in range(24)]
            torch = parse_reference(reference)
            with pytest.raises(DataError, match="layer 1 seed 1: its residual overflows float32"):
                residual_of(torch, torch.cases[2])


@pytest.mark.parametrize("shift, code, status", [(0.0, 0, "same"), (3e-5, 0, "rounding"), (3e-4, 1, "differ")])
def test_what_torch_wrote(hub: Hub, tmp_path: Path, shift: float, code: int, status: str) -> None:
    fill(hub)
    (tmp_path / "torch.json").write_text(json.dumps(as_torch_writes(shift)))
    ran = run("verify", str(tmp_path / "torch.json"), "--mirror", hub.url)
    assert ran.returncode == code and f"6 cases: 6 {status}\n" in ran.stdout, ran.stderr
    assert "(torch wrote it)" in ran.stdout or code


def test_a_torch_reference_can_be_compared_with_and_explained(hub: Hub, tmp_path: Path) -> None:
    fill(hub)
    reference = as_torch_writes()
    (tmp_path / "torch.json").write_text(json.dumps(reference))
    for case in reference["test_cases"]:
        for entry in case["top_10"]:
            entry["index"] += 1
    (tmp_path / "candidate.json").write_text(json.dumps(reference))
    ran = run("compare", str(tmp_path / "torch.json"), str(tmp_path / "candidate.json"), "--explain", "--mirror", hub.url)
    assert ran.returncode == 1 and "indices from 1" in ran.stdout, ran.stderr
