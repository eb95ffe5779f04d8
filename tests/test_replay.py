"""Replay: files of many shapes, their order, their pace, and where a next leader goes on."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from vega_datasets import data

from hub.errors import BootError
from hub.replay import MAX_LINE_BYTES, Replay, check_file, parse_time
from hub.sections import TickerSettings
from hub.tick import Batch
from tests.support import FakeClock, async_test

STOCKS = Path(data.stocks.filepath)


def sleep_on(clock: FakeClock) -> Callable[[float], Awaitable[None]]:
    """A sleep that moves the clock and takes no time."""

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(0)

    return sleep


async def nothing_published(_: object) -> dict:
    return {}


def replay(path: Path, clock: FakeClock | None = None, **settings: object) -> Replay:
    clock = clock or FakeClock()
    return Replay(TickerSettings(source="replay", file=str(path), **settings), clock, sleep_on(clock))


async def play(source: Replay, position: str = "", most: int = 10_000) -> list[Batch]:
    """At most `most` batches."""
    batches = source.batches(position, nothing_published)
    found = []
    async for batch in batches:
        found.append(batch)
        if len(found) == most:
            break
    await batches.aclose()
    return found


def prices(batches: list[Batch]) -> list[float]:
    return [row.fields["price"] for batch in batches for row in batch.rows]


def written(tmp_path: Path, text: str | bytes, name: str = "ticks.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@async_test
async def test_the_vega_stocks_come_complete_and_in_order():
    """560 real rows with the columns symbol, date, price, which are not sorted by time: none is lost or moved."""
    batches = await play(replay(STOCKS, speed=0))
    lines = STOCKS.read_text().splitlines()
    expected = [(row["symbol"], float(row["price"])) for row in csv.DictReader(lines)]
    assert [(row.fields["symbol"], row.fields["price"]) for batch in batches for row in batch.rows] == expected
    assert len(expected) == 560
    assert not any(batch.faults for batch in batches)


@async_test
async def test_a_next_leader_goes_on_at_any_position():
    """Whichever batch was the last one published, what follows is the rest, exactly."""
    whole = await play(replay(STOCKS, speed=0))
    for i in (0, 1, 77, len(whole) - 1):
        assert await play(replay(STOCKS, speed=0), whole[i].position) == whole[i + 1 :]


@async_test
async def test_rows_of_one_time_are_one_batch_cut_to_the_setting(tmp_path):
    """Three rows of one second, at most two in a batch; the next second is a batch of its own."""
    path = written(tmp_path, "time,symbol,price,volume\n1,A,1,5\n1,B,2,5\n1,C,3,5\n2,A,4,5\n")
    batches = await play(replay(path, speed=0, batch=2))
    assert [[row.fields["price"] for row in batch.rows] for batch in batches] == [[1, 2], [3], [4]]
    expected = {"symbol": "A", "price": 1, "volume": 5, "time_ns": 1_000_000_000}
    assert batches[0].rows[0] == ("line 2", expected)


@async_test
async def test_the_pace_is_the_recordings_times_the_speed(tmp_path):
    """Rows 0, 10 and 40 s into the recording come 0, 5 and 20 s after the first at speed 2, however slow the reader."""
    path = written(tmp_path, "time,symbol,price\n1000,A,1\n1010,A,2\n1040,A,3\n")
    clock, came = FakeClock(0), []
    async for _ in replay(path, clock, speed=2).batches("", nothing_published):
        came.append(clock())
        clock.advance(1)  # the publication takes a second, which must not be added up
    assert came == [0, 5, 20]


@async_test
async def test_time_that_runs_backwards_is_not_waited_for(tmp_path):
    """A second symbol's series behind the first one's begins at once and keeps its own pace."""
    path = written(tmp_path, "time,symbol,price\n1000,A,1\n2000,A,2\n1000,B,3\n1500,B,4\n")
    clock, came = FakeClock(0), []
    async for _ in replay(path, clock).batches("", nothing_published):
        came.append(clock())
    assert came == [0, 1000, 1000, 1500]


@async_test
async def test_a_loop_begins_again_and_counts_its_rounds(tmp_path):
    """Behind the last row comes the first, a second later; the position tells the rounds apart."""
    path = written(tmp_path, "time,symbol,price\n1,A,1\n2,A,2\n")
    clock = FakeClock(0)
    batches = await play(replay(path, clock, loop=True), most=5)
    assert prices(batches) == [1, 2, 1, 2, 1]
    assert [batch.position.split(":")[0] for batch in batches] == ["0", "0", "1", "1", "2"]
    assert clock() == 4
    assert prices(await play(replay(path, loop=True), batches[3].position, most=1)) == [1]


@async_test
async def test_a_loop_without_a_row_ends(tmp_path):
    """A file of nothing but a header, or of nothing but faults, is not read over and over."""
    assert await play(replay(written(tmp_path, "time,symbol,price\n"), loop=True)) == []
    [batch] = await play(replay(written(tmp_path, "time,symbol,price\nx\n"), loop=True))
    assert len(batch.faults) == 1


@async_test
async def test_malformed_lines_are_named_and_the_others_play(tmp_path):
    """Too few columns, no time, no number, bad UTF-8 and a lost quote each cost their own line, a blank one nothing."""
    lines = [b"time,symbol,price", b"1,A,1", b"1,A", b"soon,A,2", b"1,A,cheap", b"1,\xff,1", b'1,"A,1', b"", b"2,A,3"]
    batches = await play(replay(written(tmp_path, b"\n".join(lines)), speed=0))
    assert prices(batches) == [1, 3]
    faults = [fault for batch in batches for fault in batch.faults]
    assert [fault.split(":")[0] for fault in faults] == ["line 3", "line 4", "line 5", "line 6", "line 7"]
    assert faults[0] == "line 3: found 2 columns; allowed: 3, as in the header"
    assert faults[2] == "line 5: price: found 'cheap'; allowed: a number"


@async_test
async def test_an_endless_line_is_skipped_as_one_fault(tmp_path):
    """A line of three times the limit is one fault, and its tail is not taken for a row."""
    tail = "x" * (MAX_LINE_BYTES * 3) + "\n"
    path = written(tmp_path, "time,symbol,price\n1,A,1\n" + tail + "2,A,2\n")
    batches = await play(replay(path, speed=0))
    assert prices(batches) == [1, 2]
    assert [f for b in batches for f in b.faults] == [f"line 3: longer than {MAX_LINE_BYTES} bytes"]
    assert batches[-1].rows[0].where == "line 4"


@async_test
async def test_faults_without_end_still_come_in_slices(tmp_path):
    """A thousand bad lines are not read in one go: each slice gives the loop back."""
    path = written(tmp_path, "time,symbol,price\n" + "bad\n" * 1000)
    assert [len(batch.faults) for batch in await play(replay(path, batch=100))] == [100] * 10


@async_test
async def test_jsonl_has_the_same_rows(tmp_path):
    """Objects, one a line, keep their types; a line of another kind is a fault."""
    text = '{"time":"2024-01-02T03:04:05Z","symbol":"A","price":1.5,"volume":2,"bid":1.4}\n[1]\n{"ticker":"B"}\n{\n'
    [batch] = await play(replay(written(tmp_path, text, "ticks.jsonl"), speed=0))
    time_ns = 1_704_164_645_000_000_000
    assert [row.fields for row in batch.rows] == [
        {"symbol": "A", "price": 1.5, "volume": 2, "bid": 1.4, "time_ns": time_ns}
    ]
    assert [fault.split(":")[0] for fault in batch.faults] == ["line 2", "line 3", "line 4"]


@async_test
async def test_other_names_byte_order_mark_and_quotes_are_understood(tmp_path):
    """What spreadsheets and vendors write: a mark, capitals, Date, Ticker, Close, quotes, empty optional fields."""
    text = '\ufeff"Date",Ticker,Open,Close,Volume\r\n2024-01-02,"A",0.5,1.5,\r\n'
    [batch] = await play(replay(written(tmp_path, text), speed=0))
    assert batch.rows[0].fields == {"symbol": "A", "price": 1.5, "time_ns": 1_704_153_600_000_000_000}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1700000000", "1700000000"),
        ("1700000000.123456789", "1700000000.123456789"),
        ("1700000000123", "1700000000.123"),
        ("1700000000123456", "1700000000.123456"),
        ("1700000000123456789", "1700000000.123456789"),
        (1700000000.5, "1700000000.5"),
        ("-86400", "-86400"),
        ("2023-11-14T22:13:20Z", "1700000000"),
        ("2023-11-14 23:13:20.000001+01:00", "1700000000.000001"),
        ("2000-01-01", "946684800"),
        ("Jan 1 2000", "946684800"),
    ],
)
def test_times_of_many_forms_are_exact(text, seconds):
    """Nanoseconds come out as they went in; what has no offset is UTC."""
    whole, _, fraction = seconds.partition(".")
    assert parse_time(text) == int(whole + fraction.ljust(9, "0"))


@pytest.mark.parametrize("text", ["", None, "nan", "1e999999999", "yesterday", "2024-13-01", [1]])
def test_a_time_that_is_none_is_refused(text):
    """Among them one that Python would gladly spend all memory on."""
    with pytest.raises(ValueError, match=r"^time: found .*allowed: ISO 8601"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "No such file or directory"),
        ("", "an empty first line"),
        ("time,price\n1,2\n", "a header line without symbol"),
        ("2024-01-01,A,5\n", "a header line without time, symbol, price"),
        (b"\xff\xfe\n", "a header line that is not CSV"),
    ],
)
def test_an_unusable_file_stops_the_start_with_one_line(tmp_path, text, found):
    """The line names the setting, what was found, where, and what is allowed."""
    path = tmp_path / "absent.csv" if text is None else written(tmp_path, text)
    with pytest.raises(BootError, match=f"^ticker.file: found {found}.* at .*; allowed: a CSV file with") as error:
        check_file(str(path))
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_not_opened(tmp_path):
    """A directory, and a FIFO whose opening would hang the start."""
    with pytest.raises(BootError, match="found something that is not a file"):
        check_file(str(tmp_path))


@async_test
async def test_each_round_is_a_session_of_its_own(tmp_path):
    """Its times are those of the round before once more, and must not count as out of order."""
    path = tmp_path / "prices.csv"
    path.write_text("time,symbol,price\n1,A,1\n2,A,2\n")
    settings = TickerSettings(source="replay", file=str(path), speed=0, loop=True)
    clock = FakeClock()

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    batches = Replay(settings, clock, sleep).batches("", nothing_published)
    assert [(await anext(batches)).session for _ in range(5)] == ["", "", "1", "1", "2"]
    await batches.aclose()
