"""Kernelrules: what the kernel's limits and settings allow: descriptors, ports, queues, buffers, connection tracking.

Does: hold these rules, each from facts to findings.
Does not: read facts (machine) or know memory, CPUs and cards (hostrules) or Redis (storerules).
Called by: doctor.
Never break: a rule whose fact is missing says so; every fix is a line that can be copied as it stands.
A new rule needs its row in RULES and in the tests' table of machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import capacity
from .diagnosis import Case, Finding, Rule, Severity, is_local, unknown
from .machine import UNLIMITED
from .tune import OPEN_FILES
from .values import parse_address

CONNTRACK_SPARE = 1024
"""Flows of everything else."""
PAGE_BYTES = 4096
PORT_RANGE = "10240 65535"
PORTS_WHEN_TUNED = 55_000
"""In that range, without those that are reserved or taken."""


def _needed_files(case: Case) -> int:
    return capacity.limit_for(capacity.fullest(case.connections, case.workers), case.listeners)


def _bounded(case: Case, limit: int) -> int:
    """Connections of all workers with so many open files each."""
    return capacity.before_one_is_full(capacity.clients_of(limit, case.listeners), case.workers)


def open_files(case: Case) -> Iterator[Finding]:
    """RLIMIT_NOFILE, which bounds each worker's clients."""
    limit, needed = case.machine.nofile, _needed_files(case)
    if limit is None:
        yield unknown("open files", "The limit of open files (/proc/PID/limits)")
        return
    shown = "unlimited" if limit == UNLIMITED else f"{limit} for each worker"
    ceiling = _bounded(case, limit)
    if limit >= needed:
        yield Finding("open files", Severity.FINE, shown, f"{needed}", ceiling=ceiling)
        return
    all_of_them = capacity.clients_of(limit, case.listeners) * case.workers
    whose = "" if case.running else " This is the limit of this shell; --pid looks at a hub that runs."
    enough = max(needed, OPEN_FILES)
    yield Finding(
        "open files",
        Severity.BREAKS,
        shown,
        f"{needed}",
        f"A worker that is full answers 503; all {case.workers} together take {all_of_them}, and as the kernel spreads"
        f" clients by chance, the fullest is full from about {ceiling} on.{whose}",
        (f"sudo hub tune --apply --systemd --nofile {enough}", f"LimitNOFILE={enough}"),
        ceiling,
    )


def nr_open(case: Case) -> Iterator[Finding]:
    """What the limit of open files can be raised to."""
    most, needed = case.machine.number("fs.nr_open"), _needed_files(case)
    if most is None:
        yield unknown("fs.nr_open", "fs.nr_open")
        return
    bad = most < needed
    yield Finding(
        "fs.nr_open",
        Severity.BREAKS if bad else Severity.FINE,
        f"{most}",
        f"{needed}",
        "The limit of open files cannot be raised beyond it; more workers need less each." if bad else "",
        (f"sysctl -w fs.nr_open={_power_above(needed)}",) if bad else (),
        _bounded(case, most),
    )


def file_max(case: Case) -> Iterator[Finding]:
    """Open files of the whole machine."""
    most, used = case.machine.number("fs.file-max"), case.machine.files_open
    if most is None or used is None:
        yield unknown("fs.file-max", "fs.file-max or fs.file-nr")
        return
    own = case.workers * capacity.DESCRIPTORS
    needed = used + own + case.connections * case.sockets
    ceiling = max(0, (most - used - own) // case.sockets)
    shown = f"{most}, {used} open"
    if most >= needed:
        yield Finding("fs.file-max", Severity.FINE, shown, f"{needed}", ceiling=ceiling)
        return
    words = f"Open files of the whole machine, {case.sockets} for each client; beyond it nobody can open one."
    fix = (f"sysctl -w fs.file-max={_power_above(needed)}",)
    yield Finding("fs.file-max", Severity.BREAKS, shown, f"{needed}", words, fix, ceiling)


def conntrack(case: Case) -> Iterator[Finding]:
    """A table of connections that a firewall keeps; new ones are dropped when it is full."""
    most = case.machine.number("net.netfilter.nf_conntrack_max")
    if most is None:
        yield Finding("conntrack", Severity.FINE, "not loaded, or not readable")
        return
    count = case.machine.number("net.netfilter.nf_conntrack_count") or 0
    flows = 2 if case.behind_proxy else 1
    needed = case.connections * flows + CONNTRACK_SPARE
    shown = f"{most}, {count} tracked" if count else f"{most}, nothing is tracked now"
    # Loaded and empty: no rule of the firewall asks for tracking now, but the next one may.
    ceiling = max(0, (most - CONNTRACK_SPARE) // flows) if count else None
    if most >= needed:
        yield Finding("conntrack", Severity.FINE, shown, f"{needed}", ceiling=ceiling)
        return
    words = (
        "When the table is full, packets of new connections are dropped without a word but in the kernel's log. Better"
        " than a larger table is none for the hub's port, which the firewall then has to let through by its number."
    )
    fix = (
        f"sysctl -w net.netfilter.nf_conntrack_max={_power_above(needed)}",
        *(f"iptables -t raw -A PREROUTING -p tcp --dport {port} -j NOTRACK" for port in _tcp_ports(case)),
        *(f"iptables -t raw -A OUTPUT -p tcp --sport {port} -j NOTRACK" for port in _tcp_ports(case)),
    )
    severity = Severity.BREAKS if count else Severity.RISK
    yield Finding("conntrack", severity, shown, f"{needed}", words, fix, ceiling)


def proxy_ports(case: Case) -> Iterator[Finding]:
    """Where only this machine reaches a listener, something on it connects for the clients, from a port for each."""
    local = [address for address in case.public if address.port and is_local(address)]
    if not local or len(local) < len(case.public):
        return
    found, reserved = case.machine.numbers("net.ipv4.ip_local_port_range"), _reserved(case)
    if found is None or len(found) != 2:
        yield unknown("proxy ports", "net.ipv4.ip_local_port_range")
        return
    free = sum(port not in reserved for port in range(found[0], found[1] + 1))
    ceiling = free * len(local)
    shown = f"{free} ports for each of {len(local)} address{'es' if len(local) > 1 else ''}"
    if ceiling >= case.connections:
        yield Finding("proxy ports", Severity.FINE, shown, f"{case.connections}", ceiling=ceiling)
        return
    words = (
        "Every listener is on loopback, so a proxy of this machine connects for the clients, and each of its addresses"
        " has one port for each connection to one address of ours. More addresses, or Unix listeners, have no such"
        " bound."
    )
    more = _more_addresses(case, math.ceil(case.connections / PORTS_WHEN_TUNED))
    fix = (f"sysctl -w net.ipv4.ip_local_port_range='{PORT_RANGE}'", more)
    yield Finding("proxy ports", Severity.BREAKS, shown, f"{case.connections}", words, fix, ceiling)


def _more_addresses(case: Case, count: int) -> str:
    port = next(address.port for address in case.public if address.port)
    some = ", ".join(f'"127.0.0.{number}:{port}"' for number in range(1, min(count, 8) + 1))
    return f"listen = [{some}{', …' if count > 8 else ''}]"


def own_ports(case: Case) -> Iterator[Finding]:
    """The ports that the hub listens on: free, allowed, and not given to somebody else's outgoing connection."""
    span = case.machine.numbers("net.ipv4.ip_local_port_range")
    lowest = case.machine.number("net.ipv4.ip_unprivileged_port_start")
    reserved = _reserved(case)
    for text in dict.fromkeys([*case.settings.listen, *case.settings.internal]):
        problem, port = case.ports.get(text, ""), parse_address(text).port
        if problem and not (case.running and problem.startswith("in use")):
            yield _taken(text, problem)
        elif port and lowest is not None and port < lowest and case.root and not case.running:
            yield _privileged(text, port, lowest)
        elif span and len(span) == 2 and span[0] <= port <= span[1] and port not in reserved:
            yield Finding(
                f"port {port}",
                Severity.RISK,
                f"in ip_local_port_range {span[0]}-{span[1]}",
                "reserved",
                "An outgoing connection of any program may hold it when the hub starts, which then does not.",
                (f"sysctl -w net.ipv4.ip_local_reserved_ports={_reserving(case, port)}",),
            )
        else:
            yield Finding(f"listener {text}", Severity.FINE, "free" if not problem else "in use by the hub")


def _taken(text: str, problem: str) -> Finding:
    if problem.startswith("in use"):
        words = "Right if it is this hub that runs there (look at it with --pid); else it does not start."
        return Finding(f"listener {text}", Severity.RISK, problem, "free", words, ("ss -ltnp",))
    return Finding(
        f"listener {text}",
        Severity.BREAKS,
        problem,
        "free",
        "The hub does not start.",
        (_unprivileged(parse_address(text).port),) if problem.startswith("not permitted") else (),
        0,
    )


def _privileged(text: str, port: int, lowest: int) -> Finding:
    return Finding(
        f"listener {text}",
        Severity.RISK,
        f"port {port} is below {lowest}",
        "the right to it",
        "Root may listen there, the hub's service as it stands may not; or systemd hands it sockets (hub-http@.socket,"
        " hub-https@.socket).",
        (_unprivileged(port),),
    )


def _unprivileged(port: int) -> str:
    # And no capability: the service's own user namespace (PrivateUsers=) has none that the kernel would ask for.
    return f"sysctl -w net.ipv4.ip_unprivileged_port_start={port}"


def tcp_memory(case: Case) -> Iterator[Finding]:
    """Pages for all TCP buffers of the machine."""
    pages = case.machine.numbers("net.ipv4.tcp_mem")
    if pages is None or len(pages) != 3:
        yield unknown("net.ipv4.tcp_mem", "net.ipv4.tcp_mem")
        return
    needed = case.connections * (2 if case.behind_proxy else 1)
    bad = pages[2] < needed
    yield Finding(
        "net.ipv4.tcp_mem",
        Severity.RISK if bad else Severity.FINE,
        f"{pages[2]} pages, {pages[2] * PAGE_BYTES // 2**20} MiB",
        f"{needed} pages",
        "A message to all of them holds a page or more for each until it is acknowledged; beyond this the kernel drops."
        if bad
        else "",
        (f"sysctl -w net.ipv4.tcp_mem='{needed} {needed + needed // 2} {needed * 2}'",) if bad else (),
    )


class Value(NamedTuple):
    """A setting of the kernel that is one number. needed: what is enough at these connections; exact: no other is."""

    key: str
    needed: Callable[[Case], int]
    worse: Severity
    text: str
    exact: bool = False


VALUES = (
    Value(
        "net.core.somaxconn",
        lambda case: min(case.settings.tcp.backlog, math.ceil(case.connections / case.workers)),
        Severity.RISK,
        "When all come back at once, those beyond a listener's queue wait for a second or more to try again.",
    ),
    Value(
        "net.ipv4.tcp_max_syn_backlog",
        lambda case: min(65_535, math.ceil(case.connections / case.workers)),
        Severity.RISK,
        "The same for handshakes of TCP that are under way.",
    ),
    Value("net.ipv4.tcp_syncookies", lambda _: 1, Severity.RISK, "Without it a full queue lets nobody in."),
    Value(
        "net.ipv4.tcp_migrate_req",
        lambda _: 1,
        Severity.ADVICE,
        "Connections queued at a listener that closes are reset instead of moved to another one (since Linux 5.14).",
    ),
    Value(
        "net.ipv4.tcp_slow_start_after_idle",
        lambda _: 0,
        Severity.ADVICE,
        "A burst after silence starts with a small window again.",
        exact=True,
    ),
    Value(
        "net.core.netdev_max_backlog",
        lambda case: 16_384 if case.behind_proxy else 1000,
        Severity.ADVICE,
        "Packets that wait for a CPU; a proxy's bursts over loopback overflow it.",
    ),
    Value(
        "net.core.wmem_max",
        lambda case: case.settings.tcp.send_buffer_bytes,
        Severity.ADVICE,
        "tcp.send_buffer_bytes is capped at it.",
    ),
    Value(
        "net.core.rmem_max",
        lambda case: case.settings.tcp.receive_buffer_bytes,
        Severity.ADVICE,
        "tcp.receive_buffer_bytes is capped at it.",
    ),
)


def values(case: Case) -> Iterator[Finding]:
    """One finding for each row of VALUES."""
    for row in VALUES:
        found, needed = case.machine.number(row.key), row.needed(case)
        if found is None:
            yield unknown(row.key, row.key)
        elif found == needed or (found > needed and not row.exact):
            yield Finding(row.key, Severity.FINE, f"{found}", f"{needed}")
        else:
            yield Finding(row.key, row.worse, f"{found}", f"{needed}", row.text, (f"sysctl -w {row.key}={needed}",))


def buffers(case: Case) -> Iterator[Finding]:
    """The automatic sizes: of the sockets that are not the hub's clients'."""
    for key in ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"):
        text = case.machine.sysctls.get(key)
        if text is None:
            yield unknown(key, key)
        else:
            yield Finding(key, Severity.FINE, text, "any: the hub sets its clients' buffers itself")


def _reserved(case: Case) -> frozenset[int]:
    """net.ipv4.ip_local_reserved_ports, such as '8000,9000-9010'."""
    ports: set[int] = set()
    for part in case.machine.sysctls.get("net.ipv4.ip_local_reserved_ports", "").split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            ports.update(range(int(first), int(last or first) + 1))
    return frozenset(ports)


def _reserving(case: Case, port: int) -> str:
    """With what is reserved already, which the line would replace."""
    already = case.machine.sysctls.get("net.ipv4.ip_local_reserved_ports", "")
    return f"{already},{port}" if already else f"{port}"


def _tcp_ports(case: Case) -> list[int]:
    return sorted({address.port for address in case.public if address.port})


def _power_above(number: int) -> int:
    """A round figure with room above it."""
    return 1 << max(0, number).bit_length()


RULES: tuple[Rule, ...] = (
    open_files,
    nr_open,
    file_max,
    conntrack,
    proxy_ports,
    own_ports,
    tcp_memory,
    values,
    buffers,
)
