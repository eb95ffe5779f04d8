"""The backlog of a worker: its sum, its bound, and who goes first."""

from __future__ import annotations

from hub.backlog import Backlog
from hub.outbox import Verdict


def test_the_sum_follows_each_connection():
    """Growing, shrinking and going; only connections with a backlog are held."""
    backlog = Backlog(1000)
    assert not backlog.holds("a", 300)
    assert not backlog.holds("b", 500)
    assert not backlog.holds("a", 100)
    assert (backlog.bytes, len(backlog)) == (600, 2)
    assert not backlog.holds("b", 0)
    assert not backlog.holds("c", 0)
    assert (backlog.bytes, len(backlog)) == (100, 1)


def test_over_the_bound_the_largest_are_named_until_the_sum_would_fit():
    """Down to nine tenths of the bound, so that the next frame does not cost another one its place."""
    backlog = Backlog(1000)
    for name, size in (("a", 100), ("b", 400), ("c", 300)):
        assert not backlog.holds(name, size)
    assert backlog.holds("d", 350)
    assert backlog.largest() == ["b"]
    assert backlog.holds("a", 500)
    assert backlog.largest() == ["a", "b"]


def test_what_slow_readers_cost_is_counted():
    """Conflated and dropped frames apart; a queued one is neither."""
    backlog = Backlog(1000)
    for verdict in (Verdict.QUEUED, Verdict.CONFLATED, Verdict.CONFLATED, Verdict.DROPPED):
        backlog.count(verdict)
    assert (backlog.conflated, backlog.dropped) == (2, 1)
