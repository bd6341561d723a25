# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files between torch and oracle, both ways: torch's own read as torch reads them, and what the tests write read by torch."""

from __future__ import annotations

import json
import os
import subprocess
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from oracle.weights.tensors import WeightsError
from tests.support.bad_torchfiles import GOOD
from tests.support.torchfiles import Parameter, Slice, torch_file
from tests.weights.test_torchzip import opened, read_everything, read_tensor, right_of, same_bits

PEERS_PYTHON = os.environ.get("ORACLE_PEERS_PYTHON")  # read here: no test sees the variables of whoever runs it

SAVED_BY_TORCH = """
import collections, json, sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.manual_seed(0)
folder = sys.argv[1]
base = torch.randn(40, 30)
module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
module.register_buffer("k", torch.tensor(32, dtype=torch.int))
module[0].weight = torch.nn.Parameter(torch.randn(5, 7).T)
files = {
    "plain": {name: base.to(dtype) for name, dtype in
              dict(f64=torch.float64, f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16).items()},
    "state_dict": module.state_dict(),
    "views": {"t": base.T, "rows": base[10:20], "b": base[3], "one": base[4, 5], "column": base[:1].T, "three": base.reshape(4, 10, 30)},
    "numbers": {"k": torch.tensor(-(2**62)), "n": torch.tensor([7], dtype=torch.int16), "on": torch.tensor(True), "threshold": torch.tensor(0.1, dtype=torch.float64),
                "W": torch.nn.Parameter(base.bfloat16()), "step": 70_000, "lr": 5e-5, "cfg": {"a": [1, None, True, "x"], "b": (-1, 2**70)}},
    "many": collections.OrderedDict((f"layer.{n}", torch.full((n + 1,), float(n))) for n in range(300)),
}
values = {}
for name, document in files.items():
    torch.save(document, f"{folder}/{name}.pt")
    values[name] = {key: [list(value.shape), value.detach().reshape(-1).float().tolist() if value.is_floating_point() else int(value)]
                    if isinstance(value, torch.Tensor) else value for key, value in document.items()}
torch.save(files["plain"], f"{folder}/old.pt", _use_new_zipfile_serialization=False)
torch.save(base, f"{folder}/alone.pt")
torch.save({"W": base[:, ::2]}, f"{folder}/strided.pt")
torch.save({"W": base.to_sparse()}, f"{folder}/sparse.pt")
torch.save({"W": torch.randn(3, dtype=torch.complex64)}, f"{folder}/complex.pt")
torch.save(module, f"{folder}/module.pt")
ours = torch.load(f"{folder}/ours.pt", weights_only=True)
values["ours"] = {key: value.float().tolist() if isinstance(value, torch.Tensor) else value for key, value in ours.items()}
json.dump(values, open(f"{folder}/values.json", "w"))
"""
REFUSED = {
    "old": "the format that torch had before 1.6", "alone": "holds a tensor, where a dict", "strided": "neither in order nor those of a transpose",
    "sparse": "which is no part of a dict of tensors", "complex": "names 'torch.ComplexFloatStorage'", "module": "which is no part of a dict of tensors",
}  # fmt: skip


@pytest.mark.skipif(PEERS_PYTHON is None, reason="ORACLE_PEERS_PYTHON names no Python that has torch")
def test_reads_what_torch_wrote_and_writes_what_torch_reads(tmp_path: Path) -> None:
    ours = {"W": GOOD["W"].T, "b": Slice(GOOD["b"], 2, 3), "p": Parameter(GOOD["W"]), "h": GOOD["W"].astype(ml_dtypes.bfloat16), "k": np.array(5), "x": [1, 2.5, "y"]}
    (tmp_path / "ours.pt").write_bytes(torch_file(OrderedDict(ours)))
    ran = subprocess.run([str(PEERS_PYTHON), "-c", SAVED_BY_TORCH, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    values = json.loads((tmp_path / "values.json").read_text())
    loaded = values.pop("ours")
    assert loaded == {name: value if (right := right_of(value)) is None else right.astype(np.float64).tolist() for name, value in ours.items()}
    for name, document in values.items():
        file = opened((tmp_path / f"{name}.pt").read_bytes())
        plain = json.loads(json.dumps(file.values))
        assert {*file.names, *plain} == document.keys() and plain == {key: document[key] for key in plain}
        for key in file.names:
            shape, right = document[key]
            if isinstance(right, int):
                assert file.integer(file.tensor(key)) == right
            else:
                assert same_bits(read_tensor(file, key), np.array(right, np.float32).reshape(shape)), (name, key)
    transposed = {key for key in ("t", "column") if opened((tmp_path / "views.pt").read_bytes()).tensor(key).transposed}
    assert transposed == {"t"} and opened((tmp_path / "state_dict.pt").read_bytes()).tensor("0.weight").transposed
    for name, message in REFUSED.items():
        with pytest.raises(WeightsError) as error:
            read_everything((tmp_path / f"{name}.pt").read_bytes())
        assert message in str(error.value)
