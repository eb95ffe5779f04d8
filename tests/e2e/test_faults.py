"""Faults of which clients notice as little as can be: a stop with many of them, a hung worker, the last descriptor.

`python -m tests.chaos.goodbyes` has the first one with 10,000 clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.goodbyes import GRACE_S, MOST_SHARE, UPGRADE, say_goodbye
from tests.few_files import LIMIT_ENV
from tests.hubs import HubProcess
from tests.plane import client
from tests.support import async_test

CLIENTS = 2000
WINDOW_S = 5.0


def test_a_stop_with_many_clients_is_even_and_in_time() -> None:
    """The fullest second has at most half more than the mean, each client gets 3001, and the hub ends with 0."""
    found = say_goodbye(CLIENTS, WINDOW_S)
    assert found.status == 0 and found.took_s < WINDOW_S + GRACE_S
    assert found.share <= MOST_SHARE


@async_test
async def test_a_worker_that_hangs_is_replaced_and_the_others_notice_nothing() -> None:
    """SIGSTOP: found within heartbeat_timeout_s of its last beat, which is at most 10 s; its stack is in the log."""
    timeout_s = 2.0
    with HubProcess({"workers": 2, "heartbeat_timeout_s": timeout_s}) as hub:
        hung, kept = hub.worker_pids()
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client(hub.ws_url)) for _ in range(12)]
            of_kept = [one for one in clients if port_of(one) in ports_of(kept)]
            os.kill(hung, signal.SIGSTOP)
            begun = time.monotonic()
            while hung in hub.worker_pids() or len(hub.worker_pids()) < 2:
                assert time.monotonic() - begun < timeout_s + 10, hub.stderr
                await asyncio.sleep(0.02)
            assert of_kept and all(["rpc" in await one.command(rpc={"method": "hub.time"}) for one in of_kept])
        assert re.search(rf"worker 0 \(pid {hung}\) is silent for 2 s and is killed", hub.stderr)
        assert "Fatal Python error: Aborted" in hub.stderr and 'hub/worker.py", line' in hub.stderr
        assert kept in hub.worker_pids()
    assert settings_default() <= 10


def settings_default() -> float:
    from hub.config import Settings

    return Settings().heartbeat_timeout_s


def port_of(one: object) -> int:
    return int(one.socket.local_address[1])  # type: ignore[attr-defined]


def ports_of(pid: int) -> set[int]:
    """The clients' ports of a worker's connections, as the kernel knows them."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {int(row[2].partition(":")[2], 16) for row in rows if row[9] in inodes}


def cpu_s(pid: int) -> float:
    """What a process has used so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@async_test
async def test_without_descriptors_newcomers_are_told_and_the_others_served() -> None:
    """At the limit: 503 with a time to come back, a fifth of a CPU at the most, and those who are in go on."""
    env = {LIMIT_ENV: "300"}
    with HubProcess({"workers": 1, "fast_upgrade": True}, module="tests.few_files", env=env) as hub:
        [pid] = hub.worker_pids()
        address = urlsplit(hub.ws_url)
        with contextlib.ExitStack() as held:
            async with client(hub.ws_url) as one:
                refused = b""
                while not refused:
                    sock = held.enter_context(socket.create_connection((address.hostname, address.port), timeout=20))
                    sock.sendall(UPGRADE.format(host=address.netloc).encode())
                    answer = await asyncio.to_thread(sock.recv, 4096)
                    refused = answer if not answer.startswith(b"HTTP/1.1 101 ") else b""
                assert refused.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 5\r\n" in refused
                # Nobody asks for anything: what is used now is used in vain.
                before, begun = cpu_s(pid), time.monotonic()
                await asyncio.sleep(2)
                idle = (cpu_s(pid) - before) / (time.monotonic() - begun)
                # And with somebody new fifty times a second.
                before, begun = cpu_s(pid), time.monotonic()
                told = 0
                for _ in range(100):
                    told += await asyncio.to_thread(is_told, (address.hostname, address.port))
                    await asyncio.sleep(0.02)
                busy = (cpu_s(pid) - before) / (time.monotonic() - begun)
                assert "rpc" in await one.command(rpc={"method": "hub.time"})
        print(f"of a CPU: idle {idle:.1%}, with newcomers {busy:.1%}")
        assert told == 100
        assert idle <= 0.2 and busy <= 0.2
        assert "no descriptor left for clients" in hub.stderr


def is_told(address: tuple[str | None, int | None]) -> bool:
    with socket.create_connection(address, timeout=20) as sock:
        return sock.recv(4096).startswith(b"HTTP/1.1 503 ")
