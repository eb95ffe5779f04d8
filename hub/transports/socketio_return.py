"""Socket.IO return: whether a client that was away may have back what it missed, or has to start anew.

Does: have its record judged, look at what each of its channels keeps, say once what it may have.
Does not: keep records (recall), judge them (resume), or bring anything back (socketio_session).
Called by: transports.socketio, for a client that brings the name of a record; recall (recalled).
Never break: all or nothing: where one channel has a gap, none is resumed. The answer is given once, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from ..errors import CommandError, HubError
from ..history import Asked, Page
from ..position import Position, survives
from ..resume import Record, Returning, judge
from ..services import Services
from .socketio_session import SocketSession


class Door(Protocol):
    """As much of socketio's as is looked at."""

    services: Services


class Return:
    """A client that brings the name of a record: the record, a look at each channel, then what it may have back."""

    __slots__ = ("_answer", "_came", "_door", "_pid", "_positions", "_record", "_session", "_verdicts")

    def __init__(
        self, door: Door, session: SocketSession, pid: str, came: str, answer: Callable[[Returning | None], None]
    ) -> None:
        """came: the mark that it brings, '' for none. answer: called once."""
        self._door = door
        self._session = session
        self._pid = pid
        self._came = came
        self._answer = answer
        self._record: Record | None = None
        self._positions: dict[str, int] = {}
        self._verdicts: dict[str, bool] = {}

    def recalled(self, text: bytes | None) -> None:
        """What the recall calls."""
        record = None if text is None else Record.unpack(text)
        positions = None if record is None or record.named != self._session.named else judge(record, self._came)
        if record is None or positions is None:
            self._answer(None)
            return
        self._record, self._positions = record, positions
        if not positions:
            self._answer(Returning(self._pid, self._came, record, positions))
        for channel, offset in positions.items():
            self._ask(channel, offset)

    def _ask(self, channel: str, offset: int) -> None:
        try:
            namespace = self._session.rules(channel)
        except CommandError as error:  # of a namespace that is no more
            self._looked(channel, error)
            return
        asked = Asked(channel, namespace, offset, 1)
        self._door.services.histories.read(asked, partial(self._looked, channel))

    def _looked(self, channel: str, page: Page | HubError) -> None:
        """One channel has been looked at; the last look decides."""
        self._verdicts[channel] = not isinstance(page, HubError) and self._is_whole(channel, page)
        if len(self._verdicts) < len(self._positions):
            return
        record = self._record if all(self._verdicts.values()) else None
        self._answer(None if record is None else Returning(self._pid, self._came, record, self._positions))

    def _is_whole(self, channel: str, page: Page) -> bool:
        """All that was missed of a channel is still there, and not too much."""
        record = self._record
        if record is None:
            return False
        since = Position(record.streams[channel][0], self._positions[channel])
        next_kept = page.publications[0][0] if page.publications else page.offset + 1
        most = self._door.services.client.recovery_publications
        whole = next_kept == since.offset + 1 and page.offset - since.offset <= most
        return whole and survives(since, page.epoch, page.offset)
