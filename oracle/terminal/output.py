# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON as it is written, and files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import vendored_hf
from oracle.errors import BadUse

if TYPE_CHECKING:
    from oracle.references.rows import Document


class OutputError(BadUse, OSError):
    """A file cannot be written where it should go."""


def dump(document: Document) -> Iterator[str]:
    """The document as JSON, in parts, two spaces an indent; a list of numbers stands on one line.

    A float32 is written with the digits of the same binary64 number, so that a reader that parses to binary64 and
    casts gets its bits back, even one whose parser is off by a last bit.
    """
    yield from _dump(document, "\n")
    yield "\n"


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, in which nothing reads as a command of a GitHub runner: it looks for ##[ on standard output too."""
    return json.dumps(value, indent=indent, allow_nan=False).replace("##[", "##\\u005b")


def _dump(value: Any, newline: str) -> Iterator[str]:
    if hasattr(value, "tolist"):
        value = value.tolist()  # one at a time: as lists, residuals take eight times their memory
    nested = isinstance(value, (dict, list)) and len(value) > 0
    if not nested or (isinstance(value, list) and not isinstance(value[0], (dict, list, str))):
        yield json_text(value)
        return
    inner = newline + "  "
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    between = opening + inner
    for item in value.items() if isinstance(value, dict) else value:
        yield between
        between = "," + inner
        if isinstance(value, dict):
            key, item = item
            yield f"{json_text(key)}: "
        yield from _dump(item, inner)
    yield newline + closing


def check_output(path: str, inputs: Iterable[str | None] = ()) -> None:
    """Raise OutputError if `path` could not be written, or is one of the `inputs`: better before an hour of work than after it."""
    folder = os.path.dirname(os.path.abspath(path))
    check_apart(path, inputs)
    if not path or path.endswith(("/", os.sep)):
        raise OutputError(f"{path!r} names no file; name one")
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: the folder {folder} does not exist; make it first")
    if os.path.exists(path) and not os.path.isfile(path):
        return  # a device or a pipe
    import tempfile  # not at the top: few commands need it, and it takes 5 ms

    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise OutputError(f"{path}: the folder {folder} cannot be written to: {error.strerror}") from error


def check_apart(path: str, inputs: Iterable[str | None]) -> None:
    """Raise OutputError if `path` is one of the `inputs`."""
    for name in inputs:
        if name not in (None, "-") and os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
            raise OutputError(f"{path} is read too, and would be written over: name another file with --output")


def check_folder(path: str | None, option: str) -> None:
    """Raise OutputError if a folder cannot be where `option` has it, for a file is there."""
    if path and "://" not in path and os.path.exists(path) and not os.path.isdir(path):
        raise OutputError(f"{option} {path}: that is a file, and a folder is needed; name one")


def write_text(parts: Iterable[str], path: str) -> None:
    """Write a text, of which there are parts, beside `path` and rename it over: a reader never sees half.

    A failure leaves the old file. `-` is standard output. Raises OutputError.
    """
    target = os.path.realpath(path)
    try:
        if path == "-":
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            try:
                sys.stdout.writelines(parts)
                sys.stdout.flush()
            except OSError as error:
                # Python would flush what is left once more at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                if not isinstance(error, BrokenPipeError):  # whoever reads it has seen enough: the rest is dropped, and that is no error
                    raise
        elif os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            with open(target, "w", encoding="utf-8") as device:  # a pipe or a device cannot be renamed over
                device.writelines(parts)
        else:
            with vendored_hf.replacing(target) as file:
                for part in parts:
                    file.write(part.encode())
    except OSError as error:
        raise OutputError(f"{'standard output' if path == '-' else path} cannot be written: {error.strerror}") from error
