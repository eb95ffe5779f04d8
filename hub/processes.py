"""Processes: the state of what the supervisor keeps running, one worker per slot and the embedded Valkey.

Does: hold pid, pulse and due times of each, judge a silent worker, kill it in steps, say how a process ended and when
the next one is due.
Does not: sleep, select or read signals; supervisor calls with the time. Does not know stages: whether a death fails the
boot or is answered by a new process is supervisor's to say.
Called by: supervisor.
Never break: what a pipe holds is read before its worker is judged; the supervisor itself may have been stopped.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from .config import Settings
from .embedded import Embedded
from .errors import EXIT_BOOT, BootError
from .heartbeat import Heartbeat, Pulse, open_pipe
from .inheritance import WorkerRecord
from .instructions import Instruction, Instructions, Instructor
from .instructions import open_pipe as open_instructions
from .listeners import Slot

logger = logging.getLogger(__name__)

NEVER = math.inf
VACANT_S = 60.0
"""A slot in which no worker accepts is told of after so long: a restart takes a second, and a wait for Redis some."""
DUMP_S = 2.0
"""Between SIGABRT, with which a hung worker writes its stack, and SIGKILL."""


@dataclass(slots=True)
class Backoff:
    """How long to wait before a process that died is started again: not at all, unless it died young.

    0.1 s, then doubling to 10 s: a crash loop costs little of the machine, and a repaired cause is found soon.
    """

    first_s: float = 0.1
    cap_s: float = 10.0
    steady_s: float = 5.0
    _last_s: float = 0.0

    def after(self, lived_s: float) -> float:
        """The wait after a process that lived so long; 0.0 for one that could not even be started."""
        if lived_s >= self.steady_s:
            self._last_s = 0.0
        else:
            self._last_s = min(self._last_s * 2 or self.first_s, self.cap_s)
        return self._last_s


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker process that is gone. code: its exit status, or minus the signal. pulse: read to its end, still open.

    silent: it was killed for its silence.
    """

    index: int
    generation: int
    pid: int
    code: int
    lived_s: float
    pulse: Pulse
    silent: bool = False

    @property
    def reason(self) -> str:
        """Why, in one word of a few, for metrics: 'silent', 'boot', 'exit' or a signal's name."""
        if self.silent or self.code >= 0:
            return "silent" if self.silent else "boot" if self.code == EXIT_BOOT else "exit"
        return signal_name(-self.code)

    def __str__(self) -> str:
        return f"worker {self.index} (pid {self.pid}) {describe_end(self.code)} after {self.lived_s:.1f} s"


class WorkerProcess:
    """One slot's process, or the wait for its next one: then pid is 0, pulse None, and the fork due at `fork_s`.

    generation: of the process, from the fork on. All times are the supervisor's clock; NEVER means not due.
    """

    def __init__(self, slot: Slot, settings: Settings) -> None:
        self.slot = slot
        self.pid = 0
        self.generation = 0
        self.pulse: Pulse | None = None
        self._instructor: Instructor | None = None
        self.fork_s = NEVER
        self._backoff = Backoff()
        self.retune(settings)
        self._born_s = 0.0
        self._kill_s = NEVER
        self._doomed = False
        self._vacant_s = NEVER
        """Since when nobody accepts here."""
        self._told = False

    def retune(self, settings: Settings) -> None:
        """The process that is here, or the next one, goes by these."""
        self._heartbeat_timeout_s = settings.heartbeat_timeout_s
        # A worker that boots may wait for Redis so long before it runs the loop that beats.
        self._boot_s = settings.redis.start_timeout_s
        self.goodbye_s = settings.drain_window_s + settings.client.close_timeout_s
        """That it may take to close its clients."""

    @classmethod
    def inherit(cls, slot: Slot, settings: Settings, record: WorkerRecord, now: float) -> Self:
        """One that an earlier version of the hub in this process has forked; its time begins anew.

        It beats and drains as it was told then, whatever the settings say now.
        """
        worker = cls(slot, settings)
        worker.pid, worker.generation, worker._born_s = record.pid, record.generation, record.born_s
        worker._heartbeat_timeout_s, worker.goodbye_s = record.heartbeat_timeout_s, record.goodbye_s
        worker.pulse = Pulse(record.pulse, now)
        worker._instructor = Instructor(record.instructor)
        worker.pulse.ready = record.ready
        return worker

    def record(self) -> WorkerRecord:
        """For `inherit`, of one that lives."""
        assert self.pulse is not None and self._instructor is not None
        return WorkerRecord(
            slot=self.slot.index,
            generation=self.generation,
            pid=self.pid,
            pulse=self.pulse.fd,
            instructor=self._instructor.fd,
            ready=self.ready,
            born_s=self._born_s,
            heartbeat_timeout_s=self._heartbeat_timeout_s,
            goodbye_s=self.goodbye_s,
        )

    @property
    def ready(self) -> bool:
        return self.pulse is not None and self.pulse.ready

    @property
    def rests(self) -> bool:
        """It accepts no more, or is no more."""
        return self.pulse is None or self.pulse.rests

    def fork(self, fork: Callable[[Heartbeat, Instructions], int], now: float) -> Pulse:
        """Open the pipes and call `fork`, which returns the pid. Raises OSError when the machine has no room."""
        self._instructor, instructions = open_instructions()
        try:
            self.pulse, heartbeat = open_pipe(now)
            try:
                self.pid = fork(heartbeat, instructions)
            finally:
                heartbeat.close()
        except OSError:
            self.close_pipes()
            raise
        finally:
            instructions.close()
        self._born_s, self.fork_s, self._kill_s, self._doomed = now, NEVER, NEVER, False
        return self.pulse

    @property
    def unsent_bytes(self) -> int:
        """Of instructions, which it has not read yet."""
        return self._instructor.unsent_bytes if self._instructor is not None else 0

    def instruct(self, instruction: Instruction, selector: selectors.BaseSelector) -> None:
        """Send it an instruction; `selector` calls for the rest of what it does not take at once."""
        instructor = self._instructor
        if instructor is None:
            return
        if not instructor.send(instruction):
            # Whoever sends that much looks at `unsent_bytes` first, so this is a fault of ours.
            logger.error("worker %d (pid %d) does not read its instructions", self.slot.index, self.pid)
        if instructor.unsent_bytes and instructor.fd not in selector.get_map():
            selector.register(instructor.fd, selectors.EVENT_WRITE, lambda now: self._flush(instructor, selector))

    def _flush(self, instructor: Instructor, selector: selectors.BaseSelector) -> None:
        if instructor.fd in selector.get_map():  # else it has ended earlier in this turn
            instructor.flush()
            if not instructor.unsent_bytes:
                selector.unregister(instructor.fd)

    def forget(self, selector: selectors.BaseSelector) -> None:
        """It has ended: send it nothing more."""
        if self._instructor is not None and self._instructor.fd in selector.get_map():
            selector.unregister(self._instructor.fd)
        if self._instructor is not None:
            self._instructor.close()
            self._instructor = None

    def close_pipes(self) -> None:
        """Of a supervisor that ends, and in its children."""
        if self.pulse is not None:
            self.pulse.close()
            self.pulse = None
        if self._instructor is not None:
            self._instructor.close()
            self._instructor = None

    def note_vacancy(self, now: float) -> None:
        """Tell once of a slot in which no worker has accepted for VACANT_S, and of the end of that.

        Its listeners stay open for the next one, so the kernel gives them newcomers, who wait, and no error shows it.
        """
        vacant_s = now - self._vacant_s
        if self.ready:
            if self._told:
                logger.warning("slot %d has a worker again, after %.0f s", self.slot.index, vacant_s)
            self._vacant_s, self._told = NEVER, False
        elif self._vacant_s == NEVER:
            self._vacant_s = now
        elif vacant_s >= VACANT_S and not self._told:
            self._told = True
            text = "slot %d has had no worker for %.0f s: newcomers that the kernel gives it wait; why is logged above"
            logger.error(text, self.slot.index, vacant_s)

    def due_s(self) -> float:
        """When something is to be done about it: fork, judge or kill."""
        if self.pulse is None:
            return self.fork_s
        return self._kill_s if self._doomed else self.pulse.last_s + self._patience_s()

    def silent(self, now: float, slack_s: float = 0.0) -> bool:
        """Whether it has said nothing for its whole time and `slack_s` more."""
        return self.pulse is not None and now - self.pulse.last_s >= self._patience_s() + slack_s

    def _patience_s(self) -> float:
        return self._heartbeat_timeout_s + (0.0 if self.ready else self._boot_s)

    def forgive(self, now: float) -> None:
        """Begin its time anew: the silence was not its fault."""
        if self.pulse is not None:
            self.pulse.last_s = now

    def judge(self, now: float) -> None:
        """Kill it if it is silent: SIGABRT, and SIGKILL after 2 s; the next calls carry that on."""
        if self._doomed:
            if self._kill_s <= now:
                self._kill_s = NEVER
                self.tell(signal.SIGKILL)
        elif self.pulse is not None and self.silent(now):
            self.pulse.read(now)
            if self.silent(now):
                self._condemn(now)

    def _condemn(self, now: float) -> None:
        seconds = self._patience_s()
        logger.error("worker %d (pid %d) is silent for %g s and is killed", self.slot.index, self.pid, seconds)
        self._doomed = True
        self._kill_s = now + DUMP_S
        # SIGABRT has the stack written; SIGCONT wakes a stopped process so that it can be.
        self.tell(signal.SIGABRT)
        self.tell(signal.SIGCONT)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal; without effect when no process is there."""
        if self.pid:
            os.kill(self.pid, number)

    def reap(self, now: float, options: int = os.WNOHANG) -> Ended | None:
        """Its end, once, if it has ended; None while it lives or none is there."""
        pid, status = os.waitpid(self.pid, options) if self.pid else (0, 0)
        if not pid or self.pulse is None:
            return None
        self.pulse.read(now)
        code, lived_s = os.waitstatus_to_exitcode(status), now - self._born_s
        ended = Ended(self.slot.index, self.generation, pid, code, lived_s, self.pulse, self._doomed)
        self.pid, self.pulse = 0, None
        return ended

    def plan_next(self, lived_s: float, now: float) -> float:
        """Make the next fork due after the backoff; returns the seconds until then."""
        delay_s = self._backoff.after(lived_s)
        self.fork_s = now + delay_s
        return delay_s


class KeptValkey:
    """The embedded Valkey once the boot has seen it answer: started again whenever it ends.

    start_s: when the next start is due; NEVER while it runs.
    """

    def __init__(self, embedded: Embedded, now: float, *, running: bool = True) -> None:
        """running: False for one whose end somebody else has seen."""
        self.start_s = NEVER if running else now
        self._embedded = embedded
        self._backoff = Backoff()
        self._born_s = now
        self._running = running

    def reap(self, now: float) -> None:
        """Notice its end."""
        code = self._embedded.exit_status()
        if self._running and code is not None:
            self._running = False
            self._plan_next(now - self._born_s, now)
            logger.error("the embedded Valkey %s; next start in %.1f s", describe_end(code), self.start_s - now)

    def start_if_due(self, now: float) -> None:
        """Start it, or try later again; workers find it by themselves once it answers."""
        if self.start_s > now:
            return
        self.start_s, self._born_s = NEVER, now
        try:
            self._running = self._embedded.start()
        except BootError as error:
            logger.error("%s", error)
        if not self._running:
            self._plan_next(0.0, now)

    def _plan_next(self, lived_s: float, now: float) -> None:
        self.start_s = now + self._backoff.after(lived_s)


def describe_end(code: int) -> str:
    """'ended with status 1' or 'was ended by SIGKILL'. code: as from os.waitstatus_to_exitcode."""
    if code >= 0:
        return f"ended with status {code}"
    return f"was ended by {signal_name(-code)}"


def signal_name(number: int) -> str:
    """'SIGKILL'"""
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
