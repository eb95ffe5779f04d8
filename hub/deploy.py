"""Deploy: new code in a running hub: the new version is tried out, takes this process over, and brings its own workers.

    SIGUSR2 ─▶ `hub check --boot` of the new version ─ ok ─▶ execve ─▶ a new generation boots ─ all ready ─▶ the old one
                    └─ refused: nothing has happened               └─ one can't: the old one goes on         retires

Does: run the check in bounded time, make the exec or go on as before, hold the two generations that there are
meanwhile, say who retires when, count.
Does not: fork, reap or read pipes (supervisor), or know what is left to the heir (inheritance) and how workers drain.
Called by: supervisor.
Never break: at every moment one whole generation accepts, or its successor does on the same sockets; a version that
can't boot costs nobody a connection.

A second wish while one is under way is noted, once, and begins when the last worker of the old generation has gone: a
third generation beside two others would cost memory and send clients away twice in one window.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from . import __version__
from .config import Settings
from .inheritance import VARIABLE, Estate, Tally, open_checked, seal, seal_checked
from .prctl import die_with_parent
from .processes import NEVER, Ended, WorkerProcess, describe_end
from .seat import RETIRE
from .whereabouts import STOPS

logger = logging.getLogger(__name__)

REST_S = 5.0
"""For the workers of a generation to stop accepting, which takes them a turn of their loops."""
KILL_S = 1.0
"""For a check that was killed. One that hangs in the kernel, as on a dead file system, is left to subprocess, which
reaps it later: who waits here watches over no worker."""
OUTPUT_BYTES = 1_048_576
"""Of the check, standard output and error each; what it writes beyond that fails there."""
REASON_LINES = 8
REASON_CHARS = 1000
"""Of its errors, and of each of them, in the log and in the answer to `hub deploy`."""


class Program(NamedTuple):
    """How this hub was started. command: what stands for `hub`; options: those of `hub serve`.

    real: the same command by paths that no link leads to, as they were at the start; () where that is not known.
    """

    command: tuple[str, ...]
    options: tuple[str, ...]
    real: tuple[str, ...] = ()


def program(arguments: Sequence[str], interpreter: Sequence[str]) -> Program:
    """From sys.argv and sys.orig_argv.

    A script is run by its own first line, not by our interpreter: behind a switched link both may be new ones, and the
    script names the one that it was made for. `python -m hub` is run as it was.
    """
    rest = len(arguments) - 1
    script, head = arguments[0], tuple(interpreter[: len(interpreter) - rest])
    real = (_real_interpreter(), *(os.path.realpath(word) if word == script else word for word in head[1:]))
    if head[-1:] == (script,) and _runs_by_itself(script):
        head = (script,)
    return Program(head, tuple(arguments[2:]), real)


def _real_interpreter() -> str:
    """A virtual environment's own, which is a link itself, in the directory that is no link."""
    directory, name = os.path.split(sys.executable)
    return os.path.join(os.path.realpath(directory), name)


def _runs_by_itself(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            executable = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o111
            return bool(executable) and file.read(2) == b"#!"
    except OSError:
        return False


class Lineage(NamedTuple):
    """Where a supervisor comes from, and what it leaves.

    program: how it was started, None where nobody knows. config: its settings file, absolute. fixed: settings that a
    deploy can't change, by name. state_lock: of the state directory, -1 for none. estate: what the version before left.
    """

    program: Program | None = None
    config: str = ""
    fixed: Mapping[str, str] = MappingProxyType({})
    state_lock: int = -1
    estate: Estate | None = None


NO_LINEAGE = Lineage()


class Refused(Exception):
    """The new version does not take over; the text says why, in lines."""


class Approval(NamedTuple):
    """Of a check. version: that may take over. checked: the file with the settings that it has found good, sealed; who
    has the approval closes it.
    """

    version: str
    checked: int


class Check:
    """`hub check --boot` of the new version, as a child. `due_s`: when it is given up."""

    def __init__(self, program: Program, estate: Estate, due_s: float) -> None:
        """Start it. Raises OSError when there is no such program, or no room."""
        self.due_s = due_s
        self._output, self._errors = _bounded_file("hub-check"), _bounded_file("hub-check-errors")
        self._checked = open_checked()
        words = seal(estate.model_copy(update={"checked": self._checked}))
        parent_pid = os.getpid()
        try:
            self._process = subprocess.Popen(
                [*program.command, "check", "--boot", "--json", *program.options],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                pass_fds=(words, self._checked),
                env={**os.environ, VARIABLE: str(words)},
                # Ctrl-C at a terminal is ours to judge.
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent_pid),
            )
        except OSError:
            self.close()
            raise
        finally:
            os.close(words)

    def outcome(self, now: float) -> Approval | None:
        """None while the check runs. Raises Refused."""
        status = self._process.poll()
        if status is None and now < self.due_s:
            return None
        if status is None:
            self.end()
            raise Refused("the check was not done in time (deploy_timeout_s)")
        output, errors = _content(self._output), _content(self._errors)
        full = _is_full(self._output) or _is_full(self._errors)
        try:
            found = json.loads(output)
            if status == 0 and found["ok"] and found["boot"]:
                if not seal_checked(self._checked):
                    raise Refused("the check did not say which settings it has checked")
                return Approval(str(found["version"]), os.dup(self._checked))
        except (ValueError, KeyError, TypeError, OSError):
            pass  # whatever it was, it did not say yes
        finally:
            self.close()
        raise Refused(_reason(errors, status, full))

    def end(self) -> None:
        """Give it up. Call once, and not after an outcome."""
        self._process.kill()
        try:
            self._process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            logger.error("the check (pid %d) does not even end when it is killed", self._process.pid)
        self.close()

    def close(self) -> None:
        for file in (self._output, self._errors, self._checked):
            os.close(file)


def _bounded_file(name: str) -> int:
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, OUTPUT_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def _content(file: int) -> str:
    return os.pread(file, OUTPUT_BYTES, 0).rstrip(b"\0").decode(errors="replace")


def _is_full(file: int) -> bool:
    return os.pread(file, 1, OUTPUT_BYTES - 1) not in (b"", b"\0")


_PLACE = re.compile(r'^\s*File "(.+)", line (\d+)')
"""Of a traceback, and of a syntax error."""
PLACE_PARTS = 3
"""Of a path: '…/site-packages/hub/worker.py'."""


def _reason(errors: str, status: int, full: bool) -> str:
    """The lines that the check means for people; where it has none of them, its last one, and where that was.

    full: it has written more than there was room for.
    """
    lines = [line for line in errors.splitlines() if line.strip()]
    meant = [line.removeprefix("hub: ") for line in lines if line.startswith("hub: ") and "warning" not in line]
    found = meant[:REASON_LINES] or _last_words(lines) or [f"the check {describe_end(status)} and said nothing"]
    if lines and status < 0:
        found.append(f"the check {describe_end(status)}")
    if full:
        found.append(f"the check wrote more than {OUTPUT_BYTES:,} bytes, and the rest was lost")
    return "\n".join(line[:REASON_CHARS] for line in found)


def _last_words(lines: list[str]) -> list[str]:
    """'…/site-packages/hub/worker.py, line 12: SyntaxError: invalid syntax'"""
    places = [found for line in lines if (found := _PLACE.match(line))]
    if not places or _PLACE.match(lines[-1]):
        return lines[-1:]
    path, number = places[-1].groups()
    parts = Path(path).parts
    short = path if len(parts) <= PLACE_PARTS else "/".join(("…", *parts[-PLACE_PARTS:]))
    return [f"{short}, line {number}: {lines[-1]}"]


class Deploy:
    """The deploys of one supervisor. `rising` boots beside those that serve; `leaving` drains.

    tally: of this hub, whatever its version. version: of the workers that serve, which is another one than this
    supervisor's where its own generation has failed.
    """

    def __init__(
        self,
        settings: Settings,
        program: Program | None,
        estate: Callable[[Tally], Estate],
        replace: Callable[[Program, Estate], None],
        tell: Callable[[str | None], None],
        go_back: Callable[[], None],
        tally: Tally | None = None,
        version: str = __version__,
    ) -> None:
        """program: None where nobody knows how this hub was started. estate: what there is to leave.

        replace: makes the exec; raises OSError where it fails, and returns where the settings are to be read anew
        first. tell: gets each outcome, '' for a good one, and None for each that begins. go_back: has the version
        before take this process back, or returns.
        """
        self.retune(settings)
        self._program = program
        self._estate = estate
        self._replace = replace
        self._tell = tell
        self._go_back = go_back
        self.tally = tally or Tally()
        self.version = version
        self.rising: list[WorkerProcess] = []
        self.leaving: list[WorkerProcess] = []
        self._check: Check | None = None
        self._repeat = False
        """The check is to be made once more, of the deploy that goes on; another wish is another deploy."""
        self._failed = False
        """Our generation can't, so the version before is the better one to look after its workers."""
        self._rising_due_s = NEVER
        self._resting_due_s = NEVER
        self._leaving_due_s = NEVER

    # What supervisor calls.

    def retune(self, settings: Settings) -> None:
        """Other times from the next step on."""
        self._timeout_s = settings.deploy_timeout_s

    @property
    def busy(self) -> bool:
        """One is under way, up to the end of the old generation's drain."""
        return bool(self._check or self._repeat or self.rising or self.leaving)

    def ask(self) -> None:
        """SIGUSR2."""
        if self._program is None:
            self._refuse("it is not known how this hub was started")
            return
        if self.busy:
            logger.info("SIGUSR2: a deploy is under way; the next one begins when the old workers have gone")
        self.tally = self.tally.model_copy(update={"again": True})

    def due_s(self) -> float:
        """When something is to be done without being asked."""
        check_s = self._check.due_s if self._check else NEVER
        return min(check_s, self._rising_due_s, self._resting_due_s, self._leaving_due_s)

    def turn(self, now: float, grace_s: float) -> None:
        """One step on, while the hub serves. grace_s: that a retired worker has beyond its window."""
        if self._check is not None:
            self._follow(self._check, now)
        elif self.rising:
            self._raise(now, grace_s)
        elif self._failed and not self.leaving:
            self._failed = False
            self._go_back()
        elif self._repeat:
            self._begin(now)
        elif self.tally.again and not self.leaving:
            self.tally = self.tally.model_copy(update={"again": False})
            self._begin(now)
        self._send_away(now)
        if self._leaving_due_s <= now:
            self._leaving_due_s = NEVER
            for worker in self.leaving:
                logger.error("worker %d (pid %d) did not leave in time and is killed", worker.slot.index, worker.pid)
                worker.tell(signal.SIGKILL)

    def leave(self) -> None:
        """In a child: close what is the supervisor's."""
        if self._check is not None:
            self._check.close()

    def check_again(self) -> None:
        """The settings have been read anew: what a check that goes on has found is not what an heir would."""
        if self._check is not None:
            self._check.end()
            self._check = None
            self._repeat = True

    def abandon(self) -> None:
        """The hub stops: nothing new begins."""
        self.tally = self.tally.model_copy(update={"again": False})
        self._rising_due_s = self._resting_due_s = self._leaving_due_s = NEVER
        if self._check is not None or self._repeat:
            if self._check is not None:
                self._check.end()
            self._check, self._repeat = None, False
            self._refuse(STOPS)

    # The check and the exec.

    def _begin(self, now: float) -> None:
        assert self._program is not None  # nobody could have asked
        self._repeat = False
        self._tell(None)
        logger.info("SIGUSR2: checking the new version: %s", " ".join(self._program.command))
        try:
            self._check = Check(self._program, self._estate(self.tally), now + self._timeout_s)
        except OSError as error:
            self._refuse(f"{self._program.command[0]} cannot be run: {error.strerror}")

    def _follow(self, check: Check, now: float) -> None:
        try:
            approval = check.outcome(now)
        except Refused as refused:
            self._check = None
            self._refuse(str(refused))
            return
        if approval is None:
            return
        self._check = None
        assert self._program is not None
        logger.info("version %s takes over from %s in this process", approval.version, self.version)
        try:
            estate = self._estate(self.tally).model_copy(update={"checked": approval.checked})
            self._replace(self._program, estate)
        except OSError as error:
            self._refuse(f"{self._program.command[0]} cannot be run: {error.strerror}")
        else:
            self._repeat = True
        finally:
            os.close(approval.checked)

    def _refuse(self, reason: str) -> None:
        self.tally = self.tally.model_copy(update={"failed": self.tally.failed + 1})
        self._tell(reason)
        goes_on = "" if reason == STOPS else f", version {self.version} goes on"
        logger.error("deploy refused%s: %s", goes_on, " | ".join(reason.splitlines()))

    # The generations.

    def rise(self, workers: list[WorkerProcess], now: float) -> None:
        """These have been forked to take the place of those that serve."""
        self.rising = workers
        self._rising_due_s = now + self._timeout_s

    def _raise(self, now: float, grace_s: float) -> None:
        if self._rising_due_s <= now:
            late = [str(worker.slot.index) for worker in self.rising if not worker.ready]
            self.fail(f"worker {', '.join(late)} was not ready in time (deploy_timeout_s)", now, grace_s)

    @property
    def risen(self) -> bool:
        """All of the new generation accept."""
        return bool(self.rising) and all(worker.ready for worker in self.rising)

    def succeed(self, old: list[WorkerProcess], now: float, grace_s: float) -> list[WorkerProcess]:
        """The new generation takes the place of the old one, which drains; returns the new one."""
        risen, self.rising = self.rising, []
        self._rising_due_s = NEVER
        self._retire(old, now, grace_s)
        self.version = __version__
        self.tally = self.tally.model_copy(update={"done": self.tally.done + 1})
        count, window_s = len(self.leaving), max((worker.goodbye_s for worker in self.leaving), default=0.0)
        self._tell("")
        logger.info(
            "deployed version %s; %d workers of the old generation drain for up to %g s", __version__, count, window_s
        )
        return risen

    def fail(self, reason: str, now: float, grace_s: float) -> None:
        """The new generation can't: who has come to it already is sent away evenly, the old one goes on."""
        risen, self.rising = self.rising, []
        self._rising_due_s = NEVER
        self._retire(risen, now, grace_s)
        self.tally = self.tally.model_copy(update={"failed": self.tally.failed + 1})
        self._failed = True
        self._tell(reason)
        logger.error("deploy failed, the old workers go on: %s", reason)

    def _retire(self, workers: list[WorkerProcess], now: float, grace_s: float) -> None:
        for worker in workers:
            if worker.pid:
                # One that boots yet has nobody to say goodbye to.
                worker.tell(RETIRE if worker.ready else signal.SIGTERM)
                self.leaving.append(worker)
        if self.leaving:
            self._resting_due_s = now + REST_S
            self._leaving_due_s = now + REST_S + max(worker.goodbye_s for worker in self.leaving) + grace_s

    def _send_away(self, now: float) -> None:
        """Once none of them accepts, so that nobody comes from one that leaves to the next one that does."""
        if self._resting_due_s < NEVER and (self._resting_due_s <= now or all(one.rests for one in self.leaving)):
            self._resting_due_s = NEVER
            for worker in self.leaving:
                worker.tell(RETIRE)

    def gone(self, worker: WorkerProcess, ended: Ended) -> None:
        """One of those that leave has ended."""
        self.leaving.remove(worker)
        level = logging.INFO if ended.code == 0 else logging.WARNING
        logger.log(level, "%s, of generation %d, which has left", ended, ended.generation)
        if not self.leaving:
            self._leaving_due_s = NEVER
            logger.info("the last worker of the old generation has gone")


def replace(program: Program, estate: Estate) -> None:
    """Become the new version: same process, same children. Returns only by OSError, with everything as it was."""
    words = seal(estate)
    kept = [words, *estate.descriptors()]
    environ = {name: value for name, value in os.environ.items() if name not in LISTENING}
    environ[VARIABLE] = str(words)
    command = [*program.command, "serve", *program.options]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    try:
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        os.execvpe(command[0], command, environ)
    finally:
        for descriptor in kept:
            os.set_inheritable(descriptor, False)
        os.close(words)


LISTENING = frozenset({"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})
"""What systemd handed over belongs to the estate now; read again, the numbers would mean other descriptors."""
