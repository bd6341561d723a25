# SPDX-License-Identifier: MIT OR Apache-2.0
"""What peers showed of SAELens's and dictionary_learning's files, against plain float64, without the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle import Job, Origin, generate
from oracle.errors import WeightsError
from tests.peers.files import D_MODEL, D_OUT, N_FEATURES, lay_out, only, weights
from tests.support.process import run
from tests.support.worlds import from_safetensors, to_safetensors

FOLDER, REPO = "blocks.2.hook_mlp_in", "org/some-saes"
STANDARD = ("W_enc", "b_enc", "W_dec", "b_dec")


def reference(tmp_path: Path, arrays: dict[str, np.ndarray], config: dict[str, Any], **origin: Any) -> dict[str, Any]:
    files = {f"{FOLDER}/sae_weights.safetensors": to_safetensors(arrays), f"{FOLDER}/cfg.json": json.dumps(config).encode()}
    lay_out(tmp_path, {REPO: files})
    [document] = generate([Job(Origin(REPO, (FOLDER,), cache_dir=str(tmp_path), offline=True, **origin), "all", decode=True)])
    return document


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_skip_connection_to_another_width(tmp_path: Path, scale: float) -> None:
    """W_skip maps the residual as it is to the output as it is: what brings a scaled input's output back is not for it."""
    ours = weights("skip", d_out=D_OUT)
    kind = "none" if scale == 1.0 else "expected_average_only_in"
    config = {"architecture": "skip_transcoder", "normalize_activations": kind, "apply_b_dec_to_input": False, "sae_lens_version": "6.0.0"}
    document = reference(tmp_path, only(ours, *STANDARD, "W_skip"), config, input_scale=None if scale == 1.0 else scale)
    assert document["decoder_formula"] == ("acts @ W_dec + b_dec" if scale == 1.0 else "(acts @ W_dec + b_dec) * 0.588235294") + " + W_skip @ residual"
    for case in document["test_cases"]:
        residual = np.array(case["residual"])
        acts = np.maximum((residual * scale).astype(np.float32).astype(np.float64) @ ours["W_enc"].astype(np.float64) + ours["b_enc"], 0)
        out = (acts @ ours["W_dec"] + ours["b_dec"]) / scale + ours["W_skip"].astype(np.float64) @ residual
        reconstruction, = case["reconstructions"]
        assert reconstruction["first_10"] == pytest.approx(out[:10], rel=1e-6, abs=1e-6)
        assert reconstruction["norm"] == pytest.approx(np.linalg.norm(out), rel=1e-6)


def test_a_scaling_factor(tmp_path: Path) -> None:
    """Of ones it changes nothing, whatever cfg.json says of it; another is not read."""
    ours = only(weights("scaling"), *STANDARD)
    document = reference(tmp_path / "without", ours, {"d_in": D_MODEL, "d_sae": N_FEATURES})
    ones = ours | {"scaling_factor": np.ones(N_FEATURES, np.float32)}
    for finetuning in (False, True):
        again = reference(tmp_path / str(finetuning), ones, {"finetuning_scaling_factor": finetuning})
        assert again["test_cases"] == document["test_cases"]
    with pytest.raises(WeightsError, match="its scaling_factor is not 1"):
        reference(tmp_path / "other", ours | {"scaling_factor": ones["scaling_factor"] * 2}, {"finetuning_scaling_factor": True})


@pytest.mark.parametrize("kind", ["unit_rms", "layer_norm"])
def test_a_normaliser_that_only_the_directory_names(tmp_path: Path, kind: str) -> None:
    """SAELens's directory overrides cfg.json for three repos: an option says it, and the reference has it on record."""
    assert run("demo", "--schema", "SaeLens", "--folder", str(tmp_path), "--quiet").returncode == 0
    origin = ("--offline", "--cache-dir", str(tmp_path / "hub"))
    options = ("--repo", "oracle-demo/synthetic-SaeLens", "--path", "blocks.3.hook_resid_post", *origin)
    output = tmp_path / "normalised.json"
    assert run(*options, "--normalize", kind, "--decode", "-o", str(output)).returncode == 0
    reference = json.loads(output.read_text())
    assert reference["encoder_input"]["kind"] == kind and reference["encoder_input"]["then"] == "minus_b_dec"
    for case in reference["test_cases"]:
        values = np.array(case["residual"])
        x = values * 8 / np.linalg.norm(values) if kind == "unit_rms" else (values - values.mean()) / (values.std(ddof=1) + 1e-5)
        file = next((tmp_path / "hub").glob("*/snapshots/*/blocks.3.hook_resid_post/sae_weights.safetensors"))
        arrays = {name: array.astype(np.float64) for name, array in from_safetensors(file.read_bytes()).items()}
        pre = np.maximum((x - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"], 0)
        assert [top["index"] for top in case["top_10"]] == np.argsort(-pre)[:10].tolist()
        assert [top["activation"] for top in case["top_10"]] == pytest.approx(np.sort(pre)[::-1][:10], abs=1e-6)
    assert run("verify", str(output), *origin).returncode == 0


@pytest.mark.parametrize(("option", "value"), [("--input-scale", "2"), ("--normalize", "unit_rms"), ("--k", "7")])
def test_an_option_without_a_part_in_the_numbers_is_refused(tmp_path: Path, option: str, value: str) -> None:
    assert run("demo", "--schema", "Goodfire", "--folder", str(tmp_path), "--quiet").returncode == 0
    path = next((tmp_path / "hub").glob("*/snapshots/*/*-l3.pth")).name
    ran = run("--repo", "oracle-demo/synthetic-Goodfire", "--path", path, option, value, "--offline", "--cache-dir", str(tmp_path / "hub"), "-o", "-")
    assert ran.returncode == 4 and not ran.stdout, ran.stderr
    assert "has no part in what is computed" in ran.stderr or "k is given" in ran.stderr
