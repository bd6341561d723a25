# SPDX-License-Identifier: MIT OR Apache-2.0
"""Imports run down, files and wings stay small, and what a file keeps to itself is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import house
from tests.support.places import ROOT


def test_the_walls() -> None:
    assert not (problems := house.problems(ROOT)), "\n".join(problems)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small house in order: in each wing a module that imports one of each wing below it."""
    for number, wing in enumerate(house.WINGS):
        below = "".join(f"from oracle.{other} import room as {other}\n" for other in house.WINGS[number + 1 :])
        write(tmp_path / f"oracle/{wing}/__init__.py", f'"""What {wing} is for."""\n')
        write(tmp_path / f"oracle/{wing}/room.py", f"import math\nfrom oracle import errors\nfrom oracle.errors import Bad\n{below}_own = math._own\n")
    write(tmp_path / "oracle/__init__.py", "from oracle.library import generate\nfrom oracle.version import VERSION\n")
    write(tmp_path / "oracle/__main__.py", "from oracle.terminal.room import main\n")
    write(tmp_path / "oracle/library.py", "from oracle.references import room\n")
    write(tmp_path / "oracle/errors.py", "import vendored_hf\nfrom oracle.version import VERSION\n")
    write(tmp_path / "oracle/version.py", "VERSION = 1\n")
    write(tmp_path / "vendored_hf.py", "import os, requests\n\n\nclass Hub:\n    def _get(self):\n        return self._get\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


PLANTED = {
    "upwards": ("weights/room", "from oracle.sources.room import x", "oracle.weights.room:1 imports oracle.sources.room, which stands above it"),
    "one step up": ("sources/room", "from oracle.references import room", "imports oracle.references.room, which stands above"),
    "a wing's folder": ("checking/room", "import oracle.diagnosis as d", "imports oracle.diagnosis, which stands above"),
    "in a function": ("page/room", "def f():\n    if 1:\n        from oracle.terminal import room", "oracle.page.room:3 imports oracle.terminal.room"),
    "for types alone": ("page/room", "if TYPE_CHECKING:\n    from oracle.terminal.room import x", "imports oracle.terminal.room"),
    "by dots": ("page/room", "from ..terminal import room", "imports oracle.terminal.room, which stands above"),
    "by its name": ("page/room", "importlib.import_module('oracle.terminal.room')", "imports oracle.terminal.room, which stands above"),
    "the package": ("terminal/room", "import oracle", "oracle.terminal.room:1 imports oracle"),
    "the package's name": ("terminal/room", "import oracle.errors", "oracle.terminal.room:1 imports oracle"),
    "from the package": ("terminal/room", "from oracle import generate", "oracle.terminal.room:1 imports oracle"),
    "the library": ("terminal/room", "from oracle import library", "imports oracle.library"),
    "a word that names a wing": ("errors", "from oracle.weights.room import x", "oracle.errors:1 is a word for every wing, and imports"),
    "a word that names the library": ("errors", "from oracle.library import x", "oracle.errors:1 imports oracle.library"),
    "the Hub in weights": ("weights/room", "import vendored_hf", "oracle.weights.room:1 uses vendored_hf"),
    "the network in weights": ("weights/room", "from urllib.request import urlopen", "uses urllib.request"),
    "files in arithmetic": ("arithmetic/room", "import os.path", "oracle.arithmetic.room:1 uses os.path"),
    "open in arithmetic": ("arithmetic/room", "x = open('y')", "oracle.arithmetic.room:1 uses open"),
    "the package in the Hub": ("../vendored_hf", "from oracle.errors import Bad", "vendored_hf:1 uses oracle.errors"),
    "NumPy in the Hub": ("../vendored_hf", "import numpy as np", "vendored_hf:1 imports numpy"),
    "print": ("references/room", "def f():\n    print(1)", "oracle.references.room:2 prints"),
    "a private name": ("checking/room", "from oracle.weights.room import _own", "oracle.checking.room:1 imports _own"),
    "a module's private name": ("checking/room", "from oracle.weights import room\nroom._own", "oracle.checking.room:2 reaches for _own"),
    "an object's private name": ("sources/room", "def f(hub):\n    return hub._get()", "oracle.sources.room:2 reaches for _get"),
    "a long file": ("page/room", "\n" * 401, "oracle/page/room.py has 401 lines, and 400 is the most"),
    "a long Hub": ("../vendored_hf", "\n" * 801, "vendored_hf.py has 801 lines, and 800 is the most"),
    "code in a wing's __init__": ("page/__init__", '"""A page."""\nfrom oracle.page import room', "oracle.page/__init__.py holds more than a docstring"),
    "a wing that says nothing": ("page/__init__", "", "oracle.page/__init__.py holds more than a docstring"),
    "a tenth wing": ("tools/room", "x = 1", "oracle/tools is no wing"),
    "a wing in a wing": ("page/parts/room", "x = 1", "oracle/page/parts is no wing"),
}  # fmt: skip


def test_a_house_in_order(tree: Path) -> None:
    assert house.problems(tree) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(tree: Path, name: str) -> None:
    place, text, message = PLANTED[name]
    write(tree / f"oracle/{place}.py", f"{text}\n" if text.strip() else text)
    problem, = house.problems(tree)
    assert message in problem


@pytest.mark.parametrize("place, most", [("page/", house.MOST_FILES), ("", house.MOST_DOOR_MODULES)])
def test_too_many_rooms(tree: Path, place: str, most: int) -> None:
    number = 0
    while len([path for path in (tree / "oracle" / place).glob("*.py") if "__" not in path.name]) < most:
        write(tree / f"oracle/{place}more_{(number := number + 1)}.py", "")
    assert house.problems(tree) == []
    write(tree / f"oracle/{place}one_more.py", "")
    assert house.problems(tree) == [f"oracle/{place}".rstrip("/") + f" has {most + 1} files, and {most} is the most"]
