# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named arrays as the bytes of a weight file: .npz, .safetensors, and what torch.save writes, without torch."""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

import numpy as np

Arrays = dict[str, "np.ndarray | int"]

BFLOAT16, FLOAT32 = "BF16", "F32"  # as .safetensors has them


def weight_file(path: str, arrays: Arrays, dtype: str = BFLOAT16) -> bytes:
    """The file that a path is called like; whole numbers are tensors of one integer. `dtype` is that of .safetensors."""
    if path.endswith(".npz"):
        return npz(arrays)
    return safetensors(arrays, dtype) if path.endswith(".safetensors") else torch_zip(arrays)


def npz(arrays: Arrays) -> bytes:
    """As np.savez has it, but the same bytes with every version of NumPy."""
    return stored_zip({f"{name}.npy": npy(np.asarray(values)) for name, values in arrays.items()})


def stored_zip(members: dict[str, bytes]) -> bytes:
    """A zip of stored members, the same bytes from every Python and at any time: their date is the first that a zip can have.

    The fields and their order are those of PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16.
    """
    data, directory = b"", b""
    for name, content in members.items():
        encoded = name.encode()
        # Version 2.0, no flags, stored, 0:00:00 on 1980-01-01.
        about = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(encoded), 0)
        # As a Unix system has it, which lets its owner read and write it.
        directory += b"PK\x01\x02" + struct.pack("<H", 3 << 8 | 20) + about + struct.pack("<3H2L", 0, 0, 0, 0o600 << 16, len(data)) + encoded
        data += b"PK\x03\x04" + about + encoded + content
    count = len(members)
    return data + directory + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(directory), len(data), 0)


def npy(values: np.ndarray) -> bytes:
    """A .npy file of version 1, float32, or int64 for whole numbers."""
    kind = "<i8" if values.dtype.kind == "i" else "<f4"
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {values.shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values.astype(kind).tobytes()


def safetensors(arrays: Arrays, dtype: str = BFLOAT16) -> bytes:
    """In bfloat16, as the real ones are: the upper half of float32, the lower cut off; or in float32."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in arrays.items():
        if isinstance(values, int):
            content, kind, shape = struct.pack("<q", values), "I64", ()
        else:
            bits = np.ascontiguousarray(values, "<f4").view("<u4")
            content, kind, shape = (bits if dtype == FLOAT32 else (bits >> np.uint32(16)).astype("<u2")).tobytes(), dtype, values.shape
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def torch_zip(arrays: Arrays) -> bytes:
    """A dict of float32 tensors, in order, and of integers of 64 bits, as torch.save writes them: a zip of stored members."""
    storages = {
        name: ("LongStorage", np.array(values, "<i8")) if isinstance(values, int) else ("FloatStorage", np.asarray(values, "<f4"))
        for name, values in arrays.items()
    }
    pickle = pickled_dict({name: (kind, array.shape) for name, (kind, array) in storages.items()})
    data = {f"data/{number}": array.tobytes() for number, (_, array) in enumerate(storages.values())}
    members = {"data.pkl": pickle, "byteorder": b"little", **data, "version": b"3\n"}
    return stored_zip({f"archive/{name}": content for name, content in members.items()})


def pickled_dict(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What torch.save pickles of a dict of tensors: for each the kind of its storage, which is its number, and its shape."""
    pickle = [b"\x80\x02", b"}", b"("]
    for number, (name, (kind, shape)) in enumerate(tensors.items()):
        strides = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
        pickle += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n("]
        pickle += [b"(", _text("storage"), b"ctorch\n" + kind.encode() + b"\n", _text(str(number)), _text("cpu"), _integer(math.prod(shape)), b"tQ"]
        pickle += [_integer(0), _tuple(shape), _tuple(strides), b"\x89", b"ccollections\nOrderedDict\n)R", b"tR"]
    return b"".join([*pickle, b"u", b"."])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: Any) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
