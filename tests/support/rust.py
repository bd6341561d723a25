# SPDX-License-Identifier: MIT OR Apache-2.0
"""Rust programs: the generator that the command line prints, and the port in tests/consumer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.process import run

# rustup's rustc looks for its toolchain in the real home, and tests have one of their own.
RUSTUP_HOME = os.environ.get("RUSTUP_HOME") or os.path.expanduser("~/.rustup")

REGISTRY = Path("/usr/share/cargo/registry")  # where Debian's packages of crates put their sources


def generator(folder: Path) -> Path:
    """residual.rs in `folder`, as the command line prints it. The test is skipped where there is no rustc."""
    if not shutil.which("rustc"):
        pytest.skip("rustc is not installed")
    printed = run("residual", "--rust")
    assert printed.returncode == 0
    (folder / "residual.rs").write_text(printed.stdout)
    return folder / "residual.rs"


def consumer(folder: Path) -> Path:
    """The port, built in `folder`: it takes a reference, a cache and where its answers go."""
    generator(folder)
    for source in (ROOT / "tests/consumer").glob("*.rs"):
        shutil.copy(source, folder)
    return build(folder / "main.rs", "-O")


def crates(folder: Path, *names: str) -> list[str]:
    """rustc's options for crates that Debian packages (librust-serde-json-dev), compiled into `folder` in the order of their dependencies.

    The test is skipped where they are not installed.
    """
    options = ["-L", str(folder)]
    for name in names:
        sources = sorted(REGISTRY.glob(f"{name}-1.*"))
        if not sources or not shutil.which("rustc"):
            pytest.skip(f"rustc, or {name} in {REGISTRY}, is not installed: librust-serde-json-dev brings it")
        edition = re.search(r'^edition = "(\d+)"', (sources[-1] / "Cargo.toml").read_text(), re.MULTILINE)
        command = ["rustc", "--crate-name", name, "--crate-type", "rlib", "--edition", edition[1] if edition else "2015", "--cap-lints", "allow", "-O"]
        # What Cargo.toml has by default, and what serde_json's build script finds on 64 bits.
        command += ["--cfg", 'feature="std"', "--cfg", "limb_width_64", *options, "--out-dir", str(folder), str(sources[-1] / "src/lib.rs")]
        subprocess.run(command, check=True)
        options += ["--extern", f"{name}={folder}/lib{name}.rlib"]
    return options


def build(source: Path, *options: str) -> Path:
    """The program that rustc makes of a file, beside it."""
    command = ["rustc", "--edition", "2021", "-D", "warnings", *options, source.name, "-o", source.stem]
    subprocess.run(command, cwd=source.parent, check=True)
    return source.with_suffix("")
