# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15: time and memory under hostile input. No input takes 240 MiB over its own weights, or 10 s without a byte of progress."""

from __future__ import annotations

import io
import json
import re
import resource
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vendored_hf as hf
from oracle import strict_json
from oracle.errors import WeightsError
from oracle.job import Job, Origin
from oracle.page import page
from oracle.references import layer as layers
from oracle.references.generate import generate
from oracle.sources import listing, mirror
from oracle.sources.curation import CurationError, parse_config
from oracle.weights.npz import Archive, Npz
from oracle.weights.sidefiles import SAELENS, Side
from tests.support.process import python, run
from tests.support.scripted import Request, head, scripted
from tests.support.small_scope import layer_arrays, npz

REPO, PATH = "org/weights", "a/params.npz"
MOST_MEMORY, MOST_TIME = 240, 10  # MiB, seconds
LONG_JOB = 2 * MOST_TIME  # for right files of the largest size, which take work that shows its progress

# ru_maxrss of a child is that of its parent too: the kernel's own mark begins with the program.
MEASURED = """
import re, sys
from oracle.terminal.commands import main
code = main(sys.argv[1:])
print()
print(code, int(re.search(r"VmHWM:\\s*([0-9]+)", open("/proc/self/status").read())[1]) // 1024)
"""


def measured(*arguments: str, weights: int = 0, most_seconds: float = MOST_TIME, **options: Any) -> tuple[int, str]:
    """The command line as a process: its exit code and what it printed; and it keeps the two limits, over so many MiB of weights.

    Its time is that of the processor, its threads' together: what a hostile file makes it compute, whatever else this machine does.
    What it waits for has limits of its own, which other tests measure; here no more than that it ends is asked of the clock.
    """
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = python("-c", MEASURED, *arguments, **options)
    elapsed, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert ran.stdout, ran.stderr[-2000:]
    code, memory = map(int, ran.stdout.split()[-2:])
    print(f"{memory} MiB, {seconds:.1f} s of processor, {elapsed:.1f} s in all, exit {code}: {ran.stderr.strip()[-160:]}")  # as pytest -rP shows it
    assert memory < MOST_MEMORY + weights and seconds < most_seconds and elapsed < 6 * MOST_TIME, (memory, seconds, elapsed)
    return code, ran.stdout.rstrip("\n").rpartition("\n")[0] + ran.stderr


# --- documents -----------------------------------------------------------------------------------------------------

LARGE = {
    "objects": b"{},", "lists": b"[],", "lists of one": b"[1],", "zeros": b"0,", "floats": b"1.5,", "texts": b'"ab",', "entries": b'{"a":1},',
    "keys": b'{"index":1,"activation":1.5},', "colons": b'":::",', "digits": b"7" * 4000 + b",", "nested": b"[",
}  # fmt: skip
# What takes the longest of what may be read: a number between two floats, which is no nearer to either for 90 digits.
TIE = format(Decimal(2**53 + 1) * Decimal(2) ** -105, "E").encode()
LONG = {
    "integers": b"7" * 100 + b",", "ties": TIE + b",", "packed ties": b'{"residual": [' + (TIE + b",") * 99 + TIE + b"]},", "short lists": b'{"residual":[1.5]},',
    "escapes": b'"' + b"\\n" * 5000 + b'",', "characters": '"é😀",'.encode(), "wide characters": b'"' + b"a" * 5_000 + b'\\ud83d\\ude00",',
    "a backslash and a key": b'"\\"residual":[1.5],', "spaces": b" " * 1000 + b"1,",
}  # fmt: skip


SMALLER = {"digits": 60_000_000, "ties": 55_000_000, "escapes": 65_000_000, "wide characters": 28_000_000}  # of which all is read


@pytest.mark.parametrize("name, size", [*((name, 200_000_000) for name in LARGE | LONG), *SMALLER.items()])
@pytest.mark.slow
def test_a_candidate_of_200_mb(name: str, size: int, demo_folder: Path, tmp_path: Path) -> None:
    piece = (LARGE | LONG)[name]
    with (tmp_path / "candidate.json").open("wb") as file:
        file.write(b'{"test_cases": [')
        for _ in range(size // len(piece) // 1000):
            file.write(piece * 1000)
        file.write(b"0]}")
    code, said = measured("compare", str(demo_folder / "plt_gemma_reference.json"), str(tmp_path / "candidate.json"))
    assert code == 4 and said.count("\n") == 1, said


NUMBERS = {
    "0": 0, "18446744073709551615": 2**64 - 1, "-9223372036854775808": -(2**63), "42.0": 42.0, "1e-42": 1e-42, "0.30000000000000004": 0.30000000000000004,
    "1.7976931348623157e308": 1.7976931348623157e308, "-0." + "0" * 323 + "5": -5e-324, "17976931348623157" + "0" * 292: int("17976931348623157" + "0" * 292),
    format(Decimal(0.1), "f"): 0.1, "7" * 100: int("7" * 100),
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_that_documents_hold(text: str) -> None:
    assert strict_json.loads(text) == NUMBERS[text] and type(strict_json.loads(text)) is type(NUMBERS[text])


@pytest.mark.parametrize("text", ["7" * 101, "-" + "7" * 5000, "1." + "3" * 100, "0." + "0" * 500 + "1", "1" + "0" * 500, "1e" + "9" * 1000])
def test_numbers_of_more_digits_than_any_needs(text: str) -> None:
    for content in (text, f'{{"residual": [0.5, {text}]}}'):
        with pytest.raises(ValueError, match="a number has .* at most 100 digits are read"):
            strict_json.load(io.BytesIO(content.encode()), 1 << 20)


@pytest.mark.parametrize("name", sorted(LARGE.keys() - {"digits"}))  # which take no more memory than bytes
def test_json_that_would_take_more_than_its_share(name: str) -> None:
    text = b"[" + LARGE[name] * (40_000_000 // len(LARGE[name])) + b"0]"
    began = time.monotonic()
    with pytest.raises(ValueError, match="MiB of memory"):
        strict_json.loads(text)
    assert time.monotonic() - began < MOST_TIME


@pytest.mark.parametrize("each", ['"%x":0,', '"%x":{"y%x":1},', '"\\t%x" :0,'])
def test_keys_that_all_differ_take_their_share(each: str, demo_folder: Path, tmp_path: Path) -> None:
    """Those of a document are the same objects each time; 20 MB of others took 424 MiB."""
    pairs = "".join(each % ((number,) * each.count("%")) for number in range(600_000))
    (tmp_path / "candidate.json").write_text(f'{{"test_cases":[],{pairs}"z":0}}')
    ran = run("compare", str(demo_folder / "plt_gemma_reference.json"), str(tmp_path / "candidate.json"))
    assert ran.returncode == 4 and "more than 140 MiB of memory" in ran.stderr, ran.stderr


def test_memory_is_estimated_from_above() -> None:
    """What Python's own objects take, with all that hangs on them; numbers of one value are one object."""
    import sys

    def size(value: Any) -> int:
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        return sys.getsizeof(value) + sum(map(size, inner))

    for piece in LARGE.values():
        text = "[" + piece.decode() * 500 + "0]"
        if piece != LARGE["nested"] and piece != LARGE["colons"]:
            assert strict_json.memory_of(text) >= 0.8 * size(json.loads(text)), piece


@pytest.mark.slow
def test_250_mb_of_residuals_are_read(demo_folder: Path, tmp_path: Path) -> None:
    """Here of a key that nobody knows, so that the reference was edited."""
    document = json.loads((demo_folder / "plt_gemma_reference.json").read_text())
    residual = json.dumps({"residual": np.random.default_rng(0).standard_normal(2304).astype(np.float32).tolist()})
    with (tmp_path / "r.json").open("w") as file:
        file.write(json.dumps(document)[:-1] + ', "more": [')
        for _ in range(250_000_000 // len(residual)):
            file.write(residual + ",\n")
        file.write("0]}")
    answers = {"test_cases": [{**case, "residual": None} for case in document["test_cases"]]}
    (tmp_path / "c.json").write_text(json.dumps(answers))
    code, said = measured("compare", str(tmp_path / "r.json"), str(tmp_path / "c.json"), most_seconds=LONG_JOB)
    assert code == 0 and "edited" in said, said


@pytest.fixture(scope="module")
def long_reference(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    def build(count: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("long")
        document = json.loads((demo_folder / "plt_gemma_reference.json").read_text())
        first = document["test_cases"][0]
        del first["residual"]
        document["test_cases"] = cases = [{**first, "seed": 100 * number} for number in range(count)]
        (folder / "reference.json").write_text(json.dumps(document))
        answers = [{key: case[key] for key in ("layer", "seed", "n_active", "top_10")} for case in cases]
        (folder / "candidate.json").write_text(json.dumps({"test_cases": answers}))
        return folder / "reference.json", folder / "candidate.json"

    return build


@pytest.mark.slow
@pytest.mark.parametrize("count, codes", [(5_000, (0, 0)), (20_000, (0, 2)), (100_000, (4, 4))])
def test_a_reference_of_many_cases(count: int, codes: tuple[int, int], long_reference: Callable[[int], tuple[Path, Path]], tmp_path: Path) -> None:
    reference, candidate = long_reference(count)
    assert measured("compare", str(reference), str(candidate), "--quiet", most_seconds=LONG_JOB)[0] == codes[0]
    assert measured("report", str(reference), str(candidate), "-o", str(tmp_path / "r.html"), "--quiet", most_seconds=LONG_JOB)[0] == codes[1]


@pytest.mark.parametrize("limit, count", [(600, 55), pytest.param(page.ROW_LIMIT, 5_500, marks=pytest.mark.slow)])
def test_a_page_that_would_be_too_long(
    limit: int, count: int, long_reference: Callable[[int], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "ROW_LIMIT", limit)
    reference, _ = long_reference(count)
    ran = run("report", str(reference), "-o", str(tmp_path / "r.html"))
    assert ran.returncode == 2 and f"{11 * count:,} rows" in ran.stderr and f"{limit:,} are the most" in ran.stderr, ran.stderr
    assert not (tmp_path / "r.html").exists()


@pytest.mark.slow
def test_verify_of_ten_thousand_layers(demo_folder: Path, tmp_path: Path) -> None:
    document = json.loads((demo_folder / "plt_gemma_reference.json").read_text())
    case, record = document["test_cases"][0], document["layers"][0]
    del case["residual"]
    document["layers"] = [{**record, "layer": layer} for layer in range(10_000)]
    document["test_cases"] = [{**case, "layer": layer, "seed": layer, "stream": layer} for layer in range(9_999, 10_000)]
    (tmp_path / "r.json").write_text(json.dumps(document))
    code, said = measured("verify", str(tmp_path / "r.json"), "--offline", "--cache-dir", str(demo_folder / "hub"), "--quiet")
    assert code in (1, 3, 4), said[-500:]


def test_standard_input_that_is_closed(demo_folder: Path) -> None:
    program = "import os, sys; sys.stdin = None; from oracle.terminal.commands import main; sys.exit(main(sys.argv[1:]))"
    ran = python("-c", program, "compare", str(demo_folder / "plt_gemma_reference.json"), "-")
    assert ran.returncode == 2 and "standard input is closed" in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr


# --- config.yaml ---------------------------------------------------------------------------------------------------

PIECES = ["[", "{", '"', "'", '""', "''", "[]", "{}", "[],", '"a",', "- a\n", "a: \n", "? ", "- ", "|", "- |\n", "x", " ", "\n", "#\n", "\t",
          "&a ", "*a ", "!a ", "%a b\n", "---\n", "\\u0041", '"\\u0041"', "é", "\x85", "\u2028", ": ", ",", "]", "x ", "x\n ", "- a\x85", "? a\x85",
          "? " * 15 + "\n", "- " * 15 + "x\n", "- !a%41%41 x\n",
          "- &a x\n", "#" * 31 + "\n", "x" * 31 + "\n", "[" * 300 + "]" * 300 + ",", "- x" + " " * 28 + "\n"]  # fmt: skip


@pytest.mark.parametrize("start", ["", "transcoders: [", 'a: "'])
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.slow
def test_a_config_of_1_mib(piece: str, start: str) -> None:
    text = (start.encode() + piece.encode() * (1 << 20))[: 1 << 20]
    began = time.process_time()
    with pytest.raises(CurationError):
        parse_config(text)
    assert time.process_time() - began < MOST_TIME / 2


@pytest.mark.parametrize("text", [
    rb'"\UFFFFFFFF"', rb'"\U00110000"', rb'"\uD800"', b"a: 99999999999-01-01", b"a: !!timestamp 9999999999999-01-01", b"\xff\xfe\x00", b"\x00", b"a: !!int 1e9",
    b"[" * 2000, b"? " * 2000, b"- " * 5000, b"{a: " * 3000, b"&a [*a]", b"%YAML 9.9\n---\na", b"a: !!binary =", b"<<: [*x]", b"!!python/object:os.system x",
])
def test_yaml_that_its_library_stumbles_over(text: bytes) -> None:
    with pytest.raises(CurationError):
        parse_config(text)


def test_a_list_of_all_entries_that_may_be_is_read() -> None:
    entries = "".join(f'  - "hf://org/repo/a, b/layer_{layer}/average_l0_{layer}/params.npz?revision=v1"  # [{layer}]\n' for layer in range(1024))
    files = parse_config(f"model_kind: transcoder_set\ntranscoders:\n{entries}".encode()).files
    assert files is not None and len(files) == 1024


# --- manifests, listings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["objects", "entries", "texts", "nested", "zeros"])
@pytest.mark.parametrize("where", ["manifest", "listing"])
@pytest.mark.slow
def test_answers_of_16_mib(where: str, name: str, tmp_path: Path) -> None:
    body = (b'{"format_version": 1, "files": [' if where == "manifest" else b'{"siblings": [') + LARGE[name] * (listing.LIMIT // len(LARGE[name]))
    body = body[: listing.LIMIT - 3] + b"0]}"

    def answer(request: Request) -> bytes:
        if ("/manifest.json" if where == "manifest" else "/api/") in request.target:
            return head("200 OK", Content_Type="application/json", Content_Length=len(body)) + body
        return head("404 Not Found", Content_Length=0, X_Error_Code="EntryNotFound")

    with scripted(answer) as server:
        code, said = measured("--mirror", server.url, "--repo", "org/repo", "-o", str(tmp_path / "out"))
    assert code in (3, 4) and "mistake in oracle" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize("count", [listing.MOST_PATHS, listing.MOST_PATHS + 1])
def test_a_listing_of_as_many_files_as_are_read(count: int, tmp_path: Path) -> None:
    body = json.dumps({"siblings": [{"rfilename": f"layer_{number % 1000}.safetensors"} for number in range(count)]}).encode()

    def answer(request: Request) -> bytes:
        if "/api/" in request.target:
            return head("200 OK", Content_Type="application/json", Content_Length=len(body)) + body
        return head("404 Not Found", Content_Length=0, X_Error_Code="EntryNotFound")

    with scripted(answer) as server:
        code, said = measured("--mirror", server.url, "--repo", "org/repo", "-o", str(tmp_path / "out"))
    assert code == (4 if count > listing.MOST_PATHS else 3) and ("at most 100000 are read" in said) == (code == 4), said
    paths = ["a"] * count
    manifest = json.dumps({"format_version": 1, "files": [], "listings": [{"repo": "a/b", "revision": "main", "commit": None, "paths": paths}]}).encode()
    if count > listing.MOST_PATHS:
        with pytest.raises(mirror.MirrorError, match="more than 100000 files"):
            mirror.parse_manifest(manifest, "m")
    else:
        assert mirror.parse_manifest(manifest, "m").listings[0].paths == tuple(paths)


# --- weights -------------------------------------------------------------------------------------------------------


def of_a_long_directory(size: int) -> bytes:
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 45, 45, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    directory = entry * (size // len(entry))
    count = len(directory) // len(entry)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(directory), 1)
    return directory + record + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


@pytest.mark.parametrize("looked", [True, False])
def test_a_directory_of_zip64_past_its_limit(looked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the zip module finds one that we did not look at."""
    if not looked:
        monkeypatch.setattr(Archive, "_check_directory_size", lambda self: None)
    content = of_a_long_directory(30_000_000)
    began = time.monotonic()
    with pytest.raises(WeightsError, match="directory claims .* at most 1048576 are read"):
        Npz(io.BytesIO(content), "f")
    assert time.monotonic() - began < 1


def of_header(text: str, data: bytes = b"") -> bytes:
    header = text.encode().ljust(64)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("W_enc.npy", b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + data)
    return archive.getvalue()


@pytest.mark.parametrize("shape", [
    f"(0x{'f' * 30_000}, 1)", f"({'9' * 30_000},)", f"(-0x{'f' * 30_000},)", f"(1, {'9' * 4300})", "(1j,)", "(1e999,)", "(True, 1)", "'" + "x" * 60_000 + "'",
    "[" * 190 + "]" * 190, "{1: 2}", "((((1,),),),)", "(1," * 30, "set()", "b'x'", "...", "1 if 1 else 2", "(" * 2000,
])
def test_npy_headers_of_odd_numbers(shape: str) -> None:
    with pytest.raises(WeightsError) as error:
        Npz(io.BytesIO(of_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")), "f").tensor("W_enc")
    assert "\n" not in str(error.value) or len(str(error.value)) < 100_000


@pytest.mark.slow
def test_an_archive_of_as_many_members_as_may_be() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(19_000):
            archive.writestr(str(number), b"")
    began = time.process_time()
    file = Npz(content, "f")
    for name in file.names:
        with pytest.raises(WeightsError):
            file.tensor(name)
    assert time.process_time() - began < MOST_TIME / 2


@pytest.mark.parametrize("keys, dots", [(70_000, 0), (1, 1_000_000)])
def test_a_side_file_of_1_mib(keys: int, dots: int) -> None:
    """Of many keys, each of which says nothing, and of one of many dots."""
    inner = {str(number) + "." * dots: {} for number in range(keys)}
    text = json.dumps({"metadata": inner}).encode()
    assert 800_000 < len(text) <= 1 << 20
    began = time.process_time()
    assert Side.read(SAELENS, io.BytesIO(text), "f", ()).values == {}
    assert time.process_time() - began < 1


@pytest.mark.slow
@pytest.mark.parametrize("alive", [1, 0])
def test_two_million_features_by_16_seeds(alive: int, tmp_path: Path) -> None:
    """Dead ones are all at their gates."""
    d_model, n_features = 8, 2_000_000
    rng = np.random.default_rng(0)
    encoder = rng.standard_normal((d_model, n_features), dtype=np.float32) * np.float32(alive)
    folder = tmp_path / "tree/org/repo/resolve/main/layer_0"
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz", W_enc=encoder, b_enc=encoder[0], threshold=np.full(n_features, 3 * alive, np.float32),
        W_dec=np.zeros((n_features, d_model), np.float32), b_dec=np.zeros(d_model, np.float32),
    )  # fmt: skip
    size = (folder / "params.npz").stat().st_size >> 20
    place = ["--mirror", str(tmp_path / "tree"), "--quiet"]
    job = ["--repo", "org/repo", "--path", "layer_0/params.npz", "--schema", "GemmaScopeNpz", "--layers", "0", "--seeds", "16"]
    for command in ([*place, *job, "-o", str(tmp_path / "out")], ["verify", str(tmp_path / "out"), *place]):
        code, said = measured(*command, weights=size, most_seconds=LONG_JOB)
        assert code == 0, said


def test_more_dead_features_than_are_named(tmp_path: Path) -> None:
    """The bounds say how many may fire; which they are is not said, so that one that comes onto a port's list is told as such."""
    n_features = 131_073
    place = tmp_path / "tree/org/repo/resolve/main/params.npz"
    place.parent.mkdir(parents=True)
    names = {"W_enc": (2, n_features), "b_enc": (n_features,), "threshold": (n_features,), "W_dec": (n_features, 2), "b_dec": (2,)}
    place.write_bytes(npz({name: np.zeros(shape, np.float32) for name, shape in names.items()}))
    origin = ["--mirror", str(tmp_path / "tree"), "--repo", "org/repo", "--path", "params.npz", "--schema", "GemmaScopeNpz"]
    reference, answers = tmp_path / "reference.json", tmp_path / "answers.json"
    assert run(*origin, "--layers", "0", "--seeds", "1", "-o", str(reference)).returncode == 0
    [case] = json.loads(reference.read_text())["test_cases"]
    assert case["n_active_bounds"] == [0, n_features] and case["gate_ties"] is None
    assert run("verify", str(reference), *origin[:2]).returncode == 0
    all_fire = {"layer": 0, "seed": 0, "n_active": n_features, "top_10": [{"index": index, "activation": 0.0} for index in range(10)]}
    answers.write_text(json.dumps({"test_cases": [all_fire]}))
    ran = run("compare", str(reference), str(answers))
    assert ran.returncode == 1 and "names none of the features at their gates, for there are too many" in " ".join(ran.stdout.split())
    assert run("compare", str(reference), str(reference)).returncode == 0


def test_many_features_take_fewer_seeds_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are the same; what differs is how many pre-activations there are at a time."""
    tree = tmp_path / "tree/org/repo/resolve/main"
    tree.mkdir(parents=True)
    (tree / "layer_0").mkdir()
    (tree / "layer_0/params.npz").write_bytes(npz(layer_arrays(0)))
    job = Job(Origin("org/repo", ("layer_0/params.npz",), mirror=str(tmp_path / "tree"), schema="GemmaScopeNpz"), layers=(0,), seeds=9)
    cases = generate(job).cases
    groups: list[int] = []
    encode = layers.encoder.encode

    def counted(encoder: Any, inputs: np.ndarray, **options: Any) -> Any:
        groups.append(len(inputs))
        return encode(encoder, inputs, **options)

    monkeypatch.setattr(layers.encoder, "encode", counted)
    for values, expected in ((1 << 21, [9]), (96 * 4, [4, 4, 1]), (1, [1] * 9)):
        monkeypatch.setattr(layers, "VALUES_AT_ONCE", values)
        groups.clear()
        assert generate(job).cases == cases and groups == expected


# --- servers -------------------------------------------------------------------------------------------------------


@contextmanager
def pouring(start: bytes, piece: bytes, pause: float = 0.0, times: int = 1 << 40) -> Iterator[str]:
    """A server that answers every request with `start`, and then with `piece` for ever, each after a pause."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        try:
            connection.recv(65536)
            connection.sendall(start)
            for _ in range(times):
                if ended.wait(pause) or not piece:
                    break
                connection.sendall(piece)
        except OSError:
            pass
        finally:
            connection.close()

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()


OK = b"HTTP/1.1 200 OK\r\n"
FLOODS: dict[str, tuple[bytes, bytes, float]] = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0), "100 Continue, slowly": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2),
    "headers": (OK, b"X-A: b\r\n" * 100, 0), "headers, slowly": (OK, b"X-A: b\r\n", 0.2), "one header": (OK + b"X-A: ", b"b" * 65536, 0),
    "a header, slowly": (OK + b"X-A: ", b"b", 0.2), "a status line": (b"HTTP/1.1 ", b"2" * 65536, 0), "folded": (OK + b"X-A: b\r\n", b" c\r\n", 0.05),
    "no HTTP": (b"", b"\x00\xff" * 1000, 0), "redirects": (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"", 0),
    "a body, slowly": (OK + b"Content-Length: 100000\r\n\r\n", b"x", 0.2),
    "chunks, slowly": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.2),
    "a chunk's size": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536, 0),
    "a chunk's extension": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536, 0),
    "a chunk of -5": (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", b"x" * 65536, 0),
    "a chunk of -1": (OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * 65536, 0),
    "a chunk of 1e30": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n", b"x" * 65536, 0),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n" * 100, 0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_server_that_never_ends_is_left(name: str) -> None:
    """Within the patience of one request, whatever it pours out, and without taking it all in."""
    start, piece, pause = FLOODS[name]
    began = time.monotonic()
    with pouring(start, piece, pause) as url:
        hub = hf.Hub(url, patience=1)
        with pytest.raises((OSError, ValueError)) as raised:
            listing.fetch(hub, f"{url}/x", "")
        assert isinstance(raised.value, (hf.HubConnectionError, hf.HfHubHTTPError)), repr(raised.value)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("name", ["a body, slowly", "chunks, slowly", "a chunk of -5", "a chunk of -1"])
def test_a_download_that_drips_is_left(name: str) -> None:
    start, piece, pause = FLOODS[name]
    known = hf.HfFileMetadata(None, None, 100_000, "")
    with pouring(start, piece, pause) as url:
        began = time.monotonic()
        with pytest.raises(OSError):
            hf.hf_hub_file(REPO, PATH, endpoint=url, patience=1, known=hf.HfFileMetadata(None, None, known.size, f"{url}/x"))
        assert time.monotonic() - began < 9


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOODS)
def test_a_server_that_never_ends_takes_no_memory(name: str, tmp_path: Path) -> None:
    start, piece, pause = FLOODS[name]
    with pouring(start, piece, pause) as url:
        code, said = measured("--mirror", url, "--repo", "org/repo", "--patience", "3", "-o", str(tmp_path / "out"))
    assert code in (3, 4) and "mistake in oracle" not in said, said


@pytest.mark.parametrize("date", ["Fri, 31 Dec 99999999999 23:59:59 GMT", "0 0 0 0 0", "Fri, 31 Dec 1 00:00:00 +9999", "\x00", "Mon, 00 Jan 0000 00:00:00 GMT"])
def test_dates_of_huge_years(date: str) -> None:
    with scripted(lambda request: head("429 Too Many", Content_Length=0, Retry_After=date)) as server:
        with pytest.raises(hf.HfHubHTTPError):
            hf.Hub(server.url, patience=0.5).request("GET", f"{server.url}/x", timeout=5)


@pytest.mark.parametrize("size", ["9" * 12, *(pytest.param(size, marks=pytest.mark.slow) for size in ("9" * 13, "9" * 400, "-1", "0x10", "1e3"))])
def test_sizes_that_a_server_tells(size: str, tmp_path: Path) -> None:
    """A terabyte is no size that is set aside before a byte of it has come."""
    with scripted(lambda request: head("200 OK", Content_Length=size)) as server:
        code, said = measured("--mirror", server.url, "--repo", "org/repo", "--path", "a/params.npz", "--patience", "2", "-o", str(tmp_path / "out"))
    assert code in (3, 4) and not re.search("mistake in oracle|Memory", said), said


def test_a_manifest_s_manifest(tmp_path: Path) -> None:
    for text in (b"[]", b"0", b'"x"', b"null", b'{"format_version": 1, "files": 3}', b'{"format_version": 1, "files": [[]]}', b"\xff", b"[" * 100_000):
        with pytest.raises(mirror.MirrorError):
            mirror.parse_manifest(text, "m")
