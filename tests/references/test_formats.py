# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every schema the whole way: against encoders of the tests' own, over every way that files come by."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import Job, Origin, generate
from oracle.job import ALL
from oracle.weights.formats import FORMATS
from tests.support import worlds
from tests.support.encodings import SHAPES, check, comparable, error, own_encoding, parsed, same_types
from tests.support.files import file_server
from tests.support.hub import Hub
from tests.support.places import shared
from tests.support.process import python, run

Document = dict[str, Any]


WAYS = [
    ("GemmaScopeNpz", "float16", True, False), ("PltBundle", "bfloat16", False, True), ("CltSplit", "float32", True, True),
    ("GemmaScope2", "bfloat16", True, True), ("Sae", "float32", False, False),
]


@pytest.mark.parametrize(
    "schema, dtype, threshold, skip", [pytest.param(*way, id=way[0], marks=pytest.mark.slow if way[0] in ("PltBundle", "Sae") else ()) for way in WAYS]
)
def test_every_way(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: str, dtype: str, threshold: bool, skip: bool
) -> None:
    """The Hub, its cache, a stream, a mirror as a folder and behind a file server, verify and compare: one answer."""
    monkeypatch.chdir(tmp_path)
    # More than a stream reads of the end of each file, and of several files less than half.
    world = worlds.make(schema, n_layers=2, d_model=64, n_features=6000, dtype=dtype, threshold=threshold, skip=skip)
    world.add_to(hub)
    output = {"CltSplit": "clt", "Sae": "sae"}.get(schema, "plt") + "_some_reference.json"

    ran = run("--mirror", hub.url, *world.arguments)
    assert ran.returncode == 0 and sorted(os.listdir()) == sorted(["home", output]), ran.stderr
    first = json.loads(Path(output).read_text())
    check(first, world, [0, 1])
    assert first["schema"] == {"CltSplit": "CltSplitJumpReLU"}.get(schema, schema) and first["weights_revision"] == hub.repos[worlds.OWN_REPO].refs["main"]
    files = hub.repos[worlds.OWN_REPO].commits[first["weights_revision"]]
    assert [layer["sha256"] for layer in first["layers"]] == [files[layer["path"]].etag for layer in first["layers"]]
    assert ("threshold" in first["encoder_formula"]) == (threshold or schema == "GemmaScope2")

    verified = run("verify", output, "--mirror", hub.url)
    assert verified.returncode == 0, verified.stderr
    candidate = {"test_cases": [own_encoding(world, case["layer"], case["seed"]) for case in first["test_cases"]]}
    Path("candidate.json").write_text(json.dumps(candidate))
    compared = run("compare", output, "candidate.json")
    assert compared.returncode == 0, compared.stderr
    candidate["test_cases"][3]["n_active"] += 9
    Path("candidate.json").write_text(json.dumps(candidate))
    assert run("compare", output, "candidate.json").returncode == 1

    hub.seen.clear()
    offline = parsed(run("--offline", *world.arguments, "-o", "-"))
    assert comparable(offline) == comparable(first) and not hub.seen

    streamed = parsed(run("--mirror", hub.url, "--stream", *world.arguments, "-o", "-"))
    assert comparable(streamed) == comparable(first, sha256=False)
    sent = sum(request.sent for request in hub.requests("cdn"))
    whole = sum(len(file) for path, file in world.files[worlds.OWN_REPO].items() if path.endswith((".npz", "rs")))
    w_enc = 2 * 64 * 6000 * (4 if dtype == "float32" else 2)
    assert w_enc < sent < w_enc + 2 * 500_000 and (w_enc < 0.52 * whole)

    built = run("mirror", "tree", "--mirror", hub.url, *world.arguments)
    assert built.returncode == 0, built.stderr
    assert comparable(parsed(run("--mirror", "tree", *world.arguments, "-o", "-", "--offline"))) == comparable(first)
    with file_server(Path("tree")) as (url, seen):
        without_range = error(run("--mirror", url, "--stream", *world.arguments, "-o", "-", "--quiet"), 3)
        assert "knows no Range" in without_range and without_range.endswith("leave --stream out")
        behind_server = parsed(run("--mirror", url, "--cache-dir", "other", *world.arguments, "-o", "-"))
    assert comparable(behind_server) == comparable(first) and any(".npz" in line or "safetensors" in line for line in seen)


@settings(deadline=None, max_examples=50)
@given(SHAPES, st.integers(1, 12))
def test_random_shapes(shape: Document, k: int) -> None:
    world = worlds.make(**shape)
    with tempfile.TemporaryDirectory() as folder:
        origin = Origin(world.repo, tuple(world.arguments[3::2]), mirror=world.lay_out(Path(folder)))
        made, = generate([Job(origin, ALL, seeds=2, top_k=k)])
    assert (made["d_model"], made["n_features_per_layer"]) == (shape["d_model"], shape["n_features"])
    check(made, world, list(range(shape["n_layers"])), 2, k)


def test_the_document_has_the_types_that_the_llama_test_reads(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = json.loads(shared("data/plt_llama_reference.json").read_text())
    monkeypatch.chdir(tmp_path)
    repo = "mntss/transcoder-Llama-3.2-1B"
    world = worlds.make("PltBundle", n_layers=16, threshold=False, dtype="bfloat16", skip=True)
    del world.files[worlds.OWN_REPO]["config.yaml"]  # the listing alone tells
    for path, content in world.files[worlds.OWN_REPO].items():
        hub.add(repo, path, content)
    ran = run("--mirror", hub.url, "--repo", repo)
    assert ran.returncode == 0, ran.stderr
    new = json.loads(Path("plt_llama_reference.json").read_text())
    same_types(old, new)
    for key in ("plt_repo", "schema", "encoder_formula"):
        assert new[key] == old[key]
    assert "weights_repo" not in new and "curation_repo" not in new
    cases = [(case["layer"], case["seed"]) for case in old["test_cases"]]
    assert [(case["layer"], case["seed"]) for case in new["test_cases"]] == cases and cases[3][0] == 7


NAMES = {
    "mntss/transcoder-Llama-3.2-1B": ("PltBundle", "", "plt_llama_reference.json"),
    "mntss/clt-gemma-2-2b-426k": ("CltSplit", "", "clt_gemma_reference.json"),
    "mwhanna/qwen3-0.6b-transcoders-lowl0": ("PltBundle", "", "plt_qwen3_reference.json"),
    "google/gemma-scope-2b-pt-res": ("Sae", "", "sae_gemma_reference.json"),
    "org/transcoders": ("PltBundle", "", "plt_model_reference.json"),
    "org/anything": ("PltBundle", "meta-llama/Llama-3.2-1B", "plt_llama_reference.json"),
    "org/transcoder-x": ("CltSplit", "'../../Sae of GPT2_XL'", "clt_of_reference.json"),
}


@pytest.mark.parametrize("repo", NAMES)
def test_the_default_name(repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    schema, model_name, expected = NAMES[repo]
    world = worlds.make(schema, n_layers=1)
    files = world.files[worlds.OWN_REPO]
    kind = {"CltSplit": "cross_layer_transcoder"}.get(schema, "transcoder_set")
    files.pop("config.yaml", None)
    if model_name:
        files["config.yaml"] = f"model_name: {model_name}\nmodel_kind: {kind}\n".encode()
    world.files = {repo: files}
    mirror = world.lay_out(tmp_path / "tree")
    before = set(os.listdir())
    ran = run("--mirror", mirror, "--repo", repo, *world.arguments[2:])
    assert ran.returncode == 0, ran.stderr
    assert set(os.listdir()) - before == {expected} and f"cases -> {expected}" in ran.stderr


def test_where_it_cannot_be_written_shows_before_the_work(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = worlds.make("PltBundle", n_layers=1)
    world.add_to(hub)
    Path("plt_some_reference.json").mkdir()
    ran = run("--mirror", hub.url, *world.arguments)
    assert ran.returncode == 2 and "plt_some_reference.json is a folder" in ran.stderr
    assert not any("safetensors" in request.path for request in hub.seen)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        monkeypatch.chdir(tmp_path / "closed")
    else:  # whom no mode keeps out
        monkeypatch.chdir("/proc")
    hub.seen.clear()
    ran = run("--mirror", hub.url, *world.arguments)
    assert ran.returncode == 2 and "cannot be written to" in ran.stderr and not hub.seen


@pytest.mark.parametrize("schema", [row.name if place % 6 == 0 else pytest.param(row.name, marks=pytest.mark.slow) for place, row in enumerate(FORMATS)])
def test_demos(schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that a demo says for doing it again does, what it wrote is right, and its candidate has the mistake that it says."""
    monkeypatch.chdir(tmp_path)
    ran = run("demo", "--schema", schema, "--folder", "made", "--decode")
    assert ran.returncode == 0, ran.stderr
    output, = Path("made").glob("*_reference.json")
    made = json.loads(output.read_text())
    assert made["schema"] == schema and len(made["test_cases"]) == 9
    command = shlex.split(ran.stderr.splitlines()[-1].removeprefix("Again, by hand: python -m oracle "))
    again = run(*command, "-o", "-")
    assert again.stdout == output.read_text(), again.stderr
    assert run("verify", str(output), "--offline", "--cache-dir", "made/hub").returncode == 0
    wrong = run("compare", str(output), "made/candidate.json", "--explain", "--offline", "--cache-dir", "made/hub")
    assert wrong.returncode == 1 and "b_enc left out" in wrong.stdout + wrong.stderr
    middle = sorted({case["layer"] for case in made["test_cases"]})[1]
    verdict = json.loads(run("compare", str(output), "made/candidate.json", "--format", "json").stdout)
    assert {case["layer"] for case in verdict["test_cases"] if case["status"] == "differs"} == {middle}


ONE_MORE = """
import sys
from oracle.weights import formats
from oracle.weights.formats import DECODER, NAMES, Format, TensorSpec
from oracle.weights.sidefiles import B_DEC, B_ENC, THRESHOLD, W_DEC, W_ENC

formats.FORMATS += (
    Format(
        name="Stacked", encoder_files=("block-{layer}.enc.safetensors",), decoder_file="block-{layer}.dec.safetensors", found_by=(NAMES,),
        model_kind="stacked", repo_key="stack_repo", output="stack",
        tensors=(
            TensorSpec("enc.weight.{layer}", ("d_model", "n_features"), W_ENC), TensorSpec("enc.bias", ("n_features",), B_ENC),
            TensorSpec("dec.weight", ("n_features", "d_model"), W_DEC, role=DECODER), TensorSpec("dec.bias", ("d_model",), B_DEC),
            TensorSpec("gate", ("n_features",), THRESHOLD),
        ),
    ),
)
formats.REPO_KEYS += ("stack_repo",)
from oracle.terminal.commands import main
sys.exit(main(sys.argv[1:]))
"""


def test_one_more_schema_is_one_row(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = worlds.make("CltSplit", n_layers=3)
    for layer, weights in base.weights.items():
        encoder = {
            f"enc.weight.{layer}": weights["w_enc"].T, "enc.bias": weights["b_enc"], "dec.bias": weights["b_dec"],
            "gate": weights["threshold"],
        }
        hub.add("org/stack-of-some", f"deep/block-{layer}.enc.safetensors", worlds.to_safetensors(encoder))
        decoder = {"dec.weight": weights["w_dec"][:, 0]}
        hub.add("org/stack-of-some", f"deep/block-{layer}.dec.safetensors", worlds.to_safetensors(decoder))
    hub.add("org/stack-of-some", "config.yaml", b"model_kind: stacked\n")

    def with_one_more(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python("-c", ONE_MORE, *arguments)

    assert run("--mirror", hub.url, "--repo", "org/stack-of-some").returncode == 4
    ran = with_one_more("--mirror", hub.url, "--repo", "org/stack-of-some", "--decode")
    assert ran.returncode == 0, ran.stderr
    made = json.loads(Path("stack_stack_reference.json").read_text())
    assert made["schema"] == "Stacked" and made["stack_repo"] == "org/stack-of-some"
    check(made, base, [0, 1, 2])
    assert with_one_more("verify", "stack_stack_reference.json", "--mirror", hub.url).returncode == 0
    assert with_one_more("mirror", "tree", "--mirror", hub.url, "--repo", "org/stack-of-some", "--decode").returncode == 0
    assert with_one_more("demo", "--schema", "Stacked", "--folder", "demo", "--decode").returncode == 0
    assert json.loads(Path("demo/stack_gemma_reference.json").read_text())["schema"] == "Stacked"
    again = with_one_more("--mirror", "tree", "--repo", "org/stack-of-some", "--decode", "-o", "-", "--workers", "2")
    assert comparable(parsed(again)) == comparable(made)
