# SPDX-License-Identifier: MIT OR Apache-2.0
"""What numpy and the safetensors package wrote, read by every way that files come by: equal, or refused, never other."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import vendored_hf
from oracle.job import Origin
from oracle.sources.curation import HubFile
from oracle.sources.source import FileEvents, Source
from oracle.sources.stream import open_remote
from oracle.weights.layer import OpenFile
from oracle.weights.tensors import WeightsError
from tests.support import worlds
from tests.support.hub import Hub

REPO = "org/some"
NAMES = st.sampled_from(["W_enc", "b_enc", "threshold", "W_dec", "b_dec", "other.weight", "x_0"])
ARRAY = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=2, max_side=40),
    elements=st.floats(-65504, 65504, width=16),
)


def ways(hub: Hub, folder: Path, path: str, content: bytes) -> Iterator[tuple[str, OpenFile]]:
    """The file on disk, over Range requests, from a mirror's folder, and through the cache."""
    place = folder / path
    place.write_bytes(content)
    with place.open("rb", buffering=0) as file:
        yield "disk", OpenFile(cast(BinaryIO, file), path, path)
    hub.add(REPO, path, content)
    with open_remote(vendored_hf.Hub(hub.url), hub.url, REPO, path) as remote:
        yield "Range", OpenFile(cast(BinaryIO, remote), path, path)
    tree = folder / "mirror" / REPO / "resolve/main" / path
    tree.parent.mkdir(parents=True)
    tree.write_bytes(content)
    for name, origin in (
        ("folder", Origin(REPO, mirror=str(folder / "mirror"))),
        ("cache", Origin(REPO, mirror=hub.url, cache_dir=str(folder / "cache"))),
    ):
        with Source(origin, FileEvents()).open(HubFile(REPO, None, path)) as opened:
            yield name, opened.open


def read(file: OpenFile) -> dict[str, np.ndarray]:
    tensors = file.tensors()
    values = {}
    for name in tensors.names:
        header = tensors.tensor(name)
        blocks = np.concatenate([block.copy() for block in tensors.blocks(header)])
        if len(header.shape) == 1:
            assert np.array_equal(tensors.read(header), blocks)
        some = np.arange(0, header.shape[0], 3)
        assert all(np.array_equal(rows, blocks[part]) for part, rows in ((p, r.copy()) for p, r in tensors.rows(header, some)))
        values[name] = blocks
    return values


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(NAMES, ARRAY, min_size=1, max_size=4),
    st.sampled_from(["savez", "savez_compressed", "safetensors"]),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.none() | st.tuples(st.integers(0, 2**31), st.integers(0, 255)),
)
def test_equal_or_refused(
    hub: Hub, written: dict[str, np.ndarray], kind: str, dtype: str, damage: tuple[int, int] | None
) -> None:
    if kind == "safetensors":
        content, right = worlds.to_safetensors(written, dtype), {name: worlds.rounded(values, dtype) for name, values in written.items()}
    else:
        dtype = "float32" if dtype == "bfloat16" else dtype
        target = io.BytesIO()
        save = np.savez if kind == "savez" else np.savez_compressed
        save(target, **{name: values.astype(dtype) for name, values in written.items()})
        content, right = target.getvalue(), {name: worlds.rounded(values, dtype) for name, values in written.items()}
    is_damaged = False
    if damage is not None and kind != "safetensors":  # which has no checksum but that of its download
        at = damage[0] % len(content)
        is_damaged = content[at] != damage[1]
        content = content[:at] + bytes([damage[1]]) + content[at + 1 :]
    path = "f.safetensors" if kind == "safetensors" else "f.npz"
    with tempfile.TemporaryDirectory() as folder:
        for way, file in ways(hub, Path(folder), path, content):
            try:
                values = read(file)
            except WeightsError:
                assert is_damaged, way
                continue
            # A damaged name or a byte that nobody reads changes no number.
            assert {name: values[name].tolist() for name in values if name in right} == {
                name: array.tolist() for name, array in right.items() if name in values
            }, way
            assert is_damaged or values.keys() == right.keys()


def test_a_reader_that_ends_early_gives_no_memory_for_weights(tmp_path: Path) -> None:
    """A .safetensors that is cut while it is read: an error, not what happened to be in the buffer."""
    content = worlds.to_safetensors({"W_enc": np.ones((600, 600), np.float32)})

    class Shrinking(io.BytesIO):
        def readinto(self, buffer: object) -> int:
            if self.tell() > 800_000:
                return 0
            return super().readinto(buffer)  # type: ignore[arg-type]

    file = OpenFile(Shrinking(content), "f.safetensors", "f.safetensors").tensors()
    with pytest.raises(WeightsError, match="ends inside W_enc; it is truncated"):
        for _ in file.blocks(file.tensor("W_enc")):
            pass
