"""TLS sockets on a real plane: readers that are slow, writes that are torn, ends that are said. The client is the
standard library's, in a thread: blocking, so that the test decides when it reads.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl

import orjson
import pytest

from hub import frames
from hub.certificates import Certificates
from hub.connection import Connection
from hub.message import Publication
from hub.tls import RECORD_BYTES, TlsSocket, discard
from hub.transports import websocket
from tests.nodes import until
from tests.pki import Authority
from tests.plane import plane
from tests.support import async_test
from tests.transports.test_websocket import head, masked


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates([authority.issue().write(tmp_path_factory.mktemp("pair"))])


class Reader:
    """A client whose every step is in a thread."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._address = ("127.0.0.1", port)
        self._context = context

    async def open(self, *channels: str) -> None:
        await asyncio.to_thread(self._open, channels)

    def _open(self, channels: tuple[str, ...]) -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        plain.settimeout(20)
        plain.connect(self._address)
        # A forced end raises SSLEOFError here.
        self.sock = self._context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        subscribes = [b'{"id":%d,"subscribe":{"channel":"%s"}}' % (at, c.encode()) for at, c in enumerate(channels, 2)]
        self.sock.sendall(head() + masked(frames.TEXT, b"\n".join([b'{"id":1,"connect":{}}', *subscribes])))
        text = b""
        while text.count(b'"subscribe":{') < len(channels) or b"}" not in text[-2:]:
            text += self.sock.recv(65_536)

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.sock.sendall, data)

    async def read(self, size: int) -> bytes:
        """So much of what comes."""

        def read() -> bytes:
            data = bytearray()
            while len(data) < size:
                piece = self.sock.recv(min(65_536, size - len(data)))
                assert piece, f"the end after {len(data)} bytes of {size}"
                data += piece
            return bytes(data)

        return await asyncio.to_thread(read)

    async def read_to_end(self) -> bytes:
        """All that comes up to close_notify."""

        def read() -> bytes:
            data = bytearray()
            while piece := self.sock.recv(65_536):
                data += piece
            return bytes(data)

        return await asyncio.to_thread(read)

    def close(self) -> None:
        self.sock.close()


@async_test
async def test_pong_and_close_queue_behind_a_frame_that_is_half_sent(valkey_url, prefix, authority, certificates):
    """What OpenSSL has begun to encrypt comes again unchanged, and the end is said behind all of it."""
    async with plane(valkey_url, prefix, client={"outbox_bytes": 1 << 24}, certificates=certificates) as hub:
        client = Reader(hub.port, authority.client())
        await client.open("open:a")
        [stuck] = hub.reactor.connections.values()
        assert stuck.sealed
        body = b'{"data":"%s"}' % random.randbytes(4_000_000).hex().encode()
        hub.fanout.deliver([Publication("open:a", body)])
        await until(lambda: not stuck.direct)
        left = stuck._outbox.size
        await client.send(masked(frames.PING, b"mark"))
        await until(lambda: stuck._outbox.size > left)
        await client.send(masked(frames.CLOSE, (4001).to_bytes(2, "big")))
        await until(lambda: not stuck.open)
        expected = websocket.NATIVE.encode_publication("open:a", body) + frames.encode_frame(frames.PONG, b"mark")
        assert await client.read_to_end() == expected + frames.encode_close(4001, "")
        client.close()


@async_test
async def test_a_slow_reader_gets_whole_frames_and_the_newest_values(valkey_url, prefix, authority, certificates):
    """Of a `latest` channel, in batches of several frames that are torn anywhere: no byte is out of place."""
    bounds = {"outbox_conflate_bytes": 0, "outbox_bytes": 1 << 24}
    async with plane(valkey_url, prefix, client=bounds, certificates=certificates) as hub:
        client = Reader(hub.port, authority.client())
        channels = [f"ticker:{name}" for name in "abcdefgh"]
        await client.open(*channels)
        chance = random.Random(7)
        received, sent = bytearray(), 0
        while sent < 400:
            sent += 1
            hub.fanout.deliver(
                [
                    Publication(channel, b'{"data":[%d,"%s"]}' % (sent, b"x" * chance.randrange(6000)))
                    for channel in chance.sample(channels, 6)
                ]
            )
            await asyncio.sleep(0)
            if sent % 40 == 0:
                received += await client.read(chance.randrange(10_000, 40_000))
        hub.fanout.deliver([Publication(channel, b'{"data":[%d,"end"]}' % (sent + 1)) for channel in channels])
        assert hub.reactor.backlog.conflated > 0
        numbers: dict[str, list[int]] = {channel: [] for channel in channels}
        while any(each[-1:] != [sent + 1] for each in numbers.values()):
            received += await asyncio.to_thread(client.sock.recv, 65_536)
            for text in whole_frames(received):
                for line in text.split(b"\n"):
                    push = orjson.loads(line)["push"]
                    numbers[push["channel"]].append(push["pub"]["data"][0])
        assert all(each == sorted(set(each)) for each in numbers.values())
        client.close()


@async_test
async def test_a_value_in_a_record_that_waits_is_not_replaced(valkey_url, prefix, authority, certificates, monkeypatch):
    """A backlog of many records, each taken by the socket in its turn while newer values keep coming: OpenSSL has
    sealed one that it could not write, and what it is given again must be what it was given.
    """
    bounds = {"outbox_conflate_bytes": 0, "outbox_bytes": 1 << 24, "channels": 100}
    async with plane(valkey_url, prefix, client=bounds, certificates=certificates) as hub:
        client = Reader(hub.port, authority.client())
        channels = [f"ticker:{number}" for number in range(100)]
        await client.open(*channels)
        chance = random.Random(11)
        received, sent = bytearray(), 0
        blocked_again = 0

        def publish() -> None:
            nonlocal sent
            sent += 1
            bodies = {channel: b'{"data":[%d,"%s"]}' % (sent, b"x" * chance.randrange(6000)) for channel in channels}
            hub.fanout.deliver([Publication(channel, body) for channel, body in bodies.items()])

        def drain(connection: Connection) -> None:
            nonlocal blocked_again
            Connection._drain(connection)
            blocked_again += connection._outbox.size > 0

        monkeypatch.setattr(websocket.WebSocketConnection, "_drain", drain)
        while blocked_again < 20:
            publish()
            await asyncio.sleep(0)
            received += await client.read(50_000)
        assert hub.reactor.backlog.conflated > 100
        sent += 1
        hub.fanout.deliver([Publication(channel, b'{"data":[%d,"end"]}' % sent) for channel in channels])
        numbers: dict[str, list[int]] = {channel: [] for channel in channels}
        while any(each[-1:] != [sent] for each in numbers.values()):
            received += await asyncio.to_thread(client.sock.recv, 65_536)
            for text in whole_frames(received):
                for line in text.split(b"\n"):
                    push = orjson.loads(line)["push"]
                    numbers[push["channel"]].append(push["pub"]["data"][0])
        assert all(each == sorted(set(each)) for each in numbers.values())
        client.close()


def whole_frames(data: bytearray) -> list[bytes]:
    """The payloads of the whole frames at the front, taken off."""
    found = []
    while len(data) >= 2:
        assert data[0] == 0x81, data[:20]
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + length:
            break
        found.append(bytes(data[start : start + length]))
        del data[: start + length]
    return found


@async_test
async def test_thousands_of_small_batches_reach_many_readers_in_order(valkey_url, prefix, authority, certificates):
    """Sealed members of one group, written to past their outboxes, beside one without TLS."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        clients = [Reader(hub.port, authority.client()) for _ in range(5)]
        for client in clients:
            await client.open("open:a")
        [audience] = hub.fanout.lines.by_channel["open:a"].audiences.values()
        [group] = audience.groups
        assert not group.fds and len(group.others) == 5
        bodies = [b'{"data":%d}' % number for number in range(1000)]
        writes = hub.fanout.sweep.writes
        for body in bodies:
            hub.fanout.deliver([Publication("open:a", body)])
            await asyncio.sleep(0)
        await until(lambda: not hub.fanout.busy)
        assert hub.fanout.sweep.writes - writes >= 5 * 100
        expected = b"".join(websocket.NATIVE.encode_publication("open:a", body) for body in bodies)
        for client in clients:
            assert await client.read(len(expected)) == expected
        assert hub.reactor.backlog.bytes == 0
        for client in clients:
            client.close()
        await until(lambda: not hub.reactor.connections)


@async_test
async def test_a_large_batch_to_a_full_socket_is_torn_behind_the_record_at_hand(
    valkey_url, prefix, authority, certificates
):
    """Frames of a `none` channel are dropped beyond drop_bytes, but none of which a part may be encrypted."""
    bounds = {"outbox_drop_bytes": 1, "outbox_bytes": 1 << 24}
    async with plane(valkey_url, prefix, client=bounds, certificates=certificates) as hub:
        client = Reader(hub.port, authority.client())
        await client.open("open:a")
        [one] = hub.reactor.connections.values()
        bodies = [b'{"data":"%04d%s"}' % (number, random.randbytes(500).hex().encode()) for number in range(3000)]
        hub.fanout.deliver([Publication("open:a", body) for body in bodies])
        await until(lambda: not one.direct)
        assert one._outbox.size >= RECORD_BYTES and hub.reactor.backlog.dropped > 0
        received, got = bytearray(), []
        while not got or "dropped" not in got[-1]:
            received += await asyncio.to_thread(client.sock.recv, 65_536)
            got += [line.decode() for text in whole_frames(received) for line in text.split(b"\n")]
        told = orjson.loads(got.pop())["push"]["message"]["data"]["hub"]["dropped"]
        assert (
            got
            == [orjson.dumps({"push": {"channel": "open:a", "pub": orjson.loads(b)}}).decode() for b in bodies][
                : len(got)
            ]
        )
        assert len(got) + told == len(bodies)
        client.close()


class Scripted:
    """An SSLSocket that does what it is told."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[bytes] = []

    def fileno(self) -> int:
        return 5

    def _next(self) -> object:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def send(self, data: bytes) -> object:
        self.sent.append(bytes(data))
        return self._next()

    def recv(self, most: int) -> object:
        return self._next()


def test_a_write_goes_on_record_by_record_until_the_socket_is_full() -> None:
    """What is left begins where a record ended."""
    data = bytes(range(256)) * 200
    sock = Scripted(RECORD_BYTES, RECORD_BYTES, ssl.SSLWantWriteError())
    assert TlsSocket(sock).write(data) == 2 * RECORD_BYTES
    assert sock.sent == [data[at * RECORD_BYTES :][:RECORD_BYTES] for at in range(3)]
    assert TlsSocket(Scripted(RECORD_BYTES, RECORD_BYTES, RECORD_BYTES, 2048)).write(data) == len(data)
    with pytest.raises(ssl.SSLError):
        TlsSocket(Scripted(ssl.SSLError(1, "no TLS"))).write(data)


def test_what_waits_for_the_other_direction_is_told() -> None:
    """A write that has to read first, a read that has to write first; both are over with the next try."""
    tls = TlsSocket(Scripted(ssl.SSLWantReadError(), 3, ssl.SSLWantWriteError(), ssl.SSLWantReadError()))
    assert (tls.write(b"abc"), tls.write_needs_read) == (0, True)
    assert (tls.write(b"abc"), tls.write_needs_read) == (3, False)
    for needs_write in (True, False):
        with pytest.raises(BlockingIOError):
            tls.read(10)
        assert tls.read_needs_write is needs_write


def test_the_end_is_no_error() -> None:
    """Neither where our own has been said already."""
    assert TlsSocket(Scripted(b"")).read(10) == b"" == TlsSocket(Scripted(ssl.SSLZeroReturnError())).read(10)


def test_an_unwanted_socket_is_closed_whatever_its_kind() -> None:
    """The peer reads an end of file."""
    for wrap in (lambda sock: sock.detach(), lambda sock: TlsSocket(_unshaken(sock))):
        ours, theirs = socket.socketpair()
        discard(wrap(ours))
        assert theirs.recv(10) == b""
        theirs.close()


def _unshaken(sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
