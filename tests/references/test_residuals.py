# SPDX-License-Identifier: MIT OR Apache-2.0
"""--residuals and --scale: a user's own residuals, and larger ones, from the file to the verdict."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from oracle import BadData, BadUse, Job, Origin, compare, generate, verify
from oracle.arithmetic.residual import fingerprint, residual
from oracle.references.document import digest
from oracle.references.reading import candidate_schema, reference_schema
from tests.support import worlds
from tests.support.cluster import Cluster
from tests.support.encodings import error, parsed, read
from tests.support.independent import exact_encode
from tests.support.process import run

Document = dict[str, Any]
D_MODEL, N_LAYERS = 24, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, worlds.World]:
    folder, repo = tmp_path_factory.mktemp("residuals"), worlds.make("GemmaScopeNpz")
    repo.lay_out(folder / "tree")
    return folder, repo


Place = tuple[Path, worlds.World]


def some_rows(n: int = 4, seed: int = 0, width: int = D_MODEL) -> np.ndarray:
    """Rows of all sizes, with a few values 1,000 times the others."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, width)) * 10.0 ** rng.integers(-2, 3, (n, 1))
    rows[:, rng.integers(0, width, 2)] *= 1000
    return rows.astype(np.float32)


def written(folder: Path, content: np.ndarray | dict[str, np.ndarray], suffix: str, name: str = "own") -> str:
    """A file of residuals, by NumPy or by the safetensors package."""
    path = folder / f"{name}{suffix}"
    if suffix == ".npy":
        np.save(path, content)
    elif suffix == ".npz":
        np.savez(path, **(content if isinstance(content, dict) else {"residuals": content}))
    else:
        path.write_bytes(save(content if isinstance(content, dict) else {"residuals": np.ascontiguousarray(content)}))
    return str(path)


def generated(place: Place, *options: str, layers: str = "all") -> Any:
    folder, repo = place
    return run("--mirror", str(folder / "tree"), *repo.arguments, "--layers", layers, "-o", "-", "--quiet", *options)


def origin(place: Place) -> Origin:
    return Origin(place[1].repo, mirror=str(place[0] / "tree"))


# --- what a file may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", ">f4"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_every_container_and_dtype(world: Place, tmp_path: Path, suffix: str, dtype: str) -> None:
    rows = np.random.default_rng(1).standard_normal((3, D_MODEL)) * 100
    if dtype == "bfloat16":
        if suffix != ".safetensors":
            path = written(tmp_path, rows.astype(ml_dtypes.bfloat16), suffix)
            assert "is of dtype '<V2'; float16, float32 and float64 are read" in error(generated(world, "--residuals", path))
            return
        rows = rows.astype(ml_dtypes.bfloat16)
    elif dtype == ">f4" and suffix == ".safetensors":
        return
    else:
        rows = rows.astype(dtype)
    document = parsed(generated(world, "--residuals", written(tmp_path, rows, suffix)))
    expected = rows.astype(np.float32)
    assert [(case["layer"], case["row"]) for case in document["test_cases"]] == [(layer, row) for layer in range(N_LAYERS) for row in range(3)]
    for case in document["test_cases"]:
        assert "seed" not in case and "stream" not in case
        assert np.array_equal(np.array(case["residual"], np.float64), expected[case["row"]])
        assert case["residual_fingerprint"] == fingerprint(expected[case["row"]])
    content = (tmp_path / f"own{suffix}").read_bytes()
    assert document["residuals"] == {"kind": "file", "name": f"own{suffix}", "sha256": hashlib.sha256(content).hexdigest()}
    assert "residual_generator" not in document and verify(document, origin(world)).agrees


@pytest.mark.parametrize("names", [("layer_0", "layer_2"), ("blocks.0.hook_resid_mid", "blocks.2.hook_resid_mid"), ("blocks.0", "layer_02")])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_an_array_for_each_layer(world: Place, tmp_path: Path, suffix: str, names: tuple[str, str]) -> None:
    arrays = {names[0]: some_rows(2, 1), names[1]: some_rows(3, 2), "tokens": np.zeros((2, 2), np.float32)}
    path = written(tmp_path, arrays, suffix)
    document = parsed(generated(world, "--residuals", path, layers="0,2"))
    assert [(case["layer"], case["row"]) for case in document["test_cases"]] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    for case in document["test_cases"]:
        assert np.array_equal(np.array(case["residual"], np.float32), arrays[names[case["layer"] // 2]][case["row"]])
    said = error(generated(world, "--residuals", path), 2)
    assert f"it has no residuals of layer 1, only {names[0]}, {names[1]}: leave the layer out, or add layer_1" in said and path in said


def test_the_first_rows(world: Place, tmp_path: Path) -> None:
    rows = some_rows(30)
    rows[20, 3] = np.nan  # is not asked for
    for suffix in (".npy", ".npz", ".safetensors"):
        path = written(tmp_path, rows, suffix)
        document = parsed(generated(world, "--residuals", path, "--seeds", "20", layers="1"))
        assert [case["row"] for case in document["test_cases"]] == list(range(20))  # by two passes over W_enc
        assert np.array_equal(np.array([case["residual"] for case in document["test_cases"]], np.float32), rows[:20])
        assert "1 value that is NaN or infinite in float32, the first in row 20" in error(generated(world, "--residuals", path))
        assert "30 rows, and --seeds asks for 31" in error(generated(world, "--residuals", path, "--seeds", "31"), 2)


def test_the_rows_of_a_crosscoder_are_those_of_all_its_layers(tmp_path: Path) -> None:
    rng, n_input, n_features = np.random.default_rng(2), 2, 30
    own = {"w_enc": (n_input, D_MODEL, n_features), "b_enc": (n_features,), "w_dec": (n_features, n_input, D_MODEL), "b_dec": (n_input, D_MODEL)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in own.items()} | {"threshold": np.full(n_features, 0.5, np.float32)}
    path = "crosscoder/layer_3_5_width_1k/params_layer_0.safetensors"
    place = tmp_path / "tree/org/gemma/resolve/main" / path
    place.parent.mkdir(parents=True)
    place.write_bytes(save(arrays))
    where = ["--mirror", str(tmp_path / "tree"), "--repo", "org/gemma", "--path", path, "-o", "-", "--quiet", "--residuals"]
    rows = some_rows(3, width=n_input * D_MODEL)
    document = parsed(run(*where, written(tmp_path, rows, ".npy")))
    assert document["n_input_layers"] == 2 and document["d_model"] == D_MODEL
    for row, case in zip(rows, document["test_cases"]):
        w_enc = arrays["w_enc"].reshape(-1, n_features)
        own_case = exact_encode(w_enc, arrays["b_enc"], arrays["threshold"], row, 10, case["tolerance"])
        assert [(top["index"], top["activation"]) for top in case["top_10"]] == own_case["top"] and case["residual"] == row.tolist()
    assert verify(document, Origin(mirror=str(tmp_path / "tree"))).agrees
    said = error(run(*where, written(tmp_path, rows[:, :D_MODEL], ".npy")))
    assert "have 24 values each, and " in said and "takes 48, 2 layers of 24" in said


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def npy(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


SHAPED = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"
# name of the file, its content, what is said of it, and the exit code
BAD: dict[str, tuple[str, bytes | np.ndarray | dict[str, np.ndarray], str, int]] = {
    "one dimension": (".npy", np.ones(D_MODEL, np.float32), "its array has shape [24]; residuals are [rows, d_model]", 4),
    "three": (".npy", np.ones((2, 3, D_MODEL), np.float32), "has shape (2, 3, 24); 1 or 2 dimensions are read", 4),
    "three of safetensors": (".safetensors", np.ones((2, 3, D_MODEL), np.float32), "has shape [2, 3, 24]; residuals are [rows, d_model]", 4),
    "no rows": (".npy", np.ones((0, D_MODEL), np.float32), "has shape (0, 24); each extent must be 1 to", 4),
    "no rows of safetensors": (".safetensors", np.ones((0, D_MODEL), np.float32), "has shape [0, 24]", 4),
    "no columns": (".npy", np.ones((3, 0), np.float32), "has shape (3, 0)", 4),
    "too narrow": (".npz", np.ones((2, D_MODEL - 1), np.float32), "its residuals of layer 0 have 23 values each, and ", 4),
    "too wide": (".npy", np.ones((2, D_MODEL + 1), np.float32), "its residuals of layer 0 have 25 values each, and ", 4),
    "NaN": (".npy", np.full((2, D_MODEL), np.nan, np.float32), "24 values that are NaN or infinite in float32, the first in row 0".replace("24", "48"), 4),
    "infinite": (".safetensors", np.full((1, D_MODEL), np.inf, np.float32), "24 values that are NaN or infinite", 4),
    "too large for float32": (".npy", np.full((1, D_MODEL), 1e39), "24 values that are NaN or infinite in float32", 4),
    "objects": (".npy", np.full((2, D_MODEL), None), "is a pickled Python object; nothing is unpickled", 4),
    "whole numbers": (".npy", np.ones((2, D_MODEL), np.int64), "is of dtype '<i8'", 4),
    "whole numbers of safetensors": (".safetensors", np.ones((2, D_MODEL), np.int64), "is of dtype", 4),
    "complex": (".npz", np.ones((2, D_MODEL), np.complex64), "is of dtype '<c8'", 4),
    "Fortran order": (".npy", np.asfortranarray(np.ones((2, D_MODEL), np.float32)), "is in Fortran order; C order is read", 4),
    "empty": (".npy", b"", "the file ends inside its array; it is truncated", 4),
    "something else": (".npy", b"PK\x03\x04" + bytes(100), "its array is not a .npy array", 4),
    "cut": (".npy", npy(np.ones((2, D_MODEL), np.float32))[:-1], "has 191 bytes of data, but its shape [2, 24] of float32 takes 192", 4),
    "something behind it": (".npy", npy(np.ones((2, D_MODEL), np.float32)) + b"x", "has 193 bytes of data, but its shape", 4),
    "a huge shape": (".npy", header(SHAPED % "1048576, 1048576", bytes(64)), "bytes of data, but its shape [1048576, 1048576]", 4),
    "a huge header": (".npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(99), "has a header of 2147483647 bytes; at most 65536 are read", 4),
    "a header that does something": (".npy", header("__import__('os').abort()\n"), "has an unreadable .npy header", 4),
    "a pickle": (".npy", pickle.dumps([1.0]), "its array is not a .npy array", 4),
    "no zip": (".npz", bytes(100), "not a readable .npz archive", 4),
    "no safetensors": (".safetensors", b"\xff" * 100, "not a .safetensors file", 4),
    "no arrays": (".npz", {}, "it has 0 arrays, none: one for all layers is read, or one for each layer, called layer_0", 2),
    "two arrays": (".npz", {"a": np.ones((1, 24), np.float32), "b\n\x1b[2J": np.ones((1, 24), np.float32)}, "it has 2 arrays, a, b??[2J: one", 2),
    "one layer twice": (".npz", {"layer_0": np.ones((1, 24)), "blocks.0.hook_resid_pre": np.ones((1, 24))}, "are both of layer 0: leave one out", 2),
    "too many rows": (".npy", np.ones((10_001, 1), np.float16), "has 10001 rows, and at most 10000 are encoded: say how many with --seeds", 2),
    "too many values": (".npy", np.ones((5000, 2304), np.float16), "34560000 values in 3 layers are more than a reference", 2),
    "a .pt": (".pt", b"x", "none of .npy, .npz, .safetensors, which are read", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_residuals(world: Place, tmp_path: Path, name: str) -> None:
    suffix, content, message, code = BAD[name]
    path = str(tmp_path / f"own{suffix}")
    if isinstance(content, bytes):
        Path(path).write_bytes(content)
    else:
        written(tmp_path, content, suffix)
    for workers in ("1", "2"):
        ran = generated(world, "--residuals", path, "--workers", workers)
        said = error(ran, code)
        assert message in said and f"own{suffix}" in said and not ran.stdout


def test_wrong_use(world: Place, tmp_path: Path) -> None:
    path = written(tmp_path, some_rows(), ".npy")
    os.mkfifo(tmp_path / "pipe.npy")
    for options, message in {
        ("--residuals", str(tmp_path / "none.npy")): "none.npy cannot be read: No such file or directory",
        ("--residuals", str(tmp_path)): "none of .npy, .npz, .safetensors",
        ("--residuals", str(tmp_path / "pipe.npy")): "pipe.npy is no regular file",
        ("--residuals", path, "--omit-residuals"): "--omit-residuals leaves out what can be made again",
        ("--residuals", path, "--robust"): "--robust looks for other seeds",
        ("--residuals", path, "--scale", "2"): "--scale is of generated residuals",
    }.items():
        assert message in error(generated(world, *options), 2)
    span = "is not a number from 7.88861e-31 to 1.26765e+30"
    factors = {text: f"{text!r} {span}" for text in ("0", "-1", "nan", "x", "1e39", "inf")}
    for factor, message in {**factors, "0.1": "'0.1' is no float32, so that ports would differ: 0.10000000149011612 is the nearest"}.items():
        ran = run("--scale", factor)
        assert ran.returncode == 2 and message in ran.stderr
    for wrong in (0.1, 0, -2.0, float("nan"), 2.0**101, "2", True):
        with pytest.raises(BadUse, match="scale is"):
            Job(scale=wrong)  # type: ignore[arg-type]


def test_a_file_that_changes_meanwhile(world: Place, tmp_path: Path) -> None:
    """What is on record is the hash of the bytes that were encoded."""
    from oracle.sources.residuals import ResidualFile

    path = written(tmp_path, some_rows(), ".npy")
    file = ResidualFile.of(path)
    assert np.array_equal(file.rows(0), some_rows())
    written(tmp_path, some_rows(seed=1), ".npy")
    with pytest.raises(BadData, match="changed while it was read: try again"):
        file.rows(0)


# --- the reference, and who takes it ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(world: Place, tmp_path_factory: pytest.TempPathFactory) -> Document:
    path = written(tmp_path_factory.mktemp("file"), some_rows(), ".npy")
    return parsed(generated(world, "--residuals", path, "--decode"))


def arrays_of(repo: worlds.World, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = repo.weights[layer]
    return own["w_enc"].T, own["b_enc"], np.maximum(own["threshold"], 0)


def check_exactly(document: Document, repo: worlds.World) -> None:
    """Every number that a case has of its encoder, in fractions, by its own tolerance."""
    for case in document["test_cases"]:
        own = exact_encode(*arrays_of(repo, case["layer"]), np.array(case["residual"], np.float32), 10, case["tolerance"])
        assert case["n_active"] == own["n_active"] and tuple(case["n_active_bounds"]) == own["n_active_bounds"]
        assert [(top["index"], top["activation"]) for top in case["top_10"]] == own["top"]
        assert {key: case[key] for key in ("rank_margin", "gate_margin", "gate_ties", "flags")} == {
            key: own[key] for key in ("rank_margin", "gate_margin", "gate_ties", "flags")
        }


def test_rows_and_their_tolerances_in_fractions(world: Place, reference: Document) -> None:
    check_exactly(reference, world[1])
    tolerances = [case["tolerance"] for case in reference["test_cases"]]
    assert reference["tolerance"] == 1e-4 == min(tolerances) and 1e-2 < max(tolerances) < 1


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e-42])
def test_rows_of_any_size_in_fractions(world: Place, tmp_path: Path, size: float) -> None:
    rows = (np.random.default_rng(5).standard_normal((2, D_MODEL)) * size).astype(np.float32)
    document = parsed(generated(world, "--residuals", written(tmp_path, rows, ".npy")))
    check_exactly(document, world[1])
    assert all(case["tolerance"] > 1e22 if size > 1 else case["tolerance"] == 1e-4 for case in document["test_cases"])
    assert verify(document, origin(world)).agrees and compare(document, answers(document)).agrees


def test_rows_that_may_overflow_are_refused(world: Place, tmp_path: Path) -> None:
    rows = np.ones((1, D_MODEL), np.float32) * np.float32(3e38)
    said = error(generated(world, "--residuals", written(tmp_path, rows, ".npy")))
    assert "a residual is so large that its pre-activations may overflow float32" in said


def answers(document: Document, off: float = 0.0) -> Document:
    """What a port prints that is off by so many tolerances, up and down."""
    keys = {"layer", "row", "seed", "n_active", "top_10", "reconstructions"}
    cases = [{key: copy.deepcopy(value) for key, value in case.items() if key in keys} for case in document["test_cases"]]
    for case, own in zip(cases, document["test_cases"]):
        for place, top in enumerate(case["top_10"]):
            top["activation"] += (-1) ** place * off * own.get("tolerance", document["tolerance"])
    return {"test_cases": cases}


def test_each_case_is_held_to_its_own_tolerance(reference: Document, tmp_path: Path) -> None:
    whole, half = compare(reference, answers(reference, 0.99)), compare(reference, answers(reference, 1.2))
    assert whole.agrees and not any(case.agrees for case in half.cases)
    assert [case.tolerance for case in whole.cases] == [case["tolerance"] for case in reference["test_cases"]]
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    (tmp_path / "candidate.json").write_text(json.dumps(answers(reference, 1.2)))
    ran = run("compare", str(tmp_path / "reference.json"), str(tmp_path / "candidate.json"), "--format", "json")
    document = json.loads(ran.stdout)
    assert ran.returncode == 1 and not document["agrees"]
    assert [case["tolerance"] for case in document["test_cases"]] == [case["tolerance"] for case in reference["test_cases"]]
    assert document["test_cases"][1]["row"] == 1
    ran = run("compare", str(tmp_path / "reference.json"), str(tmp_path / "candidate.json"))
    assert "the candidate DISAGREES (each case has its own tolerance, 0.0001 to " in ran.stdout and "layer 0 row 0: differs" in ran.stdout
    ran = run("report", str(tmp_path / "reference.json"), str(tmp_path / "candidate.json"), "-o", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert ran.returncode == 0 and "own.npy" in page and "own tolerance" in page


def test_another_residual_is_no_fault_of_the_encoder(reference: Document) -> None:
    printed = answers(reference)
    printed["test_cases"][1]["residual_fingerprint"] = "0x0123456789abcdef"
    verdict = compare(reference, printed)
    assert [case.agrees for case in verdict.cases].count(False) == 1
    assert "what reads the row, not the encoder, gives another residual" in verdict.cases[1].summary


def test_a_candidate_says_rows(reference: Document) -> None:
    by_seed = answers(reference)
    for case in by_seed["test_cases"]:
        case["seed"] = case.pop("row")
    verdict = compare(reference, by_seed)
    assert {case.status for case in verdict.cases} == {"missing"} and "first layer 0 seed 0" in verdict.facts[0]
    by_seed["test_cases"][0]["row"] = 0
    with pytest.raises(BadData, match=r"test_cases\[0\].row is there beside seed"):
        compare(reference, by_seed)


EDITS: dict[str, tuple[Callable[[Document], Any], str]] = {
    "a value": (lambda d: d["test_cases"][1]["residual"].__setitem__(3, 0.25), "wrong fingerprint"),
    "no float32": (lambda d: d["test_cases"][1]["residual"].__setitem__(3, d["test_cases"][1]["residual"][3] * (1 + 2**-40)), "wrong residual"),
    "a tolerance": (lambda d: d["test_cases"][0].update(tolerance=d["test_cases"][0]["tolerance"] * 2), "wrong numbers (tolerance)"),
    "the file's name": (lambda d: d["residuals"].update(name="other.npy"), "the reference was edited"),
    "a row": (lambda d: d["test_cases"].pop(1), "row 1 is not that of a case, and row 3 is"),
    "a count": (lambda d: d["test_cases"][2].update(n_active=d["test_cases"][2]["n_active"] - 1), "wrong numbers (n_active"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_is_found(world: Place, reference: Document, name: str) -> None:
    edit, message = EDITS[name]
    edited = copy.deepcopy(reference)
    edit(edited)
    found = verify(edited, origin(world))
    assert not found.agrees
    assert any(message in line for line in [*found.problems, *(case.summary for case in found.cases)])


UNREADABLE: dict[str, tuple[Callable[[Document], Any], str]] = {
    "no residual": (lambda d: d["test_cases"][2].pop("residual"), "test_cases[2].residual is missing"),
    "no tolerance": (lambda d: d["test_cases"][2].pop("tolerance"), "test_cases[2].tolerance is missing"),
    "seeds": (lambda d: [case.update(seed=case.pop("row")) for case in d["test_cases"]], "test_cases[0].row is missing"),
    "another kind": (lambda d: d["residuals"].update(kind="model"), "residuals.kind is 'model'; generator and file are known"),
    "no kind": (lambda d: d["residuals"].pop("kind"), "residuals.kind is missing"),
    "no sha256": (lambda d: d["residuals"].pop("sha256"), "residuals is a file without its name, or its sha256"),
    "no object": (lambda d: d.update(residuals=3), "residuals is 3, not an object"),
    "nothing": (lambda d: d.pop("residuals"), "residual_generator is missing"),
    "a generator without its record": (lambda d: [d.update(residuals={"kind": "generator"}), [c.update(seed=0, stream=0) for c in d["test_cases"][:1]],
                                                  d.update(test_cases=d["test_cases"][:1])], "residual_generator is missing"),
    "a scale that is none": (lambda d: d["residuals"].update(scale=0.1), "residuals.scale is 0.1, not a float32 that"),
    "a tolerance that is none": (lambda d: d["test_cases"][2].update(tolerance=-1), "test_cases[2].tolerance is -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_reference(reference: Document, tmp_path: Path, name: str) -> None:
    edit, message = UNREADABLE[name]
    edited = copy.deepcopy(reference)
    edit(edited)
    (tmp_path / "reference.json").write_text(json.dumps(edited))
    assert message in error(run("compare", str(tmp_path / "reference.json"), str(tmp_path / "reference.json")))


def test_their_schemas_take_rows(reference: Document) -> None:
    whole, port = (jsonschema.Draft202012Validator(of()) for of in (reference_schema, candidate_schema))
    assert not [*whole.iter_errors(reference), *port.iter_errors(answers(reference))]
    for edit in ("no residual", "no tolerance", "seeds", "another kind", "no kind", "no object", "nothing", "a tolerance that is none"):
        edited = copy.deepcopy(reference)
        UNREADABLE[edit][0](edited)
        assert list(whole.iter_errors(edited)), edit
    both = {"test_cases": [{**answers(reference)["test_cases"][0], "seed": 0}]}
    assert list(port.iter_errors(both))


def test_inspect_takes_a_row(world: Place, reference: Document, tmp_path: Path) -> None:
    path, case = tmp_path / "reference.json", reference["test_cases"][1]
    path.write_text(json.dumps(reference))
    (tmp_path / "candidate.json").write_text(json.dumps(answers(reference, 0.9)))
    top = case["top_10"][0]
    arguments = ["inspect", str(path), "--layer", "0", "--row", "1", "--feature", str(top["index"]), "--mirror", str(world[0] / "tree"), "--quiet"]
    ran = run(*arguments, "--candidate", str(tmp_path / "candidate.json"))
    assert ran.returncode == 0 and f"layer 0 row 1 feature {top['index']}" in ran.stdout, ran.stderr
    assert f"within the tolerance of {case['tolerance']:g}" in ran.stdout and case["residual_fingerprint"] in ran.stdout
    assert "the generator has no part in them" in error(run(*arguments, "--residual"), 2)
    assert "no case of layer 0 row 9" in error(run(*arguments, "--row", "9"), 2)


# --- scaled, and generated as ever ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(st.sampled_from([2.0**-100, 2.0**-7, 0.5, 10.0, 1000.0, 1024.0, 2.0**90]), st.sampled_from(worlds.SCHEMAS), st.booleans(), st.integers(0, 99))
def test_scaled_residuals(tmp_path_factory: pytest.TempPathFactory, scale: float, schema: str, decode: bool, seed: int) -> None:
    folder, repo = tmp_path_factory.mktemp("scaled"), worlds.make(schema, seed=seed, n_layers=1, d_model=9, n_features=20)
    where = Origin(repo.repo, path=tuple(repo.files[repo.repo]) if schema == "Sae" else (), mirror=repo.lay_out(folder))
    [document] = generate([Job(where, layers="all", scale=scale, decode=decode)])
    assert document["residuals"] == {"kind": "generator", "scale": scale} and document["residual_generator"]["version"] == 1
    for case in document["test_cases"]:
        values = residual(case["seed"], case["stream"], 9) * np.float32(scale)
        assert case["residual"] == values.tolist() and case["residual_fingerprint"] == fingerprint(values)
        assert case["tolerance"] >= 1e-4
    slim = {**document, "test_cases": [{key: value for key, value in case.items() if key != "residual"} for case in document["test_cases"]]}
    assert verify(document, where).agrees and verify(slim, where).agrees
    other = {**slim, "residuals": {"kind": "generator", "scale": scale * 2}}
    assert not verify({**other, "digest": digest(other)}, where).agrees


def test_robust_and_scaled(world: Place) -> None:
    document = parsed(generated(world, "--scale", "1000", "--robust", "--tolerance", "1"))
    assert document["skipped_seeds"] and not any(case["flags"] for case in document["test_cases"])
    assert verify(document, origin(world)).agrees
    assert not list(jsonschema.Draft202012Validator(reference_schema()).iter_errors(document))
    document["skipped_seeds"][0]["gate_margin"] += 1
    assert not verify(document, origin(world)).agrees


def test_generated_residuals_have_the_bytes_that_they_had(world: Place) -> None:
    """But for where they come from; and a reference that does not say it is still one."""
    document = parsed(generated(world, "--scale", "1"))
    assert document["residuals"] == {"kind": "generator"}
    assert not any("tolerance" in case for case in document["test_cases"])
    assert list(document)[list(document).index("residuals") + 1] == "residual_generator"
    old = {key: value for key, value in document.items() if key != "residuals"}
    old["digest"] = digest(old)
    assert verify(old, origin(world)).agrees and compare(old, answers(old)).facts == compare(document, answers(document)).facts


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_threads_and_processes_give_the_same_bytes(world: Place, tmp_path: Path) -> None:
    """The values travel, not the path: a worker in another folder, without the file, does the same."""
    path = written(tmp_path, {f"layer_{layer}": some_rows(5, layer) for layer in range(N_LAYERS)}, ".npz")
    alone = generated(world, "--residuals", path).stdout
    assert generated(world, "--residuals", path, "--workers", "2").stdout == alone
    job = Job(origin(world), layers="all", residuals=path)
    assert pickle.loads(pickle.dumps(job)) == job
    with ProcessPoolExecutor(1) as pool:
        executor = Late(pool, path)
        [document] = generate([job], executor=executor)
    expected = json.loads(alone)
    assert not os.path.exists(path) and document == {**expected, "environment": document["environment"]}


class Late(Executor):
    """An executor that begins when it has all tasks and their file is gone."""

    def __init__(self, pool: Executor, path: str):
        self._pool, self._path = pool, path
        self._waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self._waiting.append((Future(), fn, arguments))
        if len(self._waiting) == N_LAYERS:
            os.unlink(self._path)
            for future, function, values in self._waiting:
                future.set_result(self._pool.submit(function, *values).result())
        return self._waiting[-1][0]


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes(world: Place, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    path = written(tmp_path, {f"layer_{layer}": some_rows(2, layer) for layer in range(N_LAYERS)}, ".safetensors")
    cluster = Cluster(tmp_path)
    try:
        ran = generated(world, "--residuals", path, "--dask", cluster.address)
        assert ran.returncode == 0 and ran.stdout == generated(world, "--residuals", path).stdout, ran.stderr
        written(tmp_path, {f"layer_{layer}": some_rows(2, layer + 1) for layer in range(N_LAYERS)}, ".safetensors")
        ran = generated(world, "--residuals", path, "--dask", cluster.address)  # other values under one path are other tasks
        assert ran.returncode == 0 and ran.stdout == generated(world, "--residuals", path).stdout, ran.stderr
    finally:
        cluster.close()


def test_a_name_that_reads_as_markup(world: Place, tmp_path: Path) -> None:
    path = written(tmp_path, some_rows(1), ".npy", "<b>\x1b[2J")
    (tmp_path / "reference.json").write_text(generated(world, "--residuals", path).stdout)
    assert read(tmp_path / "reference.json")["residuals"]["name"] == "<b>\x1b[2J.npy"
    assert run("report", str(tmp_path / "reference.json"), "-o", str(tmp_path / "page.html")).returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;\\x1b[2J.npy" in page and "\x1b" not in page
