"""Speakers: a short visit to a running hub over each wire, with a token, a subscription and a publication.

for speak in WIRES.values():
    speak(hub, hub.token("ann"), "what is published")
"""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.parse
from collections.abc import Callable, Iterator

from websockets.sync.client import ClientConnection, connect

from tests.hubs import HubProcess


def origin(hub: HubProcess) -> str:
    """Host and port of the public listener."""
    return urllib.parse.urlsplit(hub.ws_url).netloc


def websocket(hub: HubProcess, token: str, text: str) -> None:
    with connect(hub.ws_url) as socket:
        socket.send(json.dumps({"id": 1, "connect": {"token": token}}))
        socket.recv()
        socket.send(json.dumps({"id": 2, "subscribe": {"channel": "chat:a"}}))
        socket.recv()
        socket.send(json.dumps({"id": 3, "publish": {"channel": "chat:a", "data": text}}))
        for _ in range(2):
            socket.recv()


def event_stream(hub: HubProcess, token: str, text: str) -> None:
    query = urllib.parse.urlencode({"channel": "chat:a", "token": token})
    with request(hub, "GET", f"/sse?{query}", headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status == 200
        answer.readline()


def http_stream(hub: HubProcess, token: str, text: str) -> None:
    body = json.dumps({"id": 1, "connect": {"token": token}})
    with request(hub, "POST", "/connection/http_stream", body, {"Content-Type": "application/json"}) as answer:
        assert b'"client"' in answer.readline()


def sse(hub: HubProcess, token: str, text: str) -> None:
    query = urllib.parse.urlencode({"cf_connect": json.dumps({"id": 1, "connect": {"token": token}})})
    with request(hub, "GET", f"/connection/sse?{query}") as answer:
        assert answer.readline().startswith(b"data:")


def socketio(hub: HubProcess, token: str, text: str) -> None:
    with joined(hub, token) as socket:
        socket.send('42["subscribe",{"channel":"chat:a"}]')
        socket.send(f'421["publish",{{"channel":"chat:a","data":"{text}"}}]')
        while not str(socket.recv()).startswith("431"):
            pass


@contextlib.contextmanager
def joined(hub: HubProcess, token: str) -> Iterator[ClientConnection]:
    """A client that has joined the first namespace."""
    with connect(f"ws://{origin(hub)}/socket.io/?EIO=4&transport=websocket") as socket:
        socket.recv()
        socket.send("40" + json.dumps({"token": token}))
        assert str(socket.recv()).startswith("40{")
        yield socket


def polling(hub: HubProcess, token: str, text: str) -> None:
    path = "/socket.io/?EIO=4&transport=polling"
    with request(hub, "GET", path) as answer:
        sid = json.loads(answer.read()[1:])["sid"]
    with request(hub, "POST", f"{path}&sid={sid}", "40" + json.dumps({"token": token})):
        pass
    with request(hub, "GET", f"{path}&sid={sid}") as answer:
        assert answer.read().startswith(b"40{")
    for body in (f'42["publish",{{"channel":"chat:a","data":"{text}"}}]', "1"):
        with request(hub, "POST", f"{path}&sid={sid}", body) as answer:
            assert answer.status == 200


WIRES: dict[str, Callable[[HubProcess, str, str], None]] = {
    "websocket": websocket,
    "event_stream": event_stream,
    "http_stream": http_stream,
    "sse": sse,
    "socketio": socketio,
    "polling": polling,
}


@contextlib.contextmanager
def request(
    hub: HubProcess, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(origin(hub), timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        yield connection.getresponse()
    finally:
        connection.close()
