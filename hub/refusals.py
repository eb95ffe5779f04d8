"""Refusals: who and what this worker has turned away, counted by reason in one place.

Does: keep a plain number for each reason, and put what was added into one line.
Does not: decide, answer, or name anybody: the rooms that refuse do, and whose fault it was stands in their debug lines.
Called by: entrance, quotas, acceptor, transports, membership through the session, headroom (count); worker (report).
Never break: to count is one addition; a reason that is not in REASONS is a mistake of ours and raises.
A new reason needs its row here.
"""

from __future__ import annotations

REASONS = {
    "handshakes": "handshakes beyond worker.handshakes_per_s",
    "draining": "handshakes while the worker was about to end",
    "ip_handshakes": "handshakes beyond limits.ip_handshakes_per_s",
    "ip_shut_out": "connections of an address, twice as many as limits.ip_handshakes_per_s: ended unread",
    "offences": "connections closed for what they sent, counted against the handshakes of their address",
    "loop_time": "reads put off, of connections or addresses that have taken too much of the loop's time",
    "ip_connections": "connections beyond limits.ip_connections",
    "ip_sockets": "sockets of an address that are no client's, beyond twice limits.ip_connections",
    "user_connections": "connections beyond limits.user_connections",
    "connections": "connections beyond limits.connections",
    "commands": "commands beyond a connection's rate, or its bytes",
    "user_commands": "commands beyond a user's rate, or its bytes",
    "ip_commands": "commands and requests beyond an address's rate, or its bytes",
    "floods": "connections that went on over their rate for too long (3013)",
    "pings": "connections that sent too many pings (1008)",
    "channels": "subscriptions beyond client.channels",
    "channel_floods": "connections that went on asking for more channels than they may have (3505)",
    "worker_channels": "subscriptions beyond limits.channels",
    "json": "messages of too many values, or nested too deep",
    "tokens": "requests with a token or a ticket that is not good",
    "origins": "requests of pages whose origin is not allowed",
    "proxy_lines": "connections without the PROXY line of a trusted proxy",
    "descriptors": "connections for want of descriptors",
    "store": "publications that are kept, beyond redis.full_percent of the store's memory",
    "polls": "polls beyond worker.polls",
}
"""By name, for metrics and for the log; what each counts."""


class Refusals:
    """Of one worker."""

    __slots__ = ("_told", "counts")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(REASONS, 0)
        """Since the start."""
        self._told = dict(self.counts)

    def count(self, reason: str, number: int = 1) -> None:
        """Some more for a reason of REASONS."""
        self.counts[reason] += number

    def report(self) -> str:
        """What has been added since the last report: 'refused: commands 12, ip_handshakes 3'; '' for nothing."""
        added = {name: number - self._told[name] for name, number in self.counts.items()}
        self._told = dict(self.counts)
        words = ", ".join(f"{name} {number}" for name, number in added.items() if number)
        return f"refused: {words}" if words else ""
