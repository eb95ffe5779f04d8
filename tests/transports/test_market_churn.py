"""Market data under churn: clients of all wires that come, change what they want in any order, and go without a word.

What must hold, whatever they do: no older value behind a newer one, and nothing is left of anybody when all have gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from hub import symbols
from tests.eventsource import request, stream
from tests.nodes import until
from tests.plane import Plane, plane
from tests.support import async_test
from tests.transports.test_websocket_market import publish, token

NAMES = {"ticker": ["A", "B", "C"], "fx": ["AA", "AB", "AC", "BA", "BB", "CA"], "wide": [f"W{i:02}" for i in range(20)]}
PATTERNS = ["A*", "B*", "AA*", "W0*", "W1*", "W*", "C*"]
CHANNELS = [*(f"{name}:$watch" for name in NAMES), "ticker:A", "fx:AA", "wide:W01"]
RATES = [0, 1, 5, 20, 30, 60, 100, 1000]
CLIENTS, SESSIONS, STEPS = 6, 6, 30


class Churner:
    """One client that does what comes to its mind."""

    def __init__(self, hub: Plane, dice: random.Random) -> None:
        self.hub, self.dice = hub, dice
        self.newest: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        for _ in range(SESSIONS):
            async with connect(self.hub.url, proxy=None, max_queue=4, close_timeout=0.05) as socket:
                reader = asyncio.create_task(self.read(socket))
                # A slow one may be closed for that, in the middle of whatever it does.
                with contextlib.suppress(ConnectionClosed):
                    await self.live(socket)
                if self.dice.random() < 0.3:
                    socket.transport.abort()
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await reader

    async def live(self, socket: ClientConnection) -> None:
        who = {"token": token(f"user{self.dice.randrange(3)}")} if self.dice.random() < 0.5 else {}
        commands = itertools.chain([{"connect": who}], (self.any_command() for _ in range(self.dice.randrange(STEPS))))
        numbered = [{"id": number, **command} for number, command in enumerate(commands, 1)]
        while numbered:
            some = self.dice.randrange(1, 4)
            lines, numbered = numbered[:some], numbered[some:]
            await socket.send(b"\n".join(map(orjson.dumps, lines)).decode())
            await asyncio.sleep(self.dice.choice([0, 0, 0.01, 0.05]))

    def any_command(self) -> dict:
        dice = self.dice
        channel = dice.choice(CHANNELS)
        name = channel.partition(":")[0]
        deed = dice.random()
        if deed < 0.35:
            data = {"symbols": self.any_symbols(name)} if channel.endswith("$watch") else {}
            data |= dice.choice([{}, {"hz": dice.choice(RATES)}, {"mode": "raw"}])
            data |= dice.choice([{}, {"fields": ["seq"]}]) | dice.choice([{}, {"marks": True}])
            return {"subscribe": {"channel": channel, "data": data, "recover": dice.random() < 0.4}}
        if deed < 0.5:
            return {"unsubscribe": {"channel": channel}}
        if deed < 0.7:
            return {"rpc": {"method": "hub.rate", "data": {"channel": channel, "hz": dice.choice(RATES)}}}
        change = {"add": self.any_symbols(name), "remove": self.any_symbols(name)}
        return {"rpc": {"method": "hub.watch", "data": {"channel": f"{name}:$watch", **change}}}

    def any_symbols(self, name: str) -> list[str]:
        patterns = [] if name == "ticker" else self.dice.sample(PATTERNS, self.dice.randrange(2))
        return self.dice.sample(NAMES[name], self.dice.randrange(4)) + patterns

    async def read(self, socket: ClientConnection) -> None:
        self.newest = {}
        async for message in socket:
            if self.dice.random() < 0.02:
                await asyncio.sleep(0.1)
            for line in map(orjson.loads, message.split("\n")):
                if "pub" in line.get("push", {}):
                    self.see(line["push"]["channel"], line["push"]["pub"])

    def see(self, channel: str, pub: dict) -> None:
        key = channel, pub.get("tags", {}).get("channel", channel)
        assert pub["data"]["seq"] >= self.newest.get(key, 0), key
        self.newest[key] = pub["data"]["seq"]


async def listen(hub: Plane, dice: random.Random) -> None:
    """Event streams, one after the other."""
    for _ in range(SESSIONS):
        wish = dice.choice(["", "&hz=20", "&fields=seq", "&marks=true&hz=5", "&mode=raw"])
        async with stream(hub.port, f"channel=fx:$watch&symbols=AB,{dice.choice(PATTERNS)}{wish}") as one:
            for _ in range(dice.randrange(5)):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(one.next(), 0.1)


async def poll(hub: Plane, dice: random.Random) -> None:
    """Polls, each from where the one before ended."""
    cursor, newest = "", {}
    for _ in range(SESSIONS * 3):
        query = f"channel=wide:$watch&symbols=W01,W0*&fields=seq&wait={dice.choice(['0', '0.1'])}"
        answer = await request(hub.port, "GET", f"/poll?{query}{cursor and '&since='}{cursor}")
        cursor = answer.headers.get("hub-cursor") or cursor
        for pub in (one["pub"] for one in answer.json["messages"]) if answer.status == 200 else ():
            symbol = pub["tags"]["channel"]
            assert pub["data"]["seq"] > newest.get(symbol, 0)
            newest[symbol] = pub["data"]["seq"]


async def feed(hub: Plane, dice: random.Random, stop: asyncio.Event) -> None:
    for seq in itertools.count(1):
        if stop.is_set():
            return
        name = dice.choice(list(NAMES))
        await publish(hub, dice.choice(NAMES[name]), seq, seq, name)


def left(hub: Plane) -> dict[str, object]:
    """What is still held of anybody, by its name."""
    fanout, subscriptions = hub.fanout, hub.services.subscriptions
    rooms = {
        fanout: "_batch _late _stands _skipped _replaced _paused subscriptions waiting_bytes",
        fanout._groups: "_known _moves _swaps",
        fanout.lines: "by_channel marked",
        subscriptions: "_topics _entering",
        subscriptions.symbols: "_books _known _rechecks",
        subscriptions._snapshots: "_waiting _asked _dones _telling",
    }
    rooms |= dict.fromkeys(fanout.paces._paces.values(), "groups waiting arrivals")
    found = {name: getattr(room, name) for room, names in rooms.items() for name in names.split()}
    board = fanout._board
    found["slots"] = len(board.ready) - len(board._free) - len(board._retired)
    found |= {"polls": len(hub.polls), "connections": hub.reactor.connections}
    return {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("seed", [1, 2])
@async_test
async def test_nothing_is_left_of_clients_that_come_change_and_go(valkey_url, prefix, monkeypatch, seed):
    """Not one audience, group, slot, timer's list or Redis channel."""
    monkeypatch.setattr(symbols, "LINGER_S", 0.05)
    monkeypatch.setattr(symbols, "APPEAR_AT_ONCE", 2)
    async with plane(valkey_url, prefix) as hub:
        stop = asyncio.Event()
        feeding = asyncio.create_task(feed(hub, random.Random(seed), stop))
        dice = [random.Random(100 * seed + i) for i in range(CLIENTS + 3)]
        churners = [Churner(hub, one).run() for one in dice[:CLIENTS]]
        await asyncio.gather(*churners, listen(hub, dice[-3]), listen(hub, dice[-2]), poll(hub, dice[-1]))
        stop.set()
        await feeding
        await until(lambda: not left(hub))
        assert hub.fanout.deliveries > 100
