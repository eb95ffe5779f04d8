"""The test kit, used as an author of an application uses it."""

from __future__ import annotations

import pytest

from hub.app import App, Reject
from hub.app_testing import Kit, Published
from hub.errors import CommandError
from tests.support import async_test


def chat() -> App:
    app = App()

    @app.on_connect()
    async def connect(client, data):
        if data == "no":
            raise Reject("not you")
        return {"user": data} if data else None

    @app.on_connected()
    async def connected(client, data):
        await client.emit("welcome", client.user)

    @app.on_disconnect()
    async def disconnect(client):
        await app.publish("room:log", f"{client.user} left")

    @app.on_subscribe()
    async def subscribe(client, channel):
        if channel != "room:lobby":
            raise Reject("no such room")

    @app.on_publish()
    async def publish(client, channel, data):
        return data.upper()

    @app.on_rpc("ask")
    async def ask(client, data):
        return await client.call("question", data)

    @app.on("say")
    async def say(client, text):
        await client.join("room:lobby")
        await app.emit("said", text, to="room:lobby", skip=client)
        return len(text), "ok"

    app.on("all")(lambda client: app.emit("heard"))
    app.on("leave")(lambda client: client.leave("room:lobby"))
    app.on("kick")(lambda client: client.disconnect())
    return app


@async_test
async def test_handlers_are_tested_without_a_network():
    """Connect, events, rooms, rpc, disconnect: what clients get is there when the call returns."""
    async with Kit(chat()) as kit:
        ann, bob = await kit.connect("ann"), await kit.connect(data="bob")
        assert (ann.received, bob.received, bob.client.claims) == (
            [("welcome", "ann")],
            [("welcome", "bob")],
            {"user": "bob"},
        )
        await bob.subscribe("room:lobby")
        with pytest.raises(CommandError, match="no such room"):
            await ann.subscribe("room:other")
        assert await ann.emit("say", "hi") == [2, "ok"]
        assert bob.received[1:] == [("said", "hi")]
        assert ann.received[1:] == []
        await ann.emit("all")
        assert (ann.received[1:], bob.received[2:]) == ([("heard",)], [("heard",)])
        bob.answers["question"] = lambda data: data + 1
        assert await bob.rpc("ask", 1) == 2
        await bob.emit("leave")
        assert bob.rooms == set()
        await ann.publish("room:lobby", "shout")
        await ann.disconnect()
        assert kit.published == [Published("room:lobby", "SHOUT"), Published("room:log", "ann left")]
        await bob.emit("kick")
        assert (kit.clients, bob.connected) == ([], False)
        with pytest.raises(CommandError, match="not you"):
            await kit.connect(data="no")
        for call in (bob.emit("other"), bob.rpc("other")):
            with pytest.raises(KeyError):
                await call


@pytest.mark.expects_log
@async_test
async def test_clients_elsewhere_bytes_and_full_sockets():
    """What reaches one client by its id, what arrives of bytes, who goes without, and who went with its worker."""
    app, gone = App(), []

    @app.on_disconnect()
    async def disconnect(client):
        gone.append((client.user, dict(client.claims), client.state))
        try:
            await client.emit("too late")
        except ConnectionError:
            gone.append("raises")

    app.on_connect()(lambda client, data: {"user": "bob", "role": data} if data else None)

    @app.on("whisper")
    async def whisper(client, to, text):
        await app.emit("whispered", text, b"\x01", to=to)
        return await app.call(to, "question", 6)

    @app.on("typing")
    async def typing(client):
        await app.emit("typing", to="room:a", volatile=True)
        await client.emit("seen", volatile=True)

    app.on("kick")(lambda client, whom: app.disconnect(whom))
    async with Kit(app) as kit:
        ann, bob = await kit.connect("ann"), await kit.connect(data="guest")
        bob.answers["question"] = lambda number: number + 1
        assert await ann.emit("whisper", bob.client.id, "psst") == [7]
        assert (ann.received, bob.received) == ([], [("whispered", "psst", b"\x01"), ("question", 6)])
        with pytest.raises(CommandError, match="the application failed"):
            await ann.emit("whisper", "0f8fad5b-d9cb-469f-a165-70867728950e", "nobody")
        await bob.client.join("room:a")
        bob.full = True
        await ann.emit("typing")
        assert (ann.received, len(bob.received)) == ([("seen",)], 2)
        bob.full = False
        await ann.emit("typing")
        assert bob.received[2:] == [("typing",)]
        bob.client.state["draft"] = "x"
        await bob.kill()
        assert gone == [("bob", {"user": "bob", "role": "guest"}, {}), "raises"]
        assert kit.clients == [ann]
        await ann.emit("kick", ann.client.id)
        assert kit.clients == []


@async_test
async def test_a_client_comes_back_to_its_rooms():
    """Where the application makes the same user of it, and only then."""
    app, seen = App(), []

    @app.on_connect()
    async def connect(client, data):
        seen.append(client.recovered)
        return {"user": data}

    app.on_connected()(lambda client, data: seen.append(client.recovered))
    async with Kit(app) as kit:
        ann = await kit.connect(data="ann")
        await ann.client.join("room:a")
        await ann.disconnect()
        back = await kit.connect(data="ann", back=ann)
        assert (back.rooms, back.client.recovered) == ({"room:a"}, True)
        other = await kit.connect(data="bob", back=ann)
        assert (other.rooms, other.client.recovered) == (set(), False)
        assert seen == [False, False, True, True, True, False]


@async_test
async def test_messages_are_tested_too():
    """At the address that is their client's namespace."""
    app = App()

    @app.on_message("/engine.io/")
    async def echo(client, data):
        if data == "no":
            raise Reject("not that")
        await client.send(data)

    async with Kit(app) as kit:
        raw, other = await kit.connect(namespace="/engine.io/"), await kit.connect()
        await raw.send("hi")
        await raw.send(b"\x00")
        assert raw.received == [("hi",), (b"\x00",)]
        with pytest.raises(CommandError, match="not that"):
            await raw.send("no")
        with pytest.raises(KeyError):
            await other.send("hi")
