# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files from the Hugging Face Hub, with `requests` alone: one file to copy into another project.

Names and meanings are those of the huggingface_hub library, and so are the environment variables (HF_ENDPOINT,
HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT) and the cache on
disk: either side finds what the other fetched. Beyond it, a sha256 etag is verified while the bytes arrive, and a
broken download is resumed, also by the next process.

    path = hf_hub_download("org/repo", "config.yaml", revision="main")

To take it along: copy this file, install requests (2.27 or later), import it. It imports nothing else of the
project it comes from, and imports requests only when a request is made. `python vendored_hf.py REPO PATH
[--revision R]` fetches one file and prints where it is. Every error is an exception of this module or an OSError.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

if TYPE_CHECKING:
    import requests

logger = logging.getLogger("vendored_hf")

DEFAULT_ENDPOINT = "https://huggingface.co"
ATTEMPTS = 4
LONGEST_WAIT = 60.0  # seconds; a Retry-After that asks for more is not waited for
MAX_REDIRECTS = 10
CHUNK = 1 << 17  # bytes; a connection that breaks costs at most the chunk it was in
PROGRESS_THAT_COUNTS = 1 << 20
_RETRIED_STATUS = (429, 500, 502, 503, 504)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO_ID = re.compile(r"[A-Za-z0-9_](?:[\w.-]*\w)?(?:/[A-Za-z0-9_](?:[\w.-]*\w)?)?", re.ASCII)

Progress = Callable[[int, "int | None"], None]


# --- what can go wrong; the names are huggingface_hub's ---------------------------------------------------------


class HfHubHTTPError(OSError):
    """The server answered, with an error. `status_code` is its HTTP status."""

    def __init__(self, message: str, status_code: int, commit_hash: str | None = None):
        super().__init__(message)
        self.status_code = status_code
        self.commit_hash = commit_hash


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
    """The answer lacks what is needed to cache the file: it does not come from a Hub."""


class ConsistencyError(OSError):
    """What arrived is not what the server said it would send: wrong sha256, wrong size."""


class HFValidationError(ValueError):
    """A repo id, revision or path that the Hub cannot have."""


# --- the environment, read at each call ---------------------------------------------------------------------------


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")


def _seconds(name: str) -> float:
    try:
        return float(os.environ[name])
    except (KeyError, ValueError):
        return 10.0


def _hf_home() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache_home, "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(home)))


def hf_hub_cache() -> Path:
    """The cache folder: HF_HUB_CACHE, or `hub` in HF_HOME."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(cache))) if cache else _hf_home() / "hub"


def is_offline_mode() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    return _flag("HF_HUB_OFFLINE") or _flag("TRANSFORMERS_OFFLINE")


def hf_endpoint() -> str:
    """HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def get_token() -> str | None:
    """HF_TOKEN, or what `hf auth login` saved in HF_HOME, or None."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token and not _flag("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            token = Path(os.environ.get("HF_TOKEN_PATH") or _hf_home() / "token").read_text(encoding="utf-8")
    token = (token or "").strip()
    return token or None


# --- the cache ----------------------------------------------------------------------------------------------------


def repo_folder_name(repo_id: str) -> str:
    """The folder of a model repo in the cache."""
    return "--".join(["models", *repo_id.split("/")])


def try_to_load_from_cache(
    repo_id: str, filename: str, cache_dir: str | Path | None = None, revision: str | None = None
) -> str | None:
    """The path of a cached file, or None. No request is made."""
    _check_names(repo_id, filename, revision or "main")
    folder = Path(cache_dir or hf_hub_cache()) / repo_folder_name(repo_id)
    commit = revision or "main"
    with contextlib.suppress(OSError):
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
    if not _COMMIT.fullmatch(commit) and commit != (revision or "main"):
        return None
    path = folder / "snapshots" / commit / filename
    return str(path) if path.is_file() else None


def cached_commit(path: str | Path) -> str | None:
    """The commit of a file that hf_hub_download returned: the name of its snapshot."""
    parts = Path(os.path.abspath(path)).parts
    for folder, commit in zip(reversed(parts[:-1]), reversed(parts[1:])):
        if folder == "snapshots":
            return commit if _COMMIT.fullmatch(commit) else None
    return None


def cached_sha256(path: str | Path) -> str | None:
    """The sha256 that names a cached file's blob, or None where it is named by another etag (small files' git hash)."""
    blob = Path(os.path.realpath(path))
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def _check_names(repo_id: str, filename: str, revision: str) -> None:
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise HFValidationError(f"{ascii(repo_id)} is no repo id: it is of the form org/name")
    for kind, value in (("path", filename), ("revision", revision)):
        if any(part in ("", ".", "..") for part in value.split("/")) or re.search(r"[\\\x00-\x1f]", value):
            raise HFValidationError(f"{ascii(value)} is no {kind} inside a repo")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An exclusive lock on `path`: the same flock that filelock, and so huggingface_hub, takes.

    The kernel drops it with the process that holds it. The file stays, as theirs does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = time.monotonic()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
        if _try_flock(descriptor) and os.fstat(descriptor).st_nlink:  # not unlinked between open and lock
            break
        os.close(descriptor)
        if time.monotonic() - waited > 10:
            waited = time.monotonic()
            logger.warning("waiting for another process that holds %s", path)
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(descriptor)


def _try_flock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where filelock locks the first byte
        import msvcrt

        take: Callable[[], Any] = lambda: msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        take = lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # noqa: E731
    try:
        take()
    except (BlockingIOError, PermissionError):
        return False
    return True


def _beside(path: Path) -> Path:
    """A name next to `path` that no other process or thread uses."""
    return path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")


def _write_beside(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _write_ref(folder: Path, revision: str, commit: str) -> None:
    """Remember what a branch or tag resolved to."""
    ref = folder / "refs" / revision
    if revision != commit and not (ref.is_file() and ref.read_text(encoding="utf-8") == commit):
        _write_beside(ref, commit)


def _tag_cache(cache: Path) -> None:
    """CACHEDIR.TAG, by which backup programs know a cache (bford.info/cachedir)."""
    tag = cache / "CACHEDIR.TAG"
    if not tag.exists():
        _write_beside(tag, "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of files from the Hugging Face Hub.\n")


def _link(blob: Path, pointer: Path) -> None:
    """snapshots/<commit>/<path> -> ../../blobs/<etag>; the file itself where links cannot be made."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(pointer)
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), temporary)
    except (OSError, NotImplementedError):
        temporary = blob
    os.replace(temporary, pointer)


# --- HTTP ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HfFileMetadata:
    """What a HEAD request tells of a file. `etag` is stripped of quotes and `W/`; any of them may be missing."""

    commit_hash: str | None
    etag: str | None
    size: int | None


def hf_hub_url(repo_id: str, filename: str, *, revision: str | None = None, endpoint: str | None = None) -> str:
    """The address of a file: <endpoint>/<repo>/resolve/<revision>/<path>."""
    _check_names(repo_id, filename, revision or "main")
    base = (endpoint or hf_endpoint()).rstrip("/")
    return f"{base}/{repo_id}/resolve/{quote(revision or 'main', safe='')}/{quote(filename)}"


class _Hub:
    """One server: an HTTP session, and the token that it alone gets."""

    def __init__(self, endpoint: str, token: str | None):
        import requests

        self._origin = _origin(endpoint)
        self._token = token
        self._session = requests.Session()

    def __enter__(self) -> _Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def request(
        self, method: str, url: str, *, timeout: float, attempts: int = ATTEMPTS, byte_range: str | None = None
    ) -> requests.Response:
        """The answer, its body unread, after redirects and retries. Raises HfHubHTTPError or HubConnectionError."""
        import requests

        for attempt in range(1, attempts + 1):
            try:
                response = self._follow(method, url, timeout, byte_range)
            except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, ValueError) as error:
                raise HubConnectionError(f"cannot reach {_shown(url)}: {_reason(error)}") from error
            except requests.RequestException as error:
                if attempt == attempts:
                    raise HubConnectionError(f"cannot reach {_shown(url)}: {_reason(error)}") from error
                wait = _backoff(attempt)
            else:
                if response.status_code < 400:
                    return response
                asked = _retry_after(response)
                wait = _backoff(attempt) if asked is None else asked
                error = _http_error(response, url)
                response.close()
                if response.status_code not in _RETRIED_STATUS or attempt == attempts or wait > LONGEST_WAIT:
                    raise error
            logger.debug("%s %s: attempt %d failed, waiting %.1f s", method, _shown(url), attempt, wait)
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, method: str, url: str, timeout: float, byte_range: str | None) -> requests.Response:
        """Send, and follow redirects by hand: requests would hand netrc's password to the next host.

        HEAD stops before it leaves the server: the headers that matter stand on the redirect itself.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "vendored_hf"}
        if byte_range:
            headers["Range"] = byte_range
        for _ in range(MAX_REDIRECTS):
            response = self._session.request(
                method,
                url,
                headers=headers,
                auth=self._authorization(url),
                timeout=timeout,
                allow_redirects=False,
                stream=True,
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
        ours = _origin(url) == self._origin
        if ours and not self._token:
            return None

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if ours:
                request.headers["Authorization"] = f"Bearer {self._token}"
            return request

        return authorize


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _shown(url: str) -> str:
    """A URL as a message may show it: without user, password and query, which hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: BaseException) -> str:
    """The innermost reason that says something, without addresses (requests' own texts hold whole URLs)."""
    reason, seen = "", set()
    inner: object = error
    while isinstance(inner, BaseException) and id(inner) not in seen:
        seen.add(id(inner))
        if isinstance(inner, OSError) and inner.strerror:
            reason = inner.strerror
        elif "timed out" in str(inner).lower():
            reason = reason or "timed out"
        inner = inner.__cause__ or inner.__context__ or next(
            (arg for arg in (*inner.args, getattr(inner, "reason", None)) if isinstance(arg, BaseException)), None
        )
    return reason or re.sub(r"(?<!^)(?=[A-Z][a-z])", " ", type(error).__name__).lower()


def _backoff(attempt: int) -> float:
    """0.3, 0.6, 1.2 s and so on, up to a fifth more, so that many clients do not return at once."""
    return 0.3 * 2 ** (attempt - 1) * (1 + 0.2 * random.random())


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, which it gives as a number or as a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        from email.utils import parsedate_to_datetime

        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _http_error(response: requests.Response, url: str) -> HfHubHTTPError:
    """The exception for an error status, by the Hub's X-Error-Code where it sends one."""
    code, status = response.headers.get("X-Error-Code"), response.status_code
    said = " ".join(response.headers.get("X-Error-Message", "").split())[:200]
    kind, text = HfHubHTTPError, said or response.reason or "an error"
    if code == "GatedRepo":
        kind, text = GatedRepoError, "the repo is gated: accept its terms on its page, then set HF_TOKEN"
    elif code == "RevisionNotFound":
        kind, text = RevisionNotFoundError, "the repo has no such revision"
    elif code == "EntryNotFound":
        kind, text = RemoteEntryNotFoundError, "the repo has no such file at this revision"
    elif code == "RepoNotFound" or (status == 401 and not said.startswith("Invalid credentials")):
        kind, text = RepositoryNotFoundError, "no such repo, or a private one: check its name, and HF_TOKEN"
    elif status == 401:
        text = "the token is not valid: check HF_TOKEN"
    elif status == 403:
        text = f"the server refuses ({said or 'forbidden'}): check what HF_TOKEN may read"
    return kind(f"HTTP {status} for {_shown(url)}: {text}", status, response.headers.get("X-Repo-Commit"))


def get_hf_file_metadata(url: str, *, token: str | None = None, timeout: float | None = None) -> HfFileMetadata:
    """What the server tells of a file, by one HEAD request."""
    with _Hub(url, token) as hub:
        return _metadata(hub, url, timeout or _seconds("HF_HUB_ETAG_TIMEOUT"), ATTEMPTS)


def _metadata(hub: _Hub, url: str, timeout: float, attempts: int) -> HfFileMetadata:
    response = hub.request("HEAD", url, timeout=timeout, attempts=attempts)
    response.close()
    headers = response.headers
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size") or (None if response.is_redirect else headers.get("Content-Length"))
    return HfFileMetadata(
        commit_hash=headers.get("X-Repo-Commit"),
        etag=etag if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", etag) else None,
        size=int(size) if size and size.isdigit() else None,
    )


# --- downloading --------------------------------------------------------------------------------------------------


def hf_hub_download(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    on_progress: Progress | None = None,
) -> str:
    """The local path of a file of a model repo, fetched into the shared cache unless it is there.

    A file that is cached at a commit hash costs no request. Where the server cannot be reached, a file cached for
    the revision is used, with a warning. `token` defaults to get_token(), `endpoint` to HF_ENDPOINT;
    `on_progress(bytes so far, bytes in all or None)` is called while bytes arrive.

    Raises RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, RemoteEntryNotFoundError or another
    HfHubHTTPError; LocalEntryNotFoundError, where the file is not cached and the server is out of reach or
    forbidden; FileMetadataError; ConsistencyError; HFValidationError; OSError, where the cache cannot be written.
    """
    revision = revision or "main"
    endpoint = (endpoint or hf_endpoint()).rstrip("/")
    cache = Path(cache_dir or hf_hub_cache())
    cached = try_to_load_from_cache(repo_id, filename, cache, revision)
    if cached and (_COMMIT.fullmatch(revision) or local_files_only or is_offline_mode()):
        return cached
    if local_files_only or is_offline_mode():
        raise LocalEntryNotFoundError(
            f"{filename} of {repo_id} at {revision} is not in {cache}, and requests are switched off"
        ) from (OfflineModeIsEnabled("HF_HUB_OFFLINE is set") if is_offline_mode() else None)

    folder = cache / repo_folder_name(repo_id)
    url = hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint)
    with _Hub(endpoint, token or get_token()) as hub:
        try:
            metadata = _metadata(hub, url, _seconds("HF_HUB_ETAG_TIMEOUT"), 1 if cached else ATTEMPTS)
        except RemoteEntryNotFoundError as error:
            _remember_absence(folder, revision, filename, error.commit_hash)
            raise
        except (HubConnectionError, HfHubHTTPError) as error:
            unreachable = isinstance(error, HubConnectionError) or error.status_code in _RETRIED_STATUS
            if not unreachable:
                raise
            if cached:
                logger.warning("%s; using the cached %s", error, cached)
                return cached
            if isinstance(error, HubConnectionError):
                raise LocalEntryNotFoundError(f"{error}; and {filename} of {repo_id} is not in {cache}") from error
            raise
        commit, etag = metadata.commit_hash, metadata.etag
        if commit is None or not _COMMIT.fullmatch(commit):
            raise FileMetadataError(f"{_shown(url)}: the answer has no X-Repo-Commit, so it does not come from a Hub")
        if etag is None:
            raise FileMetadataError(f"{_shown(url)}: the answer has no ETag by which the file could be cached")
        pointer = folder / "snapshots" / commit / filename
        if pointer.is_file():
            with contextlib.suppress(OSError):  # the cache may be read-only, and is none the worse for it
                _write_ref(folder, revision, commit)
            return str(pointer)
        blob = folder / "blobs" / etag
        blob.parent.mkdir(parents=True, exist_ok=True)
        _tag_cache(cache)
        _write_ref(folder, revision, commit)
        with _lock(cache / ".locks" / folder.name / f"{etag}.lock"):
            if not blob.is_file() or (metadata.size is not None and blob.stat().st_size != metadata.size):
                at_commit = hf_hub_url(repo_id, filename, revision=commit, endpoint=endpoint)
                _download(hub, at_commit, blob, metadata, on_progress)
            if not pointer.is_file():
                _link(blob, pointer)
    return str(pointer)


def _remember_absence(folder: Path, revision: str, filename: str, commit: str | None) -> None:
    """huggingface_hub notes what a commit does not hold; so that it finds our note as we find its."""
    if commit and _COMMIT.fullmatch(commit):
        with contextlib.suppress(OSError):
            note = folder / ".no_exist" / commit / filename
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
            _write_ref(folder, revision, commit)


def _download(
    hub: _Hub, url: str, blob: Path, metadata: HfFileMetadata, on_progress: Progress | None
) -> None:
    """Fetch `url` to `blob`, by way of <blob>.incomplete, which a later call resumes."""
    partial = blob.with_name(blob.name + ".incomplete")
    resumed = partial.is_file() and partial.stat().st_size > 0
    digest = _fetch(hub, url, partial, metadata.size, on_progress)
    expected = metadata.etag
    if expected and _SHA256.fullmatch(expected) and digest != expected:
        if resumed:  # the part that was on disk may have been the wrong one
            partial.unlink()
            digest = _fetch(hub, url, partial, metadata.size, on_progress)
        if digest != expected:
            partial.unlink()
            raise ConsistencyError(f"{_shown(url)}: the bytes have sha256 {digest}, the server said {expected}")
    os.replace(partial, blob)


def _fetch(hub: _Hub, url: str, partial: Path, size: int | None, on_progress: Progress | None) -> str:
    """Fill `partial` up to `size`, over as many connections as it takes. Returns the sha256 of the whole."""
    import requests

    with open(partial, "ab+", buffering=0) as file:  # appending: what was there is resumed
        done = file.seek(0, 2)
        if size is None or done > size:
            done = file.truncate(0)
        digest = _sha256_of_first(file, done)
        failures, furthest = 0, done
        while size is None or done < size or done == 0:
            byte_range = f"bytes={done}-" if done else None
            try:
                response = hub.request("GET", url, timeout=_seconds("HF_HUB_DOWNLOAD_TIMEOUT"), byte_range=byte_range)
            except HfHubHTTPError as error:
                if error.status_code != 416 or not done:
                    raise
                done, digest = file.truncate(0), hashlib.sha256()
                continue
            with response:
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ConsistencyError(f"{_shown(url)}: sent with an encoding that was not asked for")
                if done and not _continues(response, done, size):
                    done, digest = file.truncate(0), hashlib.sha256()
                    if response.status_code == 206:
                        continue
                broken: Exception = EOFError("the answer ended early")
                try:
                    for chunk in response.iter_content(CHUNK):
                        file.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        if on_progress:
                            on_progress(done, size)
                    if size is None or done == size:
                        break
                except requests.RequestException as error:
                    broken = error
            if size is not None and done > size:
                file.truncate(0)
                raise ConsistencyError(f"{_shown(url)}: more came than the {size} bytes that were announced")
            # Only a connection that got further than all before it is no failure: what starts over may do so forever.
            failures = 1 if done >= furthest + PROGRESS_THAT_COUNTS else failures + 1
            furthest = max(furthest, done)
            if failures == ATTEMPTS:
                raise HubConnectionError(
                    f"{_shown(url)}: the connection broke {failures} times, last at byte {done}: {_reason(broken)}"
                ) from broken
            time.sleep(_backoff(failures))
        os.fsync(file.fileno())
    return digest.hexdigest()


def _continues(response: requests.Response, start: int, size: int | None) -> bool:
    """Whether the answer to a Range request is the rest of the file from `start` on."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (
        response.status_code == 206
        and match is not None
        and int(match[1]) == start
        and (size is None or int(match[2]) == size)
    )


def _sha256_of_first(file: Any, count: int) -> Any:
    """A running sha256 over what a broken download left, and the file's position behind it."""
    digest = hashlib.sha256()
    file.seek(0)
    while count and (chunk := file.read(min(count, CHUNK))):
        digest.update(chunk)
        count -= len(chunk)
    return digest


def _main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Fetch one file from the Hugging Face Hub and print where it is.")
    parser.add_argument("repo", help="org/name")
    parser.add_argument("path", help="the file's path in the repo")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    options = parser.parse_args()
    try:
        print(hf_hub_download(options.repo, options.path, revision=options.revision))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    _main()
