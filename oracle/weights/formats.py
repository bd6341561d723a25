# SPDX-License-Identifier: MIT OR Apache-2.0
"""One row per transcoder schema: how a repo names its files and lays out its tensors. A new schema is a new row."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

SUFFIXES = (".npz", ".safetensors")

# How a repo may tell which file holds which layer: an hf:// list in its config.yaml, its files' names alone, or
# nothing: somebody names the path.
LIST, NAMES, PATH = "a transcoders: list", "its files' names", "a path"


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: its name, with {layer} where it has the layer in it, and its axes in their order.

    One that is not `required` may be missing.
    """

    name: str
    axes: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Schema:
    """A row. Places of None: the schema has no such tensor. Axes are d_model, n_features and n_targets.

    `file` is how the files are called in a repo that has them itself, `decoder_file` where W_dec stands in one of its
    own; `found_by` is how a repo says which they are, and `model_kind` what its config.yaml calls it. A file with a
    tensor of `absent` is none of this schema. W_skip's axes say how it is applied: it maps its d_model to d_model_out.
    `repo_key` names the weights' repo in the JSON, `output` begins the default file name.
    """

    name: str
    file: str
    found_by: tuple[str, ...]
    model_kind: str
    repo_key: str
    output: str
    w_enc: Place
    b_enc: Place
    w_dec: Place
    b_dec: Place
    threshold: Place | None = None
    w_skip: Place | None = None
    decoder_file: str | None = None
    absent: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        return next(suffix for suffix in SUFFIXES if self.file.endswith(suffix))

    @property
    def places(self) -> tuple[Place, ...]:
        """Those of the encoder's file; W_dec stands there too, unless it has a file of its own."""
        there = (self.w_enc, self.b_enc, None if self.decoder_file else self.w_dec, self.b_dec, self.threshold, self.w_skip)
        return tuple(place for place in there if place)

    def encoder_formula(self, has_threshold: bool, has_negative: bool = False) -> str:
        """What is computed, as the field's references write it; thresholds below zero let nothing negative through."""
        w_enc = _base(self.w_enc.name) + (".T" if self.w_enc.axes[0] == "d_model" else "")
        if not has_threshold:
            return f"ReLU({w_enc} @ residual + b_enc)"
        gate = "max(threshold, 0)" if has_negative else "threshold"
        return f"pre = {w_enc} @ residual + b_enc; acts = pre * (pre > {gate})"

    def layer_of(self, path: str) -> int | None:
        """The layer of a file of a repo whose files' names say it; None where the name is not of this schema."""
        return _layer_by(self.file, path)

    def holds(self, tensors: Collection[str], layer: int) -> bool:
        """Whether a file with these tensors can be one of this schema."""
        required = (place.name.format(layer=layer) for place in self.places if place.required)
        return set(required) <= set(tensors) and not set(self.absent) & set(tensors)


_D_MODEL, _N_FEATURES = ("d_model",), ("n_features",)
_BY_INPUT, _BY_FEATURE = ("d_model", "n_features"), ("n_features", "d_model")

SCHEMAS = (
    Schema(
        name="GemmaScopeNpz",
        file="params.npz",
        found_by=(LIST,),
        model_kind="transcoder_set",
        repo_key="weights_repo",
        output="plt",
        w_enc=Place("W_enc", _BY_INPUT),
        b_enc=Place("b_enc", _N_FEATURES),
        w_dec=Place("W_dec", _BY_FEATURE),
        b_dec=Place("b_dec", _D_MODEL),
        threshold=Place("threshold", _N_FEATURES),
        absent=("W_skip",),
    ),
    Schema(
        name="PltBundle",
        file="layer_{layer}.safetensors",
        found_by=(LIST, NAMES, PATH),
        model_kind="transcoder_set",
        repo_key="plt_repo",
        output="plt",
        w_enc=Place("W_enc", _BY_FEATURE),
        b_enc=Place("b_enc", _N_FEATURES),
        w_dec=Place("W_dec", _BY_FEATURE),
        b_dec=Place("b_dec", _D_MODEL),
        threshold=Place("activation_function.threshold", _N_FEATURES, required=False),
        w_skip=Place("W_skip", ("d_model_out", "d_model"), required=False),
        absent=("log_thresholds",),
    ),
    Schema(
        name="CltSplit",
        file="W_enc_{layer}.safetensors",
        found_by=(NAMES, PATH),
        model_kind="cross_layer_transcoder",
        repo_key="clt_repo",
        output="clt",
        w_enc=Place("W_enc_{layer}", _BY_FEATURE),
        b_enc=Place("b_enc_{layer}", _N_FEATURES),
        w_dec=Place("W_dec_{layer}", ("n_features", "n_targets", "d_model")),
        b_dec=Place("b_dec_{layer}", _D_MODEL),
        threshold=Place("threshold_{layer}", _N_FEATURES, required=False),
        w_skip=Place("W_skip_{layer}", ("d_model", "d_model_out"), required=False),
        decoder_file="W_dec_{layer}.safetensors",
    ),
    Schema(
        name="GemmaScope2",
        file="params.safetensors",
        found_by=(LIST, PATH),
        model_kind="transcoder_set",
        repo_key="weights_repo",
        output="plt",
        w_enc=Place("w_enc", _BY_INPUT),
        b_enc=Place("b_enc", _N_FEATURES),
        w_dec=Place("w_dec", _BY_FEATURE),
        b_dec=Place("b_dec", _D_MODEL),
        threshold=Place("threshold", _N_FEATURES),
        w_skip=Place("affine_skip_connection", ("d_model", "d_model_out"), required=False),
    ),
    Schema(
        name="Sae",
        file="params.npz",
        found_by=(PATH,),
        model_kind="",
        repo_key="sae_repo",
        output="sae",
        w_enc=Place("W_enc", _BY_INPUT),
        b_enc=Place("b_enc", _N_FEATURES),
        w_dec=Place("W_dec", _BY_FEATURE),
        b_dec=Place("b_dec", _D_MODEL),
        threshold=Place("threshold", _N_FEATURES, required=False),
        absent=("W_skip",),
    ),
)


def by_name(name: str) -> Schema:
    """The row of that name. Raises KeyError."""
    return {schema.name: schema for schema in SCHEMAS}[name]


def _base(name: str) -> str:
    return name.partition("_{")[0]


def _layer_by(pattern: str, path: str) -> int | None:
    if "{layer}" not in pattern:
        return None
    before, after = map(re.escape, pattern.split("{layer}"))
    found = re.fullmatch(f"(?:.*/)?{before}(0|[1-9][0-9]{{0,5}}){after}", path)
    return int(found[1]) if found else None
