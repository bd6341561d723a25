# SPDX-License-Identifier: MIT OR Apache-2.0
"""SAELens's directory of public SAEs and transcoders, all of it by name: our planner chooses the format that its loader kind stands for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from oracle.job import Job, Origin
from oracle.references.plan import plan
from oracle.sources import listing
from oracle.sources.curation import CurationError
from oracle.sources.source import FileEvents, Source
from oracle.vectors import demo
from tests.peers.files import lay_out
from vendored_hf import repo_folder_name

pytestmark = pytest.mark.slow

N_ENTRIES, N_TEMPORAL = 13857, 3
# The files that a loader kind reads of an entry, {} for its path: those of the weights, then those beside.
FILES = {
    "sae_lens": ("{}/sae_weights.safetensors", "{}/cfg.json"),
    "gemma_2": ("{}/params.npz",),
    "gemma_2_transcoder": ("{}/params.npz",),
    "gemma_3": ("{}/params.safetensors", "{}/config.json"),
    "dictionary_learning_1": ("{}/ae.pt", "{}/config.json"),
    "qwen_scope": ("{}",),
    "llama_scope": ("{}/checkpoints/final.safetensors", "{}/hyperparams.json"),
    "llama_scope_r1_distill": ("{}/sae_weights.safetensors", "{}/config.json"),
    "mwhanna_transcoder": ("{}", "config.yaml", "wandb-config.yaml"),
    "mntss_clt_layer_transcoder": ("W_enc_{}.safetensors", "W_dec_{}.safetensors", "config.yaml"),
    "goodfire": ("{}",),
    "deepseek_r1": ("{}",),
    "connor_rob_hook_z": ("{}", "{stem}_cfg.json"),
    "temporal": ("{}/latest_ckpt.safetensors", "{}/conf.yaml"),
}
FORMATS = {
    "sae_lens": "SaeLens", "gemma_2": "Sae", "gemma_2_transcoder": "Sae", "gemma_3": "GemmaScope2", "dictionary_learning_1": "DictionaryLearning",
    "qwen_scope": "QwenScope", "llama_scope": "LlamaScope", "llama_scope_r1_distill": "LlamaScopeR1", "mwhanna_transcoder": "PltBundle",
    "mntss_clt_layer_transcoder": "CltSplit", "goodfire": "Goodfire", "deepseek_r1": "QResearch", "connor_rob_hook_z": "HookZ",
}  # fmt: skip
CONFIGS = {"mwhanna_transcoder": b"model_kind: transcoder_set\n", "mntss_clt_layer_transcoder": b"model_kind: cross_layer_transcoder\n"}


@dataclass(frozen=True)
class Entry:
    """An entry: its kind is its release's loader, and its path is a folder or a file of the repo, or the number of a CLT's layer."""

    kind: str
    repo: str
    id: str
    path: str

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(name.format(self.path, stem=self.path.split(".pt")[0]) for name in FILES[self.kind])

    @property
    def format(self) -> str:
        """An embedding has the loader of the other SAEs, which scales it."""
        return "EmbeddingSae" if self.kind == "gemma_2" and self.path.startswith("embedding/") else FORMATS[self.kind]

    @property
    def layer(self) -> int | None:
        """What its path or, failing that, its id says."""
        for text in (f"_{self.path}" if self.path.isdigit() else self.path, self.id):
            number = re.search(r"(?:layer_?|blocks\.|W_enc_|-l|_L|(?:^|[/-])L|^_)(\d+)", text)
            if number:
                return int(number[1])
        return None

    @property
    def job(self) -> Job:
        """As one asks for it: its repo and its path, which for a CLT is the number of a layer."""
        if self.kind == "mntss_clt_layer_transcoder":
            return Job(Origin(self.repo, offline=True), layers=(int(self.path),))
        return Job(Origin(self.repo, (self.path,), offline=True), layers="all")


@pytest.fixture(scope="session")
def directory(peers_python: str) -> list[Entry]:
    """By its file: the package that it stands in is the peers', and not ours."""
    place, = (Path(peers_python).parent.parent / "lib").glob("python3*/site-packages/sae_lens/pretrained_saes.yaml")
    releases: dict[str, Any] = yaml.load(place.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [
        Entry(release.get("conversion_func") or "sae_lens", release["repo_id"], str(sae["id"]), str(sae["path"]))
        for release in releases.values() for sae in release["saes"]
    ]  # fmt: skip


def fill(cache: Path, entries: list[Entry]) -> None:
    """Each repo as its listing alone, and of its files those few that a config.yaml or a name leaves open."""
    of_repo: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        of_repo[entry.repo].append(entry)
    for repo, its in of_repo.items():
        paths = dict.fromkeys(path for entry in its for path in entry.files)
        lay_out(cache, {repo: {"README.md": b"", **({"config.yaml": CONFIGS[its[0].kind]} if its[0].kind in CONFIGS else {})}})
        listing.remember(cache / repo_folder_name(repo), listing.Listing(repo, "main", demo.COMMIT, tuple(paths)))


def test_the_whole_directory(directory: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "hub"
    fill(cache, directory)
    sources: dict[str, Source] = {}
    wrong, right, refused, layers = [], Counter[str](), 0, 0
    for entry in directory:
        source = sources.setdefault(entry.repo, Source(Origin(entry.repo, cache_dir=str(cache), offline=True), FileEvents()))
        try:
            planned = plan(entry.job, source)
        except Exception as error:
            if entry.kind == "temporal" and isinstance(error, CurationError) and "temporal" in str(error):
                refused += 1
            else:
                wrong.append(f"{entry}: {type(error).__name__}: {error}")
            continue
        (layer, files), = planned.layers.items()
        beside = {file.path for file in files.files.values()}
        if planned.format.name != entry.format or files.encoder.path != entry.files[0]:
            wrong.append(f"{entry}: {planned.format.name}, {files.encoder.path}")
        elif not beside <= set(entry.files):
            wrong.append(f"{entry}: {sorted(beside)} are no files of it")
        elif entry.layer not in (None, layer):
            wrong.append(f"{entry}: layer {layer} for {entry.layer}")
        else:
            right[entry.kind] += 1
            layers += entry.layer is not None
    with capsys.disabled():
        print(f"\nSAELens's directory: {sum(right.values()):,} of {len(directory):,} entries planned as their loader kind")
        print(f"{layers:,} of them say their layer, which is the one that is planned; {refused} temporal ones are refused by name")
        print(", ".join(f"{kind} {count:,}" for kind, count in right.most_common()))
    assert not wrong, f"{len(wrong)}: " + "\n".join(wrong[:: max(1, len(wrong) // 20)])
    assert (len(directory), refused) == (N_ENTRIES, N_TEMPORAL)
