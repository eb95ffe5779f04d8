"""Remembered: what clients changed of their subscriptions, in Redis, for when they come back to any worker.

Does: keep one text by name for a while, the newest of each name in one turn of the loop; give it out.
Does not: know what stands in it (wants) or whose it is.
Called by: membership.
Never break: every `recall` is answered; what Redis does not take or have is as if it had never been.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from .errors import HubError
from .log import Brake
from .store import Keys

logger = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""Names to be saved in one turn; beyond, what a client changed is not kept."""

Found = Callable[[object], None]


class Runner(Protocol):
    """Who talks to Redis; broker.Broker."""

    def command(self, command: tuple[Any, ...], size: int, replied: Callable[[Any], None]) -> None: ...


class Remembered:
    """The texts that one worker keeps and asks for."""

    def __init__(self, runner: Runner, keys: Keys) -> None:
        self._runner = runner
        self._key = keys.wants
        self._saving: dict[str, tuple[bytes, float]] = {}
        self._trouble = Brake()

    def save(self, name: str, text: bytes, seconds: float) -> None:
        """Keep it so long, instead of what was kept. name: '' for nobody's, of which nothing is kept."""
        if not name or (len(self._saving) >= MAX_WAITING and name not in self._saving):
            return
        if not self._saving:
            asyncio.get_running_loop().call_soon(self._send)
        self._saving[name] = (text, seconds)

    def recall(self, name: str, found: Found) -> None:
        """`found` is called later, never from within this call, with the bytes that are kept, or None."""
        saving = self._saving.get(name)
        if saving is not None:
            asyncio.get_running_loop().call_soon(found, saving[0])
            return
        key = self._key(name)
        self._runner.command(("GET", key), len(key), lambda reply: found(reply if isinstance(reply, bytes) else None))

    def _send(self) -> None:
        saving, self._saving = self._saving, {}
        for name, (text, seconds) in saving.items():
            self._runner.command(("SET", self._key(name), text, "PX", int(seconds * 1000)), len(text), self._saved)

    def _saved(self, reply: Any) -> None:
        if isinstance(reply, HubError):
            self._trouble.warning(logger, "what clients changed is not kept: %s", reply)
