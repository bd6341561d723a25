# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the readers share: how long a row may be, and how many make a block."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from oracle.weights import npz, safetensors, tensors
from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.tensors import Section, Tensor, TensorFile, WeightsError, rows_at_once
from tests.support import worlds


def opened(kind: str, values: np.ndarray) -> tuple[TensorFile, Tensor]:
    arrays = {"W_enc": values}
    file: TensorFile = (
        Npz(io.BytesIO(worlds.to_npz(arrays, kind.removeprefix("npz "))), "f") if kind.startswith("npz")
        else Safetensors(io.BytesIO(worlds.to_safetensors(arrays, kind)), "f")
    )  # fmt: skip
    return file, file.tensor("W_enc")


KINDS = ["float32", "float16", "bfloat16", "npz float16", "npz float32", "npz float64"]


@pytest.mark.parametrize("kind, shape", [*((kind, (3, 8)) for kind in KINDS), *((kind, (2, 2, 4)) for kind in KINDS[:3])])
def test_rows_past_their_limit_are_refused(kind: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By what a row takes in float32, whatever it takes in the file; nothing is read, or set aside, for one that is too long."""
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    file, tensor = opened(kind, values)
    row_bytes = values[0].size * 4
    monkeypatch.setattr(tensors, "ROW_BYTES_LIMIT", row_bytes)
    assert np.array_equal(np.concatenate([block.copy() for block in file.blocks(tensor)]), values)
    assert [rows.tolist() for _, rows in file.rows(tensor, np.array([1]))] == [values[1:2].tolist()]
    monkeypatch.setattr(tensors, "ROW_BYTES_LIMIT", row_bytes - 1)
    for read in (lambda: list(file.blocks(tensor)), lambda: list(file.rows(tensor, np.array([1])))):
        with pytest.raises(WeightsError, match="f: W_enc has shape .*, with rows too long to be read"):
            read()


@pytest.mark.parametrize("n_columns, fits", [(1 << 22, True), ((1 << 22) + 1, False)])
def test_the_limit_is_16_mib(tmp_path: Path, n_columns: int, fits: bool) -> None:
    """In a file that has nothing but its header on disk."""
    header = b'{"W_enc": {"dtype": "F32", "shape": [1, %d], "data_offsets": [0, %d]}}' % (n_columns, 4 * n_columns)
    place = tmp_path / "sparse.safetensors"
    with place.open("wb") as written:
        written.write(len(header).to_bytes(8, "little") + header)
        written.truncate(8 + len(header) + 4 * n_columns)
    with place.open("rb", buffering=0) as reader:
        file = Safetensors(cast(io.BytesIO, reader), "f")
        if fits:
            assert next(file.blocks(file.tensor("W_enc"))).shape == (1, n_columns)
        else:
            with pytest.raises(WeightsError, match="rows too long"):
                next(file.blocks(file.tensor("W_enc")))


@pytest.mark.parametrize("kind", ["float32", "npz float32"])
@pytest.mark.parametrize("shape, fits", [((5,), True), ((5, 5), True), ((6,), False), ((6, 1), False), ((1, 6), False)])
def test_extents_past_their_limit_are_refused(kind: str, shape: tuple[int, ...], fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (npz, safetensors):
        monkeypatch.setattr(module, "EXTENT_LIMIT", 5)
    if fits:
        assert opened(kind, np.zeros(shape, np.float32))[1].shape == shape
    else:
        with pytest.raises(WeightsError, match=r"W_enc has shape .* 1 to 5"):
            opened(kind, np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_a_mebibyte_of_float32_or_eight_rows(kind: str) -> None:
    for n_columns, n_rows in ((1, 262_144), (256, 1024), (1000, 262), (1 << 15, 8), (1 << 17, 8)):
        dtype = np.dtype({"bfloat16": "<u2"}.get(kind) or kind.removeprefix("npz "))
        assert rows_at_once(Tensor("W_enc", dtype, kind == "bfloat16", (9, n_columns), 0)) == n_rows


def test_a_transposed_tensor_has_the_rows_that_lie_in_the_file() -> None:
    tensor = Tensor("W_enc", np.dtype("<f2"), False, (5, 3), 0, transposed=True)
    assert (tensor.lying, tensor.row_shape, tensor.row_bytes, tensor.n_bytes) == ((3, 5), (5,), 10, 30)
    plain = Tensor("W_enc", np.dtype("<f4"), False, (5, 3, 2), 0)
    assert (plain.lying, plain.row_shape, plain.row_bytes, plain.n_bytes) == ((5, 3, 2), (3, 2), 24, 120)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_end_where_the_rows_do(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 40)
    monkeypatch.setattr(tensors, "MIN_BLOCK_ROWS", 3)
    for n_rows in (1, 2, 3, 4, 6, 7):
        values = np.arange(n_rows * 4, dtype=np.float32).reshape(n_rows, 4)
        file, tensor = opened(kind, values)
        blocks = [block.copy() for block in file.blocks(tensor)]
        assert np.array_equal(np.concatenate(blocks), values) and [len(block) for block in blocks[:-1]] == [3] * ((n_rows - 1) // 3)
        for wanted in ([0], [n_rows - 1], list(range(n_rows)), list(range(0, n_rows, 2)), []):
            parts = [(part.tolist(), rows.copy()) for part, rows in file.rows(tensor, np.array(wanted, int))]
            assert sum((part for part, _ in parts), []) == wanted
            assert all(np.array_equal(rows, values[part]) for part, rows in parts)


class Advised(io.BytesIO):
    """Takes down what it is told will be read."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.spans: list[tuple[int, int]] = []

    def advise(self, start: int, stop: int) -> None:
        self.spans.append((start, stop))


def test_what_is_read_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a tensor; of single rows those that lie near each other, and no more of them than make a block."""
    values = np.arange(160, dtype=np.float32).reshape(40, 4)
    content = worlds.to_safetensors({"b_enc": values[0], "W_enc": values})
    start = content.index(values.tobytes())
    reader = Advised(content)
    file = Safetensors(reader, "f")
    tensor = file.tensor("W_enc")
    assert reader.spans == [] and len(list(file.blocks(tensor))) == 1 and reader.spans == [(start, start + 640)]
    monkeypatch.setattr(safetensors, "GAP_BYTES", 64)
    for at_once, parts in ((40, [(0, 1, 5, 6), (20,), (39,)]), (6, [(0, 1, 5), (6,), (20,), (39,)]), (1, [(0,), (1,), (5,), (6,), (20,), (39,)])):
        reader.spans.clear()
        monkeypatch.setattr(safetensors, "rows_at_once", lambda _, at_once=at_once: at_once)
        assert [tuple(part.tolist()) for part, _ in file.rows(tensor, np.array([0, 1, 5, 6, 20, 39]))] == parts
        assert reader.spans == [(start + 16 * part[0], start + 16 * part[-1] + 16) for part in parts]
    archive = worlds.to_npz({"b_enc": values[0], "W_enc": values})
    npz_reader = Advised(archive)
    npz_file = Npz(npz_reader, "f")
    assert len(list(npz_file.blocks(npz_file.tensor("W_enc")))) == 1
    (first, last), = npz_reader.spans
    assert archive[first : first + 6] == b"\x93NUMPY" and archive[last - 640 : last] == values.tobytes()


def test_a_section_is_read_in_its_own_place() -> None:
    """Though others move the reader in between; and never past its end."""
    reader = io.BytesIO(bytes(range(100)))
    first, second = Section(reader, 10, 5), Section(reader, 50, 3)
    for section, count, expected in ((first, 2, [10, 11]), (second, 2, [50, 51]), (first, 9, [12, 13, 14]), (second, 9, [52]), (first, 1, []), (second, 1, [])):
        view = bytearray(count)
        read = section.readinto(memoryview(view))
        assert list(view[:read]) == expected


def test_what_a_message_lists() -> None:
    assert tensors.listed([]) == "none" and tensors.listed(["a", "b"]) == "a, b"
    assert tensors.listed(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert tensors.listed(map(str, range(11))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."
    assert tensors.listed(["x" * 100]) == "x" * 80
