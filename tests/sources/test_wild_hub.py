# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15, vendored_hf's rows: servers, caches, proxies and environments as they are. The number of the row stands in each name."""

from __future__ import annotations

import email.utils
import fcntl
import hashlib
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

import vendored_hf as hf
from oracle.sources.stream import open_remote
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT
from tests.support.process import run
from tests.support.scripted import Request, head, part, scripted, whole

REPO, PATH = "org/weights", "a/params.npz"
CONTENT = random.Random(15).randbytes(1_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "5" * 40


@pytest.fixture
def filled(hub: Hub) -> Hub:
    hub.add(REPO, PATH, CONTENT)
    hub.add(REPO, "config.yaml", b"a: 1\n")
    return hub


def fetch(endpoint: str, path: str = PATH, **options: Any) -> bytes:
    return Path(hf.hf_hub_download(REPO, path, endpoint=endpoint, **options)).read_bytes()


def blobs(cache: Path | None = None) -> list[Path]:
    return list((cache or hf.hf_hub_cache()).glob("*/blobs/*"))


# --- 1: file systems without locks --------------------------------------------------------------------------------

REFUSALS = ("ENOSYS", "EOPNOTSUPP", "EACCES", "EPERM", "EIO")
WITHOUT_LOCKS = """
import errno, fcntl, os, sys, time
def flock(descriptor, how):
    if {error}: raise OSError({error}, os.strerror({error}))
fcntl.flock = flock
import vendored_hf
vendored_hf.SEVERAL_FROM = 1 << 20
print(vendored_hf.hf_hub_download({repo!r}, {path!r}))
"""


def without_locks(hub: Hub, error: str, count: int) -> list[subprocess.Popen[str]]:
    program = WITHOUT_LOCKS.format(error=error, repo=REPO, path=PATH)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(count)
    ]


@pytest.mark.parametrize("error", ["errno.ENOLCK", "0", *(pytest.param(f"errno.{name}", marks=pytest.mark.slow) for name in REFUSALS)])
def test_1_no_locks(filled: Hub, error: str) -> None:
    """0: a flock that keeps nobody out."""
    filled.rate = 4e6  # so that they meet
    warned = 0
    for process in without_locks(filled, error, 3):
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and Path(output.strip()).read_bytes() == CONTENT, errors
        warned += "no lock keeps others" in errors
    assert warned  # who comes last may find the file
    assert [blob.name for blob in blobs()] == [SHA256]  # nothing half written is left


def test_1_what_cannot_be_resumed_is_not_left(filled: Hub) -> None:
    filled.inject(*(Fault(cut_after=1000) for _ in range(99)))
    (process,) = without_locks(filled, "errno.ENOSYS", 1)
    assert "the connection broke" in process.communicate(timeout=60)[1] and process.returncode == 1
    assert not blobs()


def test_1_a_lock_file_that_goes_before_it_is_locked_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody tidies the cache up: what was opened is not what the next one opens."""
    place, flock = tmp_path / "x.lock", fcntl.flock

    def tidied(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        place.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", tidied)
    with hf.locked(place) as alone, place.open() as other, pytest.raises(BlockingIOError):
        assert alone
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_1_who_holds_a_lock_is_waited_for(filled: Hub) -> None:
    place = hf.hf_hub_cache() / ".locks/models--org--weights" / f"{SHA256}.lock"
    environment = {**os.environ, "HF_ENDPOINT": filled.url, "PYTHONPATH": str(ROOT)}
    with hf.locked(place) as trusted:
        assert trusted
        command = [sys.executable, "vendored_hf.py", REPO, PATH]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(1.2)
        assert process.poll() is None and not filled.requests("cdn")
    output, errors = process.communicate(timeout=30)
    assert output and not errors


# --- 2: the length, and a Hub that has moved -----------------------------------------------------------------------


def test_2_a_redirect_away_that_tells_nothing() -> None:
    """An Artifactory, say: HEAD and GET lead to a store whose addresses are signed for GET."""
    with scripted(lambda r: part(CONTENT, r) if r.method == "GET" else head("403 Forbidden")) as store:
        with scripted(lambda r: head("302 Found", Location=f"{store.url}/x?sig=1", Content_Length=0, Content_Type="text/html")) as server:
            assert fetch(server.url, token="hf_x") == CONTENT
    assert {r.headers.get("authorization") for r in server.requests} == {"Bearer hf_x"}
    assert {r.headers.get("authorization") for r in store.requests} == {None}


@pytest.mark.parametrize("without", [("X-Linked-Size",), ("X-Linked-Size", "X-Linked-Etag", "ETag")])
def test_2_a_redirect_without_the_size(filled: Hub, without: tuple[str, ...]) -> None:
    filled.alter = lambda headers: [headers.pop(name, None) for name in without].clear()
    file = hf.hf_hub_file(REPO, PATH, endpoint=filled.url)
    assert Path(file.path).read_bytes() == CONTENT and (file.commit_hash, file.sha256) == (filled.repos[REPO].refs["main"], SHA256)


@pytest.mark.parametrize("status", ["405 Method Not Allowed", "501 Unsupported method ('HEAD')"])
def test_2_a_server_without_head(status: str) -> None:
    with scripted(lambda r: head(status) if r.method == "HEAD" else part(CONTENT, r, ETag=f'"{SHA256}"')) as server:
        file = hf.hf_hub_file(REPO, PATH, endpoint=server.url)
        assert Path(file.path).read_bytes() == CONTENT and file.sha256 == SHA256


@pytest.mark.parametrize("path", [PATH, "config.yaml"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_2_an_endpoint_that_redirects_to_the_hub(filled: Hub, path: str, status: int) -> None:
    """hf.co to huggingface.co, a company's name for a mirror: all but the token comes along."""
    with scripted(lambda r: head(f"{status} Moved", Location=f"{filled.url}{r.target}", Content_Length=0)) as old:
        file = hf.hf_hub_file(REPO, path, endpoint=old.url, token="hf_x")
        assert Path(file.path).read_bytes() == (CONTENT if path == PATH else b"a: 1\n")
        assert (file.commit_hash, file.sha256) == (filled.repos[REPO].refs["main"], SHA256 if path == PATH else None)
    assert {s.headers.get("Authorization") for s in filled.seen} == {None}


def test_2_nobody_tells_the_length() -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)
    with scripted(lambda r: head("200 OK", Transfer_Encoding="chunked") + (body if r.method == "GET" else b"")) as server:
        with pytest.raises(hf.FileMetadataError, match="does not say how long"):
            fetch(server.url)


def test_2_a_login_page_is_no_file() -> None:
    page = b"<html>log in</html>"
    for told in ({}, {"Content_Length": len(page)}):
        with scripted(lambda r: head("200 OK", Content_Type="text/html", **(told if r.method == "HEAD" else {"Content_Length": len(page)})) + page) as server:
            with pytest.raises(hf.FileMetadataError, match="web page"):
                fetch(server.url)


# --- 3: Ranges and ETags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("etags", [('"x"', 'W/"x"'), ('W/"x"', '"x"'), ('"x"', None), (None, '"x"'), ("x", '"x"'), (None, None)])
def test_3_etags_of_one_file(etags: tuple[str | None, str | None], several: None) -> None:
    def answer(request: Request) -> bytes:
        etag = etags[len(server.requests) % 2]
        return part(CONTENT, request, **({"ETag": etag} if etag else {}))

    with scripted(answer) as server:
        assert fetch(server.url, connections=4) == CONTENT
        source = hf.Source(hf.Hub(server.url), hf.HfFileMetadata(None, None, len(CONTENT), f"{server.url}/x"))
        assert b"".join(source.open(at, at + 500_000).content for at in range(0, 1_500_000, 500_000)) == CONTENT


@pytest.mark.parametrize("connections", [1, 4])
def test_3_a_content_range_without_the_length(connections: int, several: None) -> None:
    def answer(request: Request) -> bytes:
        told = {"Content_Range": f"bytes {request.span[0]}-{request.span[1] - 1}/*"} if request.span else {}
        return part(CONTENT, request, **told)[: 700_000 if len(server.requests) == 2 else None]

    with scripted(answer) as server:
        assert fetch(server.url, connections=connections) == CONTENT


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("what", ["the whole", "the part", "the whole at times"])
def test_3_a_200_in_answer_to_a_range(connections: int, what: str, several: None) -> None:
    def answer(request: Request) -> bytes:
        number = len(server.requests)
        if number == 2 and connections == 1:
            return whole(CONTENT, request)[:700_000]
        if request.span is None or what == "the whole":
            return whole(CONTENT, request)
        if what == "the part":
            return whole(CONTENT[slice(*request.span)], request)
        return part(CONTENT, request) if number % 2 else whole(CONTENT, request)

    with scripted(answer) as server:
        assert fetch(server.url, connections=connections) == CONTENT


# --- 4: waits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524])
def test_4_what_passes_is_asked_again(filled: Hub, status: int) -> None:
    filled.inject(Fault(host="hub", method="HEAD", status=status), Fault(status=status))
    assert fetch(filled.url) == CONTENT


@pytest.mark.parametrize("headers, least", [
    ({"RateLimit": '"api";r=0;t=1'}, 2), ({"RateLimit": '"pages";r=5;t=90, "resolvers";r=0;t=0', "Retry-After": "80"}, 1),
    ({"RateLimit": '"api";r=7;t=90', "Retry-After": "1"}, 1), ({"Retry-After": "2"}, 2), ({"Retry-After": "0"}, 0),
    *(pytest.param({"RateLimit": text}, 1, marks=pytest.mark.slow) for text in (
        '"api";t=0;r=0', '"api";r=0;pk=:cHJvY2Vzcw==:;t=0', '"r=0;t=90";r=5;t=90, "b";r=0;t=0', "limit=9, remaining=0, reset=0")),
    pytest.param({"RateLimit": '"burst";r=0;t=0, "daily";r=0;t=1'}, 2, marks=pytest.mark.slow),
])
def test_4_waits_as_the_server_asks_and_says_so(filled: Hub, headers: dict[str, str], least: int, caplog: pytest.LogCaptureFixture) -> None:
    filled.inject(Fault(host="hub", method="HEAD", status=429, headers=headers))
    began = time.monotonic()
    assert fetch(filled.url) == CONTENT
    assert least <= time.monotonic() - began < least + 3
    assert (f"to wait until {time.strftime('%Y-%m-%d')}" in caplog.text and "HTTP 429" in caplog.text) == bool(least)


@pytest.mark.parametrize("headers", [
    {"Retry-After": "3600"}, {"RateLimit": '"api";r=0;t=299'}, {"Retry-After": "9" * 400}, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"},
    {"Retry-After": email.utils.formatdate(time.time() + 7200, usegmt=True)},
    {"RateLimit": '"api";'.ljust(491) + "r=0;t=299"},  # 500 characters, which are all that is looked at
    *({"RateLimit": text} for text in (
        '"api";t=299;r=0', '"api";r=0;pk=:cHJvY2Vzcw==:;t=299', '"burst";r=0;t=1, "daily";r=0;t=299', "limit=9, remaining=0, reset=299")),
])
def test_4_a_wait_that_is_too_long_ends_with_when_to_come_back(filled: Hub, headers: dict[str, str]) -> None:
    filled.inject(*(Fault(host="hub", method="HEAD", status=429, headers=headers) for _ in range(9)))
    began = time.monotonic()
    with pytest.raises(hf.HfHubHTTPError, match=r"asks to wait until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"):
        fetch(filled.url)
    assert time.monotonic() - began < 2 and len(filled.seen) == 1


@pytest.mark.parametrize("headers", [
    *({"Retry-After": value} for value in ("Fri, 31 Dec 99999999 23:59:59 GMT", "-5", "\xb2", "1e400", "Fri, 31 Foo", "," * 1000, "1" * 4301 + "x")),
    {"RateLimit": '"api";'.ljust(494) + "r=0;t=999"},
])
def test_4_a_wait_that_is_none(filled: Hub, headers: dict[str, str]) -> None:
    filled.inject(Fault(host="hub", method="HEAD", status=429, headers=headers))
    began = time.monotonic()
    assert fetch(filled.url) == CONTENT and time.monotonic() - began < 2


@pytest.mark.parametrize("chance, waits", [(0.0, [0.3, 0.6, 1.2]), (1.0, [0.36, 0.72, 1.44])])
def test_4_waits_double_and_are_up_to_a_fifth_longer(chance: float, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(hf, "FIRST_WAIT", 0.3)
    monkeypatch.setattr(random, "random", lambda: chance)
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(hf.LocalEntryNotFoundError, match="Connection refused"):
        fetch("http://127.0.0.1:9")
    assert waited == pytest.approx(waits)


@pytest.mark.slow
def test_4_a_wait_that_is_asked_for_costs_no_attempt(filled: Hub) -> None:
    """The patience alone ends it: others behind the same address may use up what comes back."""
    filled.inject(*(Fault(host="hub", method="HEAD", status=429, headers={"Retry-After": "1"}) for _ in range(hf.ATTEMPTS + 1)))
    assert fetch(filled.url) == CONTENT


@pytest.mark.slow
def test_4_a_silent_server_is_not_waited_for_without_a_word(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5.5")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(hf.LocalEntryNotFoundError, match="no whole answer in 7 s"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=7)
    assert caplog.text.count("timed out; asking again") == 1


def test_4_all_waits_end_with_the_patience(filled: Hub) -> None:
    filled.inject(*(Fault(host="hub", method="HEAD", status=503, headers={"Retry-After": "1"}) for _ in range(9)))
    began = time.monotonic()
    with pytest.raises(hf.HfHubHTTPError, match="HTTP 503.*asks to wait until"):
        fetch(filled.url, patience=2.5)
    assert time.monotonic() - began < 2.6 and len(filled.seen) == 3


# --- 5: the environment, as huggingface_hub reads it ---------------------------------------------------------------

ASK = {
    "vendored_hf": "import vendored_hf as hf\nprint(hf.hf_hub_cache(), hf.hf_endpoint(), hf.get_token(), hf.is_offline_mode(), sep='|')",
    "huggingface_hub": "from huggingface_hub import constants as c, get_token\n"
                       "print(c.HF_HUB_CACHE, c.ENDPOINT, get_token(), c.HF_HUB_OFFLINE, sep='|')",
}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "home": {"HF_HOME": "~/x"}, "home by name": {"HF_HOME": "$HOME/x"}, "xdg": {"XDG_CACHE_HOME": "$HOME/c"},
    "cache": {"HF_HUB_CACHE": "~/y", "HF_HOME": "/z"}, "cache by name": {"HF_HUB_CACHE": "${HOME}/y"}, "old cache": {"HUGGINGFACE_HUB_CACHE": "~/old"},
    "both caches": {"HUGGINGFACE_HUB_CACHE": "~/old", "HF_HUB_CACHE": "/new"},
    "token": {"HF_TOKEN": "hf_a"}, "token with blanks": {"HF_TOKEN": " hf_a \n"}, "old token": {"HUGGING_FACE_HUB_TOKEN": "hf_o"},
    "both tokens": {"HF_TOKEN": "hf_a", "HUGGING_FACE_HUB_TOKEN": "hf_o"}, "blank token": {"HF_TOKEN": "  "}, "empty token": {"HF_TOKEN": ""},
    "token's path": {"HF_TOKEN_PATH": "~/t"}, "token's path by name": {"HF_TOKEN_PATH": "$HOME/t"}, "no such path": {"HF_TOKEN_PATH": "/none"},
    "implicit token": {"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
    "endpoint": {"HF_ENDPOINT": "http://h/"},
    "offline": {"HF_HUB_OFFLINE": "1"}, "offline yes": {"HF_HUB_OFFLINE": "yes"}, "offline 2": {"HF_HUB_OFFLINE": "2"},
    "old offline": {"TRANSFORMERS_OFFLINE": "ON"}, "both offline": {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_5_each_variable_means_what_it_means_to_the_real_client(name: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    home = tmp_path / "home"
    for place, token in ((".cache/huggingface/token", "hf_saved\n"), ("t", "hf_elsewhere\n")):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_text(token)
    environment = {**{k: v for k, v in os.environ.items() if k != "HF_HOME"}, "PYTHONPATH": str(ROOT), **ENVIRONMENTS[name]}
    ours, theirs = (
        subprocess.run([sys.executable, "-c", program], env=environment, text=True, capture_output=True, timeout=60) for program in ASK.values()
    )
    assert ours.stdout and ours.stdout == theirs.stdout, ours.stderr + theirs.stderr


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_5_what_is_blank_is_not_set(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the real client would go to http:///org or into the working folder."""
    plain = (hf.hf_hub_cache(), hf.hf_endpoint(), hf.get_token())
    for name in ("HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setenv(name, value)
    assert (hf.hf_hub_cache(), hf.hf_endpoint(), hf.get_token()) == plain
    monkeypatch.setenv("HF_ENDPOINT", f"http://h/{value}")
    assert hf.hf_endpoint() == "http://h"


class Impatient(hf.Hub):
    """Takes down how long it may wait for an answer, and asks nobody."""

    def request(self, *_: Any, timeout: float, **__: Any) -> Any:
        raise hf.HubConnectionError(f"{timeout}")


@pytest.mark.parametrize("value, seconds", [
    ("", 10), ("0", 10), ("0.0", 10), ("7.5", 7.5), ("5.", 5), (" 3 ", 3), ("3600", 3600), ("3601", 3600), ("9" * 30, 3600), ("9" * 31, 10),
    ("0." + "1" * 9, 0.111111111), ("0." + "1" * 10, 10), ("-1", 10), ("1e3", 10), ("nan", 10), ("inf", 10), ("ten", 10),
])
def test_5_seconds_that_an_answer_may_take(value: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Impatient("http://127.0.0.1:9")
    for name, ask in (
        ("HF_HUB_ETAG_TIMEOUT", lambda: hf.file_metadata(hub, "http://127.0.0.1:9", REPO, PATH, "main", 1)),
        ("HF_HUB_DOWNLOAD_TIMEOUT", lambda: hf.Source(hub, hf.HfFileMetadata(None, None, 9, "http://127.0.0.1:9/x")).open(0, 9)),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(hf.HubConnectionError) as raised:
            ask()
        assert float(str(raised.value)) == seconds
        monkeypatch.delenv(name)


def test_5_a_cache_folder_below_home(filled: Hub, tmp_path: Path) -> None:
    assert fetch(filled.url, cache_dir="~/mine") == fetch(filled.url, cache_dir="$HOME/named") == CONTENT
    assert blobs(tmp_path / "home/mine") and blobs(tmp_path / "home/named") and not Path("~").exists() and not Path("$HOME").exists()
    assert fetch(filled.url, cache_dir="~/mine", local_files_only=True) == CONTENT


def test_5_no_home(filled: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container whose user has no entry in passwd."""
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="there is no home folder: set HF_HUB_CACHE"):
        fetch(filled.url)
    with pytest.raises(OSError, match="there is no home folder"):
        fetch(filled.url, cache_dir="~/cache")
    assert not Path("~").exists() and hf.get_token() is None
    ran = run("--mirror", filled.url, "--repo", REPO, "--path", PATH)
    assert ran.returncode == 3 and "--cache-dir DIR" in ran.stderr and "--stream" in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    assert fetch(filled.url, cache_dir=tmp_path / "cache") == CONTENT


# --- 6: proxies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden by policy"])
def test_6_a_proxy_that_refuses_is_named(scheme: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda request: head(status, Content_Length=0)) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url.replace("//", "//user:s3cret@"))
        with pytest.raises(OSError) as raised:
            fetch(f"{scheme}://hub.example")
        assert proxy.requests and {request.method for request in proxy.requests} == {"CONNECT" if scheme == "https" else "HEAD"}
    text = str(raised.value)
    assert f"the proxy {proxy.url}, which {scheme.upper()}_PROXY names" in text and set(status.split()) <= set(re.findall(r"\w+", text)), text
    assert "s3cret" not in text and "hub.example" in text and ("put user:password@ before" in text) == status.startswith("407")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_6_a_proxy_that_is_not_there_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    with pytest.raises(hf.LocalEntryNotFoundError, match="by way of the proxy http://127.0.0.1:9, which ALL_PROXY names: Connection refused"):
        fetch(f"{scheme}://hub.example")


def test_6_certificates_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/none/company.pem")
    with pytest.raises(hf.LocalEntryNotFoundError, match="invalid path: /none/company.pem"):
        fetch("https://127.0.0.1:9")


@pytest.mark.parametrize("status, headers, text", [
    (401, {}, "no such repo, or a private one: check its name, and HF_TOKEN"),
    (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "the token is not valid: check HF_TOKEN"),
    (401, {"X-Error-Code": "Odd", "X-Error-Message": "no\x07"}, "the server refuses (no): check HF_TOKEN"),
    (403, {}, "the server refuses (Forbidden): check HF_TOKEN"), (404, {}, "Not Found"),
])
def test_6_a_server_that_refuses(filled: Hub, status: int, headers: dict[str, str], text: str) -> None:
    filled.inject(Fault(host="hub", method="HEAD", status=status, headers=headers))
    with pytest.raises(hf.HfHubHTTPError) as raised:
        fetch(filled.url)
    assert str(raised.value) == f"HTTP {status} for {filled.url}/{REPO}/resolve/main/{PATH}: {text}" and raised.value.status_code == status


def test_6_a_proxy_or_a_server_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda request: head("403 No", Content_Length=0)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(hf.HfHubHTTPError, match=r"names: it or the server refuses \(No\): check HF_TOKEN$"):
            fetch("http://hub.example")


def test_6_socks_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socks", None)
    for name in [name for name in sys.modules if name.startswith("urllib3.contrib.socks")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("https_proxy", "socks5h://127.0.0.1:9")
    with pytest.raises(hf.LocalEntryNotFoundError, match="SOCKS: pip install PySocks"):
        fetch("https://hub.example")


def test_6_where_there_is_no_proxy_none_is_named(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,127.0.0.2")
    assert fetch(filled.url) == CONTENT
    filled.inject(Fault(host="hub", method="HEAD", status=403), *(Fault(host="hub", method="HEAD", hang_up=True) for _ in range(9)))
    for _ in range(2):
        with pytest.raises(OSError) as raised:
            fetch(filled.url, "config.yaml")
        assert "the proxy" not in str(raised.value)


def test_6_the_reason_is_the_connection_s_and_not_what_the_caller_handles(filled: Hub) -> None:
    """Who fetches a file because it is missing here handles that error still, and Python hangs it behind each that is raised meanwhile."""
    known = hf.HfFileMetadata(None, None, len(CONTENT), hf.hf_hub_url(REPO, PATH, endpoint=filled.url))
    with open_remote(hf.Hub(filled.url), filled.url, REPO, PATH, known=known) as file:
        try:
            Path("missing").read_bytes()
        except FileNotFoundError:
            with pytest.raises(hf.LocalEntryNotFoundError, match="Connection refused") as refused:
                fetch("http://127.0.0.1:9")
            filled.inject(*(Fault(cut_after=1000) for _ in range(9)))
            with pytest.raises(hf.HubConnectionError, match="the connection broke 4 times, .*: IncompleteRead$") as broken:
                file.read()
    for names in (refused.value.__cause__.__cause__, broken.value.__cause__):
        assert "Error" in str(names) and "FileNotFoundError" not in str(names)


# --- 8: an ETag that is another hash -------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("kind", ["git", "sha1", "none"])
@pytest.mark.parametrize("early", [False, True])
def test_8_forty_digits_beside_a_commit(
    kind: str, secure: bool, early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    digits = {"git": hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT), "sha1": hashlib.sha1(CONTENT), "none": hashlib.sha1(b"other")}[kind].hexdigest()
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))

    def answer(request: Request) -> bytes:
        return part(CONTENT, request, ETag=f'"{digits}"', X_Repo_Commit=COMMIT)[: 700_000 if early and len(server.requests) == 2 else None]

    with scripted(answer, context if secure else None) as server:
        if kind != "none" or secure:
            file = hf.hf_hub_file(REPO, PATH, endpoint=server.url)
            named = SHA256 if kind == "none" else None  # as what nobody names it is kept under its own sha256
            assert Path(file.path).read_bytes() == CONTENT and (file.commit_hash, file.sha256) == (COMMIT, named)
            assert ("could not verify" in caplog.text) == (kind == "none")
        else:
            with pytest.raises(hf.ConsistencyError, match=f"the server had said {digits}"):
                fetch(server.url)
            assert not blobs()


@pytest.mark.parametrize("secure", [False, True])
def test_8_two_files_with_one_etag(secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx makes it of date and size: what a script laid out in one second may have one. Each file is its own all the same."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    files = {"a.npz": CONTENT, "b.npz": CONTENT[::-1]}
    etag = "ab" * 20 if secure else "65f1a2b3-16e360"

    def answer(request: Request) -> bytes:
        return part(files[request.target.rpartition("/")[2]], request, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    with scripted(answer, context if secure else None) as server:
        for _ in range(2):
            assert {path: fetch(server.url, path) for path in files} == files
    assert [fetch("http://127.0.0.1:9", path, revision=COMMIT) for path in files] == [*files.values()]


def test_8_a_sha256_that_does_not_fit_is_an_end_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with scripted(lambda r: part(CONTENT, r, ETag=f'"{"a" * 64}"', X_Repo_Commit=COMMIT), context) as server:
        with pytest.raises(hf.ConsistencyError, match="the server had said a{64}"):
            fetch(server.url)
    assert not blobs()
