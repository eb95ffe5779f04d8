r"""Frames: RFC 6455 bytes from clients become whole messages, and messages become the bytes that clients read.

Does: cut what a client sent into messages and control frames, hold it to every rule of RFC 6455 §5, §7.4 and §8.1
and to the limits on bytes and fragments, and name the first fault; say where few bytes stand for much work; encode
frames; compute the handshake's accept key.
Does not: read or write sockets, answer pings or closes, keep time, know JSON, or inflate (deflate does). Where
compression was not agreed on, RSV1 is a fault like the other two.
Called by: transports.websocket, with what one read brought and for frames to send; handshake, for keys.
Never break: what `feed` answers depends on the bytes alone, not on how they were cut into reads, and it never raises.
A new opcode or extension touches `_check_head`, the tables in tests/test_frames.py, and nothing else here.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Protocol

from tornado.util import _websocket_mask  # in C where Tornado was compiled with its speedups

from . import deflate, errors
from .deflate import Inflater
from .errors import Close, ProtocolError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

Event = tuple[int, bytes]
"""(TEXT, b'hello'): the opcode and unmasked payload of a whole message or control frame."""

MAX_CONTROL_BYTES = 125
"""The longest payload of a close, ping or pong, and of any frame without a second length field; RFC 6455 §5.2, §5.5."""
MAX_REASON_BYTES = MAX_CONTROL_BYTES - 2
MAX_SAID_BYTES = 1_048_576
"""Of one compressed frame of ours, where `payloads` says what it says."""
CLOSE_TOO_MANY_FRAGMENTS = Close(errors.CLOSE_POLICY.code, "too many fragments")

FIN = 0x80
RSV = 0x70
RSV1 = 0x40
"""On the first frame of a data message: its payload is compressed, RFC 7692 §6. For `encode_frame`: TEXT | RSV1."""
CONTROL = 0x08
MASKED = 0x80
OPCODES = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
WHOLE_TEXT = FIN | TEXT
WHOLE_PONG = FIN | PONG
EMPTY_PONG: Event = (PONG, b"")
FRAGMENT_S = 0.00001
"""Of the loop's time, what each frame of a message behind its first is charged: some ten times what it takes. Nobody
needs many; who cuts messages into single bytes is to be known after one read of them."""
INFLATED_BYTE_S = 4e-8
"""The same for each byte that a message inflates to; here, too, some ten times what it takes. A client that sends as
much as limits.bytes_per_s allows keeps within limits.loop_ms_per_s by that, both as they are by default."""
SHORT_HEAD = 6
"""Bytes before the payload of a masked frame of up to 125 bytes: two, and the masking key."""

HANDSHAKE_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
NEW_DECODER = codecs.getincrementaldecoder("utf-8")
FIRST_SURROGATE, LAST_SURROGATE = b"\xed\xa0", b"\xed\xbf"
"""How the UTF-8 of a surrogate begins; no text may have it."""


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept for a well-formed Sec-WebSocket-Key, RFC 6455 §4.2.2 item 5.4.

    'dGhlIHNhbXBsZSBub25jZQ==' -> 's3pPLMBiTxaQ9kYGzzhZRbK+xOo='
    """
    digest = hashlib.sha1((key + HANDSHAKE_GUID).encode("ascii"), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def is_well_formed_key(key: str) -> bool:
    """Whether `key` is the base64 of 16 bytes, as RFC 6455 §4.1 wants it; anything else is a 400 to the handshake."""
    # The unused low bits of the last letter are not judged: RFC 4648 §3.5 leaves that open; common decoders take them.
    return KEY.fullmatch(key) is not None


def encode_frame(opcode: int, payload: bytes) -> bytes:
    r"""One whole unmasked frame as a server sends it: (TEXT, b'hello') -> b'\x81\x05hello'.

    opcode: TEXT or BINARY, with RSV1 where the payload is compressed; CLOSE, PING or PONG, with a payload of at most
    `MAX_CONTROL_BYTES`.
    """
    length = len(payload)
    if length <= MAX_CONTROL_BYTES:
        return bytes((FIN | opcode, length)) + payload
    if length <= 0xFFFF:
        return struct.pack("!BBH", FIN | opcode, 126, length) + payload
    return struct.pack("!BBQ", FIN | opcode, 127, length) + payload


def payloads(data: bytes) -> Iterator[bytes]:
    r"""What whole frames of our own say, inflated: b'\x81\x012\x81\x013' -> b'2', b'3'. Control frames are left out.

    What is no frame of ours is said as it is.
    """
    at = 0
    while at + 2 <= len(data):
        length, start = data[at + 1], at + 2
        if length > MAX_CONTROL_BYTES:
            start += 2 if length == 126 else 8
            length = int.from_bytes(data[at + 2 : start], "big")
        if not data[at] & FIN or start + length > len(data):
            yield data[at:]
            return
        payload = data[start : start + length]
        if data[at] & RSV1:
            # As RFC 7692 §7.2.2 has it; nothing of ours refers to an earlier message.
            payload = zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\x00\x00\xff\xff", MAX_SAID_BYTES)
        if data[at] & 0x0F < CLOSE:
            yield payload
        at = start + length


def encode_close(code: int, reason: str) -> bytes:
    r"""A close frame: (1002, 'no') -> b'\x88\x04\x03\xeano'.

    A reason over `MAX_REASON_BYTES` in UTF-8 is cut, before the character that goes over.
    """
    # What is no text (a lone surrogate) becomes '?': a close frame must go out whatever the reason was made of.
    text = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    return encode_frame(CLOSE, struct.pack("!H", code) + text.encode("utf-8"))


def parse_close(payload: bytes) -> Close | None:
    r"""What a close frame says: b'\x03\xe8bye' -> Close(1000, 'bye'); None for an empty payload, which gives no code.

    Raises ProtocolError: 1002 for one byte or a code that must not be sent, 1007 for a reason that is not UTF-8.
    """
    if not payload:
        return None
    if len(payload) == 1:
        raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "close payload of 1 byte")
    code = int.from_bytes(payload[:2], "big")
    if not is_sendable_code(code):
        raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, f"close code {code} must not be sent")
    try:
        return Close(code, payload[2:].decode("utf-8"))
    except UnicodeDecodeError:
        raise ProtocolError(errors.CLOSE_INVALID_DATA, "close reason is not UTF-8") from None


def is_sendable_code(code: int) -> bool:
    """Whether a close frame may carry `code`.

    RFC 6455 §7.4 and IANA's registry: 1000-1003 and 1007-1014 are defined, 3000-4999 are free for libraries and
    applications; 1004-1006 and 1015 are reserved for what never goes on the wire, and everything else is unassigned.
    """
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class Charged(Protocol):
    """Who counts what clients cost."""

    def charge(self, work_s: float) -> None:
        """What is being read counts for so much more of the loop's time."""


class FrameReader:
    """One client's bytes in, its messages out.

    While nothing is partial it holds no buffer, so that an idle connection costs these few slots.
    """

    __slots__ = ("_charged", "_held", "_inflater", "_message", "_short", "failed", "max_fragments", "max_message_bytes")

    def __init__(
        self,
        max_message_bytes: int,
        max_fragments: int,
        inflater: Inflater | None = None,
        charged: Charged | None = None,
    ) -> None:
        """Read messages of up to `max_message_bytes` of payload, in up to `max_fragments` frames (both at least 1).

        inflater: where compression was agreed on; it holds inflated messages to the same limit. charged: told, within
        `feed`, of what is to cost its client more than the time that it takes.
        """
        self.max_message_bytes = max_message_bytes
        self.max_fragments = max_fragments
        self._inflater = inflater
        self.failed: ProtocolError | None = None
        """The first fault of this client, once there is one; its `close` is what to end the connection with."""
        self._charged = charged
        self._short = min(MAX_CONTROL_BYTES, max_message_bytes)
        """The longest payload that goes the short way; -1: nothing is read any more."""
        self._held: bytes | None = None  # an unfinished head or control frame as it came; at most 130 bytes
        self._message: _Message | None = None

    @property
    def inflates(self) -> bool:
        """Its client may compress what it sends."""
        return self._inflater is not None

    @property
    def pending(self) -> bool:
        """Whether a frame or fragmented message has begun and not ended; the caller puts a deadline on that."""
        return self._held is not None or self._message is not None

    def feed(self, data: bytes) -> list[Event]:
        """Take what the client sent next and return what is whole now, in order: [(TEXT, b'{}'), (PING, b'')].

        Text is valid UTF-8, and a CLOSE has a payload that `parse_close` accepts. Behind a CLOSE nothing is read any
        more (RFC 6455 §5.5.1). On a fault `failed` is set, what was whole before it is still returned, and later feeds
        return []. One call returns at most one event per `SHORT_HEAD` bytes.
        Time and copies are linear in the bytes, whatever the pieces. A message that did not come in one piece takes up
        to twice its size for the moment in which it is completed.
        """
        events: list[Event] = []
        if self._short < 0:
            return events
        if self._held is not None:
            data = self._held + data
            self._held = None
        try:
            self._read(data, events)
        except ProtocolError as fault:
            # Its traceback holds this reader and the unfinished message, in a cycle: a flood of faults would take
            # their memory until the next garbage collection.
            fault.__context__ = None
            self.failed = fault.with_traceback(None)
            self._end()
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        """Append to `events` what becomes whole by `data`; raises ProtocolError at the first fault."""
        size = len(data)
        pos = self._fill(self._message, data, 0, events) if self._message is not None else 0
        while pos < size:
            # The short way, for nearly all that clients send: a whole, short, unfragmented text, or an empty pong.
            # Whatever does not fit its conditions, faults among it, is for _read_frame to judge.
            start = pos + SHORT_HEAD
            if start <= size:
                length = data[pos + 1] - MASKED
                end = start + length
                if data[pos] == WHOLE_TEXT and 0 <= length <= self._short and end <= size and self._message is None:
                    payload = _websocket_mask(data[pos + 2 : start], data[start:end])
                    if not payload.isascii():
                        _check_text(payload)
                    events.append((TEXT, payload))
                    pos = end
                    continue
                if data[pos] == WHOLE_PONG and length == 0:
                    events.append(EMPTY_PONG)
                    pos = start
                    continue
            pos = self._read_frame(data, pos, events)

    def _read_frame(self, data: bytes, pos: int, events: list[Event]) -> int:
        """Read the frame that begins at `pos`, or what is there of it; return where to go on."""
        if len(data) - pos < 2:
            return self._hold(data, pos)
        self._check_head(data[pos], data[pos + 1])
        found = _read_length(data, pos)
        if found is None:
            return self._hold(data, pos)
        length, key_at = found
        opcode = data[pos] & 0x0F
        if not opcode & CONTROL:
            self._check_size(length, data[pos])
        start = key_at + 4
        if start > len(data):
            return self._hold(data, pos)
        if opcode & CONTROL:
            return self._read_control(data, pos, start, start + length, events)
        return self._read_data(data, pos, start, start + length, events)

    def _read_control(self, data: bytes, pos: int, start: int, end: int, events: list[Event]) -> int:
        """Read the control frame of which the payload goes from `start` to `end`."""
        if end > len(data):
            return self._hold(data, pos)
        payload = _websocket_mask(data[start - 4 : start], data[start:end])
        opcode = data[pos] & 0x0F
        if opcode == CLOSE:
            parse_close(payload)
            self._end()
            end = len(data)
        events.append((opcode, payload))
        return end

    def _read_data(self, data: bytes, pos: int, start: int, end: int, events: list[Event]) -> int:
        """Read the data frame of which the payload goes from `start` to `end`, as far as it is there."""
        opcode, final, key = data[pos] & 0x0F, data[pos] >= FIN, data[start - 4 : start]
        message = self._message
        if message is not None:
            self._charge(FRAGMENT_S)
        else:
            compressed = data[pos] & RSV1
            if final and end <= len(data) and not compressed:
                payload = _websocket_mask(key, data[start:end])
                if opcode == TEXT:
                    _check_text(payload)
                events.append((opcode, payload))
                return end
            message = self._message = _Message(opcode, self._inflater if compressed else None)
        message.begin_frame(final, key, end - start)
        return self._fill(message, data, start, events)

    def _fill(self, message: _Message, data: bytes, pos: int, events: list[Event]) -> int:
        """Give `message` what `data` has of its open frame from `pos` on; return where that ends."""
        part = data[pos : pos + message.left]
        before = len(message.body)
        try:
            message.take(part)
        finally:
            # Also of what goes over the limit: a bomb ends its connection, and its address goes on paying for it.
            if message.inflater is not None:
                self._charge((len(message.body) - before) * INFLATED_BYTE_S)
        if message.ended:
            events.append((message.opcode, bytes(message.body)))
            self._message = None
        return pos + len(part)

    def _check_head(self, first: int, second: int) -> None:
        """Judge the first two bytes of a frame, RFC 6455 §5; raises ProtocolError 1002, or 1008 for fragments."""
        opcode, length = first & 0x0F, second & 0x7F
        if first & RSV and not (first & RSV == RSV1 and opcode in (TEXT, BINARY) and self._inflater is not None):
            raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "reserved bit set")
        if opcode not in OPCODES:
            raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, f"reserved opcode {opcode:#x}")
        if not second & MASKED:
            # Masking keeps a hostile page from sending bytes that a proxy on the way takes for a request (§10.3).
            raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "frame is not masked")
        if opcode & CONTROL:
            if first < FIN:
                raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "fragmented control frame")
            if length > MAX_CONTROL_BYTES:
                raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, f"control frame over {MAX_CONTROL_BYTES} bytes")
        else:
            self._check_order(opcode)

    def _check_order(self, opcode: int) -> None:
        """Judge whether a data frame may come now, RFC 6455 §5.4, and whether its message has frames left."""
        message = self._message
        if message is None:
            if opcode == CONTINUATION:
                raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "continuation of nothing")
        elif opcode != CONTINUATION:
            raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "new message inside a fragmented one")
        elif message.fragments >= self.max_fragments:
            # Bytes alone do not bound the work: empty fragments are free of them.
            raise ProtocolError(CLOSE_TOO_MANY_FRAGMENTS, f"more than {self.max_fragments} fragments")

    def _check_size(self, length: int, first: int) -> None:
        """Refuse a data frame of `length` bytes that takes its message over the limit, before any of it is kept.

        first: its first byte. A compressed message may be longer on the wire, and is held to the limit when inflated.
        """
        message, most = self._message, self.max_message_bytes
        size = length if message is None else length + message.came
        if size > most:
            if first & RSV1 or (message is not None and message.inflater is not None):
                most = deflate.most_packed_bytes(most)
            if size > most:
                raise ProtocolError(errors.CLOSE_TOO_BIG, f"message of {size} bytes or more, allowed are {most}")

    def _charge(self, work_s: float) -> None:
        if self._charged is not None:
            self._charged.charge(work_s)

    def _hold(self, data: bytes, pos: int) -> int:
        """Keep the rest of `data` until more of it is here."""
        self._held = data[pos:]
        return len(data)

    def _end(self) -> None:
        """Read nothing any more, and let go of what was partial."""
        self._short = -1
        self._held = None
        self._message = None
        self._inflater = None


class _Message:
    """A message that has begun and not ended, and the frame of it that is open."""

    __slots__ = ("_decoder", "_final", "_key", "body", "came", "fragments", "inflater", "left", "opcode")

    def __init__(self, opcode: int, inflater: Inflater | None) -> None:
        self.opcode = opcode
        self.inflater = inflater
        """None: it is not compressed."""
        self.came = 0
        """Bytes of payload of its frames, the open one's all included."""
        # One growing block: a list of pieces would take 40 times the bytes from a client that drips.
        self.body = bytearray()
        self.fragments = 0
        self.left = 0
        """Payload bytes of the open frame that are still to come; 0 between frames."""
        self._decoder = NEW_DECODER() if opcode == TEXT else None
        self._final = False
        self._key = b""

    @property
    def ended(self) -> bool:
        return self._final and self.left == 0

    def begin_frame(self, final: bool, key: bytes, length: int) -> None:
        """Open the next frame: whether it is the last one, its masking key, and its payload's length."""
        self.fragments += 1
        self._final = final
        self._key = key
        self.left = length
        self.came += length

    def take(self, masked: bytes) -> None:
        """Add the next bytes of the open frame, at most `left`; raises ProtocolError, 1007 at the first bad one."""
        part = _websocket_mask(self._key, masked)
        self.left -= len(part)
        turn = len(part) % 4
        self._key = self._key[turn:] + self._key[:turn]  # the next part begins in the middle of the key
        begin, fault = len(self.body), None
        if self.inflater is None:
            self.body += part
        else:
            fault = self.inflater.inflate(part, self.body, self.ended)
            part = bytes(self.body[begin:])
        if self._decoder is not None:
            # Also in front of a fault: bad text goes first, as it would if the bytes came one by one.
            _check_more_text(self._decoder, part, self.ended and fault is None)
        if fault is not None:
            raise fault


def _read_length(data: bytes, pos: int) -> tuple[int, int] | None:
    """(payload length, offset of the masking key) of the frame at `pos`, RFC 6455 §5.2; None while bytes are missing.

    Raises ProtocolError 1002 for a length that is not in its shortest form or has its top bit set.
    """
    length = data[pos + 1] & 0x7F
    if length <= MAX_CONTROL_BYTES:
        return length, pos + 2
    width, least = (2, 126) if length == 126 else (8, 0x10000)
    key_at = pos + 2 + width
    if key_at > len(data):
        return None
    length = int.from_bytes(data[pos + 2 : key_at], "big")
    if length < least:
        raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, f"length {length} in {width} bytes")
    if length >> 63:
        raise ProtocolError(errors.CLOSE_PROTOCOL_ERROR, "length with its top bit set")
    return length, key_at


def _check_text(payload: bytes) -> None:
    """Return if `payload` is UTF-8 (RFC 6455 §8.1); raises ProtocolError 1007 otherwise."""
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _check_more_text(decoder: codecs.IncrementalDecoder, part: bytes, last: bool) -> None:
    """Return if `part` goes on in UTF-8 where `decoder` is; raises ProtocolError 1007 at the first bad byte."""
    try:
        decoder.decode(part, last)
    except UnicodeDecodeError:
        raise _not_utf8() from None
    # CPython's decoder waits for a surrogate's third byte, for the sake of "surrogatepass"; the second is bad already.
    if FIRST_SURROGATE <= decoder.getstate()[0] <= LAST_SURROGATE:
        raise _not_utf8()


def _not_utf8() -> ProtocolError:
    return ProtocolError(errors.CLOSE_INVALID_DATA, "text is not UTF-8")
