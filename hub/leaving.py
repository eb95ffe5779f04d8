"""Leaving: how a worker lets go of its listeners and its clients, at a stop and in a deploy.

    SIGTERM ─▶ what waits in the accept queues is taken ─▶ no more accepts ─▶ clients go over the window
    RETIRE  ─▶ no more accepts, who is in stays ─ RETIRE again ─▶ clients go over the window ─▶ kept connections end

Does: hear the signals of the supervisor, close doors and clients in order, wait for the last close handshakes.
Does not: pace the closing (drain), know why it leaves (supervisor), or end what stands behind the doors (worker).
Called by: worker.
Never break: a second SIGTERM ends every wait here; and none of a worker's clients is sent away while a sibling that is
about to leave accepts.
"""

from __future__ import annotations

import asyncio
import logging
import select
import signal
import time
from collections.abc import Callable, Sequence

from .building import Building
from .config import Settings
from .connection import Connection
from .doors import Doors
from .drain import Drained, drain
from .seat import RETIRE, Seat

logger = logging.getLogger(__name__)

HURRIED_S = 1.0
"""For close handshakes after a second stop signal."""
KEPT_S = 0.1
"""Between two looks at whether kept HTTP connections have gone."""
LATE_WINDOW_S = 1.0
"""For those who came to a worker after it had begun to retire, with requests on connections that it had accepted."""
ACCEPT_LAST_S = 0.5
"""Bounds the last accepts of a worker that drains while new clients keep coming."""


class Signs:
    """What the supervisor has said so far."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.hurried = asyncio.Event()
        self.ending = asyncio.Event()
        """Told to stop, or to retire."""
        self.leaving = asyncio.Event()
        """Told that all who retire with this one accept no more, or to stop."""

    def follow(self) -> None:
        """Hear the signals from now on. Call with a running loop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._handle_term)
        loop.add_signal_handler(RETIRE, self._handle_retire)

    def _handle_retire(self) -> None:
        if self.ending.is_set():
            self.leaving.set()
        self.ending.set()

    def _handle_term(self) -> None:
        if self.stopping.is_set():
            self.hurried.set()
        self.stopping.set()
        self.ending.set()
        self.leaving.set()


class Leaving:
    """The end of one worker's clients. settings: those of now."""

    def __init__(
        self, signs: Signs, rooms: Building, doors: Doors, seat: Seat, settings: Callable[[], Settings]
    ) -> None:
        self._signs = signs
        self._rooms = rooms
        self._doors = doors
        self._seat = seat
        self._settings = settings

    async def close_doors(self) -> None:
        """Nobody accepts in our place."""
        if self._rooms.links.balance is not None:
            self._rooms.links.balance.rest()
        await self._empty_accept_queues()
        self._doors.close()
        await self._rooms.ticker.close()
        await self._rooms.redelivery.close()
        await self._drain(list(self._rooms.reactor.connections.values()), self._settings().drain_window_s)

    async def retire(self) -> None:
        """Others accept in our place: what waits in the accept queues is theirs, and who has come in is a client."""
        if self._rooms.links.balance is not None:
            self._rooms.links.balance.rest()
        self._doors.retire()
        self._seat.heartbeat.rests()
        await self._rooms.ticker.close()
        # Whoever is sent away before that may come to a sibling that is about to do the same.
        await self._signs.leaving.wait()
        window_s = self._settings().drain_window_s
        window_over = time.monotonic() + window_s
        # Whoever is no client yet, or none of ours, has all the time there is.
        here = [one for one in self._rooms.reactor.connections.values() if isinstance(one, Connection)]
        await self._drain([*here, *self._rooms.polls], window_s)
        # Connections that proxies keep: they are told so with their next request, and none is lost in between.
        while self._doors.kept and time.monotonic() < window_over and not self._signs.stopping.is_set():
            await asyncio.sleep(KEPT_S)
        await self._rooms.redelivery.close()
        self._doors.close()
        await self._drain(list(self._rooms.reactor.connections.values()), LATE_WINDOW_S)

    async def _drain(self, connections: Sequence[Drained], window_s: float) -> None:
        logger.debug("worker %d drains %d connections", self._seat.slot.index, len(connections))
        await drain(connections, window_s, self._signs.hurried, time.monotonic)

    async def _empty_accept_queues(self) -> None:
        """Take who has already connected: closing a listener resets its queue, and they can still be told 503."""
        slot, ready = self._seat.slot, select.poll()
        for sock in (*slot.public, *slot.internal):
            ready.register(sock, select.POLLIN)
        stop_at = time.monotonic() + ACCEPT_LAST_S
        while ready.poll(0) and time.monotonic() < stop_at:
            await asyncio.sleep(0)

    async def last_goodbyes(self) -> None:
        """Wait for the close handshakes that are still under way; those who don't answer in time are cut."""
        empty, hurried = asyncio.Event(), self._signs.hurried
        self._rooms.reactor.when_empty(empty.set)
        for hurry, wait_s in ((hurried, self._settings().client.close_timeout_s + 1.0), (empty, HURRIED_S)):
            waiting = [asyncio.ensure_future(event.wait()) for event in {empty, hurry}]
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for one in waiting:
                one.cancel()
            if not hurried.is_set():
                return
