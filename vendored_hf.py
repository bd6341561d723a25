# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files from the Hugging Face Hub, its mirrors and proxies, with `requests` alone: one file to copy.

Names, environment variables and the cache on disk are those of the huggingface_hub library: either side finds what
the other fetched. Beyond it: large files come over several connections and are resumed, also by the next process;
a sha256 is verified while the bytes arrive; proxies that drop headers and plain file servers are served too.

    path = hf_hub_download("org/repo", "config.yaml", revision="main")

To take it along: copy this file, install requests (2.27 or later), import it. `python vendored_hf.py REPO PATH [--revision R]`
fetches one file and prints where it is. Every error is an OSError or an exception of this module; what could not be verified
is a warning of `vendored_hf`'s logger.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

if os.name == "nt":
    import msvcrt
else:
    import fcntl
if TYPE_CHECKING:
    import requests

logger = logging.getLogger("vendored_hf")
HUGGING_FACE = "https://huggingface.co"
ATTEMPTS, MAX_REDIRECTS = 4, 10
FIRST_WAIT = 0.3  # seconds
PATIENCE = 120.0  # seconds that one request may take with all its waits, those that the server asks for among them
DEAD = 3600.0  # seconds without a byte after which whoever wrote a file is taken for dead
CHUNK, PIECE = 1 << 16, 1 << 18  # bytes: what is read at once, and what a kill costs each connection at most
CONNECTIONS, SEVERAL_FROM = 4, 64 << 20  # for a file of so many bytes or more
LARGEST = 10**12  # bytes of a file
CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of files from the Hugging Face Hub.\n"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
RETRIED_STATUS = (408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)  # of what may pass by itself
_OF_HUB = ("X-Repo-Commit", "X-Linked-Etag", "X-Linked-Size")
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_EMPTY = ("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", hashlib.sha256().hexdigest())  # git's name of an empty file, and its sha256
_LEFT = re.compile(r"\.[0-9a-f]{16}\.(?:tmp|incomplete)")  # behind a name: a file that was being written
_LOGIN = ": put user:password@ before the proxy's host"
_refused: set[str] = set()  # saved tokens of which a server has said that they are not valid
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
class NoHomeError(OSError):
    """The cache would be in the home folder of somebody who has none."""

# --- the environment, read at each call ---------------------------------------------------------------------------
def _setting(*names: str) -> str:
    """The first of these variables that is not blank."""
    return next(filter(None, (os.environ.get(name, "").strip() for name in names)), "")
def _flag(*names: str) -> bool:
    return _setting(*names).upper() in ("1", "ON", "YES", "TRUE")
def _seconds(name: str) -> float:
    value = _setting(name)
    return min(float(value), 3600.0) or 10.0 if re.fullmatch(r"[0-9]{1,30}(\.[0-9]{0,9})?", value) else 10.0
def _expanded(path: str) -> Path:
    path = os.path.expandvars(os.path.expanduser(path))
    if path.startswith("~"):
        raise NoHomeError(f"{said(path)}: there is no home folder: set HF_HUB_CACHE, or name the cache's folder")
    return Path(path)
def _hf_home() -> Path:
    return _expanded(_setting("HF_HOME") or os.path.join(_setting("XDG_CACHE_HOME") or "~/.cache", "huggingface"))

def hf_hub_cache(cache_dir: Any = None) -> Path:
    """The cache folder: `cache_dir`, or HF_HUB_CACHE, or `hub` in HF_HOME. Raises OSError where that needs a home and there is none."""
    if cache_dir:
        return _expanded(str(cache_dir))
    cache = _setting("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    return _expanded(cache) if cache else _hf_home() / "hub"

def is_offline_mode() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    return _flag("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

def hf_endpoint() -> str:
    """HF_ENDPOINT, or huggingface.co."""
    return (_setting("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")

def get_token() -> str | None:
    """HF_TOKEN, or what `hf auth login` saved in HF_HOME, or None. No Hub asks for it where HF_HUB_DISABLE_IMPLICIT_TOKEN is set."""
    token = _setting(*_TOKENS)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        token = token or _token_path().read_text(encoding="utf-8").strip()
    return token or None
def _token_path() -> Path:
    path = _setting("HF_TOKEN_PATH")
    return _expanded(path) if path else _hf_home() / "token"

class LocalFile(NamedTuple):
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
    folder = hf_hub_cache(cache_dir) / repo_folder_name(repo_id)
    commit = revision or "main"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
        if not _COMMIT.fullmatch(commit):
            return None
    path = folder / "snapshots" / commit / filename
    return str(path) if path.is_file() else None
def _cached(folder: Path, path: str, filename: str) -> LocalFile:
    """What the cache tells of a file: its snapshot is named by the commit, a large file's blob by its sha256."""
    snapshot, blob = path[len(str(folder / "snapshots")) + 1 : -len(filename) - 1], Path(os.path.realpath(path))
    by_hash = blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
    return LocalFile(path, snapshot if _COMMIT.fullmatch(snapshot) else None, blob.name if by_hash else None)
def _check_names(repo_id: str, filename: str, revision: str) -> None:
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise HFValidationError(f"{ascii(repo_id)} is no repo id: it is of the form org/name")
    for kind, value in (("path", filename), ("revision", revision)):
        if any(part in ("", ".", "..") for part in value.split("/")) or "\\" in value or not value.isprintable():
            raise HFValidationError(f"{ascii(value)} is no {kind} inside a repo")
def _open(path: Path, flags: int, mode: int = 0o666) -> int:
    """os.open, which follows no link that somebody has put at `path`."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0), mode)

@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """An exclusive lock on `path`, the one that filelock, and so huggingface_hub, takes: flock, or on Windows the
    first byte. It goes with the process that holds it; the file stays, as theirs does. Yields whether it keeps others out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    while True:
        with open(_open(path, os.O_RDWR | os.O_CREAT, 0o664), "rb") as first, open(_open(path, os.O_RDWR | os.O_CREAT, 0o664), "rb") as second:
            try:
                held = _locked(first.fileno()) and os.fstat(first.fileno()).st_nlink > 0  # not unlinked between open and lock
                trusted = held and not _locked(second.fileno())
            except OSError:
                held, trusted = True, False
            if held and not trusted:
                logger.warning("no lock keeps others from %s here: what several processes want is fetched by each", path)
            if held:
                yield trusted
                return
        if time.monotonic() - began > 10:
            began = time.monotonic()
            logger.warning("waiting for another process that holds %s", path)
        time.sleep(0.05)
def _locked(descriptor: int) -> bool:
    """Lock an open file. False where another holds it. Raises OSError where there are no locks."""
    try:
        if os.name == "nt":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == (errno.EACCES if os.name == "nt" else errno.EWOULDBLOCK):
            return False
        raise
    return True

@contextlib.contextmanager
def replacing(target: str | Path) -> Iterator[BinaryIO]:
    """A new file beside `target`, whose folder is made, and which takes its name when it is whole: a reader sees the old
    one or the new one. Where writing fails the old one stays. No other process or thread has the new one's name."""
    temporary = _beside(Path(target))
    sweep(Path(target), DEAD)
    try:
        with open(_open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            yield file
        os.replace(temporary, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # it does not say where
            error.filename = error.filename or str(target)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
def _beside(path: Path) -> Path:
    """A name next to `path` that no other process or thread uses; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")

def sweep(path: Path, age: float = 0.0) -> None:
    """Remove what processes that are dead had begun to write for `path`: what nobody has written to for `age` seconds. Who has the
    lock under which it is written leaves the age out. Downloads beside it that nobody has resumed for a week go too."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            still = time.time() - entry.stat(follow_symlinks=False).st_mtime
            of_path = entry.name.startswith(path.name) and _LEFT.fullmatch(entry.name, len(path.name))
            if (of_path and still >= age) or (entry.name.endswith(".parts.incomplete") and still > 7 * 86400):
                os.unlink(entry)
def _write_text(path: Path, text: str) -> None:
    """Write a small file, unless it says so already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        with replacing(path) as file:
            file.write(text.encode())
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
    """One server: an HTTP session, and the token that it alone gets. A request takes `patience` seconds at most.
    `offline` forbids it; None is HF_HUB_OFFLINE."""

    def __init__(self, endpoint: str, token: str | None = None, patience: float = PATIENCE, offline: bool | None = None):
        self._offline = offline
        self._origin = _origin(_prepared(endpoint))
        self._implicit, self._patience = not _flag("HF_HUB_DISABLE_IMPLICIT_TOKEN"), patience
        self._token = token or (get_token() if self._implicit else None)
        if not token and self._token in _refused:
            self._token = None
        if not re.fullmatch("[!-~]*", self._token or ""):
            raise HFValidationError("the token has characters that no token has: check HF_TOKEN")
        self._session: Any = None
        if self._token and self._origin[0] == "http" and not re.fullmatch(r"localhost|127(\.\d+){3}|::1", self._origin[1] or ""):
            logger.warning("the token goes to %s in the clear: use https", shown(endpoint))

    def request(self, method: str, url: str, *, timeout: float, attempts: int = ATTEMPTS, byte_range: str | None = None) -> requests.Response:
        """The answer, its body unread, after redirects and retries. Raises HfHubHTTPError, HubConnectionError, or
        OfflineModeIsEnabled; neither they nor their causes show a secret."""
        import requests
        if is_offline_mode() if self._offline is None else self._offline:
            raise OfflineModeIsEnabled(f"{shown(url)} is not asked: HF_HUB_OFFLINE is set")
        attempt, deadline = 1, time.monotonic() + self._patience
        while True:
            asked, began = None, time.monotonic()
            response = self._answer(method, url, timeout, byte_range, deadline)
            failure: HfHubHTTPError | HubConnectionError
            if isinstance(response, Exception):
                failure = response if isinstance(response, HubConnectionError) else _unreachable(f"cannot reach {shown(url)}", url, response, None)
                lasting = isinstance(response, (HubConnectionError, requests.exceptions.SSLError, ValueError))
            elif response.status_code in (200, 206) or (method == "HEAD" and (response.is_redirect or response.status_code in (405, 501))):
                return response
            else:
                response.close()
                failure, lasting = _http_error(response, url), response.status_code not in RETRIED_STATUS
                asked = _asked_wait(response)
                if self._token and response.status_code == 401 and _has_token(response) and self._token == get_token() and not _setting(*_TOKENS):
                    logger.warning("the token in %s is not valid any more: going on without it; `hf auth login` saves another", _token_path())
                    _refused.add(self._token)
                    self._token = None
                    continue
            wait = _backoff(attempt) if asked is None else asked
            if asked and not lasting:
                until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + min(asked, 1e9)))
                failure.args = (f"{failure}; the server asks to wait until {until}",)
            if lasting or attempt >= attempts or time.monotonic() + wait > deadline:
                raise failure
            if asked or time.monotonic() - began > 5:  # nobody is to wait without a word
                logger.warning("%s%s", failure, "" if asked else "; asking again")
            time.sleep(wait)
            attempt += 0 if asked and asked >= 1 else 1  # a wait that the server asks for costs no attempt

    def _answer(self, method: str, url: str, timeout: float, byte_range: str | None, deadline: float) -> requests.Response | Exception:
        """What _follow gives or raises. `timeout` is for each silence, so that a server could go on for ever with headers, or with
        100 Continue: past the deadline it is left behind, on its thread."""
        import requests
        outcome: list[requests.Response | Exception] = []
        if self._session is None:
            session = requests.Session()
            setattr(session, "get_redirect_target", lambda _: None)  # requests would read a redirect's body, and prepare its request
            self._session = session
        def ask() -> None:
            try:
                outcome.append(self._follow(method, url, timeout, byte_range))
            except Exception as error:
                outcome.append(error)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        return outcome[0] if outcome else HubConnectionError(f"cannot reach {shown(url)}: no whole answer in {self._patience:g} s")

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """An answer's body, up to CHUNK bytes at a time. Raises EOFError where it breaks, and HubConnectionError where so many take
        longer than a request may."""
        raw: Any = response.raw
        if getattr(raw._fp, "chunked", False):
            raw._fp.fp = _Chunked(raw._fp.fp)
        read1 = getattr(raw, "read1", None) or raw._fp.read1  # read() waits for all that it is asked for
        part = b"so far"
        while part:
            deadline, chunk, broken = time.monotonic() + self._patience, bytearray(), None
            while part and len(chunk) < CHUNK:
                if time.monotonic() > deadline:
                    raise HubConnectionError(f"{shown(response.url)}: {len(chunk)} bytes came in {self._patience:g} s")
                try:
                    part = read1(CHUNK - len(chunk))
                except Exception as error:  # urllib3's, http.client's, ssl's: whatever they make of what a server sends
                    part, broken = b"", error
                chunk += part
            if chunk:
                yield bytes(chunk)
            if broken:
                raise EOFError("the answer broke off") from broken

    def _follow(self, method: str, url: str, timeout: float, byte_range: str | None) -> requests.Response:
        """Send, and follow redirects by hand: requests would hand netrc's password to the next host. HEAD stops before it leaves
        the server: the headers that matter stand on the redirect itself. What the Hub's own headers say on the way stands on a GET's answer."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "vendored_hf", **({"Range": byte_range} if byte_range else {})}
        address, of_hub = _prepared(url), dict[str, str]()
        for _ in range(MAX_REDIRECTS):
            response: requests.Response = self._session.request(
                method, address, headers=headers, auth=self._authorize, timeout=timeout, allow_redirects=False, stream=True
            )
            of_hub = {**{name: response.headers[name] for name in _OF_HUB if name in response.headers}, **of_hub}
            response.headers.update(of_hub)
            location = response.headers.get("Location")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return response
            response.close()
            address = _prepared(location, response.url)
            if method == "HEAD" and _origin(address) != self._origin:
                return response
        raise HubConnectionError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Called by requests with what it is about to send, whose address alone says to whom: only our server gets the token,
        or else the login in its address or in netrc. (requests would ask netrc by itself if this were not here.)"""
        from requests.auth import HTTPBasicAuth
        from requests.utils import get_auth_from_url, get_netrc_auth
        ours, address = _origin(request.url or "") == self._origin, request.url or ""
        if ours and self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        elif ours:
            if not any(login := get_auth_from_url(address)) and self._implicit:
                login = get_netrc_auth(address) or login
            if any(login):
                HTTPBasicAuth(*login)(request)
        return request

class _Chunked:
    """Stands for the file that http.client reads a chunked body from: it would read lines for ever where trailers do not end."""
    def __init__(self, file: Any):
        self._file, self._lines = file, 0

    def __getattr__(self, name: str) -> Any:
        self._lines = self._lines + 1 if name == "readline" else 0
        if self._lines > 100:
            raise ValueError("lines without end")
        return getattr(self._file, name)
def _prepared(address: str, base: str = "") -> str:
    """An address, or the one to which `base` redirects, in the form in which requests sends it. Raises HubConnectionError."""
    import requests
    problem = "it is not of the form http(s)://host"
    with contextlib.suppress(ValueError):
        prepared = requests.Request("GET", urljoin(base, address)).prepare().url or ""
        if "\\" in address or not address.isprintable() or (base and "@" in urlsplit(address).netloc):
            problem = "one reader of it may take another host than the next"
        elif base.startswith("https:") and prepared.startswith("http:"):
            problem = "it leaves https"
        elif prepared.startswith(("http://", "https://")):
            return prepared
    raise HubConnectionError(f"cannot reach {f'{shown(base)}: it redirects to ' if base else ''}{shown(address)}: {problem}")
def _origin(prepared: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(prepared)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)

def shown(address: str) -> str:
    """An address as a message may show it: without user, password, query and control characters. Where a password may hold
    a `/`, `?` or `#`, so that nobody knows where it ends, nothing of it is shown."""
    scheme, host, path, query = re.findall(r"^([A-Za-z][A-Za-z0-9+.-]*://)?([^/\\?#]*)([^?#]*)(.*)", address, re.DOTALL)[0]
    return "".join(filter(str.isprintable, scheme + ("..." if "@" in path + query else host.rpartition("@")[2] + path)))[:500]

def said(text: str) -> str:
    """Words of a server or a library as a message may show them: addresses in them as above, no control characters."""
    return "".join(filter(str.isprintable, re.sub(r"\S*(?:://|@|\?\S)\S*", lambda word: shown(word[0]), text[:500])))[:200]
def _by_way(url: str) -> str:
    """Names the proxy that requests takes to `url`, if it takes one."""
    from requests.utils import get_environ_proxies, select_proxy
    with contextlib.suppress(ValueError):
        if proxy := select_proxy(url, get_environ_proxies(url)):
            names = [name for name in (f"{urlsplit(url).scheme.upper()}_PROXY", "ALL_PROXY") if _setting(name, name.lower())]
            return f" by way of the proxy {shown(proxy)}{f', which {names[0]} names' if names else ''}"
    return ""
def _unreachable(what: str, url: str, error: BaseException, handled: BaseException | None) -> HubConnectionError:
    """What is raised for an error of requests: the innermost reason that says something, and the names of all, since the texts of
    requests and urllib3 hold whole addresses, passwords and words of servers. Not to be raised in `except`: its context would be that."""
    reason, names = "", list[str]()
    inner: BaseException | None = error
    while inner is not None and inner is not handled:  # Python hangs what the caller was handling behind the causes
        names.append(type(inner).__name__)
        known = re.search(r"Tunnel connection failed: [^')]*|Missing dependencies for SOCKS|timed out|Could not find .*, invalid path: .*", str(inner))
        reason = (inner.strerror if isinstance(inner, OSError) else "") or (known[0] if known else reason)
        inner = inner.__cause__ or inner.__context__
    reason = said(reason) or ("not a valid address" if isinstance(error, ValueError) and names[0] != "InvalidHeader" else names[-1])
    by_way = _by_way(getattr(getattr(error, "request", None), "url", None) or url)
    failure = HubConnectionError(f"{what}{by_way}: {reason}{_LOGIN if 'failed: 407' in reason else ': pip install PySocks' if 'SOCKS' in reason else ''}")
    failure.__cause__ = ConnectionError(" < ".join(names))
    return failure
def _backoff(attempt: int) -> float:
    """0.3, 0.6, 1.2 s and so on, up to a fifth more, so that many clients do not return at once."""
    return float(FIRST_WAIT * 2 ** (attempt - 1) * (1 + 0.2 * random.random()))
def _asked_wait(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait: a number, a date, or, as the Hub has it, until the quotas that are used up are there again."""
    value, limits = response.headers.get("Retry-After", "").strip(), response.headers.get("RateLimit", "")
    used_up = [quota for quota in re.sub(r'"[^"]*"', "", limits[:500]).split(",") if re.search(r"\br\s*=\s*0\s*(?:;|$)", quota)]
    times = re.findall(r"\bt\s*=\s*(\d{1,9})\b", ",".join(used_up)) or re.findall(r"\breset\s*=\s*(\d{1,9})\b", limits[:500])  # drafts before the 8th
    if times and response.status_code == 429:
        return max(map(float, times)) + 1
    with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
        from email.utils import parsedate_to_datetime  # 40 ms that few runs need
        return float(value) if value.isdigit() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
def _has_token(response: requests.Response) -> bool:
    return str(response.request.headers.get("Authorization", "")).startswith("Bearer ")  # none where a redirect led to another host
def _http_error(response: requests.Response, url: str) -> HfHubHTTPError:
    """The exception for an error status, by the Hub's X-Error-Code where it sends one."""
    code, status = response.headers.get("X-Error-Code"), response.status_code
    message = said(response.headers.get("X-Error-Message", "") or response.reason or "")
    bad_token = status == 401 and (message.startswith("Invalid credentials") or (not code and _has_token(response)))
    kind, text = {
        "GatedRepo": (GatedRepoError, "the repo is gated: accept its terms on its page, then set HF_TOKEN"),
        "RevisionNotFound": (RevisionNotFoundError, "the repo has no such revision"),
        "EntryNotFound": (RemoteEntryNotFoundError, "the repo has no such file at this revision"),
        "RepoNotFound": (RepositoryNotFoundError, "no such repo, or a private one: check its name, and HF_TOKEN"),
    }.get("RepoNotFound" if not code and status == 401 and not bad_token else code or "", (HfHubHTTPError, message))
    by_way = _by_way(url) if status in (403, 407, 502, 503, 504) else ""  # it may be the proxy that refuses
    if kind is HfHubHTTPError and status in (401, 403):
        refused = f"{'it or ' if by_way else ''}the server refuses ({text}): check HF_TOKEN"
        text = "the token is not valid: check HF_TOKEN" if bad_token else refused
    return kind(f"HTTP {status} for {shown(url)}{by_way}: {text}{_LOGIN if by_way and status == 407 else ''}", status, response.headers)

@dataclass(frozen=True)
class HfFileMetadata:
    """What is known of a file before its bytes. `etag` is stripped of quotes and `W/`; all but `location` may be missing."""

    commit_hash: str | None
    etag: str | None
    size: int | None
    location: str

    def __post_init__(self) -> None:
        if not _COMMIT.fullmatch(self.commit_hash or "0" * 40) or not _ETAG.fullmatch(self.etag or "0") or not 0 <= (self.size or 0) < LARGEST:
            raise FileMetadataError(f"{shown(self.location)}: a commit, an etag or a size that no file has")

    @property
    def sha256(self) -> str | None:
        """The sha256 of the content, where the etag is one, as it is for large files on the Hub."""
        return self.etag if self.etag and _SHA256.fullmatch(self.etag) else None

def file_metadata(hub: Hub, endpoint: str, repo_id: str, filename: str, revision: str, attempts: int) -> HfFileMetadata:
    """What one HEAD request tells, and the start of a GET where HEAD is refused or does not tell the length."""
    url = hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint)
    commit = etag = size = ""
    for method in ("HEAD", "GET"):
        response = hub.request(method, url, timeout=_seconds("HF_HUB_ETAG_TIMEOUT"), attempts=attempts)
        response.close()
        headers = response.headers if response.status_code < 400 else {}  # a server without HEAD
        commit = commit or headers.get("X-Repo-Commit", "")
        etag = etag or _bare(headers.get("X-Linked-Etag") or headers.get("ETag"))
        size = headers.get("X-Linked-Size") or ("" if response.is_redirect else headers.get("Content-Length", ""))
        if re.fullmatch("0*[1-9][0-9]{0,11}", size):  # there are servers whose HEAD says 0
            break
    commit_hash = commit if _COMMIT.fullmatch(commit) else None
    location = hf_hub_url(repo_id, filename, revision=commit_hash, endpoint=endpoint) if commit_hash else url
    length = int(size) if re.fullmatch("[0-9]{1,12}", size) else None
    if not commit_hash and headers.get("Content-Type", "").startswith("text/html") and not filename.endswith((".html", ".htm")):
        raise FileMetadataError(f"{shown(url)}: the answer is a web page, a login perhaps, and not the file")
    # An etag that is no hash is a server's own affair: two files may have the same (a date and a size, say), and it names neither.
    return HfFileMetadata(commit_hash, etag if _SHA256.fullmatch(etag) or (commit_hash and _COMMIT.fullmatch(etag)) else None, length, location)
def _bare(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')  # a weak one may name the same bytes

def hf_hub_download(repo_id: str, filename: str, **options: Any) -> str:
    """The local path of a file of a model repo. Options and errors are those of hf_hub_file."""
    return hf_hub_file(repo_id, filename, **options).path

def hf_hub_file(
    repo_id: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None, endpoint: str | None = None,
    token: str | None = None, local_files_only: bool | None = None, connections: int = CONNECTIONS,
    known: HfFileMetadata | None = None, on_progress: Progress | None = None, patience: float = PATIENCE, most: int | None = None,
) -> LocalFile:
    """A file of a model repo, fetched into the shared cache unless it is there.

    A file that is cached at a commit hash costs no request. Where the server cannot be reached, a file cached for the revision is
    used, with a warning. `token` defaults to get_token(), `endpoint` to HF_ENDPOINT, `local_files_only` to HF_HUB_OFFLINE. `known`
    stands for what HEAD would tell. `on_progress(bytes so far, bytes in all)` is called meanwhile. No request takes longer than
    `patience` seconds, the waits that a server asks for included. A file of more than `most` bytes is not fetched. Raises any
    exception of this module; LocalEntryNotFoundError where the file is not cached and the server is out of reach or forbidden.
    """
    revision, endpoint = revision or "main", (endpoint or hf_endpoint()).rstrip("/")
    cache = hf_hub_cache(cache_dir)
    folder = cache / repo_folder_name(repo_id)
    offline = is_offline_mode() if local_files_only is None else local_files_only
    cached = try_to_load_from_cache(repo_id, filename, cache, revision)
    if cached and not os.path.getsize(cached) and os.path.basename(os.path.realpath(cached)) not in _EMPTY:
        cached = None  # what a disk that was full or torn left of it
    if cached and (_COMMIT.fullmatch(revision) or offline):
        return _cached(folder, cached, filename)
    if offline:
        raise LocalEntryNotFoundError(f"{filename} of {repo_id} at {revision} is not in {cache}, and requests are switched off")
    hub = Hub(endpoint, token, patience, offline=False)
    try:
        metadata = known or file_metadata(hub, endpoint, repo_id, filename, revision, 1 if cached else ATTEMPTS)
    except (HubConnectionError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and not (cached and error.status_code in RETRIED_STATUS):
            raise
        if not cached:
            raise LocalEntryNotFoundError(f"{error}; and {filename} of {repo_id} is not in {cache}") from error
        logger.warning("%s; using the cached %s", error, cached)
        return _cached(folder, cached, filename)
    if most is not None and (metadata.size or 0) > most:
        raise ConsistencyError(f"{shown(metadata.location)} has {metadata.size} bytes; at most {most} are read")
    pointer = folder / "snapshots" / (metadata.commit_hash or revision) / filename
    if metadata.commit_hash and metadata.commit_hash != revision:
        with contextlib.suppress(OSError):  # the cache may be read-only, and is none the worse for it
            _write_text(folder / "refs" / revision, metadata.commit_hash)
    # Without a commit the same path and size may be another mirror's file: only what a hash names is not fetched again.
    if metadata.commit_hash and pointer.is_file() and metadata.size in (None, pointer.stat().st_size):
        return _cached(folder, str(pointer), filename)
    # A file that nobody names is kept under its own sha256, and goes by its address until that is known.
    name = metadata.etag or "from-" + hashlib.sha256(metadata.location.encode()).hexdigest()[:40]
    blob = folder / "blobs" / name
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not (cache / "CACHEDIR.TAG").exists():  # by which backup programs know a cache: bford.info/cachedir
        _write_text(cache / "CACHEDIR.TAG", CACHE_TAG)
    with locked(cache / ".locks" / folder.name / f"{name}.lock") as alone:
        for path in (blob, pointer) if alone else ():
            sweep(path)
        if not metadata.etag or not blob.is_file() or blob.stat().st_size != (metadata.size or blob.stat().st_size):
            blob = download(hub, metadata, blob, connections=connections, on_progress=on_progress, alone=alone)
        if not metadata.commit_hash or not pointer.is_file() or not os.path.samefile(pointer, blob):
            _link(blob, pointer)
    return _cached(folder, str(pointer), filename)

def download(
    hub: Hub, metadata: HfFileMetadata, target: Path, *, connections: int = CONNECTIONS, on_progress: Progress | None = None, alone: bool = True
) -> Path:
    """Fetch a file by way of a partial file beside `target` that the next call resumes, or that is this call's own where it
    is not `alone`. Returns `target`, or, where the metadata does not name these bytes, the place beside it that is named by their sha256."""
    partial = target.with_name(f"{target.name}.{'parts' if alone else os.urandom(8).hex()}.incomplete")
    source = Source(hub, metadata)
    if metadata.size is None:
        raise FileMetadataError(f"{source.shown}: the server does not say how long it is")
    of_git = bool(metadata.commit_hash and _COMMIT.fullmatch(metadata.etag or ""))  # the Hub's name of a small file, or another's sha1
    fresh = not metadata.etag
    try:
        while True:
            with contextlib.closing(_Pieces(partial, metadata.size, fresh)) as pieces:
                resumed = any(pieces.done)
                hashes = pieces.fill(source, connections if metadata.size >= SEVERAL_FROM else 1, on_progress, of_git)
                named = metadata.etag if metadata.sha256 or of_git else source.sha256
                unnamed = not named or (of_git and not resumed and metadata.location.startswith("https:"))  # TLS vouches for it
                if named in hashes or unnamed:
                    if named not in hashes:
                        logger.warning("could not verify %s: the server sends no hash of it", source.shown)
                    return pieces.finish(target if metadata.etag in hashes else target.with_name(hashes[0]))
            partial.unlink()
            if not resumed:
                raise ConsistencyError(f"{source.shown}: sha256 or git's sha1 or sha1 {' or '.join(hashes)}; the server had said {named}")
            fresh = True  # once more from the start: what was resumed was something else
    except OSError as error:
        if error.errno and not error.filename:  # a full disk says so without saying where
            error.filename = str(partial)
        raise
    finally:
        if not alone:
            partial.unlink(missing_ok=True)

class Source:
    """One file behind one address. Every answer is checked against the Range that was asked for, and against those before it.
    `sha256` is what an answer told, `watched` whether there is a hash, an ETag or a date by which a change would be seen."""

    def __init__(self, hub: Hub, metadata: HfFileMetadata):
        self.hub, self._url, self.size, self.shown = hub, metadata.location, metadata.size, shown(metadata.location)
        self._seen: dict[str, str] = {}
        self.sha256 = metadata.sha256
        self._by_hash = self.watched = metadata.sha256 is not None

    def open(self, start: int, stop: int) -> requests.Response:
        """An answer with bytes `start` to `stop`, or, where its status is not 206, with the whole file."""
        byte_range = None if (start, stop) == (0, self.size) else f"bytes={start}-{stop - 1}"
        response = self.hub.request("GET", self._url, timeout=_seconds("HF_HUB_DOWNLOAD_TIMEOUT"), byte_range=byte_range)
        headers, problem = response.headers, None
        length = headers.get("Content-Length")
        if byte_range and response.status_code != 206 and length != str(self.size):  # it may be the whole, a part, or a page
            response.close()
            return self.open(0, self.size or 0)
        if headers.get("Content-Encoding", "identity") != "identity":
            problem = "sent in an encoding that was not asked for"
        elif response.status_code == 206:
            content_range = headers.get("Content-Range", "")
            if content_range not in (f"bytes {start}-{stop - 1}/{self.size}", f"bytes {start}-{stop - 1}/*"):
                problem = f"asked for bytes {start} to {stop}, the server sent {ascii(content_range[:80])}"
        elif length not in (None, str(self.size)):
            problem = f"the server sends {ascii(length[:80])} bytes, after it had said {self.size}"
        seen = {name: _bare(headers[name]) for name in ("ETag", "Last-Modified") if name in headers}
        both = [name for name in seen if name in self._seen][:1]  # dates count where an ETag is missing
        if any(seen[name] != self._seen[name] for name in both) and not self._by_hash:
            problem = "it changed while it was read"
        self._seen = {**seen, **self._seen}
        self.watched = self._by_hash or bool(self._seen)
        self.sha256 = self.sha256 or (seen["ETag"] if _SHA256.fullmatch(seen.get("ETag", "")) else None)
        if problem:
            response.close()
            raise ConsistencyError(f"{self.shown}: {problem}")
        return response

    def broken(self, failures: int, position: int, error: Exception) -> None:
        """Wait before the next connection, or give up."""
        if failures >= ATTEMPTS:
            what = f"{self.shown}: the connection broke {failures} times, last at byte {position}"
            raise _unreachable(what, self._url, error, sys.exc_info()[1])
        time.sleep(_backoff(failures))

class _Pieces:
    """A file being fetched: its bytes, in any order, and behind them a byte for each piece that is there. A process that is killed
    leaves its finished pieces to the next; finish() cuts the map off."""

    def __init__(self, path: Path, size: int, fresh: bool):
        self._path, self._size = path, size
        self._file = open(_open(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)  # noqa: SIM115
        length = self._file.seek(0, 2)
        self.done = bytearray(-(-size // PIECE) or 1)  # the one piece of an empty file is its answer
        if length == size + len(self.done) and not fresh:
            self._file.seek(size)
            self._file.readinto(self.done)
        elif 0 < length == size and not fresh:  # killed between the map's end and the rename
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

    def fill(self, source: Source, connections: int, on_progress: Progress | None, of_git: bool) -> list[str]:
        """Fetch what is missing. Returns the sha256 of the whole, and, if `of_git`, the hash by which git names it, and the sha1."""
        spans = self._missing(connections)
        if spans:
            answer = source.open(*spans[0])  # shows whether the server knows Ranges at all, and has that many bytes
            self._file.truncate(self._size + len(self.done))
            if answer.status_code != 206:
                spans, self.done[:], self._arrived = [(0, self._size)], bytes(len(self.done)), 0
            todo = iter([(*span, answer if span == spans[0] else None) for span in spans])  # the threads share it
            for _ in range(min(connections, len(spans))):
                threading.Thread(target=self._work, args=(source, todo), daemon=True).start()
        digests = [hashlib.sha256()]
        if of_git:
            digests += [hashlib.sha1(start, usedforsecurity=False) for start in (b"blob %d\0" % self._size, b"")]
        for piece in range(len(self.done)):
            with self._changed:
                while not self.done[piece] and not self._error:
                    self._changed.wait(0.5)  # with a limit, so that Ctrl-C gets through everywhere
                if self._error:
                    raise self._error
                self._file.seek(piece * PIECE)
                content = self._file.read(min(PIECE, self._size - piece * PIECE))
            for digest in digests:
                digest.update(content)
            if on_progress and spans:
                on_progress(self._arrived, self._size)
        return [digest.hexdigest() for digest in digests]

    def _missing(self, connections: int) -> list[tuple[int, int]]:
        """[start, stop) of what is to be fetched, in about as many spans as there are connections, each of whole pieces."""
        missing = [piece for piece, done in enumerate(self.done) if not done]
        longest, spans = -(-len(missing) // connections), list[list[int]]()
        for piece in missing:
            if spans and spans[-1][1] == piece < spans[-1][0] + longest:
                spans[-1][1] += 1
            else:
                spans.append([piece, piece + 1])
        return [(start * PIECE, min(stop * PIECE, self._size)) for start, stop in spans]

    def _work(self, source: Source, todo: Iterator[tuple[int, int, requests.Response | None]]) -> None:
        """Fetch span after span. Runs on a thread of its own."""
        try:
            for start, stop, answer in todo:
                self._fetch(source, start, stop, answer)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _fetch(self, source: Source, start: int, stop: int, answer: requests.Response | None) -> None:
        """One connection after the other, until the span is there. Of an answer with the whole file the span alone is taken."""
        position, failures = start, 0
        while True:
            broken: Exception = EOFError("the answer ended early")
            response, answer = answer or source.open(position, stop), None
            begun, at, end = position, *((position, stop) if response.status_code == 206 else (0, self._size))
            with response:
                try:
                    for chunk in (chunks := source.hub.chunks(response)):
                        wanted = chunk[max(position - at, 0) :][: stop - position]
                        at += len(chunk)
                        if at > end or (at == end and next(chunks, b"")):
                            raise ConsistencyError(f"{source.shown}: more came than was asked for")
                        position = self._write(position, wanted)
                        if position == stop:
                            break
                except EOFError as error:
                    broken = error
            if position >= stop:
                if not self._size:
                    self._write(0, b"")  # the empty piece is there now
                return
            failures = 1 if position >= begun + PIECE else failures + 1
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

    def finish(self, target: Path) -> Path:
        """The whole is there and verified: give it its name."""
        self._file.truncate(self._size)
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._path, target)
        return target
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
