# SPDX-License-Identifier: MIT OR Apache-2.0
"""A job: plain data that can be pickled. Its field names are those of the command line and of the JSON."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from oracle.errors import BadUse

CURATION_REPO = "mntss/gemma-scope-transcoders"
# Not the name of a real repo: a reference from the demo's weights must not pass for one of Gemma Scope's. Its cache stands beside the reference.
DEMO_OWNER, DEMO_CACHE = "oracle-demo", "hub"
MIN_TOLERANCE, MAX_TOLERANCE = 1e-6, 1e6  # margins are recorded to 6 decimals
MAX_SEEDS, MAX_LAYER, MAX_TOP_K, MAX_CONNECTIONS, MAX_PATIENCE = 10_000, 1_000_000, 1 << 20, 64, 86_400
MIN_SCALE, MAX_SCALE, MAX_FEATURES = 1e-9, 1e9, 1 << 24
NORMALIZE = ("unit_rms", "layer_norm")  # as the JSON's encoder_input has them
SAMPLE, ALL = "sample", "all"
SEEDS = 3  # of a layer, where nobody says how many
LEAST_FACTOR, MOST_FACTOR = 2.0**-100, 2.0**100  # of generated residuals: 1e-30 to 1e30


def _check_range(owner: str, name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise BadUse(f"{owner}: {name} is {value!r}, not a whole number from 1 to {most}")


def _is_between(least: float, value: object, most: float) -> bool:
    return isinstance(value, (int, float)) and least <= value <= most


@dataclass(frozen=True)
class Origin:
    """Where weights come from. Raises BadUse.

    `repo` has a config.yaml that names the weight files, or has the files itself; None is the default repo of a job, and
    the repo on record of a reference. `path` are files of it, or a folder, that no config.yaml names. `schema` None is
    found out. `weights_revision` holds for entries of a config.yaml that name no revision themselves. `ignore_key` are keys
    of a side file that are passed over, though they may change the numbers. `k`, of a top-k gate, `input_scale`, which
    residuals are multiplied by, and `normalize`, one of NORMALIZE, are for weights beside which nothing says them. `mirror`,
    `cache_dir` and `offline` None are the environment's. `stream` puts nothing on disk, and fetches of each weight file only what
    the encoder reads. `patience` is how many seconds one request may take with all its waits, those that the server asks for
    among them.
    """

    repo: str | None = None
    path: tuple[str, ...] = ()
    schema: str | None = None
    revision: str | None = None
    weights_revision: str | None = None
    ignore_key: tuple[str, ...] = ()
    k: int | None = None
    input_scale: float | None = None
    normalize: str | None = None
    mirror: str | None = None
    cache_dir: str | None = None
    offline: bool | None = None
    stream: bool = False
    connections: int = 4
    patience: int = 120

    def __post_init__(self) -> None:
        _check_range("Origin", "connections", self.connections, MAX_CONNECTIONS)
        _check_range("Origin", "patience", self.patience, MAX_PATIENCE)
        if self.k is not None:
            _check_range("Origin", "k", self.k, MAX_FEATURES)
        if self.input_scale is not None and not _is_between(MIN_SCALE, self.input_scale, MAX_SCALE):
            raise BadUse(f"Origin: input_scale is {self.input_scale!r}, not in {MIN_SCALE:g} to {MAX_SCALE:g}")
        if self.normalize not in (None, *NORMALIZE):
            raise BadUse(f"Origin: normalize is {self.normalize!r}, not {' or '.join(NORMALIZE)}")
        for name in ("repo", "schema", "revision", "weights_revision", "mirror", "cache_dir"):
            if getattr(self, name) == "":  # it would mean None, as of a variable that is not set
                raise BadUse(f"Origin: {name} is empty: name it, or leave it None")
        for name in ("path", "ignore_key"):
            if isinstance(getattr(self, name), str):
                raise BadUse(f"Origin: {name} is a text, not a tuple of them")

    @property
    def folder_apart(self) -> Origin:
        """The same with org/name/sub/folder, as circuit-tracer takes it, as a repo and a folder of it."""
        org, name, *folder = (self.repo or "").split("/") if self.repo and self.repo.count("/") > 1 else (self.repo, None)
        return self if name is None else replace(self, repo=f"{org}/{name}", path=self.path or ("/".join(folder),))

    @property
    def names_files(self) -> bool:
        """Whether it says which files to read, so that those on record in a reference do not count."""
        return bool(self.repo or self.path or self.revision or self.weights_revision)


@dataclass(frozen=True)
class Job:
    """What to encode. Raises BadUse.

    `layers` are numbers, or "all", or "sample": the first, the middle one and the last; `seeds` the number of residuals
    of each layer: None for 3, or for all rows of a file. `robust` passes over seeds whose case has a flag, at the tolerance
    or at the margin that it names; `decode` adds what the decoder makes of each case. `residuals` is the path of a file of residuals; without one they are generated, and
    multiplied by `scale`, a float32. `tolerance` is the least that a case has, and all where residuals are generated as they are.
    """

    origin: Origin = Origin()
    layers: tuple[int, ...] | str = SAMPLE
    seeds: int | None = None
    top_k: int = 10
    tolerance: float = 1e-4
    robust: bool | float = False
    decode: bool = False
    residuals: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_range("Job", "seeds", self.n_seeds, MAX_SEEDS)
        _check_range("Job", "top_k", self.top_k, MAX_TOP_K)
        if not _is_between(MIN_TOLERANCE, self.tolerance, MAX_TOLERANCE):
            raise BadUse(f"Job: tolerance is {self.tolerance!r}, not in {MIN_TOLERANCE:g} to {MAX_TOLERANCE:g}")
        if self.robust_margin is not None and not MIN_TOLERANCE <= self.robust_margin <= MAX_TOLERANCE:
            raise BadUse(f"Job: robust is {self.robust!r}, not in {MIN_TOLERANCE:g} to {MAX_TOLERANCE:g}")
        if not is_factor(self.scale):
            raise BadUse(f"Job: scale is {self.scale!r}, not a float32 from {LEAST_FACTOR:g} to {MOST_FACTOR:g}")
        if self.residuals is not None and self.scale != 1:
            raise BadUse("--scale is of generated residuals, and --residuals names a file: scale its values where it is written")
        if self.residuals is not None and self.robust:
            raise BadUse("--robust looks for other seeds, and the rows of a file of residuals have none: leave it out, and see each case's flags")
        if self.layers in (ALL, SAMPLE):
            return
        numbers = self.layers if isinstance(self.layers, tuple) else ()
        if not numbers or not all(type(layer) is int and 0 <= layer <= MAX_LAYER for layer in numbers):
            raise BadUse(f"Job: layers is {self.layers!r}, not {ALL!r}, {SAMPLE!r} or a tuple of numbers from 0")

    @property
    def robust_margin(self) -> float | None:
        """The margin that `robust` names; None where it names none."""
        return None if isinstance(self.robust, bool) else self.robust

    @property
    def n_seeds(self) -> int:
        """How many residuals of a layer are generated."""
        return SEEDS if self.seeds is None else self.seeds

    @property
    def has_own_tolerances(self) -> bool:
        """Whether each case has a tolerance that follows from its numbers: standard normal residuals need none."""
        return self.residuals is not None or self.scale != 1


def is_factor(value: object) -> bool:
    """Whether generated residuals may be multiplied by this, so that all ports multiply by the same number."""
    return type(value) in (int, float) and LEAST_FACTOR <= value <= MOST_FACTOR and value == float32(value)  # type: ignore[operator,arg-type]


def float32(value: float) -> float:
    """The float32 that is nearest to a number."""
    nearest: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return nearest
