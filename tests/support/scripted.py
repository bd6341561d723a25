# SPDX-License-Identifier: MIT OR Apache-2.0
"""A server that answers each request with the bytes that a test writes for it, and keeps what came in."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """The head of a request."""

    method: str
    target: str
    headers: dict[str, str]  # by lower-case names

    @property
    def span(self) -> tuple[int, int] | None:
        """[start, stop) of its Range."""
        first, _, last = self.headers.get("range", "").removeprefix("bytes=").partition("-")
        return (int(first), int(last) + 1) if last else None


@dataclass
class Scripted:
    url: str
    requests: list[Request]


Answer = Callable[[Request], bytes]


@contextmanager
def scripted(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Serves on loopback until the block ends. Each connection is closed after its answer."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            self.request.settimeout(10)
            try:
                connection = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                while b"\r\n\r\n" not in head:
                    received = connection.recv(65536)
                    if not received:
                        return
                    head += received
                first, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
                method, target, _ = first.split(" ")
                request = Request(method, target, {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)})
                server.requests.append(request)
                connection.sendall(answer(request))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        server = Scripted(f"http{'s' if tls else ''}://127.0.0.1:{listening.server_address[1]}", [])
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        listening.shutdown()


def head(status: str, **headers: object) -> bytes:
    """A status line and headers; `_` in a name stands for `-`."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()), "Connection: close"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def whole(content: bytes, request: Request, **headers: object) -> bytes:
    """200 with everything."""
    return head("200 OK", Content_Length=len(content), **headers) + (content if request.method == "GET" else b"")


def part(content: bytes, request: Request, **headers: object) -> bytes:
    """206 with what was asked for, or everything."""
    if request.span is None:
        return whole(content, request, **headers)
    start, stop = request.span
    told = {"Content_Range": f"bytes {start}-{stop - 1}/{len(content)}", "Content_Length": stop - start, **headers}
    return head("206 Partial Content", **told) + (content[start:stop] if request.method == "GET" else b"")
