"""Barfeed: the closed bars of one leader on their way to their channels, and what the leader before has left.

Does: read a new leader's bars from Redis; publish those that are due, group by group; say how many have been.
Does not: form bars (bars), or store them: a closed bar is put into the list of due ones by the step that publishes the
tick which closed it (term, lua/publish_ticks.lua).
Called by: term, one BarFeed each.
Never break: only what stands in that list is published, and it leaves the list after that. So a bar is lost by no
takeover; and it comes once, because its version, which grows with era and time, is published once
(lua/publish_stream.lua), also by a leader that was suspended and publishes it late.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, NamedTuple, cast

from redis.exceptions import RedisError

from .bars import Bar, read_entry
from .broker import MEMORY, Broker, Receipt
from .channels import Namespace, namespace_of
from .errors import BrokerUnavailable, HubError
from .intake import Tally
from .message import Publication, PublishOptions
from .store import Store

GROUP = 64
"""Bars in one go: at the turn of a minute all symbols close theirs, and the ticks behind must not wait for them all."""
MOST_DUE = 10_000
"""Beyond this the source waits for its bars; one batch may go beyond it by what it closes."""
SCAN_COUNT = 1000


class Found(NamedTuple):
    """What Redis has of the bars of the leader before: each symbol's at the last checkpoint, and the journal since."""

    forming: Sequence[tuple[str, bytes]]
    journal: Sequence[bytes]


class BarFeed:
    """What one term has to publish of bars."""

    def __init__(self, broker: Broker, rules: Namespace, tally: Tally) -> None:
        """rules: of the bars' namespace, whose mode is "stream"."""
        self._broker = broker
        # One lane for all of them, and the ticks': in order, and none held up by a wait for the disk.
        self._rules = rules.model_copy(update={"ack": MEMORY})
        self._tally = tally
        self._due: deque[Bar] = deque()
        self._under_way = 0
        self._published = 0
        self._ended = False
        self._room = asyncio.Event()
        self._room.set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what ends the term."""

    async def load(self, store: Store, namespace: str) -> Found:
        """Begin with what Redis has of bars. Raises BrokerUnavailable."""
        keys, redis = store.keys, store.commands()
        try:
            due = await cast(Awaitable[list[bytes]], redis.lrange(keys.due_bars(namespace), 0, -1))
            journal = await cast(Awaitable[list[bytes]], redis.lrange(keys.journal(namespace), 0, -1))
            found: Any = redis.hscan_iter(keys.forming(namespace), count=SCAN_COUNT)
            forming = {symbol.decode(): state async for symbol, state in found}
        except (RedisError, OSError) as error:
            raise BrokerUnavailable(f"Redis at {store.describe()}: {error}") from None
        finally:
            await redis.aclose()
        self.add(map(read_entry, due))
        return Found(list(forming.items()), journal)

    def add(self, bars: Iterable[Bar]) -> None:
        """Publish bars that stand in Redis' list, in the order in which they stand there."""
        self._due.extend(bars)
        if len(self._due) > MOST_DUE:
            self._room.clear()
        self._send()

    async def room(self) -> None:
        """Return once few enough are due."""
        await self._room.wait()

    def take_published(self) -> int:
        """How many of the list's head have been published since the last call."""
        count, self._published = self._published, 0
        return count

    def close(self) -> None:
        """Publish no more; the next leader does."""
        self._ended = True
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # looked at, so that the loop does not report it as never retrieved

    def _send(self) -> None:
        """The next group. One bar of a channel at most, as a later one must not arrive where an earlier one did not."""
        if self._under_way or self._ended:
            return
        channels: set[str] = set()
        while self._due and len(channels) < GROUP and self._due[0].channel not in channels:
            bar = self._due.popleft()
            channels.add(bar.channel)
            self._under_way += 1
            options = PublishOptions(version=bar.version, version_epoch=bar.epoch)
            publication = Publication(bar.channel, bar.body)
            self._broker.publish(
                self._rules, namespace_of(bar.channel), [publication], self._on_published, options=options
            )

    def _on_published(self, outcome: Receipt | HubError) -> None:
        self._under_way -= 1
        if self._ended:
            return
        if isinstance(outcome, HubError):
            self._ended = True
            self.failed.set_exception(outcome)
            return
        self._published += 1
        self._tally.bars += 1
        if len(self._due) <= MOST_DUE:
            self._room.set()
        self._send()
