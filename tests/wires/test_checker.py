"""The checker: an honest log has no fault, and each lie is found out, as that and nothing else."""

from __future__ import annotations

import pytest

from tests.wires.checker import FAULTS, UNKNOWN_SID, Checker, Figures
from tests.wires.events import (
    KINDS,
    Acked,
    Emitted,
    Entered,
    Event,
    Gone,
    Heard,
    Left,
    Log,
    Published,
    Refused,
    parse,
    read,
)

GROUP = "polling"
COUNT = 4
"""Of each client's events, and of the room's messages."""


def honest() -> list[Event]:
    """Two clients that emit and one that only listens."""
    events: list[Event] = []
    for name, emits in (("ann", True), ("bob", True), ("ear", False)):
        events.append(Entered(name, GROUP, emits))
        for number in range(COUNT):
            if emits:
                events += [Emitted(name, number), Acked(name, number, [name, number, number], 1.5)]
            events.append(Heard(name, number))
        events.append(Left(name, COUNT if emits else None))
    return [*events, *[Published(number) for number in range(COUNT)]]


def judged(events: list[Event]) -> Checker:
    checker = Checker(COUNT, COUNT, "nobody's")
    checker.read(events)
    checker.finish()
    return checker


def faults(checker: Checker) -> dict[str, int]:
    figures = [getattr(one, name) for name in FAULTS for one in checker.groups.values()]
    assert checker.failed == any(figures)
    assert bool(checker.findings) == any(figures)
    return {name: count for name in FAULTS if (count := sum(getattr(one, name) for one in checker.groups.values()))}


def test_an_honest_log_has_no_fault():
    checker = judged(honest())
    assert faults(checker) == {}
    assert checker.groups == {GROUP: Figures(clients=3, events=2 * COUNT, heard=3 * COUNT, ack_ms=[1.5] * 2 * COUNT)}


def without(*gone: Event) -> list[Event]:
    return [event for event in honest() if event not in gone]


def instead(old: Event, *new: Event) -> list[Event]:
    at = honest().index(old)
    return [*honest()[:at], *new, *honest()[at + 1 :]]


ACK = Acked("ann", 2, ["ann", 2, 2], 1.5)
HEARD = Heard("ear", 1)
LIES = {
    "an ack that never came": (without(ACK), {"lost": 1}),
    "an ack that came twice": (instead(ACK, ACK, ACK), {"doubled": 1}),
    "an ack of nothing": ([*honest(), ACK._replace(number=-1), ACK._replace(number=COUNT)], {"doubled": 2}),
    "another event's ack": (instead(ACK, ACK._replace(value=["ann", 1, 2])), {"wrong": 1}),
    "another client's ack": (instead(ACK, ACK._replace(value=["bob", 2, 2])), {"wrong": 1}),
    "an ack with nothing in it": (instead(ACK, ACK._replace(value=None)), {"wrong": 1}),
    "an event that overtook another": (instead(ACK, ACK._replace(value=["ann", 2, 1])), {"reordered": 1}),
    "an acked event that the application never had": (
        instead(Left("ann", COUNT), Left("ann", COUNT - 1)),
        {"lost": 1},
    ),
    "an event that the application had twice": (instead(Left("ann", COUNT), Left("ann", COUNT + 1)), {"doubled": 1}),
    "a message that was not heard": (without(HEARD), {"lost": 1}),
    "the last message, that was not heard": (without(Heard("ear", COUNT - 1)), {"lost": 1}),
    "a message that was heard twice": (instead(HEARD, HEARD, HEARD), {"doubled": 1}),
    "a message behind a later one": (
        instead(HEARD, Heard("ear", COUNT - 1), HEARD),
        {"reordered": 2, "doubled": 1},
    ),
    "a message that nobody published": (instead(HEARD, HEARD, Heard("ear", 17)), {"wrong": 1, "reordered": 2}),
    "a session that no worker knows": (
        [*honest(), Refused("ann", 400, UNKNOWN_SID), Gone("ann", "HTTP 400")],
        {"unknown_sid": 1, "gone": 1},
    ),
    "any other refusal": ([*honest(), Refused("ann", 504, 3)], {"refused": 1}),
    "a client that was cut off": (instead(Left("ann", COUNT), Gone("ann", "closed")), {"gone": 1}),
    "a client that never said that it was done": (without(Left("ear", None)), {"gone": 1}),
    "a client that came in twice": ([Entered("ann", GROUP, True), *honest()], {"doubled": 1}),
    "a client that never got in": ([*honest(), Gone("eve", "TimeoutError")], {"gone": 1}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found_out(lie):
    events, found = LIES[lie]
    assert faults(judged(events)) == found


def test_two_messages_that_changed_places_are_reordered():
    """And nothing is missing for it."""
    events = honest()
    at = events.index(Heard("ear", 1))
    events[at : at + 2] = reversed(events[at : at + 2])
    assert faults(judged(events)) == {"reordered": 1}


def test_who_never_got_in_stands_apart():
    """Nobody knows which group it would have been of."""
    checker = judged([*honest(), Gone("eve", "refused")])
    assert checker.groups["nobody's"].gone == 1
    assert not checker.groups[GROUP].failed


def test_what_is_written_is_read_again(tmp_path):
    """Every kind, file by file; a line of another kind is an error."""
    events = [*honest(), Refused("ann", 400, 1), Gone("ann", "why")]
    assert {type(event) for event in events} == set(KINDS.values())
    log = Log(tmp_path / "a")
    for event in events:
        log.write(event)
    log.close()
    found = list(read([tmp_path / "a", tmp_path / "a"]))
    assert found == events * 2
    assert list(map(type, found)) == list(map(type, events)) * 2
    for line in (b'["x",1]', b'["p"]', b"{"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            parse(line)
