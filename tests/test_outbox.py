"""The outbox: order, bounds, what a slow reader keeps, and what was taken half."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.outbox import Limits, Outbox, Verdict

WIDE = Limits(10**6, 10**6, 10**6, 10**6)


def outbox_of(conflate: int = 10**6, drop: int = 10**6, most: int = 10**6, frames: int = 10**6) -> Outbox:
    return Outbox(Limits(conflate, drop, most, frames))


def test_frames_leave_in_the_order_they_were_put():
    """take() joins everything that waits, and then nothing does."""
    outbox = outbox_of()
    assert outbox.put(b"one") is Verdict.QUEUED
    outbox.put(b"two")
    assert outbox.size == 6
    assert outbox.take(100) == b"onetwo"
    assert outbox.size == 0 and outbox.take(100) == b""


def test_take_leaves_what_is_beyond_its_bound_for_the_next():
    """Whole frames only, one at least."""
    outbox = outbox_of()
    for frame in (b"aaaa", b"bb", b"cc", b"dddddddd"):
        outbox.put(frame)
    assert outbox.take(5) == b"aaaabb"
    assert outbox.take(1) == b"cc"
    assert outbox.size == 8 and outbox.take(1) == b"dddddddd"


@pytest.mark.parametrize("limits", [{"most": 5}, {"frames": 1}])
def test_more_than_its_bytes_or_frames_is_refused_and_changes_nothing(limits):
    """The frame that would pass the bound is not queued; those before it are."""
    outbox = outbox_of(**limits)
    assert outbox.put(b"ab") is Verdict.QUEUED
    assert outbox.put(b"cdef") is Verdict.SLOW
    assert outbox.take(100) == b"ab"


def test_frames_that_have_been_taken_no_longer_count():
    """The bound on frames is on what waits."""
    outbox = outbox_of(frames=2)
    outbox.put(b"a")
    outbox.put(b"b")
    assert outbox.take(1) == b"a"
    assert outbox.put(b"c") is Verdict.QUEUED
    assert outbox.put(b"d") is Verdict.SLOW


def test_one_large_frame_fits_an_empty_outbox():
    """A message beyond the bound says nothing about how fast its reader is; what is behind it has its own."""
    outbox = outbox_of(most=5)
    assert outbox.put(b"longer than five") is Verdict.QUEUED
    assert outbox.put(b"12345") is Verdict.QUEUED
    assert outbox.put(b"6") is Verdict.SLOW


def test_the_rest_of_a_torn_write_comes_before_everything_else():
    """put_back keeps the bytes in front: of frames that were put later, and of frames that take() left."""
    for most in (1, 100):
        outbox = outbox_of()
        outbox.put(b"first")
        outbox.put(b"|second")
        data = outbox.take(most)
        outbox.put_back(data[2:])
        outbox.put(b"|third")
        assert outbox.take(100) == b"rst|second|third"


def test_last_words_pass_the_bounds():
    """A close frame fits behind a full outbox; an empty one leaves no trace."""
    outbox = outbox_of(most=3, frames=1)
    outbox.put(b"abc")
    outbox.put_last(b"bye")
    outbox.put_last(b"")
    assert outbox.take(100) == b"abcbye"


def test_below_the_mark_every_value_of_a_latest_channel_is_kept():
    """A short backlog costs nobody a tick."""
    outbox = outbox_of(conflate=100)
    for i in range(5):
        assert outbox.offer(b"%d" % i, "latest", "A") is Verdict.QUEUED
    assert outbox.take(100) == b"01234"


def test_above_the_mark_only_the_newest_value_of_each_channel_is_kept_in_its_place():
    """What waited is conflated when the mark is passed, what comes later at once; other frames keep their order."""
    outbox = outbox_of(conflate=8)
    for frame, channel in ((b"A1", "A"), (b"B1", "B"), (b"A2", "A")):
        outbox.offer(frame, "latest", channel)
    outbox.put(b"reply")
    assert outbox.offer(b"B2", "latest", "B") is Verdict.CONFLATED
    assert outbox.offer(b"C1", "latest", "C") is Verdict.QUEUED
    assert outbox.offer(b"A3", "latest", "A") is Verdict.CONFLATED
    assert outbox.size == len(b"B2A3replyC1")
    assert outbox.take(100) == b"B2A3replyC1"


def test_messages_of_none_channels_are_dropped_above_their_mark_and_stream_is_not():
    """At most once may be dropped; what must not be lost ends in SLOW."""
    outbox = outbox_of(drop=4, most=12)
    assert outbox.offer(b"aaaa", "none", "A") is Verdict.QUEUED
    assert outbox.offer(b"bbbb", "none", "A") is Verdict.DROPPED
    assert outbox.put(b"cccccc") is Verdict.QUEUED
    assert outbox.put(b"dddddd") is Verdict.SLOW
    assert outbox.take(100) == b"aaaacccccc"


def test_a_value_that_is_half_on_the_wire_is_not_replaced():
    """The rest of a torn frame stays as it is; the newer value follows it."""
    for most in (1, 100):
        outbox = outbox_of(conflate=0)
        outbox.offer(b"A-old", "latest", "A")
        outbox.offer(b"B", "latest", "B")
        data = outbox.take(most)
        outbox.put_back(data[2:])
        assert outbox.offer(b"A-new", "latest", "A") is Verdict.QUEUED
        assert outbox.take(100) == b"oldBA-new" or outbox.size == 0


def test_a_cleared_outbox_is_empty():
    """clear() forgets what waits, and the conflation."""
    outbox = outbox_of(conflate=0)
    outbox.offer(b"A1", "latest", "A")
    outbox.clear()
    assert (outbox.size, outbox.take(100)) == (0, b"")
    outbox.offer(b"A2", "latest", "A")
    assert outbox.take(100) == b"A2"


def test_what_a_socket_leaves_of_the_front_is_still_conflated():
    """It takes one frame and a half of five: the begun one is finished, the others give way to newer values."""
    outbox = outbox_of(conflate=0)
    for channel in "ABCDE":
        outbox.offer(f"{channel}1".encode(), "latest", channel)
    assert outbox.front(100) == b"A1B1C1D1E1"
    outbox.written(3)
    verdicts = [outbox.offer(f"{channel}2".encode(), "latest", channel) for channel in "ABCDE"]
    assert verdicts == [Verdict.QUEUED] * 2 + [Verdict.CONFLATED] * 3
    assert outbox.size == 11 and outbox.front(3) == b"1C2" and outbox.front(100) == b"1C2D2E2A2B2"
    outbox.written(11)
    assert (outbox.size, outbox.front(100)) == (0, b"")


def test_a_front_that_is_written_bit_by_bit_is_a_large_frame_still():
    """What comes behind it has the bound for itself, also when its last bytes are being written."""
    outbox = Outbox(Limits(50, 80, 100, 1000))
    outbox.put(b"x" * 500)
    for _ in range(4):
        outbox.front(64)
        outbox.written(100)
    assert [outbox.put(b"y" * 20) for _ in range(6)] == [Verdict.QUEUED] * 5 + [Verdict.SLOW]
    outbox.written(99)
    assert outbox.put(b"y" * 20) is Verdict.SLOW
    outbox.written(1)
    assert outbox.put(b"y") is Verdict.SLOW
    outbox.written(20)
    assert outbox.put(b"y" * 20) is Verdict.QUEUED


@pytest.mark.parametrize("how", ["take", "front"])
@pytest.mark.parametrize("mode", ["put", "latest"])
def test_what_has_been_sent_is_let_go_though_something_always_waits(mode, how):
    """A reader that is always a little behind: the lists stay as long as what waits, not as what was ever sent."""
    outbox = outbox_of(conflate=0)
    for i in range(20_000):
        if mode == "put":
            outbox.put(b"x" * 100)
        else:
            outbox.offer(b"x" * 100, "latest", i % 50)
        if i > 20 and how == "front":
            outbox.front(100)
            outbox.written(50 if i % 3 == 0 else min(100, outbox.size))
        elif i > 20:
            data = outbox.take(100)
            if i % 3 == 0:
                outbox.put_back(data[50:])
    waiting = len(outbox._frames) - outbox._first
    assert len(outbox._frames) <= 2 * waiting + 2
    assert len(outbox._keys or ()) <= 2 * waiting + 2 and len(outbox._newest or ()) <= 2 * waiting + 2


def test_a_growing_value_does_not_pass_the_bound_by_conflation():
    """A newer value that is too large for the outbox makes its reader too slow, as any other frame would."""
    outbox = outbox_of(conflate=0, most=100)
    outbox.offer(b"a", "latest", "A")
    outbox.offer(b"b", "latest", "B")
    assert outbox.offer(b"x" * 200, "latest", "A") is Verdict.SLOW
    assert outbox.take(1000) == b"ab"


actions = st.one_of(
    st.tuples(st.just("latest"), st.sampled_from("ABC"), st.integers(1, 9)),
    st.tuples(st.just("put"), st.just("-"), st.integers(1, 9)),
    st.tuples(st.sampled_from(("write", "front")), st.integers(1, 30), st.integers(0, 40)),
)


@given(st.lists(actions, max_size=60), st.integers(0, 40))
def test_no_older_value_follows_a_newer_one_and_nothing_is_torn(steps, conflate):
    """Against a model: each wire byte belongs to a whole frame, own frames all arrive in order, values only move on,
    and the last of each channel arrives."""
    outbox, wire, number, last = outbox_of(conflate=conflate), b"", 0, {}
    own = []
    for kind, what, amount in steps:
        if kind == "write":
            data = outbox.take(what)
            wire += data[:amount]
            if data[amount:]:
                outbox.put_back(data[amount:])
            continue
        if kind == "front":
            data = outbox.front(what)[:amount]
            wire += data
            if data:
                outbox.written(len(data))
            continue
        number += 1
        frame = b"<%s%d%s>" % (what.encode(), number, b"." * amount)
        if kind == "put":
            own.append(number)
            outbox.put(frame)
        else:
            last[what] = number
            outbox.offer(frame, "latest", what)
    while outbox.size:
        wire += outbox.take(1000)
    frames = wire.decode().replace(">", "").split("<")[1:]
    assert wire == b"".join(b"<%s>" % frame.encode() for frame in frames)
    seen: dict[str, list[int]] = {}
    for frame in frames:
        seen.setdefault(frame[0], []).append(int(frame[1:].rstrip(".")))
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert seen.pop("-", []) == own
    assert {channel: numbers[-1] for channel, numbers in seen.items()} == last


def test_a_large_frame_does_not_count_against_those_behind_it():
    """All that somebody has missed comes in one reply: who reads it slowly is no slower for that."""
    outbox = Outbox(Limits(50, 80, 100, 1000))
    assert outbox.put(b"x" * 500) is Verdict.QUEUED
    assert [outbox.put(b"y" * 20) for _ in range(6)] == [Verdict.QUEUED] * 5 + [Verdict.SLOW]
    data = outbox.take(64)
    outbox.put_back(data[100:])
    assert outbox.put(b"z" * 20) is Verdict.SLOW
    data = outbox.take(64)
    outbox.put_back(data[390:])
    assert outbox.size == 110
    assert outbox.put(b"z" * 20) is Verdict.SLOW
    while outbox.size:
        outbox.take(64)
    assert [outbox.put(b"y" * 12) for _ in range(9)] == [Verdict.QUEUED] * 8 + [Verdict.SLOW]


def test_a_large_frame_behind_others_counts():
    """Its reader had something to read already."""
    outbox = Outbox(Limits(50, 80, 100, 1000))
    assert outbox.put(b"y") is Verdict.QUEUED
    assert outbox.put(b"x" * 500) is Verdict.SLOW
