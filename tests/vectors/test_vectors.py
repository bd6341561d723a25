# SPDX-License-Identifier: MIT OR Apache-2.0
"""Exact vectors: the same bytes everywhere, what oracle's own encoder and decoder give, small, true to their flags."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from oracle.arithmetic import decoder, encoder
from oracle.errors import BadUse
from oracle.vectors import features, variants
from oracle.vectors.exact import NOTES, InexactError, exact_sum
from oracle.vectors.variants import VARIANTS, Variant
from oracle.weights import formats
from oracle.weights.formats import DECODER, ENCODER, SIDE
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.sidefiles import Settings
from tests.support.process import run
from tests.vectors.test_matrix import NAMES, variant_of, vectors

HERE = Path(__file__).parent
SIZE_LIMIT = 100_000  # bytes of a folder
ROLES = {"path": ENCODER, "decoder_path": DECODER, "side_path": SIDE}
BY_PURPOSE = [variant for variant in VARIANTS if not variant.is_square]


def opened(name: str) -> dict[int, LayerWeights]:
    """The layers of a folder, read from its files."""
    variant, files = variant_of(name), variants.files_of(variant_of(name))
    return {
        record["layer"]: LayerWeights(
            variant.row, record["layer"],
            {ROLES[key]: OpenFile(io.BytesIO(files[path]), path, path) for key, path in record.items() if key != "layer"},
            variant.context,
        )
        for record in vectors(name)["layers"]
    }  # fmt: skip


def test_every_format_has_vectors() -> None:
    assert {variant.format for variant in BY_PURPOSE} == {row.name for row in formats.FORMATS}
    assert {variant.format for variant in VARIANTS if variant.is_square} == {row.name for row in formats.FORMATS}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_are_known(name: str) -> None:
    """The same on every machine. Whoever changes them on purpose runs `python -m tests.vectors.known` and says why."""
    known = json.loads((HERE / "known.json").read_text())
    assert {path: hashlib.sha256(content).hexdigest() for path, content in variants.files_of(variant_of(name)).items()} == known[name]


@pytest.mark.parametrize("name", [name if place % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for place, name in enumerate(NAMES)])
def test_the_encoder_gives_the_same(name: str) -> None:
    """Our own encoder and decoder, by way of the files: every feature, every value, every reconstruction."""
    of_layer = opened(name)
    for case in vectors(name)["test_cases"]:
        weights = of_layer[case["layer"]]
        residual = np.array([case["residual"]], np.float32)
        assert residual[0].tolist() == case["residual"]
        inputs = weights.encoder_input.apply(residual)
        [encoding] = encoder.encode(weights.encoder, inputs.values, k=weights.n_features, tolerance=1e-6, with_active=True).encodings
        assert encoding.n_active == case["n_active"] == len(case["active"])
        assert [tuple(feature.values()) for feature in case["active"]] == encoding.top
        if "reconstructions" in case:
            assert [output["values"] for output in case["reconstructions"]] == reconstructions(weights, residual, inputs, encoding)


def reconstructions(weights, residual, inputs, encoding):  # type: ignore[no-untyped-def]
    active = encoding.active
    fires = active.activations != 0
    active = active._replace(features=active.features[fires], activations=active.activations[fires], slack=active.slack[fires],
                             at_gate=active.at_gate[fires])  # fmt: skip
    if weights.settings.by_decoder_norm:
        active = decoder.divided(active, weights.decoder_norms)
    shape = weights.decoder_shape
    if weights.w_dec.features_first:
        [sums] = decoder.decode(weights.decoder_rows(decoder.active_in_any([active])), [active], shape)
    else:
        [sums] = decoder.decode_columns(weights.w_dec.blocks(), [active])
    sums.scale(weights.row_factor)
    outputs = []
    for target in range(shape[0] if len(shape) > 1 else 1):
        values = sums.values[target] if len(shape) > 1 else sums.values
        if weights.w_skip and target == weights.own_target:
            [skip] = decoder.skip_connection(weights.w_skip, residual, weights.d_out)
            values = values + skip.values
        b_dec = weights.b_dec_of(target)
        values = values if b_dec is None else values + b_dec
        if weights.settings.restores:
            values = values * inputs.factor[0] + inputs.offset[0]
        outputs.append((values.astype(np.float32) + np.float32(0)).tolist())
    return outputs


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_comes_to_the_settings_of_the_row(name: str) -> None:
    expected = variant_of(name).settings
    for weights in opened(name).values():
        found = weights.settings._replace(notes=(), unused=())
        if variant_of(name).format != "LlamaScope" and expected.level is not None:
            found = found._replace(level=expected.level)  # a tensor of one number
        if expected.root_scaled or expected.normalised != "scaled":
            found = found._replace(factor=expected.factor, back=expected.back)
        if not expected.restores or variant_of(name).what == "unit-rms":
            found = found._replace(restores=expected.restores)
        assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_small_and_say_what_they_are(name: str) -> None:
    files, document = variants.files_of(variant_of(name)), vectors(name)
    assert sum(map(len, files.values())) < SIZE_LIMIT
    assert document["weights"] in files and document["format"] in variant_of(name).row.names
    shown = {flag for case in document["test_cases"] for flag in case["flags"]}
    assert set(document["notes"]) == shown <= set(NOTES)
    assert all(set(note) == {"catches", "how"} for note in document["notes"].values())
    assert [case["case"] for case in document["test_cases"]] == list(range(len(document["test_cases"])))
    for case in document["test_cases"]:
        assert case["flags"]
        assert len(case["residual"]) == document["d_model"] * document.get("n_input_layers", 1)
        order = [(-feature["activation"], feature["index"]) for feature in case["active"]]
        assert order == sorted(order)


# What the issue asks for, and what gates and inputs add to it.
EVERYWHERE = set("""gate-equality zero-pre negative-pre tie-order none-active first-feature last-feature first-input last-input each-block b_enc-matters
    b_dec-matters orientation w_dec-not-w_enc small-activations int8 bfloat16 float16 tf32 float64-input wide-weights wide-residual wide-bias wide-output
    wide-decoder decoder large-magnitude cancellation input""".split())  # fmt: skip


def test_every_flag_is_shown() -> None:
    shown = {name: set(vectors(name)["notes"]) for name in NAMES}
    assert set.union(*shown.values()) == set(NOTES)
    for variant in BY_PURPOSE:
        wanted = EVERYWHERE | {"b_dec-subtracted" if variant.settings.minus_b_dec else "b_dec-not-subtracted"}
        if variant.settings.normalised in ("unit_rms", "layer_norm"):
            wanted -= {"zero-pre", "wide-weights", "wide-residual", "wide-bias", "float16", "tf32", "bfloat16", "float64-input", "large-magnitude", "cancellation"}
            wanted -= {"tie-order", "none-active", "gate-equality", "wide-decoder", "b_enc-matters"}
        if variant.settings.gate in ("topk", "abstopk", "groupmax"):
            has_floor = variant.settings.gate != "abstopk" and variant.settings.relu
            wanted -= set() if has_floor else {"gate-equality", "zero-pre", "none-active", "wide-bias", "negative-pre"}
            wanted -= {"tie-order", "small-activations", "cancellation"} if variant.settings.gate == "groupmax" else set()
            wanted -= {"small-activations", "cancellation"} if variant.settings.gate == "abstopk" else set()
            wanted |= {"k-boundary"}
        if variant.settings.gate == "gated" or variant.settings.level is not None or "log_threshold" in variant.parts:
            wanted -= {"zero-pre"}
        if variant.settings.gate == "jumprelu":
            wanted |= {"threshold"}
        assert wanted - shown[variant.name] == set(), variant.name


def test_gates_are_approached_in_their_own_cases_alone() -> None:
    """So that a flag that fails is the mistake, not its neighbour: elsewhere no feature is at its gate."""
    for variant in BY_PURPOSE:
        if variant.settings.gate in ("relu", "jumprelu") and variant.settings.normalised == "identity":
            meant = [case["case"] for case in vectors(variant.name)["test_cases"] if {"gate-equality", "zero-pre"} & set(case["flags"])]
            assert 2 <= len(meant) <= 4, variant.name


# --- exactness --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_a_sum_is_exact_or_refused(terms: list[float]) -> None:
    """Where it is not refused every part of it, in every order, is a float32."""
    values = np.array([terms])
    try:
        [total] = exact_sum(values)
    except InexactError:
        return
    for order in itertools.permutations(terms):
        part = np.float32(0)
        for term in order:
            part = np.float32(part + np.float32(term))
        assert float(part) == total


@settings(deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=2, max_size=12), st.integers(-140, 90))
def test_small_multiples_of_a_power_of_two_are_exact(numbers: list[int], exponent: int) -> None:
    [total] = exact_sum(np.ldexp(np.array([numbers], np.float64), exponent))
    assert total == np.ldexp(float(sum(numbers)), exponent)


@pytest.mark.parametrize("terms", [[1.0, 2.0**-24], [2.0**24, 1.0], [2.0**127, 2.0**127], [2.0**-149, 2.0**-150], [1 + 2.0**-23, 1.0, 1.0]])
def test_what_rounds_is_refused(terms: list[float]) -> None:
    with pytest.raises(InexactError):
        exact_sum(np.array([terms]))


def test_a_residual_whose_norm_is_no_power_of_two_is_no_case() -> None:
    unit = Settings(normalised="unit_rms")
    stimulus = features.Stimulus("", (), np.array([3.0, 1.0, *[0.0] * 14]))
    residual = features.residual_of(unit, {}, stimulus)
    assert residual is not None and features.input_of(unit, {}, residual) is None


# --- doors ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_library_gives(tmp_path: Path) -> None:
    result = run("vectors", "--format", "QwenScope", "--folder", str(tmp_path))
    assert result.returncode == 0 and not result.stdout
    assert f"28 cases -> {tmp_path}/QwenScope/vectors.json" in result.stderr
    written = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = oracle.exact_vectors("QwenScope")
    assert written == {f"{name}/{path}": content for name, files in given.items() for path, content in files.items()}
    assert set(given) == {"QwenScope", "QwenScope-square"}


def test_all_of_them(tmp_path: Path) -> None:
    result = run("vectors", "--folder", str(tmp_path), "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert {path.parent.name for path in tmp_path.rglob("vectors.json")} == set(NAMES)


def test_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    result = run("vectors", "--format", "Sa", "--folder", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith("error: 'Sa' is no format that vectors are made of: all, GemmaScopeNpz, ") and result.stderr.count("\n") == 1
    with pytest.raises(BadUse):
        oracle.exact_vectors("sae")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("vectors", "--format", "Sae", "--folder", str(tmp_path / "file"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "--folder" in result.stderr


def test_a_row_is_chosen_by_its_folder() -> None:
    assert [variant.name for variant in variants.of("SaeLens-gated")] == ["SaeLens-gated"]
    chosen: list[Variant] = variants.of("Sae")
    assert [variant.name for variant in chosen] == ["Sae", "Sae-relu", "Sae-square"]
