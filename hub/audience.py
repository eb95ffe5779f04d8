"""Audiences and groups: who receives what, arranged so that many receive the very same bytes.

Does: keep, for each channel and wire form, who is subscribed (an Audience), and put subscribers with the same set of
audiences together (a Group), so that what is pending for them is joined once for all.
Does not: encode, write or know Redis. fanout decides when somebody moves; sweep writes.
Called by: fanout, sweep, connection (place, replace).
Never break: a subscriber is in one group at most, and there either in `fds` (may be written to past its outbox) or in
`others` (backlog, or no plain socket), never in both.

A thousand readers of one ticker page are one group: one join, then a bare loop of writes. A thousand readers with a
random watch list each are a thousand groups of one: one join for each, which their different bytes cost anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Protocol

from .channels import Mode


class WireForm(Protocol):
    """How publications look on one wire; one object per form, shared by all its connections."""

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        """The complete frame, ready to be written as it is."""


class Subscriber(Protocol):
    """One connection, as the fan-out sees it."""

    group: Group | None
    place: int
    """Index in `group.fds`; ELSEWHERE while it stands in `group.others` or in no group. The group's own."""

    @property
    def fd(self) -> int: ...

    @property
    def wire(self) -> WireForm: ...

    @property
    def open(self) -> bool:
        """It may still be sent publications."""

    @property
    def direct(self) -> bool:
        """Open, a plain socket and no backlog: bytes may be written to `fd` past the outbox."""

    def put(self, frame: bytes) -> None:
        """Queue bytes that must not be lost."""

    def left(self, audience: Audience) -> None:
        """What waits of a channel that it has left is not replaced by newer values any more."""

    def offer(self, audience: Audience, frame: bytes) -> None:
        """Queue a publication's frame in the outbox, by the rules for slow readers. Never waits, never raises."""

    def torn(self, rest: bytes) -> None:
        """A direct write took a part only, or nothing: `rest` goes first in the outbox,
        the subscriber is not direct.
        """

    def broken(self) -> None:
        """A direct write failed: the connection is over."""


ELSEWHERE = -1
READY = attrgetter("ready")
"""In C; half as dear as a loop in Python, and this runs once for each group and batch."""


class Audience:
    """The subscribers of one channel on one wire."""

    __slots__ = ("channel", "frames", "groups", "mark", "mode", "pause_s", "ready", "size", "wire")

    def __init__(self, channel: str, wire: WireForm, mode: Mode, mark: int, pause_s: float = 0.0) -> None:
        self.channel = channel
        self.wire = wire
        self.mode = mode
        self.pause_s = pause_s
        """How long a publication waits for others, in seconds; the namespace's flush_ms."""
        self.mark = mark
        """A random number of 64 bits; a group's key is the XOR of its audiences' marks (Zobrist hashing)."""
        self.size = 0
        """Subscribers, those included who are about to move in."""
        self.groups: set[Group] = set()
        self.frames: list[bytes] = []
        """What the batch that is being swept holds for it, frame by frame and as one piece."""
        self.ready = b""


class Group:
    """Subscribers with exactly the same audiences."""

    __slots__ = ("_members", "audiences", "fds", "key", "others")

    def __init__(self, key: int, audiences: frozenset[Audience]) -> None:
        self.key = key
        self.audiences = audiences
        self.fds: list[int] = []
        self._members: list[Subscriber] = []
        """Whose descriptors `fds` are, in the same order."""
        self.others: dict[Subscriber, None] = {}

    def __len__(self) -> int:
        return len(self.fds) + len(self.others)

    def add(self, subscriber: Subscriber) -> None:
        """Let in a subscriber of no group, in `fds` if it is direct."""
        subscriber.group = self
        if subscriber.direct:
            subscriber.place = len(self.fds)
            self.fds.append(subscriber.fd)
            self._members.append(subscriber)
        else:
            subscriber.place = ELSEWHERE
            self.others[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """Take a member out; the last of `fds` moves into its place."""
        place, subscriber.place = subscriber.place, ELSEWHERE
        subscriber.group = None
        if place == ELSEWHERE:
            del self.others[subscriber]
            return
        fd, last = self.fds.pop(), self._members.pop()
        if last is not subscriber:
            self.fds[place], self._members[place] = fd, last
            last.place = place

    def replace(self, subscriber: Subscriber) -> None:
        """Put a member where it belongs now, after it began or ceased to be direct."""
        self.remove(subscriber)
        self.add(subscriber)

    def pending_frames(self, dirty: list[Audience]) -> Iterator[tuple[Audience, bytes]]:
        """The same frame by frame, in the same order."""
        audiences = self.audiences
        order = [each for each in dirty if each in audiences] if len(dirty) < len(audiences) else audiences
        return ((audience, frame) for audience in order for frame in audience.frames)

    def pending(self, dirty: list[Audience]) -> bytes:
        """What the current batch holds for this group, as one piece. dirty: the batch's audiences."""
        audiences = self.audiences
        if len(dirty) < len(audiences):
            return b"".join([audience.ready for audience in dirty if audience in audiences])
        return b"".join(map(READY, audiences))
