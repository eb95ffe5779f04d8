"""Counters: what a running hub counts itself, read from its /metrics.

Does: read them, of all workers together; say which of those have grown that tell why a client may miss something.
Called by: many.
Never break: an error of a bench is told with or without them; a hub that can't be asked any more is no other error.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT_S = 10.0
BY_WORKER = ("worker", "pid")
"""Labels over which is summed."""
REASONS = (
    "hub_disconnects_total",
    "hub_displaced_total",
    "hub_dropped_total",
    "hub_gaps_total",
    "hub_handshake_rejected_total",
    "hub_listen_drops_total",
    "hub_listen_overflows_total",
    "hub_redis_reconnects_total",
    "hub_refused_total",
    "hub_worker_restarts_total",
)
"""Why a client may not be told something."""


def read(url: str) -> dict[str, float]:
    """{'hub_dropped_total{cause="slow"}': 3.0, 'hub_subscriptions': 60.0, …}. Raises OSError."""
    found: dict[str, float] = {}
    for sample in _samples(url):
        labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items() if name not in BY_WORKER)
        name = f"{sample.name}{{{labels}}}" if labels else sample.name
        found[name] = found.get(name, 0.0) + sample.value
    return found


def by_worker(url: str, name: str) -> list[float]:
    """A gauge of each worker, all its other labels together. Raises OSError."""
    found: dict[str, float] = {}
    for sample in _samples(url):
        if sample.name == name and "worker" in sample.labels:
            worker = sample.labels["worker"]
            found[worker] = found.get(worker, 0.0) + sample.value
    return list(found.values())


def _samples(url: str) -> Iterator[Sample]:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        yield from family.samples


def grown(now: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """['hub_dropped_total{cause="slow"} +3', …], of REASONS."""
    return [
        f"{name} +{value - before.get(name, 0.0):g}"
        for name, value in sorted(now.items())
        if name.partition("{")[0] in REASONS and value > before.get(name, 0.0)
    ]
