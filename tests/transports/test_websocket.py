"""The WebSocket transport: real sockets, a real Valkey, and clients that are not ours."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import re

import pytest
from tornado.httpclient import AsyncHTTPClient
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hub import auth, frames
from hub.connection import READ_BYTES, Connection
from hub.fairness import Rates
from hub.message import Publication
from hub.quotas import Meter
from hub.session import Session
from hub.transports import websocket
from tests.nodes import until
from tests.plane import SECRET, Client, client, plane
from tests.support import async_test

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}


def head(**changes: str | None) -> bytes:
    """An upgrade request with some headers changed, or left out where the value is None."""
    headers = {**UPGRADE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join(["GET /connection/websocket HTTP/1.1", *lines, "", ""]).encode()


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros, which leave the payload readable."""
    frame = frames.encode_frame(opcode, payload)
    length = len(frame) - len(payload)
    return frame[:1] + bytes([frame[1] | 0x80]) + frame[2:length] + b"\0\0\0\0" + payload


async def raw(port: int, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Send bytes as they are; the answer's head comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    return reader, writer, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)


async def closing(one: Client) -> tuple[int, str]:
    """Code and reason with which the hub closes."""
    with pytest.raises(ConnectionClosed):
        while True:
            await asyncio.wait_for(one.socket.recv(), 5)
    return one.socket.close_code, one.socket.close_reason


@async_test
async def test_what_one_client_publishes_another_receives(valkey_url, prefix):
    """A publication crosses Redis and reaches a subscriber of the same channel, with the publisher's name."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, client(hub.url) as two:
        await one.subscribe("open:a")
        assert await two.command(publish={"channel": "open:a", "data": {"text": "hi"}}) == {"id": 2, "publish": {}}
        push = await one.push()
        assert push["channel"] == "open:a"
        assert push["pub"]["data"] == {"text": "hi"}
        assert push["pub"]["info"]["user"] == ""


@async_test
async def test_a_latest_channel_is_delivered_from_its_namespace_feed(valkey_url, prefix):
    """Subscribers of two channels of a `latest` namespace each receive their own and nothing else."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, client(hub.url) as two:
        await one.subscribe("ticker:ACME")
        await two.subscribe("ticker:BETA")
        await one.command(publish={"channel": "ticker:BETA", "data": 2})
        await one.command(publish={"channel": "ticker:ACME", "data": 1})
        assert (await one.push())["pub"]["data"] == 1
        assert (await two.push())["pub"]["data"] == 2


@async_test
async def test_commands_may_be_joined_by_newlines(valkey_url, prefix):
    """Several commands in one message are each answered, also the subscribe that an unsubscribe overtook."""
    async with plane(valkey_url, prefix) as hub, connect(hub.url, proxy=None) as socket:
        await socket.send(
            '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}\n{"id":3,"unsubscribe":{"channel":"open:a"}}'
        )
        one = Client(socket)
        replies = [await one._first(lambda line, i=i: line.get("id") == i) for i in (1, 2, 3)]
        assert [next(iter(set(reply) - {"id"})) for reply in replies] == ["connect", "error", "unsubscribe"]
        assert hub.fanout.lines.counts() == {}


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_frames_behind_the_handshake_are_not_lost(valkey_url, prefix, fast):
    """A client may pipeline its first commands behind the upgrade request (RFC 6455 §4.1 forbids it, clients do it)."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        request = head() + masked(frames.TEXT, b'{"id":1,"connect":{}}')
        reader, writer, answer = await raw(hub.port, request)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b'{"id":1,"connect":{"client":' in await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        writer.close()


@async_test
async def test_of_what_is_pipelined_no_more_is_taken_than_in_any_turn(valkey_url, prefix, monkeypatch):
    """The others wait in the socket; nothing is lost, and the order is kept."""
    pieces: list[int] = []
    receive = Connection.receive

    def watched(connection: Connection, data: bytes) -> None:
        pieces.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(Connection, "receive", watched)
    commands = [b'{"id":%d,"rpc":{"method":"hub.time"}}' % number for number in range(2, 160)]
    request = head() + b"".join(masked(frames.TEXT, text) for text in [b'{"id":1,"connect":{}}', *commands])
    assert READ_BYTES + len(head()) < len(request) < 8000, "as much as is peeked at"
    async with plane(valkey_url, prefix) as hub:
        reader, writer, _ = await raw(hub.port, request)
        text = await asyncio.wait_for(reader.readuntil(b'"id":159'), 5)
        assert re.findall(rb'"id":(\d+)', text) == [b"%d" % number for number in range(1, 160)]
        writer.close()
    assert pieces[0] == READ_BYTES and sum(pieces) == len(request) - len(head())


@pytest.mark.parametrize("pipelined", [True, False])
@async_test
async def test_who_cuts_messages_into_single_bytes_is_left_unread_sooner(valkey_url, prefix, monkeypatch, pipelined):
    """By a clock that stands still nothing takes any time; where the bytes come behind the handshake's request, too."""
    piece = b"\0\x81\0\0\0\0 "
    message = b"\x01\x81\0\0\0\0{" + piece * 62 + b"\x80\x81\0\0\0\0}"
    connecting = masked(frames.TEXT, b'{"id":1,"connect":{}}')
    async with plane(valkey_url, prefix) as hub:
        stopped = hub.reactor.clock()
        monkeypatch.setattr(hub.reactor, "clock", lambda: stopped)
        monkeypatch.setattr(hub.reactor.fairness, "_clock", lambda: stopped)
        hub.reactor.fairness.retune(Rates.of_ms(1, 0, 0))
        reader, writer, _ = await raw(hub.port, head() + connecting + (message * 2 if pipelined else b""))
        await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        if not pipelined:
            assert not hub.reactor.fairness.waiting
            writer.write(message * 2)
        await until(lambda: hub.reactor.fairness.waiting == 1)
        writer.close()


@async_test
async def test_who_has_gone_needs_no_look_for_garbage(valkey_url, prefix):
    """Nothing of a client is in a cycle, or in a storm the loop would wait for the garbage of those that went."""
    async with plane(valkey_url, prefix) as hub:
        gc.collect()
        gc.disable()
        try:
            async with client(hub.url) as one:
                await one.subscribe("open:a")
                assert len(parts_of_clients()) == 4
            await until(lambda: not hub.reactor.connections)
            await until(lambda: not parts_of_clients())
        finally:
            gc.enable()


def parts_of_clients() -> list[object]:
    """What there is for each client, as the interpreter knows it."""
    return [one for one in gc.get_objects() if isinstance(one, Connection | Session | Meter | frames.FrameReader)]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Upgrade": None}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "keep-alive"}, 400),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": base64.b64encode(b"short").decode()}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_bad_handshake_is_refused_with_its_status(valkey_url, prefix, changes, status, fast):
    """Each fault of an upgrade request has its own status on both ways in, and none is upgraded."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        _, writer, answer = await raw(hub.port, head(**changes))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert not hub.reactor.connections
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_origins_of_the_same_host_and_of_the_list_are_let_in(valkey_url, prefix, fast):
    """Same host, an allowed origin and no Origin at all connect; a foreign one is refused with 403."""
    async with plane(valkey_url, prefix, origins=("https://shop.example",), fast=fast) as hub:
        for origin in (f"http://127.0.0.1:{hub.port}", "https://shop.example", None):
            async with client(hub.url, origin=origin):
                pass
        with pytest.raises(InvalidStatus) as refused:
            async with client(hub.url, origin="https://shop.example.evil"):
                pass
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_draining_worker_refuses_handshakes(valkey_url, prefix, fast):
    """While it drains, an upgrade is answered with 503 and Retry-After."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        hub.draining.set()
        _, writer, answer = await raw(hub.port, head())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in answer
        writer.close()


@async_test
async def test_only_get_is_allowed(valkey_url, prefix):
    """POST to the WebSocket address is 405."""
    async with plane(valkey_url, prefix) as hub:
        url = hub.url.replace("ws:", "http:")
        answer = await AsyncHTTPClient().fetch(url, method="POST", body=b"", raise_error=False)
        assert answer.code == 405 and answer.headers["Allow"] == "GET"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x02{}", 1002),  # not masked
        (masked(frames.TEXT, b"\xff\xfe"), 1007),
        (masked(frames.BINARY, b"{}"), 1003),
        (masked(frames.TEXT, b"x" * 70_000), 1009),
        (masked(0x3, b""), 1002),
        (masked(frames.TEXT, b"not json"), 3501),
        (masked(frames.TEXT, b"[]"), 3501),
        (masked(frames.TEXT, b'{"id":1,"subscribe":{"channel":"open:a"}}'), 3501),  # before connect
        (masked(frames.TEXT, b'{"connect":{}}'), 3501),  # no id
        (masked(frames.TEXT, b'{"id":1,"connect":{"token":"x.y.z"}}'), 3500),
        (masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"connect":{}}'), 3501),
    ],
)
@async_test
async def test_a_client_that_breaks_the_wire_is_closed_with_a_code_and_nobody_else(valkey_url, prefix, sent, code):
    """Each fault ends its own connection with its code, in a close frame; a client beside it goes on."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as beside:
        await beside.subscribe("open:a")
        reader, writer, _ = await raw(hub.port, head())
        writer.write(sent)
        received = b""
        while b"\x88" not in received[-200:] or len(received) < 4:
            received += await asyncio.wait_for(reader.read(4096), 5)
        close = received[received.rindex(b"\x88") :]
        assert int.from_bytes(close[2:4], "big") == code
        if code in (1002, 1007, 1009):
            # A fault of the wire: the hub ends its side at once, as no answer could be read any more.
            assert await asyncio.wait_for(reader.read(-1), 0.5) in (b"", close[len(close) :])
        writer.close()
        await beside.command(publish={"channel": "open:a", "data": 1})
        assert (await beside.push())["pub"]["data"] == 1


@async_test
async def test_the_replies_to_one_message_come_in_one_frame(valkey_url, prefix):
    """Newline-batched commands have newline-batched replies, in their order; a close comes behind them."""
    async with plane(valkey_url, prefix) as hub, connect(hub.url, proxy=None) as socket:
        await socket.send(
            '{"id":1,"connect":{}}\n{"id":2,"rpc":{"method":"hub.time"}}\n{"id":3,"history":{}}\n{"id":0,"x":{}}'
        )
        lines = (await asyncio.wait_for(socket.recv(), 5)).split("\n")
        assert [line[:8] for line in lines] == ['{"id":1,', '{"id":2,', '{"id":3,']
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 5)
        assert socket.close_code == 3501


@async_test
async def test_a_ping_is_answered_with_its_payload(valkey_url, prefix):
    """RFC 6455 §5.5.2, through a client that is not ours."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await asyncio.wait_for(await one.socket.ping(b"payload"), 5)


@async_test
async def test_a_close_frame_is_answered_and_the_audience_left(valkey_url, prefix):
    """RFC 6455 §5.5.1: the peer's code comes back, and its subscriptions are gone."""
    async with plane(valkey_url, prefix) as hub:
        async with client(hub.url) as one:
            await one.subscribe("open:a")
            assert hub.fanout.lines.counts() == {"open:a": 1}
            await one.socket.close(4001, "done")
            assert one.socket.close_code == 4001
        while hub.reactor.connections:
            await asyncio.sleep(0)
        assert hub.fanout.lines.counts() == {}


@async_test
async def test_a_client_that_just_goes_leaves_its_audience(valkey_url, prefix):
    """A TCP end without a close frame frees the connection and its subscriptions."""
    async with plane(valkey_url, prefix) as hub:
        async with client(hub.url) as one:
            await one.subscribe("open:a")
            one.socket.transport.abort()
            while hub.reactor.connections:
                await asyncio.sleep(0.001)
        assert hub.fanout.lines.counts() == {}


@async_test
async def test_a_client_that_never_connects_is_closed_as_stale(valkey_url, prefix):
    """After connect_timeout_s without a connect command: 3502."""
    async with (
        plane(valkey_url, prefix, client={"connect_timeout_s": 0.1}) as hub,
        connect(hub.url, proxy=None) as socket,
    ):
        assert await closing(Client(socket)) == (3502, "stale")


@async_test
async def test_a_silent_client_is_closed_with_no_pong_and_an_answering_one_stays(valkey_url, prefix):
    """A client that does not answer the hub's ping within pong_timeout_s gets 3012."""
    times = {"connect_timeout_s": 0.1, "ping_interval_s": 1.5, "pong_timeout_s": 1.0}
    async with (
        plane(valkey_url, prefix, client=times, jitter=lambda: 0.0) as hub,
        client(hub.url) as one,
        client(hub.url) as two,
    ):
        await one.ping()
        await two.ping()
        await two.socket.send("{}")
        assert await closing(one) == (3012, "no pong")
        await two.ping()


@async_test
async def test_a_client_whose_pong_is_left_unread_for_a_while_is_not_dead(valkey_url, prefix):
    """Fairness has put it off, and its pong waits in its socket; one that has said nothing is as dead as any."""
    times = {"connect_timeout_s": 0.1, "ping_interval_s": 1.5, "pong_timeout_s": 1.0}
    async with plane(valkey_url, prefix, client=times, jitter=lambda: 0.0) as hub, client(hub.url) as one:
        (connection,) = hub.reactor.connections.values()
        for answers in (True, False):
            await one.ping()
            connection.put_off()
            if answers:
                await one.socket.send("{}")
                await one.ping()  # the next one
                connection.read_again()
                await one.socket.send("{}")
        await until(lambda: not connection.open)
        connection.read_again()  # the answer to our last words, and the end
        assert await closing(one) == (3012, "no pong")


@async_test
async def test_a_message_that_is_left_unread_for_a_while_has_its_time(valkey_url, prefix):
    """Its end waits in the client's socket: that it was not read is the hub's doing."""
    async with plane(valkey_url, prefix, client={"message_timeout_s": 0.2}) as hub, client(hub.url) as one:
        (connection,) = hub.reactor.connections.values()
        deadlines = []
        judge, connection_class = connection.on_deadline, type(connection)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection_class, "on_deadline", lambda self, now: deadlines.append(now) or judge(now))
            connection.receive(b"\x01\x81\0\0\0\0{")  # text, not final
            connection.put_off()
            one.socket.transport.write(b"\x80\x81\0\0\0\0}")  # its end
            await until(lambda: len(deadlines) > 2 or not connection.open)
        assert connection.open
        connection.read_again()
        assert "subscribe" in await one.command(subscribe={"channel": "open:a"})


@async_test
async def test_a_message_that_does_not_end_in_time_is_closed(valkey_url, prefix):
    """message_timeout_s after its first byte an unfinished message ends its connection with 1008, pings or not."""
    async with plane(valkey_url, prefix, client={"message_timeout_s": 0.2}) as hub:
        reader, writer, _ = await raw(hub.port, head())
        writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}'))
        writer.write(b"\x01\x81\0\0\0\0{")  # text, not final
        writer.write(masked(frames.PING, b""))
        received = b""
        while b"\x88" not in received:
            received += await asyncio.wait_for(reader.read(4096), 5)
        assert int.from_bytes(received[received.rindex(b"\x88") + 2 :][:2], "big") == 1008
        writer.close()


@async_test
async def test_an_expired_token_is_an_error_reply_and_a_good_one_names_the_user(valkey_url, prefix):
    """109 leaves the connection for another try; the next token is taken and gives the user."""
    async with plane(valkey_url, prefix, wall_clock=lambda: 1000.0) as hub, connect(hub.url, proxy=None) as socket:
        one = Client(socket)
        reply = await one.command(connect={"token": auth.make("42", SECRET, 60, 900.0)})
        assert reply["error"] == {"code": 109, "message": "token expired"}
        assert "connect" in await one.command(connect={"token": auth.make("42", SECRET, 60, 1000.0)})
        await one.subscribe("users:a")
        await one.command(publish={"channel": "users:a", "data": 1})
        assert (await one.push())["pub"]["info"]["user"] == "42"


@async_test
async def test_a_reader_that_stops_is_closed_as_slow_and_told_so(valkey_url, prefix):
    """More than outbox_bytes unsent: no more is queued, 3008 stands behind the backlog; others receive everything."""
    async with plane(valkey_url, prefix, client={"outbox_bytes": 65_536}) as hub, client(hub.url) as fast:
        await fast.subscribe("open:a")
        reader, writer, _ = await raw(hub.port, head())
        writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}'))
        await asyncio.wait_for(reader.readuntil(b'"subscribe":{}}'), 5)
        writer.transport.pause_reading()
        text = os.urandom(15_000).hex()
        connections = list(hub.reactor.connections.values())
        for _ in range(1000):
            await fast.command(publish={"channel": "open:a", "data": text})
            assert (await fast.push())["pub"]["data"] == text
            if any(connection.closed_with.code == 3008 for connection in connections):
                break
        else:
            pytest.fail("not closed after 30 MB")
        writer.transport.resume_reading()
        words, last = frames.encode_close(3008, "slow"), b""
        while last != words:
            last = (last + await asyncio.wait_for(reader.read(65_536), 5))[-len(words) :]
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_the_json_subprotocol_is_selected_where_it_is_offered(valkey_url, prefix, fast):
    """A client that offers centrifuge-json gets it; another offer is declined by silence (RFC 6455 §4.2.2)."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        async with client(hub.url, subprotocols=["centrifuge-json"]) as one:
            assert one.socket.subprotocol == "centrifuge-json"
        async with client(hub.url, subprotocols=["centrifuge-protobuf"]) as one:
            assert one.socket.subprotocol is None


@async_test
async def test_a_client_that_lost_messages_is_told_how_many_once_it_has_caught_up(valkey_url, prefix):
    """Messages of a `none` channel beyond outbox_drop_bytes are dropped; received and dropped make up what was sent."""
    bounds = {"outbox_drop_bytes": 50_000, "outbox_bytes": 10_000_000}
    async with plane(valkey_url, prefix, client=bounds) as hub, client(hub.url) as fast:
        reader, writer, _ = await raw(hub.port, head())
        writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}'))
        await asyncio.wait_for(reader.readuntil(b'"subscribe":{}}'), 5)
        writer.transport.pause_reading()
        text, sent = os.urandom(15_000).hex(), 0
        while not hub.reactor.backlog.dropped:
            await fast.command(publish={"channel": "open:a", "data": text})
            sent += 1
        writer.transport.resume_reading()
        received = b""
        while b'{"push":{"message":{"data":{"hub":{"dropped":' not in received:
            received += await asyncio.wait_for(reader.read(1 << 20), 5)
        dropped = int(received.rpartition(b'"dropped":')[2].partition(b"}")[0])
        assert received.count(b'"pub":{') + dropped == sent
        writer.close()


@async_test
async def test_every_ping_of_a_client_that_reads_has_its_pong(valkey_url, prefix):
    """Also of many in one write: while nothing is stuck none stands for another."""
    async with plane(valkey_url, prefix, client={"pings_per_s": 0}) as hub:
        reader, writer, _ = await raw(hub.port, head())
        writer.write(b"".join(masked(frames.PING, b"%0100d" % number) for number in range(600)))
        pongs = b"".join(frames.encode_frame(frames.PONG, b"%0100d" % number) for number in range(600))
        assert await asyncio.wait_for(reader.readexactly(len(pongs)), 5) == pongs
        writer.close()


@async_test
async def test_pings_of_a_client_that_does_not_read_pile_up_no_pongs(valkey_url, prefix):
    """Behind a backlog the newest pong takes the place of the one that waits; publications around it stay whole."""
    settings = {"outbox_conflate_bytes": 0, "outbox_drop_bytes": 1 << 24, "pings_per_s": 0}
    async with plane(valkey_url, prefix, client=settings) as hub:
        reader, writer, _ = await raw(hub.port, head())
        writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}'))
        await asyncio.wait_for(reader.readuntil(b'"subscribe":{}}'), 5)
        writer.transport.pause_reading()
        [stuck] = hub.reactor.connections.values()
        while stuck.direct:
            hub.fanout.deliver([Publication("open:a", b'{"data":"%s"}' % (b"x" * 15_000))])
            await asyncio.sleep(0)
        before = stuck._outbox.size
        writer.write(b"".join(masked(frames.PING, b"%0100d" % number) for number in range(5000)))
        writer.write(masked(frames.PING, b"last"))
        await asyncio.wait_for(writer.drain(), 5)
        while hub.reactor.clock() - stuck.heard_at < 0.05:  # all of it is read when nothing came for so long
            await asyncio.sleep(0.01)
        assert 0 < stuck._outbox.size - before < 200
        hub.fanout.deliver([Publication("open:a", b'{"data":"behind"}')])
        writer.transport.resume_reading()
        received = b""
        while not received.endswith(b'"behind"}}}'):
            received += await asyncio.wait_for(reader.read(65_536), 5)
        assert frames.encode_frame(frames.PONG, b"last") in received
        assert received.count(b"\x8a") == 1
        assert hub.reactor.backlog.conflated == 0
        writer.close()


@async_test
async def test_pong_and_close_queue_behind_a_frame_that_is_half_sent(valkey_url, prefix):
    """Control frames may stand between the fragments of a message, never inside a frame (RFC 6455 §5.4)."""
    async with plane(valkey_url, prefix, client={"outbox_bytes": 1 << 24}) as hub:
        reader, writer, _ = await raw(hub.port, head())
        writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}'))
        await asyncio.wait_for(reader.readuntil(b'"subscribe":{}}'), 5)
        writer.transport.pause_reading()
        [stuck] = hub.reactor.connections.values()
        body = b'{"data":"%s"}' % (b"x" * 8_000_000)
        hub.fanout.deliver([Publication("open:a", body)])
        await until(lambda: not stuck.direct)
        left = stuck._outbox.size
        writer.write(masked(frames.PING, b"mark"))
        await until(lambda: stuck._outbox.size > left)
        writer.write(masked(frames.CLOSE, (4001).to_bytes(2, "big")))
        await until(lambda: not stuck.open)
        writer.transport.resume_reading()
        expected = websocket.NATIVE.encode_publication("open:a", body) + frames.encode_frame(frames.PONG, b"mark")
        received = await asyncio.wait_for(reader.read(-1), 10)
        assert received == expected + frames.encode_close(4001, "")
        writer.close()


@async_test
async def test_half_open_clients_leave_nothing_behind(valkey_url, prefix):
    """Peers that vanished without a word, some with bytes that they never took: all are closed with 3012 at the pong's
    deadline, cut when they don't answer that either, and everything that was theirs is free again.
    """
    times = {"connect_timeout_s": 0.1, "ping_interval_s": 1.1, "pong_timeout_s": 1.0, "close_timeout_s": 0.2}
    bounds = {"outbox_bytes": 1 << 24}
    async with plane(valkey_url, prefix, client=times | bounds, jitter=lambda: 0.0) as hub:
        before, ours = len(os.listdir("/proc/self/fd")), []
        for _ in range(20):
            reader, writer, _ = await raw(hub.port, head())
            writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}'))
            await asyncio.wait_for(reader.readuntil(b'"subscribe":{}}'), 5)
            writer.transport.pause_reading()
            ours.append(writer)
        connections = list(hub.reactor.connections.values())
        assert hub.fanout.lines.counts() == {"open:a": 20} == {"open:a": hub.services.users.sessions}
        assert len(os.listdir("/proc/self/fd")) == before + 40
        for one in connections[:10]:
            one.put(frames.encode_frame(frames.TEXT, b"x" * 8_000_000))
        await until(lambda: sum(not one.direct for one in connections) == 10)
        await until(lambda: not hub.reactor.connections)
        assert {one.closed_with.code for one in connections} == {3012}
        await until(lambda: len(os.listdir("/proc/self/fd")) == before + 20)
        await until(lambda: not hub.fanout.busy)
        assert hub.fanout.lines.counts() == {} and not hub.fanout._groups
        assert hub.services.users.sessions == 0 == hub.reactor.backlog.bytes
        assert hub.ingest._held == set(hub.ingest._own)
        for writer in ours:
            writer.close()
