"""Storefacts: what a Redis or Valkey says of itself: version, persistence, bounds, rights, how soon it answers.

Does: ask, a question at a time.
Does not: judge the answers (storerules).
Called by: doctor.
Never break: what the server does not answer, or may not tell us, is None; no answer holds a password. Nothing is
written.
A command that a script or a room begins to use needs its row in COMMANDS, or a user without the right to it is told of
it by a failing hub only; a test compares with the scripts.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from .errors import BrokerUnavailable
from .store import Store

PINGS = 20
MOST_PROBLEM = 200
"""Characters of an error."""
KEY = "KEY"
"""Stands in COMMANDS for a key of the hub's."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "BLPOP": (KEY, "1"),
    "DEL": (KEY,),
    "EVALSHA": ("0" * 40, "1", KEY),
    "EXISTS": (KEY,),
    "EXEC": (),
    "EXPIRE": (KEY, "1"),
    "EXPIREAT": (KEY, "1"),
    "GET": (KEY,),
    "HDEL": (KEY, "f"),
    "HEXISTS": (KEY, "f"),
    "HGET": (KEY, "f"),
    "HGETALL": (KEY,),
    "HINCRBY": (KEY, "f", "1"),
    "HKEYS": (KEY,),
    "HLEN": (KEY,),
    "HMGET": (KEY, "f"),
    "HRANDFIELD": (KEY,),
    "HSCAN": (KEY, "0"),
    "HSET": (KEY, "f", "v"),
    "HSTRLEN": (KEY, "f"),
    "HVALS": (KEY,),
    "INFO": ("replication",),
    "LRANGE": (KEY, "0", "1"),
    "LTRIM": (KEY, "0", "1"),
    "MEMORY": ("USAGE", KEY),
    "MGET": (KEY,),
    "MULTI": (),
    "PERSIST": (KEY,),
    "PEXPIRE": (KEY, "1"),
    "PING": (),
    "PTTL": (KEY,),
    "PUBLISH": (KEY, "m"),
    "RPUSH": (KEY, "v"),
    "SCRIPT": ("LOAD", "return 1"),
    "SET": (KEY, "v"),
    "SUBSCRIBE": (KEY,),
    "TIME": (),
    "TYPE": (KEY,),
    "UNSUBSCRIBE": (KEY,),
    "XADD": (KEY, "*", "f", "v"),
    "XDEL": (KEY, "1-1"),
    "XINFO": ("STREAM", KEY),
    "XLEN": (KEY,),
    "XRANGE": (KEY, "-", "+"),
    "XREAD": ("STREAMS", KEY, "0"),
    "ZADD": (KEY, "1", "m"),
    "ZCARD": (KEY,),
    "ZRANGE": (KEY, "0", "1"),
    "ZRANGEBYSCORE": (KEY, "0", "1"),
    "ZREM": (KEY, "m"),
    "ZREVRANGE": (KEY, "0", "1"),
    "ZSCORE": (KEY, "m"),
}
"""What the hub's scripts and rooms run, with arguments that fit; without WAIT and WAITAOF, of which a namespace's `ack`
decides."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Facts; None is 'not told'. problem: why it did not answer, '' if it did. asked: False for one that is not up."""

    where: str = ""
    embedded: bool = False
    local: bool = False
    """On this machine."""
    asked: bool = False
    problem: str = ""
    server: str | None = None
    """'redis' or 'valkey'."""
    version: str | None = None
    append_only: bool | None = None
    snapshots: bool | None = None
    policy: str | None = None
    maxmemory: int | None = None
    """0: no bound."""
    used: int | None = None
    pubsub_limit: tuple[int, int, int] | None = None
    """client-output-buffer-limit pubsub: hard bytes, soft bytes, seconds; 0 is no bound."""
    max_clients: int | None = None
    password: bool | None = None
    """Whether a client has to say one."""
    denied: tuple[str, ...] | None = None
    """Commands of COMMANDS that this user may not run on this prefix."""
    ping_ms: float | None = None
    """The median."""


async def ask(store: Store, *, embedded: bool, local: bool) -> StoreFacts:
    """Ask the server that the hub would use; never raises for one that is away."""
    where = store.describe()
    redis = store.commands()
    try:
        ping_ms = await _ping_ms(redis)
        info = await redis.info()
    except (RedisError, BrokerUnavailable, OSError) as error:
        return StoreFacts(where, embedded, local, asked=True, problem=_short(error))
    else:
        return StoreFacts(
            where,
            embedded,
            local,
            asked=True,
            server="valkey" if "valkey_version" in info else "redis",
            version=str(info.get("valkey_version") or info.get("redis_version") or "") or None,
            append_only=_flag(info.get("aof_enabled")),
            snapshots=await _asked(lambda: _snapshots(redis)),
            policy=info.get("maxmemory_policy"),
            maxmemory=info.get("maxmemory"),
            used=info.get("used_memory"),
            pubsub_limit=await _asked(lambda: _pubsub_limit(redis)),
            max_clients=info.get("maxclients"),
            password=await _asked(lambda: _needs_password(redis)),
            denied=await _asked(lambda: _denied(redis, store.keys.prefix)),
            ping_ms=ping_ms,
        )
    finally:
        await redis.aclose()


def _short(error: Exception) -> str:
    """Without the description of the client that redis-py appends where no Sentinel knows a primary."""
    return (str(error) or type(error).__name__).partition(" : ")[0][:MOST_PROBLEM]


async def _asked(question: Callable[[], Awaitable[Any]]) -> Any:
    """None where the server does not know the command, or forbids it, as a rented one does with CONFIG and ACL."""
    try:
        return await question()
    except (RedisError, ValueError, KeyError, IndexError):
        return None


async def _ping_ms(redis: Redis) -> float:
    times = []
    await redis.ping()  # the connection is made
    for _ in range(PINGS):
        begun = time.perf_counter()
        await redis.ping()
        times.append(time.perf_counter() - begun)
    return sorted(times)[PINGS // 2] * 1000


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


async def _snapshots(redis: Redis) -> bool:
    return bool((await redis.config_get("save"))["save"])


async def _pubsub_limit(redis: Redis) -> tuple[int, int, int]:
    """Of 'normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60'."""
    name = "client-output-buffer-limit"
    words = str((await redis.config_get(name))[name]).split()
    at = words.index("pubsub")
    hard, soft, seconds = (int(word) for word in words[at + 1 : at + 4])
    return hard, soft, seconds


async def _needs_password(redis: Redis) -> bool:
    user: Any = await _command(redis, "ACL", "GETUSER", "default")
    flags = user["flags"] if isinstance(user, dict) else user[user.index(b"flags") + 1]
    return b"nopass" not in flags and "nopass" not in flags


async def _denied(redis: Redis, prefix: str) -> tuple[str, ...]:
    """By ACL DRYRUN, of Redis 7 and later: nothing is run."""
    user = await _command(redis, "ACL", "WHOAMI")
    denied = []
    for command, arguments in COMMANDS.items():
        words = [f"{prefix}:doctor" if word is KEY else word for word in arguments]
        try:
            answer = await _command(redis, "ACL", "DRYRUN", user, command, *words)
        except ResponseError as error:
            if "not found" not in str(error):
                raise
            denied.append(command)  # renamed away, or too old a server
        else:
            if answer not in (b"OK", "OK", True):
                denied.append(command)
    return tuple(denied)


async def _command(redis: Redis, *words: Any) -> Any:
    """Its answer as it came; redis-py's own method has no types."""
    call: Callable[..., Awaitable[Any]] = redis.execute_command
    return await call(*words)
