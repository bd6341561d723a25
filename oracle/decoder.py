# SPDX-License-Identifier: MIT OR Apache-2.0
"""Active features in; what the decoder makes of them out, the same to the last bit on every machine.

A float32 activation times a float32 weight is exact in float64, and the sums are made of single float64 additions in
an order that depends on nothing but the active features: in groups by their place among these, each group folded in
halves. No BLAS, no NumPy reduction, whose orders are their own affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from oracle.encoder import Firing

GROUP = 32
UNIT_ROUNDOFF_32 = 2.0**-24
N_FIRST = 10
_SIGNIFICANT_DIGITS = 3  # of a tolerance


@dataclass(frozen=True)
class Reconstruction:
    """What is said of an output, float64 [d_model]: its norm, sum, sum of squares and first values.

    `tolerance` is how far each value of a correct port's may be from these.
    """

    norm: float
    sum: float
    sum_of_squares: float
    first: list[float]
    tolerance: float


class Sums:
    """Adds up the rows that it is given, [..., d_model] each, in groups of GROUP by their number.

    `values` are sums of a * row, `spread` of (slack * row)^2 and `squares` of (a * row)^2.
    """

    def __init__(self, row_shape: tuple[int, ...]):
        self.values, self.spread, self.squares = (np.zeros(row_shape) for _ in range(3))
        self.count = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._n_waiting = 0

    def add(self, rows: np.ndarray, factors: np.ndarray, slack: np.ndarray) -> None:
        """float32 rows [n, ..., d_model], float32 factors and float64 slack [n]."""
        self.count += len(rows)
        self._waiting.append((rows.astype(np.float64), factors.astype(np.float64), slack))
        self._n_waiting += len(rows)
        if self._n_waiting >= GROUP:
            self._fold(self._n_waiting - self._n_waiting % GROUP)

    def close(self) -> None:
        """Take in the last group, filled up with zeros."""
        if self._n_waiting:
            lacking = GROUP - self._n_waiting
            nothing = np.zeros(lacking)
            self._waiting.append((np.zeros((lacking, *self.values.shape)), nothing, nothing))
            self._fold(GROUP)

    def _fold(self, n_rows: int) -> None:
        rows, factors, slack = (np.concatenate(parts) for parts in zip(*self._waiting))
        self._waiting = [(rows[n_rows:], factors[n_rows:], slack[n_rows:])] if n_rows < len(rows) else []
        self._n_waiting = len(rows) - n_rows
        along = (slice(None), *[np.newaxis] * self.values.ndim)
        terms, moves = rows[:n_rows] * factors[:n_rows][along], rows[:n_rows] * slack[:n_rows][along]
        for total, summands in ((self.values, terms), (self.spread, moves * moves), (self.squares, terms * terms)):
            for group in fold(summands.reshape(-1, GROUP, *self.values.shape)):
                total += group


def fold(values: np.ndarray) -> np.ndarray:
    """Sums along axis 1, whose length is a power of two, by adding its second half to its first: [n, ...]."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


def decode(rows: Iterable[tuple[np.ndarray, np.ndarray]], firings: list[Firing], row_shape: tuple[int, ...]) -> list[Sums]:
    """Each case's sum over its features of activation * W_dec[feature], float64 of `row_shape`.

    `rows` are parts of the features that any case has, ascending, and float32 W_dec of them, [n, *row_shape].
    """
    sums = [Sums(row_shape) for _ in firings]
    for features, block in rows:
        for firing, total in zip(firings, sums):
            first, last = np.searchsorted(firing.features, (features[0], features[-1] + 1))
            if first < last:
                mine = np.searchsorted(features, firing.features[first:last])
                total.add(block[mine], firing.activations[first:last], firing.slack[first:last])
    for total in sums:
        total.close()
    return sums


def skip(blocks: Iterable[np.ndarray], residuals: np.ndarray, *, by_output: bool) -> list[Sums]:
    """Each residual's way past the features: float64 [d_model], for float32 residuals [n, d_model].

    The rows of W_skip, float32, are those of an input: residual @ W_skip; or `by_output`: W_skip @ residual.
    """
    sums = [Sums(residuals.shape[1:]) for _ in residuals]
    start = 0
    for block in blocks:
        span = slice(start, start + len(block))
        start = span.stop
        for residual, total in zip(residuals, sums):
            if by_output:
                _add_outputs(total, span, block, residual)
            else:
                total.add(block, residual[span], np.zeros(len(block)))
    for total in sums:
        total.close()
    return sums


def _add_outputs(total: Sums, span: slice, block: np.ndarray, residual: np.ndarray) -> None:
    """Outputs of whole rows, [rows, d_model] * [d_model], folded along their inputs."""
    n_inputs = 1 << (block.shape[1] - 1).bit_length()
    terms = np.zeros((len(block), n_inputs))
    terms[:, : block.shape[1]] = block.astype(np.float64) * residual.astype(np.float64)
    total.values[span], total.squares[span] = fold(terms), fold(terms * terms)
    total.count = block.shape[1]


def reconstruction(parts: list[Sums], b_dec: np.ndarray | None, target: int | None = None) -> Reconstruction:
    """The sum of the parts, and b_dec where there is one; of parts [n_targets, d_model] that of one target.

    The tolerance is what the slack moves, by chance in either direction, and four times what adding `count` terms up
    in float32 may, which goes with the square root of their number.
    """
    chosen = [(sums, slice(None) if target is None or sums.values.ndim == 1 else target) for sums in parts]
    values = sum((sums.values[of] for sums, of in chosen[1:]), start=chosen[0][0].values[chosen[0][1]])
    if b_dec is not None:
        values = values + b_dec
    spread = sum((sums.spread[of] for sums, of in chosen), start=np.zeros(values.shape))
    squares = sum((sums.squares[of] for sums, of in chosen), start=np.zeros(values.shape))
    n_terms = 1 + sum(sums.count for sums, _ in chosen)
    rounding = 4 * UNIT_ROUNDOFF_32 * math.sqrt(n_terms) * (np.abs(values) + np.sqrt(squares))
    worst = float(np.max(np.sqrt(spread) + rounding))
    sum_of_squares = math.fsum((values * values).tolist())
    return Reconstruction(
        norm=math.sqrt(sum_of_squares),
        sum=math.fsum(values.tolist()),
        sum_of_squares=sum_of_squares,
        first=values[:N_FIRST].tolist(),
        tolerance=float(f"{worst:.{_SIGNIFICANT_DIGITS}g}"),
    )


def wanted(firings: list[Firing]) -> np.ndarray:
    """The features that any case has, ascending."""
    return np.unique(np.concatenate([firing.features for firing in firings]))
