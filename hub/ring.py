"""Ring: the newest publications of one channel, kept in the worker that delivers them.

Does: answer for clients who come back what they have missed, without asking Redis; stay within a number of publications
each and a number of bytes all together.
Does not: know positions' epochs (recovery judges them), Redis or subscribers.
Called by: streams (append, restart), recovery (since).
Never break: what a ring holds is contiguous and ends at `top`; a gap is never papered over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

NOTHING_TOLD: tuple[int, list[bytes]] = (-1, [])


class Budget:
    """Bytes of all rings of a worker."""

    __slots__ = ("most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class Ring:
    """The bodies of the newest publications of one channel, in order, the last of them numbered `top`."""

    __slots__ = ("_bodies", "_budget", "_most", "_told", "top")

    def __init__(self, budget: Budget, most: int) -> None:
        """most: publications; as many as one reply may bring, since older ones would help nobody."""
        self._budget = budget
        self._most = most
        self._bodies: deque[bytes] = deque()
        self._told = NOTHING_TOLD
        self.top = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def append(self, body: bytes) -> None:
        """The publication `top` + 1."""
        bodies, budget = self._bodies, self._budget
        bodies.append(body)
        self.top += 1
        self._told = NOTHING_TOLD  # it would keep what the ring forgets
        budget.used += len(body)
        # Where all rings together are full, the one that grows gives way: a busy channel, not the silent ones.
        while len(bodies) > self._most or (budget.used > budget.most and bodies):
            budget.used -= len(bodies.popleft())

    def restart(self, top: int, bodies: Sequence[bytes] = ()) -> None:
        """Begin anew at `top`; bodies: the publications that end there, oldest first."""
        self.clear()
        self.top = top - len(bodies)
        for body in bodies:
            self.append(body)

    def clear(self) -> None:
        """Forget all publications; `top` stays."""
        self._budget.used -= sum(map(len, self._bodies))
        self._bodies.clear()
        self._told = NOTHING_TOLD

    def since(self, offset: int) -> list[bytes] | None:
        """The publications behind `offset`, which is at most `top`; None where the ring does not reach back so far.

        The same list again while nothing came: in a storm thousands ask for the same.
        """
        missed = self.top - offset
        if missed > len(self._bodies):
            return None
        if self._told[0] != offset:
            self._told = (offset, list(islice(self._bodies, len(self._bodies) - missed, None)))
        return self._told[1]
