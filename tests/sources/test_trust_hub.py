# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 11, vendored_hf's rows: never a wrong byte in the cache, never a secret out. The number of the row stands in each name."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import vendored_hf as hf
from tests.support.hub import Fault, Hub
from tests.support.places import ROOT
from tests.support.scripted import Request, head, part, scripted, whole

REPO, PATH, TOKEN = "org/weights", "a/params.npz", "hf_thetokenthatnobodysees"
CONTENT = random.Random(11).randbytes(1_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def filled(hub: Hub) -> Hub:
    hub.add(REPO, PATH, CONTENT)
    hub.add(REPO, "config.yaml", b"a: 1\n")
    return hub


def fetch(endpoint: str, path: str = PATH, **options: Any) -> bytes:
    return Path(hf.hf_hub_download(REPO, path, endpoint=endpoint, **options)).read_bytes()


def blobs() -> list[Path]:
    return [path for path in hf.hf_hub_cache().glob("*/blobs/*") if not path.name.endswith(".incomplete")]


def netrc(text: str) -> None:
    place = Path(os.environ["HOME"]) / ".netrc"
    place.write_text(text)
    place.chmod(0o600)


# --- 10: a file that changes between two answers -----------------------------------------------------------------

DATES = ["Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 22 Oct 2015 07:28:00 GMT"]


@pytest.mark.parametrize("before, after, changed", [
    ({"ETag": '"a"'}, {"ETag": '"b"'}, True),
    ({"ETag": '"a"', "Last_Modified": DATES[0]}, {"ETag": '"a"', "Last_Modified": DATES[1]}, False),  # a cluster's nodes
    ({"Last_Modified": DATES[0]}, {"Last_Modified": DATES[1]}, True),
    ({"ETag": '"a"', "Last_Modified": DATES[0]}, {"Last_Modified": DATES[1]}, True),
    ({"Last_Modified": DATES[0]}, {"Last_Modified": DATES[0]}, False),
    ({}, {"Last_Modified": DATES[0]}, False),
    ({}, {"Content_Range": f"bytes 500-999/{len(CONTENT) + 1}"}, True),
    ({}, {"Content_Range": f"bytes 500-999/{len(CONTENT) - 1}"}, True),
])
def test_10_a_change_is_seen(before: dict[str, str], after: dict[str, str], changed: bool) -> None:
    with scripted(lambda request: part(CONTENT, request, **(before if len(server.requests) == 1 else after))) as server:
        source = hf.Source(hf.Hub(server.url), hf.HfFileMetadata(None, None, len(CONTENT), f"{server.url}/x"))
        assert not source.watched
        assert source.open(0, 500).content == CONTENT[:500]
        assert source.watched == bool(before)
        if changed:
            with pytest.raises(hf.ConsistencyError, match="it changed|the server sent"):
                source.open(500, 1000)
        else:
            assert source.open(500, 1000).content == CONTENT[500:1000]


def test_10_what_a_hash_names_is_watched() -> None:
    source = hf.Source(hf.Hub("http://127.0.0.1:9"), hf.HfFileMetadata(None, SHA256, len(CONTENT), "http://127.0.0.1:9/x"))
    assert source.watched


@pytest.mark.parametrize("connections", [1, 4])
def test_10_a_download_is_of_one_version(connections: int, several: None) -> None:
    """No ETag, no hash: the date alone tells that the file was replaced after the second answer."""
    def answer(request: Request) -> bytes:
        date = DATES[len(server.requests) > 2]
        return part(CONTENT, request, Last_Modified=date)[: 700_000 if len(server.requests) == 2 else None]

    with scripted(answer) as server, pytest.raises(hf.ConsistencyError, match="it changed"):
        fetch(server.url, connections=connections)
    assert not blobs()


# --- 11: temporary names -----------------------------------------------------------------------------------------

TWO_WRITERS = """
import sys, os, vendored_hf
for turn in range(40):
    with vendored_hf.replacing(sys.argv[1]) as file:
        for _ in range(50):
            file.write(sys.argv[2].encode() * 2000)
print(os.getpid())
"""


def test_11_two_processes_of_one_pid_write_one_file(tmp_path: Path) -> None:
    """Containers: the process is 1 in each."""
    prefix = ["unshare", "--pid", "--fork"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no unshare --pid here")
    target = tmp_path / "reference.json"
    writers = [
        subprocess.Popen([*prefix, sys.executable, "-c", TWO_WRITERS, str(target), letter], cwd=ROOT, text=True, stdout=subprocess.PIPE)
        for letter in "ab"
    ]
    contents = set()
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            contents.add(target.read_bytes())
    assert [writer.communicate()[0].strip() for writer in writers] == ["1", "1"]
    assert contents | {target.read_bytes()} <= {b"a" * 100_000, b"b" * 100_000}
    assert [name for name in os.listdir(tmp_path) if "reference" in name] == ["reference.json"] and all(writer.returncode == 0 for writer in writers)


def test_11_a_name_that_is_taken_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"\1" * count)
    victim, planted = tmp_path / "victim", tmp_path / f"target.{'01' * 8}.tmp"
    victim.write_text("mine")
    for plant in (lambda: planted.symlink_to(victim), lambda: planted.write_text("mine")):
        plant()
        with pytest.raises(FileExistsError), hf.replacing(tmp_path / "target") as file:
            file.write(b"theirs")
        assert victim.read_text() == "mine" and not (tmp_path / "target").exists()
        planted.unlink(missing_ok=True)


@pytest.mark.parametrize("place", ["models--org--weights/blobs/{}.parts.incomplete", ".locks/models--org--weights/{}.lock"])
def test_11_no_planted_link_is_written_through(filled: Hub, tmp_path: Path, place: str) -> None:
    victim = tmp_path / "victim"
    link = hf.hf_hub_cache() / place.format(SHA256)
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        fetch(filled.url)
    assert not victim.exists() and not blobs()


# --- 18: what is put into the cache has the length and the hash that its GET told --------------------------------


@pytest.mark.parametrize("told", [{"Content_Length": 0}, {}, {"Content_Length": "nonsense"}, {"Content_Length": "000"}])
def test_18_a_head_without_the_length(told: dict[str, object]) -> None:
    def answer(request: Request) -> bytes:
        return head("200 OK", ETag='"x"', **told) if request.method == "HEAD" else part(CONTENT, request)

    with scripted(answer) as server:
        assert fetch(server.url) == CONTENT


def test_18_an_empty_file_is_empty_because_its_get_says_so(filled: Hub, tmp_path: Path) -> None:
    filled.add(REPO, "empty.yaml", b"")
    assert fetch(filled.url, "empty.yaml") == b""
    assert [seen.method for seen in filled.seen] == ["HEAD", "GET", "GET"]
    with scripted(lambda request: whole(b"", request)) as server:
        assert fetch(server.url, "empty.npz", cache_dir=tmp_path / "other") == b""
        assert [r.method for r in server.requests] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize("chunked", [False, True])
def test_18_a_caller_who_says_that_it_is_empty(chunked: bool) -> None:
    body = head("200 OK", Transfer_Encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    with scripted(lambda request: body if chunked else whole(b"abc", request)) as server:
        known = hf.HfFileMetadata(None, None, 0, f"{server.url}/x")
        with pytest.raises(hf.ConsistencyError, match="had said 0|more came"):
            fetch(server.url, known=known)
    assert not blobs()


@pytest.mark.parametrize("length", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_18_head_and_get_do_not_agree(length: int) -> None:
    with scripted(lambda r: head("200 OK", Content_Length=length) if r.method == "HEAD" else whole(CONTENT, r)) as server:
        with pytest.raises(hf.ConsistencyError, match="after it had said"):
            fetch(server.url)
    assert not blobs()


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("told", ["", "bytes 0-5/6", "bytes 0-1/*", "items 1-2/3"])
def test_18_a_206_that_is_not_what_was_asked_for(told: str, connections: int, several: None) -> None:
    """The first answer breaks off, or there are several; each Range gets bytes of another place."""
    def answer(request: Request) -> bytes:
        if request.span is None:
            return whole(CONTENT, request)[: 700_000 if request.method == "GET" else None]
        more = {"Content_Range": told} if told else {}
        return head("206 Partial Content", Content_Length=request.span[1] - request.span[0], **more) + CONTENT[: request.span[1] - request.span[0]]

    with scripted(answer) as server, pytest.raises(hf.ConsistencyError, match="the server sent"):
        fetch(server.url, connections=connections)
    assert not blobs()


@pytest.mark.parametrize("etag", [f'"{SHA256}"', f'W/"{SHA256}"'])
def test_18_the_hash_that_only_the_get_tells(etag: str, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy drops the headers of HEAD."""
    def answer(request: Request) -> bytes:
        return whole(content, request, **({"ETag": etag} if request.method == "GET" else {}))

    with scripted(answer) as server:
        content = CONTENT[::-1]
        with pytest.raises(hf.ConsistencyError, match=SHA256):
            fetch(server.url)
        assert not blobs()
        content = CONTENT
        assert fetch(server.url) == CONTENT and "could not verify" not in caplog.text


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("chunked", [False, True])
def test_18_an_answer_that_ends_early_without_its_length(connections: int, chunked: bool, several: None) -> None:
    """Whole or part, the answers stop at 400,000 bytes and do not say that there is more."""
    def answer(request: Request) -> bytes:
        if request.method == "HEAD":
            return whole(CONTENT, request)
        start, stop = request.span or (0, len(CONTENT))
        body = CONTENT[start : min(stop, start + 400_000)]
        told = {"Content_Range": f"bytes {start}-{stop - 1}/{len(CONTENT)}"} if request.span else {}
        if chunked:
            told["Transfer_Encoding"] = "chunked"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return head("206 Partial Content" if request.span else "200 OK", **told) + body

    with scripted(answer) as server:
        assert fetch(server.url, connections=connections) == CONTENT


@pytest.mark.parametrize("connections", [1, 4])
def test_18_a_200_that_holds_the_part_alone(connections: int, several: None) -> None:
    """Its length is not told; taken for the start of the whole, it would put other bytes in their place."""
    def answer(request: Request) -> bytes:
        if request.method == "HEAD":
            return whole(CONTENT, request)
        start, stop = request.span or (0, len(CONTENT))
        if request.span is None and len(server.requests) == 2:
            stop = 400_000
        return head("200 OK") + CONTENT[start:stop]

    with scripted(answer) as server:
        assert fetch(server.url, connections=connections) == CONTENT


@pytest.mark.parametrize("body, outcome", [
    (b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT) + 1, CONTENT + b"x"), "more came"),
    (b"%x\r\n%b\r\n1\r\nx\r\n0\r\n\r\n" % (len(CONTENT), CONTENT), "more came"),
    (b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT), "the connection broke"),  # it may have had more to say
    (b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT) - 1, CONTENT[:-1]), "the connection broke"),
    (b"-5\r\nabcde\r\n0\r\n\r\n", "the connection broke"),
    (b"zz\r\nabcde\r\n0\r\n\r\n", "the connection broke"),
])
def test_18_more_or_fewer_bytes_than_told(body: bytes, outcome: str) -> None:
    with scripted(
        lambda r: whole(CONTENT, r) if r.method == "HEAD" else head("200 OK", Transfer_Encoding="chunked") + body
    ) as server, pytest.raises((hf.ConsistencyError, hf.HubConnectionError), match=outcome):
        fetch(server.url)
    assert not blobs()


def test_18_bytes_behind_the_answer_are_none_of_it() -> None:
    with scripted(lambda request: whole(CONTENT, request) + b"HTTP/1.1 200 OK\r\n\r\nmore") as server:
        assert fetch(server.url) == CONTENT


@pytest.mark.parametrize("pieces, answers", [
    ([0] * 9, 4), ([1, *[0] * 9], 4), ([0, 1, *[0] * 9], 5), ([0, 0.75, *[0] * 9], 4), ([0, 0, 0, 1, 1, *[0] * 9], 8),
    ([1, 1, 1, 1, 1], None), ([0, 0, 0, 2, 0, 0], None),
])
def test_18_answers_that_break_are_counted_until_a_piece_has_come(pieces: list[float], answers: int | None) -> None:
    """Each ends after so many pieces. Four that bring less than one are the end; one that brings as much is the first of four again."""
    def answer(request: Request) -> bytes:
        told, end, body = part(CONTENT, request).partition(b"\r\n\r\n")
        return told + end + (body[: int(left.pop(0) * hf.PIECE)] if left and request.method == "GET" else body)

    left = list(pieces)
    with scripted(answer) as server:
        if answers is None:
            assert fetch(server.url) == CONTENT and not left
        else:
            with pytest.raises(hf.HubConnectionError, match=f"the connection broke 4 times, last at byte {int(sum(pieces) * hf.PIECE)}: "):
                fetch(server.url)
            assert len(server.requests) == 1 + answers
    assert len(blobs()) == (answers is None)


# --- 19: one parser decides and sends ----------------------------------------------------------------------------

LOCATIONS = [
    r"http://{evil}\@{hub}/x", r"http://{evil}\\@{hub}/x", r"//{evil}\@{hub}/x", r"http:\\{evil}/x", r"\\{evil}/x", r"/\{evil}/x",
    r"http://{hub}\@{evil}/x", "http://{hub}@{evil}/x", "http://user:word@{evil}/x", "http://{hub}:80@{evil}/x", "//{hub}@{evil}/x",
    "http://{evil}\t@{hub}/x", "http://{evil}\x00@{hub}/x", "http://{evil}\x1f/x", "/\t/{evil}/x", "http://{evil}\x7f@{hub}/x",
    "http://@{hub}/x", "http://user@{hub}/x",
]
FOLLOWED = [
    "http://{evil}/x", "//{evil}/x", "http://{evil}/@{hub}/x", "http://{evil}?@{hub}/x", "http://{evil}#@{hub}/x", "HTTP://{evil}/x",
    "http://{evil}/%5C@{hub}/x",
]


@pytest.mark.parametrize("login", ["token", "netrc", "address"])
@pytest.mark.parametrize("location", [*LOCATIONS, *FOLLOWED])
def test_19_no_login_leaves_the_server(location: str, login: str) -> None:
    if login == "netrc":
        netrc("machine 127.0.0.1 login user password secret\ndefault login user password secret\n")
    with scripted(lambda request: whole(b"abc", request, X_Repo_Commit="0" * 40)) as evil:
        netloc = evil.url.removeprefix("http://").replace("127.0.0.1", "localhost")
        with scripted(
            lambda r: whole(b"abc", r) if r.method == "HEAD"
            else head("302 Found", Location=location.format(evil=netloc, hub=hub.url.removeprefix("http://")), Content_Length=0)
        ) as hub:
            endpoint = hub.url.replace("//", "//user:secret@") if login == "address" else hub.url
            try:
                assert fetch(endpoint, token=TOKEN if login == "token" else None) == b"abc"
                followed = True
            except OSError as error:
                followed = False
                assert "secret" not in str(error) and str(error).isprintable(), error
        ours = {"token": f"Bearer {TOKEN}"}.get(login, "Basic " + base64.b64encode(b"user:secret").decode())
        assert {request.headers.get("authorization") for request in hub.requests} == {ours}
        assert {request.headers.get("authorization") for request in evil.requests} <= {None}
        assert followed == (location in FOLLOWED) and bool(evil.requests) == followed


def test_19_the_server_by_another_spelling_is_the_server(filled: Hub) -> None:
    filled.repos[REPO].token = TOKEN
    port = filled.url.rpartition(":")[2]
    address = f"HTTP://127.0.0.1:{int(port):06d}/{REPO}/resolve/main/config.yaml"
    filled.inject(Fault(host="hub", method="HEAD", status=301, headers={"Location": address}))
    assert fetch(filled.url, "config.yaml", token=TOKEN) == b"a: 1\n"
    assert {seen.headers.get("Authorization") for seen in filled.seen} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("endpoint", [r"http://127.0.0.1:9\@127.0.0.1:8", "http://127.0.0.1:9\t", "http://127.0.0.1\x1b[2J", "http:/127.0.0.1", "ftp://x", ""])
def test_19_an_endpoint_that_two_parsers_read_differently(endpoint: str) -> None:
    with pytest.raises(hf.HubConnectionError, match="cannot reach") as raised:
        hf.Hub(endpoint)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_19_each_redirect_is_followed_by_us_alone(filled: Hub, status: int) -> None:
    with Hub() as other:
        other.add(REPO, "config.yaml", b"a: 1\n")
        moved = {"Location": f"{other.url}/{REPO}/resolve/main/config.yaml"}
        filled.inject(Fault(host="hub", status=status, headers=moved))
        assert fetch(filled.url, "config.yaml", token=TOKEN) == b"a: 1\n"
        assert [(s.method, s.headers.get("Authorization")) for s in other.seen] == [("GET", None)]
    assert [s.headers.get("Authorization") for s in filled.seen] == [f"Bearer {TOKEN}"] * 2


def test_19_a_redirect_s_body_is_nobody_s_business(filled: Hub) -> None:
    """requests would read it whole, however long it is, to prepare the next request by its own parser."""
    filled.inject(Fault(host="hub", status=302, headers={"Location": f"/{REPO}/resolve/main/config.yaml"}, body=b"x" * 100, stall=4))
    began = time.monotonic()
    assert fetch(filled.url, "config.yaml") == b"a: 1\n" and time.monotonic() - began < 3


@pytest.mark.parametrize("host, warned", [("127.evil.example", True), ("127.0.0.1.example", True), ("127.0.0.1", False), ("127.9.9.9", False)])
def test_19_a_host_that_is_called_like_loopback(host: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    hf.Hub(f"http://{host}", TOKEN)
    assert ("in the clear" in caplog.text) == warned


# --- 20: no implicit token --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["1", "true", "YES", "on"])
def test_20_no_login_that_nobody_gave(filled: Hub, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", flag)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    (Path(os.environ["HF_HOME"])).mkdir()
    (Path(os.environ["HF_HOME"]) / "token").write_text(TOKEN)
    netrc(f"default login user password {TOKEN}\n")  # git's way to the Hub: the password is a token
    fetch(filled.url)
    assert {seen.headers.get("Authorization") for seen in filled.seen} == {None}
    filled.seen.clear()
    fetch(filled.url, "config.yaml", token="hf_given")
    assert {seen.headers.get("Authorization") for seen in filled.seen} == {"Bearer hf_given"}


def test_20_the_real_client_sends_no_more_than_we_do(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    netrc(f"default login user password {TOKEN}\n")
    environment = {**os.environ, "HF_ENDPOINT": filled.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1",
                   "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "NO_PROXY": "127.0.0.1,127.0.0.2"}
    program = f"from huggingface_hub import hf_hub_download; hf_hub_download({REPO!r}, {PATH!r})"
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert {seen.headers.get("authorization", seen.headers.get("Authorization")) for seen in filled.seen} == {None}


# --- 21: https stays https --------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "127.0.0.2").configure_cert(context)
    return context


@pytest.fixture
def tls_hub(context: ssl.SSLContext) -> Iterator[Hub]:
    with Hub(tls=context) as hub:
        hub.add(REPO, PATH, CONTENT)
        hub.add(REPO, "config.yaml", b"a: 1\n")
        yield hub


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("hops", [1, 2])
def test_21_https_is_not_left(tls_hub: Hub, filled: Hub, method: str, hops: int) -> None:
    inside = {"Location": f"{tls_hub.url}/{REPO}/resolve/main/config.yaml?again"}
    outside = {"Location": f"{filled.url}/{REPO}/resolve/main/config.yaml?signature=secret"}
    tls_hub.inject(*(Fault(host="hub", method=method, status=302, headers=h) for h in [inside, outside][2 - hops :]))
    with pytest.raises(OSError, match="leaves https") as raised:
        fetch(tls_hub.url, "config.yaml", token=TOKEN)
    assert not filled.seen and "secret" not in str(raised.value)


def test_21_http_may_become_https(tls_hub: Hub, filled: Hub) -> None:
    filled.inject(Fault(host="hub", status=308, headers={"Location": f"{tls_hub.url}/{REPO}/resolve/main/config.yaml"}))
    assert fetch(filled.url, "config.yaml", token=TOKEN) == b"a: 1\n"
    assert [s.headers.get("Authorization") for s in tls_hub.seen] == [None]


# --- 22: what may be shown --------------------------------------------------------------------------------------


@pytest.mark.parametrize("address, shown", [
    ("https://host/a/b", "https://host/a/b"), ("https://host:8443/a?sig=secret#x", "https://host:8443/a"), ("host/a?secret", "host/a"),
    ("https://user:secret@host/a", "https://host/a"), ("https://u@x:secret@host", "https://host"), ("u:secret@host:1/a", "host:1/a"),
    ("https://[::1]:80/a", "https://[::1]:80/a"), ("https://secret@host", "https://host"),
    *((f"{scheme}user:sec{mark}ret@host/a", f"{scheme}...") for scheme in ("http://", "socks5://", "") for mark in "/#?\\"),
    ("https://user:12/secret@host/a", "https://..."), ("https://host/a?mail=me@secret&sig=secret", "https://..."),
    ("https://host\x1b[2J/\x07\u202ea", "https://host[2J/a"), ("", ""), ("https://user:se\ncret@host/", "https://host/"),
])
def test_22_addresses(address: str, shown: str) -> None:
    assert hf.shown(address) == shown


@pytest.mark.parametrize("text, said", [
    ("see https://user:secret@host/a?sig=secret for more", "see https://host/a for more"), ("/x?sig=secret is gone", "/x is gone"),
    ("user:secret@host no", "host no"), ("a\x1b]0;owned\x07b", "a]0;ownedb"), ("why? 2 :// 3", "why? 2 :// 3"), ("x" * 9999, "x" * 200),
])
def test_22_words_of_others(text: str, said: str) -> None:
    assert hf.said(text) == said


SECRETS = ("s3cret", "\x1b", "\x07")


def chain(error: BaseException) -> str:
    """What --debug prints, and all that hangs on the exception besides."""
    texts, waiting = ["".join(traceback.format_exception(type(error), error, error.__traceback__))], [error]
    while waiting:
        one = waiting.pop()
        texts.append(f"{one} {one.args}")
        waiting += [next_ for next_ in (one.__cause__, one.__context__) if next_ is not None]
    return "\n".join(texts)


def refused(hub: Hub) -> None:
    hub.inject(*(Fault(host="hub", status=302, headers={"Location": "http://127.0.0.1:9/x?signature=s3cret"}) for _ in range(9)))


def cut(hub: Hub) -> None:
    hub.inject(*(Fault(cut_after=1000) for _ in range(9)))


def rude(hub: Hub) -> None:
    hub.inject(Fault(host="hub", method="HEAD", status=400, headers={"X-Error-Message": "see http://u:s3cret@h/?s3cret \x1b[2J"}))


def missing(hub: Hub) -> None:
    hub.inject(Fault(status=404, headers={"X-Error-Message": "/a?signature=s3cret\x07"}))


def hung_up(hub: Hub) -> None:
    hub.inject(*(Fault(host="hub", method="HEAD", hang_up=True) for _ in range(9)))


def malformed(hub: Hub) -> None:
    hub.inject(Fault(host="hub", status=302, headers={"Location": "http://[::1/x?signature=s3cret\x1b[2J"}))


def unsent(hub: Hub) -> None:
    hub.inject(Fault(host="hub", status=302, headers={"Location": "file:///x?signature=s3cret"}))


@pytest.mark.parametrize("spoil", [refused, cut, rude, missing, hung_up, malformed, unsent])
@pytest.mark.parametrize("query", ["", "?key=s3cret"])
def test_22_no_secret_in_a_chain_of_exceptions(filled: Hub, spoil: Any, query: str) -> None:
    spoil(filled)
    hub = hf.Hub(filled.url.replace("//", "//user:s3cret@"))
    url = hf.hf_hub_url(REPO, PATH, endpoint=filled.url.replace("//", "//user:s3cret@")) + query
    with pytest.raises(OSError) as raised:
        hub.request("HEAD", url, timeout=2)
        hf.download(hub, hf.HfFileMetadata(None, SHA256, len(CONTENT), url), Path(os.environ["HOME"]) / "x")
    assert not [secret for secret in SECRETS if secret in chain(raised.value)], chain(raised.value)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


@pytest.mark.parametrize("endpoint", [
    "http://user:s3cret@127.0.0.1:9", "http://user:s3cret/x@127.0.0.1:9", "http://user:x#s3cret@127.0.0.1:9", "http://user:x?s3cret@127.0.0.1:9",
    "http://127.0.0.1:9/?key=s3cret", "user:s3cret@127.0.0.1", "ftp://user:s3cret@x", "http://user:s3cret@[::1", "http://user:s3cret\x1b@x/", "http://user:s3cret\\@x/",
    "http://user:s3cret@\u20ac\u3002.example/", "http://user:s3cret@127.0.0.1:99999",
])
@pytest.mark.parametrize("cached", [False, True])
def test_22_no_secret_of_an_endpoint(endpoint: str, cached: bool, filled: Hub, caplog: pytest.LogCaptureFixture) -> None:
    if cached:
        fetch(filled.url)
    try:
        fetch(endpoint)
    except OSError as error:
        assert not [secret for secret in SECRETS if secret in chain(error)], chain(error)
    assert not [secret for secret in SECRETS if secret in caplog.text]


@pytest.mark.parametrize("proxy", [
    "http://user:s3cret@127.0.0.1:9", "http://user:s3cret/x@127.0.0.1:9", "http://user:x#s3cret@127.0.0.1:9", "http://user:x?s3cret@127.0.0.1:9",
    "user:s3cret@127.0.0.1:9", "socks5://user:s3cret@127.0.0.1:9", "http://user:s3cret@[::1",
])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_22_no_secret_of_a_proxy(proxy: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    with pytest.raises(OSError) as raised:
        fetch(f"{scheme}://hub.example")
    assert "by way of the proxy" in str(raised.value) and f"{scheme.upper()}_PROXY" in str(raised.value), raised.value
    assert "s3cret" not in chain(raised.value), chain(raised.value)


# --- what no test checked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_sends_nothing(filled: Hub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"local_files_only": True} if how.islower() else {}
    path = hf.hf_hub_download(REPO, PATH, endpoint=filled.url)
    hub = hf.Hub(filled.url)
    filled.seen.clear()
    if not options:
        monkeypatch.setenv(how, "1")
    assert fetch(filled.url, connections=4, token=TOKEN, **options) == CONTENT
    assert hf.hf_hub_file(REPO, PATH, endpoint=filled.url, connections=4, **options).path == path
    with pytest.raises(hf.LocalEntryNotFoundError, match="switched off"):
        fetch(filled.url, "config.yaml", connections=4, token=TOKEN, **options)
    if not options:  # nor does anybody else by way of this module
        with pytest.raises(hf.OfflineModeIsEnabled):
            hub.request("HEAD", filled.url, timeout=1)
    assert not filled.seen


@pytest.mark.parametrize("revision", ["..", "../..", "a/../..", "/", "/a", "a/", "a//b", ".", "a\\b", "a\nb", "a/./b"])
@pytest.mark.parametrize("what", ["revision", "path"])
def test_a_name_that_leads_elsewhere(filled: Hub, revision: str, what: str) -> None:
    names: dict[str, Any] = {"filename": revision} if what == "path" else {"filename": PATH, "revision": revision}
    for call in (hf.try_to_load_from_cache, hf.hf_hub_file, hf.hf_hub_url):
        with pytest.raises(hf.HFValidationError, match=f"no {what}"):
            call(REPO, **names)
    assert not filled.seen


@pytest.mark.parametrize("repo", ["", "a/b/c", "../a", "a/..", "a--b", "a/b\n", "a//b", "/a", "a/", "a..b/c", "\u0430/b"])
def test_a_repo_that_leads_elsewhere(repo: str) -> None:
    with pytest.raises(hf.HFValidationError, match="no repo id"):
        hf.hf_hub_url(repo, PATH)


@pytest.mark.parametrize("fields", [
    {"etag": "a/b"}, {"etag": "../x"}, {"etag": ".."}, {"etag": "a" * 129}, {"etag": "a\n"}, {"commit_hash": "main"}, {"commit_hash": "A" * 40},
    {"commit_hash": "a" * 40 + "\n"}, {"size": -1},
])
def test_metadata_that_a_caller_makes(fields: dict[str, Any]) -> None:
    with pytest.raises(hf.FileMetadataError, match="that no file has"):
        hf.HfFileMetadata(**{"commit_hash": None, "etag": None, "size": 1, "location": "http://x", **fields})


@pytest.mark.parametrize("text", ["{}\n", "{}", " {} \r\n"])
def test_a_ref_that_ends_in_a_newline(filled: Hub, text: str) -> None:
    path = hf.hf_hub_download(REPO, PATH, endpoint=filled.url)
    commit = filled.repos[REPO].refs["main"]
    (hf.hf_hub_cache() / "models--org--weights/refs/main").write_text(text.format(commit))
    assert hf.try_to_load_from_cache(REPO, PATH) == path
    assert hf.hf_hub_file(REPO, PATH, local_files_only=True).commit_hash == commit


@pytest.mark.parametrize("text", ["..", ".", "../snapshots", "main", "0" * 39, "0" * 40 + "/..", ""])
def test_a_ref_that_names_no_commit(filled: Hub, text: str) -> None:
    folder = Path(hf.hf_hub_download(REPO, PATH, endpoint=filled.url)).parents[3]
    shutil.copytree(folder / "snapshots" / filled.repos[REPO].refs["main"] / "a", folder / "a")
    (folder / "refs/main").write_text(text)
    assert hf.try_to_load_from_cache(REPO, PATH) is None


@pytest.mark.parametrize("below", ["snapshots", "snapshots/" + "1" * 40, "blobs", "a/snapshots/snapshots"])
def test_a_cache_below_a_folder_of_such_a_name(filled: Hub, tmp_path: Path, below: str) -> None:
    filled.add(REPO, "snapshots/" + "2" * 40 + "/x.npz", CONTENT)
    commit = filled.repos[REPO].refs["main"]
    for path in (PATH, "config.yaml", "snapshots/" + "2" * 40 + "/x.npz"):
        file = hf.hf_hub_file(REPO, path, endpoint=filled.url, cache_dir=tmp_path / below)
        assert (file.commit_hash, file.sha256) == (commit, None if path == "config.yaml" else SHA256)
        assert hf.hf_hub_file(REPO, path, cache_dir=str(tmp_path / below), local_files_only=True) == file


def test_a_branch_that_looks_like_a_commit_s_folder_is_no_commit() -> None:
    with scripted(lambda request: part(b"abc", request)) as server:
        file = hf.hf_hub_file(REPO, PATH, endpoint=server.url, revision="snapshots/" + "1" * 40)
    assert file.commit_hash is None and file.sha256 == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("size, first", [((64 << 20) - 1, None), (64 << 20, (0, 16 << 20))])
def test_a_file_of_64_mib_comes_over_four_connections(size: int, first: tuple[int, int] | None) -> None:
    with scripted(lambda request: head("404 Not Found", Content_Length=0)) as server:
        with pytest.raises(hf.HfHubHTTPError, match="404"):
            fetch(server.url, known=hf.HfFileMetadata(None, None, size, f"{server.url}/x"))
        assert [request.span for request in server.requests] == [first]


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_no_more_connections_than_were_asked_for(filled: Hub, several: None, connections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = filled._servers[1].RequestHandlerClass
    send, lock, open_now, most = handler._send_body, threading.Lock(), 0, 0  # type: ignore[attr-defined]

    def counted(*arguments: Any) -> int:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        try:
            return int(send(*arguments))
        finally:
            with lock:
                open_now -= 1

    monkeypatch.setattr(handler, "_send_body", counted)
    filled.rate = 2e6
    assert fetch(filled.url, connections=connections) == CONTENT
    assert most == connections == len(filled.requests("cdn"))
