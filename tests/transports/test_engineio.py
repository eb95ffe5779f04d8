"""Engine.IO sessions: polls, heartbeats, the move to a WebSocket, and what ends them."""

from __future__ import annotations

import asyncio
import time
from math import inf

import orjson
import pytest
from websockets.exceptions import ConnectionClosed

from hub import frames
from hub.sections import SocketIOSettings
from hub.transports.engineio import encode_frame, tick_s, unframe
from tests.nodes import until
from tests.plane import plane
from tests.support import async_test
from tests.transports.polls import fault, joined, member, polls, receive, request, websocket

QUICK = {"ping_interval_ms": 300, "ping_timeout_ms": 200}
EVENT = b'42["publish",{"channel":"open:a","data":1}]'


def test_frames_become_packets_again():
    """Of each length that a frame's head can have; bytes become base64."""
    texts = [b"2", b"4" * 125, b"4" * 126, b"4" * 70_000]
    data = b"".join(map(encode_frame, texts)) + encode_frame(b"\x01", frames.BINARY)
    assert list(unframe(data)) == [*texts, b"bAQ=="]


@async_test
async def test_a_poll_brings_what_waits_and_waits_for_more(valkey_url, prefix):
    """Several packets in one answer; an answer as soon as there is something to say."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        held = asyncio.create_task(session.packets())
        await until(lambda: hub.engine.sessions[session.sid].held)
        await session.post(b'421["unsubscribe",{"channel":"open:a"}]')
        assert await held == [b"431[{}]"]
        await session.post(*[b'42%d["unsubscribe",{"channel":"open:a"}]' % n for n in range(3)])
        assert await session.packets() == [b"430[{}]", b"431[{}]", b"432[{}]"]


@async_test
async def test_heartbeats_by_polls(valkey_url, prefix):
    """A ping, its pong, the next ping; without a pong the session ends, and says so to the poll that waits."""
    async with plane(valkey_url, prefix, socketio=QUICK) as hub:
        session = await joined(hub)
        for _ in range(3):
            assert await session.packets() == [b"2"]
            await session.post(b"3")
        assert await session.packets() == [b"2"]
        assert await session.packets() == [b"1"]
        assert await session.gone()


@async_test
async def test_heartbeats_on_a_websocket(valkey_url, prefix):
    """The same; other packets are no pongs."""
    async with plane(valkey_url, prefix, socketio=QUICK) as hub, member(hub) as socket:
        for _ in range(3):
            assert await receive(socket) == "2"
            await socket.send("3")
        assert await receive(socket) == "2"
        await socket.send('420["unsubscribe",{"channel":"open:a"}]')
        assert await receive(socket) == "430[{}]"
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3012


@async_test
async def test_a_pong_that_is_left_unread_for_a_while_is_waited_for(valkey_url, prefix):
    """Fairness has put its client off, and the pong waits in its socket."""
    async with plane(valkey_url, prefix, socketio=QUICK) as hub, member(hub) as socket:
        (connection,) = hub.reactor.connections.values()
        assert await receive(socket) == "2"
        due = connection._pong_due
        connection.put_off()
        await socket.send("3")
        await until(lambda: connection._pong_due > due or not connection.open)
        assert connection.open
        connection.read_again()
        assert await receive(socket) == "2"
        connection.put_off()  # and nothing waits this time
        await until(lambda: not connection.open)
        connection.read_again()
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3012


@pytest.mark.parametrize("body", [b"abc", b"", b"4abc", b"42", b"42{}", EVENT + b"\x1e9", b"5", b"2probe", b"0"])
@async_test
async def test_an_invalid_packet_ends_the_session(valkey_url, prefix, body):
    """Posted: 400, and the session is unknown from then on."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        assert fault(await session.post(body)) == (400, 3)
        assert await session.gone()
        assert not hub.reactor.connections.keys() - {n for n in hub.reactor.connections if n >= 0}


@pytest.mark.parametrize("message", ["abc", "", "4abc", "42{}", b"\x00", "5", "2probe", '2x["a"]'])
@async_test
async def test_an_invalid_message_ends_the_websocket(valkey_url, prefix, message):
    """Closed with 1002, protocol error."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        await socket.send(message)
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 1002


@async_test
async def test_a_second_poll_beside_the_first_ends_the_session(valkey_url, prefix):
    """The first hears of the end, the second is refused."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        first = asyncio.create_task(session.packets())
        await until(lambda: hub.engine.sessions[session.sid].held)
        assert fault(await session.get()) == (400, 3)
        assert await first == [b"1"]
        assert await session.gone()


@async_test
async def test_a_poll_that_is_aborted_ends_the_session(valkey_url, prefix):
    """Its client is away; what is sent to it now would be lost."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(f"GET /socket.io/?{session.query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await until(lambda: hub.engine.sessions[session.sid].held)
        writer.close()
        await until(lambda: not hub.engine.sessions)
        assert await session.gone()


@async_test
async def test_an_end_of_file_before_an_immediate_answer_is_answered(valkey_url, prefix):
    """A client may end its side behind its request; what waits for it still comes."""
    async with plane(valkey_url, prefix) as hub:
        session = await polls(hub)
        await session.post(b"40")
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(f"GET /socket.io/?{session.query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        writer.write_eof()
        assert b'40{"sid":"' in await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert len(hub.engine.sessions) == 1


@async_test
async def test_an_end_of_file_on_a_held_poll_ends_the_session(valkey_url, prefix):
    """Nobody can tell it from a client that is gone; the loop does not spin meanwhile."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(f"GET /socket.io/?{session.query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        writer.write_eof()
        begun = time.process_time()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert time.process_time() - begun < 0.05
        writer.close()
        await until(lambda: not hub.engine.sessions)


@async_test
async def test_a_client_that_closes_ends_its_poll(valkey_url, prefix):
    """With a noop, as the protocol has it; on a WebSocket by closing that."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        held = asyncio.create_task(session.packets())
        await until(lambda: hub.engine.sessions[session.sid].held)
        assert (await session.post(b"1")).body == b"ok"
        assert await held == [b"6"]
        assert await session.gone()
        overtaken = await joined(hub)
        await overtaken.post(b"1")
        assert not hub.engine.sessions
        assert await overtaken.packets() == [b"6"]  # that poll may have been sent before the goodbye
        assert await overtaken.gone()
        async with member(hub) as socket:
            await socket.send("1")
            with pytest.raises(ConnectionClosed):
                await receive(socket)
            assert socket.close_code == 1000
        await until(lambda: not hub.engine.sessions)


@async_test
async def test_a_session_that_does_not_poll_is_bounded(valkey_url, prefix):
    """What waits for it is held to the outbox's limits; beyond, the session ends."""
    limits = {"outbox_bytes": 4096, "outbox_drop_bytes": 4096, "outbox_conflate_bytes": 4096}
    async with plane(valkey_url, prefix, client=limits) as hub:
        session = await joined(hub)
        await session.post(b'420["subscribe",{"channel":"chat:a"}]')
        await until(lambda: hub.fanout.subscriptions == 1)
        await session.post(*[b'42["publish",{"channel":"chat:a","data":"%b"}]' % (b"x" * 1000) for _ in range(6)])
        await until(lambda: not hub.engine.sessions)
        assert await session.gone()
        assert hub.reactor.backlog.slow == 1


@async_test
async def test_a_drain_reaches_sessions_that_poll(valkey_url, prefix):
    """They stand on the plane like all others: the poll that waits hears of the end."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        held = asyncio.create_task(session.packets())
        await until(lambda: hub.engine.sessions[session.sid].held)
        for connection in list(hub.reactor.connections.values()):
            if connection.fd < 0:
                connection.abort()
        assert await held == [b"1"]


@async_test
async def test_the_handshake_says_what_the_settings_say(valkey_url, prefix):
    """Upgrades only where there is one to make."""
    async with plane(valkey_url, prefix, socketio={**QUICK, "max_payload_bytes": 2000}) as hub:
        response = await request(hub, "EIO=4&transport=polling")
        async with websocket(hub) as socket:
            openings = [orjson.loads(response.body[1:]), orjson.loads((await receive(socket))[1:])]
    assert [one.pop("upgrades") for one in openings] == [["websocket"], []]
    assert len({one.pop("sid") for one in openings}) == 2
    assert openings == [{"pingInterval": 300, "pingTimeout": 200, "maxPayload": 2000}] * 2


def test_deadlines_are_as_exact_as_the_shortest_timeout_needs():
    """The plane's usual 100 ms, or a twentieth of pingTimeout."""
    for timeout_ms, expected_s in ((20_000, 0.1), (2000, 0.1), (1000, 0.05), (200, 0.01)):
        assert tick_s(SocketIOSettings(ping_timeout_ms=timeout_ms)) == pytest.approx(expected_s)


@async_test
async def test_heartbeats_keep_time(valkey_url, prefix):
    """Pings are due from ping to ping, pongs from when the ping was due; what is over is over for a request at once."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        connection = hub.engine.sessions[session.sid]
        now = hub.reactor.clock()
        for late_s, left_s in ((0.0, 20.0), (0.25, 19.75), (15.0, 10.0)):
            connection._ping_due, connection._pong_due = now - late_s, inf
            connection.on_due(now)
            assert connection._pong_due == pytest.approx(now + left_s)
            assert (await session.post(b"3")).code == 200
            assert connection._ping_due == pytest.approx(now + left_s - 20 + 25)
        connection._pong_due = now  # and the wheel has yet to notice
        assert fault(await session.post(b"3")) == (400, 1)
        assert session.sid not in hub.engine.sessions
