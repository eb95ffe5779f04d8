"""Messages: what travels between the doors, and the lines in which it crosses Redis.

Does: build the body of a publication once, at its publisher; pack publications for Redis and unpack them.
Does not: know wires (a wire form wraps the body), Redis or subscribers.
Called by: publish and ticker (bodies), broker (pack), ingest (unpack).
Never break: a body is one line of JSON, made by orjson, so a newline always ends it; a channel name passed
`channels.NAME`.

On Redis a batch is lines: the format's version, then channel and body of each publication in turn:

    1\\nticker:ACME\\n{"data":{"price":1.5}}\\nticker:BETA\\n{"data":{"price":2}}

Publications of `stream` channels are numbered by publish_stream.lua, which packs them itself; each has an epoch and an
offset besides, and the offset stands in the body too:

    2\\nchat:room\\n4.k3f9x1\\n17\\n{"offset":17,"data":{"text":"hi"}}

Who comes and goes is told by the presence scripts, on the Redis channel of the channel's publications:

    3\\nchat:room\\n"join":{"info":{"user":"42","client":"…"}}

Lines, and not JSON: taking them apart is one `bytes.split` in C, and the bodies go on to the clients as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

FEED_VERSION = b"1"
FEED_PREFIX = FEED_VERSION + b"\n"
STREAM_VERSION = b"2"
STREAM_PREFIX = STREAM_VERSION + b"\n"
ARRIVAL_VERSION = b"3"
ARRIVAL_PREFIX = ARRIVAL_VERSION + b"\n"


class Publication(NamedTuple):
    """One message of one channel.

    `body` is the publication object of the native protocol: b'{"data":…,"info":…,"tags":…}'.
    """

    channel: str
    body: bytes


class StreamPublication(NamedTuple):
    """One message of one `stream` channel; `offset` counts from 1 within `epoch`, and `body` repeats it."""

    channel: str
    body: bytes
    epoch: str
    offset: int


class Arrival(NamedTuple):
    """Somebody came to a channel or went: `body` is b'"join":{"info":{…}}' or b'"leave":{"info":{…}}'."""

    channel: str
    body: bytes


class ClientInfo(NamedTuple):
    """Who published or subscribed over a client connection; '' is the anonymous user."""

    user: str
    client: str


class PublishOptions(NamedTuple):
    """What a publisher may ask of one publication besides.

    idempotency_key: '' or a text; within idempotency_ttl_s the same key of a channel publishes nothing again.
    version: 0, or the state's number: nothing is published where the channel has seen this one or a newer one of the
    same `version_epoch` ('': of whichever it has seen).
    skip_history: reach who listens now, unnumbered, and keep nothing.
    """

    idempotency_key: str = ""
    version: int = 0
    version_epoch: str = ""
    skip_history: bool = False


PLAIN = PublishOptions()


def encode_body(data: Any, info: ClientInfo | None = None, tags: dict[str, str] | None = None) -> bytes:
    """The body of a publication: b'{"data":{"text":"hi"},"info":{"user":"42","client":"…"}}'.

    data: anything that orjson can write. Raises TypeError for what it can't, such as nesting beyond 254.
    """
    body: dict[str, Any] = {"data": data}
    if info is not None:
        body["info"] = {"user": info.user, "client": info.client}
    if tags:
        body["tags"] = tags
    return orjson.dumps(body)


def pack(publications: Iterable[Publication]) -> bytes:
    """Publications as the payload of one Redis PUBLISH; the lines of the file's head."""
    lines = [FEED_VERSION]
    for channel, body in publications:
        lines.append(channel.encode())
        lines.append(body)
    return b"\n".join(lines)


def unpack(payload: bytes) -> list[Publication]:
    """The publications of one payload. Raises ValueError for a payload that is not ours."""
    lines = payload.split(b"\n")
    if len(lines) == 3 and lines[0] == FEED_VERSION:  # the usual one, at half the price
        return [Publication(str(lines[1], "ascii"), lines[2])]
    if lines[0] != FEED_VERSION or len(lines) % 2 == 0:
        raise ValueError(f"not a feed payload of version {FEED_VERSION.decode()}: {payload[:40]!r}")
    return [Publication(str(channel, "ascii"), body) for channel, body in zip(lines[1::2], lines[2::2], strict=True)]


def unpack_arrivals(payload: bytes) -> list[Arrival]:
    """The arrivals of one payload that begins with ARRIVAL_PREFIX. Raises ValueError for one that is not ours."""
    lines = payload.split(b"\n")
    if lines[0] != ARRIVAL_VERSION or len(lines) % 2 == 0:
        raise ValueError(f"not a feed payload of version {ARRIVAL_VERSION.decode()}: {payload[:40]!r}")
    return [Arrival(str(channel, "ascii"), body) for channel, body in zip(lines[1::2], lines[2::2], strict=True)]


def unpack_stream(payload: bytes) -> list[StreamPublication]:
    """The publications of one payload that begins with STREAM_PREFIX. Raises ValueError for one that is not ours."""
    lines = payload.split(b"\n")
    if lines[0] != STREAM_VERSION or len(lines) % 4 != 1:
        raise ValueError(f"not a feed payload of version {STREAM_VERSION.decode()}: {payload[:40]!r}")
    return [
        StreamPublication(str(channel, "ascii"), body, str(epoch, "ascii"), int(offset))
        for channel, epoch, offset, body in zip(lines[1::4], lines[2::4], lines[3::4], lines[4::4], strict=True)
    ]
