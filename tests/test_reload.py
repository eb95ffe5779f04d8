"""Reload: the supervisor's part, step by step: real processes that read, workers that answer as they are told."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import orjson
import pytest

from hub import reload as room
from hub import status
from hub.config import Settings
from hub.errors import ConfigError
from hub.heartbeat import Answer
from hub.instructions import APPLY, DROP, PREPARE, TELL, Instruction
from hub.reload import Host, Reload
from hub.reloadable import Counts, Fresh, unpack
from hub.seat import fork_task
from hub.systemd import Notifier
from tests.support import FakeClock

OLD = Settings(workers=2)
NEW = Settings(workers=2, limits={"connections": 5})


class Worker:
    """A worker as the supervisor knows it."""

    def __init__(self, index: int) -> None:
        self.slot = SimpleNamespace(index=index)
        self.pid = 1000 + index
        self.unsent_bytes = 0
        self.told: list[Instruction] = []

    def instruct(self, instruction: Instruction, selector: selectors.BaseSelector) -> None:
        self.told.append(instruction)

    @property
    def kinds(self) -> bytes:
        return b"".join(one.kind for one in self.told)


class Rig:
    """A supervisor of two workers around one Reload."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        self.workers = [Worker(0), Worker(1)]
        self.settings = OLD
        self.serving, self.stopping = True, False
        self.adopted: list[Fresh] = []
        self.read: Callable[[], Fresh] = lambda: Fresh(NEW, {}, None)
        self.clock = FakeClock()
        self.selector = selectors.DefaultSelector()
        self.outcomes: list[bool] = []
        host = Host(
            workers=lambda: self.workers,  # type: ignore[arg-type,return-value]
            settings=lambda: self.settings,
            serving=lambda: self.serving,
            stopping=lambda: self.stopping,
            fork=lambda work: fork_task(work, lambda: None),
            prepare=lambda fresh: None,
            adopt=self._adopt,
            ended=self.outcomes.append,
        )
        self.reload = Reload(host, lambda: self.read(), Notifier(environ or {}), self.clock, lambda: 1700.0)
        self.reload.open(self.selector)

    def _adopt(self, fresh: Fresh, loaded: object) -> None:
        self.settings = fresh.settings
        self.adopted.append(fresh)

    def turn(self) -> None:
        self.reload.turn(self.clock())

    def read_on(self) -> None:
        """Until the process that reads has said all and is gone."""
        deadline = time.monotonic() + 20.0
        while self.record["stage"] == "reading" and time.monotonic() < deadline:
            for key, _ in self.selector.select(0.01):
                key.data(self.clock())
            self.reload.reap()
        assert self.record["stage"] != "reading"

    def begin(self) -> None:
        """To where the workers are asked."""
        self.reload.ask()
        self.turn()
        self.read_on()

    def answer(self, word: str, *indices: int, text: str = "") -> None:
        number = self.record["begun"]
        for index in indices:
            self.reload.heard(self.workers[index], [Answer(number, word, text)])  # type: ignore[arg-type]

    @property
    def record(self) -> dict:
        return status.read(os.getpid())

    @property
    def last(self) -> dict:
        return self.record["last"]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.reload.close()
    rig.selector.close()


def fails(text: str) -> Callable[[], Fresh]:
    def read() -> Fresh:
        raise ConfigError(text)

    return read


def test_all_workers_prepare_before_any_applies(rig: Rig) -> None:
    """The settings hold for nobody while one answer is missing, and then for all, the supervisor included."""
    rig.begin()
    assert [worker.kinds for worker in rig.workers] == [PREPARE, PREPARE]
    assert unpack(rig.workers[0].told[0].data).settings == NEW
    rig.answer("prepared", 0)
    assert rig.workers[0].kinds == PREPARE and not rig.adopted
    rig.answer("prepared", 1)
    assert [worker.kinds for worker in rig.workers] == [PREPARE + APPLY] * 2
    assert rig.settings == NEW
    rig.answer("applied", 0, 1)
    assert rig.last["ok"] and rig.last["changed"] == ["limits.connections"] and rig.record["stage"] == "idle"
    assert rig.reload.counts == Counts(1, 0, 1700.0)
    assert orjson.loads(rig.workers[1].told[-1].data) == [1, 0, 1700.0] and rig.workers[1].told[-1].kind == TELL


@pytest.mark.expects_log
def test_a_mistake_changes_nothing_and_is_one_line(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """No worker hears of the settings; the line names the key."""
    rig.read = fails("limits.connections: found -1; allowed: a whole number")
    rig.begin()
    assert rig.last["errors"] == ["limits.connections: found -1; allowed: a whole number"] and not rig.last["ok"]
    assert [worker.kinds for worker in rig.workers] == [TELL, TELL] and rig.settings is OLD
    assert rig.reload.counts == Counts(0, 1, 0.0)
    assert "settings were not changed: limits.connections: found -1; allowed: a whole number" in caplog.messages


@pytest.mark.expects_log
def test_what_needs_a_restart_is_refused_with_all_the_rest(rig: Rig) -> None:
    """One such setting keeps the others from changing, too."""
    rig.read = lambda: Fresh(Settings(workers=3, limits={"connections": 5}), {}, None)
    rig.begin()
    assert rig.last["errors"] == ["workers needs a restart (was 2, is 3)"] and rig.settings is OLD


@pytest.mark.expects_log
def test_one_worker_that_refuses_has_all_forget_it(rig: Rig) -> None:
    rig.begin()
    rig.answer("prepared", 0)
    rig.answer("refused", 1, text="auth.keys[0]: no PEM")
    assert [worker.kinds for worker in rig.workers] == [PREPARE + DROP + TELL] * 2 and not rig.adopted
    assert rig.last["errors"] == ["worker 1 refused the settings: auth.keys[0]: no PEM"]


@pytest.mark.expects_log
def test_a_worker_that_does_not_answer_is_named_and_nothing_changes(rig: Rig) -> None:
    rig.begin()
    rig.answer("prepared", 0)
    rig.clock.advance(room.ANSWER_S)
    rig.turn()
    assert rig.last["errors"] == ["no answer of worker 1 within 20 s"] and rig.settings is OLD


@pytest.mark.expects_log
def test_a_late_answer_is_of_no_reload_any_more(rig: Rig) -> None:
    """The next one waits for answers of its own."""
    rig.begin()
    rig.clock.advance(room.ANSWER_S)
    rig.turn()
    rig.begin()
    for worker in rig.workers:
        rig.reload.heard(worker, [Answer(1, "prepared")])  # type: ignore[arg-type]
    assert rig.record["stage"] == "preparing" and rig.settings is OLD


@pytest.mark.expects_log
def test_who_is_slow_to_apply_is_named_but_the_settings_hold(rig: Rig) -> None:
    """The word lies in its pipe, in order: there is no way back."""
    rig.begin()
    rig.answer("prepared", 0, 1)
    rig.answer("applied", 0)
    rig.clock.advance(room.ANSWER_S)
    rig.turn()
    assert rig.last["ok"] and rig.last["errors"] == [
        "no answer of worker 1 within 20 s; it applies them when it is back"
    ]
    assert rig.settings == NEW


def test_a_worker_that_dies_is_not_waited_for_and_its_successor_is(rig: Rig) -> None:
    """Forked before the settings hold, it has the old ones, and prepares like the others."""
    rig.begin()
    rig.answer("prepared", 0)
    rig.workers[1].pid = 0
    rig.workers[1] = Worker(1)
    rig.reload.joined(rig.workers[1])  # type: ignore[arg-type]
    # Of an older generation, which drains: the one that was asked has the same slot.
    rig.reload.gone(Worker(1))  # type: ignore[arg-type]
    rig.reload.heard(Worker(1), [Answer(1, "prepared")])  # type: ignore[arg-type]
    assert rig.workers[1].kinds == PREPARE and not rig.adopted
    rig.answer("prepared", 1)
    assert rig.workers[1].kinds == PREPARE + APPLY and rig.settings == NEW


def test_the_death_of_the_last_who_was_waited_for_goes_on(rig: Rig) -> None:
    rig.begin()
    rig.answer("prepared", 0)
    rig.workers[1].pid = 0
    rig.reload.gone(rig.workers[1])  # type: ignore[arg-type]
    assert rig.settings == NEW and rig.workers[0].kinds == PREPARE + APPLY


def test_who_is_forked_once_they_hold_is_told_nothing(rig: Rig) -> None:
    """It has them by its fork."""
    rig.begin()
    rig.answer("prepared", 0, 1)
    rig.workers.append(newcomer := Worker(2))
    rig.reload.joined(newcomer)  # type: ignore[arg-type]
    assert newcomer.told == []


def test_signals_in_the_meantime_are_one_more_reload(rig: Rig) -> None:
    """Three of them: the file may have been read before the last change of it."""
    rig.begin()
    for _ in range(3):
        rig.reload.ask()
    rig.turn()
    assert rig.record["begun"] == 1
    rig.answer("prepared", 0, 1)
    rig.answer("applied", 0, 1)
    assert rig.reload.due_s() <= rig.clock()
    rig.turn()
    rig.read_on()
    assert rig.record["begun"] == 2
    rig.answer("prepared", 0, 1)
    rig.answer("applied", 0, 1)
    rig.turn()
    assert (rig.record["begun"], rig.record["ended"], rig.reload.busy) == (2, 2, False)


def test_one_that_comes_while_the_hub_boots_is_done_afterwards(rig: Rig) -> None:
    rig.serving = False
    rig.reload.ask()
    rig.turn()
    assert rig.record["stage"] == "idle" and rig.reload.due_s() == room.NEVER and rig.reload.busy
    rig.serving = True
    rig.turn()
    assert rig.record["stage"] == "reading"
    rig.read_on()


def test_a_hub_that_stops_reads_nothing(rig: Rig) -> None:
    """Neither when asked then, nor what it was asked before."""
    rig.stopping, rig.serving = True, False
    rig.reload.ask()
    rig.turn()
    assert rig.record["begun"] == 0
    rig.stopping, rig.serving = False, True
    rig.begin()
    rig.stopping, rig.serving = True, False
    rig.turn()
    assert rig.last["errors"] == ["the hub stops"] and not rig.reload.busy
    rig.answer("prepared", 0, 1)
    assert not rig.adopted


@pytest.mark.expects_log
def test_a_read_that_hangs_is_ended(rig: Rig) -> None:
    """As on a dead file system; its process is reaped, and the next reload is as good as any."""
    rig.read = lambda: time.sleep(60)  # type: ignore[assignment,return-value]
    rig.reload.ask()
    rig.turn()
    rig.clock.advance(room.READ_S)
    rig.turn()
    assert rig.last["errors"] == ["reading and checking them took more than 15 s"]
    rig.read = lambda: Fresh(NEW, {}, None)
    rig.begin()
    rig.answer("prepared", 0, 1)
    assert rig.settings == NEW


@pytest.mark.expects_log
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_read_that_dies_is_told_with_its_cause(rig: Rig, number: signal.Signals) -> None:
    """As by the kernel, for want of memory."""
    rig.read = lambda: os.kill(os.getpid(), number)  # type: ignore[assignment,return-value]
    rig.begin()
    assert rig.last["errors"] == [f"the process that read them was ended by {number.name}"]


@pytest.mark.expects_log
def test_a_fault_of_ours_in_the_read_is_told(rig: Rig) -> None:
    """Its trace goes to the log of that process."""
    rig.read = lambda: 1 // 0  # type: ignore[assignment,return-value]
    rig.begin()
    assert rig.last["errors"] == ["the process that read them ended with status 1"]


@pytest.mark.expects_log
def test_settings_larger_than_a_pipe_come_whole(rig: Rig) -> None:
    keys = {"/etc/hub/key": os.urandom(3_000_000)}
    rig.read = lambda: Fresh(NEW, keys, None)
    rig.begin()
    assert unpack(rig.workers[0].told[0].data).keys == keys


@pytest.mark.expects_log
def test_what_no_pipe_could_take_is_a_mistake(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_DATA_BYTES", 1000)
    rig.begin()
    assert "allowed: 1000" in rig.last["errors"][0] and not rig.workers[0].told[0].data.startswith(b"\x80")


@pytest.mark.expects_log
def test_a_worker_that_has_not_taken_the_last_ones_holds_up_the_next(rig: Rig) -> None:
    """What waits for it is bounded."""
    rig.workers[1].unsent_bytes = room.MAX_DATA_BYTES + 1
    rig.reload.ask()
    rig.turn()
    assert rig.last["errors"] == ["worker 1 has not taken the last ones yet"]


@pytest.mark.expects_log
def test_a_thousand_mistakes_are_twenty_lines_and_a_number(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.read = fails("\n".join(f"key{i}: " + "x" * 1000 for i in range(1000)))
    rig.begin()
    assert len(rig.last["errors"]) == 20 and all(len(line) == 500 for line in rig.last["errors"])
    assert "settings were not changed: 980 more mistakes" in caplog.messages


def test_systemd_hears_of_the_beginning_and_of_the_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    """RELOADING=1 with the monotonic time, as Type=notify-reload wants it, and READY=1 again with what became of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path := str(tmp_path_factory.mktemp("n") / "s"))
        manager.settimeout(5.0)
        rig = Rig({"NOTIFY_SOCKET": path})
        try:
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            rig.begin()
            word, _, usec = manager.recv(1000).decode().partition("\nMONOTONIC_USEC=")
            assert word == "RELOADING=1" and before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            rig.answer("prepared", 0, 1)
            rig.answer("applied", 0, 1)
            assert manager.recv(1000) == b"READY=1\nSTATUS=2 workers; reloaded"
        finally:
            rig.reload.close()
            rig.selector.close()


@pytest.mark.expects_log
def test_whoever_replaces_the_program_waits_for_what_is_left_of_one(rig: Rig) -> None:
    """For the end of a reader that was killed, and for a worker that has not read its instructions."""
    rig.read = lambda: time.sleep(60)  # type: ignore[assignment,return-value]
    rig.reload.ask()
    rig.turn()
    rig.clock.advance(room.READ_S)
    rig.turn()
    assert rig.outcomes == [False] and rig.reload.busy
    deadline = time.monotonic() + 20.0
    while rig.reload.busy and time.monotonic() < deadline:
        rig.reload.reap()
    assert not rig.reload.busy
    rig.workers[1].unsent_bytes = 1
    assert rig.reload.busy
