"""Engine.IO probe: WebSockets that are no session yet, or never: one that is to take over a session that polls.

    ◀─ 2probe ── the session's poll is ended ── 3probe ─▶     ◀─ 5 ── the session lives on it from then on

Does: the few words of the move, with a deadline; turn a WebSocket away that comes too many.
Does not: move the session (engineio) or answer handshakes.
Called by: transports.engineio, reactor through Connection.
Never break: whatever happens to the probe, the session goes on polling unless it has been handed over.
"""

from __future__ import annotations

from typing import Protocol

from .. import engineio_protocol as engineio
from .. import errors, frames
from ..errors import Close
from ..frames import Event
from ..outbox import Limits
from ..outgoing import GONE, OPEN
from ..reactor import Reactor
from ..sections import ClientSettings
from ..tls import Descriptor
from .websocket import FramedConnection

CLOSE_SUPERFLUOUS = Close(errors.CLOSE_POLICY.code, "the session has a WebSocket")


class Engine(Protocol):
    """As much of engineio's as a probe looks at."""

    reactor: Reactor
    client: ClientSettings
    outbox: Limits


class Session(Protocol):
    """The session that is to be taken over."""

    state: int
    probing: bool
    probed: bool

    @property
    def engine(self) -> Engine: ...

    @property
    def name(self) -> str: ...

    @property
    def polls(self) -> bool: ...

    def release_poll(self) -> None:
        """The probe has been answered: end the poll that waits."""

    def take_over(self, probe: Probe, fd: int, reader: frames.FrameReader, rest: list[Event]) -> None:
        """Live on its WebSocket from now on. rest: what came on it behind the upgrade packet."""


class Superfluous(FramedConnection):
    """A WebSocket too many. Stock clients take a refused handshake for an error, and a close for what it is."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return "superfluous"

    def begin(self, head: bytes, early: bytes) -> None:
        super().begin(head, early)
        self.close(CLOSE_SUPERFLUOUS)

    def on_message(self, opcode: int, message: bytes) -> None:
        """Nobody hears it."""

    def on_due(self, now: float) -> None:
        self.abort()

    def next_due(self) -> float:
        return self.heard_at

    def on_gone(self) -> None:
        """Nothing was begun."""


class Probe(FramedConnection):
    """A WebSocket that is to take over a session: `2probe`, `3probe`, `5`."""

    __slots__ = ("_answered", "_due", "_session")

    def __init__(self, fd: Descriptor, session: Session, timeout_s: float) -> None:
        engine = session.engine
        super().__init__(fd, engine.reactor, engine.client, engine.outbox)
        self._session = session
        self._answered = False
        self._due = self.heard_at + timeout_s

    @property
    def name(self) -> str:
        return self._session.name

    def on_bytes(self, data: bytes) -> None:
        events = self._reader.feed(data)
        for at, (opcode, payload) in enumerate(events):
            packet = payload if opcode == frames.TEXT else b""
            if packet == b"2probe" and not self._answered:
                self._answered = True
                self.put(frames.encode_frame(frames.TEXT, engineio.ENCODED_PROBE_ANSWER))
                self._session.release_poll()
            elif packet == b"5" and self._answered:
                self._hand_over(events[at + 1 :])
                return
            elif opcode != frames.PONG:
                self.abort()
                return
        if self._reader.failed is not None:
            self.abort()

    def _hand_over(self, rest: list[Event]) -> None:
        self.flush()
        session = self._session
        if self.state != OPEN or self._outbox.size or session.state != OPEN or not session.polls:
            self.abort()  # it reads nothing, or comes too late
            return
        self.state = GONE
        self.reactor.release(self)
        session.take_over(self, self.fd, self._reader, rest)

    def on_due(self, now: float) -> None:
        self.abort()

    def next_due(self) -> float:
        return self._due

    def on_gone(self) -> None:
        self._session.probing = self._session.probed = False
