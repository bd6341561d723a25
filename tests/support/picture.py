# SPDX-License-Identifier: MIT OR Apache-2.0
"""The picture that README.md shows: the page of a port that leaves b_enc out in one layer of three.

    python -m tests.support.picture tests/pictures/report.png

makes it, from the demo's weights (it needs chromium).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.support import screens
from tests.support.encodings import read, stripped
from tests.support.process import run

WRONG_LAYER = 12
WIDTH = 1400


def page(folder: Path) -> Path:
    """The page, made in a folder with the reference and the candidate."""
    assert run("demo", "--folder", str(folder), "--quiet").returncode == 0
    reference = read(folder / "plt_gemma_reference.json")
    candidate = stripped(reference)
    (weights_file,) = (record["path"] for record in reference["layers"] if record["layer"] == WRONG_LAYER)
    weights = np.load(next((folder / "hub").glob(f"*/snapshots/*/{weights_file}")))
    for case, answer in zip(reference["test_cases"], candidate["test_cases"]):
        if case["layer"] == WRONG_LAYER:
            residual = np.array(case["residual"], np.float32)
            pre = residual @ weights["W_enc"]  # [d_model] @ [d_model, n_features] -> [n_features]
            activations = np.where(pre > weights["threshold"], pre, 0)
            top = np.argsort(-activations, kind="stable")[:10]
            answer["n_active"] = int(np.count_nonzero(activations))
            answer["top_10"] = [{"index": int(feature), "activation": float(activations[feature])} for feature in top]
    (folder / "candidate.json").write_text(json.dumps(candidate))
    ran = run(
        "report", "plt_gemma_reference.json", "candidate.json", "--explain", "--offline", "--cache-dir", "hub", "-o", "report.html", cwd=folder
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return folder / "report.html"


def main(picture: str) -> None:
    with tempfile.TemporaryDirectory() as folder, screens.tab() as tab:
        tab.show(page(Path(folder)), WIDTH, "light")
        end = "Math.ceil(document.querySelector('.compared').getBoundingClientRect().bottom + scrollY)"
        tab.picture(Path(picture), height=tab.evaluate(end) + 24)


if __name__ == "__main__":
    main(*sys.argv[1:])
