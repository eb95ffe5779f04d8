"""TLS in the hub: stock clients of every wire against a real hub of four workers, and certificates that change."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e import nodejs
from tests.hubs import HubFailed, HubProcess
from tests.pki import Authority

NAMESPACES = {
    "room": {"mode": "stream", "subscribe": "anyone", "publish": "user", "history": "user", "presence": "user"},
}
TICKER = {"source": "simulate", "symbols": ["ACME"], "rate_hz": 20.0, "share": 1.0}
OPENSSL = pytest.mark.needs("openssl", "apt-get install openssl")
CURL = pytest.mark.needs("curl", "apt-get install curl")
RELOAD_S = 0.2


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


def settings(pair: tuple[str, str], workers: int = 4) -> dict:
    return {
        "workers": workers,
        "listen": ["tls:127.0.0.1:0", "127.0.0.1:0"],
        "internal": ["tls:127.0.0.1:0"],
        "namespaces": NAMESPACES,
        "ticker": TICKER,
        "tls": {"reload_s": RELOAD_S},
    }


class TlsHub(HubProcess):
    """A hub with one certificate, in files of its own."""

    def __init__(self, authority: Authority, directory: Path, workers: int = 4) -> None:
        self.authority = authority
        self.pair_directory = directory
        pair = authority.issue().write(directory)
        super().__init__(settings(pair, workers))
        text = self.config_path.read_text()
        line = f'certificates = [{{ cert = "{pair.cert}", key = "{pair.key}" }}]\n'
        self.config_path.write_text(text.replace("[tls]\n", f"[tls]\n{line}"))

    @property
    def https_url(self) -> str:
        return self.ws_url.replace("wss://", "https://").rpartition("/connection/")[0]

    @property
    def port(self) -> int:
        return urlsplit(self.ws_url).port

    def serial(self) -> str:
        """Of the certificate that a new connection gets."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        with self.authority.client().wrap_socket(plain, server_hostname="localhost") as sock:
            return sock.getpeercert()["serialNumber"]


@pytest.fixture(scope="module")
def hub(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsHub]:
    """One for all tests that leave it as it was."""
    with TlsHub(authority, tmp_path_factory.mktemp("pair")) as hub:
        yield hub


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    """By Node.js."""
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(authority.file))


def test_the_ready_line_says_what_is_spoken(hub: TlsHub) -> None:
    """wss and https where that is so, in the order of the settings."""
    assert hub.ws_url.startswith("wss://127.0.0.1:") and " ws://127.0.0.1:" in hub.ready_line
    assert hub.api_url.startswith("https://127.0.0.1:")


@nodejs.NODE
@nodejs.PACKAGES
@pytest.mark.usefixtures("trusted")
class TestJavaScript:
    """npm `centrifuge` and `socket.io-client`."""

    def test_the_native_protocol(self, hub: TlsHub) -> None:
        """Prices, messages with their publisher's name, calls."""
        nodejs.run("centrifuge_js.mjs", "receives", hub.ws_url, hub.token("ann"))

    @pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])
    def test_socketio(self, hub: TlsHub, transports: str) -> None:
        """Each polling request, and the WebSocket that takes over, may come to any of four workers."""
        nodejs.run("socketio.mjs", "talks", hub.https_url, transports, hub.token("ann"))


def published(hub: TlsHub, authority: Authority, channel: str, data: object) -> None:
    """By the server API, whose listener speaks TLS, too."""
    body = json.dumps({"channel": channel, "data": data}).encode()
    request = urllib.request.Request(f"{hub.api_url}/publish", body, {"X-API-Key": hub.key})
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=authority.client()))
    with opener.open(request, timeout=5) as answer:
        assert "error" not in json.load(answer)


@CURL
def test_plain_http_clients(hub: TlsHub, authority: Authority) -> None:
    """curl: an event stream, a long poll with what it has missed, and a page."""
    curl = ["curl", "-sS", "--noproxy", "*", "--cacert", str(authority.file), "--max-time", "20"]
    stream = subprocess.Popen(
        [*curl, "-N", f"{hub.https_url}/sse?channel=room:curl"], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        lines = iter(stream.stdout.readline, "")
        assert any(line.startswith("event: open") for line in lines)
        assert any(line.startswith(("id: ", "event: cursor")) for line in lines)
        published(hub, authority, "room:curl", "x" * 40_000)
        assert any(line.startswith("data: ") and "x" * 40_000 in line for line in lines)
    finally:
        stream.kill()
        stream.communicate()
    polled = [*curl, f"{hub.https_url}/poll?channel=room:curl&since=0"]
    answer = subprocess.run(polled, capture_output=True, timeout=30)
    assert json.loads(answer.stdout), answer
    page = subprocess.run([*curl, "-i", f"{hub.https_url}/hub.js"], capture_output=True, timeout=30)
    assert page.stdout.startswith(b"HTTP/1.1 200 ") and len(page.stdout) > 10_000


def test_the_line_of_a_client_that_goes_counts_its_records(hub: TlsHub, authority: Authority) -> None:
    """The kernel's count of what passed the descriptor, which TLS has left by then: certificates and all."""
    token = hub.token("counted")
    with connect(hub.ws_url, ssl=authority.client()) as client:
        client.send(json.dumps({"id": 1, "connect": {"token": token}}))
        client.recv()
    line = r"closed wire=websocket client=\S+ user=counted address=- code=1000 .*bytes_in=(\d+) bytes_out=(\d+)"
    deadline = time.monotonic() + 10
    while (found := re.search(line, hub.stderr)) is None:
        assert time.monotonic() < deadline, hub.stderr
        time.sleep(0.02)  # nothing tells when a process has written a line
    came, left = map(int, found.groups())
    assert len(token) + 500 < came < 10_000 and 1000 < left < 10_000


def s_client(hub: TlsHub, *options: str, said: bytes = b"") -> tuple[int, str]:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{hub.port}", *options]
    done = subprocess.run(command, input=said, capture_output=True, timeout=20)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@OPENSSL
def test_versions_and_ciphers(hub: TlsHub, authority: Authority) -> None:
    """As openssl sees them: 1.2 and 1.3, nothing without forward secrecy, no compression, no renegotiation."""
    trust = ["-CAfile", str(authority.file), "-verify_return_error"]
    for version, name in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
        status, text = s_client(hub, version, *trust)
        assert status == 0 and f"New, {name}, Cipher is " in text and "Compression: NONE" in text, text
    assert "New, TLSv1.3" in s_client(hub, "-alpn", "h2,http/1.1", *trust)[1]
    assert "ALPN protocol: http/1.1" in s_client(hub, "-alpn", "h2,http/1.1", *trust)[1]
    for refused in (
        ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES256-GCM-SHA384"],
        ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"],
    ):
        status, text = s_client(hub, *refused)
        assert status != 0 and "Cipher is (NONE)" in text, text
    _, text = s_client(hub, "-tls1_2", *trust, said=b"R\nGET / HTTP/1.1\r\n")
    assert "RENEGOTIATING" in text and ("no renegotiation" in text or "handshake failure" in text), text


@OPENSSL
def test_a_client_may_ask_for_new_keys(hub: TlsHub, authority: Authority) -> None:
    """TLS 1.3's KeyUpdate, both ways, in the middle of a connection that lives on."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{hub.port}", "-CAfile", str(authority.file)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as client:
        try:
            text = b""
            for said, heard in ((b"", b"Verify return code"), (b"K\n", b"KEYUPDATE"), (b"K\n", b"KEYUPDATE")):
                client.stdin.write(said)
                text = read_until(client, heard)
            client.stdin.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"HTTP/1.1 200 " in read_until(client, b"\r\n\r\n"), text
        finally:
            client.kill()


def read_until(client: subprocess.Popen, wanted: bytes) -> bytes:
    text, end = b"", time.monotonic() + 10
    while wanted not in text and time.monotonic() < end:
        data = os.read(client.stdout.fileno(), 65_536)
        if not data:
            break
        text += data
    assert wanted in text, text
    return text


def test_renewed_certificates_are_taken_in_place(authority: Authority, tmp_path: Path) -> None:
    """Both workers use the new one soon, a bad one changes nothing but the log, and who is connected stays so."""
    with TlsHub(authority, tmp_path, workers=2) as hub:
        before, workers = hub.serial(), hub.worker_pids()
        with connect(hub.ws_url, ssl=authority.client(), proxy=None) as client:
            new = authority.issue()
            (tmp_path / "hub.crt.pem").write_bytes(new.cert)  # before its key
            wait(lambda: hub.stderr.count("certificates stay as they were: tls.certificates[0].key: found ") == 2)
            assert {hub.serial() for _ in range(8)} == {before}
            (tmp_path / "hub.key.pem").write_bytes(new.key)
            wait(lambda: hub.stderr.count("certificates were loaded anew") == 2)
            [after] = {hub.serial() for _ in range(8)}
            assert after != before
            client.send('{"id":1,"connect":{}}')
            assert '"connect"' in client.recv(timeout=5)
        # A worker that is forked while the files are broken has what the hub was started with.
        (tmp_path / "hub.key.pem").write_bytes(b"")
        os.kill(workers[0], 9)
        wait(lambda: len(set(hub.worker_pids()) - set(workers)) == 1)
        wait(lambda: hub.stderr.count("certificates stay as they were") == 4)
        assert {hub.serial() for _ in range(8)} <= {before, after}


def wait(condition: object) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def test_a_bad_certificate_is_one_line_at_the_start(authority: Authority, tmp_path: Path) -> None:
    """With exit status 2, of `hub check` as of `hub serve`."""
    hub = TlsHub(authority, tmp_path, workers=1)
    os.chmod(tmp_path / "hub.key.pem", 0o644)
    with pytest.raises(HubFailed) as caught, hub:
        pass
    line = f"hub: tls.certificates[0].key: found {tmp_path}/hub.key.pem with mode 0644; allowed: 0600, or 0640"
    assert caught.value.status == 2
    assert caught.value.text.splitlines() == [f"{line} where its owner is not the hub's user"]


def test_a_client_without_tls_fills_no_log(hub: TlsHub) -> None:
    """Neither do handshakes that fail, however many."""
    lines = len(hub.stderr.splitlines())
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + b"\xff" * 70) * 20:
        with socket.create_connection(("127.0.0.1", hub.port), timeout=5) as client:
            client.sendall(said)
            # A reset is as good: the hub has closed it with something unread.
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
                while client.recv(1000):
                    pass
    assert len(hub.stderr.splitlines()) == lines


def connected(hub: TlsHub, authority: Authority, stack: contextlib.ExitStack) -> ClientConnection:
    client = stack.enter_context(connect(hub.ws_url, ssl=authority.client(), proxy=None))
    client.send('{"id":1,"connect":{}}')
    assert '"connect"' in client.recv(timeout=5)
    return client


def test_a_drain_says_the_end_to_clients_over_tls(authority: Authority, tmp_path: Path) -> None:
    """3001, so that SDKs come back, and close_notify behind it; and no worker is waited for."""
    with TlsHub(authority, tmp_path, workers=2) as hub, contextlib.ExitStack() as stack:
        clients = [connected(hub, authority, stack) for _ in range(10)]
        assert hub.stop() == 0
        for client in clients:
            with pytest.raises(ConnectionClosed):
                while True:
                    client.recv(timeout=5)
            assert client.close_code == 3001


def test_a_killed_worker_takes_only_its_own_tls_clients(authority: Authority, tmp_path: Path) -> None:
    """The others' live on, and new ones are served by its successor, too."""
    with TlsHub(authority, tmp_path, workers=2) as hub, contextlib.ExitStack() as stack:
        clients, workers = [connected(hub, authority, stack) for _ in range(24)], hub.worker_pids()
        os.kill(workers[0], 9)
        wait(lambda: len(set(hub.worker_pids()) - set(workers)) == 1)
        lived = 0
        for client in clients:
            try:
                client.send('{"id":2,"rpc":{"method":"hub.time"}}')
                while '"rpc"' not in client.recv(timeout=5):
                    pass
                lived += 1
            except ConnectionClosed as closed:
                assert closed.rcvd is None  # nobody was there to say a word
            client.close()
        assert 0 < lived < 24
        for client in [connected(hub, authority, stack) for _ in range(8)]:
            client.close()
