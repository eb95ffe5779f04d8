"""The gate: an application's handlers, and the clients of every wire."""

from __future__ import annotations

import asyncio
import contextlib
import time

import orjson
import pytest
from websockets.asyncio.client import connect

from hub import auth
from hub.app import App, Reject
from hub.message import Publication, encode_body
from tests.nodes import until
from tests.plane import SECRET, client, plane
from tests.support import async_test
from tests.transports.polls import joined, member, receive, websocket


async def emit(socket, number: int | None, name: str, *args: object, namespace: str = "") -> list | None:
    """Emit an event; the values of its ack, where one is wanted."""
    await socket.send(f"42{namespace}{'' if number is None else number}" + orjson.dumps([name, *args]).decode())
    if number is None:
        return None
    message = await receive(socket)
    assert message.startswith(f"43{namespace}{number}["), message
    return orjson.loads(message[message.index("[") :])


async def event(socket, head: str = "42") -> list:
    """The next event."""
    message = await receive(socket)
    assert message.startswith(head + "["), message
    return orjson.loads(message[len(head) :])


def echo() -> App:
    app = App()

    @app.on("echo")
    async def echo(client, *args):
        await client.emit("back", *args)
        return args

    return app


@async_test
async def test_events_reach_handlers_and_come_back(valkey_url, prefix):
    """In their order, with acks of one value, several or none; what no handler takes is the hub's own."""
    app = echo()
    app.on("none")(lambda client: None)
    app.on("one")(lambda client, value: value + 1)
    async with plane(valkey_url, prefix, app=app) as hub, member(hub) as socket:
        await emit(socket, None, "echo", 1, {"a": [2]})
        assert await event(socket) == ["back", 1, {"a": [2]}]
        await socket.send('420["echo",1,"b"]')
        assert await event(socket) == ["back", 1, "b"]
        assert await receive(socket) == '430[1,"b"]'
        assert await emit(socket, 7, "one", 1) == [2]
        assert await emit(socket, 8, "none") == []
        assert await emit(socket, 9, "subscribe", {"channel": "open:a"}) == [{}]
        assert (await emit(socket, 10, "nonsense"))[0]["error"]["code"] == 104


@async_test
async def test_attachments_go_both_ways(valkey_url, prefix):
    """Bytes come as bytes, and go as attachments behind their event, and behind their ack."""
    async with plane(valkey_url, prefix, app=echo()) as hub, member(hub) as socket:
        await socket.send('451-3["echo",{"_placeholder":true,"num":0}]')
        await socket.send(b"\x01\x02")
        assert await receive(socket) == '451-["back",{"_placeholder":true,"num":0}]'
        assert await receive(socket) == b"\x01\x02"
        assert await receive(socket) == '461-3[{"_placeholder":true,"num":0}]'
        assert await receive(socket) == b"\x01\x02"


@async_test
async def test_connect_handlers_accept_reject_and_claim(valkey_url, prefix):
    """By namespace, on every wire; data of a Reject comes in connect_error, claims make the user."""
    app = App()

    @app.on_connect("/custom")
    async def custom(client, data):
        if data.get("key") != "right":
            raise Reject("wrong key", data={"hint": "try right"})
        return {"user": "ann"}

    @app.on_connect()
    async def others(client, data):
        if client.namespace == "" and data == "no":
            raise Reject("not you")

    @app.on_connected("/custom")
    async def connected(client, data):
        await client.emit("auth", data, client.user, client.claims)

    async with plane(valkey_url, prefix, app=app) as hub:
        async with websocket(hub) as socket:
            await receive(socket)
            await socket.send('40/custom,{"key":"wrong"}')
            assert await receive(socket) == '44/custom,{"message":"wrong key","data":{"hint":"try right"}}'
            await socket.send('40/custom,{"key":"right"}')
            assert (await receive(socket)).startswith('40/custom,{"sid":"')
            assert await event(socket, "42/custom,") == ["auth", {"key": "right"}, "ann", {"user": "ann"}]
            assert [session.user for session in hub.services.users.everybody()] == ["ann"]
            await socket.send("40/unknown,")
            assert await receive(socket) == '44/unknown,{"message":"Invalid namespace"}'
        async with connect(hub.url, proxy=None) as native:
            await native.send('{"id":1,"connect":{"data":"no"}}')
            assert orjson.loads(await native.recv())["error"] == {"code": 103, "message": "not you"}
        async with client(hub.url):
            pass


@async_test
async def test_a_token_names_the_user_that_handlers_see(valkey_url, prefix):
    """Checked before they are asked."""
    seen = []
    app = App()
    app.on_connect()(lambda client, data: seen.append(client.user))
    async with plane(valkey_url, prefix, app=app) as hub:
        async with member(hub, auth={"token": auth.make("bob", SECRET, 60, time.time())}):
            assert seen == ["bob"]
        async with websocket(hub) as socket:
            await receive(socket)
            await socket.send('40{"token":"bad"}')
            assert await receive(socket) == '44{"message":"invalid token","data":{"code":3500}}'
        assert seen == ["bob"]


@async_test
async def test_what_waits_behind_connect_keeps_its_order(valkey_url, prefix):
    """A native client may send all at once; an unsubscribe never overtakes the subscribe before it."""
    go = asyncio.Event()
    app = App()

    @app.on_connect()
    async def slow(client, data):
        await go.wait()

    @app.on_subscribe()
    async def subscribe(client, channel):
        await asyncio.sleep(0)

    async with plane(valkey_url, prefix, app=app) as hub, connect(hub.url, proxy=None) as native:
        lines = [
            {"id": 1, "connect": {}},
            {"id": 2, "subscribe": {"channel": "open:a"}},
            {"id": 3, "unsubscribe": {"channel": "open:a"}},
            {"id": 4, "rpc": {"method": "hub.time"}},
        ]
        await native.send(b"\n".join(map(orjson.dumps, lines)).decode())
        await native.send('{"id":5,"subscribe":{"channel":"open:b"}}')
        await until(lambda: hub.services.gate._seats)
        go.set()
        ids = []
        while len(ids) < 5:
            ids += [orjson.loads(line) for line in (await asyncio.wait_for(native.recv(), 5)).split("\n")]
        assert ids[0]["id"] == 1
        replies = {one["id"]: one for one in ids}
        # As without an application: Redis was still being asked.
        assert replies[2]["error"]["message"] == "unsubscribed meanwhile"
        assert all("error" not in replies[number] for number in (1, 3, 4, 5))
        assert hub.fanout.lines.counts() == {"open:b": 1}


@async_test
async def test_subscribe_publish_and_rpc_ask_the_application(valkey_url, prefix, caplog):
    """On every wire, besides the rules; a publish handler may change the data."""
    app = App()
    asked = []

    @app.on_subscribe()
    async def subscribe(client, channel):
        asked.append(channel)
        if channel == "open:no":
            raise Reject("not there", code=403)

    @app.on_publish()
    def publish(client, channel, data):
        asked.append(data)
        return {"said": data} if data != "as is" else None

    @app.on_rpc("add")
    async def add(client, data):
        return sum(data)

    app.on_rpc("odd")(lambda client, data: {1, 2})
    with pytest.raises(ValueError, match="hub's own"):
        app.on_rpc("hub.time")
    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native, member(hub) as socket:
        reply = await native.command(subscribe={"channel": "open:no"})
        assert reply["error"] == {"code": 403, "message": "not there"}
        assert (await emit(socket, 1, "subscribe", {"channel": "open:no"}))[0]["error"]["code"] == 403
        assert (await native.command(subscribe={"channel": "closed:a"}))["error"]["code"] == 103
        await native.subscribe("open:a")
        assert asked == ["open:no", "open:no", "open:a"]
        await native.command(publish={"channel": "open:a", "data": 1})
        assert (await native.push())["pub"]["data"] == {"said": 1}
        await native.command(publish={"channel": "open:a", "data": "as is"})
        assert (await native.push())["pub"]["data"] == "as is"
        assert (await native.command(publish={"channel": "closed:a", "data": 1}))["error"]["code"] == 103
        assert asked[3:] == [1, "as is"]
        assert (await native.command(rpc={"method": "add", "data": [1, 2]}))["rpc"] == {"data": 3}
        assert (await native.command(rpc={"method": "odd"}))["error"]["code"] == 100
        assert "time_ns" in (await native.command(rpc={"method": "hub.time"}))["rpc"]["data"]
        assert (await native.command(rpc={"method": "other"}))["error"]["code"] == 104
    assert "returned what is no JSON" in caplog.text
    caplog.clear()


@async_test
async def test_a_handler_that_fails_or_hangs_hurts_one_client(valkey_url, prefix, caplog):
    """It gets code 100; another one is served meanwhile; the log has a line of each."""
    app = echo()

    @app.on("raise")
    async def failing(client):
        raise KeyError("secret")

    @app.on("hang")
    async def hanging(client):
        await asyncio.Event().wait()

    app.on("odd")(lambda client: {1, 2})
    async with plane(valkey_url, prefix, app=app, app_timeout_s=0.2) as hub, member(hub) as ann, member(hub) as bob:
        await ann.send('421["hang"]')
        await emit(bob, None, "echo", 1)
        assert await event(bob) == ["back", 1]
        message = await receive(ann)
        assert orjson.loads(message[3:])[0]["error"] == {
            "code": 100,
            "message": "the application failed",
            "temporary": True,
        }
        assert (await emit(ann, 2, "raise"))[0]["error"]["code"] == 100
        assert (await emit(ann, 3, "odd"))[0]["error"]["code"] == 100
        await emit(ann, None, "raise")
        name, body = await event(ann)
        assert (name, body["event"], body["code"]) == ("error", "raise", 100)
        runner = hub.services.gate.runner
        assert (runner.failed, runner.timed_out) == (2, 1)
    assert "no end after 0.2 s" in caplog.text
    caplog.clear()


@async_test
async def test_rooms_reach_all_but_the_one_that_is_skipped(valkey_url, prefix, caplog):
    """In order with what comes before and behind, also for the one that is passed over; natives see publications."""
    app = App()

    @app.on("enter")
    async def enter(client, room):
        await client.join(room)

    @app.on("exit")
    async def leave(client, room):
        await client.leave(room)

    @app.on("say")
    async def say(client, room, text):
        await app.emit("said", text, 1, to=room, skip=client)

    @app.on("all")
    async def say_all(client, text):
        await app.emit("said", text, to="open:r")

    @app.on("everyone")
    async def everyone(client, text):
        await app.emit("heard", text)
        await app.emit("heard", text, namespace="/other")

    @app.on("unknown")
    async def unknown(client):
        await client.join("nowhere:a")

    app.on("x", "/other")(lambda client: None)
    async with (
        plane(valkey_url, prefix, app=app) as hub,
        member(hub) as ann,
        member(hub) as bob,
        member(hub, "/other,") as eve,
        client(hub.url) as native,
    ):
        for socket in (ann, bob):
            assert await emit(socket, 1, "enter", "open:r") == []
        await native.subscribe("open:r")
        await emit(ann, None, "all", "first")
        await emit(ann, None, "say", "open:r", "hi")
        await emit(ann, None, "all", "last")
        assert [await event(bob) for _ in range(3)] == [["said", "first"], ["said", "hi", 1], ["said", "last"]]
        assert [await event(ann) for _ in range(2)] == [["said", "first"], ["said", "last"]]
        assert (await native.push())["pub"]["data"] == "first"
        publication = (await native.push())["pub"]
        assert publication["data"] == ["hi", 1]
        assert publication["tags"]["event"] == "said"
        await emit(bob, 2, "exit", "open:r")
        await emit(ann, None, "all", "gone")
        assert await event(ann) == ["said", "gone"]
        await emit(bob, None, "everyone", "all of you")
        for socket, head in ((ann, "42"), (bob, "42"), (eve, "42/other,")):
            assert await event(socket, head) == ["heard", "all of you"]
        assert (await emit(ann, 3, "unknown"))[0]["error"]["code"] == 100
        assert (await emit(ann, 4, "subscribe", {"channel": "hub.everyone::"}))[0]["error"]["code"] == 102
    assert "CommandError: unknown channel" in caplog.text
    caplog.clear()


@async_test
async def test_clients_ack_what_they_are_asked(valkey_url, prefix):
    """With values; too late is a TimeoutError, gone a ConnectionError; an ack of nothing is passed over."""
    app = App()
    outcomes: asyncio.Queue = asyncio.Queue()

    @app.on("ask me")
    async def ask(client, timeout_s):
        try:
            outcomes.put_nowait(await client.call("question", 6, timeout_s=timeout_s))
        except (TimeoutError, ConnectionError) as error:
            outcomes.put_nowait(type(error))

    async with plane(valkey_url, prefix, app=app) as hub:
        async with member(hub) as socket:
            await socket.send('4399["nobody asked"]')
            for number, (answer, outcome) in enumerate((("[7]", 7), ("[]", None), ("[1,2]", [1, 2])), 1):
                await emit(socket, None, "ask me", 5)
                assert await receive(socket) == f'42{number}["question",6]'
                await socket.send(f"43{number}{answer}")
                assert await outcomes.get() == outcome
            await emit(socket, None, "ask me", 0.01)
            assert await outcomes.get() is TimeoutError
            await receive(socket)
            await emit(socket, None, "ask me", 5)
            await receive(socket)
        assert await outcomes.get() is ConnectionError


@async_test
async def test_disconnect_handlers_are_told_of_every_end(valkey_url, prefix):
    """Of a namespace, of a connection, of a native client; not of one that was refused, or left before its answer."""
    gone, go = [], asyncio.Event()
    app = App()

    @app.on_connect("/slow")
    async def slow(client, data):
        await go.wait()

    @app.on_connect("/never")
    async def never(client, data):
        raise Reject("no")

    @app.on_disconnect()
    async def disconnected(client):
        gone.append(client.namespace)
        with pytest.raises(ConnectionError):
            await client.join("open:a")

    @app.on("kick")
    async def kick(client):
        await client.disconnect()

    async with plane(valkey_url, prefix, app=app) as hub:
        async with member(hub) as socket:
            for packet in ("40/slow,", "40/never,"):
                await socket.send(packet)
            assert (await receive(socket)).startswith("44/never,")
            await socket.send("41/slow,")
            await socket.send("41")
            await until(lambda: gone)
        async with client(hub.url):
            pass
        await until(lambda: len(gone) == 2)
        async with member(hub) as socket:
            await emit(socket, None, "kick")
            assert await receive(socket) == "41"
        await until(lambda: len(gone) == 3)
        go.set()
        assert gone == ["/", "", "/"]
        await until(lambda: not hub.services.gate._seats)


@async_test
async def test_a_native_client_hears_events_as_messages(valkey_url, prefix):
    """What has no place there is refused to the handler."""
    app = App()
    errors = []

    @app.on_connected()
    async def connected(client, data):
        await client.emit("hello", {"a": 1})
        try:
            await client.call("question")
        except Exception as error:
            errors.append(str(error))

    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native:
        assert (await native.push())["message"]["data"] == {"event": "hello", "data": {"a": 1}}
        await until(lambda: errors)
        assert errors == ["acks are of Socket.IO clients"]


@async_test
async def test_who_is_put_out_of_a_room_is_let_in_again(valkey_url, prefix):
    """Of a room that the application chose its client knows nothing; of others it hears `unsubscribed`."""
    app = App()

    @app.on("enter")
    async def enter(client):
        await client.join("chat:a")
        await client.join("chat:a")

    async with plane(valkey_url, prefix, app=app) as hub, member(hub) as socket:
        assert await emit(socket, 1, "enter") == []
        assert "offset" in (await emit(socket, 2, "subscribe", {"channel": "chat:b"}))[0]
        (session,) = hub.services.users.everybody()
        session.resubscribe("chat:a")
        session.resubscribe("chat:b")
        name, body = await event(socket)
        assert (name, body["channel"]) == ("unsubscribed", "chat:b")
        await until(lambda: session.holds("chat:a"))
        await app.emit("said", "hi", to="chat:a")
        assert await event(socket) == ["said", "hi"]
        assert not session.holds("chat:b")


@async_test
async def test_commands_that_wait_for_the_application_are_bounded(valkey_url, prefix):
    """One more is refused, and those before it are answered."""
    go = asyncio.Event()
    app = App()

    @app.on_rpc("wait")
    async def wait(client, data):
        await go.wait()
        return data

    async with plane(valkey_url, prefix, app=app, client={"pending_commands": 2}) as hub, member(hub) as socket:
        for number in range(1, 5):
            await socket.send(f'42{number}["rpc",{{"method":"wait","data":{number}}}]')
        assert (await receive(socket)).startswith('434[{"error":{"code":111,')
        go.set()
        for number in range(1, 4):
            assert await receive(socket) == f'43{number}[{{"data":{number}}}]'


@async_test
async def test_events_at_a_time_are_bounded(valkey_url, prefix):
    """So many of one client, and again as many when those are done."""
    go = asyncio.Event()
    app = App()

    @app.on("wait")
    async def wait(client):
        await go.wait()

    async with plane(valkey_url, prefix, app=app, client={"pending_commands": 2}) as hub, member(hub) as socket:
        for _ in range(3):
            go.clear()
            for number in range(1, 4):
                await socket.send(f'42{number}["wait"]')
            assert (await receive(socket)).startswith('433[{"error":{"code":111,')
            go.set()
            assert [await receive(socket) for _ in range(2)] == ["431[]", "432[]"]


@async_test
async def test_what_waits_behind_a_connect_that_is_refused_ends_the_connection(valkey_url, prefix):
    """As every command before connect."""
    app = App()

    @app.on_connect()
    async def refuse(client, data):
        await asyncio.sleep(0)
        raise Reject("no", code=4001)

    async with plane(valkey_url, prefix, app=app) as hub, connect(hub.url, proxy=None) as native:
        await native.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}')
        assert orjson.loads(await native.recv())["error"]["code"] == 4001
        await native.wait_closed()
        assert native.close_code == 3501


@async_test
async def test_a_fault_of_ours_ends_the_one_client(valkey_url, prefix, monkeypatch, caplog):
    """It is told to come back, and the log has the trace."""
    app = App()
    app.on_rpc("x")(lambda client, data: 1)
    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native, client(hub.url) as other:
        gate = hub.services.gate
        monkeypatch.setattr(type(gate), "_resume", None)
        await native.socket.send('{"id":9,"rpc":{"method":"x"}}')
        await native.socket.wait_closed()
        assert native.socket.close_code == 3004
        monkeypatch.undo()
        assert (await other.command(rpc={"method": "x"}))["rpc"] == {"data": 1}
    assert "a call of the application, client" in caplog.text
    caplog.clear()


@async_test
async def test_who_leaves_before_its_answer_is_let_in_nowhere(valkey_url, prefix):
    """By a disconnect packet or by its end: no answer, no user, no handler of what comes later."""
    go, ended, later = asyncio.Event(), [], []
    app = App()

    @app.on_connect("/slow")
    async def slow(client, data):
        try:
            await go.wait()
        finally:
            ended.append(client.id)

    app.on_connected("/slow")(lambda client, data: later.append("connected"))
    app.on_disconnect("/slow")(lambda client: later.append("disconnect"))
    async with plane(valkey_url, prefix, app=app) as hub, member(hub) as socket:
        seats = hub.services.gate._seats
        async with websocket(hub) as other:
            await receive(other)
            await other.send("40/slow,")
            await socket.send("40/slow,")
            await until(lambda: len(seats) == 3)
        await socket.send("41/slow,")
        await until(lambda: len(seats) == 1)
        go.set()
        await until(lambda: len(ended) == 2)
        await until(lambda: not hub.services.gate.runner._calls)
        assert (await emit(socket, 1, "rpc", {"method": "hub.time"}))[0]["data"]
        assert len(list(hub.services.users.everybody())) == 1
        assert later == []
        go.clear()
        await socket.send("40/slow,")
        await until(lambda: len(seats) == 2)
        go.set()
        assert (await receive(socket)).startswith('40/slow,{"sid":"')


class Book:
    """A manifest that only notes what it is told."""

    def __init__(self) -> None:
        self.here: dict[str, bytes] = {}
        self.go = asyncio.Event()
        self.go.set()

    async def enter(self, entry) -> None:
        self.here[entry.client] = entry.pack()
        await self.go.wait()

    def exit(self, client: str) -> None:
        del self.here[client]

    async def rest(self) -> None: ...

    async def close(self) -> None: ...


@async_test
async def test_who_is_let_in_is_noted_before_and_struck_off_behind(valkey_url, prefix):
    """Before the client is told that it is in; when the handler has ended. Not where no handler would hear of it."""
    go, gone = asyncio.Event(), []
    app = App()
    app.on_connect("/other")(lambda client, data: {"user": data["name"]})

    @app.on_disconnect("/")
    async def ended(client):
        gone.append(client.id)
        await go.wait()

    async with plane(valkey_url, prefix, app=app) as hub:
        gate, book = hub.services.gate, Book()
        gate.manifest = book
        book.go.clear()
        async with websocket(hub) as socket:
            await receive(socket)
            await socket.send("40")
            await until(lambda: book.here)
            assert not any(seat.accepted for seat in gate._seats.values())
            book.go.set()
            assert (await receive(socket)).startswith('40{"sid":"')
            (entry,) = [gate.entry_of(client) for client in gate.clients()]
            assert book.here == {entry.client: entry.pack()}
            await socket.send('40/other,{"name":"ann"}')
            await receive(socket)
            assert len(book.here) == 1
        await until(lambda: gone)
        assert list(book.here) == gone
        go.set()
        await until(lambda: not book.here)
        book.go.clear()
        async with websocket(hub) as socket:
            await receive(socket)
            await socket.send("40")
            await until(lambda: book.here)
        await until(lambda: not gate._seats)
        book.go.set()
        await until(lambda: not book.here)
        assert len(gone) == 1


@async_test
async def test_the_end_of_many_at_once_is_told_of_each(valkey_url, prefix):
    """Also where more go than the application takes at a time."""
    gone = []
    app = App()
    app.on_disconnect()(lambda client: gone.append(client.id))
    async with plane(valkey_url, prefix, app=app) as hub:
        hub.services.gate.runner._pending = 1
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                await stack.enter_async_context(client(hub.url))
            for session in list(hub.services.users.everybody()):
                session.dismiss()
        await until(lambda: len(gone) == 5)


@async_test
async def test_claims_are_json_within_their_bound(valkey_url, prefix, caplog):
    """They may be kept in Redis; a mistake of the author's is in the log."""
    app = App()
    app.on_connect()(lambda client, data: {"x": {1}} if data == "odd" else {"x": "y" * data})
    async with plane(valkey_url, prefix, app=app) as hub:
        for data, good in ((4000, True), (4090, False), ("odd", False)):
            async with connect(hub.url, proxy=None) as native:
                await native.send(orjson.dumps({"id": 1, "connect": {"data": data}}).decode())
                assert ("connect" in orjson.loads(await native.recv())) == good
    assert "claims of 4098 bytes; allowed: 4096" in caplog.text
    assert "claims that are no JSON" in caplog.text
    caplog.clear()


@async_test
async def test_clients_are_sent_away_to_come_in_anew(valkey_url, prefix):
    """With a code upon which they come back; Socket.IO clients without a disconnect packet, for the same reason."""
    gone = []
    app = App()
    app.on_disconnect()(lambda client: gone.append(client.id))
    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native, member(hub) as socket:
        hub.services.gate.send_away()
        await native.socket.wait_closed()
        await socket.wait_closed()
        assert (native.socket.close_code, socket.close_code) == (3011, 3011)
        await until(lambda: len(gone) == 2)


def messenger() -> App:
    """An application that reaches clients by their ids."""
    app = App()

    @app.on("me")
    async def me(client):
        return client.id

    @app.on("whisper")
    async def whisper(client, to, *args):
        await app.emit("whispered", *args, to=to)

    @app.on("ask")
    async def ask(client, to, *args):
        return await app.call(to, "question", *args, timeout_s=5)

    @app.on("kick")
    async def kick(client, whom):
        await app.disconnect(whom)

    app.on("enter")(lambda client, room: client.join(room))

    @app.on("room")
    async def room(client, volatile, *args):
        await app.emit("said", *args, to="open:r", volatile=volatile)

    return app


@async_test
async def test_one_client_is_reached_by_its_id_in_any_worker(valkey_url, prefix):
    """Events, calls and an end; native clients hear events as messages."""
    async with (
        plane(valkey_url, prefix, app=messenger()) as here,
        plane(valkey_url, prefix, app=messenger()) as there,
        member(here) as ann,
        member(here) as near,
        member(there) as far,
        client(there.url) as native,
    ):
        for socket in (near, far):
            (name,) = await emit(socket, 1, "me")
            await emit(ann, None, "whisper", name, "psst", {"a": 1})
            assert await event(socket) == ["whispered", "psst", {"a": 1}]
            await ann.send(f'427["ask","{name}",6]')
            assert await receive(socket) == '421["question",6]'
            await socket.send("431[7]")
            assert await receive(ann) == "437[7]"
            await emit(ann, None, "kick", name)
            assert await receive(socket) == "41"
        await emit(ann, None, "whisper", native.id, "psst", 2)
        assert (await native.push())["message"]["data"] == {"event": "whispered", "data": ["psst", 2]}


@async_test
async def test_bytes_reach_a_room_on_every_wire(valkey_url, prefix):
    """As attachments behind their event, in one piece; to others in base64, with a mark."""
    async with (
        plane(valkey_url, prefix, app=messenger()) as hub,
        member(hub) as ann,
        client(hub.url) as native,
    ):
        bob = await joined(hub)
        await bob.post(b'421["enter","open:r"]')
        await bob.packets()
        await emit(ann, 1, "enter", "open:r")
        await native.subscribe("open:r")
        await ann.send('452-["room",false,"file",{"_placeholder":true,"num":0},{"a":{"_placeholder":true,"num":1}}]')
        await ann.send(b"\x01\x02")
        await ann.send(b"\x03")
        head = '452-["said","file",{"_placeholder":true,"num":0},{"a":{"_placeholder":true,"num":1}}]'
        assert [await receive(ann) for _ in range(3)] == [head, b"\x01\x02", b"\x03"]
        assert await bob.packets() == [head.encode(), b"bAQI=", b"bAw=="]
        publication = (await native.push())["pub"]
        assert publication["data"] == ["file", {"$base64": "AQI="}, {"a": {"$base64": "Aw=="}}]
        assert publication["tags"] == {"event": "said", "args": "3", "binary": "2"}
        await ann.send(f'451-["whisper","{native.id}",{{"_placeholder":true,"num":0}}]')
        await ann.send(b"\x01")
        data = (await native.push())["message"]["data"]
        assert data == {"event": "whispered", "data": {"$base64": "AQ=="}, "binary": 1}
        too_many = b"".join(orjson.dumps({"$base64": "AQ=="}) + b"," for _ in range(11))[:-1]
        odd = encode_body(orjson.loads(b"[" + too_many + b"]"), None, {"event": "odd", "args": "11", "binary": "11"})
        hub.fanout.deliver([Publication("open:r", odd)])
        assert (await event(ann))[0] == "publication"


@async_test
async def test_volatile_events_are_for_those_who_take_them_now(valkey_url, prefix):
    """A poll that waits gets one, a client without goes without; no history keeps it."""
    app = messenger()

    @app.on("direct")
    async def direct(client):
        await client.emit("tick", 1, volatile=True)
        return "sent"

    @app.on("kept")
    async def kept(client):
        await app.emit("said", "no", to="chat:r", volatile=True)
        await app.emit("said", "yes", to="chat:r")

    async with plane(valkey_url, prefix, app=app) as hub, member(hub) as ann:
        bob = await joined(hub)
        for packet, answer in ((b'421["enter","open:r"]', b"431[]"), (b'422["direct"]', b'432["sent"]')):
            await bob.post(packet)
            assert await bob.packets() == [answer]
        await emit(ann, 1, "enter", "open:r")
        await emit(ann, None, "room", True, "missed")
        assert await event(ann) == ["said", "missed"]
        await emit(ann, None, "room", False, "waits")
        assert await event(ann) == ["said", "waits"]
        assert await bob.packets() == [b'42["said","waits"]']
        (session,) = hub.engine.sessions[bob.sid]._sessions.values()
        poll = asyncio.create_task(bob.packets())
        await until(lambda: session.transport.ready)
        await emit(ann, None, "room", True, "here")
        assert await poll == [b'42["said","here"]']
        assert await event(ann) == ["said", "here"]
        await emit(ann, 2, "subscribe", {"channel": "chat:r"})
        await emit(ann, None, "kept")
        assert [await event(ann) for _ in range(2)] == [["said", "no"], ["said", "yes"]]
        (page,) = await emit(ann, 3, "history", {"channel": "chat:r", "limit": 10})
        assert [one["data"] for one in page["publications"]] == ["yes"]


@async_test
async def test_a_socket_that_takes_no_more_goes_without_volatile_events(valkey_url, prefix):
    """What waits for it is not added to."""
    app = messenger()
    async with (
        plane(valkey_url, prefix, app=app, client={"outbox_bytes": 10_000_000}) as hub,
        member(hub) as ann,
        member(hub) as slow,
    ):
        assert await emit(slow, 1, "enter", "open:r") == []
        (transport,) = [s.transport for s in hub.services.users.everybody() if s.holds("open:r")]
        slow.transport.pause_reading()
        while transport.ready:
            await emit(ann, 1, "room", False, "x" * 100_000)
        await until(lambda: not hub.fanout.busy)
        waits = transport._outbox.size
        await emit(ann, 1, "room", True, "y")
        await emit(ann, 1, "room", False, "z")
        await until(lambda: transport._outbox.size != waits)
        slow.transport.resume_reading()
        while (heard := await event(slow)) != ["said", "z"]:
            assert heard[1] != "y"
