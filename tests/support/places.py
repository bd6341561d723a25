# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where things are: this checkout, and the files beside it that tests may read."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ROOT.parent / "shared"

BESIDE = "is not beside this checkout"


def shared(name: str) -> Path:
    """A file beside the project; the test is skipped where it is not."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} {BESIDE}")
    return path
