"""HTTP streams: real sockets, a real Valkey, and the same sessions, limits and ends as over WebSocket."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from hub import auth
from hub.errors import CLOSE_SHUTDOWN
from hub.message import Publication
from hub.transports.http_stream import EVENTS, LINES, flat
from tests.emulated import WIRES, StreamClient, http, opening, request, stream_client
from tests.nodes import until
from tests.plane import SECRET, client, plane
from tests.support import async_test
from tests.transports.test_websocket_market import publish

CONNECT = b'{"id":1,"connect":{}}'
EACH_WIRE = pytest.mark.parametrize("wire", WIRES)


@EACH_WIRE
@async_test
async def test_a_stream_carries_replies_and_pushes(valkey_url, prefix, wire):
    """Commands go by requests of their own, everything else comes in the stream; other wires take part."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url, wire) as one, client(hub.url) as two:
        await one.subscribe("open:a")
        await two.subscribe("open:a")
        assert await one.command(publish={"channel": "open:a", "data": {"text": "a\r\nb"}}) == {"id": 3, "publish": {}}
        for reader in (one, two):
            push = await reader.push()
            assert push["channel"] == "open:a"
            assert push["pub"]["data"] == {"text": "a\r\nb"}


@EACH_WIRE
@async_test
async def test_a_stream_watches_a_list(valkey_url, prefix, wire):
    """By names and patterns, with options, changed live; as over WebSocket."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url, wire) as one:
        await publish(hub, "ACME", 1, namespace="fx")
        data = {"symbols": ["AC*", "BOLT"], "fields": ["price"], "marks": True}
        reply = await one.subscribe("fx:$watch", data=data)
        assert [pub["tags"]["channel"] for pub in reply["publications"]] == ["fx:ACME"]
        for symbol in ("BOLT", "COLT", "ACNE"):
            await publish(hub, symbol, 2, namespace="fx")
        for symbol in ("BOLT", "ACNE"):
            pub = (await one.push())["pub"]
            assert (pub["data"], pub["tags"]["channel"]) == ({"price": 2}, f"fx:{symbol}")
        call = {"method": "hub.watch", "data": {"channel": "fx:$watch", "remove": ["AC*"]}}
        assert (await one.command(rpc=call))["rpc"] == {"data": {"symbols": 1}}


@async_test
async def test_all_streams_of_one_wire_share_their_bytes(valkey_url, prefix):
    """A publication is encoded once for each wire form, however many read it; they stand in one group."""
    async with plane(valkey_url, prefix) as hub:
        made = [StreamClient(hub.http_url, "lines") for _ in range(5)]
        for one in made:
            await one.connect()
            await one.subscribe("open:a")
        await until(lambda: not hub.fanout.busy)
        (audience,) = hub.fanout.lines.by_channel["open:a"].audiences.values()
        (group,) = audience.groups
        assert audience.wire is LINES and len(group.fds) == 5
        hub.fanout.deliver([Publication("open:a", b'{"data":1}')])
        for one in made:
            assert await one.push() == {"channel": "open:a", "pub": {"data": 1}}
            one.close()
        await until(lambda: not hub.reactor.connections)
        assert len(hub.sessions) == 0 and hub.fanout.lines.counts() == {}


@pytest.mark.parametrize("form", [LINES, EVENTS])
def test_no_body_can_break_out_of_its_message(form):
    """CR, LF and CRLF between JSON's tokens, as another program may have put them into Redis, become blanks."""
    body = b'{"data":\n[1,\r\n2],\r"tags":{}}'
    frame = form.encode_publication("a", body)
    end = b"\n\n" if form is EVENTS else b"\n"
    line = frame.removeprefix(b"data: ").removesuffix(end)
    assert b"\n" not in line and b"\r" not in line
    assert orjson.loads(line)["push"]["pub"] == orjson.loads(body)
    assert flat(b"{}") == b"{}"


@EACH_WIRE
@async_test
async def test_the_head_keeps_caches_and_proxies_out(valkey_url, prefix, wire):
    """Of its own type, not kept, not compressed, not gathered, and ended by the connection's end."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url, wire) as one:
        expected = "application/json" if wire == "lines" else "text/event-stream"
        assert one.status == 200 and one.headers["content-type"] == expected
        assert one.headers["cache-control"] == "no-store, no-transform"
        assert one.headers["x-accel-buffering"] == "no"
        assert one.headers["connection"] == "close"
        assert not {"transfer-encoding", "content-length"} & set(one.headers)


@async_test
async def test_a_proxy_that_speaks_http_1_0_gets_the_same_stream(valkey_url, prefix):
    """As nginx does unless it is told otherwise: nothing in the answer that came with 1.1."""
    async with plane(valkey_url, prefix) as hub:
        one = StreamClient(hub.http_url, "lines")
        one.reader, one.writer = await asyncio.open_connection("127.0.0.1", hub.port)
        one.writer.write(opening("lines", CONNECT).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await one.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert (await one.message())["connect"]["pong"] is True
        one.close()


@EACH_WIRE
@async_test
async def test_a_good_token_names_the_user_and_a_bad_one_is_told_in_the_stream(valkey_url, prefix, wire):
    """3500, upon which an SDK gives up; an HTTP status would only make it try the next wire."""
    async with plane(valkey_url, prefix) as hub:
        async with stream_client(hub.http_url, wire, auth.make("ann", SECRET, 60, time.time())) as one:
            await one.subscribe("users:a")
            await one.command(publish={"channel": "users:a", "data": 1})
            assert (await one.push())["pub"]["info"]["user"] == "ann"
        two = StreamClient(hub.http_url, wire)
        await two.open(b'{"id":1,"connect":{"token":"x.y.z"}}')
        assert two.status == 200
        assert await two.ending() == {"code": 3500, "reason": "invalid token"}
        two.close()


BAD = [b"", b"{", b"[]", b"{}", b'{"id":1,"subscribe":{"channel":"open:a"}}', b'{"id":1,"connect":[]}', b"\n", b"\xff"]


@pytest.mark.parametrize("commands", BAD)
@async_test
async def test_what_does_not_connect_is_400_before_the_stream_begins(valkey_url, prefix, commands):
    """And never repeats what the client sent."""
    async with plane(valkey_url, prefix) as hub:
        for path in ("/connection/http_stream", "/connection/sse"):
            kind = {"Content_Type": "application/json", "Content_Length": str(len(commands))}
            status, _, body = await request(hub.http_url, http("POST", path, commands, **kind))
            assert status == 400 and b"connect" in body
        if commands != b"\xff":
            status, _, _ = await request(hub.http_url, opening("events by GET", commands))
            assert status == 400
        assert (await request(hub.http_url, http("GET", "/connection/sse")))[0] == 400
        assert len(hub.sessions) == 0


@async_test
async def test_other_requests_have_their_status(valkey_url, prefix):
    """405 for other methods, 413 for too many commands, 415 for a type that a foreign page could send."""
    async with plane(valkey_url, prefix, client={"message_bytes": 128}) as hub:
        for method, path in (("GET", "/connection/http_stream"), ("PUT", "/connection/sse"), ("GET", "/emulation")):
            status, headers, _ = await request(hub.http_url, http(method, path))
            assert status == 405 and "POST" in headers["allow"]
        long = b'{"id":1,"connect":{"name":"%b"}}' % (b"x" * 128)
        for wire in WIRES:
            assert (await request(hub.http_url, opening(wire, long)))[0] == 413
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream", None):
            text = opening("lines", CONNECT, Content_Type=kind)
            assert (await request(hub.http_url, text))[0] == 415
        assert len(hub.sessions) == 0


@EACH_WIRE
@async_test
async def test_pages_of_foreign_origins_are_refused_and_allowed_ones_told_so(valkey_url, prefix, wire):
    """403 as over WebSocket; an allowed page may read the answer."""
    async with plane(valkey_url, prefix, origins=("https://app.example",)) as hub:
        for bad in ("https://evil.example", "null"):
            status, headers, _ = await request(hub.http_url, opening(wire, CONNECT, Origin=bad))
            assert status == 403 and "access-control-allow-origin" not in headers
        one = StreamClient(hub.http_url, wire)
        await one.connect(Origin="https://app.example")
        assert one.headers["access-control-allow-origin"] == "https://app.example"
        assert one.headers["vary"] == "Origin"
        one.close()


@EACH_WIRE
@async_test
async def test_a_draining_or_storming_worker_answers_503(valkey_url, prefix, wire):
    """With Retry-After, and counted together with WebSocket handshakes."""
    async with plane(valkey_url, prefix, handshakes_per_s=1) as hub:
        async with client(hub.url):
            pass
        status, headers, _ = await request(hub.http_url, opening(wire, CONNECT))
        assert (status, headers["retry-after"]) == (503, "1")


@EACH_WIRE
@async_test
async def test_a_closed_stream_says_why_and_ends(valkey_url, prefix, wire):
    """3001 as the last message, then the end of the answer; the session is gone."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url, wire) as one:
        await one.subscribe("open:a")
        (connection,) = [each for each in hub.reactor.connections.values() if hasattr(each, "hear")]
        connection.close(CLOSE_SHUTDOWN)
        assert await one.ending() == {"code": 3001, "reason": "shutdown"}
        one.close()
        await until(lambda: not len(hub.sessions))
        assert hub.fanout.lines.counts() == {}
        assert await one.send("{}") == 404


@EACH_WIRE
@async_test
async def test_a_client_that_goes_is_gone(valkey_url, prefix, wire):
    """Its end of the connection ends everything, whatever it pipelined before."""
    async with plane(valkey_url, prefix) as hub, stream_client(hub.http_url, wire) as one:
        await one.subscribe("open:a")
        one.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await one.command(rpc={"method": "hub.time"})
        one.close()
        await until(lambda: not hub.reactor.connections)
        assert len(hub.sessions) == 0 and hub.fanout.lines.counts() == {}


@async_test
async def test_pings_are_answered_by_requests_and_silence_ends_the_stream(valkey_url, prefix):
    """A pong is `{}` to /emulation; without one: 3012."""
    options = {"ping_interval_s": 1.2, "pong_timeout_s": 1.0, "connect_timeout_s": 1.0}
    async with (
        plane(valkey_url, prefix, client=options, jitter=lambda: 0.0) as hub,
        stream_client(hub.http_url, "events") as one,
        stream_client(hub.http_url) as two,
    ):
        await one.first(lambda message: message == {})
        assert await one.send("{}") == 204
        await two.first(lambda message: message == {})
        assert await two.ending() == {"code": 3012, "reason": "no pong"}
        assert await one.command(rpc={"method": "hub.time"})


@async_test
async def test_a_reader_that_does_not_read_is_closed_and_holds_nobody_up(valkey_url, prefix):
    """Over outbox_bytes it is slow: 3008, as over WebSocket."""
    limits = {"outbox_bytes": 100_000, "outbox_conflate_bytes": 100_000, "outbox_drop_bytes": 100_000}
    async with (
        plane(valkey_url, prefix, client=limits) as hub,
        stream_client(hub.http_url) as slow,
        stream_client(hub.http_url, "events") as quick,
    ):
        for one in (slow, quick):
            await one.subscribe("chat:a")
        slow.writer.transport.pause_reading()
        body = orjson.dumps({"data": "x" * 20_000})
        got = 0
        while hub.reactor.backlog.slow == 0 and got < 1000:
            hub.fanout.deliver([Publication("chat:a", body)])
            assert (await quick.push())["channel"] == "chat:a"
            got += 1
        assert hub.reactor.backlog.slow == 1
        await asyncio.sleep(0)


@async_test
async def test_a_lost_stream_is_recovered_by_another(valkey_url, prefix):
    """Positions are the same on every wire: what was missed comes with the reply to subscribe."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as writer:
        async with stream_client(hub.http_url) as one:
            joined = await one.subscribe("chat:a")
            await writer.command(publish={"channel": "chat:a", "data": 1})
            assert (await one.push())["pub"]["offset"] == 1
        await writer.command(publish={"channel": "chat:a", "data": 2})
        async with stream_client(hub.http_url, "events by GET") as two:
            since = {"recover": True, "epoch": joined["epoch"], "offset": 1}
            again = await two.subscribe("chat:a", **since)
            assert again["recovered"] is True
            assert [found["data"] for found in again["publications"]] == [2]
