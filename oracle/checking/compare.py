# SPDX-License-Identifier: MIT OR Apache-2.0
"""A candidate's answers against a reference: pure functions over documents that document.py has read. No weights.

What a correct port may answer follows from one assumption: each of its pre-activations is within the tolerance of the
exact one, before it is stored as float32, as the reference's was. Then n_active lies in `n_active_bounds`; two features
may swap only where their values are at most twice the tolerance apart; a feature may come onto the list, or leave it,
only at its end, where the margins say so, or because it is one of `gate_ties`. A difference within these rules passes
as rounding. Where a reference does not name its ties (torch's, and our first ones) none comes or goes but at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from oracle.references.document import DEFAULT_TOLERANCE, DataError, Document, top_key

FLOAT32_ROUNDING = 2.0**-24  # of a value: at most this much of it

MOST_SAID = 3  # of a cross-layer transcoder's case every target layer may have a problem

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

    @property
    def said(self) -> str:
        """The problems, or else the notes, on a line; of many the first few."""
        lines = self.problems or self.notes
        more = f"; and {len(lines) - MOST_SAID} more" if len(lines) > MOST_SAID else ""
        return "; ".join(lines[:MOST_SAID]) + more


@dataclass(frozen=True)
class Comparison:
    """Every case of the reference in its order, and the candidate's cases that the reference does not have.

    `not_compared` names what the reference has and no case of the candidate.
    """

    cases: tuple[CaseVerdict, ...]
    extra: tuple[tuple[int, int], ...]
    tolerance: float
    not_compared: str | None = None

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
    """The verdict on a candidate. Extra cases are told, and change nothing; missing ones fail.

    Raises DataError for a reference whose n_active is not within its own bounds: no candidate can be held against it.
    """
    tolerance = tolerance_of(reference)
    answers = by_key(candidate)
    decoded = any("reconstructions" in case for case in reference["test_cases"])
    compared = decoded and any("reconstructions" in answer for answer in answers.values())
    verdicts = []
    for case in reference["test_cases"]:
        fewest, most = case.get("n_active_bounds", (case["n_active"], case["n_active"]))
        if not fewest <= case["n_active"] <= most:
            raise DataError(
                f"the reference's layer {case['layer']} seed {case['seed']} has n_active {case['n_active']}, which is "
                f"not within its n_active_bounds, {fewest} to {most}: it was edited; `python -m oracle verify` says more"
            )
        answer = answers.pop((case["layer"], case["seed"]), None)
        if answer is None:
            verdicts.append(CaseVerdict(case["layer"], case["seed"], MISSING, ("the candidate does not have this case",)))
        else:
            verdict = compare_case(case, answer, top_key(reference), reference["n_features_per_layer"], tolerance)
            problems = reconstruction_problems(case, answer, reference["d_model"]) if compared else []
            verdicts.append(with_problems(verdict, problems))
    return Comparison(tuple(verdicts), tuple(answers), tolerance, "reconstructions" if decoded and not compared else None)


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
    off = [index for index in differences if differences[index] > tolerance + stored(values[index], answered[index])]
    if off:
        worst = max(off, key=lambda index: differences[index])
        problems.append(
            f"feature {worst} is {answered[worst]:.7g}, {right} {values[worst]:.7g}: "
            f"off by {differences[worst]:.3g}" + (f", and {len(off) - 1} more are off" if len(off) > 1 else "")
        )
    if problems:
        # Who may be on the list is a question of rounding; what is beyond rounding needs only to be shown.
        problems += [_first_difference(order, listed, right)] if listed != order else []
        return CaseVerdict(case["layer"], case["seed"], DIFFERS, tuple(problems), (), largest, feature)
    if listed != order:
        bounds = fewest, n_active, most
        ends_open = _ends_open(case, expected, tolerance)
        ties = frozenset(case["gate_ties"]) if "gate_ties" in case else None
        problem = _list_problem(expected, given, int(top[4:]), answer["n_active"], bounds, ties, ends_open, tolerance)
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


def stored(*values: float) -> float:
    """How much values that were rounded to float32 may be off by for that alone, together."""
    return FLOAT32_ROUNDING * sum(map(abs, values))


def _ends_open(case: Document, expected: list[tuple[int, float]], tolerance: float) -> bool:
    """Whether features may tie at the end of the list, which is unknown where torch wrote the reference."""
    if "rank-tie" in case.get("flags", ["rank-tie"]):
        return True
    # A port that ranks what it has rounded to float32 may also tie what the exact numbers only just tell apart.
    margin, largest = case.get("rank_margin"), max((value for _, value in expected), default=0.0)
    return margin is not None and margin <= 2 * tolerance + stored(largest, largest)


def _list_problem(
    expected: list[tuple[int, float]],
    given: list[tuple[int, float]],
    k: int,
    n_active: int,
    bounds: tuple[int, int, int],
    ties: frozenset[int] | None,
    ends_open: bool,
    tolerance: float,
) -> str | None:
    """Why a list whose common values agree cannot be a rounding of the expected one, or None.

    `bounds` are the fewest active features, the reference's number and the most; `n_active` is the candidate's. `ties`
    are the features at their gates, None where nobody says which they are.
    """
    if len(given) != min(k, n_active):
        return f"with n_active {n_active} the list has {min(k, n_active)} features, not {len(given)}"
    values, answered = dict(expected), dict(given)
    smallest, before = float("inf"), None
    for index, value in given:
        value = values.get(index, value)
        # Both may be rounded in the reference, and again in a port that ranks what it has stored.
        if value > smallest + 2 * (tolerance + stored(value, smallest)):
            return f"feature {before} stands before feature {index}, which fires more by {value - smallest:.3g}"
        if value < smallest:
            smallest, before = value, index

    # Whoever has a value at the end of a full list may have come in, or fallen off, there; all else is a matter of gates.
    fewest, expected_active, most = bounds
    new = [index for index in answered if index not in values]
    gone = [index for index in values if index not in answered]
    unnamed = ""
    if ties is None:
        ties = frozenset()
        unnamed = "; the reference does not name the features at their gates: write it again" if fewest < most else ""
    last, least = _end(expected, k, tolerance), _end(given, k, tolerance)
    inside = [index for index in new if answered[index] > last + stored(answered[index])]
    strange = [index for index in inside if index not in ties] or inside[max(0, most - expected_active) :]
    if strange:
        return f"feature {strange[0]} is not among the reference's, and rounding cannot have brought it in{unnamed}"
    lost = [index for index in gone if values[index] > least + stored(values[index])]
    missed = [index for index in lost if index not in ties] or lost[max(0, expected_active - fewest) :]
    if missed:
        return f"feature {missed[0]} is missing, and rounding cannot have put it off the list{unnamed}"
    # What comes in at its gate pushes others off the end, what goes at its gate lets others in there: never both.
    came, went = [index for index in new if index not in ties], [index for index in gone if index not in ties]
    if not ends_open and came and went:
        return f"no two features tie at the end of the list, where feature {came[0]} came and {went[0]} went"
    return None


def _end(answers: list[tuple[int, float]], k: int, tolerance: float) -> float:
    """A feature with more than this is on the list; where the list is not full every one that fires is."""
    return answers[-1][1] + tolerance + stored(answers[-1][1]) if len(answers) == k else -float("inf")


def reconstruction_problems(case: Document, answer: Document, d_model: int, right: str = "the reference has") -> list[str]:
    """What is wrong with a case's reconstructions, a line for each target layer where something is.

    A correct port's values may each be off by the tolerance that stands with them; so its norm by that of a vector of
    such differences, and the sums by what the differences add up to.
    """
    given = {made["target_layer"]: made for made in answer.get("reconstructions", [])}
    problems = []
    for expected in case.get("reconstructions", []):
        target, made = expected["target_layer"], given.get(expected["target_layer"])
        if made is None:
            problems.append(f"the reconstruction of layer {target} is missing")
            continue
        off = expected["tolerance"]
        off_all = off * math.sqrt(d_model)  # the norm of the differences
        pairs = [
            (f"value {place}", *pair, off) for place, pair in enumerate(zip(expected["first_10"], made["first_10"]))
        ]
        pairs += [
            ("norm", expected["norm"], made["norm"], off_all),
            ("sum of squares", expected["sum_of_squares"], made["sum_of_squares"], off_all * (2 * expected["norm"] + off_all)),
            ("sum", expected["sum"], made["sum"], off * d_model),
        ]
        wrong = [pair for pair in pairs if abs(pair[1] - pair[2]) > pair[3] + stored(pair[1], pair[2])]
        if len(made["first_10"]) != len(expected["first_10"]):
            problems.append(
                f"the reconstruction of layer {target} has {len(made['first_10'])} first values, not {len(expected['first_10'])}"
            )
        elif wrong:
            name, theirs, ours, _ = wrong[0]
            others = len(wrong) - 1
            more = f", and {others} more number{' is' if others == 1 else 's are'} off" if others else ""
            problems.append(
                f"the reconstruction of layer {target}: {name} is {ours:.7g}, {right} {theirs:.7g}: "
                f"off by {abs(ours - theirs):.3g}{more}"
            )
    return problems


def with_problems(verdict: CaseVerdict, problems: list[str]) -> CaseVerdict:
    """The verdict, with more that rounding cannot explain."""
    if not problems:
        return verdict
    return replace(verdict, status=DIFFERS, problems=(*verdict.problems, *problems), notes=())


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
