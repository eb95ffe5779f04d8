"""Load: one process of clients or publishers, told what to do by lines of JSON on its standard input.

    python -m tests.chaos.load ROLE CONFIG      ROLE: clients, sdks, publishers; sdk.mjs is the fourth, for JavaScript

Does: hold the clients, obey, answer each line with one line; write its events into one file, and complete before it
answers `settle` or `pause`.
Does not: judge, or know of faults.
Called by: rig.
Never break: the process ends when its standard input does, so that nothing outlives a rig that was killed.

    all         {"do":"stop"}
    clients     {"do":"ready"} -> {"behind":0}                 everybody is subscribed everywhere
                {"do":"settle","tops":{CHANNEL:[EPOCH,OFFSET]},"timeout_s":20} -> {"behind":0,"who":[…],"refused":[…]}
                {"do":"reconnect","count":5} -> {"ports":[…]}    lose so many connections of their own will
                {"do":"stall","count":5,"seconds":3} -> {"ports":[…],"channels":[…]}     read nothing
    publishers  {"do":"ready"} -> {}                                  everybody is connected
                {"do":"pause"} -> {"busy":0,"refused":[…]}      {"do":"resume"} -> {}
                {"do":"flood","channels":[…],"count":50,"bytes":8000} -> {}
    visitors    {"do":"visit"} -> {}                            {"do":"rest"} -> {"outcomes":{"served":812}}
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import centrifuge
import orjson
import uvloop

from .client import ABNORMAL, Client
from .events import Connected, Gone, Log, Received, Subscribed, Unsubscribed, now_s
from .publisher import ApiPublisher, ClientPublisher, Pace
from .visitors import Visitors

POLL_S = 0.02
READY_TIMEOUT_S = 60.0
PAUSE_TIMEOUT_S = 130.0
"""Above publisher.GIVE_UP_S."""
SHOWN = 5
"""Of those behind, by name."""

Config = dict[str, Any]
Command = dict[str, Any]
Answer = dict[str, Any]


class Clients:
    """Light clients. config: url, names, channels (a list for each name), seed."""

    def __init__(self, config: Config, log: Log) -> None:
        rng = random.Random(config["seed"])
        pairs = zip(config["names"], config["channels"], strict=True)
        self._rng = rng
        self._clients = [Client(name, config["url"], channels, log, rng) for name, channels in pairs]
        self._verbs: dict[str, Callable[[Command], Awaitable[Answer]]] = {
            "ready": self._ready,
            "settle": self._settle,
            "reconnect": self._reconnect,
            "stall": self._stall,
        }

    async def start(self) -> None:
        for client in self._clients:
            client.start()

    async def obey(self, command: Command) -> Answer:
        return await self._verbs[command["do"]](command)

    async def stop(self) -> None:
        await stop_all(self._clients)

    async def _ready(self, command: Command) -> Answer:
        return await self._until(lambda client: not all(place.online for place in client.places.values()))

    async def _settle(self, command: Command) -> Answer:
        tops = command["tops"]

        def is_behind(client: Client) -> bool:
            return any(client.behind(channel, *tops[channel]) for channel in client.places if channel in tops)

        return await self._until(is_behind, command["timeout_s"])

    async def _until(self, is_behind: Callable[[Client], bool], timeout_s: float = READY_TIMEOUT_S) -> Answer:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (behind := [c for c in self._clients if is_behind(c)]) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_S)
        refused = [text for client in self._clients for text in client.refused]
        return {"behind": len(behind), "who": [c.name for c in behind[:SHOWN]], "refused": refused[:SHOWN]}

    async def _reconnect(self, command: Command) -> Answer:
        chosen = self._rng.sample(self._clients, min(command["count"], len(self._clients)))
        for client in chosen:
            client.cut()
        return {"ports": [client.port for client in chosen]}

    async def _stall(self, command: Command) -> Answer:
        chosen = self._rng.sample(self._clients, min(command["count"], len(self._clients)))
        for client in chosen:
            client.stall(command["seconds"])
        return {"ports": [c.port for c in chosen], "channels": sorted({name for c in chosen for name in c.places})}


class _SdkEvents(centrifuge.ClientEventHandler):
    """What the stock Python SDK tells its application about its connection."""

    def __init__(self, name: str, log: Log) -> None:
        self._name = name
        self._log = log
        self._up = False

    async def on_connected(self, ctx: Any) -> None:
        self._up = True
        self._log.write(Connected(now_s(), self._name, 0))

    async def on_connecting(self, ctx: Any) -> None:
        if self._up:
            self._log.write(Gone(now_s(), self._name, ctx.code, False))
        self._up = False

    async def on_disconnected(self, ctx: Any) -> None:
        if self._up:
            self._log.write(Gone(now_s(), self._name, ctx.code or ABNORMAL, True))
        self._up = False


class _SdkPlace(centrifuge.SubscriptionEventHandler):
    """The same about one subscription."""

    def __init__(self, name: str, channel: str, log: Log) -> None:
        self._name = name
        self._channel = channel
        self._log = log
        self.online = False
        self.epoch = ""
        self.offset = 0

    async def on_subscribed(self, ctx: Any) -> None:
        position = ctx.stream_position
        self.online, self.epoch = True, position.epoch if position else ""
        offset = position.offset if position else 0
        event = Subscribed(now_s(), self._name, self._channel, self.epoch, offset, ctx.was_recovering, ctx.recovered)
        self._log.write(event)
        if not ctx.recovered:
            self.offset = offset

    async def on_subscribing(self, ctx: Any) -> None:
        if self.online and ctx.code >= 2500:
            self._log.write(Unsubscribed(now_s(), self._name, self._channel, ctx.code))
        self.online = False

    async def on_publication(self, ctx: Any) -> None:
        self.offset = ctx.pub.offset
        self._log.write(Received(now_s(), self._name, self._channel, ctx.pub.offset, ctx.pub.data["id"]))


class Sdks:
    """Stock Python SDKs; the config and the commands of Clients."""

    def __init__(self, config: Config, log: Log) -> None:
        self._rng = random.Random(config["seed"])
        self._sdks: list[tuple[str, centrifuge.Client, dict[str, _SdkPlace]]] = []
        for name, channels in zip(config["names"], config["channels"], strict=True):
            sdk = centrifuge.Client(
                config["url"],
                events=_SdkEvents(name, log),
                proxy=None,
                min_reconnect_delay=0.1,
                max_reconnect_delay=2.0,
            )
            self._sdks.append((name, sdk, {channel: _SdkPlace(name, channel, log) for channel in channels}))

    async def start(self) -> None:
        for _, sdk, places in self._sdks:
            for channel, place in places.items():
                subscription = sdk.new_subscription(channel, events=place, recoverable=True, positioned=True)
                await subscription.subscribe()
            await sdk.connect()

    async def obey(self, command: Command) -> Answer:
        if command["do"] == "reconnect":
            return await self._reconnect(command["count"])
        if command["do"] == "stall":
            return {"ports": [], "channels": []}  # the SDK reads as fast as it can
        tops = command.get("tops")

        def is_behind(places: dict[str, _SdkPlace]) -> bool:
            wanted = places if tops is None else tops
            return any(
                not place.online or (tops is not None and [place.epoch, place.offset] != tops[channel])
                for channel, place in places.items()
                if channel in wanted
            )

        deadline = asyncio.get_running_loop().time() + command.get("timeout_s", READY_TIMEOUT_S)
        while (behind := [name for name, _, places in self._sdks if is_behind(places)]) and (
            asyncio.get_running_loop().time() < deadline
        ):
            await asyncio.sleep(POLL_S)
        return {"behind": len(behind), "who": behind[:SHOWN], "refused": []}

    async def _reconnect(self, count: int) -> Answer:
        for _, sdk, _ in self._rng.sample(self._sdks, min(count, len(self._sdks))):
            await sdk.disconnect()
            await sdk.connect()
        return {"ports": []}

    async def stop(self) -> None:
        for _, sdk, _ in self._sdks:
            await sdk.disconnect()


class Publishers:
    """config: url, api_url, key, channels, rate_hz, api and clients (how many), share (of the rate by API), seed."""

    def __init__(self, config: Config, log: Log) -> None:
        rng = random.Random(config["seed"])
        channels, count = config["channels"], config["api"]
        self._config = config
        self._pace = Pace()
        self._api = [
            ApiPublisher(f"a{i}", config["api_url"], config["key"], channels[i::count], log, rng) for i in range(count)
        ]
        self._flood = ApiPublisher("flood", config["api_url"], config["key"], channels, log, rng)
        self._connections = [Client(f"w{i}", config["url"], [], log, rng) for i in range(config["clients"])]
        self._clients = [ClientPublisher(connection, channels, log, rng) for connection in self._connections]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._pace.running.clear()
        api_hz = self._config["rate_hz"] * self._config["share"] / max(1, len(self._api))
        client_hz = self._config["rate_hz"] * (1 - self._config["share"]) / max(1, len(self._clients))
        for connection in self._connections:
            connection.start()
        for publisher in self._api:
            self._tasks.append(asyncio.create_task(publisher.run(api_hz, self._pace)))
        for one in self._clients:
            self._tasks.append(asyncio.create_task(one.run(client_hz, self._pace)))

    async def obey(self, command: Command) -> Answer:
        if command["do"] == "resume":
            self._pace.running.set()
        elif command["do"] == "ready":
            while not all(connection.connected for connection in self._connections):
                await asyncio.sleep(POLL_S)
        elif command["do"] == "pause":
            self._pace.running.clear()
            deadline = asyncio.get_running_loop().time() + PAUSE_TIMEOUT_S
            while self._pace.busy and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(POLL_S)
        elif command["do"] == "flood":
            for _ in range(command["count"]):
                for channel in command["channels"]:
                    await self._flood.publish(channel, "x" * command["bytes"])
        refused = [
            text
            for publisher in (*self._api, *self._clients, *self._connections, self._flood)
            for text in publisher.refused
        ]
        return {"busy": self._pace.busy, "refused": refused[:SHOWN]}

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._flood.close()
        await stop_all(self._connections)


async def stop_all(clients: list[Client]) -> None:
    """Return when the last of them has written its last line."""
    for client in clients:
        client.stop()
    while any(client.connected for client in clients):
        await asyncio.sleep(POLL_S)


class Visits:
    """New connections while they are wanted. config: url, rate_hz."""

    def __init__(self, config: Config, log: Log) -> None:
        self._visitors = Visitors(config["url"], config["rate_hz"])

    async def start(self) -> None:
        """None yet."""

    async def obey(self, command: Command) -> Answer:
        if command["do"] == "visit":
            self._visitors.start()
            return {}
        await self._visitors.close()
        outcomes, self._visitors.outcomes = self._visitors.outcomes, Counter()
        return {"outcomes": outcomes}

    async def stop(self) -> None:
        await self._visitors.close()


ROLES: dict[str, Callable[[Config, Log], Clients | Sdks | Publishers | Visits]] = {
    "clients": Clients,
    "sdks": Sdks,
    "publishers": Publishers,
    "visitors": Visits,
}


async def _run(role: str, config: Config) -> None:
    log = Log(Path(config["log"]))
    crew = ROLES[role](config, log)
    await crew.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # An empty line is the end of the input, and so of this process.
    while (line := await reader.readline()) and (command := orjson.loads(line))["do"] != "stop":
        answer = await crew.obey(command)
        log.flush()
        print(orjson.dumps(answer).decode(), flush=True)
    await crew.stop()
    log.close()


if __name__ == "__main__":
    uvloop.run(_run(sys.argv[1], orjson.loads(sys.argv[2])))
