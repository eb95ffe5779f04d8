"""Secret files: secrets that stand in files of their own, which nobody else may read; and how files of keys are read.

Does: refuse a file that others can read; read a secret from one; read what is a regular file, up to a bound.
Does not: know which settings are secret (config), or keep anything.
Called by: config (`auth.hmac_secret_file` and the like; itself), certificates (private keys), keyfiles (public ones).
Never break: nothing of a file's content is in a message, whatever is wrong with it; no path makes anybody wait: opening
a named pipe would, until somebody writes there, and a device may be without end.

systemd's credentials need no such check: their directory is the service's alone.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .errors import ConfigError

MAX_BYTES = 65_536
"""Of a secret: a file that is larger is another one, such as a log."""
NO_FILE = "Not a regular file"
OTHERS = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
CREDENTIALS_ENV = "CREDENTIALS_DIRECTORY"


def read_regular(path: str | Path, most: int) -> bytes:
    """A file's content. Raises OSError, also for what is no regular file, or has more bytes than `most`."""
    # O_NONBLOCK: a named pipe without a writer is opened at once; regular files know no such thing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, NO_FILE)
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"More than {most} bytes")
    return data


def check_private(key: str, path: Path) -> None:
    """Raise ConfigError, in the words of the setting `key`, for a file that is none, or not private.

    Its group may read what belongs to somebody else, such as root: how else could the hub.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{key}: found {path}: {error.strerror}; allowed: a file that the hub can read") from None
    if not stat.S_ISREG(status.st_mode):
        found = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else NO_FILE
        raise ConfigError(f"{key}: found {path}: {found}; allowed: a file that the hub can read")
    forbidden = OTHERS | (stat.S_IRGRP if status.st_uid == os.geteuid() else 0)
    if status.st_mode & forbidden and not _is_credential(path):
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"{key}: found {path} with mode {mode:04o}; allowed: 0600, or 0640 where its owner is not the hub's user"
        )


def read_secret(key: str, path: Path) -> str:
    """A file's text, without the line end behind it. Raises ConfigError."""
    check_private(key, path)
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{key}: found {path}: {error.strerror}; allowed: a file that the hub can read") from None
    try:
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        # Not the decoder's own words, which quote a byte.
        raise ConfigError(f"{key}: found {path}, which is no UTF-8; allowed: a text") from None
    if not text:  # as if nothing had been said: a hub whose secret got lost would let everybody in as nobody
        raise ConfigError(f"{key}: found {path}, which is empty; allowed: a secret")
    return text


def is_open(path: Path) -> bool:
    """Whether other users can read a file: it and all directories above let them."""
    path = path.resolve()
    above = (each.stat().st_mode & stat.S_IXOTH for each in path.parents)
    return bool(path.stat().st_mode & stat.S_IROTH) and all(above)


def _is_credential(path: Path) -> bool:
    directory = os.environ.get(CREDENTIALS_ENV, "")
    return bool(directory) and path.resolve().is_relative_to(Path(directory).resolve())
