"""Mailboxes and notices with stock SDKs on a real hub: who was away, several devices, killed workers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from tests.e2e import nodejs
from tests.e2e.test_centrifuge_python import Events, sdk, soon, subscribe
from tests.hubs import HubProcess
from tests.nodes import until
from tests.plane import client
from tests.support import async_test

NAMESPACES = {"inbox": {"mailbox": True, "ack_timeout_s": 0.2, "mailbox_deliveries": 1000}}
MESSAGES = 300
KILLS = 4


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """One hub of two workers for all tests that leave it as it was."""
    with HubProcess({"namespaces": NAMESPACES}) as hub:
        yield hub


async def post(hub: HubProcess, method: str, **params: object) -> dict:
    """The result of one API call, tried again while a worker is being replaced."""
    async with asyncio.timeout(20):
        while True:
            try:
                response = await AsyncHTTPClient().fetch(
                    f"{hub.api_url}/{method}",
                    method="POST",
                    body=orjson.dumps(params),
                    headers={"X-API-Key": hub.key},
                    raise_error=False,
                )
            except (OSError, HTTPClientError):  # refused, or cut by a worker's end
                response = None
            if response is not None and response.code == 200:
                body = orjson.loads(response.body)
                assert "result" in body, body
                return body["result"]
            await asyncio.sleep(0.05)


async def next_message(events: Events) -> tuple[object, dict]:
    pub = (await soon(events.publications)).pub
    return pub.data, pub.tags


async def ack(one: Any, channel: str, **what: object) -> int:
    return (await one.rpc("hub.ack", {"channel": channel, **what})).data["acked"]


async def is_empty(hub: HubProcess, user: str) -> bool:
    return (await post(hub, "mailbox_stats", user=user))["messages"] == 0


@nodejs.NODE
@nodejs.PACKAGES
def test_the_javascript_sdk_has_a_mailbox(hub):
    """What was kept comes on subscribe with its tags, `hub.ack` takes it away, a notice reaches others too."""
    nodejs.run("centrifuge_js.mjs", "hasAMailbox", hub.ws_url, hub.token("jo"), hub.api_url, hub.key)


@async_test
async def test_a_message_for_an_absent_user_comes_when_it_connects(hub):
    """Once it is acknowledged it is gone for the next connection."""
    stored = await post(hub, "notify", user="ann", data={"text": "hi"}, tags={"kind": "note"})
    async with sdk(hub, token=hub.token("ann")) as (ann, _):
        _, heard = await subscribe(ann, "inbox:#ann")
        data, tags = await next_message(heard)
        assert (data, tags) == ({"text": "hi"}, {"kind": "note", "id": stored["id"], "deliveries": "1"})
        assert await ack(ann, "inbox:#ann", ids=[tags["id"]]) == 1
    async with sdk(hub, token=hub.token("ann")) as (ann, _):
        _, heard = await subscribe(ann, "inbox:#ann")
        await soon(heard.subscribed)
        last = await post(hub, "notify", user="ann", data="last")
        assert (await next_message(heard))[1]["id"] == last["id"]
        assert await ack(ann, "inbox:#ann", upto=last["id"]) == 1


@async_test
async def test_the_first_devices_acknowledgement_stops_redelivery_to_the_other(hub):
    """Both get it, and get it again until one of them says that it has it."""
    async with sdk(hub, token=hub.token("bob")) as (phone, _), sdk(hub, token=hub.token("bob")) as (desk, _):
        _, on_phone = await subscribe(phone, "inbox:#bob")
        _, on_desk = await subscribe(desk, "inbox:#bob")
        await soon(on_phone.subscribed)
        await soon(on_desk.subscribed)
        sent = (await post(hub, "notify", user="bob", data=1))["id"]
        while (await next_message(on_desk))[1]["deliveries"] == "1":
            pass
        assert (await next_message(on_phone))[1]["id"] == sent
        assert await ack(phone, "inbox:#bob", ids=[sent]) == 1
        assert await ack(desk, "inbox:#bob", ids=[sent]) == 0
        # The next one comes behind whatever is still on its way of the first.
        after = (await post(hub, "notify", user="bob", data=2))["id"]
        counts: dict[str, int] = {}
        while counts.get(after, 0) < 2:
            one = (await next_message(on_desk))[1]["id"]
            counts[one] = counts.get(one, 0) + 1
        late = []
        while counts[after] < 4:  # two more redeliveries of the second: none of the first among them
            one = (await next_message(on_desk))[1]["id"]
            counts[one] += 1
            late.append(one)
        assert set(late) == {after}
        assert await ack(desk, "inbox:#bob", ids=[after]) == 1


@async_test
async def test_a_notice_reaches_all_devices_of_one_user_and_only_those(hub):
    """As a publication where the mailbox is subscribed to, else as a message; everyone gets what is for everyone."""
    async with (
        client(hub.ws_url, hub.token("cy")) as subscribed,
        client(hub.ws_url, hub.token("cy")) as other,
        client(hub.ws_url, hub.token("di")) as stranger,
        client(hub.ws_url) as nobody,
    ):
        await subscribed.subscribe("inbox:#cy")
        sent = await post(hub, "notify", users=["cy"], data="for cy")
        assert sent["responses"][0]["result"]["id"]
        assert (await subscribed.push())["pub"]["data"] == "for cy"
        assert await other.push() == {"message": {"data": "for cy"}}
        await post(hub, "notify", everyone=True, data="for all")
        for one in (other, stranger, nobody):
            assert await one.push() == {"message": {"data": "for all"}}
        while (push := await subscribed.push()) != {"message": {"data": "for all"}}:
            assert push["pub"]["data"] == "for cy"  # redelivered meanwhile


@async_test
async def test_no_message_is_unaccounted_for_when_workers_are_killed():
    """Publishers retry, the client acknowledges what it gets, workers are killed meanwhile: everything arrives."""
    with HubProcess({"namespaces": NAMESPACES}) as hub:
        stored: list[str] = []
        received: dict[str, int] = {}

        async def publish() -> None:
            for n in range(MESSAGES):
                result = await post(hub, "notify", user="ann", data=n, idempotency_key=f"n{n}")
                stored.append(result["id"])

        async def receive(one: Any, heard: Events) -> None:
            while True:
                _, tags = await next_message(heard)
                received[tags["id"]] = received.get(tags["id"], 0) + 1
                try:
                    what = {"upto": tags["id"]} if random.random() < 0.5 else {"ids": [tags["id"]]}
                    await ack(one, "inbox:#ann", **what)
                except Exception:  # lost with the connection: the message comes again
                    await asyncio.sleep(0.01)

        async def kill() -> None:
            for n in range(1, KILLS + 1):
                await until(lambda n=n: len(stored) >= n * MESSAGES // (KILLS + 1), 30)
                os.kill(random.choice(hub.worker_pids()), signal.SIGKILL)

        pauses = {"min_reconnect_delay": 0.02, "max_reconnect_delay": 0.2}
        async with sdk(hub, token=hub.token("ann"), **pauses) as (one, _):
            _, heard = await subscribe(one, "inbox:#ann")
            receiver = asyncio.ensure_future(receive(one, heard))
            try:
                await asyncio.gather(publish(), kill())
                await until(lambda: is_empty(hub, "ann"), 30)
            finally:
                receiver.cancel()
                await asyncio.gather(receiver, return_exceptions=True)
        assert len(set(stored)) == MESSAGES
        assert set(received) == set(stored)
        assert (await post(hub, "mailbox_dead"))["letters"] == []
        totals = (await post(hub, "mailbox_stats", user="ann"))["totals"]
        assert (totals["messages"], totals["bytes"]) == (0, 0)


@async_test
async def test_mailboxes_outlive_the_hub():
    """A planned stop and a start: what was kept is still there, and is delivered."""
    with HubProcess({"namespaces": NAMESPACES}) as hub:
        stored = await post(hub, "notify", user="ann", data=1)
        assert hub.stop() == 0
        hub.start()
        async with sdk(hub, token=hub.token("ann")) as (ann, _):
            _, heard = await subscribe(ann, "inbox:#ann")
            assert (await next_message(heard))[1]["id"] == stored["id"]
            assert await ack(ann, "inbox:#ann", upto=stored["id"]) == 1
