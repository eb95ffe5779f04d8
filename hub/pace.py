"""Paces: subscriptions that want a channel's newest value so often at most, and share their moments.

Does: keep, for one rate, which channels have something new and who came since the last moment; say when the next is.
Does not: encode, take up or deliver (fanout does, when it is called), nor know what clients may ask for (wants).
Called by: fanout (touch, arrive, leave), options through `Paces.at`.
Never break: one timer for each rate, however many channels and clients there are; the last value always goes out.

All who want 5 values a second get them at the same 5 moments, in one write for all their channels, and in the same
bytes as everybody with the same channels. Who comes between two moments has been served up to another one than the
others, so for its first moment it has a frame of its own, and belongs to the others behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .audience import Audience, Group, Stand, Subscriber
from .wants import RATES_HZ, shared_hz

PAUSED_HZ = 0.0


class Pace:
    """One rate. 0 Hz: nothing until the subscription has another one."""

    __slots__ = (
        "_call_later",
        "_clock",
        "_last",
        "_on_due",
        "_timer",
        "arrivals",
        "groups",
        "hz",
        "period_s",
        "waiting",
    )

    def __init__(
        self,
        hz: float,
        on_due: Callable[[Pace], None],
        clock: Callable[[], float],
        call_later: Callable[..., asyncio.TimerHandle],
    ) -> None:
        self.hz = hz
        self.period_s = 1 / hz if hz else 0.0
        self.groups: set[Group] = set()
        """Those that hold any audience of it; kept by groups."""
        self.waiting: dict[Audience, None] = {}
        """With something new since the last moment, in order."""
        self.arrivals: dict[Subscriber, dict[Audience, Stand]] = {}
        """Who came since, and up to what each has been served."""
        self._on_due = on_due
        self._clock = clock
        self._call_later = call_later
        self._last = -self.period_s
        self._timer: asyncio.TimerHandle | None = None

    def touch(self, audience: Audience) -> None:
        """There is something new."""
        if self.period_s:
            self.waiting[audience] = None
            if self._timer is None:
                self.rouse()

    def rouse(self) -> None:
        """Somebody waits for the next moment."""
        if self._timer is None and self.period_s:
            self._timer = self._call_later(max(0.0, self._last + self.period_s - self._clock()), self._due)

    def arrive(self, subscriber: Subscriber, audience: Audience, stand: Stand) -> None:
        """Somebody comes who has been served up to `stand`."""
        self.arrivals.setdefault(subscriber, {})[audience] = stand
        audience.arriving += 1

    def told(self, subscriber: Subscriber, audience: Audience, stand: Stand) -> None:
        """Somebody who has come, and was not let in yet, has been served more by another way."""
        stands = self.arrivals.get(subscriber)
        if stands is not None and audience in stands:
            stands[audience] = stand

    def leave(self, subscriber: Subscriber, audience: Audience) -> Stand | None:
        """Somebody goes; its own stand, where it has one."""
        stands = self.arrivals.get(subscriber)
        stand = stands.pop(audience, None) if stands is not None else None
        if stand is None or stands is None:
            return None
        audience.arriving -= 1
        if not stands:
            del self.arrivals[subscriber]
        return stand

    def _due(self) -> None:
        self._timer = None
        self._last = self._clock()
        self._on_due(self)


class Paces:
    """All rates of one worker."""

    def __init__(
        self,
        on_due: Callable[[Pace], None],
        clock: Callable[[], float],
        call_later: Callable[..., asyncio.TimerHandle],
    ) -> None:
        self._paces = {hz: Pace(hz, on_due, clock, call_later) for hz in (PAUSED_HZ, *RATES_HZ)}

    def at(self, hz: float) -> Pace | None:
        """The rate for a wish, from 0 on; None: above all of them, every value."""
        if hz > RATES_HZ[-1]:
            return None
        return self._paces[shared_hz(hz)]
