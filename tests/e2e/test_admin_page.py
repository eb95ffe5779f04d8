"""The admin page, as it is served by a real hub, in a real Chromium; the scenarios stand in admin_page.mjs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import nodejs
from tests.hubs import HubProcess

STATIC = Path(__file__).parents[2] / "hub/static"
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
USERS = ("ann", "bob", EVIL)
SCREENSHOT = Path(__file__).parents[2] / "config/admin.png"
MAX_SCREENSHOT_BYTES = 200_000


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """One for all tests that leave it as it was."""
    with HubProcess() as one:
        yield one


def chromium_test(test: Any) -> Any:
    """Skip the test where Chromium, Node or its packages are missing."""
    return nodejs.CHROMIUM(nodejs.NODE(nodejs.PACKAGES(test)))


def run(scenario: str, hub: HubProcess) -> None:
    about = {
        "url": hub.api_url.removesuffix("/api"),
        "key": hub.key,
        "ws": hub.ws_url,
        "tokens": {user: hub.token(user, 600) for user in USERS},
        "workers": hub.worker_pids(),
    }
    nodejs.run("admin_page.mjs", scenario, json.dumps(about))


def test_page_has_no_inline_script_or_style_and_builds_no_html() -> None:
    """The policy forbids the first two; the third would make HTML of what clients send."""
    html = (STATIC / "admin.html").read_text()
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?![^>]*\bsrc=)", html)
    for name in ("admin.js", "admin_chart.js", "admin_link.js"):
        script = (STATIC / name).read_text()
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
        assert not found, name
        assert "http://" not in script and "https://" not in script.replace("https://centrifugal.dev", "")


def test_screenshot_is_small() -> None:
    """The README shows it."""
    content = SCREENSHOT.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) <= MAX_SCREENSHOT_BYTES


@chromium_test
def test_signing_in_and_out(hub: HubProcess) -> None:
    """A wrong key is told; the right one is kept in this tab alone, not in the address, and gone behind a sign-out."""
    run("signs", hub)


@chromium_test
def test_figures_follow_the_clients(hub: HubProcess) -> None:
    """Totals, charts and workers: seven come, talk, and go; all workers together or each by itself."""
    run("counts", hub)


@chromium_test
def test_clients_are_found_and_disconnected(hub: HubProcess) -> None:
    """By user and by address; not without being asked again; who is disconnected is closed with 3503."""
    run("disconnects", hub)


@chromium_test
def test_long_lists_have_pages(hub: HubProcess) -> None:
    """Each connection once, forward and back to the first."""
    run("pages", hub)


@chromium_test
def test_a_test_publish_arrives(hub: HubProcess) -> None:
    """To a channel that was searched for; what is no JSON, or no channel, is told."""
    run("publishes", hub)


@chromium_test
def test_traces_show_frames_without_secrets(hub: HubProcess) -> None:
    """Payloads only where they are asked for, tokens never; until it is stopped."""
    run("traces", hub)


@chromium_test
def test_what_is_listed_can_be_traced(hub: HubProcess) -> None:
    """A client by itself, to its end; a channel, with its subscribers."""
    run("tracesFound", hub)


@chromium_test
def test_what_clients_send_is_text(hub: HubProcess) -> None:
    """Users, channels and payloads that would be HTML are shown as they are, and do nothing."""
    run("escapes", hub)


@chromium_test
def test_the_page_fits_phones(hub: HubProcess) -> None:
    """On 360 pixels nothing stands beyond the edge, and what is touched has 44."""
    run("fitsPhones", hub)


@chromium_test
def test_everything_is_done_by_keys(hub: HubProcess) -> None:
    """In the order of the page, with a focus that is seen; each control has a name."""
    run("keys", hub)


@chromium_test
def test_a_silent_worker_is_named() -> None:
    """One that is stopped: the page says so within seconds, and that it is back."""
    with HubProcess({"heartbeat_timeout_s": 60.0}) as one:
        run("namesSilent", one)


@chromium_test
def test_the_page_comes_back_after_the_workers_were_killed() -> None:
    """With the key that it has; the new workers' figures take the place of the old ones'."""
    with HubProcess() as one:
        run("comesBack", one)
