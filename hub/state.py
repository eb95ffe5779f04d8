"""State: the one directory in which a hub keeps what outlives it, and the lock that makes it one hub's.

Does: find the directory, make it private, lock it.
Does not: know what lies in it; embedded keeps Valkey's data there.
Called by: serve, before the supervisor; saving, for a hub that does not run.
Never break: two hubs must not work on one directory; Valkey's append-only file has one writer.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from .config import Settings
from .errors import BootError

LOCK_NAME = "lock"
# Workers hold the lock of a killed supervisor until the kernel has ended them too, which takes milliseconds.
LOCK_WAIT_S = 1.0


class InUse(BootError):
    """Another process holds the directory: a hub that runs, or a backup of one that does not."""


def state_dir(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The directory, absolute: the setting, else systemd's $STATE_DIRECTORY, else the XDG base directory's `hub`."""
    if settings.state_dir:
        return Path(settings.state_dir).absolute()
    if given := environ.get("STATE_DIRECTORY", ""):
        return Path(given.split(":")[0])  # systemd.exec(5): several are joined by colons
    home = Path(environ.get("HOME") or Path.home())
    base = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (base if base.is_absolute() else home / ".local" / "state") / "hub"


def lock_state_dir(path: Path, wait_s: float = LOCK_WAIT_S) -> BinaryIO:
    """Make the directory if need be and lock it until the returned file is closed or this process and its forks end.

    wait_s: how long a dying hub may take to let go. Raises InUse when another hub holds it, BootError when it cannot be
    written.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (path / LOCK_NAME).open("a+b")
    except OSError as error:
        raise BootError(f"state_dir {path} cannot be used: {error.strerror}; set state_dir to a writable one") from None
    if not _lock(file, wait_s):
        file.seek(0)
        owner = file.read(20).decode(errors="replace").strip() or "unknown"
        file.close()
        raise InUse(f"state_dir {path} is in use by another hub (pid {owner})")
    file.truncate(0)
    file.write(b"%d\n" % os.getpid())
    file.flush()
    return file


def _lock(file: BinaryIO, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)  # flock has no timeout of its own
        else:
            return True
