"""Clients of `on_message`: Engine.IO without Socket.IO, to the handlers of an application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from hub import auth, journal
from hub.app import App, Reject
from hub.revocation import USER, Entry
from tests.nodes import until
from tests.plane import SECRET, plane
from tests.support import async_test
from tests.transports.polls import receive, request

QUERY = "EIO=4&transport=polling"


class Raw:
    """An application with one address, and what it was called for."""

    def __init__(self) -> None:
        self.app = App()
        self.calls: list[tuple] = []
        self.clients: list = []
        self.begun = 0
        self.hold = asyncio.Event()
        self.hold.set()
        for register in (self.app.on_connect, self.app.on_connected, self.app.on_disconnect):
            register("/raw/")(self._noted(register.__name__))
        self.app.on_message("/raw/")(self.message)

    def _noted(self, name: str):
        async def note(client, *data):
            self.calls.append((name, client.user, *data))
            self.clients.append(client)

        return note

    async def message(self, client, data) -> None:
        self.begun += 1
        await self.hold.wait()
        self.calls.append(("message", data))
        if data == "no":
            raise Reject("not that")
        if data == "fault":
            raise RuntimeError
        if data == "kick":
            await client.disconnect()
        await client.send(data)


@contextlib.asynccontextmanager
async def raw_socket(hub, query: str = ""):
    async with connect(f"ws://127.0.0.1:{hub.port}/raw/?EIO=4&transport=websocket{query}", proxy=None) as socket:
        assert (await receive(socket)).startswith('0{"sid":"')
        yield socket


async def ask(hub, query: str, method: str = "GET", body: bytes | None = None):
    return await request(hub, query, method, body, path="/raw/")


@async_test
async def test_messages_come_back_in_order_by_every_transport(valkey_url, prefix):
    """Text as text and bytes as bytes; the application hears of each client's coming, messages and end."""
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app) as hub:
        async with raw_socket(hub) as socket:
            sent = [f"4{n}" if n % 3 else bytes([n]) for n in range(100)]
            for message in sent:
                await socket.send(message)
            assert [await receive(socket) for _ in sent] == sent
        await until(lambda: raw.calls[-1] == ("on_disconnect", ""))
        assert raw.calls[:3] == [("on_connect", "", None), ("on_connected", "", None), ("message", b"\x00")]
        sid = (await ask(hub, QUERY)).body.split(b'"')[3].decode()
        query = f"{QUERY}&sid={sid}"
        body = b"4a\x1ebAQI=\x1e4b"
        assert (await ask(hub, query, "POST", body)).body == b"ok"
        assert (await ask(hub, query)).body == body
        async with connect(f"ws://127.0.0.1:{hub.port}/raw?EIO=4&transport=websocket&sid={sid}", proxy=None) as socket:
            for message in ("2probe", "5", "4hi"):
                await socket.send(message)
            assert [await receive(socket), await receive(socket)] == ["3probe", "4hi"]
        await until(lambda: not hub.engine.sessions)


@async_test
async def test_its_life_is_in_the_log(valkey_url, prefix, caplog):
    """Through both transports, under one name, with the path and without the address that is not asked for."""
    caplog.set_level(logging.DEBUG, "hub.connection")
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app) as hub:
        sid = (await ask(hub, QUERY)).body.split(b'"')[3].decode()
        assert (await ask(hub, f"{QUERY}&sid={sid}", "POST", b"4a")).body == b"ok"
        async with connect(f"ws://127.0.0.1:{hub.port}/raw?EIO=4&transport=websocket&sid={sid}", proxy=None) as socket:
            for message in ("2probe", "5", "4hi"):
                await socket.send(message)
            assert await receive(socket) == "3probe"
        await until(lambda: not hub.engine.sessions)
    found = [(one.msg, getattr(one, journal.FIELDS)) for one in caplog.records if hasattr(one, journal.FIELDS)]
    assert [name for name, _ in found] == ["opened", "upgraded", "closing", "closed"]
    assert [fields["transport"] for _, fields in found] == ["polling", "polling", "websocket", "websocket"]
    told = {(fields["wire"], fields["path"], fields["address"], fields["client"]) for _, fields in found}
    assert told == {("engineio", "/raw/", "-", raw.clients[0].id)}
    assert found[-1][1]["messages"] == 2


@async_test
async def test_what_was_taken_is_handled_though_its_client_goes(valkey_url, prefix):
    """By polls and on a WebSocket: the messages before the goodbye, and then the disconnect."""
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app) as hub:
        for way in ("polls", "websocket"):
            raw.hold.clear()
            if way == "polls":
                sid = (await ask(hub, QUERY)).body.split(b'"')[3].decode()
                assert (await ask(hub, f"{QUERY}&sid={sid}", "POST", b"4a\x1e4b\x1e1")).body == b"ok"
            else:
                async with raw_socket(hub) as socket:
                    await socket.send("4a")
                    await socket.send("4b")
            await until(lambda: not hub.engine.sessions)
            raw.hold.set()
            await until(lambda: raw.calls and raw.calls[-1] == ("on_disconnect", ""))
            assert [call[-1] for call in raw.calls if call[0] == "message"] == ["a", "b"]
            raw.calls.clear()


@async_test
async def test_a_token_names_the_user(valkey_url, prefix):
    """A good one; another one is refused before the application is asked."""
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app) as hub:
        token = auth.make("ann", SECRET, 60, time.time())
        async with raw_socket(hub, f"&token={token}"):
            await until(lambda: len(raw.calls) == 2)
        assert raw.calls[0] == ("on_connect", "ann", None)
        assert (await ask(hub, f"{QUERY}&token=x")).code == 401


@async_test
async def test_the_application_may_refuse_and_claim(valkey_url, prefix):
    """Refused is 3507; a name that it gives is the client's; what is no claims is a fault of its own (3004)."""
    raw = Raw()
    answers: list = [{"user": "bob"}, None]
    claims = answers[0]
    app = App()
    app.on_message("/raw")(raw.message)

    @app.on_connect("/raw/")
    async def connect_handler(client, data):
        if claims is None:
            raise Reject("no")
        return claims

    @app.on_connected("/raw/")
    async def connected(client, data):
        await client.send(client.user)

    async with plane(valkey_url, prefix, app=app) as hub:
        async with raw_socket(hub) as socket:
            assert await receive(socket) == "4bob"
        claims = None
        async with raw_socket(hub) as socket:
            with contextlib.suppress(ConnectionClosed):
                await socket.send("4early")
            with pytest.raises(ConnectionClosed):
                await receive(socket)
            assert socket.close_code == 3507
        assert raw.calls == []


@pytest.mark.expects_log
@pytest.mark.parametrize(("message", "code"), [("no", 3507), ("fault", 3004), ("kick", 3503)])
@async_test
async def test_what_the_handler_fails_for_ends_the_one_connection(valkey_url, prefix, message, code):
    """Nothing else could tell the client; what it sent behind is not handled, its neighbour goes on."""
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app) as hub, raw_socket(hub) as other:
        async with raw_socket(hub) as socket:
            raw.hold.clear()
            await socket.send(f"4{message}")
            await socket.send("4behind")
            await until(lambda: any(connection._calls for connection in hub.engine.sessions.values()))
            raw.hold.set()
            with pytest.raises(ConnectionClosed):
                await receive(socket)
            assert socket.close_code == code
        await until(lambda: raw.calls[-1] == ("on_disconnect", ""))
        assert ("message", "behind") not in raw.calls
        await other.send("4hi")
        assert await receive(other) == "4hi"


@pytest.mark.parametrize(
    ("limits", "message", "most"),
    [
        ({"client": {"pending_commands": 4}}, "4x", 4),
        ({"socketio": {"max_payload_bytes": 1024}}, "4" + "x" * 1000, 8),
    ],
)
@async_test
async def test_what_waits_for_the_application_is_bounded(valkey_url, prefix, limits, message, most):
    """In number by client.pending_commands, in bytes by eight payloads: 3013, and the disconnect is told of."""
    raw = Raw()
    async with plane(valkey_url, prefix, app=raw.app, **limits) as hub, raw_socket(hub) as socket:
        raw.hold.clear()
        await socket.send(message)
        await until(lambda: raw.begun == 1)
        for _ in range(most):
            await socket.send(message)
        (connection,) = hub.engine.sessions.values()
        await until(lambda: len(connection._calls) == most)
        await socket.send(message)
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3013
        raw.hold.set()
        await until(lambda: raw.calls[-1] == ("on_disconnect", ""))
        assert raw.begun == 1


@async_test
async def test_a_client_of_messages_has_no_events_and_no_rooms(valkey_url, prefix):
    """And one of events has no messages: a TypeError for the author."""
    raw = Raw()
    raw.app.on_connected("/")(raw._noted("socketio"))
    async with plane(valkey_url, prefix, app=raw.app) as hub, raw_socket(hub):
        await until(lambda: len(raw.clients) == 2)
        client = raw.clients[0]
        for action in (client.emit("a"), client.call("a"), client.join("open:a"), client.leave("open:a")):
            with pytest.raises(TypeError):
                await action
        async with connect(f"ws://127.0.0.1:{hub.port}/socket.io/?EIO=4&transport=websocket", proxy=None) as socket:
            await socket.send("40")
            await until(lambda: raw.calls[-1][0] == "socketio")
            with pytest.raises(TypeError):
                await raw.clients[-1].send("x")


@async_test
async def test_a_client_of_messages_is_sent_away_like_others(valkey_url, prefix):
    """By disconnect, and when its user is blocked: who it is, is what the application says."""
    app, here = App(), []
    app.on_connect("/raw/")(lambda client, data: {"user": "ann"})
    app.on_connected("/raw/")(lambda client, data: here.append(client.user))
    app.on_message("/raw/")(lambda client, data: None)
    async with plane(valkey_url, prefix, app=app) as hub:
        async with raw_socket(hub) as socket:
            await until(lambda: here == ["ann"])
            asked = {"user": "ann", "code": 3503, "reason": "", "whitelist": []}
            assert (await hub.registry.order("disconnect", asked)).answers[0]["met"] == 1
            with pytest.raises(ConnectionClosed) as closed:
                await receive(socket)
            assert closed.value.rcvd.code == 3503
        async with raw_socket(hub) as socket:
            await until(lambda: here == ["ann", "ann"])
            answers, _ = await hub.registry.order("revoke", Entry(USER, "ann").params())
            assert answers[0]["met"] == 1
            with pytest.raises(ConnectionClosed) as closed:
                await receive(socket)
            assert closed.value.rcvd.code == 3507
        async with raw_socket(hub) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await receive(socket)
            assert closed.value.rcvd.code == 3507
        await until(lambda: not hub.services.sessionless)
        assert here == ["ann", "ann"]
