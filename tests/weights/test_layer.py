# SPDX-License-Identifier: MIT OR Apache-2.0
"""The table of formats written out again, and a layer's files held against it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, FORMATS, by_name
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.tensors import WeightsError
from tests.support import worlds

D, F, T = 3, 5, 2  # d_model, n_features, n_targets
Arrays = dict[str, np.ndarray]


def arrays_of(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


BY_INPUT, BY_FEATURE = (D, F), (F, D)
GEMMA = {"W_enc": BY_INPUT, "b_enc": (F,), "W_dec": BY_FEATURE, "b_dec": (D,)}
# Of each format: its encoder's tensors and its decoder's, those of them that may be missing, its formulas, and its names.
TABLE: dict[str, dict[str, Any]] = {
    "GemmaScopeNpz": {
        "encoder": GEMMA | {"threshold": (F,)}, "optional": [], "features_first": False,
        "formula": "W_enc.T", "suffix": ".npz", "key": "weights_repo", "output": "plt",
        "names": {"params.npz": None, "layer_3/x/params.npz": None}, "others": ["xparams.npz", "params.npz.x", "params_npz", "params.safetensors"],
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
        "names": {"params.safetensors": None, "layer_1/params.safetensors": None}, "others": ["params.npz"],
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
}  # fmt: skip


def opened(name: str, encoder: Arrays, decoder: Arrays | None = None, layer: int = 7) -> LayerWeights:
    def file(role: str, arrays: Arrays) -> OpenFile:
        content = worlds.to_npz(arrays) if TABLE[name]["suffix"] == ".npz" else worlds.to_safetensors(arrays)
        return OpenFile(io.BytesIO(content), f"{role}{TABLE[name]['suffix']}", f"the {role}")

    files = {ENCODER: file("encoder", encoder)} | ({} if decoder is None else {DECODER: file("decoder", decoder)})
    return LayerWeights(by_name(name), layer, files)


def test_every_format_is_in_the_table() -> None:
    assert [row.name for row in FORMATS] == list(TABLE) and formats.REPO_KEYS == ("weights_repo", "plt_repo", "clt_repo", "sae_repo")
    assert formats.schemas() == ("GemmaScopeNpz", "PltBundle", "CltSplit", "CltSplitJumpReLU", "GemmaScope2", "Sae", "EmbeddingSae")
    assert formats.EXTENT_LIMIT == 2**24
    with pytest.raises(KeyError):
        by_name("Transcoder")


@pytest.mark.parametrize("name", TABLE)
def test_what_a_format_says(name: str) -> None:
    row, told = by_name(name), TABLE[name]
    assert (row.name, row.suffix, row.repo_key, row.output) == (name, told["suffix"], told["key"], told["output"])
    assert row.files == {ENCODER: row.encoder_file} | ({DECODER: "W_dec_{layer}.safetensors"} if "decoder" in told else {})
    assert row.encoder_formula(False) == f"ReLU({told['formula']} @ {told.get('x', 'residual')} + b_enc)" == row.encoder_formula(False, True)
    pre = f"pre = {told['formula']} @ {told.get('x', 'residual')} + b_enc; acts = pre * (pre > "
    assert row.encoder_formula(True) == pre + "threshold)" and row.encoder_formula(True, True) == pre + "max(threshold, 0))"
    jumprelu = told.get("jumprelu", name)
    assert (row.schema(False), row.schema(True)) == (name, jumprelu) and row.names == tuple(dict.fromkeys((name, jumprelu)))
    assert all(by_name(schema) is row for schema in row.names)
    for path, layer in told["names"].items():
        assert row.names_file(path) and row.layer_of(path) == layer
    for path in told["others"]:
        assert not row.names_file(path) and row.layer_of(path) is None, path


@pytest.mark.parametrize("name", TABLE)
def test_which_files_can_be_of_a_format(name: str) -> None:
    row, told = by_name(name), TABLE[name]
    names = set(told["encoder"])
    assert row.holds(names, 7) and row.holds(names | {"more"}, 7) and row.holds(names - set(told["optional"]), 7)
    for tensor in names:
        assert row.holds(names - {tensor}, 7) is (tensor in told["optional"]), tensor
    for tensor in row.absent:
        assert not row.holds(names | {tensor}, 7)
    assert row.absent == {"GemmaScopeNpz": ("W_skip",), "Sae": ("W_skip",), "EmbeddingSae": ("W_skip",), "PltBundle": ("log_thresholds",)}.get(name, ())


@pytest.mark.parametrize("name", TABLE)
def test_a_layer_s_tensors(name: str) -> None:
    told = TABLE[name]
    encoder, decoder = arrays_of(told["encoder"]), arrays_of(told["decoder"]) if "decoder" in told else None
    roles = {tensor.lower().rpartition(".")[2].removesuffix("_7"): values for tensor, values in (encoder | (decoder or {})).items()}
    layer = opened(name, encoder, decoder)
    assert (layer.d_model, layer.n_features, layer.layer, layer.label) == (D, F, 7, "the encoder")
    assert layer.w_enc.features_first is told["features_first"]
    assert np.array_equal(np.concatenate([block.copy() for block in layer.w_enc.blocks()]), roles["w_enc"])
    assert np.array_equal(layer.b_enc, roles["b_enc"]) and np.array_equal(layer.b_dec, roles["b_dec"])
    assert layer.has_threshold and np.array_equal(layer.threshold, roles["threshold"])
    assert layer.n_negative_thresholds == np.sum(roles["threshold"] < 0) > 0 and np.array_equal(layer.gate, np.maximum(roles["threshold"], 0))
    (part, rows), = ((part, rows.copy()) for part, rows in layer.w_dec.rows(np.array([1, 3])))
    assert part.tolist() == [1, 3] and np.array_equal(rows, roles["w_dec"][[1, 3]])
    skip = roles.get("w_skip", roles.get("affine_skip_connection"))
    assert (layer.w_skip is None) is (skip is None)
    if layer.w_skip and skip is not None:
        assert layer.w_skip.features_first is (name == "PltBundle")
        assert np.array_equal(np.concatenate([block.copy() for block in layer.w_skip.blocks()]), skip)


@pytest.mark.parametrize("name, tensor", [(name, tensor) for name in TABLE for tensor in TABLE[name]["encoder"]])
def test_a_tensor_that_is_missing(name: str, tensor: str) -> None:
    encoder = arrays_of(TABLE[name]["encoder"])
    del encoder[tensor]
    if tensor not in TABLE[name]["optional"]:
        with pytest.raises(WeightsError, match=f"the encoder: it has no tensor {tensor}; it has "):
            opened(name, encoder)
        return
    layer = opened(name, encoder)
    if "threshold" in tensor:
        assert not layer.has_threshold and layer.threshold.tolist() == layer.gate.tolist() == [0.0] * F
        assert layer.threshold.dtype == np.float32 and layer.n_negative_thresholds == 0
    else:
        assert layer.w_skip is None


@pytest.mark.parametrize("name, tensor", [(name, tensor) for name in TABLE for tensor in (*TABLE[name]["encoder"], *TABLE[name].get("decoder", {}))])
def test_a_tensor_of_another_shape(name: str, tensor: str) -> None:
    told = TABLE[name]
    shape = (told["encoder"] | told.get("decoder", {}))[tensor]
    wrong = [(*shape[:axis], shape[axis] + 1, *shape[axis + 1 :]) for axis in range(len(shape))] + [(*shape, 1)]
    if len(shape) == 2:
        wrong += [shape[:1], shape[::-1]]
    for bad in wrong:
        n_targets = len(bad) == 3 == len(shape) and bad[0] == F and bad[2] == D
        if n_targets or bad == shape or len(bad) > 2 and told["suffix"] == ".npz":
            continue
        shapes = {part: {name: bad if name == tensor else right for name, right in told[part].items()} for part in ("encoder", "decoder") if part in told}
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
        with pytest.raises(WeightsError, match="l: neither .npz nor .safetensors: its format is not known"):
            OpenFile(io.BytesIO(b""), path, "l").tensors()
