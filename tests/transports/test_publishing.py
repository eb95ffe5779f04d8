"""POST /publish: the namespace's rule holds, and what is published is received on the other wires."""

from __future__ import annotations

import time

import orjson

from hub import auth
from tests.eventsource import request, stream
from tests.plane import SECRET, client, plane
from tests.support import async_test


def body(channel: object, data: object = 1, **more: object) -> bytes:
    return orjson.dumps({"channel": channel, "data": data, **more})


@async_test
async def test_what_is_published_reaches_every_wire(valkey_url, prefix):
    """With the user that the token names."""
    token = auth.make("42", SECRET, 60, time.time())
    async with plane(valkey_url, prefix) as one, client(one.url) as native:
        await native.subscribe("chat:a")
        async with stream(one.port, "channel=chat:a") as listener:
            await listener.next("cursor")
            answer = await request(one.port, "POST", f"/publish?token={token}", body("chat:a", "hi"))
            assert (answer.status, answer.json["ack"], answer.json["offset"]) == (200, "memory", 1)
            event = (await listener.next()).json
            assert event["pub"] == {"offset": 1, "data": "hi", "info": {"user": "42", "client": ""}}
            assert (await native.push())["pub"] == event["pub"]


@async_test
async def test_the_rule_of_the_namespace_holds(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        for channel, status in (("open:a", 200), ("closed:a", 403), ("users:a", 403), ("own:a", 403), ("x:a", 404)):
            assert (await request(one.port, "POST", "/publish", body(channel))).status == status


@async_test
async def test_bad_bodies_are_refused(valkey_url, prefix):
    deep = b'{"channel":"open:a","data":' + b"[" * 40 + b"]" * 40 + b"}"
    async with plane(valkey_url, prefix, client={"message_bytes": 1000}) as one:
        for sent, status in (
            (b"{", 400),
            (b"[]", 400),
            (b'{"channel":"open:a"}', 400),
            (body(7), 400),
            (body("open:\n"), 400),
            (deep, 400),
            (body("chat:a", idempotency_key=7), 400),
            (body("open:a", "x" * 1000), 413),
        ):
            answer = await request(one.port, "POST", "/publish", sent)
            assert (answer.status, "error" in answer.json) == (status, True), sent


@async_test
async def test_a_body_must_say_that_it_is_json(valkey_url, prefix):
    """415 for what a page could send without being asked: the types of forms, and none."""
    async with plane(valkey_url, prefix) as one:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "text/json", ""):
            answer = await request(one.port, "POST", "/publish", body("open:a"), Content_Type=kind)
            assert (answer.status, answer.json["error"]["code"]) == (415, 107), kind
        for kind in ("application/json", "Application/JSON; charset=utf-8"):
            assert (await request(one.port, "POST", "/publish", body("open:a"), Content_Type=kind)).status == 200


@async_test
async def test_an_idempotency_key_publishes_once(valkey_url, prefix):
    async with plane(valkey_url, prefix) as one:
        first = await request(one.port, "POST", "/publish", body("chat:a", idempotency_key="k"))
        second = await request(one.port, "POST", "/publish", body("chat:a", idempotency_key="k"))
        assert second.json == {**first.json, "duplicate": True}
