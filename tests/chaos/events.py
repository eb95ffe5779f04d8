"""Events: what publishers, clients and the rig write down, one JSON array a line, and how it is read again.

Does: give each kind of line its shape; append lines to a file; read what has been added to files since last time.
Does not: judge (checker).
Called by: publisher, client, load (write), rig (both). sdk.mjs writes the same lines.
Never break: each file has one writer, which writes what happened in the order in which it happened; times are of
CLOCK_MONOTONIC, in s, so those of all processes of one machine can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson


class Published(NamedTuple):
    """A publisher is about to send `id` for the first time."""

    t: float
    channel: str
    id: str


class Acked(NamedTuple):
    """The hub said that it has it. offset: 0 where the answer has none, as that to a client's publish."""

    t: float
    channel: str
    id: str
    epoch: str
    offset: int


class Failed(NamedTuple):
    """One attempt failed; it may be tried again, and it may have arrived all the same."""

    t: float
    channel: str
    id: str
    why: str


class Connected(NamedTuple):
    """port: the client's own, by which the worker that serves it is found."""

    t: float
    client: str
    port: int


class Gone(NamedTuple):
    """A connection ended. asked: by the client itself."""

    t: float
    client: str
    code: int
    asked: bool


class Subscribed(NamedTuple):
    """The reply to a subscribe command, before the publications in it, which follow as Received."""

    t: float
    client: str
    channel: str
    epoch: str
    offset: int
    was_recovering: bool
    recovered: bool


class Unsubscribed(NamedTuple):
    """The hub said that the subscription is over; 2500: subscribe again with the position."""

    t: float
    client: str
    channel: str
    code: int


class Received(NamedTuple):
    """The application got it."""

    t: float
    client: str
    channel: str
    offset: int
    id: str


class Fault(NamedTuple):
    """A round begins. lossless: the store keeps all that it acked. victims: ports of clients it may disconnect."""

    t: float
    name: str
    lossless: bool
    victims: list[int]


class Kept(NamedTuple):
    """What the store has of a channel, once all is quiet: (offset, id), oldest first, up to `offset`."""

    t: float
    channel: str
    epoch: str
    offset: int
    publications: list[list[Any]]


class Settled(NamedTuple):
    """A round ends: nobody publishes, everybody had time to catch up, and Kept of every channel stands above."""

    t: float


class Level(NamedTuple):
    """Something that must not grow, such as descriptors, when all is quiet. slack: growth that is no leak."""

    t: float
    name: str
    value: float
    slack: float


Event = (
    Published
    | Acked
    | Failed
    | Connected
    | Gone
    | Subscribed
    | Unsubscribed
    | Received
    | Fault
    | Kept
    | Settled
    | Level
)
KINDS: dict[str, Any] = {
    "p": Published,
    "a": Acked,
    "f": Failed,
    "c": Connected,
    "g": Gone,
    "s": Subscribed,
    "u": Unsubscribed,
    "m": Received,
    "fault": Fault,
    "kept": Kept,
    "settled": Settled,
    "level": Level,
}
_LETTERS = {kind: letter for letter, kind in KINDS.items()}


class Log:
    """Appends events to one file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)

    def write(self, event: Event) -> None:
        self._file.write(orjson.dumps((_LETTERS[type(event)], *event)) + b"\n")

    def flush(self) -> None:
        """Make what was written so far visible to readers."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Reader:
    """Reads what was added to the files of one directory since it last did."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[Path, BinaryIO] = {}
        self._rests: dict[Path, bytes] = {}

    def read(self) -> Iterator[Event]:
        """File by file, each in its order; a line that is not complete yet waits for the next time."""
        for path in sorted(self._directory.glob("*.jsonl")):
            if path not in self._files:
                self._files[path] = path.open("rb")
            file = self._files[path]
            *lines, rest = (self._rests.get(path, b"") + file.read()).split(b"\n")
            self._rests[path] = rest
            for line in lines:
                yield parse(line)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def parse(line: bytes) -> Event:
    """One line. Raises ValueError (KeyError, TypeError) for one that is not of these."""
    letter, *values = orjson.loads(line)
    return KINDS[letter](*values)


def now_s() -> float:
    """The time for an event, to the tenth of a ms."""
    return round(time.monotonic(), 4)
