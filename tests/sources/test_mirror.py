# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mirrors of every kind: a folder, file servers with and without Range, proxies that drop headers, and olah."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vendored_hf as hf
from oracle.job import Job, Origin
from oracle.references.generate import files_of
from oracle.sources import mirror
from oracle.sources.source import FileEvents, Source
from tests.support.encodings import comparable, parsed, read
from tests.support.files import file_server
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT
from tests.support.process import Completed, oracle, run, wait_until
from tests.support.small_scope import CURATION_REPO, WEIGHTS_REPO, config, fill, layer_arrays, npz, path_of

LAYERS = ["--layers", "0-2", "-o", "-"]


def document(ran: Completed) -> dict[str, Any]:
    return comparable(parsed(ran))


@pytest.fixture
def served(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fill(hub, d_model=64, n_features=1200)  # more than a stream reads of the tail
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def expected(served: Hub) -> dict[str, Any]:
    reference = document(run("--mirror", served.url, *LAYERS))
    shutil.rmtree(hf.hf_hub_cache())
    return reference


@pytest.fixture
def tree(served: Hub, expected: dict[str, Any], tmp_path: Path) -> Path:
    built = run("mirror", str(tmp_path / "tree"), "--mirror", served.url, "--layers", "0-2")
    assert built.returncode == 0, built.stderr
    shutil.rmtree(hf.hf_hub_cache())
    return tmp_path / "tree"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(port: int, command: list[str], folder: Path) -> Iterator[str]:
    """A server of somebody else's, once it listens; its address."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        wait_until(lambda: listens(port), process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def python_server(tree: Path) -> Iterator[str]:
    """What `python -m http.server` runs, which knows no Range."""
    with file_server(tree) as (url, _):
        yield url


@pytest.fixture
def nginx(tree: Path, tmp_path: Path) -> Iterator[str]:
    """A real nginx on the tree."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if not program:
        pytest.skip("nginx is not installed")
    port = free_port()
    place = tmp_path / "nginx"
    place.mkdir()
    user = "user root;" if os.getuid() == 0 else ""
    (place / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {place}/pid; error_log {place}/error.log; events {{}}\n"
        f"http {{ access_log {place}/access.log; types {{ application/json json; }} default_type application/octet-stream;\n"
        f" client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;\n"
        f" uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n"
        f" server {{ listen 127.0.0.1:{port}; root {tree}; }} }}\n"
    )
    with server(port, [program, "-p", str(place), "-c", str(place / "nginx.conf")], place) as url:
        yield url


@pytest.fixture
def olah(served: Hub, tmp_path: Path) -> Iterator[str]:
    """A real olah, which mirrors our Hub."""
    program = shutil.which("olah-cli") or str(ROOT / ".venv-olah/bin/olah-cli")
    if not os.path.exists(program):
        pytest.skip("olah is not installed")
    port = free_port()
    hub, cdn = served.url.removeprefix("http://"), served.cdn_url.removeprefix("http://")
    mine = f"127.0.0.1:{port}"
    command = [
        program, "--host", "127.0.0.1", "--port", str(port), "--hf-scheme", "http", "--hf-netloc", hub, "--hf-lfs-netloc", cdn,
        "--mirror-scheme", "http", "--mirror-netloc", mine, "--mirror-lfs-netloc", mine,
        "--repos-path", str(tmp_path / "repos"), "--log-path", str(tmp_path / "logs"),
    ]  # fmt: skip
    with server(port, command, tmp_path) as url:
        yield url


def test_a_folder(tree: Path, expected: dict[str, Any]) -> None:
    for address in (str(tree), tree.as_uri(), os.path.relpath(tree)):
        assert document(run("--mirror", address, *LAYERS)) == expected
        assert document(run("--mirror", address, *LAYERS, "--stream")) == expected
    assert document(run(*LAYERS, environment={"ORACLE_MIRROR": str(tree)})) == expected
    assert document(run(*LAYERS, environment={"HF_ENDPOINT": tree.as_uri()})) == expected
    # a folder needs no network
    assert document(run("--mirror", str(tree), *LAYERS, "--offline", "--stream")) == expected
    assert document(run("--mirror", str(tree), *LAYERS, environment={"HF_HUB_OFFLINE": "1"})) == expected
    assert not hf.hf_hub_cache().exists()  # its files are used where they lie


def test_a_tree_s_urls_are_the_hub_s_and_its_manifest_says_what_is_in_it(served: Hub, tree: Path) -> None:
    listed = json.loads((tree / "manifest.json").read_text())
    assert len(listed["files"]) == 4
    for file in listed["files"]:
        content = (tree / file["repo"] / "resolve" / "main" / file["path"]).read_bytes()
        stored = served.repos[file["repo"]].commits[file["commit"]][file["path"]]
        assert stored.source == content and file["size"] == len(content)
        assert file["sha256"] == stored.etag or not stored.large


@pytest.mark.parametrize("server", ["python_server", "nginx"])
def test_a_file_server(server: str, request: pytest.FixtureRequest, expected: dict[str, Any]) -> None:
    url = request.getfixturevalue(server)
    assert document(run("--mirror", url, *LAYERS)) == expected
    again = run("--mirror", url, *LAYERS)
    assert document(again) == expected and "fetched" not in again.stderr and "verify" not in again.stderr
    shutil.rmtree(hf.hf_hub_cache())
    streamed = run("--mirror", url, "--stream", *LAYERS)
    if server == "nginx":
        assert document(streamed) == comparable(expected, sha256=False)
    else:
        assert streamed.returncode == 3 and "knows no Range" in streamed.stderr and streamed.stderr.endswith("leave --stream out\n")
    assert not hf.hf_hub_cache().exists()


@pytest.mark.parametrize("server", ["python_server", "nginx"])
def test_a_file_server_without_a_manifest(
    server: str, request: pytest.FixtureRequest, tree: Path, expected: dict[str, Any]
) -> None:
    url = request.getfixturevalue(server)
    (tree / "manifest.json").unlink()
    ran = run("--mirror", url, *LAYERS)
    assert document(ran) == comparable(expected, revisions=False)  # the sha256 too: it was computed from the bytes
    assert ran.stderr.count("could not verify") == 4
    assert document(run(*LAYERS, "--offline")) == comparable(expected, revisions=False)
    # a file that changed, of the same size too: what no hash names is fetched again
    (tree / WEIGHTS_REPO / "resolve/main" / path_of(1)).write_bytes(npz(layer_arrays(55, 64, 1200)))
    changed = document(run("--mirror", url, *LAYERS))
    assert changed["layers"][1]["sha256"] != expected["layers"][1]["sha256"]
    assert changed["test_cases"][3:6] != expected["test_cases"][3:6] and changed["test_cases"][:3] == expected["test_cases"][:3]


def test_a_folder_without_a_manifest(tree: Path, expected: dict[str, Any]) -> None:
    (tree / "manifest.json").unlink()
    ran = run("--mirror", str(tree), *LAYERS)
    assert document(ran) == comparable(expected, revisions=False) and ran.stderr.count("could not verify") == 4


@pytest.mark.parametrize("server", ["python_server", "nginx", None])
def test_damage_is_found_by_the_manifest(server: str | None, request: pytest.FixtureRequest, tree: Path) -> None:
    url = request.getfixturevalue(server) if server else str(tree)
    file = tree / WEIGHTS_REPO / "resolve/main" / path_of(1)
    file.write_bytes(npz(layer_arrays(55, 64, 1200)))  # a perfectly good file, but another one
    ran = run("--mirror", url, *LAYERS)
    assert ran.returncode == 4 and "sha256" in ran.stderr and path_of(1) in ran.stderr and ran.stdout == ""
    assert hf.try_to_load_from_cache(WEIGHTS_REPO, path_of(1)) is None


def test_a_proxy_that_drops_the_commit_and_mangles_etags(expected: dict[str, Any], served: Hub) -> None:
    def mangle(headers: dict[str, str]) -> None:
        headers.pop("X-Repo-Commit", None)
        headers.pop("X-Linked-Etag", None)
        if "ETag" in headers:
            headers["ETag"] = 'W/"c0ffee-gzip"'

    served.alter = mangle
    ran = run("--mirror", served.url, *LAYERS)
    assert document(ran) == comparable(expected, revisions=False)
    assert ran.stderr.count("could not verify") == 4 and "Traceback" not in ran.stderr
    assert document(run("--mirror", served.url, *LAYERS)) == comparable(expected, revisions=False)


def test_a_proxy_that_drops_etags_alone(expected: dict[str, Any], served: Hub) -> None:
    def mangle(headers: dict[str, str]) -> None:
        for name in ("X-Linked-Etag", "ETag"):
            headers.pop(name, None)

    served.alter = mangle
    ran = run("--mirror", served.url, *LAYERS)
    assert document(ran) == expected and ran.stderr.count("could not verify") == 4


def test_olah(olah: str, expected: dict[str, Any], served: Hub) -> None:
    assert document(run("--mirror", olah, *LAYERS)) == expected
    sent = sum(s.sent for s in served.requests("cdn"))
    shutil.rmtree(hf.hf_hub_cache())
    assert document(run("--mirror", olah, "--stream", *LAYERS)) == comparable(expected, sha256=False)
    assert sum(s.sent for s in served.requests("cdn")) == sent  # it had everything by then


def test_building_is_resumed_and_checked(served: Hub, tmp_path: Path) -> None:
    arguments = ["mirror", str(tmp_path / "tree"), "--mirror", served.url]
    assert oracle(*arguments, "--layers", "0").returncode == 0
    manifest = (tmp_path / "tree/manifest.json").read_text()
    more = run(*arguments, "--layers", "0-1")
    assert more.stderr.count(" kB, there already)") == 2 and more.returncode == 0
    assert len(json.loads((tmp_path / "tree/manifest.json").read_text())["files"]) == len(json.loads(manifest)["files"]) + 1
    checked = run("mirror", str(tmp_path / "tree"), "--check")
    assert checked.returncode == 0 and checked.stderr.count("is right") == 3
    place = tmp_path / "tree" / WEIGHTS_REPO / "resolve/main"
    damaged = bytearray((place / path_of(0)).read_bytes())
    damaged[1000] ^= 1
    (place / path_of(0)).write_bytes(damaged)
    (place / path_of(1)).unlink()
    failed = run("mirror", str(tmp_path / "tree"), "--check", "--quiet")
    assert failed.returncode == 4 and "another sha256" in failed.stderr and "is missing" in failed.stderr
    assert "2 of 3 files" in failed.stderr.splitlines()[-1]
    (place / path_of(0)).unlink()
    assert run(*arguments, "--layers", "0-1").returncode == 0
    assert run("mirror", str(tmp_path / "tree"), "--check").returncode == 0


def push(hub: Hub) -> None:
    """Somebody changes every file of both repos, the list of layers too."""
    hub.add(CURATION_REPO, "config.yaml", config(2))
    for layer in range(3):
        hub.add(WEIGHTS_REPO, path_of(layer), npz(layer_arrays(90 + layer, 64, 1200)))


def test_a_mirror_grows_at_its_own_commits(served: Hub, expected: dict[str, Any], tmp_path: Path) -> None:
    destination = str(tmp_path / "tree")
    assert run("mirror", destination, "--mirror", served.url, "--layers", "0").returncode == 0
    push(served)
    more = run("mirror", destination, "--mirror", served.url, "--layers", "all")
    assert more.returncode == 0 and f"{WEIGHTS_REPO} at main stays at the mirror's commit" in more.stderr
    assert run("mirror", destination, "--check").returncode == 0
    assert document(run("--mirror", destination, *LAYERS)) == expected


def test_a_mirror_that_is_built_while_somebody_pushes(served: Hub, expected: dict[str, Any], tmp_path: Path) -> None:
    job = Job(Origin(mirror=served.url), layers="all")
    source = Source(job.origin, FileEvents())
    files, listing = files_of(job, source)

    def on_file(entry: mirror.Entry, kept: bool) -> None:
        if entry.path == path_of(0):
            push(served)

    mirror.build(tmp_path / "tree", files, listing, source.fetch, on_file)
    assert document(run("--mirror", str(tmp_path / "tree"), *LAYERS)) == expected


def test_a_mirror_of_two_commits_is_found(served: Hub, tree: Path) -> None:
    listed = json.loads((tree / "manifest.json").read_text())
    listed["files"][1]["commit"] = "0" * 40
    (tree / "manifest.json").write_text(json.dumps(listed))
    checked = run("mirror", str(tree), "--check")
    assert checked.returncode == 4 and f"is of commit {'0' * 40}, but other files of {WEIGHTS_REPO}" in checked.stderr
    grown = run("mirror", str(tree), "--mirror", served.url)
    assert grown.returncode == 4 and "in another folder" in grown.stderr


@pytest.mark.parametrize("status", [503, 520])
def test_a_manifest_that_is_out_of_reach_for_now_is_not_taken_for_none(served: Hub, status: int) -> None:
    served.inject(*(Fault(host="hub", status=status, headers={"Retry-After": "0"}) for _ in range(hf.ATTEMPTS)))
    ran = run("--mirror", served.url, "--layers", "0", "-o", "-")
    assert ran.returncode == 3 and f"HTTP {status}" in ran.stderr and "manifest.json" in ran.stderr and ran.stdout == ""


def test_bad_manifests(tree: Path) -> None:
    outside = {"repo": "a/b", "revision": "main", "path": "x", "commit": None, "size": 1, "sha256": "0" * 64}
    entries = [{**outside, **wrong} for wrong in (
        {"path": "../../x"}, {"commit": "../../../../evil"}, {"sha256": "../../../../evil"}, {"size": "1"}, {"repo": "../a"}
    )]
    listings = [json.dumps({"format_version": 1, "files": [entry]}) for entry in entries]
    for text in ["", "[]", '{"format_version": 2, "files": []}', '{"format_version": 1, "files": [{}]}', "[" * 100_000, *listings]:
        (tree / "manifest.json").write_text(text)
        ran = run("--mirror", str(tree), "-o", "-")
        assert ran.returncode == 4 and "manifest.json" in ran.stderr and "Traceback" not in ran.stderr, text[:200]
    assert run("mirror", str(tree), "--check").returncode == 4


def test_a_hostile_manifest_over_http_writes_nothing_outside_the_cache(nginx: str, tree: Path, tmp_path: Path) -> None:
    listed = json.loads((tree / "manifest.json").read_text())
    for file in listed["files"]:
        file["commit"], file["sha256"] = "../" * 30 + str(tmp_path / "evil"), "../" * 30 + str(tmp_path / "evil2")
    (tree / "manifest.json").write_text(json.dumps(listed))
    ran = run("--mirror", nginx, *LAYERS)
    assert ran.returncode == 4 and not list(tmp_path.glob("evil*"))


def test_mirrors_that_are_not_there(served: Hub, tmp_path: Path) -> None:
    for address in ("nowhere", "file:///no/where", str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        ran = run("--mirror", address)
        assert ran.returncode == 3 and len(ran.stderr.splitlines()) == 1 and "Traceback" not in ran.stderr
    assert run("mirror", str(tmp_path / "empty"), "--check").returncode == 4
    for server in ([], ["--mirror", served.url]):
        assert run("--stream", "--offline", *server).returncode == 2
    assert "there is no such folder" in run("--offline", "--mirror", "nowhere").stderr
    no_stream = run("--stream", environment={"HF_HUB_OFFLINE": "1"})
    assert no_stream.returncode in (2, 3) and "Traceback" not in no_stream.stderr
    unwritable = run("mirror", "/proc/nowhere", "--mirror", served.url, "--layers", "0")
    assert unwritable.returncode in (2, 3) and "Traceback" not in unwritable.stderr


def test_a_stream_writes_nothing_but_the_output(served: Hub, expected: dict[str, Any], tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*")}
    streamed = run("--mirror", served.url, "--stream", "--layers", "0-2", "-o", "out.json")
    assert streamed.returncode == 0
    assert {path for path in tmp_path.rglob("*")} - before == {tmp_path / "out.json"}
    assert comparable(read(tmp_path / "out.json")) == comparable(expected, sha256=False)
    assert expected["weights_revision"] == served.repos[WEIGHTS_REPO].refs["main"]


def test_bad_files_are_named_last_with_a_total(demo_folder: Path, tmp_path: Path) -> None:
    source = "--offline", "--cache-dir", str(demo_folder / "hub"), "--repo", "oracle-demo/synthetic-GemmaScopeNpz-curation"
    assert run("mirror", str(tmp_path / "made"), *source, "--quiet").returncode == 0
    right = run("mirror", str(tmp_path / "made"), "--check")
    assert right.returncode == 0 and right.stderr.count(" is right\n") == 4 and right.stderr.splitlines()[-1].startswith("4 files, 805.3 kB: all are")
    first, second, *_ = sorted((tmp_path / "made").rglob("params.npz"))
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    bad = run("mirror", str(tmp_path / "made"), "--check")
    *rights, one, other, total = bad.stderr.splitlines()
    assert bad.returncode == 4 and len(rights) == 2 and all(line.endswith(" is right") for line in rights)
    assert one.endswith("layer_0/width_512/average_l0_40/params.npz has another sha256") and other.endswith("params.npz is missing")
    assert total.startswith("error: 2 of 4 files of ") and "(805.3 kB)" in total and total.endswith("delete them and build it again")


def test_a_dry_run_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    fill(hub, 3)
    command = "--mirror", hub.url, "--layers", "0,2", "--cache-dir", str(tmp_path / "cache"), "-o", str(tmp_path / "out.json")
    before = run(*command, "--dry-run")
    *files, total = before.stdout.splitlines()
    assert before.returncode == 0 and not (tmp_path / "out.json").exists() and not list((tmp_path / "cache").rglob("*.npz"))
    assert ["here" in line for line in files] == [True, False, False]  # the config.yaml says which files there are
    assert total.startswith("3 files, ") and total.endswith(" would be fetched") and "size unknown" not in before.stdout
    assert run(*command, "--quiet").returncode == 0
    after = run(*command, "--dry-run", "--offline").stdout.splitlines()
    assert [line.replace("here    ", "to fetch") for line in after[1:-1]] == files[1:] and after[-1].endswith("0.0 kB would be fetched")
