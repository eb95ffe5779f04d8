"""SSE stamps: the one cursor of an event stream with several `stream` channels.

Does: know where such a connection stands until it is in step with its group; queue the cursor behind what it claims.
Does not: let anybody into channels (sse derives from this), or word events and cursors (eventstream).
Called by: transports.sse, sweep (StampedForm.stamp).
Never break: a cursor that is written never claims a publication which is not in front of it in the stream.

How positions are kept: see the head of eventstream. A connection with several `stream` channels keeps its own until it
has joined them all (`_positions`); so long it is never `direct`, so that each frame passes by. From then on it is in
step with its group: it knows nothing of where it is, and each batch ends with the group's cursor (StampedForm).
"""

from __future__ import annotations

from .. import eventstream
from ..audience import Audience, Group
from ..channels import Namespace
from ..connection import Connection
from ..eventstream import PlainForm
from ..outbox import Limits
from ..outgoing import OPEN
from ..position import Position
from ..reactor import Reactor
from ..tls import Descriptor


class StampedForm(PlainForm):
    """Wire form of clients with several `stream` channels: a batch ends with one cursor over all of them.

    An audience's `position` is where everybody of it who is in step stands: behind the last batch, or behind this one
    as soon as any of its groups has been stamped in it.
    """

    def stamp(self, group: Group) -> bytes:
        """The cursor behind the group's part of the batch that is being swept; b'' if nobody in it is in step, or
        nobody has moved.
        """
        positions: list[tuple[str, Position]] = []
        moved = False
        for audience in group.audiences:
            if audience.mode != "stream":
                continue
            if audience.position is None:
                return b""
            if audience.frames and (found := eventstream.numbered(audience.frames[-1])):
                moved = True
                audience.position = audience.position._replace(offset=found[1])
            positions.append((audience.channel, audience.position))
        return eventstream.encode_stamp(tuple(positions)) if moved else b""


STAMPED = StampedForm()
STAMP = b"id: "
"""How it begins. Publications of STAMPED have no id."""


class StampedConnection(Connection):
    """The part of an event stream that has to do with its cursor."""

    __slots__ = ("_channels", "_positions", "_stamp", "_streams", "_unstamped")

    def __init__(self, fd: Descriptor, reactor: Reactor, limits: Limits) -> None:
        super().__init__(fd, reactor, limits)
        self._channels: dict[str, Namespace] = {}
        """Those that it is in."""
        self._positions: dict[str, Position] | None = None
        """Of its `stream` channels, where it has several and is not in step: behind what has been queued."""
        self._unstamped = False
        """They have moved since the last cursor."""
        self._streams = 0
        """So many `stream` channels are asked for."""
        self._stamp = b""
        """The group's cursor, to be queued behind what is queued now; a slow reader needs none but the last."""

    @property
    def direct(self) -> bool:
        return self._positions is None and self.state == OPEN and not self._blocked and self.trace is None

    def put(self, frame: bytes) -> None:
        if self._streams and frame.startswith(STAMP):
            self._keep(frame)
            return
        Connection.put(self, frame)
        if self._positions is not None:
            self._note(frame)

    def offer(self, audience: Audience, frame: bytes) -> None:
        Connection.offer(self, audience, frame)
        if self._positions is not None:
            self._note(frame)

    def _keep(self, stamp: bytes) -> None:
        """The group's cursor, behind the group's frames; of one that is not in step it says too much, or too little."""
        if self._positions is None and self.state == OPEN:
            self._stamp = stamp
            self._arm()

    def _note(self, frame: bytes) -> None:
        """A frame was queued, unless it was too much: then the connection is not OPEN any more."""
        found = eventstream.numbered(frame) if self.state == OPEN else None
        if found is not None and self._positions is not None:
            channel, offset = found
            if channel in self._channels:
                # In an audience all publications are of one epoch; streams takes everybody out before the next one.
                self._moved(channel, Position(self._positions[channel].epoch, offset))

    def _moved(self, channel: str, position: Position) -> None:
        assert self._positions is not None
        self._positions[channel] = position
        if not self._unstamped:
            self._unstamped = True
            self._arm()

    def _take_stamp(self) -> bytes:
        """The cursor to be queued behind what is queued now; b'' if the last one still holds."""
        if self._unstamped and self._positions is not None:
            self._unstamped = False
            return eventstream.encode_stamp(tuple(self._positions.items()))
        stamp, self._stamp = self._stamp, b""
        return stamp

    def _write_stamp(self) -> None:
        if stamp := self._take_stamp():
            Connection.put(self, stamp)
        if self._positions is not None and self.state == OPEN:
            self._fall_in(self._positions)

    def _fall_in(self, positions: dict[str, Position]) -> None:
        """Be in step with the group, once that has all our channels: we have what all its members have.

        The fan-out lets us in between two batches, behind the one in which we joined; so we stand where the members of
        each audience stand, or behind the batch that is being swept if we have had our part of it.
        """
        audiences = [one for one in self.group.audiences if one.mode == "stream"] if self.group is not None else []
        if len(audiences) < self._streams:
            return
        for audience in audiences:
            own, known = positions[audience.channel], audience.position
            if known is None or known.epoch != own.epoch or known.offset < own.offset:
                audience.position = own
        self._positions = None
        self.reactor.batches.replace(self)

    def flush(self) -> None:
        if self._streams and not self._blocked:
            self._write_stamp()
        Connection.flush(self)

    def on_writable(self) -> None:
        # Once for each time that the socket takes something: one that is always behind gets its cursors all the same.
        if self._streams:
            self._write_stamp()
        Connection.on_writable(self)
