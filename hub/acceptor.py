"""Acceptor: new connections of the public listeners, and the fast way from there to the plane.

Does: accept in bounded batches, keep a worker below its descriptor limit with an answer instead of a spin, wait for a
newcomer's first bytes under the handshake deadline, take a proxy's word for whose connection it is, answer a plain
WebSocket upgrade in place, and reset unread who comes far too often.
Does not: judge handshakes (handshake), speak TLS (tls_handshake) or parse any other HTTP: what is not a plain upgrade
request goes to Tornado with nothing consumed.
Called by: worker.
Never break: bytes are only peeked at until it is certain who takes the connection; over TLS, where that can't be, they
go to whoever takes it. A PROXY line comes before anything else, and where one is due nothing is served without it.

In a reconnect storm the handshake is what a worker does: through Tornado it costs about 140 µs, in place a fifth.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import struct
from collections.abc import Collection
from http.client import responses

from . import forwarded, handshake
from .balance import Balance
from .certificates import Certificates
from .curb import Curb
from .entrance import TOO_MANY, Visitor, query_token, refusal
from .errors import Close, HubError
from .httpd import Server, Stream, TlsStream
from .log import Brake
from .quotas import NOWHERE, Place
from .reactor import Reactor
from .tls import TlsSocket
from .tls_handshake import Greeter
from .transports.websocket import Door, open_connection
from .wheel import NEVER

logger = logging.getLogger(__name__)

ACCEPT_BATCH = 64
"""Accepts in one turn of the loop, at the most."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset: nothing of the connection stays in the kernel, as TIME_WAIT would."""
TORNADO_S = 0.0002
"""What a request costs there: handed on as fast as they come, a hundred would hold the loop for 20 ms."""
PEEK_BYTES = 8192
DESCRIPTOR_MARGIN = 64
"""Kept free of clients, for Redis, logs and the server API."""
INTERNAL_MARGIN = 32
"""Kept free of the server API's own connections, so that it still answers when clients have taken all that they may."""
PAUSE_S = 0.1
"""Without memory or descriptors for another socket: accepting rests so long, and the loop does not spin."""


def _encode(refusal: handshake.Refusal) -> bytes:
    """A whole answer, after which the connection ends."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers.items())
    return (
        f"HTTP/1.1 {refusal.status} {responses[refusal.status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"{fields}Connection: close\r\nContent-Length: {len(refusal.text) + 1}\r\n\r\n{refusal.text}\n"
    ).encode()


CROWDED = _encode(TOO_MANY)
FULL = _encode(handshake.Refusal(503, "this process has no descriptor left for clients", {"Retry-After": "5"}))


SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Newcomer:
    """A connection that has not sent anything yet. On the plane until it does, or until its deadline."""

    __slots__ = ("_acceptor", "_address", "_place", "_since", "_sock", "due", "fd")

    def __init__(
        self, acceptor: Acceptor, sock: socket.socket, address: object, since: float, place: Place = NOWHERE
    ) -> None:
        """since: when it was accepted. place: left where nobody takes it over."""
        self._acceptor = acceptor
        self._sock: socket.socket | None = sock
        """None once it has left the plane: somebody who goes through a list of connections may still hold it."""
        self._address = address
        self._place = place
        self._since = since
        self.fd = sock.fileno()
        self.due = NEVER

    def on_readable(self) -> None:
        if (sock := self._leave()) is not None:
            self._acceptor.receive(sock, self._address, self._since, self._place)

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
            self._acceptor.reactor.release(self)
        return sock

    def on_writable(self) -> None:
        raise NotImplementedError  # nothing is ever written to it

    flush = on_writable


class Proxied(Newcomer):
    """The same by way of a proxy that says first whose connection it is (PROXY protocol v1)."""

    __slots__ = ("_peeked", "_secure")

    def __init__(self, acceptor: Acceptor, sock: socket.socket, address: object, since: float, secure: bool) -> None:
        """secure: what comes behind the line is TLS."""
        super().__init__(acceptor, sock, address, since)
        self._peeked = 0
        """Bytes of the line that were there."""
        self._secure = secure

    def on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(forwarded.MAX_PROXY_BYTES, socket.MSG_PEEK)
            line = forwarded.read_proxy_line(data) if data else None
            if line is None and len(data) > self._peeked:
                self._peeked = len(data)
                # Woken again by one more byte, and not by those that are there.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
                return
            if line is not None:
                sock.recv(line.size)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except ValueError:
            self._acceptor.no_proxy_line()
            line = None
        except OSError:
            line = None  # reset by the peer
        self._leave()
        if line is None:
            sock.close()
        else:
            self._acceptor.greet(sock, line.peer or self._address, self._since, self._secure, named=True)


class Acceptor:
    """Accepts for one worker. fast: answer upgrades in place; otherwise everything goes to Tornado."""

    def __init__(
        self,
        reactor: Reactor,
        server: Server,
        door: Door,
        deadline_s: float,
        *,
        fast: bool,
        margin: int = DESCRIPTOR_MARGIN,
        certificates: Certificates | None = None,
        tls_handshakes: int = 1000,
        public: bool = True,
    ) -> None:
        """deadline_s: from the accept to the end of the first request's head. margin: descriptors that stay free.

        public: sockets are counted by their addresses.

        certificates: for `listen_tls`, with so many unfinished handshakes at a time.
        """
        self.reactor = reactor
        self._server = server
        self._door = door
        self._deadline_s = deadline_s
        self._fast = fast
        self._public = public
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self.curb = Curb(self._loop.call_later)
        """For who comes by ways of his own; whom a proxy names, the kernel does not know."""
        self._secure: set[socket.socket] = set()
        """Those of them that speak TLS."""
        self.greeter: Greeter | None = None
        if certificates is not None:
            self.greeter = Greeter(reactor, certificates, self._enter, _turn_away, deadline_s, tls_handshakes)
        self._proxied: set[socket.socket] = set()
        """Those whose connections begin with a PROXY line."""
        self._reserve = -1
        self._keep_reserve()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_fd = max(limit - margin, limit // 2)
        self._full = Brake()
        self.turned_away = 0
        """Connections answered with 503 because the worker had no descriptor to spare, since the start."""
        self.misled = 0
        """Connections closed for want of a PROXY line, or of a proxy that is trusted with one."""
        self._unnamed = Brake()
        self.balance: Balance | None = None
        """Where others may have a new connection instead of this worker."""
        self.kind = 0
        """Which of the worker's acceptors this is, where it has several that others may pass connections to."""
        self._kinds: list[tuple[bool, bool]] = []
        """Of each listener, in order, also once they are closed: whether it is secure, whether it is proxied."""

    def retune(self, deadline_s: float, tls_handshakes: int) -> None:
        """As the constructor has them, for who comes from now on."""
        self._deadline_s = deadline_s
        if self.greeter is not None:
            self.greeter.deadline_s, self.greeter.most = deadline_s, tls_handshakes

    def listen(self, listeners: list[socket.socket], proxied: Collection[socket.socket] = ()) -> None:
        """Accept on these from now on. proxied: those whose connections begin with a PROXY line."""
        self._proxied.update(proxied)
        if self._public:
            self.curb.watch([listener for listener in listeners if listener not in self._proxied])
        for listener in listeners:
            self._listeners.append(listener)
            self._kinds.append((listener in self._secure, listener in self._proxied))
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def listen_tls(self, listeners: list[socket.socket], proxied: Collection[socket.socket] = ()) -> None:
        """The same for TLS, which comes behind a PROXY line; only with certificates."""
        self._secure.update(listeners)
        self.listen(listeners, proxied)

    def stop(self) -> None:
        """Accept no more, and close the listeners."""
        self.curb.stop()
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        self._secure.clear()
        self._proxied.clear()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def receive(self, sock: socket.socket, address: object, since: float, place: Place) -> None:
        """A newcomer's first bytes may be there, or its end; otherwise it waits for them on the plane.

        since: when it was accepted. place: as it has it.
        """
        try:
            data = sock.recv(PEEK_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            self._await(Newcomer(self, sock, address, since, place), since)
            return
        except OSError:
            data = b""  # reset by the peer
        if not data:
            sock.close()
            place.leave()
            return
        head = handshake.read_head(data, self._server.bounds) if self._fast else None
        token = self._token(head, secure=False) if head is not None else None
        if head is None or token is None:
            self._to_tornado(sock, address, since, place)
            return
        place.leave()  # what comes of it is counted as a connection
        visitor = self._judge(address, head, token)
        if isinstance(visitor, Visitor):
            # What is behind that has its turn on the plane, like everything that comes later.
            early = sock.recv(head.size + self._door.most_early(head.headers))[head.size :]
            open_connection(self._door, sock.detach(), head.headers, early, visitor)
            self.reactor.tally.handshakes.observe(self.reactor.clock() - since)
        else:
            _turn_away(sock, _encode(visitor))

    def _token(self, head: handshake.Head, *, secure: bool) -> str | None:
        """Of its query, '' for none; None where Tornado has to answer: an upgrade that is refused, or with a ticket,
        which is asked for at Redis, and nobody waits for that here.
        """
        if handshake.refuse("HTTP/1.1", head.headers, self._door.entrance.origins, secure=secure) is not None:
            return None
        return query_token(head.query) if head.query else ""

    def _judge(self, peer: object, head: handshake.Head, token: str) -> Visitor | handshake.Refusal:
        """Who asks, or why it may not come in. Counted before its token costs anything."""
        entrance = self._door.entrance
        address = entrance.address_of(peer, head.headers)
        refused = entrance.admit(address)
        if refused is not None:
            return refused
        try:
            return entrance.visitor(address, head.headers, token, keep=False)
        except HubError as error:
            return refusal(error)

    def _enter(self, tls: TlsSocket, data: bytes, address: object, since: float, place: Place) -> None:
        """The same for one whose TLS handshake is done. data: what came first."""
        head = handshake.read_head(data, self._server.bounds) if self._fast else None
        token = self._token(head, secure=True) if head is not None else None
        if head is None or token is None:
            self._tls_to_tornado(tls, data, address, since, place)
            return
        place.leave()
        visitor = self._judge(address, head, token)
        if isinstance(visitor, Visitor):
            open_connection(self._door, tls, head.headers, data[head.size :], visitor)
            self.reactor.tally.handshakes.observe(self.reactor.clock() - since)
            return
        try:
            tls.write(_encode(visitor))  # into an empty buffer
        except OSError:
            logger.debug("a client went before it was turned away")
        tls.abandon()

    def _accept(self, listener: socket.socket) -> None:
        clock = self.reactor.clock
        stop_at = clock() + self.reactor.newcomers_s + self.reactor.begun_s
        for _ in range(ACCEPT_BATCH):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._not_accepted(listener, error)
                return
            sock.setblocking(False)
            if self.balance is not None and self.balance.passes(sock, self.kind, self._listeners.index(listener)):
                continue
            if sock.fileno() >= self._most_fd:
                self._refuse_full(sock)
            else:
                self._meet(sock, address, *self._kinds[self._listeners.index(listener)])
            if clock() + self.reactor.begun_s >= stop_at:
                return

    def take(self, sock: socket.socket, place: int) -> None:
        """A new connection that another worker has accepted. place: of its listener among ours."""
        try:
            address = sock.getpeername()
        except OSError:
            sock.close()  # it has gone meanwhile
            return
        if sock.fileno() >= self._most_fd:
            self._refuse_full(sock)
        else:
            self._meet(sock, address, *self._kinds[place])

    def _meet(self, sock: socket.socket, address: object, secure: bool, proxied: bool) -> None:
        now = self.reactor.clock()
        if not proxied:
            self.greet(sock, address, now, secure)
        elif self._door.entrance.proxies.trusts(forwarded.address_of(address)):
            self._await(Proxied(self, sock, address, now, secure), now)
        else:
            self.no_proxy_line()
            sock.close()

    def no_proxy_line(self) -> None:
        """A connection ends because nobody who is trusted has said whose it is."""
        self.misled += 1
        self._door.entrance.quotas.refusals.count("proxy_lines")
        self._unnamed.warning(
            logger, "no PROXY line of a trusted proxy where proxy_protocol wants one: closed; see trusted_proxies"
        )

    def greet(
        self, sock: socket.socket, address: object, since: float, secure: bool = False, *, named: bool = False
    ) -> None:
        """A client's connection, of which nothing has been read. since: when it was accepted. secure: it speaks TLS.

        named: the address is what a proxy says, and so nothing that the kernel could keep out.
        """
        if self._public and (key := self._door.entrance.quotas.shuts_out(forwarded.address_of(address))):
            _reset(sock)
            if not named:
                self.curb.on_reset(key)
            return
        place = self._knock(address, secure)
        if place is None:
            if secure:
                sock.close()
            else:
                _turn_away(sock, CROWDED)
        elif self.greeter is not None and secure:
            self.greeter.greet(sock, address, since, place)
        elif self._fast:
            # In a storm its request has come before we did, and the plane need not hear of it before it is a client.
            self.receive(sock, address, since, place)
        else:
            self._to_tornado(sock, address, since, place)

    def _knock(self, address: object, secure: bool) -> Place | None:
        if not self._public:
            return NOWHERE
        return self._door.entrance.quotas.knock(forwarded.address_of(address), secure=secure)

    def _await(self, newcomer: Newcomer, since: float) -> None:
        self.reactor.adopt(newcomer, newcomer=True)
        self.reactor.schedule(newcomer, since + self._deadline_s)

    def _to_tornado(self, sock: socket.socket, address: object, since: float, place: Place) -> None:
        server = self._server
        self.reactor.begins(TORNADO_S)
        stream = Stream(sock, max_buffer_size=server.max_buffer_size, read_chunk_size=server.read_chunk_size)
        stream.place = place
        server.take(stream, address, self._deadline_s - (self.reactor.clock() - since))

    def _tls_to_tornado(self, tls: TlsSocket, data: bytes, address: object, since: float, place: Place) -> None:
        server = self._server
        self.reactor.begins(TORNADO_S)
        stream = TlsStream(
            tls.into_ssl_socket(), data, max_buffer_size=server.max_buffer_size, read_chunk_size=server.read_chunk_size
        )
        stream.place = place
        server.take(stream, address, self._deadline_s - (self.reactor.clock() - since))

    def _not_accepted(self, listener: socket.socket, error: OSError) -> None:
        """Without a descriptor the listener stays readable and the loop would spin; the reserve lets us answer one.

        A connection that was reset in the queue, the most common way for accept to fail, is nobody's loss.
        """
        if error.errno not in SCARCE:
            return
        if self._reserve >= 0:
            reserve, self._reserve = self._reserve, -1
            os.close(reserve)
            try:
                sock, _ = listener.accept()
                sock.setblocking(False)
                self._refuse_full(sock)
            except OSError:
                pass  # it has gone meanwhile, or another process took the descriptor
        if not self._keep_reserve():
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(PAUSE_S, self._resume, listener)

    def _keep_reserve(self) -> bool:
        if self._reserve < 0:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False  # others were quicker; the next turn tries again
        return True

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _refuse_full(self, sock: socket.socket) -> None:
        self.turned_away += 1
        self._door.entrance.quotas.refusals.count("descriptors")
        self._full.warning(
            logger, "no descriptor left for clients: answering 503; raise the limit (hub tune) or add workers"
        )
        _turn_away(sock, FULL)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def _turn_away(sock: socket.socket, answer: bytes) -> None:
    """Answer, and close without a reset that would overtake the answer: what has come is read first."""
    try:
        sock.send(answer)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65_536)
    except OSError:
        pass  # it has gone, or has said nothing yet
    sock.close()
