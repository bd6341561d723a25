# SPDX-License-Identifier: MIT OR Apache-2.0
"""One row per transcoder schema: how a repo names and lays out its tensors. A new schema is a new row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@dataclass(frozen=True)
class LayerWeights:
    """One layer's encoder. `b_enc` and `gate` are float32 [n_features].

    `w_enc_blocks()` starts a pass over W_enc: float32 blocks [rows, n_features], d_model rows in all.
    """

    d_model: int
    n_features: int
    b_enc: np.ndarray
    gate: np.ndarray
    w_enc_blocks: Callable[[], Iterator[np.ndarray]]


def open_layer(schema: Schema, reader: BinaryIO, label: str) -> LayerWeights:
    """Check a weight file against its schema and read its vectors; W_enc is read by its passes.

    Of the tensors that the encoder does not use only the headers are read. Raises WeightsError.
    """
    file = Npz(reader, label)
    for name in schema.absent:
        if name in file.names:
            raise WeightsError(f"{label}: it has a tensor {name}, which a {schema.name} file never has")
    in_file_order = sorted(schema.tensors, key=lambda name: file.names.index(name) if name in file.names else -1)
    tensors = {name: file.tensor(name) for name in in_file_order}  # a server without Range is read forwards alone
    extents = _extents(schema, tensors, label)
    w_enc = tensors[schema.w_enc]
    b_enc, threshold = (_read_finite(file, tensors[name], label) for name in (schema.b_enc, schema.threshold))
    return LayerWeights(
        d_model=extents["d_model"],
        n_features=extents["n_features"],
        b_enc=b_enc,
        gate=np.maximum(threshold, 0),  # a negative threshold lets nothing negative through
        w_enc_blocks=lambda: file.blocks(w_enc),
    )


def _extents(schema: Schema, tensors: dict[str, Tensor], label: str) -> dict[str, int]:
    """The length of each named axis; W_enc sets it, every other tensor must agree."""
    extents = dict(zip(schema.tensors[schema.w_enc], tensors[schema.w_enc].shape))
    for name, axes in schema.tensors.items():
        shape = tensors[name].shape
        expected = [extents[axis] for axis in axes]
        if list(shape) != expected:
            raise WeightsError(
                f"{label}: {name} has shape {list(shape)}, but with {schema.w_enc} of shape "
                f"{list(tensors[schema.w_enc].shape)} it must be {expected}"
            )
    return extents


def _read_finite(file: Npz, tensor: Tensor, label: str) -> np.ndarray:
    values = file.read(tensor)
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if n_bad:
        raise WeightsError(f"{label}: {tensor.name} has {n_bad} values that are NaN or infinite")
    return values
