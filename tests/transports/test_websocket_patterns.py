"""Watch lists with patterns over a real WebSocket and a real Valkey: what there is, what comes, what does not fit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hub import symbols
from tests.nodes import until
from tests.plane import Client, Plane, client, plane
from tests.support import async_test
from tests.transports.test_websocket_market import publish, rpc, subscribe, token

WATCH = "fx:$watch"


@contextlib.asynccontextmanager
async def market(url: str, prefix: str, *symbols: str) -> AsyncIterator[tuple[Plane, Client]]:
    """A hub with a value of each of these symbols, and a client."""
    async with plane(url, prefix) as hub, client(hub.url) as one:
        for symbol in symbols:
            await put(hub, symbol, 1)
        yield hub, one


async def put(hub: Plane, symbol: str, price: float) -> None:
    await publish(hub, symbol, price, namespace="fx")


def whose(reply: dict) -> list[str]:
    return [pub["tags"]["channel"].removeprefix("fx:") for pub in reply.get("publications", [])]


async def seen(one: Client) -> tuple[str, float]:
    """Symbol and price of the next publication."""
    push = (await one._first(lambda line: "pub" in line.get("push", {})))["push"]
    assert push["channel"] == WATCH, push
    return push["pub"]["tags"]["channel"].removeprefix("fx:"), push["pub"]["data"]["price"]


async def left_out(one: Client) -> tuple[int, int]:
    line = await one._first(lambda line: "message" in line.get("push", {}))
    notice = line["push"]["message"]["data"]["hub"]["left_out"]
    assert notice["channel"] == WATCH
    return notice["count"], notice["allowed"]


@async_test
async def test_a_pattern_takes_in_what_there_is_and_what_comes(valkey_url, prefix):
    """By the newest value, and then by the very first; each value once and in order, nothing of other symbols."""
    async with market(valkey_url, prefix, "ACME", "ACT", "BOLT") as (hub, one):
        assert whose(await subscribe(one, WATCH, symbols=["AC*"])) == ["ACME", "ACT"]
        for price, symbol in enumerate(("BEST", "ACE", "ACME", "ACE", "BOLT", "ACID"), 1):
            await put(hub, symbol, price)
        assert [await seen(one) for _ in range(4)] == [("ACE", 2), ("ACME", 3), ("ACE", 4), ("ACID", 6)]
        assert await rpc(one, "hub.watch", channel=WATCH, remove=["AC*"]) == {"symbols": 0}
        await put(hub, "ACME", 7)
        assert await rpc(one, "hub.watch", channel=WATCH, add=["B*"]) == {"symbols": 2}
        assert sorted([await seen(one), await seen(one)]) == [("BEST", 1), ("BOLT", 5)]
    await until(lambda: hub.fanout.subscriptions == 0)


@async_test
async def test_a_pattern_that_nothing_matches_yet_waits_for_the_first(valkey_url, prefix):
    """Also as the worker's only subscription, with marks and a rate."""
    async with market(valkey_url, prefix) as (hub, one):
        assert whose(await subscribe(one, WATCH, symbols=["N*"], marks=True, hz=20)) == []
        await put(hub, "NEW", 1)
        pub = (await one.push())["pub"]
        assert pub["data"]["price"] == 1 and pub["tags"]["channel"] == "fx:NEW" and pub["tags"]["merged"] == "0"


@async_test
async def test_a_raw_list_gets_every_value_of_a_newcomer(valkey_url, prefix):
    """From the first on, whatever comes in the same read."""
    async with market(valkey_url, prefix) as (hub, one):
        await subscribe(one, WATCH, symbols=["N*"], mode="raw")
        await asyncio.gather(*(put(hub, "NEW", price) for price in range(50)))
        assert [await seen(one) for _ in range(50)] == [("NEW", price) for price in range(50)]


@async_test
async def test_a_symbol_stays_while_anything_holds_it(valkey_url, prefix):
    """A name, or another pattern."""
    async with market(valkey_url, prefix, "ACME", "ACT", "AXE") as (hub, one):
        await subscribe(one, WATCH, symbols=["AC*", "ACME", "A*"])
        assert await rpc(one, "hub.watch", channel=WATCH, remove=["A*"]) == {"symbols": 2}
        assert await rpc(one, "hub.watch", channel=WATCH, remove=["AC*"]) == {"symbols": 1}
        assert hub.fanout.lines.counts() == {"fx:ACME": 1}
        assert await rpc(one, "hub.watch", channel=WATCH, remove=["ACME"]) == {"symbols": 0}


@async_test
async def test_more_than_a_list_holds_is_refused_and_changes_nothing(valkey_url, prefix):
    """At subscribe and by hub.watch, which takes nothing away then either."""
    async with market(valkey_url, prefix, "A1", "A2", "A3", "A4", "B1", "B2", "C1", "C2", "C3", "C4", "C5", "C6") as (
        hub,
        one,
    ):
        refused = await subscribe(one, WATCH, symbols=["C*"])
        assert refused["code"] == 106 and "found 6 by names and patterns; allowed: 5" in refused["message"]
        assert len(whose(await subscribe(one, WATCH, symbols=["A*", "B1"]))) == 5
        for change in ({"add": ["B*"]}, {"add": ["C*"], "remove": ["A*"]}, {"add": ["NONE"]}):
            assert (await rpc(one, "hub.watch", channel=WATCH, **change))["code"] == 106
        assert hub.fanout.lines.counts() == {f"fx:{symbol}": 1 for symbol in ("A1", "A2", "A3", "A4", "B1")}
        assert await rpc(one, "hub.watch", channel=WATCH, add=["B*"], remove=["A*"]) == {"symbols": 2}


@async_test
async def test_what_appears_beyond_the_bound_is_left_out_and_told(valkey_url, prefix):
    """And comes in once there is room."""
    async with market(valkey_url, prefix, "A1", "A2", "A3", "A4", "B") as (hub, one):
        await subscribe(one, WATCH, symbols=["A*", "B"])
        await put(hub, "A0", 2)
        assert await left_out(one) == (1, 5)
        await put(hub, "A1", 3)
        assert await seen(one) == ("A1", 3)
        assert await rpc(one, "hub.watch", channel=WATCH, remove=["B"]) == {"symbols": 5}
        assert await seen(one) == ("A0", 2)
        assert await left_out(one) == (0, 5)
        await put(hub, "A0", 4)
        assert await seen(one) == ("A0", 4)


@async_test
async def test_lists_have_no_more_channels_than_the_worker(valkey_url, prefix):
    """Names that are asked for at once are refused together; what patterns take in by itself is left out, and told."""
    async with plane(valkey_url, prefix, limits={"channels": 2}) as hub, client(hub.url) as one:
        asked = {"channel": WATCH, "data": {"symbols": ["A", "B", "C"]}}
        assert (await one.command(subscribe=asked))["error"]["code"] == 111
        assert len(hub.fanout.lines) == 0
        await subscribe(one, WATCH, symbols=["A*"])
        for symbol in ("A1", "A2", "A3", "A4"):
            await put(hub, symbol, 1)
        assert [await seen(one) for _ in range(2)] == [("A1", 1), ("A2", 1)]
        told = await left_out(one)
        while told != (2, 2):
            told = await left_out(one)
        assert len(hub.fanout.lines) == 2 and hub.services.quotas.refusals.counts["worker_channels"] == 3


@async_test
async def test_who_comes_back_to_a_list_that_has_outgrown_its_bound_is_not_refused(valkey_url, prefix):
    """It has patterns and names as it changed them, and is told what is left out."""
    async with market(valkey_url, prefix, "A1", "A2", "A3", "A4") as (hub, _):
        async with client(hub.url, token("ann")) as one:
            await subscribe(one, WATCH, symbols=["B"])
            await rpc(one, "hub.watch", channel=WATCH, add=["A*"])
        await put(hub, "A5", 1)
        await put(hub, "A6", 1)
        async with client(hub.url, token("ann")) as one:
            data = {"symbols": ["B"]}
            reply = await one.command(subscribe={"channel": WATCH, "recover": True, "data": data})
            assert whose(reply["subscribe"]) == ["A1", "A2", "A3", "A4"]
            assert await left_out(one) == (2, 5)
            assert await rpc(one, "hub.watch", channel=WATCH, remove=["B"]) == {"symbols": 5}
            assert await seen(one) == ("A5", 1)


@pytest.mark.parametrize("pattern", ["*AC", "A*C", "A**", "*", "A:*", "$*", "x" * 65 + "*"])
@async_test
async def test_what_is_no_pattern_is_refused(valkey_url, prefix, pattern):
    """With what is allowed; and where there are no patterns, each is."""
    async with market(valkey_url, prefix) as (_, one):
        refused = await subscribe(one, WATCH, symbols=[pattern])
        assert refused["code"] == 107 and "or a prefix of 1 or more of them and a *" in refused["message"]
        await subscribe(one, WATCH, symbols=[])
        assert (await rpc(one, "hub.watch", channel=WATCH, remove=[pattern]))["code"] == 107
        refused = await subscribe(one, "ticker:$watch", symbols=["A*"])
        assert refused["code"] == 107 and "prefix" not in refused["message"]


@pytest.mark.expects_log
@async_test
async def test_a_namespace_with_too_many_symbols_has_no_patterns_any_more(valkey_url, prefix, monkeypatch):
    """Who has some is sent away, and told why when it comes again."""
    monkeypatch.setattr(symbols, "MAX_SYMBOLS", 2)
    async with market(valkey_url, prefix, "A1", "A2") as (hub, one):
        await subscribe(one, WATCH, symbols=["A*"])
        await put(hub, "A3", 1)
        push = await one.push()
        assert (push["channel"], push["unsubscribe"]["code"]) == (WATCH, 2500)
        refused = await subscribe(one, WATCH, symbols=["A*"])
        assert refused["code"] == 106 and "namespaces of up to 2 symbols" in refused["message"]
        assert hub.fanout.subscriptions == 0


@pytest.mark.expects_log
@async_test
async def test_what_appeared_while_the_link_was_down_is_found(valkey_url, prefix):
    """The names are read anew, and the client gets the newest value."""
    async with market(valkey_url, prefix, "A1") as (hub, one):
        await subscribe(one, WATCH, symbols=["A*"])
        async with plane(valkey_url, prefix) as other:
            hub.ingest.drop("for a test")
            await put(other, "A2", 5)  # at once: a link that is up again already would have it from there
        assert await seen(one) == ("A2", 5)
        await put(hub, "A2", 6)
        assert await seen(one) == ("A2", 6)


@async_test
async def test_who_watches_gets_each_newcomer_of_a_storm_in_order(valkey_url, prefix):
    """New symbols all the time, while lists come and go: the first value, or the newest at the reply, then each one."""
    async with plane(valkey_url, prefix) as hub:
        stop = asyncio.Event()

        async def feed() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await asyncio.sleep(0.001)  # a client in Python keeps up with that
                await publish(hub, f"S{number // 10}", number, namespace="wide")

        feeding = asyncio.create_task(feed())
        for _ in range(15):
            async with client(hub.url) as one:
                reply = await subscribe(one, "wide:$watch", symbols=["S*"])
                prices = [pub["data"]["price"] for pub in reply.get("publications", [])]
                prices = sorted(prices)[-1:] + [(await one.push())["pub"]["data"]["price"] for _ in range(25)]
                assert prices == list(range(int(prices[0]), int(prices[0]) + len(prices)))
                assert "unsubscribe" in await one.command(unsubscribe={"channel": "wide:$watch"})
        stop.set()
        await feeding
