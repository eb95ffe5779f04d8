"""The one cursor of all listeners to the same `stream` channels: what it costs, and that it never says too much."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from hub import cursor
from hub.errors import CLOSE_SHUTDOWN
from hub.transports.sse import EventStreamConnection
from tests.eventsource import Stream, stream
from tests.nodes import until
from tests.plane import Plane, plane
from tests.support import async_test
from tests.transports.test_sse import held_back, publish

CHANNELS = [f"chat:{name}" for name in "abcd"] + ["paced:e"]


def connections(one: Plane) -> list[EventStreamConnection]:
    return [c for c in one.reactor.connections.values() if isinstance(c, EventStreamConnection)]


def query(*channels: str) -> str:
    return "&".join(f"channel={channel}" for channel in channels)


class Followed:
    """A listener that checks each cursor against what came before it, and goes on with the last one."""

    def __init__(self, channels: list[str]) -> None:
        self.channels = channels
        self.last_id = ""
        self.got: dict[str, list[int]] = {channel: [] for channel in channels}
        self.cursors = 0
        self._seen: dict[str, int] = {}

    async def follow(self, one: Plane, until_told: asyncio.Event) -> None:
        """One connection, until it ends or `until_told` is set."""
        headers = {"Last_Event_ID": self.last_id} if self.last_id else {}
        async with stream(one.port, query(*self.channels), **headers) as listener:
            reading, told = (
                asyncio.ensure_future(self._read(listener, until_told)),
                asyncio.ensure_future(until_told.wait()),
            )
            await asyncio.wait((reading, told), return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, told):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, EOFError):
                    await task

    async def _read(self, listener: Stream, until_told: asyncio.Event) -> None:
        while not until_told.is_set():  # and by cancellation, which a read that is just done may swallow
            await listener.more()
            events, listener.events = listener.events, []
            for event in events:
                self._take(event.type, event)

    def _take(self, kind: str, event) -> None:
        assert kind != "lost"
        if kind == "message":
            channel, pub = event.json["channel"], event.json["pub"]
            if pub["offset"] > self._seen.get(channel, 0):
                self._seen[channel] = pub["offset"]
                self.got[channel].append(pub["data"])
        elif kind == "cursor":
            self.cursors += 1
            found = cursor.decode(event.id)
            for channel in self.channels:
                position = found.position(channel)
                if position is not None:
                    # Where it began counts as seen: nothing in front of it is owed to it.
                    first = not self.last_id and channel not in self._seen
                    assert first or position.offset <= self._seen.get(channel, 0), (channel, position, self._seen)
                    self._seen.setdefault(channel, position.offset)
        self.last_id = event.id or self.last_id


@async_test
async def test_listeners_to_the_same_channels_are_one_group_with_one_cursor(valkey_url, prefix):
    """A publication is one write for each, the cursor in it included."""
    async with plane(valkey_url, prefix) as one, contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(stream(one.port, query(*CHANNELS[:2]))) for _ in range(20)]
        await until(lambda: all(c.direct for c in connections(one)) and one.fanout.subscriptions == 40)
        assert len({c.group for c in connections(one)}) == 1
        for listener in listeners:
            await listener.next("cursor")
            while not listener.parser.last_id or cursor.decode(listener.parser.last_id).position("chat:b") is None:
                await listener.next("cursor")
        writes = one.fanout.sweep.writes
        await publish(one, "chat:a", 1)
        ids = set()
        for listener in listeners:
            assert await listener.messages(1) == [1]
            ids.add((await listener.next("cursor")).id)
        assert len(ids) == 1 and one.fanout.sweep.writes == writes + 20
        found = cursor.decode(ids.pop())
        assert [found.position(channel).offset for channel in CHANNELS[:2]] == [1, 0]


@async_test
async def test_one_who_is_not_in_all_its_channels_yet_has_a_cursor_of_its_own(valkey_url, prefix):
    """That of the others in the same audiences knows nothing of the place that it has in the missing channel."""
    both = query(*CHANNELS[:2])
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, both) as first:
            await until(lambda: one.fanout.subscriptions == 2)
            await publish(one, "chat:b", 0)
            await first.messages(1)
            seen = (await first.next("cursor")).id
        async with stream(one.port, query("chat:a", "chat:c")) as other:
            await until(lambda: all(c.direct for c in connections(one)) and one.fanout.subscriptions == 2)
            waiting = held_back(one, "chat:b")
            async with stream(one.port, both, Last_Event_ID=seen) as late:
                await late.next("cursor")
                await publish(one, "chat:a", 1)
                assert await late.messages(1) == [1]
                found = cursor.decode((await late.next("cursor")).id)
                assert [found.position(channel).offset for channel in CHANNELS[:2]] == [1, 1]
                assert await other.messages(1) == [1]
                for subscribe in waiting:
                    subscribe()
                await until(lambda: all(c.direct for c in connections(one)))
                await publish(one, "chat:b", 2)
                assert await late.messages(1) == [2]


@async_test
async def test_the_last_cursor_of_one_who_is_cut_off_while_it_joins_is_its_own(valkey_url, prefix):
    """And not that of its group, which knows nothing of the missing channel."""
    since = cursor.encode({"chat:b": cursor.Position("1.x", 7)})
    async with plane(valkey_url, prefix) as one, stream(one.port, query("chat:a", "chat:c")) as other:
        await until(lambda: all(c.direct for c in connections(one)) and one.fanout.subscriptions == 2)
        held_back(one, "chat:b")
        async with stream(one.port, query("chat:a", "chat:b"), Last_Event_ID=since) as late:
            await until(lambda: one.fanout.subscriptions == 3)
            await publish(one, "chat:a", 1)
            assert await late.messages(1) == await other.messages(1) == [1]
            (connection,) = [c for c in connections(one) if not c.direct]
            connection.close(CLOSE_SHUTDOWN)
            await late.end()
            found = cursor.decode(late.parser.last_id)
            assert [found.position(channel).offset for channel in CHANNELS[:2]] == [1, 7]


@async_test
async def test_a_listener_in_step_that_is_slow_is_told_its_last_place_once(valkey_url, prefix):
    """While its socket takes nothing, cursors replace each other; the last words have the last one before them."""
    async with plane(valkey_url, prefix) as one, stream(one.port, query(*CHANNELS[:2])) as listener:
        await until(lambda: one.fanout.subscriptions == 2 and all(c.direct for c in connections(one)))
        (connection,) = connections(one)
        sent = 0
        while not connection._blocked:
            await publish(one, CHANNELS[sent % 2], [sent, "x" * 20_000])
            sent += 1
        for _ in range(10):
            await publish(one, CHANNELS[sent % 2], [sent, ""])
            sent += 1
        await until(lambda: not one.fanout.busy)
        connection.close(CLOSE_SHUTDOWN)
        events = await listener.end()
        assert [event.type for event in events[-12:]] == ["message"] * 10 + ["cursor", "closed"]
        found = cursor.decode(events[-2].id)
        assert sum(found.position(channel).offset for channel in CHANNELS[:2]) == sent


@pytest.mark.parametrize("seed", range(4))
@async_test
async def test_no_cursor_claims_what_has_not_come_and_none_misses_anything(seed, valkey_url, prefix):
    """Listeners to any of the channels come and go, are cut anywhere and go on, while all channels are published to."""
    dice = random.Random(seed)
    async with plane(valkey_url, prefix, client={"outbox_bytes": 200_000}) as one:
        followed = [Followed(dice.sample(CHANNELS, dice.choice((2, 2, 3, 5)))) for _ in range(12)]
        for each in followed[:6]:
            each.channels.sort()
        done = asyncio.Event()
        cuts = [asyncio.Event() for _ in followed]

        async def live(number: int) -> None:
            while not done.is_set():
                await followed[number].follow(one, cuts[number])
                cuts[number].clear()

        # Everybody has begun before the first message, so that all are owed to all.
        tasks = [asyncio.create_task(live(number)) for number in range(len(followed))]
        await until(lambda: one.fanout.subscriptions == sum(len(each.channels) for each in followed))
        await until(lambda: all(set(each.channels) <= set(each._seen) for each in followed))
        sent: dict[str, list[int]] = {channel: [] for channel in CHANNELS}
        for number in range(400):
            some = dice.sample(CHANNELS, dice.choice((1, 2, 4)))
            for channel in some:
                sent[channel].append(number)
            await asyncio.gather(*(publish(one, channel, number) for channel in some))
            if dice.random() < 0.3:
                cuts[dice.randrange(len(cuts))].set()
        await until(lambda: all(each.got[c] == sent[c] for each in followed for c in each.channels))
        done.set()
        for cut in cuts:
            cut.set()
        await asyncio.gather(*tasks)
        assert min(each.cursors for each in followed) > 10
