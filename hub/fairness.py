"""Fairness: how much of the loop's time clients may take by what they send, and whose bytes are read later for it.

Does: say what each connection's time costs it, add up what all busy ones have taken, put off the next read of who is
beyond its rate while somebody may want that time, and read a few of these at a time once they have earned it.
Does not: refuse or close anything: what is not read waits in the client's own TCP window, which costs the hub nothing.
Called by: connection (pay), ingest (charge), building (builds it).
Never break: a connection that takes little is never put off, whatever others of its address do.

One core serves all clients of a worker, so limits on commands and bytes are not enough: a few bytes can cost as much as
many (compression, JSON, channels that Redis has to be asked for). Time is what they all cost. A rate is kept as limits
keeps them, as the moment at which all that was taken has been earned again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple, Protocol

from .limits import Account

BUSY_S = 0.1
"""Who has so much to earn back is busy: at 50 ms a second that is 5 ms of work in the last moments."""
WATCHED_S = 1.0
"""So long one is taken for busy that was, or there would be as much to be had free of charge behind each pause."""
OWED_S = 0.5
"""So much may be owed before a read is put off: a client that comes, and asks for all of its channels, is not."""
DEAR = 10.0
"""Where an address owes so much, time costs its connections so many times as much: who takes little notices nothing,
and twenty who keep just below their own rate have a tenth of the loop and not all of it."""
MOST_OWED_S = 5.0
"""More no address owes, nor all busy ones together: its clients of tomorrow have done nothing."""
MOST_OWN_S = OWED_S + 2.0
"""More no connection owes, so that none is put off for longer than two seconds for its own doing: a watch list of 1,000
symbols that are new to the worker is one message, and SDKs wait 5 s for the answer to the next one."""
WORKER_OWED_S = 0.05
"""The same for all busy ones together, who are to be served in small pieces."""
ROOM_S = WORKER_OWED_S / 2
"""While all busy ones together owe no more, there is room: nobody is put off for its own rate. So who sends evenly, as
a publisher of a thousand messages a second does, may take what is there for all busy ones; a flood has used it up
after some milliseconds."""
LENT_S = 0.1
"""So much longer than it may owe is one put off that has had more than its rate, when the room is used up: with what a
flood takes before that, it comes to the same rate."""
PIECE_S = 0.0005
"""So long may those who were put off hold the loop, before everybody else has a turn."""
SHORTEST_S = 0.001
"""Until the next of them has one: the resolution of the loop's timers."""


class Putable(Protocol):
    """A connection, as seen from here."""

    busy_at: float
    watched_until: float
    account: Account | None
    """Of its address."""

    def calm(self) -> None:
        """Be read as usual again, and not be taken for busy."""

    def put_off(self) -> None:
        """Read nothing for now."""

    def read_again(self) -> None:
        """Read once, now, and go on as usual unless that is too much again."""


class Rates(NamedTuple):
    """Seconds of the loop that one connection, one address, and all busy connections of a worker may take in a second;
    0: any.
    """

    connection: float = 0.0
    ip: float = 0.0
    worker: float = 0.0

    @classmethod
    def of_ms(cls, connection_ms: float, ip_ms: float, worker_ms: float) -> Rates:
        """Of milliseconds, as settings have them."""
        return cls(connection_ms / 1e3, ip_ms / 1e3, worker_ms / 1e3)


UNBOUNDED = Rates()


class Fairness:
    """Of one plane."""

    def __init__(
        self,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
        rates: Rates = UNBOUNDED,
        on_put_off: Callable[[], None] = lambda: None,
    ) -> None:
        """call_later: the loop's. on_put_off: a read was."""
        self._clock = clock
        self._call_later = call_later
        self.retune(rates)
        self._on_put_off = on_put_off
        self._busy_at = 0.0
        """Of all busy ones."""
        self._waiting: list[tuple[float, int, Putable]] = []
        """Who was put off, until when; a heap. The number keeps connections from being compared."""
        self._number = 0
        self._armed = False
        self.to_come_s = 0.0
        """What the read at hand will cost later on; set to 0 by whoever reads."""

    def retune(self, rates: Rates) -> None:
        """Other rates from the next read on; who waits goes on waiting."""
        self.price = _price(rates.connection)
        """Seconds that one second of work takes to be earned back; 0: nothing is counted."""
        self.ip_price = _price(rates.ip)
        self._worker_price = _price(rates.worker)

    @property
    def waiting(self) -> int:
        """Connections that are not read for now."""
        return len(self._waiting)

    def charge(self, work_s: float) -> None:
        """What is being read will cost so much more later, when Redis answers."""
        self.to_come_s += work_s

    def pay(self, connection: Putable, now: float, work_s: float) -> None:
        """What one read brought has taken so much of the loop's time."""
        price, account = self.price, connection.account
        if account is not None:
            owed_until = account.busy_at
            # By what was owed before: the first who asks for much is no reason for a price that is meant for many.
            if owed_until > now + OWED_S:
                price *= DEAR
            owed_until = (owed_until if owed_until > now else now) + work_s * self.ip_price
            account.busy_at = min(owed_until, now + MOST_OWED_S)
        busy_at = connection.busy_at
        busy_at = (busy_at if busy_at > now else now) + work_s * price
        connection.busy_at = busy_at = min(busy_at, now + MOST_OWN_S)
        if busy_at > now + BUSY_S or connection.watched_until > now:
            self.weigh(connection, now, work_s)
        elif connection.watched_until:
            connection.calm()

    def weigh(self, connection: Putable, now: float, work_s: float) -> None:
        """A connection that is busy (`busy_at` is beyond BUSY_S from now) or watched has taken so much."""
        until = connection.busy_at - OWED_S
        if self._worker_price:
            self._busy_at = min(max(self._busy_at, now) + work_s * self._worker_price, now + MOST_OWED_S)
            if self._busy_at <= now + ROOM_S:
                connection.busy_at = min(connection.busy_at, now + OWED_S + LENT_S)
                until = now
            until = max(until, self._busy_at - WORKER_OWED_S)
        connection.watched_until = max(until, now) + WATCHED_S
        if until > now:
            self._on_put_off()
            connection.put_off()
            self._wait(connection, until)
            self._arm(now)

    def _wait(self, connection: Putable, until: float) -> None:
        self._number += 1
        heapq.heappush(self._waiting, (until, self._number, connection))

    def _arm(self, now: float) -> None:
        if self._waiting and not self._armed:
            self._armed = True
            until = max(self._waiting[0][0], self._busy_at - WORKER_OWED_S)
            # No earlier timer replaces it, so it must not be a long one.
            self._call_later(min(max(until - now, SHORTEST_S), OWED_S), self._serve)

    def _serve(self) -> None:
        """Read those who have earned it, the first first, while there is time for them."""
        self._armed = False
        now = self._clock()
        stop_at = now + PIECE_S
        while self._waiting and self._waiting[0][0] <= now < stop_at and self._busy_at - WORKER_OWED_S <= now:
            _, _, connection = heapq.heappop(self._waiting)
            connection.read_again()
            now = self._clock()
        self._arm(now)


def _price(rate: float) -> float:
    return 1 / rate if rate else 0.0
