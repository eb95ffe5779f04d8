"""Messages: what travels between the doors, and the lines in which it crosses Redis.

Does: build the body of a publication once, at its publisher; pack publications for Redis and unpack them.
Does not: know wires (a wire form wraps the body), Redis or subscribers.
Called by: publish and ticker (bodies), broker (pack), ingest (unpack).
Never break: a body is one line of JSON, made by orjson, so a newline always ends it; a channel name passed
`channels.NAME`.

On Redis a batch is lines: the format's version, then channel and body of each publication in turn:

    1\\nticker:ACME\\n{"data":{"price":1.5}}\\nticker:BETA\\n{"data":{"price":2}}

Lines, and not JSON: taking them apart is one `bytes.split` in C, and the bodies go on to the clients as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

FEED_VERSION = b"1"


class Publication(NamedTuple):
    """One message of one channel.

    `body` is the publication object of the native protocol: b'{"data":…,"info":…,"tags":…}'.
    """

    channel: str
    body: bytes


class ClientInfo(NamedTuple):
    """Who published over a client connection; '' is the anonymous user."""

    user: str
    client: str


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
    if lines[0] != FEED_VERSION or len(lines) % 2 == 0:
        raise ValueError(f"not a feed payload of version {FEED_VERSION.decode()}: {payload[:40]!r}")
    return [Publication(str(channel, "ascii"), body) for channel, body in zip(lines[1::2], lines[2::2], strict=True)]
