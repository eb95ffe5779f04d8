"""Bequest: what an heir is left, and an exec that is made only while nothing has changed since the check."""

from __future__ import annotations

import os
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub import bequest, facts, whereabouts
from hub.bequest import Bequest, Host
from hub.config import Settings
from hub.deploy import Lineage, Program
from hub.inheritance import Estate, OriginRecord, Tally, WorkerRecord
from hub.relay import Home
from hub.reloadable import Fresh, unpack
from hub.retreat import Retreat
from hub.signals import Signals
from hub.systemd import Notifier, Watchdog
from tests.test_deploy import Hub, programs  # noqa: F401 (a fixture)
from tests.test_supervisor import greeting, listeners_of

PROGRAM = Program(("hub",), ())


class Worker:
    """One of the supervisor's, or a slot that waits for its next one: then pid is 0."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def record(self) -> WorkerRecord:
        assert self.pid, "nobody lives here"
        numbers = {"slot": 0, "generation": 1, "pulse": 3, "instructor": 4}
        times = {"born_s": 1.0, "heartbeat_timeout_s": 2.0, "goodbye_s": 3.0}
        return WorkerRecord(pid=self.pid, ready=True, **numbers, **times)


class Rig:
    """A bequest of no listeners and two slots, and what became of it. execs: what would have been executed."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = directory / "hub.toml"
        self.config.write_text("one")
        self.home = Home.make({"RUNTIME_DIRECTORY": str(directory)})
        self.handled: list[int] = []
        self.signals = Signals(lambda number, now: self.handled.append(number))
        self.selector = selectors.DefaultSelector()
        self.signals.open(self.selector)
        self.facts = facts.Facts()
        self.facts.open(self.home.directory)
        self.tally = Tally(done=2, failed=1)
        self.execs: list[Any] = []
        self.fresh: Fresh | None = None
        self.left: list[Fresh] = []
        monkeypatch.setattr(bequest, "replace", self._exec)
        self.bequest = Bequest(
            Lineage(PROGRAM, str(self.config), {"workers": "2"}, 7), self._host(), Retreat(None, None)
        )
        self.bequest.open(self.home)
        self.bequest.note(None)

    def _exec(self, program: Program, estate: Estate) -> None:
        self.execs.append((program, estate))
        if estate.settings >= 0:
            self.left.append(unpack(os.pread(estate.settings, 65_536, 0)))

    def _host(self) -> Host:
        notifier = Notifier({})
        numbers = iter(range(9, 99))
        listeners: Any = SimpleNamespace(records=lambda: ([], []))
        workers: Any = [Worker(70), Worker(0)]
        return Host(
            listeners=listeners,
            signals=self.signals,
            watchdog=Watchdog(notifier, lambda now: True, 1.0),
            facts=self.facts,
            workers=lambda: workers,
            next_generation=lambda: next(numbers),
            board=lambda: 8,
            valkey=lambda: None,
            tally=lambda: self.tally,
            version=lambda: "0.9",
            fresh=lambda: self.fresh,
        )

    def replace(self) -> None:
        self.bequest.replace(PROGRAM, self.bequest.estate(self.tally))

    def close(self) -> None:
        self.signals.close()
        self.selector.close()
        self.facts.close()
        self.home.remove()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(tmp_path, monkeypatch)
    yield made
    made.close()


def test_an_estate_names_who_lives_and_a_number_that_nobody_has(rig: Rig) -> None:
    """A slot without a process is no worker; what can't change and the tally of this hub go along."""
    estate = rig.bequest.estate(rig.tally)
    assert [worker.pid for worker in estate.workers] == [70] and estate.version == "0.9"
    assert estate.next_generation == 9 and rig.bequest.estate(rig.tally).next_generation == 10
    assert (estate.fixed, estate.state_lock, estate.board) == ({"workers": "2"}, 7, 8)
    assert (estate.home.directory, estate.home.lock) == (rig.home.directory, rig.home.lock)
    assert (estate.tally, estate.valkey) == (rig.tally, None)


def test_the_exec_is_made_where_nothing_has_changed(rig: Rig) -> None:
    """With the program and the estate that it was asked for with."""
    rig.replace()
    [(program, estate)] = rig.execs
    assert program == PROGRAM and estate.fixed == {"workers": "2"}


def test_an_heir_is_left_the_way_back(rig: Rig) -> None:
    """How we were started, and the settings that we go by; their file is closed where the exec is not made."""
    rig.fresh = Fresh(Settings(), {"a": b"key"}, None)
    rig.replace()
    [(_, estate)] = rig.execs
    assert estate.origin == OriginRecord(command=["hub"], options=[], real=[])
    assert rig.left == [rig.fresh]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(estate.settings)


def test_another_settings_file_than_the_check_has_found_holds_the_exec(rig: Rig) -> None:
    """Until a check has found that one good; so does one that has gone."""
    rig.config.write_text("another")
    rig.replace()
    rig.config.unlink()
    rig.replace()
    assert not rig.execs
    rig.bequest.note(None)
    rig.replace()
    assert len(rig.execs) == 1


def test_settings_are_read_anew_before_the_exec_where_sighup_comes_with_it(rig: Rig) -> None:
    """It is handled afterwards; another signal is the heir's, and no reason to wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR2})
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
    rig.replace()
    assert not rig.execs
    for key, _ in rig.selector.select(5.0):
        key.data(1.0)
    assert rig.handled == [signal.SIGHUP]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR2})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    rig.replace()
    assert len(rig.execs) == 1


def test_each_outcome_is_counted_and_told(rig: Rig) -> None:
    """One that goes on is busy and no outcome yet; after a good one the settings of the heir hold."""

    def told() -> tuple[str, bool]:
        standing = whereabouts.read(rig.home.directory)
        assert standing is not None
        assert (standing.pid, standing.config, standing.version) == (os.getpid(), str(rig.config), "0.9")
        assert (standing.done, standing.failed) == (rig.tally.done, rig.tally.failed)
        return standing.outcome, standing.busy

    assert told() == ("", True) and "deploys" not in facts.read(rig.home.directory)["counts"]
    rig.tally = Tally(done=2, failed=2)
    rig.bequest.note("no such thing")
    assert told() == ("no such thing", False) and "reload_ok" not in facts.read(rig.home.directory)
    rig.bequest.note(None)
    rig.tally = Tally(done=3, failed=2)
    rig.bequest.note("")
    assert told() == ("", False) and facts.read(rig.home.directory)["reload_ok"] == 1
    assert facts.read(rig.home.directory)["counts"]["deploys"] == {"failed": 1, "ok": 1}


def test_a_directory_that_takes_nothing_is_a_line_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears of the outcome, and the hub goes on."""
    rig.bequest.open(rig.home._replace(directory="/nowhere/at/all"))
    rig.bequest.note("")
    assert "what became of a deploy can't be written to /nowhere/at/all: No such file or directory" in caplog.messages
    caplog.clear()


@pytest.mark.parametrize("behaviour", [{"gone": True}, {"nobody": True}])
def test_an_exec_that_fails_changes_nothing(hub: Callable[..., Hub], behaviour: dict[str, object]) -> None:
    """The program has gone between check and exec, or nobody knows what it is: the hub serves and ends as ever."""
    one = hub()
    one.version("one", **behaviour)
    one.restart()
    before = one.workers()
    one.deploy()
    one.wait_for("^deploy refused, version one goes on: (.* cannot be run: No such file|it is not known how)")
    assert one.workers() == before
    os.kill(before[0], signal.SIGKILL)
    one.wait_for("^worker 0 started", 2)
    with one.connect() as client:
        greeting(client)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == 0


def test_a_signal_that_comes_with_the_exec_is_not_lost(hub: Callable[..., Hub]) -> None:
    """A stop that arrives before the new version has its handlers ends it in order, and does not kill it."""
    one = hub()
    one.version("two")
    one.deploy()
    one.wait_for("^version two takes over")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(20) == 0
    assert one.said("^SIGTERM: stopping")


def test_the_heir_holds_what_it_was_left_and_no_more(hub: Callable[..., Hub]) -> None:
    """Two listeners of each address, also after several deploys; and its descriptors do not grow."""
    one = hub()
    counts = []
    for name in ("two", "three", "four"):
        one.version(name)
        one.deploy()
        one.wait_for("^the last worker of the old generation has gone$", len(counts) + 1)
        assert listeners_of(one.process.pid) == 4
        counts.append(len(os.listdir(f"/proc/{one.process.pid}/fd")))
    assert counts[0] == counts[-1]
    inside = {os.readlink(path) for path in Path(f"/proc/{one.workers()[0]}/fd").iterdir()}
    assert not any("estate" in name or "hub-check" in name for name in inside)
