# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named tensors out of an .npz archive, a block of rows at a time, and the one of a .npy; the zip that torch.save shares is here.

The zip module reads the directory; everything in it is held against the file before it is believed. np.load is not used:
it reads a stored member through the zip module's 256 KiB reader and holds the whole of it, and the data of a stored member
is not aligned, so that it cannot be mapped either.
"""

from __future__ import annotations

import ast
import bisect
import io
import math
import struct
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from oracle.weights.formats import EXTENT_LIMIT
from oracle.weights.tensors import BLOCK_BYTES, Data, Section, Tensor, TensorFile, advise, listed

DIRECTORY_LIMIT = 1024 * 1024
TAIL = 76 + 22 + 65535  # bytes of zip64's records, the end record and the longest comment behind it
# One block is being filled or multiplied while the two before it may still be on their way through the checksum.
BUFFERS = 3
# Deflate codes at most 258 bytes in 2 bits.
MAX_INFLATION = 1032
HEADER_LIMIT = 64 * 1024  # of a .npy
# Python before 3.11.8 counts the depth of all threads' parsing in one place: a SystemError where two of them parse at once.
_parsing = threading.Lock()

_DTYPES = {order + code: np.dtype(order + code) for code in ("f2", "f4", "f8") for order in "<>"}


class _Directory(io.RawIOBase):
    """What the zip module reads a directory from, wherever it finds one: not more at once than it may be long."""

    def __init__(self, reader: BinaryIO, size: int):
        super().__init__()
        self._reader, self._size = reader, size

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def read(self, count: int = -1) -> bytes:
        count = self._size - self.tell() if count < 0 else count
        if count > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"its directory claims {count} bytes; at most {DIRECTORY_LIMIT} are read")
        return self._reader.read(count)


class Archive(TensorFile):
    """A weight file that is a zip archive. What is read of a member is checked against its CRC-32.

    `members` are the directory's entries by their names, without the container's `suffix`; `kind` names the container.
    """

    buffers = BUFFERS
    kind: str
    suffix = ""

    def __init__(self, reader: BinaryIO, label: str):
        super().__init__(reader, label)
        self.members: dict[str, zipfile.ZipInfo] = {}
        try:
            self._check_directory_size()
            self._archive = zipfile.ZipFile(_Directory(reader, self._size))  # type: ignore[arg-type,call-overload,unused-ignore]
            self._archive.fp = reader
        except OSError:
            raise  # the reader's own
        except Exception as error:  # whatever the zip module makes of it
            if isinstance(error.__context__, OSError):  # which calls a read that failed no zip file
                raise error.__context__ from None
            raise self.error(f"not a readable {self.kind}: {error}") from error
        for info in self._archive.infolist():
            name = info.filename.removesuffix(self.suffix)
            if name in self.members:
                raise self.error(f"two members are named {info.filename}")
            self.members[name] = info
        self._starts = sorted({info.header_offset for info in self.members.values()})
        if len(self._starts) < len(self.members):
            raise self.error("two members begin at one place")

    def member_data(self, member: str, name: str) -> MemberData:
        """A member from its first byte, unchecked: enough for a look at a header. Messages call it `name`."""
        return MemberData(self, name, self._open(member))

    def checked_data(self, member: str, name: str, offset: int) -> CheckedData:
        """A member from its byte `offset` on; all of it is read and checked by the time that the data is left."""
        stream, info = self._open(member), self.members[member]
        start = self._data_offset(info)
        advise(self._reader, start, start + info.compress_size)
        return CheckedData(self, name, stream, info, offset)

    def _check_directory_size(self) -> None:
        """zipfile reads a central directory of any size into memory: look at its size first, wherever zipfile would."""
        self._reader.seek(max(0, self._size - TAIL))
        tail = self._reader.read(TAIL)
        ends = {end for end in (tail.rfind(b"PK\x05\x06"), len(tail) - 22) if end >= 0 and tail[end : end + 4] == b"PK\x05\x06"}
        if not ends:
            raise zipfile.BadZipFile("it has no zip directory at its end; it is truncated, or something else")
        for end in ends:
            sizes = [int.from_bytes(tail[end + 12 : end + 16], "little")]
            if end >= 76 and tail[end - 20 : end - 16] == b"PK\x06\x07":  # zip64: its record stands before its locator
                sizes.append(int.from_bytes(tail[end - 36 : end - 28], "little"))
            if max(sizes) > DIRECTORY_LIMIT:
                raise zipfile.BadZipFile(f"its directory claims {max(sizes)} bytes; at most {DIRECTORY_LIMIT} are read")

    def _open(self, member: str) -> BinaryIO | Section:
        """The data of a member, from its first byte."""
        info = self.members[member]
        if info.flag_bits & 1:
            raise self.error(f"{info.filename} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.error(f"{info.filename} is compressed by zip method {info.compress_type}; 0 and 8 are known")
        if info.file_size > info.compress_size * MAX_INFLATION:
            raise self.error(f"{info.filename} claims {info.file_size} bytes out of {info.compress_size}")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise self.error(f"{info.filename} is stored, but claims {info.file_size} bytes out of {info.compress_size}")
        if info.header_offset < 0:  # as zipfile has it where the directory is said to begin too late
            raise self.error(f"{info.filename} would begin before the file does")
        if info.header_offset + 30 + info.compress_size > self._size:
            raise self.error(f"the file ends inside {member}; it is truncated")
        try:
            opened = self._archive.open(info)  # checks the local header
        except OSError:
            raise
        except Exception as error:  # as above
            raise self.error(f"{info.filename} cannot be read: {error}") from error
        if info.compress_type == zipfile.ZIP_DEFLATED:
            return opened  # type: ignore[return-value]
        return Section(self._reader, self._data_offset(info), info.file_size)

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Where a member's data begins, behind its local header. Raises WeightsError.

        A local header that says something else than the directory, or members that overlap, are an archive of two
        meanings: another reader would see other numbers.
        """
        self._reader.seek(info.header_offset)
        header = self._reader.read(30)
        if len(header) < 30:
            raise self.error(f"the file ends inside {info.filename}; it is truncated")
        flags, method, _, _, crc, packed, size, name_length, extra_length = struct.unpack("<4H3I2H", header[6:])
        extra = self._reader.read(name_length + extra_length)[name_length:]
        if packed == size == 0xFFFFFFFF and extra[:2] == b"\1\0" and len(extra) >= 20:  # zip64, which np.savez always writes
            size, packed = struct.unpack("<2Q", extra[4:20])
        sizes_follow = bool(flags & 8)  # behind the data: then only the directory has them
        if method != info.compress_type or not sizes_follow and (crc, packed, size) != (info.CRC, info.compress_size, info.file_size):
            raise self.error(f"{info.filename} has another size, CRC-32 or compression by its own header than by the directory")
        start: int = info.header_offset + 30 + name_length + extra_length
        following = self._starts[bisect.bisect_right(self._starts, info.header_offset) :][:1]
        if start + info.compress_size > min([*following, self._archive.start_dir]):
            raise self.error(f"{info.filename} overlaps what stands behind it")
        return start


class MemberData(Data):
    """A member's bytes, packed or not."""

    def fill(self, array: np.ndarray) -> None:
        try:
            super().fill(array)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise self._file.error(f"{self._name} is damaged: {error}") from error

    def take(self, count: int) -> bytes:
        """The next `count` bytes, of which the caller knows that they are few."""
        content = np.empty(count, np.uint8)
        self.fill(content)
        return content.tobytes()


class CheckedData(MemberData):
    """A member's data, whose CRC-32 is computed on a second thread (zlib releases the GIL) and checked at the end.

    What stands in the member before `offset`, and behind the last array, is read for its CRC-32 alone. An array that was
    filled may be on its way through the checksum still, until BUFFERS - 1 others were filled.
    """

    def __init__(self, file: Archive, name: str, stream: BinaryIO | Section, info: zipfile.ZipInfo, offset: int):
        super().__init__(file, name, stream)
        self._recorded = info.CRC
        self._crc, self._left = 0, info.file_size
        self._read_on(offset)
        self._checker = ThreadPoolExecutor(max_workers=1)
        self._checks: deque[Future[None]] = deque()

    def fill(self, array: np.ndarray) -> None:
        if len(self._checks) == BUFFERS:
            self._checks.popleft().result()
        super().fill(array)
        self._left -= array.nbytes
        self._checks.append(self._checker.submit(self._add, array))

    def __exit__(self, *error: object) -> None:
        self._checker.shutdown()
        if any(error):
            return
        self._read_on(self._left)
        if self._crc != self._recorded:
            raise self._file.error(
                f"{self._name} has CRC-32 {self._crc:08x}, but the archive says {self._recorded:08x}: the file is damaged"
                + ("; delete it and fetch it again" if self._recorded else ", or it was written without CRC-32s: write it again with them")
            )

    def _read_on(self, count: int) -> None:
        """Read bytes that nobody wants but the checksum."""
        self._left -= count
        buffer = np.empty(min(count, BLOCK_BYTES), np.uint8)
        while count:
            piece = buffer[:count]
            super().fill(piece)
            self._add(piece)
            count -= len(piece)

    def _add(self, raw: np.ndarray) -> None:
        self._crc = zlib.crc32(raw.reshape(-1).view(np.uint8), self._crc)  # type: ignore[arg-type,unused-ignore]


class Npz(Archive):
    """The tensors of an .npz archive. What is read of a member is checked against its CRC-32."""

    kind = ".npz archive"
    suffix = ".npy"

    def __init__(self, reader: BinaryIO, label: str):
        super().__init__(reader, label)
        self.names = sorted(self.members, key=lambda name: self.members[name].header_offset)

    def tensor(self, name: str) -> Tensor:
        if name not in self.members:
            raise self.error(f"it has no tensor {name}; it has {listed(self.members)}")
        return _tensor(self, name, self.member_data(name, name).take, self.members[name].file_size)

    def data(self, tensor: Tensor) -> Data:
        """As TensorFile has it."""
        return self.checked_data(tensor.name, tensor.name, tensor.offset)


class Npy(TensorFile):
    """The one tensor of a .npy file, by the name of ARRAY. It has no checksum."""

    ARRAY = "its array"

    def __init__(self, reader: BinaryIO, label: str):
        super().__init__(reader, label)
        self.names = [self.ARRAY]

    def tensor(self, name: str) -> Tensor:
        """As TensorFile has it."""
        header = Data(self, name, Section(self._reader, 0, self._size))

        def take(count: int) -> bytes:
            content = np.empty(count, np.uint8)
            header.fill(content)
            return content.tobytes()

        return _tensor(self, name, take, self._size)

    def data(self, tensor: Tensor) -> Data:
        """As TensorFile has it."""
        return Data(self, tensor.name, Section(self._reader, tensor.offset, tensor.n_bytes))


def _tensor(file: TensorFile, name: str, take: Callable[[int], bytes], size: int) -> Tensor:
    """The header of a .npy of `size` bytes, of which `take` gives the next ones. Raises WeightsError."""
    preamble = take(8)
    if preamble[:6] != b"\x93NUMPY":
        raise file.error(f"{name} is not a .npy array")
    if preamble[6] not in (1, 2, 3):
        raise file.error(f"{name} has .npy version {preamble[6]}.{preamble[7]}; 1 to 3 are known")
    length_bytes = take(2 if preamble[6] == 1 else 4)
    length = int.from_bytes(length_bytes, "little")
    if length > HEADER_LIMIT:
        raise file.error(f"{name} has a header of {length} bytes; at most {HEADER_LIMIT} are read")
    dtype, shape = _parse_header(file, take(length), name)
    offset = 8 + len(length_bytes) + length
    n_bytes = dtype.itemsize * math.prod(shape)
    if offset + n_bytes != size:
        raise file.error(f"{name} has {size - offset} bytes of data, but its shape {list(shape)} of {dtype.name} takes {n_bytes}")
    return Tensor(name, dtype, False, shape, offset)


def _parse_header(file: TensorFile, header: bytes, name: str) -> tuple[np.dtype, tuple[int, ...]]:
    try:
        with _parsing:
            fields = ast.literal_eval(header.decode("utf-8").strip())
        if fields.keys() != {"descr", "fortran_order", "shape"}:
            raise ValueError  # NumPy reads no other
        descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        repr((descr, shape))  # a number of 30,000 digits cannot be printed
    except Exception as error:  # whatever Python's own parser makes of it
        raise file.error(f"{name} has an unreadable .npy header") from error
    if isinstance(descr, str) and descr.lstrip("|<>=").startswith("O"):
        raise file.error(f"{name} is a pickled Python object; nothing is unpickled")
    if not isinstance(descr, str) or descr not in _DTYPES:
        raise file.error(f"{name} is of dtype {_shown(descr)}; float16, float32 and float64 are read")
    if fortran_order is not False:
        raise file.error(f"{name} is in Fortran order; C order is read")
    if not isinstance(shape, tuple) or len(shape) not in (1, 2):
        raise file.error(f"{name} has shape {_shown(shape)}; 1 or 2 dimensions are read")
    if not all(type(extent) is int and 0 < extent <= EXTENT_LIMIT for extent in shape):
        raise file.error(f"{name} has shape {_shown(shape)}; each extent must be 1 to {EXTENT_LIMIT}")
    return _DTYPES[descr], shape


def _shown(value: object) -> str:
    return repr(value)[:80]
