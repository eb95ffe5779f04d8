"""Rates, on a fake clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hub.limits import MOST_OFFENDED_S, Account, TokenBucket
from tests.support import FakeClock


def test_a_quiet_second_allows_a_burst_and_then_the_rate_holds():
    """10 a second: 10 at once, then one every 100 ms."""
    clock = FakeClock()
    bucket = TokenBucket(10, clock)
    assert [bucket.take() for _ in range(12)] == [True] * 10 + [False] * 2
    clock.advance(0.11)
    assert bucket.take() and not bucket.take()
    clock.advance(100)
    assert [bucket.take() for _ in range(11)] == [True] * 10 + [False]


def test_a_rate_of_zero_is_no_limit():
    """Whatever is asked for is given."""
    bucket = TokenBucket(0, FakeClock())
    assert all(bucket.take() for _ in range(10_000))


@given(st.integers(1, 50), st.lists(st.floats(0, 0.5), max_size=200))
def test_no_second_gives_more_than_two_bursts_and_nothing_is_withheld_for_ever(per_s, pauses):
    """Over any time t at most rate × (t + 1) are given, and after a pause of 1/rate there is always one."""
    clock = FakeClock(0.0)
    bucket = TokenBucket(per_s, clock)
    given_ = 0
    for pause in pauses:
        clock.advance(pause)
        given_ += bucket.take()
        assert given_ <= per_s * (clock() + 1) + 1
    clock.advance(1 / per_s + 1e-6)
    assert bucket.take()


def test_an_account_has_so_many_handshakes_and_offences_take_them():
    """A tenth of a second for one handshake, and a second for one offence, whether that is there or not."""
    account = Account("203.0.113.7")
    assert [account.greet(0.0, 0.1) for _ in range(12)] == [True] * 10 + [False] * 2
    account.offend(0.0, 1.0)
    assert not account.greet(1.0, 0.1) and account.greet(1.2, 0.1)
    assert not account.settled(2.0) and account.settled(3.0)


def test_offences_keep_nobody_out_for_minutes():
    """A thousand connections that are ended in one moment; and the bound takes nothing back."""
    account = Account("203.0.113.7")
    for _ in range(1000):
        account.offend(0.0, 0.2)
    assert not account.greet(MOST_OFFENDED_S - 1.5, 0.01) and account.greet(MOST_OFFENDED_S, 0.01)
    account.offend(5.0, 60.0)
    assert account.handshakes_at == 5.0 + MOST_OFFENDED_S
    account.offend(0.0, 60.0)
    assert account.handshakes_at == 5.0 + MOST_OFFENDED_S


def test_an_account_has_so_many_knocks():
    """Of a rate of their own; and it is not forgotten while one of them is owed."""
    account = Account("203.0.113.7")
    assert [account.knock(0.0, 0.1) for _ in range(12)] == [True] * 10 + [False] * 2
    assert account.knock(0.11, 0.1) and not account.knock(0.11, 0.1)
    assert not account.settled(1.0) and account.settled(1.2)
    account.busy_at = 9.0
    assert not account.settled(8.0) and account.settled(9.0)
