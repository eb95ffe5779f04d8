"""Emissions: an application's events on their way through channels, and who is passed over by one.

Does: say an event in the words of a publication, and read it again; the channel that all of a Socket.IO namespace are
in; a fan-out that leaves out the client that an event names.
Does not: know handlers (app_gate) or how an event looks on a wire (transports.socketio).
Called by: app_gate, transports.socketio, worker (where an application is configured).
Never break: an emission is a publication like any other, so its order, limits and recovery are the channel's.

    emit("said", "hi", 3, skip=ann)  ->  {"data":["hi",3],"tags":{"event":"said","args":"2","skip":"5d1e…"}}
    emit("file", b"\\x01\\x02")       ->  {"data":{"$base64":"AQI="},"tags":{"event":"file","binary":"1"}}

With one argument, `data` is that, and there is no tag `args`. The tag `binary` says how many values in it are bytes,
each in the form above; Socket.IO clients get them as attachments. `volatile` is one that nobody has to wait for.
Clients of other wires see just this. The server API may publish with the same tags; clients can't, as theirs have none.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from .audience import Audience, Subscriber, Volatile
from .channels import Namespace
from .fanout import Fanout
from .message import Publication
from .socketio_protocol import MAX_ATTACHMENTS

EVENT, ARGS, SKIP, BINARY, VOLATILE = "event", "args", "skip", "binary", "volatile"
EVENT_MARK = b'"event":"'
SKIP_MARK = b'"skip":"'
VOLATILE_MARK = b'"volatile":"'
NUMBERED = b'{"offset":'
"""How the body of a `stream` channel's publication begins."""
BASE64 = "$base64"
"""The one key of an object that stands for bytes."""
MAX_BINARY_BYTES = 1_000_000
"""In one emission, as bytes: what a client may send in one message by default."""
EVERYONE_HEAD = "hub.everyone:"
EVERYONE = Namespace.model_validate({"subscribe": "nobody", "publish": "nobody"})
"""The rules of the channels of `everyone`, which no client can name: their namespace is not among the settings."""


class Emission(NamedTuple):
    """One event, as it stands in a publication. skip: the client that does not get it, or ''."""

    name: str
    args: list[Any]
    skip: str = ""
    volatile: bool = False


def everyone(namespace: str) -> str:
    """The channel of all clients in a Socket.IO namespace: '/a/b' -> 'hub.everyone::a:b'."""
    return EVERYONE_HEAD + namespace.replace("/", ":")


def everyone_rules(recovery_ms: int, most: int) -> Namespace:
    """The rules of those channels. recovery_ms: lost clients may come back for so long, and have what they missed.

    most: publications that one of them may have missed.
    """
    if not recovery_ms:
        return EVERYONE
    return EVERYONE.model_copy(
        update={"mode": "stream", "history_size": most, "history_ttl_s": max(1.0, recovery_ms / 1000)}
    )


def encode(name: str, args: Sequence[Any], skip: str = "", volatile: bool = False) -> tuple[Any, dict[str, str]]:
    """An event as data and tags of a publication. Raises TypeError and ValueError as `marked`."""
    values, count = marked(args)
    tags = {EVENT: name}
    if skip:
        tags[SKIP] = skip
    if volatile:
        tags[VOLATILE] = "1"
    if count:
        tags[BINARY] = str(count)
    if len(values) == 1:
        return values[0], tags
    return values, {**tags, ARGS: str(len(values))}


def marked(values: Sequence[Any]) -> tuple[list[Any], int]:
    """Values as JSON has them: [b'x'] -> [{"$base64":"eA=="}]; and how many were bytes.

    Raises TypeError for what is neither JSON nor bytes, ValueError for too many bytes.
    """
    count = size = 0

    def mark(value: object) -> dict[str, str]:
        nonlocal count, size
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"{type(value).__name__} is neither JSON nor bytes")
        count, size = count + 1, size + len(value)
        # The size of what follows is not known before it is written, so it must not pile up.
        return {BASE64: b64encode(value).decode() if size <= MAX_BINARY_BYTES and count <= MAX_ATTACHMENTS else ""}

    text = orjson.dumps(list(values), default=mark)
    if not count:
        return list(values), 0
    if count > MAX_ATTACHMENTS or size > MAX_BINARY_BYTES:
        raise ValueError(
            f"found {count} binary values of {size} bytes; allowed: {MAX_ATTACHMENTS} of {MAX_BINARY_BYTES} bytes"
        )
    restored: list[Any] = orjson.loads(text)
    return restored, count


def unmarked(values: list[Any]) -> list[Any]:
    """The opposite, in place. What only looks alike stays as it is. No recursion: the nesting is a publisher's."""
    waiting: list[Any] = [values]
    while waiting:
        inside = waiting.pop()
        for key, value in list(enumerate(inside) if isinstance(inside, list) else inside.items()):
            if isinstance(value, dict) and len(value) == 1 and isinstance(value.get(BASE64), str):
                try:
                    inside[key] = b64decode(value[BASE64], validate=True)
                except (binascii.Error, ValueError):
                    continue  # of another publisher's making
            elif isinstance(value, dict | list):
                waiting.append(value)
    return values


def parse(body: bytes) -> Emission | None:
    """The event that a publication's body says; None for every other publication."""
    # Looked for before anything is parsed. Data may hold the mark as well, so only the parsed tags count.
    if EVENT_MARK not in body:
        return None
    publication = orjson.loads(body)
    tags, data = publication.get("tags", {}), publication["data"]
    name = tags.get(EVENT)
    if not name:
        return None
    args = data if ARGS in tags and isinstance(data, list) else [data]
    return Emission(name, unmarked(args) if BINARY in tags else args, tags.get(SKIP, ""), VOLATILE in tags)


def is_skipping(body: bytes, clients: Collection[str]) -> bool:
    """Whether a publication's body says an event that passes over one of these clients, by their ids."""
    if not clients or SKIP_MARK not in body:
        return False
    event = parse(body)
    return event is not None and event.skip in clients


class EmittingFanout(Fanout):
    """A fan-out that passes over whom an emission leaves out, and who would have to wait for a volatile one.

    find: that subscriber, where it is in this worker.
    """

    find: Callable[[str], Subscriber | None] = staticmethod(lambda client: None)
    """By the client's id; set by worker."""
    _volatile = False
    """What is taken up now is."""

    def deliver(self, publications: Iterable[Publication]) -> None:
        gathered: list[Publication] = []
        for publication in publications:
            emission = parse(publication.body) if _is_marked(publication.body) else None
            skipped = self._skipped_by(publication, emission) if emission is not None else None
            # What is numbered has to reach everybody, or the positions of those who go without would be wrong.
            volatile = emission is not None and emission.volatile and not publication.body.startswith(NUMBERED)
            if skipped is None and not volatile:
                gathered.append(publication)
                continue
            super().deliver(gathered)
            gathered = []
            self._volatile = volatile
            if skipped is None:
                super().deliver([publication])
            else:
                self.deliver_past(publication, skipped)
            self._volatile = False
        super().deliver(gathered)

    def _skipped_by(self, publication: Publication, emission: Emission) -> Subscriber | None:
        """Whom it passes over, if that one is here and in the channel."""
        subscriber = self.find(emission.skip) if emission.skip else None
        return subscriber if subscriber is not None and self.holds(publication.channel, subscriber) else None

    def _add(self, audience: Audience, frames: list[bytes], frame: bytes) -> None:
        super()._add(audience, frames, Volatile(frame) if self._volatile else frame)


def _is_marked(body: bytes) -> bool:
    return SKIP_MARK in body or VOLATILE_MARK in body
