# SPDX-License-Identifier: MIT OR Apache-2.0
"""The peers on exact vectors: loaded by their own loaders, they give the same bits. Where they differ on purpose it is said which case."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from oracle.vectors import variants
from oracle.vectors.variants import VARIANTS, Variant
from tests.peers.catalogue import CONFIG
from tests.peers.files import Task, lay_out
from tests.peers.run import Peers

SIZES: Task = {"d_in": 16, "d_sae": 270}
# Whoever lets negative values through where a threshold is below 0, which we and SAELens do not.
GOODFIRE = "goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth"
LETS_NEGATIVE_THROUGH = ("circuit-tracer",)
# SAELens scales what the decoder gives by the average norm of the inputs, where the side file has another one of the outputs.
ENCODES_ONLY = ("LlamaScope",)
# SAELens has no gemma_2 loader without a threshold; the sparsify of PyPI does not read `signed`.
NOT_READ = ("Sae-relu", "Sparsify-signed")
FORMATS = "SaeLens PltBundle DictionaryLearning Sparsify Goodfire QResearch HookZ LlamaScope Sae GemmaScopeNpz GemmaScope2".split()


def peer_of(variant: Variant, path: str, content: bytes) -> tuple[str, str, Task, dict[str, bytes]]:
    """A variant's peer, the repo as that wants it called, how it loads it, and files that it wants beside or instead."""
    folder, repo, more = path.rpartition("/")[0], variant.repo, {}
    scale = variant.settings.factor if variant.settings.normalised == "scaled" else None
    match variant.format:
        case "PltBundle" | "CltSplit":
            kind = "transcoder_set" if variant.format == "PltBundle" else "cross_layer_transcoder"
            gate = "".join(f"{key}: {value}\n" for key, value in variant.config.items())
            return "circuit-tracer", repo, {"ref": repo}, {"config.yaml": (CONFIG.format(kind) + gate).encode()}
        case "SaeLens":
            side = {**(variant.side or {}), "dtype": "float32", "device": "cpu"} | ({"d_out": variant.d_out} if "transcoder" in variant.what else {})
            side["metadata"] = {"model_name": "gpt2", "hook_name": "blocks.0.hook_resid_pre", "sae_lens_version": "6.54.12"}
            return "SAELens", repo, {"loader": "sae_lens", "repo": repo, "folder": folder, "scale": scale}, {f"{folder}/cfg.json": json.dumps(side).encode()}
        case "DictionaryLearning":
            kind = (variant.side or {})["trainer"]["dict_class"]
            return "dictionary_learning", repo, {"repo": repo, "folder": folder, "class": kind}, more
        case "Sparsify":
            side = {**(variant.side or {}), "d_in": 16, "num_latents": 270}
            return "sparsify", repo, {"repo": repo, "folder": folder}, {f"{folder}/cfg.json": json.dumps(side).encode()}
        case "Goodfire" | "QResearch":
            loader, repo, path = GOODFIRE if variant.format == "Goodfire" else ("deepseek_r1", repo, path)
            return "SAELens", repo, {"loader": loader, "repo": repo, "folder": path, "overrides": SIZES}, {path: content}
        case "HookZ":
            side = {"act_name": "blocks.0.attn.hook_z", "act_size": 16, "dict_size": 270, "layer": 0, "enc_dtype": "fp32"}
            stem = path.removesuffix(".pt")
            return "SAELens", repo, {"loader": "connor_rob_hook_z", "repo": repo, "folder": path, "heads": 8}, {f"{stem}_cfg.json": json.dumps(side).encode()}
        case "LlamaScope":
            return "SAELens", repo, {"loader": "llama_scope", "repo": repo, "folder": folder.removesuffix("/checkpoints"), "scale": scale}, more
        case "Sae" | "GemmaScopeNpz":
            repo = "google/gemma-scope-2b-pt-" + ("res" if variant.format == "Sae" else "transcoders")
            loader = "gemma_2" if variant.format == "Sae" else "gemma_2_transcoder"
            folder = folder.replace("width_270", "width_16k")
            load = {"loader": loader, "repo": repo, "folder": folder, "overrides": SIZES | ({} if variant.format == "Sae" else {"d_out": 16})}
            return "SAELens", repo, load, {f"{folder}/params.npz": content}
        case "GemmaScope2":
            repo, folder = "google/gemma-scope-2-1b-pt", f"transcoder_all/layer_0_width_16k_l0_small{'_affine' if variant.what else ''}"
            return "SAELens", repo, {"loader": "gemma_3", "repo": repo, "folder": folder}, {f"{folder}/params.safetensors": content}
    raise ValueError(variant.name)


# Formats that a peer reads in the sizes of vectors. Of the others its loader takes sizes from names, or has more layers at once.
READ = [variant for variant in VARIANTS if not variant.is_square and variant.name not in NOT_READ and variant.format in FORMATS]
READ += [variant for variant in VARIANTS if variant.name in ("CltSplit-square", "PltBundle-square", "SaeLens-square", "Sparsify-square")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [variant.name for variant in READ])
def test_a_peer_gives_the_same_bits(peers: Peers, name: str) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    files = variants.files_of(variant)
    vectors: dict[str, Any] = json.loads(files.pop("vectors.json"))
    peer, repo, load, more = peer_of(variant, vectors["weights"], files[vectors["weights"]])
    if variant.is_square and more and peer != "circuit-tracer":
        more = {path: content.replace(b"270", b"16") for path, content in more.items()}
    place = peers.folder / f"vectors_{name}"
    place.mkdir()
    lay_out(place / "hub", {repo: files | more})
    cases = [case for case in vectors["test_cases"] if peer == "circuit-tracer" or case["layer"] == vectors["layers"][0]["layer"]]
    (place / "reference.json").write_text(json.dumps({"test_cases": cases}))
    task = {"peer": peer, "load": load, "cache": str(place / "hub"), "reference": str(place / "reference.json"), "answers": str(place / "answers.npz")}
    peers.do([task])
    wrong = {}
    with np.load(place / "answers.npz") as answers:
        for number, case in enumerate(cases):
            if peer in LETS_NEGATIVE_THROUGH and "negative-threshold" in case["flags"]:
                continue
            if variant.settings.k is not None and "tie-order" in case["flags"]:  # torch.topk takes any of equal values
                continue
            acts = answers["acts"][number].astype(np.float32)
            right = np.zeros(vectors["n_features"], np.float32)
            for feature in case["active"]:
                right[feature["index"]] = feature["activation"]
            # Zeros of a gate may be -0.
            if not np.array_equal(acts + np.float32(0), right):
                wrong[case["case"]] = (case["flags"], np.flatnonzero(acts != right)[:5].tolist())
            outs = answers[f"out_{number}"].astype(np.float32)
            if variant.format in ENCODES_ONLY or "reconstructions" not in case:
                continue
            if not np.array_equal(outs, [output["values"] for output in case["reconstructions"]]):
                wrong[f"{case['case']} decoded"] = (case["flags"], np.argwhere(outs != [output["values"] for output in case["reconstructions"]])[:3].tolist())
    assert wrong == {}
