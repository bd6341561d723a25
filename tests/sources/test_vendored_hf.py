# SPDX-License-Identifier: MIT OR Apache-2.0
"""vendored_hf against a Hub on loopback, through real sockets, and against the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vendored_hf as hf
from tests.support import real_client
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT

REPO = "org/weights"
BIG = bytes(range(256)) * 12_000  # 3 MB
SMALL = b"model_kind: transcoder_set\n"


@pytest.fixture
def filled(hub: Hub) -> Hub:
    hub.add(REPO, "config.yaml", SMALL)
    hub.add(REPO, "a/b/params.npz", BIG)
    return hub


def fetch(hub: Hub, path: str = "a/b/params.npz", **options: object) -> str:
    return hf.hf_hub_download(REPO, path, endpoint=hub.url, **options)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, object]:
    """Every file with its content, every link with its target; CACHEDIR.TAG by its signature."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            found[name] = path.read_bytes()[:43] if path.name == "CACHEDIR.TAG" else path.read_bytes()
    return found


def test_large_and_small_files_arrive_and_are_cached(filled: Hub) -> None:
    path = fetch(filled)
    assert Path(path).read_bytes() == BIG
    assert [(s.host, s.method, s.status) for s in filled.seen] == [
        ("hub", "HEAD", 302), ("hub", "GET", 302), ("cdn", "GET", 200)
    ]
    assert all(s.headers["Accept-Encoding"] == "identity" for s in filled.seen)
    commit = filled.repos[REPO].refs["main"]
    etag = filled.repos[REPO].commits[commit]["a/b/params.npz"].etag
    assert hf.hf_hub_file(REPO, "a/b/params.npz", revision=commit) == hf.LocalFile(path, commit, etag)
    small = hf.hf_hub_file(REPO, "config.yaml", endpoint=filled.url)
    assert Path(small.path).read_bytes() == SMALL and (small.commit_hash, small.sha256) == (commit, None)
    filled.seen.clear()
    assert fetch(filled) == path
    assert [(s.method) for s in filled.seen] == ["HEAD"]


def test_a_cached_file_at_a_commit_costs_no_request(filled: Hub) -> None:
    commit = filled.repos[REPO].refs["main"]
    path = fetch(filled, revision=commit)
    filled.seen.clear()
    assert fetch(filled, revision=commit) == path and not filled.seen
    assert hf.try_to_load_from_cache(REPO, "a/b/params.npz", revision=commit) == path
    assert not (Path(hf.hf_hub_cache()) / "models--org--weights/refs/main").exists()


def test_branches_with_slashes(filled: Hub) -> None:
    filled.add(REPO, "a/b/params.npz", b"other", branch="refs/pr/1")
    assert Path(fetch(filled, revision="refs/pr/1")).read_bytes() == b"other"
    assert hf.try_to_load_from_cache(REPO, "a/b/params.npz", revision="refs/pr/1")


def test_the_cache_is_the_real_client_s_file_for_file(filled: Hub, tmp_path: Path) -> None:
    filled.add(REPO, "a/b/params.npz", b"other", branch="v2")
    commit = filled.repos[REPO].refs["main"]
    calls = [("config.yaml", "main"), ("a/b/params.npz", "main"), ("a/b/params.npz", "v2"), ("config.yaml", commit)]
    for path, revision in calls:
        fetch(filled, path, revision=revision, cache_dir=tmp_path / "ours")
    real_client.printed(
        filled, tmp_path / "theirs",
        *(f"hf_hub_download({REPO!r}, {path!r}, revision={revision!r})" for path, revision in calls),
    )
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs")
    if "CACHEDIR.TAG" not in theirs:  # older clients write none
        del ours["CACHEDIR.TAG"]
    assert ours == theirs and len(ours) > 10


def test_each_side_finds_what_the_other_fetched(filled: Hub, tmp_path: Path) -> None:
    ours, theirs = fetch(filled, cache_dir=tmp_path / "ours"), tmp_path / "theirs"
    found = real_client.printed(
        filled, tmp_path / "ours",
        f"print(try_to_load_from_cache({REPO!r}, 'a/b/params.npz'))",
        f"print(hf_hub_download({REPO!r}, 'a/b/params.npz', local_files_only=True))",
    )
    assert found.split() == [ours, ours]
    printed = real_client.printed(filled, theirs, f"print(hf_hub_download({REPO!r}, 'a/b/params.npz'))").strip()
    assert hf.try_to_load_from_cache(REPO, "a/b/params.npz", theirs) == printed
    assert fetch(filled, cache_dir=theirs, local_files_only=True) == printed


def test_offline(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(filled)
    filled.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(filled) == path and not filled.seen
    with pytest.raises(hf.LocalEntryNotFoundError, match="config.yaml of org/weights"):
        fetch(filled, "config.yaml")
    assert not filled.seen


def test_an_unreachable_server_leaves_the_cache(filled: Hub, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(filled)
    nowhere = "http://127.0.0.1:9"
    assert hf.hf_hub_download(REPO, "a/b/params.npz", endpoint=nowhere) == path
    assert "Connection refused" in caplog.text and path in caplog.text
    with pytest.raises(hf.LocalEntryNotFoundError, match="Connection refused"):
        hf.hf_hub_download(REPO, "config.yaml", endpoint=nowhere)


@pytest.mark.parametrize(
    "repo, path, revision, error",
    [
        ("org/none", "x", "main", hf.RepositoryNotFoundError),
        (REPO, "x", "none", hf.RevisionNotFoundError),
        (REPO, "none", "main", hf.RemoteEntryNotFoundError),
        ("org/gated", "x.npz", "main", hf.GatedRepoError),
        ("a/b/c", "x", "main", hf.HFValidationError),
        (REPO, "../x", "main", hf.HFValidationError),
        (REPO, "x", "../main", hf.HFValidationError),
    ],
)
def test_each_absence_has_its_exception(filled: Hub, repo: str, path: str, revision: str, error: type) -> None:
    filled.add("org/gated", "x.npz", b"x")
    filled.repos["org/gated"].gated, filled.repos["org/gated"].token = True, "right"
    with pytest.raises(error) as raised:
        hf.hf_hub_download(repo, path, revision=revision, endpoint=filled.url)
    assert type(raised.value) is error
    if isinstance(raised.value, hf.HfHubHTTPError):
        assert raised.value.status_code in (401, 404)


def test_the_token_opens_and_goes_to_the_endpoint_alone(filled: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    filled.repos[REPO].token = "hf_right"
    with pytest.raises(hf.RepositoryNotFoundError):
        fetch(filled)
    # requests would put netrc's login over our header, and would send the other host its own.
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\nmachine 127.0.0.2 login c password d\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    filled.seen.clear()
    assert Path(fetch(filled)).read_bytes() == BIG
    assert {s.headers.get("Authorization") for s in filled.requests("hub")} == {"Bearer hf_right"}
    assert {s.headers.get("Authorization") for s in filled.requests("cdn")} == {None}


def test_a_saved_token_is_found(filled: Hub, tmp_path: Path) -> None:
    filled.repos[REPO].token = "hf_saved"
    saved = tmp_path / "home" / "huggingface" / "token"
    saved.parent.mkdir()
    saved.write_text("hf_saved\n")
    assert Path(fetch(filled)).read_bytes() == BIG


def test_a_partial_file_is_resumed(filled: Hub) -> None:
    filled.inject(Fault(cut_after=1_000_000), Fault(cut_after=1_000_000))
    assert Path(fetch(filled)).read_bytes() == BIG
    ranges = [s.headers.get("Range") for s in filled.requests("cdn")]
    starts = [int((spec or "bytes=0-").removeprefix("bytes=").split("-")[0]) for spec in ranges]
    assert len(starts) == 3 and 800_000 < starts[1] <= 1_000_000 and starts[1] + 800_000 < starts[2]
    # every part went through /resolve/, whose CDN addresses are signed for their Range
    assert [s.headers.get("Range") for s in filled.requests("hub", "GET")] == ranges


def test_the_next_process_resumes(filled: Hub) -> None:
    blobs = hf.hf_hub_cache() / "models--org--weights/blobs"
    etag = filled.repos[REPO].commits[filled.repos[REPO].refs["main"]]["a/b/params.npz"].etag
    filled.inject(Fault(cut_after=500_000), Fault(host="hub", method="GET", status=404, after=1))
    with pytest.raises(hf.HfHubHTTPError):
        fetch(filled)
    assert [p.name for p in blobs.iterdir()] == [f"{etag}.parts.incomplete"]
    assert hf.try_to_load_from_cache(REPO, "a/b/params.npz") is None
    filled.seen.clear()
    assert Path(fetch(filled)).read_bytes() == BIG
    resumed = [s.sent for s in filled.requests("cdn") if "Range" in s.headers]
    assert resumed == [len(BIG) - hf.PIECE]  # of 500,000 bytes one whole piece was there
    # what was on disk was not what the server has: found by the sha256, and fetched again
    Path(fetch(filled)).resolve().unlink()
    for garbage in (b"garbage", b"\1" * len(BIG), b"\1" * (len(BIG) + 12)):
        (blobs / f"{etag}.parts.incomplete").write_bytes(garbage)
        assert Path(fetch(filled)).read_bytes() == BIG
        Path(fetch(filled)).resolve().unlink()


def test_wrong_bytes_are_refused(filled: Hub) -> None:
    filled.inject(Fault(body=b"\0" * len(BIG)))
    with pytest.raises(hf.ConsistencyError, match="sha256"):
        fetch(filled)
    assert list((hf.hf_hub_cache() / "models--org--weights/blobs").iterdir()) == []
    assert hf.try_to_load_from_cache(REPO, "a/b/params.npz") is None
    assert Path(fetch(filled)).read_bytes() == BIG


def test_a_small_file_is_held_to_git_s_hash(filled: Hub) -> None:
    filled.inject(Fault(host="hub", body=SMALL[::-1]))
    with pytest.raises(hf.ConsistencyError, match="git's sha1"):
        fetch(filled, "config.yaml")
    blobs = hf.hf_hub_cache() / "models--org--weights/blobs"
    assert not list(blobs.iterdir()) and hf.try_to_load_from_cache(REPO, "config.yaml") is None
    # what another process left is no better, and is fetched again
    etag = filled.repos[REPO].commits[filled.repos[REPO].refs["main"]]["config.yaml"].etag
    (blobs / f"{etag}.parts.incomplete").write_bytes(SMALL[::-1] + b"\1")
    assert Path(fetch(filled, "config.yaml")).read_bytes() == SMALL


def test_a_size_that_is_told_takes_no_room_before_bytes_come(filled: Hub) -> None:
    def boast(headers: dict[str, str]) -> None:
        headers["X-Linked-Size"] = "900000000000"

    filled.inject(Fault(host="hub", method="HEAD", alter=boast), Fault(host="hub", status=404))
    with pytest.raises(hf.HfHubHTTPError):
        fetch(filled)
    assert sum(path.stat().st_size for path in hf.hf_hub_cache().rglob("*.incomplete")) < 1 << 20
    assert Path(fetch(filled)).read_bytes() == BIG


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_errors_are_waited_out(filled: Hub, status: int) -> None:
    for _ in range(2):
        filled.inject(Fault(host="hub", method="HEAD", status=status, headers={"Retry-After": "0"}))
    filled.inject(Fault(status=status))
    assert Path(fetch(filled)).read_bytes() == BIG
    assert len(filled.seen) == 2 + 3 + 2


def test_lasting_errors_end(filled: Hub) -> None:
    filled.inject(*(Fault(host="hub", method="HEAD", status=500) for _ in range(50)))
    with pytest.raises(hf.HfHubHTTPError, match="HTTP 500"):
        fetch(filled)
    assert len(filled.seen) == hf.ATTEMPTS


def test_one_download_for_many_threads(filled: Hub) -> None:
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(filled))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and len(paths) == 6
    assert len(filled.requests("cdn")) == 1


def test_requests_is_imported_only_for_a_request(filled: Hub) -> None:
    commit = filled.repos[REPO].refs["main"]
    path = fetch(filled, revision=commit)
    program = (
        "import sys, vendored_hf\n"
        f"print(vendored_hf.hf_hub_download({REPO!r}, 'a/b/params.npz', revision={commit!r}), 'requests' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.split() == [path, "False"], ran.stderr


def test_the_file_stands_alone(filled: Hub, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "vendored_hf.py").write_bytes((ROOT / "vendored_hf.py").read_bytes())
    command = [sys.executable, "vendored_hf.py", REPO, "a/b/params.npz", "--revision", "main"]
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=alone, env={**os.environ, "HF_ENDPOINT": filled.url, "PYTHONPATH": ""}
    )
    assert ran.returncode == 0 and Path(ran.stdout.strip()).read_bytes() == BIG
    command[3] = "none"
    failed = subprocess.run(command, capture_output=True, text=True, cwd=alone, env={**os.environ, "HF_ENDPOINT": filled.url})
    assert failed.returncode == 1 and "no such file" in failed.stderr and "Traceback" not in failed.stderr
