"""Replay: recorded prices from a CSV or JSONL file, at their pace or a multiple of it.

Does: read the file line by line, put rows of the same time in one batch, wait between batches as the recording has it.
Does not: check ticks (tick.make_tick), their order (intake) or publish.
Called by: sources.
Never break: the file is read in slices of at most `ticker.batch` lines between two awaits, so that one of many GB
neither fills the memory nor holds up the loop; a bad line costs that line alone.

CSV: a header line names the columns, one record a line, commas, quotes as in RFC 4180 but no line ends within them.
JSONL: one object a line. The first character tells which: '{' is JSONL. UTF-8, with or without a byte order mark.
Columns or keys: time, symbol, price; volume, bid and ask may be missing. ALIASES lists other names that are understood.
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import orjson

from .errors import BootError
from .mistakes import short
from .sections import TickerSettings
from .tick import Batch, Clock, LastTicks, Row, Sleep

FIELDS = ("time", "symbol", "price", "volume", "bid", "ask")
REQUIRED = ("time", "symbol", "price")
ALIASES = {
    "date": "time",
    "datetime": "time",
    "timestamp": "time",
    "time_ns": "time",
    "ticker": "symbol",
    "close": "price",
    "last": "price",
    "size": "volume",
    "quantity": "volume",
}
MAX_LINE_BYTES = 65_536
LOOP_PAUSE_S = 1.0
"""Between two rounds of a paced replay: no file says how long after its last row its first one follows."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUMERIC_TIME = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,9})?")
# An epoch's unit by its size: seconds stay below 10^11 until the year 5138, milliseconds are above since 1973, …
UNITS = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3))


class Place(NamedTuple):
    """Where a replay stands: the round, and the lines and bytes of the file that are done."""

    round: int
    line: int
    offset: int

    def __str__(self) -> str:
        return f"{self.round}:{self.line}:{self.offset}"


class Record(NamedTuple):
    """One line: its number, the offset behind it, and a row with its time, or a fault, or (a blank line) neither."""

    line: int
    end: int
    time_ns: int = 0
    row: Row | None = None
    fault: str = ""


class Replay:
    """A source that plays a file; its position is 'ROUND:LINE:OFFSET'."""

    def __init__(self, settings: TickerSettings, clock: Clock, sleep: Sleep) -> None:
        self.identity = f"replay {settings.file}"
        self._path = settings.file
        self._speed = settings.speed
        self._loop = settings.loop
        self._limit = settings.batch
        self._clock = clock
        self._sleep = sleep

    async def batches(self, position: str, last: LastTicks) -> AsyncGenerator[Batch, None]:
        """See Source.batches in sources; ends with the file, or never with `loop`. Raises BootError without one."""
        place = _place(position)
        while True:
            pace = _Pace(self._speed, self._clock)
            empty = True
            for time_ns, batch in self._round(place):
                if batch.rows and (wait_s := pace.wait_s(time_ns)) > 0:
                    await self._sleep(wait_s)
                empty = empty and not batch.rows
                yield batch
            # A file without a single row would be read over and over for nothing.
            if not self._loop or (empty and not place.offset):
                return
            place = Place(place.round + 1, 0, 0)
            await self._sleep(LOOP_PAUSE_S if self._speed else 0)

    def _round(self, place: Place) -> Iterator[tuple[int, Batch]]:
        """Batches up to the file's end, each with the time of its rows."""
        with _Lines(self._path) as lines:
            lines.seek(place)
            for group in _groups(lines.records(), self._limit):
                rows = [record.row for record in group if record.row is not None]
                time_ns = next((record.time_ns for record in group if record.row is not None), 0)
                position = str(Place(place.round, group[-1].line, group[-1].end))
                faults = [record.fault for record in group if record.fault]
                # Each round has the file's times once more.
                yield time_ns, Batch(rows, position, faults, str(place.round) if place.round else "")


def check_file(path: str) -> None:
    """Return if `path` can be replayed. Raises BootError, a line that names the setting."""
    with _Lines(path):
        pass


def parse_time(value: object) -> int:
    """Nanoseconds since 1970 of a time in text or a number. Raises ValueError.

    Digits, with or without a fraction, are an epoch in s, ms, µs or ns, told apart by their size. All else is ISO 8601
    (without an offset: UTC), or a date as '1 Jan' is written in 'Jan 1 2000', which some price files have.
    """
    text = str(value).strip()
    if NUMERIC_TIME.fullmatch(text):
        number = Decimal(text)
        return int(number * next((unit for below, unit in UNITS if abs(number) < below), 1))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = datetime.strptime(text, "%b %d %Y").replace(tzinfo=UTC)
        except ValueError:
            raise ValueError(f"time: found {short(value)}; allowed: ISO 8601 or an epoch in s, ms, µs or ns") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


class _Pace:
    """When a row is due: its distance from the first one's time, divided by the speed. Absolute, so without drift."""

    def __init__(self, speed: float, clock: Callable[[], float]) -> None:
        self._speed = speed
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._last_ns = 0

    def wait_s(self, time_ns: int) -> float:
        """Seconds until a row of `time_ns` is due; 0 or less: now. Time that runs backwards begins a new recording."""
        if not self._speed:
            return 0.0
        if self._start is None or time_ns < self._last_ns:
            self._start = (self._clock(), time_ns)
        self._last_ns = time_ns
        started_at, start_ns = self._start
        return started_at + (time_ns - start_ns) / 1e9 / self._speed - self._clock()


class _Lines:
    """The open file, line by line."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._header: list[str] = []
        self._line = 0
        self._skipping = False
        try:
            # Opening a FIFO would wait for its writer.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise self._unusable("something that is not a file")
            self._file = open(path, "rb")  # noqa: SIM115 closed by __exit__
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from None
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seek(self, place: Place) -> None:
        """Go on behind what is done; behind the header at least."""
        if place.offset:
            self._line = place.line
            self._file.seek(place.offset)

    def records(self) -> Iterator[Record]:
        """All lines from here on."""
        while raw := self._file.readline(MAX_LINE_BYTES):
            whole = raw.endswith(b"\n") or len(raw) < MAX_LINE_BYTES
            if self._skipping:
                self._skipping = not whole
                yield Record(self._line, self._file.tell())
                continue
            self._line += 1
            self._skipping = not whole
            yield self._record(raw) if whole else self._fault(f"longer than {MAX_LINE_BYTES} bytes")

    def _read_header(self) -> None:
        first = self._file.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")
        if not first.strip():
            raise self._unusable("an empty first line")
        if first.lstrip().startswith(b"{"):
            self._file.seek(0)
            return
        self._line = 1
        try:
            self._header = [name.strip().lower() for name in _split(first.decode())]
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._unusable(f"a header line that is not CSV ({error})") from None
        missing = [name for name in REQUIRED if name not in _rename((name, "-") for name in self._header)]
        if missing:
            raise self._unusable(f"a header line without {', '.join(missing)}")

    def _unusable(self, found: str) -> BootError:
        allowed = "a CSV file with the columns time, symbol, price (and volume), or JSONL of the same keys"
        return BootError(f"ticker.file: found {found} at {self._path!r}; allowed: {allowed}")

    def _record(self, raw: bytes) -> Record:
        try:
            text = raw.decode().removeprefix("\ufeff").strip()
            if not text:
                return Record(self._line, self._file.tell())
            fields = self._csv(text) if self._header else _json(text)
            time_ns = parse_time(fields.pop("time", None))
        except (ValueError, csv.Error) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            return self._fault(str(error))
        fields["time_ns"] = time_ns
        return Record(self._line, self._file.tell(), time_ns, Row(f"line {self._line}", fields))

    def _csv(self, text: str) -> dict[str, object]:
        values = _split(text)
        if len(values) != len(self._header):
            raise ValueError(f"found {len(values)} columns; allowed: {len(self._header)}, as in the header")
        fields = _rename(zip(self._header, values, strict=True))
        numbers: dict[str, object] = {name: _number(name, str(fields[name])) for name in FIELDS[2:] if fields.get(name)}
        return {"time": fields["time"], "symbol": str(fields["symbol"]).strip(), **numbers}

    def _fault(self, reason: str) -> Record:
        return Record(self._line, self._file.tell(), fault=f"line {self._line}: {reason}")


def _place(position: str) -> Place:
    return Place(*map(int, position.split(":"))) if position else Place(0, 0, 0)


def _groups(records: Iterable[Record], limit: int) -> Iterator[list[Record]]:
    """Runs of records whose rows have one time, at most `limit` lines each; lines without a row go with the run."""
    group: list[Record] = []
    time_ns: int | None = None
    for record in records:
        other_time = record.row is not None and time_ns is not None and record.time_ns != time_ns
        if group and (other_time or len(group) >= limit):
            yield group
            group, time_ns = [], None
        group.append(record)
        if record.row is not None:
            time_ns = record.time_ns
    if group:
        yield group


def _rename(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The fields that a tick has, by their own names; of two for one field the own name wins, else the first."""
    fields: dict[str, object] = {}
    for name, value in items:
        field = ALIASES.get(name, name)
        if field in FIELDS and (name == field or field not in fields):
            fields[field] = value
    return fields


def _split(line: str) -> list[str]:
    return next(csv.reader([line.strip()], strict=True))


def _json(text: str) -> dict[str, object]:
    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"found {short(value)}; allowed: an object")
    return _rename(value.items())


def _number(name: str, text: str) -> float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{name}: found {short(text)}; allowed: a number") from None
