# SPDX-License-Identifier: MIT OR Apache-2.0
"""For every test: a clean environment, a Hub on loopback, and the demo's files to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vendored_hf as hf
from tests.support import schemas
from tests.support.hub import Hub
from tests.support.places import BESIDE
from tests.support.process import run
from tests.support.rust import RUSTUP_HOME

# As the command line sets it for itself. NumPy reads it when it is imported, which here is before any command.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
schemas.watch()  # before any test imports what it watches


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where CI_NO_SKIPS is set a skipped test is a failure, but for those that need files beside the checkout."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return  # one of several processes: what it skipped is told to the one that has the reporter
    skipped = [report for report in reporter.stats.get("skipped", []) if BESIDE not in str(report.longrepr)]
    if os.environ.get("CI_NO_SKIPS") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"{len(skipped)} tests were skipped, and CI_NO_SKIPS is set", red=True)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No test sees the token, the proxies or the workflow of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "ORACLE_", "GITHUB_")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        for name in ("XDG_CACHE_HOME", "OPENBLAS_NUM_THREADS"):
            patch.delenv(name, raising=False)
        patch.setenv("RUSTUP_HOME", RUSTUP_HOME)
        yield


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees, or fills, the cache of whoever runs it; and in this process nobody waits long between attempts."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setattr(hf, "FIRST_WAIT", 0.03)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as served:
        yield served


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's weights and reference, for all tests to read and for none to write to."""
    folder = tmp_path_factory.mktemp("demo")
    assert run("demo", "--folder", str(folder), "--quiet").returncode == 0
    return folder
