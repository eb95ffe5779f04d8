"""The stock Socket.IO clients (npm `socket.io-client`, PyPI `python-socketio`) against a real hub of four workers.

Each polling request of the JavaScript client comes on a TCP connection of its own, so it lands in any worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import socketio

from tests.e2e import nodejs
from tests.hubs import HubProcess
from tests.support import async_test

SETTINGS = {
    "workers": 4,
    "namespaces": {
        "room": {
            "mode": "stream",
            "subscribe": "anyone",
            "publish": "user",
            "history": "user",
            "presence": "user",
        }
    },
    "socketio": {"namespaces": ["/admin"]},
}
EACH_WAY = pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with HubProcess(SETTINGS) as hub:
        yield hub


def url(hub: HubProcess) -> str:
    return hub.ws_url.replace("ws://", "http://").rpartition("/connection/")[0]


def node(scenario: str, hub: HubProcess, transports: str, *arguments: object) -> None:
    nodejs.run("socketio.mjs", scenario, url(hub), transports, *arguments)


@EACH_WAY
@nodejs.NODE
@nodejs.PACKAGES
class TestJavaScript:
    """npm `socket.io-client`."""

    def test_events_acks_and_publications(self, hub: HubProcess, transports: str) -> None:
        """In order and complete, also while the connection moves to its WebSocket."""
        node("talks", hub, transports, hub.token("ann"))

    def test_bytes(self, hub: HubProcess, transports: str) -> None:
        """Attachments arrive whole by every transport."""
        node("sendsBytes", hub, transports)

    def test_namespaces(self, hub: HubProcess, transports: str) -> None:
        """Joined, refused and left one by one."""
        node("joinsNamespaces", hub, transports, hub.token("ann"))

    def test_many_clients(self, hub: HubProcess, transports: str) -> None:
        """No session is unknown to any worker, nothing is lost, order is kept."""
        node("isMany", hub, transports, 20, 10)

    def test_recovery(self, transports: str) -> None:
        """By any worker: `socket.recovered`, and nothing lost, doubled or out of order."""
        chat = {"mode": "stream", "subscribe": "anyone", "publish": "anyone"}
        with HubProcess({"workers": 4, "namespaces": {"chat": chat}, "socketio": {"recovery_ms": 60_000}}) as hub:
            node("comesBack", hub, transports, 5)

    def test_heartbeats(self, transports: str) -> None:
        """A short interval, over and over."""
        with HubProcess({"workers": 2, "socketio": {"ping_interval_ms": 300, "ping_timeout_ms": 400}}) as hub:
            node("staysIdle", hub, transports)


@EACH_WAY
@async_test
async def test_the_python_client(hub: HubProcess, transports: str) -> None:
    """PyPI `python-socketio`: the same events and acks."""
    heard: asyncio.Queue = asyncio.Queue()
    ann, reader = socketio.AsyncClient(), socketio.AsyncClient()
    ann.on("publication", heard.put)
    await ann.connect(url(hub), transports=transports.split(","), auth={"token": hub.token("ann")})
    await reader.connect(url(hub), transports=transports.split(","))
    channel = f"room:python-{transports.replace(',', '-')}"
    assert "epoch" in await ann.call("subscribe", {"channel": channel}, timeout=10)
    for i in range(5):
        assert await ann.call("publish", {"channel": channel, "data": i}, timeout=10) == {"ack": "memory"}
    assert [(await asyncio.wait_for(heard.get(), 10))["data"] for _ in range(5)] == [0, 1, 2, 3, 4]
    refused = await reader.call("publish", {"channel": channel, "data": b"x"}, timeout=10)
    assert refused["error"]["code"] == 103
    await ann.disconnect()
    await reader.disconnect()


QUERY = "/socket.io/?EIO=4&transport=polling"


def fetch(hub: HubProcess, query: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body."""
    try:
        with urllib.request.urlopen(url(hub) + query, body, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def open_session(hub: HubProcess) -> str:
    """The query of a session in the namespace `/`."""
    sid = json.loads(fetch(hub, QUERY)[1][1:])["sid"]
    query = f"{QUERY}&sid={sid}"
    assert fetch(hub, query, b"40") == (200, b"ok")
    assert fetch(hub, query)[1].startswith(b'40{"sid":')
    return query


UNKNOWN = (400, b'{"code":1,"message":"Session ID unknown"}')


def test_an_aborted_poll_ends_its_session_in_whatever_worker(hub: HubProcess) -> None:
    """The worker that held the request tells the session's own."""
    host, _, port = url(hub).removeprefix("http://").rpartition(":")
    for _ in range(8):
        query = open_session(hub)
        with socket.create_connection((host, int(port)), 10) as poll:
            poll.sendall(f"GET {query} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
            # A post behind it is answered once the poll is held: both go the same way.
            assert fetch(hub, query, b"3") == (200, b"ok")
        deadline = time.monotonic() + 10
        while (found := fetch(hub, query, b"3")) != UNKNOWN:
            assert found == (200, b"ok")
            assert time.monotonic() < deadline


def test_sessions_of_killed_workers_are_unknown() -> None:
    """No request hangs or is taken by a worker that has the slot now; a client begins anew."""
    with HubProcess({"workers": 2}) as hub:
        queries = [open_session(hub) for _ in range(4)]
        for pid in hub.worker_pids():
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 15
        while True:
            try:
                assert {fetch(hub, query) for query in queries} == {UNKNOWN}
                break
            except OSError:  # until others listen in their place
                assert time.monotonic() < deadline
        open_session(hub)
