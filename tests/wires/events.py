"""Events: what the load writes down, one JSON array a line, and how it is read again.

Does: give each kind of line its shape; append lines to a file; read files.
Does not: judge (checker).
Called by: load, receivers, rig (write), checker (reads). stock.mjs writes the same lines.
Never break: each file has one writer, which writes what happened in the order in which it happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Entered(NamedTuple):
    """A client is in the namespace; it asks to be let into the room next.

    group: of clients that are counted together, such as "polling, npm". emits: events; those that only listen do not.
    """

    client: str
    group: str
    emits: bool


class Emitted(NamedTuple):
    """Its event `number`, from 0 on, is on its way."""

    client: str
    number: int


class Acked(NamedTuple):
    """The ack of event `number` came. value: what is in it; ms: since it was emitted."""

    client: str
    number: int
    value: Any
    ms: float


class Published(NamedTuple):
    """The hub said that it has message `number`, from 0 on, for the room."""

    number: int


class Heard(NamedTuple):
    """The room's message `number` came."""

    client: str
    number: int


class Left(NamedTuple):
    """The client is done. seen: events that the application has had of it; None of one that emits none."""

    client: str
    seen: int | None


class Refused(NamedTuple):
    """An HTTP request was answered with an error: of Engine.IO's code, or -1."""

    client: str
    status: int
    code: int


class Gone(NamedTuple):
    """Its connection ended before it was done, or it never got in."""

    client: str
    why: str


Event = Entered | Emitted | Acked | Published | Heard | Left | Refused | Gone
KINDS: dict[str, Any] = {
    "enter": Entered,
    "e": Emitted,
    "a": Acked,
    "p": Published,
    "h": Heard,
    "left": Left,
    "refused": Refused,
    "gone": Gone,
}
_WORDS = {kind: word for word, kind in KINDS.items()}


class Log:
    """Appends events to one file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)

    def write(self, event: Event) -> None:
        self._file.write(orjson.dumps((_WORDS[type(event)], *event)) + b"\n")

    def close(self) -> None:
        self._file.close()


def parse(line: bytes) -> Event:
    """One line. Raises ValueError (KeyError, TypeError) for one that is not of these."""
    word, *values = orjson.loads(line)
    return KINDS[word](*values)


def read(paths: Iterable[Path]) -> Iterator[Event]:
    """All events, file by file, each in its order."""
    for path in paths:
        with path.open("rb") as file:
            yield from map(parse, file)
