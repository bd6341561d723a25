# SPDX-License-Identifier: MIT OR Apache-2.0
"""The real huggingface_hub, in a process of its own: its settings are read when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub import Hub


def started(hub: Hub, cache: Path, *calls: str) -> subprocess.Popen[str]:
    """Python that makes these calls one after the other. The test is skipped where the package is missing."""
    pytest.importorskip("huggingface_hub")
    program = "\n".join(["from huggingface_hub import hf_hub_download, try_to_load_from_cache", *calls])
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,127.0.0.2",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def printed(hub: Hub, cache: Path, *calls: str) -> str:
    """What these calls print."""
    process = started(hub, cache, *calls)
    output, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return output
