# SPDX-License-Identifier: MIT OR Apache-2.0
"""Products of many ports at once: a block of a matrix is read once, rounded as each port has it, and multiplied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np

from oracle.arithmetic.products import Matrix
from oracle.diagnosis.port import Rounding

Roundings = tuple[Rounding, ...]  # one after the other

ROWS_AT_ONCE = 256  # of a matrix in memory


def multiply(matrix: Matrix, n_outputs: int, factors: list[np.ndarray], roundings: list[Roundings]) -> list[np.ndarray]:
    """Each factor, float32 [n, n_inputs], times the matrix as it is rounded for it: float64 [n, n_outputs]."""
    stacks = {key: np.concatenate([factor for factor, own in zip(factors, roundings) if own == key]) for key in set(roundings)}
    products = {key: np.zeros((len(rows), n_outputs)) for key, rows in stacks.items()}
    start = 0
    for block in matrix.blocks():
        span = slice(start, start + len(block))
        start = span.stop
        for key, rows in stacks.items():
            wide = reduce(lambda values, rounding: rounding(values), key, block).astype(np.float64)
            if matrix.features_first:
                # [n, n_inputs] @ [n_inputs, rows] -> [n, rows]
                products[key][:, span] = rows.astype(np.float64) @ wide.T
            else:
                # [n, rows] @ [rows, n_outputs] -> [n, n_outputs]
                products[key] += rows[:, span].astype(np.float64) @ wide
    ends = dict.fromkeys(stacks, 0)
    parts = []
    for factor, key in zip(factors, roundings):
        parts.append(products[key][ends[key] : ends[key] + len(factor)])
        ends[key] += len(factor)
    return parts


def in_memory(values: np.ndarray) -> Matrix:
    """A matrix of values [n_inputs, n_outputs]."""
    return Matrix(lambda: (values[at : at + ROWS_AT_ONCE] for at in range(0, len(values), ROWS_AT_ONCE)), features_first=False)


def transposed(matrix: Matrix) -> Matrix:
    return Matrix(matrix.blocks, features_first=not matrix.features_first)


def reshaped(matrix: Matrix, n_inputs: int, n_outputs: int) -> Matrix:
    """The matrix that is read where its buffer is taken as one with its axes swapped."""
    n_columns = n_outputs if matrix.features_first else n_inputs
    return Matrix(lambda: reshape_rows(matrix.blocks, n_columns), features_first=not matrix.features_first)


def reshape_rows(blocks: Callable[[], Iterator[np.ndarray]], n_columns: int) -> Iterator[np.ndarray]:
    """The same numbers in the same order, in rows of another length."""
    rest = np.empty(0, np.float32)
    for block in blocks():
        flat = np.concatenate([rest, block.reshape(-1)])
        end = len(flat) - len(flat) % n_columns
        if end:
            yield flat[:end].reshape(-1, n_columns)
        rest = flat[end:]
