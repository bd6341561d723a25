# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON as its standard has it: no NaN, no infinities, and no key twice, of which Python keeps the last in silence."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, and RecursionError where it is nested too deeply."""
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {ascii(name[:80])} stands twice")
            seen.add(name)
    return mapping
