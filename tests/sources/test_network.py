# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tokens, certificates and proxies: where the token goes, and that the usual environment variables work."""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import vendored_hf as hf
from tests.support.hub import Fault, Hub
from tests.support.process import run
from tests.support.small_scope import CURATION_REPO, WEIGHTS_REPO, fill

TOKEN = "hf_thetokenthatnobodysees"


def everything(*results: object) -> str:
    return "".join(f"{getattr(r, 'stdout', '')}{getattr(r, 'stderr', '')}" for r in results)


def test_the_token_is_nowhere_but_in_its_header(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(hub)
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password frominside\nmachine 127.0.0.2 login user password fromoutside\n")
    netrc.chmod(0o600)
    for repo in hub.repos.values():
        repo.token = TOKEN
    with_token = {"HF_TOKEN": TOKEN}
    runs = [run("--mirror", hub.url, "--layers", "0", *more, environment=with_token)
            for more in ([], ["--stream"], ["--debug", "--weights-revision", "none"], ["--debug", "--revision", "none"])]
    hub.inject(*(Fault(status=500) for _ in range(9)), *(Fault(host="hub", status=403) for _ in range(3)))
    (hf.hf_hub_cache() / f"models--{WEIGHTS_REPO.replace('/', '--')}").rename(tmp_path / "away")
    runs += [run("--mirror", hub.url, "--layers", "0", "--debug", environment=with_token) for _ in range(2)]
    assert [r.returncode for r in runs] == [0, 0, 3, 3, 3, 3]
    assert TOKEN not in everything(*runs)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert {s.headers.get("Authorization") for s in hub.requests("hub")} == {f"Bearer {TOKEN}"}
    assert {s.headers.get("Authorization") for s in hub.requests("cdn")} == {None}


def test_without_a_token_netrc_serves_the_endpoint_alone(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/weights", "a.npz", b"content")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("default login user password secret\n")
    netrc.chmod(0o600)
    hf.hf_hub_download("org/weights", "a.npz", endpoint=hub.url)
    assert all(s.headers["Authorization"].startswith("Basic ") for s in hub.requests("hub"))
    assert {s.headers.get("Authorization") for s in hub.requests("cdn")} == {None}


def test_a_redirect_to_another_port_gets_no_token(hub: Hub) -> None:
    hub.add("org/weights", "config.yaml", b"a: 1")
    with Hub() as other:
        other.add("org/weights", "config.yaml", b"a: 1")
        hub.inject(Fault(host="hub", status=302, headers={"Location": f"{other.url}/org/weights/resolve/main/config.yaml"}))
        path = hf.hf_hub_download("org/weights", "config.yaml", endpoint=hub.url, token=TOKEN)
        assert Path(path).read_bytes() == b"a: 1"
        assert [s.headers.get("Authorization") for s in other.seen] == [None]


def test_a_password_in_the_endpoint_is_not_shown(hub: Hub) -> None:
    address = hub.url.replace("http://", "http://user:secretword@")
    bare = run("--mirror", address.replace("http://", ""))
    assert "127.0.0.1" in bare.stderr and bare.returncode == 3
    others = [run("--mirror", other) for other in (address, address.replace("http:", "ftp:"))]
    assert "secretword" not in everything(bare, *others)
    # a server that does not say how long its files are
    fill(hub)
    hub.alter = lambda headers: [headers.pop(name, None) for name in ("X-Linked-Size", "Content-Length")] and headers.update(Connection="close")
    unknown = run("--mirror", address, "--layers", "0", "--stream")
    assert "does not say how long" in unknown.stderr and "secretword" not in unknown.stderr, unknown.stderr
    hub.alter = None
    refused = run("--mirror", "http://user:secretword@127.0.0.1:9")
    assert refused.returncode == 3 and "secretword" not in refused.stderr and "127.0.0.1:9" in refused.stderr


def test_a_server_s_words_do_not_reach_the_terminal_as_control_characters(hub: Hub) -> None:
    said = {"X-Error-Message": "\x1b]0;owned\x07\x9b2J no"}
    hub.inject(Fault(host="hub", method="HEAD", status=400, headers=said))
    with pytest.raises(hf.HfHubHTTPError, match="owned.* no") as raised:
        hf.hf_hub_download("org/weights", "a.npz", endpoint=hub.url)
    assert str(raised.value).isprintable()


def test_plain_http_to_elsewhere_with_a_token_warns(caplog: pytest.LogCaptureFixture) -> None:
    hf.Hub("http://mirror.example", TOKEN)
    assert "in the clear" in caplog.text and TOKEN not in caplog.text
    caplog.clear()
    for quiet in ("https://mirror.example", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"):
        hf.Hub(quiet, TOKEN)
    hf.Hub("http://mirror.example")
    assert not caplog.text


# --- certificates and proxies -------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authority


@pytest.fixture
def tls_hub(authority: trustme.CA) -> Iterator[Hub]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "127.0.0.2").configure_cert(context)
    with Hub(tls=context) as hub:
        fill(hub)
        yield hub


def test_a_private_certificate(tls_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    refused = run("--mirror", tls_hub.url, "--layers", "0")
    assert refused.returncode == 3 and "certificate" in refused.stderr.lower() and "Traceback" not in refused.stderr
    assert not tls_hub.seen
    trusted = run("--mirror", tls_hub.url, "--layers", "0", environment={"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")})
    assert trusted.returncode == 0, trusted.stderr


class Proxy(socketserver.ThreadingTCPServer):
    """A forward proxy that knows CONNECT, and GET and HEAD of whole addresses."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Tunnel(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.request.recv(65536)
            if not received:
                return
            head += received
        first, _, rest = head.partition(b"\r\n")
        method, target, _ = first.decode().split(" ")
        self.server.asked.append(f"{method} {target}")  # type: ignore[attr-defined]
        address = target if method == "CONNECT" else target.split("/")[2]
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as onward:
            if method == "CONNECT":
                self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                path = "/" + target.split("/", 3)[3]
                onward.sendall(f"{method} {path} HTTP/1.1\r\nConnection: close\r\n".encode() + rest)
            back = threading.Thread(target=self.pump, args=(onward, self.request), daemon=True)
            back.start()
            self.pump(self.request, onward)
            back.join(10)

    @staticmethod
    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while received := source.recv(65536):
                target.sendall(received)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def test_https_through_a_proxy(tls_hub: Hub, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem"), "HTTPS_PROXY": proxy.url, "HF_TOKEN": TOKEN}
    ran = run("--mirror", tls_hub.url, "--layers", "0", environment=environment)
    assert ran.returncode == 0, ran.stderr
    hosts = {line.split(" ")[1] for line in proxy.asked if line.startswith("CONNECT")}
    assert hosts == {tls_hub.url.removeprefix("https://"), tls_hub.cdn_url.removeprefix("https://")}
    proxy.asked.clear()
    around = run(
        "--mirror", tls_hub.url, "--layers", "1", environment={**environment, "NO_PROXY": "127.0.0.1,127.0.0.2"}
    )
    assert around.returncode == 0 and not proxy.asked
    dead = run("--mirror", tls_hub.url, "--layers", "2", "--cache-dir", str(tmp_path / "other"),
                  environment={**environment, "HTTPS_PROXY": "http://127.0.0.1:9"})
    assert dead.returncode == 3 and "Traceback" not in dead.stderr and TOKEN not in dead.stderr


def test_http_through_a_proxy(hub: Hub, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(hub)
    ran = run("--mirror", hub.url, "--layers", "0", environment={"HTTP_PROXY": proxy.url, "http_proxy": proxy.url})
    assert ran.returncode == 0, ran.stderr
    assert any(CURATION_REPO in line for line in proxy.asked)
    assert os.path.exists("plt_gemma_reference.json")
