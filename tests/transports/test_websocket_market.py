"""Market data over a real WebSocket: modes, rates, fields, marks and watch lists, as any native client has them."""

from __future__ import annotations

import asyncio
import itertools

import jwt
import orjson
import pytest

from hub import auth
from tests.nodes import until
from tests.plane import NAMESPACES, SECRET, Client, Plane, client, plane
from tests.support import async_test

WATCH = "ticker:$watch"


async def subscribe(one: Client, channel: str, **data: object) -> dict:
    reply = await one.command(subscribe={"channel": channel, "data": data})
    return reply.get("subscribe") or reply["error"]


async def publish(hub: Plane, symbol: str, price: float, seq: int = 0, namespace: str = "ticker") -> None:
    data = {"symbol": symbol, "price": price, "bid": price - 1, "seq": seq, "time_ns": "5"}
    done: asyncio.Future = asyncio.get_running_loop().create_future()
    channel = f"{namespace}:{symbol}"
    hub.publisher.publish(channel, NAMESPACES[namespace], data, done.set_result)
    assert not isinstance(await done, Exception)


async def rpc(one: Client, method: str, **data: object) -> dict:
    reply = await one.command(rpc={"method": method, "data": data})
    return reply["rpc"]["data"] if "rpc" in reply else reply["error"]


@async_test
async def test_who_subscribes_gets_the_newest_value_and_then_only_newer_ones(valkey_url, prefix):
    """Also who was never there before; with fields just those."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await publish(hub, "A", 1)
        await publish(hub, "A", 2)
        reply = await subscribe(one, "ticker:A", fields=["price"])
        assert reply["publications"] == [{"data": {"price": 2}}]
        assert reply["data"] == {"mode": "merge", "fields": ["price"]}
        await publish(hub, "A", 3)
        assert (await one.push())["pub"] == {"data": {"price": 3}}


@async_test
async def test_a_rate_is_changed_live_and_the_last_value_goes_out(valkey_url, prefix):
    """Paused, nothing comes; then the newest; and what was not sent is counted."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await subscribe(one, "ticker:A", hz=0, marks=True)
        for price in (1, 2, 3):
            await publish(hub, "A", price)
        assert await rpc(one, "hub.rate", channel="ticker:A", hz=20) == {"hz": 20}
        pub = (await one.push())["pub"]
        assert pub["data"]["price"] == 3 and pub["tags"]["merged"] == "2" and pub["tags"]["time"] == "5"
        assert await rpc(one, "hub.rate", channel="ticker:A", hz=1000) == {"hz": 1000}
        await publish(hub, "A", 4)
        assert (await one.push())["pub"]["data"]["price"] == 4


@async_test
async def test_a_plain_subscription_may_have_a_rate_too(valkey_url, prefix):
    """And `raw` none, as it is every value."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await one.subscribe("ticker:A")
        assert await rpc(one, "hub.rate", channel="ticker:A", hz=5) == {"hz": 5}
        await publish(hub, "A", 1)
        assert (await one.push())["pub"]["data"]["price"] == 1
        await subscribe(one, "ticker:B", mode="raw")
        assert (await rpc(one, "hub.rate", channel="ticker:B", hz=5))["code"] == 107
        for price in range(50):
            await publish(hub, "B", price)
        assert [(await one.push())["pub"]["data"]["price"] for _ in range(50)] == list(range(50))


@async_test
async def test_the_namespace_and_the_token_cap_the_rate(valkey_url, prefix):
    """What is granted is told; who is capped may not have `raw`."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        assert (await subscribe(one, "slow:A"))["data"] == {"mode": "merge", "hz": 2}
        assert (await subscribe(one, "slow:B", mode="raw"))["code"] == 103
        assert await rpc(one, "hub.rate", channel="slow:A", hz=50) == {"hz": 2}
    token = jwt.encode({"sub": "ann", "exp": 4_000_000_000, "max_hz": 1}, SECRET, algorithm=auth.ALGORITHM)
    async with plane(valkey_url, prefix) as hub, client(hub.url, token) as one:
        assert (await subscribe(one, "ticker:A", hz=5))["data"] == {"mode": "merge", "hz": 1}


@async_test
async def test_a_watch_list_is_one_subscription_to_many_symbols(valkey_url, prefix):
    """Its values come on its own channel, each with a tag; it grows and shrinks; one presence, one reply."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        for symbol, price in (("A", 1), ("B", 2), ("C", 3)):
            await publish(hub, symbol, price)
        reply = await subscribe(one, WATCH, symbols=["A", "B", "NONE"], fields=["price"])
        assert reply["publications"] == [
            {"data": {"price": 1}, "tags": {"channel": "ticker:A"}},
            {"data": {"price": 2}, "tags": {"channel": "ticker:B"}},
        ]
        await publish(hub, "B", 4)
        push = await one.push()
        assert push["channel"] == WATCH and push["pub"] == {"data": {"price": 4}, "tags": {"channel": "ticker:B"}}
        assert await rpc(one, "hub.watch", channel=WATCH, add=["C"], remove=["A"]) == {"symbols": 3}
        push = await one.push()
        assert push["pub"] == {"data": {"price": 3}, "tags": {"channel": "ticker:C"}}
        await publish(hub, "A", 5)
        await publish(hub, "C", 6)
        assert (await one.push())["pub"]["data"] == {"price": 6}
        assert "unsubscribe" in await one.command(unsubscribe={"channel": WATCH})
        assert hub.fanout.subscriptions == 0


@async_test
async def test_a_symbol_may_be_held_by_itself_beside_a_watch_list(valkey_url, prefix):
    """They are two subscriptions, with wishes of their own."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await subscribe(one, WATCH, symbols=["A"])
        await one.subscribe("ticker:A")
        await publish(hub, "A", 1)
        pushes = [await one.push(), await one.push()]
        assert sorted(push["channel"] for push in pushes) == [WATCH, "ticker:A"]


async def at_once(one: Client, *commands: dict) -> list[dict]:
    """Replies to commands that come in one frame."""
    lines = [{"id": 1000 + i, **command} for i, command in enumerate(commands)]
    await one.socket.send(b"\n".join(map(orjson.dumps, lines)).decode())
    return [await one._first(lambda line, i=i: line.get("id") == 1000 + i) for i in range(len(lines))]


def watch(**data: object) -> dict:
    return {"rpc": {"method": "hub.watch", "data": {"channel": WATCH, **data}}}


@async_test
async def test_lists_change_while_redis_is_asked_and_nothing_is_left(valkey_url, prefix):
    """Adds, removals, rates and an end, one on top of the other in one frame."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        begin = {"subscribe": {"channel": WATCH, "data": {"symbols": ["A", "B"]}}}
        for _ in range(5):
            replies = await at_once(one, begin, watch(add=["C"]), {"unsubscribe": {"channel": WATCH}})
            assert "error" in replies[0] and "error" in replies[1] and "unsubscribe" in replies[2]
        assert "publications" not in await subscribe(one, WATCH, symbols=["A"])
        rate = {"rpc": {"method": "hub.rate", "data": {"channel": WATCH, "hz": 5}}}
        changes = [watch(add=["B", "C"]), watch(remove=["B"]), rate, watch(add=["B"]), watch(add=["D"], remove=["D"])]
        await at_once(one, *changes)
        assert await rpc(one, "hub.watch", channel=WATCH, add=["A", "B", "C"]) == {"symbols": 3}
        assert sum(hub.fanout.lines.counts().values()) == 3
        await publish(hub, "C", 1)
        assert (await one.push())["pub"]["data"]["price"] == 1
    await until(lambda: hub.fanout.subscriptions == 0)
    assert hub.fanout.lines.counts() == {}


@async_test
async def test_values_of_a_list_come_behind_the_answer_that_let_the_client_in(valkey_url, prefix):
    """Also where it subscribes and adds in one frame, and all is known here: else they are of no subscription yet."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, client(hub.url) as other:
        for symbol, price in (("A", 1), ("B", 2)):
            await publish(hub, symbol, price)
        await subscribe(other, WATCH, symbols=["A", "B"])
        commands = [{"subscribe": {"channel": WATCH, "data": {"symbols": ["A"]}}}, watch(add=["B"])]
        lines = [{"id": 50 + i, **command} for i, command in enumerate(commands)]
        await one.socket.send(b"\n".join(map(orjson.dumps, lines)).decode())
        seen: list[str] = []
        while len(seen) < 3:
            for line in (await one.socket.recv()).split("\n"):
                seen.append(next(name for name in ("subscribe", "rpc", "push") if name in orjson.loads(line)))
        assert seen == ["subscribe", "push", "rpc"]


@pytest.mark.parametrize(
    ("method", "data", "code"),
    [
        ("hub.watch", {"channel": "slow:$watch", "add": ["A", "B", "C", "D"]}, 106),
        ("hub.watch", {"channel": "slow:$watch", "add": ["C", "D"]}, 106),
        ("hub.watch", {"channel": "slow:$watch", "add": "A"}, 107),
        ("hub.watch", {"channel": "slow:$watch", "plus": ["A"]}, 107),
        ("hub.watch", {"channel": "slow:A", "add": ["A"]}, 107),
        ("hub.watch", {"add": ["A"]}, 107),
        ("hub.watch", None, 107),
        ("hub.rate", {"channel": "slow:$watch", "hz": -1}, 107),
        ("hub.rate", {"channel": "slow:$watch"}, 107),
        ("hub.rate", {"channel": "slow:none", "hz": 1}, 107),
        ("hub.rate", {"channel": "open:a", "hz": 1}, 107),
    ],
)
@async_test
async def test_a_bad_change_is_refused_and_changes_nothing(valkey_url, prefix, method, data, code):
    """One line that says what is allowed."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await subscribe(one, "slow:$watch", symbols=["A", "B"])
        await one.subscribe("open:a")
        reply = await one.command(rpc={"method": method, "data": data})
        assert reply["error"]["code"] == code
        assert await rpc(one, "hub.watch", channel="slow:$watch", add=["A"]) == {"symbols": 2}


@async_test
async def test_a_silent_source_is_told(valkey_url, prefix):
    """After stale_ms, with the last value; and that it is back with the next."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await publish(hub, "A", 1, namespace="silent")
        await subscribe(one, "silent:$watch", symbols=["A"], marks=True)
        tags = (await one.push())["pub"]["tags"]
        assert (tags["state"], tags["repeat"], tags["channel"]) == ("stale", "1", "silent:A")
        async with client(hub.url) as late:
            reply = await subscribe(late, "silent:A", marks=True)
            assert reply["publications"][0]["tags"]["state"] == "stale"
        await publish(hub, "A", 2, namespace="silent")
        pub = (await one.push())["pub"]
        assert pub["tags"]["state"] == "live" and pub["data"]["price"] == 2


@async_test
async def test_a_gap_at_the_source_is_a_mark(valkey_url, prefix):
    """Numbers that never came, whether values between were merged or not."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        await publish(hub, "A", 1, seq=1)
        await subscribe(one, "ticker:A", marks=True)
        await publish(hub, "A", 2, seq=5)
        assert (await one.push())["pub"]["tags"]["gap"] == "3"
        await publish(hub, "A", 3, seq=6)
        assert "gap" not in (await one.push())["pub"]["tags"]


@async_test
async def test_who_comes_in_the_middle_of_a_feed_never_sees_an_older_value_behind_a_newer_one(valkey_url, prefix):
    """Many come one after the other while the feed runs: the value of the reply, then each one behind it."""
    async with plane(valkey_url, prefix) as hub:
        stop = asyncio.Event()
        numbers = itertools.count(1)

        async def feed() -> None:
            while not stop.is_set():
                await asyncio.sleep(0.001)  # a client in Python keeps up with that
                await publish(hub, "A", next(numbers))

        feeding = asyncio.create_task(feed())
        for _ in range(25):
            async with client(hub.url) as one:
                reply = await subscribe(one, "ticker:A")
                seen = [pub["data"]["price"] for pub in reply.get("publications", [])]
                seen += [(await one.push())["pub"]["data"]["price"] for _ in range(3)]
                first = seen[0]
                assert seen == list(range(int(first), int(first) + len(seen)))
                # The library's close does not read what it has not been asked for.
                assert "unsubscribe" in await one.command(unsubscribe={"channel": "ticker:A"})
        stop.set()
        await feeding


def token(user: str, **claims: object) -> str:
    return jwt.encode({"sub": user, "exp": 4_000_000_000, **claims}, SECRET, algorithm=auth.ALGORITHM)


async def come_back(one: Client, **data: object) -> dict:
    """As SDKs do: with what they once began with."""
    return (await one.command(subscribe={"channel": WATCH, "recover": True, "data": data}))["subscribe"]


@async_test
async def test_what_a_user_changed_holds_when_it_comes_back(valkey_url, prefix):
    """Rate and list, also on another worker; not for another user, nor for one who begins with another list."""
    async with plane(valkey_url, prefix) as hub:
        for symbol in "ABC":
            await publish(hub, symbol, ord(symbol))
        async with client(hub.url, token("ann")) as one:
            await subscribe(one, WATCH, symbols=["A"], fields=["price"])
            await rpc(one, "hub.watch", channel=WATCH, add=["B", "C"], remove=["A"])
            assert await rpc(one, "hub.rate", channel=WATCH, hz=5) == {"hz": 5}
        await until(lambda: hub.fanout.subscriptions == 0)
        async with plane(valkey_url, prefix) as other, client(other.url, token("ann")) as one:
            reply = await come_back(one, symbols=["A"], fields=["price"])
            assert reply["data"] == {"mode": "merge", "hz": 5, "fields": ["price"], "symbols": ["B", "C"]}
            assert sorted(pub["data"]["price"] for pub in reply["publications"]) == [66, 67]
        for user, symbols in (("bob", ["A"]), ("ann", ["C"])):
            async with client(hub.url, token(user)) as one:
                reply = await come_back(one, symbols=symbols, fields=["price"])
                assert "hz" not in reply["data"] and len(reply["publications"]) == 1
        async with client(hub.url, token("ann")) as one:
            assert "hz" not in (await subscribe(one, WATCH, symbols=["A"], fields=["price"]))["data"]


@async_test
async def test_each_device_of_a_user_comes_back_to_what_it_has_changed_itself(valkey_url, prefix):
    """By the epoch of its reply, which SDKs bring, or by its id; also while its old connection is still there."""
    async with (
        plane(valkey_url, prefix) as hub,
        client(hub.url, token("ann")) as first,
        client(hub.url, token("ann")) as second,
    ):
        replies = [await subscribe(one, WATCH, symbols=["A"]) for one in (first, second)]
        assert [reply["epoch"] for reply in replies] == [first.id, second.id]
        assert all("symbols" not in reply["data"] for reply in replies)
        await rpc(first, "hub.watch", channel=WATCH, add=["B"], remove=["A"])
        await rpc(first, "hub.rate", channel=WATCH, hz=0)
        plain, changed = {"mode": "merge"}, {"mode": "merge", "hz": 0, "symbols": ["B"]}
        for user, epoch, data, granted in (
            ("ann", second.id, {}, plain),
            ("ann", "", {"client": second.id}, plain),
            ("ann", "", {}, plain),
            ("bob", first.id, {}, plain),
            ("ann", first.id, {}, changed),
            ("ann", "", {"client": first.id}, changed),
        ):
            async with client(hub.url, token(user)) as again:
                params = {"recover": True, "epoch": epoch, "data": {"symbols": ["A"], **data}}
                assert (await again.command(subscribe={"channel": WATCH, **params}))["subscribe"]["data"] == granted


@async_test
async def test_a_client_without_a_token_shows_who_it_was(valkey_url, prefix):
    """And again the next time; an id that nobody had is nobody's."""
    async with plane(valkey_url, prefix) as hub:
        async with client(hub.url) as one:
            await subscribe(one, WATCH, symbols=["A"])
            await rpc(one, "hub.watch", channel=WATCH, add=["B"])
            was = one.id
        for _ in range(2):
            async with client(hub.url) as one:
                await come_back(one, symbols=["A"], client=was)
                assert sorted(hub.fanout.lines.counts()) == ["ticker:A", "ticker:B"]
                was = one.id
            await until(lambda: hub.fanout.subscriptions == 0)
        async with client(hub.url) as one:
            await come_back(one, symbols=["A"], client="somebody")
            assert sorted(hub.fanout.lines.counts()) == ["ticker:A"]


@async_test
async def test_what_was_changed_is_capped_by_the_token_of_now(valkey_url, prefix):
    """Whoever has paid less since gets less."""
    async with plane(valkey_url, prefix) as hub:
        async with client(hub.url, token("ann")) as one:
            await subscribe(one, WATCH, symbols=["A"])
            await rpc(one, "hub.rate", channel=WATCH, hz=20)
        await until(lambda: hub.fanout.subscriptions == 0)
        async with client(hub.url, token("ann", max_hz=1)) as one:
            assert (await come_back(one, symbols=["A"]))["data"]["hz"] == 1
