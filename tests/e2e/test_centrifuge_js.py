"""The stock JavaScript SDK (npm `centrifuge` on Node.js) against a real hub; the scenarios are in centrifuge_js.mjs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hub import auth
from tests.e2e import nodejs
from tests.hubs import SECRET, HubProcess

TICKER = {"source": "simulate", "symbols": ["ACME", "APEX"], "rate_hz": 20.0, "share": 1.0, "lease_ttl_s": 1.0}
ROOM = {"subscribe": "user", "presence": "user", "join_leave": True}
pytestmark = [nodejs.NODE, nodejs.PACKAGES]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """One hub of two workers for all tests that leave it as it was."""
    with HubProcess({"ticker": TICKER, "namespaces": {"room": ROOM}}) as hub:
        yield hub


def test_sdk_receives_prices_and_messages(hub: HubProcess) -> None:
    """Prices come in order; a message reaches another connection with its publisher's name; a call is answered."""
    nodejs.run("centrifuge_js.mjs", "receives", hub.ws_url, hub.token("ann"))


def test_sdk_sees_who_is_there(hub: HubProcess) -> None:
    """presence, presence_stats, join and leave; one who reconnects is not told of."""
    nodejs.run("centrifuge_js.mjs", "seesOthers", hub.ws_url, hub.token("ann"), hub.token("bob"))


def test_sdk_is_told_what_is_forbidden(hub: HubProcess) -> None:
    """Each forbidden or missing thing has its own error code, and the connection outlives them all."""
    nodejs.run("centrifuge_js.mjs", "isRefused", hub.ws_url)


def test_sdk_with_a_bad_token_stays_away(hub: HubProcess) -> None:
    """A token that is not the hub's ends the connection with 3500, upon which the SDK does not come back."""
    nodejs.run("centrifuge_js.mjs", "isTurnedAway", hub.ws_url)


def test_sdk_renews_a_token_that_has_ended(hub: HubProcess) -> None:
    """A token that has ended makes the SDK ask for another, with which it connects."""
    nodejs.run("centrifuge_js.mjs", "renews", hub.ws_url, hub.token("ann", ttl_s=-60), hub.token("ann"))


def test_sdk_renews_its_channel_tokens() -> None:
    """A subscription whose token ends goes on with the next; without one it ends, and begins anew with one."""

    def tokens(channel: str, *ends_in_s: float) -> list[str]:
        now = time.time()
        return [
            auth.make("ann", SECRET, min(in_s, 0) or 60, now, channel=channel, expire_at=now + max(in_s, 0))
            for in_s in ends_in_s
        ]

    settings = {"client": {"subscription_grace_s": 1.0}, "namespaces": {"tokens": {"subscribe": "token"}}}
    with HubProcess(settings) as hub:
        renewed = tokens("tokens:a", 2, 3600)
        first, ended, last = tokens("tokens:b", 2, -60, 3600)
        lapsing = ",".join([first, "none", ended, last])
        nodejs.run("centrifuge_js.mjs", "renewsItsChannel", hub.ws_url, hub.token("ann"), ",".join(renewed), lapsing)


def test_sdk_obeys_the_server_api_also_after_a_restart() -> None:
    """Its codes within a second, on whatever worker it is; who was blocked stays so with the hub's stored data."""
    with HubProcess() as hub:
        ann, bob = hub.token("ann"), hub.token("bob")
        nodejs.run("centrifuge_js.mjs", "isControlled", hub.ws_url, ann, bob, hub.api_url, hub.key)
        hub.stop()
        hub.start()
        nodejs.run("centrifuge_js.mjs", "isKeptOut", hub.ws_url, ann)
        nodejs.run("centrifuge_js.mjs", "isRefused", hub.ws_url)


# Seconds; a native session is not asked how long it has before its first deadline, connect_timeout_s.
SHORT = {"auth": {"expire_grace_s": 0.5}, "client": {"connect_timeout_s": 1.0}}


def test_sdk_refreshes_its_token_before_it_ends() -> None:
    """Told the ttl, it asks for another token and sends it; the connection goes on beyond the first one's end."""
    with HubProcess(SHORT) as hub:
        nodejs.run("centrifuge_js.mjs", "refreshes", hub.ws_url, hub.token("ann", ttl_s=4), hub.token("ann"), 5000)


def test_sdk_that_refreshes_as_somebody_else_is_sent_away() -> None:
    """3500, upon which it does not come back."""
    with HubProcess(SHORT) as hub:
        nodejs.run("centrifuge_js.mjs", "refreshesAsAnother", hub.ws_url, hub.token("ann", ttl_s=4), hub.token("bob"))


def test_sdk_watches_a_list_at_its_own_rate() -> None:
    """Symbols and rate change live, marks account for each tick, and kill -9 of all workers changes none of it."""
    namespaces = {"ticker": {"mode": "latest", "subscribe": "anyone", "watch": 10, "watch_prefixes": True}}
    with HubProcess({"ticker": TICKER, "namespaces": namespaces}) as hub:
        workers = ",".join(map(str, hub.worker_pids()))
        nodejs.run("centrifuge_js.mjs", "watches", hub.ws_url, hub.token("ann"), workers)


def test_sdk_comes_back_after_the_workers_were_killed() -> None:
    """kill -9 of all workers: the SDK reconnects, subscribes again, and prices and messages go on."""
    with HubProcess({"ticker": TICKER}) as hub:
        workers = ",".join(map(str, hub.worker_pids()))
        nodejs.run("centrifuge_js.mjs", "comesBack", hub.ws_url, hub.token("ann"), workers)
