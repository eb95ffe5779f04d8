"""Rig: stores, proxies, a hub, its load and the checker, started together; one round after another.

    async with Rig("plain", FULL, directory) as rig:
        await rig.round(fault)
    rig.checker.total

Does: build the topology, run a fault under load, bring everything to rest, take down what the store has, let the
checker judge.
Does not: know what faults do (faults) or what verdicts mean (checker).
Called by: __main__, test_short.
Never break: a round is judged only when nobody publishes and everybody had `settle_s` to catch up; what the store has
is read twice, before and after, so that a publication which was still under way is not held against anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from tests.hubs import HubProcess, merged
from tests.support import tell_child

from . import events
from .checker import Checker
from .events import Event, Fault, Gone, Kept, Level, Log, Settled, now_s
from .proxy import Proxy
from .stores import MASTER, Sentinel, Valkey

Kind = Literal["plain", "pair", "sentinel"]

T = TypeVar("T")

HERE = Path(__file__).parent
NODE_PACKAGES = HERE.parent / "e2e/node_modules/centrifuge"
NAMESPACE = "s"
COMMANDS_AT_ONCE = 50
"""History commands in one batch."""
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 180.0
"""Above load.PAUSE_TIMEOUT_S."""
GHOSTS_S = 10.0
"""How long members of a killed worker may stay, with a margin for a busy machine."""
WARM_UP_S = 1.0
MOST_SNAPSHOTS = 5
MARGIN = 60
MARGIN_FACTOR = 3
"""Of a channel's publications so many more are read than a round is likely to have: all of them would take longer."""
RING_BYTES = 64 * 2**20
MEMORY_SLACK_BYTES = RING_BYTES + 32 * 2**20
"""A worker's ring fills up over time: that is no leak, but its bound."""
ESTABLISHED = "01"
"""In /proc/net/tcp."""
COMMAND_LINKS = 64
"""store.MAX_CONNECTIONS: the links that a worker's pool may come to hold."""


class Size(NamedTuple):
    """How much of everything. clients: light ones; sdks_js, sdks_python: stock ones besides."""

    workers: int
    channels: int
    clients: int
    sdks_js: int
    sdks_python: int
    rate_hz: float
    processes: int
    settle_s: float
    """For everybody to be where the store is; above the 40 s that a silent channel may go unchecked."""
    pace_s: float
    """What faults count in: 1 in a whole run."""
    channels_each: int = 4


FULL = Size(4, 200, 450, 40, 10, 500.0, 2, 45.0, 1.0)
SHORT = Size(2, 40, 60, 4, 2, 100.0, 1, 45.0, 0.25)


class LoadProcess:
    """One process of load.py or sdk.mjs."""

    def __init__(self, role: str, config: dict[str, Any], module: str = "tests.chaos.load") -> None:
        """module: what is run; a process that obeys as load.py does."""
        self.role = role
        self._module = module
        self._config = config
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        python = [sys.executable, "-m", self._module, self.role]
        program = ["node", str(HERE / "sdk.mjs")] if self.role == "sdk.mjs" else python
        self._process = await asyncio.create_subprocess_exec(
            *program,
            json.dumps(self._config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=HERE.parent.parent,
        )

    async def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Send one command and return its answer."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await process.stdout.readline()
        assert line, f"the load process of {self.role} has ended"
        return json.loads(line)

    async def stop(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            tell_child(self._process, signal.SIGKILL)
            await self._process.wait()


class Rig:
    """Everything of one run. The attributes are what faults work on."""

    def __init__(
        self,
        kind: Kind,
        size: Size,
        directory: Path,
        *,
        seed: int = 1,
        keep: Path | None = None,
        module: str = "hub",
        settings: Mapping[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """seed: of channels and victims. keep: a file for every event. module: the hub; tests run a broken one.

        settings: of the hub, besides the rig's. env: more of the hub's environment.
        """
        self._more_settings = settings or {}
        self.gone: Counter[str] = Counter()
        """Connections that clients have lost, not of their own will, by client; whoever asks may clear it."""
        self.codes: Counter[int] = Counter()
        """The codes that they were closed with."""
        self.kind = kind
        self._module = module
        self._env = env
        self.size = size
        self.rng = random.Random(seed)
        self.checker = Checker()
        self.stores: list[Valkey] = []
        """The primary first; a fault that promotes another puts it first."""
        self.proxy: Proxy | None = None
        """Between the hub and its store; none with Sentinel."""
        self.replication: Proxy | None = None
        """Between a replica and its primary."""
        self.sentinel: Sentinel | None = None
        self.load: list[LoadProcess] = []
        self.late: list[str] = []
        """Clients that were not where the store is when the time to settle was over: what the checker says counts."""
        self._directory = directory
        self._logs = directory / "logs"
        self._reader = events.Reader(self._logs)
        self._keep = Log(keep) if keep is not None else None
        self._stack = contextlib.AsyncExitStack()
        self._stack.callback(self._reader.close)
        if self._keep is not None:
            self._stack.callback(self._keep.close)
        self.channels = [f"{NAMESPACE}:{i}" for i in range(size.channels)]
        self._began_s = 0.0
        self._unanswered = 0
        self._subscriptions = 0
        """Of all clients, when everybody is there."""

    async def __aenter__(self) -> Self:
        self._logs.mkdir(parents=True)
        try:
            await self._start_stores()
            await self._start_hub()
            await self._start_load()
            # Before anything happens: what is measured later is held against this.
            self._feed(await self._levels())
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # Starting.

    async def _start_stores(self) -> None:
        for i in range(1 if self.kind == "plain" else 2):
            store = Valkey(self._directory / f"store{i}")
            self._stack.callback(store.stop)
            await asyncio.to_thread(store.start)
            self.stores.append(store)
        if self.kind == "sentinel":
            await asyncio.to_thread(self.stores[1].follow, self.stores[0].address, self.stores[0])
            self.sentinel = Sentinel(self._directory / "sentinel", self.stores[0])
            self._stack.callback(self.sentinel.stop)
            await asyncio.to_thread(self.sentinel.start)
            return
        self.proxy = await self._start_proxy(self.stores[0])
        if self.kind == "pair":
            self.replication = await self._start_proxy(self.stores[0])
            await asyncio.to_thread(self.stores[1].follow, self.replication.address, self.stores[0])

    async def _start_proxy(self, store: Valkey) -> Proxy:
        proxy = Proxy(store.address)
        await proxy.start()
        self._stack.push_async_callback(proxy.close)
        return proxy

    def _settings(self) -> dict[str, Any]:
        """Of the hub, over those of tests.hubs."""
        redis: dict[str, Any] = (
            {"sentinels": [f"127.0.0.1:{self.sentinel.port}"], "master": MASTER} if self.sentinel else {}
        )
        if self.proxy is not None:
            redis = {"url": f"redis://127.0.0.1:{self.proxy.address.port}"}
        return {
            "workers": self.size.workers,
            "redis": redis,
            # Small, so that a reader that stops is slow soon.
            "client": {"outbox_conflate_bytes": 16_384, "outbox_drop_bytes": 32_768, "outbox_bytes": 131_072},
            "tcp": {"send_buffer_bytes": 16_384},
            "namespaces": {
                NAMESPACE: {
                    "mode": "stream",
                    "history_size": 400,
                    "history_ttl_s": 3600,
                    "idempotency_ttl_s": 240,
                    "subscribe": "anyone",
                    "publish": "anyone",
                    "presence": "anyone",
                }
            },
        }

    async def _start_hub(self) -> None:
        settings = merged(self._settings(), self._more_settings)
        self.hub = HubProcess(settings, module=self._module, env=self._env)
        # In a thread: the hub's way to its store is a proxy on this loop.
        await asyncio.to_thread(self.hub.__enter__)
        self._stack.push_async_callback(asyncio.to_thread, self.hub.__exit__)

    async def _start_load(self) -> None:
        size = self.size
        crews = [("clients", f"c{i}.", size.clients // size.processes) for i in range(size.processes)]
        crews += [("sdks", "python.", size.sdks_python)]
        crews += [("sdk.mjs", "js.", size.sdks_js)] if NODE_PACKAGES.exists() else []
        for number, (role, name, count) in enumerate(crews):
            names = [f"{name}{i}" for i in range(count)]
            channels = [self.rng.sample(self.channels, size.channels_each) for _ in names]
            self._subscriptions += count * size.channels_each
            config = {"url": self.hub.ws_url, "names": names, "channels": channels, "seed": number}
            self.load.append(LoadProcess(role, {**config, "log": str(self._logs / f"{number}-{role}.jsonl")}))
        self.load.append(LoadProcess("publishers", self._publishers_config()))
        for process in self.load:
            self._stack.push_async_callback(process.stop)
            await process.start()
        await asyncio.gather(*(process.ask("ready") for process in self.load))
        # Each publisher opens its connection with its first message.
        await self.publishers.ask("resume")
        await asyncio.sleep(WARM_UP_S)
        await self.publishers.ask("pause")

    def _publishers_config(self) -> dict[str, Any]:
        return {
            "url": self.hub.ws_url,
            "api_url": self.hub.api_url,
            "key": self.hub.key,
            "channels": self.channels,
            "rate_hz": self.size.rate_hz,
            "api": 16,
            "clients": 8,
            "share": 0.7,
            "seed": 99,
            # Read first of all, so that the checker knows a message before it hears that somebody received it.
            "log": str(self._logs / "0-publishers.jsonl"),
        }

    # What faults use.

    @property
    def pace_s(self) -> float:
        return self.size.pace_s

    @property
    def clients(self) -> list[LoadProcess]:
        return self.load[:-1]

    @property
    def publishers(self) -> LoadProcess:
        return self.load[-1]

    @property
    def primary(self) -> Valkey:
        return self.stores[0]

    def ports_of(self, pid: int) -> list[int]:
        """The clients' ports of the connections that a worker serves, as the kernel knows them."""
        return [int(row[2].partition(":")[2], 16) for row in self._sockets_of(pid)]

    def clients_of(self, pid: int) -> int:
        """How many connections of clients a worker has."""
        public = f":{urlsplit(self.hub.ws_url).port:04X}"
        return sum(row[1].endswith(public) and row[3] == ESTABLISHED for row in self._sockets_of(pid))

    def _sockets_of(self, pid: int) -> list[list[str]]:
        inodes = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(str(path.readlink()).removeprefix("socket:[").removesuffix("]"))
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return [row for row in rows if row[9] in inodes]

    # Rounds.

    async def round(
        self, name: str, lossless: bool, inject: Callable[[Rig], Awaitable[list[int]]], after_s: float
    ) -> None:
        """Load, fault, rest, verdict. `inject` returns the ports of the clients that it may disconnect."""
        began_s = self._began_s = now_s()
        await self.publishers.ask("resume")
        victims = await inject(self)
        await asyncio.sleep(after_s)
        paused = await self.publishers.ask("pause")
        assert not paused["refused"], paused
        self._unanswered = paused["busy"]
        kept = await self._settle(name)
        self._feed([Fault(began_s, name, lossless, victims)])
        self._feed(self._reader.read())
        self._feed([*kept, *await self._levels(), Settled(now_s())])

    def _feed(self, found: Iterable[Event]) -> None:
        found = list(found)
        lost = [event for event in found if isinstance(event, Gone) and not event.asked]
        self.gone.update(event.client for event in lost)
        self.codes.update(event.code for event in lost)
        if self._keep is not None:
            for event in found:
                self._keep.write(event)
            self._keep.flush()
        self.checker.feed(found)

    async def _settle(self, name: str) -> list[Kept]:
        kept = await self._snapshot()
        for _ in range(MOST_SNAPSHOTS):
            tops = {one.channel: [one.epoch, one.offset] for one in kept}
            settled = await asyncio.gather(
                *(process.ask("settle", tops=tops, timeout_s=self.size.settle_s) for process in self.clients)
            )
            refused = [text for answer in settled for text in answer["refused"]]
            assert not refused, refused
            self.late += [f"{name}: {who}" for answer in settled for who in answer["who"]]
            before, kept = kept, await self._snapshot()
            if [one[1:4] for one in before] == [one[1:4] for one in kept]:
                break
        return kept

    async def _snapshot(self) -> list[Kept]:
        """What the store has of this round and a while before, by the server API."""
        rate_hz = self.size.rate_hz / self.size.channels
        newest = MARGIN + MARGIN_FACTOR * rate_hz * (now_s() - self._began_s)
        return await self._patiently(lambda: self._history(round(newest)))

    async def _patiently(self, ask: Callable[[], T]) -> T:
        """Call it in a thread, again while it fails: a store that is just coming back is no fault of the rig's."""
        deadline = time.monotonic() + self.size.settle_s
        while True:
            try:
                return await asyncio.to_thread(ask)
            except (OSError, KeyError, RedisError):
                # KeyError: an error in place of a result.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    def _history(self, newest: int) -> list[Kept]:
        kept = []
        for i in range(0, len(self.channels), COMMANDS_AT_ONCE):
            names = self.channels[i : i + COMMANDS_AT_ONCE]
            commands = [{"history": {"channel": name, "limit": newest, "reverse": True}} for name in names]
            replies = self.api("batch", {"commands": commands})["replies"]
            for name, reply in zip(names, replies, strict=True):
                result = reply["history"]
                found = [[pub["offset"], pub["data"]["id"]] for pub in reversed(result["publications"])]
                kept.append(Kept(now_s(), name, result["epoch"], result["offset"], found))
        return kept

    def api(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request to the server API. Raises OSError (URLError) where it fails."""
        request = urllib.request.Request(
            f"{self.hub.api_url.rstrip('/')}/{method}", json.dumps(body).encode(), {"X-API-Key": self.hub.key}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    async def _levels(self) -> list[Level]:
        return await self._patiently(self._measure)

    def _measure(self) -> list[Level]:
        workers = self.hub.worker_pids()
        links = self.primary.info("clients")["connected_clients"]
        files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (*workers, self.hub.pid))
        connections = self._connections()
        forever = self._keys_forever()
        levels = [
            # Less the links to the store, which are bounded by a pool of their own and counted beside.
            ("descriptors", files - links, 8 * len(workers)),
            ("links to the store", links, COMMAND_LINKS * len(workers)),
            ("keys that never expire", forever, 2),
            ("connections counted", connections, 0),
            ("publishes without an answer", self._unanswered, 0),
            ("members who are not there", self._members() - self._subscriptions, 0),
        ]
        for pid in workers:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            levels.append((f"memory of worker {pid}", pages * 4096, MEMORY_SLACK_BYTES))
        return [Level(now_s(), *level) for level in levels]

    def _connections(self) -> int:
        """By the hub's own count; a worker that is not back on the control channel yet is waited for."""
        result = self.api("connections", {})["result"]
        if len(result["nodes"]) != self.size.workers or result.get("silent_nodes"):
            raise OSError(f"not all workers answer: {result}")
        return int(result["num_clients"])

    def _members(self) -> int:
        """Of all channels. Those of a killed worker vanish within a few seconds, and are waited for."""
        commands = [{"presence_stats": {"channel": name}} for name in self.channels]
        deadline = time.monotonic() + GHOSTS_S
        while True:
            count = 0
            for i in range(0, len(commands), COMMANDS_AT_ONCE):
                replies = self.api("batch", {"commands": commands[i : i + COMMANDS_AT_ONCE]})["replies"]
                count += sum(reply["presence_stats"]["num_clients"] for reply in replies)
            if count <= self._subscriptions or time.monotonic() > deadline:
                return count
            time.sleep(0.2)

    def _keys_forever(self) -> int:
        redis = self.primary.redis
        keys = list(redis.scan_iter(count=1000))
        with redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.pttl(key)
            return sum(ttl == -1 for ttl in pipe.execute())
