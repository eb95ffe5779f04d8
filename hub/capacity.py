"""Capacity: what one connection costs, as measured, and how many a worker, its descriptors and the memory hold.

Does: hold the figures and compute with them.
Does not: read a machine (machine) or say what to do (kernelrules, hostrules).
Called by: kernelrules, hostrules, doctor.
Never break: a figure says where it was measured; when a bench finds another one, it changes here.
"""

from __future__ import annotations

import math

KERNEL_BYTES = 4096
"""Of the kernel for an idle TCP socket (slab objects; not in any process's memory, but in its cgroup's)."""
WORKER_BYTES = 32 * 1024 * 1024
"""A worker without clients: 31,089 KB (bench/results, idle-heartbeats)."""
WIRES = {"websocket": 1710, "sse": 1300, "socketio": 3160, "polling": 20_460}
"""Bytes of the worker for an idle client: websocket with heartbeats from idle-heartbeats, the others from wires."""
TLS_BYTES = 15_000
"""Besides, where the hub does TLS; OpenSSL's buffers and state, rounded up."""
PING_S = 42e-6
"""CPU time of one ping and its pong: 25.3 ms a second for 15,000 clients with one every 25 s (idle-heartbeats)."""
HANDSHAKES_PER_S = 7500
"""Handshakes with a token and one subscription in a CPU second (storm: hub-token)."""

DESCRIPTORS = 26
"""A worker's own: Redis, event loop, heartbeat, relay, log; without its listeners. Counted in a running one."""
DESCRIPTOR_MARGIN = 64
"""acceptor.DESCRIPTOR_MARGIN: below its limit a worker keeps so many free of clients."""
ROUNDING = 1e-6
"""Connections; the square of a root is not quite the number."""
SMALLEST_LIMIT = 2 * DESCRIPTOR_MARGIN
"""With less, half of the limit is the clients'."""


def clients_of(limit: int, listeners: int) -> int:
    """Clients that a worker takes before it answers 503. limit: its open files. listeners: of all its addresses."""
    return max(0, max(limit - DESCRIPTOR_MARGIN, limit // 2) - DESCRIPTORS - listeners)


def limit_for(clients: int, listeners: int) -> int:
    """Open files that a worker needs for so many clients."""
    return max(clients + DESCRIPTORS + listeners + DESCRIPTOR_MARGIN, SMALLEST_LIMIT)


def fullest(connections: int, workers: int) -> int:
    """Clients of the fullest worker: the kernel spreads them by a hash, so by chance.

    The bound is that of the largest of `workers` normal variables, √(2 ln workers) deviations above the mean.
    """
    mean = connections / workers
    return math.ceil(mean + math.sqrt(2 * mean * math.log(workers)))


def before_one_is_full(clients: int, workers: int) -> int:
    """Connections of all workers when the first of them has `clients`: the inverse of `fullest`."""
    b = math.sqrt(2 * math.log(workers))
    most = workers * ((math.sqrt(b * b + 4 * clients) - b) / 2) ** 2
    return math.floor(most + ROUNDING)


def connection_bytes(wire: str, tls: bool, sockets: int = 1) -> int:
    """An idle client's. sockets: of this machine for it; a proxy on it has two more."""
    return WIRES[wire] + (TLS_BYTES if tls else 0) + sockets * KERNEL_BYTES


def memory_for(connections: int, workers: int, each: int) -> int:
    """Of the hub with idle clients."""
    return workers * WORKER_BYTES + connections * each


def connections_in(memory: int, workers: int, each: int) -> int:
    """How many idle clients fit into so many bytes."""
    return max(0, (memory - workers * WORKER_BYTES) // each)
