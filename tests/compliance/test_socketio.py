"""Compliance: the cases of the test suites of Engine.IO 4 and Socket.IO 5, against four workers of the app beside this.

Every request has a TCP connection of its own, so it lands in any worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import socket
import threading
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.hubs import HubProcess
from tests.support import async_test

HERE = Path(__file__).parent
ENGINE, SOCKET = "/engine.io/", "/socket.io/"
BOTH = pytest.mark.parametrize("path", [ENGINE, SOCKET])
POLLING, WEBSOCKET = "?EIO=4&transport=polling", "?EIO=4&transport=websocket"
INTERVAL_S, TIMEOUT_S = 0.3, 0.2
HANDSHAKE = {"pingInterval": 300, "pingTimeout": 200, "maxPayload": 1_000_000}
JOIN = {ENGINE: "4hello", SOCKET: "40"}
BYTES = [b"\x01\x02\x03", b"\x04\x05\x06"]


def app_at_port(**socketio: int) -> Iterator[int]:
    settings = tomllib.loads((HERE / "socketio_app.toml").read_text()) | {"listen": ["127.0.0.1:0"]}
    settings["socketio"] |= socketio
    hub = HubProcess(settings, base=False)
    shutil.copy(HERE / "socketio_app.py", hub.directory)
    with hub:
        yield int(urlsplit(hub.ws_url).port)


@pytest.fixture(scope="module")
def quick() -> Iterator[int]:
    """As it is."""
    yield from app_at_port()


@pytest.fixture(scope="module")
def patient() -> Iterator[int]:
    """It pings as often, and can wait for pongs: a machine that is busy for 200 ms is no failure."""
    yield from app_at_port(ping_timeout_ms=60_000)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Without any of its deadlines, for cases that are not about them."""
    yield from app_at_port(ping_interval_ms=60_000, ping_timeout_ms=60_000, connect_timeout_ms=60_000)


class Answer(NamedTuple):
    status: int
    body: str


def ask(port: int, target: str, method: str = "GET", body: str | None = None) -> Answer:
    """One request on a TCP connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, target, body, {"Connection": "close", "Content-Type": "text/plain;charset=UTF-8"})
        response = connection.getresponse()
        return Answer(response.status, response.read().decode())


def handshake(packet: str) -> dict:
    assert packet[0] == "0"
    return json.loads(packet[1:])


def session(port: int, path: str) -> str:
    """The target of a new session that polls."""
    sid = handshake(ask(port, path + POLLING).body)["sid"]
    return f"{path}{POLLING}&sid={sid}"


@contextlib.contextmanager
def beside(function: object, *arguments: object) -> Iterator[list[Answer]]:
    """Call something in a thread meanwhile; its answer is there behind the block."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(function(*arguments)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(10)


@contextlib.asynccontextmanager
async def opened(port: int, target: str) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://127.0.0.1:{port}{target}", proxy=None, compression=None, ping_interval=None) as one:
        yield one


async def receive(one: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(one.recv(), 5)


async def closes(one: ClientConnection) -> None:
    """It ends without a word, but for a ping."""
    with pytest.raises(ConnectionClosed):
        while True:
            assert await receive(one) == "2"


@contextlib.asynccontextmanager
async def member(port: int, hello: str = "40", prefix: str = "40") -> AsyncIterator[ClientConnection]:
    """A client that has connected to a namespace, and has its `auth` event yet to read."""
    async with opened(port, SOCKET + WEBSOCKET) as one:
        handshake(await receive(one))
        await one.send(hello)
        answer = await receive(one)
        assert answer.startswith(prefix)
        assert json.loads(answer.removeprefix(prefix)).keys() == {"sid"}
        yield one


# -- handshake --


@BOTH
@async_test
async def test_a_session_is_opened(quick, path):
    """With the keys of the protocol and no others; a WebSocket has nothing to upgrade to."""
    answer = ask(quick, path + POLLING)
    assert answer.status == 200
    async with opened(quick, path + WEBSOCKET) as one:
        found = [handshake(answer.body), handshake(await receive(one))]
    assert [one.pop("upgrades") for one in found] == [["websocket"], []]
    assert len({one.pop("sid") for one in found}) == 2
    assert found == [HANDSHAKE, HANDSHAKE]


@BOTH
def test_requests_that_open_nothing_are_400(port, path):
    """A bad or missing EIO, transport or method, by polls."""
    for query in ("?transport=polling", "?EIO=abc&transport=polling", "?EIO=4", "?EIO=4&transport=abc"):
        assert ask(port, path + query).status == 400, query
    assert ask(port, path + POLLING, "POST", "").status == 400
    assert ask(port, path + POLLING, "PUT", "").status == 400


@BOTH
@async_test
async def test_websockets_that_open_nothing_are_400(port, path):
    for query in ("?transport=websocket", "?EIO=abc&transport=websocket", "?EIO=4", "?EIO=4&transport=abc"):
        with pytest.raises(InvalidStatus) as caught:
            async with opened(port, path + query):
                pass
        assert caught.value.response.status_code == 400, query


# -- messages of Engine.IO --


@pytest.mark.parametrize("body", ["4hello", "4test1\x1e4test2\x1e4test3", "4hello\x1ebAQIDBA=="])
def test_payloads_come_back(port, body):
    """One packet, several, text beside binary."""
    for _ in range(8):
        target = session(port, ENGINE)
        assert ask(port, target, "POST", body) == (200, "ok")
        assert ask(port, target) == (200, body)


@async_test
async def test_messages_on_a_websocket_come_back(port):
    async with opened(port, ENGINE + WEBSOCKET) as one:
        handshake(await receive(one))
        for message in ("4hello", b"\x01\x02\x03\x04"):
            await one.send(message)
            assert await receive(one) == message


@BOTH
@async_test
async def test_an_invalid_packet_ends_the_session(port, path):
    target = session(port, path)
    assert ask(port, target, "POST", "abc").status == 400
    assert ask(port, target).status == 400
    async with opened(port, path + WEBSOCKET) as one:
        handshake(await receive(one))
        await one.send("abc")
        await closes(one)


@BOTH
def test_a_second_poll_ends_the_session(port, path):
    """The first hears of it. Which of two that go together is the first, nobody can say."""
    target = session(port, path)
    with beside(ask, port, target) as one, beside(ask, port, target + "&t=burst") as other:
        pass
    assert sorted([one[0], other[0]])[0] == (200, "1")
    assert max(one[0].status, other[0].status) == 400
    assert ask(port, target).status == 400


@BOTH
def test_a_poll_that_is_given_up_ends_the_session(port, path):
    target = session(port, path)
    with socket.create_connection(("127.0.0.1", port), 5) as poll:
        poll.sendall(f"GET {target} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        # A post that goes the same way is answered once the poll is held, or is about to be.
        assert ask(port, target, "POST", "3").status == 200
    deadline = time.monotonic() + 5
    while (answer := ask(port, target, "POST", "3")).status == 200:
        assert time.monotonic() < deadline
    assert answer.status == 400
    assert ask(port, target).status == 400


# -- heartbeat and end --


@BOTH
@async_test
async def test_pings_are_answered_by_pongs(patient, path):
    """One at a time, the next one behind its pong."""
    target = session(patient, path)
    assert ask(patient, target, "POST", JOIN[path]) == (200, "ok")
    heard: list[str] = []
    while len(heard) < 3:
        answer = ask(patient, target)
        assert answer.status == 200
        heard += [packet for packet in answer.body.split("\x1e") if packet in ("1", "2")]
        assert ask(patient, target, "POST", "3") == (200, "ok")
    assert heard == ["2"] * 3
    async with opened(patient, path + WEBSOCKET) as one:
        await one.send(JOIN[path])
        for _ in range(3):
            while await receive(one) != "2":
                pass
            await one.send("3")


@BOTH
@async_test
async def test_a_session_without_pongs_ends_in_time(quick, path):
    """Polls: unknown as soon as both times are over, to the millisecond. A WebSocket is closed."""
    target = session(quick, path)
    await asyncio.sleep(INTERVAL_S + TIMEOUT_S)  # what the case is about
    assert ask(quick, target).status == 400
    async with opened(quick, path + WEBSOCKET) as one:
        handshake(await receive(one))
        await closes(one)


@BOTH
@async_test
async def test_a_client_ends_its_session(port, path):
    """The poll that waits, or is on its way, ends with a noop; then the session is unknown."""
    for _ in range(8):
        target = session(port, path)
        with beside(ask, port, target) as polled:
            assert ask(port, target, "POST", "1") == (200, "ok")
        assert polled == [(200, "6")]
        assert ask(port, target).status == 400
    async with opened(port, path + WEBSOCKET) as one:
        handshake(await receive(one))
        await one.send("1")
        await closes(one)


# -- upgrade --


@BOTH
@async_test
async def test_a_session_moves_to_its_websocket(port, path):
    """The poll ends with a noop; from then on polls and other WebSockets of the session are passed over."""
    for _ in range(8):
        target = session(port, path)
        upgrade = target.replace("polling", "websocket")
        async with opened(port, upgrade) as one:
            await one.send("2probe")
            assert await receive(one) == "3probe"
            assert await asyncio.to_thread(ask, port, target) == (200, "6")
            await one.send("5")
            message = "4hello" if path == ENGINE else "40"
            await one.send(message)
            assert (await receive(one)).startswith(message)
            assert (await asyncio.to_thread(ask, port, target)).status == 400
            async with opened(port, upgrade) as late:
                await closes(late)
            if path == ENGINE:
                await one.send("4still here")
                assert await receive(one) == "4still here"


# -- Socket.IO --


@pytest.mark.parametrize(
    ("hello", "prefix", "auth"),
    [
        ("40", "40", '42["auth",{}]'),
        ('40{"token":"123"}', "40", '42["auth",{"token":"123"}]'),
        ("40/custom,", "40/custom,", '42/custom,["auth",{}]'),
        ("40/custom", "40/custom,", '42/custom,["auth",{}]'),
        ('40/custom,{"token":"abc"}', "40/custom,", '42/custom,["auth",{"token":"abc"}]'),
    ],
)
@async_test
async def test_namespaces_are_joined(port, hello, prefix, auth):
    """With or without a payload, which the application gets as it is."""
    async with member(port, hello, prefix) as one:
        assert await receive(one) == auth


@async_test
async def test_who_joins_nothing_is_told_and_ended(port, patient):
    """An unknown namespace; what is no packet; nothing within connectTimeout."""
    async with opened(port, SOCKET + WEBSOCKET) as one:
        handshake(await receive(one))
        await one.send("40/random")
        assert await receive(one) == '44/random,{"message":"Invalid namespace"}'
        await one.send("4abc")
        await closes(one)
    async with opened(patient, SOCKET + WEBSOCKET) as one:
        handshake(await receive(one))
        begun = time.monotonic()
        await closes(one)
        assert 0.9 < time.monotonic() - begun < 5


@async_test
async def test_leaving_a_namespace_leaves_the_transport_open(patient):
    async with member(patient) as one:
        await receive(one)
        await one.send("41")
        assert await receive(one) == "2"
        await one.send("40")
        assert (await receive(one)).startswith('40{"sid":')


@async_test
async def test_leaving_one_namespace_leaves_the_other(port):
    async with member(port) as one:
        await receive(one)
        await one.send("40/custom")
        assert (await receive(one)).startswith('40/custom,{"sid":')
        assert await receive(one) == '42/custom,["auth",{}]'
        await one.send("41/custom")
        await one.send('42["message","message to main namespace"]')
        assert await receive(one) == '42["message-back","message to main namespace"]'


PLACES = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (['42["message",1,"2",{"3":[true]}]'], ['42["message-back",1,"2",{"3":[true]}]']),
        ([f'452-["message",{PLACES}]', *BYTES], [f'452-["message-back",{PLACES}]', *BYTES]),
        (['42456["message-with-ack",1,"2",{"3":[false]}]'], ['43456[1,"2",{"3":[false]}]']),
        ([f'452-789["message-with-ack",{PLACES}]', *BYTES], [f"462-789[{PLACES}]", *BYTES]),
    ],
)
@async_test
async def test_events_come_back(port, sent, received):
    """Plain and with attachments, as an event and as an ack; by polls too."""
    async with member(port) as one:
        await receive(one)
        for message in sent:
            await one.send(message)
        assert [await receive(one) for _ in received] == received
    target = session(port, SOCKET)
    assert ask(port, target, "POST", "40") == (200, "ok")
    heard: list[str] = []
    while len(heard) < 2:
        heard += ask(port, target).body.split("\x1e")
    assert ask(port, target, "POST", payload(sent)) == (200, "ok")
    del heard[:]
    while len(heard) < len(received):
        heard += [packet for packet in ask(port, target).body.split("\x1e") if packet != "2"]
    assert "\x1e".join(heard) == payload(received)


def payload(messages: list[str | bytes]) -> str:
    """As they stand in a polling body."""
    texts = {BYTES[0]: "bAQID", BYTES[1]: "bBAUG"}
    return "\x1e".join(one if isinstance(one, str) else texts[one] for one in messages)


@pytest.mark.parametrize("message", ["4abc", "42{}", '42abc["message-with-ack",1,"2",{"3":[false]}]'])
@async_test
async def test_invalid_packets_end_the_connection(port, message):
    """An unknown type, a payload that is no list, an ack's id that is no number."""
    async with member(port) as one:
        await receive(one)
        await one.send(message)
        await closes(one)


# -- pages --


@BOTH
@pytest.mark.parametrize("origin", [None, "https://anybody.example"])
def test_pages_of_all_origins_may_ask(port, path, origin):
    """`*`, and never with credentials."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path + POLLING, headers={"Origin": origin} if origin else {})
        response = connection.getresponse()
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert "Access-Control-Allow-Credentials" not in response.headers
