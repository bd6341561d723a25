# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tests share: a clean environment, a Hub on loopback, and the command line as a process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hub import Hub  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

BESIDE = "is not beside this checkout"

WEIGHTS_REPO = "google/gemma-scope-2b-pt-transcoders"
CURATION_REPO = "mntss/gemma-scope-transcoders"


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


def shared(name: str) -> Path:
    """A file beside the project; the test is skipped where it is not."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} {BESIDE}")
    return path


def oracle(*arguments: str, environment: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m oracle` as a process of its own."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", "oracle", *arguments],
        capture_output=True, text=True, timeout=120, env=variables, **options,
    )


def layer_arrays(seed: int, d_model: int = 24, n_features: int = 96) -> dict[str, np.ndarray]:
    """The five tensors of a small GemmaScope layer, of which a few features fire."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "W_enc": normal(d_model, n_features) * np.float32(d_model**-0.5),
        "W_dec": normal(n_features, d_model),
        "b_enc": normal(n_features) * np.float32(0.1),
        "b_dec": normal(d_model),
        "threshold": rng.uniform(0.8, 1.2, n_features).astype(np.float32),
    }


def npz(arrays: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    archive = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(archive, **arrays)
    return archive.getvalue()


def path_of(layer: int) -> str:
    return f"layer_{layer}/width_16k/average_l0_{layer + 5}/params.npz"


def config(n_layers: int, repo: str = WEIGHTS_REPO) -> bytes:
    lines = [f'  - "hf://{repo}/{path_of(layer)}"' for layer in range(n_layers)]
    return ("model_kind: transcoder_set\ntranscoders:\n" + "\n".join(lines) + "\n").encode()


def fill(hub: Hub, n_layers: int = 3, d_model: int = 24, n_features: int = 96) -> None:
    """Put a small Gemma Scope on a Hub."""
    hub.add(CURATION_REPO, "config.yaml", config(n_layers))
    for layer in range(n_layers):
        hub.add(WEIGHTS_REPO, path_of(layer), npz(layer_arrays(layer, d_model, n_features)))
