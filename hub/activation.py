"""Activation: listening sockets that systemd has opened for us (sd_listen_fds(3), systemd.socket(5)).

Does: take over what was handed to this process, by name.
Does not: know which names the settings want, or how many of each (listeners).
Called by: serve.
Never break: taken once, at the start; no child inherits them, nor would it take what is not meant for it.

So a hub without any privilege has the ports 80 and 443, and connections wait for it while it is restarted. One socket
for each worker, with ReusePort=yes and the same FileDescriptorName=: the kernel spreads new connections over them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
UNNAMED = "unknown"
"""What systemd calls a socket that nobody has named."""

Handed = dict[str, list[socket.socket]]
"""By name, in the order in which they were handed over."""


def take(environ: Mapping[str, str], first_fd: int = FIRST_FD) -> Handed:
    """The sockets that are meant for this process; nothing without systemd. first_fd: where they begin."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    handed: Handed = {}
    for number in range(int(count)):
        os.set_inheritable(first_fd + number, False)
        name = names[number] if number < len(names) and names[number] else UNNAMED
        handed.setdefault(name, []).append(socket.socket(fileno=first_fd + number))
    return handed
