# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ports of the tests' own, in float32, to hold exact vectors against: right ones, each with another order of sums, and wrong ones.

They are written from the formulas of the README, and share nothing with oracle but the layer's tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from oracle.vectors.exact import Tensors
from oracle.weights.sidefiles import Settings

F32 = np.float32
Array = np.ndarray
Sum = Callable[[Array, Array], Array]  # inputs [n] and weights [n, n_features] -> [n_features]


def in_order(order: Callable[[int], Array]) -> Sum:
    """float32 products, added one by one in an order of their places."""

    def dot(x: Array, w: Array) -> Array:
        total = np.zeros(w.shape[1], F32)
        for place in order(len(x)):
            total = total + x[place] * w[place]
        return total

    return dot


def in_lanes(lanes: int) -> Sum:
    """As SIMD does it: so many sums side by side, which are added up at the end."""

    def dot(x: Array, w: Array) -> Array:
        totals = np.zeros((lanes, w.shape[1]), F32)
        for place in range(len(x)):
            totals[place % lanes] += x[place] * w[place]
        total = totals[0]
        for lane in totals[1:]:
            total = total + lane
        return total

    return dot


def by_size(descending: bool) -> Sum:
    """The terms of each feature by their magnitude."""

    def dot(x: Array, w: Array) -> Array:
        terms = x[:, np.newaxis] * w
        order = np.argsort(-np.abs(terms) if descending else np.abs(terms), axis=0, kind="stable")
        total = np.zeros(w.shape[1], F32)
        for row in np.take_along_axis(terms, order, axis=0):
            total = total + row
        return total

    return dot


def pairwise(x: Array, w: Array) -> Array:
    terms = x[:, np.newaxis] * w
    while len(terms) > 1:
        if len(terms) % 2:
            terms = np.concatenate([terms, np.zeros((1, terms.shape[1]), F32)])
        terms = terms[0::2] + terms[1::2]
    return terms[0]


def fused(x: Array, w: Array) -> Array:
    """Multiplied and added with one rounding."""
    total = np.zeros(w.shape[1], F32)
    for place in range(len(x)):
        total = (np.longdouble(x[place]) * w[place].astype(np.longdouble) + total.astype(np.longdouble)).astype(F32)
    return total


def in_float64(x: Array, w: Array) -> Array:
    return (x.astype(np.float64)[:, np.newaxis] * w.astype(np.float64)).sum(axis=0)


def kahan(x: Array, w: Array) -> Array:
    total, lost = np.zeros(w.shape[1], F32), np.zeros(w.shape[1], F32)
    for place in range(len(x)):
        term = x[place] * w[place] - lost
        larger = total + term
        lost = (larger - total) - term
        total = larger
    return total


def float16_sums(x: Array, w: Array) -> Array:
    total = np.zeros(w.shape[1], np.float16)
    for place in range(len(x)):
        total = (total + (x[place] * w[place]).astype(np.float16)).astype(np.float16)
    return total.astype(F32)


RIGHT: dict[str, Sum] = {
    "ascending": in_order(np.arange),
    "even, then odd": in_order(lambda n: np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)])),
    "shuffled": in_order(lambda n: np.random.default_rng(7).permutation(n)),
    "from the middle": in_order(lambda n: np.argsort(np.abs(np.arange(n) - n // 2), kind="stable")),
    "4 lanes": in_lanes(4),
    "8 lanes": in_lanes(8),
    "smallest first": by_size(False),
    "largest first": by_size(True),
    "fused": fused,
    "pairwise": pairwise,
    "float64": in_float64,
    "Kahan": kahan,
    "reversed": in_order(lambda n: np.arange(n)[::-1]),
}


def to_bits(dropped: int, *, cut: bool = False) -> Callable[[Array], Array]:
    """Rounding to fewer bits of a significand."""

    def rounded(values: Array) -> Array:
        bits = np.asarray(values, F32).view(np.uint32)
        if not cut:
            bits = bits + ((bits >> np.uint32(dropped)) & np.uint32(1)) + np.uint32((1 << (dropped - 1)) - 1)
        return (bits & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)).view(F32)

    return rounded


bfloat16, bfloat16_cut, tf32, tf32_cut = to_bits(16), to_bits(16, cut=True), to_bits(13), to_bits(13, cut=True)


def float16(values: Array) -> Array:
    return np.asarray(values, F32).astype(np.float16).astype(F32)


def int8(values: Array) -> Array:
    """8 bits, a scale for each feature."""
    scale = np.abs(values).max(axis=0) / F32(127)
    return (np.round(values / scale) * scale).astype(F32)


def same(values: Any) -> Any:
    return values


def fast(x: Array, w: Array) -> Array:
    """By BLAS in float64, which is exact where vectors are: for wrong ports, of which there are many."""
    return (x.astype(np.float64) @ w.astype(np.float64)).astype(F32)


@dataclass(frozen=True)
class Layer:
    """What a port has of a layer: its tensors, and what its side file says."""

    settings: Settings
    tensors: Tensors
    thresholds: Array | None
    own_target: int = 0


@dataclass(frozen=True)
class Port:
    """A port: the fields are what can be done in another way, rightly or wrongly."""

    dot: Sum = fast
    residual: Callable[[Array], Array] = same
    inputs: Callable[[Layer, Array], Array] | None = None
    keeps_float64: bool = False
    w_enc: Callable[[Layer], Array] = lambda layer: layer.tensors["W_enc"]
    product: Callable[[Array], Array] = same  # what both factors are rounded to
    b_enc: Callable[[Array], Array] = same
    pre: Callable[[Array], Array] = same
    level: Callable[[Layer, Array], Array] = lambda layer, level: np.maximum(level, 0)
    fires: Callable[[Array, Array], Array] = lambda value, level: value > level
    changes: dict[str, Any] = field(default_factory=dict)  # of the settings
    magnitude_bias: str = "b_mag"
    scale: Callable[[Array], Array] = lambda r_mag: np.exp(r_mag.astype(np.float64)).astype(F32)
    is_gated: bool = True
    norms: bool = True
    activation: Callable[[Array, Array], Array] = lambda value, level: value
    key: Callable[[Array, Array], list[Any]] = lambda value, index: [index, -value]  # for lexsort
    keep: Callable[[Layer, list[int], Array], list[int]] = lambda layer, active, values: active
    index: Callable[[int, int], int] = lambda index, n: index
    count: Callable[[Layer, list[int]], int] = lambda layer, active: len(active)
    ties: str = "first"
    groups: str = "contiguous"
    decoded: Callable[[Array, Array, Array], Array] = lambda activations, values, level: activations
    w_dec: Callable[[Layer], Array] = lambda layer: layer.tensors["W_dec"]
    b_dec: float = 1
    b_dec_everywhere: bool = False
    skip: Callable[[Array], Array] = same
    skips: float = 1
    residuals: float = 0  # that are added to what the decoder gives
    restores: bool = True
    targets: Callable[[Array], Array] = same

    def answer(self, layer: Layer, residual: Array) -> dict[str, Any]:
        """n_active, active and reconstructions of a float32 residual."""
        with np.errstate(all="ignore"):
            return self._answer(replace(layer, settings=layer.settings._replace(**self.changes)), residual)

    def _answer(self, layer: Layer, residual: Array) -> dict[str, Any]:
        settings, tensors = layer.settings, layer.tensors
        r = self.residual(residual)
        x = self.inputs(layer, r) if self.inputs else right_inputs(layer, r)
        x = x if self.keeps_float64 else x.astype(F32)
        w_enc = self.w_enc(layer)
        sums = in_float64 if self.keeps_float64 else self.dot
        product = sums(self.product(x), self.product(w_enc))
        n = w_enc.shape[1]
        level = np.zeros(n, F32)
        is_open = np.ones(n, bool)
        if settings.gate == "gated":
            gate = product + self.b_enc(tensors["b_gate"])
            is_open = self.fires(gate, level) if self.is_gated else is_open
            value = product * self.scale(tensors["r_mag"]).astype(product.dtype) + self.b_enc(tensors[self.magnitude_bias])
        else:
            value = product + self.b_enc(tensors["b_enc"])
        value = self.pre(value)
        scale = np.ones(n, F32)
        if settings.by_decoder_norm and self.norms:
            scale = np.sqrt((tensors["W_dec"] ** 2).sum(axis=1))
            value = value * scale
        if settings.gate == "jumprelu" and layer.thresholds is not None:
            level = self.level(layer, layer.thresholds)
        active = self._fires(settings, value, level) & is_open
        shown = np.where(active, self.activation(value, level), 0).astype(F32)
        places = np.arange(n)
        order = np.lexsort(self.key(shown, places))
        listed = self.keep(layer, [int(place) for place in order if active[place]], shown)
        outputs = self._outputs(layer, self.decoded(shown, value.astype(F32), level) / scale, r, residual)
        return {
            "n_active": self.count(layer, listed),
            "active": [{"index": self.index(place, n), "activation": float(shown[place])} for place in listed],
            "outputs": outputs,
        }

    def _fires(self, settings: Settings, value: Array, level: Array) -> Array:
        n = len(value)
        if settings.gate in ("relu", "jumprelu", "gated") or settings.k is None:
            return self.fires(value, level)
        measure = np.abs(value) if settings.gate == "abstopk" else value
        inside = np.zeros(n, bool)
        groups = [np.arange(n)]
        kept = settings.k
        if settings.gate == "groupmax":
            groups = np.split(np.arange(n), settings.k) if self.groups == "contiguous" else [np.arange(start, n, settings.k) for start in range(settings.k)]
            kept = 1
        for group in groups:
            own = measure[group]
            order = np.lexsort([group if self.ties == "first" else -group, -own])
            inside[group[order[:kept]]] = True
            if self.ties == "all":
                inside[group[own >= own[order[kept - 1]]]] = True
        has_floor = settings.relu and settings.gate in ("topk", "groupmax") or settings.gate == "groupmax"
        if settings.gate == "abstopk":
            return inside & self.fires(measure, level)
        return inside & (self.fires(value, level) if has_floor else value != 0)

    def _outputs(self, layer: Layer, activations: Array, r: Array, residual: Array) -> Array:
        """float32 [n_targets, d_out]."""
        settings, tensors = layer.settings, layer.tensors
        w_dec = self.w_dec(layer)
        rows = w_dec.reshape(len(w_dec), -1)  # [n_features, n_targets * d_out]
        shape = w_dec.shape[1:] if w_dec.ndim == 3 else (1, w_dec.shape[1])
        factor = F32(4) if settings.root_scaled else F32(1)
        values = (self.dot(activations.astype(F32), rows) * factor).reshape(shape)
        b_dec = tensors["b_dec"]
        for target in range(shape[0]):
            if b_dec.ndim > 1:
                values[target] += F32(self.b_dec) * b_dec[target]
            elif target == layer.own_target or self.b_dec_everywhere:
                values[target] += F32(self.b_dec) * b_dec
            if "W_skip" in tensors and target == layer.own_target:
                values[target] += F32(self.skips) * self.dot(residual, self.skip(tensors["W_skip"]))
        if self.residuals:
            values[layer.own_target] += F32(self.residuals) * np.resize(residual, shape[1])
        values = values.astype(F32)
        if self.restores and settings.restores:
            values = back(settings, values, residual)
        return self.targets(values).astype(F32)


def back(settings: Settings, values: Array, residual: Array) -> Array:
    if settings.normalised == "scaled":
        return values * F32(settings.back)
    if settings.normalised == "unit_rms":
        return values * (np.sqrt((residual * residual).sum(dtype=F32)) / F32(4))
    if settings.normalised == "layer_norm":
        centred = residual - residual.mean(dtype=F32)
        return values * np.sqrt((centred * centred).sum(dtype=F32) / F32(len(residual) - 1)) + residual.mean(dtype=F32)
    return values


def right_inputs(layer: Layer, r: Array) -> Array:
    """The encoder's input, in float32."""
    settings = layer.settings
    x = r
    if settings.root_scaled:
        x = r / F32(4)
    elif settings.normalised == "scaled":
        x = r * F32(settings.factor)
    elif settings.normalised == "unit_rms":
        x = r * (F32(4) / np.sqrt((r * r).sum(dtype=F32)))
    elif settings.normalised == "layer_norm":
        centred = r - r.mean(dtype=F32)
        deviation = np.sqrt((centred * centred).sum(dtype=F32) / F32(len(r) - 1))
        x = centred / (deviation + F32(1e-5))
    return x - layer.tensors["b_dec"] if settings.minus_b_dec else x
