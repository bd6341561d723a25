# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files from the Hugging Face Hub, its mirrors and proxies, with `requests` alone: one file to copy.

Names, environment variables and the cache on disk are those of the huggingface_hub library: either side finds what
the other fetched. Beyond it: large files come over several connections and are resumed, also by the next process;
a sha256 is verified while the bytes arrive; proxies that drop headers and plain file servers are served too.

    path = hf_hub_download("org/repo", "config.yaml", revision="main")

To take it along: copy this file, install requests (2.27 or later), import it; requests is imported only when a
request is made. `python vendored_hf.py REPO PATH [--revision R]` fetches one file and prints where it is. Every
error is an OSError or an exception of this module; what could not be verified is a warning of `vendored_hf`'s logger.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

if os.name == "nt":
    import msvcrt
else:
    import fcntl
if TYPE_CHECKING:
    import requests

logger = logging.getLogger("vendored_hf")

ATTEMPTS, MAX_REDIRECTS = 4, 10
FIRST_WAIT, LONGEST_WAIT = 0.3, 60.0  # seconds; a Retry-After that asks for more is not waited for
CHUNK = 1 << 16
PIECE = 1 << 18  # what a kill costs each connection at most
CONNECTIONS = 4
SEVERAL_FROM = 64 << 20  # bytes from which a file comes over several connections
CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of files from the Hugging Face Hub.\n"
_RETRIED_STATUS = (429, 500, 502, 503, 504)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPO_ID = re.compile(r"[A-Za-z0-9_](?:[\w.-]*\w)?(?:/[A-Za-z0-9_](?:[\w.-]*\w)?)?", re.ASCII)

Progress = Callable[[int, int], None]


# --- what can go wrong; the names are huggingface_hub's ---------------------------------------------------------

class HfHubHTTPError(OSError):
    """The server answered, with an error. `status_code` is its HTTP status."""

    def __init__(self, message: str, status_code: int, headers: Any = None):
        super().__init__(message)
        self.status_code, self.headers = status_code, headers or {}

class RepositoryNotFoundError(HfHubHTTPError):
    """The repo does not exist, or is private to others."""

class GatedRepoError(RepositoryNotFoundError):
    """The repo is there for those who accepted its terms."""

class RevisionNotFoundError(HfHubHTTPError):
    """The repo has no such branch, tag or commit."""

class EntryNotFoundError(Exception):
    """The file is not there."""

class RemoteEntryNotFoundError(HfHubHTTPError, EntryNotFoundError):
    """The repo has no such file at this revision."""

class LocalEntryNotFoundError(FileNotFoundError, EntryNotFoundError):
    """The file is not in the cache, and the network is off or out of reach."""

class OfflineModeIsEnabled(ConnectionError):
    """A request was due while HF_HUB_OFFLINE is set."""

class HubConnectionError(ConnectionError):
    """The server cannot be reached, or hung up more often than we were willing to call again."""

class FileMetadataError(OSError):
    """The answer is not one for a file: a login page, say."""

class ConsistencyError(OSError):
    """What arrived is not what the server said it would send: wrong sha256, size or Range."""

class HFValidationError(ValueError):
    """A repo id, revision or path that the Hub cannot have."""


# --- the environment, read at each call ---------------------------------------------------------------------------

def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")

def _seconds(name: str) -> float:
    value = os.environ.get(name, "")
    return min(float(value), 3600.0) or 10.0 if re.fullmatch(r"[0-9]{1,30}(\.[0-9]{0,9})?", value) else 10.0

def _hf_home() -> Path:
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(home)))

def hf_hub_cache() -> Path:
    """The cache folder: HF_HUB_CACHE, or `hub` in HF_HOME."""
    cache = os.environ.get("HF_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(cache))) if cache else _hf_home() / "hub"

def is_offline_mode() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    return _flag("HF_HUB_OFFLINE") or _flag("TRANSFORMERS_OFFLINE")

def hf_endpoint() -> str:
    """HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

def get_token() -> str | None:
    """HF_TOKEN, or what `hf auth login` saved in HF_HOME, or None."""
    token = os.environ.get("HF_TOKEN", "")
    if not token and not _flag("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            token = Path(os.environ.get("HF_TOKEN_PATH") or _hf_home() / "token").read_text(encoding="utf-8")
    return token.strip() or None


# --- the cache ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class LocalFile:
    """A file on disk, its commit and the sha256 it was verified against or named by; None where nobody told."""

    path: str
    commit_hash: str | None
    sha256: str | None


def repo_folder_name(repo_id: str) -> str:
    """The folder of a model repo in the cache."""
    return f"models--{repo_id.replace('/', '--')}"


def try_to_load_from_cache(repo_id: str, filename: str, cache_dir: Any = None, revision: str | None = None) -> str | None:
    """The path of a cached file, or None. No request is made."""
    _check_names(repo_id, filename, revision or "main")
    folder = Path(cache_dir or hf_hub_cache()) / repo_folder_name(repo_id)
    commit = revision or "main"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
    path = folder / "snapshots" / commit / filename
    return str(path) if (commit == revision or "/" not in commit) and path.is_file() else None


def _cached(path: str, filename: str) -> LocalFile:
    """What the cache tells of a file: its snapshot is named by the commit, a large file's blob by its sha256."""
    snapshot, blob = path[: -len(filename) - 1].rpartition("snapshots" + os.sep)[2], Path(os.path.realpath(path))
    return LocalFile(
        path,
        snapshot if _COMMIT.fullmatch(snapshot) else None,
        blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None,
    )


def _check_names(repo_id: str, filename: str, revision: str) -> None:
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise HFValidationError(f"{ascii(repo_id)} is no repo id: it is of the form org/name")
    for kind, value in (("path", filename), ("revision", revision)):
        if any(part in ("", ".", "..") for part in value.split("/")) or "\\" in value or not value.isprintable():
            raise HFValidationError(f"{ascii(value)} is no {kind} inside a repo")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An exclusive lock on `path`, the one that filelock, and so huggingface_hub, takes: flock, or on Windows the
    first byte. It goes with the process that holds it; the file stays, as theirs does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
        with contextlib.suppress(BlockingIOError, PermissionError):
            if os.name == "nt":
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:  # not unlinked between open and lock
                break
        os.close(descriptor)
        if time.monotonic() - began > 10:
            began = time.monotonic()
            logger.warning("waiting for another process that holds %s", path)
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(target: str | Path) -> Iterator[BinaryIO]:
    """A new file beside `target`, whose folder is made, and which takes its name when it is whole: a reader sees the old
    one or the new one. Where writing fails the old one stays. No other process or thread has the new one's name."""
    temporary = _beside(Path(target))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(temporary, flags, 0o666), "wb") as file:
            yield file
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _beside(path: Path) -> Path:
    """A name next to `path` that no other process or thread uses; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")


def _write_text(path: Path, text: str) -> None:
    """Write a small file, unless it says so already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        with replacing(path) as file:
            file.write(text.encode())


def _write_ref(folder: Path, revision: str, commit: str | None) -> None:
    """Remember what a branch or tag resolved to."""
    if commit and revision != commit:
        _write_text(folder / "refs" / revision, commit)


def _link(blob: Path, pointer: Path) -> None:
    """snapshots/<commit>/<path> -> ../../blobs/<etag>; the file itself where links cannot be made."""
    temporary = _beside(pointer)
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), temporary)
    except (OSError, NotImplementedError):
        temporary = blob
    os.replace(temporary, pointer)


# --- HTTP ---------------------------------------------------------------------------------------------------------

def hf_hub_url(repo_id: str, filename: str, *, revision: str | None = None, endpoint: str | None = None) -> str:
    """The address of a file: <endpoint>/<repo>/resolve/<revision>/<path>."""
    _check_names(repo_id, filename, revision or "main")
    base = (endpoint or hf_endpoint()).rstrip("/")
    return f"{base}/{repo_id}/resolve/{quote(revision or 'main', safe='')}/{quote(filename)}"


class Hub:
    """One server: HTTP sessions, one a thread, and the token that it alone gets."""

    def __init__(self, endpoint: str, token: str | None = None):
        try:
            parts, self._origin = urlsplit(endpoint), _origin(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("it is not of the form http(s)://host")
        except ValueError as error:
            raise HubConnectionError(f"cannot reach {ascii(endpoint.rpartition('@')[2])}: {error}") from error
        self._token = token or get_token()
        if not re.fullmatch("[!-~]*", self._token or ""):
            raise HFValidationError("the token has characters that no token has: check HF_TOKEN")
        self._local = threading.local()
        if self._token and parts.scheme == "http" and not re.fullmatch(r"localhost|127\..*|::1", parts.hostname):
            logger.warning("the token goes to %s in the clear: use https", _shown(endpoint))

    def request(
        self, method: str, url: str, *, timeout: float, attempts: int = ATTEMPTS, byte_range: str | None = None
    ) -> requests.Response:
        """The answer, its body unread, after redirects and retries. Raises HfHubHTTPError or HubConnectionError."""
        import requests
        attempt = 1
        while True:
            wait = _backoff(attempt)
            try:
                response = self._follow(method, url, timeout, byte_range)
            except (requests.RequestException, ValueError) as error:
                if attempt >= attempts or isinstance(error, (requests.exceptions.SSLError, ValueError)):
                    raise HubConnectionError(f"cannot reach {_shown(url)}: {_reason(error)}") from error
            else:
                if response.status_code in (200, 206) or response.is_redirect:
                    return response
                failure, wait = _http_error(response, url), _retry_after(response, wait)
                response.close()
                if failure.status_code not in _RETRIED_STATUS or attempt >= attempts or wait > LONGEST_WAIT:
                    raise failure
            time.sleep(wait)
            attempt += 1

    def _follow(self, method: str, url: str, timeout: float, byte_range: str | None) -> requests.Response:
        """Send, and follow redirects by hand: requests would hand netrc's password to the next host.

        HEAD stops before it leaves the server: the headers that matter stand on the redirect itself.
        """
        import requests

        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        headers = {"Accept-Encoding": "identity", "User-Agent": "vendored_hf", **({"Range": byte_range} if byte_range else {})}
        for _ in range(MAX_REDIRECTS):
            response: requests.Response = self._local.session.request(
                method, url, headers=headers, auth=self._authorization(url), timeout=timeout, allow_redirects=False, stream=True
            )
            location = response.headers.get("Location")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return response
            target = urljoin(url, location)
            if method == "HEAD" and _origin(target) != self._origin:
                return response
            response.close()
            url = target
        raise HubConnectionError(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _authorization(self, url: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest] | None:
        """Sets the token for our server and nothing for others. None lets requests ask netrc, for our server alone."""
        if _origin(url) != self._origin:
            return lambda request: request

        def bear(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {self._token}"
            return request

        return bear if self._token else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _shown(url: str) -> str:
    """A URL as a message may show it: without user, password and query, which hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: BaseException) -> str:
    """The innermost reason that says something, without addresses (requests' own texts hold whole URLs)."""
    reason, inner, seen = "", error, []
    while isinstance(inner, BaseException) and inner not in seen:
        seen.append(inner)
        timed_out = "timed out" if "timed out" in str(inner).lower() else ""
        reason = (inner.strerror if isinstance(inner, OSError) else "") or reason or timed_out
        hidden = [arg for arg in (*inner.args, getattr(inner, "reason", None)) if isinstance(arg, BaseException)]
        inner = inner.__cause__ or inner.__context__ or (hidden[0] if hidden else None)  # type: ignore[assignment]
    return reason or ("not a valid address" if isinstance(error, ValueError) else type(error).__name__)


def _backoff(attempt: int) -> float:
    """0.3, 0.6, 1.2 s and so on, up to a fifth more, so that many clients do not return at once."""
    return float(FIRST_WAIT * 2 ** (attempt - 1) * (1 + 0.2 * random.random()))


def _retry_after(response: requests.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait, which it gives as a number or as a date."""
    value = response.headers.get("Retry-After", "").strip()
    with contextlib.suppress(ValueError, TypeError):
        from email.utils import parsedate_to_datetime  # 40 ms that few runs need

        return float(value) if value.isdigit() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return otherwise


def _http_error(response: requests.Response, url: str) -> HfHubHTTPError:
    """The exception for an error status, by the Hub's X-Error-Code where it sends one."""
    code, status = response.headers.get("X-Error-Code"), response.status_code
    said = "".join(filter(str.isprintable, response.headers.get("X-Error-Message", "")))[:200]
    bad_token = status == 401 and said.startswith("Invalid credentials")
    kind, text = {
        "GatedRepo": (GatedRepoError, "the repo is gated: accept its terms on its page, then set HF_TOKEN"),
        "RevisionNotFound": (RevisionNotFoundError, "the repo has no such revision"),
        "EntryNotFound": (RemoteEntryNotFoundError, "the repo has no such file at this revision"),
        "RepoNotFound": (RepositoryNotFoundError, "no such repo, or a private one: check its name, and HF_TOKEN"),
    }.get("RepoNotFound" if not code and status == 401 and not bad_token else code or "", (HfHubHTTPError, said or response.reason))
    if kind is HfHubHTTPError and status in (401, 403):
        text = "the token is not valid: check HF_TOKEN" if bad_token else f"the server refuses ({text}): check HF_TOKEN"
    return kind(f"HTTP {status} for {_shown(url)}: {text}", status, response.headers)


# --- metadata ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class HfFileMetadata:
    """What is known of a file before its bytes. `etag` is stripped of quotes and `W/`; all but `location` may be missing."""

    commit_hash: str | None
    etag: str | None
    size: int | None
    location: str

    def __post_init__(self) -> None:
        if not _COMMIT.fullmatch(self.commit_hash or "0" * 40) or not _ETAG.fullmatch(self.etag or "0") or (self.size or 0) < 0:
            raise FileMetadataError(f"{_shown(self.location)}: a commit, an etag or a size that no file has")

    @property
    def sha256(self) -> str | None:
        """The sha256 of the content, where the etag is one, as it is for large files on the Hub."""
        return self.etag if self.etag and _SHA256.fullmatch(self.etag) else None


def file_metadata(hub: Hub, endpoint: str, repo_id: str, filename: str, revision: str, attempts: int) -> HfFileMetadata:
    """What one HEAD request tells."""
    url = hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint)
    response = hub.request("HEAD", url, timeout=_seconds("HF_HUB_ETAG_TIMEOUT"), attempts=attempts)
    response.close()
    headers = response.headers
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size") or (None if response.is_redirect else headers.get("Content-Length"))
    commit = headers.get("X-Repo-Commit", "")
    found = HfFileMetadata(
        commit if _COMMIT.fullmatch(commit) else None,
        etag if _ETAG.fullmatch(etag) else None,
        int(size) if size and re.fullmatch("[0-9]{1,12}", size) else None,
        url if not _COMMIT.fullmatch(commit) else hf_hub_url(repo_id, filename, revision=commit, endpoint=endpoint),
    )
    if found.commit_hash:
        return found
    if headers.get("Content-Type", "").startswith("text/html") and not filename.endswith((".html", ".htm")):
        raise FileMetadataError(f"{_shown(url)}: the answer is a web page, a login perhaps, and not the file")
    # Without a commit an etag is a server's own affair: it names nothing unless it is a sha256.
    return replace(found, etag=found.sha256)


# --- downloading --------------------------------------------------------------------------------------------------

def hf_hub_download(repo_id: str, filename: str, **options: Any) -> str:
    """The local path of a file of a model repo. Options and errors are those of hf_hub_file."""
    return hf_hub_file(repo_id, filename, **options).path


def hf_hub_file(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    connections: int = CONNECTIONS,
    known: HfFileMetadata | None = None,
    on_progress: Progress | None = None,
) -> LocalFile:
    """A file of a model repo, fetched into the shared cache unless it is there.

    A file that is cached at a commit hash costs no request. Where the server cannot be reached, a file cached for
    the revision is used, with a warning. `token` defaults to get_token(), `endpoint` to HF_ENDPOINT. `known` stands
    for what HEAD would tell. `on_progress(bytes so far, bytes in all)` is called meanwhile. Raises any exception of
    this module; LocalEntryNotFoundError where the file is not cached and the server is out of reach or forbidden.
    """
    revision, endpoint = revision or "main", (endpoint or hf_endpoint()).rstrip("/")
    cache = Path(cache_dir or hf_hub_cache())
    offline = local_files_only or is_offline_mode()
    cached = try_to_load_from_cache(repo_id, filename, cache, revision)
    if cached and (_COMMIT.fullmatch(revision) or offline):
        return _cached(cached, filename)
    if offline:
        raise LocalEntryNotFoundError(f"{filename} of {repo_id} at {revision} is not in {cache}, and requests are switched off")

    folder = cache / repo_folder_name(repo_id)
    hub = Hub(endpoint, token)
    try:
        metadata = known or file_metadata(hub, endpoint, repo_id, filename, revision, 1 if cached else ATTEMPTS)
    except (HubConnectionError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and not (cached and error.status_code in _RETRIED_STATUS):
            raise
        if not cached:
            raise LocalEntryNotFoundError(f"{error}; and {filename} of {repo_id} is not in {cache}") from error
        logger.warning("%s; using the cached %s", error, cached)
        return _cached(cached, filename)

    pointer = folder / "snapshots" / (metadata.commit_hash or revision) / filename
    # Without a commit the same path and size may be another mirror's file: only what a hash names is not fetched again.
    if metadata.commit_hash and pointer.is_file() and metadata.size in (None, pointer.stat().st_size):
        with contextlib.suppress(OSError):  # the cache may be read-only, and is none the worse for it
            _write_ref(folder, revision, metadata.commit_hash)
        return _cached(str(pointer), filename)
    # A file that nobody names is kept under its own sha256, and goes by its address until that is known.
    name = metadata.etag or "from-" + hashlib.sha256(metadata.location.encode()).hexdigest()[:40]
    blob = folder / "blobs" / name
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not (cache / "CACHEDIR.TAG").exists():  # by which backup programs know a cache: bford.info/cachedir
        _write_text(cache / "CACHEDIR.TAG", CACHE_TAG)
    _write_ref(folder, revision, metadata.commit_hash)
    with _lock(cache / ".locks" / folder.name / f"{name}.lock"):
        if not metadata.etag or not blob.is_file() or blob.stat().st_size != (metadata.size or blob.stat().st_size):
            digest = download(hub, metadata, blob, connections=connections, on_progress=on_progress)
            if not metadata.etag:
                blob = blob.with_name(digest)
                os.replace(blob.with_name(name), blob)
        if not metadata.commit_hash or not pointer.is_file() or not os.path.samefile(pointer, blob):
            _link(blob, pointer)
    return _cached(str(pointer), filename)


def download(
    hub: Hub, metadata: HfFileMetadata, target: Path, *, connections: int = CONNECTIONS, on_progress: Progress | None = None
) -> str:
    """Fetch a file to `target`, by way of a partial file beside it that the next call resumes. Returns its sha256."""
    partial = target.with_name(target.name + ".parts.incomplete")
    source = Source(hub, metadata)
    of_git = metadata.commit_hash and _COMMIT.fullmatch(metadata.etag or "")  # the Hub's name of a small file
    told = metadata.etag if metadata.sha256 or of_git else None
    if metadata.size is None:
        raise FileMetadataError(f"{source.shown}: the server does not say how long it is")
    try:
        for fresh in (not metadata.etag, True):  # once more from the start if what was resumed was something else
            with contextlib.closing(_Pieces(partial, metadata.size, fresh)) as pieces:
                resumed = any(pieces.done)
                digest, git_hash = pieces.fill(source, connections if metadata.size >= SEVERAL_FROM else 1, on_progress)
                if told in (None, digest, git_hash):
                    if not told:
                        logger.warning("could not verify %s: the server sends no hash of it", source.shown)
                    pieces.finish(target)
                    return digest
            partial.unlink()
            if not resumed:
                break
    except OSError as error:
        if error.errno and not error.filename:  # a full disk says so without saying where
            error.filename = str(partial)
        raise
    raise ConsistencyError(f"{source.shown}: sha256 {digest}, git's sha1 {git_hash}; the server had said {told}")


class Source:
    """One file behind one address. Every answer is checked against the Range that was asked for, and the first ETag."""

    def __init__(self, hub: Hub, metadata: HfFileMetadata):
        self._hub, self._url, self.size, self.shown = hub, metadata.location, metadata.size, _shown(metadata.location)
        self._etag: str | None = None
        self._by_hash = metadata.sha256 is not None

    def open(self, start: int, stop: int) -> requests.Response:
        """An answer with bytes `start` to `stop`, or, where its status is not 206, with the whole file."""
        byte_range = None if (start, stop) == (0, self.size) else f"bytes={start}-{stop - 1}"
        response = self._hub.request("GET", self._url, timeout=_seconds("HF_HUB_DOWNLOAD_TIMEOUT"), byte_range=byte_range)
        problem = None
        if response.headers.get("Content-Encoding", "identity") != "identity":
            problem = "sent in an encoding that was not asked for"
        elif response.status_code == 206:
            told = response.headers.get("Content-Range", "")
            if told != f"bytes {start}-{stop - 1}/{self.size}":
                problem = f"asked for bytes {start} to {stop}, the server sent {ascii(told[:80])}"
        elif response.headers.get("Content-Length", str(self.size)) != str(self.size):
            problem = f"the server sends {ascii(response.headers['Content-Length'])} bytes, after it had said {self.size}"
        etag = response.headers.get("ETag")
        if etag != (self._etag or etag) and not self._by_hash:
            problem = "it changed while it was read"
        self._etag = etag
        if problem:
            response.close()
            raise ConsistencyError(f"{self.shown}: {problem}")
        return response

    def broken(self, failures: int, position: int, error: Exception) -> None:
        """Wait before the next connection, or give up."""
        if failures >= ATTEMPTS:
            raise HubConnectionError(
                f"{self.shown}: the connection broke {failures} times, last at byte {position}: {_reason(error)}"
            ) from error
        time.sleep(_backoff(failures))


class _Pieces:
    """A file being fetched: its bytes, in any order, and behind them a byte for each piece that is there.

    A process that is killed leaves its finished pieces to the next; finish() cuts the map off.
    """

    def __init__(self, path: Path, size: int, fresh: bool):
        self._path, self._size = path, size
        path.touch()
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        length = self._file.seek(0, 2)
        self.done = bytearray(-(-size // PIECE))
        if length == size + len(self.done) and not fresh:
            self._file.seek(size)
            self._file.readinto(self.done)
        elif length == size and not fresh:  # killed between the map's end and the rename
            self.done[:] = b"\1" * len(self.done)
        else:
            self._file.truncate(0)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._arrived = min(sum(self.done) * PIECE, size)

    def close(self) -> None:
        with self._changed:  # a connection that is still open must not write into another file of this number
            self._error = self._error or ConnectionError("given up")
            self._file.close()

    def fill(self, source: Source, connections: int, on_progress: Progress | None) -> tuple[str, str]:
        """Fetch what is missing. Returns the sha256 of the whole, and the hash by which git, and the Hub, names it."""
        spans = self._missing(connections)
        if spans:
            answer = source.open(*spans[0])  # shows whether the server knows Ranges at all, and has that many bytes
            self._file.truncate(self._size + len(self.done))
            if answer.status_code != 206:
                spans, self.done[:], self._arrived = [(0, self._size)], bytes(len(self.done)), 0
            todo = iter([(*span, answer if span == spans[0] else None) for span in spans])  # the threads share it
            for _ in range(min(connections, len(spans))):
                threading.Thread(target=self._work, args=(source, todo, len(spans) == 1), daemon=True).start()
        digest, git_digest = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)
        for piece in range(len(self.done)):
            with self._changed:
                while not self.done[piece] and not self._error:
                    self._changed.wait(0.5)  # with a limit, so that Ctrl-C gets through everywhere
                if self._error:
                    raise self._error
                self._file.seek(piece * PIECE)
                content = self._file.read(min(PIECE, self._size - piece * PIECE))
            digest.update(content)
            git_digest.update(content)
            if on_progress and spans:
                on_progress(self._arrived, self._size)
        return digest.hexdigest(), git_digest.hexdigest()

    def _missing(self, connections: int) -> list[tuple[int, int]]:
        """[start, stop) of what is to be fetched, in about as many spans as there are connections, each of whole pieces."""
        runs: list[list[int]] = []
        for piece in (number for number, done in enumerate(self.done) if not done):
            if runs and runs[-1][1] == piece:
                runs[-1][1] += 1
            else:
                runs.append([piece, piece + 1])
        longest = max(-(-sum(stop - start for start, stop in runs) // connections), 1)
        cut = [(at, min(at + longest, stop)) for start, stop in runs for at in range(start, stop, longest)]
        return [(start * PIECE, min(stop * PIECE, self._size)) for start, stop in cut]

    def _work(self, source: Source, todo: Iterator[tuple[int, int, requests.Response | None]], alone: bool) -> None:
        """Fetch span after span. Runs on a thread of its own."""
        try:
            for start, stop, answer in todo:
                self._fetch(source, start, stop, answer, alone)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _fetch(self, source: Source, start: int, stop: int, answer: requests.Response | None, alone: bool) -> None:
        """One connection after the other, until the span is there."""
        import requests
        position, furthest, failures = start, start, 0
        while position < stop:
            broken: Exception = EOFError("the answer ended early")
            response, answer = answer or source.open(position, stop), None
            with response:
                if response.status_code != 206 and (position, stop) != (0, self._size):
                    if not alone:
                        raise ConsistencyError(f"{source.shown}: the server answers some Ranges, and some not")
                    position, stop = 0, self._size
                try:
                    for chunk in response.iter_content(CHUNK):
                        if position + len(chunk) > stop:
                            raise ConsistencyError(f"{source.shown}: more came than was asked for")
                        had = min(max(furthest - position, 0), len(chunk))  # hashed already: what starts over is not written again
                        position = self._write(position + had, chunk[had:])
                except requests.RequestException as error:
                    broken = error
            if position < stop:
                failures = 1 if position >= furthest + PIECE else failures + 1
                furthest = max(furthest, position)
                source.broken(failures, position, broken)

    def _write(self, position: int, chunk: bytes) -> int:
        with self._changed:
            if self._error:
                raise self._error
            self._write_at(position, chunk)
            end = position + len(chunk)
            for piece in range(position // PIECE, end // PIECE if end < self._size else len(self.done)):
                self._write_at(self._size + piece, b"\1")
                self.done[piece] = 1
                self._changed.notify_all()
            self._arrived += len(chunk)
        return end

    def _write_at(self, position: int, content: bytes) -> None:
        self._file.seek(position)
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def finish(self, target: Path) -> None:
        """The whole is there and verified: give it its name."""
        self._file.truncate(self._size)
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._path, target)


def _main() -> None:
    import argparse
    parser = argparse.ArgumentParser(description="Fetch one file from the Hugging Face Hub and print where it is.")
    for name, what in (("repo", "org/name"), ("path", "of the file in the repo"), ("--revision", "branch, tag or commit")):
        parser.add_argument(name, help=what)
    options = parser.parse_args()
    try:
        print(hf_hub_download(options.repo, options.path, revision=options.revision))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    _main()
