"""Remembered: what clients changed of their subscriptions, in Redis, for when they come back to any worker.

Does: keep one text by name for a while, at once, or the newest of each name in steps; give it out.
Does not: know what stands in it (wants) or whose it is.
Called by: membership.
Never break: every `recall` is answered, on this worker with the newest text; what Redis does not take or have is as if
it had never been.

A client that moves a slider changes its rate some times a second, and thousands may: so a few names are saved in each
step, with what is newest of each. A worker that is killed takes with it what was changed in the last tenth of a second,
or in the last few seconds where thousands of clients change something; and so much older may be what a client is given
that comes back to another worker before this one knows that it has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from .errors import HubError
from .log import Brake
from .store import Keys

logger = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""Names to be saved in one turn; beyond, what a client changed is not kept."""

STEP_S = 0.1
SAVED_AT_ONCE = 100
"""Names in one step: 1,000 a second, and never so many that they crowd out the commands of others."""

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
        self._due: dict[str, tuple[Callable[[], bytes], float]] = {}
        """What to save later, and how long to keep it; whoever has waited longest first."""
        self._timed = False
        """`_save_due` will be called; one timer for all, also where nothing waits any more when it comes."""
        self._trouble = Brake()

    def save(self, name: str, text: bytes, seconds: float) -> None:
        """Keep it so long, instead of what was kept. name: '' for nobody's, of which nothing is kept."""
        self._due.pop(name, None)
        if not name or (len(self._saving) >= MAX_WAITING and name not in self._saving):
            return
        if not self._saving:
            asyncio.get_running_loop().call_soon(self._send)
        self._saving[name] = (text, seconds)

    def save_later(self, name: str, text: Callable[[], bytes], seconds: float) -> None:
        """The same soon: within `STEP_S`, or in its turn where more than `SAVED_AT_ONCE` wait.

        text: called then, for what is newest by then.
        """
        if name in self._due:
            self._due[name] = (text, seconds)
        elif name and len(self._due) < MAX_WAITING:
            if not self._timed:
                self._timed = True
                asyncio.get_running_loop().call_later(STEP_S, self._save_due)
            self._due[name] = (text, seconds)

    def save_now(self, name: str) -> None:
        """What was to be saved later; nothing where nothing was."""
        due = self._due.get(name)
        if due is not None:
            self.save(name, due[0](), due[1])

    def recall(self, name: str, found: Found) -> None:
        """`found` is called later, never from within this call, with the bytes that are kept, or None."""
        self.save_now(name)
        saving = self._saving.get(name)
        if saving is not None:
            asyncio.get_running_loop().call_soon(found, saving[0])
            return
        key = self._key(name)
        self._runner.command(("GET", key), len(key), lambda reply: found(reply if isinstance(reply, bytes) else None))

    def _save_due(self) -> None:
        for name in list(islice(self._due, SAVED_AT_ONCE)):
            self.save_now(name)
        self._timed = bool(self._due)
        if self._timed:
            asyncio.get_running_loop().call_later(STEP_S, self._save_due)

    def _send(self) -> None:
        saving, self._saving = self._saving, {}
        for name, (text, seconds) in saving.items():
            self._runner.command(("SET", self._key(name), text, "PX", int(seconds * 1000)), len(text), self._saved)

    def _saved(self, reply: Any) -> None:
        if isinstance(reply, HubError):
            self._trouble.warning(logger, "what clients changed is not kept: %s", reply)
