"""Compliance: the echo server under clients that are not ours, and under the cases of the Autobahn testsuite."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Offer

from hub.frames import BINARY, CLOSE, PONG, TEXT
from tests.compliance.cases import BYE, CASES, CLOSED, Answer, Case
from tests.e2e.nodejs import NODE, PACKAGES
from tests.support import async_test
from tests.test_frames import first, frame, last, middle

HERE = Path(__file__).parent
FAST, SLOW = "/connection/websocket", "/any/path?case=1"
"""Paths that are answered in place, and by Tornado."""
SIZES = (0, 1, 125, 126, 127, 1000, 65_535, 65_536, 1 << 20)
MOST = 16 << 20


@pytest.fixture(scope="module", params=[[], ["--deflate"]], ids=["plain", "deflate"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """An echo server of its own process; ended by SIGTERM, with status 0."""
    yield from echo_server(*request.param)


@pytest.fixture(scope="module")
def deflating() -> Iterator[int]:
    yield from echo_server("--deflate")


def echo_server(*options: str) -> Iterator[int]:
    command = [sys.executable, str(HERE / "echo_server.py"), "0", *options]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                assert selector.select(10), "no ready line"
            line = process.stdout.readline()
            assert line.startswith("echo on ws://127.0.0.1:"), line
            yield int(line.rsplit(":", 1)[1])
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


# -- clients that are not ours --


@pytest.mark.parametrize("path", [FAST, SLOW])
@pytest.mark.parametrize("compression", [None, "deflate"])
@async_test
async def test_websockets_gets_back_what_it_sends(port, path, compression):
    """Text as text and binary as binary, of all sizes, whole and in fragments, compressed where both agree."""
    async with connect(f"ws://127.0.0.1:{port}{path}", compression=compression, proxy=None, max_size=None) as one:
        for size in SIZES:
            for message in ("☃"[: size % 2] + "x" * size, os.urandom(size), bytes(size)):
                await one.send(message)
                assert await one.recv() == message
        for parts in (["snow ", "☃", "", " man"], [b"\xff", b"", os.urandom(100_000)], [""]):
            await one.send(parts)
            assert await one.recv() == type(parts[0])().join(parts)


@pytest.mark.parametrize("compression", [None, "deflate"])
@async_test
async def test_16_mib_come_back_and_one_byte_more_is_too_big(port, compression):
    """Compressible or not; beyond, 1009."""
    options = {"compression": compression, "proxy": None, "max_size": None, "ping_interval": None}
    async with connect(f"ws://127.0.0.1:{port}{FAST}", **options) as one:
        for message in (os.urandom(MOST), bytes(MOST)):
            await one.send(message)
            assert await one.recv() == message
        with pytest.raises(ConnectionClosed):
            await one.send(bytes(MOST + 1))
            await one.recv()
        assert one.close_code == 1009


@pytest.mark.parametrize("fresh", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("server_bits", [None, 9, 15])
@pytest.mark.parametrize("client_bits", [None, True, 9, 15])
@async_test
async def test_websockets_agrees_on_every_offer(deflating, fresh, server_bits, client_bits):
    """Both directions keep to what was agreed, message after message."""
    options = {"extensions": [Offer(*fresh, server_bits, client_bits)], "compression": None, "proxy": None}
    async with connect(f"ws://127.0.0.1:{deflating}{FAST}", **options) as one:
        assert [extension.name for extension in one.protocol.extensions] == ["permessage-deflate"]
        for message in ["a b c " * 1000, os.urandom(40_000).hex(), "a b c " * 1000, "", b"\0" * 1000] * 2:
            await one.send(message)
            assert await one.recv() == message


@async_test
async def test_any_origin_and_many_pings_are_let_in(port):
    """No Origin is refused, no rate is limited, and each ping has its pong."""
    async with connect(f"ws://127.0.0.1:{port}/", origin="https://elsewhere.example", proxy=None) as one:
        waiters = [await one.ping(str(number)) for number in range(1000)]
        await asyncio.wait_for(asyncio.gather(*waiters), 10)


@NODE
@PACKAGES
def test_ws_gets_back_what_it_sends(port):
    """The most used client of Node.js, with and without compression."""
    command = ["node", str(HERE / "ws_echo.mjs"), f"ws://127.0.0.1:{port}{FAST}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the Autobahn testsuite's cases --


class Raw:
    """A client on a bare socket, behind its handshake."""

    def __init__(self, port: int, path: str = FAST, offer: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        extensions = f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else ""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extensions}\r\n".encode()
        )
        self._data = self.socket.makefile("rb")
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += self._data.readline()
        assert self.head.startswith(b"HTTP/1.1 101 ")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()
        self.socket.close()

    def play(self, case: Case) -> list[Answer]:
        """Send it and return all frames that come back, to the close."""
        for at in range(0, len(case.sent), case.chop or len(case.sent)):
            try:
                self.socket.sendall(case.sent[at : at + case.chop] if case.chop else case.sent)
            except (BrokenPipeError, ConnectionResetError):
                break  # it has closed already, as it may at the first fault
        answers = [self.read()]
        while answers[-1][0] != CLOSE:
            answers.append(self.read())
        return answers

    def read(self) -> tuple[int, bytes | int]:
        """The next frame, with its RSV bits in the opcode; of a close the code."""
        opcode, length = self._data.read(2)
        assert opcode & 0x80, "the server does not fragment"
        assert length < 0x80, "the server does not mask"
        if length > 125:
            length = int.from_bytes(self._data.read(2 if length == 126 else 8), "big")
        payload = self._data.read(length)
        assert len(payload) == length
        return (opcode & 0x7F, int.from_bytes(payload[:2], "big") if opcode & 0x7F == CLOSE else payload)


@pytest.mark.parametrize("case", CASES)
def test_autobahn_case(port, case):
    """Exactly the frames of the strict verdict come back, the close last; RSV1 is as forbidden as the others."""
    with Raw(port) as client:
        assert client.play(CASES[case]) == CASES[case].answers


COUNTS = {"1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "9": 42, "10": 1}


def test_the_table_has_the_cases_by_their_numbers():
    """None was lost to a number that stands twice."""
    assert Counter(case.split(".")[0] for case in CASES) == COUNTS


@pytest.mark.parametrize("path", [FAST, SLOW])
def test_autobahn_3_1_to_3_3_with_compression_agreed(deflating, path):
    """RSV1 is compression then, and the other two bits are still a fault."""
    for rsv in (1, 2, 3, 5, 6, 7):
        with Raw(deflating, path, "permessage-deflate") as client:
            assert client.play(Case(frame(TEXT, b"x", rsv=rsv), [])) == [(CLOSE, 1002)]


OFFERS = {
    "13.1": "permessage-deflate; client_no_context_takeover; client_max_window_bits",
    "13.2": "permessage-deflate; client_no_context_takeover; client_max_window_bits; server_no_context_takeover",
    "13.3": "permessage-deflate; client_no_context_takeover; client_max_window_bits; server_max_window_bits=9",
    "13.4": "permessage-deflate; client_no_context_takeover; client_max_window_bits; server_max_window_bits=15",
    "13.5": "permessage-deflate; client_max_window_bits; server_no_context_takeover; server_max_window_bits=9",
    "13.6": "permessage-deflate; client_max_window_bits; server_no_context_takeover; server_max_window_bits=15",
    "13.7": "permessage-deflate; server_no_context_takeover; server_max_window_bits=8, permessage-deflate",
    "12": "permessage-deflate",
}
DATA = {
    1: (b'{"symbol":"ACME","price":101.25,"volume":1200},' * 3000, TEXT),
    2: ("Επειδή η αναγνώριση της αξιοπρέπειας ".encode() * 3000, TEXT),
    3: (bytes(range(256)) * 600, BINARY),
    4: (os.urandom(1 << 17), BINARY),
}
LENGTHS = (16, 64, 256, 1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@pytest.mark.parametrize("number", OFFERS)
@pytest.mark.parametrize("kind", DATA)
def test_autobahn_cases_12_and_13(deflating, number, kind):
    """Compressed messages of each kind and size come back the same, under each offer; whole, and in fragments."""
    data, opcode = DATA[kind]
    with Raw(deflating, offer=OFFERS[number]) as client:
        agreed = client.head.decode().partition("Sec-WebSocket-Extensions: ")[2]
        packer, bits = zlib.compressobj(wbits=-15), 9 if "server_max_window_bits=9" in agreed else 15
        for size in LENGTHS:
            message = data[:size].decode(errors="ignore").encode() if opcode == TEXT else data[:size]
            if "client_no_context_takeover" in agreed:
                packer = zlib.compressobj(wbits=-15)
            packed = (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
            cut = len(packed) // 3
            whole = frame(opcode, packed, rsv=4)
            parts = first(opcode, packed[:cut], rsv=4) + middle(packed[cut : 2 * cut]) + last(packed[2 * cut :])
            client.socket.sendall(whole if size < 1000 else parts)
            found, payload = client.read()
            if found & 0x40:
                # In a new stream: nothing may refer to what was sent before.
                payload = zlib.decompressobj(-bits).decompress(payload + b"\0\0\xff\xff")
            assert (found & 0x0F, payload) == (opcode, message)
        client.socket.sendall(BYE)
        assert client.read() == CLOSED


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"\xff\xff\xff", rsv=4), 1007),
        (frame(PONG, b"", rsv=4), 1002),
        (first(TEXT, b"\xf2\x48", rsv=4) + frame(0, b"\xcd\xc9\xc9\x07\0", rsv=4), 1002),
        (frame(BINARY, zlib.compress(bytes(MOST + 1), wbits=-15), rsv=4), 1009),
    ],
)
def test_bad_compressed_messages_have_their_code(deflating, sent, code):
    """Bad data, RSV1 where it must not stand, and a message that inflates to one byte over the limit."""
    with Raw(deflating, offer="permessage-deflate") as client:
        assert client.play(Case(sent, [])) == [(CLOSE, code)]
