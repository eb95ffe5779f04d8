"""Expiry: subscriptions by channel tokens, renewed or ended."""

from __future__ import annotations

import time

import orjson
import pytest

from hub import auth
from tests.emulated import stream_client
from tests.eventsource import request, stream
from tests.plane import SECRET, client, plane
from tests.support import async_test
from tests.test_session import Rig
from tests.transports.polls import member, receive

GRACE_S = 5.0


def connected() -> Rig:
    return Rig(subscription_grace_s=GRACE_S).connect("ann")


def token(rig: Rig, ttl_s: float = 60, **claims: object) -> str:
    return auth.make("ann", SECRET, ttl_s, rig.wall(), **{"channel": "tokens:a", **claims})


def subscribe(rig: Rig, **claims: object) -> dict:
    [reply] = rig.say({"id": 2, "subscribe": {"channel": "tokens:a", "token": token(rig, **claims)}})
    return reply["subscribe"]


def refresh(rig: Rig, text: object, channel: str = "tokens:a") -> dict:
    [reply] = rig.say({"id": 3, "sub_refresh": {"channel": channel, "token": text}})
    return reply


def pass_s(rig: Rig, seconds: float) -> list:
    """Let time go by, and the deadline be called; what the session says then but for pings."""
    before = len(rig.transport.said)
    rig.clock.advance(seconds)
    rig.wall.advance(seconds)
    rig.transport.heard_at = rig.clock()
    rig.session.on_deadline(rig.clock())
    return [said for said in rig.transport.said[before:] if said]


ENDED = {"push": {"channel": "tokens:a", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}}


def test_a_subscription_by_token_ends_after_the_grace():
    """Not with the token, as SDKs renew only then; the client, still connected, is told to subscribe anew."""
    rig = connected()
    assert subscribe(rig, ttl_s=10) == {"expires": True, "ttl": 10}
    assert pass_s(rig, 10 + GRACE_S - 0.1) == []
    assert rig.subscriptions.inside == ["tokens:a"]
    assert pass_s(rig, 0.2) == [ENDED]
    assert rig.subscriptions.inside == [] and rig.session.connected and rig.transport.closed is None
    assert rig.session.grants is None
    assert pass_s(rig, 1) == []


def test_the_deadline_comes_when_the_subscription_ends():
    """No ping has to come by chance: the connection is woken, and says when it wants to be called next."""
    rig = connected()
    subscribe(rig, ttl_s=10)
    assert rig.transport.woken == [rig.clock() + 10 + GRACE_S]
    pass_s(rig, 1)
    assert rig.session.on_deadline(rig.clock()) <= rig.clock() + 9 + GRACE_S


def test_a_renewed_subscription_goes_on():
    """sub_refresh, until that token ends too."""
    rig = connected()
    subscribe(rig, ttl_s=10)
    pass_s(rig, 12)
    assert refresh(rig, token(rig, 30)) == {"id": 3, "sub_refresh": {"expires": True, "ttl": 30}}
    assert pass_s(rig, 30 + GRACE_S - 0.1) == []
    assert pass_s(rig, 0.2) == [ENDED]


def test_a_token_may_give_a_subscription_that_stays():
    """`expire_at` 0, at once or as a renewal."""
    rig = connected()
    assert subscribe(rig, ttl_s=10, expire_at=0) == {}
    assert pass_s(rig, 40) == []
    rig = connected()
    subscribe(rig, ttl_s=10)
    assert refresh(rig, token(rig, expire_at=0)) == {"id": 3, "sub_refresh": {}}
    assert pass_s(rig, 40) == []


def test_what_is_no_renewal_is_refused_and_changes_nothing():
    """A token of another channel or user, one that has ended, none at all; a channel that it does not hold."""
    rig = connected()
    subscribe(rig, ttl_s=10)
    bobs = auth.make("bob", SECRET, 60, rig.wall(), channel="tokens:a")
    for text, code in ((token(rig, channel="tokens:b"), 103), (bobs, 103), (token(rig, -1), 109), (None, 103)):
        assert refresh(rig, text)["error"]["code"] == code
    assert refresh(rig, token(rig, channel="tokens:b"), "tokens:b")["error"]["code"] == 103
    assert refresh(rig, token(rig), "nowhere:a")["error"]["code"] == 102
    assert pass_s(rig, 10 + GRACE_S + 0.1) == [ENDED]


def test_what_a_token_gave_ends_with_the_subscription():
    """Who leaves the channel publishes there no more, and no deadline is left of it."""
    rig = connected()
    subscribe(rig, ttl_s=10, allow=["pub"])
    rig.say({"id": 4, "publish": {"channel": "tokens:a", "data": 1}})
    assert len(rig.broker.taken) == 1
    rig.say({"id": 5, "unsubscribe": {"channel": "tokens:a"}})
    assert rig.code({"publish": {"channel": "tokens:a", "data": 1}}) == 103
    assert pass_s(rig, 10 + GRACE_S + 1) == []


def test_a_displaced_subscription_takes_its_grant_along():
    """It is subscribed to anew with a token."""
    rig = connected()
    subscribe(rig, ttl_s=10, allow=["pub"])
    rig.session.on_displaced("tokens:a")
    assert rig.session.grants is None


def test_each_channel_ends_at_its_own_time():
    """The earliest decides about the deadline, whatever comes later."""
    rig = connected()
    for channel, ttl_s in (("tokens:a", 30), ("tokens:b", 10)):
        text = token(rig, ttl_s, channel=channel)
        rig.say({"id": 2, "subscribe": {"channel": channel, "token": text}})
    assert [push["push"]["channel"] for push in pass_s(rig, 10 + GRACE_S + 0.1)] == ["tokens:b"]
    assert [push["push"]["channel"] for push in pass_s(rig, 20)] == ["tokens:a"]


def short(ttl_s: float = 1.0) -> str:
    """A token that ends this very second, so that the grace is all there is."""
    return auth.make("ann", SECRET, 60, time.time(), channel="tokens:a", expire_at=time.time() + ttl_s)


QUICK = {"subscription_grace_s": 0.1}
ANN = auth.make("ann", SECRET, 3600, time.time())


@pytest.mark.parametrize("wire", ["websocket", "lines", "events"])
@async_test
async def test_native_clients_are_told_on_time(valkey_url, prefix, wire):
    """Of a real connection the ping interval is far longer than what is left of the subscription."""
    async with plane(valkey_url, prefix, client=QUICK) as hub:
        made = client(hub.url, ANN) if wire == "websocket" else stream_client(hub.http_url, wire, ANN)
        async with made as one:
            await one.subscribe("tokens:a", token=short(0.2))
            assert await one.push() == ENDED["push"]
            await one.subscribe("tokens:a", token=short(60))


@async_test
async def test_socketio_clients_are_told_and_can_renew(valkey_url, prefix):
    """By the event `unsubscribed`, and with the event `sub_refresh`; the connection stays."""
    async with plane(valkey_url, prefix, client=QUICK) as hub, member(hub, auth={"token": ANN}) as socket:

        async def emit(number: int, name: str, **params: object) -> dict:
            await socket.send(f"42{number}" + orjson.dumps([name, params]).decode())
            return orjson.loads((await receive(socket))[3:])[0]

        assert (await emit(1, "subscribe", channel="tokens:a", token=short()))["expires"]
        assert (await emit(2, "sub_refresh", channel="tokens:a", token=short(0.2)))["expires"]
        message = orjson.loads((await receive(socket))[2:])
        assert message == ["unsubscribed", {"channel": "tokens:a", "code": 2501, "reason": "subscription expired"}]
        assert await emit(3, "publish", channel="open:a", data=1) == {}


@async_test
async def test_an_event_stream_ends_with_its_channel_token(valkey_url, prefix):
    """3006, upon which clients may come back, with another token; a poll waits no longer than that."""
    query = f"channel=tokens:a&token={ANN}&channel_token={short(0.2)}"
    async with plane(valkey_url, prefix) as hub:
        async with stream(hub.port, query) as one:
            closed = (await one.end())[-1]
            assert (closed.type, closed.json["code"], closed.json["reconnect"]) == ("closed", 3006, True)
        query = f"channel=tokens:a&token={ANN}&channel_token={short(0.2)}"
        begin = time.monotonic()
        assert (await request(hub.port, "GET", f"/poll?wait=30&{query}")).status == 204
        assert time.monotonic() - begin < 5
