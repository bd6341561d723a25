# SPDX-License-Identifier: MIT OR Apache-2.0
"""One process of the peers' Python, the same files for both sides, and what each says of the same residuals."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oracle import Job, Origin, generate
from oracle.errors import BadData, BadUse
from tests.peers.files import Case, Task, lay_out
from tests.support.process import oracle

VARIABLE = "ORACLE_PEERS_PYTHON"
PROGRAM = Path(__file__).with_name("peer.py")
N_SEEDS = 3
MOST_FEATURES = 1024  # of any case: all that fire are in its list


class PeersError(AssertionError):
    """A peer could not write or read what it should."""


class Peers:
    """The peers' process; its output but for the answers goes to a log."""

    def __init__(self, python: str, folder: Path):
        self.folder, self._round = folder, 0
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "none"), "CUDA_VISIBLE_DEVICES": "",
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "WANDB_MODE": "disabled",
            "SPARSIFY_DISABLE_TRITON": "1",  # which a machine without a GPU cannot run
        }  # fmt: skip
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [python, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment, cwd=folder
        )

    def do(self, tasks: list[Task]) -> None:
        """Have these done. Raises PeersError where one of them cannot be."""
        self._round += 1
        place = self.folder / f"tasks_{self._round}.json"
        for number, task in enumerate(tasks):
            task["error"] = str(self.folder / f"error_{self._round}_{number}")
        place.write_text(json.dumps(tasks))
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{place}\n")
            self._process.stdin.flush()
        if "done\n" not in iter(self._process.stdout.readline, ""):  # packages print what they like
            raise PeersError(f"the peers' program ended: {(self.folder / 'log').read_text()[-2000:]}")
        errors = [Path(task["error"]).read_text() for task in tasks if Path(task["error"]).exists()]
        if errors:
            raise PeersError(f"{len(errors)} of {len(tasks)} tasks failed, the first one so:\n{errors[0]}")

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()


@dataclass(frozen=True)
class Answer:
    """What a peer and our reference say of the cases of one file: `peer` has arrays as peer.py writes them."""

    case: Case
    peer: str
    reference: Task
    arrays: dict[str, np.ndarray]


def answers(peers: Peers, cases: list[Case], as_processes: frozenset[str] = frozenset()) -> Iterator[Answer]:
    """Make the files of cases, encode them on our side, those of some ids by the command line, and have the peers do the same."""
    places = {case.id: peers.folder / f"round_{peers._round}_{number}" for number, case in enumerate(cases)}
    tasks = []
    for case in cases:
        for number, written in enumerate(case.written):
            place = places[case.id] / f"written_{number}"
            place.parent.mkdir(exist_ok=True)
            np.savez(f"{place}.npz", **written.arrays)
            tasks.append({"by": written.by, "folder": str(place), "arrays": f"{place}.npz", "dtype": written.dtype, "more": written.more})
    peers.do(tasks)
    tasks, references, refused = [], {}, []
    for case in cases:
        files = {repo: dict(of_repo) for repo, of_repo in case.files.items()}
        for number, written in enumerate(case.written):
            for file in sorted((places[case.id] / f"written_{number}").iterdir()):
                files.setdefault(case.repo, {})[f"{written.place}/{file.name}".lstrip("/")] = file.read_bytes()
        cache = places[case.id] / "hub"
        lay_out(cache, files)
        try:
            references[case.id] = reference = _reference(case, cache, case.id in as_processes)
        except (BadData, BadUse, ValueError) as error:
            refused.append(f"{case.id}: {error}")
            continue
        place = places[case.id] / "reference.json"
        place.write_text(json.dumps(reference))
        for peer, load in case.peers.items():
            task = {"peer": peer, "load": load, "cache": str(cache), "reference": str(place), "answers": str(place.with_name(f"{peer}.npz"))}
            tasks.append(task)
    if refused:
        raise PeersError("\n".join(["our side refuses what the peers read:", *refused]))
    peers.do(tasks)
    for case in cases:
        for peer in case.peers:
            with np.load(places[case.id] / f"{peer}.npz") as archive:
                yield Answer(case, peer, references[case.id], dict(archive))


def _reference(case: Case, cache: Path, as_process: bool) -> Task:
    """Our side's, with all features that fire in its lists."""
    origin = Origin(case.repo, case.path, k=case.k, input_scale=case.input_scale, cache_dir=str(cache), offline=True)
    if not as_process:
        [reference] = generate([Job(origin, case.layers, N_SEEDS, MOST_FEATURES, decode=True)])
        return reference
    arguments = ["generate", "--offline", "--cache-dir", str(cache), "--repo", case.repo, "--decode", "--quiet", "-o", "-"]
    arguments += [word for path in case.path for word in ("--path", path)]
    arguments += ["--layers", ",".join(map(str, case.layers)), "--seeds", str(N_SEEDS), "--top-k", str(MOST_FEATURES)]
    arguments += ["--input-scale", str(case.input_scale)] if case.input_scale else []
    ran = oracle(*arguments)
    assert ran.returncode == 0, f"{case.id}: {ran.stderr}"
    document: Task = json.loads(ran.stdout)
    return document


@dataclass(frozen=True)
class Difference:
    """How far a peer is from us: the largest relative differences, None where there is nothing to compare, and what is not the same at all."""

    encodings: float
    reconstructions: float | None
    n_encodings: int
    odd: tuple[str, ...]


def difference(answer: Answer) -> Difference:
    """Of each case its features, their number and values, and its reconstructions: relative to the largest value of its vector."""
    odd, encodings, reconstructions = [], [0.0], []
    cases: list[dict[str, Any]] = answer.reference["test_cases"]
    for number, case in enumerate(cases):
        label = f"{answer.case.id}, {answer.peer}, layer {case['layer']}, seed {case['seed']}"
        acts = answer.arrays["acts"][number]
        if acts.ndim != 1 or len(acts) != answer.reference["n_features_per_layer"]:
            odd.append(f"{label}: its encoding has shape {list(acts.shape)}")
            continue
        ours = {top["index"]: top["activation"] for top in case[f"top_{MOST_FEATURES}"]}
        theirs = {int(index): float(acts[index]) for index in np.flatnonzero(acts)}
        apart = ours.keys() ^ theirs.keys()
        if not apart <= set(case["gate_ties"]):
            odd.append(f"{label}: features {sorted(apart)[:8]} fire on one side alone")
        if case["n_active"] != len(ours) or (not apart and len(theirs) != case["n_active"]):
            odd.append(f"{label}: n_active is {case['n_active']} and {len(theirs)}")
        scale = max((abs(value) for value in theirs.values()), default=1.0)
        encodings.append(max((abs(ours[index] - theirs[index]) / scale for index in ours.keys() & theirs.keys()), default=0.0))
        if answer.peer in answer.case.encodes_only or apart:
            continue
        outs = answer.arrays[f"out_{number}"]
        if len(outs) != len(case["reconstructions"]):
            odd.append(f"{label}: {len(case['reconstructions'])} reconstructions and {len(outs)}")
        for reconstruction, out in zip(case["reconstructions"], outs):
            their_numbers = np.array([*out[:10], np.linalg.norm(out), out.sum()])
            our_numbers = np.array([*reconstruction["first_10"], reconstruction["norm"], reconstruction["sum"]])
            reconstructions.append(float(np.max(np.abs(their_numbers - our_numbers)) / np.max(np.abs(out))))
    return Difference(max(encodings), max(reconstructions, default=None), len(cases), tuple(odd))
