# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named arrays as the bytes of a weight file: .npz, .safetensors, and what torch.save writes, without torch."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from typing import Any

import numpy as np

Arrays = dict[str, "np.ndarray | int"]


def weight_file(path: str, arrays: Arrays) -> bytes:
    """The file that a path is called like; whole numbers are tensors of one integer."""
    if path.endswith(".npz"):
        return npz(arrays)
    return safetensors(arrays) if path.endswith(".safetensors") else torch_zip(arrays)


def npz(arrays: Arrays) -> bytes:
    """As np.savez writes it."""
    archive = io.BytesIO()
    members: dict[str, Any] = dict(arrays)  # beside them savez has an argument of another type
    np.savez(archive, **members)
    return archive.getvalue()


def safetensors(arrays: Arrays) -> bytes:
    """In bfloat16, as the real ones are: the upper half of float32, the lower cut off."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in arrays.items():
        if isinstance(values, int):
            content, kind, shape = struct.pack("<q", values), "I64", ()
        else:
            content, kind, shape = (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes(), "BF16", values.shape
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def torch_zip(arrays: Arrays) -> bytes:
    """A dict of float32 tensors, in order, and of integers of 64 bits, as torch.save writes them: a zip of stored members."""
    archive = io.BytesIO()
    storages = {
        name: ("LongStorage", np.array(values, "<i8")) if isinstance(values, int) else ("FloatStorage", np.asarray(values, "<f4"))
        for name, values in arrays.items()
    }
    pickle = pickled_dict({name: (kind, array.shape) for name, (kind, array) in storages.items()})
    data = {f"data/{number}": array.tobytes() for number, (_, array) in enumerate(storages.values())}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, content in {"data.pkl": pickle, "byteorder": b"little", **data, "version": b"3\n"}.items():
            # The same bytes at any time and on any system.
            file.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), content)
    return archive.getvalue()


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
