"""HTTP edges: deadlines, sizes, and answers that repeat nothing of the request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from tornado.netutil import bind_sockets

from hub import assets, httpd
from hub.sections import HttpSettings
from tests import support
from tests.support import async_test


class Echo(httpd.Handler):
    def post(self) -> None:
        self.plain(200, str(len(self.request.body)))

    def get(self) -> None:
        raise RuntimeError("a fault of ours")


CHUNKED = b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(demo: bool = False, pages: str = "", library: str = "", **http: float) -> AsyncIterator[int]:
    routes = [*assets.pages(demo, pages), *assets.client_library(library), ("/echo", Echo, {}), ("/large", Large, {})]
    server = httpd.Server(httpd.application(routes), HttpSettings(**http))
    sockets = bind_sockets(0, "127.0.0.1")
    async with support.serving(server, sockets, server.conn_params.header_timeout):
        yield sockets[0].getsockname()[1]


async def ask(port: int, request: bytes, *, end: bool = True) -> bytes:
    """Send bytes and read until the hub closes."""
    if end:
        request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(-1), 10)
    finally:
        writer.close()


@async_test
async def test_an_unknown_address_is_404_and_repeats_nothing():
    """One line of plain text for every method; nothing of the request stands in it."""
    async with serving() as port:
        for method in (b"GET", b"POST", b"DELETE"):
            answer = await ask(port, method + b" /<script>secret HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 404 ") and b"text/plain" in answer
            assert b"secret" not in answer and b"Tornado" not in answer


@async_test
async def test_a_head_that_does_not_end_is_cut():
    """Slowloris: header_timeout_s from the accept, however the bytes drip."""
    async with serving(header_timeout_s=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n")

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"A: b\r\n")
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(-1), 5) == b""
        dripping.cancel()
        writer.close()


@async_test
async def test_a_kept_alive_connection_may_be_idle_longer_than_a_head_may_take():
    """The deadline for the first head is not that between requests."""
    async with serving(header_timeout_s=0.1, idle_timeout_s=0.5) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"hub\n"), 5)).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.25)
        assert await asyncio.wait_for(reader.read(-1), 5) == b""
        writer.close()


@async_test
async def test_a_body_that_does_not_come_is_cut():
    """body_timeout_s after the head."""
    async with serving(body_timeout_s=0.2) as port:
        answer = await ask(port, b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", end=False)
        assert b" 200 " not in answer


@pytest.mark.parametrize(
    ("request_bytes", "answer_begins"),
    [
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\n", b"HTTP/1.1 413 "),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"x" * 1_000_000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 100 + b"\r\n", b"HTTP/1.1 431 "),
        (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 414 "),
        (b"GET /?" + b"a&" * 300 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 400 "),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\nHost: h\n\n", b"HTTP/1.1 400 "),
        (
            b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 400 ",
        ),
        (CHUNKED + b"%x\r\n" % 2_000_000, b"HTTP/1.1 413 "),
        (CHUNKED + b"40000\r\n" + b"x" * 0x40000 + b"\r\nC0001\r\n", b"HTTP/1.1 413 "),
        (CHUNKED + b"2;a=b\r\nab\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"2\nab\n0\n\n\r\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"2\r\nab\r\n0\r\nA: b\r\n\r\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"2\nab\n0\n\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"60\n" + b"a" * 0x60 + b"\n0\n\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"2\r\nab\r\n0\n\n", b"HTTP/1.1 400 "),
        (CHUNKED + b"a" * 100 + b"\r\n", b"HTTP/1.1 400 "),
        (CHUNKED.replace(b"1.1", b"1.0") + b"2\r\nab\r\n0\r\n\r\n", b"HTTP/1.1 400 "),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: multipart/form-data; boundary=a\r\n\r\n", b"HTTP/1.1 415 "),
        (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\n\r\n", b"HTTP/1.1 415 "),
    ],
    ids=[
        "body",
        "head",
        "fields",
        "address",
        "parameters",
        "no request",
        "bare LFs",
        "two lengths",
        "chunk",
        "chunks",
        "chunk extension",
        "chunk's end",
        "chunk with LF",
        "chunk in hexadecimal of C",
        "trailer",
        "short chunk with LF and no CRLF behind it",
        "long chunk with LF",
        "last chunk with LF",
        "endless chunk size",
        "chunks in HTTP/1.0",
        "multipart",
        "gzip",
    ],
)
@async_test
async def test_what_is_too_large_or_no_http_is_refused_and_closed(request_bytes, answer_begins):
    """Refused before anything is buffered, and the connection ends; nothing behind it is taken for a request."""
    async with serving() as port:
        answer = await ask(port, request_bytes + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", end=False)
        assert answer.startswith(answer_begins) and b" 200 " not in answer and answer.count(b"HTTP/1.1 ") <= 1


@async_test
async def test_a_head_and_a_body_of_exactly_the_limit_are_taken():
    """One byte more of a head is not."""
    async with serving(header_bytes=1024) as port:
        for size, status in ((1024, b"200"), (1025, b"431")):
            request = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nA: "
            answer = await ask(port, request + b"x" * (size - len(request) - 4) + b"\r\n\r\n", end=False)
            assert answer.startswith(b"HTTP/1.1 " + status)


LARGE_BYTES = 20_000_000


class Large(httpd.Handler):
    """More than all buffers on the way hold."""

    def get(self) -> None:
        self.finish(b"x" * LARGE_BYTES)


@async_test
async def test_who_does_not_read_its_answer_is_cut():
    """After answer_timeout_s; what the kernel has taken by then it may still read."""
    async with serving(answer_timeout_s=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        await asyncio.sleep(0.5)
        got = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await asyncio.wait_for(reader.read(1_000_000), 5):
                got += len(chunk)
        assert 0 < got < LARGE_BYTES
        writer.close()


@async_test
async def test_who_reads_its_answer_in_time_keeps_the_connection():
    """The deadline of one answer is not that of the next one."""
    async with serving(answer_timeout_s=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
        for _ in range(2):
            writer.write(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 200 ")
            await asyncio.wait_for(reader.readexactly(LARGE_BYTES), 10)
            await asyncio.sleep(0.4)  # beyond the deadline, had it not been taken back
        writer.close()


@pytest.mark.expects_log
@async_test
async def test_a_fault_in_a_handler_is_a_plain_500(caplog):
    """No trace leaves the process; it stands in the log, but for the query, which may carry a token."""
    async with serving() as port:
        answer = await ask(port, b"GET /echo?token=secret HTTP/1.1\r\nHost: h\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 500 ") and b"fault" not in answer and b"Traceback" not in answer
    assert "GET /echo failed" in caplog.text and "a fault of ours" in caplog.text and "secret" not in caplog.text


@async_test
async def test_a_body_over_the_limit_is_413_before_it_is_read():
    """Also for a client that sends all of it first: the answer is not lost in a reset. At the limit it is taken."""
    async with serving(body_bytes=100_000) as port:
        for size, sent, status in (
            (100_000, 100_000, b"200"),
            (100_001, 0, b"413"),
            (10**30, 0, b"413"),
            (3_000_000, 3_000_000, b"413"),
        ):
            head = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size
            answer = await ask(port, head + b"x" * sent)
            assert answer.startswith(b"HTTP/1.1 " + status), (size, answer)
            assert b"Connection: close\r\n" in answer


@async_test
async def test_who_ends_its_side_behind_a_request_still_gets_the_answer():
    """RFC 9112 §9.6; and one that breaks off in the middle of a request ends it."""
    async with serving() as port:
        for request, answer in (
            (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 "),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab", b"HTTP/1.1 200 "),
            (CHUNKED + b"2\r\nab\r\n0\r\n\r\n", b"HTTP/1.1 200 "),
            (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", b"HTTP/1.1 400 "),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab", b""),
            (b"GET / HTTP/1.1\r\nHost: h\r\n", b""),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            writer.write_eof()
            found = await asyncio.wait_for(reader.read(), 5)
            assert found.startswith(answer) and bool(found) is bool(answer), request
            writer.close()


@async_test
async def test_who_goes_on_sending_behind_a_refusal_is_cut(monkeypatch):
    """After LINGER_S."""
    monkeypatch.setattr(httpd, "LINGER_S", 0.1)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 413 ")
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(5):
                while True:
                    writer.write(b"x" * 1000)
                    await writer.drain()
        writer.close()


@async_test
async def test_a_body_that_drips_wakes_nobody_until_a_piece_is_there(monkeypatch):
    """A request is whole all the same, however it was cut, and so is the next on its connection."""
    reads: list[int] = []
    read_from_fd = httpd.Stream.read_from_fd

    def counting(stream: httpd.Stream, buf: memoryview) -> int | None:
        size = read_from_fd(stream, buf)
        if size:
            reads.append(size)
        return size

    monkeypatch.setattr(httpd.Stream, "read_from_fd", counting)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n")
            await asyncio.sleep(0.01)
            reads.clear()
            for _ in range(250):
                writer.write(b"x" * 20)
                await asyncio.sleep(0)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert answer.startswith(b"HTTP/1.1 200 ") and await reader.readexactly(5) == b"5000\n"
            assert sum(reads) == 5000 and len(reads) <= 5, "each piece, and not each drop, is worth a turn"
        writer.close()


@async_test
async def test_behind_a_body_each_byte_wakes_again(monkeypatch):
    """Whoever takes the socket over waits for the smallest of messages."""

    def post(handler: Echo) -> None:
        sock = handler.request.connection.stream.socket
        handler.plain(200, str(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)))

    monkeypatch.setattr(Echo, "post", post)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n")
        for _ in range(3):
            await asyncio.sleep(0.01)
            writer.write(b"x" * 1000)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert await reader.readexactly(2) == b"1\n"
        writer.close()


@async_test
async def test_a_body_whose_client_ends_is_seen_to_end():
    """The end wakes, whatever is missing before it."""
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\nab")
        await asyncio.sleep(0.01)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
