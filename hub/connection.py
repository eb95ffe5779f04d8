"""Connection: one client's socket on the plane.

Does: read, count life, keep the deadline, end in order, leave a line behind.
Does not: write (outgoing, from which it derives), or know what the bytes mean; a wire (transports/) derives from it and
fills in `on_bytes`, `on_deadline`, `on_gone`.
Called by: reactor (events, deadlines), fairness (put_off, read_again), session (close).
Its bytes come from `os.read`, or through a TlsSocket where its client speaks TLS.
Never break: nothing is called on a connection after `on_gone`.

States: OPEN → CLOSING (last words are queued, the peer's are awaited) → FINISHING (both said; what waits is written) →
GONE.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import termios
from collections.abc import Mapping

from . import errors, log
from .errors import CLOSE_SERVER_ERROR, Close
from .limits import Account
from .outbox import Limits
from .outgoing import CLOSING, FINISHING, GONE, OPEN, Outgoing
from .quotas import Meter
from .reactor import Reactor
from .tcp_info import tcp_traffic
from .tls import Descriptor, TlsSocket
from .wheel import NEVER

logger = logging.getLogger(__name__)

READ_BYTES = 4096
"""In one turn from one client. The smallest commands cost about 1 µs a byte: this bounds its hold on the loop."""
BUSY_READ_BYTES = 1024
"""The same once it was put off, for as long as it is taken for busy (fairness): in smaller pieces, between which others
have a turn."""
READ_S = 0.00001
"""What a read costs besides the work on what it brought; as fairness counts it."""
DEAF_S = 1.0
"""For a peer that broke the wire to read why, before it is cut."""
DEAF_BYTES = 65_536
"""What it may send meanwhile: behind that it is cut at once, as reading a flood to its end is what the flood is for."""
DEAF_READ_BYTES = 16_384
"""In one turn of these: nothing is done with them, and each turn costs as much as that of somebody who is heard."""
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


class Connection(Outgoing):
    """A socket that left its HTTP server. Plain data and no closures, so that it could be handed to another process."""

    __slots__ = (
        "account",
        "busy_at",
        "due",
        "heard_at",
        "messages",
        "meter",
        "opened_at",
        "read_bytes",
        "watched_until",
    )

    def __init__(self, fd: Descriptor, reactor: Reactor, limits: Limits) -> None:
        super().__init__(fd, reactor, limits)
        self.heard_at = reactor.clock()
        """When the client's last byte came, or waited to be read though it was time for one."""
        self.opened_at = self.heard_at
        self.messages = 0
        """Those that came from the client; a wire counts them."""
        self.due = NEVER
        self.read_bytes = READ_BYTES
        """At the most, in one turn."""
        self.meter: Meter | None = None
        """What it may have and send, where that is counted for each connection."""
        self.account: Account | None = None
        """Of its address."""
        self.busy_at = 0.0
        """When the time that was spent on what it sent is earned back; as fairness has it."""
        self.watched_until = 0.0
        """So long it is taken for busy, as it was; 0: it is not."""

    @property
    def kind(self) -> str:
        """The wire's name, one of tally.WIRES; '' for what is no client by itself, and is not counted."""
        return ""

    @property
    def usual_read_bytes(self) -> int:
        """At the most, in one turn, while it is not taken for busy."""
        return READ_BYTES

    @property
    def busy_read_bytes(self) -> int:
        """The same, once it was put off."""
        return BUSY_READ_BYTES

    @property
    def socket(self) -> Connection:
        """As of those who share one."""
        return self

    @property
    def held_up(self) -> bool:
        """Something of it waits that the hub does not read for now: so long its silence is the hub's doing."""
        return self._put_off and self.unread

    @property
    def unread(self) -> bool:
        """Something of it waits that the hub has not read yet, be it that the whole worker stood still."""
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
            self._deaf, self.read_bytes = DEAF_BYTES, DEAF_READ_BYTES
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
            if fairness.price:
                if self.state != GONE:
                    fairness.pay(self, now, READ_S + reactor.clock() - now + fairness.to_come_s)
            elif self.watched_until:
                self.calm()  # a reload has taken the rates away
        else:
            self._deaf -= len(data)
            if self._deaf <= 0:
                self.abort()

    def hear_early(self, data: bytes) -> None:
        """Bytes that were read before it was on the plane: as on_readable has those that it reads."""
        fairness = self.reactor.fairness
        now = self.heard_at = self.reactor.clock()
        fairness.to_come_s = 0.0
        self.receive(data)
        if fairness.price and self.state != GONE:
            fairness.pay(self, now, self.reactor.clock() - now + fairness.to_come_s)

    # What fairness calls.

    def calm(self) -> None:
        if not self._deaf:
            self.watched_until, self.read_bytes = 0.0, self.usual_read_bytes

    def put_off(self) -> None:
        """Read nothing until `read_again`."""
        self._put_off = True
        self.read_bytes = min(self.read_bytes, self.busy_read_bytes)
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

    def on_timer(self, now: float) -> None:
        if self.state != OPEN:
            self.abort()
            return
        if self.held_up:
            self.heard_at = now
        try:
            self.on_deadline(now)
        except Exception:
            self._fail()

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


def take_over(sock: socket.socket) -> int:
    """The descriptor of a socket, which forgets it; non-blocking from now on."""
    sock.setblocking(False)
    return sock.detach()
