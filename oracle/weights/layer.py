# SPDX-License-Identifier: MIT OR Apache-2.0
"""A weight file as its schema has it: one layer's tensors, named and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from oracle.arithmetic.encoder import Matrix
from oracle.weights.formats import Place, Schema
from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.tensors import Tensor, WeightFile, WeightsError, named

READERS: dict[str, Callable[[BinaryIO, str], WeightFile]] = {".npz": Npz, ".safetensors": Safetensors}


def open_file(reader: BinaryIO, path: str, label: str) -> WeightFile:
    """The tensors of a weight file; its `path` tells the format, `label` names it in messages. Raises WeightsError."""
    suffix = next((suffix for suffix in READERS if path.endswith(suffix)), None)
    if suffix is None:
        raise WeightsError(f"{label}: neither {' nor '.join(READERS)}: its format is not known")
    return READERS[suffix](reader, label)


@dataclass
class LayerWeights:
    """One layer's weights: `d_model`, `n_features`, and the tensors as they are asked for.

    The file is gone through once, in its own order, since some can be read forwards alone: those have to be asked for
    a pass over W_enc before b_enc and the gate. Raises WeightsError where the file is not one of the schema.
    """

    schema: Schema
    layer: int
    file: WeightFile
    label: str
    extents: dict[str, int] = field(init=False)
    _tensors: dict[Place, Tensor] = field(default_factory=dict, init=False)
    _vectors: dict[Place, np.ndarray] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._places = {self.name_of(place): place for place in self.schema.places}
        self._names = self.file.in_order()
        self._seen: list[str] = []
        self._go_through(self.schema.w_enc)
        shape = self._tensors[self.schema.w_enc].shape
        if len(shape) != 2:
            axes = ", ".join(self.schema.w_enc.axes)
            raise WeightsError(f"{self.label}: {self.name_of(self.schema.w_enc)} has shape {list(shape)}, not [{axes}]")
        self.extents = dict(zip(self.schema.w_enc.axes, shape))
        self.extents["d_model_out"] = self.extents["d_model"]
        if not self.file.forwards_alone:
            self._go_through(None)  # what is wrong shows before the work

    @property
    def d_model(self) -> int:
        return self.extents["d_model"]

    @property
    def n_features(self) -> int:
        return self.extents["n_features"]

    @property
    def w_enc(self) -> Matrix:
        """W_enc, in blocks of rows as they lie in the file."""
        tensor, axes = self._tensors[self.schema.w_enc], self.schema.w_enc.axes
        return Matrix(lambda: self.file.blocks(tensor), by_feature=axes[0] == "n_features")

    @property
    def b_enc(self) -> np.ndarray:
        """float32 [n_features]."""
        return self._vector(self.schema.b_enc)

    @property
    def b_dec(self) -> np.ndarray:
        """float32 [d_model]."""
        return self._vector(self.schema.b_dec)

    @property
    def has_threshold(self) -> bool:
        """Whether the gate is JumpReLU's; it is plain ReLU's where there is no threshold."""
        self._go_through(None)
        return self.schema.threshold in self._tensors

    @property
    def threshold(self) -> np.ndarray:
        """float32 [n_features]: JumpReLU's, or 0 where the gate is plain ReLU's."""
        if self.schema.threshold is None or not self.has_threshold:
            return np.zeros(self.n_features, np.float32)
        return self._vector(self.schema.threshold)

    @property
    def has_negative(self) -> bool:
        """Whether any threshold is below zero."""
        return bool(np.any(self.threshold < 0))

    @property
    def gate(self) -> np.ndarray:
        """float32 [n_features]: the threshold; a negative one lets nothing negative through."""
        gate: np.ndarray = np.maximum(self.threshold, 0)
        return gate

    def tensor(self, place: Place | None) -> Tensor | None:
        """The header of a tensor of this file, checked; None where it is not there, which it need not be."""
        self._go_through(None)
        return self._tensors.get(place) if place else None

    @property
    def decoder(self) -> Decoder | None:
        """W_dec, unless it is in a file of its own: see open_decoder."""
        tensor = self.tensor(self.schema.w_dec)
        return Decoder(self.file, tensor, self.label) if tensor else None

    def w_skip_blocks(self) -> Iterator[np.ndarray]:
        """The rows of W_skip, float32, a block at a time; none where there is no W_skip. Raises WeightsError."""
        tensor = self.tensor(self.schema.w_skip)
        for block in self.file.blocks(tensor) if tensor else ():
            yield _finite(block, self.label, self.schema.w_skip.name if self.schema.w_skip else "")

    def name_of(self, place: Place) -> str:
        """What a tensor is called in this layer's file."""
        return place.name.format(layer=self.layer)

    def _vector(self, place: Place) -> np.ndarray:
        self._go_through(None)
        return self._vectors[place]

    def _go_through(self, last: Place | None) -> None:
        """Look at the tensors of the file up to `last`, or all, in which case they are checked against each other.

        Of matrices that are not asked for only the headers are read.
        """
        for name in self._names:
            self._seen.append(name)
            if name in self.schema.absent:
                raise WeightsError(f"{self.label}: it has a tensor {name}, which a {self.schema.name} file never has")
            place = self._places.get(name)
            if place is None:
                raise _unknown(self.label, name, self.schema)
            tensor = self._tensors[place] = self.file.tensor(name)
            if len(place.axes) == 1:
                self._vectors[place] = read_finite(self.file, tensor, self.label)
            if place == last:
                return
        for name, place in self._places.items():
            if place not in self._tensors:
                if place.required:
                    raise WeightsError(f"{self.label}: it has no tensor {name}; it has {named(self._seen)}")
                continue
            check_shape(self._tensors[place], place, self.extents, self.label)


@dataclass(frozen=True)
class Decoder:
    """W_dec, [n_features, d_model] or [n_features, n_targets, d_model], of which the rows are read that are asked for."""

    file: WeightFile
    tensor: Tensor
    label: str

    def rows(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of `wanted`, features in ascending order, with float32 [len(part), ...]. Raises WeightsError."""
        for features, block in self.file.rows(self.tensor, wanted):
            yield features, _finite(block, self.label, self.tensor.name)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, float32 [rows, ...] at a time; a block is valid until the next. Raises WeightsError."""
        for block in self.file.blocks(self.tensor):
            yield _finite(block, self.label, self.tensor.name)


def _unknown(label: str, name: str, schema: Schema) -> WeightsError:
    """A gate, a scale or a skip by another name would be left out in silence."""
    return WeightsError(
        f"{label}: it has a tensor {ascii(name[:80])}, whose part in the encoding is not known: a {schema.name} file has none"
    )


def _finite(values: np.ndarray, label: str, name: str) -> np.ndarray:
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if n_bad:
        raise WeightsError(f"{label}: {name} has {n_bad} values that are NaN or infinite")
    return values


def read_finite(file: WeightFile, tensor: Tensor, label: str) -> np.ndarray:
    """A vector, float32 [n]. Raises WeightsError where it holds NaN or infinities."""
    if len(tensor.shape) != 1:
        raise WeightsError(f"{label}: {tensor.name} has shape {list(tensor.shape)}, not one dimension")
    return _finite(file.read(tensor), label, tensor.name)


def check_shape(tensor: Tensor, place: Place, extents: dict[str, int], label: str) -> None:
    """Hold a tensor's shape against the extents known; those that it is the first to have are taken from it."""
    shape = list(tensor.shape)
    for axis, extent in zip(place.axes, shape):
        extents.setdefault(axis, extent)
    expected = [extents[axis] for axis in place.axes if axis in extents]
    if shape != expected:
        known = [extents["d_model"], extents["n_features"]]
        raise WeightsError(
            f"{label}: {tensor.name} has shape {shape}, but with [d_model, n_features] = {known} it must be "
            f"[{', '.join(str(extents.get(axis, axis)) for axis in place.axes)}]"
        )


def open_layer(schema: Schema, layer: int, reader: BinaryIO, path: str, label: str) -> LayerWeights:
    """Open the file of one layer's encoder; `label` names it in messages. Raises WeightsError."""
    return LayerWeights(schema, layer, open_file(reader, path, label), label)


def open_decoder(layer_weights: LayerWeights, reader: BinaryIO, path: str, label: str) -> Decoder:
    """Open the file with the W_dec that goes with a layer's encoder. Raises WeightsError where they don't fit."""
    return decoder_in(layer_weights.schema, layer_weights.layer, layer_weights.extents, reader, path, label)


def decoder_in(
    schema: Schema, layer: int, extents: dict[str, int], reader: BinaryIO, path: str, label: str
) -> Decoder:
    """The W_dec of a layer out of whichever file it is in. Raises WeightsError where it does not fit `extents`."""
    file = open_file(reader, path, label)
    places = (*schema.places, schema.w_dec)
    strange = set(file.in_order()) - {place.name.format(layer=layer) for place in places}
    if strange:
        raise _unknown(label, min(strange), schema)
    tensor = file.tensor(schema.w_dec.name.format(layer=layer))
    check_shape(tensor, schema.w_dec, dict(extents), label)
    return Decoder(file, tensor, label)
