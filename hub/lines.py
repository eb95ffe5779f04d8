"""Lines: who is subscribed to what, and what is known of each channel.

Does: make a channel's line with its first audience and end it with its last; find audiences by terms; count.
Does not: move subscribers between groups, or deliver (fanout); ask Redis for values (snapshots).
Called by: fanout; subscribe and worker ask.
Never break: an audience has a slot on the board for as long as it has members.
"""

from __future__ import annotations

from collections.abc import Callable

from .audience import STALE, UNHEARD, Audience, Board, Line, Numbering, Terms, Update, WireForm
from .channels import Namespace


class Lines:
    """The channels of one worker that have subscribers."""

    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        self._board = board
        self._clock = clock
        self.by_channel: dict[str, Line] = {}
        self.marked: dict[str, Line] = {}
        """Those of which somebody wants marks."""
        self.numbering: Callable[[bytes], Numbering] = lambda body: Numbering()
        """What a body says of its place at the source; asked where somebody wants marks. Set by worker."""

    def __len__(self) -> int:
        """Channels that have a subscriber."""
        return len(self.by_channel)

    def audience(
        self,
        channel: str,
        namespace: Namespace,
        wire: WireForm,
        terms: Terms | None = None,
        newest: bytes | None = None,
    ) -> tuple[Line, Audience]:
        """The audience of a channel on these terms, made where there is none.

        newest: the newest body, for a channel of which nothing is known yet.
        """
        line = self.by_channel.get(channel)
        if line is None:
            line = Line(channel, namespace.mode == "latest", namespace.stale_ms / 1000)
            self.by_channel[channel] = line
        if line.newest is None and line.keeps:
            line.newest = newest
        audience = line.audiences.get(terms or wire)
        return line, audience if audience is not None else self.new(line, namespace, wire, terms)

    def new(self, line: Line, namespace: Namespace, wire: WireForm, terms: Terms | None) -> Audience:
        """The audience of a line on terms on which it has none."""
        # What a mailbox sends is never dropped for a slow reader: an acknowledgement "up to" counts on that.
        mode = "stream" if namespace.mailbox else namespace.mode
        channel, slot, pause_s = line.channel, self._board.take(), namespace.flush_ms / 1000
        if terms is None:
            audience = line.audiences[wire] = Audience(channel, wire, mode, slot, pause_s)
            return audience
        if terms.form.marks:
            if not line.marked:
                self.marked[line.channel] = line
                now = self._clock()
                if line.heard_at == UNHEARD:
                    line.heard_at = now
                line.stale = line.is_silent(now)
                line.seq, _, line.era = self.numbering(line.newest) if line.newest is not None else Numbering()
            line.marked += 1
        audience = Audience(channel, terms.form, "raw" if terms.raw else mode, slot, pause_s)
        audience.line, audience.view, audience.pace = line, terms.form, terms.pace
        audience.apart = terms.form.marks or terms.pace is not None
        audience.sent = line.stand
        if terms.pace is not None:
            audience.groups = terms.pace.groups
        line.audiences[terms] = audience
        return audience

    def drop(self, line: Line, audience: Audience) -> None:
        """Its last member has left."""
        view = audience.view
        del line.audiences[audience.wire if view is None else Terms(view, audience.mode == "raw", audience.pace)]
        if view is not None and view.marks:
            line.marked -= 1
            if not line.marked:
                del self.marked[line.channel]
                line.stale = False
        if not line.audiences:
            del self.by_channel[line.channel]
        self._board.retire(audience.slot)

    def silent(self, now: float) -> list[Line]:
        """Whose source has been silent for too long, and nobody has been told."""
        return [line for line in self.marked.values() if not line.stale and line.is_silent(now)]

    def newest(self, channel: str) -> bytes | None:
        """The newest body of a `latest` channel that has subscribers here, as far as it is known."""
        line = self.by_channel.get(channel)
        return line.newest if line is not None else None

    def told(self, channel: str, terms: Terms) -> bytes | None:
        """The newest value as one who comes on these terms is told it; None: nothing is known."""
        line = self.by_channel.get(channel)
        if line is None or line.newest is None:
            return None
        return terms.form.body(channel, Update(line.newest, state=STALE if line.stale else ""))

    def kept(self) -> list[str]:
        """The `latest` channels that have subscribers here."""
        return [channel for channel, line in self.by_channel.items() if line.keeps]

    def counts(self) -> dict[str, int]:
        """Subscribers by channel, in this worker."""
        return {channel: _size(line) for channel, line in self.by_channel.items()}

    def audience_size(self, channel: str) -> int:
        """Subscribers of one channel in this worker."""
        line = self.by_channel.get(channel)
        return _size(line) if line is not None else 0


def _size(line: Line) -> int:
    return sum(audience.size for audience in line.audiences.values())
