"""Forwarded: where a client really is, when proxies stand between: X-Forwarded-For, and the PROXY protocol's line.

Does: walk X-Forwarded-For from the right past the proxies that the operator trusts; read a PROXY v1 line from bytes;
bring addresses into one form.
Does not: touch sockets (acceptor), count anybody (quotas), or read `Forwarded` (RFC 7239) and `X-Real-IP`, which no
proxy of config/ sends.
Called by: entrance, acceptor; values checks the settings with it.
Never break: nothing that a client wrote is taken for its address: only what a trusted proxy has added. What is ill
formed ends the walk, and no input raises out of `Proxies.client`.

    peer 10.0.0.5, trusted 10.0.0.0/8, X-Forwarded-For: 192.0.2.1, 203.0.113.7, 10.0.0.9   ->   203.0.113.7
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

UNIX = "unix:"
"""Among the trusted: whoever reaches a Unix listener, which the file's mode has let in."""
MAX_HOPS = 16
"""Of one request; more proxies in a row nobody has, and each costs a look."""
MAX_PROXY_BYTES = 107
"""The longest line, with its end; https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt §2.1."""
PROXY = b"PROXY "
ENTRY = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15})(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})")
"""One of X-Forwarded-For; some proxies add the port."""
PORT = rb"(?:0|[1-9][0-9]{0,4})"
LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [\x20-\x7e]*)?"
    rb"|TCP4 ([0-9.]{7,15}) ([0-9.]{7,15}) (PORT) (PORT)"
    rb"|TCP6 ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}) (PORT) (PORT))\r\n".replace(b"PORT", PORT)
)
MAPPED = b"\x00" * 10 + b"\xff\xff"
"""How an IPv4 address begins that is written as an IPv6 one (RFC 4291 §2.5.5.2)."""
TOP_PORT = 65_535


def pack(text: str) -> bytes | None:
    """The bytes of an address: 4 or 16, 4 also for one that is mapped into IPv6; None for what is no address."""
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(MAPPED) and len(packed) == 16 else packed


def unpack(packed: bytes) -> str:
    """The opposite, in the one form that all rooms use: b'\\xcb\\x00q\\x07' -> '203.0.113.7'."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def check_trusted(text: str) -> str:
    """An entry of `trusted_proxies`: a network, an address, or UNIX. Raises ValueError with what is allowed."""
    if text != UNIX:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            wanted = 'a network such as "10.0.0.0/8" without host bits, an IP address'
            raise ValueError(f'{wanted}, or "{UNIX}" for those of Unix listeners') from None
    return text


class Proxies:
    """Those that are trusted to say for whom they speak."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        """trusted: entries that `check_trusted` has let pass."""
        self._unix = False
        self._networks: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        """By the bytes of an address: mask and value. Numbers, for each handshake is judged by them."""
        for text in trusted:
            if text == UNIX:
                self._unix = True
            else:
                network = ipaddress.ip_network(text)
                masked = (int(network.netmask), int(network.network_address))
                self._networks[network.max_prefixlen // 8].append(masked)

    def trusts(self, address: str) -> bool:
        """Whether it is a proxy's. address: '203.0.113.7'; '' is that of a Unix listener's peer."""
        if not address:
            return self._unix
        packed = pack(address)
        return packed is not None and self._trusts(packed)

    def _trusts(self, packed: bytes) -> bool:
        networks = self._networks[len(packed)]
        if not networks:
            return False
        number = int.from_bytes(packed)
        return any(number & mask == value for mask, value in networks)

    def client(self, peer: object, forwarded: str) -> str:
        """The client's address. peer: as `socket.accept` has it; forwarded: X-Forwarded-For, '' for none."""
        address = address_of(peer)
        if not forwarded or not self.trusts(address):
            return address
        for entry in reversed(forwarded.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            found = ENTRY.fullmatch(entry.strip(" \t"))
            packed = pack(found[1] or found[2] or found[3]) if found is not None else None
            if packed is None:
                break  # what stands left of it may be anybody's words
            address = unpack(packed)
            if not self._trusts(packed):
                break
        return address


def address_of(peer: object) -> str:
    """Of who is at the other end of a socket: ('::ffff:203.0.113.7', 4711, 0, 0) -> '203.0.113.7'; '' by a Unix one."""
    if not isinstance(peer, tuple):
        return ""
    text = str(peer[0])
    if ":" not in text:
        return text
    packed = pack(text.partition("%")[0])  # a link-local one has its interface behind it
    return text if packed is None else unpack(packed)


class Proxied(NamedTuple):
    """A PROXY line. peer: whom it names, as `socket.accept` would; None: nobody (UNKNOWN), as of a health check."""

    peer: tuple[str, int] | None
    size: int


def read_proxy_line(data: bytes) -> Proxied | None:
    r"""b'PROXY TCP4 203.0.113.7 10.0.0.5 4711 443\r\nGET …' -> Proxied(('203.0.113.7', 4711), 43).

    None: not whole yet. Raises ValueError for what can't become one.
    """
    end = data.find(b"\r\n", 0, MAX_PROXY_BYTES)
    if end < 0:
        if len(data) >= MAX_PROXY_BYTES or not (data.startswith(PROXY) or PROXY.startswith(data)):
            raise ValueError("no PROXY line")
        return None
    found = LINE.fullmatch(data, 0, end + 2)
    if found is None:
        raise ValueError("no PROXY line")
    if found[1] is None and found[5] is None:
        return Proxied(None, end + 2)
    family, groups = (4, found.group(1, 2, 3, 4)) if found[1] is not None else (16, found.group(5, 6, 7, 8))
    source, target = (_packed(text, family) for text in groups[:2])
    port = int(groups[2])
    if source is None or target is None or max(port, int(groups[3])) > TOP_PORT:
        raise ValueError("a PROXY line without two addresses of its family and two ports")
    return Proxied((unpack(source), port), end + 2)


def _packed(text: bytes, size: int) -> bytes | None:
    """size: 4 of TCP4; of TCP6 also a mapped address will do."""
    packed = pack(text.decode())
    return packed if packed is not None and (b":" in text) == (size == 16) else None
