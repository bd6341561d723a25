# SPDX-License-Identifier: MIT OR Apache-2.0
"""A layer's weight files as its format has them: tensors, named and checked against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from oracle.arithmetic.inputs import EncoderInput
from oracle.arithmetic.products import Matrix
from oracle.weights.formats import Format, TensorSpec
from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.tensors import Tensor, TensorFile, WeightsError, listed

READERS: dict[str, Callable[[BinaryIO, str], TensorFile]] = {".npz": Npz, ".safetensors": Safetensors}


@dataclass(frozen=True)
class OpenFile:
    """A weight file that is open. Its `path` in the repo tells the container, `label` names it in messages."""

    reader: BinaryIO
    path: str
    label: str

    def tensors(self) -> TensorFile:
        """The file's tensors. Raises WeightsError."""
        suffix = next((suffix for suffix in READERS if self.path.endswith(suffix)), None)
        if suffix is None:
            raise WeightsError(f"{self.label}: neither {' nor '.join(READERS)}: its format is not known")
        return READERS[suffix](self.reader, self.label)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a format where it lies: its header, its file, and what messages call the file."""

    header: Tensor
    file: TensorFile
    label: str

    def vector(self) -> np.ndarray:
        """The whole of it, float32 [n]. Raises WeightsError where it holds NaN or infinities."""
        return self._finite(self.file.read(self.header))

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, float32 [rows, ...] at a time; a block is valid until the next. Raises WeightsError."""
        return map(self._finite, self.file.blocks(self.header))

    def rows(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of `wanted`, which ascends, with float32 [len(part), ...] for each. Raises WeightsError."""
        for part, block in self.file.rows(self.header, wanted):
            yield part, self._finite(block)

    def _finite(self, values: np.ndarray) -> np.ndarray:
        n_bad = int(np.count_nonzero(~np.isfinite(values)))
        if n_bad:
            raise WeightsError(f"{self.label}: {self.header.name} has {n_bad} values that are NaN or infinite")
        return values


class LayerWeights:
    """One layer's weights: `d_model`, `n_features`, and its tensors.

    `files` are some of the layer's, by their role: one that has no part in the work may be left out. Vectors are read at
    once, of matrices only the headers: what is wrong shows before the work. Raises WeightsError where a file is not one
    of the format.
    """

    def __init__(self, weights_format: Format, layer: int, files: Mapping[str, OpenFile]):
        self.format, self.layer = weights_format, layer
        self.label = next(iter(files.values())).label
        self._tensors: dict[TensorSpec, StoredTensor] = {}
        self._extents: dict[str, int] = {}
        for role, file in files.items():
            self._take(role, file)
        self._vectors = {spec: tensor.vector() for spec, tensor in self._tensors.items() if len(spec.axes) == 1}
        self.d_model, self.n_features = self._extents["d_model"], self._extents["n_features"]

    @property
    def w_enc(self) -> Matrix:
        """W_enc, in blocks of rows as they lie in the file. Its values are not checked: the encoder looks at them."""
        tensor = self._tensors[self.format.w_enc]
        return Matrix(lambda: tensor.file.blocks(tensor.header), features_first=self.format.w_enc.axes[0] == "n_features")

    @property
    def encoder_input(self) -> EncoderInput:
        """What is multiplied by W_enc."""
        return EncoderInput(self.d_model**-0.5) if self.format.root_scaled else EncoderInput()

    @property
    def output_factor(self) -> float:
        """What the decoder's rows are multiplied by."""
        return math.sqrt(self.d_model) if self.format.root_scaled else 1.0

    @property
    def b_enc(self) -> np.ndarray:
        """float32 [n_features]."""
        return self._vectors[self.format.b_enc]

    @property
    def b_dec(self) -> np.ndarray:
        """float32 [d_model]."""
        return self._vectors[self.format.b_dec]

    @property
    def has_threshold(self) -> bool:
        """Whether the gate is JumpReLU's; it is plain ReLU's where there is no threshold."""
        return self.format.threshold in self._tensors

    @property
    def threshold(self) -> np.ndarray:
        """float32 [n_features]: JumpReLU's, or 0 where the gate is plain ReLU's."""
        if self.format.threshold is None or not self.has_threshold:
            return np.zeros(self.n_features, np.float32)
        return self._vectors[self.format.threshold]

    @property
    def n_negative_thresholds(self) -> int:
        return int(np.count_nonzero(self.threshold < 0))

    @property
    def gate(self) -> np.ndarray:
        """float32 [n_features]: the threshold; a negative one lets nothing negative through."""
        gate: np.ndarray = np.maximum(self.threshold, 0)
        return gate

    @property
    def w_dec(self) -> StoredTensor:
        """W_dec, [n_features, d_model] or [n_features, n_targets, d_model]. Raises WeightsError where it is not there."""
        if self.format.w_dec not in self._tensors:
            raise WeightsError(f"{self.label}: it has no {self.format.w_dec.name.format(layer=self.layer)}")
        return self._tensors[self.format.w_dec]

    @property
    def w_skip(self) -> Matrix | None:
        """W_skip, None where there is none; `features_first` says that a row is that of an output."""
        spec = self.format.w_skip
        if spec is None or spec not in self._tensors:
            return None
        return Matrix(self._tensors[spec].blocks, features_first=spec.axes[0] == "d_model_out")

    def _take(self, role: str, file: OpenFile) -> None:
        """Look at a file's tensors, and check them against the format and against each other."""
        tensors = file.tensors()
        specs = {spec.name.format(layer=self.layer): spec for spec in self.format.tensors(role)}
        for name in tensors.names:
            if name in self.format.absent:
                raise WeightsError(f"{file.label}: it has a tensor {name}, which a {self.format.name} file never has")
            if name not in specs:  # a gate, a scale or a skip by another name would be left out in silence
                raise WeightsError(
                    f"{file.label}: it has a tensor {ascii(name[:80])}, whose part in the encoding is not known: "
                    f"a {self.format.name} file has none"
                )
        for name, spec in specs.items():
            if name in tensors.names:
                header = tensors.tensor(name)
                self._check_shape(header, spec, file.label)
                self._tensors[spec] = StoredTensor(header, tensors, file.label)
            elif spec.required:
                raise WeightsError(f"{file.label}: it has no tensor {name}; it has {listed(tensors.names)}")

    def _check_shape(self, tensor: Tensor, spec: TensorSpec, label: str) -> None:
        """Hold a tensor's shape against the extents known; those that it is the first to have are taken from it."""
        shape = list(tensor.shape)
        if not self._extents and len(shape) != len(spec.axes):
            raise WeightsError(f"{label}: {tensor.name} has shape {shape}, not [{', '.join(spec.axes)}]")
        for axis, extent in zip(spec.axes, shape):
            self._extents.setdefault(axis, extent)
            if axis == "d_model":
                self._extents.setdefault("d_model_out", extent)
        if shape != [self._extents.get(axis) for axis in spec.axes]:
            known = [self._extents.get("d_model"), self._extents.get("n_features")]
            raise WeightsError(
                f"{label}: {tensor.name} has shape {shape}, but with [d_model, n_features] = {known} it must be "
                f"[{', '.join(str(self._extents.get(axis, axis)) for axis in spec.axes)}]"
            )
