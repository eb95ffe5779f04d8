"""Compression on the WebSocket transport: real sockets, a real Valkey, and clients that are not ours."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Offer

from hub import deflate, frames
from hub.connection import READ_BYTES, Connection
from hub.fairness import Rates
from hub.transports import websocket
from tests.plane import client, plane
from tests.support import async_test
from tests.transports.test_websocket import head, masked, raw

DEFLATE = {"deflate": True, "deflate_min_bytes": 200}
OFFER = "Sec-WebSocket-Extensions: "


def answered(head: bytes) -> str | None:
    """The extensions that the 101 names."""
    assert head.startswith(b"HTTP/1.1 101 ")
    lines = [line.removeprefix(OFFER) for line in head.decode().split("\r\n") if line.startswith(OFFER)]
    return lines[0] if lines else None


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        (["permessage-deflate; client_max_window_bits"], "permessage-deflate; client_max_window_bits=15"),
        (["x, permessage-deflate; server_max_window_bits=10"], "permessage-deflate; server_max_window_bits=10"),
        (["permessage-deflate; unknown", "permessage-deflate"], "permessage-deflate"),
        (["permessage-deflate; server_max_window_bits=16"], None),
        (["permessage-deflate; server_no_context_takeover=1", "x"], None),
        ([';;="' * 100], None),
        ([], None),
    ],
)
@async_test
async def test_offers_are_answered_alike_on_both_ways_in(valkey_url, prefix, offers, answer, fast):
    """In one header or several; what can't be met is passed over, and never an error."""
    request = head()[:-2] + "".join(f"{OFFER}{offer}\r\n" for offer in offers).encode() + b"\r\n"
    for settings, expected in ((DEFLATE, answer), ({}, None)):
        async with plane(valkey_url, prefix, client=settings, fast=fast) as hub:
            _, writer, found = await raw(hub.port, request)
            assert answered(found) == expected
            writer.close()


@async_test
async def test_a_publication_is_compressed_once_for_all_who_agreed_on_it(valkey_url, prefix, monkeypatch):
    """Whatever their offers; a short one, and those who did not agree, get it as it is; all read the same."""
    packed = []

    def counting(payload: bytes, level: int, window_bits: int) -> bytes:
        packed.append(window_bits)
        return compress(payload, level, window_bits)

    compress = deflate.compress
    monkeypatch.setattr(deflate, "compress", counting)
    offers = [Offer(True, True), Offer(False, False, 15, True), Offer(False, True)]
    async with contextlib.AsyncExitStack() as stack, plane(valkey_url, prefix, client=DEFLATE) as hub:
        options = [{"extensions": [offer], "compression": None} for offer in offers] + [{"compression": None}]
        readers = [await stack.enter_async_context(client(hub.url, **one)) for one in options]
        readers.append(await stack.enter_async_context(client(hub.url, extensions=[Offer(False, False, 9)])))
        for one in readers:
            await one.subscribe("open:a")
        for data in ("short", "long " * 100, "long " * 100):
            await readers[0].command(publish={"channel": "open:a", "data": data})
            for one in readers:
                assert (await one.push())["pub"]["data"] == data
        assert sorted(packed) == [9, 9, 12, 12]


@async_test
async def test_long_replies_are_compressed_too_and_short_ones_are_not(valkey_url, prefix):
    """From deflate_min_bytes on; what a client compresses is understood."""
    async with plane(valkey_url, prefix, client={"deflate": True, "deflate_min_bytes": 100}) as hub:
        request = head(Sec_WebSocket_Extensions="permessage-deflate; client_no_context_takeover")
        reader, writer, _ = await raw(hub.port, request)
        command = deflate.compress(b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:a"}}', 9, 12)
        sent = masked(frames.TEXT, command)
        writer.write(bytes([sent[0] | frames.RSV1]) + sent[1:])
        kinds = []
        for _ in range(2):
            first, length = await asyncio.wait_for(reader.readexactly(2), 5)
            await reader.readexactly(length)
            kinds.append(first)
        assert kinds == [frames.FIN | frames.TEXT | frames.RSV1, frames.FIN | frames.TEXT]
        writer.close()


@async_test
async def test_a_deflate_bomb_is_closed_as_too_big(valkey_url, prefix):
    """10 MB in 10 KB: 1009, and a client beside it goes on."""
    async with plane(valkey_url, prefix, client=DEFLATE) as hub, client(hub.url) as beside:
        reader, writer, _ = await raw(hub.port, head(Sec_WebSocket_Extensions="permessage-deflate"))
        sent = masked(frames.TEXT, deflate.compress(b" " * 10_000_000, 9, 12))
        writer.write(bytes([sent[0] | frames.RSV1]) + sent[1:])
        words = frames.encode_close(1009, "message too big")
        assert await asyncio.wait_for(reader.readexactly(len(words)), 5) == words
        writer.close()
        await beside.subscribe("open:a")


@async_test
async def test_a_client_that_compresses_is_read_in_small_pieces(valkey_url, prefix, monkeypatch):
    """What it sends may become a thousand times as much; all of it is heard nevertheless, and others as before."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    receive = Connection.receive

    def watched(connection: Connection, data: bytes) -> None:
        sizes[connection.wire is not websocket.NATIVE].append(len(data))
        receive(connection, data)

    async with plane(valkey_url, prefix, client=DEFLATE) as hub:
        monkeypatch.setattr(Connection, "receive", watched)
        for compresses in (True, False):
            changes = {"Sec_WebSocket_Extensions": "permessage-deflate"} if compresses else {}
            reader, writer, _ = await raw(hub.port, head(**changes))
            packed = deflate.compress(b'{"id":1,"connect":{}}' + b" " * 60_000, 9, 15)
            sent = masked(frames.TEXT, packed if compresses else b'{"id":1,"connect":{}}')
            writer.write(bytes([sent[0] | frames.RSV1]) + sent[1:] if compresses else sent)
            first = masked(frames.TEXT, deflate.compress(b"{" + b" " * 60_000 + b"}", 9, 15) if compresses else b"{ }")
            pong = bytes([first[0] | frames.RSV1]) + first[1:] if compresses else first
            writer.write(pong * 500 + masked(frames.PING, b"end"))
            await asyncio.wait_for(reader.readuntil(b"\x8a\x03end"), 20)
            writer.close()
    assert max(sizes[True]) == websocket.DEFLATED_READ_BYTES < max(sizes[False]) <= READ_BYTES


def compressed(text: bytes) -> bytes:
    """A client's frame."""
    sent = masked(frames.TEXT, deflate.compress(text, 9, 15))
    return bytes([sent[0] | frames.RSV1]) + sent[1:]


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_few_bytes_that_become_many_are_left_unread_sooner(valkey_url, prefix, fast, monkeypatch):
    """By a clock that stands still nothing takes any time, and a read of three such messages is put off all the same:
    by its share, and in smaller pieces from then on. Everything is heard in the end.
    """
    message = b"{" + b" " * 65_000 + b"}"
    async with plane(valkey_url, prefix, client=DEFLATE, fast=fast) as hub:
        put_off: list[Connection] = []
        monkeypatch.setattr(hub.reactor.fairness, "_on_put_off", lambda: put_off.append(connection))
        reader, writer, _ = await raw(hub.port, head(Sec_WebSocket_Extensions="permessage-deflate"))
        writer.write(masked(frames.TEXT, b'{"id":1,"connect":{}}'))
        await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        [connection] = [one for one in hub.reactor.connections.values() if isinstance(one, Connection)]
        hub.reactor.fairness.retune(Rates.of_ms(50, 0, 200))
        stopped = hub.reactor.clock()
        monkeypatch.setattr(hub.reactor, "clock", lambda: stopped)
        monkeypatch.setattr(hub.reactor.fairness, "_clock", lambda: stopped + 10)
        assert connection.read_bytes == websocket.DEFLATED_READ_BYTES
        writer.write(compressed(message) * 12 + masked(frames.PING, b"end"))
        await asyncio.wait_for(reader.readuntil(b"\x8a\x03end"), 20)
        assert put_off and connection.read_bytes == websocket.BUSY_DEFLATED_READ_BYTES
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_what_comes_before_the_answer_is_not_inflated_in_one_go(valkey_url, prefix, fast, monkeypatch):
    """A client that offers compression may pipeline its first commands; what is behind a small piece of that waits for
    its turn on the fast way in, and on the other one its offer is passed over.
    """
    pieces: list[int] = []
    receive = Connection.receive

    def watched(connection: Connection, data: bytes) -> None:
        pieces.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(Connection, "receive", watched)
    commands = b"".join(
        masked(frames.TEXT, b'{"id":%d,"rpc":{"method":"hub.time"}}' % number) for number in range(2, 60)
    )
    request = head(Sec_WebSocket_Extensions="permessage-deflate") + masked(frames.TEXT, b'{"id":1,"connect":{}}')
    async with plane(valkey_url, prefix, client=DEFLATE | {"deflate_min_bytes": 10_000}, fast=fast) as hub:
        reader, writer, found = await raw(hub.port, request)
        assert answered(found) == "permessage-deflate", "a short piece"
        await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        writer.close()
        pieces.clear()
        reader, writer, found = await raw(hub.port, request + commands)
        assert answered(found) == ("permessage-deflate" if fast else None)
        await asyncio.wait_for(reader.readuntil(b'"id":59'), 5)
        assert (max(pieces) <= websocket.DEFLATED_READ_BYTES) == fast
        writer.close()
