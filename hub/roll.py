"""Roll: who is subscribed to a channel, as all workers see it in Redis.

Does: word the commands that keep and read it, send a batch of them in one round trip, read their answers.
Does not: decide who is there, or when it is written and sent again (presence).
Called by: presence.
Never break: every command may be sent again, as its second time changes nothing and tells nobody; all of a channel's
roll is one key, so that it is lost as a whole or not at all, and its counts always fit its entries.

The roll of a channel is a hash, counted by the scripts so that `presence_stats` costs the same for any size:

    cCLIENT    uid of the client's worker, the name under which it has been announced, its info as JSON; by newlines
    uUSER      how many clients the user has here; none for the anonymous user '', who is nobody in particular
    nUID       how many clients of that worker
    hUSER      names of the user whose leave is held back, by spaces
    #clients, #users

Each entry belongs to a worker, and each worker has a lease: whoever notices that one has ended clears up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from .errors import BrokerUnavailable
from .message import ClientInfo
from .scripts import Command, Scripts
from .store import Store

LIFE_S = 60.0
"""A roll that no worker has touched for so long vanishes, with the last hub that used it."""
LEASE_S = 4.0
"""A worker that is dead or hung loses its clients' presence after this."""
SCAN = 250
"""Entries in one step through a roll."""
MAX_DEPARTURES = 256
"""Leaves told in one step."""
SCRIPTS = ("join", "leave", "depart", "read", "touch", "lease")


class Entry(NamedTuple):
    """One client. name: the client id under which it has been announced, '' if it has not been."""

    info: ClientInfo
    name: str


class Roll(NamedTuple):
    """Who is in a channel. body: b'{"CLIENT":{"user":"42","client":"CLIENT"}}'; None: too many to be listed."""

    clients: int
    users: int
    body: bytes | None


class Term(NamedTuple):
    """A renewed lease. identity: of the Redis process; held: it had not ended; dead: workers to clear up after."""

    identity: bytes
    held: bool
    dead: list[str]


class Rolls:
    """The way to the rolls of all channels."""

    def __init__(self, store: Store, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._keys = store.keys
        self._describe = store.describe
        self._redis: Redis = store.commands()
        self._scripts = Scripts(*(f"presence_{name}" for name in SCRIPTS))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip. Returns their answers, of which each may be a RedisError.

        Raises BrokerUnavailable where they may not all have been carried out.
        """
        try:
            answers = await self._execute(commands)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                # Redis was restarted or flushed its scripts. All again, and not those alone: their order counts.
                await self._scripts.load(self._redis)
                answers = await self._execute(commands)
        except (RedisError, OSError) as error:
            raise self.unavailable(error) from None
        return answers

    def unavailable(self, error: object) -> BrokerUnavailable:
        """What a command's failure means to who waits for it."""
        return BrokerUnavailable(f"Redis at {self._describe()}: {error}")

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    # Commands.

    def join(self, channel: str, topic: str, uid: str, entries: Sequence[Entry]) -> Command:
        """Enter clients; the answer is their names. topic: where joins are told, '' for nowhere."""
        words: list[str | bytes] = []
        for info, name in entries:
            words += [info.client, info.user, orjson.dumps(info._asdict()), name]
        return self._script("presence_join", self._pair(channel), uid, _ms(LIFE_S), topic, channel, *words)

    def leave(
        self, channel: str, topic: str, uid: str, grace_s: float, leaves: Sequence[tuple[ClientInfo, bool]]
    ) -> Command:
        """Take clients out, each with whether its leave push may be held back for `grace_s`."""
        words: list[str] = []
        for info, hold in leaves:
            words += [info.client, info.user, "1" if hold else "0"]
        return self._script(
            "presence_leave", self._pair(channel), uid, _ms(LIFE_S), topic, channel, _ms(grace_s), *words
        )

    def depart(self, channel: str, topic: str) -> Command:
        """Tell up to MAX_DEPARTURES leaves that have been held back for long enough; the answer is their number."""
        return self._script("presence_depart", self._pair(channel), topic, channel, MAX_DEPARTURES)

    def read(self, channel: str, most: int) -> Command:
        """Who is there; see `parse_roll`. most: 0 for the counts alone."""
        return self._script("presence_read", [self._keys.roll(channel)], most)

    def touch(self, channel: str, uid: str) -> Command:
        """Keep the roll alive; the answer is how many of this worker's clients are in it."""
        return self._script("presence_touch", [self._keys.roll(channel)], uid, _ms(LIFE_S))

    def renew(self, uid: str) -> Command:
        """Renew the lease; see `parse_term`."""
        keys = [self._keys.attendance, self._keys.attended(uid)]
        return self._script("presence_lease", keys, uid, _ms(self._lease_s), _ms(LIFE_S))

    def retire(self, uid: str) -> Command:
        """End the lease: whoever notices clears up."""
        return ("ZADD", self._keys.attendance, "XX", 0, uid)

    def attend(self, uid: str, channels: Sequence[str]) -> list[Command]:
        """Note where to clear up after `uid`; goes before the first join there."""
        key = self._keys.attended(uid)
        return [("SADD", key, *channels), ("PEXPIRE", key, _ms(LIFE_S))]

    def unattend(self, uid: str, channels: Sequence[str]) -> Command:
        """Nothing is left to clear up there."""
        return ("SREM", self._keys.attended(uid), *channels)

    def attended(self, uid: str, most: int) -> Command:
        """Some of the channels where there is to clear up after `uid`."""
        return ("SRANDMEMBER", self._keys.attended(uid), most)

    def scan(self, channel: str, cursor: int) -> Command:
        """One step through a roll; see `parse_scan`."""
        return ("HSCAN", self._keys.roll(channel), cursor, "MATCH", "c*", "COUNT", SCAN)

    def cleared(self, uid: str) -> list[Command]:
        """Forget a worker after which all has been cleared up."""
        return [("ZREM", self._keys.attendance, f"-{uid}"), ("DEL", self._keys.attended(uid))]

    def _pair(self, channel: str) -> list[str]:
        return [self._keys.roll(channel), self._keys.away(channel)]

    def _script(self, name: str, keys: Sequence[str], *words: object) -> Command:
        return self._scripts.call(name, keys, words)


def parse_roll(answer: list[Any], most: int) -> Roll:
    """What `read` with the same `most` brought."""
    clients, users, *entries = answer
    # Who asks for the counts alone gets no list, not even the empty one of an empty channel.
    if not most or clients > most:
        return Roll(clients, users, None)
    listed = zip(entries[::2], entries[1::2], strict=True)
    pairs = [orjson.dumps(client.decode()) + b":" + info for client, info in listed]
    return Roll(clients, users, b"{" + b",".join(pairs) + b"}")


def parse_term(answer: list[Any]) -> Term:
    """What `renew` brought."""
    identity, held, *dead = answer
    return Term(identity, bool(held), [uid.decode() for uid in dead])


def parse_scan(answer: Any, uid: str) -> tuple[int, list[ClientInfo]]:
    """What `scan` brought: where to go on, 0 for the end, and which of these clients are `uid`'s."""
    cursor, fields = answer
    entries = [entry.split(b"\n", 2) for entry in (fields.values() if isinstance(fields, dict) else fields[1::2])]
    return int(cursor), [ClientInfo(**orjson.loads(info)) for owner, _, info in entries if owner.decode() == uid]


def is_in_the_way(error: RedisError) -> bool:
    """Whether a command failed because its key is of another type: nobody's but this channel's trouble."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
