# SPDX-License-Identifier: MIT OR Apache-2.0
"""One layer of a full-shape Llama PLT, 1 GiB of bfloat16, beside a floor. `python -m tests.bench --llama` prints it."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.rounds import in_turn

REPO = "mntss/transcoder-Llama-3.2-1B"
FILE = "layer_0.safetensors"
D_MODEL, N_FEATURES = 2048, 131072
ROWS = 1024
FLOOR_ROWS = 2048  # 8 MiB of bfloat16


def make(file: Path) -> None:
    """The file of a layer with the real one's tensors, shapes and dtype; the values are random."""
    import numpy as np

    shapes = {
        "W_dec": (N_FEATURES, D_MODEL), "W_enc": (N_FEATURES, D_MODEL), "W_skip": (D_MODEL, D_MODEL),
        "b_dec": (D_MODEL,), "b_enc": (N_FEATURES,),
    }
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at := at + 2 * int(np.prod(shape))]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            n_rows, row = shape[0], int(np.prod(shape[1:]))
            for start in range(0, n_rows, ROWS):
                values = rng.standard_normal((min(ROWS, n_rows - start), row), dtype=np.float32) * np.float32(0.03)
                if name == "b_enc":
                    values -= np.float32(0.5)
                out.write((values.view("<u4") >> 16).astype("<u2").tobytes())


def floor(path: str) -> None:
    """Bare NumPy: W_enc once through a buffer of rows, widened, times three residuals, and the top 10."""
    import numpy as np

    with open(path, "rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

        def seek(name: str) -> list[int]:
            file.seek(8 + length + header[name]["data_offsets"][0])
            shape: list[int] = header[name]["shape"]
            return shape

        b_enc = np.empty(seek("b_enc")[0], "<u2")
        file.readinto(b_enc)
        n_features, d_model = seek("W_enc")
        residuals = np.random.default_rng(0).standard_normal((3, d_model), dtype=np.float32)
        buffer = np.empty((FLOOR_ROWS, d_model), "<u2")
        pre = np.empty((n_features, 3), np.float32)
        for row in range(0, n_features, FLOOR_ROWS):
            file.readinto(memoryview(buffer).cast("B"))
            pre[row : row + FLOOR_ROWS] = (buffer.astype("<u4") << 16).view("<f4") @ residuals.T
        pre += (b_enc.astype("<u4") << 16).view("<f4")[:, np.newaxis]
        np.argpartition(np.maximum(pre, 0), -10, axis=0)


def show(environment: dict[str, str], weights: str, runs: int) -> None:
    """Prints medians of runs in turn, and the ratio of those that stood side by side; then what --decode takes."""
    with tempfile.TemporaryDirectory() as scratch:
        ours = [sys.executable, "-m", "oracle", "--repo", REPO, "--layers", "0", "-o", os.path.join(scratch, "reference.json")]
        jobs = {
            "one layer, 3 seeds": ours,
            "floor (bare NumPy)": [sys.executable, __file__, weights],
            "with --decode": [*ours, "--decode"],
        }
        figures = in_turn(jobs, environment, scratch, runs)
    its = figures["floor (bare NumPy)"]
    print(f"{'median of ' + str(runs):22} {'wall s':>8} {'peak MiB':>9} {'/ floor':>10}")
    for name, rows in figures.items():
        seconds, mebibytes = (statistics.median(column) for column in zip(*rows))
        print(f"{name:22} {seconds:8.2f} {mebibytes:9.0f} {statistics.median(a[0] / b[0] for a, b in zip(rows, its)):9.2f}x")


if __name__ == "__main__":
    floor(sys.argv[1])
