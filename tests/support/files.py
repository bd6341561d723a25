# SPDX-License-Identifier: MIT OR Apache-2.0
"""A file server of another make."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def file_server(tree: Path) -> Iterator[tuple[str, list[str]]]:
    """Python's own, which knows no Range and has no API. Its address, and the requests as they come in."""
    seen: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            seen.append(f"{self.requestline} {code}")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is no error, and standard error is a test's own."""

    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(tree))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
        server.shutdown()
