"""Intake: which rows become ticks, by what was published before them, and how the others are counted."""

from __future__ import annotations

import pytest

from hub import intake
from hub.intake import CLOCK_SKEW_NS, MAX_JUMP, Intake, Tally
from hub.tick import Row, Tick, make_tick
from tests.support import async_test

NOW_NS = 10**18


def published(symbol: str = "A", seq: int = 5, time_ns: int = 1000, **more: int) -> Tick:
    return make_tick({"symbol": symbol, "price": 1, "seq": seq, "time_ns": time_ns}, 0, 0) | more


async def taken(before: Tick | None, *rows: dict, era: int = 0, now_ns: int = NOW_NS) -> tuple[list[Tick], dict]:
    """The ticks of these rows of the symbol A, and what was dropped, by reason."""
    tally = Tally()

    async def last(symbols):
        return {"A": before} if before and "A" in symbols else {}

    one = Intake(last, lambda: now_ns, tally)
    found = [Row(f"row {i}", {"symbol": "A", "price": i, **fields}) for i, fields in enumerate(rows)]
    await one.learn(found)
    return one.take(found, era), {reason: count for reason, count in tally.dropped.items() if count}


@pytest.mark.expects_log
@pytest.mark.parametrize(
    ("rows", "kept", "dropped"),
    [
        ([{}, {}], [6, 7], {}),
        ([{"seq": 6}, {"seq": 6}, {"seq": 7}], [6, 7], {"duplicate": 1}),
        ([{"seq": 5}], [], {"duplicate": 1}),
        ([{"seq": 4}], [], {"out_of_order": 1}),
        ([{"seq": 900}, {"seq": 6}], [900], {"out_of_order": 1}),
        ([{"seq": 7, "time_ns": 1}], [7], {}),
        ([{"time_ns": 999}], [], {"out_of_order": 1}),
        ([{"time_ns": 1000}, {"time_ns": 1000}, {"time_ns": 1001}, {"time_ns": 1000}], [6, 7, 8], {"out_of_order": 1}),
        ([{"price": float("nan")}, {"seq": "x"}, {"price": 2**54}], [], {"malformed": 3}),
    ],
)
@async_test
async def test_what_follows_a_tick_of_number_5_and_time_1000(rows, kept, dropped):
    """By its number where it has one, else by its time; a jump is kept; what is left out is counted by reason."""
    ticks, reasons = await taken(published(), *rows)
    assert [tick["seq"] for tick in ticks] == kept
    assert reasons == dropped


@async_test
async def test_a_clock_that_is_a_little_behind_does_not_turn_time_back():
    """Ticks without a time take the newest one's until the clock has caught up; one that is far ahead was wrong."""
    ((tick,), _), ((far,), _) = [
        await taken(published(time_ns=NOW_NS + ahead), {}) for ahead in (CLOCK_SKEW_NS, CLOCK_SKEW_NS + 1)
    ]
    assert (tick["time_ns"], far["time_ns"]) == (str(NOW_NS + CLOCK_SKEW_NS), str(NOW_NS))


@pytest.mark.expects_log
@async_test
async def test_one_time_that_is_yet_to_come_does_not_make_all_later_ones_old():
    """Whether it has a number or not, and whatever was published before; a source's clock may be a little ahead."""
    far, near = {"time_ns": NOW_NS + CLOCK_SKEW_NS + 1}, {"time_ns": NOW_NS + CLOCK_SKEW_NS}
    for before in (None, published(time_ns=NOW_NS - 5)):
        ticks, dropped = await taken(before, far, far | {"seq": 50}, {"time_ns": NOW_NS}, near)
        assert [tick["price"] for tick in ticks] == [2, 3] and dropped == {"ahead": 2}
    # One of before this was looked at.
    ticks, dropped = await taken(published(time_ns=NOW_NS * 5), {"time_ns": NOW_NS}, {"time_ns": NOW_NS - 1})
    assert [tick["seq"] for tick in ticks] == [6] and dropped == {"out_of_order": 1}


@pytest.mark.expects_log
@pytest.mark.parametrize(
    ("numbers", "kept", "ahead"),
    [
        ([MAX_JUMP + 5, 6], [MAX_JUMP + 5], 0),
        ([MAX_JUMP + 6, 6, 7], [6, 7], 1),
        ([2**53, 2**53, 6, 2**53, 7], [6, 7], 3),
        ([2**52, 2**52 + 1, 2**52 + 2], [2**52 + 1, 2**52 + 2], 1),
        ([2**51, 2**52], [2**52], 1),
        ([2**52, 6, 2**52 + 1], [6], 2),
    ],
)
@async_test
async def test_one_number_that_no_source_can_have_reached_does_not_make_all_later_ones_old(numbers, kept, ahead):
    """Only the second one in a row is believed: so a source that does jump is not refused for good either."""
    ticks, dropped = await taken(published(), *({"seq": seq} for seq in numbers))
    assert [tick["seq"] for tick in ticks] == kept
    assert dropped.get("ahead", 0) == ahead


@pytest.mark.expects_log
@async_test
async def test_what_was_doubtful_in_one_era_says_nothing_of_the_next():
    """A new session of the source is the way out of whatever got through."""
    tally = Tally()

    async def last(symbols):
        return {"A": published()}

    one = Intake(last, lambda: NOW_NS, tally)
    seqs = []
    for seq, era in ((2**53 - 1, 0), (2**52, 1), (3, 2), (2**53, 2), (4, 2)):
        rows = [Row("here", {"symbol": "A", "price": 1, "seq": seq})]
        await one.learn(rows)
        seqs += [tick["seq"] for tick in one.take(rows, era)]
    assert seqs == [2**52, 3, 4] and tally.dropped["ahead"] == 2


@async_test
async def test_in_another_era_anything_may_follow():
    """Lower numbers, earlier times; the tick says which era it is of, and within it order holds again."""
    ticks, _ = await taken(published(), {"seq": 1, "time_ns": 1}, era=2)
    assert [(tick["seq"], tick["era"]) for tick in ticks] == [(1, 2)]
    assert (await taken(published(seq=5, era=2), {"seq": 6}, era=2))[0][0]["seq"] == 6


@pytest.mark.expects_log
@async_test
async def test_in_its_era_a_known_tick_counts(caplog):
    """The line in the log says where it was and what it came after."""
    assert await taken(published(era=2), {"seq": 5}, era=2) == ([], {"duplicate": 1})
    assert caplog.messages == ["the ticker dropped row 0: A: seq 5 after 5"]


@pytest.mark.expects_log
@async_test
async def test_symbols_beyond_the_bound_are_dropped_and_known_ones_are_not(monkeypatch):
    """Of three symbols two are taken, also later on."""
    monkeypatch.setattr(intake, "MAX_SYMBOLS", 2)
    tally = Tally()

    async def last(symbols):
        return {}

    one = Intake(last, lambda: 1, tally)
    for _ in range(2):
        rows = [Row("here", {"symbol": symbol, "price": 1}) for symbol in "ABC"]
        await one.learn(rows)
        assert [tick["symbol"] for tick in one.take(rows, 0)] == ["A", "B"]
    assert tally.dropped["symbols"] == 2


@async_test
async def test_each_symbol_is_looked_up_once():
    """And what was published of it is told then."""
    asked = []

    async def last(symbols):
        asked.append(list(symbols))
        return {"A": published()} if "A" in symbols else {}

    one = Intake(last, lambda: 1, Tally())
    row_a, row_b = (Row("here", {"symbol": symbol, "price": 1}) for symbol in "AB")
    assert await one.learn([row_a, row_a, Row("bad", None)]) == {"A": published()}
    assert await one.learn([row_a, row_b]) == {}
    assert await one.learn([row_a]) == {}
    assert asked == [["A"], ["B"]]


@async_test
async def test_numbers_end_where_javascript_ends():
    """Behind 2^53 a tick is refused rather than given a number that would be rounded."""
    ticks, _ = await taken(published(seq=2**53 - 1), {})
    assert ticks[0]["seq"] == 2**53


@pytest.mark.expects_log
def test_a_tally_reads_as_a_line_and_tells_losses_apart():
    """What was published is no loss."""
    tally = Tally()
    none = tally.losses()
    tally.published += 3
    assert tally.losses() == none
    assert str(tally) == "3 ticks published, 0 merged, 0 dropped, 0 bars, 0 late"
    tally.drop("duplicate", "x")
    tally.drop("malformed", "y")
    assert tally.losses() != none
    assert str(tally) == "3 ticks published, 0 merged, 2 dropped (1 malformed, 1 duplicate), 0 bars, 0 late"
