# SPDX-License-Identifier: MIT OR Apache-2.0
"""For every test: a clean environment, and a Hub on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.places import BESIDE


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where CI_NO_SKIPS is set a skipped test is a failure, but for those that need files beside the checkout."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return  # one of several processes: what it skipped is told to the one that has the reporter
    skipped = [report for report in reporter.stats.get("skipped", []) if BESIDE not in str(report.longrepr)]
    if os.environ.get("CI_NO_SKIPS") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"{len(skipped)} tests were skipped, and CI_NO_SKIPS is set", red=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees, or fills, the cache, the token, the proxies or the workflow of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "ORACLE_", "GITHUB_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # rustup's rustc looks for its toolchain in the real home.
    monkeypatch.setenv("RUSTUP_HOME", os.environ.get("RUSTUP_HOME") or os.path.expanduser("~/.rustup"))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as served:
        yield served
