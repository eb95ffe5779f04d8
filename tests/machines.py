"""Machines that are made up: as facts, for the rules, and as trees of /proc and /sys, for their reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hub.config import load
from hub.diagnosis import Case, Finding, Rule, Severity
from hub.machine import Machine, Nic
from hub.storefacts import StoreFacts

GIB = 2**30
SYSCTLS = {
    "fs.file-max": "9223372036854775807",
    "fs.nr_open": "1048576",
    "net.core.netdev_max_backlog": "16384",
    "net.core.rmem_max": "4194304",
    "net.core.somaxconn": "65535",
    "net.core.wmem_max": "4194304",
    "net.ipv4.ip_local_port_range": "10240 65535",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.ip_unprivileged_port_start": "1024",
    "net.ipv4.tcp_max_syn_backlog": "65535",
    "net.ipv4.tcp_mem": "1048576 1572864 2097152",
    "net.ipv4.tcp_migrate_req": "1",
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
    "vm.overcommit_memory": "1",
}
GOOD = Machine(
    release="6.1.0",
    nofile=1_048_576,
    files_open=2000,
    sysctls=SYSCTLS,
    cpus=8,
    memory=64 * GIB,
    memory_available=60 * GIB,
    swap=0,
    hugepages="madvise",
    clocksource="tsc",
    clocksources=("tsc", "hpet"),
    governors=frozenset({"performance"}),
    nics=(Nic("eth0", 8, False, frozenset(range(8))),),
)
"""Tuned, and large enough for 200,000."""
GOOD_STORE = StoreFacts(
    where="10.0.0.2:6379",
    asked=True,
    server="valkey",
    version="8.1.0",
    append_only=True,
    snapshots=False,
    policy="noeviction",
    maxmemory=8 * GIB,
    used=GIB,
    pubsub_limit=(268_435_456, 67_108_864, 60),
    max_clients=10_000,
    password=True,
    denied=(),
    ping_ms=0.2,
)
PUBLIC: dict[str, Any] = {"listen": ["0.0.0.0:8000"], "workers": 8}


def case_of(
    settings: dict[str, Any] | None = None,
    *,
    connections: int = 200_000,
    sysctls: dict[str, str | None] | None = None,
    machine: dict[str, Any] | None = None,
    store: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """The good one, with differences. sysctls: None takes one away; settings: over PUBLIC, tables as of TOML."""
    every = {**SYSCTLS, **(sysctls or {})}
    known = {key: value for key, value in every.items() if value is not None}
    facts = dataclasses.replace(GOOD, sysctls=known, **(machine or {}))
    checked = load(None).model_validate({**PUBLIC, **(settings or {})})
    return Case(facts, checked, connections, store=dataclasses.replace(GOOD_STORE, **(store or {})), **options)


def finding(rule: Rule, case: Case, name: str = "") -> Finding:
    """What the rule says, the one named so where it says several things."""
    found = [one for one in rule(case) if not name or one.rule == name]
    assert len(found) == 1, found
    return found[0]


def told(rule: Rule, case: Case) -> set[tuple[str, Severity]]:
    """Names and severities."""
    return {(one.rule, one.severity) for one in rule(case)}


LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 {nofile}               files
Max locked memory         8388608              8388608              bytes
"""
TREE = {
    "proc/self/limits": LIMITS.format(nofile=524_288),
    "proc/self/status": "Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t0-3,6\n",
    "proc/self/cgroup": "0::/system.slice/hub.service\n",
    "proc/sys/kernel/osrelease": "6.1.0-18-amd64",
    "proc/sys/fs/file-nr": "2976\t0\t9223372036854775807",
    "proc/sys/net/core/somaxconn": "4096",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
    "proc/meminfo": "MemTotal:       65536000 kB\nMemAvailable:   60000000 kB\nSwapTotal:       1024 kB\n",
    "proc/interrupts": (
        "           CPU0       CPU1\n"
        " 24:          1          0   PCI-MSI 524288-edge      eth0-rx-0\n"
        " 25:          1          0   PCI-MSI 524289-edge      eth0-rx-1\n"
        " 26:          1          0   PCI-MSI 524290-edge      eth01-rx-0\n"
        " 33:          0          0   PCI-MSIX-0000:00:05.0   1-edge      virtio4-input.0\n"
        "NMI:          0          0   Non-maskable interrupts\n"
    ),
    "proc/irq/24/smp_affinity_list": "0-7",
    "proc/irq/24/effective_affinity_list": "2",
    "proc/irq/25/smp_affinity_list": "5",
    "proc/irq/26/smp_affinity_list": "7",
    "proc/irq/33/smp_affinity_list": "0-1",
    "sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance",
    "sys/class/net/lo/queues/rx-0/rps_cpus": "0",
    "sys/class/net/eth0/queues/rx-0/rps_cpus": "00000000,00000000",
    "sys/class/net/eth0/queues/rx-1/rps_cpus": "00000000,00000000",
    "sys/class/net/eth0/device/vendor": "0x8086",
    "sys/class/net/ens5/queues/rx-0/rps_cpus": "00000000,0000000c",
    "sys/fs/cgroup/memory.max": "max",
    "sys/fs/cgroup/system.slice/memory.max": "34359738368",
    "sys/fs/cgroup/system.slice/memory.current": "1073741824",
    "sys/fs/cgroup/system.slice/hub.service/memory.max": "max",
    "sys/fs/cgroup/system.slice/hub.service/cpu.max": "350000 100000",
}
"""Of a machine with two cards, one of them virtual, and a service in control groups of version 2."""


def write_tree(root: Path, tree: dict[str, str]) -> Path:
    """The files of a tree below `root`, where proc/ and sys/ are then; the card ens5 is the device virtio4."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    if (root / "sys/class/net/ens5").exists():
        (root / "sys/devices/virtio4").mkdir(parents=True)
        (root / "sys/class/net/ens5/device").symlink_to(root / "sys/devices/virtio4")
    return root
