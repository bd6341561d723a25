# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is built from a checkout: a wheel of the package alone, an sdist that can be tested, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.places import ROOT

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
PIP_WHEEL = ("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w")


def in_folder(folder: Path, *command: str) -> list[str]:
    """The lines that a command prints there."""
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.splitlines()


def wheel(checkout: Path, folder: Path, *builder: str) -> set[str]:
    """The files of a wheel, but for its own record."""
    in_folder(checkout, sys.executable, *builder, str(folder))
    built, = folder.glob("*.whl")
    return {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}


def sdist(checkout: Path, folder: Path) -> tuple[Path, set[str]]:
    """An sdist, unpacked: where it is, and its files but for its own record."""
    in_folder(checkout, sys.executable, "-c", BUILD, "build_sdist", str(folder))
    built, = folder.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        archive.extractall(folder)
    top = folder / built.name.removesuffix(".tar.gz")
    names = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    return top, {name for name in names if name != "PKG-INFO" and ".egg-info/" not in name}


def test_wheel_and_sdist(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    clone = tmp_path / "clone"
    in_folder(tmp_path, "git", "clone", "--quiet", str(ROOT), str(clone))
    tracked = set(in_folder(clone, "git", "ls-files"))
    package = {name for name in tracked if name.startswith("oracle/") or name == "vendored_hf.py"}

    assert wheel(clone, tmp_path / "wheel", *PIP_WHEEL) == package
    left = in_folder(clone, "git", "status", "--porcelain", "--ignored")
    assert left and all(line.startswith("!! ") for line in left)

    unpacked, carried = sdist(clone, tmp_path / "sdist")
    assert carried == tracked
    # And so again from what was unpacked, where there is no git.
    assert sdist(unpacked, tmp_path / "again")[1] == tracked
    assert wheel(unpacked, tmp_path / "wheel again", "-c", BUILD, "build_wheel") == package
