# SPDX-License-Identifier: MIT OR Apache-2.0
"""Never a wrong number with exit 0: a row for each way in which there was one, with the wrong input built for real.

What concerns the Hub alone, secrets with it, is in tests/sources/test_trust_hub.py.
"""

from __future__ import annotations

import concurrent.futures
import copy
import io
import json
import os
import shutil
import struct
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle as library
from oracle.checking.verify import verify
from oracle.job import Job, Origin
from oracle.references.document import digest, to_json
from oracle.references.generate import generate
from oracle.references.reading import parse_reference
from oracle.references.recorded import RecordedWeights
from oracle.references.rows import DataError
from oracle.sources.source import FileEvents, Source
from oracle.vectors import demo
from tests.support import worlds
from tests.support.encodings import parsed
from tests.support.hub import Hub
from tests.support.process import Completed, oracle, run, started
from tests.support.small_scope import layer_arrays, npz

REPO = "org/some-transcoder-3b"


def fails(ran: Completed, *words: str, code: int = 4) -> None:
    assert ran.returncode == code, (ran.returncode, ran.stderr)
    *others, line = ran.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), ran.stderr
    assert all(other.startswith("could not verify") for other in others), ran.stderr


def lay_out(folder: Path, files: dict[str, bytes], repo: str = REPO) -> list[str]:
    """A mirror in a folder without a manifest; the options that read it."""
    for path, content in files.items():
        place = folder / repo / "resolve/main" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return ["--mirror", str(folder), "--repo", repo, "-o", "-"]


def bundle(seed: int = 0, d_model: int = 16, n_features: int = 48, **more: np.ndarray) -> bytes:
    """A PltBundle layer."""
    arrays = layer_arrays(seed, d_model, n_features)
    del arrays["threshold"]
    return worlds.to_safetensors({**arrays, "W_enc": arrays["W_enc"].T.copy(), **more})


# --- 1, 2, 13, 14: what a side file, a file's name and a tensor's name say ------------------------------------------


KINDS = "model_kind: transcoder_set\n"


@pytest.mark.parametrize(
    "config, words",
    [
        ("activation: topk\nk: 128\n", ("layer_0.safetensors", "the 128 largest of 48 features")),
        ("activation: topk\n", ("layer_0.safetensors", "top-k gate without k", "--k")),
        ("activation: topk\nk: 7.5\n", ("config.yaml", "`k`")),
        ("k: 128\n", ("config.yaml", "`k`", "activation: topk")),
        ("activation: jumprelu\n", ("no threshold", "jumprelu")),
        ("activation: gelu\n", ("config.yaml", "`activation`", "gelu")),
        ("normalize_activations: expected_average_only_in\n", ("config.yaml", "`normalize_activations`", "expected_average_only_in", "--ignore-key")),
        ("scale: [1, 2]\n", ("config.yaml", "`scale`", "a list", "--ignore-key")),
    ],
)
@pytest.mark.parametrize("where", ["repo", "list", "folder"])
def test_1_a_side_file_is_obeyed_or_refused(tmp_path: Path, config: str, words: tuple[str, ...], where: str) -> None:
    weights = {f"layer_{layer}.safetensors": bundle(layer) for layer in range(3)}
    if where == "list":
        config += "transcoders:\n" + "".join(f"  - hf://{REPO}/{path}\n" for path in weights)
    files = {"config.yaml": (KINDS + config).encode(), **weights}
    options = []
    if where == "folder":
        files = {"config.yaml": KINDS.encode(), **{f"sub/{path}": content for path, content in files.items()}}
        options = ["--path", "sub"]
    fails(run(*lay_out(tmp_path, files), *options), *words)


@pytest.mark.parametrize("where", ["repo", "list", "folder"])
def test_1_a_top_k_that_a_config_asks_for_is_read(tmp_path: Path, where: str) -> None:
    config, weights = "activation: topk\nk: 7\n", {f"layer_{layer}.safetensors": bundle(layer) for layer in range(3)}
    if where == "list":
        config += "transcoders:\n" + "".join(f"  - hf://{REPO}/{path}\n" for path in weights)
    files = {"config.yaml": (KINDS + config).encode(), **weights}
    if where == "folder":
        files = {f"sub/{path}": content for path, content in files.items()}
    reference = parsed(run(*lay_out(tmp_path, files), *(["--path", "sub"] if where == "folder" else [])))
    assert reference["gate"] == {"kind": "topk", "k": 7, "relu": False} and {case["n_active"] for case in reference["test_cases"]} == {7}


def test_1_what_says_nothing_of_the_numbers_is_read(tmp_path: Path) -> None:
    config = KINDS + "model_name: org/x\nscan: abc\nfeature_input_hook: a\nfeature_output_hook: b\nactivation: relu\nsubfolder: x\n"
    reference = parsed(run(*lay_out(tmp_path, {"config.yaml": config.encode(), "layer_0.safetensors": bundle()}), "--layers", "0"))
    assert reference["gate"] == {"kind": "relu"} and "ignored_keys" not in reference


def test_1_who_knows_better_goes_on_and_it_is_recorded(tmp_path: Path) -> None:
    files = {"config.yaml": (KINDS + "warmth: 3\n").encode(), "layer_0.safetensors": bundle()}
    reference = parsed(run(*lay_out(tmp_path, files), "--layers", "0", "--ignore-key", "warmth"))
    assert reference["ignored_keys"] == ["warmth"]
    (tmp_path / "r.json").write_text(json.dumps(reference))
    assert run("verify", str(tmp_path / "r.json"), "--mirror", str(tmp_path)).returncode == 0


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "sae.safetensors", "checkpoints/final.safetensors", "ae.pt"])
def test_2_a_square_file_of_another_format_is_not_read_by_its_shapes(tmp_path: Path, name: str) -> None:
    path = f"blocks.8.hook_resid_pre_768/{name}"
    options = [*lay_out(tmp_path, {path: bundle(0, 32, 32)}), "--path", path]
    fails(run(*options), "lacks", "json", code=3)  # nothing says what is computed
    fails(run(*options, "--schema", "PltBundle"), name, "not PltBundle", "leave --schema out")


def test_2_a_name_of_no_format_needs_a_schema(tmp_path: Path) -> None:
    options = [*lay_out(tmp_path, {"odd.safetensors": bundle()}), "--path", "odd.safetensors"]
    fails(run(*options), "odd.safetensors", "--schema")
    assert parsed(run(*options, "--schema", "PltBundle"))["schema"] == "PltBundle"


def test_13_a_tensor_that_no_peer_has_is_refused(tmp_path: Path) -> None:
    world = worlds.make("CltSplit", n_layers=2, skip=False)
    arrays = worlds.from_safetensors(world.files[worlds.OWN_REPO]["W_enc_0.safetensors"])
    files = world.files[worlds.OWN_REPO] | {"W_enc_0.safetensors": worlds.to_safetensors({**arrays, "W_skip_0": np.eye(24, dtype=np.float32)})}
    fails(run(*lay_out(tmp_path, files), "--layers", "0"), "W_skip_0")


def test_14_embedding_saes_are_scaled_as_saelens_has_it(tmp_path: Path) -> None:
    """W_enc divided, W_dec multiplied by the root of d_model: against plain float64."""
    path = "embedding/width_4k/average_l0_6/params.npz"
    arrays = layer_arrays(0, d_model=36)
    arrays["W_enc"] *= 6
    options = lay_out(tmp_path, {path: npz(arrays)})
    reference = parsed(run(*options, "--path", path, "--decode"))
    assert reference["schema"] == "EmbeddingSae" and reference["encoder_input"] == {"kind": "scaled", "factor": 1 / 6}
    assert "residual / sqrt(d_model)" in reference["encoder_formula"]
    wide = {name: values.astype(np.float64) for name, values in arrays.items()}
    for case in reference["test_cases"]:
        pre = (wide["W_enc"] / 6).T @ np.array(case["residual"]) + wide["b_enc"]
        activations = np.where(pre > wide["threshold"], pre, 0)
        order = sorted(np.flatnonzero(activations).tolist(), key=lambda j: (-pre[j], j))
        assert case["n_active"] == len(order) > 0 and [top["index"] for top in case["top_10"]] == order[:10]
        assert np.allclose([top["activation"] for top in case["top_10"]], pre[order[:10]], rtol=1e-5)
        output = activations @ (wide["W_dec"] * 6) + wide["b_dec"]
        [said] = case["reconstructions"]
        assert np.allclose(said["first_10"], output[:10], rtol=1e-5) and np.isclose(said["norm"], np.linalg.norm(output), rtol=1e-6)
        assert case["encoder_input_fingerprint"] != case["residual_fingerprint"]
    (tmp_path / "r.json").write_text(json.dumps(reference))
    assert run("verify", str(tmp_path / "r.json"), "--mirror", str(tmp_path)).returncode == 0
    for key, value in (("encoder_input", {"kind": "identity"}), ("schema", "Sae")):
        edited = {**reference, key: value}
        edited["digest"] = digest(edited)
        (tmp_path / "r.json").write_text(json.dumps(edited))
        assert run("verify", str(tmp_path / "r.json"), "--mirror", str(tmp_path)).returncode == 1
    fails(run(*options, "--path", path, "--schema", "Sae"), "EmbeddingSae", "leave --schema out")


@pytest.mark.parametrize("decode", [[], ["--decode"]])
def test_14_a_port_that_is_wrong_is_explained_for_scaled_inputs_too(tmp_path: Path, decode: list[str]) -> None:
    path = "embedding/width_4k/average_l0_6/params.npz"
    arrays = layer_arrays(0, d_model=36)
    arrays["W_enc"] *= 6
    reference = parsed(run(*lay_out(tmp_path, {path: npz(arrays)}), "--path", path, *decode))
    answers = []
    for case in reference["test_cases"]:
        pre = (arrays["W_enc"] / 6).T @ np.array(case["residual"], np.float32)
        pre = (pre if not decode else pre + arrays["b_enc"]).astype(np.float32)  # b_enc is left out, or b_dec
        active = np.flatnonzero(pre > arrays["threshold"])
        order = sorted(active.tolist(), key=lambda j: (-pre[j], j))
        answer = {"layer": 0, "seed": case["seed"], "n_active": len(active), "top_10": [{"index": j, "activation": float(pre[j])} for j in order[:10]]}
        if decode:
            output = (pre[active] @ (arrays["W_dec"][active] * 6)).astype(np.float64)
            sums = {"sum": output.sum(), "sum_of_squares": (output * output).sum(), "norm": np.linalg.norm(output)}
            answer["reconstructions"] = [{"target_layer": 0, "first_10": output[:10].tolist(), **{k: float(v) for k, v in sums.items()}}]
        answers.append(answer)
    for name, document in (("r.json", reference), ("c.json", {"test_cases": answers})):
        (tmp_path / name).write_text(json.dumps(document))
    ran = run("compare", str(tmp_path / "r.json"), str(tmp_path / "c.json"), "--explain", "--mirror", str(tmp_path))
    assert ran.returncode == 1 and ("b_dec left out" if decode else "b_enc left out") in ran.stdout, ran.stderr


def test_15_clts_with_thresholds_have_the_name_that_candle_mi_asserts(tmp_path: Path) -> None:
    world = worlds.make("CltSplit", n_layers=2, threshold=True)
    options = lay_out(tmp_path, world.files[worlds.OWN_REPO])
    reference = parsed(run(*options, "--layers", "all", "--schema", "CltSplitJumpReLU"))
    assert reference["schema"] == "CltSplitJumpReLU" == parsed(run(*options, "--layers", "all"))["schema"]
    (tmp_path / "r.json").write_text(json.dumps(reference))
    assert run("verify", str(tmp_path / "r.json"), "--mirror", str(tmp_path)).returncode == 0
    plain = worlds.make("CltSplit", n_layers=2, threshold=False)
    options = lay_out(tmp_path / "plain", plain.files[worlds.OWN_REPO])
    assert parsed(run(*options, "--layers", "all"))["schema"] == "CltSplit"
    fails(run(*options, "--layers", "all", "--schema", "CltSplitJumpReLU"), "no threshold", "CltSplitJumpReLU")


@pytest.mark.parametrize("listed", [True, False])
def test_16_a_lone_layer_that_writes_to_layers_that_are_not(tmp_path: Path, listed: bool) -> None:
    """Its decoder has a target for each of 3 layers, though it is the second."""
    world = worlds.make("CltSplit", n_layers=3)
    files = dict(world.files[worlds.OWN_REPO])
    too_many = np.zeros((96, 3, 24), np.float32)
    files["W_dec_1.safetensors"] = worlds.to_safetensors({"W_dec_1": too_many})
    if not listed:
        files = {path: content for path, content in files.items() if "_1." in path}
    options = [*lay_out(tmp_path, files), "--path", "W_enc_1.safetensors", "--decode", "--quiet"]
    # A tree without a manifest holds what there is: with layer 1 alone it is the last one.
    fails(run(*options), "ends at layer 3", "the last layer is 2" if listed else "the last layer is 1")


def test_17_negative_thresholds_are_said(tmp_path: Path) -> None:
    arrays = layer_arrays(0)
    arrays["threshold"][:40] = -0.5
    path = "layer_0/width_16k/average_l0_5/params.npz"
    ran = run(*lay_out(tmp_path, {path: npz(arrays)}), "--path", path, "--seeds", "5")
    assert "40 thresholds are negative" in ran.stderr and "circuit-tracer" in ran.stderr
    reference = parsed(ran)
    assert reference["gate"] == {"kind": "jumprelu", "n_negative_thresholds": 40, "negative_values": "never active"}
    # A port that lets negative values through, as circuit-tracer does, is told so, where the counts of enough cases are off.
    answers = []
    for case in reference["test_cases"]:
        r = np.array(case["residual"], np.float32)
        pre = (arrays["W_enc"].T @ r + arrays["b_enc"]).astype(np.float32)
        active = np.flatnonzero(pre > arrays["threshold"])
        order = sorted(active.tolist(), key=lambda j: (-pre[j], j))[:10]
        top = [{"index": j, "activation": float(pre[j])} for j in order]
        answers.append({"layer": 0, "seed": case["seed"], "n_active": len(active), "top_10": top})
    for name, document in (("r.json", reference), ("c.json", {"test_cases": answers})):
        (tmp_path / name).write_text(json.dumps(document))
    ran = run("compare", str(tmp_path / "r.json"), str(tmp_path / "c.json"), "--explain", "--mirror", str(tmp_path))
    assert ran.returncode == 1 and "negative let through" in ran.stdout, ran.stderr


# --- 3: the bytes that are encoded are the bytes that are hashed ----------------------------------------------------


def cached_blobs(cache: Path, suffix: str) -> list[Path]:
    return sorted({path.resolve() for path in cache.rglob(f"*{suffix}")}, key=lambda path: path.stat().st_size)


@pytest.fixture
def large_bundle(tmp_path: Path) -> tuple[Path, list[str]]:
    """A cache with a layer large enough to have its hash recorded, as another program fetched it."""
    cache, content = tmp_path / "hub", bundle(0, 256, 2048)
    for path, file in (("config.yaml", KINDS.encode()), ("layer_0.safetensors", content)):
        demo._add(cache, REPO, path, file)
    return cache, ["--offline", "--cache-dir", str(cache), "--repo", REPO, "--layers", "0", "-o", "-"]


def flip_a_bit(cache: Path, *, keep_times: bool) -> Path:
    """Of the weight file in the cache, which is returned."""
    blob = cached_blobs(cache, ".safetensors")[-1]
    before = blob.stat()
    with blob.open("r+b") as file:
        file.seek(before.st_size // 4)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    if keep_times:
        os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    return blob


@pytest.mark.parametrize("with_record", [False, True])
@pytest.mark.parametrize("keep_times", [False, True])
def test_3_one_bit_of_a_cached_file(large_bundle: tuple[Path, list[str]], with_record: bool, keep_times: bool) -> None:
    cache, options = large_bundle
    if with_record:
        assert run(*options).returncode == 0 and list(cache.rglob("hashes/*.json"))
    blob = flip_a_bit(cache, keep_times=keep_times)
    fails(run(*options), str(blob.name)[:16], "damaged", "fetch it again")


def test_3_one_bit_of_a_file_whose_hash_is_on_record_stops_explain(large_bundle: tuple[Path, list[str]], tmp_path: Path) -> None:
    cache, options = large_bundle
    reference, candidate = tmp_path / "reference.json", tmp_path / "candidate.json"
    document = parsed(run(*options))
    reference.write_text(json.dumps(document))
    document["test_cases"][0]["n_active"] += 400
    candidate.write_text(json.dumps({"test_cases": document["test_cases"]}))
    explain = ["compare", str(reference), str(candidate), "--explain", *options[:3]]
    assert run(*explain).returncode == 1
    blob = flip_a_bit(cache, keep_times=True)
    fails(run(*explain), str(blob.name)[:16], "damaged", "fetch it again")


def test_3_a_hash_is_computed_once_for_the_same_bytes(large_bundle: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, options = large_bundle
    first = parsed(run(*options))
    assert parsed(run(*options))["layers"] == first["layers"]
    hashed: list[str] = []
    from oracle.sources import hashes

    whole = hashes._sha256_of
    monkeypatch.setattr(hashes, "_sha256_of", lambda file: hashed.append(file.name) or whole(file))
    assert parsed(run(*options))["layers"] == first["layers"] and not [name for name in hashed if name.endswith("safetensors")]


def test_3_a_file_that_changes_while_it_is_read(large_bundle: tuple[Path, list[str]]) -> None:
    cache, _ = large_bundle
    source = Source(Origin(REPO, cache_dir=str(cache), offline=True), FileEvents())
    from oracle.sources.curation import HubFile

    with pytest.raises(ValueError, match="changed while it was read"), source.open(HubFile(REPO, None, "layer_0.safetensors")):
        time.sleep(0.01)
        cached_blobs(cache, ".safetensors")[-1].write_bytes(bundle(1, 256, 2048))


# --- 4: byte order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_4_readers_and_encoder_do_not_depend_on_the_machine(dtype: str) -> None:
    """Arrays whose order in memory is swapped give the same numbers: nothing is viewed as the machine's own."""
    from oracle.arithmetic.chain import Threshold
    from oracle.arithmetic.encoder import Encoder, encode
    from oracle.arithmetic.products import Matrix
    from oracle.weights.safetensors import Safetensors
    from oracle.weights.tensors import Float32Converter

    rng = np.random.default_rng(0)
    values = rng.standard_normal((64, 24)).astype(np.float32)
    file = Safetensors(io.BytesIO(worlds.to_safetensors({"W_enc": values}, dtype)), "f")
    tensor = file.tensor("W_enc")
    raw = np.empty(tensor.shape, tensor.raw)
    with file.data(tensor) as data:
        data.fill(raw)
    right = worlds.rounded(values, dtype)
    for stored in (raw, raw.astype(raw.dtype.newbyteorder("S"))):
        header = tensor._replace(raw=stored.dtype)
        assert np.array_equal(Float32Converter(header, 64)(stored), right)
    residuals = rng.standard_normal((2, 24)).astype(np.float32)
    bias = np.zeros(64, np.float32)
    encodings = [
        encode(Encoder(Matrix(lambda w=w: iter([w]), True), b.astype(np.float64), Threshold(b)), r, k=5, tolerance=1e-4, with_active=True).encodings
        for w, b, r in ((right, bias, residuals), *[tuple(a.astype(a.dtype.newbyteorder("S")) for a in (right, bias, residuals))])
    ]
    for encoding, swapped in zip(*encodings):
        assert encoding._replace(active=None) == swapped._replace(active=None) and encoding.active and swapped.active
        assert all(np.array_equal(*pair) for pair in zip(encoding.active, swapped.active))


def test_4_no_native_views() -> None:
    """Bytes become numbers by a named order alone."""
    import re

    from tests.support.places import ROOT

    native = re.compile(r"\.view\((np\.|\"|')u?int(16|32|64)|\.view\(\"[uif][248]\"|np\.frombuffer\([^)]*np\.(u?int|float)(16|32|64)")
    lines = [
        f"{path}: {line}"
        for path in [*(ROOT / "oracle").rglob("*.py")]
        for line in path.read_text().splitlines()
        if native.search(line)
    ]
    assert not lines


# --- 5: what decides the source is settled before a task leaves ------------------------------------------------------


class ElsewhereExecutor(concurrent.futures.Executor):
    """Runs each task as a worker on another machine would: pickled, in another folder, with an environment of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._folder, self._environment = folder, environment

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> concurrent.futures.Future[Any]:
        import pickle
        import sys

        from tests.support.process import variables

        call = pickle.dumps((function, arguments, named))
        program = "import pickle, sys; f, a, n = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(f(*a, **n)))"
        ran = subprocess.run(
            [sys.executable, "-c", program], input=call, capture_output=True, cwd=self._folder, env=variables(self._environment), check=False
        )
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(pickle.loads(ran.stdout))
        return future


ELSEWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "ORACLE_MIRROR": "/nowhere", "HF_HUB_CACHE": "/nowhere"}


@pytest.mark.parametrize("environment", [ELSEWHERE, *(pytest.param({name: ELSEWHERE[name]}, marks=pytest.mark.slow) for name in ELSEWHERE)], ids=" ".join)
@pytest.mark.parametrize("kind", ["hub", "relative folder", "relative cache"])
def test_5_a_worker_s_environment_has_no_say(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], kind: str
) -> None:
    files = {"config.yaml": KINDS.encode(), "layer_0.safetensors": bundle()}
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    lay_out(here / "mirror", files)
    for path, content in files.items():
        hub.add(REPO, path, content)
        demo._add(here / "cache", REPO, path, content)
        # On the other machine the same relative names hold other weights.
        lay_out(there / "mirror", {"config.yaml": KINDS.encode(), "layer_0.safetensors": bundle(9)})
        demo._add(there / "cache", REPO, path, content if path == "config.yaml" else bundle(9))
    monkeypatch.chdir(here)
    if kind == "hub":
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
    origin = {
        "hub": Origin(REPO), "relative folder": Origin(REPO, mirror="mirror"),
        "relative cache": Origin(REPO, cache_dir="cache", offline=True),
    }[kind]  # fmt: skip
    job = Job(origin, layers=(0,))
    own = to_json(generate(job))
    elsewhere = to_json(generate(job, executor=ElsewhereExecutor(there, environment)))
    assert own["digest"] == elsewhere["digest"]


# --- 6, 7, 8: documents that were handed over, or edited --------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[dict[str, Any], Origin]]:
    """A reference with its weights: two layers of a demo with plain numbers enough, its vectors, outputs and seeds passed over."""
    weights = demo.make(None, "PltBundle", decode=True)
    job = replace(weights.job, layers=(0, 25), seeds=2, top_k=3, robust=True, tolerance=1e-6)
    yield library.generate([job])[0], job.origin
    shutil.rmtree(weights.folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1.0", None, True])
def test_6_a_candidate_of_no_numbers_never_agrees(small: tuple[dict[str, Any], Origin], value: Any) -> None:
    reference, _ = small
    for change in (
        lambda case: case["top_3"][0].update(activation=value),
        lambda case: case.update(n_active=value),
        lambda case: case["reconstructions"][0].update(norm=value),
    ):
        answers = copy.deepcopy(reference["test_cases"])
        change(answers[0])
        with pytest.raises(DataError):
            library.compare(reference, {"test_cases": answers})


@pytest.mark.parametrize(
    "edit",
    [
        lambda reference: reference.update(format_version=2),
        lambda reference: reference.update(layers=[]),
        lambda reference: reference["residual_generator"].update(sqrt_half=0.7),
        lambda reference: reference["test_cases"].append(reference["test_cases"][0]),
    ],
)
def test_6_the_library_s_checks_are_the_file_s(small: tuple[dict[str, Any], Origin], edit: Callable[[dict[str, Any]], Any]) -> None:
    reference = copy.deepcopy(small[0])
    edit(reference)
    with pytest.raises(DataError):
        library.verify(reference, small[1])


def test_7_a_wrong_reference_of_ours_does_not_pass_for_torch_s(small: tuple[dict[str, Any], Origin]) -> None:
    reference, origin = copy.deepcopy(small[0]), small[1]
    for key in ("format_version", "residual_generator", "layers", "top_k"):
        del reference[key]
    reference["tolerance"] = 1e6
    for case in reference["test_cases"]:
        case["n_active"] += 1
    with pytest.raises(DataError, match="format_version is missing from a reference of ours"):
        library.verify(reference, origin)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, (dict, list)) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def mutations(document: dict[str, Any], rng: np.random.Generator, most: int) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every leaf changed, left out and there twice; of more than `most` some."""
    everything = [(kind, path) for path in leaves(document) for kind in ("changed", "deleted", "twice")]
    for number in sorted(rng.permutation(len(everything))[:most].tolist()):
        kind, path = everything[number]
        mutant = copy.deepcopy(document)
        owner = mutant
        for key in path[:-1]:
            owner = owner[key]
        value = owner[path[-1]]
        if kind == "deleted":
            del owner[path[-1]]
        elif kind == "twice" and isinstance(owner, list):
            owner.insert(path[-1], copy.deepcopy(value))
        elif kind == "twice":
            owner[f"{path[-1]}_again"] = value
        else:
            owner[path[-1]] = other_than(value)
        yield kind, path, mutant


def other_than(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return "x"
    if isinstance(value, float):
        return float(np.nextafter(value, np.inf))
    return value + 1 if isinstance(value, int) else value + "x" if isinstance(value, str) else "x"


def means_nothing(path: tuple[Any, ...]) -> bool:
    """What may be anything: the environment says what may differ between machines."""
    return path[0] == "environment"


@pytest.mark.parametrize("most", [250, pytest.param(4000, marks=pytest.mark.slow)])
def test_8_an_edit_anywhere_is_told(small: tuple[dict[str, Any], Origin], most: int) -> None:
    reference, origin = small
    assert library.verify(reference, origin).agrees
    missed, counted = [], 0
    for kind, path, mutant in mutations(reference, np.random.default_rng(most), most):
        counted += 1
        try:
            agrees = library.verify(mutant, origin).agrees
        except (DataError, OSError, ValueError):
            agrees = False
        if agrees != means_nothing(path) and not (agrees and path[-1] == "residual"):
            # A vector that was left out whole can be made again.
            missed.append((kind, path))
    print(f"{counted} mutations, {len(missed)} missed")
    assert not missed, missed[:20]


def test_8_what_can_be_recomputed_is_where_somebody_renewed_the_digest(small: tuple[dict[str, Any], Origin]) -> None:
    reference, origin = small
    edits: list[Callable[[dict[str, Any]], Any]] = [
        lambda r: r["test_cases"][0].update(stream=r["test_cases"][0]["stream"] + 2**63),
        lambda r: r["test_cases"].pop(0),
        lambda r: r.update(schema="GemmaScope2"),
        lambda r: r["test_cases"][0].update(gate_ties=[1, 2]),
        lambda r: [case.pop("reconstructions") for case in r["test_cases"] if case["layer"] == 0],
        lambda r: r["layers"][0].update(sha256="0" * 64),
        lambda r: r["test_cases"][0]["top_3"].pop(),
    ]
    for edit in edits:
        edited = copy.deepcopy(reference)
        edit(edited)
        edited["digest"] = digest(edited)
        try:
            verification = library.verify(edited, origin)
        except (DataError, ValueError):
            continue
        assert not verification.agrees


def test_8_without_its_vectors_it_is_still_whole(small: tuple[dict[str, Any], Origin]) -> None:
    reference, origin = copy.deepcopy(small[0]), small[1]
    for case in reference["test_cases"]:
        del case["residual"]
    assert digest(reference) == reference["digest"] and library.verify(reference, origin).agrees


def test_8_compare_says_that_a_reference_was_edited(small: tuple[dict[str, Any], Origin], tmp_path: Path) -> None:
    reference = copy.deepcopy(small[0])
    reference["tolerance"] = 2e-6
    (tmp_path / "r.json").write_text(json.dumps(reference))
    ran = run("compare", str(tmp_path / "r.json"), str(tmp_path / "r.json"))
    assert "was edited" in ran.stdout


# --- 9: one archive, one meaning --------------------------------------------------------------------------------------


def local_fields(content: bytes, name: str) -> int:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.getinfo(name).header_offset


@pytest.mark.parametrize("what", ["size", "crc", "name", "overlap", "same place"])
def test_9_an_archive_of_two_meanings_is_refused(tmp_path: Path, what: str) -> None:
    content = bytearray(npz(layer_arrays(0)))
    at = local_fields(bytes(content), "W_enc.npy")
    if what == "size":  # np.savez writes the sizes in the zip64 field behind the name
        name_length = struct.unpack("<H", content[at + 26 : at + 28])[0]
        extra = at + 30 + name_length
        content[extra + 4 : extra + 12] = struct.pack("<Q", 8)
    elif what == "crc":
        content[at + 14] ^= 1
    elif what == "name":
        content[at + 30 : at + 31] = b"X"
    else:
        directory = content.rfind(b"PK\x01\x02", 0, content.rfind(b"threshold.npy"))
        while content[directory + 46 : directory + 46 + 13] != b"threshold.npy":
            directory = content.rfind(b"PK\x01\x02", 0, directory)
        offset = struct.unpack("<I", content[directory + 42 : directory + 46])[0]
        target = at if what == "same place" else offset
        if what == "overlap":
            # b_enc's entry claims bytes up to the middle of what stands behind it.
            with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
                infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            victim = next(info for info in infos if info.filename == "W_enc.npy")
            entry = content.find(b"PK\x01\x02")
            while content[entry + 46 : entry + 46 + 9] != b"W_enc.npy":
                entry = content.find(b"PK\x01\x02", entry + 4)
            size = victim.file_size + 300
            content[entry + 20 : entry + 28] = struct.pack("<2I", size, size)
        else:
            content[directory + 42 : directory + 46] = struct.pack("<I", target)
    path = "layer_0/width_16k/average_l0_5/params.npz"
    fails(run(*lay_out(tmp_path, {path: bytes(content)}), "--path", path), "params.npz")


# --- 11, 12: two processes at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_11_two_processes_write_one_output(rounds: int, demo_folder: Path, tmp_path: Path) -> None:
    """In containers both have the PID 1: the names of what they write to may not depend on it."""
    output = tmp_path / "reference.json"
    unshare = [*(["unshare", "--pid", "--fork"] if os.geteuid() == 0 and shutil.which("unshare") else [])]
    if unshare and subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        unshare = []
    import sys

    from tests.support.process import variables

    arguments = ["--offline", "--cache-dir", str(demo_folder / "hub"), "--repo", demo.job_repo(demo.FORMATS[0]), "-o", str(output), "--quiet"]
    command = [*unshare, sys.executable, "-m", "oracle", *arguments]
    for _ in range(rounds):
        processes = [subprocess.Popen(command, env=variables()) for _ in range(3)]
        assert all(process.wait(60) == 0 for process in processes)
        assert json.loads(output.read_text())["format_version"] == 1
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_12_two_mirrors_at_once_lose_nothing(hub: Hub, tmp_path: Path) -> None:
    world = worlds.make("PltBundle", n_layers=6)
    world.add_to(hub)
    destination = tmp_path / "mirror"
    processes = [
        started("mirror", str(destination), "--mirror", hub.url, *world.arguments, "--layers", layers, "--cache-dir", str(tmp_path / layers))
        for layers in ("0,1,2", "3,4,5")
    ]
    for process in processes:
        assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    manifest = json.loads((destination / "manifest.json").read_text())
    assert {entry["path"] for entry in manifest["files"]} == {"config.yaml", *(f"layer_{layer}.safetensors" for layer in range(6))}
    assert run("mirror", str(destination), "--check").returncode == 0


@pytest.mark.parametrize("link", ["folder", "file", "manifest"])
def test_24_links_planted_in_a_mirror_are_not_written_through(hub: Hub, tmp_path: Path, link: str) -> None:
    world = worlds.make("PltBundle", n_layers=1)
    world.add_to(hub)
    destination, outside = tmp_path / "mirror", tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("precious")
    tree = destination / worlds.OWN_REPO / "resolve/main"
    place = {"folder": destination / "org", "file": tree / "layer_0.safetensors", "manifest": destination / "manifest.json"}[link]
    place.parent.mkdir(parents=True)
    place.symlink_to(outside if link == "folder" else victim)
    if link == "manifest":
        victim.write_text(json.dumps({"format_version": 1, "files": []}))
    before = victim.read_text()
    ran = run("mirror", str(destination), "--mirror", hub.url, *world.arguments, "--layers", "all", "--cache-dir", str(tmp_path / "cache"))
    assert victim.read_text() == before and sorted(outside.iterdir()) == [victim]
    assert ran.returncode == (4 if link == "folder" else 0), ran.stderr


# --- 23: what others wrote is no command ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["table", "json", "junit", "page", "error", "debug"])
def test_23_a_github_runner_reads_no_command(small: tuple[dict[str, Any], Origin], tmp_path: Path, form: str) -> None:
    reference = copy.deepcopy(small[0])
    reference["schema"] = reference["methodology"] = "##[error]taken in \x1b[31m"
    (tmp_path / "r.json").write_text(json.dumps(reference))
    candidate = {"test_cases": [{**case, "n_active": 10**6} for case in reference["test_cases"]]}
    (tmp_path / "c.json").write_text(json.dumps(candidate))
    files = [str(tmp_path / "r.json"), str(tmp_path / "c.json")]
    arguments = {
        "table": ["compare", *files], "json": ["compare", *files, "--format", "json"], "junit": ["compare", *files, "--format", "junit"],
        "page": ["report", *files, "-o", "-"], "error": ["verify", files[0]], "debug": ["verify", files[0], "--debug"],
    }[form]  # fmt: skip
    ran = run(*arguments, environment={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")})
    assert ran.returncode in (0, 1, 4) and "##[" not in ran.stdout + ran.stderr and "\x1b" not in ran.stdout + ran.stderr
    if form == "error":
        assert "taken in" in ran.stderr  # it is shown, and no command
    if form == "json":
        json.loads(ran.stdout)


# --- 17b: one place says where a reference's weights are --------------------------------------------------------------


def test_17b_the_library_asks_the_repo_that_a_torch_reference_names(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    world = worlds.make("PltBundle", n_layers=1)
    world.add_to(hub)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    [reference] = library.generate([Job(Origin(worlds.OWN_REPO), layers=(0,), seeds=1)])
    kept = ("plt_repo", "schema", "encoder_formula", "d_model", "n_features_per_layer", "methodology")
    in_case = ("layer", "seed", "residual", "n_active", "top_10")
    torch = {key: reference[key] for key in kept} | {
        "torch_version": "2.10", "test_cases": [{key: case[key] for key in in_case} for case in reference["test_cases"]]
    }  # fmt: skip
    hub.seen.clear()
    verification = library.verify(torch)
    assert verification.agrees and not verification.exact
    assert all(worlds.OWN_REPO in request.path or "manifest.json" in request.path for request in hub.seen)


def test_the_weights_of_a_reference_are_where_it_says(small: tuple[dict[str, Any], Origin]) -> None:
    reference = parse_reference(small[0])
    weights = RecordedWeights.of(reference, replace(small[1], repo=None))
    assert weights.origin.repo == reference.repo.name and verify(weights).agrees


def test_threads_end(small: tuple[dict[str, Any], Origin]) -> None:
    """A run leaves no thread of the program's behind."""
    before = threading.active_count()
    library.verify(small[0], small[1])
    assert threading.active_count() <= before + 1


def test_the_process_door_says_the_same(demo_folder: Path, tmp_path: Path) -> None:
    reference = json.loads((demo_folder / "plt_gemma_reference.json").read_text())
    reference["methodology"] += " edited"
    (tmp_path / "r.json").write_text(json.dumps(reference))
    ran = oracle("verify", str(tmp_path / "r.json"), "--offline", "--cache-dir", str(demo_folder / "hub"))
    assert ran.returncode == 1 and "was edited" in ran.stdout
