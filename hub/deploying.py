"""Deploying: the command `hub deploy`: the running hub is asked to take up new code, and its answer is waited for.

Does: find the hub by its settings file or its pid, send SIGUSR2, say what became of it.
Does not: look at the new code (the running hub has that checked) or install it.
Called by: cli.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import click
import orjson

from .config import DEFAULT_PATH
from .errors import HubError
from .options import config_option, json_option
from .whereabouts import STOPS, Standing, find, read

POLL_S = 0.05
GONE_S = 1.0
"""A hub that nobody can see for so long has ended."""


@click.command()
@config_option
@click.option("--pid", type=click.IntRange(min=1), help="Of the hub's supervisor, where several run with the settings.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Seconds to wait."
)
@json_option("Print one JSON object.")
def deploy(path: Path | None, pid: int | None, timeout_s: float, as_json: bool) -> None:
    """Have the running hub take up new code, with nobody refused.

    The new version is checked first (`hub check --boot`), and where it can't boot the old one goes on. Done is when its
    workers accept; those of the old one drain for drain_window_s from then on.

    Exit status: 0 the new version serves, 1 it is refused, or the hub is not there, or no outcome in time, 2 wrong
    arguments.

    \b
    Example:  hub deploy --config /etc/hub/hub.toml
    """
    directory, before = locate(path or DEFAULT_PATH, pid, os.environ)
    try:
        os.kill(before.pid, signal.SIGUSR2)
    except PermissionError:
        raise HubError(f"pid {before.pid} is another user's: try as that one, or as root") from None
    after = wait(directory, before, timeout_s)
    if after.outcome:
        if as_json:
            click.echo(orjson.dumps({"ok": False, "version": after.version, "errors": after.outcome.splitlines()}))
        end = [] if after.outcome == STOPS else [f"version {after.version} goes on"]
        error = HubError("\n".join([*after.outcome.splitlines(), *end]))
        error.told = as_json
        raise error
    if as_json:
        click.echo(orjson.dumps({"ok": True, "pid": after.pid, "from": before.version, "version": after.version}))
    else:
        click.echo(f"version {after.version} serves in place of {before.version}, pid {after.pid}")


def locate(config: Path, pid: int | None, environ: Mapping[str, str]) -> tuple[str, Standing]:
    """The directory and the words of the one hub that is meant. Raises HubError."""
    found = [one for one in find(config, environ) if pid in (None, one[1].pid)]
    if not found:
        by_pid = f" and pid {pid}" if pid is not None else ""
        raise HubError(f"no hub runs with the settings of {config}{by_pid}, or its files are not ours to read")
    if len(found) > 1:
        pids = ", ".join(str(standing.pid) for _, standing in found)
        raise HubError(f"several hubs run with the settings of {config}: choose one by --pid: {pids}")
    return found[0]


def wait(directory: str, before: Standing, timeout_s: float) -> Standing:
    """What the hub says once a deploy more is done or has failed: the one after that which went on. Raises HubError."""
    deadline = time.monotonic() + timeout_s
    seen_at = time.monotonic()
    wanted = before.done + before.failed + (2 if before.busy else 1)
    while time.monotonic() < deadline:
        now = read(directory)
        if now is not None:
            seen_at = time.monotonic()
            if now.done + now.failed >= wanted:
                return now
        elif time.monotonic() - seen_at > GONE_S:
            raise HubError(f"the hub (pid {before.pid}) has ended meanwhile; its log says why")
        time.sleep(POLL_S)  # a file says nothing by itself
    raise HubError(f"no outcome within {timeout_s:g} s; the deploy may still be under way, the hub's log says so")
