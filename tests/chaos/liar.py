"""Liar: a small hub in memory that speaks the native protocol and lies on purpose.

Does: connect, subscribe, recover, publish; break one promise, as it was told to.
Does not: know Redis, rules or limits. It is no hub: it is how the checker and the clients show that they would notice.
Called by: test_liar.

    ""         honest                                  "drops"     one live message in ten
    "hides"    the first message of each recovery      "alarms"    `recovered: false`, although it has everything
    "swaps"    two neighbours, one time in ten         "repeats"   one message in ten comes twice
    "invents"  a message that nobody published         "strays"    a message in another channel
    "forgets"  its last messages, and goes on as if nothing had happened: a lagging replica without generations
    "acks"     what it does not keep                   "deserts"   it sends 2500, and then only errors
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

EPOCH = "1.liar"
ONE_IN = 10
FORGOTTEN = 3


class Liar:
    """`publish` is its server API; `cut` loses all connections."""

    def __init__(self, lie: str = "") -> None:
        self._lie = lie
        self._channels: dict[str, list[str]] = {}
        self._subscribers: dict[str, set[ServerConnection]] = {}
        self._held: dict[str, bytes] = {}
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Liar]:
        async with serve(self._serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            self.url = f"ws://{host}:{port}/connection/websocket"
            yield self

    def kept(self, channel: str) -> list[list[Any]]:
        return [[offset, message] for offset, message in enumerate(self._channels.get(channel, []), 1)]

    async def publish(self, channel: str, message: str) -> int:
        """Keep and send; the offset."""
        log = self._channels.setdefault(channel, [])
        if self._lie == "acks" and len(log) % ONE_IN == ONE_IN - 1:
            return len(log) + 1
        log.append(message)
        offset = len(log)
        push = _push(channel, offset, message)
        for payload, target in self._twist(channel, offset, push):
            for subscriber in list(self._subscribers.get(target, ())):
                with contextlib.suppress(ConnectionClosed):
                    await subscriber.send(payload.decode())
        return offset

    def _twist(self, channel: str, offset: int, push: bytes) -> list[tuple[bytes, str]]:
        """What is sent instead of one push, and to whose subscribers."""
        if held := self._held.pop(channel, b""):
            return [(push, channel), (held, channel)]
        if offset % ONE_IN:
            return [(push, channel)]
        twists: dict[str, Callable[[], list[tuple[bytes, str]]]] = {
            "drops": list,
            "swaps": lambda: self._hold(channel, push),
            "repeats": lambda: [(push, channel), (push, channel)],
            "invents": lambda: [(push, channel), (_push(channel, offset + 1, "nobody-1"), channel)],
            "strays": lambda: [
                (push, channel),
                *[(push.replace(channel.encode(), b"s:0"), "s:0")] * (channel != "s:0"),
            ],
        }
        return twists.get(self._lie, lambda: [(push, channel)])()

    def _hold(self, channel: str, push: bytes) -> list[tuple[bytes, str]]:
        """Keep it until the next one has been sent."""
        self._held[channel] = push
        return []

    async def cut(self) -> None:
        """Lose every connection."""
        connections = {one for subscribers in self._subscribers.values() for one in subscribers}
        self._subscribers.clear()
        for connection in connections:
            connection.transport.abort()

    async def desert(self) -> None:
        """Unsubscribe everybody with 2500."""
        for channel, subscribers in self._subscribers.items():
            for subscriber in list(subscribers):
                await subscriber.send(
                    orjson.dumps({"push": {"channel": channel, "unsubscribe": {"code": 2500, "reason": ""}}}).decode()
                )
        self._subscribers.clear()

    def forget(self) -> None:
        """Lose the last messages of every channel, without a word."""
        for log in self._channels.values():
            del log[-FORGOTTEN:]

    async def _serve(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                for line in str(message).split("\n"):
                    if answer := self._answer(connection, orjson.loads(line)):
                        await connection.send(orjson.dumps(answer).decode())

    def _answer(self, connection: ServerConnection, command: dict[str, Any]) -> dict[str, Any]:
        if "connect" in command:
            return {"id": command["id"], "connect": {"client": "x", "version": "liar", "ping": 25, "pong": True}}
        if wish := command.get("subscribe"):
            if self._lie == "deserts" and wish.get("recover"):
                return {"id": command["id"], "error": {"code": 100, "message": "internal", "temporary": True}}
            self._subscribers.setdefault(wish["channel"], set()).add(connection)
            return {"id": command["id"], "subscribe": self._subscribed(wish)}
        return {}

    def _subscribed(self, wish: dict[str, Any]) -> dict[str, Any]:
        log = self._channels.setdefault(wish["channel"], [])
        result: dict[str, Any] = {"recoverable": True, "positioned": True, "epoch": EPOCH, "offset": len(log)}
        if not wish.get("recover"):
            return result
        result["was_recovering"] = True
        if self._lie == "alarms":
            return result
        missed = [_publication(offset, message) for offset, message in enumerate(log, 1) if offset > wish["offset"]]
        if self._lie == "hides":
            missed = missed[1:]
        return {**result, "recovered": True, "publications": missed}


def _publication(offset: int, message: str) -> dict[str, Any]:
    return {"offset": offset, "data": {"id": message}}


def _push(channel: str, offset: int, message: str) -> bytes:
    return orjson.dumps({"push": {"channel": channel, "pub": _publication(offset, message)}})
