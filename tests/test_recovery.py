"""Recovery: never partial; what is unknown here is not judged here."""

from __future__ import annotations

import pytest

from hub.position import Position
from hub.recovery import Verdict, judge
from hub.ring import Budget, Ring


@pytest.mark.parametrize(
    ("epoch", "offset", "verdict", "missed"),
    [
        ("4.a", 20, Verdict.RECOVERED, []),
        ("4.a", 18, Verdict.RECOVERED, [b"19", b"20"]),
        ("", 18, Verdict.RECOVERED, [b"19", b"20"]),
        ("4.a", 14, Verdict.OLDER, []),
        ("4.a", 10, Verdict.OLDER, []),
        ("4.a", 9, Verdict.LOST, []),
        ("4.a", 21, Verdict.UNKNOWN, []),
        ("4.z", 20, Verdict.UNKNOWN, []),
        ("4.z", 0, Verdict.UNKNOWN, []),
    ],
)
def test_a_position_is_judged(epoch, offset, verdict, missed):
    """At 20 with the last five in the ring; ten may be recovered at once."""
    ring = Ring(Budget(1000), 5)
    ring.restart(20, [b"16", b"17", b"18", b"19", b"20"])
    found, bodies = judge(Position(epoch, offset), "4.a", ring, 10)
    assert (found, list(bodies)) == (verdict, missed)
