"""Notices on their way to a worker's connections: to whom, in which slices, encoded how often."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from hub.control import Notice
from hub.notice import AT_ONCE, MAX_WAITING, Notices
from tests.support import async_test


class Form:
    def __init__(self) -> None:
        self.encoded = 0

    def encode_message(self, message: bytes) -> bytes:
        self.encoded += 1
        return b"<%s>" % message


class Listener:
    def __init__(self, wire: Form) -> None:
        self.wire = wire
        self.connected = True
        self.got: list[bytes] = []

    def put(self, frame: bytes) -> None:
        self.got.append(frame)


async def until_told(*listeners: Listener) -> None:
    while not all(one.got for one in listeners):
        await asyncio.sleep(0)


PUSH = b'<{"push":{"message":{"data":1}}}>'


@async_test
async def test_everybody_gets_a_notice_that_names_nobody():
    """Encoded once for each wire form, however many have it."""
    forms = [Form(), Form()]
    listeners = [Listener(forms[n % 2]) for n in range(10)]
    notices = Notices(lambda: listeners, lambda user, channel: pytest.fail("not asked for"))
    notices.tell(Notice("", "", 1))
    await until_told(*listeners)
    assert all(one.got == [PUSH] for one in listeners)
    assert [form.encoded for form in forms] == [1, 1]


@async_test
async def test_a_user_is_asked_for_with_the_channel_that_is_left_out():
    """Who that is, the room of users knows."""
    listener = Listener(Form())
    asked: list = []

    def devices(user: str, channel: str) -> list[Listener]:
        asked.append((user, channel))
        return [listener]

    notices = Notices(lambda: pytest.fail("not asked for"), devices)
    notices.tell(Notice("42", "inbox:#42", 1))
    await until_told(listener)
    assert asked == [("42", "inbox:#42")]


@async_test
async def test_a_turn_of_the_loop_tells_a_bounded_number():
    """So that others are served between the slices; in the order of the calls, none is left out."""
    form = Form()
    listeners = [Listener(form) for _ in range(2 * AT_ONCE + 1)]
    notices = Notices(lambda: listeners, lambda user, channel: [])
    notices.tell(Notice("", "", 1))
    notices.tell(Notice("", "", 2))
    counts, told = [0], 0
    while told < 2 * len(listeners):
        await asyncio.sleep(0)
        told = sum(len(one.got) for one in listeners)
        counts.append(told)
    steps = [after - before for before, after in pairwise(counts)]
    assert max(steps) <= AT_ONCE
    assert all(one.got == [PUSH, PUSH.replace(b"1", b"2")] for one in listeners)


@async_test
async def test_who_has_left_between_the_slices_is_told_nothing():
    """A connection that has ended takes nothing any more."""
    form = Form()
    listeners = [Listener(form) for _ in range(AT_ONCE + 2)]
    Notices(lambda: listeners, lambda user, channel: []).tell(Notice("", "", 1))
    listeners[-2].connected = False
    await until_told(listeners[-1])
    assert listeners[-2].got == []


@pytest.mark.expects_log
@async_test
async def test_notices_that_wait_are_bounded(caplog):
    """The next one is dropped, with a line in the log; those before it arrive."""
    listener = Listener(Form())
    notices = Notices(lambda: [listener], lambda user, channel: [])
    for n in range(MAX_WAITING + 1):
        notices.tell(Notice("", "", n))
    while len(listener.got) < MAX_WAITING:
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(listener.got) == MAX_WAITING
    assert "dropped a notice" in caplog.text


@async_test
async def test_a_notice_for_nobody_costs_nothing():
    """No connection of the user here, so nothing is encoded and no turn is asked for."""
    notices = Notices(list, lambda user, channel: [])
    notices.tell(Notice("42", "", 1))
    assert not notices._waiting
