"""The demo page, as it is served by a real hub, in a real Chromium; the scenarios stand in demo_page.mjs."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import nodejs
from tests.hubs import HubProcess

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "hub/static"
DEMO = tomllib.loads((ROOT / "config/demo.toml").read_text())
TICKER = {**DEMO["ticker"], "rate_hz": 25.0, "lease_ttl_s": 1.0}
"""The demo's source, in a hurry: prices come, and after a kill come again, without much waiting."""
BARS = {"mode": "stream", "subscribe": "anyone", "history": "anyone"}
SILENT = {"source": "none"}
PNG = b"\x89PNG\r\n\x1a\n"


def demo_hub(**more: Any) -> HubProcess:
    """A hub with the channels and symbols of config/demo.toml, on ports of its own."""
    return HubProcess({"demo": True, "namespaces": {"bars": BARS, **DEMO["namespaces"]}, "ticker": TICKER, **more})


def as_source(hub: HubProcess) -> str:
    """What a scenario needs to publish in the source's place, and to kill all workers."""
    return json.dumps({"url": hub.api_url, "key": hub.key, "workers": hub.worker_pids()})


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """Of one hub for all tests that leave it as it was."""
    with demo_hub() as hub:
        yield hub.page_url


def chromium_test(test: Any) -> Any:
    """Skip the test where Chromium, Node or its packages are missing."""
    return nodejs.CHROMIUM(nodejs.NODE(nodejs.PACKAGES(test)))


def test_page_and_demo_config_name_the_same_symbols() -> None:
    """The page can't ask for a list, so it has one of its own; it is that of config/demo.toml, in the same order."""
    script = (STATIC / "demo.js").read_text()
    found = re.search(r"const SYMBOLS = \[(.*?)\];", script, re.DOTALL)
    assert found
    assert re.findall(r'"([^"]*)"', found[1]) == DEMO["ticker"]["symbols"]
    most = re.search(r"MOST_SYMBOLS = (\d+);", script)
    assert most and int(most[1]) == DEMO["namespaces"]["ticker"]["watch"]


def test_page_has_no_inline_script_or_style() -> None:
    """The page's Content-Security-Policy forbids both."""
    html = (STATIC / "demo.html").read_text()
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?![^>]*\bsrc=)", html)


@chromium_test
def test_prices_move(page_url: str) -> None:
    """Each symbol gets a price, ACME's changes twice; up and down have a class and a sign; rate and age are told."""
    nodejs.run("demo_page.mjs", "prices", page_url)


@chromium_test
def test_page_reaches_screen_readers(page_url: str, tmp_path: Path) -> None:
    """Table, rows and each control have names; states are said aloud, prices never; nothing flashes unwanted."""
    screenshot = tmp_path / "demo.png"
    nodejs.run("demo_page.mjs", "reaches", page_url, screenshot)
    assert screenshot.read_bytes().startswith(PNG)
    screenshot.unlink()


@chromium_test
def test_page_fits_phones(page_url: str) -> None:
    """On 360 pixels nothing stands beyond the edge, whatever is open; what is touched has 44; the chart is found."""
    nodejs.run("demo_page.mjs", "fitsPhones", page_url)


@chromium_test
def test_symbols_are_found_added_and_removed(page_url: str) -> None:
    """While it runs; the order stays, also over a reload; what storage holds that can't be is passed over."""
    nodejs.run("demo_page.mjs", "changesList", page_url)


@chromium_test
def test_the_rate_is_the_readers(page_url: str) -> None:
    """At one a second there are that many updates, marked with what they stand for; it is remembered."""
    nodejs.run("demo_page.mjs", "changesRate", page_url)


@chromium_test
def test_only_prices_are_sent_where_only_prices_are_wanted(page_url: str) -> None:
    """The switch changes what is on the wire, and the columns with it."""
    nodejs.run("demo_page.mjs", "changesFields", page_url)


@chromium_test
def test_a_slow_phone_gets_the_newest_values(page_url: str) -> None:
    """It comes every two seconds, and each update stands for many values; then it is fast again."""
    nodejs.run("demo_page.mjs", "slow", page_url)


@chromium_test
def test_everything_is_done_by_keys(page_url: str) -> None:
    """In the order of the page, with a focus that is seen, and that is not lost with a line that goes."""
    nodejs.run("demo_page.mjs", "keys", page_url)


@chromium_test
def test_other_wires_bring_the_prices_too(page_url: str) -> None:
    """Event stream and polls: what they don't have is said; pausing and the list work."""
    nodejs.run("demo_page.mjs", "otherWires", page_url)


@chromium_test
def test_durations_of_a_minute(page_url: str) -> None:
    """Median and 99th percentile to three percent; those of a minute ago are gone."""
    nodejs.run("demo_page.mjs", "measures", page_url)


@chromium_test
def test_close_codes_are_obeyed(page_url: str) -> None:
    """After 3001 the page waits, or comes back as soon as the browser is online again; after 3503 it stays away."""
    nodejs.run("demo_page.mjs", "obeys", page_url)


@chromium_test
def test_silent_hub_is_left(page_url: str) -> None:
    """A page that hears no ping in time takes the connection for dead and opens another."""
    nodejs.run("demo_page.mjs", "missesPings", page_url)


@chromium_test
def test_temporary_error_is_tried_again(page_url: str) -> None:
    """A subscription that fails as temporary is asked for again until it holds."""
    nodejs.run("demo_page.mjs", "triesAgain", page_url)


@chromium_test
def test_page_comes_back_after_the_workers_were_killed() -> None:
    """kill -9 of all workers: the page reconnects by itself, prices move again, list and rate are those of before."""
    with demo_hub() as hub:
        nodejs.run("demo_page.mjs", "reconnects", hub.page_url, ",".join(map(str, hub.worker_pids())))


@chromium_test
def test_page_keeps_up_with_a_thousand_updates_a_second() -> None:
    """1,000 updates a second leave the page's timers in time, and the pings among them answered."""
    ticker = {**TICKER, "rate_hz": 1000 / len(TICKER["symbols"]), "share": 1.0}
    client = {"ping_interval_s": 2.0, "pong_timeout_s": 1.0, "connect_timeout_s": 1.0}
    with demo_hub(ticker=ticker, client=client) as hub:
        nodejs.run("demo_page.mjs", "keepsUp", hub.page_url)


@chromium_test
def test_who_pauses_gets_the_newest_value_afterwards() -> None:
    """Nothing comes meanwhile; the value that does says how many it stands for."""
    namespaces = {**DEMO["namespaces"], "ticker": {**DEMO["namespaces"]["ticker"], "stale_ms": 0}}
    with demo_hub(ticker=SILENT, namespaces=namespaces) as hub:
        nodejs.run("demo_page.mjs", "pauses", hub.page_url, as_source(hub))


@chromium_test
def test_silent_sources_and_gaps_are_marked() -> None:
    """In words, and said aloud; the next value takes the mark away, and numbers that were left out are told."""
    namespaces = {**DEMO["namespaces"], "ticker": {**DEMO["namespaces"]["ticker"], "stale_ms": 500}}
    with demo_hub(ticker=SILENT, namespaces=namespaces) as hub:
        nodejs.run("demo_page.mjs", "marks", hub.page_url, as_source(hub))


@chromium_test
def test_the_chart_loads_and_follows_without_a_gap() -> None:
    """Bars that are kept, then each new one, those of a time without connection too; what is missing is told."""
    with demo_hub(ticker=SILENT) as hub:
        nodejs.run("demo_page.mjs", "bars", hub.page_url, as_source(hub))


@chromium_test
def test_a_hub_without_watch_lists_and_bars_has_prices_all_the_same() -> None:
    """Each symbol by itself; what there is not is said."""
    with HubProcess({"demo": True, "ticker": SILENT}) as hub:
        nodejs.run("demo_page.mjs", "bare", hub.page_url, as_source(hub))
