"""Redis away, back, hung and killed under a running hub; and two hubs on one Redis.

Redis here is a Valkey of the test's own, so that it may be stopped; its clients are not ours, or plain WebSockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cent
import pytest
from redis import Redis
from websockets.exceptions import ConnectionClosed

from hub.revocation import USER, Entry
from hub.store import Keys
from tests.hubs import HubFailed, HubProcess
from tests.nodes import OwnValkey, own_valkey, until
from tests.plane import Client, client
from tests.support import async_test

COMMAND_TIMEOUT_S = 1.0
BACK_S = 5.0
"""Until publishes arrive again: the subscriber connection's longest pause between two tries is 2 s."""
TAKEOVER_S = 5.0
TEMPORARY = {"code": 100, "message": "internal server error", "temporary": True}
BRISK = {"connect_timeout_s": 0.3, "ping_interval_s": 1.2, "pong_timeout_s": 1.0}
ALIVE_S = 0.3
"""Between two pings of `websockets` itself: any byte counts as life, so nobody is closed for not answering ours."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as valkey:
        yield valkey


@pytest.fixture(scope="module")
def hub(valkey: OwnValkey) -> Iterator[HubProcess]:
    """A hub on a Redis that the tests stop and start again."""
    redis = {"url": valkey.url, "command_timeout_s": COMMAND_TIMEOUT_S}
    with HubProcess({"redis": redis, "client": BRISK}) as hub:
        yield hub


def lively(hub: HubProcess) -> contextlib.AbstractAsyncContextManager[Client]:
    return client(hub.ws_url, ping_interval=ALIVE_S)


@contextlib.asynccontextmanager
async def subscribers(hub: HubProcess, channel: str) -> AsyncIterator[list[Client]]:
    """A few, so that both workers are likely to have some; what is claimed holds wherever they are."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(lively(hub)) for _ in range(6)]
        for one in clients:
            await one.subscribe(channel)
        yield clients


async def publish(one: Client, channel: str, data: object) -> dict[str, Any]:
    return await one.command(publish={"channel": channel, "data": data})


async def until_all_hear(clients: list[Client], channel: str) -> None:
    """Publish until each of them has heard a publication, within BACK_S; earlier ones may be refused or lost."""
    async with asyncio.timeout(BACK_S):
        deaf = set(range(len(clients)))
        for number in range(10_000):
            if "publish" in await publish(clients[0], channel, f"back {number}"):
                deaf -= {i for i in deaf if await hears(clients[i], f"back {number}")}
            if not deaf:
                return


async def hears(one: Client, data: object) -> bool:
    """Whether a publication arrives within a moment; those before it are dropped."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            while True:
                if (await one.push())["pub"]["data"] == data:
                    return True
    return False


async def api_refusal(hub: HubProcess) -> Exception:
    """What cent raises for a publish."""
    async with cent.AsyncClient(hub.api_url, hub.key) as api:
        with pytest.raises(cent.CentError) as refused:
            await api.publish(cent.PublishRequest(channel="chat:a", data=1))
        return refused.value


# Away


def test_without_redis_a_start_fails_with_one_line(tmp_path):
    """Exit status 3 and, at this log level, one line, which names address, cause and setting; after start_timeout_s."""
    redis = {"url": f"unix://{tmp_path}/nobody.sock", "start_timeout_s": 0.5}
    began_s = time.monotonic()
    with pytest.raises(HubFailed) as failed, HubProcess({"redis": redis, "log_level": "error"}):
        pass
    assert 0.5 <= time.monotonic() - began_s < 5.0
    assert failed.value.status == 3
    (line,) = failed.value.text.splitlines()
    assert line.startswith(f"hub: Redis at unix:{tmp_path}/nobody.sock: ")
    assert line.endswith("; tried for 0.5 s (redis.start_timeout_s)")


@async_test
async def test_redis_may_go_and_come_back(hub, valkey):
    """Gone: clients stay, publishes fail as temporary, the API is a 503, no process ends. Back: everybody hears."""
    workers = hub.worker_pids()
    async with subscribers(hub, "chat:a") as clients, lively(hub) as other:
        valkey.stop()
        try:
            for one in clients:
                assert (await publish(one, "chat:a", "lost"))["error"] == TEMPORARY
            assert (await other.command(subscribe={"channel": "chat:b"}))["error"] == TEMPORARY
            refused = await api_refusal(hub)
            assert isinstance(refused, cent.CentTransportError) and refused.status_code == 503
            assert "rpc" in await other.command(rpc={"method": "hub.time"})
            async with client(hub.ws_url) as newcomer:
                assert (await newcomer.command(subscribe={"channel": "chat:b"}))["error"] == TEMPORARY
        finally:
            valkey.start()
        await until_all_hear(clients, "chat:a")
        await other.subscribe("chat:b")
    assert hub.worker_pids() == workers
    assert hub.process.poll() is None


@async_test
async def test_who_was_blocked_while_the_workers_were_cut_off_goes(hub, valkey):
    """They read what they have not heard as soon as their links are back, whichever worker a client is on."""
    noted = Entry(USER, "ann")
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(hub.ws_url, hub.token("ann"))) for _ in range(6)]
        with Redis.from_url(valkey.url) as redis:
            key = Keys("hub").revocations[1]
            redis.hset(key, noted.key, json.dumps(noted.params()))
            try:
                redis.client_kill_filter(_type="pubsub")
                for one in clients:
                    with pytest.raises(ConnectionClosed) as closed:
                        while True:
                            await asyncio.wait_for(one.socket.recv(), BACK_S)
                    assert closed.value.rcvd.code == 3507
            finally:
                redis.delete(key)


@async_test
async def test_a_killed_embedded_valkey_is_started_again():
    """kill -9: the supervisor starts it, the same clients hear what is published then, nobody else ended."""
    with HubProcess({}) as hub:
        workers = hub.worker_pids()
        async with subscribers(hub, "chat:a") as clients:
            with Redis.from_url(f"unix://{hub.directory}/state/valkey/valkey.sock") as redis:
                os.kill(redis.info()["process_id"], signal.SIGKILL)
            await until_all_hear(clients, "chat:a")
        assert hub.worker_pids() == workers
        assert "the embedded Valkey was ended by SIGKILL" in hub.stderr


@async_test
async def test_a_planned_restart_changes_no_position_and_a_crash_of_all_does():
    """stop and start: the same epoch, numbered on. kill -9 of supervisor and Valkey: a new one, that has the old."""
    with HubProcess({"namespaces": {"room": {"mode": "stream"}}}) as hub:

        async def publish() -> tuple[int, str]:
            async with cent.AsyncClient(hub.api_url, hub.key) as api:
                sent = await api.publish(cent.PublishRequest(channel="room:a", data=1))
                return sent.offset, sent.epoch

        first, epoch = await publish()
        assert first == 1
        assert hub.stop() == 0
        hub.start()
        assert await publish() == (2, epoch)
        with Redis.from_url(f"unix://{hub.directory}/state/valkey/valkey.sock") as redis:
            pid = redis.info()["process_id"]
        os.kill(hub.pid, signal.SIGSTOP)  # or it would see the end, and start the next one
        os.kill(pid, signal.SIGKILL)
        os.kill(hub.pid, signal.SIGKILL)
        hub.stop(signal.SIGKILL)
        hub.start()
        offset, after = await publish()
        # What the append-only file had not got yet is lost, and the lineage says from where on.
        assert offset <= 3 and after.startswith(f"{epoch}@{offset - 1},")


# Hung


@contextlib.contextmanager
def paused(valkey: OwnValkey) -> Iterator[Callable[[], None]]:
    """SIGSTOP; the function given, or the end, lets it go on."""
    with Redis.from_url(valkey.url) as redis:
        pid = redis.info()["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


@async_test
async def test_a_hung_redis_holds_up_nobody_but_its_publishers(hub, valkey):
    """A publish fails as temporary within its time; meanwhile pings of both kinds go on and calls are answered."""
    async with subscribers(hub, "chat:a") as clients, lively(hub) as other:
        with paused(valkey) as go_on:
            began_s = time.monotonic()
            waiting = [asyncio.create_task(publish(one, "chat:a", "hung")) for one in clients]
            while not all(task.done() for task in waiting):
                await answered_at_once(other)
                await asyncio.sleep(0.12)  # limits.pings_per_s are 10
            replies = [task.result() for task in waiting]
            # All of a worker's go in one round trip, or in two when some came after the first was sent.
            assert COMMAND_TIMEOUT_S <= time.monotonic() - began_s < 2 * COMMAND_TIMEOUT_S + 1.0
            assert [reply["error"] for reply in replies] == [TEMPORARY] * len(clients)
            assert (await api_refusal(hub)).status_code == 503
            await other.ping()
            go_on()
        await until_all_hear(clients, "chat:a")


async def answered_at_once(one: Client) -> None:
    """A worker whose loop waits for Redis would answer after its timeout, COMMAND_TIMEOUT_S, or not at all."""
    async with asyncio.timeout(COMMAND_TIMEOUT_S * 0.9):
        await (await one.socket.ping())
        await one.command(rpc={"method": "hub.time"})


# Two hubs


def leaders(*hubs: HubProcess) -> list[int]:
    """How often each hub has begun to lead the ticker."""
    return [hub.stderr.count("leads the ticker, source simulate") for hub in hubs]


async def sequence(one: Client, until_seq: int) -> list[int]:
    """The `seq` of each tick that comes, up to one that is at least `until_seq`."""
    seqs = [0]
    while seqs[-1] < until_seq:
        seqs.append((await one.push())["pub"]["data"]["seq"])
    return seqs[1:]


@async_test
async def test_another_hub_goes_on_with_the_ticker(valkey_url, prefix):
    """Two hubs on one Redis have one leader; kill -9 of its whole hub: the other goes on within 5 s, none missing."""
    settings = {
        "redis": {"url": valkey_url, "prefix": prefix},
        "ticker": {"source": "simulate", "rate_hz": 20.0, "share": 1.0},
    }
    with HubProcess(settings) as first, HubProcess(settings) as second:
        await until(lambda: sum(leaders(first, second)) >= 1)
        leading, other = (first, second) if leaders(first) == [1] else (second, first)
        async with client(other.ws_url) as one:
            await one.subscribe("ticker:ACME")
            seqs = await sequence(one, 5)
            assert leaders(leading, other) == [1, 0]
            leading.process.kill()
            began_s = time.monotonic()
            await until(lambda: leaders(other) == [1], TAKEOVER_S)
            # What was published by now may be the old leader's; a few more are not.
            seqs += await sequence(one, published(valkey_url, prefix) + 5)
            assert time.monotonic() - began_s < TAKEOVER_S
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def published(url: str, prefix: str) -> int:
    """The `seq` of the newest tick in Redis."""
    with Redis.from_url(url) as redis:
        return json.loads(redis.get(f"{prefix}:last:{{ticker}}:ACME"))["data"]["seq"]
