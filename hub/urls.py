"""Urls: listening addresses as the URLs that people and clients use, and such URLs as places to connect to.

Does: write the URL of a page, of the clients' endpoint or of the server API; check a URL that somebody typed.
Does not: listen or connect.
Called by: serve (the ready line), cli (`--url` and its defaults), client (`Endpoint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from .errors import ConfigError
from .values import Address

Kind = Literal["http", "ws"]
PATHS: dict[Kind, str] = {"http": "/api", "ws": "/connection/websocket"}
"""Of the server API and of the clients' endpoint."""
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to connect to. unix_path: the socket to use in place of the URL's host; '' with TCP."""

    url: str
    unix_path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.unix_path}" if self.unix_path else self.url


def url(kind: Kind, address: Address, path: str | None = None) -> str:
    """'ws://127.0.0.1:8000/connection/websocket'; a Unix listener stays 'unix:/run/hub/hub.sock'.

    path: in place of the kind's own.
    """
    if address.path or address.name:
        return str(address)
    return f"{kind}{'s' if address.tls else ''}://{address.bare}{PATHS[kind] if path is None else path}"


def endpoint_of(kind: Kind, address: Address) -> Endpoint:
    """Where a client on this machine reaches a listener: one on all addresses is reached by loopback."""
    return parse_endpoint(kind, url(kind, address._replace(host=LOOPBACK.get(address.host, address.host))))


def parse_endpoint(kind: Kind, text: str) -> Endpoint:
    """Read 'http://HOST[:PORT][/PATH]', the same with https (or ws and wss), or 'unix:/PATH'.

    Without a path the endpoint's usual one is meant. Raises ConfigError.
    """
    if text.startswith("unix:/"):
        return Endpoint(f"{kind}://localhost{PATHS[kind]}", text.removeprefix("unix:"))
    try:
        parts = urlsplit(text)
        good = parts.scheme in (kind, f"{kind}s") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets without an IPv6 address
        good = False
    if not good or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"URL: found {text!r}; allowed: {kind}://HOST:PORT{PATHS[kind]}, {kind}s://… or unix:/PATH")
    return Endpoint((parts._replace(path=PATHS[kind]).geturl() if parts.path in ("", "/") else text).rstrip("/"))
