# SPDX-License-Identifier: MIT OR Apache-2.0
"""Wrong usage: one line that knows what was meant, and the exit codes of the README."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.terminal.options import parser
from tests.support.encodings import read, stripped
from tests.support.process import Completed, run

REFERENCE = "plt_gemma_reference.json"


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a reference, and a right candidate."""
    reference = read(demo_folder / REFERENCE)
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    (tmp_path / "candidate.json").write_text(json.dumps(stripped(reference)))
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error(ran: Completed) -> str:
    """The one line of an error."""
    assert ran.stdout == "" and ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr.rstrip("\n")


USAGE = {
    "comapre reference.json candidate.json": "there is no command 'comapre'; did you mean compare? See `python -m oracle --help`",
    "xyzzy": "there is no command 'xyzzy'; see `python -m oracle --help`",
    "compare reference.json candidate.json --explian": "compare has no option --explian; did you mean --explain? See `python -m oracle compare --help`",
    "compare reference.json candidate.json --expl": "compare has no option --expl; did you mean --explain?",
    "--seed 3": "generate has no option --seed: it is of verify, compare, inspect, residual; see",
    "--decod": "generate has no option --decod; did you mean --decode?",
    "compare reference.json candidate.json --seeds=3": "compare has no option --seeds: it is of generate; see",
    "compare reference.json candidate.json more.json": "'more.json' is one argument too many; see",
    "compare": "the following arguments are required: REFERENCE, CANDIDATE; see",
    "compare reference.json candidate.json --format jsn": "argument --format: 'jsn' is none of table, json, junit; did you mean json? See",
    "--schema GemmaScopeNpy --offline": "did you mean GemmaScopeNpz?",
    "verify reference.json --schema Sae --offline": "the schema 'Sae' is not the reference's own, GemmaScopeNpz: leave --schema out",
    "demo --schema gemmascopenpy": "did you mean GemmaScopeNpz? See `python -m oracle demo --help`",
    "vectors --format GemmaScopeNpzz": "did you mean GemmaScopeNpz?",
    "compare reference.json candidate.json --explain=1": "--explain takes no value; leave out what stands behind it; see",
    "compare - -": "standard input is read once, and `-` stands for both files: name a file for one of them",
    "schema refrence": "'refrence' is none of reference, candidate, vectors, answers; did you mean reference? See",
    "--repo https://huggingface.co/org/name": "is an address, not ORG/NAME; did you mean --repo org/name? See",
    "--repo hf://org/name": "did you mean --repo org/name?",
    "--repo https://huggingface.co/org/name/tree/v2/some/folder": "did you mean --repo org/name --revision v2 --path some/folder?",
    "--repo https://example.com/org/name": "is an address, not ORG/NAME; a server is named with --mirror URL; see",
    "mirror http://localhost/mirror": "http://localhost/mirror is an address, and a mirror is built in a folder: name one",
    "mirror file": "DEST file: that is a file, and a folder is needed",
    "mirror . --mirror ./": "--mirror ./ is the folder that is built",
    "--mirror file": "--mirror file: that is a file, and a folder is needed",
    "--cache-dir file": "--cache-dir file: that is a file, and a folder is needed",
    "demo --folder file": "--folder file: that is a file, and a folder is needed",
    "vectors --folder file": "--folder file: that is a file, and a folder is needed",
    "compare http://host/reference.json candidate.json": "is an address, and a file is read: fetch it first (curl -LO http://host/reference.json)",
    "compare . candidate.json": ". cannot be read: it is a folder, name the JSON in it: candidate.json, reference.json",
    "compare refrence.json candidate.json": "refrence.json cannot be read: No such file or directory; did you mean reference.json?",
    "report reference.json -o reference.json": "reference.json is read too, and would be written over: name another file with --output",
    "report reference.json candidate.json -o ./candidate.json": "./candidate.json is read too",
    "report reference.json candidate.json -o link": "link is read too",
}


@pytest.mark.parametrize("command", USAGE)
def test_wrong_usage_is_one_line_that_knows_more(folder: Path, command: str) -> None:
    (folder / "link").symlink_to("candidate.json")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    ran = run(*shlex.split(command))
    assert ran.returncode == 2 and USAGE[command] in error(ran), ran.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before and not (folder / "http:").exists()


@pytest.mark.parametrize("first", ["--quiet", "--layers 0", "--debug --offline"])
def test_an_option_before_the_command(folder: Path, first: str) -> None:
    ran = run(*first.split(), "compare", "reference.json", "candidate.json")
    line = error(ran)
    command = line.split("the command comes first: ")[1].split("; see")[0]
    assert ran.returncode == 2 and command == f"python -m oracle compare {first} reference.json candidate.json"


def test_the_command_that_is_advised_runs(folder: Path) -> None:
    line = error(run("--quiet", "compare", "reference.json", "candidate.json"))
    assert run(*shlex.split(line.split("first: ")[1].split("; see")[0])[3:]).returncode == 0


CASE = {"layer": 0, "seed": 7, "n_active": 1, "top_10": [{"index": 3, "activation": 1.5}]}
DOCUMENTS: dict[str, tuple[str, str]] = {
    "empty": ("", "it is empty; whatever was to write it wrote nothing"),
    "blank": (" \n", "it is empty"),
    "JSON Lines": ("\n".join([json.dumps(CASE)] * 3), 'it holds JSON Lines, and one object is read: put the lines into a list, {"test_cases": [...]}'),
    "a bare list": (json.dumps([CASE]), 'holds a list, not an object: put it under a key, {"test_cases": [...]}'),
    "another top": (
        json.dumps({"test_cases": [{"layer": 0, "seed": 7, "n_active": 1, "top_5": []}]}),
        "test_cases[0] has top_5, and this reference's lists have 10 features: print them as top_10",
    ),
    "NaN": (json.dumps({"test_cases": [CASE, CASE]})[:-4].replace("1.5", "NaN", 1) + "]}]}", "NaN is no number in JSON"),
    "a NaN's case": (
        json.dumps({"test_cases": [{**CASE, "seed": 6}, CASE]}).replace("1.5", "2.5", 1).replace("1.5", "NaN"),
        "NaN is no number in JSON, and test_cases[1].top_10[0].activation (layer 0 seed 7) is NaN",
    ),
    "minus infinity": (
        json.dumps({"test_cases": [CASE]}).replace("1.5", "-Infinity"), "test_cases[0].top_10[0].activation (layer 0 seed 7) is Infinity",
    ),
    "exact vectors": (json.dumps({"format": "x", "notes": {}, "test_cases": []}), "holds exact vectors, not a port's answers to a reference"),
}  # fmt: skip


def test_standard_input_and_output_are_called_so(folder: Path) -> None:
    for text, message in (("", "is not readable JSON: it is empty"), ("[]", "holds a list"), ("{}", ": test_cases is missing"), ("3", "holds 3")):
        ran = run("compare", "reference.json", "-", input=text)
        assert ran.returncode == 4 and error(ran).startswith(f"error: standard input{'' if message[0] == ':' else ' '}{message}")


def test_a_folder_that_is_no_mirror_says_how_to_build_it(folder: Path) -> None:
    ran = run("mirror", ".", "--check")
    assert ran.returncode == 4 and error(ran).endswith("is no mirror that `python -m oracle mirror` built; build it first, without --check")


def test_every_option_of_every_command_has_a_help(folder: Path) -> None:
    for command in parser().commands.values():
        assert not [action.dest for action in command._actions if not action.help]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_something_else_is_recognised(folder: Path, name: str) -> None:
    text, message = DOCUMENTS[name]
    (folder / "candidate.json").write_text(text)
    ran = run("compare", "reference.json", "candidate.json")
    assert ran.returncode == 4 and message in error(ran), ran.stderr


def test_a_reference_and_a_candidate_in_each_other_s_place(folder: Path) -> None:
    swapped = run("compare", "candidate.json", "reference.json")
    assert swapped.returncode == 2
    assert error(swapped).endswith("reference.json the reference, which comes first: python -m oracle compare reference.json candidate.json")
    twice = run("compare", "candidate.json", "candidate.json")
    assert twice.returncode == 4 and "candidate.json holds a port's answers, not a reference" in error(twice)
    same = run("compare", "reference.json", "reference.json")
    assert same.returncode == 0 and "reference.json is a reference itself, not what a port printed" in same.stderr
    assert run("compare", "reference.json", "candidate.json").stderr == ""


def test_what_a_job_reads_is_not_written_over(folder: Path, demo_folder: Path) -> None:
    np.save("rows.npy", np.ones((2, 64), np.float32))
    before = Path("rows.npy").read_bytes()
    ran = run("--residuals", "rows.npy", "-o", "rows.npy", "--offline")
    assert ran.returncode == 2 and "rows.npy is read too" in error(ran) and Path("rows.npy").read_bytes() == before


@pytest.mark.parametrize("which", ["config.yaml", "layer_0/width_512/average_l0_40/params.npz"])
def test_weights_are_not_written_over(which: str, demo_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_folder / "hub", tmp_path / "hub", symlinks=True)
    path = next((tmp_path / "hub").rglob(which))
    before = path.read_bytes()
    job = ("--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation", "--layers", "0", "--offline", "--cache-dir", str(tmp_path / "hub"))
    ran = run(*job, "-o", str(path))
    assert ran.returncode == 2 and f"{which} is read too" in error(ran) and path.read_bytes() == before


def test_the_weights_of_an_explanation_are_not_written_over(demo_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_folder / "hub", tmp_path / "hub", symlinks=True)
    path = next((tmp_path / "hub").rglob("layer_12/width_512/average_l0_40/params.npz"))
    before, documents = path.read_bytes(), [str(demo_folder / name) for name in ("plt_gemma_reference.json", "candidate.json")]
    ran = run("report", *documents, "--explain", "--offline", "--cache-dir", str(tmp_path / "hub"), "-o", str(path))
    assert ran.returncode == 2 and "params.npz is read too" in error(ran) and path.read_bytes() == before


def test_ways_on_are_those_that_were_not_tried(folder: Path) -> None:
    def ways(*options: str) -> str:
        ran = run(*options)
        assert ran.returncode == 3
        return error(ran).split("; ways on: ")[1]

    assert ways("--offline", "--cache-dir", "none") == "leave --offline out where there is a network, a mirror with --mirror URL, or `python -m oracle demo`"
    assert ways("--mirror", "nowhere").startswith("a filled cache with --offline (HF_HUB_OFFLINE=1), another mirror with --mirror URL")


def test_the_command_that_a_mirror_advises_runs(folder: Path, demo_folder: Path) -> None:
    source: Any = "--offline", "--cache-dir", str(demo_folder / "hub"), "--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation"
    ran = run("mirror", "a mirror", *source)
    command = ran.stderr.rstrip().rpartition("or use it with: ")[2]
    assert ran.returncode == 0 and command.startswith("python -m oracle --repo oracle-demo/")
    assert run(*shlex.split(command)[3:], "--layers", "0", "-o", "again.json").returncode == 0 and os.path.exists("again.json")
