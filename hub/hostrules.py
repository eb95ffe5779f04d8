"""Hostrules: what memory, CPUs, network cards and clocks of the machine, and the hub's own settings, allow.

Does: hold these rules, each from facts to findings.
Does not: read facts (machine) or know the kernel's limits (kernelrules) or Redis (storerules).
Called by: doctor.
Never break: a rule whose fact is missing says so; every fix is a line that can be copied as it stands.
A new rule needs its row in RULES and in the tests' table of machines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from . import capacity
from .diagnosis import Case, Finding, Rule, Severity, is_local, size, unknown
from .forwarded import Proxies

BUSY = 0.5
"""The part of a CPU that may go into heartbeats before messages have too little."""
STORM_S = 60.0
SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit", "xen"})
"""Those that are read by a system call and not in the process (vDSO)."""
FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
CARD_WORKERS = 4
"""From so many workers on one CPU for all of the network's work is the first to be full; on fewer, spreading it takes
from the workers what it gives."""


def memory(case: Case) -> Iterator[Finding]:
    """What idle clients take, in the hub and in the kernel."""
    room = case.machine.room
    if room is None:
        yield unknown("memory", "/proc/meminfo")
        return
    each = capacity.connection_bytes(case.wire, case.tls, case.sockets)
    needed = capacity.memory_for(case.connections, case.workers, each)
    ceiling = capacity.connections_in(room, case.workers, each)
    limited = case.machine.memory_limit is not None and room < (case.machine.memory_available or room + 1)
    where = "in its cgroup" if limited else "available"
    share = f"{case.workers} × {size(capacity.WORKER_BYTES)} + {case.connections} × {each} bytes"
    finding = Finding("memory", Severity.FINE, f"{size(room)} {where}", f"{size(needed)} ({share})", ceiling=ceiling)
    if room < needed:
        words = (
            f"{case.sockets * capacity.KERNEL_BYTES} bytes of each client are the kernel's. Without memory it ends"
            " processes; more machines with the same redis.url and redis.prefix share the clients."
        )
        fix = (f"MemoryMax={_mebibytes(needed * 5 // 4)}M",) if limited else ()
        finding = replace(finding, severity=Severity.BREAKS, text=words, fix=fix)
    yield finding


def memory_at_worst(case: Case) -> Iterator[Finding]:
    """With all buffers of the hub full, which its settings bound."""
    room, settings = case.machine.room, case.settings
    if room is None:
        return  # `memory` says so
    each = capacity.connection_bytes(case.wire, case.tls, case.sockets)
    worker = settings.worker
    full = worker.backlog_bytes + worker.batch_bytes + worker.ring_bytes + settings.redis.pending_bytes
    embedded = settings.embedded.maxmemory_mb * 2**20 if case.store.embedded and not case.running else 0
    needed = capacity.memory_for(case.connections, case.workers, each) + case.workers * full + embedded
    unsent = case.connections * settings.client.outbox_bytes
    bad = room < needed
    fits = max(1024, (room - (needed - case.workers * worker.backlog_bytes)) // case.workers)
    yield Finding(
        "memory at worst",
        Severity.RISK if bad else Severity.FINE,
        f"{size(room)} to be had",
        f"{size(needed)}",
        f"Slow readers may hold {size(unsent)} (client.outbox_bytes each), of which worker.backlog_bytes allows"
        f" {size(worker.backlog_bytes)} in each worker; with the other buffers full as well there is not enough memory."
        if bad
        else "",
        ("[worker]", f"backlog_bytes = {min(fits, worker.backlog_bytes)}") if bad else (),
    )


def processors(case: Case) -> Iterator[Finding]:
    """One worker uses one CPU at most."""
    cpus, quota, workers = case.machine.cpus, case.machine.cpu_quota, case.workers
    if cpus is None:
        yield unknown("CPUs", "The CPUs of the process (/proc/PID/status)")
        return
    shown = f"{workers} worker{'s' if workers > 1 else ''} on {cpus} CPU{'s' if cpus > 1 else ''}"
    if workers > cpus:
        words = "Workers that share a CPU wait for each other; more of them serve no more clients."
        yield Finding("CPUs", Severity.ADVICE, shown, f"workers ≤ {cpus}", words, ('workers = "auto"',))
    else:
        yield Finding("CPUs", Severity.FINE, shown, f"workers ≤ {cpus}")
    if quota is not None and quota < workers:
        words = "When it is used up, all workers stand still until the next period, some 0.1 s."
        fix = (f"CPUQuota={workers * 100}%", f"workers = {max(1, int(quota))}")
        yield Finding("CPU quota", Severity.RISK, f"{quota:g} CPUs", f"{workers} CPUs", words, fix)


def heartbeats(case: Case) -> Iterator[Finding]:
    """What clients cost that do nothing."""
    per_second = capacity.PING_S / case.settings.client.ping_interval_s
    share = case.connections / case.workers * per_second
    bad = Severity.BREAKS if share > 1 else Severity.RISK if share > BUSY else Severity.FINE
    enough_s = min(3600, round(case.connections / case.workers * capacity.PING_S / BUSY) + 1)
    yield Finding(
        "heartbeats",
        bad,
        f"{share:.0%} of each worker's CPU",
        f"≤ {BUSY:.0%}",
        "So much goes into pings, and is not there for messages." if bad is not Severity.FINE else "",
        ("[client]", f"ping_interval_s = {enough_s}") if bad is not Severity.FINE else (),
        int(case.workers / per_second),
    )


def storm(case: Case) -> Iterator[Finding]:
    """All clients come back, after a restart or a broken link."""
    per_worker = min(case.settings.worker.handshakes_per_s or capacity.HANDSHAKES_PER_S, capacity.HANDSHAKES_PER_S)
    seconds = case.connections / (case.workers * per_worker)
    found = f"{seconds:.0f} s until all are back" if seconds >= 1 else "all are back within a second"
    if seconds <= STORM_S:
        yield Finding("reconnect storm", Severity.FINE, found, f"≤ {STORM_S:.0f} s")
        return
    fix: tuple[str, ...] = ()
    if case.workers < (case.machine.cpus or 0):
        fix = ('workers = "auto"',)
    if per_worker < capacity.HANDSHAKES_PER_S:
        fix += ("[worker]", f"handshakes_per_s = {capacity.HANDSHAKES_PER_S}")
    words = "A worker takes so many handshakes as its CPU, or worker.handshakes_per_s, allows; more CPUs take more."
    yield Finding("reconnect storm", Severity.ADVICE, found, f"≤ {STORM_S:.0f} s", words, fix)


def polling(case: Case) -> Iterator[Finding]:
    """Socket.IO sessions that poll have no descriptor that would bound them."""
    if case.wire != "polling":
        return
    each = case.settings.socketio.polling_sessions
    ceiling = capacity.before_one_is_full(each, case.workers)
    bad = ceiling < case.connections
    needed = capacity.fullest(case.connections, case.workers)
    yield Finding(
        "polling sessions",
        Severity.BREAKS if bad else Severity.FINE,
        f"{each} in each worker",
        f"{needed}",
        "Beyond, clients are told to come again." if bad else "",
        ("[socketio]", f"polling_sessions = {needed}") if bad else (),
        ceiling,
    )


def addresses(case: Case) -> Iterator[Finding]:
    """Whoever shares one address shares what one address may have: all clients of a proxy that is not believed."""
    limits, rule = case.settings.limits, "one address"
    proxies = Proxies(case.settings.trusted_proxies)
    unbelieved = [one for one in case.public if one.host and is_local(one) and not proxies.trusts(one.host)]
    most, per_s = limits.ip_connections, case.workers * limits.ip_handshakes_per_s
    shown = f"{most} connections" if most else "any number of connections"
    if not unbelieved:
        shared = "enough for a NAT, and for a proxy that trusted_proxies does not name"
        yield Finding(rule, Severity.FINE, shown, shared)
        return
    # Where there is another way in, nobody knows how many take it.
    whole = len(unbelieved) == len(case.public)
    too_few = 0 < most < case.connections
    rates = [
        name
        for name, is_tight in (
            ("ip_connections", too_few),
            ("ip_handshakes_per_s", bool(per_s) and case.connections / per_s > STORM_S),
            ("ip_commands_per_s", bool(limits.ip_commands_per_s)),
            ("ip_bytes_per_s", bool(limits.ip_bytes_per_s)),
        )
        if is_tight
    ]
    ceiling = most if most and whole else None
    if not rates:
        yield Finding(rule, Severity.FINE, shown, f"{case.connections}", ceiling=ceiling)
        return
    trusted = dict.fromkeys([*case.settings.trusted_proxies, *(one.host for one in unbelieved)])
    yield Finding(
        rule,
        Severity.BREAKS if too_few and whole else Severity.RISK,
        shown,
        f"{case.connections}",
        f"All who come by {', '.join(one.bare for one in unbelieved)} have the address of a proxy on this machine that"
        f" trusted_proxies does not name: they share {', '.join(f'limits.{name}' for name in rates)}.",
        (f"trusted_proxies = {json.dumps(list(trusted))}",),
        ceiling,
    )


def cards(case: Case) -> Iterator[Finding]:
    """The kernel's work for the network, by queue and CPU."""
    cpus = case.machine.cpus or 1
    for nic in case.machine.nics:
        rule = f"network card {nic.name}"
        queues = f"{nic.queues} queue{'s' if nic.queues != 1 else ''}"
        where = f", interrupts on {len(nic.irq_cpus)} CPU{'s' if len(nic.irq_cpus) > 1 else ''}" if nic.irq_cpus else ""
        shown = f"{queues}{where}, RPS {'on' if nic.rps else 'off'}"
        narrow = nic.queues < 2 or (nic.irq_cpus is not None and len(nic.irq_cpus) < 2)
        if not narrow or nic.rps or min(case.workers, cpus) < CARD_WORKERS or case.behind_proxy:
            yield Finding(rule, Severity.FINE, shown)
            continue
        fix: tuple[str, ...] = (f"echo {_mask(cpus)} > /sys/class/net/{nic.name}/queues/rx-0/rps_cpus",)
        if nic.queues > 1:
            fix = (f"systemctl enable --now irqbalance  # or by hand: /proc/irq/*/smp_affinity_list of {nic.name}",)
        words = "One CPU does the kernel's work for all connections. Measure before and after."
        yield Finding(rule, Severity.ADVICE, shown, "several CPUs", words, fix)


def hugepages(case: Case) -> Iterator[Finding]:
    """Transparent huge pages."""
    found = case.machine.hugepages
    if found is None:
        yield unknown("huge pages", "/sys/kernel/mm/transparent_hugepage/enabled")
    elif found == "always":
        words = "Workers take up to 2 MiB where they need 4 KiB, and Redis stalls when it forks."
        fix = ("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",)
        yield Finding("huge pages", Severity.ADVICE, found, "madvise or never", words, fix)
    else:
        yield Finding("huge pages", Severity.FINE, found, "madvise or never")


def clock(case: Case) -> Iterator[Finding]:
    """What the time costs, which every loop turn asks for."""
    found, rule = case.machine.clocksource, "clock source"
    if found is None:
        yield unknown(rule, "The kernel's clock source")
    elif found in SLOW_CLOCKS:
        better = next((name for name in FAST_CLOCKS if name in case.machine.clocksources), None)
        words = "Each look at the clock is a system call, of a microsecond or more."
        place = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        fix = (f"echo {better} > {place}",) if better else ()
        yield Finding(rule, Severity.ADVICE, found, " or ".join(FAST_CLOCKS[:2]), words, fix)
    else:
        yield Finding(rule, Severity.FINE, found)


def governor(case: Case) -> Iterator[Finding]:
    """Whether CPUs that were idle are slow at first."""
    found = case.machine.governors
    if not found:
        yield Finding("CPU governor", Severity.FINE, "none is shown")
    elif found & {"powersave", "conservative"}:
        words = "A CPU that was idle is slow when the next message comes; with intel_pstate powersave is less bad."
        fix = ("cpupower frequency-set -g performance",)
        yield Finding("CPU governor", Severity.ADVICE, ", ".join(sorted(found)), "performance", words, fix)
    else:
        yield Finding("CPU governor", Severity.FINE, ", ".join(sorted(found)))


def swap(case: Case) -> Iterator[Finding]:
    """A worker whose memory is on disk stands still."""
    found = case.machine.swap
    if found is None:
        yield unknown("swap", "/proc/meminfo")
    elif found:
        words = "A page that has to come back from disk stops a worker, and all of its clients, for milliseconds."
        yield Finding("swap", Severity.ADVICE, size(found), "none for the hub", words, ("MemorySwapMax=0",))
    else:
        yield Finding("swap", Severity.FINE, "none")


def _mebibytes(number: int) -> int:
    return -(-number // 2**20)


def _mask(cpus: int) -> str:
    """All CPUs, in the groups of 32 bits that the kernel wants."""
    text = f"{(1 << cpus) - 1:x}"
    head = len(text) % 8
    groups = [text[:head]] * bool(head) + [text[at : at + 8] for at in range(head, len(text), 8)]
    return ",".join(groups)


RULES: tuple[Rule, ...] = (
    memory,
    memory_at_worst,
    processors,
    heartbeats,
    storm,
    polling,
    addresses,
    cards,
    hugepages,
    clock,
    governor,
    swap,
)
