# SPDX-License-Identifier: MIT OR Apache-2.0
"""The rules of lists and of reconstructions at their limits, and the wording of verdicts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from oracle.checking import lists
from oracle.checking.compare import compare
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import DIFFERS, LIST, MISSING, ROUNDING, SAME, CaseVerdict, Comparison, Problem, Verification
from oracle.references.document import Candidate, Case, Reconstruction, seed_case
from oracle.references.rows import DataError
from tests.support.cases import REFERENCE, TOLERANCE, a_case, compare_case

FOUR = [(7, 4.0), (3, 3.0), (9, 2.0), (1, 1.0)]


# --- lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [7, 3, 9])
def test_no_feature_is_forgiven_that_is_at_no_gate(gone: int) -> None:
    """One missing, with what stands behind the list in its stead: also where the end of the list is open."""
    answer = a_case([*(top for top in FOUR if top[0] != gone), (55, 0.9999)])
    for flags in ((), ("rank-tie",)):
        verdict = compare_case(a_case(FOUR, flags=flags), answer)
        assert verdict.status == DIFFERS and f"feature {gone} is missing, and rounding cannot have put it off the list" in verdict.summary
    # An index is forgiven as often as the bounds say, not once more.
    tied = a_case(FOUR, n_active_bounds=(49, 50), gate_ties=(gone,))
    assert compare_case(tied, replace(answer, n_active=49)).status == ROUNDING
    # Of a reference whose ties and bounds say different things the stricter counts.
    for case in (a_case(FOUR, gate_ties=(gone,)), replace(tied, gate_ties=())):
        assert compare_case(case, replace(answer, n_active=case.bounds[0])).status == DIFFERS


@pytest.mark.parametrize("value", [4.5, 3.5, 2.5, 1.5])
def test_no_feature_comes_in_that_is_at_no_gate(value: float) -> None:
    answer = a_case(sorted([*FOUR[:3], (60, value)], key=lambda top: -top[1]))
    verdict = compare_case(a_case(FOUR, flags=("rank-tie",)), answer)
    assert verdict.status == DIFFERS and "feature 60 is not among the reference's, and rounding cannot have brought it in" in verdict.summary
    tied = a_case(FOUR, n_active_bounds=(50, 51), gate_ties=(60,))
    assert compare_case(tied, replace(answer, n_active=51)).status == ROUNDING
    assert compare_case(a_case(FOUR, gate_ties=(60,)), answer).status == DIFFERS
    assert compare_case(replace(tied, gate_ties=()), replace(answer, n_active=51)).status == DIFFERS


@pytest.mark.parametrize("value, status", [(1e-4, ROUNDING), (1.99e-4, ROUNDING), (2.01e-4, DIFFERS), (4.5, DIFFERS)])
def test_what_comes_over_a_gate_of_0_has_next_to_nothing(value: float, status: str) -> None:
    reference = replace(REFERENCE, top_k=4, gate={"kind": "relu"})
    top = [(7, 2.0), (3, 1.0)]
    case = a_case(top, 2, n_active_bounds=(2, 3), gate_ties=(60,))
    answer = a_case(sorted([*top, (60, value)], key=lambda feature: -feature[1]), 3)
    assert lists.compare_case(reference, case, answer).status == status
    assert lists.compare_case(replace(reference, gate={"kind": "jumprelu"}), case, answer).status == ROUNDING  # its threshold is not on record


def test_a_reference_that_names_no_ties_says_so() -> None:
    unnamed = a_case(FOUR, n_active_bounds=(49, 51), gate_ties=None)
    for case, advice in ((unnamed, True), (replace(unnamed, n_active_bounds=(50, 50)), False), (replace(unnamed, gate_ties=(8, 9)), False)):
        for top in ([*FOUR[1:], (55, 0.9999)], [(60, 4.5), *FOUR[:3]]):
            verdict = compare_case(case, a_case(top))
            assert verdict.status == DIFFERS and ("names none of the features at their gates" in verdict.summary) is advice


@pytest.mark.parametrize("off, status", [(0.99, ROUNDING), (1.01, DIFFERS)])
def test_values_ties_and_ends_are_held_to_the_tolerance(off: float, status: str) -> None:
    step = off * TOLERANCE
    assert compare_case(a_case(FOUR), a_case([FOUR[0], (3, 3.0 + step), *FOUR[2:]])).status == status
    # Two swap where they are twice the tolerance apart.
    near = [(7, 3.0 + 2 * step), *FOUR[1:]]
    assert compare_case(a_case(near, flags=("rank-tie",)), a_case([near[1], near[0], *near[2:]])).status == status
    # At the end one may come in, and another go, within as much.
    tied = a_case(FOUR, flags=("rank-tie",))
    assert compare_case(tied, a_case([*FOUR[:3], (55, 1.0 + step)])).status == status
    assert compare_case(tied, a_case([*FOUR[:3], (55, 1.0 - step)])).status == status
    # Whether the end is open says the flag, or a margin that only the exact numbers are past.
    for margin, ends in ((2 * TOLERANCE, ROUNDING), (2 * TOLERANCE + 1e-5, DIFFERS), (None, DIFFERS)):
        assert compare_case(a_case(FOUR, rank_margin=margin), a_case([*FOUR[:3], (55, 1.0)])).status == ends


def test_order_is_held_against_the_reference_s_values() -> None:
    """An answer's own may be nearer to each other, and its list in no order of theirs."""
    case = a_case([(7, 4.0), (3, 4.0 - 3 * TOLERANCE), *FOUR[2:]], flags=("rank-tie",))
    near = [(3, 4.0 - 2.1 * TOLERANCE), (7, 4.0 - 0.9 * TOLERANCE), *FOUR[2:]]
    assert compare_case(case, a_case(near)).status == DIFFERS and compare_case(case, a_case([near[1], near[0], *near[2:]])).status == ROUNDING


def test_a_short_list_is_whole() -> None:
    """Where fewer fire than there are places every one that fires is on the list, however small."""
    short = a_case(FOUR[:2], 2)
    for top, n_active in (([*FOUR[:2], (55, 1e-6)], 2), (FOUR[:1], 2), ([*FOUR[:2], (55, 1e-6)], 3)):
        assert compare_case(short, a_case(top, n_active)).status == DIFFERS
    verdict = compare_case(short, a_case(FOUR[:1], 2))
    assert "length of the list is 1, not 2; with n_active 2 the list has 2 features, not 1" in verdict.summary
    full = a_case(FOUR)
    assert "with n_active 50 the list has 4 features, not 5" in compare_case(full, a_case([*FOUR, (55, 0.5)])).summary


def test_padding_is_taken_off_as_far_as_it_is_padding() -> None:
    short = a_case(FOUR[:2], 2)
    assert compare_case(short, a_case([*FOUR[:2], (0, 0.0)], 2)).status == SAME
    # A zero that the count says is one that fires is no padding.
    assert compare_case(short, a_case([*FOUR[:2], (0, 0.0)], 3)).status == DIFFERS
    assert compare_case(a_case([], 0), a_case([(0, 0.0)] * 4, 0)).status == SAME


@pytest.mark.parametrize("index, exists", [(0, True), (99, True), (100, False), (-1, False)])
def test_features_that_there_are(index: int, exists: bool) -> None:
    verdict = compare_case(a_case([(index, 5.0), *FOUR[:3]]), a_case([(index, 5.0), *FOUR[:3]]))
    assert (verdict.status == SAME) is exists and exists is ("does not exist: there are 100" not in verdict.summary)


def test_what_is_said_of_a_list() -> None:
    verdict = compare_case(a_case(FOUR), a_case([FOUR[0], (3, 3.5), (9, 2.25), FOUR[3]], 40))
    assert verdict.lines == ["n_active is 40, not 50: off by 10", "feature 3 is 3.5, not 3: off by 0.5; rounding allows 0.0001 (and 1 more)"]
    assert [(problem.feature, problem.expected, problem.answer, problem.difference) for problem in verdict.problems[1:]] == [(3, 3.0, 3.5, 0.5), (9, 2.0, 2.25, 0.25)]
    assert (verdict.max_difference, verdict.feature) == (0.5, 3)
    verdict = compare_case(a_case(FOUR, n_active_bounds=(49, 51)), a_case([FOUR[0], FOUR[0], *FOUR[2:]], 52))
    assert verdict.lines == [
        "n_active is 52, not 50: off by 2; rounding allows 49 to 51", "feature 7 is on the list twice", "place 2 is feature 7, not feature 3",
    ]  # fmt: skip
    verdict = compare_case(a_case(FOUR), a_case([FOUR[0], (3, 3.00001), (9, 2.00002), FOUR[3]]))
    assert verdict.notes == ("values differ by up to 2e-05, feature 9",)
    verdict = compare_case(a_case(FOUR), a_case([FOUR[1], FOUR[0], *FOUR[2:]]))
    assert verdict.lines == ["place 1 is feature 3, not feature 7; feature 3 stands before feature 7, which fires more by 1"]
    tied = a_case(FOUR, flags=())
    assert "no two features tie at the end of the list, where feature 55 came and 1 went" in compare_case(tied, a_case([*FOUR[:3], (55, 1.0)])).summary


# --- reconstructions ------------------------------------------------------------------------------------------------

# Of 16 values each may be off by 1/2: so their norm by 2, their sum by 8, and the sum of squares by 2 * (2 * 10 + 2).
EXPECTED = Reconstruction(target_layer=3, norm=10.0, sum=20.0, sum_of_squares=100.0, tolerance=0.5, first_10=(1.0, 2.0, 3.0))
LIMITS = {"norm": 2.0, "sum": 8.0, "sum_of_squares": 44.0, "first_10": 0.5}


def problems(answer: Reconstruction) -> list[str]:
    return list(map(str, reconstruction_problems([EXPECTED], [answer], 16)))


@pytest.mark.parametrize("key", LIMITS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", range(3))
def test_each_number_of_a_reconstruction_has_its_limit(key: str, sign: int, place: int) -> None:
    def moved(by: float) -> Reconstruction:
        if key != "first_10":
            return replace(EXPECTED, **{key: getattr(EXPECTED, key) + by})
        return replace(EXPECTED, first_10=tuple(value + by * (number == place) for number, value in enumerate(EXPECTED.first_10)))

    assert not problems(moved(sign * LIMITS[key])) and not problems(moved(sign * 0.999 * LIMITS[key]))
    line, = problems(moved(sign * 1.001 * LIMITS[key]))
    name = f"value {place}" if key == "first_10" else key.replace("_", " ")
    assert line.startswith(f"{name} of the reconstruction of layer 3 is ") and f"off by {1.001 * LIMITS[key]:.3g}; rounding allows" in line
    assert problems(moved(math.nan))


def test_a_reconstruction_may_be_stored_in_float32() -> None:
    """Without any tolerance the value and the answer may each be rounded."""
    exact = replace(EXPECTED, tolerance=0.0, norm=1e6)
    for off, n_problems in ((0.1, 0), (0.13, 1)):  # 2 * 1e6 * 2^-24 = 0.119
        assert len(reconstruction_problems([exact], [replace(exact, norm=1e6 + off)], 16)) == n_problems
    nothing = replace(exact, norm=0.0, sum=0.0, sum_of_squares=0.0, first_10=(0.0,))
    assert not reconstruction_problems([nothing], [nothing], 16)
    for tolerance in (None, 0.0):
        assert reconstruction_problems([replace(exact, tolerance=tolerance)], [replace(exact, sum=20.001)], 16)


def test_what_is_said_of_reconstructions() -> None:
    assert problems(replace(EXPECTED, target_layer=4)) == ["the reconstruction of layer 3 is missing"]
    assert problems(replace(EXPECTED, first_10=(1.0, 2.0))) == ["the reconstruction of layer 3 has 2 first values, not 3"]
    assert problems(replace(EXPECTED, sum=0.0)) == ["sum of the reconstruction of layer 3 is 0, not 20: off by 20; rounding allows 8"]
    several = reconstruction_problems([EXPECTED], [replace(EXPECTED, norm=0.0, sum=0.0, first_10=(1.0, 2.0, 9.0))], 16)
    assert [problem.label for problem in several] == ["layer 3 value 2", "layer 3 norm", "layer 3 sum"]
    verdict = CaseVerdict(seed_case(0, 0), SAME).with_problems(several)
    assert verdict.summary == "value 2 of the reconstruction of layer 3 is 9, not 3: off by 6; rounding allows 0.5 (and 2 more)"
    others = [replace(EXPECTED, target_layer=layer) for layer in (4, 5)]
    assert len(reconstruction_problems([EXPECTED, *others], [], 16)) == 3 and not reconstruction_problems([], others, 16)


# --- whole documents --------------------------------------------------------------------------------------------------


def numbered(case: Case, number: int, **more: Any) -> Case:
    return replace(case, id=seed_case(0, number), **more)


def compared(answers: list[Case], cases: list[Case], **more: Any) -> Comparison:
    return compare(replace(REFERENCE, n_features=100, top_k=4, cases=tuple(cases), d_model=16, **more), Candidate({case.id: case for case in answers}))


@pytest.mark.parametrize("order", [(0.25, 0.5, 0.125), (0.5, 0.125, 0.25), (0.125, 0.25, 0.5)])
@pytest.mark.parametrize("place", range(4))
def test_the_largest_difference_is_the_largest_one(order: tuple[float, ...], place: int) -> None:
    """Of several cases, and of a case's features: whichever stands first or last."""
    cases = [numbered(a_case(FOUR), number) for number in range(4)]
    answers = [numbered(a_case([(*top[:1], top[1] + off * (0.5 if at != place else 1)) for at, top in enumerate(FOUR)]), number)
               for number, off in enumerate(order)]  # fmt: skip
    comparison = compared(answers, cases)
    worst, feature = order.index(0.5), FOUR[place][0]
    assert comparison.worst == comparison.cases[worst] and comparison.worst.feature == feature
    assert comparison.facts == ["4 cases: 3 differ, 1 missing", f"largest difference: activation 0.5 (layer 0 seed {worst} feature {feature})"]
    assert not comparison.agrees and comparison.verdict == "the candidate DISAGREES (tolerance 0.0001)"
    assert comparison.cases[3].status == MISSING and comparison.cases[3].lines == ["the candidate does not have this case"]


def test_what_is_said_of_a_candidate() -> None:
    cases = [numbered(a_case(FOUR), number, reconstructions=(EXPECTED,) if number else None) for number in range(2)]
    whole = compared(cases, cases)
    assert whole.agrees and whole.facts == ["2 cases: 2 same; the largest difference is 0, layer 0 seed 0 feature 7"]
    assert whole.verdict == "the candidate agrees (tolerance 0.0001)"
    lists_alone = [replace(case, reconstructions=None) for case in cases]
    extra = [numbered(a_case(FOUR), number) for number in (8, 9)]
    partly = compared([*lists_alone, *extra], cases, edited=True)
    assert partly.agrees and partly.extra == (seed_case(0, 8), seed_case(0, 9))
    edited, others, not_compared, counts = partly.facts
    assert "was edited" in edited and others == "2 cases that the reference does not have were not compared, first layer 0 seed 8"
    assert not_compared == "the candidate has no reconstructions: the reference's were not compared" and counts.startswith("2 cases: 2 same")
    # Some of them are not none; a reference without any asks for none.
    assert not compared([numbered(a_case(FOUR), 0, reconstructions=(EXPECTED,)), lists_alone[1]], cases).agrees
    assert compared(cases, lists_alone).agrees and compared(cases, lists_alone).not_compared is None
    empty = numbered(a_case([], 0), 0)
    assert compared([empty], [empty]).facts == ["1 case: 1 same"] and compared([empty], [empty]).worst is None


@pytest.mark.parametrize("bounds, fits", [((49, 51), True), ((50, 50), True), ((51, 52), False), ((48, 49), False)])
def test_a_reference_that_contradicts_itself_is_not_compared_with(bounds: tuple[int, int], fits: bool) -> None:
    case = a_case(FOUR, n_active_bounds=bounds)
    if fits:
        assert compared([case], [case]).agrees
    else:
        with pytest.raises(DataError, match=f"n_active 50, which is not within its n_active_bounds, {bounds[0]} to {bounds[1]}"):
            compared([case], [case])


def test_the_wording_of_verdicts() -> None:
    verdict = CaseVerdict(seed_case(0, 0), ROUNDING, notes=("a", "b", "c", "d", "e"))
    assert verdict.summary == "a; b; c; and 2 more" and verdict.agrees
    assert replace(verdict, notes=("a", "b", "c")).summary == "a; b; c"
    assert verdict.with_problems([]) == verdict
    x, y = (Problem(subject=LIST, reason=reason) for reason in "xy")
    worse = verdict.with_problems([y]).with_problems([x], first=True)
    assert worse == CaseVerdict(seed_case(0, 0), DIFFERS, (x, y)) and worse.summary == "x; y" and not worse.agrees
    for exact, how in ((True, "number for number"), (False, "within the tolerance (torch wrote it)")):
        right = Verification((verdict,), (), exact)
        assert right.agrees and right.verdict == f"1 of 1 cases are what the weights give: the reference agrees {how}" and right.headlines == []
        for wrong in (Verification((verdict, worse), (), exact), Verification((verdict, verdict), ("wrong file",), exact)):
            assert not wrong.agrees and wrong.verdict.endswith("the reference DISAGREES") and wrong.verdict.startswith(f"{2 - (worse in wrong.cases)} of 2")
            assert wrong.headlines == list(wrong.problems) and wrong.facts[0].startswith("2 cases: ")
