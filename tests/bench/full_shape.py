# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whole processes against each other on full-shape weights; not run by pytest.

    python -m tests.bench [--torch-python PATH --torch-script FILE] [--hub] [--settling]

Makes a Hub cache with three 302 MB NPZs once (in --folder), then runs, in turn, seven times each: our main job; a
floor, which reads W_enc once, multiplies it in float32 and does nothing else; and, if a Python that has torch is
named, the torch script for the same job (candle-mi's scripts/plt_gemma_validation.py). Prints medians, and ratios
of the runs that stood side by side.

With --hub it serves the same files from a Hub on loopback that gives each connection 25 MB/s after 50 ms, and
measures cold: one connection against four, the whole job against huggingface_hub's downloads, and --stream's bytes.

With --scaling layers,seeds,workers,dask it runs our job with more of these (tests/bench/scaling.py).

With --llama it runs one layer of a Llama PLT, 1 GiB, in turn with a floor of its own (tests/bench/llama.py).

With --settling it runs the main job in turn with itself where float64 has the last word, and nothing is settled.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import llama, scaling, scope
from tests.bench.rounds import in_turn, measure

ROOT = Path(__file__).resolve().parent.parent.parent
CURATION_REPO, WEIGHTS_REPO = "mntss/gemma-scope-transcoders", "google/gemma-scope-2b-pt-transcoders"
COMMIT = "b" * 40
D_MODEL, N_FEATURES = 2304, 16384
LAYERS = (0, 12, 25)
BENCH = [sys.executable, "-m", "tests.bench"]
FLOOR_ROWS = 64
FOLDER = os.path.join(tempfile.gettempdir(), "oracle-bench")


def path_of(layer: int) -> str:
    return f"layer_{layer}/width_16k/average_l0_{layer + 50}/params.npz"


def make(folder: str) -> None:
    """A Hub cache with the real files' names, shapes and magnitudes; the values are random."""
    import numpy as np

    cache = Path(folder) / "hub"
    entries = "".join(f'  - "hf://{WEIGHTS_REPO}/{path_of(layer)}"\n' for layer in range(26))
    config = cache / "config.yaml.tmp"
    cache.mkdir(parents=True, exist_ok=True)
    config.write_text(f"model_kind: transcoder_set\ntranscoders:\n{entries}")
    add(cache, CURATION_REPO, "config.yaml", config)
    for layer in LAYERS:
        rng = np.random.default_rng(layer)
        made = cache / f"{layer}.npz"
        np.savez(
            made,
            W_dec=rng.standard_normal((N_FEATURES, D_MODEL), dtype=np.float32) * np.float32(0.03),
            W_enc=rng.standard_normal((D_MODEL, N_FEATURES), dtype=np.float32) * np.float32(0.065),
            b_dec=rng.standard_normal(D_MODEL, dtype=np.float32) * np.float32(0.15),
            b_enc=rng.standard_normal(N_FEATURES, dtype=np.float32) * np.float32(3) - np.float32(6),
            threshold=rng.random(N_FEATURES, dtype=np.float32) * np.float32(3) + np.float32(1),
        )
        add(cache, WEIGHTS_REPO, path_of(layer), made)


def add(cache: Path, repo: str, path: str, file: Path) -> None:
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    folder = cache / f"models--{repo.replace('/', '--')}"
    blob, pointer = folder / "blobs" / digest.hexdigest(), folder / "snapshots" / COMMIT / path
    for parent in (blob.parent, pointer.parent, folder / "refs"):
        parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, blob)
    if not pointer.is_symlink():
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (folder / "refs" / "main").write_text(COMMIT)


def floor(paths: list[str]) -> None:
    """Bare NumPy: each W_enc once through a buffer of rows, times three residuals, and the top 10."""
    import zipfile

    import numpy as np

    for path in paths:
        with zipfile.ZipFile(path) as archive:
            vectors = {}
            for name in ("b_enc", "threshold"):
                with archive.open(f"{name}.npy") as member:
                    vectors[name] = np.lib.format.read_array(member)
            start = archive.getinfo("W_enc.npy").header_offset
        with open(path, "rb", buffering=0) as file:
            file.seek(start + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            file.seek(start + 30 + int(lengths.sum()))
            np.lib.format.read_magic(file)
            (d_model, n_features), _, dtype = np.lib.format.read_array_header_1_0(file)
            residuals = np.random.default_rng(0).standard_normal((3, d_model), dtype=np.float32)
            buffer = np.empty((FLOOR_ROWS, n_features), dtype)
            pre = np.zeros((3, n_features), np.float32)
            for row in range(0, d_model, FLOOR_ROWS):
                block = buffer[: d_model - row]
                file.readinto(memoryview(block).cast("B"))
                pre += residuals[:, row : row + len(block)] @ block
        pre += vectors["b_enc"]
        activations = pre * (pre > vectors["threshold"])
        np.argpartition(activations, -10, axis=1)


def serve(folder: str) -> None:
    """A Hub with the bench's files, in a process of its own. Prints its address, and how many bytes each GET took."""
    from tests.support.hub import Hub

    cache = Path(folder) / "hub"
    with Hub(rate=25e6, delay=0.05) as hub:
        for repo in (CURATION_REPO, WEIGHTS_REPO):
            snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT
            for file in sorted(snapshot.rglob("*")):
                if file.is_file():
                    hub.add(repo, str(file.relative_to(snapshot)), file)
        print(hub.url, flush=True)
        for _ in sys.stdin:  # a line asks for the bytes since the line before
            print(sum(request.sent for request in hub.seen), flush=True)
            hub.seen.clear()


class Served:
    """The bench's files on a Hub in a process of its own: its `url`, and the bytes that it `sent` since it was asked."""

    def __init__(self, folder: str):
        self._process = subprocess.Popen(
            [*BENCH, "serve", folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def sent(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure_hub(folder: str, runs: int) -> None:
    served = Served(folder)
    fetch = f"import sys, vendored_hf; vendored_hf.hf_hub_download({WEIGHTS_REPO!r}, {path_of(0)!r}, connections=int(sys.argv[1]))"
    theirs = (
        f"from huggingface_hub import hf_hub_download; hf_hub_download({CURATION_REPO!r}, 'config.yaml')\n"
        f"for path in {[path_of(layer) for layer in LAYERS]!r}: hf_hub_download({WEIGHTS_REPO!r}, path)"
    )
    jobs = {
        "one file, 4 connections": [sys.executable, "-c", fetch, "4"],
        "one file, 1 connection": [sys.executable, "-c", fetch, "1"],
        "whole job, cold": [sys.executable, "-m", "oracle", "-o", "reference.json"],
        "whole job, --stream": [sys.executable, "-m", "oracle", "--stream", "-o", "streamed.json"],
        "huggingface_hub, files": [sys.executable, "-c", theirs],
    }
    figures: dict[str, list[tuple[float, float, int]]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, command in jobs.items():
            with tempfile.TemporaryDirectory() as scratch:
                environment = {
                    **os.environ, "HF_HUB_CACHE": os.path.join(scratch, "cache"), "HF_ENDPOINT": served.url, "PYTHONPATH": str(ROOT),
                    "HF_HUB_OFFLINE": "", "NO_PROXY": "127.0.0.1,127.0.0.2", "HF_HUB_DISABLE_TELEMETRY": "1",
                }
                figures[name].append((*measure(command, environment, scratch), served.sent()))
    served.close()
    print(f"\n{'median of ' + str(runs):24} {'wall s':>8} {'peak MiB':>9} {'MB sent':>9}")
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in figures.items()}
    for name, (seconds, mebibytes, n_bytes) in medians.items():
        print(f"{name:24} {seconds:8.2f} {mebibytes:9.0f} {n_bytes / 1e6:9.1f}")
    names = list(jobs)
    print(f"1 connection / 4 connections: {medians[names[1]][0] / medians[names[0]][0]:.2f}x")
    print(f"huggingface_hub's downloads / our whole job: {medians[names[4]][0] / medians[names[2]][0]:.2f}x")
    print(f"bytes of --stream / of whole files: {medians[names[3]][2] / medians[names[2]][2]:.4f}")


def measure_llama(cache: Path, environment: dict[str, str], runs: int) -> None:
    weights = cache / f"models--{llama.REPO.replace('/', '--')}" / "snapshots" / COMMIT / llama.FILE
    if not weights.exists():
        print(f"making 1 GiB of weights in {cache} ...", file=sys.stderr)
        subprocess.run([*BENCH, "make-llama", str(cache)], check=True, cwd=ROOT)
    llama.show(environment, str(weights), runs)


def snapshot_of(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


def weights_in(folder: str) -> Path:
    """Where the weights are, which are made if they are not."""
    weights = snapshot_of(Path(folder) / "hub", WEIGHTS_REPO)
    if not all((weights / path_of(layer)).exists() for layer in LAYERS):
        print(f"making 900 MB of weights in {folder} ...", file=sys.stderr)
        subprocess.run([*BENCH, "make", folder], check=True, cwd=ROOT)
    return weights


def make_llama(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    config = cache / "config.yaml.tmp"
    config.write_text("model_name: meta-llama/Llama-3.2-1B\nmodel_kind: transcoder_set\n")
    add(cache, llama.REPO, "config.yaml", config)
    made = cache / llama.FILE
    llama.make(made)
    add(cache, llama.REPO, llama.FILE, made)


def unsettled(arguments: list[str]) -> int:
    """The command line with float64 as the only referee: no bound leaves anything open, nothing is settled."""
    from oracle.arithmetic import encoder, numbers
    from oracle.terminal.commands import main

    encoder.UNIT_ROUNDOFF = numbers.UNIT_ROUNDOFF = 0.0
    return main(arguments)


def measure_settling(runs: int, environment: dict[str, str], folder: str) -> None:
    """What exact settling costs: whole processes in turn, the median of the ratios of neighbours."""
    jobs = {
        "settled": [sys.executable, "-m", "oracle", "-o", os.path.join(folder, "settled.json")],
        "float64 alone": [*BENCH, "unsettled", "-o", os.path.join(folder, "unsettled.json")],
    }
    figures = in_turn(jobs, environment, folder, runs)
    seconds = {name: [took for took, _ in rows] for name, rows in figures.items()}
    for name, took in seconds.items():
        print(f"{name:22} {statistics.median(took):8.3f} s")
    ratio = statistics.median(a / b for a, b in zip(seconds["settled"], seconds["float64 alone"]))
    print(f"{'settling costs':22} {100 * (ratio - 1):7.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=FOLDER)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--torch-python", metavar="PATH", help="a Python that has torch and huggingface_hub")
    parser.add_argument("--torch-script", metavar="FILE", default=ROOT.parent / "shared/peers/plt_gemma_validation.py")
    parser.add_argument("--hub", action="store_true", help="measure downloads from a Hub on loopback too")
    parser.add_argument("--hub-runs", type=int, default=3)
    parser.add_argument("--settling", action="store_true", help="measure what exact settling costs, and nothing else")
    parser.add_argument("--scaling", metavar="WHAT", help="measure more of `layers,seeds,workers,dask` or some of these, and nothing else")
    parser.add_argument("--llama", action="store_true", help="measure a layer of 131,072 features, and nothing else")
    parser.add_argument("--scope", action="store_true", help="measure layers of Qwen Scope's and Llama Scope's shapes, and nothing else")
    options = parser.parse_args()
    cache = Path(options.folder) / "hub"
    environment = {
        **os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "https://huggingface.co"
    }
    if options.scope:
        if not (snapshot_of(cache, scope.LLAMA_REPO) / scope.LLAMA_FILE).exists():
            print(f"making 1 GiB of weights in {cache} ...", file=sys.stderr)
            subprocess.run([*BENCH, "make-scope", str(cache)], check=True, cwd=ROOT)
        scope.show(environment, lambda repo: snapshot_of(cache, repo), options.runs)
        return
    if options.llama:
        measure_llama(cache, environment, options.runs)
        return
    weights = weights_in(options.folder)
    if options.scaling:
        scaling.link_layers(weights, path_of, LAYERS)
        if "layers" in options.scaling:
            scaling.show_layers(environment, options.runs)
        if "seeds" in options.scaling:
            scaling.show_seeds(environment, options.runs)
        if "workers" in options.scaling:
            scaling.show_workers(environment)
        if "dask" in options.scaling:
            with contextlib.closing(Served(options.folder)) as served:
                scaling.show_dask(environment, max(1, options.runs // 3), served.url)
        return
    if options.settling:
        with tempfile.TemporaryDirectory() as scratch:
            measure_settling(options.runs, environment, scratch)
        return
    files = [str(weights / path_of(layer)) for layer in LAYERS]
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {
            "python -m oracle": [sys.executable, "-m", "oracle", "-o", os.path.join(scratch, "reference.json")],
            "floor (bare NumPy)": [*BENCH, "floor", *files],
        }
        if options.torch_python:
            script = shutil.copy(options.torch_script, scratch)
            jobs["torch script"] = [options.torch_python, str(script)]
        runs = in_turn(jobs, environment, scratch, options.runs)
    ours = runs["python -m oracle"]
    print(f"{'median of ' + str(options.runs):22} {'wall s':>8} {'peak MiB':>9} {'ours / it':>10}")
    for name, figures in runs.items():
        ratio = statistics.median(mine[0] / its[0] for mine, its in zip(ours, figures))
        seconds, mebibytes = (statistics.median(column) for column in zip(*figures))
        print(f"{name:22} {seconds:8.2f} {mebibytes:9.0f} {ratio:9.2f}x")
    if options.hub:
        measure_hub(options.folder, options.hub_runs)
