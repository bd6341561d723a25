# SPDX-License-Identifier: MIT OR Apache-2.0
"""Residuals times W_enc, a block of rows at a time: in float32 as the ports compute it, and in float64 as the referee."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Matrix:
    """A matrix as it lies in its file: each call of `blocks` is a pass over it, a block of rows, float32, at a time.

    A row is that of an input, as of W_enc [d_model, n_features]; or, `features_first`, of what it gives: [n_features, d_model].
    `rows`, where it is given, reads some rows alone, which ascend: parts of them, with float32 [len(part), ...] for each.
    """

    blocks: Callable[[], Iterator[np.ndarray]]
    features_first: bool
    rows: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]] | None = None

    def keeping(self, feature: int, column: list[np.ndarray]) -> Matrix:
        """The same matrix, whose passes put the encoder vector of one feature, float32, into `column`, in parts."""

        def blocks() -> Iterator[np.ndarray]:
            start = 0
            for block in self.blocks():
                if not self.features_first:
                    column.append(block[:, feature].copy())
                elif start <= feature < start + len(block):
                    column.append(block[feature - start].copy())
                start += len(block)
                yield block

        return Matrix(blocks, self.features_first, self.rows)

    def columns(self, features: np.ndarray) -> np.ndarray:
        """The encoder vectors of some features in ascending order, float32 [d_model, n]: by a pass over it, or as rows alone."""
        if not self.features_first:
            return np.concatenate([block[:, features] for block in self.blocks()])
        return np.concatenate([part.copy() for _, _, part in self.column_parts(features)], axis=1)

    def column_parts(self, features: np.ndarray) -> Iterator[tuple[slice | np.ndarray, slice, np.ndarray]]:
        """The encoder vectors of some features in ascending order, in parts: by a pass over it, or as rows alone.

        Each is float32 [inputs, n]: of which of the `features`, by their places, of which inputs, and the part itself.
        """
        if self.features_first and self.rows:
            for wanted, block in self.rows(features):
                yield np.searchsorted(features, wanted), slice(0, block.shape[1]), block.T
            return
        start = 0
        for block in self.blocks():
            span = slice(start, start + len(block))
            start = span.stop
            if self.features_first:
                first, last = np.searchsorted(features, (span.start, span.stop))
                if first < last:
                    yield np.arange(first, last), slice(0, block.shape[1]), block[features[first:last] - span.start].T
            else:
                yield slice(0, len(features)), span, block[:, features]


class NotFiniteError(ValueError):
    """W_enc, or a pre-activation, holds NaN or infinities."""


@dataclass(frozen=True)
class Products:
    """Inputs times W_enc: float32 and float64 [n_cases, n_features], each feature's largest |W_enc|, float64 [n_features], and
    the depth of the float64 sums."""

    float32: np.ndarray
    float64: np.ndarray
    largest_weights: np.ndarray
    depth: int


def multiply(w_enc: Matrix, inputs: np.ndarray) -> Products:
    """One pass over W_enc for float32 inputs [n_cases, d_model]. Raises NotFiniteError where W_enc holds NaN or infinities."""
    peaks: list[np.ndarray] = []  # of the features of a block, or of all that there are
    n_bad = 0

    def checked() -> Iterator[np.ndarray]:
        nonlocal n_bad
        axis = 1 if w_enc.features_first else 0
        for block in w_enc.blocks():
            peak = np.maximum(block.max(axis=axis), -block.min(axis=axis))  # max and min both return NaN where there is one
            if not np.all(np.isfinite(peak)):
                n_bad += int(np.count_nonzero(~np.isfinite(block)))
            if w_enc.features_first or not peaks:
                peaks.append(peak)
            else:
                np.maximum(peaks[0], peak, out=peaks[0])
            yield block

    multiply_blocks = _multiply_features if w_enc.features_first else _multiply_inputs
    with np.errstate(all="ignore"):  # the caller finds what overflows
        product32, product64, depth = multiply_blocks(checked(), inputs)
    if n_bad:
        raise NotFiniteError(f"W_enc has {n_bad} values that are NaN or infinite")
    return Products(product32, product64, np.concatenate(peaks).astype(np.float64), depth)


def _multiply_inputs(blocks: Iterator[np.ndarray], residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Residuals times W_enc [d_model, n_features], summed up block by block: float32, float64 and the sums' depth.

    A term is added to at most all others of its block, in whatever order BLAS likes, and then block to block.
    """
    residuals64 = residuals.astype(np.float64)
    pre32 = product32 = np.empty((0, 0), np.float32)
    pre64 = product64 = block64 = np.empty((0, 0), np.float64)
    row, n_blocks, most_rows = 0, 0, 0
    for block in blocks:
        if not n_blocks:
            shape = len(residuals), block.shape[1]
            pre32, product32 = np.zeros(shape, np.float32), np.empty(shape, np.float32)
            pre64, product64 = np.zeros(shape, np.float64), np.empty(shape, np.float64)
            block64 = np.empty(block.shape)  # no later one has more rows
        rows = slice(row, row + len(block))
        row = rows.stop
        n_blocks, most_rows = n_blocks + 1, max(most_rows, len(block))
        # [n_seeds, rows] @ [rows, n_features] -> [n_seeds, n_features]
        pre32 += np.matmul(residuals[:, rows], block, out=product32)
        np.copyto(block64[: len(block)], block)
        pre64 += np.matmul(residuals64[:, rows], block64[: len(block)], out=product64)
    return pre32, pre64, n_blocks + most_rows


def _multiply_features(blocks: Iterator[np.ndarray], residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The same of W_enc [n_features, d_model]: a block has whole sums, of d_model terms each."""
    residuals64 = residuals.astype(np.float64)
    parts32: list[np.ndarray] = []
    parts64: list[np.ndarray] = []
    block64 = np.empty((0, 0))
    for block in blocks:
        if not parts32:
            block64 = np.empty(block.shape)
        np.copyto(block64[: len(block)], block)
        # [n_seeds, d_model] @ [d_model, f] -> [n_seeds, f]
        parts32.append(residuals @ block.T)
        parts64.append(residuals64 @ block64[: len(block)].T)
    return np.concatenate(parts32, axis=1), np.concatenate(parts64, axis=1), residuals.shape[1]
