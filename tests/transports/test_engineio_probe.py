"""Sessions that move from polls to a WebSocket, whatever comes in between; and WebSockets too many."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed

from hub.audience import ELSEWHERE
from tests.nodes import until
from tests.plane import plane
from tests.support import async_test
from tests.transports.polls import fault, joined, receive, websocket


async def is_turned_away(hub, session):
    """A WebSocket too many hears 1008, and no other packet."""
    async with websocket(hub, session.sid) as late:
        with pytest.raises(ConnectionClosed):
            await receive(late)
        assert late.close_code == 1008


@async_test
async def test_a_session_moves_to_its_websocket(valkey_url, prefix):
    """Probe, noop to the poll, upgrade; then everything comes there, in order, and polls are refused."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        held = asyncio.create_task(session.packets())
        await until(lambda: hub.engine.sessions[session.sid].held)
        async with websocket(hub, session.sid) as socket:
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
            assert await held == [b"6"]
            assert await session.packets() == [b"6"]
            await session.post(b'420["subscribe",{"channel":"open:a"}]')
            await session.post(b'421["unsubscribe",{"channel":"open:b"}]')
            connection = hub.engine.sessions[session.sid]
            await until(lambda: connection.group is not None)
            assert connection.place == ELSEWHERE
            await socket.send("5")
            await socket.send('422["publish",{"channel":"open:a","data":1}]')
            answers = [str(await receive(socket)) for _ in range(4)]
            assert sorted(answers[:2]) == ["430[{}]", "431[{}]"]
            publication, ack = sorted(answers[2:])  # its ack and itself come from Redis by connections of their own
            assert publication.startswith('42["publication",{"channel":"open:a","data":1,"info":')
            assert ack == "432[{}]"
            assert connection.direct
            assert connection.place != ELSEWHERE
            assert fault(await session.get()) == (400, 3)
            assert fault(await session.post(b"3")) == (400, 3)
            await is_turned_away(hub, session)
            await socket.send('423["unsubscribe",{"channel":"open:b"}]')
            assert await receive(socket) == "433[{}]"
        await until(lambda: not hub.engine.sessions and not hub.fanout.subscriptions)


@async_test
async def test_an_upgrade_in_one_piece_loses_nothing(valkey_url, prefix):
    """A client that waits for no answer: what it sends behind the upgrade is heard."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        async with websocket(hub, session.sid) as socket:
            for message in ("2probe", "5", '427["unsubscribe",{"channel":"open:b"}]'):
                await socket.send(message)
            assert [await receive(socket) for _ in range(2)] == ["3probe", "437[{}]"]


@async_test
async def test_a_fault_behind_the_upgrade_is_found(valkey_url, prefix):
    """In the very bytes that brought it: a frame with reserved bits ends the session."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        async with websocket(hub, session.sid) as socket:
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
            socket.transport.write(b"\x81\x81\x00\x00\x00\x005" + b"\xf1\x80\x00\x00\x00\x00")
            with pytest.raises(ConnectionClosed):
                await receive(socket)
            assert socket.close_code == 1002
        await until(lambda: not hub.engine.sessions)


@async_test
async def test_a_probe_that_fails_leaves_the_session_polling(valkey_url, prefix):
    """Nonsense, an upgrade without a probe, or time: the WebSocket goes, the session stays."""
    async with plane(valkey_url, prefix, socketio={"upgrade_timeout_ms": 200}) as hub:
        session = await joined(hub)
        for words in (["hello"], ["5"], ["2probe", "2probe"], ["2probe"], []):
            async with websocket(hub, session.sid) as socket:
                for word in words:
                    await socket.send(word)
                with pytest.raises(ConnectionClosed):
                    while True:
                        await receive(socket)
        await session.post(b'420["unsubscribe",{"channel":"open:b"}]')
        assert await session.packets() == [b"430[{}]"]


@async_test
async def test_two_probes_at_a_time_are_one_too_many(valkey_url, prefix):
    """The second is opened and closed at once, as stock clients expect it; the first goes on."""
    async with plane(valkey_url, prefix) as hub:
        session = await joined(hub)
        async with websocket(hub, session.sid) as socket:
            await is_turned_away(hub, session)
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
