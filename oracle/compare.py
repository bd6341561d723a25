# SPDX-License-Identifier: MIT OR Apache-2.0
"""A candidate's answers against a reference: pure functions over documents that document.py has read. No weights.

What a correct port may answer follows from one assumption: each of its pre-activations is within the tolerance of the
exact one. Then n_active lies in `n_active_bounds`; two features may swap only where their values are at most twice the
tolerance apart; a feature may come onto the list, or leave it, only at its end, where `rank-tie` says so, or because
it is at its gate, where the bounds say that there is one. A difference within these rules passes as rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from oracle.document import DEFAULT_TOLERANCE, DataError, Document, top_key

SAME, ROUNDING, DIFFERS, MISSING = "same", "rounding", "differs", "missing"


@dataclass(frozen=True)
class CaseVerdict:
    """One case of the reference. `problems` says what rounding cannot explain, `notes` what it can.

    `largest` is the largest difference of an activation, None where no feature is on both lists; `feature` is where.
    """

    layer: int
    seed: int
    status: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    largest: float | None = None
    feature: int | None = None

    @property
    def agrees(self) -> bool:
        return self.status in (SAME, ROUNDING)


@dataclass(frozen=True)
class Comparison:
    """Every case of the reference in its order, and the candidate's cases that the reference does not have."""

    cases: tuple[CaseVerdict, ...]
    extra: tuple[tuple[int, int], ...]
    tolerance: float

    @property
    def agrees(self) -> bool:
        return all(case.agrees for case in self.cases)

    @property
    def largest(self) -> CaseVerdict | None:
        """The case with the largest difference of an activation."""
        measured = [case for case in self.cases if case.largest is not None]
        return max(measured, key=lambda case: case.largest or 0.0, default=None)

    def count(self, status: str) -> int:
        return sum(case.status == status for case in self.cases)


def compare(reference: Document, candidate: Document) -> Comparison:
    """The verdict on a candidate. Extra cases are told, and change nothing; missing ones fail."""
    tolerance = tolerance_of(reference)
    answers = by_key(candidate)
    verdicts = []
    for case in reference["test_cases"]:
        answer = answers.pop((case["layer"], case["seed"]), None)
        if answer is None:
            verdicts.append(CaseVerdict(case["layer"], case["seed"], MISSING, ("the candidate does not have this case",)))
        else:
            verdicts.append(compare_case(case, answer, top_key(reference), reference["n_features_per_layer"], tolerance))
    return Comparison(tuple(verdicts), tuple(answers), tolerance)


def tolerance_of(reference: Document) -> float:
    return float(reference.get("tolerance", DEFAULT_TOLERANCE))


def by_key(candidate: Document) -> dict[tuple[int, int], Document]:
    """The cases by (layer, seed). Raises DataError where one stands twice: read_candidate has seen to it for files."""
    cases = {(case["layer"], case["seed"]): case for case in candidate["test_cases"]}
    if len(cases) != len(candidate["test_cases"]):
        raise DataError("a case stands twice in the candidate")
    return cases


def answers_of(case: Document, top: str) -> list[tuple[int, float]]:
    """The list as (index, activation). A feature that does not fire has activation 0: ports pad short lists with them."""
    answers = [(entry["index"], float(entry["activation"])) for entry in case[top]]
    while answers and answers[-1][1] == 0 and len(answers) > case["n_active"]:
        answers.pop()
    return answers


def compare_case(
    case: Document, answer: Document, top: str, n_features: int, tolerance: float, right: str = "the reference has"
) -> CaseVerdict:
    """One case of a reference against its answer; see the module for the rules. `right` introduces its side in words."""
    expected, given = answers_of(case, top), answers_of(answer, top)
    n_active = case["n_active"]
    fewest, most = case.get("n_active_bounds", (n_active, n_active))
    problems, notes = [], []
    if not fewest <= answer["n_active"] <= most:
        within = f" ({fewest} to {most} within rounding)" if fewest < most else ""
        problems.append(f"n_active is {answer['n_active']}, {right} {n_active}{within}")
    elif answer["n_active"] != n_active:
        notes.append(f"n_active is {answer['n_active']}, not {n_active}: a feature is at its gate")

    listed = [index for index, _ in given]
    order = [index for index, _ in expected]
    outside = next((index for index in listed if not 0 <= index < n_features), None)
    if outside is not None:
        problems.append(f"feature {outside} does not exist: there are {n_features}")
    answered, values = dict(given), dict(expected)
    if len(answered) < len(listed):
        problems.append(f"feature {_first_repeated(listed)} is on the list twice")

    differences = {index: abs(value - values[index]) for index, value in given if index in values}
    feature = max(differences, key=lambda index: differences[index], default=None)
    largest = None if feature is None else differences[feature]
    if feature is not None and differences[feature] > tolerance:
        n_more = sum(difference > tolerance for difference in differences.values()) - 1
        problems.append(
            f"feature {feature} is {answered[feature]:.7g}, {right} {values[feature]:.7g}: "
            f"off by {differences[feature]:.3g}" + (f", and {n_more} more are off" if n_more else "")
        )
    if problems:
        # Who may be on the list is a question of rounding; what is beyond rounding needs only to be shown.
        problems += [_first_difference(order, listed, right)] if listed != order else []
        return CaseVerdict(case["layer"], case["seed"], DIFFERS, tuple(problems), (), largest, feature)
    if listed != order:
        ends_open = "rank-tie" in case.get("flags", ["rank-tie"])  # unknown where torch wrote the reference
        bounds = fewest, n_active, most
        problem = _list_problem(expected, given, int(top[4:]), answer["n_active"], bounds, ends_open, tolerance)
        if problem:
            return CaseVerdict(
                case["layer"],
                case["seed"],
                DIFFERS,
                (f"{_first_difference(order, listed, right)}; {problem}",),
                (),
                largest,
                feature,
            )
        notes.append("features that tie stand in another order, or one came or went where it may")
    if largest:
        notes.append(f"values differ by up to {largest:.3g}, feature {feature}")
    return CaseVerdict(case["layer"], case["seed"], ROUNDING if notes else SAME, (), tuple(notes), largest, feature)


def _list_problem(
    expected: list[tuple[int, float]],
    given: list[tuple[int, float]],
    k: int,
    n_active: int,
    bounds: tuple[int, int, int],
    ends_open: bool,
    tolerance: float,
) -> str | None:
    """Why a list whose common values agree cannot be a rounding of the expected one, or None.

    `bounds` are the fewest active features, the reference's number and the most; `n_active` is the candidate's.
    """
    if len(given) != min(k, n_active):
        return f"with n_active {n_active} the list has {min(k, n_active)} features, not {len(given)}"
    values, answered = dict(expected), dict(given)
    smallest, before = float("inf"), None
    for index, value in given:
        value = values.get(index, value)
        if value > smallest + 2 * tolerance:
            return f"feature {before} stands before feature {index}, which fires more by {value - smallest:.3g}"
        if value < smallest:
            smallest, before = value, index

    # Whoever has a value at the end of a full list may have come in, or fallen off, there; all else is a matter of gates.
    fewest, expected_active, most = bounds
    new = [index for index in answered if index not in values]
    gone = [index for index in values if index not in answered]
    last = expected[-1][1] + tolerance if len(expected) == k else -float("inf")
    least = given[-1][1] + tolerance if len(given) == k else -float("inf")
    inside = [index for index in new if answered[index] > last]
    if len(inside) > most - expected_active:
        return f"feature {inside[0]} is not among the reference's, and rounding cannot have brought it in"
    lost = [index for index in gone if values[index] > least]
    if len(lost) > expected_active - fewest:
        return f"feature {lost[0]} is missing, and rounding cannot have put it off the list"
    if not ends_open and max(len(new), len(gone)) > most - fewest:
        return f"no two features tie at the end of the list, where feature {(new or gone)[0]} came or went"
    return None


def _first_repeated(listed: list[int]) -> int:
    seen: set[int] = set()
    for index in listed:
        if index in seen:
            break
        seen.add(index)
    return index


def _first_difference(order: list[int], listed: list[int], right: str) -> str:
    for place, (ours, theirs) in enumerate(zip(order, listed)):
        if ours != theirs:
            return f"place {place + 1} is feature {theirs}, {right} {ours}"
    return f"the list has {len(listed)} features, {right} {len(order)}"
