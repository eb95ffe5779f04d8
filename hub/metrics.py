"""Metrics: the figures of a worker under Prometheus' names, in files that outlive the process.

Does: keep the numbers in prometheus_client's multiprocess files, write there once a second; say whose files are whose.
Does not: count (the rooms do), name (metric_names), merge the workers' files or answer requests (exposition).
Called by: worker (builds it after the fork, start, close); exposition (files).
Never break: a count never falls, whoever is killed; a disk that is full costs the metrics, and never the worker.

The files are named by slot and not by pid: `counter_2.0.db` is of slot 2. Whoever takes a slot takes its files and goes
on counting where its predecessor was killed, so they don't pile up. Two processes of one slot, as in a deploy, have two
sets: the lock of `2.0.lock` says whose is whose, and who lives; the kernel lets go of it with the process.

They are made as large as they get, with their blocks: a page of a sparse file that the disk has no room for would be
answered with SIGBUS. What was counted in the last second before a kill is lost.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.utils import floatToGoString
from prometheus_client.values import MultiProcessValue

from .log import Brake
from .metric_names import COUNTER, GAUGE, HISTOGRAM, METRICS, Metric

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
RETRY_S = 60.0
"""Where there was no room for the files."""
FILE_BYTES = 131_072
"""Of each; all that there is takes less than half of it, as a test says."""
MAX_LANES = 16
"""Processes of one slot at a time: one, and two in a deploy; more where drains take longer than the next deploy."""
DIRECTORY = "metrics"
ENV = "PROMETHEUS_MULTIPROC_DIR"
UNREADABLE = (OSError, RuntimeError, ValueError, struct.error)
"""What reading a file raises that is none of prometheus_client's."""
LOCK = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2)."""


class Metrics:
    """The files of one worker."""

    def __init__(self, home: str, slot: int, figures: Callable[[], Mapping[str, Any]]) -> None:
        """home: a directory of the supervisor's, on which all workers agree. figures: as figures.current has them."""
        self.directory = f"{home}/{DIRECTORY}"
        self._slot = slot
        self._figures = figures
        self._sheet: Sheet | None = None
        self._next_try = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._trouble = Brake(RETRY_S / 2)

    def start(self) -> None:
        """Write once a second, until `close`."""
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self.start)
        self.flush()

    def flush(self) -> None:
        """Write now; nothing where there is no room for the files, which is tried again after a while."""
        now = asyncio.get_running_loop().time()
        try:
            if self._sheet is None and now >= self._next_try:
                self._next_try = now + RETRY_S
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
                self._sheet = Sheet(self.directory, self._slot, self._figures())
            if self._sheet is not None:
                self._sheet.write(self._figures())
        except OSError as error:
            self._trouble.warning(logger, "no metrics of this worker: %s", error)

    def living(self, workers: int) -> int:
        """How many of so many slots have a process; a file is looked at for each."""
        return len(living_slots(living_names(self.directory), workers))

    def close(self) -> None:
        """Write the last of it, and let go of the slot's files."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sheet is not None:
            self.flush()
            self._sheet.close()
            self._sheet = None


class Sheet:
    """The numbers of one process, and of those that had its files before."""

    def __init__(self, directory: str, slot: int, figures: Mapping[str, Any]) -> None:
        """figures: of now, for the labels. Raises OSError where there is no room."""
        self._lock, self.name = _take_lane(directory, slot)
        self._value = MultiProcessValue(lambda: self.name)  # type: ignore[no-untyped-call]
        self._cells: list[tuple[Metric, dict[str, _Cell]]] = []
        try:
            for prefix in {_prefix(metric) for metric in METRICS}:
                _make_file(f"{directory}/{prefix}_{self.name}.db")
            with _environment(directory):
                for metric in METRICS:
                    self._cells.append((metric, self._make(metric, metric.find(figures), slot)))
        except BaseException:
            self.close()
            raise

    def _make(self, metric: Metric, found: Any, slot: int) -> dict[str, _Cell]:
        if found is None:
            return {}
        names = ("worker",) if metric.by_worker else ()
        values = (str(slot),) if metric.by_worker else ()
        if metric.kind == HISTOGRAM:
            bounds = list(map(_go_text, (*found["bounds"], float("inf"))))
            cells = {bound: self._cell(metric, "_bucket", (*names, "le"), (*values, bound)) for bound in bounds}
            return cells | {"": self._cell(metric, "_sum", names, values)}
        suffix = "_total" if metric.kind == COUNTER else ""
        if not metric.label:
            return {"": self._cell(metric, suffix, names, values)}
        labels = (*names, metric.label)
        return {value: self._cell(metric, suffix, labels, (*values, value)) for value in found}

    def _cell(self, metric: Metric, suffix: str, names: tuple[str, ...], values: tuple[str, ...]) -> _Cell:
        value = self._value(
            metric.kind, metric.name, metric.name + suffix, names, values, metric.text, multiprocess_mode=metric.over
        )
        return _Cell(value, 0.0 if metric.kind == GAUGE else value.get())

    def write(self, figures: Mapping[str, Any]) -> None:
        """Put what has changed into the files."""
        for metric, cells in self._cells:
            found = metric.find(figures)
            if metric.kind == HISTOGRAM:
                for cell, count in zip(cells.values(), (*found["counts"], found["sum"]), strict=True):
                    cell.set(count)
            elif found is None or not cells:
                pass  # of something that this hub has not
            elif metric.label:
                for name, number in found.items():
                    cells[name].set(number)
            else:
                cells[""].set(found)

    def close(self) -> None:
        """Let go of the files, which stay."""
        self._value.close_all_files()
        os.close(self._lock)


class _Cell:
    """One number in a file."""

    __slots__ = ("_base", "_told", "_value")

    def __init__(self, value: Any, base: float) -> None:
        """base: what it was before this process."""
        self._value = value
        self._base = base
        self._told = float("nan")

    def set(self, number: float) -> None:
        if number != self._told:
            self._told = number
            self._value.set(self._base + number)


# Files.


def files(directory: str, workers: int) -> tuple[list[str], set[int]]:
    """What is to be merged: the counts of all that there were, the gauges of those that live; and these ones' slots."""
    living = living_names(directory)
    found = []
    for path in sorted(Path(directory).glob("*.db")):
        kind, _, name = path.stem.rpartition("_")
        if not kind.startswith(GAUGE) or name in living:
            found.append(str(path))
    return found, living_slots(living, workers)


def living_names(directory: str) -> set[str]:
    """Of the sets of files, those whose process lives: {'0.0', '1.1'}."""
    return {path.stem for path in Path(directory).glob("*.lock") if _is_held(path)}


def living_slots(names: set[str], workers: int) -> set[int]:
    """Of so many slots, those of these names."""
    return {int(name.partition(".")[0]) for name in names} & set(range(workers))


def _prefix(metric: Metric) -> str:
    """As prometheus_client begins the file's name."""
    return f"{GAUGE}_{metric.over}" if metric.kind == GAUGE else metric.kind


def _take_lane(directory: str, slot: int) -> tuple[int, str]:
    """A descriptor that holds the lock as long as this process lives, and the name of the files."""
    for lane in range(MAX_LANES):
        name = f"{slot}.{lane}"
        fd = os.open(f"{directory}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError:
            os.close(fd)  # another process of this slot, which drains
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd, name
    raise BlockingIOError(f"{MAX_LANES} processes of slot {slot} live")


def _is_held(path: Path) -> bool:
    """Whether a process has this lock; asked without taking it, which could be in somebody's way."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(LOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _make_file(path: str) -> None:
    """A file of FILE_BYTES with all its blocks, unless there is a good one. Raises OSError, as for want of room."""
    if is_good(path):
        return
    new = f"{path}.new"
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, FILE_BYTES)
        os.rename(new, path)
    except OSError:
        os.unlink(new)
        raise
    finally:
        os.close(fd)


def is_good(path: str) -> bool:
    """Whether it is there and can be read: a process may have been killed at any moment, and a disk may fail."""
    try:
        with open(path, "rb") as file:
            used, size = int.from_bytes(file.read(4), sys.byteorder, signed=True), os.fstat(file.fileno()).st_size
        if not 0 <= used <= size or size < FILE_BYTES:
            raise ValueError(f"{used} of {size} bytes")
        for key, *_ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
            orjson.loads(key)
    except FileNotFoundError:
        return False
    except UNREADABLE:
        logger.warning("the metrics in %s can't be read, and begin anew", os.path.basename(path))
        return False
    return True


def _go_text(bound: float) -> str:
    """As labels have it: '0.005', '+Inf'."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


@contextmanager
def _environment(directory: str) -> Iterator[None]:
    """prometheus_client takes the directory from the environment, when it opens a file."""
    before = os.environ.get(ENV)
    os.environ[ENV] = directory
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENV]
        else:
            os.environ[ENV] = before
