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
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import vendored_hf
from oracle import strict_json
from oracle.errors import BadData
from oracle.sources import listing as listings
from oracle.sources.curation import HubFile
from oracle.sources.hashes import sha256_of
from oracle.sources.listing import Listing

Commits = dict[tuple[str, str], str]  # by repo and revision

MANIFEST, LOCK = "manifest.json", ".manifest.lock"
FORMAT_VERSION = 1

logger = logging.getLogger("vendored_hf")


class MirrorError(BadData, ValueError):
    """A mirror whose manifest cannot be read, or whose files are not those of its manifest."""


def _place(file: HubFile) -> str:
    return f"{file.repo}/resolve/{file.revision or 'main'}/{file.path}"


class Entry(NamedTuple):
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
        return _place(HubFile(self.repo, self.revision, self.path))


class Manifest(NamedTuple):
    """What a manifest.json says."""

    entries: list[Entry]
    listings: list[Listing]


def parse_manifest(text: bytes, where: str) -> Manifest:
    """A manifest.json; `where` names it in messages. Raises MirrorError."""
    try:
        document = strict_json.loads(text)
        if document["format_version"] != FORMAT_VERSION:
            raise MirrorError(f"{where} has format version {document['format_version']!r}; {FORMAT_VERSION} is known")
        entries = [Entry(**{field: file[field] for field in Entry._fields}) for file in document["files"]]
        for entry in entries:
            if not all(isinstance(text, str) for text in (entry.repo, entry.revision, entry.path)) or type(entry.size) is not int:
                raise TypeError(entry)
            is_commit = entry.commit is None or re.fullmatch("[0-9a-f]{40}", entry.commit)
            if not is_commit or not re.fullmatch("[0-9a-f]{64}", entry.sha256) or not 0 <= entry.size < vendored_hf.LARGEST:
                raise ValueError(entry)
            vendored_hf.hf_hub_url(entry.repo, entry.path, revision=entry.revision)  # refuses what leads out of the tree
        listed = document.get("listings", [])
        repos = [Listing(item["repo"], item["revision"], item["commit"], tuple(item["paths"])) for item in listed]
        texts = [text for repo in repos for text in (repo.repo, repo.revision, "" if repo.commit is None else repo.commit, *repo.paths)]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(item["paths"], list) for item in listed):
            raise TypeError(repos)
        if any(len(repo.paths) > listings.MOST_PATHS for repo in repos):
            raise MirrorError(f"{where} lists a repo of more than {listings.MOST_PATHS} files, the most that are read")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, MirrorError):
            raise
        raise MirrorError(f"{where} is not a manifest of this program: {type(error).__name__}") from error
    return Manifest(entries, repos)


def folder_of(endpoint: str | None) -> Path | None:
    """The folder that an endpoint names, by its path or as file://; None where it is a server."""
    if endpoint is None:
        return None
    if endpoint.startswith("file://"):
        return Path(unquote(urlsplit(endpoint).path))
    return None if "://" in endpoint else Path(endpoint)


class Mirror:
    """What `--mirror` names: a folder, or a server with or without a manifest. The manifest is read once."""

    def __init__(self, endpoint: str | None, patience: float = vendored_hf.PATIENCE):
        self._patience = patience
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

    def local_file(self, file: HubFile, most: int | None = None) -> vendored_hf.LocalFile:
        """A file of a mirror in a folder, where it lies; its sha256 is verified where there is a manifest.

        Raises MirrorError, also where it has more than `most` bytes, and LocalEntryNotFoundError where it is missing.
        """
        folder = self.folder or Path()
        if not folder.is_dir():
            shown = str(folder).rpartition("@")[2]  # user:password@host: somebody left the http:// out
            raise vendored_hf.LocalEntryNotFoundError(f"{shown}: there is no such folder, nor is it an http:// address")
        entry, path = self._find(file), self.path_of(file)
        if not path.is_file():
            raise vendored_hf.LocalEntryNotFoundError(f"{path} does not exist: the mirror lacks {file.path} of {file.repo}")
        if most is not None and path.stat().st_size > most:
            raise MirrorError(f"{path} has {path.stat().st_size} bytes; at most {most} are read")
        if entry is None:
            logger.warning("could not verify %s: no %s lists it", path, MANIFEST)
            return vendored_hf.LocalFile(str(path), None, None)
        if sha256_of(path) != entry.sha256:
            raise MirrorError(f"{path} is damaged: its sha256 is not the manifest's {entry.sha256}")
        return vendored_hf.LocalFile(str(path), entry.commit, entry.sha256)

    def path_of(self, file: HubFile) -> Path:
        """Where a file of a mirror in a folder lies, or would. Raises MirrorError."""
        entry, revision = self._find(file), file.revision or "main"
        vendored_hf.hf_hub_url(file.repo, file.path, revision=revision)  # refuses names that lead elsewhere
        return (self.folder or Path()) / (entry.place if entry else _place(file))

    def listing(self, repo: str, revision: str | None) -> Listing | None:
        """The paths of a repo; None where the mirror does not tell. Raises MirrorError."""
        revision, manifest = revision or "main", self._loaded()
        for listing in manifest.listings:
            if listing.repo == repo and revision in (listing.revision, listing.commit):
                return listing
        listed = [entry for entry in manifest.entries if entry.repo == repo and revision in (entry.revision, entry.commit)]
        if listed:
            return Listing(repo, revision, listed[0].commit, tuple(entry.path for entry in listed), complete=False)
        if self.folder is None:
            return None
        # A tree that was laid out by hand: its files are all that there are.
        return Listing(repo, revision, None, listings.files_below(self.folder / repo / "resolve" / revision))

    def _find(self, file: HubFile) -> Entry | None:
        revision = file.revision or "main"
        return next(
            (e for e in self._loaded().entries if (e.repo, e.path) == (file.repo, file.path) and revision in (e.revision, e.commit)),
            None,
        )

    def _loaded(self) -> Manifest:
        if self._manifest is None:
            self._manifest = load_manifest(self.folder) if self.folder else self._from_server()
        return self._manifest

    def _from_server(self) -> Manifest:
        if self.endpoint is None:
            return Manifest([], [])
        url, text = f"{self.endpoint}/{MANIFEST}", None
        try:
            text = listings.fetch(vendored_hf.Hub(self.endpoint, patience=self._patience, offline=False), url, "json")
        except vendored_hf.HfHubHTTPError as error:
            if error.status_code in vendored_hf.RETRIED_STATUS:
                raise  # there may be one, and without it nothing would be verified
        except listings.UnreadableError as error:
            raise MirrorError(str(error)) from error
        except vendored_hf.HubConnectionError:
            pass  # out of reach: the request that needs the server reports it
        return Manifest([], []) if text is None else parse_manifest(text, vendored_hf.shown(url))  # most servers have none


def commits_of(destination: Path) -> Commits:
    """The commits at which the mirror at `destination` has what it has: it grows at these. Raises MirrorError."""
    return _commits(load_manifest(destination))


def _commits(manifest: Manifest) -> Commits:
    commits: Commits = {}
    for entry in manifest.entries:
        if entry.commit and commits.setdefault((entry.repo, entry.revision), entry.commit) != entry.commit:
            commit = commits[entry.repo, entry.revision]
            raise MirrorError(f"{entry.place} {_of_another_commit(entry, commit)}: build it anew, in another folder")
    return commits


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a mirror in a folder; an empty one where there is none. Raises MirrorError."""
    place = folder / MANIFEST
    if not place.is_file():
        return Manifest([], [])
    with place.open("rb") as file:
        text = file.read(listings.LIMIT + 1)
    if len(text) > listings.LIMIT:
        raise MirrorError(f"{place} has more than {listings.LIMIT} bytes, the most that is read")
    return parse_manifest(text, str(place))


def _of_another_commit(entry: Entry, commit: str | None) -> str:
    return f"is of commit {entry.commit}, but other files of {entry.repo} at {entry.revision} are of {commit}"


def build(
    destination: Path,
    files: list[HubFile],
    listing: Listing | None,
    fetch: Callable[[HubFile], vendored_hf.LocalFile],
    on_file: Callable[[Entry, bool], None],
) -> list[Entry]:
    """Add files to the mirror at `destination`, and to its manifest after each; what is there already is kept.

    `listing` is that of the repo where its files' names tell which they are: the mirror has it too, if it is complete.
    `fetch` gives a verified local copy, at the mirror's commits. `on_file(entry, kept)` is called for each. Raises
    MirrorError, also where a repo's files at one revision would be of two commits, and OSError.
    """
    with vendored_hf.locked(destination / LOCK) as alone:  # others build here too: entries of both are to stay
        if alone:
            vendored_hf.sweep(destination / MANIFEST)
        manifest = load_manifest(destination)
        if listing is not None and listing.complete and listing not in manifest.listings:
            kept_listings = [repo for repo in manifest.listings if (repo.repo, repo.revision) != (listing.repo, listing.revision)]
            _write_manifest(destination, Manifest(manifest.entries, [*kept_listings, listing]))
    entries = []
    for file in files:
        local = fetch(file)
        sha256 = local.sha256 or sha256_of(local.path)
        size = Path(local.path).stat().st_size
        entry = Entry(file.repo, file.revision or "main", file.path, local.commit_hash, size, sha256)
        target = destination / entry.place
        with vendored_hf.locked(destination / LOCK) as alone:
            if alone:
                vendored_hf.sweep(target)
            manifest = load_manifest(destination)
            commit = _commits(manifest).get((entry.repo, entry.revision), entry.commit)
            if entry.commit and entry.commit != commit:
                raise MirrorError(f"{entry.path} {_of_another_commit(entry, commit)}: nothing of it was added")
            kept = entry in manifest.entries and target.is_file() and target.stat().st_size == size
            if not kept:
                _copy(local.path, target, destination, sha256)
                others = [other for other in manifest.entries if other.place != entry.place]
                _write_manifest(destination, Manifest([*others, entry], manifest.listings))
        entries.append(entry)
        on_file(entry, kept)
    return entries


def _copy(source: str, target: Path, destination: Path, sha256: str) -> None:
    """Copy a verified file into the mirror. Raises MirrorError where its bytes are others, or a link leads out of the mirror."""
    for folder in target.relative_to(destination).parents:
        if (destination / folder).is_symlink() and folder != Path():
            raise MirrorError(f"{destination / folder} is a link: a mirror's folders are its own; remove it")
    digest = hashlib.sha256()
    with vendored_hf.replacing(target) as copy, open(source, "rb", buffering=0) as original:
        while chunk := original.read(1 << 18):
            digest.update(chunk)
            copy.write(chunk)
        if digest.hexdigest() != sha256:
            raise MirrorError(f"{os.path.realpath(source)} does not have the sha256 {sha256} that names it: delete it and fetch it again")


def _write_manifest(destination: Path, manifest: Manifest) -> None:
    document: dict[str, Any] = {"format_version": FORMAT_VERSION}
    document["files"] = [entry._asdict() for entry in sorted(manifest.entries, key=lambda entry: entry.place)]
    document["listings"] = [
        {"repo": repo.repo, "revision": repo.revision, "commit": repo.commit, "paths": repo.paths}
        for repo in sorted(manifest.listings, key=lambda repo: (repo.repo, repo.revision))
    ]
    with vendored_hf.replacing(destination / MANIFEST) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode())


def check(destination: Path, on_file: Callable[[Entry, str | None], None]) -> None:
    """Hash every file of a mirror again; `on_file` gets each, and what is wrong with it or None. Raises MirrorError where there is no manifest."""
    place = destination / MANIFEST
    if not place.is_file():
        raise MirrorError(f"{place} does not exist: {destination} is no mirror that `python -m oracle mirror` built; build it first, without --check")
    commits = Commits()
    for entry in load_manifest(destination).entries:
        path = destination / entry.place
        problem = None
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != entry.size:
            problem = f"has {path.stat().st_size} bytes, not {entry.size}"
        elif sha256_of(path) != entry.sha256:
            problem = "has another sha256"
        elif entry.commit and commits.setdefault((entry.repo, entry.revision), entry.commit) != entry.commit:
            problem = _of_another_commit(entry, commits[entry.repo, entry.revision])
        on_file(entry, problem)
