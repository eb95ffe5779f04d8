"""Seat: what one worker process gets, and the fork that puts a process there.

Does: fork, and in the child everything that must happen before and after the worker's own main function.
Does not: decide when to fork or what a death means; supervisor does. Knows nothing of a worker's work.
Called by: supervisor (`fork_worker`); worker gets the `Seat`.
Never break: the child leaves by os._exit alone, so that nothing of the parent's stack, atexit or buffers runs twice.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from . import log
from .balance import Loads
from .certificates import Certificates
from .config import Settings
from .errors import EXIT_BOOT, EXIT_FAILED, BootError
from .heartbeat import Heartbeat
from .instructions import Instructions
from .listeners import Slot
from .prctl import die_with_parent
from .relay import Home
from .reloadable import NEVER_RELOADED, Counts

logger = logging.getLogger(__name__)

SUPERVISED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2)
"""Those that the supervisor handles; a child gives them back."""
RETIRE = signal.SIGRTMIN
"""Tells a worker that another generation accepts in its place. Not SIGUSR1 or 2, which people send to whole groups."""
STDERR_FD = 2
COLLECT_AFTER = (10_000, 10, 10)
"""Objects that are new, and younger rounds, before the interpreter looks for garbage in cycles (gc.set_threshold). A
client is a dozen such objects that stay: by the default of 700, a storm of newcomers spent an eighth of its time on
being looked through again and again. Ten thousand are looked through in half a millisecond."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What one worker process gets.

    workers: how many slots there are. generation: a number that no other fork of this supervisor has, growing.
    respawned: False on the first start, when a problem such as Redis being away must fail the boot.
    redis_url: the configured or the embedded one; '' with Sentinel. home: where the workers reach each other.
    certificates: of the listeners that speak TLS, and keys: what the files of auth.keys hold, as they were at the start
    or the last reload; None: to be read. instructions: of the supervisor. counts: of reloads. loads: how full the
    workers of this generation are; None where there is one only.
    """

    slot: Slot
    workers: int
    generation: int
    respawned: bool
    redis_url: str
    heartbeat: Heartbeat
    home: Home
    certificates: Certificates | None = None
    loads: Loads | None = None
    keys: Mapping[str, bytes] | None = None
    instructions: Instructions | None = None
    counts: Counts = NEVER_RELOADED


WorkerMain = Callable[[Settings, Seat], int]
"""Runs in the child and returns its exit status. A BootError from it reaches the supervisor with its text."""


def fork_worker(
    settings: Settings, seat: Seat, worker_main: WorkerMain, leave: Callable[[], None], cpus: list[int]
) -> int:
    """Fork a worker; returns its pid, in the parent alone.

    leave: called in the child to close what is the supervisor's. cpus: those that `pin` distributes.
    Raises OSError when there is no room for another process.
    """
    return _fork(lambda parent_pid: _live(settings, seat, worker_main, leave, cpus, parent_pid))


def fork_task(work: Callable[[], int], leave: Callable[[], None]) -> int:
    """Fork a process that does one thing and ends with what `work` returns; returns its pid, in the parent alone.

    leave: as of `fork_worker`. Raises OSError when there is no room for another process.
    """
    return _fork(lambda parent_pid: _work(work, leave, parent_pid))


def _fork(live: Callable[[int], NoReturn]) -> int:
    """live: the child's whole life, told the parent's pid."""
    # What waits in the buffers would be written by both.
    _flush_streams()
    parent_pid = os.getpid()
    # A signal that came before the child has its own handlers would be written to the supervisor's wakeup pipe, which
    # both share, and count as the supervisor's.
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            live(parent_pid)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)
    return pid


def _live(
    settings: Settings, seat: Seat, worker_main: WorkerMain, leave: Callable[[], None], cpus: list[int], parent_pid: int
) -> NoReturn:
    """The child's whole life."""
    status = EXIT_FAILED
    try:
        die_with_parent(signal.SIGKILL, parent_pid)
        leave()
        _reset_signals()
        log.sit(seat.slot.index, seat.generation)
        if settings.pin:
            os.sched_setaffinity(0, {cpus[seat.slot.index % len(cpus)]})
        # The supervisor's SIGABRT to a worker that hangs then shows where.
        faulthandler.enable(STDERR_FD)
        gc.set_threshold(*COLLECT_AFTER)
        gc.enable()
        status = worker_main(settings, seat)
    except BootError as error:
        seat.heartbeat.boot_failed(str(error))
        status = EXIT_BOOT
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else EXIT_FAILED
    except BaseException:
        # Whatever it was, above us is the supervisor's stack, which must not go on in this process.
        logger.exception("worker %d failed", seat.slot.index)
    finally:
        _leave_process(status)


def _work(work: Callable[[], int], leave: Callable[[], None], parent_pid: int) -> NoReturn:
    status = EXIT_FAILED
    try:
        die_with_parent(signal.SIGKILL, parent_pid)
        leave()
        _reset_signals()
        status = work()
    except BaseException:
        # As above.
        logger.exception("a process of the supervisor failed")
    finally:
        _leave_process(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed by the shell: `hub serve >&-`
                stream.flush()
        except OSError:
            # Its reader has gone or its disk is full; that is no reason not to fork.
            pass


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in SUPERVISED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    # Ctrl-C, and the end of a terminal, go to its whole group; the supervisor gets them too and tells the workers by
    # SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # So does `systemctl kill --signal=SIGUSR2`, which means the supervisor.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED_SIGNALS)


def _leave_process(status: int) -> NoReturn:
    try:
        logging.shutdown()
        _flush_streams()
    finally:
        os._exit(status)
