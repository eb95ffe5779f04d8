"""Stage: a hub whose own ticker is fed by the bench, and clients with a watch list each, in slots that are charged.

Does: start the three together, let the feed run for a slot, wait until every client holds the last value of each symbol
that it watches, and read what was counted.
Does not: decide what is compared (market.py).
Called by: market.
Never break: a slot with an older value behind a newer one, a value twice, one that nobody asked for, or a last value
that a client lacks has no figures and ends the bench.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .feed import Fed, Feed, feed
from .hub import LAST_ID, hub
from .population import LINE, Ages, Changes, Population, population
from .processes import BenchError, cpu_s
from .server import Server

NAMESPACE = "market"
CHANNEL = f"{NAMESPACE}:$watch"
CHANGE_ID = LAST_ID + 1
SETTLE_TIMEOUT_S = 20.0
SETTLE_POLL_S = 0.05
SATURATED = 0.95
"""Of a core: a population that takes more is itself what is slow."""
KEPT_PACE = 0.95
"""Of what was asked for. A slot ends a little late: with its last tick published, or its last message everywhere."""
SETTINGS = """\
[namespaces.market]
mode = "latest"
subscribe = "anyone"
watch = 1000
[tcp]
notsent_lowat_bytes = %(lowat)d
[client]
outbox_conflate_bytes = %(conflate)d
"""


class Pace(NamedTuple):
    """The feed of one slot: ticks a second, in so many beats, for so long."""

    per_s: int
    beats: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Slot:
    """One turn of one stage.

    late_ms, latest_ms: by how much the source handed its ticks over late, on average and at most. delivered,
    merged: live values that reached clients, and those left out for newer ones. faults: values that should not have
    come, 0 as there is no slot otherwise. bytes_per_s: that a client was sent.
    Shares: CPU seconds per second of the feed; apart: of Valkey and the supervisor. fast, thin: Ages as dicts, in µs;
    thin: until the feed's end. settle_s: from the last tick until every client held it. changes: Changes as a dict; {}
    where none were asked. unmet: in words, what of the load was not as asked.
    """

    seconds: float
    ticks_per_s: float
    late_ms: float
    latest_ms: float
    delivered: int
    merged: int
    faults: int
    bytes_per_s: float
    worker_share: float
    apart: Mapping[str, float]
    population_share: float
    fast: Mapping[str, Mapping[str, float]]
    thin: Mapping[str, Mapping[str, float]]
    settle_s: float
    changes: Mapping[str, Any]
    unmet: Sequence[str]


class Stage:
    """What runs; `slot` is one turn."""

    def __init__(self, server: Server, clients: Population, source: Feed, count: int) -> None:
        """count: of the clients."""
        self.clients = clients
        self._server = server
        self._feed = source
        self._count = count

    def slot(self, pace: Pace, changes: Sequence[str] = (), changes_per_s: float = 1.0) -> Slot:
        """Feed for so long while every client sends `changes` in turn. Raises BenchError, see above."""
        server, clients = self._server, self.clients
        clients.reset()
        before, apart = server.cpu_s(), {name: cpu_s(pid) for name, pid in server.apart.items()}
        self._feed.start(*pace)
        if changes:
            clients.change(changes, changes_per_s, pace.seconds)
        fed = self._feed.wait()
        ended_s = time.monotonic()
        # A thin link takes a second for the last values of 50 symbols, and they grow old meanwhile whoever sends them.
        during = clients.ticks()
        changed = clients.changed(SETTLE_TIMEOUT_S) if changes else None
        self._settle(fed)
        settle_s = time.monotonic() - ended_s
        used_s = server.cpu_s() - before
        ticks, counts = clients.ticks(), clients.stats()
        if faults := ticks.older + ticks.repeated + ticks.foreign:
            raise BenchError(
                f"of {ticks.delivered} values {ticks.older} were older than the one before, {ticks.repeated} the same, "
                f"{ticks.foreign} of symbols that are not watched; allowed: 0"
            )
        population_share = counts.cpu_seconds / pace.seconds
        return Slot(
            seconds=pace.seconds,
            ticks_per_s=fed.ticks / fed.seconds,
            late_ms=fed.late_ms,
            latest_ms=fed.latest_ms,
            delivered=ticks.delivered,
            merged=ticks.merged,
            faults=faults,
            bytes_per_s=counts.wire_bytes / self._count / pace.seconds,
            worker_share=used_s / pace.seconds,
            apart={name: (cpu_s(pid) - apart[name]) / pace.seconds for name, pid in server.apart.items()},
            population_share=population_share,
            fast=_ages(ticks.fast),
            thin=_ages(during.thin),
            settle_s=settle_s,
            changes=_changes(changed),
            unmet=unmet(pace, fed, population_share, changed),
        )

    def _settle(self, fed: Fed) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while (held := self.clients.held(fed.seqs)).behind or held.ahead:
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{SETTLE_TIMEOUT_S:g} s after the last tick {held.clients} clients lack the last value of "
                    f"{held.behind} symbols of {held.held + held.behind}, and have {held.ahead} that were never sent"
                )
            time.sleep(SETTLE_POLL_S)  # the clients give no other sign


def _ages(ages: Ages) -> dict[str, dict[str, float]]:
    return {name: times._asdict() for name, times in ages._asdict().items()}


def _changes(changed: Changes | None) -> dict[str, Any]:
    return {} if changed is None else {**changed._asdict(), "answers": changed.answers._asdict()}


def unmet(pace: Pace, fed: Fed, population_share: float, changed: Changes | None) -> list[str]:
    """What of a slot's load was not as asked, in words."""
    found = []
    if fed.ticks < KEPT_PACE * pace.per_s * fed.seconds:
        found.append(f"the hub took {fed.ticks / fed.seconds:,.0f} ticks/s of {pace.per_s:,}")
    if population_share > SATURATED:
        found.append(f"the population took {population_share:.0%} of its core, so latencies are its own")
    if changed is not None and changed.missed:
        found.append(
            f"{changed.missed:,} of {changed.asked:,} changes were not sent, as the client's one before was unanswered"
        )
    return found


def greeting(symbols: Sequence[int], hz: float) -> str:
    """Connect, and subscribe to a watch list of these; hz 0: every value."""
    data: dict[str, Any] = {"symbols": [f"S{symbol}" for symbol in symbols], **({"hz": hz} if hz else {})}
    commands = [
        {"id": 1, "connect": {}},
        {"id": LAST_ID, "subscribe": {"channel": CHANNEL, "data": data}},
    ]
    return "\n".join(json.dumps(command, separators=(",", ":")) for command in commands)


def rpc(method: str, **data: object) -> str:
    """A call of the hub for the watch list, as a client's text."""
    call = {"method": method, "data": {"channel": CHANNEL, **data}}
    return json.dumps({"id": CHANGE_ID, "rpc": call}, separators=(",", ":"))


@contextlib.contextmanager
def stage(
    cpus: tuple[int, int],
    lists: Sequence[Sequence[int]],
    symbols: int,
    settings: Mapping[str, int],
    *,
    thin: int = 0,
    hz: float = 0,
) -> Iterator[Stage]:
    """A hub on the first of `cpus`, one client for each of `lists` on the second; each symbol has ticked once.

    lists: numbers of symbols, the last of each the spare, which is not watched at first. settings: as SETTINGS has
    them. thin: so many clients have slow links. hz: the rate that all ask for; 0: every value.
    """
    server_cpu, load_cpu = cpus
    with feed(symbols) as source, hub(server_cpu, more=SETTINGS % settings + source.settings(NAMESPACE)) as server:
        source.accept()
        source.run(symbols, 1, 1.0)
        lines = [greeting(numbers[:-1], hz) for numbers in lists]
        load = replace(server.load, sends=(LINE,), lines=lines, publish="", symbols=symbols, watches=lists, thin=thin)
        with population(load, len(lists), load_cpu) as clients:
            clients.wait_ready()
            yield Stage(server, clients, source, len(lists))
