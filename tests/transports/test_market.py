"""Market data over plain HTTP: watch lists, rates and fields of event streams and polls, as a query asks for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import jwt
import pytest

from hub import auth, errors
from hub.channels import Namespace
from hub.errors import CommandError
from hub.message import Publication
from hub.transports.market import asked, granted, slowest_s
from hub.wants import EVERY, Wants
from tests.eventsource import Answer, Stream, request, stream
from tests.nodes import until
from tests.plane import SECRET, Plane, plane
from tests.support import async_test
from tests.transports.test_websocket_market import publish

LATEST = Namespace(mode="latest", watch=3)
SLOW = Namespace(mode="latest", max_hz=2)
CHANNELS = {"chat:a": Namespace(mode="stream"), "t:$watch": LATEST, "t:A": LATEST}
LIST = "channel=ticker:$watch&"


# What a query says.


def read(query: dict, channels: dict, streamed: bool, claimed_hz: float) -> dict[str, Wants]:
    """As one request does."""
    data = asked(query, channels)
    latest = {name: rules for name, rules in channels.items() if rules.mode == "latest"}
    found = {name: granted(name, rules, data.get(name), streamed, claimed_hz) for name, rules in latest.items()}
    return {name: one for name, one in found.items() if one is not None}


def test_what_is_wanted_holds_for_all_latest_channels_and_symbols_for_the_list():
    """Others are taken as ever."""
    query = {"symbols": "A,B", "fields": "price,bid", "hz": "5", "marks": "true"}
    one = Wants(False, 5.0, ("bid", "price"), True)
    assert read(query, CHANNELS, True, EVERY) == {"t:$watch": one._replace(symbols=("A", "B")), "t:A": one}
    assert read({"symbols": "A"}, CHANNELS, False, EVERY) == {"t:$watch": Wants(symbols=("A",))}
    assert read({"mode": "raw"}, {"t:A": LATEST}, True, EVERY) == {"t:A": Wants(raw=True)}
    assert read({"token": "x"}, {"t:A": LATEST, "chat:a": CHANNELS["chat:a"]}, True, EVERY) == {}


def test_what_is_capped_is_capped_without_a_word():
    """By the namespace or the token; a channel named like a list, where there are none, is a channel."""
    assert read({}, {"s:A": SLOW, "t:A": LATEST}, True, EVERY) == {"s:A": Wants(hz=2.0)}
    assert read({}, {"s:A": SLOW, "s:$watch": SLOW}, True, 1.0) == {
        "s:A": Wants(hz=1.0),
        "s:$watch": Wants(hz=1.0),
    }
    with pytest.raises(CommandError) as caught:
        read({}, {"t:A": LATEST}, True, 0.0)
    assert caught.value.reply is errors.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("query", "channels", "words"),
    [
        ({"symbols": "A"}, ["t:A"], "symbols: found 0 watch lists; allowed: one, channel=NAMESPACE:$watch"),
        ({"data": "["}, ["t:A"], "data: allowed is an object of what is wanted by channel"),
        ({"data": "[]"}, ["t:A"], "data: allowed is an object of what is wanted by channel"),
        ({"data": '{"t:A":[]}'}, ["t:A"], "data: found []; allowed: an object of mode"),
        (
            {"data": '{"t:A":{"hz":1},"t:B":{"hz":1},"":{},"chat:a":{}}'},
            ["t:A", "chat:a"],
            "data: found channels that are not asked for, number 2, 3; allowed: of channel=NAME",
        ),
        ({"data": '{"t:$watch":{"symbols":[]}}'}, ["t:$watch"], "symbols: missing; allowed: ACME,BOLT"),
        ({"data": '{"t:A":{"hz":0}}'}, ["t:A"], "hz: found 0; allowed: above 0"),
        ({}, ["t:$watch"], "symbols: missing; allowed: ACME,BOLT with a watch list"),
        ({"symbols": ""}, ["t:$watch"], "symbols: found ''; allowed: 1 to 64"),
        ({"symbols": "A,,B"}, ["t:$watch"], "symbols: found ''; allowed: 1 to 64"),
        ({"symbols": "A*"}, ["t:$watch"], "symbols: found 'A*'; allowed: 1 to 64"),
        ({"hz": "5"}, ["chat:a"], "hz: allowed with a channel of a namespace with mode latest"),
        ({"hz": "fast"}, ["t:A"], "hz: found 'fast'; allowed: 0 to 1000"),
        ({"hz": "nan"}, ["t:A"], "hz: found nan; allowed: 0 to 1000"),
        ({"hz": "0"}, ["t:A"], "hz: found 0; allowed: above 0"),
        ({"marks": "1"}, ["t:A"], "marks: found '1'; allowed: true and false"),
        ({"mode": "all"}, ["t:A"], "mode: found 'all'; allowed: merge and raw"),
        ({"fields": ""}, ["t:A"], "fields: found ''; allowed: names"),
    ],
)
def test_what_is_no_wish_is_refused_by_its_name(query, channels, words):
    """With what was found and what is allowed."""
    with pytest.raises(CommandError) as caught:
        read(query, {name: CHANNELS[name] for name in channels}, True, EVERY)
    assert caught.value.reply is errors.BAD_REQUEST and words in str(caught.value)


def test_a_request_with_several_lists_says_what_is_wanted_of_each():
    """Whose the symbols are would not be known else; and of no list more than it holds."""
    both = '{"t:$watch":{"symbols":["A"]},"u:$watch":{"symbols":["B"],"marks":true},"chat:a":{"x":1}}'
    assert read(
        {"data": both}, {"t:$watch": LATEST, "u:$watch": LATEST, "chat:a": CHANNELS["chat:a"]}, True, EVERY
    ) == {
        "t:$watch": Wants(symbols=("A",)),
        "u:$watch": Wants(symbols=("B",), marks=True),
    }
    mixed = read(
        {"data": '{"t:A":{"hz":1,"client":"x"}}', "fields": "bid"}, {"t:A": LATEST, "t:B": LATEST}, True, EVERY
    )
    assert mixed == {"t:A": Wants(hz=1.0), "t:B": Wants(fields=("bid",))}
    with pytest.raises(CommandError, match="found 2 watch lists; allowed: one"):
        read({"symbols": "A"}, {"t:$watch": LATEST, "u:$watch": LATEST}, True, EVERY)
    with pytest.raises(CommandError, match="symbols: found 4; allowed: 3") as caught:
        read({"symbols": "A,B,C,D"}, CHANNELS, True, EVERY)
    assert caught.value.reply is errors.LIMIT_EXCEEDED


def test_a_list_that_no_proxy_would_pass_on_is_refused_with_what_to_do():
    """And one that is as long as it may be is not."""
    rules = Namespace(mode="latest", watch=10_000)
    text = ",".join(f"S{number:06}" for number in range(1000))
    assert len(read({"symbols": text}, {"t:$watch": rules}, True, EVERY)["t:$watch"].symbols) == 1000
    with pytest.raises(CommandError, match="found 8001 characters; allowed: 8000; longer lists by patterns") as caught:
        read({"symbols": text + ",A"}, {"t:$watch": rules}, True, EVERY)
    assert caught.value.reply is errors.LIMIT_EXCEEDED


@pytest.mark.parametrize("query", [{"marks": "true"}, {"mode": "raw"}])
def test_what_no_poll_can_have_is_refused(query):
    """As it would not be true."""
    with pytest.raises(CommandError, match=f"{next(iter(query))}.*: allowed over an event stream or the native wires"):
        read({**query, "symbols": "A"}, CHANNELS, False, EVERY)
    assert read({"mode": "merge"}, {"t:A": LATEST}, False, EVERY) == {}


def test_the_slowest_rate_holds_an_answer_back():
    """None where nothing is asked."""
    assert slowest_s({"a": Wants(hz=5.0), "b": Wants(hz=2.0), "c": Wants()}) == 0.5
    assert slowest_s({"c": Wants()}) == slowest_s({}) == 0.0


# Event streams.


@contextlib.asynccontextmanager
async def listening(hub: Plane, query: str, **headers: str) -> AsyncIterator[Stream]:
    before = hub.fanout.subscriptions
    async with stream(hub.port, query, **headers) as one:
        assert one.status == 200
        await until(lambda: hub.fanout.subscriptions > before)
        yield one


async def value(one: Stream) -> dict:
    return (await one.next()).json


@async_test
async def test_an_event_stream_watches_a_list(valkey_url, prefix):
    """Newest values first, then each one, on the list's channel; nothing is left at its end."""
    async with plane(valkey_url, prefix) as hub:
        await publish(hub, "A", 1)
        async with listening(hub, f"{LIST}symbols=A,B&fields=price&marks=true") as one:
            first = await value(one)
            assert (first["channel"], first["pub"]["data"]) == ("ticker:$watch", {"price": 1})
            assert first["pub"]["tags"]["channel"] == "ticker:A" and first["pub"]["tags"]["merged"] == "0"
            await publish(hub, "C", 2)
            await publish(hub, "B", 3)
            second = await value(one)
            assert second["pub"]["data"] == {"price": 3} and second["pub"]["tags"]["channel"] == "ticker:B"
        await until(lambda: hub.fanout.subscriptions == 0)


@async_test
async def test_an_event_stream_has_a_rate_and_raw_values(valkey_url, prefix):
    """Also of single channels, several in one request."""
    async with plane(valkey_url, prefix) as hub:
        async with listening(hub, "channel=ticker:A&channel=ticker:B&hz=2&marks=true") as one:
            for price in range(1, 6):
                await publish(hub, "A", price)
            prices = merged = 0
            while prices != 5:
                pub = (await value(one))["pub"]
                prices, merged = pub["data"]["price"], merged + int(pub["tags"]["merged"]) + 1
            assert merged == 5
        async with listening(hub, "channel=ticker:A&mode=raw") as one:
            assert (await value(one))["pub"]["data"]["price"] == 5
            await asyncio.gather(*(publish(hub, "A", price) for price in range(20)))
            assert [(await value(one))["pub"]["data"]["price"] for _ in range(20)] == list(range(20))


@async_test
async def test_patterns_of_an_event_stream_take_in_newcomers_and_what_does_not_fit_is_told(valkey_url, prefix):
    """At its beginning too: a status would end an EventSource for good."""
    async with plane(valkey_url, prefix) as hub:
        for symbol in ("A1", "A2", "A3", "B1"):
            await publish(hub, symbol, 1, namespace="fx")
        async with listening(hub, "channel=fx:$watch&symbols=A*,C") as one:
            assert [(await value(one))["pub"]["tags"]["channel"] for _ in range(3)] == ["fx:A1", "fx:A2", "fx:A3"]
            await publish(hub, "A4", 2, namespace="fx")
            assert (await value(one))["pub"]["tags"]["channel"] == "fx:A4"
            await publish(hub, "A5", 2, namespace="fx")
            notice = (await one.next("notice")).json["data"]["hub"]["left_out"]
            assert notice == {"channel": "fx:$watch", "count": 1, "allowed": 5}
        async with listening(hub, "channel=fx:$watch&symbols=A*,C") as one:
            assert [(await value(one))["pub"]["tags"]["channel"] for _ in range(4)][-1] == "fx:A4"
            assert (await one.next("notice")).json["data"]["hub"]["left_out"]["count"] == 1


@async_test
async def test_a_list_beside_streams_leaves_their_cursors_as_they_are(valkey_url, prefix):
    """Several streams, in step with their group, and a list: cursors go on, and bring a client back without loss."""
    query = f"{LIST}symbols=A,B,C&channel=chat:a&channel=log:a"
    async with plane(valkey_url, prefix) as hub:
        async with listening(hub, query) as one, listening(hub, query):
            for number in range(1, 6):
                await publish(hub, "B", number)
                await publish_stream(hub, "chat:a", number)
                await publish_stream(hub, "log:a", number)
                while f"~{number}~" not in (known := (await one.next("cursor")).id) or known.count(f"~{number}~") != 2:
                    pass
        await publish_stream(hub, "chat:a", 6)
        async with listening(hub, query, Last_Event_ID=known) as one:
            found = [await value(one), await value(one)]
            assert {(pub["channel"], pub["pub"]["data"] if "offset" in pub["pub"] else 5) for pub in found} == {
                ("ticker:$watch", 5),
                ("chat:a", 6),
            }


async def publish_stream(hub: Plane, channel: str, data: object) -> None:
    done: asyncio.Future = asyncio.get_running_loop().create_future()
    hub.publisher.publish(channel, hub.services.channels.resolve(channel), data, done.set_result)
    assert not isinstance(await done, Exception)


def token(**claims: object) -> str:
    return jwt.encode({"sub": "ann", "exp": 4_000_000_000, **claims}, SECRET, algorithm=auth.ALGORITHM)


@async_test
async def test_the_tokens_rate_holds_over_plain_http_too(valkey_url, prefix):
    """Whoever may have one value a second has no more by another wire; `raw` is refused."""
    async with plane(valkey_url, prefix) as hub:
        refused = await request(hub.port, "GET", f"/sse?channel=ticker:A&mode=raw&token={token(max_hz=1)}")
        assert (refused.status, refused.code) == (403, 103)
        refused = await request(hub.port, "GET", f"/poll?channel=ticker:A&token={token(max_hz=0)}")
        assert (refused.status, refused.code) == (403, 103)
        async with listening(hub, f"channel=ticker:A&token={token(max_hz=20)}") as one:
            asyncio_loop = asyncio.get_running_loop()
            began, last, count = asyncio_loop.time(), 0, 0
            for price in range(1, 101):
                await publish(hub, "A", price)
            while last != 100:
                last, count = (await value(one))["pub"]["data"]["price"], count + 1
            assert count <= 2 + 20 * (asyncio_loop.time() - began)


# Polls.


async def poll(hub: Plane, query: str, since: str = "", wait: float = 10) -> Answer:
    return await request(hub.port, "GET", f"/poll?{query}&wait={wait}&since={since}")


def prices(answer: Answer) -> dict[str, float]:
    found = [message["pub"] for message in answer.json["messages"]]
    assert all(message["channel"].endswith(":$watch") for message in answer.json["messages"])
    prices = {pub["tags"]["channel"].partition(":")[2]: pub["data"]["price"] for pub in found}
    assert len(prices) == len(found)
    return prices


@async_test
async def test_a_poll_answers_with_what_its_cursor_does_not_have(valkey_url, prefix):
    """Of each symbol the newest value, on whichever worker."""
    async with plane(valkey_url, prefix) as hub, plane(valkey_url, prefix) as other:
        query = LIST + "symbols=A,B,C&fields=price"
        await publish(hub, "A", 1)
        await publish(hub, "B", 1)
        first = await poll(hub, query)
        assert prices(first) == {"A": 1, "B": 1} and list(first.json["messages"][0]["pub"]["data"]) == ["price"]
        empty = await poll(other, query, first.cursor, wait=0)
        assert (empty.status, empty.body) == (204, b"")
        await publish(hub, "B", 2)
        await publish(hub, "C", 3)
        second = await poll(other, query, empty.cursor)
        assert prices(second) == {"B": 2, "C": 3}
        waiting = asyncio.create_task(poll(hub, query, second.cursor))
        await until(lambda: hub.fanout.subscriptions == 3)
        await publish(other, "A", 4)
        third = await waiting
        assert prices(third) == {"A": 4}
        assert (await poll(other, query, third.cursor, wait=0)).status == 204
        await until(lambda: hub.fanout.subscriptions == other.fanout.subscriptions == 0)


@async_test
async def test_a_poll_with_a_rate_holds_its_answer_back_and_brings_the_newest(valkey_url, prefix):
    """The first answer comes at once; so does one that nothing has come for."""
    async with plane(valkey_url, prefix) as hub:
        query, clock = LIST + "symbols=A,B&hz=2", asyncio.get_running_loop().time
        await publish(hub, "A", 1)
        began = clock()
        first = await poll(hub, query)
        assert clock() - began < 0.5 and (await poll(hub, query, first.cursor, wait=0)).status == 204
        waiting, began = asyncio.create_task(poll(hub, query, first.cursor)), clock()
        await until(lambda: hub.fanout.subscriptions == 2)
        for price in (2, 3, 4):
            await publish(hub, "A", price)
        await publish(hub, "B", 5)
        answer = await waiting
        assert clock() - began >= 0.5 and prices(answer) == {"A": 4, "B": 5}
        assert (await poll(hub, query, answer.cursor, wait=0)).status == 204


@async_test
async def test_a_poll_takes_patterns(valkey_url, prefix):
    """What comes while it waits, too; and says how many do not fit."""
    async with plane(valkey_url, prefix) as hub:
        query = "channel=fx:$watch&symbols=A*,B"
        empty = await poll(hub, query, wait=0)
        assert empty.status == 204
        waiting = asyncio.create_task(poll(hub, query))
        await until(lambda: hub.fanout.subscriptions == 1)
        await publish(hub, "A1", 1, namespace="fx")
        answer = await waiting
        assert prices(answer) == {"A1": 1} and "left_out" not in answer.json
        for number in range(2, 8):
            await publish(hub, f"A{number}", number, namespace="fx")
        answer = await poll(hub, query, answer.cursor)
        assert prices(answer) == {"A2": 2, "A3": 3, "A4": 4} and answer.json["left_out"] == {"fx:$watch": 3}
        # Nothing new, and still too many: whoever polls does not take them for gone.
        again = await poll(hub, query, answer.cursor, wait=0)
        assert (again.status, again.json["messages"], again.json["left_out"]) == (200, [], {"fx:$watch": 3})


@async_test
async def test_a_poll_has_as_many_symbols_as_a_cursor_holds(valkey_url, prefix):
    """By names it is refused, by patterns the rest is left out."""
    async with plane(valkey_url, prefix) as hub:
        names = ",".join(f"S{number}" for number in range(128))
        refused = await poll(hub, f"channel=wide:$watch&channel=chat:a&symbols={names}")
        assert (refused.status, refused.code) == (400, 106) and "found 128" in refused.json["error"]["message"]
        assert (await poll(hub, f"channel=wide:$watch&symbols={names}", wait=0)).status == 204
        for number in range(130):
            await publish(hub, f"S{number}", number, namespace="wide")
        answer = await poll(hub, "channel=wide:$watch&symbols=S*")
        assert len(prices(answer)) == 128 and answer.json["left_out"] == {"wide:$watch": 2}
        # Nothing new, and still too many: whoever polls does not take them for gone.
        again = await poll(hub, "channel=wide:$watch&symbols=S*", answer.cursor, wait=0)
        assert (again.status, again.json["messages"], again.json["left_out"]) == (200, [], {"wide:$watch": 2})


@async_test
async def test_what_is_wrong_is_a_400_on_both_wires(valkey_url, prefix):
    """Nobody is subscribed."""
    async with plane(valkey_url, prefix) as hub:
        for path in ("/sse", "/poll"):
            for query in ("", "symbols=A:B", "symbols=A&hz=0", "symbols=A&hz=5&hz=6", "symbols=A&channel=fx:$watch"):
                refused = await request(hub.port, "GET", f"{path}?{LIST}{query}")
                assert (refused.status, refused.code) == (400, 107), query
        refused = await poll(hub, LIST + "symbols=A&marks=true")
        assert (refused.status, refused.code) == (400, 107)
        refused = await request(hub.port, "GET", "/sse?channel=chat:a&channel=ticker:$watch&channel=ticker:A")
        assert refused.status == 400 and refused.json["error"]["index"] == 1
        both = '{"fx:$watch":{"symbols":["A"]},"ticker:$watch":{"symbols":["B"]}}'
        refused = await poll(hub, f"channel=fx:$watch&channel=ticker:A&channel=ticker:$watch&data={both}")
        assert (refused.code, refused.json["error"]["index"]) == (106, 2)
        assert hub.fanout.subscriptions == 0


@async_test
async def test_a_list_that_redis_does_not_let_in_is_a_503_or_a_reason_to_come_back(valkey_url, prefix, monkeypatch):
    """As with any channel."""
    async with plane(valkey_url, prefix) as hub:
        monkeypatch.setattr(hub.ingest, "connected", False)
        assert (await poll(hub, LIST + "symbols=A")).status == 503
        async with stream(hub.port, LIST + "symbols=A") as one:
            assert (await one.next("closed")).json["reconnect"] is True
        assert hub.fanout.subscriptions == 0
        monkeypatch.setattr(hub.ingest, "connected", True)


@pytest.mark.parametrize("body", [b"", b"no JSON", b'{"data":1,"tags":5}', b'{"tags":{"channel":'])
@async_test
async def test_a_poll_passes_over_what_is_no_publication(valkey_url, prefix, body):
    """Whoever reaches Redis can write it; the others of the same batch get theirs."""
    async with plane(valkey_url, prefix) as hub:
        before = hub.fanout.subscriptions
        first = asyncio.create_task(poll(hub, LIST + "symbols=A,B"))
        await until(lambda: hub.fanout.subscriptions == before + 2)
        async with listening(hub, LIST + "symbols=B&fields=price") as other:
            batch = [Publication("ticker:A", body), Publication("ticker:B", b'{"data":{"price":2}}')]
            hub.services.subscriptions.deliver(batch)
            assert (await value(other))["pub"]["data"] == {"price": 2}
        answer = await first
        values = {pub["tags"]["channel"]: pub.get("data") for pub in (one["pub"] for one in answer.json["messages"])}
        assert answer.status == 200 and values["ticker:B"]["price"] == 2
