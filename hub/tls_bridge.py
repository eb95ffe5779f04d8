"""TLS bridge: a plain descriptor that stands for a TLS client, for those who can't have its keys.

Does: make a pair of local sockets, give one away, and pass bytes between the other and the client until both have
ended.
Does not: know what the bytes mean, or who gets the descriptor: another worker (handover), or a tunnel.
Called by: transports.polling, tunnel.
Never break: bytes arrive as they were sent, in order. What waits for a side is one read of the other, which is not read
from meanwhile. An end is passed on behind what was said before it, and then the rest has `close_timeout_s`.

A plain socket can be given to the worker in which a session lives. One with TLS can't, as its keys are in this process;
so for as long as it lives its bytes go through here, at about the price of a proxy.
"""

from __future__ import annotations

import os
import socket

from .errors import Close
from .reactor import Reactor
from .tls import Descriptor, TlsSocket, shut_down
from .wheel import NEVER

READ_BYTES = 16_384
BUFFER_BYTES = 65_536
"""Of the local socket: what waits beyond waits where newer values can replace it."""


def plain_descriptor(reactor: Reactor, fd: Descriptor) -> int:
    """The descriptor of a plain client, or one that stands for a TLS client; the caller's, and open as long as it is.

    Raises OSError where there are no descriptors left; then the client is gone.
    """
    if not isinstance(fd, TlsSocket):
        return fd
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        fd.abandon()
        raise
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        sock.setblocking(False)
    near, far = _End(reactor, fd), _End(reactor, ours.detach())
    near.other, far.other = far, near
    reactor.adopt(near)
    reactor.adopt(far)
    return theirs.detach()


class _End:
    """One of the two sides."""

    __slots__ = ("_ended", "_gone", "_reactor", "_shut", "_tls", "_waiting", "due", "fd", "other")

    other: _End

    def __init__(self, reactor: Reactor, fd: Descriptor) -> None:
        self._reactor = reactor
        self._tls = fd if isinstance(fd, TlsSocket) else None
        self.fd = fd.fd if isinstance(fd, TlsSocket) else fd
        self.due = NEVER
        self._waiting = b""
        """What its socket has not taken yet."""
        self._ended = False
        """Its peer says nothing more."""
        self._shut = False
        """It has been told that nothing more comes."""
        self._gone = False

    # What the plane calls.

    def on_readable(self) -> None:
        if self._gone or self.other._waiting:
            return
        if self._ended:
            self._leave()  # reading is not waited for any more: its socket was closed at the other end
            return
        try:
            data = os.read(self.fd, READ_BYTES) if self._tls is None else self._tls.read(READ_BYTES)
        except BlockingIOError:
            self._watch()
            return
        except OSError:
            self._leave()
            return
        if data:
            self.other._send(data)
            self._read_on()
        else:
            self._ended = True
            self._settle()

    def on_writable(self) -> None:
        if self._tls is not None and self._tls.read_needs_write:
            self._tls.read_needs_write = False
            self.on_readable()
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self._send(waiting)
        if not self._waiting:
            self._settle()
            self.other._read_on()

    def on_timer(self, now: float) -> None:
        self.abort()

    def close(self, close: Close) -> None:
        """The client is not told why: where a frame begins is not known here."""
        self.abort()

    def abort(self) -> None:
        """End both sides."""
        for end in (self, self.other):
            end._let_go()

    def flush(self) -> None:
        raise NotImplementedError  # it never asks for it

    # Parts.

    def _send(self, data: bytes) -> None:
        if self._gone:
            return  # nobody is there to hear it
        try:
            written = os.write(self.fd, data) if self._tls is None else self._tls.write(data)
        except BlockingIOError:
            written = 0
        except OSError:
            self._leave()
            return
        if written < len(data):
            self._waiting = data[written:]
            self._watch()
            self.other._watch()

    def _read_on(self) -> None:
        if not self._gone and self._tls is not None and self._tls.pending:
            self._reactor.read_on(self)

    def _watch(self) -> None:
        """Reading waits for the other side's writing, and may itself have to write first (TLS)."""
        if not self._gone:
            stuck = self._tls is not None and self._tls.read_needs_write
            reads = not (self._ended or self.other._waiting or stuck)
            self._reactor.watch_writes(self, bool(self._waiting) or stuck, reads=reads)

    def _leave(self) -> None:
        """Its socket is of no use any more."""
        self._let_go()
        self._settle()

    def _let_go(self) -> None:
        if not self._gone:
            self._gone = self._ended = True
            self._waiting = b""
            if self._tls is not None:
                self._tls.leave()
            self._reactor.bury(self)

    def _settle(self) -> None:
        """One side has ended, or has written what waited: pass the end on, and go once both have ended."""
        ends = (self, self.other)
        if all(end._ended and not end._waiting for end in ends):
            self.abort()
            return
        for end in ends:
            if end._gone:
                continue
            if end.other._ended:
                if end.due == NEVER:
                    self._reactor.schedule(end, self._reactor.clock() + self._reactor.close_timeout_s)
                if not end._waiting:
                    end._shut_down()
            end._watch()

    def _shut_down(self) -> None:
        """All is written: say so, once."""
        if self._shut:
            return
        self._shut = True
        if self._tls is not None:
            self._tls.say_end()
        shut_down(self.fd)
