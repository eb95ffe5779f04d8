"""This worker's clients in their channels, without Redis: what it is told, and that nothing of it gets lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.attendance import MAX_CHANGES, MAX_CHANNELS, MAX_CLIENTS, Attendance
from hub.channels import Namespace
from hub.message import ClientInfo

ROOM = Namespace(presence="anyone", join_leave=True)


class Fanout:
    """Notes who watches."""

    def __init__(self) -> None:
        self.watching: list = []

    def watch(self, channel: str, subscriber: object) -> None:
        self.watching.append((channel, subscriber))

    def unwatch(self, channel: str, subscriber: object) -> None:
        self.watching.remove((channel, subscriber))


class Rig:
    def __init__(self) -> None:
        self.fanout = Fanout()
        self.attendance = Attendance(self.fanout)
        self.told: dict[str, set[str]] = {}
        """What Redis was told and took."""

    def enter(self, client: str, channel: str = "c", watcher: object = None) -> None:
        self.attendance.enter(channel, ROOM, ClientInfo("ann", client), watcher)

    def exit(self, client: str, channel: str = "c", hold: bool = True) -> None:
        self.attendance.exit(channel, client, hold)

    def tell(self, batches: list) -> None:
        for channel, _, leaves, joins in batches:
            inside = self.told.setdefault(channel, set())
            inside -= {change.member.info.client for change in leaves}
            inside |= {change.member.info.client for change in joins}

    def settle(self, batches: list) -> None:
        self.tell(batches)
        for batch in batches:
            self.attendance.settle(batch, [change.member.info.client for change in batch.joins])

    def send(self) -> list:
        """One batch that Redis takes; its joins and leaves by client."""
        batches = self.attendance.take()
        self.settle(batches)
        return [([c.member.info.client for c in b.joins], [c.member.info.client for c in b.leaves]) for b in batches]


def test_who_enters_and_leaves_is_told_once():
    """One change for each, and no trace of the channel after the last."""
    rig = Rig()
    rig.enter("1")
    rig.enter("2")
    assert rig.send() == [(["1", "2"], [])]
    rig.exit("1")
    rig.enter("3")
    assert rig.send() == [(["3"], ["1"])]
    assert rig.send() == []
    rig.exit("2")
    rig.exit("3")
    assert rig.send() == [([], ["2", "3"])]
    assert not rig.attendance.rooms and not rig.attendance.dirty


def test_who_is_gone_before_redis_was_told_never_was():
    """Nothing is sent, and nothing stays."""
    rig = Rig()
    rig.enter("1")
    rig.exit("1")
    assert rig.send() == []
    assert not rig.attendance.rooms and rig.attendance.moved == {"c"}


def test_who_leaves_while_the_join_is_under_way_is_taken_out_after_it():
    """The join may have been carried out, so its opposite follows; with the leave's own wish for delay."""
    rig = Rig()
    rig.enter("1")
    batches = rig.attendance.take()
    rig.exit("1", hold=False)
    rig.settle(batches)
    [batch] = rig.attendance.take()
    assert [(change.member.info.client, change.hold) for change in batch.leaves] == [("1", False)]


def test_who_is_back_before_its_leave_was_sent_is_entered_again_and_can_leave():
    """Redis may have the old entry, so the second leave must be sent."""
    rig = Rig()
    rig.enter("1")
    rig.send()
    rig.exit("1")
    rig.enter("1")
    rig.exit("1")
    assert rig.send() == [([], ["1"])]


@pytest.mark.parametrize("taken", [True, False])
def test_who_comes_and_goes_while_the_last_leave_is_under_way(taken):
    """The room is the same one throughout, whether Redis takes the leave or not."""
    rig = Rig()
    rig.enter("1")
    rig.send()
    rig.exit("1")
    batches = rig.attendance.take()
    rig.enter("1")
    rig.exit("1")
    rig.enter("2")
    rig.exit("2")
    rig.enter("3")
    if taken:
        rig.settle(batches)
    else:
        rig.tell(batches)  # or not: nobody knows
        rig.attendance.put_back(batches)
    while rig.send():
        pass
    assert rig.told == {"c": {"3"}}
    rig.exit("3")
    rig.send()
    assert rig.told == {"c": set()}
    assert not rig.attendance.rooms and not rig.attendance.dirty


def test_nobody_is_left_of_a_room_that_emptied_while_it_was_under_way():
    """The answer finds nobody, and forgets the channel."""
    rig = Rig()
    rig.enter("1")
    rig.send()
    rig.exit("1")
    batches = rig.attendance.take()
    rig.enter("1")
    rig.exit("1")
    rig.settle(batches)
    while rig.send():
        pass
    assert not rig.attendance.rooms and not rig.attendance.dirty


def test_what_failed_is_sent_again_unless_something_newer_came():
    """The join that failed comes back; of the one that left meanwhile the leave."""
    rig = Rig()
    rig.enter("1")
    rig.enter("2")
    batches = rig.attendance.take()
    rig.exit("2")
    rig.attendance.put_back(batches)
    assert rig.send() == [(["1"], ["2"])]


def test_a_large_channel_and_many_channels_come_in_parts():
    """At most MAX_CLIENTS of one and MAX_CHANNELS of all in a batch; the large one waits for its next turn."""
    rig = Rig()
    for number in range(MAX_CLIENTS + 1):
        rig.enter(str(number), "large")
    for number in range(MAX_CHANNELS):
        rig.enter("1", f"small:{number}")
    first, second = rig.attendance.take(), rig.attendance.take()
    assert [len(first), len(first[0].joins), len(second)] == [MAX_CHANNELS, MAX_CLIENTS, 2]
    assert [(batch.channel, len(batch.joins)) for batch in second] == [(f"small:{MAX_CHANNELS - 1}", 1), ("large", 1)]


def test_watchers_are_in_the_audience_while_they_are_in_the_channel():
    """And those who don't watch never are."""
    rig, watcher = Rig(), object()
    rig.enter("1", watcher=watcher)
    rig.enter("2")
    assert rig.fanout.watching == [("c", watcher)]
    rig.exit("1")
    rig.exit("1")
    assert rig.fanout.watching == []


def test_entering_again_tells_all_who_are_in_and_still_who_left():
    """Names that they have been announced under stay; Redis may have who left, so that is not forgotten."""
    rig = Rig()
    for client in "123":
        rig.enter(client)
    rig.send()
    rig.exit("2")
    rig.attendance.enter_again(list(rig.attendance.rooms))
    [batch] = rig.attendance.take()
    assert [(change.member.info.client, change.member.name) for change in batch.joins] == [("1", "1"), ("3", "3")]
    assert [change.member.info.client for change in batch.leaves] == ["2"]


def test_several_large_channels_take_turns():
    """A batch ends with the channel that fills it."""
    rig = Rig()
    for number in range(MAX_CHANGES):
        rig.enter(str(number), "ab"[number % 2])
        rig.enter(str(number), "cd"[number % 2])
    first, second = rig.attendance.take(), rig.attendance.take()
    assert [len(batch.joins) for batch in first + second] == [MAX_CLIENTS] * 8
    assert {batch.channel for batch in first} == {batch.channel for batch in second} == set("abcd")
    assert rig.attendance.take() == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["enter", "exit"]), st.sampled_from("123"), st.sampled_from("ab")),
        st.tuples(st.sampled_from(["take", "settle", "lost", "unknown"]), st.none(), st.none()),
    ),
    max_size=40,
)


@given(STEPS)
def test_in_the_end_redis_knows_exactly_who_is_in(steps):
    """Whatever comes and goes, also while a batch is under way, and whichever batches fail, carried out or not."""
    rig, under_way, inside = Rig(), None, set()
    for step, client, channel in steps:
        if step == "enter" and (client, channel) not in inside:
            inside.add((client, channel))
            rig.enter(client, channel)
        elif step == "exit":
            inside.discard((client, channel))
            rig.exit(client, channel)
        elif step == "take" and under_way is None:
            under_way = rig.attendance.take()
        elif step in ("settle", "lost", "unknown") and under_way is not None:
            if step == "settle":
                rig.settle(under_way)
            else:
                if step == "unknown":
                    rig.tell(under_way)
                rig.attendance.put_back(under_way)
            under_way = None
    if under_way is not None:
        rig.settle(under_way)
    while rig.attendance.dirty:
        rig.send()
    assert {(client, channel) for channel, clients in rig.told.items() for client in clients} == inside
    assert set(rig.attendance.rooms) == {channel for _, channel in inside}
