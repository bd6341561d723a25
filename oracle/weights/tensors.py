# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the readers of weight files share: tensors, limits, and rows widened to float32.

A weight file is a seekable binary reader (`read`, `readinto`, `seek`); npz.py and safetensors.py never ask whether a
disk or a network stands behind it. They tell a reader that has `advise` what they will read in order, which changes
nothing but the number of requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import numpy as np

from oracle.errors import BadData

BLOCK_BYTES = 1024 * 1024  # of float32: blocks of this size, and the products' operands, stay in the L2 cache
MIN_BLOCK_ROWS = 8
ROW_BYTES_LIMIT = 16 * 1024 * 1024  # of float32: a block is at least MIN_BLOCK_ROWS of them


class WeightsError(BadData, ValueError):
    """A weight file is damaged, or is not what its format says."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's header. `raw` is how its numbers lie in the file; bfloat16 lies as 16-bit integers.

    `offset` is where the data begins, in bytes: in its member of an .npz, in the file of a .safetensors.
    """

    name: str
    raw: np.dtype
    bfloat16: bool
    shape: tuple[int, ...]
    offset: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes in the file."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.raw.itemsize


class TensorFile:
    """The tensors of one weight file over a seekable binary reader; `label` names it in messages.

    A subclass knows how the file tells of its tensors: `names`, in the order of the file, `tensor` and `data`; and, since
    `data` may have to be read whole, `rows`. Every method raises WeightsError, which says what is wrong with the file.
    """

    names: list[str]
    buffers = 1  # blocks that may be in use at a time

    def __init__(self, reader: BinaryIO, label: str):
        self._reader, self._label = reader, label
        self._size = reader.seek(0, 2)

    def tensor(self, name: str) -> Tensor:
        """The header of one tensor; its data is not read."""
        raise NotImplementedError

    def data(self, tensor: Tensor) -> Data:
        """The data of a tensor, from its first byte."""
        raise NotImplementedError

    def rows(self, tensor: Tensor, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows of a tensor: parts of `wanted`, which ascends, and float32 [len(part), ...] for each."""
        raise NotImplementedError

    def read(self, tensor: Tensor) -> np.ndarray:
        """The whole of a small one-dimensional tensor, float32 [n]."""
        raw = np.empty(tensor.shape, tensor.raw)
        with self.data(tensor) as data:
            data.fill(raw)
        return Float32Converter(tensor, len(raw))(raw)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """The rows of a tensor in order, float32 [rows, ...] at a time; a block is valid until the next is asked for.

        Only an iteration that ends without an error has read data that is known to be intact, where the file says how to know it.
        """
        self.check_rows(tensor)
        n_rows, at_once = tensor.shape[0], rows_at_once(tensor)
        buffers = [np.empty((min(at_once, n_rows), *tensor.row_shape), tensor.raw) for _ in range(self.buffers)]
        to_float32 = Float32Converter(tensor, len(buffers[0]))
        with self.data(tensor) as data:
            for number, start in enumerate(range(0, n_rows, at_once)):
                raw = buffers[number % len(buffers)][: min(at_once, n_rows - start)]
                data.fill(raw)
                yield to_float32(raw)

    def check_rows(self, tensor: Tensor) -> None:
        """Refuse rows so long that a block of them would not fit: nothing is sized by a header alone."""
        if tensor.row_bytes // tensor.raw.itemsize * 4 > ROW_BYTES_LIMIT:
            raise self.error(f"{tensor.name} has shape {list(tensor.shape)}, with rows too long to be read")

    def error(self, problem: str) -> WeightsError:
        return WeightsError(f"{self._label}: {problem}")


class Data:
    """A tensor's bytes from a stream, filled into one array after the other."""

    def __init__(self, file: TensorFile, name: str, stream: BinaryIO | Section):
        self._file, self._name, self._stream = file, name, stream

    def __enter__(self) -> Data:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fill(self, array: np.ndarray) -> None:
        """Read exactly `array`'s bytes into it. Raises WeightsError where the file ends before."""
        view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type,unused-ignore]
        while view:
            count = self._stream.readinto(view)  # type: ignore[union-attr]
            if not count:
                raise self._file.error(f"the file ends inside {self._name}; it is truncated")
            view = view[count:]


def rows_at_once(tensor: Tensor) -> int:
    """How many rows make a block."""
    float32_bytes = tensor.row_bytes // tensor.raw.itemsize * 4
    return max(MIN_BLOCK_ROWS, BLOCK_BYTES // float32_bytes)


class Float32Converter:
    """Turns rows as they lie in the file into float32 [rows, ...], in one buffer that it uses again."""

    def __init__(self, tensor: Tensor, n_rows: int):
        self._tensor = tensor
        as_it_lies = tensor.raw == np.float32  # bfloat16 lies as integers
        self._buffer = None if as_it_lies else np.zeros((n_rows, *tensor.row_shape), "<f4")

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        if self._buffer is None:
            return raw
        rows = self._buffer[: len(raw)]
        if self._tensor.bfloat16:
            # bfloat16 is the upper half of float32, whose lower half stays zero here; both are little-endian by name.
            rows.view("<u2").reshape(-1, 2)[:, 1] = raw.reshape(-1)
        else:
            with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, and is refused as inf
                np.copyto(rows, raw, casting="same_kind")
        return rows.astype(np.float32, copy=False)


class Section:
    """Bytes [start, start + size) of a reader that others read too, so that each read seeks first."""

    def __init__(self, reader: BinaryIO, start: int, size: int):
        self._reader = reader
        self._position = start
        self._end = start + size

    def readinto(self, view: memoryview) -> int:
        view = view[: self._end - self._position]
        self._reader.seek(self._position)
        count: int = self._reader.readinto(view)  # type: ignore[attr-defined]
        self._position += count
        return count


def listed(names: Iterable[str]) -> str:
    """The first of these names, as a message may show them."""
    first = [name[:80] for name in islice(names, 11)]
    return ", ".join(first[:10]) + (", ..." if len(first) > 10 else "") or "none"


def advise(reader: BinaryIO, start: int, stop: int) -> None:
    """Tell a reader that wants to know it that these bytes will be read in order."""
    if hasattr(reader, "advise"):
        reader.advise(start, stop)
