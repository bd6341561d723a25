# SPDX-License-Identifier: MIT OR Apache-2.0
"""What goes wrong with downloads, a row each: the file arrives right, or there is one clear error; never a bad blob."""

from __future__ import annotations

import email.utils
import gzip
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vendored_hf as hf
from oracle.sources.stream import NotStreamableError, RemoteFile, open_remote
from tests.support import real_client
from tests.support.hub import Fault, Hub
from tests.support.process import python, variables

REPO, PATH = "org/weights", "a/params.npz"
CONTENT = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def filled(hub: Hub) -> Hub:
    hub.add(REPO, PATH, CONTENT)
    return hub


def fetch(hub: Hub, **options: Any) -> Path:
    return Path(hf.hf_hub_download(REPO, PATH, endpoint=hub.url, **options))


def head(**options: Any) -> Fault:
    return Fault(host="hub", method="HEAD", **options)


def drop(name: str) -> Callable[[dict[str, str]], None]:
    return lambda headers: headers.pop(name, None) and None


def put(**values: str) -> Callable[[dict[str, str]], None]:
    return lambda headers: headers.update({name.replace("_", "-"): value for name, value in values.items()})


def soon() -> str:
    return email.utils.formatdate(time.time() + 1, usegmt=True)


# name: (faults, what happens: None for "arrives" or an exception and a word of its message, requests at most)
FAULTS: dict[str, tuple[Callable[[], list[Fault]], tuple[type, str] | None, int]] = {
    "reset without an answer": (lambda: [head(hang_up=True), Fault(hang_up=True)], None, 6),
    "always reset": (lambda: [head(hang_up=True) for _ in range(9)], (hf.LocalEntryNotFoundError, "reset"), hf.ATTEMPTS),
    "reset after n bytes": (lambda: [Fault(cut_after=n, reset=True) for n in (1_000_000, 500_000)], None, 7),
    "closed early, right length told": (lambda: [Fault(cut_after=900_000)], None, 5),
    "closed early, wrong length told": (
        lambda: [Fault(cut_after=900_000, honest_length=True)], (hf.ConsistencyError, "900000"), 3),
    "closed early for ever": (
        lambda: [Fault(cut_after=1000) for _ in range(20)], (hf.HubConnectionError, "the connection broke"), 12),
    "stalls": (lambda: [Fault(stall=1.2)], None, 5),
    "429 with seconds": (lambda: [head(status=429, headers={"Retry-After": "1"})], None, 4),
    "429 with a date": (lambda: [head(status=429, headers={"Retry-After": soon()})], None, 4),
    "429 for an hour": (lambda: [head(status=429, headers={"Retry-After": "3600"})], (hf.HfHubHTTPError, "429"), 1),
    "429 with nonsense": (lambda: [Fault(status=429, headers={"Retry-After": "never"})], None, 5),
    "500, 502, 503 in a row": (lambda: [Fault(status=status) for status in (500, 502, 503)], None, 9),
    "503 for ever": (lambda: [Fault(status=503) for _ in range(9)], (hf.HfHubHTTPError, "503"), 9),
    "416": (lambda: [Fault(cut_after=900_000), Fault(status=416)], (hf.HfHubHTTPError, "416"), 5),
    "200 in answer to a Range": (lambda: [Fault(cut_after=900_000), Fault(ignore_range=True)], None, 5),
    "a Content-Range that lies": (
        lambda: [Fault(cut_after=900_000), Fault(alter=put(Content_Range="bytes 0-5/6"))], (hf.ConsistencyError, "bytes 0-5/6"), 5),
    "no Content-Range": (
        lambda: [Fault(cut_after=900_000), Fault(alter=drop("Content-Range"))], (hf.ConsistencyError, "asked for bytes"), 5),
    "an ETag that changes, the hash known": (lambda: [Fault(cut_after=900_000), Fault(alter=put(ETag='"other"'))], None, 5),
    "wrong bytes": (lambda: [Fault(body=bytes(len(CONTENT)))], (hf.ConsistencyError, "sha256"), 3),
    "too many bytes": (lambda: [Fault(body=CONTENT + b"x")], (hf.ConsistencyError, "after it had said"), 3),
    "captive portal for HEAD": (
        lambda: [head(status=200, headers={"Content-Type": "text/html"}, body=b"<html>log in</html>")],
        (hf.FileMetadataError, "web page"), 1),
    "captive portal for GET": (
        lambda: [Fault(host="hub", status=200, headers={"Content-Type": "text/html"}, body=b"<html>log in</html>")],
        (hf.ConsistencyError, "sends '19' bytes"), 2),
    "redirect loop": (
        lambda: [head(status=302, headers={"Location": f"/{REPO}/resolve/main/{PATH}"}) for _ in range(99)],
        (hf.LocalEntryNotFoundError, "redirects more than"), hf.MAX_REDIRECTS),
    "redirect to another address of the same server": (
        lambda: [head(status=307, headers={"Location": f"/{REPO}/resolve/main/{PATH}?again"})], None, 4),
    "redirect to nowhere": (
        lambda: [Fault(host="hub", status=302, headers={"Location": "http://127.0.0.1:9/x"}) for _ in range(9)],
        (hf.HubConnectionError, "refused"), 9),
    "redirect to a file": (
        lambda: [Fault(host="hub", status=302, headers={"Location": "file:///etc/passwd"})], (hf.HubConnectionError, "cannot reach"), 3),
    "gzip that was not asked for": (
        lambda: [Fault(body=gzip.compress(CONTENT), alter=put(Content_Encoding="gzip"))], (hf.ConsistencyError, "encoding"), 3),
    "an ETag that leads out of the cache": (
        lambda: [head(alter=put(X_Linked_Etag='"../../../x"', ETag='"../../../x"'))], None, 3),
    "a commit that leads out of the cache": (lambda: [head(alter=put(X_Repo_Commit="../../x"))], None, 3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(filled: Hub, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.5")
    faults, expected, most_requests = FAULTS[name]
    filled.inject(*faults())
    began = time.monotonic()
    if expected is None:
        assert fetch(filled).read_bytes() == CONTENT
    else:
        with pytest.raises(expected[0]) as error:
            fetch(filled)
        assert expected[1] in str(error.value) and "\n" not in str(error.value) and "127.0.0.1" in str(error.value)
    assert time.monotonic() - began < 12
    assert len(filled.seen) <= most_requests
    filled.faults.clear()
    cache = hf.hf_hub_cache()
    for blob in cache.glob("*/blobs/*"):
        assert blob.name.endswith(".incomplete") or blob.read_bytes() == CONTENT, blob
    for pointer in cache.glob("*/snapshots/*/a/*"):
        assert pointer.read_bytes() == CONTENT
    inside = [path for path in tmp_path.rglob("*") if path.is_file() and cache not in path.parents]
    assert not inside  # nothing was written outside the cache
    assert fetch(filled).read_bytes() == CONTENT  # and the next run is none the worse


def test_connection_refused(filled: Hub) -> None:
    with pytest.raises(hf.LocalEntryNotFoundError, match="refused"):
        hf.hf_hub_download(REPO, PATH, endpoint="http://127.0.0.1:9")


# --- several connections ------------------------------------------------------------------------------------------


def test_several_connections(filled: Hub, several: None) -> None:
    assert fetch(filled, connections=4).read_bytes() == CONTENT
    ranges = [s.headers["Range"] for s in filled.requests("cdn")]
    assert len(ranges) == 4 and sum(s.sent for s in filled.requests("cdn")) == len(CONTENT)
    # each Range had an address of its own, signed for it
    assert sorted(ranges) == sorted(s.headers["Range"] for s in filled.requests("hub", "GET"))


@pytest.mark.parametrize("fault", [
    Fault(cut_after=300_000), Fault(cut_after=300_000, reset=True), Fault(status=503), Fault(hang_up=True), Fault(stall=1.2)
])
def test_several_connections_and_one_breaks(filled: Hub, several: None, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.5")
    fault.after = 2
    filled.inject(fault)
    assert fetch(filled, connections=4).read_bytes() == CONTENT
    assert sum(s.sent for s in filled.requests("cdn")) <= len(CONTENT) + 400_000


def test_several_connections_to_a_server_without_range(filled: Hub, several: None) -> None:
    filled.inject(*(Fault(ignore_range=True) for _ in range(9)))
    assert fetch(filled, connections=4).read_bytes() == CONTENT
    assert len(filled.requests("cdn")) == 1


@pytest.mark.parametrize("connections", [1, 4])
def test_what_is_hashed_is_not_written_again(filled: Hub, several: None, connections: int) -> None:
    """A server without Range breaks, starts over, and sends other bytes for those that had come."""
    other = bytes(1_000_000) + CONTENT[1_000_000:]
    filled.inject(Fault(ignore_range=True, cut_after=1_500_000), Fault(ignore_range=True, body=other))
    assert fetch(filled, connections=connections).read_bytes() == CONTENT
    assert len(filled.requests("cdn")) == 2


def test_several_connections_see_a_file_change(filled: Hub, several: None) -> None:
    def unnamed(headers: dict[str, str]) -> None:
        for name in ("X-Linked-Etag", "ETag"):
            headers.pop(name)

    filled.inject(head(alter=unnamed), Fault(alter=put(ETag='"other"'), after=2))
    with pytest.raises(hf.ConsistencyError, match="it changed"):
        fetch(filled, connections=4)


# --- processes ----------------------------------------------------------------------------------------------------

FETCH = f"import vendored_hf, sys; vendored_hf.SEVERAL_FROM = 1 << 20; print(vendored_hf.hf_hub_download({REPO!r}, {PATH!r}, connections=int(sys.argv[1])))"


def start(hub: Hub, connections: int = 4) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(connections)], env=variables({"HF_ENDPOINT": hub.url}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(kills: int) -> None:
    rng = random.Random(kills)
    killed = resumed = 0
    with Hub() as hub:
        content = rng.randbytes(6_000_000)
        hub.add(REPO, PATH, content)
        for number in range(kills * 3):
            hub.rate = 2e6
            hub.seen.clear()
            process = start(hub, rng.choice([1, 4]))
            while not hub.seen and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.7))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            process.communicate()
            partial = list(hf.hf_hub_cache().glob("*/blobs/*.incomplete"))
            if partial:
                resumed += 1
                on_disk = written_pieces(partial[0], len(content))
                hub.rate = None
                hub.seen.clear()
                assert fetch_now(hub) == content
                transferred = sum(s.sent for s in hub.requests("cdn"))
                assert transferred <= len(content) - on_disk + (1 << 20), (transferred, on_disk)
            for blob in hf.hf_hub_cache().glob("*/blobs/*"):
                assert blob.read_bytes() == content  # under its final name it is whole
                blob.unlink()
            for pointer in hf.hf_hub_cache().glob("*/snapshots/*/*/*"):
                pointer.unlink()
            if killed == kills:
                break
    assert killed == kills and resumed >= kills // 4


def written_pieces(partial: Path, size: int) -> int:
    """How many bytes that are not zero, in blocks of 4 KiB, a killed process left: what was on disk."""
    data = partial.read_bytes()[:size]
    return sum(4096 for at in range(0, len(data), 4096) if any(data[at : at + 64]))


def fetch_now(hub: Hub) -> bytes:
    output, errors = start(hub).communicate(timeout=60)
    assert output, errors
    return Path(output.strip()).read_bytes()


def test_eight_processes_transfer_once() -> None:
    with Hub(rate=6e6) as hub:
        hub.add(REPO, PATH, CONTENT)
        processes = [start(hub) for _ in range(8)]
        paths = {process.communicate(timeout=60)[0].strip() for process in processes}
        assert len(paths) == 1 and Path(paths.pop()).read_bytes() == CONTENT
        assert sum(s.sent for s in hub.requests("cdn")) == len(CONTENT)


def test_the_lock_of_a_dead_process_does_not_block() -> None:
    with Hub(rate=3e6) as hub:
        hub.add(REPO, PATH, CONTENT)
        process = start(hub)
        while not hub.requests("hub", "GET"):
            time.sleep(0.01)
        process.kill()
        process.communicate()
        began = time.monotonic()
        hub.rate = None
        assert fetch(hub).read_bytes() == CONTENT and time.monotonic() - began < 5


def test_the_real_client_and_ours_respect_each_other_s_lock(filled: Hub) -> None:
    filelock = pytest.importorskip("filelock")
    etag = filled.repos[REPO].commits[filled.repos[REPO].refs["main"]][PATH].etag
    place = hf.hf_hub_cache() / ".locks/models--org--weights" / f"{etag}.lock"
    place.parent.mkdir(parents=True)
    with filelock.FileLock(place):
        process = start(filled)
        time.sleep(1.2)
        assert process.poll() is None and not filled.requests("cdn")
    assert process.communicate(timeout=30)[0]
    with hf.locked(place), pytest.raises(filelock.Timeout):
        filelock.FileLock(place, timeout=0.3).acquire()
    filelock.FileLock(place, timeout=0.3).acquire()


def test_both_clients_at_once(hub: Hub) -> None:
    hub.rate = 4e6
    hub.add(REPO, PATH, CONTENT)
    their_process = real_client.started(hub, hf.hf_hub_cache(), f"print(hf_hub_download({REPO!r}, {PATH!r}))")
    while not hub.requests("hub", "HEAD"):
        time.sleep(0.01)
    ours, errors = start(hub).communicate(timeout=60)
    assert their_process.communicate(timeout=60)[0].strip() == ours.strip(), errors
    assert Path(ours.strip()).read_bytes() == CONTENT
    assert sum(s.sent for s in hub.requests("cdn")) == len(CONTENT)


# --- file systems -------------------------------------------------------------------------------------------------


def limited(hub: Hub, before: str) -> subprocess.CompletedProcess[str]:
    program = f"{before}\nimport vendored_hf\nprint(vendored_hf.hf_hub_download({REPO!r}, {PATH!r}))"
    return python("-c", program, environment={"HF_ENDPOINT": hub.url})


def test_a_full_disk(filled: Hub) -> None:
    ran = limited(filled, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))")
    assert ran.returncode == 1 and "File too large" in ran.stderr and ".incomplete" in ran.stderr
    assert not [blob for blob in hf.hf_hub_cache().glob("*/blobs/*") if not blob.name.endswith(".incomplete")]
    assert not list(hf.hf_hub_cache().glob("*/snapshots/*/*/*"))
    assert fetch(filled).read_bytes() == CONTENT


def test_a_read_only_cache(filled: Hub) -> None:
    path = fetch(filled)
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    subprocess.run(["chmod", "-R", "a-w", str(hf.hf_hub_cache())], check=True)
    try:
        for repo_path, code in ((PATH, 0), ("other.npz", 1)):
            filled.add(REPO, "other.npz", b"other")
            filled.repos[REPO].refs["main"] = filled.repos[REPO].refs["main"]
            command = [*prefix, sys.executable, "-c", f"import vendored_hf; print(vendored_hf.hf_hub_download({REPO!r}, {repo_path!r}, revision={path.parts[-3]!r}))"]
            ran = subprocess.run(command, env=variables({"HF_ENDPOINT": filled.url}), text=True, capture_output=True)
            assert ran.returncode == code, ran.stderr
            assert (ran.stdout.strip() == str(path)) if code == 0 else "Error" in ran.stderr
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(hf.hf_hub_cache())], check=True)


def test_a_file_system_without_symlinks(filled: Hub) -> None:
    ran = limited(filled, "import os\ndef none(*_, **__): raise OSError('no links here')\nos.symlink = none")
    path = Path(ran.stdout.strip())
    assert path.read_bytes() == CONTENT and not path.is_symlink()
    assert fetch(filled) == path


@pytest.mark.parametrize("torn", [b"\xff\xfe\x00", b"", b"0" * 40])
def test_a_torn_ref_is_mended(filled: Hub, torn: bytes) -> None:
    path = fetch(filled)
    ref = hf.hf_hub_cache() / "models--org--weights/refs/main"
    ref.write_bytes(torn)
    assert hf.try_to_load_from_cache(REPO, PATH) is None
    assert fetch(filled) == path and ref.read_text() == filled.repos[REPO].refs["main"]


def test_a_torn_file_in_a_snapshot_is_mended(filled: Hub) -> None:
    """A pointer that is a file itself, and was cut off."""
    path = fetch(filled)
    path.unlink()
    path.write_bytes(CONTENT[:1000])
    assert fetch(filled) == path and path.read_bytes() == CONTENT


# --- streams ------------------------------------------------------------------------------------------------------


def stream(hub: Hub) -> RemoteFile:
    return open_remote(hf.Hub(hub.url), hub.url, REPO, PATH)


def read_through(file: RemoteFile, start: int, stop: int) -> bytes:
    file.advise(start, stop)
    file.seek(start)
    return b"".join(file.read(min(100_000, stop - at)) for at in range(start, stop, 100_000))


def test_a_stream_is_the_file(filled: Hub) -> None:
    with stream(filled) as file:
        rng = random.Random(2)
        for _ in range(60):
            start = rng.randrange(len(CONTENT))
            count = rng.choice([1, 30, 5000, 400_000])
            file.seek(start)
            assert file.read(count) == CONTENT[start : start + count]
        assert file.seek(-10, 2) == len(CONTENT) - 10 and file.read(99) == CONTENT[-10:] and file.read(1) == b""


def test_a_stream_fetches_what_was_announced_and_no_more(filled: Hub) -> None:
    with stream(filled) as file:
        filled.seen.clear()
        assert read_through(file, 500_000, 2_000_000) == CONTENT[500_000:2_000_000]
        assert [s.headers["Range"] for s in filled.requests("cdn")] == ["bytes=500000-1999999"]
        assert file.received == (1 << 18) + 1_500_000
    assert not list(hf.hf_hub_cache().glob("**/*"))


@pytest.mark.parametrize("advised", [(0, 0), (0, len(CONTENT)), (600_000, 2_000_000)])
def test_a_stream_that_jumps_gives_the_bytes_at_the_new_place(filled: Hub, advised: tuple[int, int]) -> None:
    """Inside a stretch that was announced, and out of it and back; what is left of the answer before is no part of it."""
    with stream(filled) as file:
        file.advise(*advised)
        for start, count in ((700_000, 30), (1_500_000, 100), (700_030, 70_000), (800_000, 1), (1_900_000, 200_000), (100_000, 40), (700_030, 30)):
            file.seek(start)
            assert file.read(count) == CONTENT[start : start + count], (start, count)
            assert file.read(500) == CONTENT[start + count : start + count + 500], (start, count)
        file.advise(1_000_000, 1_100_000)
        file.seek(1_000_000)
        assert file.read(100_000) == CONTENT[1_000_000:1_100_000]


@pytest.mark.parametrize("fault", [
    Fault(cut_after=700_000), Fault(cut_after=700_000, reset=True), Fault(status=502), Fault(hang_up=True), Fault(stall=1.2)
])
def test_a_stream_that_breaks_is_taken_up_at_its_offset(filled: Hub, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.5")
    with stream(filled) as file:
        filled.seen.clear()
        filled.inject(fault)
        assert read_through(file, 500_000, 2_000_000) == CONTENT[500_000:2_000_000]
        starts = [int(s.headers["Range"].removeprefix("bytes=").split("-")[0]) for s in filled.requests("cdn")]
        # a reset may take with it what had arrived but was not read
        assert len(starts) == 2 and (starts[1] > 1_000_000 or fault.reset or fault.cut_after is None)


@pytest.mark.parametrize("fault, message", [
    (Fault(alter=put(ETag='"other"')), "it changed"), (Fault(alter=put(Content_Range="bytes 1-2/3")), "the server sent"),
    (Fault(alter=put(Content_Encoding="gzip")), "encoding"),
])
def test_a_stream_whose_answers_are_wrong(filled: Hub, fault: Fault, message: str) -> None:
    with stream(filled) as file:
        filled.inject(fault)
        with pytest.raises(hf.ConsistencyError, match=message):
            read_through(file, 500_000, 2_000_000)


def test_a_stream_from_a_server_without_range(filled: Hub) -> None:
    filled.inject(*(Fault(ignore_range=True) for _ in range(9)))
    with pytest.raises(NotStreamableError, match="the server knows no Range, which --stream needs: leave --stream out"):
        stream(filled)
    assert len(filled.requests("cdn")) == 1
    filled.faults.clear()
    with stream(filled) as file:  # and one that forgets it on the way
        filled.inject(Fault(ignore_range=True))
        with pytest.raises(NotStreamableError):
            read_through(file, 500_000, 2_000_000)
    filled.add(REPO, PATH, CONTENT[:200_000])  # a whole file needs none
    filled.inject(Fault(ignore_range=True))
    with stream(filled) as file:
        assert file.read() == CONTENT[:200_000]
