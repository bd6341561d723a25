# SPDX-License-Identifier: MIT OR Apache-2.0
"""The reference as a JSON document: its fixed parts, how it is written, and how JSON that others wrote is read."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oracle import residual

FORMAT_VERSION = 1
SEED_STRIDE = 100
READ_LIMIT = 256 * 1024 * 1024
DEFAULT_TOLERANCE = 1e-4  # of references that torch wrote, which record none
MAX_U64 = 2**64 - 1

Document = dict[str, Any]


class OutputError(OSError):
    """A file cannot be written where it should go."""


class DataError(ValueError):
    """A JSON file is not the reference, or the candidate, that it should be."""


class InputError(OSError):
    """A JSON file that was named cannot be read."""


def generator_record() -> Document:
    """What a port of residual.py needs. 64-bit integers are strings: JSON numbers lose them."""
    return {
        "name": residual.NAME,
        "version": residual.VERSION,
        "seed": f"{SEED_STRIDE} * i + layer for the i-th residual of a layer, i = 0, 1, ...",
        "stream": "layer",
        "arithmetic": "unsigned 64-bit modulo 2^64, and IEEE-754 binary64 to nearest even, one operation at a time in "
        "the order written, never fused; sqrt is correctly rounded; no other libm function",
        "multiplier": f"0x{residual.MULTIPLIER:016x}",
        "sqrt_half": residual.SQRT_HALF,
        "ln_2": residual.LN_2,
        "ln_last_term": residual.LN_LAST_TERM,
        "fnv_offset_basis": f"0x{residual.FNV_OFFSET_BASIS:016x}",
        "fnv_prime": f"0x{residual.FNV_PRIME:016x}",
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


def dump(document: Document) -> str:
    """The document as JSON, two spaces an indent; a list of numbers stands on one line.

    A float32 is written with the digits of the same binary64 number, so that a reader that parses to binary64 and
    casts gets its bits back, even one whose parser is off by a last bit.
    """
    return _dump(document, "\n") + "\n"


def _dump(value: Any, newline: str) -> str:
    nested = isinstance(value, (dict, list)) and len(value) > 0
    if not nested or (isinstance(value, list) and not isinstance(value[0], (dict, list, str))):
        return json.dumps(value, allow_nan=False)
    inner = newline + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_dump(item, inner)}" for key, item in value.items()]
        return "{" + inner + ("," + inner).join(items) + newline + "}"
    return "[" + inner + ("," + inner).join(_dump(item, inner) for item in value) + newline + "]"


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
    text = dump(document)
    target = os.path.realpath(path)
    try:
        if path == "-":
            if sys.stdout is None:
                raise OSError(errno.EBADF, "standard output is closed")
            sys.stdout.write(text)
            sys.stdout.flush()
        elif os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            Path(target).write_text(text, encoding="utf-8")  # a pipe or a device cannot be renamed over
        else:
            with _renamed_over(target, keep=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


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


# --- reading --------------------------------------------------------------------------------------------------------


def read_reference(path: str) -> Document:
    """A reference, checked: ours, or one that torch wrote, which has no generator, margins or layers.

    Raises DataError and InputError.
    """
    document = _read_object(path)
    if document.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise DataError(f"{path}: format_version is {_shown(document['format_version'])}; {FORMAT_VERSION} is read")
    check = _Checker(path)
    ours = "format_version" in document
    if not ours and document.keys() & {"residual_generator", "layers", "top_k"}:
        raise DataError(f"{path}: format_version is missing from a reference of ours: it was edited")
    for key in ("weights_repo", "curation_repo", "schema") if ours else ():
        check.text(document, key, "")
    d_model = check.integer(document, "d_model", "", low=1)
    n_features = check.integer(document, "n_features_per_layer", "", low=1)
    if ours or "tolerance" in document:
        check.number(document, "tolerance", "", low=0)
    if ours:
        _check_layers(check, document)
        _check_generator(check, document)
    top = f"top_{check.integer(document, 'top_k', '', low=1)}" if ours else "top_10"
    for case, where in _cases(check, document, top):
        if any(place["index"] >= n_features for place in case[top]):
            raise check.error(f"{where}.{top}", f"a list with an index past the {n_features} features")
        if "residual" in case or not ours:
            _check_residual(check, case, where, d_model)
        if ours:
            check.integer(case, "stream", where)
            check.text(case, "residual_fingerprint", where)
            check.number(case, "gate_margin", where, low=0)
            if case.get("rank_margin", 0) is not None:
                check.number(case, "rank_margin", where, low=0)
            bounds = check.items(case, "n_active_bounds", where)
            if len(bounds) != 2 or not all(_is_integer(bound) and bound >= 0 for bound in bounds):
                raise check.error(f"{where}.n_active_bounds", "not two numbers of features")
            if not all(isinstance(flag, str) for flag in check.items(case, "flags", where)):
                raise check.error(f"{where}.flags", "not a list of texts")
    return document


def read_candidate(path: str, top: str) -> Document:
    """A candidate, checked: `test_cases` with layer, seed, n_active and the list `top`. Raises DataError and InputError."""
    document = _read_object(path)
    for _ in _cases(_Checker(path), document, top):
        pass
    return document


def top_key(reference: Document) -> str:
    """The name of the list of the features that fire most."""
    return f"top_{reference.get('top_k', 10)}"


def _cases(check: _Checker, document: Document, top: str) -> Iterator[tuple[Document, str]]:
    """What a reference and a candidate share, checked, a case at a time with its place in the file."""
    seen: set[tuple[int, int]] = set()
    for number, case in enumerate(check.items(document, "test_cases", "")):
        where = f"test_cases[{number}]"
        if not isinstance(case, dict):
            raise check.error(where, f"{_shown(case)}, not an object")
        key = check.integer(case, "layer", where), check.integer(case, "seed", where)
        if key in seen:
            raise check.error(where, f"layer {key[0]}, seed {key[1]}, which is there already")
        seen.add(key)
        check.integer(case, "n_active", where)
        for place, entry in enumerate(check.items(case, top, where)):
            there = f"{where}.{top}[{place}]"
            if not isinstance(entry, dict):
                raise check.error(there, f"{_shown(entry)}, not an object with index and activation")
            check.integer(entry, "index", there, low=-MAX_U64)
            check.number(entry, "activation", there)
        yield case, where
    if not seen:
        raise check.error("test_cases", "empty")


def _check_layers(check: _Checker, document: Document) -> None:
    known = set()
    for number, record in enumerate(check.items(document, "layers", "")):
        where = f"layers[{number}]"
        if not isinstance(record, dict):
            raise check.error(where, f"{_shown(record)}, not an object")
        known.add(check.integer(record, "layer", where))
        check.text(record, "path", where)
        for key in ("sha256", "repo", "revision"):
            if record.get(key) is not None:
                check.text(record, key, where)
    for key in ("weights_revision", "curation_revision"):
        if document.get(key) is not None:
            check.text(document, key, "")
    cases = check.items(document, "test_cases", "")
    for number, case in enumerate(cases):
        if isinstance(case, dict) and _is_integer(case.get("layer")) and case["layer"] not in known:
            raise check.error(f"test_cases[{number}].layer", f"{case['layer']}, which `layers` does not list")


def _check_generator(check: _Checker, document: Document) -> None:
    recorded = document.get("residual_generator")
    if not isinstance(recorded, dict):
        raise check.error("residual_generator", f"{_shown(recorded)}, not an object")
    named = recorded.get("name"), recorded.get("version")
    if named == (residual.NAME, residual.VERSION) and recorded != generator_record():
        raise check.error("residual_generator", "not the record of its name and version: it was edited")
    if named != (residual.NAME, residual.VERSION):
        raise check.error(
            "residual_generator", f"{_shown(named[0])} version {_shown(named[1])}; {residual.NAME} version {residual.VERSION} is known"
        )


def _check_residual(check: _Checker, case: Document, where: str, d_model: int) -> None:
    values = check.items(case, "residual", where)
    if len(values) != d_model:
        raise check.error(f"{where}.residual", f"{len(values)} values long, but d_model is {d_model}")
    if not all(_is_number(value) for value in values):
        raise check.error(f"{where}.residual", "not a list of finite numbers")


def _read_object(path: str) -> Document:
    try:
        # One byte past the limit tells a file that is too large, whatever kind of file it is.
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            raw = file.read(READ_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > READ_LIMIT:
        raise DataError(f"{path} is larger than {READ_LIMIT >> 20} MiB, the most that is read")
    try:
        document = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not readable JSON: {problem}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds {_shown(document)}, not an object")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> Document:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


def _is_integer(value: Any) -> bool:
    return type(value) is int  # bool is an int to isinstance


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) <= MAX_U64


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else ascii(value)[:40]


class _Checker:
    """Takes fields out of one file's objects and raises DataError, naming the file and the place, where they are wrong."""

    def __init__(self, path: str):
        self._path = path

    def error(self, where: str, what: str) -> DataError:
        return DataError(f"{self._path}: {where} is {what}")

    def integer(self, item: Document, key: str, where: str, low: int = 0) -> int:
        value = self._get(item, key, where)
        if not _is_integer(value) or not low <= value <= MAX_U64:
            raise self.error(_place(where, key), f"{_shown(value)}, not a whole number" + (f" from {low}" if low >= 0 else ""))
        return value

    def number(self, item: Document, key: str, where: str, low: float = -math.inf) -> float:
        value = self._get(item, key, where)
        if not _is_number(value) or value < low:
            raise self.error(_place(where, key), f"{_shown(value)}, not a finite number" + (" from 0" if low == 0 else ""))
        return value

    def text(self, item: Document, key: str, where: str) -> str:
        value = self._get(item, key, where)
        if not isinstance(value, str):
            raise self.error(_place(where, key), f"{_shown(value)}, not a text")
        return value

    def items(self, item: Document, key: str, where: str) -> list[Any]:
        value = self._get(item, key, where)
        if not isinstance(value, list):
            raise self.error(_place(where, key), f"{_shown(value)}, not a list")
        return value

    def _get(self, item: Document, key: str, where: str) -> Any:
        if key not in item:
            raise self.error(_place(where, key), "missing")
        return item[key]


def _place(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
