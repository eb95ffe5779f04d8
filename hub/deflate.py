r"""Deflate: permessage-deflate (RFC 7692): what is agreed in the handshake, and message payloads packed and unpacked.

Does: read offers and answer the first that can be met; compress one payload; inflate a client's messages within bounds.
Does not: know frames (frames sets and judges RSV1), connections or headers other than the one it is handed.
Called by: handshake (negotiate), transports.websocket (compress), frames through an Inflater.
Never break: a compressed payload refers to nothing before it, so that the same bytes are right for every client,
whatever it was sent earlier; and inflating stops at the limit of a message, not at the end of what a bomb holds.

An answer has the parameters that were offered and no others, value-less ones included. RFC 7692 §7.1.1 would let us add
both `…_no_context_takeover` unasked; we need neither:
- we never take over context. A client that did not ask for that keeps a window which is never referred to.
- a client that did not offer `client_no_context_takeover` may refer to its earlier messages, so the end of them is
  kept: at most 32 KiB, as plain bytes and not as zlib's 40 KB of state; nothing, while nothing compressed has come.
A new parameter needs a row in VALUES.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from . import errors
from .errors import Close, ProtocolError

NAME = "permessage-deflate"
SERVER_FRESH, CLIENT_FRESH = "server_no_context_takeover", "client_no_context_takeover"
SERVER_BITS, CLIENT_BITS = "server_max_window_bits", "client_max_window_bits"
LARGEST_WINDOW = 15
"""Windows are given as the power of two of their bytes: 15 is 32 KiB, and what holds where nothing is agreed."""
VALUES: dict[str, frozenset[str | None]] = {
    SERVER_FRESH: frozenset({None}),
    CLIENT_FRESH: frozenset({None}),
    # zlib makes no raw deflate with a window of 8, so such an offer is one that can't be met.
    SERVER_BITS: frozenset(map(str, range(9, LARGEST_WINDOW + 1))),
    CLIENT_BITS: frozenset({None, *map(str, range(8, LARGEST_WINDOW + 1))}),
}
"""What an offer may say, RFC 7692 §7.1; None: the parameter stands without a value."""

WINDOWS = range(9, 13)
"""With which we compress; a client that allows more is served with the largest of these. Window 12 and memory level 5
take 5 µs for 1 KB of ticks; 15 and 8, zlib's defaults, take 47 (four blocks of 64 KB, one of them cleared, for each
message) and the result is as small; for 64 KB it is level."""
MEMORY_LEVEL = 5

TAIL = b"\0\0\xff\xff"
"""Ends a payload that was flushed, and is left out on the wire; RFC 7692 §7.2.1."""
LAST_BLOCK = b"\1\0\0\xff\xff"
"""An empty final block. Behind TAIL it is understood only if the payload did not break off within a block."""
MAX_FINAL_BLOCKS = 64
"""Final blocks in one message. Each makes us begin a new stream with a copy of the window, which costs as much as 10 KB
of payload; a client that ends its stream instead of flushing it needs one for each fragment."""
CLOSE_TOO_MANY_FINAL_BLOCKS = Close(errors.CLOSE_POLICY.code, "too many final blocks")

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
EXTENSION = re.compile(TOKEN)
PARAMETER = re.compile(rf'[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*(?:({TOKEN})|"((?:[^"\\]|\\.)*)"))?')
SEPARATOR = re.compile(r"[ \t]*(?:,[ \t,]*|\Z)")
"""RFC 6455 §9.1, and the empty list elements that RFC 9110 §5.6.1 has recipients ignore."""

Parameters = list[tuple[str, str | None]]
"""[('server_no_context_takeover', None), ('server_max_window_bits', '10')], in the order of the header."""


class Agreement(NamedTuple):
    """What one connection has agreed on."""

    answer: str
    """The value of our Sec-WebSocket-Extensions: 'permessage-deflate; server_max_window_bits=10'."""
    server_bits: int
    """The largest window that we may compress with, 9 to 15."""
    client_bits: int
    """The largest window that the client compresses with, 8 to 15."""
    client_fresh: bool
    """Nothing in a client's message refers to an earlier one."""


def negotiate(header: str) -> Agreement | None:
    """Accept the first offer of a Sec-WebSocket-Extensions header (several are joined by commas) that can be met.

    None: there is no such offer. Other extensions are passed over, and a header that breaks the grammar offers nothing:
    RFC 6455 §9.1 lets the handshake fail there, but a connection without compression harms nobody.
    """
    for name, parameters in parse_offers(header):
        if name == NAME and _can_be_met(parameters):
            return _agree(parameters)
    return None


def parse_offers(header: str) -> list[tuple[str, Parameters]]:
    """All extensions of a header, in order: 'a; b=1, c' -> [('a', [('b', '1')]), ('c', [])]; [] if it is malformed."""
    offers: list[tuple[str, Parameters]] = []
    header = header.strip(" \t,")
    at = 0
    while at < len(header):
        extension = EXTENSION.match(header, at)
        if extension is None:
            return []
        parameters, at = _parse_parameters(header, extension.end())
        separator = SEPARATOR.match(header, at)
        if separator is None:
            return []
        offers.append((extension[0], parameters))
        at = separator.end()
    return offers


def _parse_parameters(header: str, at: int) -> tuple[Parameters, int]:
    """The parameters that begin at `at`, and where they end."""
    parameters: Parameters = []
    while (found := PARAMETER.match(header, at)) is not None:
        name, token, quoted = found.groups()
        parameters.append((name, token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        at = found.end()
    return parameters, at


def _can_be_met(parameters: Parameters) -> bool:
    """Whether each parameter is known, stands once, and has a value that it may have; '010' is none for 10."""
    return len(dict(parameters)) == len(parameters) and all(
        name in VALUES and value in VALUES[name] for name, value in parameters
    )


def _agree(parameters: Parameters) -> Agreement:
    offered = dict(parameters)
    if CLIENT_BITS in offered:
        # Without a value it says that the client would heed one, and our answer must have one (§7.1.2.2).
        offered[CLIENT_BITS] = offered[CLIENT_BITS] or str(LARGEST_WINDOW)
    return Agreement(
        "; ".join([NAME, *(name if value is None else f"{name}={value}" for name, value in offered.items())]),
        int(offered.get(SERVER_BITS) or LARGEST_WINDOW),
        int(offered.get(CLIENT_BITS) or LARGEST_WINDOW),
        CLIENT_FRESH in offered,
    )


def compress(payload: bytes, level: int, window_bits: int) -> bytes:
    r"""The payload of a compressed message that refers to none before it, RFC 7692 §7.2.1.

    level: 1 (fast) to 9; window_bits: one of WINDOWS. (b'Hello', 1, 12) -> b'\xf2H\xcd\xc9\xc9\x07\x00'
    """
    packer = zlib.compressobj(level, zlib.DEFLATED, -window_bits, MEMORY_LEVEL)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]


def most_packed_bytes(max_bytes: int) -> int:
    """How long `max_bytes` may become by compression: what does not shrink is stored, at worst with an eighth more.

    That is zlib's own bound for its smallest buffers (deflateBound); longer payloads are padding, and refused unread.
    """
    return max_bytes + max_bytes // 8 + 64


class Inflater:
    """Unpacks the messages of one client, one after the other. Between them it holds bytes and no stream."""

    __slots__ = ("_bits", "_finals", "_fresh", "_max_bytes", "_stream", "_window")

    def __init__(self, agreement: Agreement, max_bytes: int) -> None:
        """Inflate messages to at most `max_bytes`."""
        self._bits = agreement.client_bits
        self._fresh = agreement.client_fresh
        self._max_bytes = max_bytes
        self._window = b""
        """The end of the messages so far, to which the next one may refer; b'' where nothing may."""
        self._stream: zlib._Decompress | None = None
        self._finals = 0

    def inflate(self, packed: bytes, body: bytearray, last: bool) -> ProtocolError | None:
        """Append to `body`, a message so far, what the next bytes of its payload unpack to; return the first fault.

        last: the payload ends here. Faults: 1009 as soon as the message is over the limit, with no more than one byte
        too many unpacked; 1007 for what is not deflate or breaks off; 1008 for too many final blocks.
        """
        try:
            self._unpack(packed, body)
            if last:
                self._end(body)
        except zlib.error as error:
            return ProtocolError(errors.CLOSE_INVALID_DATA, f"compressed data: {error}")
        except ProtocolError as fault:
            return fault
        return None

    def _unpack(self, packed: bytes, body: bytearray) -> None:
        while packed:
            if self._stream is None:
                self._stream = zlib.decompressobj(-self._bits, self._window_behind(body))
            stream = self._stream
            body += stream.decompress(packed, self._max_bytes + 1 - len(body))
            if len(body) > self._max_bytes:
                raise ProtocolError(
                    errors.CLOSE_TOO_BIG, f"message inflates to more than {self._max_bytes} bytes, which are allowed"
                )
            if not stream.eof:
                return
            # A final block ends the stream, not the message: RFC 7692 §7.2.3.4.
            self._stream, packed = None, stream.unused_data
            self._finals += 1
            if self._finals > MAX_FINAL_BLOCKS:
                raise ProtocolError(CLOSE_TOO_MANY_FINAL_BLOCKS, f"more than {MAX_FINAL_BLOCKS} final blocks")

    def _end(self, body: bytearray) -> None:
        """The payload is complete: see that its last block is too, and keep what the next message may refer to."""
        # No stream: nothing came, or a final block came last. That lacks the octet which §7.2.3.4 asks for, but not
        # a bit of the message.
        if self._stream is not None:
            self._unpack(TAIL + LAST_BLOCK, body)
            if self._stream is not None:
                raise ProtocolError(errors.CLOSE_INVALID_DATA, "compressed data breaks off")
        self._finals = 0
        if not self._fresh:
            self._window = self._window_behind(body)

    def _window_behind(self, body: bytearray) -> bytes:
        """To what the bytes behind `body` may refer."""
        size = 1 << self._bits
        return (self._window + body[-size:])[-size:]
