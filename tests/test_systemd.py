"""Systemd: what arrives at a service manager's socket."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.systemd import Notifier, Watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """A datagram socket such as systemd's, by path and by abstract name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = str(tmp_path_factory.mktemp("n") / "s") if request.param == "path" else f"\0hub-{uuid.uuid4()}"
        sock.bind(name)
        sock.settimeout(5.0)
        yield sock


def notifier(manager: socket.socket) -> Notifier:
    name = manager.getsockname()
    return Notifier({"NOTIFY_SOCKET": name if isinstance(name, str) else "@" + name[1:].decode()})


def test_ready_carries_its_status_in_one_datagram(manager: socket.socket) -> None:
    """READY=1 and STATUS= come together; a line break in the status cannot begin another assignment."""
    notifier(manager).ready("4 workers\nMAINPID=1")
    assert manager.recv(1000) == b"READY=1\nSTATUS=4 workers MAINPID=1"


def test_each_word_is_a_datagram(manager: socket.socket) -> None:
    """stopping, watchdog, status and notify send what sd_notify(3) names."""
    sender = notifier(manager)
    sender.stopping()
    sender.watchdog()
    sender.status("fine")
    sender.notify("A=1", "B=2")
    assert [manager.recv(1000) for _ in range(4)] == [b"STOPPING=1", b"WATCHDOG=1", b"STATUS=fine", b"A=1\nB=2"]


def test_without_a_manager_nothing_happens() -> None:
    """No NOTIFY_SOCKET, or one of a kind that we don't speak: every call is without effect."""
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        Notifier(environ).ready("x")
        assert Notifier(environ).watchdog_s is None


def test_a_vanished_manager_does_not_raise(tmp_path: Path) -> None:
    """A socket that is gone is no reason to stop serving."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).watchdog()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval_is_half_of_what_the_unit_allows(environ: dict[str, str], expected: float | None) -> None:
    """Half of WATCHDOG_USEC in seconds, only for the process that is meant."""
    assert Notifier(environ).watchdog_s == expected


def test_the_watchdog_is_fed_at_its_interval_while_all_is_well(manager: socket.socket) -> None:
    """Not before it begins; after a no it is asked again soon, and fed as soon as all is well."""
    well = True
    sender = notifier(manager)
    sender.watchdog_s = 10.0
    watchdog = Watchdog(sender, lambda now: well, 1.0)
    watchdog.turn(0.0)
    assert watchdog.due_s == math.inf
    watchdog.begin(1.0)
    watchdog.turn(1.0)
    watchdog.turn(10.9)
    assert watchdog.due_s == 11.0 and manager.recv(1000) == b"WATCHDOG=1"
    well = False
    watchdog.turn(11.0)
    assert watchdog.due_s == 12.0
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1000)
    well = True
    watchdog.turn(12.0)
    assert watchdog.due_s == 22.0 and manager.recv(1000) == b"WATCHDOG=1"
    watchdog.feed()
    assert watchdog.due_s == 22.0 and manager.recv(1000) == b"WATCHDOG=1"


def test_a_watchdog_that_nobody_has_set_is_never_due(manager: socket.socket) -> None:
    """Nothing is sent, and no turn is taken for it."""
    watchdog = Watchdog(notifier(manager), lambda now: True, 1.0)
    watchdog.begin(1.0)
    watchdog.turn(1.0)
    watchdog.feed()
    assert watchdog.due_s == math.inf
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1000)
