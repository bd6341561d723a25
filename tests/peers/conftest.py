# SPDX-License-Identifier: MIT OR Apache-2.0
"""The peers' process, which takes a while to start: one for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.peers.run import VARIABLE, Peers

PYTHON = os.environ.get(VARIABLE)  # read before the tests' environment is cleared of such


@pytest.fixture(scope="session")
def peers_python() -> str:
    if not PYTHON:
        pytest.skip(f"{VARIABLE} is not set: tests/peers/environment.py makes such a Python")
    return PYTHON


@pytest.fixture(scope="session")
def peers(peers_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    process = Peers(peers_python, tmp_path_factory.mktemp("peers"))
    yield process
    process.close()
