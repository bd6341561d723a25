# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ports with mistakes: a float32 encoder of the tests' own that goes wrong in the ways that are asked for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oracle.arithmetic.residual import residual
from oracle.checking.compare import compare
from oracle.diagnosis.explain import explain
from oracle.diagnosis.explanation import Explanation
from oracle.job import Job, Origin
from oracle.references.document import CaseId
from oracle.references.generate import generate
from oracle.references.reading import parse_candidate
from oracle.references.recorded import RecordedWeights
from tests.support import worlds
from tests.support.planting_steps import MORE, of_constants
from tests.support.planting_unlisted import UNLISTED
from tests.support.small_scope import CURATION_REPO, WEIGHTS_REPO, npz

Arrays = dict[str, np.ndarray]
COMMIT = "c" * 40
MASK = 2**64 - 1


def to_bits(values: np.ndarray, bits: int, how: Callable[..., np.ndarray]) -> np.ndarray:
    m, e = np.frexp(values.astype(np.float64))
    return np.ldexp(how(m * 2.0**bits), e - bits).astype(np.float32)


def bf16(v: np.ndarray) -> np.ndarray:
    return to_bits(v, 8, np.rint)


def tf32(v: np.ndarray) -> np.ndarray:
    return to_bits(v, 11, np.rint)


def half(v: np.ndarray) -> np.ndarray:
    return v.astype(np.float16).astype(np.float32)


def best(keys: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """The k features of `among` with the largest keys, descending, then by index."""
    return among[np.lexsort((among, -keys[among]))][:k]


def every(pre: np.ndarray) -> np.ndarray:
    return np.arange(len(pre))


# name -> (the step that it changes, how). The names are those of the rows of the table under test.
PLANTS: dict[str, tuple[str, Any]] = {
    "relu": ("gate", lambda t: (0 * t, 0 * t)),
    "no gate": ("gate", lambda t: (0 * t - np.inf, 0 * t)),
    "threshold halved": ("gate", lambda t: (t / 2, 0 * t)),
    "threshold doubled": ("gate", lambda t: (t * 2, 0 * t)),
    "exp(threshold)": ("gate", lambda t: (np.exp(t), 0 * t)),
    "threshold subtracted": ("gate", lambda t: (t, t)),
    "b_enc left out": ("bias", 0),
    "b_enc twice": ("bias", 2),
    "b_enc subtracted": ("bias", -1),
    "b_dec subtracted": ("input", lambda r, a: r - a["b_dec"]),
    "b_dec added": ("input", lambda r, a: r + a["b_dec"]),
    "W_enc reshaped": (
        "weights",
        lambda a: np.ascontiguousarray(a.get("W_enc reshaped", a["W_enc"].reshape(a["W_enc"].shape[::-1]).T)),
    ),
    "W_dec for W_enc": ("weights", lambda a: np.ascontiguousarray(a["W_dec"].T)),
    "layer below": ("weights", -1),
    "layer above": ("weights", 1),
    "other L0 (1)": ("weights", "l0"),
    "weights in bfloat16": ("weight rounding", bf16),
    "weights cut to bfloat16": ("weight rounding", lambda v: to_bits(v, 8, np.trunc)),
    "weights in float16": ("weight rounding", half),
    "TF32 products": ("products", tf32),
    "TF32 products, cut": ("products", lambda v: to_bits(v, 11, np.trunc)),
    "residual in bfloat16": ("residual rounding", bf16),
    "residual cut to bfloat16": ("residual rounding", lambda v: to_bits(v, 8, np.trunc)),
    "residual in float16": ("residual rounding", half),
    "residual of unit norm": ("normalisation", lambda r: r / np.float32(np.linalg.norm(r))),
    "residual RMS-normalised": ("normalisation", lambda r: r / np.sqrt(np.mean(r * r))),
    "residual layer-normalised": ("normalisation", lambda r: (r - r.mean()) / r.std()),
    "seed + 1": ("source", lambda i, layer: (100 * i + layer + 1, layer)),
    "seed - 1": ("source", lambda i, layer: (100 * i + layer - 1, layer)),
    "seed + 100": ("source", lambda i, layer: (100 * i + 100 + layer, layer)),
    "seed - 100": ("source", lambda i, layer: (100 * i - 100 + layer, layer)),
    "seed + 200": ("source", lambda i, layer: (100 * i + 200 + layer, layer)),
    "seed - 200": ("source", lambda i, layer: (100 * i - 200 + layer, layer)),
    "seed without layer": ("source", lambda i, layer: (100 * i, layer)),
    "seed is i": ("source", lambda i, layer: (i, layer)),
    "seed by layer": ("source", lambda i, layer: (100 * layer + i, layer)),
    "seed 0": ("source", lambda i, layer: (0, layer)),
    "seed 1": ("source", lambda i, layer: (1, layer)),
    "seed 42": ("source", lambda i, layer: (42, layer)),
    "stream is seed": ("source", lambda i, layer: (100 * i + layer, 100 * i + layer)),
    "stream + 1": ("source", lambda i, layer: (100 * i + layer, layer + 1)),
    "stream - 1": ("source", lambda i, layer: (100 * i + layer, layer - 1)),
    "stream 0": ("source", lambda i, layer: (100 * i + layer, 0)),
    "stream 1": ("source", lambda i, layer: (100 * i + layer, 1)),
    "stream 54": ("source", lambda i, layer: (100 * i + layer, 54)),
    "seed and stream swapped": ("source", lambda i, layer: (layer, 100 * i + layer)),
    "top k by |pre|": ("selection", lambda pre, act, on, k: [(j, pre[j]) for j in best(abs(pre), every(pre), k)]),
    "top k by |pre|, printed": (
        "selection",
        lambda pre, act, on, k: [(j, abs(pre[j])) for j in best(abs(pre), every(pre), k)],
    ),
    "top k ascending": ("selection", lambda pre, act, on, k: [(j, act[j]) for j in best(act, on, k)[::-1]]),
    "smallest k": ("selection", lambda pre, act, on, k: [(j, act[j]) for j in best(-act, on, k)]),
    "top k by index": ("selection", lambda pre, act, on, k: [(j, act[j]) for j in sorted(best(act, on, k))]),
    "first k by index": ("selection", lambda pre, act, on, k: [(j, act[j]) for j in on[:k]]),
    "before the gate": ("selection", lambda pre, act, on, k: [(j, pre[j]) for j in best(pre, every(pre), k)]),
    "features reversed": ("index", lambda j, n: n - 1 - j),
    "features shifted up": ("index", lambda j, n: (j + 1) % n),
    "features shifted down": ("index", lambda j, n: (j - 1) % n),
    "indices from 1": ("index", lambda j, n: j + 1),
    "layers from 1": ("layer label", 1),
    **MORE,
    "weights in TF32": ("weight rounding", tf32),
    "residual in TF32": ("residual rounding", tf32),
}


def make_weights(seed: int, d_model: int, n_features: int, n_layers: int = 4) -> dict[Any, Arrays]:
    """Layers 0, 1, ..., and for each an L0 variant under ("l0", layer): one feature in three fires, a few never may."""
    weights: dict[Any, Arrays] = {}
    for number, name in enumerate([*range(n_layers), *(("l0", layer) for layer in range(n_layers))]):
        rng = np.random.default_rng([seed, number])

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        low = rng.uniform(0.7, 2.0, n_features)
        weights[name] = {
            "W_enc": normal(d_model, n_features) * np.float32(4 * d_model**-0.5),
            "W_dec": normal(n_features, d_model) * np.float32(4 * d_model**-0.5),
            "b_enc": normal(n_features) * np.float32(0.5),
            "b_dec": normal(d_model) * np.float32(0.3),
            "threshold": np.where(rng.random(n_features) < 0.2, 15, low).astype(np.float32),
        }
    return weights


def make_cache(folder: Path, weights: dict[Any, Arrays]) -> str:
    """A Hub cache that holds them, and its config.yaml."""
    layers = [name for name in weights if isinstance(name, int)]
    entries = "".join(
        f'  - "hf://{WEIGHTS_REPO}/layer_{layer}/width_16k/average_l0_{layer + 5}/params.npz"\n' for layer in layers
    )
    files = [(CURATION_REPO, "config.yaml", f"model_kind: transcoder_set\ntranscoders:\n{entries}".encode())]
    for name, arrays in weights.items():
        layer, l0 = (name, name + 5) if isinstance(name, int) else (name[1], name[1] + 105)
        files.append((WEIGHTS_REPO, f"layer_{layer}/width_16k/average_l0_{l0}/params.npz", npz(arrays)))
    return write_cache(folder, files)


def write_cache(folder: Path, files: list[tuple[str, str, bytes]]) -> str:
    """A Hub cache of (repo, path, content)."""
    for repo, path, content in files:
        place = folder / f"models--{repo.replace('/', '--')}"
        blob, pointer = place / "blobs" / hashlib.sha256(content).hexdigest(), place / "snapshots" / COMMIT / path
        for parent in (blob.parent, pointer.parent, place / "refs"):
            parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        (place / "refs" / "main").write_text(COMMIT)
    return str(folder)


def float32_sums(r: np.ndarray, w_enc: np.ndarray) -> np.ndarray:
    """r . W_enc, float32 all the way, row after row."""
    pre = np.zeros(w_enc.shape[1], np.float32)
    for value, row in zip(r, w_enc):
        pre += value * row
    return pre


def encode_case(
    weights: dict[Any, Arrays], layer: int, i: int, names: Sequence[str], k: int = 10, scale: float = 1, rows: np.ndarray | None = None
) -> dict[str, Any]:
    """What a port with the named mistakes answers for the i-th case of a layer: of the generator's, times `scale`, or of `rows`."""
    steps = dict(PLANTS.get(name) or UNLISTED.get(name) or of_constants(name) for name in names)
    assert len(steps) == len(names)

    def same(v: np.ndarray) -> np.ndarray:
        return v

    arrays, matrix = weights[layer], steps.get("weights", lambda a: a["W_enc"])
    if isinstance(matrix, (int, str)):  # another file; where there is none, the right one
        arrays = weights.get(("l0", layer) if matrix == "l0" else layer + matrix, arrays)
        w_enc = arrays["W_enc"]
    else:
        w_enc = matrix(arrays)
    seed, stream = steps.get("source", lambda i, layer: (100 * i + layer, layer))(i, layer)
    sequence = steps.get("sequence", lambda *_: residual(seed & MASK, stream & MASK, len(w_enc)))
    r = sequence(i, layer, len(w_enc)) * np.float32(scale) if rows is None else rows[i]
    r = steps.get("input", lambda r, a: r)(r, arrays)
    for step in ("normalisation", "residual rounding", "products"):
        r = steps.get(step, same)(r)
    for step in ("weight rounding", "products"):
        w_enc = steps.get(step, same)(w_enc)
    model, printed = steps.get("model", same), steps.get("printed", steps.get("model", same))
    bias, b_enc = steps.get("bias", 1), weights.get(layer + steps.get("bias layer", 0), arrays)["b_enc"] if "bias layer" in steps else arrays["b_enc"]
    b_enc = bias(b_enc) if callable(bias) else np.float32(bias) * b_enc
    products = model(steps.get("sums", float32_sums)(model(r), model(w_enc)))
    pre = model(products + model(b_enc))
    if "sums" in steps:
        printed = bf16 if "bfloat16" in names[0] else half
        pre = printed(pre)
    threshold = weights.get(layer + steps["threshold layer"], arrays)["threshold"] if "threshold layer" in steps else arrays["threshold"]
    gate, taken = steps.get("gate", lambda t: (t, 0 * t))(np.maximum(model(threshold), 0))
    on = np.flatnonzero(pre > gate)
    act = pre - taken
    if "activation" in steps:
        act, fires = steps["activation"](pre, gate)
        on = np.flatnonzero(fires)
    chosen = steps.get("selection", lambda pre, act, on, k: [(j, act[j]) for j in best(act, on, k)])(pre, act, on, k)
    relabel = steps.get("index", lambda j, n: j)
    return {
        "layer": layer + steps.get("layer label", 0),
        **({"seed": 100 * i + layer} if rows is None else {"row": i}),
        "n_active": int(steps.get("count", lambda pre, on, chosen: len(on))(pre, on, chosen)),
        f"top_{k}": [{"index": int(relabel(int(j), len(pre))), "activation": float(printed(np.float32(value)))} for j, value in chosen],
    }


def candidate(
    weights: dict[Any, Arrays], names: Sequence[str], layers: Sequence[int] = (0, 1, 2), seeds: int = 3, **residuals: Any
) -> dict[str, Any]:
    return {"test_cases": [encode_case(weights, layer, i, names, **residuals) for layer in layers for i in range(seeds)]}


def mixed(weights: dict[Any, Arrays], names_of: Callable[[int, int], Sequence[str]], layers: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """What a port answers whose mistakes are others in each case."""
    return {"test_cases": [encode_case(weights, layer, i, names_of(layer, i)) for layer in layers for i in range(3)]}


class World:
    """Synthetic weights in a cache, their reference, and ports of it."""

    def __init__(self, weights: dict[Any, Arrays], job: Job):
        self.weights, self.layers = weights, job.layers
        rows = {} if job.residuals is None else {"rows": np.load(job.residuals)}
        self.residuals = {"seeds": job.n_seeds, "scale": job.scale, **rows}  # of its cases, as candidate takes them
        self.reference = generate(job)
        # As compare has it, unless it is told more.
        self.recorded_weights = RecordedWeights.of(self.reference, Origin(cache_dir=job.origin.cache_dir, offline=True))

    @classmethod
    def make(cls, folder: Path, seed: int, shape: tuple[int, int], layers: Sequence[int] = (0, 1, 2), **more: Any) -> World:
        """With a layer above them."""
        weights = make_weights(seed, *shape, n_layers=len(layers) + 1)
        origin = Origin(CURATION_REPO, cache_dir=make_cache(folder, weights), offline=True)
        return cls(weights, Job(origin, layers=tuple(layers), **more))

    @classmethod
    def of(cls, folder: Path, repo: worlds.World) -> World:
        """A repo of worlds.py, its first three layers."""
        by_feature = repo.schema in ("PltBundle", "CltSplit")
        weights: dict[Any, Arrays] = {}
        for layer, own in repo.weights.items():
            arrays = {"W_enc": own["w_enc"].T.copy(), "W_dec": own["w_dec"][:, 0], "b_enc": own["b_enc"]}
            arrays |= {"b_dec": own["b_dec"], "threshold": own.get("threshold", np.zeros_like(own["b_enc"]))}
            if by_feature:
                arrays["W_enc reshaped"] = own["w_enc"].reshape(arrays["W_enc"].shape)
            weights[layer] = arrays
        cache = write_cache(folder, [(name, path, content) for name, of in repo.files.items() for path, content in of.items()])
        path = tuple(repo.files[repo.repo])[:3] if repo.schema == "Sae" else ()
        return cls(weights, Job(Origin(repo.repo, path=path, cache_dir=cache, offline=True), layers=(0, 1, 2)))

    def explain(self, names: Sequence[str]) -> tuple[dict[str, Any], Explanation | None]:
        """What a port with these mistakes answers, and its explanation; None where it agrees."""
        answers = candidate(self.weights, names, self.layers, **self.residuals)
        return answers, self.explain_answers(answers)

    def explain_answers(self, answers: dict[str, Any]) -> Explanation | None:
        port = parse_candidate(answers, self.reference.top_k)
        comparison = compare(self.reference, port)
        return None if comparison.agrees else explain(self.reference, port, comparison, self.recorded_weights)

    def gives(self, names: Sequence[str], answers: dict[str, Any], among: Collection[CaseId] = ()) -> bool:
        """Whether a port with these mistakes would print the same, but for rounding; in all cases, or `among` some."""
        other = candidate(self.weights, names, self.layers, **self.residuals)["test_cases"]
        return all(
            bool(among) and _id(a) not in among or
            (_id(a), a["n_active"]) == (_id(b), b["n_active"])
            and [t["index"] for t in a["top_10"]] == [t["index"] for t in b["top_10"]]
            and all(abs(s["activation"] - t["activation"]) < self.reference.tolerance_of(case) for s, t in zip(a["top_10"], b["top_10"]))
            for a, b, case in zip(answers["test_cases"], other, self.reference.cases)
        )

    def judge(self, names: Sequence[str]) -> str:
        """`first`: named first. `equal`: named, among others that give the same numbers. Else what went wrong."""
        answers, explanation = self.explain(names)
        return judge(names, explanation, lambda other, among: self.gives(other, answers, among))


def _id(case: dict[str, Any]) -> CaseId:
    kind = "row" if "row" in case else "seed"
    return CaseId(case["layer"], kind, case[kind])


def judge(names: Sequence[str], explanation: Explanation | None, gives: Callable[[Sequence[str], Collection[CaseId]], bool]) -> str:
    """`first`: named first. `equal`: named, among others that give the same numbers in the same cases. Else what went wrong."""
    if explanation is None:
        return "agrees"
    if not explanation.named:
        return f"not found: {explanation.known}"
    sets = [set(fit.mistakes) for fit in explanation.named]
    for cause in explanation.causes:
        for fit in cause.named:
            if {_without_constants(name) for name in fit.mistakes} == {_without_constants(name) for name in names}:
                sets = [set(names) if own == set(fit.mistakes) else own for own in sets]
            elif not gives(fit.mistakes, cause.cases):
                return f"wrongly named: {fit.name}"
    others = [named for named in sets if named != set(names)]
    if set(names) in sets:
        return "equal" if others else "first"
    return "equal" if others and all(len(other) < len(names) for other in others) else f"not named: {sets}"


def _without_constants(name: str) -> str:
    """Of an estimate any constant does that gives the numbers: 2.4 for 2.5."""
    return re.sub(r"\b[0-9.]+ (?=dropped|halved)|(?<=times )[0-9.]+", "#", name)


# Where more than k features fire in every case, or no more than k: the port is right then.
MAY_CHANGE_NOTHING = {("before the gate",), ("top k decoded",), ("residual clipped at 3",), ("remainder skipped",), ("activations up to 6",)}
MAY_CHANGE_NOTHING |= {("n_active of the list",), ("b_enc in bfloat16",), ("b_enc in float16",), ("activations below 5 halved",), ("last 8 features skipped",)}
# What differs in a few counts alone, and is not named where these could be so by chance.
MAY_BE_SILENT = {("first feature skipped",), ("last feature skipped",), ("last 8 features skipped",), ("threshold times 1.1",), ("activations below 2.5 dropped",)}


def plant_all(worlds: list[World], groups: list[tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    return {names: [world.judge(names) for world in worlds] for names in groups}


def check(results: dict[tuple[str, ...], list[str]]) -> None:
    """Print the table, and fail where a mistake was not named as it should be."""
    for names, outcomes in results.items():
        summary = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in dict.fromkeys(outcomes))
        print(f"{' and '.join(names):60} {summary}")
    right = {"first", "equal"}
    wrong = {
        names: outcome
        for names, outcome in results.items()
        if {"silent" if one.startswith("not found") and names in MAY_BE_SILENT else one for one in outcome}
        - right - ({"agrees"} if names in MAY_CHANGE_NOTHING | MAY_BE_SILENT else set()) - {"silent"}
    }  # fmt: skip
    assert not wrong, wrong
