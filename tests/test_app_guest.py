"""Guests: an application is asked about the clients of every wire over HTTP, also of those without a session."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from websockets.asyncio.client import connect

from hub import auth, errors
from hub.app import App, Reject
from hub.app_runner import Runner
from hub.errors import CommandError
from hub.message import Publication
from hub.transports.plain import PlainHandler
from tests.emulated import WIRES, StreamClient
from tests.emulated import request as whole_request
from tests.eventsource import Answer, request, stream
from tests.nodes import until
from tests.plane import SECRET, Client, Plane, client, plane
from tests.support import async_test
from tests.test_app_gate import Book
from tests.transports.test_sse import until_end

PLAIN = ("GET /sse", "HEAD /sse", "GET /poll", "POST /publish")
SESSIONS = ("websocket", *WIRES)
OK = (200, 0, "")
REFUSED = (403, 4001, "not you")
FAILED = (503, 100, "the application failed")
"""Status, code and words; a session's commands have no status, which is not compared there."""


def token(user: str) -> str:
    return auth.make(user, SECRET, 60, time.time())


def moody() -> App:
    """An application that does to whoever, or whatever, is called so what the name says."""
    app = App()

    async def treat(name: str) -> None:
        if name.endswith("refuse"):
            raise Reject("not you", code=4001)
        if name.endswith("raise"):
            raise KeyError("secret")
        if name.endswith("hang"):
            await asyncio.Event().wait()

    @app.on_connect()
    async def connect(client, data):
        await treat(client.user)

    @app.on_subscribe()
    async def subscribe(client, channel):
        await treat(channel)

    @app.on_publish()
    async def publish(client, channel, data):
        await treat(channel)
        return {"changed": data} if channel.endswith("change") else None

    return app


async def ask(hub: Plane, wire: str, user: str, channel: str) -> tuple[int, int, str]:
    """Have one client come in, and subscribe or, by POST /publish, publish: how it fares."""
    if wire == "POST /publish":
        return outcome(await publish(hub, channel, user=user))
    if wire in PLAIN:
        method, _, path = wire.partition(" ")
        target = f"{path}?channel={channel}&wait=0&token={token(user)}"
        if wire == "GET /sse":
            async with stream(hub.port, target.partition("?")[2]) as one:
                if one.status == 200:
                    await one.next("open")
                    return OK
                body = await one.reader.readexactly(int(one.headers["content-length"]))
                return outcome(Answer(one.status, one.headers, body))
        answer = await request(hub.port, method, target)
        if method == "HEAD":
            return answer.status, 0, ""
        return outcome(answer)
    async with session(hub, wire) as one:
        reply = await one.command(connect={"token": token(user)})
        if "error" not in reply:
            reply = await one.command(subscribe={"channel": channel})
        return of_reply(reply)


def outcome(answer: Answer) -> tuple[int, int, str]:
    if answer.status in (200, 204):
        return OK
    error = answer.json["error"]
    return answer.status, error["code"], error["message"]


def of_reply(reply: dict) -> tuple[int, int, str]:
    error = reply.get("error", {"code": 0, "message": ""})
    return 0, error["code"], error["message"]


async def publish(hub: Plane, channel: str, data: object = 1, user: str = "") -> Answer:
    return await request(
        hub.port, "POST", f"/publish?token={token(user)}", orjson.dumps({"channel": channel, "data": data})
    )


class Streamed(StreamClient):
    """A session whose connect may fail, behind which there is no session to send to."""

    async def command(self, **command: object) -> dict:
        if "connect" not in command:
            return await super().command(**command)
        self._next_id = 1
        await self.open(orjson.dumps({"id": 1, **command}))
        reply = await self.first(lambda message: message.get("id") == 1)
        if "connect" in reply:
            self.session, self.node = reply["connect"]["session"], reply["connect"]["node"]
        return reply


@contextlib.asynccontextmanager
async def session(hub: Plane, wire: str) -> AsyncIterator[Client | Streamed]:
    """A client of the native protocol, not connected yet."""
    if wire == "websocket":
        async with connect(hub.url, proxy=None) as socket:
            yield Client(socket)
        return
    one = Streamed(hub.url, wire)
    yield one
    one.close()


@pytest.mark.parametrize("wire", PLAIN + SESSIONS)
@async_test
async def test_every_wire_asks_the_application(valkey_url, prefix, wire, caplog):
    """Who may come in, and what for; a handler that raises or hangs fails one request, and nobody waits for ever."""
    async with plane(valkey_url, prefix, app=moody(), app_timeout_s=0.1) as hub:
        for user, channel, expected in (
            ("ann", "open:a", OK),
            ("refuse", "open:a", REFUSED),
            ("raise", "open:a", FAILED),
            ("hang", "open:a", FAILED),
            ("ann", "open:refuse", REFUSED),
            ("ann", "open:raise", FAILED),
            ("ann", "open:hang", FAILED),
            ("ann", "closed:a", (403, 103, "permission denied")),
        ):
            status, code, words = await ask(hub, wire, user, channel)
            if wire not in SESSIONS:
                assert status == expected[0], (user, channel)
            if wire != "HEAD /sse":  # which has no body
                assert (code, words) == expected[1:], (user, channel)
        runner = hub.services.gate.runner
        assert (runner.failed, runner.timed_out) == (2, 2)
        assert hub.fanout.subscriptions == 0 or wire in ("GET /sse", *SESSIONS)
        await until(lambda: not hub.services.gate._seats)
    caplog.clear()


@pytest.mark.parametrize("wire", ("POST /publish", *SESSIONS))
@async_test
async def test_every_wire_asks_what_is_published(valkey_url, prefix, wire, caplog):
    """It may be refused, changed, or fail; what is not let through reaches nobody."""
    async with (
        plane(valkey_url, prefix, app=moody(), app_timeout_s=0.1) as hub,
        client(hub.url) as listener,
        session(hub, "lines" if wire == "POST /publish" else wire) as one,
    ):
        for name in ("a", "change"):
            await listener.subscribe(f"open:{name}")
        # What is refused has nobody in its channel who could hear it: the application keeps subscribers out as well.
        published = []
        original = hub.publisher.publish
        hub.publisher.publish = lambda channel, *args, **more: (
            published.append(channel),
            original(channel, *args, **more),
        )
        await one.command(connect={})
        for channel, expected in (
            ("open:refuse", REFUSED),
            ("open:raise", FAILED),
            ("open:hang", FAILED),
            ("open:change", OK),
            ("open:a", OK),
        ):
            if wire == "POST /publish":
                assert outcome(await publish(hub, channel)) == expected
            else:
                assert of_reply(await one.command(publish={"channel": channel, "data": 1}))[1:] == expected[1:]
        assert published == ["open:change", "open:a"]
        told = [(await listener.push())["pub"]["data"] for _ in range(2)]
        assert {"changed": 1} in told and 1 in told  # of two channels, whose order is not promised
    caplog.clear()


@pytest.mark.parametrize("path", ("/sse", "/poll"))
@async_test
async def test_a_channel_that_is_refused_is_named_by_its_index(valkey_url, prefix, path, caplog):
    """By which clients give up that one; not where it may pass, as with a handler that has failed."""
    async with plane(valkey_url, prefix, app=moody()) as hub:
        answer = await request(hub.port, "GET", f"{path}?channel=open:a&channel=open:refuse&channel=open:b")
        assert answer.status == 403
        assert answer.json["error"] == {"code": 4001, "message": "not you", "index": 1}
        answer = await request(hub.port, "GET", f"{path}?channel=open:a&channel=open:raise")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json["error"] == {"code": 100, "message": "the application failed", "temporary": True}
    caplog.clear()


@async_test
async def test_an_event_source_is_told_in_the_stream_to_come_back(valkey_url, prefix, caplog):
    """As for good it would stay away upon a 503; who is rejected is to stay away."""
    async with plane(valkey_url, prefix, app=moody()) as hub:
        async with stream(hub.port, "channel=open:raise", Accept="text/event-stream") as one:
            assert one.status == 200
            (event,) = await until_end(one)
            assert (event.type, event.json["code"], event.json["reconnect"]) == ("closed", 3004, True)
            assert one.parser.retry_ms
        async with stream(hub.port, "channel=open:refuse", Accept="text/event-stream") as one:
            assert one.status == 403
    caplog.clear()


@async_test
async def test_claims_name_the_user(valkey_url, prefix):
    """To the rules of the namespaces, in what is published, and for notices; over the one of the token."""
    app = App()
    app.on_connect()(lambda client, data: {"user": {"": "ann", "evil": ""}[client.user]})
    async with plane(valkey_url, prefix, app=app) as hub, client(hub.url) as native:
        await native.subscribe("users:a")
        assert (await publish(hub, "users:a")).status == 200
        assert (await native.push())["pub"]["info"] == {"user": "ann", "client": ""}
        assert (await publish(hub, "users:a", user="evil")).status == 403
        assert (await request(hub.port, "GET", "/poll?channel=users:a&wait=0")).status == 204
        assert (await request(hub.port, "GET", "/poll?channel=dialog:%23evil&wait=0")).status == 404
        assert (await request(hub.port, "GET", f"/poll?channel=users:a&wait=0&token={token('evil')}")).status == 403
        async with stream(hub.port, "channel=users:a") as one:
            await one.next("open")
            assert len(list(hub.services.users.of("ann"))) == 2


@async_test
async def test_what_is_asked_and_told_has_its_order(valkey_url, prefix):
    """Connect, then each channel, around all of it the middlewares; only event streams connect and disconnect."""
    calls = []
    app = App()

    @app.middleware
    async def note(client, call, proceed):
        calls.append((call.kind, call.name, *call.args))
        client.state.setdefault("calls", []).append(call.kind)
        assert client.namespace == ""
        return await proceed()

    for register in (app.on_connect, app.on_connected):
        register()(lambda client, data: None)
    app.on_subscribe()(lambda client, channel: None)
    app.on_publish()(lambda client, channel, data: None)
    app.on_disconnect()(lambda client: calls.append(client.state["calls"]))
    asked = [("connect", "", None), ("subscribe", "open:b", "open:b"), ("subscribe", "open:a", "open:a")]
    async with plane(valkey_url, prefix, app=app) as hub:
        query = "channel=open:b&channel=open:a&channel=open:b"
        assert (await request(hub.port, "GET", f"/poll?{query}&wait=0")).status == 204
        assert (await request(hub.port, "HEAD", f"/sse?{query}")).status == 200
        assert calls == asked * 2
        calls.clear()
        await publish(hub, "open:a", 7)
        assert calls == [("connect", "", None), ("publish", "open:a", "open:a", 7)]
        calls.clear()
        async with stream(hub.port, query) as one:
            await one.next("open")
            await until(lambda: len(calls) == 4)
            assert calls == [*asked, ("connected", "", None)]
        await until(lambda: len(calls) == 6)
        assert calls[4:] == [
            ("disconnect", ""),
            ["connect", "subscribe", "subscribe", "connected", "disconnect"],
        ]
        assert not hub.services.gate._seats and not hub.services.gate.clients()


@async_test
async def test_all_that_one_request_asks_shares_one_time(valkey_url, prefix, monkeypatch):
    """However many channels it names; and a call does not outlive that time."""
    ends = []
    run = Runner.run

    async def noted(self, handler, client, call, until=0.0):
        ends.append(until)
        return await run(self, handler, client, call, until)

    monkeypatch.setattr(Runner, "run", noted)
    app = moody()
    async with plane(valkey_url, prefix, app=app) as hub:
        before = asyncio.get_running_loop().time()
        await request(hub.port, "GET", "/poll?channel=open:a&channel=open:b&wait=0")
        after = asyncio.get_running_loop().time()
    assert len(ends) == 3 and len(set(ends)) == 1
    assert before + 5 <= ends[0] <= after + 5


class Slow:
    """An application whose handlers wait until they are let go."""

    def __init__(self) -> None:
        self.app = App()
        self.calls: list[str] = []
        self.go = asyncio.Event()
        self.ended = asyncio.Event()

        @self.app.middleware
        async def wait(client, call, proceed):
            self.calls.append(call.kind)
            await self.go.wait()
            self.ended.set()

        self.app.on_subscribe()(lambda client, channel: None)
        self.app.on_publish()(lambda client, channel, data: None)
        self.app.on_connected()(lambda client, data: None)
        self.app.on_disconnect()(lambda client: None)


def sent(target: str, body: bytes = b"") -> bytes:
    method = "POST" if body else "GET"
    lines = [f"{method} {target} HTTP/1.1", "Host: hub.test", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


REQUESTS = {
    "sse": sent("/sse?channel=open:a"),
    "poll": sent("/poll?channel=open:a"),
    "publish": sent("/publish", b'{"channel":"open:a","data":1}'),
}


@pytest.mark.parametrize("name", REQUESTS)
@async_test
async def test_who_goes_while_the_application_thinks_costs_nothing_more(valkey_url, prefix, name):
    """Nothing else is asked, nothing published, nobody subscribed, nobody connected or disconnected."""
    slow = Slow()
    async with plane(valkey_url, prefix, app=slow.app) as hub:
        published = []
        hub.publisher.publish = lambda *args, **more: published.append(args)
        left = []
        original = hub.services.gate.gone
        hub.services.gate.gone = lambda holder: (left.append(holder), original(holder))
        _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(REQUESTS[name])
        await until(lambda: slow.calls)
        writer.close()
        await until(lambda: left)
        slow.go.set()
        await slow.ended.wait()
        await until(lambda: not hub.services.gate.runner._calls)
        assert slow.calls == ["connect"]
        assert not published and not hub.fanout.subscriptions and not len(hub.polls) and not hub.reactor.connections


@async_test
async def test_who_goes_just_as_the_application_has_answered_waits_for_nothing(valkey_url, prefix, monkeypatch):
    """A poll of nobody would stay for all its time."""
    granted = PlainHandler.granted

    async def too_late(self, gate, caller):
        answer = await granted(self, gate, caller)
        self.on_connection_close()
        return answer

    monkeypatch.setattr(PlainHandler, "granted", too_late)
    async with plane(valkey_url, prefix, app=moody()) as hub:
        asked = []
        hub.polls.enter = asked.append
        await request(hub.port, "GET", "/poll?channel=open:a&wait=0")
        assert not asked


@async_test
async def test_calls_that_the_worker_cuts_off_at_its_end_are_answered(valkey_url, prefix):
    """503, unless there has been an answer: then there is nothing to say, and nothing for the log."""
    slow = Slow()
    async with plane(valkey_url, prefix, app=slow.app) as hub:
        asking = asyncio.create_task(publish(hub, "open:a"))
        await until(lambda: slow.calls)
        for call in hub.services.gate.runner._calls:
            call.cancel()
        answer = await asking
        assert (answer.status, answer.code) == (503, 100)
    app = App()
    hanging = asyncio.Event()

    @app.on_connected()
    async def connected(client, data):
        hanging.set()
        await asyncio.Event().wait()

    async with plane(valkey_url, prefix, app=app) as hub, stream(hub.port, "channel=open:a") as one:
        await hanging.wait()
        for call in hub.services.gate.runner._calls:
            call.cancel()
        await until(lambda: not hub.services.gate.runner._calls)
        await until(lambda: hub.fanout.subscriptions)
        hub.fanout.deliver([Publication("open:a", b'{"data":1}')])
        assert (await one.next()).json["pub"]["data"] == 1


@pytest.mark.parametrize("name", ("sse", "poll"))
@async_test
async def test_who_is_let_in_when_the_worker_drains_is_sent_away(valkey_url, prefix, name):
    """It would be a connection that nobody closes; and the application hears of nobody who was not there."""
    slow = Slow()
    async with plane(valkey_url, prefix, app=slow.app) as hub:
        hub.services.gate.manifest = book = Book()
        asking = asyncio.create_task(request(hub.port, "GET", f"/{name}?channel=open:a&wait=9"))
        await until(lambda: slow.calls)
        hub.draining.set()
        slow.go.set()
        answer = await asking
        assert (answer.status, answer.code) == (503, 100)
        await until(lambda: not book.here)
        assert slow.calls == ["connect", "subscribe"] and not hub.services.gate._seats


@async_test
async def test_requests_at_a_time_are_bounded(valkey_url, prefix):
    """By app.pending, as all calls of the application."""
    slow = Slow()
    async with plane(valkey_url, prefix, app=slow.app) as hub:
        hub.services.gate.runner._pending = 1
        first = asyncio.create_task(publish(hub, "open:a"))
        await until(lambda: slow.calls)
        for answer in (
            await publish(hub, "open:a"),
            await request(hub.port, "GET", "/poll?channel=open:a"),
            await request(hub.port, "GET", "/sse?channel=open:a"),
        ):
            assert (answer.status, answer.code) == (429, 111)
        slow.go.set()
        assert (await first).status == 200


@async_test
async def test_a_bad_token_or_body_asks_nobody(valkey_url, prefix):
    slow = Slow()
    async with plane(valkey_url, prefix, app=slow.app) as hub:
        for method, target, body, status in (
            ("POST", "/publish?token=x", b'{"channel":"open:a","data":1}', 401),
            ("POST", "/publish", b"{", 400),
            ("GET", "/poll?channel=open:a&token=x", b"", 401),
            ("GET", "/sse?channel=open:a&token=x", b"", 401),
        ):
            assert (await request(hub.port, method, target, body)).status == status
        assert not slow.calls


def keeper() -> tuple[App, dict]:
    """An application, and its clients of now by their users."""
    app, here = App(), {}

    @app.on_connected()
    async def connected(client, data):
        here[client.user] = client

    @app.on_disconnect()
    async def disconnected(client):
        del here[client.user]

    return app, here


@async_test
async def test_an_event_stream_is_a_client_that_can_be_sent_events(valkey_url, prefix):
    """By its own methods and by its id; acks and rooms it has none. A stream without the channel is left alone."""
    app, here = keeper()
    async with (
        plane(valkey_url, prefix, app=app) as hub,
        stream(hub.port, f"channel=open:a&token={token('ann')}") as ann,
        stream(hub.port, f"channel=open:a&token={token('bob')}") as bob,
    ):
        opened = (await ann.next("open")).json
        await bob.next("open")
        await until(lambda: len(here) == 2)
        assert here["ann"].id == opened["client"]
        await here["ann"].emit("said", "hi", b"\x01")
        assert (await ann.next("notice")).json == {
            "data": {"event": "said", "data": ["hi", {"$base64": "AQ=="}], "binary": 1}
        }
        await app.emit("heard", 1, to=here["ann"].id)
        assert (await ann.next("notice")).json == {"data": {"event": "heard", "data": 1}}
        await until(lambda: hub.fanout.subscriptions == 2)
        await app.emit("all", 2, to="open:a", skip=here["bob"])
        assert (await ann.next()).json["pub"]["data"] == 2
        for forbidden in (here["ann"].call("ask"), here["ann"].join("open:b")):
            with pytest.raises(CommandError) as caught:
                await forbidden
            assert caught.value.reply is errors.NOT_AVAILABLE
        await here["ann"].leave("open:b")
        await here["ann"].emit("still here")
        await ann.next("notice")
        await here["ann"].leave("open:a")
        assert (await ann.end())[-1].json["code"] == 3011
        await here["bob"].disconnect()
        *_, last = await bob.end()
        assert (last.type, last.json["code"]) == ("closed", 3503)
        for one in (ann, bob):
            one.writer.close()
        await until(lambda: not here)


@async_test
async def test_the_client_of_one_request_can_be_sent_nothing(valkey_url, prefix, caplog):
    """It has but its answer; the application can still refuse it by disconnecting it."""
    app, found = App(), []

    @app.on_publish()
    async def published(client, channel, data):
        if data == "disconnect":
            await client.disconnect()
        for action in (lambda: client.emit("a"), lambda: client.call("a"), lambda: client.join("open:b")):
            try:
                await action()
            except (RuntimeError, ConnectionError) as error:
                found.append(type(error))

    async with plane(valkey_url, prefix, app=app) as hub:
        assert (await publish(hub, "open:a")).status == 200
        assert found == [RuntimeError, ConnectionError, ConnectionError]
        answer = await publish(hub, "open:a", "disconnect")
        assert (answer.status, answer.code) == (403, 103)


@async_test
async def test_an_event_stream_stands_in_the_manifest_while_it_lasts(valkey_url, prefix):
    """From before its first byte, so that it is not forgotten if this worker is killed; polls do not."""
    app, here = keeper()
    app.on_subscribe()(moody().handler("subscribe", ""))
    async with plane(valkey_url, prefix, app=app) as hub:
        hub.services.gate.manifest = book = Book()
        await request(hub.port, "GET", "/poll?channel=open:a&wait=0")
        assert (await request(hub.port, "GET", "/sse?channel=open:refuse")).status == 403
        await publish(hub, "open:a")
        assert not book.here
        book.go.clear()
        opening = asyncio.create_task(whole_request(hub.url, sent("/sse?channel=open:a")))
        await until(lambda: book.here)
        assert not hub.reactor.connections and not here
        book.go.set()
        await until(lambda: here)
        hub.services.gate.send_away()
        _, _, body = await opening
        assert b'"code":3011' in body
        await until(lambda: not book.here and not here)
        book.go.clear()
        opening = asyncio.create_task(whole_request(hub.url, sent("/sse?channel=open:a")))
        await until(lambda: book.here)
        opening.cancel()
        await asyncio.wait([opening])
        await asyncio.sleep(0)
        book.go.set()
        await until(lambda: not book.here)
        assert not here
