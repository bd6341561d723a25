# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON as its standard has it: no NaN, no infinities, and no key twice, of which Python keeps the last in silence.

What it would take in memory is looked at before it is parsed: `{},` takes 25 times its bytes. A file is read a piece at a
time, and its long lists of numbers are packed: the text of a reference is 20 bytes a number, and Python's numbers are 32.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from array import array
from typing import Any, BinaryIO

MEMORY = 140 << 20  # bytes that a text and what it holds may take
PIECE, LOOK_AHEAD = 1 << 18, 64  # bytes that are read at a time, characters that show what a list holds
PACKED_KEY = "residual"

# What Python's objects take, at most: an object, a list, a place with its number, a text.
_OBJECT, _LIST, _PLACE, _TEXT = 232, 64, 40, 56
_BLANK, _OBJECTS = re.compile(r"[ \t\n\r]*"), re.compile(r"\[[ \t\n\r]*\{")
_PACKED = re.compile(rf'"{PACKED_KEY}"[ \t\n\r]*:[ \t\n\r]*\[([^\]"\[{{]*)\]')


class TooLargeError(ValueError):
    """A JSON file is longer than its limit."""


def loads(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, whatever is wrong with it."""
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        _check_memory(memory_of(text))
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except ValueError:
        raise
    except Exception as error:  # nested too deeply, for one
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def load(file: BinaryIO, limit: int) -> Any:
    """What a JSON file of at most `limit` bytes holds. A list of floats under PACKED_KEY is an array of them.

    Raises ValueError, whatever is wrong with it, TooLargeError among them, and OSError.
    """
    try:
        return _Stream(file, limit).document()
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


class _Stream:
    """A JSON file, read from its start to its end. Of an object, and of a list of objects in it, each value is parsed by itself."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._limit = file, limit
        self._parser = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=self._pack)
        self._held = 0  # bytes of memory that the values so far take
        self._n_packed = 0  # numbers that the value being parsed has packed
        self._text, self._at, self._before, self._n_bytes, self._ended = "", 0, 0, 0, False
        self._decoder: codecs.IncrementalDecoder | None = None
        self._more()

    def document(self) -> Any:
        """The value that the file is."""
        value = self._object() if self._peek() == "{" else self._member()
        if self._peek():
            raise self._error("Extra data", self._at)
        return value

    def _object(self) -> dict[str, Any]:
        self._at += 1
        pairs: list[tuple[str, Any]] = []
        while self._peek() != "}" or pairs:
            if self._peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            name = self._value()
            self._mark(":")
            pairs.append((name, self._member()))
            if self._mark(",}") == "}":
                return _refuse_twice(pairs)
        self._at += 1
        return {}

    def _member(self) -> Any:
        self._peek()
        while len(self._text) - self._at < LOOK_AHEAD and self._more():
            pass
        if not _OBJECTS.match(self._text, self._at):
            return self._value()
        values: list[Any] = []
        while not values or self._text[self._at - 1] == ",":
            self._at += not values
            values.append(self._value())
            self._held += _OBJECT  # whatever it is: of lesser values there may be more than can be looked at one by one
            self._mark(",]")
        return values

    def _value(self) -> Any:
        self._peek()
        while True:
            self._n_packed = 0
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise self._error(error.msg, error.pos) from error
            if end < len(self._text) or not self._more():  # a number may go on
                self._held += self._memory_of(self._text[self._at : end])
                self._at = end
                return value

    def _memory_of(self, text: str) -> int:
        lists = _PACKED.findall(text) if self._n_packed else ()
        packed: int = sum(numbers.count(",") + 1 for numbers in lists)
        if packed != self._n_packed:
            return memory_of(text)
        return memory_of(text) - sum(map(len, lists)) - (_PLACE - array("d").itemsize) * packed

    def _pack(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = _refuse_twice(pairs)
        values = mapping.get(PACKED_KEY)
        if type(values) is list and set(map(type, values)) == {float}:
            mapping[PACKED_KEY] = array("d", values)
            self._n_packed += len(values)
        return mapping

    def _peek(self) -> str:
        """The next character that is not blank; none at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _mark(self, marks: str) -> str:
        """Go past the next character, which is one of `marks`."""
        mark = self._peek()
        if not mark or mark not in marks:
            raise self._error(f"Expecting {marks[0]!r} delimiter", self._at)
        self._at += 1
        return mark

    def _more(self) -> bool:
        """Read on: as much as there is that is not parsed yet, so that a long value is not begun again and again."""
        if self._ended:
            return False
        wanted = max(PIECE, len(self._text) - self._at)
        piece = self._file.read(wanted)
        self._n_bytes, self._ended = self._n_bytes + len(piece), len(piece) < wanted
        if self._n_bytes > self._limit:
            raise TooLargeError
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder(json.detect_encoding(piece))()
        self._before += self._at
        self._text, self._at = self._text[self._at :] + self._decoder.decode(piece, self._ended), 0
        _check_memory(self._held + memory_of(self._text))
        return True

    def _error(self, problem: str, place: int) -> ValueError:
        return ValueError(f"{problem}: char {self._before + place}") if self._before else json.JSONDecodeError(problem, self._text, place)


def memory_of(text: str) -> int:
    """About how many bytes of memory a text and what it holds will take, and rather more."""
    texts = max(0, text.count('"') // 2 - text.count(":"))  # keys are the same objects each time
    objects = _OBJECT * text.count("{") + _LIST * text.count("[") + _PLACE * text.count(",") + _TEXT * texts
    return sys.getsizeof(text) + objects


def _check_memory(needed: int) -> None:
    if needed > MEMORY:
        raise ValueError(f"it would take more than {MEMORY >> 20} MiB of memory, the most that is taken: leave out what no one reads of it")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {ascii(name[:80])} stands twice")
            seen.add(name)
    return mapping
