"""Saving: the commands `hub backup` and `hub restore`.

Does: read their arguments, find the Redis (for a hub that does not run, start its private Valkey meanwhile), open the
file so that it is whole or not there, show how far it is, print what was done.
Does not: know what is kept and how (backup, restore) or the file's format (archive).
Called by: cli, which lists the commands.
Never break: a file under the name that was asked for is a whole backup; nothing is restored from one that is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar, cast

import click

from . import __version__
from .config import Settings
from .errors import BootError, ConfigError, HubError
from .options import config_option, json_option, load_own, write_json

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from .archive import Contents, Counts, Header, Reader
    from .store import Keys, Store

TIMEOUT_S = 60.0
"""Of one command of a backup or restore: Redis may be busy, and nobody waits at the other end."""
GZIP_LEVEL = 6
GZIP_MAGIC = b"\x1f\x8b"
POLL_S = 0.05
FILE = click.Path(dir_okay=False, allow_dash=True)

Result = TypeVar("Result")


@click.command(short_help="Write mailboxes and history to a file.")
@click.argument("file", type=FILE)
@click.option("--mailboxes-only", is_flag=True, help="Leave out the history of stream channels.")
@config_option
@json_option("Print one JSON object about the backup.", output="file")
def backup(file: str, mailboxes_only: bool, path: Path | None, as_json: bool) -> None:
    """Write mailboxes, and the history and positions of stream channels, to FILE; - is standard output.

    The hub may run meanwhile: each channel and each mailbox is of one moment, but not all of the same. With a private
    Valkey, run it on the hub's machine as the hub's user; if the hub does not run, Valkey is started for this alone.

    FILE is compressed if its name ends in .gz. It appears when it is whole, and only its owner may read it. Not kept
    are the newest values of latest channels, presence, and idempotency keys.

    Exit status: 0 done, 1 failed, 2 wrong settings or arguments, 3 Redis cannot be reached or started, 130 Ctrl-C.

    \b
    Examples:  hub backup /var/backups/hub.jsonl.gz --config /etc/hub/hub.toml
               hub backup - --mailboxes-only | ssh vault 'cat > mailboxes.jsonl'
    """
    from .archive import Header, Writer
    from .backup import generation_number, save

    settings = load_own(path)

    async def work(redis: Redis, keys: Keys, out: BinaryIO) -> Writer:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        contents: Contents = "mailboxes" if mailboxes_only else "all"
        writer = Writer(out, Header(__version__, keys.prefix, when, contents, await generation_number(redis, keys)))
        with _progress("backup", writer.counts) as show:
            await save(redis, keys, writer, show)
        writer.close()
        return writer

    with _ended_by_sigterm(), _store(settings, create=False) as store, _file_errors(file), _new_file(file) as out:
        writer = _run(store, lambda redis, keys: work(redis, keys, out))
    _tell(file, writer.header, writer.counts, writer.sha256, as_json, aside=file == "-")


@click.command(short_help="Put mailboxes and history back from a file.")
@click.argument("file", type=FILE)
@click.option("--replace", is_flag=True, help="Delete what Redis has of what the file contains, before.")
@click.option("--check", "only_check", is_flag=True, help="Only check that the file is whole; needs no settings.")
@config_option
@json_option("Print one JSON object about the backup.")
def restore(file: str, replace: bool, only_check: bool, path: Path | None, as_json: bool) -> None:
    """Put back what `hub backup` wrote to FILE; - is standard input.

    First all of FILE is checked; from a damaged one nothing is restored. Without --replace, Redis must not have any
    history or mailbox under this prefix. The prefix may be another one than that of the backup, and the Redis of
    another kind or version. Messages live for as long as they had left when the backup was made.

    The hub may run meanwhile. A new generation of the store begins: a client that has read more than the backup has is
    told that messages are lost, one that has not goes on where it was. With a private Valkey, run it on the hub's
    machine as the hub's user; if the hub does not run, Valkey is started for this alone.

    Exit status: 0 done, 1 failed, 2 wrong settings or arguments, or a damaged file, 3 Redis cannot be reached or
    started, 130 Ctrl-C.

    \b
    Examples:  hub restore hub.jsonl.gz --check
               hub restore hub.jsonl.gz --replace --config /etc/hub/hub.toml
    """
    from .archive import Reader
    from .restore import restore as write

    settings = None if only_check else load_own(path)
    with _ended_by_sigterm(), _file_errors(file), _old_file(file) as open_again:
        checked = _checked(file, open_again())
        if settings is not None:
            reader = Reader(open_again())

            async def work(redis: Redis, keys: Keys) -> None:
                with _progress("restore", reader.counts) as show:
                    await write(redis, keys, reader, replace, show)

            with _store(settings, create=True) as store:
                _run(store, work)
    _tell(file, checked.header, checked.counts, checked.sha256, as_json)


# Where the data is


@contextlib.contextmanager
def _store(settings: Settings, create: bool) -> Iterator[Store]:
    """The way to this hub's Redis; `create`: a private Valkey that has never run is made. Raises BootError."""
    from .serve import needs_embedded
    from .store import Store

    with contextlib.ExitStack() as stack:
        url = _private_url(settings, create, stack) if needs_embedded(settings) else settings.redis.url
        yield Store(settings.redis, url)


def _private_url(settings: Settings, create: bool, stack: contextlib.ExitStack) -> str:
    from .embedded import Embedded, has_data, running_url
    from .state import InUse, lock_state_dir, state_dir

    directory = state_dir(settings, os.environ)
    deadline = time.monotonic() + settings.redis.start_timeout_s
    # A hub that is about to start holds the directory, and its Valkey does not listen yet.
    while not (url := running_url(directory)):
        _expect_own(directory)
        if not (create or has_data(directory)):
            raise BootError(
                f"state_dir {directory}: no private Valkey was here; set state_dir or redis.url as the hub has"
            )
        try:
            stack.enter_context(lock_state_dir(directory, 0.0))
        except InUse:
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)  # neither flock nor connect has a way to wait for what comes next
            continue
        embedded = Embedded(settings, directory)
        stack.callback(embedded.stop)
        embedded.wait_ready(settings.redis.start_timeout_s)
        # Between two runs of the hub: a backup must not look like a crash in between.
        embedded.resume()
        return embedded.url
    return url


def _expect_own(directory: Path) -> None:
    """What Valkey writes there as somebody else, root say, the hub could not open afterwards."""
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return
    except OSError as error:
        raise BootError(f"state_dir {directory} cannot be used: {error.strerror}; run this as the hub's user") from None
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"user {owner}"
        raise BootError(f"state_dir {directory} belongs to {name}; run this as {name}")


def _run(store: Store, work: Callable[[Redis, Keys], Awaitable[Result]]) -> Result:
    """Raises BootError when Redis can't be reached, HubError when it fails later."""
    from redis.exceptions import RedisError

    async def connected() -> Result:
        redis = store.commands(TIMEOUT_S)
        try:
            try:
                await redis.ping()
            except (RedisError, OSError) as error:
                raise BootError(f"Redis at {store.describe()}: {error}") from None
            return await work(redis, store.keys)
        except RedisError as error:
            raise HubError(f"Redis at {store.describe()}: {error}; broke off before the end") from None
        finally:
            await redis.aclose()

    return asyncio.run(connected())


# The file


@contextlib.contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Name the file in what is wrong with it."""
    try:
        yield
    except OSError as error:
        raise HubError(f"{_shown(name)}: {error.strerror or error}") from None


def _checked(name: str, file: BinaryIO) -> Reader:
    """Read all of it. Raises ConfigError for one that is not whole."""
    from .archive import Damaged, Reader

    try:
        reader = Reader(file)
        for _ in reader:
            pass
    except Damaged as error:
        raise ConfigError(f"{_shown(name)}: {error}; nothing was changed") from None
    return reader


@contextlib.contextmanager
def _new_file(name: str) -> Iterator[BinaryIO]:
    """Open for writing. What goes wrong before the end leaves an older file of this name as it is."""
    path = Path(os.path.realpath(name))  # a link stays one
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():
        with path.open("wb") as file, _compressed(file, name) as out:  # /dev/null, a named pipe: nothing to replace
            yield out
    else:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                with _compressed(file, name) as out:
                    yield out
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


@contextlib.contextmanager
def _compressed(file: IO[bytes], name: str) -> Iterator[BinaryIO]:
    if not name.endswith(".gz"):
        yield cast(BinaryIO, file)
        return
    with gzip.GzipFile("", "wb", GZIP_LEVEL, file) as out:
        yield cast(BinaryIO, out)


@contextlib.contextmanager
def _old_file(name: str) -> Iterator[Callable[[], BinaryIO]]:
    """What opens the file from its beginning, each time the same file, even if another takes its name meanwhile."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes] = sys.stdin.buffer if name == "-" else stack.enter_context(open(name, "rb"))
        if not file.seekable() or name == "-":
            copy = stack.enter_context(tempfile.TemporaryFile())  # it is read twice
            shutil.copyfileobj(file, copy)
            file = copy

        def open_again() -> BinaryIO:
            file.seek(0)
            packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            return cast(BinaryIO, gzip.GzipFile("", "rb", fileobj=file) if packed else file)

        yield open_again


def _shown(name: str) -> str:
    return {"-": "standard input or output"}.get(name, name)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: what it has begun is put away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# What people see


@contextlib.contextmanager
def _progress(verb: str, counts: Counts) -> Iterator[Callable[[], None]]:
    """On a terminal, a line on standard error that tells the counts; the function that is handed out renews it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.status import Status

    with Status(verb, console=Console(stderr=True)) as status:
        yield lambda: status.update(f"{verb}: {_sentence(counts)}")


def _sentence(counts: Counts) -> str:
    parts = (("channel", counts.channels), ("publication", counts.publications), ("mailbox key", counts.keys))
    return ", ".join(f"{number:,} {noun}{'' if number == 1 else 's'}" for noun, number in parts)


def _tell(file: str, header: Header, counts: Counts, digest: str, as_json: bool, aside: bool = False) -> None:
    """One line; `aside`: on standard error, because standard output is the file."""
    if as_json:
        numbers = {name: getattr(counts, name) for name in type(counts).__slots__}
        line = write_json({"file": file, **header._asdict(), **numbers, "sha256": digest})
    else:
        line = f"{_shown(file)}: {_sentence(counts)}; made {header.time} of prefix {header.prefix}"
    click.echo(line, err=aside)
