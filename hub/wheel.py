"""Timer wheel: one deadline per connection, for all connections of a worker, on one timer of the loop.

Does: call `on_timer` of whatever is due, in slices, so that a hundred thousand deadlines at once don't block the loop.
Does not: read a clock or run by itself; the reactor calls `advance`.
Called by: reactor.
Never break: each item stands in one slot at most (`due` says when), so scheduling again moves it, never doubles it.

A hashed wheel (Varghese & Lauck 1987, scheme 6): slot = due tick modulo the number of slots; an item that is due in a
later round just stays. Insertion and removal are one set operation each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

NEVER = -1


class Timed(Protocol):
    """What can stand on the wheel."""

    due: int
    """The tick at which it is due; NEVER while it stands on no wheel. The wheel's own."""

    def on_timer(self, now: float) -> None:
        """Called once when due, in seconds of the wheel's clock; schedules itself again where it needs to."""


class TimerWheel:
    """Deadlines with a resolution of `tick_s` seconds; never early, at most one tick and the sweep's own time late."""

    __slots__ = ("_clock", "_now_tick", "_overdue", "_slots", "_start", "tick_s")

    def __init__(self, clock: Callable[[], float], tick_s: float = 0.1, slots: int = 1024) -> None:
        self._clock = clock
        self._start = clock()
        self.tick_s = tick_s
        self._slots: list[set[Timed]] = [set() for _ in range(slots)]
        self._now_tick = 0
        self._overdue: list[tuple[Timed, int]] = []

    def schedule(self, item: Timed, at: float) -> None:
        """Call `item.on_timer` at time `at` (seconds of the clock) or a little later; replaces its earlier deadline."""
        if item.due != NEVER:
            self.cancel(item)
        tick = max(self._now_tick + 1, int((at - self._start) / self.tick_s) + 1)
        item.due = tick
        self._slots[tick % len(self._slots)].add(item)

    def cancel(self, item: Timed) -> None:
        """Forget the item's deadline, if it has one."""
        if item.due != NEVER:
            self._slots[item.due % len(self._slots)].discard(item)
            item.due = NEVER

    def advance(self, slice_s: float) -> bool:
        """Fire what is due by now, for about `slice_s` seconds. True: some is left, call again soon."""
        stop_at = self._clock() + slice_s
        while True:
            if self._fire_overdue(stop_at):
                return True
            target = int((self._clock() - self._start) / self.tick_s)
            if self._now_tick >= target:
                return False
            self._now_tick += 1
            self._collect(self._now_tick)

    def _collect(self, tick: int) -> None:
        at = tick % len(self._slots)
        slot = self._slots[at]
        if slot:
            self._overdue = [(item, tick) for item in slot if item.due == tick]
        # Another set, also where nobody is in it: one keeps the room for the most that it ever had, and in time each
        # slot has had many who came together.
        self._slots[at] = {item for item in slot if item.due != tick}

    def _fire_overdue(self, stop_at: float) -> bool:
        overdue = self._overdue
        while overdue:
            item, tick = overdue.pop()
            # An item fired before it in this sweep may have moved or cancelled it.
            if item.due != tick:
                continue
            self.cancel(item)
            item.on_timer(self._clock())
            if self._clock() >= stop_at and overdue:
                return True
        return False
