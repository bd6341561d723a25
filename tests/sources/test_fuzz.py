# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15: whatever comes in at a parser's door, what comes out is its own error or a value that its library gives too."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vendored_hf as hf
from oracle import strict_json
from oracle.errors import BadData, WeightsError
from oracle.references.reading import parse_candidate, parse_reference
from oracle.sources.curation import CurationError, parse_config
from oracle.sources.listing import Listing
from oracle.sources.mirror import MirrorError, parse_manifest
from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from tests.sources.test_hostile import of_header

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
FILE = st.fixed_dictionaries({}, optional={
    "repo": st.just("org/repo") | JSON, "revision": st.just("main") | JSON, "path": st.text(max_size=12) | JSON, "commit": st.just("a" * 40) | JSON,
    "size": st.integers() | JSON, "sha256": st.just("b" * 64) | JSON,
})
# Keys and texts that look like the one that is packed.
RESIDUAL = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5) | st.lists(st.floats() | st.integers() | st.booleans(), max_size=3) | JSON
LIKE_IT = st.sampled_from(["residual", 'a "residual": [1.5]', '"residual": [0.5]', '\\"residual": [0.5', "\\", '"', 'residual"'])
WITH_RESIDUALS = st.recursive(
    RESIDUAL | LIKE_IT,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(LIKE_IT | st.text(max_size=3), inner, max_size=3), st.fixed_dictionaries({"residual": RESIDUAL, "x": inner})
    ),
    max_leaves=10,
)
MANIFEST = st.fixed_dictionaries({"format_version": st.just(1) | JSON}, optional={
    "files": st.lists(FILE | JSON, max_size=3) | JSON, "listings": st.lists(FILE | JSON) | JSON,
})
CASE = st.fixed_dictionaries({}, optional={
    "layer": st.integers(-1, 3) | JSON, "seed": st.integers() | JSON, "n_active": st.integers() | JSON,
    "top_10": st.lists(st.fixed_dictionaries({"index": st.integers() | JSON, "activation": st.floats() | JSON}) | JSON, max_size=3) | JSON,
    "n_active_bounds": JSON, "flags": JSON, "residual": RESIDUAL, "reconstructions": JSON,
})
DOCUMENT = st.fixed_dictionaries({"test_cases": st.lists(CASE | JSON, max_size=3) | JSON}, optional={
    "format_version": st.just(1) | JSON, "weights_repo": st.text() | JSON, "d_model": st.integers() | JSON, "n_features_per_layer": st.integers() | JSON, "layers": JSON,
    "top_k": JSON, "tolerance": JSON, "gate": JSON, "digest": JSON,
    "residual_generator": WITH_RESIDUALS, "residuals": WITH_RESIDUALS, "more": WITH_RESIDUALS,
})
YAML = st.lists(st.sampled_from([
    "transcoders", ":", " ", "\n", "- ", "  ", "hf://org/repo/layer_0/x.npz", '"', "'", "[", "]", "{", "}", ",", "&a", "*a", "!!int", "|", ">", "#", "%", "---", "...",
    "?", "\t", "\\U0011FFFF", "\\x", "model_kind", "k", "activation", "topk", "1", "~", "<<", "\u2028", "é", "\x85", "?revision=",
]) | st.text(max_size=3), max_size=40).map("".join)
LITERAL = st.recursive(
    st.integers().map(repr) | st.sampled_from(["'<f4'", "True", "False", "()", "1e999", "0x" + "f" * 5000, "9" * 5000, "-1", "1j", "b''", "...", "nan", "x", "(", "*"]),
    lambda inner: st.lists(inner, max_size=4).map(lambda items: "(" + ", ".join(items) + ",)") | inner.map(lambda item: f"[{item}]") | inner.map(lambda item: f"-{item}"),
    max_leaves=8,
)


def of_yaml(text: str) -> None:
    try:
        files = parse_config(text.encode("utf-8", "surrogatepass")).files
    except CurationError as error:
        assert "\n" not in str(error)
    else:
        assert files is None or all(".." not in file.path.split("/") for file in files.values())


def of_manifest(document: Any) -> None:
    try:
        manifest = parse_manifest(json.dumps(document).encode(), "m")
    except (MirrorError, hf.HFValidationError):
        return
    for entry in manifest.entries:
        assert 0 <= entry.size < hf.LARGEST and not {"", ".", ".."} & set(entry.path.split("/"))
        hf.HfFileMetadata(entry.commit, entry.sha256, entry.size, "http://h/x")
    assert all(isinstance(repo, Listing) for repo in manifest.listings)


def of_json(text: str) -> None:
    """What is read is what Python's own reader gives."""
    for content in (text, text.encode("utf-8", "surrogatepass")):
        try:
            value = strict_json.loads(content)
        except ValueError:
            continue
        assert value == json.loads(content)


def of_json_file(values: tuple[Any, int, int | None]) -> None:
    """What is read a piece at a time is what Python's own reader gives of the whole, with arrays for lists of floats; NaN and infinities are refused."""
    document, piece, indent = values
    content = json.dumps(document, indent=indent, ensure_ascii=piece % 2 == 0).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "PIECE", piece)
        try:
            value = strict_json.load(io.BytesIO(content), len(content))
        except ValueError:
            with pytest.raises(ValueError):
                strict_json.loads(content)
            return
    assert repr(value).replace("array('d', ", "").replace("])", "]") == repr(strict_json.loads(content)).replace("])", "]")


def of_document(document: Any) -> None:
    """As the library is handed it, and as it comes out of a file."""
    documents = [document]
    with contextlib.suppress(ValueError):
        documents.append(strict_json.load(io.BytesIO(json.dumps(document).encode("utf-8", "surrogatepass")), 1 << 20))
    for parse in (parse_reference, lambda value: parse_candidate(value, 10)):
        for value in documents:
            try:
                parse(value)
            except BadData as error:
                assert "\n" not in str(error)


def of_npy(shape: str) -> None:
    content = of_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")
    try:
        tensor = Npz(io.BytesIO(content), "f").tensor("W_enc")
    except WeightsError:
        return
    assert tensor.shape == ast.literal_eval(shape) and math.prod(tensor.shape) * 4 == 0


def of_safetensors(header: Any) -> None:
    text = json.dumps(header).encode()
    data = np.arange(16, dtype="<f4").tobytes()
    try:
        file = Safetensors(io.BytesIO(len(text).to_bytes(8, "little") + text + data), "f")
        for name in file.names:
            values = file.read(file.tensor(name))
            assert values.dtype == np.float32
    except WeightsError:
        pass


def of_wait(header: tuple[str, str, int]) -> None:
    """Whatever a server says of how long to wait, it is a number of seconds or nothing."""
    response = requests.Response()
    response.status_code = header[2]
    response.headers.update({"Retry-After": header[0], "RateLimit": header[1]})
    wait = hf._asked_wait(response)
    assert wait is None or wait >= 0


ENTRY = st.fixed_dictionaries({}, optional={
    "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64"]) | JSON, "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
    "data_offsets": st.tuples(st.integers(-1, 65), st.integers(-1, 65)) | st.just((0, 64)) | JSON,
})
DATE = st.text("0123456789 :,+-GMTJanuryFebDecMoniSt", max_size=40)

DOORS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "config.yaml": (of_yaml, YAML),
    "manifest.json": (of_manifest, MANIFEST | JSON),
    "JSON": (of_json, st.text('[]{}",:0123456789eE+-.truefalsnNaIity \\u\n', max_size=60) | JSON.map(json.dumps) | st.text()),
    "JSON files": (of_json_file, st.tuples(WITH_RESIDUALS, st.integers(4, 60), st.none() | st.integers(0, 2))),
    "references and candidates": (of_document, DOCUMENT | JSON),
    ".npy headers": (of_npy, LITERAL | st.text(max_size=30)),
    "safetensors headers": (of_safetensors, st.dictionaries(st.text(max_size=5), ENTRY | JSON, max_size=3) | JSON),
    "waits": (of_wait, st.tuples(DATE | st.integers().map(str), DATE.map(lambda text: f'"a";r=0;t={text}') | DATE, st.sampled_from([429, 503]))),
}


def mutant(value: Any, chance: random.Random) -> Any:
    """A value that differs in one place, at any depth: of a tuple in its first, for what follows are a check's own settings."""
    if isinstance(value, tuple) and value:
        return (mutant(value[0], chance), *value[1:])
    if isinstance(value, list) and value:
        place = chance.randrange(len(value))
        return [*value[:place], *chance.choice([[], [value[place]] * 2, [mutant(value[place], chance)]]), *value[place + 1 :]]
    if isinstance(value, dict) and value:
        key = chance.choice(list(value))
        rest = {name: item for name, item in value.items() if name != key}
        return rest | chance.choice([{}, {mutant(key, chance): value[key]}, {key: mutant(value[key], chance)}, {key: mutant(value[key], chance)}])
    if isinstance(value, str) and value:
        start, end = sorted(chance.choices(range(len(value) + 1), k=2))
        return value[:start] + chance.choice(["", value[start:end] * 2, chance.choice(value), chance.choice('\\"[]{}:,0\n\0')]) + value[end:]
    if type(value) in (int, float):
        return chance.choice([-value, value * 2, value + 1, type(value)(0)])
    return chance.choice(["", "x", " "])


def holds(name: str, examples: int, mutants: int = 0) -> None:
    """The check of a door holds for so many examples, and so many mutants of each."""
    check, strategy = DOORS[name]

    @settings(deadline=None, max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(value: Any) -> None:
        check(value)
        chance = random.Random(repr(value))
        for _ in range(mutants):
            value = mutant(value, chance)
            check(value)

    each()


@pytest.mark.parametrize("name", DOORS)
def test_anything_at_a_parser_s_door(name: str) -> None:
    holds(name, 50, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOORS)
def test_ten_thousand_things_at_a_parser_s_door(name: str) -> None:
    holds(name, 2_000, 4)
