# SPDX-License-Identifier: MIT OR Apache-2.0
"""The reader of what torch.save writes: what it reads, bit for bit, and what it refuses, by name and without running it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oracle.weights import npz, pickled, tensors
from oracle.weights.tensors import WeightsError
from oracle.weights.torchzip import TorchZip
from tests.support.bad_torchfiles import BAD, BOMBS, DATA, GOOD
from tests.support.hub import Hub
from tests.support.places import ROOT
from tests.support.process import variables
from tests.support.torchfiles import Parameter, Slice, described, parameter, storage, tensor, text, torch_file, zipped
from tests.weights.test_every_way import ways

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def opened(content: bytes) -> TorchZip:
    return TorchZip(io.BytesIO(content), "sae.pt")


def read_tensor(file: TorchZip, name: str) -> np.ndarray | int:
    """All of a tensor, of its own shape."""
    header = file.tensor(name)
    if header.is_integer:
        return file.integer(header)
    if len(header.shape) < 2:
        return file.read(header)
    blocks = np.concatenate([block.copy() for block in file.blocks(header)])
    assert blocks.shape == header.lying
    some = np.arange(0, len(blocks), 3)
    assert all(np.array_equal(rows, blocks[part], equal_nan=True) for part, rows in file.rows(header, some))
    values = blocks.T if header.transposed else blocks
    assert np.array_equal(file.read(header), values, equal_nan=True)
    return values


def read_everything(content: bytes) -> dict[str, np.ndarray | int]:
    file = opened(content)
    return {name: read_tensor(file, name) for name in file.names}


def same_bits(read: np.ndarray | int, right: np.ndarray) -> bool:
    """Whether they are the same float32, or the same integer."""
    if right.dtype.kind in "iub":
        return type(read) is int and read == int(right.reshape(()))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = right.astype(np.float32)
    assert isinstance(read, np.ndarray) and read.dtype == np.float32
    return read.shape == expected.shape and read.tobytes() == expected.tobytes()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype, shape = draw(st.sampled_from(FLOATS)), tuple(draw(st.lists(st.integers(1, 30), max_size=3)))
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(dtype)
    return values.T if len(shape) == 2 and draw(st.booleans()) else values


INTEGERS = st.sampled_from([np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]).flatmap(
    lambda dtype: st.integers(0, 1) if dtype is np.bool_ else st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    .map(lambda number: np.array(number, dtype))
)  # fmt: skip
SLICES = st.builds(Slice, arrays(), st.integers(0, 300), st.integers(0, 300))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)
NAMES = st.sampled_from(["W_enc", "b_enc", "encoder.weight", "encoder.bias", "k", "threshold", "cfg", "gate"])


def right_of(value: Any) -> np.ndarray | None:
    """The numbers of an entry that is a tensor."""
    return value if isinstance(value, np.ndarray) else value.values if isinstance(value, (Slice, Parameter)) else None


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(NAMES, arrays() | INTEGERS | SLICES | st.builds(Parameter, arrays()) | PLAIN), st.booleans())
def test_reads_what_was_written(written: dict[str, Any], ordered: bool) -> None:
    content = torch_file(OrderedDict(written) if ordered else written)
    file = opened(content)
    right = {name: right_of(value) for name, value in written.items()}
    assert file.names == [name for name, values in right.items() if values is not None]
    assert file.values == {name: written[name] for name, values in right.items() if values is None}
    for name in file.names:
        assert same_bits(read_tensor(file, name), right[name])


def test_every_bfloat16_and_every_float16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        right = bits.view(dtype)
        read = read_everything(torch_file({"W": right}))["W"]
        nan = np.isnan(right.astype(np.float32))
        assert isinstance(read, np.ndarray) and np.all(np.isnan(read[nan])) and same_bits(read[~nan], right[~nan])


def test_a_transposed_tensor_lies_as_it_lies() -> None:
    """An nn.Linear's weight that was assigned a transpose: the rows that lie in the file are the tensor's columns."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    file = opened(torch_file({"W": values.T, "flat": values[:1].T, "plain": values}))
    header = file.tensor("W")
    assert header.transposed and header.shape == (4, 3) and header.lying == (3, 4)
    assert np.array_equal(next(file.blocks(header)), values)
    assert [rows.tolist() for _, rows in file.rows(header, np.array([2]))] == [values[2:].tolist()]
    assert not file.tensor("flat").transposed and not file.tensor("plain").transposed  # strides along an axis of one say nothing


def test_opcodes_that_pickle_writes_for_short_and_for_shared_things() -> None:
    """One item for a list or a dict; places of one byte and of four."""
    pickle = b"\x80\x02}(" + text("a") + b"]q\x07" + b"K\x05a" + text("b") + b"h\x07" + text("c") + b"}r\0\1\0\0" + text("d") + b"h\x07s"
    file = opened(zipped(pickle + text("e") + b"j\0\1\0\0u."))
    assert file.names == [] and file.values == {"a": [5], "b": [5], "c": {"d": [5]}, "e": {"d": [5]}}


def test_how_much_is_read_beside_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth else 1

    assert opened(torch_file({"a": nested(32)})).values == {"a": nested(32)}
    with pytest.raises(WeightsError, match="has under 'a' more than is read"):
        opened(torch_file({"a": nested(33)}))
    monkeypatch.setattr(pickled, "OPCODE_LIMIT", 100)
    for n_values, fits in ((92, True), (93, False)):  # and eight opcodes around them
        if fits:
            assert opened(torch_file({"a": [None] * n_values})).values == {"a": [None] * n_values}
        else:
            with pytest.raises(WeightsError, match="has more than 100 opcodes"):
                opened(torch_file({"a": [None] * n_values}))
    for n_values, fits in ((49, True), (50, False)):  # in a list that stands there twice
        content = zipped(b"\x80\x02}" + text("a") + b"](" + b"N" * n_values + b"eq\0h\0\x86s.")
        if fits:
            assert opened(content).values == {"a": ([None] * n_values,) * 2}
        else:
            with pytest.raises(WeightsError, match="more than is read: 100 values"):
                opened(content)


def test_tensors_that_share_a_storage() -> None:
    shared = storage("0", "FloatStorage", 12)
    file = opened(zipped(described(a=tensor(shared, (2, 4), (4, 1), 4), b=tensor(shared, (4, 3), (1, 4)), c=parameter(tensor(shared, (), (), 11))), {"0": DATA}))
    values = GOOD["W"]
    assert file.names == ["a", "b", "c"] and file.tensor("b").transposed
    for name, right in (("a", values[1:]), ("b", values.T), ("c", values[2, 3])):
        assert same_bits(read_tensor(file, name), np.asarray(right))


def test_small_blocks_and_a_large_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands before and behind a tensor goes through the checksum in pieces."""
    monkeypatch.setattr(npz, "BLOCK_BYTES", 100)
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 40)
    monkeypatch.setattr(tensors, "MIN_BLOCK_ROWS", 3)
    values = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    content = torch_file({"W": Slice(values, 1000, 333)})
    assert same_bits(read_everything(content)["W"], values)
    for damaged in (b"\x5a" * 4, b"\xa5" * 4):
        at = content.index(damaged) + 2
        with pytest.raises(WeightsError, match="sae.pt: W has CRC-32 .* the file is damaged; delete it and fetch it again"):
            read_everything(content[:at] + b"\0" + content[at + 1 :])


def test_a_member_that_is_another_by_its_own_header_shows_before_its_numbers_are_read() -> None:
    file = opened(torch_file(GOOD).replace(b"archive/data/0", b"archive/data/7", 1))
    with pytest.raises(WeightsError, match="sae.pt: archive/data/0 cannot be read: File name in directory"):
        file.tensor("W")


def test_who_leaves_early_reads_no_more() -> None:
    class Counting(io.BytesIO):
        count = 0

        def readinto(self, view: Any) -> int:
            self.count += len(view)
            return super().readinto(view)

    reader = Counting(torch_file({"W": Slice(np.zeros((1000, 1024), np.float32), 0, 1_000_000)}))
    blocks = TorchZip(reader, "f").blocks(TorchZip(reader, "f").tensor("W"))
    next(blocks)
    blocks.close()
    assert reader.count < 2 * tensors.BLOCK_BYTES


def test_an_archive_without_byteorder_is_of_an_older_torch_and_one_without_checksums_is_refused() -> None:
    assert same_bits(read_everything(torch_file(GOOD, byteorder=None, root="some folder"))["W"], GOOD["W"])
    content = torch_file(GOOD, byteorder=None)
    crc = zlib.crc32(DATA).to_bytes(4, "little")
    with pytest.raises(WeightsError, match="says 00000000: the file is damaged, or it was written without CRC-32s"):
        read_everything(content.replace(crc, bytes(4)))


def test_tensors_that_are_not_there_or_are_something_else() -> None:
    file = opened(torch_file({**GOOD, "k": np.array(3), "t": np.float32(0.5)[...], "cfg": {}}))
    with pytest.raises(WeightsError, match="sae.pt: it has no tensor cfg; it has W, b, k, t"):
        file.tensor("cfg")
    for method, name, said in (
        (file.integer, "W", "W is of float32, where an integer has to be"),
        (file.read, "k", "k is of int64, where floating-point numbers have to be"),
        (lambda header: list(file.blocks(header)), "k", "k is of int64, where floating-point"),
        (lambda header: list(file.blocks(header)), "t", "t is a single number, where rows have to be"),
        (lambda header: list(file.rows(header, np.array([0]))), "t", "t is a single number, where rows have to be"),
    ):
        with pytest.raises(WeightsError, match=f"sae.pt: {said}"):
            method(file.tensor(name))


@pytest.mark.parametrize("damaged", [False, True])
def test_every_way_that_a_file_comes_by(hub: Hub, tmp_path: Path, damaged: bool) -> None:
    rng = np.random.default_rng(7)
    written = {
        "W_enc": rng.standard_normal((300, 700)).astype(ml_dtypes.bfloat16).T,
        "W_dec": rng.standard_normal((40, 500)).astype(np.float32),
        "b_enc": Slice(rng.standard_normal(700).astype(np.float16), 90_000, 30_000),
        "k": np.array(64),
    }
    content = torch_file(written)
    at = content.index(written["W_dec"].tobytes()) + 77
    if damaged:
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    seen = []
    for way, file in ways(hub, tmp_path, "sae.pt", content):
        seen.append(way)
        torch_zip = TorchZip(file.reader, file.label)
        for name, value in written.items():
            if damaged and name == "W_dec":
                with pytest.raises(WeightsError, match="W_dec has CRC-32"):
                    read_tensor(torch_zip, name)
            else:
                assert same_bits(read_tensor(torch_zip, name), right_of(value)), way
    assert seen == ["disk", "Range", "folder", "cache"]


# --- what is wrong with a file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_bad_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        read_everything(content)
    said = str(error.value)
    assert message in said and said.startswith("sae.pt: ") and said.isprintable() and len(said) < 600, said


IN_ONE_PROCESS = """
import re, sys, time
from pathlib import Path
from oracle.weights.tensors import WeightsError
from oracle.weights.torchzip import TorchZip
def unpickled(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen"):
        sys.exit(f"{event} {arguments}")
sys.addaudithook(unpickled)
for place in sorted(Path(sys.argv[1]).iterdir(), key=lambda place: int(place.name)):
    began = time.monotonic()
    try:
        with place.open("rb", buffering=0) as reader:
            file = TorchZip(reader, "f")
            for name in file.names:
                tensor = file.tensor(name)
                if len(tensor.shape) < 2:
                    file.integer(tensor) if tensor.is_integer else file.read(tensor)
                else:
                    for block in file.blocks(tensor):
                        pass
        said = "read"
    except WeightsError as error:
        said = str(error)
    print(f"{time.monotonic() - began:.2f} {said}")
# The process's own peak; getrusage's, after a fork, counts what the tests themselves hold.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def test_bad_files_take_little_memory_and_time(tmp_path: Path) -> None:
    """All of them in one process: under 240 MiB with what Python and NumPy take, under 5 s each, and nothing is unpickled."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for number, (content, _) in enumerate(BAD.values()):
        (folder / str(number)).write_bytes(content)
    ran = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS, str(folder)], capture_output=True, text=True, timeout=120, env=variables())
    assert ran.returncode == 0, ran.stderr
    *lines, peak = ran.stdout.splitlines()
    assert int(peak) <= 240 and len(lines) == len(BAD) >= 40 + len(BOMBS)
    for line, (name, (_, message)) in zip(lines, BAD.items()):
        seconds, said = line.split(" ", 1)
        assert float(seconds) < 5 and message in said, (name, line)


def test_the_reader_imports_no_pickle() -> None:
    for module in ("torchzip", "pickled", "npz"):
        source = (ROOT / f"oracle/weights/{module}.py").read_text()
        assert not re.search(r"^\s*(import|from)\s+_?(c?[pP]ickle|marshal|shelve|torch)\b|\b(eval|exec|getattr|__import__)\(", source, re.MULTILINE)


# --- anything at all --------------------------------------------------------------------------------------------------

ENTRIES = {"W": GOOD["W"].T, "b": Slice(GOOD["b"], 2, 3), "k": np.array(5), "cfg": {"name": "x", "list": [1, 2.5, None]}}
CONTENT = torch_file(ENTRIES)
VALUES = read_everything(CONTENT)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(CONTENT)) | st.just(0))
def test_damage_anywhere_is_found_or_harmless(changes: list[tuple[int, int]], cut: int) -> None:
    """Bytes overwritten, and the end cut off: every number that is read is right, or there is an error."""
    content = bytearray(CONTENT)
    for at, value in changes:
        content[at] = value
    try:
        read = read_everything(bytes(content[: len(content) - cut]))
    except WeightsError as error:
        assert str(error).isprintable()
    else:
        assert read.keys() == VALUES.keys() and all(np.array_equal(read[name], VALUES[name]) for name in VALUES)


PICKLE = CONTENT[CONTENT.index(b"\x80\x02}") :]
PICKLE = PICKLE[: PICKLE.index(b"PK\x07\x08")]


def numbers_or_an_error(pickle: bytes) -> None:
    try:
        for read in read_everything(zipped(pickle, {"0": DATA, "1": DATA, "2": bytes(8)})).values():
            assert type(read) is int or isinstance(read, np.ndarray) and read.dtype == np.float32
    except WeightsError as error:
        assert str(error).isprintable() and len(str(error)) < 1200


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(2, len(PICKLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_pickle_of_a_whole_archive(changes: list[tuple[int, int]]) -> None:
    pickle = bytearray(PICKLE)
    for at, value in changes:
        pickle[at] = value
    numbers_or_an_error(bytes(pickle))


PIECES = st.sampled_from([
    *(bytes([code]) for code in range(256)), *pickled._OPCODES, b"K\0", b"K\1", b"K\x0c", b"J\xff\xff\xff\xff", b"q\0", b"q\1", b"h\0", b"h\1", b"X\1\0\0\0a",
    *(f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode() for name in sorted(pickled.NAMES)), b"K\3K\4\x86", b"K\4K\1\x86", b")",
    storage("0", "FloatStorage", 12), tensor(storage("0", "FloatStorage", 12), (3, 4), (4, 1)), b"ccollections\nOrderedDict\n)R",
])  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=100))
def test_any_opcodes(opcodes: bytes) -> None:
    for pickle in (opcodes, b"\x80\x02" + opcodes + b".", b"\x80\x02}" + b"X\1\0\0\0W" + opcodes + b"s."):
        numbers_or_an_error(pickle)
