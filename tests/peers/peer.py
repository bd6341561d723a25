# SPDX-License-Identifier: MIT OR Apache-2.0
"""The peers' side, run by a Python that has them: it imports nothing of oracle and nothing of the tests.

Each line of standard input is the path of a JSON list of tasks; "done" follows on standard output. A task that writes has arrays in
an .npz and is saved by the peer that has such files; one that reads is loaded by the peer's own loader out of a Hub cache, and gets the
residuals that our reference holds. What it answers is an .npz beside that reference: `acts` [n_cases, n_features] and `outs`
[n_cases, n_targets, d_out]. Two calls need a stand-in without a network: whether a repo is gated, and a file's header over HTTP.
"""

from __future__ import annotations

import json
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import sae_lens
import torch
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.utils import hf_utils
from dictionary_learning.dictionary import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class
from safetensors import safe_open
from sparsify import SparseCoder, SparseCoderConfig

Task = dict[str, Any]
# Residuals of one layer in, activations and outputs, with an axis for targets, out.
Coder = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]

DICTIONARIES = {
    kind.__name__: kind
    for kind in (AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE, GatedAutoEncoder, JumpReluAutoEncoder)
}


def local_shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
    with safe_open(huggingface_hub.hf_hub_download(repo_id, filename), framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


loaders.get_safetensors_tensor_shapes = local_shapes
hf_utils.hf_api = types.SimpleNamespace(repo_info=lambda **_: types.SimpleNamespace(gated=False))


# --- writing ----------------------------------------------------------------------------------------------------------


def write(task: Task) -> None:
    folder, dtype, more = Path(task["folder"]), getattr(torch, task["dtype"]), task["more"]
    folder.mkdir(parents=True)
    with np.load(task["arrays"]) as arrays:
        state = {name: torch.from_numpy(arrays[name]).to(dtype) for name in arrays.files}
    if task["by"] == "torch":
        transposed = {name: state[name].T.contiguous().T for name in more.get("transposed", ())}
        torch.save({**state, **transposed}, folder / more["name"])
    elif task["by"] == "dictionary_learning":
        write_dictionary(state, folder, dtype, more)
    elif task["by"] == "sae_lens":
        kind, config = get_sae_class(more["architecture"])
        sae = kind(config.from_dict({**more, "dtype": task["dtype"]}))
        sae.load_state_dict(state)
        sae.save_model(folder)
    elif task["by"] == "sparsify":
        coder = SparseCoder(more.pop("d_in"), SparseCoderConfig.from_dict(more), dtype=dtype)
        coder.load_state_dict(state)
        coder.save_to_disk(folder)
    else:
        raise ValueError(task["by"])


def write_dictionary(state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype, more: Task) -> None:
    """The state of the class itself, with its own k and sizes of groups; all its other tensors are ours."""
    n, d_in = more["n_features"], more["d_in"]
    kind, k = more["class"], more.get("k")
    arguments = {"AutoEncoderTopK": [k], "BatchTopKSAE": [k], "MatryoshkaBatchTopKSAE": [k, [n // 4, n - n // 4]]}.get(kind, [])
    module = DICTIONARIES[kind](d_in, n, *arguments).to(dtype)
    ours = {name: value for name, value in state.items() if name in module.state_dict()}
    module.load_state_dict({**module.state_dict(), **ours})
    torch.save(module.state_dict(), folder / "ae.pt")


# --- reading ----------------------------------------------------------------------------------------------------------


def saelens(load: Task) -> Coder:
    """As SAE.from_pretrained does it for a repo that is not in its directory, with the loader of its kind."""

    def loader(**options: Any) -> Any:
        options["cfg_overrides"].update(load.get("overrides", {}))
        return loaders.NAMED_PRETRAINED_SAE_LOADERS[load["loader"]](**options)

    if load["loader"] == "qwen_scope":
        loaders.QWEN_SCOPE_MODEL_INFO["Small-Base"] = ("Small-Base", load["d_in"])
    sae = sae_lens.SAE.from_pretrained(load["repo"], load["folder"], dtype="float32", converter=loader)
    if load.get("scale"):
        sae.fold_activation_norm_scaling_factor(load["scale"])

    def coder(x: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        heads = x.reshape(len(x), load["heads"], -1) if load.get("heads") else x
        return sae.encode(heads), sae(heads).reshape(len(x), 1, -1)

    return coder


def circuit_tracer(load: Task) -> Coder:
    whole, config = hf_utils.load_transcoder_from_hub(load["ref"], dtype=torch.float32, lazy_decoder=False, use_cache=False)
    whole = whole.float()  # its loader leaves the affine part as it is in the file

    def coder(x: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(whole, CrossLayerTranscoder):
            acts = whole.encode_layer(x, layer)
            if not acts.any():  # of which its decode makes an exception
                return acts, torch.full((len(x), whole.n_layers - layer, whole.d_model), torch.nan)
            features = torch.zeros(whole.n_layers, *acts.shape)
            features[layer] = acts
            inputs = torch.zeros(whole.n_layers, *x.shape)
            inputs[layer] = x
            outs = whole.decode(features, inputs).transpose(0, 1)[:, layer:]
            # One for each target, of all its sources: ours counts it where the source is the target.
            outs[:, 1:] -= whole.b_dec[layer + 1 :]
            return acts, outs
        transcoder = whole[layer]
        if config.get("activation") == "topk":  # 0.5.0 has the function, and leaves it to its user to set it
            transcoder.activation_function = TopK(config["k"])
        acts = transcoder.encode(x)
        return acts, transcoder.decode(acts, x)[:, None]

    return coder


def dictionary_learning(load: Task) -> Coder:
    path = huggingface_hub.hf_hub_download(load["repo"], f"{load['folder']}/ae.pt")
    more = {"normalize_decoder": load.get("normalize_decoder", False)} if load["class"] == "AutoEncoder" else {}
    dictionary = DICTIONARIES[load["class"]].from_pretrained(path, **more)

    def coder(x: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        acts = dictionary.encode(x)
        return acts, dictionary.decode(acts)[:, None]

    return coder


def sparsify(load: Task) -> Coder:
    sparse_coder = SparseCoder.load_from_hub(load["repo"], load["folder"]).float()

    def coder(x: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        top = sparse_coder.encode(x)
        acts = torch.zeros(len(x), sparse_coder.num_latents).scatter_(-1, top.top_indices, top.top_acts)
        return acts, sparse_coder(x).sae_out[:, None]

    return coder


PEERS: dict[str, Callable[[Task], Coder]] = {
    "SAELens": saelens, "circuit-tracer": circuit_tracer, "dictionary_learning": dictionary_learning, "sparsify": sparsify,
}  # fmt: skip


@torch.no_grad()
def read(task: Task) -> None:
    huggingface_hub.constants.HF_HUB_CACHE = task["cache"]
    coder = PEERS[task["peer"]](task["load"])
    cases = json.loads(Path(task["reference"]).read_text())["test_cases"]
    acts, outs = [], []
    for case in cases:
        encoded, decoded = coder(torch.tensor([case["residual"]], dtype=torch.float32), case["layer"])
        acts.append(encoded[0].double().numpy())
        outs.append(decoded[0].double().numpy())
    # Layers of a cross-layer transcoder have different numbers of targets.
    np.savez(task["answers"], acts=np.stack(acts), **{f"out_{i}": out for i, out in enumerate(outs)})


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        for task in json.loads(Path(line.strip()).read_text()):
            try:
                write(task) if "by" in task else read(task)
            except Exception:
                Path(task["error"]).write_text(traceback.format_exc())
        print("done", flush=True)


if __name__ == "__main__":
    main()
