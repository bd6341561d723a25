# SPDX-License-Identifier: MIT OR Apache-2.0
"""setuptools' `sdist`, which by itself takes of tests/ only what is called test*.py; setup.cfg names this one instead."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools.command.sdist import sdist


class WholeTests(sdist):
    """Takes tests/ as it is, and what runs them."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        tests = (path for path in Path("tests").rglob("*") if path.is_file() and path.suffix != ".pyc")
        super().make_release_tree(base_dir, sorted({*files, *map(os.fspath, tests), ".ci/run", ".gitignore"}))
