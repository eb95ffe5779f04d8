"""Resume: how far a Socket.IO client got in all its channels, from the one mark that it brings back.

Does: number what a wire form sends, remember that for a while, and say from a client's last mark which publications of
each of its channels it has not received; the shape of what is kept of a client.
Does not: send, store (recall) or read channels.
Called by: transports.socketio.
Never break: a position that `judge` gives is one up to which the client has everything. Where that is not certain there
is none, and the client starts anew.

A stock client reports one text: the last argument of the last event that it was sent (its "offset"). All subscribers of
a channel get the same bytes, so that mark can only name its own channel's offset, and the batch of the fan-out in which
it went. A client gets batches in order, so of every other channel it has what went in earlier batches, and not what
went in later ones. Within one batch the order is not known; but what went before a ping that the client has answered
has come.

Batches are numbered in steps of STEP. In between is what one client was sent by itself: publications that it had
missed, and an application's events, whose marks name no channel. Everything of the batches before them had been put.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import orjson

MOST = 65_536
"""Publications that one form remembers, of all channels: 30 s of 2,000 a second."""
KEPT = 2048
"""Of them, in one client's record."""
STEP = 65_536
"""From one batch to the next; so many things, but two, may one client be sent in between that have to be told apart."""
NAMES = 8
"""Ids that one client has had, in its record."""
SETTLING = 2
"""Batches that may not be written yet at any time: one gathers, one is being swept."""


class Mark(NamedTuple):
    """What stands behind a publication: who sent it, in which batch, and where its channel was then."""

    form: str
    batch: int
    offset: int
    channel: str

    def __str__(self) -> str:
        """'9f3a61c0.120.17.chat:room'"""
        return f"{self.form}.{self.batch}.{self.offset}.{self.channel}"


def parse_mark(text: str) -> Mark | None:
    """None for what is no mark."""
    form, _, rest = text.partition(".")
    batch, _, rest = rest.partition(".")
    offset, _, channel = rest.partition(".")
    if not (batch.isascii() and batch.isdigit() and offset.isascii() and offset.isdigit()):
        return None
    return Mark(form, int(batch), int(offset), channel) if len(text) < 400 else None


class Deliveries:
    """What one wire form of one worker has sent lately."""

    def __init__(self, form: str, turn: Callable[[], int], most: int = MOST) -> None:
        """form: a name that no other has. turn: the number of the batch that is being gathered, counted up by STEP."""
        self.form = form
        self.turn = turn
        self.count = 0
        """Publications sent, since the start."""
        self._most = most
        self._batches: dict[str, deque[int]] = {}
        self._tops: dict[str, int] = {}
        """By channel, the offset of the last of its `_batches`."""
        self._order: deque[tuple[str, int]] = deque()

    def note(self, channel: str, offset: int) -> Mark:
        """A publication goes out to all subscribers."""
        batch = self.turn()
        if self._tops.get(channel) != offset - 1:
            self._batches[channel] = deque()  # the first, or of another life of the channel
        self._batches[channel].append(batch)
        self._tops[channel] = offset
        self._order.append((channel, offset))
        self.count += 1
        if len(self._order) > self._most:
            self._forget_oldest()
        return Mark(self.form, batch, offset, channel)

    def passing(self, channel: str) -> Mark:
        """The mark of a publication to all subscribers that has no number."""
        return Mark(self.form, self.turn(), 0, channel)

    def alone(self, count: int, channel: str = "", offset: int = 0) -> Mark:
        """The mark of what goes to one client by itself, now: behind all batches before, and `count` such things."""
        return Mark(self.form, self.turn() - STEP + 1 + count, offset, channel)

    def behind(self, channel: str, offset: int, count: int, most: int) -> tuple[int, list[int]] | None:
        """Where a channel is for a client that joined it at `offset`, when `count` publications had been sent.

        Its top, and the batches of the newest up to it, `most` at most. None: forgotten.
        """
        top = self._tops.get(channel)
        if top is None:
            # Nothing was sent since, or everything of the channel is forgotten.
            return (offset, []) if count >= self.count - len(self._order) else None
        top = max(top, offset)
        batches = self._batches[channel]
        kept = min(top - offset, len(batches), most)
        return top, list(islice(batches, len(batches) - kept, None))

    def _forget_oldest(self) -> None:
        channel, offset = self._order.popleft()
        batches = self._batches.get(channel)
        if batches and self._tops[channel] - len(batches) + 1 == offset:
            batches.popleft()
            if not batches:
                del self._batches[channel], self._tops[channel]


class Stay(NamedTuple):
    """A client's time in one `stream` channel."""

    epoch: str
    base: int
    """It has nothing of the channel behind this but what it was sent since."""
    sent: int
    """Publications that its form had sent when it joined."""
    batches: Sequence[int] = ()
    """Of what it was sent by itself when it came back, from `base` on."""


class Record(NamedTuple):
    """What is kept of a client that has gone."""

    user: str
    form: str
    came: str
    """The mark that it brought the last time."""
    confirmed: int
    """It has certainly received everything up to this batch."""
    streams: dict[str, tuple[str, int, int, list[int]]]
    """By channel: epoch, base, top, and the batches of the newest up to `top`."""
    others: list[str]
    """Channels of mode `latest`, and mailboxes."""
    rooms: Sequence[str] = ()
    """Those of all modes into which the application has let it."""
    named: str = ""
    """The user that its token named; the application may have made another one of it."""
    ids: Sequence[str] = ()
    """Under which it was connected, the newest `NAMES`: what passes over one of them passes over it."""

    def pack(self) -> bytes:
        return orjson.dumps(self._asdict())

    @classmethod
    def unpack(cls, text: bytes) -> Record:
        """The opposite, of what this or another worker packed."""
        return cls(**orjson.loads(text))


class Returning(NamedTuple):
    """A client that comes back and has lost nothing so far. pid: its name; came: the mark that it brings."""

    pid: str
    came: str
    record: Record
    positions: dict[str, int]


def judge(record: Record, text: str) -> dict[str, int] | None:
    """Where the client is in each of its `stream` channels by its last mark ('' for none); None: nobody knows."""
    if text == record.came:
        return {channel: base for channel, (_, base, _, _) in record.streams.items()}
    mark = parse_mark(text)
    if mark is None or mark.form != record.form:
        return None
    positions = {}
    for channel, (_, base, top, batches) in record.streams.items():
        if channel == mark.channel:
            known = len(batches) - 1 - (top - mark.offset)
            if mark.offset > top or (mark.offset > base and known >= 0 and batches[known] != mark.batch):
                return None  # nobody was sent that, or in another life of the channel
            positions[channel] = max(base, mark.offset)
            continue
        missed = sum(batch > mark.batch for batch in batches)
        whole = len(batches) == top - base or (missed < len(batches))
        # Within a batch the order is not known, but what went to one client by itself is behind all of its number.
        if not whole or (mark.channel and mark.batch in batches and mark.batch > record.confirmed):
            return None
        positions[channel] = top - missed
    return positions
