# SPDX-License-Identifier: MIT OR Apache-2.0
"""--robust: cases that no rounding flips, the seeds passed over on record, and an end where there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle import Origin, verify
from tests.support import worlds
from tests.support.process import run

Document = dict[str, Any]
TOLERANCE = 2e-3  # of ReLU's 400 features one in about four cases is this near to its gate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, worlds.World, Document]:
    """A folder with a mirror and a robust reference of its two layers."""
    folder = tmp_path_factory.mktemp("robust")
    world = worlds.make("PltBundle", n_layers=2, n_features=400, threshold=False)
    world.lay_out(folder / "tree")
    ran = generate(folder, world, "--robust")
    assert ran.returncode == 0, ran.stderr
    return folder, world, json.loads((folder / "reference.json").read_text())


def generate(folder: Path, world: worlds.World, *options: str) -> Any:
    output = str(folder / "reference.json")
    return run("--mirror", str(folder / "tree"), *world.arguments, "--layers", "all", "--tolerance", str(TOLERANCE), "-o", output, *options)


def test_no_case_has_a_flag_and_the_others_are_on_record(made: tuple[Path, worlds.World, Document]) -> None:
    folder, world, reference = made
    skipped = reference["skipped_seeds"]
    assert len(skipped) >= 4 and {record["layer"] for record in skipped} == {0, 1}
    assert not any(case["flags"] for case in reference["test_cases"]) and all(record["flags"] for record in skipped)
    for layer in (0, 1):
        kept = [case["seed"] for case in reference["test_cases"] if case["layer"] == layer]
        passed = [record["seed"] for record in skipped if record["layer"] == layer]
        # None was left out, and none was tried in vain behind the last.
        assert len(kept) == 3 and sorted(kept + passed) == list(range(layer, max(kept) + 1, 100)) and passed == sorted(passed)
    for record in skipped:
        pre, _ = worlds.encode(worlds.read_weights(world, record["layer"]), _residual(reference, record))
        if "gate-tie" in record["flags"]:
            assert np.abs(pre).min() <= TOLERANCE and record["gate_margin"] <= TOLERANCE
            fewest, most = record["n_active_bounds"]
            assert (fewest, most) == (np.count_nonzero(pre > TOLERANCE), np.count_nonzero(pre > -TOLERANCE)) and fewest < most
    without = generate(folder, world, "--seeds", "9", "-o", "-")
    flagged = {(case["layer"], case["seed"]) for case in json.loads(without.stdout)["test_cases"] if case["flags"]}
    assert flagged >= {(record["layer"], record["seed"]) for record in skipped if record["seed"] < 900}


def _residual(reference: Document, record: Document) -> np.ndarray:
    """By the command, which knows nothing of the reference."""
    where = ["--seed", str(record["seed"]), "--stream", str(record["layer"]), "--length", str(reference["d_model"])]
    bits = [int(line, 16) for line in run("residual", *where, "--hex").stdout.split()]
    return np.array(bits, np.uint32).view(np.float32)


def test_none_is_passed_over(made: tuple[Path, worlds.World, Document]) -> None:
    """An empty list says so: without one nobody would know that all seeds count."""
    folder, world, _ = made
    ran = generate(folder, world, "--robust", "--seeds", "1", "--tolerance", "1e-6", "-o", "-")
    assert json.loads(ran.stdout)["skipped_seeds"] == []


EDITS: dict[str, tuple[Callable[[Document], Any], str]] = {
    "a seed": (lambda d: d["skipped_seeds"][0].update(seed=d["skipped_seeds"][0]["seed"] + 4200), "skipped seed"),
    "bounds": (lambda d: d["skipped_seeds"][1].update(n_active_bounds=[0, 400]), "skipped seed"),
    "a margin": (lambda d: d["skipped_seeds"][0].update(gate_margin=0.0001), "skipped seed"),
    "flags": (lambda d: d["skipped_seeds"][-1].update(flags=["rank-tie", "gate-tie"]), "skipped seed"),
    "a rank margin": (lambda d: d["skipped_seeds"][0].update(rank_margin=None), "skipped seed"),
    "a record left out": (lambda d: d["skipped_seeds"].pop(0), "neither that of a case nor among skipped_seeds"),
    "all left out": (lambda d: d["skipped_seeds"].clear(), "neither that of a case nor among skipped_seeds"),
    "a case left out": (lambda d: d["test_cases"].pop(0), "neither that of a case nor among skipped_seeds"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_is_found(made: tuple[Path, worlds.World, Document], name: str) -> None:
    folder, _, reference = made
    edit, message = EDITS[name]
    reference, origin = json.loads(json.dumps(reference)), Origin(mirror=str(folder / "tree"))
    assert verify(reference, origin).agrees
    edit(reference)
    found = verify(reference, origin)
    assert not found.agrees and any(message in problem for problem in found.problems), found.problems


@pytest.mark.parametrize("record", [{}, {"layer": 0, "seed": -1}, {"layer": 7, "seed": 7}, {"layer": 0, "seed": 1.5}, 3], ids=str)
def test_records_that_are_none(made: tuple[Path, worlds.World, Document], tmp_path: Path, record: Any) -> None:
    folder, _, reference = made
    (tmp_path / "reference.json").write_text(json.dumps({**reference, "skipped_seeds": [record]}))
    ran = run("verify", str(tmp_path / "reference.json"), "--mirror", str(folder / "tree"))
    assert ran.returncode == 4 and "skipped_seeds[0]" in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_a_layer_without_any_such_seed(tmp_path: Path) -> None:
    """A dead feature whose bias is 0 stands at ReLU's gate whatever the residual is."""
    world = worlds.make("PltBundle", n_layers=2, threshold=False)
    weights = {**world.weights[1], "W_enc": world.weights[1]["w_enc"].copy(), "b_enc": world.weights[1]["b_enc"].copy()}
    weights["W_enc"][7], weights["b_enc"][7] = 0, 0
    arrays = {"W_enc": weights["W_enc"], "W_dec": weights["w_dec"][:, 0], "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    world.files[worlds.OWN_REPO]["layer_1.safetensors"] = worlds.to_safetensors(arrays)
    world.lay_out(tmp_path / "tree")
    output = tmp_path / "reference.json"
    output.write_text("old")
    for workers in ("1", "2"):
        ran = generate(tmp_path, world, "--robust", "--workers", workers)
        last = ran.stderr.splitlines()[-1]
        assert ran.returncode == 4 and output.read_text() == "old"
        assert "layer 1: 0 of 3 cases found, and 100 seeds gave one with a flag: 100 have gate-tie" in last
        assert last.endswith("; no margin that can be recorded helps: leave out --robust")
    ran = generate(tmp_path, world)
    assert ran.returncode == 0 and json.loads(output.read_text())["test_cases"][3]["gate_ties"] == [7]


def test_a_margin_of_its_own(tmp_path: Path) -> None:
    """A tolerance that nothing keeps to, and a margin that most do: the cases keep their flags, and the margin is on record."""
    world = worlds.make("PltBundle", n_layers=2, n_features=400, threshold=False)
    world.lay_out(tmp_path / "tree")
    wide = generate(tmp_path, world, "--robust", "--tolerance", "0.05")
    assert wide.returncode == 4
    margin = wide.stderr.split("; --robust ")[1].split()[0]  # what is advised
    assert 0.0001 < float(margin) < 0.05 and wide.stderr.rstrip().endswith(f"--robust {margin} keeps enough of them, or leave out --robust")
    ran = generate(tmp_path, world, "--robust", margin, "--tolerance", "0.05")
    assert ran.returncode == 0, ran.stderr
    reference = json.loads((tmp_path / "reference.json").read_text())
    assert reference["robust_margin"] == float(margin) and reference["tolerance"] == 0.05 and reference["skipped_seeds"]
    assert all(case["gate_margin"] > float(margin) and case["rank_margin"] > 2 * float(margin) for case in reference["test_cases"])
    assert all(record["gate_margin"] <= float(margin) or record["rank_margin"] <= 2 * float(margin) for record in reference["skipped_seeds"])
    assert any(case["flags"] for case in reference["test_cases"])
    origin = Origin(mirror=str(tmp_path / "tree"))
    assert verify(reference, origin).agrees
    assert not verify({**reference, "robust_margin": float(margin) / 4}, origin).agrees


def test_where_nothing_fires_no_margin_is_advised(tmp_path: Path) -> None:
    world = worlds.make("PltBundle", n_layers=2, threshold=False)
    for layer in (0, 1):
        weights = world.weights[layer]
        arrays = {"W_enc": weights["w_enc"], "W_dec": weights["w_dec"][:, 0], "b_enc": np.full_like(weights["b_enc"], -1e4), "b_dec": weights["b_dec"]}
        world.files[worlds.OWN_REPO][f"layer_{layer}.safetensors"] = worlds.to_safetensors(arrays)
    world.lay_out(tmp_path / "tree")
    ran = generate(tmp_path, world, "--robust")
    assert ran.returncode == 4 and "100 have no-active-features; where nothing fires no margin helps" in ran.stderr and "--tolerance" not in ran.stderr


@pytest.mark.parametrize("margin", ["0", "-1", "1e-7", "many", "nan"])
def test_margins_that_are_none(margin: str) -> None:
    ran = run("--robust", margin, "--offline")
    assert ran.returncode == 2 and f"--robust: '{margin}' is not a number from 1e-06" in ran.stderr
