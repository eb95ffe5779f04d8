"""Ring: contiguous, bounded, the same list for all who ask for the same."""

from __future__ import annotations

import sys

from hub.ring import Budget, Ring


def filled(budget: Budget, most: int, count: int) -> Ring:
    ring = Ring(budget, most)
    for i in range(1, count + 1):
        ring.append(b"%d" % i)
    return ring


def test_what_is_behind_an_offset_is_told():
    """Nothing behind the top; None where it does not reach."""
    ring = filled(Budget(1000), 5, 8)
    assert ring.top == 8 and len(ring) == 5
    assert ring.since(8) == []
    assert ring.since(6) == [b"7", b"8"]
    assert ring.since(3) == [b"4", b"5", b"6", b"7", b"8"]
    assert ring.since(2) is None


def test_thousands_who_ask_for_the_same_share_a_list():
    """Until something comes."""
    ring = filled(Budget(1000), 5, 5)
    assert ring.since(3) is ring.since(3)
    told = ring.since(3)
    ring.append(b"6")
    assert ring.since(3) == [b"4", b"5", b"6"] and told == [b"4", b"5"]
    ring.restart(6, [b"x", b"y", b"z"])
    assert ring.since(3) == [b"x", b"y", b"z"]


def test_all_rings_share_a_budget_of_bytes():
    """The one that grows gives way, also to nothing; the silent one keeps what it has."""
    budget = Budget(10)
    quiet, busy = filled(budget, 100, 4), Ring(budget, 100)
    for _ in range(5):
        busy.append(b"123")
    assert budget.used <= 10
    assert quiet.since(0) == [b"1", b"2", b"3", b"4"]
    assert busy.since(3) == [b"123", b"123"] and busy.since(2) is None
    busy.append(b"0123456789")
    assert busy.top == 6 and len(busy) == 0 and busy.since(6) == [] and busy.since(5) is None
    quiet.clear()
    assert budget.used == 0 and quiet.top == 4


def test_a_restart_begins_where_it_is_told():
    """The bodies end at the top."""
    budget = Budget(1000)
    ring = filled(budget, 3, 3)
    ring.restart(20, [b"a", b"b", b"c", b"d"])
    assert ring.top == 20 and ring.since(17) == [b"b", b"c", b"d"] and ring.since(16) is None
    assert budget.used == 3


def test_what_the_ring_forgets_is_not_kept_for_a_storm_that_is_over():
    """The answer to the last one is shared while nothing comes, and let go of then."""
    ring = Ring(Budget(3), 300)
    ring.append(b"abc")
    told = ring.since(0)
    assert ring.since(0) is told
    ring.append(b"def")
    assert sys.getrefcount(told) == 2, "held by the ring"  # our own name, and the call's
    assert ring.since(0) is None and ring.since(1) == [b"def"]
