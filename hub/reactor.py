"""Reactor: the plane's epolls, its end-of-turn flush and its timer wheel; the sockets of all clients of a worker.

Does: tell connections that their socket is readable or writable, write what they queued once per loop turn, fire
deadlines.
Does not: know bytes, frames, sessions or channels. A connection does the reading and writing; wires live in
transports/.
Called by: building (builds it), connection (arm, watch, schedule, bury).
Never break:
- all descriptors hang in two private epolls, clients' and newcomers', and those hang in uvloop: a thousand ready
  clients are one event of the loop, so they can't starve Redis, accepts or timers, nor newcomers them; what is left
  fires again, as an epoll is level-triggered;
- at the end of a turn each connection writes its own bytes first, then the batch is swept; so a reply that was queued
  before a publication is never overtaken by it;
- a descriptor is closed only between batches of events: inside a batch its number could come back as another client.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from .audience import Subscriber
from .backlog import Backlog
from .errors import Close
from .fairness import Fairness
from .tally import Tally
from .wheel import Timed, TimerWheel

logger = logging.getLogger(__name__)

READ = select.EPOLLIN | select.EPOLLRDHUP
EVENTS_PER_TURN = 512
SLICE_S = 0.002
"""How long reading, and how long deadlines, may hold the loop before everybody else has a turn."""
BRISK_S = 0.00025
"""The same while publications are on their way, for newcomers, of whom a storm brings thousands: a publication takes
four turns of the loop from its publisher to its subscribers."""
BRISK_SHARE = 0.25
"""Or so much of what the turn before took to write: where that is all that the loop does, they come in as well."""
BRISK_READ_S = 0.001
"""And for reading clients."""
LIVELY_S = 0.25
"""So long behind the last batch there may be another one soon."""


class Pollable(Timed, Protocol):
    """A connection, as the plane sees it."""

    @property
    def fd(self) -> int: ...

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...

    def flush(self) -> None:
        """Write what waits, at the end of the turn in which it was armed."""

    def close(self, close: Close) -> None:
        """End it in order."""

    def abort(self) -> None:
        """End it now; it buries or releases itself."""


class Batches(Protocol):
    """The fan-out, as the plane sees it: what is written besides the connections' own bytes."""

    began_at: float
    """When the last batch did."""

    def begin(self) -> None:
        """The turn ends: start the next batch, if none is under way."""

    def take_for(self, connection: Subscriber) -> bytes:
        """What the batch holds for a connection that writes now."""

    def serve_now(self, connection: Subscriber) -> None:
        """Queue for a connection, now, what the batch still holds for it."""

    def run(self) -> None:
        """Write a slice of the batch; ask by `arm_turn` for another turn while something is left."""

    def forget(self, connection: Subscriber) -> None:
        """Write nothing more to a connection."""

    def replace(self, connection: Subscriber) -> None:
        """A connection got a backlog, or got rid of it."""


class NoBatches:
    """A plane without a fan-out."""

    began_at = float("-inf")

    def begin(self) -> None: ...

    def take_for(self, connection: Subscriber) -> bytes:
        return b""

    def serve_now(self, connection: Subscriber) -> None: ...

    def run(self) -> None: ...

    def forget(self, connection: Subscriber) -> None: ...

    def replace(self, connection: Subscriber) -> None: ...


class _Ready:
    """One epoll, served in slices."""

    __slots__ = ("_connections", "_unserved", "begun_s", "epoll")

    def __init__(self, connections: dict[int, Pollable]) -> None:
        self.epoll = select.epoll()
        self._connections = connections
        self._unserved: Iterator[tuple[int, int]] | None = None
        """Events that the last slice has not reached."""
        self.begun_s = 0.0
        """Work that this slice has begun, and that the loop does right behind it: a part of the slice."""

    def serve(self, clock: Callable[[], float], slice_s: float) -> None:
        """Tell connections what is ready, for about so long."""
        connections = self._connections
        stop_at = clock() + slice_s
        self.begun_s = 0.0
        ready = self._unserved or iter(self.epoll.poll(0, EVENTS_PER_TURN))
        for fd, events in ready:
            connection = connections.get(fd)
            if connection is None:  # gone in this very batch
                continue
            if events & select.EPOLLOUT:
                connection.on_writable()
            if events & ~select.EPOLLOUT and connections.get(fd) is connection:
                connection.on_readable()
            if clock() + self.begun_s >= stop_at:
                break
        else:
            self._unserved = None
            return
        # The kernel puts at the end of its list whom it has named, served or not: asked again now, it would begin with
        # the same ones, and those who always have something to say would keep all others from their turn.
        if ready is not self._unserved:
            self._unserved = self._still_there([(fd, events, connections.get(fd)) for fd, events in ready])

    def _still_there(self, left_over: list[tuple[int, int, Pollable | None]]) -> Iterator[tuple[int, int]]:
        """Whose turn a slice did not reach, but for those who have gone by then."""
        connections = self._connections
        for fd, events, one in left_over:
            if one is not None and connections.get(fd) is one:
                yield fd, events


class Reactor:
    """The plane of one worker. Build it after the fork, with the worker's running loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        close_timeout_s: float = 5.0,
        backlog_bytes: int = 268_435_456,
        clock: Callable[[], float] = time.monotonic,
        tick_s: float = 0.1,
        fairness: Fairness | None = None,
    ) -> None:
        """tick_s: so late may a deadline be. fairness: None: everybody may take all of the loop's time."""
        self._loop = loop
        self.clock = clock
        self.close_timeout_s = close_timeout_s
        self.backlog = Backlog(backlog_bytes)
        self.tally = Tally()
        self.connections: dict[int, Pollable] = {}
        self.batches: Batches = NoBatches()
        self.fairness = fairness if fairness is not None else Fairness(clock, loop.call_later)
        self._ready = _Ready(self.connections)
        self._newcomers = _Ready(self.connections)
        """Who has yet to say what it wants: a storm of them must not stand before those who are in."""
        self._new: set[int] = set()
        """Their descriptors."""
        self._dirty: list[Pollable] = []
        self._unread: dict[Pollable, None] = {}
        self._graves: list[int] = []
        self._flush_armed = False
        self._wrote_s = 0.0
        """What the last flush took."""
        self._wheel = TimerWheel(clock, tick_s)
        self._tick: asyncio.TimerHandle | None = None
        self._on_empty: Callable[[], None] | None = None

    def start(self) -> None:
        """Hang the plane into the loop."""
        self._loop.add_reader(self._ready.epoll.fileno(), self._drain)
        self._loop.add_reader(self._newcomers.epoll.fileno(), self._drain_newcomers)
        self._advance()

    def stop(self) -> None:
        """Take the plane out of the loop and close what is left of it, without a word to the clients."""
        for ready in (self._ready, self._newcomers):
            self._loop.remove_reader(ready.epoll.fileno())
        if self._tick is not None:
            self._tick.cancel()
        for connection in list(self.connections.values()):
            connection.abort()
        self._bury()
        for ready in (self._ready, self._newcomers):
            ready.epoll.close()

    def adopt(self, connection: Pollable, *, newcomer: bool = False) -> None:
        """Take over a connection and its descriptor; from now on the plane closes it. newcomer: it is no client yet.

        A negative number stands for a client without a socket of its own, such as one that polls: it has deadlines and
        is drained like all others.
        """
        self.connections[connection.fd] = connection
        if newcomer:
            self._new.add(connection.fd)
        if connection.fd >= 0:
            self._of(connection.fd).epoll.register(connection.fd, READ)

    def _of(self, fd: int) -> _Ready:
        return self._newcomers if fd in self._new else self._ready

    def move(self, connection: Pollable, number: int) -> None:
        """A connection that stood under the negative `number` has a descriptor now."""
        if self.connections.pop(number, None) is not connection:
            raise RuntimeError(f"{number} is no connection's number")
        self.adopt(connection)

    def arm(self, connection: Pollable) -> None:
        """Flush `connection` at the end of this loop turn; the connection asks once per turn."""
        self._dirty.append(connection)
        if not self._flush_armed:
            self.arm_turn()

    def arm_turn(self) -> None:
        """Have `batches` called at the end of this loop turn."""
        if not self._flush_armed:
            self._flush_armed = True
            self._loop.call_soon(self._flush)

    def watch_writes(self, connection: Pollable, wanted: bool, *, reads: bool = True) -> None:
        """Say `connection.on_writable` when its socket takes bytes again; `wanted` False: no longer.

        reads: False: and not `on_readable`, until it is asked for again; what can't be kept from it, the end of both
        directions, is said once.
        """
        epoll = self._of(connection.fd).epoll
        epoll.modify(connection.fd, (READ if reads else select.EPOLLONESHOT) | (select.EPOLLOUT if wanted else 0))

    def read_on(self, connection: Pollable) -> None:
        """Call `connection.on_readable` in the next turn: there is more, of which the epoll does not know."""
        if not self._unread:
            self._loop.call_soon(self._read_unread)
        self._unread[connection] = None

    def schedule(self, connection: Pollable, at: float) -> None:
        """Call `connection.on_timer` at `at` (seconds of the plane's clock); replaces its earlier deadline."""
        self._wheel.schedule(connection, at)

    def bury(self, connection: Pollable) -> None:
        """Let go of a connection; its descriptor is closed at the end of the batch or turn."""
        if connection.fd >= 0:
            self._graves.append(connection.fd)
            self.arm_turn()
        self.release(connection)

    def release(self, connection: Pollable) -> None:
        """Let go of a connection whose descriptor somebody else takes over, or closes."""
        if self.connections.pop(connection.fd, None) is not connection:
            raise RuntimeError(f"descriptor {connection.fd} was released twice")
        self._wheel.cancel(connection)
        # Before close(): a copy of the descriptor elsewhere would keep it, and its events, in the epoll.
        if connection.fd >= 0:
            self._of(connection.fd).epoll.unregister(connection.fd)
            self._new.discard(connection.fd)
        if not self.connections and self._on_empty is not None:
            self._on_empty()

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the last connection goes, at once if there is none."""
        self._on_empty = callback
        if not self.connections:
            callback()

    @property
    def lively(self) -> bool:
        """Publications are on their way, or will be soon."""
        return self.clock() - self.batches.began_at < LIVELY_S

    @property
    def newcomers_s(self) -> float:
        """How long those who come, and those who have yet to say what they want, may hold the loop in this turn."""
        return max(BRISK_S, self._wrote_s * BRISK_SHARE) if self.lively else SLICE_S

    @property
    def begun_s(self) -> float:
        """Work that newcomers have begun since their last slice began."""
        return self._newcomers.begun_s

    def begins(self, work_s: float) -> None:
        """A newcomer is handed on to where it costs the loop so much more, in its next turn."""
        self._newcomers.begun_s += work_s

    def _drain(self) -> None:
        self._ready.serve(self.clock, BRISK_READ_S if self.lively else SLICE_S)

    def _drain_newcomers(self) -> None:
        self._newcomers.serve(self.clock, self.newcomers_s)

    def _read_unread(self) -> None:
        """In slices, as `_drain`: who has the most to say has one turn in each."""
        stop_at = self.clock() + SLICE_S
        unread, self._unread = self._unread, {}
        while unread:
            connection = next(iter(unread))
            del unread[connection]
            if self.connections.get(connection.fd) is connection:
                connection.on_readable()
            if self.clock() >= stop_at:
                break
        if unread and not self._unread:
            self._loop.call_soon(self._read_unread)
        self._unread = unread | self._unread

    def _flush(self) -> None:
        self._flush_armed = False
        began_at = self.clock()
        self.batches.begin()
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()
        self.batches.run()
        self._bury()
        self._wrote_s = self.clock() - began_at

    def _bury(self) -> None:
        graves, self._graves = self._graves, []
        for fd in graves:
            os.close(fd)

    def _advance(self) -> None:
        if self._wheel.advance(SLICE_S):
            # Some deadlines are left: a turn for everybody else, then go on.
            self._tick = self._loop.call_later(0, self._advance)
        else:
            self._tick = self._loop.call_later(self._wheel.tick_s, self._advance)
