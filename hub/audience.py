"""Audiences and groups: who receives what, arranged so that many receive the very same bytes.

Does: keep, for each channel (a Line) and the terms on which it is taken, who is subscribed (an Audience), and put
subscribers with the same set of audiences together (a Group), so that what is pending for them is joined once for all.
Does not: encode, write or know Redis. fanout decides who moves, groups moves them; sweep writes.
Called by: fanout, groups, sweep, connection (place, replace).
Never break: a subscriber is in one group at most, and there either in `fds` (may be written to past its outbox) or in
`others` (backlog, or no plain socket), never in both.

A thousand readers of one ticker page are one group: one join, then a bare loop of writes. A thousand readers with a
random watch list each are a thousand groups of one: one join for each, which their different bytes cost anyway. What is
to be joined lies on one board, so that a group picks its part in one call, and nothing is asked of each audience.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

from .channels import Mode
from .position import Position

AudienceMode = Mode | Literal["raw"]
"""As its channel's, or "raw": every value of a `latest` channel, or the subscriber is too slow."""


class WireForm(Protocol):
    """How publications look on one wire; one object per form, shared by all its connections."""

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        """The complete frame, ready to be written as it is."""

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        """The same for a join or leave push."""

    def encode_message(self, message: bytes) -> bytes:
        """The same of a message that is no publication."""


class Update(NamedTuple):
    """What a subscriber is told of a `latest` channel at once: its newest value, and what that stands for."""

    body: bytes
    merged: int = 0
    """Values that were published since the one before and are not sent, as this one is newer; -1: none is new, and the
    last one is sent again."""
    gap: int = 0
    """Values that the source has numbered and that never came, among those."""
    state: str = ""
    """'stale' or 'live' where that has changed, else ''."""
    upto: Stand | None = None
    """How much of the channel is served by it."""

    def since(self, stand: Stand) -> Update:
        """The same for somebody who had been served a part of what it stands for."""
        if self.upto is None or self.merged < 0:
            return self
        merged, gap = _between(stand, self.upto)
        return self._replace(merged=merged, gap=gap)


class View(WireForm, Protocol):
    """A wire form of subscriptions with wishes: fewer fields, marks, another channel's name."""

    marks: bool

    def encode_update(self, channel: str, update: Update) -> bytes:
        """The complete frame."""

    def body(self, channel: str, update: Update) -> bytes:
        """The publication in it."""


class Mergeable(bytes):
    """A frame that knows what it stands for, so that it can take an older one's place."""

    __slots__ = ()

    def over(self, older: bytes) -> bytes:
        """This frame instead of both."""
        raise NotImplementedError

    def since(self, stand: Stand) -> bytes:
        """The same for somebody who had been served a part of what it stands for."""
        raise NotImplementedError


def replacing(frame: bytes, older: bytes) -> bytes:
    """The frame that is sent instead of both."""
    return frame.over(older) if isinstance(frame, Mergeable) else frame


class Numbering(NamedTuple):
    """What a value says of its place at the source."""

    seq: int = 0
    """0: nothing."""
    thinned: int = 0
    """Values before it that were merged into it there, or by the ticker."""
    era: int = 0


class Stand(NamedTuple):
    """How much of a `latest` channel somebody has been served."""

    number: int = 0
    """Of the last publication, since the channel has subscribers here."""
    seq: int = 0
    """The source's own number of it; 0: not known."""
    stale: bool = False
    """It was told that the source is silent."""
    thinned: int = 0
    """Values that were merged before they came to the hub's channel, so far."""
    era: int = 0
    """In which the source has numbered; another one begins anew."""


class Rate(Protocol):
    """How often at most an audience is told; pace.Pace."""

    period_s: float
    """0: never."""
    groups: set[Group]
    """Those that hold any audience of it."""
    waiting: dict[Audience, None]
    """With something new since its last moment."""
    arrivals: dict[Subscriber, dict[Audience, Stand]]
    """Who came since its last moment and is behind or before the others, and up to what each has been served."""

    def rouse(self) -> None:
        """Somebody waits for its next moment."""

    def touch(self, audience: Audience) -> None:
        """There is something new."""

    def arrive(self, subscriber: Subscriber, audience: Audience, stand: Stand) -> None:
        """Somebody comes who has been served up to `stand`."""

    def told(self, subscriber: Subscriber, audience: Audience, stand: Stand) -> None:
        """Somebody who has come, and was not let in yet, has been served more by another way."""

    def leave(self, subscriber: Subscriber, audience: Audience) -> Stand | None:
        """Somebody goes; its own stand, where it has one."""


class Terms(NamedTuple):
    """On what terms a subscription takes a `latest` channel; those with equal ones share their bytes."""

    form: View
    raw: bool = False
    """Every value, or closed as too slow; else the newest where the socket is behind."""
    pace: Rate | None = None
    """How often at most; None: as often as there is something."""


class Subscriber(Protocol):
    """One connection, as the fan-out sees it."""

    group: Group | None
    place: int
    """Index in `group.fds`; ELSEWHERE while it stands in `group.others` or in no group. The group's own."""

    @property
    def fd(self) -> int:
        """A descriptor; of one without a socket to itself, a `new_number`: the sweep tells subscribers apart by it."""

    @property
    def wire(self) -> WireForm: ...

    @property
    def open(self) -> bool:
        """It may still be sent publications."""

    @property
    def direct(self) -> bool:
        """Open, a socket and no backlog: bytes may be written past the outbox, to `fd` itself unless it is `sealed`."""

    @property
    def sealed(self) -> bool:
        """Its socket speaks TLS: what goes past the outbox goes by `write_past`."""

    def put(self, frame: bytes) -> None:
        """Queue bytes that must not be lost."""

    def left(self, *audiences: Audience) -> None:
        """What waits of channels that it has left is not replaced by newer values any more."""

    def offer(self, audience: Audience, frame: bytes) -> None:
        """Queue a publication's frame in the outbox, by the rules for slow readers. Never waits, never raises."""

    def write_past(self, data: bytes) -> int:
        """Write past the outbox, while `direct`: how much was taken, -1 if the peer is gone."""

    def torn(self, rest: bytes) -> None:
        """A direct write took a part only, or nothing: `rest` goes first in the outbox,
        the subscriber is not direct.
        """

    def broken(self) -> None:
        """A direct write failed: the connection is over."""

    def too_slow(self) -> None:
        """It can't be given what it wants: the connection is over."""


class Volatile(bytes):
    """A frame that whoever would have to wait for it goes without."""

    __slots__ = ()


ELSEWHERE = -1
LOOK_UP = 4
"""To look one audience of a batch up costs about as much as to pick so many from the board."""
Pick = Callable[[list[bytes]], Iterable[bytes]]
_numbers = itertools.count(ELSEWHERE - 1, -1)


def new_number() -> int:
    """For a subscriber without a socket to itself: below 0, and no other's in this process."""
    return next(_numbers)


class Board:
    """What the batch that is being swept holds for each audience, as one piece: at its slot, b'' for nothing.

    As long as the most audiences that there ever were at once.
    """

    __slots__ = ("_free", "_retired", "ready")

    def __init__(self) -> None:
        self.ready: list[bytes] = []
        self._free: list[int] = []
        self._retired: list[int] = []

    def take(self) -> int:
        """A slot for a new audience."""
        if self._free:
            return self._free.pop()
        self.ready.append(b"")
        return len(self.ready) - 1

    def retire(self, slot: int) -> None:
        """The slot's audience is over; groups may still pick from there until they are settled."""
        self._retired.append(slot)

    def release(self) -> None:
        """All groups are settled, and no batch is being swept: what was retired may be taken."""
        self._free += self._retired
        self._retired.clear()


class Line:
    """One channel that has subscribers in this worker."""

    __slots__ = (
        "audiences",
        "channel",
        "era",
        "heard_at",
        "keeps",
        "marked",
        "newest",
        "number",
        "seq",
        "stale",
        "stale_s",
        "thinned",
    )

    def __init__(self, channel: str, keeps: bool, stale_s: float = 0.0) -> None:
        self.channel = channel
        self.stale_s = stale_s
        """A source that is silent for so long is told as stale; 0: never."""
        self.heard_at = UNHEARD
        """When the newest value came, or somebody began to wait for it; kept where there is a `stale_s`."""
        self.keeps = keeps
        """It is a `latest` channel."""
        self.audiences: dict[WireForm | Terms, Audience] = {}
        """By the wire form of those without wishes, or by the terms."""
        self.newest: bytes | None = None
        """The newest body, as far as it is known here; only where it `keeps`."""
        self.number = 0
        """Of the newest publication, counted since it has subscribers; likewise."""
        self.seq = 0
        """The source's number of the newest, while `marked`; 0 where it is not known."""
        self.marked = 0
        """Audiences that want marks."""
        self.stale = False
        """The source is silent."""
        self.thinned = self.era = 0
        """As a Stand has them, while `marked`."""

    @property
    def stand(self) -> Stand:
        return Stand(self.number, self.seq, self.stale, self.thinned, self.era)

    def note(self, numbering: Numbering, now: float) -> None:
        """The newest value has come, while `marked`."""
        self.seq, thinned, self.era = numbering
        self.thinned += thinned
        self.heard_at, self.stale = now, False

    def is_silent(self, now: float) -> bool:
        """The source has been silent for too long, as far as it is known here."""
        return bool(self.stale_s) and self.heard_at != UNHEARD and now >= self.heard_at + self.stale_s

    def update(self, stand: Stand, marks: bool) -> Update | None:
        """What somebody has not been told who was served up to `stand`; None: nothing. marks: silence is told, too."""
        turned = marks and stand.stale != self.stale
        now = self.stand
        if self.newest is None or (now.number == stand.number and not turned):
            return None
        merged, gap = _between(stand, now)
        return Update(self.newest, merged, gap, (STALE if self.stale else LIVE) if turned else "", now)


STALE, LIVE = "stale", "live"
UNHEARD = -1.0
"""Of a clock that never goes below 0."""


def _between(stand: Stand, now: Stand) -> tuple[int, int]:
    """Merged values and gap, where the newest one alone is sent; -1 and 0 where none is new."""
    merged = now.number - stand.number - 1
    if merged < 0:
        return -1, 0
    merged += now.thinned - stand.thinned
    numbered = now.seq and stand.seq and now.era == stand.era
    return merged, max(0, now.seq - stand.seq - 1 - merged) if numbered else 0


class Audience:
    """The subscribers of one channel on the same terms."""

    __slots__ = (
        "apart",
        "arriving",
        "channel",
        "frames",
        "full",
        "groups",
        "line",
        "mode",
        "pace",
        "pause_s",
        "position",
        "sent",
        "size",
        "slot",
        "view",
        "wire",
    )

    def __init__(self, channel: str, wire: WireForm, mode: AudienceMode, slot: int, pause_s: float = 0.0) -> None:
        self.channel = channel
        self.wire = wire
        self.mode = mode
        self.view: View | None = None
        """The wire again, of those who take it on terms."""
        self.pace: Rate | None = None
        self.apart = False
        """Paced or marked: a publication is not taken up as it comes."""
        self.line: Line | None = None
        """Its channel, of those who take it on terms."""
        self.sent = Stand()
        """What its settled members have been served; only where it is `apart`."""
        self.arriving = 0
        """Members that its pace has yet to let in."""
        self.pause_s = pause_s
        """How long a publication waits for others, in seconds; the namespace's flush_ms."""
        self.full = False
        """A publication of a `stream` channel could not be taken up, so none behind it may follow."""
        self.slot = slot
        """Its place on the board."""
        self.size = 0
        """Subscribers, those included who are about to move in."""
        self.groups: set[Group] = set()
        """Those that hold it. All audiences of a pace have one set for it: where a moment tells of many channels, which
        groups it concerns is not worth knowing, and a list that goes to another pace leaves one set and not fifty."""
        self.frames: list[bytes] = []
        """What the batch that is being swept holds for it; the same as one piece lies on the board."""
        self.position: Position | None = None
        """For a wire form with a `stamp`, and kept by that."""


class Group:
    """Subscribers with exactly the same audiences."""

    __slots__ = ("_members", "alone", "audiences", "fds", "others", "pick", "stamp")

    def __init__(self, audiences: frozenset[Audience]) -> None:
        """audiences: one or more. Whoever makes the group enters it in their `groups`."""
        self.arrange(audiences)
        self.alone = ELSEWHERE
        """The one member's descriptor, where there is but one and that is direct; ELSEWHERE otherwise."""
        self.fds: list[int] = []
        self._members: list[Subscriber] = []
        """Whose descriptors `fds` are, in the same order."""
        self.others: dict[Subscriber, None] = {}

    def arrange(self, audiences: frozenset[Audience]) -> None:
        """All members have these audiences from now on; not in the middle of a sweep."""
        self.audiences = audiences
        self.pick = _pick([audience.slot for audience in audiences])
        """Takes its part from the board's `ready`, to be joined."""
        self.stamp: Callable[[Group], bytes] | None = getattr(next(iter(audiences)).wire, "stamp", None)
        """Of a wire form whose clients are told at the end of each batch where they are: what to say behind this one,
        the same for all members, b'' for nothing. None for all other forms, which have no such method."""

    def __len__(self) -> int:
        return len(self.fds) + len(self.others)

    def members(self) -> list[Subscriber]:
        """All of them."""
        return [*self._members, *self.others]

    def add(self, subscriber: Subscriber) -> None:
        """Let in a subscriber of no group, in `fds` if it is direct and not sealed."""
        subscriber.group = self
        if subscriber.direct and not subscriber.sealed:
            subscriber.place = len(self.fds)
            self.fds.append(subscriber.fd)
            self._members.append(subscriber)
        else:
            subscriber.place = ELSEWHERE
            self.others[subscriber] = None
        self._see_who_is_alone()

    def remove(self, subscriber: Subscriber) -> None:
        """Take a member out; the last of `fds` moves into its place."""
        place, subscriber.place = subscriber.place, ELSEWHERE
        subscriber.group = None
        if place == ELSEWHERE:
            del self.others[subscriber]
        else:
            fd, last = self.fds.pop(), self._members.pop()
            if last is not subscriber:
                self.fds[place], self._members[place] = fd, last
                last.place = place
        self._see_who_is_alone()

    def _see_who_is_alone(self) -> None:
        self.alone = self.fds[0] if len(self.fds) == 1 and not self.others else ELSEWHERE

    def replace(self, subscriber: Subscriber) -> None:
        """Put a member where it belongs now, after it began or ceased to be direct."""
        self.remove(subscriber)
        self.add(subscriber)

    def pending_frames(self, dirty: list[Audience]) -> Iterator[tuple[Audience, bytes]]:
        """The same as `pending`, frame by frame, in the same order; without the stamp."""
        concerned: Iterable[Audience] = self.audiences if self.picks_from(dirty) else self._of(dirty)
        return ((audience, frame) for audience in concerned for frame in audience.frames)

    def pending(self, dirty: list[Audience], ready: list[bytes]) -> bytes:
        """What the current batch holds for this group, as one piece. dirty: the batch's audiences; ready: the board's.

        The sweep does the same itself for groups of one.
        """
        if self.picks_from(dirty):
            data = b"".join(self.pick(ready))
        else:
            data = b"".join([ready[audience.slot] for audience in self._of(dirty)])
        return data + self.stamp(self) if self.stamp is not None and data else data

    def picks_from(self, dirty: list[Audience]) -> bool:
        """All slots are read; False where the batch is so small for this group that each of its audiences is tried."""
        return len(self.audiences) <= LOOK_UP * len(dirty)

    def _of(self, dirty: list[Audience]) -> list[Audience]:
        return [audience for audience in dirty if audience in self.audiences]


def _pick(slots: list[int]) -> Pick:
    # itemgetter gives a bare item for one index, but a list for one slice. In C, and half as dear as a loop in Python.
    return itemgetter(*slots) if len(slots) > 1 else itemgetter(slice(slots[0], slots[0] + 1))
