"""Restore: mailboxes and history out of an archive into any Redis, so that no position is misjudged.

Does: refuse or clear what is there, write channels and mailboxes back in steps that fit each other, begin a generation.
Does not: know the file's format (archive), find the Redis, or speak to people (saving).
Called by: saving. What Redis does not do is raised as redis-py raises it: RedisError or OSError.
Never break: hubs may run meanwhile. A channel is there as a whole or not at all; a mailbox that a publisher has begun
anew keeps those messages too.

A new generation of the store begins, and each channel's meta comes back without the token of its own. So the next touch
(hub/lua/generation.lua) ends the channel's lineage at the offset that the backup has (see position): whoever has read
further is told that messages are lost, whoever has not goes on, and nobody is alarmed for nothing.

Idempotency keys go with what is replaced, those of channels too where only mailboxes are: one that stayed would call a
message a duplicate which is gone, and a message that comes twice does less harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from redis.asyncio import Redis

from .archive import Channel, Key, MorePublications, Reader, Record, units
from .backup import SCAN_COUNT, generation_number, in_chunks, scan
from .channels import namespace_of
from .errors import ConfigError
from .store import Keys

CONTENT = {"all": ("meta", "stream", "mail", "dead"), "mailboxes": ("mail", "dead")}
"""First parts of the names of keys that somebody would miss; by what an archive contains."""
REPLACED = {
    "all": ("meta", "stream", "once", "restore", "mail", "box", "flight", "wait", "due", "dead", "mailboxes"),
    "mailboxes": ("once", "mail", "box", "flight", "wait", "due", "dead", "mailboxes"),
}
BATCH_BYTES = 1_048_576
BATCH_COMMANDS = 1000
"""In one transaction; about a millisecond of Redis."""
MAX_STEP_BYTES = 67_108_864
"""A mailbox is written in one transaction up to this, a channel of any size."""
MAX_ARGUMENTS = 1000
"""Of one command."""
FILLING_TTL_S = 3600
"""What a broken restore has left half filled aside vanishes after so long."""
SUMS = (b"messages", b"bytes")
"""Fields of the totals that are counted anew."""

Command = tuple[Any, ...]


async def restore(
    redis: Redis, keys: Keys, reader: Reader, replace: bool = False, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Write what the archive has; the caller has read it to its end before, to know that it is whole.

    Raises ConfigError, and has changed nothing, when Redis has some of what the archive contains and `replace` is
    False; else that is deleted before.
    """
    contents = reader.header.contents
    if not replace:
        await _expect_nothing(redis, keys, CONTENT[contents])
    if contents == "all":
        # Before, so that a restore which breaks off has moved the clients too; and afterwards, because what they
        # touched in between belongs to neither the old nor the restored history.
        await _end_generation(redis, keys, reader.header.generation)
    if replace:
        for kind in REPLACED[contents]:
            await redis.unlink(f"{keys.prefix}:{kind}")
            async for names in in_chunks(scan(redis, f"{keys.prefix}:{kind}:*"), SCAN_COUNT):
                await redis.unlink(*names)
    await _write_all(redis, keys, reader, on_progress)
    if contents == "all":
        await _end_generation(redis, keys, reader.header.generation)


async def _expect_nothing(redis: Redis, keys: Keys, kinds: Iterable[str]) -> None:
    for kind in kinds:
        found = [f"{keys.prefix}:{kind}"] if await redis.exists(f"{keys.prefix}:{kind}") else []
        if not found:
            async for name in scan(redis, f"{keys.prefix}:{kind}:*"):
                found.append(name)
                break
        if found:
            raise ConfigError(
                f"restore: found {found[0]} in Redis; allowed: nothing of what the file "
                "contains, or --replace, which deletes it; nothing was changed"
            )


async def _end_generation(redis: Redis, keys: Keys, number: int) -> None:
    """Leave no record of the store's identity, so that the next touch begins a generation; its number goes on."""
    number = max(number, await generation_number(redis, keys))
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(keys.generation)
        pipeline.hset(keys.generation, mapping={"identity": "", "number": str(number)})
        await pipeline.execute()


async def _write_all(redis: Redis, keys: Keys, records: Iterable[Record], on_progress: Callable[[], None]) -> None:
    batch = _Batch(redis)
    filling: _Filling | _Merging | None = None
    for record in records:
        if isinstance(record, Channel | Key):
            if filling is not None:
                await batch.add(filling.finish(), filling.step)
            filling = _choose(keys, record)
        elif filling is not None:
            await batch.add(filling.more(record), filling.step)
        on_progress()
    if filling is not None:
        await batch.add(filling.finish(), filling.step)
    await batch.send()


class _Batch:
    """Commands that wait for one transaction."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._commands: list[Command] = []
        self._size = 0
        self._step = ""

    async def add(self, commands: list[Command], step: str) -> None:
        """Commands that take effect at once, and together with those of the same `step` just before; '' is none."""
        if self._size >= (MAX_STEP_BYTES if step and step == self._step else BATCH_BYTES):
            await self.send()
        if len(self._commands) >= BATCH_COMMANDS and not (step and step == self._step):
            await self.send()
        self._step = step
        self._commands += commands
        self._size += sum(len(each) for command in commands for each in command if isinstance(each, bytes))

    async def send(self) -> None:
        if not self._commands:
            return
        async with self._redis.pipeline(transaction=True) as pipeline:
            for command in self._commands:
                pipeline.execute_command(*command)
            await pipeline.execute()
        self._commands, self._size = [], 0


def _choose(keys: Keys, record: Channel | Key) -> _Filling | _Merging:
    if isinstance(record, Channel) or record.name == "dead":
        return _Filling(keys, record)
    return _Merging(keys, record)


class _Filling:
    """A channel, or the dead letters: takes the place of an older one at once, filled aside if it is long."""

    step = ""

    def __init__(self, keys: Keys, record: Channel | Key) -> None:
        self._keys = keys
        self._record = record
        self._paged = False
        self._key = keys.stream(record.name) if isinstance(record, Channel) else f"{keys.prefix}:{record.name}"
        self._aside = keys.restored(record.name)

    def more(self, record: Record) -> list[Command]:
        """The commands for one page more, and before the second one for the first, which has waited."""
        commands: list[Command] = []
        if not self._paged:
            commands = [("DEL", self._aside), *self._append(self._aside, self._record)]
            self._paged = True
        return [*commands, *self._append(self._aside, record), ("EXPIRE", self._aside, FILLING_TTL_S)]

    def finish(self) -> list[Command]:
        record = self._record
        commands: list[Command] = [("DEL", self._key)]
        if self._paged:
            commands += [("RENAME", self._aside, self._key), ("PERSIST", self._key)]
        else:
            commands += self._append(self._key, record)
        commands += _expire(self._key, record.ttl_ms)
        if isinstance(record, Channel):
            meta = self._keys.meta(record.name)
            # Of no generation: whichever touches it next ends its lineage here.
            fields = {**record.meta, b"g": b"", b"i": b""}
            commands += [("DEL", meta), ("HSET", meta, *(each for pair in fields.items() for each in pair))]
            commands += _expire(meta, record.meta_ttl_ms)
        return commands

    @staticmethod
    def _append(key: str, record: Record) -> list[Command]:
        if isinstance(record, Channel | MorePublications):
            return [("XADD", key, f"{offset}-0", "b", body) for offset, body in record.publications]
        return [("XADD", key, unit[0], *unit[2:]) for unit in units("stream", record.values)]


class _Merging:
    """A key of a mailbox, or the totals of all: joins what is there, because a publisher may have been quicker."""

    def __init__(self, keys: Keys, record: Key) -> None:
        self._record = record
        self._key = f"{keys.prefix}:{record.name}"
        self._totals = f"{keys.prefix}:mailboxes"
        self._kind, _, self.step = record.name.partition(":")
        self._channel = self.step[1:-1]
        self._due = f"{keys.prefix}:due:{{{namespace_of(self._channel)}}}"
        self._first: list[Command] = list(self._add(record.values))

    def more(self, record: Record) -> list[Command]:
        values = [] if isinstance(record, Channel | MorePublications) else record.values
        return [*self._take_first(), *self._add(values)]

    def finish(self) -> list[Command]:
        return [*self._take_first(), *_expire(self._key, self._record.ttl_ms)]

    def _take_first(self) -> list[Command]:
        first, self._first = self._first, []
        return first

    def _add(self, values: list[bytes]) -> Iterator[Command]:
        for start in range(0, len(values), MAX_ARGUMENTS):
            yield from self._add_some(values[start : start + MAX_ARGUMENTS])

    def _add_some(self, values: list[bytes]) -> Iterator[Command]:
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if self._kind == "mailboxes":
            yield from (("HSETNX", self._totals, *pair) for pair in pairs if pair[0] not in SUMS)
        elif self._kind == "box":
            yield from (("HSET", self._key, *pair) for pair in pairs if pair[0] != b"bytes")
            for _, size in (pair for pair in pairs if pair[0] == b"bytes"):
                yield ("HINCRBY", self._key, "bytes", size)
                yield ("HINCRBY", self._totals, "bytes", size)
        elif self._kind == "mail":
            yield ("HSET", self._key, *values)
            yield ("HINCRBY", self._totals, "messages", len(pairs))
        else:
            yield ("ZADD", self._key, *(each for member, score in pairs for each in (score, member)))
            # Somebody looks at it soon, and then knows when next.
            yield ("ZADD", self._due, "NX", 0, self._channel)


def _expire(key: str, ttl_ms: int) -> list[Command]:
    return [("PEXPIRE", key, max(ttl_ms, 1))] if ttl_ms >= 0 else []
