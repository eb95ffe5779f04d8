"""Broker: publications into Redis, for every worker of every machine.

Does: send what is published, many commands in one round trip; keep the newest value of `latest` channels.
Does not: check rules or sizes (publish), receive (ingest), or hold publications until Redis is back.
Called by: publish, ticker.

The promise of `publish`: publications of one worker reach Redis in the order of the calls, each at most once.
`done(None)` means that Redis has taken and spread it; `done(error)` that it may not have: after a lost connection
nobody can know, and it is not sent again, because it could then arrive twice.
Never break: one round trip at a time, so that order holds; what waits is bounded by `redis.pending_publishes`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from hashlib import sha1
from importlib import resources
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from . import errors
from .channels import Mode
from .errors import BrokerUnavailable, CommandError, HubError
from .message import Publication, pack
from .store import Store

logger = logging.getLogger(__name__)

Done = Callable[[HubError | None], None]
LEASE_LOST = "LEASELOST"
"""How publish_latest.lua begins the error for a lease that is not the newest."""
MAX_BATCH_BYTES = 4_194_304
"""In one round trip, with one command at least: a slow link must not keep a batch longer than a command may take."""
MAX_BATCH = 512
"""Commands in one round trip: beyond this a batch gains nothing, and Redis serves nobody else meanwhile."""


class Lease(NamedTuple):
    """The right to publish a source's batches: its fencing token, and where the source stands after the batch."""

    token: str
    position: str


class _Waiting(NamedTuple):
    command: tuple[Any, ...]
    size: int
    done: Done


def load_script(name: str) -> str:
    """The text of hub/lua/NAME.lua."""
    return resources.files("hub").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


class Broker:
    """Publications of one worker on their way to Redis."""

    def __init__(self, store: Store, most_waiting: int, most_bytes: int = 67_108_864) -> None:
        self._keys = store.keys
        self._describe = store.describe
        self._redis: Redis = store.commands()
        self._script = load_script("publish_latest")
        self._digest = sha1(self._script.encode()).hexdigest()  # EVALSHA names a script by it
        self._waiting: list[_Waiting] = []
        self._most_waiting = most_waiting
        self._most_bytes = most_bytes
        self._bytes = 0
        """Of bodies that wait or are on their way."""
        self._sender: asyncio.Task[None] | None = None

    async def ping(self) -> None:
        """Return if Redis answers and has the scripts. Raises BrokerUnavailable with the cause."""
        try:
            await self._redis.ping()
            await self._redis.script_load(self._script)
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None

    async def close(self) -> None:
        """Send what waits, as far as Redis takes it, then let go of the connections."""
        while self._sender is not None:
            await self._sender
        await self._redis.aclose()

    def publish(
        self, mode: Mode, namespace: str, publications: Sequence[Publication], done: Done, lease: Lease | None = None
    ) -> None:
        """Send publications of one namespace; `latest`: all in one step, else each by itself and `done` once for each.

        `done` is called later, never from within this call, with None, BrokerUnavailable, or CommandError: 111 when
        too many wait, 103 when `lease` is no longer the newest.
        """
        size = sum(len(publication.body) for publication in publications)
        if len(self._waiting) >= self._most_waiting or (self._bytes and self._bytes + size > self._most_bytes):
            error = CommandError(errors.TOO_MANY_REQUESTS, "too many publishes wait for Redis")
            asyncio.get_running_loop().call_soon(done, error)
            return
        self._bytes += size
        if mode == "latest":
            self._waiting.append(_Waiting(self._latest(namespace, publications, lease), size, done))
        else:
            for publication in publications:
                command = ("PUBLISH", self._keys.channel(publication.channel), pack([publication]))
                self._waiting.append(_Waiting(command, len(publication.body), done))
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def last(self, namespace: str, channels: Sequence[str]) -> list[bytes | None]:
        """The newest bodies of channels of a `latest` namespace, None where there is none yet.

        Raises BrokerUnavailable.
        """
        try:
            names = [self._keys.last(namespace, channel) for channel in channels]
            return cast("list[bytes | None]", await self._redis.mget(names))
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from None

    def _latest(self, namespace: str, publications: Sequence[Publication], lease: Lease | None) -> tuple[Any, ...]:
        # One channel twice in a batch: the script writes both, and the later one stays.
        keys = [self._keys.lease(namespace), self._keys.source(namespace)]
        keys += [self._keys.last(namespace, publication.channel) for publication in publications]
        token, position = lease or ("", "")
        arguments = [self._keys.feed(namespace), pack(publications), token, position]
        return (
            "EVALSHA",
            self._digest,
            len(keys),
            *keys,
            *arguments,
            *[publication.body for publication in publications],
        )

    async def _send(self) -> None:
        """Round trip after round trip, until nothing waits. The one Task here, and none for each publication."""
        try:
            while self._waiting:
                batch = self._next_batch()
                for waiting, answer in zip(batch, await self._round_trip(batch), strict=True):
                    self._bytes -= waiting.size
                    self._tell(waiting.done, self._verdict(answer))
        finally:
            self._sender = None

    def _next_batch(self) -> list[_Waiting]:
        count = size = 0
        for waiting in self._waiting[:MAX_BATCH]:
            size += waiting.size
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _round_trip(self, batch: list[_Waiting]) -> list[object]:
        try:
            answers = await self._execute([waiting.command for waiting in batch])
            lost = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if lost:
                # Redis was restarted or flushed its scripts; those commands did nothing, so sending them again is safe.
                await self._redis.script_load(self._script)
                again = await self._execute([batch[i].command for i in lost])
                for i, answer in zip(lost, again, strict=True):
                    answers[i] = answer
        except (RedisError, OSError) as error:
            return [error] * len(batch)
        return answers

    async def _execute(self, commands: list[tuple[Any, ...]]) -> list[object]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[object] = await pipeline.execute(raise_on_error=False)
        return answers

    def _verdict(self, answer: object) -> HubError | None:
        if isinstance(answer, ResponseError) and str(answer).startswith(LEASE_LOST):
            return CommandError(errors.PERMISSION_DENIED, "the lease has passed to another worker")
        if isinstance(answer, Exception):
            # Out of memory, read-only, loading, link lost: all of them may pass.
            return self._unavailable(answer)
        return None

    def _tell(self, done: Done, verdict: HubError | None) -> None:
        try:
            done(verdict)
        except Exception:
            # One publisher's fault must not keep the verdicts from all others.
            logger.exception("a publisher failed on its verdict")

    def _unavailable(self, error: Exception) -> BrokerUnavailable:
        return BrokerUnavailable(f"Redis at {self._describe()}: {error}")
