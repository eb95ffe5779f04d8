"""Accepting: both ways in, newcomers that say nothing, full processes and too many handshakes at a time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
from collections import Counter

import pytest

from hub import acceptor as room
from hub import frames, handshake
from hub.acceptor import TORNADO_S
from hub.curb import RESETS
from hub.errors import CLOSE_SHUTDOWN
from hub.forwarded import Proxies
from hub.quotas import KNOCKS
from hub.reactor import SLICE_S
from hub.transports.websocket import WebSocketConnection
from tests.plane import client, plane
from tests.support import async_test
from tests.transports.test_websocket import head, masked, raw


async def until(condition: object) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_request_in_pieces_is_upgraded_all_the_same(valkey_url, prefix, fast):
    """The first piece is no whole head, so Tornado gets the connection, with every byte."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        request = head()
        for i in range(0, len(request), 40):
            writer.write(request[i : i + 40])
            await asyncio.sleep(0.002)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_other_addresses_are_served_on_the_same_listener(valkey_url, prefix, fast):
    """Tornado answers them, kept alive or not."""
    async with plane(valkey_url, prefix, fast=fast) as hub:
        _, writer, answer = await raw(hub.port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("request_line", "fields", "answer"),
    [
        ("/connection/websocket", {f"X-{number}": "y" for number in range(12)}, b"HTTP/1.1 431 "),
        ("/connection/websocket?" + "&".join("a" * 17), {}, b"HTTP/1.1 400 "),
        ("/connection/websocket", {"X": "y" * 1024}, b"HTTP/1.1 431 "),
        ("/connection/websocket?" + "&".join("a" * 16), {f"X-{number}": "y" for number in range(11)}, b"HTTP/1.1 101 "),
    ],
)
@async_test
async def test_a_head_beyond_its_bounds_is_refused_on_both_ways(valkey_url, prefix, fast, request_line, fields, answer):
    """What is read in place has the same settings; the last one has as much as it may have."""
    bounds = {"header_fields": 16, "query_fields": 16, "header_bytes": 1024}
    request = head().replace(b"/connection/websocket", request_line.encode(), 1)
    extra = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    async with plane(valkey_url, prefix, fast=fast, http=bounds) as hub:
        _, writer, found = await raw(hub.port, request[:-2] + extra + b"\r\n")
        assert found.startswith(answer), found
        writer.close()


@async_test
async def test_a_newcomer_that_says_nothing_is_closed_at_its_deadline(valkey_url, prefix):
    """And one that goes without a word leaves nothing behind."""
    async with plane(valkey_url, prefix) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        _, gone = await asyncio.open_connection("127.0.0.1", hub.port)
        await until(lambda: len(hub.reactor.connections) == 2)
        gone.close()
        await until(lambda: len(hub.reactor.connections) == 1)
        assert await asyncio.wait_for(reader.read(-1), 5) == b""
        assert not hub.reactor.connections
        writer.close()


@pytest.mark.parametrize("request_is_there", [True, False])
@async_test
async def test_who_has_asked_already_is_a_client_at_once(valkey_url, prefix, request_is_there):
    """The plane need not wait for a request that came before its connection was accepted, and waits for others."""
    async with plane(valkey_url, prefix) as hub:
        listener = hub.acceptor._listeners[0]
        asyncio.get_running_loop().remove_reader(listener.fileno())
        adopted = []
        adopt = hub.reactor.adopt
        hub.reactor.adopt = lambda one, *args, **options: (adopted.append(type(one)), adopt(one, *args, **options))
        with socket.create_connection(("127.0.0.1", hub.port), timeout=5) as sock:
            if request_is_there:
                sock.sendall(head())
            hub.acceptor._accept(listener)
            assert adopted == [WebSocketConnection if request_is_there else room.Newcomer]
            if not request_is_there:
                sock.sendall(head())
                await until(lambda: len(adopted) == 2)
            assert adopted[-1] is WebSocketConnection
            sock.setblocking(False)
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 4096), 5)
            assert answer.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("early", [b"", masked(frames.TEXT, b'{"id":1,"connect":{}}')])
@async_test
async def test_an_answer_that_finds_no_room_is_finished_later(valkey_url, prefix, monkeypatch, early):
    """The socket takes the first bytes of it only; the rest is written when there is room, before anything else."""
    async with plane(valkey_url, prefix) as hub:
        write, lengths = os.write, []

        def write_little(fd: int, data: bytes) -> int:
            if fd not in hub.reactor.connections or len(lengths) > 2:
                return write(fd, data)
            lengths.append(len(data))
            return write(fd, data[:20])

        monkeypatch.setattr(os, "write", write_little)
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(head() + early)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 101 ") and b"\r\nSec-WebSocket-Accept: " in answer
        assert lengths[1] == lengths[0] - 20
        writer.write(
            masked(frames.TEXT, b'{"id":1,"connect":{}}' if not early else b'{"id":2,"rpc":{"method":"hub.time"}}')
        )
        await asyncio.wait_for(reader.readuntil(b'"id":1,"connect":'), 5)
        writer.close()


@async_test
async def test_who_is_gone_before_its_answer_leaves_nothing(valkey_url, prefix):
    """It sent a request and reset its connection: what is written to it fails, and that is its end."""
    async with plane(valkey_url, prefix) as hub:
        listener = hub.acceptor._listeners[0]
        asyncio.get_running_loop().remove_reader(listener.fileno())
        sock = socket.create_connection(("127.0.0.1", hub.port), timeout=5)
        sock.sendall(head())
        peek = handshake.read_head

        def gone_meanwhile(data: bytes, bounds: handshake.Bounds) -> handshake.Head | None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            return peek(data, bounds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(handshake, "read_head", gone_meanwhile)
            hub.acceptor._accept(listener)
        await until(lambda: not hub.reactor.connections)
        assert hub.services.quotas.connections == 0


@async_test
async def test_a_newcomer_that_has_left_can_be_closed_again(valkey_url, prefix):
    """A drain goes through a list that it made earlier: who became a client or went meanwhile is not harmed by it."""
    async with plane(valkey_url, prefix) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        await until(lambda: hub.reactor.connections)
        [newcomer] = hub.reactor.connections.values()
        writer.write(head())
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        newcomer.close(CLOSE_SHUTDOWN)
        newcomer.abort()
        newcomer.on_timer(0.0)
        [connection] = hub.reactor.connections.values()
        assert connection.open
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_too_many_handshakes_in_a_second_are_answered_503(valkey_url, prefix, fast):
    """Retry-After says when to come back; those who are in stay in."""
    async with plane(valkey_url, prefix, fast=fast, handshakes_per_s=2) as hub, client(hub.url) as one:
        answers = []
        for _ in range(3):
            _, writer, answer = await raw(hub.port, head())
            answers.append(answer)
            writer.close()
        assert answers[-1].startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answers[-1]
        assert "rpc" in await one.command(rpc={"method": "hub.time"})


@pytest.mark.expects_log
@async_test
async def test_a_full_process_answers_503_and_does_not_spin(valkey_url, prefix, monkeypatch):
    """At the margin below the descriptor limit: 503 with Retry-After; the clients that are in go on."""
    used = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(room.resource, "getrlimit", lambda which: (used + 40 + room.DESCRIPTOR_MARGIN, 0))
    gc.collect()  # so that no garbage gives a descriptor back in between
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        with contextlib.ExitStack() as held:
            while True:
                sock = held.enter_context(socket.create_connection(("127.0.0.1", hub.port)))
                if sock.fileno() > hub.acceptor._most_fd:
                    break
            for _ in range(3):
                _, writer, answer = await raw(hub.port, head())
                assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 5\r\n" in answer
                writer.close()
        assert "rpc" in await one.command(rpc={"method": "hub.time"})


@pytest.mark.expects_log
@async_test
async def test_without_any_descriptor_the_reserve_makes_room_for_an_answer(valkey_url, prefix, monkeypatch):
    """accept() fails with EMFILE: one connection is taken on the reserve descriptor, answered and closed."""
    async with plane(valkey_url, prefix) as hub:
        calls = 0

        class Exhausted:
            """The listener, whose accept fails once as at the limit."""

            def __init__(self, listener: socket.socket) -> None:
                self.listener = listener

            def accept(self) -> tuple:
                nonlocal calls
                calls += 1
                if calls % 2:
                    raise OSError(room.errno.EMFILE, "Too many open files")
                return self.listener.accept()

        acceptor = hub.acceptor
        listener = acceptor._listeners[0]
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        loop.add_reader(listener.fileno(), acceptor._accept, Exhausted(listener))
        before = len(os.listdir("/proc/self/fd"))
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        assert (await asyncio.wait_for(reader.read(-1), 5)).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert acceptor.turned_away == 1


# Sockets of one address.


async def opened(port, data=b"", **options):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    writer.write(data)
    return reader, writer


REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LEFT = {
    "silent": b"",
    "half a head": b"GET / HTTP/1.1\r\n",
    "kept alive": REQUEST,
    "half a body": b"POST /publish HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    "a poll": b"GET /poll?channel=open:a&wait=30 HTTP/1.1\r\nHost: h\r\n\r\n",
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("said", LEFT.values(), ids=LEFT)
@async_test
async def test_an_address_has_so_many_sockets_without_a_client(valkey_url, prefix, fast, said):
    """Twice its connections; one more is answered 429 at once, and each that goes makes room."""
    async with plane(valkey_url, prefix, fast=fast, limits={"ip_connections": 1}) as hub:
        quotas = hub.services.quotas
        held = [await opened(hub.port, said) for _ in range(2)]
        await until(lambda: quotas._sockets == {"127.0.0.1": 2})
        reader, over = await opened(hub.port)  # without a word, which would make the end a reset
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 429 ") and b"\r\nRetry-After: 10\r\n" in answer
        assert quotas.refusals.counts["ip_sockets"] == 1
        for (_, writer), end in zip(held, (writer_abort, writer_close), strict=True):
            end(writer)
        await until(lambda: not quotas._sockets)
        over.close()


def writer_abort(writer):
    writer.transport.abort()


def writer_close(writer):
    writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_who_becomes_a_client_leaves_its_place_among_the_sockets(valkey_url, prefix, fast):
    """Then it is counted as a connection."""
    async with plane(valkey_url, prefix, fast=fast, limits={"ip_connections": 4}) as hub:
        quotas = hub.services.quotas
        ends = []
        for request in (head(), b"GET /sse?channel=open:a HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n"):
            reader, writer = await opened(hub.port, request)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            ends.append(writer)
        assert quotas._sockets == {} and quotas.by_ip() == {"127.0.0.1": 2}
        for writer in ends:
            writer.close()


@async_test
async def test_a_newcomer_at_its_deadline_leaves_its_place(valkey_url, prefix):
    async with plane(valkey_url, prefix, limits={"ip_connections": 1}) as hub:
        reader, writer = await opened(hub.port)
        await until(lambda: hub.services.quotas._sockets)
        assert await asyncio.wait_for(reader.read(), 5) == b"" and not hub.services.quotas._sockets
        writer.close()


# Behind a proxy that sends the PROXY protocol.

LINE = b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 443\r\n"
TRUSTED = Proxies(["127.0.0.0/8"])


def session_addresses(hub):
    return [one._session.visitor.address for one in hub.reactor.connections.values()]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("pause", [False, True], ids=["whole", "byte by byte"])
@async_test
async def test_a_proxy_says_whose_connection_it_is(valkey_url, prefix, fast, pause):
    """Before the first byte of HTTP, in one piece or in many; the request behind it is served as always."""
    async with plane(valkey_url, prefix, fast=fast, proxies=TRUSTED, proxied=True) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        pieces = [LINE[at : at + 1] for at in range(len(LINE))] if pause else [LINE]
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.001 if pause else 0)
        writer.write(head())
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        assert session_addresses(hub) == ["203.0.113.7"]
        writer.close()


@async_test
async def test_a_line_in_pieces_does_not_keep_the_loop_awake(valkey_url, prefix):
    """Bytes that are only peeked at stay readable: the next one wakes the worker, and not those that are there."""
    async with plane(valkey_url, prefix, proxies=TRUSTED, proxied=True) as hub:
        _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        await until(lambda: hub.reactor.connections)
        [newcomer] = hub.reactor.connections.values()
        writer.write(LINE[:9])
        await until(lambda: newcomer._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 10)
        assert hub.reactor._newcomers.epoll.poll(0) == []
        writer.close()
        await until(lambda: not hub.reactor.connections)


@async_test
async def test_who_ends_within_the_line_is_cut_at_once(valkey_url, prefix):
    """The end of file stays readable, too, and would keep the loop awake until the deadline."""
    async with plane(valkey_url, prefix, proxies=TRUSTED, proxied=True) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(LINE[:9])
        await until(lambda: hub.reactor.connections)
        [newcomer] = hub.reactor.connections.values()
        await until(lambda: newcomer._peeked == 9)
        writer.write_eof()
        with contextlib.suppress(ConnectionResetError):  # as what it wrote was never read
            assert await asyncio.wait_for(reader.read(), 0.5) == b""
        assert not hub.reactor.connections
        writer.close()


@async_test
async def test_a_health_check_names_nobody(valkey_url, prefix):
    """PROXY UNKNOWN: the proxy speaks for itself."""
    async with plane(valkey_url, prefix, proxies=TRUSTED, proxied=True) as hub:
        _, writer, answer = await raw(hub.port, b"PROXY UNKNOWN\r\n" + head())
        assert answer.startswith(b"HTTP/1.1 101 ") and session_addresses(hub) == ["127.0.0.1"]
        writer.close()


@pytest.mark.expects_log
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
@async_test
async def test_nothing_is_served_without_a_line_of_a_trusted_proxy(valkey_url, prefix, caplog, fast, trusted):
    """Neither a client that comes past the proxy, nor one that makes up a line."""
    proxies = TRUSTED if trusted else Proxies(["10.0.0.0/8"])
    async with plane(valkey_url, prefix, fast=fast, proxies=proxies, proxied=True) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(head() if trusted else LINE + head())
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert hub.acceptor.misled == 1 and not hub.reactor.connections
        writer.close()
    assert "no PROXY line of a trusted proxy" in caplog.text


@async_test
async def test_a_line_that_never_ends_is_cut_at_the_deadline(valkey_url, prefix):
    """The time of the handshake begins with the connection, and the line is part of it."""
    async with plane(valkey_url, prefix, proxies=TRUSTED, proxied=True) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(LINE[:-1])
        with contextlib.suppress(ConnectionResetError):  # as what it wrote was never read
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert not hub.reactor.connections
        writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_an_address_that_goes_on_connecting_is_reset_unread_and_then_kept_out(valkey_url, prefix, fast):
    """As many as are let in are told 429; the rest costs neither an answer nor, in the end, an accept."""
    async with plane(valkey_url, prefix, fast=fast, limits={"ip_handshakes_per_s": 5}) as hub:
        counts = hub.services.quotas.refusals.counts
        answers = []
        while not hub.acceptor.curb.held():
            try:
                reader, writer = await opened(hub.port, head())
                answers.append((await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5))[9:12])
                writer.close()
            except (ConnectionResetError, asyncio.IncompleteReadError):
                answers.append(b"cut")
        assert answers[:5] == [b"101"] * 5 and answers.index(b"cut") >= KNOCKS * 5 and b"429" in answers
        assert answers.count(b"cut") >= RESETS <= counts["ip_shut_out"]
        assert list(hub.acceptor.curb.held()) == ["127.0.0.1"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.open_connection("127.0.0.1", hub.port), 0.1)
        # Its first segment comes again by itself after a second, and another one's comes in at once.
        reader, other = await opened(hub.port, head(), local_addr=("127.0.0.2", 0))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        other.close()
        _, again = await asyncio.wait_for(opened(hub.port), 10)
        again.close()


@async_test
async def test_a_proxys_clients_are_not_kept_out_by_its_address(valkey_url, prefix):
    """It may stand for anybody."""
    async with plane(valkey_url, prefix, proxies=TRUSTED, limits={"ip_handshakes_per_s": 1}) as hub:
        for _ in range(10):
            _, writer, answer = await raw(hub.port, head())
            assert answer.startswith(b"HTTP/1.1 101 ")
            writer.close()
        assert not hub.services.quotas.refusals.counts["ip_shut_out"]


@async_test
async def test_requests_are_handed_to_tornado_a_few_in_a_turn(valkey_url, prefix, monkeypatch):
    """Each costs the loop much more than the handing on, and nobody else has a turn in between."""
    async with plane(valkey_url, prefix) as hub:
        turn = 0
        handed: list[int] = []
        loop, to_tornado = asyncio.get_running_loop(), hub.acceptor._to_tornado

        def count_turns() -> None:
            nonlocal turn
            turn += 1
            counting = loop.call_soon(count_turns)
            if len(handed) == 60:
                counting.cancel()

        def note(*args: object) -> None:
            handed.append(turn)
            to_tornado(*args)

        monkeypatch.setattr(hub.acceptor, "_to_tornado", note)
        count_turns()
        socks = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(60)]
        for sock in socks:
            sock.send(REQUEST)
        await until(lambda: len(handed) == 60)
        # As many by those who are accepted with their request, and by those who have waited for it.
        assert max(Counter(handed).values()) <= 2 * (SLICE_S / TORNADO_S + 1)
        for sock in socks:
            sock.close()


@async_test
async def test_whom_a_proxy_names_is_reset_and_takes_no_place_among_those_kept_out(valkey_url, prefix):
    """The kernel knows the proxy alone: a place for it would be missing for one who comes by himself."""
    limits = {"ip_handshakes_per_s": 1}
    async with plane(valkey_url, prefix, proxies=TRUSTED, proxied=True, limits=limits) as hub:
        counts = hub.services.quotas.refusals.counts
        while counts["ip_shut_out"] <= RESETS:
            reader, writer = await opened(hub.port, LINE + head())
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(1), 5)
            writer.close()
        assert not hub.acceptor.curb.held()
