"""Goodbyes: a hub with thousands of clients is told to stop, `python -m tests.chaos.goodbyes`; how evenly they go.

    --clients N (10,000)    --window S (30)    --json    --save    into bench/results/DATE-goodbyes.*

Exit status 1 where the fullest second has more than half again as many as the mean, or the hub does not end with 0 in
time.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import signal
import socket
import sys
import time
from collections import Counter
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.rig import report
from tests.hubs import HubProcess

MOST_SHARE = 1.5
GRACE_S = 15.0
"""Beyond the window, as systemd/hub.service has it."""

UPGRADE = (
    "GET /connection/websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CONNECT = b'{"id":1,"connect":{}}'
CLIENT = {"ping_interval_s": 600, "pong_timeout_s": 500}
PING = b"\x81\x02{}"
CLOSE = bytes([0x88, 0x82, 0, 0, 0, 0, 3001 >> 8, 3001 & 255])
"""A client's answer to 3001. A mask of zeros is a mask (RFC 6455 §5.3)."""


class Crowd:
    """Clients that are connected and say nothing more, until they are sent away."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._head = UPGRADE.format(host=parts.netloc).encode()
        self.sockets: list[socket.socket] = []

    def enter(self, count: int) -> None:
        """In lots, so that no accept queue overflows."""
        for lot in lots(count, 200):
            new = [socket.create_connection(self._address, timeout=30) for _ in lot]
            for sock in new:
                sock.sendall(self._head)
            for sock in new:
                assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
                sock.sendall(bytes([0x81, 0x80 | len(CONNECT), 0, 0, 0, 0]) + CONNECT)
            for sock in new:
                assert b'"client"' in sock.recv(4096)
            self.sockets += new

    def leave(self, timeout_s: float) -> list[float]:
        """Answer each close; the times at which they came, in order."""
        poll = select.epoll()
        by_fd = {sock.fileno(): sock for sock in self.sockets}
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        times: list[float] = []
        deadline = time.monotonic() + timeout_s
        while by_fd and time.monotonic() < deadline:
            for fd, _ in poll.poll(0.1):
                sock = by_fd[fd]
                data = sock.recv(4096).removeprefix(PING)
                if not data:
                    continue  # where all are sent away soon, nobody waits for its pong
                del by_fd[fd]
                assert data[0] == 0x88 and int.from_bytes(data[2:4], "big") == 3001, data
                times.append(time.monotonic())
                with contextlib.suppress(OSError):
                    sock.sendall(CLOSE)
                poll.unregister(fd)
                sock.close()
        poll.close()
        assert not by_fd, f"{len(by_fd)} were not sent away"
        return times

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def lots(count: int, size: int) -> list[range]:
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def worst_share(times: list[float], window_s: float) -> float:
    """The fullest second of the window, as a multiple of the mean."""
    begun = times[0]
    counts = Counter(int(at - begun) for at in times if at - begun < window_s)
    return max(counts.values()) / (len(times) / window_s)


class Goodbye(NamedTuple):
    """share: of the fullest second, of the mean. took_s: from the signal to the end. status: how the hub ended."""

    share: float
    took_s: float
    status: int


def say_goodbye(clients: int, window_s: float) -> Goodbye:
    """SIGTERM to a hub of two workers with so many clients, each of which has to be told 3001."""
    # Nobody is asked whether it is there: a crowd does not answer before it is sent away.
    with HubProcess({"workers": 2, "drain_window_s": window_s, "client": CLIENT}) as hub:
        crowd = Crowd(hub.ws_url)
        try:
            crowd.enter(clients)
            begun = time.monotonic()
            hub.process.send_signal(signal.SIGTERM)
            times = crowd.leave(window_s + 30)
            status = hub.process.wait(30)
            return Goodbye(worst_share(times, window_s), time.monotonic() - begun, status)
        finally:
            crowd.close()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("goodbyes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--window", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="goodbyes", default="", metavar="NAME")
    arguments = parser.parse_args(words)
    machine = report.machine()
    found = say_goodbye(arguments.clients, arguments.window)
    record = {"bench": "goodbyes", "arguments": vars(arguments), "machine": machine, **found._asdict()}
    text = (
        f"# SIGTERM with {arguments.clients:,} clients, window {arguments.window:g} s\n\n"
        f"{report.machine_text(machine)}\n\n"
        f"The fullest second has {found.share:.2f} times the mean; the hub ended with {found.status} after "
        f"{found.took_s:.1f} s."
    )
    report.finish(record, text, arguments)
    return int(found.share > MOST_SHARE or found.status != 0 or found.took_s > arguments.window + GRACE_S)


if __name__ == "__main__":
    sys.exit(main())
