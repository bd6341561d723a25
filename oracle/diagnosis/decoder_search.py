# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which of the mistakes in decoder_mistakes.py, alone or two at once, a candidate's reconstructions are.

The encoder's answers agree, so that its right pre-activations are what the decoder had. As with these the search has
two steps: the first values of a reconstruction need only so many columns of W_dec, and few hypotheses survive them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, cast

import numpy as np

from oracle.arithmetic import decoder
from oracle.checking.compare import FLOAT32_ROUNDING, answers_of, reconstruction_problems
from oracle.checking.verify import residual_of
from oracle.diagnosis import mistakes
from oracle.diagnosis.decoder_mistakes import (
    ACTIVATIONS,
    B_DEC,
    DECODER,
    DECODER_MISTAKES,
    DECODER_ROUNDING,
    FEATURE_KINDS,
    RIGHT_B_DEC,
    RIGHT_SKIP,
    SKIP,
    TARGET,
    Firings,
    Skip,
    right_activations,
)
from oracle.diagnosis.explanation import Explanation, Fit, fit_of, ranked
from oracle.diagnosis.mistakes import LAYER_ABOVE, LAYER_BELOW, RESHAPED, Mistake, Recipe
from oracle.diagnosis.neighbours import Neighbours, Other
from oracle.diagnosis.trial import WeightFile, regrouped, related, there_for
from oracle.job import Events, Job
from oracle.references import document
from oracle.references.document import Document
from oracle.references.generate import RecordedLayer, recorded_layers
from oracle.weights.layer import Decoder, LayerWeights, decoder_in

MOST_CASES_PER_LAYER = 6  # examined; those that disagree come first
OUTPUT_BYTES = 16 * 1024 * 1024  # of what hypotheses make of the features, held at once

NEIGHBOURS = [
    (mistake, 1 if mistake.compute == LAYER_ABOVE else -1)
    for mistake in DECODER_MISTAKES
    if mistake.kind == DECODER and mistake.compute in (LAYER_BELOW, LAYER_ABOVE)
]


@dataclass(frozen=True)
class Printed:
    """A reconstruction that the candidate has: of the case and the target at these places, and whether it is wrong."""

    case: int
    target: int
    expected: Document
    given: Document
    wrong: bool


@dataclass
class Layer:
    """A layer under examination: all that its hypotheses have in common.

    `past` is what goes past the features, float64 [n_cases, 3, d_model]: through W_skip, its transpose, and as it is.
    """

    recorded: RecordedLayer
    others: list[Other]
    printed: list[Printed]
    firings: Firings
    past: np.ndarray
    b_dec: np.ndarray  # float64 [d_model]

    def output(self, of_features: np.ndarray, recipe: Recipe, printed: Printed) -> np.ndarray | None:
        """The reconstruction that a recipe gives, of as many values as `of_features` [n_cases, n_targets, n] has.

        None where it says nothing: it takes the decoder of a target layer that there is not.
        """
        place = printed.target + recipe.compute(TARGET, 0)
        if not 0 <= place < of_features.shape[1]:
            return None
        made: np.ndarray = of_features[printed.case, place]
        n = len(made)
        skip: Skip = recipe.compute(SKIP, RIGHT_SKIP)
        if printed.target == 0 or skip.to_all:
            made = made + np.array([skip.w_skip, skip.transposed, skip.residual]) @ self.past[printed.case, :, :n]
        own, elsewhere = recipe.compute(B_DEC, RIGHT_B_DEC)
        made = made + (elsewhere if printed.target else own) * self.b_dec[:n]
        return made


@dataclass
class _Tally:
    """What is known of a hypothesis that fits so far; `says` counts the wrong reconstructions that it gives."""

    left: float = 0.0
    cases: set[tuple[int, int]] = field(default_factory=set)
    says: int = 0


@dataclass
class DecoderSearch:
    """One search for a cause, with the same fields as EncoderSearch."""

    recorded: Document
    answers: dict[tuple[int, int], Document]
    wrong: set[tuple[int, int]]
    labelled: Recipe
    job: Job
    events: Events
    by_curation: bool
    not_tried: list[str] = field(default_factory=list)

    def run(self, *, fetch: bool) -> Explanation:
        """Search with the files that the cache holds, or with those that may be fetched too."""
        self.not_tried.clear()
        beside = Neighbours.of(
            self.recorded, self.job, self.events, self.not_tried, by_curation=self.by_curation, fetch=fetch
        )
        self._layers: list[Layer] = []
        for recorded in recorded_layers(self.recorded, self.job, self.events, by_curation=self.by_curation):
            layer = self._layer(recorded, beside)
            if layer.printed:
                self._layers.append(layer)
        examined = len({(layer.recorded.layer, one.case) for layer in self._layers for one in layer.printed})
        right = self._check_reference()
        for how_many in (1, 2) if not self.labelled.mistakes else (1,):
            alive = self._try(mistakes.candidates(self._available(), how_many), whole=False)
            fits = self._fits(self._try(list(alive), whole=True))
            if fits:
                named, also = ranked(fits, max(abs(value) for _, value in right))
                return Explanation(named, also, examined, (), tuple(self.not_tried))
        return Explanation((), (), examined, related(right, "values of reconstructions"), tuple(self.not_tried))

    def _fits(self, alive: dict[Recipe, _Tally]) -> list[Fit]:
        """Those of them that give what is wrong: the others say nothing but what is right anyway."""
        most = max((tally.says for tally in alive.values()), default=0)
        return [
            fit_of(Recipe(self.labelled.mistakes + recipe.mistakes), len(tally.cases), tally.left)
            for recipe, tally in alive.items()
            if tally.says == most > 0
        ]

    def _layer(self, recorded: RecordedLayer, beside: Neighbours) -> Layer:
        for file in (recorded.weights, recorded.decoder):
            if file and file.problem:
                raise document.DataError(
                    f"{file.file.path} is not the file that the reference was made from: its sha256 differs"
                )
        there = [case for case in recorded.cases if self.answers.get((case["layer"], case["seed"]), {}).get("reconstructions")]
        there.sort(key=lambda case: (case["layer"], case["seed"]) not in self.wrong)
        cases = there[:MOST_CASES_PER_LAYER]
        printed = [one for number, case in enumerate(cases) for one in self._printed(number, case)]
        empty = np.empty((0, 0))
        if not printed:
            return Layer(recorded, [], [], Firings(empty, empty, empty), empty, empty)
        shape = self.recorded["d_model"], self.recorded["n_features_per_layer"]
        residuals = np.stack([residual_of(self.recorded, case) for case in cases])  # [n_cases, d_model]
        with recorded.opened() as (weights, _):
            source = WeightFile.open(weights, None, shape)
            (product,) = source.products([Recipe()], [residuals])
            listed = np.zeros(product.shape, bool)
            for row, case in zip(listed, cases):
                row[[index for index, _ in answers_of(case, document.top_key(self.recorded))]] = True
            firings = Firings(product + source.b_enc, np.maximum(source.threshold, 0), listed)
            past = _past(weights, residuals)
        others = beside.beside(recorded, NEIGHBOURS, of_decoder=True)
        return Layer(recorded, others, printed, firings, past, source.b_dec.astype(np.float64))

    def _printed(self, number: int, case: Document) -> list[Printed]:
        given = {made["target_layer"]: made for made in self.answers[case["layer"], case["seed"]]["reconstructions"]}
        found = []
        for place, expected in enumerate(case.get("reconstructions", [])):
            made = given.get(expected["target_layer"])
            if made:
                wrong = bool(self._problems(expected, made))
                found.append(Printed(number, place, expected, made, wrong))
        return found

    def _problems(self, expected: Document, given: Document) -> list[str]:
        return reconstruction_problems(
            {"reconstructions": [expected]}, {"reconstructions": [given]}, self.recorded["d_model"]
        )

    def _available(self) -> tuple[Mistake, ...]:
        """The rows that can be computed: where a file is missing for one layer, its row is left out for all."""
        in_all = set.intersection(*({other.mistake for other in layer.others} for layer in self._layers))
        real = {other.mistake for layer in self._layers for other in layer.others if other.path}
        there = there_for(self.recorded, [layer.recorded for layer in self._layers])
        files = {mistake for mistake, _ in NEIGHBOURS}
        return tuple(
            row for row in DECODER_MISTAKES if row.needs <= there and (row not in files or row in in_all & real)
        )

    def _check_reference(self) -> list[tuple[float, float]]:
        """(what is right, what was printed) of the first values. Raises DataError where these weights don't give it."""
        right = []
        for layer in self._layers:
            for made in self._outputs(layer, [Recipe()], decoder.N_FIRST):
                for printed in layer.printed:
                    values = layer.output(made[Recipe()], Recipe(), printed)
                    if values is None or not _near(values, printed.expected["first_10"], printed.expected["tolerance"]):
                        raise document.DataError(
                            f"layer {layer.recorded.layer}: the reference's reconstructions are not what these weights give, "
                            "so they cannot explain a difference from them; `verify` says more"
                        )
                    right += list(zip(values.tolist(), printed.given["first_10"]))
        return right

    def _try(self, recipes: list[Recipe], *, whole: bool) -> dict[Recipe, _Tally]:
        """Those that give every reconstruction of which they say something: its first values, or the `whole`."""
        alive = {recipe: _Tally() for recipe in recipes}
        for layer in self._layers:
            of_features = list(dict.fromkeys(recipe.only(*FEATURE_KINDS) for recipe in alive))
            for made in self._outputs(layer, of_features, None if whole else decoder.N_FIRST):
                for recipe in [recipe for recipe in alive if recipe.only(*FEATURE_KINDS) in made]:
                    if not self._gives(layer, made[recipe.only(*FEATURE_KINDS)], recipe, alive[recipe], whole):
                        del alive[recipe]
        return alive

    def _gives(self, layer: Layer, of_features: np.ndarray, recipe: Recipe, tally: _Tally, whole: bool) -> bool:
        for printed in layer.printed:
            values = layer.output(of_features, recipe, printed)
            if values is None:
                continue
            if not whole and not _near(values, printed.given["first_10"], printed.expected["tolerance"]):
                return False
            if whole:
                made = _record(values, printed.expected)
                if self._problems(made, printed.given):
                    return False
                differences = np.abs(np.array(printed.given["first_10"]) - values[: decoder.N_FIRST])
                tally.left = max(tally.left, float(differences.max()), abs(made["norm"] - printed.given["norm"]))
            tally.cases.add((layer.recorded.layer, printed.case))
            tally.says += printed.wrong
        return True

    # --- what the features give -----------------------------------------------------------------------------------

    def _outputs(self, layer: Layer, recipes: list[Recipe], n_values: int | None) -> Iterator[dict[Recipe, np.ndarray]]:
        """What recipes make of the features, float64 [n_cases, n_targets, n_values], some recipes at a time.

        Recipes that take a layer's W_dec that there is not are left out.
        """
        for file in [None, *(other for other in layer.others if other.path)]:
            taken = file.mistake.compute if file else RESHAPED
            mine = [recipe for recipe in recipes if recipe.compute(DECODER, RESHAPED) == taken]
            if not mine:
                continue
            with _opened(layer.recorded, file) as w_dec:
                shape = w_dec.tensor.row_shape
                n_targets, d_model = (1, *shape)[-2:]
                width = d_model if n_values is None else min(n_values, d_model)
                at_once = max(1, OUTPUT_BYTES // (8 * len(layer.firings.pre) * n_targets * width))
                waiting = iter(mine)
                while group := list(islice(waiting, at_once)):
                    straight = [recipe for recipe in group if recipe.compute(DECODER, None) != RESHAPED]
                    made = _straight(w_dec, straight, layer.firings, width) if straight else {}
                    for recipe in group:
                        if recipe not in made:
                            made[recipe] = _reshaped(w_dec, recipe, layer.firings, width)
                    yield made


def _straight(w_dec: Decoder, recipes: list[Recipe], firings: Firings, width: int) -> dict[Recipe, np.ndarray]:
    n_targets = (1, *w_dec.tensor.row_shape)[-2]
    made = {recipe: np.zeros((len(firings.pre), n_targets * width)) for recipe in recipes}
    start = 0
    for block in w_dec.blocks():
        span = slice(start, start + len(block))
        start = span.stop
        part = Firings(firings.pre[:, span], firings.gate[span], firings.listed[:, span])
        rows = block.reshape(len(block), n_targets, -1)[:, :, :width]
        activations: dict[Any, np.ndarray] = {}
        weights: dict[Any, np.ndarray] = {}
        for recipe in recipes:
            fire, rounding = recipe.compute(ACTIVATIONS, right_activations), recipe.compute(DECODER_ROUNDING, None)
            if fire not in activations:
                activations[fire] = fire(part).astype(np.float64)  # [n_cases, f]
            if rounding not in weights:
                weights[rounding] = (rounding(rows) if rounding else rows).reshape(len(block), -1).astype(np.float64)
            # [n_cases, f] @ [f, n_targets * width] -> [n_cases, n_targets * width]
            made[recipe] += activations[fire] @ weights[rounding]
    return {recipe: values.reshape(len(values), n_targets, width) for recipe, values in made.items()}


def _reshaped(w_dec: Decoder, recipe: Recipe, firings: Firings, width: int) -> np.ndarray:
    """W_dec's buffer taken as [d_model, n_features]."""
    activations = recipe.compute(ACTIVATIONS, right_activations)(firings).astype(np.float64)  # [n_cases, n_features]
    rounding = recipe.compute(DECODER_ROUNDING, None)
    made = np.zeros((len(activations), 1, width))
    start = 0
    for rows in regrouped(w_dec.blocks(), activations.shape[1]):
        rows = rows[: width - start]
        if not len(rows):
            break
        # [n_cases, n_features] @ [n_features, d] -> [n_cases, d]
        made[:, 0, start : start + len(rows)] = activations @ (rounding(rows) if rounding else rows).astype(np.float64).T
        start += len(rows)
    return made


def _past(weights: LayerWeights, residuals: np.ndarray) -> np.ndarray:
    """float64 [n_cases, 3, d_model]: see Layer. Without W_skip the first two are 0."""
    wide = residuals.astype(np.float64)
    past = np.zeros((len(wide), 3, wide.shape[1]))
    past[:, 2] = wide
    by_output = weights.schema.w_skip is not None and weights.schema.w_skip.axes[0] == "d_model_out"
    start = 0
    for block in weights.w_skip_blocks():
        span, rows = slice(start, start + len(block)), block.astype(np.float64)
        start = span.stop
        along_inputs, along_outputs = (1, 0) if by_output else (0, 1)
        past[:, along_inputs] += wide[:, span] @ rows  # [n_cases, rows] @ [rows, d_model] -> [n_cases, d_model]
        past[:, along_outputs, span] = wide @ rows.T  # [n_cases, d_model] @ [d_model, rows] -> [n_cases, rows]
    return past


@contextlib.contextmanager
def _opened(recorded: RecordedLayer, other: Other | None) -> Iterator[Decoder]:
    """W_dec of the layer, or of another. Raises WeightsError."""
    if other is None:
        with recorded.opened() as (_, w_dec):
            yield cast(Decoder, w_dec)  # it is there: the reference decodes
        return
    with recorded.opened() as (weights, _), open(str(other.path), "rb", buffering=0) as file:
        path = (recorded.decoder or recorded.weights).file.path
        yield decoder_in(recorded.schema, other.layer, weights.extents, cast(BinaryIO, file), path, other.label)


def _near(values: np.ndarray, printed: list[float], off: float) -> bool:
    """Whether first values may be those that were printed, as compare has it."""
    given = np.array(printed, np.float64)
    if len(given) != min(len(values), decoder.N_FIRST):
        return False
    stored = FLOAT32_ROUNDING * (np.abs(values[: len(given)]) + np.abs(given))
    return bool(np.all(np.abs(values[: len(given)] - given) <= off + stored))


def _record(values: np.ndarray, expected: Document) -> Document:
    """A reconstruction as the JSON has it, with the tolerance of the right one."""
    sum_of_squares = math.fsum((values * values).tolist())
    return {
        "target_layer": expected["target_layer"],
        "norm": math.sqrt(sum_of_squares),
        "sum": math.fsum(values.tolist()),
        "sum_of_squares": sum_of_squares,
        "tolerance": expected["tolerance"],
        "first_10": values[: decoder.N_FIRST].tolist(),
    }
