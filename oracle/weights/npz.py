# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named tensors out of an .npz archive, a block of rows at a time.

np.load is not used: it reads a stored member through the zip module's 256 KiB reader and holds the whole of it, and
the data of a stored member is not aligned, so that it cannot be mapped either.
"""

from __future__ import annotations

import ast
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from oracle.weights.formats import EXTENT_LIMIT
from oracle.weights.tensors import (
    Float32Converter,
    Section,
    Tensor,
    WeightsError,
    advise,
    check_rows,
    fill,
    listed,
    rows_at_once,
)

HEADER_LIMIT = 64 * 1024
DIRECTORY_LIMIT = 1024 * 1024
# One block is being filled or multiplied while the two before it may still be on their way through the checksum.
BUFFERS = 3
# Deflate codes at most 258 bytes in 2 bits.
MAX_INFLATION = 1032

_DTYPES = {order + code: np.dtype(order + code) for code in ("f2", "f4", "f8") for order in "<>"}


class Npz:
    """The tensors of an .npz archive over a seekable binary reader: see WeightFile. `label` names it in messages."""

    def __init__(self, reader: BinaryIO, label: str):
        self._reader = reader
        self._label = label
        self._size = reader.seek(0, 2)
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            self._check_directory_size()
            self._archive = zipfile.ZipFile(reader)  # type: ignore[arg-type,unused-ignore]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise self._error(f"not a readable .npz archive: {error}") from error
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise self._error(f"two members are named {info.filename}")
            self._members[name] = info
        self.names = sorted(self._members, key=lambda name: self._members[name].header_offset)

    def tensor(self, name: str) -> Tensor:
        stream = self._open(name)
        preamble = self._read_exactly(stream, 8, name)
        if preamble[:6] != b"\x93NUMPY":
            raise self._error(f"{name} is not a .npy array")
        if preamble[6] not in (1, 2, 3):
            raise self._error(f"{name} has .npy version {preamble[6]}.{preamble[7]}; 1 to 3 are known")
        length_bytes = self._read_exactly(stream, 2 if preamble[6] == 1 else 4, name)
        length = int.from_bytes(length_bytes, "little")
        if length > HEADER_LIMIT:
            raise self._error(f"{name} has a header of {length} bytes; at most {HEADER_LIMIT} are read")
        dtype, shape = self._parse_header(self._read_exactly(stream, length, name), name)
        offset = 8 + len(length_bytes) + length
        n_bytes = dtype.itemsize
        for extent in shape:
            n_bytes *= extent
        member_bytes = self._members[name].file_size
        if offset + n_bytes != member_bytes:
            raise self._error(
                f"{name} has {member_bytes - offset} bytes of data, but its shape {list(shape)} "
                f"of {dtype.name} takes {n_bytes}"
            )
        return Tensor(name, dtype, False, shape, offset)

    def read(self, tensor: Tensor) -> np.ndarray:
        """As WeightFile has it, and checked against its CRC-32."""
        stream = self._open(tensor.name)
        header = self._read_exactly(stream, tensor.offset, tensor.name)
        raw = np.empty(tensor.shape, tensor.raw)
        self._fill(stream, raw, tensor.name)
        self._check_crc(tensor.name, zlib.crc32(raw.view(np.uint8), zlib.crc32(header)))  # type: ignore[arg-type,unused-ignore]
        with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, and is refused as inf
            return raw.astype(np.float32)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """As WeightFile has it.

        The member's CRC-32 is computed on a second thread (zlib releases the GIL) and checked after the last block:
        only an iteration that ends without an error has read intact data.
        """
        check_rows(tensor, self._label)
        n_rows, at_once = tensor.shape[0], rows_at_once(tensor)
        buffers = [np.empty((min(at_once, n_rows), *tensor.row_shape), tensor.raw) for _ in range(BUFFERS)]
        to_float32 = Float32Converter(tensor, len(buffers[0]))
        stream = self._open(tensor.name)
        info = self._members[tensor.name]
        advise(self._reader, self._data_offset(info), self._data_offset(info) + info.compress_size)
        crc = zlib.crc32(self._read_exactly(stream, tensor.offset, tensor.name))

        def add_to_crc(raw: np.ndarray) -> None:
            nonlocal crc
            crc = zlib.crc32(raw.reshape(-1).view(np.uint8), crc)  # type: ignore[arg-type,unused-ignore]

        with ThreadPoolExecutor(max_workers=1) as checker:
            checks = [checker.submit(add_to_crc, buffers[0][:0])] * BUFFERS
            for number, start in enumerate(range(0, n_rows, at_once)):
                raw = buffers[number % BUFFERS][: min(at_once, n_rows - start)]
                checks[number % BUFFERS].result()
                self._fill(stream, raw, tensor.name)
                checks[number % BUFFERS] = checker.submit(add_to_crc, raw)
                yield to_float32(raw)
        self._check_crc(tensor.name, crc)

    def rows(self, tensor: Tensor, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As WeightFile has it. The whole member is read, since its CRC-32 is that of the whole."""
        start = 0
        for block in self.blocks(tensor):
            first, last = np.searchsorted(wanted, (start, start + len(block)))
            if first < last:
                yield wanted[first:last], block[wanted[first:last] - start]
            start += len(block)

    def _error(self, problem: str) -> WeightsError:
        return WeightsError(f"{self._label}: {problem}")

    def _check_directory_size(self) -> None:
        """zipfile reads a central directory of any size into memory: look at its size first."""
        self._reader.seek(max(0, self._size - 65557))  # the end record, 22 bytes, and the longest comment behind it
        tail = self._reader.read(65557)
        end = tail.rfind(b"PK\x05\x06")
        if end < 0:
            raise zipfile.BadZipFile("it has no zip directory at its end; it is truncated, or something else")
        directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
        # 0xffffffff: the true size stands in a zip64 record, which an archive of five tensors does not need.
        if directory_bytes > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"its directory claims {directory_bytes} bytes; at most {DIRECTORY_LIMIT} are read")

    def _open(self, name: str) -> BinaryIO:
        """The data of a member, from its first byte."""
        if name not in self._members:
            raise self._error(f"it has no tensor {name}; it has {listed(self._members)}")
        info = self._members[name]
        if info.flag_bits & 1:
            raise self._error(f"{info.filename} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._error(f"{info.filename} is compressed by zip method {info.compress_type}; 0 and 8 are known")
        if info.file_size > info.compress_size * MAX_INFLATION:
            raise self._error(f"{info.filename} claims {info.file_size} bytes out of {info.compress_size}")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise self._error(f"{info.filename} is stored, but claims {info.file_size} bytes out of {info.compress_size}")
        if info.header_offset + 30 + info.compress_size > self._size:
            raise self._error(f"the file ends inside {name}; it is truncated")
        try:
            member = self._archive.open(info)  # checks the local header
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
            raise self._error(f"{info.filename} cannot be read: {error}") from error
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return member  # type: ignore[return-value]
        return Section(self._reader, self._data_offset(info), info.file_size)  # type: ignore[return-value]

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Past the local header, whose two last fields are the lengths of the name and the extra field behind it."""
        self._reader.seek(info.header_offset + 26)
        lengths = self._reader.read(4)
        return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")

    def _fill(self, stream: BinaryIO, array: np.ndarray, name: str) -> None:
        """Read exactly `array`'s bytes into it."""
        try:
            is_whole = fill(stream, array)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise self._error(f"{name} is damaged: {error}") from error
        if not is_whole:
            raise self._error(f"the file ends inside {name}; it is truncated")

    def _read_exactly(self, stream: BinaryIO, count: int, name: str) -> bytes:
        data = np.empty(count, np.uint8)
        self._fill(stream, data, name)
        return data.tobytes()

    def _check_crc(self, name: str, crc: int) -> None:
        recorded = self._members[name].CRC
        if crc != recorded:
            raise self._error(
                f"{name} has CRC-32 {crc:08x}, but the archive says {recorded:08x}: the file is damaged; "
                "delete it and fetch it again"
            )

    def _parse_header(self, header: bytes, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        try:
            fields = ast.literal_eval(header.decode("utf-8").strip())
            descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
            raise self._error(f"{name} has an unreadable .npy header") from error
        if isinstance(descr, str) and descr.lstrip("|<>=").startswith("O"):
            raise self._error(f"{name} is a pickled Python object; nothing is unpickled")
        if not isinstance(descr, str) or descr not in _DTYPES:
            raise self._error(f"{name} is of dtype {descr!r}; float16, float32 and float64 are read")
        if fortran_order is not False:
            raise self._error(f"{name} is in Fortran order; C order is read")
        if not isinstance(shape, tuple) or len(shape) not in (1, 2):
            raise self._error(f"{name} has shape {shape!r}; 1 or 2 dimensions are read")
        if not all(type(extent) is int and 0 < extent <= EXTENT_LIMIT for extent in shape):
            raise self._error(f"{name} has shape {shape!r}; each extent must be 1 to {EXTENT_LIMIT}")
        return _DTYPES[descr], shape
