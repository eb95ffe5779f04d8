"""Health: whether this process lives, and whether clients should be sent here, with reasons.

Does: judge what the worker knows of itself, of its supervisor, of Redis and of the other workers.
Does not: answer HTTP (monitoring), end anybody (the supervisor ends workers that hang), or ask Redis (registry and
ingest know).
Called by: monitoring.
Never break: Redis being away never fails liveness. A restart would not bring it back, and would cost every client its
connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import facts
from .figures import Rooms

LAG_S = 5.0
"""A loop that is so late serves nobody in time."""
SUPERVISOR_S = 10.0
"""Its loop turns once a second."""


class Verdict(NamedTuple):
    """reasons: why not, by a word for programs and a sentence; empty: all is well.

    degraded: what is amiss, and may be.
    """

    reasons: dict[str, str]
    degraded: dict[str, str]

    @property
    def good(self) -> bool:
        return not self.reasons

    def about(self) -> dict[str, object]:
        """{"status":"ok"}, or {"status":"unavailable","reasons":{"redis":"the subscriber connection is down"}}."""
        body: dict[str, object] = {"status": "ok" if self.good else "unavailable"}
        if self.reasons:
            body["reasons"] = self.reasons
        if self.degraded:
            body["degraded"] = self.degraded
        return body


@dataclass(slots=True)
class Health:
    """Of one worker.

    home: the supervisor's directory. draining: it is about to end. living: how many workers there are now, of workers.
    min_workers: with fewer nobody should be sent here. needs_redis: nor while Redis is away.
    """

    rooms: Rooms
    home: str
    draining: Callable[[], bool]
    living: Callable[[], int]
    workers: int
    min_workers: int
    needs_redis: bool
    clock: Callable[[], float] = time.monotonic

    def live(self) -> Verdict:
        """Whether there is any use in this process; a plain call."""
        reasons: dict[str, str] = {}
        lag_s = self.rooms.lag.worst_s
        if lag_s >= LAG_S:
            reasons["event_loop_lag"] = f"{lag_s:.1f} s within the last seconds; allowed: less than {LAG_S:g} s"
        silent_s = facts.beat_age_s(self.home, self.clock())
        if silent_s is not None and silent_s >= SUPERVISOR_S:
            reasons["supervisor"] = f"its loop has not turned for {silent_s:.0f} s"
        return Verdict(reasons, {})

    def ready(self) -> Verdict:
        """Whether clients should be sent here; a plain call."""
        reasons, degraded = dict(self.live().reasons), dict[str, str]()
        # All workers learn it from the supervisor at once, and those that it forks meanwhile, too (shutdown_delay_s).
        if self.draining() or facts.read(self.home).get("stopping"):
            reasons["draining"] = "this process is about to end"
        living = self.living()
        if living < self.min_workers:
            reasons["workers"] = f"{living} live; allowed: {self.min_workers} or more"
        elif living < self.workers:
            degraded["workers"] = f"{living} of {self.workers} live; newcomers wait in the others' listeners"
        if away := self._redis_away():
            (reasons if self.needs_redis else degraded)["redis"] = away
        if self.rooms.headroom is not None and self.rooms.headroom.full:
            degraded["store"] = "it is full: publications that are kept are refused (redis.full_percent)"
        return Verdict(reasons, degraded)

    def _redis_away(self) -> str:
        """'' while it answers."""
        if not self.rooms.ingest.connected:
            return "the subscriber connection is down"
        return "" if self.rooms.registry.reachable else "commands are not answered"
