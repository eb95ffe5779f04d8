"""Log: how lines leave the process, and a brake for lines that repeat.

Does: one line per event on stderr, where journald or a terminal takes it.
Does not: decide what is worth a line; each room has its own logger.
Called by: serve (configure), every room (`logging.getLogger(__name__)`).
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

PIECE_BYTES = 4096


def configure(level: str) -> None:
    """Send lines at `level` ('debug' … 'error') and above to stderr. Call once, before anything is forked."""
    handler = PatientHandler(sys.stderr) if sys.stderr is not None else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Tornado writes a warning for each 4xx; that is the client's doing, and a flood of it the client's choice.
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("tornado.general").setLevel(logging.ERROR)


class PatientHandler(logging.StreamHandler[TextIO]):
    """Writes only what its stream takes without waiting: whoever reads the log must not be able to stop the hub.

    A line that finds no room is dropped; the next one that is written says how many were.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.dropped = 0
        self._room = select.poll()
        self._room.register(stream.fileno(), select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + self.terminator
            if self.dropped:
                text = f"{self.dropped} log lines were dropped, as nobody read them in time\n{text}"
            if self._write(text.encode(errors="backslashreplace")):
                self.dropped = 0
            else:
                self.dropped += 1
        except Exception:
            # As logging has it: a line that can't be written is reported where that is possible, and never raises.
            self.handleError(record)

    def _write(self, data: bytes) -> bool:
        """Write in pieces that a pipe with any room takes whole (PIPE_BUF, pipe(7)); False if nothing was written."""
        for at in range(0, len(data), PIECE_BYTES):
            ready = self._room.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                return at > 0  # the end of a long line is lost
            os.write(self.stream.fileno(), data[at : at + PIECE_BYTES])
        return True


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
