# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which of the mistakes in mistakes.py, alone or two at once, a candidate's numbers are.

The search has two steps. What a mistake makes of the candidate's own features needs only their columns of W_enc, so
that one pass over the weights tests every hypothesis against every value that the candidate printed. The few that
survive are encoded whole, in a second pass, and must give the candidate's n_active, choice and order too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import vendored_hf
from oracle import compare, document, mistakes, reference, verify
from oracle.compare import Comparison
from oracle.document import Document
from oracle.mistakes import (
    BIAS,
    GATE,
    INDEX,
    LAYER_ABOVE,
    LAYER_BELOW,
    RESHAPED,
    SELECTION,
    W_DEC,
    WEIGHTS,
    Gate,
    Mistake,
    Recipe,
    Selection,
)
from oracle.reference import Events, Job, RecordedLayer
from oracle.trial import LINEAR_KINDS, Case, Factors, WeightFile, difference_left, related

MOST_CASES_PER_LAYER = 6  # examined; those that disagree come first
MOST_ANSWERS_PER_CASE = 12  # of a long list, that the first step looks at
MOST_ROWS = 192  # of pre-activations that the second step holds at once: 24 MiB at 16,384 features
MOST_VARIANTS = 3  # of other L0
Other = tuple[Mistake, "str | None", str]  # a weight file that a port may have taken: its path, if any, and its label


@dataclass(frozen=True)
class Fit:
    """A hypothesis that gives the candidate's numbers: in how many cases, and the largest difference that is left."""

    name: str
    description: str
    mistakes: tuple[str, ...]
    matched: int
    largest_left: float


@dataclass(frozen=True)
class Explanation:
    """`named` are the hypotheses that fit best, more than one where they give the same numbers on these cases.

    `also` fit within the tolerance, but less well. Where nothing fits, `known` says what can be said. `examined` is
    the number of cases looked at, `not_tried` what would have needed files that are not there.
    """

    named: tuple[Fit, ...]
    also: tuple[Fit, ...]
    examined: int
    known: tuple[str, ...] = ()
    not_tried: tuple[str, ...] = ()


def explain(
    recorded: Document,
    candidate: Document,
    compared: Comparison,
    job: Job,
    events: Events = Events(),
    *,
    by_curation: bool = False,
) -> Explanation:
    """The cause of what `compared`, which disagrees, found. Raises as verify does; a correct candidate has no cause."""
    if compared.agrees:
        return Explanation((), (), 0, ("the candidate agrees: there is nothing to explain",))
    answers, labelled = compare.by_key(candidate), Recipe()
    right = {(case["layer"], case["seed"]) for case in recorded["test_cases"]}
    from_0 = {(layer - 1, seed): case for (layer, seed), case in answers.items()}
    if len(right & from_0.keys()) > len(right & answers.keys()):
        answers, labelled = from_0, Recipe((mistakes.LAYERS_FROM_1,))
    verdicts = {
        (case["layer"], case["seed"]): compare.compare_case(
            case,
            answers[case["layer"], case["seed"]],
            document.top_key(recorded),
            recorded["n_features_per_layer"],
            compared.tolerance,
        )
        for case in recorded["test_cases"]
        if (case["layer"], case["seed"]) in answers
    }
    if all(verdict.agrees for verdict in verdicts.values()):
        if not labelled.mistakes or not verdicts:
            return Explanation((), (), len(verdicts), ("the cases that the candidate has agree; the others are missing",))
        left = max(verdict.largest or 0.0 for verdict in verdicts.values())
        return Explanation((_fit(labelled, len(verdicts), left),), (), len(verdicts))
    wrong = {key for key, verdict in verdicts.items() if not verdict.agrees}
    search = _Search(recorded, answers, wrong, labelled, job, events, by_curation)
    found = search.run(fetch=False)
    if not found.named and not (job.offline or vendored_hf.is_offline_mode()):
        found = search.run(fetch=True) if search.not_tried else found
    return found


def _fit(recipe: Recipe, matched: int, left: float) -> Fit:
    return Fit(recipe.name, recipe.description, tuple(mistake.name for mistake in recipe.mistakes), matched, left)


@dataclass
class _Search:
    """One search for a cause over the cases that are examined."""

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
        self._layers = [
            (layer, self._cases(layer), self._others(layer, fetch))
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
                # Where there is no layer below, "layer below" says nothing; what says something of every case comes first.
                fits.sort(key=lambda fit: (-fit.matched, fit.largest_left))
                # Hypotheses that give the same numbers leave the same difference, but for a last bit of what is printed.
                noise = 1.5 * fits[0].largest_left + 2.0**-23 * self._largest_value()
                named = tuple(fit for fit in fits if fit.matched == fits[0].matched and fit.largest_left <= noise)
                also = tuple(fit for fit in fits if fit not in named)
                return Explanation(named, also, examined, (), tuple(self.not_tried))
        return Explanation((), (), examined, known, tuple(self.not_tried))

    def _cases(self, layer: RecordedLayer) -> list[Case]:
        if layer.recorded_sha256 is not None and layer.sha256 != layer.recorded_sha256:
            raise document.DataError(
                f"{layer.file.path} is not the file that the reference was made from: its sha256 differs"
            )
        top = document.top_key(self.recorded)
        there = [case for case in layer.cases if (case["layer"], case["seed"]) in self.answers]
        there.sort(key=lambda case: (case["layer"], case["seed"]) not in self.wrong)
        cases = []
        for case in there[:MOST_CASES_PER_LAYER]:
            answer = self.answers[case["layer"], case["seed"]]
            printed = compare.answers_of(answer, top)
            cases.append(
                Case(
                    case["seed"],
                    case["stream"] if "stream" in case else case["layer"],
                    case["layer"],
                    verify.residual_of(self.recorded, case),
                    answer["n_active"],
                    np.clip(np.array([index for index, _ in printed], object), -1, 1 << 62).astype(np.int64),
                    np.array([value for _, value in printed]),
                    compare.answers_of(case, top),
                )
            )
        return cases

    def _others(self, layer: RecordedLayer, fetch: bool) -> list[Other]:
        """Other weight files that a port may have taken: the neighbours, and other L0 of the same width.

        A path of None: there is no such layer. Files that are not there are noted in `not_tried`.
        """
        found: list[Other] = []
        folder = Path(layer.path).parent
        siblings = sorted(there for there in folder.parent.glob(f"*/{Path(layer.path).name}") if there.parent != folder)
        for number, sibling in enumerate(siblings[:MOST_VARIANTS] if folder.name.startswith("average_l0_") else ()):
            found.append((_other_l0(number), str(sibling), f"{sibling.parent.name}/{sibling.name}"))
        curated = {}
        cached_only = replace(self.job, offline=not fetch or self.job.offline)
        with contextlib.suppress(OSError, ValueError, vendored_hf.EntryNotFoundError):
            curated = reference.curated_files(cached_only, self.events)
        for mistake in mistakes.MISTAKES:
            if mistake.kind != WEIGHTS or mistake.compute not in (LAYER_BELOW, LAYER_ABOVE):
                continue
            neighbour = layer.layer + (1 if mistake.compute == LAYER_ABOVE else -1)
            if curated and neighbour not in curated or neighbour < 0:
                found.append((mistake, None, ""))
                continue
            try:
                path = self._neighbour(layer, curated, neighbour, cached_only)
            except (OSError, KeyError, vendored_hf.EntryNotFoundError):
                self.not_tried.append(f"layer {neighbour}")
            else:
                found.append((mistake, path, f"layer {neighbour}"))
        return found

    def _neighbour(self, layer: RecordedLayer, curated: dict, neighbour: int, job: Job) -> str:
        file = curated[neighbour]
        own = layer.file if file.repo == layer.file.repo else file
        return reference.fetch_weights(job, self.events, replace(file, revision=file.revision or own.revision))

    def _available(self) -> tuple[Mistake, ...]:
        """The rows that can be computed: where a file is missing for one layer, its row is left out for all."""
        in_all = set.intersection(*({mistake for mistake, _, _ in others} for _, _, others in self._layers))
        real = {mistake for _, _, others in self._layers for mistake, path, _ in others if path}
        has_generator = "residual_generator" in self.recorded
        rows = [
            mistake
            for mistake in mistakes.MISTAKES
            if (mistake.kind != WEIGHTS or mistake.compute in (RESHAPED, W_DEC))
            and (mistake.kind != mistakes.SOURCE or has_generator)
        ]
        return (*rows, *sorted(in_all & real, key=lambda mistake: mistake.name))

    @contextlib.contextmanager
    def _sources(self, layer: RecordedLayer, others: list[Other]) -> Iterator[list[WeightFile]]:
        shape = self.recorded["d_model"], self.recorded["n_features_per_layer"]
        with contextlib.ExitStack() as stack:
            sources = []
            for mistake, path, label in [(None, layer.path, layer.file.path), *others]:
                if path is not None:
                    sources.append(
                        WeightFile.open(stack.enter_context(open(path, "rb", buffering=0)), label, mistake, shape)
                    )
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
        n_features, tolerance = len(source.b_enc), compare.tolerance_of(self.recorded)
        maps = {recipe.compute(INDEX, mistakes.right_index) for recipe in recipes}
        printed = [case.printed[:MOST_ANSWERS_PER_CASE] for case in cases]
        stands_for = {by: [by(indices, n_features) for indices in printed] for by in maps}
        expected = [np.array([index for index, _ in case.expected[:MOST_ANSWERS_PER_CASE]], np.int64) for case in cases]
        every = np.unique(np.concatenate([*(js for of_map in stands_for.values() for js in of_map), *expected]))
        every = every[every >= 0]
        places = np.full(n_features, -1)
        places[every] = np.arange(len(every))
        pre = self._factors.times_columns(source, cases, recipes, every) if len(every) else {}
        gates: dict = {}
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
        self, source: WeightFile, case: Case, expected: np.ndarray, pre: dict, places: np.ndarray, right: Recipe, number: int
    ) -> None:
        if not len(expected):
            return
        given = pre[right][number, places[expected]] + source.b_enc[expected]
        values = np.array([value for _, value in case.expected[: len(expected)]])
        if np.any(np.abs(given - values) > compare.tolerance_of(self.recorded)):
            raise document.DataError(
                f"layer {case.layer} seed {case.seed}: the reference is not what these weights give, so they cannot explain "
                "a difference from it; `verify` says more"
            )

    # --- the second step: everything that was printed -----------------------------------------------------------

    def _evaluate(self, recipes: list[Recipe]) -> list[Fit]:
        """Those recipes that give the whole of every case, with the largest difference that they leave."""
        left = {recipe: 0.0 for recipe in recipes}
        matched = dict.fromkeys(recipes, 0)
        tolerance, k = compare.tolerance_of(self.recorded), self.recorded.get("top_k", 10)
        for layer, cases, others in self._layers:
            if not left:
                break
            with self._sources(layer, others) as sources:
                for source in sources:
                    mine = [recipe for recipe in left if source.makes(recipe)]
                    linear = list(dict.fromkeys(recipe.only(*LINEAR_KINDS) for recipe in mine))
                    linear = linear[: max(1, MOST_ROWS // len(cases))]
                    if not linear:
                        continue
                    products = dict(
                        zip(linear, source.products(linear, [self._factors.residuals(source, cases, r, {}) for r in linear]))
                    )
                    for recipe in mine:
                        differences = self._differences(source, cases, recipe, products, k, tolerance)
                        if differences is None:
                            del left[recipe]
                        else:
                            left[recipe] = max([left[recipe], *differences])
                            matched[recipe] += len(differences)
        return [
            _fit(Recipe(self.labelled.mistakes + recipe.mistakes), matched[recipe], left[recipe])
            for recipe in left
            if matched[recipe]
        ]

    def _differences(
        self,
        source: WeightFile,
        cases: list[Case],
        recipe: Recipe,
        products: dict[Recipe, np.ndarray],
        k: int,
        tolerance: float,
    ) -> list[float] | None:
        product = products.get(recipe.only(*LINEAR_KINDS))
        if product is None:
            return None
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


def _other_l0(number: int) -> Mistake:
    return Mistake(
        f"other L0 ({number + 1})",
        WEIGHTS,
        f"the weights are of another L0 variant, number {number + 1} of those in the cache",
        number,
    )
