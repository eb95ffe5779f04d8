"""How often something took how long."""

from __future__ import annotations

from hub.histogram import FAST_S, SLOW_S, Histogram


def test_each_value_is_counted_in_one_bucket_and_a_bound_belongs_below_it():
    """As Prometheus has it: le="0.1" includes 0.1; what is beyond the last bound is counted, too."""
    seconds = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.11, 1.0, 1.01, 100.0):
        seconds.observe(value)
    assert seconds.counts == [2, 2, 2] and seconds.count == 6
    assert seconds.about() == {"bounds": [0.1, 1.0], "counts": [2, 2, 2], "sum": 102.22}


def test_what_was_told_does_not_change_with_what_is_counted_later():
    seconds = Histogram((1.0,))
    told = seconds.about()
    seconds.observe(0.5)
    assert told["counts"] == [0, 0] and seconds.counts == [1, 0]


def test_bounds_rise():
    """Else a search would put values anywhere."""
    for bounds in (FAST_S, SLOW_S):
        assert list(bounds) == sorted(set(bounds))
