"""Secret files: secrets that stand in files of their own, which nobody else may read.

Does: refuse a file that others can read; read a secret from one.
Does not: know which settings are secret (config), or keep anything.
Called by: config (`auth.hmac_secret_file` and the like), certificates (private keys).
Never break: nothing of a file's content is in a message, whatever is wrong with it.

systemd's credentials need no such check: their directory is the service's alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import ConfigError

MAX_BYTES = 65_536
"""Of a secret: a file that is larger is another one, such as a log."""
OTHERS = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
CREDENTIALS_ENV = "CREDENTIALS_DIRECTORY"


def check_private(key: str, path: Path) -> None:
    """Raise ConfigError, in the words of the setting `key`, for a file that is none, or not private.

    Its group may read what belongs to somebody else, such as root: how else could the hub.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{key}: found {path}: {error.strerror}; allowed: a file that the hub can read") from None
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
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{key}: found {path}: {error.strerror}; allowed: a file that the hub can read") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{key}: found {path}, of more than {MAX_BYTES} bytes; allowed: a secret")
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
