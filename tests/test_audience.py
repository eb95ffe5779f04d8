"""Groups: the same audiences, the same bytes; places that survive any order of coming and going."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hub.audience import ELSEWHERE, LOOK_UP, Audience, Board, Group


class One:
    sealed = False

    def __init__(self, fd: int, direct: bool = True) -> None:
        self.fd = fd
        self.direct = direct
        self.group = None
        self.place = ELSEWHERE


def audience(name: str, slot: int) -> Audience:
    return Audience(name, None, "none", slot)


def group_of(*audiences: Audience) -> Group:
    group = Group(frozenset(audiences))
    for one in audiences:
        one.groups.add(group)
    return group


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "flip"]), st.integers(0, 9)), max_size=80))
def test_a_member_stands_in_one_place_whatever_comes_and_goes(steps):
    """fds holds exactly the direct members, each at the place it knows; the others apart; who is alone is known."""
    group = group_of(audience("a", 0))
    members = [One(fd) for fd in range(10)]
    for action, fd in steps:
        one = members[fd]
        if action == "add" and one.group is None:
            group.add(one)
        elif action == "remove" and one.group is not None:
            group.remove(one)
        elif action == "flip":
            one.direct = not one.direct
            if one.group is not None:
                group.replace(one)
        inside = [m for m in members if m.group is group]
        assert sorted(group.fds) == [m.fd for m in inside if m.direct]
        assert set(group.others) == {m for m in inside if not m.direct}
        assert all(group.fds[m.place] == m.fd for m in inside if m.direct)
        assert len(group) == len(inside)
        assert group.alone == (inside[0].fd if len(inside) == 1 and inside[0].direct else ELSEWHERE)


def test_what_is_pending_is_joined_whichever_side_is_the_smaller():
    """Few audiences in a large batch, or a large list and a small batch: the same bytes, the same frames."""
    a, b, c, d = (audience(name, slot) for slot, name in enumerate("abcd"))
    ready = [b"1", b"22", b"", b"4"]
    a.frames, b.frames, d.frames = [b"1"], [b"2", b"2"], [b"4"]
    one, two, all_three, quiet = group_of(a), group_of(a, c), group_of(a, b, c), group_of(c)
    assert one.pending([a, b], ready) == two.pending([a, b, d], ready) == b"1"
    whole, frames = all_three.pending([a, b], ready), list(all_three.pending_frames([a, b]))
    # Which channel comes first is not promised, only that both ways agree on it: the rest of a torn write relies on it.
    assert whole == b"".join(frame for _, frame in frames) and sorted(whole) == sorted(b"122")
    assert [frame for of, frame in frames if of is b] == [b"2", b"2"] and (a, b"1") in frames
    assert quiet.pending([a], ready) == b"" and list(quiet.pending_frames([a])) == []


def test_a_long_list_is_not_gone_through_for_a_small_batch():
    """Only the batch's audiences are looked up then; nothing is read of the rest of the board."""
    many = [audience(str(i), i) for i in range(LOOK_UP * 2 + 1)]
    group, elsewhere = group_of(*many), audience("x", 0)
    many[3].frames, many[5].frames = [b"3"], [b"5", b"5"]
    ready = [b"?"] * len(many)
    ready[3], ready[5] = b"3", b"55"
    assert group.picks_from([many[5], elsewhere, many[3]])
    for dirty, frames in (
        ([many[5], many[3]], [(many[5], b"5"), (many[5], b"5"), (many[3], b"3")]),
        ([elsewhere, many[3]], [(many[3], b"3")]),
    ):
        assert not group.picks_from(dirty) and list(group.pending_frames(dirty)) == frames
        assert group.pending(dirty, ready) == b"".join(frame for _, frame in frames)


def test_a_slot_belongs_to_one_at_a_time_and_is_used_again():
    """The board grows with those who are there at once, not with all who ever were."""
    board = Board()
    slots = [board.take() for _ in range(3)]
    assert sorted(slots) == [0, 1, 2] and board.ready == [b""] * 3
    board.retire(slots[1])
    assert board.take() == 3  # somebody may still pick from it
    board.release()
    assert board.take() == slots[1] and board.take() == 4 and len(board.ready) == 5
