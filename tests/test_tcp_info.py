"""What the kernel has counted of a socket."""

from __future__ import annotations

import select
import socket

from hub.tcp_info import tcp_traffic


def test_bytes_of_both_directions_are_exact() -> None:
    """What came and what was sent; the peer's end does not count, and the socket stays open and ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        server.sendall(b"x" * 1000)
        client.sendall(b"y" * 77)
        assert client.recv(1000) and server.recv(100) == b"y" * 77
        assert tcp_traffic(server.fileno()) == (77, 1000)
        client.shutdown(socket.SHUT_WR)
        assert select.select([server], [], [], 5.0)[0] and server.recv(1) == b""
        assert tcp_traffic(server.fileno()) == (77, 1000)
        server.sendall(b"z")
        assert tcp_traffic(server.fileno()) == (77, 1001)


def test_other_sockets_have_no_count() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert tcp_traffic(ours.fileno()) is None
        ours.sendall(b"still ours")
        assert theirs.recv(100) == b"still ours"
