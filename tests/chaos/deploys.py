"""Deploys: SIGUSR2 again and again under load, `python -m tests.chaos.deploys`; with figures for each.

    --rounds N (20)    --short, the load of `make test`    --json    --save into bench/results/DATE-deploys.*

500 publishes/s into 200 channels, 1,000 recovering clients in 4 channels each (50 of them stock SDKs), 200 new
connections/s, 4 workers. Exit status 1 where one was refused, anything was lost without a word, a client had to come
back more than once for a deploy, or the workers' connections were further than 5 % from even afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.rig import report

from .rig import LoadProcess, Rig, Size

FULL = Size(4, 200, 950, 40, 10, 500.0, 2, 45.0, 1.0)
SHORT = Size(2, 40, 180, 4, 2, 100.0, 1, 45.0, 0.25)
VISITS_HZ = {FULL: 200.0, SHORT: 50.0}
WINDOW_S = {FULL: 5.0, SHORT: 1.0}
DEPLOY_S = 180.0
EVEN = {FULL: 0.05, SHORT: 0.1}
"""What is allowed. A hundred clients in each worker are too few for less: balance.FEW of them are 4 %."""
POLL_S = 0.05
ALL_BACK_S = 30.0


@dataclass
class Found:
    """What there was to see from outside, over all deploys."""

    allowed: float
    deploys: int = 0
    visits: Counter[str] = field(default_factory=Counter)
    uneven: list[float] = field(default_factory=list)
    """After each: how far the worker that is furthest from even is from it, as a share."""
    reconnects: list[int] = field(default_factory=list)
    """In each: of the client that had the most."""
    seconds: list[float] = field(default_factory=list)
    """From the signal until the last old worker had gone."""

    @property
    def refused(self) -> int:
        return sum(count for outcome, count in self.visits.items() if outcome != "served")

    def mistakes(self) -> list[str]:
        lines = [f"{count} visits: {outcome}" for outcome, count in self.visits.items() if outcome != "served"]
        lines += [f"a client came back {most} times in one deploy" for most in self.reconnects if most > 1]
        lines += [f"{share:.1%} from even" for share in self.uneven if share > self.allowed]
        return lines


async def deploys(size: Size, rounds: int, directory: Path, keep: Path | None = None) -> tuple[Found, Rig]:
    """Run them all; the rig has the checker's verdict."""
    found = Found(EVEN[size])
    settings = {"drain_window_s": WINDOW_S[size], "deploy_timeout_s": DEPLOY_S}
    async with Rig("plain", size, directory, keep=keep, settings=settings) as rig:
        visitors = LoadProcess("visitors", {"url": rig.hub.ws_url, "rate_hz": VISITS_HZ[size], "log": "/dev/null"})
        await visitors.start()
        try:
            for _ in range(rounds):
                rig.gone.clear()
                await rig.round("deploy", True, lambda rig: one(rig, visitors, found), 1.0)
                found.reconnects.append(max(rig.gone.values(), default=0))
                progress(found, rig)
        finally:
            await visitors.stop()
    return found, rig


def progress(found: Found, rig: Rig) -> None:
    last = found.reconnects[-1], found.uneven[-1], found.seconds[-1]
    wrong = "; ".join([*found.mistakes(), *rig.checker.findings]) or "fine"
    print(f"{time.strftime('%H:%M:%S')} deploy {found.deploys}: {last}, {wrong}", file=sys.stderr, flush=True)


async def one(rig: Rig, visitors: LoadProcess, found: Found) -> list[int]:
    """One deploy, from the signal to the end of the old generation."""
    old = rig.hub.worker_pids()
    victims = [port for pid in old for port in rig.ports_of(pid)]
    await visitors.ask("visit")
    begun = time.monotonic()
    rig.hub.process.send_signal(signal.SIGUSR2)
    async with asyncio.timeout(DEPLOY_S):
        while set(old) & set(rig.hub.worker_pids()) or len(rig.hub.worker_pids()) < rig.size.workers:
            failed = re.search("deploy (?:refused|failed).*", rig.hub.stderr)
            assert failed is None, failed[0]
            await asyncio.sleep(POLL_S)
    found.seconds.append(round(time.monotonic() - begun, 2))
    found.visits.update((await visitors.ask("rest"))["outcomes"])
    await asyncio.gather(*(process.ask("ready") for process in rig.clients))
    counts = [rig.clients_of(pid) for pid in rig.hub.worker_pids()]
    mean = sum(counts) / len(counts)
    found.uneven.append(round(max(abs(count - mean) for count in counts) / mean, 4))
    found.deploys += 1
    # Clients that came back in the deploy have other ports, and none of them is to go again.
    return victims


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("deploys", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="deploys", default="", metavar="NAME")
    arguments = parser.parse_args(words)
    size = SHORT if arguments.short else FULL
    with tempfile.TemporaryDirectory(prefix="deploys-") as directory:
        found, rig = asyncio.run(deploys(size, arguments.rounds, Path(directory)))
    total = rig.checker.total
    record: dict[str, Any] = {
        "bench": "deploys",
        "machine": report.machine(),
        "size": size._asdict(),
        "deploys": found.deploys,
        "visits": dict(found.visits),
        "refused": found.refused,
        "silent_loss": total.silent_loss,
        "signalled_loss": total.signalled_loss,
        "disconnects": total.disconnects,
        "codes": dict(rig.codes),
        "most_reconnects": found.reconnects,
        "uneven": found.uneven,
        "seconds": found.seconds,
        "published": total.published,
        "delivered": total.delivered,
    }
    mistakes = [*found.mistakes(), *rig.checker.findings]
    report.finish(record, text_of(record, mistakes), arguments)
    return 1 if mistakes or total.failed else 0


def text_of(record: dict[str, Any], mistakes: list[str]) -> str:
    lines = [f"# Deploys under load\n\n{report.machine_text(record['machine'])}\n"]
    lines += [f"- {name}: {json.dumps(value)}" for name, value in record.items() if name not in ("machine", "bench")]
    return "\n".join([*lines, *(f"- wrong: {mistake}" for mistake in mistakes)])


if __name__ == "__main__":
    sys.exit(main())
