"""`python -m tests.chaos`, which is `make chaos`: the matrix of faults under load, with figures.

    --only NAME …    these faults; --list names all           --rounds N    of each, instead of the table's
    --short          the load of `make test`                  --seed N      of channels, victims and pauses
    --json           figures as JSON                          --save        into bench/results/DATE-chaos.*
    --keep FILE      every event, for `python -m tests.chaos.checker FILE`

Exit status 1 if the checker found a silent loss, false alarm, reorder, phantom, leak or a stuck subscription.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.rig import report

from .checker import FAILING, Figures
from .faults import FAULTS, Fault
from .rig import FULL, SHORT, Rig

COLUMNS = (
    "rounds",
    "published",
    "acked",
    "delivered",
    "silent_loss",
    "false_alarm",
    "reorder",
    "phantom",
    "leak",
    "stuck",
    "duplicate",
    "signalled_loss",
    "unjudged",
    "lost_by_store",
    "disconnects",
    "strangers",
    "resubscribes",
)


async def run_fault(rig: Rig, fault: Fault) -> None:
    """One round of a row; fail-back has its split before it, so rows run in the table's order."""
    await rig.round(fault.name, fault.lossless, fault.inject, fault.after_s * rig.pace_s)
    if fault.mend is not None:
        await fault.mend(rig)


async def run_kind(
    faults: list[Fault], arguments: argparse.Namespace, directory: Path
) -> tuple[dict[str, Figures], Rig]:
    """All rounds of the faults of one topology, which is built once; the rounds of different faults take turns."""
    task = asyncio.current_task()
    assert task is not None
    # What was started is ended on SIGTERM too, and its directories go.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    size = SHORT if arguments.short else FULL
    rounds = {fault.name: arguments.rounds or fault.rounds for fault in faults}
    async with Rig(faults[0].kind, size, directory, seed=arguments.seed, keep=arguments.keep) as rig:
        for number in range(max(rounds.values())):
            for fault in faults:
                if number < rounds[fault.name]:
                    await run_fault(rig, fault)
                    progress(f"{fault.name} {number + 1}/{rounds[fault.name]}", rig)
        return rig.checker.faults, rig


def progress(where: str, rig: Rig) -> None:
    total = rig.checker.total
    wrong = ", ".join(f"{name} {getattr(total, name)}" for name in FAILING if getattr(total, name))
    print(f"{time.strftime('%H:%M:%S')} {where}: {wrong or 'fine'}", file=sys.stderr, flush=True)


def quantiles(values: list[float]) -> dict[str, float]:
    """Count, median, 99th percentile and most of some times; only the count where there are none."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    p50, p99 = (ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] for percent in (50, 99))
    return {"count": len(ordered), "p50": round(p50, 3), "p99": round(p99, 3), "most": round(ordered[-1], 3)}


def figures_record(figures: Figures) -> dict[str, Any]:
    """For JSON: the times as quantiles, as there are some for each disconnect."""
    record = asdict(figures)
    return {
        **record,
        "back_s": quantiles(figures.back_s),
        "error_windows_s": quantiles(figures.error_windows_s),
    }


def row(name: str, figures: Figures) -> list[str]:
    back, windows = quantiles(figures.back_s), quantiles(figures.error_windows_s)
    return [
        name,
        *(f"{getattr(figures, column):,}" for column in COLUMNS),
        f"{back['p50']:.2f} / {back['p99']:.2f}" if back["count"] else "–",
        f"{windows['p50']:.1f} / {windows['most']:.1f}" if windows["count"] else "–",
    ]


def table(found: dict[str, Figures]) -> str:
    head = [
        "fault",
        *(column.replace("_", " ") for column in COLUMNS),
        "back s, p50 / p99",
        "error window s, median / most",
    ]
    return report.table(head, [row(name, figures) for name, figures in found.items() if figures.rounds])


def chosen(names: list[str] | None) -> list[Fault]:
    known = {fault.name: fault for fault in FAULTS}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"chaos: no fault {name!r}; there are: {', '.join(known)}")
    wanted = set(names or known)
    if "fail-back" in wanted:
        wanted.add("split")  # there is nothing to go back from without it
    elif "split" in wanted:
        wanted.add("fail-back")  # which mends it
    return [fault for fault in FAULTS if fault.name in wanted]


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="chaos", default="", metavar="NAME")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parsed(words)
    if arguments.list:
        print(*(f"{fault.name} ({fault.kind}, {fault.rounds} rounds)" for fault in FAULTS), sep="\n")
        return 0
    machine = report.machine()
    found: dict[str, Figures] = {}
    findings: list[str] = []
    faults = chosen(arguments.only)
    for kind in dict.fromkeys(fault.kind for fault in faults):
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            same = [fault for fault in faults if fault.kind == kind]
            figures, rig = asyncio.run(run_kind(same, arguments, Path(directory)))
        found |= figures
        findings += [*rig.checker.findings, *(f"late: {text}" for text in rig.late)]
    text = text_of(arguments, machine, found, findings)
    record = {
        "bench": "chaos",
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "machine": machine,
        "faults": {name: figures_record(figures) for name, figures in found.items() if figures.rounds},
        "findings": findings,
    }
    report.finish(record, text, arguments)
    return 1 if any(figures.failed for figures in found.values()) else 0


def text_of(
    arguments: argparse.Namespace, machine: dict[str, Any], found: dict[str, Figures], findings: list[str]
) -> str:
    size = SHORT if arguments.short else FULL
    stock = size.sdks_js + size.sdks_python
    load = (
        f"{size.workers} workers, {size.channels} stream channels, {size.rate_hz:g} publishes/s, "
        f"{size.clients + stock} recovering clients in {size.channels_each} channels each, {stock} of them stock SDKs"
    )
    lines = [f"# Chaos\n\n{load}.\n\n{report.machine_text(machine)}\n", table(found)]
    if findings:
        lines.append("\nWhat was found, in words:\n\n" + "\n".join(f"- {finding}" for finding in findings))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
