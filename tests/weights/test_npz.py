# SPDX-License-Identifier: MIT OR Apache-2.0
"""npz.py and layer.py: what is read is right, and what is damaged or strange is refused by name."""

from __future__ import annotations

import ast
import errno
import io
import os
import struct
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.weights.formats import ENCODER as ENCODER_FILE
from oracle.weights.formats import by_name
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.npz import DIRECTORY_LIMIT, Npz
from oracle.weights.tensors import WeightsError
from tests.support.places import shared
from tests.support.small_scope import layer_arrays, npz

GEMMA_SCOPE_NPZ = by_name("GemmaScopeNpz")


def open_npz(content: bytes) -> Npz:
    return Npz(io.BytesIO(content), "params.npz")


def read_all(content: bytes, name: str = "W_enc") -> np.ndarray:
    file = open_npz(content)
    return np.concatenate([block.copy() for block in file.blocks(file.tensor(name))])


def layer_of(content: bytes, reader: type[io.BytesIO] = io.BytesIO) -> LayerWeights:
    return LayerWeights(GEMMA_SCOPE_NPZ, 0, {ENCODER_FILE: OpenFile(reader(content), "params.npz", "params.npz")})


def encoder_of(content: bytes) -> np.ndarray:
    """Everything that a run reads of a file, in the order of a run."""
    layer = layer_of(content)
    w_enc = [block.flatten() for block in layer.w_enc.blocks()]
    return np.concatenate([layer.b_enc, np.maximum(layer.threshold, 0), *w_enc])


def member(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """A .npy file with any header text."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


def archive(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return target.getvalue()


def header(descr: Any = "<f4", shape: Any = (2,), order: Any = False) -> str:
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


def test_threads_parse_one_header_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python before 3.11.8 raises SystemError where two threads parse at once: now and then a right file was refused."""
    content, parse = archive(W_enc=member(header(), bytes(8))), ast.literal_eval
    inside, most = 0, 0

    def slow(text: str) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        fields = parse(text)
        inside -= 1
        return fields

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(read_all, [content] * 12))
    assert most == 1 and len(values) == 12 and not np.any(values)


def test_real_values() -> None:
    content = shared("data/gemma_scope_small.npz").read_bytes()
    file = open_npz(content)
    names = list(file.names)
    assert sorted(names) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]
    expected = np.load(io.BytesIO(content))
    for name in names:
        values = file.read(file.tensor(name))
        assert values.shape == (8,) and values.dtype == np.float32
        assert np.array_equal(values, expected[name])
    assert file.read(file.tensor("W_enc"))[0] == np.float32(-0.041691247)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"]), st.booleans(), st.integers(1, 200), st.integers(1, 3000),
    st.integers(0, 99),
)
def test_every_dtype_and_compression(dtype: str, compressed: bool, rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype)
    read = read_all(npz({"W_enc": values}, compressed))
    assert read.dtype == np.float32 and np.array_equal(read, values.astype(np.float32))


def test_blocks_are_small_and_cover_all() -> None:
    values = np.arange(1000 * 4096, dtype=np.float32).reshape(1000, 4096)
    file = open_npz(npz({"W_enc": values}))
    sizes = [block.nbytes for block in file.blocks(file.tensor("W_enc"))]
    assert max(sizes) <= 1 << 20 and sum(sizes) == values.nbytes and len(sizes) > 10


class Dribble(io.BytesIO):
    """A reader that gives a few bytes at a time, as a network may."""

    def readinto(self, view: Any) -> int:
        return super().readinto(memoryview(view)[: max(1, len(view) // 3)])


def test_any_seekable_reader_will_do() -> None:
    values = np.random.default_rng(1).standard_normal((40, 50)).astype(np.float32)
    file = Npz(Dribble(npz({"W_enc": values})), "params.npz")
    assert np.array_equal(np.concatenate([b.copy() for b in file.blocks(file.tensor("W_enc"))]), values)


class Failing(io.BytesIO):
    """A reader whose n-th read fails, as that of a disk or of a connection may."""

    left = 0

    def fail(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, *size: Any) -> bytes:
        self.fail()
        return super().read(*size)

    def readinto(self, view: Any) -> int:
        self.fail()
        return super().readinto(view)


def test_a_read_that_fails_is_told_as_that_and_not_as_a_damaged_file() -> None:
    content, failed = npz({"W_enc": np.ones((4, 4), np.float32)}), 0
    for n in range(1, 100):
        reader = Failing(content)
        reader.left = n
        try:
            file = Npz(reader, "params.npz")
            assert np.array_equal(np.concatenate([b.copy() for b in file.blocks(file.tensor("W_enc"))]), np.ones((4, 4)))
        except OSError as error:
            assert error.errno == errno.EIO
            failed += 1
    assert 5 <= failed < 90


def test_negative_thresholds_gate_at_zero() -> None:
    arrays = layer_arrays(0)
    arrays["threshold"][:5] = [-1, -0.5, -0.0, 0.0, 2]
    layer = layer_of(npz(arrays))
    assert layer.encoder.gate.level[:5].tolist() == [0, 0, 0, 0, 2]


def test_the_decoder_s_data_is_not_read() -> None:
    class Counting(io.BytesIO):
        count = 0

        def readinto(self, view: Any) -> int:
            Counting.count += len(view)
            return super().readinto(view)

    arrays = layer_arrays(0, 64, 4096)
    layer = layer_of(npz(arrays), Counting)
    for _ in layer.w_enc.blocks():
        pass
    assert Counting.count < arrays["W_enc"].nbytes + 100_000


GOOD = layer_arrays(0)


def spoiled(**changes: Any) -> bytes:
    arrays = {**GOOD, **changes}
    return npz({name: value for name, value in arrays.items() if value is not None})


def flipped(content: bytes, name: str) -> bytes:
    """One bit of a member's data turned over."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        at = file.getinfo(f"{name}.npy").header_offset + 400
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def with_flag(content: bytes, flag: int) -> bytes:
    """A bit set in the flags of every directory entry."""
    data = bytearray(content)
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 8] |= flag
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(data)


BAD = {
    "empty": (b"", "truncated, or something else"),
    "not a zip": (b"<html>" * 100, "truncated, or something else"),
    "truncated": (npz(GOOD)[:-500], "truncated"),
    "cut in the middle": (npz(GOOD)[: len(npz(GOOD)) // 2], "truncated"),
    "wrong CRC in W_enc": (flipped(npz(GOOD), "W_enc"), "W_enc has CRC-32"),
    "wrong CRC in b_enc": (flipped(npz(GOOD), "b_enc"), "b_enc has CRC-32"),
    "members that claim more than the file has": (
        archive(W_enc=member(header(shape=(1 << 20, 1 << 14)))).replace(b"\x80\0\0\0" * 2, b"\0\0\0\x40" * 2), "W_enc"),
    "encrypted": (with_flag(npz(GOOD), 1), "W_enc.npy is encrypted"),
    "bzip2": (archive(zipfile.ZIP_BZIP2, W_enc=member(header(), bytes(8))), "zip method 12"),
    "missing tensor": (spoiled(threshold=None), "no tensor threshold"),
    "W_skip": (spoiled(W_skip=np.zeros((24, 24), np.float32)), "W_skip, which a GemmaScopeNpz file never has"),
    "pickled": (spoiled(b_enc=np.array([{}] * 96, object)), "pickled"),
    "integers": (spoiled(b_enc=np.zeros(96, np.int32)), "dtype '<i4'"),
    "structured": (spoiled(b_enc=np.zeros(96, [("a", "<f4")])), "dtype"),
    "Fortran order": (spoiled(W_enc=np.asfortranarray(GOOD["W_enc"])), "Fortran"),
    "W_enc transposed": (spoiled(W_enc=GOOD["W_enc"].T.copy()), "shape"),
    "W_dec of another layer": (spoiled(W_dec=np.zeros((96, 25), np.float32)), "W_dec has shape [96, 25]"),
    "b_dec too long": (spoiled(b_dec=np.zeros(25, np.float32)), "b_dec has shape [25]"),
    "threshold two-dimensional": (spoiled(threshold=np.zeros((96, 1), np.float32)), "threshold has shape [96, 1]"),
    "three dimensions": (spoiled(W_enc=np.zeros((2, 3, 4), np.float32)), "1 or 2 dimensions"),
    "no dimension": (spoiled(b_dec=np.float32(1)), "1 or 2 dimensions"),
    "nothing in it": (spoiled(W_enc=np.zeros((0, 96), np.float32)), "each extent must be"),
    "NaN in b_enc": (spoiled(b_enc=np.full(96, np.nan, np.float32)), "b_enc has 96 values that are NaN"),
    "Inf in threshold": (spoiled(threshold=np.full(96, np.inf, np.float32)), "threshold has 96 values"),
    "float64 too large": (spoiled(b_enc=np.full(96, 1e300)), "b_enc has 96 values"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_bad_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        encoder_of(content)
    assert message in str(error.value) and str(error.value).startswith("params.npz: ")


BAD_HEADERS = {
    "another magic": member(header(), bytes(8)).replace(b"NUMPY", b"NUMPX"),
    "no magic": b"\x93NUMPX\x01\x00" + b" " * 100,
    "version 0": member(header(), bytes(8), 0),
    "version 9": member(header(), bytes(8), 9),
    "too short": b"\x93NUM",
    "length past the end": b"\x93NUMPY\x01\x00\xff\xff{}",
    "length over the limit": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}",
    "not a literal": member("__import__('os').abort()"),
    "not a dict": member("[1, 2]"),
    "missing key": member("{'descr': '<f4', 'shape': (2,)}", bytes(8)),
    "not UTF-8": b"\x93NUMPY\x03\x00\x02\x00\x00\x00\xff\xff",
    "deep nesting": member("(" * 20_000),
    "wide nesting": member("-" * 30_000 + "1"),
    "complex": member(header("<c8"), bytes(16)),
    "numpy type object": member(header(["<f4"]), bytes(8)),
    "shape negative": member(header(shape=(-2,)), bytes(8)),
    "shape of 2^63": member(header(shape=(2**63,)), bytes(8)),
    "shape of 2^200": member(header(shape=(2**200, 2)), bytes(8)),
    "shape float": member(header(shape=(2.0,)), bytes(8)),
    "shape True": member(header(shape=(True,)), bytes(4)),
    "shape a list": member(header(shape=[2]), bytes(8)),
    "too little data": member(header(shape=(3,)), bytes(8)),
    "too much data": member(header(shape=(1,)), bytes(8)),
    "order a number": member(header(order=0), bytes(8)),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("content", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_headers_are_refused(content: bytes, method: int) -> None:
    with pytest.raises(WeightsError):
        open_npz(archive(method, b_enc=content)).tensor("b_enc")


def test_a_good_hand_made_header_is_read() -> None:
    data = np.array([1.5, -2], np.float32).tobytes()
    for version in (1, 2, 3):
        file = open_npz(archive(b_enc=member(header(), data, version)))
        assert file.read(file.tensor("b_enc")).tolist() == [1.5, -2]


@pytest.mark.parametrize("length, read", [(65_535, True), (65_536, True), (65_537, False)])
def test_a_header_of_64_kib_is_read_and_a_longer_one_is_not(length: int, read: bool) -> None:
    data = np.array([1.5, -2], np.float32).tobytes()
    file = open_npz(archive(b_enc=member(header().ljust(length), data, 2)))
    if read:
        assert file.read(file.tensor("b_enc")).tolist() == [1.5, -2]
    else:
        with pytest.raises(WeightsError, match="b_enc has a header of 65537 bytes; at most 65536 are read"):
            file.tensor("b_enc")


# Where the fields of a local header stand.
LOCAL = {"flags": (6, 2), "method": (8, 2), "CRC-32": (14, 4), "packed size": (18, 4), "size": (22, 4)}


def with_local(content: bytes, **fields: int) -> bytes:
    """An archive whose first local header has other values than the directory."""
    data = bytearray(content)
    for name, value in fields.items():
        at, width = LOCAL[name]
        data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


@pytest.mark.parametrize("field, value", [("method", 8), ("CRC-32", 1), ("packed size", 7), ("size", 7)])
def test_a_local_header_that_says_something_else_than_the_directory(field: str, value: int) -> None:
    """Each field by itself; where the sizes are said to follow the data, the directory alone has them."""
    values = np.array([1.5, -2], np.float32)
    content = archive(b_enc=member(header(), values.tobytes()))
    with pytest.raises(WeightsError, match="b_enc.npy has another size, CRC-32 or compression by its own header"):
        open_npz(with_local(content, **{field: value})).tensor("b_enc")
    follows = with_local(content, **{field: value, "flags": 8})
    if field == "method":
        with pytest.raises(WeightsError, match="another size, CRC-32 or compression"):
            open_npz(follows).tensor("b_enc")
    else:
        assert np.array_equal(read_all(follows, "b_enc"), values)


def test_two_members_of_one_name_are_refused() -> None:
    with pytest.warns(UserWarning), pytest.raises(WeightsError, match="two members"):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as file:
            file.writestr("W_enc.npy", b"1")
            file.writestr("W_enc.npy", b"2")
        open_npz(target.getvalue())


@pytest.mark.parametrize("by", [1, 100, 1 << 20])
def test_a_directory_that_is_said_to_begin_too_late(tmp_path: Path, by: int) -> None:
    """zipfile takes members to begin as much earlier: before the file, where a file on disk cannot seek."""
    content = npz(GOOD)
    start = int.from_bytes(content[-6:-2], "little")
    place = tmp_path / "params.npz"
    place.write_bytes(content[:-6] + (start + by).to_bytes(4, "little") + content[-2:])
    with place.open("rb", buffering=0) as file, pytest.raises(WeightsError, match="W_enc.npy would begin before the file does"):
        Npz(cast(BinaryIO, file), "params.npz").tensor("W_enc")


@pytest.mark.parametrize("comment", [0, 1, 65_457, 65_458, 65_459, 65_460, 65_461, 65_535])
def test_a_directory_of_zip64_is_held_to_the_same_limit(comment: int) -> None:
    """Its size stands in a record of its own, which counts, wherever the comment puts it."""
    content = npz(GOOD)
    body, end = content[:-22], content[-22:-2] + comment.to_bytes(2, "little") + b" " * comment
    size, start = (int.from_bytes(content[at : at + 4], "little") for at in (-10, -6))

    def zip64(claimed: int) -> bytes:
        record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, len(GOOD), len(GOOD), claimed, start)
        return body + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body), 1) + end

    assert np.array_equal(encoder_of(zip64(size))[:96], GOOD["b_enc"])
    for claimed in (DIRECTORY_LIMIT + 1, 1 << 30, 1 << 62):
        with pytest.raises(WeightsError, match=f"its directory claims {claimed} bytes"):
            Npz(io.BytesIO(zip64(claimed)), "f")


def test_a_tensor_that_is_not_there() -> None:
    with pytest.raises(WeightsError, match="f: it has no tensor W_skip; it has W_enc, W_dec, b_enc, b_dec, threshold"):
        Npz(io.BytesIO(npz(GOOD)), "f").tensor("W_skip")


def test_a_directory_that_claims_gigabytes_is_refused() -> None:
    content = bytearray(npz(GOOD))
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = (2**31).to_bytes(4, "little")
    with pytest.raises(WeightsError, match="directory claims 2147483648"):
        open_npz(bytes(content))


@pytest.mark.parametrize("start", [0, 0x06054B50])
@pytest.mark.parametrize("size, refused", [(1 << 20, False), ((1 << 20) + 1, True)])
def test_a_directory_of_more_than_1_mib_is_refused(start: int, size: int, refused: bool) -> None:
    """Also where the end record's own bytes look like the beginning of another one."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, start, 0)
    with pytest.raises(WeightsError) as error:  # there is no directory at all
        open_npz(bytes(1000) + end)
    assert ("directory claims 1048577 bytes; at most 1048576 are read" in str(error.value)) == refused


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_damage_anywhere_is_found_or_harmless(data: st.DataObject) -> None:
    """Bytes overwritten at random: the numbers that a run reads are right, or there is an error."""
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(max(0, len(content) - 700), len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    try:
        assert np.array_equal(encoder_of(bytes(content)), ENCODER)
    except WeightsError:
        pass


CONTENT = npz(layer_arrays(5, 4, 6))
ENCODER = encoder_of(CONTENT)


def test_extra_fields_of_others_say_nothing_of_the_size() -> None:
    """A local header may have fields of other programs' behind its name; only zip64's tells sizes, and only where they are left to it."""
    values = np.arange(6, dtype=np.float32)
    array = io.BytesIO()
    np.save(array, values)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        info = zipfile.ZipInfo("b_enc.npy")
        info.extra = b"\xfe\xca" + (24).to_bytes(2, "little") + bytes(range(24))
        file.writestr(info, array.getvalue())
    file_read = open_npz(target.getvalue())
    assert np.array_equal(file_read.read(file_read.tensor("b_enc")), values)
