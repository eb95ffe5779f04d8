"""Sweep: one batch of publications written to everybody whom it concerns, in slices.

Does: go from group to group and write each group's joined bytes to all its direct members in a bare loop of `os.write`,
those of groups of one in a bare loop over the groups; have those write who speak TLS; hand the batch to the outboxes
of the others.
Does not: decide what is in a batch or who is in a group (fanout), nor read or close sockets.
Called by: fanout (begin, run), connection (take_for, departs).
Never break: nothing is written to a descriptor whose connection has torn bytes, last words or its end before it:
such a one is in `_skip`, or out of its group before the sweep gets there.

A slice of about 2 ms, then the loop serves everybody else; the next publications wait meanwhile and go out together in
the next batch, so a hub that falls behind makes its batches larger and its writes fewer (adaptive coalescing).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from .audience import LOOK_UP, Audience, Group, Subscriber
from .tls import RECORD_BYTES

PRIME = 7919
CHUNK_BYTES = 1_048_576
"""The same in bytes: the kernel copies about a gigabyte a second."""
WHOLE_BYTES = 16_384
"""A rest up to so many bytes is kept as one piece."""
CHUNK = 128
"""Writes between two looks at the clock: about half a millisecond."""


class Sweep:
    """The sweep of one worker; one batch at a time."""

    def __init__(self, members: Mapping[int, Subscriber], clock: Callable[[], float], ready: list[bytes]) -> None:
        """members: the plane's connections by descriptor; ready: the board's."""
        self._members = members
        self._clock = clock
        self._ready = ready
        self._dirty: list[Audience] = []
        self._order: Iterator[Group] = iter(())
        self._left: set[Group] = set()
        """Groups that have not been reached: those that `_order` has still to give."""
        self._group: Group | None = None
        self._fds: list[int] = []
        self._next = 0
        self._places: dict[int, int] | None = None
        """Where each of `_fds` stands; made when the first of them is looked for."""
        self._others: dict[Subscriber, None] = {}
        """Of the group at hand, who is not direct and has not been offered the batch."""
        self._per_chunk = 1
        """How many of them in one chunk."""
        self._data = b""
        self._skip: set[int] = set()
        self._turn = 0
        self.running = False
        self.writes = 0
        """System calls since the start."""

    def begin(self, dirty: list[Audience], groups: Iterable[Group]) -> None:
        """Start on a batch: `dirty` audiences have `frames`, and their pieces lie on the board; `groups` are those that
        hold any of them.
        """
        self._dirty = dirty
        # Another start each time, so that the same clients are not always the last.
        order = list(groups)
        start = self._turn * PRIME % len(order) if order else 0
        self._order = iter(order[start:] + order[:start])
        self._left = set(order)
        self._skip = set()
        self._walk([])
        self._turn += 1
        self.running = True

    def _walk(self, fds: list[int]) -> None:
        self._fds, self._next, self._places = fds, 0, None

    def run(self, slice_s: float) -> bool:
        """Write for about `slice_s` seconds. True: the batch is done."""
        stop_at = self._clock() + slice_s
        while self.running:
            if self._next >= len(self._fds) and not self._others:
                self._reach_groups()
            if self._next < len(self._fds):
                self._write_chunk()
            elif self._others:
                self._offer_chunk()
            self.running = self._next < len(self._fds) or bool(self._others or self._left)
            if self._clock() >= stop_at:
                break
        if not self.running:
            self._group = None
        return not self.running

    def take_for(self, subscriber: Subscriber) -> bytes:
        """The batch's bytes for a member that is writing something of its own right now, b'' if there is nothing to
        join.

        The caller writes them behind its own; the sweep passes it over.
        """
        group = subscriber.group
        if group is None or group not in self._left or subscriber.fd in self._skip or not subscriber.direct:
            return b""
        self._skip.add(subscriber.fd)
        return group.pending(self._dirty, self._ready)

    def serve_now(self, subscriber: Subscriber) -> None:
        """Put the batch's part of a member whose turn is still to come into its outbox; the sweep passes it over."""
        group = subscriber.group
        if not self.running or group is None or not subscriber.open or subscriber.fd in self._skip:
            return
        if group in self._left or (group is self._group and self._is_to_come(subscriber)):
            self._skip.add(subscriber.fd)
            if not subscriber.direct:
                self._offer(subscriber)
            elif data := group.pending(self._dirty, self._ready):
                subscriber.put(data)

    def departs(self, subscriber: Subscriber) -> None:
        """A direct member ceases to be direct. If its turn in the group at hand is to come, its outbox gets it."""
        if not self.running or subscriber.group is not self._group:
            return
        self.serve_now(subscriber)
        self._skip.add(subscriber.fd)

    def _is_to_come(self, subscriber: Subscriber) -> bool:
        """Whether a member of the group at hand still waits for its turn."""
        if subscriber in self._others:
            return True
        if self._places is None:
            # 2 ms for a hundred thousand, but once: thousands may leave while their group is being swept.
            self._places = dict(zip(self._fds, range(len(self._fds)), strict=True))
        return self._places.get(subscriber.fd, -1) >= self._next

    def _reach_groups(self) -> None:
        """Write to groups of one, a chunk of them at the most, and take up the next that is not.

        Everybody with a list of their own is the usual case of watch lists: this loop is as bare as that in `_write`.
        """
        # The group before is done: nobody of it has to be looked for any more.
        self._group = None
        self._walk([])
        dirty, ready, skip, reached = self._dirty, self._ready, self._skip, self._left.remove
        join, write, wide = b"".join, os.write, LOOK_UP * len(dirty)
        writes, room = 0, CHUNK_BYTES
        for group in islice(self._order, CHUNK):
            reached(group)
            fd = group.alone
            if fd < 0:
                self._take_up(group)
                break
            if fd in skip:
                continue
            # As `pending` does it, whose call would cost as much as all else here.
            plain = len(group.audiences) <= wide and group.stamp is None
            data = join(group.pick(ready)) if plain else group.pending(dirty, ready)
            size = len(data)
            if not size:
                continue
            writes += 1
            try:
                written = write(fd, data)
            except BlockingIOError:
                written = 0
            except OSError:
                written = -1
            if written != size:
                self._mend([(fd, written)], data)
            room -= size
            if room <= 0:
                break
        self.writes += writes

    def _take_up(self, group: Group) -> None:
        self._group = group
        self._data = group.pending(self._dirty, self._ready) if group.fds else b""
        start = self._turn * PRIME % len(group.fds) if group.fds else 0
        self._walk(group.fds[start:] + group.fds[:start] if self._data else [])
        self._others = dict(group.others)
        if self._others:
            frames = sum(len(audience.frames) for audience in self._dirty if audience in group.audiences)
            self._per_chunk = max(1, CHUNK // max(1, frames))

    def _offer_chunk(self) -> None:
        """The outboxes of the slow, behind the writes to all others: however many they are, nobody waits for them.

        Among them are those who speak TLS: theirs are writes, too, but no system calls of ours.
        """
        room = CHUNK_BYTES
        for _ in range(min(self._per_chunk, len(self._others))):
            subscriber, _ = self._others.popitem()
            if subscriber.fd in self._skip:
                continue
            if subscriber.sealed and subscriber.direct:
                room -= self._write_past(subscriber)
            else:
                self._offer(subscriber)
            if room <= 0:
                break

    def _write_past(self, subscriber: Subscriber) -> int:
        """Bytes that it was to take."""
        group = subscriber.group
        if group is None:
            return 0
        data = self._data = self._data or group.pending(self._dirty, self._ready)
        self.writes += 1
        if data and (written := subscriber.write_past(data)) != len(data):
            self._mend([(subscriber.fd, written)], data)
        return len(data)

    def _write_chunk(self) -> None:
        count = max(1, min(CHUNK, CHUNK_BYTES // max(1, len(self._data))))
        fds = self._fds[self._next : self._next + count]
        self._next += len(fds)
        if self._skip:
            skip = self._skip
            fds = [fd for fd in fds if fd not in skip]
        self._write(fds, self._data)

    def _write(self, fds: list[int], data: bytes) -> None:
        size, write = len(data), os.write
        self.writes += len(fds)
        torn: list[tuple[int, int]] | None = None
        for fd in fds:
            try:
                written = write(fd, data)
            except BlockingIOError:
                written = 0
            except OSError:
                written = -1
            if written != size:
                torn = torn or []
                torn.append((fd, written))
        if torn:
            self._mend(torn, data)

    def _mend(self, torn: list[tuple[int, int]], data: bytes) -> None:
        for fd, written in torn:
            # Whoever is torn here has had its turn: `departs` must not offer it the batch again.
            self._skip.add(fd)
            subscriber = self._members.get(fd)
            if subscriber is None:
                continue  # another one's backlog has just cost this one its place
            if written < 0:
                subscriber.broken()
            elif len(data) - written <= WHOLE_BYTES:
                subscriber.torn(data[written:])
            else:
                self._tear(subscriber, written)

    def _tear(self, subscriber: Subscriber, written: int) -> None:
        """A large batch was taken in part: the frame at hand is finished, those behind it are offered one by one.

        As a whole they would pass every bound of the outbox, and a good reader would be taken for a slow one.
        """
        assert subscriber.group is not None
        # Of a sealed one the next record is at hand: it may be encrypted, and has to come again unchanged.
        at_hand = written + (RECORD_BYTES if subscriber.sealed else 1)
        end, rest = 0, []
        for audience, frame in subscriber.group.pending_frames(self._dirty):
            begin, end = end, end + len(frame)
            if begin < at_hand:
                rest.append(frame[max(0, written - begin) :])
                continue
            if rest:
                subscriber.torn(b"".join(rest))
                rest = []
            subscriber.offer(audience, frame)
        if rest:
            subscriber.torn(b"".join(rest))
        self._stamp(subscriber, subscriber.group)

    def _stamp(self, subscriber: Subscriber, group: Group | None) -> None:
        """Behind all frames of the batch; what ended its subscriber has taken it out of its group."""
        if group is not None and group.stamp is not None and (stamp := group.stamp(group)):
            subscriber.put(stamp)

    def _offer(self, subscriber: Subscriber) -> None:
        group = subscriber.group
        concerned = [audience for audience in self._dirty if audience in group.audiences] if group is not None else []
        for audience in concerned:
            for frame in audience.frames:
                subscriber.offer(audience, frame)
        if concerned:
            self._stamp(subscriber, group)
