"""Outgoing: what one client is sent, on its way into the client's socket.

Does: keep what the socket did not take, write it once per turn and as soon as there is room, tell the worker's backlog.
Does not: read, close or keep time: connection derives from this. What waits, and what is conflated, is the outbox's.
Called by: reactor (flush, on_writable), fanout and session (put, offer), sweep (write_past, torn, broken).
Its bytes go through `os.write`, or through a TlsSocket where its client speaks TLS.
Never break: every byte leaves through the outbox in the order it was put, so a frame is never torn by another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from .audience import ELSEWHERE, Audience, Group, Volatile, WireForm
from .errors import CLOSE_NORMAL, CLOSE_SLOW, CLOSE_WRITE_ERROR, Close
from .outbox import Limits, Outbox, Verdict
from .reactor import Reactor
from .tap import Tap
from .tls import Descriptor, TlsSocket, shut_down

TAKE_BYTES = 65_536
"""Of a backlog, so much is joined for one write; what is behind it can still be conflated."""
RECORD_BYTES = 16_384
"""The same over TLS: what one record holds (RFC 8446 §5.1)."""
OPEN, CLOSING, FINISHING, GONE = range(4)
"""The states of a connection; its room says what they mean."""
QUEUED, SLOW = Verdict.QUEUED, Verdict.SLOW
"""Looked up once: of an enum each look-up is a call."""


class Outgoing:
    """The part of a connection that is written to."""

    __slots__ = (
        "_armed",
        "_blocked",
        "_deaf",
        "_dropped",
        "_outbox",
        "_put_off",
        "_tls",
        "closed_with",
        "fd",
        "group",
        "place",
        "reactor",
        "state",
        "trace",
    )

    wire: WireForm
    """The wire's own slot: how publications look on it."""
    due: int
    """When its deadline is, as the wheel counts time."""

    def __init__(self, fd: Descriptor, reactor: Reactor, limits: Limits) -> None:
        self._tls: TlsSocket | None = None
        if isinstance(fd, TlsSocket):
            self._tls, fd = fd, fd.fd
        self.fd = fd
        self.reactor = reactor
        self.state = OPEN
        self.closed_with: Close = CLOSE_NORMAL
        self.group: Group | None = None
        self.place = ELSEWHERE
        self.trace: Tap | None = None
        """Somebody looks at its frames: so long each of them goes by the outbox, and none past it."""
        self._outbox = Outbox(limits)
        self._armed = False
        """The reactor flushes it at the end of this turn."""
        self._blocked = False
        """The socket took no more; the reactor says when it does."""
        self._dropped = 0
        self._put_off = False
        """It is not read for now."""
        self._deaf = 0
        """What the peer sends is read and forgotten, up to so many bytes; 0: it is heard."""

    @property
    def open(self) -> bool:
        return self.state == OPEN

    @property
    def direct(self) -> bool:
        return self.state == OPEN and not self._blocked and self.trace is None

    @property
    def sealed(self) -> bool:
        return self._tls is not None

    @property
    def ready(self) -> bool:
        """It would take more at once."""
        return self.state == OPEN and not self._blocked

    @property
    def waiting_bytes(self) -> int:
        """In its outbox."""
        return self._outbox.size

    # What a connection fills in.

    def words(self, frame: bytes) -> Iterable[bytes]:
        """What frames of ours say, for a trace; a wire with frames of its own takes them apart."""
        return (frame,)

    def on_caught_up(self, dropped: int) -> None:
        """The backlog is gone; `dropped` messages of `none` channels were not queued meanwhile."""

    def on_readable(self) -> None:
        """Bytes have come, or TLS has to read before it can write."""
        raise NotImplementedError

    def on_timer(self, now: float) -> None:
        """Its deadline has come."""
        raise NotImplementedError

    def close(self, close: Close) -> None:
        """End it in order."""
        raise NotImplementedError

    def abort(self) -> None:
        """Go now; what is unsent is lost."""
        raise NotImplementedError

    def note(self, event: str, **fields: object) -> None:
        """One line at debug about an event of this client's life."""
        raise NotImplementedError

    def _fail(self) -> None:
        """A fault of ours, while it was being written to."""
        raise NotImplementedError

    # What is put in.

    def put(self, frame: bytes) -> None:
        """Queue one frame as it goes on the wire; written once per loop turn with all others.

        Never waits, never raises.
        """
        if self.state == OPEN:
            if self.trace is not None:
                self.trace.sent(self.words(frame))
            self._queued(self._outbox.put(frame))

    def offer(self, audience: Audience, frame: bytes) -> None:
        """Queue a publication's frame, by the rules for slow readers; as `put`."""
        if self.state == OPEN and (type(frame) is not Volatile or self.ready):
            if self.trace is not None:
                self.trace.sent(self.words(frame), audience.channel)
            self._queued(self._outbox.offer(frame, audience.mode, audience))

    def left(self, *audiences: Audience) -> None:
        """Channels were left: what waits of them is not replaced by newer values any more."""
        self._outbox.unkey(*audiences)

    # What the reactor calls.

    def on_writable(self) -> None:
        if self._tls is not None and self._tls.read_needs_write:
            self._tls.read_needs_write = False
            self._wait()
            self.on_readable()
            if self.state == GONE:
                return
        try:
            self._drain()
        except Exception:
            self._fail()
        if self._put_off and self.state != GONE:
            self._wait()  # what the epoll says of one that is not read, it says once

    def _drain(self) -> None:
        outbox = self._outbox
        while outbox.size:
            if self._tls is not None:
                # What TLS could not write is sealed already: it has to be the same bytes when it is tried again.
                if not self._write(outbox.take(RECORD_BYTES)):
                    return
                continue
            # Not taken before it is written: a slow socket takes some KB of it, and the rest would be old when it does.
            data = outbox.front(TAKE_BYTES)
            written = self._send(data)
            if written < 0:
                return
            outbox.written(written)
            if written < len(data):
                return self._account()
        self._blocked = False
        self.note("drained")
        self._account()
        self._wait()
        self.reactor.batches.replace(self)
        self._all_written()

    def flush(self) -> None:
        """Write what waits, and with it what the batch of this turn holds for this connection, in one call."""
        self._armed = False
        try:
            self._flush()
        except Exception:
            self._fail()

    def _flush(self) -> None:
        if self._blocked or self.state == GONE:
            return
        outbox = self._outbox
        while not self._blocked:
            data = outbox.take(TAKE_BYTES)
            if not outbox.size and self.group is not None:
                data += self.reactor.batches.take_for(self)
            if data and not self._write(data):
                return
            if not outbox.size:
                break
        if not outbox.size:
            self._all_written()

    # What the sweep calls, for a direct write to a sealed connection or after one of its own.

    def write_past(self, data: bytes) -> int:
        """Write past the outbox, while direct: how much was taken, -1 if the peer is gone."""
        try:
            return os.write(self.fd, data) if self._tls is None else self._write_tls(self._tls, data)
        except BlockingIOError:
            return 0
        except OSError:
            return -1

    def torn(self, rest: bytes) -> None:
        """The socket took a part only, or nothing: `rest` goes first."""
        self._outbox.put_back(rest)
        self._block()

    def broken(self) -> None:
        """The write failed: the peer is gone."""
        if self.state == OPEN:
            self.closed_with = CLOSE_WRITE_ERROR
        self.abort()

    def _write(self, data: bytes) -> bool:
        """Write `data` and keep what the socket does not take. False: no more can be written now."""
        written = self._send(data)
        if 0 <= written < len(data):
            self.torn(data[written:])
        return written == len(data)

    def _send(self, data: bytes) -> int:
        """How many bytes the socket took; -1: the peer is gone, and so is this."""
        try:
            # As `write_past`, whose call would be a part of what a pong costs.
            return os.write(self.fd, data) if self._tls is None else self._write_tls(self._tls, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.broken()
            return -1

    def _write_tls(self, tls: TlsSocket, data: bytes) -> int:
        written = tls.write(data)
        if tls.write_needs_read:
            self._wait()
        return written

    def _wait(self) -> None:
        """Have the plane wait for what it takes to go on: TLS may have to write before it can read, and the like."""
        tls, writes = self._tls, self._blocked
        if tls is None:
            self.reactor.watch_writes(self, writes, reads=not self._put_off)
        else:
            # What can't be used is not waited for: the epoll would say it again and again.
            writes = tls.read_needs_write or (writes and not tls.write_needs_read)
            self.reactor.watch_writes(self, writes, reads=not (tls.read_needs_write or self._put_off))

    def _all_written(self) -> None:
        if self.state == FINISHING:
            self.abort()
        elif self._deaf:
            if self._tls is not None:
                self._tls.say_end()
            shut_down(self.fd)
        elif self._dropped and self.state == OPEN:
            dropped, self._dropped = self._dropped, 0
            self.on_caught_up(dropped)

    def _block(self) -> None:
        if not self._blocked:
            self._blocked = True
            self.note("blocked", waiting=self._outbox.size)
            self._wait()
            self.reactor.batches.replace(self)
        self._account()

    def _queued(self, verdict: Verdict) -> None:
        if verdict is SLOW:
            # Not gone at once: that would change the group while the sweep walks it.
            self.too_slow()
            return
        if verdict is not QUEUED:
            self.reactor.backlog.count(verdict)
            self._dropped += verdict is Verdict.DROPPED
        if self._blocked:
            self._account()
        else:
            self._arm()

    def too_slow(self) -> None:
        """End it in order, as a reader that is too slow."""
        if self.state == OPEN:
            self.reactor.backlog.slow += 1
            self.close(CLOSE_SLOW)

    def _account(self) -> None:
        """Tell the worker's backlog; over its bound the largest have to go, which may be this one."""
        backlog = self.reactor.backlog
        if backlog.holds(self, self._outbox.size):
            for connection in backlog.largest():
                connection.shed()

    def shed(self) -> None:
        """Go now, to make room for the others: what waits is what there is too much of,
        so not even a close frame could pass.
        """
        self.reactor.backlog.slow += 1
        self.closed_with = CLOSE_SLOW
        self.abort()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self.reactor.arm(self)
