"""Inheritance: what a supervisor leaves to the program that takes its place in the same process.

    supervisor of the old version ── Estate, sealed in a memory file ──▶ execve ──▶ supervisor of the new version
                                  └─────────── the same bytes ────────▶ `hub check --boot` of the new version, before
    `hub check --boot`  ── the settings that it has checked, in a memory file of their own ──▶ the same supervisor

Does: say what is handed on, write it into a sealed memory file (memfd_create(2)), read it, compare settings that can't
change without a restart.
Does not: exec, know what the heirs do with it (deploy, supervisor, listeners, embedded), or what checked settings look
like (reloadable): the old version holds their file, and only the new one reads in it.
Called by: supervisor, serve, deploy, rehearsal.
Never break: descriptors are inherited by the exec alone, and no child of the heir gets them. A change of what an Estate
means, or of what is in it, needs another FORMAT: a reader that does not know it refuses in the check, where that costs
nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, MutableMapping

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import BootError, ConfigError

FORMAT = 4
VARIABLE = "_HUB_INHERITED"
"""Of the environment: the memory file's descriptor. Not HUB_…, which are settings."""
MAX_BYTES = 4_194_304
"""About 300 bytes for each worker and 1,000 for each address: more is no estate."""
MAX_CHECKED_BYTES = 67_108_864
"""Of checked settings with what their files hold, as instructions.MAX_DATA_BYTES for those of a reload."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorkerRecord(_Record):
    """A living worker. pulse: our end of its heartbeat pipe. instructor: of the pipe with instructions for it.

    born_s: of CLOCK_MONOTONIC, which goes on over an exec. heartbeat_timeout_s, goodbye_s: by the settings that it has,
    which may be others than those of its heir.
    """

    slot: int
    generation: int
    pid: int
    pulse: int
    instructor: int
    ready: bool
    born_s: float
    heartbeat_timeout_s: float
    goodbye_s: float


class ListenerRecord(_Record):
    """The listeners of one address. address: the actual one, setting: what asked for it, both as settings write them.

    sockets: one for each slot, or one for all where they are shared. file: device and inode of our own socket file.
    handed: by systemd, and so its options are the unit's to say.
    """

    address: str
    setting: str
    sockets: list[int]
    shared: bool
    file: list[int] | None = None
    handed: bool = False


class ValkeyRecord(_Record):
    """The private Valkey. pid: None while it is down. short_directory: where its socket is if not with its data."""

    pid: int | None
    socket_path: str
    short_directory: str


class HomeRecord(_Record):
    """relay.Home. lock: a descriptor."""

    hub: str
    directory: str
    lock: int


class OriginRecord(_Record):
    """deploy.Program."""

    command: list[str]
    options: list[str]
    real: list[str]


class Tally(_Record):
    """Of all deploys since the hub was started. again: another one was asked for meanwhile."""

    done: int = 0
    failed: int = 0
    again: bool = False


class Estate(_Record):
    """Everything. version: of the workers. fixed: settings that can't change with it, by name. state_lock: of the state
    directory, -1 for none.

    next_generation: a number that no worker of this hub has had. board: status.Board, a descriptor. checked: the file
    for the settings that were found good: the check writes it, its heir reads it; -1: nobody has checked any.

    origin: how the one that leaves it was started, settings: the file with those that it goes by, -1 for none, both for
    a way back. back: this is one, and the heir goes on with the workers that there are. failure: why, where that is yet
    to be told.
    """

    format: int = FORMAT
    version: str
    fixed: dict[str, str]
    workers: list[WorkerRecord]
    next_generation: int
    home: HomeRecord
    state_lock: int
    board: int
    public: list[ListenerRecord]
    internal: list[ListenerRecord]
    valkey: ValkeyRecord | None
    tally: Tally
    checked: int = -1
    origin: OriginRecord | None = None
    settings: int = -1
    back: bool = False
    failure: str = ""

    def descriptors(self) -> Iterator[int]:
        """All that the exec has to leave open, each once."""
        yield self.home.lock
        yield self.board
        if self.state_lock >= 0:
            yield self.state_lock
        if self.checked >= 0:
            yield self.checked
        if self.settings >= 0:
            yield self.settings
        for listener in (*self.public, *self.internal):
            yield from listener.sockets
        for worker in self.workers:
            yield worker.pulse
            yield worker.instructor


def seal(estate: Estate) -> int:
    """A memory file with the estate that nobody can change any more; its descriptor. Raises OSError."""
    file = os.memfd_create("hub-estate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        data = estate.model_dump_json().encode()
        while data:
            data = data[os.write(file, data) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(file)
        raise
    return file


def take(environ: MutableMapping[str, str]) -> Estate | None:
    """What this process was left, once; None for one that was simply started. Raises BootError for what it can't read.

    The descriptors in it are those of this process, and none of its children's.
    """
    estate = peek(environ)
    if estate is not None:
        for descriptor in estate.descriptors():
            os.set_inheritable(descriptor, False)
    return estate


def peek(environ: MutableMapping[str, str]) -> Estate | None:
    """The same in a check, which gets the words and `checked`: the other descriptors mean nothing there."""
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    try:
        file = int(text)
        data = os.pread(file, MAX_BYTES, 0)
        os.close(file)
    except (ValueError, OSError) as error:
        raise BootError(f"{VARIABLE}: found {text!r}, where nothing can be read: {error}") from None
    return read(data)


def read(data: bytes) -> Estate:
    """Raises BootError for another format than ours, and for what is none."""
    found = _format_of(data)
    if found != FORMAT:
        raise BootError(f"the running hub leaves its workers in format {found}, this version reads {FORMAT}: restart")
    try:
        return Estate.model_validate_json(data)
    except ValidationError as error:
        raise BootError(
            f"what the running hub leaves can't be read ({error.error_count()} mistakes): restart"
        ) from None


def open_checked() -> int:
    """A memory file for what a check writes by `write_checked`; its descriptor. Raises OSError."""
    file = os.memfd_create("hub-checked", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, MAX_CHECKED_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return file


def write_checked(file: int, data: bytes) -> None:
    """In the check: leave them, whole. Raises ConfigError for too many."""
    if len(data) >= MAX_CHECKED_BYTES:
        raise ConfigError(f"keys and certificates: found {len(data)} bytes; allowed: less than {MAX_CHECKED_BYTES}")
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    # The last step, so that a file of another size is one that nobody has finished.
    os.ftruncate(file, len(data))


def seal_checked(file: int) -> bool:
    """Whether a check has left them there; nobody can change them any more. Raises OSError."""
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    return os.fstat(file).st_size < MAX_CHECKED_BYTES


def take_checked(file: int) -> bytes:
    """In the heir: what the check has left, once; the file is closed."""
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def _format_of(data: bytes) -> object:
    class Head(BaseModel):
        format: int

    try:
        return Head.model_validate_json(data).format
    except ValidationError:
        return "unknown"


def check_fixed(was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise ConfigError with a line for each setting that only a restart can change. Values are told, but digests."""
    lines = []
    for name in sorted({*was, *now}):
        old, new = was.get(name, ""), now.get(name, "")
        if old != new:
            told = "" if DIGEST in old + new else f" (was {old}, is {new})"
            lines.append(f"{name}: found changed{told}; needs a restart")
    if lines:
        raise ConfigError("\n".join(lines))


DIGEST = "blake2b:"


def digest(*texts: str) -> str:
    """Stands for values that are not to be told, such as a URL with a password."""
    return DIGEST + hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
