"""Processes: backoff, judgement and burial, with a moved clock and real children where one must die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from hub.config import Settings
from hub.errors import BootError
from hub.heartbeat import Heartbeat
from hub.instructions import Instructions
from hub.listeners import Slot
from hub.processes import NEVER, Backoff, KeptValkey, WorkerProcess, describe_end


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    """Patience 10 s, and 5 s more before it is ready."""
    worker = WorkerProcess(Slot(0, (), ()), Settings(heartbeat_timeout_s=10, redis={"start_timeout_s": 5}))
    yield worker
    if worker.pid:
        worker.tell(signal.SIGKILL)
        worker.reap(0.0, options=0)
    worker.close_pipes()


def sleeping_child(kept: list[Heartbeat]) -> Callable[[Heartbeat, Instructions], int]:
    """A fork of `sleep`. kept: receives a second worker's end, as the child itself will not beat."""

    def fork(heartbeat: Heartbeat, instructions: Instructions) -> int:
        kept.append(Heartbeat(os.dup(heartbeat._fd)))
        return os.posix_spawnp("sleep", ["sleep", "60"], {})

    return fork


@pytest.fixture
def heartbeat(worker: WorkerProcess) -> Iterator[Heartbeat]:
    """The worker's end of a child that was forked at 100 s."""
    kept: list[Heartbeat] = []
    worker.fork(sleeping_child(kept), now=100.0)
    yield kept[0]
    kept[0].close()


def test_young_deaths_back_off_and_a_long_life_forgets_them() -> None:
    """0.1 s doubles up to 10 s; a process that lived 5 s is replaced at once, and the next series begins at 0.1 s."""
    backoff = Backoff()
    assert [backoff.after(1.0) for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert [backoff.after(5.0), backoff.after(4.9), backoff.after(0.0)] == [0.0, 0.1, 0.2]


def test_a_slot_without_a_process_is_due_at_its_fork(worker: WorkerProcess) -> None:
    """Nothing is due until a fork is planned, and signals to nobody have no effect."""
    assert worker.due_s() == NEVER and not worker.silent(1e9) and worker.reap(0.0) is None
    worker.tell(signal.SIGKILL)
    assert worker.plan_next(1.0, now=50.0) == 0.1 and worker.due_s() == 50.1


@pytest.mark.usefixtures("heartbeat")
def test_a_booting_worker_has_the_time_for_redis_too(worker: WorkerProcess) -> None:
    """Before it is ready, heartbeat_timeout_s and redis.start_timeout_s add up."""
    assert worker.due_s() == 115.0
    assert not worker.silent(114.9) and worker.silent(115.0) and not worker.silent(116.9, slack_s=2.0)


def test_a_ready_worker_has_its_time_from_the_last_beat(worker: WorkerProcess, heartbeat: Heartbeat) -> None:
    """Ready at 101 s, so due at 111 s; forgiven at 105 s, so due at 115 s."""
    heartbeat.ready()
    assert worker.pulse is not None and worker.pulse.read(101.0)
    assert worker.ready and worker.due_s() == 111.0
    worker.forgive(105.0)
    assert worker.due_s() == 115.0


def test_beats_that_wait_in_the_pipe_are_read_before_the_judgement(worker: WorkerProcess, heartbeat: Heartbeat) -> None:
    """A supervisor that was stopped for longer than the timeout does not kill workers that kept beating."""
    heartbeat.ready()
    heartbeat.beat()
    worker.judge(200.0)
    assert worker.due_s() == 210.0


@pytest.mark.expects_log
@pytest.mark.usefixtures("heartbeat")
def test_a_silent_worker_gets_sigabrt_even_when_it_is_stopped(worker: WorkerProcess) -> None:
    """SIGCONT makes a stopped process take the SIGABRT."""
    worker.tell(signal.SIGSTOP)
    worker.judge(116.0)
    assert worker.due_s() == 118.0
    # Without SIGCONT it would stay stopped for ever; SIGKILL bounds the wait.
    alarm = threading.Timer(5.0, os.kill, (worker.pid, signal.SIGKILL))
    alarm.start()
    ended = worker.reap(117.0, options=0)
    alarm.cancel()
    assert ended is not None and ended.code == -signal.SIGABRT
    assert str(ended) == f"worker 0 (pid {ended.pid}) was ended by SIGABRT after 17.0 s"
    ended.pulse.close()


@pytest.mark.expects_log
def test_one_that_survives_sigabrt_is_killed_after_two_seconds(worker: WorkerProcess) -> None:
    """SIGKILL follows once, and not before its time."""
    told: list[signal.Signals] = []
    worker.fork(lambda *_: os.posix_spawnp("sleep", ["sleep", "60"], {}), now=0.0)
    really_tell, worker.tell = worker.tell, told.append  # type: ignore[method-assign]
    for now in (15.0, 16.9, 17.0, 18.0):
        worker.judge(now)
    worker.tell = really_tell  # type: ignore[method-assign]
    assert told == [signal.SIGABRT, signal.SIGCONT, signal.SIGKILL]
    assert worker.due_s() == NEVER


def test_a_slot_that_is_without_a_worker_for_a_minute_is_told_of_once(
    worker: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that boots and never accepts is none; a new one that does is told of, too, if its lack was."""
    caplog.set_level("WARNING")
    kept: list[Heartbeat] = []

    def told(*seconds: float) -> list[str]:
        caplog.clear()
        for now in seconds:
            worker.note_vacancy(now)
        return caplog.messages

    assert told(100.0, 159.0) == []
    worker.fork(sleeping_child(kept), now=159.5)
    try:
        words = "newcomers that the kernel gives it wait; why is logged above"
        assert told(160.0, 161.0, 300.0) == [f"slot 0 has had no worker for 60 s: {words}"]
        kept[0].ready()
        assert worker.pulse is not None
        worker.pulse.read(301.0)
        assert told(301.0, 302.0) == ["slot 0 has a worker again, after 201 s"]
        worker.pulse.ready = False
        assert told(400.0, 459.0) == []
        worker.pulse.ready = True
        assert told(459.5) == []
        worker.pulse.ready = False
        assert told(460.0, 519.0) == []
    finally:
        kept[0].close()


def test_what_the_pipe_held_at_the_end_is_not_lost(worker: WorkerProcess, heartbeat: Heartbeat) -> None:
    """The text of a failed boot is there when the death is reported; afterwards the slot is empty."""
    heartbeat.boot_failed("Redis is away")
    worker.tell(signal.SIGKILL)
    ended = worker.reap(101.0, options=0)
    assert ended is not None and ended.pulse.failure == "Redis is away"
    assert worker.pid == 0 and worker.pulse is None and worker.reap(102.0) is None
    ended.pulse.close()


def test_a_failed_fork_leaves_no_pipe_behind(worker: WorkerProcess) -> None:
    """When the machine has no room for another process, both ends are closed and the slot is empty."""

    def fail(*_: object) -> int:
        raise BlockingIOError("no room")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no room"):
        worker.fork(fail, now=0.0)
    assert len(os.listdir("/proc/self/fd")) == before and worker.pulse is None and worker.pid == 0


class FailingValkey:
    """An Embedded that has ended and that can be told how its next starts go."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.starts: list[bool | BootError] = []

    def exit_status(self) -> int | None:
        return self.status

    def start(self) -> bool:
        outcome = self.starts.pop(0)
        if isinstance(outcome, BootError):
            raise outcome
        self.status = None if outcome else self.status
        return outcome


@pytest.mark.expects_log
def test_valkey_is_started_again_until_it_runs() -> None:
    """At once after a long life; after a start that failed or came too early, with backoff."""
    embedded = FailingValkey()
    valkey = KeptValkey(embedded, now=0.0)  # type: ignore[arg-type]
    valkey.reap(50.0)
    assert valkey.start_s == NEVER
    embedded.status = -9
    valkey.reap(60.0)
    valkey.reap(60.0)
    assert valkey.start_s == 60.0
    embedded.starts = [BootError("no room"), False, True]
    expected = [60.1, 60.3, NEVER]
    for due_s in expected:
        valkey.start_if_due(valkey.start_s)
        assert valkey.start_s == pytest.approx(due_s)
    valkey.start_if_due(1000.0)
    assert embedded.starts == []


def test_valkey_that_was_down_at_a_deploy_is_started_at_once() -> None:
    """Its end was seen by the version before."""
    embedded = FailingValkey()
    embedded.starts = [True]
    valkey = KeptValkey(embedded, now=7.0, running=False)  # type: ignore[arg-type]
    assert valkey.start_s == 7.0
    valkey.reap(7.0)
    valkey.start_if_due(7.0)
    assert (valkey.start_s, embedded.starts) == (NEVER, [])


def test_an_heir_knows_of_a_worker_what_was_known(worker: WorkerProcess, heartbeat: Heartbeat) -> None:
    """Pid, generation, readiness, age, and how often it beats; its time for the next beat begins anew."""
    heartbeat.ready()
    worker.generation = 5
    assert worker.pulse is not None and worker.pulse.read(101.0)
    record = worker.record()
    settings = Settings(heartbeat_timeout_s=1, drain_window_s=0, redis={"start_timeout_s": 5})
    heir = WorkerProcess.inherit(worker.slot, settings, record, now=130.0)
    assert (heir.pid, heir.generation, heir.ready, heir.rests, heir.due_s()) == (worker.pid, 5, True, False, 140.0)
    assert heir.goodbye_s == worker.goodbye_s > 30
    heartbeat.rests()
    assert heir.pulse is not None and heir.pulse.read(131.0) and heir.rests
    heir.tell(signal.SIGKILL)
    ended = heir.reap(131.0, options=0)
    assert ended is not None and (ended.generation, ended.code, ended.lived_s) == (5, -9, 31.0)
    worker.pid = 0


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with status 0"),
        (3, "ended with status 3"),
        (-9, "was ended by SIGKILL"),
        (-40, "was ended by signal 40"),
    ],
)
def test_an_end_has_words(code: int, text: str) -> None:
    """Exit statuses by number, signals by name where they have one."""
    assert describe_end(code) == text
