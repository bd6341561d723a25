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


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    in_folder(tmp_path, "git", "clone", "--quiet", str(ROOT), "clone")
    return tmp_path / "clone"


def files_of(clone: Path) -> tuple[set[str], set[str]]:
    """What git tracks, and of it the package."""
    tracked = set(in_folder(clone, "git", "ls-files"))
    return tracked, {name for name in tracked if name.startswith("oracle/") or name == "vendored_hf.py"}


def test_wheel_and_sdist(clone: Path, tmp_path: Path) -> None:
    tracked, package = files_of(clone)
    assert wheel(clone, tmp_path / "wheel", *PIP_WHEEL) == package
    left = in_folder(clone, "git", "status", "--porcelain", "--ignored")
    assert left and all(line.startswith("!! ") for line in left)

    assert sdist(clone, tmp_path / "sdist")[1] == tracked


@pytest.mark.slow
def test_wheel_and_sdist_of_an_sdist(clone: Path, tmp_path: Path) -> None:
    """From what was unpacked, where there is no git."""
    tracked, package = files_of(clone)
    unpacked, _ = sdist(clone, tmp_path / "sdist")
    assert sdist(unpacked, tmp_path / "again")[1] == tracked
    assert wheel(unpacked, tmp_path / "wheel again", "-c", BUILD, "build_wheel") == package
