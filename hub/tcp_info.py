"""Tcp_info: what the kernel has counted of one client's socket.

Does: ask for struct tcp_info (linux/tcp.h) and take two numbers out of it.
Does not: count anything itself, which would cost something with each write.
Called by: connection, when it ends.
Never break: the descriptor stays its owner's.
"""

from __future__ import annotations

import socket
import struct

FIELDS = struct.Struct("=B127xQ64xQQ")
"""tcpi_state, tcpi_bytes_received, tcpi_bytes_sent, tcpi_bytes_retrans; the last two since Linux 4.19."""
CLOSE_WAIT = 8
"""The peer has ended its side (net/tcp_states.h)."""


def tcp_traffic(fd: int) -> tuple[int, int] | None:
    """Bytes that came, and bytes that were sent, without those sent again. None of what is no TCP socket."""
    # With its kind said, right or wrong: otherwise Python asks the kernel for each part of it.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, FIELDS.size)
    except OSError:
        return None
    finally:
        sock.detach()
    if len(info) < FIELDS.size:
        return None
    state, received, sent, again = FIELDS.unpack(info)
    # The peer's end counts as a byte. Once both sides have ended, or after a reset, the state does not tell; then it
    # may be one more.
    return received - (state == CLOSE_WAIT), sent - again
