"""Activation: sockets as systemd hands them over, in a real process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from hub import activation
from tests.hubs import KEY, clean_environment

PROGRAM = """
import os, sys
from hub import activation
handed = activation.take({**os.environ, "LISTEN_PID": os.environ.get("LISTEN_PID") or str(os.getpid())})
print({name: [sock.getsockname()[1] for sock in each] for name, each in handed.items()},
      any(os.get_inheritable(sock.fileno()) for each in handed.values() for sock in each))
"""


def listener(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def activated(sockets: list[socket.socket], command: list[str], **environ: str) -> subprocess.Popen:
    """A process with these sockets as its descriptors 3, 4 and so on, as systemd starts it."""
    count = len(sockets)
    # Out of the way first: one of them may have a number that another one is to get. The shell's `exec` keeps the pid.
    high = [os.dup(sock.fileno()) for sock in sockets]
    moves = " ".join(f"{3 + at}<&{fd}" for at, fd in enumerate(high))
    script = f'LISTEN_PID=${{LISTEN_PID-$$}} exec "$@" {moves}'
    try:
        return subprocess.Popen(
            ["bash", "-c", script, "-", *command],
            env={**clean_environment(), "LISTEN_FDS": str(count), **environ},
            pass_fds=high,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for fd in high:
            os.close(fd)


def taken(sockets: list[socket.socket], **environ: str) -> str:
    with activated(sockets, [sys.executable, "-c", PROGRAM], **environ) as process:
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    return out.strip()


def test_sockets_come_by_name_in_their_order() -> None:
    """Those of one name together; one without any is called as systemd does it; none is inherited any further."""
    sockets = [listener() for _ in range(4)]
    a, b, c, d = (sock.getsockname()[1] for sock in sockets)
    found = taken(sockets, LISTEN_FDNAMES="https:http:https")
    assert found == f"{{'https': [{a}, {c}], 'http': [{b}], 'unknown': [{d}]}} False"
    for sock in sockets:
        sock.close()


def test_what_is_meant_for_another_process_is_not_taken() -> None:
    """A wrong pid, as a child has it, or nothing at all."""
    with listener() as sock:
        assert taken([sock], LISTEN_PID="1", LISTEN_FDNAMES="https") == "{} False"
    assert activation.take({}) == {} == activation.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"})


def test_a_hub_serves_what_it_was_handed(tmp_path) -> None:
    """Its ready line tells where; a worker more than there are sockets is one line that says so."""
    first = listener()
    port = first.getsockname()[1]
    sockets = [first, listener(port), listener()]
    config = tmp_path / "hub.toml"
    text = (
        f'workers = %d\nlisten = ["systemd:http"]\ninternal = ["systemd:api"]\nstate_dir = "{tmp_path}/state"\n'
        f'drain_window_s = 0\napi.key = "{KEY}"\n'
    )
    command = [sys.executable, "-m", "hub", "serve", "--config", str(config)]
    config.write_text(text % 3)
    with activated(sockets, command, LISTEN_FDNAMES="http:http:api") as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 3
    assert err.splitlines()[-1] == (
        "hub: cannot listen on systemd:http: found 2 sockets for 3 workers; allowed: one for each, with ReusePort=yes"
    )
    config.write_text((text % 2).replace('"systemd:api"', '"127.0.0.1:0"'))
    with activated(sockets, command, LISTEN_FDNAMES="http:http:other") as process:
        assert f"clients ws://127.0.0.1:{port}/connection/websocket" in process.stdout.readline()
        for sock in sockets:
            sock.close()
        for _ in range(16):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "systemd:other: a socket that no address asks for is closed" in err
