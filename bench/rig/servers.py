"""Servers: the table of what can be measured, each started the same way.

Called by: the benches.  A new peer is a function in peers.py with a row here, and its program in bench/peers/.
Never break: one process on one CPU delivers, for every server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from . import peers
from .hub import hub, hub_limits, hub_socketio
from .server import Server


class Row(NamedTuple):
    """start: takes the CPU. missing: the line that installs it, '' when it is there."""

    start: Callable[[int | None], AbstractContextManager[Server]]
    missing: Callable[[], str] = lambda: ""


SERVERS: dict[str, Row] = {
    "hub": Row(hub),
    "hub-socketio": Row(hub_socketio),
    "hub-limits": Row(hub_limits),
    "c-loop": Row(peers.c_loop),
    "bun": Row(peers.bun, peers.bun_program),
    "nats": Row(peers.nats, peers.nats_program),
    "nchan": Row(peers.nchan, peers.nchan_program),
    "ws": Row(peers.ws, partial(peers.node_program, "ws")),
    "websockets": Row(peers.websockets, partial(peers.python_program, "websockets")),
    "socket.io": Row(peers.socket_io, partial(peers.node_program, "socket.io")),
    "tornado": Row(peers.tornado),
    "tornado-uvloop": Row(peers.tornado_uvloop),
    "python-socketio": Row(peers.python_socketio, partial(peers.python_program, "socketio")),
    "c-topics": Row(peers.c_topics),
}
BROADCAST = [name for name in SERVERS if name not in ("c-topics", "hub-limits")]
COMING = [*BROADCAST, "hub-limits"]
"""Where clients come and stay: limits count connections, and are nothing to a delivery."""
TOPICS = ["hub", "c-topics", "bun", "nats"]
"""Those whose clients can differ in what they are subscribed to."""


def missing(names: Iterable[str]) -> dict[str, str]:
    """Of `names`, those that are not here, with the line that installs each."""
    return {name: line for name in names if (line := SERVERS[name].missing())}
