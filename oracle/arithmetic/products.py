# SPDX-License-Identifier: MIT OR Apache-2.0
"""Residuals times W_enc: in float32 as the ports compute it and in float64 as the referee, a block of rows at a time; exactly; and
what float32 may be off by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction

UNIT_ROUNDOFF = 2.0**-53
COLUMN_BYTES = 16 * 1024 * 1024  # of columns of W_enc that are held at once
Removed = Sequence[tuple[np.ndarray, np.ndarray]]  # see chain.Inputs


class Matrix(NamedTuple):
    """A matrix as it lies in its file: each call of `blocks` is a pass over it, a block of rows, float32, at a time.

    A row is that of an input, as of W_enc [d_model, n_features]; or, `features_first`, of what it gives: [n_features, d_model].
    `rows`, where it is given, reads some rows alone, which ascend: parts of them, with float32 [len(part), ...] for each.
    `largest_weights`, each feature's largest |W_enc|, float64 [n_features], is what an earlier pass found: all is finite then, and
    it is not looked for again.
    """

    blocks: Callable[[], Iterator[np.ndarray]]
    features_first: bool
    rows: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]] | None = None
    largest_weights: np.ndarray | None = None

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

        return self._replace(blocks=blocks)

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


class Products(NamedTuple):
    """Inputs times W_enc: float32 and float64 [n_cases, n_features], each feature's largest |W_enc|, float64 [n_features], and
    the depth of the float64 sums. `squares`, float64 [n_cases, n_features], are sums of the terms' squares, if asked for."""

    float32: np.ndarray
    float64: np.ndarray
    largest_weights: np.ndarray
    depth: int
    squares: np.ndarray | None = None


def multiply(w_enc: Matrix, inputs: np.ndarray, *, with_squares: bool = False) -> Products:
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
        blocks = checked() if w_enc.largest_weights is None else w_enc.blocks()
        product32, product64, depth, squares = multiply_blocks(blocks, inputs, with_squares)
    if n_bad:
        raise NotFiniteError(f"W_enc has {n_bad} values that are NaN or infinite")
    largest = np.concatenate(peaks).astype(np.float64) if w_enc.largest_weights is None else w_enc.largest_weights
    return Products(product32, product64, largest, depth, squares)


def _multiply_inputs(
    blocks: Iterator[np.ndarray], residuals: np.ndarray, with_squares: bool
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
    """Residuals times W_enc [d_model, n_features], summed up block by block: float32, float64, the sums' depth, and the squares.

    A term is added to at most all others of its block, in whatever order BLAS likes, and then block to block.
    """
    residuals64 = residuals.astype(np.float64)
    pre32 = product32 = np.empty((0, 0), np.float32)
    pre64 = product64 = block64 = np.empty((0, 0), np.float64)
    squares: np.ndarray | None = None
    row, n_blocks, most_rows = 0, 0, 0
    for block in blocks:
        if not n_blocks:
            shape = len(residuals), block.shape[1]
            pre32, product32 = np.zeros(shape, np.float32), np.empty(shape, np.float32)
            pre64, product64 = np.zeros(shape, np.float64), np.empty(shape, np.float64)
            block64 = np.empty(block.shape)  # no later one has more rows
            squares = np.zeros(shape) if with_squares else None
        rows = slice(row, row + len(block))
        row = rows.stop
        n_blocks, most_rows = n_blocks + 1, max(most_rows, len(block))
        # [n_seeds, rows] @ [rows, n_features] -> [n_seeds, n_features]
        pre32 += np.matmul(residuals[:, rows], block, out=product32)
        np.copyto(block64[: len(block)], block)
        pre64 += np.matmul(residuals64[:, rows], block64[: len(block)], out=product64)
        if squares is not None:
            block64 *= block64
            squares += np.matmul(residuals64[:, rows] ** 2, block64[: len(block)], out=product64)
    return pre32, pre64, n_blocks + most_rows, squares


def _multiply_features(
    blocks: Iterator[np.ndarray], residuals: np.ndarray, with_squares: bool
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
    """The same of W_enc [n_features, d_model]: a block has whole sums, of d_model terms each."""
    residuals64 = residuals.astype(np.float64)
    parts32: list[np.ndarray] = []
    parts64: list[np.ndarray] = []
    squares: list[np.ndarray] = []
    block64 = np.empty((0, 0))
    for block in blocks:
        if not parts32:
            block64 = np.empty(block.shape)
        np.copyto(block64[: len(block)], block)
        # [n_seeds, d_model] @ [d_model, f] -> [n_seeds, f]
        parts32.append(residuals @ block.T)
        parts64.append(residuals64 @ block64[: len(block)].T)
        if with_squares:
            block64 *= block64
            squares.append(residuals64**2 @ block64[: len(block)].T)
    product32, product64 = np.concatenate(parts32, axis=1), np.concatenate(parts64, axis=1)
    return product32, product64, residuals.shape[1], np.concatenate(squares, axis=1) if with_squares else None


# --- exactly -----------------------------------------------------------------------------------------------------------


def exact_product(column: np.ndarray, values: np.ndarray) -> Fraction:
    """Of float32 vectors, exact: math.fsum rounds the sum once, and what that rounding left is summed the same way until nothing is."""
    from fractions import Fraction

    terms, total = (column.astype(np.float64) * values.astype(np.float64)).tolist(), Fraction(0)
    while part := math.fsum(terms):
        total += Fraction(part)
        terms.append(-part)
    return total


# --- what float32 may be off by ---------------------------------------------------------------------------------------


def rounding_tolerances(
    w_enc: Matrix, inputs: np.ndarray, products: Products, factor: np.ndarray | float, offset: float, removed: Removed = ()
) -> list[float]:
    """What rounding may move a value by in a right float32 port, for each input, float32 [n_cases, n]:

        4 * 2^-24 * sqrt(n) * the largest, over all features j, of factor_j * |x . w_j|, factor_j * |x o w_j| and offset,

    rounded up to 3 significant digits; x o w_j are the n terms of x . w_j, and |.| of them is their Euclidean norm. `factor` is
    float64 [n_features] or 1, what a value has of its product, and `offset` the largest |bias|.

    A sum of n terms in float32 is off by sum of d_k s_k, where s_k are its partial sums and |d_k| <= 2^-24; errors that are
    independent and of mean 0 stay below lambda * 2^-24 * sqrt(sum of s_k^2) but with probability 2 exp(-lambda^2 / 2) (N. J. Higham
    and T. Mary, "A new approach to probabilistic rounding error analysis", 2019, by Hoeffding's inequality). Partial sums of terms in an order
    that has nothing to do with their signs are about as large as the whole sum, or as a random walk of such steps, which is
    |x o w_j|. Their bound |x|.|w_j| for any order is sqrt(n) times that, and would hide a rounding to TF32; a rule without
    |x . w_j| is too small for features that point where x points. lambda = 4 leaves a factor of 2 (the tests measure it).
    What was `removed` from an input counts as x does, so many times.

    No BLAS shows: where the float64 products leave the third digit open, exact ones settle it.
    """
    from fractions import Fraction

    n = inputs.shape[1]
    squares = np.empty(0) if products.squares is None else products.squares
    sizes: np.ndarray = np.abs(inputs).sum(axis=1, dtype=np.float64)
    unit = (products.depth + 8) * UNIT_ROUNDOFF
    tolerances = []
    for x, product, square, size in zip(inputs, products.float64, squares, sizes):
        bound, norm = unit * size * products.largest_weights, np.sqrt(square)
        low = factor * np.maximum(np.abs(product) - bound, norm * (1 - unit)) * (1 - unit)
        high = factor * np.maximum(np.abs(product) + bound, norm * (1 + unit)) * (1 + unit)
        ends = [_rounded_up(n * Fraction(max(float(end.max()), offset)) ** 2 / 2**44) for end in (low, high)]
        if ends[0] != ends[1]:
            largest = max(_largest_square(w_enc, x, np.flatnonzero(high >= low.max()), factor), Fraction(offset) ** 2)
            ends[1] = _rounded_up(n * largest / 2**44)
        tolerances.append(ends[1])
    for vector, times in removed:
        [size] = rounding_tolerances(w_enc, vector[np.newaxis], multiply(w_enc, vector[np.newaxis], with_squares=True), factor, 0.0)
        tolerances = [max(own, float(f"{size * count:.3g}")) for own, count in zip(tolerances, times.tolist())]
    return tolerances


def _largest_square(w_enc: Matrix, x: np.ndarray, features: np.ndarray, factor: np.ndarray | float) -> Fraction:
    """The square of the largest of what a tolerance is made of but for the offset, exact, of some features."""
    from fractions import Fraction

    factors, at_once = np.broadcast_to(factor, int(features[-1]) + 1), max(1, COLUMN_BYTES // (4 * len(x)))
    largest = Fraction(0)
    for start in range(0, len(features), at_once):
        chosen = features[start : start + at_once]
        for feature, column in zip(chosen.tolist(), w_enc.columns(chosen).T):
            terms = (column.astype(np.float64) * x.astype(np.float64)).tolist()
            square = max(exact_product(column, x) ** 2, sum((Fraction(term) ** 2 for term in terms), Fraction(0)))
            largest = max(largest, square * Fraction(float(factors[feature])) ** 2)
    return largest


def _rounded_up(square: Fraction) -> float:
    """The least number of 3 significant digits whose square is not less than this one."""
    if not square:
        return 0.0
    exponent = math.floor(math.log10(square.numerator) - math.log10(square.denominator)) // 2 - 3  # a digit more than needed, or two
    unit = square / 100**exponent if exponent >= 0 else square * 100**-exponent
    digits = math.isqrt(math.ceil(unit) - 1) + 1
    while digits > 1000:
        digits, exponent = -(-digits // 10), exponent + 1
    return float(f"{digits}e{exponent}")
