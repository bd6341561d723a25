# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which files of a repo are read, and as what: found out where it can be, and asked for where it cannot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import worlds
from conftest import oracle
from hub import Fault, Hub
from test_schemas import check, comparable, file_server, parsed

REPO = worlds.OWN_REPO
WEIGHTS = ["W_enc", "W_dec", "b_enc", "b_dec"]


def error(ran: subprocess.CompletedProcess[str], code: int = 4) -> str:
    """The one line of an error."""
    assert ran.returncode == code and len(ran.stderr.splitlines()) == 1, ran.stderr
    return ran.stderr.strip()


def bundle(seed: int = 0, **more: Any) -> dict[str, bytes]:
    files = dict(worlds.make("PltBundle", seed=seed, **more).files[REPO])
    del files["config.yaml"]
    return files


def run(hub: Hub, files: dict[str, bytes], *options: str, repo: str = REPO) -> subprocess.CompletedProcess[str]:
    for path, content in files.items():
        hub.add(repo, path, content)
    return oracle("--mirror", hub.url, "--repo", repo, "-o", "-", "--quiet", *options)


def test_a_repo_of_two_kinds(hub: Hub) -> None:
    clt = worlds.make("CltSplit")
    both = {**bundle(), **clt.files[REPO]}
    del both["config.yaml"]
    said = error(run(hub, both))
    assert "more than one way" in said and "PltBundle in the root/: 3 layers" in said and "CltSplit in the root/: 3 layers" in said
    assert "--schema" in said
    check(parsed(run(hub, {}, "--schema", "CltSplit")), clt, [0, 1, 2])
    check(parsed(run(hub, {}, "--schema", "PltBundle")), worlds.make("PltBundle"), [0, 1, 2])
    # What the config.yaml calls it settles it too.
    assert parsed(run(hub, {"config.yaml": b"model_kind: cross_layer_transcoder\n"}))["schema"] == "CltSplit"


def test_folders(hub: Hub) -> None:
    one = {f"plts/small/{path}": content for path, content in bundle().items()}
    made = parsed(run(hub, one))
    check(made, worlds.make("PltBundle"), [0, 1, 2])
    assert [layer["path"] for layer in made["layers"]] == [f"plts/small/layer_{layer}.safetensors" for layer in range(3)]
    said = error(run(hub, {f"other/{path}": content for path, content in bundle(1, n_layers=4).items()}))
    assert "PltBundle in other/: 4 layers; PltBundle in plts/small/: 3 layers" in said and "--path FOLDER" in said
    for folder in ("other", "other/"):
        check(parsed(run(hub, {}, "--path", folder)), worlds.make("PltBundle", seed=1, n_layers=4), [0, 1, 3])
    assert "has no files that are named like" in error(run(hub, {}, "--path", "nowhere"))


def test_one_file_of_a_folder_by_its_path(hub: Hub) -> None:
    files = {f"deep/{path}": content for path, content in bundle().items()}
    made = parsed(run(hub, files, "--path", "deep/layer_1.safetensors"))
    check(made, worlds.make("PltBundle"), [1])


def test_kinds_and_files_that_are_unknown(hub: Hub) -> None:
    said = error(run(hub, {**bundle(), "config.yaml": b"model_kind: crosscoder\n"}))
    assert "model_kind crosscoder" in said and "layer_0.safetensors" in said
    said = error(run(hub, {"model.safetensors": b"x", "README.md": b"x"}, repo="org/something-else"))
    assert "no config.yaml" in said and "layer_{layer}.safetensors or W_enc_{layer}.safetensors" in said and "it has README.md, model.safetensors" in said
    said = error(run(hub, {}, "--schema", "Transcoder"))
    assert "there is no schema 'Transcoder'; there are GemmaScopeNpz, PltBundle, CltSplit, GemmaScope2, Sae" in said
    assert "layer 9" in error(run(hub, {"config.yaml": b"model_kind: transcoder_set\n"}, "--layers", "0,9"), 2)


def list_of(*entries: str) -> bytes:
    return ("model_kind: transcoder_set\ntranscoders:\n" + "".join(f"  - hf://{entry}\n" for entry in entries)).encode()


def test_lists_are_told_apart_by_what_is_in_the_files(hub: Hub) -> None:
    for schema, expected in (("PltBundle", bundle()), ("GemmaScope2", worlds.make("GemmaScope2").files[REPO])):
        repo = f"org/{schema}"
        for path, content in expected.items():
            hub.add(repo, path, content)
        hub.add("org/list", "config.yaml", list_of(*(f"{repo}/{path}" for path in expected)))
        made = parsed(oracle("--mirror", hub.url, "--repo", "org/list", "-o", "-"))
        assert made["schema"] == schema
        check(made, worlds.make(schema), [0, 1, 2])
    hub.add("org/none", "layer_0.safetensors", worlds.to_safetensors({"weight": worlds.make("PltBundle").weights[0]["w_enc"]}))
    hub.add("org/list", "config.yaml", list_of("org/none/layer_0.safetensors"))
    said = error(oracle("--mirror", hub.url, "--repo", "org/list", "-o", "-", "--quiet"))
    assert "layer_0.safetensors has the tensors weight: that is none of PltBundle, GemmaScope2" in said
    hub.add("org/list", "config.yaml", list_of("org/PltBundle/layer_0.safetensors", "org/none/layer_1/params.npz"))
    mixed = "layer_0.safetensors and layer_1/params.npz: the transcoders: list of org/list names files of several formats"
    assert mixed in error(oracle("--mirror", hub.url, "--repo", "org/list", "-o", "-", "--quiet"))
    hub.add("org/list", "config.yaml", list_of("org/none/layer_0.pt"))
    assert "layer_0.pt: no schema" in error(oracle("--mirror", hub.url, "--repo", "org/list", "-o", "-", "--quiet"))


def test_lists_over_repos_and_revisions(hub: Hub) -> None:
    """Each entry's own repo, at its own revision: what a branch has become since does not matter."""
    one, other = bundle(0), bundle(1)
    first = hub.add("org/a", "a/layer_0.safetensors", one["layer_0.safetensors"])
    hub.add("org/b", "b/layer_1.safetensors", other["layer_1.safetensors"])
    hub.add("org/a", "a/layer_0.safetensors", other["layer_0.safetensors"])
    entries = [f"org/a/a/layer_0.safetensors?revision={first}", "org/b/b/layer_1.safetensors?revision=main"]
    hub.add("org/list", "config.yaml", list_of(*entries))
    made = parsed(oracle("--mirror", hub.url, "--repo", "org/list", "-o", "-"))
    check({**made, "test_cases": made["test_cases"][:3]}, worlds.make("PltBundle"), [0])
    check({**made, "test_cases": made["test_cases"][3:]}, worlds.make("PltBundle", seed=1), [1])
    assert (made["plt_repo"], made["weights_revision"]) == ("org/a", first)
    assert (made["layers"][1]["repo"], made["layers"][1]["revision"]) == ("org/b", hub.repos["org/b"].refs["main"])


def test_a_repo_that_has_moved_on(hub: Hub) -> None:
    """--revision reads config.yaml, list and files of one commit."""
    world = worlds.make("PltBundle")
    world.add_to(hub)
    before = hub.repos[REPO].refs["main"]
    worlds.make("PltBundle", seed=1, n_layers=5).add_to(hub)
    made = parsed(oracle("--mirror", hub.url, "--repo", REPO, "-o", "-", "--revision", before))
    check(made, world, [0, 1, 2])
    assert made["weights_revision"] == before
    now = parsed(oracle("--mirror", hub.url, "--repo", REPO, "-o", "-"))
    check(now, worlds.make("PltBundle", seed=1, n_layers=5), [0, 2, 4])


def test_a_server_without_the_list(tmp_path: Path) -> None:
    """A file server has no API: it says nothing of layers and kinds, and somebody has to."""
    world = worlds.make("PltBundle")
    with file_server(Path(world.lay_out(tmp_path / "tree"))) as (url, _):
        said = error(oracle("--mirror", url, "--repo", REPO, "-o", "-", "--quiet"), 3)
        assert "does not list the repo's files" in said and "say --layers 0,1,... and --schema PltBundle" in said
        made = parsed(oracle("--mirror", url, "--repo", REPO, "-o", "-", "--layers", "0,2", "--schema", "PltBundle"))
        check(made, world, [0, 2])
    made = parsed(oracle("--mirror", str(tmp_path / "tree"), "--repo", REPO, "-o", "-"))  # a folder lists itself
    check(made, world, [0, 1, 2])


def test_a_server_that_is_busy_is_asked_again(hub: Hub) -> None:
    world = worlds.make("PltBundle")
    world.add_to(hub)
    hub.inject(Fault(host="hub", after=2, status=503))
    check(parsed(oracle("--mirror", hub.url, "--repo", REPO, "-o", "-")), world, [0, 1, 2])
    assert not hub.faults


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"siblings": 3}', b'{"siblings": [{"rfilename": 3}]}', b'{"siblings": [], "sha": 4}', b"[" * 100_000])
def test_lists_that_are_none(hub: Hub, body: bytes) -> None:
    for path, content in bundle().items():  # without a config.yaml the list is the first that is asked for
        hub.add(REPO, path, content)
    hub.inject(Fault(host="hub", after=1, status=200, body=body))
    ran = oracle("--mirror", hub.url, "--repo", REPO, "-o", "-", "--quiet", "--schema", "PltBundle")
    assert "its answer is no such list" in error(ran, 3) and not hub.faults


def test_the_cache_lists_what_it_has(hub: Hub, tmp_path: Path) -> None:
    world = worlds.make("CltSplit", n_layers=5)
    world.add_to(hub)
    online = parsed(oracle("--mirror", hub.url, *world.arguments, "-o", "-", "--layers", "0,2,4"))
    hub.seen.clear()
    offline = parsed(oracle("--offline", *world.arguments, "-o", "-", "--layers", "0,2,4"))
    assert comparable(offline) == comparable(online) and not hub.seen
    said = error(oracle("--offline", *world.arguments, "-o", "-", "--layers", "1", "--quiet"), 2)
    assert "lists the layers 0, 2, 4; it has no layer 1" in said
    assert error(oracle("--offline", "--repo", "org/other", "-o", "-", "--quiet"), 3)
    Path(tmp_path / "reference.json").write_text(json.dumps(online))
    assert oracle("verify", str(tmp_path / "reference.json"), "--offline").returncode == 0


@pytest.mark.parametrize("path", ["layer_0/../params.npz", "/layer_0/params.npz", "layer_0//params.npz", "layer_0/params.npz?x=1"])
def test_paths_that_lead_out(hub: Hub, path: str) -> None:
    world = worlds.make("Sae", n_layers=1)
    world.add_to(hub)
    ran = oracle("--mirror", hub.url, "--repo", REPO, "--path", path, "-o", "-", "--quiet")
    assert ran.returncode in (2, 4) and len(ran.stderr.splitlines()) == 1
    assert not any("params" in seen.path for seen in hub.seen)


def test_saes_by_their_paths(hub: Hub) -> None:
    world = worlds.make("Sae", n_layers=2)
    world.add_to(hub)
    paths = list(world.files[REPO])
    check(parsed(run(hub, {}, "--path", paths[1])), world, [1])
    same = next(iter(world.files[REPO].values()))
    said = error(run(hub, {"layer_0/other/params.npz": same}, "--path", paths[0], "--path", "layer_0/other/params.npz"), 2)
    assert "are both of layer 0" in said
    said = error(run(hub, {"sae.npz": same, "b.npz": same}, "--path", "sae.npz", "--path", "b.npz"), 2)
    assert "does not say which layer it is of" in said
    made = parsed(run(hub, {}, "--path", "sae.npz", "--layers", "17"))
    assert {(case["layer"], case["seed"]) for case in made["test_cases"]} == {(17, 17), (17, 117), (17, 217)}
    assert "--layers says [3]" in error(run(hub, {}, "--path", paths[0], "--layers", "3"), 2)
