"""Processes: start one, pin it, read what the kernel counts for it, end it.

Does not: know what runs in it.
Called by: population, servers, the benches.
Never break: every process that is started is ended by its pid, whatever happens between.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

END_TIMEOUT_S = 20.0
LINE_BYTES = 65_536


class BenchError(Exception):
    """A measurement could not be made; the text says why."""


class BenchSilence(BenchError):
    """A process that may be well has not said in time what was waited for."""


@contextlib.contextmanager
def process(command: Sequence[str], cpu: int | None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command`, pinned to `cpu` with all its children; on leaving: SIGTERM, then SIGKILL after 20 s.

    options: those of subprocess.Popen.
    """
    pinned = (lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None
    with subprocess.Popen(command, preexec_fn=pinned, **options) as started:
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                started.kill()


def read_line(stream: Any, timeout_s: float, what: str) -> bytes:
    """One line of a pipe without a buffer. Raises BenchError at its end, BenchSilence after `timeout_s`."""
    found, deadline = b"", time.monotonic() + timeout_s
    while not found.endswith(b"\n"):
        if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise BenchSilence(f"{what} said nothing for {timeout_s:g} s: {found!r}")
        # Byte by byte costs nothing here, lines being rare, and never takes what belongs to the next line.
        if not (chunk := os.read(stream.fileno(), 1)):
            raise BenchError(f"{what} ended: {found!r}")
        found += chunk
        if len(found) > LINE_BYTES:
            raise BenchError(f"{what} sent a line of over {LINE_BYTES} bytes")
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, user and system together, all threads, also those that have ended.

    The kernel's clock of that process, in ns; /proc/PID/stat shows the same sum in ticks of 10 ms. The id of such a
    clock is made from the pid as Linux's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) does, which clock_getcpuclockid(3)
    calls and Python does not offer.
    """
    return time.clock_gettime((~pid << 3) | 2)


def children(pid: int) -> dict[int, str]:
    """The living children of a process with their command names."""
    found = {}
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            found[int(word)] = Path(f"/proc/{word}/comm").read_text().strip()
    return found


def memory_bytes(pid: int) -> Mapping[str, int]:
    """PSS and private memory of a process: {"pss": …, "private": …}.

    PSS divides a page by those who share it; the resident set (RSS) would count what forked workers share many times.
    """
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        sizes[name.rstrip(":")] = int(size) * 1024
    return {"pss": sizes["Pss"], "private": sizes["Private_Clean"] + sizes["Private_Dirty"]}


def open_files(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def pick_cpus() -> tuple[int, int]:
    """One CPU for the server and one for the load. Raises BenchError on a machine with one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError(f"found {len(usable)} usable CPU; a bench needs two: the server's and the load's")
    return usable[0], usable[1]
