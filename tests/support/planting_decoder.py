# SPDX-License-Identifier: MIT OR Apache-2.0
"""Decoders with mistakes: a float32 port of the tests' own, whose encoder is right and whose decoder is as asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oracle.arithmetic.residual import residual
from oracle.checking.compare import compare
from oracle.diagnosis.explain import explain
from oracle.diagnosis.explanation import Explanation
from oracle.job import Job, Origin
from oracle.references.document import CaseId, to_json
from oracle.references.generate import generate
from oracle.references.reading import parse_candidate
from oracle.references.recorded import RecordedWeights
from tests.support import worlds
from tests.support.planting import bf16, half, judge, to_bits, write_cache


def fires(pre: np.ndarray, gate: np.ndarray) -> np.ndarray:
    return np.where(pre > gate, pre, np.float32(0))


def largest(pre: np.ndarray, gate: np.ndarray) -> np.ndarray:
    act = fires(pre, gate)
    act[np.argsort(-act, kind="stable")[10:]] = 0
    return act


# name -> (the step that it changes, how, what it takes). The names are those of the rows of the table under test.
PLANTS: dict[str, tuple[str, Any, str]] = {
    "b_dec left out": ("b_dec", lambda own: 0, ""),
    "b_dec twice": ("b_dec", lambda own: 2 * own, ""),
    "b_dec taken off": ("b_dec", lambda own: -1 * own, ""),
    "b_dec to every target": ("b_dec", lambda own: 1, "targets"),
    "W_skip left out": ("skip", lambda r, w, own: 0, "skip"),
    "W_skip transposed": ("skip", lambda r, w, own: own * (w @ r), "skip"),
    "W_skip twice": ("skip", lambda r, w, own: 2 * own * (r @ w), "skip"),
    "residual added": ("skip", lambda r, w, own: own * (r @ w + r), ""),
    "residual for W_skip": ("skip", lambda r, w, own: own * r, "skip"),
    "target below": ("target", -1, "targets"),
    "target above": ("target", 1, "targets"),
    "targets reversed": ("order", "reversed", "targets"),
    "targets cumulative": ("order", "cumulative", "targets"),
    "W_dec target-major": ("decoder", "target-major", "targets"),
    "b_dec of the layer below": ("b_dec layer", -1, ""),
    "b_dec of the layer above": ("b_dec layer", 1, ""),
    "W_dec of unit norm": ("rounding", lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True), "one"),
    "W_dec reshaped": ("decoder", "reshaped", "one"),
    "W_dec of the layer below": ("decoder", -1, ""),
    "W_dec of the layer above": ("decoder", 1, ""),
    "W_dec in bfloat16": ("rounding", bf16, "float32"),
    "W_dec cut to bfloat16": ("rounding", lambda v: to_bits(v, 8, np.trunc), "float32"),
    "W_dec in float16": ("rounding", half, "float32"),
    "activations in bfloat16": ("activations", lambda pre, gate: bf16(fires(pre, gate)), ""),
    "activations cut to bfloat16": ("activations", lambda pre, gate: to_bits(fires(pre, gate), 8, np.trunc), ""),
    "activations in float16": ("activations", lambda pre, gate: half(fires(pre, gate)), ""),
    "top k decoded": ("activations", largest, ""),
    "threshold subtracted in decoding": ("activations", lambda pre, gate: np.where(pre > gate, pre - gate, 0), "threshold"),
    "relu in decoding": ("activations", lambda pre, gate: np.maximum(pre, 0), "threshold"),
    "no gate in decoding": ("activations", lambda pre, gate: pre, ""),
}


class Decoders:
    """A repo of worlds.py in a cache, its reference with reconstructions, and ports of it."""

    def __init__(self, repo: worlds.World, job: Job, **kind: Any):
        self.repo, self.kind = repo, kind
        self.reference = generate(job)
        self.recorded_weights = RecordedWeights.of(self.reference, Origin(cache_dir=job.origin.cache_dir, offline=True))

    @classmethod
    def make(cls, folder: Path, seed: int = 0, n_layers: int = 4, **kind: Any) -> Decoders:
        repo = worlds.make(n_layers=n_layers, seed=seed, **kind)
        cache = write_cache(folder, [(name, path, content) for name, of in repo.files.items() for path, content in of.items()])
        path = tuple(repo.files[repo.repo])[:3] if repo.schema == "Sae" else ()
        return cls(repo, Job(Origin(repo.repo, path=path, cache_dir=cache, offline=True), layers=(0, 1, 2), seeds=2, decode=True), **kind)

    def possible(self) -> list[str]:
        """The mistakes that change something here."""
        available = {"float32"} if self.kind.get("dtype", "float32") == "float32" else set()
        available |= {"skip"} if "w_skip" in self.repo.weights[0] else set()
        available |= {"targets"} if self.repo.schema == "CltSplit" else {"one"}
        available |= {"threshold"} if self.kind.get("threshold", True) else set()
        return [name for name, (_, _, takes) in PLANTS.items() if set(takes.split()) <= available]

    def decode(self, layer: int, seed: int, names: Sequence[str]) -> list[dict[str, Any]]:
        """The reconstructions of a port with these mistakes; where it would take a decoder that is not there, none."""
        steps = {PLANTS[name][0]: PLANTS[name][1] for name in names}
        assert len(steps) == len(names)
        weights = self.repo.weights[layer]
        r = residual(seed, layer, weights["w_enc"].shape[1])
        pre = weights["w_enc"] @ r + weights["b_enc"]
        gate = np.maximum(weights["threshold"], 0) if "threshold" in weights else np.zeros_like(pre)
        act = steps.get("activations", fires)(pre, gate).astype(np.float32)
        which = steps.get("decoder", 0)
        w_dec = weights["w_dec"]  # [n_features, n_targets, d_model]
        n_targets = w_dec.shape[1]
        if which == "reshaped":
            w_dec = w_dec.reshape(w_dec.shape[2], 1, -1).transpose(2, 1, 0)
        elif which == "target-major":
            w_dec = w_dec.reshape(n_targets, len(w_dec), -1).transpose(1, 0, 2)
        elif layer + which in self.repo.weights:
            w_dec = self.repo.weights[layer + which]["w_dec"]
        w_dec = steps.get("rounding", lambda v: v)(w_dec)
        order = steps.get("order", "")
        b_dec = self.repo.weights.get(layer + steps.get("b_dec layer", 0), weights)["b_dec"]
        outputs, before = [], np.zeros(len(r), np.float32)
        for target in range(n_targets):
            place, own = target + steps.get("target", 0), int(target == 0)
            if not 0 <= place < w_dec.shape[1]:
                continue
            out = np.zeros(len(r), np.float32)
            for activation, row in zip(act, w_dec[:, n_targets - 1 - place if order == "reversed" else place]):
                out += activation * row
            before = before + out
            out = before if order == "cumulative" else out
            w_skip = weights.get("w_skip", np.zeros((len(r), len(r)), np.float32))
            out = out + steps.get("skip", lambda r, w, own: own * (r @ w))(r, w_skip, own)
            out = (out + steps.get("b_dec", lambda own: own)(own) * b_dec).astype(np.float32)
            wide = out.astype(np.float64)
            outputs.append(
                {
                    "target_layer": layer + target,
                    "norm": float(np.linalg.norm(out)),
                    "sum": float(wide.sum()),
                    "sum_of_squares": float((wide * wide).sum()),
                    "first_10": out[:10].tolist(),
                }
            )
        return outputs

    def candidate(self, names: Sequence[str]) -> dict[str, Any]:
        """The reference's own encodings, which a right port may give, with a port's reconstructions."""
        answers: dict[str, Any] = json.loads(json.dumps({"test_cases": to_json(self.reference, with_residuals=False)["test_cases"]}))
        for case in answers["test_cases"]:
            case["reconstructions"] = self.decode(case["layer"], case["seed"], names)
        return answers

    def explain_answers(self, answers: dict[str, Any]) -> Explanation | None:
        """None where they agree."""
        port = parse_candidate(answers, self.reference.top_k)
        comparison = compare(self.reference, port)
        return None if comparison.agrees else explain(self.reference, port, comparison, self.recorded_weights)

    def gives(self, names: Sequence[str], answers: dict[str, Any], among: Collection[CaseId] = ()) -> bool:
        """Whether a port with these mistakes gives the same first values, within the tolerance, where it gives any."""
        other = self.candidate(names)["test_cases"]
        return all(
            np.allclose(a["first_10"], b["first_10"], rtol=0, atol=right.tolerance)
            for case, theirs, ours in zip(answers["test_cases"], other, self.reference.cases)
            for a in case["reconstructions"]
            for b in theirs["reconstructions"]
            for right in ours.outputs
            if a["target_layer"] == b["target_layer"] == right.target_layer and (not among or ours.id in among)
        )

    def judge(self, names: Sequence[str]) -> str:
        """`first`: named first. `equal`: named, among others that give the same numbers. Else what went wrong."""
        answers = self.candidate(names)
        return judge(names, self.explain_answers(answers), lambda other, among: self.gives(other, answers, among))
