# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15: whatever comes in at a parser's door, what comes out is its own error or a value that its library gives too."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import requests
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vendored_hf as hf
from oracle import strict_json
from oracle.checking.vectors import compare_documents
from oracle.errors import BadData, WeightsError
from oracle.references.reading import parse_candidate, parse_reference
from oracle.sources import listing
from oracle.sources.curation import CurationError, parse_config
from oracle.sources.listing import Listing
from oracle.sources.mirror import MirrorError, parse_manifest
from oracle.weights.formats import FORMATS
from oracle.weights.npz import Npz
from oracle.weights.pickled import NAMES, PickleError, View, tensors_and_values
from oracle.weights.safetensors import Safetensors
from oracle.weights.sidefiles import Context, Settings, Side
from oracle.weights.torchzip import TorchZip
from tests.sources.test_hostile import of_header
from tests.support import torchfiles
from tests.support.scripted import scripted

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
# For one place of a document: drawn at once, where JSON takes twenty draws.
ODD: st.SearchStrategy[Any] = st.sampled_from([
    None, True, False, 0, -1, 1, 7, 2**31, 2**53 + 1, 2**63, 2**64, -(2**64), 10**90, 0.5, -0.0, 1e-42, 1e308, float("nan"), float("inf"), "", "a", "0", "a\nb",
    "\ud800", "\u2028", "é", "a" * 64,
    "../x", "a/b", [], {}, [[]], [{}], {"": 0}, {"a": [1]}, [1, 2], [0.5], [True], ["a"], [None, "a"], [[[[]]]], {"index": 1, "activation": 0.5}, "9" * 5000, 42.0,
])
FILE = st.fixed_dictionaries({}, optional={
    "repo": st.just("org/repo") | ODD, "revision": st.just("main") | ODD, "path": st.text(max_size=12) | ODD, "commit": st.just("a" * 40) | ODD,
    "size": st.integers() | ODD, "sha256": st.just("b" * 64) | ODD,
})
# Keys and texts that look like the one that is packed.
RESIDUAL = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5) | st.lists(st.floats() | st.integers() | st.booleans(), max_size=3) | ODD
LIKE_IT = st.sampled_from(["residual", 'a "residual": [1.5]', '"residual": [0.5]', '\\"residual": [0.5', "\\", '"', 'residual"'])
WITH_RESIDUALS = st.recursive(
    RESIDUAL | LIKE_IT,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(LIKE_IT | st.text(max_size=3), inner, max_size=3), st.fixed_dictionaries({"residual": RESIDUAL, "x": inner})
    ),
    max_leaves=10,
)
MANIFEST = st.fixed_dictionaries({"format_version": st.just(1) | ODD}, optional={
    "files": st.lists(FILE | ODD, max_size=3) | ODD, "listings": st.lists(FILE | ODD) | ODD,
})
CASE = st.fixed_dictionaries({}, optional={
    "layer": st.integers(-1, 3) | ODD, "seed": st.integers() | ODD, "n_active": st.integers() | ODD,
    "top_10": st.lists(st.fixed_dictionaries({"index": st.integers() | ODD, "activation": st.floats() | ODD}) | ODD, max_size=3) | ODD,
    "n_active_bounds": ODD, "flags": ODD, "residual": RESIDUAL, "reconstructions": ODD,
})
DOCUMENT = st.fixed_dictionaries({"test_cases": st.lists(CASE | ODD, max_size=3) | ODD}, optional={
    "format_version": st.just(1) | ODD, "weights_repo": st.text() | ODD, "d_model": st.integers() | ODD, "n_features_per_layer": st.integers() | ODD, "layers": ODD,
    "top_k": ODD, "tolerance": ODD, "gate": ODD, "digest": ODD,
    "residual_generator": WITH_RESIDUALS, "residuals": WITH_RESIDUALS, "more": WITH_RESIDUALS,
})
YAML = st.lists(st.sampled_from([
    "transcoders", ":", " ", "\n", "- ", "  ", "hf://org/repo/layer_0/x.npz", '"', "'", "[", "]", "{", "}", ",", "&a", "*a", "!!int", "|", ">", "#", "%", "---", "...",
    "?", "\t", "\\U0011FFFF", "\\x", "model_kind", "k", "activation", "topk", "1", "~", "<<", "\u2028", "é", "\x85", "?revision=",
]) | st.text(max_size=3), max_size=40).map("".join)
LITERAL = st.recursive(
    st.integers().map(repr) | st.sampled_from(["'<f4'", "True", "False", "()", "1e999", "0x" + "f" * 5000, "9" * 5000, "-1", "1j", "b''", "...", "nan", "x", "(", "*"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: "(" + ", ".join(items) + ",)"), inner.map(lambda item: f"[{item}]"), inner.map(lambda item: f"-{item}")
    ),
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


def of_npy(header: str) -> None:
    """What is read is what NumPy reads."""
    content = of_header(header, np.arange(6, dtype="<f4").tobytes())
    try:
        file = Npz(io.BytesIO(content), "f")
        values = file.read(file.tensor("W_enc"))
    except WeightsError as error:
        assert len(str(error)) < 1000
        return
    right = np.load(io.BytesIO(content))["W_enc"]
    assert values.shape == right.shape and values.dtype == np.float32 and np.array_equal(values, right.astype(np.float32), equal_nan=True)


def edited(content: bytes, edits: list[int], cut: int) -> bytes:
    """A file of which some bytes are others, each edit a place times 256 and a byte, and which ends early by so many."""
    changed = bytearray(content[: len(content) - cut])
    for edit in edits:
        place, byte = divmod(edit, 256)
        changed[place % len(changed)] = byte
    return bytes(changed)


ARRAYS = {"W_enc": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5, -2], np.float16)}


def npz_file(save: Callable[..., None]) -> bytes:
    content = io.BytesIO()
    save(content, **ARRAYS)
    return content.getvalue()


NPZ = [npz_file(np.savez), npz_file(np.savez_compressed)]
TORCH = torchfiles.torch_file(ARRAYS)


def of_zip(value: tuple[list[int], int, int]) -> None:
    """What is read of an archive is what NumPy reads."""
    edits, cut, which = value
    content = edited(NPZ[which], edits, cut)
    try:
        file = Npz(io.BytesIO(content), "f")
    except WeightsError:
        return
    for name in file.names:
        try:
            values = file.read(file.tensor(name))
        except WeightsError:
            continue
        with np.lib.npyio.NpzFile(io.BytesIO(content)) as archive:
            assert np.array_equal(values, archive[name].astype(np.float32), equal_nan=True)


def of_torch_zip(value: tuple[list[int], int]) -> None:
    """Every byte that says something has a checksum: what is read is what was written."""
    try:
        file = TorchZip(io.BytesIO(edited(TORCH, *value)), "f")
    except WeightsError:
        return
    for name in file.names:
        with contextlib.suppress(WeightsError):
            assert np.array_equal(file.read(file.tensor(name)), ARRAYS[name].astype(np.float32))


class Unpickled(pickle.Unpickler):
    """What Python makes of a pickle, with a tensor's storage, offset, shape and strides for a tensor."""

    def find_class(self, module: str, name: str) -> Any:
        text = f"{module}.{name}"
        assert text in NAMES
        return {"_rebuild_tensor_v2": lambda *arguments: View(*arguments[:4]), "_rebuild_parameter": lambda view, *_: view, "OrderedDict": OrderedDict}.get(name, text)

    def persistent_load(self, identity: Any) -> Any:
        return identity[2], identity[1].removeprefix("torch."), identity[4]


def of_pickle(pieces: list[str]) -> None:
    content = b"\x80\x02" + "".join(pieces).encode("latin-1", "replace") + b"."
    try:
        tensors, values = tensors_and_values(content)
    except PickleError as error:
        assert "\n" not in str(error)
        return
    right = Unpickled(io.BytesIO(content)).load()
    assert right.keys() == tensors.keys() | values.keys()
    assert repr(values) == repr({name: right[name] for name in values})
    for name, view in tensors.items():
        storage = view.storage.key, view.storage.kind, view.storage.count
        assert (storage, view.offset, view.shape, view.strides) == (right[name].storage, right[name].offset, right[name].shape, right[name].strides)


def of_side_file(value: tuple[dict[str, Any], int, list[str], Any]) -> None:
    document, number, present, k = value
    row = [row for row in FORMATS if row.side_file][number]
    assert row.side_file is not None
    try:
        side = Side.read(row.side_file, io.BytesIO(json.dumps(document).encode()), "f", ())
        assert isinstance(row.settings(side, present, k, Context("org/repo-L0_50", k=k)), Settings)
    except WeightsError as error:
        assert "\n" not in str(error)


def of_vectors(documents: tuple[Any, Any]) -> None:
    with contextlib.suppress(BadData):
        compare_documents(*documents)


def of_safetensors(header: Any) -> None:
    """What is read is what safetensors reads."""
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + np.arange(16, dtype="<f4").tobytes()
    try:
        file = Safetensors(io.BytesIO(content), "f")
        values = {name: file.read(file.tensor(name)) for name in file.names}
    except WeightsError:
        return
    right = safetensors.deserialize(content)
    assert values.keys() == dict(right).keys()
    for name, entry in right:
        kind = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}[entry["dtype"]]
        expected = np.frombuffer(entry["data"], kind).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            expected = (expected.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(values[name], expected.astype(np.float32), equal_nan=True)


def of_wait(header: tuple[str, str, int]) -> None:
    """Whatever a server says of how long to wait, it is a number of seconds or nothing."""
    response = requests.Response()
    response.status_code = header[2]
    response.headers.update({"Retry-After": header[0], "RateLimit": header[1]})
    wait = hf._asked_wait(response)
    assert wait is None or wait >= 0


ENTRY = st.fixed_dictionaries({}, optional={
    "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64"]) | ODD, "shape": st.lists(st.integers(-1, 9), max_size=3) | ODD,
    "data_offsets": st.tuples(st.integers(-1, 65), st.integers(-1, 65)) | st.just((0, 64)) | ODD,
})
DATE = st.text("0123456789 :,+-GMTJanuryFebDecMoniSt", max_size=40)

NPY = st.tuples(
    st.sampled_from(["'<f4'", "'<f4'", "'>f4'", "'<f8'", "'<f2'", "'|O'", "'<i4'"]) | LITERAL, st.sampled_from(["False", "False", "False", "True", "0"]) | LITERAL,
    st.sampled_from(["(6,)", "(2, 3)", "(3, 2)", "(1, 3)", "(12,)", "(6)", "(2, 3,)", "(0x2, +3)", "(-1, -6)"]) | LITERAL,
).map(lambda parts: "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}".format(*parts))
EDITS = st.lists(st.integers(0, 256 * 1000), min_size=1, max_size=3)
OPCODES = [
    b"(", b")", b"\x85", b"\x86", b"\x87", b"t", b"]", b"a", b"e", b"}", b"s", b"u", b"N", b"\x88", b"\x89", b"K\x02", b"M\x00\x01", b"J\xff\xff\xff\xff",
    b"\x8a\x01\x05",
    b"G" + bytes(8), b"q\x00", b"h\x00", b"r\x01\x00\x00\x00", b"j\x01\x00\x00\x00", b"Q", b"R", b"b", b"0", b"cos\nsystem\n", torchfiles.ORDERED_DICT,
    torchfiles.EMPTY_ORDERED,
    torchfiles.text("a"), torchfiles.text("b"), torchfiles.text("_metadata"), torchfiles.storage("0", "FloatStorage", 6), torchfiles.name("torch", "HalfStorage"),
    torchfiles.tensor(torchfiles.storage("0", "FloatStorage", 6), (2, 3), (3, 1)),
    torchfiles.parameter(torchfiles.tensor(torchfiles.storage("1", "HalfStorage", 2), (2,), (1,))),
]  # fmt: skip
VALUE = st.sampled_from([b"N", b"\x88", b"K\x02", b"]", b"}", b"h\x00", *OPCODES[-2:]])
SOME_DICT = st.lists(st.tuples(st.sampled_from("abcd").map(torchfiles.text), VALUE).map(b"".join), max_size=3).map(lambda pairs: [b"}q\x00(", *pairs, b"u"])
SOME_OPCODES = st.lists(st.sampled_from(OPCODES), max_size=12)
PICKLE = st.one_of(SOME_OPCODES, SOME_DICT, st.tuples(SOME_DICT, SOME_OPCODES).map(lambda parts: parts[0] + parts[1])).map(
    lambda pieces: [piece.decode("latin-1") for piece in pieces]
)
SIDES = [row.side_file for row in FORMATS if row.side_file]
SIDE_VALUE = ODD | st.sampled_from([
    "topk", "jumprelu", "relu", "batchtopk", "standard", "6.0.0", "5", "9" * 5000, "none", "expected_average_only_in", "layer_norm", 50, 0, 1.5, True, False,
])


def side_document(number: int) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of a side file's keys, each where it stands."""

    def nested(values: dict[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for key, value in values.items():
            outer, _, inner = key.rpartition(".")
            if isinstance(document.setdefault(outer, {}), dict) and outer:
                document[outer][inner] = value
            elif not outer:
                document[key] = value
        document.pop("", None)
        return document

    keys = st.sampled_from([*SIDES[number].obeyed * 3, *SIDES[number].silent[:5]]) | st.text(max_size=3)
    return st.dictionaries(keys, SIDE_VALUE, max_size=4).map(nested)


PRESENT = st.sampled_from([
    ["W_enc"], ["W_enc", "b_enc", "W_dec", "b_dec"], ["W_enc", "b_enc", "threshold"], ["W_enc", "log_threshold"], ["W_enc", "W_skip"],
    ["W_enc", "b_gate", "r_mag", "b_mag"],
    ["W_enc", "scaling_factor", "b_dec"], ["W_enc", "k", "threshold"],
])
SIDE_FILE = st.integers(0, len(SIDES) - 1).flatmap(lambda number: st.tuples(side_document(number), st.just(number), PRESENT, st.none() | st.integers(1, 9)))
EXACT_CASE = st.fixed_dictionaries({}, optional={
    "case": st.integers(0, 3) | ODD, "layer": st.just(0) | ODD, "flags": st.just([]) | ODD, "residual": st.just([1.0]) | ODD, "n_active": st.integers(0, 2) | ODD,
    "active": st.lists(st.fixed_dictionaries({"index": st.integers(0, 9) | ODD, "activation": st.floats() | ODD}), max_size=2),
    "reconstructions": st.lists(st.fixed_dictionaries({"target_layer": st.integers(0, 2), "values": st.lists(st.floats()) | ODD}), max_size=2) | ODD,
})
VECTORS = st.fixed_dictionaries({
    "format": st.just("x"), "weights": st.just("x"), "d_model": st.just(1), "n_features": st.just(10) | ODD, "notes": st.just({"f": {"catches": "x"}}) | ODD,
    "test_cases": st.lists(EXACT_CASE, max_size=2) | ODD,
})
ANSWERS = st.fixed_dictionaries({"test_cases": st.lists(EXACT_CASE, max_size=2) | ODD})

DOORS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "config.yaml": (of_yaml, YAML),
    "manifest.json": (of_manifest, MANIFEST | ODD),
    "JSON": (of_json, st.text('[]{}",:0123456789eE+-.truefalsnNaIity \\u\n', max_size=40) | JSON.map(json.dumps) | st.text()),
    "JSON files": (of_json_file, st.tuples(WITH_RESIDUALS, st.integers(4, 60), st.none() | st.integers(0, 2))),
    "references and candidates": (of_document, DOCUMENT | ODD),
    ".npy headers": (of_npy, NPY | st.text(max_size=30)),
    "zip archives": (of_zip, st.tuples(EDITS, st.just(0) | st.integers(0, 40), st.integers(0, 1))),
    "torch's archives": (of_torch_zip, st.tuples(EDITS, st.just(0) | st.integers(0, 40))),
    "torch's pickles": (of_pickle, PICKLE),
    "side files": (of_side_file, SIDE_FILE),
    "exact vectors": (of_vectors, st.tuples(VECTORS | ODD, ANSWERS | ODD)),
    "safetensors headers": (of_safetensors, st.dictionaries(st.text(max_size=5), ENTRY | ODD, max_size=3) | ODD),
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


def holds(check: Callable[[Any], None], strategy: st.SearchStrategy[Any], examples: int, mutants: int = 0) -> None:
    """A check holds for so many examples, and so many mutants of each."""

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
    holds(*DOORS[name], 50, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOORS)
def test_ten_thousand_things_at_a_parser_s_door(name: str) -> None:
    holds(*DOORS[name], 10_000)


# --- what a server answers ---------------------------------------------------------------------------------------------

LENGTH = st.sampled_from(["0", "5", "10", "16", "-1", "1e3", "0x5", "9" * 13, "9" * 5000, "5, 5", ""])
HEADER = st.sampled_from([
    "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Content-Encoding: identity", "Content-Type: text/html", "Content-Type: application/json",
    "Connection: close",
    'ETag: "abc"', 'ETag: W/"abc"', f'ETag: "{"a" * 64}"', f"X-Linked-Etag: {'b' * 64}", f"X-Repo-Commit: {'c' * 40}", "X-Repo-Commit: ../../x", "ETag: ../../x",
    "X-Error-Code: EntryNotFound",
    "X-Error-Message: a\u2028b", "Location: /x", "Location: http://[::1", "Location: //", "Retry-After: 9999999999", "Content-Range: bytes 2-6/10",
    "Content-Range: bytes 2-6/*",
    "Content-Range: bytes 0-9/10", "Content-Range: x", "Last-Modified: x", " folded", "no colon", ": empty",
]) | LENGTH.map("Content-Length: {}".format) | LENGTH.map("X-Linked-Size: {}".format) | st.text(max_size=8)
SIBLINGS = st.fixed_dictionaries({}, optional={
    "siblings": st.lists(st.fixed_dictionaries({"rfilename": st.text(max_size=5) | ODD}) | ODD, max_size=3) | ODD, "sha": st.just("c" * 40) | st.none() | ODD,
})
CHUNKS = ["5\r\n01234\r\n0\r\n\r\n", "-5\r\n", "5;x\r\n01234\r\n0\r\nX: y\r\n\r\n", "fffffffffff\r\n"]
BODY = st.sampled_from(["", "0123456789", "01234", *CHUNKS]) | (SIBLINGS | ODD).map(json.dumps) | st.text(max_size=9)
STATUSES = ["HTTP/1.1 200 OK"] * 4 + ["HTTP/1.1 206 Partial Content"] * 3
STATUSES += ["HTTP/1.0 200", "HTTP/1.1 302 Found", "HTTP/1.1 404 Not Found", "HTTP/1.1 503 x", "HTTP/1.1 204 x"]
STATUS = st.sampled_from(STATUSES) | st.text(max_size=9)
ANSWER = st.tuples(STATUS, st.lists(HEADER, max_size=4), BODY)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[hf.Hub, str, list[bytes]]]:
    """A server, its address, and the one answer that it gives to whatever it is asked."""
    answer = [b""]
    with scripted(lambda request: answer[0]) as scripted_server:
        yield hf.Hub(scripted_server.url, patience=5), scripted_server.url, answer


def of_answer(hub: hf.Hub, url: str, answer: list[bytes], parts: tuple[str, list[str], str]) -> None:
    """A listing, what is known of a file, and a part of it: each is what it may be, or an error of its own."""
    status, headers, body = parts
    answer[0] = "\r\n".join([status, *headers, "", body]).encode("utf-8", "surrogatepass")
    with contextlib.suppress(listing.ListingError, hf.HubConnectionError, hf.HfHubHTTPError):
        listed = listing.from_hub(hub, url, "org/repo", None)
        assert all(isinstance(path, str) for path in listed.paths) and json.loads(body[body.find("{") :].partition("\r")[0])["siblings"] is not None
    with contextlib.suppress(hf.FileMetadataError, hf.HubConnectionError, hf.HfHubHTTPError):
        known = hf.file_metadata(hub, url, "org/repo", "f", "main", 1)
        assert known.size is None or 0 <= known.size < hf.LARGEST
        assert re.fullmatch("[0-9a-f]{40}", known.commit_hash or "0" * 40) and "/" not in (known.etag or "")
    source = hf.Source(hub, hf.HfFileMetadata(None, None, 10, f"{url}/f"))
    with contextlib.suppress(hf.ConsistencyError, hf.HubConnectionError, hf.HfHubHTTPError), source.open(2, 7) as response:
        assert response.status_code != 206 or re.fullmatch(r"bytes 2-6/(10|\*)", response.headers["Content-Range"])
        with contextlib.suppress(EOFError):
            assert b"".join(hub.chunks(response)) in answer[0]


@pytest.mark.parametrize("examples", [30, pytest.param(10_000, marks=pytest.mark.slow)])
def test_anything_that_a_server_answers(examples: int, server: tuple[hf.Hub, str, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "FIRST_WAIT", 1e9)  # nothing is asked for twice
    holds(lambda parts: of_answer(*server, parts), ANSWER, examples)
