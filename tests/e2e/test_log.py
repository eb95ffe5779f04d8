"""The log of a real hub: one line for each client that goes, whatever it spoke, and never a token or a payload."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.parse
from typing import Any

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from hub import auth
from tests.hubs import KEY, SECRET, HubProcess
from tests.speakers import WIRES, joined, request

CANARY = "canary-9f3c1e"
"""In every payload and in everything that is secret; nothing else has it."""

SETTINGS = {
    "workers": 1,
    "log_level": "debug",
    "log_format": "json",
    "log_addresses": True,
    "auth": {"hmac_secret": SECRET + CANARY},
    "api": {"key": KEY + CANARY},
}

TRANSPORTS = {"socketio": "websocket", "polling": "polling"}
"""Of those who speak Socket.IO."""


def lines_of(hub: HubProcess) -> list[dict[str, Any]]:
    """Whole lines only: the last one may be half written. And the hub's own: its Valkey writes there, too."""
    text = hub.stderr
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]


def wait_for(hub: HubProcess, event: str, count: int, **fields: object) -> list[dict[str, Any]]:
    """The lines of an event with these fields, once there are `count`."""
    deadline = time.monotonic() + 10
    while True:
        found = [line for line in lines_of(hub) if line["event"] == event and fields.items() <= line.items()]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, hub.stderr
        time.sleep(0.02)  # nothing tells when a process has written a line


def token() -> str:
    """One of ann's, that has the canary in what it signs and in its text."""
    return auth.make("ann", f"{SECRET}{CANARY}", 60.0, time.time())


@pytest.fixture(scope="module")
def hub():
    with HubProcess(SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def discreet():
    """The same without addresses, which is the default."""
    with HubProcess({name: value for name, value in SETTINGS.items() if name != "log_addresses"}) as running:
        yield running


@pytest.mark.parametrize("wire", WIRES)
def test_each_client_leaves_one_line(hub: HubProcess, wire: str) -> None:
    """With who it was, what it spoke, why it went, how long it was here and what went both ways."""
    told = {"wire": wire}
    if wire in TRANSPORTS:
        told = {"wire": "socketio", "transport": TRANSPORTS[wire]}
    before = len(wait_for(hub, "closed", 0, **told))
    WIRES[wire](hub, token(), CANARY)
    line = wait_for(hub, "closed", before + 1, **told)[-1]
    assert (line["level"], line["user"], line["address"], line["slot"]) == ("info", "ann", "127.0.0.1", 0)
    assert line.keys() >= {"code", "reason", "generation", "pid", "time"}
    assert 0 <= line["seconds"] < 10
    assert 0 < line["bytes_in"] < 10_000
    assert 0 < line["bytes_out"] < 10_000
    assert line["messages"] == {"websocket": 3, "event_stream": 0, "socketio": 3, "polling": 2}.get(wire, 1)
    assert len(wait_for(hub, "closed", before + 1, **told)) == before + 1


@pytest.mark.parametrize("wire", WIRES)
def test_addresses_are_told_only_if_that_is_wanted(discreet: HubProcess, wire: str) -> None:
    """They are personal data; the line is the same otherwise, at debug as well."""
    told = {"wire": "socketio", "transport": TRANSPORTS[wire]} if wire in TRANSPORTS else {"wire": wire}
    WIRES[wire](discreet, token(), CANARY)
    assert wait_for(discreet, "closed", 1, **told)[-1]["address"] == "-"
    assert {line["address"] for line in lines_of(discreet) if "address" in line} == {"-"}


def test_the_steps_of_a_life_are_told_at_debug(hub: HubProcess) -> None:
    """From its opening to its end, in order, under one id."""
    WIRES["websocket"](hub, token(), CANARY)
    client = wait_for(hub, "closed", 1, wire="websocket")[-1]["client"]
    events = [line["event"] for line in lines_of(hub) if line.get("client") == client]
    assert events == ["opened", "connected", "subscribed", "closing", "closed"]


def test_no_token_and_no_payload_is_ever_in_the_log(hub: HubProcess) -> None:
    """At debug, over every wire, also where a client or a publisher does everything wrong."""
    for speak in WIRES.values():
        speak(hub, token(), CANARY)
    secrets = [token(), CANARY, SECRET, KEY]
    for bad in (
        f'{{"id":1,"connect":{{"token":"{CANARY}"}}}}',
        f'{{"id":1,"connect":{{"token":"{token()}x"}}}}',
        f'{{"id":1,"{CANARY}":{{}}}}',
        f'{{"id":1,"connect":"{CANARY}',
        f'{{"id":1,"connect":{{}}}}\n{{"id":2,"subscribe":{{"channel":5,"data":"{CANARY}"}}}}',
    ):
        # Some of it ends the connection.
        with contextlib.suppress(WebSocketException), connect(hub.ws_url) as socket:
            socket.send(bad)
            socket.recv()
    with contextlib.suppress(WebSocketException), joined(hub, token()) as engine:
        engine.send(f'42["publish",{{"channel":"chat:a","data":{CANARY}')
        engine.recv()
    paths = (f"/sse?token={CANARY}", f"/connection/sse?cf_connect={CANARY}", f"/poll?channel=chat:a&token={token()}x")
    paths += (f"/sse?channel=chat:a&channel_token={CANARY}", f"/sse?channel=chat:a&ticket={CANARY}")
    for path in paths:
        with request(hub, "GET", path):
            pass
    good = f'{{"channel":"chat:a","data":"{CANARY}"}}'
    for key, body in ((KEY + CANARY, good), (CANARY, "{}"), (KEY + CANARY, CANARY)):
        api = http.client.HTTPConnection(urllib.parse.urlsplit(hub.api_url).netloc, timeout=10)
        api.request("POST", "/api/publish", body, {"X-API-Key": key})
        api.getresponse().read()
        api.close()
    with connect(hub.ws_url):
        pass  # what it leaves behind is the last line
    wait_for(hub, "closed", 1, user="", messages=0)
    text = hub.stderr
    assert [secret for secret in secrets if secret in text] == []
    assert token().rpartition(".")[0] not in text
