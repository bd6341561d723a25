# SPDX-License-Identifier: MIT OR Apache-2.0
"""curation.py: the real list, and lists that contradict themselves."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle.sources.curation import CurationError, HubFile, parse_config, parse_uri
from tests.support.places import shared
from tests.support.small_scope import config, path_of

# What the real list says, in our own words: the average L0 of each of the 26 layers.
AVERAGE_L0 = [76, 65, 49, 54, 88, 87, 95, 70, 52, 72, 88, 5, 6, 8, 8, 8, 10, 12, 13, 12, 11, 13, 15, 25, 37, 41]


def listing(*entries: str) -> bytes:
    return ("transcoders:\n" + "".join(f"  - '{entry}'\n" for entry in entries)).encode()


def test_the_real_list() -> None:
    files = parse_config(shared("data/curation_config.yaml").read_bytes()).files
    repo = "google/gemma-scope-2b-pt-transcoders"
    assert files == {
        layer: HubFile(repo, None, f"layer_{layer}/width_16k/average_l0_{l0}/params.npz")
        for layer, l0 in enumerate(AVERAGE_L0)
    }
    assert len(files) == 26


def test_revisions_and_paths_without_a_layer() -> None:
    assert parse_config(listing("hf://a/b/x.npz?revision=v1.0", "hf://c/d/e/layer_1.safetensors")).files == {
        0: HubFile("a/b", "v1.0", "x.npz"),
        1: HubFile("c/d", None, "e/layer_1.safetensors"),
    }
    assert parse_uri("hf://org/my.repo-1/a b/c?revision=refs/pr/3") == HubFile("org/my.repo-1", "refs/pr/3", "a b/c")


BAD = {
    "a list": (b"[1, 2]", "not a mapping"),
    "nothing": (b"", "not a mapping"),
    "tags that fail": (b"transcoders: [!!bool x, !!timestamp y, !!int '']", "not an hf://"),
    "a sexagesimal": (b"transcoders: [" + b"1:" * 400 + b"1.0]", "not an hf://"),
    "a surrogate": (b'transcoders: ["hf://a/b/\\ud800.npz"]', "lead out"),
    "an escape for the terminal": (b'transcoders: ["hf://a/b/\\x9b31m.npz"]', "lead out"),
    "merges that multiply": (
        b"a0: &a0 {k: v}\n" + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)),
        "`a0` is a mapping"),
    "a key twice among many": (b"".join(b"k%d: v\n" % n for n in range(5_000)) + b"k1: v\n", "stands twice"),
    "text": (b"<!DOCTYPE html><p>", "not a mapping"),
    "nothing of use": (b"model_name: gemma", "neither a `transcoders`"),
    "a kind that is no text": (b"model_kind: [x]", "`model_kind` is a list"),
    "empty list": (b"transcoders: []", "0 entries"),
    "a mapping of them": (b"transcoders: {0: x}", "a mapping, not a list"),
    "an entry that is a mapping": (b"transcoders: ['hf://a/b/x.npz', {hf: //a/b/c}]", "a transcoder is a mapping, not an hf:// address"),
    "an entry that is a list": (b"transcoders: [[hf://a/b/c]]", "a transcoder is a list, not an hf:// address"),
    "one string": (b"transcoders: hf://a/b/c", "a string, not a list"),
    "a number": (b"transcoders: [1]", "'1' is not an hf://"),
    "null": (b"transcoders: [null]", "'null' is not an hf://"),
    "too many": (listing(*(f"hf://a/b/{i}.npz" for i in range(1025))), "1025 entries"),
    "too large": (b"# " + b"x" * 2**20, "at most 1048576"),
    "not YAML": (b"a: [", "not readable YAML"),
    "nested": (b"[" * 30_000, "not readable YAML"),
    "Python object": (b"transcoders: !!python/object/apply:os.abort [x]", "not an hf://"),
    "not UTF-8": (b"a: \xff\xfe", "not readable YAML"),
    "a key twice": (config(2) + b"transcoders: []\n", "stands twice"),
    "parent folder": (listing("hf://a/b/../../etc/passwd"), "lead out"),
    "dot": (listing("hf://a/b/./c"), "lead out"),
    "leading slash": (listing("hf://a/b//etc/passwd"), "lead out"),
    "backslash": (listing("hf://a/b/c\\..\\d"), "lead out"),
    "NUL": (b'transcoders: ["hf://a/b/c\\0d"]', "lead out"),
    "dots in the repo": (listing("hf://a/../c"), "hf://org/repo/path"),
    "no path": (listing("hf://a/b"), "hf://org/repo/path"),
    "a data set": (listing("hf://datasets/a/b/c"), "datasets is no org"),
    "https": (listing("https://huggingface.co/a/b/resolve/main/c"), "not an hf:// address"),
    "a file": (listing("file:///etc/passwd"), "not an hf:// address"),
    "no scheme": (listing("layer_0/params.npz"), "not an hf:// address"),
    "other query": (listing("hf://a/b/c?download=true"), "not revision="),
    "revision with dots": (listing("hf://a/b/c?revision=../x"), "not revision="),
    "empty revision": (listing("hf://a/b/c?revision="), "not revision="),
    "a layer twice": (listing("hf://a/b/layer_0/x.npz", "hf://a/b/layer_0/y.npz"), "entry 1 stands for layer 1, but its path is layer_0/y.npz"),
    "a file twice": (listing("hf://a/b/x.npz", "hf://a/b/x.npz"), "twice"),
    "out of place": (listing("hf://a/b/layer_1/x.npz", "hf://a/b/layer_0/x.npz"), "entry 0 stands for layer 0"),
    "from layer 5 on": (listing("hf://a/b/layer_5/x.npz"), "entry 0 stands for layer 0"),
    "two layers in a path": (listing("hf://a/b/layer_0/layer_3.npz"), "layers 0 and 3"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_bad_lists_are_refused(text: bytes, message: str) -> None:
    began = time.process_time()
    with pytest.raises(CurationError) as error:
        parse_config(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert time.process_time() - began < 5


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), st.text(max_size=60).map(lambda t: listing(f"hf://{t}"))))
def test_nothing_but_a_curation_error(text: bytes) -> None:
    try:
        files = parse_config(text).files or {}
    except CurationError:
        return
    for file in files.values():
        assert ".." not in file.path.split("/") and not file.path.startswith("/") and "\\" not in file.path


def test_generated_lists() -> None:
    assert [file.path for file in (parse_config(config(30)).files or {}).values()] == [path_of(layer) for layer in range(30)]
