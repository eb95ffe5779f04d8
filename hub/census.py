"""Census: how many connections all workers have of one address, and of one user.

Does: tell Redis what this worker has, hear the totals, have the newcomer closed that was one too many (3504), forget
what a dead worker had.
Does not: count this worker's own (quotas, users), or decide how many are allowed: the settings do.
Called by: quotas (note, elsewhere), building, worker (start, close).
Never break: `note` is a plain call that never fails and never waits, whatever becomes of Redis; where Redis is away,
each worker goes by its own numbers, lets newcomers in by them, and tells them when it is back.

Redis puts all changes in one order, so of two newcomers on two workers, of whom one is too many, the later is closed,
a round trip after it came. Numbers up to a QUIET-th of a limit are not told: most addresses and users are never near
their limit, and cost Redis nothing. So of all workers together each may have that many unseen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .errors import CLOSE_CONNECTION_LIMIT
from .log import Brake
from .quotas import Closable
from .refusals import Refusals
from .scripts import load_script
from .store import Store

logger = logging.getLogger(__name__)

LEASE_S = 4.0
RENEWALS_PER_LEASE = 4
KEEP_S = 60.0
QUIET = 64
BATCH = 200
"""Names in one call: less than a millisecond of Redis' time."""
DEAD_BATCH = 500
FRESH_S = 2.0
"""So long a total counts before a handshake: an address that was over its limit is refused without asking anew."""
MAX_KNOWN = 10_000
"""Totals that are remembered for that."""
MAX_CHANGED = 100_000
"""Changes that wait for Redis, some 20 MB; with more, while it is away, all is compared when it is back."""
RETRY_S = 1.0

Everything = Callable[[], Iterable[tuple[str, str, int]]]


class Known(NamedTuple):
    """Connections on other workers, and when that was so."""

    others: int
    at: float


class Census:
    """What one worker tells and knows."""

    def __init__(
        self,
        store: Store,
        uid: str,
        limits: Mapping[str, int],
        everything: Everything,
        refusals: Refusals | None = None,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """uid: of this worker. limits: by kind, 0 for none, of which nothing is told.

        everything: all that this worker has, of all kinds: kind, key, number.
        """
        self._keys = [store.keys.census_leases, store.keys.census, store.keys.census_of(uid)]
        self._prefix = store.keys.census_of("")
        self._describe = store.describe
        self._redis: Redis = store.commands()
        self._tell = self._redis.register_script(load_script("census"))
        self._uid = uid
        self._limits = limits
        self._everything = everything
        self._refusals = refusals or Refusals()
        self._lease_s = lease_s
        self._clock = clock
        self._changed: dict[tuple[str, str], int] = {}
        """What Redis has yet to be told."""
        self._overrun = False
        """There was more of it than is kept."""
        self._newcomers: dict[tuple[str, str], list[Closable]] = {}
        """Who has come since it was told last, in their order."""
        self._known: dict[tuple[str, str], Known] = {}
        self._renew_at = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._trouble = Brake()

    @property
    def needed(self) -> bool:
        """There is a limit that other workers' connections count for."""
        return any(self._limits.values())

    def start(self) -> None:
        """Tell and hear until `close`; again without effect."""
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    def retune(self, limits: Mapping[str, int]) -> None:
        """Other limits from now on; the first ones need `start`."""
        if limits == self._limits:
            return
        before, self._limits = self._limits, limits
        for kind, key, count in self._everything():
            most = limits.get(kind, 0)
            if most and count > most // QUIET:
                self._changed[kind, key] = count
            elif before.get(kind, 0):
                # It may have been told; from now on it is kept quiet.
                self._changed[kind, key] = 0
        self._known.clear()
        self._wake.set()

    async def close(self) -> None:
        """Take out what this worker had, if Redis answers; else the lease's end does it."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner
            with suppress(RedisError, OSError):
                if self._overrun:
                    await self._compare()
                self._changed.update({(kind, key): 0 for kind, key, _ in self._everything()})
                while self._changed:
                    await self._call()
                await self._redis.zrem(self._keys[0], self._uid)
                await self._redis.delete(self._keys[2])
        await self._redis.aclose()

    # What quotas call.

    def note(self, kind: str, key: str, count: int, newcomer: Closable | None) -> None:
        """This worker has so many now. newcomer: who has just come, None where one has gone."""
        most = self._limits.get(kind, 0)
        quiet = most // QUIET
        if not most or count + (newcomer is None) <= quiet:
            return
        name = kind, key
        # The last that is told of one who goes is that there is none: what is below is kept quiet from then on.
        self._changed[name] = count if count > quiet else 0
        if newcomer is not None:
            self._newcomers.setdefault(name, []).append(newcomer)
        if len(self._changed) > MAX_CHANGED:
            self._forget_changes()
        self._wake.set()

    def _forget_changes(self) -> None:
        """Addresses come and go while Redis is away, and each would be told, if only that it has none."""
        self._changed.clear()
        self._newcomers.clear()
        self._overrun = True

    def elsewhere(self, kind: str, key: str) -> int:
        """So many other workers have; 0 where that was not heard just now."""
        known = self._known.get((kind, key))
        if known is None or known.at + FRESH_S < self._clock():
            return 0
        return known.others

    # The background task.

    async def _run(self) -> None:
        while not self._closing:
            try:
                if self._overrun:
                    await self._compare()
                if self._changed or self._clock() >= self._renew_at:
                    await self._call()
                else:
                    await self._sleep()
            except (RedisError, OSError) as error:
                self._trouble.warning(logger, "census: Redis at %s: %s", self._describe(), error)
                await self._rest()
            except Exception:
                # A fault of ours in one step must not be the end of all limits across workers.
                logger.exception("census: a step failed")
                await self._rest()

    async def _rest(self) -> None:
        if not self._closing:
            await asyncio.sleep(RETRY_S)

    async def _sleep(self) -> None:
        self._wake.clear()
        with suppress(TimeoutError):  # time to renew
            async with asyncio.timeout(max(0.0, self._renew_at - self._clock())):
                await self._wake.wait()

    async def _call(self) -> None:
        """Tell some of what has changed, renew the lease, and look who was one too many."""
        names = [name for name, _ in zip(self._changed, range(BATCH), strict=False)]
        told = {name: self._changed.pop(name) for name in names}
        came = {name: self._newcomers.pop(name) for name in names if name in self._newcomers}
        try:
            answer = await self._send(told)
        except BaseException:
            # Told again, with what has changed meanwhile. Who came stays: nobody could say that it was one too many.
            self._changed = told | self._changed
            self._newcomers.clear()
            if len(self._changed) > MAX_CHANGED:
                self._forget_changes()
            raise
        self._renew_at = self._clock() + self._lease_s / RENEWALS_PER_LEASE
        if not answer[0]:
            self._tell_all(told)
        for (name, count), total in zip(told.items(), answer[1:], strict=True):
            self._heard(name, count, total, came.get(name, []))

    async def _compare(self) -> None:
        """Have Redis told whatever is not there as it is here."""
        there: dict[tuple[str, str], int] = {}
        async for name, _ in self._redis.hscan_iter(self._keys[2], count=BATCH):
            kind, space, key = name.decode().partition(" ")
            if space:  # the script's own field has none
                there[kind, key] = 0
        # From here on in one go: what was noted meanwhile is in it.
        self._overrun, self._changed = False, there
        self._tell_all({})

    async def _send(self, told: Mapping[tuple[str, str], int]) -> list[int]:
        words: list[Any] = [self._uid, int(self._lease_s * 1000), int(KEEP_S * 1000), self._prefix, DEAD_BATCH]
        for (kind, key), count in told.items():
            words += [f"{kind} {key}", count]
        return list(await self._tell(keys=self._keys, args=words))

    def _tell_all(self, told: Mapping[tuple[str, str], int]) -> None:
        """Redis has nothing of this worker: it is the first call, or the lease had ended, or Redis was emptied.

        told: what it has just been told.
        """
        for kind, key, count in self._everything():
            name, most = (kind, key), self._limits.get(kind, 0)
            if most and count > most // QUIET and name not in told:
                self._changed[name] = count

    def _heard(self, name: tuple[str, str], count: int, total: int, came: list[Closable]) -> None:
        most = self._limits.get(name[0], 0)
        if not most:
            return  # the limit is gone
        self._known.pop(name, None)
        if total >= most:
            self._known[name] = Known(total - count, self._clock())
            if len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        if total > most and came:
            for newcomer in came[most - total :]:
                self._refusals.count(f"{name[0]}_connections")
                newcomer.close(CLOSE_CONNECTION_LIMIT)
