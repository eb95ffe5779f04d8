"""The server API's control over connections: two workers with clients on every wire, a third one that is asked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import cent
import orjson
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from hub import auth
from hub.app import App
from hub.revocation import TOKEN, USER, Entry
from hub.store import Keys
from hub.subscribe import Subscriptions
from tests import apis
from tests.emulated import request as emulated_request
from tests.emulated import stream_client
from tests.eventsource import request, stream
from tests.nodes import node, until
from tests.plane import NAMESPACES, SECRET, Client, Plane, client, plane
from tests.support import async_test
from tests.transports.polls import member, receive, websocket

SOON_S = 1.0
"""What is done holds for live connections within this time."""


def token(user: str, **claims: object) -> str:
    return auth.make(user, SECRET, 3600, time.time(), **claims)


@contextlib.asynccontextmanager
async def hubs(url: str, prefix: str) -> AsyncIterator[tuple[Plane, Plane, apis.Hub]]:
    """Two workers, and the API of a third."""
    async with (
        plane(url, prefix) as one,
        plane(url, prefix) as other,
        apis.hub(url, prefix, namespaces=NAMESPACES) as api,
    ):
        yield one, other, api


async def done(api: apis.Hub, method: str, **params: object) -> dict:
    """The result of a request."""
    body = await api.ask(method, params)
    assert "error" not in body, body
    return body["result"]


async def code_of(one: Client) -> int:
    """With which a WebSocket ends."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await asyncio.wait_for(one.socket.recv(), 5)
    return closed.value.rcvd.code


@dataclass
class Everywhere:
    """A user on every wire of two workers."""

    websocket: Client
    streamed: object
    socketio: object
    events: object
    poll: asyncio.Task

    async def codes(self) -> dict[str, object]:
        """With which each ends."""
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await receive(self.socketio)
        return {
            "websocket": await code_of(self.websocket),
            "stream": (await self.streamed.ending())["code"],
            "socketio": closed.value.rcvd.code,
            "event stream": (await self.events.end())[-1].json["code"],
            "poll": (await self.poll).status,
        }


@contextlib.asynccontextmanager
async def everywhere(one: Plane, other: Plane, text: str) -> AsyncIterator[Everywhere]:
    """One that shows this token on every wire."""
    query = f"channel=chat:a&token={text}"
    async with (
        client(one.url, text) as websocket,
        stream_client(other.http_url, "lines", text) as streamed,
        member(other, auth={"token": text}) as socketio,
        stream(one.port, query) as events,
    ):
        await events.next("open")
        waiting = asyncio.create_task(request(other.port, "GET", f"/poll?{query}&wait=30"))
        try:
            await until(lambda: len(other.polls))
            yield Everywhere(websocket, streamed, socketio, events, waiting)
        finally:
            waiting.cancel()


@async_test
async def test_a_user_is_disconnected_on_every_wire_of_every_worker(valkey_url, prefix):
    """Within a second, with 3503, and nobody else is."""
    async with hubs(valkey_url, prefix) as (one, other, api):
        async with everywhere(one, other, token("ann")) as ann, client(one.url, token("bob")) as bob:
            begin = time.monotonic()
            assert await done(api, "disconnect", user="ann") == {"num_clients": 5, "num_nodes": 2}
            final = dict.fromkeys(("websocket", "stream", "socketio", "event stream"), 3503)
            assert await ann.codes() == {**final, "poll": 403}
            assert time.monotonic() - begin < SOON_S
            await bob.subscribe("open:a")
        assert await done(api, "disconnect", user="ann") == {"num_clients": 0, "num_nodes": 0}


@async_test
async def test_a_disconnect_has_the_code_that_was_asked_for(valkey_url, prefix):
    """Clients come back upon some; so a poll is answered then with what there is."""
    async with hubs(valkey_url, prefix) as (one, other, api), everywhere(one, other, token("ann")) as ann:
        asked = {"code": 4001, "reason": "moved"}
        assert await done(api, "disconnect", user="ann", disconnect=asked) == {"num_clients": 5, "num_nodes": 2}
        again = dict.fromkeys(("websocket", "stream", "socketio", "event stream"), 4001)
        assert await ann.codes() == {**again, "poll": 204}


@async_test
async def test_one_connection_is_meant_by_its_id_or_session(valkey_url, prefix):
    """All that is given has to hold; the whitelist keeps those that it names."""
    async with (
        hubs(valkey_url, prefix) as (one, other, api),
        client(one.url, token("ann")) as phone,
        client(other.url, token("ann")) as desk,
        stream_client(one.http_url, "events", token("ann")) as streamed,
    ):
        assert await done(api, "disconnect", user="bob", client=phone.id) == {"num_clients": 0, "num_nodes": 0}
        assert await done(api, "disconnect", client="no-such") == {"num_clients": 0, "num_nodes": 0}
        assert await done(api, "disconnect", client=phone.id, session=streamed.session) == {
            "num_clients": 0,
            "num_nodes": 0,
        }
        assert await done(api, "disconnect", session=streamed.session) == {"num_clients": 1, "num_nodes": 1}
        assert (await streamed.ending())["code"] == 3503
        assert await done(api, "disconnect", user="ann", whitelist=[desk.id]) == {"num_clients": 1, "num_nodes": 1}
        assert await code_of(phone) == 3503
        assert await done(api, "disconnect", client=desk.id, code=3000, reason="") == {"num_clients": 1, "num_nodes": 1}
        assert await code_of(desk) == 3000


@async_test
async def test_of_two_users_on_one_socketio_connection_one_goes(valkey_url, prefix):
    """Its namespace is left; the other user's goes on."""
    async with (
        plane(valkey_url, prefix, socketio={"namespaces": ["/admin"]}) as one,
        apis.hub(valkey_url, prefix) as api,
        member(one, auth={"token": token("ann")}) as socket,
    ):
        await socket.send("40/admin," + orjson.dumps({"token": token("root")}).decode())
        assert (await receive(socket)).startswith('40/admin,{"sid"')
        assert await done(api, "disconnect", user="root") == {"num_clients": 1, "num_nodes": 1}
        assert await receive(socket) == "41/admin,"
        await socket.send('421["publish",{"channel":"open:a","data":1}]')
        assert await receive(socket) == "431[{}]"


@async_test
async def test_nobody_is_had_in_a_watch_list(valkey_url, prefix):
    """It has no symbols but those that its client asks for; out of it anybody can be had."""
    async with hubs(valkey_url, prefix) as (one, _, api), client(one.url, token("ann")) as ann:
        refused = await api.ask("subscribe", {"user": "ann", "channel": "ticker:$watch"})
        assert refused["error"]["code"] == 107 and "watch list" in refused["error"]["message"]
        assert "error" not in await ann.command(subscribe={"channel": "ticker:$watch", "data": {"symbols": ["A"]}})
        assert await done(api, "unsubscribe", user="ann", channel="ticker:$watch") == {"num_clients": 1}


@async_test
async def test_a_user_is_had_in_a_channel_and_out_of_it(valkey_url, prefix):
    """Past the namespace's rule, told as a server-side subscription; what can't be had there is counted."""
    async with (
        hubs(valkey_url, prefix) as (one, other, api),
        client(one.url, token("ann")) as phone,
        member(other, auth={"token": token("ann")}) as socket,
        stream(other.port, f"channel=chat:a&token={token('ann')}") as events,
    ):
        await events.next("open")
        result = await done(api, "subscribe", user="ann", channel="closed:a")
        assert result == {"num_clients": 2, "num_refused": 1}
        assert await phone.push() == {"channel": "closed:a", "subscribe": {}}
        await until(lambda: "closed:a" in other.fanout.lines.counts())
        await api.ask("publish", {"channel": "closed:a", "data": 1})
        assert await phone.push() == {"channel": "closed:a", "pub": {"data": 1}}
        assert await receive(socket) == '42["publication",{"channel":"closed:a","data":1}]'
        assert await done(api, "unsubscribe", user="ann", channel="closed:a") == {"num_clients": 2}
        assert (await phone.push())["unsubscribe"] == {"code": 2000, "reason": "server unsubscribe"}
        await until(lambda: not {"closed:a"} & {*one.fanout.lines.counts(), *other.fanout.lines.counts()})
        assert await done(api, "unsubscribe", user="ann", channel="chat:a") == {"num_clients": 1}
        assert (await events.end())[-1].json["code"] == 3503


@async_test
async def test_a_connections_end_is_moved(valkey_url, prefix):
    """Earlier, later, or this moment; whatever its token says."""
    async with (
        hubs(valkey_url, prefix) as (one, other, api),
        client(one.url, token("ann")) as native,
        stream_client(other.http_url, "lines", token("bob")) as streamed,
        member(other, auth={"token": token("cy")}) as socket,
        stream(one.port, f"channel=chat:a&token={token('dan')}") as events,
        client(other.url, auth.make("eve", SECRET, 2, time.time())) as longer,
    ):
        await events.next("open")
        for user in ("ann", "cy", "dan"):
            assert await done(api, "refresh", user=user, expire_at=time.time() + 0.2) == {"num_clients": 1}
        assert await done(api, "refresh", user="eve", expire_at=int(time.time()) + 3600) == {"num_clients": 1}
        assert await done(api, "refresh", user="bob", expired=True) == {"num_clients": 1}
        assert (await streamed.ending())["code"] == 3005
        assert await code_of(native) == 3005
        assert (await events.end())[-1].json["code"] == 3005
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await receive(socket)
        assert closed.value.rcvd.code == 3005
        (row,) = (await done(api, "connections", user="eve"))["connections"].values()
        assert row["transport"] == "websocket"
        await asyncio.wait_for(longer.command(rpc={"method": "hub.time"}), 5)


# Who is kept out.


async def refusals(one: Plane, text: str) -> dict[str, object]:
    """What becomes of somebody who comes with this token, on every wire."""
    found: dict[str, object] = {"websocket": await connecting(one, text)}
    opening = orjson.dumps({"id": 1, "connect": {"token": text}})
    body = b"POST /connection/http_stream HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    body += b"Content-Length: %d\r\n\r\n%b" % (len(opening), opening)
    _, _, said = await emulated_request(one.http_url, body)
    found["stream"] = orjson.loads(said.splitlines()[-1])["push"]["disconnect"]["code"]
    found["socketio"] = await joining(one, text)
    for path in ("/sse?channel=chat:a", "/poll?channel=chat:a&wait=0"):
        found[path[:5].strip("?")] = (await request(one.port, "GET", f"{path}&token={text}")).status
    publication = orjson.dumps({"channel": "open:a", "data": 1})
    found["publish"] = (await request(one.port, "POST", f"/publish?token={text}", publication)).status
    return found


async def connecting(one: Plane, text: str) -> int:
    """The code with which a connect command ends the connection."""
    async with connect(one.url, proxy=None) as socket:
        await socket.send(orjson.dumps({"id": 1, "connect": {"token": text}}).decode())
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await asyncio.wait_for(socket.recv(), 5)
    return closed.value.rcvd.code


async def joining(one: Plane, text: str) -> int:
    """The code in a connect_error."""
    async with member(one) as socket:
        await socket.send("41")
        await socket.send("40" + orjson.dumps({"token": text}).decode())
        message = await receive(socket)
        assert message.startswith("44"), message
        return orjson.loads(message[2:])["data"]["code"]


@async_test
async def test_a_blocked_user_goes_and_stays_out(valkey_url, prefix):
    """Within a second everywhere with 3507, and by every door; until it is let in again."""
    text = token("ann")
    async with hubs(valkey_url, prefix) as (one, other, api):
        async with everywhere(one, other, text) as ann:
            begin = time.monotonic()
            assert await done(api, "block_user", user="ann") == {"num_clients": 5}
            out = dict.fromkeys(("websocket", "stream", "socketio", "event stream"), 3507)
            assert await ann.codes() == {**out, "poll": 403}
            assert time.monotonic() - begin < SOON_S
        expected = dict.fromkeys(("websocket", "stream", "socketio"), 3507) | dict.fromkeys(
            ("/sse", "/poll", "publish"), 403
        )
        assert await refusals(one, text) == expected == await refusals(other, text)
        async with client(one.url, token("bob")):
            pass
        assert await done(api, "unblock_user", user="ann") == {}
        await until(lambda: not len(one.revocations) + len(other.revocations))
        async with everywhere(one, other, text):
            pass


@async_test
async def test_a_blocked_user_is_kept_out_also_by_an_applications_word(valkey_url, prefix):
    """Who it is may be the application's to say, and its answer may take a while."""
    app = App()
    app.on_connect()(lambda client, data: {"user": "ann"})
    async with plane(valkey_url, prefix, app=app) as one:
        one.revocations.learn(Entry(USER, "ann"))
        assert await connecting(one, token("bob")) == 3507
        async with websocket(one) as socket:
            await receive(socket)
            await socket.send("40")
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await receive(socket)
            assert closed.value.rcvd.code == 3507
        for path in ("/sse?channel=chat:a", "/poll?channel=chat:a&wait=0"):
            answer = await request(one.port, "GET", path)
            assert (answer.status, answer.code) == (403, 103)
        answer = await request(one.port, "POST", "/publish", b'{"channel":"open:a","data":1}')
        assert (answer.status, answer.code) == (403, 103)


@pytest.mark.parametrize(("method", "code"), [("block_user", 3507), ("invalidate_user_tokens", 3500)])
@async_test
async def test_the_user_of_a_token_goes_also_by_another_name(method, code, valkey_url, prefix):
    """Who its token says it is, where the application calls it otherwise; a poll's answer has a code of its own."""
    app = App()
    app.on_connect()(lambda client, data: {"user": f"member of {client.user}"})
    async with (
        plane(valkey_url, prefix, app=app) as one,
        plane(valkey_url, prefix, app=app) as other,
        apis.hub(valkey_url, prefix, namespaces=NAMESPACES) as api,
        everywhere(one, other, token("ann")) as ann,
        client(one.url, token("bob")) as bob,
    ):
        assert await done(api, method, user="ann") == {"num_clients": 5}
        out = dict.fromkeys(("websocket", "stream", "socketio", "event stream"), code)
        assert await ann.codes() == {**out, "poll": 403 if code == 3507 else 401}
        await bob.subscribe("open:a")


@async_test
async def test_a_revoked_token_lets_nobody_in(valkey_url, prefix):
    """Who came with it goes, 3500; the user's other tokens are good."""
    text = token("ann", jti="j1")
    async with hubs(valkey_url, prefix) as (one, other, api):
        async with everywhere(one, other, text) as ann, client(one.url, token("ann", jti="j2")) as same:
            assert await done(api, "revoke_token", uid="j1", expire_at=time.time() + 3600) == {"num_clients": 5}
            out = dict.fromkeys(("websocket", "stream", "socketio", "event stream"), 3500)
            assert await ann.codes() == {**out, "poll": 401}
            await same.subscribe("open:a")
        expected = dict.fromkeys(("websocket", "stream", "socketio"), 3500) | dict.fromkeys(
            ("/sse", "/poll", "publish"), 401
        )
        assert await refusals(other, text) == expected


@async_test
async def test_a_users_older_tokens_are_revoked(valkey_url, prefix):
    """Those of now too, and not those that are issued later; other users' are untouched."""
    async with hubs(valkey_url, prefix) as (one, other, api):
        async with client(one.url, token("ann")) as ann, client(other.url, token("bob")) as bob:
            later = token("ann", iat=time.time() + 5)
            assert await done(api, "invalidate_user_tokens", user="ann") == {"num_clients": 1}
            assert await code_of(ann) == 3500
            await bob.subscribe("open:a")
            async with client(other.url, later):
                pass
        assert await connecting(other, token("ann", iat=time.time() - 5)) == 3500


@async_test
async def test_tokens_of_the_second_of_the_call_are_revoked_with_it(valkey_url, prefix):
    """As `iat` is in whole seconds; a time that is given is exact, and an earlier one takes nothing back."""
    async with hubs(valkey_url, prefix) as (one, other, api):
        await done(api, "invalidate_user_tokens", user="ann")
        now = int(time.time())
        assert await connecting(one, token("ann", iat=now)) == 3500
        for later in (now + 1, now + 2):
            async with client(one.url, token("ann", iat=later)):
                pass
        await done(api, "invalidate_user_tokens", user="bob", issued_before=now)
        await done(api, "invalidate_user_tokens", user="bob", issued_before=now - 10, expire_at=now + 60)
        for hub in (one, other):
            assert await connecting(hub, token("bob", iat=now - 1)) == 3500
            async with client(hub.url, token("bob", iat=now)):
                pass


@async_test
async def test_a_revoked_channel_token_ends_the_subscription_alone(valkey_url, prefix):
    """The connection stays, and can't subscribe with it again; an event stream can't go on without the channel."""
    granted = auth.make("ann", SECRET, 3600, time.time(), channel="tokens:a", jti="g1")
    query = f"channel=tokens:a&token={token('ann')}&channel_token={granted}"
    async with (
        hubs(valkey_url, prefix) as (one, other, api),
        client(one.url, token("ann")) as native,
        stream(other.port, query) as events,
    ):
        await events.next("open")
        await native.subscribe("tokens:a", token=granted)
        assert await done(api, "revoke_token", uid="g1") == {"num_clients": 2}
        assert (await native.push())["unsubscribe"]["code"] == 2501
        assert (await events.end())[-1].json["code"] == 3006
        reply = await native.command(subscribe={"channel": "tokens:a", "token": granted})
        assert reply["error"]["code"] == 103
        assert (await request(other.port, "GET", f"/poll?wait=0&{query}")).status == 403


@pytest.mark.parametrize("name", ["tokens", "vault"])
@async_test
async def test_a_channel_token_that_is_revoked_while_redis_is_asked_gives_nothing(
    name, valkey_url, prefix, monkeypatch
):
    """Its subscription is not among those that are looked at then."""
    granted = auth.make("ann", SECRET, 3600, time.time(), channel=f"{name}:a", jti="g1")
    async with plane(valkey_url, prefix) as one, client(one.url, token("ann")) as ann:
        asking = Subscriptions.subscribe

        def subscribe(*words: object) -> None:
            one.revocations.learn(Entry(TOKEN, "g1"))
            asking(*words)

        monkeypatch.setattr(Subscriptions, "subscribe", subscribe)
        reply = await ann.command(subscribe={"channel": f"{name}:a", "token": granted})
        assert reply["error"]["code"] == 103
        await until(lambda: not len(one.fanout.lines))


@pytest.mark.expects_log
@async_test
async def test_a_worker_that_was_cut_off_catches_up(valkey_url, prefix):
    """What was noted meanwhile it reads when its link is back, and ends who is on the list."""
    async with (
        plane(valkey_url, prefix) as one,
        Redis.from_url(valkey_url) as redis,
        client(one.url, token("ann")) as ann,
    ):
        noted = Entry(USER, "ann")
        await redis.hset(Keys(prefix).revocations[1], noted.key, orjson.dumps(noted.params()))
        one.ingest.drop("cut off")
        assert await code_of(ann) == 3507


@async_test
async def test_a_worker_that_does_not_answer_is_named(valkey_url, prefix):
    """So that nobody takes what was done for all that there was to do."""
    async with (
        plane(valkey_url, prefix) as one,
        apis.hub(valkey_url, prefix) as api,
        node(valkey_url, prefix, 7, deaf=True) as deaf,
        client(one.url, token("ann")) as ann,
    ):
        assert await done(api, "disconnect", user="ann") == {
            "num_clients": 1,
            "num_nodes": 1,
            "silent_nodes": [deaf.uid],
        }
        assert await code_of(ann) == 3503
        assert await done(api, "unblock_user", user="ann") == {"silent_nodes": [deaf.uid]}


# Who is here.


@async_test
async def test_connections_are_listed_over_all_workers(valkey_url, prefix):
    """By user, by channel, by id; each with what is known of it."""
    async with (
        hubs(valkey_url, prefix) as (one, other, api),
        client(one.url, token("ann")) as phone,
        stream_client(other.http_url, "lines", token("ann")) as desk,
        client(other.url) as nobody,
        stream(one.port, "channel=chat:a&channel=open:b") as events,
    ):
        await phone.subscribe("chat:a")
        reader = (await events.next("open")).json["client"]
        await until(lambda: one.fanout.subscriptions == 3)
        found = (await done(api, "connections", user="ann"))["connections"]
        assert list(found) == sorted([phone.id, desk.id])
        ages = [row.pop("age_s") for row in found.values()]
        assert all(0 <= age < 30 for age in ages)
        assert found[phone.id] == {
            "user": "ann",
            "transport": "websocket",
            "protocol": "json",
            "address": "127.0.0.1",
            "channels": ["chat:a"],
            "num_channels": 1,
            "outbox_bytes": 0,
        }
        assert (found[desk.id]["transport"], found[desk.id]["channels"]) == ("http_stream", [])
        inside = (await done(api, "connections", channel="chat:a"))["connections"]
        assert set(inside) == {phone.id, reader}
        assert (inside[reader]["transport"], inside[reader]["address"]) == ("event_stream", "127.0.0.1")
        assert list((await done(api, "connections", client=nobody.id))["connections"]) == [nobody.id]
        assert list((await done(api, "connections", user="ann", address="127.0.0.1"))["connections"]) == list(found)
        assert (await done(api, "connections", address="192.0.2.1"))["connections"] == {}
        everybody = await done(api, "connections", limit=1000)
        assert set(everybody["connections"]) == {phone.id, desk.id, nobody.id, reader}
        assert "next" not in everybody


@async_test
async def test_pages_of_connections_follow_each_other(valkey_url, prefix, monkeypatch):
    """Each once, however the pages and the workers' own bounds fall."""
    async with hubs(valkey_url, prefix) as (one, other, api), contextlib.AsyncExitStack() as stack:
        made = [await stack.enter_async_context(client((one, other)[n % 2].url)) for n in range(7)]
        for most_bytes in (10**6, 10):  # the second: each worker tells of one at a time
            monkeypatch.setattr("hub.orders.MAX_PAGE_BYTES", most_bytes)
            pages, after = [], ""
            while True:
                page = await done(api, "connections", limit=3, after=after)
                pages.append(list(page["connections"]))
                after = page.get("next", "")
                if not after:
                    break
            assert [one for page in pages for one in page] == sorted(one.id for one in made)
            assert max(map(len, pages)) <= 3


@async_test
async def test_cents_client_works_unchanged(valkey_url, prefix):
    """Its requests with all their fields, and its models of the answers."""
    async with (
        plane(valkey_url, prefix) as one,
        apis.hub(valkey_url, prefix, key="k", namespaces=NAMESPACES) as api,
        cent.AsyncClient(api.url, "k") as sdk,
        client(one.url, token("ann")) as ann,
    ):
        result = await sdk.connections(cent.ConnectionsRequest(user="ann", expression=""))
        assert result.connections[ann.id].transport == "websocket"
        await sdk.subscribe(cent.SubscribeRequest(user="ann", channel="open:a"))
        assert "subscribe" in await ann.push()
        await sdk.unsubscribe(cent.UnsubscribeRequest(user="ann", channel="open:a"))
        assert "unsubscribe" in await ann.push()
        await sdk.refresh(cent.RefreshRequest(user="ann", expire_at=int(time.time()) + 60))
        await sdk.block_user(cent.BlockUserRequest(user="bob", expire_at=int(time.time()) + 60))
        await sdk.unblock_user(cent.UnblockUserRequest(user="bob"))
        await sdk.revoke_token(cent.RevokeTokenRequest(uid="j1"))
        await sdk.invalidate_user_tokens(cent.InvalidateUserTokensRequest(user="bob"))
        disconnect = cent.Disconnect(code=4000, reason="moved")
        await sdk.disconnect(cent.DisconnectRequest(user="ann", disconnect=disconnect))
        assert await code_of(ann) == 4000


BAD: list[tuple[str, dict, int, str]] = [
    ("disconnect", {}, 107, "found no user, client or session"),
    ("disconnect", {"user": ""}, 107, "found no user"),
    ("disconnect", {"user": 42}, 107, "user: found 42; allowed: a text of at most 255"),
    ("disconnect", {"user": "u" * 256}, 107, "user: found 'uuu"),
    ("disconnect", {"client": ["c"]}, 107, "client: found ['c']"),
    ("disconnect", {"user": "a", "code": 2999}, 107, "code: found 2999; allowed: whole numbers from 3000 to 4999"),
    ("disconnect", {"user": "a", "code": True}, 107, "code: found True"),
    ("disconnect", {"user": "a", "reason": "r" * 121}, 107, "reason: found"),
    ("disconnect", {"user": "a", "disconnect": 7}, 107, "disconnect: found 7"),
    ("disconnect", {"user": "a", "whitelist": "c"}, 107, "whitelist: found 'c'"),
    ("disconnect", {"user": "a", "whitelist": ["c"] * 1001}, 106, "whitelist: found 1001; allowed: 1000"),
    ("disconnect", {"user": "a", "whitelist": [f"{n:0128}" for n in range(1000)]}, 106, "allowed: 65536"),
    ("subscribe", {"user": "a"}, 107, "channel name"),
    ("subscribe", {"user": "a", "channel": "nowhere:a"}, 102, "unknown channel"),
    ("subscribe", {"user": "a", "channel": "open:a", "override": {"x": 1}}, 108, "override is not available"),
    ("unsubscribe", {"user": "a", "channel": "a b"}, 107, "channel name"),
    ("refresh", {"user": "a"}, 107, "expired, expire_at: allowed is one"),
    ("refresh", {"user": "a", "expired": True, "expire_at": 5}, 107, "expired, expire_at: allowed is one"),
    ("refresh", {"user": "a", "expired": 1}, 107, "expired: found 1"),
    ("refresh", {"user": "a", "expire_at": "soon"}, 107, "expire_at: found 'soon'; allowed: seconds since 1970"),
    ("revoke_token", {}, 107, "uid: found None"),
    ("revoke_token", {"uid": "j" * 256}, 107, "uid: found"),
    ("revoke_token", {"uid": "j", "expire_at": -1}, 107, "expire_at: found -1"),
    ("revoke_token", {"uid": "j", "expire_at": 1764000000}, 107, "found 1764000000; allowed: a time to come"),
    ("invalidate_user_tokens", {"user": "a", "expire_at": 5}, 107, "expire_at: found 5; allowed: a time to come"),
    ("block_user", {"user": "a", "expire_at": 0.5}, 107, "expire_at: found 0.5; allowed: a time to come"),
    ("invalidate_user_tokens", {"user": ""}, 107, "user: found ''; allowed: a text of 1 to 255"),
    ("invalidate_user_tokens", {"user": "a", "issued_before": "x"}, 107, "issued_before: found 'x'"),
    (
        "invalidate_user_tokens",
        {"user": "a", "issued_before": 1.8e12},
        107,
        "issued_before: found 1800000000000.0; allowed",
    ),
    ("invalidate_user_tokens", {"user": "a", "channel": "c"}, 108, "channel is not available"),
    ("block_user", {"user": 7}, 107, "user: found 7"),
    ("unblock_user", {}, 107, "user: found None"),
    ("connections", {"user": 7}, 107, "user: found 7"),
    ("connections", {"user": "a", "limit": 1001}, 107, "limit: found 1001; allowed: whole numbers from 1 to 1000"),
    ("connections", {"limit": True}, 107, "limit: found True"),
    ("connections", {"after": 5}, 107, "after: found 5"),
    ("connections", {"channel": "a b"}, 107, "channel name"),
    ("connections", {"user": "a", "expression": "true"}, 108, "expression is not available"),
]


@async_test
async def test_bad_requests_say_what_was_found_and_what_is_allowed(valkey_url, prefix):
    """And have had no worker do anything."""
    async with apis.hub(valkey_url, prefix) as api:
        for method, params, code, text in BAD:
            error = (await api.ask(method, params))["error"]
            assert error["code"] == code, (method, params, error)
            assert text in error["message"], (method, params, error)
        assert api.registry.malformed == 0
