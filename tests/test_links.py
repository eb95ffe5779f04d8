"""Links: which ways there are, by the settings and the seat, and that they are opened and closed in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub.balance import Loads
from hub.config import Settings
from hub.errors import BootError
from hub.links import Links
from hub.relay import Home
from hub.store import Store
from tests.support import async_test


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home.make({"RUNTIME_DIRECTORY": str(tmp_path_factory.mktemp("l"))})
    yield made
    made.remove()


def links(home: Home, loads: Loads | None = None, **relay: str) -> Links:
    """Of the second worker; nobody asks Redis here, and nobody is connected."""
    settings = Settings(listen=["127.0.0.1:0"], relay=relay)
    seat: Any = SimpleNamespace(home=home, slot=SimpleNamespace(index=1), generation=5, loads=loads)
    reactor: Any = SimpleNamespace(connections={})
    return Links(settings, seat, Store(settings.redis, "unix:///nowhere"), reactor)


@async_test
async def test_one_machine_and_one_worker_need_no_way_to_others(home: Home) -> None:
    """No other machine is asked, no pages answer one, and there is nobody to give newcomers to."""
    found = links(home)
    assert (found.neighbours, found.tunnels, found.balance, found.routes()) == (None, None, None, [])
    assert (found.relay.owner.hub, found.relay.owner.slot, found.relay.owner.generation) == (home.hub, 1, 5)
    found.handover.close()


@async_test
async def test_other_machines_reach_this_one_by_its_pages(home: Home) -> None:
    """The relay's and the tunnels'; and with siblings there is a balance."""
    found = links(home, Loads(2), url="http://127.0.0.1:1", secret="s" * 32)
    assert found.neighbours is not None and found.tunnels is not None and found.balance is not None
    assert found.routes() == [*found.neighbours.routes(), *found.tunnels.routes()]
    found.handover.close()
    found.balance.close()


@async_test
async def test_siblings_are_answered_until_the_end(home: Home) -> None:
    """The private socket is there from the start, and gone afterwards."""
    found = links(home)
    await found.start()
    assert "1-5.sock" in os.listdir(home.directory)
    await found.close()
    assert [name for name in os.listdir(home.directory) if name.endswith(".sock")] == []


@async_test
async def test_a_directory_that_has_gone_fails_the_boot(home: Home) -> None:
    """With the place and the cause."""
    gone = str(Path(home.directory, "gone"))
    found = links(home._replace(directory=gone))
    with pytest.raises(BootError, match=rf"^no private socket in {gone}: No such file or directory$"):
        await found.start()
    found.handover.close()
