# SPDX-License-Identifier: MIT OR Apache-2.0
"""The peers on exact vectors: loaded by their own loaders, they give the same bits. Where they differ on purpose it is said which case."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from oracle.vectors import variants
from oracle.vectors.variants import N_LAYERS, VARIANTS, Variant
from tests.peers.catalogue import CONFIG
from tests.peers.files import Task, lay_out
from tests.peers.run import Peers, PeersError

pytestmark = pytest.mark.slow
Document = dict[str, Any]
BY_NAME = {variant.name: variant for variant in VARIANTS}
# Of each format that no package of an index reads: why. What SAELens says of a crosscoder is held below.
NO_LOADER = {
    "GemmaScope2Crosscoder": "none knows crosscoders", "GemmaScope2Crosscoder-square": "none knows crosscoders",
    "Sae-relu": "SAELens's gemma_2 wants a threshold", "Sparsify-signed": "sparsify 1.3.3 does not read `signed`",
}  # fmt: skip
GOODFIRE = "goodfire", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth"
ENCODES = "encodings"


@dataclass(frozen=True)
class Loading:
    """A peer, the repo as it wants it called, how it loads it, files beside or instead of ours, and what is held: all, or encodings alone."""

    peer: str
    repo: str
    load: Task
    more: dict[str, bytes] = field(default_factory=dict)
    held: str = "encodings and reconstructions"


@functools.cache
def documents(name: str) -> tuple[dict[str, bytes], Document]:
    """A row's files, and its vectors."""
    files = variants.files_of(BY_NAME[name])
    return files, json.loads(files.pop("vectors.json"))


def all_layers(variant: Variant) -> dict[str, bytes]:
    """The encoder and decoder files of every layer of a cross-layer transcoder: its loader wants them all."""
    return {path: content for layer in range(N_LAYERS) for path, content in variants.layer_files(variant, layer, variants.layer_tensors(variant, layer)).values()}


def by_list(repo: str, kind: str, paths: list[str], more: dict[str, bytes]) -> Loading:
    """circuit-tracer's way to files that a list names: of which kind they are it reads off the repo's name."""
    config = CONFIG.format(kind) + "transcoders:\n" + "".join(f"  - hf://{repo}/{path}\n" for path in paths)
    return Loading("circuit-tracer", repo, {"ref": repo}, more | {"config.yaml": config.encode()})


def loadings(variant: Variant) -> Iterator[Loading]:
    """All peers of a row."""
    files, vectors = documents(variant.name)
    path, repo, side, n = vectors["weights"], variant.repo, variant.side or {}, vectors["n_features"]
    content, folder, layer, sizes = files[path], path.rpartition("/")[0], vectors["layers"][0]["layer"], {"d_in": 16, "d_sae": n}
    scale = variant.settings.factor if variant.settings.normalised == "scaled" else None
    paths = [record["path"] for record in vectors["layers"]]
    match variant.format:
        case "PltBundle" | "CltSplit":
            kind = "transcoder_set" if variant.format == "PltBundle" else "cross_layer_transcoder"
            gate = "".join(f"{key}: {value}\n" for key, value in variant.config.items())
            more = {"config.yaml": (CONFIG.format(kind) + gate).encode()} | (all_layers(variant) if variant.format == "CltSplit" else {})
            yield Loading("circuit-tracer", repo, {"ref": repo}, more)
            if variant.format == "CltSplit" and not variant.parts:
                yield Loading("SAELens", repo, {"loader": "mntss_clt_layer_transcoder", "repo": repo, "folder": str(layer)}, more, ENCODES)
            elif not variant.parts and not variant.config:
                run = "".join(f"{key}:\n  value: {value}\n" for key, value in {"d_model": 16, "d_feature": n, "batch_size": 4096}.items())
                yield Loading("SAELens", repo, {"loader": "mwhanna_transcoder", "repo": repo, "folder": path}, more | {"wandb-config.yaml": run.encode()})
        case "SaeLens":
            document = {**side, "d_sae": n, "dtype": "float32", "device": "cpu"} | ({"d_out": variant.d_out} if "transcoder" in variant.what else {})
            document["metadata"] = {"model_name": "gpt2", "hook_name": "blocks.0.hook_resid_pre", "sae_lens_version": "6.54.12"}
            load = {"loader": "sae_lens", "repo": repo, "folder": folder, "scale": scale}
            yield Loading("SAELens", repo, load, {f"{folder}/cfg.json": json.dumps(document).encode()})
        case "DictionaryLearning":
            yield Loading("dictionary_learning", repo, {"repo": repo, "folder": folder, "class": side["trainer"]["dict_class"]})
        case "Sparsify":
            document = {**side, "d_in": 16, "num_latents": n}
            yield Loading("sparsify", repo, {"repo": repo, "folder": folder}, {f"{folder}/cfg.json": json.dumps(document).encode()})
        case "Goodfire" | "QResearch":
            loader, repo, path = GOODFIRE if variant.format == "Goodfire" else ("deepseek_r1", repo, path)
            yield Loading("SAELens", repo, {"loader": loader, "repo": repo, "folder": path, "overrides": sizes}, {path: content})
        case "HookZ":
            document = {"act_name": "blocks.0.attn.hook_z", "act_size": 16, "dict_size": n, "layer": 0, "enc_dtype": "fp32"}
            load = {"loader": "connor_rob_hook_z", "repo": repo, "folder": path, "heads": 8}
            yield Loading("SAELens", repo, load, {f"{path.removesuffix('.pt')}_cfg.json": json.dumps(document).encode()})
        case "QwenScope":  # the repo's name says k, and the model by which its inputs are known
            repo = f"Qwen/SAE-Res-Small-Base-W1K-L0_{variant.settings.k}"
            yield Loading("SAELens", repo, {"loader": "qwen_scope", "repo": repo, "folder": path, "d_in": 16, "overrides": sizes}, {path: content})
        case "LlamaScope" | "LlamaScopeR1":
            # SAELens scales what the decoder gives by the average norm of the inputs, where the side file has another one of the outputs.
            r1 = variant.format == "LlamaScopeR1"
            more = {f"{folder}/config.json": json.dumps({**side, "expansion_factor": 1}).encode()} if r1 else {}
            load = {"loader": "llama_scope_r1_distill" if r1 else "llama_scope", "repo": repo, "folder": folder.removesuffix("/checkpoints")}
            yield Loading("SAELens", repo, load | {"scale": scale, "overrides": sizes}, more, ENCODES)
        case "Sae" | "EmbeddingSae" | "GemmaScopeNpz":
            google = "google/gemma-scope-2b-pt-" + ("transcoders" if variant.format == "GemmaScopeNpz" else "res")
            loader = "gemma_2_transcoder" if variant.format == "GemmaScopeNpz" else "gemma_2"
            folder = folder.replace(f"width_{n}", "width_16k")
            load = {"loader": loader, "repo": google, "folder": folder, "overrides": sizes | ({"d_out": 16} if variant.format == "GemmaScopeNpz" else {})}
            yield Loading("SAELens", google, load, {f"{folder}/params.npz": content})
            if variant.format == "GemmaScopeNpz":
                yield by_list("vectors/gemma-scope-transcoders", "transcoder_set", paths, {})
        case "GemmaScope2":
            google, folder = "google/gemma-scope-2-1b-pt", f"transcoder_all/layer_0_width_16k_l0_small{'_affine' if variant.what == 'skip' else ''}"
            yield Loading("SAELens", google, {"loader": "gemma_3", "repo": google, "folder": folder}, {f"{folder}/params.safetensors": content})
            yield by_list("vectors/gemma-scope-2-transcoders", "transcoder_set", paths, {})
        case "GemmaScope2Clt":
            # SAELens adds up the targets, of which the last layer has one. circuit-tracer drops the last file of its list, which is there twice here.
            google, folder = "google/gemma-scope-2-1b-pt", f"clt/width_262k_l0_medium_affine/params_layer_{layer}"
            load = {"loader": "gemma_3", "repo": google, "folder": folder}
            more = {f"{folder}.safetensors": content}
            yield Loading("SAELens", google, load, more, *(() if layer == N_LAYERS - 1 else (ENCODES,)))
            both = all_layers(variant)
            yield by_list("vectors/gemma-scope-2-clt", "cross_layer_transcoder", [*both, list(both)[-1]], both)


READ = [(variant.name, loading.peer) for variant in VARIANTS if variant.name not in NO_LOADER for loading in loadings(variant)]


@functools.cache
def differences(peers: Peers, name: str, peer: str) -> tuple[str, dict[str, Any]]:
    """What is held of a row by a peer, and where its bits are others."""
    variant, (files, vectors) = BY_NAME[name], documents(name)
    loading = next(loading for loading in loadings(variant) if loading.peer == peer)
    place = peers.folder / f"vectors_{name}_{peer}"
    place.mkdir()
    lay_out(place / "hub", {loading.repo: files | loading.more})
    # circuit-tracer loads all layers, the others one.
    cases = [case for case in vectors["test_cases"] if peer == "circuit-tracer" or case["layer"] == vectors["layers"][0]["layer"]]
    (place / "reference.json").write_text(json.dumps({"test_cases": cases}))
    task = {"peer": peer, "load": loading.load, "cache": str(place / "hub"), "reference": str(place / "reference.json"), "answers": str(place / "answers.npz")}
    peers.do([task])
    wrong, n_ties, n_negative, n_silent = {}, 0, 0, 0
    with np.load(place / "answers.npz") as answers:
        for number, case in enumerate(cases):
            acts = answers["acts"][number].astype(np.float32) + np.float32(0)  # zeros of a gate may be -0
            right = np.zeros(vectors["n_features"], np.float32)
            for feature in case["active"]:
                right[feature["index"]] = feature["activation"]
            ties, lets_through = variant.settings.k is not None and "tie-order" in case["flags"], peer == "circuit-tracer" and bool(np.any(acts < 0) and variant.parts)
            if ties:  # torch.topk takes any of equal values
                acts, right, n_ties = np.sort(acts), np.sort(right), n_ties + 1
            elif lets_through:  # it lets negative values through where a threshold is below 0, which we and SAELens do not
                assert "negative-threshold" in case["flags"]
                acts, n_negative = np.maximum(acts, 0), n_negative + 1
            if acts.tobytes() != right.tobytes():
                wrong[str(case["case"])] = (case["flags"], np.flatnonzero(acts != right)[:5].tolist())
            if ties or lets_through or loading.held == ENCODES or "reconstructions" not in case:
                continue
            outs, expected = answers[f"out_{number}"].astype(np.float32), np.array([output["values"] for output in case["reconstructions"]], np.float32)
            if np.isnan(outs).all():  # circuit-tracer decodes nothing of a cross-layer transcoder where nothing fires
                assert case["n_active"] == 0
                n_silent += 1
            elif (outs + np.float32(0)).tobytes() != (expected + np.float32(0)).tobytes():
                wrong[f"{case['case']} decoded"] = (case["flags"], np.argwhere(outs != expected)[:3].tolist())
    less = {"with ties by their values alone": n_ties, "but for negative values that it lets through": n_negative, "not decoded, where nothing fires": n_silent}
    return ", ".join([loading.held, f"{len(cases)} cases", *(f"{n} {what}" for what, n in less.items() if n)]), wrong


@pytest.mark.parametrize("name, peer", READ)
def test_a_peer_gives_the_same_bits(peers: Peers, name: str, peer: str) -> None:
    assert differences(peers, name, peer)[1] == {}


def test_no_loader_knows_crosscoders(peers: Peers) -> None:
    """SAELens reads the rest of Gemma Scope 2 with one loader, which does not know this folder."""
    files, vectors = documents("GemmaScope2Crosscoder")
    repo, folder = "google/gemma-scope-2-1b-pt", vectors["weights"].rpartition("/")[0]
    place = peers.folder / "crosscoder"
    lay_out(place, {repo: files | {f"{folder}/params.safetensors": files[vectors["weights"]]}})
    task = {"peer": "SAELens", "load": {"loader": "gemma_3", "repo": repo, "folder": folder}, "cache": str(place), "reference": "", "answers": ""}
    with pytest.raises(PeersError, match="Could not infer hook type from folder_name: crosscoder/"):
        peers.do([task])


def test_every_format_has_a_peer(peers: Peers, capsys: pytest.CaptureFixture[str]) -> None:
    """The table: each row of vectors, its peers, and what is equal."""
    assert {name for name, _ in READ} | NO_LOADER.keys() == BY_NAME.keys()
    lines = [f"{name:35} {peer:20} {'others' if wrong else 'equal'} bits: {held}" for name, peer in READ for held, wrong in [differences(peers, name, peer)]]
    lines += [f"{name:35} no public loader: {why}" for name, why in NO_LOADER.items()]
    with capsys.disabled():
        print("\n" + "\n".join(lines))
