# SPDX-License-Identifier: MIT OR Apache-2.0
"""JSON as its standard has it: no NaN, no infinities, and no key twice, of which Python keeps the last in silence.

What it would take in memory is looked at before it is parsed: `{},` takes 25 times its bytes.
"""

from __future__ import annotations

import json
from typing import Any

MEMORY = 120 << 20  # bytes that a text and what it holds may take

# What Python's objects take, at most: an object, a list, a place with its number, a text.
_OBJECT, _LIST, _PLACE, _TEXT = 232, 64, 40, 56


def loads(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, whatever is wrong with it."""
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        if (needed := memory_of(text)) > MEMORY:
            raise ValueError(f"it would take {needed >> 20} MiB of memory, and {MEMORY >> 20} is the most")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except ValueError:
        raise
    except Exception as error:  # nested too deeply, for one
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def memory_of(text: str) -> int:
    """About how many bytes of memory a text and what it holds will take, and rather more."""
    texts = max(0, text.count('"') // 2 - text.count(":"))  # keys are the same objects each time
    return len(text) + _OBJECT * text.count("{") + _LIST * text.count("[") + _PLACE * text.count(",") + _TEXT * texts


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
