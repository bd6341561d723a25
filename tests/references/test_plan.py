# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which files of a repo are read, and as what: found out where it can be, and asked for where it cannot."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from oracle.weights import formats
from tests.support import real_client, worlds
from tests.support.encodings import check, comparable, error, parsed
from tests.support.files import file_server
from tests.support.hub import Fault, Hub
from tests.support.process import run

REPO = worlds.OWN_REPO
WEIGHTS = ["W_enc", "W_dec", "b_enc", "b_dec"]


def bundle(seed: int = 0, **more: Any) -> dict[str, bytes]:
    files = dict(worlds.make("PltBundle", seed=seed, **more).files[REPO])
    del files["config.yaml"]
    return files


def generate(hub: Hub, files: dict[str, bytes], *options: str, repo: str = REPO) -> subprocess.CompletedProcess[str]:
    for path, content in files.items():
        hub.add(repo, path, content)
    return run("--mirror", hub.url, "--repo", repo, "-o", "-", "--quiet", *options)


def test_a_repo_of_two_kinds(hub: Hub) -> None:
    clt = worlds.make("CltSplit")
    both = {**bundle(), **clt.files[REPO]}
    del both["config.yaml"]
    said = error(generate(hub, both))
    assert "more than one way" in said and "PltBundle in the root/: 3 layers" in said and "CltSplit in the root/: 3 layers" in said
    assert "--schema" in said
    check(parsed(generate(hub, {}, "--schema", "CltSplit")), clt, [0, 1, 2])
    check(parsed(generate(hub, {}, "--schema", "PltBundle")), worlds.make("PltBundle"), [0, 1, 2])
    # What the config.yaml calls it settles it too.
    assert parsed(generate(hub, {"config.yaml": b"model_kind: cross_layer_transcoder\n"}))["schema"] == "CltSplitJumpReLU"


def test_folders(hub: Hub) -> None:
    one = {f"plts/small/{path}": content for path, content in bundle().items()}
    made = parsed(generate(hub, one))
    check(made, worlds.make("PltBundle"), [0, 1, 2])
    assert [layer["path"] for layer in made["layers"]] == [f"plts/small/layer_{layer}.safetensors" for layer in range(3)]
    said = error(generate(hub, {f"other/{path}": content for path, content in bundle(1, n_layers=4).items()}))
    assert "PltBundle in other/: 4 layers; PltBundle in plts/small/: 3 layers" in said and "--path FOLDER" in said
    for folder in ("other", "other/"):
        check(parsed(generate(hub, {}, "--path", folder)), worlds.make("PltBundle", seed=1, n_layers=4), [0, 1, 3])
    for nowhere in ("nowhere", ".", "plts"):
        said = error(generate(hub, {}, "--path", nowhere))
        assert f"--path {nowhere}: " in said and "has no such weight files there, but in other/, plts/small/" in said
    for other in ("./other", "other//", "plts/../other"):
        assert parsed(generate(hub, {}, "--path", other))["layers"][0]["path"] == "other/layer_0.safetensors"
    assert "not both" in error(generate(hub, {}, "--path", "other", "--path", "other/layer_0.safetensors"), 2)
    assert "--path ../layer_1.safetensors: " in error(generate(hub, {}, "--path", "../layer_1.safetensors"))


def test_one_file_of_a_folder_by_its_path(hub: Hub) -> None:
    files = {f"deep/{path}": content for path, content in bundle().items()}
    made = parsed(generate(hub, files, "--path", "deep/layer_1.safetensors"))
    check(made, worlds.make("PltBundle"), [1])


def test_kinds_and_files_that_are_unknown(hub: Hub) -> None:
    said = error(generate(hub, {**bundle(), "config.yaml": b"model_kind: crosscoder\n"}))
    assert "model_kind crosscoder" in said and "layer_0.safetensors" in said
    said = error(generate(hub, {"model.safetensors": b"x", "README.md": b"x"}, repo="org/something-else"))
    assert "no config.yaml" in said and "layer_{layer}.safetensors or W_enc_{layer}.safetensors" in said and "it has README.md, model.safetensors" in said
    said = error(generate(hub, {}, "--schema", "Transcoder"), 2)
    assert f"there is no schema 'Transcoder'; there are {', '.join(formats.schemas())}" in said
    assert "layer 9" in error(generate(hub, {"config.yaml": b"model_kind: transcoder_set\n"}, "--layers", "0,9"), 2)


def list_of(*entries: str) -> bytes:
    return ("model_kind: transcoder_set\ntranscoders:\n" + "".join(f"  - hf://{entry}\n" for entry in entries)).encode()


def test_lists_are_told_apart_by_what_is_in_the_files(hub: Hub) -> None:
    for schema, expected in (("PltBundle", bundle()), ("GemmaScope2", worlds.make("GemmaScope2").files[REPO])):
        repo = f"org/{schema}"
        for path, content in expected.items():
            hub.add(repo, path, content)
        hub.add("org/list", "config.yaml", list_of(*(f"{repo}/{path}" for path in expected)))
        made = parsed(run("--mirror", hub.url, "--repo", "org/list", "-o", "-"))
        assert made["schema"] == schema
        check(made, worlds.make(schema), [0, 1, 2])
    hub.add("org/none", "layer_0.safetensors", worlds.to_safetensors({"weight": worlds.make("PltBundle").weights[0]["w_enc"]}))
    hub.add("org/list", "config.yaml", list_of("org/none/layer_0.safetensors"))
    said = error(run("--mirror", hub.url, "--repo", "org/list", "-o", "-", "--quiet"))
    assert "layer_0.safetensors has the tensors weight: that is none of PltBundle, GemmaScope2" in said
    hub.add("org/list", "config.yaml", list_of("org/PltBundle/layer_0.safetensors", "org/none/layer_1/params.npz"))
    mixed = "layer_0.safetensors and layer_1/params.npz: the transcoders: list of org/list names files of several formats"
    assert mixed in error(run("--mirror", hub.url, "--repo", "org/list", "-o", "-", "--quiet"))
    hub.add("org/list", "config.yaml", list_of("org/none/layer_0.pt"))
    assert "layer_0.pt: no schema" in error(run("--mirror", hub.url, "--repo", "org/list", "-o", "-", "--quiet"))


def test_lists_over_repos_and_revisions(hub: Hub) -> None:
    """Each entry's own repo, at its own revision: what a branch has become since does not matter."""
    one, other = bundle(0), bundle(1)
    first = hub.add("org/a", "a/layer_0.safetensors", one["layer_0.safetensors"])
    hub.add("org/b", "b/layer_1.safetensors", other["layer_1.safetensors"])
    hub.add("org/a", "a/layer_0.safetensors", other["layer_0.safetensors"])
    entries = [f"org/a/a/layer_0.safetensors?revision={first}", "org/b/b/layer_1.safetensors?revision=main"]
    hub.add("org/list", "config.yaml", list_of(*entries))
    made = parsed(run("--mirror", hub.url, "--repo", "org/list", "-o", "-"))
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
    made = parsed(run("--mirror", hub.url, "--repo", REPO, "-o", "-", "--revision", before))
    check(made, world, [0, 1, 2])
    assert made["weights_revision"] == before
    now = parsed(run("--mirror", hub.url, "--repo", REPO, "-o", "-"))
    check(now, worlds.make("PltBundle", seed=1, n_layers=5), [0, 2, 4])


def test_a_server_without_the_list(tmp_path: Path) -> None:
    """A file server has no API: it says nothing of layers and kinds, and somebody has to."""
    world = worlds.make("PltBundle")
    with file_server(Path(world.lay_out(tmp_path / "tree"))) as (url, _):
        said = error(run("--mirror", url, "--repo", REPO, "-o", "-", "--quiet"), 3)
        assert "does not list the repo's files" in said and "say --layers 0,1,... and --schema PltBundle" in said
        made = parsed(run("--mirror", url, "--repo", REPO, "-o", "-", "--layers", "0,2", "--schema", "PltBundle"))
        check(made, world, [0, 2])
    made = parsed(run("--mirror", str(tmp_path / "tree"), "--repo", REPO, "-o", "-"))  # a folder lists itself
    check(made, world, [0, 1, 2])


def test_a_server_that_is_busy_is_asked_again(hub: Hub) -> None:
    world = worlds.make("PltBundle")
    world.add_to(hub)
    hub.inject(Fault(host="hub", after=2, status=503))
    check(parsed(run("--mirror", hub.url, "--repo", REPO, "-o", "-")), world, [0, 1, 2])
    assert not hub.faults


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"siblings": 3}', b'{"siblings": [{"rfilename": 3}]}', b'{"siblings": [], "sha": 4}', b"[" * 100_000])
def test_lists_that_are_none(hub: Hub, body: bytes) -> None:
    for path, content in bundle().items():  # without a config.yaml the list is the first that is asked for
        hub.add(REPO, path, content)
    hub.inject(Fault(host="hub", after=1, status=200, body=body))
    ran = run("--mirror", hub.url, "--repo", REPO, "-o", "-", "--quiet", "--schema", "PltBundle")
    assert "its answer is no such list" in error(ran, 3) and not hub.faults


def test_a_list_of_another_type(hub: Hub) -> None:
    """A proxy may call JSON plain text: what it says is what counts."""
    world = worlds.make("PltBundle")
    world.add_to(hub)
    hub.alter = lambda headers: headers.update({"Content-Type": "text/plain"})
    check(parsed(run("--mirror", hub.url, "--repo", REPO, "-o", "-")), world, [0, 1, 2])


def test_a_list_that_breaks_off(hub: Hub) -> None:
    """The cache goes on without it, as where the Hub is out of reach; it is no server without a list."""
    world = worlds.make("PltBundle", n_layers=5)
    world.add_to(hub)
    command = ["--mirror", hub.url, "--repo", REPO, "-o", "-", "--quiet"]
    check(parsed(run(*command)), world, [0, 2, 4])
    hub.inject(Fault(host="hub", after=1, cut_after=20))  # behind the manifest
    check(parsed(run(*command)), world, [0, 2, 4])
    assert not hub.faults
    hub.inject(Fault(host="hub", after=1, cut_after=20))
    assert "revision/main cannot be read: " in error(generate(hub, bundle(), repo="org/no-config"), 3)


def test_the_cache_knows_what_there_is(hub: Hub, tmp_path: Path) -> None:
    """A run without the Hub reads what a run with it does, or says what it lacks: never another choice of layers."""
    world = worlds.make("CltSplit", n_layers=5)
    world.add_to(hub)
    online = parsed(run("--mirror", hub.url, *world.arguments, "-o", "-"))
    hub.seen.clear()
    for more in ((), ("--layers", "0,2,4")):
        offline = parsed(run("--offline", *world.arguments, "-o", "-", *more))
        assert comparable(offline) == comparable(online) and not hub.seen
    for more in ("all", "1"):
        assert "W_enc_1.safetensors" in error(run("--offline", *world.arguments, "-o", "-", "--layers", more, "--quiet"), 3)
    assert "it has no layer 9" in error(run("--offline", *world.arguments, "-o", "-", "--layers", "9", "--quiet"), 2)
    assert error(run("--offline", "--repo", "org/other", "-o", "-", "--quiet"), 3)
    Path(tmp_path / "reference.json").write_text(json.dumps(online))
    assert run("verify", str(tmp_path / "reference.json"), "--offline").returncode == 0


def test_a_cache_that_does_not_know_what_there_is(hub: Hub, tmp_path: Path) -> None:
    """As huggingface_hub leaves it: some files, and no list of all. What there is can be named."""
    cache = tmp_path / "cache"
    world = worlds.make("PltBundle", n_layers=5)
    world.add_to(hub)
    files = ("config.yaml", "layer_0.safetensors", "layer_1.safetensors")
    real_client.printed(hub, cache, *(f"hf_hub_download({REPO!r}, {path!r})" for path in files))
    source = ["--offline", "--cache-dir", str(cache), "--repo", REPO, "-o", "-", "--quiet"]
    for layers in ("all", "sample"):
        said = error(run(*source, "--layers", layers), 3)
        assert f"the number of layers of {REPO} is unknown offline; the layers 0, 1 can be had without the Hub: name them with --layers" in said
    check(parsed(run(*source, "--layers", "0,1")), world, [0, 1])
    # With the Hub the list is fetched, and huggingface_hub minds nothing of ours; the next run does without.
    check(parsed(run("--mirror", hub.url, *source[1:])), world, [0, 2, 4])
    check(parsed(run("--mirror", "http://127.0.0.1:1", *source[1:])), world, [0, 2, 4])
    found = huggingface_hub.scan_cache_dir(cache)
    assert not found.warnings and {repo.repo_id: repo.nb_files for repo in found.repos} == {REPO: 5}
    for bad in (b"", b"{}", b"[1]", b"[]", b"[" * 100_000):  # spoiled, it is none
        listing, = cache.rglob("listings/*.json")
        listing.write_bytes(bad)
        assert "is unknown offline" in error(run(*source), 3)


def test_a_part_of_a_mirror_knows_the_whole(hub: Hub, tmp_path: Path) -> None:
    """A mirror has some layers and the list of all: the sample is the repo's, not the mirror's."""
    world = worlds.make("PltBundle", n_layers=5)
    world.add_to(hub)
    tree = str(tmp_path / "tree")
    assert run("mirror", tree, "--mirror", hub.url, "--repo", REPO, "--layers", "0,1").returncode == 0
    with file_server(Path(tree)) as (url, _):
        for mirror in (tree, url):
            source = ["--mirror", mirror, "--repo", REPO, "-o", "-", "--quiet"]
            assert "layer_2.safetensors" in error(run(*source), 3)
            assert "layer_2.safetensors" in error(run(*source, "--layers", "all"), 3)
            check(parsed(run(*source, "--layers", "0,1")), world, [0, 1])
    assert run("mirror", tree, "--mirror", hub.url, "--repo", REPO).returncode == 0
    check(parsed(run("--mirror", tree, "--repo", REPO, "-o", "-", "--quiet")), world, [0, 2, 4])
    # A manifest of old has no list.
    manifest = json.loads((tmp_path / "tree/manifest.json").read_text())
    del manifest["listings"]
    (tmp_path / "tree/manifest.json").write_text(json.dumps(manifest))
    assert f"the number of layers of {REPO} is unknown offline" in error(run("--mirror", tree, "--repo", REPO, "-o", "-", "--quiet"), 3)
    for bad in (3, [3], [{}], [{"repo": 1, "revision": "main", "commit": None, "paths": []}]):
        (tmp_path / "tree/manifest.json").write_text(json.dumps({**manifest, "listings": bad}))
        assert "manifest.json is not a manifest" in error(run("--mirror", tree, "--repo", REPO, "-o", "-", "--quiet"))


def test_a_decoder_that_ends_too_early(hub: Hub) -> None:
    world = worlds.make("CltSplit")
    world.files[REPO]["W_dec_0.safetensors"] = worlds.to_safetensors({"W_dec_0": world.weights[0]["w_dec"][:, :1]})
    world.add_to(hub)
    for layers in ("all", "0"):
        ran = run("--mirror", hub.url, "--repo", REPO, "-o", "-", "--quiet", "--decode", "--layers", layers)
        assert "the decoder of layer 0 ends at layer 0, and the last layer is 2" in error(ran)


STRANGE = [
    ("PltBundle", "activation_function.threshold", "threshold"), ("PltBundle", "activation_function.threshold", "log_thresholds"),
    ("PltBundle", "W_skip", "W_skip_0"), ("CltSplit", "threshold_0", "log_threshold_0"), ("CltSplit", "threshold_0", "threshold_1"),
    ("GemmaScope2", "affine_skip_connection", "skip"), ("Sae", "threshold", "scaling_factor"),
]  # fmt: skip


@pytest.mark.parametrize("schema, name, other", STRANGE)
def test_tensors_that_nobody_knows(tmp_path: Path, schema: str, name: str, other: str) -> None:
    """A gate, a scale or a skip under another name is not left out in silence."""
    world = worlds.make(schema, n_layers=1, skip=True)
    path = next(path for path in world.files[REPO] if "W_dec" not in path and "config" not in path)
    content = world.files[REPO][path]
    arrays = dict(np.load(io.BytesIO(content))) if path.endswith(".npz") else worlds.from_safetensors(content)
    arrays[other] = arrays.pop(name)
    world.files[REPO][path] = worlds.to_npz(arrays) if path.endswith(".npz") else worlds.to_safetensors(arrays)
    ran = run("--mirror", world.lay_out(tmp_path / "tree"), *world.arguments, "-o", "-", "--quiet", "--schema", schema)
    said = error(ran)
    assert other in said and ("whose part in the encoding is not known" in said or "never has" in said)


@pytest.mark.parametrize("path", ["layer_0/../params.npz", "layer_0/./params.npz", "/layer_0/params.npz", "layer_0//params.npz", "layer_0/params.npz?x=1"])
def test_paths_that_lead_out(hub: Hub, path: str) -> None:
    world = worlds.make("Sae", n_layers=1)
    world.add_to(hub)
    ran = run("--mirror", hub.url, "--repo", REPO, "--path", path, "-o", "-", "--quiet")
    assert ran.returncode in (2, 4) and len(ran.stderr.splitlines()) == 1
    assert not any("params" in seen.path for seen in hub.seen)


def test_saes_by_their_paths(hub: Hub) -> None:
    world = worlds.make("Sae", n_layers=2)
    world.add_to(hub)
    paths = list(world.files[REPO])
    check(parsed(generate(hub, {}, "--path", paths[1])), world, [1])
    same = next(iter(world.files[REPO].values()))
    said = error(generate(hub, {"layer_0/other/params.npz": same}, "--path", paths[0], "--path", "layer_0/other/params.npz"), 2)
    assert "are both of layer 0" in said
    said = error(generate(hub, {"sae.npz": same, "b.npz": same}, "--schema", "Sae", "--path", "sae.npz", "--path", "b.npz"), 2)
    assert "does not say which layer it is of" in said
    made = parsed(generate(hub, {}, "--schema", "Sae", "--path", "sae.npz", "--layers", "17"))
    assert {(case["layer"], case["seed"]) for case in made["test_cases"]} == {(17, 17), (17, 117), (17, 217)}
    assert "--layers says [3]" in error(generate(hub, {}, "--path", paths[0], "--layers", "3"), 2)
