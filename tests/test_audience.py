"""Groups: the same audiences, the same bytes; places that survive any order of coming and going."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hub.audience import ELSEWHERE, Audience, Group


class One:
    def __init__(self, fd: int, direct: bool = True) -> None:
        self.fd = fd
        self.direct = direct
        self.group = None
        self.place = ELSEWHERE


def audience(name: str, ready: bytes = b"") -> Audience:
    one = Audience(name, None, "none", hash(name))
    one.ready = ready
    return one


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "flip"]), st.integers(0, 9)), max_size=80))
def test_a_member_stands_in_one_place_whatever_comes_and_goes(steps):
    """fds holds exactly the direct members, each at the place it knows; the others stand apart."""
    group = Group(0, frozenset())
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


def test_what_is_pending_is_joined_whichever_side_is_the_smaller():
    """Few audiences in a large batch, or a large list and a small batch: the same bytes for the same group."""
    a, b, c = audience("a", b"1"), audience("b", b"2"), audience("c")
    assert Group(0, frozenset([a])).pending([a, b]) == b"1"
    assert Group(0, frozenset([a, c])).pending([a, b, audience("d", b"4")]) == b"1"
    both = Group(0, frozenset([a, b, c]))
    assert sorted(both.pending([a, b])) == sorted(b"12")
    assert both.pending([b]) == b"2"
    assert Group(0, frozenset([c])).pending([a]) == b""
