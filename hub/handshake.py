"""Handshake: what an HTTP request must say to become a WebSocket, and what it is answered (RFC 6455 §4.2).

Does: judge headers, make the 101 with what is agreed on; read a plain upgrade request straight from bytes.
Does not: touch sockets or Tornado; both ways in (transports/websocket and acceptor) use the same judgement.
Called by: transports.websocket, acceptor.
Never break: `read_head` takes only what it fully understands. Whatever is odd, partial or for another address is None,
and goes to Tornado untouched; so the two ways can't differ in what they refuse.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple, Protocol

from . import deflate, frames, origin
from .deflate import Agreement

PATH = "/connection/websocket"
SUBPROTOCOL = "centrifuge-json"
"""The one subprotocol that we select where a client offers it; SDKs that speak JSON usually offer none."""
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}

START = b"GET " + PATH.encode()
TARGET = re.compile(rb"GET " + re.escape(PATH.encode()) + rb"(?:\?([\x21-\x7e]*))? HTTP/1\.1")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)[ \t]*")
"""RFC 9110 §5.5 without obs-text and without empty values, which are rare enough for Tornado."""
HOST = re.compile(r"(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
BODY = frozenset({"content-length", "transfer-encoding", "expect"})


class Headers(Protocol):
    """Header fields by name; ours are lower-case, Tornado's take any case: ask in lower case."""

    def get(self, name: str, default: str, /) -> str: ...


class Head(NamedTuple):
    """An upgrade request's head. size: its bytes, with the empty line. query: what stands behind '?', as it is."""

    headers: dict[str, str]
    size: int
    query: str = ""


class Refusal(NamedTuple):
    """Status, one line of text and headers of a refused handshake."""

    status: int
    text: str
    headers: dict[str, str]


def read_head(data: bytes) -> Head | None:
    """The head at the front of `data`, if it is a whole and plain GET of PATH; None for everything else."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or not data.startswith(START):
        return None
    first, *lines = data[:end].split(b"\r\n")
    target = TARGET.fullmatch(first)
    if target is None:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        field = FIELD.fullmatch(line)
        if field is None:
            return None
        name = field[1].decode().lower()
        if name in headers or name in BODY:
            return None
        headers[name] = field[2].decode()
    query = target[1].decode() if target[1] else ""
    return Head(headers, end + 4, query) if HOST.fullmatch(headers.get("host", "")) else None


def refuse(version: str, headers: Headers, allowed_origins: Collection[str]) -> Refusal | None:
    """Why a request must not be upgraded; None if it may. version: 'HTTP/1.1'."""
    if version != "HTTP/1.1" or headers.get("upgrade", "").lower() != "websocket":
        return Refusal(426, "this address speaks WebSocket only", UPGRADE)
    if "upgrade" not in [token.strip().lower() for token in headers.get("connection", "").split(",")]:
        return Refusal(400, "Connection: found no 'Upgrade'", {})
    if headers.get("sec-websocket-version", "") != "13":
        return Refusal(426, "Sec-WebSocket-Version: allowed is 13", {"Sec-WebSocket-Version": "13", **UPGRADE})
    if not frames.is_well_formed_key(headers.get("sec-websocket-key", "")):
        return Refusal(400, "Sec-WebSocket-Key: expected 16 bytes in base64", {})
    if not origin.allowed(headers.get("origin", "") or None, headers.get("host", ""), allowed_origins):
        return Refusal(403, "this Origin is not allowed; see allowed_origins in the settings", {})
    return None


def accept(headers: Headers, compress: bool = False) -> tuple[bytes, Agreement | None]:
    """The 101 for a request that `refuse` let pass, up to and with its empty line, and what it says of compression.

    compress: offers of compression are looked at; otherwise, and where none can be met, there is no agreement.
    """
    key = frames.accept_key(headers.get("sec-websocket-key", ""))
    chosen = ""
    if SUBPROTOCOL in [offer.strip() for offer in headers.get("sec-websocket-protocol", "").split(",")]:
        chosen = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
    agreement = deflate.negotiate(headers.get("sec-websocket-extensions", "")) if compress else None
    if agreement is not None:
        chosen += f"Sec-WebSocket-Extensions: {agreement.answer}\r\n"
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {key}\r\n{chosen}\r\n"
    )
    return answer.encode(), agreement
