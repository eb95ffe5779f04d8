"""Long polling: each request on a new TCP connection, and nothing kept between two of them."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import pytest

from hub import cursor
from hub.errors import BrokerUnavailable
from hub.history import History
from hub.message import Publication
from hub.position import Position
from tests.eventsource import Answer, request
from tests.nodes import until
from tests.plane import Plane, plane
from tests.support import async_test
from tests.transports.test_sse import arrived, held_back, publish


async def poll(one: Plane, query: str, since: str = "", wait: float = 10, **headers: str) -> Answer:
    return await request(one.port, "GET", f"/poll?{query}&wait={wait}&since={since}", **headers)


def data(answer: Answer) -> list:
    return [message["pub"]["data"] for message in answer.json["messages"]]


@contextlib.asynccontextmanager
async def held(one: Plane, query: str, since: str = ""):
    """A poll that waits in all its channels."""
    before = one.fanout.subscriptions
    task = asyncio.create_task(poll(one, query, since))
    await until(lambda: one.fanout.subscriptions == before + query.count("channel="))
    yield task


@async_test
async def test_a_poll_waits_for_the_next_message(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one, held(one, "channel=chat:a") as task:
        await publish(one, "chat:a", {"text": "a\r\nb"})
        answer = await task
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json["messages"] == [{"channel": "chat:a", "pub": {"offset": 1, "data": {"text": "a\r\nb"}}}]
        assert answer.json["cursor"] == answer.cursor
        assert one.fanout.subscriptions == 0 and len(one.polls) == 0


@async_test
async def test_nothing_within_the_wait_is_204_with_a_cursor(valkey_url, prefix):
    """With which what comes afterwards is not missed."""
    async with plane(valkey_url, prefix) as one:
        empty = await poll(one, "channel=chat:a&channel=chat:b", wait=0)
        assert (empty.status, empty.body) == (204, b"")
        await publish(one, "chat:b", 1)
        await publish(one, "chat:a", 2)
        await arrived(one, "chat:a", 1)
        answer = await poll(one, "channel=chat:a&channel=chat:b", empty.cursor, wait=0)
        assert sorted(data(answer)) == [1, 2]
        assert (await poll(one, "channel=chat:a&channel=chat:b", answer.cursor, wait=0)).status == 204


@async_test
async def test_the_cursor_may_come_as_last_event_id(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        start = (await poll(one, "channel=chat:a", wait=0)).cursor
        await publish(one, "chat:a", 1)
        assert data(await poll(one, "channel=chat:a", Last_Event_ID=start)) == [1]


@async_test
async def test_an_answer_that_was_lost_on_its_way_comes_again(valkey_url, prefix):
    """The client's cursor is still the one of before, and nothing is kept of what it was answered."""
    async with plane(valkey_url, prefix) as one:
        await publish(one, "ticker:A", 7)
        start = (await poll(one, "channel=chat:a&channel=chat:b", wait=0)).cursor
        await publish(one, "chat:a", 1, 2)
        await publish(one, "chat:b", 3)
        await arrived(one, "chat:b", 1)
        query = "channel=chat:a&channel=chat:b&channel=ticker:A"
        lost, again = [await poll(one, query, start) for _ in range(2)]
        assert sorted(data(lost)) == [1, 2, 3, 7]
        assert sorted(map(str, again.json["messages"])) == sorted(map(str, lost.json["messages"]))
        assert (await poll(one, query, again.cursor, wait=0)).status == 204


@async_test
async def test_messages_of_one_batch_come_in_one_answer(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one, held(one, "channel=open:a") as task:
        one.fanout.deliver([Publication("open:a", b'{"data":%d}' % number) for number in range(40)])
        assert data(await task) == list(range(40))


@async_test
async def test_more_than_a_recovery_brings_comes_page_by_page(valkey_url, prefix):
    """As long as the history has it, nothing is lost, whatever the ring holds."""
    async with plane(valkey_url, prefix, stream_options={"most": 5}, client={"history_publications": 8}) as one:
        at = (await poll(one, "channel=chat:a", wait=0)).cursor
        await publish(one, "chat:a", *range(30))
        await arrived(one, "chat:a", 30)
        got: list[int] = []
        while len(got) < 30:
            answer = await poll(one, "channel=chat:a", at)
            assert "lost" not in answer.json and len(data(answer)) <= 8
            got += data(answer)
            at = answer.cursor
        assert got == list(range(30))


@async_test
async def test_an_answer_is_bounded_in_bytes_and_the_next_one_goes_on(valkey_url, prefix):
    async with plane(valkey_url, prefix, client={"outbox_bytes": 10_000}) as one:
        at = (await poll(one, "channel=chat:a&channel=chat:b", wait=0)).cursor
        for number in range(10):
            await publish(one, "chat:b" if number % 2 else "chat:a", [number, "x" * 3000])
        await arrived(one, "chat:a", 5)
        await arrived(one, "chat:b", 5)
        got, answers = [], 0
        while len(got) < 10:
            answer = await poll(one, "channel=chat:a&channel=chat:b", at)
            assert len(answer.body) < 11_000
            got += [number for number, _ in data(answer)]
            answers += 1
            at = answer.cursor
        assert sorted(got) == list(range(10)) and answers >= 4
        assert [n for n in got if n % 2] == [1, 3, 5, 7, 9]


@async_test
async def test_all_channels_together_read_no_more_than_an_answer_may_have(valkey_url, prefix, monkeypatch):
    """However many of them are far behind; page by page everything comes all the same."""
    read, sizes = History.read_many, []

    async def weighed(self, asked):
        pages = await read(self, asked)
        sizes.extend(len(body) for page in pages for _, body in page.publications)
        return pages

    names = [f"chat:{number}" for number in range(4)]
    query = "&".join(f"channel={name}" for name in names)
    async with plane(valkey_url, prefix, stream_options={"most": 2}, client={"outbox_bytes": 65_536}) as one:
        at = (await poll(one, query, wait=0)).cursor
        for name in names:
            for number in range(10):
                await publish(one, name, f"{number}" + "x" * 5000)
            await arrived(one, name, 10)
        monkeypatch.setattr(History, "read_many", weighed)
        found = dict.fromkeys(names, "")
        while any(len(numbers) < 10 for numbers in found.values()):
            sizes.clear()
            answer = await poll(one, query, at, wait=0)
            assert sum(sizes) < 65_536
            for message in answer.json["messages"]:
                found[message["channel"]] += message["pub"]["data"][0]
            at = answer.cursor
        assert set(found.values()) == {"0123456789"}


@async_test
async def test_nothing_is_taken_behind_what_did_not_fit(valkey_url, prefix):
    """A small message would, but its channel's large one before it has to come first."""
    async with plane(valkey_url, prefix, client={"outbox_bytes": 10_000}) as one:
        at = (await poll(one, "channel=chat:a", wait=0)).cursor
        await publish(one, "chat:a", "a" * 6000, "b" * 6000, "c")
        await arrived(one, "chat:a", 3)
        first = await poll(one, "channel=chat:a", at)
        second = await poll(one, "channel=chat:a", first.cursor)
        assert [text[0] for text in data(first)] == ["a"]
        assert [text[0] for text in data(second)] == ["b", "c"]


@async_test
async def test_what_comes_while_the_history_is_read_comes_with_the_next_poll(valkey_url, prefix):
    async with plane(valkey_url, prefix, stream_options={"most": 5}) as one:
        at = (await poll(one, "channel=chat:a", wait=0)).cursor
        await publish(one, "chat:a", *range(20))
        await arrived(one, "chat:a", 20)
        reads, histories = [], one.services.histories
        later = histories._replace(read=lambda *args: reads.append(partial(histories.read, *args)))
        object.__setattr__(one.services, "histories", later)
        task = asyncio.create_task(poll(one, "channel=chat:a", at))
        await until(lambda: len(reads) == 1)
        await publish(one, "chat:a", 20)
        await arrived(one, "chat:a", 21)
        await until(lambda: not one.fanout.busy)
        reads[0]()
        first = await task
        object.__setattr__(one.services, "histories", histories)
        assert data(first) == list(range(21))
        assert (await poll(one, "channel=chat:a", first.cursor, wait=0)).status == 204


@async_test
async def test_what_is_lost_is_told_and_the_cursor_goes_on_behind_it(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        await publish(one, "chat:a", 1, 2)
        foreign = cursor.encode({"chat:a": Position("9.another", 1)})
        answer = await poll(one, "channel=chat:a", foreign)
        assert (answer.status, answer.json["lost"], data(answer)) == (200, ["chat:a"], [])
        await publish(one, "chat:a", 3)
        assert data(await poll(one, "channel=chat:a", answer.cursor)) == [3]


@async_test
async def test_a_history_that_was_trimmed_is_lost(valkey_url, prefix):
    """history_size is 100: of 300 missed ones the first 200 are gone."""
    async with plane(valkey_url, prefix, stream_options={"most": 5}) as one:
        at = (await poll(one, "channel=chat:a", wait=0)).cursor
        await publish(one, "chat:a", *range(300))
        await arrived(one, "chat:a", 300)
        answer = await poll(one, "channel=chat:a", at)
        assert (answer.json["lost"], data(answer)) == (["chat:a"], [])
        position = cursor.decode(answer.cursor).position("chat:a")
        assert position is not None and position.offset == 300


@async_test
async def test_the_newest_value_comes_unless_the_client_has_it(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        await publish(one, "ticker:A", 1, 2)
        first = await poll(one, "channel=ticker:A")
        assert data(first) == [2]
        assert (await poll(one, "channel=ticker:A", first.cursor, wait=0)).status == 204
        async with held(one, "channel=ticker:A", first.cursor) as task:
            await publish(one, "ticker:A", 3)
            second = await task
        assert data(second) == [3]
        assert (await poll(one, "channel=ticker:A", second.cursor, wait=0)).status == 204


@async_test
async def test_a_client_that_goes_frees_everything(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        _, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(b"GET /poll?channel=chat:a&channel=open:a HTTP/1.1\r\nHost: hub.test\r\n\r\n")
        await until(lambda: one.fanout.subscriptions == 2 and len(one.polls) == 1)
        writer.close()
        await until(lambda: one.fanout.subscriptions == 0 and len(one.polls) == 0)
        assert not one.fanout.lines.by_channel or not any(one.fanout.lines.counts().values())


@async_test
async def test_a_client_that_goes_before_its_channels_let_it_in_frees_everything(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        waiting = held_back(one)
        _, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(b"GET /poll?channel=chat:a&channel=open:a HTTP/1.1\r\nHost: hub.test\r\n\r\n")
        await until(lambda: len(waiting) == 2)
        writer.close()
        await until(lambda: len(one.polls) == 0)
        for subscribe in waiting:
            subscribe()
        await until(lambda: len(one.streams._streams) == 1 and one.streams._streams["chat:a"].live)
        assert one.fanout.subscriptions == 0 and not one.streams._streams["chat:a"].members


@async_test
async def test_polls_that_wait_are_bounded(valkey_url, prefix):
    async with plane(valkey_url, prefix, most_polls=1) as one, held(one, "channel=chat:a") as task:
        answer = await poll(one, "channel=chat:a")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, 111, "1")
        await publish(one, "chat:a", 1)
        assert data(await task) == [1]


@async_test
async def test_a_worker_that_drains_answers_all_at_once(valkey_url, prefix):
    """With the cursor, so that another worker goes on."""
    async with plane(valkey_url, prefix) as one, held(one, "channel=chat:a") as task:
        one.polls.close()
        answer = await task
        assert answer.status == 204
        await publish(one, "chat:a", 1)
        assert data(await poll(one, "channel=chat:a", answer.cursor)) == [1]


@async_test
async def test_a_channel_that_begins_anew_answers_its_polls(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one, held(one, "channel=chat:a") as task:
        one.streams.overloaded("chat:a")
        answer = await task
        assert answer.status == 204 and one.fanout.subscriptions == 0
        await publish(one, "chat:a", 1)
        assert data(await poll(one, "channel=chat:a", answer.cursor)) == [1]


@async_test
async def test_redis_away_is_503_and_says_no_more(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        one.services.subscriptions.subscribe = lambda *args: args[3](BrokerUnavailable("at a secret address"))
        answer = await poll(one, "channel=chat:a&channel=chat:b")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, 100, "1")
        assert b"secret" not in answer.body


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan", "inf", ""])
@async_test
async def test_a_wait_that_is_no_time_is_refused(wait, valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        answer = await request(one.port, "GET", f"/poll?channel=open:a&wait={wait}")
        assert (answer.status, answer.code) == (400, 107)


@async_test
async def test_no_loss_no_duplicate_and_in_order_while_publishing(valkey_url, prefix):
    """Over several channels, with two workers that take turns."""
    channels = [f"chat:{number}" for number in range(3)]
    query = "&".join(f"channel={channel}" for channel in channels)
    async with plane(valkey_url, prefix) as one, plane(valkey_url, prefix) as other:
        at = (await poll(one, query, wait=0)).cursor

        async def publisher() -> None:
            for number in range(150):
                await publish(one, channels[number % 3], number)

        publishing = asyncio.create_task(publisher())
        got: list[int] = []
        turn = 0
        while len(got) < 150:
            turn += 1
            answer = await poll(other if turn % 2 else one, query, at)
            assert answer.status == 200 and "lost" not in answer.json
            got += data(answer)
            at = answer.cursor
        await publishing
        assert sorted(got) == list(range(150))
        for channel in range(3):
            assert [n for n in got if n % 3 == channel] == list(range(channel, 150, 3))
