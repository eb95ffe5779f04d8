"""Whereabouts: how a command finds the hub that runs, and what that says of its deploys.

Does: keep one small file beside the workers' private sockets, find those of this machine's hubs, tell a living one.
Does not: signal anybody (deploying) or know what an outcome means (deploy).
Called by: bequest (`write`), deploying (`find`), reloading (`is_same`).
Never break: whoever reads may be root and the directory somebody else's: a file speaks for a process of its own owner
only, so that nobody has another user's process signalled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

NAME = "supervisor.json"
MAX_BYTES = 65_536
STOPS = "the hub stops"
"""The outcome of a deploy that nothing goes on after."""


class Standing(BaseModel):
    """pid: of the supervisor. version: of the workers that serve. config: its settings file, absolute. done, failed:
    deploys since the hub was started.

    outcome: of the last one, '' for a good one and before the first. busy: one goes on, whose outcome is yet to come.
    """

    model_config = ConfigDict(frozen=True)

    pid: int
    version: str
    config: str
    done: int = 0
    failed: int = 0
    outcome: str = ""
    busy: bool = False


def write(directory: str, standing: Standing) -> None:
    """Replace what was said before, at once for whoever reads. Raises OSError."""
    path = Path(directory, NAME)
    new = path.with_suffix(".new")
    new.write_text(standing.model_dump_json(), encoding="utf-8")
    new.replace(path)


def read(directory: str | Path) -> Standing | None:
    """None where no hub lives, or where somebody speaks for a process that is not its own."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        owner = os.fstat(descriptor).st_uid
        if not _is_held(descriptor):
            return None
        with open(Path(directory, NAME), "rb") as file:
            standing = Standing.model_validate_json(file.read(MAX_BYTES))
        return standing if os.stat(f"/proc/{standing.pid}").st_uid == owner else None
    except (OSError, ValidationError):
        return None
    finally:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """A supervisor, or one of its forks, lives: relay.Home locks its directory."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def find(config: Path, environ: Mapping[str, str]) -> list[tuple[str, Standing]]:
    """The directories of living hubs with these settings, and what they say; usually one."""
    found = ((str(path), read(path)) for base in _bases(environ) for path in sorted(base.glob("hub-relay-*")))
    return [(path, standing) for path, standing in found if standing is not None and is_same(standing.config, config)]


def is_same(said: str, config: Path) -> bool:
    """Whether a hub that says it runs with this settings file, as an absolute path or '', is meant by that path."""
    # The text too: what leads there from here may lead elsewhere in the hub's own namespace of mounts.
    return said == str(config.absolute()) or (bool(said) and os.path.realpath(said) == os.path.realpath(config))


def _bases(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where a hub of this machine may have its directory, as relay.Home chooses it; with systemd that is /run/NAME."""
    given = (environ.get("RUNTIME_DIRECTORY", "").split(":")[0], environ.get("XDG_RUNTIME_DIR", ""))
    bases = [Path(text) for text in given if text.startswith("/")] + [Path("/tmp"), *sorted(Path("/run").glob("hub*"))]
    yield from dict.fromkeys(path.resolve() for path in bases)
