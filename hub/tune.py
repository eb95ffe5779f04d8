"""Tune: the kernel settings and limits that suit very many sockets, as drop-in files, each line with its reason.

Does: hold the one table of recommendations, write it as a sysctl.d and a limits.d file, compare it with this machine;
write the unit's drop-in.
Does not: change anything; tuning and changes install the files, or the operator does.
Called by: tuning (`hub tune`); config/sysctl, config/limits and config/systemd hold the drop-ins as they come.
Never break: the files under config/ equal `sysctl_dropin`, `limits_dropin` and `systemd_dropin` byte for byte (a test
compares them), and no line that stands uncommented takes anything from a machine that has more already.
A new line needs its row in `RECOMMENDED` with the reason, and the file written anew.
"""

from __future__ import annotations

import resource
import textwrap
from enum import Enum
from pathlib import Path
from typing import NamedTuple

SYSCTL_PATH = "/etc/sysctl.d/60-hub.conf"
LIMITS_PATH = "/etc/security/limits.d/60-hub.conf"
# The default of fs.nr_open, and what systemd/hub.service asks for: a million sockets in each worker.
OPEN_FILES = 1_048_576
UNIT = "hub.service"


class Group(Enum):
    """When a line is right; the value is its heading in the drop-in."""

    SAFE = "For every machine."
    RAISE = "Ceilings; a fixed line would lower what many machines have: only where `hub tune` shows less."
    MILLION = "Only for about a million connections on one machine."
    PORTS = "Only where the hub itself listens on 80 and 443, and no systemd hands them over: any program may then."
    MEASURE = "Only with a measurement that shows the gain."


class Check(Enum):
    """When a current value is as good as the recommended one."""

    AT_LEAST = "each of its numbers is as high or higher"
    EQUAL = "it is the same"
    COVERS = "it is a range that holds the recommended one"
    AT_MOST = "it is as low or lower"


class Line(NamedTuple):
    """One recommendation: 'key = value' as in sysctl.d(5), and why."""

    setting: str
    reason: str
    check: Check = Check.AT_LEAST

    @property
    def key(self) -> str:
        return self.setting.partition(" = ")[0]

    @property
    def value(self) -> str:
        return self.setting.partition(" = ")[2]


SAFE = (
    Line(
        "net.core.somaxconn = 65535",
        "Caps the accept queue of each listener (tcp.backlog); at 4096 a reconnect storm overflows it.",
    ),
    Line(
        "net.ipv4.tcp_max_syn_backlog = 65535",
        "Half-open connections that may wait in a storm; automatic is 2048 on 24 GiB.",
    ),
    Line(
        "net.ipv4.tcp_syncookies = 1",
        "What still lets clients in once that queue is full.",
    ),
    Line(
        "net.ipv4.ip_local_port_range = 10240 65535",
        "Outgoing ports, one for each connection of a proxy to the hub. What listens above 10240, the hub too, needs"
        " its port in net.ipv4.ip_local_reserved_ports.",
        Check.COVERS,
    ),
    Line(
        "net.ipv4.tcp_slow_start_after_idle = 0",
        "A burst after silence, the usual rhythm of a feed, keeps its congestion window.",
        Check.EQUAL,
    ),
    Line(
        "net.ipv4.tcp_migrate_req = 1",
        "Connections queued at a listener that closes move to the port's other listeners (since Linux 5.14).",
        Check.EQUAL,
    ),
    Line(
        "net.core.netdev_max_backlog = 16384",
        "Packets that may wait for a CPU; bursts over loopback, as from a proxy on this machine, overflow 1000.",
    ),
    Line(
        "vm.overcommit_memory = 1",
        "Valkey forks to rewrite its file; at 0 the kernel may refuse memory that the fork would never use.",
        Check.EQUAL,
    ),
)
# systemd since 240 sets both to their maximum at boot where the distribution lets it (its NEWS), and the kernel's own
# fs.file-max is a tenth of the memory: 4194304 is more than it on 24 GiB, and less on 64.
RAISE = (
    Line(
        "fs.nr_open = 2097152",
        f"Caps LimitNOFILE; the kernel's own {OPEN_FILES} is enough for hub.service as it stands.",
    ),
    Line(
        "fs.file-max = 4194304",
        "Open files of the whole machine; twice this many connections need it where both ends are here.",
    ),
)
MILLION = (
    Line(
        "net.ipv4.tcp_mem = 1048576 1572864 2097152",
        "Pages for all TCP buffers: a socket with unsent data holds one or more, a million of them about 4 GiB.",
    ),
    Line(
        "net.ipv4.tcp_max_orphans = 524288",
        "Sockets that the hub closed and the client did not yet; pacing the closes (drain_window_s) helps more.",
    ),
    Line(
        "net.netfilter.nf_conntrack_max = 1310720",
        "Where a firewall tracks connections, at about 300 bytes each; better is NOTRACK for the hub's port.",
    ),
    Line(
        "net.netfilter.nf_conntrack_buckets = 327680",
        "A quarter of nf_conntrack_max; automatic is at most 262144.",
    ),
)
MEASURE = (
    Line(
        "net.ipv4.tcp_rmem = 4096 16384 6291456",
        "The hub sets its clients' buffers itself (tcp.receive_buffer_bytes); this is for every socket of the machine.",
        Check.EQUAL,
    ),
    Line(
        "net.ipv4.tcp_wmem = 4096 16384 4194304",
        "Likewise (tcp.send_buffer_bytes); its maximum times the stalled clients is how memory runs out.",
        Check.EQUAL,
    ),
    Line(
        "net.core.rps_sock_flow_entries = 32768",
        "Receive flow steering, with queues and workers pinned; on few CPUs it competes with the workers.",
    ),
)
PORTS = (
    Line(
        "net.ipv4.ip_unprivileged_port_start = 80",
        "From here on ports need no privilege, for IPv6 too; it is 1024 otherwise. Sockets of systemd need none.",
        Check.AT_MOST,
    ),
)
RECOMMENDED = {Group.SAFE: SAFE, Group.RAISE: RAISE, Group.MILLION: MILLION, Group.PORTS: PORTS, Group.MEASURE: MEASURE}

SYSCTL_HEAD = f"""\
# Kernel settings for hub. Install as {SYSCTL_PATH}, then run: sysctl --system
# `hub tune` prints them compared with the machine that it runs on, `hub tune --apply` installs what suits it.
"""
SYSCTL_FOOT = """
# Not a sysctl: the boot parameter thash_entries=1048576 keeps lookups short at a million sockets (automatic is at most
# 262144 buckets).
# Left alone with intent: net.core.busy_poll burns a CPU, net.ipv4.tcp_abort_on_overflow = 1 turns bursts into resets,
# a tiny net.ipv4.tcp_fin_timeout gains nothing.
"""
LIMITS_HEAD = f"""\
# Open files for hub where systemd does not run it. Install as {LIMITS_PATH}, then log in again.
# Under systemd LimitNOFILE of hub.service holds, and this file is not read.

# One descriptor for each client; the hub raises its soft limit to the hard one itself.
"""

SYSTEMD_HEAD = """\
# What hub's unit gets on this machine. Install as {path}, then run:
# systemctl daemon-reload && systemctl restart {unit}
[Service]
# One descriptor for each client of a worker; at most fs.nr_open.
LimitNOFILE={nofile}
"""
SYSTEMD_CPUS = """\
# Only these CPUs, and one worker on each of them; leave one or two for the kernel's network work, Redis and the rest.
# `workers = "auto"` counts what this leaves.
{mark}CPUAffinity={cpus}
{mark}Environment=HUB_PIN=true
"""


def systemd_path(unit: str = UNIT) -> str:
    """Where the drop-in of a unit goes."""
    return f"/etc/systemd/system/{unit}.d/60-tune.conf"


def systemd_dropin(nofile: int = OPEN_FILES, cpus: str = "", unit: str = UNIT) -> str:
    """The systemd.unit(5) drop-in. cpus: a list as of CPUAffinity=, such as '2-7'; '' leaves a commented example."""
    cpu_lines = SYSTEMD_CPUS.format(mark="" if cpus else "# ", cpus=cpus or "2-7")
    return SYSTEMD_HEAD.format(path=systemd_path(unit), unit=unit, nofile=nofile) + cpu_lines


def sysctl_dropin() -> str:
    """The sysctl.d(5) file: what is safe everywhere stands, the rest is commented out."""
    parts = [SYSCTL_HEAD]
    for group, lines in RECOMMENDED.items():
        parts.append(f"\n## {group.value}\n")
        parts += [_entry(line, "", group is Group.SAFE) for line in lines]
    return "".join([*parts, SYSCTL_FOOT])


def limits_dropin(nofile: int = OPEN_FILES) -> str:
    """The limits.conf(5) file."""
    return f"{LIMITS_HEAD}hub - nofile {nofile}\n"


def fitted_dropin(proc_sys: Path = Path("/proc/sys")) -> str:
    """The sysctl.d(5) file as it suits this machine: the same lines stand as in `report`, without what holds now.

    It is the same before and after it was installed, so that installing it twice is installing it once.
    """
    parts = [SYSCTL_HEAD]
    for group, lines in RECOMMENDED.items():
        parts.append(f"\n## {group.value}\n")
        for line in lines:
            _, stands = _compared(line, current_value(proc_sys, line.key), group in (Group.SAFE, Group.RAISE))
            parts.append(_entry(line, "", stands))
    return "".join([*parts, SYSCTL_FOOT])


def assignments(dropin: str) -> dict[str, str]:
    """The lines of a sysctl.d(5) file that stand: key → value."""
    lines = (line for line in dropin.splitlines() if line and not line.startswith("#"))
    return {key: value for key, _, value in (line.partition(" = ") for line in lines)}


def report(proc_sys: Path = Path("/proc/sys"), nofile: int | None = None) -> str:
    """Both drop-ins as they suit this machine, each line with what holds now; either part can be installed as it is.

    proc_sys: where the kernel shows its settings. nofile: the hard RLIMIT_NOFILE; None is this process's own.
    Uncommented are the safe lines and the ceilings, except those that would lower a value or are not on this kernel.
    """
    release = current_value(proc_sys, "kernel.osrelease") or "of an unknown version"
    parts = [f"# Linux {release}. Nothing was changed.\n\n{SYSCTL_HEAD}"]
    for group, lines in RECOMMENDED.items():
        parts.append(f"\n## {group.value}\n")
        for line in lines:
            mark, stands = _compared(line, current_value(proc_sys, line.key), group in (Group.SAFE, Group.RAISE))
            parts.append(_entry(line, mark, stands))
    limit = f"# now: {_limit(nofile)}\nhub - nofile {OPEN_FILES}\n"
    return "".join([*parts, SYSCTL_FOOT, "\n", LIMITS_HEAD, limit])


def records(proc_sys: Path = Path("/proc/sys")) -> list[dict[str, object]]:
    """What `report` says of each kernel setting, for programs; now: None where this kernel has it not."""
    found: list[dict[str, object]] = []
    for group, lines in RECOMMENDED.items():
        for line in lines:
            current = current_value(proc_sys, line.key)
            _, stands = _compared(line, current, group in (Group.SAFE, Group.RAISE))
            good = current is not None and _suffices(line, current)
            record = {"key": line.key, "now": current, "recommended": line.value, "suffices": good, "installed": stands}
            found.append({**record, "group": group.name.lower(), "reason": line.reason})
    return found


def _compared(line: Line, current: str | None, wanted: bool) -> tuple[str, bool]:
    """What holds now, in words, and whether the line stands."""
    if current is None:
        return "not on this kernel", False
    if current == line.value:
        return "already so", wanted
    if _suffices(line, current):
        change = "raise" if line.check is Check.AT_MOST else "lower"
        return f"already so: {current}, which this line would {change}", False
    return f"{current} → {line.value}", wanted


def _entry(line: Line, mark: str, stands: bool) -> str:
    """The reason, what holds now if it is known, and the assignment."""
    reason = textwrap.fill(line.reason, 118, initial_indent="# ", subsequent_indent="# ")
    now = f"# now: {mark}\n" if mark else ""
    return f"{reason}\n{now}{'' if stands else '# '}{line.setting}\n"


def current_value(proc_sys: Path, key: str) -> str | None:
    """The value in force with single spaces between numbers; None where the kernel has no such setting, or hides it."""
    try:
        return " ".join((proc_sys / key.replace(".", "/")).read_text().split())
    except OSError:
        return None


def _suffices(line: Line, current: str) -> bool:
    if line.check is Check.EQUAL:
        return current == line.value
    have, want = ([int(word) for word in text.split()] for text in (current, line.value))
    if line.check is Check.AT_MOST:
        return have[0] <= want[0]
    if line.check is Check.COVERS:
        return have[0] <= want[0] and have[1] >= want[1]
    return all(mine >= theirs for mine, theirs in zip(have, want, strict=True))


def _limit(nofile: int | None) -> str:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if nofile is None else nofile
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES:
        return "already so for this login"
    return f"{hard} → {OPEN_FILES}, for this login"
