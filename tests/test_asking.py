"""What a client may ask of a channel: rules, codes, answers; by the session, without Redis, and once over the plane."""

from __future__ import annotations

import pytest

from hub.errors import LIMIT_EXCEEDED, BrokerUnavailable, CommandError
from hub.roll import Roll
from tests.plane import client, plane
from tests.support import async_test
from tests.test_session import Rig

METHODS = ("presence", "presence_stats")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("open:a", 108),  # where presence is off, whoever asks
        ("quiet:a", 103),  # for its subscribers only
        ("room:a#bob", 103),  # limited to another user
        ("nowhere:a", 102),
        ("a b", 107),
        (None, 107),
    ],
)
def test_what_may_not_be_asked(method, channel, code):
    """Each has its code, and nothing is asked of Redis."""
    rig = Rig().connect("ann")
    assert rig.code({method: {"channel": channel}}) == code
    assert rig.presence.asked == []


@pytest.mark.parametrize("method", METHODS)
def test_a_subscriber_may_ask_while_it_is_one(method):
    """Not before, and not after."""
    rig = Rig().connect()
    assert rig.code({method: {"channel": "quiet:a"}}) == 103
    rig.say({"id": 2, "subscribe": {"channel": "quiet:a"}})
    assert rig.say({"id": 3, method: {"channel": "quiet:a"}}) == []
    assert [asked[:2] for asked in rig.presence.asked] == [("quiet:a", method == "presence")]
    rig.say({"id": 4, "unsubscribe": {"channel": "quiet:a"}})
    assert rig.code({method: {"channel": "quiet:a"}}) == 103


@pytest.mark.parametrize(
    ("method", "roll", "result"),
    [
        (
            "presence",
            Roll(1, 1, b'{"c1":{"user":"ann","client":"c1"}}'),
            {"presence": {"c1": {"user": "ann", "client": "c1"}}},
        ),
        ("presence", Roll(0, 0, b"{}"), {"presence": {}}),
        ("presence_stats", Roll(3, 2, None), {"num_clients": 3, "num_users": 2}),
    ],
)
def test_the_answers_are_in_the_protocols_words(method, roll, result):
    """As SDKs read them."""
    rig = Rig().connect()
    rig.say({"id": 7, method: {"channel": "room:a"}})
    rig.presence.asked[0][2](roll)
    assert rig.transport.said[-1] == {"id": 7, method: result}


@pytest.mark.parametrize(
    ("error", "code"), [(BrokerUnavailable("gone"), 100), (CommandError(LIMIT_EXCEEDED, "2000 clients"), 106)]
)
def test_a_failure_is_an_error_of_this_command(error, code):
    """Redis away is temporary and does not name addresses."""
    rig = Rig().connect()
    rig.say({"id": 7, "presence": {"channel": "room:a"}})
    rig.presence.asked[0][2](error)
    reply = rig.transport.said[-1]
    assert (reply["id"], reply["error"]["code"], reply["error"].get("temporary", False)) == (7, code, code == 100)
    assert "gone" not in reply["error"]["message"]


def test_questions_that_wait_are_bounded():
    """One more than pending_commands is 111; an answer makes room."""
    rig = Rig(pending_commands=2).connect()
    for number in (2, 3):
        assert rig.say({"id": number, "presence": {"channel": "room:a"}}) == []
    assert rig.code({"presence": {"channel": "room:a"}}) == 111
    rig.presence.asked[0][2](Roll(0, 0, b"{}"))
    assert rig.say({"id": 5, "presence": {"channel": "room:a"}}) == []


@async_test
async def test_who_has_just_subscribed_finds_itself(valkey_url, prefix):
    """Whatever is asked right behind the subscribe; and is gone after the unsubscribe."""
    async with plane(valkey_url, prefix) as one, client(one.url) as ann, client(one.url) as bob:
        await ann.subscribe("room:a")
        assert await ann.command(presence_stats={"channel": "room:a"}) == {
            "id": 3,
            "presence_stats": {"num_clients": 1, "num_users": 0},
        }
        await bob.subscribe("room:a", join_leave=True)
        assert len((await bob.command(presence={"channel": "room:a"}))["presence"]["presence"]) == 2
        await ann.command(unsubscribe={"channel": "room:a"})
        assert len((await bob.command(presence={"channel": "room:a"}))["presence"]["presence"]) == 1
        pushes = [await bob.push(), await bob.push()]
        assert ["join" in pushes[0], "leave" in pushes[1]] == [True, True]


# History.


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"channel": "open:a"}, 108),  # nothing is kept
        ({"channel": "ticker:a"}, 108),
        ({"channel": "log:a"}, 103),  # for its subscribers only
        ({"channel": "chat:a#bob"}, 103),
        ({"channel": "nowhere:a"}, 102),
        ({"channel": 7}, 107),
        ({"channel": "chat:a", "limit": -2}, 107),
        ({"channel": "chat:a", "limit": "10"}, 107),
        ({"channel": "chat:a", "since": 17}, 107),
        ({"channel": "chat:a", "since": {"offset": -1, "epoch": "4.a"}}, 107),
        ({"channel": "chat:a", "since": {"offset": 1, "epoch": 4}}, 107),
        ({"channel": "chat:a", "reverse": "yes"}, 107),
    ],
)
def test_histories_that_may_not_be_asked_for(params, code):
    """Each has its code, and nothing is asked of Redis."""
    rig = Rig().connect("ann")
    assert rig.code({"history": params}) == code
    assert rig.reads == []


def test_a_huge_limit_is_cut_to_the_setting():
    """As Centrifugo does it; -1 is as many as may be."""
    rig = Rig().connect("ann")
    for limit in (10**9, -1, 7, None):
        rig.say({"id": 2, "history": {"channel": "chat:a", "limit": limit}})
    assert [asked.limit for asked, _ in rig.reads] == [300, 300, 7, 0]


def test_a_history_that_cannot_be_read_is_a_temporary_error():
    """And no longer counts among the commands that wait."""
    rig = Rig(pending_commands=1).connect("ann")
    for _ in range(3):
        rig.say({"id": 2, "history": {"channel": "chat:a"}})
        rig.reads.pop()[1](BrokerUnavailable("away"))
        assert rig.transport.said[-1]["error"]["temporary"] is True


@async_test
async def test_an_answer_takes_half_of_an_outbox_at_most(valkey_url, prefix):
    """Large publications come in several pages, each of which ends before it would be too much."""
    async with (
        plane(valkey_url, prefix, client={"outbox_bytes": 1_048_576}) as hub,
        client(hub.url) as one,
    ):
        for number in range(5):
            await one.command(publish={"channel": "chat:h", "data": str(number) * 60_000})
        reply = (await one.command(history={"channel": "chat:h", "limit": -1}))["history"]
        assert len(reply["publications"]) == 5
        for number in range(5, 10):
            await one.command(publish={"channel": "chat:h", "data": str(number) * 60_000})
        found, since = [], {"offset": 0, "epoch": reply["epoch"]}
        while since["offset"] < 10:
            page = (await one.command(history={"channel": "chat:h", "limit": -1, "since": since}))["history"]
            found.append([pub["offset"] for pub in page["publications"]])
            since["offset"] = found[-1][-1]
        assert found == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]


@async_test
async def test_a_client_reads_a_history_forth_and_back(valkey_url, prefix):
    """Centrifugo's words; 112 for a position that is not of this channel."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one:
        for number in range(5):
            await one.command(publish={"channel": "chat:h", "data": number})

        async def read(**params: object) -> dict:
            reply = await one.command(history={"channel": "chat:h", **params})
            return reply.get("history") or reply["error"]

        position = await read()
        epoch = position["epoch"]
        assert position == {"publications": [], "offset": 5, "epoch": epoch}
        assert [pub["data"] for pub in (await read(limit=-1))["publications"]] == [0, 1, 2, 3, 4]
        assert [pub["offset"] for pub in (await read(limit=2, reverse=True))["publications"]] == [5, 4]
        since = {"offset": 2, "epoch": epoch}
        assert [pub["offset"] for pub in (await read(limit=2, since=since))["publications"]] == [3, 4]
        assert [pub["offset"] for pub in (await read(limit=9, since=since, reverse=True))["publications"]] == [1]
        for foreign in ({"offset": 6, "epoch": epoch}, {"offset": 1, "epoch": "9.z"}):
            assert (await read(limit=1, since=foreign))["code"] == 112
