# SPDX-License-Identifier: MIT OR Apache-2.0
"""A user's own residuals: one file of arrays [rows, d_model], one for all layers or one for each.

Nothing of it is believed before it is checked, and nothing is unpickled. The file is hashed as the job begins; a layer's rows
are read when its turn comes, from the same bytes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from oracle.errors import BadUse, WeightsError
from oracle.job import MAX_SEEDS
from oracle.sources import hashes
from oracle.weights.npz import Npy, Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.tensors import Tensor, TensorFile, listed

READERS: dict[str, type[TensorFile]] = {".npy": Npy, ".npz": Npz, ".safetensors": Safetensors}
SIZE_LIMIT = 64 << 30  # bytes
MOST_VALUES = 10_000_000  # of a reference: each takes up to 25 bytes of the 256 MiB of JSON that are read
_LAYER = re.compile(r"(?:layer_|blocks\.)([0-9]{1,7})(?:\..*)?", re.DOTALL)


@dataclass(frozen=True)
class ResidualFile:
    """A file of residuals: its `path`, `sha256`, and the name of each layer's array, or of the one for all, by None.

    `n_rows` is how many rows of each array are wanted, None for all; `state` is what the file system told of it.
    """

    path: str
    sha256: str
    arrays: dict[int | None, str]
    n_rows: int | None
    state: tuple[int, ...]

    @classmethod
    def of(cls, path: str, n_rows: int | None = None) -> ResidualFile:
        """A file as it is now. Raises BadUse where it cannot be read or is no such file, and WeightsError where it is damaged."""
        with _opened(path) as (file, reader):
            arrays = _by_layer(file)
            sha256 = hashes.sha256_of(path)
            return cls(path, sha256, arrays, n_rows, _state(reader))

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def check(self, layers: list[int]) -> None:
        """Raise as `rows` does for what the headers show, before any work; BadUse also where no JSON would hold all residuals."""
        with _opened(self.path) as (file, _):
            values = sum(self._wanted(tensor) * tensor.shape[1] for tensor in (self._header(file, layer) for layer in layers))
        if values > MOST_VALUES:
            raise BadUse(
                f"{self.path}: {values} values in {len(layers)} layers are more than a reference that can be read again holds, "
                f"{MOST_VALUES}: fewer --seeds or --layers, or several references"
            )

    def rows(self, layer: int) -> np.ndarray:
        """A layer's residuals, float32 [n, width]: float64 is rounded once. Raises as `of`, and BadUse where the layer has none."""
        with _opened(self.path) as (file, reader):
            tensor = self._header(file, layer)
            parts = [part.copy() for _, part in file.rows(tensor, np.arange(self._wanted(tensor)))]
            if _state(reader) != self.state:
                raise hashes.DamagedFileError(f"{self.path} changed while it was read: try again")
        values = np.concatenate(parts)
        bad = ~np.isfinite(values)
        if bad.any():
            first = int(np.flatnonzero(bad.any(axis=1))[0])
            n_bad = np.count_nonzero(bad)
            what = "value that is" if n_bad == 1 else "values that are"
            raise file.error(f"{tensor.name} has {n_bad} {what} NaN or infinite in float32, the first in row {first}")
        return values

    def _wanted(self, tensor: Tensor) -> int:
        """How many rows are wanted of an array."""
        return tensor.shape[0] if self.n_rows is None else self.n_rows

    def _header(self, file: TensorFile, layer: int) -> Tensor:
        """The header of a layer's array, which has the rows that are wanted."""
        array = self.arrays.get(layer, self.arrays.get(None))
        if array is None:
            others = listed(name for _, name in sorted(self.arrays.items(), key=lambda item: item[0] or 0))
            raise _misused(file, f"it has no residuals of layer {layer}, only {others}: leave the layer out, or add layer_{layer}")
        tensor = file.tensor(array)
        if len(tensor.shape) != 2:
            raise file.error(f"{array} has shape {list(tensor.shape)}; residuals are [rows, d_model]")
        n_rows = self._wanted(tensor)
        if n_rows > tensor.shape[0]:
            raise _misused(file, f"{array} has {tensor.shape[0]} rows, and --seeds asks for {n_rows}")
        if n_rows > MAX_SEEDS:
            raise _misused(file, f"{array} has {n_rows} rows, and at most {MAX_SEEDS} are encoded: say how many with --seeds")
        return tensor


@contextmanager
def _opened(path: str) -> Iterator[tuple[TensorFile, BinaryIO]]:
    suffix = next((suffix for suffix in READERS if path.endswith(suffix)), None)
    if suffix is None:
        raise BadUse(f"--residuals {path}: none of {', '.join(READERS)}, which are read")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadUse(f"--residuals {path} is no regular file")
        reader = cast(BinaryIO, open(path, "rb", buffering=0))
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise BadUse(f"--residuals {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with reader:
        if status.st_size > SIZE_LIMIT:
            raise WeightsError(f"{path} has {status.st_size} bytes; at most {SIZE_LIMIT >> 30} GiB are read")
        yield READERS[suffix](reader, path), reader


def _state(reader: BinaryIO) -> tuple[int, ...]:
    return tuple(hashes.state_of(reader))  # type: ignore[arg-type]


def _misused(file: TensorFile, problem: str) -> BadUse:
    return BadUse(str(file.error(problem)))


def _by_layer(file: TensorFile) -> dict[int | None, str]:
    """Which array is whose. One array that no layer is named by is for all of them; beside arrays of layers others are passed over."""
    arrays: dict[int | None, str] = {}
    for name in file.names:
        if match := _LAYER.fullmatch(name):
            layer = int(match[1])
            if layer in arrays:
                raise _misused(file, f"{arrays[layer]} and {name} are both of layer {layer}: leave one out")
            arrays[layer] = name
    if arrays:
        return arrays
    if len(file.names) != 1:
        how = "one for all layers is read, or one for each layer, called layer_0 or blocks.0.hook_resid_mid and so on"
        raise _misused(file, f"it has {len(file.names)} arrays, {listed(file.names)}: {how}")
    return {None: file.names[0]}
