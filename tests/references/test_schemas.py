# SPDX-License-Identifier: MIT OR Apache-2.0
"""The JSON Schemas say what the readers say: they are made of the same rows, and what one refuses the other does too."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oracle.checking import vectors
from oracle.references import document, reading, rows
from oracle.references.document import SCHEMA_ID, Case, LayerRecord, Reconstruction, Reference, SkippedSeed, digest
from oracle.references.rows import DataError
from tests.support import schemas
from tests.support.encodings import parsed, read, stripped
from tests.support.process import oracle, run

pytestmark = pytest.mark.skipif(schemas.jsonschema is None, reason=schemas.MISSING)

REFERENCE = "plt_gemma_reference.json"
# What only a reader can see: how lists and numbers hang together.
BEYOND = ("gate_ties", "residual", "layers", "n_active_bounds", "d_model", "n_features_per_layer", "n_features", "n_active", "case", "notes", "flags")
VALUES = (None, True, 3, -3, 0.5, "text", [], ["text"], {})


NAMES = ("reference", "candidate", "vectors", "answers")


def door(name: str, instance: Any) -> Any:
    doors = {"reference": reading.parse_reference, "vectors": vectors.parse_vectors, "answers": vectors.parse_answers}
    return doors[name](instance) if name in doors else reading.parse_candidate(instance, 10)


def refused(name: str, instance: Any) -> bool:
    try:
        door(name, instance)
    except DataError:
        return True
    return False


def places(instance: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has keys: of lists the first two items are enough."""
    if isinstance(instance, dict):
        for key, value in instance.items():
            yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(instance, list):
        for number, value in enumerate(instance[:2]):
            yield from places(value, (*path, number))


def parent_of(instance: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        instance = instance[key]
    return instance


@pytest.fixture(scope="module")
def documents(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A reference with nearly every key that there is, a candidate with all; and exact vectors, with a port's answers."""
    folder = tmp_path_factory.mktemp("clt")
    assert run("demo", "--schema", "CltSplit", "--decode", "--folder", str(folder), "--quiet").returncode == 0
    source = ("--offline", "--cache-dir", str(folder / "hub"))
    written = parsed(run("--repo", "oracle-demo/synthetic-CltSplit", *source, "--decode", "--robust", "--seeds", "1", "--tolerance", "0.001", "-o", "-", "--quiet"))
    candidate = stripped(written)
    for own, case in zip(candidate["test_cases"], written["test_cases"]):
        names = ("activation_sum", "activation_sum_of_squares", "residual_fingerprint", "reconstructions")
        own |= {name: copy.deepcopy(case[name]) for name in names}
    assert "skipped_seeds" in written and "decoder_path" in written["layers"][0]
    assert run("vectors", "--format", "SaeLens", "--folder", str(folder), "--quiet").returncode == 0
    exact = read(next(folder.glob("SaeLens*/vectors.json")))
    exact["test_cases"] = [case for case in exact["test_cases"] if "reconstructions" in case and case["n_active"]][:4]
    answers = {"test_cases": [{key: case[key] for key in ("case", "n_active", "active", "reconstructions")} for case in exact["test_cases"]]}
    return {"reference": written, "candidate": candidate, "vectors": exact, "answers": answers}


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_one_and_takes_what_is_right(documents: dict[str, Any], name: str) -> None:
    schema = json.loads(run("schema", name).stdout)
    assert schema == schemas.SCHEMAS[name]() and schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == rows.schema_id(name)
    assert schemas.problem(name, documents[name]) is None and not refused(name, documents[name])


@pytest.mark.parametrize("name", NAMES)
def test_what_one_misses_the_other_misses(documents: dict[str, Any], name: str) -> None:
    """Every key that there is, taken out."""
    whole, n_required = documents[name], 0
    for path in places(whole):
        if path[0] in ("gate", "encoder_input", "tensors", "environment", "notes", "layers" if name == "vectors" else ""):  # whose keys nobody asks for
            continue
        instance = copy.deepcopy(whole)
        del parent_of(instance, path)[path[-1]]
        expected = refused(name, instance)
        if path[-1] in ("activation_sum_tolerance", "activation_sum_of_squares_tolerance", "residual_generator"):
            assert expected
            continue
        assert expected is (schemas.problem(name, instance) is not None), path
        n_required += expected
    assert n_required > {"reference": 50, "candidate": 15, "vectors": 10, "answers": 10}[name]


@pytest.mark.parametrize("name", [name if name == "answers" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_what_one_takes_the_other_takes(documents: dict[str, Any], name: str) -> None:
    """Every value that there is, replaced by one of each kind: what the reader takes fits, what does not fit it refuses."""
    whole, n_refused = documents[name], 0
    for path in places(whole):
        if path[0] in ("gate", "encoder_input", "tensors", "environment", "notes", "layers" if name == "vectors" else "") and len(path) > 1:
            continue
        for value in VALUES:
            instance = copy.deepcopy(whole)
            parent_of(instance, path)[path[-1]] = value
            said = schemas.problem(name, instance)
            if said is not None:
                n_refused += 1
                assert refused(name, instance), (path, value, said)
            elif refused(name, instance):
                # the place of a layer or a case, an index past the features, a list of another length, and numbers that hang together
                assert isinstance(value, (int, list, dict)) and not isinstance(value, bool), (path, value)
                assert path[-1] in (*BEYOND, "layer", "index", "test_cases", "target_layer", "top_k") or value == [], (path, value)
    assert n_refused > {"reference": 300, "candidate": 100, "vectors": 80, "answers": 80}[name]


def test_every_row_says_what_it_is() -> None:
    """A check that is not one of rows.py's would have no schema."""
    for kind in (Reference, Case, LayerRecord, Reconstruction, SkippedSeed, vectors.Vectors, vectors.ExactCase, vectors.ExactOutput):
        for item in dataclasses.fields(kind):
            assert not item.metadata or isinstance(item.metadata["check"], rows.Check), f"{kind.__name__}.{item.name}"


def test_a_reference_names_its_schema_first(demo_folder: Path) -> None:
    """In its digest; one without it, as the first were, is as good; another is not known."""
    reference = read(demo_folder / REFERENCE)
    assert next(iter(reference.items())) == ("$schema", SCHEMA_ID) and SCHEMA_ID == "urn:gemmascope-oracle:reference:1"
    verify = ("verify", "-", "--offline", "--cache-dir", str(demo_folder / "hub"))
    without = {key: value for key, value in reference.items() if key != "$schema"}
    ran = run(*verify, input=json.dumps(without))
    assert ran.returncode == 1 and "the reference was edited" in ran.stdout
    assert run(*verify, input=json.dumps({**without, "digest": digest(without)})).returncode == 0
    ran = run(*verify, input=json.dumps({**reference, "$schema": "urn:other"}))
    assert ran.returncode == 4 and "$schema is 'urn:other'; urn:gemmascope-oracle:reference:1 is known" in ran.stderr


def test_a_candidate_s_whole_numbers_may_have_a_point(demo_folder: Path) -> None:
    reference = demo_folder / REFERENCE
    candidate = stripped(read(reference))
    for case in candidate["test_cases"]:
        case |= {key: float(case[key]) for key in ("layer", "seed", "n_active")}
        for top in case["top_10"]:
            top["index"] = float(top["index"])
    assert run("compare", str(reference), "-", input=json.dumps(candidate)).returncode == 0
    candidate["test_cases"][0]["n_active"] += 0.5
    ran = run("compare", str(reference), "-", input=json.dumps(candidate))
    assert ran.returncode == 4 and "n_active is " in ran.stderr and "not a whole number" in ran.stderr
    edited = read(reference)
    edited["test_cases"][0]["n_active"] += 0.0
    assert run("compare", str(reference), str(reference)).returncode == 0
    assert run("compare", "-", str(reference), input=json.dumps(edited)).returncode == 4


def test_documents_of_the_tests_pass_by(demo_folder: Path) -> None:
    """What is watched is what the command line and the library call."""
    before = dict(schemas.counts)
    reference = str(demo_folder / REFERENCE)
    assert run("compare", reference, reference).returncode == 0
    assert schemas.counts == {name: count + (name in ("reference", "candidate")) for name, count in before.items()}
    assert hasattr(document.to_json, "__wrapped__")
    with pytest.raises(AssertionError, match="is not what its schema says"):
        schemas.hold("candidate", {"test_cases": []})


def test_as_a_process_without_numpy() -> None:
    for name in NAMES:
        ran = oracle("schema", name)
        assert ran.returncode == 0 and json.loads(ran.stdout)["$id"] == rows.schema_id(name) and ran.stderr == ""
    assert run("schema", "report").returncode == 2
