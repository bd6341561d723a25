# SPDX-License-Identifier: MIT OR Apache-2.0
"""The layers under examination: their cases, and the weight files beside their own that a port may have taken."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

import vendored_hf
from oracle.diagnosis.mistakes import Mistake
from oracle.diagnosis.port import LAYER_ABOVE, LAYER_BELOW, OWN
from oracle.errors import WeightsError
from oracle.references.document import Case
from oracle.references.plan import LayerFiles
from oracle.references.recorded import RecordedLayer, RecordedWeights
from oracle.weights.formats import ENCODER, SIDE, Format
from oracle.weights.layer import LayerWeights, OpenFile
from oracle.weights.sidefiles import Context

MOST_VARIANTS = 3  # of other L0

OTHER_L0 = {
    name: Mistake(name, "w_enc", f"the weights are of another L0 variant, number {number} of those in the cache", name)
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


@dataclass(frozen=True)
class ExaminedCase:
    """A case of the reference, the candidate's answer, the right residual float32 [d_model], and whether they differ."""

    case: Case
    answer: Case
    residual: np.ndarray
    is_wrong: bool


@dataclass
class ExaminedLayer:
    """A layer with the cases that are looked at; `shape` is the reference's [d_model, n_features].

    `neighbours` are by what Port calls them; None: there is no such layer.
    """

    own: RecordedLayer
    shape: tuple[int, int]
    cases: list[ExaminedCase]
    neighbours: dict[str, Neighbour | None] = field(default_factory=dict)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[LayerWeights]:
        """The weights of a neighbour, or the layer's own. Raises WeightsError, also where they are of another shape."""
        neighbour = self.neighbours.get(name)
        with neighbour.opened() if neighbour else self.own.opened() as weights:
            shape = weights.d_model, weights.n_features
            if shape != self.shape:
                raise WeightsError(
                    f"{weights.label}: [d_model, n_features] is {list(shape)}, by the reference it must be {list(self.shape)}"
                )
            yield weights

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
        for role in (self._role, SIDE):
            file = files.files.get(role)
            if file and file.repo == own.repo:
                file = replace(file, revision=file.revision or own.revision)
            if file:
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
