# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files as torch.save writes them, without torch: the pickle opcode by opcode, so that each can also be wrong."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

PROTO, MARK, STOP, REDUCE, PERSISTENT, SETITEMS, BUILD = b"\x80\x02", b"(", b".", b"R", b"Q", b"u", b"b"
KINDS = {
    np.dtype(np.float64): "DoubleStorage", np.dtype(np.float32): "FloatStorage", np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage", np.dtype(np.int64): "LongStorage", np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage", np.dtype(np.int8): "CharStorage", np.dtype(np.uint8): "ByteStorage", np.dtype(np.bool_): "BoolStorage",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """An array that is saved as an nn.Parameter."""

    values: np.ndarray


@dataclass(frozen=True)
class Slice:
    """An array that stands inside a larger storage, with so many numbers before and behind it."""

    values: np.ndarray
    before: int
    behind: int


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def name(module: str, within: str) -> bytes:
    return f"c{module}\n{within}\n".encode()


def items(*parts: bytes) -> bytes:
    """A tuple of objects: short ones have opcodes of their own."""
    return b"".join(parts) + [b")", b"\x85", b"\x86", b"\x87"][len(parts)] if len(parts) < 4 else MARK + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + REDUCE


def entries(*pairs: tuple[str, bytes]) -> bytes:
    """What fills a dict that stands on the stack."""
    return MARK + b"".join(text(key) + value for key, value in pairs) + SETITEMS


ORDERED_DICT = name("collections", "OrderedDict")
EMPTY_ORDERED = call(ORDERED_DICT)


def storage(key: str, kind: str, count: int, location: str = "cpu") -> bytes:
    return items(text("storage"), name("torch", kind), text(key), text(location), number(count)) + PERSISTENT


def tensor(
    stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, hooks: bytes = EMPTY_ORDERED, *more: bytes
) -> bytes:
    sizes = (items(*map(number, numbers)) for numbers in (shape, strides))
    return call(name("torch._utils", "_rebuild_tensor_v2"), stored, number(offset), *sizes, b"\x89", hooks, *more)


def parameter(value: bytes) -> bytes:
    return call(name("torch._utils", "_rebuild_parameter"), value, b"\x88", EMPTY_ORDERED)


def pickled(value: Any, storages: dict[str, bytes]) -> bytes:
    """A value's opcodes; the numbers of its arrays go to `storages`. An array of Fortran's order alone is saved as a transpose."""
    if isinstance(value, Parameter):
        return parameter(pickled(value.values, storages))
    if isinstance(value, (np.ndarray, Slice)):
        return _array(value, storages)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return number(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, tuple):
        return items(*(pickled(item, storages) for item in value))
    if isinstance(value, list):
        return b"]" + MARK + b"".join(pickled(item, storages) for item in value) + b"e"
    filled = entries(*((key, pickled(item, storages)) for key, item in value.items()))
    if isinstance(value, OrderedDict):  # as state_dict() gives it
        return EMPTY_ORDERED + filled + b"}" + text("_metadata") + EMPTY_ORDERED + b"s" + BUILD
    return b"}" + filled


def _array(value: np.ndarray | Slice, storages: dict[str, bytes]) -> bytes:
    values, before, behind = (value.values, value.before, value.behind) if isinstance(value, Slice) else (value, 0, 0)
    lying = values if values.flags.c_contiguous else values.T
    key, kind = str(len(storages)), KINDS[values.dtype]
    swapped = lying.view(np.uint16) if kind == "BFloat16Storage" else lying
    data = swapped.astype(swapped.dtype.newbyteorder("<")).tobytes()
    storages[key] = b"\x5a" * (before * values.itemsize) + data + b"\xa5" * (behind * values.itemsize)
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return tensor(storage(key, kind, before + values.size + behind), values.shape, strides, before)


class _Pipe(io.RawIOBase):
    """Where zipfile cannot seek it writes sizes and CRC-32 behind the data, as torch does."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.content += bytes(content)
        return len(content)


def zipped(
    pickle: bytes, storages: Mapping[str, bytes] = {}, root: str = "archive", method: int = zipfile.ZIP_STORED, byteorder: bytes | None = b"little"
) -> bytes:
    """The archive around a pickle."""
    target = _Pipe()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")
    return target.content


def torch_file(value: Any, **options: Any) -> bytes:
    """What torch.save would write of a dict of arrays and plain values."""
    storages: dict[str, bytes] = {}
    pickle = PROTO + pickled(value, storages) + STOP
    return zipped(pickle, storages, **options)


def described(**tensors: bytes) -> bytes:
    """The pickle of a dict of tensors of which the opcodes are at hand."""
    return PROTO + b"}" + entries(*tensors.items()) + STOP
