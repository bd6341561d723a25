# SPDX-License-Identifier: MIT OR Apache-2.0
"""What Windows and macOS do otherwise than Linux, made here: no links, files that are open and cannot be replaced, its locks, CRLF, long paths."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import types
from pathlib import Path
from typing import Any

import pytest

import vendored_hf as hf
from oracle.sources.curation import parse_config
from tests.support.hub import Hub
from tests.support.process import run
from tests.support.small_scope import config, fill


def test_a_demo_where_links_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refused)
    ran = run("demo", "--folder", str(tmp_path), "--quiet")
    assert ran.returncode == 0 and not [path for path in tmp_path.rglob("*") if path.is_symlink()], ran.stderr
    reference = tmp_path / "plt_gemma_reference.json"
    ran = run("verify", str(reference), "--cache-dir", str(tmp_path / "hub"), "--offline")
    assert ran.returncode == 0 and "9 cases: 9 same" in ran.stdout, ran.stdout + ran.stderr


def test_an_output_that_is_open_elsewhere_stays_as_it_is(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows replaces no file that somebody has open."""
    output, replace = tmp_path / "report.html", os.replace
    output.write_text("old")

    def refused(source: str, target: str | Path) -> None:
        if Path(target) == output:
            raise PermissionError(errno.EACCES, "Permission denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    ran = run("report", str(demo_folder / "plt_gemma_reference.json"), "-o", str(output))
    assert ran.returncode == 2 and f"{output} cannot be written: Permission denied" in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    assert output.read_text() == "old" and not list(tmp_path.glob("report.html.*"))


class Windows:
    """The os module, which says that it is Windows'."""

    name = "nt"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def test_the_locks_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """msvcrt.locking, which says EACCES where another has the byte, of one process too."""

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    monkeypatch.setattr(hf, "os", Windows())
    monkeypatch.setattr(hf, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2), raising=False)
    with hf.locked(tmp_path / "x.lock") as alone, (tmp_path / "x.lock").open() as other:
        assert alone
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_lines_that_end_with_crlf(start: bytes, demo_folder: Path, tmp_path: Path) -> None:
    """As an editor or git leaves them there, with a mark of the encoding before them or not."""
    reference = demo_folder / "plt_gemma_reference.json"
    candidate = tmp_path / "candidate.json"
    candidate.write_bytes(start + json.dumps(json.loads(reference.read_text()), indent=1).replace("\n", "\r\n").encode())
    ran = run("compare", str(reference), str(candidate))
    assert ran.returncode == 0, ran.stderr
    assert parse_config(start + config(3).replace(b"\n", b"\r\n")) == parse_config(config(3))


def test_paths_are_shorter_than_windows_takes(hub: Hub, tmp_path: Path) -> None:
    """260 characters with the cache's own place: what is written below it, while it is being written too, takes less than 200."""
    fill(hub, 26)
    assert run("--mirror", hub.url, "--layers", "0,25", "--cache-dir", str(tmp_path / "hub"), "-o", str(tmp_path / "out"), "--quiet").returncode == 0
    lengths = [len(str(path.relative_to(tmp_path / "hub"))) for path in (tmp_path / "hub").rglob("*")]
    assert max(lengths) + len(".0123456789abcdef.incomplete") < 200, max(lengths)
