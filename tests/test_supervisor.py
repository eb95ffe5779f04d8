"""Supervisor: a small program under a real one, killed, stopped and told to stop from outside.

The program's workers greet each client with "PID GENERATION" and keep the connection.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from hub import facts

PROGRAM = """
import json, logging, os, select, signal, sys, time
from pathlib import Path
from hub import processes, supervisor
from hub.config import Settings
from hub.embedded import Embedded
from hub.errors import BootError
from hub.listeners import Listeners
from hub.systemd import Notifier

behaviour, directory, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
logging.basicConfig(level=logging.INFO, format="%(message)s")
supervisor.GRACE_S = supervisor.FAST_GRACE_S = 0.5
if behaviour == "crash loop":
    processes.VACANT_S = 0.3
settings = Settings(listen=["127.0.0.1:0"], internal=["127.0.0.1:0"], **options)

def work(settings, seat):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    if behaviour == "boot error" and seat.slot.index == 1:
        raise BootError("redis.url: nobody answers")
    if behaviour == "boot death" and seat.slot.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "crash loop" and seat.respawned:
        sys.exit(7)
    if behaviour == "gate" and seat.slot.index == 1:
        (directory / "waiting").touch()
        while not (directory / "gate").exists():
            select.select([], [], [], 0.01)
    enough = {"deaf": 10, "slow": 2}.get(behaviour, 1)
    listener, clients = seat.slot.public[0], []
    seat.heartbeat.ready()
    while len(told) < enough:
        if select.select([listener], [], [], 0.05)[0]:
            clients.append(listener.accept()[0])
            clients[-1].sendall(b"%d %d\\n" % (os.getpid(), seat.generation))
        seat.heartbeat.beat()
        if told:
            (directory / "told").touch()
    return 9 if behaviour == "bad end" else 0

listeners = Listeners.open(settings, options["workers"])
embedded = Embedded(settings, directory) if behaviour == "embedded" else None

def on_ready():
    line = {"port": listeners.public[0].port, "valkey": embedded and [embedded.pid, embedded.url]}
    print(json.dumps(line), flush=True)

jumped = []

def clock():
    # As after a pause of the whole machine: 100 s are gone between two turns.
    if behaviour != "pause" or not (directory / "jump").exists():
        return time.monotonic()
    jumped.append(1)
    if len(jumped) == 20:
        (directory / "jumped").touch()
    return time.monotonic() + 100.0

if behaviour == "no room":
    supervisor.fork_worker = lambda *_: os.open("/nowhere/at/all", 0)
sys.exit(supervisor.Supervisor(
    settings, listeners, work, notifier=Notifier(os.environ), embedded=embedded, on_ready=on_ready, clock=clock
).run())
"""


class Hub:
    """The program, and what a client, a terminal and a log reader see of it."""

    def __init__(self, directory: Path, behaviour: str, environ: dict[str, str], options: dict[str, object]) -> None:
        self.log = directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, behaviour, str(directory), json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environ},
                start_new_session=True,  # a terminal's group, for Ctrl-C
            )
        self.workers = int(str(options["workers"]))

    def wait_ready(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        ready = json.loads(line)
        self.port = ready["port"]
        self.valkey_pid, self.valkey_url = ready["valkey"] or (0, "")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5.0)

    def pids(self) -> list[int]:
        """By slot, from the log: the newest process of each."""
        newest = dict(re.findall(r"^worker (\d+) started, pid (\d+)$", self.log.read_text(), re.MULTILINE))
        return [int(newest[str(index)]) for index in range(self.workers)]

    def lines(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text(), re.MULTILINE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(10.0)


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def hub(directory: Path) -> Iterator[Callable[..., Hub]]:
    """Start the program; it is gone at the end, with all that it started."""
    running: list[Hub] = []

    def start(behaviour: str = "", environ: dict[str, str] | None = None, **options: object) -> Hub:
        running.append(Hub(directory, behaviour, environ or {}, {"workers": 2, "drain_window_s": 0, **options}))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.wait()
        assert each.process.stdout
        each.process.stdout.close()


def greeting(client: socket.socket) -> tuple[int, int]:
    """(pid, generation) of the worker that has accepted."""
    with client.makefile() as lines:
        pid, generation = lines.readline().split()
    return int(pid), int(generation)


def alive(pid: int) -> bool:
    """False for a zombie too: whoever inherits it may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_killed_worker_is_replaced_and_its_queue_is_served(hub: Callable[..., Hub]) -> None:
    """A connection that waits in the accept queue of a worker under kill -9 is greeted by the next one within 1 s."""
    program = hub(workers=1)
    program.wait_ready()
    (pid,) = program.pids()
    os.kill(pid, signal.SIGSTOP)
    with program.connect() as queued:
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        successor, generation = greeting(queued)
        assert time.monotonic() - killed_s < 1.0
    assert successor != pid and generation == 2
    assert program.stop() == 0


def test_the_others_notice_nothing(hub: Callable[..., Hub]) -> None:
    """Connections of another worker stay open, and that worker is not replaced."""
    program = hub()
    program.wait_ready()
    clients = [program.connect() for _ in range(16)]
    killed, kept = program.pids()
    undisturbed = [client for client in clients if greeting(client)[0] == kept]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: program.pids()[0] != killed)
    # An ended connection would be readable.
    assert undisturbed and not select.select(undisturbed, [], [], 0)[0]
    for client in clients:
        client.close()
    assert program.pids()[1] == kept and alive(kept)
    assert program.lines(rf"^worker 0 \(pid {killed}\) was ended by SIGKILL after .* starts in 0\.1 s$")


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_why_workers_end_is_told_for_metrics(hub: Callable[..., Hub], directory: Path, how: str) -> None:
    """With the beat of the loop, in the directory that workers share; which is gone when the hub is."""
    program = hub(heartbeat_timeout_s=1, environ={"RUNTIME_DIRECTORY": str(directory)})
    program.wait_ready()
    (home,) = directory.glob("hub-relay-*")
    assert facts.read(str(home))["pid"] == program.process.pid
    first = program.pids()[0]
    os.kill(first, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    wait_until(lambda: program.pids()[0] != first)
    reason = "SIGKILL" if how == "killed" else "silent"
    assert facts.read(str(home))["counts"] == {"worker_restarts": {reason: 1}}
    wait_until(lambda: (facts.beat_age_s(str(home), time.monotonic()) or 0.0) < 1.5)
    assert program.stop() == 0 and not home.exists()


def test_a_hung_worker_writes_its_stack_and_is_replaced(hub: Callable[..., Hub]) -> None:
    """SIGSTOP for longer than heartbeat_timeout_s: SIGABRT, a dump, another process; the other one stays."""
    program = hub(heartbeat_timeout_s=1)
    program.wait_ready()
    hung, kept = program.pids()
    os.kill(hung, signal.SIGSTOP)
    wait_until(lambda: program.pids()[0] != hung)
    assert program.lines(rf"^worker 0 \(pid {hung}\) is silent for 1 s and is killed$")
    assert program.lines("^Fatal Python error: Aborted$") and program.lines(" in work$")
    assert program.pids()[1] == kept
    assert program.stop() == 0


def test_a_pause_of_everything_is_nobodys_fault(hub: Callable[..., Hub], directory: Path) -> None:
    """After Ctrl-Z or a snapshot of the machine, workers get their time anew and are not killed for the silence."""
    program = hub("pause", heartbeat_timeout_s=5)
    program.wait_ready()
    pids = program.pids()
    os.kill(pids[0], signal.SIGSTOP)
    (directory / "jump").touch()
    wait_until((directory / "jumped").exists)
    os.kill(pids[0], signal.SIGCONT)
    assert program.stop() == 0
    assert program.pids() == pids and not program.lines("silent")


@pytest.mark.parametrize(
    ("behaviour", "pattern"),
    [
        ("boot error", r"^hub: redis\.url: nobody answers$"),
        ("boot death", r"^hub: worker 1 \(pid \d+\) was ended by SIGKILL after .* s, before it was ready$"),
        ("no room", r"^hub: cannot fork worker 0: No such file or directory$"),
    ],
)
def test_a_worker_that_cannot_boot_stops_the_start(hub: Callable[..., Hub], behaviour: str, pattern: str) -> None:
    """Exit status 3, one line with the cause, no ready line, nobody left."""
    program = hub(behaviour)
    assert program.process.wait(10.0) == 3
    assert len(program.lines("^hub: ")) == len(program.lines(pattern)) == 1
    assert program.process.stdout and program.process.stdout.read() == ""
    assert not any(alive(int(pid)) for pid in program.lines(r"^worker \d started, pid (\d+)$"))


def test_a_crash_loop_backs_off_and_the_rest_serves(hub: Callable[..., Hub]) -> None:
    """Starts come 0.1, 0.2, 0.4 s after the deaths; the hub stays up, says who waits meanwhile, and ends well."""
    program = hub("crash loop")
    program.wait_ready()
    crashing, kept = program.pids()
    os.kill(crashing, signal.SIGKILL)
    wait_until(lambda: len(program.lines("starts in")) == 3)
    assert program.lines(r"starts in (.*) s$") == ["0.1", "0.2", "0.4"]
    assert len(program.lines(r"^worker 0 \(pid \d+\) ended with status 7 ")) == 2
    wait_until(lambda: program.lines("^slot 0 has had no worker for 0 s: newcomers"))
    assert not program.lines("^slot 1 ")
    assert alive(kept) and program.stop() == 0


def test_nothing_outlives_a_killed_supervisor(hub: Callable[..., Hub]) -> None:
    """kill -9 gives it no chance; the kernel ends the workers and Valkey."""
    program = hub("embedded")
    program.wait_ready()
    pids = [*program.pids(), program.valkey_pid]
    assert all(map(alive, pids))
    program.process.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_a_killed_valkey_is_started_again_and_stopped_last(hub: Callable[..., Hub]) -> None:
    """The workers stay; the stop ends Valkey after them, by its own clean shutdown."""
    program = hub("embedded")
    program.wait_ready()
    pids = program.pids()
    os.kill(program.valkey_pid, signal.SIGKILL)
    wait_until(lambda: program.lines(r"^the embedded Valkey was ended by SIGKILL; next start in 0\.1 s$"))
    with redis.Redis.from_url(program.valkey_url) as commands:
        wait_until(lambda: answers(commands))
    assert program.pids() == pids
    assert program.stop() == 0
    assert program.log.read_text().rindex("Valkey is now ready to exit") > program.log.read_text().rindex("worker ")


def answers(commands: redis.Redis) -> bool:
    try:
        return bool(commands.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_with_status_0(hub: Callable[..., Hub], number: signal.Signals) -> None:
    """Workers are told by SIGTERM and end by themselves; then nobody listens any more."""
    program = hub()
    program.wait_ready()
    assert program.stop(number) == 0
    assert len(program.lines(r"^worker \d \(pid \d+\) ended with status 0 ")) == 2
    with pytest.raises(ConnectionRefusedError):
        program.connect()


def test_ctrl_c_reaches_the_workers_through_the_supervisor_alone(hub: Callable[..., Hub]) -> None:
    """A terminal sends SIGINT to the whole group; workers ignore it and are told once, so that they drain."""
    program = hub()
    program.wait_ready()
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.process.wait(10.0) == 0
    assert len(program.lines(r"^worker \d \(pid \d+\) ended with status 0 ")) == 2
    assert not program.lines("KeyboardInterrupt")


def test_new_clients_are_refused_while_the_workers_still_drain(hub: Callable[..., Hub]) -> None:
    """The supervisor lets go of its listeners; only a worker's own copies could still take a client in."""
    program = hub("deaf", workers=1, drain_window_s=5)
    program.wait_ready()
    (pid,) = program.pids()
    os.kill(pid, signal.SIGSTOP)
    program.process.send_signal(signal.SIGTERM)
    wait_until(lambda: program.lines("^SIGTERM: stopping, clients are closed within 5 s$"))
    wait_until(lambda: listeners_of(program.process.pid) == 0)
    assert listeners_of(pid) == 2


def test_before_the_listeners_close_balancers_have_their_time(hub: Callable[..., Hub]) -> None:
    """The hub says so and serves on, also where a worker dies; a second signal ends the wait, and all end well."""
    program = hub(drain_window_s=7, shutdown_delay_s=3600)
    program.wait_ready()
    [home] = [
        each for each in Path("/tmp").glob("hub-relay-*") if facts.read(str(each)).get("pid") == program.process.pid
    ]
    assert "stopping" not in facts.read(str(home))
    program.process.send_signal(signal.SIGTERM)
    wait_until(lambda: program.lines("^SIGTERM: /readyz answers 503, and the hub serves on for 3600 s$"))
    assert facts.read(str(home))["stopping"] == 1
    os.kill(program.pids()[0], signal.SIGKILL)
    wait_until(lambda: len(program.lines("^worker 0 started")) == 2)
    for _ in range(4):
        with program.connect() as client:
            assert greeting(client)[0] in program.pids()
    assert not program.lines("closed within")
    assert program.stop() == 0
    assert program.lines("^SIGTERM: stopping, clients are closed within 7 s$")


def test_the_time_of_balancers_ends_by_itself(hub: Callable[..., Hub]) -> None:
    program = hub(shutdown_delay_s=0.5)
    program.wait_ready()
    begun = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - begun >= 0.5
    with pytest.raises(ConnectionRefusedError):
        program.connect()


def test_a_start_that_fails_does_not_wait_for_balancers(hub: Callable[..., Hub]) -> None:
    """Nobody has ever been sent here."""
    program = hub("boot error", shutdown_delay_s=3600)
    assert program.process.wait(10.0) == 3


def listeners_of(pid: int) -> int:
    """How many TCP listeners a process holds."""
    listening = {
        line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    }
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    return sum(link.removeprefix("socket:[").rstrip("]") in listening for link in links)


def test_each_worker_holds_its_own_listeners_alone(hub: Callable[..., Hub]) -> None:
    """The supervisor has every slot's public and internal listener, a worker one of each."""
    program = hub()
    program.wait_ready()
    assert [listeners_of(pid) for pid in [program.process.pid, *program.pids()]] == [4, 2, 2]


def test_a_second_signal_is_forwarded(hub: Callable[..., Hub], directory: Path) -> None:
    """Workers that drain slowly learn that they shall hurry, and end well."""
    program = hub("slow", drain_window_s=60)
    program.wait_ready()
    program.process.send_signal(signal.SIGTERM)
    wait_until((directory / "told").exists)
    # Two SIGTERMs at the same time would be one.
    wait_until(lambda: all(not pending_sigterm(pid) for pid in program.pids()))
    assert program.stop() == 0


def pending_sigterm(pid: int) -> bool:
    pending = re.search(r"^ShdPnd:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return pending is not None and bool(int(pending[1], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize(("behaviour", "killed"), [("deaf", 2), ("bad end", 0)])
def test_a_bad_end_of_a_worker_is_the_hubs(hub: Callable[..., Hub], behaviour: str, killed: int) -> None:
    """Exit status 1 for a worker that fails while it stops, and for one that has to be killed after the grace."""
    program = hub(behaviour)
    program.wait_ready()
    assert program.stop() == 1
    assert len(program.lines("did not stop in time and is killed$")) == killed


def test_a_stop_before_everybody_is_ready_is_a_good_end(hub: Callable[..., Hub], directory: Path) -> None:
    """The operator may change his mind: exit status 0, no ready line, no waiting for the boot."""
    program = hub("gate")
    wait_until((directory / "waiting").exists)
    program.process.send_signal(signal.SIGTERM)
    wait_until(lambda: program.lines("^SIGTERM: stopping"))
    (directory / "gate").touch()
    assert program.process.wait(10.0) == 0
    assert program.process.stdout and program.process.stdout.read() == ""


def test_systemd_hears_ready_watchdog_and_stopping(hub: Callable[..., Hub], directory: Path) -> None:
    """READY=1 not before the last worker is ready, then WATCHDOG=1 again and again, STOPPING=1 at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(5.0)
        program = hub("gate", {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "200000"})
        wait_until((directory / "waiting").exists)
        assert not select.select([manager], [], [], 0.2)[0], "ready before the last worker was"
        (directory / "gate").touch()
        heard = [manager.recv(1000) for _ in range(4)]
        assert heard == [b"READY=1\nSTATUS=2 workers", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        program.wait_ready()
        program.process.send_signal(signal.SIGTERM)
        wait_until(lambda: manager.recv(1000) == b"STOPPING=1")
        assert program.process.wait(10.0) == 0


def test_the_soft_limit_of_descriptors_is_raised_for_all(hub: Callable[..., Hub]) -> None:
    """Supervisor and workers may open as many files as the hard limit allows."""
    program = hub()
    program.wait_ready()
    for pid in [program.process.pid, *program.pids()]:
        limits = re.search(r"^Max open files\s+(\d+)\s+(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
        assert limits and limits[1] == limits[2]
