"""Deploy: a small program under a real supervisor is replaced by its next version, while clients come.

What a version is stands in a file that the program reads whenever it starts: its name, and how its check and its
workers behave. Workers greet each client with "PID GENERATION" and keep the connection.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub.deploy import REASON_CHARS, Check, program
from hub.inheritance import open_checked
from hub.whereabouts import Standing, read
from tests.test_supervisor import alive, greeting, wait_until

PROGRAM = """
import json, logging, os, select, signal, sys, time
from pathlib import Path
directory = Path(sys.argv[-1])
# A release of its own behind the link says itself what it is.
release = Path(os.path.realpath(sys.argv[0])).with_suffix(".version")
version = json.loads((release if release.exists() else directory / "version").read_text())
(directory / "started").write_text(" ".join(sys.argv[1:]))
if sys.argv[1] == "check":
    if version.get("check") == "hang":
        signal.pause()
    if version.get("check") == "wait":
        while not (directory / "go").exists():
            time.sleep(0.02)
    if version.get("check") == "refuse":
        print("some trace", "hub: warning: x", "hub: limits: found 1", "hub: auth: found 2", sep="\\n", file=sys.stderr)
        sys.exit(2)
    if version.get("check") == "broken":
        places = '  File "/usr/bin/hub", line 8', '  File "/opt/hub/lib/hub/worker.py", line 12', "    def (:"
        print(*places, "SyntaxError: invalid syntax", sep="\\n", file=sys.stderr)
        sys.exit(1)
    if version.get("check") == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if version.get("check") == "dies":
        print("a warning", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if version.get("check") == "raves":
        print("hub: limits: found 1", file=sys.stderr, flush=True)
        try:
            while True:
                os.write(2, b"x" * 65_536)
        except PermissionError:
            sys.exit(2)
    if version.get("check") == "flood":
        try:
            while True:
                os.write(2, b"x" * 65_536)
        except PermissionError:
            pass
    if version.get("check") == "long":
        sys.exit("x" * 100_000)
    if version.get("check") == "silent":
        sys.exit(0)
    if version.get("check") != "keeps":
        from hub import inheritance
        inheritance.write_checked(inheritance.peek(os.environ).checked, (directory / "settings").read_bytes())
    print(json.dumps({"ok": True, "boot": True, "version": version["name"]}))
    sys.exit(0)

import hub
hub.__version__ = version["name"]
from hub import bequest, deploy, inheritance, supervisor
from hub.config import Settings
from hub.errors import BootError, ConfigError
from hub.heartbeat import Answer
from hub.instructions import APPLY, PREPARE
from hub.listeners import Listeners
from hub.reloadable import Fresh, unpack
from hub.retreat import Retreat, origin_of
from hub.seat import RETIRE
from hub.systemd import Notifier

logging.basicConfig(level=logging.INFO, format="%(message)s")
supervisor.GRACE_S = supervisor.FAST_GRACE_S = 0.5
options = json.loads((directory / "options").read_text())


def read(checked=None):
    found = json.loads(checked or (directory / "settings").read_text())
    if not isinstance(found, dict):
        raise ConfigError("the settings are no table")
    return Settings(listen=["127.0.0.1:0"], internal=["127.0.0.1:0"], **{**options, **found})


def obey(seat, one):
    try:
        if one.kind == PREPARE:
            unpack(one.data)
            seat.heartbeat.answer(Answer(one.number, "prepared"))
        elif one.kind == APPLY:
            seat.heartbeat.answer(Answer(one.number, "applied"))
    except ConfigError as error:
        seat.heartbeat.answer(Answer(one.number, "refused", str(error)))


class Supervisor(supervisor.Supervisor):
    # Says so when it finds something due a hundred times running, and does nothing about it.
    _at_once = 0

    def _turn(self, timeout_s):
        self._at_once = 0 if timeout_s else self._at_once + 1
        if self._at_once == 100:
            logging.error("spins")
        super()._turn(timeout_s)

    def _open_for_others(self):
        if version.get("fails") == "early" and estate:
            raise RuntimeError("no room")
        super()._open_for_others()

    def _raise_generation(self, estate, now):
        super()._raise_generation(estate, now)
        if version.get("fails") == "late":
            for worker in self._deploy.rising:
                os.kill(worker.pid, signal.SIGSTOP)
            raise RuntimeError("no room")


class Bequest(bequest.Bequest):
    def replace(self, program, estate):
        if version.pop("hangs_up", False):
            os.kill(os.getpid(), signal.SIGHUP)
        super().replace(program, estate)


supervisor.Bequest = Bequest

command = [sys.executable, sys.argv[0]]
if version.get("gone"):
    # The check runs, and the exec finds nothing.
    real = deploy.replace
    bequest.replace = lambda program, estate: real(program._replace(command=("/nowhere/hub",)), estate)
if version.get("nobody"):
    known = None
else:
    paths = (sys.executable, os.path.realpath(sys.argv[0]))
    known = deploy.Program(tuple(command), (str(directory),), () if version.get("unknown") else paths)
estate = inheritance.take(os.environ)
retreat = Retreat(estate, known)
if version.get("spoils"):
    (directory / "settings").write_text("1")
try:
    if estate and estate.back:
        settings = unpack(inheritance.take_checked(estate.checked)).settings
    else:
        settings = read(estate and inheritance.take_checked(estate.checked))
except ConfigError as error:
    sys.exit(str(error))

def work(settings, seat):
    told, retired = [], []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    signal.signal(RETIRE, lambda *_: retired.append(1))
    if version.get("boot") == "error" and seat.slot.index == 1:
        raise BootError("app.module: no such thing")
    if version.get("boot") == "death" and seat.slot.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if version.get("boot") == "hang" and seat.slot.index == 1:
        while not told and not (directory / "go").exists():
            seat.heartbeat.beat()
            time.sleep(0.02)
    listener, clients = seat.slot.public[0], []
    seat.heartbeat.ready()
    while not told and len(retired) < 2 or version.get("clings") and len(retired) == 2:
        if not retired and select.select([listener], [], [], 0.02)[0]:
            try:
                clients.append(listener.accept()[0])
            except BlockingIOError:
                continue  # another generation was quicker
            clients[-1].sendall(b"%d %d\\n" % (os.getpid(), seat.generation))
        if len(retired) == 1 and not (directory / "hold").exists():
            seat.heartbeat.rests()
        if retired:
            time.sleep(0.02)
        for one in seat.instructions.read():
            obey(seat, one)
        seat.heartbeat.beat()
    return 0

if estate is None:
    listeners = Listeners.open(settings, options["workers"])
else:
    listeners = Listeners.inherit(settings, options["workers"], estate.public, estate.internal)
fixed = {"workers": str(options["workers"])}
lineage = deploy.Lineage(origin_of(estate, known), str(directory / "hub.toml"), fixed, -1, estate)
sys.exit(Supervisor(
    settings, listeners, work, notifier=Notifier(os.environ), embedded=None, lineage=lineage,
    reread=lambda: Fresh(read(), {}, None), fresh=Fresh(settings, {}, None), retreat=retreat,
    on_ready=lambda: print(listeners.public[0].port, flush=True),
).run())
"""


class Hub:
    """The program, and what a client and a log reader see of it."""

    def __init__(self, directory: Path, options: dict[str, object]) -> None:
        self.directory = directory
        self.options = {"workers": 2, "drain_window_s": 0, "deploy_timeout_s": 20, **options}
        (directory / "options").write_text(json.dumps(self.options))
        self.settings()
        (directory / "program.py").write_text(PROGRAM)
        self.version("one")

    def release(self, name: str, **behaviour: object) -> None:
        """A program of its own, that the link leads to from now on; the one before stays where it is."""
        (self.directory / f"{name}.py").write_text(PROGRAM)
        (self.directory / f"{name}.version").write_text(json.dumps({"name": name, **behaviour}))
        (self.directory / "next").symlink_to(f"{name}.py")
        (self.directory / "next").replace(self.directory / "program.py")

    def restart(self) -> None:
        """Killed, and started as the version that there is now."""
        self.end()
        self.start()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def start(self) -> None:
        with (self.directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(self.directory / "program.py"), "serve", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.log
        self.port = int(line)

    def version(self, name: str, **behaviour: object) -> None:
        """What the program is from its next start on."""
        (self.directory / "version").write_text(json.dumps({"name": name, **behaviour}))

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log, re.MULTILINE)

    def wait_for(self, pattern: str, count: int = 1) -> None:
        wait_until(lambda: len(self.said(pattern)) >= count, 30.0)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10.0)

    def settings(self, **settings: object) -> None:
        """What its settings file says from now on, besides the options that it was started with."""
        (self.directory / "settings").write_text(json.dumps(settings))

    def go(self) -> None:
        """Who waits may go on."""
        (self.directory / "go").touch()

    def deploy(self) -> None:
        self.process.send_signal(signal.SIGUSR2)

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def standing(self) -> Standing:
        """What it says to `hub deploy`."""
        [standing] = [
            one
            for path in Path("/tmp").glob("hub-relay-*")
            if (one := read(path)) is not None and one.pid == self.process.pid
        ]
        return standing


@pytest.fixture(name="hub")
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    """Start the program; it is gone at the end, with all that it started."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    running: list[Hub] = []

    def start(**options: object) -> Hub:
        running.append(Hub(tmp_path_factory.mktemp("d"), options))
        running[-1].start()
        return running[-1]

    yield start
    for each in running:
        each.end()


def test_a_new_version_takes_over_in_the_same_process(hub: Callable[..., Hub]) -> None:
    """Pid, port and private directory stay; who is connected goes with the old workers, who comes is the new ones'."""
    one = hub()
    with one.connect() as old:
        assert greeting(old)[1] in (1, 2)
        before, where = one.workers(), one.standing()
        one.version("two")
        one.deploy()
        one.wait_for("^the last worker of the old generation has gone$")
        assert select.select([old], [], [], 10)[0] and old.recv(10) == b""
    assert one.said("^version two takes over from one in this process$")
    assert not any(map(alive, before)) and len(one.workers()) == 2
    with one.connect() as new:
        # Numbers go on: no worker is ever taken for an earlier one.
        assert greeting(new)[1] > 2
    after = one.standing()
    assert (where.version, where.done, after.version, after.done, after.failed) == ("one", 0, "two", 1, 0)
    assert one.process.poll() is None
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == 0
    assert not list(Path("/tmp").glob(f"hub-relay-*/{after.pid}"))


def test_what_waits_in_the_accept_queue_is_served(hub: Callable[..., Hub]) -> None:
    """Old workers that are stopped accept nothing; the new ones find who came meanwhile on the same sockets."""
    one = hub(heartbeat_timeout_s=60)
    old = one.workers()
    one.version("two")
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    clients = [one.connect() for _ in range(20)]
    one.deploy()
    assert {greeting(client)[1] for client in clients} <= {3, 4, 5, 6}
    for pid in old:
        os.kill(pid, signal.SIGCONT)
    one.wait_for("^the last worker of the old generation has gone$")
    for client in clients:
        assert not select.select([client], [], [], 0)[0]
        client.close()


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("refuse", "limits: found 1 | auth: found 2"),
        ("broken", "…/lib/hub/worker.py, line 12: SyntaxError: invalid syntax"),
        ("killed", "the check was ended by SIGKILL and said nothing"),
        ("dies", "a warning | the check was ended by SIGKILL"),
        ("raves", "limits: found 1 | the check wrote more than 1,048,576 bytes, and the rest was lost"),
        ("silent", "the check ended with status 0 and said nothing"),
        ("keeps", "the check did not say which settings it has checked"),
        ("long", "x" * REASON_CHARS),
    ],
)
def test_a_version_that_fails_its_check_changes_nothing(hub: Callable[..., Hub], check: str, reason: str) -> None:
    """The reason is in one line of the log and in the answer; workers and connections are the same ones."""
    one = hub()
    before = one.workers()
    with one.connect() as client:
        greeting(client)
        one.version("two", check=check)
        one.deploy()
        one.wait_for("^deploy refused, version one goes on: ")
        [told] = one.said("^deploy refused, version one goes on: (.*)$")
        assert told == reason
        assert not select.select([client], [], [], 0)[0]
    assert one.workers() == before
    standing = one.standing()
    assert (standing.done, standing.failed, standing.version) == (0, 1, "one")
    assert standing.outcome.splitlines() == told.split(" | ")
    # And the next one may be better.
    one.version("three")
    one.deploy()
    one.wait_for("^version three takes over from one in this process$")


def test_a_check_that_writes_without_end_is_cut_short(hub: Callable[..., Hub]) -> None:
    """What is beyond OUTPUT_BYTES has no place, and its answer counts all the same."""
    one = hub()
    one.version("two", check="flood")
    one.deploy()
    one.wait_for("^version two takes over from one in this process$")


def test_a_check_that_does_not_end_is_given_up(hub: Callable[..., Hub]) -> None:
    """After deploy_timeout_s, and its process is gone."""
    one = hub(deploy_timeout_s=1)
    one.version("two", check="hang")
    one.deploy()
    one.wait_for(r"^deploy refused, version one goes on: the check was not done in time \(deploy_timeout_s\)$")
    assert len(one.workers()) == 2


@pytest.mark.parametrize(
    ("boot", "reason"),
    [
        ("error", "app.module: no such thing"),
        ("death", r"worker 1 \(pid \d+\) was ended by SIGKILL after .* s, before all were ready"),
        ("hang", r"worker 1 was not ready in time \(deploy_timeout_s\)"),
    ],
)
def test_a_generation_that_cannot_boot_leaves_the_old_one(hub: Callable[..., Hub], boot: str, reason: str) -> None:
    """The check was good and the boot is not: the old workers never stopped, the new ones go, one line says why."""
    one = hub(deploy_timeout_s=2)
    before = one.workers()
    with one.connect() as client:
        greeting(client)
        one.version("two", boot=boot)
        one.deploy()
        one.wait_for(f"^deploy failed, the old workers go on: {reason}$")
        wait_until(lambda: one.workers() == before, 20.0)
        assert not select.select([client], [], [], 0)[0]
    with one.connect() as client:
        assert greeting(client)[0] in before
    standing = one.standing()
    assert (standing.version, standing.done, standing.failed) == ("one", 0, 1)
    # So says the next one that is refused, too.
    one.version("bad", check="silent")
    one.deploy()
    one.wait_for("^deploy refused, version one goes on: ")
    # The old workers are this version's to look after, and the next deploy is as good as any.
    one.version("three")
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(one.workers()) == 2 and before[0] not in one.workers())
    one.deploy()
    one.wait_for("^deployed version three")
    assert one.said("^version three takes over from one in this process$") and one.standing().version == "three"


def test_a_worker_that_dies_meanwhile_is_not_missed(hub: Callable[..., Hub]) -> None:
    """One of the old generation, while it drains, is not replaced; one of the new is."""
    one = hub()
    (one.directory / "hold").touch()
    old = one.workers()
    one.version("two")
    one.deploy()
    one.wait_for("^deployed version two")
    new = [pid for pid in one.workers() if pid not in old]
    os.kill(old[0], signal.SIGKILL)
    os.kill(new[0], signal.SIGKILL)
    one.wait_for(rf"^worker 0 \(pid {old[0]}\) was ended by SIGKILL after .* s, of generation 1, which has left$")
    one.wait_for("^worker 0 started", 3)
    (one.directory / "hold").unlink()
    one.wait_for("^the last worker of the old generation has gone$")
    wait_until(lambda: len(one.workers()) == 2)
    assert len(one.said("^worker 0 started")) == 3 and len(one.said("^worker 1 started")) == 2


def test_nobody_is_sent_away_before_all_have_stopped_accepting(hub: Callable[..., Hub]) -> None:
    """Who came back to a sibling that is about to retire would have to go again."""
    one = hub()
    (one.directory / "hold").touch()
    with one.connect() as client:
        greeting(client)
        one.version("two")
        one.deploy()
        one.wait_for("^deployed version two")
        assert not select.select([client], [], [], 0.3)[0]
        (one.directory / "hold").unlink()
        assert client.recv(10) == b""


def test_one_that_does_not_leave_is_killed(hub: Callable[..., Hub]) -> None:
    """After its window and the grace; the hub goes on."""
    one = hub(client={"close_timeout_s": 0.5})
    one.version("one", clings=True)
    one.restart()
    one.version("two")
    one.deploy()
    one.wait_for(r"^worker \d \(pid \d+\) did not leave in time and is killed$", 2)
    one.wait_for("^the last worker of the old generation has gone$")
    assert one.process.poll() is None and len(one.workers()) == 2


def test_a_second_wish_waits_for_the_first_one_to_be_over(hub: Callable[..., Hub]) -> None:
    """However often it is repeated: one more deploy, when the old workers have gone, also across the exec."""
    one = hub()
    (one.directory / "hold").touch()
    one.version("two")
    one.deploy()
    one.wait_for("^deployed version two")
    one.version("three")
    for count in range(1, 4):
        one.deploy()
        one.wait_for("^SIGUSR2: a deploy is under way", count)
    assert len(one.workers()) == 4 and not one.said("^version three")
    (one.directory / "hold").unlink()
    one.wait_for("^deployed version three")
    one.wait_for("^the last worker of the old generation has gone$", 2)
    assert one.standing().done == 2 and len(one.said("checking the new version")) == 2


@pytest.mark.parametrize("moment", ["check", "rising", "draining"])
def test_a_stop_in_the_middle_ends_everything(hub: Callable[..., Hub], moment: str) -> None:
    """SIGTERM while the check runs, while the new workers boot, while the old ones drain: both generations end well."""
    one = hub()
    one.version("two", check="hang" if moment == "check" else "", boot="hang" if moment == "rising" else "")
    (one.directory / "hold").touch()
    one.deploy()
    one.wait_for(
        {"check": "checking the new version", "rising": "^worker 1 started", "draining": "^deployed"}[moment],
        2 if moment == "rising" else 1,
    )
    if moment == "check":
        wait_until(lambda: (one.directory / "started").read_text().startswith("check"))
    pids = one.workers()
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == 0
    assert not any(map(alive, pids))


def test_a_hub_that_waits_to_stop_begins_no_deploy(hub: Callable[..., Hub]) -> None:
    """With shutdown_delay_s: one that goes on is given up, and another is not begun."""
    one = hub(shutdown_delay_s=3600)
    one.version("two", check="wait")
    one.deploy()
    one.wait_for("checking the new version")
    one.process.send_signal(signal.SIGTERM)
    one.wait_for("^deploy refused: the hub stops$")
    one.deploy()
    one.go()
    with one.connect() as client:
        assert greeting(client)[0] in one.workers()
    os.kill(one.workers()[0], signal.SIGKILL)
    one.wait_for("^worker . started", 3)  # a turn later, and nothing else has begun
    assert len(one.said("checking the new version")) == 1 and not one.said("takes over|^spins$")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10) == 0


class Undying:
    """A process in a system call that never returns."""

    pid = 4711

    def kill(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is not None and timeout < 5
        raise subprocess.TimeoutExpired("hub", timeout)


@pytest.mark.expects_log
def test_a_check_that_not_even_a_kill_ends_is_not_waited_for() -> None:
    """The supervisor has workers to watch over."""
    check = object.__new__(Check)
    check._process = Undying()  # type: ignore[assignment]
    check._output, check._errors = os.pipe()
    check._checked = open_checked()
    check.end()
    for descriptor in (check._output, check._errors, check._checked):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


# How a hub was started.


def test_a_script_is_run_by_its_own_first_line(tmp_path: Path) -> None:
    """A console script behind a link that is switched names its interpreter itself."""
    script = tmp_path / "hub"
    script.write_text("#!/somewhere/python\n")
    arguments = [str(script), "serve", "--config", "x"]
    interpreter = ["/old/bin/python", *arguments]
    assert program(arguments, interpreter)[:2] == (("/old/bin/python", str(script)), ("--config", "x"))
    script.chmod(0o755)
    assert program(arguments, interpreter)[:2] == ((str(script),), ("--config", "x"))


def test_the_way_back_names_what_links_lead_to_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of an environment, whose interpreter is a link itself, and the script."""
    (tmp_path / "v1" / "bin").mkdir(parents=True)
    (tmp_path / "v1" / "bin" / "hub").touch()
    (tmp_path / "v1" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "now").symlink_to("v1")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "now" / "bin" / "python"))
    arguments = [str(tmp_path / "now" / "bin" / "hub"), "serve"]
    real = program(arguments, ["python", "-I", *arguments]).real
    assert real == (f"{tmp_path}/v1/bin/python", "-I", f"{tmp_path}/v1/bin/hub")


def test_a_module_is_run_as_it_was() -> None:
    """With the interpreter's own options."""
    found = program(["/x/hub/__main__.py", "serve"], ["python", "-X", "dev", "-m", "hub", "serve"])
    assert found[:2] == (("python", "-X", "dev", "-m", "hub"), ()) and found.real[1:] == ("-X", "dev", "-m", "hub")
