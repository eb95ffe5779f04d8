"""Groups: whoever moves one by one or with a whole list, to and fro, stands where a model says, and is found there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.audience import ELSEWHERE, Audience, Board, Group, Terms, new_number
from hub.channels import Namespace
from hub.groups import Bundle, Groups
from hub.lines import Lines
from hub.pace import Paces

LATEST = Namespace(mode="latest")
CHANNELS = ("t:A", "t:B", "t:C")


class View:
    """A wire form with wishes, of which nothing is encoded here."""

    marks = False


class One:
    sealed = False
    direct = True

    def __init__(self) -> None:
        self.fd = new_number()
        self.group: Group | None = None
        self.place = ELSEWHERE
        self.open = True


class Rig:
    """Two rates and none, of three channels; all audiences are there from the beginning."""

    def __init__(self, count: int = 3) -> None:
        paces = Paces(lambda pace: None, lambda: 0.0, lambda *_: None)
        view = View()
        self.terms = [Terms(view, False, pace) for pace in (None, paces.at(1), paces.at(5))]
        lines = Lines(Board(), lambda: 0.0)
        self.lines = {channel: lines.audience(channel, LATEST, view, self.terms[0])[0] for channel in CHANNELS}
        for channel in CHANNELS:
            for terms in self.terms[1:]:
                lines.audience(channel, LATEST, view, terms)
        self.groups = Groups()
        self.ones = [One() for _ in range(count)]
        self.held: dict[One, set[Audience]] = {one: set() for one in self.ones}
        """As it is to be once all have settled."""

    def audience(self, channel: str, rate: int = 0) -> Audience:
        return self.lines[channel].audiences[self.terms[rate]]

    def bundle(self, rate: int, *channels: str) -> Bundle:
        return Bundle(self.terms[rate], [self.lines[channel] for channel in channels])

    def move(self, one: One, audience: Audience, joins: bool) -> None:
        self.groups.move(one, audience, joins)
        (self.held[one].add if joins else self.held[one].discard)(audience)

    def swap(self, one: One, old: Bundle, new: Bundle) -> None:
        """As far as it holds `old`, which the caller of Groups sees to."""
        if self.held[one].issuperset(old.audiences):
            self.groups.swap(one, old, new)
            self.held[one] = (self.held[one] - old.together) | new.together

    def check(self) -> None:
        """Everybody stands with those who hold the same, and each group with every audience of it, and nowhere else."""
        audiences = [audience for line in self.lines.values() for audience in line.audiences.values()]
        groups = {one.group for one in self.ones if one.group is not None}
        for one in self.ones:
            assert (one.group.audiences if one.group is not None else set()) == self.held[one]
        assert len(groups) == len({group.audiences for group in groups}) == len(self.groups)
        for audience in audiences:
            alike = {one for one in audiences if one.groups is audience.groups}
            assert audience.groups == {group for group in groups if group.audiences & alike}
            assert set(self.groups.concerned([audience])) >= {group for group in groups if audience in group.audiences}
        assert set(self.groups.concerned(audiences)) == groups
        board = [bytes([audience.slot]) for audience in sorted(audiences, key=lambda one: one.slot)]
        for group in groups:
            assert b"".join(group.pick(board)) == bytes(audience.slot for audience in group.audiences)


ONES, RATES = st.integers(0, 2), st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.just("move"), ONES, st.sampled_from(CHANNELS), RATES, st.booleans()),
    st.tuples(st.just("swap"), ONES, st.lists(st.sampled_from(CHANNELS), unique=True, min_size=1), RATES, RATES),
    st.tuples(st.just("settle")),
)


@given(st.lists(STEPS, max_size=40), st.booleans())
def test_everybody_settles_where_what_they_hold_says(steps, all_held):
    """One by one, with whole lists, with both in one turn, and with lists beside other channels."""
    rig = Rig()
    if all_held:
        for one in rig.ones:
            for audience in rig.bundle(1, *CHANNELS).audiences:
                rig.move(one, audience, True)
    for step in steps:
        match step:
            case ("move", i, channel, rate, joins):
                rig.move(rig.ones[i], rig.audience(channel, rate), joins)
            case ("swap", i, channels, old, new):
                rig.swap(rig.ones[i], rig.bundle(old, *channels), rig.bundle(new, *channels))
            case ("settle",):
                rig.groups.settle()
                rig.check()
        for one in rig.ones:
            for line in rig.lines.values():
                for audience in line.audiences.values():
                    assert rig.groups.holds(one, audience) == (audience in rig.held[one])
    rig.groups.settle()
    assert not rig.groups.moving
    rig.check()


def test_somebody_moves_until_all_have_settled():
    """What asks for another turn of the loop."""
    rig = Rig()
    assert not rig.groups.moving
    rig.move(rig.ones[0], rig.audience("t:A", 1), True)
    assert rig.groups.moving
    rig.groups.settle()
    assert not rig.groups.moving
    rig.swap(rig.ones[0], rig.bundle(1, "t:A"), rig.bundle(2, "t:A"))
    assert rig.groups.moving
    rig.groups.settle()
    assert not rig.groups.moving


def test_a_list_that_goes_to_another_rate_takes_its_group_along():
    """Its own, which is not made anew; and where others are at that rate with the same list, it goes to theirs."""
    rig = Rig(2)
    one, other = rig.ones
    for audience in rig.bundle(1, *CHANNELS).audiences:
        rig.move(one, audience, True)
    for audience in rig.bundle(2, *CHANNELS).audiences:
        rig.move(other, audience, True)
    rig.groups.settle()
    group = one.group
    rig.swap(one, rig.bundle(1, *CHANNELS), rig.bundle(0, *CHANNELS))
    rig.groups.settle()
    assert one.group is group
    rig.swap(one, rig.bundle(0, *CHANNELS), rig.bundle(2, *CHANNELS))
    rig.groups.settle()
    assert one.group is other.group is not group and len(rig.groups) == 1
    rig.check()


def test_a_list_of_ones_own_that_loses_a_symbol_is_still_among_those_of_its_rate():
    """What all audiences of a rate have in common is not left with one of them, but with the last."""
    rig = Rig(1)
    [one] = rig.ones
    for audience in rig.bundle(1, "t:A", "t:B").audiences:
        rig.move(one, audience, True)
    rig.groups.settle()
    for channel in ("t:A", "t:B"):
        rig.move(one, rig.audience(channel, 1), False)
        rig.move(one, rig.audience(channel, 2), True)
        rig.groups.settle()
        rig.check()


@pytest.mark.parametrize(
    "go",
    [
        lambda rig, one: rig.move(one, rig.audience("t:A", 1), True),
        lambda rig, one: rig.swap(one, rig.bundle(2, *CHANNELS), rig.bundle(1, *CHANNELS)),
    ],
)
def test_who_has_ended_meanwhile_comes_into_no_group(go: Callable[[Rig, One], None]):
    """Nothing more is written to it."""
    rig = Rig(1)
    [one] = rig.ones
    for audience in rig.bundle(2, *CHANNELS).audiences:
        rig.move(one, audience, True)
    rig.groups.settle()
    go(rig, one)
    one.open = False
    rig.groups.settle()
    rig.held[one] = set()
    rig.check()


def test_a_bundle_without_some_is_in_the_same_order():
    """Of channels, and of audiences."""
    rig = Rig()
    bundle = rig.bundle(1, "t:C", "t:A", "t:B").without({rig.audience("t:A", 1)})
    assert bundle.lines == [rig.lines["t:C"], rig.lines["t:B"]]
    assert bundle.audiences == [rig.audience("t:C", 1), rig.audience("t:B", 1)]
    assert bundle.together == set(bundle.audiences)
