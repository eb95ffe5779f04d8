"""How late a loop is."""

from __future__ import annotations

import pytest

from hub.lag import WINDOW_S, Lag
from tests.support import FakeClock


def test_a_timer_that_comes_late_says_how_late():
    """In time: nothing; before its time, as timers of a millisecond's grain do: nothing, too."""
    clock = FakeClock()
    lag = Lag(0.05, clock)
    for seconds in (0.05, 0.049, 0.08):
        clock.advance(seconds)
        lag.tick()
    assert lag.seconds.count == 3 and lag.seconds.sum == pytest.approx(0.03)
    assert lag.worst_s == pytest.approx(0.03)


def test_a_loop_that_hangs_now_is_seen_by_whoever_can_ask():
    """Before the timer has come: what is due and has not come counts."""
    clock = FakeClock()
    lag = Lag(0.05, clock)
    clock.advance(6.05)
    assert lag.worst_s == pytest.approx(6.0)


def test_the_worst_is_forgotten_after_a_while_and_not_before():
    """Between one and two windows: it is there for whoever asks within WINDOW_S."""
    clock = FakeClock()
    lag = Lag(0.05, clock)

    def run(seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            clock.advance(0.05)
            lag.tick()

    run(WINDOW_S - 0.1)
    clock.advance(2.05)
    lag.tick()
    for seconds in (WINDOW_S - 0.1, 0.2, WINDOW_S - 0.2):
        run(seconds)
        assert lag.worst_s == pytest.approx(2.0)
    run(0.2)
    assert lag.worst_s == pytest.approx(0.0, abs=1e-6)
