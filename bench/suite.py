"""Suite: every bench in turn, then one table, one picture and the list of what must be reached.

    python bench/suite.py [--full] [--only NAME…]

Does: run each work as a process of its own, keep its outcome in results/, sum all of them up (summary.py).
Does not: measure; each line of WORKS can be run by hand just as well.
Called by: `make bench`, `make bench-full`.
Never break: a work that fails is named at the end, with exit status 1, and does not keep the others from running.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import summary
from rig.build import BENCH, PROGRAMS, program


class Work(NamedTuple):
    """One run: the name of its files, its program, its arguments in the short set; in_short: whether it is in it."""

    name: str
    words: str
    in_short: bool = True


FAST = "hub hub-socketio c-loop bun nats nchan ws websockets socket.io"
WORKS = [
    Work("broadcast-1000", "fanout.py --messages 60"),
    Work("broadcast-5000", f"fanout.py --subscribers 5000 --messages 30 --servers {FAST}"),
    Work("pace", "pace.py --rounds 9 --seconds 4 --servers hub c-loop bun"),
    Work("pace-all", f"pace.py --servers {FAST}", in_short=False),
    Work("ticker-all", "ticker.py --work all --batches 40"),
    Work("ticker-some", "ticker.py --work some --symbols 101 --subscribers 1010 --rounds 9"),
    Work("ticker-zipf", "ticker.py --work zipf --symbols 1000"),
    Work("market-watch", "market.py watch"),
    Work("market-changes", "market.py changes"),
    Work("market-kilobytes", "market.py kilobytes"),
    Work("chat", "chat.py"),
    Work("storm", "storm.py"),
    Work("tokens", "tokens.py"),
    Work("recovery", "recovery.py"),
    Work("idle", "idle.py --connections 5000 --watch 1"),
    Work("idle-heartbeats", "idle.py --connections 15000 --watch 50 --servers hub hub-limits"),
    Work("many", "many.py"),
    Work("slow", "slow.py"),
    Work("wires", "wires.py"),
    Work("ingest", "ingest.py"),
    Work("history", "history.py"),
    Work("workers-1000", "workers.py --subscribers 1000 --messages 60"),
    Work("workers-5000", "workers.py"),
    *[
        Work(
            f"broadcast-{subscribers}-{size}",
            f"fanout.py --subscribers {subscribers} --bytes {size} --messages {max(20, 60_000 // subscribers)}",
            in_short=False,
        )
        for subscribers in (1000, 5000, 15000)
        for size in (64, 128, 1024)
    ],
]


def run(work: Work) -> bool:
    """Run one work; whether it ended well."""
    script, *words = work.words.split()
    command = [sys.executable, str(BENCH / script), *words, "--save", work.name]
    print(f"\n$ python bench/{work.words} --save {work.name}", flush=True)
    began_s = time.monotonic()
    status = subprocess.run(command).returncode
    print(f"{time.monotonic() - began_s:.0f} s", flush=True)
    return status == 0


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="all benches; see bench/README.md")
    parser.add_argument("--full", action="store_true", help="all sizes")
    parser.add_argument("--only", nargs="+", choices=[work.name for work in WORKS], default=[])
    arguments = parser.parse_args(words)
    for name in PROGRAMS:
        program(name)
    chosen = [work for work in WORKS if work.name in arguments.only or not arguments.only]
    if not (arguments.full or arguments.only):
        chosen = [work for work in chosen if work.in_short]
    failed = [work.name for work in chosen if not run(work)]
    print()
    summary.main()
    if failed:
        raise SystemExit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
