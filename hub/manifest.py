"""Manifest: which clients of this worker the application waits to hear the end of, in Redis, so that a killed worker's
are not forgotten.

Does: keep the list and this worker's lease, all changes of a loop turn in one round trip; take over the list of a
worker whose lease has ended, and have the application told of each client on it.
Does not: run handlers (app_gate), or know sessions.
Called by: app_gate (enter, exit, close), building, worker (start, wait); only where there is a disconnect handler.
Never break: an entry is struck off only when the application has been told of that client; so it is told at least once,
whichever worker dies when, and twice only where one dies while it tells or has just told, or was cut off.

A worker that is cut off from Redis for longer than its lease, while others are not, is taken for dead. Its clients have
been told of then, so as soon as it comes back it sends them away, and they come in anew (`on_lost`). When Redis itself
was away nobody is taken for dead: everybody has a whole lease to renew from then on.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import orjson
from redis.exceptions import RedisError

from .log import Brake
from .scripts import Command, Scripts
from .store import Store

logger = logging.getLogger(__name__)

LEASE_S = 4.0
"""A worker that is dead or hung has its clients' end told after this, and an eighth of it."""
RENEWALS_PER_LEASE = 8
PAUSE_S = 1.0
"""When nobody has renewed for so long, which is twice the time between two renewals, Redis was away."""
KEEP_S = 86_400.0
"""A hub that was killed as a whole is told of its clients when it starts again, so much later at the most."""
RETRY_S = 0.5
AT_ONCE = 64
"""Clients of a dead worker of which the application is told at a time; and again as many when it is done with all."""
MAX_FIELDS = 512
"""In one command."""
MAX_AGAIN = 2048
"""Entries written again in one round trip, after the store has lost them."""

NEW, HELD, CLAIMED = range(3)
"""What a renewal finds of the lease; see manifest_lease.lua."""


class Entry(NamedTuple):
    """One client that the application has let in. claims: JSON."""

    client: str
    user: str
    namespace: str
    claims: bytes

    def pack(self) -> bytes:
        """All but the client's id: b'["42","/",{"role":"admin"}]'."""
        return orjson.dumps([self.user, self.namespace, orjson.Fragment(self.claims)])


def unpack(client: bytes, text: bytes) -> Entry:
    """The opposite of `Entry.pack`, of what this or another worker has written."""
    user, namespace, claims = orjson.loads(text)
    return Entry(client.decode(), user, namespace, orjson.dumps(claims))


class Manifest:
    """The manifest of one worker."""

    def __init__(
        self,
        store: Store,
        tell: Callable[[Entry], Awaitable[None]],
        clients: Callable[[], Iterable[str]],
        entry_of: Callable[[str], Entry | None],
        on_lost: Callable[[], None],
        lease_s: float = LEASE_S,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        """tell: has the application told of a client of another worker; never raises. clients: those of this worker.

        entry_of: of one of them, None where there is nothing to tell. on_lost: others tell of this worker's clients.
        """
        self._store = store
        self._redis = store.commands()
        self._scripts = Scripts("manifest_lease", "manifest_take")
        self._tell = tell
        self._clients = clients
        self._entry_of = entry_of
        self._on_lost = on_lost
        self._lease_s = lease_s
        self._pause_s = pause_s
        self._clock = clock
        self._new_uid = new_uid
        self.uid = new_uid()
        self._identity = b""
        """Of the store, at the renewal before; b'' before the first one."""
        self._changes: dict[str, bytes | None] = {}
        """What Redis has yet to be told: entries, and None for those to strike off."""
        self._again: deque[str] = deque()
        """Clients whose entries Redis may have lost."""
        self._written: asyncio.Future[None] | None = None
        """For those who wait for the next round trip; all of them share it."""
        self._down = True
        """Redis did not take the last round trip: nobody waits for the next one."""
        self._ready = asyncio.Event()
        self._dead: dict[str, None] = {}
        """Workers that are being told of."""
        self._renew_at = 0.0
        self._wake = asyncio.Event()
        self._resting = self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._teller: asyncio.Task[None] | None = None
        self._trouble = Brake()

    def start(self) -> None:
        """Keep the lease and the list until `close`."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def ready(self, most_s: float) -> None:
        """Return when Redis has taken the first renewal, or after so long: from then on `enter` waits for Redis."""
        with suppress(TimeoutError):  # Redis is away: clients are noted later
            async with asyncio.timeout(most_s):
                await self._ready.wait()

    async def rest(self) -> None:
        """Take up no further client of a dead worker; return when the application has heard of those at hand."""
        self._resting = True
        if self._teller is not None:
            await self._teller
        self._dead.clear()  # their claims end, and other workers go on

    async def close(self) -> None:
        """Write what waits, as far as Redis takes it; other workers tell of those who are left."""
        await self.rest()
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner
            with suppress(RedisError, OSError):  # then the lease's end does it
                await self._flush()
                await self._retire()
        await self._redis.aclose()

    # What the gate calls.

    async def enter(self, entry: Entry) -> None:
        """Note a client; returns once Redis has it. Where Redis is away it is noted later, and nobody waits."""
        self._changes[entry.client] = entry.pack()
        self._wake.set()
        if self._down:
            return
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._written)

    def exit(self, client: str) -> None:
        """The application has been told of its end, or never knew it."""
        self._changes[client] = None
        self._wake.set()

    # The background task.

    async def _run(self) -> None:
        while not self._closing:
            try:
                await self._step()
            except (RedisError, OSError) as error:
                self._fail()
                self._trouble.warning(logger, "manifest: Redis at %s: %s", self._store.describe(), error)
            except Exception:
                # A fault of ours in one step must not leave all clients of this worker without their end.
                self._fail()
                logger.exception("manifest: a step failed")
            if self._down and not self._closing:
                await asyncio.sleep(RETRY_S)
        self._release()

    def _fail(self) -> None:
        self._down = True
        self._renew_at = 0.0
        self._release()

    def _release(self) -> None:
        written, self._written = self._written, None
        if written is not None and not written.done():
            written.set_result(None)

    async def _step(self) -> None:
        now = self._clock()
        if now >= self._renew_at:
            await self._renew()
            self._down = False
            self._ready.set()
            self._renew_at = now + self._lease_s / RENEWALS_PER_LEASE
        if self._again:
            self._enter_again()
        if self._changes:
            await self._flush()
        else:
            with suppress(TimeoutError):  # time to renew
                async with asyncio.timeout(max(0.0, self._renew_at - self._clock())):
                    await self._wake.wait()
        self._wake.clear()

    async def _renew(self) -> None:
        keys = [self._store.keys.manifests, self._store.keys.manifest(self.uid)]
        times = [int(seconds * 1000) for seconds in (self._lease_s, KEEP_S, self._pause_s)]
        words = [self.uid, *times, self._identity, int(not self._resting), *self._dead]
        first = not self._identity
        self._identity, state, *dead = await self._script("manifest_lease", keys, words)
        self._dead.update(dict.fromkeys(uid.decode() for uid in dead))
        if state == CLAIMED:
            logger.warning("others took this worker for dead: its clients are sent away, to come in anew")
            self.uid, self._identity = self._new_uid(), b""
            self._again = deque(self._clients())
            self._on_lost()
            await self._renew()
        elif state == NEW and not first:
            self._again = deque(self._clients())
        if self._dead and self._teller is None:
            self._teller = asyncio.get_running_loop().create_task(self._tell_all())

    def _enter_again(self) -> None:
        for _ in range(min(MAX_AGAIN, len(self._again))):
            client = self._again.popleft()
            entry = self._entry_of(client)
            if entry is not None:
                self._changes.setdefault(client, entry.pack())

    async def _flush(self) -> None:
        changes, self._changes = self._changes, {}
        written, self._written = self._written, None
        key = self._store.keys.manifest(self.uid)
        entries = iter([(client, text) for client, text in changes.items() if text is not None])
        gone = iter([client for client, text in changes.items() if text is None])
        commands: list[Command] = []
        while pairs := list(islice(entries, MAX_FIELDS)):
            commands.append(("HSET", key, *(word for pair in pairs for word in pair)))
        while clients := list(islice(gone, MAX_FIELDS)):
            commands.append(("HDEL", key, *clients))
        try:
            for reply in await self._scripts.execute(self._redis, commands) if commands else ():
                if isinstance(reply, RedisError):
                    raise reply
        except BaseException:
            self._changes = changes | self._changes  # what came since is newer
            raise
        finally:
            if written is not None and not written.done():
                written.set_result(None)

    async def _retire(self) -> None:
        """End the lease: nothing is left of it, or whoever notices tells of the rest."""
        keys = self._store.keys
        if await self._redis.exists(keys.manifest(self.uid)):
            await self._redis.zadd(keys.manifests, {self.uid: 0}, xx=True)
        else:
            await self._redis.zrem(keys.manifests, self.uid)

    # Clients of dead workers.

    async def _tell_all(self) -> None:
        try:
            while self._dead and not self._resting:
                uid = next(iter(self._dead))
                await self._tell_of(uid)
                self._dead.pop(uid, None)
        except (RedisError, OSError) as error:
            # Taken up again with the next renewal, by this worker or another one.
            self._trouble.warning(logger, "manifest: Redis at %s: %s", self._store.describe(), error)
        except Exception:
            self._dead.clear()  # so the claim ends, and another worker goes on
            logger.exception("manifest: the clients of a dead worker can't be told of")
        finally:
            self._teller = None

    async def _tell_of(self, uid: str) -> None:
        told: list[str] = []
        count = 0
        while True:
            entries = await self._take(uid, told, 1 if self._resting else AT_ONCE)
            if entries is None or not entries:
                logger.info("told the application of %d clients of a worker that has died", count)
                return
            if self._resting:
                return  # the claim ends soon, and another worker goes on
            await asyncio.gather(*map(self._tell, entries))
            told = [entry.client for entry in entries]
            count += len(told)

    async def _take(self, uid: str, told: Sequence[str], most: int) -> list[Entry] | None:
        """The next clients on another's manifest; None: another worker has the claim."""
        keys = [self._store.keys.manifests, self._store.keys.manifest(uid)]
        words = [uid, self.uid, int(self._lease_s * 1000), most, *told]
        answer = await self._script("manifest_take", keys, words)
        if answer is None:
            return None
        return [unpack(client, text) for client, text in zip(answer[::2], answer[1::2], strict=True)]

    async def _script(self, name: str, keys: Sequence[str], words: Sequence[Any]) -> Any:
        (reply,) = await self._scripts.execute(self._redis, [self._scripts.call(name, keys, words)])
        if isinstance(reply, RedisError):
            raise reply
        return reply
