# SPDX-License-Identifier: MIT OR Apache-2.0
"""The reader of .safetensors files: what it reads, bit for bit, and the headers that it refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.tensors import WeightsError
from tests.support import worlds
from tests.support.hub import Hub
from tests.support.places import ROOT
from tests.support.process import run
from tests.support.small_scope import npz

GOOD = {"W_enc": np.arange(12, dtype=np.float32).reshape(3, 4), "b_enc": np.ones(3, np.float32)}


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header: JSON, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def read_everything(content: bytes) -> dict[str, np.ndarray]:
    """All that a run could ask of a file."""
    file = Safetensors(io.BytesIO(content), "layer_0.safetensors")
    arrays = {}
    for name in file.names:
        tensor = file.tensor(name)
        if len(tensor.shape) == 1:
            arrays[name] = file.read(tensor)
        else:
            arrays[name] = np.concatenate([block.copy() for block in file.blocks(tensor)])
    return arrays


BAD = {
    "empty": (b"", "truncated"),
    "seven bytes": (b"\0" * 7, "it has 7 bytes; truncated"),
    "a header past the end": (packed({}, length=100), "truncated"),
    "a header of 2^63 bytes": (packed({}, length=2**63), "limit"),
    "a header of 2^64 - 1 bytes": (packed({}, length=2**64 - 1), "limit"),
    "a header of the format's limit": (packed({}, length=100_000_000), "its header claims 100000000 bytes, but the file ends 2 bytes on"),
    "a header past the format's limit": (packed({}, length=100_000_001), "limit"),
    "a header larger than is read": (packed(b" " * (4 * 1024 * 1024) + b"{}"), "at most"),
    "no header": (packed(b""), "not readable JSON"),
    "no JSON": (packed(b"{'a': 1}"), "not readable JSON"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not readable JSON"),
    "a list": (packed([]), "not a JSON object"),
    "NaN": (packed(b'{"a": NaN}'), "no number"),
    "duplicate keys": (packed(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [], "data_offsets": [0, 0]}}'), "twice"),
    "a tensor twice": (packed(b'{"a": 1, "a": 2}'), "twice"),
    "deep nesting": (packed(b"[" * 100_000), "not readable JSON"),
    "a huge integer": (packed(b'{"a": ' + b"9" * 100_000 + b"}"), "not"),
    "no entry, and a long name": (packed({"\xe9" * 500: 1}), "entry for '" + "\\xe9" * 80 + "' is not of the form"),
    "no dtype": (packed({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), "not of the form"),
    "offsets of one": (packed({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}), "not of the form"),
    "a negative offset": (packed({"a": entry(-4, 0, [1])}), "not of the form"),
    "a fractional offset": (packed({"a": {**entry(0, 4), "data_offsets": [0.0, 4.0]}}, b"\0" * 4), "not of the form"),
    "an offset that is true": (packed({"a": {**entry(0, 4), "data_offsets": [False, True]}}, b"\0"), "not of the form"),
    "an offset of 2^63": (packed({"a": entry(0, 2**63, [1])}), "not of the form"),
    "offsets past the end": (packed({"a": entry(0, 400)}, b"\0" * 4), "truncated"),
    "reversed offsets": (packed({"a": entry(8, 4, [1])}, b"\0" * 8), "ends before it begins"),
    "overlapping": (packed({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "overlap"),
    "a gap": (packed({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12), "leave 4 bytes"),
    "bytes before the first": (packed({"a": entry(4, 8)}, b"\0" * 8), "leave 4 bytes"),
    "bytes behind the last": (packed({"a": entry(0, 4)}, b"\0" * 5), "stands behind"),
    "integers": (packed({"a": entry(0, 8, [2], "I32")}, b"\0" * 8), "F32, F16 and BF16 are read, and I64 and I32 of one number"),
    "an integer as a vector": (packed({"a": entry(0, 4, [1], "I32")}, b"\0" * 4), "a is of int32, where floating-point numbers have to be"),
    "an integer as rows": (packed({"a": entry(0, 8, [1, 1], "I64")}, b"\0" * 8), "a is of int64, where floating-point numbers have to be"),
    "no known dtype": (packed({"a": entry(0, 4, dtype="F" * 500)}, b"\0" * 4), "F32, F16 and BF16"),
    "a shape that does not fit": (packed({"a": entry(0, 8, [3])}, b"\0" * 8), "takes 12"),
    "a shape that overflows": (packed({"a": entry(0, 8, [2**24, 2**24, 2**24])}, b"\0" * 8), "takes"),
    "an extent of 2^62": (packed({"a": entry(0, 8, [2**62, 4])}, b"\0" * 8), "dimensions"),
    "an extent of 0": (packed({"a": entry(0, 0, [0, 5])}), "dimensions"),
    "no rows": (packed({"a": entry(0, 4, [])}, b"\0" * 4), "a is a single number, where rows have to be"),
    "no dimension, and two numbers": (packed({"a": entry(0, 8, [])}, b"\0" * 8), "takes 4"),
    "a hundred dimensions": (packed({"a": entry(0, 4, [2**62] * 100)}, b"\0" * 4), "dimensions"),
    "four dimensions": (packed({"a": entry(0, 4, [1, 1, 1, 1])}, b"\0" * 4), "dimensions"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_bad_headers(content: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        read_everything(content)
    said = str(error.value)
    assert message in said and said.startswith("layer_0.safetensors: ") and "\n" not in said and len(said) < 600


@pytest.mark.parametrize("length, read", [(4_194_303, True), (4_194_304, True), (4_194_305, False)])
def test_a_header_of_4_mib_is_read_and_a_longer_one_is_not(length: int, read: bool) -> None:
    content = packed(b"{}".ljust(length))
    if read:
        assert read_everything(content) == {}
    else:
        with pytest.raises(WeightsError, match="its header has 4194305 bytes; at most 4194304 are read"):
            read_everything(content)


def test_a_tensor_that_is_not_there() -> None:
    with pytest.raises(WeightsError, match="^f: it has no tensor W_skip; it has W_enc, b_enc$"):
        Safetensors(io.BytesIO(worlds.to_safetensors(GOOD)), "f").tensor("W_skip")


BOMBS = """
import io, re, sys, zipfile
sys.path.insert(0, sys.argv[1])
from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.tensors import WeightsError
size = 4 * 1024 * 1024
headers = [b"{" + b'"a":{},' * (size // 7 - 2) + b'"b":{}}', b"[" + b"{}," * (size // 3 - 2) + b"{}]", b"[" * size,
           b"[" + b"0," * (size // 2 - 2) + b"0]", b'{"__metadata__": "' + b"x" * (size - 40) + b'"}',
           b"{" + b",".join(b'"%x":0' % n for n in range(size // 12)) + b"}", b'{"a": ' + b"9" * (size - 40) + b"}"]
for header in headers:
    try:
        file = Safetensors(io.BytesIO(len(header).to_bytes(8, "little") + header), "bomb")
        print("read", list(file.names)[:2])
    except WeightsError as error:
        assert len(str(error)) < 600
def npz(header, method, claimed):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("W_enc.npy", b"\\x93NUMPY\\x02\\x00" + claimed.to_bytes(4, "little") + header)
    return archive.getvalue()

def filled(start, part, end):
    return start + part * ((64_000 - len(start + end)) // len(part)) + end

good = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576)}"
headers = [filled(b"", b"(", b""), filled(b"[", b"0,", b"]"), filled(b"", b"-", b"1"), filled(b"{", b"'a':{},", b"}"), filled(good, b" ", b""),
           filled(b"{'descr': '", b"x", b"'}"), filled(b"", b"9", b""), filled(b"1", b"**9", b""), filled(b"{'shape': (", b"1,", b")}")]
for header, claimed in [(header, len(header)) for header in headers] + [(good, 2**31), (good, 2**32 - 1)]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        try:
            file = Npz(io.BytesIO(npz(header, method, claimed)), "bomb")
            next(iter(file.blocks(file.tensor("W_enc"))))
            print("read")
        except WeightsError as error:
            assert len(str(error)) < 600
# The process's own peak; getrusage's, after a fork, counts what the tests themselves hold.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def test_bombs_take_little_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", BOMBS, str(ROOT)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[:-1] == ["read []"] and int(lines[-1]) <= 200 + 40, lines  # beside what Python and NumPy take


def test_a_bad_file_is_exit_4(hub: Hub, tmp_path: Any) -> None:
    world = worlds.make("PltBundle", n_layers=1)
    content = bytearray(world.files[worlds.OWN_REPO]["layer_0.safetensors"])
    for name, bad in (("cut", bytes(content[:-1])), ("bomb", packed(b"[" * 100_000)), ("html", b"<html>" * 100)):
        world.files[worlds.OWN_REPO]["layer_0.safetensors"] = bad
        world.add_to(hub)
        ran = run("--mirror", hub.url, *world.arguments, "-o", str(tmp_path / name), "--quiet")
        assert ran.returncode == 4 and len(ran.stderr.splitlines()) == 1 and "layer_0.safetensors" in ran.stderr, ran.stderr


def test_every_bfloat16_and_every_float16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype, name in ((ml_dtypes.bfloat16, "BF16"), (np.float16, "F16")):
        content = packed({"a": entry(0, 1 << 17, [256, 256], name)}, bits.astype("<u2").tobytes())
        read = read_everything(content)["a"].reshape(-1)
        expected = bits.view(dtype).astype(np.float32)
        nan = np.isnan(expected)
        assert np.array_equal(read[~nan].view(np.uint32), expected[~nan].view(np.uint32)) and np.all(np.isnan(read[nan]))


NUMBERS = {
    "F64": np.float64(1 / 3), "F32": np.float32(-0.1), "F16": np.float16(0.3), "BF16": ml_dtypes.bfloat16(0.7),
    "I64": np.int64(-(2**63)), "I32": np.int32(2**31 - 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [[], [1]])
def test_one_number(dtype: str, shape: list[int]) -> None:
    """Of no dimension or of one: a float rounded once, an integer exactly, and neither as the other."""
    number = NUMBERS[dtype]
    data = number.tobytes()
    file = Safetensors(io.BytesIO(packed({"k": entry(0, len(data), shape, dtype)}, data)), "f")
    tensor = file.tensor("k")
    if dtype in ("I64", "I32"):
        assert file.integer(tensor) == int(number) and type(file.integer(tensor)) is int
        with pytest.raises(WeightsError, match="f: k is of int.., where floating-point numbers have to be"):
            file.read(tensor)
    else:
        value = file.read(tensor)
        assert value.shape == tuple(shape) and value.dtype == np.float32 and value.reshape(1)[0] == np.float32(number)
        with pytest.raises(WeightsError, match="f: k is of b?float.., where an integer has to be"):
            file.integer(tensor)


def test_float64_is_rounded_once() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4))
    content = packed({"a": entry(0, values.nbytes, [3, 4], "F64")}, values.astype("<f8").tobytes())
    assert np.array_equal(read_everything(content)["a"], values.astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_reads_what_the_package_wrote(data: st.DataObject, n_rows: int, n_columns: int, dtype: str) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = worlds.rounded(rng.standard_normal((n_rows, n_columns)).astype(np.float32), dtype)
    content = worlds.to_safetensors({"W": values, "b": values[0]}, dtype)
    read = read_everything(content)
    assert np.array_equal(read["W"], values) and np.array_equal(read["b"], values[0])
    file = Safetensors(io.BytesIO(content), "f")
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, n_rows - 1), min_size=1))), np.int64)
    parts = [(part, rows.copy()) for part, rows in file.rows(file.tensor("W"), wanted)]
    assert np.array_equal(np.concatenate([part for part, _ in parts]), wanted)
    assert np.array_equal(np.concatenate([rows for _, rows in parts]), values[wanted])


GOOD_FILES = {".safetensors": worlds.to_safetensors(GOOD), ".npz": npz(GOOD)}


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(GOOD_FILES)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4), st.integers(0, 20))
def test_mutated_files_give_an_error_or_floats(suffix: str, changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(GOOD_FILES[suffix])
    for place, value in changes:
        content[place % len(content)] = value
    content = content[: len(content) - cut]
    try:
        if suffix == ".npz":
            file = Npz(io.BytesIO(bytes(content)), "f")
            for name in file.names:
                tensor = file.tensor(name)
                assert (file.read(tensor) if len(tensor.shape) == 1 else next(file.blocks(tensor))).dtype == np.float32
        else:
            assert all(array.dtype == np.float32 for array in read_everything(bytes(content)).values())
    except WeightsError as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes(content: bytes) -> None:
    for made in (content, packed(content)):
        try:
            read_everything(made)
        except WeightsError:
            pass
