"""The sweep by itself, on pipes: slices, who is passed over, and writes that go wrong. With sockets: test_fanout."""

from __future__ import annotations

import fcntl
import os

import pytest

from hub.audience import ELSEWHERE, Audience, Group
from hub.sweep import CHUNK, CHUNK_BYTES, Sweep
from tests.support import FakeClock


class One:
    """A subscriber on a pipe."""

    wire = None

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe2(os.O_NONBLOCK)
        self.group, self.place = None, ELSEWHERE
        self.open = self.direct = True
        self.events: list = []

    def put(self, frame: bytes) -> None:
        self.events.append(("put", frame))

    def offer(self, audience: Audience, frame: bytes) -> None:
        self.events.append(frame)

    def torn(self, rest: bytes) -> None:
        self.events.append(("torn", rest))

    def broken(self) -> None:
        self.events.append("broken")

    def read(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self.fd)
        if self.reader >= 0:
            os.close(self.reader)


class Rig:
    """A sweep over one group of one audience."""

    def __init__(self, count: int) -> None:
        self.clock = FakeClock()
        self.ones = [One() for _ in range(count)]
        self.sweep = Sweep({one.fd: one for one in self.ones}, self.clock)
        self.audience = Audience("a", None, "none", 1)
        self.group = Group(1, frozenset([self.audience]))
        for one in self.ones:
            self.group.add(one)

    def begin(self, *frames: bytes) -> None:
        self.audience.frames, self.audience.ready = list(frames), b"".join(frames)
        self.sweep.begin([self.audience], [self.group])

    def close(self) -> None:
        for one in self.ones:
            one.close()


def test_a_batch_is_written_once_to_each_and_then_done():
    """run() says when; the writes are counted."""
    rig = Rig(5)
    rig.begin(b"one", b"two")
    assert rig.sweep.running and rig.sweep.run(1.0) and not rig.sweep.running
    assert [one.read() for one in rig.ones] == [b"onetwo"] * 5 and rig.sweep.writes == 5
    rig.close()


def test_a_slice_ends_at_its_time_and_the_next_goes_on_and_the_start_rotates():
    """With no time at all a slice is one chunk; nobody is written to twice or left out."""
    rig = Rig(CHUNK * 2 + 10)
    firsts = []
    for _ in range(3):
        rig.begin(b"x")
        slices = 1
        assert not rig.sweep.run(0)
        served = [one.read() == b"x" for one in rig.ones]
        firsts.append(served.index(True))
        assert sum(served) == CHUNK
        while not rig.sweep.run(0):
            slices += 1
        assert slices == 2 and sum(one.read() == b"x" for one in rig.ones) == CHUNK + 10
    assert len(set(firsts)) > 1
    rig.close()


def test_who_takes_its_part_itself_or_departs_is_passed_over():
    """take_for gives the bytes once; one who is not open any more gets nothing; the others everything."""
    rig = Rig(4)
    taker, leaver, waiter, _ = rig.ones
    rig.begin(b"x")
    assert rig.sweep.take_for(taker) == b"x" and rig.sweep.take_for(taker) == b""
    leaver.open = leaver.direct = False
    rig.sweep.departs(leaver)
    rig.group.remove(leaver)
    rig.sweep.serve_now(waiter)
    rig.sweep.serve_now(waiter)
    assert rig.sweep.run(1.0)
    assert [one.read() for one in rig.ones] == [b"", b"", b"", b"x"] and waiter.events == [("put", b"x")]
    rig.close()


def test_a_full_pipe_a_short_write_and_a_dead_reader_are_told_apart():
    """Nothing taken, a part taken, and failed: each subscriber hears its own, the others are written to."""
    rig = Rig(4)
    full, short, dead, fine = rig.ones
    for one, room in ((full, 0), (short, 4096)):
        while True:
            try:
                os.write(one.fd, b"-" * 4096)
            except BlockingIOError:
                break
        os.read(one.reader, room) if room else None
    os.close(dead.reader)
    dead.reader = -1
    frame = b"y" * 10_000
    rig.begin(frame)
    assert rig.sweep.run(1.0)
    assert full.events == [("torn", frame)]
    assert short.events == [("torn", frame[4096:])]
    assert dead.events == ["broken"]
    assert fine.read() == frame and fine.events == []
    rig.close()


def test_others_of_a_group_get_every_frame_by_itself():
    """Who is not direct is offered the batch frame by frame, so that it can be conflated."""
    rig = Rig(2)
    slow, fast = rig.ones
    slow.direct = False
    rig.group.replace(slow)
    rig.begin(b"one", b"two")
    assert rig.sweep.run(1.0)
    assert slow.events == [b"one", b"two"] and slow.read() == b"" and fast.read() == b"onetwo"
    rig.close()


def test_a_large_batch_that_is_taken_in_part_is_torn_at_a_frame():
    """The frame at hand is finished; those behind it are offered one by one, by the rules for slow readers."""
    rig = Rig(1)
    [one] = rig.ones
    frames = [bytes([65 + i]) * 10_000 for i in range(20)]
    rig.begin(*frames)
    assert rig.sweep.run(1.0)
    taken = one.read()
    (torn, rest), *offered = one.events
    assert torn == "torn" and taken + rest + b"".join(offered) == b"".join(frames)
    assert 0 < len(rest) <= 10_000 and all(len(frame) == 10_000 for frame in offered)
    rig.close()


def test_groups_of_one_are_written_to_and_the_order_of_groups_rotates():
    """Everybody with a list of their own: each gets its bytes once, and not always the same is the last."""
    clock, ones = FakeClock(), [One() for _ in range(50)]
    sweep = Sweep({one.fd: one for one in ones}, clock)
    audience, quiet = Audience("a", None, "none", 1), Audience("b", None, "none", 2)
    groups = [Group(i, frozenset([audience if i else quiet])) for i in range(50)]
    for group, one in zip(groups, ones, strict=True):
        group.add(one)
    audience.frames, audience.ready = [b"x"], b"x"
    firsts = set()
    for _ in range(3):
        sweep.begin([audience], groups)
        order = list(sweep._left)
        firsts.add(order[-1].key)
        while not sweep.run(0):
            pass
        assert [one.read() for one in ones] == [b"", *[b"x"] * 49]
    assert len(firsts) == 3 and sweep.writes == 3 * 49, "nothing is written to who has nothing in the batch"
    for one in ones:
        one.close()


def test_thousands_who_leave_in_the_middle_of_their_sweep_cost_one_look_through_the_group():
    """A mass close: whether the turn of each is to come is not searched for again and again."""

    class Number(int):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Number.compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    rig = Rig(CHUNK * 3)
    rig.group.fds[:] = [Number(fd) for fd in rig.group.fds]
    rig.begin(b"x")
    assert not rig.sweep.run(0)
    for one in rig.ones:
        rig.sweep.serve_now(one)
        one.open = one.direct = False
        rig.sweep.departs(one)
        rig.group.remove(one)
    while not rig.sweep.run(0):
        pass
    assert all((one.read() == b"x") != (one.events == [("put", b"x")]) for one in rig.ones)
    assert Number.compared < 10 * len(rig.ones)
    rig.close()


def test_thousands_who_are_slow_are_offered_the_batch_in_slices_behind_the_others():
    """Counted in frames; one who catches up meanwhile, and one who goes, is served by the same rule, once."""
    rig = Rig(CHUNK + 2)
    slow, fast = rig.ones[:-2], rig.ones[-2:]
    for one in slow:
        one.direct = False
        rig.group.replace(one)
    rig.begin(b"one", b"two")
    assert not rig.sweep.run(0)
    assert [one.read() for one in fast] == [b"onetwo"] * 2 and not any(one.events for one in slow)
    offered = 0
    while not rig.sweep.run(0):
        before, offered = offered, sum(len(one.events) for one in slow)
        assert 0 < offered - before <= CHUNK
        for one in [one for one in slow if not one.events][:3]:
            one.direct = True
            rig.group.replace(one)
        for one in [one for one in slow if not one.events][-3:]:
            rig.sweep.serve_now(one)
            offered += len(one.events)
    assert all(one.events in ([b"one", b"two"], [("put", b"onetwo")]) for one in slow)
    assert not any(one.read() for one in rig.ones)
    rig.close()


@pytest.mark.parametrize("alone", [True, False])
def test_a_large_batch_is_paced_by_its_bytes(alone):
    """In one group, or each in a group of its own: a slice without time writes about CHUNK_BYTES, however few it is."""
    frame = b"z" * (CHUNK_BYTES // 4)
    rig = Rig(12)
    for one in rig.ones:
        fcntl.fcntl(one.fd, fcntl.F_SETPIPE_SZ, 1 << 16)
    groups = [rig.group]
    if alone:
        groups = [Group(number, frozenset([rig.audience])) for number in range(len(rig.ones))]
        for one, group in zip(rig.ones, groups, strict=True):
            rig.group.remove(one)
            group.add(one)
    rig.audience.frames, rig.audience.ready = [frame], frame
    rig.sweep.begin([rig.audience], groups)
    slices = 1
    while not rig.sweep.run(0):
        assert sum(bool(one.events) for one in rig.ones) == 4 * slices
        slices += 1
    assert slices == 3 and all(one.events[0][0] == "torn" for one in rig.ones)
    rig.close()
