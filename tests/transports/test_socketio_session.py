"""Socket.IO sessions of an application that come back: rooms, what they missed, and marks."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from hub import auth
from hub.app import App, Reject
from tests.nodes import until
from tests.plane import SECRET, plane
from tests.support import async_test
from tests.test_app_gate import emit, event
from tests.transports.polls import receive, websocket
from tests.transports.test_socketio import welcome

RECOVERY = {"recovery_ms": 60_000}


class Rig:
    """An application that keeps what its handlers see."""

    def __init__(self) -> None:
        self.app = App()
        self.seen: list[tuple] = []
        self.refuse = False
        self.user: str | None = None
        self.client = None
        app = self.app

        @app.on_connect()
        async def connect(client, data):
            self.seen.append(("connect", client.user, client.recovered))
            if self.refuse:
                raise Reject("not any more")
            return {"user": self.user} if self.user else None

        @app.on_connected()
        async def connected(client, data):
            self.client = client
            self.seen.append(("connected", client.user, client.recovered))
            if client.recovered:
                await client.join("chat:a")  # it is in there already
            await client.emit("welcome", "you")

        @app.on_disconnect()
        async def disconnected(client):
            self.seen.append(("gone",))

        @app.on("enter")
        async def enter(client, *rooms):
            for room in rooms:
                await client.join(room)

        @app.on_subscribe()
        async def subscribe(client, channel):
            self.seen.append(("subscribe", channel))


async def said(socket, count: int) -> list[list]:
    """The next events but greetings, without their marks."""
    heard = []
    while len(heard) < count:
        name, *args = await event(socket)
        if name != "welcome":
            heard.append([name, *args[:-1]])
    return heard


@async_test
async def test_a_client_comes_back_to_the_rooms_of_its_application(valkey_url, prefix):
    """To all, of whatever mode, past the rules; with what it missed of streams and its namespace, and newest values."""
    rig = Rig()
    # Channels that nobody is in are not followed any more, so each return has to ask Redis.
    forgetful = {"linger_s": 0.0}
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY, stream_options=forgetful) as hub:
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {}))["pid"]
            name, you, mark = await event(socket)
            assert (name, you) == ("welcome", "you")
            assert await emit(socket, 1, "enter", "chat:a", "log:b", "ticker:X", "closed:n") == []
            await emit(socket, 2, "subscribe", {"channel": "chat:own"})
            await rig.app.emit("said", "live", to="chat:a")
            _, text, mark = await event(socket)
            assert text == "live"
        for round_number in (1, 2):
            await until(lambda: not hub.engine.sessions and not len(hub.streams))
            rig.seen.clear()
            for room in ("chat:a", "log:b", "chat:a", "closed:n", "chat:own"):
                await rig.app.emit("said", f"{room} {round_number}", to=room)
            await rig.app.emit("said", f"ticker:X {round_number}", to="ticker:X")
            await rig.app.emit("said", f"all {round_number}")
            async with websocket(hub) as socket:
                assert (await welcome(socket, {"pid": pid, "offset": mark}))["pid"] == pid
                heard = [text for _, text in await said(socket, 6)]
                names = ["all", "chat:a", "chat:a", "chat:own", "log:b", "ticker:X"]
                assert sorted(heard) == [f"{name} {round_number}" for name in names]
                await until(lambda: len(rig.seen) == 3)
                assert rig.seen[:2] == [("connect", "", True), ("connected", "", True)]
                assert rig.seen[2] == ("subscribe", "chat:own")
                (session,) = hub.services.users.everybody()
                for room in ("chat:a", "log:b", "ticker:X", "closed:n"):
                    assert session.holds(room)
                    await rig.app.emit("said", room, to=room)
                    _, text, mark = await event(socket)
                    assert text == room
                await rig.app.emit("said", "end")
                _, text, mark = await event(socket)
                assert text == "end"


@async_test
async def test_what_is_sent_to_one_client_does_not_hide_where_it_is(valkey_url, prefix):
    """Stock clients report the last text that they were sent, so each event has a mark, but those that want an ack."""
    rig = Rig()
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY) as hub:
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {}))["pid"]
            await event(socket)
            await emit(socket, 1, "enter", "chat:a", "closed:n")
            await rig.app.emit("said", 1, to="chat:a")
            assert (await event(socket))[:2] == ["said", 1]
            asking = asyncio.create_task(rig.client.call("question", "text"))
            assert await receive(socket) == '421["question","text"]'
            await socket.send("431[7]")
            assert await asking == 7
            await rig.app.emit("typing", "text", to="closed:n", volatile=True)
            assert len(await event(socket)) == 3
            await rig.client.emit("direct", "text")
            *_, mark = await event(socket)
        await until(lambda: not hub.engine.sessions)
        await rig.app.emit("said", 2, to="chat:a")
        async with websocket(hub) as socket:
            assert (await welcome(socket, {"pid": pid, "offset": mark}))["pid"] == pid
            assert await said(socket, 1) == [["said", 2]]


@async_test
async def test_what_passes_over_a_client_passes_over_it_when_it_is_back(valkey_url, prefix):
    """However often it was away since, under another id each time; what passes over others it gets."""
    rig = Rig()
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY) as hub:
        async with websocket(hub) as other:
            await welcome(other, {})
            stranger = rig.client
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {}))["pid"]
            *_, mark = await event(socket)
            await emit(socket, 1, "enter", "chat:a")
            clients = [rig.client]
            await rig.app.emit("said", "own", to="chat:a", skip=rig.client)
        # Its only mark is from before all that, so everything is read for it again each time.
        for round_number in (1, 2):
            await until(lambda: not hub.engine.sessions)
            for client in (*clients, stranger):
                await rig.app.emit("said", client.id == stranger.id, to="chat:a", skip=client)
            async with websocket(hub) as socket:
                assert (await welcome(socket, {"pid": pid, "offset": mark}))["pid"] == pid
                await until(lambda: rig.client not in (*clients, stranger))
                clients.append(rig.client)
                assert await said(socket, round_number) == [["said", True]] * round_number
                await rig.app.emit("said", "own", to="chat:a", skip=rig.client)
                await rig.client.emit("end")
                assert await said(socket, 1) == [["end"]]


@async_test
async def test_what_is_being_swept_goes_before_what_one_client_is_sent(valkey_url, prefix):
    """Its mark says that it has all of the batches before."""
    rig = Rig()
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY) as hub, websocket(hub) as socket:
        await welcome(socket, {})
        await event(socket)
        await emit(socket, 1, "enter", "chat:a")
        sweep = hub.fanout.sweep
        run, sweep.run = sweep.run, lambda slice_s: False
        await rig.app.emit("said", 1, to="chat:a")
        await until(lambda: sweep.running)
        await rig.client.emit("direct", 2)
        sweep.run = run
        assert [(await event(socket))[:2] for _ in range(2)] == [["said", 1], ["direct", 2]]


@pytest.mark.parametrize("why", ["refused", "another", "token"])
@async_test
async def test_who_is_not_the_same_user_starts_anew_or_not_at_all(valkey_url, prefix, why):
    """The application is asked in any case, and its claims decide."""
    rig = Rig()
    rig.user = "ann"
    token = auth.make("tom", SECRET, 60, time.time())
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY) as hub:
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {"token": token}))["pid"]
            await event(socket)
            await emit(socket, 1, "enter", "chat:a")
        await until(lambda: ("gone",) in rig.seen)
        rig.refuse = why == "refused"
        rig.user = "bob" if why == "another" else "ann"
        rig.seen.clear()
        claims = {"pid": pid, "token": auth.make("eve", SECRET, 60, time.time()) if why == "token" else token}
        async with websocket(hub) as socket:
            await receive(socket)
            await socket.send("40" + orjson.dumps(claims).decode())
            answer = await receive(socket)
            if why == "refused":
                assert answer.startswith('44{"message":"not any more"')
                assert rig.seen == [("connect", "tom", True)]
                return
            assert answer.startswith("40{")
            assert orjson.loads(answer[2:])["pid"] != pid
            await event(socket)
            named = "eve" if why == "token" else "tom"
            assert rig.seen == [("connect", named, why == "another"), ("connected", rig.user, False)]
            await rig.app.emit("heard", 1)
            assert (await event(socket))[:2] == ["heard", 1]
            assert hub.fanout.lines.counts() == {"hub.everyone::": 1}


@async_test
async def test_a_room_that_can_not_be_had_again_makes_it_come_once_more(valkey_url, prefix):
    """It was told that it lost nothing, so that must not stand: under that name it does not come back any more."""
    rig = Rig()
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY) as hub:
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {}))["pid"]
            *_, mark = await event(socket)
            await emit(socket, 1, "enter", "chat:a")
        await until(lambda: not hub.engine.sessions)
        await rig.app.emit("said", 1, to="chat:a")
        judged = hub.streams._answer

        def forgets(stream, joiner):
            answer = judged(stream, joiner)
            return answer and answer._replace(recovered=False if answer.recovered else None, publications=())

        hub.streams._answer = forgets
        async with websocket(hub) as socket:
            assert (await welcome(socket, {"pid": pid, "offset": mark}))["pid"] == pid
            await socket.wait_closed()
            assert socket.close_code == 3010
        hub.streams._answer = judged
        await until(lambda: not hub.engine.sessions)
        async with websocket(hub) as socket:
            assert (await welcome(socket, {"pid": pid, "offset": mark}))["pid"] != pid


@async_test
async def test_mailboxes_are_opened_again(valkey_url, prefix):
    """What is kept in them needs no position."""
    rig = Rig()
    token = auth.make("ann", SECRET, 60, time.time())
    async with plane(valkey_url, prefix, app=rig.app, socketio=RECOVERY) as hub:
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {"token": token}))["pid"]
            *_, mark = await event(socket)
            await emit(socket, 1, "subscribe", {"channel": "inbox:#ann"})
        await until(lambda: not hub.engine.sessions)
        await rig.app.publish("inbox:#ann", "kept")
        async with websocket(hub) as socket:
            assert (await welcome(socket, {"token": token, "pid": pid, "offset": mark}))["pid"] == pid
            while (heard := await event(socket))[0] != "publication":
                pass
            assert heard[1]["data"] == "kept"
