"""Snapshots: the newest value of a `latest` channel for a subscriber that comes back.

Does: read it from Redis once for all who ask at the same time, and not tell an older one than what passed meanwhile.
Does not: keep values, subscribe or publish; broker stores and reads them.
Called by: subscribe.
Never break: `passed` costs nothing while nobody waits; every `ask` is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from . import tasks
from .channels import namespace_of
from .errors import BrokerUnavailable, HubError
from .message import Publication

Done = Callable[[bytes | HubError | None], None]
BATCH = 512
"""Channels in one MGET."""
TELL_AT_ONCE = 256
"""Subscribers in one go, a few milliseconds' work."""

logger = logging.getLogger(__name__)


class Values(Protocol):
    """Who knows the newest values; broker.Broker."""

    async def last(self, namespace: str, channels: Sequence[str]) -> list[bytes | None]:
        """Raises BrokerUnavailable."""


class Snapshots:
    """The questions of one worker."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._waiting: dict[str, list[Done]] = {}
        self._asked: dict[str, list[Done]] = {}
        self._passed: dict[str, bytes] = {}
        """What came of the channels that are waited for, since somebody asked."""
        self._sender: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Somebody waits, so `passed` has to be told what comes."""
        return bool(self._waiting or self._asked)

    def ask(self, channel: str, done: Done) -> None:
        """`done` is called later with the newest body, None where there is none, or BrokerUnavailable."""
        if channel in self._asked:
            self._asked[channel].append(done)
            return
        self._waiting.setdefault(channel, []).append(done)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    def passed(self, publications: Iterable[Publication]) -> None:
        """What comes from Redis while `busy`."""
        for channel, body in publications:
            if channel in self._waiting or channel in self._asked:
                self._passed[channel] = body

    async def close(self) -> None:
        """Ask no more; who waits is not answered, as the worker ends."""
        self._waiting.clear()
        if self._sender is not None:
            await tasks.end(self._sender)

    async def _send(self) -> None:
        try:
            while self._waiting:
                namespace = namespace_of(next(iter(self._waiting)))
                channels = [name for name in self._waiting if namespace_of(name) == namespace][:BATCH]
                self._asked = {name: self._waiting.pop(name) for name in channels}
                await self._round_trip(namespace, channels)
        finally:
            self._sender = None

    async def _round_trip(self, namespace: str, channels: list[str]) -> None:
        answers: Sequence[bytes | HubError | None]
        try:
            answers = await self._values.last(namespace, channels)
        except BrokerUnavailable as error:
            answers = self._refuse(error)
        except Exception:
            # A fault of ours: who waits must not wait for ever.
            logger.exception("reading newest values failed")
            answers = self._refuse(BrokerUnavailable("reading newest values failed"))
        for channel, answer in zip(list(self._asked), answers, strict=True):
            await self._tell_all(channel, answer)

    async def _tell_all(self, channel: str, answer: bytes | HubError | None) -> None:
        """In slices, as thousands may come back at once; who asks meanwhile is told too, and so is what passes."""
        dones = self._asked[channel]
        while True:
            some = dones[:TELL_AT_ONCE]
            del dones[:TELL_AT_ONCE]
            newest = self._passed.get(channel)
            for done in some:
                _tell(done, newest if newest is not None else answer)
            if not dones:
                break
            await asyncio.sleep(0)
        del self._asked[channel]
        self._passed.pop(channel, None)

    def _refuse(self, error: BrokerUnavailable) -> list[BrokerUnavailable]:
        """All who wait by now have this answer: were each question to try for itself, the last would wait for long."""
        waiting, self._waiting = self._waiting, {}
        for channel, dones in waiting.items():
            self._asked.setdefault(channel, []).extend(dones)
        return [error] * len(self._asked)


def _tell(done: Done, answer: bytes | HubError | None) -> None:
    try:
        done(answer)
    except Exception:
        # One subscriber's fault must not keep their values from all others.
        logger.exception("a subscription failed on its value")
