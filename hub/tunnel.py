"""Tunnel: a client's WebSocket that came to one machine, and whose session lives on another.

Does: open a connection to the other machine's internal listener, pass bytes both ways until one side ends; take such
connections here and hand them to the session's worker.
Does not: know what the bytes mean, or find machines (neighbours); workers of one machine pass the socket itself
(handover), which costs nothing afterwards.
Called by: links (builds it, routes), transports.polling.
Never break: bytes arrive as they were sent, in order. What waits for either side is bounded, by the two sockets' own
buffers, the 64 KB above which asyncio pauses and what one read brought; and so is the time. A side that ends takes the
other with it, behind what was said before.

    GET /tunnel/3f9c2d11a0b4e875.2.17   Upgrade: websocket   X-Relay-Secret: …   X-Relay-Words: base64

It has the shape of a WebSocket's handshake, with the client's own key, and what answers it is what answers the client:
`101` from the session's worker, or the refusal. So proxies between the machines need to know nothing else. Words are
what handover would pass beside the socket; what the client sent behind its request comes behind ours.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import socket
import ssl
from http.client import responses
from math import inf
from typing import cast
from urllib.parse import urlsplit

from . import httpd
from .audience import new_number
from .errors import Close, OwnerGone, OwnerSlow, RelayError
from .handover import Handover
from .neighbours import STATUSES, GuardedHandler, Neighbours
from .reactor import Reactor
from .relay import Owner, parse_owner
from .tls import Descriptor
from .tls_bridge import plain_descriptor
from .transports.websocket import leave_tornado
from .wheel import NEVER

logger = logging.getLogger(__name__)


class Tunnels:
    """All tunnels that begin in this worker, and the way in for those that end on this machine."""

    def __init__(
        self,
        reactor: Reactor,
        neighbours: Neighbours,
        handover: Handover,
        timeout_s: float,
        stalled_s: float,
        most: int,
    ) -> None:
        """timeout_s: to reach the other machine. stalled_s: a side that takes nothing for so long is cut.

        most: tunnels at a time.
        """
        self.stalled_s = stalled_s
        self.reactor = reactor
        self._neighbours = neighbours
        self.handover = handover
        self._timeout_s = timeout_s
        self._most = most
        self.open: set[Tunnel] = set()

    async def dig(self, owner: Owner, key: str, words: bytes) -> Tunnel:
        """A way to a worker of another machine, at which the client is not yet.

        key: the client's Sec-WebSocket-Key. words: for whoever takes the socket there.
        Raises OwnerGone: there is no such machine. OwnerSlow: it can't be reached in time, or there are too many.
        """
        if len(self.open) >= self._most:
            raise OwnerSlow(f"there are {len(self.open)} tunnels; allowed: {self._most}")
        try:
            async with asyncio.timeout(self._timeout_s):
                url = await self._neighbours.find(owner.hub)
                tunnel = Tunnel(self)
                await tunnel.reach(url, self._request(owner, key, words))
        except ConnectionRefusedError:
            raise OwnerGone("the session's hub does not serve") from None
        except (OSError, ValueError) as error:  # a timeout is an OSError, too
            raise OwnerSlow(f"the session's hub can't be reached: {error}") from None
        return tunnel

    def _request(self, owner: Owner, key: str, words: bytes) -> list[str]:
        return [
            f"GET /tunnel/{owner} HTTP/1.1",
            f"X-Relay-Secret: {self._neighbours.secret}",
            f"X-Relay-Words: {base64.b64encode(words).decode()}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]

    def routes(self) -> httpd.Routes:
        """For the internal listener."""
        return [(r"/tunnel/([^/]+)", TunnelHandler, {"tunnels": self, "neighbours": self._neighbours})]


class Tunnel:
    """Two connections. On the plane without a descriptor: so it is drained and cut like all others."""

    def __init__(self, tunnels: Tunnels) -> None:
        self.fd = new_number()
        self.due = NEVER
        self._tunnels = tunnels
        self._near, self._far = _End(self), _End(self)
        self._ending = False
        self._near.other, self._far.other = self._far, self._near
        tunnels.open.add(self)
        tunnels.reactor.adopt(self)

    async def reach(self, url: str, request: list[str]) -> None:
        """Connect to the other machine and send the request. Raises OSError, ValueError; then it is gone."""
        try:
            parts = urlsplit(url)
            tls = ssl.create_default_context() if parts.scheme == "https" else None
            port = parts.port or (443 if tls else 80)
            await asyncio.get_running_loop().create_connection(lambda: self._far, parts.hostname or "", port, ssl=tls)
        except BaseException:
            self.abort()
            raise
        # What it answers waits in the socket for the client.
        self._far.pause()
        self._far.write("\r\n".join([*request, f"Host: {parts.netloc}", "", ""]).encode())

    async def begin(self, fd: Descriptor, early: bytes) -> None:
        """Bring the client; its descriptor is the tunnel's from now on. early: what it has sent behind its request."""
        try:
            sock = socket.socket(fileno=plain_descriptor(self._tunnels.reactor, fd))
        except OSError:
            self.abort()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._near, sock)
        except OSError:
            sock.close()
            self.abort()
            return
        if not self._far.connected or self not in self._tunnels.open:
            self.abort()  # it ended meanwhile
            return
        self._far.write(early)
        self._far.resume()

    def now(self) -> float:
        """On the plane's clock."""
        return self._tunnels.reactor.clock()

    def on_stalled(self) -> None:
        """A side takes no more, and the other is not read from meanwhile, so that its end would go unseen."""
        if not self._ending and self.due == NEVER:
            self._wait(self._tunnels.stalled_s)

    def on_end(self, end: _End) -> None:
        """A side has gone."""
        if self not in self._tunnels.open:
            return
        if end.other is None or not end.other.connected:
            self._forget()
            return
        end.other.close()
        self._ending = True
        self._wait(self._tunnels.reactor.close_timeout_s)  # its peer may read nothing

    def _wait(self, seconds: float) -> None:
        self._tunnels.reactor.schedule(self, self.now() + seconds)

    def _forget(self) -> None:
        if self in self._tunnels.open:
            self._tunnels.open.remove(self)
            self._tunnels.reactor.release(self)

    # What the plane calls.

    def close(self, close: Close) -> None:
        """End both sides. The client is not told why: where a frame begins is not known here."""
        self.abort()

    def abort(self) -> None:
        self._near.abort()
        self._far.abort()
        self._forget()

    def on_timer(self, now: float) -> None:
        left_s = min(self._near.stalled_at, self._far.stalled_at) + self._tunnels.stalled_s - now
        if self._ending or left_s <= 0:
            self.abort()
        elif left_s < inf:
            self._wait(left_s)  # it had gone on meanwhile, and stalled again

    def on_readable(self) -> None:
        raise NotImplementedError  # it has no descriptor of the plane's

    flush = on_writable = on_readable


class _End(asyncio.Protocol):
    """One of the two connections."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.other: _End | None = None
        self.stalled_at = inf
        """Since when it takes no more, on the plane's clock; inf: it does."""
        self._tunnel = tunnel
        self._transport: asyncio.Transport | None = None

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        self.stalled_at = self._tunnel.now()
        self._tunnel.on_stalled()
        if self.other is not None:
            self.other.pause()

    def resume_writing(self) -> None:
        self.stalled_at = inf
        if self.other is not None:
            self.other.resume()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._tunnel.on_end(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Once everything is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class TunnelHandler(GuardedHandler):
    """GET /tunnel/OWNER: the end of a tunnel, which goes to the session's worker."""

    def initialize(self, neighbours: Neighbours, tunnels: Tunnels) -> None:  # type: ignore[override]
        super().initialize(neighbours)
        self._tunnels = tunnels

    def get(self, name: str) -> None:
        try:
            owner = parse_owner(name)
            words = base64.b64decode(self.request.headers.get("X-Relay-Words", ""), validate=True)
        except (ValueError, binascii.Error):
            self.plain(400, "allowed is /tunnel/HUB.SLOT.GENERATION, X-Relay-Words in base64")
            return
        if owner.hub != self._neighbours.relay.owner.hub:
            self.plain(404, "this is another hub")
            return
        if not self.request.connection or self.request.connection.stream.closed():  # type: ignore[attr-defined]
            return  # it sent a request and went: nothing is left to be detached
        secure, early = leave_tornado(self.detach())
        try:
            fd = plain_descriptor(self._tunnels.reactor, secure)
        except OSError as error:
            logger.debug("a tunnel ends: %s", error)
            return
        try:
            self._tunnels.handover.send(owner, fd, words + early)
        except RelayError as error:
            logger.debug("a tunnel ends: %s", error)
            status = STATUSES.get(type(error), 500)
            answer = f"HTTP/1.1 {status} {responses[status]}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            with contextlib.suppress(OSError):  # whoever asked has gone
                os.write(fd, answer.encode())
        os.close(fd)
