# SPDX-License-Identifier: MIT OR Apache-2.0
"""What most tests ask in their own process, a process of its own answers alike."""

from __future__ import annotations

import configparser
import importlib
import logging
import os
import sys
from pathlib import Path

import pytest

import oracle.__main__
from tests.support import process
from tests.support.places import ROOT
from tests.support.process import python, run

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
    answers = [door(*COMMANDS[name], cwd=demo_folder, input=text, environment={"COLUMNS": "100"}) for door in (run, process.oracle)]
    assert len({(ran.returncode, ran.stdout, ran.stderr) for ran in answers}) == 1, answers
    assert before == (dict(os.environ), os.getcwd(), sys.stdin, sys.stdout, sys.stderr, logger.level, logger.handlers)


INTERRUPTED_IMPORT = """
import os, signal, sys
import oracle.__main__

class Interrupted:
    def find_spec(self, name, *_):
        if name == "oracle.terminal.commands":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupted())
oracle.__main__.run()
"""
INTERRUPTED_END = """
import atexit, os, signal, sys
import oracle.__main__

atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["oracle", "residual", "--length", "1"]
oracle.__main__.run()
"""


def test_ctrl_c_while_python_imports_or_ends(tmp_path: Path) -> None:
    early = python("-c", INTERRUPTED_IMPORT, cwd=tmp_path)
    assert (early.returncode, early.stdout, early.stderr) == (130, "", "interrupted\n")
    late = python("-c", INTERRUPTED_END, cwd=tmp_path)
    assert (late.returncode, late.stdout, late.stderr) == (0, "0.2870689034461975\n", "")


def test_the_console_script_is_the_same_program() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, _, place = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = place.partition(":")
    assert name == "oracle" and getattr(importlib.import_module(module), function) is oracle.__main__.run


def test_a_shell_is_told_what_may_come_next(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    for line, expected in (("oracle comp", ["compare "]), ("oracle inspect --cand", ["--candidate "]), ("oracle verify --fail", ["--failed-only "])):
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"), "COMP_LINE": line, "COMP_POINT": str(len(line))}
        assert process.oracle(environment={**asked, "IFS": "\n"}).returncode == 0
        assert (tmp_path / "words").read_text().split("\n") == expected


def test_the_help_names_the_environment_and_the_exit_codes() -> None:
    for arguments in ([], ["compare"]):
        text = " ".join(run(*arguments, "--help").stdout.split())
        assert all(name in text for name in ("ORACLE_MIRROR", "HF_TOKEN", "HF_HUB_OFFLINE", "NO_COLOR", "130 interrupted"))
