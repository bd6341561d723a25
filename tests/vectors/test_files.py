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
    "GemmaScopeNpz": "03bd97a5e584c5f44e5cd7ab88195f61",
    "PltBundle": "d5d2bf91de319a4bf29a42383d0dacb1",
    "CltSplit": "b238675500093fc12462d16c72502644",
    "GemmaScope2": "232a7fbcc200168f57a33aa705833701",
    "GemmaScope2Clt": "29a6d2544f365b2c06d6114514f09734",
    "GemmaScope2Crosscoder": "8ca450b1781bc60d3aba8fa216e42794",
    "Sae": "61194c85e42f73130c78fe071bc4d488",
    "EmbeddingSae": "1276a4e129053455c303b90c2a0757a9",
    "SaeLens": "8fb8138056ff50fec39f19e55596ccc2",
    "DictionaryLearning": "763ff673d0dca481683734b19a0206d3",
    "QwenScope": "8b276a0dd001a60a88ad4b5df00cbb43",
    "LlamaScope": "d98da97a298ade5bb65608b341d0b96e",
    "LlamaScopeR1": "eb0937993bdb22a1481985e97191dc9d",
    "Sparsify": "160b3a695355167e7a10348d7ed8917d",
    "Goodfire": "65479a8e0e4d43b62ccbd4f48db36925",
    "QResearch": "9c4c973b71ca515bef4f6f44bc7d2ec3",
    "HookZ": "9e3c954dfa64368f481a983c085ca670",
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
