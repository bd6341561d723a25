# SPDX-License-Identifier: MIT OR Apache-2.0
"""The rules of reconstructions: what a right port's decoder may give.

Its values may each be off by the tolerance that stands with them; so its norm by that of a vector of such differences,
and the sums by what the differences add up to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from oracle.checking.verdict import RECONSTRUCTION, Problem, stored
from oracle.references.document import Reconstruction


def reconstruction_problems(expected: Iterable[Reconstruction], answered: Iterable[Reconstruction], d_out: int) -> list[Problem]:
    """What is wrong with a case's reconstructions, a problem for each number of a target layer that is."""
    by_target = {output.target_layer: output for output in answered}
    return [problem for output in expected for problem in _problems(output, by_target.get(output.target_layer), d_out)]


def _problems(expected: Reconstruction, answer: Reconstruction | None, d_out: int) -> Iterator[Problem]:
    if answer is None or len(answer.first_10) != len(expected.first_10):
        reason = "is missing" if answer is None else f"has {len(answer.first_10)} first values, not {len(expected.first_10)}"
        yield Problem(subject=RECONSTRUCTION, target_layer=expected.target_layer, reason=reason)
        return
    off = expected.tolerance or 0.0
    off_all = off * math.sqrt(d_out)  # the norm of the differences
    numbers = [(f"value {place}", *pair, off) for place, pair in enumerate(zip(expected.first_10, answer.first_10))]
    numbers += [
        ("norm", expected.norm, answer.norm, off_all),
        ("sum of squares", expected.sum_of_squares, answer.sum_of_squares, off_all * (2 * expected.norm + off_all)),
        ("sum", expected.sum, answer.sum, off * d_out),
    ]
    for quantity, right, value, tolerance in numbers:
        difference, allowed = abs(right - value), tolerance + stored(right, value)
        if not difference <= allowed:  # written so that NaN is off
            yield Problem(
                subject=RECONSTRUCTION, target_layer=expected.target_layer, quantity=quantity,
                expected=right, answer=value, difference=difference, allowed=allowed,
            )  # fmt: skip
