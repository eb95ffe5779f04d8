"""Churn: one load process of short lives on all wires: they come, do something, and go, some without a word.

    python -m tests.soak.churn churn CONFIG     {"url":…,"api_url":…,"key":…,"secret":…,"lives":20,"seed":1}

Does: hold so many lives at a time on each of LIVES's wires in turn; count them and what went wrong.
Does not: judge losses: those of tests/chaos do, who stay and recover.
Called by: rig.
Never break: as tests.chaos.load: one line for each line, and the end of standard input is the end.

    {"do":"resume"} -> {}
    {"do":"pause"} -> {"lives":{"websocket":812,…},"slow":0,"wrong":[…]}      nobody is left then

Channels: `none:*`, `latest:*` and `room:*` with presence; `inbox:#uN` is user N's mailbox, of which each second life
acknowledges what it gets. `pause` ends what is under way politely, for whoever is cut off stays until a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from hub import auth
from tests.emulated import StreamClient, http, read_head
from tests.wires.engine import Client as SocketIOClient
from tests.wires.engine import ProtocolFault, Server

USERS = 20
CHANNELS = 10
STAY_S = (0.2, 3.0)
SLOW_S = 4.0
"""A slow reader reads nothing for so long."""
PAUSE_S = 0.05
"""Between two lives of one place."""
LIFE_S = 60.0
MOST_WRONG = 20
PUBLISH = "publish"


class Churn:
    """All lives of one process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._url, self._api_url, self._key = config["url"], config["api_url"], config["key"]
        self._secret = config["secret"]
        parts = urlsplit(self._url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._http = f"http://{parts.netloc}"
        self._rng = random.Random(config["seed"])
        self._running = asyncio.Event()
        self._tasks = [asyncio.create_task(self._place(i)) for i in range(config["lives"])]
        self._busy = 0
        self.lives: Counter[str] = Counter()
        self.slow = 0
        self.wrong: list[str] = []

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "resume":
            self._running.set()
            return {}
        self._running.clear()
        while self._busy:
            await asyncio.sleep(0.02)
        wrong, self.wrong = self.wrong, []
        return {"lives": dict(self.lives), "slow": self.slow, "wrong": wrong}

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _place(self, number: int) -> None:
        """One life after the other, each on the next wire."""
        names = list(LIVES)
        while True:
            await self._running.wait()
            name = names[number % len(names)]
            number += 1
            self._busy += 1
            try:
                async with asyncio.timeout(LIFE_S):
                    await LIVES[name](self)
                self.lives[name] += 1
            except TimeoutError:
                self.slow += 1
            except (OSError, EOFError, AssertionError, ValueError, ProtocolFault, WebSocketException) as error:
                # The border of one life: it is told, and the next one begins.
                if len(self.wrong) < MOST_WRONG:
                    self.wrong.append(f"{name}: {type(error).__name__} {error}"[:300])
            finally:
                self._busy -= 1
            await asyncio.sleep(PAUSE_S)

    # What lives are made of.

    def _stay_s(self) -> float:
        return self._rng.uniform(*STAY_S)

    def _channels(self, *namespaces: str) -> list[str]:
        return [f"{namespace}:{self._rng.randrange(CHANNELS)}" for namespace in namespaces]

    def _user(self) -> tuple[str, str]:
        """A user, and its token."""
        user = f"u{self._rng.randrange(USERS)}"
        return user, auth.make(user, self._secret, 300, time.time())

    async def _api(self, method: str, **params: Any) -> None:
        reader, writer = await asyncio.open_connection(self._host, urlsplit(self._api_url).port)
        try:
            path = urlsplit(self._api_url).path.rstrip("/")
            writer.write(http("POST", f"{path}/{method}", orjson.dumps(params), X_API_Key=self._key))
            status, headers = await read_head(reader)
            body = await reader.readexactly(int(headers["content-length"]))
            if b'"temporary":true' in body:
                raise TimeoutError  # Redis was away, or did not answer in time; the hub says so and is right to
            assert status == 200 and b'"error"' not in body, body
        finally:
            writer.close()

    # Lives.

    async def websocket(self) -> None:
        """Subscribe everywhere, publish, be mailed and acknowledge; close, or be gone."""
        user, token = self._user()
        polite = self._rng.random() < 0.5
        async with connect(self._url, proxy=None, compression=None) as socket:
            await socket.send(orjson.dumps({"id": 1, "connect": {"token": token}}).decode())
            names = [*self._channels("none", "latest", "room"), f"inbox:#{user}"]
            commands = [{"id": 2 + i, "subscribe": {"channel": name}} for i, name in enumerate(names)]
            commands.append({"id": 9, PUBLISH: {"channel": names[0], "data": {"x": 1}}})
            await socket.send("\n".join(orjson.dumps(command).decode() for command in commands))
            await self._api("notify", user=user, data={"text": "x" * 100})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stay_s()):
                    while True:
                        await self._answer(socket, await socket.recv(), polite)
            if not polite:
                socket.transport.abort()

    async def _answer(self, socket: Any, message: str, acknowledges: bool) -> None:
        """A ping, and what is in the mailbox; each reply must be a good one."""
        for line in map(orjson.loads, message.split("\n")):
            assert "error" not in line, line
            if not line:
                await socket.send("{}")
            push = line.get("push", {})
            found = push.get("pub", {}).get("tags", {}).get("id")
            if found and acknowledges and push.get("channel", "").startswith("inbox:"):
                call = {"method": "hub.ack", "data": {"channel": push["channel"], "ids": [found]}}
                await socket.send(orjson.dumps({"id": 1000, "rpc": call}).decode())

    async def slow(self) -> None:
        """A WebSocket that does not read while much comes; the hub may keep it or end it."""
        (name,) = self._channels("none")
        async with connect(self._url, proxy=None, compression=None) as socket:
            await socket.send(orjson.dumps({"id": 1, "connect": {}}).decode())
            await socket.send(orjson.dumps({"id": 2, "subscribe": {"channel": name}}).decode())
            socket.transport.pause_reading()
            for _ in range(10):
                await self._api(PUBLISH, channel=name, data="x" * 20_000)
                await asyncio.sleep(SLOW_S / 10)
            socket.transport.abort()

    async def event_stream(self) -> None:
        """Read for a while, and be gone: there is no other end."""
        names = self._channels("none", "latest", "room")
        query = "&".join(f"channel={name}" for name in names)
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(http("GET", f"/sse?{query}", Connection=None))
            status, _ = await read_head(reader)
            assert status == 200, status
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stay_s()):
                    while await reader.read(65_536):
                        pass
        finally:
            writer.close()

    async def http_stream(self) -> None:
        """The native protocol over requests of its own."""
        one = StreamClient(self._http, self._rng.choice(("lines", "events")))
        await one.connect(self._user()[1])
        try:
            for name in self._channels("none", "room"):
                await one.subscribe(name)
            await asyncio.sleep(self._stay_s())
        finally:
            one.close()

    async def long_poll(self) -> None:
        """Two polls, of which the second has the first one's cursor."""
        target = "/poll?" + "&".join(f"channel={name}" for name in self._channels("latest", "none"))
        for wait in ("0", "1"):
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                writer.write(http("GET", f"{target}&wait={wait}"))
                status, headers = await read_head(reader)
                assert status in (200, 204), status
                target += f"&since={headers['hub-cursor']}" if wait == "0" else ""
            finally:
                writer.close()

    async def socketio(self) -> None:
        """By polls, by WebSocket, and from one to the other; half of them by calls."""
        lost: list[Exception] = []
        wire = self._rng.choice(("polling", "upgrade", "websocket"))
        one = SocketIOClient(Server(self._host, self._port), wire, lambda name, arguments: None, lost.append)
        await one.open()
        for name in self._channels("none", "latest", "room"):
            await one.call("subscribe", {"channel": name})
        await one.settled()
        await asyncio.sleep(self._stay_s())
        await one.close()
        assert not lost, lost

    async def publish(self) -> None:
        """Newest values, and messages that nobody keeps."""
        for name in self._channels("latest", "none", "latest"):
            await self._api(PUBLISH, channel=name, data={"price": self._rng.random()})


LIVES: dict[str, Callable[[Churn], Awaitable[None]]] = {
    "websocket": Churn.websocket,
    "event stream": Churn.event_stream,
    "http stream": Churn.http_stream,
    "long poll": Churn.long_poll,
    "Socket.IO": Churn.socketio,
    "slow reader": Churn.slow,
    "publisher": Churn.publish,
}


async def _run(config: dict[str, Any]) -> None:
    churn = Churn(config)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # An empty line is the end of the input, and so of this process.
    while line := await reader.readline():
        print(orjson.dumps(await churn.obey(orjson.loads(line))).decode(), flush=True)
    await churn.stop()


if __name__ == "__main__":
    uvloop.run(_run(orjson.loads(sys.argv[2])))
