# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named tensors out of a .safetensors file, a block of rows at a time.

The file: 8 bytes, the length of the header; the header, a JSON object {name: {dtype, shape, data_offsets}}; the data,
which the tensors cover from end to end without gaps. It has no checksum: that of the download is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from oracle import strict_json
from oracle.weights.formats import EXTENT_LIMIT
from oracle.weights.tensors import Data, Float32Converter, Section, Tensor, TensorFile, advise, listed, rows_at_once

FORMAT_HEADER_LIMIT = 100_000_000  # the format's own
# JSON that is parsed takes up to 25 times its size: `{},` repeated. A transcoder's header takes less than 1 KiB.
HEADER_LIMIT = 4 * 1024 * 1024
GAP_BYTES = 64 * 1024  # rows that lie closer than this are read in one go
METADATA = "__metadata__"

# How the numbers lie, and whether they are bfloat16.
_DTYPES: dict[str, tuple[np.dtype, bool]] = {
    "F64": (np.dtype("<f8"), False), "F32": (np.dtype("<f4"), False), "F16": (np.dtype("<f2"), False), "BF16": (np.dtype("<u2"), True),
    "I64": (np.dtype("<i8"), False), "I32": (np.dtype("<i4"), False),
}  # fmt: skip
_INTEGERS = ("I64", "I32")  # of one number: the k of a gate of the k largest


class Safetensors(TensorFile):
    """The tensors of a .safetensors file. What they hold has no checksum."""

    def __init__(self, reader: BinaryIO, label: str):
        super().__init__(reader, label)
        size = self._size
        if size < 8:
            raise self.error(f"not a .safetensors file: it has {size} bytes; truncated, or something else")
        prefix = np.empty(8, np.uint8)
        Data(self, "its header", Section(reader, 0, 8)).fill(prefix)
        length = int.from_bytes(prefix.tobytes(), "little")
        if length > FORMAT_HEADER_LIMIT:
            raise self.error(
                f"not a .safetensors file: its header would have {length} bytes, and the format's limit is "
                f"{FORMAT_HEADER_LIMIT}"
            )
        if length > size - 8:
            raise self.error(f"its header claims {length} bytes, but the file ends {size - 8} bytes on; it is truncated")
        if length > HEADER_LIMIT:
            raise self.error(f"its header has {length} bytes; at most {HEADER_LIMIT} are read")
        header = np.empty(length, np.uint8)
        Data(self, "its header", Section(reader, 8, length)).fill(header)
        self._data_at = 8 + length
        self._entries = self._parse(header.tobytes())
        self.names = sorted(self._entries, key=lambda name: self._entries[name]["data_offsets"])
        self._check_offsets()

    def tensor(self, name: str) -> Tensor:
        """As TensorFile has it."""
        if name not in self._entries:
            raise self.error(f"it has no tensor {name}; it has {listed(self._entries)}")
        entry = self._entries[name]
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        if len(shape) > 3 or not all(0 < extent <= EXTENT_LIMIT for extent in shape):
            raise self.error(
                f"{name} has shape {_shown(list(shape))}; 0 to 3 dimensions of 1 to {EXTENT_LIMIT} each are read"
            )
        if entry["dtype"] not in _DTYPES or entry["dtype"] in _INTEGERS and math.prod(shape) != 1:
            raise self.error(
                f"{name} is of dtype {_shown(entry['dtype'])}; F64, F32, F16 and BF16 are read, and I64 and I32 of one number"
            )
        raw, bfloat16 = _DTYPES[entry["dtype"]]
        n_bytes = raw.itemsize
        for extent in shape:
            n_bytes *= extent
        if stop - start != n_bytes:
            raise self.error(
                f"{name} has {stop - start} bytes of data, but its shape {list(shape)} of {entry['dtype']} takes {n_bytes}"
            )
        return Tensor(name, raw, bfloat16, shape, self._data_at + start)

    def data(self, tensor: Tensor) -> Data:
        """As TensorFile has it."""
        return self._section(tensor, tensor.offset, tensor.n_bytes)

    def rows(self, tensor: Tensor, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As TensorFile has it. Only the stretches of the file that hold these rows are read."""
        self.check_rows(tensor)
        at_once = rows_at_once(tensor)
        to_float32 = Float32Converter(tensor, at_once)
        place = 0
        while place < len(wanted):
            first = int(wanted[place])
            near = wanted[place : int(np.searchsorted(wanted, first + at_once))]
            gaps = np.flatnonzero(np.diff(near) * tensor.row_bytes > GAP_BYTES)
            part = near[: int(gaps[0]) + 1] if len(gaps) else near
            raw = np.empty((int(part[-1]) - first + 1, *tensor.row_shape), tensor.raw)
            self._section(tensor, tensor.offset + first * tensor.row_bytes, raw.nbytes).fill(raw)
            yield part, to_float32(raw[part - first])
            place += len(part)

    def _section(self, tensor: Tensor, start: int, n_bytes: int) -> Data:
        advise(self._reader, start, start + n_bytes)
        return Data(self, tensor.name, Section(self._reader, start, n_bytes))

    def _parse(self, header: bytes) -> dict[str, dict[str, Any]]:
        try:
            document = strict_json.loads(header.decode("utf-8"))
        except ValueError as error:
            problem = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.error(f"its header is not readable JSON: {problem}") from error
        if not isinstance(document, dict):
            raise self.error("its header is not a JSON object")
        document.pop(METADATA, None)
        for name, entry in document.items():
            if not _is_entry(entry):
                raise self.error(
                    f"the header's entry for {_shown(name)} is not of the form "
                    '{"dtype": ..., "shape": [...], "data_offsets": [begin, end]}'
                )
        return document

    def _check_offsets(self) -> None:
        """The tensors have to cover the data from end to end, each byte once."""
        reached, before = 0, "the header"
        for name in self.names:
            start, stop = self._entries[name]["data_offsets"]
            if stop < start:
                raise self.error(f"the header says that {_shown(name)} ends before it begins: {start} to {stop}")
            if start != reached:
                problem = "overlap" if start < reached else f"leave {start - reached} bytes between them"
                raise self.error(f"{_shown(before)} and {_shown(name)} {problem}: {_shown(name)} has bytes {start} to {stop}")
            reached, before = stop, name
        if self._data_at + reached != self._size:
            what = "it is truncated" if self._data_at + reached > self._size else "something stands behind them"
            raise self.error(
                f"its tensors take {reached} bytes, but {self._size - self._data_at} stand behind the header; {what}"
            )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return False
    numbers = [entry["shape"], entry["data_offsets"]]
    if not isinstance(entry["dtype"], str) or not all(isinstance(of, list) for of in numbers):
        return False
    return len(entry["data_offsets"]) == 2 and all(type(n) is int and 0 <= n < 2**63 for of in numbers for n in of)


def _shown(value: object) -> str:
    return ascii(value)[:80] if not isinstance(value, str) else ascii(value[:80])
