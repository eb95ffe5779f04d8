"""Slope: whether something grows: least squares through samples, and how sure one may be of it.

Does: fit, give the slope's confidence interval with neighbouring samples' likeness taken into account, judge it.
Does not: sample.
Called by: rig, __main__.
Never break: "does not grow" is said only where the whole interval is below the bound; a run that is too short for that
says what it can tell instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

HOUR_S = 3600.0
T_975 = (
    (1, 12.71),
    (2, 4.30),
    (3, 3.18),
    (4, 2.78),
    (5, 2.57),
    (7, 2.36),
    (10, 2.23),
    (15, 2.13),
    (20, 2.09),
    (30, 2.04),
)
"""Student's t for 95 %, two-sided, by degrees of freedom; above, 1.96."""

STEADY = 0.25
"""Of the whole's slope each third has at least this."""

Verdict = Literal["flat", "grows", "unknown"]


class Slope(NamedTuple):
    """per_hour: growth; half: of the interval that has it with 95 %; samples: independent ones, so to say."""

    per_hour: float
    half: float
    samples: float

    @property
    def least(self) -> float:
        return self.per_hour - self.half

    @property
    def most(self) -> float:
        return self.per_hour + self.half

    def verdict(self, bound: float, hours: float, step: float) -> Verdict:
        """flat: at most `bound` an hour; grows: more than that for certain, and in all by more than `step`.

        step: by so much a process may grow once, as allocators take memory in pieces; a short run sees such a piece as
        a steep slope, and its neighbours make it look certain.
        """
        if self.most <= bound:
            return "flat"
        return "grows" if self.least > bound and self.least * hours > step else "unknown"


def fit(times_s: Sequence[float], values: Sequence[float]) -> Slope:
    """The line through samples; fewer than 4 tell nothing."""
    count = len(values)
    if count < 4:
        return Slope(0.0, math.inf, count)
    middle_t, middle = sum(times_s) / count, sum(values) / count
    spread = sum((t - middle_t) ** 2 for t in times_s)
    if not spread:
        return Slope(0.0, math.inf, count)
    slope = sum((t - middle_t) * (v - middle) for t, v in zip(times_s, values, strict=True)) / spread
    rests = [v - middle - slope * (t - middle_t) for t, v in zip(times_s, values, strict=True)]
    effective = _independent(rests)
    freedom = max(1.0, effective - 2)
    # As if there were only so many samples, spread as these are.
    error = math.sqrt(sum(rest * rest for rest in rests) / count / freedom / (spread / count))
    return Slope(slope * HOUR_S, _t(freedom) * error * HOUR_S, effective)


def is_steady(times_s: Sequence[float], values: Sequence[float]) -> bool:
    """Whether all three thirds grow alike, as a leak does.

    A step, such as a buffer that got its size when a reader was slow, makes one of them steep and leaves the others
    flat; what fills up to its bound is flat in the last one. Over the whole both look like a slope beyond doubt.
    """
    third = len(values) // 3
    parts = [slice(third), slice(third, 2 * third), slice(2 * third, None)]
    least = min(fit(times_s[part], values[part]).per_hour for part in parts)
    return least >= STEADY * fit(times_s, values).per_hour


def _independent(rests: Sequence[float]) -> float:
    """How many independent samples these are worth: memory that was 80 MB a second ago is most likely so now."""
    count, total = len(rests), sum(rest * rest for rest in rests)
    if not total:
        return float(count)
    alike = sum(a * b for a, b in itertools.pairwise(rests)) / total
    alike = min(max(alike, 0.0), 0.99)
    return max(3.0, count * (1 - alike) / (1 + alike))


def _t(freedom: float) -> float:
    return next((t for degrees, t in T_975 if freedom <= degrees), 1.96)
