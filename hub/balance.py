"""Balance: new connections go to the worker that has the fewest.

Does: tell all workers of a machine how many connections each has, in memory that they share, and pass an accepted
socket, of which nothing has been read, to the one with the fewest when this one has clearly more.
Does not: accept or read (acceptor), nor move a client that is connected.
Called by: supervisor (makes `Loads` before the forks), links (`Balance`), acceptor (`passes`).
Never break: a connection that is not taken in KEEP_S stays where it was accepted; one that was is the other worker's,
and no longer open here.

The kernel spreads connections by a hash of their addresses: of 1,000 clients on four workers each has 250, give or take
30, and a worker that was replaced stays empty while the others are full. What is passed costs two system calls here and
one there, and the fuller a worker is the rarer it is needed: at 50,000 clients each chance itself is within SLACK.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .handover import Handover
from .relay import Owner

FEW = 4
SLACK = 50
"""Kept are connections up to FEW, or one in SLACK, more than the emptiest worker has: 2 %."""
FRESH_S = 1.0
"""Who has not said for so long how many it has is not given any: it may hang. They say so many times in that."""
KEEP_S = 0.25
"""So long a connection may wait for a place in the other's queue, of which the kernel keeps ten or so."""
RETRY_S = 0.002
MAX_WAITING = 1024
"""Connections that wait for such a place; more stay where they are."""
GENERATION, COUNT, SAID_MS = range(3)
FIELDS = 3

Take = Callable[[socket.socket, int, int], None]
"""Gets a new connection, and which acceptor's and listener's it is."""


class Loads:
    """One row for each slot, in memory that forks share: generation, connections (-1: takes none), said when.

    given: how many connections each worker has given to each other one, all that go to one side by side. queued: the
    same of those that wait for a place in the other's queue; what a killed worker leaves there, its heir takes back.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        memory = memoryview(mmap.mmap(-1, 8 * workers * (FIELDS + 2 * workers))).cast("q")
        # Each number is written by one machine instruction, so that nobody reads half of one; nothing else is promised.
        self.rows, rest = memory[: FIELDS * workers], memory[FIELDS * workers :]
        self.given, self.queued = rest[: workers * workers], rest[workers * workers :]
        for slot in range(workers):
            self.rows[FIELDS * slot + COUNT] = -1


class _Waiting(NamedTuple):
    """A connection that is another worker's as soon as that has room for it, or ours again at `until`."""

    sock: socket.socket
    slot: int
    kind: int
    place: int
    until: float


class Balance:
    """One worker's share in it. Build it with a running loop."""

    def __init__(
        self,
        loads: Loads,
        handover: Handover,
        owner: Owner,
        count: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """handover: of this room's own. owner: this worker. count: of its connections; cheap, asked at each accept."""
        self._rows = loads.rows
        self._given = loads.given
        self._queued = loads.queued
        self._workers = loads.workers
        self._settled = 0
        """Of those that others have given to this slot: taken here, or lost with an earlier worker."""
        self._waiting: deque[_Waiting] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._handover = handover
        self._owner = owner
        self._count = count
        self._clock = clock
        self._take: Take | None = None
        self._resting = False
        self.passed = 0
        """Connections that were given to others, since the start."""
        self.taken = 0
        """And that came from them."""

    def open(self, take: Take) -> None:
        """Be given connections from now on. Raises OSError."""
        self._take = take
        self._handover.start(self._receive)
        self._rows[FIELDS * self._owner.slot + GENERATION] = self._owner.generation
        self._settled = self._sum_to_us(self._given)
        for slot in range(self._workers):
            # Of the worker before in this slot, with which they have gone.
            self._queued[slot * self._workers + self._owner.slot] = 0
        self.tell()

    def _sum_to_us(self, numbers: memoryview) -> int:
        first = self._owner.slot * self._workers
        return sum(numbers[first : first + self._workers])

    def tell(self) -> None:
        """Say how many there are now; call several times in FRESH_S."""
        if self._take is None or self._resting:
            return
        at = FIELDS * self._owner.slot
        # With what is on its way here: who was given more by everybody at once would soon have the most.
        coming = max(0, self._sum_to_us(self._given) - self._settled) + self._sum_to_us(self._queued)
        self._rows[at + COUNT] = self._count() + coming
        self._rows[at + SAID_MS] = int(self._clock() * 1000)

    def rest(self) -> None:
        """Accepting ends: be given no more but what is on its way."""
        self._resting = True
        self._rows[FIELDS * self._owner.slot + COUNT] = -1

    def close(self) -> None:
        """The process ends."""
        self.rest()
        if self._retry is not None:
            self._retry.cancel()
        while self._waiting:
            self._next().sock.close()
        self._take = None
        self._handover.close()

    def passes(self, sock: socket.socket, kind: int, place: int) -> bool:
        """Whether this new connection is another worker's now; then it is closed here.

        kind, place: of its acceptor and its listener, told to whoever takes it.
        """
        if self._take is None or self._resting:
            return False
        self.tell()
        rows = self._rows
        mine = rows[FIELDS * self._owner.slot + COUNT]
        most, slot = mine - max(FEW, mine // SLACK), -1
        stale_ms = int((self._clock() - FRESH_S) * 1000)
        for other in range(self._workers):
            at = FIELDS * other
            if 0 <= rows[at + COUNT] < most and rows[at + SAID_MS] > stale_ms:
                most, slot = rows[at + COUNT], other
        if slot < 0:
            return False
        one = _Waiting(sock, slot, kind, place, self._clock() + KEEP_S)
        if self._waiting or not self._offer(one):
            if len(self._waiting) >= MAX_WAITING:
                return False
            self._waiting.append(one)
            self._queued[slot * self._workers + self._owner.slot] += 1
            self._try_again_soon()
        # Its own count comes with its next turn; until then it is not given what everybody has.
        rows[FIELDS * slot + COUNT] += 1
        return True

    def _next(self) -> _Waiting:
        """The first of those that wait, who does so no more."""
        one = self._waiting.popleft()
        self._queued[one.slot * self._workers + self._owner.slot] -= 1
        return one

    def _offer(self, one: _Waiting) -> bool:
        owner = self._owner._replace(slot=one.slot, generation=self._rows[FIELDS * one.slot + GENERATION])
        if not self._handover.offer(owner, one.sock.fileno(), b"%d %d" % (one.kind, one.place)):
            return False
        self._given[one.slot * self._workers + self._owner.slot] += 1
        self.passed += 1
        one.sock.close()
        return True

    def _try_again_soon(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        """In their order; those whose time is over stay here."""
        self._retry = None
        while self._waiting and self._take is not None:
            one = self._waiting[0]
            if not self._offer(one):
                if self._clock() < one.until:
                    self._try_again_soon()
                    return
                self._next()
                self._take(one.sock, one.kind, one.place)
            else:
                self._next()

    def _receive(self, fd: int, words: bytes) -> None:
        sock = socket.socket(fileno=fd)
        if self._take is None:
            sock.close()
            return
        sock.setblocking(False)
        self.taken += 1
        self._settled += 1
        kind, place = map(int, words.split())
        self._take(sock, kind, place)
        self.tell()
