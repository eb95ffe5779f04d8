"""Diagnosis: what a finding is, what a rule looks at, the order of findings, and the number that a machine holds.

Does: hold the words that rules and report share.
Does not: know any rule (kernelrules, hostrules, storerules) or print (doctor).
Called by: the rules, and doctor.
Never break: a fact that is missing gives a finding that says so, and never one that guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address

from .config import Settings
from .machine import Machine
from .storefacts import StoreFacts
from .values import Address, parse_address

NOT_READABLE = "not readable"
PROXY_SOCKETS = 2
"""Of a proxy on this machine for each client: one to the client, one to the hub."""


class Severity(IntEnum):
    """How bad it is; worst first."""

    BREAKS = 0
    """The hub does not start, or does not serve so many."""
    RISK = 1
    """It serves them, until a burst, a fault or a restart."""
    ADVICE = 2
    """It could do better."""
    UNKNOWN = 3
    """The machine does not say."""
    FINE = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says. found, needed: short texts with units. text: what happens, a sentence.

    fix: lines to copy, commands or settings. ceiling: the connections that it allows, None where that is not the
    question.
    """

    rule: str
    severity: Severity
    found: str
    needed: str = ""
    text: str = ""
    fix: tuple[str, ...] = ()
    ceiling: int | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What rules look at. ports: why an address of `listen` or `internal` cannot be bound now, '' where it can be.

    root: whether we who look are root, who may do what the service may not.
    """

    machine: Machine
    settings: Settings
    connections: int
    wire: str = "websocket"
    store: StoreFacts = field(default_factory=StoreFacts)
    ports: dict[str, str] = field(default_factory=dict)
    running: bool = False
    """The hub that is looked at runs, so that its ports are rightly taken."""
    root: bool = False

    @property
    def workers(self) -> int:
        """As the settings say; 'auto' is one for each CPU of the process that is looked at."""
        workers = self.settings.workers
        if workers != "auto":
            return workers
        return self.machine.cpus or self.settings.worker_count()

    @property
    def tls(self) -> bool:
        return any(address.tls for address in self.public)

    @property
    def listeners(self) -> int:
        """Of one worker. An address that stands in both settings is one, but port 0 is another port each time."""
        texts = [*self.settings.listen, *self.settings.internal]
        return len(set(texts)) + sum(texts.count(text) - 1 for text in set(texts) if text.endswith(":0"))

    @property
    def behind_proxy(self) -> bool:
        """Whether clients can come only through something on this machine."""
        return all(is_local(address) for address in self.public)

    @property
    def sockets(self) -> int:
        """Of this machine for each client."""
        return 1 + PROXY_SOCKETS if self.behind_proxy else 1

    @property
    def public(self) -> list[Address]:
        return [parse_address(text) for text in self.settings.listen]


Rule = Callable[[Case], Iterable[Finding]]


def is_local(address: Address) -> bool:
    """Whether only this machine reaches it."""
    return bool(address.path) or (bool(address.host) and ip_address(address.host).is_loopback)


def unknown(rule: str, what: str) -> Finding:
    """For a fact that the machine does not give."""
    return Finding(rule, Severity.UNKNOWN, NOT_READABLE, text=f"{what} cannot be read here.")


def diagnose(case: Case, rules: Iterable[Rule]) -> list[Finding]:
    """What all rules find, worst first; among those that break, the one that breaks first."""
    found = [finding for rule in rules for finding in rule(case)]
    return sorted(found, key=lambda one: (one.severity, _never_last(one.ceiling)))


def holds(findings: Sequence[Finding]) -> Finding | None:
    """The finding with the lowest ceiling; None where no rule gave one."""
    bounded = [finding for finding in findings if finding.ceiling is not None]
    return min(bounded, key=lambda one: _never_last(one.ceiling), default=None)


def _never_last(ceiling: int | None) -> float:
    return float("inf") if ceiling is None else ceiling


def size(number: float) -> str:
    """'1.5 GiB'; as many digits as a person reads."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(number) < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
