# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where a job's files come from: the Hub by way of the cache, the Hub as a stream, or a mirror."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote

import vendored_hf
from oracle.job import Events, Job, Progress
from oracle.sources import mirror, stream
from oracle.sources.curation import HubFile
from oracle.sources.mirror import Listing

LISTING_LIMIT = 16 * 1024 * 1024
LISTINGS = "listings"  # a folder of ours in a repo's part of the cache


class ListingError(OSError):
    """The source does not tell which files a repo has."""


@dataclass(frozen=True)
class Opened:
    """A file that is open, and what is known of it. `where` names it in messages; sha256 is None for a stream."""

    reader: BinaryIO
    repo: str
    path: str
    where: str
    commit: str | None
    sha256: str | None

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()


def mirror_of(job: Job) -> str | None:
    """What a job, or the environment, names instead of huggingface.co, which has no manifest to ask for.

    A folder needs no network; a server does not count where requests are switched off.
    """
    named = job.endpoint or os.environ.get("HF_ENDPOINT") or None
    switched_off = job.offline or vendored_hf.is_offline_mode()
    return None if switched_off and mirror.folder_of(named) is None else named


class Source:
    """Opens and lists what a job reads, from where the job says.

    A branch is resolved once: all its files come from one commit, even where somebody pushes in the meantime. `commits`
    are those of (repo, revision) that are settled beforehand.
    """

    def __init__(self, job: Job, events: Events, commits: mirror.Commits | None = None):
        self._job, self._events = job, events
        self._commits = dict(commits or {})
        self._mirror = mirror.Mirror(mirror_of(job))

    @property
    def is_local(self) -> bool:
        """Whether files come from a folder alone, a mirror or the cache."""
        return self._mirror.folder is not None or self._job.offline or vendored_hf.is_offline_mode()

    def open(self, file: HubFile) -> Opened:
        """Open a file, once it is there. Raises MirrorError, or an exception of vendored_hf."""
        if self._job.stream and not self._mirror.folder:
            known = self._mirror.known(self._pinned(file))
            remote = stream.open_remote(
                file.repo, file.path, revision=self._pinned(file).revision, endpoint=self._job.endpoint, known=known
            )
            self._events.streaming(file.path, lambda: remote.received)
            reader, commit = cast(BinaryIO, remote), remote.metadata.commit_hash
            self._pin(file, commit)
            return Opened(reader, file.repo, file.path, file.path, commit, None)
        local = self.fetch(file)
        sha256 = local.sha256 or mirror.sha256_of(local.path)
        reader = cast(BinaryIO, open(local.path, "rb", buffering=0))
        return Opened(reader, file.repo, file.path, local.path, local.commit_hash, sha256)

    def open_in_turn(self, files: list[HubFile]) -> Iterator[Opened]:
        """Open one file after the other; the next one is fetched while the caller works on this one."""
        following: Future[Opened] | None = None
        for file, after in zip(files, [*files[1:], None]):
            opened = following.result() if following else self.open(file)
            if after:
                following = self._open_meanwhile(after)
            yield opened

    def _open_meanwhile(self, file: HubFile) -> Future[Opened]:
        """Open a file on a thread that nobody waits for where the run ends before it: an error, Ctrl-C."""
        future: Future[Opened] = Future()

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
        return local

    def settled(self, file: HubFile) -> HubFile:
        """The file at the commit that its branch or tag now is, where the source tells; it is not fetched."""
        if (file.repo, file.revision or "main") not in self._commits:
            self._pin(file, self._commit_of(file))
        return self._pinned(file)

    def _commit_of(self, file: HubFile) -> str | None:
        known = self._mirror.known(file)
        if known or self.is_local:
            return known.commit_hash if known else self.fetch(file).commit_hash
        endpoint = self._job.endpoint or vendored_hf.hf_endpoint()
        with contextlib.suppress(vendored_hf.HubConnectionError):  # whoever fetches it may find it in the cache
            hub = vendored_hf.Hub(endpoint)
            return vendored_hf.file_metadata(hub, endpoint, file.repo, file.path, file.revision or "main", 1).commit_hash
        return None

    def _pinned(self, file: HubFile) -> HubFile:
        return replace(file, revision=self._commits.get((file.repo, file.revision or "main"), file.revision))

    def _pin(self, file: HubFile, commit: str | None) -> None:
        if commit:
            self._commits.setdefault((file.repo, file.revision or "main"), commit)

    def _fetch(self, file: HubFile) -> vendored_hf.LocalFile:
        if self._mirror.folder:
            return self._mirror.local_file(file)
        began: list[Progress | None] = []

        def on_progress(done: int, size: int) -> None:
            if not began:
                began.append(self._events.fetching(file.path))
            if began[0]:
                began[0](done, size)

        local: vendored_hf.LocalFile | None = None
        try:
            local = vendored_hf.hf_hub_file(
                file.repo,
                file.path,
                revision=file.revision,
                cache_dir=self._job.cache_dir,
                endpoint=self._job.endpoint,
                local_files_only=self._job.offline,
                connections=self._job.connections,
                known=self._mirror.known(file),
                on_progress=on_progress,
            )
            return local
        finally:
            if began:
                self._events.fetched(file.path, local.path if local else None)

    def listing(self, repo: str, revision: str | None) -> Listing:
        """The files of a repo. Raises ListingError where the source cannot tell, or an exception of vendored_hf."""
        revision = self._commits.get((repo, revision or "main"), revision)
        found = self._listing(repo, revision)
        if found.commit:
            self._commits.setdefault((repo, revision or "main"), found.commit)
        return found

    def _listing(self, repo: str, revision: str | None) -> Listing:
        mirrored = self._mirror.listing(repo, revision)
        if mirrored is not None:
            return mirrored
        if self.is_local:
            return self._cached_listing(repo, revision)
        try:
            return self._hub_listing(repo, revision)
        except vendored_hf.HubConnectionError as error:
            try:
                return self._cached_listing(repo, revision)  # as a fetch does: the cache goes on without the Hub
            except ListingError:
                raise error from None

    def _cached_listing(self, repo: str, revision: str | None) -> Listing:
        folder, commit = self._cache_of(repo), revision or "main"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            paths = json.loads((folder / LISTINGS / f"{commit}.json").read_bytes())
            if isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths):
                return Listing(repo, revision or "main", commit, tuple(paths))
        snapshot = folder / "snapshots" / commit
        paths = sorted(there.relative_to(snapshot).as_posix() for there in snapshot.rglob("*") if there.is_file())
        if not paths:
            raise ListingError(f"the cache has no file of {repo} at {revision or 'main'}")
        known = commit if re.fullmatch("[0-9a-f]{40}", commit) else None
        return Listing(repo, revision or "main", known, tuple(paths), complete=False)

    def _cache_of(self, repo: str) -> Path:
        return Path(self._job.cache_dir or vendored_hf.hf_hub_cache()) / vendored_hf.repo_folder_name(repo)

    def _remember(self, listing: Listing) -> None:
        """Keep a listing beside the files in the cache: without the Hub nobody could tell which are all of them."""
        if self._job.stream or not re.fullmatch("[0-9a-f]{40}", listing.commit or ""):
            return
        place = self._cache_of(listing.repo) / LISTINGS / f"{listing.commit}.json"
        with contextlib.suppress(OSError):  # a cache that cannot be written to has none
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            partial.write_text(json.dumps(listing.paths), encoding="utf-8")
            partial.replace(place)

    def _hub_listing(self, repo: str, revision: str | None) -> Listing:
        endpoint = (self._job.endpoint or vendored_hf.hf_endpoint()).rstrip("/")
        vendored_hf.hf_hub_url(repo, "config.yaml", revision=revision, endpoint=endpoint)  # refuses names that are none
        url = f"{endpoint}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}"
        where = url.rpartition("@")[2]
        try:
            with vendored_hf.Hub(endpoint).request("GET", url, timeout=10.0) as answer:
                text = b""
                for chunk in answer.iter_content(1 << 16):
                    text += chunk
                    if len(text) > LISTING_LIMIT:
                        raise ListingError(f"{where} lists more than {LISTING_LIMIT} bytes of files")
        except (vendored_hf.RepositoryNotFoundError, vendored_hf.RevisionNotFoundError):
            raise
        except vendored_hf.HfHubHTTPError as error:
            if error.status_code in (429, 500, 502, 503, 504):
                raise
            raise ListingError(f"{where} does not list the repo's files: it answers {error.status_code}") from error
        except OSError as error:
            raise vendored_hf.HubConnectionError(f"{where} cannot be read: {type(error).__name__}") from error
        try:
            told = json.loads(text)
            paths = [sibling["rfilename"] for sibling in told["siblings"]]
            commit = told.get("sha")
            if not all(isinstance(path, str) for path in paths) or not isinstance(commit, (str, type(None))):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ListingError(f"{where} does not list the repo's files: its answer is no such list") from error
        listing = Listing(repo, revision or "main", commit, tuple(paths))
        self._remember(listing)
        return listing
