"""Tap: what is told of one connection's frames while somebody traces it.

Does: name what each message is, say whose it is and how long, show its text without secrets where that was asked for.
Does not: decide who is traced, for how long or how fast (trace), or know sockets and wire forms: a connection hands in
the words of its frames.
Called by: connection and the wires, behind one `is not None`; trace makes taps.
Never break: nothing here raises, whatever stands in a frame; no token leaves, and no payload that nobody asked for.

    {"t":1764000000123,"dir":"in","client":"5d1e…","user":"ann","wire":"websocket","what":"subscribe","channel":"chat:a",
     "bytes":45}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import orjson

from .errors import Close

MAX_SHOWN = 2000
"""Characters of a payload that are shown."""
MAX_LINES = 64
"""Messages of one frame that are told of by themselves."""
MAX_NAME = 64
SECRETS = (
    r"key|session|node|sid|pid|auth|pass|pwd|pin|otp|jwt|bearer"
    r"|[^\"\\]{0,40}(?:token|ticket|passw|passphrase|passcode|secret|credential|authorization|api[_-]?key|private[_-]?key"
    r"|cookie|session[_-]?id)[^\"\\]{0,40}"
)
"""Names of what is not for other eyes, and what such names hold. Who knows the id of an emulated or a Socket.IO session
can speak in its name."""
NUMBER_OR_LIST = r"-?\d[\d.eE+-]*|\[[^\]]*(?:\]|\Z)"
NAMED = re.compile(rf'(?i)("(?:{SECRETS})"\s*:\s*)(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|{NUMBER_OR_LIST})')
NESTED = re.compile(
    rf'(?i)(?<!\\)((\\+)"(?:{SECRETS})\2"\s*:\s*)(?:\2".*?(?:(?<!\\)\2"|\Z)|{NUMBER_OR_LIST})'
)  # fmt: skip
"""The same in JSON that is a text of JSON, where all quotes of one depth have the same number of backslashes. Tried at
the first one of each run: at all of them a text of nothing else would hold the loop for 18 ms."""
JWT = re.compile(r"eyJ[A-Za-z0-9_\-]*(?:\.[A-Za-z0-9_\-]*){0,4}")
"""A token by its looks: all begin with '{"' in base64url."""
PACKET = re.compile(rb'(\d{1,2})(?:/[^,\[{"]{0,255},)?\d*-?(?:\["([A-Za-z0-9_.:\-]{1,64})")?')
"""Of Engine.IO and Socket.IO: its kinds, and an event's name."""
DATA = re.compile(rb"^data: (.*)$", re.MULTILINE)
EVENT = re.compile(rb"^event: ([A-Za-z0-9_.\-]{1,64})$", re.MULTILINE)
REDACTED = '"[redacted]"'

Row = dict[str, Any]


class Listener(Protocol):
    """One trace, as a tap sees it."""

    payloads: bool
    """It shows what the messages say."""

    def has_room(self) -> bool:
        """For one more row now; where not, that it was left out is counted by this."""

    def take(self, row: Row) -> None:
        """One more."""


class Tap:
    """Of one connection."""

    __slots__ = ("_client", "_listeners", "_on_gone", "_user", "_wall_clock", "_wire")

    def __init__(
        self, client: str, user: str, wire: str, wall_clock: Callable[[], float], on_gone: Callable[[], None]
    ) -> None:
        """client, user, wire: whose it is. wall_clock: seconds since 1970. on_gone: hears of the connection's end."""
        self._client = client
        self._user = user
        self._wire = wire
        self._wall_clock = wall_clock
        self._on_gone = on_gone
        self._listeners: dict[str, Listener] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    def __contains__(self, trace: str) -> bool:
        return trace in self._listeners

    def add(self, trace: str, listener: Listener) -> None:
        """One more trace, by its id."""
        self._listeners[trace] = listener

    def remove(self, trace: str) -> None:
        self._listeners.pop(trace, None)

    def heard(self, message: bytes) -> None:
        """A message came from the client."""
        self._tell("in", message)

    def sent(self, words: Iterable[bytes], channel: str = "") -> None:
        """Frames are queued for the client. channel: of a publication, where that is known."""
        for word in words:
            self._tell("out", word, channel)

    def closing(self, close: Close) -> None:
        """Its end begins, whoever wants it."""
        self._event(f"close {close.code} {close.reason}".rstrip())

    def gone(self) -> None:
        """The connection is over."""
        self._event("gone")
        self._on_gone()

    def _tell(self, direction: str, message: bytes, channel: str = "") -> None:
        # Several commands, or replies, are one a line; all else is one message.
        lines = message.split(b"\n", MAX_LINES) if message[:1] == b"{" else [message]
        for line in lines:
            # Asked first: of what is left out nothing is taken apart.
            listeners = [listener for listener in self._listeners.values() if listener.has_room()] if line else []
            if listeners:
                what, found = describe(line)
                row = {"dir": direction, "what": what, "channel": channel or found, "bytes": len(line)}
                self._emit(row, listeners, line)

    def _event(self, what: str) -> None:
        row = {"dir": "", "what": what[:MAX_NAME], "channel": "", "bytes": 0}
        self._emit(row, [listener for listener in self._listeners.values() if listener.has_room()])

    def _emit(self, row: Row, listeners: list[Listener], message: bytes = b"") -> None:
        now_ms = int(self._wall_clock() * 1000)
        row = {"t": now_ms, "client": self._client, "user": self._user, "wire": self._wire, **row}
        for listener in listeners:
            listener.take(row | {"payload": shown(message)} if listener.payloads and message else row)


def describe(message: bytes) -> tuple[str, str]:
    """What a message is, and its channel: ('push pub', 'chat:a'), ('reply subscribe', ''), ('subscribe', 'chat:a')."""
    if message[:1] == b"{":
        return _describe_native(message)
    packet = PACKET.match(message)
    if packet is not None and packet[0]:
        return f"packet {packet[1].decode()} {(packet[2] or b'').decode()}".rstrip(), ""
    data, event = DATA.search(message), EVENT.search(message)
    if data is None:
        return "message", ""
    what, channel = _describe_native(data[1])
    return f"event {event[1].decode()}" if event is not None else what, channel


def _describe_native(message: bytes) -> tuple[str, str]:
    try:
        found = orjson.loads(message)
    except orjson.JSONDecodeError:
        return "message", ""
    if not isinstance(found, dict):
        return "message", ""
    if not found:
        return "ping or pong", ""
    # Events of an event stream are what a push holds.
    if isinstance(push := found.get("push", found if "channel" in found else None), dict):
        return f"push {_first(push.keys() - {'channel'})}", _channel(push)
    if isinstance(error := found.get("error"), dict):
        return f"error {error.get('code', '')}"[:MAX_NAME], ""
    method = _first(found.keys() - {"id"})
    params = found.get(method)
    if isinstance(params, dict) and method == "rpc" and isinstance(params.get("method"), str):
        method = f"rpc {params['method']}"[:MAX_NAME]
    return method or "message", _channel(params) if isinstance(params, dict) else ""


def _first(names: Collection[str]) -> str:
    return min(names, default="")[:MAX_NAME]


def _channel(found: dict[str, Any]) -> str:
    channel = found.get("channel", "")
    return channel[:255] if isinstance(channel, str) else ""


def shown(message: bytes) -> str:
    """The text of a message without what is secret in it, at most MAX_SHOWN characters."""
    # Cut before, so that a large message costs no more, but where that can't part a secret from its name.
    text = message[: 4 * MAX_SHOWN].decode("utf-8", "replace")
    text = NESTED.sub(r'\1\2"[redacted]\2"', NAMED.sub(rf"\1{REDACTED}", text))
    text = JWT.sub("[redacted]", text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
