"""Cursor: how far a client without a session has read all its channels, as one text that any worker understands.

Does: write positions of `stream` channels, and marks of values of `latest` channels, into one text, and read it again.
Does not: judge whether a position can still be served (recovery does) or know requests and wires.
Called by: eventstream (`id:`), transports.sse and transports.longpoll (what comes back).
Never break: a cursor never claims more than its client has been sent; `decode` takes nothing that `encode` can't have
made, in time linear in its length.

    1~q3f7v0a1~17~4.k3f9x1~0d3k9v2m~v~x9K2m4Qh

Behind the version three fields for each channel: a hash of its name, then offset and epoch of its position, or `v` and
a hash of its newest value. Hashes, since 128 names of 255 characters fit in no header; so a cursor says nothing of
channels that its request does not name. That of a name is one which a page can compute in three lines as well
(static/hub.js), as browsers bring none that is there without TLS; who makes two names collide has only lost its own
place. All characters are unreserved in a URL (RFC 3986 §2.3), or @ and commas, which a query may hold as they are.

It is not signed: who forges one reads from another place what it may read anyway.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b32hexencode, urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from .position import MAX_EPOCH_LENGTH, MAX_OFFSET, Position

VERSION = "1"
MAX_CHANNELS = 128
"""In one cursor, and so in one request of a client that has one."""
MAX_LENGTH = 12_288
"""In characters. Fits, with a request's other headers, into the default of http.header_bytes."""
CLIP_LENGTH = 4096
"""A longer one names only the newest generation of each epoch: after two failovers, of which the second goes back, its
client is told of a loss that may be none."""
KEY_BITS = 40
"""Of a name's hash, hence 8 characters: two of 128 channels share one in about one of 10^8 lists."""
FNV_OFFSET, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
MARK_BYTES = 6
VALUE = "v"
FIELD = re.compile(r"[0-9a-v]{8}")
MARK = re.compile(r"[A-Za-z0-9_\-]{8}")
OFFSET = re.compile(r"[0-9]{1,16}")
EPOCH = re.compile(rf"[A-Za-z0-9_.@,\-]{{1,{MAX_EPOCH_LENGTH}}}")


class Cursor(NamedTuple):
    """What a client brought back, by the hash of each channel's name."""

    positions: Mapping[str, Position]
    marks: Mapping[str, str]

    def position(self, channel: str) -> Position | None:
        """Where the client is in a `stream` channel; None: it has never been there."""
        return self.positions.get(key_of(channel))

    def mark(self, channel: str) -> str:
        """The mark of the value that the client has of a `latest` channel; '' for none."""
        return self.marks.get(key_of(channel), "")


NOWHERE = Cursor({}, {})
"""Of a client that comes for the first time."""


@lru_cache(4096)
def key_of(channel: str) -> str:
    """'chat:room' -> 8 characters that stand for it: FNV-1a of 64 bits, folded to 40, in base 32."""
    value = FNV_OFFSET
    for byte in channel.encode():
        value = (value ^ byte) * FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    folded = (value ^ value >> KEY_BITS) & (1 << KEY_BITS) - 1
    return b32hexencode(folded.to_bytes(KEY_BITS // 8, "big")).decode().lower()


def mark_of(body: bytes) -> str:
    """A value of a `latest` channel -> 8 characters that stand for it."""
    return urlsafe_b64encode(hashlib.blake2b(body, digest_size=MARK_BYTES).digest()).decode()


def encode(positions: Mapping[str, Position], marks: Mapping[str, str] | None = None) -> str:
    """By channel name; at most MAX_CHANNELS in all. '' where there is nothing to say."""
    text = _encode(positions, marks or {})
    if len(text) > CLIP_LENGTH:
        clipped = {channel: one._replace(epoch=one.epoch.rpartition(",")[2]) for channel, one in positions.items()}
        text = _encode(clipped, marks or {})
    return text


def _encode(positions: Mapping[str, Position], marks: Mapping[str, str]) -> str:
    fields = [f"{key_of(channel)}~{offset}~{epoch}" for channel, (epoch, offset) in positions.items()]
    fields += [f"{key_of(channel)}~{VALUE}~{mark}" for channel, mark in marks.items()]
    return "~".join([VERSION, *fields]) if fields else ""


def decode(text: str) -> Cursor:
    """Raises ValueError, whose text repeats nothing of what came, for what `encode` can't have made; '' is NOWHERE."""
    if not text:
        return NOWHERE
    if len(text) > MAX_LENGTH:
        raise ValueError(f"cursor: found {len(text)} characters; allowed: {MAX_LENGTH}")
    version, *fields = text.split("~")
    if version != VERSION or len(fields) % 3 or not 3 <= len(fields) <= 3 * MAX_CHANNELS:
        raise ValueError("cursor: not one of this hub's")
    positions: dict[str, Position] = {}
    marks: dict[str, str] = {}
    for key, kind, rest in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if not FIELD.fullmatch(key) or key in positions or key in marks:
            raise ValueError("cursor: not one of this hub's")
        if kind == VALUE and MARK.fullmatch(rest):
            marks[key] = rest
        elif OFFSET.fullmatch(kind) and int(kind) <= MAX_OFFSET and EPOCH.fullmatch(rest):
            positions[key] = Position(rest, int(kind))
        else:
            raise ValueError("cursor: not one of this hub's")
    return Cursor(positions, marks)
