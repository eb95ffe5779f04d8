"""Stream: one channel of mode `stream` as this worker follows it; the nouns of streams.

Does: hold the state of one channel, of who is inside and of who waits.
Does not: change it; streams does, and its head says what the states mean.
Called by: streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from .audience import Subscriber
from .channels import Namespace
from .errors import BAD_REQUEST, CommandError, HubError
from .message import StreamPublication
from .position import Position
from .recovery import Joined
from .ring import Ring

Done = Callable[[Joined | HubError], None]
GIVEN_UP = CommandError(BAD_REQUEST, "unsubscribed meanwhile")
"""Of a subscription that was not answered yet when the same subscriber asked for another one to the same channel."""


class StreamSubscriber(Subscriber, Protocol):
    """A subscriber that can be told to subscribe anew."""

    def displaced(self, channel: str) -> None:
        """It is in the channel's audience no more, and has to come back with the position that it has."""


class Joiner:
    """A subscriber that waits to be let in."""

    __slots__ = ("asked", "done", "fresh", "since", "subscriber")

    def __init__(self, subscriber: StreamSubscriber, since: Position | None, done: Done) -> None:
        self.subscriber = subscriber
        self.since = since
        self.done = done
        self.asked = False
        """A read that serves it is on its way."""
        self.fresh = False
        """Such a read has ended: what is not known now is not in Redis either."""


class Stream:
    """One channel."""

    __slots__ = (
        "again",
        "anew",
        "channel",
        "checked_at",
        "emptied_at",
        "epoch",
        "floor",
        "gap",
        "held",
        "held_before",
        "held_bytes",
        "joiners",
        "leaving",
        "members",
        "namespace",
        "newest",
        "opened",
        "reading",
        "reads",
        "recent",
        "ring",
        "turn",
    )

    def __init__(self, channel: str, namespace: Namespace, ring: Ring) -> None:
        self.channel = channel
        self.namespace = namespace
        self.ring = ring
        """Its `top` is the offset up to which the audience has everything."""
        self.epoch = ""
        """'' until the first read has ended."""
        self.members: dict[StreamSubscriber, None] = {}
        self.joiners: dict[StreamSubscriber, Joiner] = {}
        """Who waits; one for each, as who asks again has given up what it asked before."""
        self.turn: deque[Joiner] = deque()
        """Those of them who are tried now, a few at a time."""
        self.held: list[StreamPublication] = []
        self.opened = False
        """Redis has confirmed that everything from now on arrives."""
        self.reading = False
        self.leaving = False
        """Those who are inside are being taken out."""
        self.gap = False
        """Something behind `ring.top` is missing here: what arrives is held."""
        self.again = False
        """The read at hand began too early to show everything."""
        self.newest = False
        """The read at hand is of the newest publications, not of those behind `ring.top`."""
        self.held_bytes = 0
        self.held_before = 0
        """Of `held`, what had arrived when the read at hand was asked for."""
        self.anew = False
        """The read at hand replaces what was known, whether it follows or not."""
        self.floor = 0
        """`ring.top` when the read at hand was asked for: if Redis knows less now, it has lost something."""
        self.recent: list[bytes] | None = None
        """What was read for those who wait: bodies that end at `ring.top`. The ring may hold less."""
        self.reads = 0
        """In a row."""
        self.checked_at = 0.0
        """When something last came or was read; seconds of the clock."""
        self.emptied_at: float | None = None

    @property
    def live(self) -> bool:
        """What arrives can be passed on, and who comes can be let in."""
        return bool(self.epoch) and not self.gap and not self.leaving
