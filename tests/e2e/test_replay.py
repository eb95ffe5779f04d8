"""Real prices: the monthly stock prices of PyPI `vega_datasets`, replayed by a hub to a client that is not ours."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import vega_datasets

from tests.hubs import HubFailed, HubProcess
from tests.plane import Client, client
from tests.support import async_test

STOCKS = Path(vega_datasets.__file__).parent / "_data" / "stocks.csv"
SPEED = 1_000_000_000
"""Ten years in a third of a second, so that the five symbols, one behind the other, are a round of two seconds."""

Price = tuple[str, float, str]
"""Symbol, price, and nanoseconds since 1970 as text."""


def rows() -> list[Price]:
    """The file's rows in its order, read without the hub's own reader."""
    with STOCKS.open(newline="") as file:
        return [(row["symbol"], float(row["price"]), nanoseconds(row["date"])) for row in csv.DictReader(file)]


def nanoseconds(date: str) -> str:
    return f"{int(datetime.strptime(date, '%b %d %Y').replace(tzinfo=UTC).timestamp())}000000000"


async def ticks(one: Client) -> AsyncIterator[dict[str, Any]]:
    while True:
        push = await one.push()
        assert push["channel"] == f"ticker:{push['pub']['data']['symbol']}"
        yield push["pub"]["data"]


@async_test
async def test_the_stock_series_arrives_complete_and_in_order():
    """A round that began after the subscriptions: every row of the file, none twice, each symbol's in its order, exact.

    The file is played in a loop and a tick's `seq` tells its round, so it does not matter when the client came.
    """
    expected = rows()
    lengths = Counter(symbol for symbol, _, _ in expected)
    assert len(expected) > 500 and len(lengths) == 5
    ticker = {"source": "replay", "file": str(STOCKS), "speed": SPEED, "loop": True}
    with HubProcess({"workers": 2, "ticker": ticker}) as hub:
        async with client(hub.ws_url) as one:
            for symbol in lengths:
                await one.subscribe(f"ticker:{symbol}")
            heard: dict[int, list[Price]] = {}
            begun: dict[str, int] = {}
            async for tick in ticks(one):
                symbol, number = tick["symbol"], tick["seq"] - 1
                played, place = divmod(number, lengths[symbol])
                # The first round of which this symbol can be complete.
                begun.setdefault(symbol, played + (place > 0))
                heard.setdefault(played, []).append((symbol, tick["price"], tick["time_ns"]))
                whole = max(begun.values())
                if len(begun) == len(lengths) and played == whole and len(heard[whole]) == len(expected):
                    break
            # In each channel's order: of ticks that leave in one write, channels may change places.
            assert by_symbol(heard[whole]) == by_symbol(expected)


def by_symbol(prices: list[Price]) -> dict[str, list[Price]]:
    """Each symbol's own prices, in their order."""
    found: dict[str, list[Price]] = {}
    for price in prices:
        found.setdefault(price[0], []).append(price)
    return found


def test_a_missing_file_stops_the_start(tmp_path):
    """Exit status 2 and one line that names the setting and the path; nothing was started before."""
    path = tmp_path / "prices.csv"
    with pytest.raises(HubFailed) as failed, HubProcess({"ticker": {"source": "replay", "file": str(path)}}):
        pass
    assert failed.value.status == 2
    (line,) = failed.value.text.splitlines()
    assert line.startswith(f"hub: ticker.file: found No such file or directory at '{path}'; allowed: a CSV file")
