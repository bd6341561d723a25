# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mistakes against flags: right ports agree bit for bit with every format's vectors, and each planted mistake fails a flag that names it."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest

from oracle.checking.vectors import Vectors, compare, compare_documents, parse_answers, parse_vectors
from oracle.vectors import variants
from oracle.vectors.variants import VARIANTS, Variant
from tests.support.exact_mistakes import MISTAKES, Mistake, layer_of
from tests.support.exact_ports import RIGHT, Layer, Port

OF_OTHER_LAYERS = {"the threshold of the layer above": "thresholds", "layer below or above": "all", "W_dec of the layer below or above": "W_dec"}
NAMES = [variant.name for variant in VARIANTS]
# One folder for each gate and for each input; the slow tests have all.
SOME = (
    "GemmaScopeNpz", "Sae-relu", "SaeLens-topk", "SaeLens-gated", "Sparsify-groupmax", "SaeLens-layer-norm", "LlamaScopeR1",
)  # fmt: skip
SOME_OF_ALL = [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@functools.cache
def vectors(name: str) -> dict[str, Any]:
    return json.loads(variants.files_of(variants.of(name)[-1 if name == "all" else 0])["vectors.json"])


@functools.cache
def parsed(name: str) -> Vectors:
    return parse_vectors(vectors(name))


@functools.cache
def layers(name: str) -> dict[int, Layer]:
    variant = variant_of(name)
    return {record["layer"]: layer_of(variant, record["layer"]) for record in vectors(name)["layers"]}


def variant_of(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


def candidate(name: str, port: Port, other_layer: str = "") -> dict[str, Any]:
    """What a port makes of the vectors: of the other layer's weights, thresholds or W_dec, where it is to."""
    document, own = vectors(name), layers(name)
    cases = []
    for case in document["test_cases"]:
        layer = own[case["layer"]]
        if other_layer:
            other = own[1 - case["layer"]]
            tensors = {**layer.tensors, "W_dec": other.tensors["W_dec"]} if other_layer == "W_dec" else layer.tensors
            thresholds = other.thresholds if other_layer == "thresholds" else layer.thresholds
            layer = other if other_layer == "all" else Layer(layer.settings, tensors, thresholds, layer.own_target)
        answer = port.answer(layer, np.array(case["residual"], np.float32))
        outputs = answer.pop("outputs")
        first = case.get("reconstructions", [{"target_layer": 0}])[0]["target_layer"]
        finite = [np.nan_to_num(values, nan=-1.0, posinf=3e38, neginf=-3e38).tolist() for values in outputs]
        answer["active"] = [entry | {"activation": float(np.nan_to_num(entry["activation"], nan=-1.0, posinf=3e38, neginf=-3e38))} for entry in answer["active"]]
        cases.append({"case": case["case"], **answer, "reconstructions": [{"target_layer": first + t, "values": values} for t, values in enumerate(finite)]})
    return {"test_cases": cases}


def failing(name: str, mistake: Mistake) -> list[str]:
    """The flags that fail, in the order that compare has."""
    other = OF_OTHER_LAYERS.get(mistake.name, "")
    comparison = compare(parsed(name), parse_answers(candidate(name, mistake.port, other)))
    return [flag.name for flag in comparison.failing_flags]


@pytest.mark.parametrize("name", SOME_OF_ALL)
def test_right_ports_agree(name: str) -> None:
    for how, dot in RIGHT.items():
        comparison = compare_documents(vectors(name), candidate(name, Port(dot=dot)))
        assert comparison.agrees, (how, [case for case in comparison.cases if not case.agrees][:3])
        assert comparison.not_compared is None


def applies(name: str, mistake: Mistake) -> bool:
    """Whether a format can have a mistake, and has a flag for it."""
    return mistake.needs(variant_of(name)) and bool(set(mistake.flags.split()) & set(vectors(name)["notes"]))


def is_named(name: str, mistake: Mistake) -> bool:
    return bool(set(failing(name, mistake)) & set(mistake.flags.split()))


def test_each_mistake_fails_a_flag_that_names_it_in_one_folder() -> None:
    places = {mistake.name: next((name for name in SOME if applies(name, mistake)), "") for mistake in MISTAKES}
    planted = [(places[mistake.name], mistake) for mistake in MISTAKES if places[mistake.name]]
    assert len(planted) >= 90
    assert [(name, mistake.name) for name, mistake in planted if not is_named(name, mistake)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_mistake_fails_a_flag_that_names_it(name: str) -> None:
    rows = [mistake for mistake in MISTAKES if applies(name, mistake)]
    assert len(rows) >= (10 if variant_of(name).is_square else 30)
    assert [mistake.name for mistake in rows if not is_named(name, mistake)] == []


@pytest.mark.slow
def test_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake, in how many folders it is planted above, and what compare names first in the first of them."""
    lines, total = [], 0
    for mistake in MISTAKES:
        places = [name for name in NAMES if applies(name, mistake)]
        assert places, mistake.name
        total += len(places)
        failed = failing(places[0], mistake)
        lines.append(f"{mistake.name:50} {len(places):3} folders; {places[0]:20} {', '.join(failed[:3])}{' ...' if len(failed) > 3 else ''}")
    lines.append(f"{len(MISTAKES)} mistakes, {total} ports with one each, {len(RIGHT)} right ports on each of {len(NAMES)} folders")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
