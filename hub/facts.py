"""Facts: what the supervisor tells all workers of itself, so that any of them can tell it whoever asks.

    <directory>/facts.json   {"pid":70,"began_at":1764000000.1,"counts":{"worker_restarts":{"SIGKILL":2}},…}
    <directory>/beat         eight bytes: when the supervisor's loop last turned, by the monotonic clock

Does: keep counts and values, put them into a small file whenever one changes, and the beat into another; read both.
Does not: know what a fact means (metrics names them, health judges the beat), or reach other machines.
Called by: supervisor and its rooms (Facts), metrics and health in the workers (read, beat_age_s).
Never break: the supervisor neither waits nor fails where the disk is full; what is told is then old, and nothing else.

Written as a whole and moved into place, so nobody reads half a file. A supervisor that finds the file of the one before
it in its directory goes on with its counts.
A new fact needs no place here: `count` and `note` take any name; metrics tells those that it knows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from .log import Brake

logger = logging.getLogger(__name__)

FILE_NAME = "facts.json"
BEAT_NAME = "beat"
BEAT = struct.Struct("d")
BEAT_PERIOD_S = 0.5
MAX_BYTES = 65_536
"""Of the file; what is larger is none of ours."""


class Facts:
    """The supervisor's end."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._counts: dict[str, dict[str, int]] = {}
        self._values: dict[str, Any] = {"pid": os.getpid(), "began_at": wall_clock()}
        self._path: Path | None = None
        self._beat = -1
        self._beat_due = 0.0
        self._trouble = Brake()

    def open(self, directory: str) -> None:
        """Tell from now on, in a directory that is there already. What was counted before is told, too."""
        self._path = Path(directory, FILE_NAME)
        before = read(directory)
        for name, by_label in before.get("counts", {}).items():
            mine = self._counts.setdefault(name, {})
            for label, number in by_label.items():
                mine[label] = mine.get(label, 0) + number
        self._values = {**before, **self._values}
        try:
            self._beat = os.open(Path(directory, BEAT_NAME), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._warn(error)
        self._write()
        self.beat()

    def close(self) -> None:
        """Tell no more."""
        if self._beat >= 0:
            os.close(self._beat)
            self._beat = -1
        self._path = None

    def count(self, name: str, label: str = "", number: int = 1) -> None:
        """One more, since the start. label: one of a few, such as a signal's name."""
        by_label = self._counts.setdefault(name, {})
        by_label[label] = by_label.get(label, 0) + number
        self._write()

    def note(self, **values: float | str) -> None:
        """What is so from now on: `reload_ok=0`."""
        self._values.update(values)
        self._write()

    def beat(self) -> None:
        """The loop has turned. To be called in each turn; a write of eight bytes twice a second."""
        now = self._clock()
        if self._beat < 0 or now < self._beat_due:
            return
        self._beat_due = now + BEAT_PERIOD_S
        # A disk that is full now had room for these bytes before.
        with contextlib.suppress(OSError):
            os.pwrite(self._beat, BEAT.pack(now), 0)

    def _write(self) -> None:
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(orjson.dumps({**self._values, "counts": self._counts}))
            new.rename(self._path)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        self._trouble.warning(logger, "metrics don't learn of the supervisor: %s", error)


def read(directory: str) -> dict[str, Any]:
    """All facts: values by name, and "counts" by name and label; {} where there is no file, or none that is whole."""
    try:
        with open(Path(directory, FILE_NAME), "rb") as file:
            found = orjson.loads(file.read(MAX_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def beat_age_s(directory: str, now: float) -> float | None:
    """Seconds since the supervisor's loop last turned; None where that can't be known. now: of the monotonic clock."""
    try:
        with open(Path(directory, BEAT_NAME), "rb") as file:
            then = float(BEAT.unpack(file.read(BEAT.size))[0])
    except (OSError, struct.error):
        return None
    return max(0.0, now - then)
