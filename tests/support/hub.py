# SPDX-License-Identifier: MIT OR Apache-2.0
"""A small, faithful Hugging Face Hub on loopback, to be used through real sockets.

Two servers: the Hub, and a second host that holds the large files, as the Hub's CDN does. A large file's address
there is signed for the exact Range that asked for it. `Fault`s, queued with `Hub.inject`, spoil single answers.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SECRET = b"the CDN's own"
PIECE = 1 << 16


@dataclass(frozen=True)
class Stored:
    """A file of a repo: bytes, or a file on disk. Large ones live on the CDN, by their sha256."""

    source: bytes | Path
    large: bool
    etag: str

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self, start: int, count: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start : start + count]
        with self.source.open("rb") as file:
            file.seek(start)
            return file.read(count)


@dataclass
class Repo:
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Seen:
    """A request as it came in, and what went out."""

    host: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int  # bytes of body


@dataclass
class Fault:
    """What happens, once, to the next request to `host` with `method`; `after` as many are let pass.

    `cut_after`: bytes of the body that are sent; then the connection is reset (`reset`) or closed. With
    `honest_length` Content-Length says so. `stall`: seconds of silence before the body. `status` answers with that
    status and `headers` instead. `alter` gets the headers that would be sent and may change them.
    `hang_up` resets the connection without an answer. `body`: this body instead. `ignore_range`: 200 and the whole file.
    """

    host: str = "cdn"
    method: str = "GET"
    after: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut_after: int | None = None
    reset: bool = False
    hang_up: bool = False
    honest_length: bool = False
    stall: float = 0.0
    ignore_range: bool = False
    alter: Callable[[dict[str, str]], None] | None = None


class Hub:
    """`with Hub() as hub:` serves until the block ends. `hub.url` is the endpoint, `hub.seen` what came in.

    `alter` spoils the headers of every answer, as a proxy may; `rate` is in bytes a second for each connection, after
    `delay` seconds.
    """

    def __init__(
        self,
        *,
        alter: Callable[[dict[str, str]], None] | None = None,
        rate: float | None = None,
        delay: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ):
        self.repos: dict[str, Repo] = {}
        self.by_sha256: dict[str, Stored] = {}
        self._seen: list[Seen] = []
        self.busy = 0
        self.faults: list[Fault] = []
        self.alter = alter
        self.rate, self.delay = rate, delay
        self._lock = threading.Lock()
        self._servers = [_server(self, name, address) for name, address in (("hub", "127.0.0.1"), ("cdn", "127.0.0.2"))]
        scheme = "https" if tls else "http"
        self.url, self.cdn_url = (f"{scheme}://{s.server_address[0]}:{s.server_address[1]}" for s in self._servers)
        if tls:
            for server in self._servers:
                server.socket = tls.wrap_socket(server.socket, server_side=True)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: str, path: str, source: bytes | Path, *, large: bool | None = None, branch: str = "main") -> str:
        """Commit a file to a branch. Returns the commit."""
        content = source if isinstance(source, bytes) else source.read_bytes()
        if large is None:
            large = not path.endswith((".yaml", ".json", ".md"))
        sha256 = hashlib.sha256(content).hexdigest()
        etag = sha256 if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        stored = Stored(source, large, etag)
        self.by_sha256[sha256] = stored
        entry = self.repos.setdefault(repo, Repo())
        files = {**entry.commits.get(entry.refs.get(branch, ""), {}), path: stored}
        listing = "".join(f"{name} {file.etag}\n" for name, file in sorted(files.items()))
        commit = hashlib.sha1(f"{repo}\n{listing}".encode()).hexdigest()
        entry.commits[commit] = files
        entry.refs[branch] = commit
        return commit

    def inject(self, *faults: Fault) -> None:
        """Queue faults; each spoils the first request that it fits."""
        self.faults.extend(faults)

    def take_fault(self, host: str, method: str) -> Fault:
        with self._lock:
            for fault in self.faults:
                if fault.host == host and fault.method == method:
                    if fault.after:
                        fault.after -= 1
                        break
                    self.faults.remove(fault)
                    return fault
        return Fault()

    @property
    def seen(self) -> list[Seen]:
        """Every request so far, once the answers that are still being sent are through."""
        deadline = time.monotonic() + 2
        while self.busy and time.monotonic() < deadline:
            time.sleep(0.002)
        return self._seen

    def record(self, seen: Seen) -> None:
        with self._lock:
            self._seen.append(seen)

    def count_busy(self, change: int) -> None:
        with self._lock:
            self.busy += change

    def requests(self, host: str | None = None, method: str | None = None) -> list[Seen]:
        return [s for s in self.seen if host in (None, s.host) and method in (None, s.method)]


def describe(path: str, stored: Stored) -> dict[str, Any]:
    """A file as the Hub's API tells of it."""
    told: dict[str, Any] = {"type": "file", "oid": stored.etag, "size": stored.size, "path": path}
    if stored.large:
        told["lfs"] = {"oid": stored.etag, "size": stored.size, "pointerSize": 134}
    return told


def sign(digest: str, byte_range: str) -> str:
    return hmac.new(SECRET, f"{digest} {byte_range}".encode(), "sha256").hexdigest()


def _server(hub: Hub, name: str, address: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "host": name})
    return _Server((address, 0), handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that was killed, or that hung up, is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    host: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.hub.count_busy(1)
        try:
            self._serve_one()
        finally:
            self.hub.count_busy(-1)

    def _serve_one(self) -> None:
        fault = self.hub.take_fault(self.host, self.command)
        if fault.hang_up:
            self.hub.record(Seen(self.host, self.command, self.path, dict(self.headers), 0, 0))
            return self._reset()
        if fault.status is not None:
            return self._answer(fault.status, {**fault.headers}, fault.body or b"", fault)
        (self._serve_cdn if self.host == "cdn" else self._serve_hub)(fault)

    def _serve_cdn(self, fault: Fault) -> None:
        parts = urlsplit(self.path)
        digest = parts.path.strip("/")
        byte_range = self.headers.get("Range", "")
        if parse_qs(parts.query).get("signature") != [sign(digest, byte_range)]:
            return self._answer(403, {}, b"the signature is for another Range", fault)
        self._send_file(self.hub.by_sha256[digest], {}, fault)

    def _serve_hub(self, fault: Fault) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            return self._serve_api(path.removeprefix("api/models/"), fault)
        repo_id, found, rest = path.partition("/resolve/")
        repo = self.hub.repos.get(repo_id)
        authorized = repo is not None and repo.token in (None, self.headers.get("Authorization", "").removeprefix("Bearer "))
        if not found or repo is None or (not authorized and not repo.gated):
            status = 404 if self.headers.get("Authorization") else 401
            return self._fail(status, "RepoNotFound", "Repository not found", fault)
        if not authorized:
            return self._fail(403 if self.headers.get("Authorization") else 401, "GatedRepo", "Access to this model is restricted", fault)
        # A branch may hold a slash only as %2F, which unquote has turned into one: find the longest known revision.
        known = sorted([*repo.refs, *repo.commits], key=len, reverse=True)
        revision = next((r for r in known if rest.startswith(r + "/")), None)
        if revision is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id", fault)
        commit = repo.refs.get(revision, revision)
        stored = repo.commits[commit].get(rest[len(revision) + 1 :])
        commit_header = {"X-Repo-Commit": commit}
        if stored is None:
            return self._fail(404, "EntryNotFound", "Entry not found", fault, commit_header)
        if not stored.large:
            return self._send_file(stored, commit_header, fault)
        signature = sign(stored.etag, self.headers.get("Range", ""))
        headers = {
            "Location": f"{self.hub.cdn_url}/{stored.etag}?signature={signature}",
            "X-Linked-Size": str(stored.size),
            "X-Linked-Etag": f'"{stored.etag}"',
            "ETag": f'"{stored.etag}"',
            **commit_header,
        }
        self._answer(302, headers, b"", fault)

    def _serve_api(self, path: str, fault: Fault) -> None:
        """api/models/<repo>[/revision/<revision>]: the commit and its files; POST .../paths-info/<revision>: sizes."""
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        repo_id, paths_info, revision = path.partition("/paths-info/")
        if not paths_info:
            repo_id, _, revision = path.partition("/revision/")
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            return self._fail(404, "RepoNotFound", "Repository not found", fault)
        commit = repo.refs.get(revision or "main", revision)
        if commit not in repo.commits:
            return self._fail(404, "RevisionNotFound", "Invalid rev id", fault)
        names = sorted(repo.commits[commit])
        answer: Any = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        if paths_info:
            text = unquote(asked.decode()).replace("+", " ")
            answer = [describe(name, repo.commits[commit][name]) for name in names if name in text]
        body = json.dumps(answer).encode()
        self._answer(200, {"Content-Type": "application/json", "X-Repo-Commit": commit}, body, fault)

    def _fail(self, status: int, code: str, message: str, fault: Fault, more: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": message, **(more or {})}, body, fault)

    def _send_file(self, stored: Stored, headers: dict[str, str], fault: Fault) -> None:
        headers = {"ETag": f'"{stored.etag}"', "Accept-Ranges": "bytes", **headers}
        start, end, status = 0, stored.size, 200
        spec = self.headers.get("Range", "")
        if spec.startswith("bytes=") and not fault.ignore_range:
            first, _, last = spec.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, stored.size - int(last))
            end = min(int(last) + 1, stored.size) if first and last else stored.size
            if start >= stored.size:
                return self._answer(416, {"Content-Range": f"bytes */{stored.size}"}, b"", fault)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
        self._answer(status, headers, (stored, start, end), fault)

    def _answer(self, status: int, headers: dict[str, str], body: bytes | tuple[Stored, int, int], fault: Fault) -> None:
        if fault.body is not None:
            body = fault.body
        length = len(body) if isinstance(body, bytes) else body[2] - body[1]
        headers = {"Content-Length": str(length), **headers}
        if fault.cut_after is not None:
            length = min(length, fault.cut_after)
            if fault.honest_length:
                headers["Content-Length"] = str(length)
        for alter in (fault.alter, self.hub.alter):
            if alter:
                alter(headers)
        sent = 0
        try:
            time.sleep(self.hub.delay)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                if fault.stall:
                    self.wfile.flush()
                    time.sleep(fault.stall)
                sent = self._send_body(body, length)
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            self.hub.record(Seen(self.host, self.command, self.path, dict(self.headers), status, sent))
        if fault.cut_after is not None:
            self.close_connection = True
            if fault.reset:
                self._reset()

    def _reset(self) -> None:
        """RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send_body(self, body: bytes | tuple[Stored, int, int], length: int) -> int:
        sent, began = 0, time.monotonic()
        while sent < length:
            count = min(PIECE, length - sent)
            self.wfile.write(body[sent : sent + count] if isinstance(body, bytes) else body[0].read(body[1] + sent, count))
            sent += count
            if self.hub.rate:
                time.sleep(max(0.0, sent / self.hub.rate - (time.monotonic() - began)))
        return sent
