# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named tensors out of an .npz archive, a block of rows at a time.

np.load is not used: it reads a stored member through the zip module's 256 KiB reader and holds the whole of it, and
the data of a stored member is not aligned, so that it cannot be mapped either.
"""

from __future__ import annotations

import ast
from typing import BinaryIO

import numpy as np

from oracle.weights.archive import Archive
from oracle.weights.formats import EXTENT_LIMIT
from oracle.weights.tensors import Data, Tensor, listed

HEADER_LIMIT = 64 * 1024

_DTYPES = {order + code: np.dtype(order + code) for code in ("f2", "f4", "f8") for order in "<>"}


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
        member = self.member_data(name, name)
        preamble = member.take(8)
        if preamble[:6] != b"\x93NUMPY":
            raise self.error(f"{name} is not a .npy array")
        if preamble[6] not in (1, 2, 3):
            raise self.error(f"{name} has .npy version {preamble[6]}.{preamble[7]}; 1 to 3 are known")
        length_bytes = member.take(2 if preamble[6] == 1 else 4)
        length = int.from_bytes(length_bytes, "little")
        if length > HEADER_LIMIT:
            raise self.error(f"{name} has a header of {length} bytes; at most {HEADER_LIMIT} are read")
        dtype, shape = self._parse_header(member.take(length), name)
        offset = 8 + len(length_bytes) + length
        n_bytes = dtype.itemsize
        for extent in shape:
            n_bytes *= extent
        member_bytes = self.members[name].file_size
        if offset + n_bytes != member_bytes:
            raise self.error(
                f"{name} has {member_bytes - offset} bytes of data, but its shape {list(shape)} "
                f"of {dtype.name} takes {n_bytes}"
            )
        return Tensor(name, dtype, False, shape, offset)

    def data(self, tensor: Tensor) -> Data:
        """As TensorFile has it."""
        return self.checked_data(tensor.name, tensor.name, tensor.offset)

    def _parse_header(self, header: bytes, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        try:
            fields = ast.literal_eval(header.decode("utf-8").strip())
            descr, fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
            raise self.error(f"{name} has an unreadable .npy header") from error
        if isinstance(descr, str) and descr.lstrip("|<>=").startswith("O"):
            raise self.error(f"{name} is a pickled Python object; nothing is unpickled")
        if not isinstance(descr, str) or descr not in _DTYPES:
            raise self.error(f"{name} is of dtype {descr!r}; float16, float32 and float64 are read")
        if fortran_order is not False:
            raise self.error(f"{name} is in Fortran order; C order is read")
        if not isinstance(shape, tuple) or len(shape) not in (1, 2):
            raise self.error(f"{name} has shape {shape!r}; 1 or 2 dimensions are read")
        if not all(type(extent) is int and 0 < extent <= EXTENT_LIMIT for extent in shape):
            raise self.error(f"{name} has shape {shape!r}; each extent must be 1 to {EXTENT_LIMIT}")
        return _DTYPES[descr], shape
