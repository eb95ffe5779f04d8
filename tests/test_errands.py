"""Errands: two workers that hear the same messages, and clients in one of them."""

from __future__ import annotations

import asyncio

import pytest

from hub import control, errors
from hub.control import Errand
from hub.errands import Errands
from hub.errors import BrokerUnavailable, CommandError
from tests.nodes import until
from tests.support import async_test


class Seat:
    """A client that keeps what is done to it."""

    def __init__(self, answer: object = None) -> None:
        self.accepted = True
        self.done: list[tuple] = []
        self.answer = answer

    def emit(self, name, args, volatile=False) -> None:
        self.done.append((name, *args, volatile))

    async def ask(self, name, args, timeout_s):
        self.done.append((name, *args, timeout_s))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def end(self) -> None:
        self.done.append(("end",))


class Two:
    """Workers `one` and `other`; c1 is in the other one. sent: their messages."""

    def __init__(self, seat: Seat, pending: int = 100) -> None:
        self.seats = {"c1": seat}
        self.sent: list[bytes] = []
        self.down = False
        self.one = Errands(self.send, lambda client: None, pending)
        self.other = Errands(self.send, self.seats.get, pending)

    async def send(self, message: bytes) -> None:
        if self.down:
            raise BrokerUnavailable("away")
        self.sent.append(message)
        name, command = control.parse_control(message)
        assert name == "errand"
        for worker in (self.one, self.other):
            worker.on_errand(control.parse_errand(command))


@async_test
async def test_a_client_is_reached_in_whatever_worker():
    """At once in its own, by one message from another one; bytes arrive as bytes."""
    seat = Seat()
    two = Two(seat)
    for worker in (two.other, two.one):
        await worker.emit("c1", "said", ("hi", b"\x01", {"a": [b"\x02"]}), True)
    assert seat.done == [("said", "hi", b"\x01", {"a": [b"\x02"]}, True)] * 2
    assert len(two.sent) == 1
    await two.one.disconnect("c1")
    await two.other.disconnect("c1")
    assert seat.done[2:] == [("end",), ("end",)]
    assert len(two.sent) == 2


@async_test
async def test_who_is_nowhere_or_not_in_yet_is_sent_nothing():
    """Without an error, wherever the application runs."""
    seat = Seat()
    seat.accepted = False
    two = Two(seat)
    for worker in (two.one, two.other):
        for client in ("c1", "c2"):
            await worker.emit(client, "said", (), False)
    assert seat.done == []


@pytest.mark.parametrize("value", [7, None, [1, 2], b"\x01", {"a": b"\x02"}])
@async_test
async def test_an_ack_comes_back(value):
    """Also one of bytes, or none."""
    two = Two(Seat(value))
    assert await two.one.call("c1", "question", (6,), 5.0) == value
    assert await two.other.call("c1", "question", (6,), 5.0) == value
    assert two.seats["c1"].done == [("question", 6, 5.0)] * 2
    assert two.one._calls == {}


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ConnectionError("gone"), ConnectionError),
        (CommandError(errors.NOT_AVAILABLE, "no acks there"), CommandError),
        (ValueError("too many attachments"), CommandError),
        (TimeoutError(), TimeoutError),
    ],
)
@async_test
async def test_why_there_is_no_ack_comes_back(raised, kind):
    """What the client's own worker would have raised, as near as can be."""
    two = Two(Seat(raised))
    with pytest.raises(kind) as caught:
        await two.one.call("c1", "question", (), 0.05)
    if kind is CommandError:
        assert str(caught.value) == str(raised)
        assert caught.value.reply.code == (108 if isinstance(raised, CommandError) else 107)
    await until(lambda: not two.other._asking)


@async_test
async def test_a_call_of_nobody_ends_in_time():
    """And an answer that comes later, or that nobody asked for, is passed over."""
    two = Two(Seat())
    with pytest.raises(TimeoutError):
        await two.one.call("c2", "question", (), 0.01)
    two.one.on_errand(Errand(control.ANSWER, number="0c", args=[1]))


@async_test
async def test_errands_are_bounded():
    """In bytes, also in the client's own worker; calls in number, on both sides."""
    seat = Seat()
    two = Two(seat, pending=1)
    for worker in (two.one, two.other):
        with pytest.raises(CommandError, match="allowed: 65536"):
            await worker.emit("c1", "said", ("x" * 65_536,), False)
        with pytest.raises(CommandError, match="not JSON"):
            await worker.emit("c1", "said", ({1},), False)
        with pytest.raises(ValueError, match="allowed"):
            await worker.emit("c1", "disconnect", (), False)
    first = asyncio.create_task(two.one.call("c2", "question", (), 5.0))
    await asyncio.sleep(0)
    with pytest.raises(CommandError, match="1 calls"):
        await two.one.call("c2", "question", (), 5.0)
    first.cancel()
    seat.ask = lambda *args: asyncio.Event().wait()
    call = Errand(control.CALL, "c1", "question", [], number="1", timeout_s=5.0)
    two.other.on_errand(call)
    with pytest.raises(ValueError, match="1 calls"):
        two.other.on_errand(call)
    await two.other.close()
    await until(lambda: not two.other._asking)


@async_test
async def test_redis_away_is_told_to_the_application():
    """Of an answer nobody learns: whoever asked has its deadline."""
    two = Two(Seat(1))
    two.down = True
    for doing in (two.one.emit("c1", "x", (), False), two.one.call("c1", "x", (), 5.0), two.one.disconnect("c1")):
        with pytest.raises(BrokerUnavailable):
            await doing
    two.other.on_errand(Errand(control.CALL, "c1", "question", [], number="1", timeout_s=5.0))
    await until(lambda: not two.other._asking)
