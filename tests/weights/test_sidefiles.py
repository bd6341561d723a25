# SPDX-License-Identifier: MIT OR Apache-2.0
"""Side files: every key is known or refused, and what each format makes of what they say."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.errors import WeightsError
from oracle.weights import sidefiles
from oracle.weights.sidefiles import DICTIONARY_LEARNING, HOOK_Z, LLAMA_SCOPE, SAELENS, SPARSIFY, Context, Settings, Side, SideFile
from tests.support import scopes
from tests.support.process import python, run
from tests.support.scopes import VARIANTS

Document = dict[str, Any]
REMOVED = object()


def edited(variant: str, **changes: Any) -> bytes:
    """A variant's side file with other values; `outer__inner` is a key inside another."""
    document = json.loads(json.dumps(VARIANTS[variant].side))
    for name, value in changes.items():
        *outer, key = name.split("__")
        inner = document
        for part in outer:
            inner = inner.setdefault(part, {})
        if value is REMOVED:
            inner.pop(key, None)
        else:
            inner[key] = value
    return json.dumps(document).encode()


TOPK, LLAMA, SPARSE = "saelens topk", "llama scope", "sparsify topk"
# Of each the variant, its side file, and what the error has to say. None: the file is not there.
MALFORMED: dict[str, tuple[str, bytes | None, tuple[str, ...]]] = {
    "empty": (TOPK, b"", ("not readable JSON",)),
    "cut off": (TOPK, edited(TOPK)[:-3], ("not readable JSON",)),
    "no JSON": (TOPK, b"architecture: topk\n", ("not readable JSON",)),
    "no UTF-8": (TOPK, b'{"architecture": "\xff\xfe"}', ("not readable JSON",)),
    "two documents": (TOPK, edited(TOPK) * 2, ("not readable JSON",)),
    "a comment": (TOPK, b"// k\n" + edited(TOPK), ("not readable JSON",)),
    "a key twice": (TOPK, b'{"k": 5, ' + edited(TOPK)[1:], ("not readable JSON", "k")),
    "NaN": (LLAMA, edited(LLAMA).replace(b"0.5", b"NaN"), ("not readable JSON", "NaN")),
    "infinity": (LLAMA, edited(LLAMA).replace(b"0.5", b"-Infinity"), ("not readable JSON", "Infinity")),
    "a number that overflows": (LLAMA, edited(LLAMA).replace(b"0.5", b"1e999"), ("jump_relu_threshold", "number is read")),
    "an integer of 5000 digits": (TOPK, b'{"k": ' + b"9" * 5000 + b"}", ("not readable JSON",)),
    "a list": (TOPK, b"[" + edited(TOPK) + b"]", ("holds no JSON object",)),
    "null": (TOPK, b"null", ("holds no JSON object",)),
    "a text": (TOPK, b'"topk"', ("holds no JSON object",)),
    "too large": (TOPK, b" " * (1 << 20) + edited(TOPK), ("at most 1048576 are read",)),
    "deep": (TOPK, b'{"k": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ("not readable JSON",)),
    "deep and not silent": (TOPK, b'{"architecture": ' + b'{"a": ' * 400 + b"1" + b"}" * 400 + b"}", ("architecture", "an object")),
    "a key that is not known": (TOPK, edited(TOPK, warmth=3), ("`warmth` is 3", "--ignore-key warmth")),
    "a key with a line break": (TOPK, edited(TOPK, **{"a\nb": 1}), ("--ignore-key",)),
    "a long key": (TOPK, edited(TOPK, **{"x" * 5000: "y" * 5000}), ("--ignore-key",)),
    "an object that is not known": (TOPK, edited(TOPK, noise={"scale": 1}), ("`noise` is an object",)),
    "no k": (TOPK, edited(TOPK, k=REMOVED), ("nothing says its k", "--k")),
    "k of 0": (TOPK, edited(TOPK, k=0), ("`k` is 0", "a whole number from 1")),
    "k of -1": (TOPK, edited(TOPK, k=-1), ("`k` is -1", "a whole number from 1")),
    "k of 1e9": (TOPK, edited(TOPK, k=10**9), ("`k` is 1000000000", "a whole number from 1")),
    "k as a float": (TOPK, edited(TOPK, k=5.0), ("`k` is 5.0", "a whole number from 1")),
    "k of 1.5": (TOPK, edited(TOPK, k=1.5), ("`k` is 1.5", "a whole number from 1")),
    "k as a text": (TOPK, edited(TOPK, k="50"), ("`k` is 50", "a whole number from 1")),
    "k of true": (TOPK, edited(TOPK, k=True), ("`k` is true", "a whole number from 1")),
    "k of more than there are": (TOPK, edited(TOPK, k=61), ("61", "60 features")),
    "k as a list": (TOPK, edited(TOPK, k=[5]), ("`k` is a list",)),
    "an architecture that is not known": (TOPK, edited(TOPK, architecture="gated2"), ("`architecture` is gated2",)),
    "matching pursuit": (TOPK, edited(TOPK, architecture="matching_pursuit"), ("`architecture` is matching_pursuit",)),
    "temporal": (TOPK, edited(TOPK, architecture="temporal"), ("`architecture` is temporal",)),
    "no architecture": (TOPK, edited(TOPK, architecture=REMOVED), ("`architecture` is not there",)),
    "an architecture of true": (TOPK, edited(TOPK, architecture=True), ("`architecture` is true",)),
    "a skip that is not there": ("saelens transcoder", edited("saelens transcoder", architecture="skip_transcoder"), ("`architecture`", "no W_skip")),
    "a skip that is too many": ("saelens skip transcoder", edited("saelens skip transcoder", architecture="transcoder"), ("`architecture`", "a W_skip")),
    "jumprelu without its threshold": (TOPK, edited(TOPK, architecture="jumprelu", k=REMOVED), ("threshold", "jumprelu gate needs")),
    "a threshold without jumprelu": ("saelens jumprelu", edited("saelens jumprelu", architecture="standard"), ("threshold", "no part in what is computed")),
    "gated without its gate": (TOPK, edited(TOPK, architecture="gated", k=REMOVED), ("b_gate", "gated gate needs")),
    "a normalisation that is not known": (TOPK, edited(TOPK, normalize_activations="batch"), ("`normalize_activations` is batch",)),
    "a factor that is nowhere": (TOPK, edited(TOPK, normalize_activations="expected_average_only_in"), ("normalize_activations", "--input-scale")),
    "a flag as a text": (TOPK, edited(TOPK, apply_b_dec_to_input="false"), ("`apply_b_dec_to_input` is false", "true or false is read")),
    "a flag as a number": (TOPK, edited(TOPK, rescale_acts_by_decoder_norm=1), ("`rescale_acts_by_decoder_norm` is 1", "true or false")),
    "norms with plain ReLU": (
        "saelens standard", edited("saelens standard", rescale_acts_by_decoder_norm=True), ("`rescale_acts_by_decoder_norm`", "with a top-k gate")
    ),
    "another shape of inputs": (TOPK, edited(TOPK, reshape_activations="patches"), ("`reshape_activations` is patches",)),
    "signed top k of old": ("saelens old topk", edited("saelens old topk", activation_fn_kwargs__signed=True), ("signed", "false is read")),
    "two functions of old": ("saelens old topk", edited("saelens old topk", activation_fn="relu"), ("activation_fn", "only one can be right")),
    "a function of old that is not known": ("saelens old", edited("saelens old", activation_fn="tanh-relu"), ("`activation_fn` is tanh-relu",)),
    "two k": ("saelens old topk", edited("saelens old topk", k=6), ("k = 6", "k = 5", "only one can be right")),
    "no class": ("dictionary topk", edited("dictionary topk", trainer__dict_class=REMOVED), ("`trainer.dict_class` is not there",)),
    "a class that is not known": ("dictionary topk", edited("dictionary topk", trainer__dict_class="SwitchSAE"), ("`trainer.dict_class` is SwitchSAE",)),
    "a class as an object": ("dictionary topk", edited("dictionary topk", trainer__dict_class={"a": 1}), ("trainer.dict_class", "an object")),
    "another k than the tensor": ("dictionary topk", edited("dictionary topk", trainer__k=7), ("k = 7", "k = 5")),
    "no trainer": ("dictionary topk", b"{}", ("`trainer.dict_class` is not there",)),
    "a trainer that is a list": ("dictionary topk", b'{"trainer": [1]}', ("`trainer` is a list",)),
    "a trainer key that is not known": ("dictionary topk", edited("dictionary topk", trainer__heat=2), ("`trainer.heat` is 2", "--ignore-key trainer.heat")),
    "no d_model": (LLAMA, edited(LLAMA, d_model=REMOVED), ("`d_model` is not there",)),
    "an average of 0": (LLAMA, edited(LLAMA, dataset_average_activation_norm={"in": 0, "out": 1}), ("dataset_average_activation_norm.in", "positive number")),
    "an average below 0": (LLAMA, edited(LLAMA, dataset_average_activation_norm={"in": -3.0}), ("dataset_average_activation_norm.in", "positive number")),
    "an average as a number": (LLAMA, edited(LLAMA, dataset_average_activation_norm=3.0), ("dataset_average_activation_norm", "--ignore-key")),
    "no average": (LLAMA, edited(LLAMA, dataset_average_activation_norm=REMOVED), ("dataset_average_activation_norm.in` is not there",)),
    "another normalisation": (LLAMA, edited(LLAMA, norm_activation="token-wise"), ("`norm_activation` is token-wise",)),
    "no threshold": (LLAMA, edited(LLAMA, jump_relu_threshold=REMOVED), ("`jump_relu_threshold` is not there",)),
    "a threshold as a text": (LLAMA, edited(LLAMA, jump_relu_threshold="0.5"), ("`jump_relu_threshold` is 0.5", "a number is read")),
    "a GLU": (LLAMA, edited(LLAMA, use_glu_encoder=True), ("`use_glu_encoder` is true", "false is read")),
    "another function": (LLAMA, edited(LLAMA, act_fn="topk"), ("`act_fn` is topk",)),
    "sparsify without k": (SPARSE, edited(SPARSE, k=REMOVED), ("nothing says its k", "--k")),
    "sparsify with another activation": (SPARSE, edited(SPARSE, activation="batchtopk"), ("`activation` is batchtopk",)),
    "signed groups": (SPARSE, edited(SPARSE, activation="groupmax", signed=True), ("`signed` is true",)),
    "groups of no one size": (SPARSE, edited(SPARSE, activation="groupmax", k=7), ("60 features", "7 groups")),
    "sparsify's skip that is not there": (SPARSE, edited(SPARSE, skip_connection=True), ("`skip_connection` is true", "no W_skip")),
    "sparsify's skip that is not said": ("sparsify transcoder", edited("sparsify transcoder", skip_connection=False), ("skip_connection", "a W_skip")),
    "hook z with another key": ("hook z", edited("hook z", act_fn="topk"), ("`act_fn` is topk", "--ignore-key act_fn")),
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes | None], list[str]]:
    """Lays out a variant's layer with another side file; what the command line takes for it."""
    folder = tmp_path_factory.mktemp("tree")
    result: dict[str, scopes.Scope] = {}

    def lay_out(variant: str, side: bytes | None) -> list[str]:
        if variant not in result:
            result[variant] = scopes.make(variant, n_layers=1)
            result[variant].lay_out(folder / variant)
        scope = result[variant]
        place = folder / variant / scope.repo / "resolve/main" / str(scope.variant.beside).format(layer=0)
        place.unlink(missing_ok=True)
        if side is not None:
            place.write_bytes(side)
        return ["--mirror", str(folder / variant), "--repo", scope.repo, "--path", scope.paths[0], "-o", "-", "--quiet"]

    return lay_out


def fails(printed: str, code: int, words: tuple[str, ...]) -> None:
    lines = [line for line in printed.splitlines() if not line.startswith("could not verify")]
    assert code == 4 and len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable() and len(lines[0]) < 900, (code, printed[:900])
    assert all(word in lines[0] for word in words), lines[0]


def test_there_are_forty() -> None:
    assert len(MALFORMED) >= 40


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tree: Callable[[str, bytes | None], list[str]], name: str) -> None:
    variant, side, words = MALFORMED[name]
    started = time.monotonic()
    ran = run(*tree(variant, side))
    assert time.monotonic() - started < 5
    fails(ran.stderr, ran.returncode, words)


# The peak that getrusage tells is that of the tests' own process where it is larger.
WITH_PEAK = """
import sys
from oracle.terminal.commands import main
code = main(sys.argv[1:])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@pytest.mark.parametrize("name", ["deep", "too large", "an integer of 5000 digits", "a long key", "k of 1e9"])
def test_malformed_in_a_process_of_its_own(tree: Callable[[str, bytes | None], list[str]], name: str) -> None:
    """Under 240 MiB with what Python and NumPy take, and under 5 s."""
    variant, side, words = MALFORMED[name]
    arguments = tree(variant, side)
    started = time.monotonic()
    ran = python("-c", WITH_PEAK, *arguments)
    assert time.monotonic() - started < 5 and int(ran.stdout) < 240 * 1024
    fails(ran.stderr, ran.returncode, words)


def test_a_side_file_that_is_not_there(tree: Callable[[str, bytes | None], list[str]]) -> None:
    for variant in (TOPK, "dictionary topk", LLAMA, SPARSE, "hook z"):
        ran = run(*tree(variant, None))
        name = os.path.basename(str(VARIANTS[variant].beside).format(layer=0))
        assert ran.returncode == 3 and f"the mirror lacks {os.path.dirname(str(VARIANTS[variant].beside).format(layer=0))}".rstrip("/") in ran.stderr, ran.stderr
        assert name in ran.stderr


def test_a_key_that_is_ignored_is_recorded(tree: Callable[[str, bytes | None], list[str]]) -> None:
    ran = run(*tree(TOPK, edited(TOPK, warmth=3)), "--ignore-key", "warmth")
    assert ran.returncode == 0 and json.loads(ran.stdout)["ignored_keys"] == ["warmth"]
    ran = run(*tree("dictionary topk", edited("dictionary topk", trainer__heat=2)), "--ignore-key", "trainer.heat")
    assert ran.returncode == 0 and json.loads(ran.stdout)["ignored_keys"] == ["trainer.heat"]


@pytest.mark.parametrize("value", [2.0, 0.0])
def test_a_scaling_factor_that_is_not_1(tmp_path: Path, value: float) -> None:
    from tests.support import worlds

    scope = scopes.make("saelens standard", n_layers=1)
    for factor in (np.ones(60, np.float32), np.where(np.arange(60) == 59, np.float32(value), np.float32(1))):
        arrays = worlds.from_safetensors(scope.files[scope.repo][scope.paths[0]])
        arrays["scaling_factor"] = factor.astype(np.float32)
        changed = scopes.make("saelens standard", n_layers=1)
        changed.files[scope.repo][scope.paths[0]] = worlds.to_safetensors(arrays)
        ran = run("--mirror", changed.lay_out(tmp_path), "--repo", scope.repo, "--path", scope.paths[0], "-o", "-", "--quiet")
        if np.all(factor == 1):
            assert ran.returncode == 0, ran.stderr
        else:
            fails(ran.stderr, ran.returncode, ("scaling_factor is not 1",))


# --- what each format makes of it -------------------------------------------------------------------------------------


def settings_of(row: SideFile, decide: Callable[..., Settings], document: Document, present: set[str] = {"W_enc"}, k: int | None = None, **context: Any) -> Settings:
    side = Side.read(row, io.BytesIO(json.dumps(document).encode()), "side", ())
    return decide(side, present, k, Context(**context))


def saelens(document: Document, *present: str, **context: Any) -> Settings:
    return settings_of(SAELENS, sidefiles.saelens, document, {"W_enc", *present}, **context)


VERSIONS = [None, "5.11.0", "6.0.0", "6.54.12", "10.1.0"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("architecture", "more", "gate"),
    [
        ("standard", {}, "relu"), ("jumprelu", {}, "jumprelu"), ("gated", {}, "gated"), ("topk", {"k": 7}, "topk"), ("abstopk", {"k": 7}, "abstopk"),
        ("transcoder", {}, "relu"), ("skip_transcoder", {}, "relu"), ("jumprelu_transcoder", {}, "jumprelu"), ("jumprelu_skip_transcoder", {}, "jumprelu"),
    ],
)  # fmt: skip
def test_saelens_architectures(architecture: str, more: Document, gate: str, version: str | None, inside: bool) -> None:
    """Before 6.0 and from then on, with the version where either has it; b_dec is subtracted but for transcoders."""
    stamp: Document = {} if version is None else {"metadata": {"sae_lens_version": version}} if inside else {"sae_lens_version": version}
    present = ["W_skip"] if "skip" in architecture else []
    for applies in (None, True, False):
        flag = {} if applies is None else {"apply_b_dec_to_input": applies}
        result = saelens({"architecture": architecture, **more, **stamp, **flag}, *present)
        assert (result.gate, result.k, result.relu) == (gate, more.get("k"), True)
        assert result.minus_b_dec is (applies is not False and "transcoder" not in architecture)
        assert (result.normalised, result.by_decoder_norm, result.level, result.root_scaled) == ("identity", False, None, False)


def test_saelens_before_6() -> None:
    assert saelens({}).gate == "relu" and saelens({"activation_fn_str": "relu"}).gate == "relu"
    for name in ("activation_fn", "activation_fn_str"):
        result = saelens({name: "topk", "activation_fn_kwargs": {"k": 9}})
        assert (result.gate, result.k) == ("topk", 9)
    assert saelens({"normalize_activations": False}).normalised == "identity"
    assert saelens({"normalize_activations": True}, input_scale=0.5).normalised == "scaled"
    with pytest.raises(WeightsError, match="relu is read where the architecture is gated"):
        saelens({"architecture": "gated", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}})
    with pytest.raises(WeightsError, match="`architecture` is not there"):
        saelens({"sae_lens_version": "6.0.0"})


def test_saelens_inputs() -> None:
    new = {"architecture": "standard", "sae_lens_version": "6.0.0"}
    for said, kind in ((None, "identity"), ("none", "identity"), ("constant_norm_rescale", "unit_rms"), ("layer_norm", "layer_norm")):
        assert saelens({**new, "normalize_activations": said}).normalised == kind
    result = saelens({**new, "normalize_activations": "expected_average_only_in"}, input_scale=0.25)
    assert (result.normalised, result.factor, result.back) == ("scaled", 0.25, 4.0)
    assert saelens({**new, "reshape_activations": "hook_z"}).normalised == "identity"
    result = saelens({"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True, "sae_lens_version": "6.0.0"})
    assert result.by_decoder_norm and result.gate == "topk"
    with pytest.raises(WeightsError, match="--k is given"):
        sidefiles.saelens(Side("side", dict(new)), {"W_enc"}, None, Context(k=3))


@pytest.mark.parametrize(
    ("kind", "gate", "subtracts"),
    [
        ("AutoEncoder", "relu", True), ("AutoEncoderTopK", "topk", True), ("BatchTopKSAE", "jumprelu", True), ("MatryoshkaBatchTopKSAE", "jumprelu", True),
        ("GatedAutoEncoder", "gated", True), ("JumpReluAutoEncoder", "jumprelu", False),
    ],
)  # fmt: skip
def test_dictionary_learning(kind: str, gate: str, subtracts: bool) -> None:
    document = {"trainer": {"dict_class": kind, "k": 4, "lr": 1e-3}, "buffer": {"ctx_len": 128, "deep": {"er": 1}}}
    result = settings_of(DICTIONARY_LEARNING, sidefiles.dictionary_learning, document, {"W_enc", "threshold", "k"})
    assert (result.gate, result.k, result.minus_b_dec) == (gate, 4 if gate == "topk" else None, subtracts)
    assert ("threshold" in result.unused) is (gate != "jumprelu") and "k" in result.unused
    document["trainer"]["apply_b_dec_to_input"] = True
    if kind == "JumpReluAutoEncoder":
        assert settings_of(DICTIONARY_LEARNING, sidefiles.dictionary_learning, document).minus_b_dec


def test_llama_scope() -> None:
    document = {"d_model": 16, "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 2.0, "out": 8.0}, "jump_relu_threshold": 0.5}
    result = settings_of(LLAMA_SCOPE, sidefiles.llama_scope, document)
    assert (result.gate, result.normalised, result.factor, result.back, result.level, result.level_factor) == ("jumprelu", "scaled", 2.0, 2.0, 0.5, 2.0)
    assert not result.minus_b_dec and not result.notes
    with_log = settings_of(LLAMA_SCOPE, sidefiles.llama_scope, document, {"W_enc", "log_threshold"})
    assert with_log.level is None and with_log.factor == 2.0
    noted = settings_of(LLAMA_SCOPE, sidefiles.llama_scope, {**document, "sparsity_include_decoder_norm": True})
    assert len(noted.notes) == 1 and "sparsity_include_decoder_norm" in noted.notes[0]
    assert settings_of(LLAMA_SCOPE, sidefiles.llama_scope, {**document, "apply_decoder_bias_to_pre_encoder": True}).minus_b_dec


@pytest.mark.parametrize(
    ("document", "gate", "subtracts"),
    [
        ({"k": 3}, "topk", True), ({"k": 3, "activation": "topk", "transcode": False}, "topk", True), ({"k": 3, "transcode": True}, "topk", False),
        ({"k": 3, "activation": "groupmax"}, "groupmax", True), ({"k": 3, "signed": True}, "abstopk", True),
        ({"k": 3, "normalize_decoder": False}, "topk", True), ({"k": 3, "normalize_decoder": True, "transcode": True}, "topk", False),
    ],
)  # fmt: skip
def test_sparsify(document: Document, gate: str, subtracts: bool) -> None:
    result = settings_of(SPARSIFY, sidefiles.sparsify, document)
    assert (result.gate, result.k, result.minus_b_dec, result.normalised) == (gate, 3, subtracts, "identity")


# --- any document -----------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[SideFile, Callable[..., Settings]]] = {
    "SaeLens": (SAELENS, sidefiles.saelens), "DictionaryLearning": (DICTIONARY_LEARNING, sidefiles.dictionary_learning),
    "LlamaScope": (LLAMA_SCOPE, sidefiles.llama_scope), "Sparsify": (SPARSIFY, sidefiles.sparsify), "HookZ": (HOOK_Z, sidefiles.minus_b_dec),
}  # fmt: skip
WORDS = sorted({key for row, _ in ROWS.values() for name in (*row.obeyed, *row.silent[:3]) for key in (name, *name.split("."))} | {"strange"})
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["topk", "jumprelu", "standard", "gated", "groupmax", "relu", "none", "layer_norm", "6.0.0", "v6", "6", "", "dataset-wise", "AutoEncoder"]),
)  # fmt: skip
DOCUMENTS = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6), max_leaves=12)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(ROWS)), st.dictionaries(st.sampled_from(WORDS), DOCUMENTS, max_size=8) | DOCUMENTS, st.sets(st.sampled_from(["W_skip", "threshold", "k"])))
def test_any_document_gives_settings_or_an_error(name: str, document: Any, present: set[str]) -> None:
    row, decide = ROWS[name]
    try:
        side = Side.read(row, io.BytesIO(json.dumps(document).encode()), "cfg.json", ())
        result = decide(side, present, 4 if "k" in present else None, Context())
    except WeightsError as error:
        assert str(error).startswith("cfg.json") and str(error).isprintable() and len(str(error)) < 900
        return
    assert isinstance(result, Settings) and result.gate in ("relu", "jumprelu", "topk", "abstopk", "groupmax", "gated")
    assert (result.k is not None) is (result.gate in ("topk", "abstopk", "groupmax")) and (result.k is None or 1 <= result.k <= 1 << 24)
    assert np.isfinite([result.factor, result.back, result.level_factor, result.level or 0]).all() and result.factor > 0


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(ROWS)), st.binary(max_size=60))
def test_any_bytes_give_an_error_or_a_side_file(name: str, content: bytes) -> None:
    for text in (content, b'{"k": ' + content + b"}"):
        try:
            Side.read(ROWS[name][0], io.BytesIO(text), "cfg.json", ())
        except WeightsError as error:
            assert str(error).isprintable() and len(str(error)) < 900
