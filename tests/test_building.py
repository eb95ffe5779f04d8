"""Building: what a worker's rooms are given, and what can't be built; without Redis, which nobody asks here."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hub.building import Building
from hub.config import Settings
from hub.emission import EmittingFanout
from hub.errors import BootError
from hub.fanout import Fanout
from hub.heartbeat import open_pipe
from hub.listeners import Slot
from hub.relay import Home
from hub.seat import Seat
from tests.support import async_test


@contextlib.contextmanager
def building(keys: dict[str, bytes] | None = None, **settings: Any) -> Iterator[Building]:
    """All rooms of a worker that nobody starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        home = Home.make({"RUNTIME_DIRECTORY": directory})
        pulse, heartbeat = open_pipe(0.0)
        seat = Seat(Slot(0, (), ()), 1, 1, False, "unix:///nowhere", heartbeat, home, keys=keys)
        built: Building | None = None
        try:
            built = Building(Settings(listen=["127.0.0.1:0"], **settings), seat, lambda: False)
            yield built
        finally:
            if built is not None:
                built.links.handover.close()
            pulse.close()
            heartbeat.close()
            home.remove()


@async_test
async def test_nothing_runs_yet_when_all_is_built() -> None:
    """No task, no timer that ends in a log line, no connection to Redis."""
    tasks = asyncio.all_tasks()
    with building() as rooms:
        assert asyncio.all_tasks() == tasks
        assert not rooms.ingest.connected and not rooms.reactor.connections
        assert rooms.gate is None and rooms.jwks is None and type(rooms.fanout) is Fanout


@async_test
async def test_an_application_gets_its_gate_and_its_fanout(tmp_path: Path) -> None:
    """A manifest only where somebody wants to hear of ends."""
    (tmp_path / "plain_one.py").write_text("from hub.app import App\napp = App()\n")
    hears = "\n@app.on_disconnect()\nasync def left(client): pass\n"
    (tmp_path / "hearing_one.py").write_text("from hub.app import App\napp = App()\n" + hears)
    for name, heard in (("plain_one", False), ("hearing_one", True)):
        with building(app={"module": f"{name}:app", "directory": str(tmp_path)}) as rooms:
            assert isinstance(rooms.fanout, EmittingFanout) and rooms.services.gate is rooms.gate
            assert rooms.gate is not None and (rooms.gate.manifest is not None) == heard
            await rooms.gate.close()


@async_test
async def test_what_can_not_be_read_or_loaded_fails_the_boot(tmp_path: Path) -> None:
    """An application that is not there; a key file that has changed since the settings were checked."""
    with pytest.raises(BootError, match="nowhere_at_all"), building(app={"module": "nowhere_at_all:app"}):
        pass
    path = str(tmp_path / "key.pem")
    with pytest.raises(BootError, match=path), building({path: b"no key"}, auth={"keys": [path]}):
        pass


@async_test
async def test_a_new_link_to_redis_is_heard_by_all_who_may_have_missed_something() -> None:
    """What is revoked and what is newest is read anew, and streams, lists and mailboxes are looked through."""
    with building() as rooms:
        heard = Mock()
        rooms.revocations.reread = heard.reread
        rooms.snapshots.lost = heard.lost
        rooms.streams.check_all = heard.streams
        rooms.subscriptions.check_all = heard.subscriptions
        rooms.redelivery.check_all = heard.redelivery
        rooms._on_connected()
        names = [call[0] for call in heard.mock_calls]
        assert names == ["reread", "lost", "streams", "subscriptions", "redelivery"]


@async_test
async def test_what_the_fanout_can_not_take_up_is_made_up_for() -> None:
    """Where a stream or a mailbox will bring it again."""
    with building() as rooms:
        heard = Mock()
        rooms.streams.overloaded, rooms.redelivery.overloaded = heard.streams, heard.redelivery
        assert rooms.fanout.on_full is not None
        rooms.fanout.on_full("chat:a")
        assert [(name, args) for name, args, _ in heard.mock_calls] == [
            ("streams", ("chat:a",)),
            ("redelivery", ("chat:a",)),
        ]


@async_test
async def test_the_quotas_ask_the_census_and_figures_are_there() -> None:
    """Rooms that are built before those that they call."""
    with building() as rooms:
        assert rooms.quotas.census is rooms.census
        assert rooms._counted() == []
        assert rooms._stats() == {"num_clients": 0, "num_users": 0, "num_subs": 0, "num_channels": 0}
        assert rooms.figures.fanout is rooms.fanout and rooms.figures.refusals is rooms.quotas.refusals
