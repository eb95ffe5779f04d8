"""Values: what a single text of the settings may be: addresses, origins, URLs, names, secrets.

Does: give each kind a type that checks itself, with what is allowed in its error.
Does not: know which settings there are (config), or word a whole mistake (mistakes).
Called by: config (the types); listeners, embedded, options, serve, urls (addresses).
Never break: a value that has passed is safe where it goes: an address can be listened on, a prefix stands in a key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator

from .app import MODULE
from .forwarded import check_trusted
from .origin import EVERYBODY, WILDCARD

# sun_path holds 108 bytes with the closing NUL (unix(7)).
MAX_UNIX_PATH_BYTES = 107
TICKER_SOURCES = ("none", "simulate", "replay", "stream")
MIN_KEY_LENGTH = 16
"""Of the server API's key, which nobody types: whoever finds it out by trying does anything to anybody."""
TLS = "tls:"
DESCRIPTOR_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,200}")
"""What systemd calls a socket: the name of its unit, or FileDescriptorName= (at most 255 characters, no colon)."""
ALGORITHMS = (
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
"""Of tokens; as in keys, which is more than the command line wants to load before it completes a word."""
BAR_INTERVALS = ("1s", "5s", "1m", "5m", "1h", "1d")
"""Their lengths are in bars."""


class Address(NamedTuple):
    """Where to listen: a TCP host and port, or a Unix socket path (then host is '' and port 0).

    Or sockets that systemd hands over under a name; what they listen on is known once they are there.
    """

    host: str
    port: int
    path: str = ""
    name: str = ""
    tls: bool = False

    def __str__(self) -> str:
        return f"{TLS if self.tls else ''}{self.bare}"

    @property
    def bare(self) -> str:
        """Without what is spoken there."""
        if self.path:
            return f"unix:{self.path}"
        if self.name:
            return f"systemd:{self.name}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read 'HOST:PORT', '[IPv6]:PORT', 'unix:/PATH' or 'systemd:NAME'; raises ValueError.

    'tls:' before any of them but a Unix path: TLS is spoken there.
    HOST is an IP address or 'localhost', which is 127.0.0.1; any other name could mean several addresses.
    PORT 0 leaves the choice to the kernel. PATH is absolute and has at most 107 bytes.
    NAME is what systemd calls the sockets that it hands over.
    """
    wanted = (
        f"HOST:PORT with an IP address, [IPv6]:PORT, unix:/PATH of at most {MAX_UNIX_PATH_BYTES} bytes or systemd:NAME;"
        " with TLS tls:HOST:PORT and so on"
    )
    if text.startswith(TLS) and not text.startswith((TLS + TLS, TLS + "unix:")):
        return parse_address(text.removeprefix(TLS))._replace(tls=True)
    if text.startswith("systemd:"):
        name = text.removeprefix("systemd:")
        if not DESCRIPTOR_NAME.fullmatch(name):
            raise ValueError(wanted)
        return Address("", 0, name=name)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
            raise ValueError(wanted)
        return Address("", 0, path)
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+)):(?P<port>\d{1,5})", text)
    if not match or int(match["port"]) > 65535:
        raise ValueError(wanted)
    host = match["v6"] or ("127.0.0.1" if match["v4"] == "localhost" else match["v4"])
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise ValueError(wanted) from None
    if (version == 6) != bool(match["v6"]):
        raise ValueError(wanted)
    return Address(host, int(match["port"]))


def _address(text: str) -> str:
    parse_address(text)
    return text


def _origin(text: str) -> str:
    origin = text.lower()
    if origin != EVERYBODY and not re.fullmatch(r"https?://[^/\s*]+", origin) and not WILDCARD.fullmatch(origin):
        wanted = "SCHEME://HOST[:PORT] with http or https and no path, SCHEME://*.DOMAIN[:PORT] for its subdomains"
        raise ValueError(f'{wanted}, or "*" for all origins')
    return origin


def _redis_url(text: str) -> str:
    if text and not _is_redis_url(text):
        raise ValueError("redis://…, rediss://… or unix:///…, with no options but db and ssl_ca_certs")
    return text


def _is_redis_url(text: str) -> bool:
    """What redis-py and our own subscriber connection both understand in the same way."""
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        port = parts.port  # raises ValueError beyond 65535
    except ValueError:
        return False
    if (
        not re.fullmatch(r"\S+", text)
        or options.keys() - {"db", "ssl_ca_certs"}
        or not options.get("db", "0").isdigit()
    ):
        return False
    if parts.scheme == "unix":
        return parts.path.startswith("/") and not parts.hostname
    return parts.scheme in ("redis", "rediss") and bool(re.fullmatch(r"(/\d*)?", parts.path)) and port != 0


def _prefix(text: str) -> str:
    # Braces would move Cluster's hash tag from the channel to the prefix, a space could not be told from the next word.
    if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,64}", text):
        raise ValueError("1 to 64 of A-Z a-z 0-9 _ . -")
    return text


def _sentinel(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]", host) or not re.fullmatch(r"\d{1,5}", port):
        raise ValueError("HOST:PORT of a Sentinel")
    if not 0 < int(port) < 65536:
        raise ValueError("HOST:PORT with a port from 1 to 65535")
    return text


def _http_url(text: str) -> str:
    try:
        good = not text or (re.fullmatch(r"https?://[^/\s?#@]+/?", text) is not None and urlsplit(text).port != 0)
    except ValueError:  # a port beyond 65535, a broken IPv6 address
        good = False
    if not good:
        raise ValueError("http://HOST:PORT or https://HOST:PORT, or empty")
    return text


def _jwks_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = not text or (re.fullmatch(r"https?://[^/\s?#@]+(?:[/?][^\s#]*)?", text) is not None and parts.port != 0)
        # Who can change an answer on its way is whoever he likes to be; on loopback nobody stands between.
        if good and parts.scheme == "http":
            good = re.fullmatch(r"localhost|::1|127(\.\d+){3}", parts.hostname or "") is not None
    except ValueError:
        good = False
    if not good:
        raise ValueError("https://HOST[:PORT]/PATH, or http:// on loopback, or empty")
    return text


def _algorithm(text: str) -> str:
    if text not in ALGORITHMS:
        raise ValueError(", ".join(ALGORITHMS))
    return text


def _cookie(text: str) -> str:
    # RFC 6265 §4.1.1: a token of RFC 9110 §5.6.2.
    if text and not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}", text):
        raise ValueError("a cookie's name, 1 to 64 of A-Z a-z 0-9 ! # $ % & ' * + - . ^ _ ` | ~, or empty")
    return text


def _key_file(text: str) -> str:
    if not re.fullmatch(r"(?:[^=\s]{1,255}=)?[^=\0\n]+", text):
        raise ValueError("PATH, or KID=PATH for tokens whose header has that kid; no more = in it")
    return text


def _secret(text: str) -> str:
    # RFC 7518 §3.2: a key of the hash's size or more.
    if text and len(text.encode()) < 32:
        raise ValueError("at least 32 bytes (RFC 7518 §3.2), or empty")
    return text


def _api_key(text: str) -> str:
    if text and len(text) < MIN_KEY_LENGTH:
        raise ValueError(f"at least {MIN_KEY_LENGTH} characters (`openssl rand -hex 32` makes some), or empty")
    return text


def _socketio_namespace(text: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9_.\-/]{1,63}", text):
        raise ValueError("/ and 1 to 63 of A-Z a-z 0-9 _ . - /")
    return text


def _source(text: str) -> str:
    if text not in TICKER_SOURCES and not MODULE.fullmatch(text):
        words = ", ".join(f'"{word}"' for word in TICKER_SOURCES)
        raise ValueError(f'{words}, or "FILE:NAME" of your own, as in Python, without .py')
    return text


def _interval(text: str) -> str:
    if text not in BAR_INTERVALS:
        raise ValueError(", ".join(f'"{word}"' for word in BAR_INTERVALS))
    return text


def _module(text: str) -> str:
    if text and not MODULE.fullmatch(text):
        raise ValueError('"FILE:NAME" or "PACKAGE.FILE:NAME", as in Python, without .py')
    return text


AddressText = Annotated[str, AfterValidator(_address)]
OriginText = Annotated[str, AfterValidator(_origin)]
TrustedText = Annotated[str, AfterValidator(check_trusted)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
SentinelText = Annotated[str, AfterValidator(_sentinel)]
PrefixText = Annotated[str, AfterValidator(_prefix)]
AlgorithmText = Annotated[str, AfterValidator(_algorithm)]
CookieText = Annotated[str, AfterValidator(_cookie)]
JwksUrl = Annotated[str, AfterValidator(_jwks_url)]
KeyFileText = Annotated[str, AfterValidator(_key_file)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
ApiKeyText = Annotated[str, AfterValidator(_api_key)]
SecretText = Annotated[str, AfterValidator(_secret)]
SocketIONamespace = Annotated[str, AfterValidator(_socketio_namespace)]
IntervalText = Annotated[str, AfterValidator(_interval)]
SourceText = Annotated[str, AfterValidator(_source)]
ModuleText = Annotated[str, AfterValidator(_module)]
