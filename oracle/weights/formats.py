# SPDX-License-Identifier: MIT OR Apache-2.0
"""One row per format: how a repo names its files and lays out its tensors. A new format is a new row."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

EXTENT_LIMIT = 1 << 24  # of one dimension: a vector takes at most 128 MiB
SUFFIXES = (".npz", ".safetensors")

# How a repo may tell which file holds which layer: an hf:// list in its config.yaml, its files' names alone, or
# nothing: somebody names the path.
LIST, NAMES, PATH = "a transcoders: list", "its files' names", "a path"

ENCODER, DECODER = "encoder", "decoder"  # what a layer's files are for: W_dec may stand in a file of its own


@dataclass(frozen=True)
class TensorSpec:
    """A tensor: its name, with {layer} where it has the layer in it, its axes in their order, and the file that it is in.

    One that is not `required` may be missing.
    """

    name: str
    axes: tuple[str, ...]
    required: bool = True
    role: str = ENCODER


@dataclass(frozen=True)
class Format:
    """A row. A tensor of None: the format has none such. Axes are d_model, n_features and n_targets.

    `encoder_file` is how the files are called in a repo that has them itself, `decoder_file` where W_dec stands in one of
    its own; `found_by` is how a repo says which they are, and `model_kind` what its config.yaml calls it. A file with a
    tensor of `absent` is none of this format. W_skip's axes say how it is applied: it maps its d_model to d_model_out.
    `repo_key` names the weights' repo in the JSON, `output` begins the default file name. `jumprelu_name` is what the
    JSON calls the format where there is a threshold, if that is another name. Files of a `folder` are of this format and
    of no other. `root_scaled` is whether residuals are divided, and outputs multiplied, by the root of d_model.
    """

    name: str
    encoder_file: str
    found_by: tuple[str, ...]
    model_kind: str
    repo_key: str
    output: str
    w_enc: TensorSpec
    b_enc: TensorSpec
    w_dec: TensorSpec
    b_dec: TensorSpec
    threshold: TensorSpec | None = None
    w_skip: TensorSpec | None = None
    decoder_file: str | None = None
    absent: tuple[str, ...] = ()
    jumprelu_name: str | None = None
    folder: str | None = None
    root_scaled: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the JSON may call it."""
        return (self.name, self.jumprelu_name) if self.jumprelu_name else (self.name,)

    def schema(self, has_threshold: bool) -> str:
        """What the JSON calls it."""
        return self.jumprelu_name or self.name if has_threshold else self.name

    @property
    def suffix(self) -> str:
        return next(suffix for suffix in SUFFIXES if self.encoder_file.endswith(suffix))

    @property
    def files(self) -> dict[str, str]:
        """How the files of a layer are called, by their role."""
        return {ENCODER: self.encoder_file, **({DECODER: self.decoder_file} if self.decoder_file else {})}

    def tensors(self, role: str) -> tuple[TensorSpec, ...]:
        """Those of one of a layer's files, W_enc first."""
        specs = (self.w_enc, self.b_enc, self.w_dec, self.b_dec, self.threshold, self.w_skip)
        return tuple(spec for spec in specs if spec and spec.role == role)

    def encoder_formula(self, has_threshold: bool, has_negative_threshold: bool = False) -> str:
        """What is computed, as the field's references write it; thresholds below zero let nothing negative through."""
        w_enc = _base(self.w_enc.name) + (".T" if self.w_enc.axes[0] == "d_model" else "")
        x = "(residual / sqrt(d_model))" if self.root_scaled else "residual"
        if not has_threshold:
            return f"ReLU({w_enc} @ {x} + b_enc)"
        gate = "max(threshold, 0)" if has_negative_threshold else "threshold"
        return f"pre = {w_enc} @ {x} + b_enc; acts = pre * (pre > {gate})"

    def layer_of(self, path: str) -> int | None:
        """The layer of a file of a repo whose files' names say it; None where the name is not of this format."""
        match = re.fullmatch(self._name_pattern, path)
        return int(match["layer"]) if match and "layer" in match.groupdict() else None

    def names_file(self, path: str) -> bool:
        """Whether an encoder's file of this format is called so."""
        in_folder = self.folder is None or self.folder in path.split("/")[:-1]
        return in_folder and re.fullmatch(self._name_pattern, path) is not None

    @property
    def _name_pattern(self) -> str:
        return "(?:.*/)?" + re.escape(self.encoder_file).replace(re.escape("{layer}"), "(?P<layer>0|[1-9][0-9]{0,5})")

    def holds(self, names: Collection[str], layer: int) -> bool:
        """Whether an encoder's file with tensors of these names can be one of this format."""
        required = (spec.name.format(layer=layer) for spec in self.tensors(ENCODER) if spec.required)
        return set(required) <= set(names) and not set(self.absent) & set(names)


_D_MODEL, _N_FEATURES = ("d_model",), ("n_features",)
_BY_INPUT, _BY_FEATURE = ("d_model", "n_features"), ("n_features", "d_model")

_GEMMA_SCOPE = Format(
    name="GemmaScopeNpz",
    encoder_file="params.npz",
    found_by=(LIST,),
    model_kind="transcoder_set",
    repo_key="weights_repo",
    output="plt",
    w_enc=TensorSpec("W_enc", _BY_INPUT),
    b_enc=TensorSpec("b_enc", _N_FEATURES),
    w_dec=TensorSpec("W_dec", _BY_FEATURE),
    b_dec=TensorSpec("b_dec", _D_MODEL),
    threshold=TensorSpec("threshold", _N_FEATURES),
    absent=("W_skip",),
)

_SAE = replace(
    _GEMMA_SCOPE,
    name="Sae",
    found_by=(PATH,),
    model_kind="",
    repo_key="sae_repo",
    output="sae",
    threshold=TensorSpec("threshold", _N_FEATURES, required=False),
)

FORMATS = (
    _GEMMA_SCOPE,
    Format(
        name="PltBundle",
        encoder_file="layer_{layer}.safetensors",
        found_by=(LIST, NAMES, PATH),
        model_kind="transcoder_set",
        repo_key="plt_repo",
        output="plt",
        w_enc=TensorSpec("W_enc", _BY_FEATURE),
        b_enc=TensorSpec("b_enc", _N_FEATURES),
        w_dec=TensorSpec("W_dec", _BY_FEATURE),
        b_dec=TensorSpec("b_dec", _D_MODEL),
        threshold=TensorSpec("activation_function.threshold", _N_FEATURES, required=False),
        w_skip=TensorSpec("W_skip", ("d_model_out", "d_model"), required=False),
        absent=("log_thresholds",),
    ),
    Format(
        name="CltSplit",
        encoder_file="W_enc_{layer}.safetensors",
        found_by=(NAMES, PATH),
        model_kind="cross_layer_transcoder",
        repo_key="clt_repo",
        output="clt",
        w_enc=TensorSpec("W_enc_{layer}", _BY_FEATURE),
        b_enc=TensorSpec("b_enc_{layer}", _N_FEATURES),
        w_dec=TensorSpec("W_dec_{layer}", ("n_features", "n_targets", "d_model"), role=DECODER),
        b_dec=TensorSpec("b_dec_{layer}", _D_MODEL),
        threshold=TensorSpec("threshold_{layer}", _N_FEATURES, required=False),
        decoder_file="W_dec_{layer}.safetensors",
        jumprelu_name="CltSplitJumpReLU",  # candle-mi's tests assert it
    ),
    Format(
        name="GemmaScope2",
        encoder_file="params.safetensors",
        found_by=(LIST, PATH),
        model_kind="transcoder_set",
        repo_key="weights_repo",
        output="plt",
        w_enc=TensorSpec("w_enc", _BY_INPUT),
        b_enc=TensorSpec("b_enc", _N_FEATURES),
        w_dec=TensorSpec("w_dec", _BY_FEATURE),
        b_dec=TensorSpec("b_dec", _D_MODEL),
        threshold=TensorSpec("threshold", _N_FEATURES),
        w_skip=TensorSpec("affine_skip_connection", ("d_model", "d_model_out"), required=False),
    ),
    _SAE,
    replace(_SAE, name="EmbeddingSae", folder="embedding", root_scaled=True),
)

REPO_KEYS = tuple(dict.fromkeys(row.repo_key for row in FORMATS))  # what the formats call the repo of their weights


def schemas() -> tuple[str, ...]:
    """What the JSON may call the formats."""
    return tuple(name for row in FORMATS for name in row.names)


def by_name(name: str) -> Format:
    """The row of that name. Raises KeyError."""
    return {schema: row for row in FORMATS for schema in row.names}[name]


def _base(name: str) -> str:
    return name.partition("_{")[0]
