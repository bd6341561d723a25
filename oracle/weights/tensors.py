# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the readers of weight files share: tensors, limits, and rows widened to float32.

A weight file is a seekable binary reader (`read`, `readinto`, `seek`); npz.py, safetensors.py and torchzip.py never ask
whether a disk or a network stands behind it. They tell a reader that has `advise` what they will read in order, which changes
nothing but the number of requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np

from oracle.errors import WeightsError

BLOCK_BYTES = 1024 * 1024  # of float32: blocks of this size, and the products' operands, stay in the L2 cache
MIN_BLOCK_ROWS = 8
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ROW_BYTES_LIMIT = 16 * 1024 * 1024  # of float32: so much is a block that has fewer than MIN_BLOCK_ROWS


class Tensor(NamedTuple):
    """A tensor's header. `raw` is how its numbers lie in the file; bfloat16 lies as 16-bit integers.

    `offset` is where the data begins, in bytes: in its member of an .npz or a .pt, in the file of a .safetensors. `shape` is
    the tensor's own; one that is `transposed` lies in the file with its two axes in the other order, and so do its rows.
    """

    name: str
    raw: np.dtype
    bfloat16: bool
    shape: tuple[int, ...]
    offset: int
    transposed: bool = False

    @property
    def lying(self) -> tuple[int, ...]:
        """The shape in the order in which the numbers lie."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.lying[1:]

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes in the file."""
        return math.prod(self.row_shape) * self.raw.itemsize

    @property
    def n_bytes(self) -> int:
        """How many bytes all of it takes in the file."""
        return math.prod(self.shape) * self.raw.itemsize

    @property
    def is_integer(self) -> bool:
        return self.raw.kind in "iu" and not self.bfloat16


class TensorFile:
    """The tensors of one weight file over a seekable binary reader; `label` names it in messages.

    A subclass knows how the file tells of its tensors: `names`, in the order of the file, `tensor` and `data`; and, since
    `data` may have to be read whole, `rows` where less can be read. Every method raises WeightsError, which says what is wrong.
    """

    names: list[str]
    buffers = 1  # blocks that may be in use at a time

    def __init__(self, reader: BinaryIO, label: str):
        self._reader, self._label = reader, label
        self._size = reader.seek(0, 2)
        reader.seek(0)
        if self._size < 1024 and reader.read(len(LFS_POINTER)) == LFS_POINTER:
            raise self.error(
                f"it is a Git LFS pointer: {self._size} bytes that stand for the weights. `git lfs pull` where it was cloned puts them in its "
                "place, or fetch it again from the Hub"
            )

    def tensor(self, name: str) -> Tensor:
        """The header of one tensor; its data is not read."""
        raise NotImplementedError

    def data(self, tensor: Tensor) -> Data:
        """The data of a tensor, from its first byte."""
        raise NotImplementedError

    def rows(self, tensor: Tensor, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows of a tensor as they lie: parts of `wanted`, which ascends, and float32 [len(part), ...] for each.

        All of it is read, since a checksum is that of the whole; a part is valid until the next.
        """
        start = 0
        for block in self.blocks(tensor):
            first, last = np.searchsorted(wanted, (start, start + len(block)))
            if first < last:
                yield wanted[first:last], block[wanted[first:last] - start]
            start += len(block)

    def read(self, tensor: Tensor) -> np.ndarray:
        """The whole of a small tensor, a vector or one number: float32 of its shape."""
        self._check_floats(tensor)
        raw = np.empty(tensor.lying or 1, tensor.raw)
        with self.data(tensor) as data:
            data.fill(raw)
        values = Float32Converter(tensor, len(raw))(raw).reshape(tensor.lying)
        return values.T if tensor.transposed else values

    def integer(self, tensor: Tensor) -> int:
        """The one number of a tensor of integers."""
        if not tensor.is_integer:
            raise self.error(f"{tensor.name} is of {tensor.raw.name if not tensor.bfloat16 else 'bfloat16'}, where an integer has to be")
        raw = np.empty(1, tensor.raw)
        with self.data(tensor) as data:
            data.fill(raw)
        return int(raw[0])

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """The rows of a tensor as they lie, in order, float32 [rows, ...] at a time; a block is valid until the next.

        Only an iteration that ends without an error has read data that is known to be intact, where the file says how to know it.
        """
        self.check_rows(tensor)
        n_rows, at_once = tensor.lying[0], rows_at_once(tensor)
        buffers = [np.empty((min(at_once, n_rows), *tensor.row_shape), tensor.raw) for _ in range(self.buffers)]
        to_float32 = Float32Converter(tensor, len(buffers[0]))
        with self.data(tensor) as data:
            for number, start in enumerate(range(0, n_rows, at_once)):
                raw = buffers[number % len(buffers)][: min(at_once, n_rows - start)]
                data.fill(raw)
                yield to_float32(raw)

    def check_rows(self, tensor: Tensor) -> None:
        """Refuse what has no rows, and rows so long that a block would not fit: nothing is sized by a header alone."""
        self._check_floats(tensor)
        if not tensor.shape:
            raise self.error(f"{tensor.name} is a single number, where rows have to be")
        if tensor.row_bytes // tensor.raw.itemsize * 4 > ROW_BYTES_LIMIT:
            raise self.error(f"{tensor.name} has shape {list(tensor.shape)}, with rows too long to be read")

    def error(self, problem: str) -> WeightsError:
        """What is wrong, on one line whatever the names in the file are."""
        return WeightsError(f"{self._label}: " + "".join(char if char.isprintable() else "?" for char in problem))

    def _check_floats(self, tensor: Tensor) -> None:
        if tensor.is_integer:
            raise self.error(f"{tensor.name} is of {tensor.raw.name}, where floating-point numbers have to be")


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


class StoredTensor(NamedTuple):
    """A tensor of a format where it lies: its header, its axes as they lie, its file, and what messages call the file."""

    header: Tensor
    axes: tuple[str, ...]
    file: TensorFile
    label: str

    @property
    def features_first(self) -> bool:
        return self.axes[0] == "n_features"

    def vector(self) -> np.ndarray:
        """The whole of it, float32 of its shape. Raises WeightsError where it holds NaN or infinities."""
        return self._finite(self.file.read(self.header))

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, float32 [rows, ...] at a time; a block is valid until the next. Raises WeightsError."""
        return map(self._finite, self.file.blocks(self.header))

    def rows(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of `wanted`, which ascends, with float32 [len(part), ...] for each. Raises WeightsError."""
        for part, block in self.file.rows(self.header, wanted):
            yield part, self._finite(block)

    def _finite(self, values: np.ndarray) -> np.ndarray:
        n_bad = int(np.count_nonzero(~np.isfinite(values)))
        if n_bad:
            raise WeightsError(f"{self.label}: {self.header.name} has {n_bad} values that are NaN or infinite")
        return values


def rows_at_once(tensor: Tensor) -> int:
    """How many rows make a block."""
    float32_bytes = tensor.row_bytes // tensor.raw.itemsize * 4
    return max(BLOCK_BYTES // float32_bytes, min(MIN_BLOCK_ROWS, ROW_BYTES_LIMIT // float32_bytes))


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
