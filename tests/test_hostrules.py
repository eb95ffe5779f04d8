"""Hostrules: tables of machines, each with what its memory, CPUs, cards and clocks break or slow, and the way out."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from hub import capacity, hostrules
from hub.diagnosis import Severity, diagnose
from hub.machine import Nic

from .machines import GIB, case_of, finding, told

BREAKS, RISK, ADVICE, UNKNOWN, FINE = Severity
LOOPBACK = {"listen": ["127.0.0.1:8000"]}
EMPTY = {
    "cpus": None,
    "memory": None,
    "memory_available": None,
    "swap": None,
    "hugepages": None,
    "clocksource": None,
    "governors": frozenset(),
    "nics": (),
}


def test_a_large_machine_is_fine() -> None:
    assert [one for one in diagnose(case_of(), hostrules.RULES) if one.severity is not FINE] == []


@pytest.mark.parametrize("rule", hostrules.RULES, ids=lambda rule: rule.__name__)
def test_a_machine_that_shows_nothing_is_no_error(rule: Any) -> None:
    assert {severity for _, severity in told(rule, case_of(machine=EMPTY))} <= {UNKNOWN, FINE}


@pytest.mark.parametrize(
    ("machine", "settings", "options", "severity", "fix"),
    [
        ({"memory_available": GIB}, {}, {}, BREAKS, ""),
        ({"memory_available": 2 * GIB}, {}, {}, FINE, ""),
        ({"memory_available": 2 * GIB}, LOOPBACK, {}, BREAKS, ""),  # the proxy's sockets, too
        ({"memory_available": 2 * GIB}, {}, {"wire": "polling"}, BREAKS, ""),
        ({"memory_limit": GIB}, {}, {}, BREAKS, "MemoryMax="),
        ({"memory_limit": 8 * GIB, "memory_limit_used": 7 * GIB}, {}, {}, BREAKS, "MemoryMax="),
        ({"memory_limit": 8 * GIB}, {}, {}, FINE, ""),
    ],
)
def test_memory(
    machine: dict[str, Any], settings: dict[str, Any], options: dict[str, Any], severity: Severity, fix: str
) -> None:
    """What 200,000 idle clients take: their state in eight workers, and the kernel's sockets."""
    found = finding(hostrules.memory, case_of(settings, machine=machine, **options))
    assert found.severity is severity
    assert [line[: len(fix)] for line in found.fix] == ([fix] if fix else [])


def test_the_memory_that_is_asked_for_is_enough() -> None:
    """At the ceiling it is fine, one connection beyond it is not."""
    found = finding(hostrules.memory, case_of(machine={"memory_available": GIB}))
    assert found.ceiling == (GIB - 8 * capacity.WORKER_BYTES) // (1710 + 4096)
    for connections, severity in ((found.ceiling, FINE), (found.ceiling + 1, BREAKS)):
        again = finding(hostrules.memory, case_of(connections=connections, machine={"memory_available": GIB}))
        assert again.severity is severity
    exact = capacity.memory_for(200_000, 8, capacity.connection_bytes("websocket", tls=False))
    for room, severity in ((exact, FINE), (exact - 1, BREAKS)):
        assert finding(hostrules.memory, case_of(machine={"memory_available": room})).severity is severity


@pytest.mark.parametrize(
    ("settings", "connections", "severity", "ceiling", "shared"),
    [
        ({}, 200_000, FINE, None, ()),
        (LOOPBACK, 200_000, FINE, None, ()),  # believed unless the settings say otherwise
        ({**LOOPBACK, "trusted_proxies": ["127.0.0.1"]}, 200_000, FINE, None, ()),
        ({"listen": ["unix:/run/hub.sock"], "trusted_proxies": []}, 200_000, FINE, None, ()),  # of no address
        ({**LOOPBACK, "trusted_proxies": []}, 200_000, BREAKS, 1000, ("ip_connections", "ip_handshakes_per_s")),
        ({**LOOPBACK, "trusted_proxies": ["10.0.0.0/8"]}, 1001, BREAKS, 1000, ("ip_connections",)),
        ({**LOOPBACK, "trusted_proxies": []}, 1000, FINE, 1000, ()),
        ({"listen": ["127.0.0.1:1", "0.0.0.0:2"], "trusted_proxies": []}, 1001, RISK, None, ("ip_connections",)),
        (
            {**LOOPBACK, "trusted_proxies": [], "limits": {"ip_connections": 0}},
            200_000,
            RISK,
            None,
            ("ip_handshakes_per_s",),
        ),
        (
            {**LOOPBACK, "trusted_proxies": [], "limits": {"ip_commands_per_s": 1, "ip_bytes_per_s": 1}},
            100,
            RISK,
            1000,
            ("ip_commands_per_s", "ip_bytes_per_s"),
        ),
    ],
)
def test_clients_behind_a_proxy_that_is_not_believed_are_one(
    settings: dict[str, Any], connections: int, severity: Severity, ceiling: int | None, shared: tuple[str, ...]
) -> None:
    """They share what one address may have; the line to copy mends it, and takes no other proxy away."""
    found = finding(hostrules.addresses, case_of(settings, connections=connections))
    assert (found.severity, found.ceiling) == (severity, ceiling)
    assert not shared or found.text.endswith(f"share {', '.join(f'limits.{name}' for name in shared)}.")
    if found.fix:
        mended = {**settings, **tomllib.loads(found.fix[0])}
        assert set(settings["trusted_proxies"]) < set(mended["trusted_proxies"])
        assert finding(hostrules.addresses, case_of(mended, connections=connections)).severity is FINE


def test_all_buffers_full_are_a_risk_that_a_setting_bounds() -> None:
    """With the figure that it names there is enough memory."""
    machine = {"memory_available": 4 * GIB}
    found = finding(hostrules.memory_at_worst, case_of(machine=machine))
    assert found.severity is RISK and "client.outbox_bytes" in found.text and found.fix[0] == "[worker]"
    name, _, value = found.fix[1].partition(" = ")
    assert name == "backlog_bytes"
    mended = case_of({"worker": {"backlog_bytes": int(value)}}, machine=machine)
    assert finding(hostrules.memory_at_worst, mended).severity is FINE


def test_the_private_valkey_takes_its_share() -> None:
    """Of the worst case, while it does not run yet."""
    machine, settings = {"memory_available": 7 * GIB}, {"embedded": {"maxmemory_mb": 4096}}
    assert finding(hostrules.memory_at_worst, case_of(settings, machine=machine)).severity is FINE
    embedded = case_of(settings, machine=machine, store={"embedded": True})
    assert finding(hostrules.memory_at_worst, embedded).severity is RISK


@pytest.mark.parametrize(
    ("workers", "machine", "expected"),
    [
        (8, {"cpus": 8}, {("CPUs", FINE)}),
        (8, {"cpus": 4}, {("CPUs", ADVICE)}),
        ("auto", {"cpus": 4}, {("CPUs", FINE)}),
        (2, {"cpu_quota": 1.5}, {("CPUs", FINE), ("CPU quota", RISK)}),
        (2, {"cpu_quota": 2.0}, {("CPUs", FINE)}),
        (2, {"cpus": None}, {("CPUs", UNKNOWN)}),
    ],
)
def test_processors(workers: Any, machine: dict[str, Any], expected: set[tuple[str, Severity]]) -> None:
    assert told(hostrules.processors, case_of({"workers": workers}, machine=machine)) == expected


@pytest.mark.parametrize(
    ("connections", "workers", "interval_s", "severity"),
    [
        (15_000, 1, 25, FINE),
        (400_000, 1, 25, RISK),
        (700_000, 1, 25, BREAKS),
        (700_000, 8, 25, FINE),
        (15_000, 1, 1.5, FINE),
        (30_000, 1, 1.5, RISK),
    ],
)
def test_heartbeats(connections: int, workers: int, interval_s: float, severity: Severity) -> None:
    """Idle clients cost CPU time, at 42 µs a ping; the interval that is proposed is long enough."""
    client = {"ping_interval_s": interval_s, "pong_timeout_s": 1.0}
    found = finding(hostrules.heartbeats, case_of({"workers": workers, "client": client}, connections=connections))
    assert found.severity is severity
    assert (severity is BREAKS) == (found.ceiling is not None and found.ceiling < connections)
    if found.fix:
        client["ping_interval_s"] = float(found.fix[1].partition(" = ")[2])
        again = case_of({"workers": workers, "client": client}, connections=connections)
        assert finding(hostrules.heartbeats, again).severity is FINE


@pytest.mark.parametrize(
    ("connections", "per_s", "severity", "found"),
    [
        (200_000, 10_000, FINE, "3 s until all are back"),
        (1000, 0, FINE, "all are back within a second"),
        (8_000_000, 0, ADVICE, "133 s until all are back"),
        (200_000, 100, ADVICE, "250 s until all are back"),
    ],
)
def test_a_reconnect_storm(connections: int, per_s: int, severity: Severity, found: str) -> None:
    """The setting, or the CPUs, whichever is less."""
    one = finding(hostrules.storm, case_of({"worker": {"handshakes_per_s": per_s}}, connections=connections))
    assert (one.severity, one.found) == (severity, found)


@pytest.mark.parametrize(
    ("per_s", "cpus", "fix"),
    [
        (10_000, 8, ()),  # only more CPUs help
        (100, 8, ("[worker]", "handshakes_per_s = 7500")),
        (0, 32, ('workers = "auto"',)),
        (100, None, ("[worker]", "handshakes_per_s = 7500")),
    ],
)
def test_a_storm_is_shortened_by_what_makes_it_long(per_s: int, cpus: int | None, fix: tuple[str, ...]) -> None:
    case = case_of({"worker": {"handshakes_per_s": per_s}}, connections=8_000_000, machine={"cpus": cpus})
    assert finding(hostrules.storm, case).fix == fix


def test_polling_sessions_have_a_bound_of_their_own() -> None:
    """For that wire alone; the needed number is enough."""
    settings = {"socketio": {"polling_sessions": 1000}}
    assert list(hostrules.polling(case_of(settings))) == []
    found = finding(hostrules.polling, case_of(settings, wire="polling"))
    assert found.severity is BREAKS and found.ceiling is not None and 7000 < found.ceiling < 8000
    enough = {"socketio": {"polling_sessions": int(found.needed)}}
    assert finding(hostrules.polling, case_of(enough, wire="polling")).severity is FINE


@pytest.mark.parametrize(
    ("nic", "settings", "cpus", "severity", "fix"),
    [
        (Nic("eth0", 8, False, frozenset(range(8))), {}, 8, FINE, ""),
        (Nic("eth0", 1, False, None), {}, 8, ADVICE, "echo ff > /sys/class/net/eth0/queues/rx-0/rps_cpus"),
        (Nic("eth0", 1, False, None), {"workers": 40}, 40, ADVICE, "echo ff,ffffffff > "),
        (Nic("eth0", 1, True, None), {}, 8, FINE, ""),
        (Nic("eth0", 8, False, frozenset({3})), {}, 8, ADVICE, "irqbalance"),
        (Nic("eth0", 8, False, None), {}, 8, FINE, ""),
        (Nic("eth0", 1, False, None), {}, 4, ADVICE, "echo f > /sys/class/net/eth0/queues/rx-0/rps_cpus"),
        (Nic("eth0", 1, False, None), {}, 3, FINE, ""),
        (Nic("eth0", 1, False, None), {}, 1, FINE, ""),
        (Nic("eth0", 1, False, None), {"workers": 1}, 8, FINE, ""),
        (Nic("eth0", 1, False, None), LOOPBACK, 8, FINE, ""),
    ],
)
def test_network_cards(nic: Nic, settings: dict[str, Any], cpus: int, severity: Severity, fix: str) -> None:
    """One queue, or one CPU for all of them, where several workers are served from it."""
    found = finding(hostrules.cards, case_of(settings, machine={"nics": (nic,), "cpus": cpus}))
    assert found.severity is severity
    assert fix in "".join(found.fix) if fix else found.fix == ()


@pytest.mark.parametrize(
    ("rule", "machine", "severity", "fix"),
    [
        ("hugepages", {"hugepages": "always"}, ADVICE, "echo madvise > "),
        ("hugepages", {"hugepages": "never"}, FINE, ""),
        ("clock", {"clocksource": "hpet"}, ADVICE, "echo tsc > "),
        ("clock", {"clocksource": "xen", "clocksources": ("xen", "kvm-clock")}, ADVICE, "echo kvm-clock > "),
        ("clock", {"clocksource": "acpi_pm", "clocksources": ("acpi_pm",)}, ADVICE, ""),
        ("clock", {"clocksource": "kvm-clock"}, FINE, ""),
        ("governor", {"governors": frozenset({"powersave", "performance"})}, ADVICE, "cpupower frequency-set -g perf"),
        ("governor", {"governors": frozenset({"schedutil"})}, FINE, ""),
        ("swap", {"swap": GIB}, ADVICE, "MemorySwapMax=0"),
        ("swap", {"swap": 0}, FINE, ""),
    ],
)
def test_what_slows_it(rule: str, machine: dict[str, Any], severity: Severity, fix: str) -> None:
    found = finding(getattr(hostrules, rule), case_of(machine=machine))
    assert found.severity is severity
    assert found.fix[0].startswith(fix) if fix else found.fix == ()
