"""Retune: what a reload changes in the workers of a real hub, setting by setting, while clients are there."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import os
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from hub import __version__, auth, reloadable
from hub.config import Settings
from hub.heartbeat import Answer, open_pipe
from hub.instructions import APPLY, DROP, PREPARE, TELL, Instruction
from hub.reloadable import Counts, Fresh, pack
from hub.retune import Retuner, Rooms
from tests.hubs import SECRET, HubProcess
from tests.pki import Authority
from tests.test_keys import EC, RSA, jwk

TIMEOUT_S = 10.0
STREAM = {"mode": "stream", "subscribe": "anyone", "publish": "anyone", "history": "anyone"}
BOTH_WORKERS = 12
"""Connections of which one worker has none once in 2,000 runs, were they spread by chance."""


class Client:
    """A native client; `closed` tells whether the hub has ended it."""

    def __init__(self, hub: HubProcess, token: str = "", **options: Any) -> None:
        self._stack = contextlib.ExitStack()
        self.socket: ClientConnection = self._stack.enter_context(connect(hub.ws_url, proxy=None, **options))
        self._lines: list[dict[str, Any]] = []
        self._next = 0
        try:
            self.connected = self.ask(connect={"token": token} if token else {})["connect"]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command, and return its reply."""
        self._next += 1
        self.socket.send(orjson.dumps({"id": self._next, **command}).decode())
        return self._first(lambda line: line.get("id") == self._next)

    def code(self, **command: Any) -> int:
        """Likewise, the error's code; 0 for none."""
        return int(self.ask(**command).get("error", {}).get("code", 0))

    def subscribe(self, channel: str) -> int:
        return self.code(subscribe={"channel": channel})

    def publish(self, channel: str, data: Any = 1) -> int:
        return self.code(publish={"channel": channel, "data": data})

    def push(self) -> dict[str, Any]:
        return dict(self._first(lambda line: "push" in line)["push"])

    def _first(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for line in self._lines:
                if wanted(line):
                    self._lines.remove(line)
                    return line
            text = self.socket.recv(deadline - time.monotonic())
            self._lines += [orjson.loads(line) for line in str(text).split("\n")]

    @property
    def alive(self) -> bool:
        """It has its answers as ever."""
        return self.code(rpc={"method": "no such", "data": {}}) in (104, 108)


@contextlib.contextmanager
def clients(hub: HubProcess, count: int = BOTH_WORKERS, token: str = "") -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        found = [Client(hub, token) for _ in range(count)]
        for one in found:
            stack.callback(one.close)
        yield found


def request(
    hub: HubProcess, method: str, body: dict[str, Any] | None = None, key: str = "", url: str = ""
) -> tuple[int, dict[str, Any]]:
    """One to the server API, or to another URL."""
    found = urllib.request.Request(
        url or f"{hub.api_url}/{method}", orjson.dumps(body or {}), {"X-API-Key": key or hub.key}
    )
    try:
        with urllib.request.urlopen(found, timeout=TIMEOUT_S) as answer:
            return answer.status, orjson.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}


def good(hub: HubProcess, settings: dict[str, Any]) -> dict[str, Any]:
    """A reload that succeeds; who was there before is there still."""
    workers = hub.worker_pids()
    found = hub.reload(settings)
    assert found["ok"] and not found["errors"], found
    assert hub.still_has(workers)
    return found


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """Its settings are those of its start again before each test that changes them."""
    with HubProcess({"namespaces": {"room": STREAM}, "log_level": "info"}) as hub:
        yield hub


@pytest.fixture(autouse=True)
def as_at_the_start(request: pytest.FixtureRequest) -> None:
    if "hub" in request.fixturenames:
        good(request.getfixturevalue("hub"), {})


def test_a_new_namespace_is_there_in_all_workers_at_once(hub: HubProcess) -> None:
    with clients(hub) as everybody:
        assert {one.subscribe("fresh:a") for one in everybody} == {102}
        good(hub, {"namespaces": {"fresh": STREAM}})
        assert {one.subscribe("fresh:a") for one in everybody} == {0}
        assert everybody[0].publish("fresh:a", "hi") == 0
        assert {one.push()["pub"]["data"] for one in everybody} == {"hi"}


def test_subscribers_of_a_namespace_that_is_gone_are_told_and_stay(hub: HubProcess) -> None:
    """Unsubscribed with 2000: for good. Their other channels go on, and the name is unknown from then on."""
    good(hub, {"namespaces": {"fresh": STREAM}})
    with clients(hub) as everybody:
        for one in everybody:
            assert (one.subscribe("fresh:a"), one.subscribe("room:a")) == (0, 0)
        good(hub, {})
        for one in everybody:
            assert one.push() == {"channel": "fresh:a", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
            assert one.subscribe("fresh:a") == 102
        assert everybody[0].publish("room:a", "on") == 0
        assert {one.push()["pub"]["data"] for one in everybody} == {"on"}
        # And it can be another one, as nobody is left in it.
        good(hub, {"namespaces": {"fresh": {"mode": "latest", "subscribe": "anyone"}}})
        assert everybody[0].subscribe("fresh:a") == 0


@pytest.mark.parametrize("path", ["/poll?channel=fresh:a&timeout=30", "/sse?channel=fresh:a"])
def test_a_poll_and_an_event_stream_of_it_end(hub: HubProcess, path: str) -> None:
    """A poll is answered at once, an event stream is closed: their addresses name what is not there any more."""
    good(hub, {"namespaces": {"fresh": STREAM}})
    base = urlsplit(hub.ws_url)
    connection = http.client.HTTPConnection(str(base.hostname), int(base.port or 0), timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        until_waiting(hub)
        good(hub, {})
        with connection.getresponse() as answer:
            assert answer.status in (200, 204) and answer.read() is not None  # to its end
        connection.request("GET", path)
        with connection.getresponse() as answer:
            assert answer.status == 404 and answer.read()


def until_waiting(hub: HubProcess) -> None:
    """A poll has been taken up: its channel has a subscriber."""
    wait_for(lambda: request(hub, "channels", {"pattern": "fresh:*"})[1]["result"]["channels"])


def wait_for(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # nothing else tells it


def test_a_tightened_rule_is_for_who_comes_and_for_each_publish(hub: HubProcess) -> None:
    """Who is in stays in, and hears what the server says."""
    with clients(hub) as everybody:
        for one in everybody:
            assert one.subscribe("room:a") == 0
        good(hub, {"namespaces": {"room": {**STREAM, "subscribe": "nobody", "publish": "nobody"}}})
        assert {one.publish("room:a") for one in everybody} == {103}
        assert {one.subscribe("room:b") for one in everybody} == {103}
        assert request(hub, "publish", {"channel": "room:a", "data": "still"})[0] == 200
        assert {one.push()["pub"]["data"] for one in everybody} == {"still"}


def test_a_shorter_history_holds_for_what_is_published_next(hub: HubProcess) -> None:
    for number in range(5):
        request(hub, "publish", {"channel": "room:long", "data": number})
    good(hub, {"namespaces": {"room": {**STREAM, "history_size": 2}}})
    request(hub, "publish", {"channel": "room:long", "data": 5})
    kept = request(hub, "history", {"channel": "room:long", "limit": 10})[1]["result"]["publications"]
    assert [one["data"] for one in kept] == [4, 5]


def test_lowered_limits_disconnect_nobody(hub: HubProcess) -> None:
    """The next one is refused: a channel, a connection, a command."""
    with clients(hub, 6) as everybody:
        for one in everybody:
            assert (one.subscribe("room:a"), one.subscribe("room:b")) == (0, 0)
        # The loopback of the tests is a trusted proxy otherwise, and those are under no limit.
        limits = {"trusted_proxies": ["unix:"], "limits": {"ip_connections": 1, "commands_per_s": 1, "channels": 2}}
        good(hub, limits)
        assert all(one.alive for one in everybody)
        assert {one.code(rpc={"method": "x", "data": {}}) for one in everybody} == {111}
    with clients(hub, 1):
        # By a worker's own count before the handshake (429), by those of all workers a round trip behind it (3504).
        with pytest.raises((InvalidStatus, ConnectionClosed), match=r"429|3504"):
            while True:
                with contextlib.closing(Client(hub)) as one:
                    one.push()  # none comes
        good(hub, {})
        with clients(hub, 4):
            pass


def test_limits_of_a_client_are_those_of_its_beginning(hub: HubProcess) -> None:
    """And newcomers have the new ones, as their connect reply says."""
    with clients(hub, 2) as before:
        good(hub, {"client": {"ping_interval_s": 77, "channels": 1}})
        with clients(hub, 4) as after:
            assert {one.connected["ping"] for one in before} == {25}
            assert {one.connected["ping"] for one in after} == {77}
            assert [one.subscribe(f"room:{name}") for one in after for name in "ab"] == [0, 106] * 4
            assert [one.subscribe(f"room:{name}") for one in before for name in "ab"] == [0, 0] * 2


def http_request(hub: HubProcess, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One on a connection of its own, to its first line of an answer that goes on."""
    base = urlsplit(hub.ws_url)
    connection = http.client.HTTPConnection(str(base.hostname), int(base.port or 0), timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        with connection.getresponse() as answer:
            return answer.status, answer.readline() if path.startswith("/connection") else answer.read()


def test_newcomers_over_http_have_the_new_settings(hub: HubProcess) -> None:
    """Answers that never end, event streams, and what one request may bring."""

    def pings() -> set[object]:
        replies = [http_request(hub, "POST", "/connection/http_stream", b'{"id":1,"connect":{}}') for _ in range(6)]
        return {orjson.loads(body)["connect"]["ping"] for _, body in replies}

    large = orjson.dumps({"channel": "room:a", "data": "x" * 2000})
    assert pings() == {25}
    assert http_request(hub, "POST", "/publish", large)[0] == 200
    good(hub, {"client": {"ping_interval_s": 77, "message_bytes": 1000}})
    assert pings() == {77}
    assert {http_request(hub, "POST", "/publish", large)[0] for _ in range(6)} == {413}


def socketio_subscribe(hub: HubProcess, *channels: str) -> list[bytes]:
    """A Socket.IO client by polling: what it is answered for each channel."""
    path = "/socket.io/?EIO=4&transport=polling"
    status, opened = http_request(hub, "GET", path)
    assert status == 200, status
    path += "&sid=" + orjson.loads(opened[1:])["sid"]
    for packet in (
        b"40",
        *(b'42%d["subscribe",%s]' % (at, orjson.dumps({"channel": name})) for at, name in enumerate(channels)),
    ):
        assert http_request(hub, "POST", path, packet)[0] == 200
    found: list[bytes] = []
    while len(found) < len(channels):
        found += [one for one in http_request(hub, "GET", path)[1].split(b"\x1e") if one.startswith(b"43")]
    http_request(hub, "POST", path, b"1")
    return found


def test_newcomers_of_socketio_have_the_new_settings(hub: HubProcess) -> None:
    """Those of all clients, and its own that can change."""
    assert not any(b"106" in one for one in socketio_subscribe(hub, "room:a", "room:b"))
    good(hub, {"client": {"channels": 1}, "socketio": {"polling_sessions": 1}})
    for _ in range(4):
        # A refusal is answered at once, and a subscription once Redis has confirmed it.
        assert sorted(b"106" in one for one in socketio_subscribe(hub, "room:a", "room:b")) == [False, True]
    statuses = [http_request(hub, "GET", "/socket.io/?EIO=4&transport=polling")[0] for _ in range(BOTH_WORKERS)]
    assert statuses.count(200) == 2 and statuses.count(503) == BOTH_WORKERS - 2


def refused_with(hub: HubProcess, token: str) -> int:
    """The close code of who shows this token; 0: it is let in, -1: it is told to try again."""
    try:
        Client(hub, token).close()
    except KeyError:
        return -1  # an error in place of the connect reply
    except ConnectionClosed as error:
        assert error.rcvd is not None
        return error.rcvd.code
    return 0


def test_another_secret_lets_in_by_another_token(hub: HubProcess) -> None:
    """Who came with the old one stays; the old one beside the new is good for both."""
    old, new = (auth.make("ann", key, 60.0, time.time()) for key in (SECRET, "n" * 40))
    with clients(hub, 4, old) as everybody:
        good(hub, {"auth": {"hmac_secret": "n" * 40, "hmac_secret_old": SECRET}})
        assert (refused_with(hub, old), refused_with(hub, new)) == (0, 0)
        good(hub, {"auth": {"hmac_secret": "n" * 40}})
        assert [refused_with(hub, old) for _ in range(6)] == [3500] * 6
        assert [refused_with(hub, new) for _ in range(6)] == [0] * 6
        assert all(one.alive for one in everybody)


def write_key(path: Path) -> ed25519.Ed25519PrivateKey:
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return key


def token_by(key: ed25519.Ed25519PrivateKey) -> str:
    return auth.make("ann", key, 60.0, time.time(), "EdDSA")


def test_a_key_file_with_another_key_counts_at_a_reload_and_not_before(hub: HubProcess, tmp_path: Path) -> None:
    """Its name is the same. A worker that is forked later has what the reload read, whatever became of the file."""
    first = write_key(path := tmp_path / "key.pem")
    good(hub, {"auth": {"keys": [str(path)]}})
    assert refused_with(hub, token_by(first)) == 0
    second = write_key(path)
    assert refused_with(hub, token_by(second)) == 3500
    found = good(hub, {"auth": {"keys": [str(path)]}})
    assert found["changed"] == []
    assert [refused_with(hub, token_by(second)) for _ in range(6)] == [0] * 6
    assert [refused_with(hub, token_by(first)) for _ in range(6)] == [3500] * 6
    path.write_text("no key any more")
    os.kill(hub.worker_pids()[0], signal.SIGKILL)
    wait_for(lambda: len(hub.worker_pids()) == 2)
    assert [refused_with(hub, token_by(second)) for _ in range(6)] == [0] * 6
    refused = hub.reload({"auth": {"keys": [str(path)]}})
    assert not refused["ok"] and refused["errors"][0].startswith("auth.keys[0]: found")


@contextlib.contextmanager
def provider(*found: dict[str, Any]) -> Iterator[str]:
    """An identity provider with these keys; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = orjson.dumps({"keys": found})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/keys"
        finally:
            server.shutdown()
            thread.join()


def test_another_identity_provider_is_the_only_one(hub: HubProcess) -> None:
    """From none to one, to another, and to none; our own secret is good all the time."""
    a, b = (
        auth.make("ann", key, 60.0, time.time(), name, kid)
        for key, name, kid in ((RSA, "RS256", "a"), (EC, "ES256", "b"))
    )
    own = auth.make("ann", SECRET, 60.0, time.time())

    def verdicts() -> list[set[int]]:
        return [{refused_with(hub, token) for _ in range(6)} for token in (a, b, own)]

    with provider(jwk(RSA, kid="a")) as first, provider(jwk(EC, kid="b")) as second:
        assert verdicts() == [{3500}, {3500}, {0}]
        for url, wanted in ((first, [{0}, {3500}, {0}]), (second, [{3500}, {0}, {0}]), ("", [{3500}, {3500}, {0}])):
            good(hub, {"auth": {"jwks_url": url, "jwks_refresh_s": 60}})
            wait_for(lambda wanted=wanted: verdicts() == wanted)


def test_origins_are_judged_by_the_new_list(hub: HubProcess) -> None:
    page = "https://app.example.com"
    with pytest.raises(InvalidStatus, match="403"):
        Client(hub, origin=page)
    good(hub, {"allowed_origins": [page]})
    for _ in range(6):
        Client(hub, origin=page).close()
    good(hub, {})
    with pytest.raises(InvalidStatus, match="403"):
        Client(hub, origin=page)


def test_another_api_key_is_the_only_one(hub: HubProcess) -> None:
    good(hub, {"api": {"key": "another-key-of-16"}})
    assert {request(hub, "info")[0] for _ in range(6)} == {401}
    assert {request(hub, "info", key="another-key-of-16")[0] for _ in range(6)} == {200}


def test_the_size_of_a_request_is_that_of_the_newest_settings(hub: HubProcess) -> None:
    """For connections that come after it."""
    large = {"channel": "room:big", "data": "x" * 5000}
    assert request(hub, "publish", large)[0] == 200
    good(hub, {"http": {"body_bytes": 1024}})
    assert {request(hub, "publish", large)[0] for _ in range(6)} == {413}


def test_presence_can_begin_in_a_hub_that_had_none(hub: HubProcess) -> None:
    """Who comes then is there; who was there before is not known, and goes without a trace."""
    with clients(hub, 2) as before:
        for one in before:
            assert one.subscribe("room:who") == 0
        good(hub, {"namespaces": {"room": {**STREAM, "presence": "anyone"}}})
        with clients(hub, 4) as after:
            for one in after:
                assert one.subscribe("room:who") == 0
            wait_for(lambda: len(after[0].ask(presence={"channel": "room:who"})["presence"]["presence"]) == 4)
            for one in before:
                assert one.code(unsubscribe={"channel": "room:who"}) == 0
            assert len(after[0].ask(presence={"channel": "room:who"})["presence"]["presence"]) == 4


def test_mailboxes_can_begin_in_a_hub_that_had_none(hub: HubProcess) -> None:
    """Redelivery begins with them. They don't end by a reload, so that this hub is one of its own."""
    with HubProcess() as own:
        found = good(own, {"namespaces": {"inbox": {"mailbox": True, "subscribe": "user", "ack_timeout_s": 0.1}}})
        assert found["changed"] == ["namespaces.inbox"]
        assert request(own, "notify", {"user": "ann", "data": "hi"})[0] == 200
        with clients(own, 1, own.token("ann")) as (ann,):
            assert ann.subscribe("inbox:#ann") == 0
            first, again = ann.push()["pub"], ann.push()["pub"]  # it is not acknowledged, so it comes again
            assert first["data"] == again["data"] == "hi"
        refused = own.reload({})
        assert refused["errors"] == ["namespaces.inbox needs a restart (was there, is gone)"]


def test_the_log_changes_its_level_and_its_form(hub: HubProcess) -> None:
    """In the supervisor and in the workers; each line still says of which worker it is."""
    good(hub, {"log_level": "debug", "log_format": "json"})
    at = len(hub.stderr)
    with clients(hub):
        pass
    wait_for(lambda: hub.stderr[at:].count('"event":"closed"') >= BOTH_WORKERS)
    found = [orjson.loads(line) for line in hub.stderr[at:].splitlines()]
    assert {line["slot"] for line in found if line["event"] == "opened"} == {0, 1}


def test_a_worker_that_is_forked_after_a_reload_has_the_new_settings(hub: HubProcess) -> None:
    good(hub, {"namespaces": {"fresh": STREAM}})
    for pid in hub.worker_pids():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(hub.worker_pids()) == 2 and request(hub, "info")[0] == 200)
    with clients(hub) as everybody:
        assert {one.subscribe("fresh:a") for one in everybody} == {0}


def test_certificates_are_those_of_the_reload(hub: HubProcess, tmp_path: Path) -> None:
    """Looked at once a day otherwise; a connection keeps the one that it began with, and a bad pair changes nothing."""
    authority = Authority(tmp_path)
    pair = authority.issue(["localhost", "first.example"]).write(tmp_path)
    settings = {
        "listen": ["tls:127.0.0.1:0"],
        "tls": {"reload_s": 86_400},
    }
    table = f'certificates = [{{ cert = "{pair.cert}", key = "{pair.key}" }}]\n'
    own = HubProcess(settings)
    own.config_path.write_text(own.config_path.read_text().replace("[tls]\n", f"[tls]\n{table}"))
    with own:
        text = own.config_path.read_text()
        address = ("127.0.0.1", int(urlsplit(own.ws_url).port or 0))

        def presented() -> str:
            context = ssl.create_default_context(cafile=str(authority.file))
            with (
                socket.create_connection(address, TIMEOUT_S) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as secure,
            ):
                names = [str(value) for kind, value in secure.getpeercert()["subjectAltName"] if kind == "DNS"]
                return names[-1]

        context = ssl.create_default_context(cafile=str(authority.file))
        with connect(own.ws_url.replace("127.0.0.1", "localhost"), proxy=None, ssl=context) as early:
            early.send('{"id":1,"connect":{}}')
            assert "connect" in str(early.recv(TIMEOUT_S))
            assert presented() == "first.example"
            authority.issue(["localhost", "second.example"]).write(tmp_path)
            assert presented() == "first.example"
            assert own.reload(text=text)["ok"]
            assert [presented() for _ in range(6)] == ["second.example"] * 6
            Path(pair.key).write_bytes(authority.issue(["localhost", "third.example"]).key)
            refused = own.reload(text=text)
            assert not refused["ok"] and refused["errors"][0].startswith("tls.certificates[0].key: found")
            assert [presented() for _ in range(6)] == ["second.example"] * 6
            early.send('{"id":2,"subscribe":{"channel":"ticker:ACME"}}')
            assert '"id":2' in str(early.recv(TIMEOUT_S))


# What a worker answers, without a hub.


class NoRooms:
    """A worker none of whose rooms can be reached."""

    certificates = None


def told(*sent: tuple[bytes, int, bytes]) -> tuple[list[Answer], Retuner]:
    """What a worker answers to these instructions."""
    pulse, heartbeat = open_pipe(0.0)
    retuner = Retuner(NoRooms(), Settings(), {}, heartbeat, lambda *_: None)  # type: ignore[arg-type]
    try:
        for kind, number, data in sent:
            retuner.obey(Instruction(kind, number, data))
        pulse.read(1.0)
        return pulse.take_answers(), retuner
    finally:
        pulse.close()
        heartbeat.close()


def packed(**settings: Any) -> bytes:
    return pack(Fresh(Settings(**settings), {"/key": b"no key"}, None))


def test_settings_that_cant_be_prepared_are_refused_with_their_key() -> None:
    """What the file held came along; the file itself is not looked at."""
    answers, _ = told((PREPARE, 3, packed(auth={"keys": ["/key"]})))
    assert [(one.number, one.word) for one in answers] == [(3, "refused")]
    assert answers[0].text.startswith("auth.keys[0]: found /key; allowed: ")


@pytest.mark.expects_log
def test_bytes_that_are_no_settings_are_refused() -> None:
    """The supervisor hears of it, whatever it was."""
    answers, _ = told((PREPARE, 3, b"no pickle"))
    assert [(one.number, one.word) for one in answers] == [(3, "refused")]


def test_only_what_was_prepared_is_applied() -> None:
    """Not what was dropped, another reload's, or the same twice."""
    good = packed()
    answers, _ = told(
        (APPLY, 1, b""), (PREPARE, 2, good), (APPLY, 1, b""), (PREPARE, 3, good), (DROP, 3, b""), (APPLY, 3, b"")
    )
    assert [(one.number, one.word) for one in answers] == [
        (1, "failed"),
        (2, "prepared"),
        (1, "failed"),
        (3, "prepared"),
        (3, "failed"),
    ]


@pytest.mark.expects_log
def test_a_room_that_fails_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    answers, _ = told((PREPARE, 2, packed()), (APPLY, 2, b""))
    assert [one.word for one in answers] == ["prepared", "failed"] and "AttributeError" in answers[1].text
    assert "settings: failed" in caplog.text


def test_a_worker_knows_how_often_the_hub_was_reloaded() -> None:
    answers, retuner = told((TELL, 9, b"[4,2,1700.5]"))
    assert answers == [] and retuner.counts == Counts(4, 2, 1700.5)


@dataclasses.dataclass
class Shared:
    """What of `Services` a reload looks at."""

    client: Any = None
    outbox: Any = None
    histories: Any = dataclasses.field(default_factory=Mock)
    log_addresses: bool = False
    gate: Any = None


def applied(**settings: Any) -> Rooms:
    """Rooms after a reload to these settings; each notes what it is told."""
    pulse, heartbeat = open_pipe(0.0)
    rooms = Rooms(**{field.name: Mock() for field in dataclasses.fields(Rooms)})
    rooms.services, rooms.certificates, rooms.jwks = Shared(gate=Mock()), None, None  # type: ignore[assignment]
    retuner = Retuner(rooms, Settings(), {"/key": b"no key"}, heartbeat, lambda *_: None)
    for kind, data in ((PREPARE, packed(**settings)), (APPLY, b"")):
        retuner.obey(Instruction(kind, 1, data))
    pulse.read(1.0)
    pulse.close()
    heartbeat.close()
    assert [one.word for one in pulse.take_answers()] == ["prepared", "applied"]
    return rooms


REACHES: list[tuple[dict[str, Any], Callable[[Rooms], Any], Any]] = [
    (
        {"redis": {"pending_publishes": 7, "pending_bytes": 70_000}},
        lambda r: r.broker.retune.call_args.args,
        (7, 70_000),
    ),
    ({"redis": {"full_percent": 7}}, lambda r: r.publisher.headroom.percent, 7),
    ({"worker": {"handshakes_per_s": 7}}, lambda r: r.handshakes.per_s, 7),
    ({"worker": {"polls": 7}}, lambda r: r.polls.most, 7),
    ({"worker": {"batch_bytes": 70_000}}, lambda r: r.fanout.max_bytes, 70_000),
    ({"worker": {"backlog_bytes": 7000}}, lambda r: r.reactor.backlog.max_bytes, 7000),
    ({"worker": {"ring_bytes": 7}}, lambda r: r.streams.retune.call_args.kwargs["ring_bytes"], 7),
    ({"worker": {"linger_s": 7}}, lambda r: r.streams.retune.call_args.kwargs["linger_s"], 7),
    ({"worker": {"resubscribes_per_s": 7}}, lambda r: r.streams.retune.call_args.kwargs["displaced_per_s"], 7),
    ({"client": {"recovery_publications": 7}}, lambda r: r.streams.retune.call_args.kwargs["most"], 7),
    ({"client": {"recovery_bytes": 7000}}, lambda r: r.streams.retune.call_args.kwargs["most_bytes"], 7000),
    ({"worker": {"presence_grace_s": 7}}, lambda r: r.presence.retune.call_args.args[0], 7),
    ({"client": {"presence_clients": 7}}, lambda r: r.presence.retune.call_args.args[1], 7),
    ({"client": {"close_timeout_s": 7}}, lambda r: r.reactor.close_timeout_s, 7),
    ({"client": {"json_depth": 7}}, lambda r: r.publisher.json_depth, 7),
    ({"client": {"commands_per_message": 7}}, lambda r: r.api.most_commands, 7),
    ({"client": {"history_publications": 7}}, lambda r: r.services.histories.most, 7),
    ({"client": {"outbox_bytes": 7000}}, lambda r: r.services.histories.most_bytes, 3500),
    ({"client": {"outbox_frames": 7}}, lambda r: r.services.outbox.max_frames, 7),
    ({"client": {"pending_commands": 7}}, lambda r: r.services.gate.retune.call_args.args[0], 7),
    ({"log_addresses": True}, lambda r: r.services.log_addresses, True),
    ({"log_addresses": True}, lambda r: r.admin.retune.call_args.args[0].log_addresses, True),
    ({"auth": {"revocations": 7}}, lambda r: r.revocations.most, 7),
    ({"auth": {"cookie": "t"}, "allowed_origins": ["https://a.example"]}, lambda r: r.entrance.cookie, "t"),
    ({"allowed_origins": ["https://a.example"]}, lambda r: set(r.entrance.origins), {"https://a.example"}),
    ({"trusted_proxies": ["203.0.113.7"]}, lambda r: r.entrance.proxies.trusts("203.0.113.7"), True),
    ({"trusted_proxies": ["203.0.113.7"]}, lambda r: r.quotas.retune.call_args.args[1].trusts("203.0.113.7"), True),
    ({"limits": {"channels": 7}}, lambda r: r.subscriptions.most, 7),
    ({"limits": {"ip_connections": 7}}, lambda r: r.census.retune.call_args.args[0]["ip"], 7),
    ({"limits": {"user_connections": 7}}, lambda r: r.quotas.retune.call_args.args[0].user_connections, 7),
    ({"socketio": {"recovery_bytes": 70_000}}, lambda r: r.recall.most_bytes, 70_000),
    ({"mailbox": {"dead_letters": 7}}, lambda r: r.mailboxes.retune.call_args.args[0].dead_letters, 7),
    (
        {"mailbox": {"namespace": "box"}, "namespaces": {"box": {"mailbox": True}}},
        lambda r: r.api.inbox,
        "box",
    ),
    ({"namespaces": {"bars": {"mode": "stream", "history_size": 7}}}, lambda r: r.ticker.bar_rules.history_size, 7),
    ({"http": {"body_bytes": 7000}}, lambda r: r.doors.retune.call_args.args[0].http.body_bytes, 7000),
    ({"api": {"key": "k" * 16}}, lambda r: r.api.key, "k" * 16),
    ({"api": {"key": "k" * 16}}, lambda r: r.monitoring.retune.call_args.args[0], "k" * 16),
    ({"api": {"key": "k" * 16}}, lambda r: r.admin.keys.retune.call_args.args[0], "k" * 16),
    ({"limits": {"loop_ms_per_s": 7}}, lambda r: r.reactor.fairness.retune.call_args.args[0].connection, 0.007),
    ({"worker": {"busy_ms_per_s": 9}}, lambda r: r.reactor.fairness.retune.call_args.args[0].worker, 0.009),
    ({"health": {"min_workers": 2}}, lambda r: r.monitoring.retune.call_args.args[1].min_workers, 2),
    ({"health": {"needs_redis": False}}, lambda r: r.monitoring.retune.call_args.args[1].needs_redis, False),
]


@pytest.mark.parametrize(("settings", "found", "wanted"), REACHES, ids=[str(row[0]) for row in REACHES])
def test_each_setting_reaches_its_room(settings: dict[str, Any], found: Callable[[Rooms], Any], wanted: Any) -> None:
    """What a test above does not see in a real hub."""
    assert found(applied(**settings)) == wanted


def test_tokens_that_are_remembered_stay_so_where_no_key_has_changed() -> None:
    """Thousands of signatures need not be checked again for another limit."""
    applied(limits={"channels": 7}).authenticator.become.assert_not_called()  # type: ignore[attr-defined]
    applied(auth={"leeway_s": 1}).authenticator.become.assert_called_once()  # type: ignore[attr-defined]


def test_a_worker_refuses_what_it_could_not_take_without_a_restart() -> None:
    """Its supervisor has other settings where a deploy has failed, and finds nothing in the way of these."""
    ((answer,), _) = told((PREPARE, 1, packed(heartbeat_timeout_s=7, namespaces={"a": {}})))
    assert answer == Answer(1, "refused", "heartbeat_timeout_s needs a restart (was 10.0, is 7.0)")


def test_a_worker_refuses_the_settings_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even ones that it could not read."""
    monkeypatch.setattr(reloadable, "__version__", "next")
    data = packed()
    monkeypatch.undo()
    ((answer,), _) = told((PREPARE, 1, data))
    assert answer == Answer(
        1, "refused", f"they are of version next, and this worker is of {__version__}: deploy again"
    )
