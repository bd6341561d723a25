# SPDX-License-Identifier: MIT OR Apache-2.0
"""One row per format: how a repo names its files and lays out its tensors, and how the numbers follow. A new format is a new row."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from oracle.weights import sidefiles
from oracle.weights.sidefiles import B_DEC, B_ENC, B_GATE, B_MAG, LOG_THRESHOLD, R_MAG, SCALING, THRESHOLD, UNUSED, W_DEC, W_ENC, W_SKIP, K, Reading, SideFile

EXTENT_LIMIT = 1 << 24  # of one dimension: a vector takes at most 128 MiB
SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")

# How a repo may tell which file holds which layer: an hf:// list in its config.yaml, its files' names alone, or
# nothing: somebody names the path.
LIST, NAMES, PATH = "a transcoders: list", "its files' names", "a path"

# What a layer's files are for: W_dec may stand in a file of its own, and a side file beside it.
LAYER_FOLDER = r"(?:^|/)layer_(\d{1,6})(?=[/._]|$)"  # how a path says its layer, where its format has no other way
ENCODER, DECODER, SIDE = "encoder", "decoder", "side"


class TensorSpec(NamedTuple):
    """A tensor: its name, with {layer} where it has the layer in it, its axes in their order, none for a single number, what it is
    for, and the file that it is in. Several may be for one thing; a file has one of them.

    One that is not `required` may be missing.
    """

    name: str
    axes: tuple[str, ...]
    part: str
    required: bool = True
    role: str = ENCODER


class Format(NamedTuple):
    """A row. Axes are d_model, d_model_out, n_features, n_targets, n_input_layers.

    `encoder_files` is how the files are called, {layer} and {stem} for what differs, `decoder_file` where W_dec stands in one of
    its own; `found_by` is how a repo says which they are, and `model_kind` what its config.yaml calls it. A file with a
    tensor of `absent` is none of this format. W_skip's axes say how it is applied: it maps its d_model to d_model_out.
    `repo_key` names the weights' repo in the JSON, `output` begins the default file name. `jumprelu_name` is what the
    JSON calls the format where there is a threshold, if that is another name. Files of a `folder` are of this format and
    of no other. `settings` say how the numbers follow from the tensors, the `side_file` and what is said elsewhere. A path says its
    layer by `layer_pattern`. `owner` is whose repos have such files, where their names alone do not tell. The targets of a W_dec
    are the layers from its own on, or `all_targets`, where those before its own are zero.
    """

    name: str
    encoder_files: tuple[str, ...]
    found_by: tuple[str, ...]
    model_kind: str
    repo_key: str
    output: str
    tensors: tuple[TensorSpec, ...]
    settings: Reading = sidefiles.plain
    side_file: SideFile | None = None
    decoder_file: str | None = None
    absent: tuple[str, ...] = ()
    jumprelu_name: str | None = None
    folder: str | None = None
    layer_pattern: str = LAYER_FOLDER
    owner: str | None = None
    all_targets: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the JSON may call it."""
        return (self.name, self.jumprelu_name) if self.jumprelu_name else (self.name,)

    def schema(self, has_threshold: bool) -> str:
        """What the JSON calls it."""
        return self.jumprelu_name or self.name if has_threshold else self.name

    @property
    def encoder_file(self) -> str:
        return self.encoder_files[0]

    @property
    def suffixes(self) -> tuple[str, ...]:
        return tuple(suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in self.encoder_files))

    @property
    def files(self) -> dict[str, str]:
        """How the files of a layer are called beside that of its encoder, by their role."""
        beside = {DECODER: self.decoder_file, SIDE: self.side_file.name if self.side_file else None}
        return {ENCODER: self.encoder_file, **{role: name for role, name in beside.items() if name}}

    def of_role(self, role: str) -> tuple[TensorSpec, ...]:
        """The tensors of one of a layer's files, W_enc first."""
        return tuple(spec for spec in self.tensors if spec.role == role)

    def of_part(self, part: str) -> tuple[TensorSpec, ...]:
        """The tensors that may be for something."""
        return tuple(spec for spec in self.tensors if spec.part == part)

    @property
    def has_targets(self) -> bool:
        """Whether its decoder writes to several layers."""
        return any("n_targets" in spec.axes for spec in self.of_part(W_DEC))

    def layer_of(self, path: str) -> int | None:
        """The layer of a file whose name says it; None where it does not, or the name is not of this format."""
        match = self._match(path)
        if match and "layer" in match.groupdict():
            return int(match["layer"])
        named = {int(number) for number in re.findall(self.layer_pattern, path)} if match else set()
        return named.pop() if len(named) == 1 else None

    def names_file(self, path: str) -> bool:
        """Whether an encoder's file of this format is called so."""
        in_folder = self.folder is None or self.folder in path.split("/")[:-1]
        return in_folder and self._match(path) is not None

    def stem(self, path: str) -> str:
        """What stands for {stem} in a file's name."""
        match = self._match(path)
        return match["stem"] if match and "stem" in match.groupdict() else ""

    def how_specific(self, path: str) -> int:
        """How much of the name of a file that is called so is this format's own."""
        return max((len(re.sub("{.*?}", "", name)) for name in self.encoder_files if path.endswith(re.sub(".*}", "", name))), default=0)

    def _match(self, path: str) -> re.Match[str] | None:
        patterns = (
            "(?:.*/)?" + re.escape(name).replace(re.escape("{layer}"), "(?P<layer>0|[1-9][0-9]{0,5})").replace(re.escape("{stem}"), "(?P<stem>[^/]+?)")
            for name in self.encoder_files
        )
        return next((match for match in (re.fullmatch(pattern, path) for pattern in patterns) if match), None)

    def holds(self, names: Collection[str], layer: int) -> bool:
        """Whether an encoder's file with tensors of these names can be one of this format."""
        specs = {spec.name.format(layer=layer): spec.part for spec in self.of_role(ENCODER)}
        required = {spec.part for spec in self.of_role(ENCODER) if spec.required}
        present = [specs[name] for name in names if name in specs]
        return required <= set(present) and not set(self.absent) & set(names) and len(present) == len(names)


_D_MODEL, _N_FEATURES, _OUT = ("d_model",), ("n_features",), ("d_model_out",)
_BY_INPUT, _BY_FEATURE = ("d_model", "n_features"), ("n_features", "d_model")
_TO_OUTPUT, _FROM_OUTPUT = ("n_features", "d_model_out"), ("d_model_out", "n_features")
_SKIP_BY_OUTPUT, _SKIP_BY_INPUT = ("d_model_out", "d_model"), ("d_model", "d_model_out")
_TO_TARGETS = ("n_features", "n_targets", "d_model")
_BLOCK_PATTERN = r"(?:blocks[._]|layer_|(?:^|/)(?=\d+-(?:res|att|mlp)))(\d{1,6})(?=\D|$)"  # 6-res-jb, as Neuronpedia calls them

_GEMMA_SCOPE = Format(
    name="GemmaScopeNpz",
    encoder_files=("params.npz",),
    found_by=(LIST,),
    model_kind="transcoder_set",
    repo_key="weights_repo",
    output="plt",
    tensors=(
        TensorSpec("W_enc", _BY_INPUT, W_ENC),
        TensorSpec("b_enc", _N_FEATURES, B_ENC),
        TensorSpec("W_dec", _BY_FEATURE, W_DEC),
        TensorSpec("b_dec", _D_MODEL, B_DEC),
        TensorSpec("threshold", _N_FEATURES, THRESHOLD),
    ),
    absent=("W_skip",),
)

_SAE = _GEMMA_SCOPE._replace(
    name="Sae",
    found_by=(PATH,),
    model_kind="",
    repo_key="sae_repo",
    output="sae",
    tensors=(*_GEMMA_SCOPE.tensors[:-1], TensorSpec("threshold", _N_FEATURES, THRESHOLD, required=False)),
)

_GEMMA_SCOPE_2 = Format(
    name="GemmaScope2",
    encoder_files=("params.safetensors",),
    found_by=(LIST, PATH),
    model_kind="transcoder_set",
    repo_key="weights_repo",
    output="plt",
    tensors=(
        TensorSpec("w_enc", _BY_INPUT, W_ENC),
        TensorSpec("b_enc", _N_FEATURES, B_ENC),
        TensorSpec("w_dec", _BY_FEATURE, W_DEC),
        TensorSpec("b_dec", _D_MODEL, B_DEC),
        TensorSpec("threshold", _N_FEATURES, THRESHOLD),
        TensorSpec("affine_skip_connection", _SKIP_BY_INPUT, W_SKIP, required=False),
    ),
)

# lm-saes, dictionary_learning, sparsify and others have torch's linear layers.
_LINEAR = (
    TensorSpec("encoder.weight", _BY_FEATURE, W_ENC),
    TensorSpec("encoder.bias", _N_FEATURES, B_ENC),
    TensorSpec("decoder.weight", _BY_INPUT, W_DEC),
    TensorSpec("decoder.bias", _D_MODEL, B_DEC),
)

_SAE_OF_A_PATH = Format(
    name="SaeLens",
    encoder_files=("sae_weights.safetensors",),
    found_by=(PATH,),
    model_kind="",
    repo_key="sae_repo",
    output="sae",
    tensors=(
        TensorSpec("W_enc", _BY_INPUT, W_ENC),
        TensorSpec("b_enc", _N_FEATURES, B_ENC, required=False),
        TensorSpec("W_dec", _TO_OUTPUT, W_DEC),
        TensorSpec("b_dec", _OUT, B_DEC),
        TensorSpec("threshold", _N_FEATURES, THRESHOLD, required=False),
        TensorSpec("b_gate", _N_FEATURES, B_GATE, required=False),
        TensorSpec("r_mag", _N_FEATURES, R_MAG, required=False),
        TensorSpec("b_mag", _N_FEATURES, B_MAG, required=False),
        TensorSpec("W_skip", _SKIP_BY_OUTPUT, W_SKIP, required=False),
        TensorSpec("scaling_factor", _N_FEATURES, SCALING, required=False),
    ),
    settings=sidefiles.saelens,
    side_file=sidefiles.SAELENS,
    layer_pattern=_BLOCK_PATTERN,
)

FORMATS = (
    _GEMMA_SCOPE,
    Format(
        name="PltBundle",
        encoder_files=("layer_{layer}.safetensors",),
        found_by=(LIST, NAMES, PATH),
        model_kind="transcoder_set",
        repo_key="plt_repo",
        output="plt",
        tensors=(
            TensorSpec("W_enc", _BY_FEATURE, W_ENC),
            TensorSpec("b_enc", _N_FEATURES, B_ENC),
            TensorSpec("W_dec", _BY_FEATURE, W_DEC),
            TensorSpec("b_dec", _D_MODEL, B_DEC),
            TensorSpec("activation_function.threshold", _N_FEATURES, THRESHOLD, required=False),
            TensorSpec("W_skip", _SKIP_BY_OUTPUT, W_SKIP, required=False),
            TensorSpec("k", (), K, required=False),
        ),
        absent=("log_thresholds",),
    ),
    Format(
        name="CltSplit",
        encoder_files=("W_enc_{layer}.safetensors",),
        found_by=(NAMES, PATH),
        model_kind="cross_layer_transcoder",
        repo_key="clt_repo",
        output="clt",
        tensors=(
            TensorSpec("W_enc_{layer}", _BY_FEATURE, W_ENC),
            TensorSpec("b_enc_{layer}", _N_FEATURES, B_ENC),
            TensorSpec("W_dec_{layer}", _TO_TARGETS, W_DEC, role=DECODER),
            TensorSpec("b_dec_{layer}", _D_MODEL, B_DEC),
            TensorSpec("threshold_{layer}", _N_FEATURES, THRESHOLD, required=False),
        ),
        decoder_file="W_dec_{layer}.safetensors",
        jumprelu_name="CltSplitJumpReLU",  # candle-mi's tests assert it
    ),
    _GEMMA_SCOPE_2,
    _GEMMA_SCOPE_2._replace(
        name="GemmaScope2Clt",
        encoder_files=("params_layer_{layer}.safetensors",),
        found_by=(NAMES, PATH),
        model_kind="cross_layer_transcoder",
        repo_key="clt_repo",
        output="clt",
        tensors=tuple(spec._replace(axes=_TO_TARGETS) if spec.part == W_DEC else spec for spec in _GEMMA_SCOPE_2.tensors),
        all_targets=True,
    ),
    _GEMMA_SCOPE_2._replace(
        name="GemmaScope2Crosscoder",
        encoder_files=("params_layer_{layer}.safetensors", "params.safetensors"),
        found_by=(PATH,),
        model_kind="",
        repo_key="sae_repo",
        output="crosscoder",
        tensors=(
            TensorSpec("w_enc", ("n_input_layers", "d_model", "n_features"), W_ENC),
            TensorSpec("b_enc", _N_FEATURES, B_ENC),
            TensorSpec("w_dec", _TO_TARGETS, W_DEC),
            *(TensorSpec("b_dec", axes, B_DEC) for axes in (("n_targets", "d_model"), _D_MODEL)),
            TensorSpec("threshold", _N_FEATURES, THRESHOLD),
        ),
        folder="crosscoder",
        layer_pattern=r"(?!)",  # the folder's numbers are those of all its layers
    ),
    _SAE,
    _SAE._replace(name="EmbeddingSae", folder="embedding", settings=sidefiles.embedding),
    _SAE_OF_A_PATH,
    _SAE_OF_A_PATH._replace(
        name="DictionaryLearning",
        encoder_files=("ae.pt",),
        tensors=(
            *(spec._replace(required=spec.part != B_ENC) for spec in _LINEAR if spec.part != B_DEC),
            TensorSpec("W_enc", _BY_INPUT, W_ENC),
            TensorSpec("b_enc", _N_FEATURES, B_ENC, required=False),
            TensorSpec("W_dec", _BY_FEATURE, W_DEC),
            *(TensorSpec(name, _D_MODEL, B_DEC) for name in ("b_dec", "bias", "decoder_bias")),
            *(TensorSpec("threshold", axes, THRESHOLD, required=False) for axes in ((), _N_FEATURES)),
            TensorSpec("gate_bias", _N_FEATURES, B_GATE, required=False),
            TensorSpec("r_mag", _N_FEATURES, R_MAG, required=False),
            TensorSpec("mag_bias", _N_FEATURES, B_MAG, required=False),
            TensorSpec("k", (), K, required=False),
            TensorSpec("group_sizes", _N_FEATURES, UNUSED, required=False),
        ),
        settings=sidefiles.dictionary_learning,
        side_file=sidefiles.DICTIONARY_LEARNING,
    ),
    _SAE_OF_A_PATH._replace(
        name="QwenScope",
        encoder_files=("layer{layer}.sae.pt",),
        tensors=(
            TensorSpec("W_enc", _BY_FEATURE, W_ENC),
            TensorSpec("b_enc", _N_FEATURES, B_ENC),
            TensorSpec("W_dec", _BY_INPUT, W_DEC),
            TensorSpec("b_dec", _D_MODEL, B_DEC),
        ),
        settings=sidefiles.qwen_scope,
        side_file=None,
    ),
    _SAE_OF_A_PATH._replace(
        name="LlamaScope",
        encoder_files=("checkpoints/final.safetensors",),
        tensors=_LINEAR,
        settings=sidefiles.llama_scope,
        side_file=sidefiles.LLAMA_SCOPE,
        layer_pattern=r"(?:^|/|-)L(\d{1,4})[A-Z]+(?=[-/]|$)",
    ),
    _SAE_OF_A_PATH._replace(
        name="LlamaScopeR1",
        encoder_files=("sae_weights.safetensors",),
        tensors=(*_LINEAR, TensorSpec("log_jumprelu_threshold", _N_FEATURES, LOG_THRESHOLD)),
        settings=sidefiles.llama_scope,
        side_file=sidefiles.LLAMA_SCOPE_R1,
        layer_pattern=r"(?:^|/|-)L(\d{1,4})[A-Z]+(?=[-/]|$)",
    ),
    _SAE_OF_A_PATH._replace(
        name="Sparsify",
        encoder_files=("sae.safetensors",),
        tensors=(
            *_LINEAR[:2],
            TensorSpec("W_dec", _TO_OUTPUT, W_DEC),
            TensorSpec("b_dec", _OUT, B_DEC),
            TensorSpec("W_skip", _SKIP_BY_OUTPUT, W_SKIP, required=False),
        ),
        settings=sidefiles.sparsify,
        side_file=sidefiles.SPARSIFY,
        layer_pattern=r"(?:^|/)(?:layers|h)[._](\d{1,6})(?=\D|$)",
    ),
    _SAE_OF_A_PATH._replace(
        name="Goodfire",
        encoder_files=("{stem}-l{layer}.pth", "{stem}-l{layer}.pt"),
        tensors=tuple(spec._replace(name=spec.name.replace("coder.", "coder_linear.")) for spec in _LINEAR),
        settings=sidefiles.plain, side_file=None, owner="Goodfire",
    ),
    _SAE_OF_A_PATH._replace(
        name="QResearch",
        encoder_files=("{stem}-l{layer}.pt",),
        tensors=_LINEAR,
        settings=sidefiles.plain, side_file=None, owner="qresearch",
    ),
    _SAE_OF_A_PATH._replace(
        name="HookZ",
        encoder_files=("{stem}.pt",),
        tensors=_GEMMA_SCOPE.tensors[:-1],
        settings=sidefiles.minus_b_dec,
        side_file=sidefiles.HOOK_Z,
        layer_pattern=r"_L(\d{1,4})(?=_)",
    ),
)

REPO_KEYS = tuple(dict.fromkeys(row.repo_key for row in FORMATS))  # what the formats call the repo of their weights


def schemas() -> tuple[str, ...]:
    """What the JSON may call the formats."""
    return tuple(name for row in FORMATS for name in row.names)


def by_name(name: str) -> Format:
    """The row of that name. Raises KeyError."""
    return {schema: row for row in FORMATS for schema in row.names}[name]
