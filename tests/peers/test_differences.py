# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where the peers differ among themselves: which one we follow, and why; and that the other one does give other numbers.

lm-saes cannot be installed beside the others. What it makes of sparsity_include_decoder_norm is written out here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.peers import catalogue
from tests.peers.files import D_MODEL, F32, Case, Task, Written, named, only, weights
from tests.peers.run import MOST_FEATURES, Answer, Peers, PeersError, answers, difference
from tests.support.worlds import to_safetensors

pytestmark = pytest.mark.slow
SAME = 1e-5


def both(peers: Peers, case: Case) -> dict[str, Answer]:
    """What each of a case's peers answers."""
    return {answer.peer: answer for answer in answers(peers, [case])}


def features(answer: Answer) -> list[tuple[dict[int, float], dict[int, float]]]:
    """Of each residual the features that fire: ours, and the peer's."""
    return [
        (
            {top["index"]: top["activation"] for top in case[f"top_{MOST_FEATURES}"]},
            {int(index): float(acts[index]) for index in np.flatnonzero(acts)},
        )
        for case, acts in zip(answer.reference["test_cases"], answer.arrays["acts"])
    ]


def agrees(answer: Answer) -> bool:
    apart = difference(answer)
    return not apart.odd and max(apart.encodings, apart.reconstructions or 0) <= SAME


def test_thresholds_of_clts(peers: Peers) -> None:
    """SAELens leaves threshold_N out, and its encodings are ReLU's. circuit-tracer, whose format it is, reads it: so do we."""
    clt = catalogue.clt_case(True, F32)
    assert agrees(both(peers, clt)["circuit-tracer"])
    for ours, theirs in features(both(peers, catalogue.clt_layer_case(True, F32))["SAELens"]):
        assert ours.keys() < theirs.keys() and len(theirs) > 2 * len(ours)
        assert all(abs(ours[index] - theirs[index]) <= SAME for index in ours)


def sparse_coder(n: int, normalize_decoder: bool) -> Case:
    ours = weights(f"square {n}", n=n)
    arrays = named(ours, W_enc="~encoder.weight", b_enc="encoder.bias", W_dec="W_dec", b_dec="b_dec")
    repo, folder = "org/sparse-coders", "layers.6"
    config = {"d_in": D_MODEL, "num_latents": n, "k": 16, "normalize_decoder": normalize_decoder}
    load = {"repo": repo, "folder": folder}
    peers: dict[str, Task] = {"sparsify": load, "SAELens": {"loader": "sparsify", **load}}
    return Case("Sparsify", f"{n} features", repo, peers, (folder,), (6,), written=(Written("sparsify", folder, arrays, F32, config),))


def test_w_dec_of_sparsify(peers: Peers) -> None:
    """SAELens transposes sparsify's W_dec, which lies as it needs it, and so cannot load a coder that has more features than inputs."""
    with pytest.raises(PeersError, match="size mismatch for W_dec"):
        both(peers, sparse_coder(128, True))


@pytest.mark.parametrize("normalize_decoder", [True, False])
def test_b_dec_of_sparsify(peers: Peers, normalize_decoder: bool) -> None:
    """sparsify subtracts b_dec unless it transcodes, SAELens unless `normalize_decoder`, which is about training: sparsify is right about its
    own. As many features as inputs, or SAELens loads none; its reconstructions are of the transposed W_dec even then."""
    answer = both(peers, sparse_coder(D_MODEL, normalize_decoder))
    assert agrees(answer["sparsify"])
    pairs = features(answer["SAELens"])
    same = [ours.keys() == theirs.keys() and all(abs(ours[index] - theirs[index]) <= SAME for index in ours) for ours, theirs in pairs]
    assert all(same) if not normalize_decoder else not any(same)
    reconstructions = difference(answer["SAELens"]).reconstructions
    assert reconstructions is None or reconstructions > 0.01


def test_negative_thresholds(peers: Peers) -> None:
    """circuit-tracer's JumpReLU lets a negative value through where it is above a negative threshold; SAELens's is a ReLU first, and so is
    that of dictionary_learning and of those who trained Gemma Scope: never active."""
    what, repo = "negative thresholds", "org/model-transcoders"
    ours = weights(what, negative=True)
    arrays = only(ours, "b_enc", "W_dec", "b_dec") | {"W_enc": ours["W_enc"].T, "activation_function.threshold": ours["threshold"]}
    config = catalogue.CONFIG.format("transcoder_set").encode()
    files = {repo: {"config.yaml": config, "layer_0.safetensors": to_safetensors(arrays)}}
    answer = both(peers, Case("PltBundle", what, repo, {"circuit-tracer": {"ref": repo}}, files=files))["circuit-tracer"]
    assert answer.reference["gate"]["n_negative_thresholds"] == int(np.sum(ours["threshold"] < 0))
    for mine, theirs in features(answer):
        others = theirs.keys() - mine.keys()
        assert mine.keys() < theirs.keys() and all(theirs[index] < 0 for index in others)
        assert all(abs(mine[index] - theirs[index]) <= SAME * max(theirs.values()) for index in mine)
    negative = next(case for case in catalogue.saelens() if case.what == f"jumprelu, none, {F32}")
    assert agrees(both(peers, negative)["SAELens"])


def test_normalised_decoders(peers: Peers) -> None:
    """dictionary_learning's AutoEncoder normalises its decoder when it is loaded, unless it is told not to: activations are then times the
    norms of W_dec's rows. We read what the file says, as SAELens does."""
    case = next(case for case in catalogue.dictionary_learning() if case.what == f"AutoEncoder, {F32}")
    loads = {**case.peers, "dictionary_learning": {**case.peers["dictionary_learning"], "normalize_decoder": True}}
    answer = both(peers, replace(case, peers=loads))
    assert agrees(answer["SAELens"])
    norms = np.linalg.norm(case.written[0].arrays["W_dec"].astype(np.float64), axis=1)
    for ours, theirs in features(answer["dictionary_learning"]):
        assert ours.keys() == theirs.keys()
        assert all(theirs[index] == pytest.approx(ours[index] * norms[index], rel=1e-4, abs=1e-6) for index in ours)
    assert difference(answer["dictionary_learning"]).encodings > 0.1


def test_decoder_norms_of_llama_scope(peers: Peers) -> None:
    """With sparsity_include_decoder_norm lm-saes holds pre-activations times the norms of W_dec's rows against the threshold, and SAELens
    leaves the norms out. We do as SAELens does, by which these are used most, and say so: where the norms are not 1 other features fire."""
    case = next(case for case in catalogue.llama_scope() if case.what == f"R, threshold 0.4, {F32}")
    (repo, files), = case.files.items()
    side = next(path for path in files if path.endswith("hyperparams.json"))
    hyperparams: dict[str, Any] = json.loads(files[side]) | {"sparsity_include_decoder_norm": True}
    case = replace(case, files={repo: files | {side: json.dumps(hyperparams).encode()}})
    answer = both(peers, case)["SAELens"]
    assert agrees(answer)
    ours = weights(f"llama R 0.4 {F32}")
    norms = np.linalg.norm(ours["W_dec"].astype(np.float64), axis=1)
    scale = catalogue.AVERAGE_SCALE
    for number, (mine, _) in enumerate(features(answer)):
        residual = np.array(answer.reference["test_cases"][number]["residual"])
        pre = residual * scale @ ours["W_enc"].astype(np.float64) + ours["b_enc"]
        assert set(np.flatnonzero(pre > 0.4 * scale)) == mine.keys()
        assert set(np.flatnonzero(pre * norms > 0.4 * scale)) != mine.keys()


def test_the_last_layer_of_gemma_scope_2(peers: Peers) -> None:
    """circuit-tracer's loader of Gemma Scope 2's cross-layer transcoders leaves the last file of its list out, and then has one target too
    many for the others. We read all layers of the folder."""
    case = next(case for case in catalogue.gemma_scope_2_clt() if case.what == F32)
    listed = case.peers["circuit-tracer"]["ref"]
    lines = case.files[listed]["config.yaml"].splitlines()
    short = {listed: {"config.yaml": b"\n".join(lines[:-1]) + b"\n"}}
    with pytest.raises(PeersError, match="size mismatch for W_dec"):
        both(peers, replace(case, files=case.files | short))
