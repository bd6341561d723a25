# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15, the rest of its table: patience, files that are not what they seem, leftovers, limits. The number of the row stands in each name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import vendored_hf as hf
from oracle.errors import BadUse
from oracle.job import Origin
from oracle.sources import curation, mirror
from oracle.sources.curation import HubFile
from tests.support import worlds
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT
from tests.support.process import python, run
from tests.support.scripted import Request, head, part, scripted
from tests.support.small_scope import WEIGHTS_REPO, fill, path_of

REPO, PATH = "org/weights", "a/params.npz"
CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_OF_EMPTY = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


@pytest.fixture
def served(hub: Hub) -> Hub:
    fill(hub, 3)
    return hub


@pytest.fixture
def filled(hub: Hub) -> Hub:
    hub.add(REPO, PATH, CONTENT)
    return hub


def fetch(endpoint: str, path: str = PATH, **options: Any) -> bytes:
    return Path(hf.hf_hub_download(REPO, path, endpoint=endpoint, **options)).read_bytes()


# --- 4: patience ---------------------------------------------------------------------------------------------------


def test_4_patience_on_the_command_line(served: Hub, tmp_path: Path) -> None:
    """A server that asks for 3 seconds is waited for, or not, as the option has it."""
    for patience, code in (("2", 3), ("9", 0)):
        served.inject(Fault(host="hub", method="HEAD", status=503, headers={"Retry-After": "3"}))
        began = time.monotonic()
        ran = run("--mirror", served.url, "--layers", "0", "-o", str(tmp_path / "out"), "--patience", patience)
        assert ran.returncode == code, ran.stderr
        assert ("asks to wait until" in ran.stderr) and (time.monotonic() - began >= 3) == (code == 0)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "86401", "x"])
def test_4_a_patience_that_is_none(value: str) -> None:
    assert run("--patience", value).returncode == 2
    with pytest.raises(BadUse, match="patience"):
        Origin(patience=float(value) if value != "x" else value)  # type: ignore[arg-type]


@pytest.mark.parametrize("door", ["file", "listing", "manifest"])
def test_4_every_request_has_the_patience_of_its_origin(served: Hub, door: str, tmp_path: Path) -> None:
    status = Fault(host="hub", method="HEAD" if door == "file" else "GET", status=503, headers={"Retry-After": "60"})
    served.inject(*(status for _ in range(4)))
    world = ["--repo", WEIGHTS_REPO] if door == "listing" else []
    began = time.monotonic()
    ran = run("--mirror", served.url, *world, "--patience", "1", "-o", str(tmp_path / "out"))
    assert ran.returncode == 3 and "asks to wait until" in ran.stderr and time.monotonic() - began < 5, ran.stderr


# --- 7: what is not what it seems ----------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 302056000\n" % 7


@pytest.mark.parametrize("name", ["GemmaScopeNpz", "PltBundle", "QwenScope"])
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_7_an_lfs_pointer_for_weights(hub: Hub, name: str, stream: list[str], tmp_path: Path) -> None:
    """Somebody cloned without Git LFS, and pushed or served what lay there."""
    world = worlds.make(name, n_layers=1)
    world.add_to(hub)
    for repo, entry in list(hub.repos.items()):
        for path in entry.commits[entry.refs["main"]]:
            if path.endswith((".npz", ".safetensors", ".pt")):
                hub.add(repo, path, POINTER, large=True)
    ran = run("--mirror", hub.url, *world.arguments, *stream, "-o", str(tmp_path / "out"))
    assert ran.returncode == 4 and "Git LFS pointer" in ran.stderr and "git lfs pull" in ran.stderr, ran.stderr


def saved(token: str) -> Path:
    place = Path(os.environ["HF_HOME"]) / "token"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(token)
    return place


def refusing(token: str, private: bool = False) -> Any:
    """As the Hub does for a token that has expired, whatever the repo."""

    def answer(request: Request) -> bytes:
        if request.headers.get("authorization") == f"Bearer {token}":
            return head("401 Unauthorized", X_Error_Message="Invalid credentials in Authorization header", Content_Length=0)
        return head("401 Unauthorized", Content_Length=0) if private else part(CONTENT, request, ETag=f'"{SHA256}"')

    return answer


def test_7_a_stale_saved_token_on_a_public_repo(caplog: pytest.LogCaptureFixture) -> None:
    place = saved("hf_stale_1")
    with scripted(refusing("hf_stale_1")) as server:
        for cache in ("one", "two"):
            assert fetch(server.url, cache_dir=place.parent / cache) == CONTENT
    told = [request.headers.get("authorization") for request in server.requests]
    assert told == ["Bearer hf_stale_1", None, None, None, None]  # asked once, and not for each file
    assert caplog.text.count(f"the token in {place} is not valid any more") == 1 and "hf_stale_1" not in caplog.text


@pytest.mark.parametrize("words", [{}, {"X_Error_Message": "Invalid username or password."}, {"X_Error_Code": "RepoNotFound"}])
def test_7_a_stale_saved_token_that_is_refused_in_other_words(words: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """A server says 401 to a token that is none, whatever it calls that."""
    def answer(request: Request) -> bytes:
        refused = head("401 Unauthorized", **words, Content_Length=0)
        return refused if "authorization" in request.headers else part(CONTENT, request, ETag=f'"{SHA256}"')

    saved(f"hf_words_{len(str(words))}")
    with scripted(answer) as server:
        assert fetch(server.url) == CONTENT
        assert "is not valid any more" in caplog.text
        with pytest.raises(hf.HfHubHTTPError, match="no such repo|the token is not valid: check HF_TOKEN"):
            fetch(server.url, token="hf_named", cache_dir="other")


def test_7_a_stale_saved_token_on_a_private_repo(caplog: pytest.LogCaptureFixture) -> None:
    place = saved("hf_stale_2")
    with scripted(refusing("hf_stale_2", private=True)) as server:
        with pytest.raises(hf.RepositoryNotFoundError, match="a private one"):
            fetch(server.url)
    assert f"the token in {place} is not valid" in caplog.text


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_7_a_token_that_somebody_named_is_not_left_out(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("hf_other")
    if how == "environment":
        monkeypatch.setenv("HF_TOKEN", "hf_stale_3")
    with scripted(refusing("hf_stale_3")) as server:
        with pytest.raises(hf.HfHubHTTPError, match="the token is not valid: check HF_TOKEN"):
            fetch(server.url, token="hf_stale_3" if how == "argument" else None)
    assert len(server.requests) == 1


@pytest.mark.parametrize("large", [True, False])
def test_7_an_empty_cached_blob_is_fetched_again(hub: Hub, large: bool) -> None:
    """What a disk that was full, or a machine that lost power, left of it."""
    commit = hub.add(REPO, PATH, CONTENT, large=large)
    path = Path(hf.hf_hub_download(REPO, PATH, endpoint=hub.url, revision=commit))
    path.resolve().write_bytes(b"")
    assert fetch(hub.url, revision=commit) == CONTENT
    path.resolve().write_bytes(b"")
    assert fetch(hub.url) == CONTENT
    path.resolve().write_bytes(b"")
    with pytest.raises(hf.LocalEntryNotFoundError):
        fetch(hub.url, local_files_only=True)


@pytest.mark.parametrize("large", [True, False])
def test_7_a_file_that_is_empty_on_the_hub_is_not_fetched_again(hub: Hub, large: bool) -> None:
    commit = hub.add(REPO, PATH, b"", large=large)
    assert fetch(hub.url, revision=commit) == b"" and hub.seen
    hub.seen.clear()
    assert fetch(hub.url, revision=commit) == b"" == fetch(hub.url, revision=commit, local_files_only=True) and not hub.seen


def test_7_workers_need_no_shared_memory(demo_folder: Path, tmp_path: Path) -> None:
    """A container without /dev/shm: threads take no semaphore of it, so that nothing of multiprocessing is imported."""
    program = (
        "import sys\nfrom oracle.terminal.commands import main\n"
        f"code = main(['--offline', '--cache-dir', {str(demo_folder / 'hub')!r}, '--repo', 'oracle-demo/synthetic-GemmaScopeNpz-curation',"
        f" '--workers', '2', '-o', {str(tmp_path / 'out')!r}])\n"
        "print(code, sorted(name for name in sys.modules if name.startswith(('multiprocessing', '_multiprocessing', '_posixshmem'))))"
    )
    ran = python("-c", program)
    assert ran.stdout == "0 []\n", ran.stdout + ran.stderr


# --- 10: the working folder ----------------------------------------------------------------------------------------

SCRIPT = "import sys\nfrom oracle.__main__ import run\nrun()\n"  # as pip writes the console script


def test_7_a_damaged_file_that_is_deleted_as_the_error_says_is_fetched_again(served: Hub, tmp_path: Path) -> None:
    """Not the link in snapshots/: whoever deletes that gets it again, to the same bytes."""
    arguments = ["--mirror", served.url, "--layers", "0", "-o", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")]
    assert run(*arguments).returncode == 0
    path = next((tmp_path / "cache").glob(f"*/snapshots/*/{path_of(0)}"))
    path.resolve().write_bytes(bytes(path.stat().st_size))
    ran = run(*arguments)
    assert ran.returncode == 4 and ran.stderr.endswith(": delete it and fetch it again\n"), ran.stderr
    Path(ran.stderr.splitlines()[-1].removeprefix("error: ").partition(" is damaged")[0]).unlink()
    assert run(*arguments).returncode == 0


def test_5_a_blank_mirror_is_none(served: Hub, tmp_path: Path) -> None:
    for url, endpoint in (("  ", served.url), (f" {served.url}\n", "http://127.0.0.1:9")):
        ran = run("--layers", "0", "-o", str(tmp_path / "out"), environment={"ORACLE_MIRROR": url, "HF_ENDPOINT": endpoint})
        assert ran.returncode == 0, ran.stderr


def test_10_a_file_of_our_name_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "vendored_hf.py").write_text("raise RuntimeError('it was run')\n")
    ran = python("-m", "oracle", "--version", cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and str(tmp_path / "vendored_hf.py") in ran.stderr, ran.stderr
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "oracle").write_text(SCRIPT)
    ran = python(str(scripts / "oracle"), "--version", cwd=tmp_path)
    assert ran.returncode == 0 and ran.stdout.startswith("oracle "), ran.stderr


def test_10_a_file_of_a_package_s_name_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("")
    ran = python("-m", "oracle", "--version", cwd=tmp_path)
    assert ran.returncode == 2 and ran.stderr == f"error: {tmp_path}/numpy.py stands before the package numpy: run it from another folder, or as `oracle`\n"


def test_10_our_own_copy_elsewhere_is_told_of_too(tmp_path: Path) -> None:
    (tmp_path / "vendored_hf.py").write_bytes((ROOT / "vendored_hf.py").read_bytes())
    ran = python("-m", "oracle", "--version", cwd=tmp_path)
    assert ran.returncode == 2 and "run it from another folder" in ran.stderr


def test_10_the_script_is_in_the_package() -> None:
    assert "oracle = oracle.__main__:run" in (ROOT / "setup.cfg").read_text()
    assert python("-m", "oracle", "--version", cwd=ROOT).returncode == 0


# --- 10b: files that stay open -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--decode"], ["--workers", "2"], ["--stream"]])
def test_10b_a_layer_that_fails_leaves_no_file_open(served: Hub, options: list[str], tmp_path: Path) -> None:
    served.add(WEIGHTS_REPO, path_of(0), b"PK no zip" * 200)
    arguments = ["--mirror", served.url, "--layers", "all", *options, "-o", str(tmp_path / "out")]
    program = f"import gc, sys\nfrom oracle.terminal.commands import main\ncode = main({arguments!r})\ngc.collect()\nprint(code)"
    ran = python("-W", "error::ResourceWarning", "-X", "dev", "-c", program)
    assert ran.stdout == "4\n" and "ResourceWarning" not in ran.stderr, ran.stderr


# --- 11: leftovers -------------------------------------------------------------------------------------------------

LEFT = "0123456789abcdef.tmp"


def old(path: Path, days: float, content: bytes = b"half") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_11_what_a_killed_process_left_is_swept(filled: Hub) -> None:
    """What stands under the lock that we hold is nobody's at once; what else, after an hour without a byte."""
    cache = hf.hf_hub_cache() / "models--org--weights"
    commit = filled.repos[REPO].refs["main"]
    dead = [
        old(cache / f"blobs/{SHA256}.0123456789abcdef.incomplete", 0), old(cache / f"snapshots/{commit}/a/params.npz.{LEFT}", 0),
        old(cache / f"refs/main.{LEFT}", 0.05), old(cache / f"blobs/{'1' * 64}.parts.incomplete", 8),
    ]
    kept = [
        old(cache / f"blobs/{'2' * 64}.parts.incomplete", 6), old(cache / f"blobs/{'3' * 64}.0123456789abcdef.incomplete", 0),
        old(cache / f"blobs/{SHA256}.incomplete", 9), old(cache / f"snapshots/{commit}/a/params.npz.tmp", 9), old(cache / "refs/main2.tmp", 9),
        old(cache / f"snapshots/{commit}/a/other.npz.{LEFT}", 9),
    ]
    assert fetch(filled.url) == CONTENT
    assert not [path for path in dead if path.exists()] and all(path.exists() for path in kept)


def test_11_a_download_that_a_full_disk_broke_off_is_resumed_and_not_swept(filled: Hub) -> None:
    filled.inject(*(Fault(cut_after=count) for count in (600_000, 9, 9, 9)))
    with pytest.raises(OSError):
        fetch(filled.url)
    left, = hf.hf_hub_cache().glob("*/blobs/*.parts.incomplete")
    assert left.stat().st_size > len(CONTENT)
    before = len(filled.requests("cdn"))
    assert fetch(filled.url) == CONTENT and not left.exists()
    assert sum(seen.sent for seen in filled.requests("cdn")[before:]) < len(CONTENT)


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT])
def test_11_a_full_disk_is_told_with_its_place(full: int, tmp_path: Path) -> None:
    """The system says no more than that; of a file that cannot be read, whose place this is not, no place is named."""
    for number, place in ((full, str(tmp_path / "out")), (errno.EIO, None)):
        with pytest.raises(OSError) as raised, hf.replacing(tmp_path / "out"):
            raise OSError(number, os.strerror(number))
        assert raised.value.filename == place and not [*tmp_path.glob("out*")]


def test_11_a_file_that_another_process_writes_stays(tmp_path: Path) -> None:
    fresh = old(tmp_path / f"out.json.{LEFT}", 0)
    stale, other = old(tmp_path / "out.json.00000000deadbeef.tmp", 0.05), old(tmp_path / f"mine.json.{LEFT}", 9)
    with hf.replacing(tmp_path / "out.json") as file:
        file.write(b"x")
    assert fresh.exists() and other.exists() and not stale.exists()


def test_11_a_mirror_sweeps_what_a_kill_left(served: Hub, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    place = tree / f"{WEIGHTS_REPO}/resolve/main/{path_of(0)}"
    dead = [old(place.with_name(f"{place.name}.{LEFT}"), 0), old(tree / f"manifest.json.{LEFT}", 0)]
    assert run("mirror", str(tree), "--mirror", served.url, "--layers", "0").returncode == 0
    assert not [path for path in dead if path.exists()] and place.is_file()


# --- 12: limits that are looked at in time -------------------------------------------------------------------------

PEAK = """
import sys
from oracle.terminal.commands import main
code = main(sys.argv[1:])
print(code, int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


def peak(*arguments: str, seconds: float = 10, **options: Any) -> tuple[int, str, int]:
    """The command line's exit code, what it said, and its peak memory in MiB."""
    began = time.monotonic()
    ran = python("-c", PEAK, *arguments, **options)
    assert time.monotonic() - began < seconds, ran.stderr
    code, memory = map(int, ran.stdout.split()[-2:])
    return code, ran.stderr, memory


def sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("name", ["manifest.json", "mntss/gemma-scope-transcoders/resolve/main/config.yaml"])
def test_12_files_of_a_mirror_s_folder_are_counted_while_they_are_read(name: str, tmp_path: Path) -> None:
    sparse(tmp_path / "tree" / name, 1_500_000_000)
    code, said, memory = peak("--mirror", str(tmp_path / "tree"), "-o", str(tmp_path / "out"))
    assert code == 4 and memory < 150, (said, memory)


@pytest.mark.parametrize("name", ["manifest", "listing", "config.yaml", "cfg.json"])
@pytest.mark.parametrize("told", [True, False])
def test_12_answers_are_counted_while_they_arrive(name: str, told: bool, tmp_path: Path) -> None:
    """A server that sends a gigabyte and a half, whether it says so or not."""
    size = 1_500_000_000
    world = worlds.make("SaeLens", n_layers=1) if name == "cfg.json" else None

    def answer(request: Request) -> bytes:
        wanted = {"manifest": "/manifest.json", "listing": "/api/", "config.yaml": "/config.yaml", "cfg.json": "/cfg.json"}[name]
        if wanted not in request.target:
            return head("404 Not Found", Content_Length=0, X_Error_Code="EntryNotFound")
        length = {"Content_Length": size} if told else {}
        return head("200 OK", Content_Type="application/json", **length) + (b"[" * 20_000_000 if request.method == "GET" else b"")

    arguments = ["--repo", "org/repo", "--path", "x/sae_weights.safetensors"] if world else ["--repo", "org/repo"]
    with scripted(answer) as server:
        code, said, memory = peak("--mirror", server.url, *arguments, "-o", str(tmp_path / "out"))
    assert code in (3, 4) and memory < 150, (code, said, memory)


def test_12_a_config_that_is_too_long_is_not_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/repo", "config.yaml", b"#" * (curation.SIZE_LIMIT + 1))
    ran = run("--mirror", hub.url, "--repo", "org/repo", "-o", str(tmp_path / "out"))
    assert ran.returncode == 4 and f"at most {curation.SIZE_LIMIT}" in ran.stderr and not list(hf.hf_hub_cache().glob("*/blobs/*"))


def test_12_a_manifest_at_its_limit(tmp_path: Path) -> None:
    document = json.dumps({"format_version": 1, "files": []})
    (tmp_path / "manifest.json").write_text(document.ljust(mirror.listings.LIMIT))
    assert mirror.load_manifest(tmp_path).entries == []
    (tmp_path / "manifest.json").write_text(document.ljust(mirror.listings.LIMIT + 1))
    with pytest.raises(mirror.MirrorError, match="the most that is read"):
        mirror.load_manifest(tmp_path)


@pytest.mark.parametrize("size", [10**12, 10**14, 10**18, 10**30, -1, True, 1.0])
def test_12_a_size_that_no_file_has(size: Any, tmp_path: Path) -> None:
    entry = {"repo": REPO, "revision": "main", "path": PATH, "commit": None, "sha256": SHA256, "size": size}
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "files": [entry]}))
    with pytest.raises(mirror.MirrorError):
        mirror.Mirror(str(tmp_path)).known(HubFile(REPO, None, PATH))
    if type(size) is int:
        with pytest.raises(hf.FileMetadataError, match="a size that no file has"):
            hf.HfFileMetadata(None, None, size, "http://h/x")
