# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every format and architecture in public use, the whole way: against encoders and decoders of the tests' own."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import Job, Origin, generate
from oracle.arithmetic.residual import residual
from oracle.job import ALL
from oracle.weights.formats import FORMATS
from tests.support import chains, scopes
from tests.support.encodings import comparable, error, parsed
from tests.support.files import file_server
from tests.support.hub import Hub
from tests.support.process import run
from tests.support.scopes import ONE_OF_EACH, VARIANTS, Scope

Document = dict[str, Any]


def case_of(scope: Scope, layer: int, seed: int, k: int = 10) -> Document:
    """What the tests' own float64 encoder says of a case."""
    weights = scope.weights[layer]
    r = residual(seed, layer, weights["w_enc"].shape[1])
    acts = chains.activations(scope.chain, weights, chains.encoder_input(scope.chain, weights, r)[0])
    order = sorted(np.flatnonzero(acts).tolist(), key=lambda j: (-acts[j], j))
    return {
        "layer": layer, "seed": seed, "n_active": len(order), f"top_{k}": [{"index": j, "activation": float(np.float32(acts[j]))} for j in order[:k]],
        "reconstructions": [
            {
                "target_layer": (0 if scope.schema == "GemmaScope2Crosscoder" else layer) + target, "first_10": out[:10].tolist(), "sum": out.sum(),
                "norm": np.linalg.norm(out), "sum_of_squares": out @ out,
            }
            for target, out in enumerate(chains.outputs(scope.chain, weights, r))
        ],
    }  # fmt: skip


def check(document: Document, scope: Scope, n_seeds: int, k: int = 10) -> None:
    """Every case as the tests' own encoder and decoder have it."""
    cases = [(case["layer"], case["seed"]) for case in document["test_cases"]]
    assert cases == [(layer, 100 * i + layer) for layer in range(scope.n_layers) for i in range(n_seeds)]
    for case in document["test_cases"]:
        own = case_of(scope, case["layer"], case["seed"], k)
        assert case["n_active"] == own["n_active"] and [top["index"] for top in case[f"top_{k}"]] == [top["index"] for top in own[f"top_{k}"]]
        for top, right in zip(case[f"top_{k}"], own[f"top_{k}"]):
            assert top["activation"] == pytest.approx(right["activation"], rel=1e-6)
        if "reconstructions" not in case:
            continue
        assert len(case["reconstructions"]) == len(own["reconstructions"])
        for output, right in zip(case["reconstructions"], own["reconstructions"]):
            assert output["target_layer"] == right["target_layer"]
            for key in ("first_10", "sum", "norm", "sum_of_squares"):
                assert output[key] == pytest.approx(right[key], rel=1e-5, abs=1e-5), key


def generated(scope: Scope, folder: Path, **job: Any) -> Document:
    path = tuple(value for name, value in zip(scope.arguments, scope.arguments[1:]) if name == "--path")
    more = {"input_scale": scope.chain.scale} if "--input-scale" in scope.arguments else {}
    origin = Origin(scope.repo, path, mirror=scope.lay_out(folder), **more)
    document, = generate([Job(origin, ALL, decode=True, **job)])
    return document


def test_every_format_is_among_the_variants() -> None:
    others = {"GemmaScopeNpz", "CltSplit", "GemmaScope2", "Sae"}  # of worlds.py
    assert set(ONE_OF_EACH) | others == {row.name for row in FORMATS}


@pytest.mark.parametrize("name", VARIANTS)
def test_against_plain_float64(name: str, tmp_path: Path) -> None:
    scope = scopes.make(name)
    document = generated(scope, tmp_path, seeds=2)
    check(document, scope, 2)
    assert (document["schema"], document["d_model"], document["n_features_per_layer"]) == (scope.schema, 24, 60)
    assert {len(case["residual"]) for case in document["test_cases"]} == {72 if name == "crosscoder" else 24}
    gate = document["gate"]
    kind = scope.chain.gate.removesuffix(" of all")
    assert gate["kind"] == kind and gate.get("k") == (scope.chain.k or None)
    assert gate.get("relu") == ({"topk": True, "topk of all": False}.get(scope.chain.gate))
    chain = scope.chain
    normalised = "scaled" if chain.root else chain.normalised
    assert document["encoder_input"]["kind"] == (normalised or ("minus_b_dec" if chain.minus_b_dec else "identity"))
    assert (document["encoder_input"].get("then") == "minus_b_dec") is (bool(normalised) and chain.minus_b_dec)
    changed = bool(normalised) or chain.minus_b_dec
    assert all(("encoder_input_fingerprint" in case) is changed for case in document["test_cases"])
    assert ("- b_dec" in document["encoder_formula"]) is chain.minus_b_dec and (f"k = {chain.k}" in document["encoder_formula"]) is bool(chain.k)
    side = {layer.get("side_path") for layer in document["layers"]}
    assert side == ({scope.variant.beside.format(layer=layer) for layer in range(3)} if scope.variant.beside else {None})


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(list(VARIANTS)), st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 60), st.integers(2, 40),
    st.sampled_from(["float32", "float16", "bfloat16"]), st.integers(1, 12),
)  # fmt: skip
def test_random_shapes(name: str, seed: int, n_layers: int, d_model: int, groups: int, dtype: str, k: int) -> None:
    scope = scopes.make(name, seed=seed, n_layers=n_layers, d_model=d_model, n_features=5 * groups, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        check(generated(scope, Path(folder), seeds=1, top_k=k), scope, 1, k)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=row, marks=() if place % 4 == 0 else pytest.mark.slow) for place, (row, name) in enumerate(ONE_OF_EACH.items())],
)
def test_every_way(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The Hub, its cache, a stream, a mirror as a folder and behind a file server, workers, verify, compare and report: one answer."""
    monkeypatch.chdir(tmp_path)
    scope = scopes.make(name, n_layers=2, d_model=24, n_features=200, dtype="float16")
    scope.add_to(hub)
    command = (*scope.arguments, "--decode", "--seeds", "2")
    ran = run("--mirror", hub.url, *command, "-o", "first.json")
    assert ran.returncode == 0, ran.stderr
    first = json.loads(Path("first.json").read_text())
    check(first, scope, 2)
    assert first["weights_revision"] == hub.repos[scope.repo].refs["main"]
    files = hub.repos[scope.repo].commits[first["weights_revision"]]
    for layer in first["layers"]:
        assert layer["sha256"] == files[layer["path"]].etag and ("side_path" not in layer or len(layer["side_sha256"]) == 64)

    assert run("verify", "first.json", "--mirror", hub.url).returncode == 0
    candidate = {"test_cases": [case_of(scope, case["layer"], case["seed"]) for case in first["test_cases"]]}
    Path("candidate.json").write_text(json.dumps(candidate))
    compared = run("compare", "first.json", "candidate.json")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert run("report", "first.json", "candidate.json", "-o", "report.html").returncode == 0 and "</html>" in Path("report.html").read_text()
    candidate["test_cases"][3]["n_active"] += 90
    Path("candidate.json").write_text(json.dumps(candidate))
    assert run("compare", "first.json", "candidate.json", "--explain", "--mirror", hub.url).returncode == 1

    hub.seen.clear()
    assert comparable(parsed(run("--offline", *command, "-o", "-"))) == comparable(first) and not hub.seen
    assert comparable(parsed(run("--offline", *command, "-o", "-", "--workers", "2"))) == comparable(first)
    streamed = parsed(run("--mirror", hub.url, "--stream", *command, "-o", "-"))
    assert comparable(streamed, sha256=False) == comparable(first, sha256=False)

    built = run("mirror", "tree", "--mirror", hub.url, *scope.arguments, "--decode")
    assert built.returncode == 0, built.stderr
    assert comparable(parsed(run("--mirror", "tree", *command, "-o", "-", "--offline"))) == comparable(first)
    with file_server(Path("tree")) as (url, _):
        assert comparable(parsed(run("--mirror", url, "--cache-dir", "other", *command, "-o", "-"))) == comparable(first)


# --- how one names it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH.values() if "--path" in scopes.make(name, n_layers=1).arguments])
def test_a_folder_stands_for_the_file_in_it(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As SAELens's directory has it: `path` is a folder or a file."""
    monkeypatch.chdir(tmp_path)
    scope = scopes.make(name, n_layers=2)
    if scope.schema in ("QwenScope", "Goodfire", "QResearch", "HookZ", "GemmaScope2Clt", "GemmaScope2Crosscoder"):
        return  # several files in one folder
    scope.add_to(hub)
    path = scope.paths[1]
    by_file = parsed(run("--mirror", hub.url, "--repo", scope.repo, "--path", path, *scope.variant.options, "-o", "-"))
    folder = os.path.dirname(path).removesuffix("/checkpoints")
    by_folder = parsed(run("--mirror", hub.url, "--repo", scope.repo, "--path", folder, *scope.variant.options, "-o", "-"))
    by_repo = parsed(run("--mirror", hub.url, "--repo", f"{scope.repo}/{folder}", *scope.variant.options, "-o", "-"))
    assert comparable(by_file) == comparable(by_folder) == comparable(by_repo) and {case["layer"] for case in by_file["test_cases"]} == {1}


def test_a_list_in_a_subfolder(hub: Hub, tmp_path: Path) -> None:
    """Gemma Scope 2 through mwhanna: FOLDER/config.yaml has an hf:// list."""
    from tests.support import worlds

    world = worlds.make("GemmaScope2", n_layers=3)
    config = world.files[worlds.LIST_REPO]["config.yaml"]
    for path, content in world.files[worlds.OWN_REPO].items():
        hub.add(worlds.OWN_REPO, path, content)
    hub.add("mwhanna/gemma-scope-2-x", "transcoder_all/width_16k/config.yaml", config)
    by_path = parsed(run("--mirror", hub.url, "--repo", "mwhanna/gemma-scope-2-x", "--path", "transcoder_all/width_16k", "-o", "-"))
    by_repo = parsed(run("--mirror", hub.url, "--repo", "mwhanna/gemma-scope-2-x/transcoder_all/width_16k", "-o", "-"))
    assert comparable(by_path) == comparable(by_repo) and by_path["schema"] == "GemmaScope2"
    assert len(by_path["test_cases"]) == 9 and by_path["curation_repo"] == "mwhanna/gemma-scope-2-x/transcoder_all/width_16k"
    (tmp_path / "r.json").write_text(json.dumps(by_path))
    assert run("verify", str(tmp_path / "r.json"), "--mirror", hub.url).returncode == 0


def test_k_of_qwen_scope(hub: Hub) -> None:
    """In the repo's name, by --k, or an error that names the option; both, and not the same, are one too."""
    scope = scopes.make("qwen", n_layers=1)
    for repo in (scope.repo, "Qwen/another-name"):
        for path, content in scope.files[scope.repo].items():
            hub.add(repo, path, content)

    def ran(repo: str, *more: str) -> Any:
        return run("--mirror", hub.url, "--repo", repo, "--path", scope.paths[0], "-o", "-", *more, "--quiet")

    by_name = parsed(ran(scope.repo))
    assert by_name["gate"] == {"kind": "topk", "k": 5, "relu": True}
    by_option = parsed(ran("Qwen/another-name", "--k", "5"))
    assert by_option["test_cases"] == by_name["test_cases"]
    assert parsed(ran("Qwen/another-name", "--k", "7"))["gate"]["k"] == 7
    assert "--k" in error(ran("Qwen/another-name"))
    said = error(ran(scope.repo, "--k", "7"))
    assert "k = 5" in said and "k = 7" in said


def test_the_scale_that_stands_nowhere(hub: Hub) -> None:
    scope = scopes.make("saelens average", n_layers=1)
    scope.add_to(hub)
    which = ("--mirror", hub.url, "--repo", scope.repo, "--path", scope.paths[0], "-o", "-", "--quiet")
    said = error(run(*which))
    assert "expected_average_only_in" in said and "--input-scale" in said and "cfg.json" in said
    document = parsed(run(*which, "--input-scale", "0.25"))
    assert document["encoder_input"] == {"kind": "scaled", "factor": 0.25}


def test_a_factor_of_each_layer(tmp_path: Path) -> None:
    """Llama Scope's average norms differ from layer to layer, and so do the factors."""
    scope = scopes.make("llama scope", n_layers=2)
    other = {**scope.variant.side, "dataset_average_activation_norm": {"in": 6.0, "out": 6.0}}
    scope.files[scope.repo]["Llama-L1R-8x/hyperparams.json"] = json.dumps(other).encode()
    document = generated(scope, tmp_path, seeds=1)
    assert document["encoder_input"] == {"kind": "scaled", "factor_of_layer": {"0": 24**0.5 / 3, "1": 24**0.5 / 6}}
    (tmp_path / "r.json").write_text(json.dumps(document))
    assert run("verify", str(tmp_path / "r.json"), "--mirror", str(tmp_path)).returncode == 0
