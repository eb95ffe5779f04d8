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
