# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files that torch.save never wrote, or wrote for something else than a dict of tensors: each with what an error has to say."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile

import numpy as np

from oracle.weights.pickled import OPCODE_LIMIT
from oracle.weights.torchzip import PICKLE_LIMIT
from tests.support.torchfiles import (
    EMPTY_ORDERED,
    MARK,
    ORDERED_DICT,
    PERSISTENT,
    PROTO,
    REDUCE,
    STOP,
    call,
    described,
    entries,
    items,
    name,
    number,
    storage,
    tensor,
    text,
    torch_file,
    zipped,
)

GOOD = {"W": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(3, np.float32)}
DATA = GOOD["W"].tobytes()
STORAGE = storage("0", "FloatStorage", 12)
REBUILD, FLOATS = name("torch._utils", "_rebuild_tensor_v2"), name("torch", "FloatStorage")


def of(opcodes: bytes) -> bytes:
    """A file whose pickle holds these opcodes between its first and its last."""
    return zipped(PROTO + opcodes + STOP, {"0": DATA})


def holding(**tensors: bytes) -> bytes:
    return zipped(described(**tensors), {"0": DATA})


def shaped(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, stored: bytes = STORAGE) -> bytes:
    return holding(W=tensor(stored, shape, strides, offset))


def persistent(*parts: bytes) -> bytes:
    return holding(W=tensor(items(*parts) + PERSISTENT, (3, 4), (4, 1)))


def integers(*counts: int) -> bytes:
    kind, n = {1: "LongStorage", 2: "IntStorage"}[len(counts)], int(np.prod(counts))
    return zipped(described(k=tensor(storage("0", kind, n), counts, (1,) * len(counts))), {"0": bytes(n * (8 if kind == "LongStorage" else 4))})


def changed(content: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new, count)


def directory_flag(content: bytes, flag: int) -> bytes:
    """A bit set in the flags of every entry of the directory."""
    data = bytearray(content)
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 8] |= flag
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(data)


def resized(content: bytes, member: bytes, size: int) -> bytes:
    """A member's two sizes in the directory changed."""
    data = bytearray(content)
    at = data.rfind(member) - 46
    data[at + 20 : at + 28] = struct.pack("<2I", size, size)
    return bytes(data)


def two_pickles() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for root in ("a", "b"):
            archive.writestr(f"{root}/data.pkl", described())
    return target.getvalue()


def twice() -> bytes:
    return changed(zipped(described(W=tensor(STORAGE, (3, 4), (4, 1))), {"0": DATA, "1": DATA}), b"data/1", b"data/0")


def old_tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return target.getvalue()


def put(place: int) -> bytes:
    return b"q" + bytes([place])


def got(place: int) -> bytes:
    return b"h" + bytes([place])


def laughs() -> bytes:
    """Lists of ten of the list before: a little to write down, more than there is memory to walk through."""
    lists = b"]" + put(0) + b"".join(b"]" + MARK + got(level) * 10 + b"e" + put(level + 1) for level in range(20))
    return of(b"}" + text("a") + MARK + lists + b"ts")


SELF = b"]" + put(0) + MARK + b"N" * 100_000 + got(0) + b"e"
LONG_SHAPE = items(*[number(1)] * 80_000)

GOOD_TENSOR = tensor(STORAGE, (3, 4), (4, 1))
CONTAINERS = {
    "empty": (b"", "not a readable file of torch.save: it has no zip directory at its end; it is truncated, or something else"),
    "html": (b"<html>" * 100, "not a readable file of torch.save"),
    "cut at the end": (torch_file(GOOD)[:-30], "truncated"),
    "cut in the middle": (torch_file(GOOD)[:300], "truncated"),
    "a bare pickle": (PROTO + b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "the format that torch had before 1.6, a bare pickle, and nothing is unpickled"),
    "a tar": (old_tar(), "save it again with a newer torch.save, or as .safetensors"),
    "another zip": (two_pickles().replace(b"data.pkl", b"code.pkl"), "a zip with no data.pkl: not a file of torch.save"),
    "two pickles": (two_pickles(), "a zip with 2 data.pkl"),
    "two members of one name": (twice(), "two members are named archive/data/0"),
    "compressed": (torch_file(GOOD, method=zipfile.ZIP_DEFLATED), "archive/byteorder is compressed, and torch's are not: unpack the archive and zip it with -0"),
    "compressed without byteorder": (torch_file(GOOD, method=zipfile.ZIP_DEFLATED, byteorder=None), "archive/data.pkl is compressed"),
    "bzip2": (torch_file(GOOD, method=zipfile.ZIP_BZIP2), "is compressed"),
    "encrypted": (directory_flag(torch_file(GOOD), 1), "is encrypted"),
    "big-endian": (torch_file(GOOD, byteorder=b"big"), "its numbers are not little-endian: save it again"),
    "a long byteorder": (torch_file(GOOD, byteorder=b"little" * 9), "archive/byteorder has 54 bytes; at most 6 are read"),
    "damaged numbers": (changed(torch_file(GOOD), DATA[8:12], b"\1\2\3\4"), "W has CRC-32"),
    "damaged numbers outside the tensor": (changed(zipped(described(W=tensor(STORAGE, (2, 2), (2, 1), 4)), {"0": DATA}), DATA[-4:], bytes(4)), "W has CRC-32"),
    "damaged pickle": (changed(torch_file(GOOD), b"FloatStorage", b"FloatStorbge"), "archive/data.pkl has CRC-32"),
    "a storage that is not there": (zipped(described(W=GOOD_TENSOR)), "it has no archive/data/0, which its data.pkl refers to: the file is not whole"),
    "a storage with a path for its key": (holding(W=tensor(storage("../data/0", "FloatStorage", 12), (3, 4), (4, 1))), "it has no archive/data/../data/0"),
    "a storage of another size": (zipped(described(W=GOOD_TENSOR), {"0": DATA[:-4]}), "archive/data/0 has 44 bytes, but W's storage takes 48"),
    "a member past the end": (resized(torch_file(GOOD), b"archive/data/0", 2**30), "has 1073741824 bytes"),
    "a pickle past the end": (resized(torch_file(GOOD), b"archive/data.pkl", 2**20), "the file ends inside archive/data.pkl; it is truncated"),
    "a pickle of 2^31 bytes": (resized(torch_file(GOOD), b"archive/data.pkl", 2**31), "archive/data.pkl has 2147483648 bytes; at most 4194304 are read"),
    "a pickle past its limit": (of(text("x" * PICKLE_LIMIT)), "at most 4194304 are read"),
}  # fmt: skip
PICKLES = {
    "nothing": (zipped(b""), "its data.pkl is not of pickle protocol 2"),
    "protocol 4": (zipped(b"\x80\x04}."), "is not of pickle protocol 2, which torch.save writes: save it again with torch.save"),
    "protocol 0": (zipped(b"(dp0\n."), "is not of pickle protocol 2"),
    "no end": (zipped(PROTO + b"}"), "ends in the middle of an opcode"),
    "cut in a number": (zipped(PROTO + b"J\1"), "ends in the middle of an opcode"),
    "cut in a name": (zipped(PROTO + b"ctorch\nFloat"), "has a name at byte 9 that does not end"),
    "a text of 2^32 - 1": (of(b"X\xff\xff\xff\xffabc"), "ends in the middle of an opcode"),
    "a text that is no UTF-8": (of(b"X\2\0\0\0\xff\xff"), "a text at byte 9 that is no UTF-8"),
    "something behind the end": (of(b"}.N"), "goes on where it should end"),
    "two objects": (of(b"}}"), "goes on where it should end"),
    "an open mark": (of(b"}(}"), "goes on where it should end"),
    "an empty stack": (of(b""), "takes from an empty stack at byte 2"),
    "through a mark": (of(b"}(s"), "takes from an empty stack"),
    "no mark": (of(b"}u"), "has no mark for what ends at byte 3"),
    "a place without anything": (of(b"h\x07"), "takes from place 7, where nothing was put"),
    "an instance": (of(b"(ios\nsystem\n"), "has opcode 0x69 at byte 3, which a dict of tensors does not take: nothing is unpickled"),
    "an object": (of(b"(cos\nsystem\no"), "names 'os.system', which is no part of a dict of tensors of numbers: nothing is unpickled"),
    "a new object": (of(name("collections", "OrderedDict") + b")\x81"), "has opcode 0x81"),
    "a name from the stack": (of(text("os") + text("system") + b"\x93"), "has opcode 0x93"),
    "an extension": (of(b"\x82\x01"), "has opcode 0x82"),
    "a frame": (of(b"\x95" + bytes(8)), "has opcode 0x95"),
    "bytes": (of(b"C\x01a"), "has opcode 0x43"),
    "a persistent id as text": (of(b"P0\n"), "has opcode 0x50"),
    "a reduce of system": (of(name("posix", "system") + items(text("id")) + REDUCE), "names 'posix.system'"),
    "a reduce of eval": (of(name("builtins", "eval") + items(text("1")) + REDUCE), "names 'builtins.eval'"),
    "a reduce of getattr in torch": (of(name("torch", "hub.load") + items() + REDUCE), "names 'torch.hub.load'"),
    "another tensor of torch": (of(name("torch._utils", "_rebuild_sparse_tensor") + items() + REDUCE), "names 'torch._utils._rebuild_sparse_tensor'"),
    "a storage of complex numbers": (of(name("torch", "ComplexFloatStorage")), "names 'torch.ComplexFloatStorage'"),
    "a reduce of a storage": (of(call(FLOATS, number(2**40))), "calls torch.FloatStorage at byte"),
    "a reduce of a number": (of(number(1) + items() + REDUCE), "calls a value of type int at byte"),
    "a reduce of a tensor": (of(GOOD_TENSOR + items() + REDUCE), "calls a tensor at byte"),
    "a reduce without arguments": (of(ORDERED_DICT + b"N" + REDUCE), "calls collections.OrderedDict at byte 28 with other arguments than torch does"),
    "an OrderedDict of something": (of(call(ORDERED_DICT, b"]")), "calls collections.OrderedDict"),
    "a tensor of two arguments": (of(call(REBUILD, STORAGE, number(0))), "calls torch._utils._rebuild_tensor_v2"),
    "a tensor of a name": (of(call(REBUILD, FLOATS, number(0), items(), items(), b"\x89", EMPTY_ORDERED)), "with other arguments"),
    "a parameter of a number": (of(call(name("torch._utils", "_rebuild_parameter"), number(1), b"\x88", EMPTY_ORDERED)), "with other arguments"),
    "a parameter's arguments for a tensor": (of(call(REBUILD, GOOD_TENSOR, b"\x88", EMPTY_ORDERED)), "calls torch._utils._rebuild_tensor_v2"),
    "a parameter with hooks": (of(call(name("torch._utils", "_rebuild_parameter"), GOOD_TENSOR, b"\x88", b"}" + entries(("a", b"N")))), "with other arguments"),
    "arguments in a list": (of(ORDERED_DICT + b"]" + REDUCE), "calls collections.OrderedDict"),
    "a storage in a list": (of(b"](" + text("storage") + FLOATS + text("0") + text("cpu") + number(12) + b"e" + PERSISTENT), "no storage of numbers"),
    "a storage with a long key": (holding(W=tensor(storage("0" * 201, "FloatStorage", 12), (3, 4), (4, 1))), "no storage of numbers"),
    "hooks": (holding(W=tensor(STORAGE, (3, 4), (4, 1), 0, EMPTY_ORDERED + entries(("a", b"N")))), "hooks or metadata, which may change its numbers"),
    "metadata that negates": (holding(W=tensor(STORAGE, (3, 4), (4, 1), 0, EMPTY_ORDERED, b"}" + entries(("neg", b"\x88")))), "hooks or metadata"),
    "attributes": (of(EMPTY_ORDERED + b"}" + entries(("forward", b"N")) + b"b"), "gives a dict attributes at byte"),
    "attributes of a list": (of(b"]}b"), "adds to something that is no OrderedDict at byte"),
    "attributes that are a tuple": (of(EMPTY_ORDERED + b")b"), "gives a dict attributes"),
    "an item for a dict": (of(b"}Na"), "adds to something that is no list"),
    "a key for a list": (of(b"]" + entries(("a", b"N"))), "adds to something that is no dict"),
    "a key without a value": (of(b"}(" + text("a") + b"u"), "has a key without a value"),
    "a number for a key": (of(b"}(K\1K\1u"), "has a value of type int for a key, where a text has to be"),
    "a key twice": (of(b"}" + entries(("W", GOOD_TENSOR), ("W", GOOD_TENSOR))), "has the key 'W' twice"),
    "a key that does not print": (of(b"}" + entries(("W\n\x1b[31m", GOOD_TENSOR))), r"has a key 'W\n\x1b[31m', which is no name"),
    "a long key": (of(b"}" + entries(("W" * 201, GOOD_TENSOR))), "which is no name: at most 200 characters that print"),
    "a tensor alone": (of(GOOD_TENSOR), "holds a tensor, where a dict of tensors has to be: save it again as a dict"),
    "a list of tensors": (of(b"](" + GOOD_TENSOR + b"e"), "holds a value of type list, where a dict of tensors has to be"),
    "a name alone": (of(ORDERED_DICT), "holds a name, where a dict of tensors has to be"),
    "a tensor in a dict in the dict": (holding(model=b"}" + entries(("W", GOOD_TENSOR))), "has tensors in a dict or list of their own under 'model': save that"),
    "a name for a value": (holding(dtype=FLOATS), "has a name under 'dtype', which is no value"),
    "a storage for a value": (holding(W=STORAGE), "has a storage under 'W', which is no value"),
    "a persistent id that is no tuple": (of(text("0") + PERSISTENT), "refers at byte 8 to something that is no storage of numbers"),
    "a persistent id of another kind": (persistent(text("module"), FLOATS, text("0"), text("cpu"), number(12)), "no storage of numbers"),
    "a persistent id without a type": (persistent(text("storage"), text("FloatStorage"), text("0"), text("cpu"), number(12)), "no storage of numbers"),
    "a storage whose type is a function": (persistent(text("storage"), REBUILD, text("0"), text("cpu"), number(12)), "no storage of numbers"),
    "a storage of true": (persistent(text("storage"), FLOATS, text("0"), text("cpu"), b"\x88"), "no storage of numbers"),
    "a storage of -1": (shaped((3, 4), (4, 1), 0, storage("0", "FloatStorage", -1)), "no storage of numbers"),
    "a storage of 2^63": (shaped((3, 4), (4, 1), 0, storage("0", "FloatStorage", 2**63)), "no storage of numbers"),
    "a storage of 2^63 - 1": (shaped((3, 4), (4, 1), 0, storage("0", "FloatStorage", 2**63 - 1)), "but W's storage takes 36893488147419103228"),
    "a storage of two types": (holding(W=GOOD_TENSOR, b=tensor(storage("0", "IntStorage", 12), (), ())), "has two storages '0' of different types or sizes"),
}  # fmt: skip
SHAPES = {
    "past the end": (shaped((3, 4), (4, 1), 1), "W has bytes 4 to 52 of a storage of 48"),
    "an offset past the end": (shaped((), (), 12), "W has bytes 48 to 52 of a storage of 48"),
    "an offset of 2^63 - 1": (shaped((), (), 2**63 - 1), "of a storage of 48"),
    "an offset of 2^63": (shaped((), (), 2**63), "a shape, strides or an offset that are no counts"),
    "an offset of -1": (shaped((), (), -1), "no counts"),
    "a shape past the end": (shaped((3, 5), (5, 1)), "W has bytes 0 to 60 of a storage of 48"),
    "a shape of 2^24 cubed": (shaped((2**24,) * 3, (2**48, 2**24, 1)), "of a storage of 48"),
    "an extent of 2^24 + 1": (shaped((2**24 + 1,), (1,)), "W has shape [16777217]; 0 to 3 dimensions of 1 to 16777216 each are read"),
    "an extent of 2^63 - 1": (shaped((2**63 - 1, 4), (4, 1)), "dimensions"),
    "an extent of 2^2000": (shaped((2**2000,), (1,)), "no counts"),
    "an extent of 0": (shaped((0, 4), (4, 1)), "dimensions"),
    "an extent of -3": (shaped((-3, 4), (4, 1)), "no counts"),
    "an extent that is true": (holding(W=call(REBUILD, STORAGE, number(0), items(b"\x88"), items(number(1)), b"\x89", EMPTY_ORDERED)), "no counts"),
    "four dimensions": (shaped((1, 3, 2, 2), (12, 4, 2, 1)), "dimensions"),
    "sixty-four dimensions": (shaped((1,) * 64, (1,) * 64), "0 to 3 dimensions"),
    "sixty-five dimensions": (shaped((1,) * 65, (1,) * 65), "no counts"),
    "a stride too few": (shaped((3, 4), (4,)), "no counts"),
    "a stride of -1": (shaped((3, 4), (4, -1)), "no counts"),
    "expanded": (shaped((3, 4), (0, 1)), "W has strides [0, 1] with shape [3, 4], neither in order nor those of a transpose: save it again as tensor.contiguous()"),
    "every second column": (shaped((3, 2), (4, 2)), "neither in order nor those of a transpose"),
    "some columns": (shaped((3, 2), (4, 1)), "neither in order"),
    "some columns transposed": (shaped((2, 3), (1, 4)), "neither in order"),
    "one column": (shaped((3, 1), (4, 1)), "neither in order"),
    "every second number": (shaped((6,), (2,)), "neither in order"),
    "three axes in another order": (shaped((2, 3, 2), (1, 2, 6)), "neither in order"),
    "strides past the end": (shaped((3, 4), (2**62, 1)), "neither in order"),
    "two integers": (integers(2), "k is of a LongStorage; integers are read where they are one number"),
    "four integers": (integers(2, 2), "k is of a IntStorage"),
    "a storage of integers for floats": (shaped((3, 4), (4, 1), 0, storage("0", "IntStorage", 12)), "W is of a IntStorage"),
}  # fmt: skip
BOMBS = {
    **{f"4 MiB of {opcode!r}": (of(opcode * ((PICKLE_LIMIT - 3) // len(opcode))), f"has more than {OPCODE_LIMIT} opcodes")
       for opcode in (b"(", b")", b"]", b"}", b"N", b"K\1", b"(]", b"}q\0", b"G\x7f\xf0\0\0\0\0\0\0")},
    "tuples in tuples": (of(b")" + b"\x85" * 200_000), "holds a value of type tuple"),
    "lists in lists": (of(b"}" + text("a") + b"]" * 100_000 + b"a" * 99_999 + b"s"), "more than is read: 262144 values, 32 deep"),
    "dicts in dicts": (of(b"}" + (text("a") + b"}") * 80_000 + b"s" * 80_000), "32 deep"),
    "OrderedDicts": (of(ORDERED_DICT + put(0) + b")R" + (got(0) + b")R") * 90_000), f"has more than {OPCODE_LIMIT} opcodes"),
    "a list in itself": (of(b"}" + text("a") + SELF + b"s"), "more than is read"),
    "a dict in itself": (of(b"}" + put(0) + text("a") + got(0) + b"s"), "32 deep"),
    "lists of ten lists of ten lists": (laughs(), "more than is read"),
    "long integers": (of((b"\x8a\xff" + b"\x7f" * 255) * 16_000), "goes on where it should end"),
    "a wide text": (of(text("\U0001f600" + "x" * (PICKLE_LIMIT - 100))), "holds a value of type str"),
    "a long shape taken up again and again": (
        of(REBUILD + put(0) + MARK + STORAGE + number(0) + LONG_SHAPE + put(1) + got(1) + b"\x89" + EMPTY_ORDERED + b"t" + put(2)
           + (got(0) + got(2) + REDUCE) * 30_000), "no counts"),
    "many keys": (of(b"}(" + b"".join(text(f"{n:x}") + b"N" for n in range(100_000)) + b"u" + put(0) + got(0) + b"b"), "adds to something that is no OrderedDict"),
    "a member that inflates": (torch_file({"W": np.zeros(1 << 22, np.float32)}, method=zipfile.ZIP_DEFLATED), "is compressed"),
    "thousands of tensors that are all too long": (
        zipped(described(**{f"W{n}": tensor(storage(str(n), "FloatStorage", 2**40), (2**24, 2**16), (2**16, 1)) for n in range(3000)})), "it has no archive/data/0"),
}  # fmt: skip
BAD = {**CONTAINERS, **PICKLES, **SHAPES, **BOMBS}
