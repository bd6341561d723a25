# SPDX-License-Identifier: MIT OR Apache-2.0
"""The sha256 of files on disk: of their bytes, whatever name the cache has for them.

A large file is hashed once: a small record beside the cache says which bytes they were, by all that a file system tells of
a file without reading it. Whoever writes to the file, or puts another in its place, changes that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from io import FileIO
from pathlib import Path

import vendored_hf
from oracle.errors import BadData

FOLDER = "hashes"  # of ours, in a repo's part of the cache
RECORDED_FROM = 1 << 20  # bytes: what is smaller is hashed faster than its record is read


class DamagedFileError(BadData, ValueError):
    """A cached file does not have the bytes that its name says."""


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's bytes."""
    with open(path, "rb", buffering=0) as file:
        return _sha256_of(file)


def sha256_beside(file: FileIO) -> str:
    """The sha256 of an open file's bytes, while somebody else reads it at a place of his own."""
    if not hasattr(os, "pread"):  # Windows
        return sha256_of(file.name)
    digest, position = hashlib.sha256(), 0
    while chunk := os.pread(file.fileno(), 1 << 20, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def cached_sha256(file: FileIO, named: str | None, folder: Path) -> str:
    """The sha256 of a cached file that is open; `folder` is its repo's part of the cache, `named` the sha256 that the cache calls it by.

    Raises DamagedFileError where its bytes have another.
    """
    state, record = state_of(file), _record(file, folder)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        recorded = json.loads(record.read_bytes())
        if recorded["state"] == state and recorded["sha256"] == (named or recorded["sha256"]):
            return str(recorded["sha256"])
    sha256 = _sha256_of(file)
    if sha256 != (named or sha256):
        path = os.path.realpath(file.name)  # the blob: where a link to it alone is deleted, it would be linked again
        raise DamagedFileError(f"{path} is damaged: its sha256 is {sha256}, and it is kept as {named}: delete it and fetch it again")
    if state_of(file) == state:
        remember(file, sha256, folder)
    return sha256


def remember(file: FileIO, sha256: str, folder: Path) -> None:
    """Record that a file's bytes, as they are now, have this sha256: they were read, or verified as they arrived."""
    state = state_of(file)
    if state[0] >= RECORDED_FROM:
        with contextlib.suppress(OSError), vendored_hf.replacing(_record(file, folder)) as target:
            target.write(json.dumps({"state": state, "sha256": sha256}).encode())


def state_of(file: FileIO) -> list[int]:
    """What a file system tells of an open file's bytes without reading them; its size and the time of its last change first."""
    status = os.fstat(file.fileno())
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _sha256_of(file: FileIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 18):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


def _record(file: FileIO, folder: Path) -> Path:
    return folder / FOLDER / f"{hashlib.sha256(os.path.realpath(file.name).encode()).hexdigest()[:32]}.json"
