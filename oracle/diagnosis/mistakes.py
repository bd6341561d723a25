# SPDX-License-Identifier: MIT OR Apache-2.0
"""The mistakes that ports make, each as a row: which steps of a Port it changes, and to what; the likelier of two stands first.

Two mistakes of different steps can be made at once. A gate with >= for > has no row: it differs from the right one
only where a pre-activation equals its gate, which is closer than rounding, so that it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from oracle.arithmetic.chain import Largest
from oracle.arithmetic.constants import GATED, IDENTITY, SCALED, SEED_STRIDE
from oracle.diagnosis import steps
from oracle.diagnosis.explanation import Reading
from oracle.diagnosis.port import (
    ALL,
    LAYER_ABOVE,
    LAYER_BELOW,
    LISTED,
    POSITIVE,
    RESHAPED,
    TARGET_MAJOR,
    W_DEC,
    Gate,
    Mistake,
    Selection,
    Skip,
    Source,
    right_index,
)  # fmt: skip
from oracle.references.document import Reference
from oracle.weights.layer import LayerWeights
from oracle.weights.sidefiles import LOG_THRESHOLD

# What there must be for a port to make a mistake. Without a threshold a mistake about it gives the right numbers.
GENERATOR, FACTOR = "a residual generator", "generated residuals that are scaled"
THRESHOLD, NEGATIVE, W_SKIP = "a threshold", "a negative threshold", "W_skip"
LOG, LARGEST, RAW, POSITIVE_TOPK = "a threshold's logarithm", "a gate of the largest", "a top k of pre-activations", "a top k of ReLU"
MAGNITUDE = "a top k of magnitudes"
GATED_GATE, UNGATED, NORMS = "a gated gate", "no gated gate", "a gate by the decoder's norms"
B_DEC_GOES, B_DEC_STAYS, NORMALISED, SCALED_INPUT = "b_dec subtracted", "no b_dec subtracted", "a normalised input", "a scaled input"
ONE_TARGET, SEVERAL_TARGETS, NO_REMAINDER = "a W_dec of one target layer", "a W_dec of several target layers", "inputs in blocks of 8"
REMAINDER = "inputs that are no whole blocks of 8"


def possible(weights: LayerWeights, reference: Reference) -> set[str]:
    """What there is in a layer's weights, and behind a reference's residuals, that mistakes need."""
    settings, gate = weights.settings, weights.gate
    has = {
        GENERATOR: reference.has_generator, FACTOR: reference.residuals.scale is not None,
        THRESHOLD: weights.has_threshold, NEGATIVE: weights.n_negative_thresholds > 0, W_SKIP: weights.w_skip is not None,
        SEVERAL_TARGETS: weights.format.has_targets, ONE_TARGET: not weights.format.has_targets,
        LOG: weights.has_threshold and bool(weights.format.of_part(LOG_THRESHOLD)), LARGEST: isinstance(gate, Largest),
        RAW: isinstance(gate, Largest) and not gate.has_floor, POSITIVE_TOPK: isinstance(gate, Largest) and gate.relu,
        MAGNITUDE: isinstance(gate, Largest) and gate.magnitude,
        GATED_GATE: settings.gate == GATED, UNGATED: settings.gate != GATED, NORMS: settings.by_decoder_norm,
        B_DEC_GOES: settings.minus_b_dec, B_DEC_STAYS: not settings.minus_b_dec and weights.d_out == weights.input_length,
        NORMALISED: settings.normalised != IDENTITY, SCALED_INPUT: settings.normalised == SCALED,
        NO_REMAINDER: weights.input_length % 8 == 0, REMAINDER: weights.input_length % 8 > 0,
    }  # fmt: skip
    return {name for name, is_there in has.items() if is_there}


_JUMP, _SKIPS, _ONE, _SEVERAL, _LARGEST = (THRESHOLD,), (W_SKIP,), (ONE_TARGET,), (SEVERAL_TARGETS,), (LARGEST,)


def _row(name: str, field: str, description: str, value: Any, needs: tuple[str, ...] = ()) -> Mistake:
    return Mistake(name, description, ((field, value),), needs)


def _rare(name: str, field: str, description: str, value: Any, needs: tuple[str, ...] = (), *, estimated: int = 0) -> Mistake:
    """A row that is not tried together with others."""
    return Mistake(name, description, ((field, value),), needs, True, estimated)


def _gate(name: str, description: str, gate: Gate, needs: tuple[str, ...] = _JUMP) -> Mistake:
    return _row(name, "gate", description, gate, needs)


def _source(name: str, text: str, source: Source) -> Mistake:
    return _row(name, "source", f"the residual is another: {text}", source, (GENERATOR,))


def _sequence(name: str, text: str, sequence: Callable[[int, int, int], np.ndarray]) -> Mistake:
    return _rare(name, "source", f"the residual is another: {text}", Source(sequence=sequence), (GENERATOR,))


def _whole(name: str, description: str, rounding: Any, slack: float, **more: Any) -> Mistake:
    """A model in numbers of so many bits: its weights, inputs and values; each product is rounded once more before the bias."""
    steps_ = {"weight_rounding": rounding, "residual_rounding": rounding, "output": rounding, "slack": slack, **more}
    return Mistake(name, description, tuple(steps_.items()), (), True)


_EXP = "the gate is exp(threshold), as if the file held its logarithm"
_SUBTRACTED = "the threshold is subtracted from the activation: pre - threshold where JumpReLU gives pre"
_NEGATIVE = "the gate is the threshold where that is negative too, as circuit-tracer has it: negative activations pass"
_SWAPPED = "buffer is read with its axes swapped: reshaped instead of transposed"
_LOG = "the gate is the threshold's logarithm, as it stands in the file"
_TF32 = "products are TF32: weights and residual"
_BY_MAGNITUDE = "the top k are chosen by absolute value"
_NO_GATE = Gate(lambda t: np.full_like(t, -np.inf), selects=False)
_RELU = Gate(np.zeros_like)
_BFLOAT16, _FLOAT16 = steps.bfloat16, steps.float16

_SOURCES = (  # Residuals of another seed or stream than the case's: those that a slip of the pen makes.
    *(
        _source(f"seed {'+' if by > 0 else '-'} {abs(by)}", f"the seed is off by {by}", Source(seed=(SEED_STRIDE, 1, by)))
        for by in (1, -1, SEED_STRIDE, -SEED_STRIDE, 2 * SEED_STRIDE, -2 * SEED_STRIDE)
    ),
    _source("seed without layer", f"the seed is {SEED_STRIDE} i, without the layer", Source(seed=(SEED_STRIDE, 0, 0))),
    _source("seed is i", "the seed is i, the residual's number", Source(seed=(1, 0, 0))),
    _source("seed by layer", f"the seed is {SEED_STRIDE} layer + i", Source(seed=(1, SEED_STRIDE, 0))),
    *(_source(f"seed {value}", f"the seed is always {value}", Source(seed=(0, 0, value))) for value in (0, 1, 42)),
    _source("stream is seed", "the stream is the seed", Source(stream=(SEED_STRIDE, 1, 0))),
    _source("stream + 1", "the stream is off by 1", Source(stream=(0, 1, 1))),
    _source("stream - 1", "the stream is off by -1", Source(stream=(0, 1, -1))),
    *(_source(f"stream {value}", f"the stream is always {value}", Source(stream=(0, 0, value))) for value in (0, 1, 54)),
    _source("seed and stream swapped", "seed and stream are swapped", Source(seed=(0, 1, 0), stream=(SEED_STRIDE, 1, 0))),
    Mistake("scale left out", "the residual is the generator's as it is, not times the scale", (("source", Source(is_scaled=False)),), (GENERATOR, FACTOR)),
    _sequence("v before u", "of each pair v * f comes before u * f", steps.v_before_u),
    _sequence("no rejection", "no pair is rejected, |ln(s)| is taken", steps.no_rejection),
    _sequence("zeros for rejected pairs", "pairs that are to be rejected give zeros", steps.no_rejection_zeros),
    _sequence("one value of a pair", "v * f is never emitted", steps.one_of_a_pair),
    _sequence("rotation left", "PCG32's outputs are rotated left", steps.rotated_left),
    _sequence("state after its step", "PCG32's outputs use the state after its step", steps.state_after),
    _sequence("uniforms in (0, 1)", "the uniforms lie in (0, 1)", steps.positive_uniforms),
    _sequence("Box-Muller", "normal deviates come by Box and Muller's method", steps.box_muller),
)

ENCODER_MISTAKES: tuple[Mistake, ...] = (
    _gate("relu", "plain ReLU instead of JumpReLU: the threshold is ignored", _RELU),
    _gate("no gate", "no gate at all: every feature counts as active", _NO_GATE, (UNGATED,)),
    _gate("threshold halved", "the gate is half the threshold", Gate(steps.threshold_times(0.5))),
    _gate("threshold doubled", "the gate is twice the threshold", Gate(steps.threshold_times(2))),
    _gate("exp(threshold)", _EXP, Gate(lambda t: np.exp(np.minimum(t, 700)))),
    _gate("threshold subtracted", _SUBTRACTED, Gate(value=steps.minus_threshold)),
    _gate("soft threshold", "a soft threshold instead of JumpReLU: sign(pre) * max(|pre| - threshold, 0)", Gate(value=steps.soft, is_two_sided=True)),
    _gate("negative let through", _NEGATIVE, Gate(lambda t: t), (NEGATIVE,)),
    _gate("log of the threshold", _LOG, Gate(lambda t: np.log(np.maximum(t, 1e-300))), (LOG,)),
    _gate("top k left out", "all positive features fire: the gate's top k is left out", Gate(selects=False), _LARGEST),
    _gate("ReLU before the top k", "the top k is one of ReLU: negative values are dropped", Gate(relu=True), (LARGEST, RAW)),
    _gate("no ReLU before the top k", "the top k is one of pre-activations: negative values fire too", Gate(relu=False), (LARGEST, POSITIVE_TOPK)),
    _gate("top k by value", "the top k is one of values, not of magnitudes", Gate(by_magnitude=False), (MAGNITUDE,)),
    _gate("gate left out", "the gated encoder's gate is left out: all positive magnitudes fire", Gate(is_gated=False), (GATED_GATE,)),
    _gate("decoder norms left out", "pre-activations are not multiplied by the norms of W_dec's rows", Gate(by_decoder_norm=False), (NORMS,)),
    _rare("gelu", "gate", "GELU instead of the gate", Gate(np.zeros_like, steps.gelu), (UNGATED,)),
    _rare("gelu, tanh", "gate", "GELU, by tanh, instead of the gate", Gate(np.zeros_like, steps.gelu_tanh), (UNGATED,)),
    _rare("silu", "gate", "SiLU instead of the gate", Gate(np.zeros_like, steps.silu), (UNGATED,)),
    _rare("relu6", "gate", "ReLU6 instead of the gate: no more than 6, the threshold is ignored", Gate(np.zeros_like, steps.at_most(6)), _JUMP),
    _rare("activations up to 6", "gate", "activations are cut off at 6, as ReLU6 has it", Gate(value=steps.at_most(6)), (UNGATED,)),
    _rare("|pre|", "gate", "the pre-activation's magnitude is gated and printed", Gate(value=steps.magnitude, is_two_sided=True), (UNGATED,)),
    _rare("first feature skipped", "gate", "the first feature never fires", Gate(steps.never(0, 1)), (UNGATED,)),
    _rare("last feature skipped", "gate", "the last feature never fires", Gate(steps.never(-1, 0)), (UNGATED,)),
    _rare("last 8 features skipped", "gate", "the last 8 features never fire", Gate(steps.never(-8, 0)), (UNGATED,)),
    _rare("threshold of the layer below", "threshold_of", "the threshold is that of layer L - 1", LAYER_BELOW, _JUMP),
    _rare("threshold of the layer above", "threshold_of", "the threshold is that of layer L + 1", LAYER_ABOVE, _JUMP),
    _row("b_enc left out", "bias", "b_enc is not added", steps.multiplied(0)),
    _row("b_enc twice", "bias", "b_enc is added twice", steps.multiplied(2)),
    _row("b_enc subtracted", "bias", "b_enc is subtracted", steps.multiplied(-1)),
    _rare("b_enc in bfloat16", "bias", "b_enc is rounded to bfloat16", _BFLOAT16),
    _rare("b_enc in float16", "bias", "b_enc is rounded to float16", _FLOAT16),
    _rare("b_enc of the layer below", "bias_of", "b_enc is that of layer L - 1", LAYER_BELOW),
    _rare("b_enc of the layer above", "bias_of", "b_enc is that of layer L + 1", LAYER_ABOVE),
    _row("b_dec subtracted", "input", "b_dec is subtracted from the residual, as SAE loaders do", steps.moved(-1), (B_DEC_STAYS,)),
    _row("b_dec added", "input", "b_dec is added to the residual", steps.moved(1), (B_DEC_STAYS,)),
    _row("b_dec not subtracted", "input", "b_dec is not subtracted from the residual", steps.other_input(b_dec=None), (B_DEC_GOES,)),
    _row("b_dec subtracted twice", "input", "b_dec is subtracted from the residual twice", steps.moved(-1), (B_DEC_GOES,)),
    _row("input not normalised", "input", "the residual is not scaled or normalised before W_enc", steps.other_input(normalised=IDENTITY), (NORMALISED,)),
    _row("input scaled twice", "input", "the residual is scaled twice", steps.scaled_twice, (SCALED_INPUT,)),
    _row("W_enc reshaped", "w_enc", f"W_enc's {_SWAPPED}", RESHAPED),
    _row("W_dec for W_enc", "w_enc", "W_dec is used for W_enc", W_DEC, _ONE),
    _row("layer below", "w_enc", "the weights are those of layer L - 1, as where layers are counted from 1", LAYER_BELOW),
    _row("layer above", "w_enc", "the weights are those of layer L + 1", LAYER_ABOVE),
    _row("weights in bfloat16", "weight_rounding", "W_enc is rounded to bfloat16", _BFLOAT16),
    _row("weights cut to bfloat16", "weight_rounding", "W_enc is cut off to bfloat16, not rounded", steps.bfloat16_cut),
    _row("weights in float16", "weight_rounding", "W_enc is rounded to float16", _FLOAT16),
    _rare("weights in TF32", "weight_rounding", "W_enc is rounded to TF32, 10 bits of mantissa", steps.tf32),
    _rare("weights in int8", "weight_rounding", "W_enc is int8, with one scale for all", steps.Scaled(steps.whole_numbers, steps.LARGEST_INT8)),
    _rare("weights in int8 by feature", "weight_rounding", "W_enc is int8, with a scale for each feature",
          steps.Scaled(steps.whole_numbers, steps.LARGEST_INT8, by_feature=True)),
    _rare("weights in fp8 e4m3", "weight_rounding", "W_enc is rounded to 8 bits, e4m3", steps.e4m3),
    _rare("weights in fp8 e4m3, scaled", "weight_rounding", "W_enc is rounded to 8 bits, e4m3, with one scale for all",
          steps.Scaled(steps.e4m3, steps.LARGEST_E4M3)),
    _rare("weights in fp8 e5m2", "weight_rounding", "W_enc is rounded to 8 bits, e5m2", steps.e5m2),
    Mistake("weights and residual in bfloat16", "weights and residual are rounded to bfloat16", (("product_rounding", _BFLOAT16),), (), True),
    Mistake("weights and residual in float16", "weights and residual are rounded to float16", (("product_rounding", _FLOAT16),), (), True),
    _row("residual in bfloat16", "residual_rounding", "the residual is rounded to bfloat16", _BFLOAT16),
    _row("residual cut to bfloat16", "residual_rounding", "the residual is cut off to bfloat16, not rounded", steps.bfloat16_cut),
    _row("residual in float16", "residual_rounding", "the residual is rounded to float16", _FLOAT16),
    _rare("residual in TF32", "residual_rounding", "the residual is rounded to TF32, 10 bits of mantissa", steps.tf32),
    _row("TF32 products", "product_rounding", f"{_TF32} rounded to 10 bits of mantissa", steps.tf32),
    _row("TF32 products, cut", "product_rounding", f"{_TF32} cut off to 10 bits of mantissa", steps.tf32_cut),
    _whole("model in bfloat16", "weights, residual, biases and values are bfloat16", _BFLOAT16, 2.0**-8, bias=_BFLOAT16),
    _whole("model in float16", "weights, residual, biases and values are float16", _FLOAT16, 2.0**-11, bias=_FLOAT16),
    _rare("output in bfloat16", "output", "activations are rounded to bfloat16", _BFLOAT16),
    _rare("output in float16", "output", "activations are rounded to float16", _FLOAT16),
    Mistake("accumulation in bfloat16", "sums of products are rounded to bfloat16 at each step",
            (("accumulation", _BFLOAT16), ("output", _BFLOAT16), ("slack", 2.0**-8)), (), True),
    Mistake("accumulation in float16", "sums of products are rounded to float16 at each step",
            (("accumulation", _FLOAT16), ("output", _FLOAT16), ("slack", 2.0**-11)), (), True),
    _row("residual of unit norm", "norm", "the residual is divided by its norm", steps.unit_norm),
    _row("residual RMS-normalised", "norm", "the residual is divided by its root mean square", steps.rms_norm),
    _row("residual layer-normalised", "norm", "the residual is centred and divided by its deviation", steps.layer_norm),
    _row("residual centred", "norm", "the residual's mean is subtracted from it", steps.centred),
    _row("residual times sqrt(d_model)", "norm", "the residual is multiplied by sqrt(d_model)", steps.times_root),
    _row("residual over sqrt(d_model)", "norm", "the residual is divided by sqrt(d_model)", steps.over_root),
    *(_rare(f"residual clipped at {most}", "norm", f"the residual's values are clipped at {most} and -{most}", steps.clipped(most)) for most in (1, 2, 3)),
    _rare("first input skipped", "norm", "the residual's first value is left out", steps.without(0, 1)),
    _rare("last input skipped", "norm", "the residual's last value is left out", steps.without(-1, 0)),
    _rare("remainder skipped", "norm", "the residual's last values are left out: what a loop over blocks of 8 leaves over",
          lambda r: steps.without(-(len(r) % 8), 0)(r), (REMAINDER,)),
    *_SOURCES,
    _row("top k by |pre|", "selection", _BY_MAGNITUDE, Selection("|pre|", True, "pre")),
    _row("top k by |pre|, printed", "selection", f"{_BY_MAGNITUDE}, which is what is printed", Selection("|pre|", True, "|pre|")),
    _row("top k ascending", "selection", "the top k stand in ascending order", Selection(order="ascending")),
    _row("smallest k", "selection", "the k smallest activations are taken: sorted in ascending order", Selection("-activation")),
    _row("top k by index", "selection", "the top k are sorted by index", Selection(order="by index")),
    _row("first k by index", "selection", "the first k active features are taken", Selection("-index", order="by index")),
    _row("before the gate", "selection", "the top k are taken from the pre-activations, before the gate", Selection("pre", True, "pre")),
    _row("features reversed", "index", "feature j is printed as n_features - 1 - j", lambda index, n: right_index(n - 1 - index, n)),
    _row("features shifted up", "index", "feature j is printed as j + 1, and the last as 0", steps.shifted(1)),
    _row("features shifted down", "index", "feature j is printed as j - 1, and the first as the last", steps.shifted(-1)),
    _row("indices from 1", "index", "indices are counted from 1", lambda index, n: right_index(index - 1, n)),
    _rare("n_active of the list", "count", "n_active counts the features on the list", LISTED),
    _rare("n_active of positive", "count", "n_active counts the positive pre-activations, before the threshold", POSITIVE, _JUMP),
    _rare("n_active of all", "count", "n_active counts all features", ALL),
)
LABEL = _row("layers from 1", "label", "layers are counted from 1: the answers of layer L are labelled L + 1", 1)

DECODER_MISTAKES: tuple[Mistake, ...] = (
    _row("b_dec left out", "b_dec", "b_dec is not added to the reconstruction", (0, 0)),
    _row("b_dec twice", "b_dec", "b_dec is added to the reconstruction twice", (2, 0)),
    _row("b_dec taken off", "b_dec", "b_dec is subtracted from the reconstruction", (-1, 0)),
    _row("b_dec to every target", "b_dec", "the source's b_dec is added to every target layer", (1, 1), _SEVERAL),
    _rare("b_dec of the layer below", "b_dec_of", "b_dec is that of layer L - 1", LAYER_BELOW),
    _rare("b_dec of the layer above", "b_dec_of", "b_dec is that of layer L + 1", LAYER_ABOVE),
    _row("W_skip left out", "skip", "W_skip is not applied", Skip(w_skip=0), _SKIPS),
    _row("W_skip transposed", "skip", "W_skip is applied transposed", Skip(w_skip=0, transposed=1), _SKIPS),
    _row("W_skip twice", "skip", "what W_skip gives is added twice", Skip(w_skip=2), _SKIPS),
    _row("residual added", "skip", "the residual is added to the reconstruction", Skip(residual=1)),
    _row("residual for W_skip", "skip", "the residual is added as it is, without W_skip", Skip(w_skip=0, residual=1), _SKIPS),
    _row("output not scaled back", "restores", "the reconstruction stays in the scale of the normalised input", False, (NORMALISED,)),
    _row("not divided by the norms", "divides", "activations are not divided by the norms of W_dec's rows before W_dec", False, (NORMS,)),
    _rare("W_dec of unit norm", "is_unit_norm", "W_dec's rows are divided by their norms", True, _ONE),
    _row("target below", "targets", "the decoder is that of the target layer below", steps.further(-1), _SEVERAL),
    _row("target above", "targets", "the decoder is that of the target layer above", steps.further(1), _SEVERAL),
    _rare("targets reversed", "targets", "the target layers are in reverse order", steps.reversed_targets, _SEVERAL),
    _rare("targets cumulative", "targets", "each target layer is given what those before it are given too", steps.cumulative_targets, _SEVERAL),
    _rare("W_dec target-major", "w_dec", "W_dec's buffer is read as [targets, features, d_model]", TARGET_MAJOR, _SEVERAL),
    _row("W_dec reshaped", "w_dec", f"W_dec's {_SWAPPED}", RESHAPED, _ONE),
    _row("W_dec of the layer below", "w_dec", "W_dec is that of layer L - 1", LAYER_BELOW),
    _row("W_dec of the layer above", "w_dec", "W_dec is that of layer L + 1", LAYER_ABOVE),
    _row("W_dec in bfloat16", "decoder_rounding", "W_dec is rounded to bfloat16", _BFLOAT16),
    _row("W_dec cut to bfloat16", "decoder_rounding", "W_dec is cut off to bfloat16, not rounded", steps.bfloat16_cut),
    _row("W_dec in float16", "decoder_rounding", "W_dec is rounded to float16", _FLOAT16),
    _row("activations in bfloat16", "activations", "the activations are rounded to bfloat16 before W_dec", steps.fires(_BFLOAT16)),
    _row("activations cut to bfloat16", "activations", "the activations are cut off to bfloat16 before W_dec", steps.fires(steps.bfloat16_cut)),
    _row("activations in float16", "activations", "the activations are rounded to float16 before W_dec", steps.fires(_FLOAT16)),
    _row("top k decoded", "activations", "only the top k features are decoded, not all that fire",
         lambda encoded: np.where(encoded.listed, encoded.activations(), 0)),
    _row("threshold subtracted in decoding", "activations", "pre - threshold is decoded where JumpReLU gives pre",
         lambda encoded: np.where(encoded.fires, encoded.pre - encoded.gate, 0), _JUMP),
    _row("relu in decoding", "activations", "all positive pre-activations are decoded: the threshold is ignored",
         lambda encoded: np.maximum(encoded.pre, 0), _JUMP),
    _row("no gate in decoding", "activations", "all pre-activations are decoded, before the gate", lambda encoded: encoded.pre),
)
MISTAKES = (*ENCODER_MISTAKES, LABEL, *DECODER_MISTAKES)

Interval = tuple[float, float]

# --- mistakes with a constant that the candidate's numbers tell --------------------------------------------------------------

def wrong_k(k: int, right: int) -> Mistake:
    """A gate of the largest that keeps k: which k that is, a candidate's counts say."""
    return _gate(f"k of {k}", f"the gate keeps {k} features, and {right} is right", Gate(k=k), _LARGEST)


def estimated(readings: Sequence[Reading]) -> list[Mistake]:
    """The rows whose constants follow from what was printed: of all the cases, or else of a layer's."""
    layers: dict[int, list[Reading]] = {}
    for reading in readings:
        layers.setdefault(reading.item.case.id.layer, []).append(reading)
    rows: dict[str, Mistake] = {}
    for group in [list(readings), *layers.values()]:
        for row in _estimated(group):
            rows.setdefault(row.name, row)
    return list(rows.values())


def _estimated(group: list[Reading]) -> Iterator[Mistake]:
    if (factor := threshold_factor(group)) is not None:
        yield _rare(f"threshold times {factor:g}", "gate", f"the gate is {factor:g} times the threshold", Gate(steps.threshold_times(factor)), _JUMP, estimated=1)
    cuts = common(reading.cut for reading in group)
    if cuts and (cut := shortest(cuts)) > 0:
        name, gate = f"activations below {cut:g} dropped", Gate(steps.at_least(cut))
        yield _rare(name, "gate", f"a feature fires only where its activation is above {cut:g} too", gate, (UNGATED,), estimated=1)
    halves = [reading.halved for reading in group]
    if cuts := common(halves):
        cut = shortest(cuts)
        gate = Gate(value=steps.halved_below(cut))
        yield _rare(f"activations below {cut:g} halved", "gate", f"activations below {cut:g} are halved", gate, (UNGATED,), estimated=1)
    scales = [reading.scale for reading in group if reading.scale is not None]
    if scales and len(scales) == sum(len(reading.right) > 2 for reading in group):
        roots = [_root_mean_square(reading.item.residual) for reading in group if reading.scale is not None]
        for by_rms, factors in ((False, scales), (True, [scale * root for scale, root in zip(scales, roots)])):
            middle = float(np.median(factors))
            if np.ptp(factors) <= 2e-4 * abs(middle) and (len(group) > 1 or not by_rms):
                factor = round_to(middle, 2e-4 * abs(middle))
                yield _scaled(factor, by_rms=by_rms)
    blocks = {reading.skipped for reading in group}
    if len(blocks) == 1 and (block := blocks.pop()):
        first, last = block
        description = f"the residual's values {first} to {last - 1} are left out"
        yield _rare(f"inputs {first} to {last - 1} skipped", "norm", description, steps.without(first, last), estimated=1)


def _scaled(factor: float, *, by_rms: bool) -> Mistake:
    """A residual that is multiplied by a constant, or normalised and then multiplied."""
    if by_rms:
        description = f"the residual is divided by its root mean square and multiplied by {factor:.6g}"
        return _rare(f"residual RMS-normalised times {factor:.6g}", "norm", description, steps.rms_norm_times(factor), estimated=1)
    return _rare(f"residual times {factor:.6g}", "norm", f"the residual is multiplied by {factor:.6g}", steps.times(factor), estimated=1)


def threshold_factor(group: Sequence[Reading]) -> float | None:
    """By what the threshold is to be multiplied for all the counts to be right; None where no one number does it."""
    interval = common(reading.factors for reading in group)
    return None if interval is None or not any(reading.excess for reading in group) else shortest(interval)


def _root_mean_square(residual: np.ndarray) -> float:
    return float(np.sqrt(np.mean(residual.astype(np.float64) ** 2)))


def common(intervals: Iterable[Interval | None]) -> Interval | None:
    """What all of them hold; None where that is nothing, or where one is none."""
    ends = list(intervals)
    known = [interval for interval in ends if interval is not None]
    if not known or len(known) < len(ends):
        return None
    low, high = max(low for low, _ in known), min(high for _, high in known)
    return (low, high) if low < high else None


def shortest(interval: Interval) -> float:
    """The number of an interval that has the fewest decimals."""
    low, high = interval
    return round_to((low + high) / 2, (high - low) / 2)


def round_to(value: float, most: float) -> float:
    """The number with the fewest decimals that is nearer to a value than `most`."""
    for decimals in range(1, 15):
        if abs(round(value, decimals) - value) < most:
            return round(value, decimals)
    return value
