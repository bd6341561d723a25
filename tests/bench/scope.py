# SPDX-License-Identifier: MIT OR Apache-2.0
"""Full-shape layers as Qwen Scope and Llama Scope have them, beside a floor. `python -m tests.bench --scope` prints them."""

from __future__ import annotations

import json
import os
import statistics
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.rounds import in_turn

N_FEATURES = 32768
QWEN_REPO, QWEN_FILE, QWEN_D_MODEL = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer0.sae.pt", 2048
LLAMA_REPO, LLAMA_FOLDER, LLAMA_D_MODEL = "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x", 4096
LLAMA_FILE = f"{LLAMA_FOLDER}/checkpoints/final.safetensors"
SIDE = {
    "act_fn": "jumprelu", "d_model": LLAMA_D_MODEL, "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 10.8125, "out": 10.8125},
}  # fmt: skip
ROWS = 512
FLOOR_ROWS = 1024


def make(add: Callable[[Path, str, str, Path], None], cache: Path) -> None:
    """Both repos in a Hub cache; the values are random."""
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / "made.tmp"
    _make_qwen(made)
    add(cache, QWEN_REPO, QWEN_FILE, made)
    _make_llama(made)
    add(cache, LLAMA_REPO, LLAMA_FILE, made)
    made.write_text(json.dumps(SIDE))
    add(cache, LLAMA_REPO, f"{LLAMA_FOLDER}/hyperparams.json", made)


def _rows(shape: tuple[int, ...], factor: float) -> Iterator[bytes]:
    """float32 of a shape, some rows at a time."""
    import numpy as np

    rng = np.random.default_rng(shape[0])
    width = shape[1] if len(shape) > 1 else 1
    for start in range(0, shape[0], ROWS):
        yield (rng.standard_normal((min(ROWS, shape[0] - start), width), dtype=np.float32) * np.float32(factor)).astype("<f4").tobytes()


def _make_qwen(path: Path) -> None:
    """A torch.save zip: the members' data is streamed, so that 512 MiB are never held."""
    from oracle.vectors.files import pickled_dict

    shapes = {"W_enc": (N_FEATURES, QWEN_D_MODEL), "b_enc": (N_FEATURES,), "W_dec": (QWEN_D_MODEL, N_FEATURES), "b_dec": (QWEN_D_MODEL,)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        file.writestr("archive/data.pkl", pickled_dict({name: ("FloatStorage", shape) for name, shape in shapes.items()}))
        for number, shape in enumerate(shapes.values()):
            with file.open(f"archive/data/{number}", "w", force_zip64=True) as member:
                for content in _rows(shape, 0.03):
                    member.write(content)


def _make_llama(path: Path) -> None:
    import numpy as np

    shapes = {
        "encoder.weight": (N_FEATURES, LLAMA_D_MODEL), "encoder.bias": (N_FEATURES,), "decoder.weight": (LLAMA_D_MODEL, N_FEATURES),
        "decoder.bias": (LLAMA_D_MODEL,),
    }  # fmt: skip
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at := at + 2 * int(np.prod(shape))]}
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for content in _rows(shape, 0.03):
                out.write((np.frombuffer(content, "<u4") >> 16).astype("<u2").tobytes())


def floor(path: str) -> None:
    """Bare NumPy: W_enc once through a buffer of rows, widened where it is bfloat16, times three residuals, and the top 10."""
    import numpy as np

    is_torch = path.endswith(".pt")
    with open(path, "rb", buffering=0) as file:
        if is_torch:
            with zipfile.ZipFile(path) as archive:
                start = archive.getinfo("archive/data/0").header_offset
            file.seek(start + 26)
            lengths = struct.unpack("<2H", file.read(4))
            file.seek(start + 30 + sum(lengths))
            d_model, kind = QWEN_D_MODEL, "<f4"
        else:
            length = int.from_bytes(file.read(8), "little")
            file.seek(8 + length)
            d_model, kind = LLAMA_D_MODEL, "<u2"
        residuals = np.random.default_rng(0).standard_normal((3, d_model), dtype=np.float32)
        buffer = np.empty((FLOOR_ROWS, d_model), kind)
        pre = np.empty((N_FEATURES, 3), np.float32)
        for row in range(0, N_FEATURES, FLOOR_ROWS):
            file.readinto(memoryview(buffer).cast("B"))
            block = buffer if is_torch else (buffer.astype("<u4") << 16).view("<f4")
            pre[row : row + FLOOR_ROWS] = block @ residuals.T
        np.argpartition(np.maximum(pre, 0), -10, axis=0)


def show(environment: dict[str, str], snapshots: Callable[[str], Path], runs: int) -> None:
    """Prints medians of runs in turn, and the ratios of those that stood side by side."""
    print(f"{'median of ' + str(runs):26} {'wall s':>8} {'peak MiB':>9} {'/ floor':>10}")
    for name, repo, path in (("Qwen Scope", QWEN_REPO, QWEN_FILE), ("Llama Scope", LLAMA_REPO, LLAMA_FILE)):
        with tempfile.TemporaryDirectory() as scratch:
            ours = [sys.executable, "-m", "oracle", "--repo", repo, "--path", path, "-o", os.path.join(scratch, "reference.json")]
            jobs = {f"{name}, 3 seeds": ours, f"{name}, floor": [sys.executable, __file__, str(snapshots(repo) / path)]}
            figures = in_turn(jobs, environment, scratch, runs)
        its = figures[f"{name}, floor"]
        for job, rows in figures.items():
            seconds, mebibytes = (statistics.median(column) for column in zip(*rows))
            print(f"{job:26} {seconds:8.2f} {mebibytes:9.0f} {statistics.median(a[0] / b[0] for a, b in zip(rows, its)):9.2f}x")


if __name__ == "__main__":
    floor(sys.argv[1])
