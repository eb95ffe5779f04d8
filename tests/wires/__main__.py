"""`python -m tests.wires`, which is `make wires`: Socket.IO clients of every kind on four workers, with figures.

    --only WIRE …     polling, upgrade, websocket      --clients N     --events N     --messages N of the room
    --npm N           of the clients, stock ones       --receivers N   on each of the other wires
    --json            figures as JSON                  --save          into bench/results/DATE-sessions.*
    --keep DIRECTORY  of the logs

Every request comes on a TCP connection of its own, so it lands in any worker. Each client emits events, a few at a
time, each of which is acknowledged with its own value and with how many came before; meanwhile messages are published
to a room in which all are, also clients of the hub's other wires. Exit status 1 where anything was lost, doubled, out
of order, unknown, refused, or anybody cut off.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.rig import report

from .checker import FAULTS, Figures
from .rig import NAMES, NPM_CLIENT, Outcome, Size, run_wire

COLUMNS = ("clients", "events", "heard", *FAULTS)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which so large a share of `values` lies; None where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def row(name: str, figures: Figures, seconds: float) -> list[str]:
    times = [quantile(figures.ack_ms, share) for share in (0.5, 0.99)]
    counts = [f"{getattr(figures, column):,}" for column in COLUMNS]
    return [name, *counts, *["–" if ms is None else f"{ms:,.1f}" for ms in times], f"{seconds:.1f}"]


def table(outcomes: dict[str, Outcome]) -> str:
    """A row for each group of clients, wire by wire."""
    head = ["clients", "number", *(column.replace("_", " ") for column in COLUMNS[1:]), "p50 ack ms", "p99 ack ms", "s"]
    rows = []
    for wire, outcome in outcomes.items():
        for name, figures in outcome.groups.items():
            shown = name if name.startswith(NAMES[wire]) else f"{NAMES[wire]}: {name}"
            rows.append(row(shown, figures, outcome.seconds))
    return report.table(head, rows)


def record(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """For JSON: ack times as quantiles."""
    found: dict[str, Any] = {}
    for wire, outcome in outcomes.items():
        groups = {}
        for name, figures in outcome.groups.items():
            counts = asdict(figures)
            times = counts.pop("ack_ms")
            groups[name] = {**counts, "p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
        found[wire] = {"seconds": round(outcome.seconds, 2), "groups": groups, "findings": outcome.findings}
    return found


def failed(outcomes: dict[str, Outcome]) -> bool:
    """Anything is wrong, or nothing was measured."""
    return any(outcome.findings or not outcome.groups for outcome in outcomes.values()) or any(
        figures.failed for outcome in outcomes.values() for figures in outcome.groups.values()
    )


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def run(wires: Sequence[str], size: Size, keep: Path | None) -> dict[str, Outcome]:
    """One wire after another, each on a hub of its own."""
    task = asyncio.current_task()
    assert task is not None
    # What was started is ended on SIGTERM too, and its directories go.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    outcomes = {}
    for wire in wires:
        with tempfile.TemporaryDirectory(prefix="wires-") as directory:
            outcomes[wire] = await run_wire(wire, size, Path(directory), progress)
            if keep is not None:
                shutil.copytree(directory, keep / wire, dirs_exist_ok=True)
    return outcomes


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("wires", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--npm", type=int, default=200)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--receivers", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="sessions", default="", metavar="NAME")
    parser.add_argument("--keep", type=Path)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parsed(words)
    npm = min(arguments.npm, arguments.clients)
    if npm and not (shutil.which("node") and NPM_CLIENT.is_dir()):
        npm = 0
        progress("without stock clients: install them with `npm install --prefix tests/e2e`")
    size = Size(
        arguments.clients, npm, arguments.events, arguments.messages, arguments.receivers, workers=arguments.workers
    )
    machine = report.machine()
    outcomes = asyncio.run(run(arguments.only, size, arguments.keep))
    findings = [f"{NAMES[wire]}: {text}" for wire, outcome in outcomes.items() for text in outcome.findings]
    head = (
        f"Socket.IO on {size.workers} workers: {size.clients:,} clients × {size.events} events with acks, "
        f"{size.messages} messages to all of them; `Connection: close`"
    )
    text = "\n".join([head, "", report.machine_text(machine), "", table(outcomes)])
    if findings:
        text += "\n\nWhat was found:\n\n" + "\n".join(f"- {finding}" for finding in findings)
    arguments.keep = str(arguments.keep or "")
    outcome = {"bench": "sessions", "arguments": vars(arguments), "machine": machine, "faults": FAULTS}
    report.finish({**outcome, "wires": record(outcomes)}, text, arguments)
    return 1 if failed(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
