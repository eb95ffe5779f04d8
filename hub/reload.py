"""Reload: the supervisor's part of it: from SIGHUP to the line that says what became of it.

    IDLE ── SIGHUP ──▶ READING ── good ──▶ PREPARING ── all prepared ──▶ APPLYING ── all applied ──▶ IDLE
                          └── a mistake, or too late ──▶ refused ◀── one refused, or too late ──┘

Does: have the settings read and checked anew, by a process of its own; hand them to all workers in two steps; count and
tell what became of it.
Does not: read or check settings (`reread` does, in that process), know rooms (retune), or fork by itself.
Called by: supervisor, each turn and for what it hears.
Never break: until all workers are prepared nothing has changed anywhere, and a refusal at any point leaves it so. From
then on nothing can refuse any more: who is slow finds the word in its pipe, and who is forked has the new settings.

The process that reads may hang on a dead file system, run out of memory or fall over: that ends a reload and no hub.
Signals that come meanwhile are one more reload, afterwards: it may be that their file was read too early.
"""

from __future__ import annotations

import enum
import gc
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from . import log
from .certificates import Loaded
from .config import Settings
from .errors import BootError, ConfigError
from .heartbeat import Answer
from .instructions import APPLY, DROP, MAX_DATA_BYTES, PREPARE, TELL, Instruction
from .processes import NEVER, WorkerProcess, describe_end
from .reloadable import Counts, Difference, Fresh, differences, pack, refusals, unpack
from .status import Board
from .systemd import Notifier

logger = logging.getLogger(__name__)

READ_S = 15.0
"""For the process that reads and checks; it takes tenths of a second, and a thousand certificates a few seconds."""
ANSWER_S = 20.0
"""For the workers in each step: longer than a hung one lives, whose successor answers instead."""
READ_BYTES = 1_048_576
GOOD, BAD = b"+", b"-"
MAX_LINES = 20
MAX_LINE_CHARACTERS = 500
"""Of what is shown; the log has the rest."""
FIRST_WORDS = 3
"""Settings that a line names."""

Reread = Callable[[], Fresh]
"""Reads and checks everything anew, as a start does. Raises ConfigError with a line for each mistake."""


class Stage(enum.Enum):
    IDLE = "idle"
    READING = "reading"
    PREPARING = "preparing"
    APPLYING = "applying"


@dataclass(frozen=True, slots=True)
class Host:
    """The supervisor, as seen from here."""

    workers: Callable[[], Sequence[WorkerProcess]]
    """Those of the generation that accepts."""
    settings: Callable[[], Settings]
    """Those of now."""
    serving: Callable[[], bool]
    """All workers have booted, and nobody has said stop."""
    stopping: Callable[[], bool]
    fork: Callable[[Callable[[], int]], int]
    """Runs it in a process of its own; returns the pid. Raises OSError."""
    prepare: Callable[[Fresh], Loaded | None]
    """Makes what `adopt` needs. Raises ConfigError."""
    adopt: Callable[[Fresh, Loaded | None], None]
    """These hold from now on; who is forked has them."""
    ended: Callable[[bool], None]
    """Told of each outcome: whether the new settings hold."""


class Reload:
    """The reloads of one supervisor."""

    def __init__(
        self,
        host: Host,
        reread: Reread | None,
        notifier: Notifier,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        *,
        config: str = "",
    ) -> None:
        """reread: None where nothing can be read anew. config: the settings file, by which the hub may be chosen."""
        self.counts = Counts()
        self._host = host
        self._reread = reread
        self._notifier = notifier
        self._clock = clock
        self._wall_clock = wall_clock
        self._config = config
        self._board: Board | None = None
        self._stage = Stage.IDLE
        self._wanted = False
        self._number = 0
        """Of the reload that goes on, or was the last."""
        self._ended = 0
        """How many have come to an end."""
        self._began_s = 0.0
        self._due_s = NEVER
        self._reader = 0
        """The pid of the process that reads; 0: none."""
        self._killed: set[int] = set()
        """Those that were too slow, and have yet to be reaped."""
        self._pipe = -1
        self._data = bytearray()
        self._end = 0
        self._fresh: Fresh | None = None
        self._loaded: Loaded | None = None
        self._packed = b""
        self._found: list[Difference] = []
        self._waiting: set[int] = set()
        """Slots whose answer is awaited."""
        self._faults: list[str] = []
        self._last: dict[str, Any] | None = None

    def open(self, selector: selectors.BaseSelector, board: int = -1) -> None:
        """Be found by `hub reload` from now on. selector: calls what is registered with the time. Raises OSError.

        board: of the program that was this process before; its numbers go on, as somebody may wait for the next.
        """
        self._selector: selectors.BaseSelector = selector
        self._board = Board(board)
        before = self._board.read()
        self._number, self._ended = before.get("begun", 0), before.get("ended", 0)
        self._last = before.get("last")
        self.counts = Counts(**{name: before[name] for name in Counts._fields if name in before})
        self._show()

    @property
    def board(self) -> int:
        """A descriptor that an heir has to have."""
        assert self._board is not None
        return self._board.fd

    def leave(self) -> None:
        """In a child: close what is the supervisor's."""
        if self._board is not None:
            self._board.close()
        if self._pipe >= 0:
            os.close(self._pipe)

    def close(self) -> None:
        """The supervisor ends."""
        if self._reader:
            os.kill(self._reader, signal.SIGKILL)
            os.waitpid(self._reader, 0)
        for pid in self._killed:
            os.waitpid(pid, 0)
        self.leave()

    # What the supervisor calls.

    @property
    def busy(self) -> bool:
        """One goes on, or is asked for, or leaves something behind: whoever replaces the supervisor's program waits.

        An heir knows nothing of a reader that is not reaped, nor of the half of an instruction that was not sent.
        """
        left = self._killed or any(worker.unsent_bytes for worker in self._host.workers())
        return bool(self._stage is not Stage.IDLE or self._wanted or left)

    def due_s(self) -> float:
        """When `turn` has something to do."""
        if self._wanted and self._stage is Stage.IDLE and self._host.serving():
            return self._clock()
        return self._due_s

    def ask(self) -> None:
        """SIGHUP."""
        if self._host.stopping():
            logger.info("SIGHUP: the hub stops, so its settings are not read anew")
            return
        if self._wanted or self._stage is not Stage.IDLE or not self._host.serving():
            logger.info("SIGHUP: the settings are read anew after what goes on now")
        self._wanted = True
        self._show()

    def turn(self, now: float) -> None:
        """Begin what was asked for; give up what takes too long."""
        if self._host.stopping():
            self._abandon()
        elif self._stage is Stage.IDLE:
            if self._wanted and self._host.serving():
                self._begin(now)
        elif now >= self._due_s:
            self._too_late()

    def reap(self) -> None:
        """SIGCHLD: the process that reads may have ended."""
        for pid in (*self._killed, *([self._reader] if self._reader else ())):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._killed.discard(pid)
                if pid == self._reader:
                    self._reader, self._end = 0, os.waitstatus_to_exitcode(status)
                    self._finish_reading()

    def joined(self, worker: WorkerProcess) -> None:
        """A worker was forked."""
        if self._stage is Stage.PREPARING and worker in self._host.workers():
            self._waiting.add(worker.slot.index)
            self._send(worker, PREPARE, self._packed)

    def gone(self, worker: WorkerProcess) -> None:
        """A worker has ended; its successor joins. One of an older generation was not asked."""
        if worker in self._host.workers():
            self._waiting.discard(worker.slot.index)
            self._go_on()

    def heard(self, worker: WorkerProcess, answers: Iterable[Answer]) -> None:
        """What a worker has answered."""
        index = worker.slot.index
        if worker not in self._host.workers():
            return
        for answer in answers:
            if answer.number != self._number or index not in self._waiting:
                continue
            if answer.word == "refused" and self._stage is Stage.PREPARING:
                self._refuse([f"worker {index} refused the settings: {answer.text}"])
                return
            if answer.word == "failed":
                self._faults.append(f"worker {index} could not apply all of the settings: {answer.text}; restart it")
            self._waiting.discard(index)
        self._go_on()

    # Reading.

    def _begin(self, now: float) -> None:
        self._wanted = False
        self._number += 1
        self._began_s = now
        self._found, self._faults = [], []
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notifier.notify("RELOADING=1", f"MONOTONIC_USEC={usec}")
        lagging = [str(each.slot.index) for each in self._living() if each.unsent_bytes > MAX_DATA_BYTES]
        if self._reread is None:
            self._refuse(["this hub was started without a settings file"])
        elif lagging:
            self._refuse([f"worker {', '.join(lagging)} has not taken the last ones yet"])
        else:
            self._start_reader(self._reread, now)
        self._show()

    def _start_reader(self, reread: Reread, now: float) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        settings = self._host.settings()
        try:
            self._reader = self._host.fork(lambda: _read_for(reread, settings, writer))
        except OSError as error:
            os.close(reader)
            self._refuse([f"no process to read them: {error.strerror}"])
            return
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self._pipe = reader
        self._data.clear()
        self._selector.register(reader, selectors.EVENT_READ, self._on_readable)
        self._stage, self._due_s = Stage.READING, now + READ_S

    def _on_readable(self, now: float) -> None:
        try:
            data = os.read(self._pipe, READ_BYTES)
        except BlockingIOError:
            return
        self._data += data
        if not data:
            self._close_pipe()
            self._finish_reading()

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._selector.unregister(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def _finish_reading(self) -> None:
        """Once its pipe is read to the end and its process is gone."""
        if self._stage is not Stage.READING or self._pipe >= 0 or self._reader:
            return
        mark, data = bytes(self._data[:1]), bytes(self._data[1:])
        self._data.clear()
        if self._end or mark not in (GOOD, BAD):
            self._refuse([f"the process that read them {describe_end(self._end)}"])
        elif mark == BAD:
            self._refuse(data.decode(errors="replace").splitlines())
        else:
            self._prepare(data)

    # Telling.

    def _prepare(self, packed: bytes) -> None:
        try:
            fresh = unpack(packed)
            self._loaded = self._host.prepare(fresh)
        except ConfigError as error:
            self._refuse(str(error).splitlines())
            return
        self._found = differences(self._host.settings(), fresh.settings)
        self._fresh, self._packed = fresh, packed
        self._stage, self._due_s = Stage.PREPARING, self._clock() + ANSWER_S
        self._tell(PREPARE, packed)
        self._show()
        self._go_on()

    def _tell(self, kind: bytes, data: bytes = b"") -> None:
        living = self._living()
        self._waiting = {worker.slot.index for worker in living}
        for worker in living:
            self._send(worker, kind, data)

    def _send(self, worker: WorkerProcess, kind: bytes, data: bytes = b"") -> None:
        worker.instruct(Instruction(kind, self._number, data), self._selector)

    def _living(self) -> list[WorkerProcess]:
        return [worker for worker in self._host.workers() if worker.pid]

    def _go_on(self) -> None:
        if self._waiting or self._stage not in (Stage.PREPARING, Stage.APPLYING):
            return
        if self._stage is Stage.PREPARING:
            assert self._fresh is not None
            self._adopt(self._fresh)
        else:
            self._succeed()

    def _adopt(self, fresh: Fresh) -> None:
        new = fresh.settings
        self._host.adopt(fresh, self._loaded)
        log.retune(new.log_level, new.log_format, new.log_burst)
        self._stage, self._due_s = Stage.APPLYING, self._clock() + ANSWER_S
        self._tell(APPLY)
        self._show()
        self._go_on()

    # The end.

    def _too_late(self) -> None:
        slow = ", ".join(map(str, sorted(self._waiting)))
        if self._stage is Stage.READING:
            self._refuse([f"reading and checking them took more than {READ_S:g} s"])
        elif self._stage is Stage.PREPARING:
            self._refuse([f"no answer of worker {slow} within {ANSWER_S:g} s"])
        else:
            self._faults.append(f"no answer of worker {slow} within {ANSWER_S:g} s; it applies them when it is back")
            self._succeed()

    def _refuse(self, lines: list[str]) -> None:
        """Nothing has changed, and nothing will."""
        if self._stage is Stage.PREPARING:
            for worker in self._living():
                self._send(worker, DROP)
        shown = [line[:MAX_LINE_CHARACTERS] for line in lines[:MAX_LINES]]
        for line in shown:
            logger.error("settings were not changed: %s", line)
        more = len(lines) - len(shown)
        if more:
            logger.error("settings were not changed: %d more mistakes", more)
        self.counts = self.counts._replace(reloads_failed=self.counts.reloads_failed + 1)
        self._finish(False, shown, [], more)

    def _succeed(self) -> None:
        for fault in self._faults:
            logger.error("%s", fault)
        took_s = self._clock() - self._began_s
        what = _what(self._found)
        logger.info("settings were read anew: %s; %d workers in %.2f s", what, len(self._living()), took_s)
        self.counts = Counts(self.counts.reloads + 1, self.counts.reloads_failed, self._wall_clock())
        changed = [each.key for each in self._found[:MAX_LINES]]
        self._finish(True, self._faults, changed, len(self._found) - len(changed))

    def _finish(self, done: bool, lines: list[str], changed: list[str], more: int) -> None:
        """more: reasons, or changes, beyond those that are shown."""
        self._give_up_reader()
        self._last = {
            "ok": done,
            "errors": lines,
            "changed": changed,
            "more": more,
            "seconds": round(self._clock() - self._began_s, 3),
            "at": self._wall_clock(),
        }
        self._host.ended(done)
        self._stage, self._due_s = Stage.IDLE, NEVER
        self._ended += 1
        self._fresh, self._loaded, self._packed, self._waiting = None, None, b"", set()
        for worker in self._living():
            self._send(worker, TELL, orjson.dumps(list(self.counts)))
        state = "reloaded" if done else f"not reloaded: {lines[0] if lines else ''}"
        self._notifier.ready(f"{len(self._host.workers())} workers; {state}")
        self._show()
        # What was read may hang together in circles, and nothing else collects here; what is frozen is not touched.
        gc.collect()

    def _give_up_reader(self) -> None:
        self._close_pipe()
        self._data.clear()
        if self._reader:
            os.kill(self._reader, signal.SIGKILL)
            self._killed.add(self._reader)
            self._reader = 0

    def _abandon(self) -> None:
        if self._stage is not Stage.IDLE or self._wanted:
            logger.info("settings were not changed: the hub stops")
            self._give_up_reader()
            self._stage, self._due_s, self._wanted = Stage.IDLE, NEVER, False
            self._last = {"ok": False, "errors": ["the hub stops"], "changed": [], "more": 0, "seconds": 0.0, "at": 0.0}
            self._ended = self._number = self._number + 1
            self._show()

    def _show(self) -> None:
        if self._board is None:
            return
        self._board.write(
            {
                "pid": os.getpid(),
                "config": self._config,
                "stage": self._stage.value,
                "begun": self._number,
                "ended": self._ended,
                "last": self._last,
                **self.counts._asdict(),
            }
        )


def _read_for(reread: Reread, old: Settings, pipe: int) -> int:
    """In the process that reads: what it found, or the mistakes, into the pipe."""
    with open(pipe, "wb") as file:
        try:
            fresh = reread()
            if lines := refusals(differences(old, fresh.settings)):
                raise ConfigError("\n".join(lines))
            data = pack(fresh)
            if len(data) > MAX_DATA_BYTES:
                raise ConfigError(f"keys and certificates: found {len(data)} bytes; allowed: {MAX_DATA_BYTES}")
        except (ConfigError, BootError) as error:
            file.write(BAD + str(error).encode(errors="replace"))
        else:
            file.write(GOOD + data)
    return 0


def _what(found: list[Difference]) -> str:
    """Which settings are other ones now: 'limits.connections (was 0, is 10), 2 more'."""
    shown = ", ".join(map(str, found[:FIRST_WORDS]))
    more = len(found) - FIRST_WORDS
    return f"{shown}{f', {more} more' if more > 0 else ''}" if found else "nothing is different"
