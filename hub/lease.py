"""Lease: who of all workers of all machines runs the ticker's source.

Does: take the lease, keep it, give it back; each is one script in Redis (lua/lease_*.lua).
Does not: decide when (ticker), nor hold the source's batches back: publish_latest.lua compares the token of each.
Called by: ticker.
Never break: no two terms have the same token, so that a leader which was suspended beyond its lease publishes nothing
once it wakes. The number in front grows with each term and outlives the lease; the owner behind it keeps terms apart
even where a failover has lost the newest number.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .broker import Lease
from .errors import BrokerUnavailable
from .scripts import load_script
from .store import Store


class Candidate:
    """One process that wants to lead."""

    def __init__(self, store: Store, namespace: str, owner: str, ttl_s: float) -> None:
        """owner: a name that no other process has or will have. ttl_s: how long a silent leader keeps the lease."""
        self._describe = store.describe
        self._redis: Redis = store.commands()
        self._lease = store.keys.lease(namespace)
        self._source = store.keys.source(namespace)
        self._owner = owner
        self._ttl_ms = int(ttl_s * 1000)
        self._acquire = self._redis.register_script(load_script("lease_acquire"))
        self._renew = self._redis.register_script(load_script("lease_renew"))
        self._release = self._redis.register_script(load_script("lease_release"))

    async def acquire(self) -> Lease | None:
        """Begin a term: its token, and where the source stands ('' at first). None while somebody else leads.

        Whoever holds the lease gets a new term of it at once, and what the old term still had under way is refused.
        Raises BrokerUnavailable.
        """
        keys = [self._lease, self._source]
        answer = await self._run(self._acquire(keys=keys, args=[self._owner, self._ttl_ms]))
        return Lease(str(answer[0], "utf-8"), str(answer[1], "utf-8")) if answer else None

    async def renew(self, token: str) -> bool:
        """Keep the lease for another `ttl_s`; False when it is not this term's any more. Raises BrokerUnavailable."""
        return bool(await self._run(self._renew(keys=[self._lease], args=[token, self._ttl_ms])))

    async def release(self, token: str) -> None:
        """End the term, so that somebody else may lead at once; nothing if it has ended. Raises BrokerUnavailable."""
        await self._run(self._release(keys=[self._lease], args=[token]))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def _run(self, call: object) -> Any:
        try:
            return await cast(Awaitable[Any], call)
        except (RedisError, OSError) as error:
            raise BrokerUnavailable(f"Redis at {self._describe()}: {error}") from None
