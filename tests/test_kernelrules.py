"""Kernelrules: tables of machines, each with what its limits and settings break, at which number, and the way out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hub import capacity, kernelrules
from hub.diagnosis import Severity, diagnose
from hub.machine import UNLIMITED
from hub.tune import RECOMMENDED

from .machines import case_of, finding, told

BREAKS, RISK, ADVICE, UNKNOWN, FINE = Severity
LOOPBACK = {"listen": ["127.0.0.1:8000"]}


def test_a_tuned_machine_is_fine() -> None:
    """No rule finds anything at 200,000."""
    assert [one for one in diagnose(case_of(), kernelrules.RULES) if one.severity is not FINE] == []


@pytest.mark.parametrize("rule", kernelrules.RULES, ids=lambda rule: rule.__name__)
def test_a_machine_that_shows_nothing_is_no_error(rule: Any) -> None:
    """What is not readable is said, or is no question."""
    case = case_of(sysctls=dict.fromkeys(case_of().machine.sysctls), machine={"nofile": None, "files_open": None})
    assert {severity for _, severity in told(rule, case)} <= {UNKNOWN, FINE}


@pytest.mark.parametrize("key", sorted(case_of().machine.sysctls))
def test_nonsense_in_a_setting_is_no_error(key: str) -> None:
    """Another kernel may write it in another way."""
    for text in ("", "max", "1 2", "-", "1 2 3 4"):
        diagnose(case_of(sysctls={key: text}), kernelrules.RULES)


@pytest.mark.parametrize(
    ("nofile", "workers", "connections", "severity", "ceiling"),
    [
        (1024, 1, 933, BREAKS, 932),
        (1024, 1, 932, FINE, 932),
        (300, 1, 500, BREAKS, 208),
        (100, 1, 500, BREAKS, 22),
        (1_048_576, 8, 200_000, FINE, None),
        (20_000, 8, 200_000, BREAKS, None),
        (UNLIMITED, 8, 200_000, FINE, None),
        (None, 8, 200_000, UNKNOWN, None),
    ],
)
def test_open_files(
    nofile: int | None, workers: int, connections: int, severity: Severity, ceiling: int | None
) -> None:
    """Each worker's own; what it keeps for itself is taken off."""
    case = case_of({"workers": workers}, connections=connections, machine={"nofile": nofile})
    found = finding(kernelrules.open_files, case)
    assert found.severity is severity
    assert ceiling is None or found.ceiling == ceiling
    if severity is BREAKS:
        assert found.fix[1] == f"LimitNOFILE={max(1_048_576, int(found.needed))}"
        assert "--pid" in found.text


def test_the_needed_limit_ends_the_finding() -> None:
    """With exactly what it asks for, it is fine."""
    found = finding(kernelrules.open_files, case_of(machine={"nofile": 1024}))
    assert finding(kernelrules.open_files, case_of(machine={"nofile": int(found.needed)})).severity is FINE
    assert finding(kernelrules.open_files, case_of(machine={"nofile": int(found.needed) - 1})).severity is BREAKS
    assert "--pid" not in finding(kernelrules.open_files, case_of(machine={"nofile": 1024}, running=True)).text


@pytest.mark.parametrize(
    ("sysctls", "settings", "machine", "rule", "severity", "ceiling", "fix"),
    [
        ({"fs.nr_open": "20000"}, {}, {}, "nr_open", BREAKS, 156_978, "sysctl -w fs.nr_open=32768"),
        ({"fs.file-max": "100000"}, {}, {}, "file_max", BREAKS, 97_792, "sysctl -w fs.file-max=262144"),
        # A proxy has two sockets for each client of ours.
        ({"fs.file-max": "602207"}, LOOPBACK, {}, "file_max", BREAKS, 199_999, "sysctl -w fs.file-max=1048576"),
        ({"fs.file-max": "602208"}, LOOPBACK, {}, "file_max", FINE, 200_000, ""),
        (
            {"net.netfilter.nf_conntrack_max": "262144", "net.netfilter.nf_conntrack_count": "9"},
            {},
            {},
            "conntrack",
            FINE,
            261_120,
            "",
        ),
        (
            {"net.netfilter.nf_conntrack_max": "65536", "net.netfilter.nf_conntrack_count": "9"},
            {},
            {},
            "conntrack",
            BREAKS,
            64_512,
            "sysctl -w net.netfilter.nf_conntrack_max=262144",
        ),
        # Over loopback each connection to the proxy has another one behind it.
        (
            {"net.netfilter.nf_conntrack_max": "262144", "net.netfilter.nf_conntrack_count": "9"},
            LOOPBACK,
            {},
            "conntrack",
            BREAKS,
            130_560,
            "sysctl -w net.netfilter.nf_conntrack_max=524288",
        ),
        (
            {"net.netfilter.nf_conntrack_max": "65536", "net.netfilter.nf_conntrack_count": "0"},
            {},
            {},
            "conntrack",
            RISK,
            None,
            "sysctl -w net.netfilter.nf_conntrack_max=262144",
        ),
        ({"net.ipv4.tcp_mem": "100 200 199999"}, {}, {}, "tcp_memory", RISK, None, "net.ipv4.tcp_mem='200000"),
        ({"net.ipv4.tcp_mem": "100 200 200000"}, {}, {}, "tcp_memory", FINE, None, ""),
        ({}, LOOPBACK, {}, "proxy_ports", BREAKS, 55_296, 'listen = ["127.0.0.1:8000", "127.0.0.2:8000", "127.0.0.3'),
        (
            {"net.ipv4.ip_local_reserved_ports": "10240-10249,20000"},
            LOOPBACK,
            {},
            "proxy_ports",
            BREAKS,
            55_285,
            "sysctl -w net.ipv4.ip_local_port_range='10240 65535'",
        ),
        (
            {},
            {"listen": [f"127.0.0.{number}:8000" for number in range(1, 5)]},
            {},
            "proxy_ports",
            FINE,
            4 * 55_296,
            "",
        ),
    ],
)
def test_ceilings_of_the_kernel(
    sysctls: dict[str, str],
    settings: dict[str, Any],
    machine: dict[str, Any],
    rule: str,
    severity: Severity,
    ceiling: int | None,
    fix: str,
) -> None:
    """At 200,000 connections on 8 workers."""
    found = finding(getattr(kernelrules, rule), case_of(settings, sysctls=sysctls, machine=machine))
    assert (found.severity, found.ceiling) == (severity, ceiling)
    assert any(fix in line for line in found.fix) if fix else found.fix == ()


@pytest.mark.parametrize("settings", [{"listen": ["unix:/run/hub.sock"]}, {"listen": ["127.0.0.1:1", "10.0.0.1:1"]}])
def test_only_a_hub_that_all_reach_over_loopback_has_proxy_ports(settings: dict[str, Any]) -> None:
    assert list(kernelrules.proxy_ports(case_of(settings))) == []


@pytest.mark.parametrize(
    ("key", "value", "severity"),
    [
        ("net.core.somaxconn", "4096", RISK),
        ("net.core.somaxconn", "24999", RISK),
        ("net.core.somaxconn", "25000", FINE),  # 200,000 on 8 workers, all at once
        ("net.ipv4.tcp_max_syn_backlog", "2048", RISK),
        ("net.ipv4.tcp_syncookies", "0", RISK),
        ("net.ipv4.tcp_syncookies", "2", FINE),
        ("net.ipv4.tcp_migrate_req", "0", ADVICE),
        ("net.ipv4.tcp_migrate_req", None, UNKNOWN),
        ("net.ipv4.tcp_slow_start_after_idle", "1", ADVICE),
        ("net.core.netdev_max_backlog", "999", ADVICE),
        ("net.core.wmem_max", "100000", ADVICE),
        ("net.core.rmem_max", "10000", ADVICE),
        ("net.ipv4.tcp_rmem", None, UNKNOWN),
    ],
)
def test_settings_that_are_one_number(key: str, value: str | None, severity: Severity) -> None:
    """And the line that mends it does."""
    case = case_of(sysctls={key: value})
    rule = kernelrules.buffers if "rmem" in key and "tcp_" in key else kernelrules.values
    found = finding(rule, case, key)
    assert found.severity is severity
    if found.fix:
        match = re.fullmatch(r"sysctl -w (\S+)=(\d+)", found.fix[0])
        assert match and match[1] == key
        assert finding(rule, case_of(sysctls={key: match[2]}), key).severity is FINE


def test_what_tune_recommends_for_every_machine_is_enough_here() -> None:
    """A machine with its lines has no finding of these rules at any number below a million."""
    lines = {line.key: line.value for group in list(RECOMMENDED)[:3] for line in RECOMMENDED[group]}
    lines |= {"net.netfilter.nf_conntrack_count": "5"}
    for connections in (1000, 100_000, 900_000):
        case = case_of(connections=connections, sysctls=lines)
        bad = [one for one in diagnose(case, kernelrules.RULES) if one.severity is not FINE]
        assert bad == [], connections


@pytest.mark.parametrize(
    ("ports", "sysctls", "options", "name", "severity", "fix"),
    [
        ({"0.0.0.0:8000": "in use by a process"}, {}, {}, "listener 0.0.0.0:8000", RISK, "ss -ltnp"),
        ({"0.0.0.0:8000": "in use by a process"}, {}, {"running": True}, "listener 0.0.0.0:8000", FINE, ""),
        ({"0.0.0.0:8000": "this machine has no such address"}, {}, {}, "listener 0.0.0.0:8000", BREAKS, ""),
        (
            {"0.0.0.0:8000": "not permitted to this user"},
            {},
            {},
            "listener 0.0.0.0:8000",
            BREAKS,
            "sysctl -w net.ipv4.ip_unprivileged_port_start=8000",
        ),
        (
            {},
            {"net.ipv4.ip_unprivileged_port_start": "8001"},
            {"root": True},
            "listener 0.0.0.0:8000",
            RISK,
            "sysctl -w net.ipv4.ip_unprivileged_port_start=8000",
        ),
        ({}, {"net.ipv4.ip_unprivileged_port_start": "8001"}, {}, "listener 0.0.0.0:8000", FINE, ""),
        (
            {},
            {"net.ipv4.ip_local_port_range": "8000 9000", "net.ipv4.ip_local_reserved_ports": "99"},
            {},
            "port 8000",
            RISK,
            "sysctl -w net.ipv4.ip_local_reserved_ports=99,8000",
        ),
        (
            {},
            {"net.ipv4.ip_local_port_range": "8000 9000", "net.ipv4.ip_local_reserved_ports": "7000-8000"},
            {},
            "listener 0.0.0.0:8000",
            FINE,
            "",
        ),
    ],
)
def test_own_ports(
    ports: dict[str, str],
    sysctls: dict[str, str | None],
    options: dict[str, Any],
    name: str,
    severity: Severity,
    fix: str,
) -> None:
    """Free, allowed to the service, and nobody else's by chance."""
    found = finding(kernelrules.own_ports, case_of(sysctls=sysctls, ports=ports, **options), name)
    assert found.severity is severity
    assert fix in found.fix if fix else found.fix == ()


def test_one_more_worker_with_the_same_limit_holds_more() -> None:
    """Which the text of a limit that cannot be raised says."""
    ceilings = [
        finding(kernelrules.open_files, case_of({"workers": workers}, machine={"nofile": 5000})).ceiling or 0
        for workers in (1, 2, 4, 8)
    ]
    assert ceilings == sorted(ceilings) and ceilings[0] == 5000 - 64 - capacity.DESCRIPTORS - 2
