"""Remote: `hub publish` and `hub tail`, and what all commands that talk to a running hub have in common.

Does: read their arguments, find URL, key and token, print what comes.
Does not: speak HTTP or WebSocket; client does.
Called by: cli, which lists the commands; operating and benching, for URL, key and tokens.
Never break: a message that was printed has left the process; whoever reads the pipe sees it at once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .config import Settings
from .errors import ConfigError, HubError
from .options import channel_names, choose_endpoint, config_option, json_option, load_for_client, read_json, write_json

if TYPE_CHECKING:
    from .client import Tail
    from .keys import Key
    from .urls import Endpoint

EXIT_INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""
TOKEN_TTL_S = 86_400
"""Of the tokens that `hub tail --user` makes; a new one for each connection."""

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])
Line = Callable[[str, dict[str, Any]], None]


def api_options(command: Command) -> Command:
    """`--url` and `--key` of the server API, and `--config`, which has both."""
    url = "The server API: http://HOST:PORT/api, unix:/PATH."
    key = "Its api.key. As an option everybody sees it in ps."
    command = config_option(command)
    command = click.option("--key", envvar="HUB_API_KEY", show_envvar=True, help=key)(command)
    return click.option("--url", envvar="HUB_API_URL", show_envvar=True, help=url)(command)


def find_api(url: str | None, key: str | None, path: Path | None) -> tuple[Endpoint, str]:
    """Where the server API is and its key: as given, else of the settings. Raises ConfigError."""
    settings = lazy_settings(path)
    endpoint = choose_endpoint("http", url, lambda: settings().internal)
    return endpoint, _usable_key(key or settings().api.key)


# A negative number is data and no option.
@click.command(short_help="Publish one message.", context_settings={"ignore_unknown_options": True})
@click.argument("channel", callback=channel_names)
@click.argument("data", metavar="JSON")
@api_options
@json_option("Print the reply of the server API.")
def publish(channel: str, data: str, url: str | None, key: str | None, path: Path | None, as_json: bool) -> None:
    """Publish JSON to CHANNEL over the server API; - reads it from standard input.

    URL and key default to those of the settings file.

    Exit status: 0 done, 1 refused, or the hub is not there, 2 wrong settings or arguments.

    \b
    Examples:  hub publish chat:lobby '{"text": "hello"}'
               date +'"%T"' | hub publish chat:clock -
    """
    from . import client

    message = read_json(data)
    reply = run(client.publish(*find_api(url, key, path), channel, message))
    if as_json:
        click.echo(write_json(reply))


@click.command(short_help="Print what is published.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...", callback=channel_names)
@click.option("--url", help="The clients' endpoint: ws://HOST:PORT/connection/websocket, unix:/PATH.")
@click.option("--token", help="A connection token, as `hub token` makes it. Everybody sees it in ps.")
@click.option("--user", help="Make the token for this user, with auth.hmac_secret of the settings.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), help="Stop after so many seconds.")
@config_option
@json_option("Print each publication as JSON, with its channel.")
def tail(
    channels: tuple[str, ...],
    url: str | None,
    token: str | None,
    user: str | None,
    count: int | None,
    timeout_s: float | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Print what is published to each CHANNEL, a line for each message, until Ctrl-C.

    Without --token and --user the connection is anonymous. After a break it is made anew.

    Exit status: 0 done, 1 the hub refuses or is not there, or --timeout ends the wait for --count messages, 2 wrong
    settings or arguments, 130 Ctrl-C.

    \b
    Examples:  hub tail ticker:ACME ticker:APEX
               hub tail chat:lobby --user ann --count 1 --json
    """
    from .client import Tail

    settings = lazy_settings(path)
    endpoint = choose_endpoint("ws", url, lambda: settings().listen)
    counted = _Counted(_json_line if as_json else _line_for(sys.stdout.isatty()), count)
    work = Tail(endpoint, list(dict.fromkeys(channels)), token_maker(settings, token, user), counted, _note_break)
    run(_bounded(work, timeout_s, counted))


def lazy_settings(path: Path | None) -> Callable[[], Settings]:
    """Settings that are read when needed: whoever gives URL and key need not be able to read the hub's file."""
    return functools.cache(lambda: load_for_client(path))


def _usable_key(key: str) -> str:
    if not key:
        raise ConfigError("api.key: found none; allowed: the hub's key by --config, HUB_API_KEY or --key")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("api.key: found characters that no HTTP header carries; allowed: printable ASCII")
    return key


def token_maker(settings: Callable[[], Settings], token: str | None, user: str | None) -> Callable[[], str]:
    """What each connection asks for its token."""
    if user is None:
        return lambda: token or ""
    if token is not None:
        raise click.UsageError("--token and --user: give one of the two")
    make = functools.partial(make_token, settings(), user, TOKEN_TTL_S)
    make()  # a mistake in user or secret is told before anything is connected
    return make


def make_token(
    settings: Settings,
    user: str,
    ttl_s: float,
    algorithm: str | None = None,
    key_file: Path | None = None,
    kid: str = "",
    aud: str | None = None,
    iss: str | None = None,
    jti: str = "",
    channel: str = "",
) -> str:
    """A token for `user`, good for `ttl_s` seconds from now; aud, iss: None for those of the settings.

    Raises ConfigError without a secret, and for a key that can't sign so.
    """
    from . import auth

    own = settings.auth
    if len(user) > auth.MAX_USER_LENGTH:
        raise click.BadParameter(f"found {len(user)} characters; allowed: {auth.MAX_USER_LENGTH}", param_hint="--user")
    if not auth.is_user(user):
        raise click.BadParameter("found bytes that are no UTF-8", param_hint="--user")
    named = (own.subscription_audience or own.audience) if channel else own.audience
    claims = {"aud": named if aud is None else aud, "iss": own.issuer if iss is None else iss}
    given = {name: value for name, value in {**claims, "jti": jti, "channel": channel}.items() if value}
    secret = (own.subscription_secret or own.hmac_secret) if channel else own.hmac_secret
    key, name = _signing_key(secret, key_file, algorithm)
    return auth.make(user, key, ttl_s, time.time(), name, kid, **given)


def _signing_key(secret: str, key_file: Path | None, algorithm: str | None) -> tuple[Any, str]:
    """What signs a token, and how. Raises ConfigError."""
    from . import auth, keys

    if key_file is None:
        name = algorithm or auth.ALGORITHM
        if not secret:
            raise ConfigError("auth.hmac_secret: found ''; allowed: at least 32 bytes, with which tokens are made")
        if name not in keys.of_secret(secret).uses:
            raise ConfigError(f"--algorithm: found {name}; allowed with this secret: {_names(keys.of_secret(secret))}")
        return secret, name
    try:
        key, public = keys.private(key_file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--key-file: found {key_file}; allowed: {error}") from None
    name = algorithm or next(iter(public.uses))
    if name not in public.uses:
        raise ConfigError(f"--algorithm: found {name}; allowed with this key: {_names(public)}")
    return key, name


def _names(key: Key) -> str:
    return ", ".join(key.uses)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it on a loop of its own; Ctrl-C ends the command."""
    # Without any handler Tornado's warnings would go to standard error, beside the line that tells the same.
    logging.getLogger("tornado").addHandler(logging.NullHandler())
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        # Quietly: click would write an empty line first.
        sys.exit(EXIT_INTERRUPTED)


async def _bounded(work: Tail, timeout_s: float | None, counted: _Counted) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await work.run()
    except TimeoutError:
        if counted.most is not None:
            raise HubError(f"{counted.seen} of {counted.most} messages came within {timeout_s:g} s") from None


class _Counted:
    """Prints messages, at most `most` of them; the False of the last one ends the tail."""

    def __init__(self, line: Line, most: int | None) -> None:
        self._line = line
        self.most = most
        self.seen = 0

    def __call__(self, channel: str, publication: dict[str, Any]) -> bool:
        self._line(channel, publication)
        self.seen += 1
        return self.seen != self.most


def _line_for(terminal: bool) -> Line:
    """Coloured on a terminal, else plain."""
    if not terminal:
        return _plain_line
    from rich.console import Console
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    # A line longer than the terminal is for the terminal to break: copied, it is one line again.
    console, highlight = Console(soft_wrap=True, highlight=False), JSONHighlighter()

    def coloured(channel: str, publication: dict[str, Any]) -> None:
        data = highlight(Text(write_json(publication.get("data"))))
        console.print(Text.assemble((_now(), "dim"), " ", (channel, "bold"), " ", data))

    return coloured


def _plain_line(channel: str, publication: dict[str, Any]) -> None:
    click.echo(f"{_now()} {channel} {write_json(publication.get('data'))}")


def _json_line(channel: str, publication: dict[str, Any]) -> None:
    click.echo(write_json({"channel": channel, **publication}))


def _now() -> str:
    """When the message came, in local time, as '14:03:59.120'."""
    return datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]


def _note_break(reason: str, seconds: float) -> None:
    click.echo(f"hub: {reason}; trying again in {seconds:.1f} s", err=True)
