"""The client module hub/static/hub.js at a real hub, in Node and in Chromium; the scenarios stand in hub_js.mjs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from hub import cursor
from tests.e2e import nodejs
from tests.e2e.test_demo_page import DEMO, TICKER, chromium_test
from tests.hubs import SECRET, HubProcess

OPEN = {"subscribe": "anyone", "publish": "anyone"}
NAMESPACES = {
    **DEMO["namespaces"],
    "log": {"mode": "stream", **OPEN},
    "value": {"mode": "latest", "watch": 10, "watch_prefixes": True, **OPEN},
    "none": OPEN,
    "held": {"mode": "stream", "subscribe": "token", "publish": "anyone"},
    "read": {"subscribe": "anyone"},
    "room": {"presence": "subscriber", "join_leave": True, **OPEN},
}
WIRES = pytest.mark.parametrize("wire", ["websocket", "sse", "poll"])


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    """One hub of two workers for one test, which may kill them."""
    settings: dict[str, Any] = {"demo": True, "namespaces": NAMESPACES, "ticker": TICKER, "drain_window_s": 0.0}
    with HubProcess({**settings, "worker": {"presence_grace_s": 0.2}}) as hub:
        yield hub


def run(hub: HubProcess, scenario: str, *arguments: object) -> None:
    nodejs.run("hub_js.mjs", scenario, f"http://{urlsplit(hub.ws_url).netloc}", *arguments)


def node_test(test: Any) -> Any:
    """Skip the test where Node or its packages are missing."""
    return nodejs.NODE(nodejs.PACKAGES(test))


def pids(hub: HubProcess) -> str:
    return ",".join(map(str, hub.worker_pids()))


@node_test
def test_it_names_channels_in_cursors_as_the_hub_does() -> None:
    """Names of any length, around the hash's blocks of 128 bytes."""
    names = ["", "chat:a", "x" * 127, "y" * 128, "z" * 129, "é" * 128, "q" * 255, *(f"log:{n}" for n in range(50))]
    pairs = [json.dumps([name, cursor.key_of(name)]) for name in names]
    nodejs.run("hub_js.mjs", "keys", "", *pairs)


@WIRES
@node_test
def test_it_reads_and_writes_on_each_wire(hub: HubProcess, wire: str) -> None:
    """Newest values, order, receipts, refusals that spoil nothing else, channels that come and go while connected."""
    run(hub, "talks", wire)


@WIRES
@node_test
def test_it_misses_nothing_when_all_workers_are_killed(hub: HubProcess, wire: str) -> None:
    """Each message of two `stream` channels once, and in order."""
    run(hub, "survives", wire, pids(hub))


@node_test
def test_it_misses_nothing_when_it_changes_the_wire(hub: HubProcess) -> None:
    """WebSocket, event stream, polls, while messages are published."""
    run(hub, "changes")


@node_test
def test_it_falls_back_at_once(hub: HubProcess) -> None:
    """To event streams where WebSockets are blocked, to polls where both are."""
    run(hub, "fallsBack")


@WIRES
@node_test
def test_what_is_published_offline_waits_within_a_bound(hub: HubProcess, wire: str) -> None:
    """In order, each once, also where the answer to a request was lost; one too many is refused."""
    run(hub, "queues", wire)


@WIRES
@node_test
def test_it_gets_a_fresh_token_when_one_ends(wire: str) -> None:
    """Over WebSocket in place; a stream ends with its token, and its client comes back. A bad one is final."""
    # A native session is not asked how long it has before its first deadline, connect_timeout_s.
    short = {"auth": {"expire_grace_s": 0.5}, "client": {"connect_timeout_s": 1.0}}
    with HubProcess({"demo": True, "namespaces": NAMESPACES, **short}) as hub:
        run(hub, "refreshes", wire, SECRET)


@WIRES
@node_test
def test_a_token_that_has_ended_is_asked_for_again(hub: HubProcess, wire: str) -> None:
    """Without somebody to ask, it is final."""
    run(hub, "expired", wire, hub.token("ann", -10), hub.token("ann"))


@pytest.mark.parametrize("wire", ["websocket", "sse"])
@node_test
def test_it_is_told_who_comes_and_goes(hub: HubProcess, wire: str) -> None:
    run(hub, "watches", wire)


@WIRES
@node_test
def test_it_asks_for_history_and_calls_the_hub(hub: HubProcess, wire: str) -> None:
    """Over a WebSocket, where also each subscription begins with what its channel is asked for; else it says no."""
    run(hub, "asks", wire)


@WIRES
@node_test
def test_it_watches_lists_on_each_wire(hub: HubProcess, wire: str) -> None:
    """Names, patterns and fields; each value once, and what is refused spoils nothing else."""
    run(hub, "lists", wire)


@WIRES
@node_test
def test_it_holds_channels_by_tokens_of_their_own(hub: HubProcess, wire: str) -> None:
    """A fresh one when one ends, over WebSocket in place; one that is refused, or has ended, spoils nothing else."""
    run(hub, "grants", wire, SECRET)


@WIRES
@node_test
def test_it_tells_how_many_symbols_of_a_list_are_left_out(hub: HubProcess, wire: str) -> None:
    """And when none is any more."""
    run(hub, "leftOut", wire)


@node_test
def test_it_tells_how_slowly_values_come_by_a_lesser_token(hub: HubProcess) -> None:
    """As an event of the subscription, and not among the notices that a page shows."""
    run(hub, "slowed", SECRET)


@WIRES
@node_test
def test_a_thousand_connections_leave_nothing_behind(hub: HubProcess, wire: str) -> None:
    """No socket, no timer, no memory that grows."""
    run(hub, "cycles", wire)


@chromium_test
def test_the_demo_page_lives_on_each_wire(hub: HubProcess) -> None:
    """Forced, and behind a proxy that lets no WebSocket through."""
    run(hub, "demo")


@pytest.mark.parametrize("wire", ["websocket", "sse", "poll"])
@chromium_test
def test_a_page_that_was_offline_has_missed_nothing(hub: HubProcess, wire: str) -> None:
    """It is back as soon as the browser says that it is online, on a new connection."""
    run(hub, "offline", wire)


@WIRES
@chromium_test
def test_a_page_that_slept_has_missed_nothing(hub: HubProcess, wire: str) -> None:
    """Frozen by the browser; and a page that is looked at again does not wait for a timer to find its hub silent."""
    run(hub, "hidden", wire)


@WIRES
@chromium_test
def test_a_page_misses_nothing_when_all_workers_are_killed(hub: HubProcess, wire: str) -> None:
    run(hub, "survivesInPage", wire, pids(hub))


@WIRES
@chromium_test
def test_a_thousand_connections_of_a_page_leave_nothing_behind(hub: HubProcess, wire: str) -> None:
    """No listener and no memory that grows, by the browser's own count."""
    run(hub, "cyclesInPage", wire)
