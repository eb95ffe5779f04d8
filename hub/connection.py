"""Connection: one client's socket on the plane.

Does: read, write, keep what the socket did not take, count life, end in order.
Does not: know what the bytes mean; a wire (transports/) derives from it and fills in `on_bytes`, `on_deadline`,
`on_gone`.
Called by: reactor (events, flush, deadlines), fairness (put_off, read_again), fanout and session (put).
Its bytes go through `os.read` and `os.write`, or through a TlsSocket where its client speaks TLS.
Never break: every byte leaves through the outbox in the order it was put, so a frame is never torn by another one;
nothing is called on a connection after `on_gone`.

States: OPEN → CLOSING (last words are queued, the peer's are awaited) → FINISHING (both said; what waits is written) →
GONE.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import termios
from collections.abc import Iterable, Mapping

from . import errors, log
from .audience import ELSEWHERE, Audience, Group, Volatile, WireForm
from .errors import CLOSE_NORMAL, CLOSE_SERVER_ERROR, CLOSE_SLOW, CLOSE_WRITE_ERROR, Close
from .fairness import BUSY_S, DEAR, MOST_OWED_S, MOST_OWN_S, OWED_S, Fairness
from .limits import Account
from .outbox import Limits, Outbox, Verdict
from .quotas import Meter
from .reactor import Reactor
from .tap import Tap
from .tcp_info import tcp_traffic
from .tls import Descriptor, TlsSocket, shut_down
from .wheel import NEVER

logger = logging.getLogger(__name__)

READ_BYTES = 4096
"""In one turn from one client. The smallest commands cost about 1 µs a byte: this bounds its hold on the loop."""
BUSY_READ_BYTES = 1024
"""The same once it was put off (fairness): in smaller pieces, between which others have a turn."""
READ_S = 0.00001
"""What a read costs besides the work on what it brought; as fairness counts it."""
DEAF_S = 1.0
"""For a peer that broke the wire to read why, before it is cut."""
DEAF_BYTES = 65_536
"""What it may send meanwhile: behind that it is cut at once, as reading a flood to its end is what the flood is for."""
OFFENCES = frozenset(
    close.code
    for close in (
        errors.CLOSE_PROTOCOL_ERROR,
        errors.CLOSE_UNSUPPORTED,
        errors.CLOSE_INVALID_DATA,
        errors.CLOSE_POLICY,
        errors.CLOSE_TOO_BIG,
        errors.CLOSE_TOO_MANY_REQUESTS,
        errors.CLOSE_BAD_REQUEST,
        errors.CLOSE_CHANNEL_LIMIT,
    )
)
"""Ends that were the client's own doing, and cost the hub some work: they count against its address's handshakes."""
TAKE_BYTES = 65_536
"""Of a backlog, so much is joined for one write; what is behind it can still be conflated."""
RECORD_BYTES = 16_384
"""The same over TLS: what one record holds (RFC 8446 §5.1)."""
OPEN, CLOSING, FINISHING, GONE = range(4)
QUEUED, SLOW = Verdict.QUEUED, Verdict.SLOW
"""Looked up once: of an enum each look-up is a call."""


class Connection:
    """A socket that left its HTTP server. Plain data and no closures, so that it could be handed to another process."""

    __slots__ = (
        "_armed",
        "_blocked",
        "_deaf",
        "_dropped",
        "_outbox",
        "_put_off",
        "_tls",
        "account",
        "busy_at",
        "closed_with",
        "due",
        "fd",
        "group",
        "heard_at",
        "messages",
        "meter",
        "opened_at",
        "place",
        "reactor",
        "read_bytes",
        "state",
        "trace",
        "watched_until",
    )

    wire: WireForm
    """The wire's own slot: how publications look on it."""

    def __init__(self, fd: Descriptor, reactor: Reactor, limits: Limits) -> None:
        self._tls: TlsSocket | None = None
        if isinstance(fd, TlsSocket):
            self._tls, fd = fd, fd.fd
        self.fd = fd
        self.reactor = reactor
        self.state = OPEN
        self.heard_at = reactor.clock()
        """When the client's last byte came, or waited to be read though it was time for one."""
        self.opened_at = self.heard_at
        self.messages = 0
        """Those that came from the client; a wire counts them."""
        self.closed_with: Close = CLOSE_NORMAL
        self.due = NEVER
        self.group: Group | None = None
        self.place = ELSEWHERE
        self.read_bytes = READ_BYTES
        """At the most, in one turn."""
        self.trace: Tap | None = None
        """Somebody looks at its frames: so long each of them goes by the outbox, and none past it."""
        self.meter: Meter | None = None
        """What it may have and send, where that is counted for each connection."""
        self.account: Account | None = None
        """Of its address."""
        self.busy_at = 0.0
        """When the time that was spent on what it sent is earned back; as fairness has it."""
        self.watched_until = 0.0
        """So long it is taken for busy, as it was."""
        self._put_off = False
        """It is not read for now."""
        self._outbox = Outbox(limits)
        self._armed = False
        """The reactor flushes it at the end of this turn."""
        self._blocked = False
        """The socket took no more; the reactor says when it does."""
        self._dropped = 0
        self._deaf = 0
        """What the peer sends is read and forgotten, up to so many bytes; 0: it is heard."""

    @property
    def kind(self) -> str:
        """The wire's name, one of tally.WIRES; '' for what is no client by itself, and is not counted."""
        return ""

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
    def socket(self) -> Connection:
        """As of those who share one."""
        return self

    @property
    def waiting_bytes(self) -> int:
        """In its outbox."""
        return self._outbox.size

    @property
    def unread(self) -> bool:
        """Something of it waits that the hub does not read for now: so long its silence is the hub's doing."""
        if not self._put_off:
            return False
        if self._tls is not None and self._tls.pending:
            return True
        return any(fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4)))

    # What a wire fills in.

    def on_bytes(self, data: bytes) -> None:
        """Bytes came; never empty."""
        raise NotImplementedError

    def on_deadline(self, now: float) -> None:
        """The deadline set by `reactor.schedule` has come, while OPEN."""
        raise NotImplementedError

    def on_gone(self) -> None:
        """The connection is over; `closed_with` says why. Called once, last."""
        raise NotImplementedError

    def about(self) -> Mapping[str, object]:
        """Who this is, for the log: wire, client, user, address. Empty: what happens to it is not worth a line."""
        return {}

    def words(self, frame: bytes) -> Iterable[bytes]:
        """What frames of ours say, for a trace; a wire with frames of its own takes them apart."""
        return (frame,)

    def on_caught_up(self, dropped: int) -> None:
        """The backlog is gone; `dropped` messages of `none` channels were not queued meanwhile."""

    def last_words(self, close: Close) -> bytes:
        """The wire's own way to say why it ends, b'' if it has none."""
        raise NotImplementedError

    # Doors.

    def enter(self) -> None:
        """Join the plane."""
        self.reactor.adopt(self)
        if self.kind:
            self.reactor.tally.enter(self.kind)
        self.note("opened")

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

    def close(self, close: Close) -> None:
        """Say the last words, then go when the peer has ended too, after `reactor.close_timeout_s` at the latest."""
        # What is just being sent to everybody comes before the last words; if that is too much, they have been said.
        self.reactor.batches.serve_now(self)
        if self.state != OPEN:
            return
        self._outbox.put_last(self.last_words(close))
        self._arm()
        self.closed_with = close
        self.state = CLOSING
        if self.meter is not None and close.code in OFFENCES:
            self.meter.offend(self.reactor.clock())
        self.note("closing", code=close.code, reason=close.reason)
        if self.trace is not None:
            self.trace.closing(close)
        self.reactor.batches.forget(self)
        self.reactor.schedule(self, self.reactor.clock() + self.reactor.close_timeout_s)

    def stop_listening(self) -> None:
        """What the peer still sends is of no interest: end our side once the last words are written, soon the rest.

        Not at once: unread bytes would make it a reset, which can overtake the last words.
        """
        if self.state == CLOSING:
            self._deaf = DEAF_BYTES
            self.reactor.schedule(self, self.reactor.clock() + DEAF_S)

    def finish(self) -> None:
        """The peer has ended too: go as soon as everything is written."""
        if self.state in (OPEN, CLOSING):
            self.state = FINISHING
            self._arm()

    def abort(self) -> None:
        """Go now; what is unsent is lost."""
        if self.state == GONE:
            return
        self.state = GONE
        if self.kind:
            self.reactor.tally.leave(self.kind, self.closed_with.code)
        if self.trace is not None:
            self.trace.gone()
        self.reactor.batches.forget(self)
        self._outbox.clear()
        self.reactor.backlog.holds(self, 0)
        if self._tls is not None:
            self._tls.leave()
        self.reactor.bury(self)
        try:
            try:
                self._tell_end()
            finally:
                self.on_gone()
        except Exception:
            # The border of one connection: a fault in its own clean-up must not stop the sweep that ended it.
            logger.exception("a connection's end failed")

    def note(self, event: str, **fields: object) -> None:
        """One line at debug about an event of this client's life; nothing of what it sends or is sent."""
        if logger.isEnabledFor(logging.DEBUG) and (about := self.about()):
            log.event(logger, logging.DEBUG, event, **about, **fields)

    def _tell_end(self) -> None:
        """The one line that each client leaves behind."""
        if not logger.isEnabledFor(logging.INFO) or not (about := self.about()) or log.held_back(logger, "closed"):
            return
        fields: dict[str, object] = {
            "code": self.closed_with.code,
            "reason": self.closed_with.reason,
            "seconds": round(self.reactor.clock() - self.opened_at, 1),
            "messages": self.messages,
        }
        if (traffic := self.traffic()) is not None:
            fields["bytes_in"], fields["bytes_out"] = traffic
        log.event(logger, logging.INFO, "closed", **about, **fields)

    def traffic(self) -> tuple[int, int] | None:
        """Bytes from the client and to it since its TCP connection was opened, as the kernel has counted them.

        Not counted here: the sweep knows descriptors only, and would have to look up whose each is. None where the
        kernel has no count, as of a Unix socket.
        """
        return tcp_traffic(self.fd)

    # What the reactor calls.

    def on_readable(self) -> None:
        if self._put_off:
            return  # both directions have ended, which is seen when it is read again
        try:
            data = os.read(self.fd, self.read_bytes) if self._tls is None else self._read_tls(self._tls)
        except BlockingIOError:
            return
        except OSError:
            # Reset by the peer, or declared dead by TCP_USER_TIMEOUT: an ordinary end.
            data = b""
        if not data:
            self.abort()
        elif not self._deaf:
            reactor = self.reactor
            fairness = reactor.fairness
            now = self.heard_at = reactor.clock()
            fairness.to_come_s = 0.0
            self.receive(data)
            if fairness.price and self.state != GONE:
                self._pay(now, READ_S + reactor.clock() - now + fairness.to_come_s, fairness)
        else:
            self._deaf -= len(data)
            if self._deaf <= 0:
                self.abort()

    def _pay(self, now: float, work_s: float, fairness: Fairness) -> None:
        """What one read brought has taken so much of the loop's time."""
        price, account = fairness.price, self.account
        if account is not None:
            owed_until = account.busy_at
            # By what was owed before: the first who asks for much is no reason for a price that is meant for many.
            if owed_until > now + OWED_S:
                price *= DEAR
            owed_until = (owed_until if owed_until > now else now) + work_s * fairness.ip_price
            account.busy_at = min(owed_until, now + MOST_OWED_S)
        busy_at = self.busy_at
        busy_at = (busy_at if busy_at > now else now) + work_s * price
        self.busy_at = busy_at = min(busy_at, now + MOST_OWN_S)
        if busy_at > now + BUSY_S or self.watched_until > now:
            fairness.weigh(self, now, work_s)

    # What fairness calls.

    def put_off(self) -> None:
        """Read nothing until `read_again`."""
        self._put_off = True
        self.read_bytes = min(self.read_bytes, BUSY_READ_BYTES)
        self._wait()

    def read_again(self) -> None:
        """One read, and whenever something comes from then on; unless it is put off again by that."""
        if self.state != GONE:
            self._put_off = False
            self.on_readable()
            if self.state != GONE and not self._put_off:
                self._wait()

    def _read_tls(self, tls: TlsSocket) -> bytes:
        """As os.read does it."""
        if tls.write_needs_read:
            tls.write_needs_read = False
            self._wait()
            self.on_writable()
            if self.state == GONE:
                raise BlockingIOError
        try:
            data = tls.read(self.read_bytes)
        except BlockingIOError:
            if tls.read_needs_write:
                self._wait()
            raise
        if tls.pending and not self._put_off:
            self.reactor.read_on(self)
        return data

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

    def on_timer(self, now: float) -> None:
        if self.state != OPEN:
            self.abort()
            return
        if self._put_off and self.unread:
            self.heard_at = now
        try:
            self.on_deadline(now)
        except Exception:
            self._fail()

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

    def receive(self, data: bytes) -> None:
        """Handle bytes, wherever they were read."""
        try:
            self.on_bytes(data)
        except Exception:
            self._fail()

    def _fail(self) -> None:
        # The border of one connection: a fault of ours ends this client, with a trace, and no other.
        logger.exception("a connection failed")
        self.close(CLOSE_SERVER_ERROR)

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self.reactor.arm(self)


def take_over(sock: socket.socket) -> int:
    """The descriptor of a socket, which forgets it; non-blocking from now on."""
    sock.setblocking(False)
    return sock.detach()
