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
TARGET = re.compile(rf"GET {re.escape(PATH)}(?:\?([\x21-\x7e]*))? HTTP/1\.1")
LINES = re.compile(r"[\t\x20-\x7e]+(?:\r\n[\t\x20-\x7e]+)*")
"""A head of ASCII, none of whose line breaks is half of one."""
NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""Of a field, RFC 9110 §5.1."""
SPELLINGS = {
    spelling: name
    for name in (
        *("host", "connection", "upgrade", "origin", "user-agent", "pragma", "cache-control", "cookie"),
        *("accept", "accept-encoding", "accept-language", "authorization"),
        *("sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site"),
        *("sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"),
        *("x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip", "via"),
    )
    for spelling in (name, name.title(), name.title().replace("Websocket", "WebSocket"))
}
"""What nearly all fields of upgrades are called, as clients and proxies write it: these need not be looked at."""
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


class Bounds(NamedTuple):
    """What a head may have to be read in place; http.header_bytes, header_fields and query_fields of the settings."""

    head_bytes: int = 16_384
    fields: int = 100
    query_fields: int = 256


BOUNDS = Bounds()


class Refusal(NamedTuple):
    """Status, one line of text and headers of a refused handshake."""

    status: int
    text: str
    headers: dict[str, str]


def read_head(data: bytes, bounds: Bounds = BOUNDS) -> Head | None:
    """The head at the front of `data`, if it is a whole and plain GET of PATH; None for everything else.

    Also for what is beyond `bounds`, which heads refuses by the same settings.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or end + 4 > bounds.head_bytes or not data.startswith(START):
        return None
    text = data[:end].decode("latin-1")
    if LINES.fullmatch(text) is None:
        return None
    first, *lines = text.split("\r\n")
    target = TARGET.fullmatch(first)
    if target is None or len(lines) > bounds.fields or first.count("&") >= bounds.query_fields:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        spelling, _, value = line.partition(":")
        name = SPELLINGS.get(spelling) or _new_name(spelling)
        value = value.strip(" \t")
        # Empty values are rare enough for Tornado.
        if not name or not value or name in headers:
            return None
        headers[name] = value
    return Head(headers, end + 4, target[1] or "") if HOST.fullmatch(headers.get("host", "")) else None


def _new_name(spelling: str) -> str:
    """Of a field that is none of SPELLINGS; '' for what is no name, or would have a body come behind the head."""
    name = spelling.lower()
    return name if name not in BODY and NAME.fullmatch(name) else ""


def refuse(version: str, headers: Headers, allowed_origins: Collection[str], *, secure: bool = False) -> Refusal | None:
    """Why a request must not be upgraded; None if it may. version: 'HTTP/1.1'. secure: as `origin.allowed` has it."""
    if version != "HTTP/1.1" or headers.get("upgrade", "").lower() != "websocket":
        return Refusal(426, "this address speaks WebSocket only", UPGRADE)
    connection = headers.get("connection", "")
    if connection != "Upgrade" and "upgrade" not in [token.strip().lower() for token in connection.split(",")]:
        return Refusal(400, "Connection: found no 'Upgrade'", {})
    if headers.get("sec-websocket-version", "") != "13":
        return Refusal(426, "Sec-WebSocket-Version: allowed is 13", {"Sec-WebSocket-Version": "13", **UPGRADE})
    if not frames.is_well_formed_key(headers.get("sec-websocket-key", "")):
        return Refusal(400, "Sec-WebSocket-Key: expected 16 bytes in base64", {})
    page = headers.get("origin", "")
    if page and not origin.allowed(page, headers.get("host", ""), allowed_origins, secure=secure):
        return Refusal(403, "this Origin is not allowed; see allowed_origins in the settings", {})
    return None


def accept(headers: Headers, compress: bool = False) -> tuple[bytes, Agreement | None]:
    """The 101 for a request that `refuse` let pass, up to and with its empty line, and what it says of compression.

    compress: offers of compression are looked at; otherwise, and where none can be met, there is no agreement.
    """
    key = frames.accept_key(headers.get("sec-websocket-key", ""))
    chosen = ""
    offers = headers.get("sec-websocket-protocol", "")
    if offers and SUBPROTOCOL in [offer.strip() for offer in offers.split(",")]:
        chosen = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
    agreement = deflate.negotiate(headers.get("sec-websocket-extensions", "")) if compress else None
    if agreement is not None:
        chosen += f"Sec-WebSocket-Extensions: {agreement.answer}\r\n"
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {key}\r\n{chosen}\r\n"
    )
    return answer.encode(), agreement
