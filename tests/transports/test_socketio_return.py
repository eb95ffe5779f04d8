"""Socket.IO clients that were away: back with all that they missed, or anew where anything may be lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hub.errors import NOT_AVAILABLE, BrokerUnavailable, CommandError
from hub.history import Page
from hub.resume import Record, Returning
from hub.transports.socketio_return import Return
from tests.nodes import until
from tests.plane import client, plane
from tests.support import async_test
from tests.transports.polls import joined, websocket
from tests.transports.test_socketio import RECOVERY, emit, event, token, welcome


@async_test
async def test_a_lost_client_comes_back_to_all_its_channels(valkey_url, prefix):
    """With what it missed, in order, each with its mark; under the name that it had. A second time too."""
    async with plane(valkey_url, prefix, socketio=RECOVERY) as hub, client(hub.url) as native:
        async with websocket(hub) as socket:
            pid = (await welcome(socket, {}))["pid"]
            for number, channel in enumerate(("chat:a", "chat:b", "ticker:X")):
                await emit(socket, number, "subscribe", channel=channel)
            await native.command(publish={"channel": "chat:a", "data": 1})
            _, publication, mark = await event(socket)
            assert (publication["data"], publication["offset"]) == (1, 1)
        for round_number in (1, 2):
            await until(lambda: not hub.engine.sessions)
            for channel in ("chat:a", "chat:b", "chat:a"):
                await native.command(publish={"channel": channel, "data": round_number})
            await native.command(publish={"channel": "ticker:X", "data": round_number})
            async with websocket(hub) as socket:
                answer = await welcome(socket, {"pid": pid, "offset": mark})
                assert answer["pid"] == pid
                missed = [await event(socket) for _ in range(4)]
                of_channel = {"chat:a": [], "chat:b": [], "ticker:X": []}
                for _, publication, *_ in missed:
                    of_channel[publication["channel"]].append(publication["data"])
                assert of_channel == {
                    "chat:a": [round_number] * 2,
                    "chat:b": [round_number],
                    "ticker:X": [round_number],
                }
                await native.command(publish={"channel": "chat:b", "data": "live"})
                _, publication, mark = await event(socket)
                assert publication["data"] == "live"


@async_test
async def test_a_polling_client_gets_what_waited_for_its_poll(valkey_url, prefix):
    """What was taken up for a client and never fetched counts as missed."""
    async with plane(valkey_url, prefix, socketio=RECOVERY) as hub, client(hub.url) as native:
        session = await joined(hub)
        await session.post(b'420["subscribe",{"channel":"chat:a"}]')
        await until(lambda: hub.fanout.subscriptions == 1)
        pid = next(iter(next(iter(hub.engine.sessions.values()))._sessions.values())).pid
        for i in range(3):
            await native.command(publish={"channel": "chat:a", "data": i})
        await session.post(b"abc")
        await until(lambda: not hub.engine.sessions)
        async with websocket(hub) as socket:
            assert (await welcome(socket, {"pid": pid}))["pid"] == pid
            assert [(await event(socket))[1]["data"] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "why",
    ["unknown", "user", "mark", "twice", "none", "paced", "watch", "trimmed", "too many", "left", "off", "nonsense"],
)
@async_test
async def test_who_may_have_lost_something_starts_anew(valkey_url, prefix, why):
    """Under a new name, and in no channel: the client's `recovered` is false."""
    settings = {} if why == "off" else RECOVERY
    limits = {"recovery_publications": 2} if why == "too many" else {}
    async with (
        plane(valkey_url, prefix, socketio=settings, client=limits) as hub,
        client(hub.url, token("bob")) as native,
    ):
        async with websocket(hub) as socket:
            answer = await welcome(socket, {"token": token("ann")})
            assert ("pid" in answer) == (why != "off")
            await emit(socket, 0, "subscribe", channel="chat:a")
            if why == "none":
                await emit(socket, 1, "subscribe", channel="open:a")
            if why == "paced":
                await emit(socket, 1, "subscribe", channel="paced:a")
            if why == "watch":
                await emit(socket, 1, "subscribe", channel="room:a", join_leave=True)
                await event(socket)
                await emit(socket, 2, "unsubscribe", channel="room:a")
            if why == "left":
                await socket.send("41")
        await until(lambda: not hub.engine.sessions)
        for i in range({"trimmed": 120, "too many": 3}.get(why, 1)):
            await native.command(publish={"channel": "chat:a", "data": i})
        claims = {"token": token("ann"), "pid": answer.get("pid", "x" * 22)}
        if why == "unknown":
            claims["pid"] = "x" * 22
        elif why == "user":
            claims["token"] = token("bob")
        elif why == "mark":
            claims["offset"] = "f.1.1.chat:a"
        elif why == "nonsense":
            claims["pid"] = {"a": 1}
        elif why == "twice":
            async with websocket(hub) as socket:
                assert (await welcome(socket, claims))["pid"] == claims["pid"]
                async with websocket(hub) as second:
                    assert (await welcome(second, claims))["pid"] != claims["pid"]
            return
        async with websocket(hub) as socket:
            again = await welcome(socket, claims)
            assert again.get("pid", "none") != claims["pid"]
            assert not hub.fanout.subscriptions


@async_test
async def test_who_may_not_know_that_it_is_out_of_a_channel_starts_anew(valkey_url, prefix):
    """It was told to subscribe anew, and its connection was lost: it would wait for ever. Not if it did so."""
    async with plane(valkey_url, prefix, socketio=RECOVERY) as hub, client(hub.url) as native:
        for knows in (False, True):
            async with websocket(hub) as socket:
                pid = (await welcome(socket, {}))["pid"]
                await emit(socket, 1, "subscribe", channel="chat:a")
                await native.command(publish={"channel": "chat:a", "data": 1})
                mark = (await event(socket))[-1]
                hub.streams.overloaded("chat:a")
                assert (await event(socket))[0] == "unsubscribed"
                if knows:
                    await emit(socket, 2, "subscribe", channel="chat:a")
            await until(lambda: not hub.engine.sessions)
            async with websocket(hub) as socket:
                answer = await welcome(socket, {"pid": pid, "offset": mark})
                assert (answer["pid"] == pid) is knows


class Rig:
    """One that was away from `a` and `b`, at 5 of epoch e in both, and what its return comes to. asked: open looks."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.answers: list[Returning | None] = []
        services = SimpleNamespace(
            histories=SimpleNamespace(read=lambda asked, done: self.asked.update({asked.channel: done})),
            client=SimpleNamespace(recovery_publications=10),
        )
        session: Any = SimpleNamespace(named="ann", rules=self.rules)
        door: Any = SimpleNamespace(services=services)
        self.returning = Return(door, session, "p" * 22, "m", self.answers.append)
        self.record = Record("ann", "f", "m", -1, {"a": ("e", 5, 5, []), "b": ("e", 5, 5, [])}, [], named="ann")

    def rules(self, channel: str) -> object:
        return None

    def recalled(self, record: Record | None) -> None:
        self.returning.recalled(None if record is None else record.pack())


def page(top: int, *kept: int, epoch: str = "e") -> Page:
    return Page(epoch, top, [(offset, b"x") for offset in kept])


def test_the_last_look_decides() -> None:
    """Nothing is said before all channels have been looked at; then once, and with where it was in each."""
    rig = Rig()
    rig.recalled(rig.record)
    rig.asked["b"](page(7, 6))
    assert not rig.answers
    rig.asked["a"](page(5))
    [answer] = rig.answers
    assert answer is not None and (answer.pid, answer.came) == ("p" * 22, "m")
    assert answer.positions == {"a": 5, "b": 5}


@pytest.mark.parametrize(
    "found",
    [
        page(8, 7),  # 6 is gone
        page(5, epoch="other"),
        page(16, 6),  # too much
        page(4),  # it has more than there is
        BrokerUnavailable("away"),
        CommandError(NOT_AVAILABLE),
    ],
)
def test_a_gap_in_one_channel_is_one_in_all(found: Any) -> None:
    """Whichever channel is looked at last; what is not known counts as lost."""
    for first, last in (("a", "b"), ("b", "a")):
        rig = Rig()
        rig.recalled(rig.record)
        rig.asked[first](found)
        rig.asked[last](page(5))
        assert rig.answers == [None]


def test_without_a_record_of_its_own_it_starts_anew() -> None:
    """None is kept, another user's token brought it, or the mark is none of this record's; nothing is looked at."""
    for change in ({"named": "bob"}, {"came": "1"}):
        rig = Rig()
        rig.recalled(rig.record._replace(**change))
        assert rig.answers == [None] and not rig.asked
    rig = Rig()
    rig.recalled(None)
    assert rig.answers == [None]


def test_a_namespace_that_is_no_more_is_a_gap() -> None:
    """The settings have changed meanwhile: the answer comes all the same."""
    rig = Rig()

    def rules(channel: str) -> object:
        if channel == "b":
            raise CommandError(NOT_AVAILABLE)
        return None

    rig.returning._session.rules = rules  # type: ignore[method-assign,assignment]
    rig.recalled(rig.record)
    rig.asked["a"](page(5))
    assert rig.answers == [None]


def test_one_that_was_in_no_stream_has_lost_nothing() -> None:
    """At once, without a look."""
    rig = Rig()
    rig.recalled(rig.record._replace(streams={}))
    assert not rig.asked and [answer and answer.positions for answer in rig.answers] == [{}]
