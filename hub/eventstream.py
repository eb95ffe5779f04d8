r"""Event streams: Server-Sent Events (WHATWG HTML §9.2), words ⇄ bytes of plain SSE, no I/O.

Does: write events, comments and reconnection times; give the wire forms in which publications go to event streams.
Does not: touch sockets, know requests or keep positions (transports.sse does).
Called by: transports.sse.
Never break: CR, LF and CRLF in data end a line of data and nothing else; a name or an id with one of them, or with NUL,
is refused, so that no text from outside can become a field of its own.

What a client sees:

    data: {"channel":"chat:a","pub":{"offset":17,"data":{"text":"hi"}}}      a publication; EventSource.onmessage
    event: join | leave     {"channel":"room:a","join":{"info":{…}}}         with join_leave=true
    event: open             {"client":"…","ping":25.0}                       first; seconds between heartbeats
    event: cursor           {}                                               nothing to do: it brings an id
    event: lost             {"channel":"chat:a"}                             what is missing can't be had: reload
                            {"dropped":3}                                    so many of `none` channels: read too slowly
    event: notice           {"data":…}                                       to all of a user's connections; an event
                            {"data":{"event":"said","data":…}}               of an application's, to this one
    event: closed           {"code":3001,"reason":"…","reconnect":true}      the last one
    : and an empty line                                                      a heartbeat

Data is JSON on one line, so binary data comes as its publisher wrote it into JSON, such as base64; bytes that an
application emits as {"$base64":"AQI="}, with their number in the tag `binary`.

The id. EventSource sends back the id that it saw last, and only that one, so it must say where the client is in ALL its
channels; but a publication's bytes are made once for all clients, who are in different places elsewhere. Hence:

- a client with one `stream` channel, the usual case, or with none: the whole cursor is that channel's position, the
  same for all clients there. It stands in the publication's own bytes (PositionedForm), which all of them share.
- a client with several: publications come without an id and are shared as well; behind what one flush writes comes one
  `cursor` event. All who listen to the same channels, and have caught up, stand at the same places, so it is made once
  for all of them (transports.sse_stamps). Not in front of the last publication, as what waits may yet be
  conflated; and an event, as an id alone is passed over by the npm `eventsource` package.

A cursor stands behind everything that it claims, so whatever is cut off is sent again and nothing is passed over. What
was written behind the last cursor that arrived comes twice: at least once, with offsets to tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import orjson

from . import cursor
from .errors import Close
from .position import Position

SHARED_STAMPS = 64
"""Of the last ones kept; at most 12 KB each."""
HEARTBEAT = b":\n\n"
LINE_END = re.compile(rb"\r\n|\r|\n")
UNSAFE = re.compile(rb"[\r\n\0]")
NUMBERED = re.compile(rb'data: \{"channel":"([^"]+)","pub":\{"offset":([0-9]+)')
"""The beginning of a `stream` channel's publication without an id; names need no escapes in JSON (channels.NAME)."""
OFFSET = re.compile(rb'\{"offset":([0-9]+)')
"""The beginning of its body, as publish_stream.lua writes it."""
NOTICE = b'{"push":{"message":'
"""How protocol.encode_message begins."""


def encode_event(data: bytes, event: bytes = b"", id: bytes = b"") -> bytes:
    r"""(b'{}', b'cursor', b'1~…') -> b'id: 1~…\nevent: cursor\ndata: {}\n\n'. Raises ValueError for an unsafe name or
    id.
    """
    if UNSAFE.search(event) or UNSAFE.search(id):
        raise ValueError("event and id: allowed are texts without CR, LF and NUL")
    head = b""
    if id:
        head += b"id: " + id + b"\n"
    if event:
        head += b"event: " + event + b"\n"
    return head + encode_data(data) + b"\n"


def encode_data(data: bytes) -> bytes:
    r"""b'{}' -> b'data: {}\n'; b'a\rb' -> b'data: a\ndata: b\n'"""
    if b"\r" in data or b"\n" in data:
        return b"".join(b"data: " + line + b"\n" for line in LINE_END.split(data))
    return b"data: " + data + b"\n"


def encode_retry(retry_ms: int) -> bytes:
    r"""250 -> b'retry: 250\n\n': how long a client waits before it comes back."""
    return b"retry: %d\n\n" % retry_ms


def encode_open(client: str, ping_s: float) -> bytes:
    """The first event. ping_s: between two heartbeats, so that a client can tell a quiet stream from a dead one."""
    return encode_event(orjson.dumps({"client": client, "ping": ping_s}), b"open")


def encode_cursor(text: str) -> bytes:
    """An event that brings nothing but an id."""
    return encode_event(b"{}", b"cursor", text.encode("ascii"))


@lru_cache(SHARED_STAMPS)
def encode_stamp(positions: tuple[tuple[str, Position], ...]) -> bytes:
    """`encode_cursor` of positions by channel: clients with the same channels mostly stand at the same place."""
    return encode_cursor(cursor.encode(dict(positions)))


def encode_lost(channel: str) -> bytes:
    """Something of a `stream` channel is missing."""
    return encode_event(orjson.dumps({"channel": channel}), b"lost")


def encode_dropped(count: int) -> bytes:
    """So many publications of `none` channels were left out."""
    return encode_event(orjson.dumps({"dropped": count}), b"lost")


def encode_closed(close: Close, retry_ms: int) -> bytes:
    """The last words."""
    data = {"code": close.code, "reason": close.reason, "reconnect": close.reconnect}
    return encode_retry(retry_ms) + encode_event(orjson.dumps(data), b"closed")


def numbered(frame: bytes) -> tuple[str, int] | None:
    """Channel and offset of a publication without an id, of a `stream` channel; None for all else."""
    found = NUMBERED.match(frame)
    return (str(found[1], "ascii"), int(found[2])) if found else None


class PlainForm:
    """Wire form: publications without an id."""

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        r"""b'data: {"channel":"a","pub":{"data":1}}\n\n'"""
        # orjson gives a body no line end; the check costs 50 ns, once for all clients.
        return encode_data(b'{"channel":' + orjson.dumps(channel) + b',"pub":' + body + b"}") + b"\n"

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        r"""b'event: join\ndata: {"channel":"a","join":{"info":{…}}}\n\n'"""
        event = b"join" if body.startswith(b'"join"') else b"leave"
        return encode_event(b'{"channel":' + orjson.dumps(channel) + b"," + body + b"}", event)

    def encode_message(self, message: bytes) -> bytes:
        """A `message` push of the native protocol, as a `notice`."""
        data = message[len(NOTICE) : -2] if message.startswith(NOTICE) else message
        return encode_event(data, b"notice")


class PositionedForm(PlainForm):
    """Wire form: publications of a `stream` channel carry its position as their id."""

    def __init__(self, epoch_of: Callable[[str], str]) -> None:
        """epoch_of: of a `stream` channel, that of the publications which are being passed on now."""
        self._epoch_of = epoch_of

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        r"""b'id: 1~q3f7v0a1~17~4.k3f9x1\ndata: {"channel":"a","pub":{"offset":17,"data":1}}\n\n'"""
        frame = PlainForm.encode_publication(self, channel, body)
        offset = OFFSET.match(body)
        if offset is None:
            return frame
        text = cursor.encode({channel: Position(self._epoch_of(channel), int(offset[1]))})
        return b"id: " + text.encode("ascii") + b"\n" + frame


PLAIN = PlainForm()
