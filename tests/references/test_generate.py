# SPDX-License-Identifier: MIT OR Apache-2.0
"""The main job through its public doors: the command line, a Hub on loopback, the JSON."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.arithmetic.residual import fingerprint, residual
from tests.support.encodings import DESIGN_FINGERPRINTS, comparable, parsed, read, same_types
from tests.support.hub import Fault, Hub
from tests.support.independent import float64_encode
from tests.support.places import shared
from tests.support.process import cores, oracle, python, run, started, variables, wait_until
from tests.support.small_scope import CURATION_REPO, WEIGHTS_REPO, config, fill, layer_arrays, npz, path_of


def generate(hub: Hub, *arguments: str, door: Any = run, **options: Any) -> subprocess.CompletedProcess[str]:
    ran: subprocess.CompletedProcess[str] = door("--mirror", hub.url, "--layers", "0-2", *arguments, **options)
    return ran


@pytest.fixture
def served(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fill(hub)
    monkeypatch.chdir(tmp_path)
    return hub


def test_the_whole_way(served: Hub) -> None:
    ran = generate(served, door=oracle)
    assert ran.returncode == 0 and ran.stdout == "", ran.stderr
    document = json.loads(Path("plt_gemma_reference.json").read_text())
    assert document["curation_revision"] == served.repos[CURATION_REPO].refs["main"]
    assert document["weights_revision"] == served.repos[WEIGHTS_REPO].refs["main"]
    assert [(layer["layer"], layer["path"]) for layer in document["layers"]] == [(n, path_of(n)) for n in range(3)]
    files = served.repos[WEIGHTS_REPO].commits[document["weights_revision"]]
    assert [layer["sha256"] for layer in document["layers"]] == [files[path_of(n)].etag for n in range(3)]
    assert [(c["layer"], c["seed"], c["stream"]) for c in document["test_cases"]] == [
        (layer, 100 * i + layer, layer) for layer in range(3) for i in range(3)
    ]
    for case in document["test_cases"]:
        values = residual(case["seed"], case["stream"], 24)
        assert np.array_equal(np.array(case["residual"], np.float64).astype(np.float32), values)
        assert case["residual_fingerprint"] == fingerprint(values)
        expected = float64_encode(layer_arrays(case["layer"]), values, 10)
        assert case["n_active"] == expected["n_active"] and 0 < case["n_active"] < 96
        assert [(top["index"], top["activation"]) for top in case["top_10"]] == expected["top"]
        assert case["gate_margin"] == pytest.approx(expected["gate_margin"], abs=6e-7)
    # one line per fetched file and one per case, for people
    assert len(re.findall(r"^fetched ", ran.stderr, re.M)) == 4
    assert len(re.findall(r"^layer +\d+ seed +\d+: +\d+ active / 96 features, top L\d+:\d+ \(", ran.stderr, re.M)) == 9


def test_the_document_has_the_types_that_the_rust_test_reads(served: Hub) -> None:
    old = json.loads(shared("data/plt_gemma_reference.json").read_text())
    assert generate(served).returncode == 0
    new = json.loads(Path("plt_gemma_reference.json").read_text())
    same_types(old, new)
    assert new["schema"] == old["schema"] and new["encoder_formula"] == old["encoder_formula"]
    assert new["weights_repo"] == old["weights_repo"] and new["curation_repo"] == old["curation_repo"]
    assert new["format_version"] == 1 and new["top_k"] == 10 and new["tolerance"] == 1e-4
    for case in new["test_cases"]:
        low, high = case["n_active_bounds"]
        assert low <= case["n_active"] <= high and len(case["gate_ties"]) == high - low
        assert set(case["flags"]) <= {"rank-tie", "gate-tie", "no-active-features"}


def test_floats_survive_a_reader_that_casts(served: Hub) -> None:
    text = generate(served, "-o", "-").stdout
    for case in json.loads(text)["test_cases"]:
        for value in [*case["residual"], *(top["activation"] for top in case["top_10"])]:
            assert struct.unpack("<f", struct.pack("<f", value))[0] == value
    lines = [line for line in text.splitlines() if '"residual": ' in line]
    assert len(lines) == 9 and all(line.rstrip(",").endswith("]") for line in lines)


def test_the_second_run_is_offline_and_the_same(served: Hub) -> None:
    first = generate(served, "-o", "first.json")
    served.seen.clear()
    second = generate(served, "-o", "second.json", "--offline")
    assert first.returncode == second.returncode == 0 and not served.seen
    assert Path("first.json").read_bytes() == Path("second.json").read_bytes()
    by_environment = run("--layers", "all", "-o", "-", environment={"HF_HUB_OFFLINE": "1"})
    assert comparable(parsed(by_environment)) == comparable(read(Path("first.json")))


def test_options(served: Hub) -> None:
    ran = generate(served, "--layers", "2,0", "--seeds", "2", "--top-k", "4", "--tolerance", "0.01", "--omit-residuals")
    text = Path("plt_gemma_reference.json").read_text()
    document = json.loads(text)
    assert [c["seed"] for c in document["test_cases"]] == [0, 100, 2, 102]
    assert all(len(c["top_4"]) == 4 and "residual" not in c for c in document["test_cases"])
    assert document["top_k"] == 4 and document["tolerance"] == 0.01
    assert "gate-tie" in {flag for c in document["test_cases"] for flag in c["flags"]} and "gate-tie" in ran.stderr
    assert document["encoder_input"] == {"kind": "identity"} and all("encoder_input_fingerprint" not in c for c in document["test_cases"])
    generator = document["residual_generator"]
    assert generator.pop("arithmetic").startswith("unsigned 64-bit modulo 2^64") and len(generator.pop("steps")) == 7
    assert generator == {
        "name": "pcg32-polar-f32", "version": 1, "seed": "100 * i + layer for the i-th residual of a layer, i = 0, 1, ...", "stream": "layer",
        "multiplier": "0x5851f42d4c957f2d", "sqrt_half": 0.5**0.5, "ln_2": math.log(2), "ln_last_term": 21,
        "fnv_offset_basis": "0xcbf29ce484222325", "fnv_prime": "0x00000100000001b3",
    }  # fmt: skip
    quiet = generate(served, "--quiet")
    assert quiet.returncode == 0 and quiet.stderr == ""
    assert generate(served, "--omit-residuals", "-o", "small.json").returncode == 0
    assert Path("small.json").stat().st_size < 20_000


def test_revisions(served: Hub) -> None:
    first = served.repos[WEIGHTS_REPO].refs["main"]
    arrays = layer_arrays(99)
    served.add(WEIGHTS_REPO, path_of(0), npz(arrays), branch="main")
    new = json.loads(generate(served, "-o", "-", "--layers", "0").stdout)
    old = json.loads(generate(served, "-o", "-", "--layers", "0", "--weights-revision", first).stdout)
    assert (new["weights_revision"], old["weights_revision"]) == (served.repos[WEIGHTS_REPO].refs["main"], first)
    assert new["test_cases"] != old["test_cases"]
    assert old["test_cases"][0]["n_active"] == float64_encode(layer_arrays(0), residual(0, 0, 24), 10)["n_active"]
    pinned = served.add(CURATION_REPO, "config.yaml", config(3).replace(b".npz", f".npz?revision={first}".encode()))
    by_list = json.loads(generate(served, "-o", "-", "--layers", "0", "--revision", pinned).stdout)
    assert by_list["weights_revision"] == first and by_list["curation_revision"] == pinned


def test_layers_come_from_one_commit_even_when_someone_pushes(served: Hub) -> None:
    def push(headers: dict[str, str]) -> None:
        served.add(WEIGHTS_REPO, path_of(2), npz(layer_arrays(77)))

    before = served.repos[WEIGHTS_REPO].refs["main"]
    served.inject(Fault(alter=push))  # while the first layer is on its way
    document = json.loads(generate(served, "-o", "-").stdout)
    assert served.repos[WEIGHTS_REPO].refs["main"] != before == document["weights_revision"]
    assert document["layers"][2]["sha256"] == served.repos[WEIGHTS_REPO].commits[before][path_of(2)].etag


def test_layers_of_several_repos_name_them(served: Hub) -> None:
    served.add("other/repo", path_of(1), npz(layer_arrays(1)))
    served.add(CURATION_REPO, "config.yaml", config(3).replace(
        f"{WEIGHTS_REPO}/{path_of(1)}".encode(), f"other/repo/{path_of(1)}".encode()
    ))
    document = json.loads(generate(served, "-o", "-").stdout)
    assert document["weights_repo"] == WEIGHTS_REPO
    assert [layer.get("repo") for layer in document["layers"]] == [None, "other/repo", None]
    assert document["layers"][1]["revision"] == served.repos["other/repo"].refs["main"]


def test_float16_weights_and_deflated_archives(served: Hub) -> None:
    arrays = {name: array.astype(np.float16) for name, array in layer_arrays(0).items()}
    served.add(WEIGHTS_REPO, path_of(0), npz(arrays, compressed=True))
    document = json.loads(generate(served, "-o", "-", "--layers", "0").stdout)
    for case in document["test_cases"]:
        expected = float64_encode(arrays, residual(case["seed"], 0, 24), 10)
        assert [(top["index"], top["activation"]) for top in case["top_10"]] == expected["top"]


@pytest.mark.parametrize("threads", ["one count for each kernel", pytest.param("each count for each kernel", marks=pytest.mark.slow)])
def test_the_same_bytes_on_every_kernel_and_thread_count(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add(CURATION_REPO, "config.yaml", config(1))
    hub.add(WEIGHTS_REPO, path_of(0), npz(layer_arrays(0, 2304, 4096)))
    arguments = ["--mirror", hub.url, "--layers", "0", "--seeds", "8", "-o", "-"]
    pairs = itertools.product(cores(), "12") if threads.startswith("each") else zip(cores(), "1212")
    variants = [{"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": n} for core, n in pairs]
    variants += [{"OPENBLAS_NUM_THREADS": n} for n in "12"] if threads.startswith("each") else []
    texts = [oracle(*arguments, environment=variant).stdout for variant in variants]
    kernels = {json.loads(text)["environment"]["blas_kernel"] for text in texts}
    errors = {json.loads(text)["environment"]["float32_max_abs_error"] for text in texts}
    assert len(kernels) >= 3 and len(errors) >= 2  # they really were different
    without = {text[: text.index('"environment"')] for text in texts}
    assert len(without) == 1
    cases = json.loads(texts[0])["test_cases"]
    assert {(c["seed"], c["stream"]): c["residual_fingerprint"] for c in cases}.items() >= {
        pair: print_ for pair, print_ in DESIGN_FINGERPRINTS.items() if pair[1] == 0
    }.items()


@pytest.mark.parametrize("command", ["--help", "compare", "compare --format json", "compare --format junit"])
def test_what_imports_nothing_heavy(demo_folder: Path, command: str) -> None:
    program = (
        "import sys\nfrom oracle.terminal.commands import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as end: code = end.code\n"
        "print(code, sorted({'numpy', 'requests', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    reference = [str(demo_folder / "plt_gemma_reference.json")] * 2 if "compare" in command else []
    ran = python("-c", program, *command.split(), *reference, environment={"GITHUB_ACTIONS": "true"})
    assert ran.stderr.splitlines()[-1] == "0 []", ran.stderr


def test_a_run_imports_no_more_than_it_needs(demo_folder: Path, tmp_path: Path) -> None:
    """What other commands, other files, other sources and hard cases need takes its time to import."""
    program = (
        "import sys\nfrom oracle.terminal.commands import main\ncode = main(sys.argv[1:])\n"
        "needless = ('oracle.checking', 'oracle.diagnosis', 'oracle.page', 'oracle.vectors', 'oracle.weights.pickled',"
        " 'oracle.weights.torchzip', 'oracle.sources.residuals', 'oracle.terminal.tables', 'requests', 'email', 'http', 'xml', 'decimal',"
        " 'fractions', 'difflib', 'multiprocessing', 'numpy.ma.', 'numpy.random.')\n"
        "print(code, [name for name in sys.modules if name.startswith(needless)])"
    )
    job = ["--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation", "--offline", "--cache-dir", str(demo_folder / "hub")]
    ran = python("-c", program, *job, "-o", str(tmp_path / "reference.json"))
    assert ran.stdout == "0 []\n", ran.stdout + ran.stderr


def test_help() -> None:
    ran = oracle("--help")
    assert ran.returncode == 0 and "exit codes" in ran.stdout
    for command in ("generate", "report", "demo", "residual"):
        assert command in ran.stdout and run(command, "--help").returncode == 0


def test_demo(tmp_path: Path) -> None:
    ran = oracle("demo", "--folder", str(tmp_path / "demo"), environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert ran.returncode == 0, ran.stderr
    document = read(tmp_path / "demo" / "plt_gemma_reference.json")
    assert [layer["layer"] for layer in document["layers"]] == [0, 12, 25] and len(document["test_cases"]) == 9
    assert "synthetic" in document["weights_repo"] and "synthetic" in ran.stderr
    assert str(tmp_path / "demo" / "plt_gemma_reference.json") in ran.stderr
    again = re.search(r"python -m oracle (--repo .*)$", ran.stderr, re.M)
    assert again and run(*again[1].split(), "--layers", "all", "-o", "-").returncode == 0
    elsewhere = run("demo")
    folder = re.search(r"in (\S*oracle-demo-\S*)$", elsewhere.stderr, re.M)
    assert folder
    assert comparable(read(Path(folder[1]) / "plt_gemma_reference.json")) == comparable(document)
    shutil.rmtree(folder[1])
    refused = run("demo", "--folder", "/proc/nowhere")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


# --- bad input ----------------------------------------------------------------------------------------------------


def fails(ran: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line that says what, where and what to do; the old reference untouched, nothing beside it."""
    assert ran.returncode == code, ran.stderr
    errors = [line for line in ran.stderr.splitlines() if "error" in line]
    assert len(errors) == 1 and "Traceback" not in ran.stderr, ran.stderr
    for word in words:
        assert word in errors[0], (word, errors[0])
    if Path("old-was-here").exists():
        assert Path("plt_gemma_reference.json").read_text() == "old"
        assert not [name for name in os.listdir() if name.startswith("plt_") and name.endswith(".tmp")]


@pytest.fixture
def old(served: Hub) -> Hub:
    Path("plt_gemma_reference.json").write_text("old")
    Path("old-was-here").touch()
    return served


@pytest.mark.parametrize(
    "text, word",
    [(b"[1]", "mapping"), (b"a: 1", "--ignore-key"), (b"model_name: x", "transcoders"), (b"transcoders: []", "0 entries"), (b"transcoders: [hf://a/b/../c]", ".."),
     (b"transcoders: [ftp://a/b/c]", "ftp://"), (b"transcoders: [hf://a/b/layer_0/x.npz, hf://a/b/layer_0/y.npz]", "layer_0/y.npz"),
     (b"transcoders: [hf://a/b/x.bin]", "x.bin: no schema")],
)
def test_a_bad_curation(old: Hub, text: bytes, word: str) -> None:
    old.add(CURATION_REPO, "config.yaml", text)
    fails(generate(old, "--layers", "0"), 4, word)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda a: npz(a)[:-300], "truncated"),
        (lambda a: npz(a).replace(a["W_enc"].tobytes(), a["W_enc"].tobytes()[:-1] + b"\0"), "CRC-32"),
        (lambda a: npz({k: v for k, v in a.items() if k != "threshold"}), "threshold"),
        (lambda a: npz({**a, "b_enc": np.array([{}] * 96, object)}), "pickled"),
        (lambda a: npz({**a, "b_enc": np.zeros(96, int)}), "dtype"),
        (lambda a: npz({**a, "W_enc": np.asfortranarray(a["W_enc"])}), "Fortran"),
        (lambda a: npz({**a, "W_dec": a["W_dec"][:-1]}), "W_dec"),
        (lambda a: npz(layer_arrays(1, 24, 95)), "[24, 95]"),
        (lambda a: npz({**a, "W_enc": np.where(a["W_enc"] > 2, np.nan, a["W_enc"])}), "W_enc has"),
        (lambda a: npz({**a, "W_skip": np.zeros((24, 24), np.float32)}), "W_skip"),
    ],
)
def test_a_bad_weight_file(old: Hub, change: Any, word: str) -> None:
    arrays = layer_arrays(1)
    arrays["W_enc"][3, 7] = 5
    old.add(WEIGHTS_REPO, path_of(1), change(arrays))
    fails(generate(old), 4, path_of(1), word)


@pytest.mark.parametrize(
    "fault, code, words",
    [
        (dict(status=401, headers={"X-Error-Code": "RepoNotFound"}), 3, ["401", "HF_TOKEN"]),
        (dict(status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}), 3, ["token is not valid"]),
        (dict(status=403, headers={"X-Error-Code": "GatedRepo"}), 3, ["gated", "HF_TOKEN"]),
        (dict(status=403), 3, ["403", "refuses"]),
        (dict(status=404, headers={"X-Error-Code": "RepoNotFound"}), 3, ["no such repo"]),
        (dict(status=404, headers={"X-Error-Code": "RevisionNotFound"}), 3, ["no such revision"]),
        (dict(status=404, headers={"X-Error-Code": "EntryNotFound"}), 3, ["no such file"]),
        (dict(status=500), 3, ["HTTP 500"]),
        (dict(status=200, headers={"Content-Type": "text/html; charset=utf-8"}, body=b"<html>login</html>"), 3, ["web page"]),
        (dict(hang_up=True), 3, ["cannot reach", "--mirror", "HF_HUB_OFFLINE", "demo"]),
    ],
)
def test_a_hub_that_refuses(old: Hub, fault: dict[str, Any], code: int, words: list[str]) -> None:
    old.inject(*(Fault(host="hub", method="HEAD", **fault) for _ in range(9)))
    fails(generate(old), code, old.url.split("/")[-1], *words)


def test_wrong_bytes_from_the_hub(old: Hub) -> None:
    commit = old.repos[WEIGHTS_REPO].refs["main"]
    old.inject(Fault(body=b"x" * old.repos[WEIGHTS_REPO].commits[commit][path_of(0)].size))
    fails(generate(old, "--layers", "0"), 4, "sha256", path_of(0))


def test_no_network_and_no_cache(old: Hub) -> None:
    fails(run("--mirror", "http://127.0.0.1:9"), 3, "127.0.0.1:9", "Connection refused", "--mirror", "HF_HUB_OFFLINE", "demo")
    fails(run("--offline"), 3, "config.yaml of mntss/gemma-scope-transcoders", "demo")
    fails(run("--mirror", "http://does-not-exist.invalid"), 3, "does-not-exist.invalid")
    fails(run("--mirror", "nonsense"), 3, "nonsense")
    for junk in ("http://127.0.0.1:99999", "http://[::1", "http://", "http://a b/c"):
        fails(run("--mirror", junk), 3)
    fails(run(environment={"HF_TOKEN": "hf_secret\nfoo"}), 2, "HF_TOKEN")


def test_wrong_usage(old: Hub) -> None:
    fails(generate(old, "--layers", "3"), 2, "no layer 3", "0 to 2")
    fails(generate(old, "-o", "no/such/folder/x.json"), 2, "no/such/folder", "does not exist")
    fails(generate(old, "-o", "."), 2, "folder")
    fails(generate(old, "-o", "x/"), 2, "names no file")
    fails(generate(old, "-o", "x" * 300), 2, "cannot be written")
    fails(generate(old, "--curation-repo", "../x"), 2, "repo id")
    for wrong in (["--layers", "a"], ["--layers", "5-2"], ["--layers", ""], ["--seeds", "0"], ["--top-k", "-1"],
                  ["--tolerance", "0"], ["--tolerance", "nan"], ["--nonsense"], ["nonsense"]):
        ran = generate(old, *wrong) if wrong != ["nonsense"] else run("nonsense")
        assert ran.returncode == 2 and "Traceback" not in ran.stderr, (wrong, ran.stderr)


@pytest.mark.parametrize("option", ["repo", "path", "schema", "revision", "weights-revision", "mirror", "cache-dir", "residuals", "dask", "ignore-key", "output"])
def test_a_value_that_is_empty(option: str, demo_folder: Path) -> None:
    """As of a variable that is not set: `--revision "$REV"` must not mean main."""
    weights = ["--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation", "--offline", "--cache-dir", str(demo_folder / "hub")]
    fails(run(*weights, f"--{option}", ""), 2, f"--{option} is empty: give it a value, or leave it out")


def test_a_file_without_a_name(demo_folder: Path) -> None:
    fails(run("compare", str(demo_folder / "plt_gemma_reference.json"), ""), 2, "CANDIDATE is empty: name one")
    fails(run("report", ""), 2, "REFERENCE is empty: name one")
    fails(run("mirror", ""), 2, "DEST is empty: name one")


def test_an_output_folder_that_is_read_only(old: Hub, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "x.json").write_text("old")
    locked.chmod(0o555)
    without_override = []
    if os.getuid() == 0:  # nothing is read-only to root, unless it goes without that capability
        without_override = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*without_override, sys.executable, "-m", "oracle", "--mirror", old.url, "-o", str(locked / "x.json")]
    ran = subprocess.run(command, capture_output=True, text=True, env=variables())
    fails(ran, 2, "locked", "cannot be written")
    assert (locked / "x.json").read_text() == "old" and os.listdir(locked) == ["x.json"]


def test_a_full_disk_under_the_output(old: Hub) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    fails(generate(old, "-o", "/dev/full"), 2, "/dev/full", "No space left")
    assert Path("/dev/full").is_char_device()


def test_a_device_is_written_to_and_not_renamed_over(served: Hub) -> None:
    assert generate(served, "-o", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()
    Path("target.json").write_text("old")
    Path("link.json").symlink_to("target.json")
    assert generate(served, "-o", "link.json").returncode == 0
    assert Path("link.json").is_symlink() and json.loads(Path("target.json").read_text())["format_version"] == 1


def test_control_c(old: Hub) -> None:
    old.inject(Fault(stall=20))
    process = started("--mirror", old.url, "--layers", "0")
    wait_until(lambda: len(old._seen) >= 4, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors
    assert Path("plt_gemma_reference.json").read_text() == "old"


def test_an_error_does_not_wait_for_the_next_layer(old: Hub) -> None:
    arrays = layer_arrays(0)
    arrays["W_enc"][0, 0] = np.nan
    old.add(WEIGHTS_REPO, path_of(0), npz(arrays))
    old.inject(Fault(stall=15, after=1))
    began = time.monotonic()
    fails(generate(old, door=oracle), 4, "W_enc has 1 values", path_of(0))
    assert time.monotonic() - began < 8


def test_debug_shows_the_chain(old: Hub) -> None:
    old.inject(Fault(host="hub", method="HEAD", hang_up=True), Fault(host="hub", method="HEAD", status=404))
    ran = run("--debug", "--mirror", old.url)
    assert ran.returncode == 3 and "Traceback" in ran.stderr and ran.stderr.splitlines()[-1].startswith("error: ")


def test_a_terminal_is_not_written_to_by_servers(old: Hub) -> None:
    said = {"X-Error-Message": "red: \x9b31m"}
    old.inject(*(Fault(host="hub", method="HEAD", status=403, headers=said) for _ in range(3)))
    ran = generate(old)
    fails(ran, 3, "31m")
    assert "\x9b" not in ran.stderr


def test_sizes_that_no_file_has(old: Hub) -> None:
    for size in ("10000000000000000000", "9" * 5000, "-5", "\xb2"):
        told = {"Content-Length": size, "Connection": "close"}
        old.inject(*(Fault(host="hub", method=method, alter=lambda headers, told=told: headers.update(told)) for method in ("HEAD", "GET", "GET")))
        fails(generate(old), 3)
