# SPDX-License-Identifier: MIT OR Apache-2.0
"""What most tests ask in their own process, a process of its own answers alike."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from tests.support.process import oracle, run

COMMANDS = {
    "help": ["--help"],
    "a command's help": ["verify", "--help"],
    "version": ["--version"],
    "wrong usage": ["--seeds", "many"],
    "no such file": ["compare", "nowhere.json", "nowhere.json"],
    "residual": ["residual", "--length", "7"],
    "verify": ["verify", "plt_gemma_reference.json", "--offline", "--cache-dir", "hub"],
    "compare": ["compare", "plt_gemma_reference.json", "-", "--format", "junit"],
    "quiet": ["compare", "plt_gemma_reference.json", "-", "--quiet"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_both_doors_answer_alike(demo_folder: Path, name: str) -> None:
    logger = logging.getLogger("vendored_hf")
    before = dict(os.environ), os.getcwd(), sys.stdin, sys.stdout, sys.stderr, logger.level, logger.handlers[:]
    text = (demo_folder / "plt_gemma_reference.json").read_text()
    answers = [door(*COMMANDS[name], cwd=demo_folder, input=text, environment={"COLUMNS": "100"}) for door in (run, oracle)]
    assert len({(ran.returncode, ran.stdout, ran.stderr) for ran in answers}) == 1, answers
    assert before == (dict(os.environ), os.getcwd(), sys.stdin, sys.stdout, sys.stderr, logger.level, logger.handlers)
