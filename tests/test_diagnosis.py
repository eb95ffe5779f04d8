"""Diagnosis: the order of findings, the number that a machine holds, and what a case knows of its settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hub.diagnosis import Case, Finding, Severity, diagnose, holds, size, unknown

from .machines import case_of

TLS = {"certificates": [{"cert": "cert.pem", "key": "key.pem"}]}


def one(name: str, severity: Severity, ceiling: int | None = None) -> Finding:
    return Finding(name, severity, "found", ceiling=ceiling)


def test_findings_are_sorted_worst_first() -> None:
    """Of those that break, the one that breaks first; of all rules together."""

    def some(case: Case) -> Iterator[Finding]:
        yield one("fine", Severity.FINE, 10)
        yield one("late", Severity.BREAKS, 5000)
        yield one("advice", Severity.ADVICE)

    def others(case: Case) -> Iterator[Finding]:
        yield unknown("dark", "It")
        yield one("whenever", Severity.BREAKS)
        yield one("early", Severity.BREAKS, 100)
        yield one("risk", Severity.RISK)

    found = diagnose(case_of(), (some, others))
    assert [each.rule for each in found] == ["early", "late", "whenever", "risk", "advice", "dark", "fine"]
    assert holds(found) == one("fine", Severity.FINE, 10)
    assert holds([one("x", Severity.RISK)]) is None


@pytest.mark.parametrize(
    ("settings", "behind_proxy", "sockets", "listeners", "tls"),
    [
        ({"listen": ["0.0.0.0:8000"]}, False, 1, 2, False),
        ({"listen": ["127.0.0.1:8000"]}, True, 3, 2, False),
        ({"listen": ["unix:/run/hub/a.sock", "[::1]:80"], "internal": []}, True, 3, 2, False),
        ({"listen": ["127.0.0.1:8000", "10.0.0.1:8000"]}, False, 1, 3, False),
        ({"listen": ["127.0.0.1:8000"], "internal": ["127.0.0.1:8000"]}, True, 3, 1, False),
        ({"listen": ["tls:127.0.0.1:443"], "tls": TLS}, True, 3, 2, True),
        ({"listen": ["systemd:http", "tls:systemd:https"], "tls": TLS}, False, 1, 3, True),
        ({"listen": ["127.0.0.1:0", "127.0.0.1:0"], "internal": ["127.0.0.1:0"]}, True, 3, 3, False),
    ],
)
def test_what_the_addresses_mean(settings: dict, behind_proxy: bool, sockets: int, listeners: int, tls: bool) -> None:
    """Clients of a hub on loopback come through something on the machine, which has two sockets for each."""
    case = case_of(settings)
    assert (case.behind_proxy, case.sockets, case.listeners, case.tls) == (behind_proxy, sockets, listeners, tls)


def test_workers_are_one_for_each_cpu_of_the_machine_that_is_looked_at() -> None:
    assert case_of({"workers": "auto"}, machine={"cpus": 12}).workers == 12
    assert case_of({"workers": 3}, machine={"cpus": 12}).workers == 3


@pytest.mark.parametrize(
    ("number", "text"),
    [(12, "12 bytes"), (4096, "4.0 KiB"), (1_572_864, "1.5 MiB"), (2**40, "1024.0 GiB")],
)
def test_sizes_are_read_by_people(number: int, text: str) -> None:
    assert size(number) == text
