"""Imports: a module stands on those below it, and importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hub

HUB = Path(__file__).parent.parent / "hub"

LADDER = (
    # Rung by rung, lowest first. A module imports from lower rungs only, never sideways or upward.
    (
        "__init__",
        "bench_figures",
        "capabilities",
        "capacity",
        "errors",
        "control",
        "curb",
        "forwarded",
        "heads",
        "limits",
        "heartbeat",
        "histogram",
        "ids",
        "instructions",
        "journal",
        "machine",
        "message",
        "metric_names",
        "mistakes",
        "nesting",
        "origin",
        "position",
        "refusals",
        "resume",
        "ring",
        "scripts",
        "systemd",
        "tasks",
        "tcp_info",
        "tune",
    ),
    (
        "activation",
        "app",
        "changes",
        "channels",
        "deflate",
        "engineio_protocol",
        "fairness",
        "grants",
        "inheritance",
        "keys",
        "log",
        "prctl",
        "protocol",
        "recovery",
        "relay",
        "secret_files",
        "socketio_protocol",
        "status",
        "tally",
        "tap",
        "tls",
        "wheel",
        "whereabouts",
    ),
    (
        "app_runner",
        "archive",
        "auth",
        "certificates",
        "cursor",
        "facts",
        "frames",
        "handover",
        "lag",
        "metrics",
        "permissions",
        "values",
        "wishes",
    ),
    ("audience", "balance", "bench_wires", "eventstream", "handshake", "sections", "tick", "wants"),
    ("admin_keys", "bench_crew", "config", "groups", "jwks", "keyfiles", "lines", "outbox", "pace", "quotas", "views"),
    ("entrance", "reloadable"),
    ("backlog", "bars", "httpd", "intake", "listeners", "replay", "state", "store", "sweep", "thinning", "urls"),
    (
        "assets",
        "backup",
        "bench_publish",
        "cors",
        "gathering",
        "headroom",
        "history",
        "lane",
        "manifest",
        "reactor",
        "recall",
        "storefacts",
        "stream",
        "tickets",
    ),
    (
        "bench_run",
        "broker",
        "catchup",
        "census",
        "client",
        "diagnosis",
        "drain",
        "embedded",
        "fanout",
        "ingest",
        "loopback",
        "neighbours",
        "options",
        "outgoing",
        "pages",
        "restore",
        "seat",
        "snapshots",
        "sources",
        "symbols",
        "tls_bridge",
        "tls_handshake",
    ),
    ("barfeed", "connection", "emission", "mailbox", "notice", "revocation"),
    (
        "app_seat",
        "attendance",
        "hostrules",
        "kernelrules",
        "lease",
        "processes",
        "publish",
        "redelivery",
        "remembered",
        "registry",
        "reloading",
        "remote",
        "roll",
        "signals",
        "storerules",
        "streams",
        "term",
        "tuning",
        "users",
    ),
    ("benching", "errands", "figures", "operating", "orders", "reload", "trace"),
    ("api_control", "api_mailbox", "app_gate", "exposition", "health", "app_testing", "presence", "subscribe"),
    ("asking", "deploy", "monitoring", "watch"),
    ("patterns", "retreat"),
    ("bequest", "membership"),
    ("app_session", "expiry", "narrowing", "rpc", "services"),
    ("identity",),
    ("api", "app_guest", "session", "supervisor", "ticker"),
    ("serve", "transports.emulation", "transports.websocket", "transports"),
    ("admin", "transports.engineio_probe", "transports.market", "transports.sse_stamps"),
    ("transports.plain",),
    ("transports.poll_answer",),
    (
        "acceptor",
        "transports.engineio",
        "transports.http_stream",
        "transports.longpoll",
        "transports.publishing",
        "transports.sse",
        "tunnel",
    ),
    ("transports.engineio_raw", "transports.socketio_session"),
    ("transports.socketio_return",),
    ("transports.socketio",),
    ("transports.polling",),
    ("doors", "examination", "links", "saving"),
    ("building", "deploying", "doctor", "retune"),
    ("leaving",),
    ("worker",),
    ("rehearsal",),
    ("cli",),
    ("__main__",),
)
RUNG = {module: number for number, rung in enumerate(LADDER) for module in rung}


def modules() -> dict[str, Path]:
    """Our modules by name below `hub`: 'config', 'transports.websocket'."""
    found = {}
    for path in sorted(HUB.rglob("*.py")):
        if "demos" in path.parts:
            continue  # applications, written as everybody writes them; tests/demos has their tests
        parts = path.relative_to(HUB).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> list[tuple[int, str]]:
    """Line and module of each import of ours, wherever in the file it stands."""
    package = name.split(".")[:-1] if path.name != "__init__.py" else name.split(".")
    package = [] if name == "__init__" else package
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.append((node.lineno, whole if whole in RUNG else ".".join(base) or "__init__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hub":
            found.append((node.lineno, "absolute: " + str(node.module)))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, "absolute: " + a.name) for a in node.names if a.name.split(".")[0] == "hub"]
    return found


def test_every_module_stands_on_the_ladder():
    """A new module gets its rung; one that is gone leaves it."""
    assert set(modules()) == set(RUNG)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_lower_rungs(name):
    """The offending line is named; ours are imported relatively, so that none is missed."""
    wrong = [
        f"{modules()[name]}:{line}: {name} (rung {RUNG[name]}) imports {other} (rung {RUNG.get(other)})"
        for line, other in imports(name, modules()[name])
        if RUNG.get(other, 99) >= RUNG[name]
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_everything_starts_nothing():
    """No event loop, thread, child, socket or open file comes from an import: workers fork before anything is built."""
    names = [f"hub.{name}" for name in modules() if name not in ("__init__", "__main__")]
    program = f"""
import importlib, os, threading, asyncio
before = set(os.listdir("/proc/self/fd"))
for name in {names!r}:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
assert asyncio._get_running_loop() is None and asyncio.get_event_loop_policy()._local._loop is None
assert set(os.listdir("/proc/self/fd")) == before, set(os.listdir("/proc/self/fd")) - before
assert not open(f"/proc/self/task/{{os.getpid()}}/children").read()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_room_stands_once_on_the_map():
    """The docstring of the package names each module once, in the rows of rooms."""
    rows = re.findall(r"^    ((?:[a-z_.]+ )+) +\S", hub.__doc__, re.MULTILINE)
    rooms = [room for row in rows for room in row.split()]
    assert sorted(rooms) == sorted(set(modules()) - {"__init__", "__main__"})
