# SPDX-License-Identifier: MIT OR Apache-2.0
"""The weights that we make: the same bytes everywhere, and files that their own libraries read."""

from __future__ import annotations

import hashlib
import io
import zipfile

import numpy as np
import pytest

from oracle.vectors import demo, files
from oracle.weights import formats

# Of the paths and the bytes of layers 0 and 3. A change is one of every demo that somebody has a port's numbers of.
SHA256 = {
    "GemmaScopeNpz": "7eceebc96ca6e9ee5d995d61e0e4b29a",
    "PltBundle": "d5d2bf91de319a4bf29a42383d0dacb1",
    "CltSplit": "b238675500093fc12462d16c72502644",
    "GemmaScope2": "232a7fbcc200168f57a33aa705833701",
    "GemmaScope2Clt": "29a6d2544f365b2c06d6114514f09734",
    "GemmaScope2Crosscoder": "8ca450b1781bc60d3aba8fa216e42794",
    "Sae": "f9d7c07cd57f8b1bd9be5880512f6098",
    "EmbeddingSae": "dc886079e41d2ec8b6175c6e070ed4e7",
    "SaeLens": "8fb8138056ff50fec39f19e55596ccc2",
    "DictionaryLearning": "6bc4f12aa81d82abddf27b99bc441d1b",
    "QwenScope": "64cc49d9dcbb5b7be01d09082042733c",
    "LlamaScope": "d98da97a298ade5bb65608b341d0b96e",
    "LlamaScopeR1": "eb0937993bdb22a1481985e97191dc9d",
    "Sparsify": "160b3a695355167e7a10348d7ed8917d",
    "Goodfire": "20c7d2fb72e3d6106c490711d8aa7f6c",
    "QResearch": "e75dbbc0029392dd5e10c5421bbad793",
    "HookZ": "d85d0d6ef0d654a4a62d6bd5c99f53e0",
}


@pytest.mark.parametrize("name", SHA256)
def test_the_demo_s_files_are_the_same_bytes_everywhere(name: str) -> None:
    digest = hashlib.sha256()
    for layer in (0, 3):
        for path, content in demo.layer_files(formats.by_name(name), layer).items():
            digest.update(path.encode() + b"\0" + content)
    assert digest.hexdigest()[:32] == SHA256[name]


def test_every_format_is_pinned() -> None:
    assert list(SHA256) == [row.name for row in formats.FORMATS]


def test_numpy_reads_what_is_written() -> None:
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1.5], np.float32), "big": np.arange(3, dtype=">f4"), "t": np.eye(3, dtype=np.float32).T}
    content = files.npz({**arrays, "k": 7})
    with np.load(io.BytesIO(content)) as read:
        assert read.files == [*arrays, "k"] and int(read["k"]) == 7
        for name, values in arrays.items():
            assert np.array_equal(read[name], values) and read[name].dtype == "<f4" and read[name].flags.c_contiguous
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None and {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_zip_is_that_of_python_s_own_library() -> None:
    members = {"a.npy": b"12345", "folder/b": b"", "c": bytes(1000)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            file.writestr(info, content)
    assert files.stored_zip(members) == archive.getvalue()
