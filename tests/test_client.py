"""Client: publishing and following channels, against a server that does what a hub does only at bad times."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from tornado import netutil, web
from tornado.httpserver import HTTPServer
from tornado.websocket import WebSocketHandler

from hub import client
from hub.client import Interrupted, Tail
from hub.errors import CommandError, HubError
from hub.urls import Endpoint

from .support import FakeClock, async_test

# The server API


class Api(web.RequestHandler):
    """Answers with what the test wants, and keeps what came."""

    answer: tuple[int, Any] = (200, {"result": {}})
    requests: list[tuple[str, str | None, Any]]

    def post(self) -> None:
        self.requests.append(
            (self.request.path, self.request.headers.get("X-API-Key"), orjson.loads(self.request.body))
        )
        status, body = self.answer
        self.set_status(status)
        if status == 302:
            self.set_header("Location", "/elsewhere")
        self.finish(orjson.dumps(body) if isinstance(body, dict) else body)


@asynccontextmanager
async def serving(pattern: str, handler: type[web.RequestHandler], path: str = "") -> AsyncIterator[str]:
    """A server on loopback, or on the Unix socket `path`; gives HOST:PORT."""
    server = HTTPServer(web.Application([(pattern, handler)], log_function=lambda _: None))
    sockets = [netutil.bind_unix_socket(path)] if path else netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield path or f"127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.fixture
def api() -> type[Api]:
    return type("ThisApi", (Api,), {"requests": []})


@async_test
async def test_publish_sends_key_channel_and_data_and_returns_the_reply(api: type[Api]) -> None:
    """One POST to URL/publish, in the shape of Centrifugo's HTTP API."""
    async with serving("/.*", api) as where:
        reply = await client.publish(Endpoint(f"http://{where}/api"), "k", "chat:a", {"x": [1, None]})
    assert reply == {"result": {}}
    assert api.requests == [("/api/publish", "k", {"channel": "chat:a", "data": {"x": [1, None]}})]


@async_test
async def test_publish_reaches_a_unix_listener(api: type[Api]) -> None:
    """The URL's host does not matter then."""
    with tempfile.TemporaryDirectory(prefix="hub-t-") as directory:
        async with serving("/.*", api, f"{directory}/a.sock") as path:
            assert await client.publish(Endpoint("http://localhost/api", path), "k", "a", 1) == {"result": {}}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((401, {"error": {"code": 101, "message": "unauthorized"}}), r"refuses the key \(HTTP 401\)"),
        ((404, "no such address\n"), "answers HTTP 404 and no reply of the server API"),
        ((302, ""), "answers HTTP 302 and no reply of the server API"),
        ((200, "<html>"), "answers HTTP 200 and no reply of the server API"),
        ((200, {"something": "else"}), "answers HTTP 200 and no reply of the server API"),
    ],
)
@async_test
async def test_an_answer_that_is_no_reply_is_told_with_its_status(
    api: type[Api], answer: tuple[int, Any], expected: str
) -> None:
    """A wrong key, a wrong URL, a redirect: one line each, and nothing is sent a second time."""
    api.answer = answer
    async with serving("/.*", api) as where:
        with pytest.raises(HubError, match=expected):
            await client.publish(Endpoint(f"http://{where}/api"), "k", "a", 1)
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [200, 503])
@async_test
async def test_an_error_of_the_api_keeps_its_code_and_text(api: type[Api], status: int) -> None:
    """Logical errors come with 200, temporary ones with 503."""
    api.answer = (status, {"error": {"code": 102, "message": "unknown channel"}})
    async with serving("/.*", api) as where:
        with pytest.raises(CommandError, match=r"^unknown channel$") as caught:
            await client.publish(Endpoint(f"http://{where}/api"), "k", "a", 1)
    assert caught.value.reply.code == 102


@async_test
async def test_a_hub_that_is_not_there_is_told_with_its_url(api: type[Api]) -> None:
    """Connection refused, and a Unix socket that does not exist."""
    async with serving("/.*", api) as where:
        pass
    with pytest.raises(HubError, match=f"^cannot reach the hub at http://{where}/api: "):
        await client.publish(Endpoint(f"http://{where}/api"), "k", "a", 1)
    with pytest.raises(HubError, match=r"^cannot reach the hub at unix:/nowhere/a\.sock: No such file"):
        await client.publish(Endpoint("http://localhost/api", "/nowhere/a.sock"), "k", "a", 1)


# The native protocol


class Live(WebSocketHandler):
    """A scripted hub: answers commands like a hub, but for what the test's script wants of this connection."""

    connections: list[Live]
    script: Callable[[Live], Awaitable[None]]
    """Awaited once everything is subscribed."""
    on_pong: Callable[[Live], Awaitable[None]]
    refused: dict[str, dict[str, Any]]
    """Errors by channel, each used up by one subscribe; 'connect' for the connect command."""
    pings: list[float]
    """Ping intervals that the next connections promise, in place of 25 s."""
    status: list[int]
    """HTTP statuses of the next handshakes, in place of an upgrade."""

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.status:
            self.set_status(self.status.pop(0))
            self.finish()
        else:
            await super().get(*args, **kwargs)

    def open(self, *args: str, **kwargs: str) -> None:
        self.commands: list[dict[str, Any]] = []
        self.connections.append(self)

    async def on_message(self, message: str | bytes) -> None:
        found = [orjson.loads(line) for line in message.splitlines()]
        if found == [{}]:
            return await type(self).on_pong(self)
        self.commands += found
        await self.write_message("\n".join(orjson.dumps(self.reply_to(each)).decode() for each in found))
        if "subscribe" in found[0] and sum("subscribe" in each for each in self.commands) == len(found):
            await type(self).script(self)

    def reply_to(self, command: dict[str, Any]) -> dict[str, Any]:
        name = "connect" if "connect" in command else command["subscribe"]["channel"]
        if error := self.refused.pop(name, None):
            return {"id": command["id"], "error": error}
        if name == "connect":
            return {"id": command["id"], "connect": {"client": "c", "ping": self.pings.pop() if self.pings else 25}}
        return {"id": command["id"], "subscribe": {}}

    async def publish(self, *data: Any, channel: str = "a") -> None:
        pushes = [{"push": {"channel": channel, "pub": {"data": each}}} for each in data]
        await self.write_message("\n".join(orjson.dumps(push).decode() for push in pushes))


@pytest.fixture
def live() -> type[Live]:
    return type("ThisHub", (Live,), {"connections": [], "refused": {}, "pings": [], "status": []})


class Followed:
    """A tail of the test's, with what it got: messages, breaks, pauses. It ends with the data 'end'."""

    def __init__(self, where: str, channels: list[str], token: Callable[[], str] = str, unix_path: str = "") -> None:
        self.messages: list[tuple[str, Any]] = []
        self.breaks: list[str] = []
        self.pauses: list[float] = []
        self.clock = FakeClock()
        self.tail = Tail(
            Endpoint(f"ws://{where}/connection/websocket", unix_path),
            channels,
            token,
            self.on_message,
            lambda reason, _: self.breaks.append(reason),
            jitter=lambda: 1.0,
            clock=self.clock,
            sleep=self.sleep,
        )

    def on_message(self, channel: str, publication: dict[str, Any]) -> bool:
        self.messages.append((channel, publication["data"]))
        return bool(publication["data"] != "end")

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def follow(live: type[Live], *channels: str, token: Callable[[], str] = str) -> Followed:
    """Follow until the end; returns what came."""
    async with serving("/.*", live) as where:
        followed = Followed(where, list(channels) or ["a"], token)
        await followed.tail.run()
        return followed


def scripts(*each: Callable[[Live], Awaitable[None]]) -> Callable[[Live], Awaitable[None]]:
    """One script for each connection in turn."""
    waiting = iter(each)

    async def script(hub: Live) -> None:
        await next(waiting)(hub)

    return script


async def end(hub: Live) -> None:
    await hub.publish("end")


def closing(code: int, reason: str) -> Callable[[Live], Awaitable[None]]:
    async def script(hub: Live) -> None:
        hub.close(code, reason)

    return script


@async_test
async def test_the_publications_of_all_channels_come_in_order_until_enough(live: type[Live]) -> None:
    """Several pushes in one message are several messages, whatever line breaks they hold; none comes after the end."""

    async def script(hub: Live) -> None:
        await hub.publish(1, "\u2028\x85\x1c")
        await hub.publish(3, "end", 5, channel="b")

    live.script = script
    followed = await follow(live, "a", "b", token=lambda: "t")
    assert followed.messages == [("a", 1), ("a", "\u2028\x85\x1c"), ("b", 3), ("b", "end")]
    assert live.connections[0].commands == [
        {"id": 1, "connect": {"token": "t"}},
        {"id": 2, "subscribe": {"channel": "a"}},
        {"id": 3, "subscribe": {"channel": "b"}},
    ]


@async_test
async def test_a_tail_reaches_a_unix_listener(live: type[Live]) -> None:
    """The same conversation over a Unix socket."""
    live.script = end
    with tempfile.TemporaryDirectory(prefix="hub-t-") as directory:
        async with serving("/.*", live, f"{directory}/a.sock") as path:
            await Followed("localhost", ["a"], unix_path=path).tail.run()


@async_test
async def test_a_ping_is_answered(live: type[Live]) -> None:
    """`{}` is answered with `{}`."""

    async def script(hub: Live) -> None:
        await hub.write_message("{}")

    live.script = script
    live.on_pong = end
    await follow(live)


@async_test
async def test_after_a_reconnectable_close_it_comes_back_with_a_fresh_token(live: type[Live]) -> None:
    """A drain (3001) and a cut connection are breaks, told with their reason; the channels are subscribed again."""

    async def cut(hub: Live) -> None:
        hub.ws_connection.stream.close()  # type: ignore[union-attr]

    live.script = scripts(closing(3001, "shutdown"), cut, end)
    tokens = iter("xyz")
    followed = await follow(live, token=lambda: next(tokens))
    assert followed.breaks == ["closed with 3001: shutdown", "closed with 1006: connection lost"]
    assert [hub.commands[0]["connect"]["token"] for hub in live.connections] == ["x", "y", "z"]
    assert followed.messages == [("a", "end")]


@async_test
async def test_the_backoff_doubles_to_its_cap_and_begins_anew_after_a_long_connection(live: type[Live]) -> None:
    """0.5 s to 20 s with the jitter at its most; 30 s of connection forget it."""

    async def script(hub: Live) -> None:
        if len(live.connections) == 10:
            return await end(hub)
        if len(live.connections) == 8:
            followed.clock.advance(30)
        hub.close(3001, "shutdown")

    live.script = script
    async with serving("/.*", live) as where:
        followed = Followed(where, ["a"])
        await followed.tail.run()
    assert followed.pauses == [0.5, 1, 2, 4, 8, 16, 20, 0.5, 1]


@async_test
async def test_a_final_close_ends_it_with_the_codes_text(live: type[Live]) -> None:
    """From 3500 on nobody comes back."""
    live.script = closing(3503, "force disconnect")
    with pytest.raises(HubError, match=r"^closed with 3503: force disconnect$") as caught:
        await follow(live)
    assert not isinstance(caught.value, Interrupted)
    assert len(live.connections) == 1


@pytest.mark.parametrize(("refused", "what"), [("connect", "connect"), ("b", "subscribe to b")])
@async_test
async def test_a_refused_command_ends_it_unless_the_refusal_is_temporary(
    live: type[Live], refused: str, what: str
) -> None:
    """A permanent error is raised with its code; a temporary one is a break, and the next try succeeds."""
    live.script = end
    live.refused = {refused: {"code": 103, "message": "permission denied"}}
    with pytest.raises(CommandError, match=f"^{what}: permission denied$") as caught:
        await follow(live, "b", "a")
    assert caught.value.reply.code == 103
    live.refused = {refused: {"code": 100, "message": "internal server error", "temporary": True}}
    followed = await follow(live, "b", "a")
    assert followed.breaks == [f"{what}: error 100: internal server error"]


@async_test
async def test_an_unsubscribe_from_2500_on_is_answered_by_a_new_subscribe(live: type[Live]) -> None:
    """Below 2500 the subscription is over for good."""

    def unsubscribing(code: int) -> Callable[[Live], Awaitable[None]]:
        async def script(hub: Live) -> None:
            push = {"push": {"channel": "b", "unsubscribe": {"code": code, "reason": "why"}}}
            await hub.write_message(orjson.dumps(push))
            await hub.publish("end")

        return script

    live.script = unsubscribing(2500)
    await follow(live, "a", "b")
    live.script = unsubscribing(2000)
    with pytest.raises(HubError, match=r"^unsubscribed from b with 2000: why$"):
        await follow(live, "a", "b")


@async_test
async def test_silence_beyond_the_promised_ping_is_a_break(live: type[Live], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that stops pinging is taken for dead, though TCP says nothing."""
    monkeypatch.setattr(client, "PING_SLACK_S", 0.2)
    live.pings = [0.05]

    async def nothing(hub: Live) -> None:
        pass

    live.script = scripts(nothing, end)
    followed = await follow(live)
    assert followed.breaks == ["nothing came for 0.25 s"]


@async_test
async def test_a_first_try_that_reaches_nobody_ends_it(live: type[Live]) -> None:
    """A wrong URL is told at once, as is a server that refuses the handshake."""
    async with serving("/.*", live) as where:
        pass
    with pytest.raises(HubError, match=f"^cannot reach the hub at ws://{where}/connection/websocket: "):
        await Followed(where, ["a"]).tail.run()
    for status in (403, 404, 503):
        live.status.append(status)
        with pytest.raises(HubError, match=f"answers HTTP {status}"):
            await follow(live)


@async_test
async def test_a_hub_that_restarts_is_waited_for(live: type[Live]) -> None:
    """Once reached, a 503 is a break like any other."""

    async def restart(hub: Live) -> None:
        hub.status.append(503)
        hub.close(3001, "shutdown")

    live.script = scripts(restart, end)
    followed = await follow(live)
    assert [reason.rpartition("answers ")[2] for reason in followed.breaks][1:] == ["HTTP 503: Service Unavailable"]


@async_test
async def test_a_server_that_speaks_something_else_ends_it(live: type[Live]) -> None:
    """An echo server's or a chat's lines are no replies, and trying again would not help."""

    async def script(hub: Live) -> None:
        await hub.write_message("welcome!")

    live.script = script
    with pytest.raises(HubError, match="does not speak the native protocol") as caught:
        await follow(live)
    assert not isinstance(caught.value, Interrupted)
