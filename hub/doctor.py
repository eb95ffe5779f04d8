"""Doctor: the command `hub doctor`.

Does: read its arguments, print what the examination finds, choose the exit status.
Does not: collect facts or word the report (examination), judge them (kernelrules, hostrules, storerules).
Called by: cli, which lists the command.
Never break: nothing is changed or written, anywhere; no secret is in the output.
"""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from .capacity import WIRES
from .errors import EXIT_FAILED, EXIT_OK, ConfigError
from .options import config_option, json_option, load_own
from .status import is_hub

DEFAULT_CONNECTIONS = 10_000
MOST_CONNECTIONS = 100_000_000


@click.command(short_help="Say what breaks on this machine at N connections, worst first.")
@click.option(
    "--connections",
    "-n",
    type=click.IntRange(1, MOST_CONNECTIONS),
    default=DEFAULT_CONNECTIONS,
    show_default=True,
    help="How many there are to be.",
)
@click.option("--wire", type=click.Choice(list(WIRES)), default="websocket", help="How clients come.")
@click.option("--pid", type=click.IntRange(min=1), help="Of a hub that runs: its limits, and not this shell's.")
@click.option("--all", "everything", is_flag=True, help="Also what is fine.")
@config_option
@json_option("Print one JSON object with all findings.")
def doctor(connections: int, wire: str, pid: int | None, everything: bool, path: Path | None, as_json: bool) -> int:
    """Say what breaks on this machine at N connections, worst first, with the setting to change.

    Looks at limits, kernel settings, ports, connection tracking, memory, CPUs, network cards, clocks, the settings and
    Redis, and predicts how many connections the machine holds. Memory is computed from what an idle connection was
    measured to take. Nothing is changed.

    A service has other limits than your shell: look at a hub that runs with --pid, as its user or as root.

    Exit status: 0 nothing breaks, 1 something breaks at N, 2 wrong settings or arguments.

    \b
    Examples:  hub doctor --connections 200000
               sudo hub doctor -n 200000 --pid $(systemctl show -P MainPID hub)
               hub doctor --json | jq '.findings[] | select(.severity == "breaks")'
    """
    settings = load_own(path)
    if pid is not None and is_hub(pid) is False:
        raise ConfigError(f"--pid: found {pid}, which is no hub; allowed: the pid of a hub's supervisor")
    from .diagnosis import diagnose
    from .examination import RULES, as_object, breaks, examine, text

    case = examine(settings, connections, wire, pid)
    findings = diagnose(case, RULES)
    if as_json:
        click.echo(orjson.dumps(as_object(case, findings)))
    else:
        click.echo(text(case, findings, everything))
    return EXIT_FAILED if breaks(findings) else EXIT_OK
