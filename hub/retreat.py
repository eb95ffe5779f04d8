"""Retreat: back to the version that was in this process before, where the new one can't go on.

    exec ──▶ heir: settings, listeners, first turn ──▶ its generation boots ──▶ all ready: no way back any more
                   └─ an exception: the estate as it was    └─ one can't: the estate as it is now
                              └──────────▶ execve of the old program ◀──────────┘

Does: hold on to what the heir was left until it has made its first turn, and to the old version's settings until its
own workers serve; exec the old program by the path that it had when it was started.
Does not: judge a generation (deploy), know what an estate is made of (bequest), or help where the old code is no more:
then an heir that fails ends the hub, and one whose workers fail goes on with those of the old version.
Called by: serve and supervisor (`guard`), bequest.
Never break: once. A program that was gone back to has no way back itself, so two broken ones never take turns.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from . import __version__
from .deploy import Program, replace
from .inheritance import Estate

logger = logging.getLogger(__name__)

SPARE_GENERATIONS = 10_000
"""More numbers than the workers have that an heir has forked before it fails."""


class Retreat:
    """Of one program in its process. estate: what it was left, None for one that was simply started.

    ours: how this program was started.
    """

    def __init__(self, estate: Estate | None, ours: Program | None) -> None:
        self._copies: dict[int, int] = {}
        self._estate = estate
        self._settings = -1
        self._obstacle = ""
        self._is_new = estate is not None and not estate.back
        if estate is None or estate.back:
            self._estate = None
            return
        self._settings = estate.settings
        self._obstacle = _obstacle(estate, ours)
        if not self._obstacle:
            # Whatever becomes of the originals until then: a socket that is forgotten half way is closed.
            self._copies = {
                number: fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 0) for number in set(estate.descriptors())
            }

    def close_copies(self) -> None:
        """The first turn has been made, or this is a child."""
        for copy in self._copies.values():
            os.close(copy)
        self._copies.clear()
        self._is_new = False

    def close(self) -> None:
        """There is no need of a way back any more, or this is a child."""
        self.close_copies()
        if self._settings >= 0:
            os.close(self._settings)
        self._estate, self._settings = None, -1

    @contextlib.contextmanager
    def guard(
        self,
        held: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        undo: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Go back where an exception comes out of this before the first turn was made; it goes on where there's no way.

        held: holds the signals that arrive meanwhile. undo: ends what the heir has begun.
        """
        try:
            yield
        except Exception as error:
            estate = self._estate
            if estate is not None and self._is_new:
                self._is_new = False  # one try
                if self._obstacle:
                    logger.error("no way back to version %s: %s", estate.version, self._obstacle, exc_info=error)
                else:
                    undo()
                    with held():
                        self._go_back(estate, error)
            raise

    def _go_back(self, estate: Estate, error: Exception) -> None:
        """Returns only where the old program can't be run."""
        failure = f"version {__version__} failed as it took over: {_place(error)}{type(error).__name__}: {error}"
        logger.error("%s; back to version %s", failure, estate.version, exc_info=error)
        tally = estate.tally.model_copy(update={"failed": estate.tally.failed + 1})
        spared = estate.next_generation + SPARE_GENERATIONS
        estate = estate.model_copy(update={"tally": tally, "failure": failure, "next_generation": spared})
        self._estate = None
        program, estate = as_before(estate)
        for number in set(estate.descriptors()):
            os.dup2(self._copies[number], number)
        self._copies.clear()  # the exec closes them
        try:
            replace(program, estate)
        except OSError as trouble:
            logger.error("version %s cannot be run any more: %s", estate.version, trouble)

    def way_back(self, estate: Estate) -> tuple[Program, Estate] | None:
        """For `deploy.replace`, after a generation that failed. estate: what there is now. None, once told: no way."""
        left = self._estate
        if left is None:
            return None
        if self._obstacle:
            logger.warning("version %s looks after workers of %s: %s", __version__, left.version, self._obstacle)
            return None
        logger.warning("back to version %s", left.version)
        return as_before(estate.model_copy(update={"origin": left.origin, "settings": self._settings}))


NO_RETREAT = Retreat(None, None)


def as_before(estate: Estate) -> tuple[Program, Estate]:
    """The program that made it, and what it is to find: its own settings, and no generation to start."""
    assert estate.origin is not None  # an obstacle
    program = Program(tuple(estate.origin.real), tuple(estate.origin.options))
    return program, estate.model_copy(update={"back": True, "checked": estate.settings, "settings": -1})


def origin_of(estate: Estate | None, ours: Program | None) -> Program | None:
    """How this program is to be found by the next deploy: where it was gone back to, not by the path of that."""
    if estate is None or not estate.back or estate.origin is None:
        return ours
    return Program(*map(tuple, (estate.origin.command, estate.origin.options, estate.origin.real)))


def _obstacle(estate: Estate, ours: Program | None) -> str:
    """Why there is no way back; '' where there is one."""
    if ours is None or estate.origin is None or not estate.origin.real:
        return "it is not known how that was started"
    if tuple(estate.origin.real) == ours.real:
        return f"its code was changed in place ({' '.join(ours.real)})"
    gone = [path for path in estate.origin.real if path.startswith("/") and not Path(path).exists()]
    return f"{gone[0]} is gone" if gone else ""


def _place(error: Exception) -> str:
    """'supervisor.py, line 12: '"""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
