# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.places import ROOT


def oracle(*arguments: str, environment: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m oracle` as a process of its own."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", "oracle", *arguments],
        capture_output=True, text=True, timeout=120, env=variables, **options,
    )


def cores() -> list[str]:
    flags = Path("/proc/cpuinfo").read_text()
    return ["Haswell", "Zen", "Nehalem", *(["SkylakeX"] if "avx512f" in flags else [])]
