# SPDX-License-Identifier: MIT OR Apache-2.0
"""The rules of lists: what a right port may answer to one case.

What it may answer follows from one assumption: each of its pre-activations is within the tolerance of the exact one,
before it is stored as float32, as the reference's was. Then n_active lies in `n_active_bounds`; two features may swap
only where their values are at most twice the tolerance apart; a feature may come onto the list, or leave it, only at
its end, where the margins say so, or because it is one of `gate_ties`; where a gate keeps the largest, one of these fires
for another. A difference within these rules passes as
rounding. Where a reference does not name its ties (torch's) none comes or goes but at the end.
"""

from __future__ import annotations

from oracle.arithmetic.constants import SELECTIONS, TOPK
from oracle.checking.verdict import DIFFERS, ROUNDING, SAME, CaseVerdict, stored
from oracle.references.document import RANK_TIE, Case, Reference, TopFeature


def listed(case: Case) -> list[TopFeature]:
    """A case's list. A feature that does not fire has activation 0: ports pad short lists with them."""
    top = list(case.top)
    while top and top[-1].activation == 0 and len(top) > case.n_active:
        top.pop()
    return top


def compare_case(reference: Reference, case: Case, answer: Case, right: str = "the reference has") -> CaseVerdict:
    """One case of a reference against its answer; see the module for the rules. `right` introduces its side in words."""
    expected, answered = listed(case), listed(answer)
    fewest, most = case.bounds
    tolerance = reference.tolerance_of(case)
    problems, notes = [], []
    if not fewest <= answer.n_active <= most:
        within = f" ({fewest} to {most} within rounding)" if fewest < most else ""
        problems.append(f"n_active is {answer.n_active}, {right} {case.n_active}{within}")
    elif answer.n_active != case.n_active:
        notes.append(f"n_active is {answer.n_active}, not {case.n_active}: a feature is at its gate")

    order, right_order = ([index for index, _ in top] for top in (answered, expected))
    outside = next((index for index in order if not 0 <= index < reference.n_features), None)
    if outside is not None:
        problems.append(f"feature {outside} does not exist: there are {reference.n_features}")
    values, right_values = dict(answered), dict(expected)
    if len(values) < len(order):
        problems.append(f"feature {_first_repeated(order)} is on the list twice")

    differences = {index: abs(value - right_values[index]) for index, value in answered if index in right_values}
    feature = max(differences, key=lambda index: differences[index], default=None)
    max_difference = None if feature is None else differences[feature]
    # Written so that NaN is off.
    off = [
        index for index, difference in differences.items()
        if not difference <= tolerance + stored(right_values[index], values[index])
    ]  # fmt: skip
    if off:
        worst = max(off, key=lambda index: differences[index])
        problems.append(
            f"feature {worst} is {values[worst]:.7g}, {right} {right_values[worst]:.7g}: "
            f"off by {differences[worst]:.3g}" + (f", and {len(off) - 1} more are off" if len(off) > 1 else "")
        )
    problems += _sum_problems(case, answer, right)
    if order != right_order:
        difference = _first_difference(right_order, order, right)
        if problems:
            # Who may be on the list is a question of rounding; what is beyond rounding needs only to be shown.
            problems.append(difference)
        elif problem := _list_problem(reference, case, expected, answered, answer.n_active):
            problems.append(f"{difference}; {problem}")
        else:
            notes.append("features that tie stand in another order, or one came or went where it may")
    if problems:
        return CaseVerdict(case.id, DIFFERS, tuple(problems), (), max_difference, feature, case.tolerance)
    if max_difference:
        notes.append(f"values differ by up to {max_difference:.3g}, feature {feature}")
    return CaseVerdict(case.id, ROUNDING if notes else SAME, (), tuple(notes), max_difference, feature, case.tolerance)


def _sum_problems(case: Case, answer: Case, right: str) -> list[str]:
    """What is wrong with the sums over all features that fire, where both have them: the list has but the first of these."""
    problems = []
    for name, words in (("activation_sum", "the sum of all activations"), ("activation_sum_of_squares", "the sum of their squares")):
        expected, value, off = (getattr(side, key) for side, key in ((case, name), (answer, name), (case, f"{name}_tolerance")))
        # Written so that NaN is off.
        if None not in (expected, value, off) and not abs(expected - value) <= off:
            problems.append(f"{name} is {value:.9g}, {right} {expected:.9g}: {words} is off by {abs(expected - value):.3g}, of which rounding explains {off:.3g}")
    return problems


def _ends_open(case: Case, expected: list[TopFeature], tolerance: float) -> bool:
    """Whether features may tie at the end of the list, which is unknown where torch wrote the reference."""
    if case.flags is None or RANK_TIE in case.flags:
        return True
    # A port that ranks what it has rounded to float32 may also tie what the exact numbers only just tell apart.
    largest = max((value for _, value in expected), default=0.0)
    return case.rank_margin is not None and case.rank_margin <= 2 * tolerance + stored(largest, largest)


def _list_problem(
    reference: Reference, case: Case, expected: list[TopFeature], answered: list[TopFeature], n_active: int
) -> str | None:
    """Why a list whose common values agree cannot be a rounding of the expected one, or None; `n_active` is the answer's."""
    k, tolerance = reference.top_k, reference.tolerance_of(case)
    if len(answered) != min(k, n_active):
        return f"with n_active {n_active} the list has {min(k, n_active)} features, not {len(answered)}"
    right_values, values = dict(expected), dict(answered)
    smallest, before = float("inf"), None
    for index, value in answered:
        value = right_values.get(index, value)
        # Both may be rounded in the reference, and again in a port that ranks what it has stored.
        if value > smallest + 2 * (tolerance + stored(value, smallest)):
            return f"feature {before} stands before feature {index}, which fires more by {value - smallest:.3g}"
        if value < smallest:
            smallest, before = value, index

    # Whoever has a value at the end of a full list may have come in, or fallen off, there; all else is a matter of gates.
    fewest, most = case.bounds
    new = [index for index in values if index not in right_values]
    gone = [index for index in right_values if index not in values]
    ties = case.gate_ties or ()
    unnamed = case.gate_ties is None and fewest < most
    advice = "; the reference does not name the features at their gates: write it again" if unnamed else ""
    last, least = _end(expected, k, tolerance), _end(answered, k, tolerance)
    inside = [index for index in new if values[index] > last + stored(values[index])]
    kind = (reference.gate or {}).get("kind")
    strange = [index for index in inside if index not in ties]
    if kind == TOPK and expected:  # what comes in for another has about the value of the last that fires
        strange = strange or [index for index in inside if not values[index] <= expected[-1].activation + 4 * tolerance]
    elif kind not in SELECTIONS:
        strange = strange or inside[max(0, most - case.n_active) :]
    if strange:
        return f"feature {strange[0]} is not among the reference's, and rounding cannot have brought it in{advice}"
    lost = [index for index in gone if right_values[index] > least + stored(right_values[index])]
    missed = [index for index in lost if index not in ties]
    if kind not in SELECTIONS:
        missed = missed or lost[max(0, case.n_active - fewest) :]
    if missed:
        return f"feature {missed[0]} is missing, and rounding cannot have put it off the list{advice}"
    # What comes in at its gate pushes others off the end, what goes at its gate lets others in there: never both.
    came, went = [index for index in new if index not in ties], [index for index in gone if index not in ties]
    if came and went and not _ends_open(case, expected, tolerance):
        return f"no two features tie at the end of the list, where feature {came[0]} came and {went[0]} went"
    return None


def _end(top: list[TopFeature], k: int, tolerance: float) -> float:
    """A feature with more than this is on the list; where the list is not full every one that fires is."""
    return top[-1].activation + tolerance + stored(top[-1].activation) if len(top) == k else -float("inf")


def _first_repeated(order: list[int]) -> int:
    seen: set[int] = set()
    return next(index for index in order if index in seen or seen.add(index))  # type: ignore[func-returns-value]


def _first_difference(right_order: list[int], order: list[int], right: str) -> str:
    for place, (expected, index) in enumerate(zip(right_order, order)):
        if expected != index:
            return f"place {place + 1} is feature {index}, {right} {expected}"
    return f"the list has {len(order)} features, {right} {len(right_order)}"
