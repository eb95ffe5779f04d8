"""The chat demo, with the settings of config/chat.toml, in real Chromiums; the scenarios stand in chat.mjs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import nodejs
from tests.e2e.test_demo_page import PNG, chromium_test
from tests.hubs import HubProcess

ROOT = Path(__file__).parents[2]
CHAT = tomllib.loads((ROOT / "config/chat.toml").read_text())
CLIENT_DIR = ROOT / "tests/e2e/node_modules/socket.io-client/dist"
WIRES = ["websocket", "sse", "poll", "socketio"]


def chat_hub(client_dir: str = str(CLIENT_DIR), workers: int = 4) -> HubProcess:
    """A hub with the settings of config/chat.toml, on ports of its own."""
    app = {name: str((ROOT / "config" / CHAT["app"][name]).resolve()) for name in ("directory", "pages")}
    over = {"app": {**CHAT["app"], **app}, "socketio": {"client_dir": client_dir}, "workers": workers}
    settings = {name: value for name, value in CHAT.items() if name != "state_dir"}
    return HubProcess({**settings, **over, "worker": {"presence_grace_s": 0.2}})


@pytest.fixture
def hub() -> Iterator[HubProcess]:
    """One for each test: what is said in the lobby stays there."""
    with chat_hub() as hub:
        yield hub


def run(hub: HubProcess, scenario: str, *arguments: object) -> None:
    nodejs.run("chat.mjs", scenario, hub.page_url, *arguments)


@pytest.mark.parametrize("wire", WIRES)
@chromium_test
def test_two_people_talk(hub: HubProcess, wire: str) -> None:
    """Both ways and as text; who types, who is here; who comes later reads what was said."""
    run(hub, "talks", wire)


@pytest.mark.parametrize("wire", ["sse", "poll"])  # beside devices with a WebSocket, and with Socket.IO
@chromium_test
def test_direct_messages_are_marked_on_all_devices(hub: HubProcess, wire: str) -> None:
    """Delivered when a device has it, read when it was seen; notified is each device; read on one is read on all."""
    run(hub, "writes", wire, hub.api_url, hub.key)


@pytest.mark.parametrize("wire", WIRES)
@chromium_test
def test_who_was_away_has_missed_nothing(hub: HubProcess, wire: str) -> None:
    """In the room and in private, also who has never been here; what was written meanwhile goes out."""
    run(hub, "away", wire, hub.api_url, hub.key)


@pytest.mark.parametrize("wires", ["websocket,socketio", "sse,poll"])
@chromium_test
def test_nothing_is_lost_when_workers_are_killed(hub: HubProcess, wires: str) -> None:
    """kill -9 of all four, while two people write: each message once and in order on all pages."""
    run(hub, "survives", wires, *hub.worker_pids())


@chromium_test
def test_who_comes_in_misses_nothing_between_the_past_and_the_present(hub: HubProcess) -> None:
    run(hub, "joins")


@nodejs.NODE
@nodejs.PACKAGES
def test_marks_and_messages_may_come_in_any_order() -> None:
    nodejs.run("chat.mjs", "keeps", "")


@chromium_test
def test_the_switch_changes_the_wire_without_loss(hub: HubProcess) -> None:
    run(hub, "changes")


@chromium_test
def test_the_page_fits_a_phone(hub: HubProcess, tmp_path: Path) -> None:
    """360 px, without scrolling sideways; what is pressed is 44 px high."""
    screenshot = tmp_path / "phone.png"
    run(hub, "fits", screenshot)
    assert screenshot.read_bytes().startswith(PNG)


@chromium_test
def test_the_page_works_by_keys(hub: HubProcess) -> None:
    """In the order of reading, with the focus always to be seen; Enter, Shift+Enter, Escape, arrows."""
    run(hub, "keys")


@chromium_test
def test_stock_clients_of_both_versions_talk_with_a_page(hub: HubProcess) -> None:
    """terminal.mjs: chat:v1 as ever, chat:v2 with the time; direct messages with marks."""
    run(hub, "terminal")


@chromium_test
def test_without_the_client_library_the_switch_says_why() -> None:
    with chat_hub(client_dir="", workers=1) as hub:
        run(hub, "lacks")


def test_the_settings_serve_the_chat_as_they_are(tmp_path: Any) -> None:
    """`client_dir` of config/chat.toml is where npm puts the library that the page asks for."""
    assert (ROOT / "config" / CHAT["socketio"]["client_dir"]).resolve() == CLIENT_DIR.resolve()
