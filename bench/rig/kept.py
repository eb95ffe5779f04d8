"""Kept: `stream` channels of a hub under measurement, seen from its Redis.

Does: publish to them as a worker would, tell who comes back where it was and what it must be told; watch which commands
Redis is sent, and for which channel.
Does not: connect clients; recovery.py does.
Called by: recovery.py.
Never break: what is expected comes from Redis and not from the hub, so a hub that is wrong is found out; a command that
names a key of one of the channels counts for it, whoever sent it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from hub import errors
from hub.broker import Broker, Receipt
from hub.channels import Namespace
from hub.history import ALL, Asked, History
from hub.message import Publication, encode_body
from hub.sections import RedisSettings
from hub.store import Keys, Store

from .processes import BenchError

RULES = Namespace(mode="stream", subscribe="anyone")
"""As rig/hub.py has them for its namespace `kept`."""
END = "the-end-of-the-storm"


class Absence(NamedTuple):
    """One channel, as somebody finds it who has been away: where it was, and the bodies that it has missed."""

    channel: str
    epoch: str
    offset: int
    missed: Sequence[bytes]

    def later(self, count: int) -> Absence:
        """Of somebody who left later, and so has missed the last `count` only."""
        skipped = len(self.missed) - count
        return Absence(self.channel, self.epoch, self.offset + skipped, self.missed[skipped:])

    def greeting(self) -> str:
        """The subscribe command of a client that comes back; 1000 is its id, as rig/hub.py has it for the last one."""
        words = {"channel": self.channel, "recover": True, "epoch": self.epoch, "offset": self.offset}
        return json.dumps({"id": 1000, "subscribe": words}, separators=(",", ":"))

    def answer(self) -> str:
        """What its reply must contain: all that was missed, in order, and nothing else."""
        return f'"recovered":true,"publications":[{b",".join(self.missed).decode()}]}}'


class Watched(NamedTuple):
    """What Redis was sent in a while, by client programs and not by scripts.

    reads, subscribes: for each channel. others: by the command's name, of those that name no channel.
    """

    reads: Mapping[str, int]
    subscribes: Mapping[str, int]
    others: Mapping[str, int]


class Kept:
    """Some `stream` channels of the hub whose Redis listens at a Unix socket."""

    def __init__(self, path: str, channels: Sequence[str]) -> None:
        self.channels = channels
        self._path = path
        self._keys = Keys("hub")
        self._store = Store(RedisSettings(prefix="hub"), f"unix://{path}")

    def miss(self, count: int, size: int) -> list[Absence]:
        """Publish `count` messages of `size` bytes of data to each channel; those who left before have missed them."""
        return asyncio.run(self._miss(count, size))

    async def _miss(self, count: int, size: int) -> list[Absence]:
        history, broker = History(self._store), Broker(self._store, 1_000_000)
        try:
            before = await history.read_many([Asked(channel, RULES) for channel in self.channels])
            await _publish(broker, self.channels, count, size)
            asked = [
                Asked(channel, RULES, page.offset, ALL) for channel, page in zip(self.channels, before, strict=True)
            ]
            after = await history.read_many(asked)
        finally:
            await broker.close()
            await history.close()
        found = []
        for channel, was, now in zip(self.channels, before, after, strict=True):
            bodies = [body for _, body in now.publications]
            if len(bodies) != count or now.epoch != was.epoch:
                raise BenchError(f"{channel}: published {count}, kept {len(bodies)}; allowed: up to its history_size")
            found.append(Absence(channel, was.epoch, was.offset, bodies))
        return found

    def watch(self, channels: Sequence[str]) -> Watch:
        """Begin to watch what is sent for these; see `Watch.end`."""
        return Watch(self._path, self._keys, channels)


async def _publish(broker: Broker, channels: Sequence[str], count: int, size: int) -> None:
    left, ended = len(channels) * count, asyncio.Event()

    def done(outcome: Receipt | errors.HubError) -> None:
        nonlocal left
        if isinstance(outcome, errors.HubError):
            raise BenchError(f"a message for a stream channel was refused: {outcome}")
        left -= 1
        if not left:
            ended.set()

    for number in range(count):
        for channel in channels:
            # The channel's name is in it, so that what belongs to another one would not pass for its own.
            data = {"n": number, "of": channel, "p": "x" * size}
            broker.publish(RULES, "kept", [Publication(channel, encode_body(data))], done)
    async with asyncio.timeout(30):
        await ended.wait()


class Watch:
    """The commands that Redis gets, by its MONITOR; it costs Redis some µs for each, and no worker anything."""

    def __init__(self, path: str, keys: Keys, channels: Sequence[str]) -> None:
        self._owner = {
            name: channel
            for channel in channels
            for name in (keys.meta(channel), keys.stream(channel), keys.channel(channel))
        }
        self._redis = Redis(unix_socket_path=path, socket_timeout=10)
        self._monitor: Any = self._redis.monitor().__enter__()

    def end(self) -> Watched:
        """What came until now. Raises BenchError if Redis ended the watch, as for a reader who is too slow."""
        reads: Counter[str] = Counter()
        subscribes: Counter[str] = Counter()
        others: Counter[str] = Counter()
        try:
            self._redis.echo(END)
            while (found := self._monitor.next_command())["command"] != f"ECHO {END}":
                if found["client_type"] == "lua":
                    continue  # within a script, which counts as one
                words = found["command"].split()
                named = {self._owner[word] for word in words if word in self._owner}
                if not named:
                    others[words[0].upper()] += 1
                for channel in named:
                    (subscribes if words[0].upper().endswith("SUBSCRIBE") else reads)[channel] += 1
        except RedisError as error:
            raise BenchError(f"Redis can't be watched: {error}") from None
        finally:
            self._monitor.__exit__(None, None, None)
            self._redis.close()
        return Watched(reads, subscribes, others)
