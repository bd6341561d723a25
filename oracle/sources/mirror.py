# SPDX-License-Identifier: MIT OR Apache-2.0
"""A static mirror for the far side of an air gap: the Hub's files under the Hub's URL paths, and a manifest of them.

Any file server can serve the tree, and a folder is used where it lies. The manifest knows what the Hub's headers
would have told: {"format_version": 1, "files": [{repo, revision, path, commit, size, sha256}, ...], "listings": [{repo,
revision, commit, paths}, ...]}. A listing names all files of a repo, of which the mirror has some.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import vendored_hf
from oracle.errors import BadData
from oracle.sources.curation import HubFile

Commits = dict[tuple[str, str], str]  # by repo and revision

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
MANIFEST_LIMIT = 16 * 1024 * 1024

logger = logging.getLogger("vendored_hf")


class MirrorError(BadData, ValueError):
    """A mirror whose manifest cannot be read, or whose files are not those of its manifest."""


@dataclass(frozen=True)
class Entry:
    """A file of a mirror. `commit` is None where the source of the mirror told none."""

    repo: str
    revision: str
    path: str
    commit: str | None
    size: int
    sha256: str

    @property
    def place(self) -> str:
        """Where it lies in the tree, and behind the server's address."""
        return f"{self.repo}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True)
class Listing:
    """The paths of a repo at a revision, and the commit that this is, if it is known.

    `complete` is whether these are all that the repo has, and not only what somebody fetched of it.
    """

    repo: str
    revision: str
    commit: str | None
    paths: tuple[str, ...]
    complete: bool = True


@dataclass(frozen=True)
class Manifest:
    """What a manifest.json says."""

    entries: list[Entry]
    listings: list[Listing]


def parse_manifest(text: bytes, where: str) -> Manifest:
    """A manifest.json; `where` names it in messages. Raises MirrorError."""
    try:
        document = json.loads(text)
        if document["format_version"] != FORMAT_VERSION:
            raise MirrorError(f"{where} has format version {document['format_version']!r}; {FORMAT_VERSION} is known")
        entries = [Entry(**{field: file[field] for field in Entry.__dataclass_fields__}) for file in document["files"]]
        for entry in entries:
            texts = (entry.repo, entry.revision, entry.path, entry.sha256, entry.commit or "")
            if not all(isinstance(text, str) for text in texts) or type(entry.size) is not int:
                raise TypeError(entry)
            if not re.fullmatch("[0-9a-f]{64}", entry.sha256) or not re.fullmatch("[0-9a-f]{40}", entry.commit or "0" * 40):
                raise ValueError(entry)
            vendored_hf.hf_hub_url(entry.repo, entry.path, revision=entry.revision)  # refuses what leads out of the tree
        listings = [
            Listing(told["repo"], told["revision"], told["commit"], tuple(told["paths"])) for told in document.get("listings", [])
        ]
        if not all(isinstance(text, str) for one in listings for text in (one.repo, one.revision, one.commit or "", *one.paths)):
            raise TypeError(listings)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, MirrorError):
            raise
        raise MirrorError(f"{where} is not a manifest of this program: {type(error).__name__}") from error
    return Manifest(entries, listings)


def folder_of(endpoint: str | None) -> Path | None:
    """The folder that an endpoint names, by its path or as file://; None where it is a server."""
    if endpoint is None:
        return None
    if endpoint.startswith("file://"):
        return Path(unquote(urlsplit(endpoint).path))
    return None if "://" in endpoint else Path(endpoint)


class Mirror:
    """What `--mirror` names: a folder, or a server with or without a manifest. The manifest is read once."""

    def __init__(self, endpoint: str | None):
        self.endpoint = endpoint.rstrip("/") if endpoint else None
        self.folder = folder_of(self.endpoint)
        self._manifest: Manifest | None = None

    def known(self, file: HubFile) -> vendored_hf.HfFileMetadata | None:
        """What the manifest tells of a file, by its revision or by the commit that this was. Raises MirrorError."""
        entry = self._find(file)
        if entry is None or self.endpoint is None:
            return None
        url = vendored_hf.hf_hub_url(entry.repo, entry.path, revision=entry.revision, endpoint=self.endpoint)
        return vendored_hf.HfFileMetadata(entry.commit, entry.sha256, entry.size, url)

    def local_file(self, file: HubFile) -> vendored_hf.LocalFile:
        """A file of a mirror in a folder, where it lies; its sha256 is verified where there is a manifest.

        Raises MirrorError, and LocalEntryNotFoundError where it is missing.
        """
        folder = self.folder or Path()
        if not folder.is_dir():
            shown = re.sub("^.*:.*@", "", str(folder))  # user:password@host: somebody left the http:// out
            raise vendored_hf.LocalEntryNotFoundError(f"{shown}: there is no such folder, nor is it an http:// address")
        entry = self._find(file)
        revision = file.revision or "main"
        vendored_hf.hf_hub_url(file.repo, file.path, revision=revision)
        path = folder / (entry.place if entry else f"{file.repo}/resolve/{revision}/{file.path}")
        if not path.is_file():
            raise vendored_hf.LocalEntryNotFoundError(f"{path} does not exist: the mirror lacks {file.path} of {file.repo}")
        if entry is None:
            logger.warning("could not verify %s: no %s lists it", path, MANIFEST)
            return vendored_hf.LocalFile(str(path), None, None)
        if sha256_of(path) != entry.sha256:
            raise MirrorError(f"{path} is damaged: its sha256 is not the manifest's {entry.sha256}")
        return vendored_hf.LocalFile(str(path), entry.commit, entry.sha256)

    def listing(self, repo: str, revision: str | None) -> Listing | None:
        """The paths of a repo; None where the mirror does not tell. Raises MirrorError."""
        revision, manifest = revision or "main", self._told()
        for listing in manifest.listings:
            if listing.repo == repo and revision in (listing.revision, listing.commit):
                return listing
        listed = [entry for entry in manifest.entries if entry.repo == repo and revision in (entry.revision, entry.commit)]
        if listed:
            return Listing(repo, revision, listed[0].commit, tuple(entry.path for entry in listed), complete=False)
        if self.folder is None:
            return None
        # Somebody laid this out by hand: what is there is what there is.
        tree = self.folder / repo / "resolve" / revision
        paths = tuple(sorted(there.relative_to(tree).as_posix() for there in tree.rglob("*") if there.is_file()))
        return Listing(repo, revision, None, paths)

    def _find(self, file: HubFile) -> Entry | None:
        revision = file.revision or "main"
        return next(
            (e for e in self._told().entries if (e.repo, e.path) == (file.repo, file.path) and revision in (e.revision, e.commit)),
            None,
        )

    def _told(self) -> Manifest:
        if self._manifest is None:
            self._manifest = self._read() or Manifest([], [])
        return self._manifest

    def _read(self) -> Manifest | None:
        if self.endpoint is None:
            return None
        if self.folder is not None:
            place = self.folder / MANIFEST
            return parse_manifest(place.read_bytes(), str(place)) if place.is_file() else None
        import requests

        url = f"{self.endpoint}/{MANIFEST}"
        try:
            answer = vendored_hf.Hub(self.endpoint).request("GET", url, timeout=10.0)
        except vendored_hf.HfHubHTTPError as error:
            if error.status_code in (429, 500, 502, 503, 504):
                raise  # there may be one, and without it nothing would be verified
            return None  # most servers have none
        except vendored_hf.HubConnectionError:
            return None  # out of reach: the request that needs the server reports it
        url = url.rpartition("@")[2]  # as messages may show it
        text = b""
        with answer:
            if "json" not in answer.headers.get("Content-Type", ""):
                return None
            try:
                for chunk in answer.iter_content(1 << 16):
                    text += chunk
                    if len(text) > MANIFEST_LIMIT:
                        raise MirrorError(f"{url} has more than {MANIFEST_LIMIT} bytes")
            except requests.RequestException as error:
                raise MirrorError(f"{url} cannot be read: {type(error).__name__}") from error
        return parse_manifest(text, url)


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


def commits_of(destination: Path) -> Commits:
    """The commits at which the mirror at `destination` has what it has: it grows at these. Raises MirrorError."""
    commits: Commits = {}
    for entry in _manifest_of(destination).entries:
        if entry.commit and commits.setdefault((entry.repo, entry.revision), entry.commit) != entry.commit:
            raise MirrorError(f"{entry.place} {_of_another_commit(entry, commits)}: build it anew, in another folder")
    return commits


def _manifest_of(destination: Path) -> Manifest:
    place = destination / MANIFEST
    return parse_manifest(place.read_bytes(), str(place)) if place.is_file() else Manifest([], [])


def _of_another_commit(entry: Entry, commits: Commits) -> str:
    first = commits[entry.repo, entry.revision]
    return f"is of commit {entry.commit}, but other files of {entry.repo} at {entry.revision} are of {first}"


def build(
    destination: Path,
    files: list[HubFile],
    listing: Listing | None,
    fetch: Callable[[HubFile], vendored_hf.LocalFile],
    on_file: Callable[[Entry, bool], None],
) -> list[Entry]:
    """Add files to the mirror at `destination`, and to its manifest after each; what is there already is kept.

    `listing` is that of the repo where its files' names tell which they are: the mirror tells it on, if it is complete.
    `fetch` gives a verified local copy, at the mirror's commits. `on_file(entry, kept)` is called for each. Raises
    MirrorError, also where a repo's files at one revision would be of two commits, and OSError.
    """
    commits, there = commits_of(destination), _manifest_of(destination)
    entries = {entry.place: entry for entry in there.entries}
    listings = {(one.repo, one.revision): one for one in there.listings}
    is_new = listing is not None and listing.complete and listing not in there.listings
    if listing and is_new:
        listings[listing.repo, listing.revision] = listing
    for file in files:
        local = fetch(file)
        sha256 = local.sha256 or sha256_of(local.path)
        size = Path(local.path).stat().st_size
        entry = Entry(file.repo, file.revision or "main", file.path, local.commit_hash, size, sha256)
        if entry.commit and commits.setdefault((entry.repo, entry.revision), entry.commit) != entry.commit:
            raise MirrorError(f"{entry.path} {_of_another_commit(entry, commits)}: nothing of it was added")
        target = destination / entry.place
        kept = entries.get(entry.place) == entry and target.is_file() and target.stat().st_size == size
        if not kept:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".incomplete")
            shutil.copyfile(local.path, partial)
            if sha256_of(partial) != sha256:
                partial.unlink()
                raise MirrorError(f"{local.path} does not have the sha256 {sha256} that names it: delete it and fetch it again")
            partial.replace(target)
            entries[entry.place] = entry
            _write_manifest(destination, entries, listings)
        on_file(entry, kept)
    if is_new:
        _write_manifest(destination, entries, listings)
    return list(entries.values())


def _write_manifest(destination: Path, entries: dict[str, Entry], listings: dict[tuple[str, str], Listing]) -> None:
    told: dict[str, Any] = {"format_version": FORMAT_VERSION, "files": [asdict(entries[key]) for key in sorted(entries)]}
    told["listings"] = [
        {"repo": one.repo, "revision": one.revision, "commit": one.commit, "paths": one.paths}
        for _, one in sorted(listings.items())
    ]
    partial = destination / f"{MANIFEST}.tmp"
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.replace(destination / MANIFEST)


def check(destination: Path, on_file: Callable[[Entry, str | None], None]) -> int:
    """Hash every file of a mirror again; `on_file` gets each, and what is wrong with it or None. Returns how many are bad."""
    place = destination / MANIFEST
    if not place.is_file():
        raise MirrorError(f"{place} does not exist: {destination} is no mirror of this program's")
    n_bad, commits = 0, Commits()
    for entry in _manifest_of(destination).entries:
        path = destination / entry.place
        problem = None
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != entry.size:
            problem = f"has {path.stat().st_size} bytes, not {entry.size}"
        elif sha256_of(path) != entry.sha256:
            problem = "has another sha256"
        elif entry.commit and commits.setdefault((entry.repo, entry.revision), entry.commit) != entry.commit:
            problem = _of_another_commit(entry, commits)
        n_bad += problem is not None
        on_file(entry, problem)
    return n_bad
