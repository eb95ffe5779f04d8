"""Slope: what samples allow to say, on series whose growth is known."""

from __future__ import annotations

import math
import random

import pytest

from .slope import HOUR_S, Slope, fit, is_steady

RNG_SEEDS = range(200)


def series(per_hour: float, seconds: int, noise: float, alike: float, seed: int) -> tuple[list[float], list[float]]:
    """A sample every 2 s; `alike`: how much of one's deviation the next one has."""
    rng, times, values, rest = random.Random(seed), [], [], 0.0
    for t in range(0, seconds, 2):
        rest = alike * rest + rng.gauss(0, noise)
        times.append(float(t))
        values.append(80.0 + per_hour * t / HOUR_S + rest)
    return times, values


@pytest.mark.parametrize("alike", [0.0, 0.6, 0.9])
def test_the_interval_has_the_slope_about_as_often_as_it_says(alike: float):
    """Of 200 series with independent and with much alike neighbours; without regard to those it would be half of them.

    95 % of 200 are 190; a few fewer are allowed, as likeness is itself estimated.
    """
    hits = 0
    for seed in RNG_SEEDS:
        found = fit(*series(3.0, 1200, 0.2, alike, seed))
        hits += found.least <= 3.0 <= found.most
    assert hits >= 175


def test_a_straight_line_has_no_doubt():
    """Exact to rounding, whatever the beginning."""
    found = fit([5.0 * i for i in range(50)], [7.0 + i for i in range(50)])
    assert found.per_hour == pytest.approx(HOUR_S / 5) and found.half < 1e-6
    assert fit([1.0, 2.0, 3.0, 4.0, 5.0], [8.0] * 5) == Slope(0.0, 0.0, 5)


def test_too_little_tells_nothing():
    """Three samples, or many of one moment."""
    assert fit([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).half == math.inf
    assert fit([1.0] * 9, [1.0] * 9).half == math.inf


@pytest.mark.parametrize(
    ("slope", "hours", "verdict"),
    [
        (Slope(0.2, 0.5, 99), 1.0, "flat"),
        (Slope(-3.0, 0.5, 99), 1.0, "flat"),
        (Slope(0.8, 0.5, 99), 1.0, "unknown"),
        (Slope(5.0, 2.0, 99), 1.0, "grows"),
        (Slope(5.0, 4.5, 99), 1.0, "unknown"),
        # A piece of an allocator's, which a short run takes for a steep slope.
        (Slope(25.0, 2.0, 99), 0.05, "unknown"),
        (Slope(250.0, 20.0, 99), 0.05, "grows"),
    ],
)
def test_a_verdict_needs_the_whole_interval(slope: Slope, hours: float, verdict: str):
    """Against 1 MB an hour, and pieces of 1.5 MB."""
    assert slope.verdict(1.0, hours, 1.5) == verdict


def test_an_hour_tells_what_ten_minutes_can_not():
    """With noise as a worker's under load: the promise needs an hour; what is ten times as much shows earlier."""
    hour, short = series(0.3, 3000, 0.15, 0.5, 1), series(0.3, 420, 0.15, 0.5, 1)
    assert fit(*hour).verdict(1.0, 0.8, 1.5) == "flat"
    assert fit(*short).verdict(1.0, 0.1, 1.5) == "unknown"
    assert fit(*series(40.0, 420, 0.15, 0.5, 1)).verdict(1.0, 0.11, 1.5) == "grows"


def test_a_step_is_no_leak():
    """Nor is what fills up; a line is one, with noise."""
    times = [2.0 * i for i in range(200)]
    noise = [random.Random(3).gauss(0, 0.05) for _ in times]
    step = [35.0 + 2.0 * (t > 120) + n for t, n in zip(times, noise, strict=True)]
    filling = [37.0 - 3.0 * math.exp(-t / 60) + n for t, n in zip(times, noise, strict=True)]
    line = [35.0 + 0.01 * t + n for t, n in zip(times, noise, strict=True)]
    assert not is_steady(times, step) and not is_steady(times, filling)
    assert is_steady(times, line)
