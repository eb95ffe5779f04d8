"""Benching: the command `hub bench`: what a running hub delivers to N clients, how late, and whether anything is lost.

Does: read its arguments, divide the clients among load processes, show how far it is, print the outcome, judge it.
Does not: connect, publish (bench_publish), time (bench_run), hold clients (bench_crew) or measure (bench_figures).
Called by: cli, which lists the command.
Never break: figures that the load generator or this machine set are not printed without saying so.

The benches of this project's own README are in bench/ of the repository: they compare hubs, and their load is C.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from .channels import NAME
from .errors import EXIT_FAILED, EXIT_OK, ConfigError
from .options import choose_endpoint, config_option, json_option, write_json
from .remote import EXIT_INTERRUPTED, TOKEN_TTL_S, find_api, lazy_settings, make_token, run

if TYPE_CHECKING:
    from .bench_crew import Plan
    from .bench_figures import Outcome
    from .bench_run import Progress

MAX_CLIENTS = 1_000_000
EACH = 20_000
"""Clients of one load process, unless --processes says otherwise."""
PER_SOURCE = 500
HZ_PER_SOURCE = 50
"""Below what a hub takes of one address by default: limits.ip_connections and ip_handshakes_per_s of one worker."""
MAX_SOURCES = 50_000
NUMBER = "{n}"
"""In --user: the client's number."""


def _channel(_: click.Context, __: click.Parameter, value: str) -> str:
    if not NAME.fullmatch(f"{value}-99999"):
        raise click.BadParameter(f"found {value!r}; allowed: a channel's name, to which a number is added")
    return value


@click.command(short_help="Load a running hub with N clients and measure.")
@click.option("--url", help="The clients' endpoint: ws://HOST:PORT/connection/websocket, unix:/PATH.")
@click.option("--api-url", envvar="HUB_API_URL", show_envvar=True, help="The server API: http://HOST:PORT/api.")
@click.option("--key", envvar="HUB_API_KEY", show_envvar=True, help="Its api.key; everybody sees an option in ps.")
@click.option("--clients", "-n", type=click.IntRange(1, MAX_CLIENTS), default=1000, show_default=True)
@click.option("--channel", callback=_channel, default="chat:bench", show_default=True, help="Or what they begin with.")
@click.option("--channels", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many there are.")
@click.option("--per-client", type=click.IntRange(1, 100), default=1, show_default=True, help="Channels of a client.")
@click.option(
    "--rate", type=click.FloatRange(0.01, 100_000), default=10.0, show_default=True, help="Messages/s, in all."
)
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), default=10.0, show_default=True, help="Of publishing.")
@click.option(
    "--size", type=click.IntRange(1, 65_536), default=128, show_default=True, help="Bytes of a message's data."
)
@click.option("--wire", type=click.Choice(("websocket", "sse")), default="websocket", show_default=True)
@click.option("--publish", "by", type=click.Choice(("api", "client")), default="api", show_default=True)
@click.option("--ramp", type=click.FloatRange(0.1, 100_000), default=500.0, show_default=True, help="New clients/s.")
@click.option("--token", help="A connection token, as `hub token` makes it. Everybody sees it in ps.")
@click.option("--user", help=f"Make tokens for this user; {NUMBER} is the client's number.")
@click.option("--processes", type=click.IntRange(1, 256), help=f"Load processes.  [default: one for {EACH:,} clients]")
@click.option("--lossy", is_flag=True, help="Messages that are passed over are no failure, as in `latest` channels.")
@config_option
@json_option("Print one JSON object.")
def bench(
    url: str | None,
    api_url: str | None,
    key: str | None,
    by: str,
    wire: str,
    clients: int,
    rate: float,
    seconds: float,
    size: int,
    token: str | None,
    user: str | None,
    lossy: bool,
    path: Path | None,
    as_json: bool,
    **shape: Any,
) -> int:
    """Connect clients, have messages published at a steady rate, and tell what arrived and how late.

    Latency is from the moment a message was due until a client has read it, so that a hub which holds up the publisher
    does not look better for it. The load comes from this machine: it says so when it, and not the hub, was the limit.

    The channels' namespace must let the clients in, and with --publish client let them publish. A hub also limits what
    comes from one address (limits.ip_connections, ip_handshakes_per_s, HTTP 429); over 127.0.0.1 the clients come from
    many addresses of loopback, over a network raise these limits for the bench.

    Exit status: 0 everybody was let in and everything arrived, 1 clients were refused or closed, messages failed, were
    lost or came twice, or there is no hub, 2 wrong settings or arguments, 130 Ctrl-C, which prints what was found so
    far.

    \b
    Examples:  hub bench --clients 5000 --rate 20 --seconds 30
               hub bench --channel ticker:bench --channels 100 --per-client 10 --rate 1000 --lossy
               hub bench --wire sse --user 'bench-{n}' --publish client
               hub bench --json | jq .latency_ms.p99
    """
    from .bench_publish import Wanted
    from .bench_run import Run, machine_cpu

    endpoint = choose_endpoint("ws", url, lambda: lazy_settings(path)().listen)
    tokens = _tokens(path, token, user, clients)
    api, usable = find_api(api_url, key, path) if by == "api" else (None, "")
    plans = _plans(endpoint, wire, clients, tokens, **shape)
    wanted = Wanted(plans, rate, seconds, size, lossy, api, usable)
    with _progress() as progress:
        outcome = run(Run(wanted, progress, machine_cpu).go())
    _tell(outcome, as_json)
    if outcome.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if outcome.good else EXIT_FAILED


def _tokens(path: Path | None, token: str | None, user: str | None, clients: int) -> list[str]:
    """None, one for all, or one for each."""
    if token is not None and user is not None:
        raise click.UsageError("--token and --user: give one of the two")
    if user is None:
        return [token] if token else []
    settings = lazy_settings(path)()
    names = [user.replace(NUMBER, str(i)) for i in range(clients)] if NUMBER in user else [user]
    return [make_token(settings, name, TOKEN_TTL_S) for name in names]


def _plans(
    endpoint: Any,
    wire: str,
    clients: int,
    tokens: list[str],
    *,
    channel: str,
    channels: int,
    per_client: int,
    ramp: float,
    processes: int | None,
) -> list[Plan]:
    """The share of each load process. Raises ConfigError for more clients than it may have descriptors."""
    from .bench_crew import SPARE_FILES, Plan, raise_open_files

    count = min(clients, processes or -(-clients // EACH))
    names = [channel] if channels == 1 else [f"{channel}-{i}" for i in range(channels)]
    most = -(-clients // count)
    if not raise_open_files(most + SPARE_FILES):
        raise ConfigError(f"--clients: found {most} for a process; allowed: what `ulimit -Hn` says, less {SPARE_FILES}")
    run_number, first, plans = random.getrandbits(48), 0, []
    for i in range(count):
        share = clients // count + (i < clients % count)
        own = tokens[first : first + share] if len(tokens) > 1 else tokens
        plans.append(
            Plan(
                run=run_number,
                wire=wire,
                url=endpoint.url,
                unix_path=endpoint.unix_path,
                first=first,
                clients=share,
                ramp_hz=ramp * share / clients,
                channels=names,
                per_client=per_client,
                tokens=own,
                sources=_sources(endpoint, clients, ramp),
            )
        )
        first += share
    return plans


def _sources(endpoint: Any, clients: int, ramp: float) -> int:
    """Addresses of loopback to come from, as one has 28,000 ports and a hub limits what comes from one; 0 elsewhere."""
    host = urlsplit(endpoint.url).hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host) in ipaddress.ip_network("127.0.0.0/8")
    except ValueError:
        local = False
    if endpoint.unix_path or not local:
        return 0
    return min(MAX_SOURCES, max(-(-clients // PER_SOURCE), round(min(ramp, clients) / HZ_PER_SOURCE), 1))


# What people see


class _Quiet:
    """Nobody looks."""

    def connecting(self, ready: int, failed: int, wanted: int) -> None:
        pass

    def publishing(self, seconds: float, wanted_s: float, received: int, per_s: float) -> None:
        pass


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """On a terminal, a bar on standard error."""
    if not sys.stderr.isatty():
        yield _Quiet()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar for the way in, one for the messages."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def connecting(self, ready: int, failed: int, wanted: int) -> None:
        refused = f", {failed:,} refused" if failed else ""
        self._show("connecting", wanted, ready + failed, f"{ready:,} of {wanted:,} clients{refused}")

    def publishing(self, seconds: float, wanted_s: float, received: int, per_s: float) -> None:
        self._show("publishing", wanted_s, seconds, f"{received:,} deliveries, {per_s:,.0f}/s")

    def _show(self, name: str, total: float, done: float, note: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, note=note)
        self._bars.update(self._tasks[name], total=total, completed=done, note=note)


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        click.echo(write_json(outcome.record()))
        return
    for line in outcome.lines():
        click.echo(line)
    if outcome.interrupted:
        click.echo("interrupted: what was still under way is not counted")
