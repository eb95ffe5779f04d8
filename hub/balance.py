"""Balance: new connections go to the worker that has the fewest.

Does: tell all workers of a machine how many connections each has, in memory that they share, and pass an accepted
socket, of which nothing has been read, to the one with the fewest when this one has clearly more.
Does not: accept or read (acceptor), nor move a client that is connected.
Called by: supervisor (makes `Loads` before the forks), worker (`Balance`), acceptor (`passes`).
Never break: a connection that can't be passed on at once stays where it was accepted; one that was passed is the other
worker's, and no longer open here.

The kernel spreads connections by a hash of their addresses: of 1,000 clients on four workers each has 250, give or take
30, and a worker that was replaced stays empty while the others are full. What is passed costs two system calls here and
one there, and the fuller a worker is the rarer it is needed: at 50,000 clients each chance itself is within SLACK.
"""

from __future__ import annotations

import mmap
import socket
import time
from collections.abc import Callable

from .handover import Handover
from .relay import Owner

FEW = 4
SLACK = 50
"""Kept are connections up to FEW, or one in SLACK, more than the emptiest worker has: 2 %."""
FRESH_S = 1.0
"""Who has not said for so long how many it has is not given any: it may hang. They say so many times in that."""
GENERATION, COUNT, SAID_MS = range(3)
FIELDS = 3

Take = Callable[[socket.socket, int, int], None]
"""Gets a new connection, and which acceptor's and listener's it is."""


class Loads:
    """One row for each slot, in memory that forks share: generation, connections (-1: takes none), said when."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, 8 * FIELDS * workers)
        # Each number is written by one machine instruction, so that nobody reads half of one; nothing else is promised.
        self.rows = memoryview(self._memory).cast("q")
        for slot in range(workers):
            self.rows[FIELDS * slot + COUNT] = -1


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
        self._workers = loads.workers
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
        self.tell()

    def tell(self) -> None:
        """Say how many there are now; call several times in FRESH_S."""
        if self._take is None or self._resting:
            return
        at = FIELDS * self._owner.slot
        self._rows[at + COUNT] = self._count()
        self._rows[at + SAID_MS] = int(self._clock() * 1000)

    def rest(self) -> None:
        """Accepting ends: be given no more but what is on its way."""
        self._resting = True
        self._rows[FIELDS * self._owner.slot + COUNT] = -1

    def close(self) -> None:
        """The process ends."""
        self.rest()
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
        other_owner = self._owner._replace(slot=slot, generation=rows[FIELDS * slot + GENERATION])
        if not self._handover.offer(other_owner, sock.fileno(), b"%d %d" % (kind, place)):
            return False
        # Its own count comes with its next turn; until then it is not given what everybody has.
        rows[FIELDS * slot + COUNT] += 1
        self.passed += 1
        sock.close()
        return True

    def _receive(self, fd: int, words: bytes) -> None:
        sock = socket.socket(fileno=fd)
        if self._take is None:
            sock.close()
            return
        sock.setblocking(False)
        self.taken += 1
        kind, place = map(int, words.split())
        self._take(sock, kind, place)
        self.tell()
