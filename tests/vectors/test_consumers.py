# SPDX-License-Identifier: MIT OR Apache-2.0
"""The consumers that the command prints: built with what is on the machine, right as they stand, and failing by their flags."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from oracle.vectors import variants
from tests.support.process import run
from tests.support.rust import build

# Of each container, gate and input that a consumer does as it stands.
FOLDERS = (
    "GemmaScopeNpz", "Sae-relu", "PltBundle", "PltBundle-jumprelu", "PltBundle-topk", "CltSplit-jumprelu", "GemmaScope2Clt", "GemmaScope2Crosscoder", "SaeLens",
    "SaeLens-topk", "Sparsify", "PltBundle-square", "GemmaScopeNpz-square",
)  # fmt: skip
# What candle-mi's Cargo.toml asks for, of clippy and of rustc; it allows the first group's long functions and repeated names.
CLIPPY = """pedantic nursery unwrap_used expect_used panic indexing_slicing wildcard_enum_match_arm match_wildcard_for_single_variants exhaustive_enums
    as_conversions cast_possible_truncation cast_precision_loss cast_sign_loss missing_docs_in_private_items missing_errors_doc missing_panics_doc""".split()
LINTS = [*(f"clippy::{lint}" for lint in CLIPPY), "elided_lifetimes_in_paths", "missing_docs"]
ALLOWED = ("clippy::too_many_lines", "clippy::module_name_repetitions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of vectors."""
    place = tmp_path_factory.mktemp("vectors")
    for name in FOLDERS:
        variants.write(name, place)
    for name in ("SaeLens-gated", "QwenScope"):
        variants.write(name, place)
    return place


def printed(language: str, place: Path) -> Path:
    """The source that the command prints."""
    result = run("vectors", f"--{language}")
    assert result.returncode == 0 and not result.stderr
    suffix = {"rust": "rs", "c": "c", "javascript": "js"}[language]
    (place / f"vectors.{suffix}").write_text(result.stdout)
    return place / f"vectors.{suffix}"


def tool(name: str) -> str:
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


def check(command: list[str], folder: Path, name: str, candidate: Path, environment: dict[str, str] | None = None) -> None:
    """A consumer agrees with a folder's vectors by its own word and by compare's."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    assert result.returncode == 0, (name, result.stdout[-2000:], result.stderr)
    compared = run("compare", str(folder / name / "vectors.json"), str(candidate))
    assert compared.returncode == 0, (name, compared.stderr)


def broken(folder: Path, place: Path) -> Path:
    """Vectors whose answers to gate-equality are those of a port with `>=`: a right consumer fails them, by their flag."""
    copied = place / "broken"
    shutil.copytree(folder / "PltBundle-jumprelu", copied)
    document = json.loads((copied / "vectors.json").read_text())
    for case in document["test_cases"]:
        if "gate-equality" in case["flags"]:
            case["active"].append({"index": 100, "activation": 0.5})
            case["n_active"] += 1
    (copied / "vectors.json").write_text(json.dumps(document))
    return copied


# --- C ----------------------------------------------------------------------------------------------------------------


def test_c(folder: Path, tmp_path: Path) -> None:
    source, program = printed("c", tmp_path), tmp_path / "consumer"
    subprocess.run([tool("gcc"), "-std=c11", "-Wall", "-Wextra", "-Werror", "-O3", str(source), "-o", str(program)], check=True)
    for name in FOLDERS:
        check([str(program), str(folder / name), str(tmp_path / "candidate.json")], folder, name, tmp_path / "candidate.json")
    result = subprocess.run([str(program), str(broken(folder, tmp_path)), os.devnull], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "gate-equality: 4 cases fail: a feature whose pre-activation equals its threshold fired" in result.stderr
    for name, problem in (("SaeLens-gated", "fill in encode: gate: gated"), ("QwenScope", "your port has a reader of its own: layer0.sae.pt")):
        result = subprocess.run([str(program), str(folder / name), os.devnull], capture_output=True, text=True, check=False)
        assert result.returncode == 2 and problem in result.stderr


@pytest.mark.slow
def test_c_with_fast_math(folder: Path, tmp_path: Path) -> None:
    """Any order and fused: the same bits. Linked with -ffast-math too, gcc turns on flush to zero: the flag that is for it fails."""
    source, parts = printed("c", tmp_path), tmp_path / "consumer.o"
    options = ["-std=c11", "-O3", "-ffast-math", "-march=native"]
    subprocess.run([tool("gcc"), *options, "-c", str(source), "-o", str(parts)], check=True)
    subprocess.run(["gcc", str(parts), "-o", str(tmp_path / "fast")], check=True)
    for name in FOLDERS:
        check([str(tmp_path / "fast"), str(folder / name), str(tmp_path / "candidate.json")], folder, name, tmp_path / "candidate.json")
    subprocess.run(["gcc", *options, str(source), "-o", str(tmp_path / "flushing")], check=True)
    for name in FOLDERS:
        result = subprocess.run([str(tmp_path / "flushing"), str(folder / name), os.devnull], capture_output=True, text=True, check=False)
        # Where the values that are flushed are ties then, their order is another too.
        assert {line.partition(":")[0] for line in result.stderr.splitlines()} <= {"subnormal", "tie-order"}, name


# --- JavaScript -------------------------------------------------------------------------------------------------------


def test_javascript(folder: Path, tmp_path: Path) -> None:
    node, source = tool("node"), printed("javascript", tmp_path)
    for name in FOLDERS:
        check([node, str(source), str(folder / name), str(tmp_path / "candidate.json")], folder, name, tmp_path / "candidate.json")
    result = subprocess.run([node, str(source), str(broken(folder, tmp_path))], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stderr.startswith("gate-equality: cases 0, 1, 2, 3 fail: a feature whose pre-activation equals its threshold")
    assert len(json.loads(result.stdout)["test_cases"]) == 28
    result = subprocess.run([node, str(source), str(folder / "SaeLens-gated")], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "fill in encode: gate gated" in result.stderr


# --- Rust -------------------------------------------------------------------------------------------------------------


def test_rust(folder: Path, tmp_path: Path) -> None:
    tool("rustc")
    program = build(printed("rust", tmp_path), "--test", "-O")
    for name in FOLDERS:
        candidate = tmp_path / "candidate.json"
        check([str(program)], folder, name, candidate, {"ORACLE_VECTORS": str(folder / name), "ORACLE_CANDIDATE": str(candidate)})
    environment = {**os.environ, "ORACLE_VECTORS": str(broken(folder, tmp_path))}
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode != 0
    assert "gate-equality: cases [0, 1, 2, 3] fail: a feature whose pre-activation equals its threshold fired" in result.stdout + result.stderr
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False, env={**environment, "ORACLE_VECTORS": str(folder / "QwenScope")})
    assert result.returncode != 0 and "your port has a reader of its own" in result.stdout + result.stderr


@pytest.mark.parametrize("source", ["consumer", "generator"])
def test_rust_is_formatted_and_without_a_finding(source: str, tmp_path: Path) -> None:
    """As candle-mi's own CI has it; of the generator, clippy does not ask for mul_add, which would give other bits."""
    path = tmp_path / "vectors.rs"
    result = run("vectors", "--rust") if source == "consumer" else run("residual", "--rust")
    path.write_text(result.stdout)
    lints = [word for lint in LINTS for word in ("-W", lint)] + [word for lint in ALLOWED for word in ("-A", lint)]
    library = sysroot()
    for edition in editions():
        subprocess.run([tool("rustfmt"), "--check", "--edition", edition, str(path)], check=True)
        command = [tool("clippy-driver"), *library, "--edition", edition, "--test", str(path), "-o", str(tmp_path / "linted"), *lints, "-D", "warnings"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0 and not result.stderr, result.stderr


def editions() -> list[str]:
    """candle-mi's edition of Rust is 2024, which older compilers do not know."""
    knows = subprocess.run([tool("rustc"), "--edition", "2024", "--print", "cfg"], capture_output=True, check=False).returncode == 0
    return ["2021", "2024"] if knows else ["2021"]


def sysroot() -> list[str]:
    """clippy-driver asks nobody where its library is."""
    own = Path(tool("clippy-driver")).parent / "rustc"
    return ["--sysroot", subprocess.run([str(own), "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()]
