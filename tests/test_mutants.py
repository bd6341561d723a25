# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mutator of the tests' own, on a module of a few lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mutants import mutants
from tests.support.places import ROOT

TOY = '''"""A toy."""
def clipped(values: list[int], most: int = 3) -> list[int]:
    if most < 0:
        raise ValueError(f"{most + 1}")
    return [min(value, most) for value in values[1:]]
'''
CHECKS = """from toy import clipped
def test_toy() -> None:
    assert clipped([9, 1, 5], 2) == [1, 2]
"""


def test_every_kind_of_change_is_made_and_texts_and_types_are_left() -> None:
    changes = {(mutant.old, mutant.new) for mutant in mutants(TOY, 1000)}
    assert changes == {
        ("3", "4"), ("3", "2"), ("most < 0", "most <= 0"), ("most < 0", "most >= 0"), ("0", "1"), ("0", "-1"),
        ("if most < 0: raise ValueError(f'{most + 1}')", "pass"), ("raise ValueError(f'{most + 1}')", "pass"),
        ("min(value, most)", "max(value, most)"), ("1:", "1 + 1:"), ("1:", "1:-1"), ("1", "2"), ("1", "0"),
    }  # fmt: skip
    some = mutants(TOY, 5, seed=1)
    assert some == mutants(TOY, 5, seed=1) != mutants(TOY, 5, seed=2) and len(some) == 5
    assert [mutant.line for mutant in some] == sorted(mutant.line for mutant in some)


@pytest.mark.slow
def test_survivors_are_named(tmp_path: Path) -> None:
    for name, content in (("toy.py", TOY), ("test_toy.py", CHECKS)):
        (tmp_path / name).write_text(content)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    program = (
        "import sys; from pathlib import Path; from tests.support.mutants import survivors\n"
        "lived, count = survivors(Path(sys.argv[1]), 'toy.py', 1000, 0, ['test_toy.py', '-c', '/dev/null', '--rootdir', '.'])\n"
        "print(count)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, count = ran.stdout.splitlines()
    assert count == "13" and "toy.py:2  3 -> 4" in lines and "toy.py:3  most < 0 -> most <= 0" in lines, ran.stdout
    assert not [line for line in lines if "min" in line or ":5" in line] and len(lines) == 7, ran.stdout
    assert (tmp_path / "toy.py").read_text() == TOY
