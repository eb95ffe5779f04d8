"""Exposition: what Prometheus reads of a hub, all workers and the supervisor together.

Does: merge the workers' files, add what is of the whole hub (who lives, restarts, reloads), of the machine (accept
queues) and of the store (mailboxes, memory); write it in the format that is asked for.
Does not: answer HTTP (monitoring), or count; a worker writes its own files (metrics), the supervisor its own (facts).
Called by: monitoring, in whichever worker the request has reached.
Never break: merging some thousand numbers takes a thread, not the loop; however many ask at once, it is done once;
where Redis is away its part is missing, after STORE_S, and nothing else.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from redis.asyncio import Redis
from redis.exceptions import RedisError

from . import __version__, facts
from .figures import memory_bytes
from .metrics import UNREADABLE, Metrics, files, is_good
from .store import Store

STORE_S = 0.5
"""For what Redis has to say; a scrape waits no longer."""
NETSTAT = Path("/proc/net/netstat")
QUEUES = {"ListenOverflows": "hub_listen_overflows", "ListenDrops": "hub_listen_drops"}
"""By the kernel's names; of the whole machine (of its network namespace), since its start."""
DEAD = "dead_"
NO_REASONS = ("bytes", "forgotten")
"""Of the store's totals that begin so, but are no reasons."""


class Exposition:
    """Of one hub, as one of its workers tells it."""

    def __init__(self, metrics: Metrics, home: str, workers: int, store: Store, queues: Path = NETSTAT) -> None:
        """home: the supervisor's directory. workers: how many slots there are."""
        self._metrics = metrics
        self._home = home
        self._workers = workers
        self._store = store
        self._queues = queues
        self._redis: Redis | None = None
        self._running: asyncio.Task[list[Metric]] | None = None

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The whole, and its Content-Type. accept: as the request's header has it."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._collect())
            self._running.add_done_callback(self._done)
        # One who goes away must not take the answer from the others.
        families = await asyncio.shield(self._running)
        encode, kind = choose_encoder(accept)
        return await asyncio.to_thread(encode, _Families(families)), kind

    def _done(self, task: asyncio.Task[list[Metric]]) -> None:
        self._running = None
        if not task.cancelled():
            task.exception()  # told to whoever waits, if anybody still does

    async def close(self) -> None:
        """Let go of the connection to Redis."""
        if self._running is not None:
            await asyncio.wait([self._running])
        if self._redis is not None:
            await self._redis.aclose()

    async def _collect(self) -> list[Metric]:
        self._metrics.flush()
        totals, memory = await self._ask_store()
        return await asyncio.to_thread(self._merge, totals, memory)

    async def _ask_store(self) -> tuple[Mapping[bytes, bytes] | None, Mapping[str, Any] | None]:
        """The totals of mailboxes, and what Redis says of its memory; None for what it does not say."""
        if self._redis is None:
            self._redis = self._store.commands(timeout_s=STORE_S)
        try:
            async with asyncio.timeout(STORE_S), self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hgetall(self._store.keys.mail_totals)
                pipeline.info("memory")
                totals, memory = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError):
            return None, None  # hub_redis_up says so; TimeoutError is one of these
        # A user of Redis may be forbidden to ask INFO, and the rest is worth telling.
        return (None if isinstance(totals, RedisError) else totals), (
            None if isinstance(memory, RedisError) else memory
        )

    def _merge(self, totals: Mapping[bytes, bytes] | None, memory: Mapping[str, Any] | None) -> list[Metric]:
        """In a thread of its own."""
        found, living = files(self._metrics.directory, self._workers)
        known = facts.read(self._home)
        return [
            *_merged(found),
            *_of_the_hub(known, living, self._workers),
            *_of_the_machine(self._queues),
            *_of_the_store(totals, memory),
        ]


def _merged(found: list[str]) -> Iterable[Metric]:
    try:
        return MultiProcessCollector.merge(found, accumulate=True)  # type: ignore[no-untyped-call,no-any-return]
    except UNREADABLE:
        # One bad file must not cost the others' numbers; who takes its slot next begins it anew.
        good = [path for path in found if is_good(path)]
        return MultiProcessCollector.merge(good, accumulate=True)  # type: ignore[no-untyped-call,no-any-return]


class _Families:
    """A registry, as prometheus_client's encoders need one."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_the_hub(known: Mapping[str, Any], living: set[int], workers: int) -> Iterator[Metric]:
    up = GaugeMetricFamily("hub_worker_up", "Whether a process of the slot lives", labels=["worker"])
    for slot in range(workers):
        up.add_metric([str(slot)], float(slot in living))
    yield up
    build = GaugeMetricFamily("hub_build_info", "Always 1", labels=["version", "python"])
    build.add_metric([__version__, platform.python_version()], 1.0)
    yield build
    counts = known.get("counts", {})
    yield _counted("hub_worker_restarts", "Workers that ended by themselves, by reason", "reason", counts)
    yield _counted("hub_config_reloads", "Reloads of the settings, by result: ok or failed", "result", counts)
    yield _counted("hub_deploys", "Deploys of new code, by result: ok or failed", "result", counts)
    yield _value(
        "hub_config_last_reload_success",
        "Whether the last reload of the settings was good; 1 before the first",
        known.get("reload_ok", 1),
    )
    yield _value(
        "hub_config_last_reload_timestamp_seconds",
        "When the settings that are in force were read, in seconds since 1970",
        known.get("reloaded_at", known.get("began_at", 0)),
    )
    yield _value("hub_supervisor_memory_bytes", "Resident memory of the supervisor", memory_bytes(known.get("pid", 0)))


FACTS = {"hub_worker_restarts": "worker_restarts", "hub_config_reloads": "reloads", "hub_deploys": "deploys"}
"""By metric the supervisor's own name of a count; its labels are as it counts them."""


def _counted(name: str, text: str, label: str, counts: Mapping[str, Mapping[str, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, number in counts.get(FACTS[name], {}).items():
        family.add_metric([value], number)
    return family


def _value(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _of_the_machine(path: Path) -> Iterator[Metric]:
    """What the kernel counts of accept queues: connections that clients had to try again, or lost."""
    counts = _netstat(path)
    for kernel, name in QUEUES.items():
        family = CounterMetricFamily(name, f"The kernel's {kernel} of this machine, since it was started")
        if kernel in counts:
            family.add_metric([], counts[kernel])
        yield family


def _netstat(path: Path) -> dict[str, int]:
    """TcpExt of /proc/net/netstat: a line of names above a line of numbers; {} where it can't be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split()[1:] for line in lines if line.startswith("TcpExt:")]
    return dict(zip(rows[0], map(int, rows[1]), strict=False)) if len(rows) == 2 else {}


def _of_the_store(totals: Mapping[bytes, bytes] | None, memory: Mapping[str, Any] | None) -> Iterable[Metric]:
    """What is in Redis is the same for all hubs that stand on it: the largest counts, and not the sum."""
    known = {str(name, "ascii"): int(number) for name, number in (totals or {}).items()}
    items = GaugeMetricFamily("hub_mailbox_items", "Messages in all mailboxes of the store", value=None)
    size = GaugeMetricFamily("hub_mailbox_bytes", "Their bytes", value=None)
    dead = CounterMetricFamily(
        "hub_mailbox_dead", "Messages that were never acknowledged, by reason", labels=["reason"]
    )
    used = GaugeMetricFamily("hub_redis_memory_bytes", "Resident memory of Redis", value=None)
    if totals is not None:
        items.add_metric([], known.get("messages", 0))
        size.add_metric([], known.get("bytes", 0))
    if memory is not None:
        used.add_metric([], memory.get("used_memory_rss", 0))
    for name, number in known.items():
        if name.startswith(DEAD) and name.removeprefix(DEAD) not in NO_REASONS:
            dead.add_metric([name.removeprefix(DEAD)], number)
    return items, size, dead, used
