# SPDX-License-Identifier: MIT OR Apache-2.0
"""README.md does what it says: each of its commands is run, and prints what it shows; its Python runs, its Rust compiles."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import vendored_hf as hf
from tests.support import readme, rust
from tests.support.places import ROOT
from tests.support.process import run
from tests.support.readme import README


@pytest.mark.slow
def test_every_command_prints_what_is_shown(tmp_path: Path) -> None:
    commands = readme.session()
    assert len(commands) > 12
    with readme.hub() as hub:
        outputs = readme.printed(commands, tmp_path, hub.url)
    assert len(outputs) == len(commands)
    for command, output in zip(commands, outputs, strict=True):
        text = "\n".join(output)
        assert "Traceback" not in text and "usage:" not in text and "error:" not in text, f"{command.text}\n{text}"
        if command.output:
            assert readme.agrees(command.output, output), f"{command.text}\n{text}"


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.read_text().splitlines()) <= 300


def test_every_file_that_it_names_is_in_the_repository() -> None:
    named = set(re.findall(r"`((?:oracle|tests|\.ci)/[\w./]*\w/?)`", README.read_text())) | set(re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
    assert len(named) > 2
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_link_within_it_has_its_heading() -> None:
    text = README.read_text()
    headings = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links and links <= headings


@pytest.mark.parametrize("command", ["generate", "compare", "verify", "mirror", "inspect", "vectors", "schema", "residual", "report", "demo"])
def test_every_option_stands_in_it(command: str) -> None:
    printed = run(command, "--help").stdout
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", printed)) - {"--help"}
    assert [option for option in sorted(options) if option not in README.read_text()] == []


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippet, = readme.blocks("python")
    exec(compile(snippet, str(README), "exec"), {})


def test_its_yaml_is_yaml() -> None:
    text, = readme.blocks("yaml")
    *steps, hook = yaml.safe_load(text)
    assert [list(step) for step in steps] == [["run"], ["run"]] and hook["repo"] == "local" and hook["hooks"][0]["language"] == "system"


ENCODE = """
fn encode(layer: usize, residual: &[f32]) -> Vec<(usize, f32)> {
    let mut weights = npz::Npz::open(std::path::Path::new(&format!("layer_{layer}.npz"))).unwrap();
    let [w_enc, b_enc, threshold] = ["W_enc", "b_enc", "threshold"].map(|name| weights.array(name).unwrap().values);
    let n_features = b_enc.len();
    let mut active = Vec::new();
    for feature in 0..n_features {
        let mut pre = b_enc[feature];
        for (input, value) in residual.iter().enumerate() {
            pre += value * w_enc[input * n_features + feature];
        }
        if pre > threshold[feature].max(0.0) {
            active.push((feature, pre));
        }
    }
    active.sort_by(|a, b| b.1.total_cmp(&a.1));
    active
}
"""
# What stands around the five lines in a test like candle-mi's: `clt.encode` gives `sparse`, whose features are ids and values.
AROUND = """
mod npz;
struct Id {{ index: usize }}
struct Sparse {{ features: Vec<(Id, f32)> }}
fn main() {{
    let text = std::fs::read_to_string("plt_gemma_reference.json").unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    {first}
    for tc in reference["test_cases"].as_array().unwrap() {{
        let layer = tc["layer"].as_u64().unwrap() as usize;
        let seed = tc["seed"].as_u64().unwrap();
        let residual: Vec<f32> = tc["residual"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect();
        let sparse = Sparse {{ features: encode(layer, &residual).into_iter().map(|(index, value)| (Id {{ index }}, value)).collect() }};
        {rest}
        assert_eq!(sparse.features.len() as u64, tc["n_active"].as_u64().unwrap());
    }}
}}
"""


@pytest.mark.slow  # serde_json is compiled
def test_its_rust_writes_a_candidate_that_agrees(tmp_path: Path) -> None:
    assert run("demo", "--folder", str(tmp_path), "--quiet").returncode == 0
    reference = json.loads((tmp_path / "plt_gemma_reference.json").read_text())
    for layer in reference["layers"]:
        cached = hf.try_to_load_from_cache(reference["weights_repo"], layer["path"], cache_dir=str(tmp_path / "hub"))
        shutil.copy(str(cached), tmp_path / f"layer_{layer['layer']}.npz")
    (tmp_path / "residual.rs").write_text(run("residual", "--rust").stdout)
    shutil.copy(ROOT / "tests/consumer/npz.rs", tmp_path)
    whole, = readme.blocks("rust")
    first, *rest = [line.removeprefix("+").strip() for line in readme.blocks("diff")[0].splitlines()]
    assert len(rest) == 4
    (tmp_path / "test.rs").write_text(f"mod npz;\n{whole}{ENCODE}")
    (tmp_path / "lines.rs").write_text(AROUND.format(first=first, rest="\n".join(rest)) + ENCODE)
    libraries = rust.crates(tmp_path, "itoa", "ryu", "serde", "serde_json")
    programs = rust.build(tmp_path / "test.rs", "--test", "-A", "dead_code", *libraries), rust.build(tmp_path / "lines.rs", "-A", "dead_code", *libraries)
    for program, keys in zip(programs, ({"activation_sum", "residual_fingerprint"}, set[str]()), strict=True):
        subprocess.run([program], cwd=tmp_path, env={**os.environ, "CANDIDATE": "1"}, check=True, capture_output=True)
        candidate = json.loads((tmp_path / "candidate.json").read_text())
        assert len(candidate["test_cases"]) == 9 and all(keys <= case.keys() for case in candidate["test_cases"])
        compared = run("compare", str(tmp_path / "plt_gemma_reference.json"), str(tmp_path / "candidate.json"))
        assert compared.returncode == 0, compared.stdout
        (tmp_path / "candidate.json").unlink()
