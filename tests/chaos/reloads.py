"""`python -m tests.chaos.reloads`, which is `make reloads`: settings that change under load, with figures.

    --reloads N    good ones (50)       --broken N    settings that must be refused (30)
    --short        the load of `make test`            --save        into bench/results/DATE-reloads.*

Does: reload again and again, each time with something else changed, while messages are published, a thousand clients
listen and others come and go; have mistakes refused in between; judge by the checker of the chaos rig.
Does not: look at what each setting does (test_retune).
Exit status 1 if anybody was disconnected, refused or lost anything, a worker was replaced, or a verdict was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.rig import report
from tests.hubs import SECRET, merged

from .checker import FAILING
from .rig import FULL, NAMESPACE, SHORT, Rig, Size

THOUSAND = FULL._replace(clients=950)
NEWCOMERS_PER_S = 200.0
PAUSE_S = 0.5
TIMEOUT_S = 10.0
BROKEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("workers", {"workers": 9}),
    ("limits.connections", {"limits": {"connections": -1}}),
    ("auth.keys[0]", {"auth": {"keys": ["/nowhere.pem"]}}),
    ("redis.prefix", {"redis": {"prefix": "elsewhere"}}),
    (f"namespaces.{NAMESPACE}.mode", {"namespaces": {NAMESPACE: {"mode": "none"}}}),
    ("allowed_origins[0]", {"allowed_origins": ["no origin"]}),
    ("client.ping", {"client": {"ping": 1}}),
    ("tcp.backlog", {"tcp": {"backlog": 7}}),
    ("log_level", {"log_level": "loud"}),
    ("app.module", {"app": {"module": "chat:app"}}),
)
"""The key that the refusal must name."""


@dataclass
class Newcomers:
    """Clients that come, connect and go, at a rate. delays_s: from the first byte to the connect reply."""

    url: str
    per_s: float
    delays_s: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        try:
            while True:
                number += 1
                task = loop.create_task(self._come())
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                await asyncio.sleep(max(0.0, began + number / self.per_s - loop.time()))
        finally:
            await asyncio.gather(*self._running)

    async def _come(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._connect()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.refused.append(f"{type(error).__name__}: {error}")
        else:
            self.delays_s.append(time.monotonic() - began)

    async def _connect(self) -> None:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101"):
                raise ValueError(head.split(b"\r\n")[0].decode())
            command = b'{"id":1,"connect":{}}'
            writer.write(struct.pack("!BB", 0x81, 0x80 | len(command)) + b"\0\0\0\0" + command)
            opcode, length = await reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await reader.readexactly(2))
            body = await reader.readexactly(length)
            if opcode != 0x81 or b'"connect"' not in body:
                raise ValueError(f"instead of a connect reply: {opcode:#x} {body!r}")
        finally:
            writer.close()


@dataclass
class Reloads:
    """What became of all of them."""

    good: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def change(number: int) -> dict[str, Any]:
    """Settings of which something is another one than in the reload before."""
    even = number % 2 == 0
    secrets = {"hmac_secret": SECRET, "hmac_secret_old": "o" * 40} if even else {"hmac_secret": SECRET}
    return {
        "auth": secrets,
        "limits": {"connections": 0 if even else 100_000 + number, "commands_per_s": 1000 + number},
        "client": {"ping_interval_s": 25 + number % 7, "recovery_publications": 300 + number % 5},
        "allowed_origins": [f"https://app{number}.example.com"],
        "trusted_proxies": ["127.0.0.0/8", "::1/128", "unix:", f"10.0.0.{number % 250}"],
        "log_level": "info" if even else "warning",
        "namespaces": {
            f"extra{number % 3}": {"subscribe": "anyone"},
            NAMESPACE: {"history_size": 400 + number % 3, "flush_ms": 0, "publish": "anyone"},
        },
    }


async def reload_often(rig: Rig, good: int, broken: int, pause_s: float, found: Reloads) -> list[int]:
    """All of them in turn, evenly mixed, with a pause after each good one; nobody may be disconnected by it."""
    workers = rig.hub.worker_pids()
    done = 0
    for number in range(good):
        await asyncio.sleep(pause_s)
        settings = change(number)
        became = await asyncio.to_thread(rig.hub.reload, settings)
        found.good += became["ok"]
        found.seconds.append(became["seconds"])
        if not became["ok"] or became["errors"]:
            found.wrong.append(f"reload {number}: {became}")
        while done * good < broken * (number + 1):
            key, mistake = BROKEN[done % len(BROKEN)]
            done += 1
            refusal = await asyncio.to_thread(rig.hub.reload, merged(settings, mistake))
            found.refused += not refusal["ok"]
            if refusal["ok"] or not any(line.startswith(key) for line in refusal["errors"]):
                found.wrong.append(f"{key} was not refused by its name: {refusal}")
    if rig.hub.worker_pids() != workers:
        found.wrong.append(f"workers were replaced: {workers} are {rig.hub.worker_pids()} now")
    return []


async def measure(
    size: Size, good: int, broken: int, newcomers_per_s: float, directory: Path, pause_s: float = 0.0
) -> dict[str, Any]:
    """The figures, by name; `wrong` lists what ought not to be."""
    found = Reloads()
    async with Rig("plain", size, directory) as rig:
        newcomers = Newcomers(rig.hub.ws_url, newcomers_per_s)
        coming = asyncio.create_task(newcomers.run())

        async def inject(rig: Rig) -> list[int]:
            began = time.monotonic()
            try:
                return await reload_often(rig, good, broken, pause_s, found)
            finally:
                figures["load_s"] = round(time.monotonic() - began, 1)
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

        figures: dict[str, Any] = {}
        await rig.round("reloads", True, inject, 1.0)
        total = rig.checker.total
    waits = sorted(newcomers.delays_s)
    wrong = [*found.wrong, *(f"a newcomer: {text}" for text in newcomers.refused[:10])]
    wrong += [f"{name}: {getattr(total, name)}" for name in (*FAILING, "duplicate") if getattr(total, name)]
    wrong += [f"{name}: {getattr(total, name)}" for name in ("disconnects", "resubscribes") if getattr(total, name)]
    return {
        "reloads": found.good,
        "refused reloads": found.refused,
        "seconds of a reload, median": sorted(found.seconds)[len(found.seconds) // 2] if found.seconds else 0.0,
        "seconds of a reload, most": max(found.seconds, default=0.0),
        "seconds under load": figures["load_s"],
        "published": total.published,
        "delivered": total.delivered,
        "silent loss": total.silent_loss,
        "signalled loss": total.signalled_loss,
        "disconnects": total.disconnects,
        "resubscribes": total.resubscribes,
        "newcomers": len(waits),
        "newcomers refused": len(newcomers.refused),
        "ms to be connected, median": round(1000 * waits[len(waits) // 2], 1) if waits else 0.0,
        "ms to be connected, 99 %": round(1000 * waits[len(waits) * 99 // 100], 1) if waits else 0.0,
        "ms to be connected, most": round(1000 * waits[-1], 1) if waits else 0.0,
        "wrong": wrong,
    }


def text_of(size: Size, machine: dict[str, Any], found: dict[str, Any]) -> str:
    clients = size.clients + size.sdks_js + size.sdks_python
    load = (
        f"{size.workers} workers, {size.rate_hz:g} publishes/s into {size.channels} stream channels, {clients} "
        f"recovering clients in {size.channels_each} channels each, {NEWCOMERS_PER_S:g} new connections/s"
    )
    rows = [[name, f"{value:,}"] for name, value in found.items() if name != "wrong"]
    lines = [f"# Reloads\n\n{load}.\n\n{report.machine_text(machine)}\n", report.table(["figure", ""], rows)]
    return "\n".join([*lines, *(f"- {text}" for text in found["wrong"])])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "reloads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--broken", type=int, default=30)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", nargs="?", const="reloads", default="", metavar="NAME")
    arguments = parser.parse_args(words)
    size = SHORT if arguments.short else THOUSAND
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="reloads-") as directory:
        work = measure(size, arguments.reloads, arguments.broken, NEWCOMERS_PER_S, Path(directory) / "run", PAUSE_S)
        found = asyncio.run(work)
    record = {"bench": "reloads", "machine": machine, "figures": found}
    report.finish(record, text_of(size, machine, found), arguments)
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
