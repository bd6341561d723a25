# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a search for a cause finds: hypotheses that fit, ranked."""

from __future__ import annotations

from dataclasses import dataclass

from oracle.diagnosis.mistakes import Recipe


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


def fit_of(recipe: Recipe, matched: int, left: float) -> Fit:
    return Fit(recipe.name, recipe.description, tuple(mistake.name for mistake in recipe.mistakes), matched, left)


def ranked(fits: list[Fit], largest_value: float) -> tuple[tuple[Fit, ...], tuple[Fit, ...]]:
    """The `named` of an Explanation, and the `also`; `largest_value` is that of the values that were printed.

    Where there is no layer below, "layer below" says nothing; what says something of every case comes first.
    """
    fits = sorted(fits, key=lambda fit: (-fit.matched, fit.largest_left))
    # Hypotheses that give the same numbers leave the same difference, but for a last bit of what is printed.
    noise = 1.5 * fits[0].largest_left + 2.0**-23 * largest_value
    named = tuple(fit for fit in fits if fit.matched == fits[0].matched and fit.largest_left <= noise)
    return named, tuple(fit for fit in fits if fit not in named)
