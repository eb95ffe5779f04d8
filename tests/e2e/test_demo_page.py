"""The demo page, as it is served by a real hub, in a real Chromium; the scenarios stand in demo_page.mjs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import nodejs
from tests.hubs import HubProcess

ROOT = Path(__file__).parents[2]
DEMO = tomllib.loads((ROOT / "config/demo.toml").read_text())
TICKER = {**DEMO["ticker"], "rate_hz": 25.0, "lease_ttl_s": 1.0}
"""The demo's source, in a hurry: prices come, and after a kill come again, without much waiting."""
PNG = b"\x89PNG\r\n\x1a\n"


def demo_hub(**more: Any) -> HubProcess:
    """A hub with the channels and symbols of config/demo.toml, on ports of its own."""
    return HubProcess({"demo": True, "namespaces": DEMO["namespaces"], "ticker": TICKER, **more})


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
    found = re.search(r"const SYMBOLS = \[(.*?)\];", (ROOT / "hub/static/demo.js").read_text(), re.DOTALL)
    assert found
    assert re.findall(r'"([^"]*)"', found[1]) == DEMO["ticker"]["symbols"]


def test_page_has_no_inline_script_or_style() -> None:
    """The page's Content-Security-Policy forbids both."""
    html = (ROOT / "hub/static/demo.html").read_text()
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?![^>]*\bsrc=)", html)


@chromium_test
def test_prices_move(page_url: str) -> None:
    """Each symbol gets a price, ACME's changes twice, messages count; up and down have a class and a sign each."""
    nodejs.run("demo_page.mjs", "prices", page_url)


@chromium_test
def test_page_reaches_phones_and_screen_readers(page_url: str, tmp_path: Path) -> None:
    """Nothing stands beyond a phone's edge; table, rows and field have names; states are said aloud, prices never."""
    screenshot = tmp_path / "demo.png"
    nodejs.run("demo_page.mjs", "reaches", page_url, screenshot)
    assert screenshot.read_bytes().startswith(PNG)
    screenshot.unlink()


@chromium_test
def test_two_pages_chat(page_url: str) -> None:
    """A message reaches both pages as text, whatever it holds, and the last twenty stay."""
    nodejs.run("demo_page.mjs", "chat", page_url)


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
    """kill -9 of all workers: the page reconnects by itself, and prices move again."""
    with demo_hub() as hub:
        nodejs.run("demo_page.mjs", "reconnects", hub.page_url, ",".join(map(str, hub.worker_pids())))


@chromium_test
def test_page_keeps_up_with_a_thousand_updates_a_second() -> None:
    """1,000 updates a second leave the page's timers in time, and the pings among them answered."""
    ticker = {**TICKER, "rate_hz": 1000 / len(TICKER["symbols"]), "share": 1.0}
    client = {"ping_interval_s": 2.0, "pong_timeout_s": 1.0, "connect_timeout_s": 1.0}
    with demo_hub(ticker=ticker, client=client) as hub:
        nodejs.run("demo_page.mjs", "keepsUp", hub.page_url)
