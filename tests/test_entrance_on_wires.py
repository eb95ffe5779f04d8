"""The same on every wire: a good token, cookie or ticket lets its user in, a bad one is 401 before anything is built.

One row for each wire and way of showing; real sockets, and a log in which none of it may stand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import orjson
import pytest

from hub import auth
from hub.app import App
from hub.auth import Authenticator
from hub.certificates import Certificates
from hub.entrance import TOO_OFTEN, Entrance, Visitor
from hub.quotas import Quotas
from hub.revocation import USER, Entry

from .nodes import until
from .pki import Authority
from .plane import SECRET, Plane, plane
from .support import async_test

ORIGIN = "https://app.example"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
JSON = {"Content-Type": "application/json"}
CONNECT = b'{"id":1,"connect":{}}'
EIO = "/socket.io/?EIO=4&transport="
RAW = "/engine.io/?EIO=4&transport="
WIRES: dict[str, tuple[str, str, dict[str, str], bytes, int]] = {
    "websocket": ("GET", "/connection/websocket", UPGRADE, b"", 101),
    # A field that the fast way leaves to Tornado: an empty value.
    "websocket by Tornado": ("GET", "/connection/websocket", {**UPGRADE, "X-Empty": ""}, b"", 101),
    "http_stream": ("POST", "/connection/http_stream", JSON, CONNECT, 200),
    "emulated sse": ("POST", "/connection/sse", JSON, CONNECT, 200),
    "emulated sse by GET": ("GET", f"/connection/sse?cf_connect={quote(CONNECT)}", {}, b"", 200),
    "emulation": ("POST", "/emulation", JSON, b"SESSION", 204),
    "sse": ("GET", "/sse?channel=users:a", {"Accept": "text/event-stream"}, b"", 200),
    "poll": ("GET", "/poll?channel=users:a&wait=0", {}, b"", 204),
    "publish": ("POST", "/publish", JSON, b'{"channel":"users:a","data":1}', 200),
    "socket.io polling": ("GET", f"{EIO}polling", {}, b"", 200),
    "socket.io websocket": ("GET", f"{EIO}websocket", UPGRADE, b"", 101),
    "engine.io polling": ("GET", f"{RAW}polling", {}, b"", 200),
    "engine.io websocket": ("GET", f"{RAW}websocket", UPGRADE, b"", 101),
}
WAYS = ("header", "query", "cookie", "ticket")
EACH_WIRE = pytest.mark.parametrize("wire", WIRES)
EACH_WAY = pytest.mark.parametrize("way", WAYS)


def app() -> App:
    """With an address of bare messages, and nothing to say to anything else."""
    one = App()

    @one.on_message("/engine.io/")
    async def message(client: object, data: object) -> None:
        """Hears everything."""

    return one


@contextlib.asynccontextmanager
async def hub_for(wire: str, url: str, prefix: str, **options: object) -> AsyncIterator[Plane]:
    options.setdefault("app", app() if wire.startswith("engine.io") else None)
    async with plane(url, prefix, origins=(ORIGIN,), cookie="hub", **options) as hub:
        yield hub


class Answer:
    """Of one request on a connection of its own, which stays open until `close`."""

    status: int
    head: str

    @classmethod
    async def of(
        cls,
        hub: Plane,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        trust: ssl.SSLContext | None = None,
    ) -> Answer:
        one = cls()
        one.reader, one.writer = await asyncio.open_connection("127.0.0.1", hub.port, ssl=trust)
        fields = {"Host": "hub.example", **headers}
        if body:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        one.writer.write("\r\n".join(lines).encode() + body)
        one.head = (await asyncio.wait_for(one.reader.readuntil(b"\r\n\r\n"), 5)).decode()
        one.status = int(one.head.split(" ", 2)[1])
        return one

    def close(self) -> None:
        self.writer.close()


async def session_of(hub: Plane, user: str) -> tuple[bytes, Answer]:
    """A request to /emulation that belongs to a stream of this user's, and the stream."""
    token = auth.make(user, SECRET, 60, time.time())
    body = orjson.dumps({"id": 1, "connect": {"token": token}})
    stream = await Answer.of(hub, "POST", "/connection/http_stream", JSON, body)
    said = orjson.loads(await asyncio.wait_for(stream.reader.readline(), 5))["connect"]
    data = '{"id":2,"subscribe":{"channel":"open:a"}}'
    return orjson.dumps({"session": said["session"], "node": said["node"], "data": data}), stream


async def ask(hub: Plane, wire: str, way: str, text: str, trust: ssl.SSLContext | None = None, **extra: str) -> Answer:
    """One request that shows `text`; '' shows nothing. trust: it is made over TLS."""
    method, path, headers, body, _ = WIRES[wire]
    headers = {**headers, **extra}
    if way == "header" and text:
        headers["Authorization"] = f"Bearer {text}"
    elif way == "cookie" and text:
        headers |= {"Cookie": f"hub={text}", "Origin": ORIGIN}
    elif text:
        path += ("&" if "?" in path else "?") + f"{'ticket' if way == 'ticket' else 'token'}={quote(text)}"
    stream = None
    if body == b"SESSION":
        body, stream = await session_of(hub, "ann")
    answer = await Answer.of(hub, method, path, headers, body, trust)
    if stream is not None:
        stream.close()
    return answer


async def shown(hub: Plane, way: str, user: str = "ann", ttl_s: float = 60) -> str:
    """What is good there for this user."""
    if way == "ticket":
        return await hub.tickets.issue({"sub": user, "exp": time.time() + ttl_s})
    return auth.make(user, SECRET, ttl_s, time.time())


@EACH_WAY
@EACH_WIRE
@async_test
async def test_a_good_one_lets_its_user_in(wire, way, valkey_url, prefix, caplog):
    """And stands in no line of the log, at whatever level."""
    with caplog.at_level(logging.DEBUG):
        async with hub_for(wire, valkey_url, prefix) as hub:
            text = await shown(hub, way)
            answer = await ask(hub, wire, way, text)
            assert answer.status == WIRES[wire][4], answer.head
            if wire in KEEPS:
                (visitor,) = visitors(hub)
                assert visitor.user == "ann"
                # Kept only where each request of a session must show it.
                assert visitor.token == (text if wire.startswith(("socket.io", "engine.io")) else "")
            answer.close()
    assert text not in caplog.text and text.rpartition(".")[2] not in caplog.text


KEEPS = {wire for wire in WIRES if "." in wire or "socket" in wire} | {"http_stream", "emulated sse"}
"""Wires with sessions; on the others the answer itself says whether it is somebody: the namespace is for users."""


def visitors(hub: Plane) -> list[Visitor]:
    """Of the sessions on the plane; those who are somebody."""
    found = [getattr(one, "_session", one) for one in hub.reactor.connections.values()]
    known = [one.visitor for one in found if hasattr(one, "visitor")]
    return [one for one in known if one.claims is not None]


BAD: dict[str, Callable[[], str]] = {
    "rubbish": lambda: "x.y.z",
    "of another key": lambda: auth.make("ann", SECRET + "x", 60, time.time()),
    "ended": lambda: auth.make("ann", SECRET, -1, time.time()),
}


@pytest.mark.parametrize("kind", BAD)
@EACH_WAY
@EACH_WIRE
@async_test
async def test_a_bad_one_is_401(wire, way, kind, valkey_url, prefix, caplog):
    """Before the 101 or the stream: nothing is on the plane for it; and it says that a Bearer token is wanted."""
    with caplog.at_level(logging.DEBUG):
        async with hub_for(wire, valkey_url, prefix) as hub:
            text = BAD[kind]()
            answer = await ask(hub, wire, way, text)
            assert answer.status == 401, answer.head
            assert "\r\nwww-authenticate: bearer" in answer.head.lower()
            answer.close()
            await until(lambda: not hub.reactor.connections)
    assert text not in caplog.text


@EACH_WIRE
@async_test
async def test_a_ticket_opens_one_door_once(wire, valkey_url, prefix):
    """The second who shows it is refused, on whatever wire."""
    async with hub_for(wire, valkey_url, prefix) as hub:
        text = await shown(hub, "ticket")
        first = await ask(hub, wire, "ticket", text)
        assert first.status == WIRES[wire][4]
        second = await ask(hub, wire, "ticket", text)
        assert second.status == 401
        for one in (first, second):
            one.close()


@EACH_WIRE
@async_test
async def test_a_cookie_of_a_foreign_page_is_none(wire, valkey_url, prefix):
    """403 for the page; and without an Origin it is as if there were none (cross-site WebSocket hijacking)."""
    async with hub_for(wire, valkey_url, prefix) as hub:
        good = await shown(hub, "cookie")
        foreign = await ask(hub, wire, "none", "", Cookie=f"hub={good}", Origin="https://evil.example")
        # Engine.IO's own words for a WebSocket of a foreign page: it is refused like any other bad handshake.
        assert foreign.status == 403, foreign.head
        bare = await ask(hub, wire, "none", "", Cookie="hub=rubbish")
        alone = await ask(hub, wire, "none", "")
        assert bare.status == alone.status != 401
        assert visitors(hub) == []
        for one in (foreign, bare, alone):
            one.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_only_pages_of_the_list_may_send_their_cookies_along(fast, valkey_url, prefix):
    """As CORS has it: with credentials, and for one origin."""
    async with hub_for("poll", valkey_url, prefix, fast=fast) as hub:
        for wire in ("poll", "publish", "http_stream", "emulation", "socket.io polling"):
            answer = await ask(hub, wire, "cookie", await shown(hub, "cookie"))
            assert f"\r\nAccess-Control-Allow-Origin: {ORIGIN}" in answer.head
            assert "\r\nAccess-Control-Allow-Credentials: true" in answer.head
            answer.close()
    async with plane(valkey_url, prefix, origins=(ORIGIN,)) as hub:
        for wire in ("poll", "http_stream", "socket.io polling"):
            answer = await ask(hub, wire, "none", "", Origin=ORIGIN)
            assert "Credentials" not in answer.head
            answer.close()


@EACH_WAY
@EACH_WIRE
@async_test
async def test_tokens_of_an_application_are_its_own(wire, way, valkey_url, prefix):
    """Where the hub has no keys: nobody is refused for what it knows nothing about."""
    if wire == "emulation":
        return  # its sessions are made with a token in this file
    async with hub_for(wire, valkey_url, prefix, app=app(), authenticator=Authenticator("", time.time)) as hub:
        answer = await ask(hub, wire, way, "the-application's")
        assert answer.status != 401, answer.head
        assert visitors(hub) == []
        answer.close()


@pytest.mark.parametrize("wire", ["websocket", "websocket by Tornado", "poll", "http_stream", "socket.io polling"])
@async_test
async def test_who_can_t_be_judged_now_is_told_to_come_back(wire, valkey_url, prefix):
    """503 with Retry-After while keys are fetched: it is not the client's fault."""
    by = Authenticator("", time.time)
    by.expects_keys, by.missing = True, lambda kid: True
    token = auth.make("ann", SECRET, 60, time.time(), kid="new")
    async with hub_for(wire, valkey_url, prefix, authenticator=by) as hub:
        answer = await ask(hub, wire, "header", token)
        assert answer.status == 503 and "\r\nRetry-After: 1" in answer.head
        answer.close()


LONG_LIVED = [wire for wire in WIRES if wire in KEEPS or wire == "sse"]
TTL_S, GRACE_S = 1.2, 0.5
SAYS_CONNECT = {  # on the wires where a client is not in by its request alone; masked with zeros (RFC 6455 §5.3)
    "websocket": b"\x81\x95" + bytes(4) + CONNECT,
    "websocket by Tornado": b"\x81\x95" + bytes(4) + CONNECT,
    "socket.io websocket": b"\x81\x82" + bytes(4) + b"40",
}


@pytest.mark.parametrize("wire", LONG_LIVED)
@async_test
async def test_every_connection_ends_behind_the_grace(wire, valkey_url, prefix):
    """With 3005, so that its client comes back with another token, and not before."""
    by = Authenticator(SECRET, time.time, grace_s=GRACE_S)
    # Before its first deadline a native session is not asked how long it has.
    async with hub_for(wire, valkey_url, prefix, authenticator=by, client={"connect_timeout_s": 1.0}) as hub:
        ends_at = time.time() + TTL_S
        token = auth.make("ann", SECRET, 0, 0, exp=ends_at)
        answer = await ask(hub, wire, "query", token)
        assert answer.status == WIRES[wire][4]
        answer.writer.write(SAYS_CONNECT.get(wire, b""))
        if wire == "socket.io polling":
            sid = next(iter(hub.engine.sessions))
            path = f"{EIO}polling&sid={sid}&token={token}"
            (await Answer.of(hub, "POST", path, {}, b"40")).close()
        (one,) = hub.reactor.connections.values()
        await until(lambda: not one.open)
        assert one.closed_with.code == 3005 and time.time() >= ends_at + GRACE_S
        answer.close()


@async_test
async def test_a_poll_ends_with_its_token_and_the_next_is_401(valkey_url, prefix):
    """It waits no longer than the token has, and its grace."""
    by = Authenticator(SECRET, time.time, grace_s=0.2)
    async with hub_for("poll", valkey_url, prefix, authenticator=by) as hub:
        began = time.time()
        path = f"/poll?channel=users:a&wait=4&token={auth.make('ann', SECRET, 0, 0, exp=began + 0.5)}"
        for status in (204, 401):
            answer = await Answer.of(hub, "GET", path, {}, b"")
            assert answer.status == status
            answer.close()
        assert began + 0.7 <= time.time() < began + 4


@EACH_WIRE
@async_test
async def test_a_flood_costs_no_signatures(wire, valkey_url, prefix, monkeypatch):
    """Whoever may not come in is told so before anybody looks at its token."""
    judged = []
    monkeypatch.setattr(Entrance, "admit", lambda self, address: TOO_OFTEN)
    if wire == "emulation":  # its handshake was the stream's
        monkeypatch.setattr(Quotas, "request", lambda self, address, user, size: False)
    monkeypatch.setattr(Authenticator, "verify", lambda self, token: judged.append(token))
    method, path, headers, body, _ = WIRES[wire]
    async with hub_for(wire, valkey_url, prefix) as hub:
        answer = await Answer.of(hub, method, path, {**headers, "Authorization": "Bearer x.y.z"}, body)
        if wire == "sse":  # told in the stream, so that an EventSource comes back
            await asyncio.wait_for(answer.reader.readuntil(b'"code":3013'), 5)
        else:
            assert answer.status == 429, answer.head
        answer.close()
    assert judged == []


@EACH_WIRE
@async_test
async def test_a_blocked_user_is_turned_away_at_the_door(wire, valkey_url, prefix):
    """403, with a token that is good otherwise; also one that was remembered as good."""
    if wire == "emulation":
        return  # who is blocked has no session there
    async with hub_for(wire, valkey_url, prefix) as hub:
        text = await shown(hub, "header")
        before = await ask(hub, wire, "header", text)
        assert before.status == WIRES[wire][4]
        hub.revocations.learn(Entry(USER, "ann"))
        after = await ask(hub, wire, "header", text)
        assert after.status == 403, after.head
        for one in (before, after):
            one.close()


@pytest.mark.parametrize("fast", [True, False])
@EACH_WAY
@async_test
async def test_tokens_are_judged_behind_tls_too(way, fast, valkey_url, prefix, tmp_path):
    """By both ways in: a good one lets its user in, another is 401."""
    authority = Authority(tmp_path)
    (tmp_path / "pair").mkdir()
    certificates = Certificates([authority.issue().write(tmp_path / "pair")])
    async with hub_for("websocket", valkey_url, prefix, fast=fast, certificates=certificates) as hub:
        for text, status in ((await shown(hub, way), 101), ("x.y.z", 401)):
            answer = await ask(hub, "websocket", way, text, trust=authority.client())
            assert answer.status == status, answer.head
            assert [one.user for one in visitors(hub)] == (["ann"] if status == 101 else [])
            answer.close()
            await until(lambda: not hub.reactor.connections)
