# SPDX-License-Identifier: MIT OR Apache-2.0
"""The table of formats written out again, and a layer's files held against it."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from oracle.arithmetic.chain import Threshold
from oracle.references.layer import Arithmetic
from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, FORMATS, SIDE, by_name
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.sidefiles import Context
from oracle.weights.tensors import WeightsError
from tests.support import worlds
from tests.support.torchfiles import torch_file

D, F, T = 3, 5, 2  # d_model, n_features, n_targets
Arrays = dict[str, np.ndarray]


def arrays_of(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


BY_INPUT, BY_FEATURE = (D, F), (F, D)
GEMMA = {"W_enc": BY_INPUT, "b_enc": (F,), "W_dec": BY_FEATURE, "b_dec": (D,)}
LINEAR = {"encoder.weight": BY_FEATURE, "encoder.bias": (F,), "decoder.weight": BY_INPUT, "decoder.bias": (D,)}
LM_SAES = {"d_model": D, "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 2.0, "out": 2.0}}
# Of each format: its encoder's tensors and its decoder's, those of them that may be missing, its formulas, its names and its side file.
# What is there where a gate needs it is `needed`: without it a file is one of the format, and refused for its side file.
TABLE: dict[str, dict[str, Any]] = {
    "GemmaScopeNpz": {
        "encoder": GEMMA | {"threshold": (F,)}, "optional": [], "features_first": False,
        "formula": "W_enc.T", "suffix": ".npz", "key": "weights_repo", "output": "plt",
        "names": {"params.npz": None, "layer_3/x/params.npz": 3}, "others": ["xparams.npz", "params.npz.x", "params_npz", "params.safetensors"],
    },
    "PltBundle": {
        "encoder": {"W_enc": BY_FEATURE, "b_enc": (F,), "W_dec": BY_FEATURE, "b_dec": (D,), "activation_function.threshold": (F,), "W_skip": (D, D)},
        "optional": ["activation_function.threshold", "W_skip"], "features_first": True,
        "formula": "W_enc", "suffix": ".safetensors", "key": "plt_repo", "output": "plt",
        "names": {"layer_0.safetensors": 0, "a/b/layer_25.safetensors": 25, "layer_999999.safetensors": 999999},
        "others": [f"layer_{end}" for end in ("00.safetensors", ".safetensors", "1000000.safetensors", "0.npz", "0xsafetensors", "-1.safetensors")],
    },
    "CltSplit": {
        "encoder": {"W_enc_7": BY_FEATURE, "b_enc_7": (F,), "b_dec_7": (D,), "threshold_7": (F,)},
        "decoder": {"W_dec_7": (F, T, D)}, "optional": ["threshold_7"], "features_first": True,
        "formula": "W_enc", "suffix": ".safetensors", "key": "clt_repo", "output": "clt", "jumprelu": "CltSplitJumpReLU",
        "names": {"W_enc_0.safetensors": 0, "a/W_enc_12.safetensors": 12}, "others": ["W_dec_0.safetensors", "W_enc_07.safetensors", "W_enc.safetensors"],
    },
    "GemmaScope2": {
        "encoder": {"w_enc": BY_INPUT, "b_enc": (F,), "w_dec": BY_FEATURE, "b_dec": (D,), "threshold": (F,), "affine_skip_connection": (D, D)},
        "optional": ["affine_skip_connection"], "features_first": False,
        "formula": "w_enc.T", "suffix": ".safetensors", "key": "weights_repo", "output": "plt",
        "names": {"params.safetensors": None, "layer_1/params.safetensors": 1, "a/layer_25_width_16k_l0_small/params.safetensors": 25},
        "others": ["params.npz"],
    },
    "GemmaScope2Clt": {
        "encoder": {"w_enc": BY_INPUT, "b_enc": (F,), "w_dec": (F, T, D), "b_dec": (D,), "threshold": (F,), "affine_skip_connection": (D, D)},
        "optional": ["affine_skip_connection"], "features_first": False, "layer": 0,
        "formula": "w_enc.T", "suffix": ".safetensors", "key": "clt_repo", "output": "clt",
        "names": {"params_layer_0.safetensors": 0, "clt/x/params_layer_12.safetensors": 12}, "others": ["params.safetensors", "layer_0.safetensors"],
    },
    "GemmaScope2Crosscoder": {
        "encoder": {"w_enc": (1, D, F), "b_enc": (F,), "w_dec": (F, T, D), "b_dec": (T, D), "threshold": (F,)}, "optional": [], "features_first": False,
        "layer": 0, "formula": "sum over the input layers l of w_enc[l].T", "x": "residual[l]",
        "suffix": ".safetensors", "key": "sae_repo", "output": "crosscoder",
        "names": {"crosscoder/layer_7_13_width_65k/params_layer_1.safetensors": 1, "crosscoder/x/params.safetensors": None},
        "others": ["params_layer_1.npz", "crosscoder/x/params_layer_01.safetensors"],
    },
    "Sae": {
        "encoder": GEMMA | {"threshold": (F,)}, "optional": ["threshold"], "features_first": False,
        "formula": "W_enc.T", "suffix": ".npz", "key": "sae_repo", "output": "sae", "names": {"x/params.npz": None}, "others": ["sae.npz"],
    },
    "EmbeddingSae": {
        "encoder": GEMMA | {"threshold": (F,)}, "optional": ["threshold"], "features_first": False, "x": "(residual / sqrt(d_model))",
        "formula": "W_enc.T", "suffix": ".npz", "key": "sae_repo", "output": "sae", "names": {"embedding/x/params.npz": None},
        "others": ["sae.npz", "x/params.npz"],
    },
    "SaeLens": {
        "encoder": GEMMA | {"threshold": (F,), "W_skip": (D, D), "scaling_factor": (F,)}, "optional": ["scaling_factor"],
        "needed": ["b_enc", "threshold", "W_skip"],
        "side": {"architecture": "jumprelu_skip_transcoder", "sae_lens_version": "6.0.0"}, "features_first": False,
        "formula": "W_enc.T", "suffix": ".safetensors", "key": "sae_repo", "output": "sae",
        "names": {"blocks.8.hook_resid_pre/sae_weights.safetensors": 8, "layer_3/width_16k/sae_weights.safetensors": 3, "sae_weights.safetensors": None},
        "others": ["sae.safetensors", "sae_weights.npz"],
    },
    "DictionaryLearning": {
        "encoder": {"W_enc": BY_INPUT, "b_enc": (F,), "W_dec": BY_FEATURE, "b_dec": (D,), "threshold": (F,)}, "optional": [], "needed": ["threshold", "b_enc"],
        "side": {"trainer": {"dict_class": "JumpReluAutoEncoder"}}, "features_first": False,
        "formula": "W_enc.T", "suffix": ".pt", "key": "sae_repo", "output": "sae",
        "names": {"resid_post_layer_9/trainer_0/ae.pt": 9, "ae.pt": None}, "others": ["sae.pt", "ae.pth", "ae.safetensors"],
    },
    "QwenScope": {
        "encoder": {"W_enc": BY_FEATURE, "b_enc": (F,), "W_dec": BY_INPUT, "b_dec": (D,)}, "optional": [], "features_first": True, "k": 2,
        "formula": "W_enc", "suffix": ".pt", "key": "sae_repo", "output": "sae",
        "names": {"layer0.sae.pt": 0, "a/layer27.sae.pt": 27}, "others": ["layer.sae.pt", "layer01.sae.pt", "layer_1.sae.pt"],
    },
    "LlamaScope": {
        "encoder": LINEAR, "optional": [], "features_first": True, "side": {**LM_SAES, "jump_relu_threshold": 0.5}, "x": "(residual * input_scale)",
        "formula": "encoder.weight", "suffix": ".safetensors", "key": "sae_repo", "output": "sae",
        "names": {"Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors": 15, "checkpoints/final.safetensors": None},
        "others": ["final.safetensors", "checkpoints/final.pt"],
    },
    "LlamaScopeR1": {
        "encoder": LINEAR | {"log_jumprelu_threshold": (F,)}, "optional": [], "features_first": True, "side": LM_SAES, "x": "(residual * input_scale)",
        "formula": "encoder.weight", "suffix": ".safetensors", "key": "sae_repo", "output": "sae",
        "names": {"400M-Slimpajama/L15R/sae_weights.safetensors": 15, "sae_weights.safetensors": None}, "others": ["sae.safetensors"],
    },
    "Sparsify": {
        "encoder": {"encoder.weight": BY_FEATURE, "encoder.bias": (F,), "W_dec": BY_FEATURE, "b_dec": (D,), "W_skip": (D, D)},
        "optional": [], "needed": ["W_skip"], "side": {"k": 2, "transcode": True, "skip_connection": True}, "features_first": True,
        "formula": "encoder.weight", "suffix": ".safetensors", "key": "sae_repo", "output": "sae",
        "names": {"layers.5.mlp/sae.safetensors": 5, "layers.12/sae.safetensors": 12, "sae.safetensors": None}, "others": ["sae_weights.safetensors"],
    },
    "Goodfire": {
        "encoder": {name.replace("coder.", "coder_linear."): shape for name, shape in LINEAR.items()}, "optional": [], "features_first": True,
        "formula": "encoder_linear.weight", "suffix": ".pth", "key": "sae_repo", "output": "sae",
        "names": {"Llama-3.1-8B-Instruct-SAE-l19.pth": 19, "DeepSeek-R1-SAE-l37.pt": 37}, "others": ["Llama-SAE.pth", "-l19x.pth"],
    },
    "QResearch": {
        "encoder": LINEAR, "optional": [], "features_first": True,
        "formula": "encoder.weight", "suffix": ".pt", "key": "sae_repo", "output": "sae",
        "names": {"DeepSeek-R1-Distill-Llama-70B-SAE-l48.pt": 48}, "others": ["SAE.pt", "SAE-l48.pth"],
    },
    "HookZ": {
        "encoder": GEMMA, "optional": [], "features_first": False, "side": {"act_size": D}, "x": "(residual - b_dec)",
        "formula": "W_enc.T", "suffix": ".pt", "key": "sae_repo", "output": "sae",
        "names": {"gpt2-small_L5_Hcat_z_lr1.2e-03.pt": 5, "x.pt": None}, "others": ["gpt2_L5_z_cfg.json", "x.pth"],
    },
}  # fmt: skip


def written(suffix: str, arrays: Arrays) -> bytes:
    return {".npz": worlds.to_npz, ".safetensors": worlds.to_safetensors}.get(suffix, torch_file)(arrays)


def opened(name: str, encoder: Arrays, decoder: Arrays | None = None, layer: int | None = None) -> LayerWeights:
    row = TABLE[name]

    def file(role: str, content: bytes, suffix: str = row["suffix"]) -> OpenFile:
        return OpenFile(io.BytesIO(content), f"{role}{suffix}", f"the {role}")

    files = {ENCODER: file("encoder", written(row["suffix"], encoder))}
    if decoder is not None:
        files[DECODER] = file("decoder", written(row["suffix"], decoder))
    if "side" in row:
        files[SIDE] = file("side file", json.dumps(row["side"]).encode(), ".json")
    return LayerWeights(by_name(name), row.get("layer", 7) if layer is None else layer, files, Context(k=row.get("k")))


def of_part(name: str, arrays: Arrays) -> Arrays:
    """A layer's arrays by what they are for, W_enc and W_dec as they lie."""
    words = {
        "encoder.weight": "w_enc", "encoder.bias": "b_enc", "decoder.weight": "w_dec", "decoder.bias": "b_dec", "affine_skip_connection": "w_skip",
        "log_jumprelu_threshold": "log_threshold",
    }  # fmt: skip
    plain = {tensor.replace("coder_linear.", "coder."): values for tensor, values in arrays.items()}
    return {words.get(tensor) or tensor.lower().rpartition(".")[2].removesuffix("_7"): values for tensor, values in plain.items()}


def test_every_format_is_in_the_table() -> None:
    assert [row.name for row in FORMATS] == list(TABLE) and formats.REPO_KEYS == ("weights_repo", "plt_repo", "clt_repo", "sae_repo")
    assert formats.schemas() == (*list(TABLE)[:3], "CltSplitJumpReLU", *list(TABLE)[3:])
    assert formats.EXTENT_LIMIT == 2**24
    with pytest.raises(KeyError):
        by_name("Transcoder")


@pytest.mark.parametrize("name", TABLE)
def test_what_a_format_says(name: str) -> None:
    row, said = by_name(name), TABLE[name]
    assert (row.name, row.suffixes[-1], row.repo_key, row.output) == (name, said["suffix"], said["key"], said["output"])
    beside = {
        **({DECODER: "W_dec_{layer}.safetensors"} if "decoder" in said else {}), **({SIDE: row.side_file.name} if row.side_file else {}),
    }  # fmt: skip
    assert row.files == {ENCODER: row.encoder_file} | beside and ("side" in said) is (row.side_file is not None)
    assert row.has_targets is (name in ("CltSplit", "GemmaScope2Clt", "GemmaScope2Crosscoder"))
    jumprelu = said.get("jumprelu", name)
    assert (row.schema(False), row.schema(True)) == (name, jumprelu) and row.names == tuple(dict.fromkeys((name, jumprelu)))
    assert all(by_name(schema) is row for schema in row.names)
    for path, layer in said["names"].items():
        assert row.names_file(path) and row.layer_of(path) == layer, path
    for path in said["others"]:
        assert not row.names_file(path) and row.layer_of(path) is None, path


@pytest.mark.parametrize("name", TABLE)
def test_the_formula(name: str) -> None:
    said = TABLE[name]
    encoder = arrays_of(said["encoder"])
    encoder |= {"scaling_factor": np.ones(F, np.float32)} if "scaling_factor" in encoder else {}
    layer = opened(name, encoder)
    pre = f"{said['formula']} @ {said.get('x', 'residual')} + b_enc"
    if layer.has_threshold:
        assert Arithmetic.of(layer).formula == f"pre = {pre}; acts = pre * (pre > threshold)"
        assert Arithmetic.of(layer).negative_formula == f"pre = {pre}; acts = pre * (pre > max(threshold, 0))"
        if "threshold" not in "".join(said["optional"]):
            return
        layer = opened(name, {tensor: values for tensor, values in encoder.items() if "threshold" not in tensor})
    relu = f"ReLU({pre})"
    kept = f"pre = {pre}; acts = ReLU(pre) where it is among the k largest, else 0; k = 2"
    assert Arithmetic.of(layer).formula == (kept if name in ("QwenScope", "Sparsify") else relu) == Arithmetic.of(layer).negative_formula


@pytest.mark.parametrize("name", TABLE)
def test_which_files_can_be_of_a_format(name: str) -> None:
    row, said = by_name(name), TABLE[name]
    names = set(said["encoder"])
    number = said.get("layer", 7)
    may_be_missing = [*said["optional"], *said.get("needed", [])]
    assert row.holds(names, number) and row.holds(names - set(may_be_missing), number)
    assert not row.holds(names | {"more"}, number)  # whose part is not known
    for tensor in names:
        assert row.holds(names - {tensor}, number) is (tensor in may_be_missing), tensor
    for tensor in row.absent:
        assert not row.holds(names | {tensor}, number)
    assert row.absent == {"GemmaScopeNpz": ("W_skip",), "Sae": ("W_skip",), "EmbeddingSae": ("W_skip",), "PltBundle": ("log_thresholds",)}.get(name, ())


@pytest.mark.parametrize("name", TABLE)
def test_a_layer_s_tensors(name: str) -> None:
    said = TABLE[name]
    encoder, decoder = arrays_of(said["encoder"]), arrays_of(said["decoder"]) if "decoder" in said else None
    encoder |= {"scaling_factor": np.ones(F, np.float32)} if "scaling_factor" in encoder else {}
    roles = of_part(name, encoder | (decoder or {}))
    roles["w_enc"] = roles["w_enc"].reshape(-1, roles["w_enc"].shape[-1])
    layer = opened(name, encoder, decoder)
    assert (layer.d_model, layer.n_features, layer.d_out, layer.label) == (D, F, D, "the encoder") and layer.layer == said.get("layer", 7)
    assert layer.w_enc.features_first is said["features_first"]
    assert np.array_equal(np.concatenate([block.copy() for block in layer.w_enc.blocks()]), roles["w_enc"])
    assert np.array_equal(layer.b_enc, roles["b_enc"]) and np.array_equal(layer.b_dec, roles["b_dec"])
    threshold = roles.get("threshold")
    if "log_threshold" in roles:
        threshold = np.exp(roles["log_threshold"].astype(np.float64)).astype(np.float32)
    elif name == "LlamaScope":
        threshold = np.full(F, 0.5 * D**0.5 / 2, np.float32)
    assert layer.has_threshold is (threshold is not None)
    if threshold is not None:
        assert np.array_equal(layer.threshold, threshold) and layer.threshold.dtype == np.float32
        assert isinstance(layer.gate, Threshold) and np.array_equal(layer.gate.level, np.maximum(threshold, 0))  # type: ignore[arg-type]
        assert layer.n_negative_thresholds == np.sum(threshold < 0) and ("scope" in name.lower() or layer.n_negative_thresholds)
    lies_by_feature = layer.w_dec.features_first
    assert lies_by_feature is (name not in ("QwenScope", "LlamaScope", "LlamaScopeR1", "Goodfire", "QResearch"))
    wanted = [1, 3] if lies_by_feature else [0, 2]
    (part, rows), = ((part, rows.copy()) for part, rows in layer.w_dec.rows(np.array(wanted)))
    assert part.tolist() == wanted and np.array_equal(rows, roles["w_dec"][wanted])
    assert layer.decoder_shape == (D,) if roles["w_dec"].ndim == 2 else layer.decoder_shape == (T, D)
    skip = roles.get("w_skip")
    assert (layer.w_skip is None) is (skip is None)
    if layer.w_skip and skip is not None:
        assert layer.w_skip.features_first is (name not in ("GemmaScope2", "GemmaScope2Clt"))
        assert np.array_equal(np.concatenate([block.copy() for block in layer.w_skip.blocks()]), skip)


@pytest.mark.parametrize("name, tensor", [(name, tensor) for name in TABLE for tensor in TABLE[name]["encoder"]])
def test_a_tensor_that_is_missing(name: str, tensor: str) -> None:
    encoder = arrays_of(TABLE[name]["encoder"])
    encoder |= {"scaling_factor": np.ones(F, np.float32)} if "scaling_factor" in encoder else {}
    del encoder[tensor]
    if tensor in TABLE[name].get("needed", []):
        with pytest.raises(WeightsError, match=f"no tensor .*{tensor}.*, which a jumprelu gate needs|has no W_skip"):
            opened(name, encoder)
        return
    if tensor not in TABLE[name]["optional"]:
        with pytest.raises(WeightsError, match=f"the encoder: it has no tensor (.* or )?{tensor}( or .*)?; it has "):
            opened(name, encoder)
        return
    layer = opened(name, encoder)
    if "threshold" in tensor:
        assert not layer.has_threshold and layer.threshold.tolist() == [0.0] * F and layer.gate.record == {"kind": "relu"}
        assert layer.threshold.dtype == np.float32 and layer.n_negative_thresholds == 0
    else:
        assert tensor == "scaling_factor" or layer.w_skip is None


@pytest.mark.parametrize("name, tensor", [(name, tensor) for name in TABLE for tensor in (*TABLE[name]["encoder"], *TABLE[name].get("decoder", {}))])
def test_a_tensor_of_another_shape(name: str, tensor: str) -> None:
    said = TABLE[name]
    shape = (said["encoder"] | said.get("decoder", {}))[tensor]
    wrong = [(*shape[:axis], shape[axis] + 1, *shape[axis + 1 :]) for axis in range(len(shape))] + [(*shape, 1)]
    if len(shape) == 2:
        wrong += [shape[:1], shape[::-1]]
    for bad in wrong:
        n_targets = len(bad) == 3 == len(shape) and bad[0] == F and bad[2] == D
        n_input_layers = len(bad) == 3 and bad[1:] == (D, F)
        if n_targets or n_input_layers or bad == shape or len(bad) > 2 and said["suffix"] == ".npz":
            continue
        shapes = {part: {name: bad if name == tensor else right for name, right in said[part].items()} for part in ("encoder", "decoder") if part in said}
        with pytest.raises(WeightsError, match=r"shape \["):
            opened(name, arrays_of(shapes["encoder"]), arrays_of(shapes["decoder"]) if "decoder" in shapes else None)


def test_a_first_tensor_of_another_rank() -> None:
    for bad in ((F,), (F, D, 2)):
        with pytest.raises(WeightsError, match=r"W_enc has shape \[.*\], not \[n_features, d_model\]"):
            opened("PltBundle", arrays_of(TABLE["PltBundle"]["encoder"] | {"W_enc": bad}))


@pytest.mark.parametrize("name", TABLE)
def test_a_tensor_that_is_not_known(name: str) -> None:
    encoder = arrays_of(TABLE[name]["encoder"])
    for more, words in (("scale", "whose part in the encoding is not known"), *((absent, "never has") for absent in by_name(name).absent)):
        with pytest.raises(WeightsError, match=f"the encoder: it has a tensor '?{more}'?.*{words}"):
            opened(name, encoder | {more: np.zeros(F, np.float32)})
    if "decoder" in TABLE[name]:
        with pytest.raises(WeightsError, match="the decoder: it has a tensor 'scale', whose part"):
            opened(name, encoder, arrays_of(TABLE[name]["decoder"]) | {"scale": np.zeros(F, np.float32)})
        with pytest.raises(WeightsError, match="it has no W_dec_7"):
            _ = opened(name, encoder).w_dec
        with pytest.raises(WeightsError, match="no|not known"):
            opened(name, encoder, layer=8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite(value: float) -> None:
    for tensor, shape in TABLE["PltBundle"]["encoder"].items():
        encoder = arrays_of(TABLE["PltBundle"]["encoder"])
        encoder[tensor][(2,) * len(shape)] = value

        def read(encoder: Arrays = encoder) -> None:
            layer = opened("PltBundle", encoder)
            list(layer.w_dec.blocks())
            list(layer.w_dec.rows(np.arange(F)))
            if layer.w_skip:
                list(layer.w_skip.blocks())

        if tensor == "W_enc":
            read()  # the encoder looks at it
            continue
        with pytest.raises(WeightsError, match=f"the encoder: {tensor} has 1 values that are NaN or infinite"):
            read()


def test_a_container_is_known_by_its_name() -> None:
    for path in ("x.bin", "x.npz.txt", "npz"):
        with pytest.raises(WeightsError, match="l: none of .npz, .safetensors, .pt, .pth: its format is not known"):
            OpenFile(io.BytesIO(b""), path, "l").tensors()
