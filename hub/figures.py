"""Figures: what a worker has to say of itself, as plain numbers.

Does: gather from the rooms what they count, into one object of JSON.
Does not: keep or add up anything over time (whoever wants a rate takes the difference of two readings), talk to other
workers, or know Prometheus (metrics).
Called by: building (builds `Rooms`); metrics once a second, and whoever shows a worker's figures.
Never break: `current` asks nobody who has to be waited for, and its cost does not grow with the clients there are; no
channel's or user's name is in what it gives.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

from .backlog import Backlog
from .broker import Broker
from .certificates import Certificates
from .fanout import Fanout
from .headroom import Headroom
from .ingest import Ingest
from .lag import Lag
from .loopback import Loopback
from .reactor import Reactor
from .refusals import Refusals
from .registry import Registry
from .streams import Streams
from .users import Users

PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Rooms:
    """Of one worker: those that count.

    polls: the requests of plain HTTP that wait. began_at, started_at: when the worker was built, by the reactor's clock
    and in seconds since 1970.
    """

    slot: int
    generation: int
    reactor: Reactor
    fanout: Fanout
    broker: Broker
    streams: Streams
    ingest: Ingest
    loopback: Loopback
    registry: Registry
    users: Users
    refusals: Refusals
    polls: Sized
    lag: Lag
    began_at: float
    certificates: Certificates | None = None
    headroom: Headroom | None = None
    ticker: Callable[[], Mapping[str, Any] | None] = lambda: None
    started_at: float = field(default_factory=time.time)


def current(rooms: Rooms) -> dict[str, Any]:
    """The worker's figures of this moment; about a tenth of a millisecond.

    Counts, and histograms as Histogram.about has them, are since its start; "…_bytes", "open", "up" and what is said to
    be so are of now. Seconds and bytes throughout.

    {"slot":0,"generation":3,"pid":71,"uptime_s":12.5,"started_at":1763999987.6,"time":1764000000.1,
     "connections":{"open":{"websocket":12,…,"long_poll":0},"opened":{"websocket":20,…},"closed":{"3001":8,…,"other":0},
      "refused":{"handshakes":0,…},"handshake_s":{…}},
     "users":10,"sessions":12,"subscriptions":30,"channels":4,
     "delivery":{"deliveries":900,"conflated":{"slow":3,"behind":0},"dropped":{"slow":0,"behind":0},"slow_closed":1,
      "sweep_s":{…},"latency_s":{…}},
     "publishes":{"taken":7,"duplicate":0,"refused":0,"unconfirmed":0,"unavailable":0},
     "streams":{"followed":2,"gaps":0,"duplicates":0,"displaced":0,"recovered":5,"lost":0,"recovered_publications":17,
      "checks":{"ok":9,"behind":0,"lost":0}},
     "loop":{"lag_s":{…},"worst_s":0.002},
     "waiting":{"outboxes":0,"sweep":0,"redis":0,"rings":4096},
     "redis":{"commands_up":true,"subscriber_up":true,"links":1,"lag_s":0.0004,"lags_s":{…},"command_s":{…},
      "missed":0,"generations":0},
     "process":{"memory_bytes":40000000,"cpu_s":1.5,"fds":40,"max_fds":1048576},
     "tls_ends_at":0.0,"ticker":null}
    """
    return {
        "slot": rooms.slot,
        "generation": rooms.generation,
        "pid": os.getpid(),
        "uptime_s": round(rooms.reactor.clock() - rooms.began_at, 1),
        "started_at": rooms.started_at,
        "time": time.time(),
        "connections": _connections(rooms),
        "users": len(rooms.users),
        "sessions": rooms.users.sessions,
        "subscriptions": rooms.fanout.subscriptions,
        "channels": len(rooms.fanout.lines),
        "delivery": _delivery(rooms.fanout, rooms.reactor.backlog),
        "publishes": dict(rooms.broker.outcomes),
        "streams": _streams(rooms.streams),
        "loop": {"lag_s": rooms.lag.seconds.about(), "worst_s": round(rooms.lag.worst_s, 6)},
        "waiting": _waiting(rooms),
        "redis": _redis(rooms),
        "process": _process(len(rooms.reactor.connections)),
        "tls_ends_at": rooms.certificates.ends_at if rooms.certificates is not None else 0.0,
        "ticker": rooms.ticker(),
    }


def _connections(rooms: Rooms) -> Mapping[str, Any]:
    tally = rooms.reactor.tally
    return {
        "open": {**tally.open, "long_poll": len(rooms.polls)},
        "opened": dict(tally.opened),
        "closed": dict(tally.closed),
        "refused": dict(rooms.refusals.counts),
        "handshake_s": tally.handshakes.about(),
    }


def _delivery(fanout: Fanout, backlog: Backlog) -> Mapping[str, Any]:
    return {
        "deliveries": fanout.deliveries,
        "conflated": {"slow": backlog.conflated, "behind": fanout.conflated},
        "dropped": {"slow": backlog.dropped, "behind": fanout.dropped},
        "slow_closed": backlog.slow,
        "sweep_s": fanout.sweeps.about(),
        "latency_s": fanout.latency.about(),
    }


def _streams(streams: Streams) -> Mapping[str, Any]:
    return {
        "followed": len(streams),
        "gaps": streams.gaps,
        "duplicates": streams.duplicates,
        "displaced": streams.displacements,
        "recovered": streams.recovered,
        "lost": streams.lost,
        "recovered_publications": streams.recovered_publications,
        "checks": dict(streams.checks),
    }


def _waiting(rooms: Rooms) -> Mapping[str, int]:
    """Bytes that are on their way, by where they wait."""
    return {
        "outboxes": rooms.reactor.backlog.bytes,
        "sweep": rooms.fanout.waiting_bytes,
        "redis": rooms.broker.waiting_bytes,
        "rings": rooms.streams.ring_bytes,
    }


def _redis(rooms: Rooms) -> Mapping[str, Any]:
    loopback = rooms.loopback
    return {
        "commands_up": rooms.registry.reachable,
        "subscriber_up": rooms.ingest.connected,
        "links": rooms.ingest.links,
        "lag_s": round(loopback.lag_s, 6),
        "lags_s": loopback.lag.about(),
        "command_s": rooms.broker.seconds.about(),
        "missed": loopback.missed,
        "generations": loopback.generations,
    }


def _process(connections: int) -> Mapping[str, float]:
    return {
        "memory_bytes": memory_bytes("self"),
        "cpu_s": time.process_time(),
        "fds": open_fds(connections),
        "max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def memory_bytes(pid: int | str) -> int:
    """Resident memory of a process, shared pages included (statm of proc(5)); 0 for one that is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def open_fds(connections: int) -> int:
    """Descriptors of this process: what the kernel says since Linux 6.2 without listing them (size of /proc/PID/fd).

    Elsewhere as many as there are connections, of which each has one: a list of 100,000 names would hold the loop.
    """
    return os.stat("/proc/self/fd").st_size or connections
