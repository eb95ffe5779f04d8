"""What an application does with a native client, as that one hears it."""

from __future__ import annotations

import pytest

from hub.errors import CommandError
from tests.plane import client, plane
from tests.support import async_test
from tests.test_app_gate import messenger


@async_test
async def test_native_clients_are_told_of_rooms(valkey_url, prefix):
    """As server-side subscriptions: before the first publication, at the end, and again after it was put out."""
    app = messenger()
    app.on_rpc("enter")(lambda client, room: client.join(room))
    app.on_rpc("exit")(lambda client, room: client.leave(room))
    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native:
        await native.command(rpc={"method": "enter", "data": "closed:r"})
        assert await native.push() == {"channel": "closed:r", "subscribe": {}}
        await app.emit("said", "hi", to="closed:r")
        assert (await native.push())["pub"]["data"] == "hi"
        await native.command(rpc={"method": "exit", "data": "closed:r"})
        push = await native.push()
        assert push == {"channel": "closed:r", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
        await app.publish("chat:r", 1)
        await native.command(rpc={"method": "enter", "data": "chat:r"})
        subscribe = (await native.push())["subscribe"]
        assert (subscribe["positioned"], subscribe["offset"], "recoverable" in subscribe) == (True, 1, False)
        (session,) = hub.services.users.everybody()
        session.resubscribe("chat:r")
        assert (await native.push())["subscribe"] == subscribe
        await app.publish("chat:r", 2)
        assert (await native.push())["pub"]["offset"] == 2
        await native.subscribe("open:own")
        await native.command(rpc={"method": "enter", "data": "open:own"})
        await native.command(rpc={"method": "exit", "data": "open:own"})
        assert (await native.push())["unsubscribe"]["code"] == 2000
        assert not session.holds("open:own")


@async_test
async def test_channels_that_an_application_chooses_count_as_well(valkey_url, prefix):
    """Towards the bound of one client; those that it is in already, once."""
    app, raised = messenger(), []

    @app.on_rpc("enter")
    async def enter(one, room):
        try:
            await one.join(room)
        except CommandError as error:
            raised.append(str(error))

    async with plane(valkey_url, prefix, app=app, client={"channels": 1}) as hub, client(hub.url) as native:
        for room in ("open:a", "open:a", "open:b"):
            await native.command(rpc={"method": "enter", "data": room})
        assert raised == ["allowed: 1 channels"]
        assert (await native.push())["channel"] == "open:a"
        assert hub.fanout.lines.counts() == {"open:a": 1}


@async_test
async def test_what_can_not_be_sent_is_the_authors_mistake(valkey_url, prefix):
    """And nothing of it is sent."""
    app, seen = messenger(), []
    app.on_connected()(lambda one, data: seen.append(one))
    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native:
        await native.command(rpc={"method": "hub.time"})
        (one,) = seen
        with pytest.raises(TypeError):
            await one.emit("odd", {1, 2})
        await one.emit("even", 2)
        assert (await native.push())["message"]["data"] == {"event": "even", "data": 2}
