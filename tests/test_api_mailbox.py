"""The server API of mailboxes on a real server and Valkey: notify, look, requeue, and wrong requests."""

from __future__ import annotations

import orjson
import pytest

from hub import tasks
from hub.api_mailbox import MAX_LETTERS, MAX_USERS
from hub.channels import Namespace
from hub.control import MAX_CONTROL_BYTES
from hub.mailbox import ID
from hub.store import Keys
from tests.apis import Hub, error_of, hub, topic
from tests.support import async_test

NAMESPACES = {
    "inbox": Namespace(mailbox=True),
    "small": Namespace(mailbox=True, mailbox_size=1, mailbox_full="drop_oldest"),
}


async def stored(one: Hub, user: str) -> tuple[int, int]:
    result = (await one.ask("mailbox_stats", {"user": user}))["result"]
    return result["messages"], result["in_flight"]


async def expire(one: Hub, user: str) -> None:
    """What is in the mailbox is found to be too old."""
    rules = NAMESPACES["inbox"].model_copy(update={"mailbox_ttl_s": 0})
    await tasks.reply(lambda done: one.mailboxes.visit(f"inbox:#{user}", rules, done))


@async_test
async def test_a_user_is_notified(valkey_url, prefix):
    """A copy in the mailbox with its id and tags, and a word to all workers, in one step."""
    async with (
        hub(valkey_url, prefix, namespaces=NAMESPACES) as one,
        one.redis.pubsub() as ear,
        one.hearing(topic(prefix, "inbox:#42")) as hear,
    ):
        await ear.subscribe(Keys(prefix).control)
        await ear.get_message(timeout=5)
        result = (await one.ask("notify", {"user": "42", "data": {"n": 1}, "tags": {"a": "b"}}))["result"]
        assert (ID.fullmatch(result["id"]) is not None, result["ack"]) == (True, "memory")
        tags = {"a": "b", "id": result["id"], "deliveries": "1"}
        assert await hear() == ("inbox:#42", {"data": {"n": 1}, "tags": tags})
        notice = orjson.loads((await ear.get_message(timeout=5))["data"])
        assert notice == {"do": "notify", "user": "42", "channel": "inbox:#42", "data": {"n": 1}}
        assert await stored(one, "42") == (1, 1)


@async_test
async def test_several_users_are_notified(valkey_url, prefix):
    """More than wait for Redis together; each has its answer, in order, and one's mistake is its own."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        users = [str(n) for n in range(100)] + ["", "no name", 5]
        responses = (await one.ask("notify", {"users": users, "data": 1}))["result"]["responses"]
        assert [one.get("error", {}).get("code", 0) for one in responses] == [0] * 100 + [107] * 3
        assert len({one["result"]["id"] for one in responses[:100]}) == 100
        assert [await stored(one, user) for user in ("0", "99")] == [(1, 0), (1, 0)]


@async_test
async def test_a_key_notifies_once_for_each_user(valkey_url, prefix):
    """The second time the answer says so, with the same id; another user's is another message."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        request = {"users": ["42", "77"], "data": 1, "idempotency_key": "k"}
        first = (await one.ask("notify", request))["result"]["responses"]
        again = (await one.ask("notify", request))["result"]["responses"]
        assert again == [{"result": {**response["result"], "duplicate": True}} for response in first]
        assert first[0] != first[1]
        assert await stored(one, "42") == await stored(one, "77") == (1, 0)


@async_test
async def test_everyone_is_told_through_all_workers(valkey_url, prefix):
    """One word on the control channel; nothing is kept."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one, one.redis.pubsub() as ear:
        await ear.subscribe(Keys(prefix).control)
        await ear.get_message(timeout=5)
        assert await one.ask("notify", {"everyone": True, "data": "hi"}) == {"result": {}}
        notice = orjson.loads((await ear.get_message(timeout=5))["data"])
        assert notice == {"do": "notify", "user": "", "channel": "", "data": "hi"}
        assert not await one.redis.exists(Keys(prefix).mail_totals)


@async_test
async def test_a_mailbox_keeps_every_message(valkey_url, prefix):
    """skip_history would leave nothing for who is away: 108, and nothing is sent either."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        request = {"channel": "inbox:#42", "data": 1, "skip_history": True}
        assert (await one.ask("publish", request))["error"]["code"] == 108
        keyed = {"channel": "inbox:#42", "data": 1, "idempotency_key": "k"}
        first, again = [(await one.ask("publish", keyed))["result"] for _ in range(2)]
        assert again == {**first, "duplicate": True}
        assert await stored(one, "42") == (1, 0)


@async_test
async def test_a_plain_publish_into_a_mailbox_is_kept_too(valkey_url, prefix):
    """With its id in the answer; a mailbox that is full says so to `publish` and `notify` alike."""
    async with hub(valkey_url, prefix, namespaces={"inbox": Namespace(mailbox=True, mailbox_size=1)}) as one:
        result = (await one.ask("publish", {"channel": "inbox:#42", "data": 1}))["result"]
        assert ID.fullmatch(result["id"])
        full = {"error": {"code": 106, "message": "the mailbox is full"}}
        assert await one.ask("publish", {"channel": "inbox:#42", "data": 2}) == full
        assert await one.ask("notify", {"user": "42", "data": 2}) == full
        assert await stored(one, "42") == (1, 0)


BAD = {
    "nobody": ({"data": 1}, 107),
    "two kinds": ({"user": "42", "users": ["77"], "data": 1}, 107),
    "no data": ({"user": "42"}, 107),
    "a user that is no text": ({"user": 42, "data": 1}, 107),
    "a user with a space": ({"user": "a b", "data": 1}, 107),
    "several users in one": ({"user": "42,77", "data": 1}, 107),
    "users that are no list": ({"users": "42", "data": 1}, 107),
    "too many users": ({"users": ["42"] * (MAX_USERS + 1), "data": 1}, 106),
    "everyone who is no true": ({"everyone": "yes", "data": 1}, 107),
    "tags for everyone": ({"everyone": True, "data": 1, "tags": {"a": "b"}}, 108),
    "a key for everyone": ({"everyone": True, "data": 1, "idempotency_key": "k"}, 108),
    "binary data": ({"user": "42", "data": 1, "b64data": "AA=="}, 108),
    "a version epoch": ({"user": "42", "data": 1, "version_epoch": "e"}, 108),
    "not to be kept": ({"user": "42", "data": 1, "skip_history": True}, 108),
    "own id": ({"user": "42", "data": 1, "tags": {"id": "x"}}, 107),
    "tags that are none": ({"user": "42", "data": 1, "tags": {"a": 1}}, 107),
    "a key that is none": ({"user": "42", "data": 1, "idempotency_key": ["k"]}, 107),
    "a key that is an empty list": ({"user": "42", "data": 1, "idempotency_key": []}, 107),
    "too deep": ({"user": "42", "data": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}, 107),
    "too much": ({"user": "42", "data": "x" * MAX_CONTROL_BYTES}, 106),
    "too much for everyone": ({"everyone": True, "data": "x" * MAX_CONTROL_BYTES}, 106),
}


@pytest.mark.parametrize("name", BAD)
@async_test
async def test_a_bad_notice_has_its_code_and_stores_nothing(name, valkey_url, prefix):
    """Whatever is wrong with it."""
    request, code = BAD[name]
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        assert (await one.ask("notify", request))["error"]["code"] == code
        assert not await one.redis.exists(Keys(prefix).mail_totals)


@pytest.mark.parametrize(
    ("namespaces", "code"), [({}, 102), ({"inbox": Namespace()}, 108), ({"inbox": Namespace(mode="latest")}, 108)]
)
@async_test
async def test_without_mailboxes_nobody_is_notified(namespaces, code, valkey_url, prefix):
    """No such namespace, or one that keeps nothing: the answer says so, and everyone can still be told."""
    async with hub(valkey_url, prefix, namespaces=namespaces) as one:
        for method, request in (("notify", {"user": "42", "data": 1}), ("mailbox_stats", {"user": "42"})):
            assert (await one.ask(method, request))["error"]["code"] == code
        assert await one.ask("notify", {"everyone": True, "data": 1}) == {"result": {}}


# Looking.


@async_test
async def test_a_mailbox_is_counted(valkey_url, prefix):
    """By user or by channel; an empty one is as good as any."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        for n in range(3):
            await one.ask("notify", {"user": "42", "data": n})
        by_user = (await one.ask("mailbox_stats", {"user": "42"}))["result"]
        assert by_user == (await one.ask("mailbox_stats", {"channel": "inbox:#42"}))["result"]
        size = 3 * (len(b'{"data":1,"tags":{') + 256)
        totals = {"messages": 3, "bytes": size}
        assert by_user == {"messages": 3, "bytes": size, "in_flight": 0, "totals": totals}
        empty = (await one.ask("mailbox_stats", {"user": "77"}))["result"]
        assert empty == {"messages": 0, "bytes": 0, "in_flight": 0, "totals": totals}


@async_test
async def test_dead_letters_are_listed_and_requeued(valkey_url, prefix):
    """In pages, oldest first; one of them lives again, then all that are left of one channel, then all."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        for user in ("42", "77"):
            for n in range(2):
                await one.ask("notify", {"user": user, "data": {"n": n}, "tags": {"a": "b"}})
            await expire(one, user)
        page = (await one.ask("mailbox_dead", {"limit": 3}))["result"]["letters"]
        rest = (await one.ask("mailbox_dead", {"after": page[-1]["id"]}))["result"]["letters"]
        named = [(letter["channel"], letter["reason"], letter["data"]["n"]) for letter in page + rest]
        assert named == [(f"inbox:#{user}", "expired", n) for user in ("42", "77") for n in range(2)]
        first = page[0]
        assert (first["deliveries"], first["tags"], ID.fullmatch(first["message"]) is not None) == (0, {"a": "b"}, True)

        request = {"id": first["id"], "channel": "inbox:#42"}
        assert ID.fullmatch((await one.ask("mailbox_requeue", request))["result"]["id"])
        assert (await one.ask("mailbox_requeue", request))["error"]["code"] == 107
        only = (await one.ask("mailbox_requeue", {"all": True, "channel": "inbox:#77"}))["result"]
        assert only == {"requeued": 2, "refused": 0, "after": rest[-1]["id"]}
        assert (await one.ask("mailbox_requeue", {"all": True}))["result"]["requeued"] == 1
        assert (await one.ask("mailbox_dead"))["result"] == {"letters": []}
        assert [await stored(one, user) for user in ("42", "77")] == [(2, 0), (2, 0)]


@async_test
async def test_letters_without_room_stay_dead(valkey_url, prefix):
    """They are counted as refused, and are still there."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        for n in range(4):
            await one.ask("publish", {"channel": "small:#42", "data": n})
        result = (await one.ask("mailbox_requeue", {"all": True}))["result"]
        assert (result["requeued"], result["refused"]) == (0, 3)
        assert [letter["data"] for letter in (await one.ask("mailbox_dead"))["result"]["letters"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("mailbox_stats", {}, 107),
        ("mailbox_stats", {"user": 5}, 107),
        ("mailbox_stats", {"user": "42", "channel": "news"}, 108),
        ("mailbox_stats", {"channel": "inbox:#1,2"}, 107),
        ("mailbox_dead", {"limit": 0}, 107),
        ("mailbox_dead", {"limit": MAX_LETTERS + 1}, 107),
        ("mailbox_dead", {"limit": True}, 107),
        ("mailbox_dead", {"after": "+"}, 107),
        ("mailbox_dead", {"after": 5}, 107),
        ("mailbox_dead", {"after": False}, 107),
        ("mailbox_dead", {"after": f"{2**64}-0"}, 107),
        ("mailbox_dead", {"after": f"{2**64 - 1}-{2**64 - 1}"}, 107),
        ("mailbox_requeue", {}, 107),
        ("mailbox_requeue", {"channel": "inbox:#42", "id": f"1-{2**64}"}, 107),
        ("mailbox_requeue", {"channel": "inbox:#42"}, 107),
        ("mailbox_requeue", {"channel": "inbox:#42", "id": "-"}, 107),
        ("mailbox_requeue", {"channel": "inbox:#42", "id": "1-1"}, 107),
        ("mailbox_requeue", {"channel": "news", "id": "1-1"}, 108),
        ("mailbox_requeue", {"all": True, "channel": "news"}, 108),
        ("mailbox_requeue", {"all": True, "after": "x"}, 107),
        ("mailbox_requeue", {"all": "no"}, 107),
    ],
)
@async_test
async def test_a_bad_question_has_its_code(method, request_, code, valkey_url, prefix):
    """And nothing more happens."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES) as one:
        assert (await one.ask(method, request_))["error"]["code"] == code


@async_test
async def test_without_redis_it_is_worth_trying_again(valkey_url, prefix):
    """503, as for every publication that Redis did not take."""
    async with hub(valkey_url, prefix, namespaces=NAMESPACES, most_waiting=0) as one:
        for method, request in (
            ("notify", {"user": "42", "data": 1}),
            ("notify", {"users": ["42", "77"], "data": 1}),
            ("mailbox_stats", {"user": "42"}),
            ("mailbox_dead", {}),
            ("mailbox_requeue", {"all": True}),
        ):
            response = await one.post(method, request)
            assert (response.code, error_of(response)["temporary"]) == (503, True), method
