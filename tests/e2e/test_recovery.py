"""Nothing is lost silently: the stock SDKs on `stream` channels while workers and the store die."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
import redis

from tests.e2e import nodejs
from tests.e2e.test_centrifuge_python import data_of_next, sdk, soon, subscribe
from tests.hubs import HubProcess
from tests.nodes import OwnValkey, own_valkey
from tests.support import async_test

NAMESPACES = {"log": {"mode": "stream", "subscribe": "anyone", "publish": "anyone", "history": "anyone"}}


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    """One hub of two workers for one test, which may kill them."""
    with HubProcess({"namespaces": NAMESPACES}) as hub:
        yield hub


@pytest.fixture
def store() -> Iterator[OwnValkey]:
    with own_valkey() as valkey:
        yield valkey


@nodejs.NODE
@nodejs.PACKAGES
def test_the_javascript_sdk_misses_nothing(hub: HubProcess) -> None:
    """Offline for a while, then its worker is killed: every message once, in order, recovered each time."""
    pids = ",".join(map(str, hub.worker_pids()))
    nodejs.run("centrifuge_js.mjs", "missesNothing", hub.ws_url, hub.token("ann"), pids)


@nodejs.NODE
@nodejs.PACKAGES
def test_the_javascript_sdk_is_told_of_loss(store: OwnValkey) -> None:
    """FLUSHALL under a connected client: one resubscription with recovered false."""
    with HubProcess({"redis": {"url": store.url}, "namespaces": NAMESPACES}) as hub:
        command = ["node", str(nodejs.HERE / "centrifuge_js.mjs"), "isToldOfLoss", hub.ws_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            with redis.Redis.from_url(store.url) as client:
                client.flushall()
            assert process.wait(nodejs.TIMEOUT_S) == 0, process.stderr.read()


@async_test
async def test_the_python_sdk_recovers_when_its_worker_is_killed(hub):
    """kill -9 of all workers: the next ones know the position."""
    async with sdk(hub) as (client, events):
        await soon(events.connected)
        subscription, heard = await subscribe(client, "log:a")
        first = await soon(heard.subscribed)
        assert first.recoverable and first.positioned and not first.was_recovering
        await subscription.publish(0)
        assert await data_of_next(heard) == 0
        for pid in hub.worker_pids():
            os.kill(pid, signal.SIGKILL)
        again = await soon(heard.subscribed)
        assert again.was_recovering and again.recovered
        await subscription.publish(1)
        assert await data_of_next(heard) == 1
