"""`python -m tests.soak`, which is `make soak`: everything at once for an hour, and what grows.

    --minutes N     60 by default         --seed N     of channels and lives
    --json          figures as JSON       --save       into bench/results/DATE-soak.*

Promise P8: after warm-up a worker's memory, and Valkey's, grows by at most 1 MB an hour. A slope comes with the
interval that has it with 95 %: a run shows the promise only where all of the interval is below it, and breaks it only
where none is, the process has grown by more than allocators take at a time, and in each third of the run. So a short
run finds a large leak, and says of small ones what it can tell: the upper end of the interval.

Exit status 1 if something grows for certain, the checker found a silent loss, false alarm, reorder, phantom, leak or a
stuck subscription, or a short life went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench.rig import report
from tests.chaos.__main__ import COLUMNS, figures_record

from .rig import LONG, MB, SHORT, Soak, SoakRig
from .slope import HOUR_S, Slope, Verdict, fit, is_steady

BOUND_MB = 1.0
"""Per hour: promise P8."""
STEP_MB = 4.0
"""CPython's arenas have 1 MiB, of which a pause of the whole machine, and the burst after it, takes one or two for
good; jemalloc and malloc take less at a time."""
WARM_SHARE = 0.3
MOST_WARM_S = 600.0
MOST_SLOW = 0.05
"""Of short lives may have waited in vain: a machine that is busy otherwise does that."""
CYCLE_S = 60.0
"""So that a cycle's publications fit into a history several times, also where the machine is slow: what is not in the
store any more would look lost."""
LIVES = 24
WORDS = {"flat": "at most 1 MB an hour", "grows": "GROWS", "unknown": "can't tell"}


class Growth(NamedTuple):
    """One process: its memory at the first and the last sample that counts, in MB, and the slope in MB an hour."""

    name: str
    first: float
    last: float
    most: float
    slope: Slope
    hours: float
    steady: bool

    @property
    def verdict(self) -> Verdict:
        found = self.slope.verdict(BOUND_MB, self.hours, STEP_MB)
        return "unknown" if found == "grows" and not self.steady else found

    def row(self) -> list[str]:
        said = WORDS[self.verdict]
        if self.verdict == "unknown":
            said += f": at most {self.slope.most:.1f} MB an hour"
        interval = f"{self.slope.per_hour:+.2f} ± {self.slope.half:.2f}"
        return [self.name, f"{self.first:.1f}", f"{self.last:.1f}", f"{self.most:.1f}", interval, said]


def growths(rig: SoakRig) -> list[Growth]:
    """Of each process, from the end of the warm-up on."""
    found = []
    for name in dict.fromkeys(sample.name for sample in rig.samples):
        own = [sample for sample in rig.samples if sample.name == name and sample.t >= rig.soak.warm_s]
        if not own:
            continue
        values = [sample.rss / MB for sample in own]
        times = [sample.t for sample in own]
        hours = (times[-1] - times[0]) / HOUR_S
        slope, steady = fit(times, values), is_steady(times, values)
        found.append(Growth(name, values[0], values[-1], max(values), slope, hours, steady))
    return found


def failures(rig: SoakRig, found: list[Growth]) -> list[str]:
    """Why the exit status is 1, in words."""
    grown = [
        f"{growth.name} grows by {growth.slope.per_hour:.1f} MB an hour"
        for growth in found
        if growth.verdict == "grows"
    ]
    if rig.slow > MOST_SLOW * sum(rig.lives.values()):
        grown.append(f"{rig.slow} short lives had no answer in time")
    return [*grown, *rig.checker.findings, *(f"late: {text}" for text in rig.late), *rig.wrong]


def text_of(soak: Soak, machine: dict[str, Any], rig: SoakRig, found: list[Growth]) -> str:
    size, total = soak.size, rig.checker.total
    seconds = max((sample.t for sample in rig.samples), default=0.0)
    load = (
        f"{seconds / 60:.0f} minutes, of which {soak.warm_s / 60:.1f} warm-up: {size.workers} workers, "
        f"{size.channels} stream channels, {size.rate_hz:g} publishes/s, "
        f"{size.clients + size.sdks_js + size.sdks_python} recovering clients, {soak.lives} short lives at a time"
    )
    lives = ", ".join(f"{number:,} × {name}" for name, number in rig.lives.items())
    head = ["process", "MB at first", "MB at last", "MB at most", "MB an hour, 95 %", "says"]
    counts = [[column.replace("_", " "), f"{getattr(total, column):,}"] for column in COLUMNS]
    wrong = failures(rig, found)
    return "\n".join(
        [
            f"# Soak\n\n{load}.\n\n{report.machine_text(machine)}\n",
            report.table(head, [growth.row() for growth in found]),
            "\nMemory is RSS under load, without what is mapped from files.",
            f"\nShort lives: {lives or 'none'}; {rig.slow} had no answer in time.\n",
            report.table(["checker", "count"], counts),
            "\nAt the end of each cycle these were back where they were at first: descriptors, links to the store, "
            "keys that never expire, connections, members, tasks, threads, deadlines.",
            *(["\nWhat was found:\n", *(f"- {text}" for text in wrong)] if wrong else ["\nNothing was found."]),
        ]
    )


async def run(soak: Soak, directory: Path, seed: int = 1, leak: int = 0) -> SoakRig:
    """The rig, when all is over. leak: as SoakRig has it."""
    task = asyncio.current_task()
    assert task is not None
    # What was started is ended on SIGTERM too, and its directories go.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with SoakRig(soak, directory, seed=seed, leak=leak) as rig:
        await rig.run()
        return rig


def planned(minutes: float) -> Soak:
    """What fits into so many minutes; a short one is small."""
    warm_s = min(MOST_WARM_S, WARM_SHARE * minutes * 60)
    if minutes < 3:
        return Soak(SHORT, minutes, minutes * 60, warm_s, LIVES // 2)
    return Soak(LONG, minutes, CYCLE_S, warm_s, LIVES)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="soak", default="", metavar="NAME")
    arguments = parser.parse_args(words)
    soak, machine = planned(arguments.minutes), report.machine()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        rig = asyncio.run(run(soak, Path(directory), arguments.seed))
    found = growths(rig)
    record = {
        "bench": "soak",
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "machine": machine,
        "growths": [{**growth._asdict(), "slope": growth.slope._asdict(), "says": growth.verdict} for growth in found],
        "lives": rig.lives,
        "checker": figures_record(rig.checker.total),
        "findings": failures(rig, found),
    }
    report.finish(record, text_of(soak, machine, rig, found), arguments)
    return 1 if failures(rig, found) or rig.checker.total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
