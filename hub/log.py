"""Log: how lines leave the process, and brakes for lines that repeat.

Does: one line per event on stderr, where journald or a terminal takes it; no more of one kind than are of use.
Does not: decide what is worth a line, each room has its own logger; nor how it looks (journal).
Called by: cli (configure), seat (sit), every room (`logging.getLogger(__name__)`, `event`).
Never break: no tokens and no payloads in a line; nothing on the hot path; a log that nobody reads holds nobody up.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from typing import TextIO

from . import journal

PIECE_BYTES = 4096
BURST_PERIOD_S = 10.0
MAX_KINDS = 1000
"""Texts that are counted; there are some hundreds of them in all."""


def configure(level: str, form: journal.Form = "auto", burst: int = 0) -> None:
    """Send lines at `level` ('debug' … 'error') and above to stderr. Call once, before anything is forked.

    form: 'auto' is JSON where stderr is journald's, and text elsewhere. burst: as Throttle has it.
    """
    root = logging.getLogger()
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:
        handler = PatientHandler(sys.stderr, burst)
        journald = journal.under_journald(os.environ, sys.stderr.fileno())
        handler.setFormatter(journal.formatter(form, journald))
    root.handlers[:] = [handler]
    set_level(level)
    # Tornado writes a warning for each 4xx; that is the client's doing, and a flood of it the client's choice.
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("tornado.general").setLevel(logging.ERROR)


def set_level(level: str) -> None:
    """Change the least severe level in place, for this process and what it forks from now on."""
    logging.getLogger().setLevel(level.upper())


def retune(level: str, form: journal.Form, burst: int) -> None:
    """Change what `configure` was told, in place, for this process and what it forks from now on."""
    set_level(level)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PatientHandler):
            handler.retune(form, burst)


def sit(slot: int, generation: int) -> None:
    """From now on lines say which worker they are of. Call in the child."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, journal.Text | journal.Json):
            handler.formatter.seat = {"slot": slot, "generation": generation}


def event(logger: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log something that happened, as its name ('closed') and what belongs to it, such as `client` and `code`.

    fields: texts and numbers; never a token and nothing of a payload. Not named time, level, logger, event or pid.
    """
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={journal.FIELDS: fields})


def held_back(logger: logging.Logger, name: str) -> bool:
    """Whether there were too many lines of this event already, so that another one need not be made; it is counted.

    For lines above debug of which thousands may come at once, as when all clients go.
    """
    handlers = logging.getLogger().handlers
    only = handlers[0] if len(handlers) == 1 else None
    return isinstance(only, PatientHandler) and only.holds_back(logger.name, name)


class PatientHandler(logging.StreamHandler[TextIO]):
    """Writes only what its stream takes without waiting: whoever reads the log must not be able to stop the hub.

    A line that finds no room is dropped; the next one that is written says how many were.
    """

    def __init__(self, stream: TextIO, burst: int = 0) -> None:
        """burst: as Throttle has it."""
        super().__init__(stream)
        self.dropped = 0
        self._throttle = Throttle(burst)
        self._room = select.poll()
        self._room.register(stream.fileno(), select.POLLOUT)

    def retune(self, form: journal.Form, burst: int) -> None:
        """As `configure` has them."""
        before, new = self.formatter, journal.formatter(form, journal.under_journald(os.environ, self.stream.fileno()))
        if isinstance(before, journal.Text | journal.Json) and isinstance(new, journal.Text | journal.Json):
            new.seat = before.seat
        self.setFormatter(new)
        self._throttle.burst = burst

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._throttle.admit(record):
                return
            if self._write(self._notes() + self._line(record)):
                self.dropped = 0
            else:
                self.dropped += 1
        except Exception:
            # As logging has it: a line that can't be written is reported where that is possible, and never raises.
            self.handleError(record)

    def holds_back(self, name: str, text: str) -> bool:
        """As Throttle.refuse has it. name: of a logger; text: of a line, before anything is put into it."""
        return self._throttle.refuse((name, text))

    def close(self) -> None:
        """Write what is still to be told of lines that were held back."""
        self._throttle.end_period()
        try:
            self._write(self._notes())
        except OSError:
            pass  # whoever read the log is gone
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + self.terminator).encode(errors="backslashreplace")

    def _notes(self) -> bytes:
        """Lines about lines that are missing."""
        held = self._throttle.take_held()
        texts = [f"{self.dropped} log lines were dropped, as nobody read them in time"] if self.dropped else []
        if held:
            each = ", ".join(f"{count} of {name}: {text}" for (name, text), count in held.items())
            texts.append(f"{sum(held.values())} lines were held back, {each}")
        return b"".join(
            self._line(logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)) for text in texts
        )

    def _write(self, data: bytes) -> bool:
        """Write in pieces that a pipe with any room takes whole (PIPE_BUF, pipe(7)); False if nothing was written."""
        for at in range(0, len(data), PIECE_BYTES):
            ready = self._room.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                return at > 0  # the end of a long line is lost
            os.write(self.stream.fileno(), data[at : at + PIECE_BYTES])
        return True


Kind = tuple[str, object]
"""A logger's name, and a line's text before anything is put into it."""


class Throttle:
    """Lets `burst` lines of one kind through in each BURST_PERIOD_S; 0: all of them.

    So a hundred thousand clients that are closed at once, or a fault that each of them meets, leave room for what else
    is worth knowing: journald for its part drops whatever comes once there were 10,000 lines in 30 s. Lines at debug
    are not counted: whoever asks for them wants them all.
    """

    __slots__ = ("_clock", "_counts", "_held", "_until", "burst")

    def __init__(self, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst = burst
        self._clock = clock
        self._counts: dict[Kind, int] = {}
        self._held: dict[Kind, int] = {}
        """Of periods that are over."""
        self._until = 0.0

    def admit(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be written."""
        if not self.burst or record.levelno <= logging.DEBUG:
            return True
        now = self._clock()
        if now >= self._until:
            self.end_period()
            self._until = now + BURST_PERIOD_S
        kind = (record.name, record.msg)
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            return True
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind] <= self.burst

    def refuse(self, kind: Kind) -> bool:
        """Whether a line of this kind would not be let through now; it is counted then as if it had been made."""
        count = self._counts.get(kind, 0)
        if not self.burst or count < self.burst or self._clock() >= self._until:
            return False
        self._counts[kind] = count + 1
        return True

    def end_period(self) -> None:
        """What was held back until now is to be told."""
        for kind, count in self._counts.items():
            if count > self.burst:
                self._held[kind] = self._held.get(kind, 0) + count - self.burst
        self._counts.clear()

    def take_held(self) -> dict[Kind, int]:
        """How many of each kind were held back, told once."""
        held, self._held = self._held, {}
        return held


class Brake:
    """Lets a repeated line through at most once per `period_s`, with the count of what was held back."""

    __slots__ = ("_clock", "_held", "_next", "_period_s")

    def __init__(self, period_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        self._next = 0.0
        self._held = 0

    def warning(self, logger: logging.Logger, text: str, *args: object) -> None:
        """Log a warning, or count it as held back."""
        now = self._clock()
        if now < self._next:
            self._held += 1
            return
        more = f" ({self._held} more since the last such line)" if self._held else ""
        self._next, self._held = now + self._period_s, 0
        logger.warning(text + more, *args)
