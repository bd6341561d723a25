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

from oracle.arithmetic.constants import RELU, SELECTIONS, TOPK
from oracle.checking.verdict import ACTIVATION, DIFFERS, FEATURE, LIST, N_ACTIVE, PLACE, ROUNDING, SAME, SUM, CaseVerdict, Problem, stored
from oracle.references.document import RANK_TIE, Case, Reference, TopFeature


def listed(case: Case) -> list[TopFeature]:
    """A case's list. A feature that does not fire has activation 0: ports pad short lists with them."""
    top = list(case.top)
    while top and top[-1].activation == 0 and len(top) > case.n_active:
        top.pop()
    return top


def compare_case(reference: Reference, case: Case, answer: Case) -> CaseVerdict:
    """One case of a reference against its answer; see the module for the rules."""
    expected, answered = listed(case), listed(answer)
    fewest, most = case.bounds
    tolerance = reference.tolerance_of(case)
    problems, notes = [], []
    if not fewest <= answer.n_active <= most:
        missed = abs(answer.n_active - case.n_active)
        problems.append(Problem(subject=N_ACTIVE, expected=case.n_active, answer=answer.n_active, difference=missed, bounds=(fewest, most)))
    elif answer.n_active != case.n_active:
        notes.append(f"n_active is {answer.n_active}, not {case.n_active}: a feature is at its gate")

    order, right_order = ([index for index, _ in top] for top in (answered, expected))
    outside = next((index for index in order if not 0 <= index < reference.n_features), None)
    if outside is not None:
        problems.append(Problem(subject=FEATURE, feature=outside, reason=f"does not exist: there are {reference.n_features}"))
    values, right_values = dict(answered), dict(expected)
    if len(values) < len(order):
        problems.append(Problem(subject=FEATURE, feature=_first_repeated(order), reason="is on the list twice"))

    differences = {index: abs(value - right_values[index]) for index, value in answered if index in right_values}
    feature = max(differences, key=lambda index: differences[index], default=None)
    max_difference = None if feature is None else differences[feature]
    # The largest first, of equal ones in the list's order.
    for index, difference in sorted(differences.items(), key=lambda item: -item[1]):
        right, value = right_values[index], values[index]
        allowed = tolerance + stored(right, value)
        if not difference <= allowed:  # written so that NaN is off
            problems.append(Problem(subject=ACTIVATION, feature=index, expected=right, answer=value, difference=difference, allowed=allowed))
    problems += _sum_problems(case, answer)
    if order != right_order:
        # Who may be on the list is a question of rounding; what is beyond rounding needs only to be shown.
        reason = None if problems else _list_problem(reference, case, expected, answered, answer.n_active)
        if problems or reason:
            problems.append(_first_difference(right_order, order, reason or ""))
        else:
            notes.append("features that tie stand in another order, or one came or went where it may")
    if problems:
        return CaseVerdict(case.id, DIFFERS, tuple(problems), (), max_difference, feature, case.tolerance)
    if max_difference:
        notes.append(f"values differ by up to {max_difference:.3g}, feature {feature}")
    return CaseVerdict(case.id, ROUNDING if notes else SAME, (), tuple(notes), max_difference, feature, case.tolerance)


def _sum_problems(case: Case, answer: Case) -> list[Problem]:
    """What is wrong with the sums over all features that fire, where both have them: the list has but the first of these."""
    problems = []
    for name in ("activation_sum", "activation_sum_of_squares"):
        expected, value, allowed = (getattr(side, key) for side, key in ((case, name), (answer, name), (case, f"{name}_tolerance")))
        # Written so that NaN is off.
        if None not in (expected, value, allowed) and not abs(expected - value) <= allowed:
            difference = abs(expected - value)
            problems.append(Problem(subject=SUM, quantity=name, expected=expected, answer=value, difference=difference, allowed=allowed))
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
    advice = "; the reference names none of the features at their gates, for there are too many" if unnamed else ""
    last, least = _end(expected, k, tolerance), _end(answered, k, tolerance)
    inside = [index for index in new if values[index] > last + stored(values[index])]
    kind = (reference.gate or {}).get("kind")
    strange = [index for index in inside if index not in ties]
    if kind == RELU:  # a feature at its gate has next to nothing
        strange = strange or [index for index in inside if not values[index] <= 2 * tolerance + stored(values[index])]
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


def _first_difference(right_order: list[int], order: list[int], reason: str) -> Problem:
    for place, (expected, index) in enumerate(zip(right_order, order), 1):
        if expected != index:
            return Problem(subject=PLACE, place=place, expected=expected, answer=index, reason=reason)
    return Problem(subject=LIST, quantity="length of the list", expected=len(right_order), answer=len(order), reason=reason)
