"""TLS handshakes: newcomers of TLS listeners, from the accept to their first request's first bytes.

Does: tell TLS from plain HTTP, carry the handshake out on the plane, read what comes first, within one deadline.
Does not: read requests (acceptor goes on), or choose certificates (certificates).
Called by: acceptor.
Never break: nothing is spent on a newcomer before it has said something, and no more than `most` of them cost the
memory of an unfinished handshake. One too many pushes the oldest out: whoever means it is done in a moment, so that
those who only hold places lose theirs.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable

from .certificates import Certificates
from .errors import Close
from .quotas import Place
from .reactor import Reactor
from .tls import TlsSocket
from .wheel import NEVER

logger = logging.getLogger(__name__)

HANDSHAKE_RECORD = b"\x16"
"""What each TLS connection begins with (RFC 8446 §5.1)."""
FIRST_BYTES = 8192
NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: 48\r\n\r\nthis port speaks TLS: allowed are https and wss\n"
)
"""To those who speak plain HTTP here."""

Enter = Callable[[TlsSocket, bytes, object, float, Place], None]
"""Takes a socket whose handshake is done, what came first on it, its address, when it was accepted, and its place."""
TurnAway = Callable[[socket.socket, bytes], None]
"""Answers and closes."""


class Greeter:
    """The newcomers of one acceptor's TLS listeners. Counts are since the start."""

    def __init__(
        self,
        reactor: Reactor,
        certificates: Certificates,
        enter: Enter,
        turn_away: TurnAway,
        deadline_s: float,
        most: int,
    ) -> None:
        """deadline_s: from the accept to the first request's first bytes. most: unfinished handshakes at a time."""
        self.reactor = reactor
        self.certificates = certificates
        self.enter = enter
        self.turn_away = turn_away
        self.deadline_s = deadline_s
        self.most = most
        self.unfinished: dict[TlsNewcomer, None] = {}
        """Those that have begun, the oldest first."""
        self.failed = 0
        """Handshakes that came to nothing: no common version, say, or a client that does not trust the certificate."""
        self.pushed_out = 0
        """Handshakes cut as there were too many."""

    def greet(self, sock: socket.socket, address: object, since: float, place: Place) -> None:
        """A connection, of which nothing has been read. since: when it was accepted. place: among its address's."""
        newcomer = TlsNewcomer(self, sock, address, since, place)
        self.reactor.adopt(newcomer, newcomer=True)
        self.reactor.schedule(newcomer, since + self.deadline_s)

    def begins(self, newcomer: TlsNewcomer) -> None:
        """A handshake begins."""
        if len(self.unfinished) >= self.most:
            self.pushed_out += 1
            next(iter(self.unfinished)).abort()
        self.unfinished[newcomer] = None


class TlsNewcomer:
    """One connection that has not sent a request yet."""

    __slots__ = ("_address", "_greeter", "_place", "_shaken", "_since", "_sock", "_watching", "due", "fd")

    def __init__(self, greeter: Greeter, sock: socket.socket, address: object, since: float, place: Place) -> None:
        self._greeter = greeter
        self._place = place
        self._sock: socket.socket | None = sock
        """None once it has left the plane; an SSLSocket once it has said something."""
        self._address = address
        self._since = since
        self._shaken: TlsSocket | None = None
        """Once the handshake is done."""
        self._watching = False
        """It waits for room to write."""
        self.fd = sock.fileno()
        self.due = NEVER

    def on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = self._first_bytes(sock)
        except BlockingIOError:
            return  # more has to come
        except (OSError, ValueError) as error:
            # Whatever it was, it is the client's: what it sent is no TLS, or it went, or it does not like ours.
            self._greeter.failed += 1
            logger.debug("a TLS handshake failed: %s", error)
            self.abort()
            return
        if data and self._shaken is not None:
            self._leave()
            self._greeter.enter(self._shaken, data, self._address, self._since, self._place)
        elif self._sock is not None:
            self.abort()

    on_writable = on_readable

    def _first_bytes(self, sock: socket.socket) -> bytes:
        """Of the request, b'' where none will come. Raises BlockingIOError until then."""
        if self._shaken is None:
            if not isinstance(sock, ssl.SSLSocket):
                first = sock.recv(1, socket.MSG_PEEK)
                if first and first != HANDSHAKE_RECORD:
                    self._leave()
                    self._place.leave()
                    self._greeter.turn_away(sock, NOT_TLS)
                if first != HANDSHAKE_RECORD:
                    return b""
                sock = self._begin(sock)
            self._shake(sock)
            self._shaken = TlsSocket(sock)
        data = self._shaken.read(FIRST_BYTES)
        # The rest of its record would wait for the next one.
        return data + self._shaken.read_pending()

    def _begin(self, sock: socket.socket) -> ssl.SSLSocket:
        """Put TLS on top of its descriptor."""
        greeter = self._greeter
        greeter.begins(self)
        # Off the plane meanwhile: where the peer has just gone, the descriptor is closed in there.
        greeter.reactor.release(self)
        self._sock = None
        try:
            secure = greeter.certificates.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except BaseException:
            greeter.unfinished.pop(self, None)
            sock.close()
            self._place.leave()
            raise
        self._sock = secure
        greeter.reactor.adopt(self, newcomer=True)
        greeter.reactor.schedule(self, self._since + greeter.deadline_s)
        return secure

    def _shake(self, sock: ssl.SSLSocket) -> None:
        """Go on with the handshake. Raises BlockingIOError until it is done."""
        wants_write = False
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            wants_write = True
            raise BlockingIOError from None
        finally:
            if wants_write != self._watching:
                self._watching = wants_write
                self._greeter.reactor.watch_writes(self, wants_write)

    def on_timer(self, now: float) -> None:
        self.abort()

    def close(self, close: Close) -> None:
        self.abort()

    def abort(self) -> None:
        if (sock := self._leave()) is not None:
            sock.close()
            self._place.leave()

    def _leave(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._greeter.unfinished.pop(self, None)
            self._greeter.reactor.release(self)
        return sock

    def flush(self) -> None:
        raise NotImplementedError  # nothing is ever queued for it
