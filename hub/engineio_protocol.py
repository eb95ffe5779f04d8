"""Engine.IO 4: packets and payloads, bytes ⇄ objects, no I/O.

Does: take a WebSocket message or a polling body apart into packets and write them; the handshake; the protocol's own
errors.
Does not: know sessions, sockets, timers or what a message says (socketio_protocol).
Called by: transports.engineio, transports.polling.
Source: https://socket.io/docs/v4/engine-io-protocol/ (revision 4). A packet is a digit and its data; bytes have no
digit on a WebSocket, where they are a binary frame, and are base64 behind a `b` in a polling body:

    0{"sid":…}   open       handshake, from the server
    1            close
    2, 2probe    ping       from the server; `2probe` from a client that tries a WebSocket
    3, 3probe    pong
    4hello       message
    5            upgrade    from a client: its WebSocket takes over
    6            noop       ends a poll that has nothing to say

Several packets in one polling body stand between bytes of 0x1e, which JSON never holds bare.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from .errors import CLOSE_PROTOCOL_ERROR, ProtocolError

VERSION = "4"
OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = range(7)
SEPARATOR = b"\x1e"
PROBE = b"probe"
ENCODED_PING = b"2"
ENCODED_PROBE_ANSWER = b"3probe"
ENCODED_CLOSE = b"1"
ENCODED_NOOP = b"6"
MESSAGE_MARKS = (b"4", b"b")
MAX_PACKETS = 16
"""In one polling body from a client, as other servers have it: work is bounded by more than bytes. Stock clients put
all messages that wait into one body, so of one that has been let in more are taken, but of messages alone."""


class Packet(NamedTuple):
    """One packet. binary: the data is bytes of the application's, and not UTF-8 text."""

    kind: int
    data: bytes
    binary: bool = False


class Fault(NamedTuple):
    """Why a request is refused: HTTP status, and the code and text of Engine.IO's JSON body."""

    status: int
    code: int
    text: str

    def body(self) -> bytes:
        """b'{"code":1,"message":"Session ID unknown"}'"""
        return orjson.dumps({"code": self.code, "message": self.text})


UNKNOWN_TRANSPORT = Fault(400, 0, "Transport unknown")
UNKNOWN_SID = Fault(400, 1, "Session ID unknown")
BAD_METHOD = Fault(400, 2, "Bad handshake method")
BAD_REQUEST = Fault(400, 3, "Bad request")
FORBIDDEN = Fault(403, 4, "Forbidden")
UNAUTHORIZED = Fault(401, 4, "Unauthorized")
UNSUPPORTED_VERSION = Fault(400, 5, "Unsupported protocol version")
TOO_BIG = Fault(413, 3, "Payload too large")
TOO_MANY = Fault(429, 4, "Too many requests from this address")
BUSY = Fault(503, 4, "Too many handshakes at a time, or shutting down")
SLOW = Fault(504, 3, "The session's worker did not answer in time")
FAILED = Fault(500, 3, "The session's worker failed")


def decode_text(message: bytes) -> Packet:
    """b'4hi' -> Packet(MESSAGE, b'hi'). Raises ProtocolError for what is no packet; the text is UTF-8 already."""
    kind = message[0] - 48 if message else -1
    if not OPEN <= kind <= NOOP:
        raise ProtocolError(CLOSE_PROTOCOL_ERROR, "an Engine.IO packet begins with a digit from 0 to 6")
    return Packet(kind, message[1:])


def decode_payload(body: bytes, messages: int = MAX_PACKETS) -> list[Packet]:
    r"""b'4a\x1ebAQI=' -> [Packet(MESSAGE, b'a'), Packet(MESSAGE, b'\x01\x02', True)].

    messages: so many packets may be in it, at most MAX_PACKETS of them no messages.
    Raises ProtocolError for anything that is no packet, text that is not UTF-8, or more packets than that.
    """
    parts = body.split(SEPARATOR, messages)
    others = sum(not part.startswith(MESSAGE_MARKS) for part in parts) if len(parts) > MAX_PACKETS else 0
    if len(parts) > messages or others > MAX_PACKETS:
        raise ProtocolError(
            CLOSE_PROTOCOL_ERROR, f"over {messages} packets in one body, or {MAX_PACKETS} of no message"
        )
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(CLOSE_PROTOCOL_ERROR, "the body is not UTF-8") from None
    return [_from_base64(part) if part.startswith(b"b") else decode_text(part) for part in parts]


def _from_base64(part: bytes) -> Packet:
    try:
        return Packet(MESSAGE, base64.b64decode(part[1:], validate=True), True)
    except binascii.Error:
        raise ProtocolError(CLOSE_PROTOCOL_ERROR, "bytes behind 'b' are not base64") from None


def encode_payload(packets: Iterable[bytes]) -> bytes:
    r"""[b'2', b'4a'] -> b'2\x1e4a'; `encode_bytes` has made texts of binary ones."""
    return SEPARATOR.join(packets)


def encode_bytes(data: bytes) -> bytes:
    r"""Bytes for a polling body: b'\x01\x02' -> b'bAQI='."""
    return b"b" + base64.b64encode(data)


def encode_open(sid: str, upgrades: list[str], ping_interval_ms: int, ping_timeout_ms: int, max_payload: int) -> bytes:
    """b'0{"sid":"…","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'"""
    handshake: dict[str, Any] = {
        "sid": sid,
        "upgrades": upgrades,
        "pingInterval": ping_interval_ms,
        "pingTimeout": ping_timeout_ms,
        "maxPayload": max_payload,
    }
    return b"0" + orjson.dumps(handshake)


def check_query(version: str, transport: str) -> Fault | None:
    """What is wrong with the query of any request; None: nothing. version: `EIO`, transport: `transport`."""
    if transport not in ("polling", "websocket"):
        return UNKNOWN_TRANSPORT
    return None if version == VERSION else UNSUPPORTED_VERSION
