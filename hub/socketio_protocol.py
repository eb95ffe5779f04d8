"""Socket.IO 5: packets, bytes ⇄ objects, no I/O.

Does: take an Engine.IO message apart into a packet, wait for its attachments and put them in place; write packets.
Does not: know sessions or namespaces' rules, or which events there are (transports.socketio).
Called by: transports.socketio.
Source: https://socket.io/docs/v4/socket-io-protocol/ (revision 5). A packet is a digit, the number of attachments and a
`-` if it is binary, the namespace and a `,` if it is not `/`, the ack's id if there is one, and JSON:

    0/admin,{"token":"…"}                                       connect
    1/admin,                                                    disconnect
    2["publish",{"channel":"a","data":1}]                       event
    212["publish",{"channel":"a","data":1}]                     event that wants an ack, of id 12
    312[{"ok":true}]                                            its ack
    4/admin,{"message":"Invalid namespace"}                     the answer to a connect that is refused
    51-["upload",{"_placeholder":true,"num":0}]                 event with one attachment, which follows as bytes

Never break: attachments are counted and bounded before one of them is kept; a packet that waits for them is kept as its
text, since parsed JSON is up to thirty times as large.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from .errors import CLOSE_PROTOCOL_ERROR, ProtocolError
from .nesting import TooManyValues, openers, parse, too_deep

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)
MAX_ATTACHMENTS = 10
"""Of one packet, as in the stock server since CVE-2026-33151."""
MAX_NAMESPACE_LENGTH = 64
MAIN = "/"
HEAD = re.compile(rb"([0-6])(?:(\d{1,4})-)?(?:(/[^,\x00-\x20]*),)?(\d{1,15})?", re.DOTALL)
"""An ack's id of 15 digits is exact in JavaScript."""
BARE = re.compile(rb"([01])(/[^,\x00-\x20]*)")
"""A namespace with nothing behind it may leave its comma out: `0/admin`."""
ENVELOPE = 2
"""Levels of nesting around what the data of an event says: ["publish",{"data":…}]."""
BINARY = frozenset({BINARY_EVENT, BINARY_ACK})
RESERVED = frozenset({"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"})
"""Event names that nobody may send."""


class Packet(NamedTuple):
    """One packet, whole. id: of its ack, None where none is asked for; data: JSON, with bytes where attachments are.

    too_deep: its data is nested deeper than allowed.
    """

    kind: int
    namespace: str
    id: int | None
    data: Any
    too_deep: bool = False


class Decoder:
    """One client's packets. Holds at most one unfinished packet: its attachments come right behind it."""

    __slots__ = ("_attachments", "_depth", "_max_bytes", "_message", "_size", "_values", "_wanted")

    def __init__(self, max_bytes: int, depth: int = 32, values: int = 10_000) -> None:
        """max_bytes: of all attachments of one packet together. depth: levels of what an event is given.

        values: in one packet's JSON.
        """
        self._max_bytes = max_bytes
        self._depth = depth + ENVELOPE
        self._values = values
        self.forget()

    @property
    def pending(self) -> bool:
        """Attachments are missing; the caller puts a deadline on that."""
        return self._message is not None

    def forget(self) -> None:
        """Let go of an unfinished packet."""
        self._message: bytes | None = None
        self._attachments: list[bytes] = []
        self._wanted = 0
        self._size = 0

    def feed_text(self, message: bytes) -> Packet | None:
        """A text message: its packet, or None while attachments are missing.

        Raises ProtocolError for what is no packet, and for text where an attachment is due.
        """
        if self._message is not None:
            raise _bad("found text where an attachment is due")
        head, count, packet = _parse(message, self._depth, self._values)
        if head not in BINARY:
            if count is not None:
                raise _bad("attachments of a packet that has none")
            return packet
        if count is None or count > MAX_ATTACHMENTS or not count:
            raise _bad(f"found {count} attachments; allowed: 1 to {MAX_ATTACHMENTS}")
        self._message, self._wanted = message, count
        return None

    def feed_bytes(self, data: bytes) -> Packet | None:
        """An attachment: the packet that it completes, or None. Raises ProtocolError where none is due, or too much."""
        message = self._message
        if message is None:
            raise _bad("an attachment of nothing")
        self._size += len(data)
        if self._size > self._max_bytes:
            raise _bad(f"attachments of over {self._max_bytes} bytes in one packet")
        self._attachments.append(data)
        if len(self._attachments) < self._wanted:
            return None
        _, _, packet = _parse(message, self._depth, self._values)
        whole = packet._replace(data=_filled(packet.data, self._attachments))
        self.forget()
        return whole


def _parse(message: bytes, depth: int, values: int) -> tuple[int, int | None, Packet]:
    """The packet, with its kind and number of attachments as they were written."""
    bare = BARE.fullmatch(message)
    if bare is not None:
        return int(bare[1]), None, _checked(int(bare[1]), bare[2], None, None)
    head = HEAD.match(message)
    if head is None:
        raise _bad("a Socket.IO packet begins with a digit from 0 to 6")
    rest = message[head.end() :]
    kind = int(head[1])
    data = None
    if rest:
        try:
            data = parse(rest, values)
        except TooManyValues as error:
            raise _bad(str(error)) from None
        except orjson.JSONDecodeError:
            raise _bad("the data of a packet is not JSON") from None
    count = None if head[2] is None else int(head[2])
    packet = _checked(kind, head[3] or b"/", head[4], data if rest else None)
    if openers(rest) > depth and too_deep(data, depth):
        packet = packet._replace(too_deep=True)
    return kind, count, packet


def _checked(kind: int, namespace: bytes, ack: bytes | None, data: Any) -> Packet:
    name = namespace.decode("utf-8", "replace").partition("?")[0]  # a query behind the name is of older clients
    if len(name) > MAX_NAMESPACE_LENGTH:
        raise _bad(f"a namespace of over {MAX_NAMESPACE_LENGTH} characters")
    number = None if ack is None else int(ack)
    kind = {BINARY_EVENT: EVENT, BINARY_ACK: ACK}.get(kind, kind)
    if kind == EVENT:
        good = isinstance(data, list) and bool(data) and isinstance(data[0], str) and data[0] not in RESERVED
    elif kind == ACK:
        good = isinstance(data, list) and number is not None
    elif kind == CONNECT:
        good = data is None or isinstance(data, dict)
    else:
        # Only servers refuse a connect.
        good = kind == DISCONNECT and data is None
    if not good:
        raise _bad("the data does not fit the packet's type")
    return Packet(kind, name, number, data)


def _filled(data: Any, attachments: list[bytes]) -> Any:
    """The data with each placeholder replaced. No recursion: the nesting is the client's."""
    root = [data]
    waiting: list[Any] = [root]
    while waiting:
        inside = waiting.pop()
        for key, value in list(enumerate(inside) if isinstance(inside, list) else inside.items()):
            if isinstance(value, dict) and value.get("_placeholder") is True:
                number = value.get("num")
                if type(number) is not int or not 0 <= number < len(attachments):
                    raise _bad("a placeholder without its attachment")
                inside[key] = attachments[number]
            elif isinstance(value, dict | list):
                waiting.append(value)
    return root[0]


def encode(kind: int, namespace: str = MAIN, number: int | None = None, data: bytes = b"") -> bytes:
    """One packet without attachments: (EVENT, '/', 12, b'["a"]') -> b'212["a"]'. data: JSON, ready made."""
    name = b"" if namespace == MAIN else namespace.encode() + b","
    return b"%d%b%b%b" % (kind, name, b"" if number is None else b"%d" % number, data)


def encode_values(kind: int, namespace: str, number: int | None, values: Iterable[Any]) -> list[bytes]:
    """EVENT or ACK of values that may hold bytes: the packet, and behind it its attachments.

    (EVENT, '/', None, ['a', b'x']) -> [b'51-["a",{"_placeholder":true,"num":0}]', b'x']. Raises TypeError for what is
    neither JSON nor bytes, and ValueError for more than MAX_ATTACHMENTS.
    """
    attachments: list[bytes] = []

    def attach(value: object) -> dict[str, Any]:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError
        attachments.append(bytes(value))
        return {"_placeholder": True, "num": len(attachments) - 1}

    data = orjson.dumps(list(values), default=attach)
    if not attachments:
        return [encode(kind, namespace, number, data)]
    if len(attachments) > MAX_ATTACHMENTS:
        raise ValueError(f"found {len(attachments)} attachments; allowed: {MAX_ATTACHMENTS}")
    binary = {EVENT: BINARY_EVENT, ACK: BINARY_ACK}[kind]
    packet = b"%d%d-%b" % (binary, len(attachments), encode(kind, namespace, number, data)[1:])
    return [packet, *attachments]


def _bad(text: str) -> ProtocolError:
    return ProtocolError(CLOSE_PROTOCOL_ERROR, text)
