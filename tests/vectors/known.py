# SPDX-License-Identifier: MIT OR Apache-2.0
"""The sha256 of every file of the exact vectors: `python -m tests.vectors.known` writes known.json anew."""

import hashlib
import json
from pathlib import Path

from oracle.vectors import variants

if __name__ == "__main__":
    known = {
        variant.name: {path: hashlib.sha256(content).hexdigest() for path, content in variants.files_of(variant).items()} for variant in variants.VARIANTS
    }
    (Path(__file__).parent / "known.json").write_text(json.dumps(known, indent=1) + "\n")
