# SPDX-License-Identifier: MIT OR Apache-2.0
"""The cause of what compare found: of the encoder's answers, or where these agree of the decoder's."""

from __future__ import annotations

import vendored_hf
from oracle.checking.compare import Comparison, by_key, compare_case, reconstruction_problems
from oracle.diagnosis import mistakes
from oracle.diagnosis.decoder_search import DecoderSearch
from oracle.diagnosis.explanation import Explanation, fit_of
from oracle.diagnosis.mistakes import Recipe
from oracle.diagnosis.search import EncoderSearch
from oracle.job import Events, Job
from oracle.references import document
from oracle.references.document import Document


def explain(
    recorded: Document,
    candidate: Document,
    compared: Comparison,
    job: Job,
    events: Events = Events(),
    *,
    by_curation: bool = False,
) -> Explanation:
    """The cause of what `compared`, which disagrees, found. Raises as verify does; a correct candidate has no cause."""
    if compared.agrees:
        return Explanation((), (), 0, ("the candidate agrees: there is nothing to explain",))
    answers, labelled = by_key(candidate), Recipe()
    right = {(case["layer"], case["seed"]) for case in recorded["test_cases"]}
    from_0 = {(layer - 1, seed): _with_targets_from_0(case) for (layer, seed), case in answers.items()}
    if len(right & from_0.keys()) > len(right & answers.keys()):
        answers, labelled = from_0, Recipe((mistakes.LAYERS_FROM_1,))
    verdicts = {
        (case["layer"], case["seed"]): compare_case(
            case,
            answers[case["layer"], case["seed"]],
            document.top_key(recorded),
            recorded["n_features_per_layer"],
            compared.tolerance,
        )
        for case in recorded["test_cases"]
        if (case["layer"], case["seed"]) in answers
    }
    encoder_agrees = all(verdict.agrees for verdict in verdicts.values())
    wrong = {key for key, verdict in verdicts.items() if not verdict.agrees}
    if encoder_agrees:
        wrong = {
            (case["layer"], case["seed"])
            for case in recorded["test_cases"]
            if (case["layer"], case["seed"]) in answers
            and _reconstructed_wrong(case, answers[case["layer"], case["seed"]], recorded["d_model"])
        }
    if not wrong:
        if not labelled.mistakes or not verdicts:
            what = "cases" if len(verdicts) < len(recorded["test_cases"]) else "reconstructions"
            known = f"the {what} that the candidate has agree; the others are missing"
            return Explanation((), (), len(verdicts), (known,))
        left = max(verdict.largest or 0.0 for verdict in verdicts.values())
        return Explanation((fit_of(labelled, len(verdicts), left),), (), len(verdicts))
    kind = DecoderSearch if encoder_agrees else EncoderSearch
    search = kind(recorded, answers, wrong, labelled, job, events, by_curation)
    found = search.run(fetch=False)
    if not found.named and not (job.offline or vendored_hf.is_offline_mode()):
        found = search.run(fetch=True) if search.not_tried else found
    return found


def _with_targets_from_0(case: Document) -> Document:
    """A case of a candidate that counts layers from 1, its target layers too where they begin with its own."""
    made = case.get("reconstructions", [])
    if min((one["target_layer"] for one in made), default=None) != case["layer"]:
        return case
    return {**case, "reconstructions": [{**one, "target_layer": one["target_layer"] - 1} for one in made]}


def _reconstructed_wrong(case: Document, answer: Document, d_model: int) -> bool:
    """Whether a reconstruction that the candidate has is wrong; one that is missing has no cause."""
    there = {made["target_layer"] for made in answer.get("reconstructions", [])}
    expected = [made for made in case.get("reconstructions", []) if made["target_layer"] in there]
    return bool(reconstruction_problems({"reconstructions": expected}, answer, d_model))
