"""While one thing is large, everybody else is served: sweeps to a crowd, a flood from Redis, floods from clients.

The plane and its doors are real, with real sockets and a real Valkey; only the crowd is not: its subscribers write to
/dev/null. Order is told by events: who was served in the middle of which sweep, who was read before whom.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import orjson
import pytest
from redis.asyncio import Redis

from hub import drain, frames
from hub.acceptor import Acceptor
from hub.audience import ELSEWHERE, Audience
from hub.channels import Namespace
from hub.connection import Connection, take_over
from hub.entrance import NOBODY
from hub.message import Publication, pack
from hub.store import Keys
from hub.transports.websocket import NATIVE, WebSocketConnection
from tests.nodes import until
from tests.plane import Plane, client, plane
from tests.support import async_test
from tests.transports.test_websocket import head, masked

LOOK_S = 0.0005
"""What a sweep's clock says that a chunk took, so that its slices are the same on every machine."""
BRISK = {"connect_timeout_s": 0.3, "ping_interval_s": 1.5, "pong_timeout_s": 1.0}
ROOMY = {"outbox_conflate_bytes": 1 << 24, "outbox_drop_bytes": 1 << 24, "outbox_bytes": 1 << 24}
CROWD = "open:crowd"


class Sink:
    """A subscriber that is no connection: what is written to it is gone."""

    wire = NATIVE
    open = True
    sealed = False

    def __init__(self, fd: int, direct: bool) -> None:
        self.fd = fd
        self.direct = direct
        self.group, self.place = None, ELSEWHERE
        self.offered = 0

    def offer(self, audience: Audience, frame: bytes) -> None:
        self.offered += 1


class Sweeping:
    """One sweep to a crowd after the other, until `stop`."""

    def __init__(self, hub: Plane, body: bytes, batch: int) -> None:
        self.hub = hub
        self.number = 0
        self._publications = [Publication(CROWD, body)] * batch
        self._run, self._now = hub.fanout.run, 0.0
        hub.fanout.sweep._clock = self._look
        hub.fanout.run = self._go_on
        self._go_on()

    def _look(self) -> float:
        self._now += LOOK_S
        return self._now

    def _go_on(self) -> None:
        self._run()
        if not self.hub.fanout.busy:
            self.number += 1
            self.hub.fanout.deliver(self._publications)

    async def serves(self, act: Callable[[], Awaitable[object]]) -> None:
        """Return once all of `act` has happened in the middle of one sweep."""
        while True:
            await until(lambda: self.hub.fanout.sweep.running)
            number = self.number
            await act()
            if self.hub.fanout.sweep.running and self.number == number:
                return

    def stop(self) -> None:
        self.hub.fanout.run = self._run
        self._publications = []


@contextlib.contextmanager
def crowd(hub: Plane, size: int, direct: bool) -> Iterator[None]:
    with open(os.devnull, "wb", buffering=0) as null:
        sinks = [Sink(null.fileno(), direct) for _ in range(size)]
        for one in sinks:
            hub.fanout.join(CROWD, Namespace(), one)
        yield
        assert direct or all(one.offered for one in sinks)


def watch(hub: Plane, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which of the plane's doors have been called in the middle of a sweep so far."""
    middle: set[str] = set()

    def wrap(owner: object, name: str) -> None:
        method = getattr(owner, name)

        def watched(*args: object) -> object:
            if hub.fanout.sweep.running:
                middle.add(name)
            return method(*args)

        monkeypatch.setattr(owner, name, watched)

    wrap(Acceptor, "greet")
    wrap(WebSocketConnection, "on_message")
    wrap(WebSocketConnection, "on_due")
    wrap(hub.ingest, "_on_publications")
    return middle


@pytest.mark.parametrize(
    ("size", "direct", "body", "batch"),
    [
        pytest.param(100_000, True, b'{"data":1}', 1, id="a small message to a hundred thousand"),
        pytest.param(2_000, True, b'{"data":"%s"}' % (b"x" * 1_000_000), 1, id="a huge message to thousands"),
        pytest.param(2_000, True, b'{"data":"%s"}' % (b"x" * 1000), 1000, id="a huge batch to thousands"),
        pytest.param(50_000, False, b'{"data":1}', 2, id="a batch to thousands who are slow"),
    ],
)
@async_test
async def test_in_the_middle_of_a_sweep_everybody_else_is_served(
    valkey_url, prefix, monkeypatch, size, direct, body, batch
):
    """Accepts, handshakes, commands with and without Redis, what comes from Redis, and heartbeats: between two slices
    of one sweep, and not only between two sweeps.
    """

    async def connect() -> None:
        async with client(hub.url):
            pass

    async with plane(valkey_url, prefix, client=BRISK, jitter=lambda: 0.0) as hub, client(hub.url) as one:
        await one.subscribe("open:a")
        middle = watch(hub, monkeypatch)
        with crowd(hub, size, direct):
            await until(lambda: not hub.fanout.busy)
            sweeping = Sweeping(hub, body, batch)
            await sweeping.serves(connect)
            await sweeping.serves(lambda: one.command(rpc={"method": "hub.time"}))
            await sweeping.serves(lambda: one.command(publish={"channel": "open:a", "data": 1}))
            assert (await one.push())["pub"]["data"] == 1
            while "on_due" not in middle:
                await one.ping()
                await one.socket.send("{}")
            assert middle == {"greet", "on_message", "on_due", "_on_publications"}
            sweeping.stop()
            await until(lambda: not hub.fanout.busy)


@contextlib.asynccontextmanager
async def held_sweep(hub: Plane) -> AsyncIterator[None]:
    """A sweep that is under way and gets nowhere, as that of a worker which is far behind."""
    run = hub.fanout.sweep.run
    hub.fanout.sweep.run = lambda slice_s: False
    hub.fanout.deliver([Publication("open:a", b'{"data":-1}'), Publication("ticker:a", b'{"data":-1}')])
    await until(lambda: hub.fanout.sweep.running)
    yield
    hub.fanout.sweep.run = run


@pytest.mark.parametrize("channel", ["open:a", "ticker:a"])
@async_test
async def test_a_worker_that_is_behind_goes_on_reading_from_redis(valkey_url, prefix, channel):
    """40 MB while nothing can be sent: more than Valkey keeps for a subscriber that does not read. All of it is read,
    on the same link; what is kept stays within batch_bytes, the rest is counted.
    """
    keys, count, most = Keys(prefix), 4000, 1_000_000
    name = keys.channel(channel) if channel == "open:a" else keys.feed("ticker")
    async with (
        plane(valkey_url, prefix, client=ROOMY, batch_bytes=most) as hub,
        client(hub.url, max_queue=None) as one,
        Redis.from_url(valkey_url) as redis,
    ):
        await one.subscribe(channel)
        link, read, waiting = hub.ingest._link, 0, 0

        def deliver(publications: list[Publication]) -> None:
            nonlocal read, waiting
            hub.fanout.deliver(publications)
            read += len(publications)
            waiting = max(waiting, hub.fanout.waiting_bytes)

        hub.ingest._on_publications = deliver
        async with held_sweep(hub):
            for begin in range(0, count, 100):
                async with redis.pipeline(transaction=False) as pipeline:
                    for number in range(begin, begin + 100):
                        body = b'{"data":{"number":%d,"text":"%s"}}' % (number, b"x" * 10_000)
                        pipeline.publish(name, pack([Publication(channel, body)]))
                    await pipeline.execute()
            await until(lambda: read == count)
        assert hub.ingest._link is link and hub.ingest.connected
        assert most / 2 < waiting <= most
        lost = hub.fanout.dropped + hub.fanout.conflated
        assert (hub.fanout.dropped if channel == "open:a" else hub.fanout.conflated) == lost > count * 0.9
        assert (await one.push())["pub"]["data"] == -1
        numbers = [(await one.push())["pub"]["data"]["number"] for _ in range(count - lost)]
        assert numbers == sorted(numbers) and numbers[-1 if channel == "ticker:a" else 0] in (0, count - 1)


MOST_READ_BYTES = 4096
"""Of the smallest commands, about 4 ms of work."""
FLOODS = {
    "pings": masked(frames.PING, b""),
    "commands": masked(frames.TEXT, b'{"id":1,"rpc":{"method":"hub.time"}}'),
}


@pytest.mark.parametrize("flood", list(FLOODS))
@async_test
async def test_floods_of_frames_leave_everybody_else_served(valkey_url, prefix, monkeypatch, flood):
    """Twenty clients with thousands of tiny frames each: one small read at a time from each, so the one command
    of another client is handled before any of them is read for the third time.
    """
    reads: list[tuple[int, int]] = []
    receive = Connection.receive

    def watched(connection: Connection, data: bytes) -> None:
        reads.append((connection.fd, len(data)))
        receive(connection, data)

    async with plane(valkey_url, prefix) as hub:
        with contextlib.ExitStack() as stack:
            loop, flooders = asyncio.get_running_loop(), []
            for _ in range(21):
                flooders.append(stack.enter_context(socket.create_connection(("127.0.0.1", hub.port))))
                flooders[-1].setblocking(False)
                await loop.sock_sendall(flooders[-1], head())
                assert b" 101 " in await loop.sock_recv(flooders[-1], 4096)
                await loop.sock_sendall(flooders[-1], masked(frames.TEXT, b'{"id":1,"connect":{}}'))
                assert b'"connect"' in await loop.sock_recv(flooders[-1], 4096)
            quiet = flooders.pop()
            monkeypatch.setattr(Connection, "receive", watched)
            by_port = {socket.socket(fileno=os.dup(fd)): fd for fd in hub.reactor.connections}
            [fd] = [fd for sock, fd in by_port.items() if sock.getpeername() == quiet.getsockname()]
            for sock in by_port:
                sock.close()
            # Nothing is awaited in here, so the hub finds all of it at once.
            quiet.send(FLOODS["commands"])
            for sock in flooders:
                with contextlib.suppress(BlockingIOError):
                    sent = sock.send(FLOODS[flood] * 20_000)
                assert sent > 10 * MOST_READ_BYTES
            answer = orjson.loads((await loop.sock_recv(quiet, 4096))[2:])
            assert "rpc" in answer
            before = [each for each, _ in reads[: [each for each, _ in reads].index(fd)]]
            assert all(before.count(each) <= 2 for each in set(before))
            assert max(size for _, size in reads) <= MOST_READ_BYTES
            assert len(reads) < 20 * 5, "served only after everything else was read"


@async_test
async def test_a_mass_close_in_the_middle_of_a_sweep_is_sliced(valkey_url, prefix, monkeypatch):
    """Two thousand subscribers sent away while a publication is on its way to them: each gets it once and then its
    close frame, another client's commands are answered meanwhile, and every descriptor is free in the end.
    """
    count, step = 2000, 50
    monkeypatch.setattr(drain, "CLOSES_PER_STEP", step)
    hello = masked(frames.TEXT, b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"open:crowd"}}')
    async with plane(valkey_url, prefix, client={"close_timeout_s": 0.2}) as hub, client(hub.url) as one:
        before, theirs, connections = len(os.listdir("/proc/self/fd")), [], []
        for _ in range(count):
            ours, other = socket.socketpair()
            other.setblocking(False)
            theirs.append(other)
            connections.append(hub.door.new_connection(take_over(ours), NOBODY))
            connections[-1].begin(b"", hello)
        await until(lambda: hub.fanout.lines.counts() == {CROWD: count} and not hub.fanout.busy)
        for other in theirs:
            other.recv(4096)
        run = hub.fanout.sweep.run
        hub.fanout.sweep.run = lambda slice_s: run(0)
        hub.fanout.deliver([Publication(CROWD, b'{"data":1}')])
        while not hub.fanout.sweep.running:
            await asyncio.sleep(0)
        still_open, answered, overlap = [count], [], False
        ending = asyncio.create_task(drain.drain(connections, 0, asyncio.Event(), hub.reactor.clock))
        command = asyncio.create_task(one.command(rpc={"method": "hub.time"}))
        command.add_done_callback(lambda _: answered.append(still_open[-1]))
        while not ending.done():
            await asyncio.sleep(0)
            still_open.append(sum(connection.open for connection in connections))
            assert still_open[-2] - still_open[-1] <= 2 * step
            overlap |= still_open[-1] < count and hub.fanout.sweep.running
        await command
        assert overlap and answered[0] > 0, "one before or behind the other"
        await until(lambda: len(hub.reactor.connections) == 1)
        expected = NATIVE.encode_publication(CROWD, b'{"data":1}') + frames.encode_close(3001, "shutdown")
        assert {other.recv(4096) for other in theirs} == {expected}
        for other in theirs:
            other.close()
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)
        assert hub.fanout.lines.counts() == {}
