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

Blocks = Callable[[], Iterator[np.ndarray]]
Vectors = Callable[[], tuple[np.ndarray, np.ndarray]]

MARGIN_DECIMALS = 6
_COLUMNS_AT_ONCE = 256
_UNIT_ROUNDOFF = 2.0**-53


class NotFiniteError(ValueError):
    """W_enc, or a pre-activation, holds NaN or infinities."""


@dataclass(frozen=True)
class Encoding:
    """What one residual gives.

    `top` holds (feature index, activation): activations are float32 values, descending, then by index.
    `rank_margin` is None where fewer than two features are ranked. Margins are in the units of the activations.
    """

    n_active: int
    n_active_bounds: tuple[int, int]
    top: list[tuple[int, float]]
    rank_margin: float | None
    gate_margin: float
    flags: list[str]


@dataclass(frozen=True)
class LayerEncoding:
    """The encodings of one layer, and of all pre-activations: float32's largest error, and how many were settled."""

    encodings: list[Encoding]
    float32_max_abs_error: float
    n_settled: int


def encode(w_enc_blocks: Blocks, vectors: Vectors, residuals: np.ndarray, *, k: int, tolerance: float) -> LayerEncoding:
    """Encode float32 residuals [n_seeds, d_model] with the rows of W_enc [d_model, n_features].

    A feature is active iff pre = residual . W_enc[:, j] + b_enc_j is greater than gate_j; its activation is then pre.
    Each call of `w_enc_blocks` starts a pass over W_enc. `vectors` gives b_enc and gate, float32 [n_features], and is
    called behind the first pass: a file that can be read forwards alone has them there. Raises NotFiniteError.
    """
    pre32, pre64, largest_weight, depth = _products(w_enc_blocks, residuals)
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
    others = float(np.max(np.abs(b_enc))) + float(np.max(gate)) + tolerance
    sums = largest_weight * np.sum(np.abs(residuals), axis=1, dtype=np.float64) + others  # [n_seeds]
    bounds = (depth + 4) * _UNIT_ROUNDOFF * sums

    drafts = [
        _Draft.of(pre32[seed], pre64[seed], gate, float(bounds[seed]), error32, k, tolerance)
        for seed in range(len(residuals))
    ]
    settled = _settle(w_enc_blocks, b_enc, residuals, [draft.open_features for draft in drafts])
    return LayerEncoding(
        [draft.close(exact) for draft, exact in zip(drafts, settled)], error32, sum(map(len, settled))
    )


def _products(w_enc_blocks: Blocks, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """float32 and float64 [n_seeds, n_features], the largest |W_enc|, and the depth of the float64 sums.

    A term is added to at most all others of its block, in whatever order BLAS likes, and then block to block.
    """
    residuals64 = residuals.astype(np.float64)
    pre32 = product32 = np.empty((0, 0), np.float32)
    pre64 = product64 = block64 = np.empty((0, 0), np.float64)
    largest, n_bad, row, n_blocks, most_rows = 0.0, 0, 0, 0, 0
    with np.errstate(all="ignore"):  # what overflows is found by the caller
        for block in w_enc_blocks():
            if not n_blocks:
                shape = len(residuals), block.shape[1]
                pre32, product32 = np.zeros(shape, np.float32), np.empty(shape, np.float32)
                pre64, product64 = np.zeros(shape, np.float64), np.empty(shape, np.float64)
            rows = slice(row, row + len(block))
            row = rows.stop
            n_blocks, most_rows = n_blocks + 1, max(most_rows, len(block))
            peak = max(float(block.max()), -float(block.min()))  # max and min both return NaN where there is one
            if not math.isfinite(peak):
                n_bad += int(np.count_nonzero(~np.isfinite(block)))
            largest = max(largest, peak)
            # [n_seeds, rows] @ [rows, n_features] -> [n_seeds, n_features]
            pre32 += np.matmul(residuals[:, rows], block, out=product32)
            if len(block64) < len(block):
                block64 = np.empty(block.shape)
            np.copyto(block64[: len(block)], block)
            pre64 += np.matmul(residuals64[:, rows], block64[: len(block)], out=product64)
    if n_bad:
        raise NotFiniteError(f"W_enc has {n_bad} values that are NaN or infinite")
    return pre32, pre64, largest, n_blocks + most_rows


@dataclass(frozen=True)
class _Draft:
    """One case after the float64 pass: what it decides, and `open_features`, which it leaves open."""

    pre: np.ndarray  # float64 [n_features]
    gate: np.ndarray  # float32 [n_features]
    candidates: np.ndarray  # of the top k and the next one behind them, int [n], maybe with some more
    open_features: np.ndarray  # int [n]
    k: int
    tolerance: float

    @classmethod
    def of(
        cls,
        pre32: np.ndarray,
        pre: np.ndarray,
        gate: np.ndarray,
        bound: float,
        error32: float,
        k: int,
        tolerance: float,
    ) -> _Draft:
        """`bound` is on |pre - exact|, `error32` on |pre32 - pre|."""
        distance = pre - gate
        magnitude = np.abs(distance)
        gate_open = magnitude <= bound
        is_open = gate_open | (np.abs(magnitude - tolerance) <= bound)

        nearest = float(magnitude.min())
        if _rounds_apart(nearest - bound, nearest + bound):
            is_open |= magnitude <= nearest + 2 * bound

        # The k + 1 first of the active features are among the k + 1 + n_open first of those that may be active, and
        # a feature that float32 puts more than twice its error below the last of these is not.
        possible = np.flatnonzero(distance > -bound)
        count = k + 1 + int(np.count_nonzero(gate_open))
        candidates = possible
        if count < len(possible):
            values = pre32[possible]
            chosen = np.argpartition(values, -count)[-count:]
            cut = float(values[chosen].min()) - 2 * (error32 + bound)
            candidates = possible[values >= cut]

        ranked = np.sort(pre[candidates])[::-1]
        gaps = ranked[:-1] - ranked[1:]
        first = ranked[: k + 1]
        with np.errstate(over="ignore"):
            values_open = np.any((first - bound).astype(np.float32) != (first + bound).astype(np.float32))
        smallest = float(gaps[:k].min()) if k and len(gaps) else 0.0
        if (
            values_open
            or np.any(gaps <= 2 * bound)
            or np.any(gate_open[candidates])
            or _rounds_apart(smallest - 2 * bound, smallest + 2 * bound)
        ):
            is_open[candidates] = True
        return cls(pre, gate, candidates, np.flatnonzero(is_open), k, tolerance)

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
        rank_margin = _round_margin(min(gaps)) if gaps else None
        rounded_gate_margin = _round_margin(gate_margin)

        flags = []
        if rank_margin is not None and rank_margin <= 2 * self.tolerance:
            flags.append("rank-tie")
        if rounded_gate_margin <= self.tolerance:
            flags.append("gate-tie")
        n_active = int(np.count_nonzero(active))
        if n_active == 0:
            flags.append("no-active-features")
        return Encoding(
            n_active=n_active,
            n_active_bounds=(int(np.count_nonzero(surely)), int(np.count_nonzero(maybe))),
            top=[(index, _round_to_float32(values[index])) for index in ranked[: self.k]],
            rank_margin=rank_margin,
            gate_margin=rounded_gate_margin,
            flags=flags,
        )


def _settle(
    w_enc_blocks: Blocks, b_enc: np.ndarray, residuals: np.ndarray, open_features: list[np.ndarray]
) -> list[dict[int, Fraction]]:
    """For each seed the exact pre-activations of its open features, by more passes over W_enc where there are any."""
    settled: list[dict[int, Fraction]] = [{} for _ in open_features]
    features = np.unique(np.concatenate(open_features))
    for start in range(0, len(features), _COLUMNS_AT_ONCE):
        wanted = features[start : start + _COLUMNS_AT_ONCE]
        columns = np.concatenate([block[:, wanted] for block in w_enc_blocks()])  # [d_model, n_wanted]
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
    return float(round(value, MARGIN_DECIMALS))


def _rounds_apart(low: float, high: float) -> bool:
    """Whether two bounds of one margin, which is not negative, leave open how it is rounded."""
    return round(max(low, 0.0), MARGIN_DECIMALS) != round(high, MARGIN_DECIMALS)
