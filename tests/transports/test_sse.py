"""Plain event streams: real sockets, a real Valkey, and a parser after the letter of the specification."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from hub import auth, cursor
from hub.control import Notice
from hub.drain import drain
from hub.errors import CLOSE_SHUTDOWN, BrokerUnavailable
from hub.eventstream import PLAIN, PositionedForm
from hub.message import Publication
from hub.notice import Notices
from hub.transports.sse import EventStreamConnection
from tests.eventsource import Stream, request, stream
from tests.nodes import until
from tests.plane import SECRET, Plane, client, plane
from tests.support import async_test


async def publish(one: Plane, channel: str, *data: object) -> None:
    """Through the one door in; returns when Redis has confirmed them all."""
    namespace = one.services.channels.resolve(channel)
    waiting = []
    for value in data:
        verdict = asyncio.get_running_loop().create_future()
        one.publisher.publish(channel, namespace, value, verdict.set_result)
        waiting.append(verdict)
    for outcome in await asyncio.gather(*waiting):
        assert not isinstance(outcome, Exception), outcome


async def arrived(one: Plane, channel: str, offset: int) -> None:
    """This worker has received a `stream` channel up to `offset`, so that who joins now has missed it."""
    await until(lambda: one.streams._streams[channel].ring.top == offset)


def held_back(one: Plane, *channels: str) -> list[Callable[[], None]]:
    """From now on subscriptions, to these channels or to all, are noted in the list, whose items are to be called."""
    subscriptions = one.services.subscriptions
    waiting: list[Callable[[], None]] = []
    real = subscriptions.subscribe

    def subscribe(channel: str, *args: object) -> None:
        call = partial(real, channel, *args)
        waiting.append(call) if channel in channels or not channels else call()

    subscriptions.subscribe = subscribe
    return waiting


@async_test
async def test_publications_arrive_in_order(valkey_url, prefix):
    """With the headers that keep proxies from holding them back."""
    async with plane(valkey_url, prefix) as one, stream(one.port, "channel=chat:a") as listener:
        assert (listener.status, listener.headers["content-type"]) == (200, "text/event-stream")
        assert listener.headers["cache-control"] == "no-store, no-transform"
        assert (listener.headers["x-accel-buffering"], listener.headers["connection"]) == ("no", "close")
        assert "content-length" not in listener.headers
        assert set((await listener.next("open")).json) == {"client", "ping"}
        await listener.next("cursor")
        await publish(one, "chat:a", *range(100))
        assert await listener.messages(100) == list(range(100))


@async_test
async def test_several_listeners_share_the_bytes_of_a_channel(valkey_url, prefix, monkeypatch):
    """One encoding for three of them, and it has their id."""
    calls = []
    encode = PositionedForm.encode_publication
    monkeypatch.setattr(
        PositionedForm, "encode_publication", lambda self, *args: calls.append(args) or encode(self, *args)
    )
    async with (
        plane(valkey_url, prefix) as one,
        stream(one.port, "channel=chat:a") as first,
        stream(one.port, "channel=chat:a") as second,
        stream(one.port, "channel=chat:a") as third,
    ):
        await until(lambda: one.fanout.lines.audience_size("chat:a") == 3)
        await publish(one, "chat:a", "x")
        ids = {(await listener.next()).id for listener in (first, second, third)}
        assert len(ids) == len(calls) == 1
        position = cursor.decode(ids.pop()).position("chat:a")
        assert position is not None and position.offset == 1


@async_test
async def test_one_who_comes_back_misses_nothing(valkey_url, prefix):
    """By the header or by ?since=; the header goes first, as the URL is that of the beginning."""
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, "channel=chat:a") as listener:
            start = (await listener.next("cursor")).id
            await publish(one, "chat:a", 1, 2)
            await listener.messages(2)
            seen = listener.parser.last_id
        await publish(one, "chat:a", 3, 4)
        async with stream(one.port, f"channel=chat:a&since={start}", Last_Event_ID=seen) as listener:
            assert await listener.messages(2) == [3, 4]
            await publish(one, "chat:a", 5)
            assert await listener.messages(1) == [5]
        async with stream(one.port, f"channel=chat:a&since={start}") as listener:
            assert await listener.messages(5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("count", [2, 5])
@async_test
async def test_one_cursor_covers_several_channels(count, valkey_url, prefix):
    """Wherever the stream is cut, the id before the cut misses nothing of any channel."""
    channels = [f"chat:{number}" for number in range(count)]
    query = "&".join(f"channel={channel}" for channel in channels)
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, query) as listener:
            await until(lambda: one.fanout.subscriptions == count)
            for number in range(20):
                await publish(one, channels[number % count], number)
            seen: list[tuple[str, dict]] = []
            while not seen or sum(kind == "message" for kind, _ in seen) < 20 or seen[-1][0] != "cursor":
                await listener.more()
                seen += [(event.type, event.json if event.type == "message" else event.id) for event in listener.events]
                listener.events = []
        ids = [at for at, (kind, _) in enumerate(seen) if kind == "cursor"]
        assert len(ids) > 1
        for at in ids:
            before = [event["pub"]["data"] for kind, event in seen[:at] if kind == "message"]
            async with stream(one.port, query, Last_Event_ID=seen[at][1]) as listener:
                after = await listener.messages(20 - len(before))
                assert sorted(before + after) == list(range(20))


@async_test
async def test_a_cursor_of_several_channels_comes_once_per_write(valkey_url, prefix):
    """Forty publications of one batch have one cursor behind them."""
    async with plane(valkey_url, prefix) as one, stream(one.port, "channel=chat:a&channel=chat:b") as listener:
        await until(lambda: one.fanout.subscriptions == 2)
        await listener.next("cursor")
        before = [event.type for event in listener.events]
        await publish(one, "chat:a", *range(40))
        await listener.messages(40)
        await listener.next("cursor")
        assert listener.events == [] and before in ([], ["cursor"])


@async_test
async def test_a_position_holds_until_its_channel_is_joined(valkey_url, prefix):
    """A client that is cut off before all its channels were let in loses the place in none of them."""
    query = "channel=chat:a&channel=chat:b"
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, query) as listener:
            await until(lambda: one.fanout.subscriptions == 2)
            await publish(one, "chat:b", 1)
            await listener.messages(1)
            seen = (await listener.next("cursor")).id
        await publish(one, "chat:b", 2)
        real = one.services.subscriptions.subscribe

        def subscribe(channel, *args):
            if channel != "chat:b":
                real(channel, *args)

        one.services.subscriptions.subscribe = subscribe
        async with stream(one.port, query, Last_Event_ID=seen) as listener:
            cut = (await listener.next("cursor")).id
        one.services.subscriptions.subscribe = real
        async with stream(one.port, query, Last_Event_ID=cut) as listener:
            assert await listener.messages(1) == [2]


@async_test
async def test_all_that_was_missed_closes_nobody_as_slow(valkey_url, prefix):
    """However much more than an outbox it is, and though the ring answers in the turn of the request."""
    async with plane(valkey_url, prefix, client={"outbox_bytes": 10_000}) as one:
        async with stream(one.port, "channel=chat:a") as listener:
            start = (await listener.next("cursor")).id
        await publish(one, "chat:a", *("x" * 3000 for _ in range(8)))
        await arrived(one, "chat:a", 8)
        async with stream(one.port, "channel=chat:a", Last_Event_ID=start) as listener:
            assert len(await listener.messages(8)) == 8
            await publish(one, "chat:a", "on")
            assert await listener.messages(1) == ["on"]


@async_test
async def test_what_is_lost_is_told(valkey_url, prefix):
    """More than a recovery may bring: an event with the channel, and the stream goes on behind it."""
    async with plane(valkey_url, prefix, stream_options={"most": 5}) as one:
        async with stream(one.port, "channel=chat:a") as listener:
            start = (await listener.next("cursor")).id
        await publish(one, "chat:a", *range(10))
        await arrived(one, "chat:a", 10)
        async with stream(one.port, "channel=chat:a", Last_Event_ID=start) as listener:
            assert (await listener.next("lost")).json == {"channel": "chat:a"}
            await listener.next("cursor")
            await publish(one, "chat:a", "on")
            assert await listener.messages(1) == ["on"]


@async_test
async def test_a_cursor_of_a_channel_that_has_begun_anew_is_lost(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        await publish(one, "chat:a", 1)
        foreign = cursor.encode({"chat:a": cursor.Position("9.another", 1)})
        async with stream(one.port, "channel=chat:a", Last_Event_ID=foreign) as listener:
            assert (await listener.next("lost")).json == {"channel": "chat:a"}


@async_test
async def test_the_newest_value_comes_first(valkey_url, prefix):
    """Of `latest` channels, whether the client was there before or not."""
    async with plane(valkey_url, prefix) as one:
        await publish(one, "ticker:A", 1, 2)
        await publish(one, "ticker:B", 7)
        async with stream(one.port, "channel=ticker:A&channel=ticker:B&channel=ticker:C") as listener:
            assert sorted(await listener.messages(2)) == [2, 7]
            await publish(one, "ticker:A", 3)
            assert await listener.messages(1) == [3]


@async_test
async def test_heartbeats_are_comments(valkey_url, prefix):
    limits = {"ping_interval_s": 1.5, "pong_timeout_s": 1.0}
    async with (
        plane(valkey_url, prefix, client=limits, jitter=lambda: 0.0) as one,
        stream(one.port, "channel=open:a") as listener,
    ):
        while not listener.parser.comments:
            await listener.more()
        assert [event.type for event in listener.events] == ["open"]
        assert listener.parser.retry_ms == 1000


@async_test
async def test_an_expired_token_ends_the_stream(valkey_url, prefix):
    now = time.time()
    token = auth.make("42", SECRET, 2, now)
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, f"channel=users:a&token={token}") as listener:
            last = (await listener.end())[-1]
            assert (last.type, last.json["code"], last.json["reconnect"]) == ("closed", 3005, True)
            assert time.time() >= int(now + 2)
        await until(lambda: one.fanout.subscriptions == 0)


@async_test
async def test_a_drain_says_when_to_come_back_and_ends(valkey_url, prefix):
    # The client says nothing to the end: were it waited for, the stream would end after this time only.
    patient = {"close_timeout_s": 60.0}
    async with plane(valkey_url, prefix, client=patient, jitter=lambda: 0.5) as one:
        async with stream(one.port, "channel=chat:a") as listener:
            await listener.next("cursor")
            await drain(list(one.reactor.connections.values()), 0, asyncio.Event(), time.monotonic)
            events = await listener.end()
            assert (events[-1].type, events[-1].json["code"]) == ("closed", 3001)
            assert listener.parser.retry_ms == 2000
        await until(lambda: not one.reactor.connections)
        assert one.fanout.subscriptions == 0 and one.services.users.sessions == 0


@async_test
async def test_an_event_source_that_cannot_be_let_in_now_is_told_to_come_back(valkey_url, prefix):
    """Any status but 200 would end it for good."""
    async with plane(valkey_url, prefix) as one:
        one.draining.set()
        async with stream(one.port, "channel=chat:a", Accept="text/event-stream") as listener:
            assert listener.status == 200
            (event,) = await until_end(listener)
            assert (event.type, event.json["reconnect"]) == ("closed", True)
            assert listener.parser.retry_ms is not None
        assert (await request(one.port, "GET", "/sse?channel=chat:a")).status == 503


async def until_end(listener: Stream) -> list:
    """The events of an answer with a length."""
    data = await asyncio.wait_for(listener.reader.readexactly(int(listener.headers["content-length"])), 5)
    return listener.parser.feed(data)


@async_test
async def test_the_accept_header_counts(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        for accept in ("*/*", "text/event-stream", "application/json, text/*;q=0.5"):
            async with stream(one.port, "channel=open:a", Accept=accept) as listener:
                assert listener.status == 200
        answer = await request(one.port, "GET", "/sse?channel=open:a", Accept="application/json")
        assert answer.status == 406


@async_test
async def test_head_has_the_headers_alone(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        answer = await request(one.port, "HEAD", "/sse?channel=open:a")
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/event-stream", b"")
        assert (await request(one.port, "HEAD", "/sse?channel=closed:a")).status == 403
        assert one.services.users.sessions == 0


@async_test
async def test_a_client_that_goes_leaves_nothing(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        before = len(one.reactor.connections)
        async with stream(one.port, "channel=chat:a&channel=open:a&channel=ticker:a") as listener:
            await until(lambda: one.fanout.subscriptions == 3)
            assert one.services.users.sessions == 1
            assert listener.status == 200
        await until(lambda: one.fanout.subscriptions == 0 and one.services.users.sessions == 0)
        await until(lambda: len(one.reactor.connections) == before)


@async_test
async def test_a_client_that_goes_before_its_channels_let_it_in_leaves_nothing(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        waiting = held_back(one)
        async with stream(one.port, "channel=chat:a&channel=open:a&channel=ticker:a"):
            await until(lambda: len(waiting) == 3)
        await until(lambda: one.services.users.sessions == 0)
        for subscribe in waiting:
            subscribe()
        await until(lambda: len(one.streams._streams) == 1 and one.streams._streams["chat:a"].live)
        await until(lambda: not one.fanout.busy and not one.services.subscriptions._snapshots.busy)
        assert one.fanout.subscriptions == 0 and not one.streams._streams["chat:a"].members


@async_test
async def test_a_second_request_on_the_same_connection_ends_the_stream(valkey_url, prefix):
    """Behind the first or with it: there can be no answer."""
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, "channel=open:a") as listener:
            listener.writer.write(b"GET / HTTP/1.1\r\nHost: hub.test\r\n\r\n")
            last = (await listener.end())[-1]
            assert (last.type, last.json["code"]) == ("closed", 3501)
        async with stream(one.port, "channel=open:a", X="1\r\n\r\nGET / HTTP/1.1") as listener:
            assert (await listener.end())[-1].json["code"] == 3501


@async_test
async def test_a_channel_that_begins_anew_sends_its_listeners_back(valkey_url, prefix):
    """They come back with their cursor, which tells them what is lost."""
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, "channel=chat:a&channel=open:a") as listener:
            await until(lambda: one.fanout.subscriptions == 2)
            one.streams.overloaded("chat:a")
            last = (await listener.end())[-1]
            assert (last.type, last.json["code"], last.json["reconnect"]) == ("closed", 3010, True)
        await until(lambda: one.fanout.subscriptions == 0)


@async_test
async def test_a_listener_is_let_in_by_redis_or_sent_back(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:

        def subscribe(channel, namespace, subscriber, done, since):
            done(BrokerUnavailable("away"))

        one.services.subscriptions.subscribe = subscribe
        async with stream(one.port, "channel=chat:a") as listener:
            last = (await listener.end())[-1]
            assert (last.type, last.json["code"], last.json["reconnect"]) == ("closed", 3004, True)
            assert "away" not in last.data


@async_test
async def test_listeners_are_present_and_hear_who_comes(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one, client(one.url) as native:
        await native.subscribe("room:a", join_leave=True)
        assert "join" in await native.push()
        async with stream(one.port, "channel=room:a&join_leave=true") as listener:
            name = (await listener.next("open")).json["client"]
            joined = (await native.push())["join"]["info"]
            assert joined["client"] == name
            assert (await listener.next("join")).json["join"]["info"]["client"] == name
            reply = await native.command(presence={"channel": "room:a"})
            assert name in reply["presence"]["presence"]
        assert (await native.push())["leave"]["info"]["client"] == name


@async_test
async def test_the_last_cursor_covers_what_was_queued_until_the_end(valkey_url, prefix):
    """Before all channels have been joined: also a frame that the fan-out puts in the very turn of the end."""
    async with plane(valkey_url, prefix) as one:
        held_back(one, "chat:b")
        async with stream(one.port, "channel=chat:a&channel=chat:b") as listener:
            await listener.next("cursor")
            (connection,) = [c for c in one.reactor.connections.values() if hasattr(c, "displaced")]
            connection.put(PLAIN.encode_publication("chat:a", b'{"offset":7,"data":1}'))
            connection.close(CLOSE_SHUTDOWN)
            events = await listener.end()
            assert [event.type for event in events[-3:]] == ["message", "cursor", "closed"]
            position = cursor.decode(events[-1].id).position("chat:a")
            assert position is not None and position.offset == 7


@async_test
async def test_notices_reach_listeners(valkey_url, prefix):
    """Those to everybody and those to one user's connections, but for those that hold the channel."""
    token = auth.make("42", SECRET, 60, time.time())
    async with plane(valkey_url, prefix) as one, stream(one.port, f"channel=users:a&token={token}") as listener:
        await until(lambda: one.fanout.subscriptions == 1)
        notices = Notices(one.services.users.everybody, one.services.users.of)
        for notice in (Notice("", "", {"n": 1}), Notice("42", "users:a", {"n": 0}), Notice("42", "", {"n": 2})):
            notices.tell(notice)
        assert [(await listener.next("notice")).json["data"] for _ in range(2)] == [{"n": 1}, {"n": 2}]


@async_test
async def test_a_slow_listener_of_several_channels_resumes_behind_its_last_cursor(valkey_url, prefix):
    """It stops reading until its socket is full, then reads on: whatever came last, the id misses nothing."""
    query = "channel=chat:a&channel=chat:b"
    async with plane(valkey_url, prefix) as one:
        async with stream(one.port, query) as listener:
            await until(lambda: one.fanout.subscriptions == 2)
            (connection,) = [c for c in one.reactor.connections.values() if hasattr(c, "displaced")]
            filler, sent = "x" * 20_000, 0
            while not connection._blocked:
                await publish(one, "chat:b" if sent % 2 else "chat:a", [sent, filler])
                sent += 1
            for _ in range(4):
                await publish(one, "chat:b" if sent % 2 else "chat:a", [sent, filler])
                sent += 1
            got = [number for number, _ in await listener.messages(sent)]
            for channel in (0, 1):  # which of two channels comes first in a batch is not promised
                assert [n for n in got if n % 2 == channel] == list(range(channel, sent, 2))
            last = await listener.next("cursor")
            while listener.events:
                last = listener.events.pop()
        await publish(one, "chat:a", "next")
        async with stream(one.port, query, Last_Event_ID=last.id) as listener:
            assert await listener.messages(1) == ["next"]


@async_test
async def test_a_listener_that_is_too_slow_is_closed_and_its_id_claims_nothing_unsent(valkey_url, prefix):
    query = "channel=chat:a&channel=chat:b"
    async with plane(valkey_url, prefix, client={"outbox_bytes": 60_000, "close_timeout_s": 5.0}) as one:
        async with stream(one.port, query) as listener:
            await until(lambda: one.fanout.subscriptions == 2)
            sent = 0
            while one.reactor.backlog.slow == 0:
                await publish(one, "chat:b" if sent % 2 else "chat:a", [sent, "x" * 20_000])
                sent += 1
            events = await listener.end()
            assert events[-1].json["code"] == 3008
            got = [event.json["pub"]["data"][0] for event in events if event.type == "message"]
        assert len(got) < sent
        async with stream(one.port, query, Last_Event_ID=listener.parser.last_id) as listener:
            all_of_them = got + [number for number, _ in await listener.messages(sent - len(got))]
        for channel in (0, 1):  # which of two channels comes first in a batch is not promised
            assert [n for n in all_of_them if n % 2 == channel] == list(range(channel, sent, 2))


@async_test
async def test_messages_of_none_channels_that_are_dropped_are_counted(valkey_url, prefix):
    async with (
        plane(valkey_url, prefix, client={"outbox_drop_bytes": 1}) as one,
        stream(one.port, "channel=open:a") as listener,
    ):
        await until(lambda: one.fanout.subscriptions == 1)
        while one.reactor.backlog.dropped == 0:
            one.fanout.deliver([Publication("open:a", b'{"data":"' + b"x" * 20_000 + b'"}')])
            await asyncio.sleep(0)
        assert (await listener.next("lost")).json["dropped"] >= 1


@async_test
async def test_a_thousand_streams_with_the_same_channel_are_one_group(valkey_url, prefix):
    """So a publication is one join and a bare loop of writes, as for WebSocket."""
    async with plane(valkey_url, prefix) as one:
        listeners = [stream(one.port, "channel=chat:a") for _ in range(50)]
        opened = [await listener.__aenter__() for listener in listeners]
        try:
            await until(lambda: one.fanout.lines.audience_size("chat:a") == 50)
            await until(lambda: not one.fanout.busy)
            groups = {c.group for c in one.reactor.connections.values() if hasattr(c, "displaced")}
            assert len(groups) == 1 and len(groups.pop().fds) == 50
            writes = one.fanout.sweep.writes
            await publish(one, "chat:a", 1)
            for listener in opened:
                assert await listener.messages(1) == [1]
            assert one.fanout.sweep.writes == writes + 50
        finally:
            for listener in listeners:
                await listener.__aexit__(None, None, None)


def test_a_connection_is_plain_data():
    """No __dict__, which alone would cost what the whole connection may."""
    assert all("__dict__" not in vars(kind) for kind in EventStreamConnection.__mro__[:-1])
