"""Feed: the hub's own ticker source in the benches of market data, beaten by the bench.

Does: ask the bench over a Unix socket how many ticks are wanted, hand them to the hub by the clock, tell the bench what
became of the clock and which `seq` each symbol has now.
Does not: measure clients (population_ticks.c), nor go back: a term that ends ends the measurement.
Called by: the hub's ticker, `source = "feed_source:Beats"`; rig/feed.py is at the other end of the socket.
Never break: a tick carries the time at which it was due, so a hub that takes the source's ticks late is charged for it.

An order is a line of JSON {"per_s":10000,"beats":100,"seconds":4}; its answer {"ticks":40000,"seconds":4.0,
"late_ms":0.8,"latest_ms":9.1,"seqs":[…]}. All symbols tick in turn, in an order drawn once. What has become due when
the hub asks for more leaves in one batch, as from a feed that has been read in one go.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from hub.tick import Batch, LastTicks, Row, Sleep

SEED = 2


class Beats:
    """As many symbols as wanted, named S0, S1, and so on."""

    identity = "bench feed"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._path: str = options["control"]
        count: int = options["symbols"]
        self._order = random.Random(SEED).sample(range(count), count)
        self._seqs = [0] * count
        self._ticks = 0

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        """See hub.sources.Source."""
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            while line := await reader.readline():
                order = json.loads(line)
                clock = Clock(order["per_s"], order["beats"], order["seconds"])
                while ticks := await clock.due():
                    yield Batch([self._tick(due_ns) for due_ns in ticks], str(self._ticks))
                # Asked for more, so what was handed over last has been published.
                writer.write(json.dumps({**clock.outcome(), "seqs": self._seqs}).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()

    def _tick(self, due_ns: int) -> Row:
        symbol = self._order[self._ticks % len(self._order)]
        self._ticks += 1
        self._seqs[symbol] = seq = self._seqs[symbol] + 1
        price = 100 + seq % 1000 / 100
        fields = {
            "symbol": f"S{symbol}",
            "price": price,
            "bid": round(price - 0.01, 2),
            "ask": round(price + 0.01, 2),
            "volume": 100,
            "seq": seq,
            # Not the time of day: the population reads the same clock, which nobody sets.
            "time_ns": str(due_ns),
        }
        return Row("", fields)


class Clock:
    """One order's beats; each has its share of the ticks."""

    def __init__(
        self,
        per_s: int,
        beats: int,
        seconds: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """per_s: ticks, a multiple of `beats`, which are a second too."""
        self._now_ns = now_ns
        self._sleep = sleep
        self._period_ns = 10**9 // beats
        self._each = per_s // beats
        self._beats = round(beats * seconds)
        self._done = 0
        self._late_ns = self._latest_ns = 0
        self._begin_ns = now_ns()

    async def due(self) -> list[int]:
        """When each of the ticks was due that are; waits for the next beat, [] behind the last one."""
        if self._done == self._beats:
            return []
        next_ns = self._begin_ns + self._done * self._period_ns
        while (early_ns := next_ns - self._now_ns()) > 0:
            await self._sleep(early_ns / 1e9)
        now_ns = self._now_ns()
        until = min(self._beats, (now_ns - self._begin_ns) // self._period_ns + 1)
        beats = [self._begin_ns + number * self._period_ns for number in range(self._done, until)]
        self._done = until
        self._late_ns += sum(now_ns - due_ns for due_ns in beats)
        self._latest_ns = max(self._latest_ns, now_ns - beats[0])
        return [due_ns for due_ns in beats for _ in range(self._each)]

    def outcome(self) -> dict[str, float]:
        """late_ms, latest_ms: how late beats were handed over, on average and at most."""
        return {
            "ticks": self._beats * self._each,
            "seconds": (self._now_ns() - self._begin_ns) / 1e9,
            "late_ms": self._late_ns / max(1, self._beats) / 1e6,
            "latest_ms": self._latest_ns / 1e6,
        }
