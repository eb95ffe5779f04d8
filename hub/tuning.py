"""Tuning: the command `hub tune`.

Does: read its arguments, choose the files and kernel values that suit this machine or another root, show what differs,
have it done and say what is left to do.
Does not: know why a line is recommended (tune) or how it is written and taken back (changes).
Called by: cli, which lists the command.
Never break: without --apply or --undo nothing is changed, with --dry-run neither.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import EXIT_FAILED, EXIT_OK, HubError
from .machine import cpu_list
from .options import json_option, write_json
from .tune import (
    LIMITS_PATH,
    OPEN_FILES,
    SYSCTL_PATH,
    UNIT,
    assignments,
    fitted_dropin,
    limits_dropin,
    records,
    report,
    sysctl_dropin,
    systemd_dropin,
    systemd_path,
)

if TYPE_CHECKING:
    from .changes import Changes, NewFile

MACHINE = Path("/")
CPUS_PRESENT = Path("/sys/devices/system/cpu/present")
MOST_SHOWN = 8
CPU_LIST = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.service")


def _cpu_list(_: click.Context, __: click.Parameter, value: str | None) -> str:
    if value and not (CPU_LIST.fullmatch(value) and all(cpu_list(part) for part in value.split(","))):
        raise click.BadParameter(f"found {value!r}; allowed: numbers and ranges, such as 2-7 or 0,2-3")
    return value or ""


def _unit_name(_: click.Context, __: click.Parameter, value: str) -> str:
    if not UNIT_NAME.fullmatch(value):
        raise click.BadParameter(f"found {value!r}; allowed: a service, such as hub.service or hub@.service")
    return value


@click.command(short_help="Kernel settings and limits for very many connections: print, install, take back.")
@click.option("--apply", is_flag=True, help="Install the drop-ins; says before what differs.")
@click.option("--undo", is_flag=True, help="Bring back what was there before, to the byte.")
@click.option("--dry-run", is_flag=True, help="With --apply or --undo: only say what would change.")
@click.option("--now", is_flag=True, help="Also set the running kernel's values, or bring them back.")
@click.option("--nofile", type=click.IntRange(1024, 2**30), help=f"Open files of a worker.  [default: {OPEN_FILES}]")
@click.option("--cpus", callback=_cpu_list, metavar="LIST", help="CPUs of the hub, one worker pinned to each: 2-7.")
@click.option("--unit", callback=_unit_name, default=UNIT, show_default=True, help="Whose drop-in it is.")
@click.option("--systemd", is_flag=True, help="Also a drop-in for the unit; --cpus and --unit imply it.")
@click.option("--force", is_flag=True, help="Also over files that somebody has changed since hub tune wrote them.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=MACHINE,
    help="The root of an image, in place of this machine's; it gets the files as they are in config/.",
)
@json_option("Print one JSON object.")
@click.pass_context
def tune(
    context: click.Context,
    apply: bool,
    undo: bool,
    dry_run: bool,
    now: bool,
    nofile: int | None,
    cpus: str,
    unit: str,
    systemd: bool,
    force: bool,
    root: Path,
    as_json: bool,
) -> int:
    """Print sysctl and limits drop-ins for very many connections, compared with this machine; or install them.

    --apply writes /etc/sysctl.d/60-hub.conf and /etc/security/limits.d/60-hub.conf, and with --systemd, --cpus or
    --unit a drop-in of the unit. What was there before is noted first, so that --undo brings it back to the byte, with
    its mode and owner; a change that was cut short can be undone, too, or applied again. Applied twice is applied once.

    Exit status: 0 done, 1 failed, or the kernel refused a value, 2 wrong arguments.

    \b
    Examples:  hub tune | less
               hub tune --apply --dry-run
               sudo hub tune --apply --now --cpus 2-7
               sudo hub tune --undo --now
               hub tune --apply --root /srv/image
               hub tune --json | jq '.settings[] | select(.suffices | not) | .key'
    """
    if os.path.samefile(root, MACHINE):
        root = MACHINE  # also where it was written as '//', or is a link
    with_unit = systemd or bool(cpus) or _given(context, "unit")
    _check(apply, undo, dry_run or now or force or root != MACHINE or bool(nofile or with_unit), now, root)
    if not (apply or undo):
        if as_json:
            click.echo(write_json({"ok": True, "settings": records(), "open_files": OPEN_FILES}))
        else:
            click.echo(report(), nl=False)
        return EXIT_OK
    if root == MACHINE and not dry_run and os.geteuid() != 0:
        raise HubError("tune: needs root, as it writes below /etc; --dry-run shows what it would do")
    from .changes import Changes

    changes = Changes(root)
    if undo:
        return _undo(changes, now, dry_run, force, as_json)
    if root == MACHINE:
        _check_cpus(cpus)
    files = _files(root, nofile or OPEN_FILES, cpus, unit if with_unit else "")
    return _apply(changes, files, now, dry_run, force, as_json)


def _check(apply: bool, undo: bool, more: bool, now: bool, root: Path) -> None:
    if apply and undo:
        raise click.UsageError("--apply and --undo: give one of the two")
    if more and not (apply or undo):
        raise click.UsageError("the other options need --apply or --undo")
    if now and root != MACHINE:
        raise click.UsageError("--now and --root: an image has no running kernel")


def _check_cpus(cpus: str) -> None:
    """A unit that may run on none but CPUs that are not there does not start. An image may be another machine's."""
    try:
        present = CPUS_PRESENT.read_text().strip()
    except OSError:
        return  # a container without /sys: then the unit has to show it
    if missing := sorted(cpu_list(cpus) - cpu_list(present)):
        shown = ",".join(map(str, missing[:MOST_SHOWN])) + (",…" if len(missing) > MOST_SHOWN else "")
        raise click.UsageError(f"--cpus: found {shown}; allowed on this machine: {present}")


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _files(root: Path, nofile: int, cpus: str, unit: str) -> list[NewFile]:
    """unit: '' for no drop-in."""
    from .changes import NewFile

    # An image will run on another kernel and with other memory: the lines that are right everywhere.
    sysctl = fitted_dropin() if root == MACHINE else sysctl_dropin()
    files = [NewFile(SYSCTL_PATH, sysctl.encode()), NewFile(LIMITS_PATH, limits_dropin(nofile).encode())]
    if unit:
        files.append(NewFile(systemd_path(unit), systemd_dropin(nofile, cpus, unit).encode()))
    return files


def _apply(
    changes: Changes, files: Sequence[NewFile], now: bool, dry_run: bool, force: bool, as_json: bool = False
) -> int:
    values = assignments(files[0].content.decode()) if now else {}
    difference = changes.diff(files, values)
    if not as_json:
        click.echo(difference or "Nothing to change.\n", nl=False)
    changes.check_record()  # also where nothing is to change: it would be missed when it is needed
    changed = bool(difference) and not dry_run
    refused = changes.apply(files, values, force=force) if changed else []
    left = _left_to_do(files, now) if changed else {}
    if as_json:
        return _print(difference, changed, refused, list(left.values()))
    if changed:
        click.echo("\nDone; `hub tune --undo` takes it back.")
    for words, command in left.items():
        click.echo(f"{words}: {command}")
    return _complain("refused by the kernel", refused)


def _left_to_do(files: Sequence[NewFile], now: bool) -> dict[str, str]:
    """Commands, by what they are for."""
    left = {} if now else {"In force from the next boot, or with": "sysctl --system"}
    if len(files) > 2:
        unit = Path(files[2].path).parent.stem
        left["For the unit"] = f"systemctl daemon-reload && systemctl restart {unit}"
    return left


def _undo(changes: Changes, now: bool, dry_run: bool, force: bool, as_json: bool = False) -> int:
    difference = changes.undo_diff(now)
    if not as_json:
        click.echo(difference or "No file to change.\n", nl=False)
    refused = changes.undo(values=now, force=force) if not dry_run else []
    remain = changes.values_remain if not dry_run else False
    if as_json:
        return _print(difference, bool(difference) and not dry_run, refused, ["hub tune --undo --now"] * remain)
    if remain:
        click.echo("The running kernel keeps its values; bring them back with: hub tune --undo --now")
    return _complain("not brought back", refused)


def _print(difference: str, changed: bool, refused: Sequence[str], left: Sequence[str]) -> int:
    """refused: values that the kernel, or somebody's change since, has kept. left: commands that are yet to be run."""
    record = {"ok": not refused, "changed": changed, "difference": difference, "refused": refused, "next": left}
    click.echo(write_json(record))
    return EXIT_FAILED if refused else EXIT_OK


def _complain(what: str, lines: Sequence[str]) -> int:
    for line in lines:
        click.echo(f"hub: tune: {what}: {line}", err=True)
    return EXIT_FAILED if lines else EXIT_OK
