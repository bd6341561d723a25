# SPDX-License-Identifier: MIT OR Apache-2.0
"""--decode: reconstructions against plain float64, the same bytes on every machine, and which ports pass."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings

from oracle import Job, Origin, compare, generate, verify
from oracle.arithmetic.residual import residual
from oracle.job import ALL
from tests.support import worlds
from tests.support.encodings import SHAPES, comparable, parsed
from tests.support.hub import Hub
from tests.support.process import cores, oracle, run

Document = dict[str, Any]
Vectors = dict[int, np.ndarray]  # by target layer
Adder = Callable[[np.ndarray], np.ndarray]  # [n, d_model] -> [d_model]


def own_outputs(world: worlds.World, layer: int, seed: int, add: Adder, dtype: type, b_dec: bool = True) -> Vectors:
    """A port's: activations as it stores them, times the rows of W_dec that are active, added up its way."""
    weights = world.weights[layer]
    values = residual(seed, layer, weights["w_enc"].shape[1])
    pre, active = worlds.encode(weights, values)
    activations = pre[active].astype(np.float32).astype(dtype)[:, np.newaxis]
    outputs = {}
    for target in range(weights["w_dec"].shape[1]):
        summands = [weights["w_dec"][active, target].astype(dtype) * activations]
        if target == 0:
            summands += [weights["b_dec"][np.newaxis].astype(dtype)] if b_dec else []
            if "w_skip" in weights:
                summands.append(weights["w_skip"].astype(dtype) * values[:, np.newaxis].astype(dtype))
        outputs[layer + target] = add(np.concatenate(summands))
    return outputs


def record(outputs: Vectors) -> list[Document]:
    return [
        {
            "target_layer": target, "norm": float(np.sqrt(np.sum(np.square(values, dtype=np.float64)))),
            "sum": float(values.sum(dtype=np.float64)), "sum_of_squares": float(np.square(values, dtype=np.float64).sum()),
            "first_10": [float(value) for value in values[:10]],
        }
        for target, values in outputs.items()
    ]  # fmt: skip


def one_by_one(summands: np.ndarray) -> np.ndarray:
    total = np.zeros(summands.shape[1], summands.dtype)
    for summand in summands:
        total += summand
    return total


def in_blocks(summands: np.ndarray) -> np.ndarray:
    parts = [one_by_one(summands[start : start + 8]) for start in range(0, len(summands), 8)]
    return one_by_one(np.array(parts, summands.dtype).reshape(len(parts), summands.shape[1]))


def smallest_first(summands: np.ndarray) -> np.ndarray:
    return one_by_one(summands[np.argsort(np.abs(summands).sum(axis=1))])


ORDERS: dict[str, Adder] = {
    "one by one": one_by_one,
    "from the end": lambda summands: one_by_one(summands[::-1]),
    "in blocks": in_blocks,
    "smallest first": smallest_first,
    "BLAS": lambda summands: np.ones(len(summands), summands.dtype) @ summands,
}


def generated(world: worlds.World, folder: str, **options: Any) -> Document:
    origin = Origin(world.repo, tuple(world.arguments[3::2]), mirror=world.lay_out(Path(folder)))
    reference, = generate([Job(origin, ALL, decode=True, **options)])
    return reference


def plain_float64(summands: np.ndarray) -> np.ndarray:
    total: np.ndarray = summands.sum(axis=0)
    return total


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_against_plain_float64(shape: Document) -> None:
    """All that is said of every output, and no right port in float32 is off by more than its tolerance."""
    world = worlds.make(**shape)
    with tempfile.TemporaryDirectory() as folder:
        made = generated(world, folder, seeds=2, tolerance=1e-6)
    candidate: Document = {"test_cases": []}
    for number, case in enumerate(made["test_cases"]):
        right = own_outputs(world, case["layer"], case["seed"], plain_float64, np.float64)
        assert [one["target_layer"] for one in case["reconstructions"]] == list(right)
        for one, expected in zip(case["reconstructions"], record(right)):
            size = max(np.abs(right[one["target_layer"]]).max(), 1.0)
            for key in ("norm", "sum", "sum_of_squares", "first_10"):
                assert one[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-9 * size)
        add = list(ORDERS.values())[number % len(ORDERS)]
        port = own_outputs(world, case["layer"], case["seed"], add, np.float32)
        candidate["test_cases"].append({**case, "reconstructions": record(port)})
    verdict = compare(made, candidate)
    assert verdict.agrees, [problem for one in verdict.cases for problem in one.problems]


@pytest.mark.parametrize("schema", ["PltBundle", "CltSplit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("GemmaScopeNpz", "GemmaScope2", "Sae"))])
def test_ports_in_any_order_pass_and_wrong_ones_do_not(schema: str, tmp_path: Path) -> None:
    world = worlds.make(schema, n_layers=2, d_model=64, n_features=3000, threshold=False, skip=True)
    made = generated(world, str(tmp_path))
    (tmp_path / "reference.json").write_text(json.dumps(made))

    def compared(change: Callable[[Document], None] = lambda case: None, **port: Any) -> tuple[int, str]:
        cases = [dict(case) for case in made["test_cases"]]
        for case in cases:
            outputs = own_outputs(world, case["layer"], case["seed"], **{"add": one_by_one, "dtype": np.float32, **port})
            case["reconstructions"] = record(outputs)
            change(case)
        (tmp_path / "candidate.json").write_text(json.dumps({"test_cases": cases}))
        ran = run("compare", str(tmp_path / "reference.json"), str(tmp_path / "candidate.json"), "--format", "json")
        return ran.returncode, ran.stdout + ran.stderr

    for add in ORDERS.values():
        code, said = compared(add=add)
        assert code == 0, said
    code, said = compared(b_dec=False)
    assert code == 1 and "value 0 of the reconstruction of layer 0 is" in said

    def without_the_last(case: Document) -> None:
        case["reconstructions"].pop()

    code, said = compared(without_the_last)
    assert code == 1 and f"the reconstruction of layer {1 if schema == 'CltSplit' else 0} is missing" in said
    code, said = compared(lambda case: case.pop("reconstructions"))
    paths = str(tmp_path / "reference.json"), str(tmp_path / "candidate.json")
    assert json.loads(run("compare", *paths, "--format", "json").stdout)["not_compared"] == "reconstructions"
    suite = ElementTree.fromstring(run("compare", *paths, "--format", "junit").stdout)
    assert (suite.get("tests"), suite.get("skipped")) == (str(len(made["test_cases"]) + 1), "1")
    assert suite.find("testcase[@name='reconstructions']/skipped") is not None
    assert "The candidate has no reconstructions" in run("report", *paths, "-o", "-").stdout
    assert code == 0 and json.loads(said)["not_compared"] == "reconstructions"

    # What a port prints of a vector is each held to the tolerance that it stands with.
    def off(key: str, by: float) -> Callable[[Document], None]:
        def change(case: Document) -> None:
            for one, right in zip(case["reconstructions"], made["test_cases"][0]["reconstructions"]):
                if key == "first_10":
                    one[key][9] += by * right["tolerance"]
                else:
                    one[key] += by * right["tolerance"] * 64 * (2 * right["norm"] if key == "sum_of_squares" else 1)

        return change

    for key in ("first_10", "norm", "sum", "sum_of_squares"):
        assert compared(off(key, 0.0))[0] == 0
        code, said = compared(off(key, 30.0))
        assert code == 1 and "the reconstruction of layer" in said, key


@pytest.mark.parametrize("schema", worlds.SCHEMAS)
def test_ports_that_are_off_by_the_tolerance_pass(schema: str, tmp_path: Path) -> None:
    """Whoever passes on the encodings, features that come and go at their gates among them, passes on the outputs."""
    world = worlds.make(schema, n_layers=2, n_features=700, threshold=False, skip=True)
    tolerance = 2e-3
    made = generated(world, str(tmp_path), seeds=20, tolerance=tolerance, top_k=5)
    assert sum("gate-tie" in case["flags"] for case in made["test_cases"]) > 10
    rng = np.random.default_rng(1)
    candidate: Document = {"test_cases": []}
    for case in made["test_cases"]:
        weights = world.weights[case["layer"]]
        pre, _ = worlds.encode(weights, residual(case["seed"], case["layer"], 24))
        ours = pre + rng.uniform(-0.99, 0.99, len(pre)) * tolerance
        gate = np.maximum(weights["threshold"], 0) if "threshold" in weights else 0
        if case["seed"] // 100 % 2:  # all that may fire does
            ours = np.where(np.abs(pre - gate) < 0.98 * tolerance, gate + 0.01 * tolerance, ours)
        active = np.flatnonzero(ours > gate)
        top = sorted(active.tolist(), key=lambda j: -ours[j])[:5]
        off = {**weights, "b_enc": weights["b_enc"] + (ours - pre)}
        port = own_outputs(replace(world, weights={case["layer"]: off}), case["layer"], case["seed"], plain_float64, np.float64)
        answer = {"layer": case["layer"], "seed": case["seed"], "n_active": len(active), "reconstructions": record(port)}
        candidate["test_cases"].append({**answer, "top_5": [{"index": j, "activation": float(ours[j])} for j in top]})
    verdict = compare(made, candidate)
    assert verdict.agrees, [problem for one in verdict.cases for problem in one.problems]


@pytest.mark.parametrize("schema", ["CltSplit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PltBundle", "GemmaScopeNpz"))])
def test_the_same_bytes_however_it_is_made(hub: Hub, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = worlds.make(schema, n_layers=2, d_model=512, n_features=1500, threshold=False, skip=True, dtype="bfloat16")
    world.add_to(hub)
    arguments = ["--mirror", hub.url, *world.arguments, "--decode", "-o", "-"]
    made = parsed(run(*arguments))
    variants = [{"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": n} for core, n in zip(cores(), "1212")]
    others = [parsed(oracle(*arguments, environment=variant)) for variant in variants]
    assert len({document["environment"]["blas_kernel"] for document in others}) >= 3
    for other in [*others, parsed(run(*arguments, "--workers", "2"))]:
        assert comparable(other) == comparable(made)
    assert comparable(parsed(run(*arguments, "--stream")), sha256=False) == comparable(made, sha256=False)
    one = parsed(run(*arguments, "--seeds", "1"))
    assert one["test_cases"] == [case for case in made["test_cases"] if case["seed"] < 100]
    few = parsed(run(*arguments, "--seeds", "21", "--omit-residuals"))
    for case in made["test_cases"]:
        again = next(other for other in few["test_cases"] if (other["layer"], other["seed"]) == (case["layer"], case["seed"]))
        assert again == {key: value for key, value in case.items() if key != "residual"}


EDITS: dict[str, Callable[[Document], Any]] = {
    "norm": lambda one: one.update(norm=one["norm"] * (1 + 1e-15)),
    "sum": lambda one: one.update(sum=one["sum"] + 1e-12),
    "sum of squares": lambda one: one.update(sum_of_squares=one["sum_of_squares"] * (1 + 1e-15)),
    "a value": lambda one: one["first_10"].__setitem__(3, one["first_10"][3] + 1e-12),
    "one value less": lambda one: one["first_10"].pop(),
    "tolerance": lambda one: one.update(tolerance=one["tolerance"] * 2),
    "target layer": lambda one: one.update(target_layer=9),
}


def test_verify_finds_what_was_edited(tmp_path: Path) -> None:
    world = worlds.make("CltSplit", n_layers=2, skip=True)
    made = generated(world, str(tmp_path / "tree"))

    def verified(document: Document) -> int:
        return 0 if verify(document, Origin(mirror=str(tmp_path / "tree"))).agrees else 1

    assert verified(made) == 0
    for name, edit in EDITS.items():
        for case, target in ((0, 1), (4, 0)):
            edited = json.loads(json.dumps(made))
            edit(edited["test_cases"][case]["reconstructions"][target])
            assert verified(edited) == 1, (name, case)
    edited = json.loads(json.dumps(made))
    edited["test_cases"][0]["reconstructions"].pop()
    assert verified(edited) == 1
    for n_cases in (1, 3):  # of the first layer some, and all
        for case in edited["test_cases"][:n_cases]:
            case.pop("reconstructions", None)
        assert verified(edited) == 1
    for case in edited["test_cases"]:
        case["reconstructions"] = []
    assert verified(edited) == 1


BAD: dict[str, tuple[Any, str]] = {
    "no list": (3, "reconstructions is 3"),
    "no object": ([4], "reconstructions[0] is 4"),
    "a key missing": ([{"target_layer": 0, "sum": 1.0, "sum_of_squares": 1.0, "first_10": []}], "norm is missing"),
    "a text": ([{"target_layer": 0, "norm": "1", "sum": 1.0, "sum_of_squares": 1.0, "first_10": []}], "norm is '1'"),
    "infinity": ([{"target_layer": 0, "norm": 1e308 * 10, "sum": 1.0, "sum_of_squares": 1.0, "first_10": []}], "JSON"),
    "values": ([{"target_layer": 0, "norm": 1, "sum": 1.0, "sum_of_squares": 1.0, "tolerance": 1, "first_10": [[1]]}], "first_10"),
    "twice": ([{"target_layer": 0, "norm": 1, "sum": 1.0, "sum_of_squares": 1.0, "tolerance": 1, "first_10": []}] * 2, "there already"),
}


@pytest.mark.parametrize("name", BAD)
def test_reconstructions_that_are_none(tmp_path: Path, name: str) -> None:
    bad, message = BAD[name]
    world = worlds.make("PltBundle", n_layers=1)
    made = generated(world, str(tmp_path / "tree"))
    (tmp_path / "reference.json").write_text(json.dumps(made))
    made["test_cases"][1]["reconstructions"] = bad
    (tmp_path / "candidate.json").write_text(json.dumps(made))
    for command in (["compare", "reference.json"], ["verify"]):
        ran = run(*command, "candidate.json", cwd=tmp_path)
        assert ran.returncode == 4 and message in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr


def test_decoders_that_are_none(tmp_path: Path) -> None:
    """Only --decode reads W_dec, and what it finds there must be real."""
    for bad, message in ((np.nan, "W_dec_1 has 1 values that are NaN or infinite"), (np.inf, "W_dec_1 has 1 values")):
        world = worlds.make("CltSplit", n_layers=2)
        weights = world.weights[1]["w_dec"].copy()
        case = residual(1, 1, 24)
        fires = int(np.flatnonzero(worlds.encode(world.weights[1], case)[1])[0])
        weights[fires, 0, 3] = bad
        world.files[worlds.OWN_REPO]["W_dec_1.safetensors"] = worlds.to_safetensors({"W_dec_1": weights})
        tree = world.lay_out(tmp_path / str(bad))
        arguments = ["--mirror", tree, *world.arguments, "-o", os.devnull]
        assert run(*arguments).returncode == 0
        ran = run(*arguments, "--decode")
        assert ran.returncode == 4 and message in ran.stderr, ran.stderr
    (tmp_path / "nan/org/Some-Model-3B-transcoders/resolve/main/W_dec_0.safetensors").unlink()
    ran = run("--mirror", str(tmp_path / "nan"), *world.arguments, "-o", os.devnull, "--decode")
    assert ran.returncode == 3 and "W_dec_0.safetensors" in ran.stderr
