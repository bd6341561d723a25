# SPDX-License-Identifier: MIT OR Apache-2.0
"""Encoders and decoders of every kind in plain float64, as their peers have them, which share no code with those under test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Chain:
    """How numbers follow from weights: what is done to a residual, then W_enc and b_enc, then the gate, then W_dec.

    `scale` is of a scaled input, `back` what an output is multiplied by then; `root` divides residuals, and multiplies W_dec's
    rows, by the root of d_model; `by_norms` multiplies pre-activations by the norms of W_dec's rows, and divides behind the gate.
    """

    gate: str = "relu"
    k: int = 0
    normalised: str = ""
    scale: float = 1.0
    back: float = 1.0
    minus_b_dec: bool = False
    root: bool = False
    by_norms: bool = False
    restores: bool = True


def encoder_input(chain: Chain, weights: Arrays, residual: np.ndarray) -> tuple[np.ndarray, float, float]:
    """What W_enc is multiplied by, float32 [d_model], and what an output is multiplied by and added to at the end."""
    x, factor, offset = residual.astype(np.float64), 1.0, 0.0
    if chain.root:
        x = x / np.sqrt(len(x))
    elif chain.normalised == "scaled":
        x, factor = x * chain.scale, chain.back
    elif chain.normalised == "unit_rms":  # SAELens: constant_norm_rescale
        norm = np.linalg.norm(x)
        x, factor = x * np.sqrt(len(x)) / norm, norm / np.sqrt(len(x))
    elif chain.normalised == "layer_norm":  # SAELens, with torch's deviation
        mean, deviation = x.mean(), x.std(ddof=1)
        x, factor, offset = (x - mean) / (deviation + 1e-5), deviation, mean
    if chain.minus_b_dec:
        x = x - weights["b_dec"]
    return x.astype(np.float32), *((factor, offset) if chain.restores else (1.0, 0.0))


def activations(chain: Chain, weights: Arrays, x: np.ndarray) -> np.ndarray:
    """float64 [n_features], 0 where a feature does not fire; as the gate has them, before any division by norms."""
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    product = wide["w_enc"] @ x.astype(np.float64)
    if chain.gate == "gated":
        magnitude = np.maximum(product * np.exp(wide["r_mag"]) + wide["b_mag"], 0)
        return magnitude * (product + wide["b_gate"] > 0)
    pre = product + wide["b_enc"]
    if chain.by_norms:
        pre = pre * np.linalg.norm(wide["w_dec"][:, 0], axis=1)
    if chain.gate in ("jumprelu", "jumprelu of all"):  # of all: a negative threshold lets negative values through
        return pre * (pre > np.maximum(wide["threshold"], 0 if chain.gate == "jumprelu" else -np.inf))
    relu = np.maximum(pre, 0)
    if chain.gate == "relu":
        return relu
    kept = np.zeros_like(pre)
    if chain.gate == "groupmax":
        groups = relu.reshape(chain.k, -1)
        places = groups.argmax(axis=1) + np.arange(chain.k) * groups.shape[1]
        kept[places] = relu[places]
        return kept
    order = np.argsort(-(np.abs(pre) if chain.gate == "abstopk" else pre), kind="stable")[: chain.k]
    kept[order] = (relu if chain.gate == "topk" else pre)[order]
    return kept


def outputs(chain: Chain, weights: Arrays, residual: np.ndarray) -> np.ndarray:
    """What the decoder makes of a residual: float64 [n_targets, d_out]."""
    x, factor, offset = encoder_input(chain, weights, residual)
    acts = activations(chain, weights, x)
    w_dec = weights["w_dec"].astype(np.float64)  # [n_features, n_targets, d_out]
    if chain.by_norms:
        acts = acts / np.linalg.norm(w_dec[:, 0], axis=1)
    out = np.einsum("f,fto->to", acts, w_dec) * (np.sqrt(len(x)) if chain.root else 1.0)
    b_dec = weights["b_dec"].astype(np.float64)
    if b_dec.ndim == 1:  # of the layer's own target
        out[0] += b_dec
    else:
        out += b_dec
    if "w_skip" in weights:
        out[0] += residual.astype(np.float64) @ weights["w_skip"].astype(np.float64)
    return np.asarray(out * factor + offset)
