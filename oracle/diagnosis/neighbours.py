# SPDX-License-Identifier: MIT OR Apache-2.0
"""The weight files beside a layer's own that a port may have taken: the layers below and above, and other L0."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import vendored_hf
from oracle.diagnosis.mistakes import WEIGHTS, Mistake
from oracle.job import Events, Job
from oracle.references import generate as reference
from oracle.references import plan
from oracle.references.document import Document
from oracle.references.generate import RecordedLayer
from oracle.sources.curation import HubFile

MOST_VARIANTS = 3  # of other L0


@dataclass(frozen=True)
class Other:
    """A weight file that `mistake` takes; a path of None: there is no such layer."""

    mistake: Mistake
    path: str | None
    layer: int
    label: str


@dataclass
class Neighbours:
    """The layers that are known beside those of a reference, and what could not be had of them."""

    files: dict[int, HubFile]
    complete: bool
    job: Job
    events: Events
    not_tried: list[str]

    @classmethod
    def of(cls, recorded: Document, job: Job, events: Events, not_tried: list[str], *, by_curation: bool, fetch: bool) -> Neighbours:
        """Without `fetch` only what the cache, or a mirror's folder, holds. Files that are not there go to `not_tried`."""
        job = replace(job, offline=not fetch or job.offline)
        files, complete = reference.known_files(recorded, job, events, by_curation=by_curation)
        return cls(files, complete, job, events, not_tried)

    def beside(self, layer: RecordedLayer, rows: list[tuple[Mistake, int]], *, of_decoder: bool = False) -> list[Other]:
        """The files of `rows`: (mistake, by how much its layer is another)."""
        found = []
        for mistake, by in rows:
            number = layer.layer + by
            if number < 0 or (self.complete or number > max(self.files, default=0)) and number not in self.files:
                found.append(Other(mistake, None, number, ""))
            if number >= 0 and (number in self.files or not self.complete):
                try:
                    path = self._fetch(layer, number, of_decoder)
                except (OSError, KeyError, vendored_hf.EntryNotFoundError):
                    self.not_tried.append(f"layer {number}")
                else:
                    found.append(Other(mistake, path, number, f"layer {number}"))
        return found

    def _fetch(self, layer: RecordedLayer, number: int, of_decoder: bool) -> str:
        file = self.files[number]
        own = layer.weights.file if file.repo == layer.weights.file.repo else file
        file = replace(file, revision=file.revision or own.revision)
        if of_decoder:
            file = plan.decoder_file(layer.schema, number, file) or file
        return reference.fetch_weights(self.job, self.events, file)


def other_l0(layer: RecordedLayer) -> list[Other]:
    """Files in the cache that differ from the layer's own in the L0 of their folder's name."""
    folder, name = Path(layer.weights.path).parent, Path(layer.weights.path).name
    l0 = re.fullmatch(r"(.*l0_)\w+", folder.name)
    there = sorted(folder.parent.glob(f"*/{name}")) if l0 else []
    siblings = [file for file in there if l0 and file.parent != folder and file.parent.name.startswith(l0[1])]
    return [
        Other(_other_l0(number), str(sibling), layer.layer, f"{sibling.parent.name}/{name}")
        for number, sibling in enumerate(siblings[:MOST_VARIANTS])
    ]


def _other_l0(number: int) -> Mistake:
    return Mistake(
        f"other L0 ({number + 1})",
        WEIGHTS,
        f"the weights are of another L0 variant, number {number + 1} of those in the cache",
        number,
    )
