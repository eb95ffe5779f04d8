"""TLS handshakes on a real plane: who gets in, who is cut, and what comes behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import orjson
import pytest
from websockets.asyncio.client import connect

from hub.certificates import Certificates
from hub.forwarded import Proxies
from hub.message import Publication
from tests.nodes import until
from tests.pki import Authority
from tests.plane import client, plane
from tests.support import async_test
from tests.transports.test_websocket import head, masked


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates([authority.issue().write(tmp_path_factory.mktemp("pair"))])


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_client_talks_over_tls(valkey_url, prefix, fast, authority, certificates):
    """Both ways in: commands, publications in order, and one that is longer than many records."""
    trust = {"ssl": authority.client(), "max_size": None}
    async with (
        plane(valkey_url, prefix, fast=fast, certificates=certificates) as hub,
        client(hub.url, **trust) as one,
    ):
        assert hub.url.startswith("wss://")
        await one.subscribe("open:a")
        sizes = [1, 20_000, 300_000, 5]
        hub.fanout.deliver([Publication("open:a", b'{"data":"%s"}' % (b"x" * size)) for size in sizes])
        assert [len((await one.push())["pub"]["data"]) for _ in sizes] == sizes
        assert not hub.acceptor.greeter.unfinished


@async_test
async def test_what_comes_with_the_last_flight_of_the_handshake_is_heard(valkey_url, prefix, authority, certificates):
    """Request and commands in one record, longer than one read of the plane: nothing waits for a next byte."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, ssl=authority.client())
        commands = b"\n".join(b'{"id":%d,"subscribe":{"channel":"open:%0300d"}}' % (at, at) for at in range(2, 32))
        writer.write(head() + masked(2 - 1, b'{"id":1,"connect":{}}\n' + commands))
        text = b""
        while b'"id":31' not in text:
            text += await asyncio.wait_for(reader.read(65_536), 5)
        writer.close()


@async_test
async def test_a_whole_record_of_commands_is_read_although_the_socket_is_empty(
    valkey_url, prefix, authority, certificates
):
    """16 KB in one record are four reads of the plane, of which the epoll reports one."""
    async with (
        plane(valkey_url, prefix, certificates=certificates) as hub,
        connect(hub.url, ssl=authority.client(), proxy=None) as socket,
    ):
        await socket.send('{"id":1,"connect":{}}')
        await socket.recv()
        lines = [orjson.dumps({"id": at, "publish": {"channel": "open:a", "data": "x" * 300}}) for at in range(2, 42)]
        await socket.send(b"\n".join(lines).decode())
        found: set[int] = set()
        while len(found) < 40:
            message = await asyncio.wait_for(socket.recv(), 5)
            found |= {orjson.loads(line).get("id") for line in message.split("\n")}
        assert found == set(range(2, 42))


@async_test
async def test_plain_http_is_told_what_is_spoken_here(valkey_url, prefix, authority, certificates):
    """With 400, and without a line in the log."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(-1), 5)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"\r\n\r\nthis port speaks TLS: allowed are https and wss\n")
        writer.close()
        await until(lambda: not hub.reactor.connections)


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", None])
@async_test
async def test_who_does_not_finish_is_cut_at_the_deadline(valkey_url, prefix, said, authority, certificates):
    """http.header_timeout_s, 1 s here, from the accept on: silent, in the hello, or (None) behind the handshake."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        began = hub.reactor.clock()
        options = {"ssl": authority.client()} if said is None else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, **options)
        writer.write(said or b"")
        assert await asyncio.wait_for(reader.read(-1), 5) == b""
        assert 0.9 < hub.reactor.clock() - began < 2.5
        assert not hub.reactor.connections and not hub.acceptor.greeter.unfinished
        writer.close()


@async_test
async def test_a_request_that_is_sent_slowly_has_what_the_handshake_left(valkey_url, prefix, authority, certificates):
    """Its head goes to Tornado, under the same deadline."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, ssl=authority.client())
        writer.write(b"GET / HTTP/1.1\r\n")
        began = hub.reactor.clock()
        assert await asyncio.wait_for(reader.read(-1), 5) == b""
        assert hub.reactor.clock() - began < 2.5
        writer.close()


@async_test
async def test_of_too_many_unfinished_handshakes_the_oldest_goes(valkey_url, prefix, authority, certificates):
    """Who holds places loses them; who means it is in. Those who have said nothing hold none."""
    async with plane(valkey_url, prefix, certificates=certificates, tls_handshakes=2) as hub:
        opened = []
        for number in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
            opened.append((reader, writer))
            await until(lambda many=number + 1: len(hub.reactor.connections) == many)
        assert not hub.acceptor.greeter.unfinished
        for _, writer in opened:
            writer.write(b"\x16\x03\x01\x02\x00")
            await asyncio.sleep(0)
        await until(lambda: hub.acceptor.greeter.pushed_out == 2)
        assert len(hub.acceptor.greeter.unfinished) == 2 == len(hub.reactor.connections)
        for reader, _ in opened[:2]:
            assert await asyncio.wait_for(reader.read(-1), 5) == b""
        async with client(hub.url, ssl=authority.client()):
            assert hub.acceptor.greeter.pushed_out == 3
        for _, writer in opened:
            writer.close()


@async_test
async def test_a_client_that_does_not_trust_us_leaves_nothing(valkey_url, prefix, certificates):
    """Its alert ends the handshake; so does one with a version that is too old."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", hub.port, ssl=ssl.create_default_context())
        await until(lambda: hub.acceptor.greeter.failed == 1)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", hub.port, ssl=old)
        await until(lambda: not hub.reactor.connections)
        assert not hub.acceptor.greeter.unfinished


@async_test
async def test_a_reset_in_any_state_frees_everything(valkey_url, prefix, certificates):
    """Before the hello, in it, and where the descriptor is gone before TLS is put on top of it."""
    async with plane(valkey_url, prefix, certificates=certificates) as hub:
        for said in (b"", b"\x16", b"\x16\x03\x01\x02\x00" + b"\x01" * 600):
            one = socket.create_connection(("127.0.0.1", hub.port))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            one.send(said)
            one.close()
            await until(lambda: not hub.reactor.connections and not hub.acceptor.greeter.unfinished)


@async_test
async def test_an_address_that_comes_too_often_is_cut_before_its_handshake(valkey_url, prefix, authority, certificates):
    """A signature costs more than the request behind it. Of those who are left, each is counted until it goes."""
    limits = {"ip_handshakes_per_s": 3, "ip_connections": 9}
    async with plane(valkey_url, prefix, certificates=certificates, limits=limits) as hub:
        quotas = hub.services.quotas
        opened = [await asyncio.open_connection("127.0.0.1", hub.port) for _ in range(5)]
        await until(lambda: quotas.refusals.counts["ip_handshakes"] == 2)
        assert quotas._sockets == {"127.0.0.1": 3} and len(hub.reactor.connections) == 3
        for (_, writer), said in zip(
            opened, (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x00\x01\x01", b"\x16nonsense"), strict=False
        ):
            writer.write(said)
            writer.close()
        await until(lambda: not quotas._sockets and not hub.reactor.connections)
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize("fast", [True, False])
@async_test
async def test_a_place_is_left_however_a_tls_connection_ends(valkey_url, prefix, fast, authority, certificates):
    """As a client, kept alive by Tornado, and refused."""
    limits = {"ip_connections": 1}
    async with plane(valkey_url, prefix, fast=fast, certificates=certificates, limits=limits) as hub:
        quotas, trust = hub.services.quotas, authority.client()
        async with client(hub.url, ssl=trust):
            assert not quotas._sockets and quotas.connections == 1
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, ssl=trust)
            writer.write(head())
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 429 ")
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, ssl=trust)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200 ")
        await until(lambda: quotas._sockets == {"127.0.0.1": 1})
        writer.close()
        await until(lambda: not quotas._sockets)


LINE = b"PROXY TCP4 203.0.113.7 10.0.0.5 4711 443\r\n"


class ByHand:
    """A client behind a proxy that says whose connection it is: the line, and TLS behind it, piece by piece."""

    def __init__(self, port: int, context: ssl.SSLContext, size: int) -> None:
        """size: of the first pieces."""
        self.sock = socket.create_connection(("127.0.0.1", port), 5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        first = LINE + self._goes.read()
        for at in range(0, len(first), size):
            self.sock.sendall(first[at : at + size])
        self._until_done(self._tls.do_handshake)

    def ask(self, request: bytes) -> bytes:
        self._tls.write(request)
        return self._until_done(lambda: self._tls.read(65_536))

    def _until_done(self, step):
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._goes.read())
                self._came.write(self.sock.recv(65_536))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [1, 50, 10_000])
@async_test
async def test_tls_comes_behind_a_proxys_line(valkey_url, prefix, fast, size, authority, certificates):
    """In one piece with it, or torn anywhere; and it is the address in the line that counts."""
    proxies, limits = Proxies(["127.0.0.0/8"]), {"ip_connections": 1}
    async with plane(
        valkey_url, prefix, fast=fast, proxies=proxies, proxied=True, certificates=certificates, limits=limits
    ) as hub:
        one = await asyncio.to_thread(ByHand, hub.port, authority.client(), size)
        assert (await asyncio.to_thread(one.ask, head())).startswith(b"HTTP/1.1 101 ")
        assert hub.services.quotas.by_ip() == {"203.0.113.7": 1}
        two = await asyncio.to_thread(ByHand, hub.port, authority.client(), size)
        assert (await asyncio.to_thread(two.ask, head())).startswith(b"HTTP/1.1 429 ")
        one.sock.close()
        two.sock.close()
