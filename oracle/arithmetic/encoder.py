# SPDX-License-Identifier: MIT OR Apache-2.0
"""Blocks of W_enc in; pre-activations, active features, the top k and how near they are to flipping out.

float32 products give every pre-activation the way the ports compute it and pick the candidates. A float64
accumulation over the same blocks settles the gate, the order and the values, and where its error bound leaves
one of these open, exact arithmetic does. So the answer depends on no BLAS, no thread count, no block size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oracle.arithmetic.products import Matrix, NotFiniteError, multiply
from oracle.arithmetic.settling import Draft, Encoding, settle

_UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class LayerEncoding:
    """The encodings of one layer, and of all pre-activations: float32's largest error, and how many were settled."""

    encodings: list[Encoding]
    float32_max_abs_error: float
    n_settled: int


def encode(
    w_enc: Matrix, b_enc: np.ndarray, gate: np.ndarray, residuals: np.ndarray, *, k: int, tolerance: float, with_active: bool = False
) -> LayerEncoding:
    """Encode float32 residuals [n_seeds, d_model]; b_enc and gate are float32 [n_features].

    A feature is active iff pre = residual . W_enc[:, j] + b_enc_j is greater than gate_j; its activation is then pre.
    `with_active` asks for all features that are active, not for the top k alone. Raises NotFiniteError.
    """
    products = multiply(w_enc, residuals)
    pre32, pre64 = products.float32, products.float64
    with np.errstate(all="ignore"):  # what overflows is counted here, and refused
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
    sizes: np.ndarray = products.largest_weight * np.abs(residuals).sum(axis=1, dtype=np.float64)  # [n_seeds]
    unit = (products.depth + 4) * _UNIT_ROUNDOFF

    drafts = [
        Draft.of(pre32[seed], pre64[seed], gate, unit * (sizes[seed] + others), error32, k, tolerance, with_active)
        for seed in range(len(residuals))
    ]
    settled = settle(w_enc, b_enc, residuals, [draft.open_features for draft in drafts])
    encodings = [draft.close(exact) for draft, exact in zip(drafts, settled)]
    return LayerEncoding(encodings, error32, sum(map(len, settled)))
