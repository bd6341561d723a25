# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON as its standard has it: no NaN, no infinities, and no key twice, of which Python keeps the last in silence.

What it would take in memory is looked at before it is parsed: `{},` takes 25 times its bytes. A file is read a piece at a
time, and its residuals are packed: their text is 20 bytes a number, and Python's numbers are 32.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

MEMORY = 140 << 20  # bytes that a text and what it holds may take
PIECE, LONGEST_LIST = 1 << 20, 4 << 20  # bytes that are read at a time, characters of a list that is packed
PACKED_KEY = "residual"
# Of a number. A float64 is told by 17 digits, and without an exponent has up to 325 zeros beside them; of more digits Python takes
# 40 nanoseconds each where a tie between two floats is to be broken, and for an integer time that is quadratic.
MOST_DIGITS, LONGEST_NUMBER = 100, 400

# What Python's objects take, at most: an object, a list, a place with its number, a text, a key that is not known yet.
_OBJECT, _LIST, _PLACE, _TEXT, _KEY = 232, 64, 40, 56, 256
_KEYS = re.compile(r'"([^"]{0,200})"[ \t\n\r]*:')
# What must not stand before the key is asked behind it: a pattern that begins with a text is searched for 40 times as fast.
_PACKED = re.compile(rf'("{PACKED_KEY}"(?<!\\"{PACKED_KEY}")[ \t\n\r]*:[ \t\n\r]*)(\[[-+.eE0-9, \t\n\r]*\])')


class TooLargeError(ValueError):
    """A JSON file is longer than its limit."""


class UnreadableError(ValueError):
    """A file is no JSON as its standard has it. `text` is the whole of it, or None where it is longer than a piece."""

    def __init__(self, problem: str, text: bytes | None):
        super().__init__(problem)
        self.text = text


def loads(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, whatever is wrong with it."""
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        _check_memory(memory_of(text))
        return _parsed(text)
    except ValueError:
        raise
    except Exception as error:  # nested too deeply, for one
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def load(file: BinaryIO, limit: int) -> Any:
    """What a JSON file of at most `limit` bytes holds. A list of floats under PACKED_KEY is an array of them.

    Raises UnreadableError, whatever is wrong with it, TooLargeError and OSError.
    """
    packed: deque[array[float]] = deque()
    first = file.read(PIECE)
    try:
        text = "".join(_unpacked(first, file, limit, packed))
        _check_memory(memory_of(text) + sum(values.itemsize * len(values) for values in packed))

        def constant(name: str) -> array[float]:
            return packed.popleft() if packed and name == "NaN" else _refuse_constant(name)

        return _parsed(text, constant)
    except (TooLargeError, OSError):
        raise
    except Exception as error:
        problem = " ".join(str(error).split())
        if isinstance(error, json.JSONDecodeError):
            problem = f"{error.msg}: line {error.lineno}"
        elif not isinstance(error, ValueError):
            problem = f"{type(error).__name__}: {problem}"
        raise UnreadableError(problem, first if len(first) < PIECE else None) from error


def _unpacked(first: bytes, file: BinaryIO, limit: int, packed: deque[array[float]]) -> Iterator[str]:
    """The text of a JSON file in pieces, without the lists that are moved to `packed`: for each there is a NaN, which JSON has not.

    A NaN of the file's own finds no array left for it, or leaves none for the last of ours: it is refused either way.
    """

    def pack(match: re.Match[str]) -> str:
        try:
            values = _PLAIN.decode(match[2])
        except ValueError:
            return match[0]  # what is wrong, and in which line, is told when the whole is read
        if set(map(type, values)) != {float}:
            return match[0]
        packed.append(array("d", values))
        return f"{match[1]}NaN" + "\n" * match[2].count("\n")  # lines keep their numbers

    decoder: codecs.IncrementalDecoder | None = None
    text, needed, n_bytes = "", 0, 0
    for piece in itertools.chain([first], iter(lambda: file.read(PIECE), b""), [b""]):
        n_bytes += len(piece)
        if n_bytes > limit:
            raise TooLargeError
        decoder = decoder or codecs.getincrementaldecoder(json.detect_encoding(piece))()
        text += decoder.decode(piece, not piece)
        # A list that is not whole yet waits for the next piece; a very long one is left as it is.
        end = text.rfind(f'"{PACKED_KEY}"', -LONGEST_LIST) if piece else -1
        rest = text[max(0, end - 1) :] if end >= 0 else ""  # with what stands before the key, which may be a backslash
        done = _PACKED.sub(pack, text[: len(text) - len(rest)])
        needed += memory_of(done)
        _check_memory(needed + sum(values.itemsize * len(values) for values in packed))
        yield done
        text = rest


def memory_of(text: str) -> int:
    """About how many bytes of memory a text and what it holds will take, and rather more."""
    texts = max(0, text.count('"') // 2 - text.count(":"))  # a key is the same object each time
    keys = sum(len(set(_KEYS.findall(text, start, start + PIECE))) for start in range(0, len(text), PIECE))
    places = _PLACE * text.count(",")
    objects = _OBJECT * text.count("{") + _LIST * text.count("[") + places + _TEXT * texts + _KEY * keys
    # What stands in texts is there twice, four bytes a character where it has an escape of a wide one. Numbers are shorter than their places.
    contents = max(0, len(text) * (4 if "\\u" in text else 1) - places)
    return sys.getsizeof(text) + objects + contents


def _check_memory(needed: int) -> None:
    if needed > MEMORY:
        raise ValueError(f"it would take more than {MEMORY >> 20} MiB of memory, the most that is taken: leave out what no one reads of it")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _parsed(text: str, constant: Callable[[str], Any] = _refuse_constant) -> Any:
    return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=constant, object_pairs_hook=_refuse_twice)


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        _check_number(text)
    return int(text)


def _float(text: str) -> float:
    if len(text) > MOST_DIGITS:
        _check_number(text)
    return float(text)


def _check_number(text: str) -> None:
    if len(text) > LONGEST_NUMBER or len(text.strip("-0.")) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} characters, {text[:20]}...: at most {MOST_DIGITS} digits are read")


_PLAIN = json.JSONDecoder(parse_int=_integer, parse_float=_float)  # lists of numbers: there may be a million short ones


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {ascii(name[:80])} stands twice")
            seen.add(name)
    return mapping
