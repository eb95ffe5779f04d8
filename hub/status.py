"""Status: what a supervisor shows to commands of the same machine: one small record, in memory, found by its process.

    supervisor   Board ── memfd "hub-status" ──▶ /proc/PID/fd/N   find, read   `hub reload`

Does: keep the record, find the hubs of this machine, read a record whole.
Does not: know what the record says (reload), or signal anybody (reloading).
Called by: reload (Board), reloading (find, read), doctor (is_hub).
Never break: a reader never holds the supervisor up, and what it reads is one record and not parts of two.

No file of a directory: there is nothing to find a place for, to clear up or to fall for after a crash; another mount
namespace (PrivateTmp) is no hindrance; and who may look is the kernel's to say: the same user, and root (proc(5)).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from .errors import HubError

NAME = "hub-status"
LINK = f"/memfd:{NAME} (deleted)"
MAX_BYTES = 65_536
SUM_BYTES = 8
READS = 100
"""Of a record that is written at the same time; each takes microseconds."""
PROC = Path("/proc")


class Board:
    """The supervisor's end."""

    def __init__(self, fd: int = -1) -> None:
        """fd: of the program that was this process before; -1: a new one. Raises OSError without a free descriptor."""
        self.fd = fd if fd >= 0 else os.memfd_create(NAME, os.MFD_CLOEXEC)

    def read(self) -> dict[str, Any]:
        """What it shows; {} before the first."""
        whole, _, _ = os.pread(self.fd, MAX_BYTES, 0).partition(b"\n")
        return dict(orjson.loads(whole[SUM_BYTES:])) if whole else {}

    def write(self, record: dict[str, Any]) -> None:
        """Show this from now on. Texts that make it too long are cut by whoever has them."""
        data = orjson.dumps(record)
        # In one call, and with a sum: a reader that comes in the middle of it sees that, and reads again.
        os.pwrite(self.fd, b"%08x" % zlib.crc32(data) + data + b"\n", 0)

    def close(self) -> None:
        os.close(self.fd)


def find(proc: Path = PROC) -> list[int]:
    """The supervisors that this user may look at, by pid."""
    pids = sorted(int(path.name) for path in proc.iterdir() if path.name.isdecimal())
    return [pid for pid in pids if any(_boards(pid, proc))]


def read(pid: int, proc: Path = PROC) -> dict[str, Any]:
    """A supervisor's record. Raises HubError where the process has ended, is none of ours or can't be looked at."""
    try:
        path = next(_boards(pid, proc, strict=True), None)
        if path is None:
            raise HubError(f"process {pid} is not the supervisor of a hub")
        for _ in range(READS):
            data = path.read_bytes()
            whole, _, _ = data.partition(b"\n")
            if whole[:SUM_BYTES] == b"%08x" % zlib.crc32(whole[SUM_BYTES:]):
                found: dict[str, Any] = orjson.loads(whole[SUM_BYTES:])
                return found
    except PermissionError:
        raise HubError(forbidden(pid)) from None
    except (FileNotFoundError, ProcessLookupError):
        raise HubError(f"process {pid} has ended, or there is none") from None
    raise HubError(f"process {pid}: its record can't be read")


def forbidden(pid: int) -> str:
    """What to say where the kernel does not let us at a process."""
    if os.geteuid() == 0:  # of a container without the capability, or one inside that is told another namespace's pid
        return f"process {pid} may not be looked at from here, not even as root (ptrace(2), CAP_SYS_PTRACE)"
    return f"process {pid} belongs to another user: run this as that one, or as root"


def is_hub(pid: int, proc: Path = PROC) -> bool | None:
    """Whether a process is a supervisor, or its child, such as a worker; None where we may not see it, or it ended."""
    try:
        if any(_boards(pid, proc, strict=True)):
            return True
        parent = _parent(pid, proc)
        return bool(parent) and any(_boards(parent, proc, strict=True))
    except OSError:
        return None


def _parent(pid: int, proc: Path) -> int:
    """0: none, or in another namespace. Raises OSError."""
    # Behind the name, which may hold anything, come the state and the parent (proc(5)).
    return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def _boards(pid: int, proc: Path, strict: bool = False) -> Iterator[Path]:
    """strict: raise OSError for a process that can't be looked at; else it is passed over."""
    try:
        for path in (proc / str(pid) / "fd").iterdir():
            try:
                if os.readlink(path) == LINK:
                    yield path
            except FileNotFoundError:
                pass  # closed meanwhile
    except OSError:
        if strict:
            raise
