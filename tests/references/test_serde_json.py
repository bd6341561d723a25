# SPDX-License-Identifier: MIT OR Apache-2.0
"""What candle-mi's three encoder tests ask of a reference, by a Rust program that reads it with serde_json as they do.

The program is handed the weights as plain arrays, which the package of each format has read: it reads no weight file.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import worlds
from tests.support.encodings import Document, parsed
from tests.support.places import ROOT
from tests.support.process import run
from tests.support.rust import build, crates
from tests.support.worlds import World

pytestmark = pytest.mark.slow  # serde_json is compiled
# What candle-mi calls them, and the worlds of ours that are written so; CltSplit without thresholds is its fourth, which no test of its asserts.
SCHEMAS = {
    "GemmaScopeNpz": {"schema": "GemmaScopeNpz"}, "PltBundle": {"schema": "PltBundle", "threshold": False, "dtype": "bfloat16"},
    "CltSplitJumpReLU": {"schema": "CltSplit"}, "CltSplit": {"schema": "CltSplit", "threshold": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, linked with the serde_json that Debian packages."""
    place = tmp_path_factory.mktemp("reader")
    for source in (ROOT / "tests/consumer/reader").glob("*.rs"):
        (place / source.name).write_bytes(source.read_bytes())
    libraries = crates(place, "itoa", "ryu", "serde", "serde_json")
    return build(place / "main.rs", "-O", *libraries)


def reference(world: World, folder: Path) -> Document:
    """A reference of a world, of seeds whose answer no order of summation changes; its weights as arrays in `folder`."""
    mirror = world.lay_out(folder / "mirror")
    document = parsed(run("generate", "--mirror", mirror, *world.arguments, "--layers", "0,1,2", "--robust", "--quiet", "-o", "-"))
    (folder / "weights").mkdir()
    for layer in range(world.n_layers):
        arrays = worlds.read_weights(world, layer)
        for part, name in (("w_enc", "W_enc"), ("b_enc", "b_enc"), ("threshold", "threshold")):
            if part in arrays:
                (folder / f"weights/{name}_{layer}").write_bytes(arrays[part].astype("<f4").tobytes())
    return document


def read(reader: Path, document: Document, schema: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "reference.json").write_text(json.dumps(document))
    return subprocess.run([reader, folder / "reference.json", schema, folder / "weights"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_reference_passes(reader: Path, schema: str, tmp_path: Path) -> None:
    document = reference(worlds.make(**SCHEMAS[schema], d_model=384, n_features=640), tmp_path)
    read_by_serde = read(reader, document, schema, tmp_path)
    assert read_by_serde.returncode == 0, read_by_serde.stderr
    summary = re.fullmatch(r"9 cases in 8 orders, largest difference (\S+)\n", read_by_serde.stdout)
    assert summary and 0 < float(summary[1]) < 1e-5


def test_where_one_feature_fires(reader: Path, tmp_path: Path) -> None:
    """As in candle-mi's layer 27 of a CLT: its list is as short as what fires."""
    world = worlds.make("CltSplit", d_model=64, n_features=3)
    document = reference(world, tmp_path)
    assert 1 in {case["n_active"] for case in document["test_cases"]} <= {1, 2, 3}
    assert all(len(case["top_10"]) == case["n_active"] for case in document["test_cases"])
    assert read(reader, document, "CltSplitJumpReLU", tmp_path).returncode == 0


def _case(change: Callable[[Document], object]) -> Callable[[Document], object]:
    """A change of the sixth case."""
    return lambda document: change(document["test_cases"][5])


CHANGES: dict[str, tuple[Callable[[Document], object], str]] = {
    "another schema": (lambda document: document.update(schema="Sae"), 'schema is "Sae", not "GemmaScopeNpz"'),
    "another key for the repo": (lambda document: document.pop("curation_repo"), "curation_repo names no repo"),
    "d_model as a float": (lambda document: document.update(d_model=384.0), "d_model is no whole number"),
    "another width": (lambda document: document.update(n_features_per_layer=639), "W_enc_0 has 245760 values, not 245376"),
    "no cases": (lambda document: document.update(test_cases=[]), "there are no test cases"),
    "a residual cut": (_case(lambda case: case["residual"].pop()), "the residual has 383 values"),
    "a feature more": (_case(lambda case: case.update(n_active=case["n_active"] + 1)), "n_active is"),
    "a list cut": (_case(lambda case: case["top_10"].pop()), "top_10 has 9 entries"),
    "another order": (_case(lambda case: case["top_10"].reverse()), "place 0 is feature"),
    "a value that is off": (_case(lambda case: case["top_10"][9].update(activation=case["top_10"][9]["activation"] + 1.1e-4)), "the reference has"),
}  # fmt: skip


def test_what_is_wrong_fails(reader: Path, tmp_path: Path) -> None:
    document = reference(worlds.make("GemmaScopeNpz", d_model=384, n_features=640), tmp_path)
    assert min(case["n_active"] for case in document["test_cases"]) > 10
    for what, (change, problem) in CHANGES.items():
        changed = json.loads(json.dumps(document))
        change(changed)
        result = read(reader, changed, "GemmaScopeNpz", tmp_path)
        assert result.returncode == 1 and problem in result.stderr, (what, result.stderr)
