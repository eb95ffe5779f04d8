"""Traces of a worker: whose frames are told, on each wire, and that nothing of a trace stays behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from websockets.asyncio.client import connect

from hub import auth, trace
from hub.tap import Row
from hub.trace import FLUSH_S, MAX_ROWS, MAX_TAPPED, MAX_TRACES, Tracer
from tests.emulated import stream_client
from tests.eventsource import stream
from tests.nodes import until
from tests.plane import SECRET, Plane, client, plane
from tests.support import FakeClock, async_test

ID, OTHER = "0" * 32, "1" * 32
USER = {"id": ID, "kind": "user", "name": "ann", "payloads": False, "for_s": 5}


def token(user: str) -> str:
    return auth.make(user, SECRET, 60, time.time())


class Traced:
    """A plane and its tracer; pieces go to `rows`."""

    def __init__(self, hub: Plane, clock: FakeClock) -> None:
        self.hub, self.clock = hub, clock
        self.rows: dict[str, list[Row]] = {}
        self.cut = 0
        loop = asyncio.get_running_loop()
        self.tracer = Tracer(hub.services.users, hub.fanout, self._take, loop.call_later, clock)

    def _take(self, trace_id: str, piece: dict) -> None:
        assert orjson.dumps(piece)
        self.rows.setdefault(trace_id, []).extend(piece["rows"])
        self.cut += piece["cut"]

    def whats(self, trace_id: str = ID) -> list[tuple[str, str, str]]:
        return [(row["dir"], row["what"], row["channel"]) for row in self.rows.get(trace_id, [])]

    async def told(self, *wanted: tuple[str, str, str], trace_id: str = ID) -> None:
        """All of these have come, in this order, and nothing else."""
        try:
            await until(lambda: len(self.whats(trace_id)) >= len(wanted))
        finally:
            assert self.whats(trace_id) == list(wanted)


@contextlib.asynccontextmanager
async def traced(url: str, prefix: str, **options: object) -> AsyncIterator[Traced]:
    async with plane(url, prefix, **options) as hub:
        one = Traced(hub, FakeClock())
        try:
            yield one
        finally:
            one.tracer.close()
            assert not any(connection.trace for connection in hub.reactor.connections.values())
            assert hub.services.users.on_enter is None and hub.fanout.on_deliver is None


@async_test
async def test_a_users_frames_are_told_in_order_and_nobody_elses(valkey_url, prefix):
    """Commands, replies, publications; what others do is not there. The clients notice nothing."""
    async with (
        traced(valkey_url, prefix) as hub,
        client(hub.hub.url, token("ann")) as ann,
        client(hub.hub.url, token("bob")) as bob,
    ):
        await bob.subscribe("chat:a")
        assert hub.tracer.trace(USER) == {"tapped": 1}
        await ann.subscribe("chat:a")
        await bob.command(publish={"channel": "chat:a", "data": "one"})
        assert (await ann.push())["pub"]["data"] == "one"
        await ann.command(publish={"channel": "chat:a", "data": "two"})
        assert (await ann.push())["pub"]["data"] == "two"
        head = [("in", "subscribe", "chat:a"), ("out", "subscribe", ""), ("out", "push pub", "chat:a")]
        await until(lambda: len(hub.whats()) == 6)
        # The publication of one's own may come before its answer, or behind it.
        assert hub.whats()[:4] == [*head, ("in", "publish", "chat:a")]
        assert set(hub.whats()[4:]) == {("out", "publish", ""), ("out", "push pub", "chat:a")}
        rows = hub.rows[ID]
        assert {(row["user"], row["client"], row["wire"]) for row in rows} == {("ann", ann.id, "websocket")}
        assert all(row["bytes"] > 0 and "payload" not in row for row in rows)


@async_test
async def test_a_traced_client_receives_what_all_receive(valkey_url, prefix):
    """Batches, before, while and after: each once and in order, while its frames go one by one."""
    async with (
        traced(valkey_url, prefix) as hub,
        client(hub.hub.url, token("ann")) as ann,
        client(hub.hub.url, token("ann")) as too,
        client(hub.hub.url) as source,
    ):
        for one in (ann, too):
            await one.subscribe("log:a")
        seen = []
        for number in range(300):
            await source.socket.send(
                orjson.dumps({"id": 1000 + number, "publish": {"channel": "log:a", "data": number}}).decode()
            )
            if number in (50, 200):
                hub.tracer.trace(USER | {"for_s": 5 if number == 50 else 0})
            if not number % 25:
                seen.append((await ann.push())["pub"]["data"])
        while len(seen) < 300:
            seen.append((await ann.push())["pub"]["data"])
        assert seen == list(range(300))
        assert [(await too.push())["pub"]["data"] for _ in range(300)] == list(range(300))
        assert hub.rows[ID] and not hub.hub.reactor.backlog.slow
        await until(lambda: all(one.direct for one in hub.hub.reactor.connections.values()))


@async_test
async def test_payloads_are_told_where_they_are_asked_for_and_no_tokens(valkey_url, prefix):
    """Two traces of one client: the one shows what the other does not."""
    async with (
        traced(valkey_url, prefix, client={"deflate_min_bytes": 1}) as hub,
        client(hub.hub.url, token("ann")) as ann,
    ):
        hub.tracer.trace(USER)
        hub.tracer.trace(USER | {"id": OTHER, "payloads": True, "kind": "client", "name": ann.id})
        secret = token("ann")
        await ann.command(refresh={"token": secret})
        await ann.subscribe("chat:a")
        await ann.command(publish={"channel": "chat:a", "data": {"text": "<script>" * 9, "token": secret}})
        await ann.push()
        await until(lambda: len(hub.rows.get(OTHER, [])) == len(hub.rows.get(ID, [])) == 7)
        assert hub.whats() == hub.whats(OTHER)
        assert not any("payload" in row for row in hub.rows[ID])
        text = "\n".join(row["payload"] for row in hub.rows[OTHER])
        # In what came, and in the publication that went out compressed.
        assert text.count("<script>" * 9) == 2 and "eyJ" not in text and secret not in text


@async_test
async def test_who_comes_while_its_user_is_traced_is_traced(valkey_url, prefix):
    """From the answer to its connect command on; its end is told, and nothing stays of it."""
    async with traced(valkey_url, prefix) as hub:
        assert hub.tracer.trace(USER) == {"tapped": 0}
        async with client(hub.hub.url, token("bob")), client(hub.hub.url, token("ann")):
            assert hub.tracer.trace(USER) == {"tapped": 1}
        await hub.told(("out", "connect", ""), ("", "close 1000", ""), ("", "gone", ""))
        assert hub.tracer.trace(USER) == {"tapped": 0}


@async_test
async def test_an_emulated_client_is_traced(valkey_url, prefix):
    """Its commands come in requests of their own."""
    async with traced(valkey_url, prefix) as hub, stream_client(hub.hub.http_url, "lines", token("ann")) as ann:
        assert hub.tracer.trace(USER) == {"tapped": 1}
        await ann.subscribe("chat:a")
        await ann.command(publish={"channel": "chat:a", "data": 1})
        await ann.push()
        await until(lambda: len(hub.whats()) == 5)
        assert hub.whats()[:2] == [("in", "subscribe", "chat:a"), ("out", "subscribe", "")]
        assert ("out", "push pub", "chat:a") in hub.whats()
        assert hub.rows[ID][0]["wire"] == "http_stream"


@async_test
async def test_an_event_stream_is_traced(valkey_url, prefix):
    async with (
        traced(valkey_url, prefix) as hub,
        stream(hub.hub.port, f"channel=open:a&channel=chat:b&token={token('ann')}") as ann,
        client(hub.hub.url) as bob,
    ):
        await ann.next("open")
        await until(lambda: hub.hub.fanout.lines.audience_size("chat:b") == 1)
        assert hub.tracer.trace(USER) == {"tapped": 1}
        # One after the other: between two channels there is no order.
        for number, channel in enumerate(("chat:b", "open:a")):
            await bob.command(publish={"channel": channel, "data": number})
            assert await ann.messages(1) == [number]
        await until(lambda: len([one for one in hub.whats() if one[1] == "push pub"]) == 2)
        assert ("out", "push pub", "open:a") in hub.whats() and hub.rows[ID][0]["wire"] == "event_stream"


@async_test
async def test_a_socketio_client_is_traced(valkey_url, prefix):
    """On its WebSocket: all namespaces of the connection."""
    async with traced(valkey_url, prefix) as hub:
        url = hub.hub.url.replace("/connection/websocket", "/socket.io/?EIO=4&transport=websocket")
        async with connect(url, proxy=None) as socket:
            assert (await socket.recv()).startswith("0{")
            await socket.send(f'40{{"token":"{token("ann")}"}}')
            assert (await socket.recv()).startswith("40{")
            assert hub.tracer.trace(USER | {"payloads": True}) == {"tapped": 1}
            await socket.send('421["subscribe",{"channel":"chat:a"}]')
            assert (await socket.recv()).startswith("431[")
            await socket.send('422["publish",{"channel":"chat:a","data":"hi"}]')
            await socket.recv()
            await socket.recv()
            await until(lambda: len(hub.whats()) == 5)
            assert hub.whats()[:2] == [("in", "packet 42 subscribe", ""), ("out", "packet 43", "")]
            assert ("out", "packet 42 publication", "chat:a") in hub.whats()
            assert any("hi" in row["payload"] for row in hub.rows[ID])


@async_test
async def test_a_channels_publications_are_told(valkey_url, prefix):
    """With whoever published them, and how many they are for; those of other channels are not."""
    async with traced(valkey_url, prefix) as hub, client(hub.hub.url) as one, client(hub.hub.url, token("ann")) as ann:
        await one.subscribe("open:a")
        await ann.subscribe("open:a")
        await one.subscribe("open:b")
        wish = {"id": ID, "kind": "channel", "name": "open:a", "payloads": True, "for_s": 5}
        assert hub.tracer.trace(wish) == {"tapped": 2}
        await ann.command(publish={"channel": "open:b", "data": 0})
        await ann.command(publish={"channel": "open:a", "data": {"a": 1}})
        await hub.told(("out", "publication", "open:a"))
        (row,) = hub.rows[ID]
        assert (row["subscribers"], row["user"], row["client"]) == (2, "ann", ann.id)
        assert '"data":{"a":1}' in row["payload"]
        assert all(connection.trace is None for connection in hub.hub.reactor.connections.values())


@async_test
async def test_a_trace_ends_with_its_lease(valkey_url, prefix):
    """Each order is for so long; without another one nothing is told any more, and the client is direct again."""
    async with traced(valkey_url, prefix) as hub, client(hub.hub.url, token("ann")) as ann:
        timers: list = []
        loop = asyncio.get_running_loop()
        hub.tracer._call_later = lambda delay_s, call: timers.append((delay_s, call)) or loop.call_later(60, call)
        hub.tracer.trace(USER)
        ((first_s, expire),) = timers
        assert first_s == 5
        hub.clock.advance(4)
        hub.tracer.trace(USER)
        hub.clock.advance(1)
        expire()  # it has been asked for again meanwhile
        assert len(hub.tracer) == 1 and timers[-1][0] == 4
        hub.clock.advance(4)
        timers[-1][1]()
        assert len(hub.tracer) == 0
        await ann.subscribe("chat:a")
        (connection,) = hub.hub.reactor.connections.values()
        assert connection.trace is None and connection.direct and hub.rows == {}


@async_test
async def test_a_trace_that_is_ended_leaves_the_other_one(valkey_url, prefix):
    async with traced(valkey_url, prefix) as hub, client(hub.hub.url, token("ann")) as ann:
        hub.tracer.trace(USER)
        hub.tracer.trace(USER | {"id": OTHER})
        assert hub.tracer.trace(USER | {"for_s": 0}) == {"tapped": 0}
        assert hub.tracer.trace(USER | {"for_s": 0}) == {"tapped": 0}
        await ann.subscribe("chat:a")
        await hub.told(("in", "subscribe", "chat:a"), ("out", "subscribe", ""), trace_id=OTHER)
        assert hub.rows.get(ID) is None


@async_test
async def test_what_a_trace_costs_is_bounded(valkey_url, prefix, monkeypatch):
    """So many rows in a piece, so many connections, so many traces; what is left out is counted, or said."""
    monkeypatch.setattr(trace, "MAX_TAPPED", 1)
    assert (MAX_ROWS, MAX_TAPPED, MAX_TRACES, FLUSH_S) == (100, 100, 8, 0.25)
    async with (
        traced(valkey_url, prefix) as hub,
        client(hub.hub.url, token("ann")),
        client(hub.hub.url, token("ann")),
    ):
        assert hub.tracer.trace(USER) == {"tapped": 1}
        for number in range(1, MAX_TRACES):
            assert hub.tracer.trace(USER | {"id": f"{number:032x}", "name": "nobody"}) == {"tapped": 0}
        assert hub.tracer.trace(USER | {"id": "f" * 32}) == {"tapped": -1}
        (connection,) = (one for one in hub.hub.reactor.connections.values() if one.trace is not None)
        for _ in range(MAX_ROWS + 7):
            connection.trace.heard(b"{}")
        await until(lambda: hub.cut)
        assert (len(hub.rows[ID]), hub.cut) == (MAX_ROWS, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "x"}, {"id": None}, {"id": "0" * 31 + "G"}, {"kind": "everybody"}, {"name": ""}, {"name": 7},
        {"name": "x" * 256}, {"for_s": -1}, {"for_s": 11}, {"for_s": True}, {"for_s": "5"}, {"for_s": float("nan")},
    ],
)  # fmt: skip
@async_test
async def test_orders_that_are_none_are_refused(valkey_url, prefix, wrong):
    """Whoever reaches Redis can write them."""
    async with traced(valkey_url, prefix) as hub:
        with pytest.raises(ValueError, match="a trace with something else"):
            hub.tracer.order(USER | wrong)
        assert len(hub.tracer) == 0
