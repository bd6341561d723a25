# SPDX-License-Identifier: MIT OR Apache-2.0
"""Active features in; what the decoder makes of them out, the same to the last bit on every machine.

A float32 activation times a float32 weight is exact in float64, and the sums are made of single float64 additions in
an order that depends on nothing but the active features: in groups by their place among these, each group folded in
halves. No BLAS, no NumPy reduction, whose orders are their own affair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from oracle.arithmetic.encoder import ActiveFeatures
from oracle.arithmetic.numbers import UNIT_ROUNDOFF_32
from oracle.arithmetic.products import Matrix

GROUP = 32
N_FIRST = 10
# What chance is given: slack that is anything up to its bound has a deviation of bound / sqrt(3), so that it is over 5.
SLACK_DEVIATIONS, ROUNDING_DEVIATIONS = 3, 4
_SIGNIFICANT_DIGITS = 3  # of a tolerance


class Output(NamedTuple):
    """What is said of an output, float64 [d_model]: its norm, sum, sum of squares and first ten values.

    `tolerance` is how far each value of a correct port's may be from these.
    """

    norm: float
    sum: float
    sum_of_squares: float
    first_10: tuple[float, ...]
    tolerance: float


class Sums:
    """Adds up the rows that it is given, [..., d_model] each, in groups of GROUP by their number.

    `values` are sums of a * row and `squares` of (a * row)^2; `spread` of (slack * row)^2, but of rows that may be there
    or not as a whole, whose |slack * row| add up in `flips`.
    """

    def __init__(self, row_shape: tuple[int, ...]):
        self.values, self.squares, self.spread, self.flips = (np.zeros(row_shape) for _ in range(4))
        self.count = 0
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._n_waiting = 0

    def add(self, rows: np.ndarray, factors: np.ndarray, slack: np.ndarray, flips: np.ndarray) -> None:
        """float32 rows [n, ..., d_model], float32 factors, float64 slack and bool flips [n]."""
        self.count += len(rows)
        self._waiting.append((rows.astype(np.float64), factors.astype(np.float64), slack * ~flips, slack * flips))
        self._n_waiting += len(rows)
        if self._n_waiting >= GROUP:
            self._fold(self._n_waiting - self._n_waiting % GROUP)

    def close(self) -> None:
        """Take in the last group, filled up with zeros."""
        if self._n_waiting:
            lacking = GROUP - self._n_waiting
            nothing = np.zeros(lacking)
            self._waiting.append((np.zeros((lacking, *self.values.shape)), nothing, nothing, nothing))
            self._fold(GROUP)

    def scale(self, factor: float) -> None:
        """Multiply what was added up: as if every row had been."""
        for total, power in ((self.values, 1), (self.squares, 2), (self.spread, 2), (self.flips, 1)):
            total *= factor**power

    @classmethod
    def joined(cls, parts: list[Sums]) -> Sums:
        """The sums of outputs that follow each other, of [n_i] each: [all n_i]."""
        whole = cls((0,))
        whole.values, whole.squares, whole.spread, whole.flips = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "squares", "spread", "flips")
        )
        whole.count = parts[0].count
        return whole

    def _fold(self, n_rows: int) -> None:
        parts = [np.concatenate(part) for part in zip(*self._waiting)]
        self._waiting = [tuple(part[n_rows:] for part in parts)] if n_rows < len(parts[0]) else []
        self._n_waiting = len(parts[0]) - n_rows
        along = (slice(None), *[np.newaxis] * self.values.ndim)
        rows = parts[0][:n_rows]
        factors, slack, flips = (part[:n_rows][along] for part in parts[1:])
        terms, moves = rows * factors, rows * slack
        sums = [(self.values, terms), (self.squares, terms * terms), (self.spread, moves * moves)]
        if flips.any():
            sums.append((self.flips, np.abs(rows * flips)))
        for total, summands in sums:
            for group in fold(summands.reshape(-1, GROUP, *self.values.shape)):
                total += group


def fold(values: np.ndarray) -> np.ndarray:
    """Sums along axis 1, whose length is a power of two, by adding its second half to its first: [n, ...]."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


def decode(rows: Iterable[tuple[np.ndarray, np.ndarray]], cases: list[ActiveFeatures], row_shape: tuple[int, ...]) -> list[Sums]:
    """Each case's sum over its features of activation * W_dec[feature], float64 of `row_shape`.

    `rows` are parts of the features that any case has, ascending, and float32 W_dec of them, [n, *row_shape].
    """
    sums = [Sums(row_shape) for _ in cases]
    for features, block in rows:
        for active, total in zip(cases, sums):
            first, last = np.searchsorted(active.features, (features[0], features[-1] + 1))
            if first < last:
                own = np.searchsorted(features, active.features[first:last])
                span = slice(first, last)
                total.add(block[own], active.activations[span], active.slack[span], active.at_gate[span])
    for total in sums:
        total.close()
    return sums


def decode_columns(blocks: Iterable[np.ndarray], cases: list[ActiveFeatures]) -> list[Sums]:
    """The same of a W_dec that lies the other way round, in blocks of outputs, float32 [outputs, n_features]: float64 [d_model]."""
    parts: list[list[Sums]] = [[] for _ in cases]
    for block in blocks:
        for active, own in zip(cases, parts):
            part = Sums((len(block),))
            if len(active.features):
                part.add(block[:, active.features].T, active.activations, active.slack, active.at_gate)
            part.close()
            own.append(part)
    return [Sums.joined(own) for own in parts]


def divided(active: ActiveFeatures, norms: np.ndarray) -> ActiveFeatures:
    """Features whose activations are divided by `norms`, float32 [n_features], before W_dec."""
    own = norms[active.features].astype(np.float64)
    return active._replace(activations=active.activations / own, slack=active.slack / own)


def norms(blocks: Iterator[np.ndarray], *, features_first: bool) -> np.ndarray:
    """The norm of each feature's row of W_dec, rounded to float32: float32 [n_features]. The order of the sums is fixed.

    `blocks` are float32 [features, d_model] or, not `features_first`, [outputs, n_features].
    """
    if features_first:
        squares = np.concatenate([fold(_padded(block.astype(np.float64) ** 2)) for block in blocks])
    else:
        squares = sum((row.astype(np.float64) ** 2 for block in blocks for row in block), start=np.zeros(()))
    return np.asarray(np.sqrt(squares), np.float32)


def _padded(values: np.ndarray) -> np.ndarray:
    """Rows filled up with zeros to a length that is a power of two."""
    padded = np.zeros((len(values), 1 << (values.shape[1] - 1).bit_length()))
    padded[:, : values.shape[1]] = values
    return padded


def skip_connection(w_skip: Matrix, residuals: np.ndarray, d_out: int) -> list[Sums]:
    """What W_skip gives for each of float32 residuals [n, d_model]: float64 [d_out].

    Its rows are those of an input: residual @ W_skip; or of an output: W_skip @ residual.
    """
    sums = [Sums((d_out,)) for _ in residuals]
    start = 0
    for block in w_skip.blocks():
        span = slice(start, start + len(block))
        start = span.stop
        for residual, total in zip(residuals, sums):
            if w_skip.features_first:
                _add_outputs(total, span, block, residual)
            else:
                total.add(block, residual[span], np.zeros(len(block)), np.zeros(len(block), bool))
    for total in sums:
        total.close()
    return sums


def _add_outputs(total: Sums, span: slice, block: np.ndarray, residual: np.ndarray) -> None:
    """Outputs of whole rows, [rows, d_model] * [d_model], folded along their inputs."""
    terms = _padded(block.astype(np.float64) * residual.astype(np.float64))
    total.values[span], total.squares[span] = fold(terms), fold(terms * terms)
    total.count = block.shape[1]


def output(
    parts: list[Sums], b_dec: np.ndarray | None, target: int | None = None, *, factor: float = 1.0, offset: float = 0.0
) -> Output:
    """The sum of the parts, and b_dec where there is one, times a factor, plus an offset; of parts [n_targets, d_model] that of one target.

    The tolerance is what the features at their gates move together, three times what the slack of the others moves by
    chance in either direction, and four times what adding `count` terms up in float32 may, which goes with the square
    root of their number.
    """
    chosen = [(sums, slice(None) if target is None or sums.values.ndim == 1 else target) for sums in parts]
    values = sum((sums.values[of] for sums, of in chosen[1:]), start=chosen[0][0].values[chosen[0][1]])
    if b_dec is not None:
        values = values + b_dec
    squares, spread, flips = (
        sum((getattr(sums, name)[of] for sums, of in chosen), start=np.zeros(values.shape)) for name in ("squares", "spread", "flips")
    )
    n_terms = 1 + sum(sums.count for sums, _ in chosen)
    rounding = UNIT_ROUNDOFF_32 * math.sqrt(n_terms) * (np.abs(values) + np.sqrt(squares))
    worst = float(np.max(flips + SLACK_DEVIATIONS * np.sqrt(spread) + ROUNDING_DEVIATIONS * rounding)) * abs(factor)
    if (factor, offset) != (1.0, 0.0):
        values = values * factor + offset
        worst += ROUNDING_DEVIATIONS * UNIT_ROUNDOFF_32 * float(np.max(np.abs(values)))
    sum_of_squares = math.fsum((values * values).tolist())
    return Output(
        norm=math.sqrt(sum_of_squares),
        sum=math.fsum(values.tolist()),
        sum_of_squares=sum_of_squares,
        first_10=tuple(values[:N_FIRST].tolist()),
        tolerance=float(f"{worst:.{_SIGNIFICANT_DIGITS}g}"),
    )


def active_in_any(cases: list[ActiveFeatures]) -> np.ndarray:
    """The features that any case has, ascending."""
    return np.unique(np.concatenate([active.features for active in cases]))
