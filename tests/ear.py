"""An ear on the join and leave pushes of a channel, as they cross Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from redis.asyncio import Redis

from hub.message import unpack_arrivals


class Ear:
    """What is told on one Redis channel, push by push."""

    def __init__(self, pubsub: Any, redis: Redis, topic: str) -> None:
        self._pubsub, self._redis, self._topic = pubsub, redis, topic
        self._heard: list[tuple[str, str, str]] = []

    async def push(self) -> tuple[str, str, str]:
        """The next one, within 5 s: kind, user, client."""
        while not self._heard:
            message = await self.message()
            assert message is not None, "nothing was told"
            self._heard += map(_parse, unpack_arrivals(message))
        return self._heard.pop(0)

    async def pushes(self) -> list[tuple[str, str, str]]:
        """All that were told before this call."""
        await self._redis.publish(self._topic, b"end")
        while (message := await self.message()) != b"end":
            self._heard += map(_parse, unpack_arrivals(message))
        heard, self._heard = self._heard, []
        return heard

    async def message(self) -> bytes | None:
        """The next payload."""
        message = await self._pubsub.get_message(timeout=5, ignore_subscribe_messages=True)
        return message["data"] if message is not None else None


@contextlib.asynccontextmanager
async def listen(url: str, topic: str) -> AsyncIterator[Ear]:
    """Hear everything from now on."""
    async with Redis.from_url(url) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe(topic)
        await pubsub.get_message(timeout=5)
        yield Ear(pubsub, redis, topic)


def _parse(arrival: Any) -> tuple[str, str, str]:
    [(kind, push)] = orjson.loads(b"{" + arrival.body + b"}").items()
    return kind, push["info"]["user"], push["info"]["client"]
