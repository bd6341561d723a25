# SPDX-License-Identifier: MIT OR Apache-2.0
"""A candidate's answers against a reference, without weights and without NumPy."""

from __future__ import annotations

from oracle.checking.lists import compare_case
from oracle.checking.reconstructions import reconstruction_problems
from oracle.checking.verdict import MISSING, CaseVerdict, Comparison
from oracle.references.document import Candidate, Case, Reference
from oracle.references.rows import DataError, shown


def compare(reference: Reference, candidate: Candidate) -> Comparison:
    """The verdict on a candidate. Extra cases are told, and change nothing; missing ones fail.

    Raises DataError for a reference whose n_active is not within its own bounds: no candidate can be held against it.
    """
    decodes = reference.decodes and candidate.decodes
    verdicts = []
    for case in reference.cases:
        fewest, most = case.bounds
        if not fewest <= case.n_active <= most:
            raise DataError(
                f"the reference's {case.id} has n_active {case.n_active}, which is not within its n_active_bounds, "
                f"{fewest} to {most}: it was edited; `python -m oracle verify` says more"
            )
        answer = candidate.cases.get(case.id)
        if answer is None:
            verdicts.append(CaseVerdict(case.id, MISSING, ("the candidate does not have this case",), tolerance=case.tolerance))
            continue
        problems = reconstruction_problems(case.outputs, answer.outputs, reference.d_out) if decodes else []
        verdict = compare_case(reference, case, answer).with_problems(problems)
        verdicts.append(verdict.with_problems(residual_problems(case, answer), first=True))
    known = {case.id for case in reference.cases}
    extra = tuple(case_id for case_id in candidate.cases if case_id not in known)
    not_compared = "reconstructions" if reference.decodes and not decodes else None
    return Comparison(tuple(verdicts), extra, reference.tolerance, not_compared, reference.edited)


def residual_problems(case: Case, answer: Case) -> list[str]:
    """What is wrong with the residual that an answer is of, where both say which it was."""
    expected, fingerprint = case.residual_fingerprint, answer.residual_fingerprint
    if expected is None or fingerprint is None or fingerprint.lower() == expected.lower():
        return []
    source = "what reads the row" if case.id.kind == "row" else "the generator"
    return [f"residual_fingerprint is {shown(fingerprint)}, the reference has {expected}: {source}, not the encoder, gives another residual"]
