# SPDX-License-Identifier: MIT OR Apache-2.0
"""The rules of reconstructions: what a right port's decoder may give.

Its values may each be off by the tolerance that stands with them; so its norm by that of a vector of such differences,
and the sums by what the differences add up to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from oracle.checking.verdict import stored
from oracle.references.document import Reconstruction


def reconstruction_problems(
    expected: Iterable[Reconstruction], answered: Iterable[Reconstruction], d_out: int, right: str = "the reference has"
) -> list[str]:
    """What is wrong with a case's reconstructions, a line for each target layer where something is."""
    by_target = {output.target_layer: output for output in answered}
    problems = []
    for output in expected:
        answer = by_target.get(output.target_layer)
        problem = "is missing" if answer is None else _problem(output, answer, d_out, right)
        if problem:
            problems.append(f"the reconstruction of layer {output.target_layer}{problem if problem[0] == ':' else f' {problem}'}")
    return problems


def _problem(expected: Reconstruction, answer: Reconstruction, d_out: int, right: str) -> str | None:
    if len(answer.first_10) != len(expected.first_10):
        return f"has {len(answer.first_10)} first values, not {len(expected.first_10)}"
    off = expected.tolerance or 0.0
    off_all = off * math.sqrt(d_out)  # the norm of the differences
    numbers = [(f"value {place}", *pair, off) for place, pair in enumerate(zip(expected.first_10, answer.first_10))]
    numbers += [
        ("norm", expected.norm, answer.norm, off_all),
        ("sum of squares", expected.sum_of_squares, answer.sum_of_squares, off_all * (2 * expected.norm + off_all)),
        ("sum", expected.sum, answer.sum, off * d_out),
    ]
    # Written so that NaN is off.
    wrong = [number for number in numbers if not abs(number[1] - number[2]) <= number[3] + stored(number[1], number[2])]
    if not wrong:
        return None
    name, right_value, value, _ = wrong[0]
    others = len(wrong) - 1
    more = f", and {others} more number{' is' if others == 1 else 's are'} off" if others else ""
    return f": {name} is {value:.7g}, {right} {right_value:.7g}: off by {abs(value - right_value):.3g}{more}"
