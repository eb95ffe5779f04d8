"""Sandbox: `hub` under what systemd/hub.service forbids it, as far as the kernel does it without systemd.

    HubProcess(settings, module="tests.sandbox")                              under the unit's filters
    HubProcess(settings, module="tests.sandbox", env={TRACE: "/tmp/calls"})   free, its system calls written down

SystemCallFilter=, SystemCallErrorNumber=, MemoryDenyWriteExecute= and RestrictAddressFamilies= are read from the unit
and made a seccomp program as systemd makes one: with EPERM for what is not allowed. Where the test is root,
CapabilityBoundingSet= is emptied; and where root may (not in every container), everything is read-only, as
ProtectSystem=strict has it, but for the directory of temporary files, in which a test's hub has its state. Not here:
DynamicUser=, and what hides parts of the file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

UNIT = Path(__file__).parent.parent / "systemd" / "hub.service"
TRACE = "SANDBOX_TRACE"

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 24, 22, 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
# linux/filter.h, linux/bpf_common.h: load a word, jump if equal, jump if any bit is set, mask, return.
LOAD, EQUAL, ANY_BIT, MASK, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
# struct seccomp_data: int nr, __u32 arch, __u64 instruction_pointer, __u64 args[6].
NUMBER, ARGUMENTS = 0, 16
PROT_WRITE, PROT_EXEC = 2, 4
# sched.h, sys/mount.h, fcntl.h.
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE, MOUNT_ATTR_RDONLY = 0x20000, 0x1000, 0x4000, 0x40000, 1
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}


def directives(unit: Path = UNIT) -> list[tuple[str, str]]:
    """Keys and values of a unit, in order."""
    lines = unit.read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if line and line[0] not in "#["]  # type: ignore[misc]


def allowed(unit: Path = UNIT) -> set[str]:
    """Names of the system calls that the unit allows, as systemd.exec(5) has it; @default always is."""
    found = group("@default")
    for key, value in directives(unit):
        if key == "SystemCallFilter":
            names = set().union(*(group(word) for word in value.removeprefix("~").split()))
            found = found - names if value.startswith("~") else found | names
    return found


def group(name: str) -> set[str]:
    """The calls of '@system-service', or the one that is named."""
    if not name.startswith("@"):
        return {name}
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in text.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return set().union(*(group(word) for word in words))


def numbers() -> dict[str, int]:
    """The calls of this machine: what the C library's headers say."""
    command = ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}


def program(unit: Path = UNIT) -> bytes:
    """The unit's filters in classic BPF."""
    known, values = numbers(), dict(directives(unit))
    refuse = ERRNO | getattr(errno, values["SystemCallErrorNumber"])
    steps: list[tuple[int, int, int, int]] = []

    def within(call: str, *inner: tuple[int, int, int, int]) -> None:
        """What is asked of one call alone."""
        steps.extend([(LOAD, 0, 0, NUMBER), (EQUAL, 0, len(inner), known[call]), *inner])

    if values["MemoryDenyWriteExecute"] == "yes":
        protection = (LOAD, 0, 0, ARGUMENTS + 8 * 2)
        both = PROT_WRITE | PROT_EXEC
        deny = (RETURN, 0, 0, ERRNO | errno.EPERM)
        within("mmap", protection, (MASK, 0, 0, both), (EQUAL, 0, 1, both), deny)
        within("mprotect", protection, (ANY_BIT, 0, 1, PROT_EXEC), deny)
    families = [FAMILIES[name] for name in values["RestrictAddressFamilies"].split()]
    tests = [(EQUAL, len(families) - at, 0, family) for at, family in enumerate(families)]
    within("socket", (LOAD, 0, 0, ARGUMENTS), *tests, (RETURN, 0, 0, ERRNO | errno.EAFNOSUPPORT))
    steps.append((LOAD, 0, 0, NUMBER))
    for name in sorted(allowed(unit) & known.keys()):
        steps += [(EQUAL, 0, 1, known[name]), (RETURN, 0, 0, ALLOW)]
    steps.append((RETURN, 0, 0, refuse))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def enter(code: bytes) -> None:
    """Put this process under the program, for good."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if os.geteuid() == 0:
        protect_system()
        capability = 0
        while prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
            capability += 1
    whole = Program(len(code) // 8, code)
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(whole), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no filter was set")


def protect_system() -> bool:
    """Make all mounts read-only but for temporary files, for this process. False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        return False
    temporary = os.fsencode(tempfile.gettempdir())
    attributes = struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0), struct.pack("=4Q", 0, MOUNT_ATTR_RDONLY, 0, 0)
    private = libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    if private or libc.mount(temporary, temporary, None, MS_BIND, None):
        return False
    setattr_number = numbers()["mount_setattr"]
    for path, flags, attribute in ((b"/", AT_RECURSIVE, attributes[0]), (temporary, 0, attributes[1])):
        if libc.syscall(setattr_number, AT_FDCWD, path, flags, attribute, len(attribute)):
            raise OSError(ctypes.get_errno(), "not read-only")
    return True


def main() -> None:
    """Become `hub` with this command line."""
    command = [sys.executable, "-m", "hub", *sys.argv[1:]]
    if path := os.environ.pop(TRACE, ""):
        # -D: the hub keeps this process, and strace is a child of its own.
        command = ["strace", "-D", "-f", "-qq", "-c", "-o", path, *command]
    else:
        enter(program())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
