# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which of the mistakes in mistakes.py, alone or two at once, a candidate's encodings are.

The search has two steps. What a mistake makes of the candidate's own features needs only their columns of W_enc, so
that one pass over the weights tests every hypothesis against every value that the candidate printed. The few that
survive are encoded whole, in further passes, and must give the candidate's n_active, choice and order too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from oracle.checking.compare import answers_of, tolerance_of
from oracle.checking.verify import residual_of
from oracle.diagnosis import mistakes, neighbours
from oracle.diagnosis.explanation import Explanation, Fit, fit_of, ranked
from oracle.diagnosis.mistakes import (
    BIAS,
    GATE,
    INDEX,
    LAYER_ABOVE,
    LAYER_BELOW,
    SELECTION,
    WEIGHTS,
    Gate,
    Mistake,
    Recipe,
    Selection,
)
from oracle.diagnosis.neighbours import Neighbours, Other
from oracle.diagnosis.trial import LINEAR_KINDS, Case, Factors, WeightFile, difference_left, related, there_for
from oracle.job import Events, Job
from oracle.references import document
from oracle.references import generate as reference
from oracle.references.document import Document
from oracle.references.generate import RecordedLayer
from oracle.weights.layer import open_layer

MOST_CASES_PER_LAYER = 6  # examined; those that disagree come first
MOST_ANSWERS_PER_CASE = 12  # of a long list, that the first step looks at
MOST_ROWS = 192  # of pre-activations that the second step makes of a weight file
PRODUCT_BYTES = 24 * 1024 * 1024  # of pre-activations that it holds at once: 192 rows of 16,384 features


NEIGHBOURS = [
    (mistake, 1 if mistake.compute == LAYER_ABOVE else -1)
    for mistake in mistakes.MISTAKES
    if mistake.kind == WEIGHTS and mistake.compute in (LAYER_BELOW, LAYER_ABOVE)
]


@dataclass
class EncoderSearch:
    """One search for a cause over the cases that are examined.

    `answers` are the candidate's cases by (layer, seed), `wrong` those that disagree; `labelled` is a mistake that was
    made of the labels, and seen already. `not_tried` fills with what would have needed files that are not there.
    """

    recorded: Document
    answers: dict[tuple[int, int], Document]
    wrong: set[tuple[int, int]]
    labelled: Recipe
    job: Job
    events: Events
    by_curation: bool
    not_tried: list[str] = field(default_factory=list)
    _factors: Factors = field(default_factory=Factors)

    def run(self, *, fetch: bool) -> Explanation:
        """Search with the files that the cache holds, or with those that may be fetched too."""
        self.not_tried.clear()
        beside = Neighbours.of(
            self.recorded, self.job, self.events, self.not_tried, by_curation=self.by_curation, fetch=fetch
        )
        self._layers = [
            (layer, self._cases(layer), neighbours.other_l0(layer) + beside.beside(layer, NEIGHBOURS))
            for layer in reference.recorded_layers(self.recorded, self.job, self.events, by_curation=self.by_curation)
            if any((case["layer"], case["seed"]) in self.answers for case in layer.cases)
        ]
        examined = sum(len(cases) for _, cases, _ in self._layers)
        available = self._available()
        hypotheses = {how_many: mistakes.candidates(available, how_many) for how_many in (1, 2)}
        n_printed = sum(len(case.values) for _, cases, _ in self._layers for case in cases)
        if self.labelled.mistakes or not n_printed:
            hypotheses[2] = []  # the label is one mistake of the two; and what prints nothing has too many causes
        alive, known = self._screen(hypotheses[1] + hypotheses[2], len(hypotheses[1]))
        for how_many in (1, 2):
            fits = self._evaluate([recipe for recipe in hypotheses[how_many] if recipe in alive])
            if fits:
                named, also = ranked(fits, self._largest_value())
                return Explanation(named, also, examined, (), tuple(self.not_tried))
        return Explanation((), (), examined, known, tuple(self.not_tried))

    def _cases(self, layer: RecordedLayer) -> list[Case]:
        if layer.weights.problem:
            raise document.DataError(
                f"{layer.weights.file.path} is not the file that the reference was made from: its sha256 differs"
            )
        top = document.top_key(self.recorded)
        there = [case for case in layer.cases if (case["layer"], case["seed"]) in self.answers]
        there.sort(key=lambda case: (case["layer"], case["seed"]) not in self.wrong)
        cases = []
        for case in there[:MOST_CASES_PER_LAYER]:
            answer = self.answers[case["layer"], case["seed"]]
            printed = answers_of(answer, top)
            cases.append(
                Case(
                    case["seed"],
                    case["stream"] if "stream" in case else case["layer"],
                    case["layer"],
                    residual_of(self.recorded, case),
                    answer["n_active"],
                    np.clip(np.array([index for index, _ in printed], object), -1, 1 << 62).astype(np.int64),
                    np.array([value for _, value in printed]),
                    answers_of(case, top),
                )
            )
        return cases

    def _available(self) -> tuple[Mistake, ...]:
        """The rows that can be computed: where a file is missing for one layer, its row is left out for all."""
        in_all = set.intersection(*({other.mistake for other in others} for _, _, others in self._layers))
        real = {other.mistake for _, _, others in self._layers for other in others if other.path}
        there = there_for(self.recorded, [layer for layer, _, _ in self._layers])
        files = {mistake for mistake, _ in NEIGHBOURS}
        rows = [mistake for mistake in mistakes.MISTAKES if mistake.needs <= there and mistake not in files]
        return (*rows, *sorted(in_all & real, key=lambda mistake: mistake.name))

    @contextlib.contextmanager
    def _sources(self, layer: RecordedLayer, others: list[Other]) -> Iterator[list[WeightFile]]:
        shape = self.recorded["d_model"], self.recorded["n_features_per_layer"]
        with contextlib.ExitStack() as stack:
            sources = []
            own = None, layer.weights.path, layer.layer, layer.weights.file.path
            for mistake, path, number, label in [own, *((o.mistake, o.path, o.layer, o.label) for o in others)]:
                if path is not None:
                    reader = stack.enter_context(open(path, "rb", buffering=0))
                    opened = open_layer(layer.schema, number, reader, layer.weights.file.path, label)
                    sources.append(WeightFile.open(opened, mistake, shape))
            yield sources

    def _largest_value(self) -> float:
        return max(
            (float(np.abs(case.values).max()) for _, cases, _ in self._layers for case in cases if len(case.values)),
            default=0.0,
        )

    # --- the first step: the candidate's own features -----------------------------------------------------------

    def _screen(self, recipes: list[Recipe], n_single: int) -> tuple[set[Recipe], tuple[str, ...]]:
        """The recipes that give every value that was printed; and what can be said if none does."""
        alive = dict.fromkeys(recipes)
        right_pairs: list[tuple[float, float]] = []  # (what is right for a feature, what was printed)
        for layer, cases, others in self._layers:
            with self._sources(layer, others) as sources:
                for source in sources:
                    mine = [recipe for recipe in alive if source.makes(recipe)]
                    if source.mistake is None:
                        mine.append(Recipe())
                    if mine:
                        survivors = self._screen_source(source, cases, mine, right_pairs)
                        for recipe in set(mine) - survivors:
                            alive.pop(recipe, None)
        return set(alive), related(right_pairs)

    def _screen_source(
        self, source: WeightFile, cases: list[Case], recipes: list[Recipe], right_pairs: list[tuple[float, float]]
    ) -> set[Recipe]:
        n_features, tolerance = len(source.b_enc), tolerance_of(self.recorded)
        maps = {recipe.compute(INDEX, mistakes.right_index) for recipe in recipes}
        printed = [case.printed[:MOST_ANSWERS_PER_CASE] for case in cases]
        stands_for = {by: [by(indices, n_features) for indices in printed] for by in maps}
        expected = [np.array([index for index, _ in case.expected[:MOST_ANSWERS_PER_CASE]], np.int64) for case in cases]
        every = np.unique(np.concatenate([*(js for of_map in stands_for.values() for js in of_map), *expected]))
        every = every[every >= 0]
        places = np.full(n_features, -1)
        places[every] = np.arange(len(every))
        pre = self._factors.times_columns(source, cases, recipes, every) if len(every) else {}
        gates: dict[Any, Gate] = {}
        survivors = set()
        for recipe in recipes:
            selection: Selection = recipe.compute(SELECTION, mistakes.RIGHT_SELECTION)
            step = recipe.compute(GATE, mistakes.right_gate)
            gate = gates.setdefault(step, step(source.threshold))
            by = recipe.compute(INDEX, mistakes.right_index)
            fits = True
            for number, case in enumerate(cases):
                js, values = stands_for[by][number], case.values[:MOST_ANSWERS_PER_CASE]
                if not recipe.mistakes:
                    self._check_reference(source, case, expected[number], pre, places, recipe, number)
                    right_pairs += [
                        (float(pre[recipe][number, places[j]] + source.b_enc[j]), float(value))
                        for j, value in zip(js, values)
                        if j >= 0
                    ]
                    continue
                if np.any(js < 0):
                    fits = False
                    break
                if not len(js):
                    continue
                there = pre[recipe.only(*LINEAR_KINDS)][number, places[js]] + recipe.compute(BIAS, 1) * source.b_enc[js]
                given = {"activation": there - gate.subtracted[js], "pre": there, "|pre|": np.abs(there)}[selection.value]
                if np.any(np.abs(given - values)[values != 0] > tolerance):
                    fits = False
                    break
            if fits and recipe.mistakes:
                survivors.add(recipe)
        return survivors

    def _check_reference(
        self, source: WeightFile, case: Case, expected: np.ndarray, pre: dict[Recipe, np.ndarray], places: np.ndarray, right: Recipe, number: int
    ) -> None:
        if not len(expected):
            return
        given = pre[right][number, places[expected]] + source.b_enc[expected]
        values = np.array([value for _, value in case.expected[: len(expected)]])
        if np.any(np.abs(given - values) > tolerance_of(self.recorded)):
            raise document.DataError(
                f"layer {case.layer} seed {case.seed}: the reference is not what these weights give, so they cannot explain "
                "a difference from it; `verify` says more"
            )

    # --- the second step: everything that was printed -----------------------------------------------------------

    def _evaluate(self, recipes: list[Recipe]) -> list[Fit]:
        """Those recipes that give the whole of every case, with the largest difference that they leave."""
        left = {recipe: 0.0 for recipe in recipes}
        matched = dict.fromkeys(recipes, 0)
        for layer, cases, others in self._layers:
            if not left:
                break
            with self._sources(layer, others) as sources:
                for source in sources:
                    mine = [recipe for recipe in left if source.makes(recipe)]
                    found = self._evaluate_source(source, cases, mine)
                    for recipe in mine:
                        differences = found.get(recipe)
                        if differences is None:
                            del left[recipe]
                        else:
                            left[recipe] = max([left[recipe], *differences])
                            matched[recipe] += len(differences)
        return [
            fit_of(Recipe(self.labelled.mistakes + recipe.mistakes), matched[recipe], left[recipe])
            for recipe in left
            if matched[recipe]
        ]

    def _evaluate_source(
        self, source: WeightFile, cases: list[Case], recipes: list[Recipe]
    ) -> dict[Recipe, list[float] | None]:
        """The differences that recipes leave, a case each; None, or nothing, for those that fail one."""
        found: dict[Recipe, list[float] | None] = {}
        linear = dict.fromkeys(recipe.only(*LINEAR_KINDS) for recipe in recipes)
        kept = islice(linear, max(1, MOST_ROWS // len(cases)))
        at_once = max(1, PRODUCT_BYTES // (8 * len(source.b_enc) * len(cases)))
        while group := list(islice(kept, at_once)):
            factors = [self._factors.residuals(source, cases, recipe, {}) for recipe in group]
            products = dict(zip(group, source.products(group, factors)))
            for recipe in recipes:
                if recipe.only(*LINEAR_KINDS) in products:
                    found[recipe] = self._differences(source, cases, recipe, products)
            del products  # before the next group's
        return found

    def _differences(
        self,
        source: WeightFile,
        cases: list[Case],
        recipe: Recipe,
        products: dict[Recipe, np.ndarray],
    ) -> list[float] | None:
        tolerance, k = tolerance_of(self.recorded), self.recorded.get("top_k", 10)
        product = products[recipe.only(*LINEAR_KINDS)]
        gate: Gate = recipe.compute(GATE, mistakes.right_gate)(source.threshold)
        by = recipe.compute(INDEX, mistakes.right_index)
        selection: Selection = recipe.compute(SELECTION, mistakes.RIGHT_SELECTION)
        differences = []
        for case, row in zip(cases, product):
            pre = row + recipe.compute(BIAS, 1) * source.b_enc
            difference = difference_left(
                pre, gate, selection, by(case.printed, len(pre)), case.values, case.n_active, k, tolerance
            )
            if difference is None:
                return None
            differences.append(difference)
        return differences
