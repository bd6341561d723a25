# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every architecture and format that a peer reads, in every type that its container has, with and without optional tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from tests.peers.files import D_MODEL, D_OUT, DTYPES, F16, F32, N_FEATURES, Arrays, Case, Task, Written, named, only, weights
from tests.support.worlds import to_npz, to_safetensors

SCALE = 1.7
SIZES = {"d_in": D_MODEL, "d_sae": N_FEATURES}
STANDARD, GATED, JUMPRELU = ("W_enc", "b_enc", "W_dec", "b_dec"), ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"), "threshold"


def cases() -> list[Case]:
    """All of them; each has an id of its own."""
    kinds = (
        saelens, saelens_old, dictionary_learning, sparsify, qwen_scope, llama_scope, llama_scope_r1, torch_files, hook_z,
        gemma_scope, gemma_scope_2, gemma_scope_2_clt, embedding, plt_bundle, clt_split,
    )  # fmt: skip
    everything = [case for kind in kinds for case in kind()]
    assert len({case.id for case in everything}) == len(everything)
    return everything


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


# --- SAELens's own format ---------------------------------------------------------------------------------------------


def _parts(architecture: str) -> tuple[str, ...]:
    names = GATED if architecture == "gated" else STANDARD
    return (*names, *(["threshold"] if "jumprelu" in architecture else []), *(["W_skip"] if "skip" in architecture else []))


ARCHITECTURES = (
    "standard", "jumprelu", "topk", "abstopk", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
NORMALISED = ("none", "constant_norm_rescale", "layer_norm", "expected_average_only_in")


def saelens() -> Iterator[Case]:
    """Written by SAELens's own save_model, cfg.json and all."""
    for architecture, normalised, dtype in product(ARCHITECTURES, NORMALISED, DTYPES):
        is_transcoder, is_topk = "transcoder" in architecture, "topk" in architecture
        subtracts = (False,) if is_transcoder else (False, True) if normalised == "none" or dtype == F32 else (True,)
        rescales = (False, True) if is_topk and normalised == "none" else (False,)
        for b_dec, by_norm in product(subtracts, rescales):
            if normalised != "none" and dtype != F32 and (is_transcoder or architecture == "abstopk"):
                continue  # the type of the file and the input have nothing to do with each other
            what = f"{architecture}, {normalised}, {'b_dec subtracted, ' if b_dec else ''}{'decoder norms, ' if by_norm else ''}{dtype}"
            d_out = D_OUT if is_transcoder else D_MODEL
            config: Task = {
                **SIZES, "architecture": architecture, "apply_b_dec_to_input": b_dec, "normalize_activations": normalised,
                "metadata": {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_pre", "sae_lens_version": "6.54.12"},
            }  # fmt: skip
            config |= {"k": 24, "rescale_acts_by_decoder_norm": by_norm} if is_topk else {}
            config |= {"d_out": d_out} if is_transcoder else {}
            arrays = only(weights(what, d_out=d_out, negative=True), *_parts(architecture))
            yield _saelens(what, arrays, dtype, config, normalised == "expected_average_only_in")


def _saelens(what: str, arrays: Arrays, dtype: str, config: Task, scaled: bool) -> Case:
    repo, folder = "org/some-saes", "blocks.3.hook_resid_pre"
    load = {"loader": "sae_lens", "repo": repo, "folder": folder, "scale": SCALE if scaled else None}
    written = Written("sae_lens", folder, arrays, dtype, config)
    return Case("SaeLens", what, repo, {"SAELens": load}, (folder,), (3,), input_scale=SCALE if scaled else None, written=(written,))


def saelens_old() -> Iterator[Case]:
    """Files from before 6.0, whose cfg.json has other keys and defaults."""
    base = {
        **SIZES, "dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small", "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3, "hook_point_head_index": None, "prepend_bos": True, "dataset_path": "org/text", "context_size": 128,
    }  # fmt: skip
    variants: dict[str, tuple[str, Task]] = {
        "oldest": ("standard", {}),
        "standard": ("standard", {"architecture": "standard", "activation_fn_str": "relu", "apply_b_dec_to_input": True, "sae_lens_training_version": "3.2.0"}),
        "b_dec not subtracted": ("standard", {"activation_fn_str": "relu", "apply_b_dec_to_input": False, "normalize_activations": None}),
        "topk by activation_fn": ("topk", {"architecture": "standard", "activation_fn": "topk", "activation_fn_kwargs": {"k": 20}}),
        "topk by activation_fn_str": (
            "topk",
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 20}, "sae_lens_version": "5.9.1", "normalize_activations": "layer_norm"},
        ),
        "jumprelu": ("jumprelu", {"architecture": "jumprelu", "activation_fn_str": "relu", "finetuning_scaling_factor": False}),
        "gated": ("gated", {"architecture": "gated", "activation_fn_str": "relu", "normalize_activations": "constant_norm_rescale"}),
        "scaled, by a bool": ("standard", {"normalize_activations": True}),
        "not scaled, by a bool": ("standard", {"normalize_activations": False}),
        "transcoder": ("transcoder", {"architecture": "transcoder", "apply_b_dec_to_input": False, "d_out": D_OUT, "activation_fn": "relu"}),
        "skip_transcoder": ("skip_transcoder", {"architecture": "skip_transcoder", "apply_b_dec_to_input": False, "d_out": D_OUT}),
        "a scaling_factor of ones": ("standard", {"finetuning_scaling_factor": True}),
    }
    for (name, (architecture, config)), dtype in product(variants.items(), DTYPES):
        what = f"before 6.0, {name}, {dtype}"
        parts = (*_parts(architecture), *(["scaling_factor"] if "ones" in name else []))
        ours = weights(what, d_out=config.get("d_out"), negative=True)
        arrays = only(ours | {"scaling_factor": ours["b_enc"] * 0 + 1}, *parts)
        case = _saelens(what, arrays, dtype, config, name.startswith("scaled"))
        folder = case.path[0]
        files = {f"{folder}/sae_weights.safetensors": to_safetensors(arrays, dtype), f"{folder}/cfg.json": _json(base | config)}
        yield Case(case.format, what, case.repo, case.peers, case.path, case.layers, input_scale=case.input_scale, files={case.repo: files})


# --- torch's files ----------------------------------------------------------------------------------------------------

CLASSES = ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder")


def dictionary_learning() -> Iterator[Case]:
    """The state of dictionary_learning's own classes, saved by torch."""
    repo, folder = "org/dictionaries", "some/resid_post_layer_4/trainer_2"
    for name, dtype in product(CLASSES, DTYPES):
        what = f"{name}, {dtype}"
        ours = weights(what, negative=name == "JumpReluAutoEncoder")
        parameters = named(ours, W_enc="~encoder.weight", b_enc="encoder.bias", W_dec="~decoder.weight", b_dec="b_dec")
        parameters |= {**only(ours, "W_enc", "W_dec", "b_enc", "r_mag"), "bias": ours["b_dec"], "decoder_bias": ours["b_dec"]}
        parameters |= {"gate_bias": ours["b_gate"], "mag_bias": ours["b_mag"]}
        parameters |= {"threshold": ours["threshold"] if name == "JumpReluAutoEncoder" else ours["threshold"][1].reshape(())}
        trainer = {
            "dict_class": name, "trainer_class": "SomeTrainer", "activation_dim": D_MODEL, "dict_size": N_FEATURES, "layer": 4, "lm_name": "org/model",
            "lr": 3e-4, "seed": 0, "steps": 10, "submodule_name": "resid_post_layer_4", "wandb_name": "some",
        }  # fmt: skip
        trainer |= {"k": 24} if "TopK" in name else {}
        config = {"trainer": trainer, "buffer": {"d_submodule": D_MODEL, "ctx_len": 128, "io": "out"}}
        yield Case(
            "DictionaryLearning", what, repo,
            {
                "dictionary_learning": {"repo": repo, "folder": folder, "class": name},
                "SAELens": {"loader": "dictionary_learning_1", "repo": repo, "folder": folder},
            },
            (folder,), (4,), files={repo: {f"{folder}/config.json": _json(config)}},
            written=(Written("dictionary_learning", folder, parameters, dtype, {"class": name, "k": 24, "d_in": D_MODEL, "n_features": N_FEATURES}),),
        )  # fmt: skip


def qwen_scope() -> Iterator[Case]:
    for k, dtype in product((20, 50), DTYPES):
        # Its loader takes the number of features from the name, in units of 1024.
        repo, name = f"Qwen/SAE-Res-Small-Base-W1K-L0_{k}", "layer7.sae.pt"
        ours = weights(f"qwen {k} {dtype}", n=1024)
        arrays = named(ours, W_enc="~W_enc", W_dec="~W_dec", b_enc="b_enc", b_dec="b_dec")
        load = {"loader": "qwen_scope", "repo": repo, "folder": name, "d_in": D_MODEL}
        written = Written("torch", "", arrays, dtype, {"name": name, "transposed": ["W_enc"] if k == 50 else []})
        yield Case("QwenScope", f"k {k}, {dtype}", repo, {"SAELens": load}, (name,), (7,), written=(written,))


def torch_files() -> Iterator[Case]:
    """Goodfire's and qresearch's single files, of which SAELens knows each by its name."""
    files = {
        ("Goodfire", "goodfire"): ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", 19),
        ("Goodfire", "goodfire "): ("Goodfire/Llama-3.3-70B-Instruct-SAE-l50", "Llama-3.3-70B-Instruct-SAE-l50.pt", 50),
        ("QResearch", "deepseek_r1"): ("qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19", "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", 19),
    }
    for ((schema, loader), (repo, name, layer)), dtype in product(files.items(), DTYPES):
        linear = "coder" if schema == "QResearch" else "coder_linear"
        arrays = named(
            weights(f"{name} {dtype}"), W_enc=f"~en{linear}.weight", b_enc=f"en{linear}.bias", W_dec=f"~de{linear}.weight", b_dec=f"de{linear}.bias"
        )
        load = {"loader": loader.strip(), "repo": repo, "folder": name, "overrides": SIZES}
        written = Written("torch", "", arrays, dtype, {"name": name})
        yield Case(schema, f"{name.rpartition('.')[2]}, {dtype}", repo, {"SAELens": load}, (name,), (layer,), written=(written,))


def hook_z() -> Iterator[Case]:
    repo, stem = "org/attn-saes", "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.80e+00_v9"
    for dtype in DTYPES:
        arrays = only(weights(f"hook_z {dtype}"), *STANDARD)
        config = {"act_name": "blocks.5.attn.hook_z", "act_size": D_MODEL, "dict_size": N_FEATURES, "layer": 5, "l1_coeff": 1.8, "enc_dtype": "fp32"}
        load = {"loader": "connor_rob_hook_z", "repo": repo, "folder": f"{stem}.pt", "heads": 8}
        written = Written("torch", "", arrays, dtype, {"name": f"{stem}.pt"})
        yield Case("HookZ", dtype, repo, {"SAELens": load}, (f"{stem}.pt",), (5,), files={repo: {f"{stem}_cfg.json": _json(config)}}, written=(written,))


# --- sparsify, Llama Scope --------------------------------------------------------------------------------------------


def sparsify() -> Iterator[Case]:
    """Written by sparsify's own save_to_disk. SAELens's loader of these gives other numbers: see test_differences.py."""
    for activation, transcode, skip, dtype in product(("topk", "groupmax"), (False, True), (False, True), DTYPES):
        what = f"{activation}{', transcode' if transcode else ''}{', skip' if skip else ''}, {dtype}"
        repo, folder = "org/sparse-coders", "layers.6.mlp" if skip else "layers.6"
        ours = weights(what)
        arrays = named(ours, W_enc="~encoder.weight", b_enc="encoder.bias", W_dec="W_dec", b_dec="b_dec")
        arrays |= {"W_skip": ours["W_skip"]} if skip else {}
        # groupmax has groups of one size: 384 features in 32 groups.
        config = {"d_in": D_MODEL, "num_latents": N_FEATURES, "k": 32, "activation": activation, "transcode": transcode, "skip_connection": skip}
        yield Case(
            "Sparsify", what, repo, {"sparsify": {"repo": repo, "folder": folder}}, (folder,), (6,), written=(Written("sparsify", folder, arrays, dtype, config),)
        )


LM_SAES: Task = {
    "act_fn": "jumprelu", "d_model": D_MODEL, "dataset_average_activation_norm": {"in": 5.5, "out": 5.5}, "norm_activation": "dataset-wise",
    "use_decoder_bias": True, "use_glu_encoder": False, "apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": False,
}  # fmt: skip
AVERAGE_SCALE = D_MODEL**0.5 / 5.5


def _linear(ours: Arrays) -> Arrays:
    return named(ours, W_enc="~encoder.weight", b_enc="encoder.bias", W_dec="~decoder.weight", b_dec="decoder.bias")


def llama_scope() -> Iterator[Case]:
    for letter, level, dtype in product("RM", (0.4, 0.9), DTYPES):
        repo, folder = f"fnlp/Llama3_1-8B-Base-LX{letter}-8x", f"Llama3_1-8B-Base-L9{letter}-8x"
        config = {**LM_SAES, "jump_relu_threshold": level, "d_sae": N_FEATURES, "hook_point_in": "blocks.9.hook", "hook_point_out": "blocks.9.hook"}
        files = {
            f"{folder}/checkpoints/final.safetensors": to_safetensors(_linear(weights(f"llama {letter} {level} {dtype}")), dtype),
            f"{folder}/hyperparams.json": _json(config),
        }
        load = {"loader": "llama_scope", "repo": repo, "folder": folder, "scale": AVERAGE_SCALE}
        yield Case("LlamaScope", f"{letter}, threshold {level}, {dtype}", repo, {"SAELens": load}, (folder,), (9,), files={repo: files})


def llama_scope_r1() -> Iterator[Case]:
    for letter, dtype in product("RA", DTYPES):
        repo, folder = "fnlp/Llama-Scope-R1-Distill", f"800M-Slimpajama-0-OpenR1-Math-220k/L11{letter}"
        ours = weights(f"r1 {letter} {dtype}")
        arrays = _linear(ours) | {"log_jumprelu_threshold": ours["b_gate"]}
        config = {**LM_SAES, "expansion_factor": N_FEATURES // D_MODEL, "hook_point_in": "blocks.11.hook_resid_post"}
        files = {f"{folder}/sae_weights.safetensors": to_safetensors(arrays, dtype), f"{folder}/config.json": _json(config)}
        load = {"loader": "llama_scope_r1_distill", "repo": repo, "folder": folder, "scale": AVERAGE_SCALE}
        yield Case("LlamaScopeR1", f"{letter}, {dtype}", repo, {"SAELens": load}, (folder,), (11,), files={repo: files})


# --- Gemma Scope ------------------------------------------------------------------------------------------------------


def gemma_scope() -> Iterator[Case]:
    """Transcoders by their list, and SAEs by their path: both peers clip negative thresholds of none, as there are none."""
    for kind, dtype in product(("transcoders", "res", "mlp", "att"), (F32, F16)):
        repo, layers = f"google/gemma-scope-2b-pt-{kind}", (0, 1)
        paths = [f"layer_{layer}/width_16k/average_l0_{layer + 70}" for layer in layers]
        negative = kind != "transcoders"
        own = {f"{path}/params.npz": to_npz(only(weights(f"{path} {kind} {dtype}", negative=negative), *STANDARD, JUMPRELU), dtype) for path in paths}
        loader = "gemma_2_transcoder" if kind == "transcoders" else "gemma_2"
        sizes = SIZES | ({"d_out": D_MODEL} if kind == "transcoders" else {})
        load = {"loader": loader, "repo": repo, "folder": paths[1], "overrides": sizes, "heads": 8 if kind == "att" else None}
        if kind == "transcoders":
            listed = "org/gemma-scope-transcoders"
            config = CONFIG.format("transcoder_set") + "transcoders:\n" + "".join(f"  - hf://{repo}/{path}\n" for path in own)
            lists = {listed: {"config.yaml": config.encode()}, repo: own}
            yield Case("GemmaScopeNpz", f"list, {dtype}", listed, {"circuit-tracer": {"ref": listed}}, layers=layers, files=lists)
        yield Case("Sae", f"{kind}, {dtype}", repo, {"SAELens": load}, (paths[1],), (1,), files={repo: own})


def embedding() -> Iterator[Case]:
    for dtype, l0 in product((F32, F16), (6, 44)):
        repo, folder = "google/gemma-scope-2b-pt-res", f"embedding/width_4k/average_l0_{l0}"
        # Of a residual divided by 8 few features would fire: 8 is the root of d_model.
        files = {f"{folder}/params.npz": to_npz(_embedding(f"{l0} {dtype}"), dtype)}
        load = {"loader": "gemma_2", "repo": repo, "folder": folder, "overrides": SIZES}
        yield Case("EmbeddingSae", f"l0 {l0}, {dtype}", repo, {"SAELens": load}, (folder,), (0,), files={repo: files})


def _embedding(what: str) -> Arrays:
    ours = only(weights(f"embedding {what}"), *STANDARD, JUMPRELU)
    return ours | {"W_enc": ours["W_enc"] * 8}


def gemma_scope_2() -> Iterator[Case]:
    """SAEs and transcoders, with an affine part and without, as SAELens names them and by circuit-tracer's lists in subfolders."""
    names = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec", "threshold": "threshold"}
    for kind, affine, dtype in product(("transcoder_all", "resid_post", "mlp_out", "attn_out"), (False, True), DTYPES):
        if affine and kind != "transcoder_all":
            continue
        repo, layers, ending = "google/gemma-scope-2-1b-pt", (0, 1, 2), "_affine" if affine else ""
        folders = [f"{kind}/layer_{layer}_width_16k_l0_small{ending}" for layer in layers]
        files = {}
        for folder in folders:
            ours = weights(f"{folder} {dtype}")
            arrays = named(ours, **names) | ({"affine_skip_connection": ours["W_skip"].T} if affine else {})
            files[f"{folder}/params.safetensors"] = to_safetensors(arrays, dtype)
        what = f"{kind}{', affine' if affine else ''}, {dtype}"
        load = {"loader": "gemma_3", "repo": repo, "folder": folders[2]}
        yield Case("GemmaScope2", what, repo, {"SAELens": load}, (folders[2],), (2,), files={repo: files})
        if kind == "transcoder_all":
            listed, folder = "mwhanna/gemma-scope-2-1b-pt", f"transcoder_all/width_16k_l0_small{ending}"
            config = CONFIG.format("transcoder_set") + "transcoders:\n" + "".join(f"  - hf://{repo}/{path}\n" for path in files)
            lists = {listed: {f"{folder}/config.yaml": config.encode()}, repo: files}
            ref = f"{listed}/{folder}"
            yield Case("GemmaScope2", f"list in a subfolder, {what}", ref, {"circuit-tracer": {"ref": ref}}, layers=layers, files=lists)


def gemma_scope_2_clt() -> Iterator[Case]:
    """One file a layer, whose w_dec has all layers as targets. SAELens sums them up: its encodings are held. circuit-tracer drops the last
    file of its list, and cannot load the others then: its list has the last one twice here."""
    repo, listed, n_layers = "google/gemma-scope-2-1b-it", "org/gemma-scope-2-clt", 4
    for affine, dtype in product((False, True), DTYPES):
        folder = f"clt/width_262k_l0_medium{'_affine' if affine else ''}"
        files = {}
        for layer in range(n_layers):
            ours = weights(f"{folder} {dtype} {layer}")
            targets = [weights(f"{folder} decoder {dtype} {layer} {target}")["W_dec"] * (target >= layer) for target in range(n_layers)]
            arrays = {"w_enc": ours["W_enc"], "w_dec": np.stack(targets, axis=1), **only(ours, "b_enc", "b_dec", "threshold")}
            arrays |= {"affine_skip_connection": ours["W_skip"].T} if affine else {}
            files[f"{folder}/params_layer_{layer}.safetensors"] = to_safetensors(arrays, dtype)
        uris = [f"hf://{repo}/{path}" for path in files]
        config = CONFIG.format("cross_layer_transcoder") + "transcoders:\n" + "".join(f"  - {uri}\n" for uri in [*uris, uris[-1]])
        repos = {listed: {"config.yaml": config.encode()}, repo: files}
        what = f"{'affine, ' if affine else ''}{dtype}"
        yield Case("GemmaScope2Clt", what, repo, {"circuit-tracer": {"ref": listed}}, (folder,), tuple(range(n_layers)), files=repos)
        load = {"loader": "gemma_3", "repo": repo, "folder": f"{folder}/params_layer_2"}
        path = f"{folder}/params_layer_2.safetensors"
        yield Case("GemmaScope2Clt", f"layer 2, {what}", repo, {"SAELens": load}, (path,), (2,), files=repos, encodes_only=("SAELens",))


# --- circuit-tracer's own ---------------------------------------------------------------------------------------------

CONFIG = "model_name: org/model\nmodel_kind: {}\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"


def plt_bundle() -> Iterator[Case]:
    """circuit-tracer 0.5.0 has the top-k function and does not read `activation`: its user sets it, and here the peers' program does."""
    for gate, skip, dtype in product(("relu", "jumprelu", "topk"), (False, True), DTYPES):
        repo, layers = "org/model-transcoders", (0, 1)
        files = {"config.yaml": (CONFIG.format("transcoder_set") + ("activation: topk\nk: 24\n" if gate == "topk" else "")).encode()}
        for layer in layers:
            ours = weights(f"plt {gate} {skip} {dtype} {layer}")
            arrays = only(ours, "b_enc", "W_dec", "b_dec") | {"W_enc": ours["W_enc"].T}
            arrays |= only(ours, "W_skip") if skip else {}
            arrays |= {"activation_function.threshold": ours["threshold"]} if gate == "jumprelu" else {}
            files[f"layer_{layer}.safetensors"] = to_safetensors(arrays, dtype)
        peers: dict[str, Task] = {"circuit-tracer": {"ref": repo}}
        yield Case("PltBundle", f"{gate}{', skip' if skip else ''}, {dtype}", repo, peers, layers=layers, files={repo: files})
        if gate == "relu" and not skip:  # what SAELens has a loader for
            sizes = {"d_model": D_MODEL, "d_feature": N_FEATURES, "batch_size": 4096}
            run = "".join(f"{key}:\n  value: {value}\n" for key, value in sizes.items())
            load = {"loader": "mwhanna_transcoder", "repo": repo, "folder": "layer_1.safetensors"}
            with_run = {repo: files | {"wandb-config.yaml": run.encode()}}
            yield Case("PltBundle", f"by path, {dtype}", repo, {"SAELens": load}, ("layer_1.safetensors",), (1,), files=with_run)


def clt_split() -> Iterator[Case]:
    """Without thresholds SAELens too has these, with W_dec summed over its targets: its encodings are held. With them see test_differences.py."""
    for threshold, dtype in product((False, True), DTYPES):
        yield clt_case(threshold, dtype)
        if not threshold:
            yield clt_layer_case(threshold, dtype)


def clt_case(threshold: bool, dtype: str) -> Case:
    repo, layers = "org/clt-model", (0, 1, 2, 3)
    files = {"config.yaml": CONFIG.format("cross_layer_transcoder").encode()}
    for layer in layers:
        ours = weights(f"clt {threshold} {dtype} {layer}")
        arrays = {f"W_enc_{layer}": ours["W_enc"].T, f"b_enc_{layer}": ours["b_enc"], f"b_dec_{layer}": ours["b_dec"]}
        arrays |= {f"threshold_{layer}": ours["threshold"]} if threshold else {}
        targets = [weights(f"clt decoder {threshold} {dtype} {layer} {target}")["W_dec"] for target in range(layer, len(layers))]
        w_dec = {f"W_dec_{layer}": np.stack(targets, axis=1)}
        files |= {f"W_enc_{layer}.safetensors": to_safetensors(arrays, dtype), f"W_dec_{layer}.safetensors": to_safetensors(w_dec, dtype)}
    schema = "CltSplitJumpReLU" if threshold else "CltSplit"
    return Case(schema, dtype, repo, {"circuit-tracer": {"ref": repo}}, layers=layers, files={repo: files})


def clt_layer_case(threshold: bool, dtype: str) -> Case:
    """One layer of the same, as SAELens loads it."""
    whole = clt_case(threshold, dtype)
    load = {"loader": "mntss_clt_layer_transcoder", "repo": whole.repo, "folder": "2"}
    return Case(whole.format, f"layer 2, {dtype}", whole.repo, {"SAELens": load}, layers=(2,), files=whole.files, encodes_only=("SAELens",))

