# SPDX-License-Identifier: MIT OR Apache-2.0
"""README.md does what it says: each of its commands is run, and prints what it shows; its Python runs, its Rust compiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import readme
from tests.support.places import ROOT
from tests.support.process import run
from tests.support.readme import README


@pytest.mark.slow
def test_every_command_prints_what_is_shown(tmp_path: Path) -> None:
    commands = readme.session()
    assert len(commands) > 15
    with readme.hub() as hub:
        outputs = readme.printed(commands, tmp_path, hub.url)
    assert len(outputs) == len(commands)
    for command, output in zip(commands, outputs, strict=True):
        text = "\n".join(output)
        assert "Traceback" not in text and "usage:" not in text and "error:" not in text, f"{command.text}\n{text}"
        if command.output:
            assert readme.agrees(command.output, output), f"{command.text}\n{text}"


def test_it_is_short_enough_to_be_read() -> None:
    assert len(README.read_text().splitlines()) <= 300


def test_every_file_that_it_names_is_in_the_repository() -> None:
    named = set(re.findall(r"`((?:oracle|tests|\.ci)/[\w./]*\w/?)`", README.read_text())) | set(re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_link_within_it_has_its_heading() -> None:
    text = README.read_text()
    headings = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links and links <= headings


@pytest.mark.parametrize("command", ["generate", "compare", "verify", "mirror", "inspect", "vectors", "schema", "residual", "report", "demo"])
def test_every_option_stands_in_it(command: str) -> None:
    printed = run(command, "--help").stdout
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", printed)) - {"--help"}
    assert [option for option in sorted(options) if option not in README.read_text()] == []
