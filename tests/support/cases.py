# SPDX-License-Identifier: MIT OR Apache-2.0
"""Cases made by hand, held against each other by the rules of lists."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from oracle.checking import lists
from oracle.checking.verdict import CaseVerdict
from oracle.references.document import Case, TopFeature, seed_case
from oracle.references.reading import parse_reference

TOLERANCE = 1e-4

REFERENCE = parse_reference(
    {
        "weights_repo": "org/weights", "d_model": 1, "n_features_per_layer": 100,
        "test_cases": [{"layer": 0, "seed": 0, "n_active": 0, "top_10": [], "residual": [0.0]}],
    }
)  # fmt: skip


def a_case(top: list[tuple[int, float]], n_active: int = 50, **more: Any) -> Case:
    fields = {"n_active_bounds": (n_active, n_active), "gate_ties": (), "flags": (), **more}
    return Case(id=seed_case(0, 0), n_active=n_active, top=tuple(TopFeature(*entry) for entry in top), **fields)


def compare_case(case: Case, answer: Case, n_features: int = 100, k: int = 4, tolerance: float = TOLERANCE) -> CaseVerdict:
    return lists.compare_case(replace(REFERENCE, n_features=n_features, top_k=k, tolerance=tolerance), case, answer)


def blocks(screen: str) -> dict[str, str]:
    """What compare or verify printed of each case, by its name and on one line."""
    said: dict[str, str] = {}
    name = None
    for line in screen.splitlines():
        heading = re.match(r"(layer \d+ (?:seed|row|case) \d+): (.*)", line)
        if heading:
            name, line = heading.groups()
            said[name] = ""
        if not line:
            name = None
        if name:
            said[name] += " ".join(line.split()) + " "
    return {name: text.rstrip() for name, text in said.items()}
