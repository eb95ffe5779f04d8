"""Slots: one server's turn in one round, and the table of all turns.

Does: charge a server's CPU time to what its clients received; set servers side by side.
Called by: the benches whose clients receive messages.
Never break: a ratio compares slots of the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from . import report
from .population import Counts
from .processes import cpu_s
from .server import Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slot:
    """One turn.

    server_us: CPU µs per message that a client received, of the processes that deliver. apart_us: of those beside them.
    server_share, population_share: CPU seconds per second of wall time; near 1 is saturated. per_read: messages that a
    client's read brought; above 1 the server joined them, or the client was late. payload_bytes: of one message.
    """

    server_us: float
    apart_us: Mapping[str, float]
    server_share: float
    population_share: float
    deliveries_per_s: float
    payload_bytes: float
    per_read: float
    p50_us: float
    p99_us: float
    p999_us: float
    mean_us: float


TICK_S = 0.001
ByServer = dict[str, list[Slot]]
"""One slot for each round."""


def charge(server: Server, work: Callable[[], Counts]) -> Slot:
    """Let the clients do their work and charge the server's CPU time to what they received."""
    before_s, before = server.cpu_s(), {name: cpu_s(pid) for name, pid in server.apart.items()}
    counts = work()
    used_s, used = server.cpu_s() - before_s, {name: cpu_s(pid) - before[name] for name, pid in server.apart.items()}
    if used_s <= 0:
        # The kernel's clock of a process that runs just now on another CPU may be behind, by a tick at the most: seen
        # where the work was a few ms. A ratio to it would be nonsense.
        used_s = TICK_S
    return Slot(
        server_us=used_s / counts.messages * 1e6,
        apart_us={name: seconds / counts.messages * 1e6 for name, seconds in used.items()},
        server_share=used_s / counts.seconds,
        population_share=counts.cpu_seconds / counts.seconds,
        deliveries_per_s=counts.messages / counts.seconds,
        payload_bytes=counts.payload_bytes / counts.messages,
        per_read=counts.messages / counts.reads,
        p50_us=counts.p50_us,
        p99_us=counts.p99_us,
        p999_us=counts.p999_us,
        mean_us=counts.mean_us,
    )


def rotated(names: Sequence[T], by: int) -> list[T]:
    """So that nobody always runs behind the same neighbour."""
    cut = by % len(names)
    return [*names[cut:], *names[:cut]]


def record(by_server: ByServer) -> dict[str, Any]:
    """Every slot, for JSON."""
    return {name: [asdict(slot) for slot in slots] for name, slots in by_server.items()}


def text(by_server: ByServer, compared: Sequence[str], latencies: bool = True) -> list[str]:
    """The table, in which servers of `compared` have a column of ratios where they take part, and what stands apart."""
    compared = [name for name in compared if name in by_server]
    head = ["server", "CPU µs per delivery", *[f"× {other}" for other in compared]]
    head += ["per CPU second", "bytes", "server's CPU %", "population's CPU %", "per read"]
    head += ["p50 ms", "p99 ms", "p99.9 ms"] if latencies else []
    rows = [_row(name, by_server, compared, latencies) for name in by_server]
    return [report.table(head, rows), "", *_apart(by_server)]


def _row(name: str, by_server: ByServer, compared: Sequence[str], latencies: bool) -> list[str]:
    slots = by_server[name]
    own = [slot.server_us for slot in slots]
    cells = [name, report.spread(own).text(3 if max(own) < 1 else 2)]
    cells += [report.paired(own, [slot.server_us for slot in by_server[other]]).text() for other in compared]
    cells += [
        f"{1e6 / report.spread(own).median:,.0f}",
        f"{median(slots, 'payload_bytes'):.0f}",
        f"{median(slots, 'server_share') * 100:.0f}",
        f"{median(slots, 'population_share') * 100:.0f}",
        f"{median(slots, 'per_read'):.2f}",
    ]
    times = ("p50_us", "p99_us", "p999_us") if latencies else ()
    return cells + [f"{median(slots, figure) / 1000:.2f}" for figure in times]


def median(slots: Sequence[Slot], figure: str) -> float:
    """Of one figure, over the rounds."""
    return report.spread([getattr(slot, figure) for slot in slots]).median


def _apart(by_server: ByServer) -> list[str]:
    lines = []
    for name, slots in by_server.items():
        parts = [
            f"{part} {report.spread([slot.apart_us[part] for slot in slots]).text(3)}" for part in slots[0].apart_us
        ]
        if parts:
            lines.append(f"Apart, CPU µs per delivery, {name}: {', '.join(parts)}.")
    return lines


def bench(
    name: str,
    arguments: argparse.Namespace,
    run: Callable[[argparse.Namespace], ByServer],
    text: Callable[[argparse.Namespace, dict[str, Any], ByServer], str],
) -> None:
    """A whole bench whose outcome is slots by server: measure, print and keep; one line and status 1 where it fails."""
    report.bench(name, arguments, run, text, lambda results: {"servers": record(results)})
