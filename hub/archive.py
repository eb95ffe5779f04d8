"""Archive: the file that `hub backup` writes and `hub restore` reads: JSON lines, whole or refused.

Does: write records between a header and a last line with their counts and SHA-256; read and check all of it.
Does not: know Redis (backup does), nor where the file is, nor gzip it (saving does).
Called by: backup, saving.
Never break: what a Reader yields names channels and mailbox keys only and is well-formed, as keys are built from it;
nobody writes anything from a file before a Reader has come to its end. A change that older hubs would misread needs
another VERSION.

It is logical, and so goes from any Redis to any Valkey, which can't read each other's dumps:

    {"format":"hub-backup","version":1,"hub":"0.1.0","prefix":"hub","time":"2026-01-31T12:00:00Z","contents":"all","generation":4}
    {"channel":"chat:room","meta":{"e":"4.k3f9x1","o":"17"},"meta_ttl_ms":2591000,"ttl_ms":299000,"publications":[[16,"{…}"],[17,"{…}"]]}
    {"key":"mail:{inbox:#42}","type":"hash","ttl_ms":-1,"values":["field","value"]}
    {"more":["field","value"]}
    {"end":true,"channels":1,"publications":2,"keys":1,"sha256":"…"}

`more` continues the channel or key before it; a channel or key that comes twice counts as it came last. Bytes that are
no UTF-8 are {"base64":"…"}. A time to live is what remained when the backup was made, in ms; -1 is none.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import orjson

from .channels import NAME
from .errors import ConfigError, HubError
from .position import MAX_OFFSET

_KEY = re.compile(rf"(mail|box|flight|wait):\{{{NAME.pattern}\}}|dead|mailboxes")
FORMAT = "hub-backup"
VERSION = 1
MAX_LINE_BYTES = 268_435_456
"""A page of a backup and one publication more, escaped: far less. A foreign file must not fill the memory."""
KEY_TYPES = {"mail": "hash", "box": "hash", "flight": "zset", "wait": "zset", "dead": "stream", "mailboxes": "hash"}
"""Of a mailbox's keys, and of those for all mailboxes, by the first part of the name; hub/lua/mailbox.lua has more."""

Contents = Literal["all", "mailboxes"]


class Header(NamedTuple):
    """Of which hub a backup is. time: UTC, ISO 8601; generation: the number of the store's one then, 0 if unknown."""

    hub: str
    prefix: str
    time: str
    contents: Contents
    generation: int


@dataclass(slots=True)
class Counts:
    """What was written or read."""

    channels: int = 0
    publications: int = 0
    keys: int = 0


class Channel(NamedTuple):
    """One `stream` channel, with its first publications as (offset, body), oldest first."""

    name: str
    meta: dict[bytes, bytes]
    meta_ttl_ms: int
    ttl_ms: int
    publications: list[tuple[int, bytes]]


class Key(NamedTuple):
    """One key without the prefix, 'mail:{inbox:#42}', and its first values, with all that belongs to them in turn.

    hash: field, value. zset: member, score. stream: id, how many fields and values, each field, its value.
    """

    name: str
    type: str
    ttl_ms: int
    values: list[bytes]


class MorePublications(NamedTuple):
    """Of the channel before."""

    publications: list[tuple[int, bytes]]


class MoreValues(NamedTuple):
    """Of the key before."""

    values: list[bytes]


Record = Channel | Key | MorePublications | MoreValues


class Sink(Protocol):
    """Where an archive goes; any writable binary file."""

    def write(self, data: bytes, /) -> object: ...


class Damaged(ConfigError):
    """The file is no backup, or not a whole one. The text says what is wrong, and where."""


def units(kind: str, values: list[bytes]) -> Iterator[list[bytes]]:
    """What of a key's values belongs together, such as field and value. Raises ValueError for a part of it."""
    start = 0
    while start < len(values):
        size = 2
        if kind == "stream":
            size += int(values[start + 1]) if start + 1 < len(values) else 0
        unit = values[start : start + size]
        if len(unit) != size or (kind == "stream" and (size < 4 or size % 2)):
            raise ValueError(f"a part of an element of a {kind}")
        yield unit
        start += size


# Writing


class Writer:
    """An archive that grows; without `close` it is refused by every reader."""

    def __init__(self, sink: Sink, header: Header) -> None:
        self.header = header
        self._sink = sink
        self._hash = sha256()
        self.counts = Counts()
        self.sha256 = ""
        self._line({"format": FORMAT, "version": VERSION, **header._asdict()})

    def write(self, record: Record) -> None:
        """Append one record. Raises HubError for one that no reader would take, and OSError as the sink does."""
        name = getattr(record, "name", None)
        if name is not None and not (NAME if isinstance(record, Channel) else _KEY).fullmatch(name):
            raise HubError(f"found {name!r} in Redis, which no hub has written; has another program the same prefix?")
        _count(record, self.counts)
        self._line(_to_json(record))

    def close(self) -> None:
        """Write the last line. The sink is the caller's to close."""
        self.sha256 = self._hash.hexdigest()
        counts = {name: getattr(self.counts, name) for name in Counts.__slots__}
        self._sink.write(orjson.dumps({"end": True, **counts, "sha256": self.sha256}) + b"\n")

    def _line(self, value: dict[str, Any]) -> None:
        line = orjson.dumps(value) + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise HubError(f"{str(value)[:80]}…: found {len(line)} bytes in one record; allowed: {MAX_LINE_BYTES}")
        self._hash.update(line)
        self._sink.write(line)


def _count(record: Record, counts: Counts) -> None:
    if isinstance(record, Channel):
        counts.channels += 1
    if isinstance(record, Key):
        counts.keys += 1
    if isinstance(record, Channel | MorePublications):
        counts.publications += len(record.publications)


def _to_json(record: Record) -> dict[str, Any]:
    if isinstance(record, Channel):
        meta = {name.decode(): _text(value) for name, value in record.meta.items()}
        times = {"meta_ttl_ms": record.meta_ttl_ms, "ttl_ms": record.ttl_ms}
        return {"channel": record.name, "meta": meta, **times, "publications": _pairs(record.publications)}
    if isinstance(record, Key):
        own = {"key": record.name, "type": record.type, "ttl_ms": record.ttl_ms}
        return {**own, "values": [_text(value) for value in record.values]}
    if isinstance(record, MorePublications):
        return {"more": _pairs(record.publications)}
    return {"more": [_text(value) for value in record.values]}


def _pairs(publications: list[tuple[int, bytes]]) -> list[tuple[int, Any]]:
    return [(offset, _text(body)) for offset, body in publications]


def _text(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


# Reading


class Reader:
    """An archive from its first line on. Iterating yields its records once; the header is there from the start.

    Raises Damaged, from the iteration too: at its end, when the last line is missing or tells of something else.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._hash = sha256()
        self._number = 0
        self.counts = Counts()
        self.sha256 = ""
        """Known at the end."""
        value = self._parse(self._read())
        self.header = _header(value)

    def __iter__(self) -> Iterator[Record]:
        before: Record | None = None
        kind = ""
        top = last = 0
        while True:
            line = self._read()
            value = self._parse(line)
            if "end" in value:
                return self._end(value)
            try:
                record = _from_json(value, before)
                if isinstance(record, Channel):
                    top, last = int(record.meta[b"o"]), 0
                if isinstance(record, Key):
                    kind = record.type
                if isinstance(record, Channel | MorePublications):
                    last = _check_offsets(record.publications, last, top)
                else:
                    _check_values(kind, record.values)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Damaged(f"line {self._number}: not a record: {error}") from None
            _count(record, self.counts)
            before = record
            yield record

    def _read(self) -> bytes:
        """The next line. It counts into the hash when it is known not to be the last one."""
        line = self._guarded(self._source.readline, MAX_LINE_BYTES + 1)
        if not line.endswith(b"\n"):
            raise Damaged(f"line {self._number + 1}: cut off, or not a backup of a hub")
        self._number += 1
        return line

    def _guarded(self, read: Callable[[int], bytes], size: int) -> bytes:
        """A compressed file tells at each call, at the last one too, that it is not whole."""
        try:
            return read(size)
        except (EOFError, zlib.error, OSError) as error:  # gzip.BadGzipFile is an OSError
            raise Damaged(f"line {self._number + 1}: damaged or cut off: {error}") from None

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise Damaged(f"line {self._number}: not JSON, so not a backup of a hub") from None
        if not isinstance(value, dict):
            raise Damaged(f"line {self._number}: not an object, so not a backup of a hub")
        if "end" not in value:
            self._hash.update(line)
        return value

    def _end(self, value: dict[str, Any]) -> None:
        self.sha256 = self._hash.hexdigest()
        if value.get("sha256") != self.sha256:
            raise Damaged("its SHA-256 is another one: the file was changed or damaged")
        for name in Counts.__slots__:
            if value.get(name) != getattr(self.counts, name):
                raise Damaged(f"found {getattr(self.counts, name)} {name}; its last line says {value.get(name)}")
        if self._guarded(self._source.read, 1):
            raise Damaged(f"line {self._number + 1}: something follows the last line")


def _header(value: dict[str, Any]) -> Header:
    if value.get("format") != FORMAT:
        raise Damaged("not a backup of a hub: its first line says something else")
    if value.get("version") != VERSION:
        raise Damaged(f"found version {value.get('version')!r} of the format; allowed: {VERSION}")
    try:
        header = Header(**{name: value[name] for name in Header._fields})
    except KeyError as error:
        raise Damaged(f"line 1: no {error.args[0]}") from None
    if header.contents not in ("all", "mailboxes") or type(header.generation) is not int:
        raise Damaged("line 1: contents or generation of another kind")
    return header


def _from_json(value: dict[str, Any], before: Record | None) -> Record:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is no record here."""
    if "channel" in value:
        if not NAME.fullmatch(value["channel"]):
            raise ValueError(f"channel {value['channel']!r}")
        meta = {name.encode(): _bytes(text) for name, text in value["meta"].items()}
        if not meta[b"e"]:
            raise ValueError("a channel without an epoch")
        times = _ttl(value["meta_ttl_ms"]), _ttl(value["ttl_ms"])
        return Channel(value["channel"], meta, *times, _publications(value["publications"]))
    if "key" in value:
        name, kind = value["key"], value["type"]
        if not _KEY.fullmatch(name) or KEY_TYPES.get(name.partition(":")[0]) != kind:
            raise ValueError(f"key {name!r} of type {kind!r}")
        return Key(name, kind, _ttl(value["ttl_ms"]), [_bytes(each) for each in value["values"]])
    if isinstance(before, Channel | MorePublications) and value["more"]:
        return MorePublications(_publications(value["more"]))
    if before is None or not value["more"]:
        raise ValueError("more of nothing, or nothing more")
    return MoreValues([_bytes(each) for each in value["more"]])


def _publications(values: list[Any]) -> list[tuple[int, bytes]]:
    return [(offset, _bytes(body)) for offset, body in values]


def _check_offsets(publications: list[tuple[int, bytes]], last: int, top: int) -> int:
    """Return the last offset, or `last` where there is none."""
    if not 0 <= top <= MAX_OFFSET:
        raise ValueError(f"offset {top}")
    for offset, _ in publications:
        if type(offset) is not int or not last < offset <= top:
            raise ValueError(f"offset {offset!r} after {last}, in a channel that is at {top}")
        last = offset
    return last


def _check_values(kind: str, values: list[bytes]) -> None:
    for unit in units(kind, values):
        if kind == "zset" and math.isnan(float(unit[1])):
            raise ValueError("a score that is no number")
        if kind == "stream" and not re.fullmatch(rb"\d{1,20}-\d{1,20}", unit[0]):
            raise ValueError(f"stream id {unit[0]!r}")


def _ttl(value: object) -> int:
    if type(value) is not int or not -1 <= value < 2**53:
        raise ValueError(f"time to live {value!r}")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if set(value) != {"base64"}:
        raise ValueError(f"text {value!r}")
    return base64.b64decode(value["base64"], validate=True)
