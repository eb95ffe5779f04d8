"""Notices: a `message` push to all connections of one user, or to every connection of this worker.

Does: find who is meant, encode the push once for each wire form, hand it out in slices.
Does not: hear of notices (registry, from the control channel) or keep them: who is not connected gets none.
Called by: building (builds it), registry (tell).
Never break: `tell` never waits, for it runs between publications; one turn of the loop writes to AT_ONCE connections at
most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from . import protocol
from .audience import WireForm
from .control import Notice
from .log import Brake

logger = logging.getLogger(__name__)

AT_ONCE = 250
"""Connections written to in one turn; about 2 ms."""
MAX_WAITING = 256
"""Notices that are still being handed out; the next one is dropped, with a line in the log."""


class Listener(Protocol):
    """A connection that may be told."""

    @property
    def wire(self) -> WireForm: ...

    connected: bool
    """Its connect command has succeeded, and it has not ended."""

    def put(self, frame: bytes) -> None:
        """Queue bytes that must not be lost. Never waits, never raises."""


class Notices:
    """What one worker's connections are being told."""

    def __init__(
        self, everybody: Callable[[], Iterable[Listener]], devices: Callable[[str, str], Iterable[Listener]]
    ) -> None:
        """everybody: all connections now. devices: those of one user that do not hold one channel."""
        self._everybody = everybody
        self._devices = devices
        self._waiting: deque[tuple[Iterator[Listener], _Encoded]] = deque()
        self._armed = False
        self._full = Brake()

    def tell(self, notice: Notice) -> None:
        """Begin to hand it out; notices go one after the other, in the order of the calls.

        Raises TypeError for data that orjson can't write.
        """
        if len(self._waiting) >= MAX_WAITING:
            self._full.warning(logger, "dropped a notice: %d are still being handed out", MAX_WAITING)
            return
        # A list of its own: connections come and go between the slices.
        found = self._devices(notice.user, notice.channel) if notice.user else self._everybody()
        listeners = list(found)
        if listeners:
            self._waiting.append((iter(listeners), _Encoded(protocol.encode_message(notice.data))))
            self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._slice)

    def _slice(self) -> None:
        self._armed = False
        left = AT_ONCE
        while self._waiting and left:
            listeners, message = self._waiting[0]
            for listener in listeners:
                if listener.connected:
                    listener.put(message.on(listener.wire))
                left -= 1
                if not left:
                    break
            else:
                self._waiting.popleft()
        if self._waiting:
            self._arm()


class _Encoded:
    """One message in the frames of each wire form that somebody here has."""

    __slots__ = ("_frames", "_message")

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._frames: dict[WireForm, bytes] = {}

    def on(self, wire: WireForm) -> bytes:
        frame = self._frames.get(wire)
        if frame is None:
            frame = self._frames[wire] = wire.encode_message(self._message)
        return frame
