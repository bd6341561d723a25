# SPDX-License-Identifier: MIT OR Apache-2.0
"""Exact vectors of every format: a row for each gate and input that a format has, and the files that are written of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from oracle.arithmetic.constants import ABSTOPK, GATED, GROUPMAX, JUMPRELU, LAYER_NORM, SCALED, SELECTIONS, TOPK, UNIT_RMS
from oracle.errors import BadUse, did_you_mean
from oracle.references.layer import Arithmetic
from oracle.references.plan import LayerFiles
from oracle.sources.curation import HubFile
from oracle.vectors import features
from oracle.vectors.exact import NOTES, Tensors, answer, true_flags
from oracle.vectors.features import N_FEATURES, N_INPUTS, SQUARE, Stimulus
from oracle.vectors.files import BFLOAT16, FLOAT32, Arrays, weight_file
from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, LIST, NAMES, SIDE, Format, TensorSpec
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.sidefiles import B_DEC, B_ENC, B_GATE, B_MAG, LOG_THRESHOLD, R_MAG, THRESHOLD, W_DEC, W_ENC, W_SKIP, Context, Settings
from oracle.weights.sidefiles import K as STORED_K

OWNER = "oracle-vectors"  # not that of a real repo
K, SQUARE_K, GROUPS = 20, 4, 10
CROSSCODER, N_LAYERS = "crosscoder", 2
FOLDER = "layer_{layer}/width_{n}/average_l0_40"
FOLDERS = {
    "SaeLens": "blocks.{layer}.hook_resid_post", "DictionaryLearning": "resid_post_layer_{layer}/trainer_0", "Sparsify": "layers.{layer}",
    "LlamaScope": "Vectors-L{layer}R-8x", "LlamaScopeR1": "vectors/L{layer}R", "HookZ": "vectors", "GemmaScope2Crosscoder": "layer_0_1_width_{n}_l0_40",
}  # fmt: skip
OF_DECODERS = {"decoder", "wide-decoder", "b_dec-matters", "skip", "targets"}
_PATH_KEYS = {ENCODER: "path", DECODER: "decoder_path", SIDE: "side_path"}
Document = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A row: vectors of a format with one gate and one input.

    `settings` are what a reader has to make of the files, `side` and `config` what stands beside the weights, `parts` the tensors that
    need not be there. `names` chooses where a format has several names for one thing, `input_scale` is said by an option alone.
    The `is_square` ones have two layers of 16 features, stored as bfloat16 where the container has it.
    """

    format: str
    what: str = ""
    settings: Settings = Settings()
    parts: tuple[str, ...] = ()
    side: Document | None = None
    config: Document = field(default_factory=dict)
    names: tuple[str, ...] = ()
    input_scale: float | None = None
    d_out: int = N_INPUTS
    is_square: bool = False

    @property
    def name(self) -> str:
        """What its folder is called."""
        return "-".join(filter(None, (self.format, self.what)))

    @property
    def row(self) -> Format:
        return formats.by_name(self.format)

    @property
    def repo(self) -> str:
        """The repo that has such files; of QwenScope its name says k."""
        return f"{OWNER}/{self.format}" + (f"-W1K-L0_{self.settings.k}" if self.format == "QwenScope" else "")

    @property
    def context(self) -> Context:
        k = self.config.get("k")
        return Context(self.repo, self.config.get("activation"), None if k is None else int(k), self.input_scale)


def _sae(what: str, settings: Settings, *parts: str, d_out: int = N_INPUTS, input_scale: float | None = None, **side: Any) -> Variant:
    """One of SAELens's."""
    document = {"architecture": "standard", **side, "d_in": N_INPUTS, "d_sae": N_FEATURES, "metadata": {"sae_lens_version": "6.0.0"}}
    return Variant("SaeLens", what, settings, parts, document, d_out=d_out, input_scale=input_scale)


def _dictionary(kind: str, settings: Settings, *parts: str, names: tuple[str, ...], **more: Any) -> Variant:
    """One of dictionary_learning's."""
    return Variant("DictionaryLearning", kind, settings, parts, {"trainer": {"dict_class": kind, **more}}, names=names)


_JUMP = Settings(JUMPRELU)
_LESS_B_DEC = Settings(minus_b_dec=True)
_LM_SAES = {
    "act_fn": JUMPRELU, "d_model": N_INPUTS, "d_sae": N_FEATURES, "dataset_average_activation_norm": {"in": 2.0, "out": 8.0}, "norm_activation": "dataset-wise",
    "hook_point_in": "blocks.0.hook_resid_post", "hook_point_out": "blocks.0.hook_resid_post",
}  # fmt: skip
_SCALED_JUMP = Settings(JUMPRELU, normalised=SCALED, factor=2.0, back=2.0)
_LEVEL = 0.0625
_WHOLE_TOPK = _LESS_B_DEC._replace(gate=TOPK, k=K)
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_GATES = (B_GATE, R_MAG, B_MAG)

_OF_FORMATS = (
    Variant("GemmaScopeNpz", "", _JUMP, (THRESHOLD,)),
    Variant("PltBundle", "", Settings()),
    Variant("PltBundle", "jumprelu", _JUMP, (THRESHOLD,)),
    Variant("PltBundle", "topk", Settings(TOPK, K, relu=False), (), config={"activation": TOPK, "k": K}),
    Variant("PltBundle", "skip", Settings(), (W_SKIP,)),
    Variant("CltSplit", "", Settings()),
    Variant("CltSplit", "jumprelu", _JUMP, (THRESHOLD,)),
    Variant("GemmaScope2", "", _JUMP, (THRESHOLD,)),
    Variant("GemmaScope2", "skip", _JUMP, (THRESHOLD, W_SKIP)),
    Variant("GemmaScope2Clt", "", _JUMP, (THRESHOLD, W_SKIP)),
    Variant("GemmaScope2Crosscoder", "", _JUMP, (THRESHOLD,), d_out=N_INPUTS // N_LAYERS),
    Variant("Sae", "", _JUMP, (THRESHOLD,)),
    Variant("Sae", "relu", Settings()),
    Variant("EmbeddingSae", "", _JUMP._replace(root_scaled=True), (THRESHOLD,)),
    _sae("", _LESS_B_DEC),
    _sae("unshifted", Settings(), apply_b_dec_to_input=False),
    _sae("jumprelu", _JUMP._replace(minus_b_dec=True), THRESHOLD, architecture=JUMPRELU),
    _sae("topk", _WHOLE_TOPK, architecture=TOPK, k=K),
    _sae("topk-norms", _WHOLE_TOPK._replace(by_decoder_norm=True), architecture=TOPK, k=K, rescale_acts_by_decoder_norm=True),
    _sae("abstopk", _WHOLE_TOPK._replace(gate=ABSTOPK), architecture=ABSTOPK, k=K),
    _sae("gated", _LESS_B_DEC._replace(gate=GATED), *_GATES, architecture=GATED),
    _sae("unit-rms", _LESS_B_DEC._replace(normalised=UNIT_RMS), normalize_activations="constant_norm_rescale"),
    _sae("unit-rms-unshifted", Settings(normalised=UNIT_RMS), normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False),
    _sae("layer-norm", _LESS_B_DEC._replace(normalised=LAYER_NORM), normalize_activations="layer_norm"),
    _sae("scaled", _LESS_B_DEC._replace(normalised=SCALED, factor=2.0, back=0.5), input_scale=2.0, normalize_activations="expected_average_only_in"),
    _sae("transcoder", Settings(), d_out=12, architecture="transcoder", apply_b_dec_to_input=False),
    _sae("skip-transcoder", Settings(), W_SKIP, d_out=12, architecture="skip_transcoder", apply_b_dec_to_input=False),
    _sae("jumprelu-transcoder", _JUMP, THRESHOLD, d_out=12, architecture="jumprelu_transcoder", apply_b_dec_to_input=False),
    _dictionary("AutoEncoder", _LESS_B_DEC, names=(*_LINEAR, "bias")),
    _dictionary("AutoEncoderTopK", _WHOLE_TOPK, THRESHOLD, STORED_K, names=(*_LINEAR, "b_dec"), k=K),
    _dictionary("BatchTopKSAE", _JUMP._replace(level=0.125, minus_b_dec=True), THRESHOLD, STORED_K, names=(*_LINEAR, "b_dec")),
    _dictionary("JumpReluAutoEncoder", _JUMP, THRESHOLD, names=("W_enc", "b_enc", "W_dec", "b_dec")),
    _dictionary("GatedAutoEncoder", _LESS_B_DEC._replace(gate=GATED), *_GATES, names=("encoder.weight", "decoder.weight", "decoder_bias")),
    Variant("QwenScope", "", Settings(TOPK, K)),
    Variant("LlamaScope", "", _SCALED_JUMP._replace(level=_LEVEL, level_factor=2.0), (), {**_LM_SAES, "jump_relu_threshold": _LEVEL}),
    Variant("LlamaScopeR1", "", _SCALED_JUMP, (LOG_THRESHOLD,), _LM_SAES),
    Variant("Sparsify", "", _WHOLE_TOPK, (), {"activation": TOPK, "k": K}),
    Variant("Sparsify", "groupmax", _WHOLE_TOPK._replace(gate=GROUPMAX, k=GROUPS), (), {"activation": GROUPMAX, "k": GROUPS}),
    Variant("Sparsify", "signed", _WHOLE_TOPK._replace(gate=ABSTOPK), (), {"activation": TOPK, "k": K, "signed": True}),
    Variant("Sparsify", "transcode", Settings(TOPK, K), (W_SKIP,), {"activation": TOPK, "k": K, "transcode": True, "skip_connection": True}),
    Variant("Goodfire", "", Settings()),
    Variant("QResearch", "", Settings()),
    Variant("HookZ", "", _LESS_B_DEC, (), {"act_size": N_INPUTS, "dict_size": N_FEATURES}),
)  # fmt: skip


def _square(row: Format) -> Variant:
    """The first row of a format once more, with square weights and two layers."""
    first = next(variant for variant in _OF_FORMATS if variant.format == row.name)
    settings = first.settings if first.settings.k is None else first.settings._replace(k=SQUARE_K)
    side = first.side and {key: SQUARE_K if key == "k" else SQUARE if value == N_FEATURES else value for key, value in first.side.items()}
    names = _LINEAR + ("bias",) if row.name == "DictionaryLearning" else ()
    return replace(first, what="square", settings=settings, side=side, names=names, is_square=True)


VARIANTS = (*_OF_FORMATS, *(_square(row) for row in formats.FORMATS))


def of(name: str) -> list[Variant]:
    """The rows of a format, or the one that is called so. Raises BadUse."""
    chosen = [variant for variant in VARIANTS if name in ("all", variant.format, variant.name)]
    if not chosen:
        names = ", ".join(dict.fromkeys(variant.format for variant in VARIANTS))
        raise BadUse(f"{name!r} is no format that vectors are made of: all, {names}, or one of their folders' names{did_you_mean(name, [v.name for v in VARIANTS])}")
    return chosen


# --- files ------------------------------------------------------------------------------------------------------------


def layer_tensors(variant: Variant, layer: int) -> Tensors:
    """A layer's tensors by what they are for, float32: W_enc [n_inputs, n_features], W_dec [n_features, ..., d_out]."""
    row = variant.row
    targets: tuple[int, ...] = ()
    if row.folder == CROSSCODER:
        targets = N_LAYERS, N_LAYERS
    elif row.has_targets:
        targets = (N_LAYERS - layer,)
    n_features = SQUARE if variant.is_square else N_FEATURES
    return features.weights(variant.settings, variant.parts, variant.d_out, targets, n_features, layer)


def layer_files(variant: Variant, layer: int, tensors: Tensors) -> dict[str, tuple[str, bytes]]:
    """A layer's files by their role: path and bytes."""
    row = variant.row
    arrays: dict[str, Arrays] = {ENCODER: {}, DECODER: {}}
    for spec in _specs(variant):
        arrays[spec.role][spec.name.format(layer=layer)] = K if spec.part == STORED_K else _stored(variant, tensors, spec, layer if row.all_targets else 0)
    path = _path(row, layer, tensors[W_ENC].shape[1])
    dtype = BFLOAT16 if variant.is_square else FLOAT32
    files = {ENCODER: (path, weight_file(path, arrays[ENCODER], dtype))}
    for role, file in LayerFiles.beside(row, layer, HubFile(variant.repo, None, path)).files.items():
        if role == DECODER:
            files[role] = file.path, weight_file(file.path, arrays[DECODER], dtype)
        elif role == SIDE:
            files[role] = file.path, (json.dumps(variant.side) + "\n").encode()
    return files


def _specs(variant: Variant) -> list[TensorSpec]:
    """The tensors of its files, each thing once."""
    needed = {W_ENC, W_DEC, B_DEC, *variant.parts} | ({B_ENC} if variant.settings.gate != GATED else set())
    if variant.settings.level is not None:
        needed -= {THRESHOLD} if variant.row.of_part(LOG_THRESHOLD) else set()
    is_number = variant.settings.level is not None or variant.settings.gate != JUMPRELU  # a threshold for all features, or one that is not used
    specs: dict[str, TensorSpec] = {}
    for spec in variant.row.tensors:
        chosen = not variant.names or spec.name in variant.names or spec.part not in (W_ENC, B_ENC, W_DEC, B_DEC)
        if chosen and spec.part in needed and not (spec.part == THRESHOLD and (spec.axes == ()) != is_number):
            specs.setdefault(spec.part, spec)
    return list(specs.values())


def _stored(variant: Variant, tensors: Tensors, spec: TensorSpec, targets_before: int) -> np.ndarray:
    """A tensor with the axes that its file has."""
    values = tensors[spec.part] if spec.part in tensors else np.array(variant.settings.level or 0, np.float32)
    if spec.part == W_ENC:
        values = values.T if spec.axes[0] == "n_features" else values.reshape(N_LAYERS, -1, values.shape[1]) if len(spec.axes) == 3 else values
    elif spec.part == W_DEC:
        values = values.T if spec.axes[-1] == "n_features" else values
        if targets_before:
            values = np.concatenate([np.zeros((len(values), targets_before, values.shape[2]), np.float32), values], axis=1)
    elif spec.part == W_SKIP and spec.axes[0] != "d_model":
        values = values.T
    return np.array(values, order="C")


def _path(row: Format, layer: int, n_features: int) -> str:
    """Where a layer's encoder lies in its repo."""
    name = row.encoder_file.format(layer=layer, stem="vectors" if "{layer}" in row.encoder_file else f"vectors_L{layer}_z")
    if not row.folder and (NAMES in row.found_by or "{layer}" in row.encoder_file):
        return name
    return "/".join(filter(None, (row.folder, FOLDERS.get(row.name, FOLDER).format(layer=layer, n=n_features), name)))


# --- documents --------------------------------------------------------------------------------------------------------


def files_of(variant: Variant) -> dict[str, bytes]:
    """All files of a row's folder by their paths, vectors.json among them."""
    files: dict[str, bytes] = {}
    layers: list[dict[str, Any]] = []
    cases: list[Document] = []
    opened: list[LayerWeights] = []
    for layer in range(N_LAYERS) if variant.is_square else (N_LAYERS - 1 if variant.row.all_targets else 0,):
        tensors = layer_tensors(variant, layer)
        of_layer = layer_files(variant, layer, tensors)
        files |= dict(of_layer.values())
        readers = {role: OpenFile(io.BytesIO(content), path, path) for role, (path, content) in of_layer.items()}
        opened.append(LayerWeights(variant.row, layer, readers, variant.context))
        layers.append({"layer": layer, **{_PATH_KEYS[role]: path for role, (path, _) in of_layer.items()}})
        cases += layer_cases(variant, tensors, layer)
    config = _config(variant, [record["path"] for record in layers])
    files |= {"config.yaml": config} if config else {}
    shown = {flag for case in cases for flag in case["flags"]}
    weights, arithmetic = opened[0], Arithmetic.of(opened[0])
    document = {
        "format": arithmetic.schema, "variant": variant.name, "repo": variant.repo, "weights": layers[0]["path"], "layers": layers,
        "d_model": weights.d_model, **({"d_model_out": weights.d_out} if weights.d_out != weights.d_model else {}),
        **({"n_input_layers": weights.n_input_layers} if weights.n_input_layers else {}), "n_features": weights.n_features,
        "encoder_formula": arithmetic.negative_formula if arithmetic.n_negative_thresholds else arithmetic.formula,
        "decoder_formula": arithmetic.decoder_formula, "gate": arithmetic.gate, "encoder_input": weights.encoder_input.record,
        "tensors": arithmetic.tensors,
        "notes": {flag: {"catches": catches, "how": how} for flag, (catches, how) in NOTES.items() if flag in shown},
        "test_cases": [{"case": number, **case} for number, case in enumerate(cases)],
    }  # fmt: skip
    return {"vectors.json": _text(document).encode(), **files}


def layer_cases(variant: Variant, tensors: Tensors, layer: int) -> list[Document]:
    """A layer's cases. Residuals whose input would be rounded are left out, and so are reconstructions that would be."""
    settings, row = variant.settings, variant.row
    first_target, own = (0, layer) if row.folder == CROSSCODER else (layer, 0)
    cases = []
    for stimulus in (features.square_stimuli if variant.is_square else features.stimuli)(settings, tensors):
        residual = features.residual_of(settings, tensors, stimulus)
        result = None if residual is None else answer(settings, tensors, residual, own)
        if residual is None or result is None:
            continue
        meant = {*stimulus.flags, *_flags(variant, stimulus)} - (OF_DECODERS if result.outputs is None else set())
        meant -= {flag for flag, targets in features.SHOWN_BY.items() if not set(targets) & set(result.active)}
        flags = true_flags(meant, settings, result)
        if not flags:
            continue
        case: Document = {
            "layer": layer, "flags": flags, "residual": residual.tolist(), "n_active": len(result.active),
            "active": [{"index": feature, "activation": float(result.values[feature])} for feature in result.active],
        }  # fmt: skip
        if result.outputs is not None:
            case["reconstructions"] = [
                {"target_layer": first_target + target, "values": values} for target, values in enumerate(result.outputs.tolist())
            ]
        cases.append(case)
    return cases


def _flags(variant: Variant, stimulus: Stimulus) -> Iterable[str]:
    """The flags that a stimulus shows on weights of one gate, and not on others."""
    settings, row, name = variant.settings, variant.row, stimulus.name
    selects = settings.gate in SELECTIONS
    rules = {
        "shut-gate": settings.gate == GATED and name in ("threshold", "dense"),
        "negative-values": settings.gate == TOPK and not settings.relu and name in ("first-feature", "none-active", "dense"),
        "positive-values": selects and (settings.relu or settings.gate == GROUPMAX) and settings.gate != ABSTOPK and name in ("first-feature", "none-active"),
        "magnitudes": settings.gate == ABSTOPK and name in ("first-feature", "none-active", "dense"),
        "groups": settings.gate == GROUPMAX and name in ("all-active", "each-block", "dense"),
        "targets": row.has_targets and name == "dense",
        "skip": W_SKIP in variant.parts and name in ("none-active", "dense"),
        "input-layers": row.folder == CROSSCODER and name in ("first-input", "last-input", "dense"),
        "layers": variant.is_square,
        "threshold": settings.gate == JUMPRELU and name == "dense" and not variant.is_square,
        "k-boundary": selects and name == "dense",
        "b_dec-matters": name == "dense",
    }
    return [flag for flag, holds in rules.items() if holds]


def _config(variant: Variant, paths: list[str]) -> bytes:
    """The config.yaml of the repo, where formats have one."""
    row = variant.row
    if not row.model_kind:
        return b""
    lines = [f"model_kind: {row.model_kind}", *(f"{key}: {value}" for key, value in variant.config.items())]
    if NAMES not in row.found_by and LIST in row.found_by:
        lines += ["transcoders:", *(f'  - "hf://{variant.repo}/{path}"' for path in paths)]
    return ("\n".join(lines) + "\n").encode()


def _text(document: Document) -> str:
    """JSON with a line for each key, and one for each case."""
    lines = []
    for key, value in document.items():
        if key in ("test_cases", "notes"):
            opening, closing = "[]" if key == "test_cases" else "{}"
            items = [json.dumps(case, separators=(",", ":")) for case in value] if opening == "[" else _members(value)
            lines.append(f'  "{key}": {opening}\n    ' + ",\n    ".join(items) + f"\n  {closing}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _members(document: Document) -> list[str]:
    return [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()]


def write(name: str, folder: Path) -> list[tuple[str, int]]:
    """Write a format's vectors, or `all`: a folder for each row. Its names, and how many cases each has. Raises BadUse."""
    written = []
    for variant in of(name):
        files = files_of(variant)
        try:
            for path, content in files.items():
                target = folder / variant.name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError as error:
            raise BadUse(f"{folder / variant.name}: the vectors cannot be written there: {error.strerror}; name another with --folder") from error
        written.append((variant.name, files["vectors.json"].count(b'{"case":')))
    return written
