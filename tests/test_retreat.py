"""Retreat: a version that fails after the exec gives the process back to the one before, with all that it was left."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub import retreat
from hub.deploy import Program
from hub.inheritance import Estate, HomeRecord, OriginRecord, Tally
from hub.retreat import Retreat
from tests.test_deploy import Hub, programs  # noqa: F401 (a fixture)
from tests.test_supervisor import greeting, listeners_of, wait_until


def start(hub: Callable[..., Hub], **options: object) -> Hub:
    """As the release one behind the link."""
    one = hub(**options)
    one.release("one")
    one.restart()
    return one


def deploys_on(one: Hub) -> None:
    """The next one is found by the link, and takes over as ever."""
    one.release("three")
    one.deploy()
    one.wait_for("^deployed version three")
    one.wait_for("^the last worker of the old generation has gone$")
    assert one.said("^version three takes over from one in this process$") and one.standing().version == "three"
    assert listeners_of(one.process.pid) == 4
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == 0


@pytest.mark.parametrize("moment", ["early", "late"])
def test_a_supervisor_that_fails_after_the_exec_gives_the_hub_back(hub: Callable[..., Hub], moment: str) -> None:
    """The same workers and connections, nothing of the new version stays, and the log and `hub deploy` say so."""
    one = start(hub)
    before, open_files = one.workers(), len(os.listdir(f"/proc/{one.process.pid}/fd"))
    with one.connect() as client:
        greeting(client)
        one.release("two", fails=moment)
        one.deploy()
        one.wait_for("^version one is back, with its own workers$")
        wait_until(lambda: one.standing().failed == 1)
        assert not select.select([client], [], [], 0)[0]
    assert one.workers() == before and listeners_of(one.process.pid) == 4
    assert len(os.listdir(f"/proc/{one.process.pid}/fd")) == open_files
    assert one.said("^Traceback") and one.said("^RuntimeError: no room$")
    standing = one.standing()
    assert (standing.version, standing.done, standing.failed, standing.busy) == ("one", 0, 1, False)
    assert standing.outcome.startswith("version two failed as it took over: program.py, line ")
    assert standing.outcome.endswith(": RuntimeError: no room")
    # Who dies is replaced, by a number that nobody has had.
    os.kill(before[0], signal.SIGKILL)
    one.wait_for("^worker 0 started", 2 if moment == "early" else 3)
    wait_until(lambda: len(one.workers()) == 2)
    deploys_on(one)


def test_a_hub_without_a_way_back_ends_and_says_why(hub: Callable[..., Hub]) -> None:
    """Its code was changed in place, or the old one has gone, or nobody knows how it was started."""
    one = hub()
    one.version("two", fails="early")
    one.deploy()
    assert one.process.wait(20) != 0
    assert one.said(r"^no way back to version one: its code was changed in place \(.*program.py\)$")
    assert one.said("^RuntimeError: no room$") and not one.said("is back")
    one = start(hub)
    (one.directory / "one.py").unlink()
    one.release("two", fails="early")
    one.deploy()
    assert one.process.wait(20) != 0
    assert one.said(r"^no way back to version one: /.*/one.py is gone$")


def test_two_broken_versions_take_no_turns(hub: Callable[..., Hub]) -> None:
    """The one that is gone back to has no way back itself."""
    one = start(hub)
    (one.directory / "one.version").write_text('{"name": "one", "fails": "early"}')
    one.release("two", fails="early")
    one.deploy()
    assert one.process.wait(20) != 0
    assert len(one.said("^version two failed as it took over: ")) == 1 and len(one.said("^RuntimeError: no room$")) == 2


@pytest.mark.parametrize("boot", ["error", "death", "hang"])
def test_workers_that_cannot_boot_give_the_hub_back(hub: Callable[..., Hub], boot: str) -> None:
    """A worker of the old version that dies later has a successor of the old version."""
    one = start(hub, deploy_timeout_s=2)
    before = one.workers()
    with one.connect() as client:
        greeting(client)
        one.release("two", boot=boot)
        one.deploy()
        one.wait_for("^deploy failed, the old workers go on: ")
        one.wait_for("^version one is back, with its own workers$")
        assert not select.select([client], [], [], 0)[0]
    assert one.workers() == before
    standing = one.standing()
    assert (standing.version, standing.done, standing.failed) == ("one", 0, 1) and standing.outcome
    started = len(one.said("^worker . started"))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    one.wait_for("^worker . started", started + 2)
    wait_until(lambda: len(one.workers()) == 2)
    with one.connect() as client:
        assert greeting(client)[1] > 4
    deploys_on(one)


def test_what_the_settings_file_says_by_then_is_nothing_to_who_comes_back(hub: Callable[..., Hub]) -> None:
    """It may be one that only the new version can read."""
    one = start(hub)
    one.settings(drain_window_s=1)
    one.release("two", fails="late", spoils=True)
    one.deploy()
    one.wait_for("^version one is back, with its own workers$")
    wait_until(lambda: one.standing().failed == 1)
    assert (one.directory / "settings").read_text() == "1"


def test_a_signal_that_comes_on_the_way_back_is_not_lost(hub: Callable[..., Hub]) -> None:
    """It is the old version's."""
    one = start(hub)
    one.release("two", fails="late")
    one.deploy()
    one.wait_for("^version two failed as it took over: ")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(20) == 0
    assert one.said("^SIGTERM: stopping") and not Path(f"/proc/{one.process.pid}").exists()


@pytest.mark.expects_log
@pytest.mark.parametrize("back", [False, True])
def test_what_the_new_version_has_closed_is_there_again(monkeypatch: pytest.MonkeyPatch, back: bool) -> None:
    """By its old number; and numbers of workers begin beyond those that it may have given away."""
    lock, board = (os.memfd_create(name) for name in ("lock", "board"))
    os.write(lock, b"lock")
    none: dict[str, Any] = {"fixed": {}, "workers": [], "public": [], "internal": [], "valkey": None, "state_lock": -1}
    left = Estate(
        version="1",
        home=HomeRecord(hub="h", directory="/d", lock=lock),
        board=board,
        tally=Tally(done=3),
        next_generation=7,
        origin=OriginRecord(command=["hub"], options=["-x"], real=["python", "hub"]),
        back=back,
        **none,
    )
    execs: list[tuple[Program, Estate]] = []
    monkeypatch.setattr(retreat, "replace", lambda *given: execs.append(given))
    with pytest.raises(ZeroDivisionError), Retreat(left, Program(("other",), (), ("other",))).guard():
        os.close(lock)
        print(1 / 0)
    if back:
        # It has been given back to once.
        assert not execs
    else:
        [(program, found)] = execs
        assert (program.command, program.options) == (("python", "hub"), ("-x",))
        assert os.pread(lock, 9, 0) == b"lock" and found.back and found.next_generation > 1000
        assert found.tally == Tally(done=3, failed=1) and "ZeroDivisionError" in found.failure
        os.close(lock)
    os.close(board)
