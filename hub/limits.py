"""Limits: how often something may happen.

Does: count against rates, with the clock, or its time, passed in; remember who has been counted, within a bound.
Does not: decide what is limited or what the answer is (quotas), nor read settings.
Called by: building (builds them), quotas, transports.websocket (pings).
Never break: of whoever keeps to a rate nothing is refused, and what is counted for nobody in particular is not counted.

The state of a rate is one number: the moment at which all that was taken would have been earned again (GCRA, ITU-T
I.371). So a bucket is a float, a rate is the seconds that one thing costs, and no limit is a cost of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

ROUNDING = 1e-6
"""Seconds; ten times a tenth is not quite one."""
BURST_S = 1.0 + ROUNDING
"""So much may be taken at once after a quiet second. What is larger, as a message may be, passes then too, and not
never: it is earned back before anything else passes."""

MOST_OFFENDED_S = 10.0
"""More no address has to wait for offences: a thousand connections of one company that a new release of its application
ends in the same moment must not keep it out for minutes, nor one of its clients all the others."""


class TokenBucket:
    """At most `per_s` a second on average, and as many at once after a quiet second. per_s 0: no limit."""

    __slots__ = ("_clock", "_full_at", "per_s")

    def __init__(self, per_s: float, clock: Callable[[], float]) -> None:
        self.per_s = per_s
        self._clock = clock
        self._full_at = clock()

    def take(self) -> bool:
        """Take one, if there is one."""
        if not self.per_s:
            return True
        now = self._clock()
        full_at = max(self._full_at, now) + 1 / self.per_s
        if full_at > now + BURST_S:
            return False
        self._full_at = full_at
        return True


class Cost(NamedTuple):
    """What counts against a pair of rates: seconds for one command, and for one byte; 0 without a limit."""

    command_s: float
    byte_s: float

    @classmethod
    def of(cls, commands_per_s: float, bytes_per_s: float) -> Cost:
        """Of rates, of which 0 is none."""
        return cls(cost_s(commands_per_s), cost_s(bytes_per_s))

    @property
    def free(self) -> bool:
        """Neither has a limit."""
        return not any(self)


def fits(full_at: float, now: float, cost_s: float) -> bool:
    """Whether a bucket that would be full again at `full_at` has so much; a full one has all that is asked for."""
    return full_at <= now or full_at + cost_s <= now + BURST_S


def cost_s(per_s: float) -> float:
    """Seconds that one thing costs at this rate; 0 for a rate of 0, which is no limit."""
    return 1 / per_s if per_s else 0.0


class Account:
    """What all connections and requests of one user or address have taken together."""

    __slots__ = ("busy_at", "bytes_at", "commands_at", "handshakes_at", "holders", "key", "knocked_at")

    def __init__(self, key: str) -> None:
        self.key = key
        self.commands_at = self.bytes_at = self.handshakes_at = 0.0
        self.knocked_at = 0.0
        """Of connections, whatever came of them."""
        self.busy_at = 0.0
        """Of the loop's time, as fairness has it."""
        self.holders = 0
        """Connections that have it in their hands."""

    def take(self, now: float, commands: int, size: int, cost: Cost) -> bool:
        """Count so many commands, of so many bytes together, if they are to be had."""
        commands_at, bytes_at = self.commands_at, self.bytes_at
        # As `fits`, written out: every message of every client may pass here.
        new_commands_at = (commands_at if commands_at > now else now) + commands * cost[0]
        new_bytes_at = (bytes_at if bytes_at > now else now) + size * cost[1]
        most = now + BURST_S
        if (new_commands_at > most and commands_at > now) or (new_bytes_at > most and bytes_at > now):
            return False
        self.commands_at, self.bytes_at = new_commands_at, new_bytes_at
        return True

    def greet(self, now: float, handshake_s: float) -> bool:
        """Count one handshake, if there is one to be had."""
        if not fits(self.handshakes_at, now, handshake_s):
            return False
        self.handshakes_at = max(self.handshakes_at, now) + handshake_s
        return True

    def knock(self, now: float, knock_s: float) -> bool:
        """Count one connection, if there is one to be had."""
        if not fits(self.knocked_at, now, knock_s):
            return False
        self.knocked_at = max(self.knocked_at, now) + knock_s
        return True

    def offend(self, now: float, cost_s: float) -> None:
        """Take so many seconds' worth of handshakes, whether there are any or not; MOST_OFFENDED_S at the most."""
        self.handshakes_at = max(self.handshakes_at, min(max(self.handshakes_at, now) + cost_s, now + MOST_OFFENDED_S))

    def settled(self, now: float) -> bool:
        """All is earned back, so that it need not be remembered."""
        return max(self.commands_at, self.bytes_at, self.handshakes_at, self.knocked_at, self.busy_at) <= now


class Accounts:
    """Those of users, or of addresses, that somebody holds, and those that have something to earn back.

    Of the latter at most so many: beyond that the one that has been left alone for longest is forgotten, though it may
    have more to earn back. Whoever comes with ever new addresses has them to himself, and does not fill the memory.
    """

    __slots__ = ("_held", "_idle", "most_idle")

    def __init__(self, most_idle: int) -> None:
        self.most_idle = most_idle
        self._held: dict[str, Account] = {}
        self._idle: dict[str, Account] = {}
        """The longest idle first."""

    def __len__(self) -> int:
        return len(self._held) + len(self._idle)

    def touch(self, key: str, now: float) -> Account:
        """The account of this moment, of a request that holds nothing."""
        account = self._held.get(key)
        if account is None:
            account = self._idle.pop(key) if key in self._idle else Account(key)
            self._lay_down(account, now)
        return account

    def hold(self, key: str) -> Account:
        """The account of a connection, until it is `let_go`."""
        account = self._held.get(key)
        if account is None:
            account = self._held[key] = self._idle.pop(key) if key in self._idle else Account(key)
        account.holders += 1
        return account

    def let_go(self, account: Account, now: float) -> None:
        """The opposite of one `hold`."""
        account.holders -= 1
        if not account.holders:
            del self._held[account.key]
            self._lay_down(account, now)

    def _lay_down(self, account: Account, now: float) -> None:
        idle = self._idle
        idle[account.key] = account
        # Two for each that comes: so the dead go sooner than new ones come, and no sweep is needed.
        for _ in range(2):
            oldest = next(iter(idle))
            if len(idle) <= self.most_idle and not idle[oldest].settled(now):
                return
            if oldest == account.key:
                return
            del idle[oldest]


class Episode:
    """How long, and how often, somebody has gone on beyond a limit; a quiet second ends it."""

    __slots__ = ("_last", "_number", "_since")

    def __init__(self, now: float) -> None:
        self._since = self._last = now
        self._number = 0

    def count(self, now: float, number: int, most: int, most_s: float) -> bool:
        """So many more; whether that is too many, or has gone on for too long."""
        if now - self._last > BURST_S:
            self._since, self._number = now, 0
        self._last = now
        self._number += number
        return self._number > most or now - self._since > most_s
