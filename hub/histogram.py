"""Histogram: how often something took how long, in buckets; the noun that rooms count with and metrics tell.

Does: add one to a bucket, and say what has been counted since the start.
Does not: know names or labels, or who asks (metrics, figures); figures for a moment are differences of two readings.
Called by: lane, gathering, loopback, lag, tally (observe).
Never break: `observe` is one search and two additions, less than half a microsecond; nothing is ever taken back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

FAST_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""For what should take no time: a late timer, a sweep, a round trip to Redis on the same machine."""
SLOW_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""For what goes through a network, or waits for a client."""


class Histogram:
    """Counts by bucket; each bound belongs to the bucket below it, as with Prometheus' `le`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: rising; beyond the last one is one bucket more."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        """One for each bucket, not added up."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.counts)

    def about(self) -> dict[str, object]:
        """As JSON has it: {"bounds":[0.001,…],"counts":[3,…,0],"sum":0.002}; one count more than bounds."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": round(self.sum, 6)}
