"""Operating: `hub connections`, `hub channels` and `hub disconnect`: who is on a running hub, and having them gone.

Does: read their arguments, ask the server API page by page, choose, print a table, plain lines or JSON.
Does not: speak HTTP (client), nor know how workers find whom (orders, registry).
Called by: cli, which lists the commands.
Never break: what clients chose (names, users, addresses) moves no cursor; a list that lacks something says so on
standard error and by the exit status.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from .errors import EXIT_FAILED, EXIT_OK, HubError
from .options import channel_names, json_option, printable, write_json
from .remote import api_options, find_api, run

WIRES = ("websocket", "http_stream", "sse", "event_stream", "socketio")
"""What connections call themselves; sse is the HTTP emulation, event_stream the plain one."""
PAGE = 1000
"""Connections in one request, which is what a hub gives at most."""
DEFAULT_LIMIT = 100
SHOWN_CHANNELS = 3
"""Of one connection in a table; JSON has up to a hundred."""
MAX_REASON_BYTES = 120
"""orders.MAX_REASON_BYTES, without what it imports."""
MIN_WATCH_S = 0.2

Record = dict[str, Any]
Ask = Callable[[str, Record], Coroutine[Any, Any, Record]]
"""A method of the server API and its parameters; gives the result."""


class Choice(NamedTuple):
    """What the server API can't choose: the network, None for any, and the wire, '' for any."""

    network: Any
    wire: str

    def takes(self, row: Record) -> bool:
        if self.wire and row["transport"] != self.wire:
            return False
        return self.network is None or _is_in(self.network, row["address"])


class Listed(NamedTuple):
    """What was found. more: what to say where there is more; silent: workers that did not answer."""

    records: list[Record]
    more: str
    silent: frozenset[str]


def _network(_: click.Context, __: click.Parameter, value: str | None) -> Any:
    import ipaddress

    if value is None:
        return None
    try:
        return ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise click.BadParameter(f"found {value!r}; allowed: an address, or a network such as 10.0.0.0/8") from None


def _is_in(network: Any, address: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False  # '': by a Unix socket


def _channel(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    return None if value is None else channel_names(context, parameter, value)


def _reason(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    size = len((value or "").encode("utf-8", "surrogateescape"))
    if size > MAX_REASON_BYTES:
        raise click.BadParameter(f"found {size} bytes; allowed: {MAX_REASON_BYTES}, for a close frame holds no more")
    return value


def limit_option(noun: str) -> Callable[[Any], Any]:
    """`--limit N`; None: not given."""
    return click.option(
        "--limit", type=click.IntRange(min=1), help=f"{noun} at most.  [default: {DEFAULT_LIMIT}; with --json all]"
    )


watch_option = click.option(
    "--watch", "watch_s", type=click.FloatRange(min=MIN_WATCH_S), metavar="SECONDS", help="Again and again, so often."
)
"""`--watch SECONDS`; None: once."""


# Who is here


@click.command(short_help="List who is connected.")
@click.option("--user", help="Only this user's.")
@click.option("--client", help="Only the one with this client id.")
@click.option("--session", help="Only the one of this session of the HTTP emulation.")
@click.option("--channel", callback=_channel, metavar="CHANNEL", help="Only subscribers of it.")
@click.option("--address", "network", callback=_network, help="Only from this address or network: 10.0.0.0/8.")
@click.option("--wire", type=click.Choice(WIRES), default=None, help="Only those that came so.")
@click.option("--after", default="", metavar="CLIENT", help="Only behind this client id: the next page.")
@limit_option("Connections")
@watch_option
@api_options
@json_option("Print each connection as JSON, one in a line.")
def connections(
    user: str | None,
    client: str | None,
    session: str | None,
    channel: str | None,
    network: Any,
    wire: str | None,
    after: str,
    limit: int | None,
    watch_s: float | None,
    url: str | None,
    key: str | None,
    path: Path | None,
    as_json: bool,
) -> int:
    """List the connections of all workers and machines, by client id; all that are given must hold.

    A table on a terminal, otherwise fields between tabs. Polls that wait are no connections, and not listed.

    Exit status: 0 done, 1 refused, the hub is not there, or some of its workers did not answer, 2 wrong settings or
    arguments, 130 Ctrl-C.

    \b
    Examples:  hub connections --user ann
               hub connections --address 203.0.113.0/24 --wire websocket
               hub connections --json | jq -r .user | sort | uniq -c
               hub connections --channel chat:lobby --watch 2
    """
    given = {"user": user, "client": client, "session": session, "channel": channel}
    params = {name: value for name, value in given.items() if value is not None}
    choice = Choice(network, wire or "")
    most = _most(limit, as_json)
    ask = _asker(url, key, path)

    async def show() -> bool:
        whole = True
        async for part in _connection_parts(ask, params, choice, after, most):
            _print(part, as_json, CONNECTION_HEAD, _connection_row)
            whole = _say_rest(part) and whole
        return whole

    return _status(run(_repeat(show, watch_s)))


async def _connection_parts(ask: Ask, params: Record, choice: Choice, after: str, most: float) -> AsyncIterator[Listed]:
    """Page by page, so that nobody holds them all; the last one tells whether there is more."""
    left = most
    while True:
        page = PAGE if choice != Choice(None, "") else int(min(left, PAGE))
        result = await ask("connections", {**params, "after": after, "limit": page})
        found = [{"client": name, **row} for name, row in result["connections"].items()]
        chosen = [row for row in found if choice.takes(row)]
        fitting = chosen if len(chosen) <= left else chosen[: int(left)]
        left -= len(fitting)
        following: str | None = result.get("next")
        cut = left <= 0 and (len(fitting) < len(chosen) or following is not None)
        more = f"there may be more; go on with --after {fitting[-1]['client']}" if cut else ""
        yield Listed(fitting, more, frozenset(result.get("silent_nodes", ())))
        if left <= 0 or following is None:
            return
        after = following


CONNECTION_HEAD = ("client", "user", "address", "wire", "age", "channels")


def _connection_row(record: Record) -> tuple[str, ...]:
    shown = [*record["channels"][:SHOWN_CHANNELS]]
    rest = record["num_channels"] - len(shown)
    channels = ", ".join(shown) + (f" and {rest} more" if rest else "")
    return (
        record["client"],
        record["user"] or "-",
        record["address"] or "-",
        record["transport"],
        age(record["age_s"]),
        channels or "-",
    )


def age(seconds: float) -> str:
    """The two largest units: 93784 -> '1d 2h'; 59.9 -> '59s'."""
    parts: list[str] = []
    left = int(seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2]) or "0s"


# Where they are


@click.command(short_help="List channels by their subscribers.")
@click.argument("pattern", default="")
@limit_option("Channels")
@watch_option
@api_options
@json_option("Print each channel as JSON, one in a line.")
def channels(
    pattern: str,
    limit: int | None,
    watch_s: float | None,
    url: str | None,
    key: str | None,
    path: Path | None,
    as_json: bool,
) -> int:
    """List channels that have subscribers, on all workers and machines, those with the most first.

    PATTERN has *, ?, [abc] and [!abc], and * stands for colons too; without it all channels are meant. A hub with more
    than 10,000 of them wants a pattern.

    Exit status: 0 done, 1 refused, the hub is not there, or some of its workers did not answer, 2 wrong settings or
    arguments, 130 Ctrl-C.

    \b
    Examples:  hub channels
               hub channels 'chat:*' --limit 10 --watch 1
               hub channels --json | jq -s 'map(.num_clients) | add'
    """
    ask, most = _asker(url, key, path), _most(limit, as_json)

    async def show() -> bool:
        result = await ask("channels", {"pattern": pattern})
        rows = [{"channel": name, **counts} for name, counts in result["channels"].items()]
        rows.sort(key=lambda row: (-row["num_clients"], row["channel"]))
        fitting = rows if len(rows) <= most else rows[: int(most)]
        more = f"{len(rows)} channels; --limit shows more" if len(fitting) < len(rows) else ""
        part = Listed(fitting, more, frozenset(result.get("silent_nodes", ())))
        _print(part, as_json, CHANNEL_HEAD, lambda row: (row["channel"], f"{row['num_clients']}"))
        return _say_rest(part)

    return _status(run(_repeat(show, watch_s)))


CHANNEL_HEAD = ("channel", "clients")


# Having them gone


@click.command(short_help="End connections.")
@click.option("--user", help="This user's.")
@click.option("--client", help="The one with this client id.")
@click.option("--session", help="The one of this session of the HTTP emulation.")
@click.option("--code", type=click.IntRange(3000, 4999), help="The close code; below 3500 clients come back.  [3503]")
@click.option("--reason", callback=_reason, help="What the client is told.")
@click.option("--except", "spared", multiple=True, metavar="CLIENT", help="But not this client; may be repeated.")
@click.option("--yes", is_flag=True, help="Do not ask, where it is more than one.")
@api_options
@json_option("Print the result of the server API.")
def disconnect(
    user: str | None,
    client: str | None,
    session: str | None,
    code: int | None,
    reason: str | None,
    spared: tuple[str, ...],
    yes: bool,
    url: str | None,
    key: str | None,
    path: Path | None,
    as_json: bool,
) -> int:
    """End connections on all workers and machines; all that are given must hold.

    Where a user has more than one, it asks before. SDKs come back after codes from 3000 to 3499 and not after others;
    whom you want to keep out needs a revoked token or a blocked user as well.

    Exit status: 0 done, 1 refused, nobody was found, the hub is not there, or some of its workers did not answer,
    2 wrong settings or arguments, or --yes is missing where nobody can be asked, 130 Ctrl-C.

    \b
    Examples:  hub disconnect --user ann
               hub disconnect --user ann --code 3001 --reason "please move" --yes
               hub disconnect --client 8f2c6f0e-6a6b-4b8e-9a39-0d6a2b6d1c11
    """
    given = {"user": user, "client": client, "session": session}
    target = {name: value for name, value in given.items() if value}
    if not target:
        raise click.UsageError("give --user, --client or --session")
    ask = _asker(url, key, path)
    if not yes and set(target) == {"user"}:
        _confirm(*run(_count(ask, target, spared)))
    details = {"code": code, "reason": reason, "whitelist": list(spared)}
    wanted = {**target, **{name: value for name, value in details.items() if value is not None}}
    result = run(ask("disconnect", wanted))
    if as_json:
        click.echo(write_json(result))
    else:
        click.echo(f"{_number(result['num_clients'], 'connection')} on {_number(result['num_nodes'], 'worker')}")
    complete = _say_silent(frozenset(result.get("silent_nodes", ())))
    return _status(complete and bool(result["num_clients"]))


async def _count(ask: Ask, target: Record, spared: Sequence[str]) -> tuple[int, bool]:
    """How many there are, and whether there are more than that."""
    result = await ask("connections", {**target, "limit": PAGE})
    return len(result["connections"].keys() - set(spared)), "next" in result


def _confirm(number: int, more: bool) -> None:
    if number < 2:
        return
    text = f"{'more than ' if more else ''}{number} connections"
    if not sys.stdin.isatty():
        raise click.UsageError(f"this ends {text}; give --yes")
    if not click.confirm(f"End {text}?", err=True):
        raise HubError("nobody was disconnected")


# Small parts


def _asker(url: str | None, key: str | None, path: Path | None) -> Ask:
    endpoint, usable = find_api(url, key, path)

    async def ask(method: str, params: Record) -> Record:
        from . import client

        reply = await client.ask(endpoint, usable, method, params)
        result: Record = reply["result"]
        return result

    return ask


def _most(limit: int | None, as_json: bool) -> float:
    return limit or (float("inf") if as_json else DEFAULT_LIMIT)


async def _repeat(show: Callable[[], Coroutine[Any, Any, bool]], watch_s: float | None) -> bool:
    """Once, or until Ctrl-C. False: something was missing."""
    while True:
        if watch_s is not None and sys.stdout.isatty():
            click.clear()
        whole = await show()
        if watch_s is None:
            return whole
        await asyncio.sleep(watch_s)


def _print(part: Listed, as_json: bool, head: Sequence[str], row_of: Callable[[Record], Iterable[str]]) -> None:
    if as_json:
        for record in part.records:
            click.echo(write_json(record))
        return
    rows = [[printable(text) for text in row_of(record)] for record in part.records]
    if sys.stdout.isatty():
        _print_table(head, rows)
    else:
        for row in rows:
            click.echo("\t".join(row))


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        # As Text: brackets in a name are no markup.
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _say_rest(part: Listed) -> bool:
    if part.more:
        click.echo(f"hub: {part.more}", err=True)
    return _say_silent(part.silent)


def _say_silent(silent: frozenset[str]) -> bool:
    """False: some did not answer."""
    if silent:
        names = ", ".join(sorted(silent))
        click.echo(f"hub: {_number(len(silent), 'worker')} did not answer within a second: {names}", err=True)
    return not silent


def _status(good: bool) -> int:
    return EXIT_OK if good else EXIT_FAILED


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
