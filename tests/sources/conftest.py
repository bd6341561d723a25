# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tests of downloads share."""

from __future__ import annotations

import pytest

import vendored_hf as hf


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several connections for the test's small file too."""
    monkeypatch.setattr(hf, "SEVERAL_FROM", 1 << 20)
