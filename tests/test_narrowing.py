"""Narrowing: what a refresh with a lesser token leaves a client, over a real WebSocket and a real Valkey."""

from __future__ import annotations

import asyncio
import itertools
import time

import orjson
import pytest

from hub import auth
from hub.subscribe import Subscriptions
from tests.plane import SECRET, Client, client, plane
from tests.support import async_test
from tests.transports.test_websocket_market import publish, rpc, subscribe

SUB = ["sub"]
NUMBERS = itertools.count()


def token(*channels: str, match: str = "exact", **claims: object) -> str:
    """One of ann's, who may subscribe to these."""
    caps = [{"channels": list(channels), "match": match, "allow": SUB}] if channels else []
    return auth.make("ann", SECRET, 3600, time.time(), jti=str(next(NUMBERS)), caps=caps, **claims)


async def refresh(one: Client, text: str) -> None:
    reply = await one.command(refresh={"token": text})
    assert "refresh" in reply, reply


async def out(one: Client) -> str:
    """The channel that it is taken out of next; as the hub says it."""
    push = await one.push()
    assert push["unsubscribe"] == {"code": 2500, "reason": "permission denied"}, push
    return push["channel"]


async def rate(one: Client) -> tuple[str, float]:
    """The channel that it has more slowly from now on, and how many values a second."""
    told = (await one.push())["message"]["data"]["hub"]["rate"]
    return told["channel"], told["hz"]


@async_test
async def test_channels_that_may_be_had_no_more_are_left(valkey_url, prefix):
    """Those that the token before allowed and this one does not; who asks anew is told why."""
    async with plane(valkey_url, prefix) as hub, client(hub.url, token("closed:a", "closed:b", "vault:s")) as one:
        for channel in ("closed:a", "closed:b", "vault:s", "open:c"):
            await one.subscribe(channel)
        await refresh(one, token("closed:b"))
        assert [await out(one), await out(one)] == ["closed:a", "vault:s"]
        assert hub.fanout.lines.counts() == {"closed:b": 1, "open:c": 1}
        assert (await one.command(subscribe={"channel": "closed:a"}))["error"]["code"] == 103
        await refresh(one, token("closed:*", match="wildcard"))
        await one.subscribe("closed:a")


@async_test
async def test_what_is_held_by_another_right_stays(valkey_url, prefix):
    """By a channel token, by the namespace's rule, or because the server has put the client there."""
    granted = auth.make("ann", SECRET, 3600, time.time(), channel="closed:t")
    async with plane(valkey_url, prefix) as hub, client(hub.url, token("closed:t", "users:a")) as one:
        await one.subscribe("closed:t", token=granted)
        await one.subscribe("users:a")
        [session] = hub.services.users.of("ann")
        joined: asyncio.Future = asyncio.get_running_loop().create_future()
        session.join("closed:s", hub.services.channels.resolve("closed:s"), joined.set_result)
        assert await joined is None
        await refresh(one, token())
        assert hub.fanout.lines.counts() == {"closed:t": 1, "users:a": 1, "closed:s": 1}


@async_test
async def test_a_list_of_which_a_symbol_may_not_be_had_goes(valkey_url, prefix):
    """As a whole, and with it all its symbols; one whose symbols may all be had stays."""
    all_of_it = token("desk:*", match="wildcard")
    async with plane(valkey_url, prefix) as hub, client(hub.url, all_of_it) as one, client(hub.url, all_of_it) as two:
        for each, symbols in ((one, ["A", "B"]), (two, ["A"])):
            assert "code" not in await subscribe(each, "desk:$watch", symbols=symbols)
            await refresh(each, token("desk:$watch", "desk:A"))
        assert await out(one) == "desk:$watch"
        assert hub.fanout.lines.counts() == {"desk:A": 1}


@async_test
async def test_what_may_be_had_more_slowly_only_is_slowed_down(valkey_url, prefix):
    """Plain ones, those with a rate, and lists; every value is not to be had at a rate, so who has that leaves."""
    async with plane(valkey_url, prefix) as hub, client(hub.url, token()) as one:
        await one.subscribe("ticker:P")
        await subscribe(one, "ticker:$watch", symbols=["A"], hz=20)
        await subscribe(one, "ticker:S", hz=0.5)
        await subscribe(one, "ticker:R", mode="raw")
        await one.subscribe("open:a")
        await refresh(one, token(max_hz=1))
        # Each is told its new rate, and nothing is said of the one that was slow enough.
        assert [await rate(one), await rate(one)] == [("ticker:P", 1), ("ticker:$watch", 1)]
        assert await out(one) == "ticker:R"
        [session] = hub.services.users.of("ann")
        rates = {name: entry.wants.hz for name, entry in session.entries.items() if name.startswith("ticker:")}
        assert rates == {"ticker:P": 1, "ticker:$watch": 1, "ticker:S": 0.5}
        assert {session.entries[name].terms.pace for name in ("ticker:P", "ticker:$watch")} == {hub.fanout.paces.at(1)}
        [audience] = hub.fanout.lines.by_channel["ticker:A"].audiences.values()
        assert audience.pace is hub.fanout.paces.at(1)
        await publish(hub, "P", 7)
        assert (await one.push())["pub"]["data"]["price"] == 7
        await refresh(one, token(max_hz=5))
        assert session.entries["ticker:P"].wants.hz == 1, "more is to be asked for"
        assert await rpc(one, "hub.rate", channel="ticker:P", hz=50) == {"hz": 5}


@pytest.mark.parametrize("data", [{}, {"mode": "raw"}])
@async_test
async def test_a_subscription_under_way_is_narrowed_too(valkey_url, prefix, data, monkeypatch):
    """Whether it is about to come into a channel that may not be had, or to one that may be had more slowly."""
    held: list = []
    original = Subscriptions.subscribe
    monkeypatch.setattr(Subscriptions, "subscribe", lambda *args: held.append(lambda: original(*args)))
    async with plane(valkey_url, prefix) as hub, client(hub.url, token("closed:a")) as one:
        for number, params in ((91, {"channel": "closed:a"}), (92, {"channel": "ticker:A", "data": data})):
            await one.socket.send(orjson.dumps({"id": number, "subscribe": params}).decode())
        await refresh(one, token(max_hz=2))
        [session] = hub.services.users.of("ann")
        for go_on in held:
            go_on()
        assert (await one._first(lambda line: line.get("id") == 91))["error"]["code"] == 107
        assert "subscribe" in await one._first(lambda line: line.get("id") == 92)
        if data:
            push = await one.push()
            assert (push["channel"], push["unsubscribe"]["code"]) == ("ticker:A", 2500)
            assert not session.entries
        else:
            assert [entry.wants.hz for entry in session.entries.values()] == [2]
            assert await rate(one) == ("ticker:A", 2)


@async_test
async def test_a_refresh_with_the_same_rights_changes_nothing(valkey_url, prefix):
    async with plane(valkey_url, prefix) as hub, client(hub.url, token("closed:a", max_hz=5)) as one:
        await one.subscribe("closed:a")
        await subscribe(one, "ticker:A")
        [session] = hub.services.users.of("ann")
        before = dict(session.entries)
        await refresh(one, token("closed:a", max_hz=5))
        assert session.entries == before
