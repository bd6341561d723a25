# SPDX-License-Identifier: MIT OR Apache-2.0
"""README.md as a program: its fenced `console` blocks are one session in a shell, each `$` line a command, what follows its output.

A line `...` stands for any lines. `python -m tests.support.readme` runs the session and writes what it printed into README.md, but
for outputs that have such a line or that README.md leaves out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oracle.vectors import demo
from oracle.weights import formats
from tests.support.hub import Hub
from tests.support.places import ROOT
from tests.support.process import variables

README = ROOT / "README.md"
END = "\x1e"  # between what two commands print
# The repos that README.md names, each with small weights of its format: what their files are called, and how those of the demo's are.
LISTED = {"mntss/gemma-scope-transcoders": "GemmaScopeNpz", "mntss/transcoder-Llama-3.2-1B": "PltBundle"}
BY_PATH = {
    ("google/gemma-scope-2b-pt-res", "Sae"): "layer_0/width_16k/average_l0_105/params.npz",
    ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "QwenScope"): "layer0.sae.pt",
}


@dataclass(frozen=True)
class Command:
    """A command, the lines that README.md has of its output, and the index there of the first."""

    text: str
    output: tuple[str, ...]
    first: int


def blocks(language: str) -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.M | re.S)


def session() -> list[Command]:
    """The commands of the `console` blocks, in their order."""
    commands: list[Command] = []
    inside = False
    for number, line in enumerate(README.read_text().splitlines()):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            commands.append(Command(line[2:], (), number + 1))
        elif inside:
            last = commands.pop()
            commands.append(Command(last.text, (*last.output, line), last.first))
    return commands


@contextmanager
def hub() -> Iterator[Hub]:
    """A Hub with small weights under the names that README.md has."""
    with Hub() as served:
        for repo, name in LISTED.items():
            row = formats.by_name(name)
            paths = []
            for layer in range(demo.N_LAYERS):
                files = demo.layer_files(row, layer)
                paths.append(next(iter(files)))
                for path, content in files.items():
                    served.add(repo if row.encoder_file.count("{layer}") else f"{repo}-weights", path, content)
            listed = "" if row.encoder_file.count("{layer}") else "transcoders:\n" + "".join(f'  - "hf://{repo}-weights/{path}"\n' for path in paths)
            served.add(repo, "config.yaml", f"model_kind: {row.model_kind}\n{listed}".encode())
        for (repo, name), path in BY_PATH.items():
            files = demo.layer_files(formats.by_name(name), 0)
            served.add(repo, path, next(iter(files.values())))
        yield served


def printed(commands: list[Command], folder: Path, endpoint: str) -> list[tuple[str, ...]]:
    """The lines that each command prints, on either stream, in one shell that runs them all in `folder`."""
    script = "".join(f"{command.text}\nprintf '\\x1e'\n" for command in commands)
    environment = variables({"HF_ENDPOINT": endpoint, "HOME": str(folder / "home"), "COLUMNS": "120"})
    environment.pop("HF_HOME", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ran = subprocess.run(
        ["bash"], input=script, text=True, cwd=folder, env=environment, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    outputs = [tuple(output.rstrip("\n").splitlines()) for output in ran.stdout.split(END)]
    return outputs[:-1]


def agrees(shown: tuple[str, ...], lines: tuple[str, ...]) -> bool:
    """Whether the lines are those that README.md shows, `...` for any number of them."""
    pattern = "".join("(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def main() -> None:
    commands = session()
    with tempfile.TemporaryDirectory() as folder, hub() as served:
        outputs = printed(commands, Path(folder), served.url)
    lines = README.read_text().splitlines()
    for command, output in reversed(list(zip(commands, outputs, strict=True))):
        if command.output and "..." not in command.output:
            lines[command.first : command.first + len(command.output)] = output
    README.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
