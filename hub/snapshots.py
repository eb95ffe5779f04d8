"""Snapshots: the newest value of a `latest` channel for a subscriber that comes, in order with what is published.

Does: ask Redis once for all who want the same value at the same time, and tell it at the moment to which it belongs.
Does not: keep values (fanout has those of channels with subscribers), subscribe or publish.
Called by: subscribe (ask, passed), ingest through worker (heard), worker (lost, close).
Never break: whoever joins a channel inside its `done` sees nothing older than the value behind it, and misses nothing
newer: the value comes by the same connection as the publications, and newest.lua has put it in its place among them.
Every `ask` is answered.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from .channels import namespace_of
from .errors import BrokerUnavailable, HubError
from .message import Publication
from .store import Keys

Done = Callable[[bytes | HubError | None], None]
BATCH = 128
"""Channels in one question: of 64 KB each, 8 MB in one message of Redis."""
TELL_AT_ONCE = 256
"""Subscribers in one go, a few milliseconds' work."""
MAX_ASKED = 16_384
"""Channels that may wait for their value; who comes then is told to try again."""

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """Who runs scripts; broker.Broker."""

    def script(
        self, name: str, keys: Sequence[str], arguments: Sequence[Any], replied: Callable[[Any], None]
    ) -> None: ...


class Snapshots:
    """The questions of one worker."""

    def __init__(self, runner: Runner, keys: Keys, topic: str) -> None:
        """topic: the worker's own Redis channel, of which `heard` gets the messages."""
        self._runner = runner
        self._keys = keys
        self._topic = topic
        self._tokens = itertools.count(1)
        self._waiting: dict[str, None] = {}
        """To be asked at the end of this turn."""
        self._asked: dict[bytes, list[str]] = {}
        """By token."""
        self._dones: dict[str, list[Done]] = {}
        """Of all channels that have been or will be asked, or are being told."""
        self._telling: dict[str, bytes | None] = {}
        """The values of those that take longer than a turn to be told, kept up to date."""
        self._closed = False

    @property
    def busy(self) -> bool:
        """Somebody is about to be told, so `passed` has to be told what comes."""
        return bool(self._telling)

    def ask(self, channel: str, done: Done) -> None:
        """`done` is called later with the newest body, None where there is none, or a HubError."""
        dones = self._dones.get(channel)
        if dones is not None:
            dones.append(done)
            return
        if len(self._dones) >= MAX_ASKED:
            asyncio.get_running_loop().call_soon(done, BrokerUnavailable("too many wait for their newest value"))
            return
        self._dones[channel] = [done]
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting[channel] = None

    def passed(self, publications: Iterable[Publication]) -> None:
        """What comes from Redis while `busy`."""
        for channel, body in publications:
            if channel in self._telling:
                self._telling[channel] = body

    def heard(self, payload: bytes) -> None:
        """A message of our own channel. Whoever reaches Redis can write there: what was not asked for is nothing."""
        token, *values = payload.split(b"\n")
        channels = self._asked.get(token)
        if channels is None or len(channels) != len(values):
            return
        del self._asked[token]
        for channel, value in zip(channels, values, strict=True):
            self._tell(channel, value or None)

    def lost(self) -> None:
        """Messages of our channel may have been lost: who waits for one is told to try again."""
        asked, self._asked = self._asked, {}
        for channels in asked.values():
            self._refuse(channels, BrokerUnavailable("the subscriber connection to Redis was lost"))

    def close(self) -> None:
        """Ask no more; who waits is not answered, as the worker ends."""
        self._closed = True

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if self._closed:
            return
        by_namespace: dict[str, list[str]] = {}
        for channel in waiting:
            by_namespace.setdefault(namespace_of(channel), []).append(channel)
        for namespace, channels in by_namespace.items():
            for i in range(0, len(channels), BATCH):
                self._question(namespace, channels[i : i + BATCH])

    def _question(self, namespace: str, channels: list[str]) -> None:
        token = b"%d" % next(self._tokens)
        self._asked[token] = channels
        keys = [self._keys.last(namespace, channel) for channel in channels]
        self._runner.script("newest", keys, [self._topic, token], partial(self._replied, token))

    def _replied(self, token: bytes, reply: Any) -> None:
        """Redis has run the script, or not; the values come by the other connection."""
        if isinstance(reply, HubError):
            self._refuse(self._asked.pop(token, []), reply)

    def _refuse(self, channels: Iterable[str], error: HubError) -> None:
        for channel in channels:
            for done in self._dones.pop(channel, []):
                _call(done, error)

    def _tell(self, channel: str, value: bytes | None) -> None:
        """In slices, as thousands may come at once; who asks meanwhile is told too, and so is what passes."""
        dones = self._dones[channel]
        for done in dones[:TELL_AT_ONCE]:
            _call(done, value)
        del dones[:TELL_AT_ONCE]
        if dones and not self._closed:
            self._telling[channel] = value
            asyncio.get_running_loop().call_soon(self._tell_more, channel)
        else:
            del self._dones[channel]

    def _tell_more(self, channel: str) -> None:
        self._tell(channel, self._telling.pop(channel))


def _call(done: Done, answer: bytes | HubError | None) -> None:
    try:
        done(answer)
    except Exception:
        # One subscriber's fault must not keep their values from all others.
        logger.exception("a subscription failed on its value")
