"""The admin page's connection, on a real hub of two workers: who is let in, what it is told, and what it may do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hub import admin as room
from hub.admin import FIGURES, TRACES, Admin
from hub.admin_keys import MOST_WRONG, make
from hub.errors import BrokerUnavailable
from hub.registry import Ordered
from hub.trace import MAX_TRACES
from tests.hubs import HubProcess
from tests.nodes import until
from tests.plane import Client, client, plane
from tests.support import FakeClock, async_test

PAGE = ("", "/", "/admin.js", "/admin_link.js", "/admin_chart.js", "/admin.css", "/favicon.svg")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    with HubProcess({"allowed_origins": ["https://app.example.com"]}) as one:
        yield one


def base(hub: HubProcess) -> str:
    return hub.api_url.removesuffix("/api")


def address(hub: HubProcess) -> str:
    return base(hub).replace("http", "ws") + "/admin/connection"


@contextlib.asynccontextmanager
async def page(hub: HubProcess) -> AsyncIterator[Client]:
    """A page that is in."""
    async with client(address(hub), hub.key) as one:
        yield one


async def ask(one: Client, method: str, **data: object) -> Any:
    reply = await one.command(rpc={"method": method, "data": data})
    assert "rpc" in reply, reply
    return reply["rpc"]["data"]


async def error(one: Client, **command: object) -> int:
    return (await one.command(**command))["error"]["code"]


async def refused(hub: HubProcess, token: object) -> tuple[int, str]:
    """With which a connection ends that shows this."""
    async with connect(address(hub), proxy=None) as socket:
        await socket.send(orjson.dumps({"id": 1, "connect": {"token": token}}).decode())
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 5)
        return closed.value.rcvd.code, closed.value.rcvd.reason


async def get(url: str) -> HTTPResponse:
    return await AsyncHTTPClient().fetch(url, raise_error=False)


@async_test
async def test_the_page_is_on_the_internal_listener_alone(hub):
    """Its files forbid whatever is not theirs: scripts of elsewhere or in the text, frames, forms."""
    public = hub.ws_url.replace("ws://", "http://").removesuffix("/connection/websocket")
    for path in PAGE:
        found = await get(f"{base(hub)}/admin{path}")
        assert found.code == 200, path
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert (
            found.headers["X-Content-Type-Options"] == "nosniff" and found.headers["Referrer-Policy"] == "no-referrer"
        )
        assert (await get(f"{public}/admin{path}")).code == 404
    with pytest.raises(InvalidStatus) as status:
        await connect(public.replace("http", "ws") + "/admin/connection", proxy=None)
    assert status.value.response.status_code == 404


@async_test
async def test_pages_of_other_hosts_are_not_let_in(hub):
    """Those of allowed_origins neither: they are applications."""
    for origin in ("https://app.example.com", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as status:
            await connect(address(hub), proxy=None, origin=origin)
        assert status.value.response.status_code == 403
    async with connect(address(hub), proxy=None, origin=base(hub)):
        pass


@async_test
async def test_the_key_or_a_token_made_with_it_lets_in_and_nothing_else(hub):
    """A client's token is none; what is wrong is told, with a code upon which nobody comes back."""
    for shown in ("", None, "wrong", hub.token("admin")):
        assert await refused(hub, shown) == (3500, "wrong key")
    async with AsyncClientOf(hub) as api:
        token = (await api("admin_token", ttl=60))["result"]["token"]
        assert (await api("admin_token", ttl=0))["error"]["code"] == 107
        assert (await api("admin_token", ttl=3601))["error"]["code"] == 107
    async with client(address(hub), token) as one:
        assert await ask(one, "info")
    assert await refused(hub, make(hub.key, -1, time.time())) == (3500, "wrong key")


class AsyncClientOf:
    """The server API."""

    def __init__(self, hub: HubProcess) -> None:
        self._hub = hub

    async def __aenter__(self) -> Any:
        return self._ask

    async def __aexit__(self, *_: object) -> None: ...

    async def _ask(self, method: str, **params: object) -> dict:
        headers = {"X-API-Key": self._hub.key}
        url, body = f"{self._hub.api_url}/{method}", orjson.dumps(params)
        return orjson.loads((await AsyncHTTPClient().fetch(url, method="POST", body=body, headers=headers)).body)


@async_test
async def test_whoever_guesses_too_often_waits():
    """Here all are of one address; so the hub is one of its own, with one worker."""
    with HubProcess({"workers": 1}) as other:
        for _ in range(MOST_WRONG):
            assert (await refused(other, "wrong"))[1] == "wrong key"
        assert "too many" in (await refused(other, other.key))[1]
        assert other.key not in other.logged("admin: refused")


@async_test
async def test_nothing_goes_before_the_key_and_little_behind_it(hub):
    """Commands of clients are none here, and channels of everybody else are not to be had; nor those here elsewhere."""
    async with connect(address(hub), proxy=None) as socket:
        await socket.send('{"id":1,"rpc":{"method":"info","data":{}}}')
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 5)
        assert closed.value.rcvd.code == 3501
    async with page(hub) as one, client(hub.ws_url, hub.token("admin")) as other:
        for name, params in (("publish", {"data": 1}), ("history", {}), ("refresh", {"token": "x"})):
            assert await error(one, **{name: {"channel": "chat:a", **params}}) == 104
        assert await error(one, subscribe={"channel": "chat:a"}) == 102
        assert await error(one, subscribe={"channel": "a"}) == 103
        for method in ("block_user", "ticket", "batch", "", 7, None):
            assert await error(one, rpc={"method": method, "data": {}}) == 104
        assert await error(one, rpc={"method": "info", "data": [1]}) == 107
        assert await error(other, subscribe={"channel": FIGURES}) == 102
        assert await error(other, rpc={"method": "info", "data": {}}) == 104


@async_test
async def test_figures_of_all_workers_come_each_second(hub):
    """In one publication, with their names; pages are not counted among the clients."""
    async with page(hub) as one, client(hub.ws_url, hub.token("ann")):
        await one.subscribe(FIGURES)
        for _ in range(2):
            push = await one.push()
            assert push["channel"] == FIGURES
            data = push["pub"]["data"]
            assert data["silent"] == [] and abs(data["t"] / 1000 - time.time()) < 60
            assert sorted(worker["name"][-2:] for worker in data["workers"]) == [":0", ":1"]
            figures = [worker["figures"] for worker in data["workers"]]
            assert sorted(found["pid"] for found in figures) == sorted(hub.worker_pids())
            assert sum(sum(found["connections"]["open"].values()) for found in figures) == 1


@async_test
async def test_lists_and_what_can_be_done(hub):
    """Connections by user and address, channels with the most subscribers, a publish that arrives, a disconnect."""
    async with (
        page(hub) as one,
        client(hub.ws_url, hub.token("ann")) as ann,
        client(hub.ws_url, hub.token("bob")) as bob,
    ):
        for each in (ann, bob):
            await each.subscribe("chat:a")
        await ann.subscribe("members:b")
        found = await ask(one, "connections", user="ann")
        (row,) = found["connections"].values()
        assert (row["transport"], row["address"], row["outbox_bytes"]) == ("websocket", "127.0.0.1", 0)
        assert sorted(row["channels"]) == ["chat:a", "members:b"]
        assert found["connections"].keys() == {ann.id}
        assert (await ask(one, "connections", address="127.0.0.1", limit=10))["connections"].keys() == {ann.id, bob.id}
        assert (await ask(one, "connections", address="192.0.2.1"))["connections"] == {}
        assert await ask(one, "busiest") == {"channels": [["chat:a", 2], ["members:b", 1]], "total": 2, "silent": []}
        assert (await ask(one, "busiest", pattern="mem*"))["channels"] == [["members:b", 1]]
        assert await error(one, rpc={"method": "busiest", "data": {"pattern": "<"}}) == 107
        assert await ask(one, "publish", channel="chat:a", data={"text": "hi"}) == {}
        assert (await bob.push())["pub"]["data"] == {"text": "hi"}
        assert await error(one, rpc={"method": "publish", "data": {"channel": "nowhere:a", "data": 1}}) == 102
        assert (await ask(one, "disconnect", user="ann"))["num_clients"] == 1
        with pytest.raises(ConnectionClosed) as closed:
            await ann.command(ping={})
        assert closed.value.rcvd.code == 3503
        assert hub.key not in hub.logged(f"admin: disconnect by={one.id} user=ann")


@async_test
async def test_a_trace_comes_from_whichever_worker_and_ends_with_its_page(hub):
    """Clients on both workers; rows reach the page through Redis. Who leaves, or goes, ends it on all workers."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(hub.ws_url, hub.token("zoe"))) for _ in range(12)]
        one = await stack.enter_async_context(page(hub))
        channel = (await ask(one, "trace", kind="user", name="zoe"))["channel"]
        assert channel.startswith(TRACES)
        await one.subscribe(channel)
        said = (await one.push())["pub"]["data"]
        assert (said["tapped"], said["full"], said["left_s"]) == (12, False, 300)
        for each in clients:
            await each.subscribe("chat:t")
        seen: set[str] = set()
        while seen != {each.id for each in clients}:
            seen |= {row["client"] for row in (await one.push())["pub"]["data"].get("rows", [])}
        assert "unsubscribe" in await one.command(unsubscribe={"channel": channel})
        # Two pages have as many traces as a worker takes; one of them goes without a word.
        pages = [await stack.enter_async_context(page(hub)) for _ in range(MAX_TRACES // room.MAX_TRACES)]
        for each in pages:
            for _ in range(room.MAX_TRACES):
                assert not await is_full(each, clients[0].id)
        assert await error(pages[0], rpc={"method": "trace", "data": {"kind": "user", "name": "zoe"}}) == 106
        assert await is_full(one, clients[0].id, leaves=True)
        pages[0].socket.transport.abort()
        while await is_full(one, clients[0].id, leaves=True):
            pass


async def is_full(one: Client, name: str, leaves: bool = False) -> bool:
    """Begin a trace; whether a worker has no room for it. leaves: it is ended again."""
    channel = (await ask(one, "trace", kind="client", name=name))["channel"]
    await one.subscribe(channel)
    while "full" not in (said := (await one.push())["pub"]["data"]):
        pass
    if leaves:
        await one.command(unsubscribe={"channel": channel})
    return said["full"]


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"kind": "everybody", "name": "ann"}, 107),
        ({"kind": "user", "name": ""}, 107),
        ({"kind": "user"}, 107),
        ({"kind": "channel", "name": "<script>"}, 107),
        ({"kind": "channel", "name": "nowhere:a"}, 102),
        ({"kind": "channel", "name": FIGURES}, 102),
    ],
)
@async_test
async def test_traces_that_are_none_are_refused(hub, wish, code):
    """A trace of what traces tell would tell of itself for ever."""
    async with page(hub) as one:
        assert await error(one, rpc={"method": "trace", "data": wish}) == code


@async_test
async def test_so_many_pages_at_a_time():
    """Of one worker; the others are told to come later."""
    with HubProcess({"workers": 1}) as other:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(room.MAX_SESSIONS):
                await stack.enter_async_context(page(other))
            with pytest.raises(InvalidStatus) as status:
                await connect(address(other), proxy=None)
            assert status.value.response.status_code == 503
        async with page(other):
            pass


@async_test
async def test_without_a_key_the_page_says_so():
    with HubProcess({"workers": 1, "api": {"key": ""}}) as other:
        assert await refused(other, "") == (3500, "api.key is not set, so there is no admin page")


@async_test
async def test_a_reload_says_whether_addresses_of_pages_are_shown(hub):
    """Who guesses is shown by its address from now on, or no more, as any client's is."""
    for setting, wanted in ((True, "address=127.0.0.1"), (False, "address=-")):
        assert (await asyncio.to_thread(hub.reload, {"log_addresses": setting}))["ok"]
        at = len(hub.stderr)
        assert (await refused(hub, "wrong"))[0] == 3500
        assert wanted in hub.logged("admin: refused", since=at)


class Registry:
    """All workers' answers, without the workers."""

    uid = "u"
    name = "h:0"

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.fails = False

    async def order(self, name: str, params: dict) -> Ordered:
        self.asked.append({"order": name, **params})
        if self.fails:
            raise BrokerUnavailable("gone")
        return Ordered([{"uid": "u", "name": "h:0", "tapped": 1, "figures": {"n": len(self.asked)}}], ["silent one"])


@async_test
async def test_nobody_is_asked_when_nobody_looks(valkey_url, prefix, monkeypatch):
    """The first who subscribes begins it, the last who leaves ends it; without Redis a page has its own worker's."""
    monkeypatch.setattr(room, "PERIOD_S", 0.01)
    async with plane(valkey_url, prefix) as hub, client(hub.url) as looker, client(hub.url) as writer:
        one = Admin("key", hub.services.users, hub.fanout, hub.broker, lambda: {"own": True})
        one._registry = registry = Registry()
        one.look()
        await until(lambda: one._asking.done())
        assert registry.asked == []
        monkeypatch.setattr(room, "FIGURES", "open:figures")
        await looker.subscribe("open:figures")
        one.look()
        task = one._asking
        one.look()
        assert one._asking is task
        data = [(await looker.push())["pub"]["data"] for _ in range(3)]
        assert [each["workers"][0]["figures"]["n"] for each in data] == [1, 2, 3]
        assert data[0]["silent"] == ["silent one"] and "trouble" not in data[0]
        registry.fails = True
        while "trouble" not in (found := (await looker.push())["pub"]["data"]):
            pass
        assert found["workers"] == [{"uid": "u", "name": "h:0", "figures": {"own": True}}]
        await looker.command(unsubscribe={"channel": "open:figures"})
        await until(task.done)
        count = len(registry.asked)
        await writer.command(publish={"channel": "open:a", "data": 1})
        assert len(registry.asked) == count
        await one.close()


@async_test
async def test_a_trace_is_asked_for_again_and_again_and_its_end_is_told(valkey_url, prefix, monkeypatch):
    """To all workers: each has it for a few seconds more; without Redis the page hears of that."""
    monkeypatch.setattr(room, "TRACE_RENEW_S", 0.01)
    monkeypatch.setattr(room, "TRACES", "open:")
    wish = {"kind": "user", "name": "ann", "payloads": False}
    async with plane(valkey_url, prefix) as hub, client(hub.url) as looker:
        clock = FakeClock()
        one = Admin("key", hub.services.users, hub.fanout, hub.broker, dict, clock)
        one._registry = registry = Registry()
        await looker.subscribe("open:x")
        task = one.keep_trace("x", wish)
        said = (await looker.push())["pub"]["data"]
        assert said == {"left_s": 300, "tapped": 1, "full": False, "silent": ["silent one"]}
        registry.fails = True
        while "trouble" not in (await looker.push())["pub"]["data"]:
            pass
        clock.advance(298)
        while (await looker.push())["pub"]["data"]["left_s"] == 300:
            pass
        assert registry.asked[0] == {"order": "trace", "id": "x", **wish, "for_s": 6.0}
        assert registry.asked[-1]["for_s"] == 2.0
        clock.advance(2)
        while (await looker.push())["pub"]["data"]["left_s"]:
            pass
        await until(lambda: task.done() and not one._tasks)
        assert registry.asked[-1] == {"order": "trace", "id": "x", **wish, "for_s": 0}
        task, count = one.keep_trace("y", wish), len(registry.asked)
        await until(lambda: len(registry.asked) > count)
        task.cancel()
        await until(lambda: task.done() and not one._tasks)
        assert registry.asked[-1] == {"order": "trace", "id": "y", **wish, "for_s": 0}
        await one.close()


@async_test
async def test_the_busiest_of_a_worker_are_cut_and_counted(valkey_url, prefix, monkeypatch):
    """Nothing of the pages' own channels is among them."""
    monkeypatch.setattr(room, "BUSIEST_OF_WORKER", 2)
    async with plane(valkey_url, prefix) as hub, client(hub.url) as ann, client(hub.url) as bob:
        one = Admin("key", hub.services.users, hub.fanout, hub.broker, dict)
        for channel in ("open:a", "open:b", "open:c"):
            await ann.subscribe(channel)
        await bob.subscribe("open:b")
        answer = await one.orders["busiest"]({"pattern": ""})
        assert answer["total"] == 3 and len(answer["channels"]) == 2 and answer["channels"]["open:b"] == 2
        with pytest.raises(ValueError, match="pattern"):
            one.orders["busiest"]({"pattern": "{"})
        monkeypatch.setattr(room, "RESERVED", "open")
        assert await one.orders["busiest"]({}) == {"channels": {}, "total": 0}
