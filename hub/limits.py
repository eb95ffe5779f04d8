"""Limits: how often something may happen.

Does: count against a rate, with the clock passed in.
Does not: decide what is limited or what the answer is.
Called by: worker (builds them), transports.websocket and acceptor (handshakes).
"""

from __future__ import annotations

from collections.abc import Callable

ROUNDING = 1e-6
"""Seconds; ten times a tenth is not quite one."""


class TokenBucket:
    """At most `per_s` a second on average, and as many at once after a quiet second. per_s 0: no limit."""

    __slots__ = ("_clock", "_full_at", "_per_s")

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._clock = clock
        # One number is the whole state: the moment at which the bucket would be full again (GCRA, ITU-T I.371).
        self._full_at = clock()

    def take(self) -> bool:
        """Take one, if there is one."""
        if not self._per_s:
            return True
        now = self._clock()
        full_at = max(self._full_at, now) + 1 / self._per_s
        if full_at > now + 1 + ROUNDING:
            return False
        self._full_at = full_at
        return True
