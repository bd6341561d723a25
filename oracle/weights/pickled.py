# SPDX-License-Identifier: MIT OR Apache-2.0
"""A dict of tensors out of torch's data.pkl, which is read as data: no pickle is run, and none is imported.

A pickle is a program for a machine with one stack. What torch.save writes for a dict of tensors takes few of its opcodes and
names a handful of things; those stand here, each with what it means for tensors, and anything else is an error. The opcodes
are described in the module pickletools of Python's standard library.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# A tensor takes some forty opcodes. An object takes up to 300 bytes of memory, whatever opcode made it.
OPCODE_LIMIT = 1 << 18
DEPTH_LIMIT = 32  # of lists in lists
NAME_LIMIT = 200
RANK_LIMIT = 64  # torch's own; a long shape that is taken up again and again would cost hours
PROTOCOL = 2  # the one that torch.save writes

# torch's names of storages: how their numbers lie, and whether they are bfloat16.
STORAGES: dict[str, tuple[np.dtype, bool]] = {
    "DoubleStorage": (np.dtype("<f8"), False), "FloatStorage": (np.dtype("<f4"), False), "HalfStorage": (np.dtype("<f2"), False),
    "BFloat16Storage": (np.dtype("<u2"), True), "LongStorage": (np.dtype("<i8"), False), "IntStorage": (np.dtype("<i4"), False),
    "ShortStorage": (np.dtype("<i2"), False), "CharStorage": (np.dtype("i1"), False), "ByteStorage": (np.dtype("u1"), False),
    "BoolStorage": (np.dtype("u1"), False),
}  # fmt: skip

ORDERED_DICT, TENSOR, PARAMETER = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_STORAGE_NAMES = {f"torch.{kind}" for kind in STORAGES}
NAMES = {ORDERED_DICT, TENSOR, PARAMETER, *_STORAGE_NAMES}


class PickleError(ValueError):
    """A pickle is damaged, or holds something else than a dict of tensors."""


@dataclass(frozen=True)
class Name:
    """What a pickle names, with its module: one of NAMES."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A stretch of numbers in a member of its own, `data/<key>`. `kind` is one of STORAGES."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor: where in its storage it begins, its shape, and its strides, all counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def tensors_and_values(content: bytes) -> tuple[dict[str, View], dict[str, Any]]:
    """What the dict holds: its tensors, and all else, which is numbers, texts, None, and lists and dicts of them.

    Raises PickleError.
    """
    document = _Machine(content).run()
    if not isinstance(document, dict):
        raise PickleError(f"holds {_kind(document)}, where a dict of tensors has to be: save it again as a dict")
    tensors: dict[str, View] = {}
    values = {}
    nodes = OPCODE_LIMIT
    for name, value in document.items():
        if len(name) > NAME_LIMIT or not name.isprintable():
            raise PickleError(f"has a key {_shown(name)}, which is no name: at most {NAME_LIMIT} characters that print")
        if isinstance(value, View):
            tensors[name] = value
        else:
            nodes = _check_plain(name, value, nodes)
            values[name] = value
    return tensors, values


def _check_plain(name: str, value: object, nodes: int) -> int:
    """Refuse what is no plain value; how many of the `nodes` that may be are left.

    A list may stand in another twice, or in itself: what is counted is what somebody would see who walks through it.
    """
    left = [(value, 0)]
    while left:
        value, depth = left.pop()
        if isinstance(value, (dict, list, tuple)):
            nodes -= len(value)
            if depth == DEPTH_LIMIT or nodes < 0:
                raise PickleError(f"has under {_shown(name)} more than is read: {OPCODE_LIMIT} values, {DEPTH_LIMIT} deep")
            left += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, View):
            raise PickleError(f"has tensors in a dict or list of their own under {_shown(name)}: save that alone")
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            raise PickleError(f"has {_kind(value)} under {_shown(name)}, which is no value")
    return nodes


class _Machine:
    """The stack, and what the opcodes do to it."""

    def __init__(self, content: bytes):
        self._content, self._at = content, 2  # behind the protocol
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # for each mark the stack beneath it
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """The object that the pickle describes."""
        if self._content[:1] != b"\x80" or self._content[1:2] != bytes([PROTOCOL]):
            raise PickleError(f"is not of pickle protocol {PROTOCOL}, which torch.save writes: save it again with torch.save")
        for _ in range(OPCODE_LIMIT):
            opcode = self._take(1)
            if opcode == b".":
                break
            if opcode not in _OPCODES:
                raise PickleError(f"has opcode 0x{opcode.hex()} at byte {self._at - 1}, which a dict of tensors does not take: nothing is unpickled")
            _OPCODES[opcode](self)
        else:
            raise PickleError(f"has more than {OPCODE_LIMIT} opcodes")
        document = self._pop()
        if self._stack or self._below or self._at != len(self._content):
            raise PickleError("goes on where it should end")
        return document

    def _take(self, count: int) -> bytes:
        taken = self._content[self._at : self._at + count]
        if len(taken) < count:
            raise PickleError("ends in the middle of an opcode")
        self._at += count
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _pop(self) -> Any:
        if not self._stack:
            raise PickleError(f"takes from an empty stack at byte {self._at - 1}")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._below:
            raise PickleError(f"has no mark for what ends at byte {self._at - 1}")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise PickleError(f"adds to something that is no {kind.__name__} at byte {self._at - 1}")
        return self._stack[-1]

    # --- opcodes --------------------------------------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_number(self, layout: str) -> None:
        self._push(self._number(layout))

    def _push_long(self) -> None:
        self._push(int.from_bytes(self._take(self._number("B")), "little", signed=True))

    def _push_text(self) -> None:
        try:
            self._push(self._take(self._number("<I")).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise PickleError(f"has a text at byte {self._at} that is no UTF-8") from error

    def _push_name(self) -> None:
        parts = []
        for _ in ("module", "name"):
            end = self._content.find(b"\n", self._at, self._at + NAME_LIMIT)
            if end < 0:
                raise PickleError(f"has a name at byte {self._at} that does not end")
            parts.append(self._content[self._at : end].decode("latin-1"))
            self._at = end + 1
        text = ".".join(parts)
        if text not in NAMES:
            raise PickleError(f"names {_shown(text)}, which is no part of a dict of tensors of numbers: nothing is unpickled")
        self._push(Name(text))

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _make_tuple(self, count: int) -> None:
        self._push(tuple(self._pop() for _ in range(count))[::-1])

    def _make_tuple_to_mark(self) -> None:
        self._push(tuple(self._pop_to_mark()))

    def _append(self) -> None:
        item = self._pop()
        self._top(list).append(item)

    def _append_to_mark(self) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _set_items_to_mark(self) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise PickleError(f"has a key without a value at byte {self._at - 1}")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, str):  # other keys can be made so that a dict of them takes hours
                raise PickleError(f"has {_kind(key)} for a key, where a text has to be")
            if key in target:
                raise PickleError(f"has the key {_shown(key)} twice")
            target[key] = value

    def _put(self, layout: str) -> None:
        number = self._number(layout)
        value = self._pop()
        self._push(value)
        self._memo[number] = value

    def _get(self, layout: str) -> None:
        number = self._number(layout)
        if number not in self._memo:
            raise PickleError(f"takes from place {number}, where nothing was put, at byte {self._at}")
        self._push(self._memo[number])

    def _build(self) -> None:
        """Attributes of an OrderedDict: a module's state_dict() keeps the versions of its parts there, which say nothing of numbers."""
        state = self._pop()
        self._top(OrderedDict)
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise PickleError(f"gives a dict attributes at byte {self._at - 1} that are not torch's _metadata")

    def _push_storage(self) -> None:
        identity = self._pop()
        match identity if isinstance(identity, tuple) else ():
            case ("storage", Name(text=name), str(key), str(), int(count)) if name in _STORAGE_NAMES and len(key) <= NAME_LIMIT and _is_size(count):
                storage = Storage(key, name.removeprefix("torch."), count)
            case _:
                raise PickleError(f"refers at byte {self._at - 1} to something that is no storage of numbers")
        if self._storages.setdefault(key, storage) != storage:
            raise PickleError(f"has two storages {_shown(key)} of different types or sizes")
        self._push(storage)

    def _call(self) -> None:
        """What torch would build by a call: none is made, the arguments are held against those of the three that there may be."""
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, Name):
            raise PickleError(f"calls {_kind(name)} at byte {self._at - 1}: nothing is unpickled")
        match (name.text, arguments if isinstance(arguments, tuple) else None):
            case (text, ()) if text == ORDERED_DICT:
                self._push(OrderedDict())
            case (text, (Storage() as storage, offset, tuple(shape), tuple(strides), bool(), hooks, *metadata)) if text == TENSOR:
                if hooks != {} or metadata not in ([], [None]):
                    raise PickleError("has a tensor with hooks or metadata, which may change its numbers: save it again as tensor.detach().clone()")
                if not len(shape) == len(strides) <= RANK_LIMIT or not all(map(_is_size, (offset, *shape, *strides))):
                    raise PickleError("has a tensor with a shape, strides or an offset that are no counts")
                self._push(View(storage, offset, shape, strides))
            case (text, (View() as view, bool(), hooks)) if text == PARAMETER and hooks == {}:
                self._push(view)
            case _:
                raise PickleError(f"calls {name.text} at byte {self._at - 1} with other arguments than torch does: nothing is unpickled")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _kind(value: object) -> str:
    names = {View: "a tensor", Storage: "a storage", Name: "a name", type(None): "None"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _shown(text: str) -> str:
    return ascii(text[:80])


_OPCODES: dict[bytes, Callable[[_Machine], None]] = {
    b"(": _Machine._mark,
    b")": lambda machine: machine._push(()),
    b"\x85": lambda machine: machine._make_tuple(1),
    b"\x86": lambda machine: machine._make_tuple(2),
    b"\x87": lambda machine: machine._make_tuple(3),
    b"t": _Machine._make_tuple_to_mark,
    b"]": lambda machine: machine._push([]),
    b"a": _Machine._append,
    b"e": _Machine._append_to_mark,
    b"}": lambda machine: machine._push({}),
    b"s": _Machine._set_item,
    b"u": _Machine._set_items_to_mark,
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"K": lambda machine: machine._push_number("B"),
    b"M": lambda machine: machine._push_number("<H"),
    b"J": lambda machine: machine._push_number("<i"),
    b"\x8a": _Machine._push_long,
    b"G": lambda machine: machine._push_number(">d"),
    b"X": _Machine._push_text,
    b"q": lambda machine: machine._put("B"),
    b"r": lambda machine: machine._put("<I"),
    b"h": lambda machine: machine._get("B"),
    b"j": lambda machine: machine._get("<I"),
    b"c": _Machine._push_name,
    b"Q": _Machine._push_storage,
    b"R": _Machine._call,
    b"b": _Machine._build,
}
