"""Storerules: what the hub needs of its Redis or Valkey, and what of it is missing.

Does: hold these rules, each from facts to findings.
Does not: ask the server (storefacts).
Called by: doctor.
Never break: what the server did not tell is a finding that says so.
A new rule needs its row in RULES and in the tests' table of stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .diagnosis import Case, Finding, Rule, Severity, size, unknown
from .store import MAX_CONNECTIONS

OLDEST = {"redis": (7, 0), "valkey": (7, 2)}
"""What the tests run against; older ones lack commands of the scripts, or were not tried."""
CLIENTS_PER_WORKER = 4 * MAX_CONNECTIONS
"""A worker has several command clients, none of which fills its pool at the same time, and a subscriber."""
SLOW_MS = 5.0
KEPT = frozenset({"stream"})


def reachable(case: Case) -> Iterator[Finding]:
    """Whether it answers, and how soon."""
    facts = case.store
    if not facts.asked:
        if case.running and not facts.problem:
            yield unknown("Redis", "The hub's private Valkey, which only its own user and root reach,")
            return
        # The embedded one, with a hub that does not run.
        words = facts.problem
        severity = Severity.BREAKS if words else Severity.FINE
        fix = ("pip install 'hub[embedded]'",) if words else ()
        found = "not there" if words else "is started with the hub"
        yield Finding("Redis", severity, found, text=words, fix=fix, ceiling=0 if words else None)
        return
    if facts.problem:
        words = f"It does not answer ({facts.problem}): the hub does not start."
        yield Finding("Redis", Severity.BREAKS, f"no answer from {facts.where}", "an answer", words, ceiling=0)
        return
    slow = facts.ping_ms is not None and facts.ping_ms > SLOW_MS
    words = (
        "Every publish and subscription waits for it; it belongs into the same data centre, and on a CPU of its own."
    )
    yield Finding(
        "Redis latency",
        Severity.RISK if slow else Severity.FINE,
        f"{facts.ping_ms:.2f} ms a ping" if facts.ping_ms is not None else "",
        f"≤ {SLOW_MS:g} ms",
        words if slow else "",
        ("redis-cli --latency",) if slow else (),
    )


def version(case: Case) -> Iterator[Finding]:
    facts = case.store
    if not _answers(case):
        return
    found = re.match(r"(\d+)\.(\d+)", facts.version or "")
    if facts.server is None or found is None:
        yield unknown("Redis version", "The version (INFO)")
        return
    oldest = OLDEST[facts.server]
    old = (int(found[1]), int(found[2])) < oldest
    words = "The hub's scripts were not tried with it, and may fail."
    needed = f"{facts.server} ≥ {oldest[0]}.{oldest[1]}"
    shown = f"{facts.server} {facts.version}"
    yield Finding("Redis version", Severity.RISK if old else Severity.FINE, shown, needed, words if old else "")


def persistence(case: Case) -> Iterator[Finding]:
    """What a restart of Redis costs."""
    if not _answers(case):
        return
    rule, kept = "Redis persistence", _keeps(case)
    if case.store.append_only is None:
        yield unknown(rule, "aof_enabled (INFO)")
    elif case.store.append_only or not kept:
        shown = "append-only file" if case.store.append_only else "none, and nothing of the hub's has to last"
        yield Finding(rule, Severity.FINE, shown)
    else:
        shown = "snapshots only" if case.store.snapshots else "none"
        words = f"With a restart of Redis what {kept} hold is lost (and clients are told of it)."
        fix = ("redis-cli CONFIG SET appendonly yes", "appendonly yes")
        yield Finding(rule, Severity.RISK, shown, "append-only file", words, fix)


def eviction(case: Case) -> Iterator[Finding]:
    """What happens when its memory is full."""
    facts = case.store
    if not _answers(case):
        return
    if facts.policy is None or facts.maxmemory is None:
        yield unknown("Redis eviction", "maxmemory_policy (INFO)")
        return
    bound = size(facts.maxmemory) if facts.maxmemory else "no bound"
    shown = f"{facts.policy}, {bound}"
    if facts.policy != "noeviction" and (facts.maxmemory or facts.local):
        words = (
            "A full Redis throws away messages that are kept: of channels clients are told, of mailboxes they are gone."
        )
        fix = ("redis-cli CONFIG SET maxmemory-policy noeviction", "maxmemory-policy noeviction")
        yield Finding("Redis eviction", Severity.RISK, shown, "noeviction", words, fix)
    elif not facts.maxmemory and facts.local:
        words = "It may take all memory of the machine that it shares with the hub."
        fix = ("redis-cli CONFIG SET maxmemory 2gb", "maxmemory 2gb")
        yield Finding("Redis eviction", Severity.RISK, shown, "a bound", words, fix)
    else:
        yield Finding("Redis eviction", Severity.FINE, shown, "noeviction")
    yield from _room(case)
    mail = case.settings.mailbox.total_bytes if _mailboxes(case) else 0
    if facts.maxmemory and mail > facts.maxmemory // 2:
        words = "Mailboxes alone may fill half of Redis, and then every publish that is kept fails."
        fix = ("[mailbox]", f"total_bytes = {facts.maxmemory // 2}")
        yield Finding("mailboxes", Severity.RISK, size(mail), f"≤ {size(facts.maxmemory // 2)}", words, fix)


def _room(case: Case) -> Iterator[Finding]:
    """Whether publications that are kept are refused now, or will be soon."""
    facts, percent = case.store, case.settings.redis.full_percent
    if not (facts.used and facts.maxmemory and percent) or facts.policy != "noeviction":
        return
    most = facts.maxmemory * percent // 100
    if facts.used > most:
        words = 'Publications that are kept are refused ("the store is full"): something fills it, or it is too small.'
        fix = ("redis-cli --bigkeys", f"redis-cli CONFIG SET maxmemory {2 * facts.maxmemory}")
        yield Finding("Redis memory", Severity.BREAKS, size(facts.used), f"≤ {size(most)}", words, fix)


def rights(case: Case) -> Iterator[Finding]:
    """What the hub's user may do, and whether everybody else may do it, too."""
    facts = case.store
    if not _answers(case):
        return
    if facts.denied is None:
        yield unknown("Redis rights", "What the hub's user may do (ACL DRYRUN, Redis 7)")
    elif facts.denied:
        some = " ".join(facts.denied[:6]) + (" …" if len(facts.denied) > 6 else "")
        prefix = case.settings.redis.prefix
        words = "What needs them fails as temporary, over and over."
        fix = (f"ACL SETUSER hub ~{prefix}:* &{prefix}:* {' '.join(f'+{name.lower()}' for name in facts.denied)}",)
        yield Finding("Redis rights", Severity.BREAKS, f"may not {some}", "all that the hub runs", words, fix, 0)
    else:
        yield Finding("Redis rights", Severity.FINE, "all that the hub runs")
    if facts.password is False and not facts.local:
        words = "Whoever reaches its port reads and writes everything."
        yield Finding("Redis password", Severity.RISK, "none", "one", words, ("requirepass …",))


def bounds(case: Case) -> Iterator[Finding]:
    """What Redis cuts off: subscribers that are behind, connections that are too many."""
    facts = case.store
    if not _answers(case):
        return
    needed = case.settings.worker.batch_bytes
    name = "client-output-buffer-limit pubsub"
    if facts.pubsub_limit is None:
        yield unknown("Redis subscribers", f"{name} (CONFIG)")
    else:
        hard, soft, seconds = facts.pubsub_limit
        bad = 0 < hard < needed or 0 < soft < needed // 4
        words = (
            "A worker that is behind by more, in a burst, loses its subscription, and all its clients are checked anew."
        )
        wanted = f"pubsub {needed} {needed // 4} 60"
        fix = (f"redis-cli CONFIG SET client-output-buffer-limit '{wanted}'", f"client-output-buffer-limit {wanted}")
        yield Finding(
            "Redis subscribers",
            Severity.ADVICE if bad else Severity.FINE,
            f"{name} {hard} {soft} {seconds}",
            f"≥ {needed} {needed // 4} (worker.batch_bytes)",
            words if bad else "",
            fix if bad else (),
        )
    connections = case.workers * CLIENTS_PER_WORKER
    if facts.max_clients is None:
        yield unknown("Redis clients", "maxclients (INFO)")
        return
    few = facts.max_clients < connections
    yield Finding(
        "Redis clients",
        Severity.RISK if few else Severity.FINE,
        f"maxclients {facts.max_clients}",
        f"{connections}",
        "Under load a worker opens more connections than Redis takes." if few else "",
        (f"redis-cli CONFIG SET maxclients {connections}", f"maxclients {connections}") if few else (),
    )


def overcommit(case: Case) -> Iterator[Finding]:
    """Redis forks to rewrite its file."""
    if not (case.store.local or case.store.embedded):
        return
    found, rule = case.machine.number("vm.overcommit_memory"), "vm.overcommit_memory"
    if found is None:
        yield unknown(rule, rule)
    elif found == 1:
        yield Finding(rule, Severity.FINE, "1", "1")
    else:
        words = "Redis forks to rewrite its file; the kernel may refuse memory that the fork would never use."
        yield Finding(rule, Severity.RISK, f"{found}", "1", words, (f"sysctl -w {rule}=1",))


def _answers(case: Case) -> bool:
    return case.store.asked and not case.store.problem


def _mailboxes(case: Case) -> bool:
    return any(namespace.mailbox for namespace in case.settings.namespaces.values())


def _keeps(case: Case) -> str:
    """What of the hub's data outlives a message, in words; '' for nothing."""
    streams = any(namespace.mode in KEPT for namespace in case.settings.namespaces.values())
    return " and ".join(name for name, there in (("streams", streams), ("mailboxes", _mailboxes(case))) if there)


RULES: tuple[Rule, ...] = (reachable, version, persistence, eviction, rights, bounds, overcommit)
