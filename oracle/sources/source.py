# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where files come from: the Hub by way of the cache, the Hub as a stream, or a mirror."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

import vendored_hf
from oracle.errors import BadUse
from oracle.job import Origin
from oracle.sources import hashes, mirror, stream
from oracle.sources import listing as listings
from oracle.sources.curation import SIZE_LIMIT, HubFile
from oracle.sources.listing import Listing, ListingError
from oracle.weights.layer import OpenFile

Progress = Callable[[int, int], None]  # bytes so far, and in all


def _close(opened: Future[SourceFile]) -> None:
    if not opened.exception():
        opened.result().open.reader.close()


class FileEvents:
    """What a caller may want to know of files on their way. Each method does nothing: a subclass shows what it likes."""

    def fetching(self, path: str) -> Progress | None:
        """A file begins to arrive."""
        return None

    def fetched(self, path: str, local_path: str | None) -> None:
        """A file is there; or it is not to come, with a local path of None."""

    def reading(self, local_path: str) -> None:
        """A file on this machine will be read."""

    def streaming(self, path: str, received: Callable[[], int]) -> None:
        """A file is read off the wire as the encoder asks for it; `received` counts its bytes."""


@dataclass(eq=False)
class SourceFile:
    """A file that is open, and what is known of it; sha256 is None for a stream. Closing it raises DamagedFileError where a file on
    disk changed while it was open: what was read is not what was hashed."""

    open: OpenFile
    repo: str
    commit: str | None
    sha256: str | None
    on_disk: FileIO | None = None

    def __post_init__(self) -> None:
        self._state = hashes.state_of(self.on_disk)[:2] if self.on_disk else None

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        changed = self.on_disk is not None and hashes.state_of(self.on_disk)[:2] != self._state
        self.open.reader.close()
        if changed and kind is None:
            raise hashes.DamagedFileError(f"{self.open.label} changed while it was read: try again")


class Source:
    """Opens and lists the files of an origin.

    A branch is resolved once: all its files come from one commit, even where somebody pushes in the meantime. `commits`
    are those of (repo, revision) that are settled beforehand. Raises BadUse.
    """

    def __init__(self, origin: Origin, events: FileEvents, commits: mirror.Commits | None = None):
        self._origin, self._events = origin, events
        self._commits = dict(commits or {})
        self._listings: dict[tuple[str, str], Listing] = {}
        self._offline = vendored_hf.is_offline_mode() if origin.offline is None else origin.offline
        self._endpoint = (origin.mirror or vendored_hf.hf_endpoint()).rstrip("/")
        # A folder needs no network; a server does not count where requests are switched off, and huggingface.co has no manifest.
        no_server = self._offline or self._endpoint == vendored_hf.HUGGING_FACE
        self._mirror = mirror.Mirror(None if no_server and mirror.folder_of(self._endpoint) is None else self._endpoint, origin.patience)
        if origin.stream and origin.offline and not self.is_folder:
            raise BadUse("--stream needs a server or a mirror, and --offline forbids servers: leave one out")

    @property
    def settled_origin(self) -> Origin:
        """The origin with nothing left to the environment or the folder of whoever reads it, but for the token."""
        endpoint = os.path.abspath(self._mirror.folder) if self._mirror.folder else self._endpoint
        cache = os.path.abspath(vendored_hf.hf_hub_cache(self._origin.cache_dir))
        return replace(self._origin, mirror=endpoint, cache_dir=cache, offline=self._offline)

    @functools.cached_property
    def _hub(self) -> vendored_hf.Hub:
        return vendored_hf.Hub(self._endpoint, patience=self._origin.patience, offline=self._offline)

    @property
    def is_local(self) -> bool:
        """Whether files come from a folder alone, a mirror or the cache."""
        return self.is_folder or self._offline

    @property
    def is_folder(self) -> bool:
        """Whether files come from a mirror's folder."""
        return self._mirror.folder is not None

    def open(self, file: HubFile) -> SourceFile:
        """Open a file, once it is there. Raises MirrorError, NotStreamableError, or an exception of vendored_hf."""
        if self._origin.stream and not self.is_folder:
            pinned = self._pinned(file)
            known = self._mirror.known(pinned)
            remote = stream.open_remote(self._hub, self._endpoint, file.repo, file.path, revision=pinned.revision, known=known)
            self._events.streaming(file.path, lambda: remote.received)
            commit = remote.metadata.commit_hash
            self._pin(file, commit)
            return SourceFile(OpenFile(cast(BinaryIO, remote), file.path, file.path), file.repo, commit, None)
        local = self.fetch(file)
        reader = open(local.path, "rb", buffering=0)
        try:
            sha256 = self.sha256_of(file, local, reader)
        except BaseException:
            reader.close()
            raise
        return SourceFile(OpenFile(cast(BinaryIO, reader), file.path, local.path), file.repo, local.commit_hash, sha256, reader)

    def sha256_of(self, file: HubFile, local: vendored_hf.LocalFile, reader: FileIO) -> str:
        """The sha256 of a fetched file that is open: a large one in the cache is hashed once. Raises DamagedFileError."""
        if self.is_folder:  # which verified what a manifest names
            return local.sha256 or hashes.sha256_of(local.path)
        return hashes.cached_sha256(reader, local.sha256, self._cache_of(file.repo))

    def open_in_turn(self, files: list[HubFile]) -> Generator[SourceFile, None, None]:
        """Open one file after the other; the next one is fetched while the caller works on this one. Whoever leaves early
        closes this, and so the next one."""
        following: Future[SourceFile] | None = None
        try:
            for file, after in zip(files, [*files[1:], None]):
                opened = following.result() if following else self.open(file)
                following = self._open_meanwhile(after) if after else None
                yield opened
        finally:
            if following:
                following.add_done_callback(_close)

    def _open_meanwhile(self, file: HubFile) -> Future[SourceFile]:
        """Open a file on a thread that nobody waits for where the run ends before it: an error, Ctrl-C."""
        future: Future[SourceFile] = Future()

        def run() -> None:
            try:
                future.set_result(self.open(file))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def fetch(self, file: HubFile) -> vendored_hf.LocalFile:
        """A file on disk. What arrives over the network is announced, what is there is not."""
        local = self._fetch(self._pinned(file))
        self._pin(file, local.commit_hash)
        self._events.reading(local.path)
        return local

    def size_of(self, file: HubFile) -> tuple[int | None, bool]:
        """A file's bytes, None where nobody tells, and whether they are on this machine; they are not fetched."""
        pinned = self._pinned(file)
        cached = vendored_hf.try_to_load_from_cache(pinned.repo, pinned.path, self._origin.cache_dir, pinned.revision)
        path = str(self._mirror.path_of(pinned)) if self.is_folder else cached
        if isinstance(path, str) and os.path.isfile(path):
            return os.path.getsize(path), True
        metadata = self._mirror.known(pinned)
        if metadata is None and not self.is_local:
            metadata = vendored_hf.file_metadata(self._hub, self._endpoint, pinned.repo, pinned.path, pinned.revision or "main", 1)
        return (metadata.size if metadata else None), False

    def says_that_it_is_missing(self, error: Exception) -> bool:
        """Whether a file is surely not there. A server that is no Hub says 404 and no more; one that is out of reach says nothing."""
        if isinstance(error, vendored_hf.LocalEntryNotFoundError):
            return self.is_local
        plain = type(error) is vendored_hf.HfHubHTTPError and error.status_code == 404
        return plain or isinstance(error, vendored_hf.EntryNotFoundError)

    def resolve_commit(self, file: HubFile) -> HubFile:
        """The file at the commit that its branch or tag now is, where the source tells; it is not fetched."""
        if (file.repo, file.revision or "main") not in self._commits:
            self._pin(file, self._commit_of(file))
        return self._pinned(file)

    def _commit_of(self, file: HubFile) -> str | None:
        known = self._mirror.known(file)
        if known or self.is_local:
            return known.commit_hash if known else self.fetch(file).commit_hash
        with contextlib.suppress(vendored_hf.HubConnectionError):  # whoever fetches it may find it in the cache
            metadata = vendored_hf.file_metadata(self._hub, self._endpoint, file.repo, file.path, file.revision or "main", 1)
            return metadata.commit_hash
        return None

    def _pinned(self, file: HubFile) -> HubFile:
        return file._replace(revision=self._commits.get((file.repo, file.revision or "main"), file.revision))

    def _pin(self, file: HubFile, commit: str | None) -> None:
        if commit:
            self._commits.setdefault((file.repo, file.revision or "main"), commit)

    def _fetch(self, file: HubFile) -> vendored_hf.LocalFile:
        most = SIZE_LIMIT if file.path.endswith((".yaml", ".json")) else None
        if self.is_folder:
            return self._mirror.local_file(file, most)
        shown: list[Progress | None] = []  # how far it is, from its first bytes on

        def on_progress(done: int, size: int) -> None:
            if not shown:
                shown.append(self._events.fetching(file.path))
            if shown[0]:
                shown[0](done, size)

        local: vendored_hf.LocalFile | None = None
        try:
            local = vendored_hf.hf_hub_file(
                file.repo,
                file.path,
                revision=file.revision,
                cache_dir=self._origin.cache_dir,
                endpoint=self._endpoint,
                local_files_only=self._offline,
                connections=self._origin.connections,
                known=self._mirror.known(file),
                on_progress=on_progress,
                patience=self._origin.patience,
                most=most,
            )
            if shown and local.sha256:  # verified as it arrived
                with open(local.path, "rb", buffering=0) as reader:
                    hashes.remember(reader, local.sha256, self._cache_of(file.repo))
            return local
        finally:
            if shown:
                self._events.fetched(file.path, local.path if local else None)

    def listing(self, repo: str, revision: str | None) -> Listing:
        """The files of a repo. Raises ListingError where the source cannot tell, or an exception of vendored_hf."""
        vendored_hf.hf_hub_url(repo, "config.yaml", revision=revision)  # refuses names that lead elsewhere
        known = self._listings.get((repo, revision or "main"))
        if known is None:
            pinned = self._commits.get((repo, revision or "main"), revision)
            known = self._listings[repo, revision or "main"] = self._mirror.listing(repo, pinned) or self._listing(repo, pinned)
            if known.commit:
                self._commits.setdefault((repo, revision or "main"), known.commit)
        return known

    def _cache_of(self, repo: str) -> Path:
        """A repo's part of the cache."""
        return vendored_hf.hf_hub_cache(self._origin.cache_dir) / vendored_hf.repo_folder_name(repo)

    def _listing(self, repo: str, revision: str | None) -> Listing:
        cached = self._cache_of(repo)
        if self.is_local:
            return listings.from_cache(cached, repo, revision)
        try:
            listing = listings.from_hub(self._hub, self._endpoint, repo, revision)
        except vendored_hf.HubConnectionError as error:
            try:
                return listings.from_cache(cached, repo, revision)  # as a fetch does: the cache goes on without the Hub
            except ListingError:
                raise error from None
        if not self._origin.stream:
            listings.remember(cached, listing)
        return listing
