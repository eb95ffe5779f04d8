"""Socket.IO clients: namespaces, events and acks, and the same channels as everybody else's."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial

import orjson
import pytest
from websockets.exceptions import ConnectionClosed

from hub import auth, protocol
from hub.app import App
from hub.errors import CLOSE_FORCE_DISCONNECT, CLOSE_SHUTDOWN, BrokerUnavailable
from hub.notice import Notice, Notices
from hub.resume import STEP
from hub.transports.socketio import LEAVES_PER_S
from hub.transports.socketio_session import SocketIOForm
from tests.nodes import until
from tests.plane import SECRET, client, plane
from tests.support import async_test
from tests.transports.polls import joined, member, receive, websocket

QUICK = {"connect_timeout_ms": 200, "attachment_timeout_ms": 200}


def token(user: str, ttl_s: float = 60) -> str:
    return auth.make(user, SECRET, ttl_s, time.time())


async def emit(socket, number: int, name: str, **params: object) -> dict:
    """Emit an event and return its ack; what else comes before it is an error."""
    await socket.send(f"42{number}" + orjson.dumps([name, params]).decode())
    message = await receive(socket)
    assert message.startswith(f"43{number}["), message
    (answer,) = orjson.loads(message[3 + len(str(number)) - 1 :])
    return answer


async def event(socket) -> list:
    """The next event."""
    message = await receive(socket)
    assert message.startswith("42["), message
    return orjson.loads(message[2:])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda form: form.encode_publication("a", b'{"data":1}'), b'["publication",{"channel":"a","data":1}]'),
        (
            lambda form: form.encode_arrival("a", b'"join":{"info":{"user":"x"}}'),
            b'["join",{"channel":"a","info":{"user":"x"}}]',
        ),
        (lambda form: form.encode_message(protocol.encode_message({"b": 1})), b'["message",{"b":1}]'),
    ],
)
def test_a_wire_form_says_everything_as_events(call, expected):
    """In text frames, of the form's namespace."""
    for namespace, head in (("/", b"42"), ("/admin", b"42/admin,")):
        packet = head + expected
        assert call(SocketIOForm(namespace)) == b"\x81" + bytes([len(packet)]) + packet


@async_test
async def test_events_do_what_commands_do(valkey_url, prefix):
    """Subscribe, publish, history, presence, unsubscribe, rpc: the native protocol's results, as acks."""
    async with plane(valkey_url, prefix) as hub, member(hub) as ann, member(hub) as bob:
        answer = await emit(ann, 0, "subscribe", channel="chat:a")
        assert answer["offset"] == 0 and answer["recoverable"]
        assert await emit(bob, 12, "publish", channel="chat:a", data={"text": "hi"}) == {"ack": "memory"}
        name, publication = await event(ann)
        assert name == "publication"
        assert (publication["channel"], publication["offset"], publication["data"]) == ("chat:a", 1, {"text": "hi"})
        history = await emit(bob, 1, "history", channel="chat:a", limit=10)
        assert [one["data"] for one in history["publications"]] == [{"text": "hi"}]
        assert await emit(ann, 2, "unsubscribe", channel="chat:a") == {}
        await emit(bob, 3, "publish", channel="chat:a", data=2)
        assert "time_ns" in (await emit(ann, 4, "rpc", method="hub.time"))["data"]
        assert await emit(bob, 5, "subscribe", channel="room:a") == {}
        assert await emit(ann, 6, "presence_stats", channel="room:a") == {"num_clients": 1, "num_users": 0}
        assert len((await emit(ann, 7, "presence", channel="room:a"))["presence"]) == 1
        back = await emit(ann, 8, "subscribe", channel="chat:a", recover=True, offset=1, epoch=answer["epoch"])
        assert back["recovered"] and [one["data"] for one in back["publications"]] == [2]


@async_test
async def test_what_is_published_on_one_wire_comes_on_all(valkey_url, prefix):
    """Native, Socket.IO on a WebSocket, by polls, in another namespace: one channel, one presence."""
    async with (
        plane(valkey_url, prefix, socketio={"namespaces": ["/admin"]}) as hub,
        client(hub.url) as native,
        member(hub) as socket,
        member(hub, "/admin,") as admin,
    ):
        poller = await joined(hub)
        await native.subscribe("room:a", join_leave=True)
        assert (await native.push())["join"]["info"]["client"] == native.id
        await emit(socket, 1, "subscribe", channel="room:a")
        await admin.send('42/admin,1["subscribe",{"channel":"room:a"}]')
        assert await receive(admin) == "43/admin,1[{}]"
        await poller.post(b'421["subscribe",{"channel":"room:a"}]')
        assert await poller.packets() == [b"431[{}]"]
        for _ in range(3):
            assert "join" in await native.push()
        assert len((await native.command(presence={"channel": "room:a"}))["presence"]["presence"]) == 4
        await native.command(publish={"channel": "room:a", "data": 7})
        assert (await native.push())["pub"]["data"] == 7
        for name, body in (await event(socket), orjson.loads((await receive(admin))[len("42/admin,") :])):
            assert (name, body["channel"], body["data"]) == ("publication", "room:a", 7)
        (packet,) = await poller.packets()
        assert packet.startswith(b'42["publication",{"channel":"room:a","data":7')
        assert hub.fanout.sweep is not None and len(hub.fanout.lines.counts()) == 1


@async_test
async def test_errors_are_acks(valkey_url, prefix):
    """With the native protocol's codes; the connection outlives them. Without an ack they are an event."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        for name, params, code in (
            ("subscribe", {"channel": "closed:a"}, 103),
            ("subscribe", {"channel": "unknown:a"}, 102),
            ("subscribe", {}, 107),
            ("publish", {"channel": "open:a"}, 107),
            ("history", {"channel": "open:a"}, 108),
            ("nonsense", {}, 104),
        ):
            assert (await emit(socket, 1, name, **params))["error"]["code"] == code
        for arguments in ('"open:a"', "", '{"channel":"open:a"},{}'):
            await socket.send(f'421["subscribe"{"," if arguments else ""}{arguments}]')
            assert (await receive(socket)).startswith('431[{"error":{"code":107,')
        await socket.send('42["subscribe",{"channel":"closed:a"}]')
        await socket.send('42["nonsense"]')
        name, body = await event(socket)
        assert (name, body["event"], body["code"]) == ("error", "subscribe", 103)
        await socket.send('42["unsubscribe",{"channel":"open:a"}]')
        assert await emit(socket, 2, "unsubscribe", channel="open:a") == {}


@async_test
async def test_binary_data_has_no_place_in_a_channel(valkey_url, prefix):
    """Attachments are put together, and refused with an ack: channels carry JSON."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        await socket.send('451-7["publish",{"channel":"open:a","data":{"_placeholder":true,"num":0}}]')
        await socket.send(b"\x01\x02")
        assert (await receive(socket)).startswith('437[{"error":{"code":107,')
        session = await joined(hub)
        await session.post(b'451-7["publish",{"channel":"open:a","data":{"_placeholder":true,"num":0}}]', b"bAQI=")
        (packet,) = await session.packets()
        assert packet.startswith(b'437[{"error":{"code":107,')


@async_test
async def test_attachments_have_a_deadline_and_need_a_namespace(valkey_url, prefix):
    """Unfinished ones end the connection; before a namespace is joined there may be none."""
    packet = '451-["publish",{"channel":"open:a","data":{"_placeholder":true,"num":0}}]'
    async with plane(valkey_url, prefix, socketio=QUICK) as hub:
        async with member(hub) as socket:
            await socket.send(packet)
            with pytest.raises(ConnectionClosed):
                await receive(socket)
            assert socket.close_code == 1008
        async with websocket(hub) as socket:
            await receive(socket)
            await socket.send(packet)
            with pytest.raises(ConnectionClosed):
                await receive(socket)
            assert socket.close_code == 1002
        await until(lambda: not hub.engine.sessions)


@async_test
async def test_a_client_that_joins_no_namespace_has_to_go(valkey_url, prefix):
    """After connectTimeout; one that is refused counts as none."""
    async with plane(valkey_url, prefix, socketio=QUICK) as hub, websocket(hub) as socket:
        await receive(socket)
        await socket.send("40/random,")
        assert await receive(socket) == '44/random,{"message":"Invalid namespace"}'
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3502


@async_test
async def test_namespaces_come_and_go_on_one_connection(valkey_url, prefix):
    """41 leaves the transport open; events of a namespace that is not joined end it."""
    async with plane(valkey_url, prefix, socketio={"namespaces": ["/admin"]}) as hub, member(hub) as socket:
        await emit(socket, 1, "subscribe", channel="open:a")
        await socket.send("40/admin,")
        assert (await receive(socket)).startswith('40/admin,{"sid":"')
        await socket.send('42/admin,2["subscribe",{"channel":"open:a"}]')
        assert await receive(socket) == "43/admin,2[{}]"
        await socket.send("41")
        await until(lambda: hub.fanout.subscriptions == 1)
        await socket.send('42/admin,3["publish",{"channel":"open:a","data":1}]')
        assert {str(await receive(socket))[:12] for _ in range(2)} == {"43/admin,3[{", '42/admin,["p'}
        await socket.send("40")
        assert (await receive(socket)).startswith('40{"sid":"')
        await emit(socket, 4, "subscribe", channel="open:a")
        await socket.send("41/admin,")
        await until(lambda: hub.fanout.subscriptions == 1)
        assert hub.services.users.sessions == 1
        await socket.send('42/admin,3["publish",{"channel":"open:a","data":1}]')
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        await until(lambda: not hub.fanout.subscriptions and not hub.services.users.sessions)


@async_test
async def test_a_full_socket_costs_no_namespace_its_part(valkey_url, prefix, monkeypatch):
    """The first namespace is written to past the outbox; what happens to it then is not the others' fault."""
    write, refused = os.write, []

    def full_at_first(fd: int, data: bytes) -> int:
        if b'["publication"' in data and data not in refused:
            refused.append(data)
            raise BlockingIOError
        return write(fd, data)

    async with plane(valkey_url, prefix, socketio={"namespaces": ["/admin"]}) as hub, member(hub) as socket:
        await socket.send("40/admin,")
        assert (await receive(socket)).startswith("40/admin,")
        await socket.send('421["subscribe",{"channel":"open:a"}]')
        assert await receive(socket) == "431[{}]"
        await socket.send('42/admin,1["subscribe",{"channel":"open:a"}]')
        assert await receive(socket) == "43/admin,1[{}]"
        async with client(hub.url) as publisher:
            monkeypatch.setattr(os, "write", full_at_first)
            for number in range(4):  # each batch begins with another group
                await publisher.command(publish={"channel": "open:a", "data": number})
                heads = {(await receive(socket)).partition("[")[0] for _ in range(2)}
                assert heads == {"42", "42/admin,"}
    assert refused


@async_test
async def test_joining_twice_ends_the_connection(valkey_url, prefix):
    """As the stock server has it."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        await socket.send("40")
        with pytest.raises(ConnectionClosed):
            await receive(socket)


@async_test
async def test_a_token_says_who_a_client_is(valkey_url, prefix):
    """With the namespace's connect packet; a bad one is refused there, and the transport stays open."""
    async with plane(valkey_url, prefix) as hub, websocket(hub) as socket:
        await receive(socket)
        for bad, code in (("nonsense", 3500), (7, 3500), (token("ann", -5), 109)):
            await socket.send("40" + orjson.dumps({"token": bad}).decode())
            packet = str(await receive(socket))
            assert packet.startswith("44{")
            assert orjson.loads(packet[2:])["data"] == {"code": code}
        await socket.send("40" + orjson.dumps({"token": token("ann")}).decode())
        assert (await receive(socket)).startswith('40{"sid":"')
        assert await emit(socket, 1, "publish", channel="users:a", data=1) == {}
        assert len(hub.services.users) == 1


@async_test
async def test_a_token_that_ends_ends_the_connection(valkey_url, prefix):
    """With 3005; the client comes back by itself, and can bring a new one."""
    now = [1000.0]
    claims = {"token": auth.make("ann", SECRET, 1, now[0])}
    async with plane(valkey_url, prefix, wall_clock=lambda: now[0]) as hub, member(hub, auth=claims) as socket:
        now[0] += 2
        next(iter(hub.engine.sessions.values()))._schedule()
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3005


@async_test
async def test_a_token_can_be_refreshed_by_an_event(valkey_url, prefix):
    """`refresh` as the native protocol has it: the ack says until when; somebody else's token ends the connection."""
    now = [1000.0]

    def claims(user: str, ttl_s: float) -> dict:
        return {"token": auth.make(user, SECRET, ttl_s, now[0])}

    async with (
        plane(valkey_url, prefix, wall_clock=lambda: now[0]) as hub,
        member(hub, auth=claims("ann", 60)) as socket,
    ):
        (session,) = hub.engine.sessions.values()
        now[0] += 50
        answer = await emit(socket, 1, "refresh", **claims("ann", 600))
        assert (answer["expires"], answer["ttl"]) == (True, 600)
        assert (await emit(socket, 2, "refresh", **claims("ann", 0)))["error"]["code"] == 109
        now[0] += 100
        session.on_due(hub.reactor.clock())
        assert session.open and 499 < session.app_due() - hub.reactor.clock() <= 500
        assert await emit(socket, 3, "publish", channel="users:a", data=1) == {}
        await socket.send("424" + orjson.dumps(["refresh", claims("bob", 600)]).decode())
        assert await receive(socket) == "41"
        with pytest.raises(ConnectionClosed):
            await receive(socket)
        assert socket.close_code == 3500


@async_test
async def test_who_is_sent_away_for_good_is_told_so(valkey_url, prefix):
    """By a disconnect packet, upon which clients stay away. At a shutdown there is none: they come back."""
    async with plane(valkey_url, prefix) as hub:
        for close, words in ((CLOSE_FORCE_DISCONNECT, ["41"]), (CLOSE_SHUTDOWN, [])):
            async with member(hub) as socket:
                next(iter(hub.engine.sessions.values())).close(close)
                assert [await receive(socket) for _ in words] == words
                with pytest.raises(ConnectionClosed):
                    await receive(socket)
                assert socket.close_code == close.code
            session = await joined(hub)
            held = asyncio.create_task(session.packets())
            connection = hub.engine.sessions[session.sid]
            await until(partial(getattr, connection, "held"))
            connection.close(close)
            assert await held == [*(word.encode() for word in words), b"1"]


@async_test
async def test_a_channel_that_is_taken_from_a_client_is_named(valkey_url, prefix):
    """So that it can subscribe anew with the position that it has; also in a second namespace."""
    async with plane(valkey_url, prefix, socketio={"namespaces": ["/admin"]}) as hub, member(hub) as socket:
        await socket.send("40/admin,")
        await receive(socket)
        await emit(socket, 1, "subscribe", channel="chat:a")
        await socket.send('42/admin,1["subscribe",{"channel":"chat:a"}]')
        await receive(socket)
        hub.streams.overloaded("chat:a")
        body = '["unsubscribed",{"channel":"chat:a","code":2500,"reason":"insufficient state"}]'
        assert {await receive(socket), await receive(socket)} == {"42" + body, "42/admin," + body}


@async_test
async def test_notices_come_as_messages(valkey_url, prefix):
    """What is told to a user or to everybody."""
    async with plane(valkey_url, prefix) as hub, member(hub, auth={"token": token("ann")}) as socket:
        notices = Notices(hub.services.users.everybody, hub.services.users.of)
        notices.tell(Notice("ann", "", {"text": "hello"}))
        assert await event(socket) == ["message", {"text": "hello"}]


@async_test
async def test_acks_of_the_client_that_nobody_awaits_are_passed_over(valkey_url, prefix):
    """As after a timeout; the connection goes on."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        await socket.send("4312[1]")
        assert await emit(socket, 1, "unsubscribe", channel="open:a") == {}


@async_test
async def test_a_fault_of_one_client_is_not_the_others(valkey_url, prefix):
    """Everybody else gets what was published behind it."""
    async with plane(valkey_url, prefix) as hub, member(hub) as good, member(hub) as bad:
        for socket in (good, bad):
            await emit(socket, 1, "subscribe", channel="open:a")
        await bad.send("42{}")
        with pytest.raises(ConnectionClosed):
            await receive(bad)
        assert bad.close_code == 1002
        await good.send('42["publish",{"channel":"open:a","data":1}]')
        assert (await event(good))[1]["data"] == 1


RECOVERY = {"recovery_ms": 60_000, "namespaces": ["/admin"]}


async def welcome(socket, auth: dict) -> dict:
    """Join `/`; the answer. Events that come before it are an error."""
    assert (await receive(socket)).startswith("0{")
    await socket.send("40" + orjson.dumps(auth).decode())
    message = await receive(socket)
    assert message.startswith("40{"), message
    return orjson.loads(message[2:])


@async_test
async def test_a_pong_confirms_what_went_before_its_ping(valkey_url, prefix):
    """All batches but the last two, which may have gone behind it."""
    settings = {**RECOVERY, "ping_interval_ms": 300, "ping_timeout_ms": 5000}
    async with plane(valkey_url, prefix, socketio=settings) as hub, websocket(hub) as socket:
        await welcome(socket, {})
        (session,) = next(iter(hub.engine.sessions.values()))._sessions.values()
        assert await receive(socket) == "2"
        turn = hub.fanout.turn
        for _ in range(5):
            hub.fanout.begin()
        assert session.confirmed == -1
        await socket.send("3")
        await until(lambda: session.confirmed != -1)
        assert 0 <= session.confirmed <= (turn - 2) * STEP


@async_test
async def test_the_application_disconnects_one_namespace(valkey_url, prefix):
    """The other one and the connection stay; also before the client is in, which is a refusal then."""
    app, gone = App(), []

    @app.on_connect("/admin")
    async def connect(client, data):
        if data:
            await client.disconnect()

    @app.on_disconnect()
    async def disconnect(client):
        gone.append(client.namespace)

    @app.on("kick")
    @app.on("kick", "/admin")
    async def kick(client):
        await client.disconnect()

    async with plane(valkey_url, prefix, app=app) as hub, member(hub) as socket:
        await socket.send('40/admin,{"kick":true}')
        assert await receive(socket) == '44/admin,{"message":"permission denied","data":{"code":103}}'
        for _ in range(2):
            await socket.send("40/admin,")
            assert (await receive(socket)).startswith('40/admin,{"sid":')
            await socket.send('42/admin,["kick"]')
            assert await receive(socket) == "41/admin,"
        assert await emit(socket, 1, "unsubscribe", channel="open:a") == {}
        await socket.send('42["kick"]')
        assert await receive(socket) == "41"
        await socket.send("40")
        assert (await receive(socket)).startswith('40{"sid":')
        await until(lambda: gone == ["/admin", "/admin", "/"])


@async_test
async def test_what_is_answered_late_goes_to_nobody(valkey_url, prefix):
    """An ack of before a client left, where it is in again: its events begin to count anew, as do their acks."""
    async with plane(valkey_url, prefix) as hub, member(hub) as socket:
        await socket.send('421["publish",{"channel":"chat:a","data":1}]')
        await socket.send('42["publish",{"channel":"closed:a","data":1}]')
        await socket.send('422["subscribe",{"channel":"open:a"}]')
        await socket.send("41")
        await socket.send("40")
        await socket.send('421["presence_stats",{"channel":"room:a"}]')
        while not (message := await receive(socket)).startswith("40{"):
            assert message.startswith('42["error",')  # answered at once, before it left
        assert await receive(socket) == '431[{"num_clients":0,"num_users":0}]'
        await until(lambda: hub.fanout.subscriptions == 0)
        await socket.send('422["rpc",{"method":"none"}]')
        assert (await receive(socket)).startswith('432[{"error":{"code":104,')


@async_test
async def test_namespaces_are_not_left_all_the_time(valkey_url, prefix):
    """The application works on at what was left before its answer: one client can't take all its calls."""
    app, let_go = App(), asyncio.Event()

    @app.on_connect()
    async def connect(client, data):
        await let_go.wait()

    async with plane(valkey_url, prefix, app=app) as hub:
        for join, leave in (("40", "41"), ("40/,", "41/,")):
            async with websocket(hub) as socket:
                await receive(socket)
                for _ in range(LEAVES_PER_S + 2):
                    await socket.send(join)
                    await socket.send(leave)
                with pytest.raises(ConnectionClosed) as closed:
                    await receive(socket)
                assert closed.value.rcvd.code == 3013
        assert len(hub.services.gate.runner._calls) <= 2 * (LEAVES_PER_S + 2)
        let_go.set()


@pytest.mark.expects_log
@pytest.mark.parametrize("where", ["redis", "handler", "runner"])
@async_test
async def test_who_is_kept_out_for_a_moment_comes_back(valkey_url, prefix, where):
    """Redis is away, or too much waits: not a connect_error, upon which stock clients give up, but an end."""
    app = App()

    @app.on_connect()
    async def connect(client, data):
        if where == "handler":
            raise BrokerUnavailable("away")

    async with plane(valkey_url, prefix, app=app) as hub, websocket(hub) as socket:
        if where == "runner":
            hub.services.gate.runner._pending = 0
        if where == "redis":
            hub.services.subscriptions.subscribe = lambda *about: about[3](BrokerUnavailable("away"))
        await receive(socket)
        await socket.send("40")
        with pytest.raises(ConnectionClosed) as closed:
            await receive(socket)
        assert closed.value.rcvd.code == 3004
