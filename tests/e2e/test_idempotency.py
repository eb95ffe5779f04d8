"""A publication with an idempotency key is applied once: a storm of retries at several workers, one of them killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from tests.hubs import HubProcess
from tests.support import async_test

KEYS, TRIES, AT_ONCE = 1000, 5, 32


async def post(hub: HubProcess, method: str, body: object) -> dict:
    """Until it is answered: that is what a key is for. On a connection of its own, so that any worker may get it."""
    while True:
        try:
            answer = await AsyncHTTPClient().fetch(
                f"{hub.api_url}/{method}",
                method="POST",
                body=orjson.dumps(body),
                headers={"X-API-Key": hub.key, "Connection": "close"},
            )
            return orjson.loads(answer.body)["result"]
        except (HTTPClientError, OSError):  # a killed worker's, or Redis asked to wait
            await asyncio.sleep(0)


@async_test
async def test_a_storm_of_retries_leaves_one_of_each():
    """1,000 keys, each tried five times at once, over four workers of which one is killed in the middle."""
    namespaces = {"log": {"mode": "stream", "history_size": 2 * KEYS}}
    with HubProcess({"workers": 4, "namespaces": namespaces}) as hub:
        gate, told = asyncio.Semaphore(AT_ONCE), Counter()

        async def publish(number: int) -> None:
            async with gate:
                body = {"channel": "log:a", "data": number, "idempotency_key": f"key {number}"}
                result = await post(hub, "publish", body)
                told[number, result["offset"], result["epoch"]] += 1
            if sum(told.values()) == KEYS:
                os.kill(hub.worker_pids()[0], signal.SIGKILL)

        await asyncio.gather(*(publish(number) for number in range(KEYS) for _ in range(TRIES)))
        page = await post(hub, "history", {"channel": "log:a", "limit": -1})
        assert page["offset"] == KEYS and len(page["publications"]) == KEYS
        assert sorted(each["data"] for each in page["publications"]) == list(range(KEYS))
        # Every try of a key was told the same position.
        assert set(told.values()) == {TRIES}
        assert {(number, offset) for number, offset, _ in told} == {
            (e["data"], e["offset"]) for e in page["publications"]
        }
