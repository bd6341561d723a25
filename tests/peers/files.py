# SPDX-License-Identifier: MIT OR Apache-2.0
"""A case: the files of a repo, what our side is told, and what each peer is. And random weights, by the names that most peers have."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oracle.sources import listing
from oracle.vectors import demo
from vendored_hf import repo_folder_name

Arrays = dict[str, np.ndarray]
Task = dict[str, Any]

D_MODEL, D_OUT, N_FEATURES = 64, 48, 384
F32, F16, BF16 = "float32", "float16", "bfloat16"
DTYPES = (F32, BF16, F16)


@dataclass(frozen=True)
class Written:
    """What a peer writes into a folder of the repo: `by` whom, of which arrays, and what else it is told."""

    by: str
    place: str
    arrays: Arrays
    dtype: str
    more: Task = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """`peers` are how each peer loads it; `files` by repo and path. `encodes_only` are peers whose decoder is not ours on purpose."""

    format: str
    what: str
    repo: str
    peers: dict[str, Task]
    path: tuple[str, ...] = ()
    layers: tuple[int, ...] = (0,)
    k: int | None = None
    input_scale: float | None = None
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    written: tuple[Written, ...] = ()
    encodes_only: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.format} {self.what}"


def lay_out(cache: Path, files: dict[str, dict[str, bytes]]) -> None:
    """Repos in a Hub cache, as if they had been fetched and listed."""
    for repo, of_repo in files.items():
        for path, content in of_repo.items():
            demo._add(cache, repo, path, content)
        listing.remember(cache / repo_folder_name(repo), listing.Listing(repo, "main", demo.COMMIT, tuple(of_repo)))


def weights(what: str, d_in: int = D_MODEL, n: int = N_FEATURES, d_out: int | None = None, negative: bool = False) -> Arrays:
    """Random weights, others for each text. One feature in five or six fires where there is a threshold; `negative` has some below 0."""
    rng = np.random.default_rng(zlib.crc32(what.encode()))
    d_out = d_out or d_in

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    threshold = rng.uniform(0.6, 1.2, n).astype(np.float32)
    if negative:
        threshold[:: n // 12] *= -1
    return {
        "W_enc": normal(d_in, n, scale=d_in**-0.5), "b_enc": normal(n, scale=0.1), "W_dec": normal(n, d_out, scale=0.3) * rng.uniform(0.5, 2, (n, 1)).astype(np.float32),
        "b_dec": normal(d_out, scale=0.5), "threshold": threshold, "W_skip": normal(d_out, d_in, scale=d_in**-0.5),
        "r_mag": normal(n, scale=0.3), "b_mag": normal(n, scale=0.1), "b_gate": normal(n, scale=0.3) - np.float32(0.3),
    }  # fmt: skip


def named(arrays: Arrays, **names: str) -> Arrays:
    """Some of the arrays under other names; a name that begins with ~ is of the transpose."""
    return {name.lstrip("~"): arrays[part].T if name.startswith("~") else arrays[part] for part, name in names.items()}


def only(arrays: Arrays, *names: str) -> Arrays:
    return {name: arrays[name] for name in names}
