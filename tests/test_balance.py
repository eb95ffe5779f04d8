"""Balance: who gives new connections to whom, with real sockets and a moved clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from hub.balance import COUNT, FEW, FIELDS, FRESH_S, KEEP_S, MAX_WAITING, SLACK, Balance, Loads
from hub.handover import Handover
from hub.relay import NEWCOMERS, Home, Owner
from tests.nodes import until
from tests.support import FakeClock, async_test

HUB = "0123456789abcdef"
HEIR = Owner(HUB, 1, 9)


class Worker:
    """One worker's balance, with as many connections as a test says."""

    def __init__(self, home: Home, loads: Loads, slot: int, clock: FakeClock) -> None:
        owner = Owner(HUB, slot, slot + 1)
        self.connections = 0
        self.taken: list[tuple[socket.socket, int, int]] = []
        self.path = home.path(owner.slot, owner.generation, NEWCOMERS)
        handover = Handover(home, owner, NEWCOMERS)
        self.balance = Balance(loads, handover, owner, lambda: self.connections, clock)

    def open(self) -> None:
        self.balance.open(lambda *one: self.taken.append(one))

    def has(self, count: int) -> None:
        self.connections = count
        self.balance.tell()


class Rig:
    def __init__(self, home: Home, count: int) -> None:
        self.home = home
        self.clock = FakeClock()
        self.loads = Loads(count)
        self.workers = [Worker(home, self.loads, slot, self.clock) for slot in range(count)]

    def passes(self, worker: Worker) -> bool:
        """Whether a new connection of this worker's is passed on; its client's end is forgotten."""
        client, server = socket.socketpair()
        with client:
            passed = worker.balance.passes(server, 0, 0)
            assert passed == (server.fileno() < 0)
            server.close()
        return passed


@contextlib.contextmanager
def rig(*counts: int) -> Iterator[Rig]:
    """Workers that are open and have so many connections each."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        made = Rig(Home(HUB, directory), len(counts))
        for worker, count in zip(made.workers, counts, strict=True):
            worker.open()
            worker.has(count)
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.balance.close()
                for sock, _, _ in worker.taken:
                    sock.close()
            assert os.listdir(directory) == []


@async_test
async def test_a_new_connection_goes_to_the_emptiest_with_its_kind_and_place():
    """It is closed here, and what its client writes is read there."""
    with rig(100, 50, 20) as hub:
        client, server = socket.socketpair()
        assert hub.workers[0].balance.passes(server, 1, 2)
        assert server.fileno() == -1
        await until(lambda: hub.workers[2].taken)
        ((taken, kind, place),) = hub.workers[2].taken
        assert (kind, place, taken.getblocking()) == (1, 2, False)
        client.sendall(b"hello")
        assert taken.recv(10) == b"hello"
        client.close()
        assert (hub.workers[0].balance.passed, hub.workers[2].balance.taken) == (1, 1)


@pytest.mark.parametrize(
    ("mine", "least", "passed"),
    [
        (FEW, 0, False),
        (FEW + 1, 0, True),
        (1000, 1000 - 1000 // SLACK, False),
        (1000, 999 - 1000 // SLACK, True),
        (5, 1000, False),
    ],
)
@async_test
async def test_a_small_difference_is_left_alone(mine, least, passed):
    """Up to FEW, or one in SLACK."""
    with rig(mine, least) as hub:
        assert hub.passes(hub.workers[0]) == passed


@async_test
async def test_so_many_at_once_are_spread_before_anybody_has_said_anything_new():
    """Who passes counts for the other until that one does it itself: not all of them go to the same one."""
    with rig(30, 0, 0) as hub:
        for _ in range(8):
            assert hub.passes(hub.workers[0])
        rows = hub.loads.rows
        assert [rows[FIELDS * slot + COUNT] for slot in range(3)] == [30, 4, 4]
        await until(lambda: [len(worker.taken) for worker in hub.workers] == [0, 4, 4])


@async_test
async def test_one_that_hangs_or_is_not_open_is_given_none():
    """It has said nothing for a second; it has not begun; it accepts no more."""
    with rig(100, 0) as hub:
        hub.clock.advance(FRESH_S + 0.01)
        assert not hub.passes(hub.workers[0])
        hub.workers[1].has(0)
        assert hub.passes(hub.workers[0])
        hub.workers[1].balance.rest()
        hub.workers[1].has(0)
        assert not hub.passes(hub.workers[0])
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        hub = Rig(Home(HUB, directory), 2)
        hub.workers[0].open()
        hub.workers[0].has(100)
        assert not hub.passes(hub.workers[0])
        for worker in hub.workers:
            worker.balance.close()


@async_test
async def test_what_is_on_its_way_to_one_that_rests_still_arrives():
    """It was accepted for a client, who must not be the one to pay for a deploy."""
    with rig(100, 0) as hub:
        assert hub.passes(hub.workers[0])
        hub.workers[1].balance.rest()
        await until(lambda: hub.workers[1].taken)


@async_test
async def test_one_that_was_killed_is_noticed_and_the_connection_stays():
    """Its row looks alive, its socket does not answer: after KEEP_S it is as if nothing had been tried."""
    with rig(100, 0) as hub:
        os.unlink(hub.workers[1].path)
        client, server = socket.socketpair()
        assert hub.workers[0].balance.passes(server, 3, 4)
        hub.clock.advance(KEEP_S)
        await until(lambda: hub.workers[0].taken)
        assert hub.workers[0].taken == [(server, 3, 4)]
        assert hub.loads.given.tolist() == hub.loads.queued.tolist() == [0, 0, 0, 0]
        client.close()


@async_test
async def test_one_that_takes_nothing_keeps_nobody_waiting():
    """Its queue is full: so many wait, the others stay at once, and all of them after KEEP_S."""
    with rig(MAX_WAITING * 2, 0) as hub:
        asyncio.get_running_loop().remove_reader(hub.workers[1].balance._handover._sock)
        pairs = [socket.socketpair() for _ in range(40)]
        one = hub.workers[0].balance
        assert all(one.passes(server, 0, 0) for _, server in pairs)
        assert 0 < one.passed < 40 and len(one._waiting) == 40 - one.passed
        hub.clock.advance(KEEP_S)
        await until(lambda: len(hub.workers[0].taken) == 40 - one.passed)
        assert hub.loads.given.tolist()[2] == one.passed and not any(hub.loads.queued)
        for client, _ in pairs:
            client.close()


@async_test
async def test_only_so_many_wait_for_a_place(monkeypatch):
    """Beyond MAX_WAITING a connection stays where it was accepted."""
    monkeypatch.setattr("hub.balance.MAX_WAITING", 2)
    with rig(100, 0) as hub:
        os.unlink(hub.workers[1].path)
        pairs = [socket.socketpair() for _ in range(3)]
        assert [hub.workers[0].balance.passes(server, 0, 0) for _, server in pairs] == [True, True, False]
        for pair in pairs:
            for sock in pair:
                sock.close()


@async_test
async def test_what_was_never_given_is_counted_by_nobody():
    """The worker ends while a connection waits for a place with another one, which does not expect it for ever."""
    with rig(100, 0) as hub:
        giver, taker = hub.workers
        os.unlink(taker.path)
        client, server = socket.socketpair()
        assert giver.balance.passes(server, 0, 0)
        giver.balance.close()
        hub.workers.remove(giver)
        client.close()
        assert hub.loads.given.tolist() == hub.loads.queued.tolist() == [0, 0, 0, 0]
        taker.has(10)
        assert hub.loads.rows[FIELDS + COUNT] == 10


@async_test
async def test_what_waited_in_a_killed_worker_is_forgotten_with_it():
    """It is expected as long as it may come, and its heir knows that it will not."""
    with rig(100, 0) as hub:
        giver, taker = hub.workers
        os.unlink(taker.path)
        pairs = [socket.socketpair() for _ in range(3)]
        assert all(giver.balance.passes(server, 0, 0) for _, server in pairs)
        taker.has(10)
        assert hub.loads.rows[FIELDS + COUNT] == 13
        # As SIGKILL leaves it: nothing is said any more.
        giver.balance._retry.cancel()
        heir = Owner(HUB, 0, 9)
        successor = Balance(hub.loads, Handover(hub.home, heir, NEWCOMERS), heir, lambda: 0, hub.clock)
        successor.open(lambda *_: None)
        taker.has(10)
        assert hub.loads.rows[FIELDS + COUNT] == 10
        successor.close()
        giver.balance._waiting.clear()
        for pair in pairs:
            for sock in pair:
                sock.close()


@async_test
async def test_what_is_on_its_way_counts(monkeypatch):
    """Who says anew how many it has does not forget those that wait in its queue; a successor begins without them."""
    with rig(30, 0) as hub:
        asyncio.get_running_loop().remove_reader(hub.workers[1].balance._handover._sock)
        for _ in range(3):
            assert hub.passes(hub.workers[0])
        hub.workers[1].has(10)
        assert hub.loads.rows[FIELDS + COUNT] == 13
        successor = Balance(hub.loads, Handover(hub.home, HEIR, NEWCOMERS), HEIR, lambda: 7, hub.clock)
        successor.open(lambda *_: None)
        assert (hub.loads.rows[FIELDS + COUNT], hub.loads.rows[FIELDS]) == (7, HEIR.generation)
        successor.close()
