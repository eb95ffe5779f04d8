"""The native protocol on `stream` and `latest` channels: positions, recovery, and what is no position."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from hub.position import MAX_OFFSET
from tests.nodes import until
from tests.plane import client, plane
from tests.support import async_test


@async_test
async def test_a_subscriber_learns_its_position_and_recovers_from_it(valkey_url, prefix):
    """As SDKs expect it: recoverable, positioned, epoch, offset; then was_recovering, recovered, publications."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        first = (await one.command(subscribe={"channel": "chat:a"}))["subscribe"]
        epoch = first["epoch"]
        assert first == {"recoverable": True, "positioned": True, "epoch": epoch, "offset": 0}
        for number in range(3):
            await one.command(publish={"channel": "chat:a", "data": number})
            assert (await one.push())["pub"]["offset"] == number + 1
        async with client(hub.url) as two:
            since = {"channel": "chat:a", "recover": True, "epoch": epoch, "offset": 1}
            result = (await two.command(subscribe=since))["subscribe"]
            assert [(pub["offset"], pub["data"]) for pub in result.pop("publications")] == [(2, 1), (3, 2)]
            assert result == {**first, "offset": 3, "was_recovering": True, "recovered": True}
            await one.command(publish={"channel": "chat:a", "data": "live"})
            assert (await two.push())["pub"]["data"] == "live"


@pytest.mark.parametrize(
    "position",
    [{"epoch": "7.foreign", "offset": 0}, {"epoch": "", "offset": 1}, {"offset": MAX_OFFSET}, {"epoch": "@,@9,,"}],
)
@async_test
async def test_a_position_that_is_not_of_this_channel_is_not_recovered(valkey_url, prefix, position):
    """Foreign epochs, offsets from the future: told in the reply, with no publications; the subscription works."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        asked = {"channel": "chat:b", "recover": True, **position}
        result = (await one.command(subscribe=asked))["subscribe"]
        expected = not position.get("epoch") and not position.get("offset")
        assert result["was_recovering"] is True and result["recovered"] is expected and "publications" not in result
        await one.command(publish={"channel": "chat:b", "data": 1})
        assert (await one.push())["pub"]["offset"] == 1


MALFORMED = [
    *({"offset": offset} for offset in (-1, 1.5, "1", True, 2**53, [1])),
    *({"epoch": epoch} for epoch in (4, "x" * 513, ["4.a"])),
]


@pytest.mark.parametrize("position", MALFORMED)
@async_test
async def test_what_is_no_position_is_a_bad_request(valkey_url, prefix, position):
    """107; nobody is subscribed, and the connection goes on."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        reply = await one.command(subscribe={"channel": "chat:c", "recover": True, **position})
        assert reply["error"]["code"] == 107
        assert len(hub.streams) == 0
        await one.subscribe("chat:c")


@pytest.mark.parametrize("wish", ["recover", "recoverable", "positioned"])
@async_test
async def test_positions_where_there_are_none_are_not_available(valkey_url, prefix, wish):
    """108 in a namespace of mode none: silence would look like a promise."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        assert (await one.command(subscribe={"channel": "open:a", wish: True}))["error"]["code"] == 108


@async_test
async def test_who_comes_back_to_a_ticker_gets_the_newest_price(valkey_url, prefix):
    """Cache recovery: recoverable in the first reply, then the newest value and nothing older."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        assert (await one.command(subscribe={"channel": "ticker:ACME"}))["subscribe"] == {"recoverable": True}
        for price in (1, 2):
            await one.command(publish={"channel": "ticker:ACME", "data": price})
        async with client(hub.url) as two:
            asked = {"channel": "ticker:ACME", "recover": True}
            result = (await two.command(subscribe=asked))["subscribe"]
            seen = [pub["data"] for pub in result.pop("publications")]
            if seen == [1]:  # Redis has taken the next one, and this worker has yet to hear of it
                seen.append((await two.push())["pub"]["data"])
            assert seen[-1] == 2
            assert result == {"recoverable": True, "was_recovering": True, "recovered": True}


@pytest.mark.expects_log
@async_test
async def test_a_killed_link_costs_nobody_a_message(valkey_url, prefix):
    """Redis closes the subscriber connection; what is published meanwhile comes after it is back, in order."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, Redis.from_url(valkey_url) as redis:
        await one.subscribe("chat:d")
        numbers = iter(range(1, 1000))
        for _ in range(5):
            link = hub.ingest._link
            await redis.client_kill_filter(_type="pubsub")  # of this test's Valkey: ours is the only one
            for number in (next(numbers) for _ in range(10)):
                await one.command(publish={"channel": "chat:d", "data": number})
            await until(lambda link=link: hub.ingest.connected and hub.ingest._link is not link)
        got = [(await one.push())["pub"]["data"] for _ in range(50)]
        assert got == list(range(1, 51))


@async_test
async def test_a_flushed_store_is_told_to_those_inside(valkey_url, prefix):
    """FLUSHALL of this hub's keys: push 2500; the position is lost, and says so."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, Redis.from_url(valkey_url) as redis:
        first = (await one.command(subscribe={"channel": "chat:e"}))["subscribe"]
        await one.command(publish={"channel": "chat:e", "data": 1})
        await one.push()
        keys = [key async for key in redis.scan_iter(f"{prefix}:*")]
        await redis.delete(*keys)
        hub.streams.check_all()
        assert await one.push() == {"channel": "chat:e", "unsubscribe": {"code": 2500, "reason": "insufficient state"}}
        asked = {"channel": "chat:e", "recover": True, "epoch": first["epoch"], "offset": 1}
        again = (await one.command(subscribe=asked))["subscribe"]
        assert again["recovered"] is False and again["epoch"] != first["epoch"] and again["offset"] == 0


@async_test
async def test_an_unsubscribed_channel_is_followed_no_more_after_a_while(valkey_url, prefix):
    """The Redis channel is released, also when the client just vanished."""
    async with plane(valkey_url, prefix, stream_options={"linger_s": 0.05}) as hub:
        async with client(hub.url) as one:
            await one.subscribe("chat:f")
            await one.subscribe("chat:g")
            await one.command(unsubscribe={"channel": "chat:f"})
            await until(lambda: len(hub.streams) == 1)
        await until(lambda: len(hub.streams) == 0)
        assert hub.fanout.lines.counts() == {} and hub.ingest._held == set(hub.ingest._own)


@async_test
async def test_a_worker_that_is_behind_lets_subscribers_of_streams_start_anew(valkey_url, prefix):
    """worker.batch_bytes is full: what can't be taken up is recovered, and nothing is passed over in silence."""
    async with plane(valkey_url, prefix, batch_bytes=20_000) as hub, client(hub.url) as one:
        epoch = (await one.command(subscribe={"channel": "chat:h"}))["subscribe"]["epoch"]
        await asyncio.gather(*(publish(hub, "chat:h", "x" * 3000) for _ in range(20)))
        got = 0
        while got < 20:
            push = await one.push()
            if "pub" in push:
                got += 1
                assert push["pub"]["offset"] == got
            else:
                asked = {"channel": "chat:h", "recover": True, "epoch": epoch, "offset": got}
                result = (await one.command(subscribe=asked))["subscribe"]
                assert result["recovered"] is True
                got += len(result.get("publications", []))
        assert hub.fanout.dropped > 0, "the bound was not met"


async def publish(hub: object, channel: str, data: object) -> None:
    """Through the hub's one door in."""
    done = asyncio.get_running_loop().create_future()
    hub.publisher.publish(channel, hub.services.channels.resolve(channel), data, done.set_result)
    await done


@pytest.mark.expects_log
@async_test
async def test_who_cannot_be_told_that_it_is_out_is_closed(valkey_url, prefix, monkeypatch, caplog):
    """A fault of ours: its connection's end lets it come back, and the others are told theirs."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, client(hub.url) as two:
        for each in (one, two):
            await each.subscribe("chat:a")
        told = hub.presence.exit

        def fail(channel: str, name: str, hold: bool) -> None:
            if name == one.id:
                raise ZeroDivisionError
            told(channel, name, hold)

        monkeypatch.setattr(hub.presence, "exit", fail)
        hub.streams.overloaded("chat:a")
        assert (await two.push())["unsubscribe"]["code"] == 2500
        await asyncio.wait_for(one.socket.wait_closed(), 5)
        assert one.socket.close_code == 3004 and "a connection failed" in caplog.text
        assert "a connection's end failed" not in caplog.text
