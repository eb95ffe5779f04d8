"""Faults: what is done to the hub and its store, one row each.

Does: break something, and mend it, while the load runs.
Does not: wait for anybody to notice, or judge.
Called by: __main__ and test_short, through Rig.round.
Never break: when a fault's function returns, what it broke is whole again, so that the next round begins like the
first; where that takes time (a replica that catches up), `mend` does it after the verdict.

A new fault is a function here and a row in FAULTS.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .rig import Kind, Rig

Ports = list[int]


async def nothing(rig: Rig) -> Ports:
    await asyncio.sleep(rig.pace_s)
    return []


# Workers and clients.


async def worker_kill(rig: Rig) -> Ports:
    """kill -9 of one at random; its clients are the victims, and nobody else."""
    pid = rig.rng.choice(rig.hub.worker_pids())
    victims = rig.ports_of(pid)
    os.kill(pid, signal.SIGKILL)
    return victims


async def slow_clients(rig: Rig) -> Ports:
    """A few clients stop reading while their channels are flooded; others in these channels are not slow."""
    stalled = await rig.clients[0].ask("stall", count=3, seconds=1.0 + 2 * rig.pace_s)
    await rig.publishers.ask("flood", channels=stalled["channels"], count=15, bytes=16_000)
    return stalled["ports"]


async def reconnects(rig: Rig) -> Ports:
    """Clients lose their connections at random, of their own will."""
    for _ in range(3):
        for process in rig.clients:
            await process.ask("reconnect", count=10)
        await asyncio.sleep(0.3)
    return []


# The store.


async def store_kill(rig: Rig) -> Ports:
    await asyncio.sleep(rig.pace_s)
    await asyncio.to_thread(rig.primary.stop)
    await asyncio.sleep(rig.pace_s)
    await asyncio.to_thread(rig.primary.start)
    return []


async def store_loses_a_second(rig: Rig) -> Ports:
    """As by a power cut: what was written in its last second is gone."""
    size = rig.primary.written_bytes()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(rig.primary.stop)
    rig.primary.forget_beyond(size)
    await asyncio.to_thread(rig.primary.start)
    return []


async def store_restart(rig: Rig) -> Ports:
    await asyncio.sleep(rig.pace_s)
    await asyncio.to_thread(rig.primary.stop, signal.SIGTERM)
    await asyncio.to_thread(rig.primary.start)
    return []


async def store_pause(rig: Rig) -> Ports:
    rig.primary.send(signal.SIGSTOP)
    await asyncio.sleep(5 * rig.pace_s)
    rig.primary.send(signal.SIGCONT)
    return []


async def flush(rig: Rig) -> Ports:
    await asyncio.sleep(rig.pace_s)
    rig.primary.redis.flushall()
    return []


async def eviction(rig: Rig) -> Ports:
    """For a while the store keeps only a part of what it has."""
    redis = rig.primary.redis
    redis.config_set("maxmemory-policy", "allkeys-random")
    redis.config_set("maxmemory", int(rig.primary.info("memory")["used_memory"] * 0.9))
    await asyncio.sleep(rig.pace_s)
    redis.config_set("maxmemory", 0)
    redis.config_set("maxmemory-policy", "noeviction")
    # A channel that nobody publishes to is looked at every 20 to 40 s only; those that wait for that make a round long.
    await rig.publishers.ask("flood", channels=rig.channels, count=1, bytes=64)
    return []


# Links.


async def pubsub_kill(rig: Rig) -> Ports:
    """CLIENT KILL of every subscriber link, three times, 5 s apart in a whole run."""
    for _ in range(3):
        rig.primary.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(5 * rig.pace_s / 3)
    return []


async def pubsub_held(rig: Rig, seconds: float = 10.0) -> Ports:
    """The subscriber links swallow everything, new ones too; commands go on."""
    assert rig.proxy is not None
    rig.proxy.hold("pubsub")
    await asyncio.sleep(seconds * rig.pace_s)
    rig.proxy.release()
    return []


async def pubsub_held_long(rig: Rig) -> Ports:
    return await pubsub_held(rig, 60.0)


async def links_held(rig: Rig) -> Ports:
    """All links, both directions: a partition."""
    assert rig.proxy is not None
    rig.proxy.hold()
    await asyncio.sleep(10 * rig.pace_s)
    rig.proxy.release()
    return []


async def answers_held(rig: Rig) -> Ports:
    """Commands arrive, their answers don't: what was not acked has been published all the same."""
    assert rig.proxy is not None
    rig.proxy.hold("command", "down")
    await asyncio.sleep(4 * rig.pace_s)
    rig.proxy.reset("command")
    rig.proxy.release()
    return []


async def links_reset(rig: Rig) -> Ports:
    assert rig.proxy is not None
    rig.proxy.reset()
    await asyncio.sleep(rig.pace_s)
    return []


async def links_refused(rig: Rig) -> Ports:
    assert rig.proxy is not None
    await rig.proxy.refuse()
    rig.proxy.drop()
    await asyncio.sleep(2 * rig.pace_s)
    await rig.proxy.accept()
    return []


# Failover.


async def lagging_promoted(rig: Rig) -> Ports:
    """The replica has not got the last writes when its primary is killed and it takes over."""
    assert rig.proxy is not None and rig.replication is not None
    rig.replication.hold()
    await asyncio.sleep(rig.pace_s)
    await asyncio.to_thread(rig.primary.stop)
    rig.stores.reverse()
    rig.primary.promote()
    rig.proxy.target = rig.primary.address
    rig.replication.drop()
    rig.replication.release()
    return []


async def mend_promoted(rig: Rig) -> None:
    """The old primary comes back and follows."""
    assert rig.replication is not None
    old = rig.stores[1]
    rig.replication.target = rig.primary.address
    await asyncio.to_thread(old.start)
    await asyncio.to_thread(old.follow, rig.replication.address, rig.primary)


async def split(rig: Rig) -> Ports:
    """A lagging replica takes over while the old primary lives: subscriber links stay there, commands go to the new."""
    assert rig.proxy is not None and rig.replication is not None
    rig.replication.hold()
    await asyncio.sleep(rig.pace_s)
    rig.stores.reverse()
    rig.primary.promote()
    rig.proxy.target = rig.primary.address
    rig.proxy.drop("command")
    return []


async def fail_back(rig: Rig) -> Ports:
    """And back to the old primary, which goes on from where it was; the subscriber links stay at the other again."""
    assert rig.proxy is not None
    await asyncio.sleep(rig.pace_s)
    rig.stores.reverse()
    rig.proxy.target = rig.primary.address
    rig.proxy.drop("command")
    return []


async def mend_split(rig: Rig) -> None:
    """The replica forgets what it did and follows again."""
    assert rig.replication is not None
    rig.replication.drop()
    rig.replication.release()
    rig.replication.target = rig.primary.address
    await asyncio.to_thread(rig.stores[1].follow, rig.replication.address, rig.primary)


async def sentinel_failover(rig: Rig) -> Ports:
    """As an operator asks for it; until the Sentinel demotes the old primary, some 10 s later, it takes writes too."""
    assert rig.sentinel is not None
    await asyncio.sleep(rig.pace_s)
    rig.sentinel.failover()
    await _sentinel_has_switched(rig)
    await asyncio.to_thread(rig.stores[1].wait_until_in_sync, rig.primary)
    return []


async def sentinel_kill(rig: Rig) -> Ports:
    """As it happens: the primary is killed and the Sentinel finds out."""
    await asyncio.sleep(rig.pace_s)
    await asyncio.to_thread(rig.primary.stop)
    await _sentinel_has_switched(rig)
    await asyncio.to_thread(rig.stores[1].start)
    return []


async def _sentinel_has_switched(rig: Rig) -> None:
    assert rig.sentinel is not None
    before = rig.primary.port
    async with asyncio.timeout(30):
        while rig.sentinel.primary_port() == before or rig.stores[1].info("replication")["role"] != "master":
            await asyncio.sleep(0.05)
    rig.stores.reverse()


async def mend_sentinel(rig: Rig) -> None:
    """The Sentinel makes the old primary follow; then it may be asked again."""
    assert rig.sentinel is not None
    await asyncio.to_thread(rig.stores[1].wait_until_in_sync, rig.primary)
    async with asyncio.timeout(30):
        while True:
            flags = [one["flags"] for one in rig.sentinel.redis.sentinel_slaves("chaos")]
            master = rig.sentinel.redis.sentinel_master("chaos")["flags"]
            if str(master) == "master" and all(str(flag) == "slave" for flag in flags):
                return
            await asyncio.sleep(0.1)


class Fault(NamedTuple):
    """One row. lossless: the store keeps all that it acked. after_s: load that goes on before the verdict."""

    name: str
    kind: Kind
    lossless: bool
    inject: Callable[[Rig], Awaitable[Ports]]
    after_s: float = 2.0
    mend: Callable[[Rig], Awaitable[None]] | None = None
    rounds: int = 20
    short: bool = True
    """Part of the short version."""


FAULTS = (
    Fault("nothing", "plain", True, nothing, rounds=3),
    Fault("worker kill", "plain", True, worker_kill, rounds=300),
    Fault("reconnects", "plain", True, reconnects),
    Fault("slow clients", "plain", True, slow_clients),
    Fault("pub/sub killed", "plain", True, pubsub_kill),
    Fault("pub/sub held 10 s", "plain", True, pubsub_held),
    Fault("pub/sub held 60 s", "plain", True, pubsub_held_long, rounds=1, short=False),
    Fault("links held 10 s", "plain", True, links_held),
    Fault("answers held", "plain", True, answers_held),
    Fault("links reset", "plain", True, links_reset),
    Fault("links refused", "plain", True, links_refused),
    Fault("store paused", "plain", True, store_pause),
    Fault("store restart", "plain", True, store_restart),
    Fault("store kill", "plain", False, store_kill),
    Fault("store loses 1 s", "plain", False, store_loses_a_second),
    Fault("eviction", "plain", False, eviction),
    Fault("flush", "plain", False, flush),
    Fault("lagging promoted", "pair", False, lagging_promoted, mend=mend_promoted),
    Fault("split", "pair", False, split),
    Fault("fail-back", "pair", False, fail_back, mend=mend_split),
    Fault("sentinel failover", "sentinel", False, sentinel_failover, mend=mend_sentinel, short=False),
    Fault("sentinel, killed", "sentinel", False, sentinel_kill, mend=mend_sentinel),
)
