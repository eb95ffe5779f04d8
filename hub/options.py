"""Options: what several commands of `hub` take from the command line, and how they find settings and the hub.

Does: declare the shared options, check channel names, find the settings file, choose the URL, read and write JSON.
Does not: act; the commands do.
Called by: cli, remote, operating, benching, saving, doctor.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import orjson

from .channels import ALPHABET, MAX_NAME_LENGTH, NAME
from .config import DEFAULT_PATH, Settings, load
from .errors import CommandError, ConfigError, HubError
from .urls import Endpoint, Kind, endpoint_of, parse_endpoint
from .values import parse_address

# JSON leaves them bare and some terminals obey them: a message must not move the cursor of whoever reads it.
CONTROLS = re.compile("[\x7f-\x9f]")

Command = TypeVar("Command", bound=Callable[..., Any])


def config_option(command: Command) -> Command:
    """`--config PATH`, handed on as `path`; None: not given."""
    option = click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help=f"The settings file.  [default: {DEFAULT_PATH}]",
    )
    return option(command)


def json_option(text: str, output: str = "") -> Callable[[Command], Command]:
    """`--json`, handed on as `as_json`; then an error is an object on standard output, too.

    {"ok":false,"errors":["error 102: unknown channel"],"code":102}; code: only of what the server API refuses. output:
    the argument whose '-' makes standard output something else's; then such objects go to standard error.
    """
    option = click.option("--json", "as_json", is_flag=True, help=text)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def telling(*arguments: Any, as_json: bool, **options: Any) -> Any:
            try:
                return command(*arguments, as_json=as_json, **options)
            except HubError as error:
                if as_json and not error.told:
                    code = {"code": error.reply.code} if isinstance(error, CommandError) else {}
                    click.echo(
                        write_json({"ok": False, "errors": lines_of(error), **code}), err=options.get(output) == "-"
                    )
                raise

        return option(cast(Command, telling))

    return decorate


def lines_of(error: HubError) -> list[str]:
    """What is wrong, in lines for a person."""
    text = f"error {error.reply.code}: {error}" if isinstance(error, CommandError) else str(error)
    return text.splitlines()


def channel_names(_: click.Context, __: click.Parameter, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Callback of an argument that is one channel's name or several."""
    for name in (value,) if isinstance(value, str) else value:
        if not NAME.fullmatch(name):
            raise click.BadParameter(f"found {name!r}; allowed: 1 to {MAX_NAME_LENGTH} of {ALPHABET}")
    return value


def load_own(path: Path | None) -> Settings:
    """The settings of a hub that is to be started or spoken for; the file must exist. Raises ConfigError."""
    return load(path or DEFAULT_PATH)


def load_for_client(path: Path | None) -> Settings:
    """Likewise for a command that talks to a running hub: without a file at the usual place, the defaults."""
    return load(path or (DEFAULT_PATH if os.path.exists(DEFAULT_PATH) else None))


def choose_endpoint(kind: Kind, given: str | None, addresses: Callable[[], list[str]]) -> Endpoint:
    """The URL that was given, else the first of the settings' addresses. Raises ConfigError."""
    if given:
        return parse_endpoint(kind, given)
    listed = addresses()
    if not listed:
        raise ConfigError("internal: found []; allowed: an address, or the server API's URL by --url")
    address = parse_address(listed[0])
    if not (address.path or address.port):
        raise ConfigError(f"{address}: the hub chose a port when it started; give the URL of its ready line by --url")
    return endpoint_of(kind, address)


def read_json(text: str) -> Any:
    """Parse an argument; '-' stands for standard input."""
    try:
        return orjson.loads(sys.stdin.buffer.read() if text == "-" else text)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="JSON") from None


def write_json(value: object) -> str:
    """One line of JSON that no terminal takes for a command."""
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", orjson.dumps(value).decode())


def printable(text: str) -> str:
    """A text that is no JSON, such as a user's id, likewise: what moves cursors or breaks lines is an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
