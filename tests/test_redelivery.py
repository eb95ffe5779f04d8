"""Mailboxes of a worker's own clients, over real sockets and a real Valkey; the order in which a device gets things."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis

from hub import auth, tasks
from hub.channels import Channels, Namespace
from hub.errors import BrokerUnavailable
from hub.message import Publication
from hub.redelivery import RETRY_S, Redelivery
from hub.store import Keys
from tests.nodes import own_valkey, until
from tests.plane import SECRET, Client, Plane, client, plane
from tests.support import async_test

CHANNEL = "inbox:#42"
TOKEN = auth.make("42", SECRET, 600, time.time())


async def send(worker: Plane, data: object) -> str:
    """Publish into the mailbox; the message's id."""
    namespace = worker.services.channels.resolve(CHANNEL)
    receipt = await tasks.reply(lambda done: worker.publisher.publish(CHANNEL, namespace, data, done))
    return receipt.id


async def contents(worker: Plane) -> tuple[int, int]:
    """Messages, and how many of them are in flight."""
    namespace = worker.services.channels.resolve(CHANNEL)
    stats = await tasks.reply(lambda done: worker.mailboxes.stats(CHANNEL, namespace, done))
    return stats.messages, stats.in_flight


async def message(device: Client) -> tuple[object, str, str]:
    """The next message: its data, id and number of deliveries."""
    pub = (await device.push())["pub"]
    return pub["data"], pub["tags"]["id"], pub["tags"]["deliveries"]


async def ack(device: Client, **data: object) -> int:
    reply = await device.command(rpc={"method": "hub.ack", "data": {"channel": CHANNEL, **data}})
    return reply["rpc"]["data"]["acked"]


@contextlib.asynccontextmanager
async def device(worker: Plane) -> AsyncIterator[Client]:
    async with client(worker.url, TOKEN) as one:
        await one.subscribe(CHANNEL)
        await until(lambda: worker.redelivery._boxes[CHANNEL].opening == [])
        yield one


@async_test
async def test_what_came_while_the_user_was_away_comes_on_subscribe(valkey_url, prefix):
    """In order; then what is new, behind it."""
    async with plane(valkey_url, prefix) as worker:
        ids = [await send(worker, n) for n in range(3)]
        async with device(worker) as one:
            assert [await message(one) for _ in ids] == [(n, ids[n], "1") for n in range(3)]
            new = await send(worker, "new")
            assert await message(one) == ("new", new, "1")


@async_test
async def test_all_devices_get_a_message_and_the_first_acknowledgement_counts(valkey_url, prefix):
    """On two workers; the second one's acknowledgement is fine too, and finds nothing."""
    async with (
        plane(valkey_url, prefix) as first,
        plane(valkey_url, prefix) as second,
        device(first) as phone,
        device(second) as desk,
    ):
        sent = await send(first, "hi")
        assert (await message(phone))[1] == (await message(desk))[1] == sent
        assert await ack(phone, ids=[sent]) == 1
        assert await ack(desk, ids=[sent]) == 0
        assert await contents(first) == (0, 0)


@async_test
async def test_what_is_not_acknowledged_comes_again_from_whichever_worker(valkey_url, prefix):
    """Once for all devices, though each worker looks at what is due; then no more once it is acknowledged."""
    async with (
        plane(valkey_url, prefix) as first,
        plane(valkey_url, prefix) as second,
        device(first) as phone,
        device(second) as desk,
    ):
        sent = await send(first, "hi")
        seen = [await message(phone) for _ in range(2)], [await message(desk) for _ in range(2)]
        assert seen == ([("hi", sent, "1"), ("hi", sent, "2")],) * 2
        assert await ack(desk, upto=sent) == 1
        assert await contents(first) == (0, 0)


@async_test
async def test_a_device_that_reconnects_gets_what_was_in_flight(valkey_url, prefix):
    """At once, and not only when it is due."""
    async with plane(valkey_url, prefix) as worker:
        async with device(worker) as one:
            sent = await send(worker, "hi")
            assert await message(one) == ("hi", sent, "1")
        async with device(worker) as one:
            assert await message(one) == ("hi", sent, "2")


@async_test
async def test_up_to_speaks_of_what_was_sent_here(valkey_url, prefix):
    """Of three messages that a device has, the third one's id acknowledges all; a later id no more than those."""
    async with plane(valkey_url, prefix) as worker, device(worker) as one:
        ids = [await send(worker, n) for n in range(4)]
        for _ in ids:
            await message(one)
        assert await ack(one, upto=ids[2]) == 3
        assert await ack(one, upto="9999999999999-000000") == 1
        assert await contents(worker) == (0, 0)


@async_test
async def test_up_to_from_a_worker_that_sent_nothing_takes_nothing(valkey_url, prefix):
    """A device's own connection must have got a message before "up to" can mean it."""
    async with (
        plane(valkey_url, prefix) as first,
        plane(valkey_url, prefix) as second,
        device(first) as phone,
        client(second.url, TOKEN) as stranger,
    ):
        sent = await send(first, "hi")
        await message(phone)
        assert await ack(stranger, upto=sent) == 0
        assert await ack(stranger, ids=[sent]) == 1


@pytest.mark.expects_log
@async_test
async def test_messages_missed_while_the_link_was_down_come_by_themselves(valkey_url, prefix):
    """Nobody listened when they were stored; with the link's return they are sent, without a new subscription."""
    async with plane(valkey_url, prefix) as worker, device(worker) as one:
        worker.ingest._link.close()
        sent = await send(worker, "hi")
        assert (await message(one))[:2] == ("hi", sent)


@pytest.mark.expects_log
@async_test
async def test_a_mailbox_that_cannot_be_read_holds_up_no_other(valkey_url, prefix):
    """What others missed while the link was down comes, what is due is sent again, and nothing stays behind."""
    token = auth.make("77", SECRET, 600, time.time())
    async with (
        plane(valkey_url, prefix) as worker,
        Redis.from_url(valkey_url) as redis,
        client(worker.url, token) as broken,
    ):
        await broken.subscribe("inbox:#77")
        await until(lambda: worker.redelivery._boxes["inbox:#77"].opening == [])
        await redis.set(Keys(prefix).mailbox("inbox:#77")[3], "something else")
        async with device(worker) as one:
            worker.ingest._link.close()
            sent = await send(worker, "hi")
            assert (await message(one))[:2] == ("hi", sent)
            assert await message(one) == ("hi", sent, "2")
        await until(lambda: CHANNEL not in worker.redelivery._boxes)


@async_test
async def test_other_channels_of_a_mailbox_namespace_are_refused(valkey_url, prefix):
    """Only the user itself, and only by the one name that its mailbox has."""
    async with plane(valkey_url, prefix) as worker, client(worker.url, TOKEN) as one:
        for channel, code in (("inbox:#77", 103), ("inbox:42", 107), ("inbox:#42,77", 107), ("inbox:a#42", 107)):
            reply = await one.command(subscribe={"channel": channel})
            assert reply["error"]["code"] == code, channel


@async_test
async def test_a_client_may_publish_where_the_rules_let_it(valkey_url, prefix):
    """Into its own mailbox, with its name in the message."""
    async with plane(valkey_url, prefix) as worker, device(worker) as one:
        assert (await one.command(publish={"channel": CHANNEL, "data": 1}))["publish"] == {"ack": "memory"}
        pub = (await one.push())["pub"]
        assert (pub["data"], pub["info"]["user"]) == (1, "42")
        assert (await one.command(publish={"channel": "inbox:#77", "data": 1}))["error"]["code"] == 103


@async_test
async def test_a_user_that_has_left_leaves_nothing_behind(valkey_url, prefix):
    """A worker remembers nobody's mailbox for long."""
    async with plane(valkey_url, prefix) as worker:
        async with device(worker) as one:
            await send(worker, "hi")
            await message(one)
        await until(lambda: not worker.redelivery._boxes)


# Order and failure, with the room alone.


class Mailboxes:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list = []

    def open(self, channel: str, namespace: Namespace, replied: object) -> None:
        self.asked.append(replied)


class Phone:
    def __init__(self, got: list) -> None:
        self.got = got
        self.here = True

    def holds(self, channel: str) -> bool:
        return self.here

    def push(self, channel: str, body: bytes) -> None:
        self.got.append(orjson.loads(body)["data"])


class Room:
    def __init__(self, window: int = 64) -> None:
        self.mailboxes, self.got = Mailboxes(), []
        self.rules = Namespace(mailbox=True, mailbox_window=window)
        self.size = 1
        self.room = Redelivery(
            self.mailboxes,
            Channels({"inbox": self.rules}),
            lambda batch: self.got.extend(orjson.loads(one.body)["data"] for one in batch),
            lambda channel: self.size,
            spread=lambda: 0.5,
        )

    def open(self) -> Phone:
        phone = Phone(self.got)
        self.room.opened(CHANNEL, self.rules, phone)
        return phone

    def live(self, *numbers: int, channel: str = CHANNEL) -> None:
        self.room.deliver([Publication(channel, body_of(number)) for number in numbers])


def body_of(number: int) -> bytes:
    return b'{"data":%d,"tags":{"id":"%s","deliveries":"1"}}' % (number, id_of(number).encode())


def id_of(number: int) -> str:
    return f"{number:013}-000000"


def test_what_is_newer_waits_for_what_is_in_flight():
    """It overtook it on the other link to Redis; other channels are not held up."""
    room = Room()
    room.open()
    room.live(3)
    room.live(9, channel="news")
    assert room.got == [9]
    room.mailboxes.asked.pop()([body_of(1), body_of(2)])
    assert room.got == [9, 1, 2, 3]
    room.live(4)
    assert room.got == [9, 1, 2, 3, 4]
    assert room.room.sent_up_to(CHANNEL, id_of(3)) == [id_of(1), id_of(2), id_of(3)]


def test_what_waits_for_an_answer_is_bounded():
    """The oldest is dropped; it is in flight, so it comes again, and nobody here can acknowledge it."""
    room = Room(window=2)
    room.open()
    room.live(1, 2, 3, 4, 5)
    room.mailboxes.asked.pop()([])
    assert room.got == [2, 3, 4, 5]
    assert id_of(1) not in room.room.sent_up_to(CHANNEL, id_of(9))


def test_what_is_known_to_be_sent_is_bounded():
    """No more is in flight than the window, so what is older has been acknowledged elsewhere, or comes again."""
    room = Room(window=2)
    room.open()
    room.mailboxes.asked.pop()([])
    for number in range(1, 11):
        room.live(number)
    assert room.room.sent_up_to(CHANNEL, id_of(99)) == [id_of(number) for number in (7, 8, 9, 10)]


def test_two_devices_that_come_together_both_wait():
    """What is newer goes on when the second has its messages too."""
    room = Room()
    room.open()
    room.open()
    first, second = room.mailboxes.asked
    first([body_of(1)])
    room.live(2)
    assert room.got == [1]
    second([body_of(1)])
    assert room.got == [1, 1, 2]


def test_what_a_device_missed_comes_to_it_with_the_next_one():
    """Else "up to" would speak for it of a message that it never had."""
    room = Room()
    room.open()
    room.mailboxes.asked.pop()([body_of(1)])
    room.size = 2
    room.open()
    room.mailboxes.asked.pop()([body_of(1), body_of(2)])
    assert room.got == [1, 1, 2, 2]  # the second one's two, then the first one's missing one


def test_a_device_that_has_left_gets_nothing():
    """And what was in flight for it is not counted as sent here."""
    room = Room()
    room.open().here = False
    room.live(2)
    room.mailboxes.asked.pop()([body_of(1)])
    assert room.got == [2]
    assert room.room.sent_up_to(CHANNEL, id_of(9)) == [id_of(2)]


def test_a_new_device_stands_for_nothing_that_others_were_sent():
    """With the last device goes what was sent; "up to" from the next one is about its own messages."""
    room = Room()
    room.open()
    room.mailboxes.asked.pop()([body_of(1)])
    room.open()
    room.mailboxes.asked.pop()([body_of(2)])
    assert room.room.sent_up_to(CHANNEL, id_of(9)) == [id_of(2)]


@async_test
async def test_a_device_waits_while_redis_fails(monkeypatch):
    """It is asked again; nothing newer goes out before that."""
    monkeypatch.setattr("hub.redelivery.RETRY_S", 0.001)
    room = Room()
    room.open()
    room.live(2)
    room.mailboxes.asked.pop()(BrokerUnavailable("away"))
    assert room.got == []
    await until(lambda: room.mailboxes.asked)
    room.mailboxes.asked.pop()([body_of(1)])
    assert room.got == [1, 2]
    assert RETRY_S >= 1


@async_test
async def test_nobody_is_asked_again_for_a_device_that_left_meanwhile():
    """What is newer goes to the others then."""
    room = Room()
    phone = room.open()
    room.live(2)
    phone.here = False
    room.mailboxes.asked.pop()(BrokerUnavailable("away"))
    assert room.got == [2]


@async_test
async def test_devices_that_the_fan_out_left_out_have_to_come_anew(valkey_url, prefix):
    """A worker that is behind drops a message; who was there is sent 2500 and gets it on its next subscription."""
    async with plane(valkey_url, prefix, batch_bytes=100) as worker, device(worker) as one:
        worker.fanout.waiting_bytes = 100  # as if something else were on its way
        sent = await send(worker, "hi")
        assert (await one.push())["unsubscribe"]["code"] == 2500
        worker.fanout.waiting_bytes = 0
        assert await ack(one, upto=sent) == 0
        await one.subscribe(CHANNEL)
        assert (await message(one))[:2] == ("hi", sent)


def test_only_devices_that_are_still_there_are_sent_away():
    """Those who have left are forgotten when the next one comes."""
    room = Room()
    first = room.open()
    first.here = False
    room.open()
    assert len(room.room._boxes[CHANNEL].devices) == 1


@pytest.mark.expects_log
@async_test
async def test_redelivery_outlives_its_store(prefix):
    """Redis stops and comes back empty-handed: the room goes on, and new messages arrive."""
    with own_valkey() as valkey:
        async with plane(valkey.url, prefix) as worker, device(worker) as one:
            valkey.stop()
            await until(lambda: not worker.ingest.connected)
            await asyncio.sleep(0)
            valkey.start()
            await until(lambda: worker.ingest.connected)
            sent = await send(worker, "hi")
            assert (await message(one))[:2] == ("hi", sent)
            assert await message(one) == ("hi", sent, "2")
