"""Reloading: `hub reload`: have a running hub read its settings anew, and hear what became of it.

Does: find the hub, by its settings file or its pid where there are several; send SIGHUP, wait for the end of the reload
that followed, print it.
Does not: read or check settings: the hub does, with its own environment and as its own user.
Called by: cli, which lists it.
Never break: the exit status is 0 only where the new settings hold; nobody else's process gets a signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import click

from . import status
from .errors import ConfigError, HubError
from .options import json_option, write_json
from .whereabouts import is_same

POLL_S = 0.05
TIMEOUT_S = 60.0
"""Above all that a reload may take, twice: one that goes on already is waited for."""


@click.command(short_help="Have a running hub read its settings anew.")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The settings file of the hub that is meant, where several run on this machine.",
)
@click.option("--pid", type=click.IntRange(min=1), help="The supervisor's, likewise.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds to wait for the outcome.",
)
@json_option("Print one JSON object.")
def reload(path: Path | None, pid: int | None, timeout_s: float, as_json: bool) -> None:
    """Have a running hub read its settings anew, and wait for what becomes of it.

    Nobody is disconnected. Settings that can't change while it runs, and mistakes, are refused: each is one line on
    standard error, and nothing has changed then. Of very many the first twenty are shown, and how many more there are
    (with --json: "more"); of mistakes `hub check` shows all.

    Exit status: 0 the new settings hold, 1 there is no hub, or no outcome in time, 2 refused, or wrong arguments.

    \b
    Examples:  hub reload
               hub reload --config /etc/hub/chat.toml
               hub reload --pid $(systemctl show --property MainPID --value hub) --json
    """
    found = locate(path, pid)
    last = outcome(found, timeout_s)
    if as_json:
        click.echo(write_json({"pid": found, **last}))
    rest = [f"… and {more:,} more"] if (more := last.get("more", 0)) else []
    if not last["ok"]:
        error = ConfigError("\n".join([*last["errors"], *rest]) or "refused")
        error.told = as_json
        raise error
    for line in last["errors"]:
        click.echo(f"hub: warning: {line}", err=True)
    if not as_json:
        changed = ", ".join([*last["changed"], *rest]) or "nothing is different"
        click.echo(f"reloaded in {last['seconds']:g} s: {changed}")


def locate(config: Path | None, pid: int | None) -> int:
    """The pid of the one hub that is meant. config: only one that was started with this file. Raises HubError."""
    if pid is not None:
        if config is not None and not is_same(_config(pid), config):
            raise HubError(f"process {pid} does not run with the settings of {config}")
        return pid
    configs = {}
    for found in status.find():
        with contextlib.suppress(HubError):  # it has ended meanwhile
            configs[found] = _config(found)
    if config is not None:
        configs = {found: text for found, text in configs.items() if is_same(text, config)}
        if not configs:
            words = "or it is another user's: as root, or with --pid, those are found"
            raise HubError(f"no hub runs with the settings of {config}, {words}")
    if not configs:
        raise HubError("no hub of this user runs on this machine; as root, or with --pid, others are found")
    if len(configs) > 1:
        shown = ", ".join(f"{found} ({text})" if text else str(found) for found, text in configs.items())
        raise HubError(f"several hubs run on this machine: {shown}; choose by {'--pid' if config else '--config'}")
    return next(iter(configs))


def _config(pid: int) -> str:
    """Its settings file; '' of a hub that does not say."""
    return str(status.read(pid).get("config", ""))


def outcome(pid: int, timeout_s: float) -> dict[str, Any]:
    """Ask for a reload; what became of one that began after this call. Raises HubError."""
    deadline = time.monotonic() + timeout_s
    # Only what shows such a record is a hub, and only that gets a signal which ends most other programs.
    before = status.read(pid)
    wanted = int(before["begun"]) + 1
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise HubError(status.forbidden(pid)) from None
    except ProcessLookupError:
        raise HubError(f"process {pid} has ended") from None
    while int((now := status.read(pid))["ended"]) < wanted:
        if time.monotonic() >= deadline:
            raise HubError(f"no outcome within {timeout_s:g} s; the hub's log will have it")
        time.sleep(POLL_S)
    last = now["last"]
    assert isinstance(last, dict)
    return last
