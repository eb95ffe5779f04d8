"""Bench figures: what `hub bench` counts and measures, added up over its processes, and what it makes of that.

Does: keep latencies in buckets of bounded number, add reports of load processes, word and judge the result.
Does not: connect, publish or keep time.
Called by: bench_wires, bench_crew (count), bench_run (adds), benching (prints, exit status).
Never break: memory does not grow with messages; a message that nobody acknowledged is never counted as lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

EXACT_US = 1024
"""Below, a bucket is one microsecond; above, 512 buckets for each doubling: 0.2 % at most."""
DOUBLING = 512
MOST_US = 2**40
"""Twelve days; what took longer counts as that."""
MAX_REASONS = 50
"""Different reasons for errors; the others share one."""
OTHER = "other reasons"
BUSY = 0.85
"""A process that uses this share of a CPU has no more to give: what is late then may be late for its sake."""
IDLE = 0.05
"""A machine with less idle CPU than this slows whatever runs on it."""
BEHIND = 0.95
"""Less than this of the wanted publications: the rate was not reached."""


class Latencies:
    """How many of which duration, in microseconds."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: Counter[int] = Counter(dict(pairs))

    def add(self, us: int) -> None:
        """One of so many microseconds; below 0 is 0."""
        self._counts[_bucket(us)] += 1

    def merge(self, other: Latencies) -> None:
        self._counts.update(other._counts)

    def pairs(self) -> list[tuple[int, int]]:
        """Bucket and count, for JSON."""
        return sorted(self._counts.items())

    @property
    def count(self) -> int:
        return self._counts.total()

    def quantile(self, share: float) -> float:
        """Milliseconds that `share` of all did not exceed; 1: the longest. 0.0 for none."""
        rank, seen = share * self.count, 0
        for bucket, number in self.pairs():
            seen += number
            if seen >= rank:
                return _top(bucket) / 1000
        return 0.0


def _bucket(us: int) -> int:
    if us < EXACT_US:
        return max(us, 0)
    us = min(us, MOST_US)
    shift = us.bit_length() - 10
    return shift * DOUBLING + (us >> shift)


def _top(bucket: int) -> int:
    """The longest duration in it."""
    if bucket < EXACT_US:
        return bucket
    shift = bucket // DOUBLING - 1
    return (((bucket - shift * DOUBLING) + 1) << shift) - 1


QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999), ("max", 1.0))


def add_reason(reasons: Counter[str], reason: str, number: int = 1) -> None:
    """Count it under its own name, or among the others once there are too many names."""
    reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else OTHER] += number


@dataclass
class Crew:
    """What one load process, or all of them, had. Times in s.

    lost: messages that a subscriber did not get although the hub acknowledged them. cpu: share of one CPU.
    """

    ready: int = 0
    failed: int = 0
    closed: int = 0
    received: int = 0
    lost: int = 0
    duplicates: int = 0
    cpu: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    connects: Latencies = field(default_factory=Latencies)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        own = {**vars(self), "latencies": self.latencies.pairs(), "connects": self.connects.pairs()}
        return {**own, "errors": dict(self.errors)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Crew:
        """The opposite of `record`."""
        own = dict(record)
        pairs = {name: Latencies(map(tuple, own[name])) for name in ("latencies", "connects")}
        return cls(**{**own, **pairs, "errors": Counter(own["errors"])})

    def add(self, other: Crew) -> None:
        """cpu: the busiest one's, as one that has no more to give holds its own clients back."""
        for name in ("ready", "failed", "closed", "received", "lost", "duplicates"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.cpu = max(self.cpu, other.cpu)
        for reason, number in other.errors.items():
            add_reason(self.errors, reason, number)
        self.latencies.merge(other.latencies)
        self.connects.merge(other.connects)


@dataclass
class Outcome:
    """A whole run. Times in s; cpu_publisher: share of one CPU; idle: of this machine, while it published."""

    clients: int
    rate_hz: float
    crew: Crew = field(default_factory=Crew)
    connect_s: float = 0.0
    publish_s: float = 0.0
    deliver_s: float = 0.0
    wanted: int = 0
    published: int = 0
    unpublished: int = 0
    publish_errors: Counter[str] = field(default_factory=Counter)
    cpu_publisher: float = 0.0
    idle: float = 1.0
    interrupted: bool = False
    lossy: bool = False

    @property
    def good(self) -> bool:
        """Everybody was let in and stayed, and what was published arrived, once."""
        crew = self.crew
        gone = crew.ready < self.clients or crew.closed or self.unpublished or crew.duplicates
        return not gone and (self.lossy or not crew.lost)

    @property
    def limits(self) -> list[str]:
        """What, other than the hub, may have set the figures."""
        found = []
        if max(self.crew.cpu, self.cpu_publisher) >= BUSY:
            found.append("the load generator was the limit: its busiest process had no CPU left; try more --processes")
        elif self.idle < IDLE:
            found.append("this machine had no CPU left, which the load generator shares with whatever else runs on it")
        if self.wanted and self.published < BEHIND * self.wanted and not self.interrupted:
            found.append(f"{self.published / self.wanted:.0%} of the wanted rate was published")
        return found

    def record(self) -> dict[str, Any]:
        """One JSON object; latencies in ms, rates in 1/s."""
        crew = self.crew
        return {
            "ok": self.good and not self.interrupted,
            "interrupted": self.interrupted,
            "clients": {"wanted": self.clients, "ready": crew.ready, "refused": crew.failed, "closed": crew.closed},
            "connects_per_s": _rate(crew.ready, self.connect_s),
            "connect_ms": _quantiles(crew.connects),
            "published": {
                "wanted": self.wanted,
                "acknowledged": self.published,
                "failed": self.unpublished,
                "per_s": _rate(self.published, self.publish_s),
            },
            "deliveries": {
                "received": crew.received,
                "lost": crew.lost,
                "duplicates": crew.duplicates,
                "per_s": _rate(crew.received, self.deliver_s),
            },
            "latency_ms": _quantiles(crew.latencies),
            "errors": dict((crew.errors + self.publish_errors).most_common()),
            "cpu": {
                "busiest_load_process": round(crew.cpu, 3),
                "publisher": round(self.cpu_publisher, 3),
                "machine_idle": round(self.idle, 3),
            },
            "limits": self.limits,
        }

    def lines(self) -> list[str]:
        """The same for a person."""
        found = self.record()
        clients, published, deliveries = found["clients"], found["published"], found["deliveries"]
        lines = [
            f"clients     {clients['ready']:,} of {clients['wanted']:,} connected and subscribed, "
            f"{found['connects_per_s']:,.0f}/s; {clients['refused']:,} refused, {clients['closed']:,} closed later",
            f"connect     {_spelt(found['connect_ms'])}",
            f"published   {published['acknowledged']:,} messages, {published['per_s']:,.0f}/s; "
            f"{published['failed']:,} failed",
            f"deliveries  {deliveries['received']:,}, {deliveries['per_s']:,.0f}/s; "
            f"{deliveries['lost']:,} lost, {deliveries['duplicates']:,} twice",
            f"latency     {_spelt(found['latency_ms'])}",
            f"CPU         load process {self.crew.cpu:.0%}, publisher {self.cpu_publisher:.0%} of one; "
            f"{self.idle:.0%} of the machine idle",
        ]
        lines += [f"error       {number:,} × {reason}" for reason, number in found["errors"].items()]
        return lines + [f"warning     {text}" for text in self.limits]


def _rate(number: int, seconds: float) -> float:
    return round(number / seconds, 1) if seconds > 0 else 0.0


def _quantiles(found: Latencies) -> dict[str, float]:
    return {name: round(found.quantile(share), 3) for name, share in QUANTILES}


def _spelt(quantiles: Mapping[str, float]) -> str:
    """'p50 1.2, p90 2.0, p99 3.1, p99.9 4.0, max 5.5 ms'"""
    return ", ".join(f"{name.replace('_', '.')} {value:,.3g}" for name, value in quantiles.items()) + " ms"
