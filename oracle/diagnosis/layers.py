# SPDX-License-Identifier: MIT OR Apache-2.0
"""The layers under examination: their cases, the weight files beside their own that a port may have taken, and products with these."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

import vendored_hf
from oracle.arithmetic.products import Matrix
from oracle.checking.lists import listed
from oracle.diagnosis.port import LAYER_ABOVE, LAYER_BELOW, OWN, RESHAPED, TARGET_MAJOR, W_DEC, Mistake, Rounding, Vectors
from oracle.diagnosis.steps import Scaled
from oracle.errors import WeightsError
from oracle.references.document import Case
from oracle.references.plan import LayerFiles
from oracle.references.recorded import RecordedLayer, RecordedWeights
from oracle.weights.formats import ENCODER, SIDE, Format
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.sidefiles import Context

MOST_VARIANTS = 3  # of other L0

OTHER_L0 = {
    name: Mistake(name, f"the weights are of another L0 variant, number {number} of those in the cache", (("w_enc", name),))
    for number, name in ((number, f"other L0 ({number})") for number in range(1, MOST_VARIANTS + 1))
}
BESIDE = {LAYER_BELOW: -1, LAYER_ABOVE: 1}  # by how much the layer is another


@dataclass(frozen=True)
class Neighbour:
    """Files with other weights than a layer's own, by what they are for, at local `paths`."""

    format: Format
    layer: int
    paths: dict[str, str]
    label: str
    context: Context

    @contextlib.contextmanager
    def opened(self) -> Iterator[LayerWeights]:
        """Its tensors. Raises WeightsError."""
        with contextlib.ExitStack() as stack:
            files = {}
            for role, path in self.paths.items():
                reader = cast(BinaryIO, stack.enter_context(open(path, "rb", buffering=0)))
                files[role] = OpenFile(reader, self.format.files[role], self.label)
            yield LayerWeights(self.format, self.layer, files, self.context)


@dataclass(frozen=True, eq=False)
class ExaminedCase:
    """A case of the reference, the candidate's answer, and the right residual, float32 [d_model]."""

    case: Case
    answer: Case
    residual: np.ndarray

    @cached_property
    def printed(self) -> tuple[np.ndarray, np.ndarray]:
        """The candidate's list: indices, int64 [n], and values, float64 [n]."""
        return indices_and_values(self.answer)

    @cached_property
    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The reference's list."""
        return indices_and_values(self.case)


@dataclass
class ExaminedLayer:
    """A layer with the cases that are looked at; `shape` is the reference's [d_model, n_features].

    `neighbours` are by what Port calls them; None: there is no such layer.
    """

    own: RecordedLayer
    shape: tuple[int, int]
    cases: list[ExaminedCase]
    neighbours: dict[str, Neighbour | None] = field(default_factory=dict)
    vectors: dict[str, Vectors | None] = field(default_factory=dict)
    kept: list[LayerWeights] = field(default_factory=list)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[LayerWeights]:
        """The weights of a neighbour, or the layer's own. Raises WeightsError, also where they are of another shape."""
        neighbour = self.neighbours.get(name)
        if self.kept and not neighbour:
            yield self.kept[0]
            return
        with neighbour.opened() if neighbour else self.own.opened() as weights:
            shape = weights.d_model, weights.n_features
            if shape != self.shape:
                raise WeightsError(
                    f"{weights.label}: [d_model, n_features] is {list(shape)}, by the reference it must be {list(self.shape)}"
                )
            yield weights

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep the layer's own weights open: each opening reads and checks its vectors anew."""
        with self.opened(OWN) as weights:
            self.kept.append(weights)
            try:
                yield
            finally:
                self.kept.clear()

    def vectors_of(self, name: str) -> Vectors | None:
        """The vectors of a neighbour, or the layer's own; None where they are in a file that is not there. Raises WeightsError."""
        if name not in self.vectors:
            neighbour = self.neighbours.get(name)
            if neighbour and ENCODER not in neighbour.paths:
                self.vectors[name] = None
            else:
                with self.opened(name) as weights:
                    self.vectors[name] = Vectors(weights.b_enc, weights.threshold, weights.b_dec)
        return self.vectors[name]

    def has(self, name: str) -> bool:
        """Whether what a port takes is there."""
        return name in (OWN, RESHAPED, TARGET_MAJOR, W_DEC) or self.neighbours.get(name) is not None

    def file_of(self, array: str) -> str:
        """Which file holds what a port takes for its matrix."""
        return array if array in self.neighbours else OWN


class Neighbourhood:
    """The layers that are known beside those of a reference. `not_tried` fills with those whose files are not there."""

    def __init__(self, weights: RecordedWeights, role: str):
        self.not_tried: list[str] = []
        self._weights, self._role = weights, role
        self._known, self._is_whole = weights.known_files()

    def beside(self, layer: RecordedLayer) -> dict[str, Neighbour | None]:
        """The neighbours of a layer; what is not there is left out."""
        neighbours: dict[str, Neighbour | None] = {}
        for name, by in BESIDE.items():
            number = layer.layer + by
            if number < 0 or number not in self._known and (self._is_whole or number > max(self._known, default=0)):
                neighbours[name] = None
            if number >= 0 and (number in self._known or not self._is_whole):
                try:
                    paths = self._fetch(layer, self._known[number])
                except (OSError, KeyError, vendored_hf.EntryNotFoundError):
                    self.not_tried.append(f"layer {number}")
                else:
                    neighbours[name] = Neighbour(layer.format, number, paths, f"layer {number}", layer.context)
        return neighbours | (_other_l0(layer) if self._role == ENCODER else {})

    def _fetch(self, layer: RecordedLayer, files: LayerFiles) -> dict[str, str]:
        own, paths = layer.files[ENCODER].file, {}
        for role in dict.fromkeys((self._role, SIDE, ENCODER)):
            file = files.files.get(role)
            if file and file.repo == own.repo:
                file = file._replace(revision=file.revision or own.revision)
            if file and role == ENCODER != self._role:  # it has vectors, for which none is fetched
                with contextlib.suppress(OSError, vendored_hf.EntryNotFoundError):
                    paths[role] = self._weights.offline().fetch(file)
            elif file:
                paths[role] = self._weights.fetch(file)
        return paths


def _other_l0(layer: RecordedLayer) -> dict[str, Neighbour]:
    """Files in the cache that differ from the layer's own in the L0 of their folder's name."""
    path = Path(layer.files[ENCODER].path)
    l0 = re.fullmatch(r"(.*l0_)\w+", path.parent.name)
    beside = sorted(path.parent.parent.glob(f"*/{path.name}")) if l0 else []
    variants = [file for file in beside if l0 and file.parent != path.parent and file.parent.name.startswith(l0[1])]
    return {
        name: Neighbour(layer.format, layer.layer, {ENCODER: str(file)}, f"{file.parent.name}/{file.name}", layer.context)
        for name, file in zip(OTHER_L0, variants)
    }


def indices_and_values(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A case's list: int64 [n] and float64 [n]."""
    top = listed(case)
    indices = np.array([index for index, _ in top], object)
    return np.clip(indices, -1, 1 << 62).astype(np.int64), np.array([activation for _, activation in top], np.float64)


# --- products -----------------------------------------------------------------------------------------------------------

Roundings = tuple[Rounding | Scaled, ...]  # one after the other

ROWS_AT_ONCE = 256  # of a matrix in memory


def multiply(
    matrix: Matrix, n_outputs: int, factors: list[np.ndarray], roundings: list[Roundings], largest: np.ndarray | None = None
) -> list[np.ndarray]:
    """Each factor, float32 [n, n_inputs], times the matrix as it is rounded for it: float64 [n, n_outputs].

    `largest` is each output's largest |weight|, which some roundings need.
    """
    stacks = {key: np.concatenate([factor for factor, own in zip(factors, roundings) if own == key]) for key in set(roundings)}
    products = {key: np.zeros((len(rows), n_outputs)) for key, rows in stacks.items()}
    start = 0
    for block in matrix.blocks():
        span = slice(start, start + len(block))
        start = span.stop
        for key, rows in stacks.items():
            wide = rounded(block, key, largest, span if matrix.features_first else None).astype(np.float64)
            if matrix.features_first:
                # [n, n_inputs] @ [n_inputs, rows] -> [n, rows]
                products[key][:, span] = rows.astype(np.float64) @ wide.T
            else:
                # [n, rows] @ [rows, n_outputs] -> [n, n_outputs]
                products[key] += rows[:, span].astype(np.float64) @ wide
    ends = dict.fromkeys(stacks, 0)
    parts = []
    for factor, key in zip(factors, roundings):
        parts.append(products[key][ends[key] : ends[key] + len(factor)])
        ends[key] += len(factor)
    return parts


def rounded(block: np.ndarray, roundings: Roundings, largest: np.ndarray | None, features: slice | None) -> np.ndarray:
    """A block of a matrix as a port has it: float32 [rows, columns], of which `features` are the rows, or else the columns."""

    def step(values: np.ndarray, rounding: Rounding | Scaled) -> np.ndarray:
        if not isinstance(rounding, Scaled):
            return rounding(values)
        scale = rounding.scale(np.ones(1, np.float32) if largest is None else largest)
        divisor = scale if features is None else scale[features][:, np.newaxis]
        return np.asarray(rounding.rounding(values / divisor) * divisor, np.float32)

    return reduce(step, roundings, block)


@dataclass(frozen=True)
class Survey:
    """What one pass over a matrix tells: some of its columns, float32 [n_inputs, n], as they are and where its buffer is taken as one
    with its axes swapped; rows times the whole of it, float64 [n_rows, n_outputs]; and each output's largest |weight|, float32
    [n_outputs]."""

    columns: np.ndarray
    reshaped: np.ndarray
    product: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, matrix: Matrix, n_outputs: int, outputs: np.ndarray, rows: np.ndarray) -> Survey:
        """`outputs` ascend; float32 rows [n_rows, n_inputs]."""
        product, largest = np.zeros((len(rows), n_outputs)), np.zeros(n_outputs, np.float32)
        wide_rows, parts, start = rows.astype(np.float64), [], 0
        n_inputs = rows.shape[1]
        inputs = np.arange(n_inputs)[:, np.newaxis]
        places = (inputs * n_outputs + outputs if matrix.features_first else outputs * n_inputs + inputs).reshape(-1)
        order = np.argsort(places)
        places = places[order]
        swapped = np.empty(len(places), np.float32)
        for block in matrix.blocks():
            span = slice(start, start + len(block))
            start = span.stop
            first, last = np.searchsorted(places, (span.start * block.shape[1], span.stop * block.shape[1]))
            swapped[order[first:last]] = block.reshape(-1)[places[first:last] - span.start * block.shape[1]]
            wide = block.astype(np.float64)
            if matrix.features_first:
                product[:, span] = wide_rows @ wide.T
                largest[span] = np.maximum(block.max(axis=1), -block.min(axis=1))
                first, last = np.searchsorted(outputs, (span.start, span.stop))
                parts.append(block[outputs[first:last] - span.start])
            else:
                product += wide_rows[:, span] @ wide
                np.maximum(largest, np.maximum(block.max(axis=0), -block.min(axis=0)), out=largest)
                parts.append(block[:, outputs])
        columns = np.concatenate(parts)
        return cls(np.ascontiguousarray(columns.T) if matrix.features_first else columns, swapped.reshape(n_inputs, -1), product, largest)


def in_memory(values: np.ndarray) -> Matrix:
    """A matrix of values [n_inputs, n_outputs]."""
    return Matrix(lambda: (values[at : at + ROWS_AT_ONCE] for at in range(0, len(values), ROWS_AT_ONCE)), features_first=False)


def transposed(matrix: Matrix) -> Matrix:
    return Matrix(matrix.blocks, features_first=not matrix.features_first)


def reshaped(matrix: Matrix, n_inputs: int, n_outputs: int) -> Matrix:
    """The matrix that is read where its buffer is taken as one with its axes swapped."""
    n_columns = n_outputs if matrix.features_first else n_inputs
    return Matrix(lambda: reshape_rows(matrix.blocks, n_columns), features_first=not matrix.features_first)


def reshape_rows(blocks: Callable[[], Iterator[np.ndarray]], n_columns: int) -> Iterator[np.ndarray]:
    """The same numbers in the same order, in rows of another length."""
    rest = np.empty(0, np.float32)
    for block in blocks():
        flat = np.concatenate([rest, block.reshape(-1)])
        end = len(flat) - len(flat) % n_columns
        if end:
            yield flat[:end].reshape(-1, n_columns)
        rest = flat[end:]
