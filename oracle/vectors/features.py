# SPDX-License-Identifier: MIT OR Apache-2.0
"""The weights of exact vectors and the residuals that go with them: who fires on what, so that each mistake shows.

Every input but a few has one purpose. On it some features have a weight above 0, its targets, and all others one below 0, by
which they are kept from firing; on the wide inputs the others have weight 0, so that only the targets' products have many digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oracle.arithmetic.constants import GATED, IDENTITY, JUMPRELU, SCALED
from oracle.vectors.exact import Tensors, input_of
from oracle.weights.sidefiles import B_DEC, B_ENC, B_GATE, B_MAG, LOG_THRESHOLD, R_MAG, THRESHOLD, W_DEC, W_ENC, W_SKIP, Settings

N_INPUTS, N_FEATURES = 16, 270  # 270 is no multiple of 4: the last features are what a loop in blocks leaves over
SQUARE = 16  # features of the square weights
ONE = 4.0  # what an input is at that is on; an input of this one alone is normalised to itself

# What the inputs are for.
FIRST_INPUT, ALL, BLOCKS, FIRST, WEIGHTS, RESIDUALS, TIES, WEAK, BIASES, AT_GATE, LARGE, CANCELLING, LAST, NEGATIVE, LEVEL, LAST_INPUT = range(N_INPUTS)
WIDE = (WEIGHTS, RESIDUALS, LARGE, CANCELLING)
DENSE = tuple(place for place in range(N_INPUTS) if place not in (*WIDE, WEAK))

# The features with a part of their own.
EDGES = (7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257)
BF16, TF32, WIDE_X, FLOAT16 = (20, 21, 22), (24, 25, 26), (28, 29, 30), (32, 33, 34)
CANCELS, FINE, ZERO = (36, 37, 38), (40, 41, 42), (44, 45, 46)
STRONG, FAINT = tuple(range(70, 78)), tuple(range(80, 88))
POSITIVE_BIAS, WIDE_BIAS = (90, 91, 92, 93), (95, 96, 97, 98)
AT_GATE_ONE, AT_GATE_TWO, BELOW_ZERO = (100, 101, 102, 103), (105, 106, 107), (110, 111, 112, 113)
UNDER, OVER = (115, 116, 117), (120, 121, 122)
TIED = tuple(range(131, 251, 5))  # 24: more than the k of a top-k gate, which is 20
SPECIAL = (*BF16, *TF32, *WIDE_X, *FLOAT16, *CANCELS, *FINE, *ZERO)
MINUS_ZERO = ZERO[0]
OWN_OUTPUTS = FIRST, BLOCKS  # of the first feature, and of the last
# Which features have to fire for a case to show some of its flags.
SHOWN_BY = {
    "each-block": EDGES, "wide-bias": WIDE_BIAS, "small-activations": FAINT, "cancellation": CANCELS[:1], "large-magnitude": ZERO, "subnormal": ZERO,
}  # fmt: skip
FINE_B_DEC = 11 * 2.0**-26  # 1 less this is rounded to 1 - 3 * 2^-24, a quarter of a unit further down
LN_2 = np.float32(np.log(2.0))  # its exponential is 2.0000000038, of which float32 leaves 2


@dataclass(frozen=True, eq=False)
class Stimulus:
    """A residual that is to be a case: float64 `values` of the encoder's input. `is_rounded` is whether float32 rounds it when b_dec goes."""

    name: str
    flags: tuple[str, ...]
    values: np.ndarray
    is_rounded: bool = False
    layer: int = 0


def is_fine(settings: Settings) -> bool:
    """Whether b_dec has a value that makes float32 round the input."""
    return settings.minus_b_dec and settings.normalised in (IDENTITY, SCALED)


def _on(*inputs: int) -> np.ndarray:
    values = np.zeros(N_INPUTS)
    values[list(inputs)] = ONE
    return values


def _with(base: np.ndarray, changed: dict[int, float]) -> np.ndarray:
    values = base.copy()
    for place, value in changed.items():
        values[place] = value
    return values


def stimuli(settings: Settings, tensors: Tensors) -> list[Stimulus]:
    """The cases that are tried on a format's weights: those whose input would be rounded are left out later."""
    is_plain = settings.normalised in (IDENTITY, SCALED)
    on_first, on_biases = _on(FIRST), _on(BIASES)
    cancelled = {CANCELLING: 2.0**20, RESIDUALS: -(2.0**20 - 1.125)}
    cases = [
        Stimulus("gate-equality", ("gate-equality",), _on(AT_GATE)),
        Stimulus("gate-equality", ("gate-equality",), _on(AT_GATE, NEGATIVE)),
        Stimulus("zero-pre", ("zero-pre",), np.zeros(N_INPUTS)),
        Stimulus("minus-zero", ("zero-pre",), _with(np.zeros(N_INPUTS), dict.fromkeys((ALL, FIRST, RESIDUALS, LARGE), -0.0))),
        Stimulus("negative-threshold", ("negative-threshold", "negative-pre"), _on(NEGATIVE)),
        Stimulus("threshold", ("threshold", "decoder"), _on(LEVEL)),
        Stimulus("tie-order", ("tie-order",), _on(TIES)),
        Stimulus("all-active", ("all-active", "k-boundary", "decoder"), _on(ALL)),
        Stimulus("none-active", ("none-active", "negative-pre", "b_dec-matters", "fewer-than-k"), -_on(ALL)),
        Stimulus("first-feature", ("first-feature", "fewer-than-k", "wide-decoder"), _on(FIRST, LEVEL) if is_plain else on_first),
        Stimulus("last-feature", ("last-feature", "fewer-than-k", "wide-decoder"), _on(LAST)),
        Stimulus("first-input", ("first-input",), _on(FIRST_INPUT)),
        Stimulus("last-input", ("last-input",), _on(LAST_INPUT)),
        Stimulus("each-block", ("each-block", "decoder"), _on(BLOCKS)),
        Stimulus("b_enc-matters", ("b_enc-matters",), _with(on_biases, {WEIGHTS: -ONE}) if is_plain else on_biases),
        Stimulus("wide-bias", ("wide-bias", "bfloat16", "b_enc-matters"), _on(FIRST, LAST)),
        Stimulus("small-activations", ("small-activations", "int8"), _on(WEAK)),
        Stimulus("bfloat16-weights", ("bfloat16", "wide-weights"), _on(WEIGHTS, BIASES)),
        Stimulus("tf32-weights", ("tf32", "float16", "wide-weights"), _on(WEIGHTS, FIRST)),
        Stimulus("float16-weights", ("float16", "wide-weights"), _with(on_first, {CANCELLING: 2.0**20})),
        Stimulus("bfloat16-residual", ("bfloat16", "wide-residual"), _with(on_biases, {RESIDUALS: ONE * (1 + 2.0**-9)})),
        Stimulus("tf32-residual", ("tf32", "float16", "wide-residual"), _with(on_biases, {RESIDUALS: ONE * (1 + 3 * 2.0**-12)})),
        Stimulus("float64-input", ("float64-input", "wide-residual"), _with(on_biases, {RESIDUALS: ONE * (1 + 2.0**-23)})),
        Stimulus("cancellation", ("cancellation",), _with(on_first, cancelled)),
        Stimulus("large-magnitude", ("large-magnitude",), _with(on_first, {LARGE: 2.0**60})),
        Stimulus("subnormal", ("subnormal",), _with(on_first, {LARGE: 2.0**-140})),
    ]
    if is_fine(settings):
        cases = [stimulus for stimulus in cases if stimulus.name != "subnormal"]
        cases.append(Stimulus("rounded-input", ("float64-input",), _with(on_first, {LARGE: 1.0, RESIDUALS: 1.0}), is_rounded=True))
    dense = ("decoder", "orientation", "w_dec-not-w_enc", "wide-output", "input", *settings_flags(settings))
    return [*cases, *(Stimulus("dense", dense, _dense(number)) for number in _dense_numbers(settings, tensors))]


def square_stimuli(settings: Settings, tensors: Tensors) -> list[Stimulus]:
    """The cases of square weights, which need no inputs of a purpose."""
    flags = ("decoder", "orientation", "w_dec-not-w_enc", "input", *settings_flags(settings))
    return [Stimulus("dense", flags, _dense(number)) for number in _dense_numbers(settings, tensors)]


def settings_flags(settings: Settings) -> tuple[str, ...]:
    """The flags of what the settings alone say: any dense residual shows it where they are not kept to."""
    flags = {
        "b_dec-subtracted": settings.minus_b_dec, "b_dec-not-subtracted": not settings.minus_b_dec, "input-scale": settings.normalised == SCALED or settings.root_scaled,
        "input-norm": settings.normalised not in (IDENTITY, SCALED), "decoder-norms": settings.by_decoder_norm,
        "magnitude-bias": settings.gate == GATED, "magnitude-scale": settings.gate == GATED,
    }  # fmt: skip
    return tuple(flag for flag, holds in flags.items() if holds)


def _dense(number: int) -> np.ndarray:
    """Small values on the inputs that are not wide, others for each number."""
    values = np.zeros(N_INPUTS)
    state = number * 2654435761 + 12345
    for place in DENSE:
        state = (state * 1103515245 + 12345) % 2**31
        values[place] = ((state >> 16) % 9 - 4) / 2
    return values


def _dense_numbers(settings: Settings, tensors: Tensors) -> list[int]:
    """The first two whose input is not rounded, and on which a tenth to a third of the features are above 0."""
    numbers: list[int] = []
    number = 0
    while len(numbers) < 2:
        number += 1
        residual = residual_of(settings, tensors, Stimulus("dense", (), _dense(number)))
        inputs = None if residual is None or not residual.sum() else input_of(settings, tensors, residual)  # a mean shows where it is not 0
        if inputs:
            product = (tensors[W_ENC].astype(np.float64) * inputs[0].astype(np.float64)[:, np.newaxis]).sum(axis=0)
            if 0.1 <= np.count_nonzero(product + tensors[B_GATE if settings.gate == GATED else B_ENC] > 0) / len(product) <= 0.33:
                numbers.append(number)
    return numbers


def residual_of(settings: Settings, tensors: Tensors, stimulus: Stimulus) -> np.ndarray | None:
    """float32 residual [n_inputs] whose input the stimulus is; None where float32 has none."""
    values = stimulus.values
    if settings.normalised not in (IDENTITY, SCALED):
        values = values * 2.0**20  # so large that layer norm's 1e-5 is nothing beside its deviation
    elif settings.minus_b_dec:
        values = values + np.where((np.arange(len(values)) == LARGE) & stimulus.is_rounded, 0, tensors[B_DEC])
    values = values / settings.factor * (np.sqrt(len(values)) if settings.root_scaled else 1)
    with np.errstate(under="ignore"):
        residual = values.astype(np.float32)
    # Where b_dec is fine what is left of the residual without it is rounded to what it is to be.
    return residual if is_fine(settings) or np.array_equal(residual.astype(np.float64), values) else None


# --- weights ----------------------------------------------------------------------------------------------------------


def weights(settings: Settings, parts: tuple[str, ...], d_out: int, targets: tuple[int, ...], n_features: int, layer: int) -> Tensors:
    """The tensors of a layer: those with parts of their own, or for a few features square ones without."""
    n_rows = N_INPUTS // targets[1] if len(targets) > 1 else d_out
    number = (np.arange(n_features) * 101 + 7 + layer * 5) % n_features  # another for each feature
    tensors: Tensors = {B_DEC: _b_dec(settings, n_rows, targets), W_DEC: _w_dec(number, n_rows, targets, n_features == N_FEATURES, not settings.by_decoder_norm)}
    w_enc = _w_enc(number, settings) if n_features == N_FEATURES else _square(number, layer)
    bias = -0.25 - number / 512 if n_features == N_FEATURES else (number - 8) / 8 + layer / 16
    tensors[W_ENC] = w_enc.astype(np.float32)
    if W_SKIP in parts:
        place = np.add.outer(3 * np.arange(N_INPUTS), 5 * np.arange(n_rows) + layer)
        tensors[W_SKIP] = ((place % 9 - 4) / 4 * ~np.isin(np.arange(N_INPUTS), WIDE)[:, np.newaxis]).astype(np.float32)
        tensors[W_SKIP][:, list(OWN_OUTPUTS)] = 0
    level = _levels(settings, parts, tensors, number, layer)
    magnitude = bias + np.where(number % 2, 0.5, -0.25)
    if n_features == N_FEATURES:
        _set_biases(settings, tensors, bias, magnitude, level)
    if settings.gate == GATED:
        r_mag = np.where(number % 5 == 0, LN_2, np.float32(0))
        if n_features == N_FEATURES:
            r_mag[[*SPECIAL, *TIED, *AT_GATE_ONE, *AT_GATE_TWO, *UNDER, *OVER, *BELOW_ZERO]] = 0
        tensors |= {B_GATE: bias.astype(np.float32), B_MAG: magnitude.astype(np.float32), R_MAG: r_mag}
    else:
        tensors[B_ENC] = bias.astype(np.float32)
    return tensors


def _square(number: np.ndarray, layer: int) -> np.ndarray:
    place = np.add.outer(7 * np.arange(N_INPUTS) ** 2 + layer, 3 * number)
    values: np.ndarray = (place % 23 - 11) / 8
    return values


def _w_enc(number: np.ndarray, settings: Settings) -> np.ndarray:
    below = -1 - number / 512
    w_enc = np.tile(below, (N_INPUTS, 1))
    w_enc[list(WIDE)] = 0
    w_enc[ALL] = (64 + number) / 64
    w_enc[FIRST_INPUT] = np.where(number % 9 == 0, 1 + number / 512, below)
    w_enc[LAST_INPUT] = np.where(number % 9 == 2, 1 + number / 512, below)
    w_enc[BLOCKS, list(EDGES)] = 3 + np.arange(len(EDGES)) / 8
    w_enc[FIRST, 0] = w_enc[LAST, -1] = 8
    w_enc[TIES, list(TIED)] = 1
    w_enc[WEAK, list(STRONG)] = 64 + np.arange(len(STRONG))
    w_enc[WEAK, list(FAINT)] = 0.125
    w_enc[:, list(POSITIVE_BIAS)] = np.where(w_enc[:, list(POSITIVE_BIAS)] == 0, 0, -4 - np.arange(len(POSITIVE_BIAS)) / 8)
    w_enc[BIASES, list(POSITIVE_BIAS)], w_enc[ALL, list(POSITIVE_BIAS)] = -0.125, 4 + np.arange(len(POSITIVE_BIAS)) / 8
    w_enc[FIRST, list(WIDE_BIAS)] = w_enc[LAST, list(WIDE_BIAS)] = 1
    w_enc[AT_GATE, list(AT_GATE_ONE)] = w_enc[NEGATIVE, list(BELOW_ZERO)] = w_enc[LEVEL, list((*UNDER, *OVER))] = 1
    w_enc[AT_GATE, list(AT_GATE_TWO)] = w_enc[NEGATIVE, list(AT_GATE_TWO)] = 0.5
    if settings.normalised not in (IDENTITY, SCALED):
        return w_enc
    powers = np.array([1, 2, 0.5])
    w_enc[FIRST, list((*TF32, *WIDE_X, *FLOAT16, *CANCELS, *FINE, *ZERO))] = 0
    w_enc[BIASES, list((*BF16, *WIDE_X, *CANCELS, *FINE))] = 0
    w_enc[FIRST, list(BF16)] = -8
    w_enc[WEIGHTS, list(BF16)] = 1 + np.array([1, 3, 5]) * 2.0**-9
    w_enc[WEIGHTS, list(TF32)] = 1 + np.array([3, 5, 11]) * 2.0**-12
    w_enc[RESIDUALS, list(WIDE_X)] = powers
    w_enc[CANCELLING, list(FLOAT16)] = np.array([255, 253, 251]) * 2.0**-25
    w_enc[CANCELLING, list(CANCELS)] = w_enc[RESIDUALS, list(CANCELS)] = np.array([4, 0.125, 0.03125])
    w_enc[LARGE, list(ZERO)], w_enc[LARGE, list(FINE)], w_enc[RESIDUALS, list(FINE)] = powers, -powers * 2.0**26, powers * 2.0**26
    w_enc[WEIGHTS, list((*FINE, *ZERO))] = -1 - np.arange(6) / 8
    w_enc[CANCELLING, list(FINE)], w_enc[CANCELLING, list(ZERO)] = -32 * powers, -1 - np.arange(3) / 8
    return w_enc


def _b_dec(settings: Settings, n_rows: int, targets: tuple[int, ...]) -> np.ndarray:
    shape = targets[:1] if len(targets) > 1 else ()
    place = np.add.outer(3 * np.arange(int(np.prod(shape))), 5 * np.arange(n_rows)).reshape(*shape, n_rows)
    values = (place % 7 - 3) / 32
    values[..., [row for row in (*WIDE, *OWN_OUTPUTS) if row < n_rows]] = 0
    if is_fine(settings):
        values[LARGE] = FINE_B_DEC
    return values.astype(np.float32)


def _w_dec(number: np.ndarray, n_rows: int, targets: tuple[int, ...], has_special: bool, has_wide: bool) -> np.ndarray:
    """Rows of one value or of four, of one magnitude, so that their norms are powers of two; those of special features have one.

    The first and the last feature have an output of their own, and there, where it `has_wide`, a weight that fewer digits change.
    """
    w_dec = np.zeros((len(number), targets[0] if targets else 1, n_rows))
    own = [row for row in WIDE if row < n_rows and row != LARGE]
    common = [row for row in range(n_rows) if row not in (*WIDE, *OWN_OUTPUTS)]
    for feature, value in enumerate(number.tolist()):
        for target in range(w_dec.shape[1]):
            if has_special and feature in SPECIAL:
                w_dec[feature, target, own[SPECIAL.index(feature) % 3 % len(own)]] = 1 + target
                continue
            norm = 1 if has_special and feature in TIED else value
            for place in range(1 if norm % 3 == 0 else 4):
                row = common[(value + place * (3 if len(common) > 3 * 3 else 1) + target) % len(common)]
                w_dec[feature, target, row] = (1 + norm % 2) * (1 if (value + place + target) % 3 else -1)
    if has_special:
        w_dec[[0, -1]] = 0
        w_dec[0, :, OWN_OUTPUTS[0]], w_dec[-1, :, OWN_OUTPUTS[1]] = (1 + 3 * 2.0**-9, 33 * 2.0**-25) if has_wide else (1, 2)
    return (w_dec if targets else w_dec[:, 0]).astype(np.float32)


def _levels(settings: Settings, parts: tuple[str, ...], tensors: Tensors, number: np.ndarray, layer: int) -> np.ndarray:
    """float64 [n_features]: what values are held against, and the tensor of it where there is one."""
    n, special = len(number), len(number) == N_FEATURES
    if settings.gate != JUMPRELU:
        return np.zeros(n)
    if LOG_THRESHOLD in parts:
        logarithm = -1 - (number % 4) / 4 + 2 * layer
        if special:
            logarithm[list((*AT_GATE_ONE, *AT_GATE_TWO, *UNDER, *OVER, *FAINT))] = 0  # whose exponential is 1 with every libm
            logarithm[list(SPECIAL)] = -4
            logarithm[list(TIED)] = -1
        tensors[LOG_THRESHOLD] = logarithm.astype(np.float32)
        return np.exp(logarithm)
    if settings.level is not None or THRESHOLD not in parts:
        return np.full(n, (settings.level or 0.0) * settings.level_factor)
    level = 0.125 + (number % 16) / 64 + layer / 2
    if special:
        level[list(SPECIAL)] = 0
        level[list((*TIED, *FAINT, *UNDER, *OVER))] = 0.125
        level[list((*AT_GATE_ONE, *AT_GATE_TWO))] = 0.5 + np.arange(7) / 8
        level[list(BELOW_ZERO)] = -0.5
    tensors[THRESHOLD] = level.astype(np.float32)
    return level


def _set_biases(settings: Settings, tensors: Tensors, bias: np.ndarray, magnitude: np.ndarray, level: np.ndarray) -> None:
    """Biases that bring features to where a case is to have them."""
    bias[[*FINE, *ZERO]], bias[[*WIDE_X, *CANCELS]] = 0, -0.25
    bias[MINUS_ZERO] = -0.0
    bias[list(POSITIVE_BIAS)] = 6 + np.arange(len(POSITIVE_BIAS)) / 8
    bias[list(WIDE_BIAS)] = -5 - np.array([1 / 256, 3 / 256, 3 / 2048, 5 / 2048])
    bias[list(TIED)] = -0.25
    magnitude[[*SPECIAL, *POSITIVE_BIAS, *WIDE_BIAS, *TIED]] = bias[[*SPECIAL, *POSITIVE_BIAS, *WIDE_BIAS, *TIED]]

    def bring(inputs: np.ndarray, features: tuple[int, ...], value: Callable[[np.ndarray], np.ndarray]) -> None:
        residual = residual_of(settings, tensors, Stimulus("", (), inputs))
        reached = None if residual is None else input_of(settings, tensors, residual)
        if reached:
            product = (tensors[W_ENC][:, features].T.astype(np.float64) * reached[0]).sum(axis=1)
            bias[list(features)] = value(level[list(features)]) - product
            magnitude[list(features)] = bias[list(features)]

    steps = np.arange(8)
    bring(_on(AT_GATE), AT_GATE_ONE, lambda level: level)
    bring(_on(AT_GATE, NEGATIVE), AT_GATE_TWO, lambda level: level)
    bring(_on(NEGATIVE), BELOW_ZERO, lambda level: np.full(len(level), -0.25) - steps[: len(level)] / 64)
    bring(_on(LEVEL), UNDER, lambda level: np.where(level > 0, level * 0.75, -0.125) - steps[: len(level)] / 512)
    bring(_on(LEVEL), OVER, lambda level: np.where(level > 0, level * 1.25, 0.25) + steps[: len(level)] / 512)
    bring(_on(WEAK), FAINT, lambda level: level + (steps[: len(level)] + 1) / 256)
    magnitude[list((*AT_GATE_ONE, *AT_GATE_TWO, *UNDER))] += 1  # the gate alone is shut
    magnitude[list(OVER[1:])] -= 1  # the gate alone is open
