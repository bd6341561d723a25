# SPDX-License-Identifier: MIT OR Apache-2.0
"""Blocks of W_enc in; pre-activations, active features, the top k and how near they are to flipping out.

float32 products give every pre-activation the way the ports compute it and pick the candidates. A float64
accumulation over the same blocks settles the gate, the order and the values, and where its error bound leaves
one of these open, exact arithmetic does (A. Ziv's strategy, "Fast evaluation of elementary mathematical
functions with correctly rounded last bit", 1991). So the answer depends on no BLAS, no thread count, no block size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction

Vectors = Callable[[], tuple[np.ndarray, np.ndarray]]

MARGIN_DECIMALS = 6
_COLUMNS_AT_ONCE = 256
_UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Matrix:
    """W_enc as it lies in its file: each call of `blocks` is a pass over it, a block of rows, float32, at a time.

    A row is that of an input, so that the matrix is [d_model, n_features], or of a feature: [n_features, d_model].
    """

    blocks: Callable[[], Iterator[np.ndarray]]
    by_feature: bool

    def columns(self, features: np.ndarray) -> np.ndarray:
        """The encoder vectors of some features in ascending order, float32 [d_model, n], by a pass over it."""
        if not self.by_feature:
            return np.concatenate([block[:, features] for block in self.blocks()])
        taken, start = [], 0
        for block in self.blocks():
            first, last = np.searchsorted(features, (start, start + len(block)))
            taken.append(block[features[first:last] - start])
            start += len(block)
        return np.ascontiguousarray(np.concatenate(taken).T)


class NotFiniteError(ValueError):
    """W_enc, or a pre-activation, holds NaN or infinities."""


@dataclass(frozen=True, eq=False)
class Firing:
    """All features that fire, in ascending order: int [n], and their float32 activations [n].

    `slack` [n], float64, is how far a correct port's activation may be from this one: the tolerance, and where a
    feature is `at_gate`, bool [n], so that it may fire or not, all of it. Such a feature is here too if it does not fire,
    with 0.
    """

    features: np.ndarray
    activations: np.ndarray
    slack: np.ndarray
    at_gate: np.ndarray


@dataclass(frozen=True)
class Encoding:
    """What one residual gives.

    `top` holds (feature index, activation): activations are float32 values, descending, then by index.
    `rank_margin` is None where fewer than two features are ranked. Margins are in the units of the activations.
    `gate_ties` are the features, ascending, that may fire or not within the tolerance, as many as the bounds are apart.
    The flags are decided by the exact margins, not by the rounded ones.
    `firing` is there if it was asked for.
    """

    n_active: int
    n_active_bounds: tuple[int, int]
    top: list[tuple[int, float]]
    rank_margin: float | None
    gate_margin: float
    gate_ties: list[int]
    flags: list[str]
    firing: Firing | None = None


@dataclass(frozen=True)
class LayerEncoding:
    """The encodings of one layer, and of all pre-activations: float32's largest error, and how many were settled."""

    encodings: list[Encoding]
    float32_max_abs_error: float
    n_settled: int


def encode(
    w_enc: Matrix, vectors: Vectors, residuals: np.ndarray, *, k: int, tolerance: float, with_firing: bool = False
) -> LayerEncoding:
    """Encode float32 residuals [n_seeds, d_model].

    A feature is active iff pre = residual . W_enc[:, j] + b_enc_j is greater than gate_j; its activation is then pre.
    `vectors` gives b_enc and gate, float32 [n_features], and is
    called behind the first pass: a file that can be read forwards alone has them there. `with_firing` asks for the
    activations of all features that fire, not of the top k alone. Raises NotFiniteError.
    """
    pre32, pre64, largest_weight, depth = _products(w_enc, residuals)
    b_enc, gate = vectors()
    with np.errstate(all="ignore"):  # what overflows is found here, and refused
        pre32 += b_enc
        pre64 += b_enc
    n_bad = int(np.count_nonzero(~np.isfinite(pre32)))
    if n_bad:
        raise NotFiniteError(f"{n_bad} pre-activations overflow float32: the weights are too large to be real")
    error32 = float(np.max(np.abs(pre32 - pre64)))

    # |computed - exact| <= depth u sum |terms|, where depth is the most additions that a term goes through (Higham,
    # "Accuracy and Stability of Numerical Algorithms", section 4.2); float64 products of float32 are exact. Four
    # more are for b_enc and the roundings of the comparisons with gate and tolerance, whose sizes are in the sum.
    others = np.abs(b_enc).astype(np.float64) + gate + tolerance  # [n_features]
    products: np.ndarray = largest_weight * np.abs(residuals).sum(axis=1, dtype=np.float64)  # [n_seeds]
    unit = (depth + 4) * _UNIT_ROUNDOFF

    drafts = [
        _Draft.of(pre32[seed], pre64[seed], gate, unit * (products[seed] + others), error32, k, tolerance, with_firing)
        for seed in range(len(residuals))
    ]
    settled = _settle(w_enc, b_enc, residuals, [draft.open_features for draft in drafts])
    return LayerEncoding(
        [draft.close(exact) for draft, exact in zip(drafts, settled)], error32, sum(map(len, settled))
    )


def _products(w_enc: Matrix, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """float32 and float64 [n_seeds, n_features], the largest |W_enc|, and the depth of the float64 sums."""
    largest, n_bad = 0.0, 0

    def seen() -> Iterator[np.ndarray]:
        nonlocal largest, n_bad
        for block in w_enc.blocks():
            peak = max(float(block.max()), -float(block.min()))  # max and min both return NaN where there is one
            if not math.isfinite(peak):
                n_bad += int(np.count_nonzero(~np.isfinite(block)))
            largest = max(largest, peak)
            yield block

    multiply = _multiply_features if w_enc.by_feature else _multiply_inputs
    with np.errstate(all="ignore"):  # what overflows is found by the caller
        pre32, pre64, depth = multiply(seen(), residuals)
    if n_bad:
        raise NotFiniteError(f"W_enc has {n_bad} values that are NaN or infinite")
    return pre32, pre64, largest, depth


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


@dataclass(frozen=True)
class _Draft:
    """One case after the float64 pass: what it decides, and `open_features`, which it leaves open."""

    pre: np.ndarray  # float64 [n_features]
    gate: np.ndarray  # float32 [n_features]
    candidates: np.ndarray  # of the top k and the next one behind them, int [n], maybe with some more
    open_features: np.ndarray  # int [n]
    k: int
    tolerance: float
    with_firing: bool

    @classmethod
    def of(
        cls,
        pre32: np.ndarray,
        pre: np.ndarray,
        gate: np.ndarray,
        bound: np.ndarray,
        error32: float,
        k: int,
        tolerance: float,
        with_firing: bool,
    ) -> _Draft:
        """`bound` [n_features] is on |pre - exact|, `error32` on |pre32 - pre|."""
        distance = pre - gate
        magnitude = np.abs(distance)
        gate_open = magnitude <= bound
        is_open = gate_open | (np.abs(magnitude - tolerance) <= bound)

        nearest = float((magnitude + bound).min())  # the smallest is at most this
        if _rounds_apart(float((magnitude - bound).min()), nearest):
            is_open |= magnitude - bound <= nearest

        # The k + 1 first of the active features are among the k + 1 + n_open first of those that may be active, and
        # a feature that float32 puts more than twice its error below the last of these is not.
        possible = np.flatnonzero(distance > -bound)
        if with_firing:
            with np.errstate(over="ignore"):
                ends = [(pre + off)[possible].astype(np.float32) for off in (-bound, bound)]
            is_open[possible[ends[0] != ends[1]]] = True
        count = k + 1 + int(np.count_nonzero(gate_open))
        candidates = possible
        if count < len(possible):
            values = pre32[possible]
            chosen = np.argpartition(values, -count)[-count:]
            off = error32 + bound[possible]  # |pre32 - exact| at most
            candidates = possible[values + off >= float((values - off)[chosen].min())]

        ranked = candidates[np.argsort(pre[candidates])[::-1]]
        low, high = pre[ranked] - bound[ranked], pre[ranked] + bound[ranked]
        # Each gap to its next lies between these two. Bounds may overlap beyond neighbours, where one is far wider.
        gap_low, gap_high = low[:-1] - high[1:], high[:-1] - low[1:]
        overlap = np.minimum.accumulate(low)[:-1] <= np.maximum.accumulate(high[::-1])[::-1][1:]
        with np.errstate(over="ignore"):
            values_open = low[: k + 1].astype(np.float32) != high[: k + 1].astype(np.float32)
        if (
            np.any(values_open)
            or np.any(overlap)
            or np.any(gate_open[candidates])
            or (len(gap_low) and _leaves_open(float(gap_low[:k].min()), float(gap_high[:k].min()), 2 * tolerance))
        ):
            is_open[candidates] = True
        return cls(pre, gate, candidates, np.flatnonzero(is_open), k, tolerance, with_firing)

    def close(self, exact: dict[int, Fraction]) -> Encoding:
        """The encoding, with the exact pre-activations of the open features."""
        distance = self.pre - self.gate
        active = distance > 0
        surely = distance > self.tolerance
        maybe = distance > -self.tolerance
        magnitude = np.abs(distance)
        gate_margin: float | Fraction = math.inf
        for index, value in exact.items():
            # Fractions are exact, also where a float is compared with one or taken from one that was made of it.
            exact_distance = value - value.from_float(float(self.gate[index]))
            active[index] = exact_distance > 0
            surely[index] = exact_distance > self.tolerance
            maybe[index] = exact_distance > -self.tolerance
            magnitude[index] = math.inf
            gate_margin = min(gate_margin, abs(exact_distance))
        gate_margin = min(gate_margin, float(magnitude.min()))

        values = {int(index): exact.get(int(index), float(self.pre[index])) for index in self.candidates}
        ranked = sorted((index for index in values if active[index]), key=lambda index: (-values[index], index))
        gaps = [values[a] - values[b] for a, b in zip(ranked[: self.k], ranked[1 : self.k + 1])]
        rank_margin = min(gaps, default=None)

        # of() opened whatever float64 may put on the wrong side of these two.
        flags = []
        if rank_margin is not None and rank_margin <= 2 * self.tolerance:
            flags.append("rank-tie")
        if gate_margin <= self.tolerance:
            flags.append("gate-tie")
        n_active = int(np.count_nonzero(active))
        if n_active == 0:
            flags.append("no-active-features")
        return Encoding(
            n_active=n_active,
            n_active_bounds=(int(np.count_nonzero(surely)), int(np.count_nonzero(maybe))),
            top=[(index, _round_to_float32(values[index])) for index in ranked[: self.k]],
            rank_margin=None if rank_margin is None else _round_margin(rank_margin),
            gate_margin=_round_margin(gate_margin),
            gate_ties=np.flatnonzero(maybe & ~surely).tolist(),
            flags=flags,
            firing=self._firing(exact, active, maybe & ~surely) if self.with_firing else None,
        )

    def _firing(self, exact: dict[int, Fraction], active: np.ndarray, at_gate: np.ndarray) -> Firing:
        activations = np.where(active, self.pre, 0.0).astype(np.float32)
        for index, value in exact.items():
            activations[index] = _round_to_float32(value) if active[index] else 0.0
        features = np.flatnonzero(active | at_gate)
        slack = np.where(at_gate, self.gate.astype(np.float64) + 2 * self.tolerance, self.tolerance)
        return Firing(features, activations[features], slack[features], at_gate[features])


def _settle(
    w_enc: Matrix, b_enc: np.ndarray, residuals: np.ndarray, open_features: list[np.ndarray]
) -> list[dict[int, Fraction]]:
    """For each seed the exact pre-activations of its open features, by more passes over W_enc where there are any."""
    settled: list[dict[int, Fraction]] = [{} for _ in open_features]
    features = np.unique(np.concatenate(open_features))
    for start in range(0, len(features), _COLUMNS_AT_ONCE):
        wanted = features[start : start + _COLUMNS_AT_ONCE]
        columns = w_enc.columns(wanted)  # [d_model, n_wanted]
        for seed, residual in enumerate(residuals):
            for index in np.intersect1d(wanted, open_features[seed], assume_unique=True):
                column = columns[:, np.searchsorted(wanted, index)]
                terms = (column.astype(np.float64) * residual.astype(np.float64)).tolist()
                settled[seed][int(index)] = _exact_sum(terms + [float(b_enc[index])])
    return settled


def _exact_sum(terms: list[float]) -> Fraction:
    """The sum, exact: math.fsum rounds it once, and what that rounding left is summed the same way until nothing is."""
    from fractions import Fraction  # not at the top: most runs settle nothing, and its import takes 5 ms

    total = Fraction(0)
    while part := math.fsum(terms):
        total += Fraction(part)
        terms.append(-part)
    return total


def _round_to_float32(value: float | Fraction) -> float:
    """The float32 nearest to an exact value, ties to even. By way of float64 it would be rounded twice."""
    near = np.float32(float(value))
    if isinstance(value, float):
        return float(near)
    neighbours = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return float(
        min(neighbours, key=lambda f: (abs(value.from_float(float(f)) - value), int(f.view(np.uint32)) & 1))
    )


def _round_margin(value: float | Fraction) -> float:
    return round(value, MARGIN_DECIMALS) if isinstance(value, float) else float(round(value, MARGIN_DECIMALS))


def _rounds_apart(low: float, high: float) -> bool:
    """Whether two bounds of one margin, which is not negative, leave open how it is rounded."""
    return round(max(low, 0.0), MARGIN_DECIMALS) != round(high, MARGIN_DECIMALS)


def _leaves_open(low: float, high: float, limit: float) -> bool:
    """Whether two bounds of one margin leave open how it is rounded, or whether it is at most `limit`."""
    return _rounds_apart(low, high) or low <= limit < high
