# SPDX-License-Identifier: MIT OR Apache-2.0
"""One row per transcoder schema: how a repo names and lays out its tensors. A new schema is a new row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from oracle.weights import Npz, Tensor, WeightsError


@dataclass(frozen=True)
class Schema:
    """`tensors` maps each tensor's name to its axes; a file with a tensor of `absent` is refused.

    `threshold` names the JumpReLU threshold's tensor.
    """

    name: str
    suffix: str
    encoder_formula: str
    tensors: dict[str, tuple[str, ...]]
    absent: tuple[str, ...]
    w_enc: str
    b_enc: str
    threshold: str


GEMMA_SCOPE_NPZ = Schema(
    name="GemmaScopeNpz",
    suffix=".npz",
    encoder_formula="pre = W_enc.T @ residual + b_enc; acts = pre * (pre > threshold)",
    tensors={
        "W_enc": ("d_model", "n_features"),
        "b_enc": ("n_features",),
        "W_dec": ("n_features", "d_model"),
        "b_dec": ("d_model",),
        "threshold": ("n_features",),
    },
    absent=("W_skip",),
    w_enc="W_enc",
    b_enc="b_enc",
    threshold="threshold",
)


class LayerWeights:
    """One layer's encoder: `d_model`, `n_features`, and W_enc and the vectors as they are asked for.

    The file is gone through once, in its own order, since some can be read forwards alone: those have to be asked for
    a pass over W_enc before `b_enc` and `gate`. Raises WeightsError where the file is not one of the schema.
    """

    def __init__(self, schema: Schema, reader: BinaryIO, label: str):
        self._schema, self._label = schema, label
        self._file = Npz(reader, label)
        self._names = self._file.in_order()
        self._tensors: dict[str, Tensor] = {}
        self._vectors: dict[str, np.ndarray] = {}
        self._go_through(schema.w_enc)
        w_enc = self._tensors[schema.w_enc]
        if len(w_enc.shape) != 2:
            raise WeightsError(f"{label}: {schema.w_enc} has shape {list(w_enc.shape)}, not [d_model, n_features]")
        self._extents = dict(zip(schema.tensors[schema.w_enc], w_enc.shape))
        self.d_model, self.n_features = self._extents["d_model"], self._extents["n_features"]
        if not self._file.forwards_alone:
            self._go_through(None)  # what is wrong shows before the work

    def w_enc_blocks(self) -> Iterator[np.ndarray]:
        """A pass over W_enc: float32 blocks [rows, n_features], d_model rows in all."""
        return self._file.blocks(self._tensors[self._schema.w_enc])

    @property
    def b_enc(self) -> np.ndarray:
        """float32 [n_features]."""
        self._go_through(None)
        return self._vectors[self._schema.b_enc]

    @property
    def gate(self) -> np.ndarray:
        """float32 [n_features]: the threshold; a negative one lets nothing negative through."""
        self._go_through(None)
        return np.maximum(self._vectors[self._schema.threshold], 0)

    def _go_through(self, last: str | None) -> None:
        """Look at the tensors of the file up to `last`, or all, in which case they are checked against each other.

        Of those that the encoder does not use only the headers are read.
        """
        for name in self._names:
            if name in self._schema.absent:
                raise WeightsError(f"{self._label}: it has a tensor {name}, which a {self._schema.name} file never has")
            if name in self._schema.tensors:
                self._tensors[name] = self._file.tensor(name)
            if name in (self._schema.b_enc, self._schema.threshold):
                self._vectors[name] = _read_finite(self._file, self._tensors[name], self._label)
            if name == last:
                return
        for name, axes in self._schema.tensors.items():
            if name not in self._tensors:
                raise WeightsError(f"{self._label}: it has no tensor {name}; it has {', '.join(self._tensors) or 'none'}")
            shape, expected = list(self._tensors[name].shape), [self._extents[axis] for axis in axes]
            if shape != expected:
                raise WeightsError(
                    f"{self._label}: {name} has shape {shape}, but with {self._schema.w_enc} of shape "
                    f"{[self.d_model, self.n_features]} it must be {expected}"
                )


def open_layer(schema: Schema, reader: BinaryIO, label: str) -> LayerWeights:
    """Open a weight file of a schema; `label` names it in messages. Raises WeightsError."""
    return LayerWeights(schema, reader, label)


def _read_finite(file: Npz, tensor: Tensor, label: str) -> np.ndarray:
    values = file.read(tensor)
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if n_bad:
        raise WeightsError(f"{label}: {tensor.name} has {n_bad} values that are NaN or infinite")
    return values
