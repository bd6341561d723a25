# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mistakes that are planted in the exact ports, one a port: what it is, for which weights, and the flags of which one has to name it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oracle.vectors.variants import Variant, layer_tensors
from tests.support import exact_ports
from tests.support.exact_ports import F32, Array, Layer, Port, bfloat16, bfloat16_cut, float16, float16_sums, int8, right_inputs, tf32, tf32_cut

Needs = Callable[[Variant], bool]


@dataclass(frozen=True)
class Mistake:
    """A row of the matrix."""

    name: str
    flags: str
    port: Port
    needs: Needs = lambda variant: True


def thresholds(variant: Variant, tensors: dict[str, Array]) -> Array | None:
    """float32: what JumpReLU's file says."""
    settings = variant.settings
    if settings.gate != "jumprelu":
        return None
    if "log_threshold" in tensors:
        return np.array([math.exp(value) for value in tensors["log_threshold"].tolist()], F32)
    n = tensors["W_enc"].shape[1]
    return np.full(n, settings.level * settings.level_factor, F32) if settings.level is not None else tensors["threshold"]


def layer_of(variant: Variant, number: int) -> Layer:
    """A layer of exact vectors as a port has it."""
    tensors = layer_tensors(variant, number)
    return Layer(variant.settings, tensors, thresholds(variant, tensors), number if variant.row.folder == "crosscoder" else 0)


def is_jump(variant: Variant) -> bool:
    return variant.settings.gate == "jumprelu"


def has_levels(variant: Variant) -> bool:
    """Whether thresholds differ between features."""
    return is_jump(variant) and variant.settings.level is None


def has_log(variant: Variant) -> bool:
    return "log_threshold" in variant.parts


def is_normalised(variant: Variant) -> bool:
    return variant.settings.normalised in ("unit_rms", "layer_norm")


def is_plain(variant: Variant) -> bool:
    return not is_normalised(variant)


def has_floor(variant: Variant) -> bool:
    """Whether 0 is a boundary."""
    return variant.settings.gate != "topk" or variant.settings.relu


def selects(variant: Variant) -> bool:
    return variant.settings.k is not None


def ranks(variant: Variant) -> bool:
    """Whether the k largest of all are kept."""
    return variant.settings.gate in ("topk", "abstopk")


def in_groups(variant: Variant) -> bool:
    return variant.settings.gate == "groupmax"


def wide(variant: Variant) -> bool:
    """Whether it has the inputs of many digits."""
    return not variant.is_square and is_plain(variant)


def special(variant: Variant) -> bool:
    return not variant.is_square


def level_above(layer: Layer, level: Array) -> Array:
    return np.roll(level, 1)  # replaced by the runner, which knows the other layer


def moved(times: float) -> Callable[[Layer, Array], Array]:
    """The residual with b_dec added so many times, and else treated rightly."""

    def inputs(layer: Layer, r: Array) -> Array:
        b_dec = layer.tensors["b_dec"]
        return right_inputs(layer, r) + F32(times) * b_dec

    return inputs


def without(**changes: Any) -> Callable[[Layer, Array], Array]:
    return lambda layer, r: right_inputs(replace(layer, settings=layer.settings._replace(**changes)), r)


def scaled_twice(layer: Layer, r: Array) -> Array:
    settings = layer.settings
    if settings.root_scaled:
        return r / F32(16)
    return right_inputs(replace(layer, settings=settings._replace(factor=settings.factor**2)), r)


def in_float64(layer: Layer, r: Array) -> Array:
    settings, wide = layer.settings, r.astype(np.float64)
    wide = wide * settings.factor if settings.normalised == "scaled" else wide
    return wide - layer.tensors["b_dec"]


def biased_deviation(layer: Layer, r: Array) -> Array:
    """n where n - 1 is right; of unit RMS the deviation for the norm."""
    centred = r - r.mean(dtype=F32)
    x = centred / np.sqrt((centred * centred).mean(dtype=F32))
    return x - layer.tensors["b_dec"] if layer.settings.minus_b_dec else x


def no_mean(layer: Layer, r: Array) -> Array:
    x = r / r.std(ddof=1, dtype=np.float64).astype(F32)
    return x - layer.tensors["b_dec"] if layer.settings.minus_b_dec else x


def b_dec_first(layer: Layer, r: Array) -> Array:
    x = r - layer.tensors["b_dec"]
    return right_inputs(replace(layer, settings=layer.settings._replace(minus_b_dec=False)), x)


def unit_norm(r: Array) -> Array:
    return (r / np.sqrt((r.astype(np.float64) ** 2).sum() + 1e-30)).astype(F32)


def rms_norm(r: Array) -> Array:
    return (r / np.sqrt((r.astype(np.float64) ** 2).mean() + 1e-30)).astype(F32)


def layer_norm(r: Array) -> Array:
    wide = r.astype(np.float64)
    return ((wide - wide.mean()) / np.sqrt(wide.var() + 1e-30)).astype(F32)


def reshaped(layer: Layer) -> Array:
    w_enc = layer.tensors["W_enc"]
    return np.ascontiguousarray(w_enc.T).reshape(w_enc.shape)


def transposed_square(layer: Layer) -> Array:
    return np.ascontiguousarray(layer.tensors["W_enc"].T)


def w_dec_for(layer: Layer) -> Array:
    w_dec = layer.tensors["W_dec"]
    return np.ascontiguousarray(w_dec.reshape(len(w_dec), -1)[:, : len(layer.tensors["W_enc"])].T)


def skipping(*places: int) -> exact_ports.Sum:
    def dot(x: Array, w: Array) -> Array:
        kept = [place for place in range(len(x)) if place not in [p % len(x) for p in places]]
        return exact_ports.fast(x[kept], w[kept])

    return dot


def on_inputs(dot: exact_ports.Sum) -> exact_ports.Sum:
    """For W_enc alone: what else is summed has more or fewer terms, or as many, and is right."""
    return lambda x, w: dot(x, w) if len(x) == 16 and w.shape[1] >= 16 else exact_ports.fast(x, w)


def listed_without(*features: int) -> Callable[[Layer, list[int], Array], list[int]]:
    def keep(layer: Layer, active: list[int], values: Array) -> list[int]:
        n = len(values)
        return [place for place in active if place not in [feature % n for feature in features]]

    return keep


def at_most(count: int) -> Callable[[Layer, list[int], Array], list[int]]:
    return lambda layer, active, values: active[:count]


def above_cut(layer: Layer, active: list[int], values: Array) -> list[int]:
    """Those below 1 % of the largest are dropped."""
    return [place for place in active if abs(values[place]) > 0.01 * np.abs(values).max()]


def largest_ten(value: Array, level: Array) -> Array:
    """The ten that are largest before the gate, and of them those that pass it."""
    return (value > level) & np.isin(np.arange(len(value)), np.lexsort([np.arange(len(value)), -value])[:10])


def halved(value: Array, level: Array) -> Array:
    return np.where(np.abs(value) < 0.05 * np.abs(value).max(), value / 2, value)


def gelu(value: Array) -> Array:
    wide = value.astype(np.float64)
    return (0.5 * wide * (1 + np.vectorize(math.erf)(np.clip(wide, -30, 30) / math.sqrt(2)))).astype(F32)


def flushed(value: Array) -> Array:
    return np.where(np.abs(value) < 2.0**-126, F32(0), value)


def changed(**changes: Any) -> Port:
    return Port(changes=changes)


def wrong_k(by: int) -> Port:
    class Other(Port):
        def answer(self, layer: Layer, residual: Array) -> dict[str, Any]:
            settings = layer.settings._replace(k=(layer.settings.k or 0) + by)
            return Port.answer(self, replace(layer, settings=settings), residual)

    return Other()


GATE, ZERO = "gate-equality zero-pre", "zero-pre gate-equality"
ROUNDED = "bfloat16 float16 tf32 wide-weights"

MISTAKES = (
    Mistake("`>=` for `>`", GATE, Port(fires=lambda value, level: value >= level), lambda v: has_floor(v) and special(v)),
    Mistake("ties by index descending: a stable sort, reversed", "tie-order", Port(key=lambda value, index: [-index, -value]), special),
    Mistake("ties at the k-th by index descending", "tie-order", Port(ties="last"), lambda v: ranks(v) and special(v)),
    Mistake("`>=` the k-th value", "tie-order k-boundary", Port(ties="all"), lambda v: ranks(v) and special(v)),
    Mistake("ten of the list alone", "all-active each-block first-input k-boundary", Port(keep=at_most(10)), lambda v: special(v) and not in_groups(v)),
    Mistake("top k before the gate", "all-active each-block first-input", Port(fires=largest_ten), lambda v: special(v) and not selects(v)),
    Mistake("top k before the magnitude", "magnitudes", changed(gate="topk", relu=False), lambda v: v.settings.gate == "abstopk"),
    Mistake("count is k", "fewer-than-k none-active", Port(count=lambda layer, active: layer.settings.k or 0),
            lambda v: ranks(v) and has_floor(v) and special(v) and v.settings.gate != "abstopk"),
    Mistake("count of at least one", "none-active", Port(count=lambda layer, active: max(len(active), 1)),
            lambda v: has_floor(v) and wide(v) and v.settings.gate != "abstopk"),
    Mistake("the last feature skipped", "last-feature", Port(keep=listed_without(-1)), special),
    Mistake("the first feature skipped", "first-feature", Port(keep=listed_without(0)), special),
    Mistake("the last input skipped", "last-input", Port(dot=on_inputs(skipping(-1))), special),
    Mistake("the first input skipped", "first-input", Port(dot=on_inputs(skipping(0))), special),
    Mistake("features 8 to 15 skipped", "each-block", Port(keep=listed_without(*range(8, 16))), lambda v: special(v) and not in_groups(v)),
    Mistake("features 256 to 263 skipped", "each-block", Port(keep=listed_without(*range(256, 264))), special),
    Mistake("the features that blocks of 8 leave over", "last-feature", Port(keep=listed_without(*range(264, 270))), special),
    Mistake("ReLU6", "wide-output large-magnitude small-activations", Port(activation=lambda value, level: np.minimum(value, F32(6))), special),
    Mistake("GELU", "negative-pre small-activations threshold zero-pre wide-output", Port(pre=gelu), lambda v: special(v) and has_floor(v)),
    Mistake("soft threshold", "threshold", Port(activation=lambda value, level: value - level), is_jump),
    Mistake("|pre|", "negative-pre shut-gate", Port(pre=np.abs), lambda v: special(v) and v.settings.gate != "abstopk"),
    Mistake("float16 sums", "float16 cancellation wide-output", Port(dot=float16_sums), special),
    Mistake("int8 weights", "int8", Port(w_enc=lambda layer: int8(layer.tensors["W_enc"])), special),
    Mistake("the threshold of the layer above", "layers", Port(), lambda v: has_levels(v) and v.is_square),
    Mistake("below 1 % of the largest dropped", "small-activations", Port(keep=above_cut), special),
    Mistake("weak activations halved", "small-activations", Port(activation=halved), special),
    Mistake("b_enc in bfloat16", "wide-bias", Port(b_enc=bfloat16), wide),
    Mistake("b_enc in float16", "wide-bias", Port(b_enc=float16), wide),
    Mistake("output in bfloat16", "wide-output bfloat16", Port(activation=lambda value, level: bfloat16(value)), special),
    Mistake("output in float16", "wide-output float16", Port(activation=lambda value, level: float16(value)), special),
    # The diagnosis's.
    Mistake("relu", "threshold", Port(level=lambda layer, level: level * 0), is_jump),
    Mistake("no gate", "negative-pre negative-values", Port(fires=lambda value, level: value == value),
            lambda v: special(v) and not selects(v) and v.settings.gate != "gated"),
    Mistake("threshold halved", "threshold", Port(level=lambda layer, level: np.maximum(level, 0) / 2), is_jump),
    Mistake("threshold doubled", "threshold", Port(level=lambda layer, level: np.maximum(level, 0) * 2), is_jump),
    Mistake("exp(threshold)", "threshold", Port(level=lambda layer, level: np.exp(level)), is_jump),
    Mistake("negative let through", "negative-threshold", Port(level=lambda layer, level: level), lambda v: has_levels(v) and special(v) and not has_log(v)),
    Mistake("log of the threshold", "threshold", Port(level=lambda layer, level: layer.tensors["log_threshold"]), has_log),
    Mistake("top k left out", "k-boundary groups", changed(k=None), selects),
    Mistake("k - 1", "k-boundary", wrong_k(-1), ranks),
    Mistake("k + 1", "k-boundary", wrong_k(1), ranks),
    Mistake("ReLU before the top k", "negative-values", changed(relu=True), lambda v: v.settings.gate == "topk" and not v.settings.relu),
    Mistake("no ReLU before the top k", "positive-values", changed(relu=False), lambda v: v.settings.gate == "topk" and v.settings.relu and special(v)),
    Mistake("plain top k for magnitudes", "magnitudes", changed(gate="topk"), lambda v: v.settings.gate == "abstopk"),
    Mistake("the sign lost", "magnitudes", Port(pre=np.abs), lambda v: v.settings.gate == "abstopk"),
    Mistake("top k for groups", "groups", changed(gate="topk"), lambda v: v.settings.gate == "groupmax"),
    Mistake("groups interleaved", "groups", Port(groups="interleaved"), lambda v: v.settings.gate == "groupmax"),
    Mistake("gate left out", "shut-gate", Port(is_gated=False), lambda v: v.settings.gate == "gated"),
    Mistake("the gate's bias for the magnitude's", "magnitude-bias", Port(magnitude_bias="b_gate"), lambda v: v.settings.gate == "gated"),
    Mistake("r_mag left out", "magnitude-scale", Port(scale=np.ones_like), lambda v: v.settings.gate == "gated"),
    Mistake("r_mag for its exponential", "magnitude-scale", Port(scale=lambda r_mag: r_mag), lambda v: v.settings.gate == "gated"),
    Mistake("decoder norms left out", "decoder-norms", Port(norms=False), lambda v: v.settings.by_decoder_norm),
    Mistake("b_enc left out", "b_enc-matters", Port(b_enc=lambda b: b * 0), special),
    Mistake("b_enc twice", "b_enc-matters", Port(b_enc=lambda b: b * 2), special),
    Mistake("b_enc subtracted", "b_enc-matters", Port(b_enc=lambda b: -b), special),
    Mistake("b_dec subtracted", "b_dec-not-subtracted", Port(inputs=moved(-1)), lambda v: not v.settings.minus_b_dec and v.d_out == 16),
    Mistake("b_dec added", "b_dec-not-subtracted", Port(inputs=moved(1)), lambda v: not v.settings.minus_b_dec and v.d_out == 16),
    Mistake("b_dec not subtracted", "b_dec-subtracted", Port(inputs=without(minus_b_dec=False)), lambda v: v.settings.minus_b_dec),
    Mistake("b_dec subtracted twice", "b_dec-subtracted", Port(inputs=moved(-1)), lambda v: v.settings.minus_b_dec),
    Mistake("b_dec subtracted before the norm", "input-norm", Port(inputs=b_dec_first), lambda v: v.settings.minus_b_dec and is_normalised(v)),
    Mistake("input not normalised", "input-scale input-norm", Port(inputs=without(normalised="identity", root_scaled=False)),
            lambda v: v.settings.normalised != "identity" or v.settings.root_scaled),
    Mistake("input scaled twice", "input-scale", Port(inputs=scaled_twice), lambda v: v.settings.normalised == "scaled" or v.settings.root_scaled),
    Mistake("n for n - 1", "input-norm", Port(inputs=biased_deviation), lambda v: v.settings.normalised == "layer_norm"),
    Mistake("the deviation for the norm", "input-norm", Port(inputs=biased_deviation), lambda v: v.settings.normalised == "unit_rms"),
    Mistake("the mean not subtracted", "input-norm", Port(inputs=no_mean), lambda v: v.settings.normalised == "layer_norm"),
    Mistake("the input in float64", "float64-input", Port(inputs=in_float64, keeps_float64=True), lambda v: wide(v) and v.settings.minus_b_dec),
    Mistake("W_enc reshaped", "orientation", Port(w_enc=reshaped), special),
    Mistake("W_enc transposed, square", "orientation", Port(w_enc=transposed_square), lambda v: v.is_square),
    Mistake("W_dec for W_enc", "w_dec-not-w_enc", Port(w_enc=w_dec_for), lambda v: v.d_out == 16 or v.row.folder == "crosscoder"),
    Mistake("weights in bfloat16", "bfloat16 wide-weights", Port(w_enc=lambda layer: bfloat16(layer.tensors["W_enc"])), wide),
    Mistake("weights cut to bfloat16", "bfloat16 wide-weights", Port(w_enc=lambda layer: bfloat16_cut(layer.tensors["W_enc"])), wide),
    Mistake("weights in float16", "float16 wide-weights", Port(w_enc=lambda layer: float16(layer.tensors["W_enc"])), wide),
    Mistake("TF32 products", "tf32 float16", Port(product=tf32), wide),
    Mistake("TF32 products, cut", "tf32 float16", Port(product=tf32_cut), wide),
    Mistake("residual in bfloat16", "bfloat16 wide-residual", Port(residual=bfloat16), wide),
    Mistake("residual cut to bfloat16", "bfloat16 wide-residual", Port(residual=bfloat16_cut), wide),
    Mistake("residual in float16", "float16 wide-residual", Port(residual=float16), wide),
    Mistake("residual with six digits", "float64-input wide-residual", Port(residual=lambda r: np.array([float(f"{v:.6g}") for v in r.tolist()], F32)), wide),
    Mistake("residual of unit norm", "input", Port(residual=unit_norm), is_plain),
    Mistake("residual RMS-normalised", "input", Port(residual=rms_norm), is_plain),
    Mistake("residual layer-normalised", "input", Port(residual=layer_norm), is_plain),
    Mistake("subnormals flushed", "subnormal", Port(pre=flushed), lambda v: wide(v) and (not is_jump(v) or has_levels(v) and not has_log(v))),
    Mistake("clamped at 65504", "large-magnitude", Port(activation=lambda value, level: np.minimum(value, F32(65504))), wide),
    Mistake("top k by |pre|", "negative-pre", changed(gate="abstopk"), lambda v: special(v) and v.settings.gate == "topk"),
    Mistake("list ascending", "tie-order each-block", Port(key=lambda value, index: [index, value]), special),
    Mistake("smallest k", "each-block k-boundary first-input", Port(keep=lambda layer, active, values: active[::-1][:10]), special),
    Mistake("list by index", "each-block first-input", Port(key=lambda value, index: [index]), special),
    Mistake("first k by index", "each-block first-input", Port(keep=lambda layer, active, values: sorted(active)[:10]), special),
    Mistake("features reversed", "first-feature last-feature", Port(index=lambda index, n: n - 1 - index), special),
    Mistake("features shifted up", "first-feature last-feature", Port(index=lambda index, n: (index + 1) % n), special),
    Mistake("features shifted down", "first-feature last-feature", Port(index=lambda index, n: (index - 1) % n), special),
    Mistake("indices from 1", "first-feature last-feature", Port(index=lambda index, n: index + 1), special),
    Mistake("layer below or above", "layers", Port(), lambda v: v.is_square),
    Mistake("input layers swapped", "input-layers", Port(inputs=lambda layer, r: np.roll(r, 8)), lambda v: v.row.folder == "crosscoder"),
    Mistake("one input layer alone", "input-layers", Port(inputs=lambda layer, r: np.where(np.arange(16) < 8, r, 0)), lambda v: v.row.folder == "crosscoder"),
    # The decoder's.
    Mistake("b_dec left out", "b_dec-matters", Port(b_dec=0)),
    Mistake("b_dec twice", "b_dec-matters", Port(b_dec=2)),
    Mistake("b_dec taken off", "b_dec-matters", Port(b_dec=-1)),
    Mistake("b_dec to every target", "targets", Port(b_dec_everywhere=True),
            lambda v: v.name in ("CltSplit", "CltSplit-jumprelu", "CltSplit-square", "GemmaScope2Clt-square")),
    Mistake("W_skip left out", "skip", Port(skips=0), lambda v: "W_skip" in v.parts),
    Mistake("W_skip twice", "skip", Port(skips=2), lambda v: "W_skip" in v.parts),
    Mistake("residual for W_skip", "skip", Port(skips=0, residuals=1), lambda v: "W_skip" in v.parts),
    Mistake("residual added", "decoder b_dec-matters", Port(residuals=1)),
    Mistake("W_dec of the layer below or above", "layers decoder", Port(), lambda v: v.is_square and not v.row.has_targets),
    Mistake("W_dec cut to bfloat16", "wide-decoder", Port(w_dec=lambda layer: bfloat16_cut(layer.tensors["W_dec"])),
            lambda v: wide(v) and not v.settings.by_decoder_norm),
    Mistake("activations cut to bfloat16", "wide-decoder decoder", Port(decoded=lambda acts, values, level: bfloat16_cut(acts)), special),
    Mistake("W_skip transposed", "skip", Port(skip=lambda w: np.ascontiguousarray(w.T).reshape(w.shape)), lambda v: "W_skip" in v.parts),
    Mistake("output not scaled back", "input-scale input-norm", Port(restores=False),
            lambda v: v.settings.restores and v.settings.normalised != "identity" and v.settings.back != 1 or is_normalised(v)),
    Mistake("not divided by the norms", "decoder-norms", Port(decoded=lambda acts, values, level: acts * 2), lambda v: v.settings.by_decoder_norm),
    Mistake("targets the other way round", "targets", Port(targets=lambda values: values[::-1]),
            lambda v: v.row.has_targets and (v.is_square or v.name != "GemmaScope2Clt") and v.name != "GemmaScope2Clt"),
    Mistake("W_dec reshaped", "decoder", Port(w_dec=lambda layer: np.ascontiguousarray(layer.tensors["W_dec"].T).reshape(layer.tensors["W_dec"].shape))),
    Mistake("W_dec in bfloat16", "wide-decoder", Port(w_dec=lambda layer: bfloat16(layer.tensors["W_dec"])), lambda v: wide(v) and not v.settings.by_decoder_norm),
    Mistake("W_dec in float16", "wide-decoder", Port(w_dec=lambda layer: float16(layer.tensors["W_dec"])), lambda v: wide(v) and not v.settings.by_decoder_norm),
    Mistake("activations in bfloat16", "wide-decoder decoder", Port(decoded=lambda acts, values, level: bfloat16(acts)), special),
    Mistake("activations in float16", "wide-decoder decoder", Port(decoded=lambda acts, values, level: float16(acts)), special),
    Mistake("ten features decoded", "decoder", Port(decoded=lambda acts, values, level: np.where(acts >= np.sort(acts)[-10], acts, 0)),
            lambda v: special(v) and not in_groups(v)),
    Mistake("threshold subtracted in decoding", "decoder", Port(decoded=lambda acts, values, level: np.where(acts > 0, acts - level, 0)), is_jump),
    Mistake("relu in decoding", "decoder", Port(decoded=lambda acts, values, level: np.maximum(values, 0)), lambda v: is_jump(v) and special(v)),
    Mistake("no gate in decoding", "decoder", Port(decoded=lambda acts, values, level: values), special),
)  # fmt: skip
