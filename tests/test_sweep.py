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
    sealed = False

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


def group_of(*audiences: Audience) -> Group:
    group = Group(frozenset(audiences))
    for audience in audiences:
        audience.groups.add(group)
    return group


class Rig:
    """A sweep over one group of one audience."""

    def __init__(self, count: int) -> None:
        self.clock = FakeClock()
        self.ones = [One() for _ in range(count)]
        self.ready = [b""]
        self.sweep = Sweep({one.fd: one for one in self.ones}, self.clock, self.ready)
        self.audience = Audience("a", None, "none", 0)
        self.group = group_of(self.audience)
        for one in self.ones:
            self.group.add(one)

    def begin(self, *frames: bytes) -> None:
        self.audience.frames, self.ready[0] = list(frames), b"".join(frames)
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


def test_a_group_that_the_batch_has_nothing_for_is_told_nothing_and_not_stamped():
    """Groups of a pace come all, whatever there is for each."""
    rig = Rig(2)
    stranger = group_of(Audience("b", None, "none", 1))
    stranger.stamp = lambda group: b"stamp"
    rig.ready.append(b"")
    direct, other = One(), One()
    other.direct = False
    stranger.add(direct)
    stranger.add(other)
    rig.audience.frames, rig.ready[0] = [b"x"], b"x"
    for served in (False, True):
        rig.sweep.begin([rig.audience], [stranger, rig.group])
        if served:
            rig.sweep.serve_now(direct)
            rig.sweep.serve_now(other)
        while not rig.sweep.run(1.0):
            pass
        assert direct.events == other.events == [] and direct.read() == b""
        assert [one.read() for one in rig.ones] == [b"x"] * 2
    for one in (direct, other):
        one.close()
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
    """Who is not direct is offered its part of the batch frame by frame, so that it can be conflated."""
    rig = Rig(2)
    slow, fast = rig.ones
    slow.direct = False
    rig.group.replace(slow)
    elsewhere = Audience("b", None, "none", 1)
    elsewhere.frames, rig.audience.frames, rig.ready[0] = [b"not its own"], [b"one", b"two"], b"onetwo"
    rig.sweep.begin([elsewhere, rig.audience], [rig.group])
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


class Groups:
    """A sweep over groups of one; the first one's audience is silent."""

    def __init__(self, count: int) -> None:
        self.ones = [One() for _ in range(count)]
        self.sweep = Sweep({one.fd: one for one in self.ones}, FakeClock(), [b"x", b""])
        self.audience, quiet = Audience("a", None, "none", 0), Audience("b", None, "none", 1)
        self.audience.frames = [b"x"]
        self.groups = [group_of(self.audience if i else quiet) for i in range(count)]
        for group, one in zip(self.groups, self.ones, strict=True):
            group.add(one)

    def close(self) -> None:
        for one in self.ones:
            one.close()


def test_groups_of_one_are_written_to_and_the_order_of_groups_rotates(monkeypatch):
    """Everybody with a list of their own: each gets its bytes once, and not always the same are the last."""
    monkeypatch.setattr("hub.sweep.CHUNK", 10)
    rig, firsts = Groups(50), set()
    for _ in range(3):
        rig.sweep.begin([rig.audience], rig.groups)
        assert not rig.sweep.run(0)
        early = [one.read() for one in rig.ones]
        firsts.add(tuple(early))
        assert early.count(b"x") in (9, 10)
        while not rig.sweep.run(0):
            pass
        late = [one.read() for one in rig.ones]
        assert [a + b for a, b in zip(early, late, strict=True)] == [b"", *[b"x"] * 49]
    assert len(firsts) == 3 and rig.sweep.writes == 3 * 49, "nothing is written to who has nothing in the batch"
    rig.close()


def test_groups_of_one_that_fail_or_take_their_part_or_change_cost_the_others_nothing():
    """A full pipe, a dead reader, one that writes for itself, one that is not direct any more, one that has gone."""
    rig = Groups(9)
    _, full, dead, taker, waiter, slow, gone, *fine = rig.ones
    while True:
        try:
            os.write(full.fd, b"-" * 4096)
        except BlockingIOError:
            break
    os.close(dead.reader)
    dead.reader = -1
    rig.sweep.begin([rig.audience], rig.groups)
    assert rig.sweep.take_for(taker) == b"x"
    rig.sweep.serve_now(waiter)
    slow.direct = False
    slow.group.replace(slow)
    gone.group.remove(gone)
    assert rig.sweep.run(1.0)
    assert (full.events, dead.events) == ([("torn", b"x")], ["broken"])
    assert (taker.events, waiter.events, slow.events, gone.events) == ([], [("put", b"x")], [b"x"], [])
    assert [one.read() for one in (taker, waiter, slow, gone, *fine)] == [b"", b"", b"", b"", b"x", b"x"]
    assert rig.sweep.writes == 4
    rig.close()


def test_groups_of_one_and_of_several_follow_each_other():
    """In whatever order they come, everybody is written to once."""
    rig = Groups(9)
    for one in rig.ones[2::3]:
        one.group.remove(one)
        rig.groups[1].add(one)
    extra = [One() for _ in range(2)]
    for one in extra:
        rig.groups[4].add(one)
    for _ in range(5):
        rig.sweep.begin([rig.audience], rig.groups)
        while not rig.sweep.run(0):
            pass
        assert [one.read() for one in rig.ones + extra] == [b"", *[b"x"] * 10]
    for one in extra:
        one.close()
    rig.close()


def test_a_batch_that_is_small_beside_a_long_list_is_written_as_any_other():
    """One channel of a hundred: its piece is written, and the slots of the others are not even read."""
    one, ready = One(), [b"x", *[b"?"] * 99]
    audiences = [Audience(str(i), None, "none", i) for i in range(100)]
    sweep = Sweep({one.fd: one}, FakeClock(), ready)
    group = group_of(*audiences)
    group.add(one)
    audiences[0].frames = [b"x"]
    sweep.begin([audiences[0]], [group])
    assert sweep.run(1.0) and one.read() == b"x"
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
        groups = [group_of(rig.audience) for number in range(len(rig.ones))]
        for one, group in zip(rig.ones, groups, strict=True):
            rig.group.remove(one)
            group.add(one)
    rig.audience.frames, rig.ready[0] = [frame], frame
    rig.sweep.begin([rig.audience], groups)
    slices = 1
    while not rig.sweep.run(0):
        assert sum(bool(one.events) for one in rig.ones) == 4 * slices
        slices += 1
    assert slices == 3 and all(one.events[0][0] == "torn" for one in rig.ones)
    rig.close()
