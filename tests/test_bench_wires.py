"""Bench wires: clients read bytes cut anywhere, and count what is of this run."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from hub import frames
from hub.bench_wires import Client, EventStreamClient, WebSocketClient, encode_message

RUN = 77
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
STREAMED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
READY = b'{"id":1,"connect":{"client":"c"}}\n{"id":2,"subscribe":{}}\n{"id":3,"subscribe":{"publications":[]}}'


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


class Heard:
    """A crew that notes what it is told."""

    run = RUN

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_ready(self, client: Client) -> None:
        self.told.append("ready")

    def on_end(self, client: Client, reason: str) -> None:
        self.told.append(reason)

    def on_message(self, client: Client, channel: int, sequence: int, due_ns: int, now_ns: int) -> None:
        self.told.append((channel, sequence, due_ns))


def websocket(token: str = "") -> tuple[WebSocketClient, Transport, Heard]:
    heard, transport = Heard(), Transport()
    client = WebSocketClient(heard, "ws://h:1/connection/websocket", token, ["a", "b"], [0, 1])
    client.connection_made(transport)
    return client, transport, heard


def pushed(*numbers: int, run: int = RUN, size: int = 0) -> bytes:
    """One frame with a publication for each."""
    lines = [
        b'{"push":{"channel":"a","pub":{"data":%b}}}' % encode_message(run, 0, number, 5, size) for number in numbers
    ]
    return frames.encode_frame(frames.TEXT, b"\n".join(lines))


def sent(transport: Transport) -> list[bytes]:
    """The payloads that the client has sent, as the hub reads them."""
    reader = frames.FrameReader(10**6, 10)
    return [payload for _, payload in reader.feed(transport.written.partition(b"\r\n\r\n")[2])]


def test_a_message_has_the_size_that_is_asked_for_and_its_numbers():
    """Where that is enough; it is JSON, and begins with what is looked for."""
    data = encode_message(RUN, 3, 4, 5, 200)
    assert len(data) == 200 and orjson.loads(data)["hub_bench"] == [RUN, 3, 4, 5]
    assert orjson.loads(encode_message(RUN, 3, 4, 5, 1)) == {"hub_bench": [RUN, 3, 4, 5], "pad": ""}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 10**6])
def test_frames_may_come_in_any_pieces(step: int):
    """Short, middle and long ones; each message counts once, those of another run not at all."""
    client, transport, heard = websocket("t")
    data = UPGRADED + frames.encode_frame(frames.TEXT, READY) + pushed(1, 2) + pushed(9, run=RUN + 1)
    data += pushed(3, size=70_000) + frames.encode_frame(frames.PING, b"p") + frames.encode_frame(frames.TEXT, b"{}")
    for i in range(0, len(data), step):
        client.data_received(data[i : i + step])
    assert heard.told == ["ready", (0, 1, 5), (0, 2, 5), (0, 3, 5)]
    assert transport.written.startswith(b"GET /connection/websocket HTTP/1.1\r\nHost: h:1\r\n")
    first, *others = sent(transport)
    assert [orjson.loads(line) for line in first.split(b"\n")] == [
        {"id": 1, "connect": {"token": "t"}},
        {"id": 2, "subscribe": {"channel": "a"}},
        {"id": 3, "subscribe": {"channel": "b"}},
    ]
    assert others == [b"p", b"{}"]


def test_a_ping_among_publications_is_answered():
    """The hub joins lines."""
    client, transport, heard = websocket()
    client.data_received(UPGRADED + frames.encode_frame(frames.TEXT, READY))
    message = b'{"push":{"channel":"a","pub":{"data":%b}}}' % encode_message(RUN, 0, 1, 5, 0)
    client.data_received(frames.encode_frame(frames.TEXT, message + b"\n{}"))
    assert heard.told[1:] == [(0, 1, 5)] and sent(transport)[1:] == [b"{}"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n", "HTTP 429"),
        (b"nonsense\r\n\r\n", "an answer that is no hub's"),
        (b"x" * 70_000, "an answer that is no hub's"),
        (UPGRADED + frames.encode_close(3500, "invalid token"), "closed with 3500: invalid token"),
        (
            UPGRADED + frames.encode_frame(frames.TEXT, b'{"id":2,"error":{"code":103,"message":"permission denied"}}'),
            "subscribe: error 103: permission denied",
        ),
        (
            UPGRADED + frames.encode_frame(frames.TEXT, b'{"id":1,"error":{"code":109,"message":"token expired"}}'),
            "connect: error 109: token expired",
        ),
    ],
)
def test_a_refusal_is_told_once_by_its_reason(data: bytes, reason: str):
    """And the client is gone."""
    client, transport, heard = websocket()
    client.data_received(data)
    client.data_received(data)
    client.connection_lost(None)
    assert heard.told == [reason] and transport.aborted and not client.ready


def test_the_end_of_a_subscription_is_the_end_of_the_client():
    """It would miss what comes."""
    client, _, heard = websocket()
    client.data_received(UPGRADED + frames.encode_frame(frames.TEXT, READY))
    gone = b'{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":"x"}}}'
    client.data_received(frames.encode_frame(frames.TEXT, gone))
    assert heard.told == ["ready", "unsubscribed by the hub"]


def test_who_publishes_gets_the_replies():
    """By number, in whatever order they come."""
    client, transport, _ = websocket()
    client.data_received(UPGRADED + frames.encode_frame(frames.TEXT, READY))
    answers: list[dict] = []
    client.publish("a", b'{"x":1}', answers.append)
    client.publish("a", b"2", answers.append)
    commands = [orjson.loads(payload) for payload in sent(transport)[1:]]
    assert [command["publish"] for command in commands] == [
        {"channel": "a", "data": {"x": 1}},
        {"channel": "a", "data": 2},
    ]
    numbers = [command["id"] for command in commands]
    replies = b'{"id":%d,"publish":{}}\n{"id":%d,"error":{"code":111}}' % (numbers[1], numbers[0])
    client.data_received(frames.encode_frame(frames.TEXT, replies))
    assert [sorted(answer) for answer in answers] == [["id", "publish"], ["error", "id"]]


@pytest.mark.parametrize("step", [1, 5, 64, 10**6])
def test_event_streams_may_come_in_any_pieces(step: int):
    """Heartbeats and heads between; the end is told with its code."""
    heard, transport = Heard(), Transport()
    client = EventStreamClient(heard, "ws://h:1/connection/websocket", "t", ["a:1", "b"], [0, 1])
    client.connection_made(transport)
    data = STREAMED + b'event: open\ndata: {"client":"c"}\n\n:\n\n'
    for number in (1, 2):
        data += b'data: {"channel":"a:1","pub":{"data":%b}}\n\n' % encode_message(RUN, 0, number, 5, 0)
    data += b'event: closed\ndata: {"code":3001,"reason":"shutdown","reconnect":true}\n\n'
    for i in range(0, len(data), step):
        client.data_received(data[i : i + step])
    assert heard.told == ["ready", (0, 1, 5), (0, 2, 5), "closed: 3001: shutdown"]
    assert transport.written.startswith(b"GET /sse?channel=a%3A1&channel=b HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer t\r\n" in transport.written
