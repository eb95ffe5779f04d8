"""Compression on the WebSocket transport: real sockets, a real Valkey, and clients that are not ours."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Offer

from hub import deflate, frames
from hub.connection import READ_BYTES, Connection
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
