"""Bars: what ticks make of them, when they are closed, and that they can be written, read and formed once more."""

from __future__ import annotations

import orjson
import pytest

from hub.bars import ERAS_PER_EPOCH, INTERVALS_NS, Bar, Bars, read_entry, version_of
from hub.message import encode_body
from hub.tick import Tick, make_tick
from hub.values import BAR_INTERVALS

SECOND = 10**9
MAX_VERSION = 2**53


def tick(at_s: float, price: float = 1, seq: int = 1, symbol: str = "A", volume: float = 1) -> Tick:
    return make_tick(
        {"symbol": symbol, "price": price, "seq": seq, "volume": volume, "time_ns": int(at_s * SECOND)}, 0, 0
    )


def new(*intervals: str, wait_s: float = 5, era: int = 0) -> Bars:
    return Bars("bars", intervals or ("1s",), int(wait_s * SECOND), era)


def closed(bars: Bars) -> list[dict]:
    return [orjson.loads(bar.body)["data"] for bar in bars.take_closed(bars.closing())]


def test_a_bar_has_what_its_ticks_had():
    """First, highest, lowest, last price, the sum of volumes, how many, from which number to which, and its begin."""
    bars = new("1m")
    bars.take([tick(61, 5, 3), tick(70, 9, 4), tick(80, 2, 7), tick(119.999, 4, 8, volume=2.5), tick(120, 1, 9)])
    assert closed(bars) == [
        {
            "symbol": "A",
            "interval": "1m",
            "time_ns": "60000000000",
            "open": 5,
            "high": 9,
            "low": 2,
            "close": 4,
            "volume": 5.5,
            "count": 4,
            "first_seq": 3,
            "last_seq": 8,
            "final": True,
        }
    ]


def test_an_interval_without_a_tick_has_no_bar():
    """Three seconds of silence are no bars."""
    bars = new()
    bars.take([tick(1), tick(5), tick(6)])
    assert [bar["time_ns"] for bar in closed(bars)] == ["1000000000", "5000000000"]


def test_times_before_1970_have_bars_too():
    """A bar begins at or before its ticks, also there."""
    bars = new("1m")
    bars.take([tick(-61), tick(-60), tick(0)])
    assert [bar["time_ns"] for bar in closed(bars)] == ["-120000000000", "-60000000000"]


def test_silent_symbols_are_closed_by_the_time_of_others():
    """Not before `wait` beyond the end of the bar, and in the order of their names."""
    bars = new(wait_s=2)
    bars.take([tick(10, symbol="B"), tick(10, symbol="A"), tick(12.9, symbol="C")])
    bars.settle()
    assert closed(bars) == []
    bars.take([tick(13, symbol="C")])
    bars.settle()
    assert [bar["symbol"] for bar in closed(bars)] == ["C", "A", "B"]


def test_time_that_goes_back_closes_nothing():
    """The source's time is that of its newest batch: in a file that has one symbol after the other none is late."""
    bars = new(wait_s=0)
    bars.take([tick(1000, symbol="A")])
    bars.settle()
    for at in (10, 10.5, 11):
        bars.take([tick(at, symbol="B")])
        bars.settle()
    assert [(bar["symbol"], bar["count"]) for bar in closed(bars)] == [("B", 2)]
    assert bars.late == 0


def test_a_late_tick_changes_no_bar():
    """Neither a closed one nor the forming one; it is counted."""
    bars = new(wait_s=0)
    bars.take([tick(10), tick(11, 5), tick(10.5, 99)])
    assert (bars.late, [bar["high"] for bar in closed(bars)]) == (1, [1])
    bars.take([tick(20, symbol="B")])
    bars.settle()
    bars.take([tick(11.5, 99)])
    assert (bars.late, [bar["high"] for bar in closed(bars)]) == (2, [5])


def test_a_bar_whose_beginning_is_unknown_says_so():
    """Only where the tick before was in this very bar, and only in that bar."""
    bars = new("1s", "1m")
    bars.know("A", 30 * SECOND)
    bars.take([tick(31)])
    assert bars.opened_partial
    bars.take([tick(60), tick(120)])
    assert [(bar["interval"], bar.get("partial")) for bar in closed(bars)] == [
        ("1s", None), ("1m", True), ("1s", None), ("1m", None),
    ]  # fmt: skip


def test_states_and_replays_go_on_exactly():
    """Wherever another one takes over, from a state and the ticks since, its bars are the same, to the last digit."""
    ticks = [tick(i * 0.3, 0.1 * (i % 7), i, volume=0.1) for i in range(1, 60)]
    whole = new("1s", "5s")
    whole.take(ticks)
    expected = closed(whole)
    for cut in range(len(ticks)):
        for saved in (0, cut // 2, cut):
            first, second = new("1s", "5s"), new("1s", "5s")
            first.take(ticks[:saved])
            states = dict(first.take_states())
            first.take(ticks[saved:cut])
            for symbol, state in states.items():
                second.restore(symbol, state)
            second.replay(ticks[saved:cut])
            second.take(ticks[cut:])
            assert closed(first) + closed(second) == expected


def test_a_symbol_without_forming_bars_has_an_empty_state():
    """Told once, and of the symbols that are asked for."""
    bars = new(wait_s=0)
    bars.take([tick(1, symbol="A"), tick(100, symbol="B")])
    bars.settle()
    assert bars.take_states(["A", "C"]) == [("A", b"")]
    assert [symbol for symbol, state in bars.take_states() if state] == ["B"]
    assert bars.take_states() == []


def test_another_era_closes_all_and_may_begin_in_the_past():
    """Its bars say so, and their versions are above all before."""
    bars = new()
    bars.take([tick(100)])
    bars.begin(1)
    bars.take([tick(50), tick(51)])
    found = bars.take_closed(["A"])
    assert [orjson.loads(bar.body)["data"].get("era") for bar in found] == [None, 1]
    assert found[0].version < found[1].version and found[0].epoch == found[1].epoch


def test_versions_grow_with_era_and_time_and_are_whole_numbers_everywhere():
    """From the earliest tick of an era to the latest, and on to the next era."""
    first, last = -(10**19 - 1) // SECOND, (10**19 - 1) // SECOND
    versions = [version_of(era, index)[0] for era in (0, 1, ERAS_PER_EPOCH - 1) for index in (first, -1, 0, last)]
    assert versions == sorted(set(versions))
    assert versions[0] >= 1 and versions[-1] < MAX_VERSION
    assert version_of(ERAS_PER_EPOCH, 0) == (version_of(0, 0)[0], "1")


def test_a_sum_of_volumes_beyond_what_json_holds_is_written_all_the_same():
    """Two thousand times the largest volume is more than 64 bits."""
    bars = new()
    bars.take([tick(1, seq=i, volume=2**53) for i in range(5000)] + [tick(2)])
    assert [bar["volume"] for bar in closed(bars)] == [5000.0 * 2**53]


@pytest.mark.parametrize("name", sorted(INTERVALS_NS))
def test_each_interval_is_as_long_as_its_name_says(name):
    """And is one that the settings know."""
    assert name in BAR_INTERVALS and len(BAR_INTERVALS) == len(INTERVALS_NS)
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}[name[-1]]
    assert INTERVALS_NS[name] == int(name[:-1]) * unit * SECOND


def test_an_entry_is_read_back():
    """Whatever stands in the body."""
    bar = Bar("bars:1m:A", 7, "0", encode_body({"text": "a\nb"}))
    assert read_entry(bar.entry()) == bar
