# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a search for a cause returns: the mistakes that reproduce the cases that differ, ranked; what can be said where none
does; and the one wording of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import numpy as np

from oracle.arithmetic.constants import SEED_STRIDE
from oracle.diagnosis.layers import ExaminedCase
from oracle.diagnosis.port import Hypothesis, Match, Mistake, Rounding, same
from oracle.diagnosis.steps import bfloat16, float16
from oracle.errors import counted
from oracle.references.document import CaseId

# How surprising it is that a wrong mistake gives a number that the right answer does not: in bits, so that they add up.
BITS_OF_A_VALUE, BITS_OF_A_PLACE = 12.0, 3.0
# What a name needs: that one of some 150 rows, or of some 5,000 pairs, gives so much by chance, happens once in a thousand times.
BITS_OF_ONE, BITS_OF_TWO = 10.0, 20.0
FEW_NUMBERS = 6
MOST_CASES_NAMED = 4
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the candidate printed of a case, beside what is right, and the case's tolerance.

    float64 [n] of its list: the `right` values of these features before the gate, and whether it is `wrong`; `pre` [n_features] of
    all; `level`, the threshold that it has, or None. `scale` is what the right products are multiplied by where that gives all
    that is printed, `skipped` the inputs whose part is what lacks.
    """

    item: ExaminedCase
    tolerance: float
    right: np.ndarray
    wrong: np.ndarray
    pre: np.ndarray
    level: np.ndarray | None
    scale: float | None
    skipped: tuple[int, int] | None

    @cached_property
    def excess(self) -> int:
        """How many more fire than may."""
        (fewest, most), n_active = self.item.case.bounds, self.item.answer.n_active
        return min(0, n_active - fewest) + max(0, n_active - most)

    @cached_property
    def misplaced(self) -> int:
        """How many places have another feature than they should, with its right value, or none."""
        (indices, _), (expected, _) = self.item.printed, self.item.expected
        common = min(len(indices), len(expected))
        return int(np.count_nonzero((indices[:common] != expected[:common]) & ~self.wrong[:common])) + abs(len(expected) - len(indices))

    @cached_property
    def bits(self) -> float:
        """How much there is that the right answer does not explain; of a list with nothing on it, nothing."""
        if not self.prints:
            return 0.0
        return BITS_OF_A_VALUE * np.count_nonzero(self.wrong) + BITS_OF_A_PLACE * self.misplaced + math.log2(1 + abs(self.excess))

    @property
    def n_numbers(self) -> int:
        """How many numbers the right answer does not explain."""
        return int(np.count_nonzero(self.wrong)) + self.misplaced + bool(self.excess)

    @property
    def prints(self) -> bool:
        return bool(np.any(self.item.printed[1] != 0))

    @cached_property
    def factors(self) -> Interval | None:
        """The multiples of the threshold for which the count is right."""
        if self.level is None or self.wrong.any():
            return None
        on = self.pre > 0
        gated = on & (self.level > 0)
        ratios = np.sort(self.pre[gated] / self.level[gated])[::-1]
        n = self.item.answer.n_active - int(np.count_nonzero(on & ~gated))
        if not 0 < n < len(ratios):
            return None
        return float(ratios[n]), float(ratios[n - 1])

    @cached_property
    def cut(self) -> Interval | None:
        """The activations above which as many fire as are counted."""
        firing = np.sort(self.pre[self.pre > (0 if self.level is None else self.level)])[::-1]
        n = self.item.answer.n_active
        if self.wrong.any() or not 0 < n <= len(firing):
            return None
        return (float(firing[n]) if n < len(firing) else 0.0), float(firing[n - 1])

    @cached_property
    def halved(self) -> Interval | None:
        """Below what printed activations are half the right ones."""
        if not self.wrong.any() or not np.allclose(self.item.printed[1][self.wrong], self.right[self.wrong] / 2, rtol=0, atol=2 * self.tolerance):
            return None
        low = float(self.right[self.wrong].max())
        kept = self.right[~self.wrong]
        return low, float(kept.min()) if len(kept) else 2 * low


@dataclass(frozen=True)
class Fit:
    """Mistakes that reproduce cases that differ: how many, and the largest difference that is left."""

    name: str
    description: str
    mistakes: tuple[str, ...]
    matched: int
    max_difference: float

    @classmethod
    def of(cls, mistakes: tuple[Mistake, ...], matched: int, max_difference: float) -> Fit:
        names = tuple(mistake.name for mistake in mistakes)
        description = "; and ".join(mistake.description for mistake in mistakes)
        return cls(" and ".join(names), description, names, matched, max_difference)


@dataclass(frozen=True)
class Cause:
    """What reproduces some of the cases that differ: the `named` fits, the likelier first, and those that are further off.

    `weak` says why little can be built on it, if so.
    """

    cases: tuple[CaseId, ...]
    named: tuple[Fit, ...]
    also: tuple[Fit, ...] = ()
    weak: str = ""


@dataclass(frozen=True)
class Explanation:
    """The causes, those of more cases first, and of the cases that have none what is `known`.

    `examined` is the number of cases that differ that were looked at, of `n_wrong`; `n_right` do not differ. `not_tried` is what
    would have needed files that are not there. `unsearched` says why no cause could be looked for, if so.
    """

    causes: tuple[Cause, ...]
    examined: int
    known: tuple[str, ...] = ()
    not_tried: tuple[str, ...] = ()
    n_wrong: int = 0
    n_right: int = 0
    unsearched: str = ""

    @property
    def named(self) -> tuple[Fit, ...]:
        """The fits of all causes."""
        return tuple(fit for cause in self.causes for fit in cause.named)

    @property
    def also(self) -> tuple[Fit, ...]:
        return tuple(fit for cause in self.causes for fit in cause.also)

    @property
    def lines(self) -> list[str]:
        """The explanation in words, a line each; what belongs to the line above is indented."""
        if self.unsearched:
            return [f"the cause was not looked for: {self.unsearched}"]
        lines = [line for cause in self.causes for line in self._cause(cause)]
        explained = sum(len(cause.cases) for cause in self.causes)
        if not self.causes:
            lines = ["no known mistake, alone or with another, reproduces the candidate"]
        elif explained < self.examined:
            lines.append(f"{counted(self.examined - explained, 'case')} more that {'differs has' if self.examined - explained == 1 else 'differ have'} no known cause")
        lines += [f"  {line}" for line in self.known]
        if self.causes and self.n_right:
            lines.append(f"the other {counted(self.n_right, 'case')} {'is' if self.n_right == 1 else 'are'} right")
        if self.examined < self.n_wrong:
            lines.append(f"looked at {self.examined} of the {self.n_wrong} cases that differ")
        if self.not_tried and explained < self.examined:
            lines.append(f"not tried, because their weights are not in the cache: {', '.join(self.not_tried)}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data for JSON. A fit is described once, under `named`; its cause has its name."""
        return {
            "cases_examined": self.examined,
            "cases_wrong": self.n_wrong,
            "cases_right": self.n_right,
            "causes": [
                {
                    "cases": [case.to_dict() for case in cause.cases],
                    "named": [fit.name for fit in cause.named],
                    "within_tolerance": [fit.name for fit in cause.also],
                    "weak": cause.weak or None,
                }
                for cause in self.causes
            ],
            "named": [
                {
                    "name": fit.name,
                    "mistakes": fit.mistakes,
                    "description": fit.description,
                    "cases_matched": fit.matched,
                    "largest_difference_left": fit.max_difference,
                }
                for fit in self.named
            ],
            "within_tolerance": [fit.name for fit in self.also],
            "known": self.known,
            "not_tried": self.not_tried,
            "unsearched": self.unsearched or None,
        }

    def _cause(self, cause: Cause) -> list[str]:
        n = len(cause.cases)
        which = " each of these; on these cases they are the same:" if len(cause.named) > 1 else ":"
        if n == self.n_wrong and not self.n_right:
            subject = "the candidate's numbers are"
        elif n == self.examined:
            subject = f"the {counted(n, 'case')} that {'differs' if n == 1 else 'differ'}, {scope(cause.cases)}, {'is' if n == 1 else 'are'}"
        else:
            subject = f"{n} of the {self.examined} cases that differ, {scope(cause.cases)}, {'is' if n == 1 else 'are'}"
        lines = [f"{subject} those of{which}", *(f"  {fit.name}: {fit.description}" for fit in cause.named)]
        lines.append(f"  {n} of {self.examined} cases matched, largest difference left {cause.named[0].max_difference:.3g}")
        if cause.weak:
            lines.append(f"  weak: {cause.weak}")
        if cause.also:
            lines.append(f"  within the tolerance, but further off: {', '.join(fit.name for fit in cause.also)}")
        return lines


def scope(cases: Sequence[CaseId]) -> str:
    """Which cases they are, in as few words as may be."""
    layers = list(dict.fromkeys(case.layer for case in cases))
    numbers = {(case.number - case.layer) // SEED_STRIDE if case.kind == "seed" else case.number for case in cases}
    if len(cases) == 1:
        return str(cases[0])
    if len(layers) == 1:
        return f"all of layer {layers[0]}"
    if len(numbers) == 1:
        return f"residual {numbers.pop()} of each of {len(layers)} layers"
    if len(cases) == len(layers) * len(numbers):
        return f"all of layers {', '.join(map(str, layers[:MOST_CASES_NAMED]))}{' and so on' if len(layers) > MOST_CASES_NAMED else ''}"
    return ", ".join(map(str, cases[:MOST_CASES_NAMED])) + (f" and {len(cases) - MOST_CASES_NAMED} more" if len(cases) > MOST_CASES_NAMED else "")


# --- which mistakes explain which cases ------------------------------------------------------------------------------------

Matches = dict[Hypothesis, dict[CaseId, Match]]


@dataclass(frozen=True)
class Evidence:
    """What a case that differs has that the right answer does not explain, in bits and in numbers; the largest value printed; the sum of squares
    that the right values leave of what is printed."""

    bits: float
    n_numbers: int
    largest: float
    squares: float = math.inf


def causes_of(matches: Matches, evidence: dict[CaseId, Evidence], label: tuple[Mistake, ...] = ()) -> list[Cause]:
    """The mistakes that explain most of the cases that differ, then those that explain most of the rest, and so on.

    A name needs more evidence than chance would give it. Of one mistake and of two that explain the same the one is named.
    """
    left = set(evidence)
    causes: list[Cause] = []
    while True:
        groups: dict[tuple[frozenset[CaseId], int], list[Hypothesis]] = {}
        for hypothesis, own in matches.items():
            cases = frozenset(own.keys() & left)
            if sum(evidence[case].bits for case in cases) >= needed(hypothesis) and _leaves_less(hypothesis, {case: own[case] for case in cases}, evidence):
                groups.setdefault((cases, len(hypothesis.mistakes)), []).append(hypothesis)
        if not groups:
            return causes
        cases, _ = max(groups, key=lambda group: (len(group[0]), -group[1]))
        hypotheses = next(group for (own, _), group in sorted(groups.items(), key=lambda item: item[0][1]) if own == cases)
        causes.append(_cause(sorted(cases, key=list(evidence).index), hypotheses, matches, evidence, label))
        left -= cases


def _leaves_less(hypothesis: Hypothesis, matches: dict[CaseId, Match], evidence: dict[CaseId, Evidence]) -> bool:
    """Whether a port whose values are rounded once more, which hides what it leaves of a few, leaves no more of all than the right values do."""
    left, by_right = sum(match.squares for match in matches.values()), sum(evidence[case].squares for case in matches)
    return hypothesis.port.output is same or left <= by_right * (1 + 1e-9)


def needed(hypothesis: Hypothesis) -> float:
    """The bits that a name needs."""
    estimated = sum(mistake.estimated for mistake in hypothesis.mistakes)
    return (BITS_OF_ONE if len(hypothesis.mistakes) < 2 else BITS_OF_TWO) + BITS_OF_A_VALUE * estimated


def _cause(
    cases: list[CaseId], hypotheses: list[Hypothesis], matches: Matches, evidence: dict[CaseId, Evidence], label: tuple[Mistake, ...]
) -> Cause:
    # Cases beside them that are right are so with this mistake, or it is one of these cases alone.
    beside = {hypothesis: len(matches[hypothesis].keys() - evidence.keys()) for hypothesis in hypotheses}
    hypotheses = [hypothesis for hypothesis in hypotheses if beside[hypothesis] == max(beside.values())]
    left = {hypothesis: max(matches[hypothesis][case].max_difference for case in cases) for hypothesis in hypotheses}
    # Mistakes that give the same numbers leave the same difference, but for a last bit of what is printed.
    noise = 1.5 * min(left.values()) + 2.0**-23 * max(evidence[case].largest for case in cases)
    fits = {hypothesis: Fit.of(label + hypothesis.mistakes, len(cases), left[hypothesis]) for hypothesis in hypotheses}
    named = [hypothesis for hypothesis in hypotheses if left[hypothesis] <= noise]
    n_numbers = sum(evidence[case].n_numbers for case in cases)
    weak = "it rests on one case" if len(cases) == 1 else f"it rests on {n_numbers} numbers" if n_numbers < FEW_NUMBERS else ""
    others = sorted((hypothesis for hypothesis in hypotheses if hypothesis not in named), key=lambda hypothesis: left[hypothesis])
    return Cause(tuple(cases), tuple(fits[hypothesis] for hypothesis in named), tuple(fits[hypothesis] for hypothesis in others), weak)


# --- what can be said where nothing is named ----------------------------------------------------------------------------------


def conclusions(readings: Sequence[Reading], n_right: int, threshold_factor: float | None) -> list[str]:
    """What is known of cases that differ and have no cause, a line each. `n_right` cases are right beside them, if they are all that differ;
    `threshold_factor` fits the counts of all cases."""
    lines = []
    if n_right:
        differ = scope([reading.item.case.id for reading in readings])
        lines.append(f"{n_right} of {n_right + len(readings)} cases are right; the {len(readings)} that {'differs' if len(readings) == 1 else 'differ'}: {differ}")
    if not any(reading.prints for reading in readings):
        return [*lines, "nothing fires: are the weights loaded?"]
    printed = np.concatenate([reading.item.printed[1] for reading in readings])
    right = np.concatenate([reading.right for reading in readings])
    lists_are_right = not any(reading.wrong.any() or reading.misplaced for reading in readings)
    if lists_are_right and all(reading.excess for reading in readings):
        lines.append("values are right; the count is not: look at the gate")
        if threshold_factor is not None and threshold_factor != 1 and sum(reading.bits for reading in readings) >= BITS_OF_ONE:
            lines.append(f"the counts fit a threshold {threshold_factor:g} times as large")
    elif all(_is_permuted(reading) for reading in readings):
        lines.append("right values at other indices: look at how features are numbered")
    if any(reading.wrong.any() for reading in readings):
        lines += _format(printed, np.concatenate([reading.item.expected[1] for reading in readings]))
    return lines if lists_are_right else [*lines, *relation(right, printed, "features")]


def _is_permuted(reading: Reading) -> bool:
    """Whether what is printed are the right values, and most of them at indices that do not have them."""
    printed, expected = (np.sort(values) for values in (reading.item.printed[1], reading.item.expected[1]))
    if not len(printed) == len(expected) > 1 or not np.allclose(printed, expected, rtol=1e-6, atol=2 * reading.tolerance):
        return False
    return 2 * int(reading.wrong.sum()) > len(printed)


def _format(printed: np.ndarray, right: np.ndarray) -> list[str]:
    """Of what kind all the printed numbers are, where the right ones are not."""
    printed, right = printed[printed != 0], right[right != 0]
    if len(printed) < 8:
        return []
    for name, rounding in (("bfloat16", bfloat16), ("float16", float16)):
        if all(_are(rounding, values) == wanted for values, wanted in ((printed, True), (right, False))):
            return [f"all values are {name} numbers"]
    for decimals in range(5):
        if all(bool(np.all(np.abs(np.round(values, decimals) - values) < 1e-7 * np.abs(values))) == wanted for values, wanted in ((printed, True), (right, False))):
            return [f"printed with {counted(decimals, 'decimal')}"]
    return []


def _are(rounding: Rounding, values: np.ndarray) -> bool:
    """Whether rounding leaves values as they are."""
    single = values.astype(np.float32)
    return np.array_equal(rounding(single), single)


def relation(right: np.ndarray, printed: np.ndarray, what: str) -> list[str]:
    """What relates the right values of `what` the candidate has, NaN where there are none, to those that it printed."""
    known = np.isfinite(right) & np.isfinite(printed)
    right, printed = right[known], printed[known]
    if len(right) < 3:
        return [f"the candidate printed too few {what} to say more"]
    ranks = np.argsort(np.argsort([right, printed]))
    correlation = np.corrcoef(ranks[0], ranks[1])[0, 1]
    lines = [f"of {len(right)} printed {what} the right values have rank correlation {correlation:.3f} with the printed"]
    if np.ptp(right) > 0:
        ratio, offset = np.polyfit(right, printed, 1)
        rest = float(np.max(np.abs(ratio * right + offset - printed)))
        lines.append(f"printed = {ratio:.6g} * right + {offset:.6g} fits best, with differences of up to {rest:.3g} left")
    return lines
