"""Recovery: what a subscriber is told when it joins, and whether its position can be served.

Does: give the shape of the answer to a subscription; judge a position against what this worker knows of the channel.
Does not: read Redis or keep anything; streams does, and asks here before and after.
Called by: streams, subscribe, session.
Never break: never partial. A subscriber gets everything behind its position, or is told that it has lost its place.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from .position import Position, survives
from .ring import Ring


class Joined(NamedTuple):
    """What a subscriber is told that is in now."""

    positioned: bool = False
    """`epoch` and `offset` say where the channel is."""
    recoverable: bool = False
    """It pays to come back with a position."""
    epoch: str = ""
    offset: int = 0
    """Where the channel is; behind it come the pushes."""
    recovered: bool | None = None
    """None: it did not ask. True: `publications` are all it has missed. False: something is lost, and it reloads."""
    publications: Sequence[bytes] = ()
    """Bodies, oldest first."""


class Verdict(enum.Enum):
    """What can be said of a position without reading Redis."""

    RECOVERED = "recovered"
    LOST = "lost"
    """More is missing than one reply may bring."""
    OLDER = "older"
    """Redis may have what the ring has no more."""
    UNKNOWN = "unknown"
    """Beyond what this worker knows: lost, or the worker is behind another one."""


def judge(since: Position, epoch: str, ring: Ring, most: int) -> tuple[Verdict, Sequence[bytes]]:
    """The verdict, and what the subscriber has missed where it is RECOVERED. most: publications in one reply."""
    if not survives(since, epoch, ring.top):
        return Verdict.UNKNOWN, ()
    if ring.top - since.offset > most:
        return Verdict.LOST, ()
    missed = ring.since(since.offset)
    return (Verdict.OLDER, ()) if missed is None else (Verdict.RECOVERED, missed)
