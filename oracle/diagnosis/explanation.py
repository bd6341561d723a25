# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a search for a cause returns: the mistakes that reproduce the candidate, ranked, and the one wording of them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from oracle.diagnosis.mistakes import Mistake
from oracle.references.document import CaseId


@dataclass(frozen=True)
class Match:
    """How a port matches what was printed: the largest difference left, the cases of which it says something, and how
    many of the wrong answers it reproduces."""

    max_difference: float = 0.0
    cases: frozenset[CaseId] = frozenset()
    n_wrong: int = 0

    def __add__(self, other: Match) -> Match:
        return Match(max(self.max_difference, other.max_difference), self.cases | other.cases, self.n_wrong + other.n_wrong)


@dataclass(frozen=True)
class Fit:
    """Mistakes that reproduce the candidate: in how many cases, and the largest difference that is left."""

    name: str
    description: str
    mistakes: tuple[str, ...]
    matched: int
    max_difference: float

    @classmethod
    def of(cls, mistakes: tuple[Mistake, ...], match: Match) -> Fit:
        names = tuple(mistake.name for mistake in mistakes)
        description = "; and ".join(mistake.description for mistake in mistakes)
        return cls(" and ".join(names), description, names, len(match.cases), match.max_difference)


@dataclass(frozen=True)
class Explanation:
    """`named` are the mistakes that fit best, more than one where they give the same numbers on these cases.

    `also` fit within the tolerance, but less well. Where nothing fits, `known` says what can be said. `examined` is
    the number of cases looked at, `not_tried` what would have needed files that are not there.
    """

    named: tuple[Fit, ...]
    also: tuple[Fit, ...]
    examined: int
    known: tuple[str, ...] = ()
    not_tried: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The explanation in words, a line each; what belongs to the line above is indented."""
        if self.named:
            which = " each of these; on these cases they are the same:" if len(self.named) > 1 else ":"
            lines = [f"the candidate's numbers are those of{which}"]
            lines += [f"  {fit.name}: {fit.description}" for fit in self.named]
            left = f"largest difference left {self.named[0].max_difference:.3g}"
            lines.append(f"  {self.named[0].matched} of {self.examined} cases matched, {left}")
        else:
            lines = ["no known mistake, alone or with another, reproduces the candidate"]
            lines += [f"  {line}" for line in self.known]
            if self.not_tried:
                lines.append(f"not tried, because their weights are not in the cache: {', '.join(self.not_tried)}")
        if self.also:
            lines.append(f"within the tolerance, but further off: {', '.join(fit.name for fit in self.also)}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """The explanation as `compare --explain --format json` has it."""
        return {
            "cases_examined": self.examined,
            "named": [
                {
                    "name": fit.name,
                    "mistakes": list(fit.mistakes),
                    "description": fit.description,
                    "cases_matched": fit.matched,
                    "largest_difference_left": fit.max_difference,
                }
                for fit in self.named
            ],
            "within_tolerance": [fit.name for fit in self.also],
            "known": list(self.known),
            "not_tried": list(self.not_tried),
        }


def ranked(fits: list[Fit], largest_value: float) -> tuple[tuple[Fit, ...], tuple[Fit, ...]]:
    """The `named` of an Explanation, and the `also`; `largest_value` is that of the values that were printed.

    Where there is no layer below, "layer below" says nothing; what says something of every case comes first.
    """
    fits = sorted(fits, key=lambda fit: (-fit.matched, fit.max_difference))
    # Mistakes that give the same numbers leave the same difference, but for a last bit of what is printed.
    noise = 1.5 * fits[0].max_difference + 2.0**-23 * largest_value
    named = tuple(fit for fit in fits if fit.matched == fits[0].matched and fit.max_difference <= noise)
    return named, tuple(fit for fit in fits if fit not in named)


def relation(right: np.ndarray, printed: np.ndarray, what: str) -> tuple[str, ...]:
    """What relates the right values of `what` the candidate has, NaN where there are none, to those that it printed."""
    known = np.isfinite(right) & np.isfinite(printed)
    right, printed = right[known], printed[known]
    if len(right) < 3:
        return (f"the candidate printed too few {what} to say more",)
    ranks = np.argsort(np.argsort([right, printed]))
    correlation = np.corrcoef(ranks[0], ranks[1])[0, 1]
    lines = [f"of {len(right)} printed {what} the right values have rank correlation {correlation:.3f} with the printed"]
    if np.ptp(right) > 0:
        ratio, offset = np.polyfit(right, printed, 1)
        rest = float(np.max(np.abs(ratio * right + offset - printed)))
        lines.append(f"printed = {ratio:.6g} * right + {offset:.6g} fits best, with differences of up to {rest:.3g} left")
    return tuple(lines)
