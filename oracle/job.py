# SPDX-License-Identifier: MIT OR Apache-2.0
"""What there is to do: plain data, which travels to other processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oracle.errors import BadUse

CURATION_REPO = "mntss/gemma-scope-transcoders"
MIN_TOLERANCE, MAX_TOLERANCE = 1e-6, 1e6  # margins are recorded to 6 decimals
MAX_SEEDS, MAX_LAYER, MAX_TOP_K, MAX_CONNECTIONS = 10_000, 1_000_000, 1 << 20, 64
SAMPLE, ALL = "sample", "all"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What to encode and where from. `endpoint` and `cache_dir` None are the environment's.

    `repo` has a config.yaml that names the weight files, or has the files itself; `paths` are files of it, or a folder,
    that no config.yaml names. `schema` None is found out. `layers` are numbers, or "all", or "sample": the first, the
    middle one and the last. `weights_revision` holds for entries of a config.yaml that name no revision themselves.
    `robust` passes over seeds whose case has a flag; `decode` adds what the decoder makes of each case.
    `stream` puts nothing on disk, and fetches of each weight file only what the encoder reads. Raises BadUse.
    """

    repo: str = CURATION_REPO
    paths: tuple[str, ...] = ()
    schema: str | None = None
    revision: str | None = None
    weights_revision: str | None = None
    layers: tuple[int, ...] | str = SAMPLE
    n_seeds: int = 3
    top_k: int = 10
    tolerance: float = 1e-4
    robust: bool = False
    decode: bool = False
    endpoint: str | None = None
    cache_dir: str | None = None
    offline: bool = False
    stream: bool = False
    connections: int = 4

    def __post_init__(self) -> None:
        ranges = {
            "n_seeds": (self.n_seeds, MAX_SEEDS), "top_k": (self.top_k, MAX_TOP_K), "connections": (self.connections, MAX_CONNECTIONS)
        }  # fmt: skip
        for name, (value, most) in ranges.items():
            if type(value) is not int or not 1 <= value <= most:
                raise BadUse(f"Job: {name} is {value!r}, not a whole number from 1 to {most}")
        if not MIN_TOLERANCE <= self.tolerance <= MAX_TOLERANCE:
            raise BadUse(f"Job: tolerance is {self.tolerance!r}, not in {MIN_TOLERANCE:g} to {MAX_TOLERANCE:g}")
        if isinstance(self.paths, str):
            raise BadUse("Job: paths is a text, not a tuple of them")
        if self.layers in (ALL, SAMPLE):
            return
        numbers = self.layers if isinstance(self.layers, tuple) else ()
        if not numbers or not all(type(layer) is int and 0 <= layer <= MAX_LAYER for layer in numbers):
            raise BadUse(f"Job: layers is {self.layers!r}, not {ALL!r}, {SAMPLE!r} or a tuple of numbers from 0")


@dataclass(frozen=True)
class Events:
    """What a caller may want to know, or to show, while a job runs. `planned` gets the reference's default file name."""

    planned: Callable[[str], None] = lambda output: None
    layers: Callable[[int], None] = lambda count: None
    fetching: Callable[[str], Progress | None] = lambda path: None
    fetched: Callable[[str, str | None], None] = lambda path, local_path: None  # None where it could not be fetched
    streaming: Callable[[str, Callable[[], int]], None] = lambda path, received: None  # `received` counts its bytes
    encoded: Callable[[dict[str, Any], int], None] = lambda case, n_features: None
    layer_done: Callable[[int], None] = lambda layer: None
