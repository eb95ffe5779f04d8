"""Poll answer: what one answer to a poll holds, and what its cursor says.

Does: gather messages up to the bytes that may wait for one client, put the newest value of a channel in its older one's
place, know where the client is once it has them.
Does not: subscribe, wait or answer: longpoll derives from this.
Called by: transports.longpoll.
Never break: a cursor claims what is in this answer and those before, nothing else: behind what did not fit nothing of
that channel is taken.
"""

from __future__ import annotations

import asyncio
import re

import orjson

from .. import cursor
from ..position import Position
from .plain import Wish

MESSAGE = re.compile(rb'\{"channel":"([^"]+)","pub":(?:\{"offset":([0-9]+))?')
"""The beginning of a message; names need no escapes in JSON (channels.NAME)."""


class PollForm:
    """Wire form: a publication as it stands in an answer's `messages`."""

    def encode_publication(self, channel: str, body: bytes) -> bytes:
        r"""b'{"channel":"a","pub":{"data":1}}'"""
        return b'{"channel":' + orjson.dumps(channel) + b',"pub":' + body + b"}"

    def encode_arrival(self, channel: str, body: bytes) -> bytes:
        """Nobody here watches; b'{"channel":"a","join":{…}}' all the same."""
        return b'{"channel":' + orjson.dumps(channel) + b"," + body + b"}"

    def encode_message(self, message: bytes) -> bytes:
        """Nobody here is told notices."""
        return message


FORM = PollForm()


class Answer:
    """What has been gathered so far. wish: of the request."""

    __slots__ = (
        "_finished",
        "_full",
        "_latest",
        "_max_bytes",
        "_size",
        "_wish",
        "lost",
        "marks",
        "messages",
        "positions",
        "ready",
    )

    def __init__(self, wish: Wish, max_bytes: int) -> None:
        self._wish = wish
        self._max_bytes = max_bytes
        self._size = 0
        self._latest: dict[str, int] = {}
        """Where in `messages` the newest value of a `latest` channel is."""
        self._full: set[str] = set()
        """Channels of which nothing more is taken: the next poll goes on there."""
        self._finished = False
        """Nothing more is taken at all."""
        self.ready = asyncio.Event()
        """There is something to answer."""
        self.messages: list[bytes] = []
        self.lost: list[str] = []
        known = ((name, wish.since.position(name)) for name in wish.channels)
        self.positions: dict[str, Position] = {name: position for name, position in known if position is not None}
        self.marks: dict[str, str] = {}
        """By channel; those of a watch list's symbols by the symbols' own."""
        for name in wish.channels:
            self._recall(name)

    @property
    def cursor(self) -> str:
        """Where the client is, once it has the answer."""
        return cursor.encode(self.positions, self.marks)

    def _take(self, frame: bytes) -> None:
        """Gather one message, up to the bytes that may wait for one client; what does not fit comes next time."""
        found = MESSAGE.match(frame)
        if self._finished or found is None:
            return
        channel = str(found[1], "ascii")
        if self._wish.channels[channel].mode == "latest":
            self._take_newest(channel, frame, frame[found.end() : -1])
        elif self._take_up(channel, frame) and found[2] is not None:
            self.positions[channel] = Position(self.positions[channel].epoch, int(found[2]))
        self._tell()

    def _take_up(self, channel: str, frame: bytes) -> bool:
        if self._size and self._size + len(frame) > self._max_bytes:
            self._full.add(channel)
        if channel in self._full:
            return False
        self._size += len(frame)
        self.messages.append(frame)
        return True

    # Values of `latest` channels.

    def _take_newest(self, channel: str, frame: bytes, body: bytes) -> None:
        """The newest value takes an older one's place."""
        whose = self._whose(channel, body)
        if not whose:
            return
        at = self._latest.get(whose)
        if at is not None:
            self._size += len(frame) - len(self.messages[at])
            self.messages[at] = frame
        elif self._take_up(channel, frame):
            self._latest[whose] = len(self.messages) - 1
        else:
            return
        self.marks[whose] = cursor.mark_of(body)

    def _is_news(self, channel: str, body: bytes) -> bool:
        whose = self._whose(channel, body)
        if not whose:
            return False
        self._recall(whose)
        return cursor.mark_of(body) != self.marks.get(whose)

    def _recall(self, channel: str) -> None:
        """The mark that the client has brought of a channel; it goes back, whether there is news or not."""
        if mark := self._wish.since.mark(channel):
            self.marks.setdefault(channel, mark)

    def _whose(self, channel: str, body: bytes) -> str:
        """The channel that a value is of: in a watch list, what its tag says; '' for what is no publication."""
        if channel not in self._wish.wants or not self._wish.wants[channel].symbols:
            return channel
        try:
            return str(orjson.loads(body)["tags"]["channel"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            # Whoever reaches Redis can write anything there, and others of this batch have yet to be served.
            return ""

    def _tell(self) -> None:
        if self.messages or self.lost:
            self.ready.set()
