"""Machine: what /proc and /sys say of the machine that a hub runs on, or will run on.

Does: read limits, kernel settings, memory, CPUs, network cards and clocks, for one process, and hand them on as facts.
Does not: judge them (kernelrules, hostrules).
Called by: doctor.
Never break: what is absent, forbidden or in another format is None, never an error: a container hides much of it. The
two roots are arguments, so that a test can make up a machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYSCTLS = (
    "fs.file-max",
    "fs.nr_open",
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_migrate_req",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.overcommit_memory",
)
UNLIMITED = 2**63 - 1
NO_LIMIT_V1 = 2**62
"""cgroup v1 writes 'no limit' as the largest multiple of a page."""
KILO = 1024


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card. queues: for receiving. rps: whether the kernel spreads its packets over CPUs by itself.

    irq_cpus: the CPUs that its interrupts may go to; None where that is not shown.
    """

    name: str
    queues: int
    rps: bool
    irq_cpus: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts; None is 'not readable', sizes are bytes. Limits are one process's: a shell has others than a service."""

    release: str | None = None
    nofile: int | None = None
    """The hard limit of open files; UNLIMITED for none. The hub raises its soft one to it."""
    files_open: int | None = None
    """Of the whole machine."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None
    """That the process may run on."""
    cpu_quota: float | None = None
    """CPU seconds in a second that its cgroups grant; None for no quota."""
    memory: int | None = None
    memory_available: int | None = None
    memory_limit: int | None = None
    """Of its tightest cgroup; None for none."""
    memory_limit_used: int = 0
    swap: int | None = None
    hugepages: str | None = None
    """'always', 'madvise' or 'never'."""
    clocksource: str | None = None
    clocksources: tuple[str, ...] = ()
    governors: frozenset[str] = frozenset()
    """Of all CPUs; empty where none is shown, as in virtual machines."""
    nics: tuple[Nic, ...] = ()

    def number(self, key: str) -> int | None:
        """A sysctl that is one number."""
        return _number(self.sysctls.get(key))

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """A sysctl that is several."""
        try:
            return tuple(int(word) for word in self.sysctls[key].split())
        except (KeyError, ValueError):
            return None

    @property
    def room(self) -> int | None:
        """Bytes that can be had now: of the machine, or of the cgroup where that is less."""
        rooms = [self.memory_available]
        if self.memory_limit is not None:
            rooms.append(max(0, self.memory_limit - self.memory_limit_used))
        known = [room for room in rooms if room is not None]
        return min(known) if known else None


def read(proc: Path = Path("/proc"), sys: Path = Path("/sys"), pid: int | None = None) -> Machine:
    """Everything, as the process `pid` has it; None is this one."""
    process = proc / (str(pid) if pid is not None else "self")
    memory = _table(_text(proc / "meminfo"))
    limit, used = _memory_limit(process, sys)
    return Machine(
        release=_text(proc / "sys/kernel/osrelease"),
        nofile=_nofile(_text(process / "limits")),
        files_open=_number((_text(proc / "sys/fs/file-nr") or "").partition("\t")[0]),
        sysctls=dict(_sysctls(proc)),
        cpus=len(cpu_list(_table(_text(process / "status")).get("Cpus_allowed_list"))) or None,
        cpu_quota=_cpu_quota(process, sys),
        memory=_kilobytes(memory.get("MemTotal")),
        memory_available=_kilobytes(memory.get("MemAvailable")),
        memory_limit=limit,
        memory_limit_used=used,
        swap=_kilobytes(memory.get("SwapTotal")),
        hugepages=_chosen(_text(sys / "kernel/mm/transparent_hugepage/enabled")),
        clocksource=_text(sys / "devices/system/clocksource/clocksource0/current_clocksource"),
        clocksources=tuple(
            (_text(sys / "devices/system/clocksource/clocksource0/available_clocksource") or "").split()
        ),
        governors=frozenset(
            text for path in _list(sys / "devices/system/cpu", "cpu*/cpufreq/scaling_governor") if (text := _text(path))
        ),
        nics=tuple(_nics(proc, sys)),
    )


def _text(path: Path) -> str | None:
    """A file without the space around it; None without the file, or the right to read it."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _list(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []  # as with a file that may not be read


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _table(text: str | None) -> dict[str, str]:
    """Of 'Key: value' lines."""
    rows = (line.partition(":") for line in (text or "").splitlines())
    return {key.strip(): value.strip() for key, _, value in rows}


def _kilobytes(text: str | None) -> int | None:
    number = _number((text or "").removesuffix(" kB"))
    return None if number is None else number * KILO


def _nofile(text: str | None) -> int | None:
    """Of /proc/PID/limits, the hard one."""
    match = re.search(r"^Max open files\s+\S+\s+(\S+)", text or "", re.MULTILINE)
    if match is None:
        return None
    return UNLIMITED if match[1] == "unlimited" else _number(match[1])


def _sysctls(proc: Path) -> Iterator[tuple[str, str]]:
    for key in SYSCTLS:
        text = _text(proc / "sys" / key.replace(".", "/"))
        if text is not None:
            yield key, " ".join(text.split())


def _chosen(text: str | None) -> str | None:
    """The one in brackets."""
    match = re.search(r"\[(\w+)\]", text or "")
    return match[1] if match else None


def cpu_list(text: str | None) -> frozenset[int]:
    """'0-3,8' as numbers."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        with contextlib.suppress(ValueError):  # an empty list, or a format that we don't know
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


# Control groups


def _groups(process: Path, sys: Path) -> Iterator[tuple[str, Path]]:
    """The process's groups with all above them: (controller, or '' for version 2; directory)."""
    for line in (_text(process / "cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = sys / "fs/cgroup"
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for controller in controllers.split(","):
            for depth in range(len(parts), -1, -1):
                yield controller, base.joinpath(controller, *parts[:depth])


def _memory_limit(process: Path, sys: Path) -> tuple[int | None, int]:
    """The limit that leaves the least, and what is used of it."""
    found: list[tuple[int, int]] = []
    for controller, directory in _groups(process, sys):
        if controller == "":
            limit, used = _number(_text(directory / "memory.max")), _number(_text(directory / "memory.current"))
        elif controller == "memory":
            limit = _number(_text(directory / "memory.limit_in_bytes"))
            used = _number(_text(directory / "memory.usage_in_bytes"))
        else:
            continue
        if limit is not None and limit < NO_LIMIT_V1:
            found.append((limit, used or 0))
    return min(found, key=lambda one: one[0] - one[1], default=(None, 0))


def _cpu_quota(process: Path, sys: Path) -> float | None:
    found: list[float] = []
    for controller, directory in _groups(process, sys):
        if controller == "":
            quota, _, period = (_text(directory / "cpu.max") or "").partition(" ")
        elif controller == "cpu":
            quota = _text(directory / "cpu.cfs_quota_us") or ""
            period = _text(directory / "cpu.cfs_period_us") or ""
        else:
            continue
        share, whole = _number(quota), _number(period)
        if share is not None and whole and share > 0:
            found.append(share / whole)
    return min(found, default=None)


# Network cards


def _nics(proc: Path, sys: Path) -> Iterator[Nic]:
    interrupts = _text(proc / "interrupts") or ""
    for path in _list(sys / "class/net", "*"):
        device = path / "device"
        if not device.exists():
            continue  # loopback, bridges and the like
        queues = _list(path / "queues", "rx-*")
        masks = [_text(queue / "rps_cpus") or "" for queue in queues]
        names = (path.name, device.resolve().name)
        yield Nic(
            path.name,
            len(queues),
            any(mask.replace(",", "").strip("0") for mask in masks),
            _irq_cpus(proc, interrupts, names),
        )


def _irq_cpus(proc: Path, interrupts: str, names: tuple[str, ...]) -> frozenset[int] | None:
    """The CPUs of all its interrupts; a virtio card's bear the device's name, such as virtio4-input.0."""
    pattern = re.compile(rf"^\s*(\d+):.*\s(?:{'|'.join(map(re.escape, names))})(?:[-@.:\s]|$)")
    cpus: set[int] = set()
    for line in interrupts.splitlines():
        if match := pattern.match(line):
            irq = proc / "irq" / match[1]
            cpus |= cpu_list(_text(irq / "effective_affinity_list") or _text(irq / "smp_affinity_list"))
    return frozenset(cpus) or None
