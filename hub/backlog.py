"""Backlog: what waits in all outboxes of a worker because sockets take no more, its bound and its counts.

Does: add up the bytes, name the largest connections once a worker holds too many, count what slow readers cost.
Does not: close or write; the connection that pushes the sum over the bound asks whom to send away and does it.
Called by: connection.
Never break: only connections with a backlog are in here, so a worker full of good readers pays nothing for it.
"""

from __future__ import annotations

import heapq
from typing import Protocol

from .outbox import Verdict

SHED_TO = 0.9
"""Below this part of the bound nobody is sent away any more: otherwise each further frame would send one."""


class Sheddable(Protocol):
    """A connection, as the backlog sees it."""

    def shed(self) -> None:
        """Go now, to make room for the others."""


class Backlog:
    """The slow readers of one worker. Counts are since the start."""

    __slots__ = ("_sizes", "bytes", "conflated", "dropped", "max_bytes", "slow")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._sizes: dict[Sheddable, int] = {}
        self.conflated = 0
        """Values that a newer one of their channel has replaced before they were sent."""
        self.dropped = 0
        """Messages of `none` channels that were not queued."""
        self.slow = 0
        """Connections closed with 3008."""

    def __len__(self) -> int:
        return len(self._sizes)

    def count(self, verdict: Verdict) -> None:
        """One more of what became of a frame."""
        if verdict is Verdict.CONFLATED:
            self.conflated += 1
        elif verdict is Verdict.DROPPED:
            self.dropped += 1

    def holds(self, connection: Sheddable, size: int) -> bool:
        """`size` bytes wait for a connection now, 0: none any more. True: the sum is over the bound."""
        self.bytes += size - self._sizes.get(connection, 0)
        if size:
            self._sizes[connection] = size
        else:
            self._sizes.pop(connection, None)
        return self.bytes > self.max_bytes

    def largest(self) -> list[Sheddable]:
        """Whom to send away, the largest first, so that the sum falls to SHED_TO of the bound."""
        excess = self.bytes - SHED_TO * self.max_bytes
        chosen: list[Sheddable] = []
        for connection, size in heapq.nlargest(len(self._sizes), self._sizes.items(), key=lambda item: item[1]):
            if excess <= 0:
                break
            chosen.append(connection)
            excess -= size
        return chosen
