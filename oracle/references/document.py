# SPDX-License-Identifier: MIT OR Apache-2.0
"""The reference as a JSON document: its fixed parts, and how it is written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oracle.arithmetic.residual import (
    FNV_OFFSET_BASIS,
    FNV_PRIME,
    LN_2,
    LN_LAST_TERM,
    MULTIPLIER,
    NAME,
    SQRT_HALF,
    VERSION,
)
from oracle.errors import BadData, BadUse
from oracle.weights import formats as schemas

FORMAT_VERSION = 1
SEED_STRIDE = 100
DEFAULT_TOLERANCE = 1e-4  # of references that torch wrote, which record none

Document = dict[str, Any]


class OutputError(BadUse, OSError):
    """A file cannot be written where it should go."""


class DataError(BadData, ValueError):
    """A JSON file is not the reference, or the candidate, that it should be."""


class InputError(BadUse, OSError):
    """A JSON file that was named cannot be read."""


def generator_record() -> Document:
    """What a port of residual.py needs. 64-bit integers are strings: JSON numbers lose them."""
    return {
        "name": NAME,
        "version": VERSION,
        "seed": f"{SEED_STRIDE} * i + layer for the i-th residual of a layer, i = 0, 1, ...",
        "stream": "layer",
        "arithmetic": "unsigned 64-bit modulo 2^64, and IEEE-754 binary64 to nearest even, one operation at a time in "
        "the order written, never fused; sqrt is correctly rounded; no other libm function",
        "multiplier": f"0x{MULTIPLIER:016x}",
        "sqrt_half": SQRT_HALF,
        "ln_2": LN_2,
        "ln_last_term": LN_LAST_TERM,
        "fnv_offset_basis": f"0x{FNV_OFFSET_BASIS:016x}",
        "fnv_prime": f"0x{FNV_PRIME:016x}",
        "steps": [
            "PCG32 (XSH-RR 64/32): inc = (stream << 1) | 1; state = 0; step; state += seed; step; "
            "where step is state = state * multiplier + inc",
            "output, from the state before its step: x = rotate_right32(((state >> 18) ^ state) >> 27, state >> 59)",
            "uniform in (-1, 1): w = (2*x + 1) * 2^-32 - 1",
            "pair: u, then v; s = u*u + v*v; if s >= 1 drop both and take the next pair",
            "f = sqrt((-2 * ln(s)) / s); emit u*f, then v*f, each rounded once to float32; stop after d_model values",
            "ln(s): s = m * 2^e with m in [1/2, 1); if m < sqrt_half: m = 2*m, e = e - 1; t = (m - 1) / (m + 1); "
            "q = t*t; p = 1/ln_last_term; for k = ln_last_term - 2, then two less each time, down to 1: p = p*q + 1/k; "
            "ln(s) = e * ln_2 + (2*t) * p",
            "residual_fingerprint: FNV-1a, 64 bits, over the little-endian float32 bytes: h = fnv_offset_basis; "
            "for each byte h = (h xor byte) * fnv_prime",
        ],
    }


def omit_residuals(document: Document) -> Document:
    """The same reference without the vectors; the generator and the fingerprints stay."""
    cases = [{key: value for key, value in case.items() if key != "residual"} for case in document["test_cases"]]
    return {**document, "test_cases": cases}


def plain(document: Document) -> Document:
    """The same reference with its residuals as lists, as one reads it from the file."""
    cases = [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in case.items()}
        for case in document["test_cases"]
    ]
    return {**document, "test_cases": cases}


def dump(document: Document) -> Iterator[str]:
    """The document as JSON, in parts, two spaces an indent; a list of numbers stands on one line.

    A float32 is written with the digits of the same binary64 number, so that a reader that parses to binary64 and
    casts gets its bits back, even one whose parser is off by a last bit.
    """
    yield from _dump(document, "\n")
    yield "\n"


def _dump(value: Any, newline: str) -> Iterator[str]:
    if isinstance(value, np.ndarray):
        value = value.tolist()  # one at a time: as lists, residuals take eight times their memory
    nested = isinstance(value, (dict, list)) and len(value) > 0
    if not nested or (isinstance(value, list) and not isinstance(value[0], (dict, list, str))):
        yield json.dumps(value, allow_nan=False)
        return
    inner = newline + "  "
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    between = opening + inner
    for item in value.items() if isinstance(value, dict) else value:
        yield between
        between = "," + inner
        if isinstance(value, dict):
            key, item = item
            yield f"{json.dumps(key)}: "
        yield from _dump(item, inner)
    yield newline + closing


def check_output(path: str) -> None:
    """Raise OutputError if `path` could not be written: better before an hour of work than after it."""
    folder = os.path.dirname(os.path.abspath(path))
    if not path or path.endswith(("/", os.sep)):
        raise OutputError(f"{path!r} names no file; name one")
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: the folder {folder} does not exist; make it first")
    if os.path.exists(path) and not os.path.isfile(path):
        return  # a device or a pipe
    try:
        with _renamed_over(os.path.realpath(path), keep=False) as temporary:
            temporary.touch()
    except OSError as error:
        raise OutputError(f"{path}: the folder {folder} cannot be written to: {error.strerror}") from error


def write(document: Document, path: str) -> None:
    """Write the JSON beside `path` and rename it over: a reader never sees half, a failure leaves the old one.

    `-` is standard output. Raises OutputError.
    """
    write_text(dump(document), path)


def write_text(parts: Iterable[str], path: str) -> None:
    """Write a text, of which there are parts, the way `write` does. Raises OutputError."""
    target = os.path.realpath(path)
    try:
        if path == "-":
            if sys.stdout is None:
                raise OSError(errno.EBADF, "standard output is closed")
            with to_reader():
                sys.stdout.writelines(parts)
        elif os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            with open(target, "w", encoding="utf-8") as device:  # a pipe or a device cannot be renamed over
                device.writelines(parts)
        else:
            with _renamed_over(target, keep=True) as temporary:
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(parts)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def to_reader() -> Iterator[None]:
    """Write to standard output; where whoever reads it has seen enough, the rest is dropped, and that is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would flush into the closed pipe once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _renamed_over(target: str, *, keep: bool) -> Iterator[Path]:
    """A file beside `target` to write to, which then takes its name, or goes where it is not to be kept."""
    temporary = Path(f"{target}.{os.getpid()}.tmp")
    try:
        yield temporary
        if keep:
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def repo_keys() -> tuple[str, ...]:
    """What the schemas call the repo of their weights."""
    return tuple(dict.fromkeys(schema.repo_key for schema in schemas.SCHEMAS))


def weights_repo(reference: Document) -> str:
    """The repo of the weights, whatever its key is called. Raises DataError where there is none."""
    keys = repo_keys()
    repo = next((reference[key] for key in keys if key in reference), None)
    if not isinstance(repo, str):
        raise DataError(f"the reference names no repo of its weights: none of {', '.join(keys)}")
    return repo


def seeds(layer: int, numbers: range) -> list[int]:
    """The seeds of a layer's residuals by their numbers, as generator_record tells it."""
    return [SEED_STRIDE * number + layer for number in numbers]


def top_key(reference: Document) -> str:
    """The name of the list of the features that fire most."""
    return f"top_{reference.get('top_k', 10)}"
