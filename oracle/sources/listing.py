# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which files a repo has: as the Hub tells it, as the cache remembers it, or what a folder holds."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import vendored_hf
from oracle import strict_json
from oracle.errors import BadData

LIMIT = 16 * 1024 * 1024  # bytes of a listing or a manifest
MOST_PATHS = 100_000  # of a repo, the most that the Hub advises; each is held against the names of all formats, 20 microseconds
FOLDER = "listings"  # of ours, in a repo's part of the cache


class ListingError(OSError):
    """The source does not tell which files a repo has."""


class LongListingError(BadData, ValueError):
    """A repo has more files than are read."""


class UnreadableError(vendored_hf.HubConnectionError):
    """An answer breaks off, or is too long."""


class Listing(NamedTuple):
    """The paths of a repo at a revision, and the commit that this is, if it is known.

    `complete` is whether these are all that the repo has, and not only what somebody fetched of it.
    """

    repo: str
    revision: str
    commit: str | None
    paths: tuple[str, ...]
    complete: bool = True


def fetch(hub: vendored_hf.Hub, url: str, content_type: str = "") -> bytes | None:
    """What a server answers, at most LIMIT bytes; None where it is not of that type, a web page perhaps.

    Raises UnreadableError, or an exception of vendored_hf.
    """
    text = bytearray()
    with hub.request("GET", url, timeout=10.0) as answer:
        if content_type not in answer.headers.get("Content-Type", ""):
            return None
        try:
            for chunk in hub.chunks(answer):
                text += chunk
                if len(text) > LIMIT:
                    raise UnreadableError(f"{vendored_hf.shown(url)} has more than {LIMIT} bytes")
        except EOFError as error:
            raise UnreadableError(f"{vendored_hf.shown(url)} cannot be read: {error}") from error
    return bytes(text)


def from_hub(hub: vendored_hf.Hub, endpoint: str, repo: str, revision: str | None) -> Listing:
    """The Hub's listing of a repo. Raises ListingError where the server has none, LongListingError, or an exception of vendored_hf."""
    url = f"{endpoint.rstrip('/')}/api/models/{repo}/revision/{quote(revision or 'main', safe='')}"
    refusal = f"{vendored_hf.shown(url)} does not list the repo's files"
    try:
        text = fetch(hub, url)
    except (vendored_hf.RepositoryNotFoundError, vendored_hf.RevisionNotFoundError):
        raise
    except vendored_hf.HfHubHTTPError as error:
        if error.status_code in vendored_hf.RETRIED_STATUS:
            raise  # it says nothing of whether there is a listing
        raise ListingError(f"{refusal}: it answers {error.status_code}") from error
    try:
        answer = strict_json.loads(text or b"")
        paths, commit = tuple(sibling["rfilename"] for sibling in answer["siblings"]), answer.get("sha")
        if not all(isinstance(path, str) for path in paths) or not isinstance(commit, (str, type(None))):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ListingError(f"{refusal}: its answer is no such list") from error
    if len(paths) > MOST_PATHS:
        raise LongListingError(f"{vendored_hf.shown(url)} lists {len(paths)} files, and at most {MOST_PATHS} are read: name one with --path")
    return Listing(repo, revision or "main", commit, paths)


def from_cache(folder: Path, repo: str, revision: str | None) -> Listing:
    """What is known of a repo without the Hub; `folder` is its part of the cache. Raises ListingError."""
    commit = revision or "main"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError, ValueError, TypeError):
        paths = strict_json.loads((folder / FOLDER / f"{commit}.json").read_bytes())
        if isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths):
            return Listing(repo, revision or "main", commit, tuple(paths))
    paths = files_below(folder / "snapshots" / commit)
    if not paths:
        raise ListingError(f"the cache has no file of {repo} at {revision or 'main'}")
    return Listing(repo, revision or "main", commit if _is_commit(commit) else None, paths, complete=False)


def remember(folder: Path, listing: Listing) -> None:
    """Keep a listing beside the files in the cache: without the Hub the number of layers would be unknown.

    Files that are fetched at the commit that it tells are found by its branch later, as after huggingface_hub's snapshot_download.
    """
    if listing.commit and _is_commit(listing.commit):
        if listing.revision != listing.commit:
            with contextlib.suppress(OSError), vendored_hf.replacing(folder / "refs" / listing.revision) as file:
                file.write(listing.commit.encode())
        with contextlib.suppress(OSError), vendored_hf.replacing(folder / FOLDER / f"{listing.commit}.json") as file:
            file.write(json.dumps(listing.paths).encode())


def files_below(folder: Path) -> tuple[str, ...]:
    """The paths of a folder's files, relative to it, sorted."""
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _is_commit(name: str | None) -> bool:
    return bool(re.fullmatch("[0-9a-f]{40}", name or ""))
