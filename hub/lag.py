"""Lag: how late a worker's event loop is, found by a timer that measures itself.

Does: compare when it was called with when it should have been, keep the worst of the last seconds.
Does not: set timers (worker calls it from the one that it has), or judge (health).
Called by: worker (tick); figures and health read it.
Never break: a loop that hung is seen by its first call behind that, whoever asks then.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .histogram import FAST_S, Histogram

WINDOW_S = 5.0
"""`worst_s` looks back at least so far, and at most twice as far."""


class Lag:
    """Of one loop."""

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """period_s: between two calls of `tick`."""
        self.seconds = Histogram((*FAST_S, 2.5, 5.0))
        self._period_s = period_s
        self._clock = clock
        self._due = clock() + period_s
        self._window_ends = clock() + WINDOW_S
        self._worst = self._worst_before = 0.0

    def tick(self) -> None:
        """The timer has come, and is set again for `period_s` from now."""
        now = self._clock()
        late = max(0.0, now - self._due)
        self.seconds.observe(late)
        self._due = now + self._period_s
        if now >= self._window_ends:
            # What is late by more than a window is of the one that begins: nobody has asked meanwhile.
            self._window_ends, self._worst_before, self._worst = now + WINDOW_S, self._worst, 0.0
        self._worst = max(self._worst, late)

    @property
    def worst_s(self) -> float:
        """The latest of the last seconds; where the timer is due now, that counts, too."""
        return max(self._worst, self._worst_before, self._clock() - self._due)
