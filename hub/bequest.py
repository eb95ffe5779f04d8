"""Bequest: the supervisor's part of a deploy: what it leaves to its heir, the exec, and what it says of the outcome.

Does: name all that the next version finds, as it is now; make the exec unless something came in between; write what
became of each deploy where `hub deploy` reads it, and count it.
Does not: know when (deploy), how an Estate is handed over (inheritance), or what an heir does with it (supervisor).
Called by: deploy, by the doors that supervisor gives it.
Never break: a signal that comes with the exec reaches us or the heir, and no heir reads settings that its check has not
found good: it ends, and all workers with it, where they are no good.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .deploy import Lineage, Program, replace
from .errors import ConfigError
from .facts import Facts
from .inheritance import (
    Estate,
    HomeRecord,
    OriginRecord,
    Tally,
    ValkeyRecord,
    open_checked,
    seal_checked,
    write_checked,
)
from .listeners import Listeners
from .processes import WorkerProcess
from .relay import Home
from .reloadable import Fresh, pack
from .retreat import Retreat
from .signals import Signals
from .systemd import Watchdog
from .whereabouts import Standing, write

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """The supervisor, as seen from here."""

    listeners: Listeners
    signals: Signals
    watchdog: Watchdog
    facts: Facts
    workers: Callable[[], Sequence[WorkerProcess]]
    """Those of the generation that accepts."""
    next_generation: Callable[[], int]
    """A number that no worker has had, or gets."""
    board: Callable[[], int]
    """Of `hub reload`: a descriptor."""
    valkey: Callable[[], ValkeyRecord | None]
    """None with a configured Redis."""
    tally: Callable[[], Tally]
    """Of the deploys of this hub, whatever its version."""
    version: Callable[[], str]
    """Of the workers that accept."""
    fresh: Callable[[], Fresh | None]
    """What it goes by; None where nobody knows."""


class Bequest:
    """What one supervisor leaves. lineage: whom it inherits from, and what its own heir needs. retreat: to that one."""

    def __init__(self, lineage: Lineage, host: Host, retreat: Retreat) -> None:
        self._lineage = lineage
        self._retreat = retreat
        self._host = host
        self._home: Home | None = None
        self._checked = _mark(lineage.config)
        """The settings file, as the check of a new version finds it."""

    def open(self, home: Home) -> None:
        """Be found by `hub deploy` once something is told. home: of this hub, whatever its version."""
        self._home = home

    def estate(self, tally: Tally) -> Estate:
        """What the next version finds, as it is now."""
        assert self._home is not None
        public, internal = self._host.listeners.records()
        # Counted on from, and not asked for: a number that was skipped is no loss.
        next_generation = self._host.next_generation()
        program = self._lineage.program
        origin = program and OriginRecord(
            command=list(program.command), options=list(program.options), real=list(program.real)
        )
        return Estate(
            version=self._host.version(),
            fixed=dict(self._lineage.fixed),
            workers=[worker.record() for worker in self._host.workers() if worker.pid],
            next_generation=next_generation,
            home=HomeRecord(hub=self._home.hub, directory=self._home.directory, lock=self._home.lock),
            state_lock=self._lineage.state_lock,
            board=self._host.board(),
            public=public,
            internal=internal,
            valkey=self._host.valkey(),
            tally=tally,
            origin=origin,
        )

    def replace(self, program: Program, estate: Estate) -> None:
        """Make the exec. Raises OSError, and then all goes on; returns where SIGHUP came with it, or the settings file
        is another one than when the check began.

        An heir begins with the settings of the check, whatever the file says; so who has changed them meanwhile would
        have them in force only after one more word.
        """
        self._host.watchdog.feed()  # what follows takes a second
        with self._host.signals.held():
            if signal.SIGHUP not in signal.sigpending() and self._checked == _mark(self._lineage.config):
                settings = self._own_settings()
                try:
                    replace(program, estate.model_copy(update={"settings": settings}))
                finally:
                    if settings >= 0:
                        os.close(settings)

    def _own_settings(self) -> int:
        """A file with what we go by, for a way back; -1 where nobody knows."""
        fresh = self._host.fresh()
        if fresh is None:
            return -1
        file = open_checked()
        try:
            write_checked(file, pack(fresh))
            seal_checked(file)
        except ConfigError as error:  # their files hold too much; the settings file is there too
            logger.warning("the settings of now are not kept for a way back: %s", error)
            os.close(file)
            return -1
        return file

    def go_back(self) -> None:
        """Have the version before take its process back, after a generation of ours that failed; or return."""
        way = self._retreat.way_back(self.estate(self._host.tally()))
        if way is None:
            return
        self._host.watchdog.feed()
        with self._host.signals.held():
            try:
                replace(*way)
            except OSError as error:
                logger.error("%s cannot be run: %s; this version goes on", way[0].command[0], error.strerror)

    def note(self, reason: str | None) -> None:
        """Each outcome, '' for a good one; None: one begins."""
        facts = self._host.facts
        if reason is None:
            self._checked = _mark(self._lineage.config)
        else:
            facts.count("deploys", "failed" if reason else "ok")
        if reason == "":
            # The new generation has what the heir has read, whatever became of the last reload.
            facts.note(reload_ok=1, reloaded_at=time.time())
        self.tell(reason or "", busy=reason is None)

    def tell(self, reason: str, *, busy: bool) -> None:
        """For `hub deploy`, which waits for it. reason: of the last outcome, '' before the first."""
        assert self._home is not None
        tally = self._host.tally()
        standing = Standing(
            pid=os.getpid(),
            version=self._host.version(),
            config=self._lineage.config,
            done=tally.done,
            failed=tally.failed,
            outcome=reason,
            busy=busy,
        )
        try:
            write(self._home.directory, standing)
        except OSError as error:
            logger.warning("what became of a deploy can't be written to %s: %s", self._home.directory, error.strerror)


def _mark(path: str) -> tuple[int, int, int] | None:
    """Another one whenever the file is; None where there is none to be seen."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
