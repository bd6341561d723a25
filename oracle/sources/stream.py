# SPDX-License-Identifier: MIT OR Apache-2.0
"""A file on the Hub as a seekable reader over HTTP Range: nothing goes to disk, and only what is read is fetched."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import vendored_hf

if TYPE_CHECKING:
    import requests

TAIL = 1 << 18  # bytes at the end, fetched first: a zip keeps its directory there, and small tensors lie beside it
READ_AHEAD = 1 << 14


class NotStreamableError(OSError):
    """The server sends whole files alone, or would not show that a file without checksums is replaced meanwhile."""


class RemoteFile(io.RawIOBase):
    """A seekable reader. `metadata` is what HEAD told; `received` counts the bytes that crossed the wire.

    Reads inside a stretch that advise() announced stream over one connection, which is taken up again where it
    breaks; others read a little ahead. Every answer is held against the first: its Range, its ETag or date. `checked` is
    whether the file has checksums of its own, so that a mix of two would show. Raises NotStreamableError
    where the server knows no Range, HubConnectionError, HfHubHTTPError, ConsistencyError.
    """

    def __init__(self, hub: vendored_hf.Hub, metadata: vendored_hf.HfFileMetadata, *, checked: bool = False):
        super().__init__()
        # Without the sha256, which nobody computes of a part, the source watches the ETag.
        self._source = vendored_hf.Source(hub, replace(metadata, etag=None))
        if metadata.size is None:
            raise vendored_hf.FileMetadataError(f"{self._source.shown}: the server does not say how long it is")
        self.metadata, self.received = metadata, 0
        self._size, self._position = metadata.size, 0
        self._response: requests.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._unread = b""  # of the last chunk
        self._at = self._until = 0  # where the open answer stands, and where it ends
        self._advised = (0, 0)
        self._kept, self._kept_at = b"", 0
        self._tail, self._tail_at = b"", self._size
        tail_at = max(0, self._size - TAIL)
        self._tail = self._fetch(tail_at, self._size)  # shows whether the server knows Ranges
        self._tail_at = tail_at
        if not self._source.watched and not checked:
            raise NotStreamableError(
                f"{self._source.shown}: the server sends neither an ETag nor a date, so that nothing would show if the file is "
                "replaced while it is streamed: leave --stream out"
            )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def advise(self, start: int, stop: int) -> None:
        """Bytes [start, stop) will be read in order, as posix_fadvise has it: they are fetched at once, and no others."""
        self._advised = (start, stop)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        filled = 0
        while filled < len(view):
            piece = self._piece(self._position, len(view) - filled)
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._position += len(piece)
        return filled

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _piece(self, position: int, count: int) -> bytes:
        """1 to `count` bytes from `position` on, out of what is kept or off the wire."""
        for kept, at in ((self._tail, self._tail_at), (self._kept, self._kept_at)):
            if at <= position < at + len(kept):
                return kept[position - at :][:count]
        if self._advised[0] <= position < self._advised[1]:
            return self._fetch(position, min(position + count, self._advised[1], self._tail_at))
        self._kept = self._fetch(position, min(position + max(count, READ_AHEAD), self._tail_at))
        self._kept_at = position
        return self._kept[:count]

    def _fetch(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), over as many connections as it takes."""
        parts, position, failures = [], start, 0
        while position < stop:
            try:
                broken: Exception | None = None
                self._go_to(position, stop)
                chunk = self._next_chunk()
            except EOFError as error:
                broken = error
            if broken:  # out of the handler: what requests says of it may hold secrets
                self._hang_up()
                failures += 1
                self._source.broken(failures, position, broken)
                continue
            take = chunk[: stop - position]
            self._unread = chunk[len(take) :]
            self._at += len(take)
            parts.append(take)
            position += len(take)
            failures = 0 if len(chunk) == vendored_hf.CHUNK else failures  # a byte and a hang-up each time are no progress
        return b"".join(parts)

    def _go_to(self, position: int, stop: int) -> None:
        """Have an answer open that stands at `position`."""
        if self._response is None or position != self._at or position >= self._until:
            advised = self._advised[1] if self._advised[0] <= position < self._advised[1] else stop
            self._open_at(position, min(max(stop, advised), self._tail_at))

    def _open_at(self, position: int, until: int) -> None:
        self._hang_up()
        self._response = self._source.open(position, until)
        if self._response.status_code != 206 and (position, until) != (0, self._size):
            self._hang_up()
            raise NotStreamableError(f"{self._source.shown}: the server knows no Range, which --stream needs: leave --stream out")
        self._at, self._until = position, until
        self._chunks = self._source.hub.chunks(self._response)

    def _next_chunk(self) -> bytes:
        if self._unread:
            return self._unread
        for chunk in self._chunks:
            self.received += len(chunk)
            return chunk
        raise EOFError("the answer ended early")

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._chunks, self._unread = None, iter(()), b""


def open_remote(
    hub: vendored_hf.Hub,
    endpoint: str,
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    known: vendored_hf.HfFileMetadata | None = None,
) -> RemoteFile:
    """Open a file of a model repo. `known` stands for what HEAD would tell. Errors are those of RemoteFile."""
    attempts = vendored_hf.ATTEMPTS
    metadata = known or vendored_hf.file_metadata(hub, endpoint, repo_id, filename, revision or "main", attempts)
    return RemoteFile(hub, metadata, checked=not filename.endswith(".safetensors"))
