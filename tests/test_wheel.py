"""The timer wheel, on a fake clock."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.wheel import NEVER, TimerWheel
from tests.support import FakeClock


class Item:
    def __init__(self, fired: list, name: str = "") -> None:
        self.due = NEVER
        self.fired = fired
        self.name = name

    def on_timer(self, now: float) -> None:
        self.fired.append((self.name, now))


def wheel_of(clock: FakeClock, slots: int = 8) -> TimerWheel:
    return TimerWheel(clock, tick_s=0.1, slots=slots)


def test_nothing_fires_early_and_everything_within_a_tick():
    """An item due in 1 s is silent at 0.99 s and has fired at 1.1 s."""
    clock, fired = FakeClock(), []
    wheel = wheel_of(clock)
    wheel.schedule(Item(fired), clock() + 1.0)
    clock.advance(0.99)
    wheel.advance(1)
    assert not fired
    clock.advance(0.12)
    wheel.advance(1)
    assert len(fired) == 1


def test_who_is_scheduled_again_stands_in_one_slot():
    """Otherwise the wheel would keep whoever moves its deadline, and is gone."""
    clock = FakeClock()
    wheel = wheel_of(clock)
    item = Item([])
    for seconds in (0.5, 0.2, 0.9, 0.9):
        wheel.schedule(item, clock() + seconds)
        assert sum(map(len, wheel._slots)) == 1
    wheel.cancel(item)
    assert not any(wheel._slots)


@pytest.mark.parametrize("moved", [True, False])
def test_a_slot_gives_its_room_back(moved):
    """Of a thousand who came together, or who have moved on before they were due."""
    clock, fired = FakeClock(), []
    wheel = wheel_of(clock)
    items = [Item(fired) for _ in range(1000)]
    stays = Item(fired)
    empty = sum(map(sys.getsizeof, wheel._slots))
    for item in items:
        wheel.schedule(item, clock() + 0.45)
    wheel.schedule(stays, clock() + 0.45 + 10 * 0.8)
    assert sum(map(sys.getsizeof, wheel._slots)) > empty + 1000 * 8
    if moved:
        for item in items:
            wheel.cancel(item)
    clock.advance(1.0)
    wheel.advance(1)
    assert len(fired) == (0 if moved else 1000)
    assert sum(map(sys.getsizeof, wheel._slots)) == empty
    clock.advance(8.0)
    wheel.advance(1)
    assert len(fired) == (1 if moved else 1001)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30), st.floats(0.05, 3))
def test_every_item_fires_once_not_early_and_in_time(delays, step):
    """Whatever the delays, and however coarsely the wheel is turned, also beyond one round of its slots."""
    clock, fired = FakeClock(0.0), []
    wheel = wheel_of(clock)
    for number, delay in enumerate(delays):
        wheel.schedule(Item(fired, number), delay)
    while clock() < 52:
        clock.advance(step)
        assert not wheel.advance(1)
    assert sorted(name for name, _ in fired) == list(range(len(delays)))
    for name, at in fired:
        assert delays[name] <= at <= delays[name] + 0.2 + step + 1e-6


def test_scheduling_again_moves_the_deadline():
    """The earlier one is forgotten, also in the same slot of another round."""
    clock, fired = FakeClock(), []
    wheel, item = wheel_of(clock), Item(fired)
    wheel.schedule(item, clock() + 0.5)
    wheel.schedule(item, clock() + 0.5 + 0.8)
    clock.advance(1.0)
    wheel.advance(1)
    assert not fired
    clock.advance(0.5)
    wheel.advance(1)
    assert len(fired) == 1


def test_a_cancelled_item_does_not_fire():
    """Cancelling twice, or what was never scheduled, does nothing."""
    clock, fired = FakeClock(), []
    wheel, item = wheel_of(clock), Item(fired)
    wheel.cancel(item)
    wheel.schedule(item, clock() + 0.5)
    wheel.cancel(item)
    wheel.cancel(item)
    clock.advance(2)
    wheel.advance(1)
    assert not fired


def test_an_item_that_another_cancels_in_the_same_sweep_does_not_fire():
    """Both are due at once; the first to fire cancels the other."""
    clock, fired = FakeClock(), []
    wheel = wheel_of(clock)
    items = [Item(fired), Item(fired)]
    for one, other in (items, items[::-1]):
        one.on_timer = lambda now, other=other: (fired.append(now), wheel.cancel(other))
        wheel.schedule(one, clock() + 0.5)
    clock.advance(1)
    wheel.advance(1)
    assert len(fired) == 1


def test_a_sweep_stops_after_its_slice_and_goes_on_where_it_stopped():
    """With each deadline taking 1 ms and a slice of 5 ms, 20 items need several calls and none is lost."""
    clock, fired = FakeClock(), []
    wheel = wheel_of(clock)

    class Slow(Item):
        def on_timer(self, now: float) -> None:
            clock.advance(0.001)
            super().on_timer(now)

    for _ in range(20):
        wheel.schedule(Slow(fired), clock() + 0.5)
    clock.advance(1)
    assert wheel.advance(0.005)
    assert 4 <= len(fired) <= 6
    calls = 1
    while wheel.advance(0.005):
        calls += 1
    assert len(fired) == 20
    assert calls >= 3


def test_an_item_may_schedule_itself_again_when_it_fires():
    """A heartbeat: three periods, three calls."""
    clock, fired = FakeClock(0.0), []
    wheel, item = wheel_of(clock), Item(fired)
    item.on_timer = lambda now: (fired.append(now), wheel.schedule(item, now + 1))
    wheel.schedule(item, 1)
    for _ in range(40):
        clock.advance(0.1)
        wheel.advance(1)
    assert len(fired) == 3


def test_a_hundred_thousand_deadlines_at_once_are_fired_in_slices():
    """Everybody due in the same tick, 1 µs each: all fire once, and no slice is longer than it may be."""
    clock, fired = FakeClock(), []
    wheel = TimerWheel(clock)

    class Quick(Item):
        def on_timer(self, now: float) -> None:
            clock.advance(1e-6)
            super().on_timer(now)

    items = [Quick(fired, number) for number in range(100_000)]
    for item in items:
        wheel.schedule(item, clock() + 0.5)
    clock.advance(1)
    slices, longest = 1, 0
    while True:
        before = len(fired)
        more = wheel.advance(0.002)
        longest = max(longest, len(fired) - before)
        if not more:
            break
        slices += 1
    assert len(fired) == 100_000 and len({name for name, _ in fired}) == 100_000
    assert slices >= 45 and longest <= 2100
